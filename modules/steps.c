/* steps.c -- the table of steps, and what those do that need no network. See steps.h. */
#include "modules/steps.h"

#include <math.h>

#include "engine/trace.h"
#include "modules/edit.h"

/* ---- crops ---------------------------------------------------------------------------------------------------- */

Rect crop_rect(CropKind kind, const Rect *box, bool exact, int W, int H, bool strict) {
    const int lost = strict ? 0 : 1; /* the reference takes its last pixel for an exclusive end */
    if (!box) {
        if (kind == CROP_AROUND) return (Rect){0, 0, W, H};
        if (kind == CROP_RIGHTOF) return (Rect){W / 2, 0, W - lost, H - lost};
        if (kind == CROP_ABOVE && strict) return (Rect){0, 0, W, H / 2};
        if (kind == CROP_BELOW && strict) return (Rect){0, H / 2, W, H};
        return (Rect){0, 0, W / 2, H - lost}; /* also for above and below: sic */
    }
    int64_t x0 = box->x0, y0 = box->y0, x1 = box->x1, y1 = box->y1;
    if (kind == CROP_AROUND && exact && strict) return *box;
    int64_t cx = (x0 + x1) / 2, cy = (y0 + y1) / 2;
    int64_t dw = 3 * (x1 - x0) / 4, dh = 3 * (y1 - y0) / 4; /* int(1.5 * side / 2): half of the side, enlarged by 1.5 */
    switch (kind) {
    case CROP_AROUND:
        return (Rect){(int)MAX(0, cx - dw), (int)MAX(0, cy - dh), (int)MIN(cx + dw, W), (int)MIN(cy + dh, H)};
    case CROP_LEFTOF: return (Rect){0, 0, (int)cx, H - lost};
    case CROP_RIGHTOF: return (Rect){(int)cx, 0, W - lost, H - lost};
    case CROP_ABOVE: return (Rect){0, 0, W - lost, (int)cy};
    default: return (Rect){0, (int)cy, W - lost, H - lost};
    }
}

/* One side a..b within 0..n: clamped; when shorter than `least`, grown to CROP_MIN (or n) around its middle. */
static bool grow_side(int *a, int *b, int n, int least) {
    *a = MIN(MAX(*a, 0), n);
    *b = MIN(MAX(*b, 0), n);
    if (*b - *a >= MIN(least, n)) return false;
    int want = MIN(CROP_MIN, n), mid = (*a + *b) / 2;
    *a = MIN(MAX(mid - want / 2, 0), n - want);
    *b = *a + want;
    return true;
}

Value crop_image(CropKind kind, const Value *image, const Boxes *boxes, bool strict) {
    Value v = *image;
    const Rect of = image->image.rect;
    const int W = rect_w(of), H = rect_h(of), least = strict ? CROP_MIN : 1;
    Rect r = crop_rect(kind, boxes->n ? &boxes->box[0].rect : NULL, boxes->exact, W, H, strict);
    bool w = grow_side(&r.x0, &r.x1, W, least), h = grow_side(&r.y0, &r.y1, H, least);
    v.image.rect = (Rect){of.x0 + r.x0, of.y0 + r.y0, of.x0 + r.x1, of.y0 + r.y1};
    v.grown |= w || h;
    v.missing |= boxes->n == 0;
    return v;
}

bool side_box(Rect *out, Str name, int W, int H, bool strict) {
    const int last = strict ? 0 : 1;
#define IS(w) (name.n == (int)sizeof(w) - 1 && !memcmp(name.s, w, sizeof(w) - 1))
    if (IS("TOP")) *out = (Rect){0, 0, W - last, H / 2};
    else if (IS("BOTTOM")) *out = (Rect){0, H / 2, W - last, H - last};
    else if (IS("LEFT")) *out = (Rect){0, 0, W / 2, H - last};
    else if (IS("RIGHT")) *out = (Rect){W / 2, 0, W - last, H - last};
    else return false;
#undef IS
    return true;
}

/* ---- detections ----------------------------------------------------------------------------------------------- */

/* Heap sort of indices: before(a, b) says which comes first. Our own, because qsort may allocate. */
typedef struct Ranked { const float *score; bool ties_up; } Ranked; /* ties_up: of equal scores the lower index first */

