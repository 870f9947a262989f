/* scenes_ask.c -- questions, statements and labelled steps about a scene, each with its answer and program.
 *
 * Phrases name objects ("the ball", "the red ball") and are unique where they must be. Every truth below is
 * the one that the reference program semantics reach with perfect modules: a spatial question is only asked
 * when no object straddles the cut. tests/data/test_scenes.c runs every program with an oracle and compares.
 */
#include "data/scenes.h"
#include <stdarg.h>

enum { TRIES = 24 };
static const float SEEN_MIN = 0.60f; /* from this share inside a crop on, an object is there for labels ... */
static const float SEEN_NOT = 0.20f; /* ... and up to this one it is not; in between we do not ask */
static const float STEP_YES =
    0.62f; /* wanted; a yes fails more often and step_anywhere adds noes: half and half in the end */
enum { CUT_MARGIN = 3 }; /* px an object keeps from a cut that decides an answer */

/* A phrase: a category with at most one attribute; -1 = not said. */
typedef struct Phrase {
    int category, color, pattern;
} Phrase;

static const struct Direction {
    const char *words, *module;
    char crop;
} directions[4] = {
    {"to the left of", "CROP_LEFTOF", 'L'},
    {"to the right of", "CROP_RIGHTOF", 'R'},
    {"above", "CROP_ABOVE", 'A'},
    {"below", "CROP_BELOW", 'B'},
};
static const Rect whole = {0, 0, SCENE_W, SCENE_H};

const char *const scene_words[] = {
    ".",       "?",       "0",     "1",         "2",       "3",      "4",       "5",        "6",
    "7",       "8",       "9",     "a",         "above",   "an",     "and",     "are",      "arrow",
    "arrows",  "at",      "ball",  "balls",     "below",   "black",  "blue",    "both",     "bottom",
    "box",     "boxes",   "brown", "checkered", "color",   "colors", "contain", "contains", "cross",
    "crosses", "cup",     "cups",  "different", "do",      "does",   "dotted",  "either",   "exactly",
    "fish",    "green",   "have",  "heart",     "hearts",  "house",  "houses",  "how",      "image",
    "images",  "in",      "is",    "large",     "least",   "left",   "many",    "moon",     "moons",
    "more",    "neither", "no",    "of",        "on",      "one",    "or",      "pattern",  "patterns",
    "purple",  "red",     "right", "ring",      "rings",   "same",   "see",     "side",     "size",
    "small",   "solid",   "star",  "stars",     "striped", "than",   "the",     "there",    "this",
    "to",      "top",     "total", "tree",      "trees",   "two",    "what",    "which",    "white",
    "yellow",  "yes",     "you",   NULL,
};
const char *const scene_answers[] = {
    "no",     "yes",       "0",     "1",     "2",      "3",     "4",     "5",      "ball",  "box",
    "star",   "heart",     "ring",  "cross", "moon",   "tree",  "house", "cup",    "fish",  "arrow",
    "red",    "yellow",    "green", "blue",  "purple", "brown", "white", "black",  "solid", "striped",
    "dotted", "checkered", "small", "large", "left",   "right", "top",   "bottom", NULL,
};

/* --- text --------------------------------------------------------------------------------------------------
 */

/* Writes into a fixed field; a text that does not fit is our own mistake. */
__attribute__((format(printf, 3, 4))) static void put_(char *out, size_t n, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    const int len = vsnprintf(out, n, fmt, ap);
    va_end(ap);
    CHECK(len >= 0 && (size_t)len < n, "text of %d characters in a field of %zu: %s", len, n, out);
}
#define PUT(field, ...) put_((field), sizeof(field), __VA_ARGS__)

typedef struct Text {
    char s[48];
} Text;

static Text phrase_text(Phrase p) {
    Text t;
    PUT(t.s, "%s%s%s%s%s", p.color >= 0 ? scene_color_names[p.color] : "", p.color >= 0 ? " " : "",
        p.pattern >= 0 ? scene_pattern_names[p.pattern] : "", p.pattern >= 0 ? " " : "",
        scene_category_names[p.category]);
    return t;
}
static Text phrase_plural(Phrase p) {
    Text t;
    PUT(t.s, "%s%s%s", p.color >= 0 ? scene_color_names[p.color] : "", p.color >= 0 ? " " : "",
        scene_category_plurals[p.category]);
    return t;
}
/* "a ball", "an arrow" */
static Text with_article(Phrase p) {
    const Text t = phrase_text(p);
    Text a;
    PUT(a.s, "%s %s", strchr("aeiou", t.s[0]) ? "an" : "a", t.s);
    return a;
}

/* --- what a phrase means
 * ------------------------------------------------------------------------------------ */

static bool matches(const SceneObject *o, Phrase p) {
    return o->category == p.category && (p.color < 0 || o->color == p.color) &&
           (p.pattern < 0 || o->pattern == p.pattern);
}
static int count_matches(const Scene *s, Phrase p) {
    int n = 0;
    for (int i = 0; i < s->nobjects; i++) n += matches(&s->obj[i], p);
    return n;
}
static Phrase bare(int category) { return (Phrase){category, -1, -1}; }

/* Matches visible in r, or -1 when one of them is neither clearly in nor clearly out. *which: the first. */
static int count_inside(const Scene *s, Phrase p, Rect r, int *which) {
    int n = 0;
    for (int i = 0; i < s->nobjects; i++) {
        if (!matches(&s->obj[i], p)) continue;
        const float in = scene_inside(&s->obj[i], r);
        if (in > SEEN_NOT && in < SEEN_MIN) return -1;
        if (in < SEEN_MIN) continue;
        if (which && n == 0) *which = i;
        n++;
    }
    return n;
}

typedef enum Attribute { COLOR, PATTERN, NATTR } Attribute;
static int attribute(const SceneObject *o, Attribute a) { return a == COLOR ? o->color : o->pattern; }
static int attribute_n(Attribute a) { return a == COLOR ? SCENE_COLORS : SCENE_PATTERNS; }
static const char *attribute_value(Attribute a, int v) {
    return a == COLOR ? scene_color_names[v] : scene_pattern_names[v];
}
static const char *attribute_word(Attribute a) { return a == COLOR ? "color" : "pattern"; }

/* A phrase that names exactly object i among those in r; never says attribute `hide` (NATTR: may say any). */
static bool name_object(const Scene *s, int i, Attribute hide, Rect r, Phrase *p, SceneRng *rng) {
    const SceneObject *o = &s->obj[i];
    Phrase option[3] = {bare(o->category), {o->category, o->color, -1}, {o->category, -1, o->pattern}};
    bool good[3];
    for (int k = 0; k < 3; k++)
        good[k] = !(k == 1 && hide == COLOR) && !(k == 2 && hide == PATTERN) &&
                  count_inside(s, option[k], r, NULL) == 1;
    const int adorned = 1 + rng_below(rng, 2);
    const bool shorten = rng_chance(rng, 0.8f);
    if (good[0] && (shorten || !good[adorned])) return *p = option[0], true;
    for (int k = 0; k < 2; k++) {
        const int at = k ? 3 - adorned : adorned;
        if (good[at]) return *p = option[at], true;
    }
    return false;
}
static bool name_any(const Scene *s, Attribute hide, Phrase *p, int *object, SceneRng *rng) {
    for (int t = 0; t < TRIES; t++)
        if (name_object(s, *object = rng_below(rng, s->nobjects), hide, whole, p, rng)) return true;
    return false;
}

