/* test_config.c -- every complaint with its line, values and bounds, print and read back, hostile YAML. */
#include "engine/config.h"
#include "tests/test.h"

#include <unistd.h>

typedef struct Row { const char *yaml, *says; /* NULL: good */ } Row;

static const Row rows[] = {
    {"", NULL},
    {"# nothing\n", NULL},
    {"run:\n  seed: 5\n", NULL},
    {"---\nrun:\n  seed: 5\n...\n", NULL},
    {"run: {seed: 5, out: 'a b'}\ntrain: {resume: no}\n", NULL},
    {"train:\n  schedule: \"cosine\"\n  lr: 1e-4 # small\n", NULL},
    {"run:\r\n  seed: 5\r\n", NULL},
    {"run:\n  seed: 5\n\n  outt: x\n", "c.yaml:4: unknown option \"outt\" (did you mean out?)"},
    {"train:\n  lr: 1\n  weigth_decay: 1\n",
     "c.yaml:3: unknown option \"weigth_decay\" (did you mean weight_decay?)"},
    {"run:\n  seed: 5\n\ntrian:\n  lr: 50\n", "c.yaml:5: unknown section \"trian\" (did you mean train?)"},
    {"\nlr: 3\n", "c.yaml:2: unknown section \"lr\" (it belongs into section train)"},
    {"run:\n  layer_decay: 0.9\n",
     "c.yaml:2: unknown option \"layer_decay\" (it belongs into section train)"},
    {"model:\n  quaternion: 3\n", "c.yaml:2: unknown option \"quaternion\"; there are vqa, loc"},
    {"run:\n  seed: 5\ntrain:\n  lr: 50\n", "c.yaml:4: train.lr: 50 is not within 0 .. 10"},
    {"run:\n  seed: -1\n", "c.yaml:2: run.seed: -1 is not within 0 .. 2147483647"},
    {"run:\n  seed: 99999999999999999999\n", "run.seed: 99999999999999999999 is not within"},
    {"run:\n  seed: 1.5\n", "c.yaml:2: run.seed: \"1.5\" is not a whole number"},
    {"run:\n  seed:\n", "run.seed: \"\" is not a whole number"},
    {"train:\n  lr: fast\n", "c.yaml:2: train.lr: \"fast\" is not a number"},
    {"train:\n  lr: nan\n", "train.lr: \"nan\" is not a number"},
    {"train:\n  lr: inf\n", "train.lr: \"inf\" is not a number"},
    {"train:\n  lr: 0x1\n", "train.lr: \"0x1\" is not a number"},
    {"train:\n  lr: 1e999\n", "train.lr: 1e999 is not within"},
    {"train:\n  resume: maybe\n", "c.yaml:2: train.resume: \"maybe\" is neither true nor false"},
    {"train:\n  schedule: step\n", "c.yaml:2: train.schedule: \"step\" is not one of linear|cosine|constant"},
    {"train:\n  schedule: line\n", "is not one of"},
    {"run:\n  seed: [1, 2]\n", "c.yaml:2: run.seed: one value is expected, not a list or a mapping"},
    {"run:\n  seed: {a: 2}\n", "run.seed: one value is expected"},
    {"run: 5\n", "c.yaml:1: section run: \"option: value\" lines are expected"},
    {"- 5\n", "c.yaml:1: \"option: value\" lines are expected"},
    {"hello\n", "c.yaml:1: \"option: value\" lines are expected"},
    {"run:\n  seed: 5\n  out: a\n  seed: 6\n", "c.yaml:2: option \"seed\" is given twice"},
    {"run:\n  seed: 5\ndata:\n  dir: x\nrun:\n  out: a\n", "section \"run\" is given twice"},
    {"run:\n  seed: &a 5\n  threads: *a\n", "c.yaml:3: run.threads: aliases (*name) are not possible"},
    {"run:\n  seed: \"5\n", "not YAML, here or just below"},
    {"run:\n\tseed: 4\n", "not YAML, here or just below"},
    {"run:\n  seed: 4\n---\nrun:\n  out: b\n", "c.yaml:3: a config is one YAML document"},
    {"run:\n  seed: 4\n...\nrun:\n  out: b\n", "c.yaml:3: a config is one YAML document"},
    {"run:\n  out: \xff\n", "c.yaml:2: column 8 is not UTF-8"},
    {"? [a]\n: b\n", "a name must be one plain word"},
};