static bool before(const Ranked *r, int a, int b) {
    if (r->score[a] != r->score[b]) return r->score[a] > r->score[b];
    return r->ties_up ? a < b : a > b;
}

static void sift(const Ranked *r, int *at, int i, int n) { /* the root of a heap is what comes last */
    for (int k; (k = 2 * i + 1) < n; i = k) {
        if (k + 1 < n && before(r, at[k], at[k + 1])) k++;
        if (!before(r, at[i], at[k])) return;
        int t = at[i];
        at[i] = at[k];
        at[k] = t;
    }
}

static void rank(const Ranked *r, int *at, int n) {
    for (int i = n / 2 - 1; i >= 0; i--) sift(r, at, i, n);
    for (int last = n - 1; last > 0; last--) {
        int t = at[0];
        at[0] = at[last];
        at[last] = t;
        sift(r, at, 0, last);
    }
}

static double pixel_iou(Rect a, Rect b) {
    int64_t area_a = ((int64_t)a.x1 - a.x0 + 1) * ((int64_t)a.y1 - a.y0 + 1);
    int64_t area_b = ((int64_t)b.x1 - b.x0 + 1) * ((int64_t)b.y1 - b.y0 + 1);
    int64_t w = MAX(0, (int64_t)MIN(a.x1, b.x1) - MAX(a.x0, b.x0) + 1);
    int64_t h = MAX(0, (int64_t)MIN(a.y1, b.y1) - MAX(a.y0, b.y0) + 1);
    return (double)(w * h) / (double)(area_a + area_b - w * h); /* 0/0 of degenerate boxes is NaN: suppressed, as there */
}

int nms_boxes(int *keep, const Rect *box, const float *score, int n, double tau) {
    int kept = 0;
    for (int i = 0; i < n; i++) keep[i] = i;
    rank(&(Ranked){score, false}, keep, n);
    /* A box survives when no better survivor overlaps it: the same as removing round by round. kept <= i, so the list of
     * survivors may overwrite the candidates already judged. */
    for (int i = 0; i < n; i++) {
        bool survives = true;
        for (int k = 0; k < kept && survives; k++) survives = pixel_iou(box[keep[k]], box[keep[i]]) < tau;
        if (survives) keep[kept++] = keep[i];
    }
    return kept;
}

/* int() of a float, for values that a wild network may give: NaN is 0, the rest within 2^24. */
static int pixel(float f) { return f != f ? 0 : (int)fminf(fmaxf(f, -16777216.0f), 16777216.0f); }

int loc_postprocess(Box *out, int max, const float *cxcywh, const float *score, int Q, int W, int H, float threshold,
                    double tau, bool strict, Arena *scratch) {
    size_t mark = arena_mark(scratch);
    int *order = arena_alloc(scratch, (size_t)Q * sizeof *order), n = 0, m = 0;
    for (int q = 0; q < Q; q++)
        if (score[q] > threshold) order[n++] = q;
    rank(&(Ranked){score, true}, order, n);

    Rect *rect = arena_alloc(scratch, (size_t)n * sizeof *rect);
    float *s = arena_alloc(scratch, (size_t)n * sizeof *s);
    int *keep = arena_alloc(scratch, (size_t)n * sizeof *keep), last = strict ? 0 : 1;
    for (int i = 0; i < n; i++) {
        const float *b = cxcywh + (int64_t)order[i] * 4; /* in f32 as the reference's tensors are */
        const float hw = 0.5f * b[2], hh = 0.5f * b[3];
        const float x0 = b[0] - hw, y0 = b[1] - hh, x1 = b[0] + hw, y1 = b[1] + hh;
        Rect r = {MAX(0, pixel(x0 * (float)W)), MAX(0, pixel(y0 * (float)H)), MIN(pixel(x1 * (float)W), W - last),
                  MIN(pixel(y1 * (float)H), H - last)};
        if (strict && (rect_w(r) < 1 || rect_h(r) < 1)) continue;
        order[m] = order[i];
        s[m] = score[order[i]];
        rect[m++] = r;
    }
    int kept = MIN(nms_boxes(keep, rect, s, m, tau), max);
    for (int i = 0; i < kept; i++) out[i] = (Box){rect[keep[i]], s[keep[i]], order[keep[i]]};
    arena_reset(scratch, mark);
    return kept;
}

