/* image.c -- from u8 pixels, through a rectangle, to normalised patches. Contract: ops.h, image_patches.
 *
 * The resampling rule is Pillow's (src/libImaging/Resample.c), to the last bit: checkpoints were trained behind it.
 * Rows first, then columns, as Pillow did up to version 12 (which turned the order round for crops more than 100
 * times as high as wide; 13 does so for more shapes, moving values by a few units). We always keep the one order.
 * Each axis has a table of 22-bit integer weights. The rows of the rectangle pass through the horizontal table
 * when the vertical pass first needs them and wait, as u8, in a ring that holds one vertical window: the
 * intermediate image of a tall photograph is never stored, and what is stored stays in the cache.
 *
 * One image is one thread's work; OpenMP shares out the images. The inner loops are written with the compiler's
 * vector types, so they are SIMD on every machine that has it and plain C elsewhere.
 */
#include "kernels/cpu/image.h"

#include "engine/base.h"

#include <math.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

enum { WEIGHT_BITS = 22 }; /* 32 - 8 bits of pixel - 2 bits for weights beyond 1 */

typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef int32_t i32x4 __attribute__((vector_size(16)));

/* Weights of one axis: output i is the sum over k < count[i] of weight[i*stride + k] * input[first[i] + k]. */
typedef struct Axis {
    int n, m; /* input and output samples; 0: nothing computed yet */
    Filter filter;
    int stride;
    int64_t cap_m, cap_w, cap_wide, cap_real;
    int *span; /* first[m], then count[m] */
    int32_t *weight;
    int32_t *wide; /* horizontal only: each weight four times, taps padded to pairs with 0 */
    double *real;
} Axis;

/* What one thread keeps between calls: it grows to the largest image met, then nothing is allocated. */
typedef struct Scratch {
    Axis x, y;
    uint8_t *rgbx, *ring, *row;
    const uint8_t **window; /* the rows of one vertical window */
    int64_t cap_rgbx, cap_ring, cap_row, cap_window;
} Scratch;

static _Thread_local Scratch scratch;

static double kernel(Filter f, double t) {
    t = fabs(t);
    if (f == BILINEAR) return t < 1 ? 1 - t : 0;
    const double a = -0.5; /* Keys' cubic */
    if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
    if (t < 2) return (((t - 5) * t + 8) * t - 4) * a;
    return 0;
}

/* The order of the double operations is Pillow's: another order moves weights by 2^-22 and, rarely, a pixel by one.
 * (So is the missing fused multiply-add: -std=c17 tells gcc not to contract.) */
static void axis_plan(Axis *a, int n, int m, Filter f, bool wide) {
    if (a->n == n && a->m == m && a->filter == f) return;
    const double scale = (double)n / m, fscale = MAX(scale, 1.0);
    const double support = (f == BICUBIC ? 2 : 1) * fscale, inv = 1.0 / fscale;
    const int stride = ((int)ceil(support) * 2 + 2) & ~1; /* Pillow's 2 ceil + 1, made even */

    a->n = n, a->m = m, a->filter = f, a->stride = stride;
    GROW(a->span, a->cap_m, 2 * (int64_t)m);
    GROW(a->weight, a->cap_w, (int64_t)m * stride);
    GROW(a->real, a->cap_real, stride);
    if (wide) GROW(a->wide, a->cap_wide, (int64_t)m * stride * 4);
    for (int i = 0; i < m; i++) {
        const double centre = (i + 0.5) * scale;
        const int first = MAX((int)(centre - support + 0.5), 0);
        const int count = MIN((int)(centre + support + 0.5), n) - first;
        double sum = 0;
        for (int k = 0; k < count; k++) {
            a->real[k] = kernel(f, (k + first - centre + 0.5) * inv);
            sum += a->real[k];
        }
        int32_t *w = a->weight + (int64_t)i * stride;
        for (int k = 0; k < count; k++) {
            double v = sum != 0 ? a->real[k] / sum : a->real[k];
            w[k] = (int32_t)((v < 0 ? -0.5 : 0.5) + v * (1 << WEIGHT_BITS));
        }
        a->span[i] = first;
        a->span[m + i] = count;
        if (!wide) continue;
        int32_t *ww = a->wide + (int64_t)i * stride * 4;
        for (int k = 0; k < stride; k++)
            for (int j = 0; j < 4; j++) ww[4 * k + j] = k < count ? w[k] : 0;
    }
}

