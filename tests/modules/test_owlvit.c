/* test_owlvit.c -- OWL-ViT against transformers: outputs, loss, every gradient, ten updates; its towers run once. */
#include <math.h>
#include <unistd.h>

#include "modules/detect.h"
#include "tests/kernels/kernels.h"
#include "tests/modules/golden_model.h"

#define FOLDER "tests/golden/tiny-owlvit"

DEVICE_TEST(owlvit_outputs) { golden_check_outputs(FOLDER, 1e-5); }

DEVICE_TEST(owlvit_gradients) { golden_check_gradients(FOLDER, 1e-4); }

DEVICE_TEST(owlvit_bf16) { golden_check_bf16(FOLDER); }
TEST(owlvit_bf16_ten_updates) { golden_train_bf16(FOLDER); }

DEVICE_TEST(owlvit_ten_updates) { golden_check_updates(FOLDER, 1e-3); }

/* The asks in three forwards of one update: each picture and each text runs once, and the joined outputs are those of one
 * forward, gradients too. */
TEST(owlvit_towers_once) {
    ModelCase g;
    if (!golden_open(&g, FOLDER)) return;
    case_begin(&g, true);
    Outputs out;
    module_forward(g.m, &g.c, g.ask, 1, &out);
    EXPECT(g.m->image_rows == 1 && g.m->text_rows == 1, "%" PRId64 " images, %" PRId64 " texts", g.m->image_rows, g.m->text_rows);
    module_forward(g.m, &g.c, g.ask + 1, 2, &out); /* a known picture with a new text, a new picture with a known text */
    EXPECT(g.m->image_rows == 2 && g.m->text_rows == 2, "%" PRId64 " images, %" PRId64 " texts", g.m->image_rows, g.m->text_rows);
    case_forward(&g);
    EXPECT(g.m->image_rows == 3 && g.m->text_rows == 3, "%" PRId64 " images, %" PRId64 " texts", g.m->image_rows, g.m->text_rows);
    EXPECT(g.m->asks == 1 + 2 + g.n, "%" PRId64 " asks", g.m->asks);
    golden_compare(&g, g.out.logits, "logits", 1e-5);
    golden_compare(&g, g.out.boxes, "boxes", 1e-5);
    case_loss(&g);
    tape_backward(&g.c);
    golden_compare_grads(&g, 1e-4);
    case_begin(&g, false); /* a new update: everything runs again */
    module_forward(g.m, &g.c, g.ask, g.n, &out);
    EXPECT(g.m->image_rows == 6 && g.m->text_rows == 6, "%" PRId64 " images, %" PRId64 " texts", g.m->image_rows, g.m->text_rows);
    case_close(&g);
}

/* Pictures of noise, asked for two things. Freed with free(ask[0].image.rgb) and free(ask). */
static Ask *noise_asks(int n) {
    enum { SIDE = 8, ROW = 3 * SIDE * SIDE };
    uint8_t *pixels = xcalloc((size_t)n, ROW);
    Ask *ask = xcalloc((size_t)n, sizeof *ask);
    for (int k = 0; k < n * ROW; k++) pixels[k] = (uint8_t)hash_bytes(&k, sizeof k, 1);
    for (int i = 0; i < n; i++)
        ask[i] = (Ask){{pixels + (size_t)i * ROW, SIDE, SIDE}, (uint64_t)i, {0, 0, SIDE, SIDE}, i % 2 ? "red ball" : "box"};
    return ask;
}

/* Without a tape a large wave runs in chunks that share memory: the same values, and less memory than one piece. */
TEST(owlvit_chunks) {
    ModelCase g;
    if (!golden_open(&g, FOLDER)) return;
    enum { N = 5000 };
    Ask *ask = noise_asks(N);
    Arena step, host;
    arena_open(&step, "step", g.c.dev, (size_t)2 << 30);
    arena_open(&host, "host", NULL, (size_t)256 << 20);
    Tape tape = {0};
    Ctx c = {.dev = g.c.dev, .step = &step, .host = &host};
    Outputs in_chunks, at_once;
    module_begin(g.m);
    module_forward(g.m, &c, ask, N, &in_chunks);
    size_t chunked = step.used, peak = step.peak;
    c.tape = &tape;
    module_begin(g.m);
    module_forward(g.m, &c, ask, N, &at_once);
    const float *a = to_host(&c, in_chunks.logits), *b = to_host(&c, at_once.logits);
    const float *ab = to_host(&c, in_chunks.boxes), *bb = to_host(&c, at_once.boxes);
    int64_t P = last_dim(in_chunks.logits);
    for (int64_t i = 0; i < N * P; i++) EXPECT_NEAR((double)a[i], (double)b[i], 1e-4, "logit %" PRId64, i);
    for (int64_t i = 0; i < 4 * N * P; i++) EXPECT_NEAR((double)ab[i], (double)bb[i], 1e-5, "box value %" PRId64, i);
    EXPECT(peak * 3 / 2 < step.used - chunked, "%zu bytes in chunks, %zu at once", peak, step.used - chunked);
    arena_close(&step);
    arena_close(&host);
    free((void *)ask[0].image.rgb);
    free(ask);
    case_close(&g);
}

