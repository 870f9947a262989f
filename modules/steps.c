/* steps.c -- the table of steps, and what those do that need no network. See steps.h. */
#include "modules/steps.h"

#include <math.h>

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
     .arg = {{"image", IMG, 0}, {"object", OBJ, 0}, {"query", STR, 0}, {"category", STR | NONE, true}},
     LACKS("an image-text network (CLIP)")},
    {.name = "CLASSIFY", .result = OBJ, .nargs = 3,
     .arg = {{"image", IMG, 0}, {"object", BOXES | OBJ, 0}, {"categories", LIST, 0}},
     LACKS("an image-text network (CLIP)")},
    {.name = "FACEDET", .result = OBJ, .nargs = 1, .arg = {{"image", IMG, 0}}, LACKS("a face detector (DSFD)")},
    {.name = "LIST", .result = LIST, .nargs = 2, .arg = {{"query", STR, 0}, {"max", INT, true}},
     LACKS("a language model that knows facts")},
    {.name = "COLORPOP", .result = IMG, .nargs = 2, .arg = {{"image", IMG, 0}, {"object", OBJ, 0}},
     LACKS("the masks of a segmentation network and an image editor")},
    {.name = "BGBLUR", .result = IMG, .nargs = 2, .arg = {{"image", IMG, 0}, {"object", OBJ, 0}},
     LACKS("the masks of a segmentation network and an image editor")},
    {.name = "EMOJI", .result = IMG, .nargs = 3,
     .arg = {{"image", IMG, 0}, {"object", BOXES | OBJ, 0}, {"emoji", STR, 0}},
     LACKS("an image editor with emoji bitmaps")},
    {.name = "TAG", .result = IMG, .nargs = 2, .arg = {{"image", IMG, 0}, {"object", BOXES | OBJ, 0}},
     LACKS("an image editor")},
    {.name = "REPLACE", .result = IMG, .nargs = 3,
     .arg = {{"image", IMG, 0}, {"object", OBJ, 0}, {"prompt", STR, 0}},
     LACKS("an inpainting network (Stable Diffusion)")},
};
const int nstep_kinds = COUNT_OF(step_kinds);

static const char *const gqa_inputs[] = {"IMAGE"}, *const nlvr_inputs[] = {"LEFT", "RIGHT"};
const Dialect dialect_gqa = {step_kinds, COUNT_OF(step_kinds), gqa_inputs, 1, false};
const Dialect dialect_nlvr = {step_kinds, COUNT_OF(step_kinds), nlvr_inputs, 2, false};
