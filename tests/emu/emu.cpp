/* emu.cpp -- a launch: fibers, the schedule within a block, barriers, warps, shared memory. See emu.h; next: device.cpp. */
#include "tests/emu/block.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

/* ---- fibers --------------------------------------------------------------------------------------- */

/* Saves what a call must preserve, and the stack pointer in *save; goes on where `to` was saved. */
extern "C" void emu_switch(void **save, void *to);
asm(R"(
.text
.globl emu_switch
.type emu_switch, @function
emu_switch:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
.size emu_switch, .-emu_switch
.section .note.GNU-stack,"",@progbits
.text
)");

/* What AddressSanitizer must know of a change of stacks. */
struct Side { const void *bottom; size_t size; };
static Side scheduler_side;
static void leave_for([[maybe_unused]] const Side &to) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(nullptr, to.bottom, to.size);
#endif
}
static void arrived([[maybe_unused]] Side *from) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, from ? &from->bottom : nullptr, from ? &from->size : nullptr);
#endif
}

/* ---- the block that runs -------------------------------------------------------------------------- */

Cta cta;
EmuPlace emu_place;
alignas(128) char emu_static_shared[STATIC_SHARED + 64 * RED_ZONE], emu_dynamic_shared_memory[ALL_SHARED + RED_ZONE];

static uint64_t schedule_seed;
static int64_t end_blocks;
static char *collected;
static size_t collected_size;

extern "C" void emu_schedule(uint64_t seed) { schedule_seed = seed; }
extern "C" void emu_blocks(int64_t n) { end_blocks = n; }
extern "C" void emu_collect(char *text, size_t size) {
    collected = text;
    collected_size = size;
    if (text) *text = 0;
}

static void to_scheduler(void) {
    Fiber *me = cta.now->fiber;
    leave_for(scheduler_side);
    emu_switch(&me->sp, cta.scheduler);
    arrived(&scheduler_side);
}

void emu_report(const char *fmt, ...) {
    char text[1024];
    int at = 0;
    if (cta.launch) {
        const EmuLaunch *l = cta.launch;
        at = snprintf(text, sizeof text, "%s:%d: kernel %s", l->file, l->line, l->kernel);
        if (cta.n) at += snprintf(text + at, sizeof text - at, ", block (%u,%u,%u)", blockIdx.x, blockIdx.y, blockIdx.z);
        if (cta.now) at += snprintf(text + at, sizeof text - at, ", thread (%u,%u,%u)", cta.now->at.x, cta.now->at.y, cta.now->at.z);
        at += snprintf(text + at, sizeof text - at, ": ");
    }
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text + at, sizeof text - at, fmt, ap);
    va_end(ap);
    if (!collected) {
        fprintf(stderr, "emu: %s\n", text);
        abort();
    }
    const size_t had = strlen(collected);
    snprintf(collected + had, collected_size - had, "%s\n", text);
    cta.failed = true;
    if (cta.now) to_scheduler(); /* never resumed */
}

/* ---- threads: a fiber's life, waiting -------------------------------------------------------------- */

static void start(Thread *t, Fiber *f) {
    t->state = READY;
    t->fiber = f;
    cta.now = t;
    emu_place.thread = t->at;
}

/* Threads that never wait cost no switch: the fiber takes the warp's next lane itself. */
static void fiber_main(void) {
    arrived(&scheduler_side);
    for (;;) {
        cta.launch->call(cta.launch->kept);
        Thread *t = cta.now;
        t->state = DONE;
        cta.absent |= 1u << emu_lane();
        if (cta.next < cta.lanes) {
            Thread *next = &cta.thread[cta.first + cta.lane_order[cta.next]];
            if (next->state == FRESH) {
                cta.next++;
                start(next, t->fiber);
                continue;
            }
        }
        to_scheduler();
    }
}

/* Makes `f` begin at fiber_main when it is switched to. */
static void fiber_reset(Fiber *f) {
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(f->stack, STACK); /* a launch that was given up left its frames */
#endif
    void **top = (void **)(f->stack + STACK);
    *--top = NULL; /* fiber_main's return address: the stack is aligned as after a call */
    *--top = (void *)fiber_main;
    for (int i = 0; i < 6; i++) *--top = NULL;
    f->sp = top;
}

