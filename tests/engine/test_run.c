/* test_run.c -- the verbs run and info as commands: what they print, what they write, how they end. */
#include "data/jpeg.h"
#include "modules/answer.h"
#include "tests/engine/child.h"
#include "tests/engine/rig.h"

#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <unistd.h>

static char vqa[PATH_MAX], loc[PATH_MAX], image[2][PATH_MAX]; /* fresh random students, two scenes */

static const char *file_of(const char *name) {
    static char path[4][PATH_MAX];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[0], "%s/%s", test_dir(), name);
    return path[turn];
}

static const char *write_text(const char *name, const char *text) {
    const char *path = file_of(name);
    Error e = {0};
    CHECK(file_write_atomic(path, text, strlen(text), &e), "%s", e.text);
    return path;
}

static void save_fresh(const char *config, char *folder, uint64_t seed) {
    Error e = {0};
    Module *m = module_open(config, device_cpu(1), F32, MODULE_FROZEN, false, seed, &e);
    CHECK(m && module_save(m, folder, &e), "%s", e.text);
    module_close(m);
}

/* False: there is no command to test. */
static bool ready(void) {
    if (!vpdistill()) return false;
    if (*vqa) return true;
    snprintf(vqa, sizeof vqa, "%s/run-vqa", test_dir());
    snprintf(loc, sizeof loc, "%s/run-loc", test_dir());
    save_fresh("configs/models/tiny-vilt", vqa, 3);
    save_fresh("configs/models/tiny-owlvit", loc, 4);
    for (int i = 0; i < 2; i++)
        snprintf(image[i], sizeof image[i], "%s/images/clean_train_000000%d.jpg", tiny_scenes(), i);
    return true;
}

static int count_lines(const char *s) {
    int n = 0;
    for (; (s = strchr(s, '\n')); s++) n++;
    return n;
}

#define GOOD "ANSWER0=VQA(image=IMAGE,question='Is there a red ball?')\nFINAL_RESULT=RESULT(var=ANSWER0)\n"
#define LONG                                                                                                 \
    "# Are there two balls?\nBOX0=LOC(image=IMAGE,object='ball')\nIMAGE0=CROP(image=IMAGE,box=BOX0)\n"       \
    "ANSWER0=COUNT(box=BOX0)\nANSWER1=VQA(image=IMAGE0,question='What color is it?')\n"                      \
    "ANSWER2=EVAL(expr=\"'yes' if {ANSWER0} == 2 else {ANSWER1}\")\nFINAL_RESULT=RESULT(var=ANSWER2)\n"

