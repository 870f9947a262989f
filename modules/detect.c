/* detect.c -- matching boxes to patches, and LOC's losses. See detect.h. */
#include "modules/detect.h"

#include <math.h>

/* ---- boxes ---------------------------------------------------------------------------------------- */

typedef struct Corners { float x0, y0, x1, y1, area; } Corners;

static Corners corners(const float b[4]) {
    return (Corners){b[0] - b[2] / 2, b[1] - b[3] / 2, b[0] + b[2] / 2, b[1] + b[3] / 2, b[2] * b[3]};
}

/* IoU; *hull the area of the smallest box around both, *joint of their union. */
static float overlap(Corners a, Corners b, float *hull, float *joint) {
    float w = MIN(a.x1, b.x1) - MAX(a.x0, b.x0), h = MIN(a.y1, b.y1) - MAX(a.y0, b.y0);
    float inter = w > 0 && h > 0 ? w * h : 0;
    *joint = a.area + b.area - inter;
    *hull = (MAX(a.x1, b.x1) - MIN(a.x0, b.x0)) * (MAX(a.y1, b.y1) - MIN(a.y0, b.y0));
    return *joint > 0 ? inter / *joint : 0;
}

float box_iou(const float a[4], const float b[4]) {
    float hull, joint;
    return overlap(corners(a), corners(b), &hull, &joint);
}

float box_giou(const float a[4], const float b[4]) {
    float hull, joint, iou = overlap(corners(a), corners(b), &hull, &joint);
    return hull > 0 ? iou - (hull - joint) / hull : iou;
}

static float softplus(float x) { return MAX(x, 0) + log1pf(expf(-fabsf(x))); }

float focal_cost(float logit, float alpha, float gamma) {
    float p = 1 / (1 + expf(-logit)), yes = alpha < 0 ? 1 : alpha, no = alpha < 0 ? 1 : 1 - alpha;
    return yes * powf(1 - p, gamma) * softplus(-logit) - no * powf(p, gamma) * softplus(logit);
}

static float l1_distance(const float a[4], const float b[4], bool as_corners) {
    Corners x = corners(a), y = corners(b);
    if (as_corners) return fabsf(x.x0 - y.x0) + fabsf(x.y0 - y.y0) + fabsf(x.x1 - y.x1) + fabsf(x.y1 - y.y1);
    return fabsf(a[0] - b[0]) + fabsf(a[1] - b[1]) + fabsf(a[2] - b[2]) + fabsf(a[3] - b[3]);
}

/* ---- assignment ----------------------------------------------------------------------------------- */

/* Rows are added one at a time, each along the cheapest alternating path through what is assigned already; the potentials
 * u (rows) and v (columns) keep all reduced costs >= 0, so that Dijkstra's search is right (Kuhn 1955; Jonker & Volgenant
 * 1987). at(i, j) is cost[i*si + j*sj]. n <= m. Column 0 stands for "the row being added"; rows and columns count from 1. */
static void augment_all(int32_t *row_of, const float *cost, int n, int m, int64_t si, int64_t sj, double worst,
                        Arena *scratch) {
    double *u = arena_zalloc(scratch, (size_t)(n + 1) * sizeof *u), *v = arena_zalloc(scratch, (size_t)(m + 1) * sizeof *v);
    double *dist = arena_alloc(scratch, (size_t)(m + 1) * sizeof *dist);
    int32_t *way = arena_alloc(scratch, (size_t)(m + 1) * sizeof *way);
    bool *done = arena_alloc(scratch, (size_t)(m + 1) * sizeof *done);
    memset(row_of, 0, (size_t)(m + 1) * sizeof *row_of);
    for (int i = 1; i <= n; i++) {
        for (int j = 0; j <= m; j++) dist[j] = INFINITY;
        memset(done, 0, (size_t)m + 1);
        row_of[0] = i;
        int j0 = 0;
        do {
            done[j0] = true;
            int from = row_of[j0], next = 0;
            double delta = INFINITY;
            for (int j = 1; j <= m; j++) {
                if (done[j]) continue;
                float x = cost[(from - 1) * si + (j - 1) * sj];
                double d = (isfinite(x) ? (double)x : worst) - u[from] - v[j];
                if (d < dist[j]) {
                    dist[j] = d;
                    way[j] = j0;
                }
                if (dist[j] < delta) {
                    delta = dist[j];
                    next = j;
                }
            }
            for (int j = 0; j <= m; j++) {
                if (done[j]) {
                    u[row_of[j]] += delta;
                    v[j] -= delta;
                } else {
                    dist[j] -= delta;
                }
            }
            j0 = next;
        } while (row_of[j0]);
        for (; j0; j0 = way[j0]) row_of[j0] = row_of[way[j0]];
    }
}

