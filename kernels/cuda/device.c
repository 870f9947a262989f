/* device.c -- a graphics card as a device: memory, streams, copies, the table of its ops. By the CUDA runtime alone: whoever
 * stands in for libcudart stands in for all of this.
 *
 * The ops are in gemm.c (cuBLASLt) and in the .cu files beside this one, under the names of the CPU's files.
 */
#include "engine/base.h"
#include "kernels/cuda/stream.h"
#include "kernels/ops.h"

const Ops ops_cuda = {
#define X(name) .name = cuda_##name,
    OPS(X)
#undef X
};

void cuda_check(cudaError_t status, const char *call, const char *file, int line) {
    if (status == cudaSuccess) return;
    die(status == cudaErrorMemoryAllocation ? FAIL_MEMORY : FAIL_OTHER, "%s:%d: %s: %s (%s)", file, line, call,
        cudaGetErrorString(status), cudaGetErrorName(status));
}

/* ---- streams -------------------------------------------------------------------------------------- */

static void stream_open(Stream *s, const char *name, int card, int priority) {
    *s = (Stream){.name = name, .card = card};
    /* non-blocking: the default stream, which nobody uses, would order the others */
    CUDA_CHECK(cudaStreamCreateWithPriority(&s->cuda, cudaStreamNonBlocking, priority));
    CUDA_CHECK(cudaEventCreateWithFlags(&s->reached, cudaEventDisableTiming));
}

void *cuda_scratch(Stream *s, size_t bytes) {
    if (s->scratch_bytes < bytes) {
        const size_t mb = (size_t)1 << 20, want = (MAX(bytes, 2 * s->scratch_bytes) + mb - 1) & ~(mb - 1);
        CUDA_CHECK(cudaFree(s->scratch)); /* waits for whoever still works in it */
        s->scratch_bytes = 0;
        CUDA_CHECK(cudaMalloc(&s->scratch, want));
        s->scratch_bytes = want;
    }
    return s->scratch;
}

/* Leaves the slot that is full for the next one, whose copies of last time must be done. */
static void next_slot(Staging *g, cudaStream_t stream) {
    if (g->slot[g->now]) CUDA_CHECK(cudaEventRecord(g->copied[g->now], stream));
    g->now = (g->now + 1) % STAGING_SLOTS;
    g->used = 0;
    if (g->slot[g->now]) {
        CUDA_CHECK(cudaEventSynchronize(g->copied[g->now]));
    } else {
        CUDA_CHECK(cudaHostAlloc((void **)&g->slot[g->now], STAGING_SLOT_BYTES, cudaHostAllocDefault));
        CUDA_CHECK(cudaEventCreateWithFlags(&g->copied[g->now], cudaEventDisableTiming));
    }
}

void cuda_upload(Stream *s, void *dst, const void *src, size_t bytes) {
    Staging *g = &s->staging;
    for (size_t at = 0; at < bytes;) {
        if (!g->slot[g->now] || g->used == STAGING_SLOT_BYTES) next_slot(g, s->cuda);
        const size_t n = MIN(bytes - at, STAGING_SLOT_BYTES - g->used);
        memcpy(g->slot[g->now] + g->used, (const char *)src + at, n);
        CUDA_CHECK(cudaMemcpyAsync((char *)dst + at, g->slot[g->now] + g->used, n, cudaMemcpyHostToDevice, s->cuda));
        g->used = MIN((g->used + n + 63) & ~(size_t)63, STAGING_SLOT_BYTES);
        at += n;
    }
}

void cuda_download(Stream *s, void *dst, const void *src, size_t bytes) {
    if (bytes) CUDA_CHECK(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, s->cuda));
    CUDA_CHECK(cudaStreamSynchronize(s->cuda));
}

/* ---- the device ----------------------------------------------------------------------------------- */

enum { MAX_CARDS = 16, OLDEST = 8 /* compute capability 8.0: cp.async, bf16 on tensor cores */ };

typedef struct Card {
    Device device;
    Stream compute, copy, comm;
} Card;

static void memory(Device *d, size_t *available, size_t *total) {
    (void)d;
    CUDA_CHECK(cudaMemGetInfo(available, total));
}

