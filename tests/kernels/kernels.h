/* kernels.h -- one driver for the tests of all kernels: a table says what an op reads and writes, a row is a case.
 *
 * For every case kernel_check
 *   - puts each buffer at an odd address between canaries, outputs filled with NaN, gradients with numbers to add to;
 *   - runs forward and backward, compares with PyTorch's float64 values when the golden file has the case;
 *   - runs again, and with 2 and 3 threads: the same bits; in place, where the op allows it: the same bits;
 *   - asks for each gradient alone (the others NULL): the same bits;
 *   - compares the gradient with central differences of the forward along a random direction;
 *   - wants inputs and canaries untouched.
 */
#pragma once
#include "kernels/ops.h"
#include "tests/test.h"

/* A slot names its fields in order as far as they matter: {"x", X, "rC"}. */
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

#define EPS32 0x1p-24 /* half a unit in the last place of 1 */

typedef enum Role {
    NONE,
    X,       /* differentiable input */
    CONST,   /* other f32 input */
    INDEX,   /* i32 in [0, the dimension `below`) */
    MASK,    /* u8, 0 or 1 */
    Y,       /* output */
    STAT,    /* other output of the forward */
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
} Slot;

enum { MAX_SLOTS = 16 };
typedef void KernelRun(void *const *p, const int64_t *d); /* p: the slots' pointers; d: sizes */

typedef struct Kernel {
    const char *name, *dims;
    Slot slot[MAX_SLOTS];
    KernelRun *forward, *backward;
    bool in_place;   /* the first Y may be slot 0 */
    double slope;    /* error of central differences allowed, over the gradient's root of sum of squares; 0: 0.01 */
} Kernel;

/* One case. golden: the file that must hold it; NULL: random inputs, all but the comparison with PyTorch. */
void kernel_check(const Kernel *k, const int64_t *d, const char *golden);

extern const Ops *const op; /* the table under test */

/* The same numbers for the same seed: uniform in [lo, hi). */
void fill_random(float *x, int64_t n, uint64_t seed, float lo, float hi);

/* Ops that the file tests; test_ops.c walks OPS and wants every one. */
void kernels_cover(const char *ops);
#define COVERS(tag, ...)                                                                                     \
    __attribute__((constructor)) static void covers_##tag(void) { kernels_cover(#__VA_ARGS__); }
bool kernels_covered(const char *op_name);
