/* font.c -- FreeType. See font.h.
 *
 * The extent of a line follows Pillow's basic layout: advances are added up in 1/64 pixels, each glyph is placed at the
 * rounded position, and the box covers both the glyphs and the advances.
 */
#include "data/font.h"

#include <ft2build.h>
#include FT_FREETYPE_H
#include FT_GLYPH_H

enum { FONTS_OPEN = 4, LINE_MAX_CHARS = 1024 };

static FT_Library library;
static struct { char *path; FT_Face face; } fonts[FONTS_OPEN];

/* 26.6 fixed point to whole pixels, as Pillow rounds. */
static int pixels(FT_Pos x) { return (int)((x + 32) >> 6); }

static FT_Face font_open(const char *path, Error *e) {
    int i = 0;
    for (; i < FONTS_OPEN && fonts[i].path; i++)
        if (!strcmp(fonts[i].path, path)) return fonts[i].face;
    FT_Face face;
    if (!library && FT_Init_FreeType(&library)) die(FAIL_MEMORY, "FreeType does not start");
    const FT_Error err = FT_New_Face(library, path, 0, &face);
    if (err) {
        fail_as(e, FAIL_CONFIG, "%s: %s", path, err == FT_Err_Cannot_Open_Resource ? "there is no such font" : "not a font that FreeType reads");
        return NULL;
    }
    if (i == FONTS_OPEN) { /* the oldest goes */
        FT_Done_Face(fonts[0].face);
        free(fonts[0].path);
        memmove(fonts, fonts + 1, sizeof fonts - sizeof fonts[0]);
        i--;
    }
    fonts[i].path = xstrdup(path);
    fonts[i].face = face;
    return face;
}

/* The next character of s[0..n), at least one byte of it. */
static int next_char(const char *s, int n, uint32_t *code) {
    const uint8_t *b = (const uint8_t *)s;
    const int k = b[0] < 0x80 ? 1 : (b[0] & 0xe0) == 0xc0 ? 2 : (b[0] & 0xf0) == 0xe0 ? 3 : (b[0] & 0xf8) == 0xf0 ? 4 : 0;
    *code = 0xfffd;
    if (!k || k > n) return 1;
    uint32_t c = k == 1 ? b[0] : b[0] & (0x7fu >> k);
    for (int i = 1; i < k; i++) {
        if ((b[i] & 0xc0) != 0x80) return 1;
        c = c << 6 | (b[i] & 0x3f);
    }
    *code = c;
    return k;
}

typedef struct Line {
    int n;
    FT_Glyph glyph[LINE_MAX_CHARS];
    int x[LINE_MAX_CHARS]; /* of its origin */
    int x_min, x_max, y_min, y_max;
} Line;

/* Loads the glyphs and finds the box around them. */
static void lay_out(Line *l, FT_Face face, const char *s, int n) {
    FT_Pos at = 0;
    FT_UInt last = 0;
    *l = (Line){0};
    for (int i = 0; i < n && l->n < LINE_MAX_CHARS;) {
        uint32_t code;
        i += next_char(s + i, n - i, &code);
        const FT_UInt index = FT_Get_Char_Index(face, code);
        FT_Vector kern = {0, 0};
        if (last && index && FT_HAS_KERNING(face)) FT_Get_Kerning(face, last, index, FT_KERNING_DEFAULT, &kern);
        at += kern.x;
        last = index;
        if (FT_Load_Glyph(face, index, FT_LOAD_DEFAULT) || FT_Get_Glyph(face->glyph, &l->glyph[l->n])) continue;
        FT_BBox box;
        FT_Glyph_Get_CBox(l->glyph[l->n], FT_GLYPH_BBOX_PIXELS, &box);
        const int x = l->x[l->n++] = pixels(at);
        at += face->glyph->metrics.horiAdvance;
        l->x_min = MIN(l->x_min, x + (int)box.xMin);
        l->x_max = MAX(MAX(l->x_max, x + (int)box.xMax), pixels(at));
        l->y_min = MIN(l->y_min, (int)box.yMin);
        l->y_max = MAX(l->y_max, (int)box.yMax);
    }
}

/* The larger coverage wins where glyphs overlap. */
static void draw_glyph(TextMask *out, const Line *l, int i) {
    FT_Glyph g = l->glyph[i];
    if (FT_Glyph_To_Bitmap(&g, FT_RENDER_MODE_NORMAL, NULL, 0)) return;
    const FT_BitmapGlyph b = (FT_BitmapGlyph)g;
    const int x0 = l->x[i] + b->left - l->x_min, y0 = l->y_max - b->top;
    for (int y = MAX(0, -y0); y < (int)b->bitmap.rows && y0 + y < out->h; y++)
        for (int x = MAX(0, -x0); x < (int)b->bitmap.width && x0 + x < out->w; x++) {
            uint8_t *to = &out->coverage[(y0 + y) * out->w + x0 + x];
            *to = MAX(*to, b->bitmap.buffer[y * b->bitmap.pitch + x]);
        }
    FT_Done_Glyph(g);
}

bool font_text(TextMask *out, Arena *a, const char *font, int px, const char *s, int n, Error *e) {
    FT_Face face = font_open(font, e);
    if (!face) return false;
    if (!FT_IS_SCALABLE(face) || FT_Set_Pixel_Sizes(face, 0, (FT_UInt)px))
        return fail_as(e, FAIL_CONFIG, "%s: not a font of outlines, which letters of %d pixels need", font, px);
    Line l;
    lay_out(&l, face, s, n);
    const int w = l.x_max - l.x_min, h = l.y_max - l.y_min;
    *out = (TextMask){w, h, pixels(face->size->metrics.ascender) - l.y_max, arena_zalloc(a, (size_t)w * (size_t)h)};
    for (int i = 0; i < l.n; i++) {
        draw_glyph(out, &l, i);
        FT_Done_Glyph(l.glyph[i]);
    }
    return true;
}

bool font_emoji(Sticker *out, Arena *a, const char *font, uint32_t code, Error *e) {
    FT_Face face = font_open(font, e);
    if (!face) return false;
    int best = -1;
    for (int i = 0; i < face->num_fixed_sizes; i++)
        if (best < 0 || face->available_sizes[i].height > face->available_sizes[best].height) best = i;
    if (!FT_HAS_COLOR(face) || best < 0 || FT_Select_Size(face, best))
        return fail_as(e, FAIL_CONFIG, "%s: not a font of colour pictures (CBDT)", font);
    const FT_UInt index = FT_Get_Char_Index(face, code);
    const FT_Bitmap *b = &face->glyph->bitmap;
    if (!index || FT_Load_Glyph(face, index, FT_LOAD_COLOR) || b->pixel_mode != FT_PIXEL_MODE_BGRA || !b->width || !b->rows)
        return fail_as(e, FAIL_CONFIG, "%s has no picture of U+%04X", font, code);
    *out = (Sticker){(int)b->width, (int)b->rows, arena_alloc(a, (size_t)b->width * b->rows * 4)};
    for (int y = 0; y < out->h; y++)
        for (int x = 0; x < out->w; x++) {
            const uint8_t *bgra = b->buffer + y * b->pitch + 4 * x;
            uint8_t *rgba = out->rgba + 4 * ((int64_t)y * out->w + x);
            const int alpha = rgba[3] = bgra[3];
            for (int c = 0; c < 3; c++) rgba[c] = alpha ? (uint8_t)MIN(255, (bgra[2 - c] * 255 + alpha / 2) / alpha) : 0;
        }
    return true;
}
