/* test_scenes.c -- the built-in dataset: determinism, layout, and the truth of everything it says.
 *
 * The oracle below answers LOC and VQA from the scene graph and runs programs by the reference semantics; it
 * shares no code with scenes_ask.c. A question is right when its program, run by the oracle, gives its
 * answer.
 */
#include "data/jpeg.h"
#include "data/scenes.h"
#include "tests/test.h"
#include <ctype.h>
#include <jansson.h>

/* --- a phrase, read back from its words
 * ---------------------------------------------------------------------- */

typedef struct Noun {
    int category, color, pattern;
} Noun;

static bool read_noun(const char *text, Noun *n) {
    char copy[128];
    snprintf(copy, sizeof copy, "%s", text);
    *n = (Noun){-1, -1, -1};
    for (char *w = strtok(copy, " "); w; w = strtok(NULL, " ")) {
        bool known = !strcmp(w, "a") || !strcmp(w, "an") || !strcmp(w, "the");
        for (int i = 0; i < SCENE_CATEGORIES; i++)
            if (!strcmp(w, scene_category_names[i]) || !strcmp(w, scene_category_plurals[i]))
                n->category = i, known = true;
        for (int i = 0; i < SCENE_COLORS; i++)
            if (!strcmp(w, scene_color_names[i])) n->color = i, known = true;
        for (int i = 0; i < SCENE_PATTERNS; i++)
            if (!strcmp(w, scene_pattern_names[i])) n->pattern = i, known = true;
        if (!known) return false;
    }
    return n->category >= 0;
}
static bool is_a(const SceneObject *o, Noun n) {
    return o->category == n.category && (n.color < 0 || n.color == o->color) &&
           (n.pattern < 0 || n.pattern == o->pattern);
}
static int area_in(const SceneObject *o, Rect r) {
    const int w = MIN(o->box.x1, r.x1) - MAX(o->box.x0, r.x0),
              h = MIN(o->box.y1, r.y1) - MAX(o->box.y0, r.y0);
    return w > 0 && h > 0 ? w * h : 0;
}
static bool seen_in(const SceneObject *o, Rect r) {
    return 2 * area_in(o, r) >= rect_w(o->box) * rect_h(o->box);
}

/* --- oracle modules
 * ------------------------------------------------------------------------------------------- */

/* text = before + middle + after: copies the middle. */
static bool between(const char *text, const char *before, const char *after, char *middle) {
    const size_t n = strlen(text), b = strlen(before), a = strlen(after);
    if (n < a + b || strncmp(text, before, b) || strcmp(text + n - a, after)) return false;
    memcpy(middle, text + b, n - a - b);
    middle[n - a - b] = 0;
    return true;
}

static const SceneObject *largest(const Scene *s, Noun n, Rect r) {
    const SceneObject *best = NULL;
    for (int i = 0; i < s->nobjects; i++)
        if (is_a(&s->obj[i], n) && area_in(&s->obj[i], r) &&
            (!best || area_in(&s->obj[i], r) > area_in(best, r)))
            best = &s->obj[i];
    return best;
}

static bool beyond(const SceneObject *o, const SceneObject *a,
                   int dir) { /* clearly on that side of the anchor's centre */
    const float x = a->box.x0 + rect_w(a->box) / 2.0f, y = a->box.y0 + rect_h(a->box) / 2.0f;
    const Rect b = o->box;
    return dir == 0   ? (float)b.x1 <= x
           : dir == 1 ? (float)b.x0 >= x
           : dir == 2 ? (float)b.y1 <= y
                      : (float)b.y0 >= y;
}

