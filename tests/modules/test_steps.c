/* test_steps.c -- boxes, crops and suppression, to the pixel. Vectors: the specification's, which come from the reference. */
#include "modules/steps.h"
#include "tests/test.h"

#include <math.h>

static Arena arena;

static Arena *fresh(void) {
    if (!arena.size) arena_open(&arena, "test steps", NULL, 16 << 20);
    arena_reset(&arena, 0);
    return &arena;
}

static bool same(Rect a, Rect b) { return a.x0 == b.x0 && a.y0 == b.y0 && a.x1 == b.x1 && a.y1 == b.y1; }

#define EXPECT_RECT(got, want, what) \
    EXPECT(same(got, want), "%s: [%d %d %d %d], want [%d %d %d %d]", what, (got).x0, (got).y0, (got).x1, (got).y1, \
           (want).x0, (want).y0, (want).x1, (want).y1)

TEST(steps_sides) {
    static const struct { int W, H; const char *name; Rect box, crop; } cases[] = {
        {640, 427, "TOP", {0, 0, 639, 213}, {0, 0, 640, 265}},
        {640, 427, "BOTTOM", {0, 213, 639, 426}, {0, 160, 640, 427}},
        {640, 427, "LEFT", {0, 0, 320, 426}, {0, 0, 400, 427}},
        {640, 427, "RIGHT", {320, 0, 639, 426}, {240, 0, 640, 427}},
        {500, 375, "TOP", {0, 0, 499, 187}, {0, 0, 500, 233}},
        {500, 375, "BOTTOM", {0, 187, 499, 374}, {0, 140, 500, 375}},
        {500, 375, "LEFT", {0, 0, 250, 374}, {0, 0, 312, 375}},
        {500, 375, "RIGHT", {250, 0, 499, 374}, {188, 0, 500, 375}},
        {333, 500, "TOP", {0, 0, 332, 250}, {0, 0, 333, 312}},
        {333, 500, "BOTTOM", {0, 250, 332, 499}, {0, 188, 333, 500}},
        {333, 500, "LEFT", {0, 0, 166, 499}, {0, 0, 207, 500}},
        {333, 500, "RIGHT", {166, 0, 332, 499}, {125, 0, 333, 500}},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        char text[128];
        Program p;
        Error e = {0};
        snprintf(text, sizeof text, "B=LOC(image=IMAGE,object='%s')\nI=CROP(image=IMAGE,box=B)\nR=RESULT(var=I)",
                 cases[i].name);
        bool ok = program_parse(&p, fresh(), &dialect_gqa, text, strlen(text), &e);
        EXPECT(ok, "%s", e.text);
        Value vars[8] = {value_image(9, cases[i].W, cases[i].H)};
        EXPECT(program_advance(&p, 0, vars, &arena, &e) == 3, "a side of the image needs no module: %s", e.text);
        EXPECT_RECT(vars[1].boxes->box[0].rect, cases[i].box, cases[i].name);
        EXPECT_RECT(vars[2].image.rect, cases[i].crop, cases[i].name);
        EXPECT(vars[2].image.id == 9 && !vars[2].missing && !vars[2].grown && vars[1].boxes->exact, "flags");
    }
    EXPECT(!side_box(&(Rect){0}, (Str){"Left", 4}, 9, 9, false), "only upper case names a side");
    EXPECT(!side_box(&(Rect){0}, (Str){"CENTER", 6}, 9, 9, false), "no other names");
}

TEST(steps_crops) {
    static const struct { Rect box, want[5]; } cases[] = {
        {{101, 50, 200, 151}, {{76, 25, 224, 175}, {0, 0, 150, 426}, {150, 0, 639, 426}, {0, 0, 639, 100}, {0, 100, 639, 426}}},
        {{0, 0, 639, 426}, {{0, 0, 640, 427}, {0, 0, 319, 426}, {319, 0, 639, 426}, {0, 0, 639, 213}, {0, 213, 639, 426}}},
        {{630, 400, 639, 426},
         {{628, 394, 640, 427}, {0, 0, 634, 426}, {634, 0, 639, 426}, {0, 0, 639, 413}, {0, 413, 639, 426}}},
    };
    static const Rect none[5] = {{0, 0, 640, 427}, {0, 0, 320, 426}, {320, 0, 639, 426}, {0, 0, 320, 426}, {0, 0, 320, 426}};
    static const Rect none_strict[5] = {
        {0, 0, 640, 427}, {0, 0, 320, 427}, {320, 0, 640, 427}, {0, 0, 640, 213}, {0, 213, 640, 427}};
    static const char *const names[] = {"around", "left of", "right of", "above", "below"};
    for (int k = 0; k < 5; k++) {
        for (int i = 0; i < COUNT_OF(cases); i++)
            EXPECT_RECT(crop_rect((CropKind)k, &cases[i].box, false, 640, 427, false), cases[i].want[k], names[k]);
        EXPECT_RECT(crop_rect((CropKind)k, NULL, false, 640, 427, false), none[k], names[k]);
        EXPECT_RECT(crop_rect((CropKind)k, NULL, false, 640, 427, true), none_strict[k], names[k]);
    }
    Rect half = {0, 0, 320, 427};
    EXPECT_RECT(crop_rect(CROP_AROUND, &half, true, 640, 427, true), half, "strict keeps a side as it is");
}

