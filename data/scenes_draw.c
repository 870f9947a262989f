/* scenes_draw.c -- paints a scene: signed distances, antialiased edges, grounds, and what makes the hard
 * domain hard.
 *
 * Every shape is a signed distance (negative inside) in its own [-1, 1]^2 square, evaluated one row at a
 * time over the object's bounding box only; distance times scale gives coverage and outline. Sums and
 * products only, plus sqrtf: the same bits on every IEEE machine. Layout: scenes.c.
 */
#pragma GCC optimize("fp-contract=off") /* a fused multiply-add would round differently on other machines */
#include "data/scenes.h"
#include <math.h>

/* --- constants of the two domains, frozen with SCENES_VERSION ----------------------------------------------
 */

static const struct {
    float ground_lo, ground_hi; /* clean: grey level of the ground */
    int quality;
} clean = {188, 236, 92};

static const struct {
    float gain_lo, gain_hi;                 /* colour cast, per channel */
    float contrast_lo, contrast_hi, bright; /* v -> (v - 128) * contrast + 128 + [-bright, bright] */
    float noise_hi;                         /* sigma of the gaussian noise, levels of 255 */
    float blur_hi;                          /* sigma of the blur, px */
    int clutter_lo, clutter_hi;             /* strokes and blobs behind the objects */
    int over_hi;                            /* thin strokes in front of them */
    int quality_lo, quality_hi;
} hard = {0.75f, 1.25f, 0.75f, 1.15f, 26, 13, 1.2f, 5, 14, 3, 50, 80};

typedef struct Rgb {
    float c[3];
} Rgb;

/* fill, and the second shade of a pattern: lighter for dark colours, darker for light ones */
static const struct {
    Rgb fill, shade;
} paint[SCENE_COLORS] = {
    [0] = {{{214, 36, 36}}, {{255, 150, 142}}},   /* red */
    [1] = {{{250, 216, 36}}, {{186, 142, 8}}},    /* yellow */
    [2] = {{{32, 156, 58}}, {{142, 226, 150}}},   /* green */
    [3] = {{{36, 78, 218}}, {{140, 184, 255}}},   /* blue */
    [4] = {{{146, 42, 184}}, {{222, 154, 244}}},  /* purple */
    [5] = {{{126, 72, 28}}, {{196, 146, 96}}},    /* brown */
    [6] = {{{250, 250, 250}}, {{176, 176, 178}}}, /* white */
    [7] = {{{30, 30, 32}}, {{112, 112, 116}}},    /* black */
};

/* --- shapes ------------------------------------------------------------------------------------------------
 */

typedef struct Point {
    float x, y;
} Point;
enum { ROW = 2 * SCENE_MASK_R };

static const Point star[] = {
    {0, -1},    {0.259f, -0.356f}, {0.951f, -0.309f}, {0.419f, 0.136f},   {0.588f, 0.809f},
    {0, 0.44f}, {-0.588f, 0.809f}, {-0.419f, 0.136f}, {-0.951f, -0.309f}, {-0.259f, -0.356f}};
static const Point heart_v[] = {{0, 0.95f},  {-0.88f, -0.1f}, {-0.45f, -0.38f},
                                {0, -0.22f}, {0.45f, -0.38f}, {0.88f, -0.1f}};
static const Point tree[] = {{0, -1},         {0.58f, -0.1f},  {0.30f, -0.1f}, {0.86f, 0.62f},
                             {0.19f, 0.62f},  {0.19f, 1},      {-0.19f, 1},    {-0.19f, 0.62f},
                             {-0.86f, 0.62f}, {-0.30f, -0.1f}, {-0.58f, -0.1f}};
static const Point house[] = {{0, -0.96f},    {0.98f, -0.12f},  {0.74f, -0.12f}, {0.74f, 0.9f},
                              {-0.74f, 0.9f}, {-0.74f, -0.12f}, {-0.98f, -0.12f}};
static const Point cup_body[] = {{-0.86f, -0.72f}, {0.46f, -0.72f}, {0.30f, 0.8f}, {-0.70f, 0.8f}};
static const Point fish_tail[] = {{0.22f, 0}, {0.95f, -0.56f}, {0.78f, 0}, {0.95f, 0.56f}};
static const Point arrow[] = {{-0.95f, -0.27f}, {0.08f, -0.27f}, {0.08f, -0.76f}, {0.96f, 0},
                              {0.08f, 0.76f},   {0.08f, 0.27f},  {-0.95f, 0.27f}};

