/* test_ckpt.c -- checkpoints: whole or not there, the newest whole one is found, damage is named, equal states are equal bytes. */
#include "engine/ckpt.h"
#include "tests/engine/child.h"
#include "tests/engine/rig.h"

#include <dirent.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static Module *fresh(uint64_t seed) {
    Error e = {0};
    Module *m = module_open("configs/models/tiny-vilt", device_cpu(2), F32, MODULE_TRAINED, false, seed, &e);
    CHECK(m, "%s", e.text);
    ParamSet *ps = &m->params;
    for (int i = 0; i < ps->n; i++) {
        random_fill(ps->m + ps->param[i]->at, ps->param[i]->n, seed + (uint64_t)i, -1, 1);
        random_fill(ps->v + ps->param[i]->at, ps->param[i]->n, seed + (uint64_t)i + 999, 0, 1);
    }
    ps->step = (int64_t)seed;
    return m;
}

static const char *out_dir(const char *name) {
    static char dir[256];
    snprintf(dir, sizeof dir, "%s/%s", test_dir(), name);
    remove_tree(dir);
    Error e = {0};
    CHECK(make_dirs(dir, &e), "%s", e.text);
    return dir;
}

static const char *in(const char *dir, const char *name) {
    static char path[4][600];
    static int at;
    at = (at + 1) % 4;
    snprintf(path[at], sizeof path[at], "%s/%s", dir, name);
    return path[at];
}

static int entries(const char *dir) {
    DIR *d = opendir(dir);
    int n = -2; /* . and .. */
    if (!d) return -1;
    while (readdir(d)) n++;
    closedir(d);
    return n;
}

TEST(ckpt_round_trip) {
    Module *a = fresh(7), *b = fresh(8);
    const char *out = out_dir("ckpt1");
    Error e = {0};
    char path[600], why[1300];
    int64_t step;
    EXPECT(!ckpt_latest(out, path, sizeof path, &step) && !ckpt_latest(in(out, "nowhere"), path, sizeof path, &step), "found one in an empty folder");
    EXPECT(ckpt_save(out, 12, &(CkptPart){"vqa", a}, 1, NULL, "run:\n  seed: 1\n", 2, &e), "%s", e.text);
    EXPECT(ckpt_latest(out, path, sizeof path, &step) && step == 12 && !strcmp(path, in(out, "checkpoint-000012")), "%s", path);
    EXPECT(ckpt_load(path, &(CkptPart){"vqa", b}, 1, &e), "%s", e.text);
    const ParamSet *p = &a->params, *q = &b->params;
    const size_t bytes = (size_t)p->total * 4;
    EXPECT(!memcmp(p->value, q->value, bytes) && !memcmp(p->m, q->m, bytes) && !memcmp(p->v, q->v, bytes) && p->step == q->step, "not the same");
    /* Equal states, equal bytes, also over a checkpoint that is there already. */
    EXPECT(ckpt_save(out, 13, &(CkptPart){"vqa", b}, 1, NULL, "run:\n  seed: 1\n", 0, &e), "%s", e.text);
    EXPECT(same_folders(in(out, "checkpoint-000012/vqa"), in(out, "checkpoint-000013/vqa"), why, sizeof why), "%s", why);
    EXPECT(ckpt_save(out, 13, &(CkptPart){"vqa", a}, 1, NULL, "run:\n  seed: 1\n", 0, &e), "%s", e.text);
    EXPECT(same_folders(in(out, "checkpoint-000012/vqa"), in(out, "checkpoint-000013/vqa"), why, sizeof why), "%s", why);
    EXPECT(entries(out) == 2, "%d entries", entries(out));
    /* Its model folder is a model folder. */
    Module *c = module_open(in(out, "checkpoint-000013/vqa"), device_cpu(2), F32, MODULE_FROZEN, true, 0, &e);
    EXPECT(c && !memcmp(p->value, c->params.value, bytes), "%s", e.text);
    module_close(c);
    module_close(a);
    module_close(b);
}

TEST(ckpt_prunes) {
    Module *m = fresh(3);
    const CkptPart part = {"vqa", m};
    const char *out = out_dir("ckpt2");
    Error e = {0};
    char path[600];
    int64_t step;
    for (int64_t s = 1; s <= 5; s++) EXPECT(ckpt_save(out, s * 300000, &part, 1, NULL, "", 2, &e), "%s", e.text);
    EXPECT(entries(out) == 2 && !access(in(out, "checkpoint-1500000/state.json"), R_OK) && !access(in(out, "checkpoint-1200000/state.json"), R_OK),
           "%d are left", entries(out)); /* seven digits sort behind six */
    EXPECT(ckpt_latest(out, path, sizeof path, &step) && step == 1500000, "%s", path);
    module_close(m);
}

