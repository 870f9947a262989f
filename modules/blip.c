/* blip.c -- BLIP for VQA: it writes its answer, or ranks those of a list. Source: Li et al. 2022.
 *
 * An image encoder; a question encoder that looks at the image in every layer; an answer decoder that looks
 * at what the question encoder gave. Names, sizes and numerics are those of Hugging Face's
 * BlipForQuestionAnswering. What the published code adds:
 *
 *   answer_list.json   in the folder, a list of answers: the module then ranks these (the original's closed
 *                      vocabulary) and can teach and be taught; without it the answer is written word by
 *                      word, and there are no probabilities
 *   "answer_candidates"  in config.json, 128: how many of the list are ranked in full, the others by their
 *                      first word alone
 *   "question_start"   in config.json: "[CLS]" (default, what transformers feeds) or "[ENC]", the token
 *                      that the weights were trained with; then the question loses its punctuation and is
 *                      cut at 50 words as in training
 *
 * A question's answer never depends on the others of its batch: padding is masked everywhere (the reference
 * masks none when it writes, which is the same for a question on its own).
 */
#include <math.h>

#include "modules/tower.h"

enum { MAX_LAYERS = 64, ANSWER_IDS = 20, GROUP = 16, IMAGE_TOKENS = 0 };

/* BERT's layer with a second attention, each followed by its norm. */
typedef struct BertLayer {
    Layer qkv, out, norm1, q, kv, cross_out, norm2, fc1, fc2, norm3;
} BertLayer;

typedef struct Bert {
    Tensor *word, *position;
    Layer norm;
    BertLayer layer[MAX_LAYERS];
} Bert;

typedef struct Blip {
    Module m;
    int64_t C, mlp, layers, heads, grid, P; /* of the image encoder */
    double eps;
    Activation act;
    PatchSpec patches;
    Layer patch, post_norm;
    Tensor *class_embedding, *position;
    Block block[MAX_LAYERS];

    int64_t W, text_mlp, text_layers, text_heads, vocab, positions; /* of both text stacks */
    double text_eps, dropout;
    Activation text_act;
    Bert encoder, decoder;
    Layer transform, transform_norm;
    Tensor *word_bias; /* of the decoder's last layer, whose weight is its word table */
    int64_t begin, end; /* ids around an answer */
    int64_t start;      /* the question's first id */
    bool cleaned;       /* questions as in the original training */
    float smoothing;
    int64_t candidates; /* answers that are ranked in full */
    int32_t *answer;    /* (nlabels, ANSWER_IDS): begin, the words, end */
    int *answer_len;
    Tower images;
} Blip;

/* What a forward leaves for the loss and for writing. */
typedef struct Asked {
    Tensor *states;  /* (n, L, W) */
    const int *len;  /* tokens of each question */
    int64_t n, L;
} Asked;

/* ---- opening -------------------------------------------------------------------------------------- */

static Layer fused(ParamSet *ps, int count, int64_t out, int64_t in, const char *prefix,
                   const char *const *names) {
    return (Layer){.w = param_fused(ps, PARAM_WEIGHT, count, 2, (int64_t[]){out, in}, prefix, names, ".weight"),
                   .b = param_fused(ps, PARAM_BIAS, count, 1, (int64_t[]){out}, prefix, names, ".bias")};
}

static void bert_declare(const Blip *o, Bert *b, ParamSet *ps, const char *prefix) {
    static const char *const qkv[] = {"attention.self.query", "attention.self.key", "attention.self.value"},
                      *const kv[] = {"crossattention.self.key", "crossattention.self.value"},
                      *const single[] = {"attention.output.dense", "crossattention.self.query",
                                         "crossattention.output.dense", "intermediate.dense", "output.dense"};
    int64_t W = o->W;
    b->word = PARAM(ps, PARAM_EMBEDDING, (o->vocab, W), "%sembeddings.word_embeddings.weight", prefix);
    b->position =
        PARAM(ps, PARAM_EMBEDDING, (o->positions, W), "%sembeddings.position_embeddings.weight", prefix);
    b->norm = norm_new(ps, W, "%sembeddings.LayerNorm", prefix);
    for (int64_t i = 0; i < o->text_layers; i++) {
        BertLayer *l = &b->layer[i];
        char in[96];
        snprintf(in, sizeof in, "%sencoder.layer.%" PRId64 ".", prefix, i);
        l->qkv = fused(ps, 3, W, W, in, qkv);
        l->out = linear_new(ps, W, W, true, "%sattention.output.dense", in);
        l->norm1 = norm_new(ps, W, "%sattention.output.LayerNorm", in);
        l->q = linear_new(ps, W, W, true, "%scrossattention.self.query", in);
        l->kv = fused(ps, 2, W, W, in, kv);
        l->cross_out = linear_new(ps, W, W, true, "%scrossattention.output.dense", in);
        l->norm2 = norm_new(ps, W, "%scrossattention.output.LayerNorm", in);
        l->fc1 = linear_new(ps, o->text_mlp, W, true, "%sintermediate.dense", in);
        l->fc2 = linear_new(ps, W, o->text_mlp, true, "%soutput.dense", in);
        l->norm3 = norm_new(ps, W, "%soutput.LayerNorm", in);
        if (!ps->lora) continue;
        lora_adapt(ps->lora, &l->qkv, 3, in, qkv);
        lora_adapt(ps->lora, &l->kv, 2, in, kv);
        for (int k = 0; k < COUNT_OF(single); k++)
            lora_adapt(ps->lora, (Layer *[]){&l->out, &l->q, &l->cross_out, &l->fc1, &l->fc2}[k], 1, in, &single[k]);
    }
}

