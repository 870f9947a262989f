/* cuda.cuh -- what every kernel file is written with; the only header that a .cu file includes. It brings ops.h.
 *
 * A .cu file is compiled by nvcc (cuda_<op>) and, for machines without a card, by g++ as plain C++ (emu_<op>, one fiber per
 * CUDA thread, tests/emu/emu.h). Ordinary CUDA C++ except for what is below; a file looks like this:
 *
 *     #include "kernels/cuda/cuda.cuh"
 *
 *     template <typename T, int V> __global__ void __launch_bounds__(256) relu_fwd(T *y, const T *x, int64_t n) {
 *         const int64_t step = (int64_t)gridDim.x * blockDim.x * V;
 *         for (int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * V; i < n; i += step) {
 *             Vec<T, V> r = load<V>(x + i);                                    // one 16-byte access
 *             for (int k = 0; k < V; k++) r.v[k] = from_f32<T>(fmaxf(to_f32(r.v[k]), 0));
 *             store(y + i, r);
 *         }
 *     }
 *
 *     extern "C" void K(relu_fwd)(Stream *s, DType t, void *y, const void *x, int64_t n) {
 *         if (n == 0) return;                                                  // an empty grid is an error
 *         DISPATCH(t, T, {
 *             if (vec_ok<T>(WIDTH<T>, n, x, y)) LAUNCH((relu_fwd<T, WIDTH<T>>), grid_for(n, 256 * WIDTH<T>), 256, s, (T *)y, (const T *)x, n);
 *             else                              LAUNCH((relu_fwd<T, 1>), grid_for(n, 256), 256, s, (T *)y, (const T *)x, n);
 *         });
 *     }
 *
 *   K(name)                        cuda_name or emu_name: the exported symbol
 *   LAUNCH(k, grid, block, s, ...) k<<<grid, block>>>(...) on stream s, checked; k with commas goes in parentheses
 *   LAUNCH_SMEM(k, grid, block, bytes, s, ...)    the same with dynamic shared memory, up to 227 KB
 *   SHARED(T, name, n)             a static shared array (16-byte aligned), n a constant;  DYNAMIC_SHARED(T, name) the dynamic one
 *   Vec<T, N>, WIDTH<T>            N values moved by one access; values of T in 16 bytes.  load<N>(p), store(p, v)
 *   vec_ok<T>(N, n, p...)          every p is 16-byte aligned (NULL is) and n divides by N
 *   bf16, to_f32, from_f32<T>      float or bf16 to float and back, round to nearest even
 *   warp_sum, warp_max             over 32 lanes, all of them present; every lane gets the result
 *   block_sum, block_max           over a one-dimensional block of whole warps; every thread gets the result. They begin with a
 *                                  barrier of their own, so one may follow another. Sums in a fixed order; float or double
 *   grid_for(n, per_block)         blocks for a grid-stride loop over n values, clamped
 *   DISPATCH(t, T, statement);     the statement with T = float or bf16
 *   DISPATCH_GRADIENT(td, TD, t, T, statement);    the same with TD, the type of a gradient, too
 *   cuda_scratch(s, bytes)         device memory of the stream, undefined contents, valid until the next call on that stream
 *   cuda_upload(s, dst, src, n)    host to device, queued, src may be reused at once;  cuda_download waits for the stream
 *   exp2_fast(x), pack_bf16(lo, hi)    one instruction each, for the inner loop of attention
 *   cp_async16, cp_async_commit, cp_async_wait<N>, ldmatrix_x4(_trans), mma_m16n8k16    see the end of the file
 *
 * So that the same source runs on the host: all threads of a block reach every barrier (guard the work, not the thread), a
 * shuffle names every lane that takes part and these are there, PTX stands only here beside its C++ twin, no float atomics.
 */
#pragma once
#include <float.h>
#include <math.h>
#include <stdint.h>

#ifdef __CUDACC__
#include "kernels/cuda/stream.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#else
#include "tests/emu/emu.h"
#endif

extern "C" {
#include "kernels/ops.h"
}

/* ---- the language --------------------------------------------------------------------------------- */

#ifdef __CUDACC__

#define K(name) cuda_##name