/* ---- the steps that run here ---------------------------------------------------------------------------------- */

static bool is_side(const Value *const *args) {
    Rect r;
    return args[1] && args[1]->kind == VAL_STR && side_box(&r, args[1]->str, 2, 2, false);
}

static bool run_side(Value *out, const StepCall *c, Error *e) {
    const Rect of = c->args[0]->image.rect;
    Boxes *b = boxes_new(c->arena, 1, of);
    b->exact = true;
    b->box[0] = (Box){.score = 1, .query = -1};
    if (!side_box(&b->box[0].rect, c->args[1]->str, rect_w(of), rect_h(of), c->prog->strict))
        return fail_as(e, FAIL_DATA, "%.*s is not a side of the image", c->args[1]->str.n, c->args[1]->str.s);
    b->category = c->args[1]->str;
    *out = value_boxes(b);
    return true;
}

#define CROP_STEP(name, kind)                                                                                \
    static bool name(Value *out, const StepCall *c, Error *e) {                                              \
        (void)e;                                                                                             \
        *out = crop_image(kind, c->args[0], c->args[1]->boxes, c->prog->strict);                             \
        return true;                                                                                         \
    }
CROP_STEP(run_crop, CROP_AROUND)
CROP_STEP(run_leftof, CROP_LEFTOF)
CROP_STEP(run_rightof, CROP_RIGHTOF)
CROP_STEP(run_above, CROP_ABOVE)
CROP_STEP(run_below, CROP_BELOW)

static bool run_count(Value *out, const StepCall *c, Error *e) {
    (void)e;
    const Value *v = c->args[0];
    *out = value_int(v->kind == VAL_LIST ? v->list.n : v->boxes->n);
    return true;
}

static bool run_eval(Value *out, const StepCall *c, Error *e) {
    return expr_eval(out, c->step->expr, c->vars, c->arena, e);
}

static bool run_result(Value *out, const StepCall *c, Error *e) {
    (void)e;
    *out = *c->args[0];
    return true;
}

static bool run_lacking(Value *out, const StepCall *c, Error *e) {
    (void)out;
    return fail_as(e, FAIL_MODEL, "%s", c->step->kind->lacks);
}

/* ---- steps that make pictures --------------------------------------------------------------------------------- */

static const char *label_font = "", *emoji_font = "";

void steps_use_fonts(const char *label, const char *emoji) {
    label_font = label;
    emoji_font = emoji;
}

/* The picture that a step starts from and the one that it makes. */
typedef struct Picture {
    int w, h;
    const uint8_t *in; /* the rectangle of the first argument, by itself */
    uint8_t *out;      /* not filled yet */
} Picture;

/* Is there room for `want` more bytes in the job's arena? */
static bool room(const StepCall *c, size_t want, Error *e) {
    const Rect r = c->args[0]->image.rect;
    const size_t left = c->arena->limit - c->arena->used;
    if (want <= left) return true;
    return fail_as(e, FAIL_MEMORY, "an image of %d x %d pixels needs %zu MB of memory here, %zu are left (run fewer such programs at once, or a smaller image)", rect_w(r),
                   rect_h(r), (want >> 20) + 1, left >> 20);
}

/* Room for it and `scratch` bytes of working memory, or a sentence. */
static bool picture_open(Picture *p, const StepCall *c, size_t scratch, Error *e) {
    const Value *v = c->args[0];
    const ImageView *from = v->image.pixels;
    const Rect r = v->image.rect;
    CHECK(from && from->rgb, "%s of an image without pixels", c->step->kind->name);
    *p = (Picture){.w = rect_w(r), .h = rect_h(r)};
    const size_t bytes = (size_t)p->w * (size_t)p->h * 3;
    if (!room(c, 2 * bytes + scratch + 4096, e)) return false;
    p->out = arena_alloc(c->arena, bytes);
    p->in = from->rgb;
    if (p->w == from->w && p->h == from->h) return true;
    uint8_t *copy = arena_alloc(c->arena, bytes);
    for (int y = 0; y < p->h; y++)
        memcpy(copy + (size_t)y * (size_t)p->w * 3, from->rgb + ((int64_t)(r.y0 + y) * from->w + r.x0) * 3, (size_t)p->w * 3);
    p->in = copy;
    return true;
}

