/* access.cpp -- every load and store of a kernel, seen: races in shared memory, misaligned vectors, traffic, bank conflicts.
 *
 * g++ compiles the kernels with -fsanitize=thread and -fsanitize=alignment, but nobody links those sanitizers: the calls that
 * it puts before each load and store come here. So nothing is asked of a kernel's author, no access can be forgotten, and
 * the bytes are those of the optimised program. AddressSanitizer excludes this: under SAN=1 it looks at the accesses instead.
 */
#include "tests/emu/block.h"

#include <algorithm>
#include <string.h>
#include <unordered_map>

/* ---- races ------------------------------------------------------------------------------------------ */

/* Two threads touch a place, one of them writes, and nothing orders them: no barrier between (the epoch), within a warp no step
 * that the lanes took together. Kept per word of four bytes: the last writer and the last reader, which of the bytes they touched
 * (pixels are bytes, and two threads may each have one), and whether several warps read. */
struct Touch {
    uint32_t write_epoch, read_epoch;
    uint16_t writer, reader, write_step, read_step;
    uint32_t odd; /* the block in which there is something about it, a red zone or a copy under way */
    uint8_t write_bytes, read_bytes;
    bool warps_read, red_zone;
};
enum { WORD = 4 };
static Touch touched[2][(ALL_SHARED + RED_ZONE + 64 * RED_ZONE) / WORD];

/* SIZE_MAX: p is elsewhere. which: 0 static, 1 dynamic. */
static inline size_t offset_in_shared(const void *p, int *which) {
    const size_t in_static = (uintptr_t)p - (uintptr_t)emu_static_shared, in_dynamic = (uintptr_t)p - (uintptr_t)emu_dynamic_shared_memory;
    *which = in_dynamic < ALL_SHARED + RED_ZONE;
    if (*which) return in_dynamic;
    return in_static < STATIC_SHARED + 64 * RED_ZONE ? in_static : SIZE_MAX;
}

static void tell(const void *p, const char *what, int other) {
    const char *name = "(none)";
    size_t at = 0;
    for (const Array &a : cta.arrays)
        if ((const char *)p >= a.p && (const char *)p < a.p + a.bytes + RED_ZONE) name = a.name, at = (size_t)((const char *)p - a.p);
    if (other < 0) emu_report("shared array %s, byte %zu: %s", name, at, what);
    else emu_report("shared array %s, byte %zu: %s thread %d, with no barrier between", name, at, what, other);
}

/* Has the thread that runs a right to come after `other`, which was here in warp step `step` of this epoch? */
static bool ordered(int other, uint16_t step) {
    const int me = thread_number();
    return other == me || (other / 32 == me / 32 && step != cta.steps[me / 32]);
}

static void note_read(Touch *t, uint8_t bytes, uint16_t me, uint16_t step) {
    const bool again = t->read_epoch == cta.epoch && (t->read_bytes & bytes);
    t->warps_read = again && (t->warps_read || t->reader / 32 != me / 32);
    t->read_epoch = cta.epoch;
    t->read_bytes = bytes;
    t->reader = me;
    t->read_step = step;
}

static void note_write(Touch *t, uint8_t bytes, uint16_t me, uint16_t step) {
    t->write_epoch = cta.epoch;
    t->write_bytes = bytes;
    t->writer = me;
    t->write_step = step;
}

/* What is amiss, if anything. */
static void examine(const void *p, const Touch *t, uint8_t bytes, bool write, uint16_t me) {
    if (t->odd == (uint32_t)cta.number) {
        if (t->red_zone) tell(p, write ? "written, which is behind its end" : "read, which is behind its end", -1);
        else tell(p, write ? "written while an asynchronous copy to it is on its way" : "read before the asynchronous copy to it was waited for", -1);
    } else if (t->write_epoch == cta.epoch && (t->write_bytes & bytes) && !ordered(t->writer, t->write_step)) {
        tell(p, write ? "written after a write by" : "read after a write by", t->writer);
    } else if (write && t->read_epoch == cta.epoch && (t->read_bytes & bytes) &&
               (!ordered(t->reader, t->read_step) || (t->warps_read && t->reader / 32 == me / 32))) {
        tell(p, "written after a read by", t->reader);
    }
}

static void touch(const void *p, size_t at, int which, size_t n, bool write) {
    const uint16_t me = (uint16_t)thread_number(), step = cta.steps[me / 32];
    const uint8_t bytes = n >= WORD ? 15 : (uint8_t)(((1 << n) - 1) << at % WORD);
    Touch *t = &touched[which][at / WORD];
    for (Touch *end = t + (n + WORD - 1) / WORD; t < end; t++) {
        const bool quiet = t->write_epoch != cta.epoch && t->odd != (uint32_t)cta.number && !(write && t->read_epoch == cta.epoch);
        if (!quiet) examine(p, t, bytes, write, me); /* most are quiet */
        if (write) note_write(t, bytes, me, step);
        else note_read(t, bytes, me, step);
    }
}

