/* edit.c -- pixels of the editing steps. See edit.h.
 *
 * Sources: VisProg's step_interpreters.py for what is drawn where; Pillow's BoxBlur.c, Convert.c, Draw.c and Paste.c for the
 * rounding of each operation.
 */
#include "modules/edit.h"

#include <math.h>

#include "kernels/cpu/image.h"

/* x / 255, rounded: Pillow's DIV255 and MULDIV255. */
static int div255(int x) {
    x += 128;
    return ((x >> 8) + x) >> 8;
}

/* `mask` of 255 parts of b over a. */
static uint8_t blend(int mask, int a, int b) { return (uint8_t)div255(a * (255 - mask) + b * mask); }

static Rect inside(Rect r, int w, int h) { return (Rect){MAX(r.x0, 0), MAX(r.y0, 0), MIN(r.x1, w), MIN(r.y1, h)}; }

/* ---- COLORPOP ------------------------------------------------------------------------------------- */

void edit_colorpop(uint8_t *out, const uint8_t *in, int w, int h, const Rect *object, int n) {
    for (int64_t i = 0; i < (int64_t)w * h; i++) { /* ITU-R 601-2 luma in 16 bits */
        const uint8_t *p = in + 3 * i;
        memset(out + 3 * i, (int)((p[0] * 19595u + p[1] * 38470u + p[2] * 7471u + 0x8000u) >> 16), 3);
    }
    for (int k = 0; k < n; k++) {
        const Rect r = inside(object[k], w, h);
        for (int y = r.y0; y < r.y1 && r.x0 < r.x1; y++) {
            const int64_t at = ((int64_t)y * w + r.x0) * 3;
            memcpy(out + at, in + at, (size_t)rect_w(r) * 3);
        }
    }
}

/* ---- blur ----------------------------------------------------------------------------------------- */

/* The radius of three box blurs that come near a Gaussian's. Source: Gwosdek et al. 2011, "Theoretical foundations of Gaussian
 * convolution by extended box filtering"; in float, as Pillow computes it. */
static float box_radius(float radius) {
    const float sigma2 = radius * radius / 3;
    const float L = (float)sqrt(12.0 * (double)sigma2 + 1.0);
    const float l = (float)floor(((double)L - 1.0) / 2.0);
    float a = (2 * l + 1) * (l * (l + 1) - 3 * sigma2);
    a /= 6 * (sigma2 - (l + 1) * (l + 1));
    return l + a;
}

/* One box blur along the columns of a picture of `row` bytes a row. sum: row values. Beyond the edges the edge goes on. */
static void blur_columns(uint8_t *out, const uint8_t *in, int64_t row, int h, float radius, uint32_t *sum) {
    const int r = (int)radius;
    const uint32_t ww = (uint32_t)((float)(1u << 24) / (radius * 2 + 1)); /* weight of the pixels wholly in the box */
    const uint32_t fw = ((1u << 24) - (uint32_t)(r * 2 + 1) * ww) / 2;    /* and of those partly in it, on either side */
#define ROW(y) (in + (int64_t)MIN(MAX((y), 0), h - 1) * row)
    memset(sum, 0, (size_t)row * sizeof *sum);
    for (int y = -r - 1; y < r; y++) {
        const uint8_t *p = ROW(y);
        for (int64_t i = 0; i < row; i++) sum[i] += p[i];
    }
    for (int y = 0; y < h; y++, out += row) {
        const uint8_t *left = ROW(y - r - 1), *last = ROW(y + r), *right = ROW(y + r + 1);
        for (int64_t i = 0; i < row; i++) {
            sum[i] += (uint32_t)last[i] - left[i];
            out[i] = (uint8_t)((sum[i] * ww + ((uint32_t)left[i] + right[i]) * fw + (1u << 23)) >> 24);
        }
    }
#undef ROW
}

static void transpose(uint8_t *out, const uint8_t *in, int w, int h, int channels) {
    enum { TILE = 32 };
    for (int y0 = 0; y0 < h; y0 += TILE)
        for (int x0 = 0; x0 < w; x0 += TILE)
            for (int y = y0; y < MIN(y0 + TILE, h); y++)
                for (int x = x0; x < MIN(x0 + TILE, w); x++)
                    memcpy(out + ((int64_t)x * h + y) * channels, in + ((int64_t)y * w + x) * channels, (size_t)channels);
}