/* The truth about `question` on this part of the image; "?" when the oracle cannot read the question. */
static const char *oracle_vqa(const Scene *s, Rect r, const char *question) {
    static char number[16];
    static const char *const dirs[4] = {"to the left of", "to the right of", "above", "below"};
    char m[160], before[64];
    Noun n;
    const SceneObject *o = NULL;
    if (!strcmp(question, "What is this?")) {
        for (int i = 0; i < s->nobjects; i++)
            if (!o || area_in(&s->obj[i], r) > area_in(o, r)) o = &s->obj[i];
        return scene_category_names[o->category];
    }
    if (between(question, "What color is the ", "?", m) && read_noun(m, &n))
        return (o = largest(s, n, r)) ? scene_color_names[o->color] : "?";
    if (between(question, "What pattern is on the ", "?", m) && read_noun(m, &n))
        return (o = largest(s, n, r)) ? scene_pattern_names[o->pattern] : "?";
    if (between(question, "What size is the ", "?", m) && read_noun(m, &n))
        return (o = largest(s, n, r)) ? scene_size_names[o->size] : "?";
    for (int d = 0; d < 4; d++) {
        snprintf(before, sizeof before, "What is %s the ", dirs[d]);
        if (!between(question, before, "?", m) || !read_noun(m, &n)) continue;
        const SceneObject *anchor = largest(s, n, (Rect){0, 0, SCENE_W, SCENE_H});
        int found = 0;
        for (int i = 0; anchor && i < s->nobjects; i++)
            if (&s->obj[i] != anchor && seen_in(&s->obj[i], r) && beyond(&s->obj[i], anchor, d))
                o = &s->obj[i], found++;
        return found == 1 ? scene_category_names[o->category] : "?";
    }
    const bool how_many = between(question, "How many ", " are there?", m) ||
                          between(question, "How many ", " are in the image?", m);
    if (!how_many && !between(question, "Is there ", " in the image?", m) &&
        !between(question, "Is there ", "?", m))
        return "?";
    if (!read_noun(m, &n)) return "?";
    int count = 0;
    for (int i = 0; i < s->nobjects; i++) count += is_a(&s->obj[i], n) && seen_in(&s->obj[i], r);
    snprintf(number, sizeof number, "%d", count);
    return how_many ? number : count ? "yes" : "no";
}

/* --- values, expressions, programs
 * ------------------------------------------------------------------------------ */

typedef struct Val {
    char name[24];
    Rect rect;
    const Scene *scene;
    Rect box[SCENE_MAX_OBJECTS];
    int nbox;
    char s[32];
} Val;
typedef struct State {
    Val v[16];
    int n;
    bool bad;
} State;

static Val *lookup(State *st, const char *name) {
    for (int i = 0; i < st->n; i++)
        if (!strcmp(st->v[i].name, name)) return &st->v[i];
    st->bad = true;
    return &st->v[0];
}

/* Just the expressions that our programs use; texts and numbers are both texts, True and False are 1 and 0.
 */
