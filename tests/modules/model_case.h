/* model_case.h -- a model folder with asks, targets and a loss from a file that the reference wrote.
 *
 * Whole models meet the reference here: pixels and text in; outputs, loss and gradients out. The tests compare tiny models with
 * golden values (golden_model.h); tests/parity does the same at real sizes, with the reference at hand.
 *
 * The file holds image0, image1, ... (h, w, 3) u8, ask.image and ask.rect (asks), in the metadata ask.text0, ...; and the
 * targets of its loss, which case_loss names. Second pictures: pair.image, pair.rect.
 */
#pragma once
#include "modules/module.h"

typedef struct ModelCase {
    Module *m;
    SafeTensors st;
    Arena step, host;
    Tape tape;
    Ctx c;
    Ask *ask;
    int64_t n;
    Outputs out; /* of the last case_forward */
} ModelCase;

/* Opens FOLDER for training on `dev`, to compute in `precision`, and the file; step_bytes: room for one update. */
bool case_open(ModelCase *k, const char *folder, const char *file, Device *dev, DType precision, size_t step_bytes, Error *e);
void case_close(ModelCase *k);
/* A fresh step: arenas reset, tower outputs forgotten; with or without a tape. */
void case_begin(ModelCase *k, bool tape);
void case_forward(ModelCase *k);
/* A tensor of the file; dies when it is missing. As f32, in the host arena: taken before case_begin's next. */
const StTensor *case_tensor(const ModelCase *k, const char *name);
const float *case_f32(ModelCase *k, const char *name);
/* A number of the file's metadata; dies when it is missing. */
float case_number(const ModelCase *k, const char *name);

/* The loss of the last case_forward, put on the tape when there is one; the mean over asks.
 *   VQA   target (asks, V): binary cross entropy summed over answers, at the metadata's temperature (1 when there is none)
 *         label (asks) of one whose answers exclude each other (NLVR2): cross entropy
 *         of a module that writes its answers, BLIP: target (asks, nlabels) are the answers' weights
 *   CLIP  the asks are images x texts; text_of (images) with image_weight, image_of (texts) with text_weight, either may be missing
 *   LOC   target.count (asks), target.box (sum of counts, 4), target.score; metadata: the members of LocLossConfig */
double case_loss(ModelCase *k);