/* One bad program is one sentence with its place in the file; the others run. */
TEST(run_programs_of_a_file) {
    if (!ready()) return;
    Child c;
    char programs[PATH_MAX], json[PATH_MAX], html[PATH_MAX];
    snprintf(
        programs, sizeof programs, "%s",
        write_text("some.txt",
                   "\n# only a comment\n\n" GOOD "\n \t\n" LONG "\r\n"
                   "A=VQA(image=IMAGE,question='x')\nB=CUONT(box=A)\nFINAL_RESULT=RESULT(var=B)\n\n"
                   "A=VQA(image=IMAGE,question='x')\nB=EVAL(expr='{A} + 1')\nFINAL_RESULT=RESULT(var=B)\n\n"
                   "BOX0=LOC(image=IMAGE,object='LEFT')\nFINAL_RESULT=RESULT(var=BOX0)\n\n"
                   "BOX0=LOC(image=IMAGE,object='LEFT')\nIMAGE0=CROP(image=IMAGE,box=BOX0)\nFINAL_RESULT="
                   "RESULT(var=IMAGE0)"));
    snprintf(json, sizeof json, "%s", file_of("some.jsonl"));
    snprintf(html, sizeof html, "%s", file_of("some.html"));
    int status =
        command(&c, NULL, "run --image %s --program %s --vqa %s --loc %s --json %s --trace %s run.threads=1",
                image[0], programs, vqa, loc, json, html);
    EXPECT(status == FAIL_DATA, "status %d: %s", status, c.text);
    EXPECT(count_lines(c.text) == 7, "six programs and the summary, not:\n%s", c.text);
    char want[2][PATH_MAX + 100];
    snprintf(want[0], sizeof want[0], "error: %s:17: there is no step CUONT (did you mean COUNT?)\n",
             programs);
    snprintf(want[1], sizeof want[1], "error: %s:21: ", programs);
    EXPECT(strstr(c.text, want[0]) && strstr(c.text, want[1]), "the places of the errors:\n%s", c.text);
    EXPECT(strstr(c.text, "1 box: [0, 0, 96, 144] 1.000\n") &&
               strstr(c.text, "crop [0, 0, 120, 144] of IMAGE\n"),
           "boxes and crops:\n%s", c.text);
    EXPECT(strstr(c.text, "2 of 6 programs failed"), "%s", c.text);

    /* The JSON says the same. */
    char *text = NULL, *line, *save = NULL, *out = xstrdup(c.text), *said, *save_said = NULL;
    size_t n;
    Error e = {0};
    EXPECT(file_read(json, &text, &n, 1 << 24, &e), "%s", e.text);
    said = strtok_r(out, "\n", &save_said);
    int number = 0;
    for (line = text ? strtok_r(text, "\n", &save) : NULL; line && said;
         line = strtok_r(NULL, "\n", &save), said = strtok_r(NULL, "\n", &save_said), number++) {
        json_error_t je;
        json_t *o = json_loads(line, 0, &je);
        EXPECT(o, "line %d: %s", number, je.text);
        const char *result = json_string_value(json_object_get(o, "result")),
                   *error = json_string_value(json_object_get(o, "error"));
        EXPECT(!!result != !!error && !strcmp(result ? result : said, said) &&
                   (!error || strstr(said, error)),
               "program %d: \"%s\" and \"%s\"", number, line, said);
        if (number == 1) {
            json_t *steps = json_object_get(o, "steps"), *last = json_array_get(steps, 5),
                   *asked = json_array_get(steps, 3);
            EXPECT(json_array_size(steps) == 6 &&
                       !strcmp(json_string_value(json_object_get(o, "question")), "Are there two balls?"),
                   "%s", line);
            EXPECT(json_integer_value(json_object_get(last, "line")) == 14, "RESULT is on line 14: %s", line);
            EXPECT(json_object_size(json_object_get(asked, "probs")) == 3 &&
                       json_array_size(json_object_get(asked, "rect")) == 4,
                   "%s", line);
        }
        json_decref(o);
    }
    EXPECT(number == 6, "%d lines of JSON", number);
    free(text);
    free(out);
    EXPECT(file_read(html, &text, &n, 1 << 24, &e) && strstr(text, "Are there two balls?") &&
               strstr(text, "2 failed") && strstr(text, "</html>"),
           "%s", e.text);
    free(text);
}

/* VQA's answer is the one that the module gives when it is asked directly; batches change nothing. */
TEST(run_answers_as_the_modules) {
    if (!ready()) return;
    static const char *const questions[] = {"What color is the ball?", "Is there a box?",
                                            "How many cups are there?", "What is this?",
                                            "What shape is the red thing?"};
    Rig r;
    rig_open(&r);
    rig_begin(&r, false);
    Error e = {0};
    Module *m = module_open_for("VQA", vqa, r.dev, F32, MODULE_FROZEN, &e);
    char *data, programs[2048] = "", one[512];
    size_t size;
    ImageView v;
    CHECK(m && file_read(image[1], &data, &size, 1 << 24, &e) &&
              jpeg_decode(&r.host, data, size, 0, &v, NULL, NULL, &e),
          "%s", e.text);
    free(data);
    char want[1024] = "";
    for (int i = 0; i < COUNT_OF(questions); i++) {
        Ask ask = {v, 1, {0, 0, v.w, v.h}, questions[i]};
        Outputs o;
        module_begin(m);
        module_forward(m, &r.ctx, &ask, 1, &o);
        const float *logits = to_host(&r.ctx, o.logits);
        snprintf(want + strlen(want), sizeof want - strlen(want), "%s\n",
                 m->label[argmax(logits, m->nlabels)]);
        snprintf(one, sizeof one, "A=VQA(image=IMAGE,question='%s')\nFINAL_RESULT=RESULT(var=A)\n\n",
                 questions[i]);
        strcat(programs, one);
    }
    Child c;
    int status = command(&c, NULL, "run --image %s --program %s --vqa %s", image[1],
                         write_text("vqa.txt", programs), vqa);
    EXPECT(status == 0 && !strcmp(c.text, want), "status %d, the command says:\n%snot:\n%s", status, c.text,
           want);
    module_close(m);
    rig_close(&r);
}

