/* image.c -- from u8 pixels, through a rectangle, to normalised patches. Contract: ops.h, image_patches.
 *
 * The resampling rule is Pillow's (src/libImaging/Resample.c), to the last bit: checkpoints were trained
 * behind it. Rows first, then columns, as Pillow did up to version 12 (which turned the order round for crops
 * more than 100 times as high as wide; 13 does so for more shapes, moving values by a few units). We always
 * keep the one order. Each axis has a table of 22-bit integer weights. The rows of the rectangle pass through
 * the horizontal table when the vertical pass first needs them and wait, as u8, in a ring that holds one
 * vertical window: the intermediate image of a tall photograph is never stored, and what is stored stays in
 * the cache.
 *
 * One image is one thread's work; OpenMP shares out the images. The two passes are written twice, for AVX2
 * and in plain C, which is also the shortest description of what they compute.
 */
#include "kernels/cpu/image.h"

#include "kernels/cpu/cpu.h"

enum {
    WEIGHT_BITS = 22, /* 32 - 8 bits of pixel - 2 bits for weights beyond 1 */
    LOW_BITS = 11,
    AHEAD =
        32 /* bytes beyond a row that vectors may touch; the horizontal pass also those under weights of 0 */
};

/* Four weights as high << LOW_BITS + low: multiplying integers of 16 bits and adding pairs of products takes
 * one instruction, where those of 32 bits take two for half as many. Sums of either half may wrap around; the
 * whole fits, as in Pillow, so it is right. */
typedef struct Taps {
    int16_t low[4], high[4];
} Taps;

/* Weights of one axis: output i is the sum over k < 4 stride of weight k of tap[i*stride ..] times
 * input[first[i] + k]. Weights from count[i] on are 0, and may stand for input that is not there. */
typedef struct Axis {
    int n, m; /* input and output samples; 0: nothing computed yet */
    Filter filter;
    int stride;
    int64_t cap_m, cap_tap, cap_real;
    int *span; /* first[m], then count[m] */
    Taps *tap;
    double *real;
} Axis;

