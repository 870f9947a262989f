/* loader.c -- worker threads that turn a dataset into batches. See loader.h.
 *
 * The order of items is a pure function of (seed, epoch), never of thread timing, so a run can be resumed at any
 * step: an epoch's permutation is computed per position (a small cipher), nothing is shuffled in memory. One worker
 * makes one whole batch, in a slot of a ring; the slots are handed out in order. Decoding is in jpeg.c, resizing
 * in the image op; here we schedule, read files and count what could not be read.
 */
#include "data/loader.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_FILE = 256 << 20 }; /* bytes of one JPEG file */
enum { PERCENT_FROM = 1000 };  /* images after which max_bad_percent counts */

const char *const loader_cause_names[LOADER_CAUSES] = {
    [JPEG_OK] = "fine",           [JPEG_NOT_JPEG] = "not a JPEG",          [JPEG_TRUNCATED] = "truncated",
    [JPEG_CORRUPT] = "corrupt",   [JPEG_TOO_LARGE] = "too large",          [JPEG_TOO_MANY_SCANS] = "too many scans",
    [LOADER_UNREADABLE] = "unreadable",
};

/* ---- order --------------------------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t z) { /* splitmix64's finaliser */
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* A Feistel network over the smallest 4^b >= n permutes that range; positions that land outside 0..n-1 are put
 * through again until they do not (cycle walking, fewer than four rounds on average), which leaves a permutation of 0..n-1. */
int64_t loader_permute(uint64_t seed, int64_t epoch, int64_t k, int64_t n) {
    CHECK(k >= 0 && k < n, "position %" PRId64 " of %" PRId64, k, n);
    int half = 1;
    while ((INT64_C(1) << (2 * half)) < n) half++;
    const uint64_t mask = (UINT64_C(1) << half) - 1, key = mix(seed + 0x9e3779b97f4a7c15u * ((uint64_t)epoch + 1));
    uint64_t x = (uint64_t)k;
    do {
        uint64_t left = x >> half, right = x & mask;
        for (uint64_t round = 0; round < 8; round++) {
            const uint64_t f = mix(key ^ mix(right + (round << 40) + 1)) & mask, was = right;
            right = left ^ f;
            left = was;
        }
        x = left << half | right;
    } while (x >= (uint64_t)n);
    return (int64_t)x;
}

/* ---- structures ---------------------------------------------------------------------------------------------- */

typedef enum SlotState { FREE, FILLING, READY } SlotState;

/* One image of a batch while it is made. */
typedef struct Found { int image; ImageView view; JpegCause cause; int bad; int compact; } Found;

typedef struct Slot {
    SlotState state;
    Batch batch;
    Arena arena; /* pixels and the arrays of the batch */
    int64_t images, skipped, bad[LOADER_CAUSES], damaged[LOADER_CAUSES];
    char first_bad[512];
} Slot;

typedef struct Worker {
    Loader *l;
    pthread_t thread;
    char *file; /* the bytes of one JPEG */
    int64_t cap_file;
    Found *found;
    int *table; /* image -> index into found, open addressing */
} Worker;

/* A decoded image that stays. state: 0 nobody had it, 1 somebody copies it, 2 it is there. */
typedef struct Cached { const uint8_t *rgb; int w, h; JpegCause cause; _Atomic uint8_t state; } Cached;

struct Loader {
    const Dataset *d;
    LoaderConfig c;
    int64_t items, end; /* per epoch; position behind the last item, INT64_MAX when endless */
    int table_size;
    Slot *slot;
    int nslots;
    Worker *worker; /* at least one: the caller's when workers is 0 */
    int nthreads;   /* running */
    pthread_mutex_t lock;
    pthread_cond_t freed, filled;
    int64_t next_fill, next_out; /* batches */
    bool stop, holding;          /* holding: the caller has batch next_out - 1 */
    LoaderStats stats;

    Cached *cache;
    Arena cache_arena;
    _Atomic size_t cache_used;
};

/* ---- one image ----------------------------------------------------------------------------------------------- */