/* A fresh network starts from the prior that a patch is the object, 0.01: logits around -4.6, none sure. */
TEST(owlvit_fresh_prior) {
    Error e = {0};
    Module *m = module_open("configs/models/tiny-owlvit", device_cpu(0), F32, MODULE_FROZEN, false, 7, &e);
    EXPECT(m, "%s", e.text);
    if (!m) return;
    enum { N = 6 };
    Ask *ask = noise_asks(N);
    Arena step, host;
    arena_open(&step, "step", m->params.dev, (size_t)256 << 20);
    arena_open(&host, "host", NULL, (size_t)64 << 20);
    Ctx c = {.dev = m->params.dev, .step = &step, .host = &host};
    Outputs out;
    module_begin(m);
    module_forward(m, &c, ask, N, &out);
    const float *x = to_host(&c, out.logits);
    double top = -INFINITY, sum = 0, n = (double)numel(out.logits);
    for (int64_t i = 0; i < numel(out.logits); i++) {
        top = fmax(top, (double)x[i]);
        sum += (double)x[i];
    }
    EXPECT_NEAR(sum / n, log(0.01 / 0.99), 2.5, "mean logit"); /* 10 times a mean cosine, std 1/sqrt(64), of two phrases */
    EXPECT(top < 1, "a fresh model is sure of an object: logit %g", top);
    arena_close(&step);
    arena_close(&host);
    free((void *)ask[0].image.rgb);
    free(ask);
    module_close(m);
}

/* What is wrong with a folder is said with file, key and value. */
TEST(owlvit_bad_config) {
    static const struct { const char *from, *to, *want; } cases[] = {
        {"\"hidden_size\": 24", "\"hidden_size\": 25", "text_config.hidden_size 25"},
        {"\"projection_dim\": 24", "\"projection_dim\": 32", "projection_dim is 32"},
        {"\"patch_size\": 8", "\"patch_size\": 7", "not a multiple of patch_size 7"},
        {"\"image_size\": 32", "\"image_size\": 64", "size.height is 32"},
        {"\"image_size\": 32", "\"image_size\": \"big\"", "vision_config.image_size is not an integer"},
        {"\"vocab_size\": 542", "\"vocab_size\": 541", "ids up to 541"},
        {"\"num_hidden_layers\": 2", "\"num_hidden_layers\": -1", "num_hidden_layers is -1"},
        {"\"num_attention_heads\": 2", "\"num_attention_heads\": 0", "num_attention_heads is 0"},
        {"quick_gelu", "relu", "hidden_act is \"relu\""},
    };
    static const char *const copied[] = {"preprocessor_config.json", "vocab.json", "merges.txt"};
    char folder[600], from[700], to[700], *text, *data;
    size_t size, n;
    Error e = {0};
    path_join(folder, sizeof folder, test_dir(), "bad-owlvit", NULL);
    EXPECT(make_dirs(folder, &e), "%s", e.text);
    for (int k = 0; k < COUNT_OF(copied); k++) {
        path_join(from, sizeof from, FOLDER, copied[k], NULL);
        path_join(to, sizeof to, folder, copied[k], NULL);
        if (!file_read(from, &data, &n, 1 << 20, &e) || !file_write_atomic(to, data, n, &e)) EXPECT(false, "%s", e.text);
        free(data);
    }
    if (!file_read(FOLDER "/config.json", &text, &size, 1 << 20, &e)) {
        EXPECT(false, "%s", e.text);
        return;
    }
    path_join(to, sizeof to, folder, "config.json", NULL);
    for (int k = 0; k < COUNT_OF(cases); k++) {
        char changed[8192];
        const char *at = strstr(text, cases[k].from);
        CHECK(at, "%s in config.json", cases[k].from);
        snprintf(changed, sizeof changed, "%.*s%s%s", (int)(at - text), text, cases[k].to, at + strlen(cases[k].from));
        EXPECT(file_write_atomic(to, changed, strlen(changed), &e), "%s", e.text);
        e = (Error){0};
        Module *m = module_open(folder, device_cpu(0), F32, MODULE_FROZEN, false, 1, &e);
        EXPECT(!m, "%s was accepted", cases[k].to);
        EXPECT(m || (strstr(e.text, cases[k].want) && strstr(e.text, "bad-owlvit") && e.status == FAIL_MODEL), "\"%s\" does not say \"%s\"", e.text, cases[k].want);
        module_close(m);
    }
    free(text);
}
