/* clip_towers.c -- see clip_towers.h. */
#include "modules/clip_towers.h"

/* ---- opening -------------------------------------------------------------------------------------- */

static bool read_encoder(Encoder *n, const Module *m, const char *part, const Encoder *fallback, Error *e) {
    char key[96];
#define KEY(name) (snprintf(key, sizeof key, "%s.%s", part, name), key)
    bool ok = config_int(m, KEY("hidden_size"), fallback->C, 1, 1 << 16, &n->C, e) &&
              config_int(m, KEY("intermediate_size"), fallback->mlp, 1, 1 << 20, &n->mlp, e) &&
              config_int(m, KEY("num_hidden_layers"), fallback->layers, 0, 1000, &n->layers, e) &&
              config_int(m, KEY("num_attention_heads"), fallback->heads, 1, n->C, &n->heads, e) &&
              config_float(m, KEY("layer_norm_eps"), fallback->eps, &n->eps, e) &&
              config_activation(m, KEY("hidden_act"), "quick_gelu", &n->act, e);
#undef KEY
    if (ok && n->C % n->heads)
        return fail_as(e, FAIL_MODEL, "%s/config.json: %s.hidden_size %" PRId64 " does not divide into %" PRId64 " heads", m->folder, part,
                       n->C, n->heads);
    return ok;
}

/* The sizes that are not an encoder's own. */
static bool read_sizes(ClipVision *v, ClipText *t, Module *m, const ClipSizes *fallback, Error *e) {
    int64_t image, patch, channels;
    if (!config_int(m, "vision_config.image_size", fallback->image, 1, 8192, &image, e) ||
        !config_int(m, "vision_config.patch_size", fallback->patch, 1, image, &patch, e) ||
        !config_int(m, "vision_config.num_channels", 3, 3, 3, &channels, e) ||
        !config_int(m, "text_config.max_position_embeddings", fallback->positions, 2, 4096, &t->positions, e) ||
        !config_int(m, "text_config.vocab_size", 49408, 1, 1 << 24, &t->vocab, e) ||
        !config_int(m, "projection_dim", fallback->projection, 1, 1 << 16, &t->D, e) || !processor_norm(m, &v->patches, e))
        return false;
    v->grid = image / patch;
    v->P = v->grid * v->grid;
    v->patches.patch = (int)patch;
    v->patches.grid_h = v->patches.grid_w = (int)v->grid;
    if (image % patch)
        return fail_as(e, FAIL_MODEL, "%s/config.json: image_size %" PRId64 " is not a multiple of patch_size %" PRId64, m->folder, image, patch);
    return true;
}

bool clip_towers_open(ClipVision *v, ClipText *t, Module *m, const ClipSizes *fallback, Error *e) {
    if (!read_encoder(&v->n, m, "vision_config", &fallback->vision, e) ||
        !read_encoder(&t->n, m, "text_config", &fallback->text, e) || !read_sizes(v, t, m, fallback, e))
        return false;
    m->tokenizer = token_open(m->folder, TOKEN_CLIP, e);
    if (!m->tokenizer) return false;
    if (token_size(m->tokenizer) > t->vocab)
        return fail_as(e, FAIL_MODEL, "%s: the tokenizer has ids up to %d, config.json's text_config.vocab_size is %" PRId64, m->folder,
                       token_size(m->tokenizer) - 1, t->vocab);
    return true;
}

static void declare_encoder(Encoder *n, ParamSet *ps, const char *prefix) {
    static const BlockNames names = {"layer_norm1", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                     "self_attn.out_proj", "layer_norm2", "mlp.fc1", "mlp.fc2"};
    n->block = ARENA_NEW(ps->arena, Block, n->layers);
    for (int64_t i = 0; i < n->layers; i++) {
        char block[96];
        snprintf(block, sizeof block, "%sencoder.layers.%" PRId64 ".", prefix, i);
        block_new(&n->block[i], ps, n->C, n->mlp, &names, block);
    }
}

void clip_vision_declare(ClipVision *v, ParamSet *ps, const char *prefix, const char *pre_norm) {
    int64_t C = v->n.C, p = v->patches.patch;
    char in[64];
    snprintf(in, sizeof in, "%svision_model.", prefix);
    v->class_embedding = param_matrix(ps, PARAM(ps, PARAM_EMBEDDING, (C), "%sembeddings.class_embedding", in), 1);
    v->patch.w = param_matrix(ps, PARAM(ps, PARAM_WEIGHT, (C, 3, p, p), "%sembeddings.patch_embedding.weight", in), C);
    v->position = PARAM(ps, PARAM_EMBEDDING, (v->P + 1, C), "%sembeddings.position_embedding.weight", in);
    v->pre_norm = norm_new(ps, C, "%s%s", in, pre_norm);
    declare_encoder(&v->n, ps, in);
    v->post_norm = norm_new(ps, C, "%spost_layernorm", in);
}