static void declare(Blip *o) {
    ParamSet *ps = &o->m.params;
    int64_t C = o->C, p = o->patches.patch;
#define EMB "vision_model.embeddings."
    o->class_embedding = param_matrix(ps, PARAM(ps, PARAM_EMBEDDING, (1, 1, C), EMB "class_embedding"), 1);
    o->position = PARAM(ps, PARAM_EMBEDDING, (1, o->P + 1, C), EMB "position_embedding");
    o->patch.w = param_matrix(ps, PARAM(ps, PARAM_WEIGHT, (C, 3, p, p), EMB "patch_embedding.weight"), C);
    o->patch.b = PARAM(ps, PARAM_BIAS, (C), EMB "patch_embedding.bias");
#undef EMB
    for (int64_t i = 0; i < o->layers; i++) {
        Block *b = &o->block[i];
        char in[96];
        snprintf(in, sizeof in, "vision_model.encoder.layers.%" PRId64 ".", i);
        b->norm1 = norm_new(ps, C, "%slayer_norm1", in);
        b->qkv = linear_new(ps, 3 * C, C, true, "%sself_attn.qkv", in);
        b->proj = linear_new(ps, C, C, true, "%sself_attn.projection", in);
        b->norm2 = norm_new(ps, C, "%slayer_norm2", in);
        b->fc1 = linear_new(ps, o->mlp, C, true, "%smlp.fc1", in);
        b->fc2 = linear_new(ps, C, o->mlp, true, "%smlp.fc2", in);
        static const char *const adapted[] = {"self_attn.qkv", "self_attn.projection", "mlp.fc1", "mlp.fc2"};
        for (int k = 0; ps->lora && k < COUNT_OF(adapted); k++)
            lora_adapt(ps->lora, (Layer *[]){&b->qkv, &b->proj, &b->fc1, &b->fc2}[k], 1, in, &adapted[k]);
    }
    o->post_norm = norm_new(ps, C, "vision_model.post_layernorm");
    bert_declare(o, &o->encoder, ps, "text_encoder.");
    bert_declare(o, &o->decoder, ps, "text_decoder.bert.");
#define HEAD "text_decoder.cls.predictions."
    o->word_bias = PARAM(ps, PARAM_BIAS, (o->vocab), HEAD "bias");
    o->transform = linear_new(ps, o->W, o->W, true, HEAD "transform.dense");
    o->transform_norm = norm_new(ps, o->W, HEAD "transform.LayerNorm");
}