static size_t blur_bytes(int w, int h, int channels) {
    return 2 * (size_t)w * (size_t)h * (size_t)channels + (size_t)MAX(w, h) * (size_t)channels * sizeof(uint32_t) + 256;
}

void edit_gaussian_blur(uint8_t *p, int w, int h, int channels, float radius, Arena *scratch) {
    const size_t mark = arena_mark(scratch), bytes = (size_t)w * (size_t)h * (size_t)channels;
    uint8_t *a = arena_alloc(scratch, bytes), *b = arena_alloc(scratch, bytes);
    uint32_t *sum = arena_alloc(scratch, (size_t)MAX(w, h) * (size_t)channels * sizeof *sum);
    const float r = box_radius(radius);
    transpose(a, p, w, h, channels);
    blur_columns(b, a, (int64_t)h * channels, w, r, sum);
    blur_columns(a, b, (int64_t)h * channels, w, r, sum);
    blur_columns(b, a, (int64_t)h * channels, w, r, sum);
    transpose(p, b, h, w, channels);
    blur_columns(a, p, (int64_t)w * channels, h, r, sum);
    blur_columns(b, a, (int64_t)w * channels, h, r, sum);
    blur_columns(p, b, (int64_t)w * channels, h, r, sum);
    arena_reset(scratch, mark);
}

/* ---- BGBLUR --------------------------------------------------------------------------------------- */

size_t edit_bgblur_bytes(int w, int h) {
    return (size_t)w * (size_t)h * (3 * sizeof(double) + 1) + blur_bytes(w, h, 3) + 256;
}

void edit_bgblur(uint8_t *out, const uint8_t *in, int w, int h, const Rect *object, int n, Arena *scratch) {
    const size_t mark = arena_mark(scratch);
    const int64_t pixels = (int64_t)w * h;
    memcpy(out, in, (size_t)pixels * 3);
    edit_gaussian_blur(out, w, h, 3, 2, scratch);
    double *sum = arena_alloc(scratch, (size_t)pixels * 3 * sizeof *sum); /* the reference rounds only after the last object */
    uint8_t *mask = arena_alloc(scratch, (size_t)pixels);
    for (int64_t i = 0; i < 3 * pixels; i++) sum[i] = out[i];
    for (int k = 0; k < n; k++) {
        const Rect r = inside(object[k], w, h);
        memset(mask, 0, (size_t)pixels);
        for (int y = r.y0; y < r.y1 && r.x0 < r.x1; y++) memset(mask + (int64_t)y * w + r.x0, 255, (size_t)rect_w(r));
        edit_gaussian_blur(mask, w, h, 1, 5, scratch);
        for (int64_t i = 0; i < pixels; i++) {
            const double m = mask[i] / 255.0;
            for (int c = 0; c < 3; c++) sum[3 * i + c] = m * in[3 * i + c] + (1 - m) * sum[3 * i + c];
        }
    }
    for (int64_t i = 0; i < 3 * pixels; i++) out[i] = (uint8_t)sum[i];
    arena_reset(scratch, mark);
}

/* ---- EMOJI ---------------------------------------------------------------------------------------- */

/* One channel of four as a gray picture: the resizer takes RGB. */
static void resize_channel(uint8_t *out, int ow, int oh, const uint8_t *rgba, int channel, int w, int h, uint8_t *wide, uint8_t *small) {
    for (int64_t i = 0; i < (int64_t)w * h; i++) {
        const int alpha = rgba[4 * i + 3], v = channel == 3 ? alpha : div255(rgba[4 * i + channel] * alpha);
        memset(wide + 3 * i, v, 3);
    }
    image_resize_u8(small, ow, oh, &(ImageView){wide, w, h}, (Rect){0, 0, w, h}, BICUBIC);
    for (int64_t i = 0; i < (int64_t)ow * oh; i++) out[4 * i + channel] = small[3 * i];
}

/* As Pillow resizes RGBA: with the colours multiplied by alpha, and divided by it again. */
static void resize_sticker(Sticker *out, const Sticker *s, int ow, int oh, Arena *a) {
    *out = (Sticker){ow, oh, arena_alloc(a, (size_t)ow * (size_t)oh * 4)};
    const size_t mark = arena_mark(a);
    uint8_t *wide = arena_alloc(a, (size_t)s->w * (size_t)s->h * 3), *small = arena_alloc(a, (size_t)ow * (size_t)oh * 3);
    for (int c = 0; c < 4; c++) resize_channel(out->rgba, ow, oh, s->rgba, c, s->w, s->h, wide, small);
    arena_reset(a, mark);
    for (int64_t i = 0; i < (int64_t)ow * oh; i++) {
        uint8_t *p = out->rgba + 4 * i;
        for (int c = 0; c < 3 && p[3] && p[3] != 255; c++) p[c] = (uint8_t)MIN(255, p[c] * 255 / p[3]);
    }
}

