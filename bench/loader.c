/* loader.c -- `bench loader`: images per second from JPEG files to normalised patches.
 *
 *   vpdistill bench loader [data.dir=DIR] [bench.side=384] [bench.batch=16] [run.threads=N]
 *
 * Two tables. The first is a worker's work alone, on 64 made-up photographs in memory (48 of 500x375, 16 of
 * 640x480, quality 90, noise of several scales, so that files have a photograph's size): decode, crop to the
 * middle nine tenths, resize, normalise, by 1, 2, 4 .. threads, each of which takes whole images; the decoder
 * may scale down (min_side) as in training. MB/s are of JPEG bytes. The second is the training's own loader
 * (data/loader.c) over the images of data.dir, without it over those photographs as files: workers decode
 * ahead of a consumer that turns every batch into patches with all its threads and does nothing else. Wait:
 * the share of its time that it waits for a batch. Real photographs differ: give a real set before believing
 * the last digit.
 *
 *   vpdistill bench loader requests data.dir=FOLDER [bench.side=384]
 *
 * works on request (bench_serve), for jpeg.py, on one thread and the .jpg files right in FOLDER:
 *   whole K    K times all files, whole, to normalised squares; the last one's first value
 *   square K   the same, and the mean square of all values
 *   info       files
 */
#include <dirent.h>
#include <errno.h>
#include <omp.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench/bench.h"
#include "data/loader.h"
#include "kernels/cpu/cpu.h"

enum { FILES = 64, PASSES = 20, MOST_PASSES = 1000, DEFAULT_SIDE = 384, DEFAULT_BATCH = 16, PATCH = 32 };

typedef struct File {
    unsigned char *data;
    size_t size;
    int w, h;
} File;

/* Value noise of five octaves, different in each channel: random corners every 64, 32 .. 4 pixels,
 * bilinear between them. */
