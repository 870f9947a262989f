/* test_image.c -- image_patches and image_resize_u8 against Pillow, bit for bit. */
#include "data/safetensors.h"
#include "kernels/cpu/image.h"
#include "tests/kernels/kernels.h"

#include <math.h>

#define GOLDEN "tests/golden/image.safetensors"

/* The rows of the specification: a line of gray values, resized along one axis (the other keeps its size, and the
 * same values come out along either). */
static const struct Line {
    Filter filter;
    int n, m;
    uint8_t in[16], out[24];
} lines[] = {
    {BICUBIC, 8, 3, {0, 0, 255, 255, 10, 200, 30, 90}, {78, 167, 82}},
    {BICUBIC, 8, 5, {0, 0, 255, 255, 10, 200, 30, 90}, {0, 202, 145, 117, 64}},
    {BICUBIC, 8, 13, {0, 0, 255, 255, 10, 200, 30, 90}, {0, 0, 5, 176, 255, 255, 121, 14, 163, 159, 33, 59, 94}},
    {BILINEAR, 8, 3, {0, 0, 255, 255, 10, 200, 30, 90}, {81, 159, 86}},
    {BILINEAR, 8, 5, {0, 0, 255, 255, 10, 200, 30, 90}, {0, 189, 140, 121, 65}},
    {BILINEAR, 8, 13, {0, 0, 255, 255, 10, 200, 30, 90}, {0, 0, 10, 167, 255, 255, 133, 32, 149, 141, 37, 65, 90}},
    {BICUBIC, 4, 2, {10, 80, 200, 40}, {64, 119}},
    {BICUBIC, 4, 7, {10, 80, 200, 40}, {4, 27, 73, 154, 196, 93, 27}},
    {BILINEAR, 4, 2, {10, 80, 200, 40}, {67, 114}},
    {BILINEAR, 4, 7, {10, 80, 200, 40}, {10, 35, 75, 140, 189, 97, 40}},
    {BICUBIC, 16, 5, {0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255}, {117, 128, 127, 127, 138}},
    {BICUBIC, 16, 24, {0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255},
     {0, 135, 236, 19, 128, 236, 19, 128, 236, 19, 128, 236, 19, 128, 236, 19, 128, 236, 19, 128, 236, 19, 120, 255}},
    {BILINEAR, 16, 5, {0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255}, {123, 123, 128, 132, 132}},
    {BILINEAR, 16, 24, {0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255},
     {0, 128, 212, 43, 128, 212, 43, 128, 212, 43, 128, 212, 43, 128, 212, 43, 128, 212, 43, 128, 212, 43, 128, 255}},
};

TEST(image_lines) {
    for (int i = 0; i < COUNT_OF(lines); i++) {
        const struct Line *l = &lines[i];
        uint8_t in[16 * 3], out[24 * 3];
        for (int k = 0; k < l->n * 3; k++) in[k] = l->in[k / 3];
        for (int upright = 0; upright < 2; upright++) {
            ImageView v = {in, upright ? 1 : l->n, upright ? l->n : 1};
            image_resize_u8(out, upright ? 1 : l->m, upright ? l->m : 1, &v, (Rect){0, 0, v.w, v.h}, l->filter);
            for (int k = 0; k < l->m * 3; k++)
                EXPECT(out[k] == l->out[k / 3], "line %d upright %d value %d: %d, want %d", i, upright, k, out[k],
                       l->out[k / 3]);
        }
    }
}

/* One golden case; false at the end of the file. */
static bool golden_case(const SafeTensors *st, int i, ImageView *im, Rect *r, Filter *f, const StTensor **want) {
    char name[32];
    snprintf(name, sizeof name, "case%02d.image", i);
    const StTensor *image = st_find(st, name);
    if (!image) return false;
    *im = (ImageView){image->data, (int)image->shape[1], (int)image->shape[0]};
    int32_t spec[5];
    snprintf(name, sizeof name, "case%02d.spec", i);
    memcpy(spec, st_find(st, name)->data, sizeof spec);
    *r = (Rect){spec[0], spec[1], spec[2], spec[3]};
    *f = spec[4] ? BICUBIC : BILINEAR;
    snprintf(name, sizeof name, "case%02d.want", i);
    *want = st_find(st, name);
    return true;
}

