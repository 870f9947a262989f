/* step.c -- `bench step`: training steps of the demo's ViLT, of ViLT-B/32, and the demo's whole distillation
 * step.
 *
 *   vpdistill bench step [demo|b32|distill] [model.vqa=FOLDER | model.loc=FOLDER] [bench.batch=N] [bench.text=N]
 *                        [bench.side=N]
 *
 * A step of a model is what `vpdistill train` does in one update, less the JPEG decoder: images from u8
 * pixels to patches, tokens of the questions, forward, loss, backward, clipping, AdamW. Every image and
 * question of the batch is another one (nothing is shared); LOC asks for phrases of random letters and learns
 * two boxes of each. The distillation step is step_run with
 * configs/demo.yaml on scenes drawn for it, the decoder included; learning lessons again (distill.reuse) is
 * not.
 *
 * Steps are timed plain and watched in turns. A watched step has a table of operations that counts what the
 * matrix products and attention do (two per multiply-add) and notes when the loss is there and when the
 * optimizer begins, and modules whose forward is timed; on a card each of these waits for the card, so the
 * parts of a step there add up to more than it takes.
 *
 *   vpdistill bench step requests model.vqa=FOLDER|model.loc=FOLDER ...
 *
 * works on request (bench_serve), for step.py, infer.py and adamw.py:
 *   step K    K steps; the loss
 *   infer K   K times the outputs alone, without a tape, read back; the first logit
 *   adamw K   K times the optimizer's operation alone, over all parameters; the first parameter
 *   info      parameters, threads, bytes of the step's arena
 */
#include <ctype.h>
#include <unistd.h>

#include "bench/kernels.h"
#include "data/scenes.h"
#include "engine/step.h"
#include "modules/answer.h"
#include "modules/detect.h"

enum { WARM = 2, LEAST_STEPS = 5, MOST_STEPS = 10000, MAX_TEXT = 4096, SCENES = 200, BOXES = 2 };

/* ---- watching ------------------------------------------------------------------------------------- */

enum { DECODE, STUDENTS, TEACHER, PROGRAMS, FORWARD, BACKWARD, OPTIMIZER, PARTS };
static const char *const part_names[PARTS] = {"decode",  "students", "teacher",  "programs",
                                              "forward", "backward", "optimizer"};

static struct Watch {
    Device *dev;
    const Ops *real;
    Ops ops;
    double flop, loss_at, optimizer_at,
        forwards[2]; /* of the students, of the teacher and the proposals' network */
    const ModuleType *type[4];
    ModuleType watched[4];
    const Module *module[4];
    bool teacher[4];
} watch;

static double wait_and_look(void) {
    if (strcmp(watch.dev->name, "cpu")) watch.dev->sync(watch.dev);
    return now_s();
}

