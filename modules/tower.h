/* tower.h -- a network's first half, run once per distinct image or text of an update.
 *
 * An image is encoded once however many questions meet it, a text once however many images. The outputs of
 * a tower's runs are kept until module_begin, and every forward joins those its asks point to.
 */
#pragma once
#include "modules/module.h"

enum { TOWER_OUTS = 4 };

/* The outputs of one run: an earlier forward of the same update may already hold what a later one asks for.
 * */
typedef struct TowerSource { Tensor *out[TOWER_OUTS]; const Tape *tape; } TowerSource;

typedef struct Tower {
    Module *module;
    int nout;
    int64_t shape[TOWER_OUTS][MAX_DIMS]; /* of the outputs, row i for item i; shape[k][0] is filled in */
    int ndim[TOWER_OUTS];
    DType type;                          /* of all of them */
    int64_t chunk;                       /* items per run without a tape */
    void (*run)(Module *m, Ctx *c, const Ask *const *ask, int64_t n, Tensor **out);
    TowerKey (*key)(const Ask *a);
    int64_t *rows;                       /* the module's counter */
    TowerCache cache;
    TowerSource *source;
    int64_t nsources, cap;
} Tower;

/* Items per run without a tape: activations of 4 MB each are enough to keep the cores busy. */
int64_t tower_chunk(int64_t tokens, int64_t C);
/* Sees to it that each ask's item has been through the tower in this update, then joins the outputs of all
 * runs that hold one: joined[k] is output k, row[i] where ask i's item is in it. */
void tower_rows(Tower *t, Ctx *c, const Ask *ask, int64_t n, Tensor **joined, int32_t *row);
void tower_begin(Tower *t);
void tower_close(Tower *t);