static bool read_sizes(Blip *o, Error *e) {
    Module *m = &o->m;
    int64_t image, patch;
    double smoothing;
    if (!config_int(m, "vision_config.hidden_size", 768, 1, 1 << 16, &o->C, e) ||
        !config_int(m, "vision_config.intermediate_size", 3072, 1, 1 << 20, &o->mlp, e) ||
        !config_int(m, "vision_config.num_hidden_layers", 12, 0, MAX_LAYERS, &o->layers, e) ||
        !config_int(m, "vision_config.num_attention_heads", 12, 1, o->C, &o->heads, e) ||
        !config_int(m, "vision_config.image_size", 384, 1, 8192, &image, e) ||
        !config_int(m, "vision_config.patch_size", 16, 1, image, &patch, e) ||
        !config_float(m, "vision_config.layer_norm_eps", 1e-5, &o->eps, e) ||
        !config_activation(m, "vision_config.hidden_act", "gelu", &o->act, e) ||
        !config_int(m, "text_config.hidden_size", 768, 1, 1 << 16, &o->W, e) ||
        !config_int(m, "text_config.intermediate_size", 3072, 1, 1 << 20, &o->text_mlp, e) ||
        !config_int(m, "text_config.num_hidden_layers", 12, 0, MAX_LAYERS, &o->text_layers, e) ||
        !config_int(m, "text_config.num_attention_heads", 8, 1, o->W, &o->text_heads, e) ||
        !config_int(m, "text_config.max_position_embeddings", 512, ANSWER_IDS, 1 << 16, &o->positions, e) ||
        !config_int(m, "text_config.vocab_size", 30524, 1, 1 << 24, &o->vocab, e) ||
        !config_int(m, "text_config.bos_token_id", 30522, 0, o->vocab - 1, &o->begin, e) ||
        !config_int(m, "text_config.sep_token_id", 102, 0, o->vocab - 1, &o->end, e) ||
        !config_int(m, "answer_candidates", 128, 1, 1 << 20, &o->candidates, e) ||
        !config_float(m, "text_config.layer_norm_eps", 1e-12, &o->text_eps, e) ||
        !config_float(m, "text_config.hidden_dropout_prob", 0, &o->dropout, e) ||
        !config_float(m, "text_config.label_smoothing", 0, &smoothing, e) ||
        !config_activation(m, "text_config.hidden_act", "gelu", &o->text_act, e) ||
        !processor_norm(m, &o->patches, e))
        return false;
    if (o->C % o->heads || o->W % o->text_heads)
        return fail_as(e, FAIL_MODEL,
                       "%s/config.json: hidden sizes %" PRId64 " and %" PRId64 " do not divide into %" PRId64
                       " and %" PRId64 " heads",
                       m->folder, o->C, o->W, o->heads, o->text_heads);
    if (o->C != o->W) /* the decoder's keys are as wide as the image's, and look at the question */
        return fail_as(e, FAIL_MODEL,
                       "%s/config.json: vision_config.hidden_size %" PRId64
                       ", text_config.hidden_size %" PRId64 "; this architecture wants them equal",
                       m->folder, o->C, o->W);
    if (image % patch)
        return fail_as(e, FAIL_MODEL,
                       "%s/config.json: image_size %" PRId64 " is not a multiple of patch_size %" PRId64,
                       m->folder, image, patch);
    /* Without a word in the file: what the published weights were trained and rank with. */
    o->smoothing = smoothing > 0 ? (float)smoothing : 0.1f;
    o->grid = image / patch;
    o->P = o->grid * o->grid;
    o->patches.patch = (int)patch;
    o->patches.grid_h = o->patches.grid_w = (int)o->grid;
    return true;
}

static bool read_start(Blip *o, Error *e) {
    const char *start = config_string(&o->m, "question_start", "[CLS]");
    o->cleaned = !strcmp(start, "[ENC]");
    /* [DEC] and [ENC] are the two ids behind BERT's vocabulary. */
    o->start = o->cleaned ? o->begin + 1 : token_first(o->m.tokenizer);
    if ((!o->cleaned && strcmp(start, "[CLS]")) || o->start >= o->vocab)
        return fail_as(e, FAIL_MODEL,
                       "%s/config.json: question_start is \"%s\" (id %" PRId64 " of %" PRId64
                       "); known are [CLS], [ENC]",
                       o->m.folder, start, o->start, o->vocab);
    return true;
}

/* answer_list.json: ["yes", "no", ...]. A folder without it has no list. */
static bool read_answers(Blip *o, Error *e) {
    Module *m = &o->m;
    m->nlabels = 0;
    json_t *list = NULL;
    if (!module_json(m->folder, "answer_list.json", true, &list, e)) return false;
    if (!list) return true;
    bool ok = json_is_array(list) && json_array_size(list) > 0 && json_array_size(list) < 1 << 24;
    const int n = ok ? (int)json_array_size(list) : 0;
    m->label = ARENA_NEW(&m->host, const char *, n);
    o->answer = ARENA_NEW(&m->host, int32_t, (int64_t)n *ANSWER_IDS);
    o->answer_len = ARENA_NEW(&m->host, int, n);
    for (int i = 0; ok && i < n; i++) {
        const char *text = json_string_value(json_array_get(list, (size_t)i));
        if (!(ok = text != NULL)) break;
        m->label[i] = arena_strdup(&m->host, text, strlen(text));
        int ids[ANSWER_IDS];
        o->answer_len[i] = token_encode(m->tokenizer, text, strlen(text), ids, ANSWER_IDS);
        for (int k = 0; k < o->answer_len[i]; k++)
            o->answer[i * ANSWER_IDS + k] = k ? ids[k] : (int32_t)o->begin;
    }
    m->nlabels = n;
    json_decref(list);
    return ok || fail_as(e, FAIL_MODEL, "%s/answer_list.json: not a list of one or more strings", m->folder);
}

