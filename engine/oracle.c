/* oracle.c -- reading questions and answering them from a graph. See oracle.h. */
#include "engine/oracle.h"

#include "engine/teacher.h" /* rect_iou */

const char *const oracle_form_names[ORACLE_FORMS] = {"color", "pattern", "size", "name", "relation", "exist", "count"};

/* ---- phrases -------------------------------------------------------------------------------------- */

/* A piece of somebody's text. */
typedef struct Span { const char *s; int n; } Span;

/* "ball", or with `plural` also "balls", "boxes". (What has a plural of its own, "fish", is the same word.) */
static bool is_name(Span t, const char *name, bool plural) {
    int n = (int)strlen(name), more = t.n - n;
    if (more < 0 || memcmp(t.s, name, (size_t)n)) return false;
    return more == 0 || (plural && ((more == 1 && t.s[n] == 's') || (more == 2 && !memcmp(t.s + n, "es", 2))));
}

/* Whether the words of t are attributes of the object; one attribute may be several words ("dark blue"). */
static bool has_attributes(const GraphObject *o, Span t) {
    if (!t.n) return true;
    for (int k = 0; k < o->nattributes; k++) {
        int n = (int)strlen(o->attribute[k]);
        if (n > t.n || memcmp(t.s, o->attribute[k], (size_t)n)) continue;
        if (n == t.n) return true;
        if (t.s[n] == ' ' && has_attributes(o, (Span){t.s + n + 1, t.n - n - 1})) return true;
    }
    return false;
}

/* "red ball" names a ball that is red: the name is the end of the phrase, any words before it are attributes. */
static bool matches(const GraphObject *o, Span t, bool plural) {
    if (is_name(t, o->name, plural)) return true;
    for (int i = 1; i < t.n - 1; i++)
        if (t.s[i] == ' ' && is_name((Span){t.s + i + 1, t.n - i - 1}, o->name, plural) && has_attributes(o, (Span){t.s, i})) return true;
    return false;
}

/* ---- rectangles ----------------------------------------------------------------------------------- */

static Rect cut(Rect a, Rect b) { return (Rect){MAX(a.x0, b.x0), MAX(a.y0, b.y0), MIN(a.x1, b.x1), MIN(a.y1, b.y1)}; }

/* Visible area in r; 0 when it does not reach into it. */
static int64_t area_in(const GraphObject *o, Rect r) {
    Rect c = cut(o->box, r);
    return rect_w(c) > 0 && rect_h(c) > 0 ? (int64_t)rect_w(c) * rect_h(c) : 0;
}

static bool seen_in(const GraphObject *o, Rect r) {
    double whole = (double)rect_w(o->box) * rect_h(o->box);
    return whole > 0 && (double)area_in(o, r) >= (double)ORACLE_SEEN * whole;
}

/* The object that a question about "the X" means: the one that shows most. */
static const GraphObject *most_visible(const SceneGraph *g, Span phrase, Rect r) {
    const GraphObject *best = NULL;
    for (int i = 0; i < g->nobjects; i++) {
        const GraphObject *o = &g->object[i];
        if (matches(o, phrase, false) && area_in(o, r) > (best ? area_in(best, r) : 0)) best = o;
    }
    return best;
}

/* ---- questions ------------------------------------------------------------------------------------ */

/* Which attributes answer "what color", "what pattern", "what size": GQA's values with the built-in dataset's. */
static const char *const colors[] = {"red", "yellow", "green", "blue", "purple", "brown", "white", "black", "silver", "gold", "khaki", "gray",
                                     "dark", "pink", "dark blue", "dark brown", "tan", "orange", "beige", "blond", "brunette", "maroon",
                                     "light blue", "light brown", NULL};
static const char *const patterns[] = {"solid", "striped", "dotted", "checkered", "spotted", "plaid", "floral", NULL};
static const char *const sizes[] = {"small", "large", "little", "tiny", "big", "huge", "giant", NULL};
static const char *const *const attribute_values[] = {colors, patterns, sizes};

static const char *attribute_of(const GraphObject *o, OracleForm form) {
    for (int k = 0; k < o->nattributes; k++)
        for (const char *const *v = attribute_values[form]; *v; v++)
            if (!strcmp(o->attribute[k], *v)) return o->attribute[k];
    return NULL;
}

