/* vilt.c -- ViLT, the vision-and-language transformer that answers VQA. Source: Kim et al. 2021.
 *
 * One transformer over text tokens and image patches; the answer is read from the first token. Names, sizes
 * and numerics are those of Hugging Face's ViltForQuestionAnswering. Two things differ in order only, not in
 * value: patches keep raster order (the reference draws them at random, which attention cannot see), and the
 * last block computes only the token that is read.
 *
 * The image tower is the patch embedding, run once per distinct (image, rectangle) of an update. Images of
 * like size share a source without much padding; a source is asked in one forward.
 *
 * With num_images 2 in config.json it is ViltForImagesAndTextClassification, NLVR2's: the transformer runs once on each picture
 * (which of the two it is, is told by the modality), and the head sees both.
 */
#include <math.h>

#include "modules/module.h"

enum { MAX_SOURCES = 256, MAX_LAYERS = 64 };

/* Patch embeddings of `n` images padded to gh x gw patches: tokens (n, 1 + gh*gw, C). */
typedef struct Source {
    Tensor *tokens;
    int n, gh, gw;
    const int (*grid)[2];
} Source;

typedef struct Vilt {
    Module base;
    int64_t C, mlp, layers, heads, vocab, text_len, patch, grid, image_size;
    float eps, dropout;
    Activation act;
    int shortest; /* side that the shorter edge is resized to */
    PatchSpec spec;
    Tensor *word, *text_pos, *segment, *cls, *pos, *modality, *patch_w, *patch_b;
    Layer text_norm, final_norm, pooler, head0, head_norm, head3;
    Block block[MAX_LAYERS];
    TowerCache images, texts;
    Source source[MAX_SOURCES];
    int nsources;
} Vilt;

static const BlockNames names = {
    .norm1 = "layernorm_before",
    .q = "attention.attention.query",
    .k = "attention.attention.key",
    .v = "attention.attention.value",
    .proj = "attention.output.dense",
    .norm2 = "layernorm_after",
    .fc1 = "intermediate.dense",
    .fc2 = "output.dense",
};