/* The VQA question about an attribute, the same wherever a program asks it. */
static Text attribute_question(Attribute a, Phrase p) {
    Text t;
    if (a == COLOR)
        PUT(t.s, "What color is the %s?", phrase_text(p).s);
    else
        PUT(t.s, "What pattern is on the %s?", phrase_text(p).s);
    return t;
}

/* --- building a question
 * ------------------------------------------------------------------------------------ */

__attribute__((format(printf, 5, 6))) static int add_op(SceneQuestion *q, const char *operation, int dep0,
                                                        int dep1, const char *argument, ...) {
    CHECK(q->nops < COUNT_OF(q->op), "more than %d semantic steps", COUNT_OF(q->op));
    SceneOp *o = &q->op[q->nops];
    va_list ap;
    PUT(o->operation, "%s", operation);
    va_start(ap, argument);
    const int len = vsnprintf(o->argument, sizeof o->argument, argument, ap);
    va_end(ap);
    CHECK(len >= 0 && (size_t)len < sizeof o->argument, "semantic argument %s", o->argument);
    o->ndeps = (dep0 >= 0) + (dep1 >= 0);
    o->dep[0] = dep0, o->dep[1] = dep1;
    return q->nops++;
}
/* "ball (2,5)"; "(-)" when there is none, as GQA writes it. */
static Text with_ids(const Scene *s, Phrase p) {
    Text t;
    PUT(t.s, "%s (", scene_category_names[p.category]);
    size_t at = strlen(t.s);
    for (int i = 0; i < s->nobjects; i++) {
        if (!matches(&s->obj[i], p)) continue;
        if (t.s[at - 1] != '(') t.s[at++] = ',';
        t.s[at++] = (char)('0' + i);
    }
    if (t.s[at - 1] == '(') t.s[at++] = '-';
    t.s[at++] = ')', t.s[at] = 0;
    return t;
}
static int add_select(SceneQuestion *q, const Scene *s, Phrase p) {
    int at = add_op(q, "select", -1, -1, "%s", with_ids(s, p).s);
    if (p.color >= 0) at = add_op(q, "filter color", at, -1, "%s", scene_color_names[p.color]);
    if (p.pattern >= 0) at = add_op(q, "filter pattern", at, -1, "%s", scene_pattern_names[p.pattern]);
    return at;
}
/* Which words of the question name the object. */
static void refer(SceneQuestion *q, Phrase p, int object) {
    const Text t = phrase_text(p);
    const size_t n = strlen(t.s);
    for (const char *at = q->question; (at = strstr(at, t.s)); at++) {
        if ((at > q->question && at[-1] != ' ') || (at[n] >= 'a' && at[n] <= 'z')) continue;
        int word = 0, words = 1;
        for (const char *c = q->question; c < at; c++) word += *c == ' ';
        for (const char *c = t.s; *c; c++) words += *c == ' ';
        q->ref[q->nrefs++] = (SceneRef){object, word, word + words};
        return;
    }
}
static void kind(SceneQuestion *q, const char *type, const char *structural, const char *semantic,
                 const char *detailed, const char *group) {
    PUT(q->type, "%s", type);
    PUT(q->structural, "%s", structural);
    PUT(q->semantic, "%s", semantic);
    PUT(q->detailed, "%s", detailed);
    PUT(q->group, "%s", group);
}
static void answer_yes_no(SceneQuestion *q, bool yes) { PUT(q->answer, "%s", yes ? "yes" : "no"); }

/* Each builder makes one question with the wanted truth (open questions ignore `yes`), or returns false. */
typedef bool Builder(const Scene *s, bool yes, SceneQuestion *q, SceneRng *r);

/* A phrase that is true of the scene (yes) or a near miss (no): wrong attribute of a present category, or a
 * category that is not there at all. */
static bool pick_existing(const Scene *s, bool yes, Phrase *p, SceneRng *r) {
    for (int t = 0; t < TRIES; t++) {
        const SceneObject *o = &s->obj[rng_below(r, s->nobjects)];
        const int adorn = rng_below(r, 10);
        Phrase c = bare(yes ? o->category : rng_below(r, SCENE_CATEGORIES));
        if (adorn < 5) { /* "red ball": a no keeps the ball and changes the colour */
            c.category = o->category;
            if (adorn < 3)
                c.color = yes ? o->color : rng_below(r, SCENE_COLORS);
            else
                c.pattern = yes ? o->pattern : rng_below(r, SCENE_PATTERNS);
        }
        if ((count_matches(s, c) > 0) == yes) return *p = c, true;
    }
    return false;
}
static int first_match(const Scene *s, Phrase p) {
    for (int i = 0; i < s->nobjects; i++)
        if (matches(&s->obj[i], p)) return i;
    return -1;
}

static bool build_exist(const Scene *s, bool yes, SceneQuestion *q, SceneRng *r) {
    Phrase p;
    if (!pick_existing(s, yes, &p, r)) return false;
    const Text a = with_article(p), t = phrase_text(p);
    switch (rng_below(r, 3)) {
    case 0:
        PUT(q->question, "Is there %s?", a.s);
        break;
    case 1:
        PUT(q->question, "Do you see %s?", a.s);
        break;
    default:
        PUT(q->question, "Is there %s in the image?", a.s);
    }
    answer_yes_no(q, yes);
    PUT(q->full_answer, yes ? "Yes, there is %s." : "No, there is no %s.", yes ? a.s : t.s);
    kind(q, "exist", "verify", "obj", p.color >= 0 || p.pattern >= 0 ? "existAttr" : "exist", "");
    PUT(q->program,
        "BOX0=LOC(image=IMAGE,object='%s')\nANSWER0=COUNT(box=BOX0)\n"
        "ANSWER1=EVAL(expr=\"'yes' if {ANSWER0} > 0 else 'no'\")\nFINAL_RESULT=RESULT(var=ANSWER1)",
        t.s);
    add_op(q, "exist", add_select(q, s, p), -1, "?");
    if (yes) refer(q, p, first_match(s, p));
    return true;
}