typedef enum Side { SIDE_NONE, TO_LEFT, TO_RIGHT, ABOVE, BELOW } Side;

/* The forms: text before the phrase and after it. The first that fits is it. */
static const struct {
    const char *before, *after;
    OracleForm form;
    Side side;
} forms[] = {
    {"What color is the ", "?", FORM_COLOR, SIDE_NONE},
    {"What pattern is on the ", "?", FORM_PATTERN, SIDE_NONE},
    {"What size is the ", "?", FORM_SIZE, SIDE_NONE},
    {"What is this?", "", FORM_NAME, SIDE_NONE},
    {"What is to the left of the ", "?", FORM_RELATION, TO_LEFT},
    {"What is to the right of the ", "?", FORM_RELATION, TO_RIGHT},
    {"What is above the ", "?", FORM_RELATION, ABOVE},
    {"What is below the ", "?", FORM_RELATION, BELOW},
    {"Is there a ", " in the image?", FORM_EXIST, SIDE_NONE},
    {"Is there an ", " in the image?", FORM_EXIST, SIDE_NONE},
    {"Is there a ", "?", FORM_EXIST, SIDE_NONE},
    {"Is there an ", "?", FORM_EXIST, SIDE_NONE},
    {"Do you see a ", "?", FORM_EXIST, SIDE_NONE},
    {"Do you see an ", "?", FORM_EXIST, SIDE_NONE},
    {"How many ", " are in the image?", FORM_COUNT, SIDE_NONE},
    {"How many ", " are there?", FORM_COUNT, SIDE_NONE},
};

static int read_form(const char *question, Span *phrase) {
    size_t n = strlen(question);
    for (int k = 0; k < COUNT_OF(forms); k++) {
        size_t b = strlen(forms[k].before), a = strlen(forms[k].after);
        bool empty = !*forms[k].after; /* the whole question is the form */
        if (n < a + b + !empty || (empty && n != b) || memcmp(question, forms[k].before, b) || strcmp(question + n - a, forms[k].after)) continue;
        *phrase = (Span){question + b, (int)(n - a - b)};
        return k;
    }
    return -1;
}

/* Wholly on that side of the middle of the anchor: there the reference's CROP_LEFTOF and its kin cut. */
static bool beyond(const GraphObject *o, const GraphObject *anchor, Side side) {
    int64_t cx2 = (int64_t)anchor->box.x0 + anchor->box.x1, cy2 = (int64_t)anchor->box.y0 + anchor->box.y1;
    switch (side) {
    case TO_LEFT: return 2 * (int64_t)o->box.x1 <= cx2;
    case TO_RIGHT: return 2 * (int64_t)o->box.x0 >= cx2;
    case ABOVE: return 2 * (int64_t)o->box.y1 <= cy2;
    default: return 2 * (int64_t)o->box.y0 >= cy2;
    }
}

static const char *number_text(int n) {
    static const char *const text[] = {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16", "17",
                                       "18", "19", "20"};
    return n < COUNT_OF(text) ? text[n] : NULL;
}

OracleVerdict oracle_vqa(const SceneGraph *g, Rect r, const char *question, const char **answer, OracleForm *form) {
    Span t;
    int k = read_form(question, &t), count = 0;
    const GraphObject *o = NULL;
    *answer = NULL;
    *form = k < 0 ? FORM_UNREAD : forms[k].form;
    switch (*form) {
    case FORM_COLOR:
    case FORM_PATTERN:
    case FORM_SIZE:
        if (!(o = most_visible(g, t, r))) return ORACLE_ABSENT;
        *answer = attribute_of(o, *form);
        break;
    case FORM_NAME:
        for (int i = 0; i < g->nobjects; i++)
            if (area_in(&g->object[i], r) > (o ? area_in(o, r) : 0)) o = &g->object[i];
        if (!o) return ORACLE_ABSENT;
        *answer = o->name;
        break;
    case FORM_RELATION: {
        const GraphObject *anchor = most_visible(g, t, (Rect){0, 0, g->w, g->h});
        for (int i = 0; anchor && i < g->nobjects; i++)
            if (&g->object[i] != anchor && seen_in(&g->object[i], r) && beyond(&g->object[i], anchor, forms[k].side)) {
                o = &g->object[i];
                count++;
            }
        if (count != 1) return ORACLE_ABSENT;
        *answer = o->name;
        break;
    }
    case FORM_EXIST:
    case FORM_COUNT:
        for (int i = 0; i < g->nobjects; i++) count += matches(&g->object[i], t, *form == FORM_COUNT) && seen_in(&g->object[i], r);
        *answer = *form == FORM_COUNT ? number_text(count) : count ? "yes" : "no";
        break;
    case FORM_UNREAD: break;
    }
    return *answer ? ORACLE_KNOWS : ORACLE_UNREAD;
}

