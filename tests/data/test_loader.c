/* test_loader.c -- order, resumption, thread counts, damaged images. */
#include "data/loader.h"
#include "tests/test.h"

#include <unistd.h>

TEST(loader_permutation) {
    static const int sizes[] = {1, 2, 3, 5, 16, 17, 1000, 4097};
    for (int i = 0; i < COUNT_OF(sizes); i++) {
        const int n = sizes[i];
        char *seen = xcalloc((size_t)n, 1);
        int fixed = 0, again = 0;
        for (int k = 0; k < n; k++) {
            const int64_t at = loader_permute(7, 3, k, n);
            EXPECT(at >= 0 && at < n && !seen[at], "n %d: %" PRId64 " comes twice", n, at);
            seen[at] = 1;
            fixed += at == k;
            again += at == loader_permute(7, 4, k, n);
        }
        /* A random permutation has one fixed point on average; two have one place in common. */
        EXPECT(n < 1000 || (fixed < 10 && again < 10), "n %d: %d fixed points, %d equal places in the next epoch", n, fixed, again);
        free(seen);
    }
    /* Where does item 0 go? Uniform over 10 places in 10,000 seeds: each 1000 +- 30. */
    int count[10] = {0};
    for (uint64_t s = 0; s < 10000; s++) count[loader_permute(s, 0, 0, 10)]++;
    for (int i = 0; i < 10; i++) EXPECT_NEAR(count[i], 1000, 150, "place %d", i);
}

/* A gqa folder of `images` small pictures, each 3 + image %% 5 wide, two questions per image; those in `broken` are damaged. */
static void make_folder(Dataset *d, int images, int broken) {
    char path[512], name[64], *text = xcalloc((size_t)images * 2 + 1, 96), *p = text;
    Error e = {0};
    snprintf(path, sizeof path, "%s/images", test_dir());
    make_dirs(path, &e);
    p += sprintf(p, "{");
    for (int i = 0; i < images; i++) {
        uint8_t rgb[20 * 16 * 3];
        const ImageView v = {rgb, 8 + i % 5, 16};
        unsigned char *jpg;
        size_t size;
        memset(rgb, i * 7, sizeof rgb);
        if (!jpeg_encode(&v, 90, &jpg, &size, &e)) die(FAIL_OTHER, "%s", e.text);
        if (i < broken) size = i % 2 ? 100 : 0; /* cut inside the header; empty */
        snprintf(name, sizeof name, "images/%d.jpg", i);
        snprintf(path, sizeof path, "%s/%s", test_dir(), name);
        unlink(path);
        if (!(i < broken && i % 3 == 2) && !file_write_atomic(path, jpg, size, &e)) die(FAIL_DISK, "%s", e.text);
        free(jpg);
        for (int q = 0; q < 2; q++)
            p += sprintf(p, "%s\"%d_%d\": {\"question\": \"q\", \"imageId\": \"%d\"}", i + q ? ",\n" : "", i, q, i);
    }
    sprintf(p, "}");
    snprintf(path, sizeof path, "%s/t_questions.json", test_dir());
    if (!file_write_atomic(path, text, strlen(text), &e)) die(FAIL_DISK, "%s", e.text);
    free(text);
    const DatasetConfig c = {.type = "gqa", .dir = test_dir(), .split = "t"};
    if (!dataset_open(d, &c, &e)) die(FAIL_OTHER, "%s", e.text);
}

/* Everything a batch says, in one number. */
static uint64_t batch_hash(const Batch *b, uint64_t h) {
    h = hash_bytes(&b->index, sizeof b->index, h);
    h = hash_bytes(b->item, (size_t)b->n * sizeof *b->item, h);
    h = hash_bytes(b->image_of, (size_t)b->n * sizeof *b->image_of, h);
    h = hash_bytes(b->image_id, (size_t)b->nimages * sizeof *b->image_id, h);
    for (int i = 0; i < b->nimages; i++) h = hash_bytes(b->image[i].rgb, (size_t)(b->image[i].w * b->image[i].h * 3), h + (uint64_t)b->image[i].w);
    return h;
}

enum { BATCHES = 40 };

