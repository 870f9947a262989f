/* test_trace.c -- the trace reads back as a training set, goes on after a kill, meets a full disk; the page is safe and small. */
#include <math.h>

#include "data/steps.h"
#include "engine/html.h"
#include "engine/trace.h"
#include "modules/answer.h"
#include "modules/steps.h"
#include "tests/test.h"

#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *place(const char *name) {
    static char path[4][512];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[0], "%s/%s", test_dir(), name);
    return path[turn];
}

static uint64_t rng;
static uint64_t draw(uint64_t n) {
    rng++;
    return hash_bytes(&rng, sizeof rng, 77) % n;
}

/* ---- writing and reading --------------------------------------------------------------------------- */

/* Words as programs and answers have them, and what a hostile file may bring. */
static const char *const words[] = {"red",
                                    "What color is the dog's \"hat\"?",
                                    "back\\slash",
                                    "two\nlines\tand a tab",
                                    "\xc3\xa9t\xc3\xa9 \xf0\x9f\x90\x88",
                                    "\x01\x1f\x7f",
                                    "</script>",
                                    "a"};

enum { STEPS = 400, SOFT = 5, BOXES = 4 };
typedef struct Made {
    TraceStep s;
    const char *answer[SOFT];
    float prob[SOFT];
    Rect box[BOXES];
    Value student;
} Made;

static void make(Made *m, int i) {
    static const char *const images[] = {"images/a.jpg", "images/b c.jpg", "x.jpg"};
    const bool loc = draw(2);
    const int x = (int)draw(100), y = (int)draw(100);
    *m = (Made){.s = {.update = i / 10,
                      .image = images[draw(3)],
                      .rect = {x, y, x + 1 + (int)draw(90), y + 1 + (int)draw(90)},
                      .module = loc ? "LOC" : "VQA",
                      .query = words[draw(COUNT_OF(words))],
                      .weight = (float)draw(1000) / 7,
                      .kept = draw(4) > 0,
                      .program = "q17",
                      .question = words[draw(COUNT_OF(words))],
                      .step = i % 6}};
    TraceStep *s = &m->s;
    s->why = s->kept ? NULL : "replay";
    s->soft_answer = m->answer;
    s->soft_prob = m->prob;
    s->boxes = m->box;
    m->student = value_str("pink", 4);
    s->student = s->teacher = &m->student;
    if (loc) {
        s->nboxes = (int)draw(BOXES + 1);
        for (int k = 0; k < s->nboxes; k++)
            m->box[k] = (Rect){k, k + 1, k + 2 + (int)draw(50), k + 3 + (int)draw(50)};
        return;
    }
    s->answer = words[draw(COUNT_OF(words))];
    s->nsoft = (int)draw(SOFT + 1);
    const int first = (int)draw(COUNT_OF(words));
    for (int k = 0; k < s->nsoft; k++) {
        m->answer[k] = words[(first + k) % COUNT_OF(words)];
        m->prob[k] = (float)draw(1 << 24) / (1 << 24);
    }
}

static void expect_step(const Dataset *d, const StepSample *got, const TraceStep *s, int i) {
    EXPECT(!strcmp(d->images.path[got->image], s->image), "step %d: image %s", i, d->images.path[got->image]);
    EXPECT(!memcmp(&got->rect, &s->rect, sizeof s->rect), "step %d: another rectangle", i);
    EXPECT(got->is_loc == !strcmp(s->module, "LOC") && !strcmp(got->query, s->query), "step %d: %s, query %s",
           i, s->module, got->query);
    EXPECT(got->weight == s->weight, "step %d: weight %.9g, not %.9g", i, (double)got->weight,
           (double)s->weight);
    if (got->is_loc) {
        EXPECT(got->nboxes == s->nboxes &&
                   !memcmp(got->boxes, s->boxes, (size_t)s->nboxes * sizeof *s->boxes),
               "step %d: %d boxes", i, got->nboxes);
        return;
    }
    EXPECT(got->answer && !strcmp(got->answer, s->answer), "step %d: answer %s, not %s", i,
           got->answer ? got->answer : "NULL", s->answer);
    EXPECT(got->nsoft == s->nsoft, "step %d: %d probabilities, not %d", i, got->nsoft, s->nsoft);
    for (int k = 0; k < MIN(s->nsoft, got->nsoft); k++)
        EXPECT(!strcmp(got->soft_answer[k], s->soft_answer[k]) && got->soft_prob[k] == s->soft_prob[k],
               "step %d: \"%s\" has %.9g, not %.9g", i, got->soft_answer[k], (double)got->soft_prob[k],
               (double)s->soft_prob[k]);
}

