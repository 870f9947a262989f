/* cuda.c -- times on a graphics card, by its own clock. In a build without CUDA nobody opens one, so
 * nobody gets here. */
#include "bench/bench.h"

#ifdef WITH_CUDA

#include "kernels/cuda/stream.h"

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

#endif
