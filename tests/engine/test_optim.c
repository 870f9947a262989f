/* test_optim.c -- the schedule's and AdamW's published numbers, clipping, frozen parameters, gradients that are not finite. */
#include "engine/optim.h"
#include "tests/engine/rig.h"

#include <math.h>

typedef struct Set { Rig rig; Arena host; ParamSet ps; } Set;

static void set_open(Set *s) {
    rig_open(&s->rig);
    arena_open(&s->host, "params", NULL, 1 << 20);
    params_open(&s->ps, &s->host);
}

static void set_close(Set *s) {
    params_close(&s->ps);
    arena_close(&s->host);
    rig_close(&s->rig);
}

/* The vectors of spec/test-vectors.md section 9, made in Python with float64. */
TEST(optim_schedule) {
    const OptimConfig linear = {.schedule = SCHEDULE_LINEAR, .warmup = 100, .total = 1000};
    const struct {
        int64_t step;
        double want;
    } rows[] = {{0, 0}, {50, 0.5}, {99, 0.99}, {100, 1}, {550, 0.5}, {1000, 0}, {1001, 0}, {5000, 0}};
    for (int i = 0; i < COUNT_OF(rows); i++)
        EXPECT_NEAR((double)schedule_factor(&linear, rows[i].step), rows[i].want, 1e-7, "linear at %" PRId64,
                    rows[i].step);
    const OptimConfig cosine = {.schedule = SCHEDULE_COSINE, .total = 10};
    const struct {
        int64_t step;
        double want;
    } epochs[] = {{0, 2.0e-5}, {1, 1.951057e-5}, {5, 1.0e-5}, {9, 4.894348e-7}, {10, 0}};
    for (int i = 0; i < COUNT_OF(epochs); i++)
        EXPECT_NEAR(2e-5 * (double)schedule_factor(&cosine, epochs[i].step), epochs[i].want, 6e-12,
                    "cosine at %" PRId64, epochs[i].step);
    const OptimConfig constant = {.schedule = SCHEDULE_CONSTANT, .warmup = 4, .total = 10};
    EXPECT(schedule_factor(&constant, 0) == 0 && schedule_factor(&constant, 2) == 0.5f &&
               schedule_factor(&constant, 4) == 1 && schedule_factor(&constant, 99) == 1,
           "constant");
    const OptimConfig warm = {
        .schedule = SCHEDULE_LINEAR, .warmup = 10, .total = 10}; /* nothing but warm-up */
    EXPECT(schedule_factor(&warm, 5) == 0.5f && schedule_factor(&warm, 10) == 0, "all warm-up");
}

TEST(optim_adamw_vector) {
    static const double grad[] = {0.5, -0.2, 0.1}, theta[] = {0.989900000200, 0.986332870672, 0.982410896276};
    static const double m[] = {0.05, 0.025, 0.0325}, v[] = {0.005, 0.0057, 0.005786};
    Set s;
    set_open(&s);
    Tensor *w = PARAM(&s.ps, PARAM_WEIGHT, (1, 1), "w");
    params_alloc(&s.ps, s.rig.dev, F32, true);
    *(float *)w->data = 1;
    const OptimConfig cfg = {.lr = 1e-2f,
                             .weight_decay = 0.01f,
                             .beta1 = 0.9f,
                             .beta2 = 0.98f,
                             .eps = 1e-8f,
                             .schedule = SCHEDULE_CONSTANT};
    for (int i = 0; i < 3; i++) {
        Error e = {0};
        double norm;
        *w->param_grad = (float)grad[i];
        EXPECT(optim_step(&s.ps, &cfg, i, &norm, &e), "%s", e.text);
        EXPECT_NEAR(norm, fabs(grad[i]), 1e-8, "norm %d", i);
        EXPECT_NEAR((double)*(float *)w->data, theta[i], 2 * 6e-8 * (i + 1), "theta after %d",
                    i + 1); /* an ulp of 1 per step and operation */
        EXPECT_NEAR((double)s.ps.m[0], m[i], 0.5 * 6e-7, "m after %d",
                    i + 1); /* 1 - 0.9 in f32 is off by 2.4e-7 of itself */
        EXPECT_NEAR((double)s.ps.v[0], v[i], 0.006 * 1.3e-6, "v after %d",
                    i + 1); /* 1 - 0.98 in f32: 1e-6 of itself */
        EXPECT(*w->param_grad == 0 && s.ps.step == i + 1, "gradient %g, step %" PRId64,
               (double)*w->param_grad, s.ps.step);
    }
    set_close(&s);
}

