/* test_elementwise.c -- activations, sums and products, dropout, casts; the vector math under them. */
#include "kernels/cpu/cpu.h"
#include "kernels/philox.h"
#include "tests/kernels/kernels.h"

#define GOLDEN "tests/golden/kernels_elementwise.safetensors"

COVERS(elementwise, gelu_fwd, gelu_bwd, gelu_tanh_fwd, gelu_tanh_bwd, quick_gelu_fwd, quick_gelu_bwd,
       elu1_fwd, elu1_bwd, tanh_fwd, tanh_bwd, sigmoid_fwd, sigmoid_bwd, add_fwd, mul_fwd, mul_bwd,
       add_rows_fwd, add_rows_bwd, mul_tokens_fwd, mul_tokens_bwd)
COVERS(elementwise2, accumulate, dropout_fwd, dropout_bwd, cast)

/* ---- the vector math, over a wide sweep against double ------------------------------------------------ */

static float exp_neg_(float x) { return exp_neg_f(-fabsf(x)); }
static double exp_neg_d(double x) { return exp(-fabs(x)); }
static double sigmoid_d(double x) { return 1 / (1 + exp(-x)); }

/* Worst error in units in the last place over 400,000 points of [lo, hi]. */
static const struct Sweep {
    const char *name;
    float (*f)(float);
    double (*d)(double);
    double lo, hi, ulps; /* ulps: 0.5 for the final rounding, the rest from the last two or three operations */
} sweeps[] = {
    {"exp_f", exp_f, exp, -87, 88.7, 2},
    {"exp_f", exp_f, exp, -1, 1, 1},
    /* one-part ln 2: 1.9e-9 n at x = -0.69 n, 2.4e-7 = up to 4 ulps at the far end, beside the 1.5 of exp_f */
    {"exp_neg_f", exp_neg_, exp_neg_d, -20, 0, 2},
    {"exp_neg_f", exp_neg_, exp_neg_d, -87, 0, 5.5},
    {"log_f", log_f, log, 1e-3, 10, 2.5},
    {"log_f", log_f, log, 1, 1e6, 2},
    {"log1p_f", log1p_f, log1p, 0, 1, 2},
    {"sigmoid_f", sigmoid_f, sigmoid_d, -86, 20, 4}, /* e^x, 1 + e and the quotient */
    {"tanh_f", tanh_f, tanh, -12, 12, 3},
};

TEST(vector_math) {
    for (int i = 0; i < COUNT_OF(sweeps); i++) {
        const struct Sweep *s = &sweeps[i];
        double worst = 0, at = 0;
        for (int k = 0; k <= 400000; k++) {
            const float x = (float)(s->lo + (s->hi - s->lo) * k / 400000);
            const double want = s->d((double)x);
            int e;
            frexp(want, &e);
            const double ulps = fabs((double)s->f(x) - want) / ldexp(1, MAX(e - 24, -149));
            if (ulps > worst) worst = ulps, at = (double)x;
        }
        EXPECT_NEAR(worst, 0, s->ulps, "%s on [%g, %g]: ulps, worst at %g", s->name, s->lo, s->hi, at);
    }
}

TEST(vector_math_edges) {
    EXPECT(exp_f(INFINITY) == INFINITY && exp_f(-INFINITY) == 0 && exp_f(89) == INFINITY && exp_f(0) == 1, " ");
    EXPECT(isnan(exp_f(NAN)) && isnan(exp_neg_f(NAN)) && isnan(log_f(NAN)) && isnan(tanh_f(NAN)) && isnan(sigmoid_f(NAN)), " ");
    EXPECT(exp_f(-100) > 0 && exp_f(-104) == 0, "subnormals: e^-100 is %g", (double)exp_f(-100));
    EXPECT(exp_neg_f(-INFINITY) == 0 && exp_neg_f(-1e30f) == 0 && exp_neg_f(0) == 1, " ");
    EXPECT(log_f(INFINITY) == INFINITY && log_f(1) == 0, " ");
    EXPECT(tanh_f(INFINITY) == 1 && tanh_f(-INFINITY) == -1 && signbit(tanh_f(-0.0f)), " ");
    EXPECT(sigmoid_f(INFINITY) == 1 && sigmoid_f(-INFINITY) == 0, " ");
}

/* ---- activations -------------------------------------------------------------------------------------- */