void edit_emoji(uint8_t *rgb, int w, int h, const Sticker *s, const double box[4], Arena *scratch) {
    const double cx = (box[0] + box[2]) / 2, cy = (box[1] + box[3]) / 2, side = (box[3] - box[1]) / 1.5;
    const int oh = MAX(1, (int)(h * (side / h))), ow = MAX(1, (int)((double)((int64_t)s->w * oh) / s->h));
    const int x0 = (int)(w * ((cx - 0.5 * side) / w)), y0 = (int)(h * ((cy - 0.5 * side) / h)); /* in the reference's order: it truncates */
    const size_t mark = arena_mark(scratch);
    Sticker fit;
    resize_sticker(&fit, s, ow, oh, scratch);
    for (int y = MAX(0, -y0); y < oh && y0 + y < h; y++)
        for (int x = MAX(0, -x0); x < ow && x0 + x < w; x++) {
            const uint8_t *from = fit.rgba + 4 * ((int64_t)y * ow + x);
            uint8_t *to = rgb + 3 * ((int64_t)(y0 + y) * w + x0 + x);
            for (int c = 0; c < 3; c++) to[c] = blend(from[3], to[c], from[c]);
        }
    arena_reset(scratch, mark);
}

/* ---- TAG ------------------------------------------------------------------------------------------ */

static const uint8_t green[3] = {0, 128, 0};

/* Fills columns x0..x1 and rows y0..y1, the last included, as far as they are in the picture. */
static void fill(uint8_t *rgb, int w, int h, int x0, int y0, int x1, int y1) {
    for (int y = MAX(y0, 0); y <= MIN(y1, h - 1); y++)
        for (int x = MAX(x0, 0); x <= MIN(x1, w - 1); x++) memcpy(rgb + 3 * ((int64_t)y * w + x), green, 3);
}

void edit_frame(uint8_t *rgb, int w, int h, Rect box) {
    const int more = 4 - 1;
    fill(rgb, w, h, box.x0, box.y0, box.x1, MIN(box.y0 + more, box.y1));
    fill(rgb, w, h, box.x0, MAX(box.y1 - more, box.y0), box.x1, box.y1);
    fill(rgb, w, h, box.x0, box.y0, MIN(box.x0 + more, box.x1), box.y1);
    fill(rgb, w, h, MAX(box.x1 - more, box.x0), box.y0, box.x1, box.y1);
}

void edit_label(uint8_t *rgb, int w, int h, Rect box, const TextMask *text) {
    const int tall = text->h + text->top, left = box.x0;
    const int top = left + text->w > w || box.y1 + tall > h ? box.y1 - tall : box.y1;
    fill(rgb, w, h, left, top, left + text->w, top + tall);
    for (int y = 0; y < text->h; y++)
        for (int x = 0; x < text->w; x++) {
            const int px = left + x, py = top + text->top + y;
            if (px < 0 || px >= w || py < 0 || py >= h) continue;
            uint8_t *p = rgb + 3 * ((int64_t)py * w + px);
            for (int c = 0; c < 3; c++) p[c] = blend(text->coverage[y * text->w + x], p[c], 255);
        }
}

/* ---- emoji by name -------------------------------------------------------------------------------- */

