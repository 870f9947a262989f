/* test_verbs.c -- the command as a person or a script meets it: exit statuses, sentences, bad input of every kind.
 *
 * Statuses: 2 usage, 3 configuration, 4 data, 5 model file, 6 memory, 8 disk, 9 not a number. Each row of the tables is one
 * way to get it wrong and what the sentence must contain. Nothing may end by a signal.
 */
#include "data/safetensors.h"
#include "tests/engine/child.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define TINY "train data.kind=steps train.from_scratch=true train.batch=8 train.steps=1 run.threads=2 "

static Child c;

static const char *in(const char *dir, const char *name) {
    static char path[8][700];
    static int at;
    at = (at + 1) % 8;
    snprintf(path[at], sizeof path[at], "%s/%s", dir, name);
    return path[at];
}

static void put(const char *path, const void *data, size_t n) {
    Error e = {0};
    CHECK(file_write_atomic(path, data, n, &e), "%s", e.text);
}

static void put_text(const char *path, const char *text) { put(path, text, strlen(text)); }

static void copy(const char *to, const char *from) {
    Error e = {0};
    char *data;
    size_t n;
    CHECK(file_read(from, &data, &n, 64 << 20, &e), "%s", e.text);
    put(to, data, n);
    free(data);
}

/* The line must end with this status and say this (what NULL: anything but silence). */
static void expect(Status status, const char *what, const char *line) {
    command_start(&c, NULL, NULL, line);
    command_wait(&c);
    EXPECT(c.status == (int)status, "`vpdistill %s` ended with %d, not %d: %s", line, c.status, (int)status,
           c.text);
    EXPECT(*c.text && (!what || strstr(c.text, what)), "`vpdistill %s` does not say \"%s\": %s", line,
           what ? what : "anything", c.text);
}

/* ---- usage and configuration ---------------------------------------------------------------------- */

TEST(verbs_usage) {
    if (!vpdistill()) return;
    static const struct { Status status; const char *line, *says; } rows[] = {
        {FAIL_USAGE, "", "usage: vpdistill <verb>"},
        {FAIL_USAGE, "trian", "did you mean train?"},
        {FAIL_USAGE, "zzzzzzzz", "there is no verb \"zzzzzzzz\""},
        {FAIL_USAGE, "train whatever", "\"whatever\""},
        {FAIL_USAGE, "scenes scenes.dir=x --force", "\"--force\""},
        {FAIL_USAGE, "run", "--image"},
        {FAIL_USAGE, "run --image", "wants a value"},
        {FAIL_USAGE, "run --imgae x.jpg", "did you mean --image?"},
        {OK_STATUS, "--help", "usage: vpdistill <verb>"},
        {OK_STATUS, "--version", "vpdistill "},
        {OK_STATUS, "train --help", "train.lr"},
        {OK_STATUS, "scenes --help", "scenes.domain"},
        {OK_STATUS, "run --help", "--image"},
        {OK_STATUS, "distill --help", "distill."},
        {OK_STATUS, "eval --help", "eval."},
    };
    for (int i = 0; i < COUNT_OF(rows); i++) expect(rows[i].status, rows[i].says, rows[i].line);
}

TEST(verbs_configuration) {
    if (!vpdistill()) return;
    static const struct { const char *line, *says;
    } rows[] = {
        {"train train.lerning_rate=1", "lerning_rate"},
        {"train train.stps=1", "did you mean"},
        {"train train.steps=-1", "train.steps"},
        {"train train.steps=many", "many"},
        {"train train.lr=nan", "train.lr"},
        {"train train.schedule=square", "square"},
        {"train missing.yaml", "missing.yaml"},
        {"train run.out=/tmp", "model.vqa is empty"},
        {"train train.module=loc", "model.loc is empty"},
        {"train data.kind=coco model.vqa=configs/models/tiny-vilt train.from_scratch=true data.dir=/tmp "
         "run.out=build/none",
         "coco"},
        {"scenes", "scenes.dir is empty"},
    };
    for (int i = 0; i < COUNT_OF(rows); i++) expect(FAIL_CONFIG, rows[i].says, rows[i].line);

    static const struct { const char *yaml, *says; } bad[] = {
        {"train:\n  steps: 5\n  lerning_rate: 1\n", ":3"},
        {"train:\n  steps: [1, 2\n", "bad.yaml"},
        {"train: {steps: 5", "bad.yaml"},
        {"a: &x [1]\nb: *x\n", "bad.yaml"},
        {"train:\n\tsteps: 5\n", "bad.yaml"},
        {"\xff\xfe\x00\x01", "bad.yaml"},
        {"- 1\n- 2\n", "bad.yaml"},
        {"train: 5\n", "bad.yaml"},
        {"train:\n  steps: 99999999999999999999\n", ":2"},
    };
    for (int i = 0; i < COUNT_OF(bad); i++) {
        char line[400];
        put_text(in(test_dir(), "bad.yaml"), bad[i].yaml);
        snprintf(line, sizeof line, "train %s/bad.yaml", test_dir());
        expect(FAIL_CONFIG, bad[i].says, line);
    }
}

