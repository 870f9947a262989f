/* param.c -- flat parameter buffers with named views. See param.h. */
#include "engine/param.h"

#include <math.h>
#include <stdarg.h>

#include "engine/comm.h"
#include "kernels/philox.h"

enum { GAP = 16 }; /* every parameter starts at a 64-byte boundary */

void params_open(ParamSet *ps, Arena *host) { *ps = (ParamSet){.arena = host}; }

void params_close(ParamSet *ps) {
    arena_close(&ps->memory);
    free(ps->param);
    free(ps->view);
    *ps = (ParamSet){0};
}

static void view_add(ParamSet *ps, Tensor *t, int64_t at) {
    CHECK(!ps->value, "parameter %s is declared after params_alloc", t->name);
    GROW(ps->view, ps->view_cap, ps->nviews + 1);
    ps->view[ps->nviews++] = (ParamView){t, at};
}

/* One declaration at the current end of the buffer, without a gap. */
static Param *declare(ParamSet *ps, ParamKind kind, int ndim, const int64_t *shape, const char *name) {
    Param *p = ARENA_NEW(ps->arena, Param, 1);
    *p = (Param){
        .name = arena_strdup(ps->arena, name, strlen(name)), .kind = kind, .at = ps->total, .lr_scale = 1};
    p->scalar = ndim == 0;
    p->t = (Tensor){
        .ndim = MAX(ndim, 1), .dtype = F32, .name = p->name, .shape = {1}}; /* a scalar is one value */
    for (int i = 0; i < ndim; i++) p->t.shape[i] = shape[i];
    p->n = numel(&p->t);
    GROW(ps->param, ps->cap, ps->n + 1);
    ps->param[ps->n++] = p;
    ps->total += p->n;
    view_add(ps, &p->t, p->at);
    return p;
}

static void align(ParamSet *ps) { ps->total = (ps->total + GAP - 1) / GAP * GAP; }

Param *param_new(ParamSet *ps, ParamKind kind, int ndim, const int64_t *shape, const char *name, ...) {
    char buf[256];
    va_list ap;
    va_start(ap, name);
    vsnprintf(buf, sizeof buf, name, ap);
    va_end(ap);
    align(ps);
    return declare(ps, kind, ndim, shape, buf);
}

Tensor *param_fused(ParamSet *ps, ParamKind kind, int count, int ndim, const int64_t *shape,
                    const char *prefix, const char *const *names, const char *suffix) {
    align(ps);
    Tensor *f = ARENA_NEW(ps->arena, Tensor, 1);
    int64_t at = ps->total;
    for (int i = 0; i < count; i++) {
        char buf[256];
        snprintf(buf, sizeof buf, "%s%s%s", prefix, names[i], suffix);
        Param *p = declare(ps, kind, ndim, shape, buf);
        if (!i) *f = p->t;
    }
    f->shape[0] = count * shape[0];
    view_add(ps, f, at);
    return f;
}

/* Another tensor over the same values, `offset` values further. */
static Tensor *another(ParamSet *ps, const Tensor *of, int64_t offset, int ndim, const int64_t *shape) {
    int64_t at = -1;
    for (int64_t i = 0; i < ps->nviews; i++)
        if (ps->view[i].t == of) at = ps->view[i].at;
    CHECK(at >= 0, "%s is not declared here", of->name);
    Tensor *t = ARENA_NEW(ps->arena, Tensor, 1);
    *t = *of;
    t->ndim = ndim;
    memcpy(t->shape, shape, (size_t)ndim * sizeof *shape);
    CHECK(offset + numel(t) <= numel(of), "view of %" PRId64 " values from %s", numel(t), of->name);
    view_add(ps, t, at + offset);
    return t;
}

Tensor *param_rows(ParamSet *ps, const Tensor *fused, int64_t first, int64_t n) {
    int64_t shape[MAX_DIMS];
    memcpy(shape, fused->shape, sizeof shape);
    shape[0] = n;
    return another(ps, fused, first * (numel(fused) / fused->shape[0]), fused->ndim, shape);
}

Tensor *param_matrix(ParamSet *ps, const Tensor *t, int64_t rows) {
    return another(ps, t, 0, 2, (int64_t[]){rows, numel(t) / rows});
}