/* AugLy's "smileys", which are named as Unicode's emoji were in 2020. */
#define SMILEYS(X)                                                                                           \
    X(smiling_face, 0x263A) X(red_heart, 0x2764) X(ogre, 0x1F479) X(goblin, 0x1F47A) X(ghost, 0x1F47B)       \
    X(alien, 0x1F47D) X(alien_monster, 0x1F47E) X(angry_face_with_horns, 0x1F47F) X(skull, 0x1F480)          \
    X(kiss_mark, 0x1F48B) X(love_letter, 0x1F48C) X(beating_heart, 0x1F493) X(broken_heart, 0x1F494)         \
    X(two_hearts, 0x1F495) X(sparkling_heart, 0x1F496) X(growing_heart, 0x1F497)                             \
    X(heart_with_arrow, 0x1F498) X(blue_heart, 0x1F499) X(green_heart, 0x1F49A) X(yellow_heart, 0x1F49B)     \
    X(purple_heart, 0x1F49C) X(heart_with_ribbon, 0x1F49D) X(revolving_hearts, 0x1F49E)                      \
    X(heart_decoration, 0x1F49F) X(grinning_face, 0x1F600) X(beaming_face_with_smiling_eyes, 0x1F601)        \
    X(face_with_tears_of_joy, 0x1F602) X(grinning_face_with_big_eyes, 0x1F603)                               \
    X(grinning_face_with_smiling_eyes, 0x1F604) X(grinning_face_with_sweat, 0x1F605)                         \
    X(grinning_squinting_face, 0x1F606) X(smiling_face_with_halo, 0x1F607)                                   \
    X(smiling_face_with_horns, 0x1F608) X(winking_face, 0x1F609)                                             \
    X(smiling_face_with_smiling_eyes, 0x1F60A) X(face_savoring_food, 0x1F60B) X(relieved_face, 0x1F60C)      \
    X(smiling_face_with_heart_eyes, 0x1F60D) X(smiling_face_with_sunglasses, 0x1F60E)                        \
    X(smirking_face, 0x1F60F) X(neutral_face, 0x1F610) X(expressionless_face, 0x1F611)                       \
    X(unamused_face, 0x1F612) X(downcast_face_with_sweat, 0x1F613) X(pensive_face, 0x1F614)                  \
    X(confused_face, 0x1F615) X(confounded_face, 0x1F616) X(kissing_face, 0x1F617)                           \
    X(face_blowing_a_kiss, 0x1F618) X(kissing_face_with_smiling_eyes, 0x1F619)                               \
    X(kissing_face_with_closed_eyes, 0x1F61A) X(face_with_tongue, 0x1F61B)                                   \
    X(winking_face_with_tongue, 0x1F61C) X(squinting_face_with_tongue, 0x1F61D)                              \
    X(disappointed_face, 0x1F61E) X(worried_face, 0x1F61F) X(angry_face, 0x1F620)                            \
    X(pouting_face, 0x1F621) X(crying_face, 0x1F622) X(persevering_face, 0x1F623)                            \
    X(face_with_steam_from_nose, 0x1F624) X(sad_but_relieved_face, 0x1F625)                                  \
    X(frowning_face_with_open_mouth, 0x1F626) X(anguished_face, 0x1F627) X(fearful_face, 0x1F628)            \
    X(weary_face, 0x1F629) X(sleepy_face, 0x1F62A) X(tired_face, 0x1F62B) X(grimacing_face, 0x1F62C)         \
    X(loudly_crying_face, 0x1F62D) X(face_with_open_mouth, 0x1F62E) X(hushed_face, 0x1F62F)                  \
    X(anxious_face_with_sweat, 0x1F630) X(face_screaming_in_fear, 0x1F631) X(astonished_face, 0x1F632)       \
    X(flushed_face, 0x1F633) X(sleeping_face, 0x1F634) X(dizzy_face, 0x1F635)                                \
    X(face_without_mouth, 0x1F636) X(face_with_medical_mask, 0x1F637)                                        \
    X(grinning_cat_with_smiling_eyes, 0x1F638) X(cat_with_tears_of_joy, 0x1F639) X(grinning_cat, 0x1F63A)    \
    X(smiling_cat_with_heart_eyes, 0x1F63B) X(cat_with_wry_smile, 0x1F63C) X(kissing_cat, 0x1F63D)           \
    X(pouting_cat, 0x1F63E) X(crying_cat, 0x1F63F) X(weary_cat, 0x1F640) X(see_no_evil_monkey, 0x1F648)      \
    X(hear_no_evil_monkey, 0x1F649) X(speak_no_evil_monkey, 0x1F64A)

#define NAME(name, code) #name,
#define CODE(name, code) code,
const char *const emoji_names[] = {SMILEYS(NAME)};
static const uint32_t codes[] = {SMILEYS(CODE)};
const int nemoji_names = COUNT_OF(emoji_names);

uint32_t emoji_code(const char *name, int n) {
    for (int i = 0; i < nemoji_names; i++)
        if ((int)strlen(emoji_names[i]) == n && !memcmp(emoji_names[i], name, (size_t)n)) return codes[i];
    return 0;
}