static void watched_gemm(Stream *s, DType t, DType tc, void *C, int64_t ldc, const void *A, int64_t lda,
                         const void *B, int64_t ldb, const float *bias, bool ta, bool tb, int64_t M,
                         int64_t N, int64_t K, float beta) {
    watch.flop += 2.0 * (double)M * (double)N * (double)K;
    watch.real->gemm(s, t, tc, C, ldc, A, lda, B, ldb, bias, ta, tb, M, N, K, beta);
}
static void watched_gemm_bgrad(Stream *s, DType t, float *dw, float *dbias, const void *dy, const void *x,
                               int64_t rows, int64_t N, int64_t K) {
    if (dw) watch.flop += 2.0 * (double)rows * (double)N * (double)K;
    watch.real->gemm_bgrad(s, t, dw, dbias, dy, x, rows, N, K);
}
static void watched_gemm_gelu_tanh(Stream *s, DType t, void *y, void *pre, const void *x, const void *w,
                                   const float *bias, int64_t rows, int64_t N, int64_t K) {
    watch.flop += 2.0 * (double)rows * (double)N * (double)K;
    watch.real->gemm_gelu_tanh(s, t, y, pre, x, w, bias, rows, N, K);
}
static void watched_gemm_dgelu_tanh(Stream *s, DType t, void *dpre, const void *pre, const void *dz,
                                    const void *w, int64_t rows, int64_t N, int64_t K) {
    watch.flop += 2.0 * (double)rows * (double)N * (double)K;
    watch.real->gemm_dgelu_tanh(s, t, dpre, pre, dz, w, rows, N, K);
}
static void watched_attention_fwd(Stream *s, DType t, void *out, int64_t ldo, float *lse, const void *q,
                                  int64_t ldq, const void *k, const void *v, int64_t ldkv,
                                  const uint8_t *mask, bool causal, float scale, int B, int H, int Tq, int Tk,
                                  int D) {
    watch.flop += 4.0 * B * H * (double)Tq * Tk * D;
    watch.real->attention_fwd(s, t, out, ldo, lse, q, ldq, k, v, ldkv, mask, causal, scale, B, H, Tq, Tk, D);
}
static void watched_attention_bwd(Stream *s, DType t, void *dq, void *dk, void *dv, const void *q,
                                  int64_t ldq, const void *k, const void *v, int64_t ldkv, const void *out,
                                  const void *dout, int64_t ldo, const float *lse, const uint8_t *mask,
                                  bool causal, float scale, int B, int H, int Tq, int Tk, int D) {
    watch.flop += 10.0 * B * H * (double)Tq * Tk * D;
    watch.real->attention_bwd(s, t, dq, dk, dv, q, ldq, k, v, ldkv, out, dout, ldo, lse, mask, causal, scale,
                              B, H, Tq, Tk, D);
}
static void watched_bce_loss(Stream *s, DType t, float *loss, void *dx, const void *x, const float *target,
                             const float *weight, float T, int64_t rows, int64_t V) {
    watch.real->bce_loss(s, t, loss, dx, x, target, weight, T, rows, V);
    watch.loss_at = wait_and_look();
}
static void watched_ce_loss(Stream *s, DType t, float *loss, void *dx, const void *x, const int32_t *label,
                            const float *weight, float smoothing, int64_t rows, int64_t V) {
    watch.real->ce_loss(s, t, loss, dx, x, label, weight, smoothing, rows, V);
    watch.loss_at = wait_and_look();
}
static void watched_kl_loss(Stream *s, DType t, float *loss, void *dx, const void *x, const float *z,
                            const float *weight, float T, int64_t rows, int64_t V) {
    watch.real->kl_loss(s, t, loss, dx, x, z, weight, T, rows, V);
    watch.loss_at = wait_and_look();
}
static void watched_focal_loss(Stream *s, DType t, float *loss, void *dx, const void *x, const float *target,
                               const float *weight, float alpha, float gamma, int64_t rows, int64_t V) {
    watch.real->focal_loss(s, t, loss, dx, x, target, weight, alpha, gamma, rows, V);
    watch.loss_at = wait_and_look();
}
static void watched_box_loss(Stream *s, float *loss, float *dbox, const float *box, const float *target,
                             const float *weight, float w_l1, float w_giou, bool corners, int64_t n) {
    watch.real->box_loss(s, loss, dbox, box, target, weight, w_l1, w_giou, corners, n);
    watch.loss_at = wait_and_look();
}
/* The gradient's norm: where an update begins. */
static void watched_sum_squares(Stream *s, DType t, double *out, const void *x, int64_t n) {
    if (!watch.optimizer_at) watch.optimizer_at = wait_and_look();
    watch.real->sum_squares(s, t, out, x, n);
}

static void watched_forward(Module *m, Ctx *c, const Ask *ask, int64_t n, Outputs *out) {
    int k = 0;
    while (watch.module[k] != m) k++;
    const double from = wait_and_look();
    watch.type[k]->forward(m, c, ask, n, out);
    watch.forwards[watch.teacher[k]] += wait_and_look() - from;
}