/* ---- data ----------------------------------------------------------------------------------------- */

static void train_on(Status status, const char *says, const char *dir, const char *more) {
    char line[1500];
    snprintf(line, sizeof line,
             TINY "model.vqa=configs/models/tiny-vilt data.dir=%s run.out=%s/verbs-out train.resume=false %s",
             dir, test_dir(), more);
    expect(status, says, line);
}

TEST(verbs_data) {
    if (!vpdistill()) return;
    char dir[400];
    strcpy(dir, own_scenes("baddata"));
    train_on(FAIL_DATA, "no-such-folder", "/no-such-folder", "");
    train_on(FAIL_DATA, NULL, dir, "data.split=nosuch");
    static const struct { const char *text, *says; } gqa[] = {
        {"", NULL},
        {"{", "train_questions.json"},
        {"[]", "train_questions.json"},
        {"{\"1\": {\"imageId\": \"x\", \"question\": \"q\"", "train_questions.json"},
        {"{\"1\": {\"imageId\": 5, \"question\": \"q\"}} trailing", "train_questions.json"},
        {"{\"1\": \"\xff\xfe\"}", "train_questions.json"},
        {"{}", NULL},
    };
    for (int i = 0; i < COUNT_OF(gqa); i++) {
        put_text(in(dir, "train_questions.json"), gqa[i].text);
        train_on(FAIL_DATA, gqa[i].says, dir, "data.kind=gqa");
    }
    /* 200,000 levels of nesting must not end in a stack overflow. */
    char *deep = xcalloc(400001, 1);
    memset(deep, '[', 400000);
    memcpy(deep, "{\"1\":", 5);
    put(in(dir, "train_questions.json"), deep, 400000);
    train_on(FAIL_DATA, "train_questions.json", dir, "data.kind=gqa");
    /* A folder of images that leads elsewhere. */
    put_text(
        in(dir, "train_steps.jsonl"),
        "{\"image\": \"../../etc/passwd\", \"module\": \"VQA\", \"query\": \"q\", \"answer\": \"yes\"}\n");
    train_on(FAIL_DATA, NULL, dir, "");
    /* More bad lines than may be passed over; and a line of 3 MB. */
    FILE *f = fopen(in(dir, "train_steps.jsonl"), "w");
    for (int i = 0; i < 200; i++) fprintf(f, "{\"image\": \n");
    fclose(f);
    train_on(FAIL_DATA, "train_steps.jsonl", dir, "");
    free(deep);
}

/* The image that a line of a steps file names. */
static void image_of(char name[200], const char *row) {
    const char *at = strstr(row, "\"image\"");
    CHECK(at && sscanf(at + 7, "%*[ :]\"%199[^\"]", name) == 1, "%s", row);
}

