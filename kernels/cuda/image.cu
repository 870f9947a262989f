/* image.cu -- from u8 pixels, through a rectangle, to normalised patches on CUDA. Contract: ops.h, image_patches. The rule
 * of resampling, Pillow's to the last bit, is told in cpu/image.c.
 *
 * Images, rectangles and sizes are in HOST memory. Each distinct image of a call is uploaded once, and of it only the rows
 * between the first and the last that a rectangle needs; items travel as kernel arguments, 32 to a launch. The upload is the
 * price of the op: 1 MB of pixels per photograph at the bus's 25..50 GB/s against output at the memory's 2000..3000 GB/s.
 *
 * Two kernels. `axis_weights` makes the 22-bit weights of every axis, one thread per output row or column, in double as
 * Pillow does. `resample` takes a tile of at most 32 x 32 output pixels (whole patches, where a patch is no larger) per block
 * of 8 warps: source rows come to shared memory 16 at a time by 16-byte loads, go through the horizontal weights (a warp per
 * two rows, a lane per column) to one word per pixel, and from there through the vertical weights into sums that stay in
 * registers (a lane per column, a warp per four rows) until the last source row has passed. Shared memory does not depend on
 * the reduction, only a span of more than some 330 source columns (a tile shrunk by 9 and more) is read from where it is. At the
 * end the tile lies in shared memory in the order of the output and leaves by 16-byte stores.
 * Veighbouring tiles both read the source pixels at their border: 4 / 32 of the rows and columns for BICUBIC, half for BILINEAR.
 */
#include "kernels/cuda/cuda.cuh"

extern "C" {
#define _Noreturn [[noreturn]] /* base.h is C */
#include "engine/base.h"
#undef _Noreturn
}

enum {
    THREADS = 256, WARPS = 8,
    TILE = 32,        /* output pixels along a side of a tile */
    ROWS = 2 * WARPS, /* source rows in shared memory */
    ROW_BYTES = 1024, /* of one of them */
    GROUP = 32,       /* items of one launch */
    WEIGHT_BITS = 22, /* 32 - 8 bits of pixel - 2 bits for weights beyond 1 */
    MAX_SIDE = 1 << 20,
};

/* Output i of m is the sum over k < count[i] of weight[k*m + i] times input first[i] + k of n. */
struct Axis {
    int n, m;
    int32_t *first, *count, *weight;
};

struct Item {
    const uint8_t *rgb; /* the uploaded rows */
    int w, h;
    Rect r;             /* in the uploaded rows */
    Axis x, y;
};

struct Items { Item item[GROUP]; };

/* ---- weights -------------------------------------------------------------------------------------- */

/* A product that is rounded: a compiler for CUDA would otherwise fuse it with the sum that follows. */
__device__ __forceinline__ double mul(double a, double b) {
#ifdef __CUDACC__
    return __dmul_rn(a, b);
#else
    return a * b; /* compiled with -ffp-contract=off */
#endif
}

__device__ __forceinline__ double filter_at(Filter f, double t) {
    t = fabs(t);
    if (f == BILINEAR) return t < 1 ? 1 - t : 0;
    const double a = -0.5; /* Keys' cubic */
    if (t < 1) return mul(mul(mul(a + 2, t) - (a + 3), t), t) + 1;
    if (t < 2) return mul(mul(mul(t - 5, t) + 8, t) - 4, a);
    return 0;
}

