/* test_eval.c -- accuracy, its policy for what goes wrong, the oracle, blame. */
#include "engine/oracle.h"
#include "engine/train.h"
#include "modules/answer.h"

#include <math.h>
#include <unistd.h>

#include "tests/engine/scene_jobs.h"

/* ---- the oracle on a scene made by hand -------------------------------------------------------------- */

static const char *attr_red[] = {"red", "striped", "small"}, *attr_blue[] = {"dark blue", "solid", "large"},
                  *attr_green[] = {"green"};
static GraphObject objects[] = {
    {"0", "ball", attr_red, NULL, 3, 0, {10, 10, 30, 30}},
    {"1", "ball", attr_blue, NULL, 3, 0, {100, 20, 160, 80}},
    {"2", "box", attr_green, NULL, 1, 0, {60, 40, 80, 60}},
    {"3", "fish", NULL, NULL, 0, 0, {20, 100, 60, 120}},
};
static const SceneGraph scene = {192, 144, 4, objects};
static const Rect everything = {0, 0, 192, 144};

TEST(oracle_vqa) {
    static const struct { const char *question; Rect r; const char *want; OracleVerdict verdict;
    } cases[] = {
        {"What color is the red ball?", {0, 0, 192, 144}, "red", ORACLE_KNOWS},
        {"What color is the ball?",
         {0, 0, 192, 144},
         "dark blue",
         ORACLE_KNOWS}, /* the one that shows most */
        {"What color is the ball?", {0, 0, 60, 60}, "red", ORACLE_KNOWS},
        {"What color is the dark blue ball?", {0, 0, 192, 144}, "dark blue", ORACLE_KNOWS},
        {"What color is the dark blue solid large ball?", {0, 0, 192, 144}, "dark blue", ORACLE_KNOWS},
        {"What color is the blue ball?",
         {0, 0, 192, 144},
         NULL,
         ORACLE_ABSENT}, /* dark blue is another color */
        {"What color is the ball?", {0, 90, 192, 144}, NULL, ORACLE_ABSENT},
        {"What color is the fish?", {0, 0, 192, 144}, NULL, ORACLE_UNREAD}, /* the graph does not say */
        {"What pattern is on the ball?", {0, 0, 60, 60}, "striped", ORACLE_KNOWS},
        {"What size is the striped ball?", {0, 0, 192, 144}, "small", ORACLE_KNOWS},
        {"What is this?", {0, 0, 192, 144}, "ball", ORACLE_KNOWS},
        {"What is this?", {10, 90, 70, 130}, "fish", ORACLE_KNOWS},
        {"What is this?", {170, 100, 190, 140}, NULL, ORACLE_ABSENT},
        {"What is to the right of the box?", {0, 0, 192, 144}, "ball", ORACLE_KNOWS},
        {"What is to the left of the box?", {0, 0, 192, 144}, NULL, ORACLE_ABSENT}, /* two are */
        {"What is below the box?", {0, 0, 192, 144}, "fish", ORACLE_KNOWS},
        {"What is above the fish?", {90, 0, 192, 144}, "ball", ORACLE_KNOWS}, /* one of three shows */
        {"Is there a box?", {0, 0, 192, 144}, "yes", ORACLE_KNOWS},
        {"Is there a box?", {0, 0, 71, 144}, "yes", ORACLE_KNOWS}, /* a little over half of it */
        {"Is there a box?", {0, 0, 69, 144}, "no", ORACLE_KNOWS},
        {"Is there an arrow in the image?", {0, 0, 192, 144}, "no", ORACLE_KNOWS},
        {"Do you see a red ball?", {0, 0, 192, 144}, "yes", ORACLE_KNOWS},
        {"Is there a green ball?", {0, 0, 192, 144}, "no", ORACLE_KNOWS},
        {"Is there a red striped ball?", {0, 0, 192, 144}, "yes", ORACLE_KNOWS},
        {"Is there a redstriped ball?", {0, 0, 192, 144}, "no", ORACLE_KNOWS},
        {"Is there a football?", {0, 0, 192, 144}, "no", ORACLE_KNOWS},
        {"How many balls are there?", {0, 0, 192, 144}, "2", ORACLE_KNOWS},
        {"How many boxes are in the image?", {0, 0, 192, 144}, "1", ORACLE_KNOWS},
        {"How many fish are there?", {0, 0, 192, 144}, "1", ORACLE_KNOWS},
        {"How many red balls are there?", {0, 0, 192, 144}, "1", ORACLE_KNOWS},
        {"How many arrows are there?", {0, 0, 192, 144}, "0", ORACLE_KNOWS},
        {"Why is the ball red?", {0, 0, 192, 144}, NULL, ORACLE_UNREAD},
        {"What color is the ", {0, 0, 192, 144}, NULL, ORACLE_UNREAD},
        {"What color is the ?", {0, 0, 192, 144}, NULL, ORACLE_UNREAD},
        {"What is this?What is this?", {0, 0, 192, 144}, NULL, ORACLE_UNREAD},
        {"?", {0, 0, 192, 144}, NULL, ORACLE_UNREAD},
        {"", {0, 0, 192, 144}, NULL, ORACLE_UNREAD},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        const char *got;
        OracleForm form;
        OracleVerdict v = oracle_vqa(&scene, cases[i].r, cases[i].question, &got, &form);
        const char *want = cases[i].want ? cases[i].want : "-";
        EXPECT(v == cases[i].verdict && !strcmp(v == ORACLE_KNOWS ? got : "-", want),
               "\"%s\": %s (%d), want %s (%d)", cases[i].question, got ? got : "-", (int)v, want,
               (int)cases[i].verdict);
    }
}