/* Corrupt images are counted by cause and skipped, and the training goes on. */
TEST(verbs_corrupt_images) {
    if (!vpdistill()) return;
    char dir[400], path[5][700], *data;
    size_t n;
    int k = 0;
    Error e = {0};
    strcpy(dir, own_scenes("badimages"));
    /* Five images that the training set uses. */
    FILE *f = fopen(in(dir, "train_steps.jsonl"), "r");
    char row[4096];
    while (k < 5 && fgets(row, sizeof row, f)) {
        char name[200];
        image_of(name, row);
        snprintf(path[k], sizeof path[k], "%s/%s", dir, name);
        bool seen = false;
        for (int j = 0; j < k; j++) seen |= !strcmp(path[j], path[k]);
        k += !seen;
    }
    fclose(f);
    CHECK(k == 5, "%d images", k);
    CHECK(file_read(path[0], &data, &n, 1 << 20, &e), "%s", e.text);
    put(path[0], data, n / 4); /* truncated */
    unsigned char *sof = memmem(data, n, "\xff\xc0\x00\x11\x08", 5);
    CHECK(sof, "no start of frame");
    sof[5] = sof[7] = 60000 >> 8; /* 60,000 x 60,000 pixels claimed */
    sof[6] = sof[8] = 60000 & 255;
    put(path[1], data, n);
    put_text(path[2], "this is no JPEG at all");
    CHECK(!unlink(path[3]), "%s", path[3]);
    memset(data + 2, 0x55, MIN(n - 2, 400)); /* begins right, then rubbish */
    put(path[4], data, n);
    free(data);
    train_on(OK_STATUS, "cannot be used", dir,
             "train.steps=8 data.max_bad_percent=100"); /* 8 steps of 2 images: one epoch */
    EXPECT(strstr(c.text, "of 16 images asked for, 1 not a JPEG, 1 truncated, 1 corrupt, 1 too large, 1 "
                          "unreadable were skipped"),
           "%s", c.text);
    /* All of them bad: the run ends and says how many of which kind. */
    for (f = fopen(in(dir, "train_steps.jsonl"), "r"); fgets(row, sizeof row, f);) {
        char name[200];
        image_of(name, row);
        put_text(in(dir, name), "x");
    }
    fclose(f);
    train_on(FAIL_DATA, "not a JPEG", dir, "train.steps=2000 train.per_image=1");
    EXPECT(strstr(c.text, "images cannot be used"), "%s", c.text);
}

/* ---- model files ---------------------------------------------------------------------------------- */

/* A model folder of the tiny student, with `header` and some bytes as its weights (NULL: none). */
static const char *model_folder(const char *header, size_t bytes_behind) {
    static char dir[400];
    static const char *const files[] = {"config.json", "preprocessor_config.json", "vocab.txt"};
    Error e = {0};
    char from[600];
    snprintf(dir, sizeof dir, "%s/badmodel", test_dir());
    remove_tree(dir);
    CHECK(make_dirs(dir, &e), "%s", e.text);
    for (int i = 0; i < 3; i++) {
        snprintf(from, sizeof from, "configs/models/tiny-vilt/%s", files[i]);
        copy(in(dir, files[i]), from);
    }
    if (header) {
        const size_t n = strlen(header);
        char *file = xcalloc(8 + n + bytes_behind, 1);
        for (int i = 0; i < 8; i++) file[i] = (char)(n >> 8 * i);
        memcpy(file + 8, header, n);
        put(in(dir, "model.safetensors"), file, 8 + n + bytes_behind);
        free(file);
    }
    return dir;
}

static void train_from(Status status, const char *says, const char *folder) {
    char line[1500];
    snprintf(line, sizeof line,
             "train data.kind=steps train.batch=8 train.steps=1 train.resume=false model.vqa=%s data.dir=%s "
             "run.out=%s/verbs-out",
             folder, tiny_scenes(), test_dir());
    expect(status, says, line);
}

