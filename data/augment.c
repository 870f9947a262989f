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

void augment_image(uint8_t *out, ImageView in, uint64_t seed, float strength) {
    size_t n = (size_t)in.w * (size_t)in.h * 3;
    if (strength <= 0) {
        memcpy(out, in.rgb, n);
        return;
    }
    Draw d = {.key = seed};
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
