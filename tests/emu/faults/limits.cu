/* What a card refuses, or what reads and writes past what it was given. */
#include "kernels/cuda/cuda.cuh"

__global__ void nothing(float *, int) {}
extern "C" void emu_block_too_large(Stream *s, float *y, const float *, int n) { LAUNCH(nothing, 1, 1056, s, y, n); }
extern "C" void emu_empty_grid(Stream *s, float *y, const float *, int n) { LAUNCH(nothing, n / 1000000, 256, s, y, n); }
extern "C" void emu_grid_too_tall(Stream *s, float *y, const float *, int n) { LAUNCH(nothing, dim3(1, 65536), 256, s, y, n); }
extern "C" void emu_dynamic_too_large(Stream *s, float *y, const float *, int n) { LAUNCH_SMEM(nothing, 1, 256, 228 << 10, s, y, n); }

__global__ void large(float *y, int n) {
    SHARED(float, tile, 13 << 10);
    if ((int)threadIdx.x < n) y[threadIdx.x] = tile[threadIdx.x] = 1;
}
extern "C" void emu_static_too_large(Stream *s, float *y, const float *, int n) { LAUNCH(large, 1, 256, s, y, n); }

__global__ void overrun(float *y, int n) {
    SHARED(float, tile, 255);
    tile[threadIdx.x] = 1;
    __syncthreads();
    if ((int)threadIdx.x < n) y[threadIdx.x] = tile[0];
}
extern "C" void emu_shared_overrun(Stream *s, float *y, const float *, int n) { LAUNCH(overrun, 1, 256, s, y, n); }

__global__ void vectors(float *y, const float *x, int n) {
    const int i = 4 * (int)threadIdx.x + 1;
    if (i + 4 <= n) store(y + i - 1, load<4>(x + i));
}
extern "C" void emu_misaligned(Stream *s, float *y, const float *x, int n) { LAUNCH(vectors, 1, 32, s, y, x, n); }

__global__ void two_barriers(float *y, int n) {
    if (threadIdx.x < 32) __syncthreads();
    else
        __syncthreads();
    if ((int)threadIdx.x < n) y[threadIdx.x] = 1;
}
extern "C" void emu_two_barriers(Stream *s, float *y, const float *, int n) { LAUNCH(two_barriers, 1, 64, s, y, n); }