TEST(verbs_model_files) {
    if (!vpdistill()) return;
    train_from(FAIL_MODEL, "no-such-model", "/no-such-model");
    train_from(FAIL_MODEL, "no model.safetensors", model_folder(NULL, 0));
    static const struct { const char *header; size_t behind; const char *says;
    } rows[] = {
        {"", 0, "model.safetensors"},
        {"{", 0, "model.safetensors"},
        {"{}", 0, "missing"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},\"b\":{\"dtype\":\"F32\",\"shape\":"
         "[2],\"data_offsets\":[4,12]}}",
         12, "model.safetensors"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 4, "model.safetensors"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8, "model.safetensors"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,8]}}", 8,
         "model.safetensors"},
        {"{\"a\":{\"dtype\":\"F33\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "model.safetensors"},
        {"{\"vilt.layernorm.weight\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8,
         "84 tensors are wrong"},
    };
    for (int i = 0; i < COUNT_OF(rows); i++)
        train_from(FAIL_MODEL, rows[i].says, model_folder(rows[i].header, rows[i].behind));
    /* A header length of 2^63, and of 100 GB. */
    const char *dir = model_folder("{}", 0);
    put(in(dir, "model.safetensors"), "\0\0\0\0\0\0\0\x80{}", 10);
    train_from(FAIL_MODEL, "model.safetensors", dir);
    put(in(dir, "model.safetensors"), "\0\0\0\0\x19\0\0\0{}", 10);
    train_from(FAIL_MODEL, "model.safetensors", dir);
    static const struct { const char *name, *text, *says;
    } json[] = {
        {"config.json", "{", "config.json"},
        {"config.json", "[]", "config.json"},
        {"config.json", "{\"model_type\": \"bert\"}", "bert"},
        {"config.json", "{\"model_type\": \"vilt\", \"hidden_size\": -64}", "hidden_size"},
        {"config.json", "{\"model_type\": \"vilt\", \"hidden_size\": \"64\"}", "hidden_size"},
        {"config.json", "{\"model_type\": \"vilt\", \"id2label\": {\"0\": \"a\", \"5\": \"b\"}}", "id2label"},
        {"config.json",
         "{\"model_type\": \"vilt\", \"id2label\": {\"0\": \"a\"}, \"num_attention_heads\": 7}",
         "num_attention_heads"},
        {"preprocessor_config.json", "{}", "image_mean"},
        {"preprocessor_config.json", "{\"image_mean\": [1, 2], \"image_std\": 3}", "image_mean"},
        {"preprocessor_config.json", "nonsense", "preprocessor_config.json"},
        {"vocab.txt", "", "vocab.txt"},
    };
    for (int i = 0; i < COUNT_OF(json); i++) {
        dir = model_folder(NULL, 0);
        put_text(in(dir, json[i].name), json[i].text);
        char line[1000];
        snprintf(line, sizeof line, TINY "train.resume=false model.vqa=%s data.dir=%s run.out=%s/verbs-out",
                 dir, tiny_scenes(), test_dir());
        expect(FAIL_MODEL, json[i].says, line);
    }
}

/* ---- programs ------------------------------------------------------------------------------------- */

/* A bad program is told with file, line and remedy; the others of the file run. The oracle needs no model. */
TEST(verbs_programs) {
    if (!vpdistill()) return;
    char image[700], line[1500];
    strcpy(image, in(test_dir(), "verbs.jpg"));
    const char *scenes = tiny_scenes();
    FILE *f = fopen(in(scenes, "train_steps.jsonl"), "r");
    char row[4096], name[200];
    CHECK(f && fgets(row, sizeof row, f), "no steps");
    fclose(f);
    image_of(name, row);
    copy(image, in(scenes, name));
    static const char programs[] =
        "# first\nANSWER0=EVAL(expr=\"1 + 2\")\nFINAL_RESULT=RESULT(var=ANSWER0)\n\n"
        "# second\nANSWER0=EVLA(expr=\"1\")\nFINAL_RESULT=RESULT(var=ANSWER0)\n\n"
        "ANSWER0=EVAL(expr=\"__import__('os').system('false')\")\nFINAL_RESULT=RESULT(var=ANSWER0)\n\n"
        "FINAL_RESULT=RESULT(var=NOWHERE)\n\n"
        "ANSWER0=EVAL(expr=\"4 * 5\")\nFINAL_RESULT=RESULT(var=ANSWER0)\n";
    put_text(in(test_dir(), "programs.txt"), programs);
    snprintf(line, sizeof line, "run --image %s --program %s/programs.txt", image, test_dir());
    expect(FAIL_DATA, "programs.txt:6", line);
    EXPECT(strstr(c.text, "3") && strstr(c.text, "20"), "the good programs did not run: %s", c.text);
    EXPECT(strstr(c.text, "programs.txt:9") && strstr(c.text, "programs.txt:12"), "%s", c.text);
    put_text(in(test_dir(), "programs.txt"),
             "ANSWER0=EVAL(expr=\"1 + 2\")\nFINAL_RESULT=RESULT(var=ANSWER0)\n");
    expect(OK_STATUS, "3", line);
    put_text(in(test_dir(), "programs.txt"), "\n\n# nothing\n");
    expect(FAIL_DATA, "no program", line);
    put_text(in(test_dir(), "programs.txt"),
             "ANSWER0=VQA(image=IMAGE,question='Is it?')\nFINAL_RESULT=RESULT(var=ANSWER0)\n");
    expect(FAIL_CONFIG, "model.vqa", line);
    put_text(image, "no image");
    expect(FAIL_DATA, "not a JPEG", line);
    snprintf(line, sizeof line, "run --image %s --program %s/none.txt", image, test_dir());
    expect(FAIL_DATA, "none.txt", line);
}

