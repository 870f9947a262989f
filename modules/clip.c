/* clip.c -- CLIP: the cosine of a rectangle of an image and a text, for SELECT and CLASSIFY.
 *
 * The towers are clip_towers.c's. VisProg compares plain cosines; the learned temperature exp(logit_scale) matters to the loss
 * alone. Source: Radford et al. 2021; names and numerics of Hugging Face's CLIPModel.
 */
#include "modules/clip.h"

#include <math.h>

#include "modules/clip_towers.h"

enum { FEATURE, TOWER_NOUT }; /* of either tower: normalised, (n, D) */

typedef struct Clip {
    Module m;
    ClipVision vision;
    ClipText text;
    Tensor *visual_projection, *logit_scale;
    int shortest; /* the shorter side before the crop */
    Tower image_tower, text_tower;
} Clip;

/* A side in preprocessor_config.json: a number, or an object with one of two keys. */
static int64_t side_of(const Module *m, const char *name, const char *key, int64_t fallback) {
    json_t *v = json_object_get(m->processor, name), *in = json_object_get(v, key);
    return json_is_integer(v) ? json_integer_value(v) : json_is_integer(in) ? json_integer_value(in) : fallback;
}

static void open_towers(Clip *o);

static bool clip_open(Module *m, Error *e) {
    static const ClipSizes sizes = {.vision = {.C = 768, .mlp = 3072, .layers = 12, .heads = 12, .eps = 1e-5},
                                    .text = {.C = 512, .mlp = 2048, .layers = 12, .heads = 8, .eps = 1e-5},
                                    .image = 224, .patch = 32, .positions = 77, .projection = 512};
    Clip *o = (Clip *)m;
    if (!clip_towers_open(&o->vision, &o->text, m, &sizes, e)) return false;
    int64_t image = o->vision.grid * o->vision.patches.patch, crop = side_of(m, "crop_size", "height", image);
    o->shortest = (int)MIN(side_of(m, "size", "shortest_edge", image), 1 << 14);
    if (crop != image || o->shortest < image)
        return fail_as(e, FAIL_MODEL, "%s/preprocessor_config.json: a shorter side of %d pixels, cropped to %" PRId64 ", gives no picture of the model's image_size %" PRId64,
                       m->folder, o->shortest, crop, image);
    ParamSet *ps = &m->params;
    Param *scale = param_new(ps, PARAM_BIAS, 0, NULL, "logit_scale");
    scale->init_value = 2.6592f; /* ln(1 / 0.07) */
    o->logit_scale = &scale->t;
    clip_text_declare(&o->text, ps, "");
    clip_vision_declare(&o->vision, ps, "", "pre_layrnorm"); /* sic */
    o->visual_projection = linear_new(ps, o->text.D, o->vision.n.C, false, "visual_projection").w;
    o->text.projection = linear_new(ps, o->text.D, o->text.n.C, false, "text_projection").w;
    open_towers(o);
    return true;
}

/* ---- forward -------------------------------------------------------------------------------------- */

/* The longer side of very long crops, which the processor would blow up without end; the square that is cut out of the
 * middle sees the same pixels up to 146 times as long as wide. */
enum { LONGEST = 1 << 15 };

static void image_run(Module *m, Ctx *c, const Ask *const *ask, int64_t n, Tensor **out) {
    Clip *o = (Clip *)m;
    int(*size)[2] = arena_alloc(c->host, (size_t)n * sizeof *size);
    for (int64_t i = 0; i < n; i++) {
        int64_t h = rect_h(ask[i]->rect), w = rect_w(ask[i]->rect), s = o->shortest;
        size[i][0] = (int)(h <= w ? s : MIN(s * h / w, LONGEST));
        size[i][1] = (int)(w <= h ? s : MIN(s * w / h, LONGEST));
    }
    Tensor *x = op_token(c, residual_sum(c, clip_vision_run(&o->vision, c, ask, (const int(*)[2])size, n)), 0);
    x = op_linear_f32(c, norm(c, o->vision.post_norm, x, (float)o->vision.n.eps), o->visual_projection, NULL);
    out[FEATURE] = op_l2norm(c, x, 0);
}

