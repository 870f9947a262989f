/* owlvit.c -- OWL-ViT, the LOC module: which patches of a rectangle show the asked object, and its box.
 *
 * Two towers that meet late: an image is encoded once however many objects are asked of it, a phrase once
 * however many images it is asked of; a pair costs one dot product per patch. So the towers' outputs of an
 * update are kept (Tower) and every forward joins those its asks point to. Architecture and tensor names:
 * Minderer et al. 2022 as in Hugging Face's OwlViTForObjectDetection. What to do with the logits and boxes
 * (threshold, NMS) belongs to the LOC verb; the loss is in detect.c.
 */
#include <math.h>

#include "modules/module.h"

enum { MAX_OUT = 4 };

/* What a tower gives: `nout` tensors, row i for item i. */
enum { IMAGE_CLASS, IMAGE_SHIFT, IMAGE_SCALE, IMAGE_BOXES, IMAGE_OUTS };
enum { TEXT_QUERY, TEXT_OUTS };

typedef struct Owl Owl;

/* The outputs of one run: an earlier forward of the same update may already hold what a later one asks for. */
typedef struct Source { Tensor *out[MAX_OUT]; const Tape *tape; } Source;

typedef struct Tower {
    int nout;
    int64_t shape[MAX_OUT][MAX_DIMS]; /* of the outputs, shape[k][0] being the number of items */
    int ndim[MAX_OUT];
    int64_t chunk;                    /* items per run without a tape */
    void (*run)(Owl *o, Ctx *c, const Ask *const *ask, int64_t n, Tensor **out);
    TowerKey (*key)(const Ask *a);
    int64_t *rows;                    /* the module's counter */
    TowerCache cache;
    Source *source;
    int64_t nsources, cap;
} Tower;

typedef struct Encoder {
    int64_t C, mlp, layers, heads;
    double eps;
    Activation act;
    Block *block;
} Encoder;

struct Owl {
    Module m;
    Encoder vision, text;
    int64_t grid, P, positions, vocab, D; /* patches per side and in all; text ids; width where the towers meet */
    PatchSpec patches;

    Layer patch, pre_norm, post_norm, merge_norm;
    Tensor *class_embedding, *vision_position;
    Tensor *token_embedding, *text_position, *text_projection;
    Layer final_norm;
    Layer class_dense, shift, scale, box[3];

    Tensor box_bias; /* (P, 4), a constant: not in the checkpoint */
    float *box_bias_host;
    Device *dev;     /* who holds box_bias */
    Tower image_tower, text_tower;
};

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
static bool read_sizes(Owl *o, Error *e) {
    Module *m = &o->m;
    int64_t image, patch, channels, projection;
    if (!config_int(m, "vision_config.image_size", 768, 1, 8192, &image, e) ||
        !config_int(m, "vision_config.patch_size", 32, 1, image, &patch, e) ||
        !config_int(m, "vision_config.num_channels", 3, 3, 3, &channels, e) ||
        !config_int(m, "text_config.max_position_embeddings", 16, 2, 4096, &o->positions, e) ||
        !config_int(m, "text_config.vocab_size", 49408, 1, 1 << 24, &o->vocab, e) ||
        !config_int(m, "projection_dim", 512, 1, 1 << 16, &projection, e) || !processor_norm(m, &o->patches, e))
        return false;
    o->D = o->text.C; /* the class head is as wide as the text tower, and meets what text_projection gives */
    if (projection != o->D)
        return fail_as(e, FAIL_MODEL, "%s/config.json: projection_dim is %" PRId64 ", text_config.hidden_size %" PRId64 "; detection wants them equal",
                       m->folder, projection, o->D);
    o->grid = image / patch;
    o->P = o->grid * o->grid;
    o->patches.patch = (int)patch;
    o->patches.grid_h = o->patches.grid_w = (int)o->grid;
    if (image % patch)
        return fail_as(e, FAIL_MODEL, "%s/config.json: image_size %" PRId64 " is not a multiple of patch_size %" PRId64, m->folder, image, patch);
    static const char *const sides[] = {"size.height", "size.width"};
    for (int i = 0; i < 2; i++) { /* absent in some files, which then mean the model's size */
        json_t *v = json_path(m->processor, sides[i]);
        if (v && json_integer_value(v) != image)
            return fail_as(e, FAIL_MODEL, "%s/preprocessor_config.json: %s is %" JSON_INTEGER_FORMAT ", the model's image_size %" PRId64,
                           m->folder, sides[i], json_integer_value(v), image);
    }
    return true;
}

