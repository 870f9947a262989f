/* tower.c -- see tower.h. */
#include "modules/tower.h"

int64_t tower_chunk(int64_t tokens, int64_t C) { return MAX(((int64_t)1 << 20) / (tokens * C), 1); }

/* Runs in chunks that share their memory, copying the outputs out. */
static void run_chunks(const Tower *t, Ctx *c, const Ask *const *ask, int64_t n, Tensor **out) {
    for (int k = 0; k < t->nout; k++) {
        int64_t shape[MAX_DIMS];
        memcpy(shape, t->shape[k], sizeof shape);
        shape[0] = n;
        out[k] = tensor_new(c, t->type, t->ndim[k], shape);
    }
    for (int64_t at = 0; at < n; at += t->chunk) {
        size_t step = arena_mark(c->step), host = arena_mark(c->host);
        Tensor *part[TOWER_OUTS];
        t->run(t->module, c, ask + at, MIN(t->chunk, n - at), part);
        for (int k = 0; k < t->nout; k++) {
            int64_t values = numel(part[k]), row = values / part[k]->shape[0];
            CHECK(part[k]->dtype == t->type, "%s: output %d of a tower has another type", t->module->folder,
                  k);
            c->dev->ops->copy_rows(c->dev->main, t->type,
                                   (char *)out[k]->data + (size_t)(at * row) * dtype_size(t->type), values,
                                   part[k]->data, values, 1, values, false);
        }
        arena_reset(c->step, step);
        arena_reset(c->host, host);
    }
}

void tower_rows(Tower *t, Ctx *c, const Ask *ask, int64_t n, Tensor **joined, int32_t *row) {
    const Ask **fresh = arena_alloc(c->host, (size_t)n * sizeof *fresh);
    TowerRow *at = arena_alloc(c->host, (size_t)n * sizeof *at);
    int64_t nfresh = 0;
    for (int64_t i = 0; i < n; i++) {
        TowerKey key = t->key(&ask[i]);
        const TowerRow *known = tower_find(&t->cache, key);
        at[i] = known ? *known : (TowerRow){(int32_t)t->nsources, (int32_t)nfresh};
        if (known) continue;
        tower_add(&t->cache, key, at[i]);
        fresh[nfresh++] = &ask[i];
    }
    if (nfresh) {
        GROW(t->source, t->cap, t->nsources + 1);
        TowerSource *s = &t->source[t->nsources++];
        *s = (TowerSource){.tape = c->tape};
        if (c->tape) t->run(t->module, c, fresh, nfresh, s->out);
        else run_chunks(t, c, fresh, nfresh, s->out);
        *t->rows += nfresh;
    }

    int64_t *first = ARENA_NEW(
        c->host, int64_t, t->nsources); /* row of a source in the joined tensors, plus one; 0: not used */
    Tensor **part = arena_alloc(c->host, (size_t)(t->nsources * t->nout) * sizeof *part);
    int nparts = 0;
    int64_t rows = 0;
    for (int64_t i = 0; i < n; i++) first[at[i].source] = 1;
    for (int64_t j = 0; j < t->nsources; j++) {
        if (!first[j]) continue;
        const TowerSource *s = &t->source[j];
        CHECK(s->tape == c->tape || !module_learns(t->module)->grad,
              "%s: tower outputs made %s a tape are read %s one: module_begin is missing", t->module->folder,
              s->tape ? "with" : "without", c->tape ? "with" : "without");
        first[j] += rows;
        rows += s->out[0]->shape[0];
        for (int k = 0; k < t->nout; k++) part[k * t->nsources + nparts] = s->out[k];
        nparts++;
    }
    for (int k = 0; k < t->nout; k++) joined[k] = op_concat_rows(c, part + k * t->nsources, nparts);
    for (int64_t i = 0; i < n; i++) row[i] = (int32_t)(first[at[i].source] - 1 + at[i].row);
}

void tower_begin(Tower *t) {
    tower_clear(&t->cache);
    t->nsources = 0;
}

void tower_close(Tower *t) {
    tower_free(&t->cache);
    free(t->source);
}