static void text_run(Module *m, Ctx *c, const Ask *const *ask, int64_t n, Tensor **out) {
    out[FEATURE] = op_l2norm(c, clip_text_run(&((Clip *)m)->text, m, c, ask, n), 0);
}

static void open_towers(Clip *o) {
    const int64_t D = o->text.D;
    o->image_tower = (Tower){.module = &o->m, .nout = TOWER_NOUT, .run = image_run, .key = ask_image_key, .rows = &o->m.image_rows,
                             .ndim = {2}, .shape = {{0, D}}, .chunk = tower_chunk(o->vision.P + 1, o->vision.n.C)};
    o->text_tower = (Tower){.module = &o->m, .nout = TOWER_NOUT, .run = text_run, .key = ask_text_key, .rows = &o->m.text_rows,
                            .ndim = {2}, .shape = {{0, D}}, .chunk = tower_chunk(o->text.positions, o->text.n.C)};
}

static void clip_forward(Module *m, Ctx *c, const Ask *ask, int64_t n, Outputs *out) {
    Clip *o = (Clip *)m;
    int32_t *img = arena_alloc(c->host, (size_t)n * sizeof *img), *txt = arena_alloc(c->host, (size_t)n * sizeof *txt);
    Tensor *image, *text;
    tower_rows(&o->image_tower, c, ask, n, &image, img);
    tower_rows(&o->text_tower, c, ask, n, &text, txt);
    out->logits = op_pair_scores(c, RESHAPE(c, image, image->shape[0], 1, o->text.D), text, img, txt, n);
}

/* ---- loss ----------------------------------------------------------------------------------------- */

static Tensor *constant(Ctx *c, float v) {
    Tensor *t = TENSOR(c, F32, 1);
    c->dev->upload(c->dev, t->data, &v, sizeof v);
    return t;
}

/* exp(logit_scale) as 100 exp(s - ln 100), from elu(x) + 1, which is exp(x) up to x = 0: the published training holds s below
 * ln 100 by clamping. Above, this goes on as 100 (1 + s - ln 100), with a gradient that leads back. */
static Tensor *temperature(Clip *o, Ctx *c) {
    const float top = logf(100);
    Tensor *below = op_elu1(c, op_add(c, o->logit_scale, constant(c, -top)));
    return op_mul(c, below, constant(c, 100));
}

double clip_loss(Module *m, Ctx *c, const Outputs *out, int64_t images, int64_t texts, const int32_t *text_of, const float *image_weight,
                 const int32_t *image_of, const float *text_weight) {
    const int64_t n = images * texts;
    CHECK(m->type == &clip_type && out->n == n, "%" PRId64 " asks of %" PRId64 " images and %" PRId64 " texts", out->n, images, texts);
    if (!n) return 0;
    Tensor *scaled = op_mul_tokens(c, RESHAPE(c, out->logits, 1, n, 1), RESHAPE(c, temperature((Clip *)m, c), 1, 1));
    double loss = 0;
    if (text_of) loss += loss_value(c, op_ce_loss(c, RESHAPE(c, scaled, images, texts), text_of, image_weight, 0));
    if (image_of) {
        int32_t *turned = arena_alloc(c->host, (size_t)n * sizeof *turned);
        for (int64_t k = 0; k < n; k++) turned[k] = (int32_t)(k % images * texts + k / images);
        Tensor *by_text = op_gather(c, RESHAPE(c, scaled, n, 1), turned, n);
        loss += loss_value(c, op_ce_loss(c, RESHAPE(c, by_text, texts, images), image_of, text_weight, 0));
    }
    return loss;
}

static void clip_begin(Module *m) {
    tower_begin(&((Clip *)m)->image_tower);
    tower_begin(&((Clip *)m)->text_tower);
}

static void clip_close(Module *m) {
    tower_close(&((Clip *)m)->image_tower);
    tower_close(&((Clip *)m)->text_tower);
}

const ModuleType clip_type = {
    .name = "clip", .step = "CLIP", .size = sizeof(Clip), .open = clip_open, .forward = clip_forward, .begin = clip_begin, .close = clip_close,
};