TEST(oracle_loc) {
    Arena a;
    arena_open(&a, "test", NULL, (size_t)16 << 20);
    const Boxes *b = oracle_loc(&scene, everything, "ball", false, &a);
    EXPECT(b->n == 2 && b->box[0].rect.x0 == 100 && b->box[1].rect.x0 == 10,
           "%d balls, the first at %d: not the larger one", b->n, b->box[0].rect.x0);
    Rect part = {110, 30, 192, 144};
    b = oracle_loc(&scene, part, "dark blue ball", false, &a);
    const Rect want = {0, 0, 50, 50};
    EXPECT(b->n == 1 && !memcmp(&b->box[0].rect, &want, sizeof want), "a cut ball: %d boxes", b->n);
    b = oracle_loc(&scene, (Rect){0, 0, 160, 144}, "dark blue ball", false,
                   &a); /* its end is the last pixel, as LOC writes it */
    EXPECT(b->n == 1 && b->box[0].rect.x1 == 159, "ends at %d", b->box[0].rect.x1);
    b = oracle_loc(&scene, (Rect){0, 0, 160, 144}, "dark blue ball", true, &a);
    EXPECT(b->n == 1 && b->box[0].rect.x1 == 160, "strict: ends at %d", b->box[0].rect.x1);
    EXPECT(oracle_loc(&scene, (Rect){140, 0, 192, 144}, "ball", false, &a)->n == 0,
           "a third of the ball is no ball");
    EXPECT(oracle_loc(&scene, everything, "", false, &a)->n == 0 &&
               oracle_loc(&scene, everything, " ", false, &a)->n == 0,
           "an empty phrase found something");
    EXPECT(oracle_loc(&(SceneGraph){192, 144, 0, NULL}, everything, "ball", false, &a)->n == 0,
           "an empty scene");
    arena_close(&a);
}

/* ---- steps against the truth ------------------------------------------------------------------------- */