static void picture_copy(Picture *p) { memcpy(p->out, p->in, (size_t)p->w * (size_t)p->h * 3); }

static bool picture_done(const Picture *p, Value *out, const StepCall *c) {
    ImageView *v = arena_alloc(c->arena, sizeof *v);
    *v = (ImageView){p->out, p->w, p->h};
    *out = value_made(v);
    out->missing = c->args[0]->missing || c->args[1]->boxes->n == 0;
    out->grown = c->args[0]->grown;
    return true;
}

/* The objects' boxes on the picture, half-open. Returns how many lie on it. */
static int object_rects(Rect rect[BOXES_MAX], const Boxes *b, const Picture *p, bool strict) {
    int n = 0;
    for (int i = 0; i < b->n; i++) n += box_rect(&rect[n], &b->box[i], b->exact, p->w, p->h, strict);
    return n;
}

static bool run_colorpop(Value *out, const StepCall *c, Error *e) {
    Picture p;
    Rect rect[BOXES_MAX];
    if (!picture_open(&p, c, 0, e)) return false;
    const int n = object_rects(rect, c->args[1]->boxes, &p, c->prog->strict);
    if (!n && c->prog->strict) picture_copy(&p);
    else edit_colorpop(p.out, p.in, p.w, p.h, rect, n);
    return picture_done(&p, out, c);
}

static bool run_bgblur(Value *out, const StepCall *c, Error *e) {
    Picture p;
    Rect rect[BOXES_MAX];
    const Rect of = c->args[0]->image.rect;
    if (!picture_open(&p, c, edit_bgblur_bytes(rect_w(of), rect_h(of)), e)) return false;
    const int n = object_rects(rect, c->args[1]->boxes, &p, c->prog->strict);
    if (!n && c->prog->strict) picture_copy(&p);
    else edit_bgblur(p.out, p.in, p.w, p.h, rect, n, c->arena);
    return picture_done(&p, out, c);
}

static bool check_emoji(const Value *const *args, Error *e) {
    if (!args[2] || emoji_code(args[2]->str.s, args[2]->str.n)) return true;
    char name[64];
    snprintf(name, sizeof name, "%.*s", MIN(args[2]->str.n, 60), args[2]->str.s);
    const char *near = nearest(name, emoji_names, nemoji_names);
    return fail_as(e, FAIL_DATA, "there is no emoji \"%s\" (%s%s%s)", name, near ? "did you mean " : "as is, for one, ", near ? near : "winking_face", near ? "?" : "");
}

static bool run_emoji(Value *out, const StepCall *c, Error *e) {
    enum { STICKER = 1 << 21 }; /* working memory for the font's picture */
    const char *font = *emoji_font ? emoji_font : "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf";
    const Boxes *b = c->args[1]->boxes;
    Picture p;
    Sticker s;
    if (!check_emoji(c->args, e) || !picture_open(&p, c, STICKER, e)) return false;
    if (!font_emoji(&s, c->arena, font, emoji_code(c->args[2]->str.s, c->args[2]->str.n), e))
        return fail_in(e, "its pictures come from a colour font (Debian's fonts-noto-color-emoji, or name one with model.emoji_font)");
    /* At most 2/3 of the image high, in RGBA and RGB. */
    if (!room(c, STICKER + (size_t)(7 * 4.0 / 9 * p.h * p.h * s.w / s.h), e)) return false;
    picture_copy(&p);
    for (int i = 0; i < b->n; i++) {
        const Rect r = b->box[i].rect;
        const double box[4] = {MIN(MAX(r.x0, 0), p.w), MIN(MAX(r.y0, 0), p.h), MIN(MAX(r.x1, 0), p.w), MIN(MAX(r.y1, 0), p.h)};
        if (box[1] < box[3]) edit_emoji(p.out, p.w, p.h, &s, box, c->arena);
    }
    return picture_done(&p, out, c);
}