static bool read_image_file(Worker *w, const char *path, size_t *size, int *bad, Error *e) {
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hang us */
    struct stat st;
    *bad = LOADER_UNREADABLE;
    if (fd < 0) return fail_as(e, FAIL_DATA, "%s: %s", path, strerror(errno));
    if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
        close(fd);
        return fail_as(e, FAIL_DATA, "%s: not a regular file", path);
    }
    if (st.st_size > MAX_FILE) {
        close(fd);
        *bad = JPEG_TOO_LARGE;
        return fail_as(e, FAIL_DATA, "%s: %lld bytes, more than %d", path, (long long)st.st_size, MAX_FILE);
    }
    GROW(w->file, w->cap_file, (int64_t)st.st_size + 1);
    size_t got = 0;
    while (got < (size_t)st.st_size) {
        const ssize_t n = read(fd, w->file + got, (size_t)st.st_size - got);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            const int err = errno;
            close(fd);
            return fail_as(e, FAIL_DATA, "%s: %s", path, strerror(err));
        }
        if (n == 0) break; /* it became shorter: the decoder will say so */
        got += (size_t)n;
    }
    close(fd);
    *size = got;
    *bad = JPEG_OK;
    return true;
}

/* Fills f->view, or f->bad and e. *budget: bytes that the pixels of this batch may still take; a cached image is charged
 * like any other, so that what fits does not depend on what the cache happens to hold. */
static bool load_image(Worker *w, Slot *s, Found *f, size_t *budget, Error *e) {
    Loader *l = w->l;
    Cached *c = l->cache ? &l->cache[f->image] : NULL;
    const bool cached = c && atomic_load_explicit(&c->state, memory_order_acquire) == 2;
    char path[4096];
    size_t size = 0;
    const size_t mark = arena_mark(&s->arena);
    if (!path_join(path, sizeof path, l->d->images.dir, l->d->images.path[f->image], e)) {
        f->bad = LOADER_UNREADABLE;
        return false;
    }
    if (cached) {
        f->view = (ImageView){c->rgb, c->w, c->h};
        f->cause = c->cause;
    } else {
        if (!read_image_file(w, path, &size, &f->bad, e)) return false;
        JpegCause cause = JPEG_CORRUPT;
        if (!jpeg_decode(&s->arena, w->file, size, l->c.min_side, &f->view, NULL, &cause, e)) {
            arena_reset(&s->arena, mark);
            f->bad = cause ? (int)cause : JPEG_CORRUPT;
            return fail_in(e, "%s", path);
        }
        f->cause = cause;
    }
    const size_t bytes = (size_t)f->view.w * (size_t)f->view.h * 3;
    if (bytes > *budget) {
        arena_reset(&s->arena, mark);
        f->bad = JPEG_TOO_LARGE;
        return fail_as(e, FAIL_DATA, "%s: its %d x %d pixels do not fit what is left of this batch (batch_bytes)", path,
                       f->view.w, f->view.h);
    }
    *budget -= bytes;
    uint8_t nobody = 0;
    if (c && !cached && atomic_compare_exchange_strong(&c->state, &nobody, 1)) {
        const size_t room = (bytes + 63) & ~(size_t)63, at = atomic_fetch_add(&l->cache_used, room);
        if (at > l->cache_arena.size || room > l->cache_arena.size - at) {
            atomic_fetch_sub(&l->cache_used, room); /* full for this one; it stays claimed: nobody tries again */
        } else {
            uint8_t *to = (uint8_t *)l->cache_arena.piece[0].base + at;
            memcpy(to, f->view.rgb, bytes);
            c->rgb = to, c->w = f->view.w, c->h = f->view.h, c->cause = f->cause;
            atomic_store_explicit(&c->state, 2, memory_order_release);
        }
    }
    return true;
}

/* ---- one batch ----------------------------------------------------------------------------------------------- */

