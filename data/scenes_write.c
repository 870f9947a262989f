/* scenes_write.c -- the built-in dataset as files: JPEG images, GQA's JSON, NLVR2's JSON lines, labelled
 * steps.
 *
 * Images are independent, so a block of them is rendered and described by all threads, each into its own
 * text, and the texts are written in order: the bytes do not depend on the number of threads. dataset.json
 * comes last and says that the folder is complete. What is asked: scenes_ask.c.
 */
#include "data/scenes.h"
#include "data/jpeg.h"
#include <errno.h>
#include <jansson.h>
#include <omp.h>
#include <unistd.h>

enum { BLOCK = 512, MAX_QUESTIONS = 32, MAX_STEPS = 64, MAX_STATEMENTS = 16 };

void scenes_config_default(ScenesConfig *c) {
    *c = (ScenesConfig){.seed = 1,
                        .domain = SCENE_HARD,
                        .images = {2000, 400, 400},
                        .questions_per_image = 8,
                        .steps_per_image = 0,
                        .statements_per_pair = 2};
}

void scenes_image(Scene *s, const ScenesConfig *c, int split, int64_t index, bool *curriculum) {
    SceneRng r = scene_rng(c->seed, split, c->domain, index, RNG_CURRICULUM);
    const float x = rng_unit(&r);
    const bool single = x < c->single_fraction, few = !single && x < c->single_fraction + c->few_fraction;
    scene_make(s, c->seed, split, c->domain, index,
               single ? 1
               : few  ? 2
                      : 3,
               single ? 1
               : few  ? 3
                      : SCENE_MAX_OBJECTS);
    if (curriculum) *curriculum = single || few;
}

static void image_id(char *out, size_t n, const Scene *s) {
    snprintf(out, n, "%s_%s_%07" PRId64, scene_domain_names[s->domain], scene_split_names[s->split],
             s->index);
}

/* --- JSON of one image
 * ---------------------------------------------------------------------------------------- */

static json_t *text(const char *s) { return json_string(s); }
static json_t *rect_json(Rect r) { return json_pack("[iiii]", r.x0, r.y0, r.x1, r.y1); }

static json_t *question_json(const SceneQuestion *q, const char *image) {
    json_t *semantic = json_array(), *refs = json_object();
    char str[1024] = "", id[16], slice[32];
    size_t at = 0;
    for (int i = 0; i < q->nops; i++) {
        const SceneOp *o = &q->op[i];
        json_t *deps = json_array();
        char list[16] = "";
        for (int k = 0; k < o->ndeps; k++) {
            json_array_append_new(deps, json_integer(o->dep[k]));
            snprintf(list + strlen(list), sizeof list - strlen(list), k ? ",%d" : "%d", o->dep[k]);
        }
        json_array_append_new(semantic, json_pack("{s:s,s:o,s:s}", "operation", o->operation, "dependencies",
                                                  deps, "argument", o->argument));
        /* GQA's own form: "select: ball (2)->query: color [0]" */
        at += (size_t)snprintf(str + at, sizeof str - at, "%s%s: %s%s%s%s", i ? "->" : "", o->operation,
                               o->argument, o->ndeps ? " [" : "", list, o->ndeps ? "]" : "");
        CHECK(at < sizeof str, "semanticStr of %zu characters", at);
    }
    for (int i = 0; i < q->nrefs; i++) {
        const SceneRef *r = &q->ref[i];
        snprintf(id, sizeof id, "%d", r->object);
        if (r->word1 == r->word0 + 1)
            snprintf(slice, sizeof slice, "%d", r->word0);
        else
            snprintf(slice, sizeof slice, "%d:%d", r->word0, r->word1);
        json_object_set_new(refs, slice, text(id));
    }
    char local[64];
    snprintf(local, sizeof local, "%s-%s", q->detailed, q->op[q->nops - 1].argument);
    json_t *groups = json_object();
    json_object_set_new(groups, "global", q->group[0] ? text(q->group) : json_null());
    json_object_set_new(groups, "local", text(local));
    return json_pack("{s:s,s:s,s:s,s:s,s:b,s:o,s:[],s:[],s:{s:s,s:s,s:s},s:{s:o,s:{},s:{}},s:o,s:s,s:s,s:s}",
                     "question", q->question, "imageId", image, "answer", q->answer, "fullAnswer",
                     q->full_answer, "isBalanced", 1, "groups", groups, "entailed", "equivalent", "types",
                     "structural", q->structural, "semantic", q->semantic, "detailed", q->detailed,
                     "annotations", "question", refs, "answer", "fullAnswer", "semantic", semantic,
                     "semanticStr", str, "type", q->type, "program", q->program);
}

