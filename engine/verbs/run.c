/* run.c -- the verb `run`: programs on an image, or on a pair, with every step told.
 *
 * A file holds programs with empty lines between them; a comment before a program's first step is taken for the question
 * it answers. Programs run CHUNK at a time through the scheduler, exactly as in training. What came of each is printed as
 * one line, and on request written as JSON lines and as a page (engine/html.c).
 */
#include "engine/html.h"
#include "engine/run.h"
#include "engine/trace.h"
#include "engine/verbs/verbs.h"
#include "data/jpeg.h"
#include "data/png.h"
#include "modules/answer.h"
#include "modules/lists.h"
#include "modules/steps.h"

#include <errno.h>
#include <unistd.h>

enum { CHUNK = 128, PAIRS = 4096, FILE_LIMIT = 64 << 20, IMAGE_LIMIT = 256 << 20, RESULT_TEXT = 1024 };

/* What programs may be given, in the order of their slots. */
enum { IMAGES = 3 };
static const char *const image_names[IMAGES] = {"IMAGE", "LEFT", "RIGHT"};

/* Who is asked: networks, and at the end the file of lists. */
enum { NETWORKS = 3, LISTS = NETWORKS, ASKED };
static const char *const asked_names[ASKED] = {"VQA", "LOC", "CLIP", "LIST"}, *const asked_options[ASKED] = {"vqa", "loc", "clip", "lists"};

typedef struct Options {
    const char *image[IMAGES]; /* files; NULL: not given */
    const char *asked[ASKED]; /* a folder, or the file of lists; "": not given */
    const char *program, *trace, *json, *images;
    bool strict;
} Options;

/* A program's place in the file. */
typedef struct Passage { size_t at, n; int line; char title[256]; } Passage;

typedef struct Runner {
    Options o;
    Run run;
    Dialect dialect;
    Arena pixels;
    ImageView view[IMAGES]; /* of those given; the dialect has their names */
    uint64_t id[IMAGES];
    const char *file[IMAGES], *input[IMAGES];
    int nimages;
    const char *name;   /* of the file, for messages */
    char *text;
    size_t size;
    Passage *block;
    int64_t nblocks, cap_blocks;
    Module *module[NETWORKS];
    ModuleAnswerer answers[NETWORKS];
    ListAnswerer lists;
    Answerer *answerer[ASKED];
    int nanswerers;
    Sched sched;
    const Outputs *read;       /* whose logits were read back last, */
    const float *logits;       /* and these */
    Html html;
    FILE *json;
    int64_t failed, steps, waves; /* steps that asked a module */
    Status status;      /* of the first program that failed */
} Runner;

/* ---- the command line ----------------------------------------------------------------------------- */

static bool read_options(Options *o, const Args *a, Error *e) {
    const struct { const char *name; const char **to; } rows[] = {
        {"--image", &o->image[0]}, {"--left", &o->image[1]}, {"--right", &o->image[2]}, {"--program", &o->program}, {"--vqa", &o->asked[0]}, {"--loc", &o->asked[1]},
        {"--clip", &o->asked[2]},  {"--lists", &o->asked[LISTS]}, {"--trace", &o->trace}, {"--json", &o->json},     {"--images", &o->images},
    };
    const char *names[COUNT_OF(rows) + 1];
    bool seen[COUNT_OF(rows)] = {0};
    for (int k = 0; k < COUNT_OF(rows); k++) names[k] = rows[k].name;
    names[COUNT_OF(rows)] = "--strict";
    *o = (Options){.asked = {a->cfg.model.vqa, a->cfg.model.loc, a->cfg.model.clip, a->cfg.model.lists}};
    for (int i = 0; i < a->nwords; i++) {
        const char *word = a->word[i];
        int k = 0;
        if (!strcmp(word, "--strict")) {
            o->strict = true;
            continue;
        }
        while (k < COUNT_OF(rows) && strcmp(word, rows[k].name)) k++;
        if (k == COUNT_OF(rows)) {
            const char *near = *word == '-' ? nearest(word, names, COUNT_OF(names)) : NULL;
            return fail_as(e, FAIL_USAGE, "\"%s\" is no option of run%s%s%s", word, near ? " (did you mean " : "; `vpdistill run --help` lists them", near ? near : "",
                           near ? "?)" : "");
        }
        if (seen[k]) return fail_as(e, FAIL_USAGE, "%s is given twice", word);
        if (i + 1 == a->nwords) return fail_as(e, FAIL_USAGE, "%s wants a value after it", word);
        seen[k] = true;
        *rows[k].to = a->word[++i];
    }
    if ((!seen[0] && !seen[1]) || seen[1] != seen[2])
        return fail_as(e, FAIL_USAGE, "name the image: --image photo.jpg (IMAGE), or --left a.jpg --right b.jpg (LEFT, RIGHT), or all three");
    if (!o->program) return fail_as(e, FAIL_USAGE, "name the file of programs: --program FILE (- is the standard input)");
    return true;
}

