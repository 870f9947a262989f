/* train.h -- supervised training of one module, from labelled steps or from questions with answers. */
#pragma once
#include "data/loader.h"
#include "data/steps.h"
#include "engine/run.h"
#include "modules/detect.h"

/* One labelled module call. */
typedef struct TrainItem {
    int image, pair;        /* pair: the second image of a question about two, else -1 */
    Rect rect;              /* x0 >= x1: the whole image */
    const char *query;
    int32_t label;          /* VQA: index of the answer */
    const StepSample *step; /* LOC: its boxes */
    int64_t order;          /* in the file */
} TrainItem;

/* The items of a module, grouped by image (or pair): a loader item is an image, of which `per_image` calls are taken. */
typedef struct TrainSet {
    Dataset data;           /* as read */
    Dataset by_image;       /* one sample per image, for the loader */
    TrainItem *item;        /* by image */
    int64_t *first;         /* (images + 1) */
    int64_t n, unknown;     /* unknown: answers outside the module's labels, left out */
} TrainSet;

bool trainset_open(TrainSet *t, const DatasetConfig *c, const Module *m, Error *e);
void trainset_close(TrainSet *t);

/* Chooses up to per_image different calls of each image of a batch, a function of seed: the items and what to ask (each
 * about as many pictures as the module takes). Returns how many; memory from host. */
int train_asks(const TrainSet *t, const Batch *b, int per_image, uint64_t seed, Arena *host, const TrainItem ***items, Ask **asks);
/* One forward of the module on chosen items of a batch, and its loss (whose weights are 1/total). Returns the loss;
 * *right counts correct answers (VQA) of *n, 0 in training where answers would have to be ranked for it; parts (may be NULL) receives LOC's class, L1 and GIoU terms. */
double train_forward(Run *r, Module *m, const TrainSet *t, const Batch *b, int per_image, uint64_t seed, int total, int *right, int *n, double parts[3]);

/* The whole training as the configuration says: resumes, logs, saves checkpoints and at the end the model to OUT/model.
 * A NaN loss stops it (FAIL_NUMERIC). */
bool train_run(const Config *cfg, Error *e);
/* Accuracy in percent of a VQA module on a labelled set, or AP at IoU 0.5 of a LOC module. limit images, 0: all. */
bool train_eval(Run *r, Module *m, TrainSet *t, int64_t limit, double *score, Error *e);