static void write_steps(const char *path, const Made *m, int from, int to, int64_t resume) {
    Trace t;
    Error e = {0};
    bool ok = resume < 0 ? trace_open(&t, path, &e) : trace_resume(&t, path, resume, &e);
    EXPECT(ok, "%s", e.text);
    for (int i = from; ok && i < to; i++) EXPECT(trace_step(&t, &m[i].s, &e), "%s", e.text);
    if (ok) EXPECT(trace_flush(&t, &e) && trace_close(&t, &e), "%s", e.text);
}

TEST(trace_reads_back) {
    static Made m[STEPS];
    rng = 1;
    int kept = 0;
    for (int i = 0; i < STEPS; i++) make(&m[i], i), kept += m[i].s.kept;
    write_steps(place("deep/er/train_steps.jsonl"), m, 0, STEPS, -1);
    Dataset d;
    Error e = {0};
    DatasetConfig dc = {.type = "steps", .dir = place("deep/er"), .split = "train"};
    if (!dataset_open(&d, &dc, &e)) {
        EXPECT(false, "%s", e.text);
        return;
    }
    EXPECT(d.nsteps == kept && d.nleft_out == STEPS - kept && !d.nbad, "%d of %d read, %d left out, %d bad",
           (int)d.nsteps, kept, (int)d.nleft_out, (int)d.nbad);
    for (int i = 0, at = 0; i < STEPS && at < d.nsteps; i++)
        if (m[i].s.kept) expect_step(&d, &d.step[at++], &m[i].s, i);
    dataset_close(&d);
}

/* Every line is JSON with the documented keys, whatever the strings are. */
TEST(trace_lines_are_json) {
    static const char *const hostile[] = {
        "\xff\xfe", "\xc3",        "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe0\x80\x80", "\"},{\"kept\":false",
        "\\",       "\xf0\x9f\x90"};
    Trace t;
    Error e = {0};
    EXPECT(trace_open(&t, place("hostile.jsonl"), &e), "%s", e.text);
    Boxes *b = xcalloc(1, sizeof *b + 3 * sizeof *b->box);
    *b = (Boxes){.n = 3, .of = {10, 20, 60, 80}};
    b->box[0] = (Box){{0, 0, 49, 59}, 0.75f, 0};
    b->box[1] = (Box){{5, 5, 4, 9}, 0.5f, 1};        /* nothing of it is left */
    b->box[2] = (Box){{3, 4, 3, 4}, NAN, 2};         /* one pixel; a score that is no number */
    const Value boxes = value_boxes(b);
    for (int i = 0; i < COUNT_OF(hostile); i++) {
        const float p[3] = {NAN, 1.0000001f, 1.5f};
        const char *const answer[3] = {"never", hostile[i], "nor this"};
        TraceStep s = {.image = hostile[i],
                       .rect = {0, 0, 9, 9},
                       .module = i % 2 ? "LOC" : "VQA",
                       .query = hostile[i],
                       .answer = hostile[i],
                       .soft_answer = answer,
                       .soft_prob = p,
                       .nsoft = 3,
                       .weight = 1,
                       .student = &boxes,
                       .question = hostile[i],
                       .kept = true};
        EXPECT(trace_step(&t, &s, &e), "%s", e.text);
    }
    EXPECT(trace_close(&t, &e), "%s", e.text);
    MappedFile m;
    JsonLines w;
    int n = 0, got;
    if (!file_map(&m, place("hostile.jsonl"), &e)) {
        EXPECT(false, "%s", e.text);
        free(b);
        return;
    }
    json_lines_begin(&w, &m);
    while ((got = json_lines_next(&w, &e))) {
        EXPECT(got > 0, "%s", e.text);
        if (got < 0) continue;
        json_t *student = json_object_get(w.value, "student");
        EXPECT(json_array_size(student) == 2, "line %d: %d boxes", n, (int)json_array_size(student));
        json_t *first = json_array_get(student, 0), *last = json_array_get(student, 1);
        EXPECT(json_integer_value(json_array_get(first, 2)) == 60 &&
                   json_integer_value(json_array_get(first, 3)) == 80,
               "the first box ends elsewhere");
        EXPECT(json_number_value(json_array_get(first, 4)) == 0.75 && json_is_null(json_array_get(last, 4)),
               "scores");
        EXPECT(json_is_true(json_object_get(w.value, "kept")) &&
                   json_is_null(json_object_get(w.value, "why")),
               "line %d: kept, why", n);
        json_t *soft = json_object_get(w.value, "soft");
        if (n % 2 == 0)
            EXPECT(json_object_size(soft) == 1 &&
                       json_number_value(json_object_iter_value(json_object_iter(soft))) == 1,
                   "what is no probability was written");
        n++;
    }
    EXPECT(n == COUNT_OF(hostile), "%d lines", n);
    json_lines_end(&w);
    file_unmap(&m);
    free(b);
}