/* Object b is `name` object a when its box keeps to that side of a's centre: the rule of the questions,
 * without their margin. */
static const char *const relation_names[4] = {"to the left of", "to the right of", "above", "below"};
static bool related(const SceneObject *b, const SceneObject *a, int rel) {
    const int cx = (a->box.x0 + a->box.x1) / 2, cy = (a->box.y0 + a->box.y1) / 2;
    switch (rel) {
    case 0:
        return b->box.x1 <= cx;
    case 1:
        return b->box.x0 >= cx;
    case 2:
        return b->box.y1 <= cy;
    default:
        return b->box.y0 >= cy;
    }
}

static json_t *graph_json(const Scene *s) {
    json_t *objects = json_object();
    for (int i = 0; i < s->nobjects; i++) {
        const SceneObject *o = &s->obj[i];
        json_t *relations = json_array();
        char id[16];
        for (int k = 0; k < s->nobjects; k++)
            for (int rel = 0; rel < 4; rel++) {
                if (k == i || !related(o, &s->obj[k], rel)) continue;
                snprintf(id, sizeof id, "%d", k);
                json_array_append_new(relations,
                                      json_pack("{s:s,s:s}", "name", relation_names[rel], "object", id));
            }
        snprintf(id, sizeof id, "%d", i);
        json_object_set_new(objects, id,
                            json_pack("{s:s,s:i,s:i,s:i,s:i,s:[s,s,s],s:o}", "name",
                                      scene_category_names[o->category], "x", o->box.x0, "y", o->box.y0, "w",
                                      rect_w(o->box), "h", rect_h(o->box), "attributes",
                                      scene_color_names[o->color], scene_pattern_names[o->pattern],
                                      scene_size_names[o->size], "relations", relations));
    }
    return json_pack("{s:i,s:i,s:o}", "width", SCENE_W, "height", SCENE_H, "objects", objects);
}

static json_t *step_json(const SceneStep *st, const char *image) {
    if (!st->loc)
        return json_pack("{s:s,s:o,s:s,s:s,s:s}", "image", image, "rect", rect_json(st->rect), "module",
                         "VQA", "query", st->query, "answer", st->answer);
    json_t *boxes = json_array();
    for (int i = 0; i < st->nobj; i++) json_array_append_new(boxes, rect_json(st->box[i]));
    return json_pack("{s:s,s:o,s:s,s:s,s:o}", "image", image, "rect", rect_json(st->rect), "module", "LOC",
                     "query", st->query, "boxes", boxes);
}

/* --- texts of one image, in its thread
 * ------------------------------------------------------------------------ */

typedef struct Buf {
    char *s;
    int64_t n, cap;
} Buf;

