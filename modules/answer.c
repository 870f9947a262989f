/* answer.c -- modules as answerers. See answer.h. */
#include "modules/answer.h"

#include <math.h>

#include "modules/steps.h"

int argmax(const float *x, int64_t n) {
    int best = 0;
    for (int64_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = (int)i;
    return best;
}

float sigmoid(float x) { return 1 / (1 + expf(-x)); }

bool module_multi_label(const Module *m) {
    if (m->type->answer_loss) return false; /* it ranks: one of them */
    return strcmp(config_string(m, "problem_type", m->images == 1 ? "multi_label_classification" : "single_label_classification"),
                  "single_label_classification") != 0;
}

void answer_probs(float *p, const float *logits, int64_t n, float T, bool multi_label) {
    if (multi_label) {
        for (int64_t i = 0; i < n; i++) p[i] = sigmoid(logits[i] / T);
        return;
    }
    float top = logits[argmax(logits, n)];
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)(p[i] = expf((logits[i] - top) / T));
    for (int64_t i = 0; i < n; i++) p[i] = (float)((double)p[i] / sum);
}

void answer_texts(Module *m, Ctx *c, const Outputs *out, const char **text, Arena *a) {
    if (!m->nlabels) {
        m->type->write(m, c, out, text, a);
        return;
    }
    const float *logits = to_host(c, out->logits);
    for (int64_t i = 0; i < out->n; i++) text[i] = m->label[argmax(logits + i * m->nlabels, m->nlabels)];
}

static void answer_vqa(Answerer *self, Ctx *c, const Ask *ask, int64_t n, Answer *answer, Arena *a) {
    Module *m = ((ModuleAnswerer *)self)->module;
    Outputs *out = ARENA_NEW(c->host, Outputs, 1);
    const char **text = arena_alloc(c->host, (size_t)n * sizeof *text);
    module_forward(m, c, ask, n, out);
    answer_texts(m, c, out, text, a);
    for (int64_t i = 0; i < n; i++) answer[i] = (Answer){.value = value_str(text[i], (int)strlen(text[i])), .out = out, .row = i};
}

static void answer_loc(Answerer *self, Ctx *c, const Ask *ask, int64_t n, Answer *answer, Arena *a) {
    ModuleAnswerer *l = (ModuleAnswerer *)self;
    Outputs *out = ARENA_NEW(c->host, Outputs, 1);
    module_forward(l->module, c, ask, n, out);
    int most = MIN((int)out->logits->shape[1], BOXES_MAX);
    int32_t *size = arena_alloc(c->host, (size_t)n * 2 * sizeof *size);
    for (int64_t i = 0; i < n; i++) {
        size[2 * i] = rect_w(ask[i].rect);
        size[2 * i + 1] = rect_h(ask[i].rect);
    }
    const Detection *found = op_detect(c, out->logits, out->boxes, size, l->threshold, LOC_TAU, l->strict, most);
    for (int64_t i = 0; i < n; i++, found += most) {
        Boxes *b = boxes_new(a, most, ask[i].rect);
        b->category = (Str){ask[i].query, (int)strlen(ask[i].query)};
        for (b->n = 0; b->n < most && found[b->n].query >= 0; b->n++)
            b->box[b->n] = (Box){found[b->n].rect, found[b->n].score, found[b->n].query};
        answer[i] = (Answer){.value = value_boxes(b), .out = out, .row = i};
    }
}

/* The cosine of each rectangle and text. */
static void answer_clip(Answerer *self, Ctx *c, const Ask *ask, int64_t n, Answer *answer, Arena *a) {
    (void)a;
    Outputs *out = ARENA_NEW(c->host, Outputs, 1);
    module_forward(((ModuleAnswerer *)self)->module, c, ask, n, out);
    const float *cosine = to_host(c, out->logits);
    for (int64_t i = 0; i < n; i++) answer[i] = (Answer){.value = value_float((double)cosine[i]), .out = out, .row = i};
}

void module_answerer(ModuleAnswerer *a, Module *m, int64_t max_batch) {
    const char *step = m->type->step;
    *a = (ModuleAnswerer){{step, max_batch, !strcmp(step, "VQA") ? answer_vqa : !strcmp(step, "LOC") ? answer_loc : answer_clip}, m, LOC_THRESHOLD, false};
}

Module *module_open_for(const char *step, const char *folder, Device *dev, DType precision, ModuleUse use,
                        Error *e) {
    Module *m = module_open(folder, dev, precision, use, true, 0, e);
    if (m && strcmp(m->type->step, step)) {
        fail_as(e, FAIL_MODEL, "%s: a %s model answers %s steps, a model for %s is wanted", folder,
                m->type->name, m->type->step, step);
        module_close(m);
        return NULL;
    }
    if (m && m->images != 1) {
        fail_as(e, FAIL_MODEL, "%s: it answers questions about %d pictures, the steps of a program are about one", folder, m->images);
        module_close(m);
        return NULL;
    }
    return m;
}

Module *module_open_end_to_end(const char *folder, Device *dev, DType precision, Error *e) {
    Module *m = module_open(folder, dev, precision, MODULE_FROZEN, true, 0, e);
    if (m && strcmp(m->type->step, "VQA")) {
        fail_as(e, FAIL_MODEL, "%s: a %s model answers %s steps, not the questions of a task", folder, m->type->name, m->type->step);
        module_close(m);
        return NULL;
    }
    return m;
}

Module *module_open_labelled(const char *folder, Device *dev, DType precision, ModuleUse use, Error *e) {
    Module *m = module_open_for("VQA", folder, dev, precision, use, e);
    if (m && !m->nlabels) {
        fail_as(e, FAIL_MODEL, "%s: a %s model without answer_list.json writes its answers and has no probabilities of them; put the list (JSON, strings) there", folder,
                m->type->name);
        module_close(m);
        return NULL;
    }
    return m;
}