/* Index into w->found of the image, which is loaded when it is new to this batch. */
static int find_image(Worker *w, Slot *s, int image, int *nfound, size_t *budget) {
    const int mask = w->l->table_size - 1;
    int at = (int)(mix((uint64_t)image) & (uint64_t)mask);
    for (; w->table[at] >= 0; at = (at + 1) & mask)
        if (w->found[w->table[at]].image == image) return w->table[at];
    const int k = w->table[at] = (*nfound)++;
    Found *f = &w->found[k];
    Error e = {0};
    *f = (Found){.image = image, .compact = -1};
    s->images++;
    if (!load_image(w, s, f, budget, &e)) {
        if (!s->first_bad[0]) snprintf(s->first_bad, sizeof s->first_bad, "%.500s", e.text);
        s->bad[f->bad]++;
    } else if (f->cause) {
        s->damaged[f->cause]++;
    }
    return k;
}

/* Where this rank's share of batch b begins in the sequence. */
static int64_t first_of(const Loader *l, int64_t b) { return b * l->c.batch + (int64_t)l->c.batch * l->c.rank / l->c.ranks; }

static void fill_slot(Worker *w, Slot *s, int64_t b) {
    const Loader *l = w->l;
    const int B = l->c.batch;
    arena_reset(&s->arena, 0);
    int64_t *item = arena_alloc(&s->arena, (size_t)B * sizeof *item);
    int *place = arena_alloc(&s->arena, (size_t)B * sizeof *place);
    int(*image_of)[2] = arena_alloc(&s->arena, (size_t)B * sizeof *image_of);
    ImageView *image = arena_alloc(&s->arena, 2 * (size_t)B * sizeof *image);
    uint64_t *image_id = arena_alloc(&s->arena, 2 * (size_t)B * sizeof *image_id);
    size_t budget = l->c.batch_bytes;
    int n = 0, nimages = 0, nfound = 0;

    s->images = s->skipped = 0;
    memset(s->bad, 0, sizeof s->bad);
    memset(s->damaged, 0, sizeof s->damaged);
    s->first_bad[0] = 0;
    memset(w->table, -1, (size_t)l->table_size * sizeof *w->table);

    const int64_t first = first_of(l, b), end = MIN(b * B + (int64_t)B * (l->c.rank + 1) / l->c.ranks, l->end);
    for (int64_t at = first; at < end; at++) {
        const int64_t epoch = at / l->items, k = at % l->items;
        const int64_t it = l->c.shuffle ? loader_permute(l->c.seed, epoch, k, l->items) : k;
        int img[2], of[2] = {-1, -1};
        bool usable = true;
        const int count = dataset_item_images(l->d, it, img);
        for (int j = 0; j < count; j++) {
            of[j] = find_image(w, s, img[j], &nfound, &budget);
            usable = usable && !w->found[of[j]].bad;
        }
        if (!usable) {
            s->skipped++;
            continue;
        }
        for (int j = 0; j < count; j++) {
            Found *f = &w->found[of[j]];
            if (f->compact < 0) {
                image[nimages] = f->view;
                image_id[nimages] = (uint64_t)f->image;
                f->compact = nimages++;
            }
            of[j] = f->compact;
        }
        item[n] = it;
        place[n] = (int)(at - b * B);
        image_of[n][0] = of[0];
        image_of[n++][1] = of[1];
    }
    s->batch = (Batch){.index = b,
                       .epoch = first / l->items,
                       .n = n,
                       .item = item,
                       .place = place,
                       .nimages = nimages,
                       .image = image,
                       .image_id = image_id,
                       .image_of = (const int(*)[2])image_of};
}

/* A batch that begins before the end is there for all ranks, for some of them perhaps without an item. */
static bool batch_exists(const Loader *l, int64_t b) { return b * l->c.batch < l->end; }

