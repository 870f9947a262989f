/* tensor.c -- making tensors. See tensor.h. */
#include "engine/tensor.h"

Tensor *tensor_new(Ctx *c, DType t, int ndim, const int64_t *shape) {
    CHECK(ndim >= 1 && ndim <= MAX_DIMS, "%d dimensions", ndim);
    Tensor *x = ARENA_NEW(c->host, Tensor, 1);
    x->dtype = t;
    x->ndim = ndim;
    for (int i = 0; i < ndim; i++) {
        CHECK(shape[i] >= 0, "dimension %d is %" PRId64, i, shape[i]);
        x->shape[i] = shape[i];
    }
    x->data = arena_alloc(c->step, tensor_bytes(x));
    return x;
}

Tensor tensor_view(const Tensor *x, int ndim, const int64_t *shape) {
    Tensor v = *x;
    v.ndim = ndim;
    memcpy(v.shape, shape, (size_t)ndim * sizeof *shape);
    CHECK(numel(&v) == numel(x), "view of %" PRId64 " values as %" PRId64, numel(x), numel(&v));
    return v;
}

void *ctx_upload(Ctx *c, const void *src, size_t bytes) {
    void *p = arena_alloc(c->step, bytes);
    c->dev->upload(c->dev, p, src, bytes);
    return p;
}

const char *shape_text(const Tensor *x, char *buf, size_t n) {
    size_t at = 0;
    for (int i = 0; i < x->ndim && at < n; i++)
        at += (size_t)snprintf(buf + at, n - at, "%s%" PRId64, i ? ", " : "(", x->shape[i]);
    if (at < n) snprintf(buf + at, n - at, ")");
    return buf;
}