static bool vilt_open(Module *m, Error *e) {
    Vilt *v = (Vilt *)m;
    double eps, dropout;
    int64_t classes, modalities, segments, images;
    if (!config_int(m, "hidden_size", 768, 1, 65536, &v->C, e) ||
        !config_int(m, "intermediate_size", 3072, 1, 262144, &v->mlp, e) ||
        !config_int(m, "num_hidden_layers", 12, 1, MAX_LAYERS, &v->layers, e) ||
        !config_int(m, "num_attention_heads", 12, 1, 1024, &v->heads, e) ||
        !config_int(m, "vocab_size", 30522, 1, 1 << 24, &v->vocab, e) ||
        !config_int(m, "max_position_embeddings", 40, 2, 4096, &v->text_len, e) ||
        !config_int(m, "type_vocab_size", 2, 1, 64, &segments, e) ||
        !config_int(m, "num_images", -1, -1, 2, &images, e) ||
        !config_int(m, "modality_type_vocab_size", 2, images == 2 ? 3 : 2, 64, &modalities, e) ||
        !config_int(m, "image_size", 384, 1, 16384, &v->image_size, e) ||
        !config_int(m, "patch_size", 32, 1, 1024, &v->patch, e) ||
        !config_int(m, "num_labels", m->nlabels, 0, 1 << 20, &classes, e) ||
        !config_float(m, "layer_norm_eps", 1e-12, &eps, e) ||
        !config_float(m, "hidden_dropout_prob", 0, &dropout, e) ||
        !config_activation(m, "hidden_act", "gelu", &v->act, e) || !processor_norm(m, &v->spec, e))
        return false;
    if (v->C % v->heads)
        return fail_as(e, FAIL_MODEL,
                       "%s/config.json: hidden_size %" PRId64
                       " is no multiple of num_attention_heads %" PRId64,
                       m->folder, v->C, v->heads);
    m->images = images == 2 ? 2 : 1;
    if (!m->nlabels && m->images == 2) { /* two labels are transformers' default, which it does not write */
        static const char *nlvr2[] = {"False", "True"};
        m->label = nlvr2;
        m->nlabels = COUNT_OF(nlvr2);
    }
    if (!m->nlabels)
        return fail_as(e, FAIL_MODEL, "%s/config.json: id2label (the answers) is missing", m->folder);
    json_t *size = json_path(m->processor, "size.shortest_edge");
    if (!size) size = json_path(m->processor, "size");
    v->shortest = json_is_integer(size) ? (int)json_integer_value(size) : (int)v->image_size;
    if (v->shortest < v->patch || v->shortest > 16384)
        return fail_as(e, FAIL_MODEL,
                       "%s/preprocessor_config.json: size.shortest_edge is %d, below the patch of %" PRId64,
                       m->folder, v->shortest, v->patch);
    v->eps = (float)eps;
    v->dropout = (float)dropout;
    v->grid = v->image_size / v->patch;
    v->spec.patch = (int)v->patch;
    if (!(m->tokenizer = token_open(m->folder, TOKEN_BERT, e))) return false;
    if (token_size(m->tokenizer) > v->vocab)
        return fail_as(e, FAIL_MODEL,
                       "%s: the tokenizer has ids up to %d, config.json's vocab_size is %" PRId64, m->folder,
                       token_size(m->tokenizer) - 1, v->vocab);

    ParamSet *ps = &m->params;
    int64_t C = v->C;
#define EMB "vilt.embeddings."
    v->cls = PARAM(ps, PARAM_EMBEDDING, (1, 1, C), EMB "cls_token");
    v->pos = PARAM(ps, PARAM_EMBEDDING, (1, 1 + v->grid * v->grid, C), EMB "position_embeddings");
    v->word = PARAM(ps, PARAM_EMBEDDING, (v->vocab, C), EMB "text_embeddings.word_embeddings.weight");
    v->text_pos =
        PARAM(ps, PARAM_EMBEDDING, (v->text_len, C), EMB "text_embeddings.position_embeddings.weight");
    v->segment =
        PARAM(ps, PARAM_EMBEDDING, (segments, C), EMB "text_embeddings.token_type_embeddings.weight");
    v->text_norm = norm_new(ps, C, EMB "text_embeddings.LayerNorm");
    Tensor *kernel =
        PARAM(ps, PARAM_WEIGHT, (C, 3, v->patch, v->patch), EMB "patch_embeddings.projection.weight");
    v->patch_w = param_matrix(ps, kernel, C);
    v->patch_b = PARAM(ps, PARAM_BIAS, (C), EMB "patch_embeddings.projection.bias");
    v->modality = PARAM(ps, PARAM_EMBEDDING, (modalities, C), EMB "token_type_embeddings.weight");
    for (int i = 0; i < v->layers; i++) {
        char prefix[64];
        snprintf(prefix, sizeof prefix, "vilt.encoder.layer.%d.", i);
        block_new(&v->block[i], ps, C, v->mlp, &names, prefix);
    }
    v->final_norm = norm_new(ps, C, "vilt.layernorm");
    v->pooler = linear_new(ps, C, C, true, "vilt.pooler.dense");
    v->head0 = linear_new(ps, 2 * C, m->images * C, true, "classifier.0");
    v->head_norm = norm_new(ps, 2 * C, "classifier.1");
    v->head3 = linear_new(ps, m->nlabels, 2 * C, true, "classifier.3");
    return true;
}

/* ---- images --------------------------------------------------------------------------------------- */

/* The reference's resize rule: shorter side to `shortest`, longer at most 1333/800 of it, both down to a multiple of the
 * patch; at least one patch, where the reference fails on very long crops. */
static void vilt_size(const Vilt *v, Rect r, int out[2]) {
    double h = rect_h(r), w = rect_w(r), scale = v->shortest / MIN(h, w);
    int limit = (int)(1333.0 / 800.0 * v->shortest);
    if (h < w)
        w *= scale, h = v->shortest;
    else
        h *= scale, w = v->shortest;
    if (MAX(h, w) > limit) {
        scale = limit / MAX(h, w);
        h *= scale;
        w *= scale;
    }
    int p = (int)v->patch;
    out[0] = MAX((int)(h + 0.5) / p * p, p);
    out[1] = MAX((int)(w + 0.5) / p * p, p);
}

/* Bilinear weights, align_corners: target (y, x) of a vh x vw grid in the learned g x g positions (row 0 is the class token). */
static void position_weights(const Vilt *v, int vh, int vw, int y, int x, int32_t idx[4], float w[4]) {
    int g = (int)v->grid;
    double sy = vh > 1 ? (double)y * (g - 1) / (vh - 1) : 0, sx = vw > 1 ? (double)x * (g - 1) / (vw - 1) : 0;
    int y0 = MIN((int)sy, g - 1), x0 = MIN((int)sx, g - 1), y1 = MIN(y0 + 1, g - 1), x1 = MIN(x0 + 1, g - 1);
    float fy = (float)(sy - y0), fx = (float)(sx - x0);
    idx[0] = 1 + y0 * g + x0, w[0] = (1 - fy) * (1 - fx);
    idx[1] = 1 + y0 * g + x1, w[1] = (1 - fy) * fx;
    idx[2] = 1 + y1 * g + x0, w[2] = fy * (1 - fx);
    idx[3] = 1 + y1 * g + x1, w[3] = fy * fx;
}