static void image_run(Module *m, Ctx *c, const Ask *const *ask, int64_t n, Tensor **out);

static bool blip_open(Module *m, Error *e) {
    Blip *o = (Blip *)m;
    if (!read_sizes(o, e) || !(m->tokenizer = token_open(m->folder, TOKEN_BERT, e))) return false;
    if (token_size(m->tokenizer) > o->vocab)
        return fail_as(e, FAIL_MODEL,
                       "%s: the tokenizer has ids up to %d, config.json's text_config.vocab_size is %" PRId64,
                       m->folder, token_size(m->tokenizer) - 1, o->vocab);
    if (!processor_square(m, o->grid * o->patches.patch, e) || !read_start(o, e) || !read_answers(o, e))
        return false;
    declare(o);
    o->images = (Tower){.module = m,
                        .nout = 1,
                        .run = image_run,
                        .key = ask_image_key,
                        .rows = &m->image_rows,
                        .ndim = {3},
                        .shape = {{0, o->P + 1, o->C}},
                        .chunk = tower_chunk(o->P + 1, o->C)};
    return true;
}

/* ---- the three stacks ----------------------------------------------------------------------------- */

static void image_run(Module *m, Ctx *c, const Ask *const *ask, int64_t n, Tensor **out) {
    Blip *o = (Blip *)m;
    ImageView *image = arena_alloc(c->host, (size_t)n * sizeof *image);
    Rect *rect = arena_alloc(c->host, (size_t)n * sizeof *rect);
    int(*size)[2] = arena_alloc(c->host, (size_t)n * sizeof *size);
    int32_t *zero = arena_zalloc(c->host, (size_t)n * sizeof *zero);
    for (int64_t i = 0; i < n; i++) {
        image[i] = ask[i]->image;
        rect[i] = ask[i]->rect;
        size[i][0] = size[i][1] =
            (int)o->grid * o->patches.patch; /* stretched to the square, whatever its shape */
    }
    Tensor *part[2] = {
        RESHAPE(c, op_gather(c, o->class_embedding, zero, n), n, 1, o->C),
        linear(c, o->patch, op_image_patches(c, compute_type(o->patch.w), image, rect, (const int(*)[2])size, &o->patches, n))};
    Tensor *x = op_add_rows(c, op_concat_tokens(c, part, 2), o->position);
    BlockSpec spec = {.H = (int)o->heads, .eps = (float)o->eps, .act = o->act};
    out[IMAGE_TOKENS] = residual_norm(c, o->post_norm, blocks_forward(c, o->block, o->layers, x, &spec), (float)o->eps);
}

/* ids (n, T) -> (n, T, W) */
static Tensor *bert_embed(const Blip *o, Ctx *c, const Bert *b, const int32_t *ids, int64_t n, int64_t T) {
    int32_t *place = arena_alloc(c->host, (size_t)T * sizeof *place);
    for (int32_t k = 0; k < T; k++) place[k] = k;
    Tensor *x = op_add_rows(c, op_gather(c, b->word, ids, n * T), op_gather(c, b->position, place, T));
    return RESHAPE(c, op_dropout(c, norm(c, b->norm, x, (float)o->text_eps), (float)o->dropout), n, T, o->W);
}

/* What a stack looks at besides itself: row[i] of `from` is what item i sees. */
typedef struct Seen {
    Tensor *from;         /* (rows, Tk, its width) */
    const int32_t *row;   /* NULL: item i sees row i */
    Tensor *const *kv;    /* keys and values of each layer when known already, (items, Tk, 2W); else NULL */
    const uint8_t *mask;  /* (items, Tk) device, or NULL */
} Seen;

static Tensor *keys_values(Ctx *c, const BertLayer *l, const Seen *s, int64_t n) {
    Tensor *kv = linear(c, l->kv, s->from); /* once per row, however many items look at it */
    return s->row ? op_gather(c, kv, s->row, n) : kv;
}

/* norm(x + y) */
static Tensor *joined(const Blip *o, Ctx *c, Tensor *y, Tensor *x, Layer n) {
    return residual_norm(c, n, (Residual){x, op_dropout(c, y, (float)o->dropout)}, (float)o->text_eps);
}