/* A crop of a crop is a rectangle of the original; degenerate and wild boxes give crops inside the image. */
TEST(steps_crop_chain) {
    Value image = {.kind = VAL_IMAGE, .image = {3, {100, 50, 300, 250}}};
    Boxes *b = boxes_new(fresh(), 1, image.image.rect);
    b->box[0] = (Box){{50, 50, 150, 150}, 0.5f, 0};
    Value v = crop_image(CROP_AROUND, &image, b, false);
    EXPECT_RECT(v.image.rect, ((Rect){125, 75, 275, 225}), "crop of a crop");
    v = crop_image(CROP_RIGHTOF, &v, b, false);
    EXPECT_RECT(v.image.rect, ((Rect){225, 75, 274, 224}), "crop of a crop of a crop");
    EXPECT(v.image.id == 3 && !v.missing && !v.grown, "flags");

    Boxes *nothing = boxes_new(&arena, 0, image.image.rect);
    v = crop_image(CROP_BELOW, &image, nothing, false);
    EXPECT(v.missing, "nothing found goes on record");
    v = crop_image(CROP_AROUND, &v, b, false);
    EXPECT(v.missing, "and stays there");

    b->box[0].rect = (Rect){300, 200, 300, 200};
    EXPECT_RECT(crop_rect(CROP_AROUND, &b->box[0].rect, false, 640, 427, false), ((Rect){300, 200, 300, 200}), "empty");
    Value whole = value_image(1, 640, 427);
    v = crop_image(CROP_AROUND, &whole, b, false);
    EXPECT_RECT(v.image.rect, ((Rect){292, 192, 308, 208}), "an empty crop grows");
    EXPECT(v.grown, "and says so");
    b->box[0].rect = (Rect){0, 100, 1, 300};
    v = crop_image(CROP_LEFTOF, &whole, b, false);
    EXPECT_RECT(v.image.rect, ((Rect){0, 0, 16, 426}), "left of the left edge");

    static const Rect wild[] = {{700, 500, 639, 426}, {-50, -50, -10, -10}, {16777216, 16777216, 639, 426},
                                {-16777216, 0, 639, -16777216}, {639, 426, 0, 0}, {0, 0, 0, 0}};
    for (int i = 0; i < COUNT_OF(wild); i++)
        for (int k = 0; k < 5; k++)
            for (int strict = 0; strict < 2; strict++) {
                b->box[0].rect = wild[i];
                v = crop_image((CropKind)k, &whole, b, strict);
                Rect r = v.image.rect;
                EXPECT(r.x0 >= 0 && r.y0 >= 0 && r.x1 <= 640 && r.y1 <= 427 && rect_w(r) >= 1 && rect_h(r) >= 1,
                       "box %d crop %d: [%d %d %d %d]", i, k, r.x0, r.y0, r.x1, r.y1);
            }
    Value dot = value_image(2, 1, 1);
    v = crop_image(CROP_LEFTOF, &dot, nothing, false);
    EXPECT_RECT(v.image.rect, ((Rect){0, 0, 1, 1}), "an image of one pixel");
}

/* Every row of the table that crops, through a program. */
TEST(steps_crop_rows) {
    static const struct { const char *step; Rect want; } cases[] = {
        {"CROP", {76, 25, 224, 175}},         {"CROP_LEFTOF", {0, 0, 150, 426}},
        {"CROP_RIGHTOF", {150, 0, 639, 426}}, {"CROP_ABOVE", {0, 0, 639, 100}},
        {"CROP_BELOW", {0, 100, 639, 426}},   {"CROP_FRONTOF", {76, 25, 224, 175}},
        {"CROP_INFRONT", {76, 25, 224, 175}}, {"CROP_INFRONTOF", {76, 25, 224, 175}},
        {"CROP_BEHIND", {76, 25, 224, 175}},  {"CROP_AHEAD", {76, 25, 224, 175}},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        char text[160];
        Program p;
        Error e = {0};
        snprintf(text, sizeof text, "B=LOC(image=IMAGE,object='cup')\nI=%s(image=IMAGE,box=B)\nR=RESULT(var=I)",
                 cases[i].step);
        EXPECT(program_parse(&p, fresh(), &dialect_gqa, text, strlen(text), &e), "%s", e.text);
        Value vars[8] = {value_image(0, 640, 427)};
        EXPECT(program_advance(&p, 0, vars, &arena, &e) == 0 && !strcmp(p.steps[0].module, "LOC"), "LOC waits");
        Boxes *b = boxes_new(&arena, 2, (Rect){0, 0, 640, 427});
        b->box[0] = (Box){{101, 50, 200, 151}, 0.9f, 0};
        b->box[1] = (Box){{1, 2, 3, 4}, 0.8f, 1}; /* ignored: only the first counts */
        vars[1] = value_boxes(b);
        EXPECT(program_advance(&p, 1, vars, &arena, &e) == 3, "%s", e.text);
        EXPECT_RECT(program_result(&p, vars)->image.rect, cases[i].want, cases[i].step);
    }
}

