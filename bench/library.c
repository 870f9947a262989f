/* library.c -- primitives of oneDNN with its own threads, as baselines for the CPU kernels. See kernels.h.
 *
 * Plain row-major operands, as our kernels have them: nothing is reordered into a blocked layout before or
 * after. oneDNN's backward passes WRITE their gradients where ours add to them, so they move one value in
 * four less.
 */
#include "bench/kernels.h"
#include "kernels/cpu/onednn.h"

enum { ARGS = 10 };

struct Library {
    dnnl_primitive_t primitive;
    dnnl_stream_t stream;
    dnnl_exec_arg_t arg[ARGS];
    int nargs;
};

static dnnl_memory_desc_t vector(int64_t n, dnnl_data_type_t t) {
    dnnl_memory_desc_t d;
    const dnnl_dims_t dims = {n}, strides = {1};
    onednn_check(dnnl_memory_desc_init_by_strides(&d, 1, dims, t, strides), "a vector");
    return d;
}

static void operand(Library *l, int which, const dnnl_memory_desc_t *d, void *p) {
    CHECK(l->nargs < ARGS, "%d operands", l->nargs);
    l->arg[l->nargs].arg = which;
    onednn_check(dnnl_memory_create(&l->arg[l->nargs++].memory, d, onednn_engine(), p), "an operand");
}

static Library *from_descriptor(dnnl_primitive_desc_t d, const char *what) {
    Library *l = xcalloc(1, sizeof *l);
    onednn_check(dnnl_primitive_create(&l->primitive, d), what);
    dnnl_primitive_desc_destroy(d);
    onednn_check(dnnl_stream_create(&l->stream, onednn_engine(), dnnl_stream_default_flags), "a stream");
    return l;
}

static dnnl_primitive_desc_t describe(const void *op, const_dnnl_primitive_attr_t attr,
                                      const_dnnl_primitive_desc_t forward, const char *what) {
    dnnl_primitive_desc_t d;
    onednn_check(dnnl_primitive_desc_create(&d, op, attr, onednn_engine(), forward), what);
    return d;
}

void library_run(Library *l) {
    onednn_check(dnnl_primitive_execute(l->primitive, l->stream, l->nargs, l->arg), "to run");
    onednn_check(dnnl_stream_wait(l->stream), "to end");
}

void library_close(Library *l) {
    if (!l) return;
    for (int i = 0; i < l->nargs; i++) dnnl_memory_destroy(l->arg[i].memory);
    dnnl_stream_destroy(l->stream);
    dnnl_primitive_destroy(l->primitive);
    free(l);
}

/* ---- the primitives ------------------------------------------------------------------------------- */

Library *library_eltwise(Eltwise f, bool backward, void *out, void *x, void *dy, int64_t n) {
    static const dnnl_alg_kind_t forward_of[] = {dnnl_eltwise_gelu_erf, dnnl_eltwise_gelu_tanh,
                                                 dnnl_eltwise_swish,    dnnl_eltwise_elu,
                                                 dnnl_eltwise_tanh,     dnnl_eltwise_logistic};
    const float alpha = f == ELT_QUICK_GELU ? 1.702f : 1.0f;
    const bool from_output = f == ELT_TANH || f == ELT_SIGMOID;
    const dnnl_alg_kind_t alg = !backward || !from_output ? forward_of[f]
                                : f == ELT_TANH           ? dnnl_eltwise_tanh_use_dst_for_bwd
                                                          : dnnl_eltwise_logistic_use_dst_for_bwd;
    const dnnl_memory_desc_t d = vector(n, dnnl_f32);
    dnnl_eltwise_desc_t op;
    onednn_check(dnnl_eltwise_forward_desc_init(&op, dnnl_forward_training, alg, &d, alpha, 0),
                 "an elementwise function");
    dnnl_primitive_desc_t forward = describe(&op, NULL, NULL, "an elementwise function");
    if (!backward) {
        Library *l = from_descriptor(forward, "an elementwise function");
        operand(l, DNNL_ARG_SRC, &d, x);
        operand(l, DNNL_ARG_DST, &d, out);
        return l;
    }
    onednn_check(dnnl_eltwise_backward_desc_init(&op, alg, &d, &d, alpha, 0), "an elementwise backward");
    Library *l =
        from_descriptor(describe(&op, NULL, forward, "an elementwise backward"), "an elementwise backward");
    dnnl_primitive_desc_destroy(forward);
    operand(l, from_output ? DNNL_ARG_DST : DNNL_ARG_SRC, &d, x);
    operand(l, DNNL_ARG_DIFF_DST, &d, dy);
    operand(l, DNNL_ARG_DIFF_SRC, &d, out);
    return l;
}

Library *library_binary(bool product, void *y, void *a, void *b, int64_t n) {
    const dnnl_memory_desc_t d = vector(n, dnnl_f32);
    dnnl_binary_desc_t op;
    onednn_check(dnnl_binary_desc_init(&op, product ? dnnl_binary_mul : dnnl_binary_add, &d, &d, &d),
                 "a sum or product");
    Library *l = from_descriptor(describe(&op, NULL, NULL, "a sum or product"), "a sum or product");
    operand(l, DNNL_ARG_SRC_0, &d, a);
    operand(l, DNNL_ARG_SRC_1, &d, b);
    operand(l, DNNL_ARG_DST, &d, y);
    return l;
}

