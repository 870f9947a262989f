/* lora.h -- low-rank adapters: a frozen network learns by small matrices beside its own (Hu et al. 2022).
 *
 * Of each adapted linear layer y = x w^T + b, computed is y + (x A^T) B^T with A (r, in), drawn, and B (out, r), 0 at the
 * start. They form a parameter set of their own, named as PEFT does (query.lora_A.weight); the network's set then needs no
 * gradients and no moments. The usual factor alpha/r sits in B, and in B's learning rate: Adam does not see a gradient's
 * scale, so B learns exactly as alpha/r times the B of the paper would. Next: nn.c, which declares, and op.c.
 */
#pragma once
#include "engine/nn.h"

typedef struct Lora {
    ParamSet params;
    int rank;    /* 0: there are no adapters */
    float alpha;
    Layer *layer; /* the adapted ones */
    int64_t n, cap;
} Lora;

void lora_open(Lora *l, Arena *host, int rank, float alpha);
void lora_close(Lora *l);
/* Declares the adapters of a layer of `parts` matrices one below the other (query, key, value), each with its own A and B;
 * names[i] goes after prefix. Sets layer->lora_a, lora_b. */
void lora_adapt(Lora *l, Layer *layer, int parts, const char *prefix, const char *const *names);
/* w += B A for every adapted layer. What calls it has to put back the network's values (f32, on its device) before training
 * goes on: subtracting would not give the same bits. */
void lora_merge(const Lora *l);