/* What one thread keeps between calls: it grows to the largest image met, then nothing is allocated. */
typedef struct Scratch {
    Axis x, y;
    uint8_t *in, *ring, *row;
    const uint8_t **window; /* the rows of one vertical window */
    int64_t cap_in, cap_ring, cap_row, cap_window;
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

/* The order of the double operations is Pillow's: another order moves weights by 2^-22 and, rarely, a pixel by
 * one. (So is the missing fused multiply-add: -std=c17 tells gcc not to contract.) */
static void axis_plan(Axis *a, int n, int m, Filter f) {
    if (a->n == n && a->m == m && a->filter == f) return;
    const double scale = (double)n / m, fscale = MAX(scale, 1.0);
    const double support = (f == BICUBIC ? 2 : 1) * fscale, inv = 1.0 / fscale;

    a->n = n, a->m = m, a->filter = f;
    GROW(a->span, a->cap_m, 2 * (int64_t)m);
    int *first = a->span, *count = a->span + m, most = 0;
    for (int i = 0; i < m; i++) {
        const double centre = (i + 0.5) * scale;
        first[i] = MAX((int)(centre - support + 0.5), 0);
        count[i] = MIN((int)(centre + support + 0.5), n) - first[i];
        most = MAX(most, count[i]);
    }
    a->stride = (most + 3) / 4;
    GROW(a->tap, a->cap_tap, (int64_t)m * a->stride);
    GROW(a->real, a->cap_real, most);
    memset(a->tap, 0, (size_t)m * (size_t)a->stride * sizeof *a->tap);
    for (int i = 0; i < m; i++) {
        const double centre = (i + 0.5) * scale;
        double sum = 0;
        for (int k = 0; k < count[i]; k++) {
            a->real[k] = kernel(f, (k + first[i] - centre + 0.5) * inv);
            sum += a->real[k];
        }
        Taps *tap = a->tap + (int64_t)i * a->stride;
        for (int k = 0; k < count[i]; k++) {
            const double v = sum != 0 ? a->real[k] / sum : a->real[k];
            const int32_t w = (int32_t)((v < 0 ? -0.5 : 0.5) + v * (1 << WEIGHT_BITS));
            const int32_t high = (w + (1 << (LOW_BITS - 1))) >> LOW_BITS;
            tap[k / 4].high[k % 4] = (int16_t)high;
            tap[k / 4].low[k % 4] = (int16_t)(w - high * (1 << LOW_BITS));
        }
    }
}

/* A resize in progress: output rows in order. */
typedef struct Resize {
    Scratch *s;
    const ImageView *im;
    Rect r;
    int ow, oh;
    bool x_same, y_same; /* a pass whose size does not change is skipped */
    int64_t ahead;       /* bytes beyond an input row that may be read */
    int64_t ring_stride; /* bytes per row of the ring */
    int ring_rows;
    int done; /* rows of the rectangle that went through the horizontal pass */
} Resize;

static void resize_begin(Resize *z, const ImageView *im, Rect r, int ow, int oh, Filter f) {
    CHECK(rect_w(r) >= 1 && rect_h(r) >= 1 && rect_w(r) <= IMAGE_MAX_SIDE && rect_h(r) <= IMAGE_MAX_SIDE,
          "image_patches: rectangle [%d, %d, %d, %d] is empty or has a side above %d", r.x0, r.y0, r.x1, r.y1,
          IMAGE_MAX_SIDE);
    CHECK(ow >= 1 && oh >= 1 && ow <= IMAGE_MAX_SIDE && oh <= IMAGE_MAX_SIDE, "image_patches: output %d x %d",
          ow, oh);
    Scratch *s = &scratch;
    *z = (Resize){
        .s = s, .im = im, .r = r, .ow = ow, .oh = oh, .x_same = rect_w(r) == ow, .y_same = rect_h(r) == oh};
    if (!z->x_same) axis_plan(&s->x, rect_w(r), ow, f);
    if (!z->y_same) axis_plan(&s->y, rect_h(r), oh, f);
    z->ahead = AHEAD + (z->x_same ? 0 : 12 * s->x.stride);
    z->ring_stride = (int64_t)ow * 3 + AHEAD;
    z->ring_rows = z->y_same ? 1 : MIN(4 * s->y.stride, rect_h(r));
    GROW(s->in, s->cap_in, (int64_t)rect_w(r) * 3 + z->ahead);
    GROW(s->ring, s->cap_ring, z->ring_stride * z->ring_rows);
    GROW(s->row, s->cap_row, z->ring_stride);
    GROW(s->window, s->cap_window, z->ring_rows + 1);
}

/* Row y of the rectangle, RGB, black outside the image, with `ahead` bytes after it that may be read. */
static const uint8_t *input_row(const Resize *z, int y) {
    const ImageView *im = z->im;
    const int64_t iy = (int64_t)z->r.y0 + y, n = rect_w(z->r);
    const int from = MIN(MAX(z->r.x0, 0), z->r.x1), to = MAX(MIN(z->r.x1, im->w), from);
    const int64_t at = (iy * im->w + from) * 3, bytes = (int64_t)im->w * im->h * 3;
    uint8_t *row = z->s->in;
    if (iy < 0 || iy >= im->h || from == to) return memset(row, 0, (size_t)n * 3);
    if (to - from == n && at + n * 3 + z->ahead <= bytes) return im->rgb + at;
    const size_t lead = (size_t)(from - z->r.x0) * 3, inside = (size_t)(to - from) * 3;
    memset(row, 0, lead);
    memcpy(row + lead, im->rgb + at, inside);
    memset(row + lead + inside, 0, (size_t)n * 3 - lead - inside);
    return row;
}

/* ---- the two passes ------------------------------------------------------------------------------- */

#ifdef __AVX2__

/* One row through the horizontal weights, four taps at a time: of four pixels, r r g g b b 0 0 of the first
 * two in one half of a vector, of the others in the other half, as numbers of 16 bits. */
static inline __attribute__((always_inline)) void
horizontal_of(uint8_t *dst, const uint8_t *rgb, const int *first, const Taps *tap, int m, const int stride) {
#define PAIR(p) p, -1, p + 3, -1, p + 1, -1, p + 4, -1, p + 2, -1, p + 5, -1, -1, -1, -1, -1
#define FOUR(p) p, p + 1, p + 2, p + 3
#define EACH(p) FOUR(p), FOUR(p), FOUR(p), FOUR(p) /* two weights, for all channels */
    const __m256i pixels = _mm256_setr_epi8(PAIR(0), PAIR(6)), low = _mm256_setr_epi8(EACH(0), EACH(4)),
                  high = _mm256_setr_epi8(EACH(8), EACH(12));
    const __m256i half = _mm256_zextsi128_si256(_mm_set1_epi32(1 << (WEIGHT_BITS - 1)));
#define BOTH_HALVES(p) _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(p)))
    for (int i = 0; i < m; i++, dst += 3) {
        const uint8_t *p = rgb + 3 * (int64_t)first[i];
        __m256i sum = half, above = _mm256_setzero_si256();
        for (int k = 0; k < stride; k++, p += 12, tap++) {
            const __m256i x = _mm256_shuffle_epi8(BOTH_HALVES(p), pixels), w = BOTH_HALVES(tap);
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(x, _mm256_shuffle_epi8(w, low)));
            above = _mm256_add_epi32(above, _mm256_madd_epi16(x, _mm256_shuffle_epi8(w, high)));
        }
        sum = _mm256_add_epi32(sum, _mm256_slli_epi32(above, LOW_BITS));
        __m128i v = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
        v = _mm_srai_epi32(v, WEIGHT_BITS);
        v = _mm_packs_epi32(v, v);
        _mm_storeu_si32(dst, _mm_packus_epi16(v, v)); /* the 4th byte is the next pixel's */
    }
#undef PAIR
#undef FOUR
#undef EACH
#undef BOTH_HALVES
}