void params_alloc(ParamSet *ps, Device *dev, DType type, bool trained) {
    align(ps);
    ps->dev = dev;
    ps->changed = true;
    size_t bytes = (size_t)ps->total * sizeof(float);
    const Comm *c = comm_world();
    ps->lo = c->shard ? comm_share(c, ps->total, c->rank) : 0;
    ps->hi = c->shard ? comm_share(c, ps->total, c->rank + 1) : ps->total;
    const size_t moments = (size_t)(ps->hi - ps->lo) * sizeof(float);
    const size_t copy = type == BF16 ? bytes / 2 : 0;
    arena_open(&ps->memory, "parameters", dev,
               (trained ? 2 * (bytes + moments + 128) : bytes + 64) + copy + 64);
    ps->value = arena_alloc(&ps->memory, bytes);
    if (type == BF16) ps->value16 = arena_alloc(&ps->memory, copy);
    if (trained) {
        ps->grad = arena_alloc(&ps->memory, bytes);
        ps->m = arena_alloc(&ps->memory, moments);
        ps->v = arena_alloc(&ps->memory, moments);
    }
    float *const buffer[] = {ps->value, ps->grad, ps->m, ps->v};
    for (int k = 0; k < (trained ? 4 : 1); k++) /* gaps between parameters count, too */
        dev->zero(dev, buffer[k], k < 2 ? bytes : moments);
    for (int64_t i = 0; i < ps->nviews; i++) {
        Tensor *t = ps->view[i].t;
        t->data = ps->value + ps->view[i].at;
        t->bf16 = ps->value16 ? ps->value16 + ps->view[i].at : NULL;
        t->param_grad = trained ? ps->grad + ps->view[i].at : NULL;
        t->needs_grad = trained;
    }
}

void params_stop_frozen(ParamSet *ps) {
    for (int64_t i = 0; i < ps->nviews; i++) {
        const int64_t from = ps->view[i].at, to = from + numel(ps->view[i].t);
        bool learns = false;
        for (int k = 0; k < ps->n && !learns; k++) {
            const Param *p = ps->param[k];
            learns = p->lr_scale != 0 && p->at < to && from < p->at + p->n;
        }
        ps->view[i].t->needs_grad &= learns;
    }
}

void params_changed(ParamSet *ps) { ps->changed = true; }

void params_refresh(ParamSet *ps) {
    if (ps->value16 && ps->changed)
        ps->dev->ops->cast(ps->dev->main, BF16, ps->value16, F32, ps->value, ps->total);
    ps->changed = false;
}

void params_zero_grad(ParamSet *ps) { ps->dev->zero(ps->dev, ps->grad, (size_t)ps->total * sizeof(float)); }

void params_grad_at(ParamSet *ps, float *grad) {
    for (int64_t i = 0; i < ps->nviews; i++) ps->view[i].t->param_grad = grad + ps->view[i].at;
}

uint64_t params_hash(const ParamSet *ps) {
    const size_t bytes = (size_t)ps->total * sizeof(float);
    float *host = xcalloc((size_t)ps->total + 1, sizeof *host);
    ps->dev->download(ps->dev, host, ps->value, bytes);
    uint64_t h = hash_bytes(host, bytes, (uint64_t)ps->step);
    free(host);
    return h;
}

/* Two normal values from one Philox block (Box & Muller 1958). */
static void normal_pair(uint64_t seed, uint64_t index, float out[2]) {
    uint32_t r[4];
    philox(r, seed, index);
    double u = (r[0] + 0.5) / 4294967296.0, v = r[1] / 4294967296.0, s = sqrt(-2 * log(u));
    out[0] = (float)(s * cos(2 * M_PI * v));
    out[1] = (float)(s * sin(2 * M_PI * v));
}