static bool build_query(const Scene *s, bool yes, SceneQuestion *q, SceneRng *r) {
    (void)yes;
    const int what = rng_below(r, 100);
    int o;
    Phrase p;
    if (what >= 94) { /* size cannot be read off a crop: the whole image is asked */
        if (!name_any(s, NATTR, &p, &o, r)) return false;
        const Text t = phrase_text(p);
        PUT(q->question, "What size is the %s?", t.s);
        PUT(q->answer, "%s", scene_size_names[s->obj[o].size]);
        PUT(q->full_answer, "The %s is %s.", t.s, q->answer);
        kind(q, "query", "query", "attr", "size", "size");
        PUT(q->program,
            "ANSWER0=VQA(image=IMAGE,question='What size is the %s?')\nFINAL_RESULT=RESULT(var=ANSWER0)",
            t.s);
        add_op(q, "query", add_select(q, s, p), -1, "size");
        refer(q, p, o);
        return true;
    }
    const Attribute a = what < 52 ? COLOR : PATTERN;
    if (!name_any(s, a, &p, &o, r)) return false;
    const Text t = phrase_text(p);
    if (rng_chance(r, 0.5f))
        PUT(q->question, "%s", attribute_question(a, p).s);
    else
        PUT(q->question, "Which %s does the %s have?", attribute_word(a), t.s);
    PUT(q->answer, "%s", attribute_value(a, attribute(&s->obj[o], a)));
    PUT(q->full_answer, "The %s is %s.", t.s, q->answer);
    kind(q, "query", "query", "attr", attribute_word(a), attribute_word(a));
    PUT(q->program,
        "BOX0=LOC(image=IMAGE,object='%s')\nIMAGE0=CROP(image=IMAGE,box=BOX0)\n"
        "ANSWER0=VQA(image=IMAGE0,question='%s')\nFINAL_RESULT=RESULT(var=ANSWER0)",
        t.s, attribute_question(a, p).s);
    add_op(q, "query", add_select(q, s, p), -1, "%s", attribute_word(a));
    refer(q, p, o);
    return true;
}

static int other_value(Attribute a, int not_this, SceneRng *r) {
    const int v = rng_below(r, attribute_n(a) - 1);
    return v + (v >= not_this);
}

static bool build_verify(const Scene *s, bool yes, SceneQuestion *q, SceneRng *r) {
    const Attribute a = rng_chance(r, 0.6f) ? COLOR : PATTERN;
    int o;
    Phrase p;
    if (!name_any(s, a, &p, &o, r)) return false;
    const int truth = attribute(&s->obj[o], a), said = yes ? truth : other_value(a, truth, r);
    const Text t = phrase_text(p);
    PUT(q->question, "Is the %s %s?", t.s, attribute_value(a, said));
    answer_yes_no(q, yes);
    PUT(q->full_answer, "%s, the %s is %s.", yes ? "Yes" : "No", t.s, attribute_value(a, truth));
    kind(q, "verify", "verify", "attr", "verifyAttr", "");
    PUT(q->program,
        "BOX0=LOC(image=IMAGE,object='%s')\nIMAGE0=CROP(image=IMAGE,box=BOX0)\nANSWER0=VQA(image=IMAGE0,"
        "question='%s')\n"
        "ANSWER1=EVAL(expr=\"'yes' if {ANSWER0} == '%s' else 'no'\")\nFINAL_RESULT=RESULT(var=ANSWER1)",
        t.s, attribute_question(a, p).s, attribute_value(a, said));
    Text op;
    PUT(op.s, "verify %s", attribute_word(a));
    add_op(q, op.s, add_select(q, s, p), -1, "%s", attribute_value(a, said));
    refer(q, p, o);
    return true;
}

static bool build_choose(const Scene *s, bool yes, SceneQuestion *q, SceneRng *r) {
    (void)yes;
    const Attribute a = rng_chance(r, 0.6f) ? COLOR : PATTERN;
    int o;
    Phrase p;
    if (!name_any(s, a, &p, &o, r)) return false;
    const int truth = attribute(&s->obj[o], a), wrong = other_value(a, truth, r);
    const bool first = rng_chance(r, 0.5f);
    const char *x = attribute_value(a, first ? truth : wrong), *y = attribute_value(a, first ? wrong : truth);
    const Text t = phrase_text(p);
    PUT(q->question, "Is the %s %s or %s?", t.s, x, y);
    PUT(q->answer, "%s", attribute_value(a, truth));
    PUT(q->full_answer, "The %s is %s.", t.s, q->answer);
    kind(q, "choose", "choose", "attr", "chooseAttr", attribute_word(a));
    PUT(q->program,
        "BOX0=LOC(image=IMAGE,object='%s')\nIMAGE0=CROP(image=IMAGE,box=BOX0)\nANSWER0=VQA(image=IMAGE0,"
        "question='%s')\n"
        "ANSWER1=EVAL(expr=\"'%s' if {ANSWER0} == '%s' else '%s'\")\nFINAL_RESULT=RESULT(var=ANSWER1)",
        t.s, attribute_question(a, p).s, x, x, y);
    Text op;
    PUT(op.s, "choose %s", attribute_word(a));
    add_op(q, op.s, add_select(q, s, p), -1, "%s|%s", x, y);
    refer(q, p, o);
    return true;
}

/* "Are there more balls than stars?" */
static bool build_more(const Scene *s, bool yes, SceneQuestion *q, SceneRng *r) {
    for (int t = 0; t < TRIES; t++) {
        const int i = rng_below(r, s->nobjects), j = rng_below(r, s->nobjects);
        const Phrase a = bare(s->obj[i].category), b = bare(s->obj[j].category);
        const int na = count_matches(s, a), nb = count_matches(s, b);
        if (a.category == b.category || na == nb || (na > nb) != yes) continue;
        const char *pa = scene_category_plurals[a.category], *pb = scene_category_plurals[b.category];
        PUT(q->question, "Are there more %s than %s?", pa, pb);
        answer_yes_no(q, yes);
        PUT(q->full_answer, "%s, there are %s %s than %s.", yes ? "Yes" : "No", yes ? "more" : "fewer", pa,
            pb);
        kind(q, "compare", "compare", "obj", "moreCount", "");
        PUT(q->program,
            "BOX0=LOC(image=IMAGE,object='%s')\nBOX1=LOC(image=IMAGE,object='%s')\nANSWER0=COUNT(box=BOX0)\n"
            "ANSWER1=COUNT(box=BOX1)\nANSWER2=EVAL(expr=\"'yes' if {ANSWER0} > {ANSWER1} else 'no'\")\n"
            "FINAL_RESULT=RESULT(var=ANSWER2)",
            phrase_text(a).s, phrase_text(b).s);
        const int da = add_select(q, s, a), db = add_select(q, s, b);
        add_op(q, "more", da, db, "count"); /* our own: GQA does not count */
        return true;
    }
    return false;
}

