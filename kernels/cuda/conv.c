/* conv.c -- the patch embedding as a convolution by cuDNN: the benchmark's baseline for the product that
 * does it here.
 *
 * A convolution whose stride is its kernel's size sees each pixel once: it is the product of (patches, 3
 * patch^2) with the weight. Here pixels never exist as an image tensor: image_patches crops, resizes,
 * normalises and writes them as rows of patches in one pass, and the product of these rows is cuBLASLt's
 * (gemm.c). To convolve them training would first have to write an image, and gain nothing. So this is no
 * alternative that a configuration picks; `bench kernels` has it beside gemm's patches row, on images of as
 * many values, channels last: what a network that starts from image tensors would do.
 */
#include "engine/base.h"
#include "kernels/cuda/cudnn.h"

enum { X = 1, W, Y };

typedef struct ConvShape {
    int64_t B, side, patch, C;
    int32_t card, t;
} ConvShape;

/* y (B, grid, grid, C) = x (B, side, side, 3) * w (C, patch, patch, 3), every `patch` pixels; channels last
 * in memory. */
GraphPlan cudnn_conv_plan(const ConvShape *s, cudnnBackendDescriptor_t card_like) {
    Graph *g = xcalloc(1, sizeof *g);
    const cudnnDataType_t t = s->t == F32 ? CUDNN_DATA_FLOAT : CUDNN_DATA_BFLOAT16;
    const int64_t n = s->side, p = s->patch, grid = n / p;
    const Node x = graph_tensor(g, X, t, (int64_t[]){s->B, 3, n, n}, (int64_t[]){3 * n * n, 1, 3 * n, 3}),
               w = graph_tensor(g, W, t, (int64_t[]){s->C, 3, p, p}, (int64_t[]){3 * p * p, 1, 3 * p, 3}),
               y = graph_tensor(g, Y, t, (int64_t[]){s->B, s->C, grid, grid},
                                (int64_t[]){s->C * grid * grid, 1, s->C * grid, s->C});
    graph_convolve(g, &x, &w, &y, p);
    return graph_plan(g, s->t == F32 ? NO_TENSOR_CORES : AS_IT_LIKES, s->card, card_like);
}

static ConvShape kept_shape; /* a benchmark runs one shape many times */
static GraphPlan kept;

void cudnn_forget_conv(void) {
    graph_plan_close(&kept);
    memset(&kept_shape, 0, sizeof kept_shape);
}

static const GraphPlan *plan_for(Stream *s, DType t, int64_t B, int64_t side, int64_t patch, int64_t C) {
    const ConvShape shape = {B, side, patch, C, STREAM_CARD(s), t};
    if (memcmp(&shape, &kept_shape, sizeof shape)) {
        cudnn_forget_conv();
        kept_shape = shape;
        kept = cudnn_conv_plan(&shape, NULL);
    }
    return &kept;
}

bool cudnn_has_patches(Stream *s, DType t, int64_t B, int64_t side, int64_t patch, int64_t C) {
    return plan_for(s, t, B, side, patch, C)->found;
}

void cudnn_patches(Stream *s, DType t, void *y, const void *x, const void *w, int64_t B, int64_t side,
                   int64_t patch, int64_t C) {
    const GraphPlan *p = plan_for(s, t, B, side, patch, C);
    graph_run(s, p, (Binding[]){{X, (void *)x}, {W, (void *)w}, {Y, y}}, 3,
              cuda_scratch(s, MAX(p->workspace, 1)));
}