static Fiber pool[MAX_THREADS], *idle[MAX_THREADS];
static int npool, nidle;

static Fiber *fiber_take(void) {
    if (!nidle) {
        Fiber *f = &pool[npool++];
        f->stack = (char *)mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (f->stack == MAP_FAILED) {
            fprintf(stderr, "emu: no memory for a thread's stack: %s\n", strerror(errno));
            abort();
        }
        idle[nidle++] = f;
    }
    Fiber *f = idle[--nidle];
    fiber_reset(f);
    return f;
}

static void resume(Thread *t) {
    if (t->state == FRESH) start(t, fiber_take());
    cta.now = t;
    emu_place.thread = t->at;
    Fiber *f = t->fiber;
    leave_for({f->stack, STACK});
    emu_switch(&cta.scheduler, f->sp);
    arrived(NULL);
    if (cta.now->state == DONE) idle[nidle++] = f; /* it may have served several threads */
    cta.now = NULL;
}

int emu_lane(void) { return (int)(cta.now - cta.thread) & 31; }

void emu_barrier(const char *file, int line) {
    cta.now->state = AT_BARRIER;
    cta.now->file = file;
    cta.now->line = line;
    to_scheduler();
}

void emu_warp(uint32_t mask, const char *what, EmuWarpOp *op, void *arg) {
    Thread *me = cta.now, *warp = cta.thread + cta.first;
    const int lane = emu_lane();
    if (!(mask >> lane & 1)) emu_report("%s with mask %08x, which does not name the caller, lane %d", what, mask, lane);
    if (mask & cta.absent)
        emu_report("%s with mask %08x, but lanes %08x are not there or have returned", what, mask, mask & cta.absent);
    me->state = IN_WARP;
    me->mask = mask;
    me->what = what;
    me->arg = arg;
    cta.in_warp |= 1u << lane;
    if (mask & ~cta.in_warp) {
        to_scheduler();
        return;
    }
    void *args[32];
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const int l = __builtin_ctz(rest);
        if (warp[l].mask != mask || (warp[l].what != what && strcmp(warp[l].what, what)))
            emu_report("%s with mask %08x, while lane %d waits in %s with mask %08x", what, mask, l, warp[l].what, warp[l].mask);
        args[l] = warp[l].arg;
        warp[l].state = READY;
    }
    op(args, mask);
    cta.in_warp &= ~mask;
    cta.steps[cta.first / 32]++;
    if (!(~mask & ~cta.absent)) traffic_warp_together(cta.first / 32);
}

void __syncwarp(uint32_t mask) {
    emu_warp(mask, "__syncwarp", [](void *const *, uint32_t) {}, NULL);
}

unsigned __ballot_sync(uint32_t mask, int predicate) {
    struct Vote { bool yes; unsigned all; } v = {predicate != 0, 0};
    emu_warp(mask, "__ballot_sync", [](void *const arg[32], uint32_t m) {
        unsigned all = 0;
        for (int l = 0; l < 32; l++)
            if (m >> l & 1) all |= (unsigned)((Vote *)arg[l])->yes << l;
        for (int l = 0; l < 32; l++)
            if (m >> l & 1) ((Vote *)arg[l])->all = all;
    }, &v);
    return v.all;
}

/* ---- shared memory -------------------------------------------------------------------------------- */

void emu_poison([[maybe_unused]] const void *p, [[maybe_unused]] size_t n) {
#ifdef __SANITIZE_ADDRESS__
    __asan_poison_memory_region(p, n);
#endif
}
void emu_unpoison([[maybe_unused]] const void *p, [[maybe_unused]] size_t n) {
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(p, n);
#endif
}

/* Fresh: NaN, and a red zone behind it. */
static void array_begin(char *p, size_t bytes, const char *name) {
    memset(p, 0xFF, bytes);
    memset(p + bytes, CANARY, RED_ZONE);
    emu_poison(p + bytes, RED_ZONE);
    shared_red_zone(p + bytes, RED_ZONE);
    cta.arrays.push_back({p, bytes, name});
}