/* d = min(d, distance to the polygon) */
static void add_polygon(float *restrict d, const float *restrict u, const float *restrict v, int n,
                        const Point *p, int np) {
    float near2[ROW], sign[ROW];
    for (int i = 0; i < n; i++) near2[i] = 1e9f, sign[i] = 1;
    for (int k = 0, j = np - 1; k < np; j = k++) {
        const float ax = p[k].x, ay = p[k].y, by = p[j].y, ex = p[j].x - ax, ey = by - ay;
        const float inv = 1 / (ex * ex + ey * ey), slope = ey != 0 ? ex / ey : 0;
        for (int i = 0; i < n; i++) {
            const float wx = u[i] - ax, wy = v[i] - ay;
            float t = (wx * ex + wy * ey) * inv;
            t = t < 0 ? 0 : t > 1 ? 1 : t;
            const float dx = wx - t * ex, dy = wy - t * ey, d2 = dx * dx + dy * dy;
            near2[i] = d2 < near2[i] ? d2 : near2[i];
            const bool crosses = ((ay > v[i]) != (by > v[i])) & (wx < slope * wy);
            sign[i] = crosses ? -sign[i] : sign[i];
        }
    }
    for (int i = 0; i < n; i++) {
        const float e = sign[i] * sqrtf(near2[i]);
        d[i] = e < d[i] ? e : d[i];
    }
}

static inline float disc(float u, float v, float x, float y, float r) {
    const float a = u - x, b = v - y;
    return sqrtf(a * a + b * b) - r;
}
/* A box by its larger excess: sharp corners, exact sides. */
static inline float slab(float u, float v, float hx, float hy) {
    const float a = fabsf(u) - hx, b = fabsf(v) - hy;
    return a > b ? a : b;
}
static inline float least(float a, float b) { return a < b ? a : b; }
static inline float most(float a, float b) { return a > b ? a : b; }

/* Signed distances of one row of points (u, v), n <= ROW. */
static void shape_row(int category, float *restrict d, const float *restrict u, const float *restrict v,
                      int n) {
#define EACH(expr)                                                                                           \
    for (int i = 0; i < n; i++) d[i] = (expr)
    switch (category) {
    case 0:
        EACH(disc(u[i], v[i], 0, 0, 0.95f));
        break;
    case 1:
        EACH(slab(u[i], v[i], 0.85f, 0.85f));
        break;
    case 2:
        EACH(1e9f);
        add_polygon(d, u, v, n, star, COUNT_OF(star));
        break;
    case 3:
        EACH(least(disc(u[i], v[i], -0.45f, -0.36f, 0.5f), disc(u[i], v[i], 0.45f, -0.36f, 0.5f)));
        add_polygon(d, u, v, n, heart_v, COUNT_OF(heart_v));
        break;
    case 4:
        EACH(fabsf(disc(u[i], v[i], 0, 0, 0.69f)) - 0.26f);
        break;
    case 5:
        EACH(least(slab(u[i], v[i], 0.95f, 0.31f), slab(u[i], v[i], 0.31f, 0.95f)));
        break;
    case 6:
        EACH(most(disc(u[i], v[i], 0.08f, 0, 0.95f), -disc(u[i], v[i], 0.52f, -0.12f, 0.78f)));
        break;
    case 7:
        EACH(1e9f);
        add_polygon(d, u, v, n, tree, COUNT_OF(tree));
        break;
    case 8:
        EACH(1e9f);
        add_polygon(d, u, v, n, house, COUNT_OF(house));
        break;
    case 9:
        EACH(fabsf(disc(u[i], v[i], 0.46f, -0.08f, 0.38f)) - 0.12f);
        add_polygon(d, u, v, n, cup_body, COUNT_OF(cup_body));
        break;
    case 10:
        EACH(most(disc(u[i], v[i], -0.22f, 0.36f, 0.86f), disc(u[i], v[i], -0.22f, -0.36f, 0.86f)));
        add_polygon(d, u, v, n, fish_tail, COUNT_OF(fish_tail));
        break;
    default:
        EACH(1e9f);
        add_polygon(d, u, v, n, arrow, COUNT_OF(arrow));
        break;
    }
#undef EACH
}