#define ACTIVATION(name, reads, range, bound_y, bound_dx)                                                    \
    static void run_##name##_fwd(void *const *p, const int64_t *d) { op->name##_fwd(S, dt, p[1], p[0], d[0]); } \
    static void run_##name##_bwd(void *const *p, const int64_t *d) {                                         \
        op->name##_bwd(S, dt, p[3], p[reads], p[2], d[0]);                                               \
    }                                                                                                        \
    static const Kernel name##_kernel = {                                                                    \
        #name, "n", {{"x", X, "n", -(range), range}, {"y", Y, "n", .bound = bound_y}, {"dy", DY, "n"},       \
                     {"dx", DX, "n", .of = 0, .bound = bound_dx}}, run_##name##_fwd, run_##name##_bwd, .in_place = true};

/* gelu: |x| times 2e-7 (3.4 EPS32) and two roundings; slope the same without x. */
ACTIVATION(gelu, 0, 8, 6, 7)
/* As quick_gelu, 2u rounded three times for one; where |2u| is large the value is small beside 8. The slope's
 * quotient, its square and four products, each of a value up to 1.2. */
ACTIVATION(gelu_tanh, 0, 8, 12, 14)
/* exp, sum, quotient, products: about 2 + 1 + 1 + 2 half-ulps, and 1.702 x is rounded before the exponential */
ACTIVATION(quick_gelu, 0, 8, 12, 14)
ACTIVATION(elu1, 0, 8, 6, 6)
ACTIVATION(tanh, 1, 6, 6, 8)
ACTIVATION(sigmoid, 1, 10, 6, 8)

/* The backward multiplies by dy and adds to what is there: bounds + 2 each, in the driver's scale. */
static const int64_t lengths[][1] = {{1}, {37}, {1000}};

DEVICE_TEST(activations) {
    static const Kernel *const ks[] = {&gelu_kernel, &gelu_tanh_kernel, &quick_gelu_kernel,
                                       &elu1_kernel, &tanh_kernel,      &sigmoid_kernel};
    for (int i = 0; i < COUNT_OF(ks); i++) {
        for (int n = 0; n < COUNT_OF(lengths); n++) kernel_check(ks[i], lengths[n], GOLDEN);
        kernel_check(ks[i], (int64_t[]){0}, NULL);
        kernel_check(ks[i], (int64_t[]){100003}, NULL); /* over PAR_MIN, a prime: threads cut it unevenly */
    }
}

static void one(float y[1], gelu_fwd_fn *f, float x) { RUN(f(S, F32, IO_N(y, 4), IN(x), 1)); }

/* test-vectors 7 */
DEVICE_TEST(activations_specification) {
    static const float rows[][4] = {
        {-3, -0.00404969f, -0.01807131f, 0.04742587f},    {-1, -0.15865525f, -0.15420423f, 0.26894142f},
        {-0.5f, -0.15426877f, -0.14961156f, 0.37754067f}, {0, 0, 0, 0.5f},
        {0.5f, 0.34573123f, 0.35038844f, 0.62245933f},    {1, 0.84134475f, 0.84579577f, 0.73105858f},
        {3, 2.99595031f, 2.98192869f, 0.95257413f},
    };
    for (int i = 0; i < COUNT_OF(rows); i++) {
        float y;
        /* printed to 8 decimals: 5e-9, and the kernel's own error (2e-7 |x| for gelu) */
        one(&y, op->gelu_fwd, rows[i][0]);
        EXPECT_NEAR(y, rows[i][1], 5e-9 + 3e-7 * fmax(1, fabs((double)rows[i][0])), "gelu(%g)", (double)rows[i][0]);
        one(&y, op->quick_gelu_fwd, rows[i][0]);
        EXPECT_NEAR(y, rows[i][2], 5e-9 + 3e-7, "quick_gelu(%g)", (double)rows[i][0]);
        one(&y, op->sigmoid_fwd, rows[i][0]);
        EXPECT_NEAR(y, rows[i][3], 5e-9 + 2e-7, "sigmoid(%g)", (double)rows[i][0]);
    }
}

