/* cudnn.c -- opening cuDNN, building graphs of its operations, choosing engines. See cudnn.h.
 *
 * By its backend interface: descriptors that are made, told one attribute after another, and finalised.
 * Neither the C++ frontend nor the classic calls: those know no attention.
 */
#include "kernels/cuda/cudnn.h"

#include "engine/base.h"

#include <dlfcn.h>

/* ---- the library ---------------------------------------------------------------------------------- */

static struct Calls {
#define X(name) __typeof__(&name) name;
    CUDNN_CALLS(X)
#undef X
} lib;
static void *library;
static char opened[256];
static cudnnHandle_t handles[16];

void cudnn_close(void) {
    if (!library) return;
    cudnn_forget_attention();
    cudnn_forget_conv();
    for (int i = 0; i < COUNT_OF(handles); i++)
        if (handles[i]) lib.cudnnDestroy(handles[i]);
    memset(handles, 0, sizeof handles);
    dlclose(library);
    library = NULL;
}

bool cudnn_open(const char *file, Error *e) {
    if (library && !strcmp(opened, file)) return true;
    cudnn_close();
    void *so = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (!so)
        return fail_as(
            e, FAIL_CONFIG,
            "cuDNN cannot be opened: %s (is cuDNN 9 installed, and its folder in LD_LIBRARY_PATH?)",
            dlerror());
    const char *missing = NULL;
#define X(name)                                                                                              \
    if (!(*(void **)&lib.name = dlsym(so, #name))) missing = #name;
    CUDNN_CALLS(X)
#undef X
    const size_t version = missing ? 0 : lib.cudnnGetVersion();
    if (version < CUDNN_OLDEST || version >= 100000) {
        dlclose(so);
        if (missing) return fail_as(e, FAIL_CONFIG, "%s is not a cuDNN 9: it has no %s", file, missing);
        return fail_as(e, FAIL_CONFIG, "%s is cuDNN %zu.%zu.%zu; %d.%d or a newer 9 is needed", file,
                       version / 10000, version / 100 % 100, version % 100, CUDNN_OLDEST / 10000,
                       CUDNN_OLDEST / 100 % 100);
    }
    library = so;
    snprintf(opened, sizeof opened, "%s", file);
    return true;
}

int64_t cudnn_version(void) { return library ? (int64_t)lib.cudnnGetVersion() : 0; }

const char *cudnn_path(void) {
    Dl_info found;
    return library && dladdr(*(void **)&lib.cudnnGetVersion, &found) ? found.dli_fname : opened;
}

#define CUDNN_CHECK(call) cudnn_check((call), #call, __LINE__)
static void cudnn_check(cudnnStatus_t status, const char *call, int line) {
    if (status == CUDNN_STATUS_SUCCESS) return;
    char more[256] = "";
    lib.cudnnGetLastErrorString(more, sizeof more);
    die(FAIL_OTHER, "%s:%d: %s: %s (%s)", __FILE__, line, call, lib.cudnnGetErrorString(status), more);
}

bool cudnn_use_card(int card, Error *e) {
    CHECK(card < COUNT_OF(handles), "card %d", card);
    const cudnnStatus_t status = handles[card] ? CUDNN_STATUS_SUCCESS : lib.cudnnCreate(&handles[card]);
    if (status == CUDNN_STATUS_SUCCESS) return true;
    char more[256] = "";
    lib.cudnnGetLastErrorString(more, sizeof more);
    handles[card] = NULL;
    return fail_as(e, FAIL_CONFIG, "cuDNN cannot use graphics card %d: %s (%s)", card,
                   lib.cudnnGetErrorString(status), more);
}

static cudnnHandle_t handle(int card) {
    CHECK(card < COUNT_OF(handles), "card %d", card);
    if (!handles[card]) CUDNN_CHECK(lib.cudnnCreate(&handles[card]));
    return handles[card];
}

/* ---- descriptors ---------------------------------------------------------------------------------- */

/* Keeps the first complaint. True: there is one. */
static bool complains(Graph *g, cudnnStatus_t status, const char *what) {
    if (status != CUDNN_STATUS_SUCCESS && !*g->why) {
        char more[200] = "";
        lib.cudnnGetLastErrorString(more, sizeof more);
        snprintf(g->why, sizeof g->why, "%s: %s%s%s", what, lib.cudnnGetErrorString(status),
                 *more ? ", " : "", more);
    }
    return *g->why;
}

static cudnnBackendDescriptor_t make(Graph *g, cudnnBackendDescriptorType_t type) {
    cudnnBackendDescriptor_t d = NULL;
    if (*g->why) return NULL;
    CHECK(g->nmade < GRAPH_DESCRIPTORS, "a graph of more than %d descriptors", GRAPH_DESCRIPTORS);
    if (complains(g, lib.cudnnBackendCreateDescriptor(type, &d), "a descriptor")) return NULL;
    return g->made[g->nmade++] = d;
}

static void set(Graph *g, cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                cudnnBackendAttributeType_t type, int64_t n, const void *value) {
    char what[32];
    snprintf(what, sizeof what, "attribute %d", (int)name);
    if (!*g->why) complains(g, lib.cudnnBackendSetAttribute(d, name, type, n, value), what);
}
static void set_descriptor(Graph *g, cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                           cudnnBackendDescriptor_t value) {
    set(g, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}
static void set_type(Graph *g, cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                     cudnnDataType_t type) {
    set(g, d, name, CUDNN_TYPE_DATA_TYPE, 1, &type);
}

static void finalize(Graph *g, cudnnBackendDescriptor_t d, const char *what) {
    if (!*g->why) complains(g, lib.cudnnBackendFinalize(d), what);
}

/* ---- nodes ---------------------------------------------------------------------------------------- */

static Node node(Graph *g, int64_t id, cudnnDataType_t type, const int64_t dim[4], const int64_t stride[4],
                 bool is_virtual, bool is_number) {
    const int64_t alignment = 16;
    Node n = {.tensor = make(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR), .type = type};
    memcpy(n.dim, dim, sizeof n.dim);
    memcpy(n.stride, stride, sizeof n.stride);
    set_type(g, n.tensor, CUDNN_ATTR_TENSOR_DATA_TYPE, type);
    set(g, n.tensor, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dim);
    set(g, n.tensor, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, stride);
    set(g, n.tensor, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id);
    set(g, n.tensor, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    if (is_virtual) set(g, n.tensor, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual);
    if (is_number) set(g, n.tensor, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &is_number);
    finalize(g, n.tensor, "a tensor");
    return n;
}

Node graph_tensor(Graph *g, int64_t id, cudnnDataType_t type, const int64_t dim[4], const int64_t stride[4]) {
    return node(g, id, type, dim, stride, false, false);
}

Node graph_number(Graph *g, int64_t id, cudnnDataType_t type) {
    static const int64_t one[4] = {1, 1, 1, 1};
    return node(g, id, type, one, one, false, true);
}

Node graph_virtual_strided(Graph *g, cudnnDataType_t type, const int64_t dim[4], const int64_t stride[4]) {
    return node(g, 1000 + g->last_id++, type, dim, stride, true, false);
}

Node graph_virtual(Graph *g, cudnnDataType_t type, int64_t d0, int64_t d1, int64_t d2, int64_t d3) {
    return graph_virtual_strided(g, type, (int64_t[]){d0, d1, d2, d3},
                                 (int64_t[]){d1 * d2 * d3, d2 * d3, d3, 1});
}

/* ---- operations ----------------------------------------------------------------------------------- */

static void operation(Graph *g, cudnnBackendDescriptor_t op, const char *what) {
    finalize(g, op, what);
    CHECK(g->nops < GRAPH_OPERATIONS, "a graph of more than %d operations", GRAPH_OPERATIONS);
    g->op[g->nops++] = op;
}

static void pointwise(Graph *g, cudnnPointwiseMode_t mode, cudnnDataType_t compute, int64_t axis,
                      const Node *x, const Node *b, const Node *t, const Node *y) {
    char what[32];
    snprintf(what, sizeof what, "pointwise operation %d", (int)mode);
    cudnnBackendDescriptor_t how = make(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    set(g, how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    set_type(g, how, CUDNN_ATTR_POINTWISE_MATH_PREC, compute);
    if (axis >= 0) set(g, how, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &axis);
    finalize(g, how, what);
    cudnnBackendDescriptor_t op = make(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x->tensor);
    if (b) set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b->tensor);
    if (t) set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, t->tensor);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y->tensor);
    operation(g, op, what);
}

void graph_pointwise(Graph *g, cudnnPointwiseMode_t mode, cudnnDataType_t compute, const Node *x,
                     const Node *b, const Node *t, const Node *y) {
    pointwise(g, mode, compute, -1, x, b, t, y);
}

void graph_index(Graph *g, int64_t axis, const Node *x, const Node *y) {
    pointwise(g, CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_INT32, axis, x, NULL, NULL, y);
}

void graph_matmul(Graph *g, const Node *a, const Node *b, const Node *c, const Node *m, const Node *n,
                  const Node *k) {
    cudnnBackendDescriptor_t how = make(g, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    set_type(g, how, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_DATA_FLOAT);
    finalize(g, how, "a product");
    cudnnBackendDescriptor_t op = make(g, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a->tensor);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b->tensor);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_MATMUL_CDESC, c->tensor);
    if (m) set_descriptor(g, op, CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, m->tensor);
    if (n) set_descriptor(g, op, CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, n->tensor);
    if (k) set_descriptor(g, op, CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, k->tensor);
    operation(g, op, "a product");
}

void graph_reduce(Graph *g, cudnnReduceTensorOp_t how, const Node *x, const Node *y) {
    cudnnBackendDescriptor_t d = make(g, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    set(g, d, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &how);
    set_type(g, d, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_DATA_FLOAT);
    finalize(g, d, "a reduction");
    cudnnBackendDescriptor_t op = make(g, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_REDUCTION_DESC, d);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x->tensor);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y->tensor);
    operation(g, op, "a reduction");
}

void graph_reshape(Graph *g, const Node *x, const Node *y) {
    cudnnBackendDescriptor_t op = make(g, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x->tensor);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y->tensor);
    operation(g, op, "a transposition");
}

void graph_convolve(Graph *g, const Node *x, const Node *w, const Node *y, int64_t stride) {
    const cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
    const int64_t spatial = 2, strides[2] = {stride, stride}, none[2] = {0, 0}, one[2] = {1, 1};
    const float alpha = 1, beta = 0;
    cudnnBackendDescriptor_t how = make(g, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
    set_type(g, how, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_DATA_FLOAT);
    set(g, how, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
    set(g, how, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &spatial);
    set(g, how, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, one);
    set(g, how, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, strides);
    set(g, how, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, none);
    set(g, how, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, none);
    finalize(g, how, "a convolution");
    cudnnBackendDescriptor_t op = make(g, CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, how);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, x->tensor);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, w->tensor);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, y->tensor);
    set(g, op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_TYPE_FLOAT, 1, &alpha);
    set(g, op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, CUDNN_TYPE_FLOAT, 1, &beta);
    operation(g, op, "a convolution");
}