/* Local coordinates of the pixels (x0 .. x0+n-1, y), centres at +0.5, of an object at (cx, cy). */
static void local_row(const SceneObject *o, float cx, float cy, int x0, int y, int n, float *u, float *v) {
    const float ix = 1 / (o->half * o->ax), iy = 1 / (o->half * o->ay), dy = (float)y + 0.5f - cy;
    for (int i = 0; i < n; i++) {
        const float dx = (float)(x0 + i) + 0.5f - cx;
        u[i] = (o->rc * dx + o->rs * dy) * ix;
        v[i] = (o->rc * dy - o->rs * dx) * iy;
    }
}

void scene_mask(const SceneObject *o, uint8_t *mask, Rect *box) {
    float u[ROW], v[ROW], d[ROW];
    Rect b = {SCENE_MASK_R, SCENE_MASK_R, -SCENE_MASK_R, -SCENE_MASK_R};
    const int reach =
        MIN(SCENE_MASK_R, (int)(o->half * 1.42f) + 3); /* the farthest corner of a tilted shape */
    memset(mask, 0, (size_t)ROW * ROW);
    for (int y = -reach; y < reach; y++) {
        local_row(o, 0, 0, -reach, y, 2 * reach, u, v);
        shape_row(o->category, d, u, v, 2 * reach);
        uint8_t *m = mask + (y + SCENE_MASK_R) * ROW + SCENE_MASK_R - reach;
        for (int i = 0; i < 2 * reach; i++) {
            if (d[i] * o->half > 0) continue;
            m[i] = 1;
            const int x = i - reach;
            b = (Rect){MIN(b.x0, x), MIN(b.y0, y), MAX(b.x1, x + 1), MAX(b.y1, y + 1)};
        }
    }
    *box = b;
}

/* --- painting ----------------------------------------------------------------------------------------------
 */

static inline float clamp01(float x) { return x < 0 ? 0 : x > 1 ? 1 : x; }
static inline float fract(float x) { return x - floorf(x); }

/* Share of the second shade at a point of the object; px = pixels per unit, for antialiasing. */
static inline float pattern_at(int pattern, float u, float v, float phase, float px) {
    const float period = 0.52f; /* about four stripes over an object: 10 px on a small one */
    const float a = fract(v / period + phase), b = fract(u / period + phase);
    /* distance into the band [1/4, 3/4] of each period, px */
    const float da = (0.25f - fabsf(a - 0.5f)) * period * px, db = (0.25f - fabsf(b - 0.5f)) * period * px;
    const float ba = clamp01(da + 0.5f), bb = clamp01(db + 0.5f);
    switch (pattern) {
    case 1:
        return ba;
    case 2: {
        const float x = (b - 0.5f) * period, y = (a - 0.5f) * period;
        return clamp01((0.165f - sqrtf(x * x + y * y)) * px + 0.5f);
    }
    case 3:
        return ba * bb + (1 - ba) * (1 - bb);
    default:
        return 0;
    }
}

/* Parts that make a silhouette an object: a door, a trunk, an eye. Returns the factor on the colour. */
static inline float feature_at(int category, float u, float v) {
    switch (category) {
    case 7:
        return v > 0.62f ? 0.55f : 1; /* trunk */
    case 8:
        return v < -0.12f ? 0.62f : fabsf(u) < 0.2f && v > 0.28f ? 0.42f : 1; /* roof, door */
    default:
        return 1;
    }
}

