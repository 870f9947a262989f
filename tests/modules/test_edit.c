/* test_edit.c -- the editing steps bit for bit as Pillow, OpenCV and AugLy compute them (tests/golden/make_edit.py), fonts, and
 * the steps in programs. */
#include "data/png.h"
#include "data/safetensors.h"
#include "modules/edit.h"
#include "modules/steps.h"
#include "tests/test.h"

#include <png.h>
#include <unistd.h>

#define GOLDEN "tests/golden/edit.safetensors"
#define LABEL_FONT "/usr/share/fonts/truetype/dejavu/DejaVuSansMono-Bold.ttf"
#define EMOJI_FONT "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"

typedef struct Golden {
    SafeTensors st;
    Arena arena;
    const uint8_t *image;
    uint8_t *out;
    Rect box[8];
    int w, h, n;
} Golden;

static const StTensor *tensor(const Golden *g, const char *name) {
    const StTensor *t = st_find(&g->st, name);
    CHECK(t, "%s has no %s", GOLDEN, name);
    return t;
}

static bool golden_open(Golden *g) {
    Error e = {0};
    *g = (Golden){0};
    if (!st_open(&g->st, GOLDEN, &e)) {
        EXPECT(false, "%s", e.text);
        return false;
    }
    arena_open(&g->arena, "test edit", NULL, 64 << 20);
    const StTensor *image = tensor(g, "image"), *boxes = tensor(g, "boxes");
    g->image = image->data;
    g->w = (int)image->shape[1];
    g->h = (int)image->shape[0];
    g->n = (int)boxes->shape[0];
    memcpy(g->box, boxes->data, boxes->bytes);
    g->out = arena_alloc(&g->arena, image->bytes);
    memcpy(g->out, g->image, image->bytes);
    return true;
}

static void golden_close(Golden *g) {
    arena_close(&g->arena);
    st_close(&g->st);
}

static void expect_pixels(const Golden *g, const char *name, const uint8_t *got) {
    const StTensor *want = tensor(g, name);
    int64_t wrong = 0, first = -1;
    for (int64_t i = 0; i < (int64_t)want->bytes; i++)
        if (got[i] != ((const uint8_t *)want->data)[i] && !wrong++) first = i;
    EXPECT(!wrong, "%s: %" PRId64 " values differ, the first at column %" PRId64 ", row %" PRId64, name, wrong, first / 3 % want->shape[1],
           first / 3 / want->shape[1]);
}

TEST(edit_blur) {
    Golden g;
    if (!golden_open(&g)) return;
    for (int i = 0; i < 4; i++) {
        char in[32], radius[32], want[32];
        snprintf(in, sizeof in, "blur%d.in", i);
        snprintf(radius, sizeof radius, "blur%d.radius", i);
        snprintf(want, sizeof want, "blur%d.want", i);
        const StTensor *t = tensor(&g, in);
        float r;
        memcpy(&r, tensor(&g, radius)->data, sizeof r);
        uint8_t *p = arena_alloc(&g.arena, t->bytes);
        memcpy(p, t->data, t->bytes);
        edit_gaussian_blur(p, (int)t->shape[1], (int)t->shape[0], 3, r, &g.arena);
        expect_pixels(&g, want, p);
    }
    golden_close(&g);
}

TEST(edit_colorpop_and_bgblur) {
    Golden g;
    if (!golden_open(&g)) return;
    edit_colorpop(g.out, g.image, g.w, g.h, g.box, g.n);
    expect_pixels(&g, "colorpop", g.out);
    const size_t before = g.arena.used;
    edit_bgblur(g.out, g.image, g.w, g.h, g.box, g.n, &g.arena);
    expect_pixels(&g, "bgblur", g.out);
    EXPECT(g.arena.used == before && g.arena.peak - before <= edit_bgblur_bytes(g.w, g.h), "%zu bytes, announced %zu", g.arena.peak - before,
           edit_bgblur_bytes(g.w, g.h));
    golden_close(&g);
}

