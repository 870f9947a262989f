/* standin.c -- cuDNN's calls on host memory, as a library that is opened like the real one. See
 * cudnn_graph.h.
 *
 * Every attribute must be one that its descriptor has, of that type and number, set before it is finalised;
 * whoever refers to a descriptor finds it finalised and alive. A graph must be closed: a virtual tensor has
 * one operation that makes it and some that read it, shapes fit, numbers are unique. When it runs, exactly
 * its tensors in memory are there, aligned. Then every operation is done in double, one after the other,
 * straight from the descriptors: dimensions, strides, types. It knows nothing of attention; which graphs
 * the real library has a kernel for only that can say (test_cudnn.c).
 *
 * What a padded product leaves unsaid, rows and columns beyond the sequence, is NaN here, and so is what
 * nobody wrote.
 */
#include "tests/cudnn/cudnn_graph.h"

#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ATTRIBUTES = 12, TENSORS = 80, OPERATIONS = 48, ENGINES = 3, FIRST_ENGINE = 11, WORKSPACE = 1000 };

Standin cudnn_standin = {.version = 91900};
#define S cudnn_standin

typedef struct Attribute {
    int name, type;
    int64_t n;
    void *value;
} Attribute;

typedef struct Descriptor {
    int kind, nattributes, engine;
    bool final, alive;
    Attribute attribute[ATTRIBUTES];
} Descriptor;

struct cudnnContext {
    cudaStream_t stream;
};

/* ---- what each descriptor has --------------------------------------------------------------------- */