static bool build_compare(const Scene *s, bool yes, SceneQuestion *q, SceneRng *r) {
    if (s->nobjects < 2) return false;
    if (rng_chance(r, 0.2f)) return build_more(s, yes, q, r);
    const bool same = rng_chance(r, 0.7f); /* or "different" */
    for (int t = 0; t < 2 * TRIES; t++) {
        const Attribute a = rng_chance(r, 0.6f) ? COLOR : PATTERN;
        int i, j;
        Phrase x, y;
        if (!name_any(s, a, &x, &i, r) || !name_any(s, a, &y, &j, r)) return false;
        if (i == j || x.category == y.category) continue;
        if ((attribute(&s->obj[i], a) == attribute(&s->obj[j], a)) != (same == yes)) continue;
        const Text tx = phrase_text(x), ty = phrase_text(y);
        if (same && rng_chance(r, 0.5f))
            PUT(q->question, "Do the %s and the %s have the same %s?", tx.s, ty.s, attribute_word(a));
        else if (same)
            PUT(q->question, "Are the %s and the %s the same %s?", tx.s, ty.s, attribute_word(a));
        else
            PUT(q->question, "Do the %s and the %s have different %ss?", tx.s, ty.s, attribute_word(a));
        answer_yes_no(q, yes);
        PUT(q->full_answer, "%s, the %s is %s and the %s is %s.", yes ? "Yes" : "No", tx.s,
            attribute_value(a, attribute(&s->obj[i], a)), ty.s, attribute_value(a, attribute(&s->obj[j], a)));
        kind(q, "compare", "compare", "attr", same ? "twoSame" : "twoDifferent", "");
        PUT(q->program,
            "BOX0=LOC(image=IMAGE,object='%s')\nIMAGE0=CROP(image=IMAGE,box=BOX0)\nBOX1=LOC(image=IMAGE,"
            "object='%s')\n"
            "IMAGE1=CROP(image=IMAGE,box=BOX1)\nANSWER0=VQA(image=IMAGE0,question='%s')\nANSWER1=VQA(image="
            "IMAGE1,question='%s')\n"
            "ANSWER2=EVAL(expr=\"'yes' if {ANSWER0} %s {ANSWER1} else "
            "'no'\")\nFINAL_RESULT=RESULT(var=ANSWER2)",
            tx.s, ty.s, attribute_question(a, x).s, attribute_question(a, y).s, same ? "==" : "!=");
        const int dx = add_select(q, s, x), dy = add_select(q, s, y);
        Text op;
        PUT(op.s, "%s %s", same ? "same" : "different", attribute_word(a));
        add_op(q, op.s, dx, dy, "%s", "");
        refer(q, x, i);
        refer(q, y, j);
        return true;
    }
    return false;
}

static bool build_logical(const Scene *s, bool yes, bool both, SceneQuestion *q, SceneRng *r) {
    /* One part settles it: both are there for a true "and", neither for a false "or". Otherwise mostly the
     * informative case, one there and one not; sometimes neither (and) or both (or). */
    const bool mixed = rng_chance(r, 0.75f), flip = rng_chance(r, 0.5f);
    const bool settled = both == yes;
    const bool ta = settled ? yes : both ? mixed : true, tb = settled ? yes : both ? false : !mixed;
    Phrase a, b;
    if (!pick_existing(s, flip ? tb : ta, &a, r) || !pick_existing(s, flip ? ta : tb, &b, r)) return false;
    if (a.category == b.category) return false;
    const Text xa = with_article(a), xb = with_article(b);
    if (both && rng_chance(r, 0.5f))
        PUT(q->question, "Are there both %s and %s?", xa.s, xb.s);
    else if (both)
        PUT(q->question, "Is there %s and %s?", xa.s, xb.s);
    else if (rng_chance(r, 0.5f))
        PUT(q->question, "Is there %s or %s?", xa.s, xb.s);
    else
        PUT(q->question, "Do you see either %s or %s?", xa.s, xb.s);
    answer_yes_no(q, yes);
    PUT(q->full_answer, "%s, there is%s %s %s %s.", yes ? "Yes" : "No", yes ? "" : " not", xa.s,
        both ? "and" : "or", xb.s);
    kind(q, both ? "and" : "or", "logical", "obj", both ? "existAnd" : "existOr", "");
    PUT(q->program,
        "BOX0=LOC(image=IMAGE,object='%s')\nBOX1=LOC(image=IMAGE,object='%s')\nANSWER0=COUNT(box=BOX0)\n"
        "ANSWER1=COUNT(box=BOX1)\nANSWER2=EVAL(expr=\"'yes' if {ANSWER0} > 0 %s {ANSWER1} > 0 else 'no'\")\n"
        "FINAL_RESULT=RESULT(var=ANSWER2)",
        phrase_text(a).s, phrase_text(b).s, both ? "and" : "or");
    const int ea = add_op(q, "exist", add_select(q, s, a), -1, "?");
    const int eb = add_op(q, "exist", add_select(q, s, b), -1, "?");
    add_op(q, both ? "and" : "or", ea, eb, "%s", "");
    if (count_matches(s, a)) refer(q, a, first_match(s, a));
    if (count_matches(s, b)) refer(q, b, first_match(s, b));
    return true;
}
static bool build_and(const Scene *s, bool yes, SceneQuestion *q, SceneRng *r) {
    return build_logical(s, yes, true, q, r);
}
static bool build_or(const Scene *s, bool yes, SceneQuestion *q, SceneRng *r) {
    return build_logical(s, yes, false, q, r);
}

/* A category by how often it occurs, with weights that even out the counts 0, 1, 2, 3+. */
static int pick_by_count(const Scene *s, Rect in, SceneRng *r, int *count) {
    static const float weight[SCENE_MAX_OBJECTS + 1] = {0.15f, 0.45f, 1.4f, 4, 8, 12};
    float w[SCENE_CATEGORIES], sum = 0;
    int n[SCENE_CATEGORIES], here[SCENE_MAX_OBJECTS + 1] = {0};
    for (int c = 0; c < SCENE_CATEGORIES; c++) n[c] = count_inside(s, bare(c), in, NULL);
    for (int c = 0; c < SCENE_CATEGORIES; c++)
        if (n[c] >= 0) here[n[c]]++;
    for (int c = 0; c < SCENE_CATEGORIES; c++) {
        w[c] = n[c] < 0 ? 0 : weight[n[c]] / (n[c] < 2 ? (float)here[n[c]] * 0.4f : 1);
        sum += w[c];
    }
    if (sum <= 0) return -1;
    float x = rng_unit(r) * sum;
    int c = 0;
    while (c < SCENE_CATEGORIES - 1 && (x >= w[c] || w[c] <= 0)) x -= w[c++];
    *count = n[c];
    return n[c] < 0 ? -1 : c;
}

static bool build_count(const Scene *s, bool yes, SceneQuestion *q, SceneRng *r) {
    (void)yes;
    int n = 0;
    const int c = pick_by_count(s, whole, r, &n);
    if (c < 0) return false;
    const char *plural = scene_category_plurals[c];
    if (rng_chance(r, 0.5f))
        PUT(q->question, "How many %s are there?", plural);
    else
        PUT(q->question, "How many %s are in the image?", plural);
    PUT(q->answer, "%d", n);
    PUT(q->full_answer, "There %s %d %s.", n == 1 ? "is" : "are", n,
        n == 1 ? scene_category_names[c] : plural);
    kind(q, "count", "count", "obj", "count", "count");
    PUT(q->program,
        "BOX0=LOC(image=IMAGE,object='%s')\nANSWER0=COUNT(box=BOX0)\nFINAL_RESULT=RESULT(var=ANSWER0)",
        scene_category_names[c]);
    add_op(q, "count", add_select(q, s, bare(c)), -1, "?"); /* our own: GQA does not count */
    return true;
}

/* 1: o lies wholly on side `dir` of the cut through the anchor's centre; 0: wholly on the other; -1: in
 * between. */
