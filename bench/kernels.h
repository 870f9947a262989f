/* kernels.h -- the kernel bench: what a row says of an operation. kernels.c measures, kernels/<family>.c has
 * the rows.
 *
 * A row (Case) lists the operation's operands as slots. From them follow the memory that is laid out and
 * filled, and the LEAST BYTES that the operation can move: what is read once, what is written once, what is
 * added to read and written. `want` is the operation again as a plain loop in double for one value of one
 * slot: it is compared with a sample of what the kernel wrote. Every slot holds numbers of its own (a
 * kernel's other inputs are not made by another kernel), so rows stand alone.
 */
#pragma once
#include <math.h>

#include "bench/bench.h"
#include "kernels/ops.h"

/* A network's shape, of which a table is made: rows = B T tokens. B on the CPU and on a card; 0: not
 * there. */
typedef struct Shape {
    const char *model;
    int B[2];
    int T, C, H, mlp;   /* tokens, width, heads, width of the MLP */
    int V;              /* answers */
    int words;          /* of its text embedding; 0: no text */
    int text;           /* tokens of a text */
    int patch, image;   /* 0: no images */
    int Q, D;           /* patches that a detector scores, width of its class embedding; 0: no detector */
    int64_t parameters; /* of one optimizer step; 0: told elsewhere */
    bool causal, masked, attention_alone;
} Shape;

enum {
    SLOTS = 8,
    PATTERN = 65521 /* values after which a slot repeats: prime, so that no stride of ours meets it */
};
typedef enum Role { READ, WRITE, ADD } Role;               /* ADD: read and written */
typedef enum Kind { TENSOR, REAL, INDEX, MASK, RAW } Kind; /* the row's format, f32, i32, u8, bytes */
typedef struct Slot {
    Role role;
    Kind kind;
    int64_t n;
    double lo,
        hi; /* the numbers in it; INDEX: lo <= value < hi; MASK: of each hi values the last quarter is 0 */
} Slot;
#define T_IN(n, lo, hi)                                                                                      \
    { READ, TENSOR, (n), (lo), (hi) }
#define T_OUT(n)                                                                                             \
    { WRITE, TENSOR, (n), 0, 0 }
#define T_ADD(n)                                                                                             \
    { ADD, TENSOR, (n), 0, 1 }
#define F_IN(n, lo, hi)                                                                                      \
    { READ, REAL, (n), (lo), (hi) }
#define F_OUT(n)                                                                                             \
    { WRITE, REAL, (n), 0, 0 }
#define F_ADD(n)                                                                                             \
    { ADD, REAL, (n), 0, 1 }
#define I_IN(n, below)                                                                                       \
    { READ, INDEX, (n), 0, (below) }
#define M_IN(n, group)                                                                                       \
    { READ, MASK, (n), 0, (group) }

typedef struct Table Table;
typedef struct Case Case;
typedef struct Library Library; /* library.c: a primitive of oneDNN with its operands */

struct Case {
    const char *op, *what; /* the operation of ops.h; which of its calls, or "" */
    const Shape *s;
    Slot slot[SLOTS];
    double flops;       /* two per multiply-add of its products; 0: memory alone limits it */
    double bytes;       /* the least, where the slots do not say it */
    int64_t B, M, N, K; /* as the family likes */
    bool ta, tb, add;
    bool f32_only;
    int terms;    /* additions in the longest sum behind one value: each may round once */
    double extra; /* a relative error beside these: a format within the kernel */
    int samples;  /* values looked at in each slot; 0: 256 */
    void (*run)(Table *t, const Case *c, void *const *p);
    /* What the call must make of value i of slot k, which was value(c, k, i); *size: the sum of the
     * magnitudes of what was added up. */
    double (*want)(const Case *c, int k, int64_t i, double *size);
    int (*wrong)(Table *t, const Case *c,
                 void *const *p); /* instead of want: how many values are wrong after one run */
    Library *(*library)(const Case *c, void *const *p); /* the CPU's library baseline */
    void (*library_card)(Table *t, const Case *c, void *const *p);
    void (*choose_card)(Table *t, Case *c); /* puts another library_card there, if that library is */
    const char *library_name, *library_card_name;
    char shape[24];
    DType t; /* from here on set by kernels.c */
    float *pattern[SLOTS];
};