static Tensor *layer_body(const Blip *o, Ctx *c, const BertLayer *l, Tensor *x, Tensor *kv,
                          const uint8_t *mask, bool causal, const Seen *s) {
    const int H = (int)o->text_heads;
    Tensor *a = op_self_attention(c, linear(c, l->qkv, x), H, mask, causal);
    x = joined(o, c, linear(c, l->out, a), x, l->norm1);
    if (!kv) kv = keys_values(c, l, s, x->shape[0]);
    a = op_cross_attention(c, linear(c, l->q, x), kv, H, s->mask);
    x = joined(o, c, linear(c, l->cross_out, a), x, l->norm2);
    return joined(o, c, mlp(c, l->fc1, o->text_act, l->fc2, x), x, l->norm3);
}

static Tensor *bert_run(const Blip *o, Ctx *c, const Bert *b, Tensor *x, const uint8_t *mask, bool causal,
                        const Seen *s) {
    for (int64_t i = 0; i < o->text_layers; i++) {
        Tensor *kv = s->kv ? s->kv[i] : NULL;
        if (c->tape) {
            x = layer_body(o, c, &b->layer[i], x, kv, mask, causal, s);
            continue;
        }
        /* Nobody will look back: keep the result alone, as block_forward does. */
        Tensor *y = tensor_like(c, x);
        size_t step = arena_mark(c->step), host = arena_mark(c->host);
        Tensor *r = layer_body(o, c, &b->layer[i], x, kv, mask, causal, s);
        c->dev->ops->copy_rows(c->dev->main, y->dtype, y->data, numel(y), r->data, numel(y), 1, numel(y),
                               false);
        arena_reset(c->step, step);
        arena_reset(c->host, host);
        x = y;
    }
    return x;
}

/* The decoder's logits over the vocabulary: (rows, W) -> (rows, vocab). */
static Tensor *word_logits(const Blip *o, Ctx *c, Tensor *x) {
    x = activate(c, o->text_act, linear(c, o->transform, x));
    return op_linear_f32(c, norm(c, o->transform_norm, x, (float)o->text_eps), o->decoder.word, o->word_bias);
}

/* 1 for the first len[i] of T tokens of item i, on the device; NULL when that is all of them. row as in
 * Seen. */
static const uint8_t *length_mask(Ctx *c, const int *len, const int32_t *row, int64_t n, int64_t T) {
    uint8_t *mask = arena_zalloc(c->host, (size_t)(n * T));
    bool padded = false;
    for (int64_t i = 0; i < n; i++) {
        const int64_t k = len[row ? row[i] : i];
        memset(mask + i * T, 1, (size_t)k);
        padded |= k < T;
    }
    return padded ? ctx_upload(c, mask, (size_t)(n * T)) : NULL;
}

/* ---- the question --------------------------------------------------------------------------------- */

/* As the original prepares questions: lower case, without . ! " ( ) * # : ; ~, at most 50 words. */
static const char *cleaned(Ctx *c, const char *question) {
    char *out = arena_strdup(c->host, question, strlen(question)), *to = out;
    int words = 0;
    for (const char *p = question; *p; p++) {
        if (strchr(".!\"()*#:;~", *p)) continue;
        if (*p == ' ' && ++words == 50) break;
        *to++ = *p;
    }
    *to = 0;
    return out;
}

enum { QUESTION_IDS = 35 }; /* of the original; transformers sets no limit but the position table */

static int32_t *question_ids(const Blip *o, Ctx *c, const Ask *ask, int64_t n, int *len, int64_t *L) {
    const int64_t most = o->cleaned ? MIN(QUESTION_IDS, o->positions) : o->positions;
    int **ids = arena_alloc(c->host, (size_t)n * sizeof *ids);
    int *room = arena_alloc(c->host, (size_t)most * sizeof *room);
    *L = 0;
    for (int64_t i = 0; i < n; i++) {
        const char *text = o->cleaned ? cleaned(c, ask[i].query) : ask[i].query;
        len[i] = token_encode(o->m.tokenizer, text, strlen(text), room, (int)most);
        ids[i] = arena_alloc(c->host, (size_t)len[i] * sizeof *room);
        memcpy(ids[i], room, (size_t)len[i] * sizeof *room);
        ids[i][0] = (int)o->start;
        *L = MAX(*L, len[i]);
    }
    int32_t *flat = arena_alloc(c->host, (size_t)(n * *L) * sizeof *flat);
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < *L; k++)
            flat[i * *L + k] = k < len[i] ? ids[i][k] : token_pad(o->m.tokenizer);
    return flat;
}

/* The question encoder's states (n, L, W). Without a tape GROUP questions at a time: keys and values of all
 * image tokens are some 4 MB per question and layer. */