static void arrays_end(void) {
    for (const Array &a : cta.arrays) {
        emu_unpoison(a.p + a.bytes, RED_ZONE);
        for (int i = 0; i < RED_ZONE && !cta.failed; i++)
            if (a.p[a.bytes + i] != (char)CANARY)
                emu_report("shared array %s of %zu bytes was written %zu bytes behind its end", a.name, a.bytes, (size_t)i);
    }
    cta.arrays.clear();
    cta.shared_used = 0;
}

void *emu_shared(EmuShared *site, const char *name, size_t bytes) {
    if (site->block == cta.number) return site->p;
    const size_t at = (cta.shared_used + 15) & ~(size_t)15;
    if (bytes > STATIC_SHARED || at + bytes - cta.arrays.size() * RED_ZONE > STATIC_SHARED)
        emu_report("static shared memory over 48 KB with array %s of %zu bytes", name, bytes);
    site->block = cta.number;
    site->p = emu_static_shared + at;
    array_begin(emu_static_shared + at, bytes, name);
    cta.shared_used = at + bytes + RED_ZONE;
    return site->p;
}

void *emu_dynamic_shared(void) {
    if (!cta.launch->dynamic) emu_report("DYNAMIC_SHARED in a launch without: LAUNCH_SMEM gives it");
    return emu_dynamic_shared_memory;
}

/* ---- asynchronous copies, tensor cores ------------------------------------------------------------ */

void emu_copy16(void *shared_dst, const void *global_src) {
    if (((uintptr_t)shared_dst | (uintptr_t)global_src) & 15)
        emu_report("cp_async16 from %p to %p: both must be 16-byte aligned", global_src, shared_dst);
    if (cta.now->groups.empty()) cta.now->groups.push_back(0);
    cta.now->copies.push_back({(char *)shared_dst, (const char *)global_src});
    cta.now->groups.back()++;
    shared_copy(shared_dst, 16, false);
    shared_request(shared_dst, 16, __builtin_return_address(0));
    if (global_src) global_access(global_src, 16, false, __builtin_return_address(0));
    memset(shared_dst, 0xFF, 16); /* who reads before the wait finds NaN */
}

void emu_copy_commit(void) {
    if (cta.now->groups.empty()) cta.now->groups.push_back(0);
    cta.now->groups.push_back(0);
}

void emu_copy_wait(int newest) {
    Thread *t = cta.now;
    const size_t committed = t->groups.empty() ? 0 : t->groups.size() - 1;
    size_t n = 0;
    const size_t arrive = committed > (size_t)newest ? committed - (size_t)newest : 0;
    for (size_t g = 0; g < arrive; g++) n += t->groups[g];
    for (size_t i = 0; i < n; i++) {
        shared_copy(t->copies[i].dst, 16, true);
        if (t->copies[i].src) memcpy(t->copies[i].dst, t->copies[i].src, 16);
        else memset(t->copies[i].dst, 0, 16);
    }
    t->copies.erase(t->copies.begin(), t->copies.begin() + (ptrdiff_t)n);
    t->groups.erase(t->groups.begin(), t->groups.begin() + (ptrdiff_t)arrive);
}

struct Ldmatrix { uint32_t *r; const uint16_t *row; bool transpose; };

static void ldmatrix_op(void *const arg[32], uint32_t) {
    for (int lane = 0; lane < 32; lane++) {
        const Ldmatrix *me = (const Ldmatrix *)arg[lane];
        for (int j = 0; j < 4; j++) {
            uint32_t pair[2];
            for (int k = 0; k < 2; k++) {
                const int a = lane / 4, b = 2 * (lane % 4) + k; /* row and column of the (transposed) matrix */
                const uint16_t *row = ((const Ldmatrix *)arg[8 * j + (me->transpose ? b : a)])->row;
                pair[k] = row[me->transpose ? a : b];
            }
            me->r[j] = pair[0] | pair[1] << 16;
        }
    }
}

void emu_ldmatrix(uint32_t r[4], const void *shared_row, bool transpose) {
    if ((uintptr_t)shared_row & 15) emu_report("ldmatrix: row at %p is not 16-byte aligned", shared_row);
    shared_access(shared_row, 16, false);
    shared_request(shared_row, 16, __builtin_return_address(0)); /* 8 rows of 16 bytes at a time, as 16-byte accesses of 8 lanes are */
    Ldmatrix m = {r, (const uint16_t *)shared_row, transpose};
    emu_warp(0xffffffffu, transpose ? "ldmatrix_x4_trans" : "ldmatrix_x4", ldmatrix_op, &m);
}