/* Weights and embeddings decay, biases and gains do not; lr_scale 0 freezes, 2 doubles. */
TEST(optim_kinds) {
    Set s;
    set_open(&s);
    static const ParamKind kinds[] = {PARAM_WEIGHT, PARAM_BIAS,   PARAM_EMBEDDING,
                                      PARAM_GAIN,   PARAM_WEIGHT, PARAM_WEIGHT};
    Tensor *t[6];
    for (int i = 0; i < 6; i++) t[i] = PARAM(&s.ps, kinds[i], (3, 2), "p%d", i);
    params_alloc(&s.ps, s.rig.dev, F32, true);
    param_find(&s.ps, "p4")->lr_scale = 0;
    param_find(&s.ps, "p5")->lr_scale = 2;
    for (int i = 0; i < 6; i++)
        for (int k = 0; k < 6; k++) {
            ((float *)t[i]->data)[k] = 1;
            t[i]->param_grad[k] = 1;
        }
    const OptimConfig cfg = {.lr = 0.1f,
                             .weight_decay = 0.5f,
                             .beta1 = 0.9f,
                             .beta2 = 0.98f,
                             .eps = 1e-8f,
                             .schedule = SCHEDULE_CONSTANT};
    Error e = {0};
    double norm;
    EXPECT(optim_step(&s.ps, &cfg, 0, &norm, &e), "%s", e.text);
    /* The first step of Adam moves by lr whatever the gradient's size; decay adds lr * 0.5. */
    static const double want[] = {0.85, 0.9, 0.85, 0.9, 1, 0.7};
    for (int i = 0; i < 6; i++)
        for (int k = 0; k < 6; k++)
            EXPECT_NEAR((double)((float *)t[i]->data)[k], want[i], 1e-6, "parameter %d", i);
    EXPECT_NEAR(norm, 6, 1e-6, "norm of 36 ones");
    set_close(&s);
}

TEST(optim_clips) {
    for (int clip = 0; clip < 3; clip++) { /* none, 1 (clips), 10 (does not) */
        Set s;
        set_open(&s);
        Tensor *a = PARAM(&s.ps, PARAM_WEIGHT, (1, 1), "a"), *b = PARAM(&s.ps, PARAM_BIAS, (1), "b");
        params_alloc(&s.ps, s.rig.dev, F32, true);
        *a->param_grad = 3;
        *b->param_grad = -4;
        const OptimConfig cfg = {.lr = 0.1f,
                                 .beta1 = 0.5f,
                                 .beta2 = 0.5f,
                                 .eps = 1e-8f,
                                 .schedule = SCHEDULE_CONSTANT,
                                 .clip = (float[]){0, 1, 10}[clip]};
        Error e = {0};
        double norm;
        EXPECT(optim_step(&s.ps, &cfg, 0, &norm, &e), "%s", e.text);
        EXPECT_NEAR(norm, 5, 1e-6, "the norm before clipping");
        const double scale = clip == 1 ? 0.2 : 1;
        EXPECT_NEAR((double)s.ps.m[0], 0.5 * 3 * scale, 1e-6, "m of a, clip %d", clip);
        EXPECT_NEAR((double)s.ps.m[param_find(&s.ps, "b")->at], 0.5 * -4 * scale, 1e-6, "m of b, clip %d",
                    clip);
        set_close(&s);
    }
}