TEST(step_score) {
    Arena a;
    arena_open(&a, "test", NULL, (size_t)16 << 20);
    SceneGraph graph = scene;
    SceneGraphs graphs = {.graph = &graph, .n = 1};
    Program prog = {.strict = false};
    Job job = {.prog = &prog};
    Boxes *two = boxes_new(&a, 3, everything), *none = boxes_new(&a, 0, everything);
    two->box[0] = (Box){{102, 22, 160, 80}, 0.9f, 0}; /* on the large ball */
    two->box[1] = (Box){{104, 24, 160, 80}, 0.8f, 1}; /* again: it is taken */
    two->box[2] = (Box){{150, 100, 180, 130}, 0.7f, 2};
    Question q[] = {
        {.ask = {.rect = everything, .query = "What color is the red ball?"},
         .answer.value = value_str("red", 3)},
        {.ask = {.rect = everything, .query = "What color is the ball?"},
         .answer.value = value_str("dark", 4)},
        {.ask = {.rect = everything, .query = "What color is the arrow?"},
         .answer.value = value_str("red", 3)},
        {.ask = {.rect = everything, .query = "Who?"}, .answer.value = value_str("me", 2)},
        {.ask = {.rect = everything, .query = "ball"}, .answer.value = value_boxes(two)},
        {.ask = {.rect = everything, .query = "arrow"}, .answer.value = value_boxes(none)},
        {.ask = {.rect = everything, .query = "ball"}, .answer.value = value_boxes(none)},
    };
    StepRecord rec[COUNT_OF(q) + 1];
    for (int i = 0; i < COUNT_OF(q); i++) rec[i] = (StepRecord){0, 0, i};
    rec[COUNT_OF(q)] = (StepRecord){0, 1, 0}; /* a step that shares its question counts, too */
    Sched s = {.question = q, .record = rec, .nquestions = COUNT_OF(q), .nrecords = COUNT_OF(rec)};
    StepScore score = {0};
    step_score_add(&score, &graphs, &(EvalBatch){.sched = &s, .job = &job, .njobs = 1}, &a);
    EXPECT(score.vqa_n == 3 && score.vqa_right == 2 && score.vqa[FORM_COLOR].n == 3, "%d of %d",
           (int)score.vqa_right, (int)score.vqa_n);
    EXPECT(score.vqa_absent == 1 && score.vqa_unread == 1, "absent %d, unread %d", (int)score.vqa_absent,
           (int)score.vqa_unread);
    EXPECT(score.loc_n == 3 && score.boxes == 3 && score.objects == 4 && score.matched == 1,
           "%d steps, %d boxes, %d objects, %d matched", (int)score.loc_n, (int)score.boxes,
           (int)score.objects, (int)score.matched);
    EXPECT_NEAR(score.loc_f1, 2.0 * 1 / 5 + 1 + 0, 1e-12, "summed F1");
    EXPECT(score.loc_first_right == 2 && score.loc_count_right == 1, "first %d, count %d",
           (int)score.loc_first_right, (int)score.loc_count_right);
    arena_close(&a);
}

/* ---- whole evaluations ------------------------------------------------------------------------------- */

typedef struct Bench {
    Config cfg;
    Run run;
    OracleAnswerer vqa, loc;
    Answerer *answerer[2];
} Bench;

static void bench_open(Bench *b, const SceneGraphs *g) {
    config_defaults(&b->cfg);
    b->cfg.run.threads = 1;
    b->cfg.data.workers = 0;
    run_open(&b->run, &b->cfg, NULL);
    oracle_answerer(&b->vqa, "VQA", g, NULL, false);
    oracle_answerer(&b->loc, "LOC", g, NULL, false);
    b->answerer[0] = &b->vqa.base;
    b->answerer[1] = &b->loc.base;
}

/* All right with the truth, in any batch size; the counts by type add up. */
TEST(eval_oracle_is_perfect) {
    SceneJobs j;
    scene_jobs_open(&j, 0);
    Bench b;
    bench_open(&b, &j.graphs);
    Error e = {0};
    EvalResult r[3];
    static const int batch[] = {256, 97, 1};
    for (int k = 0; k < 3; k++) {
        EvalConfig ec = eval_config(&j.data, &b.cfg);
        ec.batch = batch[k];
        ec.limit = k == 2 ? 20 : 0;
        EXPECT(eval_programs(&b.run, b.answerer, 2, &j.data, &ec, &r[k], &e), "%s", e.text);
        EXPECT(r[k].n == (k == 2 ? 20 : j.data.nsamples) && r[k].right == r[k].n && !r[k].failed &&
                   !r[k].skipped,
               "batches of %d: %d of %d right, %d failed", batch[k], (int)r[k].right, (int)r[k].n,
               (int)r[k].failed);
        int64_t n = 0, right = 0;
        for (int t = 0; t < r[k].ntypes; t++) {
            n += r[k].type[t].n;
            right += r[k].type[t].right;
            EXPECT(!t || strcmp(r[k].type[t - 1].type, r[k].type[t].type) < 0, "types are not in order");
        }
        EXPECT(n == r[k].n && right == r[k].right, "types sum to %d of %d", (int)right, (int)n);
    }
    EXPECT(r[0].ntypes == 10 && r[1].ntypes == 10, "%d types", r[0].ntypes);
    EXPECT(r[0].steps == r[1].steps, "%d and %d steps", (int)r[0].steps, (int)r[1].steps);
    run_close(&b.run);
    scene_jobs_close(&j);
}