struct Table {
    Device *dev; /* NULL: rows are only listed */
    const Ops *k;
    Stream *s;
    DType t;
    bool cuda;
    int batch; /* instead of the shape's; 0: the shape's */
    const Shape *shape;
    void (*list)(void *arg, const Case *c);
    void *list_arg;
    /* Private to kernels.c. */
    const Config *cfg;
    char *const *word;
    int nwords;
    Report report;
    Peak peak;
    char *pool;
    size_t room;
    int64_t rows, wrong_rows, left_out;
    bool headed;
};

/* One row: lists it, or measures and prints it when it was asked for. */
void bench_row(Table *t, Case c, const char *shape_format, ...) __attribute__((format(printf, 3, 4)));

/* The rows of each family for t->shape. */
void rows_gemm(Table *t);
void rows_elementwise(Table *t);
void rows_norm(Table *t);
void rows_softmax(Table *t);
void rows_attention(Table *t);
void rows_embed(Table *t);
void rows_image(Table *t);
void rows_boxes(Table *t);
void rows_loss(Table *t);
void rows_optim(Table *t);

/* Calls list(arg, c) for every row that the table has on this kind of device. */
void bench_kernels_list(bool cuda, void (*list)(void *arg, const Case *c), void *arg);

/* What a card reaches: a copy within it, a large product by cuBLASLt in this format; mb: of memory for
 * both, 0: a gigabyte. */
Peak bench_card_peak(Device *d, DType type, int mb);

/* ---- for the families ----------------------------------------------------------------------------- */

static inline int64_t shape_batch(const Table *t) { return t->batch ? t->batch : t->shape->B[t->cuda]; }
static inline int64_t shape_rows(const Table *t) { return shape_batch(t) * t->shape->T; }

/* Value i of slot k before the call; of an INDEX or MASK slot. */
static inline double value(const Case *c, int k, int64_t i) { return (double)c->pattern[k][i % PATTERN]; }
static inline int64_t index_at(const Case *c, int k, int64_t i) {
    const int64_t lo = (int64_t)c->slot[k].lo;
    return lo + (i * 7919 + i / 61) % ((int64_t)c->slot[k].hi - lo);
}
static inline bool mask_at(const Case *c, int k, int64_t i) {
    const int64_t group = (int64_t)c->slot[k].hi;
    return i % group < group - group / 4;
}

/* The i-th of n positions to look at among `count`: the ends, and others that follow no stride. */
int64_t sample_at(int i, int64_t count);
/* n values of a slot from device memory. */
double device_value(Table *t, const Case *c, void *const *p, int k, int64_t i);

/* A function of one operation: RUN(gelu_fwd, p[0], p[1], c->N) calls the table's gelu_fwd of the row's
 * format. */
#define RUN(name, ...)                                                                                       \
    static void run_##name(Table *t, const Case *c, void *const *p) {                                        \
        (void)c;                                                                                             \
        t->k->name(t->s, t->t, __VA_ARGS__);                                                                 \
    }
#define WANT(name) static double want_##name(const Case *c, int k, int64_t i, double *size)
#define IN(k, i)   value(c, k, i)

/* gelu's tanh form. */
static inline double gelu_tanh(double x) {
    return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
static inline double gelu_tanh_slope(double x) {
    const double th = tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x));
    return 0.5 * (1 + th) + 0.5 * x * (1 - th * th) * sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
}

/* ---- oneDNN on the CPU (library.c) ---------------------------------------------------------------- */

typedef enum Eltwise { ELT_GELU, ELT_GELU_TANH, ELT_QUICK_GELU, ELT_ELU, ELT_TANH, ELT_SIGMOID } Eltwise;
/* x (n) to y; or dx = dy f'(x), tanh and sigmoid from y. */
Library *library_eltwise(Eltwise f, bool backward, void *out, void *x, void *dy, int64_t n);
Library *library_binary(bool product, void *y, void *a, void *b, int64_t n);
Library *library_layernorm(bool backward, void *out, void *mean, void *var, void *x, void *dy, void *gamma,
                           void *beta, void *dgamma, void *dbeta, int64_t rows, int64_t C);
Library *library_softmax(bool backward, void *out, void *x, void *dy, int64_t rows, int64_t C);
/* C = op(A) op(B) (+ C when add) + bias, batch times; ta, tb, sizes as in ops.h. */
Library *library_matmul(void *C, void *A, void *B, void *bias, bool ta, bool tb, bool add, int64_t M,
                        int64_t N, int64_t K);
Library *library_column_sums(void *out, void *x, int64_t rows, int64_t C);
Library *library_cast(void *out, void *x, bool to_bf16, int64_t n);
void library_run(Library *l);
void library_close(Library *l);