/* NaN shows, infinities have their limits, forwards and slopes. */
DEVICE_TEST(activations_edges) {
    const struct {
        const char *name;
        gelu_fwd_fn *f;
        gelu_bwd_fn *b;
        float low, high, slope_high;
    } rows[] = {{"gelu", op->gelu_fwd, op->gelu_bwd, 0, INFINITY, 1},
                {"gelu_tanh", op->gelu_tanh_fwd, op->gelu_tanh_bwd, 0, INFINITY, 1},
                {"quick_gelu", op->quick_gelu_fwd, op->quick_gelu_bwd, 0, INFINITY, 1},
                {"elu1", op->elu1_fwd, op->elu1_bwd, 0, INFINITY, 1},
                {"tanh", op->tanh_fwd, NULL, -1, 1, 0},
                {"sigmoid", op->sigmoid_fwd, NULL, 0, 1, 0}};
    for (int i = 0; i < COUNT_OF(rows); i++) {
        const float x[4] = {-INFINITY, INFINITY, NAN, -1e30f}, ones[4] = {1, 1, 1, 1};
        float y[4], dx[4] = {0};
        RUN(rows[i].f(S, F32, IO(y), IN(x), 4));
        EXPECT(y[0] == rows[i].low && y[1] == rows[i].high && isnan(y[2]) && y[3] == rows[i].low, "%s: %g %g %g %g",
               rows[i].name, (double)y[0], (double)y[1], (double)y[2], (double)y[3]);
        if (!rows[i].b) continue;
        RUN(rows[i].b(S, F32, IO(dx), IN(x), IN(ones), 4));
        EXPECT(fabsf(dx[0]) < 3e-7f && fabsf(dx[1] - rows[i].slope_high) < 3e-7f && isnan(dx[2]), "%s slopes: %g %g %g",
               rows[i].name, (double)dx[0], (double)dx[1], (double)dx[2]);
    }
}

/* A backward whose dx is dy: the bits of one that adds to zeros. */
static void check_in_place(const char *name, gelu_bwd_fn *f, DType t) {
    enum { N = 1003 };
    static float x[N], d[N];
    static uint16_t hx[N], hd[N];
    fill_random(x, N, 1, -0.9f, 0.9f); /* of tanh and sigmoid the output: a slope of 0 would show dy's sign */
    fill_random(d, N, 2, -1, 1);
    for (int i = 0; i < N; i++) hx[i] = bf16_round(x[i]), hd[i] = bf16_round(d[i]);
    const size_t size = dtype_size(t);
    const void *in = t == F32 ? (void *)x : (void *)hx, *dy = t == F32 ? (void *)d : (void *)hd;
    unsigned char *apart = xcalloc(N, size), *same = xcalloc(N, size);
    memcpy(same, dy, N * size);
    RUN(f(S, t, IO_N(apart, N * size), IN_N(in, N * size), IN_N(dy, N * size), N));
    RUN({
        void *p = IO_N(same, N * size);
        f(S, t, p, IN_N(in, N * size), p, N);
    });
    EXPECT(!memcmp(apart, same, N * size), "%s in place in %s", name, t == F32 ? "f32" : "bf16");
    free(apart), free(same);
}

DEVICE_TEST(activations_in_place) {
    for (DType t = F32; t <= BF16; t++) {
        check_in_place("gelu", op->gelu_bwd, t);
        check_in_place("gelu_tanh", op->gelu_tanh_bwd, t);
        check_in_place("quick_gelu", op->quick_gelu_bwd, t);
        check_in_place("elu1", op->elu1_bwd, t);
        check_in_place("tanh", op->tanh_bwd, t);
        check_in_place("sigmoid", op->sigmoid_bwd, t);
    }
}

/* ---- sums and products -------------------------------------------------------------------------------- */

static void add_f(void *const *p, const int64_t *d) { op->add_fwd(S, dt, p[2], p[0], p[1], d[0]); }
static void add_b(void *const *p, const int64_t *d) {
    if (p[4]) op->accumulate(S, dt, p[4], dt, p[3], d[0]);
    if (p[5]) op->accumulate(S, dt, p[5], dt, p[3], d[0]);
}
static const Kernel add_kernel = {"add", "n",
    {{"a", X, "n"}, {"b", X, "n"}, {"y", Y, "n", .bound = 1}, {"dy", DY, "n"}, {"da", DX, "n", .of = 0, .bound = 1},
     {"db", DX, "n", .of = 1, .bound = 1}}, add_f, add_b, .in_place = true};