/* Says "blue" and "one box in the corner" to everything. */
static void fool_answer(Answerer *self, Ctx *c, const Ask *ask, int64_t n, Answer *answer, Arena *a) {
    (void)c;
    for (int64_t i = 0; i < n; i++) {
        answer[i].value = value_str("blue", 4);
        if (strcmp(self->module, "LOC")) continue;
        Boxes *b = boxes_new(a, 1, ask[i].rect);
        b->box[0] = (Box){{0, 0, 9, 9}, 0.9f, 0};
        answer[i].value = value_boxes(b);
    }
}

/* Replacing modules by the truth never hurts here, and both true is all right; LOC alone decides the counting questions. */
TEST(eval_blame) {
    SceneJobs j;
    scene_jobs_open(&j, 0);
    Bench b;
    bench_open(&b, &j.graphs);
    Answerer vqa = {"VQA", 0, fool_answer}, loc = {"LOC", 0, fool_answer};
    Error e = {0};
    Blame blame;
    EvalConfig ec = eval_config(&j.data, &b.cfg);
    EXPECT(eval_blame(&b.run, &vqa, &loc, &j.data, &j.graphs, &ec, &blame, &e), "%s", e.text);
    double acc[BLAME_CASES];
    for (int k = 0; k < BLAME_CASES; k++) acc[k] = eval_accuracy(&blame.result[k]);
    EXPECT(acc[BLAME_BOTH] == 100 && blame.fell_back[BLAME_BOTH] == 0, "both true: %.1f%%", acc[BLAME_BOTH]);
    EXPECT(acc[BLAME_NONE] < acc[BLAME_LOC] && acc[BLAME_LOC] < 100 && acc[BLAME_VQA] < 100, "%.1f %.1f %.1f",
           acc[0], acc[1], acc[2]);
    for (int k = 0; k < BLAME_CASES; k++)
        for (int t = 0; t < blame.result[k].ntypes; t++) {
            const EvalType *type = &blame.result[k].type[t];
            if (!strcmp(type->type, "count") && k == BLAME_LOC)
                EXPECT(type->right == type->n, "count with true LOC");
            if (!strcmp(type->type, "count") && k == BLAME_VQA)
                EXPECT(type->right == blame.result[BLAME_NONE].type[t].right, "count asks no VQA");
        }
    const StepScore *s = &blame.steps;
    EXPECT(s->loc_n > 1000 && s->boxes == s->loc_n && s->matched < s->boxes / 10,
           "%d LOC steps, %d boxes, %d matched", (int)s->loc_n, (int)s->boxes, (int)s->matched);
    EXPECT(s->vqa_n + s->vqa_absent + s->vqa_unread + s->loc_n == blame.result[BLAME_NONE].steps,
           "not every step was scored");

    /* What is printed and written. */
    char text[16384] = "";
    FILE *f = fmemopen(text, sizeof text, "w");
    EvalColumn column[] = {
        {"programs", &blame.result[0]}, {"teacher", NULL}, {"both", &blame.result[BLAME_BOTH]}};
    eval_print(f, column, 3);
    blame_print(f, &blame);
    fclose(f);
    EXPECT(strstr(text, "  relation") && strstr(text, "100.0") && strstr(text, " -") &&
               strstr(text, "F1 at IoU"),
           "the table:\n%s", text);
    json_t *o = eval_json(&blame.result[0]), *bj = blame_json(&blame);
    EXPECT_NEAR(json_real_value(json_object_get(o, "accuracy")), acc[0], 1e-9, "accuracy in JSON");
    EXPECT(json_object_size(json_object_get(o, "types")) == 10, "types in JSON");
    EXPECT_NEAR(json_real_value(json_object_get(json_object_get(bj, "both_true"), "accuracy")), 100, 1e-9,
                "blame in JSON");
    json_decref(o);
    json_decref(bj);
    run_close(&b.run);
    scene_jobs_close(&j);
}