/* clang-format off */
static const struct Rule { int kind, name, type, least, most; bool optional; } rules[] = {
#define RULE(kind, name, type, least, most, optional)                                                        \
    {CUDNN_BACKEND_##kind##_DESCRIPTOR, CUDNN_ATTR_##name, CUDNN_TYPE_##type, least, most, optional},
    RULE(TENSOR, TENSOR_DATA_TYPE, DATA_TYPE, 1, 1, false)
    RULE(TENSOR, TENSOR_DIMENSIONS, INT64, 4, 4, false)
    RULE(TENSOR, TENSOR_STRIDES, INT64, 4, 4, false)
    RULE(TENSOR, TENSOR_UNIQUE_ID, INT64, 1, 1, false)
    RULE(TENSOR, TENSOR_BYTE_ALIGNMENT, INT64, 1, 1, false)
    RULE(TENSOR, TENSOR_IS_VIRTUAL, BOOLEAN, 1, 1, true)
    RULE(TENSOR, TENSOR_IS_BY_VALUE, BOOLEAN, 1, 1, true)
    RULE(POINTWISE, POINTWISE_MODE, POINTWISE_MODE, 1, 1, false)
    RULE(POINTWISE, POINTWISE_MATH_PREC, DATA_TYPE, 1, 1, false)
    RULE(POINTWISE, POINTWISE_AXIS, INT64, 1, 1, true)
    RULE(OPERATION_POINTWISE, OPERATION_POINTWISE_PW_DESCRIPTOR, BACKEND_DESCRIPTOR, 1, 1, false)
    RULE(OPERATION_POINTWISE, OPERATION_POINTWISE_XDESC, BACKEND_DESCRIPTOR, 1, 1, false)
    RULE(OPERATION_POINTWISE, OPERATION_POINTWISE_BDESC, BACKEND_DESCRIPTOR, 1, 1, true)
    RULE(OPERATION_POINTWISE, OPERATION_POINTWISE_TDESC, BACKEND_DESCRIPTOR, 1, 1, true)
    RULE(OPERATION_POINTWISE, OPERATION_POINTWISE_YDESC, BACKEND_DESCRIPTOR, 1, 1, false)
    RULE(MATMUL, MATMUL_COMP_TYPE, DATA_TYPE, 1, 1, false)
    RULE(OPERATION_MATMUL, OPERATION_MATMUL_DESC, BACKEND_DESCRIPTOR, 1, 1, false)
    RULE(OPERATION_MATMUL, OPERATION_MATMUL_ADESC, BACKEND_DESCRIPTOR, 1, 1, false)
    RULE(OPERATION_MATMUL, OPERATION_MATMUL_BDESC, BACKEND_DESCRIPTOR, 1, 1, false)
    RULE(OPERATION_MATMUL, OPERATION_MATMUL_CDESC, BACKEND_DESCRIPTOR, 1, 1, false)
    RULE(OPERATION_MATMUL, OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, BACKEND_DESCRIPTOR, 1, 1, true)
    RULE(OPERATION_MATMUL, OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, BACKEND_DESCRIPTOR, 1, 1, true)
    RULE(OPERATION_MATMUL, OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, BACKEND_DESCRIPTOR, 1, 1, true)
    RULE(REDUCTION, REDUCTION_OPERATOR, REDUCTION_OPERATOR_TYPE, 1, 1, false)
    RULE(REDUCTION, REDUCTION_COMP_TYPE, DATA_TYPE, 1, 1, false)
    RULE(OPERATION_REDUCTION, OPERATION_REDUCTION_DESC, BACKEND_DESCRIPTOR, 1, 1, false)
    RULE(OPERATION_REDUCTION, OPERATION_REDUCTION_XDESC, BACKEND_DESCRIPTOR, 1, 1, false)
    RULE(OPERATION_REDUCTION, OPERATION_REDUCTION_YDESC, BACKEND_DESCRIPTOR, 1, 1, false)
    RULE(OPERATION_RESHAPE, OPERATION_RESHAPE_XDESC, BACKEND_DESCRIPTOR, 1, 1, false)
    RULE(OPERATION_RESHAPE, OPERATION_RESHAPE_YDESC, BACKEND_DESCRIPTOR, 1, 1, false)
    RULE(CONVOLUTION, CONVOLUTION_COMP_TYPE, DATA_TYPE, 1, 1, false)
    RULE(CONVOLUTION, CONVOLUTION_CONV_MODE, CONVOLUTION_MODE, 1, 1, false)
    RULE(CONVOLUTION, CONVOLUTION_SPATIAL_DIMS, INT64, 1, 1, false)
    RULE(CONVOLUTION, CONVOLUTION_DILATIONS, INT64, 2, 2, false)
    RULE(CONVOLUTION, CONVOLUTION_FILTER_STRIDES, INT64, 2, 2, false)
    RULE(CONVOLUTION, CONVOLUTION_PRE_PADDINGS, INT64, 2, 2, false)
    RULE(CONVOLUTION, CONVOLUTION_POST_PADDINGS, INT64, 2, 2, false)
    RULE(OPERATION_CONVOLUTION_FORWARD, OPERATION_CONVOLUTION_FORWARD_CONV_DESC, BACKEND_DESCRIPTOR, 1, 1,
         false)
    RULE(OPERATION_CONVOLUTION_FORWARD, OPERATION_CONVOLUTION_FORWARD_X, BACKEND_DESCRIPTOR, 1, 1, false)
    RULE(OPERATION_CONVOLUTION_FORWARD, OPERATION_CONVOLUTION_FORWARD_W, BACKEND_DESCRIPTOR, 1, 1, false)
    RULE(OPERATION_CONVOLUTION_FORWARD, OPERATION_CONVOLUTION_FORWARD_Y, BACKEND_DESCRIPTOR, 1, 1, false)
    RULE(OPERATION_CONVOLUTION_FORWARD, OPERATION_CONVOLUTION_FORWARD_ALPHA, FLOAT, 1, 1, false)
    RULE(OPERATION_CONVOLUTION_FORWARD, OPERATION_CONVOLUTION_FORWARD_BETA, FLOAT, 1, 1, false)
    RULE(OPERATIONGRAPH, OPERATIONGRAPH_OPS, BACKEND_DESCRIPTOR, 1, OPERATIONS, false)
    RULE(OPERATIONGRAPH, OPERATIONGRAPH_HANDLE, HANDLE, 1, 1, false)
    RULE(ENGINEHEUR, ENGINEHEUR_OPERATION_GRAPH, BACKEND_DESCRIPTOR, 1, 1, false)
    RULE(ENGINEHEUR, ENGINEHEUR_MODE, HEUR_MODE, 1, 1, false)
    RULE(EXECUTION_PLAN, EXECUTION_PLAN_ENGINE_CONFIG, BACKEND_DESCRIPTOR, 1, 1, false)
    RULE(EXECUTION_PLAN, EXECUTION_PLAN_HANDLE, HANDLE, 1, 1, false)
    RULE(VARIANT_PACK, VARIANT_PACK_UNIQUE_IDS, INT64, 1, TENSORS, false)
    RULE(VARIANT_PACK, VARIANT_PACK_DATA_POINTERS, VOID_PTR, 1, TENSORS, false)
    RULE(VARIANT_PACK, VARIANT_PACK_WORKSPACE, VOID_PTR, 1, 1, false)
    /* ours: what a configuration is of */
    {CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, -1, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, 1, false},
};
/* clang-format on */
enum { NRULES = (int)(sizeof rules / sizeof *rules) };

static size_t size_of(int type) {
    switch (type) {
    case CUDNN_TYPE_HANDLE:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_BACKEND_DESCRIPTOR:
    case CUDNN_TYPE_INT64:
        return 8;
    case CUDNN_TYPE_BOOLEAN:
    case CUDNN_TYPE_CHAR:
        return 1;
    default:
        return 4;
    }
}

static cudnnStatus_t complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static cudnnStatus_t complain(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    if (!*S.complaint) vsnprintf(S.complaint, sizeof S.complaint, fmt, ap);
    va_end(ap);
    return CUDNN_STATUS_BAD_PARAM;
}
#define WANT(cond, ...)                                                                                      \
    do {                                                                                                     \
        if (!(cond)) return complain(__VA_ARGS__);                                                           \
    } while (0)

static Attribute *find(Descriptor *d, int name) {
    for (int i = 0; i < d->nattributes; i++)
        if (d->attribute[i].name == name) return &d->attribute[i];
    return NULL;
}
static Descriptor *descriptor_of(Descriptor *d, int name) {
    Attribute *a = find(d, name);
    return a ? *(Descriptor **)a->value : NULL;
}
static int int_of(Descriptor *d, int name) { return *(int *)find(d, name)->value; }
static const int64_t *int64s_of(Descriptor *d, int name) { return find(d, name)->value; }
static bool flag_of(Descriptor *d, int name) {
    Attribute *a = find(d, name);
    return a && *(char *)a->value;
}

#define DIM(t)      int64s_of(t, CUDNN_ATTR_TENSOR_DIMENSIONS)
#define STRIDE(t)   int64s_of(t, CUDNN_ATTR_TENSOR_STRIDES)
#define ID(t)       (*int64s_of(t, CUDNN_ATTR_TENSOR_UNIQUE_ID))
#define TYPE(t)     int_of(t, CUDNN_ATTR_TENSOR_DATA_TYPE)
#define VIRTUAL(t)  flag_of(t, CUDNN_ATTR_TENSOR_IS_VIRTUAL)
#define BY_VALUE(t) flag_of(t, CUDNN_ATTR_TENSOR_IS_BY_VALUE)

/* ---- operations: what they read and make ---------------------------------------------------------- */

/* Reads up to 5 tensors; the last of the list is what it makes. */
static const struct Kind {
    int kind, how, in[6], out;
} kinds[] = {
    {CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR,
     CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR,
     {CUDNN_ATTR_OPERATION_POINTWISE_XDESC, CUDNN_ATTR_OPERATION_POINTWISE_BDESC,
      CUDNN_ATTR_OPERATION_POINTWISE_TDESC},
     CUDNN_ATTR_OPERATION_POINTWISE_YDESC},
    {CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR,
     CUDNN_ATTR_OPERATION_MATMUL_DESC,
     {CUDNN_ATTR_OPERATION_MATMUL_ADESC, CUDNN_ATTR_OPERATION_MATMUL_BDESC,
      CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC,
      CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC},
     CUDNN_ATTR_OPERATION_MATMUL_CDESC},
    {CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR,
     CUDNN_ATTR_OPERATION_REDUCTION_DESC,
     {CUDNN_ATTR_OPERATION_REDUCTION_XDESC},
     CUDNN_ATTR_OPERATION_REDUCTION_YDESC},
    {CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR,
     0,
     {CUDNN_ATTR_OPERATION_RESHAPE_XDESC},
     CUDNN_ATTR_OPERATION_RESHAPE_YDESC},
    {CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
     CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
     {CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W},
     CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y},
};

static const struct Kind *kind_of(Descriptor *d) {
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (kinds[i].kind == d->kind) return &kinds[i];
    return NULL;
}

static int64_t count(Descriptor *t) { return DIM(t)[0] * DIM(t)[1] * DIM(t)[2] * DIM(t)[3]; }

static bool repeats_to(Descriptor *x, Descriptor *y) {
    for (int i = 0; i < 4; i++)
        if (DIM(x)[i] != DIM(y)[i] && DIM(x)[i] != 1) return false;
    return true;
}

/* Different places are at different addresses. */
static bool spread(Descriptor *t) {
    bool seen[4] = {0};
    int64_t reach = 0; /* of the dimensions so far */
    for (int k = 0; k < 4; k++) {
        int least = -1;
        for (int i = 0; i < 4; i++)
            if (!seen[i] && (least < 0 || STRIDE(t)[i] < STRIDE(t)[least] ||
                             (STRIDE(t)[i] == STRIDE(t)[least] && DIM(t)[i] < DIM(t)[least])))
                least = i;
        seen[least] = true;
        if (DIM(t)[least] > 1 && STRIDE(t)[least] <= reach) return false;
        reach += (DIM(t)[least] - 1) * STRIDE(t)[least];
    }
    return true;
}

static cudnnStatus_t check_tensor(Descriptor *t) {
    const int type = TYPE(t);
    WANT(type == CUDNN_DATA_FLOAT || type == CUDNN_DATA_INT32 || type == CUDNN_DATA_BFLOAT16 ||
             type == CUDNN_DATA_BOOLEAN,
         "tensor of type %d", type);
    for (int i = 0; i < 4; i++)
        WANT(DIM(t)[i] > 0 && STRIDE(t)[i] > 0, "tensor %ld: dimension %d is %ld, stride %ld", (long)ID(t), i,
             (long)DIM(t)[i], (long)STRIDE(t)[i]);
    WANT(*int64s_of(t, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT) == 16, "tensor %ld: alignment", (long)ID(t));
    WANT(!VIRTUAL(t) || !BY_VALUE(t), "tensor %ld is virtual and a number", (long)ID(t));
    WANT(!BY_VALUE(t) || count(t) == 1, "tensor %ld is a number of %ld values", (long)ID(t), (long)count(t));
    WANT(spread(t), "tensor %ld: strides overlap", (long)ID(t));
    return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t check_pointwise(Descriptor *op, Descriptor *how, Descriptor *in[], Descriptor *y) {
    (void)op;
    const int mode = int_of(how, CUDNN_ATTR_POINTWISE_MODE);
    const bool binary = mode == CUDNN_POINTWISE_ADD || mode == CUDNN_POINTWISE_MUL ||
                        mode == CUDNN_POINTWISE_DIV || mode == CUDNN_POINTWISE_SUB ||
                        mode == CUDNN_POINTWISE_CMP_GE || mode == CUDNN_POINTWISE_CMP_LT ||
                        mode == CUDNN_POINTWISE_LOGICAL_AND,
               unary = mode == CUDNN_POINTWISE_EXP || mode == CUDNN_POINTWISE_LOG ||
                       mode == CUDNN_POINTWISE_GEN_INDEX,
               select = mode == CUDNN_POINTWISE_BINARY_SELECT,
               truth = mode == CUDNN_POINTWISE_CMP_GE || mode == CUDNN_POINTWISE_CMP_LT ||
                       mode == CUDNN_POINTWISE_LOGICAL_AND;
    WANT(binary || unary || select, "pointwise operation %d", mode);
    WANT(!!in[1] == (binary || select) && !!in[2] == select, "pointwise operation %d: number of inputs",
         mode);
    for (int i = 0; i < 3; i++)
        WANT(!in[i] || repeats_to(in[i], y), "pointwise operation %d: shape of input %d", mode, i);
    WANT(truth == (TYPE(y) == CUDNN_DATA_BOOLEAN), "pointwise operation %d makes type %d", mode, TYPE(y));
    WANT(!select || TYPE(in[2]) == CUDNN_DATA_BOOLEAN, "selects by type %d", TYPE(in[2]));
    WANT((mode == CUDNN_POINTWISE_GEN_INDEX) == !!find(how, CUDNN_ATTR_POINTWISE_AXIS),
         "pointwise operation %d: axis", mode);
    WANT(mode != CUDNN_POINTWISE_GEN_INDEX || TYPE(y) == CUDNN_DATA_INT32, "an index of type %d", TYPE(y));
    WANT(mode != CUDNN_POINTWISE_LOGICAL_AND ||
             (TYPE(in[0]) == CUDNN_DATA_BOOLEAN && TYPE(in[1]) == CUDNN_DATA_BOOLEAN),
         "and of no truths");
    return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t check_operation(Descriptor *op) {
    const struct Kind *k = kind_of(op);
    Descriptor *how = k->how ? descriptor_of(op, k->how) : NULL, *in[6] = {0}, *y = descriptor_of(op, k->out);
    for (int i = 0; k->in[i]; i++) in[i] = descriptor_of(op, k->in[i]);
    for (int i = 0; i < 6; i++)
        WANT(!in[i] || in[i]->kind == CUDNN_BACKEND_TENSOR_DESCRIPTOR, "operand %d is no tensor", i);
    WANT(y->kind == CUDNN_BACKEND_TENSOR_DESCRIPTOR && !BY_VALUE(y), "result is no tensor");
    if (op->kind == CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR) return check_pointwise(op, how, in, y);
    if (op->kind == CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR) {
        const int64_t *a = DIM(in[0]), *b = DIM(in[1]), *c = DIM(y);
        WANT(a[0] == c[0] && b[0] == c[0] && a[1] == c[1] && b[1] == c[1] && a[2] == c[2] && b[3] == c[3] &&
                 a[3] == b[2],
             "product of (%ld,%ld) and (%ld,%ld) to (%ld,%ld)", (long)a[2], (long)a[3], (long)b[2],
             (long)b[3], (long)c[2], (long)c[3]);
        for (int i = 2; i < 5; i++)
            WANT(!in[i] || (TYPE(in[i]) == CUDNN_DATA_INT32 && DIM(in[i])[0] == c[0] && count(in[i]) == c[0]),
                 "lengths of a product: %d", i);
    } else if (op->kind == CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR) {
        WANT(repeats_to(y, in[0]) && count(y) < count(in[0]) + (DIM(in[0])[3] == 1), "reduction of nothing");
    } else if (op->kind == CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR) {
        WANT(count(in[0]) == count(y), "reshape of %ld values to %ld", (long)count(in[0]), (long)count(y));
    } else {
        const int64_t *x = DIM(in[0]), *w = DIM(in[1]), *o = DIM(y),
                      *stride = int64s_of(how, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES);
        WANT(*int64s_of(how, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS) == 2 &&
                 int_of(how, CUDNN_ATTR_CONVOLUTION_CONV_MODE) == CUDNN_CROSS_CORRELATION,
             "a convolution of another kind");
        for (int i = 0; i < 2; i++)
            WANT(int64s_of(how, CUDNN_ATTR_CONVOLUTION_DILATIONS)[i] == 1 &&
                     int64s_of(how, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS)[i] == 0 &&
                     int64s_of(how, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS)[i] == 0 &&
                     o[2 + i] == (x[2 + i] - w[2 + i]) / stride[i] + 1,
                 "convolution along side %d", i);
        WANT(x[0] == o[0] && x[1] == w[1] && w[0] == o[1], "channels of a convolution");
    }
    return CUDNN_STATUS_SUCCESS;
}

/* Every tensor of a graph, each once. */
typedef struct Whole {
    Descriptor *tensor[TENSORS];
    bool made[TENSORS], read[TENSORS];
    int n;
} Whole;

static int index_of(Whole *w, Descriptor *t) {
    for (int i = 0; i < w->n; i++)
        if (w->tensor[i] == t) return i;
    w->tensor[w->n] = t;
    return w->n++;
}

static cudnnStatus_t check_graph(Descriptor *g, Whole *w) {
    Attribute *ops = find(g, CUDNN_ATTR_OPERATIONGRAPH_OPS);
    memset(w, 0, sizeof *w);
    for (int64_t i = 0; i < ops->n; i++) {
        Descriptor *op = ((Descriptor **)ops->value)[i];
        const struct Kind *k = kind_of(op);
        WANT(k && w->n + 6 < TENSORS, "operation %ld of the graph", (long)i);
        for (int j = 0; k->in[j]; j++)
            if (find(op, k->in[j])) w->read[index_of(w, descriptor_of(op, k->in[j]))] = true;
        const int y = index_of(w, descriptor_of(op, k->out));
        WANT(!w->made[y], "tensor %ld is made twice", (long)ID(w->tensor[y]));
        w->made[y] = true;
    }
    for (int i = 0; i < w->n; i++) {
        Descriptor *t = w->tensor[i];
        WANT(!VIRTUAL(t) || (w->made[i] && w->read[i]), "virtual tensor %ld: made %d, read %d", (long)ID(t),
             w->made[i], w->read[i]);
        for (int j = 0; j < i; j++)
            WANT(ID(w->tensor[j]) != ID(t), "two tensors are called %ld", (long)ID(t));
    }
    return CUDNN_STATUS_SUCCESS;
}

/* ---- the calls ------------------------------------------------------------------------------------ */

size_t cudnnGetVersion(void) { return S.version; }
const char *cudnnGetErrorString(cudnnStatus_t status) {
    return status == CUDNN_STATUS_BAD_PARAM ? "a bad parameter" : "an error";
}
void cudnnGetLastErrorString(char *message, size_t size) { snprintf(message, size, "%s", S.complaint); }

cudnnStatus_t cudnnCreate(cudnnHandle_t *handle) {
    *handle = calloc(1, sizeof **handle);
    S.alive++;
    return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) {
    free(handle);
    S.alive--;
    return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
    handle->stream = stream;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t *out) {
    Descriptor *d = *out = calloc(1, sizeof *d);
    *d = (Descriptor){.kind = type, .alive = true};
    S.alive++;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor) {
    Descriptor *d = descriptor;
    for (int i = 0; i < d->nattributes; i++) free(d->attribute[i].value);
    d->alive = false;
    free(d);
    S.alive--;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t n, const void *value) {
    Descriptor *d = descriptor;
    const struct Rule *r = NULL;
    WANT(d && d->alive && !d->final, "attribute %d of a descriptor that is finalised", name);
    for (int i = 0; i < NRULES && !r; i++)
        if (rules[i].kind == d->kind && rules[i].name == name) r = &rules[i];
    WANT(r, "a descriptor of kind %d has no attribute %d", d->kind, name);
    WANT(type == r->type && n >= r->least && n <= r->most, "attribute %d: %ld of type %d", name, (long)n,
         type);
    WANT(!find(d, name) && d->nattributes < ATTRIBUTES, "attribute %d is set twice", name);
    const size_t bytes = (size_t)n * size_of(type);
    Attribute *a = &d->attribute[d->nattributes++];
    *a = (Attribute){name, type, n, malloc(bytes)};
    memcpy(a->value, value, bytes);
    for (int64_t i = 0; type == CUDNN_TYPE_BACKEND_DESCRIPTOR && i < n; i++) {
        const Descriptor *other = ((Descriptor **)value)[i];
        WANT(other && other->alive && other->final, "attribute %d is a descriptor that is not finalised",
             name);
    }
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t descriptor) {
    Descriptor *d = descriptor;
    Whole whole;
    WANT(d && d->alive && !d->final, "finalised twice");
    for (int i = 0; i < NRULES; i++)
        WANT(rules[i].kind != d->kind || rules[i].optional || find(d, rules[i].name),
             "a descriptor of kind %d without attribute %d", d->kind, rules[i].name);
    cudnnStatus_t status = CUDNN_STATUS_SUCCESS;
    if (d->kind == CUDNN_BACKEND_TENSOR_DESCRIPTOR)
        status = check_tensor(d);
    else if (kind_of(d))
        status = check_operation(d);
    else if (d->kind == CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR)
        status = check_graph(d, &whole);
    else if (d->kind == CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)
        WANT(find(d, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS)->n ==
                 find(d, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS)->n,
             "names and addresses");
    d->final = status == CUDNN_STATUS_SUCCESS;
    return status;
}

/* Three engines: one whose bits change from run to run, one on tensor cores, one plain. */
cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t wanted, int64_t *n,
                                       void *value) {
    static const cudnnBackendNumericalNote_t notes[ENGINES][2] = {
        {CUDNN_NUMERICAL_NOTE_TENSOR_CORE, CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC},
        {CUDNN_NUMERICAL_NOTE_TENSOR_CORE, -1},
        {-1, -1}};
    Descriptor *d = descriptor;
    WANT(d && d->alive && d->final, "attribute %d is asked of a descriptor that is not finalised", name);
    if (d->kind == CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR && name == CUDNN_ATTR_ENGINEHEUR_RESULTS &&
        type == CUDNN_TYPE_BACKEND_DESCRIPTOR) {
        Descriptor *graph = descriptor_of(d, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
        *n = S.refuses ? 0 : ENGINES;
        for (int64_t i = 0; i < *n && i < wanted; i++) {
            Descriptor *config = ((Descriptor **)value)[i];
            if (cudnnBackendSetAttribute(config, -1, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &graph))
                return CUDNN_STATUS_BAD_PARAM;
            config->engine = FIRST_ENGINE + (int)i;
            config->final = true;
        }
    } else if (d->kind == CUDNN_BACKEND_ENGINECFG_DESCRIPTOR && name == CUDNN_ATTR_ENGINECFG_ENGINE &&
               type == CUDNN_TYPE_BACKEND_DESCRIPTOR) {
        Descriptor *engine = *(Descriptor **)value;
        engine->engine = d->engine;
        engine->final = true;
        *n = 1;
    } else if (d->kind == CUDNN_BACKEND_ENGINE_DESCRIPTOR && name == CUDNN_ATTR_ENGINE_GLOBAL_INDEX &&
               type == CUDNN_TYPE_INT64) {
        *(int64_t *)value = d->engine;
        *n = 1;
    } else if (d->kind == CUDNN_BACKEND_ENGINE_DESCRIPTOR && name == CUDNN_ATTR_ENGINE_NUMERICAL_NOTE &&
               type == CUDNN_TYPE_NUMERICAL_NOTE) {
        for (*n = 0; *n < 2 && *n < wanted && notes[d->engine - FIRST_ENGINE][*n] >= 0; ++*n)
            ((cudnnBackendNumericalNote_t *)value)[*n] = notes[d->engine - FIRST_ENGINE][*n];
    } else if (d->kind == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR &&
               name == CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE && type == CUDNN_TYPE_INT64) {
        *(int64_t *)value = WORKSPACE;
        *n = 1;
    } else {
        return complain("attribute %d of type %d is asked of kind %d", name, type, d->kind);
    }
    return CUDNN_STATUS_SUCCESS;
}

/* ---- the operations ------------------------------------------------------------------------------- */

typedef struct Run {
    Descriptor *graph;
    void *address[TENSORS];
    double number[TENSORS];
    void *workspace;
} Run;

static double read_value(int type, const void *p, int64_t at) {
    switch (type) {
    case CUDNN_DATA_FLOAT:
        return (double)((const float *)p)[at];
    case CUDNN_DATA_INT32:
        return ((const int32_t *)p)[at];
    default: {
        const uint32_t bits = (uint32_t)((const uint16_t *)p)[at] << 16;
        float f;
        memcpy(&f, &bits, sizeof f);
        return (double)f;
    }
    }
}

static void write_value(int type, void *p, int64_t at, double x) {
    const float f = (float)x;
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    if (type == CUDNN_DATA_FLOAT)
        ((float *)p)[at] = f;
    else
        ((uint16_t *)p)[at] = isnan(f) ? 0x7FFF : (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

typedef int64_t Place[4];

static void place_of(Place i, const int64_t *dim, int64_t at) {
    for (int k = 3; k >= 0; k--) i[k] = at % dim[k], at /= dim[k];
}
static int64_t offset_of(const Place i, const int64_t *stride) {
    return i[0] * stride[0] + i[1] * stride[1] + i[2] * stride[2] + i[3] * stride[3];
}

/* The value of x at place i of a shape that it repeats to. */
static double at_place(Descriptor *t, const double *x, const Place i) {
    const int64_t *d = DIM(t);
    int64_t at = 0;
    for (int k = 0; k < 4; k++) at = at * d[k] + (d[k] == 1 ? 0 : i[k]);
    return x[at];
}

static double pointwise(int mode, int64_t axis, const Place i, double x, double b, double t) {
    switch (mode) {
    case CUDNN_POINTWISE_ADD:
        return x + b;
    case CUDNN_POINTWISE_SUB:
        return x - b;
    case CUDNN_POINTWISE_MUL:
        return x * b;
    case CUDNN_POINTWISE_DIV:
        return x / b;
    case CUDNN_POINTWISE_EXP:
        return exp(x);
    case CUDNN_POINTWISE_LOG:
        return log(x);
    case CUDNN_POINTWISE_CMP_GE:
        return x >= b;
    case CUDNN_POINTWISE_CMP_LT:
        return x < b;
    case CUDNN_POINTWISE_LOGICAL_AND:
        return x != 0 && b != 0;
    case CUDNN_POINTWISE_GEN_INDEX:
        return (double)i[axis];
    default:
        return t != 0 ? x : b;
    }
}

static void run_matmul(Descriptor *in[], double *const v[], Descriptor *out, double *y) {
    const int64_t *d = DIM(out), K = DIM(in[0])[3];
    for (int64_t at = 0; at < count(out); at++) {
        Place i;
        place_of(i, d, at);
        const double m = in[2] ? v[2][i[0]] : (double)d[2], n = in[3] ? v[3][i[0]] : (double)d[3],
                     k = in[4] ? v[4][i[0]] : (double)K;
        double sum = 0;
        for (int64_t j = 0; j < K && (double)j < k; j++)
            sum += at_place(in[0], v[0], (Place){i[0], i[1], i[2], j}) *
                   at_place(in[1], v[1], (Place){i[0], i[1], j, i[3]});
        y[at] = (double)i[2] < m && (double)i[3] < n ? sum : NAN;
    }
}

static void run_operation(Descriptor *op, Descriptor *in[], double *const v[], Descriptor *out, double *y) {
    const struct Kind *k = kind_of(op);
    Descriptor *how = k->how ? descriptor_of(op, k->how) : NULL;
    Place i;
    if (op->kind == CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR) {
        run_matmul(in, v, out, y);
    } else if (op->kind == CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR) {
        const int mode = int_of(how, CUDNN_ATTR_POINTWISE_MODE);
        const int64_t axis =
            find(how, CUDNN_ATTR_POINTWISE_AXIS) ? *int64s_of(how, CUDNN_ATTR_POINTWISE_AXIS) : 0;
        for (int64_t at = 0; at < count(out); at++) {
            place_of(i, DIM(out), at);
            y[at] = pointwise(mode, axis, i, at_place(in[0], v[0], i), in[1] ? at_place(in[1], v[1], i) : 0,
                              in[2] ? at_place(in[2], v[2], i) : 0);
        }
    } else if (op->kind == CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR) {
        const bool most = int_of(how, CUDNN_ATTR_REDUCTION_OPERATOR) == CUDNN_REDUCE_TENSOR_MAX;
        for (int64_t at = 0; at < count(out); at++) y[at] = most ? -INFINITY : 0;
        for (int64_t at = 0; at < count(in[0]); at++) {
            place_of(i, DIM(in[0]), at);
            int64_t to = 0;
            for (int d = 0; d < 4; d++) to = to * DIM(out)[d] + (DIM(out)[d] == 1 ? 0 : i[d]);
            y[to] = most ? fmax(y[to], v[0][at]) : y[to] + v[0][at];
        }
    } else if (op->kind ==
               CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR) { /* by way of the memory that both are seen in */
        int64_t reach = 0;
        for (int d = 0; d < 4; d++) reach += (DIM(in[0])[d] - 1) * STRIDE(in[0])[d];
        double *memory = malloc((size_t)(reach + 1) * sizeof *memory);
        for (int64_t at = 0; at <= reach; at++) memory[at] = NAN;
        for (int64_t at = 0; at < count(out); at++)
            place_of(i, DIM(in[0]), at), memory[offset_of(i, STRIDE(in[0]))] = v[0][at];
        for (int64_t at = 0; at < count(out); at++) {
            place_of(i, DIM(out), at);
            const int64_t from = offset_of(i, STRIDE(out));
            y[at] = from <= reach ? memory[from] : NAN;
        }
        free(memory);
    } else {
        const int64_t *w = DIM(in[1]), *stride = int64s_of(how, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES);
        for (int64_t at = 0; at < count(out); at++) {
            place_of(i, DIM(out), at);
            y[at] = 0;
            for (int64_t c = 0; c < w[1]; c++)
                for (int64_t r = 0; r < w[2]; r++)
                    for (int64_t s = 0; s < w[3]; s++)
                        y[at] += at_place(in[0], v[0],
                                          (Place){i[0], c, i[2] * stride[0] + r, i[3] * stride[1] + s}) *
                                 at_place(in[1], v[1], (Place){i[1], c, r, s});
        }
    }
}

static void run_graph(void *arg) {
    Run *r = arg;
    Whole w;
    check_graph(r->graph, &w);
    double *v[TENSORS];
    bool ready[TENSORS], done[OPERATIONS] = {0};
    memset(r->workspace, 0xFF, WORKSPACE);
    for (int t = 0; t < w.n; t++) {
        Descriptor *d = w.tensor[t];
        Place i;
        v[t] = malloc((size_t)count(d) * sizeof(double));
        ready[t] = !w.made[t];
        for (int64_t at = 0; at < count(d); at++) {
            place_of(i, DIM(d), at);
            v[t][at] = w.made[t]     ? NAN
                       : BY_VALUE(d) ? r->number[t]
                                     : read_value(TYPE(d), r->address[t], offset_of(i, STRIDE(d)));
        }
    }
    const Attribute *ops = find(r->graph, CUDNN_ATTR_OPERATIONGRAPH_OPS);
    for (int64_t left = ops->n; left;) {
        const int64_t before = left;
        for (int64_t o = 0; o < ops->n; o++) {
            Descriptor *op = ((Descriptor **)ops->value)[o], *in[6] = {0};
            const struct Kind *k = kind_of(op);
            double *x[6] = {0};
            bool can = !done[o];
            for (int j = 0; k->in[j]; j++)
                if (find(op, k->in[j])) {
                    const int t = index_of(&w, in[j] = descriptor_of(op, k->in[j]));
                    x[j] = v[t];
                    can = can && ready[t];
                }
            if (!can) continue;
            const int y = index_of(&w, descriptor_of(op, k->out));
            run_operation(op, in, x, w.tensor[y], v[y]);
            done[o] = ready[y] = true;
            left--;
        }
        if (left == before) {
            complain("the graph goes in circles");
            break;
        }
    }
    for (int t = 0; t < w.n; t++) {
        Descriptor *d = w.tensor[t];
        Place i;
        for (int64_t at = 0; w.made[t] && !VIRTUAL(d) && at < count(d); at++) {
            place_of(i, DIM(d), at);
            write_value(TYPE(d), r->address[t], offset_of(i, STRIDE(d)), v[t][at]);
        }
        free(v[t]);
    }
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan_,
                                  cudnnBackendDescriptor_t pack_) {
    Descriptor *plan = plan_, *pack = pack_;
    Whole w;
    WANT(handle->stream && plan->final && plan->kind == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR &&
             pack->final && pack->kind == CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR,
         "a run without a stream, plan or pack");
    Descriptor *config = descriptor_of(plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);
    WANT(config->engine != FIRST_ENGINE, "the engine whose bits change is run");
    Run r = {.graph = descriptor_of(config, -1),
             .workspace = *(void **)find(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE)->value};
    WANT(r.workspace && (uintptr_t)r.workspace % 256 == 0, "workspace at %p", r.workspace);
    if (check_graph(r.graph, &w)) return CUDNN_STATUS_BAD_PARAM;
    const Attribute *ids = find(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS),
                    *pointers = find(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
    int64_t used = 0;
    for (int t = 0; t < w.n; t++) {
        if (VIRTUAL(w.tensor[t])) continue;
        int64_t at = -1;
        for (int64_t i = 0; i < ids->n; i++)
            if (((int64_t *)ids->value)[i] == ID(w.tensor[t])) {
                WANT(at < 0, "tensor %ld is given twice", (long)ID(w.tensor[t]));
                at = i;
            }
        WANT(at >= 0, "tensor %ld is not given", (long)ID(w.tensor[t]));
        used++;
        r.address[t] = ((void **)pointers->value)[at];
        WANT(r.address[t] && (BY_VALUE(w.tensor[t]) || (uintptr_t)r.address[t] % 16 == 0), "tensor %ld at %p",
             (long)ID(w.tensor[t]), r.address[t]);
        if (BY_VALUE(w.tensor[t])) r.number[t] = read_value(TYPE(w.tensor[t]), r.address[t], 0);
    }
    WANT(used == ids->n, "%ld tensors are given, the graph has %ld", (long)ids->n, (long)used);
    S.runs++;
    S.queue(handle->stream, run_graph, &r, sizeof r);
    return CUDNN_STATUS_SUCCESS;
}