/* Adds row k of a (rows, C) table to every row of x. */
static Tensor *add_table_row(Ctx *c, Tensor *x, Tensor *table, int32_t k) {
    return op_add_rows(c, x, op_gather(c, table, &k, 1));
}

/* Which picture of its question: also its modality (0 is text). The same one in the other place is embedded anew. */
enum { FIRST = 1, SECOND };

static TowerKey picture_key(const Ask *a, int role) {
    TowerKey key = ask_image_key(a);
    if (role == SECOND) key.a = ~key.a;
    return key;
}

/* Embeds n new images as one source: modality[role] + ([cls + pos0] ++ [patch + its position]). */
static void embed_source(Vilt *v, Ctx *c, const Ask *const *ask, const int (*size)[2], int n, int role) {
    CHECK(v->nsources < MAX_SOURCES, "%d groups of image sizes in one update", v->nsources);
    Source *s = &v->source[v->nsources];
    int p = (int)v->patch;
    int(*grid)[2] = arena_alloc(c->host, (size_t)n * sizeof *grid);
    ImageView *image = arena_alloc(c->host, (size_t)n * sizeof *image);
    Rect *rect = arena_alloc(c->host, (size_t)n * sizeof *rect);
    *s = (Source){.n = n, .grid = grid};
    for (int i = 0; i < n; i++) {
        grid[i][0] = size[i][0] / p;
        grid[i][1] = size[i][1] / p;
        s->gh = MAX(s->gh, grid[i][0]);
        s->gw = MAX(s->gw, grid[i][1]);
        image[i] = ask[i]->image;
        rect[i] = ask[i]->rect;
        *tower_find(&v->images, picture_key(ask[i], role)) = (TowerRow){v->nsources, i};
    }
    v->nsources++;
    v->base.image_rows += n;
    int64_t P = (int64_t)s->gh * s->gw, C = v->C;
    v->spec.grid_h = s->gh;
    v->spec.grid_w = s->gw;
    Tensor *x = op_linear(c, op_image_patches(c, compute_type(v->patch_w), image, rect, size, &v->spec, n),
                          v->patch_w, v->patch_b);

    int32_t *idx = arena_alloc(c->host, (size_t)(n * P) * 16);
    float *w = arena_zalloc(c->host, (size_t)(n * P) * 16);
    memset(idx, 0, (size_t)(n * P) * 16);
    for (int i = 0; i < n; i++)
        for (int y = 0; y < grid[i][0]; y++)
            for (int xx = 0; xx < grid[i][1]; xx++) {
                int64_t at = i * P + (int64_t)y * s->gw + xx;
                position_weights(v, grid[i][0], grid[i][1], y, xx, idx + 4 * at, w + 4 * at);
            }
    Tensor *pos = RESHAPE(c, v->pos, 1 + v->grid * v->grid, C);
    x = op_add(c, x, op_interp_rows(c, pos, idx, w, n * P));

    Tensor *cls = add_table_row(c, RESHAPE(c, v->cls, 1, C), pos, 0);
    int32_t *zero = arena_zalloc(c->host, (size_t)n * 4);
    Tensor *parts[] = {RESHAPE(c, op_gather(c, cls, zero, n), n, 1, C), x};
    s->tokens = add_table_row(c, op_concat_tokens(c, parts, 2), v->modality, role);
}

typedef struct Fresh {
    const Ask *ask;
    int size[2];
} Fresh;

static int by_size(const void *a, const void *b) {
    const Fresh *x = a, *y = b;
    int px = x->size[0] * x->size[1], py = y->size[0] * y->size[1];
    return px != py ? px - py : x->size[0] - y->size[0];
}