static void run(const Dataset *d, LoaderConfig c, uint64_t hash[BATCHES]) {
    Error e = {0};
    Loader *l = loader_open(d, &c, &e);
    EXPECT(l, "%s", e.text);
    for (int64_t b = c.first_batch; l && b < BATCHES; b++) {
        const Batch *got = loader_next(l, &e);
        EXPECT(got && got->index == b, "batch %" PRId64 ": %s", b, e.text);
        hash[b] = got ? batch_hash(got, 0) : 0;
    }
    loader_close(l);
}

TEST(loader_same_batches) {
    Dataset d;
    make_folder(&d, 23, 4);
    const LoaderConfig base = {.seed = 5, .batch = 6, .shuffle = true, .max_bad_percent = 100};
    uint64_t want[BATCHES], got[BATCHES];
    run(&d, base, want);
    EXPECT(want[0] != want[1] && want[0] != want[8], "batches differ");
    for (int variant = 0; variant < 6; variant++) {
        LoaderConfig c = base;
        c.workers = (int[]){1, 2, 5, 3, 0, 2}[variant];
        if (variant >= 3) c.cache_bytes = variant == 3 ? 2000 : 1 << 20; /* one that is soon full; one for all */
        if (variant == 5) c.first_batch = 17;
        memcpy(got, want, sizeof got);
        run(&d, c, got);
        EXPECT(!memcmp(got, want, sizeof got), "variant %d: other batches", variant);
    }
    dataset_close(&d);
}

TEST(loader_epoch_covers_all) {
    Dataset d;
    Error e = {0};
    make_folder(&d, 23, 0);
    for (int ranks = 1; ranks <= 3; ranks += 2) {
        int seen[46] = {0}, images = 0;
        for (int rank = 0; rank < ranks; rank++) {
            const LoaderConfig c = {.seed = 1, .batch = 4, .shuffle = true, .passes = 1, .workers = 2, .rank = rank, .ranks = ranks};
            Loader *l = loader_open(&d, &c, &e);
            const Batch *b;
            while ((b = loader_next(l, &e))) {
                for (int i = 0; i < b->n; i++) {
                    const Sample *s = &d.sample[b->item[i]];
                    const ImageView *v = &b->image[b->image_of[i][0]];
                    const int w = 8 + s->image[0] % 5;
                    seen[b->item[i]]++;
                    EXPECT(b->image_id[b->image_of[i][0]] == (uint64_t)s->image[0] && b->image_of[i][1] == -1, "image of item %" PRId64, b->item[i]);
                    EXPECT(v->w == w && v->h == 16, "%d x %d", v->w, v->h);
                }
                images += b->nimages;
            }
            EXPECT(!e.text[0], "%s", e.text);
            EXPECT(loader_next(l, &e) == NULL, "the end stays the end");
            loader_close(l);
        }
        for (int i = 0; i < 46; i++) EXPECT(seen[i] == 1, "ranks %d: item %d comes %d times", ranks, i, seen[i]);
        EXPECT(images <= 46, "an image is in a batch once");
    }
    const LoaderConfig all = {.batch = 46, .passes = 1}; /* both questions of an image in one batch: one image each */
    Loader *l = loader_open(&d, &all, &e);
    const Batch *b = loader_next(l, &e);
    EXPECT(b && b->n == 46 && b->nimages == 23 && b->item[45] == 45, "in the order of the file");
    EXPECT(loader_epoch_batches(&d, &all) == 1, "batches of an epoch");
    loader_close(l);
    dataset_close(&d);
}