#ifndef __AVX2__
static inline uint8_t clamp_u8(int32_t v) { return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v); }
#endif

/* A resize in progress: output rows in order. */
typedef struct Resize {
    Scratch *s;
    const ImageView *im;
    Rect r;
    int ow, oh;
    bool x_same, y_same; /* a pass whose size does not change is skipped */
    int64_t ring_stride; /* bytes per row of the ring, with room for whole vectors */
    int ring_rows;
    int done;            /* rows of the rectangle that went through the horizontal pass */
} Resize;

static void resize_begin(Resize *z, const ImageView *im, Rect r, int ow, int oh, Filter f) {
    CHECK(rect_w(r) >= 1 && rect_h(r) >= 1 && rect_w(r) <= IMAGE_MAX_SIDE && rect_h(r) <= IMAGE_MAX_SIDE,
          "image_patches: rectangle [%d, %d, %d, %d] is empty or has a side above %d", r.x0, r.y0, r.x1, r.y1,
          IMAGE_MAX_SIDE);
    CHECK(ow >= 1 && oh >= 1 && ow <= IMAGE_MAX_SIDE && oh <= IMAGE_MAX_SIDE, "image_patches: output %d x %d", ow,
          oh);
    Scratch *s = &scratch;
    *z = (Resize){.s = s, .im = im, .r = r, .ow = ow, .oh = oh, .x_same = rect_w(r) == ow, .y_same = rect_h(r) == oh};
    if (!z->x_same) axis_plan(&s->x, rect_w(r), ow, f, true);
    if (!z->y_same) axis_plan(&s->y, rect_h(r), oh, f, false);
    z->ring_stride = ((int64_t)ow * 3 + 1 + 31) & ~(int64_t)31; /* + 1: a pixel is stored as four bytes */
    z->ring_rows = z->y_same ? 1 : MIN(s->y.stride, rect_h(r));
    GROW(s->rgbx, s->cap_rgbx, ((int64_t)rect_w(r) + 2) * 4);
    GROW(s->ring, s->cap_ring, z->ring_stride * z->ring_rows);
    GROW(s->row, s->cap_row, z->ring_stride);
    GROW(s->window, s->cap_window, z->ring_rows);
}

/* Row y of the rectangle as RGBX (or, packed, as RGB) pixels, black outside the image. */
static void fetch_row(const Resize *z, uint8_t *dst, int y, int step) {
    const ImageView *im = z->im;
    const int64_t iy = (int64_t)z->r.y0 + y;
    const int from = MIN(MAX(z->r.x0, 0), z->r.x1), to = MAX(MIN(z->r.x1, im->w), from);
    const int n = rect_w(z->r), lead = from - z->r.x0, inside = to - from;
    if (iy < 0 || iy >= im->h || inside == 0) {
        memset(dst, 0, (size_t)n * step);
        return;
    }
    const uint8_t *src = im->rgb + (iy * im->w + from) * 3;
    memset(dst, 0, (size_t)lead * step);
    memset(dst + (size_t)(lead + inside) * step, 0, (size_t)(n - lead - inside) * step);
    dst += (size_t)lead * step;
    if (step == 3) {
        memcpy(dst, src, (size_t)inside * 3);
        return;
    }
    for (int i = 0; i + 1 < inside; i++) memcpy(dst + 4 * (size_t)i, src + 3 * (size_t)i, 4); /* X: anything */
    memcpy(dst + 4 * ((size_t)inside - 1), src + 3 * ((size_t)inside - 1), 3); /* no byte beyond the image */
}