static bool run_tag(Value *out, const StepCall *c, Error *e) {
    enum { LETTERS = 16, TEXTS = 1 << 20 };
    const char *font = *label_font ? label_font : "/usr/share/fonts/truetype/dejavu/DejaVuSansMono-Bold.ttf";
    const Boxes *b = c->args[1]->boxes;
    Picture p;
    if (!picture_open(&p, c, TEXTS, e)) return false;
    picture_copy(&p);
    for (int i = 0; i < b->n; i++) {
        Rect r;
        if (!box_rect(&r, &b->box[i], b->exact, p.w, p.h, c->prog->strict)) continue;
        const Rect box = {r.x0, r.y0, r.x1 - 1, r.y1 - 1};
        edit_frame(p.out, p.w, p.h, box);
        if (!b->classes) continue;
        const size_t mark = arena_mark(c->arena);
        char text[256];
        TextMask mask;
        const int n = snprintf(text, sizeof text, "%.*s(%.1f)", MIN(b->classes[i].name.n, 200), b->classes[i].name.s, b->classes[i].score);
        if (!font_text(&mask, c->arena, font, LETTERS, text, n, e))
            return fail_in(e, "its labels need a font (Debian's fonts-dejavu-core, or name one with model.label_font)");
        edit_label(p.out, p.w, p.h, box, &mask);
        arena_reset(c->arena, mark);
    }
    return picture_done(&p, out, c);
}

/* ---- steps that ask about objects ----------------------------------------------------------------------------- */

static Str trimmed(Str t) {
    while (t.n && (t.s[0] == ' ' || t.s[0] == '\t')) t.s++, t.n--;
    while (t.n && (t.s[t.n - 1] == ' ' || t.s[t.n - 1] == '\t')) t.n--;
    return t;
}

static int lower(int c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; }

/* The next item of a text with commas, without the blanks around it when `trim`; false behind the last. Python's split: an
 * empty text has one empty item. */
static bool next_item(Str *item, Str *rest, bool trim) {
    if (!rest->s) return false;
    const char *comma = memchr(rest->s, ',', (size_t)rest->n);
    *item = (Str){rest->s, comma ? (int)(comma - rest->s) : rest->n};
    *rest = comma ? (Str){comma + 1, rest->n - item->n - 1} : (Str){NULL, 0};
    if (trim) *item = trimmed(*item);
    return true;
}

enum { TEXTS_MAX = 256 }; /* a step asks about at most BOXES_MAX objects with so many texts */

static int items_of(Str item[TEXTS_MAX], Str text, bool trim) {
    int n = 0;
    Str next;
    while (n < TEXTS_MAX && next_item(&next, &text, trim)) item[n++] = next;
    return text.s ? TEXTS_MAX + 1 : n;
}

static bool too_many(int n, Error *e) {
    return n <= TEXTS_MAX ? false : !fail_as(e, FAIL_DATA, "it can tell %d texts apart at once, these are more", TEXTS_MAX);
}

/* The object's pixels on the image: its box, not enlarged, but never empty. */
static Rect object_crop(const Value *image, const Box *b, bool strict) {
    const Rect of = image->image.rect;
    Rect r = b->rect;
    grow_side(&r.x0, &r.x1, rect_w(of), strict ? CROP_MIN : 1);
    grow_side(&r.y0, &r.y1, rect_h(of), strict ? CROP_MIN : 1);
    return (Rect){of.x0 + r.x0, of.y0 + r.y0, of.x0 + r.x1, of.y0 + r.y1};
}

/* Each of n objects with each of m texts, objects outermost. */
static int ask_pairs(StepAsk **ask, const StepCall *c, const int *object, int n, const Str *text, int m) {
    const Boxes *b = c->args[1]->boxes;
    const char **query = arena_alloc(c->arena, (size_t)m * sizeof *query);
    for (int j = 0; j < m; j++) query[j] = str_z(c->arena, text[j]);
    *ask = arena_alloc(c->arena, (size_t)n * (size_t)m * sizeof **ask);
    for (int i = 0; i < n; i++) {
        const Rect r = object_crop(c->args[0], &b->box[object[i]], c->prog->strict);
        for (int j = 0; j < m; j++) (*ask)[i * m + j] = (StepAsk){r, query[j]};
    }
    return n * m;
}