/* ---- what goes wrong --------------------------------------------------------------------------------- */

/* A dataset folder with these questions (GQA's JSON) about the scenes' images; NAME of test_dir. */
static void write_questions(char *dir, size_t size, const char *name, const char *json) {
    char path[500], target[400];
    Error e = {0};
    snprintf(dir, size, "%s/%s", test_dir(), name);
    CHECK(make_dirs(dir, &e), "%s", e.text);
    snprintf(target, sizeof target, "%s/images", scene_folder());
    snprintf(path, sizeof path, "%s/images", dir);
    CHECK(!symlink(target, path), "%s", path);
    snprintf(path, sizeof path, "%s/test_questions.json", dir);
    CHECK(file_write_atomic(path, json, strlen(json), &e), "%s", e.text);
}

static const char awkward[] =
    "{\"good\":{\"question\":\"q\",\"imageId\":\"hard_test_0000000\",\"answer\":\"1\",\"type\":\"a\","
    "\"program\":\"B=LOC(image=IMAGE,object='TOP')\\nA=COUNT(box=B)\\nR=RESULT(var=A)\"},"
    "\"wrong\":{\"question\":\"q\",\"imageId\":\"hard_test_0000000\",\"answer\":\"one\",\"type\":\"a\","
    "\"program\":\"B=LOC(image=IMAGE,object='TOP')\\nA=COUNT(box=B)\\nR=RESULT(var=A)\"},"
    "\"parse\":{\"question\":\"q\",\"imageId\":\"hard_test_0000000\",\"answer\":\"1\",\"type\":\"a\","
    "\"program\":\"B=LOCK(image=IMAGE)\"},"
    "\"none\":{\"question\":\"q\",\"imageId\":\"hard_test_0000000\",\"answer\":\"1\"},"
    "\"runs\":{\"question\":\"q\",\"imageId\":\"hard_test_0000000\",\"answer\":\"1\",\"type\":\"b\","
    "\"program\":\"B=LOC(image=IMAGE,object='TOP')\\nA=COUNT(box=B)\\nC=EVAL(expr='{A} / ({A} - "
    "1)')\\nR=RESULT(var=C)\"},"
    "\"image\":{\"question\":\"q\",\"imageId\":\"hard_test_0000000\",\"answer\":\"1\",\"type\":\"b\","
    "\"program\":\"B=LOC(image=IMAGE,object='TOP')\\nA=CROP(image=IMAGE,box=B)\\nR=RESULT(var=A)\"},"
    "\"lost\":{\"question\":\"q\",\"imageId\":\"nowhere\",\"answer\":\"1\",\"type\":\"b\",\"program\":\"B="
    "LOC(image=IMAGE,object='TOP')\\nA=COUNT(box=B)\\nR=RESULT(var=A)\"},"
    "\"secret\":{\"question\":\"q\",\"imageId\":\"hard_test_0000000\",\"type\":\"b\",\"program\":\"B=LOC("
    "image=IMAGE,object='TOP')\\nA=COUNT(box=B)\\nR=RESULT(var=A)\"}}";