/* Eight bytes to eight integers, and back with clamping to 0..255. gcc 12 turns __builtin_convertvector between
 * vectors of different sizes into byte-by-byte code (5x slower in all), hence the two spellings. */
static inline i32x8 load8(const uint8_t *p) {
#ifdef __AVX2__
    return (i32x8)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
#else
    return (i32x8){p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]};
#endif
}

static inline void store32(uint8_t *dst, const i32x8 v[4]) {
#ifdef __AVX2__
    __m256i lo = _mm256_packs_epi32((__m256i)v[0], (__m256i)v[1]), hi = _mm256_packs_epi32((__m256i)v[2], (__m256i)v[3]);
    /* packing works within each half: put the eight groups of four back in order */
    __m256i out = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(lo, hi), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)dst, out);
#else
    for (int j = 0; j < 32; j++) dst[j] = clamp_u8(v[j / 8][j % 8]);
#endif
}

static inline void store4(uint8_t *dst, i32x4 v) {
#ifdef __AVX2__
    __m128i w = _mm_packs_epi32((__m128i)v, (__m128i)v);
    int32_t out = _mm_cvtsi128_si32(_mm_packus_epi16(w, w));
    memcpy(dst, &out, 4);
#else
    for (int j = 0; j < 4; j++) dst[j] = clamp_u8(v[j]);
#endif
}

static const i32x8 half = {1 << (WEIGHT_BITS - 1), 1 << (WEIGHT_BITS - 1), 1 << (WEIGHT_BITS - 1),
                           1 << (WEIGHT_BITS - 1), 0, 0, 0, 0};

/* One row through the horizontal weights; two taps of four channels per vector. */
static void horizontal(uint8_t *dst, const uint8_t *rgbx, const Axis *a) {
    for (int i = 0; i < a->m; i++) {
        const uint8_t *p = rgbx + 4 * (int64_t)a->span[i];
        const int32_t *w = a->wide + (int64_t)i * a->stride * 4;
        const int count = a->span[a->m + i];
        i32x8 acc = half, ww;
        for (int k = 0; k < count; k += 2) {
            memcpy(&ww, w + 4 * k, sizeof ww);
            acc += load8(p + 4 * k) * ww;
        }
        i32x4 low, high;
        memcpy(&low, &acc, sizeof low);
        memcpy(&high, (const char *)&acc + sizeof low, sizeof high);
        store4(dst + 3 * (int64_t)i, (low + high) >> WEIGHT_BITS); /* the 4th byte is the next pixel's, written next */
    }
}

/* One output row: columns are independent, so 32 bytes at a time go through all the taps in registers. */
static void vertical(uint8_t *dst, const uint8_t *const *window, const int32_t *w, int count, int64_t n) {
    for (int64_t at = 0; at < n; at += 32) {
        i32x8 acc[4];
        for (int j = 0; j < 4; j++) acc[j] = (i32x8){0} + (1 << (WEIGHT_BITS - 1));
        for (int k = 0; k < count; k++)
            for (int j = 0; j < 4; j++) acc[j] += load8(window[k] + at + 8 * j) * w[k];
        for (int j = 0; j < 4; j++) acc[j] >>= WEIGHT_BITS;
        store32(dst + at, acc);
    }
}

/* Output row y (asked for in ascending order): ow RGB pixels, valid until the next call. */
static const uint8_t *resize_row(Resize *z, int y) {
    Scratch *s = z->s;
    const int first = z->y_same ? y : s->y.span[y], count = z->y_same ? 1 : s->y.span[z->oh + y];
    z->done = MAX(z->done, first); /* rows before the first window are never looked at */
    for (; z->done < first + count; z->done++) {
        uint8_t *dst = s->ring + z->done % z->ring_rows * z->ring_stride;
        if (z->x_same) {
            fetch_row(z, dst, z->done, 3);
        } else {
            fetch_row(z, s->rgbx, z->done, 4);
            horizontal(dst, s->rgbx, &s->x);
        }
    }
    if (z->y_same) return s->ring;
    for (int k = 0; k < count; k++) s->window[k] = s->ring + (first + k) % z->ring_rows * z->ring_stride;
    vertical(s->row, s->window, s->y.weight + (int64_t)y * s->y.stride, count, (int64_t)z->ow * 3);
    return s->row;
}