DEVICE_TEST(image_golden) {
    SafeTensors st;
    Error e = {0};
    if (!st_open(&st, GOLDEN, &e)) {
        EXPECT(false, "%s", e.text);
        return;
    }
    ImageView im;
    Rect r;
    Filter f;
    const StTensor *want;
    int i = 0;
    for (; golden_case(&st, i, &im, &r, &f, &want); i++) {
        const int oh = (int)want->shape[0], ow = (int)want->shape[1];
        uint8_t *out = xcalloc(want->bytes + 2, 1), *copy = xcalloc((size_t)(im.w * im.h) * 3, 1);
        memcpy(copy, im.rgb, (size_t)(im.w * im.h) * 3); /* a block of its own: the sanitizer sees one byte beyond */
        im.rgb = copy;
        out[want->bytes] = 0xA5;
        image_resize_u8(out, ow, oh, &im, r, f);
        EXPECT(!memcmp(out, want->data, want->bytes), "case %d: %d x %d differs from Pillow %s", i, ow, oh,
               st_metadata(&st, "pillow"));
        EXPECT(out[want->bytes] == 0xA5, "case %d: written beyond the end", i);

        /* The op at patch 1: the same pixels, channel by channel, through mean 0 and std 1/255, beside padding. */
        const PatchSpec spec = {1, oh + 1, ow + 2, f, {0, 0, 0}, {1 / 255.f, 1 / 255.f, 1 / 255.f}};
        const int64_t grid = (int64_t)spec.grid_h * spec.grid_w, row = spec.grid_w;
        const int size[1][2] = {{oh, ow}};
        float *p = xcalloc((size_t)grid * 3, sizeof *p);
        memset(p, 0xff, (size_t)grid * 3 * sizeof *p); /* NaN */
        RUN(op->image_patches(S, F32, IO_N(p, (size_t)grid * 3 * sizeof *p), &im, &r, size, &spec, 1));
        int wrong = 0;
        for (int64_t k = 0; k < grid * 3; k++) {
            const int64_t y = k / 3 / row, x = k / 3 % row;
            wrong += y < oh && x < ow ? lroundf(p[k]) != out[(y * ow + x) * 3 + k % 3] : p[k] != 0;
        }
        EXPECT(wrong == 0, "case %d: %d of %" PRId64 " values of the op differ", i, wrong, grid * 3);
        free(p);
        free(out);
        free(copy);
    }
    EXPECT(i >= 40, "only %d cases in " GOLDEN, i);
    st_close(&st);
}

enum { B = 7, P = 4, GH = 3, GW = 5, ROW = 3 * P * P };

/* Pixel (y, x) of the shown part of h x w pixels on a grid of gh x gw: longer sides are cropped at the centre. */
static const uint8_t *shown(const uint8_t *px, int h, int w, int gh, int gw, int y, int x) {
    return px + 3 * ((int64_t)(y + MAX(h - gh, 0) / 2) * w + x + MAX(w - gw, 0) / 2);
}