static void *work(void *arg) {
    Worker *w = arg;
    Loader *l = w->l;
    pthread_mutex_lock(&l->lock);
    for (;;) {
        /* The slot of the batch the caller holds is free again only when he asks for the next. */
        while (!l->stop && (!batch_exists(l, l->next_fill) || l->slot[l->next_fill % l->nslots].state != FREE))
            pthread_cond_wait(&l->freed, &l->lock);
        if (l->stop) break;
        const int64_t b = l->next_fill++;
        Slot *s = &l->slot[b % l->nslots];
        s->state = FILLING;
        pthread_mutex_unlock(&l->lock);
        fill_slot(w, s, b);
        pthread_mutex_lock(&l->lock);
        s->state = READY;
        pthread_cond_broadcast(&l->filled);
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

/* ---- the loader ---------------------------------------------------------------------------------------------- */

Loader *loader_open(const Dataset *d, const LoaderConfig *c, Error *e) {
    const int64_t items = dataset_items(d);
    const int ranks = MAX(c->ranks, 1);
    if (items < 1) return fail_as(e, FAIL_DATA, "%s: the dataset is empty", d->images.dir), NULL;
    if (c->batch < 1 || c->batch > 1 << 20 || c->workers < 0 || c->workers > 1024 || c->rank < 0 || c->rank >= ranks)
        return fail_as(e, FAIL_CONFIG, "loader: batch %d, workers %d, rank %d of %d", c->batch, c->workers, c->rank, ranks), NULL;
    if (c->first_batch < 0 || c->first_batch > INT64_MAX / 4 / c->batch || c->passes < 0 || c->passes > INT64_MAX / 4 / items)
        return fail_as(e, FAIL_CONFIG, "loader: first batch %" PRId64 ", passes %" PRId64, c->first_batch, c->passes), NULL;

    Loader *l = xcalloc(1, sizeof *l);
    l->d = d;
    l->c = *c;
    l->c.ranks = ranks;
    if (!l->c.batch_bytes) l->c.batch_bytes = (size_t)1 << 30;
    l->items = items;
    l->end = c->passes ? c->passes * items : INT64_MAX;
    l->next_fill = l->next_out = c->first_batch;
    l->table_size = 4;
    while (l->table_size < 4 * c->batch) l->table_size *= 2;
    l->nslots = c->workers ? c->workers + 2 : 1; /* one held by the caller, one ready, one per worker */
    l->slot = xcalloc((size_t)l->nslots, sizeof *l->slot);
    /* More than the budget: an image that overruns it is decoded before we know, and each is aligned to 64 bytes. This is
     * address space; it becomes memory when touched. */
    const size_t arrays = (size_t)c->batch * (sizeof(int64_t) + sizeof(int) + 2 * (sizeof(int) + sizeof(ImageView) + sizeof(uint64_t) + 64)) + 4096;
    for (int i = 0; i < l->nslots; i++)
        arena_open(&l->slot[i].arena, "batch", NULL, l->c.batch_bytes + (size_t)JPEG_MAX_PIXELS * 3 + arrays);
    if (c->cache_bytes) {
        l->cache = xcalloc((size_t)d->images.n, sizeof *l->cache);
        arena_open(&l->cache_arena, "image cache", NULL, c->cache_bytes);
    }
    l->worker = xcalloc((size_t)MAX(c->workers, 1), sizeof *l->worker);
    for (int i = 0; i < MAX(c->workers, 1); i++) {
        Worker *w = &l->worker[i];
        w->l = l;
        w->found = xcalloc(2 * (size_t)c->batch, sizeof *w->found);
        w->table = xcalloc((size_t)l->table_size, sizeof *w->table);
    }
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->freed, NULL);
    pthread_cond_init(&l->filled, NULL);

    sigset_t all, old; /* signals are for the main thread */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    for (; l->nthreads < c->workers; l->nthreads++)
        if (pthread_create(&l->worker[l->nthreads].thread, NULL, work, &l->worker[l->nthreads])) break;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (l->nthreads < c->workers) {
        fail_as(e, FAIL_MEMORY, "loader: thread %d of %d could not be started", l->nthreads + 1, c->workers);
        loader_close(l);
        return NULL;
    }
    return l;
}

void loader_causes(const LoaderStats *t, char *out, size_t size) {
    size_t n = 0;
    *out = 0;
    for (int i = 0; i < LOADER_CAUSES; i++)
        if (t->bad[i] && n < size)
            n += (size_t)snprintf(out + n, size - n, "%s%" PRId64 " %s", n ? ", " : "", t->bad[i], loader_cause_names[i]);
}

/* False when more of the images asked for were bad than allowed. */
static bool few_bad(const Loader *l, Error *e) {
    const LoaderStats *t = &l->stats;
    int64_t bad = 0;
    char causes[256];
    for (int i = 0; i < LOADER_CAUSES; i++) bad += t->bad[i];
    if (100.0 * (double)bad <= (double)l->c.max_bad_percent * (double)t->images) return true;
    loader_causes(t, causes, sizeof causes);
    return fail_as(e, FAIL_DATA, "%s: %" PRId64 " of %" PRId64 " images cannot be used (%s), more than max_bad_percent %g; the first: %s",
                   l->d->images.dir, bad, t->images, causes, (double)l->c.max_bad_percent, t->first_bad);
}

/* Adds the batch to the statistics; false when too much is bad. */
static bool account(Loader *l, const Slot *s, Error *e) {
    LoaderStats *t = &l->stats;
    t->batches++;
    t->items += s->batch.n;
    t->skipped += s->skipped;
    t->images += s->images;
    for (int i = 0; i < LOADER_CAUSES; i++) {
        t->bad[i] += s->bad[i];
        t->damaged[i] += s->damaged[i];
    }
    if (!t->first_bad[0] && s->first_bad[0]) {
        memcpy(t->first_bad, s->first_bad, sizeof t->first_bad);
        warn("an image cannot be used and its samples are skipped: %s", t->first_bad);
    }
    return t->images < PERCENT_FROM || few_bad(l, e);
}

const Batch *loader_next(Loader *l, Error *e) {
    const double began = now_s();
    const int64_t b = l->next_out;
    Slot *s = &l->slot[b % l->nslots];
    if (l->nthreads == 0) {
        if (!batch_exists(l, b)) return few_bad(l, e), NULL;
        fill_slot(&l->worker[0], s, b);
    } else {
        pthread_mutex_lock(&l->lock);
        if (l->holding) {
            l->slot[(b - 1) % l->nslots].state = FREE;
            l->holding = false;
            pthread_cond_signal(&l->freed);
        }
        if (!batch_exists(l, b)) {
            pthread_mutex_unlock(&l->lock);
            return few_bad(l, e), NULL;
        }
        while (s->state != READY || s->batch.index != b) pthread_cond_wait(&l->filled, &l->lock);
        l->holding = true;
        pthread_mutex_unlock(&l->lock);
    }
    l->next_out++;
    l->stats.wait_s += now_s() - began;
    return account(l, s, e) ? &s->batch : NULL;
}

Batch batch_part(const Batch *b, int batch, int part, int parts) {
    const int64_t lo = (int64_t)batch * part / parts, hi = (int64_t)batch * (part + 1) / parts;
    int first = 0, end = 0;
    for (int i = 0; i < b->n; i++) first += b->place[i] < lo, end += b->place[i] < hi;
    Batch out = *b;
    out.n = end - first;
    out.item += first;
    out.place += first;
    out.image_of += first;
    return out;
}

const LoaderStats *loader_stats(const Loader *l) { return &l->stats; }

void loader_close(Loader *l) {
    if (!l) return;
    pthread_mutex_lock(&l->lock);
    l->stop = true;
    pthread_cond_broadcast(&l->freed);
    pthread_mutex_unlock(&l->lock);
    for (int i = 0; i < l->nthreads; i++) pthread_join(l->worker[i].thread, NULL);
    for (int i = 0; i < MAX(l->c.workers, 1); i++) {
        free(l->worker[i].file);
        free(l->worker[i].found);
        free(l->worker[i].table);
    }
    for (int i = 0; i < l->nslots; i++) arena_close(&l->slot[i].arena);
    arena_close(&l->cache_arena);
    pthread_mutex_destroy(&l->lock);
    pthread_cond_destroy(&l->freed);
    pthread_cond_destroy(&l->filled);
    free(l->cache);
    free(l->worker);
    free(l->slot);
    free(l);
}

int64_t loader_epoch_batches(const Dataset *d, const LoaderConfig *c) {
    return (dataset_items(d) + c->batch - 1) / c->batch;
}
