/* step.c -- training steps of a model on made-up images and questions, timed on request.
 *
 *   vpbench step --folder DIR [--batch 64] [--text 10] [--height 48] [--width 48] [--threads 0]
 *
 * One step is what `vpdistill train` does in one update, less the JPEG decoder: images from u8 pixels to patches,
 * tokens of the questions, forward, loss, backward, clipping, AdamW. Commands come one a line on standard input, answers go
 * as one JSON object a line to standard output, so that a driver (step.py) can hold this process and PyTorch's at once
 * and let them take turns:
 *
 *   step K   K steps: {"seconds": [...], "cpu_seconds": all K, "loss": last, "allocations": by us, "dnnl_allocations": by oneDNN}
 *   info     {"parameters": n, "tokens": of one ask, "peak_rss": bytes, "arena": bytes}
 *
 * Every image and question of the batch is another one (nothing is shared), all questions have --text tokens, the first
 * and last special token included.
 */
#include <ctype.h>
#include <sys/resource.h>

#include "bench/bench.h"
#include "engine/run.h"
#include "modules/answer.h"
#include "tests/engine/count.h"

enum { MAX_STEPS = 10000, MAX_TEXT = 4096 };

typedef struct Bench {
    Config cfg;
    Run run;
    Module *module;
    int B, text, h, w;
    Ask *ask;
    int32_t *label;
    int64_t steps;
    OptimConfig optim;
} Bench;

/* ---- the batch ------------------------------------------------------------------------------------ */