static Tensor *encode(const Blip *o, Ctx *c, Tensor *tokens, const int32_t *img, const int32_t *ids,
                      const int *len, int64_t n, int64_t L) {
    const int64_t group = c->tape ? n : GROUP;
    Tensor *all = c->tape ? NULL : TENSOR(c, tokens->dtype, n, L, o->W);
    for (int64_t at = 0; at < n; at += group) {
        const int64_t k = MIN(group, n - at);
        size_t step = arena_mark(c->step), host = arena_mark(c->host);
        Seen image = {.from = tokens, .row = img + at};
        Tensor *x = bert_embed(o, c, &o->encoder, ids + at * L, k, L);
        x = bert_run(o, c, &o->encoder, x, length_mask(c, len + at, NULL, k, L), false, &image);
        if (c->tape) return x;
        char *to = (char *)all->data + (size_t)(at * L * o->W) * dtype_size(all->dtype);
        c->dev->ops->copy_rows(c->dev->main, x->dtype, to, numel(x), x->data, numel(x), 1, numel(x), false);
        arena_reset(c->step, step);
        arena_reset(c->host, host);
    }
    return all;
}

/* ---- the answer ----------------------------------------------------------------------------------- */

/* Keys and values of n questions from `first` on, for every layer of the decoder. */
static Tensor **decoder_kv(const Blip *o, Ctx *c, const Asked *q, int64_t first, int64_t n) {
    Tensor **kv = arena_alloc(c->host, (size_t)o->text_layers * sizeof *kv);
    Tensor part = *q->states;
    part.data = (char *)part.data + (size_t)(first * q->L * o->W) * dtype_size(part.dtype);
    part.shape[0] = n;
    part.needs_grad = false;
    for (int64_t i = 0; i < o->text_layers; i++) kv[i] = linear(c, o->decoder.layer[i].kv, &part);
    return kv;
}

/* The logits of the last of T ids each, to host memory: (n, vocab). */
static const float *next_word(const Blip *o, Ctx *c, const Asked *q, int64_t first, Tensor **kv,
                              const int32_t *ids, int64_t n, int64_t T) {
    Seen s = {.kv = kv, .mask = length_mask(c, q->len + first, NULL, n, q->L)};
    Tensor *x = bert_run(o, c, &o->decoder, bert_embed(o, c, &o->decoder, ids, n, T), NULL, true, &s);
    return to_host(c, word_logits(o, c, op_token(c, x, T - 1)));
}

typedef struct Ranked { float logit; int answer; } Ranked;

static int by_logit(const void *a, const void *b) {
    const Ranked *x = a, *y = b;
    return x->logit != y->logit ? (x->logit < y->logit) - (x->logit > y->logit) : x->answer - y->answer;
}

/* Scores of k answers to one question: minus the cross entropy of all their tokens, smoothed as in
 * training. kv: its own. */
static void score_answers(const Blip *o, Ctx *c, const Asked *q, int64_t question, Tensor *const *kv,
                          int64_t kv_row, const Ranked *list, int k, float *score) {
    int64_t T = 0;
    for (int j = 0; j < k; j++) T = MAX(T, o->answer_len[list[j].answer] - 1);
    int32_t *ids = arena_zalloc(c->host, (size_t)(k * T) * sizeof *ids),
            *next = arena_alloc(c->host, (size_t)(k * T) * sizeof *next);
    int32_t *row = arena_alloc(c->host, (size_t)k * sizeof *row),
            *same = arena_alloc(c->host, (size_t)k * sizeof *same);
    float *one = arena_alloc(c->host, (size_t)(k * T) * sizeof *one);
    for (int j = 0; j < k; j++) {
        const int32_t *a = o->answer + (int64_t)list[j].answer * ANSWER_IDS;
        const int len = o->answer_len[list[j].answer];
        for (int t = 0; t < T; t++) {
            ids[j * T + t] = t + 1 < len ? a[t] : 0;
            next[j * T + t] = t + 1 < len ? a[t + 1] : -1;
            one[j * T + t] = 1;
        }
        row[j] = (int32_t)kv_row;
        same[j] = (int32_t)question;
    }
    Tensor **shared = arena_alloc(c->host, (size_t)o->text_layers * sizeof *shared);
    for (int64_t i = 0; i < o->text_layers; i++) shared[i] = op_gather(c, kv[i], row, k);
    Seen s = {.kv = shared, .mask = length_mask(c, q->len, same, k, q->L)};
    Tensor *x = bert_run(o, c, &o->decoder, bert_embed(o, c, &o->decoder, ids, k, T), NULL, true, &s);
    const float *loss =
        to_host(c, op_ce_loss(c, word_logits(o, c, RESHAPE(c, x, k * T, o->W)), next, one, o->smoothing));
    for (int j = 0; j < k; j++) {
        double sum = 0;
        for (int t = 0; t < T; t++) sum += (double)loss[j * T + t];
        score[list[j].answer] = (float)-sum;
    }
}