void image_resize_u8(uint8_t *out, int ow, int oh, const ImageView *im, Rect rect, Filter filter) {
    Resize z;
    resize_begin(&z, im, rect, ow, oh, filter);
    for (int y = 0; y < oh; y++) memcpy(out + (int64_t)y * ow * 3, resize_row(&z, y), (size_t)ow * 3);
}

/* u8 -> normalised value, per channel. The image processors of the published models scale in double, round to
 * float, then normalise in float; the table does the same. */
static void make_table(float table[3][256], const PatchSpec *p) {
    for (int c = 0; c < 3; c++)
        for (int v = 0; v < 256; v++) table[c][v] = ((float)(v * (1.0 / 255)) - p->mean[c]) / p->std[c];
}

void cpu_image_patches(Stream *stream, DType t, void *patches, const ImageView *image, const Rect *rect,
                       const int (*size)[2], const PatchSpec *spec, int64_t B) {
    (void)stream;
    const int P = spec->patch, grid_w = spec->grid_w;
    const int64_t area = (int64_t)P * P, row = 3 * area, item = (int64_t)spec->grid_h * grid_w * row;
    float table[3][256];
    uint16_t table16[3][256];
    CHECK(P >= 1 && spec->grid_h >= 0 && grid_w >= 0, "image_patches: patch %d, grid %d x %d", P, spec->grid_h, grid_w);
    make_table(table, spec);
    for (int c = 0; c < 3; c++)
        for (int v = 0; v < 256; v++) table16[c][v] = bf16_round(table[c][v]);

#pragma omp parallel for schedule(dynamic, 1) if (B > 1)
    for (int64_t b = 0; b < B; b++) {
        const int full_h = size[b][0], full_w = size[b][1], h = MIN(full_h, spec->grid_h * P), w = MIN(full_w, grid_w * P), nx = w / P;
        CHECK(h >= P && w >= P && h % P == 0 && w % P == 0,
              "image_patches: item %lld is resized to %d x %d, the grid is %d x %d patches of %d", (long long)b, full_h,
              full_w, spec->grid_h, grid_w, P);
        const int top = (full_h - h) / 2, left = (full_w - w) / 2;
        Resize z;
        resize_begin(&z, &image[b], rect[b], full_w, full_h, spec->filter);
        for (int y = 0; y < h; y++) {
            const uint8_t *px = resize_row(&z, top + y) + 3 * left;
            const int64_t at = b * item + (int64_t)(y / P) * grid_w * row + (int64_t)(y % P) * P;
            for (int gx = 0; gx < nx; gx++, px += 3 * P) {
                for (int c = 0; c < 3; c++) {
                    const int64_t to = at + gx * row + c * area;
                    if (t == F32) {
                        float *dst = (float *)patches + to;
                        for (int x = 0; x < P; x++) dst[x] = table[c][px[3 * x + c]];
                    } else {
                        uint16_t *dst = (uint16_t *)patches + to;
                        for (int x = 0; x < P; x++) dst[x] = table16[c][px[3 * x + c]];
                    }
                }
            }
            if (y % P == P - 1 && nx < grid_w) { /* the patches right of the image */
                const int64_t pad = b * item + ((int64_t)(y / P) * grid_w + nx) * row;
                memset((char *)patches + pad * (int64_t)dtype_size(t), 0, (size_t)((grid_w - nx) * row) * dtype_size(t));
            }
        }
        const int64_t end = (int64_t)(h / P) * grid_w * row; /* and below it */
        memset((char *)patches + (b * item + end) * (int64_t)dtype_size(t), 0, (size_t)(item - end) * dtype_size(t));
    }
}