static const char *given;
static void from_file(void) {
    const int fd = open(given, O_RDONLY);
    if (fd < 0 || dup2(fd, 0) < 0) _exit(122);
}

TEST(run_pairs_and_stdin) {
    if (!ready()) return;
    Child c;
    char line[4 * PATH_MAX];
    given = write_text(
        "pair.txt",
        "A=VQA(image=LEFT,question='Is there a cup?')\nB=VQA(image=RIGHT,question='Is there a cup?')\n"
        "C=EVAL(expr='{A} == {B} or {A} != {B}')\nFINAL_ANSWER=RESULT(var=C)\n\n"
        "C=EVAL(expr='1 > 2')\nFINAL_ANSWER=RESULT(var=C)\n\nFINAL_ANSWER=RESULT(var=RIGHT)\n");
    snprintf(line, sizeof line, "run --left %s --right %s --program - --strict model.vqa=%s --trace %s",
             image[0], image[1], vqa, file_of("pair.html"));
    command_start(&c, NULL, from_file, line);
    int status = command_wait(&c);
    EXPECT(status == 0 && !strcmp(c.text, "True\nFalse\ncrop [0, 0, 192, 144] of RIGHT\n"), "status %d: %s",
           status, c.text);
}

/* Programs on an image and on a pair in one run; each kind says yes in its own way. */
TEST(run_image_and_pair) {
    if (!ready()) return;
    Child c;
    char programs[PATH_MAX], html[PATH_MAX], *page = NULL;
    snprintf(programs, sizeof programs, "%s",
             write_text("both.txt", "A=EVAL(expr='1 < 2')\nB=VQA(image=IMAGE,question='q')\nR=RESULT(var=A)\n\nB=VQA(image=RIGHT,question='q')\nA=EVAL(expr='1 < 2')\nR=RESULT(var=A)\n\n"
                                    "B=VQA(image=LEFT,question='q')\nA=EVAL(expr='2 < 1')\nR=RESULT(var=A)\n\nR=RESULT(var=LEFT)\n"));
    snprintf(html, sizeof html, "%s", file_of("both.html"));
    const int status = command(&c, NULL, "run --left %s --right %s --image %s --program %s --vqa %s --trace %s", image[0], image[1], image[1], programs, vqa, html);
    EXPECT(status == 0 && !strcmp(c.text, "yes\nTrue\nFalse\ncrop [0, 0, 192, 144] of LEFT\n"), "status %d: %s", status, c.text);
    size_t size;
    Error e = {0};
    EXPECT(file_read(html, &page, &size, 1 << 24, &e) && strstr(page, "3 steps asked modules, in 1 wave: VQA 3 questions in 1 batch"), "%s", e.text);
    free(page);
}

