/* device.cpp -- the emulated card as a Device: lazy streams, memory, the table of its ops. See emu.h. */
#include "tests/emu/block.h"

extern "C" {
#include "kernels/ops.h"
}

#include <deque>
#include <errno.h>
#include <functional>
#include <memory>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- memory --------------------------------------------------------------------------------------- */

/* Nobody but kernels and copies may touch a card's memory: outside of them the pages of large pieces are closed, and host code
 * that follows a device pointer dies on the spot. Small ones come from the heap, where a sanitizer knows their end; system calls
 * for each buffer of the kernel tests would take longer than these. */
enum { CLOSED_FROM = 1 << 20 };
static std::vector<std::pair<void *, size_t>> taken;
static int inside;

static void allow(void *p, size_t bytes, int access) {
    if (mprotect(p, bytes, access)) {
        fprintf(stderr, "emu: mprotect: %s\n", strerror(errno));
        abort();
    }
}

struct Inside {
    Inside() {
        if (!inside++)
            for (auto &t : taken) allow(t.first, t.second, PROT_READ | PROT_WRITE);
    }
    ~Inside() {
        if (!--inside)
            for (auto &t : taken) allow(t.first, t.second, PROT_NONE);
    }
};

static size_t round_256(size_t n) { return n ? (n + 255) & ~(size_t)255 : 256; }

/* NaN, so that what nobody wrote shows; but not where that would take gigabytes. */
enum { FILL_UP_TO = 64 << 20 };

static void *device_alloc(Device *, size_t bytes) {
    void *p;
    if (bytes < CLOSED_FROM) {
        p = aligned_alloc(256, round_256(bytes));
    } else {
        p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) p = NULL;
    }
    if (!p) {
        fprintf(stderr, "emu: no memory for %zu bytes: %s\n", bytes, strerror(errno));
        abort();
    }
    if (bytes <= FILL_UP_TO) memset(p, 0xFF, bytes);
    if (bytes < CLOSED_FROM) {
        emu_poison((char *)p + bytes, round_256(bytes) - bytes);
    } else {
        if (!inside) allow(p, bytes, PROT_NONE);
        taken.push_back({p, bytes});
    }
    return p;
}

static void device_sync(Device *d) {
    for (Stream *s : {d->main, d->copy, d->comm}) emu_stream_sync(s);
}

static void device_release(Device *d, void *p, size_t bytes) {
    device_sync(d);
    if (!p) return;
    if (bytes < CLOSED_FROM) {
        emu_unpoison(p, round_256(bytes));
        free(p);
        return;
    }
    munmap(p, bytes);
    taken.erase(std::remove_if(taken.begin(), taken.end(), [p](auto &t) { return t.first == p; }), taken.end());
}

/* ---- streams -------------------------------------------------------------------------------------- */

struct Stream {
    const char *name;
    bool eager;
    std::deque<std::function<void()>> queue;
    uint64_t queued, ran;
    std::shared_ptr<char> scratch;
};

static Stream at_once = {"NULL", true, {}, 0, 0, {}};

static void run_until(Stream *s, uint64_t count) {
    if (s->ran >= count) return;
    Inside here;
    while (s->ran < count) {
        std::function<void()> work = std::move(s->queue.front());
        s->queue.pop_front();
        s->ran++;
        work();
    }
}

static void enqueue(Stream *s, std::function<void()> work) {
    if (!s) s = &at_once;
    s->queue.push_back(std::move(work));
    s->queued++;
    if (s->eager) run_until(s, s->queued);
}

void emu_launch(Stream *s, const EmuLaunch &launch) {
    enqueue(s, [launch] { emu_run_launch(&launch); });
}

extern "C" Stream *emu_stream(const char *name) { return new Stream{name, false, {}, 0, 0, {}}; }

extern "C" void emu_stream_after(Stream *s, Stream *earlier) {
    const uint64_t count = earlier->queued;
    enqueue(s, [=] { run_until(earlier, count); });
}

extern "C" void emu_stream_sync(Stream *s) {
    if (s) run_until(s, s->queued);
}

extern "C" void emu_call(Stream *s, void (*fn)(void *), const void *arg, size_t bytes) {
    std::vector<char> kept((const char *)arg, (const char *)arg + bytes);
    enqueue(s, [kept = std::move(kept), fn]() mutable { fn(kept.data()); });
}

/* Memory of the exact size, so that AddressSanitizer sees its ends; the last one dies when the stream gets here. */
extern "C" void *emu_scratch(Stream *s, size_t bytes) {
    if (!s) s = &at_once;
    const size_t whole = round_256(bytes);
    std::shared_ptr<char> p((char *)aligned_alloc(256, whole), [whole](char *q) {
        emu_unpoison(q, whole);
        free(q);
    });
    memset(p.get(), 0xFF, bytes);
    emu_poison(p.get() + bytes, whole - bytes);
    enqueue(s, [last = s->scratch] {});
    s->scratch = p;
    return p.get();
}

