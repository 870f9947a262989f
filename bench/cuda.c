/* cuda.c -- times on a graphics card, by its own clock. In a build without CUDA nobody opens one, so
 * nobody gets here. */
#include "bench/bench.h"

#ifdef WITH_CUDA

#include "kernels/cuda/cudnn.h"

double bench_cuda_series(Device *d, int launches, void (*run)(void *), void *arg) {
    static cudaEvent_t begin, end;
    if (!begin) {
        CUDA_CHECK(cudaEventCreate(&begin));
        CUDA_CHECK(cudaEventCreate(&end));
    }
    CUDA_CHECK(cudaEventRecord(begin, d->main->cuda));
    for (int k = 0; k < launches; k++) run(arg);
    CUDA_CHECK(cudaEventRecord(end, d->main->cuda));
    CUDA_CHECK(cudaEventSynchronize(end));
    float ms = 0;
    CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
    return (double)ms * 1e-3 / launches;
}

void bench_cuda_copy(Device *d, void *dst, const void *src, size_t bytes) {
    CUDA_CHECK(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, d->main->cuda));
}

/* Says once why it is not there. */
static bool has_cudnn(Device *d) {
    static enum { NOT_ASKED, THERE, NOT_THERE } state;
    Error e = {0};
    if (state == NOT_ASKED) {
        state = cudnn_open(CUDNN_FILE, &e) && cudnn_use_card(d->main->card, &e) ? THERE : NOT_THERE;
        if (state == NOT_THERE) warn("no baselines of cuDNN: %s", e.text);
    }
    return state == THERE;
}

const Ops *bench_cudnn_attention(Device *d, bool backward, bool masked, bool causal, int B, int H, int T,
                                 int D) {
    static const Ops ops = {.attention_fwd = cudnn_attention_fwd, .attention_bwd = cudnn_attention_bwd};
    return has_cudnn(d) && cudnn_has_attention(d->main, backward, masked, causal, B, H, T, D) ? &ops : NULL;
}

bool bench_cudnn_has_patches(Device *d, int type, int64_t B, int64_t side, int64_t patch, int64_t C) {
    return has_cudnn(d) && cudnn_has_patches(d->main, (DType)type, B, side, patch, C);
}
void bench_cudnn_patches(Device *d, int type, void *y, const void *x, const void *w, int64_t B, int64_t side,
                         int64_t patch, int64_t C) {
    cudnn_patches(d->main, (DType)type, y, x, w, B, side, patch, C);
}

static json_t *version(int v) { return json_sprintf("%d.%d", v / 1000, v % 1000 / 10); }

json_t *bench_cuda_card(Device *d) {
    int driver = 0, runtime = 0;
    struct cudaDeviceProp p;
    CUDA_CHECK(cudaGetDeviceProperties(&p, d->main->card));
    CUDA_CHECK(cudaDriverGetVersion(&driver));
    CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
    return json_pack("{s:i, s:I, s:o, s:o}", "multiprocessors", p.multiProcessorCount, "l2_bytes",
                     (json_int_t)p.l2CacheSize, "driver_cuda", version(driver), "runtime_cuda",
                     version(runtime));
}

#else

double bench_cuda_series(Device *d, int launches, void (*run)(void *), void *arg) {
    (void)launches, (void)run, (void)arg;
    CHECK(false, "the device %s in a build without CUDA", d->name);
    return 0;
}
void bench_cuda_copy(Device *d, void *dst, const void *src, size_t bytes) {
    CHECK(false, "the device %s in a build without CUDA: %p %p %zu", d->name, dst, src, bytes);
}
json_t *bench_cuda_card(Device *d) { return (void)d, json_null(); }
const Ops *bench_cudnn_attention(Device *d, bool backward, bool masked, bool causal, int B, int H, int T,
                                 int D) {
    return (void)d, (void)backward, (void)masked, (void)causal, (void)B, (void)H, (void)T, (void)D, NULL;
}
bool bench_cudnn_has_patches(Device *d, int type, int64_t B, int64_t side, int64_t patch, int64_t C) {
    return (void)d, (void)type, (void)B, (void)side, (void)patch, (void)C, false;
}
void bench_cudnn_patches(Device *d, int type, void *y, const void *x, const void *w, int64_t B, int64_t side,
                         int64_t patch, int64_t C) {
    (void)d, (void)type, (void)y, (void)x, (void)w, (void)B, (void)side, (void)patch, (void)C;
}

#endif