/* Embeds the images of `ask` that this update has not seen, grouped so that padding stays under a quarter. */
static void embed_new(Vilt *v, Ctx *c, const Ask *ask, int64_t n, int role) {
    Fresh *fresh = arena_alloc(c->host, (size_t)n * sizeof *fresh);
    int count = 0;
    for (int64_t i = 0; i < n; i++) {
        const Ask *a = &ask[i * v->base.images + role - 1];
        TowerKey key = picture_key(a, role);
        if (tower_find(&v->images, key)) continue;
        tower_add(&v->images, key, (TowerRow){-1, -1}); /* claimed; embed_source says where */
        fresh[count] = (Fresh){.ask = a};
        vilt_size(v, a->rect, fresh[count].size);
        count++;
    }
    arena_sort(c->host, fresh, count, sizeof *fresh, by_size);
    const Ask **list = arena_alloc(c->host, (size_t)count * sizeof *list);
    int(*size)[2] = arena_alloc(c->host, (size_t)count * sizeof *size);
    for (int begin = 0, end; begin < count; begin = end) {
        int64_t used = 0, h = 0, w = 0;
        for (end = begin; end < count; end++) {
            int64_t h1 = MAX(h, fresh[end].size[0]), w1 = MAX(w, fresh[end].size[1]),
                    u1 = used + (int64_t)fresh[end].size[0] * fresh[end].size[1];
            if (end > begin && 4 * h1 * w1 * (end - begin + 1) > 5 * u1) break;
            h = h1, w = w1, used = u1;
            list[end] = fresh[end].ask;
            size[end][0] = fresh[end].size[0];
            size[end][1] = fresh[end].size[1];
        }
        embed_source(v, c, list + begin, (const int(*)[2])(size + begin), end - begin, role);
    }
}

/* ---- text ----------------------------------------------------------------------------------------- */

typedef struct Texts {
    Tensor *tokens;
    const int *len;
    int n, L;
} Texts;

/* Embeds the distinct questions; txt[i] is the row of ask i. */
static Texts embed_texts(Vilt *v, Ctx *c, const Ask *ask, int64_t n, int32_t *txt) {
    Module *m = &v->base;
    int *ids = arena_alloc(c->host, (size_t)(n * v->text_len) * sizeof *ids),
        *len = arena_alloc(c->host, (size_t)n * sizeof *len);
    Texts t = {.len = len};
    tower_clear(&v->texts); /* distinct within this call: the text side is a look-up, not a tower */
    for (int64_t i = 0; i < n; i++) {
        const Ask *a = &ask[i * m->images];
        TowerKey key = ask_text_key(a);
        TowerRow *r = tower_find(&v->texts, key);
        if (r) {
            txt[i] = r->row;
            continue;
        }
        tower_add(&v->texts, key, (TowerRow){0, t.n});
        len[t.n] = token_encode(m->tokenizer, a->query, strlen(a->query), ids + t.n * v->text_len,
                                (int)v->text_len);
        t.L = MAX(t.L, len[t.n]);
        txt[i] = t.n++;
    }
    m->text_rows += t.n;
    int32_t *flat = arena_alloc(c->host, (size_t)(t.n * t.L) * 4),
            *place = arena_alloc(c->host, (size_t)t.L * 4);
    for (int i = 0; i < t.n; i++)
        for (int k = 0; k < t.L; k++)
            flat[i * t.L + k] = k < len[i] ? ids[i * v->text_len + k] : token_pad(m->tokenizer);
    for (int k = 0; k < t.L; k++) place[k] = k;
    Tensor *x = op_gather(c, v->word, flat, (int64_t)t.n * t.L);
    x = add_table_row(c, x, v->segment, 0);
    x = op_add_rows(c, x, op_gather(c, v->text_pos, place, t.L));
    x = op_dropout(c, norm(c, v->text_norm, x, v->eps), v->dropout);
    t.tokens = RESHAPE(c, add_table_row(c, x, v->modality, 0), t.n, t.L, v->C);
    return t;
}

/* ---- forward -------------------------------------------------------------------------------------- */

/* Runs n asks whose images are rows img[] of one source: what the pooler makes of the first token, (n, C). */
static Tensor *pool(Vilt *v, Ctx *c, const Source *s, const Texts *t, const int32_t *img,
                      const int32_t *txt, int64_t n) {
    int64_t P = (int64_t)s->gh * s->gw, T = t->L + 1 + P;
    Tensor *parts[] = {op_gather(c, t->tokens, txt, n), op_gather(c, s->tokens, img, n)};
    Tensor *x = op_concat_tokens(c, parts, 2);
    uint8_t *mask = arena_alloc(c->host, (size_t)(n * T));
    bool padded = false;
    for (int64_t i = 0; i < n; i++) {
        uint8_t *row = mask + i * T;
        int vh = s->grid[img[i]][0], vw = s->grid[img[i]][1];
        padded |= t->len[txt[i]] < t->L || vh < s->gh || vw < s->gw;
        for (int k = 0; k < t->L; k++) row[k] = k < t->len[txt[i]];
        row[t->L] = 1;
        for (int y = 0; y < s->gh; y++)
            for (int xx = 0; xx < s->gw; xx++) row[t->L + 1 + y * s->gw + xx] = y < vh && xx < vw;
    }
    BlockSpec spec = {.H = (int)v->heads,
                      .eps = v->eps,
                      .act = v->act,
                      .dropout = v->dropout,
                      .mask = padded ? ctx_upload(c, mask, (size_t)(n * T)) : NULL};
    Residual r = blocks_forward(c, v->block, v->layers - 1, x, &spec);
    r = block_forward_first(c, &v->block[v->layers - 1], r, &spec);
    x = RESHAPE(c, residual_norm(c, v->final_norm, r, v->eps), n, v->C);
    return op_tanh(c, linear(c, v->pooler, x));
}