static void mul_f(void *const *p, const int64_t *d) { op->mul_fwd(S, dt, p[2], p[0], p[1], d[0]); }
static void mul_b(void *const *p, const int64_t *d) { op->mul_bwd(S, dt, p[4], p[5], p[0], p[1], p[3], d[0]); }
static const Kernel mul_kernel = {"mul", "n",
    {{"a", X, "n"}, {"b", X, "n"}, {"y", Y, "n", .bound = 2}, {"dy", DY, "n"}, {"da", DX, "n", .of = 0, .bound = 2},
     {"db", DX, "n", .of = 1, .bound = 2}}, mul_f, mul_b, .in_place = true};

static void add_rows_f(void *const *p, const int64_t *d) { op->add_rows_fwd(S, dt, p[2], p[0], p[1], d[0], d[1]); }
static void add_rows_b(void *const *p, const int64_t *d) {
    if (p[4]) op->accumulate(S, dt, p[4], dt, p[3], d[0] * d[1]);
    op->add_rows_bwd(S, dt, p[5], dt, p[3], d[0], d[1]);
}
/* dp: a block of 64 rows adds 64 values: a walk of sqrt(64) roundings of the sum, and the blocks the same. */
static const Kernel add_rows_kernel = {"add_rows", "rn",
    {{"x", X, "rn"}, {"p", X, "n"}, {"y", Y, "rn", .bound = 1}, {"dy", DY, "rn"}, {"dx", DX, "rn", .of = 0, .bound = 1},
     {"dp", DX, "n", .of = 1, .bound = 8}}, add_rows_f, add_rows_b, .in_place = true};

static void mul_tokens_f(void *const *p, const int64_t *d) {
    op->mul_tokens_fwd(S, dt, p[2], p[0], p[1], d[0], d[1], d[2]);
}
static void mul_tokens_b(void *const *p, const int64_t *d) {
    op->mul_tokens_bwd(S, dt, p[4], p[5], p[0], p[1], p[3], d[0], d[1], d[2]);
}
static const Kernel mul_tokens_kernel = {"mul_tokens", "BTC",
    {{"x", X, "BTC"}, {"g", X, "BC"}, {"y", Y, "BTC", .bound = 2}, {"dy", DY, "BTC"},
     {"dx", DX, "BTC", .of = 0, .bound = 2}, {"dg", DX, "BC", .of = 1, .bound = 6}}, mul_tokens_f, mul_tokens_b, .in_place = true};

/* The same where p and x are parameters: f32 gradients, whatever dy is. */
static void add_rows_param_b(void *const *p, const int64_t *d) {
    if (p[4]) op->accumulate(S, F32, p[4], dt, p[3], d[0] * d[1]);
    op->add_rows_bwd(S, F32, p[5], dt, p[3], d[0], d[1]);
}
static const Kernel add_rows_param_kernel = {"add_rows", "rn",
    {{"x", X, "rn"}, {"p", X, "n"}, {"y", Y, "rn", .bound = 1}, {"dy", DY, "rn"}, {"dx", DX, "rn", .of = 0, .bound = 1, .f32 = true},
     {"dp", DX, "n", .of = 1, .bound = 8, .f32 = true}}, add_rows_f, add_rows_param_b};

DEVICE_TEST(sums_and_products) {
    kernel_check(&add_kernel, (int64_t[]){37}, GOLDEN);
    kernel_check(&add_kernel, (int64_t[]){0}, NULL);
    kernel_check(&add_kernel, (int64_t[]){70001}, NULL);
    kernel_check(&mul_kernel, (int64_t[]){37}, GOLDEN);
    kernel_check(&mul_kernel, (int64_t[]){0}, NULL);
    kernel_check(&mul_kernel, (int64_t[]){70001}, NULL);
    static const int64_t rows[][2] = {{1, 1}, {5, 37}, {70, 37}};
    for (int i = 0; i < COUNT_OF(rows); i++) kernel_check(&add_rows_kernel, rows[i], GOLDEN);
    kernel_check(&add_rows_kernel, (int64_t[]){0, 5}, NULL);
    kernel_check(&add_rows_kernel, (int64_t[]){5, 0}, NULL);
    kernel_check(&add_rows_kernel, (int64_t[]){8, 80 * 128}, NULL); /* a position table: the columns' way */
    kernel_check(&add_rows_kernel, (int64_t[]){640, 129}, NULL);
    static const int64_t params[][2] = {{0, 5}, {5, 0}, {1, 1}, {5, 37}, {70, 40}, {8, 80 * 128}, {640, 129}};
    for (int i = 0; i < COUNT_OF(params); i++) kernel_check(&add_rows_param_kernel, params[i], NULL);
    kernel_check(&mul_tokens_kernel, (int64_t[]){1, 1, 1}, GOLDEN);
    kernel_check(&mul_tokens_kernel, (int64_t[]){3, 7, 37}, GOLDEN);
    kernel_check(&mul_tokens_kernel, (int64_t[]){2, 0, 5}, NULL);
    kernel_check(&mul_tokens_kernel, (int64_t[]){2, 145, 192}, NULL);
}