TEST(run_ends_with_the_documented_status) {
    if (!ready()) return;
    Child c;
    char good[PATH_MAX], bad[PATH_MAX], needs_loc[PATH_MAX], needs_clip[PATH_MAX];
    snprintf(good, sizeof good, "%s", write_text("good.txt", GOOD));
    snprintf(bad, sizeof bad, "%s", write_text("bad.jpg", "this is no JPEG"));
    snprintf(needs_loc, sizeof needs_loc, "%s", write_text("loc.txt", GOOD "\n" LONG));
    snprintf(needs_clip, sizeof needs_clip, "%s",
             write_text("clip.txt", "B=LOC(image=IMAGE,object='LEFT')\nO=CLASSIFY(image=IMAGE,object=B,categories=['cup'])\nR=RESULT(var=O)\n"));
    const struct { int status; const char *say; const char *line;
    } cases[] = {
        {FAIL_USAGE, "name the image", "run"},
        {FAIL_USAGE, "name the image", "run --left a.jpg --program x"},
        {FAIL_USAGE, "name the image", "run --image a.jpg --right b.jpg --program x"},
        {FAIL_USAGE, "name the file of programs", "run --image a.jpg"},
        {FAIL_USAGE, "did you mean --image", "run --imgae a.jpg"},
        {FAIL_USAGE, "wants a value", "run --image"},
        {FAIL_USAGE, "given twice", "run --image a --image b"},
        {FAIL_DATA, "no-such.txt", "run --image IMAGE --program no-such.txt"},
        {FAIL_DATA, "no-such.jpg", "run --image no-such.jpg --program GOOD --vqa VQA"},
        {FAIL_DATA, "bad.jpg", "run --image BAD --program GOOD --vqa VQA"},
        {FAIL_CONFIG, ":1: the program asks the VQA module; name its folder with --vqa",
         "run --image IMAGE --program GOOD"},
        {FAIL_CONFIG, ":5: the program asks the LOC module", "run --image IMAGE --program LOCS --vqa VQA"},
        {FAIL_CONFIG, ":2: the program asks the CLIP module; name its folder with --clip FOLDER or model.clip", "run --image IMAGE --program CLIPS"},
        {FAIL_MODEL, "answers VQA steps, a model for CLIP is wanted", "run --image IMAGE --program CLIPS --clip VQA"},
        {FAIL_MODEL, "answers LOC steps", "run --image IMAGE --program GOOD --vqa LOC"},
        {FAIL_MODEL, "config.json", "run --image IMAGE --program GOOD --vqa no-such-folder"},
        {FAIL_DISK, "/dev/full", "run --image IMAGE --program GOOD --vqa VQA --json /dev/full"},
        {FAIL_DISK, "/dev/full", "run --image IMAGE --program GOOD --vqa VQA --trace /dev/full"},
        {FAIL_DISK, "no/folder.html", "run --image IMAGE --program GOOD --vqa VQA --trace no/folder.html"},
        {OK_STATUS, "", "run --image IMAGE --program GOOD --vqa VQA"},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        char line[4 * PATH_MAX] = "", copy[PATH_MAX];
        snprintf(copy, sizeof copy, "%s", cases[i].line);
        for (char *word = strtok(copy, " "); word; word = strtok(NULL, " ")) {
            const char *w = !strcmp(word, "IMAGE")  ? image[0]
                            : !strcmp(word, "GOOD") ? good
                            : !strcmp(word, "VQA")  ? vqa
                            : !strcmp(word, "LOC")  ? loc
                            : !strcmp(word, "BAD")  ? bad
                            : !strcmp(word, "LOCS") ? needs_loc
                            : !strcmp(word, "CLIPS") ? needs_clip
                                                    : word;
            snprintf(line + strlen(line), sizeof line - strlen(line), "%s ", w);
        }
        const int status = command(&c, NULL, "%s", line);
        EXPECT(status == cases[i].status && strstr(c.text, cases[i].say), "%s: status %d, not %d: %s",
               cases[i].line, status, cases[i].status, c.text);
    }
    const int status = command(&c, NULL, "run --image %s --program %s", image[0],
                               write_text("empty.txt", "\n# nothing\n\n"));
    EXPECT(status == FAIL_DATA && strstr(c.text, "there is no program"), "status %d: %s", status, c.text);
}

