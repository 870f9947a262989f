/* clip.h -- CLIP, the module of SELECT and CLASSIFY: how alike a rectangle and a text are. See clip.c. */
#pragma once
#include "modules/module.h"

/* The loss of `images` x `texts` asks, ask i * texts + j being image i with text j, whose cosines times exp(logit_scale) are
 * logits: cross entropy over the texts for each image that has one, text_of[i] (-1: none) with weight image_weight[i]; and over
 * the images for each text, image_of[j] with text_weight[j]. NULL leaves one side out. Classification is the first side alone,
 * SELECT the second; contrastive training (Radford et al. 2021) both with the diagonal and weights 1 / (2 images). */
double clip_loss(Module *m, Ctx *c, const Outputs *out, int64_t images, int64_t texts, const int32_t *text_of, const float *image_weight,
                 const int32_t *image_of, const float *text_weight);