TEST(steps_nms) {
    static const Rect box[] = {{10, 10, 109, 109}, {10, 10, 109, 59}, {10, 10, 109, 58},
                               {300, 40, 380, 120}, {305, 45, 385, 125}, {10, 61, 109, 109}};
    static const float score[] = {0.9f, 0.8f, 0.7f, 0.55f, 0.6f, 0.3f};
    static const struct { double tau; int n, want[6]; } cases[] = {
        {0.5, 4, {0, 2, 4, 5}}, {0.3, 2, {0, 4}}, {0.8, 5, {0, 1, 4, 3, 5}}};
    int keep[6];
    for (int i = 0; i < COUNT_OF(cases); i++) {
        int n = nms_boxes(keep, box, score, 6, cases[i].tau);
        EXPECT(n == cases[i].n && !memcmp(keep, cases[i].want, (size_t)n * sizeof *keep), "tau %g: %d kept", cases[i].tau, n);
    }
    static const float ties[] = {0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0.5f};
    int n = nms_boxes(keep, box, ties, 6, 0.5);
    EXPECT(n == 4 && keep[0] == 5 && keep[1] == 4 && keep[2] == 2 && keep[3] == 0, "ties: %d kept, first %d", n, keep[0]);
    EXPECT(nms_boxes(keep, box, score, 0, 0.5) == 0, "no boxes");
    EXPECT(nms_boxes(keep, box, score, 1, 0.5) == 1 && keep[0] == 0, "one box");
}

/* A corner box as the network would give it. */
static void put(float *cxcywh, double x0, double y0, double x1, double y1, int W, int H) {
    cxcywh[0] = (float)((x0 + x1) / 2 / W), cxcywh[1] = (float)((y0 + y1) / 2 / H);
    cxcywh[2] = (float)((x1 - x0) / W), cxcywh[3] = (float)((y1 - y0) / H);
}

TEST(steps_loc_postprocess) {
    enum { Q = 8 };
    float b[Q * 4], s[Q] = {0.2f, 0.9f, 0.1f, 0.5f, 0.0f, 0.3f, 0.3f, 0.4f};
    Box out[Q];
    put(b + 0, -3.7, 12.9, 250.2, 430.6, 640, 427);
    put(b + 4, 600.5, -0.4, 655.0, 90.99, 640, 427);
    put(b + 8, 100, 100, 150, 150, 640, 427); /* exactly at the threshold: not above it */
    put(b + 12, 300.2, 200.2, 300.9, 200.9, 640, 427);
    put(b + 16, 0, 0, 640, 427, 640, 427);
    put(b + 20, 400.5, 300.5, 450.5, 350.5, 640, 427);
    put(b + 24, 400.5, 300.5, 450.5, 350.5, 640, 427); /* a twin with the same score: the higher index stays */
    put(b + 28, 0, 0, 0, 0, 640, 427);
    b[28] = NAN, b[30] = INFINITY;
    int n = loc_postprocess(out, Q, b, s, Q, 640, 427, LOC_THRESHOLD, LOC_TAU, false, fresh());
    EXPECT(n == 5, "%d boxes", n);
    EXPECT_RECT(out[0].rect, ((Rect){600, 0, 639, 90}), "beyond the right edge");
    EXPECT_RECT(out[1].rect, ((Rect){300, 200, 300, 200}), "degenerate, kept as the reference does");
    EXPECT(out[2].query == 7 && out[2].rect.x0 >= 0 && out[2].rect.x1 <= 639, "a box that is not a number stays inside");
    EXPECT(out[3].query == 6, "of twins the higher index, got %d", out[3].query);
    EXPECT_RECT(out[4].rect, ((Rect){0, 12, 250, 426}), "beyond the left and lower edges");
    EXPECT(out[0].query == 1 && out[0].score == 0.9f && arena.used == 0, "query %d", out[0].query);
    n = loc_postprocess(out, Q, b, s, Q, 640, 427, LOC_THRESHOLD, LOC_TAU, true, fresh());
    EXPECT(n == 3 || n == 4, "strict drops what has no area: %d", n);
    for (int i = 0; i < n; i++) EXPECT(rect_w(out[i].rect) > 0 && rect_h(out[i].rect) > 0, "box %d is empty", i);
    EXPECT_RECT(out[0].rect, ((Rect){600, 0, 640, 90}), "strict: half-open");
    EXPECT(loc_postprocess(out, 2, b, s, Q, 640, 427, LOC_THRESHOLD, LOC_TAU, false, fresh()) == 2, "at most max");
    EXPECT(loc_postprocess(out, Q, b, s, 0, 640, 427, LOC_THRESHOLD, LOC_TAU, false, fresh()) == 0, "no queries");
}