void clip_text_declare(ClipText *t, ParamSet *ps, const char *prefix) {
    int64_t C = t->n.C;
    char in[64];
    snprintf(in, sizeof in, "%stext_model.", prefix);
    t->token = PARAM(ps, PARAM_EMBEDDING, (t->vocab, C), "%sembeddings.token_embedding.weight", in);
    t->position = PARAM(ps, PARAM_EMBEDDING, (t->positions, C), "%sembeddings.position_embedding.weight", in);
    declare_encoder(&t->n, ps, in);
    t->final_norm = norm_new(ps, C, "%sfinal_layer_norm", in);
}

/* ---- running -------------------------------------------------------------------------------------- */

static Residual encode(Ctx *c, const Encoder *n, Tensor *x, bool causal) {
    BlockSpec spec = {.H = (int)n->heads, .eps = (float)n->eps, .act = n->act, .causal = causal};
    return blocks_forward(c, n->block, n->layers, x, &spec);
}

Residual clip_vision_run(const ClipVision *v, Ctx *c, const Ask *const *ask, const int (*size)[2], int64_t n) {
    ImageView *image = arena_alloc(c->host, (size_t)n * sizeof *image);
    Rect *rect = arena_alloc(c->host, (size_t)n * sizeof *rect);
    int32_t *zero = arena_zalloc(c->host, (size_t)n * sizeof *zero);
    for (int64_t i = 0; i < n; i++) {
        image[i] = ask[i]->image;
        rect[i] = ask[i]->rect;
    }
    Tensor *part[2];
    part[0] = RESHAPE(c, op_gather(c, v->class_embedding, zero, n), n, 1, v->n.C);
    part[1] = linear(c, v->patch, op_image_patches(c, compute_type(v->patch.w), image, rect, size, &v->patches, n));
    Tensor *x = op_add_rows(c, op_concat_tokens(c, part, 2), v->position);
    return encode(c, &v->n, norm(c, v->pre_norm, x, (float)v->n.eps), false);
}

/* The ids of "a photo of QUERY"; returns how many. */
static int prompt_ids(const ClipText *t, const Module *m, Ctx *c, const char *query, int *ids) {
    static const char prompt[] = "a photo of ";
    size_t n = strlen(query), at = sizeof prompt - 1, mark = arena_mark(c->host);
    char *text = arena_alloc(c->host, at + n);
    memcpy(text, prompt, at);
    memcpy(text + at, query, n);
    int count = token_encode(m->tokenizer, text, at + n, ids, (int)t->positions);
    arena_reset(c->host, mark);
    return count;
}

Tensor *clip_text_run(const ClipText *t, const Module *m, Ctx *c, const Ask *const *ask, int64_t n) {
    int64_t W = t->n.C, T = 0;
    int *ids = arena_alloc(c->host, (size_t)(n * t->positions) * sizeof *ids);
    int32_t *last = arena_alloc(c->host, (size_t)n * sizeof *last), *count = arena_alloc(c->host, (size_t)n * sizeof *count);
    for (int64_t i = 0; i < n; i++) {
        int *id = ids + i * t->positions, end = 0;
        count[i] = prompt_ids(t, m, c, ask[i]->query, id);
        for (int k = 1; k < count[i]; k++)
            if (id[k] > id[end]) end = k; /* the first of the largest id is the end token, as the reference finds it */
        last[i] = end;
        T = MAX(T, count[i]);
    }
    /* The reference pads all texts to `positions` and masks the padding. Padding comes after the end token, which a causal tower
     * never lets see it: the longest text of the batch is enough, and no mask is needed. */
    int32_t *flat = arena_alloc(c->host, (size_t)(n * T) * sizeof *flat), *position = arena_alloc(c->host, (size_t)T * sizeof *position);
    for (int64_t i = 0; i < n; i++) {
        for (int64_t k = 0; k < T; k++) flat[i * T + k] = k < count[i] ? ids[i * t->positions + k] : token_pad(m->tokenizer);
        last[i] += (int32_t)(i * T);
    }
    for (int32_t k = 0; k < T; k++) position[k] = k;

    Tensor *x = RESHAPE(c, op_gather(c, t->token, flat, n * T), n, T, W);
    x = residual_sum(c, encode(c, &t->n, op_add_rows(c, x, op_gather(c, t->position, position, T)), true));
    x = op_gather(c, RESHAPE(c, x, n * T, W), last, n); /* before the norm, which works by row */
    return op_linear_f32(c, norm(c, t->final_norm, x, (float)t->n.eps), t->projection, NULL); /* a unit vector to be: f32 */
}
