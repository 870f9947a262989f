/* lora.c -- low-rank adapters. See lora.h. */
#include "engine/lora.h"

void lora_open(Lora *l, Arena *host, int rank, float alpha) {
    *l = (Lora){.rank = rank, .alpha = alpha > 0 ? alpha : (float)rank};
    params_open(&l->params, host);
}

void lora_close(Lora *l) {
    params_close(&l->params);
    free(l->layer);
    *l = (Lora){0};
}

void lora_adapt(Lora *l, Layer *layer, int parts, const char *prefix, const char *const *names) {
    const int64_t out = layer->w->shape[0] / parts, in = layer->w->shape[1], r = l->rank;
    const int first = l->params.n;
    layer->lora_a =
        param_fused(&l->params, PARAM_WEIGHT, parts, 2, (int64_t[]){r, in}, prefix, names, ".lora_A.weight");
    /* As a bias B starts at 0 and is not decayed: decay would pull back to the starting network. */
    layer->lora_b =
        param_fused(&l->params, PARAM_BIAS, parts, 2, (int64_t[]){out, r}, prefix, names, ".lora_B.weight");
    for (int i = first + parts; i < l->params.n; i++) l->params.param[i]->lr_scale = l->alpha / (float)r;
    GROW(l->layer, l->cap, l->n + 1);
    l->layer[l->n++] = *layer;
}

void lora_merge(const Lora *l) {
    for (int64_t k = 0; k < l->n; k++) {
        const Layer *y = &l->layer[k];
        const Device *d = l->params.dev;
        const int64_t r = l->rank, in = y->w->shape[1], parts = y->lora_a->shape[0] / r,
                      out = y->w->shape[0] / parts;
        for (int64_t i = 0; i < parts; i++) /* w_i += B_i A_i */
            d->ops->gemm(d->main, F32, F32, (float *)y->w->data + i * out * in, in,
                         (float *)y->lora_b->data + i * out * r, r, (float *)y->lora_a->data + i * r * in, in,
                         NULL, false, false, out, in, r, 1);
    }
}