static void watch_begin(Device *dev, Module *const *module, const bool *teacher, int n) {
    watch = (struct Watch){.dev = dev, .real = dev->ops, .ops = *dev->ops};
    Ops *o = &watch.ops;
    o->gemm = watched_gemm;
    o->gemm_bgrad = watched_gemm_bgrad;
    o->gemm_gelu_tanh = watched_gemm_gelu_tanh;
    o->gemm_dgelu_tanh = watched_gemm_dgelu_tanh;
    o->attention_fwd = watched_attention_fwd;
    o->attention_bwd = watched_attention_bwd;
    o->bce_loss = watched_bce_loss;
    o->ce_loss = watched_ce_loss;
    o->kl_loss = watched_kl_loss;
    o->focal_loss = watched_focal_loss;
    o->box_loss = watched_box_loss;
    o->sum_squares = watched_sum_squares;
    dev->ops = o;
    for (int k = 0; k < n; k++) {
        watch.module[k] = module[k];
        watch.teacher[k] = teacher[k];
        watch.type[k] = module[k]->type;
        watch.watched[k] = *module[k]->type;
        watch.watched[k].forward = watched_forward;
        module[k]->type = &watch.watched[k];
    }
}

static void watch_end(Module *const *module, int n) {
    watch.dev->ops = watch.real;
    for (int k = 0; k < n; k++) module[k]->type = watch.type[k];
}

/* ---- a row ---------------------------------------------------------------------------------------- */

/* What is stepped: step() does one and, when it is watched, fills part[]. */
typedef struct Subject {
    const char *model, *unit; /* "images", "programs" */
    double examples;          /* of one step */
    bool (*step)(void *arg, bool watched, double part[PARTS], Error *e);
    void *arg;
    Device *dev;
    int64_t parameters;
    char shape[96];
} Subject;

static bool measure(const Subject *s, const Config *cfg, Report *r, Error *e) {
    static double seconds[MOST_STEPS];
    double sum[PARTS] = {0}, flop = 0, part[PARTS];
    const double budget = (cfg->bench.ms > 0 ? cfg->bench.ms : 10000) * 1e-3;
    int n = 0;
    for (int i = 0; i < WARM; i++)
        if (!s->step(s->arg, false, part, e)) return false;
    for (double from = now_s(); n < MOST_STEPS && (n < LEAST_STEPS || now_s() - from < budget); n++) {
        const double at = now_s();
        if (!s->step(s->arg, false, part, e)) return false;
        s->dev->sync(s->dev);
        seconds[n] = now_s() - at;
        if (!s->step(s->arg, true, part, e)) return false;
        for (int k = 0; k < PARTS; k++) sum[k] += part[k];
        flop += watch.flop;
    }
    const Spread t = bench_spread(seconds, n);
    const double peak = json_real_value(json_object_get(r->json, "peak_gflop_per_s")),
                 rate = flop / n / t.median * 1e-9;
    printf("%-12s %5d %10.2f %10.2f %9.1f %-8s %9.1f %6.1f %9.0f   %s\n", s->model, n, t.median * 1e3,
           t.p99 * 1e3, s->examples / t.median, s->unit, rate, 100 * rate / peak,
           (double)bench_peak_rss() / 1e6, s->shape);
    json_t *parts = json_object();
    printf("            ");
    for (int k = 0; k < PARTS; k++) {
        if (!sum[k]) continue;
        printf(" %s %.2f", part_names[k], sum[k] / n * 1e3);
        json_object_set_new(parts, part_names[k], json_real(sum[k] / n * 1e3));
    }
    printf(" ms, means of as many watched steps\n");
    fflush(stdout);
    json_t *row = json_pack("{s:s, s:s, s:s, s:f, s:f, s:f, s:f, s:f, s:I, s:I, s:o}", "model", s->model,
                            "shape", s->shape, "unit", s->unit, "examples", s->examples, "examples_per_s",
                            s->examples / t.median, "flop", flop / n, "gflop_per_s", rate, "share_of_peak",
                            rate / peak, "parameters", (json_int_t)s->parameters, "peak_rss_bytes",
                            (json_int_t)bench_peak_rss(), "parts_ms", parts);
    report_spread(row, t);
    report_row(r, row);
    return true;
}

/* ---- a model -------------------------------------------------------------------------------------- */