/* Block (x, y, z): outputs along axis y (0: columns, 1: rows) of item z. The order of the double operations is Pillow's. */
__global__ void __launch_bounds__(THREADS) axis_weights(const __grid_constant__ Items items, Filter f) {
    const Axis a = blockIdx.y ? items.item[blockIdx.z].y : items.item[blockIdx.z].x;
    const double scale = (double)a.n / a.m, fscale = scale > 1 ? scale : 1;
    const double support = (f == BICUBIC ? 2 : 1) * fscale, inv = 1.0 / fscale;
    for (int i = (int)(blockIdx.x * THREADS + threadIdx.x); i < a.m; i += (int)(gridDim.x * THREADS)) {
        if (a.n == a.m) { /* what the sums below come to, without their four taps of weight 0 */
            a.first[i] = i;
            a.count[i] = 1;
            a.weight[i] = 1 << WEIGHT_BITS;
            continue;
        }
        const double centre = mul(i + 0.5, scale);
        const int first = max((int)(centre - support + 0.5), 0), count = min((int)(centre + support + 0.5), a.n) - first;
        double sum = 0;
        for (int k = 0; k < count; k++) sum += filter_at(f, mul(k + first - centre + 0.5, inv));
        for (int k = 0; k < count; k++) {
            const double real = filter_at(f, mul(k + first - centre + 0.5, inv)), v = sum != 0 ? real / sum : real;
            a.weight[(int64_t)k * a.m + i] = (int32_t)((v < 0 ? -0.5 : 0.5) + mul(v, 1 << WEIGHT_BITS));
        }
        a.first[i] = first;
        a.count[i] = count;
    }
}

/* ---- resampling ----------------------------------------------------------------------------------- */

struct Layout {
    int P, grid_h, grid_w; /* patches of an item */
    int tile;              /* side of a tile: the multiple of P nearest below TILE, or TILE when P is larger */
    int tiles_x;
    float mean[3], std[3];
};

__device__ __forceinline__ int clamp_u8(int v) { return min(max(v >> WEIGHT_BITS, 0), 255); }

/* Where row y of the rectangle begins in the pixels. Rows from `end` on and outside the image stand for their neighbour: they
 * may be read, and are not used. */
__device__ __forceinline__ int64_t source_row(const Item &it, int y, int end) {
    return (int64_t)max(min(it.r.y0 + min(y, end - 1), it.h - 1), 0) * it.w * 3;
}

/* Two rows of source pixels through the same horizontal weights. */
template <typename Row> __device__ __forceinline__ void
horizontal(int sum[2][3], Row row0, Row row1, const int32_t *weight, int m, int from, int to) {
    for (int k = from; k < to; k++) {
        const int w = weight[(int64_t)k * m];
#pragma unroll
        for (int c = 0; c < 3; c++) {
            sum[0][c] += w * row0[3 * k + c];
            sum[1][c] += w * row1[3 * k + c];
        }
    }
}

/* The end of a tile that is part of a larger patch: lanes store what they have, 32 values side by side. */
template <typename T> __device__ __forceinline__ void
store_part(T *patches, const Layout &g, const int sum[4][3], const float *value, int tx, int ty, int cols, int rows) {
    const int P = g.P, lane = threadIdx.x % 32, warp = threadIdx.x / 32, X = tx + lane;
    const int64_t item = (int64_t)blockIdx.y * g.grid_h * g.grid_w;
    __syncthreads(); /* value[] */
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int y = warp + WARPS * j, Y = ty + y;
        if (X >= g.grid_w * P || Y >= g.grid_h * P) continue;
        T *to = patches + ((item + (int64_t)(Y / P) * g.grid_w + X / P) * 3 * P + Y % P) * P + X % P;
        for (int c = 0; c < 3; c++)
            to[(int64_t)c * P * P] = from_f32<T>(lane < cols && y < rows ? value[c * 256 + clamp_u8(sum[j][c])] : 0.0f);
    }
}

/* The end of a tile of whole patches: through shared memory in the order of the output, V values at once. */
template <typename T, int V> __device__ __forceinline__ void
store_patches(T *patches, const Layout &g, const int sum[4][3], const float *value, uint8_t *done, int tx, int ty, int cols,
              int rows) {
    const int P = g.P, area = P * P, across = g.tile / P, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int y = warp + WARPS * j;
        if (lane < cols && y < rows)
            for (int c = 0; c < 3; c++)
                done[((y / P * across + lane / P) * 3 + c) * area + y % P * P + lane % P] = (uint8_t)clamp_u8(sum[j][c]);
    }
    __syncthreads();
    const int gx = tx / P, gy = ty / P, right = min(across, g.grid_w - gx), down = min(across, g.grid_h - gy);
    for (int py = 0; py < down; py++) { /* a row of patches lies in one piece */
        T *to = patches + (((int64_t)blockIdx.y * g.grid_h + gy + py) * g.grid_w + gx) * 3 * area;
        for (int v = threadIdx.x * V; v < right * 3 * area; v += THREADS * V) {
            const int px = v / (3 * area), c = v % (3 * area) / area;
            const bool image = px * P < cols && py * P < rows;
            const Vec<uint8_t, V> u = load<V>(done + py * across * 3 * area + v);
            Vec<T, V> r;
            for (int k = 0; k < V; k++) r.v[k] = from_f32<T>(image ? value[c * 256 + u.v[k]] : 0.0f);
            store(to + v, r);
        }
    }
}