/* The common ones, enlarging and reducing to not less than half, with loops that are unrolled. */
static void horizontal(uint8_t *dst, const uint8_t *rgb, const Axis *a) {
    if (a->stride == 1)
        horizontal_of(dst, rgb, a->span, a->tap, a->m, 1);
    else if (a->stride == 2)
        horizontal_of(dst, rgb, a->span, a->tap, a->m, 2);
    else
        horizontal_of(dst, rgb, a->span, a->tap, a->m, a->stride);
}

/* One output row, n bytes: columns are independent. Bytes of two rows are interleaved, then those of 32
 * columns go through all taps in registers. window[count], for an odd count, is any row: its weight is 0. */
static void vertical(uint8_t *dst, const uint8_t *const *window, const Taps *tap, int count, int64_t n) {
    const __m256i zero = _mm256_setzero_si256();
    for (int64_t at = 0; at < n; at += 32) {
        __m256i sum[4], above[4], x[4], v[4];
        for (int j = 0; j < 4; j++) sum[j] = _mm256_set1_epi32(1 << (WEIGHT_BITS - 1)), above[j] = zero;
        for (int k = 0; k < count; k += 2) {
            const __m256i a = _mm256_loadu_si256((const __m256i *)(window[k] + at)),
                          b = _mm256_loadu_si256((const __m256i *)(window[k + 1] + at)),
                          left = _mm256_unpacklo_epi8(a, b), right = _mm256_unpackhi_epi8(a, b);
            int32_t low, high;
            memcpy(&low, tap[k / 4].low + k % 4, sizeof low);
            memcpy(&high, tap[k / 4].high + k % 4, sizeof high);
            x[0] = _mm256_unpacklo_epi8(left, zero);
            x[1] = _mm256_unpackhi_epi8(left, zero);
            x[2] = _mm256_unpacklo_epi8(right, zero);
            x[3] = _mm256_unpackhi_epi8(right, zero);
            for (int j = 0; j < 4; j++) {
                sum[j] = _mm256_add_epi32(sum[j], _mm256_madd_epi16(x[j], _mm256_set1_epi32(low)));
                above[j] = _mm256_add_epi32(above[j], _mm256_madd_epi16(x[j], _mm256_set1_epi32(high)));
            }
        }
        for (int j = 0; j < 4; j++)
            v[j] = _mm256_srai_epi32(_mm256_add_epi32(sum[j], _mm256_slli_epi32(above[j], LOW_BITS)),
                                     WEIGHT_BITS);
        /* Packing undoes what interleaving did to the order. */
        _mm256_storeu_si256((__m256i *)(dst + at), _mm256_packus_epi16(_mm256_packs_epi32(v[0], v[1]),
                                                                       _mm256_packs_epi32(v[2], v[3])));
    }
}