typedef struct Model {
    Config cfg;
    Run run;
    Module *module;
    int B, text, side;
    Ask *ask;
    int32_t *label;         /* VQA */
    float (*box)[BOXES][4]; /* LOC */
    int64_t steps;
    double loss;
    OptimConfig optim;
} Model;

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

static bool is_loc(const Model *b) { return !strcmp(b->module->type->step, "LOC"); }

/* In 0..1. */
static float next_share(uint64_t *state) { return (float)(next_random(state) >> 7) / 16777216.0f; }

/* A question with just as many tokens as asked for. */
static bool make_question(const Model *b, const char *const *word, int nwords, uint64_t *random, char *text,
                          size_t size, Error *e) {
    static int ids[MAX_TEXT];
    for (int k = 0; k < b->text - 2; k++) { /* the first and last token are special */
        const char *wd = word[next_random(random) % (uint32_t)nwords];
        if (strlen(text) + strlen(wd) + 2 < size) strcat(strcat(text, k ? " " : ""), wd);
    }
    const int n = token_encode(b->module->tokenizer, text, strlen(text), ids, MAX_TEXT);
    return n == b->text || fail_as(e, FAIL_MODEL, "%s: a question of %d words has %d tokens, not %d",
                                   b->module->folder, b->text - 2, n, b->text);
}

/* A phrase of as many letters: as many tokens where the vocabulary has no longer pieces, and cut where the
 * model cuts. */
static void make_phrase(const Model *b, uint64_t *random, char *text) {
    for (int k = 0; k < b->text; k++) text[k] = (char)('a' + next_random(random) % 26);
    text[b->text] = 0;
}

static bool make_batch(Model *b, Error *e) {
    enum { WORDS = 8192 };
    static const char *word[WORDS];
    static char text[MAX_TEXT * 16];
    const int nwords = is_loc(b) ? 0 : whole_words(b->module->tokenizer, word, WORDS);
    if (!is_loc(b) && nwords < 2)
        return fail_as(e, FAIL_MODEL, "%s: the vocabulary has no plain words", b->module->folder);
    uint64_t random = 7;
    b->ask = xcalloc((size_t)b->B, sizeof *b->ask);
    b->label = xcalloc((size_t)b->B, sizeof *b->label);
    b->box = xcalloc((size_t)b->B, sizeof *b->box);
    for (int i = 0; i < b->B; i++) {
        uint8_t *rgb = xcalloc((size_t)b->side * (size_t)b->side, 3);
        for (int64_t k = 0; k < (int64_t)b->side * b->side * 3; k++) rgb[k] = (uint8_t)next_random(&random);
        b->ask[i] = (Ask){{rgb, b->side, b->side}, (uint64_t)i + 1, {0, 0, b->side, b->side}, NULL};
        text[0] = 0;
        if (is_loc(b)) {
            make_phrase(b, &random, text);
            for (int k = 0; k < BOXES; k++)
                for (int j = 0; j < 4; j++) /* somewhere in the middle, none flat */
                    b->box[i][k][j] = 0.25f + 0.5f * next_share(&random);
        } else {
            if (!make_question(b, word, nwords, &random, text, sizeof text, e)) return false;
            b->label[i] = (int32_t)(next_random(&random) % (uint32_t)b->module->nlabels);
        }
        b->ask[i].query = xstrdup(text);
    }
    return true;
}

static bool model_open(Model *b, const Config *cfg, const char *folder, int batch, int text, int side,
                       Error *e) {
    *b = (Model){.cfg = *cfg,
                 .B = cfg->bench.batch ? cfg->bench.batch : batch,
                 .text = cfg->bench.text ? MAX(3, cfg->bench.text) : text,
                 .side = cfg->bench.side ? cfg->bench.side : side};
    if (!run_open(&b->run, &b->cfg, e)) return false;
    b->optim = run_optim(&b->cfg, 1e-4, 1000000);
    if (!(b->module = module_open(folder, b->run.dev, run_type(cfg), MODULE_TRAINED, false, 1, e)))
        return false;
    if (strcmp(b->module->type->step, "VQA") && !is_loc(b))
        return fail_as(e, FAIL_MODEL, "%s answers %s steps; only VQA and LOC are timed", folder,
                       b->module->type->step);
    return make_batch(b, e);
}