/* Block (x, y): tile x of item y. V values of T are stored at once; 0: a tile is not made of whole patches. */
template <typename T, int V>
__global__ void __launch_bounds__(THREADS, 4) resample(T *patches, const __grid_constant__ Items items, const __grid_constant__ Layout g) {
    SHARED(uint8_t, raw, ROWS * ROW_BYTES);
    SHARED(uint32_t, pixel, ROWS * TILE); /* after the horizontal pass: r, g, b from the low byte on */
    SHARED(uint8_t, done, 3 * TILE * TILE);
    SHARED(float, value, 3 * 256);
    const Item &it = items.item[blockIdx.y];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int tx = (int)(blockIdx.x % g.tiles_x) * g.tile, ty = (int)(blockIdx.x / g.tiles_x) * g.tile;
    const int width = min(it.x.m, g.grid_w * g.P), height = min(it.y.m, g.grid_h * g.P);
    const int cols = min(g.tile, width - tx), rows = min(g.tile, height - ty); /* <= 0: only padding */
    const int rx = tx + (it.x.m - width) / 2, ry = ty + (it.y.m - height) / 2; /* the tile in what the rectangle is resized to */
    const bool mine = lane < cols;

    /* Scaled in double, rounded, then normalised in float, as the image processors of the published models do. */
    for (int v = threadIdx.x; v < 3 * 256; v += THREADS)
        value[v] = ((float)((v & 255) * (1.0 / 255)) - g.mean[v >> 8]) / g.std[v >> 8];

    int first[4], end[4], sum[4][3]; /* of rows warp, warp + 8, ... of the tile: their windows, and the sums of column `lane` */
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int y = warp + WARPS * j;
        first[j] = y < rows && cols > 0 ? it.y.first[ry + y] : 0;
        end[j] = y < rows && cols > 0 ? first[j] + it.y.count[ry + y] : 0;
        for (int c = 0; c < 3; c++) sum[j][c] = 1 << (WEIGHT_BITS - 1);
    }
    if (cols > 0 && rows > 0) {
        /* Source columns [left, right) and rows [from, to) of the rectangle that the tile looks at, then what of them is image. */
        const int left = it.x.first[rx], right = it.x.first[rx + cols - 1] + it.x.count[rx + cols - 1];
        const int from = it.y.first[ry], to = it.y.first[ry + rows - 1] + it.y.count[ry + rows - 1];
        const int begin = max(it.r.x0 + left, 0), bytes = 3 * (min(it.r.x0 + right, it.w) - begin);
        const bool staged = bytes + 15 <= ROW_BYTES;
        const int64_t image_bytes = (int64_t)it.h * it.w * 3;
        /* My column's taps, without those outside the image: black. */
        int shift = 0, tap0 = 0, tap1 = 0;
        if (mine) {
            const int at = it.x.first[rx + lane], x = it.r.x0 + at;
            shift = 3 * (x - begin);
            tap0 = max(-x, 0);
            tap1 = it.h ? min(it.x.count[rx + lane], it.w - x) : 0;
        }
        const int32_t *weight = it.x.weight + rx + (mine ? lane : 0);

        for (int base = from; base < to; base += ROWS) {
            const int n = min((int)ROWS, to - base);
            if (staged) { /* 16 threads per row */
                const int row = threadIdx.x / 16;
                const int64_t at = source_row(it, base + row, to) + 3 * begin, aligned = at & ~(int64_t)15;
                for (int64_t v = aligned + threadIdx.x % 16 * 16; v < at + bytes; v += 256) {
                    uint8_t *dst = raw + row * ROW_BYTES + (v - aligned);
                    if (v + 16 <= image_bytes) *(uint4 *)dst = *(const uint4 *)(it.rgb + v);
                    else
                        for (int k = 0; v + k < image_bytes; k++) dst[k] = it.rgb[v + k];
                }
            }
            __syncthreads(); /* raw is there, and the last rows of `pixel` have been read */
            int h[2][3];
            for (int c = 0; c < 3; c++) h[0][c] = h[1][c] = 1 << (WEIGHT_BITS - 1);
            const int64_t at0 = source_row(it, base + warp, to) + 3 * begin, at1 = source_row(it, base + warp + WARPS, to) + 3 * begin;
            if (staged)
                horizontal(h, (const uint8_t *)raw + warp * ROW_BYTES + (int)(at0 & 15) + shift,
                           (const uint8_t *)raw + (warp + WARPS) * ROW_BYTES + (int)(at1 & 15) + shift, weight, it.x.m, tap0, tap1);
            else horizontal(h, it.rgb + at0 + shift, it.rgb + at1 + shift, weight, it.x.m, tap0, tap1);
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const int row = warp + WARPS * j, y = it.r.y0 + base + row;
                pixel[row * TILE + lane] = /* black outside the image */
                    y < 0 || y >= it.h ? 0 : (uint32_t)(clamp_u8(h[j][0]) | clamp_u8(h[j][1]) << 8 | clamp_u8(h[j][2]) << 16);
            }
            __syncthreads();
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int y = min(ry + warp + WARPS * j, it.y.m - 1);
                for (int k = max(first[j], base); k < min(end[j], base + n); k++) {
                    const int w = it.y.weight[(int64_t)(k - first[j]) * it.y.m + y];
                    const uint32_t p = pixel[(k - base) * TILE + lane];
                    for (int c = 0; c < 3; c++) sum[j][c] += w * (int)(p >> 8 * c & 255);
                }
            }
        }
    }

    if constexpr (V == 0) store_part(patches, g, sum, value, tx, ty, cols, rows);
    else store_patches<T, V>(patches, g, sum, value, done, tx, ty, cols, rows);
}