void params_init(ParamSet *ps, uint64_t seed, float std) {
    int64_t largest = 0;
    for (int i = 0; i < ps->n; i++) largest = MAX(largest, ps->param[i]->n);
    float *buf = xcalloc((size_t)largest + 1, sizeof *buf);
    for (int i = 0; i < ps->n; i++) {
        Param *p = ps->param[i];
        float s = std > 0 ? std : p->kind == PARAM_WEIGHT ? 1 / sqrtf((float)(p->n / p->t.shape[0])) : 0.5f;
        uint64_t key = hash_bytes(p->name, strlen(p->name), seed);
        for (int64_t j = 0; j < p->n; j += 2) {
            if (p->kind == PARAM_GAIN || p->kind == PARAM_BIAS) {
                buf[j] = buf[j + 1] = p->kind == PARAM_GAIN ? 1 : p->init_value;
            } else {
                normal_pair(key, (uint64_t)j / 2, buf + j);
                buf[j] *= s;
                buf[j + 1] *= s;
            }
        }
        ps->dev->upload(ps->dev, p->t.data, buf, (size_t)p->n * sizeof(float));
    }
    free(buf);
    params_changed(ps);
}

void param_scale(ParamSet *ps, Tensor *t, float factor) {
    float *buf = xcalloc((size_t)numel(t) + 1, sizeof *buf);
    ps->dev->download(ps->dev, buf, t->data, tensor_bytes(t));
    for (int64_t i = 0; i < numel(t); i++) buf[i] *= factor;
    ps->dev->upload(ps->dev, t->data, buf, tensor_bytes(t));
    free(buf);
    params_changed(ps);
}

Param *param_find(const ParamSet *ps, const char *name) {
    for (int i = 0; i < ps->n; i++)
        if (!strcmp(ps->param[i]->name, name)) return ps->param[i];
    return NULL;
}

int64_t params_count(const ParamSet *ps) {
    int64_t n = 0;
    for (int i = 0; i < ps->n; i++) n += ps->param[i]->n;
    return n;
}

static bool shape_matches(const Param *p, const StTensor *t) {
    bool same = p->t.ndim == MAX(t->ndim, 1);
    for (int d = 0; same && d < p->t.ndim; d++) same = p->t.shape[d] == (t->ndim ? t->shape[d] : 1);
    return same;
}