static int on_side(const SceneObject *anchor, const SceneObject *o, char dir) {
    const Rect c = scene_crop(whole, anchor->box, dir), b = o->box;
    switch (dir) {
    case 'L':
        return b.x1 + CUT_MARGIN <= c.x1 ? 1 : b.x0 - CUT_MARGIN >= c.x1 ? 0 : -1;
    case 'R':
        return b.x0 - CUT_MARGIN >= c.x0 ? 1 : b.x1 + CUT_MARGIN <= c.x0 ? 0 : -1;
    case 'A':
        return b.y1 + CUT_MARGIN <= c.y1 ? 1 : b.y0 - CUT_MARGIN >= c.y1 ? 0 : -1;
    default:
        return b.y0 - CUT_MARGIN >= c.y0 ? 1 : b.y1 + CUT_MARGIN <= c.y0 ? 0 : -1;
    }
}
/* How many matches other than the anchor are on that side; -1 when one straddles. *which: the last. */
static int count_side(const Scene *s, int anchor, char dir, const Phrase *p, int *which) {
    int n = 0;
    for (int i = 0; i < s->nobjects; i++) {
        if (i == anchor || (p && !matches(&s->obj[i], *p))) continue;
        const int side = on_side(&s->obj[anchor], &s->obj[i], dir);
        if (side < 0) return -1;
        if (side) n++, *which = i;
    }
    return n;
}

static bool relation_what(const Scene *s, SceneQuestion *q, SceneRng *r) {
    for (int t = 0; t < 2 * TRIES; t++) {
        int anchor, o = -1;
        Phrase p;
        if (!name_any(s, NATTR, &p, &anchor, r)) return false;
        const struct Direction *d = &directions[rng_below(r, 4)];
        if (count_side(s, anchor, d->crop, NULL, &o) != 1 || s->obj[o].category == p.category) continue;
        const Text tp = phrase_text(p);
        PUT(q->question, "What is %s the %s?", d->words, tp.s);
        PUT(q->answer, "%s", scene_category_names[s->obj[o].category]);
        PUT(q->full_answer, "The %s is %s the %s.", q->answer, d->words, tp.s);
        kind(q, "relation", "query", "rel", "categoryRelS", "category");
        PUT(q->program,
            "BOX0=LOC(image=IMAGE,object='%s')\nIMAGE0=%s(image=IMAGE,box=BOX0)\nANSWER0=VQA(image=IMAGE0,"
            "question='%s')\n"
            "FINAL_RESULT=RESULT(var=ANSWER0)",
            tp.s, d->module, q->question);
        const int from = add_select(q, s, p);
        const int to = add_op(q, "relate", from, -1, "_,%s,s (%d)", d->words, o);
        add_op(q, "query", to, -1, "name");
        refer(q, p, anchor);
        return true;
    }
    return false;
}

static bool relation_attribute(const Scene *s, SceneQuestion *q, SceneRng *r) {
    for (int t = 0; t < 2 * TRIES; t++) {
        int anchor, o = -1;
        Phrase p;
        if (!name_any(s, NATTR, &p, &anchor, r)) return false;
        const struct Direction *d = &directions[rng_below(r, 4)];
        const Phrase target = bare(s->obj[rng_below(r, s->nobjects)].category);
        if (target.category == p.category || count_side(s, anchor, d->crop, &target, &o) != 1) continue;
        const Attribute a = rng_chance(r, 0.6f) ? COLOR : PATTERN;
        const Text tp = phrase_text(p), tt = phrase_text(target);
        if (a == COLOR)
            PUT(q->question, "What color is the %s %s the %s?", tt.s, d->words, tp.s);
        else
            PUT(q->question, "What pattern is on the %s %s the %s?", tt.s, d->words, tp.s);
        PUT(q->answer, "%s", attribute_value(a, attribute(&s->obj[o], a)));
        PUT(q->full_answer, "The %s %s the %s is %s.", tt.s, d->words, tp.s, q->answer);
        kind(q, "relation", "query", "attr", "attrRelS", attribute_word(a));
        PUT(q->program,
            "BOX0=LOC(image=IMAGE,object='%s')\nIMAGE0=%s(image=IMAGE,box=BOX0)\nBOX1=LOC(image=IMAGE0,"
            "object='%s')\n"
            "IMAGE1=CROP(image=IMAGE0,box=BOX1)\nANSWER0=VQA(image=IMAGE1,question='%s')\nFINAL_RESULT="
            "RESULT(var=ANSWER0)",
            tp.s, d->module, tt.s, attribute_question(a, target).s);
        const int from = add_select(q, s, p);
        const int to = add_op(q, "relate", from, -1, "%s,%s,s (%d)", tt.s, d->words, o);
        add_op(q, "query", to, -1, "%s", attribute_word(a));
        refer(q, target, o);
        refer(q, p, anchor);
        return true;
    }
    return false;
}

static bool build_relation(const Scene *s, bool yes, SceneQuestion *q, SceneRng *r) {
    for (int t = 0; t < 2 * TRIES; t++) {
        int anchor, o = -1;
        Phrase p, target;
        if (!name_any(s, NATTR, &p, &anchor, r)) return false;
        const struct Direction *d = &directions[rng_below(r, 4)];
        if (yes || t < TRIES)
            target = bare(s->obj[rng_below(r, s->nobjects)].category); /* a no: mostly on the wrong side */
        else
            target = bare(rng_below(r, SCENE_CATEGORIES));
        if (target.category == p.category) continue;
        const int n = count_side(s, anchor, d->crop, &target, &o);
        if (n < 0 || (n > 0) != yes) continue;
        const Text tp = phrase_text(p), tt = phrase_text(target);
        PUT(q->question, "Is there %s %s the %s?", with_article(target).s, d->words, tp.s);
        answer_yes_no(q, yes);
        PUT(q->full_answer, "%s, there is %s %s %s the %s.", yes ? "Yes" : "No", yes ? "a" : "no", tt.s,
            d->words, tp.s);
        kind(q, "relation", "verify", "rel", "existRelS", "");
        PUT(q->program,
            "BOX0=LOC(image=IMAGE,object='%s')\nIMAGE0=%s(image=IMAGE,box=BOX0)\nBOX1=LOC(image=IMAGE0,"
            "object='%s')\n"
            "ANSWER0=COUNT(box=BOX1)\nANSWER1=EVAL(expr=\"'yes' if {ANSWER0} > 0 else "
            "'no'\")\nFINAL_RESULT=RESULT(var=ANSWER1)",
            tp.s, d->module, tt.s);
        const int from = add_select(q, s, p);
        if (yes)
            add_op(q, "verify rel", from, -1, "%s,%s,s (%d)", tt.s, d->words, o);
        else
            add_op(q, "verify rel", from, -1, "%s,%s,s (-)", tt.s, d->words);
        if (yes) refer(q, target, o);
        refer(q, p, anchor);
        return true;
    }
    return false;
}
static bool build_relation_open(const Scene *s, bool yes, SceneQuestion *q, SceneRng *r) {
    (void)yes;
    return rng_chance(r, 0.5f) ? relation_what(s, q, r) : relation_attribute(s, q, r);
}

/* LOC's 'LEFT' is a half, CROP makes it 62.5% of the image: we ask only about objects that the other side's
 * crop does not show at all. 0 left, 1 right, 2 top, 3 bottom, -1 unclear. The rectangles are the
 * reference's, see LOC and CROP. */