extern "C" void emu_upload(Stream *s, void *dst, const void *src, size_t bytes) {
    std::vector<char> kept((const char *)src, (const char *)src + bytes);
    enqueue(s, [kept = std::move(kept), dst] { if (!kept.empty()) memcpy(dst, kept.data(), kept.size()); });
}

extern "C" void emu_download(Stream *s, void *dst, const void *src, size_t bytes) {
    emu_stream_sync(s);
    Inside here;
    if (bytes) memcpy(dst, src, bytes);
}

/* ---- matrix products: a library's on a card, the CPU's here ------------------------------------------ */

static std::vector<float> widen(const void *x, int64_t rows, int64_t cols, int64_t ld) {
    std::vector<float> y((size_t)(rows * cols));
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) y[(size_t)(i * cols + j)] = bf16_to_f32(((const bf16 *)x)[i * ld + j]);
    return y;
}

extern "C" void emu_gemm(Stream *s, DType t, DType tc, void *C, int64_t ldc, const void *A, int64_t lda, const void *B_, int64_t ldb,
                         const float *bias, bool ta, bool tb, int64_t M, int64_t N, int64_t K, float beta) {
    enqueue(s, [=] {
        if (t == F32 && tc == F32) {
            cpu_gemm(NULL, F32, F32, C, ldc, A, lda, B_, ldb, bias, ta, tb, M, N, K, beta);
            return;
        }
        /* bf16: exact products, sums in f32, one rounding */
        const std::vector<float> a = widen(A, ta ? K : M, ta ? M : K, lda), b = widen(B_, tb ? N : K, tb ? K : N, ldb);
        const int64_t la = ta ? M : K, lb = tb ? K : N;
        if (tc == F32) {
            cpu_gemm(NULL, F32, F32, C, ldc, a.data(), la, b.data(), lb, bias, ta, tb, M, N, K, beta);
            return;
        }
        std::vector<float> c = beta != 0 ? widen(C, M, N, ldc) : std::vector<float>((size_t)(M * N));
        cpu_gemm(NULL, F32, F32, c.data(), N, a.data(), la, b.data(), lb, bias, ta, tb, M, N, K, beta);
        for (int64_t i = 0; i < M; i++)
            for (int64_t j = 0; j < N; j++) ((bf16 *)C)[i * ldc + j] = bf16_from_f32(c[(size_t)(i * N + j)]);
    });
}

extern "C" void emu_gemm_bgrad(Stream *s, DType t, float *dw, float *dbias, const void *dy, const void *x,
                               int64_t rows, int64_t N, int64_t K) {
    if (dw) emu_gemm(s, t, F32, dw, K, dy, N, x, K, NULL, true, false, N, K, rows, 1);
    emu_bias_bwd(s, t, dbias, dy, rows, N);
}

extern "C" void emu_gemm_gelu_tanh(Stream *s, DType t, void *y, void *pre, const void *x, const void *w,
                                   const float *bias, int64_t rows, int64_t N, int64_t K) {
    if (!pre) pre = y;
    emu_gemm(s, t, t, pre, N, x, K, w, K, bias, false, true, rows, N, K, 0);
    emu_gelu_tanh_fwd(s, t, y, pre, rows * N);
}

extern "C" void emu_gemm_dgelu_tanh(Stream *s, DType t, void *dpre, const void *pre, const void *dz,
                                    const void *w, int64_t rows, int64_t N, int64_t K) {
    emu_gemm(s, t, t, dpre, N, dz, K, w, N, NULL, false, false, rows, N, K, 0);
    emu_gelu_tanh_bwd(s, t, dpre, pre, dpre, rows * N);
}

/* ---- the device ----------------------------------------------------------------------------------- */

extern "C" {
extern const Ops ops_emu = {
#define X(name) .name = emu_##name,
    OPS(X)
#undef X
};
}

static void device_after(Device *, Stream *s, Stream *other) { emu_stream_after(s, other); }

static void device_memory(Device *, size_t *available, size_t *total) {
    *available = (size_t)sysconf(_SC_AVPHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    *total = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
}

static void device_upload(Device *d, void *dst, const void *src, size_t bytes) { emu_upload(d->main, dst, src, bytes); }
static void device_download(Device *d, void *dst, const void *src, size_t bytes) { emu_download(d->main, dst, src, bytes); }
static void device_zero(Device *d, void *p, size_t bytes) {
    enqueue(d->main, [=] { if (bytes) memset(p, 0, bytes); });
}

extern "C" Device *device_emu(void) {
    static Device dev;
    if (!dev.name) {
        dev.name = "emu";
        dev.ops = &ops_emu;
        dev.main = emu_stream("compute");
        dev.copy = emu_stream("copy");
        dev.comm = emu_stream("comm");
        dev.nthreads = 1;
        dev.alloc = device_alloc;
        dev.release = device_release;
        dev.memory = device_memory;
        dev.upload = device_upload;
        dev.download = device_download;
        dev.zero = device_zero;
        dev.after = device_after;
        dev.sync = device_sync;
    }
    return &dev;
}