typedef struct Lex {
    const char *p;
    State *st;
} Lex;
static void spaces(Lex *l) {
    while (*l->p == ' ') l->p++;
}
static bool word(Lex *l, const char *w) {
    spaces(l);
    const size_t n = strlen(w);
    if (strncmp(l->p, w, n) || (isalpha((unsigned char)w[n - 1]) && isalpha((unsigned char)l->p[n])))
        return false;
    l->p += n;
    return true;
}
static void expr_atom(Lex *l, char *out) {
    char name[32] = "";
    spaces(l);
    const char close = *l->p == '{' ? '}' : *l->p == '\'' ? '\'' : 0;
    if (close) {
        const char *end = strchr(l->p + 1, close);
        if (!end || end - l->p > 30) {
            l->st->bad = true;
            return;
        }
        snprintf(name, sizeof name, "%.*s", (int)(end - l->p - 1), l->p + 1);
        l->p = end + 1;
        strcpy(out, name);
        if (close == '}') strcpy(out, lookup(l->st, name)->s);
        if (close == '}' && !strcmp(out, "yes")) strcpy(out, "1");
        if (close == '}' && !strcmp(out, "no")) strcpy(out, "0");
        return;
    }
    int n = 0;
    while (isdigit((unsigned char)l->p[n])) n++;
    if (!n) l->st->bad = true;
    snprintf(out, 32, "%.*s", n, l->p);
    l->p += n;
}
static void expr_compare(Lex *l, char *out) {
    char b[32];
    expr_atom(l, out);
    while (word(l, "+")) {
        expr_atom(l, b);
        snprintf(out, 32, "%d", atoi(out) + atoi(b));
    }
    static const char *const ops[] = {"==", "!=", ">=", ">", "xor"};
    for (int i = 0; i < COUNT_OF(ops); i++) {
        if (!word(l, ops[i])) continue;
        expr_atom(l, b);
        const bool same = !strcmp(out, b);
        const int x = atoi(out), y = atoi(b);
        strcpy(out, (i == 0 ? same : i == 1 || i == 4 ? !same : i == 2 ? x >= y : x > y) ? "1" : "0");
        return;
    }
}
static void expr_not(Lex *l, char *out) {
    const bool negate = word(l, "not");
    expr_compare(l, out);
    if (negate) strcpy(out, strcmp(out, "0") ? "0" : "1");
}
static void expr_logic(Lex *l, char *out) { /* our expressions never mix and with or */
    char b[32];
    expr_not(l, out);
    for (;;) {
        if (word(l, "and"))
            expr_not(l, b), strcpy(out, strcmp(out, "0") && strcmp(b, "0") ? "1" : "0");
        else if (word(l, "or"))
            expr_not(l, b), strcpy(out, strcmp(out, "0") || strcmp(b, "0") ? "1" : "0");
        else
            return;
    }
}
static void eval(State *st, const char *text, char *out) {
    Lex l = {text, st};
    char cond[32], other[32];
    expr_logic(&l, out);
    if (word(&l, "if")) {
        expr_logic(&l, cond);
        if (!word(&l, "else")) st->bad = true;
        expr_logic(&l, other);
        if (!strcmp(cond, "0")) strcpy(out, other);
    }
    spaces(&l);
    if (*l.p) st->bad = true;
}

/* Boxes are relative to the image they were found on, ends at most W - 1, as the reference's LOC gives them.
 */
static void oracle_loc(Val *out, const Val *in, const char *object, bool *bad) {
    const int W = rect_w(in->rect), H = rect_h(in->rect);
    out->nbox = 1;
    if (!strcmp(object, "LEFT")) {
        out->box[0] = (Rect){0, 0, W / 2, H - 1};
        return;
    }
    if (!strcmp(object, "RIGHT")) {
        out->box[0] = (Rect){W / 2, 0, W - 1, H - 1};
        return;
    }
    if (!strcmp(object, "TOP")) {
        out->box[0] = (Rect){0, 0, W - 1, H / 2};
        return;
    }
    if (!strcmp(object, "BOTTOM")) {
        out->box[0] = (Rect){0, H / 2, W - 1, H - 1};
        return;
    }
    Noun n;
    out->nbox = 0;
    if (!read_noun(object, &n)) *bad = true;
    for (int i = 0; i < in->scene->nobjects; i++) {
        const SceneObject *o = &in->scene->obj[i];
        if (!is_a(o, n) || !seen_in(o, in->rect)) continue;
        out->box[out->nbox++] =
            (Rect){MAX(0, o->box.x0 - in->rect.x0), MAX(0, o->box.y0 - in->rect.y0),
                   MIN(W - 1, o->box.x1 - in->rect.x0), MIN(H - 1, o->box.y1 - in->rect.y0)};
    }
}

static Rect oracle_crop(const Val *in, const Val *boxes, const char *module) {
    const int W = rect_w(in->rect), H = rect_h(in->rect);
    Rect r = {0, 0, W, H};
    if (boxes->nbox) {
        const Rect b = boxes->box[0];
        const int cx = (int)((b.x0 + b.x1) / 2.0), cy = (int)((b.y0 + b.y1) / 2.0);
        const int dw = (int)(1.5 * (b.x1 - b.x0) / 2), dh = (int)(1.5 * (b.y1 - b.y0) / 2);
        if (!strcmp(module, "CROP_LEFTOF"))
            r = (Rect){0, 0, cx, H - 1};
        else if (!strcmp(module, "CROP_RIGHTOF"))
            r = (Rect){cx, 0, W - 1, H - 1};
        else if (!strcmp(module, "CROP_ABOVE"))
            r = (Rect){0, 0, W - 1, cy};
        else if (!strcmp(module, "CROP_BELOW"))
            r = (Rect){0, cy, W - 1, H - 1};
        else
            r = (Rect){MAX(0, cx - dw), MAX(0, cy - dh), MIN(cx + dw, W), MIN(cy + dh, H)};
    }
    return (Rect){in->rect.x0 + r.x0, in->rect.y0 + r.y0, in->rect.x0 + r.x1, in->rect.y0 + r.y1};
}