/* ---- the op --------------------------------------------------------------------------------------- */

struct Plan {
    int64_t same;         /* the first item of the same image */
    int y0, y1;           /* first items: the rows that rectangles need */
    int64_t pixels, x, y; /* where the pixels (first items) and the axes lie in the scratch */
};

/* What the host keeps between calls: it grows to the largest call, then nothing is allocated. */
static thread_local struct { Plan *plan; int64_t cap; } host;

/* Pillow's bound on the taps of one output. */
static int64_t taps(int n, int m, Filter f) {
    const double scale = (double)n / m;
    return (int64_t)ceil((f == BICUBIC ? 2 : 1) * (scale > 1 ? scale : 1)) * 2 + 1;
}

static int64_t axis_ints(int n, int m, Filter f) { return n == m ? 3 * (int64_t)m : m * (2 + taps(n, m, f)); }

static Axis axis_at(char *room, int n, int m) {
    int32_t *p = (int32_t *)room;
    return {n, m, p, p + m, p + 2 * (int64_t)m};
}

extern "C" void K(image_patches)(Stream *s, DType t, void *patches, const ImageView *image, const Rect *rect,
                                 const int (*size)[2], const PatchSpec *spec, int64_t B) {
    const int P = spec->patch;
    CHECK(P >= 1 && spec->grid_h >= 0 && spec->grid_w >= 0, "image_patches: patch %d, grid %d x %d", P, spec->grid_h, spec->grid_w);
    const int64_t item = 3 * (int64_t)spec->grid_h * spec->grid_w * P * P;
    if (!B || !item) return;

    GROW(host.plan, host.cap, B);
    Plan *plan = host.plan;
    for (int64_t b = 0; b < B; b++) {
        const Rect r = rect[b];
        const int h = size[b][0], w = size[b][1];
        const int shown_h = MIN(h, spec->grid_h * P), shown_w = MIN(w, spec->grid_w * P);
        CHECK(shown_h >= P && shown_w >= P && shown_h % P == 0 && shown_w % P == 0,
              "image_patches: item %" PRId64 " is resized to %d x %d, the grid is %d x %d patches of %d", b, h, w, spec->grid_h,
              spec->grid_w, P);
        CHECK(rect_w(r) >= 1 && rect_h(r) >= 1 && rect_w(r) <= MAX_SIDE && rect_h(r) <= MAX_SIDE && w <= MAX_SIDE && h <= MAX_SIDE,
              "image_patches: rectangle [%d, %d, %d, %d] is empty or has a side above %d", r.x0, r.y0, r.x1, r.y1, MAX_SIDE);
        int64_t a = 0;
        while (image[a].rgb != image[b].rgb || image[a].w != image[b].w || image[a].h != image[b].h) a++;
        plan[b].same = a;
        const int y0 = MIN(MAX(r.y0, 0), image[b].h), y1 = MIN(MAX(r.y1, 0), image[b].h); /* y0 == y1: all black */
        plan[a].y0 = a == b || y0 < plan[a].y0 ? y0 : plan[a].y0;
        plan[a].y1 = a == b || y1 > plan[a].y1 ? y1 : plan[a].y1;
    }
    int64_t bytes = 0;
    for (int64_t b = 0; b < B; b++) {
        if (plan[b].same == b) {
            plan[b].pixels = bytes;
            bytes += ((int64_t)(plan[b].y1 - plan[b].y0) * image[b].w * 3 + 15) & ~(int64_t)15;
        }
        plan[b].x = bytes;
        bytes += (4 * axis_ints(rect_w(rect[b]), size[b][1], spec->filter) + 15) & ~(int64_t)15;
        plan[b].y = bytes;
        bytes += (4 * axis_ints(rect_h(rect[b]), size[b][0], spec->filter) + 15) & ~(int64_t)15;
    }
    char *room = (char *)cuda_scratch(s, (size_t)bytes);
    for (int64_t b = 0; b < B; b++)
        if (plan[b].same == b && plan[b].y1 > plan[b].y0)
            cuda_upload(s, room + plan[b].pixels, image[b].rgb + (int64_t)plan[b].y0 * image[b].w * 3,
                        (size_t)(plan[b].y1 - plan[b].y0) * (size_t)image[b].w * 3);

    Layout g = {P, spec->grid_h, spec->grid_w, P <= TILE ? TILE / P * P : TILE, 0, {}, {}};
    g.tiles_x = (int)ceil_div<int64_t>((int64_t)spec->grid_w * P, g.tile);
    for (int c = 0; c < 3; c++) g.mean[c] = spec->mean[c], g.std[c] = spec->std[c];
    for (int64_t at = 0; at < B; at += GROUP) {
        const int n = (int)MIN((int64_t)GROUP, B - at);
        Items items = {};
        int longest = 1;
        for (int i = 0; i < n; i++) {
            const Plan *mine = &plan[at + i], *pixels = &plan[mine->same];
            const Rect r = rect[at + i];
            const int h = size[at + i][0], w = size[at + i][1];
            items.item[i] = {(const uint8_t *)room + pixels->pixels, image[at + i].w, pixels->y1 - pixels->y0,
                             {r.x0, r.y0 - pixels->y0, r.x1, r.y1 - pixels->y0},
                             axis_at(room + mine->x, rect_w(r), w), axis_at(room + mine->y, rect_h(r), h)};
            longest = MAX(longest, MAX(w, h));
        }
        LAUNCH(axis_weights, dim3((unsigned)ceil_div<int>(longest, THREADS), 2, (unsigned)n), THREADS, s, items, spec->filter);
        const int64_t tiles = g.tiles_x * ceil_div<int64_t>((int64_t)g.grid_h * P, g.tile);
        const dim3 grid((unsigned)tiles, (unsigned)n);
        DISPATCH(t, T, {
            T *to = (T *)patches + at * item;
            const bool aligned = ((uintptr_t)patches & 15) == 0;
            if (P > TILE) LAUNCH((resample<T, 0>), grid, THREADS, s, to, items, g);
            else if (aligned && P * P % WIDTH<T> == 0) LAUNCH((resample<T, WIDTH<T>>), grid, THREADS, s, to, items, g);
            else if (aligned && P % 2 == 0) LAUNCH((resample<T, 4>), grid, THREADS, s, to, items, g);
            else LAUNCH((resample<T, 1>), grid, THREADS, s, to, items, g);
        });
    }
}
