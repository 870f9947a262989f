/* emu.h -- CUDA on the host: one fiber per thread, block after block, in an order made to hurt. Implemented in emu.cpp.
 *
 * Two readers: tests (C) use the first part, kernel files compiled by g++ get the second through cuda.cuh.
 *
 * Within a block one warp runs as far ahead as it can before any other moves; which one leads, which lane of a warp goes first
 * and which block comes first is chosen by the seed. So a missing barrier shows as a wrong number. What cannot be right on a
 * card is reported and ends the launch: threads that wait at a barrier which others left out, a shuffle whose mask names a lane
 * that is not there, a launch over the limits, a misaligned access, two threads in one place of shared memory with no barrier
 * between, writing past a shared array, reading what an asynchronous copy has yet to bring. Shared memory is NaN when a block
 * begins. Asynchronous copies arrive at the wait. A stream is a queue that runs when somebody waits for it.
 *
 * Asked to count (emu_count), it also tells what each kernel moved, in which sectors, and where banks conflicted.
 *
 * It does not see what blocks of one launch do to each other beyond their order, nor occupancy.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- for tests ------------------------------------------------------------------------------------ */

struct Device;
struct Stream;

/* The emulated card. Valid until exit; its streams are lazy. */
struct Device *device_emu(void);

/* The schedule of the launches that follow; any number. */
void emu_schedule(uint64_t seed);
/* Of every launch that follows only the first and the last n blocks run; 0: all. */
void emu_blocks(int64_t n);

/* Reports are fatal unless somebody collects them: into text[0..size), which is emptied first; NULL: fatal again. The launch
 * that is reported is left where it is, later ones run. */
void emu_collect(char *text, size_t size);

/* What launches moved in global memory, in bytes. */
typedef struct EmuTraffic {
    int64_t loads, stores;  /* asked for by threads */
    int64_t read, written;  /* sectors of 32 bytes that a launch touched, each once: what DRAM sees when the caches do their part */
    int launches;
} EmuTraffic;
/* Counts into *t from now on, which is set to zero first; NULL: no more. A build under AddressSanitizer sees no accesses. */
void emu_count(EmuTraffic *t);

/* The same for one kernel, and how its warps asked. A request is what the lanes of a warp ask for with one instruction; here that
 * is the same place of the code, met equally often by each lane since the warp or the block last came together.
 *   sectors      of 32 bytes that requests to global memory touch; least_sectors: their distinct bytes by 32, rounded up
 *   wavefronts   of shared memory: a transaction is up to 4 bytes of each of 32 lanes, 8 of 16 or 16 of 8; it takes as many
 *                wavefronts as its busiest of 32 banks (words of 4 bytes) has different words. One each: no bank conflict */
typedef struct EmuKernel {
    const char *name;     /* as the launch has it, template arguments as they are written there */
    const void *function; /* where its code is: `nm` knows what it is really called */
    int threads, launches;
    size_t shared;            /* most bytes of a block, static and dynamic */
    int64_t read, written;    /* as above */
    int64_t bytes, wide_bytes; /* asked for; by accesses of 16 bytes */
    int64_t sectors, least_sectors, transactions, wavefronts;
} EmuKernel;
/* Kernel i of those launched since the last emu_count(t), in the order of their first launch; NULL after the last. */
const EmuKernel *emu_kernel(int i);
bool emu_sees_accesses(void);

/* Streams: queues that run when waited for. After(s, earlier): what is queued on s from now on runs after all that is queued
 * on `earlier` by now. A NULL stream runs everything at once. */
struct Stream *emu_stream(const char *name);
void emu_stream_after(struct Stream *s, struct Stream *earlier);
void emu_stream_sync(struct Stream *s);
/* fn(arg), of which `bytes` are copied, runs when the stream gets there and may touch the card's memory: a library's kernel. */
void emu_call(struct Stream *s, void (*fn)(void *), const void *arg, size_t bytes);

/* ---- what cuda.cuh's host functions are, too -------------------------------------------------------- */

void *emu_scratch(struct Stream *s, size_t bytes);
void emu_upload(struct Stream *s, void *dst, const void *src, size_t bytes);
void emu_download(struct Stream *s, void *dst, const void *src, size_t bytes);

#ifdef __cplusplus
}

/* ---- for kernel files: the CUDA language ------------------------------------------------------------ */

#include <algorithm>
#include <math.h>
#include <string.h>
#include <tuple>

#define __global__ static
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __restrict__ __restrict
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };

