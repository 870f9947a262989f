/* emu.cpp -- the emulated card: fibers, the schedule within a block, streams, the Device. See emu.h. */
#include "tests/emu/emu.h"

extern "C" {
#include "kernels/ops.h"
}

#include <deque>
#include <errno.h>
#include <math.h>
#include <memory>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

enum { STACK = 256 << 10, RED_ZONE = 64, CANARY = 0xA5 };
enum { STATIC_SHARED = 48 << 10, ALL_SHARED = 227 << 10, MAX_THREADS = 1024 };

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

struct Fiber { /* a stack; it stays with its thread while that waits, and serves one thread after another */
    char *stack;
    void *sp;
};

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

enum State { FRESH, READY, AT_BARRIER, IN_WARP, DONE };

struct Copy { char *dst; const char *src; };

struct Thread {
    State state;
    dim3 at;
    Fiber *fiber;
    const char *file; /* of the barrier it waits at */
    int line;
    uint32_t mask; /* of the warp step it waits in */
    const char *what;
    void *arg;
    std::vector<Copy> copies; /* asynchronous ones that have not arrived, oldest first */
    std::vector<size_t> groups; /* copies in each committed group, and in the open one */
};

struct Array { char *p; size_t bytes; const char *name; };

EmuPlace emu_place;

static struct {
    const EmuLaunch *launch;
    uint64_t number; /* of the block, over the whole process */
    Thread thread[MAX_THREADS];
    int n; /* threads */
    Thread *now; /* the one that runs, or NULL: the scheduler */
    int first, lanes; /* of its warp */
    uint32_t absent, in_warp; /* its lanes that do not exist or have returned; that wait in a warp step */
    int next; /* the place in lane_order that comes after it */
    int lane_order[32];
    void *scheduler; /* its stack pointer */
    bool failed;
    std::vector<Fiber *> idle;
    std::vector<Array> arrays; /* shared ones */
    size_t shared_used;
} B;

alignas(128) static char static_shared[STATIC_SHARED + 64 * RED_ZONE], dynamic_shared[ALL_SHARED + RED_ZONE];

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
    Fiber *me = B.now->fiber;
    leave_for(scheduler_side);
    emu_switch(&me->sp, B.scheduler);
    arrived(&scheduler_side);
}

