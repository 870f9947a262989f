/* test_cudnn.c -- cuDNN's users over the stand-in, on the emulated card: attention against the CPU's, the
 * convolution against gemm. And the real library, where it is installed, asked for plans of these graphs. */
#include "engine/run.h"
#include "kernels/cuda/attention_cudnn.h"
#include "kernels/cuda/cudnn.h"
#include "tests/emu/emu.h"
#include "tests/kernels/kernels.h"

#include <dlfcn.h>
#include <limits.h>
#include <math.h>
#include <sys/wait.h>
#include <unistd.h>

extern const Kernel *const attention_kinds[4];
GraphPlan cudnn_attention_plan(const AttentionShape *s, cudnnBackendDescriptor_t card_like);
typedef struct ConvShape {
    int64_t B, side, patch, C;
    int32_t card, t;
} ConvShape;
GraphPlan cudnn_conv_plan(const ConvShape *s, cudnnBackendDescriptor_t card_like);

/* A library beside this program. */
static const char *beside(char path[PATH_MAX], const char *name) {
    const ssize_t n = readlink("/proc/self/exe", path, PATH_MAX - 64);
    CHECK(n > 0, "/proc/self/exe");
    path[n] = 0;
    strcpy(strrchr(path, '/') + 1, name);
    return path;
}

static Standin *standin;
static void *standin_library;
static Ops with_cudnn;

static const char *standin_path(void) {
    static char path[PATH_MAX];
    return beside(path, "standin/libcudnn.so");
}

/* The emulated card, with the stand-in's attention. */
static bool begin(void) {
    Error e = {0};
    if (!cudnn_open(standin_path(), &e)) return test_fail(__FILE__, __LINE__, "%s", e.text), false;
    standin_library = dlopen(standin_path(), RTLD_NOW);
    standin = dlsym(standin_library, STANDIN);
    standin->queue = (void (*)(cudaStream_t, void (*)(void *), const void *, size_t))emu_call;
    *standin->complaint = 0;
    standin->runs = 0;
    standin->refuses = false;
    with_cudnn = ops_emu;
    with_cudnn.attention_fwd = cudnn_attention_fwd;
    with_cudnn.attention_bwd = cudnn_attention_bwd;
    dev->ops = &with_cudnn;
    return true;
}

static void end(void) {
    dev->sync(dev);
    dev->ops = &ops_emu;
    cudnn_close();
    EXPECT(!*standin->complaint, "the library complains: %s", standin->complaint);
    EXPECT(standin->alive == 0, "%" PRId64 " descriptors and handles are left", standin->alive);
    dlclose(standin_library);
}

/* Rests in every tile, cross attention, 7 batches as 4, 2 and 1; no mask, key mask, causal, both. What
 * cuDNN takes it must have computed, the rest our own kernels. */
static void check_attention(void) {
    static const int64_t sizes[][5] = {
        /* B  H  Tq  Tk   D */
        {1, 1, 2, 1, 32},   {2, 3, 17, 17, 32}, {1, 1, 37, 21, 64},
        {2, 1, 33, 70, 32}, {7, 2, 5, 9, 16},   {1, 1, 80, 80, 64},
    };
    if (!begin()) return;
    for (int i = 0; i < COUNT_OF(sizes); i++)
        for (int k = 0; k < (i == 1 ? 4 : 3); k++) {
            const bool ours = k == 3 || (k == 2 && sizes[i][3] < sizes[i][2]);
            const int64_t before = standin->runs;
            Kernel kind = *attention_kinds[k];
            kind.only_bf16 = true; /* f32 is our own kernels' in any case */
            kernel_check(&kind, sizes[i], NULL);
            const int64_t runs = standin->runs - before;
            EXPECT(ours ? runs == 0 : runs >= 2, "%" PRId64 " graphs were run, size %d, kind %d", runs, i, k);
        }
    end();
}
TEST(cudnn_attention) { device_test_run(EMU, check_attention); }

/* Slices of one projection; NaN behind masked keys, which no result may meet; batch 1 sees nothing: zeros,
 * lse -infinity, no gradient. */