static Tensor *head(Vilt *v, Ctx *c, Tensor *x) {
    x = norm(c, v->head_norm, linear(c, v->head0, x), 1e-5f);
    return linear_f32(c, v->head3, op_gelu(c, x));
}

/* All asks on their first or second pictures, in their order: pooled, or (headed) the answers' logits. */
static Tensor *run(Vilt *v, Ctx *c, const Ask *ask, int64_t n, const Texts *t, const int32_t *txt, int role, bool headed) {
    int32_t *img = arena_alloc(c->host, (size_t)n * 4), *at = arena_alloc(c->host, (size_t)n * 4);
    int32_t *sub_img = arena_alloc(c->host, (size_t)n * 4), *sub_txt = arena_alloc(c->host, (size_t)n * 4);
    int *from = arena_alloc(c->host, (size_t)n * sizeof *from);
    for (int64_t i = 0; i < n; i++) {
        TowerRow *r = tower_find(&v->images, picture_key(&ask[i * v->base.images + role - 1], role));
        from[i] = r->source;
        img[i] = r->row;
    }
    Tensor *parts[MAX_SOURCES];
    int nparts = 0;
    int32_t done = 0;
    for (int s = 0; s < v->nsources; s++) { /* one forward per source that is asked about */
        int64_t k = 0;
        for (int64_t i = 0; i < n; i++)
            if (from[i] == s) {
                sub_img[k] = img[i];
                sub_txt[k++] = txt[i];
                at[i] = done++;
            }
        if (!k) continue;
        parts[nparts] = pool(v, c, &v->source[s], t, sub_img, sub_txt, k);
        if (headed) parts[nparts] = head(v, c, parts[nparts]);
        nparts++;
    }
    Tensor *all = op_concat_rows(c, parts, nparts);
    return nparts > 1 ? op_gather(c, all, at, n) : all; /* back to the order of the asks */
}

static void vilt_forward(Module *m, Ctx *c, const Ask *ask, int64_t n, Outputs *out) {
    Vilt *v = (Vilt *)m;
    for (int role = FIRST; role <= m->images; role++) embed_new(v, c, ask, n, role);
    int32_t *txt = arena_alloc(c->host, (size_t)n * 4);
    Texts t = embed_texts(v, c, ask, n, txt);
    if (m->images == 1) {
        out->logits = run(v, c, ask, n, &t, txt, FIRST, true);
        return;
    }
    Tensor *both[2];
    for (int k = 0; k < 2; k++) both[k] = RESHAPE(c, run(v, c, ask, n, &t, txt, k ? SECOND : FIRST, false), n, 1, v->C);
    out->logits = head(v, c, RESHAPE(c, op_concat_tokens(c, both, 2), n, 2 * v->C));
}

/* A fresh network whose config has initializer_range 0 (drawn by fan-in): positions as loud as the patches they mark,
 * modality types quiet, and residual branches small enough that depth does not add up. */
static void vilt_init(Module *m) {
    Vilt *v = (Vilt *)m;
    double std = 0;
    config_float(m, "initializer_range", 0.02, &std, NULL);
    if (std > 0) return;
    param_scale(&m->params, v->pos, 2);
    param_scale(&m->params, v->modality, 0.2f);
    blocks_init(&m->params, v->block, (int)v->layers);
}

static void vilt_begin(Module *m) {
    Vilt *v = (Vilt *)m;
    tower_clear(&v->images);
    v->nsources = 0;
}

static void vilt_close(Module *m) {
    tower_free(&((Vilt *)m)->images);
    tower_free(&((Vilt *)m)->texts);
}

const ModuleType vilt_type = {
    .name = "vilt",
    .step = "VQA",
    .size = sizeof(Vilt),
    .open = vilt_open,
    .begin = vilt_begin,
    .init = vilt_init,
    .forward = vilt_forward,
    .close = vilt_close,
};