/* Ranks the list for each question, in two rounds: by the answer's first word, then the best in full. What
 * does not get to the second has no probability. */
static Tensor *rank(const Blip *o, Ctx *c, const Asked *q) {
    const int A = o->m.nlabels, k = (int)MIN(o->candidates, A);
    Tensor *logits = TENSOR(c, F32, q->n, A);
    float *score = arena_alloc(c->host, (size_t)(q->n * A) * sizeof *score);
    Tape *tape = c->tape;
    c->tape = NULL;
    for (int64_t i = 0; i < q->n * A; i++) score[i] = -1e30f;
    for (int64_t at = 0; at < q->n; at += GROUP) {
        const int64_t n = MIN(GROUP, q->n - at);
        size_t step = arena_mark(c->step), host = arena_mark(c->host);
        Tensor **kv = decoder_kv(o, c, q, at, n);
        int32_t *begin = arena_alloc(c->host, (size_t)n * sizeof *begin);
        for (int64_t i = 0; i < n; i++) begin[i] = (int32_t)o->begin;
        const float *word = next_word(o, c, q, at, kv, begin, n, 1);
        Ranked *list = arena_alloc(c->host, (size_t)A * sizeof *list);
        for (int64_t i = 0; i < n; i++) {
            size_t inner = arena_mark(c->step), inner_host = arena_mark(c->host);
            for (int j = 0; j < A; j++)
                list[j] = (Ranked){word[i * o->vocab + o->answer[(int64_t)j * ANSWER_IDS + 1]], j};
            arena_sort(c->host, list, A, sizeof *list, by_logit);
            score_answers(o, c, q, at + i, kv, i, list, k, score + (at + i) * A);
            arena_reset(c->step, inner);
            arena_reset(c->host, inner_host);
        }
        arena_reset(c->step, step);
        arena_reset(c->host, host);
    }
    c->tape = tape;
    c->dev->upload(c->dev, logits->data, score, tensor_bytes(logits));
    return logits;
}

static bool is_special(const char *piece) {
    static const char *const names[] = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"};
    for (int i = 0; i < COUNT_OF(names); i++)
        if (!strcmp(piece, names[i])) return true;
    return false;
}

/* Ids to text: pieces joined, special ids left out, no space before . , ? ! (as transformers decodes). */
static const char *text_of(const Blip *o, const int32_t *ids, int n, Arena *a) {
    char text[ANSWER_IDS * 64] = "";
    size_t at = 0;
    for (int k = 0; k < n; k++) {
        const char *piece = token_text(o->m.tokenizer, ids[k]);
        if (!piece || is_special(piece)) continue; /* ids behind the vocabulary have no text */
        const bool inside = piece[0] == '#' && piece[1] == '#' && piece[2];
        const bool closing = strchr(".,?!", piece[0]) && !piece[1];
        int wrote = snprintf(text + at, sizeof text - at, "%s%s", at && !inside && !closing ? " " : "",
                             piece + (inside && at ? 2 : 0));
        at = MIN(at + (size_t)wrote, sizeof text - 1);
    }
    return arena_strdup(a, text, at);
}

/* Greedy decoding, GROUP questions at a time. The prefix is run anew for every word: answers are two or
 * three long. */
static void blip_write(Module *m, Ctx *c, const Outputs *out, const char **answer, Arena *a) {
    const Blip *o = (const Blip *)m;
    const Asked *q = out->own;
    Tape *tape = c->tape;
    c->tape = NULL;
    for (int64_t at = 0; at < q->n; at += GROUP) {
        const int64_t n = MIN(GROUP, q->n - at);
        int32_t word[GROUP][ANSWER_IDS], flat[GROUP * ANSWER_IDS];
        int len[GROUP], open = (int)n;
        size_t step = arena_mark(c->step), host = arena_mark(c->host);
        Tensor **kv = decoder_kv(o, c, q, at, n);
        for (int64_t i = 0; i < n; i++) word[i][0] = (int32_t)o->begin, len[i] = 0;
        for (int T = 1; T < ANSWER_IDS && open; T++) {
            size_t inner = arena_mark(c->step), inner_host = arena_mark(c->host);
            for (int64_t i = 0; i < n; i++) memcpy(flat + i * T, word[i], (size_t)T * sizeof *flat);
            const float *logit = next_word(o, c, q, at, kv, flat, n, T);
            for (int64_t i = 0; i < n; i++) {
                const float *x = logit + i * o->vocab;
                int best = 0;
                for (int v = 1; v < o->vocab; v++)
                    if (x[v] > x[best]) best = v;
                word[i][T] = best;
                if (!len[i] && (best == o->end || T + 1 == ANSWER_IDS)) {
                    len[i] = best == o->end ? T : T + 1;
                    open--;
                }
            }
            arena_reset(c->step, inner);
            arena_reset(c->host, inner_host);
        }
        arena_reset(c->step, step);
        arena_reset(c->host, host);
        for (int64_t i = 0; i < n; i++) answer[at + i] = text_of(o, word[i] + 1, len[i] - 1, a);
    }
    c->tape = tape;
}