static void *alloc(Device *d, size_t bytes) {
    void *p = NULL;
    const cudaError_t status = cudaMalloc(&p, MAX(bytes, 1));
    if (status == cudaErrorMemoryAllocation) {
        size_t available, total;
        memory(d, &available, &total);
        die(FAIL_MEMORY, "cannot take %zu bytes (%.1f GiB) of the card's memory, %.1f of its %.1f GiB are free (lower the batch size?)",
            bytes, (double)bytes / (1 << 30), (double)available / (1 << 30), (double)total / (1 << 30));
    }
    CUDA_CHECK(status);
    return p;
}

static void release(Device *d, void *p, size_t bytes) {
    (void)d, (void)bytes;
    CUDA_CHECK(cudaFree(p)); /* waits for queued work */
}

static void upload(Device *d, void *dst, const void *src, size_t bytes) { cuda_upload(d->main, dst, src, bytes); }
static void download(Device *d, void *dst, const void *src, size_t bytes) { cuda_download(d->main, dst, src, bytes); }

static void zero(Device *d, void *p, size_t bytes) {
    if (bytes) CUDA_CHECK(cudaMemsetAsync(p, 0, bytes, d->main->cuda));
}

static void after(Device *d, Stream *s, Stream *other) {
    (void)d;
    CUDA_CHECK(cudaEventRecord(other->reached, other->cuda));
    CUDA_CHECK(cudaStreamWaitEvent(s->cuda, other->reached, 0));
}

static void wait_all(Device *d) {
    CUDA_CHECK(cudaStreamSynchronize(d->main->cuda));
    CUDA_CHECK(cudaStreamSynchronize(d->copy->cuda));
    CUDA_CHECK(cudaStreamSynchronize(d->comm->cuda));
}

int device_cuda_count(Error *e) {
    int n = 0;
    const cudaError_t status = cudaGetDeviceCount(&n);
    if (status != cudaSuccess) {
        cudaGetLastError(); /* or the next call would report it again */
        fail_as(e, FAIL_CONFIG, "no graphics card can be used: %s (run.device=cpu computes without)", cudaGetErrorString(status));
        return 0;
    }
    if (!n) fail_as(e, FAIL_CONFIG, "there is no graphics card that CUDA can use (run.device=cpu computes without)");
    return n;
}

Device *device_cuda(int index, Error *e) {
    static Card cards[MAX_CARDS];
    const int n = device_cuda_count(e);
    if (!n) return NULL;
    if (index < 0 || index >= MIN(n, MAX_CARDS)) {
        fail_as(e, FAIL_CONFIG, "there is no graphics card %d, they are numbered 0 to %d", index, MIN(n, MAX_CARDS) - 1);
        return NULL;
    }
    Card *c = &cards[index];
    Device *d = &c->device;
    CUDA_CHECK(cudaSetDevice(index));
    if (d->name) return d;
    struct cudaDeviceProp p;
    CUDA_CHECK(cudaGetDeviceProperties(&p, index));
    if (p.major < OLDEST) {
        fail_as(e, FAIL_CONFIG, "graphics card %d, %s, is of compute capability %d.%d; the kernels need %d.0 or newer", index, p.name,
                p.major, p.minor, OLDEST);
        return NULL;
    }
    int low, high;
    CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&low, &high));
    stream_open(&c->compute, "compute", index, low);
    stream_open(&c->copy, "copy", index, low);
    stream_open(&c->comm, "comm", index, high); /* its few blocks should not wait behind a whole backward pass */
    *d = (Device){.name = "cuda", .ops = &ops_cuda, .main = &c->compute, .copy = &c->copy, .comm = &c->comm, .nthreads = 1,
                  .alloc = alloc, .release = release, .memory = memory, .upload = upload, .download = download, .zero = zero,
                  .after = after, .sync = wait_all};
    snprintf(d->description, sizeof d->description, "%.80s, %d multiprocessors, %.1f GiB, compute capability %d.%d", p.name,
             p.multiProcessorCount, (double)p.totalGlobalMem / (1 << 30), p.major, p.minor);
    return d;
}
