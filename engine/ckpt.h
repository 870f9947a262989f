/* ckpt.h -- checkpoints of a run: model folders, optimizer state, position; written whole or not at all.
 *
 *   OUT/checkpoint-000500/vqa/                       a model folder, weights under Hugging Face names
 *   OUT/checkpoint-000500/vqa.moments.safetensors    AdamW's m, v and its step
 *   OUT/checkpoint-000500/vqa.adapters.safetensors   with train.lora_rank: the adapters, which the folder has merged in
 *   OUT/checkpoint-000500/state.json                 the update it follows, the run's configuration
 *
 * Everything else of a run (sample order, dropout) is a function of the seed and the update's number, so
 * that is all it takes to go on bit for bit. No time or host name goes in: equal runs, equal bytes.
 */
#pragma once
#include "engine/comm.h"
#include "modules/module.h"

/* One trained module and the name it goes by in the checkpoint ("vqa"). */
typedef struct CkptPart { const char *name; Module *module; } CkptPart;

/* A further file of a checkpoint: save(self, path, e) writes it on rank 0, while the others send(self). */
typedef struct CkptFile {
    const char *name;
    const void *self;
    bool (*save)(const void *self, const char *path, Error *e);
    void (*send)(const void *self);
} CkptFile;

/* All ranks call it, rank 0 writes. Writes OUT/checkpoint-STEP through a temporary folder and a rename; then removes all but the newest `keep`
 * (0: none is removed). config: the resolved configuration's text, stored in state.json. file: one more, or NULL. */
bool ckpt_save(const char *out, int64_t step, const CkptPart *part, int n, const CkptFile *file, const char *config, int keep,
               Error *e);
/* Finds the newest whole checkpoint of OUT: its folder into path, its step. False without an error text when there is none. */
bool ckpt_latest(const char *out, char *path, size_t size, int64_t *step);
/* The same for a run of several ranks: what rank 0 finds, on all. */
bool ckpt_agree(Comm *c, const char *out, char *path, size_t size, int64_t *step);
/* Loads weights and moments of each part. A damaged file fails with its name. */
bool ckpt_load(const char *path, const CkptPart *part, int n, Error *e);
