/* test_rates.c -- frozen parts, factors by name, layer-wise decay. */
#include "engine/rates.h"

#include <math.h>

#include "engine/optim.h"
#include "modules/module.h"
#include "tests/test.h"

/* Names of three published models, and the factor that decay 0.5 gives each by hand. */
static const struct {
    const char *name;
    double factor;
} rows[] = {
    {"vilt.embeddings.text_embeddings.word_embeddings.weight", 0.125}, /* 2 blocks: 0.5^3 */
    {"vilt.embeddings.cls_token", 0.125},
    {"vilt.encoder.layer.0.intermediate.dense.weight", 0.25},
    {"vilt.encoder.layer.1.output.dense.bias", 0.5},
    {"vilt.layernorm.weight", 1},
    {"classifier.3.weight", 1},
    {"owlvit.vision_model.embeddings.patch_embedding.weight", 0.0625}, /* 3 blocks */
    {"owlvit.vision_model.pre_layernorm.weight", 0.0625},
    {"owlvit.vision_model.encoder.layers.2.mlp.fc1.weight", 0.5},
    {"owlvit.text_model.embeddings.token_embedding.weight", 0.25}, /* 1 block, of its own tower */
    {"owlvit.text_model.encoder.layers.0.mlp.fc1.weight", 0.5},
    {"class_head.logit_shift.weight", 1},
};

typedef struct Set {
    Arena host;
    ParamSet ps;
    Config cfg;
} Set;

static void set_open(Set *s) {
    arena_open(&s->host, "params", NULL, 1 << 20);
    params_open(&s->ps, &s->host);
    for (int i = 0; i < COUNT_OF(rows); i++)
        param_new(&s->ps, PARAM_WEIGHT, 2, (int64_t[]){2, 3}, "%s", rows[i].name);
    params_alloc(&s->ps, device_cpu(1), F32, true);
    config_defaults(&s->cfg);
}

static void set_close(Set *s) {
    params_close(&s->ps);
    arena_close(&s->host);
}

static bool apply(Set *s, Error *e) { return rates_apply((ParamSet *[]){&s->ps}, 1, &s->cfg, e); }

TEST(rates_defaults) {
    Set s;
    Error e = {0};
    set_open(&s);
    EXPECT(apply(&s, &e), "%s", e.text);
    for (int i = 0; i < s.ps.n; i++)
        EXPECT(s.ps.param[i]->lr_scale == 1 && s.ps.param[i]->t.needs_grad, "%s learns otherwise",
               s.ps.param[i]->name);
    set_close(&s);
}

TEST(rates_layer_decay) {
    Set s;
    Error e = {0};
    set_open(&s);
    s.cfg.train.layer_decay = 0.5;
    EXPECT(apply(&s, &e), "%s", e.text);
    for (int i = 0; i < s.ps.n; i++)
        EXPECT_NEAR((double)s.ps.param[i]->lr_scale, rows[i].factor, 1e-7, "%s", rows[i].name);
    set_close(&s);
}

TEST(rates_by_name) {
    Set s;
    Error e = {0};
    set_open(&s);
    snprintf(s.cfg.train.freeze, CONFIG_TEXT, "owlvit.text_model vilt.embeddings.cls_token");
    snprintf(s.cfg.train.lr_scale, CONFIG_TEXT, "classifier=10, vilt.encoder.layer.0=0.5");
    EXPECT(apply(&s, &e), "%s", e.text);
    for (int i = 0; i < s.ps.n; i++) {
        const Param *p = s.ps.param[i];
        const double want = i == 1 || i == 9 || i == 10 ? 0 : i == 5 ? 10 : i == 2 ? 0.5 : 1;
        EXPECT_NEAR((double)p->lr_scale, want, 1e-7, "%s", p->name);
        EXPECT(p->t.needs_grad == (want > 0), "%s: needs_grad %d", p->name, p->t.needs_grad);
    }
    set_close(&s);
}