TEST(edit_emoji_overlay) {
    Golden g;
    if (!golden_open(&g)) return;
    const StTensor *t = tensor(&g, "sticker");
    const Sticker s = {(int)t->shape[1], (int)t->shape[0], (uint8_t *)(uintptr_t)t->data};
    for (int i = 0; i < g.n; i++)
        edit_emoji(g.out, g.w, g.h, &s, (const double[4]){g.box[i].x0, g.box[i].y0, g.box[i].x1, g.box[i].y1}, &g.arena);
    expect_pixels(&g, "emoji", g.out);
    /* Beyond every edge it is cut off (AugLy refuses). */
    edit_emoji(g.out, g.w, g.h, &s, (const double[4]){0, 0, 2, g.h}, &g.arena);
    edit_emoji(g.out, g.w, g.h, &s, (const double[4]){g.w - 2, 0, g.w, g.h}, &g.arena);
    edit_emoji(g.out, g.w, g.h, &s, (const double[4]){5, 5, 5, 5}, &g.arena);
    golden_close(&g);
}

/* The golden labels are FreeType 2.12.1's, which Pillow 9.2 carries and Debian 12 has; the hinted shapes of another version may
 * differ in some pixels. */
TEST(edit_labels) {
    Golden g;
    if (!golden_open(&g)) return;
    if (access(LABEL_FONT, R_OK)) {
        test_skip("there is no " LABEL_FONT);
        golden_close(&g);
        return;
    }
    const StTensor *labels = tensor(&g, "labels");
    const char *s = labels->data, *end = s + labels->bytes;
    Error e = {0};
    for (int i = 0; i < g.n; i++) {
        const char *nl = memchr(s, '\n', (size_t)(end - s));
        const int n = (int)((nl ? nl : end) - s);
        const Rect box = {g.box[i].x0, g.box[i].y0, g.box[i].x1 - 1, g.box[i].y1 - 1};
        TextMask m;
        EXPECT(font_text(&m, &g.arena, LABEL_FONT, 16, s, n, &e), "%s", e.text);
        edit_frame(g.out, g.w, g.h, box);
        edit_label(g.out, g.w, g.h, box, &m);
        s += n + 1;
    }
    expect_pixels(&g, "tag", g.out);
    golden_close(&g);
}

TEST(edit_fonts) {
    Arena a;
    TextMask m;
    Sticker s;
    Error e = {0};
    arena_open(&a, "test fonts", NULL, 64 << 20);
    EXPECT(!font_text(&m, &a, "no/such.ttf", 16, "x", 1, &e) && e.status == FAIL_CONFIG && strstr(e.text, "no/such.ttf: there is no such font"), "%s", e.text);
    EXPECT(!font_text(&m, &a, GOLDEN, 16, "x", 1, &e) && strstr(e.text, "not a font"), "%s", e.text);
    if (access(LABEL_FONT, R_OK)) {
        test_skip("there is no " LABEL_FONT);
    } else {
        EXPECT(font_text(&m, &a, LABEL_FONT, 16, "", 0, &e) && m.w == 0 && m.h == 0, "an empty line is %d x %d", m.w, m.h);
        EXPECT(font_text(&m, &a, LABEL_FONT, 16, "a\xff\xf0\x9f\x98\x80\xe2\x82", 8, &e) && m.w >= 4 * 9, "broken UTF-8: %d wide", m.w);
        char *text = arena_alloc(&a, 5000);
        memset(text, 'm', 5000);
        EXPECT(font_text(&m, &a, LABEL_FONT, 16, text, 5000, &e) && m.w == 1024 * 10, "a long line: %d wide", m.w);
        EXPECT(!font_emoji(&s, &a, LABEL_FONT, 0x1f600, &e) && strstr(e.text, "not a font of colour pictures"), "%s", e.text);
    }
    for (int i = 0; i < nemoji_names && !access(EMOJI_FONT, R_OK); i++) { /* each of AugLy's names has its picture */
        const size_t mark = arena_mark(&a);
        EXPECT(font_emoji(&s, &a, EMOJI_FONT, emoji_code(emoji_names[i], (int)strlen(emoji_names[i])), &e), "%s: %s", emoji_names[i], e.text);
        int64_t seen = 0;
        for (int64_t k = 0; k < (int64_t)s.w * s.h; k++) seen += s.rgba[4 * k + 3] == 255;
        EXPECT(seen > 0, "%s: none of %d x %d pixels is opaque", emoji_names[i], s.w, s.h);
        arena_reset(&a, mark);
    }
    EXPECT(emoji_code("face_with_tongue", 16) == 0x1f61b && !emoji_code("face_with_tongue", 15) && !emoji_code("", 0), "names");
    arena_close(&a);
}