/* y = a a: both gradients into one buffer. */
DEVICE_TEST(mul_square) {
    const float a[3] = {1, -2, 3}, dy[3] = {1, 1, 2};
    float da[3] = {10, 10, 10};
    float *both = IO(da), *in = IN(a);
    RUN(op->mul_bwd(S, F32, both, both, in, in, IN(dy), 3));
    EXPECT(da[0] == 12 && da[1] == 6 && da[2] == 22, "%g %g %g", (double)da[0], (double)da[1], (double)da[2]);
    /* 1, -2, 3; 1, 1, 2; 10, 10, 10 in bf16 */
    const uint16_t a16[3] = {0x3F80, 0xC000, 0x4040}, dy16[3] = {0x3F80, 0x3F80, 0x4000};
    uint16_t da16[3] = {0x4120, 0x4120, 0x4120}, *both16 = IO(da16), *in16 = IN(a16);
    RUN(op->mul_bwd(S, BF16, both16, both16, in16, in16, IN(dy16), 3));
    for (int i = 0; i < 3; i++) EXPECT(bf16_value(da16[i]) == da[i], "bf16: %g", (double)bf16_value(da16[i]));
}

/* ---- dropout ------------------------------------------------------------------------------------------ */

/* The three known answers of the generator's authors (Random123, kat_vectors) reach counter words 2 and 3; ours are
 * zero, so the first vector applies, and a plain reimplementation stands for the rest. */