/* ---- the machine ---------------------------------------------------------------------------------- */

#ifndef __SANITIZE_ADDRESS__
static void little_memory(void) { setrlimit(RLIMIT_AS, &(struct rlimit){(rlim_t)1 << 30, (rlim_t)1 << 30}); }
#endif

static void little_disk(void) {
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){300000, 300000});
}

static char full[400];
static void full_disk(void) {
    if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
        mount("tmpfs", full, "tmpfs", 0, "size=400k"))
        _exit(122);
}

TEST(verbs_memory) {
    if (!vpdistill()) return;
#ifdef __SANITIZE_ADDRESS__
    test_skip("the sanitizer needs more address space than the limit");
#else
    char line[1000];
    snprintf(line, sizeof line, TINY "model.vqa=configs/models/tiny-vilt data.dir=%s run.out=%s/verbs-out",
             tiny_scenes(), test_dir());
    command_start(&c, NULL, little_memory, line);
    EXPECT(command_wait(&c) == FAIL_MEMORY && strstr(c.text, "bytes"), "status %d: %s", c.status, c.text);
#endif
}

TEST(verbs_disk) {
    if (!vpdistill()) return;
    char line[1500];
    Error e = {0};
    static const struct { const char *out, *says; } rows[] = {
        {"/dev/full", "/dev/full"},
        {"/dev/full/x", "/dev/full"},
        {"/proc/vpdistill", "/proc/vpdistill"},
    };
    for (int i = 0; i < COUNT_OF(rows); i++) {
        snprintf(line, sizeof line, TINY "model.vqa=configs/models/tiny-vilt data.dir=%s run.out=%s",
                 tiny_scenes(), rows[i].out);
        expect(FAIL_DISK, rows[i].says, line);
    }
    snprintf(line, sizeof line, "scenes scenes.dir=/dev/full/x scenes.train=1 scenes.val=0 scenes.test=0");
    expect(FAIL_DISK, "/dev/full", line);
    /* A disk that is full in the middle of a checkpoint: a file-size limit stands for it, and a small tmpfs where we may mount one. */
    snprintf(full, sizeof full, "%s/verbs-full", test_dir());
    CHECK(make_dirs(full, &e), "%s", e.text);
    for (int k = 0; k < 2; k++) {
        snprintf(line, sizeof line, TINY "model.vqa=configs/models/tiny-vilt data.dir=%s run.out=%s/run%d",
                 tiny_scenes(), full, k);
        command_start(&c, NULL, k ? full_disk : little_disk, line);
        if (command_wait(&c) == 122) continue; /* not allowed to mount */
        EXPECT(c.status == FAIL_DISK && strstr(c.text, "checkpoint") &&
                   strstr(c.text, k ? "No space left" : "too large"),
               "status %d: %s", c.status, c.text);
    }
}

/* A weight that is not a number: the loss is none, the run stops in that step and nothing is saved. */
TEST(verbs_not_a_number) {
    if (!vpdistill()) return;
    char line[1000], dir[300], *data;
    size_t n;
    Error e = {0};
    snprintf(line, sizeof line,
             TINY "model.vqa=configs/models/tiny-vilt data.dir=%s run.out=%s/nan train.resume=false",
             tiny_scenes(), test_dir());
    expect(OK_STATUS, NULL, line);
    snprintf(dir, sizeof dir, "%s/nan/model", test_dir());
    CHECK(file_read(in(dir, "model.safetensors"), &data, &n, 64 << 20, &e), "%s", e.text);
    memcpy(data + n - 4, &(float){NAN}, 4); /* one value of the last tensor of the file */
    put(in(dir, "model.safetensors"), data, n);
    free(data);
    snprintf(line, sizeof line,
             "train data.kind=steps train.batch=8 train.steps=3 model.vqa=%s data.dir=%s run.out=%s/nan2",
             dir, tiny_scenes(), test_dir());
    expect(FAIL_NUMERIC, "step 0", line);
    EXPECT(strstr(c.text, "the parameter vilt."), "it does not name the tensor: %s", c.text);
    EXPECT(access(in(test_dir(), "nan2/model"), F_OK), "a model was saved all the same");
}