static void paint_object(float *img, const SceneObject *o) {
    const Rgb fill = paint[o->color].fill, shade = paint[o->color].shade;
    const float px = o->half, outline = o->half > 24 ? 2.0f : 1.5f;
    float u[ROW], v[ROW], d[ROW];
    const int x0 = MAX(0, o->box.x0 - 1), x1 = MIN(SCENE_W, o->box.x1 + 1), n = x1 - x0;
    for (int y = MAX(0, o->box.y0 - 1); y < MIN(SCENE_H, o->box.y1 + 1); y++) {
        local_row(o, o->cx, o->cy, x0, y, n, u, v);
        shape_row(o->category, d, u, v, n);
        for (int i = 0; i < n; i++) {
            const float dist = d[i] * px, cover = clamp01(0.5f - dist);
            if (cover <= 0) continue;
            const float edge = clamp01(dist + outline + 0.5f);
            const float second = pattern_at(o->pattern, u[i], v[i], o->phase, px);
            const float light = (1.04f - 0.10f * (v[i] * 0.5f + 0.5f)) * feature_at(o->category, u[i], v[i]);
            float eye = 0;
            if (o->category == 10) eye = clamp01(0.5f - disc(u[i], v[i], -0.62f, -0.1f, 0.1f) * px);
            float *p = img + ((int64_t)y * SCENE_W + x0 + i) * 3;
            for (int c = 0; c < 3; c++) {
                float col = (fill.c[c] + second * (shade.c[c] - fill.c[c])) * light;
                col += edge * (fill.c[c] * 0.32f - col);
                col += eye * ((o->color == 7 ? 235 : 12) - col);
                p[c] += cover * (col - p[c]);
            }
        }
    }
}

/* A stroke from a to b, `r` px thick on each side. */
static void paint_stroke(float *img, Point a, Point b, float r, Rgb col, float opacity) {
    const int x0 = MAX(0, (int)(least(a.x, b.x) - r) - 1), x1 = MIN(SCENE_W, (int)(most(a.x, b.x) + r) + 2);
    const int y0 = MAX(0, (int)(least(a.y, b.y) - r) - 1), y1 = MIN(SCENE_H, (int)(most(a.y, b.y) + r) + 2);
    const float ex = b.x - a.x, ey = b.y - a.y, inv = 1 / most(1e-6f, ex * ex + ey * ey);
    for (int y = y0; y < y1; y++)
        for (int x = x0; x < x1; x++) {
            const float wx = (float)x + 0.5f - a.x, wy = (float)y + 0.5f - a.y,
                        t = clamp01((wx * ex + wy * ey) * inv);
            const float dx = wx - t * ex, dy = wy - t * ey;
            const float cover = clamp01(r + 0.5f - sqrtf(dx * dx + dy * dy)) * opacity;
            float *p = img + ((int64_t)y * SCENE_W + x) * 3;
            for (int c = 0; c < 3; c++) p[c] += cover * (col.c[c] - p[c]);
        }
}

static Rgb hsv(float h, float s, float v) {
    Rgb out;
    for (int c = 0; c < 3; c++) { /* each channel is a trapezoid over the hue circle */
        const float t = fract(h + (float)(3 - c) / 3) * 6;
        out.c[c] = 255 * v * (1 - s + s * clamp01(fabsf(t - 3) - 1));
    }
    return out;
}

/* Smooth value noise on a lattice of `cell` px. */
static void noise_field(float *f, float cell, SceneRng *r) {
    enum { N = 34 };
    float lat[N][N];
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) lat[i][j] = rng_unit(r);
    for (int y = 0; y < SCENE_H; y++) {
        const float fy = (float)y / cell;
        const int iy = (int)fy;
        const float ty = fy - (float)iy, sy = ty * ty * (3 - 2 * ty);
        for (int x = 0; x < SCENE_W; x++) {
            const float fx = (float)x / cell;
            const int ix = (int)fx;
            const float tx = fx - (float)ix, sx = tx * tx * (3 - 2 * tx);
            const float top = lat[iy][ix] + sx * (lat[iy][ix + 1] - lat[iy][ix]);
            const float bot = lat[iy + 1][ix] + sx * (lat[iy + 1][ix + 1] - lat[iy + 1][ix]);
            f[y * SCENE_W + x] = top + sy * (bot - top);
        }
    }
}

/* Draws go one to a statement: C leaves the order of arguments and initialisers to the compiler. */
static Point point_near(Point a, float dx, float dy, SceneRng *r) {
    const float x = rng_range(r, -dx, dx);
    const float y = rng_range(r, -dy, dy);
    return (Point){a.x + x, a.y + y};
}
static Point any_point(SceneRng *r) {
    return point_near((Point){SCENE_W / 2, SCENE_H / 2}, SCENE_W / 2, SCENE_H / 2, r);
}

