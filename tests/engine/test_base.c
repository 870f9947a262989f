/* test_base.c -- error sentences, whole-file reading and atomic writing, folders, hashing, nearest names. */
#include "tests/engine/child.h"

#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *in_dir(const char *name) {
    static char path[4][256];
    static int at;
    at = (at + 1) % 4;
    snprintf(path[at], sizeof path[at], "%s/base-%s", test_dir(), name);
    return path[at];
}

static void put(const char *path, const void *data, size_t n) {
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(data, 1, n, f) == n && !fclose(f), "%s", path);
}

TEST(base_errors) {
    Error e = {0};
    bool ok = fail(&e, "plain %d", 1);
    EXPECT(!ok && e.status == FAIL_OTHER && !strcmp(e.text, "plain 1"), "%d %s", e.status, e.text);
    EXPECT(!fail_as(&e, FAIL_DATA, "bad") && e.status == FAIL_DATA, "%d", e.status);
    ok = fail_in(&e, "while %s", "reading");
    EXPECT(!ok && e.status == FAIL_DATA && !strcmp(e.text, "while reading: bad"), "%s", e.text);
    EXPECT(!fail(&e, "later") && e.status == FAIL_DATA, "fail changed the status to %d", e.status);
    EXPECT(!fail(NULL, "x") && !fail_as(NULL, FAIL_DATA, "x") && !fail_in(NULL, "x"), "without an error");
    char longer[3000];
    memset(longer, 'a', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    fail(&e, "%s", longer);
    EXPECT(strlen(e.text) == sizeof e.text - 1, "%zu bytes of text", strlen(e.text));
    fail_in(&e, "%s", longer);
    EXPECT(strlen(e.text) <= sizeof e.text - 1 && !strncmp(e.text, "aaaa", 4), "%zu bytes of text",
           strlen(e.text));
}

TEST(base_file_read) {
    Error e = {0};
    char *data;
    size_t n;
    put(in_dir("five"), "a\0b\ncd", 6);
    EXPECT(file_read(in_dir("five"), &data, &n, 6, &e) && n == 6 && !memcmp(data, "a\0b\ncd", 7), "%s",
           e.text);
    free(data);
    put(in_dir("empty"), "", 0);
    EXPECT(file_read(in_dir("empty"), &data, &n, 0, &e) && n == 0 && data && !*data, "%s", e.text);
    free(data);
    EXPECT(!file_read(in_dir("five"), &data, &n, 5, &e) && !data && e.status == FAIL_DATA &&
               strstr(e.text, "-five: 6 bytes"),
           "%s", e.text);
    EXPECT(!file_read(in_dir("none"), &data, &n, 5, &e) && strstr(e.text, "-none: No such file"), "%s",
           e.text);
    EXPECT(!file_read(test_dir(), &data, &n, 5, &e) && strstr(e.text, "not a regular file"), "%s", e.text);
    CHECK(!mkfifo(in_dir("fifo"), 0600), "fifo");
    alarm(10); /* a reader that waits for a writer would hang the tests */
    EXPECT(!file_read(in_dir("fifo"), &data, &n, 5, &e) && strstr(e.text, "not a regular file"), "%s",
           e.text);
    alarm(0);
}

TEST(base_file_write_atomic) {
    Error e = {0};
    char *data, path[300];
    size_t n;
    put(in_dir("old"), "old", 3);
    EXPECT(file_write_atomic(in_dir("old"), "newer", 5, &e) && file_read(in_dir("old"), &data, &n, 99, &e) &&
               n == 5 && !strcmp(data, "newer"),
           "%s", e.text);
    free(data);
    /* What a killed process has left goes with the next write. */
    put(in_dir("old.tmp"), "half of a lar", 13);
    EXPECT(file_write_atomic(in_dir("old"), "whole", 5, &e) && access(in_dir("old.tmp"), F_OK),
           "old.tmp is still there; %s", e.text);
    EXPECT(file_read(in_dir("old"), &data, &n, 99, &e) && n == 5 && !strcmp(data, "whole"), "%s", e.text);
    free(data);
    /* A target that cannot be replaced: the sentence says so, nothing is left beside it. */
    EXPECT(make_dirs(in_dir("d/target/full"), &e), "%s", e.text);
    EXPECT(!file_write_atomic(in_dir("d/target"), "x", 1, &e) && e.status == FAIL_DISK &&
               strstr(e.text, "d/target: cannot write 1 bytes"),
           "%s", e.text);
    snprintf(path, sizeof path, "%s/base-d/target.tmp", test_dir());
    EXPECT(access(path, F_OK), "%s was left", path);
    EXPECT(!file_write_atomic(in_dir("nowhere/x"), "x", 1, &e) && e.status == FAIL_DISK, "%s", e.text);
    char here[4096];
    CHECK(getcwd(here, sizeof here) && !chdir(test_dir()), "chdir");
    EXPECT(file_write_atomic("base-bare", "x", 1, &e) && !access(in_dir("bare"), R_OK), "a bare name: %s",
           e.text);
    CHECK(!chdir(here), "chdir");
}

TEST(base_make_dirs) {
    Error e = {0};
    struct stat st;
    EXPECT(make_dirs(in_dir("a/b//c/"), &e) && make_dirs(in_dir("a/b/c"), &e) &&
               !stat(in_dir("a/b/c"), &st) && S_ISDIR(st.st_mode),
           "%s", e.text);
    put(in_dir("file"), "", 0);
    EXPECT(!make_dirs(in_dir("file/x"), &e) && e.status == FAIL_DISK && strstr(e.text, "-file"), "%s",
           e.text);
    e = (Error){0};
    EXPECT(!make_dirs(in_dir("file"), &e) && e.status == FAIL_DISK, "a file counts as a folder: %s", e.text);
    EXPECT(!make_dirs("", &e) && *e.text, "an empty path");
}

TEST(base_path_join) {
    char out[8];
    Error e = {0};
    EXPECT(path_join(out, 8, "a", "b", &e) && !strcmp(out, "a/b"), "%s", out);
    EXPECT(path_join(out, 8, "a/", "b", &e) && !strcmp(out, "a/b"), "%s", out);
    EXPECT(path_join(out, 8, "", "b", &e) && !strcmp(out, "b"), "%s", out);
    EXPECT(path_join(out, 8, "abc", "def", &e), "7 characters in 8: %s", e.text);
    EXPECT(!path_join(out, 8, "abcd", "def", &e) && *e.text, "8 characters in 8");
}

TEST(base_hash) {
    EXPECT(hash_bytes("abc", 3, 1) == hash_bytes("abc", 3, 1), "not a function");
    EXPECT(hash_bytes("abc", 3, 1) != hash_bytes("abc", 3, 2), "the seed does nothing");
    EXPECT(hash_bytes("abc", 3, 1) != hash_bytes("abd", 3, 1) &&
               hash_bytes("", 0, 1) != hash_bytes("\0", 1, 1),
           "collision");
    /* Counters as keys, as the training loop uses it: every bit is set about half of the time. */
    int ones[64] = {0};
    for (uint64_t i = 0; i < 4096; i++) {
        const uint64_t h = hash_bytes(&i, sizeof i, 5);
        for (int b = 0; b < 64; b++) ones[b] += (int)(h >> b & 1);
    }
    for (int b = 0; b < 64; b++)
        EXPECT_NEAR(ones[b], 2048, 6 * 32, "bit %d", b); /* six standard deviations */
}

TEST(base_nearest) {
    const char *const names[] = {"learning_rate", "batch", "steps", "warmup"};
    const char *got = nearest("lerning_rate", names, 4);
    EXPECT(got && !strcmp(got, "learning_rate"), "%s", got ? got : "nothing");
    got = nearest("step", names, 4);
    EXPECT(got && !strcmp(got, "steps"), "%s", got ? got : "nothing");
    EXPECT(!nearest("something_else_entirely", names, 4) && !nearest("x", names, 0),
           "far words have a neighbour");
    char word[100];
    memset(word, 'z', 99);
    word[99] = 0;
    EXPECT(!nearest(word, names, 4), "a long word has a neighbour");
}

TEST(base_grow) {
    int *p = NULL;
    int64_t cap = 0;
    for (int i = 0; i < 1000; i++) {
        GROW(p, cap, i + 1);
        p[i] = i;
    }
    for (int i = 0; i < 1000; i++) EXPECT(p[i] == i, "%d", i);
    EXPECT(cap >= 1000 && cap < 4000, "capacity %" PRId64, cap);
    free(p);
}

/* Only our own code breaks a CHECK: it says where and aborts. */
static void break_check(void *unused) {
    (void)unused;
    CHECK(1 == 2, "the number is %d", 42);
}

TEST(base_check) {
    static Child c;
    EXPECT(child_call(&c, break_check, NULL) == -SIGABRT, "status %d", c.status);
    EXPECT(strstr(c.text, "test_base.c:") && strstr(c.text, "the number is 42 (1 == 2)"), "%s", c.text);
}