static void model_close(Model *b) {
    for (int i = 0; b->ask && i < b->B; i++) {
        free((void *)b->ask[i].image.rgb);
        free((void *)b->ask[i].query);
    }
    free(b->ask);
    free(b->label);
    free(b->box);
    module_close(b->module);
    if (b->run.dev) run_close(&b->run);
}

/* Forward of the whole batch. */
static void model_forward(Model *b, bool training, Outputs *out) {
    run_begin(&b->run, b->steps, training);
    module_begin(b->module);
    module_forward(b->module, &b->run.ctx, b->ask, b->B, out);
}

static double vqa_step_loss(Model *b, const Outputs *out) {
    Ctx *c = &b->run.ctx;
    int64_t V = b->module->nlabels;
    float *weight = arena_alloc(c->host, (size_t)b->B * sizeof *weight);
    for (int i = 0; i < b->B; i++) weight[i] = 1.0f / (float)b->B;
    if (!module_multi_label(b->module)) return loss_value(c, op_ce_loss(c, out->logits, b->label, weight, 0));
    float *target = arena_zalloc(c->host, (size_t)(b->B * V) * sizeof *target);
    for (int i = 0; i < b->B; i++) target[i * V + b->label[i]] = 1;
    return loss_value(c, op_bce_loss(c, out->logits, target, weight, 1));
}

static double loc_step_loss(Model *b, const Outputs *out) {
    Ctx *c = &b->run.ctx;
    LocTarget *target = arena_alloc(c->host, (size_t)b->B * sizeof *target);
    for (int i = 0; i < b->B; i++)
        target[i] = (LocTarget){.nboxes = BOXES,
                                .box = (const float(*)[4])b->box[i],
                                .negative_weight = 1,
                                .weight = 1.0f / (float)b->B};
    return loc_loss(c, out, target, &loc_loss_default, NULL);
}

static bool model_step(Model *b, Error *e) {
    Outputs out;
    double norm;
    model_forward(b, true, &out);
    b->loss = is_loc(b) ? loc_step_loss(b, &out) : vqa_step_loss(b, &out);
    tape_backward(&b->run.ctx);
    return optim_step(&b->module->params, &b->optim, b->steps++, &norm, e);
}

static bool step_of_model(void *arg, bool watched, double part[PARTS], Error *e) {
    Model *b = arg;
    if (!watched) return model_step(b, e);
    watch_begin(b->run.dev, &b->module, (bool[]){false}, 1);
    const double from = now_s();
    const bool ok = model_step(b, e);
    const double end = wait_and_look();
    watch_end(&b->module, 1);
    memset(part, 0, PARTS * sizeof *part);
    part[FORWARD] = watch.loss_at - from;
    part[BACKWARD] = watch.optimizer_at - watch.loss_at;
    part[OPTIMIZER] = end - watch.optimizer_at;
    return ok;
}

static bool model_row(const Config *cfg, const char *name, const char *folder, int batch, int text, int side,
                      Report *r, Error *e) {
    static Model b;
    bool ok = model_open(&b, cfg, folder, batch, text, side, e);
    if (ok) {
        Subject s = {.model = name,
                     .unit = "images/s",
                     .examples = b.B,
                     .step = step_of_model,
                     .arg = &b,
                     .dev = b.run.dev,
                     .parameters = params_count(&b.module->params)};
        snprintf(s.shape, sizeof s.shape, "batch %d, %d tokens, %dx%d", b.B, b.text, b.side, b.side);
        ok = measure(&s, cfg, r, e);
    }
    model_close(&b);
    return ok;
}

/* ---- ViLT-B/32 ------------------------------------------------------------------------------------ */

static bool put(const char *dir, const char *name, const char *text, Error *e) {
    char path[600];
    return path_join(path, sizeof path, dir, name, e) && file_write_atomic(path, text, strlen(text), e);
}