/* The value of `name=` in a step's arguments, without its quotes. */
static void argument(State *st, const char *step, const char *name, char *out) {
    char key[24];
    snprintf(key, sizeof key, "%s=", name);
    const char *p = strstr(step, key);
    out[0] = 0;
    if (!p) {
        st->bad = true;
        return;
    }
    p += strlen(key);
    const char *end = *p == '\'' || *p == '"' ? strchr(p + 1, *p) : p + strcspn(p, ",)");
    if (*p == '\'' || *p == '"') p++;
    if (!end || end - p > 150) {
        st->bad = true;
        return;
    }
    memcpy(out, p, (size_t)(end - p));
    out[end - p] = 0;
}

static bool run_step(State *st, char *step, char *result) {
    char module[24], a[160], b[160];
    char *eq = strchr(step, '='), *open = strchr(step, '(');
    if (!eq || !open || open < eq || open - eq > 20) return false;
    snprintf(module, sizeof module, "%.*s", (int)(open - eq - 1), eq + 1);
    Val v = {0};
    snprintf(v.name, sizeof v.name, "%.*s", (int)(eq - step), step);
    if (!strcmp(module, "RESULT")) {
        argument(st, open, "var", a);
        return strcpy(result, lookup(st, a)->s), true;
    }
    if (!strcmp(module, "EVAL")) {
        argument(st, open, "expr", a);
        eval(st, a, v.s);
    } else if (!strcmp(module, "COUNT")) {
        argument(st, open, "box", a);
        snprintf(v.s, sizeof v.s, "%d", lookup(st, a)->nbox);
    } else {
        argument(st, open, "image", a);
        const Val *in = lookup(st, a);
        v.scene = in->scene, v.rect = in->rect;
        if (!strcmp(module, "LOC"))
            argument(st, open, "object", b), oracle_loc(&v, in, b, &st->bad);
        else if (!strcmp(module, "VQA"))
            argument(st, open, "question", b),
                snprintf(v.s, sizeof v.s, "%s", oracle_vqa(in->scene, in->rect, b));
        else
            argument(st, open, "box", b), v.rect = oracle_crop(in, lookup(st, b), module),
                                          st->bad |= strncmp(module, "CROP", 4) != 0;
    }
    st->v[st->n++] = v;
    return !st->bad;
}

/* Runs a program on named images; false when the oracle cannot. */
static bool run_program(const char *program, const Scene *const *scenes, const char *const *names, int n,
                        char *result) {
    char text[1024];
    State st = {0};
    for (int i = 0; i < n; i++) {
        Val *v = &st.v[st.n++];
        snprintf(v->name, sizeof v->name, "%s", names[i]);
        v->scene = scenes[i], v->rect = (Rect){0, 0, SCENE_W, SCENE_H};
    }
    snprintf(text, sizeof text, "%s", program);
    result[0] = 0;
    for (char *line = text, *next; line; line = next) {
        if ((next = strchr(line, '\n'))) *next++ = 0;
        if (!run_step(&st, line, result)) return false;
    }
    return true;
}

/* --- tests
 * ---------------------------------------------------------------------------------------------------- */

enum { SCENES = 400 };
static void make(Scene *s, int domain, int64_t i) {
    scene_make(s, 11, SCENE_TRAIN, domain, i, 3, SCENE_MAX_OBJECTS);
}

