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
/* FOLDER's logits, and boxes where the golden file has them, with and without a tape. */
void golden_check_outputs(const char *folder, double rel);
/* A step on the tape: the loss within `rel` of the golden one, then every gradient. */
void golden_check_gradients(const char *folder, double rel);
/* Ten updates of AdamW as in make_models.py; each loss within `rel` of the golden one. */
void golden_check_updates(const char *folder, double rel);

/* FOLDER's model in bf16 on the device under test beside itself in f32 on the CPU: outputs, and gradients of the outputs times
 * fixed numbers, each as the norm of the difference. PyTorch's distance is in the golden file. Both round alike but add in
 * other orders, so errors are of one size and not equal: at most twice PyTorch's. */
void golden_check_bf16(const char *folder);
/* The ten updates in bf16: each loss off by at most twice the furthest of PyTorch's under autocast. AdamW goes by the signs of
 * gradients, and OWL-ViT's loss by a matching: what a rounding turns has its own way from there, in either. */
void golden_train_bf16(const char *folder);