static bool same_file(const char *a, const char *b) {
    char *p = NULL, *q = NULL;
    size_t n = 0, k = 0;
    bool same = file_read(a, &p, &n, 1 << 24, NULL) && file_read(b, &q, &k, 1 << 24, NULL) && n == k &&
                !memcmp(p, q, n);
    free(p);
    free(q);
    return same;
}

/* Killed at any byte and resumed at any checkpoint before it: the file is as if nothing had happened. */
TEST(trace_resumes) {
    static Made m[60];
    rng = 5;
    for (int i = 0; i < COUNT_OF(m); i++) make(&m[i], i); /* six updates of ten steps */
    Error e = {0};
    char whole[512], part[512];
    snprintf(whole, sizeof whole, "%s", place("whole.jsonl"));
    snprintf(part, sizeof part, "%s", place("part.jsonl"));
    unlink(part);
    write_steps(whole, m, 0, COUNT_OF(m), -1);
    write_steps(part, m, 0, COUNT_OF(m), 0); /* no file there: a new one */
    EXPECT(same_file(whole, part), "a resumed new file is another");
    struct stat st;
    EXPECT(!stat(whole, &st), "stat");
    for (off_t cut = st.st_size - 1; cut > st.st_size / 2; cut -= 331) {
        write_steps(part, m, 0, COUNT_OF(m), -1);
        EXPECT(!truncate(part, cut), "truncate");
        const int from = 2; /* its lines lie in the first half */
        write_steps(part, m, from * 10, COUNT_OF(m), from);
        EXPECT(same_file(whole, part), "cut at byte %ld, resumed at update %d", (long)cut, from);
    }
    EXPECT(file_write_atomic(part, "{\"step\":1}\n", 11, &e), "%s", e.text);
    Trace t;
    EXPECT(!trace_resume(&t, part, 3, &e) && e.status == FAIL_DATA && strstr(e.text, ":1:"),
           "another file: %s", e.text);
}

TEST(trace_full_disk) {
    if (access("/dev/full", W_OK)) {
        test_skip("there is no /dev/full");
        return;
    }
    static Made m[STEPS];
    rng = 3;
    Trace t;
    Error e = {0};
    EXPECT(trace_open(&t, "/dev/full", &e), "%s", e.text);
    make(&m[0], 0);
    EXPECT(trace_step(&t, &m[0].s, &e), "one line fits the buffer: %s", e.text);
    EXPECT(!trace_flush(&t, &e) && e.status == FAIL_DISK, "flush: status %d, %s", e.status, e.text);
    bool ok = true;
    for (int i = 0; i < 20000 && ok; i++) ok = trace_step(&t, &m[0].s, &e);
    EXPECT(!ok && e.status == FAIL_DISK && strstr(e.text, "/dev/full"), "status %d, %s", e.status, e.text);
    EXPECT(!trace_close(&t, &e) && e.status == FAIL_DISK, "close: status %d", e.status);
    EXPECT(trace_close(&t, &e), "twice: %s", e.text);
    EXPECT(!trace_open(&t, test_dir(), &e) && e.status == FAIL_DISK, "a folder: %s", e.text);
    EXPECT(!trace_open(&t, "/dev/full/x/t.jsonl", &e) && e.status == FAIL_DISK, "a folder that cannot be: %s",
           e.text);
}

TEST(trace_boxes_are_half_open) {
    struct { Boxes b; Box box[5]; } m = {.b = {.n = 5, .of = {100, 50, 200, 90}}};
    static const Rect in[] = {
        {0, 0, 99, 39}, {10, 5, 10, 5}, {-5, -5, 3, 3}, {120, 2, 99, 9}, {90, 30, 150, 60}};
    Box *box = m.b.box;
    for (int i = 0; i < 5; i++) box[i] = (Box){.rect = in[i]};
    static const Rect loose[] = {
        {100, 50, 200, 90}, {110, 55, 111, 56}, {100, 50, 104, 54}, {190, 80, 200, 90}};
    static const Rect strict[] = {{100, 50, 199, 89}, {100, 50, 103, 53}, {190, 80, 200, 90}};
    Rect out[5];
    EXPECT(trace_boxes(out, &m.b, false) == 4 && !memcmp(out, loose, sizeof loose), "reference boxes");
    m.b.exact = true;
    box[0].rect = (Rect){0, 0, 50, 39}; /* LEFT */
    EXPECT(trace_box(out, &m.b, 0, false) && out->x1 == 150 && out->y1 == 90, "a side ends at %d, %d",
           out->x1, out->y1);
    m.b.exact = false;
    box[0].rect = in[0];
    EXPECT(trace_boxes(out, &m.b, true) == 3 && !memcmp(out, strict, sizeof strict), "strict boxes");
}