struct Mma { float *c; const uint32_t *a, *b; };

static float half_of(uint32_t pair, int which) { return bf16_to_f32({(uint16_t)(which ? pair >> 16 : pair)}); }

static void mma_op(void *const arg[32], uint32_t) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const Mma *m = (const Mma *)arg[lane];
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; i++)
            for (int k = 0; k < 2; k++) a[g + 8 * (i & 1)][2 * t + 8 * (i >> 1) + k] = half_of(m->a[i], k);
        for (int i = 0; i < 2; i++)
            for (int k = 0; k < 2; k++) b[2 * t + 8 * i + k][g] = half_of(m->b[i], k);
    }
    for (int lane = 0; lane < 32; lane++) {
        const Mma *m = (const Mma *)arg[lane];
        for (int i = 0; i < 4; i++) {
            const int row = lane / 4 + 8 * (i >> 1), col = 2 * (lane % 4) + (i & 1);
            float sum = 0; /* the products are exact; a card adds them with at least f32's precision, in some order */
            for (int k = 0; k < 16; k++) sum += a[row][k] * b[k][col];
            m->c[i] += sum;
        }
    }
}

void emu_mma(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    Mma m = {c, a, b};
    emu_warp(0xffffffffu, "mma_m16n8k16", mma_op, &m);
}

/* ---- the schedule --------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t x) { /* splitmix64 */
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

static void shuffle(int *v, int n, uint64_t key) {
    for (int i = n - 1; i > 0; i--) std::swap(v[i], v[mix(key + (uint64_t)i) % (uint64_t)(i + 1)]);
}

/* As far as it can go before any other warp moves. */
static void run_warp(int w) {
    cta.first = 32 * w;
    cta.lanes = std::min(32, cta.n - cta.first);
    cta.absent = cta.lanes < 32 ? ~0u << cta.lanes : 0;
    cta.in_warp = 0;
    for (int l = 0; l < cta.lanes; l++) {
        if (cta.thread[cta.first + l].state == DONE) cta.absent |= 1u << l;
        if (cta.thread[cta.first + l].state == IN_WARP) cta.in_warp |= 1u << l;
    }
    for (bool moved = true; moved && !cta.failed;) {
        moved = false;
        for (cta.next = 0; cta.next < cta.lanes && !cta.failed;) {
            Thread *t = &cta.thread[cta.first + cta.lane_order[cta.next++]];
            if (t->state > READY) continue;
            resume(t);
            moved = true;
        }
    }
}

/* Nobody can move: the barrier opens, or never will. False: the block is over. */
static bool barrier_opens(void) {
    int done = 0, waiting = 0, in_warp = 0;
    const Thread *first = NULL;
    for (int i = 0; i < cta.n; i++) {
        const Thread *t = &cta.thread[i];
        done += t->state == DONE;
        in_warp += t->state == IN_WARP;
        if (t->state != AT_BARRIER) continue;
        waiting++;
        if (!first) first = t;
        if (strcmp(t->file, first->file) || t->line != first->line) {
            emu_report("threads wait at two barriers, %s:%d and %s:%d", first->file, first->line, t->file, t->line);
            return false;
        }
    }
    if (done == cta.n) return false;
    if (waiting < cta.n) {
        char warp[128] = "";
        for (int i = cta.n - 1; i >= 0; i--) {
            const Thread *t = &cta.thread[i];
            if (t->state != IN_WARP) continue;
            uint32_t missing = 0;
            for (int l = 0; l < 32 && (i & ~31) + l < cta.n; l++)
                if (t->mask >> l & 1 && cta.thread[(i & ~31) + l].state != IN_WARP) missing |= 1u << l;
            snprintf(warp, sizeof warp, ", thread %d in %s with mask %08x for lanes %08x", i, t->what, t->mask, missing);
        }
        emu_report("divergent: of %d threads %d have returned, %d wait at the barrier %s:%d, %d wait for their warp%s", cta.n, done,
               waiting, first ? first->file : "-", first ? first->line : 0, in_warp, warp);
        return false;
    }
    for (int i = 0; i < cta.n; i++) cta.thread[i].state = READY;
    cta.epoch++;
    traffic_block_together();
    return true;
}