/* The policy of eval.h: what parses badly, fails, or ends in an image is wrong; what has no pixels or no gold answer is left out. */
TEST(eval_policy) {
    char dir[300];
    write_questions(dir, sizeof dir, "awkward", awkward);
    Error e = {0};
    Dataset d;
    CHECK(dataset_open(&d, &(DatasetConfig){.type = "gqa", .dir = dir, .split = "test"}, &e), "%s", e.text);
    Bench b;
    bench_open(&b, NULL);
    EvalConfig ec = eval_config(&d, &b.cfg);
    EvalResult r;
    EXPECT(!eval_programs(&b.run, NULL, 0, &d, &ec, &r, &e) && e.status == FAIL_DATA &&
               strstr(e.text, "1 of 2 images cannot be used (1 unreadable)"),
           "%s", e.text);
    e = (Error){0};
    ec.max_bad_percent = 50;
    EXPECT(eval_programs(&b.run, NULL, 0, &d, &ec, &r, &e), "%s", e.text);
    EXPECT(r.n == 6 && r.right == 1 && r.failed == 4 && r.unparsed == 2,
           "n %d, right %d, failed %d, unparsed %d", (int)r.n, (int)r.right, (int)r.failed, (int)r.unparsed);
    EXPECT(r.skipped == 1 && r.bad_images == 1 && r.no_gold == 1, "skipped %d, bad images %d, no gold %d",
           (int)r.skipped, (int)r.bad_images, (int)r.no_gold);
    EXPECT(strstr(r.first_failure, "question parse: line 1") && strstr(r.first_failure, "LOC"), "\"%s\"",
           r.first_failure);
    EXPECT(r.ntypes == 3 && !strcmp(r.type[0].type, "(none)") && !strcmp(r.type[1].type, "a") &&
               r.type[1].n == 3,
           "%d types, %s", r.ntypes, r.type[0].type);
    run_close(&b.run);
    dataset_close(&d);

    /* None that can be put, though every image may be bad. */
    write_questions(dir, sizeof dir, "nothing",
                    "{\"lost\":{\"question\":\"q\",\"imageId\":\"nowhere\",\"answer\":\"1\",\"program\":\"R="
                    "RESULT(var=IMAGE)\"}}");
    CHECK(dataset_open(&d, &(DatasetConfig){.type = "gqa", .dir = dir, .split = "test"}, &e), "%s", e.text);
    bench_open(&b, NULL);
    ec.max_bad_percent = 100;
    EXPECT(!eval_programs(&b.run, NULL, 0, &d, &ec, &r, &e) && e.status == FAIL_DATA &&
               strstr(e.text, "1 have no usable image, 0 no answer"),
           "%s", e.text);
    e = (Error){0};
    run_close(&b.run);
    dataset_close(&d);

    /* No questions at all. */
    write_questions(dir, sizeof dir, "empty", "{}");
    if (dataset_open(&d, &(DatasetConfig){.type = "gqa", .dir = dir, .split = "test"}, &e)) {
        bench_open(&b, NULL);
        ec = eval_config(&d, &b.cfg);
        EXPECT(!eval_programs(&b.run, NULL, 0, &d, &ec, &r, &e) && e.status == FAIL_DATA &&
                   strstr(e.text, "no questions"),
               "\"%s\"", e.text);
        run_close(&b.run);
        dataset_close(&d);
    }
}

/* More types than the table has rows: the rest is one row, nothing is lost. */
TEST(eval_many_types) {
    enum { TYPES = 100 };
    char dir[300], *json = xcalloc(TYPES, 400), *at = json;
    for (int i = 0; i < TYPES; i++)
        at += sprintf(at,
                      "%s\"q%d\":{\"question\":\"q\",\"imageId\":\"hard_test_0000000\",\"answer\":\"%d\","
                      "\"type\":\"a type with quite a long name, number %d\","
                      "\"program\":\"B=LOC(image=IMAGE,object='TOP')\\nA=COUNT(box=B)\\nR=RESULT(var=A)\"}",
                      i ? "," : "{", i, i & 1, i);
    /* 31 bytes of a name are kept: let them differ there */
    for (char *p = json; (p = strstr(p, "a type with quite a long name, number ")); p++) {
        char *digits = p + strlen("a type with quite a long name, number ");
        p[0] = digits[0];
        if (digits[1] != '"') p[1] = digits[1];
    }
    strcat(at, "}");
    write_questions(dir, sizeof dir, "types", json);
    free(json);
    Error e = {0};
    Dataset d;
    CHECK(dataset_open(&d, &(DatasetConfig){.type = "gqa", .dir = dir, .split = "test"}, &e), "%s", e.text);
    Bench b;
    bench_open(&b, NULL);
    EvalConfig ec = eval_config(&d, &b.cfg);
    EvalResult r;
    EXPECT(eval_programs(&b.run, NULL, 0, &d, &ec, &r, &e), "%s", e.text);
    EXPECT(r.n == TYPES && r.right == TYPES / 2 && r.ntypes == EVAL_TYPES_MAX, "n %d, right %d, %d types",
           (int)r.n, (int)r.right, r.ntypes);
    EXPECT(!strcmp(r.type[0].type, "(other)") && r.type[0].n == TYPES - EVAL_TYPES_MAX + 1, "%s holds %d",
           r.type[0].type, (int)r.type[0].n);
    run_close(&b.run);
    dataset_close(&d);
}