TEST(trace_top_probs) {
    static const float p[] = {0.1f, NAN, 0.3f, 0.3f, 0, 0.05f, 0.9f};
    int at[8];
    EXPECT(top_probs(at, 3, p, 7, 0) == 3 && at[0] == 6 && at[1] == 2 && at[2] == 3, "%d %d %d", at[0], at[1],
           at[2]);
    EXPECT(top_probs(at, 8, p, 7, 0) == 5 && at[3] == 0 && at[4] == 5, "zero and NaN are none");
    EXPECT(top_probs(at, 8, p, 7, 0.2f) == 3, "above the floor");
    EXPECT(top_probs(at, 3, p, 0, 0) == 0, "of nothing");
}

/* ---- the page ------------------------------------------------------------------------------------- */

static void stub_answer(Answerer *self, Ctx *c, const Ask *ask, int64_t n, Answer *answer, Arena *a) {
    (void)c;
    for (int64_t i = 0; i < n; i++) {
        if (!strcmp(self->module, "VQA")) {
            answer[i].value = value_str("<img src=x onerror=alert(1)>", 28);
            continue;
        }
        Boxes *b = boxes_new(a, strstr(ask[i].query, "none") ? 0 : BOXES_MAX, ask[i].rect);
        for (int k = 0; k < b->n; k++)
            b->box[k] = (Box){{k % 7, k % 5, 300 + k, 200 + k}, 1 / (1 + (float)k), k};
        answer[i].value = value_boxes(b);
    }
}

/* Tags open and close in order; attributes are quoted: nothing from outside has become markup. */
static void expect_balanced(const char *s) {
    static const char *const alone[] = {"!DOCTYPE", "meta"};
    char stack[64][16];
    int top = 0;
    for (const char *p = s; (p = strchr(p, '<'));) {
        const char *end = p;
        for (char quote = 0; *end && (quote || *end != '>'); end++)
            if (quote ? *end == quote : *end == '"') quote = quote ? 0 : *end;
        EXPECT(*end == '>', "a tag does not end: %.40s", p);
        if (!*end) return;
        const bool close = p[1] == '/', empty = end[-1] == '/';
        char name[16];
        const char *from = p + 1 + close;
        snprintf(name, sizeof name, "%.*s", (int)MIN(strcspn(from, " />"), sizeof name - 1), from);
        bool single = empty;
        for (int i = 0; i < COUNT_OF(alone); i++) single |= !strcmp(name, alone[i]);
        if (close) {
            EXPECT(top > 0 && !strcmp(stack[top - 1], name), "</%s> closes <%s>", name,
                   top ? stack[top - 1] : "nothing");
            if (!top || strcmp(stack[--top], name)) return;
        } else if (!single) {
            EXPECT(top < COUNT_OF(stack), "too deep");
            if (top == COUNT_OF(stack)) return;
            snprintf(stack[top++], sizeof *stack, "%s", name);
        }
        p = end;
    }
    EXPECT(!top, "<%s> is never closed", top ? stack[top - 1] : "");
}

static const char hostile_program[] = "BOX0=LOC(image=IMAGE,object='</code><script>alert(1)</script>')\n"
                                      "IMAGE0=CROP(image=IMAGE,box=BOX0)\n"
                                      "BOX1=LOC(image=IMAGE0,object='none \x01 \"quoted\" of %d')\n"
                                      "IMAGE1=CROP_ABOVE(image=IMAGE0,box=BOX1)\n"
                                      "ANSWER0=VQA(image=IMAGE1,question='Is it a dog's \"hat\" & more?')\n"
                                      "ANSWER1=COUNT(box=BOX1)\n"
                                      "ANSWER2=EVAL(expr=\"'yes' if {ANSWER1} > 0 else {ANSWER0}\")\n"
                                      "FINAL_RESULT=RESULT(var=ANSWER2)\n";

