/* test_dataset.c -- the readers of GQA, NLVR2 and step files: what they keep, and what they say of bad input. */
#include "data/dataset.h"
#include "data/steps.h"
#include "tests/test.h"

static const char *put(const char *name, const char *text) {
    static char path[8][512];
    static int turn;
    char *p = path[turn++ % 8];
    snprintf(p, sizeof path[0], "%s/%s", test_dir(), name);
    FILE *f = fopen(p, "wb"); /* not file_write_atomic: hundreds of fsyncs take seconds */
    if (!f || fputs(text, f) < 0 || fclose(f)) die(FAIL_DISK, "%s: cannot write", p);
    return p;
}

/* Opens `text` as a file of this type; the sentence goes to *e. */
static bool open_text(Dataset *d, const char *type, const char *text, int64_t limit, int64_t max_bad, Error *e) {
    const DatasetConfig c = {.type = type, .dir = test_dir(), .split = "t", .file = put("d.json", text), .limit = limit, .max_bad = max_bad};
    *e = (Error){0};
    return dataset_open(d, &c, e);
}

static bool same(const char *a, const char *b) { return a == b || (a && b && !strcmp(a, b)); }

static const char gqa[] =
    "{\n\"007\": {\"question\": \"Is it \\u00e9t\\u00e9, {\\\"now\\\"}?\", \"imageId\": \"n12\", \"answer\": \"yes\",\n"
    "  \"types\": {\"structural\": \"verify\", \"semantic\": \"attr\", \"detailed\": \"existC\"}, \"semantic\": [{\"x\": [1, {}]}]},\n"
    "\"8\" : {\"question\": \"What?\", \"imageId\": \"5\", \"answer\": \"red\", \"type\": \"query\", \"program\": \"A=VQA()\"} ,\n"
    "\"9\":{\"imageId\":\"n12\",\"question\":\"What?\",\"types\":{\"detailed\":\"chooseAttr\"},\"groups\":{\"global\":null}}}\n";

TEST(dataset_gqa_fields) {
    Dataset d;
    Error e;
    if (!open_text(&d, "gqa", gqa, 0, 0, &e)) {
        EXPECT(false, "%s", e.text);
        return;
    }
    EXPECT(d.nsamples == 3 && d.images.n == 2, "%" PRId64 " samples, %d images", d.nsamples, d.images.n);
    const Sample *s = d.sample;
    EXPECT(same(s[0].id, "007") && same(s[0].question, "Is it été, {\"now\"}?"), "%s", s[0].question);
    EXPECT(same(s[0].type, "verify") && same(s[1].type, "query") && same(s[2].type, "chooseAttr"), "types");
    EXPECT(s[2].answer == NULL && s[0].program == NULL && same(s[1].program, "A=VQA()"), "absent members are NULL");
    EXPECT(s[0].image[0] == s[2].image[0] && s[0].image[1] == -1 && s[1].image[0] == 1, "images are shared");
    EXPECT(same(d.images.path[0], "images/n12.jpg"), "%s", d.images.path[0]);
    EXPECT(s[1].question == s[2].question, "equal strings are one");
    EXPECT(dataset_find(&d, "9") == 2 && dataset_find(&d, "7") == -1, "find");
    dataset_close(&d);

    EXPECT(open_text(&d, "gqa", gqa, 2, 0, &e) && d.nsamples == 2, "limit: %s", e.text);
    dataset_close(&d);
}