static void declare_encoder(Encoder *n, ParamSet *ps, const char *tower) {
    static const BlockNames names = {"layer_norm1", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                     "self_attn.out_proj", "layer_norm2", "mlp.fc1", "mlp.fc2"};
    n->block = ARENA_NEW(ps->arena, Block, n->layers);
    for (int64_t i = 0; i < n->layers; i++) {
        char prefix[96];
        snprintf(prefix, sizeof prefix, "owlvit.%s_model.encoder.layers.%" PRId64 ".", tower, i);
        block_new(&n->block[i], ps, n->C, n->mlp, &names, prefix);
    }
}

/* A tensor that detection does not read: the file has it, nothing trains it. */
static void declare_unused(ParamSet *ps, ParamKind kind, int ndim, const int64_t *shape, float value, const char *name) {
    Param *p = param_new(ps, kind, ndim, shape, "%s", name);
    p->lr_scale = 0;
    p->init_value = value;
}

static void declare(Owl *o) {
    ParamSet *ps = &o->m.params;
    int64_t C = o->vision.C, W = o->text.C, p = o->patches.patch;
    declare_unused(ps, PARAM_BIAS, 0, NULL, 2.6592f, "owlvit.logit_scale");
    o->token_embedding = PARAM(ps, PARAM_EMBEDDING, (o->vocab, W), "owlvit.text_model.embeddings.token_embedding.weight");
    o->text_position = PARAM(ps, PARAM_EMBEDDING, (o->positions, W), "owlvit.text_model.embeddings.position_embedding.weight");
    declare_encoder(&o->text, ps, "text");
    o->final_norm = norm_new(ps, W, "owlvit.text_model.final_layer_norm");
    o->class_embedding = param_matrix(ps, PARAM(ps, PARAM_EMBEDDING, (C), "owlvit.vision_model.embeddings.class_embedding"), 1);
    o->patch.w = param_matrix(ps, PARAM(ps, PARAM_WEIGHT, (C, 3, p, p), "owlvit.vision_model.embeddings.patch_embedding.weight"), C);
    o->vision_position = PARAM(ps, PARAM_EMBEDDING, (o->P + 1, C), "owlvit.vision_model.embeddings.position_embedding.weight");
    o->pre_norm = norm_new(ps, C, "owlvit.vision_model.pre_layernorm");
    declare_encoder(&o->vision, ps, "vision");
    o->post_norm = norm_new(ps, C, "owlvit.vision_model.post_layernorm");
    declare_unused(ps, PARAM_WEIGHT, 2, (int64_t[]){o->D, C}, 0, "owlvit.visual_projection.weight");
    o->text_projection = linear_new(ps, o->D, W, false, "owlvit.text_projection").w;
    o->class_dense = linear_new(ps, o->D, C, true, "class_head.dense0");
    o->shift = linear_new(ps, 1, C, true, "class_head.logit_shift");
    o->scale = linear_new(ps, 1, C, true, "class_head.logit_scale");
    for (int i = 0; i < 3; i++) o->box[i] = linear_new(ps, i < 2 ? C : 4, C, true, "box_head.dense%d", i);
    o->merge_norm = norm_new(ps, C, "layer_norm");

    /* A fresh network (see owlvit_init): (0 - 0.4595) * (elu(9) + 1) = ln(0.01 / 0.99), the prior of Lin et al. 2017. */
    param_find(ps, "class_head.logit_scale.bias")->init_value = 9;
    param_find(ps, "class_head.logit_shift.bias")->init_value = logf(0.01f / 0.99f) / 10;
}

/* A fresh class head knows of no object: every patch starts at the prior 0.01, and the cosine of patch and phrase, times 10,
 * is free to move a logit to -15..5. From random shift and scale weights half of the patches would start as objects. */
static void owlvit_init(Module *m) {
    static const char *const names[] = {"class_head.logit_shift.weight", "class_head.logit_scale.weight"};
    for (int i = 0; i < COUNT_OF(names); i++) {
        Param *p = param_find(&m->params, names[i]);
        m->params.dev->zero(m->params.dev, p->t.data, tensor_bytes(&p->t));
    }
}

static float unsigmoid(float v) { return logf(v + 1e-4f) - log1pf(-v + 1e-4f); }

/* Each patch begins with a box of its own size at its LOWER RIGHT corner: the reference counts patches from one. */
static void compute_box_bias(Owl *o) {
    int64_t n = o->grid;
    float *b = o->box_bias_host = arena_alloc(&o->m.host, (size_t)o->P * 4 * sizeof *b), side = unsigmoid(1 / (float)n);
    for (int64_t k = 0; k < o->P; k++) {
        b[4 * k] = unsigmoid((float)(k % n + 1) / (float)n);
        b[4 * k + 1] = unsigmoid((float)(k / n + 1) / (float)n);
        b[4 * k + 2] = b[4 * k + 3] = side;
    }
    o->box_bias = (Tensor){.ndim = 2, .shape = {o->P, 4}, .dtype = F32};
}

