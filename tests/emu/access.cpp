/* access.cpp -- every load and store of a kernel, seen: races in shared memory, misaligned vectors, traffic.
 *
 * g++ compiles the kernels with -fsanitize=thread and -fsanitize=alignment, but nobody links those sanitizers: the calls that
 * it puts before each load and store come here. So nothing is asked of a kernel's author, no access can be forgotten, and
 * the bytes are those of the optimised program. AddressSanitizer excludes this: under SAN=1 it looks at the accesses instead.
 */
#include "tests/emu/block.h"

#include <string.h>
#include <unordered_map>

/* ---- races ------------------------------------------------------------------------------------------ */

/* Two threads touch a place, one of them writes, and nothing orders them: no barrier between (the epoch), within a warp no step
 * that the lanes took together. Kept per byte (pixels are bytes); of readers the last one, and whether several warps read. */
struct Touch {
    uint32_t write_epoch, read_epoch;
    uint16_t writer, reader, write_step, read_step;
    bool warps_read;
    uint32_t copying, outside; /* the block in which a copy to it is on its way; in which it is the red zone behind an array */
};
enum { GRAIN = 1 };
static Touch touched[2][(ALL_SHARED + RED_ZONE + 64 * RED_ZONE) / GRAIN];

static size_t offset_in_shared(const void *p, int *which) {
    const char *c = (const char *)p;
    for (*which = 0; *which < 2; ++*which) {
        const char *base = *which ? emu_dynamic_shared_memory : emu_static_shared;
        const size_t size = *which ? ALL_SHARED + RED_ZONE : STATIC_SHARED + 64 * RED_ZONE;
        if (c >= base && c < base + size) return (size_t)(c - base);
    }
    return SIZE_MAX;
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

void shared_access(const void *p, size_t n, bool write) {
    int which;
    const size_t at = offset_in_shared(p, &which);
    const uint16_t me = (uint16_t)thread_number(), step = cta.steps[me / 32];
    const uint32_t block = (uint32_t)cta.number;
    for (Touch *t = &touched[which][at / GRAIN]; t < &touched[which][(at + n + GRAIN - 1) / GRAIN]; t++) {
        const bool written = t->write_epoch == cta.epoch, read = t->read_epoch == cta.epoch;
        if (t->outside == block) return tell(p, write ? "written, which is behind its end" : "read, which is behind its end", -1);
        if (t->copying == block)
            return tell(p, write ? "written while an asynchronous copy to it is on its way" : "read before the asynchronous copy to it was waited for", -1);
        if (written && !ordered(t->writer, t->write_step)) return tell(p, write ? "written after a write by" : "read after a write by", t->writer);
        if (write) {
            if (read && (!ordered(t->reader, t->read_step) || (t->warps_read && t->reader / 32 == me / 32)))
                return tell(p, "written after a read by", t->reader);
            t->write_epoch = cta.epoch;
            t->writer = me;
            t->write_step = step;
        } else {
            t->warps_read = read && (t->warps_read || t->reader / 32 != me / 32);
            t->read_epoch = cta.epoch;
            t->reader = me;
            t->read_step = step;
        }
    }
}

void shared_copy(const void *p, size_t n, bool arrives) {
    int which;
    const size_t at = offset_in_shared(p, &which);
    if (at == SIZE_MAX) return emu_report("cp_async16 to %p, which is not shared memory", p);
    Touch *t = &touched[which][at / GRAIN];
    for (size_t i = 0; i < n / GRAIN && arrives; i++) t[i].copying = 0;
    shared_access(p, n, true);
    for (size_t i = 0; i < n / GRAIN && !arrives; i++) t[i].copying = (uint32_t)cta.number;
}

void shared_red_zone(const void *p, size_t n) {
    int which;
    const size_t at = offset_in_shared(p, &which);
    for (size_t i = (at + GRAIN - 1) / GRAIN; i < (at + n) / GRAIN; i++) touched[which][i].outside = (uint32_t)cta.number;
}

/* ---- traffic ---------------------------------------------------------------------------------------- */

static EmuTraffic *traffic;
static std::unordered_map<uintptr_t, int> sectors; /* of 32 bytes, in this launch: 1 read first, 2 written, 4 counted as read */

extern "C" void emu_count(EmuTraffic *t) {
    traffic = t;
    if (t) *t = EmuTraffic();
    sectors.clear();
}

extern "C" bool emu_sees_accesses(void) {
#ifdef __SANITIZE_ADDRESS__
    return false;
#else
    return true;
#endif
}

void traffic_launch(void) {
    if (!traffic) return;
    traffic->launches++;
    sectors.clear();
}

void global_access(const void *p, size_t n, bool write) {
    if (!traffic) return;
    (write ? traffic->stores : traffic->loads) += (int64_t)n;
    for (uintptr_t sector = (uintptr_t)p / 32; sector <= ((uintptr_t)p + n - 1) / 32; sector++) {
        int &seen = sectors[sector];
        if (write && !(seen & 2)) seen |= 2, traffic->written += 32;
        if (!write && !seen) seen |= 1, traffic->read += 32;
    }
}

/* ---- what g++ calls --------------------------------------------------------------------------------- */

#ifndef __SANITIZE_ADDRESS__

static inline bool within(const void *p, const void *from, size_t n) { return (uintptr_t)p - (uintptr_t)from < n; }

static inline void access(const void *p, size_t n, bool write) {
    if (!cta.now) return; /* a launcher, on the host */
    /* What a card keeps in registers and in constant memory. */
    if (within(p, cta.now->fiber->stack, STACK) || within(p, &emu_place, sizeof emu_place) ||
        within(p, cta.launch->kept, cta.launch->kept_bytes))
        return;
    int which;
    if (offset_in_shared(p, &which) != SIZE_MAX) shared_access(p, n, write);
    else global_access(p, n, write);
}

extern "C" {
#define ACCESS(n)                                                                                            \
    void __tsan_read##n(void *p) { access(p, n, false); }                                                    \
    void __tsan_write##n(void *p) { access(p, n, true); }                                                    \
    void __tsan_unaligned_read##n(void *p) { access(p, n, false); }                                          \
    void __tsan_unaligned_write##n(void *p) { access(p, n, true); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
#undef ACCESS
void __tsan_read_range(void *p, size_t n) { access(p, n, false); }
void __tsan_write_range(void *p, size_t n) { access(p, n, true); }
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

#endif