static void run_block(const EmuLaunch *l, dim3 at, uint64_t key) {
    cta.number++;
    cta.epoch++;
    emu_place.block = at;
    int order[MAX_THREADS / 32];
    const int warps = (cta.n + 31) / 32;
    const unsigned bx = (unsigned)l->block[0], by = (unsigned)l->block[1];
    for (int i = 0; i < cta.n; i++) {
        Thread *t = &cta.thread[i];
        t->state = FRESH;
        t->at = dim3((unsigned)i % bx, (unsigned)i / bx % by, (unsigned)i / (bx * by));
        t->copies.clear();
        t->groups.clear();
    }
    if (l->dynamic) array_begin(emu_dynamic_shared_memory, l->dynamic, "(dynamic)");
    for (int w = 0; w < warps; w++) order[w] = w;
    for (uint64_t round = 0; !cta.failed; round++) {
        if (round == 0 || warps > 1) shuffle(order, warps, mix(key + round));
        for (int k = 0; k < warps && !cta.failed; k++) {
            const int lanes = std::min(32, cta.n - 32 * order[k]);
            for (int i = 0; i < lanes; i++) cta.lane_order[i] = key & 1 ? lanes - 1 - i : i;
            run_warp(order[k]);
        }
        if (cta.failed || !barrier_opens()) break;
    }
    traffic_block_together();
    arrays_end();
}

static bool within_limits(const EmuLaunch *l) {
    static const int64_t grid[3] = {0x7fffffff, 65535, 65535}, block[3] = {1024, 1024, 64};
    for (int i = 0; i < 3; i++) {
        if (l->grid[i] < 1 || l->grid[i] > grid[i])
            return emu_report("grid.%c is %lld, wants 1 to %lld", "xyz"[i], (long long)l->grid[i], (long long)grid[i]), false;
        if (l->block[i] < 1 || l->block[i] > block[i])
            return emu_report("block.%c is %lld, wants 1 to %lld", "xyz"[i], (long long)l->block[i], (long long)block[i]), false;
    }
    if (l->block[0] * l->block[1] * l->block[2] > MAX_THREADS)
        return emu_report("a block of %lld threads, at most %d", (long long)(l->block[0] * l->block[1] * l->block[2]), MAX_THREADS), false;
    if (l->dynamic > ALL_SHARED) return emu_report("%zu bytes of dynamic shared memory, at most %d", l->dynamic, ALL_SHARED), false;
    return true;
}

void emu_run_launch(const EmuLaunch *l) {
    traffic_launch(l);
    cta.launch = l;
    cta.n = 0;
    cta.failed = false;
    if (within_limits(l)) {
        cta.n = (int)(l->block[0] * l->block[1] * l->block[2]);
        emu_place.grid_dim = dim3((unsigned)l->grid[0], (unsigned)l->grid[1], (unsigned)l->grid[2]);
        emu_place.block_dim = dim3((unsigned)l->block[0], (unsigned)l->block[1], (unsigned)l->block[2]);
        const int64_t total = l->grid[0] * l->grid[1] * l->grid[2];
        const uint64_t key = mix(schedule_seed);
        for (int64_t k = 0; k < total && !cta.failed; k++) {
            if (end_blocks && k >= end_blocks && k < total - end_blocks) k = total - end_blocks;
            const int64_t b = key & 2 ? total - 1 - k : k; /* no block may count on another */
            run_block(l, dim3((unsigned)(b % l->grid[0]), (unsigned)(b / l->grid[0] % l->grid[1]), (unsigned)(b / l->grid[0] / l->grid[1])),
                      mix(key + (uint64_t)b));
        }
    }
    if (cta.failed) /* threads were left where they waited */
        for (nidle = 0; nidle < npool; nidle++) idle[nidle] = &pool[nidle];
    l->drop(l->kept);
    cta.launch = NULL;
    cta.n = 0;
}