/* The n objects of b with these indices. classes: what they are now said to be; NULL: as before. */
static Value objects_of(Arena *a, const Boxes *b, const int *index, int n, const BoxClass *classes) {
    Boxes *to = boxes_new(a, n, b->of);
    to->exact = b->exact;
    to->category = b->category;
    BoxClass *said = classes || b->classes ? arena_alloc(a, (size_t)n * sizeof *said) : NULL;
    for (int i = 0; i < n; i++) {
        to->box[i] = b->box[index[i]];
        if (said) said[i] = classes ? classes[i] : b->classes[index[i]];
    }
    to->classes = said;
    return (Value){.kind = VAL_OBJECTS, .boxes = to};
}

/* Is the objects' category what a query's item calls "wall", or the segmenter's "wall-merged" or "wall-other-merged"? */
static bool is_called(Str category, Str item, bool strict) {
    static const char *const endings[] = {"", "-merged", "-other-merged"};
    for (int k = 0; k < COUNT_OF(endings); k++) {
        const int more = (int)strlen(endings[k]);
        if (category.n != item.n + more || memcmp(category.s + item.n, endings[k], (size_t)more)) continue;
        bool same = true;
        for (int i = 0; i < item.n && same; i++)
            same = (strict ? lower((uint8_t)category.s[i]) : category.s[i]) == lower((uint8_t)item.s[i]);
        if (same) return true;
    }
    return false;
}

/* The objects whose category says that they are meant; else the network is asked which object fits each item best. (A given
 * category first keeps the objects that have it and, when there are none, all. SEG's objects would differ in category; those
 * of a list here have one, so that all are kept either way.) */
static int select_asks(StepAsk **ask, Value *out, const StepCall *c, Error *e) {
    const Boxes *b = c->args[1]->boxes;
    const bool strict = c->prog->strict, by_name = !c->args[3] || c->args[3]->kind == VAL_NONE;
    Str item[TEXTS_MAX];
    int object[BOXES_MAX], chosen[BOXES_MAX], n = 0;
    const int m = items_of(item, c->args[2]->str, strict);
    if (too_many(m, e)) return -1;
    for (int i = 0; i < b->n; i++) object[i] = i;
    for (int j = 0; j < m && by_name; j++)
        for (int i = 0; i < b->n && b->category.n && is_called(b->category, item[j], strict); i++) {
            if (n == BOXES_MAX) return fail_as(e, FAIL_DATA, "more than %d objects are selected", BOXES_MAX), -1;
            chosen[n++] = i;
        }
    if (n || !b->n) {
        *out = objects_of(c->arena, b, chosen, n, NULL);
        return 0;
    }
    return ask_pairs(ask, c, object, b->n, item, m);
}

static double score_of(const Value *v) {
    CHECK(v->kind == VAL_FLOAT, "the similarity of a crop and a text is %s", value_kind_name(v->kind));
    return v->f;
}

/* For each text the object that fits it best; of equals the first. */
static bool select_conclude(Value *out, const StepCall *c, const StepAsk *ask, const Value *answer, int n, Error *e) {
    (void)ask;
    (void)e;
    const Boxes *b = c->args[1]->boxes;
    const int m = n / b->n;
    int chosen[TEXTS_MAX];
    for (int j = 0; j < m; j++) {
        chosen[j] = 0;
        for (int i = 1; i < b->n; i++)
            if (score_of(&answer[i * m + j]) > score_of(&answer[chosen[j] * m + j])) chosen[j] = i;
    }
    *out = objects_of(c->arena, b, chosen, m, NULL);
    return true;
}

/* The categories, with "other" beside a single one. Returns how many, -1 with a sentence. */
static int categories_of(Str text[TEXTS_MAX + 1], const Value *v, Error *e) {
    int m = 0;
    if (v->kind == VAL_STR) {
        m = items_of(text, v->str, true);
    } else {
        m = MIN(v->list.n, TEXTS_MAX + 1);
        for (int j = 0; j < MIN(m, TEXTS_MAX); j++) text[j] = v->list.at[j].str;
    }
    if (too_many(m, e)) return -1;
    if (!m || (m == 1 && !text[0].n)) return fail_as(e, FAIL_DATA, "there are no categories to tell apart"), -1;
    if (m == 1) text[m++] = (Str){"other", 5};
    return m;
}