static void open_towers(Owl *o);

static bool owlvit_open(Module *m, Error *e) {
    static const Encoder vision = {.C = 768, .mlp = 3072, .layers = 12, .heads = 12, .eps = 1e-5};
    static const Encoder text = {.C = 512, .mlp = 2048, .layers = 12, .heads = 8, .eps = 1e-5};
    Owl *o = (Owl *)m;
    if (!read_encoder(&o->vision, m, "vision_config", &vision, e) || !read_encoder(&o->text, m, "text_config", &text, e) ||
        !read_sizes(o, e))
        return false;
    m->tokenizer = token_open(m->folder, TOKEN_CLIP, e);
    if (!m->tokenizer) return false;
    if (token_size(m->tokenizer) > o->vocab)
        return fail_as(e, FAIL_MODEL, "%s: the tokenizer has ids up to %d, config.json's text_config.vocab_size is %" PRId64, m->folder,
                       token_size(m->tokenizer) - 1, o->vocab);
    declare(o);
    compute_box_bias(o);
    open_towers(o);
    return true;
}

/* ---- the towers ----------------------------------------------------------------------------------- */

static Tensor *encode(Ctx *c, const Encoder *n, Tensor *x, bool causal) {
    BlockSpec spec = {.H = (int)n->heads, .eps = (float)n->eps, .act = n->act, .causal = causal};
    for (int64_t i = 0; i < n->layers; i++) x = block_forward(c, &n->block[i], x, &spec);
    return x;
}

static void image_run(Owl *o, Ctx *c, const Ask *const *ask, int64_t n, Tensor **out) {
    int64_t C = o->vision.C;
    float eps = (float)o->vision.eps;
    ImageView *image = arena_alloc(c->host, (size_t)n * sizeof *image);
    Rect *rect = arena_alloc(c->host, (size_t)n * sizeof *rect);
    int(*size)[2] = arena_alloc(c->host, (size_t)n * sizeof *size);
    int32_t *zero = arena_zalloc(c->host, (size_t)n * sizeof *zero);
    for (int64_t i = 0; i < n; i++) {
        image[i] = ask[i]->image;
        rect[i] = ask[i]->rect;
        size[i][0] = size[i][1] = (int)o->grid * o->patches.patch; /* stretched to the square, whatever its shape */
    }
    Tensor *part[2];
    part[0] = RESHAPE(c, op_gather(c, o->class_embedding, zero, n), n, 1, C);
    part[1] = linear(c, o->patch, op_image_patches(c, image, rect, size, &o->patches, n));
    Tensor *x = op_add_rows(c, op_concat_tokens(c, part, 2), o->vision_position);
    x = encode(c, &o->vision, norm(c, o->pre_norm, x, eps), false);
    x = norm(c, o->post_norm, x, eps);

    Tensor *f = norm(c, o->merge_norm, op_mul_tokens(c, op_slice_tokens(c, x, 1, o->P), op_token(c, x, 0)), eps);
    out[IMAGE_CLASS] = op_l2norm(c, linear(c, o->class_dense, f), 1e-6f);
    out[IMAGE_SHIFT] = RESHAPE(c, linear(c, o->shift, f), n, o->P);
    out[IMAGE_SCALE] = op_elu1(c, RESHAPE(c, linear(c, o->scale, f), n, o->P));
    Tensor *b = op_gelu(c, linear(c, o->box[0], f)); /* exact gelu, whatever hidden_act says */
    b = linear(c, o->box[2], op_gelu(c, linear(c, o->box[1], b)));
    out[IMAGE_BOXES] = op_sigmoid(c, op_add_rows(c, b, &o->box_bias));
}

/* The ids of "a photo of QUERY"; returns how many. */
static int prompt_ids(const Owl *o, Ctx *c, const char *query, int *ids) {
    static const char prompt[] = "a photo of ";
    size_t n = strlen(query), at = sizeof prompt - 1, mark = arena_mark(c->host);
    char *text = arena_alloc(c->host, at + n);
    memcpy(text, prompt, at);
    memcpy(text + at, query, n);
    int count = token_encode(o->m.tokenizer, text, at + n, ids, (int)o->positions);
    arena_reset(c->host, mark);
    return count;
}

