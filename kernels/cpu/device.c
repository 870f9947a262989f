/* device.c -- the CPU as a device: plain memory, copies that have happened when they return, the table of its ops.
 *
 * The ops themselves are in gemm.c, elementwise.c, norm.c, softmax.c, attention.c, embed.c, image.c, loss.c, optim.c.
 */
#include "kernels/cpu/cpu.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

const Ops ops_cpu = {
#define X(name) .name = cpu_##name,
    OPS(X)
#undef X
};

enum { LARGE_PAGE = 2 << 20 };

/* ---- scratch -------------------------------------------------------------------------------------- */

static _Thread_local struct { void *p; size_t size; } slots[SCRATCH_SLOTS];

/* OpenMP ends threads when the team shrinks: they give their scratch back. */
static pthread_key_t at_thread_end;
static pthread_once_t key_once = PTHREAD_ONCE_INIT;

static void free_slots(void *unused) {
    (void)unused;
    for (int i = 0; i < SCRATCH_SLOTS; i++) free(slots[i].p);
    memset(slots, 0, sizeof slots);
}

static void make_key(void) {
    if (pthread_key_create(&at_thread_end, free_slots)) die(FAIL_MEMORY, "no thread key left for scratch memory");
}

void *cpu_scratch(ScratchSlot slot, size_t bytes) {
    if (slots[slot].size < bytes) {
        size_t want = MAX(bytes, 2 * slots[slot].size);
        const size_t page = want >= LARGE_PAGE ? LARGE_PAGE : 4096;
        want = (want + page - 1) & ~(page - 1);
        free(slots[slot].p);
        slots[slot].p = aligned_alloc(page, want);
        if (!slots[slot].p) die(FAIL_MEMORY, "out of memory: %zu bytes of scratch for one operation on the CPU", want);
        slots[slot].size = want;
        if (page == LARGE_PAGE) madvise(slots[slot].p, want, MADV_HUGEPAGE);
        pthread_once(&key_once, make_key);
        pthread_setspecific(at_thread_end, slots);
    }
    return slots[slot].p;
}

/* ---- bf16 ----------------------------------------------------------------------------------------- */

void *wide_copy(Wide *w, DType t, void *p_, int64_t rows, int64_t ld, int64_t n, bool in, bool out) {
    uint16_t *p = p_;
    if (!p || t == F32) return p;
    for (int i = 0; i < w->n && in && out; i++) /* y = a a: two gradients add up in one buffer, so in one copy, too */
        if (w->copy[i].p == p && w->copy[i].out) return w->copy[i].f;
    CHECK(w->n < WIDE_MAX, "an op of more than %d bf16 tensors", WIDE_MAX);
    float *f = cpu_scratch((ScratchSlot)(SCRATCH_WIDE + w->n), (size_t)(rows * n) * sizeof *f);
    w->copy[w->n++] = (struct WideCopy){f, p, rows, ld, n, out};
    if (!in) return f;
    if (rows == 1) {
        cpu_cast(NULL, F32, f, BF16, p, n);
        return f;
    }
    PAR_FOR(rows * n)
    for (int64_t i = 0; i < rows; i++) {
        SIMD
        for (int64_t j = 0; j < n; j++) f[i * n + j] = bits_f32((uint32_t)p[i * ld + j] << 16);
    }
    return f;
}

void wide_end(Wide *w) {
    for (int k = 0; k < w->n; k++) {
        const struct WideCopy *c = &w->copy[k];
        if (!c->out) continue;
        if (c->rows == 1) {
            cpu_cast(NULL, BF16, c->p, F32, c->f, c->n);
            continue;
        }
        PAR_FOR(c->rows * c->n)
        for (int64_t i = 0; i < c->rows; i++) {
            SIMD
            for (int64_t j = 0; j < c->n; j++) c->p[i * c->ld + j] = bf16_round(c->f[i * c->n + j]);
        }
    }
}

int64_t rows_named(const int32_t *idx, int64_t n) {
    int64_t rows = 0;
    for (int64_t i = 0; i < n; i++) rows = MAX(rows, (int64_t)idx[i] + 1);
    return rows;
}

/* ---- the device ----------------------------------------------------------------------------------- */

static void *alloc(Device *d, size_t bytes) {
    (void)d;
    if (!bytes) bytes = 1;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        die(FAIL_MEMORY, "cannot reserve %zu bytes (%.1f GiB) of memory: %s (lower the batch size, or ulimit -v?)",
            bytes, (double)bytes / (1 << 30), strerror(errno));
    /* Large pages where the kernel has them: matrix products walk hundreds of megabytes of weights, and a step at ViLT-B/32 size
     * takes 0.86 of the processor time. A hint: where it is refused, nothing is lost. */
    if (bytes >= LARGE_PAGE) madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

static void release(Device *d, void *p, size_t bytes) {
    (void)d;
    if (p) munmap(p, bytes ? bytes : 1);
}

static void copy(Device *d, void *dst, const void *src, size_t bytes) {
    (void)d;
    if (bytes) memcpy(dst, src, bytes);
}

static void zero(Device *d, void *p, size_t bytes) {
    (void)d;
    if (bytes) memset(p, 0, bytes);
}

static void after(Device *d, Stream *s, Stream *other) { (void)d, (void)s, (void)other; }

static void wait_all(Device *d) { (void)d; }

static void memory(Device *d, size_t *available, size_t *total) {
    (void)d;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    *available = (size_t)sysconf(_SC_AVPHYS_PAGES) * page;
    *total = (size_t)sysconf(_SC_PHYS_PAGES) * page;
}

/* The cores this process may use: what taskset, a container or the batch system left it. */
static int cores(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set)) return 1;
    return MAX(CPU_COUNT(&set), 1);
}

Device *device_cpu(int nthreads) {
    static Device dev = {.name = "cpu", .ops = &ops_cpu, .reserves = true, .alloc = alloc, .release = release,
                         .memory = memory, .upload = copy, .download = copy, .zero = zero, .after = after, .sync = wait_all};
    CHECK(nthreads >= 0, "device_cpu: %d threads", nthreads);
    dev.nthreads = nthreads ? nthreads : cores();
    omp_set_num_threads(dev.nthreads);
    snprintf(dev.description, sizeof dev.description, "%d threads", dev.nthreads);
    return &dev;
}