/* Two images, True and False, and consistency: a group is right when all of its pairs are. */
TEST(eval_nlvr) {
    char dir[300], path[400];
    /* The module is a fool who says "blue": "is it blue?" of each statement is true. Groups: 1-?-0 has pairs 0 (right) and 1 (wrong),
     * 1-?-1 has one (right), 12-?-0 one (right): 12-0-0 is not 1-2-0-0. */
    static const char *const lines[][2] = {
        {"t-1-0-0", "True"}, {"t-1-1-0", "False"}, {"t-1-0-1", "True"}, {"t-12-0-0", "True"}};
    char text[4096] = "", *at = text;
    for (int i = 0; i < COUNT_OF(lines); i++)
        at += sprintf(at,
                      "{\"identifier\":\"%s\",\"sentence\":\"s\",\"label\":\"%s\",\"left\":\"hard_test_"
                      "0000000.jpg\",\"right\":\"hard_test_0000001.jpg\","
                      "\"program\":\"A=VQA(image=LEFT,question='x')\\nB=VQA(image=RIGHT,question='x')\\nC="
                      "EVAL(expr='{A} == {B}')\\nR=RESULT(var=C)\"}\n",
                      lines[i][0], lines[i][1]);
    write_questions(dir, sizeof dir, "nlvr", "{}");
    Error e = {0};
    snprintf(path, sizeof path, "%s/test_nlvr.jsonl", dir);
    CHECK(file_write_atomic(path, text, strlen(text), &e), "%s", e.text);
    Dataset d;
    CHECK(dataset_open(&d, &(DatasetConfig){.type = "nlvr2", .dir = dir, .split = "test"}, &e), "%s", e.text);
    Bench b;
    bench_open(&b, NULL);
    Answerer vqa = {"VQA", 0, fool_answer}, *answerer[] = {&vqa};
    EvalConfig ec = eval_config(&d, &b.cfg);
    EvalResult r;
    EXPECT(eval_programs(&b.run, answerer, 1, &d, &ec, &r, &e), "%s", e.text);
    EXPECT(r.n == 4 && r.right == 3 && !r.failed, "%d of %d", (int)r.right, (int)r.n);
    EXPECT(r.groups == 3 && r.groups_right == 2, "%d of %d groups", (int)r.groups_right, (int)r.groups);
    /* End to end: a model of one picture is refused, one of two is asked about each pair. */
    Module *one = module_open("configs/models/tiny-vilt", b.run.dev, F32, MODULE_FROZEN, false, 3, &e);
    Module *two = module_open_end_to_end("tests/golden/tiny-nlvr2", b.run.dev, F32, &e);
    CHECK(one && two, "%s", e.text);
    EXPECT(!eval_end_to_end(&b.run, one, &d, &ec, &r, &e) && strstr(e.text, "2 images"), "\"%s\"", e.text);
    EXPECT(eval_end_to_end(&b.run, two, &d, &ec, &r, &e), "%s", e.text);
    EXPECT(r.n == 4 && two->asks == 4 && two->image_rows == 2 && two->text_rows == 1, "%d statements, %d asks, %d pictures", (int)r.n, (int)two->asks,
           (int)two->image_rows);
    module_close(one);
    module_close(two);
    run_close(&b.run);
    dataset_close(&d);
}

