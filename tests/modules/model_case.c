/* model_case.c -- see model_case.h. */
#include "tests/modules/model_case.h"

#include "modules/answer.h"
#include "modules/clip.h"
#include "modules/detect.h"

const StTensor *case_tensor(const ModelCase *k, const char *name) {
    const StTensor *t = st_find(&k->st, name);
    CHECK(t, "%s has no tensor %s", k->st.path, name);
    return t;
}

const float *case_f32(ModelCase *k, const char *name) {
    const StTensor *t = case_tensor(k, name);
    float *x = arena_alloc(&k->host, (size_t)st_numel(t) * sizeof *x);
    Error e = {0};
    CHECK(st_to_f32(x, t, &e), "%s", e.text);
    return x;
}

float case_number(const ModelCase *k, const char *name) {
    const char *v = st_metadata(&k->st, name);
    CHECK(v, "%s: no %s in the metadata", k->st.path, name);
    return strtof(v, NULL);
}

/* Ask i of the tensors `image` (asks) and `rect` (asks, 4). */
static Ask read_picture(const ModelCase *k, const StTensor *image, const StTensor *rect, int64_t i) {
    char name[32];
    int32_t id, r[4];
    memcpy(&id, (const char *)image->data + 4 * i, 4);
    memcpy(r, (const char *)rect->data + 16 * i, 16);
    snprintf(name, sizeof name, "image%d", id);
    const StTensor *pixels = case_tensor(k, name);
    return (Ask){.image = {pixels->data, (int)pixels->shape[1], (int)pixels->shape[0]}, .image_id = (uint64_t)id, .rect = {r[0], r[1], r[2], r[3]}};
}

static void read_asks(ModelCase *k) {
    const StTensor *image = case_tensor(k, "ask.image"), *rect = case_tensor(k, "ask.rect"), *pair = st_find(&k->st, "pair.image");
    k->n = st_numel(image);
    k->ask = xcalloc((size_t)(k->n * k->m->images), sizeof *k->ask);
    CHECK(!pair == (k->m->images == 1), "%s: questions about %d pictures", k->st.path, k->m->images);
    for (int64_t i = 0; i < k->n; i++) {
        Ask *a = &k->ask[i * k->m->images];
        char name[32];
        snprintf(name, sizeof name, "ask.text%" PRId64, i);
        *a = read_picture(k, image, rect, i);
        a->query = st_metadata(&k->st, name);
        CHECK(a->query, "%s: no %s in the metadata", k->st.path, name);
        if (pair) a[1] = read_picture(k, pair, case_tensor(k, "pair.rect"), i);
    }
}

bool case_open(ModelCase *k, const char *folder, const char *file, Device *dev, DType precision, size_t step_bytes, Error *e) {
    *k = (ModelCase){0};
    if (!st_open(&k->st, file, e) || !(k->m = module_open(folder, dev, precision, MODULE_TRAINED, true, 0, e))) {
        st_close(&k->st);
        return false;
    }
    arena_open(&k->step, "step", dev, step_bytes);
    arena_open(&k->host, "host", NULL, (size_t)1 << 30);
    k->c = (Ctx){.dev = dev, .step = &k->step, .host = &k->host};
    read_asks(k);
    return true;
}

void case_close(ModelCase *k) {
    module_close(k->m);
    st_close(&k->st);
    free(k->ask);
    arena_close(&k->step);
    arena_close(&k->host);
    *k = (ModelCase){0};
}

void case_begin(ModelCase *k, bool tape) {
    arena_reset(&k->step, 0);
    arena_reset(&k->host, 0);
    k->tape = (Tape){0};
    k->c.tape = tape ? &k->tape : NULL;
    module_begin(k->m);
}

void case_forward(ModelCase *k) { module_forward(k->m, &k->c, k->ask, k->n, &k->out); }

/* ---- losses --------------------------------------------------------------------------------------- */

static double loc_case_loss(ModelCase *k) {
    LocLossConfig cfg = {.w_class = case_number(k, "w_class"), .w_l1 = case_number(k, "w_l1"), .w_giou = case_number(k, "w_giou"),
                         .alpha = case_number(k, "alpha"), .gamma = case_number(k, "gamma"), .corners = true};
    LocTarget *target = ARENA_NEW(&k->host, LocTarget, k->n);
    const float *count = case_f32(k, "target.count"), *score = case_f32(k, "target.score");
    const float (*box)[4] = (const float(*)[4])case_f32(k, "target.box");
    for (int64_t i = 0; i < k->n; i++) {
        target[i] = (LocTarget){.nboxes = (int)count[i], .box = box, .score = score, .negative_weight = case_number(k, "negative_weight"),
                                .weight = 1 / (float)k->n};
        box += target[i].nboxes;
        score += target[i].nboxes;
    }
    return loc_loss(&k->c, &k->out, target, &cfg, NULL);
}

/* A tensor of 32-bit integers, NULL when the file has none. */
static const int32_t *case_i32(const ModelCase *k, const char *name, int64_t *n) {
    const StTensor *t = st_find(&k->st, name);
    if (!t) return NULL;
    CHECK(t->dtype == ST_I32, "%s: %s is not I32", k->st.path, name);
    *n = st_numel(t);
    return t->data;
}

static double clip_case_loss(ModelCase *k) {
    int64_t images = 0, texts = 0;
    const int32_t *text_of = case_i32(k, "text_of", &images), *image_of = case_i32(k, "image_of", &texts);
    if (!images) images = k->n / texts;
    return clip_loss(k->m, &k->c, &k->out, images, k->n / images, text_of, text_of ? case_f32(k, "image_weight") : NULL, image_of,
                     image_of ? case_f32(k, "text_weight") : NULL);
}

double case_loss(ModelCase *k) {
    if (!strcmp(k->m->type->step, "CLIP")) return clip_case_loss(k);
    if (!strcmp(k->m->type->step, "LOC")) return loc_case_loss(k);
    const float *target = st_find(&k->st, "target") ? case_f32(k, "target") : NULL, T = st_metadata(&k->st, "temperature") ? case_number(k, "temperature") : 1;
    float *weight = ARENA_NEW(&k->host, float, k->n);
    for (int64_t i = 0; i < k->n; i++) weight[i] = 1 / (float)k->n;
    if (!module_multi_label(k->m) && !k->m->type->answer_loss) {
        int64_t n;
        return loss_value(&k->c, op_ce_loss(&k->c, k->out.logits, case_i32(k, "label", &n), weight, 0));
    }
    if (k->m->type->answer_loss) return k->m->type->answer_loss(k->m, &k->c, &k->out, target, weight);
    return loss_value(&k->c, op_bce_loss(&k->c, k->out.logits, target, weight, T));
}