Library *library_layernorm(bool backward, void *out, void *mean, void *var, void *x, void *dy, void *gamma,
                           void *beta, void *dgamma, void *dbeta, int64_t rows, int64_t C) {
    const dnnl_memory_desc_t d = onednn_matrix(rows, C, C, false, dnnl_f32), stat = vector(rows, dnnl_f32),
                             scale = vector(C, dnnl_f32);
    const unsigned flags = dnnl_use_scale | dnnl_use_shift;
    dnnl_layer_normalization_desc_t op;
    onednn_check(
        dnnl_layer_normalization_forward_desc_init(&op, dnnl_forward_training, &d, &stat, 1e-12f, flags),
        "a layer norm");
    dnnl_primitive_desc_t forward = describe(&op, NULL, NULL, "a layer norm");
    Library *l;
    if (backward) {
        onednn_check(
            dnnl_layer_normalization_backward_desc_init(&op, dnnl_backward, &d, &d, &stat, 1e-12f, flags),
            "a layer norm's backward");
        l = from_descriptor(describe(&op, NULL, forward, "a layer norm's backward"),
                            "a layer norm's backward");
        dnnl_primitive_desc_destroy(forward);
        operand(l, DNNL_ARG_DIFF_DST, &d, dy);
        operand(l, DNNL_ARG_DIFF_SRC, &d, out);
        operand(l, DNNL_ARG_DIFF_SCALE, &scale, dgamma);
        operand(l, DNNL_ARG_DIFF_SHIFT, &scale, dbeta);
    } else {
        l = from_descriptor(forward, "a layer norm");
        operand(l, DNNL_ARG_DST, &d, out);
    }
    operand(l, DNNL_ARG_SHIFT, &scale, beta); /* the backward wants it, too, and does not read it */
    operand(l, DNNL_ARG_SRC, &d, x);
    operand(l, DNNL_ARG_MEAN, &stat, mean);
    operand(l, DNNL_ARG_VARIANCE, &stat, var);
    operand(l, DNNL_ARG_SCALE, &scale, gamma);
    return l;
}

Library *library_softmax(bool backward, void *out, void *x, void *dy, int64_t rows, int64_t C) {
    const dnnl_memory_desc_t d = onednn_matrix(rows, C, C, false, dnnl_f32);
    dnnl_softmax_desc_t op;
    onednn_check(dnnl_softmax_forward_desc_init(&op, dnnl_forward_training, &d, 1), "a softmax");
    dnnl_primitive_desc_t forward = describe(&op, NULL, NULL, "a softmax");
    if (!backward) {
        Library *l = from_descriptor(forward, "a softmax");
        operand(l, DNNL_ARG_SRC, &d, x);
        operand(l, DNNL_ARG_DST, &d, out);
        return l;
    }
    onednn_check(dnnl_softmax_backward_desc_init(&op, &d, &d, 1), "a softmax's backward");
    Library *l =
        from_descriptor(describe(&op, NULL, forward, "a softmax's backward"), "a softmax's backward");
    dnnl_primitive_desc_destroy(forward);
    operand(l, DNNL_ARG_DST, &d, x);
    operand(l, DNNL_ARG_DIFF_DST, &d, dy);
    operand(l, DNNL_ARG_DIFF_SRC, &d, out);
    return l;
}

Library *library_matmul(void *C, void *A, void *B, void *bias, bool ta, bool tb, bool add, int64_t M,
                        int64_t N, int64_t K) {
    const dnnl_memory_desc_t a = onednn_matrix(M, K, ta ? M : K, ta, dnnl_f32),
                             b = onednn_matrix(K, N, tb ? K : N, tb, dnnl_f32),
                             c = onednn_matrix(M, N, N, false, dnnl_f32),
                             v = onednn_matrix(1, N, N, false, dnnl_f32);
    dnnl_primitive_desc_t d = onednn_matmul(&c, &a, &b, bias ? &v : NULL, add);
    CHECK(d, "oneDNN has no product of f32 matrices");
    const dnnl_memory_desc_t scratch = *dnnl_primitive_desc_query_md(d, dnnl_query_scratchpad_md, 0);
    Library *l = from_descriptor(d, "a product");
    operand(l, DNNL_ARG_SRC, &a, A);
    operand(l, DNNL_ARG_WEIGHTS, &b, B);
    operand(l, DNNL_ARG_DST, &c, C);
    operand(l, DNNL_ARG_SCRATCHPAD, &scratch, DNNL_MEMORY_ALLOCATE);
    if (bias) operand(l, DNNL_ARG_BIAS, &v, bias);
    return l;
}

Library *library_column_sums(void *out, void *x, int64_t rows, int64_t C) {
    const dnnl_memory_desc_t from = onednn_matrix(rows, C, C, false, dnnl_f32),
                             to = onednn_matrix(1, C, C, false, dnnl_f32);
    dnnl_reduction_desc_t op;
    onednn_check(dnnl_reduction_desc_init(&op, dnnl_reduction_sum, &from, &to, 0, 0), "column sums");
    Library *l = from_descriptor(describe(&op, NULL, NULL, "column sums"), "column sums");
    operand(l, DNNL_ARG_SRC, &from, x);
    operand(l, DNNL_ARG_DST, &to, out);
    return l;
}

Library *library_cast(void *out, void *x, bool to_bf16, int64_t n) {
    const dnnl_memory_desc_t from = vector(n, to_bf16 ? dnnl_f32 : dnnl_bf16),
                             to = vector(n, to_bf16 ? dnnl_bf16 : dnnl_f32);
    dnnl_primitive_desc_t d;
    onednn_check(dnnl_reorder_primitive_desc_create(&d, &from, onednn_engine(), &to, onednn_engine(), NULL),
                 "a cast");
    Library *l = from_descriptor(d, "a cast");
    operand(l, DNNL_ARG_FROM, &from, x);
    operand(l, DNNL_ARG_TO, &to, out);
    return l;
}
