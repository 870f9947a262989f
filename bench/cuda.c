/* cuda.c -- times on a graphics card, by its own clock. Empty in a build without CUDA.
 *
 * A kernel of some microseconds is shorter than what two events around it cost. So a sample is a series of launches back to back
 * between two events, divided by their number: about 200 us each, and at least 20 samples.
 */
#include "bench/bench.h"

#ifdef WITH_CUDA

#include "kernels/cuda/stream.h"

enum { SAMPLE_US = 200, MOST_LAUNCHES = 200 };

int bench_cuda_times(Device *d, double *seconds, int least, int most, double budget, void (*run)(void *), void *arg) {
    cudaEvent_t begin, end;
    CUDA_CHECK(cudaEventCreate(&begin));
    CUDA_CHECK(cudaEventCreate(&end));
    int launches = 3, n = 0; /* the first samples warm up and choose the length of the series */
    double spent = 0;
    for (int i = -2; n < most && (n < least || spent < budget); i++) {
        CUDA_CHECK(cudaEventRecord(begin, d->main->cuda));
        for (int k = 0; k < launches; k++) run(arg);
        CUDA_CHECK(cudaEventRecord(end, d->main->cuda));
        CUDA_CHECK(cudaEventSynchronize(end));
        float ms = 0;
        CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
        const double each = (double)ms * 1e-3 / launches;
        if (i < 0) {
            launches = each > 0 ? MAX(1, MIN(MOST_LAUNCHES, (int)(SAMPLE_US * 1e-6 / each))) : MOST_LAUNCHES;
            continue;
        }
        seconds[n++] = each;
        spent += (double)ms * 1e-3;
    }
    CUDA_CHECK(cudaEventDestroy(begin));
    CUDA_CHECK(cudaEventDestroy(end));
    return n;
}

void bench_cuda_copy(Device *d, void *dst, const void *src, size_t bytes) {
    CUDA_CHECK(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, d->main->cuda));
}

void bench_cuda_machine(FILE *f, Device *d) {
    int driver = 0, runtime = 0;
    struct cudaDeviceProp p;
    CUDA_CHECK(cudaGetDeviceProperties(&p, d->main->card));
    CUDA_CHECK(cudaDriverGetVersion(&driver));
    CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
    fprintf(f, "%s, %d SMs, %.0f MB L2, driver for CUDA %d.%d, runtime %d.%d\n", d->description, p.multiProcessorCount,
            (double)p.l2CacheSize / (1 << 20), driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
}

#else

int bench_cuda_times(Device *d, double *seconds, int least, int most, double budget, void (*run)(void *), void *arg) {
    (void)d, (void)seconds, (void)least, (void)most, (void)budget, (void)run, (void)arg;
    return 0;
}
void bench_cuda_copy(Device *d, void *dst, const void *src, size_t bytes) { (void)d, (void)dst, (void)src, (void)bytes; }
void bench_cuda_machine(FILE *f, Device *d) { (void)f, (void)d; }

#endif
