/* test_distill.c -- from the teacher's word to a loss: equal questions asked once, which patches a LOC lesson teaches what. */
#include "engine/distill.h"
#include "tests/engine/rig.h"

#include <math.h>

/* ---- the teacher ---------------------------------------------------------------------------------- */

TEST(distill_teacher_asks_once) {
    enum { N = 7, DISTINCT = 4, SIDE = 32 };
    Rig r;
    rig_open(&r);
    rig_begin(&r, false);
    Error e = {0};
    Teacher t;
    CHECK(teacher_open(&t, "configs/models/demo-teacher", NULL, true, r.dev, F32, &e), "%s", e.text);
    static uint8_t pixels[2][SIDE * SIDE * 3];
    for (int k = 0; k < 2 * SIDE * SIDE * 3; k++)
        pixels[k / (SIDE * SIDE * 3)][k % (SIDE * SIDE * 3)] = (uint8_t)(k * 37 + k / 3000 * 91);
    ImageView image[2] = {{pixels[0], SIDE, SIDE}, {pixels[1], SIDE, SIDE}};
    static const struct { int image, x1; const char *query; } list[N] = {
        {0, 32, "What is this?"}, {0, 32, "What is this?"}, {1, 32, "What is this?"}, {0, 16, "What is this?"},
        {0, 32, "What color is the ball?"}, {1, 32, "What is this?"}, {0, 16, "What is this?"}};
    Ask ask[N];
    for (int i = 0; i < N; i++)
        ask[i] = (Ask){image[list[i].image], (uint64_t)list[i].image, {0, 0, list[i].x1, SIDE}, list[i].query};
    int V = t.vqa->nlabels;
    float *all = arena_alloc(&r.host, sizeof *all * (size_t)(N * V)), *one = arena_alloc(&r.host, sizeof *one * (size_t)V);
    teacher_ask(&t, &r.ctx, ask, N, all);
    EXPECT(t.asked == DISTINCT, "%" PRId64 " questions were put", t.asked);
    for (int i = 0; i < N; i++) {
        double sum = 0, far = 0;
        teacher_ask(&t, &r.ctx, ask + i, 1, one);
        for (int v = 0; v < V; v++) sum += (double)all[i * V + v], far = fmax(far, fabs((double)(all[i * V + v] - one[v])));
        EXPECT_NEAR(sum, 1, 1e-5, "probabilities of ask %d", i);
        /* Another batch, another order of sums: a few units in the last place of the logits, here below 16. */
        EXPECT_NEAR(far, 0, 64 * 0x1p-24 * 16, "ask %d alone", i);
    }
    teacher_close(&t);
    rig_close(&r);
}

/* ---- LOC's lesson --------------------------------------------------------------------------------- */

enum { P = 6 };

/* Six patches in two rows of three on a crop of 300 x 200 pixels, each box its cell; logits 0. */
static Outputs six_patches(Rig *r) {
    float box[P][4], zero[P] = {0};
    rig_begin(r, true);
    Outputs out = {.n = 1, .logits = RANDOM(&r->ctx, 1, true, 1, P), .boxes = RANDOM(&r->ctx, 2, true, 1, P, 4)};
    for (int p = 0; p < P; p++) {
        const float cell[4] = {(float)(p % 3 * 2 + 1) / 6, (float)(p / 3 * 2 + 1) / 4, 1 / 3.0f, 1 / 2.0f};
        memcpy(box[p], cell, sizeof cell);
    }
    r->dev->upload(r->dev, out.logits->data, zero, sizeof zero);
    r->dev->upload(r->dev, out.boxes->data, box, sizeof box);
    return out;
}

TEST(distill_loc_patches) {
    Rig r;
    Config cfg;
    rig_open(&r);
    config_defaults(&cfg);
    cfg.distill.loc_unasked = 0.25;
    cfg.distill.loc_l1 = cfg.distill.loc_giou = 0;
    cfg.train.loc_alpha = 0.5;
    /* Cell 0 holds the object, cell 2 something else, the teacher is unsure of cell 4, of the others nobody was asked. Boxes
     * end at their last pixel, as LOC gives them. */
    Candidate c[3] = {{.box = {0, 0, 99, 99}, .leader = 0}, {.box = {200, 0, 299, 99}, .leader = 1}, {.box = {100, 100, 199, 199}, .leader = 2}};
    float yes[3] = {0.9f, 0.05f, 0.35f};
    Lesson lesson = {.rect = {40, 30, 340, 230}, .is_loc = true, .nleaders = 3, .ncandidates = 3, .candidate = c, .yes = yes};
    const Lesson *list[1] = {&lesson};
    Outputs out = six_patches(&r);
    double loss = distill_loc_loss(&r.ctx, &out, list, 1, &cfg);
    /* The focal loss at logit 0, alpha 1/2: (1/2) (1/2)^2 ln 2, for the object, the rejected, three times unasked at a quarter. */
    EXPECT_NEAR(loss, (1 + 1 + 3 * 0.25) * 0.125 * M_LN2, 1e-6, "loss");
    tape_backward(&r.ctx);
    const float *dx = out.logits->grad->data;
    EXPECT(dx[0] < 0, "the object's patch gets %g", (double)dx[0]);
    EXPECT_NEAR(dx[2], -dx[0], 1e-6, "the rejected patch");
    EXPECT(dx[4] == 0, "the patch that the teacher is unsure of gets %g", (double)dx[4]);
    for (int p = 1; p < P; p += 2) EXPECT_NEAR(dx[p], 0.25 * (double)dx[2], 1e-6, "unasked patch %d", p);
    EXPECT(!out.boxes->grad, "coordinates are taught without being asked for");

    cfg.distill.loc_l1 = 1; /* the box of the object's patch learns the voted one's place, at weight yes */
    c[0].box = (Rect){3, 0, 102, 99};
    out = six_patches(&r);
    EXPECT_NEAR(distill_loc_loss(&r.ctx, &out, list, 1, &cfg) - loss, 0.9 * 2 * 0.01, 1e-5, "L1 of corners moved by 3 of 300 pixels");
    tape_backward(&r.ctx);
    const float *db = out.boxes->grad->data;
    for (int k = 4; k < 4 * P; k++) EXPECT(db[k] == 0, "box %d has a gradient", k / 4);
    EXPECT(db[0] < 0, "the object's box is to move right: %g", (double)db[0]);
    rig_close(&r);
}