static int side_of(const SceneObject *o, bool vertical) {
    const Rect left = scene_crop(whole, (Rect){0, 0, SCENE_W / 2, SCENE_H - 1}, 'C');
    const Rect right = scene_crop(whole, (Rect){SCENE_W / 2, 0, SCENE_W - 1, SCENE_H - 1}, 'C');
    const Rect top = scene_crop(whole, (Rect){0, 0, SCENE_W - 1, SCENE_H / 2}, 'C');
    const Rect bottom = scene_crop(whole, (Rect){0, SCENE_H / 2, SCENE_W - 1, SCENE_H - 1}, 'C');
    if (!vertical) return o->box.x1 <= right.x0 ? 0 : o->box.x0 >= left.x1 ? 1 : -1;
    return o->box.y1 <= bottom.y0 ? 2 : o->box.y0 >= top.y1 ? 3 : -1;
}

static bool build_side(const Scene *s, bool yes, SceneQuestion *q, SceneRng *r) {
    (void)yes;
    static const char *const side_words[4] = {"left", "right", "top", "bottom"};
    const bool vertical = rng_chance(r, 0.3f);
    for (int t = 0; t < TRIES; t++) {
        int o;
        Phrase p;
        if (!name_any(s, NATTR, &p, &o, r)) return false;
        const int side = side_of(&s->obj[o], vertical);
        if (side < 0) continue;
        const Text tp = phrase_text(p);
        const bool first = rng_chance(r, 0.5f); /* which side is said first, and looked at by the program */
        const char *a = side_words[2 * vertical + !first], *b = side_words[2 * vertical + first];
        if (vertical)
            PUT(q->question, "Is the %s at the %s or at the %s of the image?", tp.s, a, b);
        else
            PUT(q->question, "Is the %s on the %s or on the %s side of the image?", tp.s, a, b);
        PUT(q->answer, "%s", side_words[side]);
        PUT(q->full_answer, "The %s is %s the %s%s of the image.", tp.s, vertical ? "at" : "on",
            side_words[side], vertical ? "" : " side");
        kind(q, "side", "choose", "attr", "positionChoose", vertical ? "vposition" : "hposition");
        char region[8] = "";
        for (int i = 0; a[i]; i++) region[i] = (char)(a[i] - 'a' + 'A');
        PUT(q->program,
            "BOX0=LOC(image=IMAGE,object='%s')\nIMAGE0=CROP(image=IMAGE,box=BOX0)\nBOX1=LOC(image=IMAGE0,"
            "object='%s')\n"
            "ANSWER0=COUNT(box=BOX1)\nANSWER1=EVAL(expr=\"'%s' if {ANSWER0} > 0 else "
            "'%s'\")\nFINAL_RESULT=RESULT(var=ANSWER1)",
            region, tp.s, a, b);
        add_op(q, vertical ? "choose vposition" : "choose hposition", add_select(q, s, p), -1, "%s|%s", a, b);
        refer(q, p, o);
        return true;
    }
    return false;
}

static const struct {
    Builder *build;
    bool binary;
    float weight;
} builders[] = {
    {build_exist, true, 12},   {build_query, false, 18},
    {build_verify, true, 12},  {build_choose, false, 11},
    {build_compare, true, 14}, {build_and, true, 7},
    {build_or, true, 7},       {build_count, false, 10},
    {build_relation, true, 9}, {build_relation_open, false, 6},
    {build_side, false, 8},
};

static int pick_weighted(SceneRng *r) {
    float sum = 0;
    for (int i = 0; i < COUNT_OF(builders); i++) sum += builders[i].weight;
    float x = rng_unit(r) * sum;
    for (int i = 0; i < COUNT_OF(builders) - 1; i++)
        if ((x -= builders[i].weight) < 0) return i;
    return COUNT_OF(builders) - 1;
}

static bool build(Builder *b, const Scene *s, bool yes, SceneQuestion *q, SceneRng *r) {
    for (int t = 0; t < 6; t++) {
        memset(q, 0, sizeof *q);
        if (b(s, yes, q, r)) return true;
    }
    return false;
}

int scene_questions(const Scene *s, SceneQuestion *out, int max, SceneRng *r) {
    int n = 0;
    SceneQuestion other;
    for (int t = 0; t < 12 * max && n < max; t++) {
        const int k = pick_weighted(r);
        const bool yes = rng_chance(r, 0.5f);
        /* Both truths must be possible here: else "the same color?" would be no by the kind of scene alone.
         */
        if (!build(builders[k].build, s, yes, &out[n], r)) continue;
        if (builders[k].binary && !build(builders[k].build, s, !yes, &other, r)) continue;
        bool fresh = true;
        for (int i = 0; i < n; i++) fresh &= strcmp(out[i].question, out[n].question) != 0;
        n += fresh;
    }
    return n;
}

/* --- statements about two images
 * ---------------------------------------------------------------------------- */

static Phrase pick_phrase(const Scene *const pair[2], SceneRng *r) {
    const Scene *s = pair[rng_below(r, 2)];
    const SceneObject *o = &s->obj[rng_below(r, s->nobjects)];
    const int kind = rng_below(r, 10);
    if (kind < 2) return bare(rng_below(r, SCENE_CATEGORIES));
    return (Phrase){o->category, kind >= 7 ? o->color : -1, -1};
}