struct EmuPlace { /* of the thread that runs */
    dim3 thread, block, block_dim, grid_dim;
};
extern EmuPlace emu_place;
#define threadIdx (emu_place.thread)
#define blockIdx (emu_place.block)
#define blockDim (emu_place.block_dim)
#define gridDim (emu_place.grid_dim)
#define warpSize 32

/* ---- launches ---- */

struct EmuLaunch {
    const char *kernel, *file;
    int line;
    int64_t grid[3], block[3];
    size_t dynamic;                /* bytes of dynamic shared memory */
    void (*call)(const void *kept); /* runs one thread */
    void (*drop)(const void *kept);
    const void *kept;
    size_t kept_bytes; /* a card has the arguments in its constant memory: not in the traffic */
    const void *function;
};
void emu_launch(Stream *s, const EmuLaunch &launch);

/* Arguments are evaluated at the launch, as a card does, and kept until the stream gets there. */
template <typename... P> struct EmuKept {
    void (*kernel)(P...);
    std::tuple<std::remove_cv_t<P>...> args;
    static void call(const void *kept) {
        const EmuKept *k = (const EmuKept *)kept;
        std::apply(k->kernel, k->args);
    }
    static void drop(const void *kept) { delete (const EmuKept *)kept; }
};
template <typename... P, typename... A> void emu_launch_kernel(Stream *s, EmuLaunch l, void (*kernel)(P...), A &&...args) {
    typedef EmuKept<P...> Kept;
    l.call = Kept::call;
    l.drop = Kept::drop;
    l.kept = new Kept{kernel, std::tuple<std::remove_cv_t<P>...>(std::forward<A>(args)...)};
    l.kept_bytes = sizeof(Kept);
    l.function = (const void *)kernel;
    emu_launch(s, l);
}

struct EmuSize { /* an integer or a dim3; 64 bits, so that a grid over the limit is seen */
    int64_t v[3];
    EmuSize(dim3 d) : v{d.x, d.y, d.z} {}
    template <typename I, typename = std::enable_if_t<std::is_integral_v<I>>> EmuSize(I n) : v{(int64_t)n, 1, 1} {}
};

#define LAUNCH(kernel, grid, block, s, ...) LAUNCH_SMEM(kernel, grid, block, 0, s, __VA_ARGS__)
#define LAUNCH_SMEM(kernel, grid, block, bytes, s, ...)                                                      \
    do {                                                                                                     \
        const EmuSize g_(grid), b_(block);                                                                   \
        emu_launch_kernel(s, {#kernel, __FILE__, __LINE__, {g_.v[0], g_.v[1], g_.v[2]}, {b_.v[0], b_.v[1], b_.v[2]},   \
                              (size_t)(bytes), nullptr, nullptr, nullptr, 0, nullptr}, kernel, __VA_ARGS__); \
    } while (0)

#define cuda_scratch emu_scratch
#define cuda_upload emu_upload
#define cuda_download emu_download

/* ---- shared memory ---- */

