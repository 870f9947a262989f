/* test_detect.c -- matching, LOC's losses and average precision. Vectors: the specification's; assignments also by trying all. */
#include "modules/detect.h"

#include <math.h>

#include "tests/engine/rig.h"

static const LocLossConfig plain = {.w_class = 1, .w_l1 = 1, .w_giou = 1, .alpha = 0.3f, .gamma = 2, .corners = true};

TEST(detect_box_costs) {
    static const struct { float a[4], b[4]; double iou, giou; } cases[] = {
        {{0.5f, 0.5f, 0.4f, 0.4f}, {0.6f, 0.55f, 0.4f, 0.2f}, 0.33333333, 0.23333333},
        {{0.2f, 0.2f, 0.2f, 0.2f}, {0.8f, 0.7f, 0.2f, 0.4f}, 0, -0.8125},
        {{0.5f, 0.5f, 0.5f, 0.5f}, {0.5f, 0.5f, 0.5f, 0.5f}, 1, 1},
        {{0.5f, 0.5f, 0.6f, 0.6f}, {0.5f, 0.5f, 0.2f, 0.2f}, 0.11111111, 0.11111111},
        {{0.5f, 0.5f, 0, 0}, {0.5f, 0.5f, 0, 0}, 0, 0}, /* two points: no division by zero */
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        EXPECT_NEAR((double)box_iou(cases[i].a, cases[i].b), cases[i].iou, 1e-6, "IoU %d", i);
        EXPECT_NEAR((double)box_giou(cases[i].a, cases[i].b), cases[i].giou, 2e-6, "GIoU %d", i);
        EXPECT_NEAR((double)box_giou(cases[i].b, cases[i].a), cases[i].giou, 2e-6, "GIoU %d, turned round", i);
    }
    static const double cost[][2] = {{-2, 0.49376096}, {0, -0.06931472}, {1.5, -0.79407977}};
    for (int i = 0; i < COUNT_OF(cost); i++) EXPECT_NEAR((double)focal_cost((float)cost[i][0], 0.3f, 2), cost[i][1], 1e-6, "focal cost at %g", cost[i][0]);
    EXPECT(isfinite(focal_cost(500, 0.3f, 2)) && isfinite(focal_cost(-500, 0.3f, 2)), "focal cost far out");
}

/* ---- assignment ----------------------------------------------------------------------------------- */

/* The least total over all ways to give min(n, m) rows a column of their own. */
static double best_by_trying(const float *cost, int n, int m, int row, uint32_t used, int left) {
    if (!left) return 0;
    double best = n - row > left ? best_by_trying(cost, n, m, row + 1, used, left) : INFINITY; /* this row goes without */
    for (int j = 0; j < m; j++)
        if (!(used >> j & 1)) best = fmin(best, (double)cost[row * m + j] + best_by_trying(cost, n, m, row + 1, used | 1u << j, left - 1));
    return best;
}

/* Each column at most once; returns the total and counts the rows that have one. */
static double total(const int32_t *col, const float *cost, int n, int m, int *given) {
    uint64_t used = 0;
    double sum = 0;
    *given = 0;
    for (int i = 0; i < n; i++) {
        if (col[i] < 0) continue;
        EXPECT(col[i] < m && !(used >> col[i] & 1), "row %d has column %d", i, col[i]);
        used |= (uint64_t)1 << col[i];
        sum += (double)cost[i * m + col[i]];
        ++*given;
    }
    return sum;
}

TEST(detect_assignment) {
    Rig r;
    rig_open(&r);
    Arena *a = &r.host;
    int32_t col[8];
    static const float one[] = {4, 1, 3, 9, 2, 0, 5, 3, 3, 2, 2, 1}, two[] = {0.9f, 0.2f, 0.2f, 0.1f, 0.8f, 0.3f, 0.15f, 0.1f, 0.95f};
    assign_min(col, one, 3, 4, a);
    EXPECT(col[0] == 1 && col[1] == 0 && col[2] == 3, "columns %d %d %d", col[0], col[1], col[2]);
    assign_min(col, two, 3, 3, a);
    EXPECT(col[0] == 2 && col[1] == 0 && col[2] == 1, "columns %d %d %d", col[0], col[1], col[2]);
    for (int round = 0; round < 400; round++) { /* all shapes to 5 x 5; every fourth with ties */
        float cost[25];
        int n = 1 + round % 5, m = 1 + round / 5 % 5, given;
        random_fill(cost, n * m, (uint64_t)round + 1, -2, 3);
        for (int k = 0; k < n * m && round % 4 == 0; k++) cost[k] = roundf(cost[k]);
        assign_min(col, cost, n, m, a);
        double got = total(col, cost, n, m, &given);
        EXPECT(given == MIN(n, m), "%d x %d: %d rows have a column", n, m, given);
        EXPECT_NEAR(got, best_by_trying(cost, n, m, 0, 0, MIN(n, m)), 1e-5, "%d x %d, round %d", n, m, round);
    }
    static const float broken[] = {NAN, 1, INFINITY, NAN, 2, -INFINITY}; /* the finite ones are taken first */
    assign_min(col, broken, 2, 3, a);
    EXPECT((col[0] == 1) != (col[1] == 1) && col[0] != col[1], "columns %d %d", col[0], col[1]);
    assign_min(col, broken, 1, 0, a);
    EXPECT(col[0] == -1, "a column out of none: %d", col[0]);
    EXPECT(r.host.used == 0, "%zu bytes of scratch are kept", r.host.used);
    rig_close(&r);
}