static void check_masks(void) {
    enum { B = 3, H = 2, T = 21, D = 32, C = H * D };
    static uint16_t qkv[B * T * 3 * C], out[B * T * C], dout[B * T * C], dqkv[B * T * 3 * C];
    static float x[B * T * 3 * C], lse[B * H * T];
    static uint8_t mask[B * T];
    if (!begin()) return;
    fill_random(x, COUNT_OF(x), 3, -2, 2);
    for (int i = 0; i < COUNT_OF(qkv); i++) qkv[i] = bf16_round(x[i]), dqkv[i] = bf16_round(0.25f);
    for (int i = 0; i < COUNT_OF(dout); i++) dout[i] = bf16_round(x[i] / 2);
    for (int i = 0; i < B * T; i++) {
        mask[i] = i / T != 1 && i % 3 != 1;
        for (int c = C; c < 3 * C && !mask[i]; c++) qkv[i * 3 * C + c] = 0x7FFF;
    }
    uint16_t *at = IN(qkv), *dat = IO(dqkv), *o = IO(out), *m = IN(mask), *dy = IN(dout);
    float *l = IO(lse);
    RUN(op->attention_fwd(S, BF16, o, C, l, at, 3 * C, at + C, at + 2 * C, 3 * C, (uint8_t *)m, false, 0.25f,
                          B, H, T, T, D);
        op->attention_bwd(S, BF16, dat, dat + C, dat + 2 * C, at, 3 * C, at + C, at + 2 * C, 3 * C, o, dy, C,
                          l, (uint8_t *)m, false, 0.25f, B, H, T, T, D));
    EXPECT(standin->runs == 4, "%" PRId64 " graphs were run",
           standin->runs); /* 2 batches and 1, forward and backward */
    for (int i = 0; i < B * T; i++)
        for (int c = 0; c < 3 * C; c++) {
            const float g = bf16_value(dqkv[i * 3 * C + c]), y = c < C ? bf16_value(out[i * C + c]) : 0;
            EXPECT(isfinite(g) && isfinite(y), "token %d met what is masked", i);
            EXPECT(i / T != 1 || (g == 0.25f && y == 0),
                   "token %d of the batch that sees nothing: %g, gradient %g", i, (double)y, (double)g);
            EXPECT(c < C || mask[i] || g == 0.25f, "masked key %d has a gradient", i);
        }
    for (int i = 0; i < B * H * T; i++)
        EXPECT(i / (H * T) == 1 ? lse[i] == -INFINITY : isfinite(lse[i]), "lse[%d] is %g", i, (double)lse[i]);
    end();
}
TEST(cudnn_masks) { device_test_run(EMU, check_masks); }

/* A library that takes no graph: our own kernels compute, and the result is theirs. */
static void check_refusal(void) {
    static const int64_t size[] = {2, 2, 16, 16, 32};
    if (!begin()) return;
    standin->refuses = true;
    kernel_check(attention_kinds[0], size, NULL);
    EXPECT(standin->runs == 0, "%" PRId64 " graphs were run", standin->runs);
    end();
}
TEST(cudnn_has_no_engine) { device_test_run(EMU, check_refusal); }

/* The convolution of channels-last images is the product of their patches (row, column, channel) with the
 * weight's rows. */
static void check_patches(void) {
    enum { B = 2, SIDE = 12, PATCH = 4, GRID = SIDE / PATCH, K = 3 * PATCH * PATCH, C = 8 };
    static float x[B * SIDE * SIDE * 3], w[C * K], y[B * GRID * GRID * C];
    if (!begin()) return;
    fill_random(x, COUNT_OF(x), 1, -1, 1);
    fill_random(w, COUNT_OF(w), 2, -1, 1);
    float *out = IO(y), *in = IN(x), *weight = IN(w);
    EXPECT(cudnn_has_patches(S, F32, B, SIDE, PATCH, C), "no plan");
    RUN(cudnn_patches(S, F32, out, in, weight, B, SIDE, PATCH, C));
    EXPECT(standin->runs == 1, "%" PRId64 " graphs were run", standin->runs);
    for (int i = 0; i < COUNT_OF(y); i++) {
        const int b = i / (GRID * GRID * C), row = i / (GRID * C) % GRID, column = i / C % GRID, c = i % C;
        double sum = 0;
        for (int k = 0; k < K; k++)
            sum += (double)x[((b * SIDE + row * PATCH + k / (3 * PATCH)) * SIDE + column * PATCH) * 3 +
                             k % (3 * PATCH)] *
                   (double)w[c * K + k];
        EXPECT_NEAR((double)y[i], sum, EPS32 * fabs(sum), "value %d", i); /* summed in double, rounded once */
    }
    end();
}
TEST(cudnn_patches) { device_test_run(EMU, check_patches); }