static int classify_asks(StepAsk **ask, Value *out, const StepCall *c, Error *e) {
    const Boxes *b = c->args[1]->boxes;
    Str text[TEXTS_MAX + 1];
    int object[BOXES_MAX];
    const int m = categories_of(text, c->args[2], e);
    if (m < 0) return -1;
    for (int i = 0; i < b->n; i++) object[i] = i;
    if (!b->n) *out = objects_of(c->arena, b, object, 0, NULL);
    return ask_pairs(ask, c, object, b->n, text, m);
}

typedef struct Classified { int object, text; double score; } Classified;

static int by_score(const void *a, const void *b) {
    const Classified *x = a, *y = b;
    return x->score != y->score ? (x->score > y->score ? -1 : 1) : 0;
}

/* Each object is of the category that fits it best; of the objects of one category only the best is kept, and only with a score
 * above 0. Best first; of equal scores the object that came first. */
static bool classify_conclude(Value *out, const StepCall *c, const StepAsk *ask, const Value *answer, int n, Error *e) {
    (void)ask;
    const Boxes *b = c->args[1]->boxes;
    Str text[TEXTS_MAX + 1];
    const int m = categories_of(text, c->args[2], e);
    CHECK(m * b->n == n, "%d answers about %d objects and %d categories", n, b->n, m);
    Classified all[BOXES_MAX];
    int kept[BOXES_MAX], nkept = 0;
    for (int i = 0; i < b->n; i++) {
        int best = 0;
        for (int j = 1; j < m; j++)
            if (score_of(&answer[i * m + j]) > score_of(&answer[i * m + best])) best = j;
        all[i] = (Classified){i, best, nearbyint(1000 * score_of(&answer[i * m + best])) / 10};
    }
    arena_sort(c->arena, all, b->n, sizeof *all, by_score);
    BoxClass classes[BOXES_MAX];
    bool taken[TEXTS_MAX + 1] = {false};
    for (int i = 0; i < b->n; i++) {
        if (taken[all[i].text] || !(all[i].score > 0)) continue;
        taken[all[i].text] = true;
        classes[nkept] = (BoxClass){text[all[i].text], all[i].score};
        kept[nkept++] = all[i].object;
    }
    *out = objects_of(c->arena, b, kept, nkept, classes);
    return true;
}

/* ---- LIST ----------------------------------------------------------------------------------------------------- */

/* About no image. */
static int list_asks(StepAsk **ask, Value *out, const StepCall *c, Error *e) {
    (void)out;
    if (c->args[1] && c->args[1]->i < 1)
        return fail_as(e, FAIL_DATA, "max is %" PRId64 ", a list has at least one thing", c->args[1]->i), -1;
    *ask = arena_alloc(c->arena, sizeof **ask);
    **ask = (StepAsk){.query = str_z(c->arena, c->args[0]->str)};
    return 1;
}

static bool list_conclude(Value *out, const StepCall *c, const StepAsk *ask, const Value *answer, int n, Error *e) {
    (void)ask;
    (void)n;
    (void)e;
    *out = *answer;
    if (c->args[1]) out->list.n = (int)MIN((int64_t)out->list.n, c->args[1]->i);
    return true;
}

/* ---- the table ------------------------------------------------------------------------------------------------ */

enum {
    IMG = KIND(VAL_IMAGE),
    STR = KIND(VAL_STR),
    INT = KIND(VAL_INT),
    BOXES = KIND(VAL_BOXES),
    OBJ = KIND(VAL_OBJECTS),
    LIST = KIND(VAL_LIST),
    NONE = KIND(VAL_NONE),
};

#define CROP_ROW(NAME, fn)                                                                                   \
    {.name = NAME, .result = IMG, .nargs = 2, .arg = {{"image", IMG, 0}, {"box", BOXES | OBJ, 0}}, .run = fn}
#define LACKS(what) .run = run_lacking, .lacks = "it needs " what ", which this build does not have"