/* ---- the loss ------------------------------------------------------------------------------------- */

enum { ASKS = 2, P = 4 };

/* Two asks of four patches: a quarter of the picture each; logits as given. */
static Outputs outputs(Rig *r, const float logit[ASKS * P]) {
    static const float quarter[P][4] = {{0.25f, 0.25f, 0.4f, 0.4f}, {0.75f, 0.25f, 0.4f, 0.4f}, {0.25f, 0.75f, 0.4f, 0.4f}, {0.75f, 0.75f, 0.4f, 0.4f}};
    rig_begin(r, true);
    Outputs out = {.n = ASKS, .logits = RANDOM(&r->ctx, 1, true, ASKS, P), .boxes = RANDOM(&r->ctx, 2, true, ASKS, P, 4)};
    r->dev->upload(r->dev, out.logits->data, logit, sizeof(float) * ASKS * P);
    for (int i = 0; i < ASKS; i++) r->dev->upload(r->dev, (float *)out.boxes->data + 4 * P * i, quarter, sizeof quarter);
    return out;
}

static const float flat[ASKS * P] = {0};

/* The focal loss at logit 0: a (1/2)^2 ln 2. */
static double at_zero(double a) { return a * 0.25 * M_LN2; }

TEST(detect_loss_matched) {
    Rig r;
    rig_open(&r);
    Outputs out = outputs(&r, flat);
    static const float box[][4] = {{0.75f, 0.7f, 0.4f, 0.4f}, {0.2f, 0.25f, 0.4f, 0.3f}};
    LocTarget t[ASKS] = {{.nboxes = 2, .box = box, .negative_weight = 1, .weight = 0.5f}, {.negative_weight = 0.5f, .weight = 0.5f}};
    double part[3], sum = loc_loss(&r.ctx, &out, t, &plain, part);
    /* patches 3 and 0 are the objects, 6 others are not: two at full weight, four at half */
    EXPECT_NEAR(part[0], 0.5 * (2 * at_zero(0.3) + 2 * at_zero(0.7) + 4 * 0.5 * at_zero(0.7)), 1e-6, "class loss");
    EXPECT_NEAR(part[1], 0.5 * (2 * 0.05 + (0.05 + 0.05 + 0.05 + 0.05)), 1e-6, "L1 of corners"); /* y0, y1; x0, x1, y0, y1 */
    double giou = 2 - (double)box_giou(box[0], (float[]){0.75f, 0.75f, 0.4f, 0.4f}) - (double)box_giou(box[1], (float[]){0.25f, 0.25f, 0.4f, 0.4f});
    EXPECT_NEAR(part[2], 0.5 * giou, 1e-6, "GIoU loss");
    EXPECT_NEAR(sum, part[0] + part[1] + part[2], 1e-6, "sum");
    tape_backward(&r.ctx);
    const float *dx = out.logits->grad->data, *db = out.boxes->grad->data;
    for (int k = 0; k < ASKS * P; k++) EXPECT((dx[k] < 0) == (k == 0 || k == 3), "logit %d gets %g", k, (double)dx[k]);
    for (int k = 0; k < ASKS * P; k++) {
        bool any = db[4 * k] != 0 || db[4 * k + 1] != 0 || db[4 * k + 2] != 0 || db[4 * k + 3] != 0;
        EXPECT(any == (k == 0 || k == 3), "box %d: a gradient is %s", k, any ? "there" : "missing");
    }
    rig_close(&r);
}