static void buf_add(Buf *b, const char *s) {
    const int64_t n = (int64_t)strlen(s);
    GROW(b->s, b->cap, b->n + n + 1);
    memcpy(b->s + b->n, s, (size_t)n + 1);
    b->n += n;
}
/* Takes the reference to `o`. The key (NULL: none) makes it a member of an object, one per line. */
static void buf_json(Buf *b, const char *key, json_t *o) {
    CHECK(o, "a JSON value could not be built%s", "");
    char *s = json_dumps(o, JSON_COMPACT);
    CHECK(s, "a JSON value could not be written%s", "");
    if (key) buf_add(b, "\""), buf_add(b, key), buf_add(b, "\": ");
    buf_add(b, s);
    buf_add(b, key ? ",\n" : "\n");
    free(s);
    json_decref(o);
}

typedef struct Job { /* one image */
    Buf questions, graph, steps, nlvr;
    int64_t nquestions, nsteps, nstatements, yes;
    bool ok;
    Error e;
} Job;

/* Not synced to the disk one by one: dataset.json, written last, says that the run came to its end. */
static bool write_image(const char *dir, const char *id, const Scene *s, Error *e) {
    static _Thread_local uint8_t rgb[SCENE_BYTES];
    scene_render(s, rgb);
    const ImageView view = {.rgb = rgb, .w = SCENE_W, .h = SCENE_H};
    unsigned char *jpg;
    size_t size;
    char path[4096];
    if (!jpeg_encode(&view, scene_quality(s), &jpg, &size, e)) return false;
    snprintf(path, sizeof path, "%s/images/%s.jpg", dir, id);
    FILE *f = fopen(path, "wb");
    const bool ok = f && fwrite(jpg, 1, size, f) == size;
    const int err = errno;
    const bool closed = f && fclose(f) == 0;
    free(jpg);
    if (!ok || !closed) return fail_as(e, FAIL_DISK, "%s: %s", path, strerror(ok ? errno : err));
    return true;
}

static void describe_pair(Job *j, const ScenesConfig *c, const Scene *right, const char *right_id) {
    Scene left;
    bool curriculum;
    scenes_image(&left, c, right->split, right->index - 1, &curriculum);
    if (curriculum) return;
    SceneStatement st[MAX_STATEMENTS];
    char left_id[64], id[96], file[2][80];
    image_id(left_id, sizeof left_id, &left);
    snprintf(file[0], sizeof file[0], "%s.jpg", left_id);
    snprintf(file[1], sizeof file[1], "%s.jpg", right_id);
    SceneRng r = scene_rng(c->seed, right->split, c->domain, right->index, RNG_NLVR);
    const int n = scene_statements(&left, right, st, c->statements_per_pair, &r);
    for (int i = 0; i < n; i++) {
        snprintf(id, sizeof id, "%s-%" PRId64 "-0-%d", scene_split_names[right->split], right->index / 2, i);
        buf_json(&j->nlvr, NULL,
                 json_pack("{s:s,s:s,s:s,s:s,s:s,s:s,s:s}", "identifier", id, "sentence", st[i].sentence,
                           "label", st[i].label ? "True" : "False", "left", file[0], "right", file[1], "type",
                           st[i].type, "program", st[i].program));
    }
    j->nstatements = n;
}

static void do_image(Job *j, const char *dir, const ScenesConfig *c, int split, int64_t index) {
    Scene s;
    bool curriculum;
    char id[64], key[80], file[96];
    scenes_image(&s, c, split, index, &curriculum);
    image_id(id, sizeof id, &s);
    snprintf(file, sizeof file, "images/%s.jpg", id);
    if (!(j->ok = write_image(dir, id, &s, &j->e))) return;
    buf_json(&j->graph, id, graph_json(&s));
    if (c->steps_per_image) {
        SceneStep st[MAX_STEPS];
        SceneRng r = scene_rng(c->seed, split, c->domain, index, RNG_STEPS);
        j->nsteps = scene_steps(&s, st, c->steps_per_image, &r);
        for (int i = 0; i < j->nsteps; i++) buf_json(&j->steps, NULL, step_json(&st[i], file));
    }
    if (curriculum) return;
    SceneQuestion q[MAX_QUESTIONS];
    SceneRng r = scene_rng(c->seed, split, c->domain, index, RNG_ASK);
    j->nquestions = scene_questions(&s, q, c->questions_per_image, &r);
    for (int i = 0; i < j->nquestions; i++) {
        snprintf(key, sizeof key, "%s_%02d", id, i);
        buf_json(&j->questions, key, question_json(&q[i], id));
    }
    if (c->statements_per_pair && index % 2 == 1) describe_pair(j, c, &s, id);
}

