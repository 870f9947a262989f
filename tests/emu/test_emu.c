/* test_emu.c -- does the emulated card compute what a card does, and does it see what a card would punish? */
#include "kernels/ops.h"
#include "tests/emu/emu.h"
#include "tests/engine/child.h"
#include "tests/kernels/kernels.h"

#include <math.h>
#include <signal.h>

enum { SEEDS = 6 };

/* ---- what is right: cuda.cuh's helpers and their twins, here and on a card ------------------------------- */

#define TWINS(X)                                                                                             \
    X(matrix_product, (Stream *s, float *c, const void *a, const void *b, bool transposed))                  \
    X(reductions, (Stream *s, double *out, const float *x, int blocks, int threads))                         \
    X(shuffles, (Stream *s, float *out, const float *x))                                                     \
    X(reversed, (Stream *s, float *y, const float *x, int threads))
#define X(name, arguments) void emu_##name arguments, cuda_##name arguments;
TWINS(X)
#undef X

#ifdef WITH_CUDA
#define TWIN(op_name) (!strcmp(dev->name, "emu") ? emu_##op_name : cuda_##op_name)
#define ON_CARD(name) TEST(name##_on_cuda) { device_test_run(CUDA_CARD, name); }
#else
#define TWIN(name) emu_##name
#define ON_CARD(name)
#endif
#define TWIN_TEST(name)                                                                                      \
    static void name(void);                                                                                  \
    TEST(name##_on_emu) {                                                                                    \
        for (int seed = 0; seed < SEEDS; seed++) {                                                           \
            emu_schedule((uint64_t)seed);                                                                    \
            device_test_run(EMU, name);                                                                      \
        }                                                                                                    \
    }                                                                                                        \
    ON_CARD(name)                                                                                            \
    static void name(void)

/* Small integers: every product and sum is exact, in bf16 too. */
static void small_integers(float *x, uint16_t *bits, int n, uint64_t seed) {
    for (int i = 0; i < n; i++) {
        x[i] = (float)(int)(hash_bytes(&i, sizeof i, seed) % 9) - 4;
        bits[i] = bf16_round(x[i]);
    }
}

TWIN_TEST(tensor_core) {
    float a[256], b[128], c[128];
    uint16_t a16[256], b16[128], turned[128];
    small_integers(a, a16, 256, 1);
    small_integers(b, b16, 128, 2);
    for (int k = 0; k < 16; k++)
        for (int j = 0; j < 8; j++) turned[j * 16 + k] = b16[k * 8 + j];
    for (int t = 0; t < 2; t++) {
        RUN(TWIN(matrix_product)(S, IO(c), IN(a16), t ? IN(turned) : IN(b16), t));
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 8; j++) {
                float want = 0;
                for (int k = 0; k < 16; k++) want += a[i * 16 + k] * b[k * 8 + j];
                EXPECT(c[i * 8 + j] == want, "c[%d][%d] is %g, wants %g", i, j, (double)c[i * 8 + j], (double)want);
            }
    }
}

TWIN_TEST(reductions) {
    static float x[4 * 256];
    static double out[4 * 256][4];
    static const int sizes[] = {32, 96, 256};
    for (int i = 0; i < COUNT_OF(x); i++) x[i] = (float)(int)(hash_bytes(&i, sizeof i, 3) % 2001) - 1000;
    for (int z = 0; z < COUNT_OF(sizes); z++) {
        RUN(TWIN(reductions)(S, IO(out), IN(x), 4, sizes[z]));
        for (int block = 0; block < 4; block++) {
            double sum = 0, most = -INFINITY, squares = 0;
            for (int i = 0; i < sizes[z]; i++) {
                const double v = (double)x[block * sizes[z] + i];
                sum += v;
                most = fmax(most, v);
                squares += v * v;
            }
            for (int i = 0; i < sizes[z]; i++) {
                const double *o = out[block * sizes[z] + i];
                EXPECT(o[0] == sum && o[1] == most && o[2] == sum, "thread %d of %d: sum %g, max %g", i, sizes[z], o[0], o[1]);
                EXPECT_NEAR(o[3], squares, 8 * EPS32 * squares, "thread %d: squares", i); /* eight additions deep */
            }
        }
    }
}