TEST(scenes_are_a_function_of_the_seed) {
    /* Frozen: a change here means that published numbers no longer belong to this dataset; raise
     * SCENES_VERSION. */
    static const uint64_t frozen[SCENE_DOMAINS] = {0x4312bfc3e6673cf6, 0xe93b1819845ab921};
    static uint8_t rgb[SCENE_BYTES], again[SCENE_BYTES];
    for (int d = 0; d < SCENE_DOMAINS; d++) {
        uint64_t h = 0;
        for (int64_t i = 0; i < 12; i++) {
            Scene s, t;
            make(&s, d, i);
            make(&t, d, i);
            EXPECT(!memcmp(&s, &t, sizeof s), "scene %d of domain %d differs from itself", (int)i, d);
            scene_render(&s, rgb);
            scene_render(&t, again);
            EXPECT(!memcmp(rgb, again, sizeof rgb), "image %d of domain %d differs from itself", (int)i, d);
            h = hash_bytes(rgb, sizeof rgb, h);
            scene_make(&t, 12, SCENE_TRAIN, d, i, 3, 9);
            EXPECT(memcmp(s.obj, t.obj, sizeof s.obj), "seeds 11 and 12 give the same scene %d", (int)i);
            scene_make(&t, 11, SCENE_VAL, d, i, 3, 9);
            EXPECT(memcmp(s.obj, t.obj, sizeof s.obj), "train and val share scene %d", (int)i);
        }
        EXPECT(h == frozen[d], "%s images hash to 0x%016" PRIx64 ", version %s to 0x%016" PRIx64,
               scene_domain_names[d], h, SCENES_VERSION, frozen[d]);
    }
}

TEST(scenes_layout) {
    int number[SCENE_MAX_OBJECTS + 1] = {0}, category[SCENE_CATEGORIES] = {0}, color[SCENE_COLORS] = {0};
    for (int64_t i = 0; i < SCENES; i++) {
        Scene s;
        make(&s, SCENE_HARD, i);
        number[s.nobjects]++;
        EXPECT(s.nobjects >= 3 && s.nobjects <= 9, "%d objects", s.nobjects);
        for (int k = 0; k < s.nobjects; k++) {
            const SceneObject *o = &s.obj[k];
            category[o->category]++, color[o->color]++;
            EXPECT(o->box.x0 >= 0 && o->box.y0 >= 0 && o->box.x1 <= SCENE_W && o->box.y1 <= SCENE_H &&
                       rect_w(o->box) >= 16 && rect_h(o->box) >= 14,
                   "scene %d object %d: box %d %d %d %d", (int)i, k, o->box.x0, o->box.y0, o->box.x1,
                   o->box.y1);
            EXPECT(o->visible > 0.55f, "scene %d object %d is %g visible", (int)i, k, (double)o->visible);
        }
        scene_make(&s, 11, SCENE_TRAIN, SCENE_CLEAN, i, 1, 1);
        EXPECT(s.nobjects == 1 && s.obj[0].half * 2 >= 0.39f * SCENE_H && s.obj[0].half * 2 <= 0.9f * SCENE_H,
               "single %d: half %g", (int)i, (double)s.obj[0].half);
        scene_make(&s, 11, SCENE_TRAIN, SCENE_CLEAN, i, 9, 9);
        EXPECT(s.nobjects == 9, "asked for 9 objects, got %d", s.nobjects);
    }
    /* Uniform: 400 / 7 = 57 per count; about 2400 objects, 200 per category, 300 per colour. Six sigma of a
     * binomial. */
    for (int n = 3; n <= 9; n++) EXPECT_NEAR(number[n], SCENES / 7.0, 6 * 7.0, "scenes of %d objects", n);
    for (int c = 0; c < SCENE_CATEGORIES; c++)
        EXPECT_NEAR(category[c], 200, 6 * 22.0, "%s", scene_category_names[c]); /* copies add variance */
    for (int c = 0; c < SCENE_COLORS; c++) EXPECT_NEAR(color[c], 300, 6 * 20.0, "%s", scene_color_names[c]);
}