/* More programs than one batch holds, and the same ones alone. */
TEST(run_batches_change_nothing) {
    if (!ready()) return;
    enum { N = 140 }; /* a batch is 128 */
    char *text = xcalloc(N, 600), *want = xcalloc(N, 40), one[600];
    Child c;
    size_t at = 0;
    static const char *const colors[] = {"red", "blue", "green"}, *const things[] = {"ball", "cup", "box"};
    char alone[9][64];
    for (int k = 0; k < 9; k++) {
        snprintf(one, sizeof one,
                 "A=VQA(image=IMAGE,question='Is the %s "
                 "%s?')\nB=LOC(image=IMAGE,object='%s')\nC=COUNT(box=B)\nD=EVAL(expr=\"'{A} "
                 "{C}'\")\nR=RESULT(var=D)\n",
                 things[k % 3], colors[k / 3], things[k % 3]);
        int status = command(&c, NULL, "run --image %s --program %s --vqa %s --loc %s", image[0],
                             write_text("one.txt", one), vqa, loc);
        EXPECT(status == 0, "%s", c.text);
        snprintf(alone[k], sizeof alone[k], "%.60s", c.text);
    }
    for (int i = 0; i < N; i++) {
        const int k = i * 5 % 9;
        at += (size_t)sprintf(text + at,
                              "A=VQA(image=IMAGE,question='Is the %s "
                              "%s?')\nB=LOC(image=IMAGE,object='%s')\nC=COUNT(box=B)\nD=EVAL(expr=\"'{A} "
                              "{C}'\")\nR=RESULT(var=D)\n\n",
                              things[k % 3], colors[k / 3], things[k % 3]);
        strcat(want, alone[k]);
    }
    int status = command(&c, NULL, "run --image %s --program %s --vqa %s --loc %s", image[0],
                         write_text("many.txt", text), vqa, loc);
    EXPECT(status == 0 && !strcmp(c.text, want), "status %d, %d lines", status, count_lines(c.text));
    free(text);
    free(want);
}