TWIN_TEST(shuffles) {
    float x[32], out[32][5];
    int positive = 0;
    for (int i = 0; i < 32; i++) x[i] = (float)(i % 7 - 2), positive += x[i] > 0;
    RUN(TWIN(shuffles)(S, IO(out), IN(x)));
    for (int i = 0; i < 32; i++) {
        EXPECT(out[i][0] == x[i / 2] && out[i][1] == x[i ^ 5] && out[i][4] == (float)positive, "lane %d", i);
        const float down = x[i % 8 + 3 < 8 ? i + 3 : i], up = x[i % 8 >= 3 ? i - 3 : i];
        EXPECT(out[i][2] == down && out[i][3] == up, "lane %d, down and up", i);
    }
}

TWIN_TEST(dynamic_shared) {
    static float x[64 * 512], y[64 * 512];
    for (int i = 0; i < COUNT_OF(x); i++) x[i] = (float)i;
    RUN(TWIN(reversed)(S, IO(y), IN(x), 512)); /* 128 KB */
    for (int i = 0; i < COUNT_OF(x); i++) EXPECT(y[i] == x[COUNT_OF(x) - 1 - i], "y[%d] is %g", i, (double)y[i]);
}

/* ---- what is wrong ------------------------------------------------------------------------------------ */

typedef void Fault(Stream *s, float *y, const float *x, int n);
Fault emu_missing_barrier, emu_early_return, emu_out_of_bounds, emu_wrong_mask, emu_missing_wait, emu_missing_after, emu_with_after,
    emu_block_too_large, emu_empty_grid, emu_grid_too_tall, emu_dynamic_too_large, emu_static_too_large, emu_shared_overrun,
    emu_misaligned, emu_two_barriers;

enum { N = 1000, MARGIN = 64 };
typedef struct Result {
    char text[2048];
    bool poison, outside; /* NaN where there should be numbers; something written beside y */
} Result;

/* Runs it in the middle of a canvas of 7s. */
static void run_fault(Result *r, Fault *f, uint64_t seed) {
    static _Alignas(16) float x[N], canvas[MARGIN + N + MARGIN];
    static Stream *s;
    if (!s) s = emu_stream("test");
    for (int i = 0; i < N; i++) x[i] = (float)i + 1;
    for (int i = 0; i < COUNT_OF(canvas); i++) canvas[i] = 7;
    float *y = canvas + MARGIN;
    memset(y, 0xFF, N * sizeof *y);
    emu_schedule(seed);
    emu_collect(r->text, sizeof r->text);
    f(s, y, x, N);
    emu_stream_sync(s);
    emu_collect(NULL, 0);
    r->poison = r->outside = false;
    for (int i = 0; i < N; i++) r->poison |= isnan(y[i]);
    for (int i = 0; i < COUNT_OF(canvas); i++) r->outside |= (i < MARGIN || i >= MARGIN + N) && canvas[i] != 7;
}

/* With y of its own, so that the sanitizer knows its end. */
static void in_child(void *f) {
    float *x = aligned_alloc(16, N * sizeof *x), *y = aligned_alloc(16, N * sizeof *y);
    memset(x, 0, N * sizeof *x);
    (*(Fault **)f)(NULL, y, x, N);
    free(x);
    free(y);
}

/* report: what must be told. sanitizer: what AddressSanitizer or UBSan says under SAN=1, where they look at the accesses. */
static const struct {
    const char *name;
    Fault *f;
    const char *report, *sanitizer;
} faults[] = {
    {"missing barrier", emu_missing_barrier, "shared array tile", NULL},
    {"early return", emu_early_return, "24 have returned, 232 wait at the barrier", ""},
    {"out of bounds", emu_out_of_bounds, NULL, "out_of_bounds.cu:6"},
    {"wrong mask", emu_wrong_mask, "__shfl_xor_sync with mask ffffffff", ""},
    {"missing wait", emu_missing_wait, "read before the asynchronous copy to it was waited for", NULL},
    {"missing after", emu_missing_after, NULL, NULL},
    {"1056 threads", emu_block_too_large, "block.x is 1056", ""},
    {"no block", emu_empty_grid, "grid.x is 0", ""},
    {"65536 rows of blocks", emu_grid_too_tall, "grid.y is 65536", ""},
    {"228 KB", emu_dynamic_too_large, "233472 bytes of dynamic shared memory", ""},
    {"52 KB static", emu_static_too_large, "static shared memory over 48 KB", ""},
    {"past a shared array", emu_shared_overrun, "shared array tile, byte 1020: written, which is behind its end", "limits.cu:18"},
    {"misaligned vector", emu_misaligned, "misaligned access", "misaligned"},
    {"two barriers", emu_two_barriers, "threads wait at two barriers", ""},
};

