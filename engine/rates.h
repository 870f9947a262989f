/* rates.h -- which parameters learn, and how fast: frozen parts, factors by name, layer-wise decay.
 * Next: optim.h. */
#pragma once
#include "engine/config.h"
#include "engine/param.h"

/* Sets Param.lr_scale of n opened sets from train.freeze, train.lr_scale and train.layer_decay, and stops the
 * gradients of what is frozen: the backward pass does not compute them. A name that no parameter of any set
 * begins with is an error that tells the nearest one (FAIL_CONFIG).
 *   train.layer_decay d: of a tower of L blocks, block i (from 0) gets d^(L-i), its embeddings d^(L+1), what
 *   follows the blocks 1. Source: Clark et al. 2020 (ELECTRA), counted as BEiT does. */
bool rates_apply(ParamSet *const *ps, int n, const Config *cfg, Error *e);
