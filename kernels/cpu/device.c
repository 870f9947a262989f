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
        want = (want + 4095) & ~(size_t)4095;
        free(slots[slot].p);
        slots[slot].p = aligned_alloc(64, want);
        if (!slots[slot].p) die(FAIL_MEMORY, "out of memory: %zu bytes of scratch for one operation on the CPU", want);
        slots[slot].size = want;
        pthread_once(&key_once, make_key);
        pthread_setspecific(at_thread_end, slots);
    }
    return slots[slot].p;
}

/* ---- the device ----------------------------------------------------------------------------------- */

enum { LARGE_PAGE = 2 << 20 };

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