TEST(dataset_image_groups) {
    Dataset d;
    Error e;
    CHECK(open_text(&d, "gqa", gqa, 0, 0, &e), "%s", e.text);
    ImageGroups g;
    image_groups_open(&g, &d);
    EXPECT(g.group.nsamples == 2 && g.first[0] == 0 && g.first[1] == 2 && g.first[2] == 3, "%" PRId64 " groups", g.group.nsamples);
    EXPECT(g.item[0] == 0 && g.item[1] == 2 && g.item[2] == 1, "items in the order of the file");
    int image[2];
    EXPECT(dataset_item_images(&g.group, 1, image) == 1 && image[0] == 1, "image of the second group");
    int64_t out[2];
    EXPECT(image_groups_choose(&g, 0, 0, 1, out) == 2 && out[0] == 0 && out[1] == 2, "all");
    int first = 0;
    for (uint64_t seed = 0; seed < 4000; seed++) {
        EXPECT(image_groups_choose(&g, 0, 1, seed, out) == 1 && (out[0] == 0 || out[0] == 2), "one of two");
        first += out[0] == 0;
    }
    EXPECT_NEAR(first, 2000, 4 * 31.6, "either as often"); /* 4 standard deviations of a fair coin, sqrt(4000 / 4) */
    image_groups_close(&g);
    dataset_close(&d);
}

TEST(dataset_gqa_truncated) { /* every prefix is refused, with file and line, and costs nothing */
    char text[sizeof gqa];
    for (size_t n = 0; n + 2 < sizeof gqa; n++) {
        Dataset d;
        Error e;
        memcpy(text, gqa, n);
        text[n] = 0;
        EXPECT(!open_text(&d, "gqa", text, 0, 0, &e), "%zu bytes were accepted", n);
        EXPECT(strstr(e.text, "d.json:") && e.status == FAIL_DATA, "%zu bytes: %s", n, e.text);
        EXPECT(d.blocks == NULL, "%zu bytes: not closed", n);
    }
}

TEST(dataset_layouts) {
    Dataset d;
    Error e = {0};
    char sub[512];
    snprintf(sub, sizeof sub, "%s/questions", test_dir());
    make_dirs(sub, &e);
    DatasetConfig c = {.type = "gqa", .dir = test_dir(), .split = "val"};
    EXPECT(!dataset_open(&d, &c, &e) && strstr(e.text, "val_balanced_questions.json"), "%s", e.text);
    put("questions/val_balanced_questions.json", gqa);
    EXPECT(dataset_open(&d, &c, &e) && d.nsamples == 3, "%s", e.text);
    dataset_close(&d);

    c.programs = put("p.json", "{\"8\": \"B=VQA()\", \"9\": \"C=COUNT()\", \"elsewhere\": \"\"}");
    EXPECT(dataset_open(&d, &c, &e) && same(d.sample[1].program, "B=VQA()") && same(d.sample[2].program, "C=COUNT()"), "%s", e.text);
    dataset_close(&d);
    c.programs = put("p.json", "{\"1\": \"B=VQA()\"}");
    EXPECT(!dataset_open(&d, &c, &e) && strstr(e.text, "none of its ids"), "%s", e.text);
    c.programs = put("p.json", "{\"8\":\n 5}");
    EXPECT(!dataset_open(&d, &c, &e) && strstr(e.text, "p.json:2: the program of \"8\""), "%s", e.text);
    c.programs = NULL;
    c.type = "gqqa";
    EXPECT(!dataset_open(&d, &c, &e) && e.status == FAIL_CONFIG && strstr(e.text, "did you mean gqa"), "%s", e.text);
}