static void text_run(Owl *o, Ctx *c, const Ask *const *ask, int64_t n, Tensor **out) {
    int64_t W = o->text.C, T = 0;
    int *ids = arena_alloc(c->host, (size_t)(n * o->positions) * sizeof *ids);
    int32_t *last = arena_alloc(c->host, (size_t)n * sizeof *last), *count = arena_alloc(c->host, (size_t)n * sizeof *count);
    for (int64_t i = 0; i < n; i++) {
        int *id = ids + i * o->positions, end = 0;
        count[i] = prompt_ids(o, c, ask[i]->query, id);
        for (int k = 1; k < count[i]; k++)
            if (id[k] > id[end]) end = k; /* the first of the largest id is the end token, as the reference finds it */
        last[i] = end;
        T = MAX(T, count[i]);
    }
    /* The reference pads all texts to `positions` and masks the padding. Padding comes after the end token, which a causal tower
     * never lets see it: the longest text of the batch is enough, and no mask is needed. */
    int32_t *flat = arena_alloc(c->host, (size_t)(n * T) * sizeof *flat), *position = arena_alloc(c->host, (size_t)T * sizeof *position);
    for (int64_t i = 0; i < n; i++) {
        for (int64_t k = 0; k < T; k++) flat[i * T + k] = k < count[i] ? ids[i * o->positions + k] : token_pad(o->m.tokenizer);
        last[i] += (int32_t)(i * T);
    }
    for (int32_t k = 0; k < T; k++) position[k] = k;

    Tensor *x = RESHAPE(c, op_gather(c, o->token_embedding, flat, n * T), n, T, W);
    x = encode(c, &o->text, op_add_rows(c, x, op_gather(c, o->text_position, position, T)), true);
    x = op_gather(c, RESHAPE(c, x, n * T, W), last, n); /* before the norm, which works by row */
    x = op_linear(c, norm(c, o->final_norm, x, (float)o->text.eps), o->text_projection, NULL);
    out[TEXT_QUERY] = op_l2norm(c, x, 1e-6f);
}

/* Without a tape nothing has to outlive a run but its outputs: activations of 4 MB each are enough to keep the cores busy. */
static int64_t chunk_items(int64_t tokens, int64_t C) { return MAX(((int64_t)1 << 20) / (tokens * C), 1); }

static void open_towers(Owl *o) {
    Tower *t = &o->image_tower;
    *t = (Tower){.nout = IMAGE_OUTS, .run = image_run, .key = ask_image_key, .rows = &o->m.image_rows,
                 .ndim = {3, 2, 2, 3}, .chunk = chunk_items(o->P + 1, o->vision.C)};
    for (int k = 0; k < IMAGE_OUTS; k++) t->shape[k][1] = o->P;
    t->shape[IMAGE_CLASS][2] = o->D;
    t->shape[IMAGE_BOXES][2] = 4;
    t = &o->text_tower;
    *t = (Tower){.nout = TEXT_OUTS, .run = text_run, .key = ask_text_key, .rows = &o->m.text_rows,
                 .ndim = {2}, .shape = {{0, o->D}}, .chunk = chunk_items(o->positions, o->text.C)};
}

/* Runs in chunks that share their memory, copying the outputs out. */
static void run_chunks(Owl *o, const Tower *t, Ctx *c, const Ask *const *ask, int64_t n, Tensor **out) {
    for (int k = 0; k < t->nout; k++) {
        int64_t shape[MAX_DIMS];
        memcpy(shape, t->shape[k], sizeof shape);
        shape[0] = n;
        out[k] = tensor_new(c, F32, t->ndim[k], shape);
    }
    for (int64_t at = 0; at < n; at += t->chunk) {
        size_t step = arena_mark(c->step), host = arena_mark(c->host);
        Tensor *part[MAX_OUT];
        t->run(o, c, ask + at, MIN(t->chunk, n - at), part);
        for (int k = 0; k < t->nout; k++) {
            int64_t values = numel(part[k]), row = values / part[k]->shape[0];
            c->dev->ops->copy_rows(c->dev->main, F32, (float *)out[k]->data + at * row, values, part[k]->data, values, 1, values, false);
        }
        arena_reset(c->step, step);
        arena_reset(c->host, host);
    }
}

/* Sees to it that each ask's item has been through the tower in this update, then joins the outputs of all runs that hold
 * one: joined[k] is output k, row[i] where ask i's item is in it. */
