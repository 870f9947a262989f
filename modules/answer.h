/* answer.h -- modules as answerers of program steps: logits become answers, boxes become LOC's lists. */
#pragma once
#include "engine/sched.h"

/* A network that answers its step. `keep` counts on every Outputs staying valid until the step arena is reset: that is how
 * distillation finds the raw output behind an answer. */
typedef struct ModuleAnswerer {
    Answerer base;
    Module *module;
    float threshold; /* LOC: scores must be above it */
    bool strict;     /* LOC: dialect of the boxes */
} ModuleAnswerer;

void module_answerer(ModuleAnswerer *a, Module *m, int64_t max_batch);

/* Opens a model folder for a program step: fails when it answers another one. */
Module *module_open_for(const char *step, const char *folder, Device *dev, DType precision, ModuleUse use, Error *e);

/* The same for VQA where answers are learnt or told by their probabilities: fails when the folder has no list of answers. */
Module *module_open_labelled(const char *folder, Device *dev, DType precision, ModuleUse use, Error *e);

/* A frozen model that is asked a task's own questions, about one picture or two. */
Module *module_open_end_to_end(const char *folder, Device *dev, DType precision, Error *e);

/* What a VQA module answers, out->n strings: its own labels, or written into `a`. */
void answer_texts(Module *m, Ctx *c, const Outputs *out, const char **text, Arena *a);

/* Index of the largest of n logits (the first of equals; NaN is never largest). */
int argmax(const float *x, int64_t n);
float sigmoid(float x);
/* p = softmax(x / T) or, for a multi-label head, sigmoid(x / T). */
void answer_probs(float *p, const float *logits, int64_t n, float T, bool multi_label);
/* Whether the module's head is multi-label (independent sigmoids, ViLT's own) or one softmax. */
bool module_multi_label(const Module *m);