/* 100 programs on a photo of noise (the worst for a JPEG), every text hostile. */
TEST(trace_page_is_safe_and_small) {
    enum { W = 1600, H = 1100, N = 100 };
    uint8_t *rgb = xcalloc((size_t)W * H, 3);
    for (int64_t i = 0; i < (int64_t)W * H * 3; i += 8) {
        const uint64_t h = hash_bytes(&i, sizeof i, 9);
        memcpy(rgb + i, &h, (size_t)MIN(8, (int64_t)W * H * 3 - i));
    }
    Arena a;
    arena_open(&a, "test", NULL, 256 << 20);
    Answerer vqa = {"VQA", 64, stub_answer}, loc = {"LOC", 64, stub_answer}, *const answerer[] = {&vqa, &loc};
    Sched s;
    sched_open(&s, answerer, 2);
    Error e = {0};
    Html h;
    char path[512];
    snprintf(path, sizeof path, "%s", place("page.html"));
    const HtmlImage image = {"IMAGE", "\"><script>alert(2)</script>", {rgb, W, H}, 7};
    const char *const note[] = {"VQA: </div><script>"};
    EXPECT(html_open(&h, path, &image, 1, note, 1, &e), "%s", e.text);
    for (int i = 0; i < N; i++) {
        char text[1024];
        snprintf(text, sizeof text, hostile_program, i);
        Program p = {0};
        const bool bad = i % 10 == 9;
        if (bad) snprintf(text, sizeof text, "BOX0=LOC(image=IMAGE,object='x')\nA=<b>(x)\n");
        Error pe = {0};
        const bool parsed = program_parse(&p, &a, &dialect_gqa, text, strlen(text), &pe);
        EXPECT(parsed == !bad, "program %d: %s", i, pe.text);
        ProgramView v = {.title = "<script>alert('t')</script>\xff\xc3",
                         .place = "a&b.txt:1",
                         .source = text,
                         .nsource = strlen(text),
                         .prog = parsed ? &p : NULL,
                         .error = parsed ? NULL : pe.text,
                         .error_line = 2,
                         .line = 1,
                         .failed_step = -1};
        StepView *view = NULL;
        if (parsed) {
            const uint64_t id = 7;
            const ImageView image_view = {rgb, W, H};
            Value *vars = ARENA_NEW(&a, Value, p.nslots);
            vars[0] = value_image(id, W - 8 * i, H - 6 * i); /* no two programs ask for the same crops */
            Job job = {.prog = &p, .vars = vars, .image = &image_view, .image_id = &id};
            sched_run(&s, NULL, &job, 1, &a);
            EXPECT(!job.failed, "%s", job.err.text);
            v.step = view = ARENA_NEW(&a, StepView, p.nsteps);
            for (int k = 0; k < p.nsteps; k++) view[k].value = &vars[p.steps[k].out];
            view[4].nprobs = 2;
            view[4].answer[0] = "<b>", view[4].answer[1] = "'";
            view[4].prob[0] = 0.75f, view[4].prob[1] = NAN;
            v.result = i % 3 ? "<i>" : NULL;
            if (!v.result)
                view[6].value = view[7].value = NULL, v.failed_step = 6, v.error = "line 7: <EVAL>";
        }
        html_program(&h, &v);
    }
    EXPECT(html_close(&h, &e), "%s", e.text);
    char *page = NULL;
    size_t size = 0;
    if (file_read(path, &page, &size, 64 << 20, &e)) {
        EXPECT(size < 2000000, "%zu bytes for 100 programs", size);
        EXPECT(strlen(page) == size, "a zero byte");
        EXPECT(!strstr(page, "<script") && !strstr(page, "<b>x") && !strstr(page, "<img") &&
                   !strstr(page, "http:") && !strstr(page, "https:"),
               "markup from outside");
        EXPECT(strstr(page, "default-src 'none'") && strstr(page, "&lt;script&gt;alert(&#39;t&#39;)"),
               "policy, escaped title");
        EXPECT(strstr(page, ">missing</span>") && strstr(page, "not reached") &&
                   strstr(page, "line 7: &lt;EVAL&gt;"),
               "flags, errors in place");
        EXPECT(strstr(page, "href=\"data:image/jpeg;base64,/9j/"), "the image as JPEG");
        EXPECT(strstr(page, "\"#c0\""), "a crop with pixels of its own");
        expect_balanced(page);
    } else {
        EXPECT(false, "%s", e.text);
    }
    free(page);
    if (!access("/dev/full", W_OK)) {
        EXPECT(html_open(&h, "/dev/full", &image, 1, NULL, 0, &e), "%s", e.text);
        EXPECT(!html_close(&h, &e) && e.status == FAIL_DISK, "a full disk: %s", e.text);
    }
    EXPECT(!html_open(&h, place("no/such/folder.html"), &image, 1, NULL, 0, &e) && e.status == FAIL_DISK &&
               html_close(&h, &e),
           "no folder: %s", e.text);
    sched_close(&s);
    arena_close(&a);
    free(rgb);
}