static bool state(const Scene *const pair[2], int kind, bool want, SceneStatement *out, SceneRng *r) {
    static const char *const side_words[2] = {"left", "right"};
    static const char *const side_images[2] = {"LEFT", "RIGHT"};
    memset(out, 0, sizeof *out);
    Phrase p = pick_phrase(pair, r);
    const int n[2] = {count_matches(pair[0], p), count_matches(pair[1], p)}, total = n[0] + n[1];
    const int side = rng_below(r, 2), off = 1 + rng_below(r, 2), up = rng_below(r, 2);
    const Text one = with_article(p), name = phrase_text(p), many = phrase_plural(p);
    out->label = want;
    Text how, is;
    PUT(how.s, "How many %s are in the image?", many.s);
    PUT(is.s, "Is there %s in the image?", one.s);
    const char *eval = "";
    bool truth = false;
    int said;
    switch (kind) {
    case 0:
    case 1: /* a number in one image; a wrong one is off by 1 or 2 */
        said = want ? n[side] : up || n[side] < off ? n[side] + off : n[side] - off;
        if (said < 1 || said > 9) return false;
        truth = kind == 0 ? n[side] == said : n[side] >= said;
        if (kind == 0)
            PUT(out->sentence, "There %s %d %s in the %s image.", said == 1 ? "is" : "are", said,
                said == 1 ? name.s : many.s, side_words[side]);
        else
            PUT(out->sentence, "The %s image contains at least %d %s.", side_words[side], said,
                said == 1 ? name.s : many.s);
        PUT(out->type, "%s", kind == 0 ? "number" : "at least");
        PUT(out->program,
            "ANSWER0=VQA(image=%s,question='%s')\nANSWER1=EVAL(expr='{ANSWER0} %s "
            "%d')\nFINAL_ANSWER=RESULT(var=ANSWER1)",
            side_images[side], how.s, kind == 0 ? "==" : ">=", said);
        return truth == want;
    case 2:
        truth = n[0] && n[1];
        eval = "{ANSWER0} and {ANSWER1}";
        PUT(out->type, "both"), PUT(out->sentence, "Both images contain %s.", one.s);
        break;
    case 3:
        truth = n[0] || n[1];
        eval = "{ANSWER0} or {ANSWER1}";
        PUT(out->type, "some"), PUT(out->sentence, "At least one image contains %s.", one.s);
        break;
    case 4:
        truth = !n[0] != !n[1];
        eval = "{ANSWER0} xor {ANSWER1}";
        PUT(out->type, "one"), PUT(out->sentence, "Exactly one image contains %s.", one.s);
        break;
    case 5:
        truth = !n[0] && !n[1];
        eval = "not {ANSWER0} and not {ANSWER1}";
        PUT(out->type, "neither"), PUT(out->sentence, "Neither image contains %s.", one.s);
        break;
    case 6:
        truth = n[side] > n[!side];
        if (!total) return false;
        PUT(out->type, "more");
        PUT(out->sentence, "There are more %s in the %s image than in the %s image.", many.s,
            side_words[side], side_words[!side]);
        PUT(out->program,
            "ANSWER0=VQA(image=LEFT,question='%s')\nANSWER1=VQA(image=RIGHT,question='%s')\n"
            "ANSWER2=EVAL(expr='{ANSWER%d} > {ANSWER%d}')\nFINAL_ANSWER=RESULT(var=ANSWER2)",
            how.s, how.s, side, !side);
        return truth == want;
    default:
        said = want ? total : up || total < off ? total + off : total - off;
        if (said < 1 || said > 9) return false;
        truth = said == total;
        PUT(out->type, "total");
        PUT(out->sentence, "The two images contain %d %s in total.", said, said == 1 ? name.s : many.s);
        PUT(out->program,
            "ANSWER0=VQA(image=LEFT,question='%s')\nANSWER1=VQA(image=RIGHT,question='%s')\n"
            "ANSWER2=EVAL(expr='{ANSWER0} + {ANSWER1} == %d')\nFINAL_ANSWER=RESULT(var=ANSWER2)",
            how.s, how.s, said);
        return truth == want;
    }
    PUT(out->program,
        "ANSWER0=VQA(image=LEFT,question='%s')\nANSWER1=VQA(image=RIGHT,question='%s')\n"
        "ANSWER2=EVAL(expr='%s')\nFINAL_ANSWER=RESULT(var=ANSWER2)",
        is.s, is.s, eval);
    return truth == want;
}

int scene_statements(const Scene *left, const Scene *right, SceneStatement *out, int max, SceneRng *r) {
    const Scene *const pair[2] = {left, right};
    int n = 0;
    for (int t = 0; t < 12 * max && n < max; t++) {
        SceneStatement made[2];
        const int kind = rng_below(r, 8);
        bool have[2] = {false, false};
        for (int want = 0; want < 2; want++)
            for (int k = 0; k < TRIES && !have[want]; k++)
                have[want] = state(pair, kind, want, &made[want], r);
        const bool want = rng_chance(r, 0.5f);
        if (!have[0] || !have[1]) continue;
        out[n] = made[want];
        bool fresh = true;
        for (int i = 0; i < n; i++) fresh &= strcmp(out[i].sentence, out[n].sentence) != 0;
        n += fresh;
    }
    return n;
}

/* --- labelled steps
 * ----------------------------------------------------------------------------------------- */

static int clampi(int x, int lo, int hi) { return x < lo ? lo : x > hi ? hi : x; }

/* A box as an imperfect detector would give it: each side moved by up to `share` of the box. */
static Rect jitter(Rect b, float share, SceneRng *r) {
    const float w = (float)rect_w(b) * share, h = (float)rect_h(b) * share;
    Rect j;
    j.x0 = clampi(b.x0 + (int)rng_range(r, -w, w), 0, SCENE_W - 8);
    j.y0 = clampi(b.y0 + (int)rng_range(r, -h, h), 0, SCENE_H - 8);
    j.x1 = clampi(b.x1 + (int)rng_range(r, -w, w), j.x0 + 8, SCENE_W);
    j.y1 = clampi(b.y1 + (int)rng_range(r, -h, h), j.y0 + 8, SCENE_H);
    return j;
}

static Rect object_rect(const SceneObject *o, SceneRng *r) {
    const int how = rng_below(r, 100);
    if (how < 40) return scene_crop(whole, o->box, 'C');
    if (how < 85) {
        const float share = rng_chance(r, 0.7f) ? 0.12f : 0.3f;
        return scene_crop(whole, jitter(o->box, share, r), 'C');
    }
    return jitter(o->box, 0.1f, r);
}

/* A rectangle as programs make them before the last LOC or VQA: whole, halves, sides of an object, anywhere.
 */
static Rect wide_rect(const Scene *s, SceneRng *r) {
    static const Rect halves[4] = {{0, 0, SCENE_W / 2, SCENE_H - 1},
                                   {SCENE_W / 2, 0, SCENE_W - 1, SCENE_H - 1},
                                   {0, 0, SCENE_W - 1, SCENE_H / 2},
                                   {0, SCENE_H / 2, SCENE_W - 1, SCENE_H - 1}};
    const int how = rng_below(r, 100);
    if (how < 55) return whole;
    if (how < 70) return scene_crop(whole, halves[rng_below(r, 4)], 'C');
    const SceneObject *o = &s->obj[rng_below(r, s->nobjects)];
    const Rect c = scene_crop(whole, o->box, "LRAB"[rng_below(r, 4)]);
    return rect_w(c) < 24 || rect_h(c) < 24 ? whole : c;
}

/* The object that a crop is about: its centre is inside the box and it fills far more than any other. */
static bool is_subject(const Scene *s, int i, Rect r) {
    const Rect b = s->obj[i].box;
    const int cx = (r.x0 + r.x1) / 2, cy = (r.y0 + r.y1) / 2;
    if (cx < b.x0 || cx >= b.x1 || cy < b.y0 || cy >= b.y1 || scene_inside(&s->obj[i], r) < SEEN_MIN)
        return false;
    const float mine = scene_inside(&s->obj[i], r) * (float)(rect_w(b) * rect_h(b)) * s->obj[i].visible;
    for (int k = 0; k < s->nobjects; k++) {
        const Rect o = s->obj[k].box;
        if (k != i && scene_inside(&s->obj[k], r) * (float)(rect_w(o) * rect_h(o)) > 0.6f * mine)
            return false;
    }
    return true;
}

static Phrase adorn(const SceneObject *o, float p, SceneRng *r) {
    Phrase x = bare(o->category);
    if (!rng_chance(r, p)) return x;
    if (rng_chance(r, 0.6f))
        x.color = o->color;
    else
        x.pattern = o->pattern;
    return x;
}
/* A phrase for something that may well not be there: another attribute of object o, or any category. */
static Phrase near_miss(const SceneObject *o, SceneRng *r) {
    const int how = rng_below(r, 10);
    if (how < 2) return (Phrase){o->category, other_value(COLOR, o->color, r), -1};
    if (how < 3) return (Phrase){o->category, -1, other_value(PATTERN, o->pattern, r)};
    Phrase p = bare(rng_below(r, SCENE_CATEGORIES));
    if (how < 5) p.color = rng_chance(r, 0.5f) ? o->color : rng_below(r, SCENE_COLORS);
    return p;
}