/* ---- what can be wrong with the library ------------------------------------------------------------ */

TEST(cudnn_is_not_there) {
    Error e = {0};
    char path[PATH_MAX];
    EXPECT(!cudnn_open("libcudnn_of_nobody.so.9", &e) &&
               strstr(e.text, "cuDNN cannot be opened: libcudnn_of_nobody.so.9"),
           "%s", e.text);
    EXPECT(!cudnn_open("libm.so.6", &e) && strstr(e.text, "libm.so.6 is not a cuDNN 9: it has no cudnn"),
           "%s", e.text);
    void *so = dlopen(standin_path(), RTLD_NOW);
    Standin *s = so ? dlsym(so, STANDIN) : NULL;
    EXPECT(s, "%s", beside(path, "standin/libcudnn.so"));
    if (!s) return;
    s->version = 90201;
    EXPECT(!cudnn_open(standin_path(), &e) && strstr(e.text, "is cuDNN 9.2.1; 9.16 or a newer 9 is needed"),
           "%s", e.text);
    s->version = 91900;
    EXPECT(cudnn_open(standin_path(), &e) && cudnn_version() == 91900, "%s", e.text);
    EXPECT(!strcmp(strrchr(cudnn_path(), '/'), "/libcudnn.so") && !access(cudnn_path(), R_OK), "it is %s", cudnn_path());
    cudnn_close();
    dlclose(so);
}

TEST(cudnn_is_refused) {
    static Config cfg;
    Run r;
    Error e = {0};
    config_defaults(&cfg);
    EXPECT(run_open(&r, &cfg, &e), "%s", e.text);
    run_close(&r);
    EXPECT(config_set(&cfg, "run.attention=cudnn", &e) && !run_open(&r, &cfg, &e) &&
               strstr(e.text, "wants run.precision=bf16"),
           "%s", e.text);
    EXPECT(config_set(&cfg, "run.precision=bf16", &e) && !run_open(&r, &cfg, &e) &&
               strstr(e.text, "this run on the cpu"),
           "%s", e.text);
}

/* ---- the real library ----------------------------------------------------------------------------- */

/* NVIDIA's library can plan for a card that is described to it ("deviceless compilation"), and nowhere says
 * how: it names what it misses. The numbers are those of the cards' data sheets, clocks an A100's. */
#define CARD(version, name, processors, shared, l2)                                                          \
    "{\"cudaDeviceId\": 0, \"pciDeviceId\": 0, \"driverVer\": 13000, \"deviceVer\": " #version               \
    ", \"deviceName\": \"" name "\", \"multiProcessorCount\": " #processors                                  \
    ", \"maxSharedMemoryPerBlockOptin\": " #shared ", \"l2CacheSize\": " #l2                                 \
    ", \"totalGlobalMem\": 85000000000, \"smClockRateKHz\": 1410000, \"memClockRateKHz\": 1593000"           \
    ", \"maxGridSize\": [2147483647, 65535, 65535], \"maxBlockSize\": [1024, 1024, 64], \"warpSize\": 32"    \
    ", \"regsPerBlock\": 65536, \"maxRegistersPerSM\": 65536, \"maxSharedMemoryPerBlock\": 49152"            \
    ", \"reservedSharedMemoryPerBlock\": 1024, \"maxCtasPerSM\": 32, \"maxThreadsPerBlock\": 1024"           \
    ", \"maxThreadsPerSM\": 2048, \"isTccDriver\": 0, \"supportCoopLaunch\": 1}"
static const char *const cards[] = {CARD(900, "NVIDIA H100 80GB HBM3", 132, 232448, 52428800),
                                    CARD(800, "NVIDIA A100-SXM4-80GB", 108, 166912, 41943040)};