const StepKind step_kinds[] = {
    {.name = "VQA", .result = STR, .nargs = 2, .arg = {{"image", IMG, 0}, {"question", STR, 0}}, .module = "VQA"},
    {.name = "LOC", .result = BOXES, .nargs = 2, .arg = {{"image", IMG, 0}, {"object", STR, 0}}, .module = "LOC",
     .run = run_side, .on_host = is_side},
    {.name = "COUNT", .result = INT, .nargs = 1, .arg = {{"box", BOXES | OBJ | LIST, 0}}, .run = run_count},
    CROP_ROW("CROP", run_crop),
    CROP_ROW("CROP_LEFTOF", run_leftof),
    CROP_ROW("CROP_RIGHTOF", run_rightof),
    CROP_ROW("CROP_ABOVE", run_above),
    CROP_ROW("CROP_BELOW", run_below),
    CROP_ROW("CROP_FRONTOF", run_crop), /* no depth in the reference either: these five are CROP */
    CROP_ROW("CROP_INFRONT", run_crop),
    CROP_ROW("CROP_INFRONTOF", run_crop),
    CROP_ROW("CROP_BEHIND", run_crop),
    CROP_ROW("CROP_AHEAD", run_crop),
    {.name = "EVAL", .result = KINDS_ANY, .nargs = 1, .arg = {{"expr", STR, 0}}, .run = run_eval, .role = STEP_EVAL},
    {.name = "RESULT", .result = KINDS_ANY, .nargs = 1, .arg = {{"var", KINDS_ANY, 0}}, .run = run_result,
     .role = STEP_RESULT},

    {.name = "SEG", .result = OBJ, .nargs = 1, .arg = {{"image", IMG, 0}},
     LACKS("a panoptic segmentation network (MaskFormer)")},
    {.name = "SELECT", .result = OBJ, .nargs = 4,
     .arg = {{"image", IMG, 0}, {"object", BOXES | OBJ, 0}, {"query", STR, 0}, {"category", STR | NONE, true}},
     .module = "CLIP", .asks = select_asks, .conclude = select_conclude},
    {.name = "CLASSIFY", .result = OBJ, .nargs = 3,
     .arg = {{"image", IMG, 0}, {"object", BOXES | OBJ, 0}, {"categories", LIST | STR, 0}},
     .module = "CLIP", .asks = classify_asks, .conclude = classify_conclude},
    {.name = "FACEDET", .result = OBJ, .nargs = 1, .arg = {{"image", IMG, 0}}, LACKS("a face detector (DSFD)")},
    {.name = "LIST", .result = LIST, .nargs = 2, .arg = {{"query", STR, 0}, {"max", INT, true}},
     .module = "LIST", .asks = list_asks, .conclude = list_conclude},
    {.name = "COLORPOP", .result = IMG, .nargs = 2, .arg = {{"image", IMG, 0}, {"object", BOXES | OBJ, 0}},
     .run = run_colorpop},
    {.name = "BGBLUR", .result = IMG, .nargs = 2, .arg = {{"image", IMG, 0}, {"object", BOXES | OBJ, 0}},
     .run = run_bgblur},
    {.name = "EMOJI", .result = IMG, .nargs = 3,
     .arg = {{"image", IMG, 0}, {"object", BOXES | OBJ, 0}, {"emoji", STR, 0}}, .run = run_emoji, .check = check_emoji},
    {.name = "TAG", .result = IMG, .nargs = 2, .arg = {{"image", IMG, 0}, {"object", BOXES | OBJ, 0}}, .run = run_tag},
    {.name = "REPLACE", .result = IMG, .nargs = 3,
     .arg = {{"image", IMG, 0}, {"object", BOXES | OBJ, 0}, {"prompt", STR, 0}},
     LACKS("an inpainting network (Stable Diffusion)")},
};
const int nstep_kinds = COUNT_OF(step_kinds);

static const char *const gqa_inputs[] = {"IMAGE"}, *const nlvr_inputs[] = {"LEFT", "RIGHT"};
const Dialect dialect_gqa = {step_kinds, COUNT_OF(step_kinds), gqa_inputs, 1, false};
const Dialect dialect_nlvr = {step_kinds, COUNT_OF(step_kinds), nlvr_inputs, 2, false};