/* Images that steps make: told, written beside the page (or where --images says), shown in it, named in the JSON. */
TEST(run_makes_images) {
    if (!ready()) return;
    Child c;
    char programs[PATH_MAX], html[PATH_MAX], json[PATH_MAX], png[2][PATH_MAX + 8], lists[PATH_MAX];
    snprintf(programs, sizeof programs, "%s",
             write_text("edit.txt", "B=LOC(image=IMAGE,object='LEFT')\nI=COLORPOP(image=IMAGE,object=B)\nR=RESULT(var=I)\n\n" GOOD "\n"
                                    "B=LOC(image=IMAGE,object='TOP')\nI=BGBLUR(image=IMAGE,object=B)\nJ=CROP_RIGHTOF(image=I,box=B)\nA=VQA(image=J,question='What is this?')\n"
                                    "K=TAG(image=J,object=B)\nR=RESULT(var=J)\n\nL=LIST(query='small birds',max=2)\nR=RESULT(var=L)\n\n"
                                    "O=SEG(image=IMAGE)\nP=SELECT(image=IMAGE,object=O,query='sky')\nI=COLORPOP(image=IMAGE,object=P)\nR=RESULT(var=I)\n"));
    snprintf(lists, sizeof lists, "%s", write_text("lists.json", "{\"Small birds\": [\"wren\", \"tit\", \"robin\"]}"));
    snprintf(html, sizeof html, "%s", file_of("edit.page.html"));
    snprintf(json, sizeof json, "%s", file_of("edit.jsonl"));
    snprintf(png[0], sizeof png[0], "%s", file_of("edit.page-1.png"));
    snprintf(png[1], sizeof png[1], "%s", file_of("edit.page-3.png"));
    int status = command(&c, NULL, "run --image %s --program %s --vqa %s --lists %s --trace %s --json %s", image[0], programs, vqa, lists, html, json);
    char want[3][2 * PATH_MAX];
    snprintf(want[0], sizeof want[0], "image 192 x 144: %s\n", png[0]);
    snprintf(want[1], sizeof want[1], "image 96 x 143: %s\n2\nerror: %s:18: SEG: it needs a panoptic", png[1], programs);
    EXPECT(status == FAIL_MODEL && !strncmp(c.text, want[0], strlen(want[0])) && strstr(c.text, want[1]), "status %d: %s", status, c.text);
    for (int i = 0; i < 2; i++) {
        char *data = NULL;
        size_t size = 0;
        Error e = {0};
        EXPECT(file_read(png[i], &data, &size, 1 << 24, &e) && size > 24 && !memcmp(data, "\x89PNG", 4), "%s: %zu bytes; %s", png[i], size, e.text);
        if (size > 24) EXPECT((uint8_t)data[19] == (i ? 96 : 192) && (uint8_t)data[23] == (i ? 143 : 144), "%d x %d", (uint8_t)data[19], (uint8_t)data[23]);
        free(data);
    }
    char *page = NULL, *lines = NULL;
    size_t size;
    Error e = {0};
    EXPECT(file_read(html, &page, &size, 1 << 24, &e) && file_read(json, &lines, &size, 1 << 24, &e), "%s", e.text);
    /* Two made images, each embedded once and shown several times; the crop of the second is a window on it. */
    EXPECT(page && strstr(page, "id=\"m0\"") && strstr(page, "id=\"m1\"") && strstr(page, "id=\"m2\"") && !strstr(page, "id=\"m3\"") && strstr(page, "<title>after</title>"),
           "the page");
    EXPECT(lines && strstr(lines, "\"image\":\"") && strstr(lines, "\"query\":\"small birds\",\"value\":[\"wren\",\"tit\"]") && strstr(lines, ",\"of\":\""), "%s", lines);
    free(page);
    free(lines);

    char prefix[PATH_MAX];
    snprintf(prefix, sizeof prefix, "%s", file_of("own.name"));
    status = command(&c, NULL, "run --image %s --program %s --vqa %s --lists %s --images %s", image[0], programs, vqa, lists, prefix);
    snprintf(want[2], sizeof want[2], "%s-3.png", prefix);
    EXPECT(status == FAIL_MODEL && strstr(c.text, want[2]) && !access(want[2], R_OK), "status %d: %s", status, c.text);
    status = command(&c, NULL, "run --image %s --program %s --vqa %s --lists %s", image[0], programs, vqa, lists);
    EXPECT(status == FAIL_MODEL && strstr(c.text, "image 192 x 144 (--images PREFIX writes it to a file)\n"), "status %d: %s", status, c.text);
    status = command(&c, NULL, "run --image %s --program %s --vqa %s --lists %s --images no/such/folder/x", image[0], programs, vqa, lists);
    EXPECT(status == FAIL_DISK && strstr(c.text, "no/such/folder/x-1.png"), "status %d: %s", status, c.text);
}

