/* optim.c -- one update. See optim.h. */
#include "engine/optim.h"

#include <math.h>

#include "engine/comm.h"

float schedule_factor(const OptimConfig *cfg, int64_t step) {
    if (step < cfg->warmup) return (float)step / (float)cfg->warmup;
    if (cfg->schedule == SCHEDULE_CONSTANT) return 1;
    double left = (double)(cfg->total - step) / (double)MAX(cfg->total - cfg->warmup, 1);
    left = MIN(MAX(left, 0), 1);
    return (float)(cfg->schedule == SCHEDULE_LINEAR ? left : 0.5 * (1 - cos(M_PI * left)));
}

/* Stretches of equal rates, gaps merged in: their gradient is 0 and so stays their value. */
static int segments(const ParamSet *ps, const OptimConfig *cfg, float factor, AdamSegment *seg) {
    int n = 0;
    for (int i = 0; i < ps->n; i++) {
        const Param *p = ps->param[i];
        if (p->lr_scale == 0) continue;
        bool decay = p->kind == PARAM_WEIGHT || p->kind == PARAM_EMBEDDING;
        AdamSegment s = {p->at, p->at + p->n, cfg->lr * factor * p->lr_scale, decay ? cfg->weight_decay : 0};
        if (n && seg[n - 1].lr == s.lr && seg[n - 1].weight_decay == s.weight_decay &&
            seg[n - 1].end + 16 > s.begin)
            seg[n - 1].end = s.end;
        else
            seg[n++] = s;
    }
    return n;
}

/* Of n stretches those inside the values lo .. hi, counted from lo: what this rank has the moments of. */
static int clip_segments(AdamSegment *seg, int n, int64_t lo, int64_t hi) {
    int kept = 0;
    for (int i = 0; i < n; i++) {
        AdamSegment s = seg[i];
        s.begin = MAX(s.begin, lo) - lo;
        s.end = MIN(s.end, hi) - lo;
        if (s.begin < s.end) seg[kept++] = s;
    }
    return kept;
}

bool optim_step(ParamSet *ps, const OptimConfig *cfg, int64_t step, double *norm, Error *e) {
    const Ops *k = ps->dev->ops;
    double sum = 0;
    k->sum_squares(ps->dev->main, F32, &sum, ps->grad, ps->total);
    *norm = sqrt(sum);
    if (!isfinite(sum)) {
        for (int i = 0; i < ps->n; i++) {
            k->sum_squares(ps->dev->main, F32, &sum, ps->grad + ps->param[i]->at, ps->param[i]->n);
            if (!isfinite(sum))
                return fail_as(e, FAIL_NUMERIC, "step %" PRId64 ": the gradient of %s is not finite", step,
                               ps->param[i]->name);
        }
        return fail_as(e, FAIL_NUMERIC, "step %" PRId64 ": the gradient's norm overflows", step);
    }
    float scale = cfg->clip > 0 && *norm > (double)cfg->clip ? (float)((double)cfg->clip / *norm) : 1;
    size_t mark = arena_mark(ps->arena);
    AdamSegment *seg = arena_alloc(ps->arena, (size_t)ps->n * sizeof *seg);
    int n = segments(ps, cfg, schedule_factor(cfg, step), seg);
    n = clip_segments(seg, n, ps->lo, ps->hi);
    k->adamw(ps->dev->main, ps->value + ps->lo, ps->m, ps->v, ps->value16 ? ps->value16 + ps->lo : NULL,
             ps->grad + ps->lo, seg, n, cfg->beta1, cfg->beta2, cfg->eps, scale, ++ps->step);
    arena_reset(ps->arena, mark);
    if (ps->hi - ps->lo < ps->total) {
        comm_all_gather(comm_world(), "weights", ps->value, ps->total);
        params_changed(ps); /* the other ranks' share */
    }
    params_zero_grad(ps);
    return true;
}