#else

static int32_t weight(const Taps *tap, int k) {
    return tap[k / 4].high[k % 4] * (1 << LOW_BITS) + tap[k / 4].low[k % 4];
}

static uint8_t pixel(int32_t sum) {
    const int32_t v = sum >> WEIGHT_BITS;
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

static void horizontal(uint8_t *dst, const uint8_t *rgb, const Axis *a) {
    for (int i = 0; i < a->m; i++) {
        const Taps *tap = a->tap + (int64_t)i * a->stride;
        for (int c = 0; c < 3; c++) {
            int32_t sum = 1 << (WEIGHT_BITS - 1);
            for (int k = 0; k < a->span[a->m + i]; k++) sum += weight(tap, k) * rgb[3 * (a->span[i] + k) + c];
            dst[3 * i + c] = pixel(sum);
        }
    }
}

static void vertical(uint8_t *dst, const uint8_t *const *window, const Taps *tap, int count, int64_t n) {
    for (int64_t at = 0; at < n; at++) {
        int32_t sum = 1 << (WEIGHT_BITS - 1);
        for (int k = 0; k < count; k++) sum += weight(tap, k) * window[k][at];
        dst[at] = pixel(sum);
    }
}

#endif

/* Output row y (asked for in ascending order): ow RGB pixels, and AHEAD bytes that may be read, valid until
 * the next call. */
static const uint8_t *resize_row(Resize *z, int y) {
    Scratch *s = z->s;
    const int first = z->y_same ? y : s->y.span[y], count = z->y_same ? 1 : s->y.span[z->oh + y];
    z->done = MAX(z->done, first); /* rows before the first window are never looked at */
    for (; z->done < first + count; z->done++) {
        uint8_t *dst = s->ring + z->done % z->ring_rows * z->ring_stride;
        if (z->x_same)
            memcpy(dst, input_row(z, z->done), (size_t)z->ow * 3);
        else
            horizontal(dst, input_row(z, z->done), &s->x);
    }
    if (z->y_same) return s->ring;
    for (int k = 0; k < count; k++) s->window[k] = s->ring + (first + k) % z->ring_rows * z->ring_stride;
    s->window[count] = s->ring;
    vertical(s->row, s->window, s->y.tap + (int64_t)y * s->y.stride, count, (int64_t)z->ow * 3);
    return s->row;
}

void image_resize_u8(uint8_t *out, int ow, int oh, const ImageView *im, Rect rect, Filter filter) {
    Resize z;
    resize_begin(&z, im, rect, ow, oh, filter);
    for (int y = 0; y < oh; y++) memcpy(out + (int64_t)y * ow * 3, resize_row(&z, y), (size_t)ow * 3);
}

/* ---- patches -------------------------------------------------------------------------------------- */

/* Channel p[0] of eight pixels. */
static inline V8 channel8(const uint8_t *p) {
#ifdef __AVX2__
#define FOUR 0, -1, -1, -1, 3, -1, -1, -1, 6, -1, -1, -1, 9, -1, -1, -1
    const __m256i bytes = _mm256_loadu2_m128i((const __m128i *)(p + 12), (const __m128i *)p);
    return (V8)_mm256_cvtepi32_ps(_mm256_shuffle_epi8(bytes, _mm256_setr_epi8(FOUR, FOUR)));
#undef FOUR
#else
    return (V8){p[0], p[3], p[6], p[9], p[12], p[15], p[18], p[21]};
#endif
}

/* to (n) = channel p[0] of n pixels, scaled, less mean, over std. The image processors of the published models
 * scale in double (v * (1 / 255.0)), round to float, then normalise in float; v / 255 is the same float for
 * each v of 0..255. */
static void normalise(float *to, const uint8_t *p, int n, float mean, float std) {
    if (n < 8) {
        for (int x = 0; x < n; x++) to[x] = ((float)p[3 * x] / 255 - mean) / std;
        return;
    }
    for (int x = 0; x < n; x += 8) {
        const int at = MIN(x, n - 8); /* the last eight may overlap the ones before */
        *(V8 *)(to + at) = (channel8(p + 3 * at) / 255 - mean) / std;
    }
}

void cpu_image_patches(Stream *stream, DType t, void *patches, const ImageView *image, const Rect *rect,
                       const int (*size)[2], const PatchSpec *spec, int64_t B) {
    (void)stream;
    const int P = spec->patch, grid_w = spec->grid_w;
    const int64_t area = (int64_t)P * P, row = 3 * area, item = (int64_t)spec->grid_h * grid_w * row;
    CHECK(P >= 1 && spec->grid_h >= 0 && grid_w >= 0, "image_patches: patch %d, grid %d x %d", P,
          spec->grid_h, grid_w);

#pragma omp parallel for schedule(dynamic, 1) if (B > 1)
    for (int64_t b = 0; b < B; b++) {
        const int full_h = size[b][0], full_w = size[b][1], h = MIN(full_h, spec->grid_h * P),
                  w = MIN(full_w, grid_w * P), nx = w / P;
        CHECK(h >= P && w >= P && h % P == 0 && w % P == 0,
              "image_patches: item %lld is resized to %d x %d, the grid is %d x %d patches of %d",
              (long long)b, full_h, full_w, spec->grid_h, grid_w, P);
        const int top = (full_h - h) / 2, left = (full_w - w) / 2;
        float *line = cpu_scratch(SCRATCH_THREAD, (size_t)P * sizeof *line);
        Resize z;
        resize_begin(&z, &image[b], rect[b], full_w, full_h, spec->filter);
        for (int y = 0; y < h; y++) {
            const uint8_t *px = resize_row(&z, top + y) + 3 * left;
            const int64_t at = b * item + (int64_t)(y / P) * grid_w * row + (int64_t)(y % P) * P;
            for (int gx = 0; gx < nx; gx++, px += 3 * P) {
                for (int c = 0; c < 3; c++) {
                    const int64_t to = at + gx * row + c * area;
                    float *values = t == F32 ? (float *)patches + to : line;
                    normalise(values, px + c, P, spec->mean[c], spec->std[c]);
                    if (t == BF16)
                        for (int x = 0; x < P; x++) ((uint16_t *)patches)[to + x] = bf16_round(line[x]);
                }
            }
            if (y % P == P - 1 && nx < grid_w) { /* the patches right of the image */
                const int64_t pad = b * item + ((int64_t)(y / P) * grid_w + nx) * row;
                memset((char *)patches + pad * (int64_t)dtype_size(t), 0,
                       (size_t)((grid_w - nx) * row) * dtype_size(t));
            }
        }
        const int64_t end = (int64_t)(h / P) * grid_w * row; /* and below it */
        memset((char *)patches + (b * item + end) * (int64_t)dtype_size(t), 0,
               (size_t)(item - end) * dtype_size(t));
    }
}