/* CLASSIFY's class and score are what the CLIP module says when it is asked directly; SELECT takes what fits best. */
TEST(run_asks_clip) {
    if (!ready()) return;
    static const char *const texts[] = {"cup", "box", "a ball"};
    const char *const folder = "tests/golden/tiny-clip";
    Rig r;
    rig_open(&r);
    rig_begin(&r, false);
    Error e = {0};
    Module *m = module_open_for("CLIP", folder, r.dev, F32, MODULE_FROZEN, &e);
    char *data, want[200];
    size_t size;
    ImageView v;
    CHECK(m && file_read(image[1], &data, &size, 1 << 24, &e) && jpeg_decode(&r.host, data, size, 0, &v, NULL, NULL, &e), "%s", e.text);
    free(data);
    Ask ask[3];
    for (int k = 0; k < 3; k++) ask[k] = (Ask){v, 1, {0, 0, v.w / 2, v.h - 1}, texts[k]}; /* LEFT, whose last row is lost */
    Outputs o;
    module_begin(m);
    module_forward(m, &r.ctx, ask, 3, &o);
    const float *cosine = to_host(&r.ctx, o.logits);
    const int best = argmax(cosine, 3);
    const double score = nearbyint(1000 * (double)cosine[best]) / 10;
    if (score > 0) snprintf(want, sizeof want, "1 object: [0, 0, %d, %d] %s(%.1f)\n", v.w / 2, v.h, texts[best], score);
    else snprintf(want, sizeof want, "0 objects\n");
    snprintf(want + strlen(want), sizeof want - strlen(want), "3 objects: ");
    module_close(m);
    rig_close(&r);
    Child c;
    char json[PATH_MAX];
    snprintf(json, sizeof json, "%s", file_of("clip.jsonl"));
    const int status = command(&c, NULL, "run --image %s --program %s --clip %s --json %s", image[1],
                               write_text("clip.txt", "B=LOC(image=IMAGE,object='LEFT')\nO=CLASSIFY(image=IMAGE,object=B,categories=['cup','box','a ball'])\nR=RESULT(var=O)\n\n"
                                                      "B=LOC(image=IMAGE,object='LEFT')\nO=SELECT(image=IMAGE,object=B,query='cup,box,tree')\nR=RESULT(var=O)\n"),
                               folder, json);
    EXPECT(status == 0 && !strncmp(c.text, want, strlen(want)), "status %d: %swanted: %s", status, c.text, want);
    EXPECT(file_read(json, &data, &size, 1 << 24, &e) && strstr(data, "\"module\":\"CLIP\",\"questions\":3"), "%s", data ? data : e.text);
    free(data);
}

TEST(run_lists) {
    if (!ready()) return;
    static const struct { const char *lists, *say; int status; } cases[] = {
        {"{\"birds\": [\"wren\"]}", "LIST: LISTS has no list \"bird\" (did you mean \"birds\"?); add it there", FAIL_DATA},
        {"{\"cars\": [\"van\"]}", "LIST: LISTS has no list \"bird\"; add it there", FAIL_DATA},
        {"{\" bird\": [\"van\"]}", "has no list", FAIL_DATA},
        {"{\"BIRD\": [\"van\"]}", "1\n", OK_STATUS},
        {"{\"bird\": []}", "LISTS: \"bird\" is not a list of strings", FAIL_CONFIG},
        {"{\"bird\": [\"a\", 3]}", "LISTS: \"bird\" is not a list of strings", FAIL_CONFIG},
        {"[\"bird\"]", "LISTS: not an object", FAIL_CONFIG},
        {"{\"bird\": [\"a\"]", "LISTS:1: ", FAIL_CONFIG},
        {NULL, ":1: LIST wants a file of lists: name it with --lists FILE or model.lists", FAIL_CONFIG},
    };
    char program[PATH_MAX];
    snprintf(program, sizeof program, "%s", write_text("list.txt", "L=LIST(query='bird')\nR=RESULT(var=L)\n"));
    for (int i = 0; i < COUNT_OF(cases); i++) {
        Child c;
        char lists[PATH_MAX] = "", say[2 * PATH_MAX], *mark;
        if (cases[i].lists) snprintf(lists, sizeof lists, "%s", write_text("some.json", cases[i].lists));
        snprintf(say, sizeof say, "%s", cases[i].say);
        if ((mark = strstr(say, "LISTS"))) snprintf(mark, sizeof say - (size_t)(mark - say), "%s%s", lists, strstr(cases[i].say, "LISTS") + 5);
        const int status = command(&c, NULL, *lists ? "run --image %s --program %s --lists %s" : "run --image %s --program %s", image[0], program, lists);
        EXPECT(status == cases[i].status && strstr(c.text, say), "%s: status %d, not %d: %s", cases[i].lists ? cases[i].lists : "no lists", status, cases[i].status, c.text);
    }
    Child c;
    const int status = command(&c, NULL, "run --image %s --program %s --lists no-such.json", image[0], program);
    EXPECT(status == FAIL_CONFIG && strstr(c.text, "no-such.json"), "status %d: %s", status, c.text);
}

