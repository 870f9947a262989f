/* clip_towers.h -- the two towers of CLIP, which OWL-ViT is made of too, and what they gave in this update.
 *
 * An image is encoded once however many texts it meets, a text once however many images: a pair costs a dot product. So the
 * outputs of a tower's runs are kept until module_begin (Tower), and every forward joins those its asks point to.
 * Architecture and names: Radford et al. 2021 as in Hugging Face's CLIPModel. Next: clip.c, owlvit.c.
 */
#pragma once
#include "modules/module.h"

/* ---- the transformers ----------------------------------------------------------------------------- */

typedef struct Encoder {
    int64_t C, mlp, layers, heads;
    double eps;
    Activation act;
    Block *block;
} Encoder;

typedef struct ClipVision {
    Encoder n;
    int64_t grid, P; /* patches per side and in all */
    PatchSpec patches;
    Layer patch, pre_norm, post_norm;
    Tensor *class_embedding, *position;
} ClipVision;

typedef struct ClipText {
    Encoder n;
    int64_t vocab, positions, D; /* D: width of what the projection gives */
    Layer final_norm;
    Tensor *token, *position, *projection;
} ClipText;

/* What config.json means when it does not say. */
typedef struct ClipSizes {
    Encoder vision, text;
    int64_t image, patch, positions, projection;
} ClipSizes;

/* Reads both towers' sizes and opens the tokenizer. */
bool clip_towers_open(ClipVision *v, ClipText *t, Module *m, const ClipSizes *fallback, Error *e);
/* Declares their parameters under PREFIXvision_model. and PREFIXtext_model.; pre_norm is the name of the norm before the vision
 * blocks ("pre_layernorm"; CLIP's files misspell it). The caller declares text.projection (D, C), which is not one of them. */
void clip_vision_declare(ClipVision *v, ParamSet *ps, const char *prefix, const char *pre_norm);
void clip_text_declare(ClipText *t, ParamSet *ps, const char *prefix);

/* n items (distinct images): -> (n, 1 + P, C), the class token first, before post_norm. size: what each rectangle is resized
 * to, see image_patches. */
Tensor *clip_vision_run(const ClipVision *v, Ctx *c, const Ask *const *ask, const int (*size)[2], int64_t n);
/* "a photo of QUERY" of n distinct texts -> (n, D), not yet normalised. */
Tensor *clip_text_run(const ClipText *t, const Module *m, Ctx *c, const Ask *const *ask, int64_t n);

/* ---- what they gave ------------------------------------------------------------------------------- */

enum { TOWER_OUTS = 4 };

/* The outputs of one run: an earlier forward of the same update may already hold what a later one asks for. */
typedef struct TowerSource { Tensor *out[TOWER_OUTS]; const Tape *tape; } TowerSource;

typedef struct Tower {
    Module *module;
    int nout;
    int64_t shape[TOWER_OUTS][MAX_DIMS]; /* of the outputs, row i for item i; shape[k][0] is filled in */
    int ndim[TOWER_OUTS];
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
/* Sees to it that each ask's item has been through the tower in this update, then joins the outputs of all runs that hold
 * one: joined[k] is output k, row[i] where ask i's item is in it. */
void tower_rows(Tower *t, Ctx *c, const Ask *ask, int64_t n, Tensor **joined, int32_t *row);
void tower_begin(Tower *t);
void tower_close(Tower *t);