/* Items of different sizes in one batch, real statistics, both types: against the plain sentence of the contract. */
DEVICE_TEST(image_patches_layout) {
    static uint8_t rgb[2][40 * 30 * 3];
    ImageView im[B];
    Rect rect[B] = {{0, 0, 30, 40}, {3, 5, 20, 9}, {-4, -4, 44, 10}, {7, 7, 8, 8}, {0, 0, 20, 12}, {0, 0, 30, 40}, {2, 1, 40, 20}};
    const int size[B][2] = {{12, 20}, {4, 20}, {8, 4}, {12, 12}, {12, 20}, {27, 20}, {12, 35}}; /* the last two beyond the grid */
    const PatchSpec spec = {P, GH, GW, BICUBIC, {0.48145466f, 0.4578275f, 0.40821073f}, {0.26862954f, 0.26130258f, 0.27577711f}};
    static float got[B * GH * GW * ROW], one[GH * GW * ROW];
    static uint16_t half[B * GH * GW * ROW];
    uint32_t seed = 1;
    for (int k = 0; k < 2 * 40 * 30 * 3; k++) rgb[k % 2][k / 2] = (uint8_t)((seed = seed * 1664525 + 1013904223) >> 24);
    for (int b = 0; b < B; b++) im[b] = b % 2 ? (ImageView){rgb[1], 40, 30} : (ImageView){rgb[0], 30, 40};
    memset(got, 0xff, sizeof got);
    memset(half, 0xff, sizeof half);
    RUN(op->image_patches(S, F32, IO(got), im, rect, size, &spec, B));
    RUN(op->image_patches(S, BF16, IO(half), im, rect, size, &spec, B));
    for (int b = 0; b < B; b++) {
        uint8_t px[27 * 35 * 3];
        const int h = size[b][0], w = size[b][1];
        image_resize_u8(px, w, h, &im[b], rect[b], BICUBIC);
        int wrong = 0, wrong16 = 0;
        for (int k = 0; k < GH * GW * ROW; k++) {
            const int g = k / ROW, c = k % ROW / (P * P), y = g / GW * P + k % (P * P) / P, x = g % GW * P + k % P;
            float want = 0, back;
            if (y < h && x < w) want = ((float)(shown(px, h, w, GH * P, GW * P, y, x)[c] * (1 / 255.0)) - spec.mean[c]) / spec.std[c];
            const uint32_t bits = (uint32_t)half[b * GH * GW * ROW + k] << 16;
            memcpy(&back, &bits, 4);
            wrong += got[b * GH * GW * ROW + k] != want;
            wrong16 += !(fabsf(back - want) <= fabsf(want) / 256); /* 8 bits of precision: half a unit is 2^-9, ties */
        }
        EXPECT(wrong == 0 && wrong16 == 0, "item %d: %d f32 and %d bf16 values are wrong", b, wrong, wrong16);
        RUN(op->image_patches(S, F32, IO(one), &im[b], &rect[b], &size[b], &spec, 1));
        EXPECT(!memcmp(one, got + b * GH * GW * ROW, sizeof one), "item %d differs when it is alone", b);
    }
    op->image_patches(S, F32, NULL, NULL, NULL, NULL, &spec, 0); /* no item: nothing happens */
}

/* Patches of every kind of size, smaller and larger than a tile of the device, in memory aligned as the engine's is: to the
 * bit. Two images, one of them twice; a crop that sticks out; more items than one launch takes. */