TEST(emu_faults) {
    for (int i = 0; i < COUNT_OF(faults); i++) {
        const bool sees = emu_sees_accesses(), sanitizer = !sees && faults[i].sanitizer && *faults[i].sanitizer;
        if (sanitizer) { /* it ends the process */
            Child c;
            Fault *f = faults[i].f;
            const int status = child_call(&c, in_child, &f);
            EXPECT(status != 0 && strstr(c.text, faults[i].sanitizer), "%s: status %d, %s", faults[i].name, status, c.text);
            continue;
        }
        for (int seed = 0; seed < SEEDS; seed++) {
            Result r;
            run_fault(&r, faults[i].f, (uint64_t)seed);
            const char *want = sees || faults[i].sanitizer ? faults[i].report : NULL;
            if (want) EXPECT(strstr(r.text, want), "%s, seed %d: the report is '%s'", faults[i].name, seed, r.text);
            else if (faults[i].f == emu_out_of_bounds) EXPECT(r.outside, "seed %d: nothing outside was written", seed);
            else EXPECT(r.poison, "%s, seed %d: no number shows it", faults[i].name, seed);
        }
    }
}

/* A kernel that is right after one that was given up is not told of; ordered streams give the right numbers. */
TEST(emu_after_faults) {
    for (int seed = 0; seed < SEEDS; seed++) {
        Result r;
        run_fault(&r, emu_with_after, (uint64_t)seed);
        EXPECT(!*r.text && !r.poison && !r.outside, "seed %d: '%s'", seed, r.text);
    }
}

/* ---- more than 2^31 values ------------------------------------------------------------------------------ */

static float value_at(Device *d, const float *p, int64_t i) {
    float v;
    d->download(d, &v, p + i, sizeof v);
    return v;
}

TEST(emu_beyond_2_31) {
    Device *d = device_emu();
    const int64_t n = ((int64_t)1 << 31) + 1000;
    const size_t bytes = (size_t)n * sizeof(float);
    float *x = d->alloc(d, bytes), *y = d->alloc(d, bytes), *m = d->alloc(d, bytes), *v = d->alloc(d, bytes);
    d->upload(d, x, &(float){21}, sizeof(float));
    d->upload(d, x + n - 1, &(float){42}, sizeof(float));
    emu_blocks(2); /* of each launch the first two and the last two blocks */
    d->ops->add_fwd(d->main, F32, y, x, x, n);
    EXPECT(value_at(d, y, 0) == 42 && value_at(d, y, n - 1) == 84, "%g, %g", (double)value_at(d, y, 0), (double)value_at(d, y, n - 1));
    d->ops->gelu_fwd(d->main, F32, y, x, n);
    EXPECT(value_at(d, y, 0) == 21 && value_at(d, y, n - 1) == 42, "%g, %g", (double)value_at(d, y, 0), (double)value_at(d, y, n - 1));
    /* One stretch of values over all: its last block is the last values. */
    const AdamSegment all = {0, n, 1, 0};
    d->upload(d, y + n - 1, &(float){0}, sizeof(float));
    d->ops->adamw(d->main, y, m, v, NULL, x, &all, 1, 0.5f, 0.5f, 0, 1, 1);
    EXPECT_NEAR(value_at(d, y, n - 1), -1, 8 * EPS32, "p: the first step is lr sign(g)");
    EXPECT(value_at(d, m, n - 1) == 21, "m is %g", (double)value_at(d, m, n - 1));
    emu_blocks(0);
    d->release(d, x, bytes);
    d->release(d, y, bytes);
    d->release(d, m, bytes);
    d->release(d, v, bytes);
}