static bool planned(GraphPlan p, int card, const char *what, int kind) {
    const bool found = p.found;
    if (!found) fprintf(stderr, "    card %d, %s %d: %s\n", card, what, kind, p.graph->why);
    graph_plan_close(&p);
    return found;
}

/* Both cards; on the second, to save time, the masked kinds alone: each kernel takes a second to compile. */
static int plans_that_fail(void *library) {
    cudnnStatus_t (*make)(cudnnBackendDescriptorType_t,
                          cudnnBackendDescriptor_t *) = dlsym(library, "cudnnBackendCreateDescriptor"),
                                                   (*finish)(cudnnBackendDescriptor_t) =
                                                       dlsym(library, "cudnnBackendFinalize");
    __typeof__(&cudnnBackendSetAttribute) set = dlsym(library, "cudnnBackendSetAttribute");
    int fail = 0;
    for (int i = 0; i < COUNT_OF(cards); i++) {
        cudnnBackendDescriptor_t card;
        if (make(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &card) ||
            set(card, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, (int64_t)strlen(cards[i]),
                cards[i]) ||
            finish(card)) {
            fprintf(stderr, "    card %d cannot be described like this any more\n", i);
            return 1;
        }
        for (int kind = 0; kind < 8; kind++) {
            const bool padded = kind / 2 == 1, cross = kind / 2 == 3;
            if (i == 1 && !padded) continue;
            const int64_t H = 2, D = cross ? 64 : 32, C = H * D;
            const AttentionShape s = {.B = 8,
                                      .H = H,
                                      .Tq = cross ? 21 : 47,
                                      .Tk = 47,
                                      .D = D,
                                      .ldq = 3 * C,
                                      .ldkv = padded ? C : 3 * C,
                                      .ldo = C,
                                      .backward = kind & 1,
                                      .padded = padded,
                                      .causal = kind / 2 >= 2};
            fail += !planned(cudnn_attention_plan(&s, card), i, "attention", kind);
        }
        for (int t = F32; t <= BF16; t++) {
            const ConvShape s = {64, 384, 32, 768, 0, t};
            fail += !planned(cudnn_conv_plan(&s, card), i, "patches", t);
        }
    }
    return fail;
}

/* Does it accept every attribute, and has it an engine for each kind of graph, compiled for the card? All
 * of it but the launch. In a process of its own: where there is no driver, one of the tests' own lets the
 * library load what it compiled, and nobody else may meet that. */
TEST(cudnn_real_library) {
    static const char *const files[] = {CUDNN_FILE, "/usr/local/cuda/lib64/" CUDNN_FILE};
    enum { NO_LIBRARY = 100, DRIVER }; /* exit status; else how many plans fail */
    char path[PATH_MAX];
#ifdef __SANITIZE_ADDRESS__
    test_skip("the sanitizer would report what the library itself leaks");
    return;
#endif
    fflush(NULL);
    const pid_t child = fork();
    if (!child) {
        void *library = NULL;
        for (int i = 0; i < COUNT_OF(files) && !library; i++)
            if (cudnn_open(files[i], NULL)) library = dlopen(files[i], RTLD_NOW);
        if (!library) _exit(NO_LIBRARY);
        if (dlopen("libcuda.so.1", RTLD_LAZY)) _exit(DRIVER);
        CHECK(dlopen(beside(path, "standin/libcuda.so"), RTLD_NOW | RTLD_GLOBAL), "%s", dlerror());
        printf("      cuDNN %d.%d.%d\n", (int)cudnn_version() / 10000, (int)cudnn_version() / 100 % 100,
               (int)cudnn_version() % 100);
        fflush(stdout);
        _exit(plans_that_fail(library));
    }
    int status;
    EXPECT(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status),
           "the library's process died: %d", status);
    if (WEXITSTATUS(status) == NO_LIBRARY)
        test_skip("there is no cuDNN on this machine");
    else if (WEXITSTATUS(status) == DRIVER)
        test_skip("there is a driver: cudnn_by_card asks for more");
    else
        EXPECT(WEXITSTATUS(status) == 0, "%d graphs have no plan", WEXITSTATUS(status));
}
