/* golden_model.h -- a tiny model of tests/golden beside what transformers made of it: see make_models.py.
 *
 * Whole models meet the reference here: pixels and text in; outputs, loss, every gradient and ten updates out.
 */
#pragma once
#include "engine/optim.h"
#include "modules/module.h"
#include "tests/test.h"

enum { GOLDEN_MAX_ASKS = 8 };

typedef struct GoldenModel {
    Module *m;
    SafeTensors st;
    Arena step, host;
    Tape tape;
    Ctx c;
    Ask ask[GOLDEN_MAX_ASKS];
    int64_t n;
} GoldenModel;

/* On the device of the DEVICE_TEST that calls, else the CPU: opens FOLDER's model for training and its golden.safetensors; false when the test has failed already. */
bool golden_open(GoldenModel *g, const char *folder);
void golden_close(GoldenModel *g);
/* A fresh step: arenas reset, tower outputs forgotten; with or without a tape. */
void golden_begin(GoldenModel *g, bool tape);
/* A golden tensor as f32 (in the host arena; take it before golden_begin's next); dies when it is missing. */
const float *golden_f32(GoldenModel *g, const char *name);
/* x within rel times its largest value of the golden tensor. */
void golden_compare(GoldenModel *g, const Tensor *x, const char *name, double rel);
/* Every parameter's gradient; `unused` have none in the golden file and must be 0. */
void golden_compare_grads(GoldenModel *g, double rel);
/* Forward and loss on the tape; returns the loss. */
typedef double GoldenLoss(GoldenModel *g);
/* Ten updates of AdamW as in make_models.py; each loss within `rel` of the golden one. */
void golden_train(GoldenModel *g, GoldenLoss *loss, double rel);