TEST(scenes_every_program_gives_its_answer) {
    static const char *const image[] = {"IMAGE"};
    static const char *const types[] = {"exist", "query", "verify", "choose",   "compare",
                                        "and",   "or",    "count",  "relation", "side"};
    int of_type[COUNT_OF(types)] = {0}, total = 0, yes[COUNT_OF(types)] = {0}, no[COUNT_OF(types)] = {0};
    for (int64_t i = 0; i < SCENES; i++) {
        Scene s;
        SceneQuestion q[16];
        make(&s, i % 2, i);
        SceneRng r = scene_rng(11, SCENE_TRAIN, s.domain, i, RNG_ASK);
        const int n = scene_questions(&s, q, 16, &r);
        EXPECT(n >= 12, "scene %d allows %d questions", (int)i, n);
        for (int k = 0; k < n; k++) {
            char got[64];
            const Scene *scene = &s;
            const bool ran = run_program(q[k].program, &scene, image, 1, got);
            EXPECT(ran && !strcmp(got, q[k].answer), "scene %d: %s\n%s\n  gives %s, the answer is %s", (int)i,
                   q[k].question, q[k].program, got, q[k].answer);
            for (int t = 0; t < COUNT_OF(types); t++)
                if (!strcmp(types[t], q[k].type))
                    of_type[t]++, yes[t] += !strcmp(q[k].answer, "yes"), no[t] += !strcmp(q[k].answer, "no");
            total++;
            for (int m = 0; m < k; m++)
                EXPECT(strcmp(q[k].question, q[m].question), "asked twice: %s", q[k].question);
        }
    }
    int sum = 0;
    for (int t = 0; t < COUNT_OF(types); t++) {
        sum += of_type[t];
        EXPECT(of_type[t] * 30 > total, "only %d of %d questions are of type %s", of_type[t], total,
               types[t]);
        const int both = yes[t] + no[t];
        if (both) EXPECT(abs(yes[t] - no[t]) < both / 5, "%s: %d yes, %d no", types[t], yes[t], no[t]);
    }
    EXPECT(sum == total, "%d questions of no known type", total - sum);
}

TEST(scenes_references_point_at_words) {
    for (int64_t i = 0; i < 60; i++) {
        Scene s;
        SceneQuestion q[12];
        make(&s, SCENE_CLEAN, i);
        SceneRng r = scene_rng(11, SCENE_TRAIN, s.domain, i, RNG_ASK);
        const int n = scene_questions(&s, q, 12, &r);
        for (int k = 0; k < n; k++)
            for (int j = 0; j < q[k].nrefs; j++) {
                const SceneRef ref = q[k].ref[j];
                char copy[160], *w = NULL;
                memcpy(copy, q[k].question, sizeof copy);
                for (int x = 0; x < ref.word1; x++) w = strtok(x ? NULL : copy, " ?");
                EXPECT(w && !strcmp(w, scene_category_names[s.obj[ref.object].category]),
                       "%s: words %d..%d are not object %d", q[k].question, ref.word0, ref.word1, ref.object);
            }
    }
}

TEST(scenes_statements_are_true_or_false) {
    static const char *const names[] = {"LEFT", "RIGHT"};
    int truths = 0, total = 0;
    for (int64_t i = 0; i < SCENES; i++) {
        Scene a, b;
        SceneStatement st[8];
        make(&a, SCENE_CLEAN, 2 * i);
        make(&b, SCENE_CLEAN, 2 * i + 1);
        SceneRng r = scene_rng(11, SCENE_TRAIN, SCENE_CLEAN, i, RNG_NLVR);
        const int n = scene_statements(&a, &b, st, 8, &r);
        for (int k = 0; k < n; k++) {
            char got[64];
            const Scene *const pair[] = {&a, &b};
            const bool ran = run_program(st[k].program, pair, names, 2, got);
            EXPECT(ran && !strcmp(got, "0") == !st[k].label, "pair %d: %s\n%s\n  gives %s, the label is %d",
                   (int)i, st[k].sentence, st[k].program, got, st[k].label);
            truths += st[k].label, total++;
        }
    }
    EXPECT(total > SCENES * 6, "%d statements", total);
    EXPECT(abs(2 * truths - total) < total / 10, "%d of %d statements are true", truths, total);
}