/* A model folder of ViLT-B/32's sizes with a made-up vocabulary of 30,522 words and 3,129 answers. */
static bool write_b32(const char *dir, Error *e) {
    enum { WORDS = 30522, ANSWERS = 3129 };
    char *words = xcalloc(WORDS, 8), *at = words + sprintf(words, "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n");
    for (int n = 0; n < WORDS - 5; n++)
        at += sprintf(at, "w%c%c%c%c\n", 'a' + n % 26, 'a' + n / 26 % 26, 'a' + n / 676 % 26,
                      'a' + n / 17576 % 26);
    json_t *labels = json_object();
    for (int i = 0; i < ANSWERS; i++) {
        char key[16], answer[32];
        snprintf(key, sizeof key, "%d", i);
        snprintf(answer, sizeof answer, "answer %d", i);
        json_object_set_new(labels, key, json_string(answer));
    }
    json_t *c = json_pack("{s:[s], s:s, s:i, s:i, s:i, s:i, s:s, s:f, s:f, s:f, s:f, s:i, s:i, s:i, s:b, "
                          "s:i, s:i, s:i, s:i, s:i, s:i, s:o}",
                          "architectures", "ViltForQuestionAnswering", "model_type", "vilt", "hidden_size",
                          768, "intermediate_size", 3072, "num_hidden_layers", 12, "num_attention_heads", 12,
                          "hidden_act", "gelu", "hidden_dropout_prob", 0.0, "attention_probs_dropout_prob",
                          0.0, "initializer_range", 0.02, "layer_norm_eps", 1e-12, "image_size", 384,
                          "patch_size", 32, "num_channels", 3, "qkv_bias", 1, "max_image_length", -1,
                          "num_images", -1, "vocab_size", WORDS, "type_vocab_size", 2,
                          "modality_type_vocab_size", 2, "max_position_embeddings", 40, "id2label", labels);
    CHECK(c, "ViLT-B/32's configuration is no JSON");
    char *config = json_dumps(c, 0);
    const bool ok = put(dir, "vocab.txt", words, e) && put(dir, "config.json", config, e) &&
                    put(dir, "preprocessor_config.json",
                        "{\"size\": {\"shortest_edge\": 384}, \"size_divisor\": 32, \"resample\": 3, "
                        "\"image_mean\": [0.5, 0.5, 0.5], \"image_std\": [0.5, 0.5, 0.5]}",
                        e);
    free(config);
    json_decref(c);
    free(words);
    return ok;
}

static bool b32_row(const Config *cfg, Report *r, Error *e) {
    char dir[400];
    if (!bench_folder(dir, sizeof dir, e)) return false;
    const bool ok = write_b32(dir, e) && model_row(cfg, "ViLT-B/32", dir, 8, 40, 384, r, e);
    remove_tree(dir);
    return ok;
}

/* ---- the distillation step ------------------------------------------------------------------------ */

typedef struct Distil {
    Distiller d;
    Loader *loader;
    int64_t step;
    StepStats stats;
    int64_t programs;
} Distil;

static bool step_of_distiller(void *arg, bool watched, double part[PARTS], Error *e) {
    Distil *b = arg;
    Module *const module[] = {b->d.vqa.module, b->d.loc.module, b->d.teacher.vqa, b->d.loc.start};
    if (watched) watch_begin(b->d.run.dev, module, (bool[]){false, false, true, true}, 4);
    const double from = now_s();
    const Batch *batch = loader_next(b->loader, e);
    const double decoded = now_s();
    const bool ok = batch && step_run(&b->d, b->step++, batch, &b->stats, e);
    const double end = watched ? wait_and_look() : 0;
    b->programs += b->stats.programs;
    if (!watched) return ok;
    watch_end(module, 4);
    memset(part, 0, PARTS * sizeof *part);
    if (!watch.loss_at || !watch.optimizer_at)
        watch.loss_at = watch.optimizer_at = end; /* nothing was learnt */
    part[DECODE] = decoded - from;
    part[STUDENTS] = watch.forwards[0];
    part[TEACHER] = watch.forwards[1];
    part[PROGRAMS] = watch.loss_at - decoded - watch.forwards[0] - watch.forwards[1];
    part[BACKWARD] = watch.optimizer_at - watch.loss_at;
    part[OPTIMIZER] = end - watch.optimizer_at;
    return ok;
}