static void tower_rows(Owl *o, Tower *t, Ctx *c, const Ask *ask, int64_t n, Tensor **joined, int32_t *row) {
    const Ask **fresh = arena_alloc(c->host, (size_t)n * sizeof *fresh);
    TowerRow *at = arena_alloc(c->host, (size_t)n * sizeof *at);
    int64_t nfresh = 0;
    for (int64_t i = 0; i < n; i++) {
        TowerKey key = t->key(&ask[i]);
        const TowerRow *known = tower_find(&t->cache, key);
        at[i] = known ? *known : (TowerRow){(int32_t)t->nsources, (int32_t)nfresh};
        if (known) continue;
        tower_add(&t->cache, key, at[i]);
        fresh[nfresh++] = &ask[i];
    }
    if (nfresh) {
        GROW(t->source, t->cap, t->nsources + 1);
        Source *s = &t->source[t->nsources++];
        *s = (Source){.tape = c->tape};
        if (c->tape) t->run(o, c, fresh, nfresh, s->out);
        else run_chunks(o, t, c, fresh, nfresh, s->out);
        *t->rows += nfresh;
    }

    int64_t *first = ARENA_NEW(c->host, int64_t, t->nsources); /* row of a source in the joined tensors, plus one; 0: not used */
    Tensor **part = arena_alloc(c->host, (size_t)(t->nsources * t->nout) * sizeof *part);
    int nparts = 0;
    int64_t rows = 0;
    for (int64_t i = 0; i < n; i++) first[at[i].source] = 1;
    for (int64_t j = 0; j < t->nsources; j++) {
        if (!first[j]) continue;
        const Source *s = &t->source[j];
        CHECK(s->tape == c->tape || !o->m.params.grad, "%s: tower outputs made %s a tape are read %s one: module_begin is missing",
              o->m.folder, s->tape ? "with" : "without", c->tape ? "with" : "without");
        first[j] += rows;
        rows += s->out[0]->shape[0];
        for (int k = 0; k < t->nout; k++) part[k * t->nsources + nparts] = s->out[k];
        nparts++;
    }
    for (int k = 0; k < t->nout; k++) joined[k] = op_concat_rows(c, part + k * t->nsources, nparts);
    for (int64_t i = 0; i < n; i++) row[i] = (int32_t)(first[at[i].source] - 1 + at[i].row);
}

/* ---- forward -------------------------------------------------------------------------------------- */

/* Rows idx of x; x itself when that is all of them in order (each image asked once: the usual case). */
static Tensor *pick(Ctx *c, Tensor *x, const int32_t *idx, int64_t n) {
    bool all = x->shape[0] == n;
    for (int64_t i = 0; all && i < n; i++) all = idx[i] == i;
    return all ? x : op_gather(c, x, idx, n);
}

static void owlvit_forward(Module *m, Ctx *c, const Ask *ask, int64_t n, Outputs *out) {
    Owl *o = (Owl *)m;
    if (!o->box_bias.data) {
        o->dev = c->dev;
        o->box_bias.data = c->dev->alloc(c->dev, tensor_bytes(&o->box_bias));
        c->dev->upload(c->dev, o->box_bias.data, o->box_bias_host, tensor_bytes(&o->box_bias));
    }
    int32_t *img = arena_alloc(c->host, (size_t)n * sizeof *img), *txt = arena_alloc(c->host, (size_t)n * sizeof *txt);
    Tensor *image[IMAGE_OUTS], *text[TEXT_OUTS];
    tower_rows(o, &o->image_tower, c, ask, n, image, img);
    tower_rows(o, &o->text_tower, c, ask, n, text, txt);
    Tensor *dot = op_pair_scores(c, image[IMAGE_CLASS], text[TEXT_QUERY], img, txt, n);
    Tensor *shifted = op_add(c, dot, pick(c, image[IMAGE_SHIFT], img, n));
    out->logits = op_mul(c, shifted, pick(c, image[IMAGE_SCALE], img, n));
    out->boxes = pick(c, image[IMAGE_BOXES], img, n);
}

static void owlvit_begin(Module *m) {
    Owl *o = (Owl *)m;
    tower_clear(&o->image_tower.cache);
    tower_clear(&o->text_tower.cache);
    o->image_tower.nsources = o->text_tower.nsources = 0;
}

static void owlvit_close(Module *m) {
    Owl *o = (Owl *)m;
    if (o->box_bias.data) o->dev->release(o->dev, o->box_bias.data, tensor_bytes(&o->box_bias));
    tower_free(&o->image_tower.cache);
    tower_free(&o->text_tower.cache);
    free(o->image_tower.source);
    free(o->text_tower.source);
}

const ModuleType owlvit_type = {
    .name = "owlvit", .step = "LOC", .size = sizeof(Owl), .open = owlvit_open, .forward = owlvit_forward,
    .init = owlvit_init, .begin = owlvit_begin, .close = owlvit_close,
};