TEST(loader_counts_bad_images) {
    Dataset d;
    Error e = {0};
    make_folder(&d, 20, 6); /* 0 empty, 1 cut, 2 missing, 3 cut, 4 empty, 5 missing */
    for (int workers = 0; workers <= 2; workers += 2) {
        const LoaderConfig c = {.batch = 10, .workers = workers, .passes = 1, .max_bad_percent = 30}; /* 6 of 20: just allowed */
        Loader *l = loader_open(&d, &c, &e);
        int n = 0;
        const Batch *b;
        char causes[100], few[8];
        while ((b = loader_next(l, &e))) n += b->n;
        const LoaderStats *s = loader_stats(l);
        int64_t bad = 0;
        for (int i = 0; i < LOADER_CAUSES; i++) bad += s->bad[i];
        EXPECT(n == 28 && s->items == 28 && s->skipped == 12 && s->images == 20 && !e.text[0], "%d items, %" PRId64 " skipped: %s", n, s->skipped, e.text);
        EXPECT(bad == 6 && s->bad[LOADER_UNREADABLE] == 2 && s->bad[JPEG_NOT_JPEG] == 2, "%" PRId64 " bad", bad);
        EXPECT(strstr(s->first_bad, "images/0.jpg"), "%s", s->first_bad);
        loader_causes(s, causes, sizeof causes);
        loader_causes(s, few, sizeof few);
        EXPECT(!strcmp(causes, "2 not a JPEG, 2 truncated, 2 unreadable") && !strcmp(few, "2 not a"), "\"%s\", \"%s\"", causes, few);
        loader_close(l);
    }
    for (int workers = 0; workers <= 2; workers += 2) { /* fewer than 1000 in all: known at the end of the last pass */
        Loader *l = loader_open(&d, &(LoaderConfig){.batch = 10, .workers = workers, .passes = 2, .max_bad_percent = 29}, &e);
        int64_t batches = 0;
        while (loader_next(l, &e)) batches++;
        EXPECT(batches == 8 && e.status == FAIL_DATA && strstr(e.text, "12 of 40 images") && strstr(e.text, "4 truncated"), "%" PRId64 " batches: %s",
               batches, e.text);
        e = (Error){0};
        loader_close(l);
    }
    LoaderConfig c = {.batch = 10, .workers = 1, .max_bad_percent = 20}; /* 30% are bad: an error, but not before 1000 */
    Loader *l = loader_open(&d, &c, &e);
    int64_t batches = 0;
    while (loader_next(l, &e)) batches++;
    EXPECT(batches == 199 && e.status == FAIL_DATA && strstr(e.text, "max_bad_percent 20"), "%" PRId64 " batches: %s", batches, e.text);
    loader_close(l);
    c.max_bad_percent = 31;
    e = (Error){0};
    l = loader_open(&d, &c, &e);
    for (batches = 0; batches < 250 && loader_next(l, &e);) batches++;
    EXPECT(batches == 250, "%s", e.text);
    loader_close(l);
    dataset_close(&d);
}

TEST(loader_pixel_budget) { /* what does not fit is the same with and without a cache */
    Dataset d;
    Error e = {0};
    make_folder(&d, 10, 0);
    int64_t large[2];
    for (int cached = 0; cached < 2; cached++) {
        const LoaderConfig c = {.batch = 20, .passes = 3, .max_bad_percent = 100, .batch_bytes = 3000, .cache_bytes = cached << 20};
        Loader *l = loader_open(&d, &c, &e);
        const Batch *b;
        while ((b = loader_next(l, &e))) EXPECT(b->n > 0 && b->n < 20, "%d samples", b->n);
        large[cached] = loader_stats(l)->bad[JPEG_TOO_LARGE];
        loader_close(l);
    }
    EXPECT(large[0] == large[1] && large[0] > 0, "%" PRId64 " and %" PRId64 " too large", large[0], large[1]);
    dataset_close(&d);
}

TEST(loader_bad_config) {
    Dataset d;
    Error e = {0};
    make_folder(&d, 2, 0);
    LoaderConfig c = {.batch = 0};
    EXPECT(!loader_open(&d, &c, &e) && e.status == FAIL_CONFIG, "%s", e.text);
    c = (LoaderConfig){.batch = 1, .rank = 2, .ranks = 2};
    EXPECT(!loader_open(&d, &c, &e), "rank 2 of 2");
    c = (LoaderConfig){.batch = 1, .first_batch = INT64_MAX};
    EXPECT(!loader_open(&d, &c, &e), "first batch 2^63 - 1");
    c = (LoaderConfig){.batch = 4, .workers = 3}; /* closing while the workers are busy */
    for (int i = 0; i < 20; i++) {
        Loader *l = loader_open(&d, &c, &e);
        if (i % 2) loader_next(l, &e);
        loader_close(l);
    }
    dataset_close(&d);
}
