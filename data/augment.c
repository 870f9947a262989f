/* augment.c -- photometric augmentation. See augment.h.
 *
 * Each effect is drawn with a chance of its own, so that some images stay nearly clean. One pass over the pixels
 * after an optional 3x3 blur; the tint is computed on a coarse grid and interpolated.
 */
#include "data/augment.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "kernels/philox.h"

/* The numbers of one image, drawn in order. */
typedef struct Draw {
    uint64_t key, n;
    uint32_t r[4];
} Draw;

static float unit(Draw *d) {
    if (!(d->n & 3)) philox(d->r, d->key, d->n >> 2);
    return (float)(d->r[d->n++ & 3] >> 8) * 0x1p-24f;
}
static float range(Draw *d, float lo, float hi) { return lo + (hi - lo) * unit(d); }

enum { GRID = 6 };

/* A tint: bilinear noise on a GRID x GRID lattice, or stripes of two colours. */
typedef struct Tint {
    float alpha, lattice[GRID + 1][GRID + 1][3], angle[2], period, color[2][3];
    int kind;
} Tint;

static Tint draw_tint(Draw *d, float strength) {
    Tint t = {.alpha = range(d, 0, 0.55f * strength), .kind = (int)(unit(d) * 3)};
    float a = range(d, 0, 3.14159f);
    t.angle[0] = cosf(a);
    t.angle[1] = sinf(a);
    t.period = range(d, 8, 40);
    for (int k = 0; k < 6; k++) t.color[k / 3][k % 3] = range(d, 0, 255);
    for (int k = 0; k < (GRID + 1) * (GRID + 1) * 3; k++) (&t.lattice[0][0][0])[k] = range(d, 0, 255);
    return t;
}

static void tint_at(const Tint *t, float x, float y, float u, float v, float out[3]) {
    if (t->kind == 0) {
        memcpy(out, t->color[0], sizeof t->color[0]);
    } else if (t->kind == 1) {
        float phase = (x * t->angle[0] + y * t->angle[1]) / t->period;
        memcpy(out, t->color[phase - floorf(phase) < 0.5f], sizeof t->color[0]);
    } else {
        int gx = (int)(u * GRID), gy = (int)(v * GRID);
        float fx = u * GRID - (float)gx, fy = v * GRID - (float)gy;
        for (int c = 0; c < 3; c++)
            out[c] = (1 - fy) * ((1 - fx) * t->lattice[gy][gx][c] + fx * t->lattice[gy][gx + 1][c]) +
                     fy * ((1 - fx) * t->lattice[gy + 1][gx][c] + fx * t->lattice[gy + 1][gx + 1][c]);
    }
}

/* out = in blurred by (1 2 1)/4 in both directions; the border repeats. */
static void blur(uint8_t *out, const uint8_t *in, int w, int h) {
    for (int y = 0; y < h; y++) {
        const uint8_t *r0 = in + (size_t)(y ? y - 1 : 0) * (size_t)w * 3,
                      *r1 = in + (size_t)y * (size_t)w * 3;
        const uint8_t *r2 = in + (size_t)(y + 1 < h ? y + 1 : y) * (size_t)w * 3;
        for (int x = 0; x < w; x++)
            for (int c = 0; c < 3; c++) {
                int l = (x ? x - 1 : 0) * 3 + c, m = x * 3 + c, r = (x + 1 < w ? x + 1 : x) * 3 + c;
                int s =
                    r0[l] + 2 * r0[m] + r0[r] + 2 * (r1[l] + 2 * r1[m] + r1[r]) + r2[l] + 2 * r2[m] + r2[r];
                out[((size_t)y * (size_t)w + (size_t)x) * 3 + (size_t)c] = (uint8_t)((s + 8) >> 4);
            }
    }
}

/* ---- another ground ------------------------------------------------------------------------------- */

/* The commonest colour: the mean of the fullest cell of a histogram of 8 x 8 x 8 cells. On a plain ground that is the ground. */
static void commonest(float out[3], ImageView in) {
    enum { CELLS = 512 };
    uint32_t count[CELLS] = {0}, sum[CELLS][3] = {{0}};
    size_t n = (size_t)in.w * (size_t)in.h;
    int best = 0;
    for (size_t i = 0; i < n; i++) {
        const uint8_t *p = in.rgb + 3 * i;
        int cell = (p[0] >> 5) << 6 | (p[1] >> 5) << 3 | p[2] >> 5;
        count[cell]++;
        for (int c = 0; c < 3; c++) sum[cell][c] += p[c];
        if (count[cell] > count[best]) best = cell;
    }
    for (int c = 0; c < 3; c++) out[c] = count[best] ? (float)sum[best][c] / (float)count[best] : 0;
}

/* How much a pixel is ground: 1 within NEAR levels of its colour, 0 from FAR on. */
static float is_ground(const uint8_t *p, const float ground[3]) {
    const float NEAR = 12, FAR = 30;
    float most = 0;
    for (int c = 0; c < 3; c++) {
        float d = fabsf((float)p[c] - ground[c]);
        most = d > most ? d : most;
    }
    float k = (FAR - most) / (FAR - NEAR);
    return k < 0 ? 0 : k > 1 ? 1 : k;
}

static void mix(uint8_t *p, const float color[3], float a) {
    for (int c = 0; c < 3; c++) p[c] = (uint8_t)((float)p[c] + a * (color[c] - (float)p[c]) + 0.5f);
}

/* Paints a capsule from (x0, y0) to (x1, y1), `r` pixels to each side; only = NULL: over everything, else only as far as the pixel
 * of this ground colour shows the ground (strokes lie behind the objects). */