/* One per array and instantiation; nobody may use what an earlier block left in it. */
struct EmuShared { uint64_t block; void *p; };
void *emu_shared(EmuShared *site, const char *name, size_t bytes);
void *emu_dynamic_shared(void);
#define SHARED(T, name, n)                                                                                   \
    static EmuShared name##_site;                                                                            \
    T *const name = (T *)emu_shared(&name##_site, #name, sizeof(T) * (n))
#define DYNAMIC_SHARED(T, name) T *const name = (T *)emu_dynamic_shared()

/* ---- barriers and warps ---- */

void emu_barrier(const char *file, int line);
#define __syncthreads() emu_barrier(__FILE__, __LINE__)
static inline void __threadfence() {}

/* A step that the lanes of `mask` take together. The last to arrive does it for all: op(arg of each lane, mask). */
typedef void EmuWarpOp(void *const arg[32], uint32_t mask);
void emu_warp(uint32_t mask, const char *what, EmuWarpOp *op, void *arg);
int emu_lane(void);

template <typename A> struct EmuShuffle { A value, result; int from; };
/* It reads other threads' stacks, which no kernel does. */
template <typename A> __attribute__((no_sanitize("thread"))) void emu_shuffle_op(void *const arg[32], uint32_t mask) {
    for (int lane = 0; lane < 32; lane++) {
        if (!(mask >> lane & 1)) continue;
        EmuShuffle<A> *s = (EmuShuffle<A> *)arg[lane];
        /* from a lane that takes no part: undefined on a card, so poison here */
        if (mask >> s->from & 1) s->result = ((EmuShuffle<A> *)arg[s->from])->value;
        else memset(&s->result, 0xFF, sizeof s->result);
    }
}
template <typename A> A emu_shuffle(uint32_t mask, A v, int from, const char *what) {
    EmuShuffle<A> s = {v, v, from};
    emu_warp(mask, what, emu_shuffle_op<A>, &s);
    return s.result;
}
/* Within groups of `width` lanes; a lane outside its group is the lane itself. */
template <typename A> A __shfl_sync(uint32_t mask, A v, int src, int width = 32) {
    return emu_shuffle(mask, v, (emu_lane() & ~(width - 1)) | (src & (width - 1)), "__shfl_sync");
}
template <typename A> A __shfl_xor_sync(uint32_t mask, A v, int m, int width = 32) {
    const int lane = emu_lane(), from = lane ^ m;
    return emu_shuffle(mask, v, (from & ~(width - 1)) > (lane & ~(width - 1)) ? lane : from, "__shfl_xor_sync");
}
template <typename A> A __shfl_down_sync(uint32_t mask, A v, unsigned d, int width = 32) {
    const int lane = emu_lane(), from = lane + (int)d;
    return emu_shuffle(mask, v, (lane & (width - 1)) + (int)d >= width ? lane : from, "__shfl_down_sync");
}
template <typename A> A __shfl_up_sync(uint32_t mask, A v, unsigned d, int width = 32) {
    const int lane = emu_lane(), from = lane - (int)d;
    return emu_shuffle(mask, v, (lane & (width - 1)) < (int)d ? lane : from, "__shfl_up_sync");
}
unsigned __ballot_sync(uint32_t mask, int predicate);
static inline int __any_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
static inline int __all_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
void __syncwarp(uint32_t mask = 0xffffffffu);

/* One access of a thread, and from where in the code, that the compiler does not announce itself. */
void emu_access(const void *p, size_t n, bool write, const void *place);
#define EMU_ACCESS __attribute__((noinline, no_sanitize("thread")))

/* ---- integer atomics (fibers do not preempt each other). Float atomics are missing on purpose. ---- */

/* Threads meet in them without a barrier: not for the look-out for races. */
#define EMU_ATOMIC(name, next)                                                                               \
    template <typename I> __attribute__((noinline, no_sanitize("thread"))) I name(I *p, std::common_type_t<I> v) { \
        static_assert(std::is_integral_v<I>, "float atomics make the last bits depend on the order of threads"); \
        const I was = *p;                                                                                    \
        *p = (next);                                                                                         \
        return was;                                                                                          \
    }
EMU_ATOMIC(atomicAdd, was + v)
EMU_ATOMIC(atomicMax, was > v ? was : v)
EMU_ATOMIC(atomicMin, was < v ? was : v)
EMU_ATOMIC(atomicOr, was | v)
EMU_ATOMIC(atomicExch, v)
template <typename I>
__attribute__((noinline, no_sanitize("thread"))) I atomicCAS(I *p, std::common_type_t<I> expected, std::common_type_t<I> v) {
    const I was = *p;
    if (was == expected) *p = v;
    return was;
}

/* ---- numbers ---- */

struct bf16 { uint16_t bits; };
static inline uint32_t __float_as_uint(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
static inline float __uint_as_float(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }
static inline int __float_as_int(float x) { return (int)__float_as_uint(x); }
static inline float __int_as_float(int i) { return __uint_as_float((uint32_t)i); }
static inline float bf16_to_f32(bf16 x) { return __uint_as_float((uint32_t)x.bits << 16); }
static inline bf16 bf16_from_f32(float x) { /* nearest, ties to even; NaN becomes the one NaN that a card makes */
    const uint32_t u = __float_as_uint(x);
    return {(uint16_t)((u & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FFFu : (u + 0x7FFFu + (u >> 16 & 1)) >> 16)};
}
static inline float __fmul_rn(float a, float b) { return a * b; } /* never fused with an addition */
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
template <typename A> A __ldg(const A *p) { return *p; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __float2int_rn(float x) { return (int)rintf(x); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
using std::max;
using std::min;

/* ---- the C++ twins of cuda.cuh's PTX ---- */

void emu_copy16(void *shared_dst, const void *global_src); /* NULL: zeros */
void emu_copy_commit(void);
void emu_copy_wait(int newest);
void emu_ldmatrix(uint32_t r[4], const void *shared_row, bool transpose);
void emu_mma(float c[4], const uint32_t a[4], const uint32_t b[2]);

#endif