static void photograph(uint8_t *rgb, int w, int h, uint64_t seed) {
    float *sum = xcalloc((size_t)w * (size_t)h, sizeof *sum),
          *corner = xcalloc((size_t)(w / 4 + 2) * (size_t)(h / 4 + 2), sizeof *corner);
    for (int c = 0; c < 3; c++) {
        memset(sum, 0, (size_t)w * (size_t)h * sizeof *sum);
        for (int octave = 0; octave < 5; octave++) {
            const int cell = 64 >> octave, across = w / cell + 2;
            for (int at = 0; at < across * (h / cell + 2); at++) {
                const int key[4] = {at % across, at / across, octave, c};
                corner[at] =
                    (float)(hash_bytes(key, sizeof key, seed) >> 40) / 16777216.0f / (float)(octave + 1);
            }
            for (int y = 0; y < h; y++)
                for (int x = 0; x < w; x++) {
                    const float *k = corner + y / cell * across + x / cell,
                                fx = (float)(x % cell) / (float)cell, fy = (float)(y % cell) / (float)cell;
                    sum[y * w + x] += (k[0] * (1 - fx) + k[1] * fx) * (1 - fy) +
                                      (k[across] * (1 - fx) + k[across + 1] * fx) * fy;
                }
        }
        for (int i = 0; i < w * h; i++) rgb[3 * i + c] = (uint8_t)MIN(255.0f, sum[i] * 112);
    }
    free(sum);
    free(corner);
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

static PatchSpec spec_of(int side) {
    return (PatchSpec){.patch = PATCH,
                       .grid_h = side / PATCH,
                       .grid_w = side / PATCH,
                       .filter = BICUBIC,
                       .mean = {0.5f, 0.5f, 0.5f},
                       .std = {0.5f, 0.5f, 0.5f}};
}

/* The middle nine tenths, as a crop of a program would be. */
static Rect middle(const ImageView *im) {
    return (Rect){im->w / 20, im->h / 20, im->w - im->w / 20, im->h - im->h / 20};
}

/* ---- a worker's work ------------------------------------------------------------------------------ */

static bool load(const File *f, float *patches, Arena *a, int side, double *decode_s, Error *e) {
    ImageView im;
    const PatchSpec spec = spec_of(side);
    const double from = now_s();
    arena_reset(a, 0);
    if (!jpeg_decode(a, f->data, f->size, side, &im, NULL, NULL, e)) return false;
    *decode_s += now_s() - from;
    const Rect r = middle(&im);
    const int to[1][2] = {{side, side}};
    cpu_image_patches(NULL, F32, patches, &im, &r, to, &spec, 1);
    return true;
}

/* Passes over all files by so many threads: seconds of each; *decode: the decoder's share of the threads'
 * time. */
static int passes(double *seconds, double *decode, const File *file, int threads, int side, double budget,
                  Error *e) {
    double decoding = 0, all = 0;
    int n = 0;
    bool more = true, ok = true;
    OMP_(omp parallel num_threads(threads)) { /* every thread its own memory and output, as workers have */
        Arena a;
        Error mine = {0};
        float *patches = xcalloc((size_t)side * (size_t)side * 3, sizeof *patches);
        arena_open(&a, "pixels", NULL, (size_t)64 << 20);
        double spent = 0;
        for (int p = -1; more; p++) { /* the first warms up */
            double decode_s = 0, from = 0, busy = 0;
            OMP_(omp barrier)
            from = now_s();
            OMP_(omp for schedule(dynamic, 1) nowait)
            for (int i = 0; i < FILES; i++) load(&file[i], patches, &a, side, &decode_s, &mine);
            busy = now_s() - from;
            OMP_(omp barrier)
            OMP_(omp critical)
            if (p >= 0) decoding += decode_s, all += busy;
            OMP_(omp master) {
                if (p >= 0) spent += seconds[n++] = now_s() - from;
                more = n < PASSES || (spent < budget && n < MOST_PASSES);
            }
            OMP_(omp barrier)
        }
        if (*mine.text) {
            OMP_(omp critical)
            *e = mine, ok = false;
        }
        arena_close(&a);
        free(patches);
    }
    *decode = decoding / all;
    return ok ? n : 0;
}

static bool worker_table(const File *file, int threads, int side, double budget, Report *r, Error *e) {
    double seconds[MOST_PASSES], decode, bytes = 0;
    for (int i = 0; i < FILES; i++) bytes += (double)file[i].size;
    printf("\n%d photographs in memory, %.0f kB on average, to patches of %dx%d\n%8s %6s %10s %10s %9s %9s "
           "%10s\n",
           FILES, bytes / FILES * 1e-3, side, side, "threads", "passes", "images/s", "p99 slow", "per thr.",
           "MB/s", "decoding");
    for (int n = 1; n <= threads; n = n == threads || 2 * n <= threads ? 2 * n : threads) {
        const int count = passes(seconds, &decode, file, n, side, budget, e);
        if (!count) return false;
        const Spread s = bench_spread(seconds, count);
        const double rate = FILES / s.median;
        printf("%8d %6d %10.1f %10.1f %9.1f %9.1f %9.0f%%\n", n, count, rate, FILES / s.p99, rate / n,
               bytes / s.median * 1e-6, 100 * decode);
        json_t *row = json_pack("{s:s, s:i, s:i, s:f, s:f, s:f, s:f}", "table", "worker", "threads", n,
                                "side", side, "images_per_s", rate, "slow_images_per_s", FILES / s.p99,
                                "mb_per_s", bytes / s.median * 1e-6, "decode_share", decode);
        report_spread(row, s);
        report_row(r, row);
    }
    return true;
}

/* ---- the loader ----------------------------------------------------------------------------------- */

/* The photographs as a dataset of steps, in a folder of its own. */
static bool write_dataset(char *dir, size_t size, const File *file, Error *e) {
    char path[600], *lines = xcalloc(FILES, 200);
    bool ok = bench_folder(dir, size, e);
    for (int i = 0; ok && i < FILES; i++) {
        snprintf(path, sizeof path, "%s/%d.jpg", dir, i);
        ok = file_write_atomic(path, file[i].data, file[i].size, e);
        sprintf(lines + strlen(lines),
                "{\"image\": \"%d.jpg\", \"rect\": [0, 0, %d, %d], \"module\": \"VQA\", \"query\": "
                "\"what?\", \"answer\": \"noise\"}\n",
                i, file[i].w, file[i].h);
    }
    snprintf(path, sizeof path, "%s/train_steps.jsonl", dir);
    ok = ok && file_write_atomic(path, lines, strlen(lines), e);
    free(lines);
    return ok;
}

/* Every batch to patches, until `budget` seconds are spent and at least PASSES batches are through. */
static bool consume(const Dataset *d, const Config *cfg, int workers, int side, double budget, Report *r,
                    Error *e) {
    const int batch = cfg->bench.batch ? cfg->bench.batch : DEFAULT_BATCH;
    LoaderConfig lc = {.seed = 1,
                       .batch = batch,
                       .workers = workers,
                       .shuffle = true,
                       .min_side = side,
                       .max_bad_percent = 100,
                       .batch_bytes = (size_t)256 << 20};
    Loader *l = loader_open(d, &lc, e);
    if (!l) return false;
    const PatchSpec spec = spec_of(side);
    float *patches = xcalloc((size_t)batch * 2 * (size_t)side * (size_t)side * 3, sizeof *patches);
    Rect *rect = xcalloc((size_t)batch * 2, sizeof *rect);
    int(*to)[2] = xcalloc((size_t)batch * 2, sizeof *to);
    double from = now_s(), waited = 0;
    int64_t images = 0, batches = 0;
    const Batch *b = NULL;
    for (; batches <= PASSES || now_s() - from < budget; batches++) {
        if (!(b = loader_next(l, e))) break;
        for (int i = 0; i < b->nimages; i++) rect[i] = middle(&b->image[i]), to[i][0] = to[i][1] = side;
        cpu_image_patches(NULL, F32, patches, b->image, rect, (const int(*)[2])to, &spec, b->nimages);
        if (batches)
            images += b->nimages;
        else
            from = now_s(),
            waited = loader_stats(l)->wait_s; /* the first batch warms up: threads, pages, files */
    }
    const double all = now_s() - from, wait = (loader_stats(l)->wait_s - waited) / all;
    loader_close(l);
    free(patches), free(rect), free(to);
    if (!b) return *e->text ? false : fail_as(e, FAIL_DATA, "bench loader: the loader has no batch");
    printf("%8d %8" PRId64 " %10.1f %8.0f%%\n", workers, batches - 1, (double)images / all, 100 * wait);
    report_row(r, json_pack("{s:s, s:i, s:i, s:i, s:I, s:f, s:f}", "table", "loader", "workers", workers,
                            "batch", batch, "side", side, "batches", (json_int_t)(batches - 1),
                            "images_per_s", (double)images / all, "wait_share", wait));
    return true;
}

static bool loader_table(const File *file, const Config *cfg, int threads, int side, double budget, Report *r,
                         Error *e) {
    char dir[400] = "";
    Dataset d = {0};
    const bool given = *cfg->data.dir;
    if (!given && !write_dataset(dir, sizeof dir, file, e)) return false;
    DatasetConfig dc = {.type = given ? cfg->data.kind : "steps",
                        .dir = given ? cfg->data.dir : dir,
                        .split = cfg->data.split,
                        .max_bad = 100};
    bool ok = dataset_open(&d, &dc, e);
    if (ok)
        printf("\nthe loader, images of %s, to patches of %dx%d by %d threads\n%8s %8s %10s %9s\n",
               given ? dc.dir : "the same", side, side, threads, "workers", "batches", "images/s", "wait");
    for (int n = 1; ok && n <= threads; n = n == threads || 2 * n <= threads ? 2 * n : threads)
        ok = consume(&d, cfg, n, side, budget, r, e);
    dataset_close(&d);
    if (!given) remove_tree(dir);
    return ok;
}

/* ---- on request ----------------------------------------------------------------------------------- */

typedef struct Whole {
    File *file;
    int64_t n, cap;
    int side;
    Arena pixels;
    float *patches;
} Whole;

static bool is_jpeg(const struct dirent *d) {
    const char *dot = strrchr(d->d_name, '.');
    return dot && !strcmp(dot, ".jpg");
}

static bool read_files(Whole *w, const char *dir, Error *e) {
    struct dirent **entry;
    const int n = scandir(dir, &entry, NULL, alphasort);
    bool ok = n >= 0 || fail_as(e, FAIL_DATA, "%s: %s", dir, strerror(errno));
    for (int i = 0; i < n; i++) {
        char path[1024], *data = NULL;
        size_t size;
        if (ok && is_jpeg(entry[i])) {
            ok = path_join(path, sizeof path, dir, entry[i]->d_name, e) &&
                 file_read(path, &data, &size, (size_t)256 << 20, e);
            GROW(w->file, w->cap, w->n + 1);
            if (ok) w->file[w->n++] = (File){.data = (unsigned char *)data, .size = size};
        }
        free(entry[i]);
    }
    if (n >= 0) free(entry);
    return ok && (w->n || fail_as(e, FAIL_DATA, "%s: there is no .jpg file in it", dir));
}

/* All files to squares; squares (NULL is fine): the sum of all values' squares. */
static bool whole(Whole *w, double *squares, Error *e) {
    const PatchSpec spec = spec_of(w->side);
    const int to[1][2] = {{w->side, w->side}};
    for (int64_t i = 0; i < w->n; i++) {
        ImageView im;
        arena_reset(&w->pixels, 0);
        if (!jpeg_decode(&w->pixels, w->file[i].data, w->file[i].size, w->side, &im, NULL, NULL, e))
            return false;
        const Rect all = {0, 0, im.w, im.h};
        cpu_image_patches(NULL, F32, w->patches, &im, &all, to, &spec, 1);
        for (int64_t k = 0; squares && k < (int64_t)w->side * w->side * 3; k++)
            *squares += (double)w->patches[k] * (double)w->patches[k];
    }
    return true;
}

static bool whole_once(void *arg, double *value, Error *e) {
    Whole *w = arg;
    if (!whole(w, NULL, e)) return false;
    *value = (double)w->patches[0];
    return true;
}

static bool square_once(void *arg, double *value, Error *e) {
    Whole *w = arg;
    double squares = 0;
    if (!whole(w, &squares, e)) return false;
    *value = squares / ((double)w->n * (double)w->side * (double)w->side * 3);
    return true;
}

static json_t *info_of_whole(void *arg) { return json_pack("{s:I}", "files", (json_int_t)((Whole *)arg)->n); }

static bool requests(const Config *cfg, int side, Error *e) {
    static Whole w;
    static const Request request[] = {{"whole", whole_once}, {"square", square_once}};
    if (!*cfg->data.dir) return fail_as(e, FAIL_CONFIG, "bench loader requests: data.dir is empty");
    w = (Whole){.side = side};
    device_cpu(1);
    arena_open(&w.pixels, "pixels", NULL, (size_t)1 << 30);
    w.patches = xcalloc((size_t)side * (size_t)side * 3, sizeof *w.patches);
    const bool ok =
        read_files(&w, cfg->data.dir, e) && bench_serve(request, COUNT_OF(request), &w, info_of_whole, e);
    for (int64_t i = 0; i < w.n; i++) free(w.file[i].data);
    free(w.file);
    free(w.patches);
    arena_close(&w.pixels);
    return ok;
}

/* ---- the benchmark -------------------------------------------------------------------------------- */

static bool run(const Config *cfg, char *const *word, int nwords, Error *e) {
    static File file[FILES];
    Report r;
    const int side = MAX(1, (cfg->bench.side ? cfg->bench.side : DEFAULT_SIDE) / PATCH) * PATCH;
    if (nwords == 1 && !strcmp(word[0], "requests")) return requests(cfg, side, e);
    if (nwords) return fail_as(e, FAIL_USAGE, "bench loader takes no filter, \"%s\" was given", word[0]);
    Device *cpu = device_cpu(cfg->run.threads);
    const double budget = (cfg->bench.ms > 0 ? cfg->bench.ms : 2000) * 1e-3;
    report_begin(&r, "loader", cfg, cpu);
    bool ok = make_files(file, e) && worker_table(file, cpu->nthreads, side, budget, &r, e) &&
              loader_table(file, cfg, cpu->nthreads, side, budget, &r, e);
    report_set(&r, "peak_rss_bytes", json_integer(bench_peak_rss()));
    for (int i = 0; i < FILES; i++) free(file[i].data);
    return report_end(&r, ok, e);
}

const Benchmark bench_loader = {"loader", "JPEG files to normalised patches, images per second", false, run};