TEST(optim_not_finite) {
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        Set s;
        set_open(&s);
        param_new(&s.ps, PARAM_WEIGHT, 2, (int64_t[]){2, 3}, "layer.first");
        Tensor *b = PARAM(&s.ps, PARAM_WEIGHT, (5, 7), "layer.second");
        Tensor *c = PARAM(&s.ps, PARAM_BIAS, (3), "layer.third");
        params_alloc(&s.ps, s.rig.dev, F32, true);
        params_init(&s.ps, 1, 0);
        float *before = xcalloc((size_t)s.ps.total, 4);
        memcpy(before, s.ps.value, (size_t)s.ps.total * 4);
        b->param_grad[34] = bad[i];
        c->param_grad[0] = bad[i];
        const OptimConfig cfg = {.lr = 0.1f,
                                 .weight_decay = 0.1f,
                                 .beta1 = 0.9f,
                                 .beta2 = 0.9f,
                                 .eps = 1e-8f,
                                 .clip = 1,
                                 .schedule = SCHEDULE_CONSTANT};
        Error e = {0};
        double norm;
        EXPECT(!optim_step(&s.ps, &cfg, 17, &norm, &e) && e.status == FAIL_NUMERIC, "status %d", e.status);
        EXPECT(strstr(e.text, "step 17") && strstr(e.text, "layer.second"), "%s", e.text);
        EXPECT(!memcmp(before, s.ps.value, (size_t)s.ps.total * 4) && !s.ps.step, "something was changed");
        for (int64_t k = 0; k < s.ps.total; k++)
            EXPECT(s.ps.m[k] == 0 && s.ps.v[k] == 0, "moment %" PRId64, k);
        free(before);
        set_close(&s);
    }
}

/* The copy in bf16 is what the values round to after whatever wrote them, and the values do not know of it. */
TEST(optim_bf16_copy) {
    Set s[2];
    for (int k = 0; k < 2; k++) {
        set_open(&s[k]);
        Tensor *w = PARAM(&s[k].ps, PARAM_WEIGHT, (5, 7), "w");
        param_new(&s[k].ps, PARAM_WEIGHT, 1, (int64_t[]){3}, "unused")->lr_scale = 0;
        param_new(&s[k].ps, PARAM_BIAS, 1, (int64_t[]){9}, "b");
        Tensor *row = param_rows(&s[k].ps, w, 2, 1);
        params_alloc(&s[k].ps, s[k].rig.dev, k ? BF16 : F32, true);
        EXPECT(k ? (uint16_t *)row->bf16 == (uint16_t *)w->bf16 + 14 : !row->bf16 && !w->bf16, "a view's copy");
        EXPECT(compute_type(row) == (k ? BF16 : F32) && row->dtype == F32, "types");
        params_init(&s[k].ps, 3, 0);
        param_scale(&s[k].ps, w, 3);
        for (int step = 0; step < 3; step++) {
            params_refresh(&s[k].ps); /* a forward */
            for (int64_t i = 0; i < s[k].ps.total; i++) s[k].ps.grad[i] = (float)(i % 5) - 2;
            const OptimConfig cfg = {.lr = 0.1f,
                                     .weight_decay = 0.1f,
                                     .beta1 = 0.9f,
                                     .beta2 = 0.9f,
                                     .eps = 1e-8f,
                                     .schedule = SCHEDULE_CONSTANT};
            Error e = {0};
            double norm;
            EXPECT(optim_step(&s[k].ps, &cfg, step, &norm, &e), "%s", e.text);
            EXPECT(!s[k].ps.changed, "another pass over all values after AdamW's own");
            for (int64_t i = 0; k && i < s[k].ps.total; i++)
                EXPECT(s[k].ps.value16[i] == bf16_round(s[k].ps.value[i]), "value %" PRId64 " after step %d", i,
                       step);
        }
    }
    EXPECT(!memcmp(s[0].ps.value, s[1].ps.value, (size_t)s[0].ps.total * 4), "other values than without");
    for (int k = 0; k < 2; k++) set_close(&s[k]);
}