DEVICE_TEST(image_patches_sizes) {
    static const struct { int patch, gh, gw, items; } cases[] = {
        {1, 20, 45, 2}, {2, 9, 17, 3}, {7, 3, 6, 3}, {8, 5, 6, 3}, {14, 3, 5, 3}, {16, 3, 3, 3}, {32, 2, 3, 3}, {40, 2, 2, 3}, {64, 1, 2, 2}, {4, 2, 2, 70}};
    enum { BEYOND = 37 }; /* every fifth item is cropped at the centre, by an odd number */
    enum { W = 97, H = 61, SMALL = 23 };
    static uint8_t large[W * H * 3], small[SMALL * SMALL * 3];
    uint32_t seed = 7;
    for (int k = 0; k < W * H * 3; k++) large[k] = (uint8_t)((seed = seed * 1664525 + 1013904223) >> 24);
    memcpy(small, large + 1000, sizeof small);
    for (int n = 0; n < COUNT_OF(cases); n++)
        for (int bits = 16; bits <= 32; bits += 16) {
            const int p = cases[n].patch, gh = cases[n].gh, gw = cases[n].gw, items = cases[n].items, area = p * p;
            const PatchSpec spec = {p, gh, gw, n % 2 ? BILINEAR : BICUBIC, {0.48f, 0.46f, 0.41f}, {0.27f, 0.26f, 0.28f}};
            ImageView im[70];
            Rect rect[70];
            int size[70][2];
            for (int b = 0; b < items; b++) {
                im[b] = b == 1 ? (ImageView){small, SMALL, SMALL} : (ImageView){large, W, H};
                rect[b] = b == 1 ? (Rect){0, 0, SMALL, SMALL} : (Rect){b % 5, b % 7, W - b % 9 + 4, b ? H / 2 + b % 3 : H + 5};
                size[b][0] = p * (b % 3 ? gh : MAX(gh - 1, 1)), size[b][1] = p * (b % 2 ? gw : MAX(gw - 1, 1));
                if (b % 5 == 1) size[b][n % 2] = p * (n % 2 ? gw : gh) + BEYOND;
            }
            const int64_t item = (int64_t)gh * gw * 3 * area;
            const size_t bytes = (size_t)(items * item) * (size_t)bits / 8;
            char *got = xcalloc(bytes, 1), *there = dev->alloc(dev, bytes);
            uint8_t *px = xcalloc((size_t)(p * gh + BEYOND) * (size_t)(p * gw + BEYOND) * 3, 1);
            memset(got, 0xff, bytes);
            dev->upload(dev, there, got, bytes);
            op->image_patches(S, bits == 16 ? BF16 : F32, there, im, rect, (const int(*)[2])size, &spec, items);
            dev->download(dev, got, there, bytes);
            dev->release(dev, there, bytes);
            int wrong = 0;
            for (int b = 0; b < items; b++) {
                const int h = size[b][0], w = size[b][1];
                image_resize_u8(px, w, h, &im[b], rect[b], spec.filter);
                for (int64_t k = 0; k < item; k++) {
                    const int g = (int)(k / (3 * area)), c = (int)(k % (3 * area)) / area, y = g / gw * p + (int)(k % area) / p, x = g % gw * p + (int)(k % p);
                    float want = 0;
                    if (y < h && x < w) want = ((float)(shown(px, h, w, gh * p, gw * p, y, x)[c] * (1 / 255.0)) - spec.mean[c]) / spec.std[c];
                    wrong += bits == 16 ? ((uint16_t *)got)[b * item + k] != bf16_round(want) : ((float *)got)[b * item + k] != want;
                }
            }
            EXPECT(wrong == 0, "patch %d, grid %d x %d, %d bits: %d values are wrong", p, gh, gw, bits, wrong);
            free(got);
            free(px);
        }
}

/* A panorama shrunk to a few pixels: wide windows, and a ring much smaller than the image. */
TEST(image_large_reduction) {
    const int w = 20000, h = 9;
    uint8_t *rgb = xcalloc((size_t)w * h * 3, 1), out[2 * 1 * 3];
    for (int y = 0; y < h; y++)
        for (int x = 0; x < w; x++)
            for (int c = 0; c < 3; c++) rgb[((size_t)y * w + x) * 3 + c] = x < w / 2 ? 10 : 200;
    const ImageView im = {rgb, w, h};
    image_resize_u8(out, 2, 1, &im, (Rect){0, 0, w, h}, BILINEAR);
    /* The triangle of output 0 stands on [-5000, 15000]: 1/8 of its mass lies before the image, 1/8 right of the
     * middle, and what is inside is normalised: (6/8 * 10 + 1/8 * 200) / (7/8) = 37.14. */
    EXPECT_NEAR(out[0], 37.14, 0.6, "left pixel");
    EXPECT_NEAR(out[3], 210 - 37.14, 0.6, "right pixel");
    free(rgb);
}
