/* test_blip.c -- BLIP against transformers: ranked and written answers, loss, every gradient, ten updates;
 * its folders. */
#include <math.h>
#include <unistd.h>

#include "engine/distill.h"
#include "modules/answer.h"
#include "tests/kernels/kernels.h"
#include "tests/modules/golden_model.h"

#define FOLDER "tests/golden/tiny-blip"

/* Scores of a list: those of the second round near the golden ones, the same answers left behind in the
 * first. */
static void compare_scores(ModelCase *g) {
    const float *want = case_f32(g, "logits"), *got = to_host(&g->c, g->out.logits);
    int ranked = 0;
    for (int64_t i = 0; i < g->n * g->m->nlabels; i++) {
        EXPECT((want[i] < -1e29f) == (got[i] < -1e29f), "score %" PRId64 " is %g, want %g", i, (double)got[i],
               (double)want[i]);
        if (want[i] < -1e29f) continue;
        EXPECT_NEAR((double)got[i], (double)want[i], 1e-5 * 60, "score %" PRId64, i);
        ranked++;
    }
    EXPECT(ranked == 6 * g->n && g->m->nlabels > 6, "%d answers of %d are ranked in full", ranked,
           g->m->nlabels);
}

DEVICE_TEST(blip_ranks) {
    ModelCase g;
    if (!golden_open(&g, FOLDER)) return;
    for (int tape = 0; tape < 2; tape++) {
        case_begin(&g, tape);
        case_forward(&g);
        compare_scores(&g);
    }
    case_close(&g);
}

/* What it writes of its own, all questions in one padded batch; the reference was asked one by one. */
TEST(blip_writes) {
    ModelCase g;
    if (!golden_open(&g, FOLDER)) return;
    case_begin(&g, false);
    case_forward(&g);
    const char **text = arena_alloc(&g.host, (size_t)g.n * sizeof *text);
    g.m->type->write(g.m, &g.c, &g.out, text, &g.host);
    for (int64_t i = 0; i < g.n; i++) {
        char name[32];
        snprintf(name, sizeof name, "written%" PRId64, i);
        const char *want = st_metadata(&g.st, name);
        EXPECT(want && !strcmp(text[i], want), "question %" PRId64 ": \"%s\", want \"%s\"", i, text[i],
               want ? want : "");
    }
    case_close(&g);
}

DEVICE_TEST(blip_gradients) { golden_check_gradients(FOLDER, 1e-4); }

/* Where nobody looks at the ranks the loss is the same to the last bit, in fewer passes of the decoder. */
TEST(blip_loss_alone) {
    ModelCase g;
    if (!golden_open(&g, FOLDER)) return;
    double loss[2];
    for (int alone = 0; alone < 2; alone++) {
        g.m->loss_only = alone;
        case_begin(&g, true);
        case_forward(&g);
        EXPECT((g.out.logits == NULL) == (alone == 1), "logits of forward %d", alone);
        loss[alone] = case_loss(&g);
    }
    EXPECT(loss[0] == loss[1], "%.9g with ranks, %.9g without", loss[0], loss[1]);
    case_close(&g);
}

DEVICE_TEST(blip_ten_updates) { golden_check_updates(FOLDER, 1e-3); }

/* ---- folders -------------------------------------------------------------------------------------- */

/* A copy of the golden folder without the files of `left_out`. */
static const char *copy_of(const char *name, const char *left_out) {
    static char folder[600];
    static const char *const files[] = {"config.json", "preprocessor_config.json", "vocab.txt",
                                        "answer_list.json", "model.safetensors"};
    Error e = {0};
    path_join(folder, sizeof folder, test_dir(), name, NULL);
    EXPECT(make_dirs(folder, &e), "%s", e.text);
    for (int k = 0; k < COUNT_OF(files); k++) {
        char from[700], to[700], *data;
        size_t n;
        if (strstr(left_out, files[k])) continue;
        path_join(from, sizeof from, FOLDER, files[k], NULL);
        path_join(to, sizeof to, folder, files[k], NULL);
        if (!file_read(from, &data, &n, 1 << 24, &e) || !file_write_atomic(to, data, n, &e))
            EXPECT(false, "%s", e.text);
        free(data);
    }
    return folder;
}

static void write_in(const char *folder, const char *name, const char *text) {
    char path[700];
    Error e = {0};
    path_join(path, sizeof path, folder, name, NULL);
    EXPECT(file_write_atomic(path, text, strlen(text), &e), "%s", e.text);
}