/* Is there a ...? with the wanted truth on this rectangle. */
static bool step_exist(const Scene *s, int i, bool yes, SceneStep *st, SceneRng *r) {
    const Phrase p = yes ? adorn(&s->obj[i], 0.4f, r) : near_miss(&s->obj[i], r);
    const int n = count_inside(s, p, st->rect, NULL);
    if (n < 0 || (n > 0) != yes) return false;
    if (rng_chance(r, 0.85f))
        PUT(st->query, "Is there %s?", with_article(p).s);
    else
        PUT(st->query, "Is there %s in the image?", with_article(p).s); /* the NLVR programs' words */
    PUT(st->answer, "%s", yes ? "yes" : "no");
    return true;
}

static bool step_attribute(const Scene *s, int i, Attribute a, SceneStep *st, SceneRng *r) {
    Phrase p;
    if (scene_inside(&s->obj[i], st->rect) < SEEN_MIN || !name_object(s, i, a, st->rect, &p, r)) return false;
    PUT(st->query, "%s", attribute_question(a, p).s);
    PUT(st->answer, "%s", attribute_value(a, attribute(&s->obj[i], a)));
    return true;
}

static bool step_on_object(const Scene *s, SceneStep *st, SceneRng *r) {
    const int i = rng_below(r, s->nobjects), what = rng_below(r, 100);
    st->rect = object_rect(&s->obj[i], r);
    if (what >= 70) {
        const bool yes = rng_chance(r, STEP_YES);
        return step_exist(s, i, yes, st, r);
    }
    if (!is_subject(s, i, st->rect)) return false;
    if (what < 30) return step_attribute(s, i, COLOR, st, r);
    if (what < 50) return step_attribute(s, i, PATTERN, st, r);
    PUT(st->query, "What is this?");
    PUT(st->answer, "%s", scene_category_names[s->obj[i].category]);
    return true;
}

static bool step_on_scene(const Scene *s, SceneStep *st, SceneRng *r) {
    const int i = rng_below(r, s->nobjects), what = rng_below(r, 100);
    Phrase p;
    st->rect = wide_rect(s, r);
    if (what < 30) {
        const bool yes = rng_chance(r, STEP_YES);
        return step_exist(s, i, yes, st, r);
    }
    if (what < 44) return step_attribute(s, i, COLOR, st, r);
    if (what < 54) return step_attribute(s, i, PATTERN, st, r);
    if (what < 78) {
        int n = 0;
        if (rng_chance(r, 0.25f)) { /* "red balls", as statements ask */
            p = rng_chance(r, 0.7f) ? (Phrase){s->obj[i].category, s->obj[i].color, -1}
                                    : near_miss(&s->obj[i], r);
            p.pattern = -1;
            n = count_inside(s, p, st->rect, NULL);
        } else {
            const int c = pick_by_count(s, st->rect, r, &n);
            if (c < 0) return false;
            p = bare(c);
        }
        if (n < 0) return false;
        PUT(st->query, rng_chance(r, 0.5f) ? "How many %s are there?" : "How many %s are in the image?",
            phrase_plural(p).s);
        PUT(st->answer, "%d", n);
        return true;
    }
    if (what < 86) {
        st->rect = whole; /* small and large only mean something here, and not of the single object of a first
                             lesson */
        if (s->nobjects == 1 || !name_object(s, i, NATTR, whole, &p, r)) return false;
        PUT(st->query, "What size is the %s?", phrase_text(p).s);
        PUT(st->answer, "%s", scene_size_names[s->obj[i].size]);
        return true;
    }
    /* As relation programs ask on the side of an anchor: one object there besides half of the anchor. */
    int o = -1;
    const struct Direction *d = &directions[rng_below(r, 4)];
    if (!name_object(s, i, NATTR, whole, &p, r) || count_side(s, i, d->crop, NULL, &o) != 1) return false;
    if (s->obj[o].category == p.category) return false;
    st->rect = rng_chance(r, 0.7f) ? scene_crop(whole, s->obj[i].box, d->crop) : whole;
    PUT(st->query, "What is %s the %s?", d->words, phrase_text(p).s);
    PUT(st->answer, "%s", scene_category_names[s->obj[o].category]);
    return true;
}

/* A candidate box that a detector might propose anywhere: mostly nothing, part of an object, or between two.
 */
static bool step_anywhere(const Scene *s, SceneStep *st, SceneRng *r) {
    const int w = 24 + rng_below(r, 60), h = 24 + rng_below(r, 60);
    st->rect.x0 = rng_below(r, SCENE_W - w + 1);
    st->rect.y0 = rng_below(r, SCENE_H - h + 1);
    st->rect.x1 = st->rect.x0 + w;
    st->rect.y1 = st->rect.y0 + h;
    int near = rng_below(r, s->nobjects); /* ask for what is seen in part, if anything is */
    for (int i = 0; i < s->nobjects; i++)
        if (scene_inside(&s->obj[i], st->rect) > scene_inside(&s->obj[near], st->rect)) near = i;
    const Phrase p = rng_chance(r, 0.6f) ? adorn(&s->obj[near], 0.3f, r) : near_miss(&s->obj[near], r);
    const int n = count_inside(s, p, st->rect, NULL);
    if (n != 0) return false;
    PUT(st->query, "Is there %s?", with_article(p).s);
    PUT(st->answer, "no");
    return true;
}

static bool step_loc(const Scene *s, SceneStep *st, SceneRng *r) {
    const SceneObject *o = &s->obj[rng_below(r, s->nobjects)];
    st->loc = true;
    st->rect = rng_chance(r, 0.4f) ? whole : wide_rect(s, r);
    const Phrase p = rng_chance(r, 0.75f) ? adorn(o, 0.35f, r) : near_miss(o, r);
    if (count_inside(s, p, st->rect, NULL) < 0) return false;
    PUT(st->query, "%s", phrase_text(p).s);
    for (int i = 0; i < s->nobjects; i++) {
        const Rect b = s->obj[i].box, in = st->rect;
        if (!matches(&s->obj[i], p) || scene_inside(&s->obj[i], in) < SEEN_MIN) continue;
        st->box[st->nobj] = (Rect){MAX(b.x0, in.x0), MAX(b.y0, in.y0), MIN(b.x1, in.x1), MIN(b.y1, in.y1)};
        st->obj[st->nobj++] = i;
    }
    return true;
}

int scene_steps(const Scene *s, SceneStep *out, int max, SceneRng *r) {
    int n = 0;
    for (int t = 0; t < 20 * max && n < max; t++) {
        SceneStep *st = &out[n];
        memset(st, 0, sizeof *st);
        const int what = rng_below(r, 100);
        const bool made = what < 45   ? step_on_object(s, st, r)
                          : what < 65 ? step_on_scene(s, st, r)
                          : what < 70 ? step_anywhere(s, st, r)
                                      : step_loc(s, st, r);
        if (made && rect_w(st->rect) >= 8 && rect_h(st->rect) >= 8) n++;
    }
    return n;
}
