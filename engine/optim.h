/* optim.h -- learning-rate schedule, global-norm clipping, AdamW over a parameter set. */
#pragma once
#include "engine/config.h"
#include "engine/param.h"

typedef struct OptimConfig {
    float lr, weight_decay, beta1, beta2, eps;
    float clip;           /* global gradient norm; 0: none */
    int schedule;         /* SCHEDULE_LINEAR, ... of config.h */
    int64_t warmup, total; /* updates */
} OptimConfig;

/* Factor of the peak rate at update `step` (0-based): linear warm-up from 0, then linear or half-cosine to 0 at total. */
float schedule_factor(const OptimConfig *cfg, int64_t step);

/* One update from the gradients in ps, which are then zeroed. *norm is the gradient's norm before clipping. False when it is
 * not finite; e names the first parameter whose gradient is not (FAIL_NUMERIC); nothing was changed then. */
bool optim_step(ParamSet *ps, const OptimConfig *cfg, int64_t step, double *norm, Error *e);