TEST(scenes_steps_are_true) {
    int yes = 0, no = 0, locs = 0, total = 0;
    for (int64_t i = 0; i < SCENES; i++) {
        Scene s;
        SceneStep st[16];
        const int single = i % 4 == 0, few = i % 4 == 1;
        scene_make(&s, 5, SCENE_TRAIN, SCENE_CLEAN, i, single ? 1 : few ? 2 : 3, single ? 1 : few ? 3 : 9);
        SceneRng r = scene_rng(5, SCENE_TRAIN, SCENE_CLEAN, i, RNG_STEPS);
        const int n = scene_steps(&s, st, 16, &r);
        EXPECT(n == 16, "scene %d of %d objects allows %d steps", (int)i, s.nobjects, n);
        for (int k = 0; k < n; k++) {
            const SceneStep *x = &st[k];
            total++;
            EXPECT(x->rect.x0 >= 0 && x->rect.y0 >= 0 && x->rect.x1 <= SCENE_W && x->rect.y1 <= SCENE_H &&
                       rect_w(x->rect) >= 8 && rect_h(x->rect) >= 8,
                   "rect %d %d %d %d", x->rect.x0, x->rect.y0, x->rect.x1, x->rect.y1);
            if (!x->loc) {
                const char *truth = oracle_vqa(&s, x->rect, x->query);
                EXPECT(!strcmp(truth, x->answer), "scene %d on %d %d %d %d: %s %s, the oracle says %s",
                       (int)i, x->rect.x0, x->rect.y0, x->rect.x1, x->rect.y1, x->query, x->answer, truth);
                if (!strncmp(x->query, "Is there", 8)) yes += x->answer[0] == 'y', no += x->answer[0] == 'n';
                continue;
            }
            Noun noun;
            int want = 0;
            locs++;
            EXPECT(read_noun(x->query, &noun), "phrase %s", x->query);
            for (int j = 0; j < s.nobjects; j++) want += is_a(&s.obj[j], noun) && seen_in(&s.obj[j], x->rect);
            EXPECT(want == x->nobj, "scene %d: %d boxes for %s, the oracle sees %d", (int)i, x->nobj,
                   x->query, want);
            for (int j = 0; j < x->nobj; j++)
                EXPECT(x->box[j].x0 >= x->rect.x0 && x->box[j].x1 <= x->rect.x1 &&
                           x->box[j].y0 >= x->rect.y0 && x->box[j].y1 <= x->rect.y1,
                       "scene %d: a box of %s leaves the rectangle", (int)i, x->query);
        }
    }
    EXPECT(abs(yes - no) < (yes + no) / 6, "%d yes, %d no", yes, no);
    EXPECT(locs > total / 5 && locs < total / 2, "%d of %d steps are LOC", locs, total);
}

static void check_words(const char *text) {
    char w[64];
    for (const char *p = text; *p;) {
        int n = 0;
        while (isalnum((unsigned char)p[n])) n++;
        if (n == 0 && *p == ' ') {
            p++;
            continue;
        }
        if (n == 0) n = 1;
        for (int i = 0; i < n; i++) w[i] = (char)tolower((unsigned char)p[i]);
        w[n] = 0;
        bool known = false;
        for (int i = 0; scene_words[i]; i++) known |= !strcmp(scene_words[i], w);
        EXPECT(known, "\"%s\" of \"%s\" is not in scene_words", w, text);
        p += n;
    }
}
static void check_answer(const char *answer) {
    bool known = false;
    for (int i = 0; scene_answers[i]; i++) known |= !strcmp(scene_answers[i], answer);
    EXPECT(known, "\"%s\" is not in scene_answers", answer);
}