static void philox_slow(uint32_t c[4], uint32_t k0, uint32_t k1) {
    for (int i = 0; i < 10; i++) {
        const uint64_t a = 0xD2511F53ull * c[0], b = 0xCD9E8D57ull * c[2];
        const uint32_t next[4] = {(uint32_t)(b >> 32) ^ c[1] ^ k0, (uint32_t)b, (uint32_t)(a >> 32) ^ c[3] ^ k1, (uint32_t)a};
        memcpy(c, next, sizeof next);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

TEST(philox_known_answer) {
    uint32_t r[4];
    philox(r, 0, 0);
    EXPECT(r[0] == 0x6627e8d5 && r[1] == 0xe169c58d && r[2] == 0xbc57ac4c && r[3] == 0x9b00dbd8, "%08x %08x %08x %08x", r[0],
           r[1], r[2], r[3]);
    uint32_t all[4] = {~0u, ~0u, ~0u, ~0u};
    philox_slow(all, ~0u, ~0u);
    EXPECT(all[0] == 0x408f276d && all[1] == 0x41c83b0e && all[2] == 0xa20bc7c6 && all[3] == 0x6d5451fd, "the test's own");
    uint32_t c[4] = {0x89abcdef, 0x01234567, 0, 0};
    philox_slow(c, 0x76543210, 0xfedcba98);
    philox(r, 0xfedcba9876543210u, 0x0123456789abcdefu);
    EXPECT(!memcmp(r, c, sizeof r), "64-bit counter and key");
}

DEVICE_TEST(dropout) {
    enum { N = 40000 };
    static float x[N], y[N], part[N], dx[N];
    const float p = 0.3f, scale = 1 / (1 - p);
    const uint64_t seed = 99, offset = 0xFFFFFFFFFFFFFF01u; /* the numbering wraps inside */
    for (int i = 0; i < N; i++) x[i] = 1 + (float)i;
    RUN(op->dropout_fwd(S, F32, IO(y), IN(x), p, seed, offset, N));
    int kept = 0;
    for (int i = 0; i < N; i++) {
        uint32_t r[4];
        philox(r, seed, (offset + (uint64_t)i) >> 2);
        const bool keep = (double)r[(offset + (uint64_t)i) & 3] >= (double)p * 4294967296.0 - 1;
        EXPECT(y[i] == (keep ? x[i] * scale : 0), "value %d: %g", i, (double)y[i]);
        kept += keep;
    }
    /* binomial: sigma = sqrt(N p (1-p)) = 92; 5 sigma */
    EXPECT_NEAR(kept, N * (1 - (double)p), 5 * 92, "kept");
    /* Any cut gives the same numbers, and so does the backward. */
    const int cuts[] = {0, 1, 2, 3, 1030, 1031, 20000, N};
    for (int i = 0; i + 1 < COUNT_OF(cuts); i++)
        RUN(op->dropout_fwd(S, F32, (float *)IO(part) + cuts[i], (float *)IN(x) + cuts[i], p, seed, offset + (uint64_t)cuts[i],
                            cuts[i + 1] - cuts[i]));
    for (int i = 0; i < N; i++)
        EXPECT(part[i] == y[i], "value %d: %g in parts, %g", i, (double)part[i], (double)y[i]);
    for (int i = 0; i < N; i++) dx[i] = 1;
    RUN(op->dropout_bwd(S, F32, IO(dx), IN(x), p, seed, offset, N));
    for (int i = 0; i < N; i++) EXPECT_NEAR(dx[i], 1 + (double)y[i], 2 * EPS32 * (1 + (double)y[i]), "dx[%d]", i);
    if (!S) { /* threads are the CPU's */
        device_cpu(1);
        RUN(op->dropout_fwd(S, F32, IO(part), IN(x), p, seed, offset, N));
        device_cpu(2);
        RUN(op->dropout_fwd(S, F32, IO(dx), IN(x), p, seed, offset, N));
        EXPECT(!memcmp(part, dx, sizeof part), "other bits with 2 threads");
    }
    RUN(op->dropout_fwd(S, F32, IO(part), IN(x), 0, seed, offset, N));
    EXPECT(!memcmp(part, x, sizeof part), "p = 0 keeps all");
    x[5] = NAN;
    float *same = IO(x);
    RUN(op->dropout_fwd(S, F32, same, same, 0.5f, seed, offset, 0));
    EXPECT(isnan(x[5]), "n = 0 wrote");
}

/* ---- casts -------------------------------------------------------------------------------------------- */

DEVICE_TEST(cast_bf16) {
    static const struct { uint32_t in; uint16_t out; } rows[] = {
        {0x3F800000, 0x3F80}, {0x3F808000, 0x3F80} /* tie: even below */, {0x3F818000, 0x3F82} /* tie: even above */,
        {0x3F808001, 0x3F81}, {0x7F7FFFFF, 0x7F80} /* rounds to infinity */, {0x7F800000, 0x7F80}, {0xFF800000, 0xFF80},
        {0x80000000, 0x8000}, {0x00000001, 0x0000}, {0x7F800001, 0x7FC0} /* NaN stays NaN */, {0xFFFFFFFF, 0xFFFF},
    };
    for (int i = 0; i < COUNT_OF(rows); i++) {
        uint16_t y;
        RUN(op->cast(S, BF16, IO(y), F32, IN(rows[i].in), 1));
        const bool nan = (rows[i].out & 0x7FFF) > 0x7F80; /* any NaN will do: a card has but one, 7FFF */
        EXPECT(nan ? (y & 0x7FFF) > 0x7F80 : y == rows[i].out, "%08x gives %04x, wants %04x", rows[i].in, y, rows[i].out);
    }
    /* Every bf16 value comes back from f32 as it was. */
    static uint16_t all[65536], back[65536];
    static float wide[65536];
    for (int i = 0; i < 65536; i++) all[i] = (uint16_t)i;
    RUN(op->cast(S, F32, IO(wide), BF16, IN(all), 65536));
    RUN(op->cast(S, BF16, IO(back), F32, IN(wide), 65536));
    for (int i = 0; i < 65536; i++) {
        const bool nan = (i & 0x7FFF) > 0x7F80;
        EXPECT(nan ? (back[i] & 0x7FFF) > 0x7F80 : back[i] == i, "%04x comes back as %04x", i, back[i]);
    }
}
