/* loader.c -- images per second from JPEG bytes to normalised patches: decode, crop, resize, normalise.
 *
 *   vpbench loader [--threads N] [--size 384] [--passes 5]
 *
 * 64 made-up photographs (48 of 500x375, 16 of 640x480, quality 90, noise of several scales, so that files have a
 * photograph's size) in memory: disks are not measured. Each thread takes whole images, as the loader's workers do; the
 * decoder may scale down (min_side) as in training. Real photographs differ: repeat on a real set before
 * believing the last digit.
 */
#include <omp.h>
#include <sched.h>

#include "bench/bench.h"
#include "data/jpeg.h"
#include "kernels/cpu/cpu.h"

enum { FILES = 64 };

typedef struct File { unsigned char *data; size_t size; int w, h; } File;

/* Value noise of five octaves, different in each channel. */
static void photograph(uint8_t *rgb, int w, int h, uint64_t seed) {
    memset(rgb, 0, (size_t)w * (size_t)h * 3);
    for (int c = 0; c < 3; c++)
        for (int y = 0; y < h; y++)
            for (int x = 0; x < w; x++) {
                double v = 0;
                for (int o = 0; o < 5; o++) {
                    int cell = 64 >> o;
                    double fx = (double)(x % cell) / cell, fy = (double)(y % cell) / cell, corner[4];
                    for (int k = 0; k < 4; k++) {
                        int at[4] = {x / cell + k % 2, y / cell + k / 2, o, c};
                        corner[k] = (double)(hash_bytes(at, sizeof at, seed) >> 40) / 16777216.0;
                    }
                    v += ((corner[0] * (1 - fx) + corner[1] * fx) * (1 - fy) + (corner[2] * (1 - fx) + corner[3] * fx) * fy) / (o + 1);
                }
                rgb[((int64_t)y * w + x) * 3 + c] = (uint8_t)MIN(255.0, v * 112);
            }
}

static bool make_files(File *f, Error *e) {
    uint8_t *rgb = xcalloc(640 * 480, 3);
    bool ok = true;
    for (int i = 0; ok && i < FILES; i++) {
        f[i].w = i % 4 ? 500 : 640;
        f[i].h = i % 4 ? 375 : 480;
        photograph(rgb, f[i].w, f[i].h, (uint64_t)i);
        ok = jpeg_encode(&(ImageView){rgb, f[i].w, f[i].h}, 90, &f[i].data, &f[i].size, e);
    }
    free(rgb);
    return ok;
}

/* One file to patches; the rectangle is the middle nine tenths, as a crop of a program would be. */
static bool load(const File *f, float *patches, Arena *a, int size, const PatchSpec *spec, double *decode_s, Error *e) {
    ImageView im;
    const double from = now_s();
    arena_reset(a, 0);
    if (!jpeg_decode(a, f->data, f->size, size, &im, NULL, NULL, e)) return false;
    *decode_s += now_s() - from;
    const Rect r = {im.w / 20, im.h / 20, im.w - im.w / 20, im.h - im.h / 20};
    const int to[1][2] = {{size, size}};
    cpu_image_patches(NULL, F32, patches, &im, &r, to, spec, 1);
    return true;
}

int bench_loader(int argc, char **argv) {
    static File file[FILES];
    Error e = {0};
    const int threads = device_cpu(bench_int(argc, argv, "--threads", 0, 0, 1024))->nthreads;
    const int size = bench_int(argc, argv, "--size", 384, 32, 4096) / 32 * 32, passes = bench_int(argc, argv, "--passes", 5, 1, 1000);
    bench_machine(stdout, threads);
    bool ok = make_files(file, &e);
    size_t bytes = 0;
    for (int i = 0; i < FILES; i++) bytes += file[i].size;
    const PatchSpec spec = {.patch = 32, .grid_h = size / 32, .grid_w = size / 32, .filter = BICUBIC, .mean = {0.5f, 0.5f, 0.5f}, .std = {0.5f, 0.5f, 0.5f}};
    double *seconds = xcalloc((size_t)passes, sizeof *seconds), decode = 0, all = 0;
    OMP_(omp parallel num_threads(threads))
    { /* every thread its own memory and output, as workers have */
        Arena a;
        Error mine = {0};
        float *patches = xcalloc((size_t)size * (size_t)size * 3, sizeof *patches);
        arena_open(&a, "pixels", NULL, (size_t)64 << 20);
        for (int p = -1; p < passes; p++) { /* the first warms up */
            double decode_s = 0, from = 0, busy = 0;
            OMP_(omp barrier)
            from = now_s();
            OMP_(omp for schedule(dynamic, 1) nowait)
            for (int i = 0; i < FILES; i++)
                load(&file[i], patches, &a, size, &spec, &decode_s, &mine);
            busy = now_s() - from;
            OMP_(omp barrier)
            OMP_(omp critical)
            if (p >= 0) decode += decode_s, all += busy;
            OMP_(omp master)
            if (p >= 0) seconds[p] = now_s() - from;
        }
        if (*mine.text) {
            OMP_(omp critical)
            e = mine, ok = false;
        }
        arena_close(&a);
        free(patches);
    }
    if (ok) {
        Spread s = bench_spread(seconds, passes);
        double rate = FILES / s.median;
        printf("%d files, %.0f kB on average, to %dx%d: %.0f images/s (%.0f per thread), median of %d passes; %.0f%% of the time in the decoder; peak %.0f MB\n",
               FILES, (double)bytes / FILES / 1e3, size, size, rate, rate / threads, passes, 100 * decode / all, (double)bench_peak_rss() / 1e6);
    } else {
        fprintf(stderr, "vpbench loader: %s\n", e.text);
    }
    for (int i = 0; i < FILES; i++) free(file[i].data);
    free(seconds);
    return ok ? OK_STATUS : e.status ? (int)e.status : FAIL_OTHER;
}