void shared_access(const void *p, size_t n, bool write) {
    int which;
    const size_t at = offset_in_shared(p, &which);
    touch(p, at, which, n, write);
}

/* From now on, or no longer. */
static void set_odd(const void *p, size_t n, bool odd, bool red_zone) {
    int which;
    const size_t at = offset_in_shared(p, &which);
    for (size_t i = (at + WORD - 1) / WORD; i < (at + n) / WORD; i++) {
        touched[which][i].odd = odd ? (uint32_t)cta.number : 0;
        touched[which][i].red_zone = red_zone;
    }
}

void shared_copy(const void *p, size_t n, bool arrives) {
    int which;
    if (offset_in_shared(p, &which) == SIZE_MAX) return emu_report("cp_async16 to %p, which is not shared memory", p);
    if (arrives) set_odd(p, n, false, false);
    shared_access(p, n, true);
    if (!arrives) set_odd(p, n, true, false);
}

void shared_red_zone(const void *p, size_t n) { set_odd(p, n, true, true); }

/* ---- traffic ---------------------------------------------------------------------------------------- */

enum { SECTOR = 32, BANKS = 32, WARPS = MAX_THREADS / 32 };

static EmuTraffic *traffic;
static std::unordered_map<uintptr_t, int> sectors; /* in this launch: 1 read first, 2 written */
static std::vector<EmuKernel> kernels;
static EmuKernel *kernel; /* the one that runs, when somebody counts */

/* What the lanes of a warp have asked for from one place of the code since they last came together: the first time, the second... */
struct Request { uint32_t lanes; uintptr_t at[32]; };
struct Site {
    bool shared;
    uint32_t size;
    std::vector<Request> requests;
    uint32_t met[32]; /* by each lane */
};
static std::unordered_map<const void *, Site> sites[WARPS];
static std::vector<Site *> asked[WARPS]; /* those that have requests */

extern "C" void emu_count(EmuTraffic *t) {
    traffic = t;
    kernel = NULL;
    sectors.clear();
    if (!t) return;
    *t = EmuTraffic();
    kernels.clear();
}

extern "C" const EmuKernel *emu_kernel(int i) { return i < (int)kernels.size() ? &kernels[i] : NULL; }

extern "C" bool emu_sees_accesses(void) {
#ifdef __SANITIZE_ADDRESS__
    return false;
#else
    return true;
#endif
}

void traffic_launch(const EmuLaunch *l) {
    if (!traffic) return;
    traffic->launches++;
    sectors.clear();
    kernel = NULL;
    for (EmuKernel &k : kernels)
        if (k.function == l->function) kernel = &k;
    if (!kernel) {
        kernels.push_back({});
        kernel = &kernels.back();
        kernel->name = l->kernel;
        kernel->function = l->function;
    }
    kernel->launches++;
    kernel->threads = std::max(kernel->threads, (int)(l->block[0] * l->block[1] * l->block[2]));
}

static void note_request(const void *p, size_t n, bool shared, const void *place) {
    const int thread = thread_number(), lane = thread % 32;
    Site &s = sites[thread / 32][place];
    s.shared = shared;
    s.size = (uint32_t)n;
    const uint32_t i = s.met[lane]++;
    if (s.requests.empty()) asked[thread / 32].push_back(&s);
    if (i == s.requests.size()) s.requests.push_back({});
    s.requests[i].lanes |= 1u << lane;
    s.requests[i].at[lane] = (uintptr_t)p;
}

void shared_request(const void *p, size_t n, const void *place) {
    if (kernel) note_request(p, n, true, place);
}

void global_access(const void *p, size_t n, bool write, const void *place) {
    if (!kernel) return;
    (write ? traffic->stores : traffic->loads) += (int64_t)n;
    kernel->bytes += (int64_t)n;
    kernel->wide_bytes += n == 16 ? 16 : 0;
    note_request(p, n, false, place);
    for (uintptr_t sector = (uintptr_t)p / SECTOR; sector <= ((uintptr_t)p + n - 1) / SECTOR; sector++) {
        int &seen = sectors[sector];
        if (write && !(seen & 2)) seen |= 2, traffic->written += SECTOR, kernel->written += SECTOR;
        if (!write && !seen) seen |= 1, traffic->read += SECTOR, kernel->read += SECTOR;
    }
}

