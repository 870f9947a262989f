/* kernels.h -- one driver for the tests of all kernels: a table says what an op reads and writes, a row is a case, and every
 * case runs on every device there is: cpu, emu (the CUDA kernels compiled for the host), and cuda when the binary has it and
 * the machine a card.
 *
 * For every case kernel_check
 *   - puts each buffer between canaries at an address aligned for its values and for nothing more, and once more in memory of
 *     its exact size, aligned to 16 bytes (vector accesses); outputs filled with NaN, gradients with numbers to add to;
 *   - runs forward and backward, compares with PyTorch's float64 values when the golden file has the case, else with the CPU;
 *   - runs again, on the CPU with 2 and 3 threads (not what a library computes), on emu in other orders of
 *     warps and blocks: the same bits; in place, where
 *     the op allows it: the same bits; asks for each gradient alone (the others NULL): the same bits, but for
 *     an op that says otherwise;
 *   - on the CPU compares the gradient with central differences of the forward along a random direction;
 *   - wants inputs and canaries untouched;
 *   - repeats all this with bf16 tensors, against the CPU's f32 on the same rounded inputs.
 *
 * Tests by hand pass host arrays through IN and IO:
 *   RUN(op->softmax_fwd(S, F32, IO(y), IN((float[]){0, 1}), 1, 2));
 */
#pragma once
#include "kernels/ops.h"
#include "tests/test.h"

/* A slot names its fields in order as far as they matter: {"x", X, "rC"}. */
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

#define EPS32 0x1p-24 /* half a unit in the last place of 1 */
#define EPS16 0x1p-8  /* the same of bf16 */

/* ---- devices -------------------------------------------------------------------------------------- */

/* The device under test, NULL outside a DEVICE_TEST. Its ops are `op`, its stream S, and tensors have type dt: F32, or BF16 while kernel_check says so. */
extern Device *dev;
extern DType dt;
#define op (dev->ops)
#define S  (dev->main)

/* A test that runs on every device, as "name [cpu]", "name [emu]", "name [cuda]": `build/cpu/test emu` runs all of one. */
typedef enum DeviceId { CPU, EMU, CUDA_CARD, NDEVICES } DeviceId;
void device_test_register(const char *file, const char *name, TestFn *on[NDEVICES]);
void device_test_run(DeviceId id, TestFn *body);
#define DEVICE_TEST(name)                                                                                    \
    static void test_##name(void);                                                                           \
    static void name##_on_cpu(void) { device_test_run(CPU, test_##name); }                                   \
    static void name##_on_emu(void) { device_test_run(EMU, test_##name); }                                   \
    static void name##_on_cuda(void) { device_test_run(CUDA_CARD, test_##name); }                            \
    __attribute__((constructor)) static void register_##name(void) {                                         \
        device_test_register(__FILE__, #name, (TestFn *[]){name##_on_cpu, name##_on_emu, name##_on_cuda});   \
    }                                                                                                        \
    static void test_##name(void)

/* A copy of the variable (array, compound literal) in device memory, until RUN ends. IN: it must come out unchanged. IO: the
 * variable then gets what is there. The _N forms take a pointer and a size in bytes. */
#define IN(...) mirror((void *)&(__VA_ARGS__), sizeof(__VA_ARGS__), false)
#define IO(...) mirror(&(__VA_ARGS__), sizeof(__VA_ARGS__), true)
#define IN_N(p, bytes) mirror((void *)(p), (bytes), false)
#define IO_N(p, bytes) mirror((p), (bytes), true)
void *mirror(void *host, size_t bytes, bool out);
#define RUN(...)                                                                                             \
    do {                                                                                                     \
        __VA_ARGS__;                                                                                         \
        mirror_fetch(__FILE__, __LINE__);                                                                    \
    } while (0)
void mirror_fetch(const char *file, int line);

/* ---- tables --------------------------------------------------------------------------------------- */

typedef enum Role {
    NONE,
    X,       /* differentiable input */
    CONST,   /* other input, always f32 */
    INDEX,   /* i32 in [0, the dimension `below`) */
    MASK,    /* u8, 0 or 1 */
    Y,       /* output */
    STAT,    /* other output of the forward, always f32 */
    DY,      /* gradient of the first Y */
    DX,      /* gradient that the backward adds to */
    WRITTEN, /* gradient of sum(y) that the forward writes: losses */
} Role;

typedef struct Slot {
    const char *name; /* also in the golden file */
    Role role;
    const char *shape; /* letters of Kernel.dims; a digit is itself */
    float lo, hi;      /* range of random values; 0, 0: [-1, 1] */
    char below;        /* INDEX */
    double bound;      /* outputs: worst error in units of EPS32 times the largest magnitude */
    int of;            /* DX, WRITTEN: the slot whose gradient it is */
    bool f32;          /* f32 also when tensors are bf16: parameters of norms, biases, rows of losses */
    double bf16;       /* outputs: roundings to bf16 inside the op, in units of EPS16 times the largest magnitude, at least 1 */
} Slot;

enum { MAX_SLOTS = 16 };
typedef void KernelRun(void *const *p, const int64_t *d); /* p: the slots' pointers; d: sizes */

typedef struct Kernel {
    const char *name, *dims;
    Slot slot[MAX_SLOTS];
    KernelRun *forward, *backward;
    bool in_place;   /* the first Y may be slot 0 */
    bool only_f32, only_bf16; /* the op has no other form */
    bool together;   /* a gradient alone may have other last bits: it is compared, not held to the same */
    bool library;    /* in bf16 oneDNN may compute it, whose bits depend on the threads: one alone */
    double slope;    /* error of central differences allowed, over the gradient's root of sum of squares; 0: 0.01 */
} Kernel;

/* One case. golden: the file that must hold it; NULL: random inputs, compared with the CPU's result. */
void kernel_check(const Kernel *k, const int64_t *d, const char *golden);

/* The same numbers for the same seed: uniform in [lo, hi). */
void fill_random(float *x, int64_t n, uint64_t seed, float lo, float hi);

/* Ops that the file tests; test_ops.c walks OPS and wants every one. */
void kernels_cover(const char *ops);
#define COVERS(tag, ...)                                                                                     \
    __attribute__((constructor)) static void covers_##tag(void) { kernels_cover(#__VA_ARGS__); }
bool kernels_covered(const char *op_name);