Boxes *oracle_loc(const SceneGraph *g, Rect r, const char *phrase, bool strict, Arena *a) {
    Boxes *b = boxes_new(a, MIN(g->nobjects, BOXES_MAX), r);
    int64_t *area = arena_alloc(a, (size_t)MAX(g->nobjects, 1) * sizeof *area);
    int n = 0, last = strict ? 0 : 1, W = rect_w(r), H = rect_h(r);
    Span t = {phrase, (int)strlen(phrase)};
    for (int i = 0; i < g->nobjects && n < BOXES_MAX; i++) {
        const GraphObject *o = &g->object[i];
        if (!matches(o, t, false) || !seen_in(o, r)) continue;
        int at = n++; /* insertion sort: the largest first, of equals the first in the graph */
        for (; at && area[at - 1] < area_in(o, r); at--) {
            area[at] = area[at - 1];
            b->box[at] = b->box[at - 1];
        }
        area[at] = area_in(o, r);
        Rect in = cut(o->box, r);
        b->box[at] = (Box){{in.x0 - r.x0, in.y0 - r.y0, MIN(in.x1 - r.x0, W - last), MIN(in.y1 - r.y0, H - last)}, 1, -1};
    }
    b->n = n;
    return b;
}

/* ---- the answerer --------------------------------------------------------------------------------- */

/* Of the question's image; NULL when that has none: not in the dataset, or drawn by a step. */
static const SceneGraph *graph_of(const SceneGraphs *g, const Ask *ask) {
    return image_is_made(ask->image_id) ? NULL : scenegraphs_find(g, (int)ask->image_id);
}

static void oracle_answer(Answerer *self, Ctx *c, const Ask *ask, int64_t n, Answer *answer, Arena *a) {
    OracleAnswerer *o = (OracleAnswerer *)self;
    bool loc = !strcmp(self->module, "LOC");
    int64_t *open = arena_alloc(a, (size_t)n * sizeof *open), nopen = 0;
    for (int64_t i = 0; i < n; i++) {
        const SceneGraph *g = graph_of(o->graphs, &ask[i]);
        const char *text;
        OracleForm form;
        if (g && loc) answer[i].value = value_boxes(oracle_loc(g, ask[i].rect, ask[i].query, o->strict, a));
        else if (g && oracle_vqa(g, ask[i].rect, ask[i].query, &text, &form) == ORACLE_KNOWS) answer[i].value = value_str(text, (int)strlen(text));
        else open[nopen++] = i;
    }
    o->asked += n;
    o->fell_back += nopen;
    if (!nopen) return;
    if (!o->fallback) {
        for (int64_t k = 0; k < nopen; k++) answer[open[k]].value = loc ? value_boxes(boxes_new(a, 0, ask[open[k]].rect)) : value_str("unknown", 7);
        return;
    }
    Ask *rest = arena_alloc(a, (size_t)nopen * sizeof *rest);
    Answer *said = arena_zalloc(a, (size_t)nopen * sizeof *said);
    for (int64_t k = 0; k < nopen; k++) rest[k] = ask[open[k]];
    o->fallback->answer(o->fallback, c, rest, nopen, said, a);
    for (int64_t k = 0; k < nopen; k++) answer[open[k]] = said[k];
}

void oracle_answerer(OracleAnswerer *o, const char *step, const SceneGraphs *graphs, Answerer *fallback, bool strict) {
    *o = (OracleAnswerer){{step, fallback ? fallback->max_batch : 0, oracle_answer}, graphs, fallback, strict, 0, 0};
}