/* Tells, and gives the launch up: does not return to a kernel that asked for it. */
__attribute__((format(printf, 1, 2))) static void report(const char *fmt, ...) {
    char text[1024];
    int at = 0;
    if (B.launch) {
        const EmuLaunch *l = B.launch;
        at = snprintf(text, sizeof text, "%s:%d: kernel %s", l->file, l->line, l->kernel);
        if (B.n) at += snprintf(text + at, sizeof text - at, ", block (%u,%u,%u)", blockIdx.x, blockIdx.y, blockIdx.z);
        if (B.now) at += snprintf(text + at, sizeof text - at, ", thread (%u,%u,%u)", B.now->at.x, B.now->at.y, B.now->at.z);
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
    B.failed = true;
    if (B.now) to_scheduler(); /* never resumed */
}

/* ---- threads: a fiber's life, waiting -------------------------------------------------------------- */

static void start(Thread *t, Fiber *f) {
    t->state = READY;
    t->fiber = f;
    B.now = t;
    emu_place.thread = t->at;
}

/* Threads that never wait cost no switch: the fiber takes the warp's next lane itself. */
static void fiber_main(void) {
    arrived(&scheduler_side);
    for (;;) {
        B.launch->body();
        Thread *t = B.now;
        t->state = DONE;
        B.absent |= 1u << emu_lane();
        if (B.next < B.lanes) {
            Thread *next = &B.thread[B.first + B.lane_order[B.next]];
            if (next->state == FRESH) {
                B.next++;
                start(next, t->fiber);
                continue;
            }
        }
        to_scheduler();
    }
}

static Fiber *fiber_new(void) {
    Fiber *f = new Fiber;
    f->stack = (char *)mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (f->stack == MAP_FAILED) {
        fprintf(stderr, "emu: no memory for a thread's stack: %s\n", strerror(errno));
        abort();
    }
    return f;
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

static Fiber *fiber_take(void) {
    Fiber *f;
    if (B.idle.empty()) {
        f = fiber_new();
    } else {
        f = B.idle.back();
        B.idle.pop_back();
    }
    fiber_reset(f);
    return f;
}

static void resume(Thread *t) {
    if (t->state == FRESH) start(t, fiber_take());
    B.now = t;
    emu_place.thread = t->at;
    Fiber *f = t->fiber;
    leave_for({f->stack, STACK});
    emu_switch(&B.scheduler, f->sp);
    arrived(NULL);
    if (B.now->state == DONE) B.idle.push_back(f); /* it may have served several threads */
    B.now = NULL;
}

int emu_lane(void) { return (int)(B.now - B.thread) & 31; }

void emu_barrier(const char *file, int line) {
    B.now->state = AT_BARRIER;
    B.now->file = file;
    B.now->line = line;
    to_scheduler();
}

void emu_warp(uint32_t mask, const char *what, EmuWarpOp *op, void *arg) {
    Thread *me = B.now, *warp = B.thread + B.first;
    const int lane = emu_lane();
    if (!(mask >> lane & 1)) report("%s with mask %08x, which does not name the caller, lane %d", what, mask, lane);
    if (mask & B.absent)
        report("%s with mask %08x, but lanes %08x are not there or have returned", what, mask, mask & B.absent);
    me->state = IN_WARP;
    me->mask = mask;
    me->what = what;
    me->arg = arg;
    B.in_warp |= 1u << lane;
    if (mask & ~B.in_warp) {
        to_scheduler();
        return;
    }
    void *args[32];
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const int l = __builtin_ctz(rest);
        if (warp[l].mask != mask || (warp[l].what != what && strcmp(warp[l].what, what)))
            report("%s with mask %08x, while lane %d waits in %s with mask %08x", what, mask, l, warp[l].what, warp[l].mask);
        args[l] = warp[l].arg;
        warp[l].state = READY;
    }
    op(args, mask);
    B.in_warp &= ~mask;
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

static void poison([[maybe_unused]] const void *p, [[maybe_unused]] size_t n) {
#ifdef __SANITIZE_ADDRESS__
    __asan_poison_memory_region(p, n);
#endif
}
static void unpoison([[maybe_unused]] const void *p, [[maybe_unused]] size_t n) {
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(p, n);
#endif
}

/* Fresh: NaN, and a red zone behind it. */
static void array_begin(char *p, size_t bytes, const char *name) {
    memset(p, 0xFF, bytes);
    memset(p + bytes, CANARY, RED_ZONE);
    poison(p + bytes, RED_ZONE);
    B.arrays.push_back({p, bytes, name});
}

static void arrays_end(void) {
    for (const Array &a : B.arrays) {
        unpoison(a.p + a.bytes, RED_ZONE);
        for (int i = 0; i < RED_ZONE && !B.failed; i++)
            if (a.p[a.bytes + i] != (char)CANARY)
                report("shared array %s of %zu bytes was written %zu bytes behind its end", a.name, a.bytes, (size_t)i);
    }
    B.arrays.clear();
    B.shared_used = 0;
}

void *emu_shared(EmuShared *site, const char *name, size_t bytes) {
    if (site->block == B.number) return site->p;
    const size_t at = (B.shared_used + 15) & ~(size_t)15;
    if (bytes > STATIC_SHARED || at + bytes - B.arrays.size() * RED_ZONE > STATIC_SHARED)
        report("static shared memory over 48 KB with array %s of %zu bytes", name, bytes);
    site->block = B.number;
    site->p = static_shared + at;
    array_begin(static_shared + at, bytes, name);
    B.shared_used = at + bytes + RED_ZONE;
    return site->p;
}

void *emu_dynamic_shared(void) {
    if (!B.launch->dynamic) report("DYNAMIC_SHARED in a launch without: LAUNCH_SMEM gives it");
    return dynamic_shared;
}

/* ---- asynchronous copies, tensor cores ------------------------------------------------------------ */

void emu_copy16(void *shared_dst, const void *global_src) {
    if (((uintptr_t)shared_dst | (uintptr_t)global_src) & 15)
        report("cp_async16 from %p to %p: both must be 16-byte aligned", global_src, shared_dst);
    if (B.now->groups.empty()) B.now->groups.push_back(0);
    B.now->copies.push_back({(char *)shared_dst, (const char *)global_src});
    B.now->groups.back()++;
    memset(shared_dst, 0xFF, 16); /* who reads before the wait finds NaN */
}

void emu_copy_commit(void) {
    if (B.now->groups.empty()) B.now->groups.push_back(0);
    B.now->groups.push_back(0);
}

void emu_copy_wait(int newest) {
    Thread *t = B.now;
    const size_t committed = t->groups.empty() ? 0 : t->groups.size() - 1;
    size_t n = 0;
    const size_t arrive = committed > (size_t)newest ? committed - (size_t)newest : 0;
    for (size_t g = 0; g < arrive; g++) n += t->groups[g];
    for (size_t i = 0; i < n; i++) {
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
    if ((uintptr_t)shared_row & 15) report("ldmatrix: row at %p is not 16-byte aligned", shared_row);
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
    B.first = 32 * w;
    B.lanes = std::min(32, B.n - B.first);
    B.absent = B.lanes < 32 ? ~0u << B.lanes : 0;
    B.in_warp = 0;
    for (int l = 0; l < B.lanes; l++) {
        if (B.thread[B.first + l].state == DONE) B.absent |= 1u << l;
        if (B.thread[B.first + l].state == IN_WARP) B.in_warp |= 1u << l;
    }
    for (bool moved = true; moved && !B.failed;) {
        moved = false;
        for (B.next = 0; B.next < B.lanes && !B.failed;) {
            Thread *t = &B.thread[B.first + B.lane_order[B.next++]];
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
    for (int i = 0; i < B.n; i++) {
        const Thread *t = &B.thread[i];
        done += t->state == DONE;
        in_warp += t->state == IN_WARP;
        if (t->state != AT_BARRIER) continue;
        waiting++;
        if (!first) first = t;
        if (strcmp(t->file, first->file) || t->line != first->line) {
            report("threads wait at two barriers, %s:%d and %s:%d", first->file, first->line, t->file, t->line);
            return false;
        }
    }
    if (done == B.n) return false;
    if (waiting < B.n) {
        char warp[128] = "";
        for (int i = B.n - 1; i >= 0; i--) {
            const Thread *t = &B.thread[i];
            if (t->state != IN_WARP) continue;
            uint32_t missing = 0;
            for (int l = 0; l < 32 && (i & ~31) + l < B.n; l++)
                if (t->mask >> l & 1 && B.thread[(i & ~31) + l].state != IN_WARP) missing |= 1u << l;
            snprintf(warp, sizeof warp, ", thread %d in %s with mask %08x for lanes %08x", i, t->what, t->mask, missing);
        }
        report("divergent: of %d threads %d have returned, %d wait at the barrier %s:%d, %d wait for their warp%s", B.n, done,
               waiting, first ? first->file : "-", first ? first->line : 0, in_warp, warp);
        return false;
    }
    for (int i = 0; i < B.n; i++) B.thread[i].state = READY;
    return true;
}

static void run_block(const EmuLaunch *l, dim3 at, uint64_t key) {
    B.number++;
    emu_place.block = at;
    int order[MAX_THREADS / 32];
    const int warps = (B.n + 31) / 32;
    const unsigned bx = (unsigned)l->block[0], by = (unsigned)l->block[1];
    for (int i = 0; i < B.n; i++) {
        Thread *t = &B.thread[i];
        t->state = FRESH;
        t->at = dim3((unsigned)i % bx, (unsigned)i / bx % by, (unsigned)i / (bx * by));
        t->copies.clear();
        t->groups.clear();
    }
    if (l->dynamic) array_begin(dynamic_shared, l->dynamic, "(dynamic)");
    for (int w = 0; w < warps; w++) order[w] = w;
    for (uint64_t round = 0; !B.failed; round++) {
        if (round == 0 || warps > 1) shuffle(order, warps, mix(key + round));
        for (int k = 0; k < warps && !B.failed; k++) {
            const int lanes = std::min(32, B.n - 32 * order[k]);
            for (int i = 0; i < lanes; i++) B.lane_order[i] = key & 1 ? lanes - 1 - i : i;
            run_warp(order[k]);
        }
        if (B.failed || !barrier_opens()) break;
    }
    arrays_end();
}

static bool within_limits(const EmuLaunch *l) {
    static const int64_t grid[3] = {0x7fffffff, 65535, 65535}, block[3] = {1024, 1024, 64};
    for (int i = 0; i < 3; i++) {
        if (l->grid[i] < 1 || l->grid[i] > grid[i])
            return report("grid.%c is %lld, wants 1 to %lld", "xyz"[i], (long long)l->grid[i], (long long)grid[i]), false;
        if (l->block[i] < 1 || l->block[i] > block[i])
            return report("block.%c is %lld, wants 1 to %lld", "xyz"[i], (long long)l->block[i], (long long)block[i]), false;
    }
    if (l->block[0] * l->block[1] * l->block[2] > MAX_THREADS)
        return report("a block of %lld threads, at most %d", (long long)(l->block[0] * l->block[1] * l->block[2]), MAX_THREADS), false;
    if (l->dynamic > ALL_SHARED) return report("%zu bytes of dynamic shared memory, at most %d", l->dynamic, ALL_SHARED), false;
    return true;
}

static void run_launch(const EmuLaunch *l) {
    B.launch = l;
    B.n = 0;
    B.failed = false;
    if (within_limits(l)) {
        B.n = (int)(l->block[0] * l->block[1] * l->block[2]);
        emu_place.grid_dim = dim3((unsigned)l->grid[0], (unsigned)l->grid[1], (unsigned)l->grid[2]);
        emu_place.block_dim = dim3((unsigned)l->block[0], (unsigned)l->block[1], (unsigned)l->block[2]);
        const int64_t total = l->grid[0] * l->grid[1] * l->grid[2];
        const uint64_t key = mix(schedule_seed);
        for (int64_t k = 0; k < total && !B.failed; k++) {
            if (end_blocks && k >= end_blocks && k < total - end_blocks) k = total - end_blocks;
            const int64_t b = key & 2 ? total - 1 - k : k; /* no block may count on another */
            run_block(l, dim3((unsigned)(b % l->grid[0]), (unsigned)(b / l->grid[0] % l->grid[1]), (unsigned)(b / l->grid[0] / l->grid[1])),
                      mix(key + (uint64_t)b));
        }
    }
    if (B.failed) { /* the fibers of threads that wait are free again */
        for (int i = 0; i < B.n; i++)
            if (B.thread[i].state == AT_BARRIER || B.thread[i].state == IN_WARP) B.idle.push_back(B.thread[i].fiber);
    }
    B.launch = NULL;
    B.n = 0;
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

void emu_launch(Stream *s, EmuLaunch launch) {
    enqueue(s, [launch = std::move(launch)] { run_launch(&launch); });
}

extern "C" Stream *emu_stream(const char *name) { return new Stream{name, false, {}, 0, 0, {}}; }

extern "C" void emu_stream_after(Stream *s, Stream *earlier) {
    const uint64_t count = earlier->queued;
    enqueue(s, [=] { run_until(earlier, count); });
}

extern "C" void emu_stream_sync(Stream *s) {
    if (s) run_until(s, s->queued);
}

/* Memory of the exact size, so that AddressSanitizer sees its ends; the last one dies when the stream gets here. */
extern "C" void *emu_scratch(Stream *s, size_t bytes) {
    if (!s) s = &at_once;
    const size_t n = bytes ? bytes : 1;
    std::shared_ptr<char> p((char *)aligned_alloc(256, (n + 255) & ~(size_t)255), [n](char *q) {
        unpoison(q + n, ((n + 255) & ~(size_t)255) - n);
        free(q);
    });
    poison(p.get() + n, ((n + 255) & ~(size_t)255) - n);
    enqueue(s, [p, n, last = s->scratch] { memset(p.get(), 0xFF, n); });
    s->scratch = p;
    return p.get();
}

extern "C" void emu_upload(Stream *s, void *dst, const void *src, size_t bytes) {
    std::vector<char> kept((const char *)src, (const char *)src + bytes);
    enqueue(s, [kept = std::move(kept), dst] { if (!kept.empty()) memcpy(dst, kept.data(), kept.size()); });
}

extern "C" void emu_download(Stream *s, void *dst, const void *src, size_t bytes) {
    emu_stream_sync(s);
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

/* ---- the device ----------------------------------------------------------------------------------- */

/* Missing ones are NULL until every kernel file exists. */
#define X(name) extern "C" name##_fn emu_##name __attribute__((weak));
OPS(X)
#undef X

extern "C" {
extern const Ops ops_emu = {
#define X(name) .name = emu_##name,
    OPS(X)
#undef X
};
}

static void *device_alloc(Device *, size_t bytes) {
    void *p = mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        fprintf(stderr, "emu: cannot reserve %zu bytes: %s\n", bytes, strerror(errno));
        abort();
    }
    if (bytes <= (size_t)64 << 20) memset(p, 0xFF, bytes); /* NaN: what nobody wrote shows; larger ones would cost real memory */
    return p;
}

static void device_sync(Device *d) {
    for (Stream *s : {d->main, d->copy, d->comm}) emu_stream_sync(s);
}

static void device_after(Device *, Stream *s, Stream *other) { emu_stream_after(s, other); }

static void device_memory(Device *, size_t *available, size_t *total) {
    *available = (size_t)sysconf(_SC_AVPHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    *total = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
}

static void device_release(Device *d, void *p, size_t bytes) {
    device_sync(d);
    if (p) munmap(p, bytes ? bytes : 1);
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