/* ---- reading -------------------------------------------------------------------------------------- */

static bool read_stdin(char **text, size_t *size, Error *e) {
    int64_t cap = 0;
    size_t n = 0, got;
    char *p = NULL;
    do {
        GROW(p, cap, (int64_t)n + 65537);
        got = fread(p + n, 1, 65536, stdin);
        n += got;
    } while (got && n <= FILE_LIMIT);
    p[n] = 0;
    *text = p;
    *size = n;
    if (n > FILE_LIMIT) return fail_as(e, FAIL_DATA, "the standard input has more than %d MB of programs", FILE_LIMIT >> 20);
    return ferror(stdin) ? fail_as(e, FAIL_DATA, "the standard input: %s", strerror(errno)) : true;
}

static bool is_space(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

/* The words of a comment: "#  Is it red? \r\n" -> "Is it red?" */
static void read_title(char *out, size_t size, const char *s, const char *end) {
    while (s < end && (*s == '#' || is_space(*s))) s++;
    while (s < end && is_space(end[-1])) end--;
    snprintf(out, size, "%.*s", (int)MIN(end - s, 4096), s);
}

/* Splits at lines without a letter. Comments alone are no program. */
static void split(Runner *r) {
    Passage b = {0};
    bool open = false, steps = false;
    int line = 1;
    for (size_t at = 0; at <= r->size; line++) {
        const char *s = r->text + at, *nl = at < r->size ? memchr(s, '\n', r->size - at) : NULL;
        const size_t end = nl ? (size_t)(nl - r->text) + 1 : r->size;
        const char *first = s;
        while (first < r->text + end && is_space(*first)) first++;
        if (first == r->text + end) {
            if (steps) {
                b.n = at - b.at;
                GROW(r->block, r->cap_blocks, r->nblocks + 1);
                r->block[r->nblocks++] = b;
            }
            open = steps = false;
        } else {
            if (!open) b = (Passage){.at = at, .line = line};
            open = true;
            if (*first != '#') steps = true;
            else if (!steps && !*b.title) read_title(b.title, sizeof b.title, first, r->text + end);
        }
        if (at == r->size) break;
        at = end;
    }
}

static bool read_programs(Runner *r, Error *e) {
    const bool in = !strcmp(r->o.program, "-");
    r->name = in ? "stdin" : r->o.program;
    if (in ? !read_stdin(&r->text, &r->size, e) : !file_read(r->o.program, &r->text, &r->size, FILE_LIMIT, e)) return false;
    split(r);
    return r->nblocks ? true : fail_as(e, FAIL_DATA, "%s: there is no program in it", r->name);
}

static bool read_images(Runner *r, Error *e) {
    arena_open(&r->pixels, "pixels", NULL, ((size_t)r->nimages * 3 * JPEG_MAX_PIXELS) + (1 << 20));
    for (int i = 0; i < r->nimages; i++) {
        const char *path = r->file[i];
        char *data;
        size_t size;
        int warnings = 0;
        JpegCause cause;
        if (!file_read(path, &data, &size, IMAGE_LIMIT, e)) return false;
        bool ok = jpeg_decode(&r->pixels, data, size, 0, &r->view[i], &warnings, &cause, e);
        free(data);
        if (!ok) return fail_in(e, "%s", path);
        if (warnings) warn("%s: the file is %s; what could be decoded is used", path, jpeg_cause_names[cause]);
        r->id[i] = (uint64_t)i;
    }
    return true;
}

/* A program with a step whose network no build has will fail, whoever else it asks. */
static bool is_hopeless(const Program *p) {
    for (int s = 0; s < p->nsteps; s++)
        if (p->steps[s].kind->lacks) return true;
    return false;
}

/* Opens the modules that any of the programs asks. Programs that do not parse are told later, each in its place. */
static bool open_modules(Runner *r, Error *e) {
    int line[ASKED] = {0};
    for (int64_t i = 0; i < r->nblocks; i++) {
        const Passage *b = &r->block[i];
        Program p;
        size_t mark = arena_mark(&r->run.host);
        if (program_parse(&p, &r->run.host, &r->dialect, r->text + b->at, b->n, NULL))
            for (int s = 0; s < p.nsteps; s++)
                for (int k = 0; k < ASKED; k++)
                    if (!line[k] && p.steps[s].module && !strcmp(p.steps[s].module, asked_names[k]) && (*r->o.asked[k] || !is_hopeless(&p)))
                        line[k] = b->line + p.steps[s].line - 1;
        arena_reset(&r->run.host, mark);
    }
    for (int k = 0; k < ASKED; k++) {
        if (!line[k]) continue;
        if (!*r->o.asked[k])
            return k == LISTS ? fail_as(e, FAIL_CONFIG, "%s:%d: LIST wants a file of lists: name it with --lists FILE or model.lists, or give CLASSIFY its categories as "
                                                        "['robin', 'wren'] (no language model can be asked yet)", r->name, line[k])
                              : fail_as(e, FAIL_CONFIG, "%s:%d: the program asks the %s module; name its folder with --%s FOLDER or model.%s", r->name, line[k], asked_names[k],
                                        asked_options[k], asked_options[k]);
        if (k == LISTS) {
            if (!lists_open(&r->lists, r->o.asked[k], e)) return false;
            r->answerer[r->nanswerers++] = &r->lists.base;
            continue;
        }
        if (!(r->module[k] = module_open_for(asked_names[k], r->o.asked[k], r->run.dev, run_type(r->run.cfg), MODULE_FROZEN, e)))
            return false;
        module_answerer(&r->answers[k], r->module[k], !strcmp(asked_names[k], "CLIP") ? PAIRS : CHUNK); /* a crop and many texts cost as much as one */
        r->answers[k].strict = r->o.strict;
        r->answers[k].threshold = (float)r->run.cfg->model.loc_threshold;
        r->answerer[r->nanswerers++] = &r->answers[k].base;
    }
    sched_open(&r->sched, r->answerer, r->nanswerers);
    steps_use_fonts(r->run.cfg->model.label_font, r->run.cfg->model.emoji_font);
    return true;
}

/* ---- running -------------------------------------------------------------------------------------- */

typedef struct Item {
    const Passage *block;
    Program prog;
    Job job;
    bool parsed;
    StepView *step;
    char error[sizeof ((Error *)0)->text + 256], *result;
    char *image;    /* the file of the result, when that is an image that a step made; NULL: not written */
    int error_line; /* in the program's text; 0: none */
} Item;

/* "line 3: ..." of a program's text -> "FILE:14: ...". */
static void place_error(Item *p, const Runner *r, const Error *e) {
    int line = 0, n = 0;
    if (sscanf(e->text, "line %d%n", &line, &n) == 1 && line > 0 && (e->text[n] == ':' || e->text[n] == ',')) {
        snprintf(p->error, sizeof p->error, "%s:%d%s", r->name, p->block->line + line - 1, e->text + n);
        p->error_line = line;
        return;
    }
    snprintf(p->error, sizeof p->error, "%s:%d: %s", r->name, p->block->line, e->text);
}

static void fail_program(Runner *r, Item *p, const Error *e) {
    place_error(p, r, e);
    p->result = NULL;
    if (!r->failed++) r->status = e->status && e->status != FAIL_OTHER ? e->status : FAIL_DATA;
}

/* A program about a pair says True or False of a statement (NLVR2), one about an image answers yes or no (GQA). */
static AnswerStyle style_of(const Program *p) {
    bool pair = p->ninputs == 2;
    for (int i = 0; i < p->nsteps && p->ninputs == IMAGES; i++)
        for (int k = 0; k < p->steps[i].nreads; k++) pair |= p->steps[i].reads[k] == 1 || p->steps[i].reads[k] == 2;
    return pair ? ANSWER_TRUE_FALSE : ANSWER_YES_NO;
}

/* "1 box: [0, 0, 96, 144] 0.312"; objects have what CLASSIFY said instead of LOC's score. */
static void boxes_text(char out[RESULT_TEXT], const Value *v, bool strict) {
    const Boxes *b = v->boxes;
    int at = snprintf(out, RESULT_TEXT, "%d %s%s", b->n, v->kind == VAL_BOXES ? "box" : "object", b->n == 1 ? "" : v->kind == VAL_BOXES ? "es" : "s");
    for (int i = 0; i < b->n && at < RESULT_TEXT - 300; i++) {
        Rect r;
        if (!trace_box(&r, b, i, strict)) continue;
        at += snprintf(out + at, (size_t)(RESULT_TEXT - at), "%s [%d, %d, %d, %d] ", i ? "," : ":", r.x0, r.y0, r.x1, r.y1);
        if (b->classes) at += snprintf(out + at, (size_t)(RESULT_TEXT - at), "%.*s(%.1f)", MIN(b->classes[i].name.n, 200), b->classes[i].name.s, b->classes[i].score);
        else at += snprintf(out + at, (size_t)(RESULT_TEXT - at), "%.3f", (double)b->box[i].score);
    }
}

/* The result in one line: as the task's answers are compared, but a crop is its rectangle and boxes are listed. */
static bool result_text(Runner *r, Item *p, Error *e) {
    const Value *v = program_result(&p->prog, p->job.vars);
    char *out = p->result = arena_alloc(&r->run.host, RESULT_TEXT);
    const Rect c = v->kind == VAL_IMAGE ? v->image.rect : (Rect){0};
    if (v->kind == VAL_IMAGE && image_is_made(v->image.id)) {
        snprintf(out, RESULT_TEXT, "image %d x %d", rect_w(c), rect_h(c));
    } else if (v->kind == VAL_IMAGE) {
        snprintf(out, RESULT_TEXT, "crop [%d, %d, %d, %d] of %s", c.x0, c.y0, c.x1, c.y1, p->prog.names[v->image.id]);
    } else if (v->kind == VAL_BOXES || v->kind == VAL_OBJECTS) {
        boxes_text(out, v, r->o.strict);
    } else if (!answer_text(out, RESULT_TEXT, v, style_of(&p->prog), e)) {
        return false;
    }
    for (char *s = out; *s; s++)
        if ((unsigned char)*s < 0x20 || *s == 0x7f) *s = ' '; /* one program, one line */
    return true;
}

/* The three answers that VQA finds most probable. */
static void add_probs(Runner *r, StepView *s) {
    const Answer *a = &s->asked->answer;
    const Module *m = r->module[0];
    if (r->answerer[s->asked->answerer] != &r->answers[0].base || !a->out || !m->nlabels) return;
    if (r->read != a->out) {
        r->read = a->out;
        r->logits = to_host(&r->run.ctx, a->out->logits);
    }
    size_t mark = arena_mark(&r->run.host);
    float *p = arena_alloc(&r->run.host, (size_t)m->nlabels * sizeof *p);
    int index[VIEW_PROBS];
    answer_probs(p, r->logits + a->row * m->nlabels, m->nlabels, 1, module_multi_label(m));
    s->nprobs = top_probs(index, VIEW_PROBS, p, m->nlabels, 0);
    for (int k = 0; k < s->nprobs; k++) {
        s->answer[k] = m->label[index[k]];
        s->prob[k] = p[index[k]];
    }
    arena_reset(&r->run.host, mark);
}

static void make_job(Runner *r, Item *p, const Passage *b) {
    Arena *a = &r->run.host;
    Error e = {0};
    p->block = b;
    if (!(p->parsed = program_parse(&p->prog, a, &r->dialect, r->text + b->at, b->n, &e))) {
        fail_program(r, p, &e);
        return;
    }
    Value *vars = ARENA_NEW(a, Value, p->prog.nslots);
    for (int k = 0; k < p->prog.ninputs; k++) vars[k] = value_image(r->id[k], r->view[k].w, r->view[k].h);
    p->job = (Job){.prog = &p->prog, .vars = vars, .image = r->view, .image_id = r->id};
    p->step = ARENA_NEW(a, StepView, p->prog.nsteps);
}

static void run_chunk(Runner *r, Item *p, const Passage *block, int n) {
    run_begin(&r->run, 0, false);
    r->read = NULL;
    for (int k = 0; k < NETWORKS; k++)
        if (r->module[k]) module_begin(r->module[k]);
    Arena *a = &r->run.host;
    Job *job = arena_alloc(a, (size_t)n * sizeof *job);
    int *of = arena_alloc(a, (size_t)n * sizeof *of), njobs = 0;
    memset(p, 0, (size_t)n * sizeof *p);
    for (int i = 0; i < n; i++) {
        make_job(r, &p[i], &block[i]);
        if (!p[i].parsed) continue;
        of[njobs] = i;
        job[njobs++] = p[i].job;
    }
    sched_run(&r->sched, &r->run.ctx, job, njobs, a);
    r->waves += r->sched.waves;
    for (int64_t k = 0; k < r->sched.nrecords; k++) {
        const StepRecord *rec = &r->sched.record[k];
        StepView *s = &p[of[rec->job]].step[rec->step];
        s->nasked++;
        if (s->asked) continue;
        r->steps++;
        s->asked = &r->sched.question[rec->question];
        add_probs(r, s);
    }
    for (int j = 0; j < njobs; j++) {
        Item *q = &p[of[j]];
        q->job = job[j];
        for (int s = 0; s < q->prog.nsteps; s++) {
            const Value *v = &q->job.vars[q->prog.steps[s].out];
            /* After a failure a slot that still holds None was not written. */
            if (!q->job.failed || (s != q->job.failed_step && v->kind != VAL_NONE)) q->step[s].value = v;
        }
        Error e = {0};
        if (q->job.failed || !result_text(r, q, &e)) fail_program(r, q, q->job.failed ? &q->job.err : &e);
    }
}

/* ---- telling -------------------------------------------------------------------------------------- */

static void json_key(FILE *f, const char *key, const char *s) {
    fprintf(f, ",\"%s\":", key);
    json_put_string(f, s, s ? strlen(s) : 0);
}

static void write_json_step(Runner *r, const Item *p, int i) {
    FILE *f = r->json;
    const Step *st = &p->prog.steps[i];
    const StepView *s = &p->step[i];
    fprintf(f, "%s{\"step\":%d,\"line\":%d", i ? "," : "", i, p->block->line + st->line - 1);
    fputs(",\"text\":", f);
    json_put_string(f, p->prog.text + st->text, (size_t)st->ntext);
    json_key(f, "name", st->kind->name);
    json_key(f, "out", p->prog.names[st->out]);
    if (s->asked) {
        json_key(f, "module", st->module);
        if (s->nasked > 1) {
            fprintf(f, ",\"questions\":%d", s->nasked);
        } else {
            if (s->asked->ask.image.rgb) {
                fputs(",\"rect\":", f);
                json_put_rect(f, s->asked->ask.rect);
            }
            if (image_is_made(s->asked->ask.image_id)) fprintf(f, ",\"of\":\"%016" PRIx64 "\"", s->asked->ask.image_id);
            json_key(f, "query", s->asked->ask.query);
        }
    }
    if (!s->value) {
        fputs(i == p->job.failed_step ? ",\"failed\":true}" : ",\"reached\":false}", f);
        return;
    }
    fputs(",\"value\":", f);
    json_put_value(f, s->value, r->o.strict);
    if (s->nprobs) {
        fputs(",\"probs\":{", f);
        for (int k = 0; k < s->nprobs; k++) {
            if (k) fputc(',', f);
            json_put_string(f, s->answer[k], strlen(s->answer[k]));
            fputc(':', f);
            json_put_float(f, s->prob[k]);
        }
        fputc('}', f);
    }
    if (s->value->kind == VAL_IMAGE) {
        if (s->value->missing) fputs(",\"missing\":true", f);
        if (s->value->grown) fputs(",\"grown\":true", f);
        if (image_is_made(s->value->image.id)) fprintf(f, ",\"of\":\"%016" PRIx64 "\"", s->value->image.id); /* whose pixels the rectangle is in */
    }
    fputc('}', f);
}

static void write_json(Runner *r, const Item *p, int64_t number) {
    FILE *f = r->json;
    fprintf(f, "{\"program\":%" PRId64 ",\"line\":%d", number, p->block->line);
    if (*p->block->title) json_key(f, "question", p->block->title);
    json_key(f, "result", p->result);
    if (p->image) json_key(f, "image", p->image);
    json_key(f, "error", *p->error ? p->error : NULL);
    fputs(",\"steps\":[", f);
    for (int i = 0; p->parsed && i < p->prog.nsteps; i++) write_json_step(r, p, i);
    fputs("]}\n", f);
}

static void write_html(Runner *r, const Item *p) {
    char place[600];
    snprintf(place, sizeof place, "%s:%d", r->name, p->block->line);
    html_program(&r->html, &(ProgramView){
                               .title = *p->block->title ? p->block->title : NULL,
                               .place = place,
                               .source = r->text + p->block->at,
                               .nsource = p->block->n,
                               .prog = p->parsed ? &p->prog : NULL,
                               .step = p->step,
                               .result = p->result,
                               .error = *p->error ? p->error : NULL,
                               .line = p->block->line,
                               .error_line = p->error_line,
                               .failed_step = p->parsed && p->job.failed ? p->job.failed_step : -1,
                           });
}

static bool open_outputs(Runner *r, Error *e) {
    const Options *o = &r->o;
    if (o->json && !(r->json = fopen(o->json, "we"))) return fail_as(e, FAIL_DISK, "%s: cannot write: %s", o->json, strerror(errno));
    if (!o->trace) return true;
    HtmlImage image[IMAGES];
    for (int i = 0; i < r->nimages; i++) image[i] = (HtmlImage){r->input[i], r->file[i], r->view[i], r->id[i]};
    char note[ASKED + 1][640];
    const char *notes[ASKED + 1];
    int n = 0;
    for (int k = 0; k <= ASKED; k++) notes[k] = note[k];
    for (int k = 0; k < ASKED; k++)
        if (k == LISTS ? !!r->lists.lists : !!r->module[k]) snprintf(note[n++], sizeof note[0], "%s: %s", asked_names[k], r->o.asked[k]);
    if (o->strict) snprintf(note[n++], sizeof note[0], "strict dialect: half-open boxes, crops as written");
    return html_open(&r->html, o->trace, image, r->nimages, notes, n, e);
}

static const char *plural(int64_t n, const char *ending) { return n == 1 ? "" : ending; }

/* "84 steps asked modules, in 2 waves: VQA 31 questions in 2 batches, ..." */
static void tell_batches(Runner *r) {
    char *out = r->html.summary;
    const size_t size = sizeof r->html.summary;
    size_t at = (size_t)snprintf(out, size, "%" PRId64 " step%s asked modules, in %" PRId64 " wave%s", r->steps, plural(r->steps, "s"), r->waves, plural(r->waves, "s"));
    const char *between = ":";
    for (int k = 0; k < NETWORKS; k++) {
        const Module *m = r->module[k];
        if (!m) continue;
        at += (size_t)snprintf(out + at, size - at, "%s %s %" PRId64 " question%s in %" PRId64 " batch%s", between, asked_names[k], m->asks, plural(m->asks, "s"), m->forwards,
                               plural(m->forwards, "es"));
        between = ",";
    }
}

static bool close_json(Runner *r, Error *e) {
    FILE *f = r->json;
    r->json = NULL;
    if (!f) return true;
    bool ok = !fflush(f) && !ferror(f);
    ok = !fclose(f) && ok;
    return ok ? true : fail_as(e, FAIL_DISK, "%s: cannot write: %s", r->o.json, strerror(errno));
}

/* Writes the result of program `number` when a step made it: PREFIX-1.png. PREFIX is --images, else the page's name or the
 * JSON file's without its ending. */
static bool write_result(Runner *r, Item *p, int64_t number, Error *e) {
    const Options *o = &r->o;
    const Value *v = p->result ? program_result(&p->prog, p->job.vars) : NULL;
    if (!v || v->kind != VAL_IMAGE || !image_is_made(v->image.id)) return true;
    const char *name = o->images ? o->images : o->trace ? o->trace : o->json;
    char *said = p->result + strlen(p->result);
    const size_t left = RESULT_TEXT - strlen(p->result);
    if (!name) {
        snprintf(said, left, " (--images PREFIX writes it to a file)");
        return true;
    }
    const char *dot = o->images ? NULL : strrchr(name, '.'), *slash = strrchr(name, '/');
    const int n = dot && (!slash || dot > slash + 1) ? (int)(dot - name) : (int)strlen(name);
    char path[900];
    if (snprintf(path, sizeof path, "%.*s-%" PRId64 ".png", n, name, number + 1) >= (int)sizeof path) return fail_as(e, FAIL_DISK, "%s: path too long", name);
    snprintf(said, left, ": %s", path);
    p->image = arena_strdup(&r->run.host, path, strlen(path));
    return png_write(path, v->image.pixels, v->image.rect, e);
}

static bool run_all(Runner *r, Error *e) {
    Item *p = xcalloc(CHUNK, sizeof *p);
    for (int64_t at = 0; at < r->nblocks; at += CHUNK) {
        const int n = (int)MIN(CHUNK, r->nblocks - at);
        run_chunk(r, p, r->block + at, n);
        for (int i = 0; i < n; i++) {
            if (!write_result(r, &p[i], at + i, e)) {
                free(p);
                return false;
            }
            if (p[i].result) printf("%s\n", p[i].result);
            else printf("error: %s\n", p[i].error);
            if (r->json) write_json(r, &p[i], at + i);
            if (r->html.f) write_html(r, &p[i]);
        }
    }
    free(p);
    if (fflush(stdout)) return fail_as(e, FAIL_DISK, "cannot write to the standard output: %s", strerror(errno));
    return true;
}

static Status run(Args *a, Error *e) {
    Runner *r = xcalloc(1, sizeof *r);
    bool ok = read_options(&r->o, a, e);
    if (ok) {
        for (int i = 0; i < IMAGES; i++) {
            if (!r->o.image[i]) continue;
            r->file[r->nimages] = r->o.image[i];
            r->input[r->nimages++] = image_names[i];
        }
        r->dialect = (Dialect){.kinds = step_kinds, .nkinds = nstep_kinds, .inputs = r->input, .ninputs = r->nimages, .strict = r->o.strict};
        ok = run_open(&r->run, &a->cfg, e) && read_programs(r, e) && read_images(r, e) && open_modules(r, e) && open_outputs(r, e) && run_all(r, e);
        Error *left = ok ? e : NULL; /* the first sentence stays */
        tell_batches(r);
        ok = html_close(&r->html, left) && ok;
        ok = close_json(r, ok ? e : NULL) && ok;
        if (ok && r->failed) ok = fail_as(e, r->status, "%" PRId64 " of %" PRId64 " programs failed", r->failed, r->nblocks);
        sched_close(&r->sched);
        for (int k = 0; k < NETWORKS; k++) module_close(r->module[k]);
        lists_close(&r->lists);
        arena_close(&r->pixels);
        run_close(&r->run);
        free(r->text);
        free(r->block);
    }
    free(r);
    return verb_status(ok, e);
}

const Verb verb_run = {
    .name = "run",
    .usage = "[--image photo.jpg] [--left a.jpg --right b.jpg] --program FILE [--option ...] [config.yaml] [section.key=value ...]",
    .summary = "runs a program, or a file of programs, on an image and shows each step",
    .help = "  --image FILE            the image that programs call IMAGE\n"
            "  --left FILE --right FILE   a pair: LEFT and RIGHT; programs on them say True or False, others yes or no\n"
            "  --program FILE          programs, with empty lines between them; - is the standard input. A comment (#) before a\n"
            "                          program's first step is taken for its question\n"
            "  --vqa FOLDER, --loc FOLDER, --clip FOLDER  the modules; model.vqa, model.loc, model.clip when not given\n"
            "  --lists FILE.json       what LIST knows: {\"garden birds\": [\"robin\", \"wren\"]}\n"
            "  --trace FILE.html       a page with each step's crop, boxes and answer\n"
            "  --json FILE.jsonl       the same as one JSON object per program\n"
            "  --images PREFIX         results that are images go to PREFIX-1.png (of the first program), ...; when not given, beside\n"
            "                          the page or the JSON file\n"
            "  --strict                half-open boxes and crops as written, instead of the reference's arithmetic\n\n"
            "Prints one line per program: its result, or \"error: \" and the sentence. A program that fails does not stop the\n"
            "others; the exit status is then that of the first one's failure (4: the program, 5: a model).\n",
    .sections = {"run", "model"},
    .run = run,
};