static Rgb color_in(float hue, float s_lo, float s_hi, float v_lo, float v_hi, SceneRng *r) {
    const float s = rng_range(r, s_lo, s_hi);
    const float v = rng_range(r, v_lo, v_hi);
    return hsv(hue, s, v);
}
static Rgb any_color(SceneRng *r) {
    const float hue = rng_unit(r);
    return color_in(hue, 0.1f, 0.9f, 0.15f, 1, r);
}

static void ground_hard(float *img, SceneRng *r) {
    static _Thread_local float f[SCENE_W * SCENE_H], g[SCENE_W * SCENE_H];
    const float hue = rng_unit(r);
    const float hue2 = fract(hue + rng_range(r, -0.2f, 0.2f) + 1);
    const Rgb a = color_in(hue, 0, 0.75f, 0.42f, 0.95f, r);
    const Rgb b = color_in(hue2, 0, 0.75f, 0.42f, 0.95f, r);
    const float depth = rng_range(r, 0.35f, 0.9f); /* how far the texture goes from a to b */
    const int kind = rng_below(r, 5);
    noise_field(f, rng_range(r, 18, 48), r);
    noise_field(g, rng_range(r, 6, 14), r);
    const float dx = rng_range(r, -1, 1),
                dy = rng_range(r, -1, 1); /* declarators are in order: a full expression each */
    const float period = rng_range(r, 14, 30), warp = rng_range(r, 0.5f, 2);
    for (int y = 0; y < SCENE_H; y++)
        for (int x = 0; x < SCENE_W; x++) {
            const int at = y * SCENE_W + x;
            const float fx = (float)x, fy = (float)y;
            float t;
            switch (kind) {
            case 0:
                t = 0.7f * f[at] + 0.3f * g[at];
                break; /* clouds */
            case 1:
                t = clamp01(0.5f + dx * (fx / SCENE_W - 0.5f) + dy * (fy / SCENE_H - 0.5f)) * 0.85f +
                    0.15f * g[at];
                break; /* gradient */
            case 2:
                t = fabsf(fract((fy + dx * 0.15f * fx) / period + warp * f[at]) * 2 - 1) * 0.8f +
                    0.2f * g[at];
                break; /* wood */
            case 3:
                t = (float)(((int)(fx / period) + (int)(fy / period)) & 1) * 0.7f + 0.3f * f[at];
                break; /* tiles */
            default:
                t = fract((fx * dx + fy * dy) / period) < 0.5f ? 0.3f * g[at] : 0.7f + 0.3f * g[at];
                break; /* stripes */
            }
            for (int c = 0; c < 3; c++) img[at * 3 + c] = a.c[c] + depth * t * (b.c[c] - a.c[c]);
        }
}

static void clutter(float *img, SceneRng *r) {
    const int n = hard.clutter_lo + rng_below(r, hard.clutter_hi - hard.clutter_lo + 1);
    for (int k = 0; k < n; k++) {
        const Rgb col = any_color(r);
        Point a = any_point(r);
        if (rng_chance(r, 0.35f)) { /* a blob */
            const Point b = point_near(a, 5, 5, r);
            const float radius = rng_range(r, 2, 5), opacity = rng_range(r, 0.6f, 1);
            paint_stroke(img, a, b, radius, col, opacity);
            continue;
        }
        const float thick = rng_range(r, 0.6f, 1.6f);
        const int bends = 1 + rng_below(r, 4); /* a scribble */
        for (int i = 0; i < bends; i++) {
            const Point b = point_near(a, 28, 28, r);
            paint_stroke(img, a, b, thick, col, 0.9f);
            a = b;
        }
    }
}

