/* test_replay.c -- the store of lessons: what comes back, what is too old, the file to the bit, damaged files. */
#include "data/safetensors.h"
#include "engine/replay.h"
#include "tests/test.h"

enum { LABELS = 5 };

/* Lesson k of batch b: VQA for even k, LOC for odd ones, all numbers from (b, k). */
static void make_lesson(int64_t b, int k, Ask *ask, Lesson *l) {
    static float p[LABELS], yes[2];
    static Candidate candidate[3];
    static char query[64];
    snprintf(query, sizeof query, "%s %d of %d?", k % 2 ? "ball" : "What is é", k, (int)b);
    *ask = (Ask){.image_id = (uint64_t)(b * 7 + k), .query = query};
    *l = (Lesson){.rect = {k, 1, k + 30, 20 + (int)b}, .is_loc = k % 2};
    for (int i = 0; i < LABELS; i++) p[i] = (float)(i + k) / 97;
    for (int i = 0; i < 2; i++) yes[i] = 1.0f / (float)(3 + i + k);
    for (int i = 0; i < 3; i++) candidate[i] = (Candidate){.box = {i, k, i + 9, k + 7}, .yes = (float)i / 3, .leader = i % 2};
    if (l->is_loc) l->nleaders = 2, l->ncandidates = 3, l->yes = yes, l->candidate = candidate;
    else l->p = p;
}

static void put_batch(Replay *r, int64_t b, int n) {
    replay_begin(r, b);
    for (int k = 0; k < n; k++) {
        Ask ask;
        Lesson l;
        make_lesson(b, k, &ask, &l);
        replay_keep(r, b, k, &ask, &l);
    }
}

static void check_batch(const Replay *r, int64_t b, int n) {
    const KeptBatch *k = replay_find(r, b);
    EXPECT(k && k->n == n, "batch %d: %d lessons", (int)b, k ? (int)k->n : -1);
    for (int i = 0; k && i < MIN(n, k->n); i++) {
        Ask ask;
        Lesson want;
        make_lesson(b, i, &ask, &want);
        const Lesson *got = &k->lesson[i].lesson;
        EXPECT(k->lesson[i].image_id == ask.image_id && !strcmp(k->lesson[i].query, ask.query), "lesson %d: \"%s\"", i, k->lesson[i].query);
        EXPECT(got->is_loc == want.is_loc && !memcmp(&got->rect, &want.rect, sizeof want.rect), "lesson %d: rectangle", i);
        if (!want.is_loc) {
            EXPECT(!memcmp(got->p, want.p, sizeof(float[LABELS])), "lesson %d: distribution", i);
            continue;
        }
        EXPECT(got->nleaders == 2 && got->ncandidates == 3 && !memcmp(got->yes, want.yes, 8), "lesson %d: leaders", i);
        for (int c = 0; c < 3; c++)
            EXPECT(!memcmp(&got->candidate[c].box, &want.candidate[c].box, sizeof(Rect)) && got->candidate[c].yes == want.candidate[c].yes &&
                       got->candidate[c].leader == want.candidate[c].leader,
                   "lesson %d: candidate %d", i, c);
    }
}

TEST(replay_ring) {
    Replay r;
    replay_open(&r, 2, 3, LABELS, 64, 0, 999);
    EXPECT(!replay_find(&r, 0) && !replay_find(&r, -1), "an empty store has nothing");
    for (int64_t b = 0; b < 12; b++) {
        put_batch(&r, b, 40 + (int)b); /* beyond two doublings */
        for (int64_t old = 0; old <= b; old++) {
            if (b - old <= 6) check_batch(&r, old, 40 + (int)old);
            else EXPECT(!replay_find(&r, old), "batch %d is kept at %d", (int)old, (int)b);
        }
    }
    replay_close(&r);
    replay_open(&r, 0, 3, LABELS, 64, 0, 999); /* reuse 0 keeps nothing */
    put_batch(&r, 1, 3);
    EXPECT(!replay_find(&r, 1), "kept without reuse");
    replay_close(&r);
}

