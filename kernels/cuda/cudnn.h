/* cudnn.h -- cuDNN: the library, opened when it is chosen and never linked, and graphs of its operations.
 * Implemented in cudnn.c.
 *
 * cuDNN 9 computes graphs. A node is a tensor: in memory (a number names it when the graph runs), or
 * virtual: between two operations of one kernel, never in memory. The library looks for an engine that has
 * the whole graph as one kernel; a plan is that engine, made ready. Next: attention_cudnn.c, conv.c.
 */
#pragma once
#include "kernels/cuda/stream.h"
#include "kernels/ops.h"

#include <cudnn_graph.h>

/* ---- the library ---------------------------------------------------------------------------------- */

/* clang-format off */
#define CUDNN_CALLS(X)                                                                                       \
    X(cudnnGetVersion) X(cudnnGetErrorString) X(cudnnGetLastErrorString) X(cudnnCreate) X(cudnnDestroy)      \
    X(cudnnSetStream) X(cudnnBackendCreateDescriptor) X(cudnnBackendDestroyDescriptor)                       \
    X(cudnnBackendSetAttribute) X(cudnnBackendGetAttribute) X(cudnnBackendFinalize) X(cudnnBackendExecute)
/* clang-format on */

/* 9.16: before it, the backward wanted a padding mask whenever Tk was no multiple of 128. */
enum { CUDNN_OLDEST = 91600 };

/* Opens a file as the library, in place of what was open; false: it is not there, too old or too new, and e
 * says so. CUDNN_FILE is what everybody but tests opens, and opening it again is nothing. */
#define CUDNN_FILE "libcudnn.so.9"
bool cudnn_open(const char *file, Error *e);
/* Whether it can use this card: opens it there. False: it says why. */
bool cudnn_use_card(int card, Error *e);
/* Lets go of plans, handles and the library. */
void cudnn_close(void);
/* Of the one that is open: its number, 91900 for 9.19.0; its file. */
int64_t cudnn_version(void);
const char *cudnn_path(void);

/* ---- graphs --------------------------------------------------------------------------------------- */

typedef struct Node {
    cudnnBackendDescriptor_t tensor;
    cudnnDataType_t type;
    int64_t dim[4], stride[4]; /* in values; all graphs here have four dimensions */
} Node;

enum { GRAPH_DESCRIPTORS = 400, GRAPH_OPERATIONS = 40 };

/* What is said of it below is checked by the library as it comes. The first complaint is kept, and what
 * follows does nothing: the graph then has no plan. */
typedef struct Graph {
    cudnnBackendDescriptor_t made[GRAPH_DESCRIPTORS], op[GRAPH_OPERATIONS];
    int nmade, nops;
    int64_t last_id; /* of virtual nodes */
    char why[320];
} Graph;

/* A tensor in memory, called id (below 1000, each once). */
Node graph_tensor(Graph *g, int64_t id, cudnnDataType_t type, const int64_t dim[4], const int64_t stride[4]);
/* One number; the host's, at the address given when the graph is run. */
Node graph_number(Graph *g, int64_t id, cudnnDataType_t type);
/* Without gaps; or with strides of its own. */
Node graph_virtual(Graph *g, cudnnDataType_t type, int64_t d0, int64_t d1, int64_t d2, int64_t d3);
Node graph_virtual_strided(Graph *g, cudnnDataType_t type, const int64_t dim[4], const int64_t stride[4]);
/* y = mode(x, b, t), b and t may be NULL; dimensions of 1 repeat. compute: the type in which. */
void graph_pointwise(Graph *g, cudnnPointwiseMode_t mode, cudnnDataType_t compute, const Node *x,
                     const Node *b, const Node *t, const Node *y);
/* y = the index of each of its places along `axis`; x is of its shape. */
void graph_index(Graph *g, int64_t axis, const Node *x, const Node *y);
/* c (.., M, N) = a (.., M, K) b (.., K, N). m, n, k, or NULL: of each batch (int32, (B,1,1,1)), how much of
 * M, N, K there is. */
void graph_matmul(Graph *g, const Node *a, const Node *b, const Node *c, const Node *m, const Node *n,
                  const Node *k);
/* y = reduction of x along the dimensions that are 1 in y. */
void graph_reduce(Graph *g, cudnnReduceTensorOp_t how, const Node *x, const Node *y);
/* y is x seen with other dimensions and strides: here, its last two exchanged. */
void graph_reshape(Graph *g, const Node *x, const Node *y);
/* y (N,K,P,Q) = x (N,C,H,W) * w (K,C,R,S), every `stride` pixels of either side. */
void graph_convolve(Graph *g, const Node *x, const Node *w, const Node *y, int64_t stride);

/* ---- plans ---------------------------------------------------------------------------------------- */

typedef struct GraphPlan {
    Graph *graph; /* owned */
    cudnnBackendDescriptor_t plan;
    size_t workspace; /* bytes */
    int64_t engine;   /* the library's number of it */
    bool found;       /* false: graph->why says why not */
} GraphPlan;

/* What must hold of an engine. Always: the same bits in every run. */
typedef enum Arithmetic { AS_IT_LIKES, NO_TENSOR_CORES /* f32 stays f32 */ } Arithmetic;

/* Takes g over. For card `card`; or, with `card_like`, for one that is described by a finalised
 * CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR and need not be there: such a plan cannot be run here. */
GraphPlan graph_plan(Graph *g, Arithmetic how, int card, cudnnBackendDescriptor_t card_like);
void graph_plan_close(GraphPlan *p);

enum { GRAPH_TENSORS = 20 };
typedef struct Binding {
    int64_t id;
    void *p; /* device memory, 16-byte aligned; of a number the host's */
} Binding;
/* Queues it on s; numbers are read at once. workspace: p->workspace bytes of device memory, 256-byte
 * aligned. */
void graph_run(Stream *s, const GraphPlan *p, const Binding *b, int n, void *workspace);

/* ---- who uses them -------------------------------------------------------------------------------- */

/* attention_cudnn.c: ops.h's attention, by our own kernels where the library has none. Whether it has, for
 * one fused projection in bf16. */
attention_fwd_fn cudnn_attention_fwd;
attention_bwd_fn cudnn_attention_bwd;
bool cudnn_has_attention(Stream *s, bool backward, bool masked, bool causal, int B, int H, int T, int D);
/* conv.c: y (B, grid, grid, C) = x (B, side, side, 3) * w (C, patch, patch, 3), stride `patch`. Whether the
 * library has it. */
bool cudnn_has_patches(Stream *s, DType t, int64_t B, int64_t side, int64_t patch, int64_t C);
void cudnn_patches(Stream *s, DType t, void *y, const void *x, const void *w, int64_t B, int64_t side,
                   int64_t patch, int64_t C);

/* Called by cudnn_close: plans that somebody keeps. */
void cudnn_forget_attention(void);
void cudnn_forget_conv(void);