/* Soft scores, known patches, ignored patches, a box that teaches no coordinates, an ask without supervision. */
TEST(detect_loss_options) {
    Rig r;
    rig_open(&r);
    Outputs out = outputs(&r, flat);
    static const float box[][4] = {{0.25f, 0.25f, 0.4f, 0.4f}, {0.75f, 0.75f, 0.4f, 0.4f}};
    static const float score[] = {0.9f, 0.2f}, box_weight[] = {1, 0};
    static const int32_t patch[] = {1, -1};
    static const float negative[P] = {0, 0, 0, 1}; /* patch 1 is matched all the same */
    LocTarget t[ASKS] = {{.nboxes = 2, .box = box, .score = score, .box_weight = box_weight, .patch = patch, .negative_weight = 1, .negative = negative, .weight = 1},
                         {.nboxes = 1, .box = box, .negative_weight = 1, .weight = 0}};
    double part[3];
    loc_loss(&r.ctx, &out, t, &plain, part);
    double want = (0.3 * 0.9 + 0.7 * 0.1) * 0.4 * 0.4 * M_LN2 + (0.3 * 0.2 + 0.7 * 0.8) * 0.3 * 0.3 * M_LN2;
    EXPECT_NEAR(part[0], want, 1e-6, "class loss of two soft patches");
    EXPECT_NEAR(part[1], 1.0, 1e-6, "L1 of patch 1 for the box of patch 0"); /* x0 and x1 are off by half the picture */
    tape_backward(&r.ctx);
    const float *dx = out.logits->grad->data;
    EXPECT(dx[1] < 0 && dx[3] > 0 && dx[0] == 0 && dx[2] == 0, "gradients %g %g %g %g", (double)dx[0], (double)dx[1], (double)dx[2], (double)dx[3]);
    for (int k = P; k < ASKS * P; k++) EXPECT(dx[k] == 0, "an ask of weight 0 gives logit %d %g", k, (double)dx[k]);

    /* More patches per box, more boxes than patches. */
    LocLossConfig cfg = plain;
    cfg.repeat = 3;
    static const float *const same = box[0];
    float many[6][4];
    for (int i = 0; i < 6; i++) memcpy(many[i], same, sizeof many[0]);
    LocTarget u[ASKS] = {{.nboxes = 1, .box = box, .negative_weight = 1, .weight = 1}, {.nboxes = 6, .box = (const float(*)[4])many, .negative_weight = 1, .weight = 1}};
    out = outputs(&r, flat);
    loc_loss(&r.ctx, &out, u, &cfg, part);
    EXPECT_NEAR(part[0], 7 * at_zero(0.3) + at_zero(0.7), 1e-6, "three and four patches see an object");

    /* Nothing anywhere: the class loss alone. No asks: nothing at all. */
    LocTarget none[ASKS] = {{.negative_weight = 1, .weight = 1}, {.weight = 0}};
    out = outputs(&r, flat);
    EXPECT_NEAR(loc_loss(&r.ctx, &out, none, &plain, NULL), 4 * at_zero(0.7), 1e-6, "an absent object");
    EXPECT(loc_loss(&r.ctx, &(Outputs){0}, NULL, &plain, part) == 0 && part[0] == 0, "no asks have a loss");
    rig_close(&r);
}

/* The surer patch wins among equal boxes, the better box among equal logits. */
TEST(detect_loss_prefers) {
    Rig r;
    rig_open(&r);
    static const float logit[ASKS * P] = {-3, -3, 4, -3, 0, 0, 0, 0};
    Outputs out = outputs(&r, logit);
    static const float middle[][4] = {{0.5f, 0.5f, 0.5f, 0.5f}}, right[][4] = {{0.7f, 0.3f, 0.5f, 0.5f}};
    LocTarget t[ASKS] = {{.nboxes = 1, .box = middle, .negative_weight = 1, .weight = 1}, {.nboxes = 1, .box = right, .negative_weight = 1, .weight = 1}};
    loc_loss(&r.ctx, &out, t, &plain, NULL);
    tape_backward(&r.ctx);
    const float *dx = out.logits->grad->data;
    EXPECT(dx[2] < 0, "the sure patch is pushed down: %g", (double)dx[2]);
    EXPECT(dx[P + 1] < 0, "the near patch is pushed down: %g", (double)dx[P + 1]);
    rig_close(&r);
}

/* ---- measuring ------------------------------------------------------------------------------------ */

TEST(detect_average_precision) {
#define A {0.2f, 0.2f, 0.2f, 0.2f}
#define B {0.7f, 0.3f, 0.4f, 0.2f}
#define D {0.5f, 0.8f, 0.1f, 0.3f}
    static const ScoredBox truth[] = {{1, 0, B}, {0, 0, A}, {1, 0, D}};
    static const ScoredBox pred[] = {{1, 0.6f, A}, {0, 0.9f, A}, {1, 0.7f, B}, {0, 0.8f, A}};
    /* by score: a hit, a double, a hit, a miss: precision 1 at recall 1/3, 2/3 at 2/3 */
    EXPECT_NEAR(average_precision(pred, 4, truth, 3, 0.5f), 5.0 / 9, 1e-12, "AP");
    EXPECT_NEAR(average_precision(pred, 0, truth, 3, 0.5f), 0, 0, "AP of nothing");
    EXPECT(isnan(average_precision(pred, 4, truth, 0, 0.5f)), "AP without truths");
    static const ScoredBox all[] = {{0, 0.1f, A}, {1, 0.3f, D}, {1, 0.2f, B}};
    EXPECT_NEAR(average_precision(all, 3, truth, 3, 0.5f), 1, 1e-12, "AP of a perfect detector");
    /* corners [10,10,60,60] against [20,20,70,60] of a 100 x 100 picture: IoU 0.551724 */
    static const ScoredBox p = {0, 1, {0.35f, 0.35f, 0.5f, 0.5f}}, t = {0, 0, {0.45f, 0.4f, 0.5f, 0.4f}};
    EXPECT_NEAR((double)box_iou(p.box, t.box), 0.551724, 1e-6, "IoU");
    EXPECT(average_precision(&p, 1, &t, 1, 0.5f) == 1 && average_precision(&p, 1, &t, 1, 0.56f) == 0, "the threshold decides");
}