static void blur(float *img, float sigma) {
    if (sigma < 0.25f) return;
    /* Seven taps of a gaussian by its series: exp(-x) = 1 / exp(x), exp(x) by repeated squaring of (1 +
     * x/1024). */
    float k[4], sum = 0;
    for (int i = 0; i < 4; i++) {
        float e = 1 + (float)(i * i) / (2 * sigma * sigma) / 1024;
        for (int j = 0; j < 10; j++) e *= e;
        k[i] = 1 / e;
        sum += i ? 2 * k[i] : k[i];
    }
    for (int i = 0; i < 4; i++) k[i] /= sum;
    static _Thread_local float row[(SCENE_W + 6) * 3], tmp[SCENE_BYTES];
    for (int y = 0; y < SCENE_H; y++) {
        const float *p = img + (int64_t)y * SCENE_W * 3;
        float *q = tmp + (int64_t)y * SCENE_W * 3;
        for (int i = 0; i < 9; i++)
            row[i] = p[i % 3], row[(SCENE_W + 3) * 3 + i] = p[(SCENE_W - 1) * 3 + i % 3];
        memcpy(row + 9, p, SCENE_W * 3 * sizeof *p);
        for (int i = 0; i < SCENE_W * 3; i++) {
            const float *m = row + 9 + i;
            q[i] = k[0] * m[0] + k[1] * (m[-3] + m[3]) + k[2] * (m[-6] + m[6]) + k[3] * (m[-9] + m[9]);
        }
    }
    for (int y = 0; y < SCENE_H; y++) {
        const float *m[7];
        for (int j = 0; j < 7; j++) m[j] = tmp + (int64_t)MIN(SCENE_H - 1, MAX(0, y + j - 3)) * SCENE_W * 3;
        float *q = img + (int64_t)y * SCENE_W * 3;
        for (int i = 0; i < SCENE_W * 3; i++)
            q[i] = k[0] * m[3][i] + k[1] * (m[2][i] + m[4][i]) + k[2] * (m[1][i] + m[5][i]) +
                   k[3] * (m[0][i] + m[6][i]);
    }
}

/* Cast, contrast, brightness. */
static void expose(float *img, SceneRng *r) {
    float gain[3];
    for (int c = 0; c < 3; c++) gain[c] = rng_range(r, hard.gain_lo, hard.gain_hi);
    const float contrast = rng_range(r, hard.contrast_lo, hard.contrast_hi),
                bright = rng_range(r, -hard.bright, hard.bright);
    for (int i = 0; i < SCENE_W * SCENE_H; i++)
        for (int c = 0; c < 3; c++)
            img[i * 3 + c] = (img[i * 3 + c] * gain[c] - 128) * contrast + 128 + bright;
}

/* Gaussian by the sum of eight bytes of one draw: mean 1020, variance 8 * (256^2 - 1) / 12. */
static void grain(float *img, float sigma, SceneRng *r) {
    const float scale = sigma / 209.02f;
    for (int i = 0; i < SCENE_BYTES; i++) {
        uint64_t b = rng_bits(r);
        b = (b & 0x00ff00ff00ff00ffu) + ((b >> 8) & 0x00ff00ff00ff00ffu);
        const uint64_t s = (b * 0x0001000100010001u) >> 48;
        img[i] += scale * ((float)s - 1020);
    }
}

int scene_quality(const Scene *s) {
    if (s->domain == SCENE_CLEAN) return clean.quality;
    SceneRng r = scene_rng(s->seed, s->split, s->domain, s->index, RNG_DRAW);
    return hard.quality_lo + rng_below(&r, hard.quality_hi - hard.quality_lo + 1);
}

void scene_render(const Scene *s, uint8_t *rgb) {
    static _Thread_local float img[SCENE_BYTES];
    SceneRng r = scene_rng(s->seed, s->split, s->domain, s->index, RNG_DRAW);
    rng_bits(&r); /* the first draw is the JPEG quality */
    if (s->domain == SCENE_HARD) {
        ground_hard(img, &r);
        clutter(img, &r);
    } else {
        const float grey = rng_range(&r, clean.ground_lo, clean.ground_hi);
        for (int i = 0; i < SCENE_BYTES; i++) img[i] = grey;
    }
    for (int i = 0; i < s->nobjects; i++) paint_object(img, &s->obj[i]);
    if (s->domain == SCENE_HARD) {
        for (int k = rng_below(&r, hard.over_hi + 1); k > 0; k--) {
            const Point a = any_point(&r), b = point_near(a, 40, 40, &r);
            const float thick = rng_range(&r, 0.4f, 0.9f);
            const Rgb col = any_color(&r);
            paint_stroke(img, a, b, thick, col, 0.8f);
        }
        blur(img, rng_range(&r, 0, hard.blur_hi));
        expose(img, &r);
        grain(img, rng_range(&r, 0, hard.noise_hi), &r);
    }
    for (int i = 0; i < SCENE_BYTES; i++) {
        const float x = img[i] + 0.5f;
        rgb[i] = (uint8_t)(x < 0 ? 0 : x > 255 ? 255 : x);
    }
}