void assign_min(int32_t *col, const float *cost, int n, int m, Arena *scratch) {
    for (int i = 0; i < n; i++) col[i] = -1;
    if (!n || !m) return;
    double worst = 0;
    for (int64_t k = 0; k < (int64_t)n * m; k++)
        if (isfinite(cost[k])) worst = MAX(worst, fabs((double)cost[k]));
    worst = worst * 1.1 + 10; /* as the reference replaces NaN and infinity */
    bool flip = n > m;
    int few = MIN(n, m), many = MAX(n, m);
    size_t mark = arena_mark(scratch);
    int32_t *row_of = arena_alloc(scratch, (size_t)(many + 1) * sizeof *row_of);
    augment_all(row_of, cost, few, many, flip ? 1 : m, flip ? m : 1, worst, scratch);
    for (int j = 1; j <= many; j++)
        if (row_of[j]) col[flip ? j - 1 : row_of[j] - 1] = flip ? row_of[j] - 1 : j - 1;
    arena_reset(scratch, mark);
}

/* ---- the loss ------------------------------------------------------------------------------------- */

/* What matching hands to the losses; class_* (n, P), the rest by matched patch. */
typedef struct Matched {
    float *class_target, *class_weight;
    int32_t *row; /* of the predictions as (n*P) */
    float (*box)[4], *box_weight;
    int64_t n;
} Matched;

static void match_one(Matched *m, int64_t ask, const LocTarget *t, int box, int32_t patch, int64_t P) {
    int64_t at = ask * P + patch;
    m->class_target[at] = t->score ? t->score[box] : 1;
    m->class_weight[at] = t->weight;
    float w = t->weight * (t->box_weight ? t->box_weight[box] : 1);
    if (w == 0) return;
    m->row[m->n] = (int32_t)at;
    memcpy(m->box[m->n], t->box[box], sizeof m->box[0]);
    m->box_weight[m->n++] = w;
}

/* Gives the boxes of one ask their patches. logit (P), pred (P, 4). */
static void match_ask(Matched *out, int64_t ask, const LocTarget *t, const float *logit, const float (*pred)[4], int64_t P,
                      const LocLossConfig *cfg, Arena *scratch) {
    size_t mark = arena_mark(scratch);
    int repeat = MAX(cfg->repeat, 1), rows = 0, nfree = 0;
    uint8_t *taken = arena_zalloc(scratch, (size_t)P);
    int32_t *box_of = arena_alloc(scratch, (size_t)t->nboxes * (size_t)repeat * sizeof *box_of), *patch_of = arena_alloc(scratch, (size_t)P * sizeof *patch_of);
    for (int b = 0; b < t->nboxes; b++) {
        const float *x = t->box[b];
        CHECK(isfinite(x[0]) && isfinite(x[1]) && x[2] > 0 && x[3] > 0 && isfinite(x[2]) && isfinite(x[3]),
              "ask %" PRId64 ", box %d is (%g, %g, %g, %g)", ask, b, (double)x[0], (double)x[1], (double)x[2], (double)x[3]);
        int32_t patch = t->patch ? t->patch[b] : -1;
        CHECK(patch < P && (patch < 0 || !taken[patch]), "ask %" PRId64 ", box %d: patch %d of %" PRId64 " is taken or not there", ask, b, patch, P);
        if (patch >= 0) {
            taken[patch] = 1;
            match_one(out, ask, t, b, patch, P);
        } else {
            for (int k = 0; k < repeat; k++) box_of[rows++] = b;
        }
    }
    for (int32_t p = 0; p < P; p++)
        if (!taken[p]) patch_of[nfree++] = p;
    if (rows && nfree) {
        float *cost = arena_alloc(scratch, (size_t)rows * (size_t)nfree * sizeof *cost);
        for (int j = 0; j < nfree; j++) {
            const float *p = pred[patch_of[j]], class_cost = cfg->w_class * focal_cost(logit[patch_of[j]], cfg->alpha, cfg->gamma);
            for (int i = 0; i < rows; i++)
                cost[(int64_t)i * nfree + j] = class_cost + cfg->w_l1 * l1_distance(p, t->box[box_of[i]], false) - cfg->w_giou * box_giou(p, t->box[box_of[i]]);
        }
        int32_t *col = arena_alloc(scratch, (size_t)rows * sizeof *col);
        assign_min(col, cost, rows, nfree, scratch);
        for (int i = 0; i < rows; i++)
            if (col[i] >= 0) match_one(out, ask, t, box_of[i], patch_of[col[i]], P);
    }
    arena_reset(scratch, mark);
}