static void stroke(uint8_t *rgb, ImageView in, float x0, float y0, float x1, float y1, float r,
                   const float color[3], const float *only) {
    float ex = x1 - x0, ey = y1 - y0, len2 = ex * ex + ey * ey;
    int left = (int)fmaxf(fminf(x0, x1) - r - 1, 0), right = (int)fminf(fmaxf(x0, x1) + r + 2, (float)in.w);
    int top = (int)fmaxf(fminf(y0, y1) - r - 1, 0), bottom = (int)fminf(fmaxf(y0, y1) + r + 2, (float)in.h);
    for (int y = top; y < bottom; y++)
        for (int x = left; x < right; x++) {
            float px = (float)x + 0.5f - x0, py = (float)y + 0.5f - y0;
            float t = len2 > 0 ? (px * ex + py * ey) / len2 : 0;
            t = t < 0 ? 0 : t > 1 ? 1 : t;
            float dx = px - t * ex, dy = py - t * ey, cover = r + 0.5f - sqrtf(dx * dx + dy * dy);
            size_t at = ((size_t)y * (size_t)in.w + (size_t)x) * 3;
            cover = cover < 0 ? 0 : cover > 1 ? 1 : cover;
            mix(rgb + at, color, only ? cover * is_ground(in.rgb + at, only) : cover);
        }
}

static void draw_strokes(uint8_t *rgb, ImageView in, Draw *d, int n, float thickest, const float *only) {
    for (int k = 0; k < n; k++) {
        float color[3], x = unit(d) * (float)in.w, y = unit(d) * (float)in.h, r = range(d, 0.5f, thickest);
        float reach = 0.15f * (float)(in.w + in.h) / 2;
        for (int c = 0; c < 3; c++) color[c] = range(d, 0, 255);
        for (int bends = 1 + (int)(unit(d) * 3); bends > 0; bends--) {
            float x1 = x + range(d, -reach, reach), y1 = y + range(d, -reach, reach);
            stroke(rgb, in, x, y, x1, y1, r, color, only);
            x = x1;
            y = y1;
        }
    }
}

/* Puts what has the commonest colour on another ground, with scribbles on it and a few over everything (domain randomisation,
 * Tobin et al. 2017). */
static void change_ground(uint8_t *rgb, ImageView in, Draw *d) {
    float ground[3], rough = range(d, 0, 0.6f);
    commonest(ground, in);
    Tint big = draw_tint(d, 1), fine = draw_tint(d, 1);
    fine.kind = fine.kind ? fine.kind : 2;
    for (int y = 0; y < in.h; y++)
        for (int x = 0; x < in.w; x++) {
            size_t at = ((size_t)y * (size_t)in.w + (size_t)x) * 3;
            float k = is_ground(in.rgb + at, ground), color[3], detail[3];
            if (k == 0) continue;
            float u = (float)x / (float)in.w, v = (float)y / (float)in.h;
            tint_at(&big, (float)x, (float)y, u, v, color);
            tint_at(&fine, (float)x, (float)y, u, v, detail);
            for (int c = 0; c < 3; c++) color[c] += rough * (detail[c] - color[c]);
            mix(rgb + at, color, k);
        }
    draw_strokes(rgb, in, d, (int)(unit(d) * 13), 4, ground);
    draw_strokes(rgb, in, d, (int)(unit(d) * 4), 1.2f, NULL);
}

/* ---- all of it ------------------------------------------------------------------------------------ */

void augment_image(uint8_t *out, ImageView in, uint64_t seed, float strength, float ground,
                   uint8_t *scratch) {
    size_t n = (size_t)in.w * (size_t)in.h * 3;
    Draw d = {.key = seed ^ UINT64_C(0x9E3779B97F4A7C15)};
    if (unit(&d) < ground) {
        memcpy(scratch, in.rgb, n);
        change_ground(scratch, in, &d);
        in.rgb = scratch;
    }
    if (strength <= 0) {
        memcpy(out, in.rgb, n);
        return;
    }
    d = (Draw){.key = seed};
    if (unit(&d) < 0.4f * strength)
        blur(out, in.rgb, in.w, in.h);
    else
        memcpy(out, in.rgb, n);
    bool tinted = unit(&d) < 0.7f * strength, noisy = unit(&d) < 0.6f * strength;
    float gain[3], contrast = range(&d, 1 - 0.35f * strength, 1 + 0.2f * strength),
                   level = range(&d, -40 * strength, 30 * strength);
    for (int c = 0; c < 3; c++) gain[c] = range(&d, 1 - 0.3f * strength, 1 + 0.3f * strength);
    Tint t = draw_tint(&d, strength);
    float sigma = range(&d, 2, 16 * strength + 2);
    uint64_t counter = 1 << 20;
    uint32_t r[4] = {0};
    for (int y = 0; y < in.h; y++)
        for (int x = 0; x < in.w; x++) {
            uint8_t *p = out + ((size_t)y * (size_t)in.w + (size_t)x) * 3;
            float tint[3] = {0}, a = tinted ? t.alpha : 0;
            if (tinted) tint_at(&t, (float)x, (float)y, (float)x / (float)in.w, (float)y / (float)in.h, tint);
            if (noisy && !(x & 1)) philox(r, seed, counter++); /* twelve bytes of noise for two pixels */
            for (int c = 0; c < 3; c++) {
                float v = (1 - a) * (float)p[c] + a * tint[c];
                v = (v - 128) * contrast * gain[c] + 128 * gain[c] + level;
                if (noisy) { /* the sum of two uniform bytes: triangular, variance 2/12 of 256^2 */
                    uint32_t word = r[c], s = x & 1 ? word >> 16 : word;
                    v += sigma * ((float)((s & 255) + (s >> 8 & 255)) - 255) * (1 / 104.0f);
                }
                p[c] = (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v + 0.5f);
            }
        }
}