/* Without a list of answers it answers in its own words, and cannot teach. */
TEST(blip_without_list) {
    ModelCase g;
    if (!golden_open(&g, FOLDER)) return;
    Error e = {0};
    const char *folder = copy_of("blip-plain", "answer_list.json");
    EXPECT(!module_open_labelled(folder, device_cpu(0), F32, MODULE_FROZEN, &e) &&
               strstr(e.text, "answer_list.json") && e.status == FAIL_MODEL,
           "%s", e.text);
    Module *m = module_open_for("VQA", folder, device_cpu(0), F32, MODULE_FROZEN, &e);
    EXPECT(m && !m->nlabels, "%s", e.text);
    if (m) {
        ModuleAnswerer vqa;
        Answer answer[4];
        module_answerer(&vqa, m, 4);
        case_begin(&g, false);
        module_begin(m);
        vqa.base.answer(&vqa.base, &g.c, g.ask, 2, answer, &g.host);
        for (int i = 0; i < 2; i++) {
            const char *want = st_metadata(&g.st, i ? "written1" : "written0");
            EXPECT(answer[i].value.kind == VAL_STR && !strcmp(answer[i].value.str.s, want),
                   "\"%s\", want \"%s\"", answer[i].value.str.s, want);
        }
        module_close(m);
    }
    case_close(&g);
}

/* The original's preparation of questions: another first token, no punctuation. */
TEST(blip_question_start) {
    ModelCase g;
    if (!golden_open(&g, FOLDER)) return;
    Error e = {0};
    char *config, changed[4096];
    size_t n;
    const char *folder = copy_of("blip-enc", "");
    CHECK(file_read(FOLDER "/config.json", &config, &n, 1 << 16, &e), "%s", e.text);
    snprintf(changed, sizeof changed, "{\"question_start\": \"[ENC]\",%s", strchr(config, '{') + 1);
    write_in(folder, "config.json", changed);
    Module *m = module_open(folder, device_cpu(0), F32, MODULE_FROZEN, true, 0, &e);
    EXPECT(m, "%s", e.text);
    if (m) {
        case_begin(&g, false);
        case_forward(&g);
        Ask ask[2] = {g.ask[0], g.ask[0]};
        ask[0].query = "Is (the) ball: red";
        ask[1].query = "is the ball red";
        Outputs out;
        module_begin(m);
        module_forward(m, &g.c, ask, 2, &out);
        const float *as_cls = to_host(&g.c, g.out.logits), *as_enc = to_host(&g.c, out.logits);
        bool other = false;
        for (int j = 0; j < m->nlabels; j++) {
            EXPECT_NEAR((double)as_enc[j], (double)as_enc[m->nlabels + j], 1e-4,
                        "answer %d with and without punctuation", j);
            other |= as_enc[j] != as_cls[j];
        }
        EXPECT(other, "the first token makes no difference");
        module_close(m);
    }
    snprintf(changed, sizeof changed, "{\"question_start\": \"[SEP]\",%s", strchr(config, '{') + 1);
    write_in(folder, "config.json", changed);
    e = (Error){0};
    EXPECT(!module_open(folder, device_cpu(0), F32, MODULE_FROZEN, true, 0, &e) &&
               strstr(e.text, "question_start is \"[SEP]\""),
           "%s", e.text);
    char *size = strstr(strcpy(changed, config), "\"image_size\": 32");
    CHECK(size, "image_size in config.json");
    memcpy(strstr(size, "32"), "64", 2);
    write_in(folder, "config.json", changed);
    e = (Error){0};
    EXPECT(!module_open(folder, device_cpu(0), F32, MODULE_FROZEN, true, 0, &e) && strstr(e.text, "size.height is 32"),
           "%s", e.text);
    write_in(folder, "config.json", config);
    write_in(folder, "answer_list.json", "{\"yes\": 1}");
    EXPECT(!module_open(folder, device_cpu(0), F32, MODULE_FROZEN, true, 0, &e) && strstr(e.text, "not a list"),
           "%s", e.text);
    free(config);
    case_close(&g);
}

/* Old files hold the decoder's last layer twice, or only under its other name; what differs from the word
 * table is refused. */
TEST(blip_tied_weights) {
    static const char *const word = "text_decoder.bert.embeddings.word_embeddings.weight",
                             *const copy = "text_decoder.cls.predictions.decoder.weight";
    SafeTensors st;
    Error e = {0};
    CHECK(st_open(&st, FOLDER "/model.safetensors", &e), "%s", e.text);
    enum { TWICE, OTHER_NAME, DIFFERS, CASES };
    const char *folder = copy_of("blip-tied", "model.safetensors");
    char path[700];
    path_join(path, sizeof path, folder, "model.safetensors", NULL);
    for (int k = 0; k < CASES; k++) {
        StTensor *t = xcalloc((size_t)st.ntensors + 1, sizeof *t);
        memcpy(t, st.tensors, (size_t)st.ntensors * sizeof *t);
        StTensor *original = t + (st_find(&st, word) - st.tensors), *last = t + st.ntensors;
        *last = *original;
        last->name = copy;
        float *other = xcalloc(original->bytes, 1);
        if (k == DIFFERS) last->data = other;
        if (k == OTHER_NAME) original->name = copy;
        e = (Error){0};
        EXPECT(st_write(path, t, st.ntensors + (k != OTHER_NAME), NULL, 0, &e), "%s", e.text);
        Module *m = module_open(folder, device_cpu(0), F32, MODULE_FROZEN, true, 0, &e);
        EXPECT(!m == (k == DIFFERS) && (m || strstr(e.text, "differ")), "case %d: %s", k, e.text);
        if (m) {
            const Param *p = param_find(&m->params, word);
            EXPECT(!memcmp(p->t.data, st_find(&st, word)->data, st_find(&st, word)->bytes),
                   "case %d: other values", k);
        }
        module_close(m);
        free(other);
        free(t);
    }
    st_close(&st);
}