/* ---- the steps in programs ------------------------------------------------------------------------- */

static Arena arena;

/* Runs a program of host steps on the golden image with these boxes. */
static bool run_program(Value *result, const Golden *g, const char *text, bool strict, const Boxes *boxes, Error *e) {
    if (!arena.size) arena_open(&arena, "test edit steps", NULL, 16 << 20);
    Dialect d = dialect_gqa;
    d.strict = strict;
    Program *p = ARENA_NEW(&arena, Program, 1);
    static ImageView view;
    view = (ImageView){g->image, g->w, g->h};
    *e = (Error){0};
    if (!program_parse(p, &arena, &d, text, strlen(text), e)) return false;
    Value *vars = ARENA_NEW(&arena, Value, p->nslots);
    vars[0] = value_image(5, g->w, g->h);
    vars[0].image.pixels = &view;
    int at = 0;
    if (p->steps[0].module) {
        vars[p->steps[0].out] = value_boxes(boxes);
        at = 1;
    }
    if (program_advance(p, at, vars, &arena, e) < 0) return false;
    *result = *program_result(p, vars);
    return true;
}

static Boxes *golden_boxes(const Golden *g, bool strict) {
    if (!arena.size) arena_open(&arena, "test edit steps", NULL, 16 << 20);
    Boxes *b = boxes_new(&arena, g->n, (Rect){0, 0, g->w, g->h});
    for (int i = 0; i < g->n; i++) {
        b->box[i] = (Box){g->box[i], 0.5f, i};
        if (!strict) b->box[i].rect.x1--, b->box[i].rect.y1--; /* the last pixel */
    }
    return b;
}

#define FIND "BOX0=LOC(image=IMAGE,object='x')\n"

/* LOC's boxes are objects whose mask is the box, in both dialects the same pixels; what is made has pixels and an id of its own. */
TEST(edit_steps) {
    Golden g;
    if (!golden_open(&g)) return;
    Error e;
    for (int strict = 0; strict < 2; strict++) {
        const Boxes *b = golden_boxes(&g, strict);
        Value v, again, other;
        EXPECT(run_program(&v, &g, FIND "I=COLORPOP(image=IMAGE,object=BOX0)\nR=RESULT(var=I)", strict, b, &e), "%s", e.text);
        expect_pixels(&g, "colorpop", v.image.pixels->rgb);
        EXPECT(image_is_made(v.image.id) && rect_w(v.image.rect) == g.w && !v.missing, "an image of its own");
        EXPECT(run_program(&again, &g, FIND "I=COLORPOP(image=IMAGE,object=BOX0)\nR=RESULT(var=I)", strict, b, &e) && again.image.id == v.image.id &&
                   again.image.pixels != v.image.pixels,
               "equal pixels have one id");
        EXPECT(run_program(&other, &g, FIND "I=BGBLUR(image=IMAGE,object=BOX0)\nR=RESULT(var=I)", strict, b, &e) && other.image.id != v.image.id, "%s", e.text);
        expect_pixels(&g, "bgblur", other.image.pixels->rgb);
        EXPECT(run_program(&v, &g, FIND "I=COLORPOP(image=IMAGE,object=BOX0)\nJ=CROP_LEFTOF(image=I,box=BOX0)\nK=BGBLUR(image=J,object=BOX0)\nR=RESULT(var=J)", strict,
                           b, &e) &&
                   v.image.id == again.image.id && v.image.pixels->w == g.w && rect_w(v.image.rect) < g.w,
               "a crop of a made image is a rectangle of it");
        /* Nothing found: all is background, or (strict) nothing happens. */
        const Boxes *none = boxes_new(&arena, 0, b->of);
        EXPECT(run_program(&v, &g, FIND "I=COLORPOP(image=IMAGE,object=BOX0)\nR=RESULT(var=I)", strict, none, &e) && v.missing, "%s", e.text);
        const uint8_t *p = v.image.pixels->rgb;
        EXPECT(strict ? !memcmp(p, g.image, (size_t)g.w * (size_t)g.h * 3) : p[0] == p[1] && p[1] == p[2], "no objects");
    }
    golden_close(&g);
}