TEST(scenes_vocabulary_is_complete) {
    for (int64_t i = 0; i < SCENES; i++) {
        Scene s, t;
        SceneQuestion q[16];
        SceneStep st[16];
        SceneStatement say[4];
        make(&s, SCENE_CLEAN, i);
        make(&t, SCENE_CLEAN, i + 1);
        SceneRng r = scene_rng(3, 0, 0, i, RNG_ASK);
        for (int k = scene_questions(&s, q, 16, &r) - 1; k >= 0; k--)
            check_words(q[k].question), check_answer(q[k].answer);
        for (int k = scene_steps(&s, st, 16, &r) - 1; k >= 0; k--) {
            check_words(st[k].query);
            if (!st[k].loc) check_answer(st[k].answer);
        }
        for (int k = scene_statements(&s, &t, say, 4, &r) - 1; k >= 0; k--) check_words(say[k].sentence);
    }
}

static json_t *load(const char *dir, const char *name) {
    char path[4400];
    json_error_t err;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    json_t *j = json_load_file(path, 0, &err);
    EXPECT(j, "%s:%d: %s", path, err.line, err.text);
    return j;
}

TEST(scenes_files) {
    Error e = {0};
    char dir[2][4200], path[4400];
    ScenesConfig c;
    scenes_config_default(&c);
    c.seed = 9, c.images[0] = 40, c.images[1] = 6, c.images[2] = 0, c.steps_per_image = 4,
    c.single_fraction = 0.2f, c.few_fraction = 0.2f;
    for (int k = 0; k < 2; k++) {
        c.threads = k + 1;
        snprintf(dir[k], sizeof dir[k], "%s/scenes%d", test_dir(), k);
        EXPECT(scenes_write(dir[k], &c, &e), "%s", e.text);
    }
    static const char *const files[] = {
        "dataset.json",        "train_questions.json",  "train_sceneGraphs.json",
        "train_nlvr.jsonl",    "train_steps.jsonl",     "val_questions.json",
        "test_questions.json", "test_sceneGraphs.json", "images/hard_train_0000017.jpg"};
    for (int i = 0; i < COUNT_OF(files); i++) {
        char *data[2] = {NULL, NULL};
        size_t size[2] = {0, 0};
        for (int k = 0; k < 2; k++) {
            snprintf(path, sizeof path, "%s/%s", dir[k], files[i]);
            EXPECT(file_read(path, &data[k], &size[k], 64 << 20, &e), "%s", e.text);
        }
        EXPECT(size[0] == size[1] && !memcmp(data[0], data[1], size[0]),
               "%s depends on the number of threads", files[i]);
        if (i == COUNT_OF(files) - 1) {
            Arena a;
            ImageView img = {0};
            arena_open(&a, "image", NULL, 1 << 20);
            EXPECT(jpeg_decode(&a, data[0], size[0], 0, &img, NULL, NULL, &e) && img.w == SCENE_W &&
                       img.h == SCENE_H,
                   "%s %d x %d", e.text, img.w, img.h);
            arena_close(&a);
        }
        free(data[0]);
        free(data[1]);
    }
    json_t *questions = load(dir[0], "train_questions.json"),
           *graphs = load(dir[0], "train_sceneGraphs.json"), *empty = load(dir[0], "test_questions.json");
    EXPECT(json_object_size(graphs) == 40 && json_object_size(empty) == 0 &&
               json_object_size(questions) > 100,
           "%zu graphs, %zu questions", json_object_size(graphs), json_object_size(questions));
    const char *key;
    json_t *q;
    json_object_foreach(questions, key, q) {
        static const char *const fields[] = {
            "question",   "imageId", "answer",      "fullAnswer", "isBalanced",  "groups",  "entailed",
            "equivalent", "types",   "annotations", "semantic",   "semanticStr", "program", "type"};
        for (int i = 0; i < COUNT_OF(fields); i++)
            EXPECT(json_object_get(q, fields[i]), "%s has no %s", key, fields[i]);
        json_t *g = json_object_get(graphs, json_string_value(json_object_get(q, "imageId")));
        EXPECT(json_object_size(json_object_get(g, "objects")) >= 3, "%s is asked about a curriculum image",
               key);
    }
    json_decref(questions);
    json_decref(graphs);
    json_decref(empty);
    /* A folder that cannot be written is an error with its path. */
    EXPECT(!scenes_write("/proc/no/such/place", &c, &e) && e.text[0], "it says %s", e.text);
}