static bool distill_row(const Config *given, Report *r, Error *e) {
    static Distil b;
    static Config cfg;
    char dir[400] = "";
    const bool own = !*given->data.dir;
    cfg = *given;
    if (own) {
        if (!config_load(&cfg, "configs/demo.yaml", NULL, 0, e))
            return fail_in(
                e, "bench step distill runs in the repository, or with a configuration that names data.dir");
        cfg.run = given->run;
        cfg.bench = given->bench;
        ScenesConfig s;
        scenes_config_default(&s);
        s.domain = SCENE_HARD;
        s.images[SCENE_TRAIN] = SCENES;
        s.images[SCENE_VAL] = s.images[SCENE_TEST] = 0;
        s.questions_per_image = 8;
        s.steps_per_image = 0;
        if (!bench_folder(dir, sizeof dir, e)) return false;
        snprintf(cfg.data.dir, sizeof cfg.data.dir, "%s/scenes", dir);
        if (!scenes_write(cfg.data.dir, &s, e)) return false;
    }
    cfg.distill.reuse = 0;
    cfg.data.cache_mb = 0;
    b = (Distil){0};
    bool ok = distiller_open(&b.d, &cfg, e);
    LoaderConfig lc = {.seed = 1,
                       .batch = ok ? distiller_images(&cfg) : 1,
                       .shuffle = true,
                       .max_bad_percent = 100,
                       .batch_bytes = (size_t)256 << 20};
    ok = ok && (b.loader = loader_open(&b.d.by_image.group, &lc, e));
    if (ok) {
        Subject s = {.model = "distill",
                     .unit = "progr./s",
                     .examples = cfg.distill.programs,
                     .step = step_of_distiller,
                     .arg = &b,
                     .dev = b.d.run.dev,
                     .parameters =
                         params_count(&b.d.vqa.module->params) + params_count(&b.d.loc.module->params)};
        snprintf(s.shape, sizeof s.shape, "%d programs on %d images", cfg.distill.programs,
                 distiller_images(&cfg));
        ok = measure(&s, &cfg, r, e);
    }
    loader_close(b.loader);
    distiller_close(&b.d);
    if (*dir) remove_tree(dir);
    return ok;
}

/* ---- on request ----------------------------------------------------------------------------------- */

static bool step_once(void *arg, double *value, Error *e) {
    Model *b = arg;
    if (!model_step(b, e)) return false;
    *value = b->loss;
    return true;
}

static bool infer_once(void *arg, double *value, Error *e) {
    (void)e;
    Model *b = arg;
    Outputs out;
    model_forward(b, false, &out);
    *value = (double)to_host(&b->run.ctx, out.logits)[0];
    if (out.boxes) to_host(&b->run.ctx, out.boxes);
    return true;
}

/* Gradients that were never written may be one page of zeros, which is quick to read. */
static void write_gradients(ParamSet *ps) {
    static float some[1 << 16];
    uint64_t random = 3;
    for (int i = 0; i < COUNT_OF(some); i++) some[i] = next_share(&random) - 0.5f;
    for (int64_t at = 0; at < ps->total; at += COUNT_OF(some))
        ps->dev->upload(ps->dev, ps->grad + at, some,
                        (size_t)MIN(ps->total - at, COUNT_OF(some)) * sizeof *some);
}

static bool adamw_once(void *arg, double *value, Error *e) {
    (void)e;
    ParamSet *ps = &((Model *)arg)->module->params;
    const AdamSegment all = {0, ps->total, 1e-4f, 0.01f};
    float first;
    if (!ps->step) write_gradients(ps);
    ps->dev->ops->adamw(ps->dev->main, ps->value, ps->m, ps->v, ps->value16, ps->grad, &all, 1, 0.9f, 0.98f,
                        1e-8f, 1, ++ps->step);
    ps->dev->download(ps->dev, &first, ps->value, sizeof first);
    *value = (double)first;
    return true;
}