/* --- files
 * ---------------------------------------------------------------------------------------------------- */

typedef struct Out {
    FILE *f;
    char path[4096], tmp[4128];
    bool object, any;
} Out;

static bool out_open(Out *o, const char *dir, const char *split, const char *what, bool object, Error *e) {
    *o = (Out){.object = object};
    if (snprintf(o->path, sizeof o->path, "%s/%s_%s", dir, split, what) >= (int)sizeof o->path)
        return fail_as(e, FAIL_DISK, "%s: the path is too long", dir);
    snprintf(o->tmp, sizeof o->tmp, "%s.tmp", o->path);
    if (!(o->f = fopen(o->tmp, "wb"))) return fail_as(e, FAIL_DISK, "%s: %s", o->tmp, strerror(errno));
    if (object) fputs("{\n", o->f);
    return true;
}
/* Members end with ",\n"; the last two bytes are held back so that the object can be closed properly. */
static void out_put(Out *o, Buf *b) {
    if (o->f && b->n) {
        if (o->object && o->any) fputs(",\n", o->f);
        fwrite(b->s, 1, (size_t)(b->n - (o->object ? 2 : 0)), o->f);
        o->any = true;
    }
    free(b->s);
    *b = (Buf){0};
}
static bool out_close(Out *o, bool keep, Error *e) {
    if (!o->f) return true;
    if (o->object) fputs(o->any ? "\n}\n" : "}\n", o->f);
    const bool good = !ferror(o->f) && fflush(o->f) == 0 && fsync(fileno(o->f)) == 0;
    const int err = errno;
    fclose(o->f);
    o->f = NULL;
    if (!keep) return unlink(o->tmp), true;
    if (!good) return unlink(o->tmp), fail_as(e, FAIL_DISK, "%s: %s", o->tmp, strerror(err));
    if (rename(o->tmp, o->path)) return fail_as(e, FAIL_DISK, "%s: %s", o->path, strerror(errno));
    return true;
}

typedef struct Counts {
    int64_t images, questions, statements, steps;
} Counts;

static bool write_split(const char *dir, const ScenesConfig *c, int split, Counts *n, Error *e) {
    const char *name = scene_split_names[split];
    Out questions = {0}, graphs = {0}, nlvr = {0}, steps = {0};
    bool ok = out_open(&questions, dir, name, "questions.json", true, e) &&
              out_open(&graphs, dir, name, "sceneGraphs.json", true, e) &&
              out_open(&nlvr, dir, name, "nlvr.jsonl", false, e) &&
              (!c->steps_per_image || out_open(&steps, dir, name, "steps.jsonl", false, e));
    Job *job = xcalloc(BLOCK, sizeof *job);
    for (int64_t first = 0; ok && first < c->images[split]; first += BLOCK) {
        const int count = (int)MIN(BLOCK, c->images[split] - first);
        memset(job, 0, BLOCK * sizeof *job);
#pragma omp parallel for schedule(dynamic, 8) num_threads(c->threads > 0 ? c->threads : omp_get_max_threads())
        for (int i = 0; i < count; i++) do_image(&job[i], dir, c, split, first + i);
        for (int i = 0; i < count; i++) {
            if (ok && !job[i].ok) {
                if (e) *e = job[i].e;
                ok = false;
            }
            out_put(&questions, &job[i].questions);
            out_put(&graphs, &job[i].graph);
            out_put(&nlvr, &job[i].nlvr);
            out_put(&steps, &job[i].steps);
            n->questions += job[i].nquestions, n->statements += job[i].nstatements, n->steps += job[i].nsteps;
        }
        n->images += count;
    }
    free(job);
    ok = out_close(&questions, ok, e) && ok;
    ok = out_close(&graphs, ok, e) && ok;
    ok = out_close(&nlvr, ok, e) && ok;
    return out_close(&steps, ok, e) && ok;
}