#define LAUNCH(kernel, grid, block, s, ...)                                                                  \
    do {                                                                                                     \
        (kernel)<<<(grid), (block), 0, (s)->cuda>>>(__VA_ARGS__);                                            \
        cuda_check(cudaGetLastError(), "launch of " #kernel, __FILE__, __LINE__);                            \
    } while (0)

/* More than 48 KB must be asked for, once per kernel and card; asking again is cheap. */
#define LAUNCH_SMEM(kernel, grid, block, bytes, s, ...)                                                      \
    do {                                                                                                     \
        if ((bytes) > 48 * 1024)                                                                             \
            cuda_check(cudaFuncSetAttribute((kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, (int)(bytes)), \
                       "shared memory of " #kernel, __FILE__, __LINE__);                                     \
        (kernel)<<<(grid), (block), (bytes), (s)->cuda>>>(__VA_ARGS__);                                      \
        cuda_check(cudaGetLastError(), "launch of " #kernel, __FILE__, __LINE__);                            \
    } while (0)

#define SHARED(T, name, n) __shared__ __align__(16) T name[n]
#define DYNAMIC_SHARED(T, name)                                                                              \
    extern __shared__ __align__(128) unsigned char dynamic_shared_[];                                        \
    T *name = (T *)dynamic_shared_

typedef __nv_bfloat16 bf16;
__device__ __forceinline__ float bf16_to_f32(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ bf16 bf16_from_f32(float x) { return __float2bfloat16_rn(x); }

#else /* g++: LAUNCH, SHARED, threadIdx, __shfl_xor_sync and their like are in emu.h */

#define K(name) emu_##name

#endif

/* ---- numbers -------------------------------------------------------------------------------------- */

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(bf16 x) { return bf16_to_f32(x); }
template <typename T> __device__ __forceinline__ T from_f32(float x);
template <> __device__ __forceinline__ float from_f32<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_f32<bf16>(float x) { return bf16_from_f32(x); }

template <typename T, int N> struct alignas(sizeof(T) * N) Vec { T v[N]; };
template <typename T> constexpr int WIDTH = 16 / (int)sizeof(T);

#ifdef __CUDACC__
template <int N, typename T> __device__ __forceinline__ Vec<T, N> load(const T *p) { return *(const Vec<T, N> *)p; }
template <int N, typename T> __device__ __forceinline__ void store(T *p, const Vec<T, N> &v) { *(Vec<T, N> *)p = v; }
/* 16 bytes by one access each way. Not a Vec: of values that only pass through nvcc 13.0 makes a store each. */
template <typename T> __device__ __forceinline__ void copy16(T *to, const T *from) { *(uint4 *)to = *(const uint4 *)from; }
#else /* one access, which g++ would take apart */
template <int N, typename T> EMU_ACCESS Vec<T, N> load(const T *p) {
    emu_access(p, sizeof(Vec<T, N>), false, __builtin_return_address(0));
    return *(const Vec<T, N> *)p;
}
template <int N, typename T> EMU_ACCESS void store(T *p, const Vec<T, N> &v) {
    emu_access(p, sizeof v, true, __builtin_return_address(0));
    *(Vec<T, N> *)p = v;
}
template <typename T> __device__ __forceinline__ void copy16(T *to, const T *from) { store(to, load<WIDTH<T>>(from)); }
#endif

/* May the loop over n values (or rows of n values) take them N at a time from each of these pointers? */
template <typename T, typename... P> inline bool vec_ok(int N, int64_t n, P... p) {
    static_assert(sizeof(T) <= 16, "a value is at most one access");
    return n % N == 0 && ((((uintptr_t)p & 15) == 0) && ...);
}

#define DISPATCH(t, T, ...)                                                                                  \
    do {                                                                                                     \
        if ((t) == F32) {                                                                                    \
            typedef float T;                                                                                 \
            __VA_ARGS__;                                                                                     \
        } else {                                                                                             \
            typedef bf16 T;                                                                                  \
            __VA_ARGS__;                                                                                     \
        }                                                                                                    \
    } while (0)

/* The statement with T for t and TD for td, the type of a gradient: t, or F32. */
#define DISPATCH_GRADIENT(td, TD, t, T, ...)                                                                 \
    do {                                                                                                     \
        if ((t) == F32) {                                                                                    \
            typedef float T;                                                                                 \
            typedef float TD;                                                                                \
            __VA_ARGS__;                                                                                     \
        } else if ((td) == F32) {                                                                            \
            typedef bf16 T;                                                                                  \
            typedef float TD;                                                                                \
            __VA_ARGS__;                                                                                     \
        } else {                                                                                             \
            typedef bf16 T;                                                                                  \
            typedef bf16 TD;                                                                                 \
            __VA_ARGS__;                                                                                     \
        }                                                                                                    \
    } while (0)

template <typename I> constexpr I ceil_div(I a, I b) { return (a + b - 1) / b; }

/* 65536 blocks are some 50 waves of the largest card, so that the last wave costs little, and few enough to start. */
inline int grid_for(int64_t n, int64_t per_block) {
    const int64_t blocks = (n + per_block - 1) / per_block;
    return (int)(blocks < 65536 ? blocks : 65536);
}

/* ---- reductions ----------------------------------------------------------------------------------- */

enum : unsigned { ALL_LANES = 0xffffffffu };

template <typename A> __device__ __forceinline__ A warp_sum(A v) {
    for (int m = 16; m; m >>= 1) v += __shfl_xor_sync(ALL_LANES, v, m);
    return v;
}

__device__ __forceinline__ float warp_max(float v) {
    for (int m = 16; m; m >>= 1) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, m));
    return v;
}

template <typename A> __device__ __forceinline__ A block_sum(A v) {
    SHARED(A, part, 32);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    v = warp_sum(v);
    __syncthreads(); /* whoever read part[] in an earlier call is done */
    if (lane == 0) part[warp] = v;
    __syncthreads();
    return warp_sum(lane < warps ? part[lane] : (A)0);
}

__device__ __forceinline__ float block_max(float v) {
    SHARED(float, part, 32);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    v = warp_max(v);
    __syncthreads();
    if (lane == 0) part[warp] = v;
    __syncthreads();
    return warp_max(lane < warps ? part[lane] : -INFINITY);
}

/* ---- one instruction each ------------------------------------------------------------------------- */

/* 2^x to 2 ulp, results under 2^-126 are zero: exp2f takes four instructions to be right there. */
__device__ __forceinline__ float exp2_fast(float x) {
#ifdef __CUDACC__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

/* Two values rounded to bf16, lo in the low half: a register of a tensor-core fragment. */
__device__ __forceinline__ uint32_t pack_bf16(float lo, float hi) {
#ifdef __CUDACC__
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
#else
    return bf16_from_f32(lo).bits | (uint32_t)bf16_from_f32(hi).bits << 16;
#endif
}

/* ---- asynchronous copies and tensor cores: PTX, and what it means ---------------------------------- */

/* Copies 16 bytes from global to shared memory, both 16-byte aligned; zeros when not `valid` (src is then not read). The bytes
 * are there for the thread that copied after cp_async_wait<N>(): all but its N newest groups have arrived; for others after the
 * barrier that follows. cp_async_commit() ends a group, an empty one too. */
__device__ __forceinline__ void cp_async16(void *shared_dst, const void *global_src, bool valid) {
#ifdef __CUDACC__
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((unsigned)__cvta_generic_to_shared(shared_dst)),
                 "l"(global_src), "r"(valid ? 16 : 0)
                 : "memory");
#else
    emu_copy16(shared_dst, valid ? global_src : NULL);
#endif
}

__device__ __forceinline__ void cp_async_commit() {
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    emu_copy_commit();
#endif
}

template <int N> __device__ __forceinline__ void cp_async_wait() {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#else
    emu_copy_wait(N);
#endif
}

/* A place in dynamic shared memory as a number of bytes, on which inner loops count: an access through a pointer would work the
 * number out anew each time. */
__device__ __forceinline__ uint32_t shared_at(const void *p) {
#ifdef __CUDACC__
    return (uint32_t)__cvta_generic_to_shared(p);
#else
    return (uint32_t)((const char *)p - (const char *)emu_dynamic_shared());
#endif
}

/* Four 8x8 matrices of 16-bit values from shared memory. Lane 8 j + i gives the address of row i of matrix j (16 bytes, aligned);
 * r[j] of lane l is row l / 4, columns 2 (l % 4) and one more, of matrix j; _trans: of its transpose. */
#ifdef __CUDACC__
#define LDMATRIX(r, at, trans)                                                                               \
    asm volatile("ldmatrix.sync.aligned.m8n8.x4" trans ".shared.b16 {%0, %1, %2, %3}, [%4];"                 \
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                                            \
                 : "r"(at)                                                                                   \
                 : "memory")
__device__ __forceinline__ void ldmatrix_x4(uint32_t r[4], uint32_t shared_row) { LDMATRIX(r, shared_row, ""); }
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t r[4], uint32_t shared_row) { LDMATRIX(r, shared_row, ".trans"); }
__device__ __forceinline__ void ldmatrix_x4(uint32_t r[4], const void *shared_row) { ldmatrix_x4(r, shared_at(shared_row)); }
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t r[4], const void *shared_row) { ldmatrix_x4_trans(r, shared_at(shared_row)); }
#else
inline void ldmatrix_x4(uint32_t r[4], const void *shared_row) { emu_ldmatrix(r, shared_row, false); }
inline void ldmatrix_x4_trans(uint32_t r[4], const void *shared_row) { emu_ldmatrix(r, shared_row, true); }
inline void ldmatrix_x4(uint32_t r[4], uint32_t at) { emu_ldmatrix(r, (const char *)emu_dynamic_shared() + at, false); }
inline void ldmatrix_x4_trans(uint32_t r[4], uint32_t at) { emu_ldmatrix(r, (const char *)emu_dynamic_shared() + at, true); }
#endif

/* c (16,8) f32 += a (16,16) b (16,8), bf16, one product per warp. With g = lane / 4, t = lane % 4, each register two values:
 *   a[0] row g, columns 2t..   a[1] row g + 8   a[2] row g, columns 2t + 8..   a[3] row g + 8, columns 2t + 8..
 *   b[0] rows 2t.. of column g   b[1] rows 2t + 8..      c[0], c[1] row g, columns 2t, 2t + 1   c[2], c[3] row g + 8 */
__device__ __forceinline__ void mma_m16n8k16(float c[4], const uint32_t a[4], const uint32_t b[2]) {
#ifdef __CUDACC__
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    emu_mma(c, a, b);
#endif
}