/* Adds "; text" to a list that may not fit: then it ends with "...". */
static void list_add(char *list, size_t size, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static void list_add(char *list, size_t size, const char *fmt, ...) {
    size_t at = strlen(list);
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(list + at, size - at, fmt, ap);
    va_end(ap);
    if (n >= (int)(size - at) && size > 4) strcpy(list + size - 4, "...");
}

static int compare_params(const void *a, const void *b) {
    return strcmp((*(Param *const *)a)->name, (*(Param *const *)b)->name);
}

bool params_load(ParamSet *ps, const SafeTensors *st, const char *path, Error *e) {
    char list[700] = "", text[128];
    int wrong = 0;
    Param **sorted = xcalloc((size_t)ps->n, sizeof *sorted);
    memcpy(sorted, ps->param, (size_t)ps->n * sizeof *sorted);
    qsort(sorted, (size_t)ps->n, sizeof *sorted, compare_params);
    for (int i = 0; i < ps->n; i++) {
        const StTensor *t = st_find(st, sorted[i]->name);
        if (!t) {
            wrong++;
            list_add(list, sizeof list, "; missing %s %s", sorted[i]->name,
                     shape_text(&sorted[i]->t, text, sizeof text));
        } else if (!shape_matches(sorted[i], t)) {
            wrong++;
            Tensor got = {.ndim = MIN(MAX(t->ndim, 1), MAX_DIMS), .shape = {1}};
            for (int d = 0; d < MIN(t->ndim, MAX_DIMS); d++) got.shape[d] = t->shape[d];
            char have[128];
            list_add(list, sizeof list, "; %s is %s, expected %s", t->name,
                     shape_text(&got, have, sizeof have), shape_text(&sorted[i]->t, text, sizeof text));
        }
    }
    for (int i = 0; i < st->ntensors; i++) {
        const char *name = st->tensors[i].name;
        size_t n = strlen(name);
        if (n >= 12 && !strcmp(name + n - 12, "position_ids")) continue; /* a buffer of older files */
        Param key = {.name = name}, *kp = &key;
        if (bsearch(&kp, sorted, (size_t)ps->n, sizeof *sorted, compare_params)) continue;
        wrong++;
        list_add(list, sizeof list, "; unknown tensor %s", name);
    }
    free(sorted);
    if (wrong)
        return fail_as(e, FAIL_MODEL, "%s does not fit the model's config.json, %d tensors are wrong%s", path,
                       wrong, list);
    params_changed(ps);
    float *buf = NULL;
    int64_t cap = 0;
    bool ok = true;
    for (int i = 0; ok && i < ps->n; i++) {
        Param *p = ps->param[i];
        const StTensor *t = st_find(st, p->name);
        const void *values = t->data;
        if (t->dtype != ST_F32) {
            GROW(buf, cap, p->n);
            ok = st_to_f32(buf, t, e) || fail_in(e, "%s", path);
            values = buf;
        }
        if (ok) ps->dev->upload(ps->dev, p->t.data, values, (size_t)p->n * sizeof(float));
        st_forget(st, t); /* else the file counts beside what was made of it */
    }
    free(buf);
    return ok;
}

/* Rows 1.. of (1 + g*g, C) positions, resampled bilinearly (corners aligned) to another square grid; row 0 is copied. */
static void resize_positions(float *out, int64_t gout, const float *in, int64_t gin, int64_t C) {
    memcpy(out, in, (size_t)C * sizeof *out);
    for (int64_t y = 0; y < gout; y++)
        for (int64_t x = 0; x < gout; x++) {
            float sy = gout > 1 ? (float)(y * (gin - 1)) / (float)(gout - 1) : 0,
                  sx = gout > 1 ? (float)(x * (gin - 1)) / (float)(gout - 1) : 0;
            int64_t y0 = (int64_t)sy, x0 = (int64_t)sx, y1 = MIN(y0 + 1, gin - 1), x1 = MIN(x0 + 1, gin - 1);
            float fy = sy - (float)y0, fx = sx - (float)x0, *o = out + (1 + y * gout + x) * C;
            const float *p = in + C;
            for (int64_t c = 0; c < C; c++)
                o[c] = (1 - fy) * ((1 - fx) * p[(y0 * gin + x0) * C + c] + fx * p[(y0 * gin + x1) * C + c]) +
                       fy * ((1 - fx) * p[(y1 * gin + x0) * C + c] + fx * p[(y1 * gin + x1) * C + c]);
        }
}

/* g of (1 + g*g, C) positions, 0 when the shape is no such thing. */
static int64_t position_grid(int64_t values, int64_t C) {
    int64_t n = values / C - 1, g = (int64_t)(sqrt((double)n) + 0.5);
    return n > 0 && values % C == 0 && g * g == n ? g : 0;
}

int params_grow(ParamSet *ps, const SafeTensors *st, const char *const *silent) {
    int taken = 0;
    for (int i = 0; i < ps->n; i++) {
        Param *p = ps->param[i];
        const StTensor *t = st_find(st, p->name);
        int64_t C = last_dim(&p->t), n = t ? st_numel(t) : 0;
        float *out = xcalloc((size_t)p->n + 1, sizeof *out), *in = xcalloc((size_t)n + 1, sizeof *in);
        bool use = false;
        if (t && st_to_f32(in, t, NULL)) {
            int64_t gin = strstr(p->name, "position") && t->ndim && t->shape[t->ndim - 1] == C
                              ? position_grid(n, C)
                              : 0;
            int64_t gout = position_grid(p->n, C);
            if (shape_matches(p, t))
                memcpy(out, in, (size_t)n * sizeof *out), use = true;
            else if (gin && gout)
                resize_positions(out, gout, in, gin, C), use = true;
        } else {
            for (const char *const *s = silent; *s; s++) use |= strstr(p->name, *s) != NULL; /* out is zero */
        }
        if (use) ps->dev->upload(ps->dev, p->t.data, out, (size_t)p->n * sizeof *out);
        taken += use && t;
        free(in);
        free(out);
    }
    params_changed(ps);
    return taken;
}

/* A flat buffer in host memory. Moments of which each rank has a share come together on rank 0. */
static void fetch(const ParamSet *ps, float *host, const float *buffer) {
    if (buffer == ps->value || ps->hi - ps->lo == ps->total) {
        ps->dev->download(ps->dev, host, buffer, (size_t)ps->total * sizeof(float));
        return;
    }
    float *mine = xcalloc((size_t)(ps->hi - ps->lo) + 1, sizeof *mine);
    ps->dev->download(ps->dev, mine, buffer, (size_t)(ps->hi - ps->lo) * sizeof(float));
    comm_to_root(comm_world(), "moments", mine, host, ps->total);
    free(mine);
}

void params_send_moments(const ParamSet *ps) {
    if (ps->hi - ps->lo == ps->total) return;
    fetch(ps, NULL, ps->m);
    fetch(ps, NULL, ps->v);
}

/* One safetensors file of `count` flat buffers, names[k] put before each parameter's name. */
static bool save_buffers(const ParamSet *ps, const char *path, float *const *buffer, const char *const *names,
                         int count, const char *const (*meta)[2], int nmeta, Error *e) {
    int n = ps->n * count;
    StTensor *st = xcalloc((size_t)n, sizeof *st);
    char *text = xcalloc((size_t)n, 320);
    float *host = xcalloc((size_t)(ps->total * count) + 1, sizeof *host);
    for (int k = 0; k < count; k++) {
        float *h = host + k * ps->total;
        fetch(ps, h, buffer[k]);
        for (int i = 0; i < ps->n; i++) {
            const Param *p = ps->param[i];
            char *name = text + ((size_t)k * (size_t)ps->n + (size_t)i) * 320;
            snprintf(name, 320, "%s%s", names[k], p->name);
            StTensor *t = &st[k * ps->n + i];
            *t = (StTensor){.name = name,
                            .dtype = ST_F32,
                            .ndim = p->scalar ? 0 : p->t.ndim,
                            .data = h + p->at,
                            .bytes = (size_t)p->n * 4};
            memcpy(t->shape, p->t.shape, sizeof p->t.shape);
        }
    }
    bool ok = st_write(path, st, n, meta, nmeta, e);
    free(host);
    free(text);
    free(st);
    return ok;
}

bool params_save(const ParamSet *ps, const char *path, Error *e) {
    const char *const meta[][2] = {{"format", "pt"}}; /* what transformers wants to see */
    return save_buffers(ps, path, (float *[]){ps->value}, (const char *[]){""}, 1, meta, 1, e);
}

bool params_save_moments(const ParamSet *ps, const char *path, Error *e) {
    char step[32];
    snprintf(step, sizeof step, "%" PRId64, ps->step);
    const char *const meta[][2] = {{"step", step}};
    return save_buffers(ps, path, (float *[]){ps->m, ps->v}, (const char *[]){"m.", "v."}, 2, meta, 1, e);
}

bool params_load_moments(ParamSet *ps, const char *path, Error *e) {
    SafeTensors st;
    if (!st_open(&st, path, e)) return false;
    bool ok = true;
    const char *step = st_metadata(&st, "step");
    char *end;
    int64_t steps = step ? strtoll(step, &end, 10) : 0;
    if (!step)
        ok = fail_as(e, FAIL_MODEL, "%s: no step in the metadata: not an optimizer state", path);
    else if (*step < '0' || *step > '9' || *end)
        ok = fail_as(e, FAIL_MODEL, "%s: the metadata's step is \"%.40s\"", path, step);
    for (int i = 0; ok && i < ps->n; i++) {
        Param *p = ps->param[i];
        for (int k = 0; ok && k < 2; k++) {
            char name[320];
            snprintf(name, sizeof name, "%s%s", k ? "v." : "m.", p->name);
            const StTensor *t = st_find(&st, name);
            if (!t || t->dtype != ST_F32 || st_numel(t) != p->n)
                ok = fail_as(e, FAIL_MODEL, "%s: %s of %" PRId64 " values is %s", path, name, p->n,
                             t ? "of another size" : "missing");
            const int64_t from = MAX(p->at, ps->lo), end = MIN(p->at + p->n, ps->hi);
            if (ok && from < end)
                ps->dev->upload(ps->dev, (k ? ps->v : ps->m) + from - ps->lo, (const float *)t->data + from - p->at,
                                (size_t)(end - from) * sizeof(float));
        }
    }
    if (ok) ps->step = steps;
    st_close(&st);
    return ok;
}