static json_t *names_json(const char *const *names, int n) {
    json_t *a = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(a, text(names[i]));
    return a;
}

static bool write_summary(const char *dir, const ScenesConfig *c, const Counts n[SCENE_SPLITS], Error *e) {
    json_t *splits = json_object();
    for (int k = 0; k < SCENE_SPLITS; k++)
        json_object_set_new(splits, scene_split_names[k],
                            json_pack("{s:I,s:I,s:I,s:I}", "images", (json_int_t)n[k].images, "questions",
                                      (json_int_t)n[k].questions, "statements", (json_int_t)n[k].statements,
                                      "steps", (json_int_t)n[k].steps));
    char seed[24];
    snprintf(seed, sizeof seed, "%" PRIu64, c->seed); /* a string: JSON numbers end at 2^53 */
    json_t *o = json_pack(
        "{s:s,s:s,s:s,s:s,s:i,s:i,s:i,s:i,s:i,s:f,s:f,s:o,s:o,s:o,s:o,s:o}", "name", "scenes", "version",
        SCENES_VERSION, "seed", seed, "domain", scene_domain_names[c->domain], "width", SCENE_W, "height",
        SCENE_H, "questions_per_image", c->questions_per_image, "steps_per_image", c->steps_per_image,
        "statements_per_pair", c->statements_per_pair, "single_fraction", (double)c->single_fraction,
        "few_fraction", (double)c->few_fraction, "splits", splits, "categories",
        names_json(scene_category_names, SCENE_CATEGORIES), "colors",
        names_json(scene_color_names, SCENE_COLORS), "patterns",
        names_json(scene_pattern_names, SCENE_PATTERNS), "sizes", names_json(scene_size_names, SCENE_SIZES));
    CHECK(o, "dataset.json could not be built%s", "");
    char *s = json_dumps(o, JSON_INDENT(1));
    char path[4096];
    const bool ok =
        path_join(path, sizeof path, dir, "dataset.json", e) && file_write_atomic(path, s, strlen(s), e);
    free(s);
    json_decref(o);
    return ok;
}

bool scenes_write(const char *dir, const ScenesConfig *c, Error *e) {
    CHECK(c->domain >= 0 && c->domain < SCENE_DOMAINS, "domain %d", c->domain);
    CHECK(c->questions_per_image >= 0 && c->questions_per_image <= MAX_QUESTIONS, "questions_per_image %d",
          c->questions_per_image);
    CHECK(c->steps_per_image >= 0 && c->steps_per_image <= MAX_STEPS, "steps_per_image %d",
          c->steps_per_image);
    CHECK(c->statements_per_pair >= 0 && c->statements_per_pair <= MAX_STATEMENTS, "statements_per_pair %d",
          c->statements_per_pair);
    char path[4096];
    if (!path_join(path, sizeof path, dir, "images", e) || !make_dirs(path, e)) return false;
    if (!path_join(path, sizeof path, dir, "dataset.json", e)) return false;
    if (unlink(path) && errno != ENOENT)
        return fail_as(e, FAIL_DISK, "%s: %s", path, strerror(errno)); /* incomplete until the end */
    json_object_seed(1); /* once, before threads; the order of members is that of insertion anyway */
    Counts n[SCENE_SPLITS] = {0};
    for (int k = 0; k < SCENE_SPLITS; k++)
        if (!write_split(dir, c, k, &n[k], e)) return fail_in(e, "writing the scenes dataset");
    return write_summary(dir, c, n, e);
}
