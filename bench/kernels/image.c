/* image.c -- rows of pixels to patches: crop, resize, normalise. On a card the upload of the pixels is part
 * of it. See kernels.h.
 *
 * The least bytes: the rectangle's pixels once (u8), the patches once. The crop is a square of 4/3 of the
 * size it is resized to, out of 640 x 480 pixels, at most 480.
 */
#include "bench/kernels.h"

enum { WIDTH = 640, HEIGHT = 480, MOST = 64 };
static uint8_t pixels[WIDTH * HEIGHT * 3];
static Rect rect[MOST];

static void run_image_patches(Table *t, const Case *c, void *const *p) {
    static ImageView image[MOST];
    static int size[MOST][2];
    const Shape *s = c->s;
    const int grid = s->image / s->patch;
    for (int b = 0; b < c->B; b++) {
        image[b] = (ImageView){pixels, WIDTH, HEIGHT};
        size[b][0] = size[b][1] = s->image;
    }
    const PatchSpec spec = {.patch = s->patch,
                            .grid_h = grid,
                            .grid_w = grid,
                            .filter = BICUBIC,
                            .mean = {0.5f, 0.5f, 0.5f},
                            .std = {0.5f, 0.5f, 0.5f}};
    t->k->image_patches(t->s, t->t, p[0], image, rect, (const int(*)[2])size, &spec, c->B);
}

/* Keys' cubic with a = -1/2, as Pillow's BICUBIC; `scale` stretches it where the image shrinks. */
static double cubic(double x) {
    x = fabs(x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

/* Weights of the source pixels behind output pixel `at` of `out`, from n; returns how many, *first the
 * first. */
static int weights(double *w, int *first, int at, int out, int n) {
    const double scale = (double)n / out, wide = MAX(scale, 1.0), centre = (at + 0.5) * scale;
    const int lo = MAX(0, (int)(centre - 2 * wide + 0.5)), hi = MIN(n, (int)(centre + 2 * wide + 0.5));
    double sum = 0;
    for (int k = lo; k < hi; k++) sum += w[k - lo] = cubic((k - centre + 0.5) / wide);
    for (int k = lo; k < hi; k++) w[k - lo] /= sum;
    *first = lo;
    return hi - lo;
}

/* Between the passes pixels are rounded to u8, and again at the end: half a unit each, the first through
 * the second's weights. */
static int wrong_patches(Table *t, const Case *c, void *const *p) {
    const Shape *s = c->s;
    const int grid = s->image / s->patch, per = 3 * s->patch * s->patch;
    int wrong = 0;
    double wx[64], wy[64];
    for (int j = 0; j < 64; j++) {
        const int64_t i = sample_at(j, c->slot[0].n);
        const int within = (int)(i % per), channel = within / (s->patch * s->patch),
                  b = (int)(i / per / (grid * grid)), cell = (int)(i / per % (grid * grid));
        const int y = cell / grid * s->patch + within % (s->patch * s->patch) / s->patch,
                  x = cell % grid * s->patch + within % s->patch;
        int x0, y0, nx = weights(wx, &x0, x, s->image, rect_w(rect[b])),
                    ny = weights(wy, &y0, y, s->image, rect_h(rect[b]));
        double sum = 0, gain = 0;
        for (int u = 0; u < ny; u++) {
            double row = 0;
            for (int v = 0; v < nx; v++)
                row += wx[v] * pixels[((rect[b].y0 + y0 + u) * WIDTH + rect[b].x0 + x0 + v) * 3 + channel];
            sum += wy[u] * MAX(0, MIN(255, row)); /* u8 between the passes */
            gain += fabs(wy[u]);
        }
        const double want = (MAX(0, MIN(255, sum)) / 255 - 0.5) / 0.5,
                     bound = (0.5 * gain + 0.5 + 0.01) / 255 / 0.5;
        wrong +=
            !(fabs(device_value(t, c, p, 0, i) - want) <= bound + (t->t == BF16 ? 0x1p-8 * fabs(want) : 0));
    }
    return wrong;
}

void rows_image(Table *t) {
    const Shape *s = t->shape;
    const int64_t B = MIN(shape_batch(t), MOST), n = B * s->image * s->image * 3;
    if (!s->patch) return;
    for (int i = 0; i < COUNT_OF(pixels); i++) pixels[i] = (uint8_t)((uint32_t)i * 2654435761u >> 24);
    const int side = MIN(4 * s->image / 3, HEIGHT);
    for (int b = 0; b < MOST; b++) {
        const int x = b % (WIDTH - side + 1), y = b % (HEIGHT - side + 1);
        rect[b] = (Rect){x, y, x + side, y + side};
    }
    bench_row(t,
              (Case){.op = "image_patches",
                     .what = "",
                     .B = B,
                     .bytes = (double)(B * side * side * 3) + (double)n * (double)dtype_size(t->t),
                     .slot = {T_OUT(n)},
                     .run = run_image_patches,
                     .wrong = wrong_patches},
              "%" PRId64 "x3x%dx%d", B, s->image, s->image);
}
