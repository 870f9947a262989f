/* clip_towers.h -- the two transformers of CLIP, which OWL-ViT is made of too.
 *
 * Architecture and names: Radford et al. 2021 as in Hugging Face's CLIPModel. Next: clip.c, owlvit.c.
 */
#pragma once
#include "modules/tower.h"

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

/* n items (distinct images): -> (n, 1 + P, C), the class token first, for post_norm. size: what each rectangle is resized
 * to, see image_patches. */
Residual clip_vision_run(const ClipVision *v, Ctx *c, const Ask *const *ask, const int (*size)[2], int64_t n);
/* "a photo of QUERY" of n distinct texts -> (n, D), not yet normalised. */
Tensor *clip_text_run(const ClipText *t, const Module *m, Ctx *c, const Ask *const *ask, int64_t n);
