/* golden_model.h -- a tiny model of tests/golden beside what transformers made of it: see make_models.py.
 *
 * Outputs, loss, every gradient, and the losses of ten updates.
 */
#pragma once
#include "engine/optim.h"
#include "tests/modules/model_case.h"
#include "tests/test.h"

/* On the device of the DEVICE_TEST that calls, else the CPU: opens FOLDER's model and its golden.safetensors; false when the
 * test has failed already. Closed with case_close. */
bool golden_open(ModelCase *g, const char *folder);
/* x within rel times its largest value of the golden tensor. */
void golden_compare(ModelCase *g, const Tensor *x, const char *name, double rel);
/* Every parameter's gradient; what has none in the golden file must be 0 here and never trained. */
void golden_compare_grads(ModelCase *g, double rel);
/* A fresh step on the tape: the loss within `rel` of the golden one, then every gradient. */
void golden_gradients(ModelCase *g, double rel);
/* Ten updates of AdamW as in make_models.py; each loss within `rel` of the golden one. */
void golden_train(ModelCase *g, double rel);