/* ---- plans ---------------------------------------------------------------------------------------- */

/* Whether the engine of a configuration gives the same bits in every run, in the arithmetic that is wanted;
 * its number. */
static bool engine_fits(Graph *g, cudnnBackendDescriptor_t config, Arithmetic how, int64_t *number) {
    cudnnBackendNumericalNote_t note[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
    int64_t n = 0;
    cudnnBackendDescriptor_t engine = make(g, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    if (lib.cudnnBackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                                     &n, &engine) != CUDNN_STATUS_SUCCESS ||
        lib.cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &n,
                                     number) != CUDNN_STATUS_SUCCESS ||
        lib.cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                                     COUNT_OF(note), &n, note) != CUDNN_STATUS_SUCCESS)
        return false;
    for (int64_t i = 0; i < n; i++)
        if (note[i] == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC ||
            (how == NO_TENSOR_CORES && (note[i] == CUDNN_NUMERICAL_NOTE_TENSOR_CORE ||
                                        note[i] == CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS)))
            return false;
    return true;
}

/* Makes the first configuration that fits and can be made ready the plan. */
static bool try_configs(GraphPlan *p, cudnnBackendDescriptor_t heuristic, Arithmetic how, int card,
                        cudnnBackendDescriptor_t card_like) {
    enum { MOST = 16 };
    Graph *g = p->graph;
    cudnnBackendDescriptor_t config[MOST];
    int64_t n = 0;
    for (int i = 0; i < MOST; i++) config[i] = make(g, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    if (*g->why ||
        lib.cudnnBackendGetAttribute(heuristic, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                     MOST, &n, config) != CUDNN_STATUS_SUCCESS)
        return false;
    for (int64_t i = 0; i < MIN(n, MOST); i++) {
        if (!engine_fits(g, config[i], how, &p->engine)) continue;
        cudnnBackendDescriptor_t plan = make(g, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
        set_descriptor(g, plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config[i]);
        if (card_like)
            set_descriptor(g, plan, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, card_like);
        else
            set(g, plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1,
                &(cudnnHandle_t){handle(card)});
        finalize(g, plan, "a plan");
        int64_t bytes = 0, one;
        if (!*g->why &&
            !complains(g,
                       lib.cudnnBackendGetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
                                                    CUDNN_TYPE_INT64, 1, &one, &bytes),
                       "the size of the workspace")) {
            p->plan = plan;
            p->workspace = (size_t)bytes;
            return true;
        }
        *g->why = 0; /* the next may do */
    }
    return false;
}

GraphPlan graph_plan(Graph *g, Arithmetic how, int card, cudnnBackendDescriptor_t card_like) {
    static const cudnnBackendHeurMode_t modes[] = {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK};
    GraphPlan p = {.graph = g};
    cudnnBackendDescriptor_t whole = make(g, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set(g, whole, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, g->nops, g->op);
    if (!card_like && !*g->why)
        set(g, whole, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &(cudnnHandle_t){handle(card)});
    finalize(g, whole, "the graph");
    for (int i = 0; i < COUNT_OF(modes) && !*g->why && !p.found; i++) {
        cudnnBackendDescriptor_t heuristic = make(g, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
        set_descriptor(g, heuristic, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, whole);
        set(g, heuristic, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &modes[i]);
        if (card_like) set_descriptor(g, heuristic, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, card_like);
        finalize(g, heuristic, "the choice of engines");
        if (!*g->why)
            p.found = try_configs(&p, heuristic, how, card, card_like);
        else if (i == 0)
            *g->why = 0; /* this way of asking has none */
    }
    if (!p.found && !*g->why)
        snprintf(g->why, sizeof g->why,
                 "no engine has this graph as a kernel that gives the same bits in every run");
    return p;
}

void graph_plan_close(GraphPlan *p) {
    for (int i = p->graph ? p->graph->nmade : 0; i-- > 0;)
        lib.cudnnBackendDestroyDescriptor(p->graph->made[i]);
    free(p->graph);
    *p = (GraphPlan){0};
}

void graph_run(Stream *s, const GraphPlan *p, const Binding *b, int n, void *workspace) {
    int64_t id[GRAPH_TENSORS];
    void *address[GRAPH_TENSORS];
    cudnnBackendDescriptor_t pack;
    CHECK(p->found && n <= GRAPH_TENSORS, "%d tensors, plan %d", n, p->found);
    for (int i = 0; i < n; i++) id[i] = b[i].id, address[i] = b[i].p;
    const cudnnHandle_t h = handle(STREAM_CARD(s));
    CUDNN_CHECK(lib.cudnnSetStream(h, STREAM_QUEUE(s)));
    CUDNN_CHECK(lib.cudnnBackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack));
    CUDNN_CHECK(
        lib.cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, n, id));
    CUDNN_CHECK(lib.cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR,
                                             n, address));
    CUDNN_CHECK(lib.cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1,
                                             &workspace));
    CUDNN_CHECK(lib.cudnnBackendFinalize(pack));
    CUDNN_CHECK(lib.cudnnBackendExecute(h, p->plan, pack));
    CUDNN_CHECK(lib.cudnnBackendDestroyDescriptor(pack));
}
