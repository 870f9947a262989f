/* replay.h -- what recent updates were taught, to be learnt again: a teacher's answer costs more than a
 * student's step.
 *
 * The lessons of batch b are kept until batch b + reuse * lag has passed; the step that runs batch b also
 * learns again those of b - lag, b - 2 lag, ... (distill.reuse of them, in updates of their own), on the
 * pixels that a second loader brings again. Each rank keeps the lessons of its own images. The store is part
 * of a checkpoint, so that a resumed run learns from the same lessons, whatever its number of ranks. Next:
 * step.c.
 */
#pragma once
#include "data/loader.h"
#include "engine/distill.h"

/* One question with what was learnt from it; everything belongs to the store. */
typedef struct KeptLesson {
    int place; /* of its image in the batch of all ranks (Batch.place) */
    uint64_t image_id;
    const char *query;
    Lesson lesson;
} KeptLesson;

/* The lessons of one batch. */
typedef struct KeptBatch {
    int64_t batch; /* -1: none yet */
    int64_t n;
    KeptLesson *lesson;
    Arena memory;
} KeptBatch;

typedef struct Replay {
    KeptBatch *kept; /* a ring: batch b is in kept[b % size] */
    int64_t size;
    int reuse, lag, nlabels; /* nlabels: answers of the VQA student, the length of its targets */
    int lo, hi;              /* places of this rank's images */
} Replay;

/* reuse 0: nothing is kept. programs: how many a batch holds, for the memory to begin with. */
void replay_open(Replay *r, int reuse, int lag, int nlabels, int programs, int lo, int hi);
void replay_close(Replay *r); /* also right for one that is all zero */

/* Begins the lessons of a batch (what the ring held instead goes). All ranks begin the same ones. */
void replay_begin(Replay *r, int64_t batch);
/* Keeps a copy of a lesson in the batch, which has been begun. To be called in the order of places. */
void replay_keep(Replay *r, int64_t batch, int place, const Ask *ask, const Lesson *lesson);
/* The lessons of a batch; NULL when it is too old, or not kept. */
const KeptBatch *replay_find(const Replay *r, int64_t batch);

/* Writes the lessons of all ranks, those of a batch in the order of places, as one safetensors file of a
 * checkpoint: rank 0 saves and the others send. The file does not tell how many ranks there were. */
bool replay_save(const Replay *r, const char *path, Error *e);
void replay_send(const Replay *r);
/* Reads what is this rank's. FAIL_MODEL names what is wrong. */
bool replay_load(Replay *r, const char *path, Error *e);