/* A folder of shards in half precision is saved as one file of f32, and says so: transformers would round
 * it otherwise. */
TEST(blip_saves_f32) {
    Error e = {0};
    char *config, changed[4096], index[64 << 10] = "{\"weight_map\": {", path[700], saved[600];
    size_t n;
    SafeTensors st;
    CHECK(file_read(FOLDER "/config.json", &config, &n, 1 << 16, &e) &&
              st_open(&st, FOLDER "/model.safetensors", &e),
          "%s", e.text);
    const char *folder = copy_of("blip-shards", "model.safetensors");
    char *type = strstr(config, "\"dtype\": \"float32\"");
    CHECK(type, "dtype in config.json");
    memcpy(strstr(type, "32"), "16", 2);
    snprintf(changed, sizeof changed, "%s", config);
    write_in(folder, "config.json", changed);
    for (int half = 0; half < 2; half++) {
        char file[32];
        snprintf(file, sizeof file, "model-%d.safetensors", half + 1);
        path_join(path, sizeof path, folder, file, NULL);
        const int from = half * st.ntensors / 2, to = (half + 1) * st.ntensors / 2;
        EXPECT(st_write(path, st.tensors + from, to - from, NULL, 0, &e), "%s", e.text);
        for (int i = from; i < to; i++)
            snprintf(index + strlen(index), sizeof index - strlen(index), "%s\"%s\": \"%s\"", i ? ", " : "",
                     st.tensors[i].name, file);
    }
    strcat(index, "}}");
    write_in(folder, "model.safetensors.index.json", index);
    Module *m = module_open(folder, device_cpu(0), F32, MODULE_FROZEN, true, 0, &e);
    path_join(saved, sizeof saved, test_dir(), "blip-saved", NULL);
    EXPECT(m && module_save(m, saved, &e), "%s", e.text);
    module_close(m);
    free(config);
    path_join(path, sizeof path, saved, "config.json", NULL);
    CHECK(file_read(path, &config, &n, 1 << 16, &e), "%s", e.text);
    EXPECT(strstr(config, "float32") && !strstr(config, "float16") && strstr(config, "\"bos_token_id\": 60"),
           "%s", config);
    path_join(path, sizeof path, saved, "model.safetensors.index.json", NULL);
    EXPECT(access(path, F_OK), "the index is copied");
    m = module_open(saved, device_cpu(0), F32, MODULE_FROZEN, true, 0, &e);
    EXPECT(m, "%s", e.text);
    for (int i = 0; m && i < m->params.n; i++) {
        const Param *p = m->params.param[i];
        EXPECT(!memcmp(p->t.data, st_find(&st, p->name)->data, (size_t)p->n * 4), "%s has other values",
               p->name);
    }
    module_close(m);
    st_close(&st);
    free(config);
}

/* ---- distillation --------------------------------------------------------------------------------- */

/* A lesson is a distribution over answers: with soft targets alone its loss is the reference's; hard ones
 * see the likeliest. */
TEST(blip_learns_lessons) {
    ModelCase g;
    if (!golden_open(&g, FOLDER)) return;
    Config cfg = {0};
    Lesson lesson[4] = {0};
    const Lesson *list[4];
    CHECK(g.n == 4, "%" PRId64 " asks", g.n);
    case_begin(&g, true);
    case_forward(&g);
    float *target = (float *)case_f32(&g, "target"), loss = *case_f32(&g, "loss");
    for (int i = 0; i < 4; i++) {
        lesson[i].p = target + (int64_t)i * g.m->nlabels;
        list[i] = &lesson[i];
    }
    cfg.distill.soft = 1;
    EXPECT_NEAR(distill_vqa_loss(&g.c, &g.out, list, g.m, 4, &cfg), (double)loss, 1e-4 * (double)loss,
                "soft targets");
    tape_backward(&g.c);
    golden_compare_grads(&g, 1e-4);

    cfg.distill.soft = cfg.distill.hard = 0.5;
    list[1] = NULL; /* nobody taught it */
    case_begin(&g, false);
    case_forward(&g);
    target = (float *)case_f32(&g, "target");
    float *mixed = ARENA_NEW(&g.host, float, 4 * g.m->nlabels), weight[4] = {0.25f, 0, 0.25f, 0.25f};
    for (int i = 0; i < 4; i++) {
        lesson[i].p = target + (int64_t)i * g.m->nlabels;
        for (int v = 0; v < g.m->nlabels; v++)
            mixed[i * g.m->nlabels + v] =
                0.5f * lesson[i].p[v] + 0.5f * (v == argmax(lesson[i].p, g.m->nlabels));
    }
    const double want = g.m->type->answer_loss(g.m, &g.c, &g.out, mixed, weight);
    EXPECT_NEAR(distill_vqa_loss(&g.c, &g.out, list, g.m, 4, &cfg), want, 1e-5 * want,
                "soft and hard targets");
    case_close(&g);
}
