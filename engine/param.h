/* param.h -- the parameters of one module: flat buffers with named views.
 *
 * Names are the checkpoint's (Hugging Face's). Declare all, then params_alloc; values, gradients and
 * the two moments are four flat f32 buffers, so that the optimizer is one launch and a checkpoint one
 * write. A set that computes in bf16 keeps a rounded copy of the values beside them, which is all that
 * bf16 activations ever meet: training, saving and sums over ranks stay f32. Projections that a kernel
 * wants as one matrix (query, key, value) are declared together and lie side by side: three named
 * tensors, one fused view. Next: nn.h, optim.h.
 */
#pragma once
#include "data/safetensors.h"
#include "engine/tensor.h"

typedef enum ParamKind {
    PARAM_WEIGHT,    /* matrix (out, in): normal, std 1/sqrt(in) or the config's initializer_range; decayed */
    PARAM_EMBEDDING, /* table (n, C) or vector: normal; decayed */
    PARAM_BIAS,      /* 0; not decayed */
    PARAM_GAIN,      /* 1 (norm weights); not decayed */
} ParamKind;

typedef struct Param {
    const char *name;
    ParamKind kind;
    Tensor t;
    int64_t at, n;   /* place in the flat buffers, in values */
    float lr_scale;  /* times the run's learning rate; 0: frozen */
    bool scalar;     /* the checkpoint's shape is (), ours (1) */
    float init_value; /* PARAM_BIAS: the constant it starts from */
} Param;

typedef struct ParamView { Tensor *t; int64_t at; } ParamView;

typedef struct ParamSet {
    Arena *arena;    /* host memory of names and structs */
    Param **param;
    int n;
    int64_t cap, total; /* capacity of param; values in the flat buffers, gaps included */
    ParamView *view;
    int64_t nviews, view_cap;
    Device *dev;
    Arena memory;    /* device memory of the buffers */
    float *value, *grad, *m, *v; /* grad, m, v NULL for a frozen set */
    uint16_t *value16; /* a set that computes in bf16: value, rounded; else NULL */
    bool changed;    /* value was written, value16 not yet */
    int64_t lo, hi;  /* m and v are those of values lo .. hi: of all, unless each rank keeps a share (run.shard_optimizer) */
    int64_t step;    /* updates made: AdamW's bias correction */
    struct Lora *lora; /* where the adapters of its layers are declared (lora.h); NULL: they get none */
} ParamSet;

void params_open(ParamSet *ps, Arena *host);
void params_close(ParamSet *ps);
/* Declares one parameter; the tensor's data appears with params_alloc. `name` is printf-formatted. */
Param *param_new(ParamSet *ps, ParamKind kind, int ndim, const int64_t *shape, const char *name, ...)
    __attribute__((format(printf, 5, 6)));
#define PARAM(ps, kind, shape_, ...)                                                                         \
    (&param_new((ps), (kind), (int)(sizeof((int64_t[])UNPAREN shape_) / sizeof(int64_t)),                    \
                (int64_t[])UNPAREN shape_, __VA_ARGS__)->t)
#define UNPAREN(...) {__VA_ARGS__}
/* `count` parameters of equal shape side by side, as one tensor with count times the rows. names[i] goes after prefix. */
Tensor *param_fused(ParamSet *ps, ParamKind kind, int count, int ndim, const int64_t *shape, const char *prefix,
                    const char *const *names, const char *suffix);
/* Rows first .. first+n of a fused tensor, as a tensor of its own with its own gradient place. */
Tensor *param_rows(ParamSet *ps, const Tensor *fused, int64_t first, int64_t n);
/* A parameter's values as a (rows, rest) matrix: a convolution's kernel (out, 3, p, p) is a linear layer on patches. */
Tensor *param_matrix(ParamSet *ps, const Tensor *t, int64_t rows);

/* Allocates the buffers (zeroed). type: what the module computes in. trained: with gradients and moments. */
void params_alloc(ParamSet *ps, Device *dev, DType type, bool trained);
/* To be called by whoever writes values, other than the optimizer's kernel, which writes both types; and before a forward,
 * which then sees them in bf16, too. */
void params_changed(ParamSet *ps);
void params_refresh(ParamSet *ps);
/* Draws initial values; a function of (seed, name) alone. std > 0: that for all weights and embeddings (Hugging
 * Face's initializer_range); std 0: 1/sqrt(fan in) for weights and 0.5 for embeddings. A network 64 to 128 wide learns
 * shapes ten times sooner with the latter: at 0.02 its attention starts out as a plain mean. */
void params_init(ParamSet *ps, uint64_t seed, float std);
/* Copies values from an open file. Lists ALL missing, extra and misshaped tensors (with the expected shape) in one error.
 * ignored: a name suffix to skip, such as "position_ids", or NULL. */
bool params_load(ParamSet *ps, const SafeTensors *st, const char *path, Error *e);
/* Starts a larger network from a smaller one's weights, which then computes (nearly) the same: equal shapes are copied, the
 * position embeddings of a square image grid are interpolated, and of blocks that only the larger has, what `silent` names (a
 * NULL-ended list of substrings: the output projections) becomes 0, so that they begin as the identity. The rest keeps its
 * drawn values. Returns how many tensors were taken. Source: net2net's deepening (Chen et al. 2016) for residual blocks. */
int params_grow(ParamSet *ps, const SafeTensors *st, const char *const *silent);
/* Writes the named values as safetensors, atomically. */
bool params_save(const ParamSet *ps, const char *path, Error *e);
/* Moments and step, exactly. The loader wants the same parameter names and shapes. Where each rank keeps a share, rank 0 saves
 * and all others send; a file does not tell how many ranks there were. */
bool params_save_moments(const ParamSet *ps, const char *path, Error *e);
void params_send_moments(const ParamSet *ps);
bool params_load_moments(ParamSet *ps, const char *path, Error *e);
/* What only frozen parameters (lr_scale 0) are seen through gets no gradient from now on. */
void params_stop_frozen(ParamSet *ps);
void params_zero_grad(ParamSet *ps);
/* Gradients are added to `grad` (total values) from now on. ps->grad stays what the optimizer reads. */
void params_grad_at(ParamSet *ps, float *grad);
/* Of all values, to be compared between ranks. */
uint64_t params_hash(const ParamSet *ps);
/* Multiplies initial values: for a module's init. */
void param_scale(ParamSet *ps, Tensor *t, float factor);
Param *param_find(const ParamSet *ps, const char *name);
int64_t params_count(const ParamSet *ps); /* values, without gaps */