/* ---- loss ----------------------------------------------------------------------------------------- */

/* An answer of less than this probability is not worth a row of the decoder: it would be most of its list. */
#define LEAST_TARGET 0.01f

/* sum over i and j of weight[i] target[i][j] x the smoothed cross entropy of answer j's tokens. target (n,
 * nlabels). */
static double blip_loss(Module *m, Ctx *c, const Outputs *out, const float *target, const float *weight) {
    const Blip *o = (const Blip *)m;
    const Asked *q = out->own;
    const int64_t A = m->nlabels;
    int64_t pairs = 0, T = 0;
    for (int64_t i = 0; i < q->n; i++)
        for (int64_t j = 0; j < A && weight[i] > 0; j++)
            if (target[i * A + j] >= LEAST_TARGET) {
                pairs++;
                T = MAX(T, o->answer_len[j] - 1);
            }
    if (!pairs) return 0;
    int32_t *ids = arena_zalloc(c->host, (size_t)(pairs * T) * sizeof *ids),
            *next = arena_alloc(c->host, (size_t)(pairs * T) * sizeof *next),
            *row = arena_alloc(c->host, (size_t)pairs * sizeof *row);
    float *w = arena_zalloc(c->host, (size_t)(pairs * T) * sizeof *w);
    int64_t at = 0;
    for (int64_t i = 0; i < q->n; i++)
        for (int64_t j = 0; j < A && weight[i] > 0; j++) {
            if (target[i * A + j] < LEAST_TARGET) continue;
            const int32_t *a = o->answer + j * ANSWER_IDS;
            for (int64_t t = 0; t < T; t++) {
                const bool real = t + 1 < o->answer_len[j];
                ids[at * T + t] = real ? a[t] : 0;
                next[at * T + t] = real ? a[t + 1] : -1;
                w[at * T + t] = weight[i] * target[i * A + j];
            }
            row[at++] = (int32_t)i;
        }
    Seen s = {.from = q->states, .row = row, .mask = length_mask(c, q->len, row, pairs, q->L)};
    /* Padding follows the end, where a causal stack's real tokens never look. */
    Tensor *x = bert_run(o, c, &o->decoder, bert_embed(o, c, &o->decoder, ids, pairs, T), NULL, true, &s);
    return loss_value(
        c, op_ce_loss(c, word_logits(o, c, RESHAPE(c, x, pairs * T, o->W)), next, w, o->smoothing));
}

/* ---- forward -------------------------------------------------------------------------------------- */

static void blip_forward(Module *m, Ctx *c, const Ask *ask, int64_t n, Outputs *out) {
    Blip *o = (Blip *)m;
    int32_t *img = arena_alloc(c->host, (size_t)n * sizeof *img);
    int *len = arena_alloc(c->host, (size_t)n * sizeof *len);
    Tensor *tokens;
    Asked *q = arena_alloc(c->host, sizeof *q);
    o->images.type = compute_type(o->patch.w);
    tower_rows(&o->images, c, ask, n, &tokens, img);
    *q = (Asked){.len = len, .n = n};
    const int32_t *ids = question_ids(o, c, ask, n, len, &q->L);
    q->states = encode(o, c, tokens, img, ids, len, n, q->L);
    m->text_rows += n;
    out->own = q;
    if (m->nlabels && !m->loss_only) out->logits = rank(o, c, q);
}

static void blip_begin(Module *m) { tower_begin(&((Blip *)m)->images); }
static void blip_close(Module *m) { tower_close(&((Blip *)m)->images); }

/* Files may hold the decoder's last layer a second time. */
static const char *const tied[][2] = {
    {"text_decoder.cls.predictions.decoder.weight", "text_decoder.bert.embeddings.word_embeddings.weight"},
    {"text_decoder.cls.predictions.decoder.bias", "text_decoder.cls.predictions.bias"},
    {NULL, NULL},
};

const ModuleType blip_type = {
    .name = "blip",
    .step = "VQA",
    .size = sizeof(Blip),
    .tied = tied,
    .open = blip_open,
    .forward = blip_forward,
    .write = blip_write,
    .answer_loss = blip_loss,
    .begin = blip_begin,
    .close = blip_close,
};