TEST(rates_errors) {
    static const struct {
        const char *freeze, *scale, *want;
    } bad[] = {
        {"owlvit.txt_model", "",
         "train.freeze: no parameter's name begins with \"owlvit.txt_model\"; "
         "the nearest is owlvit.text_model."},
        {"", "classifier", "train.lr_scale: \"classifier\" is not NAME=FACTOR"},
        {"", "classifier=x", "is not NAME=FACTOR"},
        {"", "classifier=-1", "is not NAME=FACTOR"},
        {"", "classifier=inf", "is not NAME=FACTOR"},
        {"", "clasifier=2", "begins with \"clasifier\"; the nearest is classifier.3.weight"},
    };
    for (int i = 0; i < COUNT_OF(bad); i++) {
        Set s;
        Error e = {0};
        set_open(&s);
        snprintf(s.cfg.train.freeze, CONFIG_TEXT, "%s", bad[i].freeze);
        snprintf(s.cfg.train.lr_scale, CONFIG_TEXT, "%s", bad[i].scale);
        EXPECT(!apply(&s, &e) && e.status == FAIL_CONFIG && strstr(e.text, bad[i].want), "%s", e.text);
        set_close(&s);
    }
}

/* One update of the tiny ViLT: frozen parameters keep every bit, the others get the gradient that they get without. */
TEST(rates_frozen_training) {
    const char *freeze[] = {"", "vilt.embeddings vilt.encoder.layer.0"};
    float *grad[2] = {0};
    int64_t nodes[2] = {0};
    for (int k = 0; k < 2; k++) {
        Error e = {0};
        Config cfg;
        config_defaults(&cfg);
        snprintf(cfg.train.freeze, CONFIG_TEXT, "%s", freeze[k]);
        Device *dev = device_cpu(2);
        Module *m = module_open("configs/models/tiny-vilt", dev, F32, MODULE_TRAINED, false, 3, &e);
        EXPECT(m && rates_apply((ParamSet *[]){&m->params}, 1, &cfg, &e), "%s", e.text);
        if (!m) return;
        Arena step, host;
        arena_open(&step, "step", dev, 64 << 20);
        arena_open(&host, "host", NULL, 8 << 20);
        Tape tape = {0};
        Ctx c = {.dev = dev, .step = &step, .host = &host, .tape = &tape};
        uint8_t rgb[40 * 30 * 3];
        for (int i = 0; i < COUNT_OF(rgb); i++) rgb[i] = (uint8_t)(i * 37);
        const Ask ask = {.image = {rgb, 40, 30}, .image_id = 1, .rect = {0, 0, 40, 30}, .query = "is it red"};
        Outputs out;
        module_begin(m);
        module_forward(m, &c, &ask, 1, &out);
        const int32_t label = 1;
        const float weight = 1;
        op_ce_loss(&c, out.logits, &label, &weight, 0);
        nodes[k] = tape.nodes;
        tape_backward(&c);
        ParamSet *ps = &m->params;
        grad[k] = xcalloc((size_t)ps->total, sizeof(float));
        memcpy(grad[k], ps->grad, (size_t)ps->total * sizeof(float));
        float *before = xcalloc((size_t)ps->total, sizeof(float));
        memcpy(before, ps->value, (size_t)ps->total * sizeof(float));
        const OptimConfig oc = {.lr = 0.01f,
                                .weight_decay = 0.1f,
                                .beta1 = 0.9f,
                                .beta2 = 0.98f,
                                .eps = 1e-8f,
                                .schedule = SCHEDULE_CONSTANT};
        double norm;
        EXPECT(optim_step(ps, &oc, 0, &norm, &e), "%s", e.text);
        for (int i = 0; i < ps->n; i++) {
            const Param *p = ps->param[i];
            const bool frozen = k && (!strncmp(p->name, "vilt.embeddings", 15) ||
                                      !strncmp(p->name, "vilt.encoder.layer.0.", 21));
            const size_t bytes = (size_t)p->n * sizeof(float);
            EXPECT(!frozen || !memcmp(before + p->at, ps->value + p->at, bytes), "%s is frozen and moved",
                   p->name);
            if (!k) continue;
            double sum = 0;
            for (int64_t j = 0; j < p->n; j++) sum += fabs((double)grad[1][p->at + j]);
            if (frozen)
                EXPECT(sum == 0, "%s is frozen and has a gradient", p->name);
            else
                EXPECT(!memcmp(grad[0] + p->at, grad[1] + p->at, bytes), "%s: another gradient", p->name);
        }
        free(before);
        arena_close(&step);
        arena_close(&host);
        module_close(m);
    }
    EXPECT(nodes[1] < nodes[0], "%" PRId64 " tape nodes with frozen parts, %" PRId64 " without", nodes[1],
           nodes[0]);
    free(grad[0]);
    free(grad[1]);
}