/* info with one or two words; a macro's text must not hold a percent sign. */
static int info_of(Child *c, const char *word, const char *more) {
    return command(c, NULL, "info %s %s", word, more);
}

TEST(info_describes) {
    if (!ready()) return;
    Child c;
    char config[PATH_MAX], state[PATH_MAX], dir[PATH_MAX];
    char weights[PATH_MAX + 32];
    snprintf(weights, sizeof weights, "%s/model.safetensors", vqa);
    snprintf(dir, sizeof dir, "%s/info-run", test_dir());
    snprintf(config, sizeof config, "%s", write_text("info.yaml", "run:\n  seed: 12\n"));
    EXPECT(info_of(&c, "", "") == 0 && strstr(c.text, "oneDNN") && strstr(c.text, "processor") &&
               strstr(c.text, "memory"),
           "%s", c.text);
    EXPECT(info_of(&c, config, "") == 0 && strstr(c.text, "seed: 12") && strstr(c.text, "distill:") &&
               !strstr(c.text, "processor"),
           "%s", c.text);
    EXPECT(info_of(&c, write_text("same.yaml", "run:\n  seed: 1\n"), "") == 0 && strstr(c.text, "seed: 1") &&
               !strstr(c.text, "processor"),
           "a configuration equal to the defaults: %s", c.text);
    EXPECT(info_of(&c, vqa, loc) == 0 && strstr(c.text, "vilt, answers VQA") &&
               strstr(c.text, "owlvit, answers LOC") && strstr(c.text, "width 64") &&
               !strstr(c.text, "vilt.encoder"),
           "%s", c.text);
    EXPECT(info_of(&c, vqa, "--tensors") == 0 && strstr(c.text, "vilt.embeddings.cls_token") &&
               strstr(c.text, "(1, 1, 64)"),
           "%s", c.text);
    EXPECT(info_of(&c, "configs/models/tiny-owlvit", "") == 0 && strstr(c.text, "from scratch"), "%s",
           c.text);
    EXPECT(info_of(&c, weights, "") == 0 && strstr(c.text, "classifier.3.bias"), "%s", c.text);

    /* A run's folder: its newest checkpoint. */
    int status = command(&c, NULL,
                         "train data.kind=steps data.dir=%s data.split=train train.module=vqa model.vqa=%s "
                         "train.steps=2 train.batch=4 run.out=%s",
                         tiny_scenes(), vqa, dir);
    EXPECT(status == 0, "train: %s", c.text);
    EXPECT(info_of(&c, dir, "") == 0 && strstr(c.text, "checkpoint-000002") &&
               strstr(c.text, "optimizer step 2") && strstr(c.text, "steps: 2"),
           "%s", c.text);
    snprintf(state, sizeof state, "%s/checkpoint-000002/state.json", dir);
    Error e = {0};
    EXPECT(file_write_atomic(state, "{\"step\": \"x\x1b[2J\"}", 17, &e), "%s", e.text);
    EXPECT(info_of(&c, dir, "") == FAIL_MODEL, "status %d: %s", c.status, c.text);

    EXPECT(info_of(&c, "no-such-file", "") == FAIL_DATA && strstr(c.text, "no-such-file"), "%s", c.text);
    EXPECT(info_of(&c, test_dir(), "") == FAIL_MODEL, "status %d: %s", c.status, c.text);
    EXPECT(info_of(&c, "--tensor", "") == FAIL_USAGE && strstr(c.text, "did you mean --tensors"), "%s",
           c.text);
    EXPECT(info_of(&c, write_text("bad.safetensors", "12345678{}"), "") == FAIL_MODEL, "status %d: %s",
           c.status, c.text);
}