/* The pixels under a crop, and no more, are what a step starts from. */
TEST(edit_steps_on_crops) {
    Golden g;
    if (!golden_open(&g)) return;
    Error e;
    Value v;
    EXPECT(run_program(&v, &g, "B=LOC(image=IMAGE,object='RIGHT')\nI=CROP_RIGHTOF(image=IMAGE,box=B)\nJ=TAG(image=I,object=B)\nR=RESULT(var=J)", true, NULL, &e), "%s",
           e.text);
    const Rect r = {90, 0, 120, 90};
    EXPECT(v.image.pixels->w == 30 && v.image.pixels->h == 90, "%d x %d", v.image.pixels->w, v.image.pixels->h);
    int differ = 0;
    for (int y = 0; y < v.image.pixels->h; y++)
        for (int x = 0; x < v.image.pixels->w; x++)
            differ += memcmp(v.image.pixels->rgb + (y * v.image.pixels->w + x) * 3, g.image + ((r.y0 + y) * g.w + r.x0 + x) * 3, 3) != 0;
    EXPECT(differ == 0, "the box, [60, 0, 120, 90], lies beyond the crop, but %d pixels differ", differ);
    golden_close(&g);
}

TEST(edit_step_errors) {
    Golden g;
    if (!golden_open(&g)) return;
    static const struct { const char *text, *say; Status status;
    } cases[] = {
        {FIND "I=EMOJI(image=IMAGE,object=BOX0,emoji='winking_fase')\nR=RESULT(var=I)", "line 2: EMOJI: there is no emoji \"winking_fase\" (did you mean winking_face?)", FAIL_DATA},
        {FIND "I=EMOJI(image=IMAGE,object=BOX0,emoji='a tree')\nR=RESULT(var=I)", "line 2: EMOJI: there is no emoji \"a tree\" (as is, for one, winking_face)", FAIL_DATA},
        {FIND "N=EVAL(expr=\"'smi' + 'ley'\")\nI=EMOJI(image=IMAGE,object=BOX0,emoji=N)\nR=RESULT(var=I)", "line 3: EMOJI: there is no emoji \"smiley\"", FAIL_DATA},
        {FIND "I=EMOJI(image=IMAGE,object=BOX0,emoji='ghost')\nR=RESULT(var=I)",
         "line 2: EMOJI: its pictures come from a colour font (Debian's fonts-noto-color-emoji, or name one with model.emoji_font): no/emoji.ttf: there is no such font",
         FAIL_CONFIG},
        {FIND "I=REPLACE(image=IMAGE,object=BOX0,prompt='a bus')\nR=RESULT(var=I)", "line 2: REPLACE: it needs an inpainting network (Stable Diffusion), which this build does not have",
         FAIL_MODEL},
        {"F=FACEDET(image=IMAGE)\nR=RESULT(var=F)", "line 1: FACEDET: it needs a face detector (DSFD), which this build does not have", FAIL_MODEL},
        {FIND "I=COLORPOP(image=IMAGE,object=IMAGE)\nR=RESULT(var=I)", "line 2, column 31: COLORPOP wants a box list or objects for object, IMAGE is an image", FAIL_DATA},
        {FIND "I=TAG(image=BOX0,object=BOX0)\nR=RESULT(var=I)", "line 2, column 13: TAG wants an image for image, BOX0 is a box list", FAIL_DATA},
        {FIND "I=EVAL(expr='{BOX0} + 1')\nR=RESULT(var=I)", "line 2: EVAL", FAIL_DATA},
    };
    steps_use_fonts("no/label.ttf", "no/emoji.ttf");
    Value v;
    Error e;
    for (int i = 0; i < COUNT_OF(cases); i++) {
        Boxes *b = golden_boxes(&g, false);
        EXPECT(!run_program(&v, &g, cases[i].text, false, b, &e), "%s: it ran", cases[i].text);
        EXPECT(e.status == cases[i].status && !strncmp(e.text, cases[i].say, strlen(cases[i].say)), "status %d: %s\n    wanted: %s", e.status, e.text, cases[i].say);
    }
    Boxes *b = golden_boxes(&g, false);
    EXPECT(run_program(&v, &g, FIND "I=TAG(image=IMAGE,object=BOX0)\nR=RESULT(var=I)", false, b, &e), "frames need no font: %s", e.text);
    BoxClass classes[8] = {{{"robin", 5}, 24.1}, {{"wren", 4}, 3}, {{"", 0}, 0.1}, {{"tit", 3}, 2}};
    b->classes = classes;
    EXPECT(!run_program(&v, &g, FIND "I=TAG(image=IMAGE,object=BOX0)\nR=RESULT(var=I)", false, b, &e) && strstr(e.text, "fonts-dejavu-core"), "%s", e.text);
    steps_use_fonts("", "");
    /* An image for which the job has no room: the program fails, the process lives. */
    arena_reset(&arena, arena.limit - (40 << 10));
    EXPECT(!run_program(&v, &g, "B=LOC(image=IMAGE,object='LEFT')\nI=BGBLUR(image=IMAGE,object=B)\nR=RESULT(var=I)", false, NULL, &e) && e.status == FAIL_MEMORY &&
               strstr(e.text, "an image of 120 x 90 pixels needs 1 MB of memory here"),
           "%s", e.text);
    arena_reset(&arena, 0);
    golden_close(&g);
}