static void nothing(void *unused) { (void)unused; }

/* What a crash or a person may leave beside the checkpoints. */
TEST(ckpt_ignores_remains) {
    Module *m = fresh(3);
    const CkptPart part = {"vqa", m};
    const char *out = out_dir("ckpt3");
    Error e = {0};
    char path[600], stale[64], part_file[80];
    int64_t step;
    EXPECT(ckpt_save(out, 5, &part, 1, NULL, "", 2, &e), "%s", e.text);
    CHECK(make_dirs(in(out, "checkpoint-000009/vqa"), &e) && make_dirs(in(out, "checkpoint-12x"), &e) && make_dirs(in(out, "checkpoint-"), &e) &&
              file_write_atomic(in(out, "checkpoint-000010"), "", 0, &e) && make_dirs(in(out, "checkpoint--5"), &e), "%s", e.text);
    /* The temporary folder of a run that was killed: its process is gone. */
    static Child c;
    child_call(&c, nothing, NULL);
    snprintf(stale, sizeof stale, "tmp-checkpoint.%d", (int)c.pid);
    snprintf(part_file, sizeof part_file, "%s/part", stale);
    CHECK(make_dirs(in(out, stale), &e) && file_write_atomic(in(out, part_file), "x", 1, &e), "%s", e.text);
    EXPECT(ckpt_latest(out, path, sizeof path, &step) && step == 5, "%" PRId64, step);
    EXPECT(ckpt_save(out, 9, &part, 1, NULL, "", 2, &e), "over the half one: %s", e.text);
    EXPECT(ckpt_latest(out, path, sizeof path, &step) && step == 9, "%" PRId64, step);
    EXPECT(access(in(out, stale), F_OK), "the temporary folder of a killed run was kept");
    module_close(m);
}

TEST(ckpt_names_damage) {
    Module *m = fresh(3);
    const CkptPart part = {"vqa", m};
    const char *out = out_dir("ckpt4");
    static const char *const files[] = {"vqa/model.safetensors", "vqa.moments.safetensors"};
    for (int i = 0; i < 2; i++) {
        Error e = {0};
        CHECK(ckpt_save(out, 1 + i, &part, 1, NULL, "", 1, &e), "%s", e.text);
        char path[600];
        int64_t step;
        CHECK(ckpt_latest(out, path, sizeof path, &step), "none");
        struct stat st;
        CHECK(!stat(in(path, files[i]), &st) && !truncate(in(path, files[i]), st.st_size - 100), "%s", files[i]);
        EXPECT(!ckpt_load(path, &part, 1, &e) && e.status == FAIL_MODEL && strstr(e.text, files[i]), "status %d: %s", e.status, e.text);
        e = (Error){0};
        CHECK(!unlink(in(path, files[i])), "%s", files[i]);
        EXPECT(!ckpt_load(path, &part, 1, &e) && e.status == FAIL_MODEL && strstr(e.text, files[i]), "status %d: %s", e.status, e.text);
    }
    module_close(m);
}

/* A disk that ends in the middle: status 8, nothing is left of the attempt, the older checkpoint stays the newest. */
static const char *full_out;
static void save_to_full_disk(void *unused) {
    (void)unused;
    Module *m = fresh(3);
    Error e = {0};
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){300000, 300000}); /* the weights take 1 MB */
    if (ckpt_save(full_out, 6, &(CkptPart){"vqa", m}, 1, NULL, "", 1, &e)) _exit(100);
    printf("%s\n", e.text);
    fflush(stdout);
    _exit(e.status);
}

TEST(ckpt_full_disk) {
    Module *m = fresh(3);
    Error e = {0};
    char path[600];
    int64_t step;
    full_out = out_dir("ckpt5");
    CHECK(ckpt_save(full_out, 5, &(CkptPart){"vqa", m}, 1, NULL, "", 1, &e), "%s", e.text);
    static Child c;
    EXPECT(child_call(&c, save_to_full_disk, NULL) == FAIL_DISK && strstr(c.text, "checkpoint at step 6") && strstr(c.text, "model.safetensors"),
           "status %d: %s", c.status, c.text);
    EXPECT(entries(full_out) == 1 && ckpt_latest(full_out, path, sizeof path, &step) && step == 5, "%d entries", entries(full_out));
    module_close(m);
}