TEST(config_rows) {
    for (int i = 0; i < COUNT_OF(rows); i++) {
        Config c, before;
        config_defaults(&c);
        before = c;
        Error e = {0};
        bool ok = config_parse(&c, "c.yaml", rows[i].yaml, strlen(rows[i].yaml), &e);
        EXPECT(ok == !rows[i].says, "case %d (%s): %s", i, rows[i].yaml, ok ? "taken" : e.text);
        if (ok || !rows[i].says) continue;
        EXPECT(e.status == FAIL_CONFIG && strstr(e.text, rows[i].says), "case %d, status %d: %s", i, e.status,
               e.text);
        EXPECT(!memcmp(&c, &before, sizeof c), "case %d changed the config", i);
    }
}

TEST(config_values) {
    Config c;
    Error e = {0};
    char path[256];
    snprintf(path, sizeof path, "%s/c.yaml", test_dir());
    const char yaml[] =
        "run: {seed: 7}\ntrain:\n  lr: 2.5e-4\n  schedule: constant\n  resume: off\ndata:\n  dir: a b\n";
    EXPECT(file_write_atomic(path, yaml, sizeof yaml - 1, &e), "%s", e.text);
    const char *const args[] = {"train.batch=3",   "train.lr=0.5",  "data.split=x=y",
                                "eval.blame=true", "train.lr=0.25", "model.vqa="};
    EXPECT(config_load(&c, path, args, COUNT_OF(args), &e), "%s", e.text);
    EXPECT(c.run.seed == 7 && c.train.lr == 0.25 && c.train.schedule == SCHEDULE_CONSTANT && !c.train.resume,
           "values of the file");
    EXPECT(c.train.batch == 3 && c.eval.blame && !strcmp(c.data.dir, "a b") && !strcmp(c.data.split, "x=y"),
           "values of the arguments");
    EXPECT(config_load(&c, NULL, NULL, 0, &e), "%s", e.text);
    EXPECT(c.run.seed == 1 && c.train.steps == 1000 && c.train.beta2 == 0.98 && c.distill.filter_replay &&
           !strcmp(c.run.out, "build/run"), "defaults");
    EXPECT(!config_load(&c, "/no/such.yaml", NULL, 0, &e) && e.status == FAIL_CONFIG &&
               strstr(e.text, "/no/such.yaml"),
           "%s", e.text);
}

static const Row assignments[] = {
    {"train.lr=1", NULL},
    {"train.lr=abc", "argument \"train.lr=abc\": train.lr: \"abc\" is not a number"},
    {"train.lr", "argument \"train.lr\": section.key=value expected"},
    {"lr=1", "section.key=value expected"},
    {"=.", "section.key=value expected"},
    {".=1", "unknown section \"\""},
    {"trian.lr=4", "unknown section \"trian\" (did you mean train?)"},
    {"train.lrr=4", "unknown option \"lrr\" (did you mean lr?)"},
    {"train.=3", "unknown option \"\""},
    {"train.lr=", "\"\" is not a number"},
    {"train.lr= 1", "is not a number"},
    {"run.seed=1 ", "is not a whole number"},
    {"run.out=\xc3(", "byte 0 is not UTF-8"},
};

TEST(config_assignments) {
    for (int i = 0; i < COUNT_OF(assignments); i++) {
        Config c;
        Error e = {0};
        config_defaults(&c);
        bool ok = config_set(&c, assignments[i].yaml, &e);
        EXPECT(ok == !assignments[i].says, "%s: %s", assignments[i].yaml, ok ? "taken" : e.text);
        EXPECT(ok || (e.status == FAIL_CONFIG && strstr(e.text, assignments[i].says)), "%s: %s",
               assignments[i].yaml, e.text);
    }
    Config c;
    Error e = {0};
    config_defaults(&c);
    char lengthy[CONFIG_TEXT + 20] = "run.out=";
    memset(lengthy + 8, 'x', CONFIG_TEXT - 1);
    EXPECT(config_set(&c, lengthy, &e) && strlen(c.run.out) == CONFIG_TEXT - 1, "%s", e.text);
    memset(lengthy + 8, 'x', CONFIG_TEXT);
    EXPECT(!config_set(&c, lengthy, &e) && strstr(e.text, "at most 511"), "%s", e.text);
}