static uint32_t next_random(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

/* Words that the tokenizer has whole. */
static int whole_words(const Tokenizer *t, const char **word, int max) {
    int n = 0;
    for (int id = 0; id < token_size(t) && n < max; id++) {
        const char *s = token_text(t, id);
        bool plain = s && *s;
        for (const char *c = s; plain && *c; c++) plain = islower((unsigned char)*c) != 0;
        if (plain) word[n++] = s;
    }
    return n;
}

static bool make_batch(Bench *b, Error *e) {
    enum { WORDS = 8192 };
    static const char *word[WORDS];
    const Tokenizer *t = b->module->tokenizer;
    int nwords = whole_words(t, word, WORDS), ids[MAX_TEXT];
    if (nwords < 2) return fail_as(e, FAIL_MODEL, "%s: the vocabulary has no plain words", b->module->folder);
    uint64_t random = 7;
    b->ask = xcalloc((size_t)b->B, sizeof *b->ask);
    b->label = xcalloc((size_t)b->B, sizeof *b->label);
    for (int i = 0; i < b->B; i++) {
        uint8_t *rgb = xcalloc((size_t)b->h * (size_t)b->w, 3);
        for (int64_t k = 0; k < (int64_t)b->h * b->w * 3; k++) rgb[k] = (uint8_t)next_random(&random);
        char text[MAX_TEXT * 16] = "";
        for (int k = 0; k < b->text - 2; k++) {
            const char *wd = word[next_random(&random) % (uint32_t)nwords];
            if (strlen(text) + strlen(wd) + 2 < sizeof text) strcat(strcat(text, k ? " " : ""), wd);
        }
        b->ask[i] = (Ask){{rgb, b->w, b->h}, (uint64_t)i + 1, {0, 0, b->w, b->h}, xstrdup(text)};
        b->label[i] = (int32_t)(next_random(&random) % (uint32_t)b->module->nlabels);
        int n = token_encode(t, text, strlen(text), ids, MAX_TEXT);
        if (n != b->text) return fail_as(e, FAIL_MODEL, "%s: a question of %d words has %d tokens, not %d", b->module->folder, b->text - 2, n, b->text);
    }
    return true;
}

/* ---- one step ------------------------------------------------------------------------------------- */

static bool step(Bench *b, double *loss, Error *e) {
    Run *r = &b->run;
    Ctx *c = &r->ctx;
    run_begin(r, b->steps, true);
    module_begin(b->module);
    Outputs out;
    module_forward(b->module, c, b->ask, b->B, &out);
    int64_t V = b->module->nlabels;
    float *weight = arena_alloc(&r->host, (size_t)b->B * sizeof *weight);
    for (int i = 0; i < b->B; i++) weight[i] = 1.0f / (float)b->B;
    if (module_multi_label(b->module)) {
        float *target = arena_zalloc(&r->host, (size_t)(b->B * V) * sizeof *target);
        for (int i = 0; i < b->B; i++) target[i * V + b->label[i]] = 1;
        *loss = loss_value(c, op_bce_loss(c, out.logits, target, weight, 1));
    } else {
        *loss = loss_value(c, op_ce_loss(c, out.logits, b->label, weight, 0));
    }
    tape_backward(c);
    double norm;
    return optim_step(&b->module->params, &b->optim, b->steps++, &norm, e);
}

static double cpu_s(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)u.ru_utime.tv_sec + (double)u.ru_stime.tv_sec + 1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

static bool do_steps(Bench *b, int n, Error *e) {
    static double seconds[MAX_STEPS];
    double loss = 0, cpu = cpu_s();
    count_begin();
    for (int i = 0; i < n; i++) {
        double from = now_s();
        if (!step(b, &loss, e)) return false;
        seconds[i] = now_s() - from;
    }
    count_end();
    cpu = cpu_s() - cpu;
    char whose[512] = "";
    int64_t all = count_calls(NULL, false, NULL, 0), dnnl = count_calls("libdnnl", false, NULL, 0);
    if (all > dnnl) count_calls("libdnnl", true, whose, sizeof whose);
    printf("{\"seconds\": [");
    for (int i = 0; i < n; i++) printf("%s%.6f", i ? ", " : "", seconds[i]);
    printf("], \"cpu_seconds\": %.4f, \"loss\": %.6f, ", cpu, loss);
    if (count_possible()) printf("\"allocations\": %" PRId64 ", \"dnnl_allocations\": %" PRId64 ", \"allocated_by\": \"%s\"}\n", all - dnnl, dnnl, whose);
    else printf("\"allocations\": null}\n"); /* a sanitizer's allocator */
    return true;
}

/* ---- the protocol --------------------------------------------------------------------------------- */

static bool serve(Bench *b, Error *e) {
    char line[256];
    while (fgets(line, sizeof line, stdin)) {
        int n;
        if (sscanf(line, "step %d", &n) == 1 && n >= 1 && n <= MAX_STEPS) {
            if (!do_steps(b, n, e)) return false;
        } else if (!strncmp(line, "info", 4)) {
            printf("{\"parameters\": %" PRId64 ", \"threads\": %d, \"peak_rss\": %" PRId64 ", \"arena\": %zu}\n",
                   params_count(&b->module->params), b->run.dev->nthreads, bench_peak_rss(), b->run.step.peak);
        } else {
            line[strcspn(line, "\n")] = 0;
            return fail_as(e, FAIL_USAGE, "unknown command \"%s\"; known are \"step 1\" .. \"step %d\" and \"info\"", line, MAX_STEPS);
        }
        fflush(stdout);
    }
    return true;
}

int bench_step(int argc, char **argv) {
    static Bench b;
    Error e = {0};
    const char *folder = bench_option(argc, argv, "--folder", NULL);
    if (!folder) die(FAIL_USAGE, "vpbench step: --folder wants a model folder");
    config_defaults(&b.cfg);
    b.cfg.run.threads = bench_int(argc, argv, "--threads", 0, 0, 1024);
    b.B = bench_int(argc, argv, "--batch", 64, 1, 65536);
    b.text = bench_int(argc, argv, "--text", 10, 3, MAX_TEXT);
    b.h = bench_int(argc, argv, "--height", 48, 1, 16384);
    b.w = bench_int(argc, argv, "--width", 48, 1, 16384);
    run_open(&b.run, &b.cfg, NULL);
    b.optim = run_optim(&b.cfg, 1e-4, 1000000);
    b.module = module_open(folder, b.run.dev, F32, MODULE_TRAINED, false, 1, &e);
    bool ok = b.module != NULL;
    if (ok && strcmp(b.module->type->step, "VQA")) ok = fail_as(&e, FAIL_MODEL, "%s answers %s steps; only VQA is timed", folder, b.module->type->step);
    ok = ok && make_batch(&b, &e) && serve(&b, &e);
    if (!ok) fprintf(stderr, "vpbench step: %s\n", e.text);
    for (int i = 0; b.ask && i < b.B; i++) {
        free((void *)b.ask[i].image.rgb);
        free((void *)b.ask[i].query);
    }
    free(b.ask);
    free(b.label);
    module_close(b.module);
    run_close(&b.run);
    return ok ? OK_STATUS : e.status ? (int)e.status : FAIL_OTHER;
}