double loc_loss(Ctx *c, const Outputs *out, const LocTarget *target, const LocLossConfig *cfg, double parts[3]) {
    double mine[3] = {0}, *part = parts ? parts : mine;
    part[0] = part[1] = part[2] = 0;
    int64_t n = out->n, P = n ? out->logits->shape[1] : 0, most = 0;
    if (!n) return 0;
    CHECK(n * P <= INT32_MAX, "%" PRId64 " asks of %" PRId64 " patches", n, P);
    const float *logits = to_host(c, out->logits), (*boxes)[4] = (const float(*)[4])to_host(c, out->boxes);
    for (int64_t i = 0; i < n; i++) most += MIN((int64_t)target[i].nboxes * MAX(cfg->repeat, 1), P);
    Matched m = {.class_target = arena_zalloc(c->host, (size_t)(n * P) * 4), .class_weight = arena_zalloc(c->host, (size_t)(n * P) * 4),
                 .row = arena_alloc(c->host, (size_t)most * 4), .box = arena_alloc(c->host, (size_t)most * 16),
                 .box_weight = arena_alloc(c->host, (size_t)most * 4)};
    for (int64_t i = 0; i < n; i++) {
        const LocTarget *t = &target[i];
        if (t->weight == 0) continue;
        for (int64_t p = 0; p < P; p++) m.class_weight[i * P + p] = t->weight * t->negative_weight * (t->negative ? t->negative[p] : 1);
        match_ask(&m, i, t, logits + i * P, boxes + i * P, P, cfg, c->host);
    }
    for (int64_t k = 0; k < n * P; k++) m.class_weight[k] *= cfg->w_class;
    part[0] = loss_value(c, op_focal_loss(c, out->logits, m.class_target, m.class_weight, cfg->alpha, cfg->gamma));
    if (!m.n) return part[0];

    Tensor *matched = op_gather(c, RESHAPE(c, out->boxes, n * P, 4), m.row, m.n);
    double both = loss_value(c, op_box_loss(c, matched, (const float *)m.box, m.box_weight, cfg->w_l1, cfg->w_giou, cfg->corners));
    for (int64_t k = 0; k < m.n; k++) part[1] += (double)(cfg->w_l1 * m.box_weight[k] * l1_distance(boxes[m.row[k]], m.box[k], cfg->corners));
    part[2] = both - part[1];
    return part[0] + both;
}

/* ---- measuring ------------------------------------------------------------------------------------ */

typedef struct Ranked { int64_t at; float score; } Ranked;

static int by_score(const void *a, const void *b) {
    const Ranked *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return x->at < y->at ? -1 : x->at > y->at;
}

static int by_item(const void *a, const void *b) {
    const ScoredBox *x = *(const ScoredBox *const *)a, *y = *(const ScoredBox *const *)b;
    return x->item < y->item ? -1 : x->item > y->item;
}

double average_precision(const ScoredBox *pred, int64_t n, const ScoredBox *truth, int64_t ntruth, float iou) {
    if (!ntruth) return NAN;
    Ranked *rank = xcalloc((size_t)n + 1, sizeof *rank);
    const ScoredBox **sorted = xcalloc((size_t)ntruth, sizeof *sorted);
    bool *used = xcalloc((size_t)ntruth, sizeof *used);
    double *precision = xcalloc((size_t)n + 1, sizeof *precision), *recall = xcalloc((size_t)n + 1, sizeof *recall);
    for (int64_t i = 0; i < n; i++) rank[i] = (Ranked){i, pred[i].score};
    for (int64_t i = 0; i < ntruth; i++) sorted[i] = &truth[i];
    qsort(rank, (size_t)n, sizeof *rank, by_score);
    qsort(sorted, (size_t)ntruth, sizeof *sorted, by_item);
    int64_t hits = 0;
    for (int64_t k = 0; k < n; k++) {
        const ScoredBox *p = &pred[rank[k].at];
        int64_t lo = 0, hi = ntruth, best = -1;
        while (lo < hi) { /* the first truth of this item */
            int64_t mid = (lo + hi) / 2;
            if (sorted[mid]->item < p->item) lo = mid + 1;
            else hi = mid;
        }
        float best_iou = iou;
        for (int64_t j = lo; j < ntruth && sorted[j]->item == p->item; j++) {
            float x = used[j] ? -1 : box_iou(p->box, sorted[j]->box);
            if (x >= best_iou) {
                if (best < 0 || x > best_iou) best = j;
                best_iou = x;
            }
        }
        if (best >= 0) {
            used[best] = true;
            hits++;
        }
        precision[k] = (double)hits / (double)(k + 1);
        recall[k] = (double)hits / (double)ntruth;
    }
    double area = 0, envelope = 0;
    for (int64_t k = n - 1; k >= 0; k--) {
        envelope = MAX(envelope, precision[k]);
        area += envelope * (recall[k] - (k ? recall[k - 1] : 0));
    }
    free(rank);
    free(sorted);
    free(used);
    free(precision);
    free(recall);
    return area;
}
