/* One stream doubles, another reads what it left: the call that orders them is missing. With it all is well. */
#include "kernels/cuda/cuda.cuh"

__global__ void twice(float *y, const float *x, int n) {
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) y[i] = 2 * x[i];
}

static void on_two_streams(Stream *s, float *y, const float *x, int n, bool ordered) {
    static Stream *other = emu_stream("other");
    float *doubled = (float *)cuda_scratch(other, (size_t)n * sizeof(float));
    LAUNCH(twice, ceil_div(n, 256), 256, other, doubled, x, n);
    if (ordered) emu_stream_after(s, other);
    LAUNCH(twice, ceil_div(n, 256), 256, s, y, (const float *)doubled, n);
}

extern "C" void emu_missing_after(Stream *s, float *y, const float *x, int n) { on_two_streams(s, y, x, n, false); }
extern "C" void emu_with_after(Stream *s, float *y, const float *x, int n) { on_two_streams(s, y, x, n, true); }