/* ---- steps ---------------------------------------------------------------------------------------- */

/* Boxes matched one to one, best first, each with the free object that it covers best. first: whether box 0 has one. */
static int match_boxes(const Boxes *got, const Boxes *want, bool *first) {
    bool taken[BOXES_MAX] = {false};
    int matched = 0;
    *first = false;
    for (int i = 0; i < got->n; i++) {
        int best = -1;
        float iou = 0.5f;
        for (int k = 0; k < want->n; k++) {
            float x = rect_iou(got->box[i].rect, want->box[k].rect);
            if (!taken[k] && x >= iou) {
                best = k;
                iou = x;
            }
        }
        if (best < 0) continue;
        taken[best] = true;
        matched++;
        if (!i) *first = true;
    }
    return matched;
}

static void score_vqa(StepScore *s, const SceneGraph *g, const Ask *ask, const Value *got) {
    const char *want;
    OracleForm form;
    OracleVerdict v = oracle_vqa(g, ask->rect, ask->query, &want, &form);
    if (v != ORACLE_KNOWS) {
        s->vqa_absent += v == ORACLE_ABSENT;
        s->vqa_unread += v == ORACLE_UNREAD;
        return;
    }
    bool right = got->kind == VAL_STR && (size_t)got->str.n == strlen(want) && !memcmp(got->str.s, want, (size_t)got->str.n);
    s->vqa_n++;
    s->vqa_right += right;
    s->vqa[form].n++;
    s->vqa[form].right += right;
}

static void score_loc(StepScore *s, const SceneGraph *g, const Ask *ask, const Boxes *got, bool strict, Arena *scratch) {
    const Boxes *want = oracle_loc(g, ask->rect, ask->query, strict, scratch);
    bool first;
    int matched = match_boxes(got, want, &first), sum = got->n + want->n;
    s->loc_n++;
    s->boxes += got->n;
    s->objects += want->n;
    s->matched += matched;
    s->loc_f1 += sum ? 2.0 * matched / sum : 1;
    s->loc_count_right += got->n == want->n;
    s->loc_first_right += got->n ? first : !want->n;
}

void step_score_add(StepScore *s, const SceneGraphs *graphs, const EvalBatch *b, Arena *scratch) {
    for (int64_t k = 0; k < b->sched->nrecords; k++) {
        const StepRecord *rec = &b->sched->record[k];
        const Question *q = &b->sched->question[rec->question];
        const SceneGraph *g = graph_of(graphs, &q->ask);
        if (!g) continue;
        size_t mark = arena_mark(scratch);
        if (q->answer.value.kind == VAL_BOXES) score_loc(s, g, &q->ask, q->answer.value.boxes, b->job[rec->job].prog->strict, scratch);
        else score_vqa(s, g, &q->ask, &q->answer.value);
        arena_reset(scratch, mark);
    }
}

/* ---- blame ---------------------------------------------------------------------------------------- */

const char *const blame_names[BLAME_CASES] = {"programs", "true LOC", "true VQA", "both true"};

typedef struct Scoring { StepScore *score; const SceneGraphs *graphs; Arena *scratch; } Scoring;

static void add_scores(void *arg, const EvalBatch *b) {
    Scoring *s = arg;
    step_score_add(s->score, s->graphs, b, s->scratch);
}

bool eval_blame(Run *r, Answerer *vqa, Answerer *loc, const Dataset *d, const SceneGraphs *g, const EvalConfig *cfg, Blame *out,
                Error *e) {
    CHECK(!cfg->seen, "eval_blame uses the callback itself");
    *out = (Blame){0};
    for (int k = 0; k < BLAME_CASES; k++) {
        OracleAnswerer true_vqa, true_loc;
        oracle_answerer(&true_vqa, "VQA", g, vqa, cfg->dialect->strict);
        oracle_answerer(&true_loc, "LOC", g, loc, cfg->dialect->strict);
        Answerer *answerer[2], *v = k == BLAME_VQA || k == BLAME_BOTH ? &true_vqa.base : vqa;
        Answerer *l = k == BLAME_LOC || k == BLAME_BOTH ? &true_loc.base : loc;
        int n = 0;
        if (v) answerer[n++] = v;
        if (l) answerer[n++] = l;
        EvalConfig ec = *cfg;
        Scoring scoring = {&out->steps, g, &r->host};
        if (k == BLAME_NONE) {
            ec.seen = add_scores;
            ec.arg = &scoring;
        }
        if (!eval_programs(r, answerer, n, d, &ec, &out->result[k], e)) return fail_in(e, "%s", blame_names[k]);
        out->fell_back[k] = true_vqa.fell_back + true_loc.fell_back;
    }
    return true;
}