static void count_global(const Request &r, uint32_t size) {
    uintptr_t at[32];
    int n = 0;
    for (int lane = 0; lane < 32; lane++)
        if (r.lanes >> lane & 1) at[n++] = r.at[lane];
    std::sort(at, at + n);
    int64_t touched = 0, bytes = 0;
    uintptr_t end = 0, next_sector = 0; /* of what has been counted */
    for (int i = 0; i < n; i++) {
        const uintptr_t to = at[i] + size, last = (to - 1) / SECTOR;
        bytes += (int64_t)(to - std::min(std::max(at[i], end), to));
        end = to;
        touched += (int64_t)(last + 1 - std::min(std::max(at[i] / SECTOR, next_sector), last + 1));
        next_sector = last + 1;
    }
    kernel->sectors += touched;
    kernel->least_sectors += (bytes + SECTOR - 1) / SECTOR;
}

/* The lanes go in groups whose accesses fill 128 bytes. */
static void count_shared(const Request &r, uint32_t size) {
    const int group = size > 8 ? 8 : size > 4 ? 16 : 32;
    for (int first = 0; first < 32; first += group) {
        uintptr_t words[BANKS][32];
        int used[BANKS] = {}, most = 0;
        for (int lane = first; lane < first + group; lane++) {
            if (!(r.lanes >> lane & 1)) continue;
            for (uintptr_t w = r.at[lane] / WORD; w <= (r.at[lane] + size - 1) / WORD; w++) {
                uintptr_t *bank = words[w % BANKS];
                int &n = used[w % BANKS];
                if (std::find(bank, bank + n, w) == bank + n) bank[n++] = w;
                most = std::max(most, n);
            }
        }
        kernel->wavefronts += most;
        kernel->transactions += most > 0;
    }
}

void traffic_warp_together(int warp) {
    if (!kernel) return;
    for (Site *s : asked[warp]) {
        for (const Request &r : s->requests) s->shared ? count_shared(r, s->size) : count_global(r, s->size);
        s->requests.clear();
        memset(s->met, 0, sizeof s->met);
    }
    asked[warp].clear();
}

void traffic_block_together(void) {
    if (!kernel) return;
    for (int w = 0; w < (cta.n + 31) / 32; w++) traffic_warp_together(w);
    size_t shared = cta.launch->dynamic;
    for (const Array &a : cta.arrays)
        if (a.p != emu_dynamic_shared_memory) shared += a.bytes;
    kernel->shared = std::max(kernel->shared, shared);
}

/* ---- what g++ calls --------------------------------------------------------------------------------- */

#ifndef __SANITIZE_ADDRESS__

static inline bool within(const void *p, const void *from, size_t n) { return (uintptr_t)p - (uintptr_t)from < n; }

static inline void access(const void *p, size_t n, bool write, const void *place) {
    if (!cta.now) return; /* a launcher, on the host */
    /* What a card keeps in registers and in constant memory. */
    if (within(p, cta.now->fiber->stack, STACK) || within(p, &emu_place, sizeof emu_place) ||
        within(p, cta.launch->kept, cta.launch->kept_bytes))
        return;
    int which;
    const size_t at = offset_in_shared(p, &which);
    if (at == SIZE_MAX) return global_access(p, n, write, place);
    touch(p, at, which, n, write);
    shared_request(p, n, place);
}

void emu_access(const void *p, size_t n, bool write, const void *place) { access(p, n, write, place); }

extern "C" {
#define HERE __builtin_return_address(0)
#define ACCESS(n)                                                                                            \
    void __tsan_read##n(void *p) { access(p, n, false, HERE); }                                              \
    void __tsan_write##n(void *p) { access(p, n, true, HERE); }                                              \
    void __tsan_unaligned_read##n(void *p) { access(p, n, false, HERE); }                                    \
    void __tsan_unaligned_write##n(void *p) { access(p, n, true, HERE); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
#undef ACCESS
void __tsan_read_range(void *p, size_t n) { access(p, n, false, HERE); }
void __tsan_write_range(void *p, size_t n) { access(p, n, true, HERE); }
void __tsan_vptr_update(void **, void *) {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit(void) {}
void __tsan_init(void) {}

/* As GCC's ubsan lays it out. */
struct MismatchData { const char *file; uint32_t line, column; const void *type; uint8_t log_alignment, kind; };
void __ubsan_handle_type_mismatch_v1_abort(MismatchData *d, uintptr_t p) {
    emu_report("%s:%u: misaligned access at %p, wants a multiple of %d bytes", d->file, d->line, (void *)p, 1 << d->log_alignment);
    abort();
}
}

#else

void emu_access(const void *, size_t, bool, const void *) {}

#endif