static json_t *info_of_model(void *arg) {
    Model *b = arg;
    return json_pack("{s:I, s:i, s:I}", "parameters", (json_int_t)params_count(&b->module->params), "threads",
                     b->run.dev->nthreads, "arena", (json_int_t)b->run.step.peak);
}

/* ---- the benchmark -------------------------------------------------------------------------------- */

/* The model that the configuration names, to be stepped at the given sizes where it names none. */
static const char *named_model(const Config *cfg, int *batch, int *text, int *side) {
    const bool loc = *cfg->model.loc != 0;
    *batch = loc ? 4 : 64;
    *text = loc ? 16 : 10;
    *side = loc ? 768 : 48;
    return loc ? cfg->model.loc : cfg->model.vqa;
}

static bool requests(const Config *cfg, Error *e) {
    static Model b;
    int batch, text, side;
    const char *folder = named_model(cfg, &batch, &text, &side);
    if (!*folder)
        return fail_as(e, FAIL_CONFIG,
                       "bench step requests: model.vqa and model.loc are empty, name a model folder");
    static const Request request[] = {{"step", step_once}, {"infer", infer_once}, {"adamw", adamw_once}};
    const bool ok = model_open(&b, cfg, folder, batch, text, side, e) &&
                    bench_serve(request, COUNT_OF(request), &b, info_of_model, e);
    model_close(&b);
    return ok;
}

static bool wanted(char *const *word, int nwords, const char *name) {
    for (int i = 0; i < nwords; i++)
        if (!strcmp(word[i], name)) return true;
    return !nwords;
}

static bool run(const Config *cfg, char *const *word, int nwords, Error *e) {
    static const char *const names[] = {"demo", "b32", "distill", "requests"};
    for (int i = 0; i < nwords; i++) {
        bool known = false;
        for (int k = 0; k < COUNT_OF(names); k++) known |= !strcmp(word[i], names[k]);
        if (!known)
            return fail_as(e, FAIL_USAGE,
                           "bench step: there is no step \"%s\"; there are demo, b32, distill, and requests",
                           word[i]);
    }
    if (nwords == 1 && !strcmp(word[0], "requests")) return requests(cfg, e);
    Run probe;
    Report r;
    if (!run_open(&probe, cfg, e)) return false;
    report_begin(&r, "step", cfg, probe.dev);
    const bool card = strcmp(probe.dev->name, "cpu") != 0;
    const Peak peak =
        card ? bench_card_peak(probe.dev, F32, cfg->bench.mb) : bench_peak(probe.dev->nthreads, 0.3);
    run_close(&probe);
    report_set(&r, "peak_gflop_per_s", json_real(peak.gflops));
    printf("peak measured in this run: %.1f GFLOP/s of %s\n\n%-12s %5s %10s %10s %18s %9s %6s %9s\n",
           peak.gflops, card ? "a large product, f32" : "multiply-adds", "step", "runs", "med_ms", "p99_ms",
           "", "GFLOP/s", "%peak", "RSS MB");
    bool ok = true;
    int batch, text, side;
    const char *folder = named_model(cfg, &batch, &text, &side);
    if (*folder && !*cfg->data.dir) {
        ok = model_row(cfg, *cfg->model.loc ? "model.loc" : "model.vqa", folder, batch, text, side, &r, e);
    } else {
        if (wanted(word, nwords, "demo"))
            ok = model_row(cfg, "demo's ViLT", "configs/models/tiny-vilt", 64, 10, 48, &r, e);
        if (ok && wanted(word, nwords, "b32")) ok = b32_row(cfg, &r, e);
        if (ok && wanted(word, nwords, "distill")) ok = distill_row(cfg, &r, e);
    }
    return report_end(&r, ok, e);
}

const Benchmark bench_step = {
    "step", "training steps of the demo's ViLT and ViLT-B/32, the demo's distillation step", false, run};