typedef struct BadCase { const char *type, *text, *says; } BadCase;
static const BadCase bad_cases[] = {
    {"gqa", "", "d.json:1: expected {"},
    {"gqa", "[]", "expected {"},
    {"gqa", "{}", "no usable item"},
    {"gqa", "{} x", "something follows"},
    {"gqa", "{\"a\" 5}", "expected :"},
    {"gqa", "{\"a\":}", "d.json:1:"},
    {"gqa", "{a: 1}", "expected a name in quotes"},
    {"gqa", "{\"a\": {\"question\": \"q\", \"imageId\": \"1\"},}", "expected a name in quotes"},
    {"gqa", "{\"a\": {\"question\": \"q\", \"imageId\": \"1\"} \"b\": {}}", "expected , or }"},
    {"gqa", "{\n\"a\": {\"question\": \"q\",\n \"question\": \"r\"}}", "d.json:3: duplicate object key"},
    {"gqa", "{\n\"a\": 5}", "d.json:2: question a: not an object"},
    {"gqa", "{\"a\": {\"imageId\": \"1\"}}", "\"question\" is missing"},
    {"gqa", "{\"a\": {\"question\": \"q\"}}", "\"imageId\" is missing"},
    {"gqa", "{\"a\": {\"question\": 3, \"imageId\": \"1\"}}", "\"question\" is not a string"},
    {"gqa", "{\"a\": {\"question\": \"q\", \"imageId\": \"../../etc/x\"}}", "not the name of an image"},
    {"gqa", "{\"a\": {\"question\": \"q\", \"imageId\": \"1\"},\n\"a\": {\"question\": \"q\", \"imageId\": \"1\"}}", ":2: the id \"a\" is there twice"},
    {"gqa", "{\"a\": {\"question\": \"\\u0000\", \"imageId\": \"1\"}}", "d.json:1:"},
    {"gqa", "{\"a\": {\"question\": \"\xff\", \"imageId\": \"1\"}}", "unable to decode byte 0xff"},
    {"nlvr2", "{\"identifier\": \"dev-1-0-0\"}", "d.json:1: \"sentence\" is missing"},
    {"nlvr2", "{\"identifier\": \"d\", \"sentence\": \"s\"}", "is not split-set-pair-sentence"},
    {"nlvr2", "{\"identifier\": \"d-1-0-0\", \"sentence\": \"s\", \"label\": \"maybe\"}", "neither \"True\" nor \"False\""},
    {"nlvr2", "{\"identifier\": \"d-1-0-0\", \"sentence\": \"s\", \"left\": \"../x.jpg\"}", "leads out of the dataset's folder"},
    {"nlvr2", "{\"identifier\": \"d-1-0-0\", \"sentence\": \"s\"}\n\n{\"identifier\": \"d-1-0-0\", \"sentence\": \"s\"}", "d.json:3: the id \"d-1-0-0\" is there twice"},
    {"nlvr2", "[]", "d.json:1: not an object"},
    {"steps", "{\"image\": \"i.jpg\", \"module\": \"VQA\"}", "d.json:1: \"query\" is missing"},
    {"steps", "{\"image\": \"i.jpg\", \"module\": \"VQA\", \"query\": \"q\"}", "needs \"answer\" or \"soft\""},
    {"steps", "{\"image\": \"i.jpg\", \"module\": \"vqa\", \"query\": \"q\"}", "neither VQA nor LOC"},
    {"steps", "{\"image\": \"/etc/passwd\", \"module\": \"LOC\", \"query\": \"q\"}", "leads out"},
    {"steps", "{\"image\": \"a/../../b\", \"module\": \"LOC\", \"query\": \"q\"}", "leads out"},
    {"steps", "{\"image\": \"i\", \"module\": \"LOC\", \"query\": \"q\", \"boxes\": 5}", "not a list"},
    {"steps", "{\"image\": \"i\", \"module\": \"LOC\", \"query\": \"q\", \"boxes\": [[1,2,3]]}", "box 0: a box is"},
    {"steps", "{\"image\": \"i\", \"module\": \"LOC\", \"query\": \"q\", \"boxes\": [[1,2,3,1e9]]}", "coordinate 3"},
    {"steps", "{\"image\": \"i\", \"module\": \"LOC\", \"query\": \"q\", \"boxes\": [[1,2,1,4]]}", "box 0 is empty"},
    {"steps", "{\"image\": \"i\", \"module\": \"LOC\", \"query\": \"q\", \"rect\": [5,5,5,5]}", "\"rect\" is empty"},
    {"steps", "{\"image\": \"i\", \"module\": \"LOC\", \"query\": \"q\", \"weight\": -1}", "\"weight\""},
    {"steps", "{\"image\": \"i\", \"module\": \"VQA\", \"query\": \"q\", \"soft\": {\"a\": 1.5}}", "probability of \"a\""},
    {"steps", "{\"image\": \"i\", \"module\": \"VQA\", \"query\": \"q\", \"soft\": [1]}", "\"soft\" is not an object"},
    {"steps", "\n\n{\"image\"", "d.json:3:"},
};