TEST(replay_file) {
    char path[2][300];
    for (int i = 0; i < 2; i++) snprintf(path[i], sizeof path[i], "%s/lessons%d.safetensors", test_dir(), i);
    Error e = {0};
    Replay r, back;
    replay_open(&r, 1, 4, LABELS, 64, 0, 999);
    replay_open(&back, 1, 4, LABELS, 64, 0, 999);
    EXPECT(replay_save(&r, path[0], &e) && replay_load(&back, path[0], &e), "an empty store: %s", e.text);
    for (int64_t b = 3; b < 10; b++) put_batch(&r, b, b == 7 ? 0 : 9);
    EXPECT(replay_save(&r, path[0], &e) && replay_load(&back, path[0], &e), "%s", e.text);
    for (int64_t b = 5; b < 10; b++) check_batch(&back, b, b == 7 ? 0 : 9);
    EXPECT(replay_save(&back, path[1], &e), "%s", e.text);
    SafeTensors a, b;
    CHECK(st_open(&a, path[0], &e) && st_open(&b, path[1], &e), "%s", e.text);
    EXPECT(a.size == b.size && !memcmp(a.base, b.base, a.size), "the file of what was read is another");

    /* Numbers all over the file wrong, one at a time: refused, or other lessons that are still within bounds; never out of them. */
    int refused = 0;
    for (int i = 0; i < a.ntensors; i++) {
        for (size_t at = 0; at < a.tensors[i].bytes; at += a.tensors[i].dtype == ST_U8 ? 64 : 28) {
            uint8_t *copy = malloc(a.size);
            char bad[300];
            memcpy(copy, a.base, a.size);
            memset(copy + ((const uint8_t *)a.tensors[i].data - a.base) + at, 0xFD, 4);
            snprintf(bad, sizeof bad, "%s/bad.safetensors", test_dir());
            FILE *f = fopen(bad, "wb");
            CHECK(f && fwrite(copy, 1, a.size, f) == a.size && !fclose(f), "cannot write");
            Replay other;
            replay_open(&other, 1, 4, LABELS, 64, 0, 999);
            e = (Error){0};
            if (!replay_load(&other, bad, &e)) refused += strstr(e.text, "bad.safetensors") != NULL;
            replay_close(&other);
            free(copy);
        }
    }
    EXPECT(refused > 100, "%d damaged files were refused", refused);
    st_close(&a);
    st_close(&b);
    replay_close(&back);

    replay_open(&back, 2, 4, LABELS, 64, 0, 999);
    EXPECT(!replay_load(&back, path[0], &e) && strstr(e.text, "another distill.reuse or lag"), "%s", e.text);
    replay_close(&back);
    replay_close(&r);
}

/* A run goes on with fewer programs a step than the checkpoint's lessons are of: they find room all the same, and the bits of the file. */
TEST(replay_fewer_programs) {
    enum { MANY = 3129, PROGRAMS = 64, LESSONS = 5 * PROGRAMS };
    char path[2][300];
    for (int i = 0; i < 2; i++) snprintf(path[i], sizeof path[i], "%s/many%d.safetensors", test_dir(), i);
    Error e = {0};
    Replay r, back;
    static float p[MANY];
    replay_open(&r, 1, 2, MANY, PROGRAMS, 0, 999);
    replay_open(&back, 1, 2, MANY, 1, 0, 999);
    for (int64_t b = 0; b < 3; b++) {
        replay_begin(&r, b);
        for (int k = 0; k < LESSONS; k++) {
            const Ask ask = {.image_id = (uint64_t)k, .query = "What?"};
            for (int i = 0; i < MANY; i++) p[i] = (float)((i + k + (int)b) % 97) / 97;
            replay_keep(&r, b, k, &ask, &(Lesson){.rect = {0, 0, 1 + k, 2}, .p = p});
        }
    }
    EXPECT(replay_save(&r, path[0], &e) && replay_load(&back, path[0], &e) && replay_save(&back, path[1], &e), "%s", e.text);
    SafeTensors a, b;
    CHECK(st_open(&a, path[0], &e) && st_open(&b, path[1], &e), "%s", e.text);
    EXPECT(a.size == b.size && !memcmp(a.base, b.base, a.size), "the file of what was read is another");
    st_close(&a);
    st_close(&b);
    replay_close(&r);
    replay_close(&back);
}
