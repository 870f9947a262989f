/* onednn.c -- matrix products by oneDNN. See onednn.h.
 *
 * There is no table of primitives here: oneDNN keeps the 1024 used last, behind a lock, and to describe a
 * product that it knows, find its primitive and wrap its operands takes 4 to 6 us (the product of 64 x 64 x
 * 64 itself 25 us on two cores). Primitives work in our scratch, so that one may run in several threads at
 * once and nothing large is allocated.
 */
#include "kernels/cpu/onednn.h"

#include <pthread.h>

#include "kernels/cpu/cpu.h"

/* ---- the library ---------------------------------------------------------------------------------- */

static dnnl_engine_t the_engine;
static const char *bf16_instructions;
static bool allowed = true;
static pthread_once_t once = PTHREAD_ONCE_INIT;

void onednn_check(dnnl_status_t s, const char *what) {
    CHECK(s == dnnl_success, "oneDNN refuses %s: status %d", what, (int)s);
}

static void open_library(void) {
    onednn_check(dnnl_engine_create(&the_engine, dnnl_cpu, 0), "an engine");
    /* A set of instructions has the bits of those that it includes. */
    const unsigned isa = dnnl_get_effective_cpu_isa();
    if ((isa & dnnl_cpu_isa_avx512_core_amx) == dnnl_cpu_isa_avx512_core_amx)
        bf16_instructions = "AMX";
    else if ((isa & dnnl_cpu_isa_avx512_core_bf16) == dnnl_cpu_isa_avx512_core_bf16)
        bf16_instructions = "AVX512_BF16";
}

dnnl_engine_t onednn_engine(void) {
    pthread_once(&once, open_library);
    return the_engine;
}

const char *onednn_bf16(void) {
    pthread_once(&once, open_library);
    return bf16_instructions;
}

void onednn_allow(bool bf16) { allowed = bf16; }
bool onednn_allowed(void) { return allowed && onednn_bf16(); }

/* ---- a product ------------------------------------------------------------------------------------ */

dnnl_memory_desc_t onednn_matrix(int64_t rows, int64_t cols, int64_t ld, bool transposed,
                                 dnnl_data_type_t t) {
    dnnl_memory_desc_t d;
    const dnnl_dims_t dims = {rows, cols}, strides = {transposed ? 1 : ld, transposed ? ld : 1};
    onednn_check(dnnl_memory_desc_init_by_strides(&d, 2, dims, t, strides), "a matrix");
    return d;
}

dnnl_primitive_desc_t onednn_matmul(const dnnl_memory_desc_t *c, const dnnl_memory_desc_t *a,
                                    const dnnl_memory_desc_t *b, const dnnl_memory_desc_t *bias, bool add) {
    dnnl_primitive_attr_t attr;
    dnnl_post_ops_t post;
    dnnl_matmul_desc_t op;
    dnnl_primitive_desc_t d;
    onednn_check(dnnl_primitive_attr_create(&attr), "attributes");
    onednn_check(dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user), "scratch of ours");
    onednn_check(dnnl_post_ops_create(&post), "attributes");
    if (add) onednn_check(dnnl_post_ops_append_sum(post, 1), "a sum after a product");
    onednn_check(dnnl_primitive_attr_set_post_ops(attr, post), "attributes");
    onednn_check(dnnl_matmul_desc_init(&op, a, b, bias, c), "a product");
    const dnnl_status_t s = dnnl_primitive_desc_create(&d, &op, attr, onednn_engine(), NULL);
    dnnl_post_ops_destroy(post);
    dnnl_primitive_attr_destroy(attr);
    if (s == dnnl_unimplemented) return NULL;
    onednn_check(s, "a product");
    return d;
}

/* The one that is there for what nothing else does, a loop over single values. */
static bool is_reference(dnnl_primitive_desc_t d) {
    const char *name;
    onednn_check(dnnl_primitive_desc_query(d, dnnl_query_impl_info_str, 0, &name), "to tell its name");
    return !strncmp(name, "ref", 3);
}

static void execute(dnnl_primitive_desc_t d, dnnl_exec_arg_t *arg, const dnnl_memory_desc_t *const *of,
                    void *const *data, int n) {
    dnnl_primitive_t p;
    dnnl_stream_t s;
    onednn_check(dnnl_primitive_create(&p, d), "a product");
    onednn_check(dnnl_stream_create(&s, onednn_engine(), dnnl_stream_default_flags), "a stream");
    for (int i = 0; i < n; i++)
        onednn_check(dnnl_memory_create(&arg[i].memory, of[i], onednn_engine(), data[i]), "an operand");
    onednn_check(dnnl_primitive_execute(p, s, n, arg), "to run");
    onednn_check(dnnl_stream_wait(s), "to end");
    for (int i = 0; i < n; i++) dnnl_memory_destroy(arg[i].memory);
    dnnl_stream_destroy(s);
    dnnl_primitive_destroy(p);
}

bool onednn_product(DType t, DType tc, void *C, int64_t ldc, const void *A, int64_t lda, const void *B,
                    int64_t ldb, const float *bias, bool ta, bool tb, int64_t M, int64_t N, int64_t K,
                    bool add) {
    const dnnl_data_type_t in = t == F32 ? dnnl_f32 : dnnl_bf16, out = tc == F32 ? dnnl_f32 : dnnl_bf16;
    const dnnl_memory_desc_t a = onednn_matrix(M, K, lda, ta, in), b = onednn_matrix(K, N, ldb, tb, in),
                             c = onednn_matrix(M, N, ldc, false, out),
                             v = onednn_matrix(1, N, N, false, dnnl_f32);
    dnnl_primitive_desc_t d = onednn_matmul(&c, &a, &b, bias ? &v : NULL, add);
    if (!d) return false;
    const bool usable = !is_reference(d);
    if (usable) {
        const dnnl_memory_desc_t *scratch = dnnl_primitive_desc_query_md(d, dnnl_query_scratchpad_md, 0);
        dnnl_exec_arg_t arg[] = {{DNNL_ARG_DST, NULL},
                                 {DNNL_ARG_SRC, NULL},
                                 {DNNL_ARG_WEIGHTS, NULL},
                                 {DNNL_ARG_SCRATCHPAD, NULL},
                                 {DNNL_ARG_BIAS, NULL}};
        execute(d, arg, (const dnnl_memory_desc_t *[]){&c, &a, &b, scratch, &v},
                (void *[]){C, (void *)A, (void *)B,
                           cpu_scratch(SCRATCH_OP, dnnl_memory_desc_get_size(scratch)), (void *)bias},
                bias ? 5 : 4);
    }
    dnnl_primitive_desc_destroy(d);
    return usable;
}