TEST(dataset_bad_input) {
    for (int i = 0; i < COUNT_OF(bad_cases); i++) {
        const BadCase *c = &bad_cases[i];
        Dataset d;
        Error e;
        EXPECT(!open_text(&d, c->type, c->text, 0, 0, &e), "case %d was accepted", i);
        EXPECT(strstr(e.text, c->says) && e.status == FAIL_DATA, "case %d says \"%s\", not \"%s\"", i, e.text, c->says);
    }
}

TEST(dataset_deep_json) { /* brackets to the horizon: refused by jansson's depth limit, without recursion of ours */
    const size_t n = 300000;
    char *text = xcalloc(n + 16, 1);
    strcpy(text, "{\"a\":");
    memset(text + 5, '[', n);
    memset(text + 5 + n / 2, ']', n / 2);
    text[5 + n] = '}';
    Dataset d;
    Error e;
    EXPECT(!open_text(&d, "gqa", text, 0, 0, &e) && strstr(e.text, "depth"), "%s", e.text);
    free(text);
}

TEST(dataset_nlvr2_names) {
    Dataset d;
    Error e;
    if (!open_text(&d, "nlvr2",
                   "{\"identifier\": \"train-10171-0-1\", \"sentence\": \"s\", \"label\": \"False\", \"directory\": 37}\n"
                   "{\"identifier\": \"dev-850-2-0\", \"sentence\": \"s\", \"label\": true, \"type\": \"count\"}\r\n"
                   "{\"identifier\": \"t-0-0-0\", \"sentence\": \"s\", \"left\": \"a.jpg\", \"right\": \"b.jpg\", \"program\": \"P\"}",
                   0, 0, &e)) {
        EXPECT(false, "%s", e.text);
        return;
    }
    static const char *const want[6] = {"images/train/37/train-10171-0-img0.png", "images/train/37/train-10171-0-img1.png",
                                        "images/dev/dev-850-2-img0.png", "images/dev/dev-850-2-img1.png", "images/a.jpg", "images/b.jpg"};
    for (int i = 0; i < 6; i++) {
        const char *got = d.images.path[d.sample[i / 2].image[i % 2]];
        EXPECT(same(got, want[i]), "%s, want %s", got, want[i]);
    }
    EXPECT(same(d.sample[0].answer, "False") && same(d.sample[1].answer, "True") && d.sample[2].answer == NULL, "labels");
    EXPECT(same(d.sample[1].type, "count") && same(d.sample[2].program, "P") && d.sample[0].nimages == 2, "members");
    dataset_close(&d);
}

static const char steps[] =
    "{\"image\": \"images/x.jpg\", \"rect\": [1, 2, 30, 40], \"module\": \"VQA\", \"query\": \"What color?\", \"answer\": \"red\", "
    "\"weight\": 0.5, \"soft\": {\"red\": 0.75, \"pink\": 0.25}, \"program\": \"p\", \"step\": 3, \"kept\": true, \"teacher\": {}}\n"
    "\n"
    "{\"image\": \"images/y.jpg\", \"module\": \"LOC\", \"query\": \"cup\", \"boxes\": [[1, 2, 3, 4], [5.4, 5.5, 9, 9.6]]}\n"
    "{\"kept\": false, \"why\": \"teacher unsure\"}\n"
    "{\"image\": \"images/x.jpg\", \"module\": \"LOC\", \"query\": \"dog\", \"boxes\": []}";