static void check_round_trip(const Config *c) {
    char *text = NULL;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    config_print(f, c);
    fclose(f);
    Config back;
    Error e = {0};
    config_defaults(&back);
    bool ok = config_parse(&back, "printed", text, size, &e);
    EXPECT(ok, "%s", e.text);
    EXPECT(!ok || !memcmp(&back, c, sizeof back), "another config came back from %s", text);
    free(text);
}

TEST(config_prints_what_reads_back) {
    Config c;
    Error e = {0};
    config_defaults(&c);
    check_round_trip(&c);
    static const char *const texts[] = {"",
                                        " ",
                                        "a: b # c",
                                        "\"quoted\" \\ back",
                                        "line\nfeed\ttab\r\x01\x7f",
                                        "- x",
                                        "true",
                                        "*a",
                                        "caf\xc3\xa9 \xf0\x9f\x98\x80",
                                        "\xc2\x85\xc2\xa0\xe2\x80\xa8\xe2\x80\xa9\xef\xbb\xbf\xc2\x9f",
                                        "'",
                                        "---",
                                        "~",
                                        "\xef\xbf\xbe\xf4\x8f\xbf\xbf"};
    for (int i = 0; i < COUNT_OF(texts); i++) {
        char arg[128];
        snprintf(arg, sizeof arg, "run.out=%s", texts[i]);
        EXPECT(config_set(&c, arg, &e), "%s", e.text);
        check_round_trip(&c);
    }
    static const double numbers[] = {0,     1e-30, 0.1, 1.0 / 3, 0.30000000000000004, 1e-4, 9.999999999999998,
                                     5e-324};
    for (int i = 0; i < COUNT_OF(numbers); i++) {
        c.train.lr = numbers[i];
        c.train.schedule = i % 3;
        c.run.seed = 2147483647 - i;
        c.train.resume = i & 1;
        check_round_trip(&c);
    }
}

/* Alias bombs, deep nesting, long lines, huge files: a sentence, and soon. */
TEST(config_hostile) {
    size_t n = 1 << 20;
    char *text = xcalloc(n + 2, 1);
    Config c;
    Error e = {0};
    config_defaults(&c);
    static const char *const fills[] = {"[",  "{",   "- ",     "a: ", "? ", "&a ", "!", "%",
                                        "\"", "|\n", "run: {", "a",   ": ", "\n",  " ", "#"};
    for (int i = 0; i < COUNT_OF(fills); i++) {
        size_t len = strlen(fills[i]);
        for (size_t at = 0; at < n; at++) text[at] = fills[i][at % len];
        double start = now_s();
        bool ok = config_parse(&c, "c.yaml", text, n, &e);
        EXPECT(ok || (e.status == FAIL_CONFIG && *e.text), "%s: no sentence", fills[i]);
        EXPECT(now_s() - start < 5, "1 MB of \"%s\" took %.1f s", fills[i], now_s() - start);
    }
    EXPECT(!config_parse(&c, "c.yaml", text, n + 1, &e) && strstr(e.text, "at most 1048576"), "%s", e.text);
    const char bomb[] = "run: &a {out: x}\ndata: &b {dir: *a}\ntrain: *b\n";
    EXPECT(!config_parse(&c, "c.yaml", bomb, sizeof bomb - 1, &e), "an alias was taken");
    free(text);
}

TEST(config_help_names_everything) {
    char *text = NULL;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    EXPECT(config_help(f, NULL) && config_help(f, "train") && !config_help(f, "nobody"), "sections");
    fclose(f);
    EXPECT(strstr(text, "train.lr=0.001") && strstr(text, "(0 .. 10)") &&
               strstr(text, "(linear|cosine|constant)") && strstr(text, "run.out=\"build/run\""),
           "%s", text);
    free(text);
}