void blame_print(FILE *f, const Blame *b) {
    const StepScore *s = &b->steps;
    fprintf(f, "\nthe programs' own steps, against the scene graph on the same rectangles\n");
    fprintf(f, "%-20s %9s %9s\n", "", "steps", "right");
    if (s->vqa_n + s->vqa_absent + s->vqa_unread) {
        fprintf(f, "%-20s %9" PRId64 " %8.1f%%   (%" PRId64 " more: what they ask about is not in the crop; %" PRId64 ": the graph does not say)\n",
                "VQA", s->vqa_n, percent(s->vqa_right, s->vqa_n), s->vqa_absent, s->vqa_unread);
        for (int k = 0; k < ORACLE_FORMS; k++)
            if (s->vqa[k].n) fprintf(f, "  %-18s %9" PRId64 " %8.1f%%\n", oracle_form_names[k], s->vqa[k].n, percent(s->vqa[k].right, s->vqa[k].n));
    }
    if (s->loc_n) {
        double n = (double)s->loc_n;
        fprintf(f, "%-20s %9" PRId64 " %8.1f%%   F1 at IoU 0.5, mean over the steps\n", "LOC", s->loc_n, 100 * s->loc_f1 / n);
        fprintf(f, "  %-18s %9s %8.1f%%\n  %-18s %9s %8.1f%%\n", "first box", "", percent(s->loc_first_right, s->loc_n), "number of boxes", "",
                percent(s->loc_count_right, s->loc_n));
        fprintf(f, "  %-18s %9" PRId64 " %8.1f%%\n  %-18s %9" PRId64 " %8.1f%%\n", "precision", s->boxes, percent(s->matched, s->boxes), "recall",
                s->objects, percent(s->matched, s->objects));
    }
    if (b->fell_back[BLAME_BOTH])
        fprintf(f, "(with both true, %" PRId64 " distinct questions were left to the students: the graph does not answer them)\n", b->fell_back[BLAME_BOTH]);
}

json_t *blame_json(const Blame *b) {
    const StepScore *s = &b->steps;
    json_t *o = json_object(), *forms_json = json_object();
    for (int k = 1; k < BLAME_CASES; k++) {
        static const char *const key[] = {"programs", "true_loc", "true_vqa", "both_true"};
        json_t *one = eval_json(&b->result[k]);
        json_object_set_new(one, "fell_back", json_integer(b->fell_back[k]));
        json_object_set_new(o, key[k], one);
    }
    for (int k = 0; k < ORACLE_FORMS; k++)
        if (s->vqa[k].n)
            json_object_set_new(forms_json, oracle_form_names[k], json_pack("{s:f,s:I}", "accuracy", percent(s->vqa[k].right, s->vqa[k].n), "n",
                                                                            (json_int_t)s->vqa[k].n));
    json_t *vqa = json_pack("{s:f,s:I,s:I,s:I,s:o}", "accuracy", percent(s->vqa_right, s->vqa_n), "n", (json_int_t)s->vqa_n, "absent",
                            (json_int_t)s->vqa_absent, "unread", (json_int_t)s->vqa_unread, "forms", forms_json);
    json_t *loc = json_pack("{s:f,s:I,s:f,s:f,s:f,s:f}", "f1", s->loc_n ? 100 * s->loc_f1 / (double)s->loc_n : 0.0, "n", (json_int_t)s->loc_n,
                            "first_box", percent(s->loc_first_right, s->loc_n), "count", percent(s->loc_count_right, s->loc_n), "precision",
                            percent(s->matched, s->boxes), "recall", percent(s->matched, s->objects));
    json_object_set_new(o, "steps", json_pack("{s:o,s:o}", "VQA", vqa, "LOC", loc));
    return o;
}