TEST(dataset_steps_fields) {
    Dataset d;
    Error e;
    if (!open_text(&d, "steps", steps, 0, 0, &e)) {
        EXPECT(false, "%s", e.text);
        return;
    }
    const StepSample *s = d.step;
    EXPECT(d.nsteps == 3 && d.images.n == 2 && d.nleft_out == 1 && dataset_items(&d) == 3, "%" PRId64 " steps", d.nsteps);
    EXPECT(!s[0].is_loc && same(s[0].query, "What color?") && same(s[0].answer, "red") && s[0].weight == 0.5f, "step 0");
    EXPECT(s[0].rect.x0 == 1 && s[0].rect.y1 == 40 && !step_whole_image(&s[0]), "rect");
    EXPECT(s[0].nsoft == 2 && same(s[0].soft_answer[1], "pink") && s[0].soft_prob[1] == 0.25f, "soft");
    EXPECT(s[1].is_loc && s[1].nboxes == 2 && s[1].boxes[1].x0 == 5 && s[1].boxes[1].y0 == 6 && s[1].boxes[1].y1 == 10, "boxes are rounded");
    EXPECT(step_whole_image(&s[1]) && s[1].weight == 1 && s[2].nboxes == 0 && s[2].image == s[0].image, "defaults");
    dataset_close(&d);
}

TEST(dataset_bad_records_are_counted) {
    char text[2048];
    snprintf(text, sizeof text, "{\"image\": 5}\nnonsense\n%s", steps);
    Dataset d;
    Error e;
    EXPECT(!open_text(&d, "steps", text, 0, 0, &e) && strstr(e.text, "d.json:1:"), "%s", e.text);
    EXPECT(!open_text(&d, "steps", text, 0, 1, &e) && strstr(e.text, "more than 1 records") && strstr(e.text, "d.json:1:"), "%s", e.text);
    EXPECT(open_text(&d, "steps", text, 0, 2, &e) && d.nbad == 2 && d.nsteps == 3, "%s", e.text);
    dataset_close(&d);
}

static const char graphs[] =
    "{\"5\": {\"width\": 640, \"height\": 427, \"location\": \"indoors\", \"objects\": {\n"
    "  \"11\": {\"name\": \"cup\", \"x\": 10, \"y\": 20, \"w\": 30, \"h\": 40, \"attributes\": [\"red\", \"tall\"],\n"
    "         \"relations\": [{\"name\": \"to the left of\", \"object\": \"12\"}, {\"name\": \"on\", \"object\": \"99\"}]},\n"
    "  \"12\": {\"name\": \"dog\", \"x\": 1, \"y\": 2, \"w\": 3, \"h\": 4, \"attributes\": [], \"relations\": []}}},\n"
    " \"other\": {\"anything\": 1}}";

TEST(dataset_scene_graphs) {
    Dataset d;
    SceneGraphs g;
    Error e;
    if (!open_text(&d, "gqa", gqa, 0, 0, &e)) return;
    if (!scenegraphs_open(&g, &d, put("g.json", graphs), &e)) {
        EXPECT(false, "%s", e.text);
    } else {
        const SceneGraph *one = scenegraphs_find(&g, d.sample[1].image[0]);
        EXPECT(scenegraphs_find(&g, d.sample[0].image[0]) == NULL && g.nfound == 1, "an image without a graph");
        EXPECT(one && one->w == 640 && one->h == 427 && one->nobjects == 2, "graph");
        const GraphObject *o = one->object;
        EXPECT(same(o->name, "cup") && o->box.x1 == 40 && o->box.y1 == 60 && o->nattributes == 2 && same(o->attribute[1], "tall"), "object");
        EXPECT(o->nrelations == 1 && o->relation[0].object == 1 && same(o->relation[0].name, "to the left of"), "relation");
        scenegraphs_close(&g);
    }
    EXPECT(!scenegraphs_open(&g, &d, put("g.json", "{\"5\":\n{\"width\": 3, \"height\": 4}}"), &e) && strstr(e.text, "g.json:2: image 5"), "%s", e.text);
    EXPECT(!scenegraphs_open(&g, &d, put("g.json", "{\"5\": {\"width\": 3, \"height\": 4, \"objects\": {\"1\": {}}}}"), &e) && strstr(e.text, "has no name"), "%s", e.text);
    EXPECT(!scenegraphs_open(&g, &d, "/nowhere/g.json", &e) && strstr(e.text, "/nowhere/g.json"), "%s", e.text);
    dataset_close(&d);
}
