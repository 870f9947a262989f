/* reduce.c -- buckets, and the tree of a reproducible sum. See reduce.h. */
#include "engine/reduce.h"

void reduce_open(Reduce *r, Comm *c, const Config *cfg, ParamSet *const *set, int n) {
    CHECK(n <= REDUCE_SETS, "%d parameter sets", n);
    *r = (Reduce){.comm = c, .nsets = n, .total = cfg->run.reproducible ? cfg->run.parts : c->size};
    r->parts = r->total / c->size;
    r->first = r->parts * c->rank;
    r->bucket = MAX((int64_t)(cfg->run.bucket_mb * (1 << 20) / 4), 1);
    for (int i = 0; i < n; i++) {
        ParamSet *ps = r->set[i] = set[i];
        size_t bytes = (size_t)ps->total * sizeof(float);
        r->nbuckets[i] = (int)((ps->total + r->bucket - 1) / r->bucket);
        r->pending[i] = xcalloc((size_t)r->nbuckets[i], sizeof **r->pending);
        r->part[i] = xcalloc((size_t)r->parts, sizeof **r->part);
        r->part[i][0] = ps->grad;
        if (r->parts == 1) continue;
        arena_open(&r->memory[i], "gradients of parts", ps->dev, (size_t)(r->parts - 1) * (bytes + 64));
        for (int k = 1; k < r->parts; k++) r->part[i][k] = arena_alloc(&r->memory[i], bytes);
    }
}

void reduce_close(Reduce *r) {
    for (int i = 0; i < r->nsets; i++) {
        free(r->pending[i]);
        free(r->part[i]);
        if (r->parts > 1) arena_close(&r->memory[i]);
    }
    *r = (Reduce){0};
}

/* ---- which gradients are final -------------------------------------------------------------------- */

/* The bucket of value `at`, counted from the end of the buffer. */
static int bucket_of(const Reduce *r, int set, int64_t at) { return (int)((r->set[set]->total - 1 - at) / r->bucket); }

/* Adds `by` to the pending counts of p's buckets. */
static void count(Reduce *r, const Tensor *p, int by) {
    for (int i = 0; i < r->nsets; i++) {
        const float *grad = r->set[i]->grad;
        if (p->param_grad < grad || p->param_grad >= grad + r->set[i]->total) continue;
        int64_t at = p->param_grad - grad;
        for (int b = bucket_of(r, i, at + numel(p) - 1); b <= bucket_of(r, i, at); b++) r->pending[i][b] += by;
    }
}

/* Hands over what is ready, in order; with `all` what is left. */
static void hand_over(Reduce *r, bool all) {
    for (; r->at_set < r->nsets; r->at_set++, r->at_bucket = 0) {
        const ParamSet *ps = r->set[r->at_set];
        for (; r->used[r->at_set] && r->at_bucket < r->nbuckets[r->at_set]; r->at_bucket++) {
            if (!all && r->pending[r->at_set][r->at_bucket]) return;
            int64_t end = ps->total - r->at_bucket * r->bucket, begin = MAX(end - r->bucket, 0);
            comm_sum_begin(r->comm, "sum of gradients", ps->grad + begin, end - begin);
        }
    }
}

static void on_used(void *arg, const Tensor *p) { count(arg, p, 1); }

static void on_final(void *arg, const Tensor *p) {
    Reduce *r = arg;
    count(r, p, -1);
    if (r->last) hand_over(r, false);
}

void reduce_watch(Reduce *r, Tape *t) {
    if (r->comm->size == 1 || r->parts > 1) return;
    r->watch = (TapeWatch){on_used, on_final, r};
    t->watch = &r->watch;
}

/* ---- an update ------------------------------------------------------------------------------------ */

void reduce_begin(Reduce *r) {
    r->last = false;
    r->at_set = r->at_bucket = 0;
    for (int i = 0; i < r->nsets; i++)
        for (int k = 1; k < r->parts; k++)
            r->set[i]->dev->zero(r->set[i]->dev, r->part[i][k], (size_t)r->set[i]->total * sizeof(float));
}

void reduce_part(Reduce *r, int k) {
    for (int i = 0; i < r->nsets && r->parts > 1; i++) params_grad_at(r->set[i], r->part[i][k]);
}

void reduce_last(Reduce *r, const bool *used) {
    for (int i = 0; i < r->nsets; i++) r->used[i] = !used || used[i];
    r->last = true;
    if (r->parts == 1) hand_over(r, false);
}

/* comm_tree on the device. */
static void add_parts(Reduce *r, int i) {
    ParamSet *ps = r->set[i];
    for (int stride = 1; stride < r->parts; stride *= 2)
        for (int k = 0; k + stride < r->parts; k += 2 * stride)
            ps->dev->ops->accumulate(ps->dev->main, F32, r->part[i][k], F32, r->part[i][k + stride],
                                     ps->total);
}

void reduce_end(Reduce *r) {
    CHECK(r->last, "reduce_end without reduce_last");
    for (int i = 0; i < r->nsets && r->parts > 1; i++) {
        if (r->used[i]) add_parts(r, i);
        params_grad_at(r->set[i], r->set[i]->grad);
    }
    hand_over(r, true);
    comm_finish(r->comm);
}