/* A model of two pictures learns whose answer is which, from their statements; the pairs of a statement stay together. */
TEST(eval_trains_on_pairs) {
    char dir[300], path[400], out[400], set[6][500];
    write_questions(dir, sizeof dir, "pairs", "{}");
    snprintf(path, sizeof path, "%s/train_nlvr.jsonl", dir);
    snprintf(out, sizeof out, "%s/pairs-run", test_dir());
    static const char text[] =
        "{\"identifier\":\"t-1-0-0\",\"sentence\":\"red\",\"label\":\"True\",\"left\":\"hard_test_0000000.jpg\",\"right\":\"hard_test_0000001.jpg\"}\n"
        "{\"identifier\":\"t-1-1-0\",\"sentence\":\"red\",\"label\":\"False\",\"left\":\"hard_test_0000001.jpg\",\"right\":\"hard_test_0000000.jpg\"}\n"
        "{\"identifier\":\"t-1-2-0\",\"sentence\":\"red\",\"label\":\"False\",\"left\":\"hard_test_0000000.jpg\",\"right\":\"hard_test_0000002.jpg\"}\n"
        "{\"identifier\":\"t-1-2-1\",\"sentence\":\"blue\",\"label\":\"True\",\"left\":\"hard_test_0000000.jpg\",\"right\":\"hard_test_0000002.jpg\"}\n";
    Error e = {0};
    CHECK(file_write_atomic(path, text, strlen(text), &e), "%s", e.text);
    snprintf(set[0], sizeof set[0], "data.dir=%s", dir);
    snprintf(set[1], sizeof set[1], "run.out=%s", out);
    const char *list[] = {set[0], set[1], "data.kind=nlvr2", "data.split=train", "model.vqa=tests/golden/tiny-nlvr2", "train.module=vqa",
                          "train.steps=60", "train.batch=8", "train.lr=0.003", "train.eval_every=0", "run.log_every=1000000", "run.threads=1"};
    Config cfg;
    CHECK(config_load(&cfg, NULL, list, COUNT_OF(list), &e), "%s", e.text);
    EXPECT(train_run(&cfg, &e), "%s", e.text);
    Run r;
    TrainSet t;
    double score = 0;
    snprintf(path, sizeof path, "%s/model", out);
    run_open(&r, &cfg, NULL);
    Module *m = module_open_end_to_end(path, r.dev, F32, &e);
    CHECK(m, "%s", e.text);
    CHECK(trainset_open(&t, &(DatasetConfig){.type = "nlvr2", .dir = dir, .split = "train"}, m, &e), "%s", e.text);
    EXPECT(t.n == 4 && t.by_image.nsamples == 3 && t.by_image.sample[0].nimages == 2, "%d statements, %d pairs", (int)t.n, (int)t.by_image.nsamples);
    EXPECT(train_eval(&r, m, &t, 0, &score, &e), "%s", e.text);
    EXPECT(score == 100, "accuracy %.1f%% on four statements of which two pairs differ in their order alone", score);
    trainset_close(&t);
    module_close(m);
    run_close(&r);
}

/* A fresh network asked end to end: its argmax is counted, and the same in any batch size. */
TEST(eval_end_to_end) {
    SceneJobs j;
    scene_jobs_open(&j, 0);
    Bench b;
    bench_open(&b, &j.graphs);
    Error e = {0};
    Module *m = module_open("configs/models/tiny-vilt", b.run.dev, F32, MODULE_FROZEN, false, 3, &e);
    CHECK(m, "%s", e.text);
    EvalResult r[2];
    for (int k = 0; k < 2; k++) {
        EvalConfig ec = eval_config(&j.data, &b.cfg);
        ec.batch = k ? 7 : 64;
        ec.limit = 100;
        EXPECT(eval_end_to_end(&b.run, m, &j.data, &ec, &r[k], &e), "%s", e.text);
        EXPECT(r[k].n == 100 && !r[k].failed, "%d questions", (int)r[k].n);
    }
    EXPECT(r[0].right == r[1].right && m->asks == 200, "%d and %d right of %d asks", (int)r[0].right,
           (int)r[1].right, (int)m->asks);
    module_close(m);
    run_close(&b.run);
    scene_jobs_close(&j);
}