TEST(edit_png) {
    char path[600], *data;
    size_t size;
    uint8_t rgb[7 * 5 * 3];
    for (int i = 0; i < (int)sizeof rgb; i++) rgb[i] = (uint8_t)(i * 37);
    snprintf(path, sizeof path, "%s/a.png", test_dir());
    Error e = {0};
    const ImageView v = {rgb, 7, 5};
    EXPECT(png_write(path, &v, (Rect){2, 1, 6, 5}, &e) && file_read(path, &data, &size, 1 << 20, &e), "%s", e.text);
    png_image p = {.version = PNG_IMAGE_VERSION};
    EXPECT(png_image_begin_read_from_memory(&p, data, size) && p.width == 4 && p.height == 4 && p.format == PNG_FORMAT_RGB, "%s", p.message);
    uint8_t back[4 * 4 * 3];
    EXPECT(png_image_finish_read(&p, NULL, back, 0, NULL), "%s", p.message);
    for (int y = 0; y < 4; y++) EXPECT(!memcmp(back + y * 12, rgb + ((y + 1) * 7 + 2) * 3, 12), "row %d", y);
    free(data);
    EXPECT(!png_write("no/such/folder.png", &v, (Rect){0, 0, 7, 5}, &e) && e.status == FAIL_DISK, "%s", e.text);
}
