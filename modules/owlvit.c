/* owlvit.c -- OWL-ViT, the LOC module: which patches of a rectangle show the asked object, and its box.
 *
 * CLIP's two towers (clip_towers.h), every token of an image kept: a pair of image and phrase costs one dot product per patch.
 * Architecture and tensor names: Minderer et al. 2022 as in Hugging Face's OwlViTForObjectDetection. What to do with the logits
 * and boxes (threshold, NMS) belongs to the LOC verb; the loss is in detect.c.
 */
#include <math.h>

#include "modules/clip_towers.h"

/* What a tower gives: row i for item i. */
enum { IMAGE_CLASS, IMAGE_SHIFT, IMAGE_SCALE, IMAGE_BOXES, IMAGE_OUTS };
enum { TEXT_QUERY, TEXT_OUTS };

typedef struct Owl {
    Module m;
    ClipVision vision;
    ClipText text;
    Layer merge_norm, class_dense, shift, scale, box[3];
    Tensor box_bias; /* (P, 4), a constant: not in the checkpoint */
    float *box_bias_host;
    Device *dev;     /* who holds box_bias */
    Tower image_tower, text_tower;
} Owl;

/* ---- opening -------------------------------------------------------------------------------------- */

/* A tensor that detection does not read: the file has it, nothing trains it. */
static void declare_unused(ParamSet *ps, ParamKind kind, int ndim, const int64_t *shape, float value, const char *name) {
    Param *p = param_new(ps, kind, ndim, shape, "%s", name);
    p->lr_scale = 0;
    p->init_value = value;
}

static void declare(Owl *o) {
    ParamSet *ps = &o->m.params;
    int64_t C = o->vision.n.C, D = o->text.D;
    declare_unused(ps, PARAM_BIAS, 0, NULL, 2.6592f, "owlvit.logit_scale");
    clip_text_declare(&o->text, ps, "owlvit.");
    clip_vision_declare(&o->vision, ps, "owlvit.", "pre_layernorm");
    declare_unused(ps, PARAM_WEIGHT, 2, (int64_t[]){D, C}, 0, "owlvit.visual_projection.weight");
    o->text.projection = linear_new(ps, D, o->text.n.C, false, "owlvit.text_projection").w;
    o->class_dense = linear_new(ps, D, C, true, "class_head.dense0");
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
    params_changed(&m->params);
}

static float unsigmoid(float v) { return logf(v + 1e-4f) - log1pf(-v + 1e-4f); }

/* Each patch begins with a box of its own size at its LOWER RIGHT corner: the reference counts patches from one. */
static void compute_box_bias(Owl *o) {
    int64_t n = o->vision.grid;
    float *b = o->box_bias_host = arena_alloc(&o->m.host, (size_t)o->vision.P * 4 * sizeof *b), side = unsigmoid(1 / (float)n);
    for (int64_t k = 0; k < o->vision.P; k++) {
        b[4 * k] = unsigmoid((float)(k % n + 1) / (float)n);
        b[4 * k + 1] = unsigmoid((float)(k / n + 1) / (float)n);
        b[4 * k + 2] = b[4 * k + 3] = side;
    }
    o->box_bias = (Tensor){.ndim = 2, .shape = {o->vision.P, 4}, .dtype = F32};
}

static void open_towers(Owl *o);

static bool owlvit_open(Module *m, Error *e) {
    static const ClipSizes sizes = {.vision = {.C = 768, .mlp = 3072, .layers = 12, .heads = 12, .eps = 1e-5},
                                    .text = {.C = 512, .mlp = 2048, .layers = 12, .heads = 8, .eps = 1e-5},
                                    .image = 768, .patch = 32, .positions = 16, .projection = 512};
    Owl *o = (Owl *)m;
    if (!clip_towers_open(&o->vision, &o->text, m, &sizes, e)) return false;
    if (o->text.D != o->text.n.C) /* the class head is as wide as the text tower, and meets what text_projection gives */
        return fail_as(e, FAIL_MODEL, "%s/config.json: projection_dim is %" PRId64 ", text_config.hidden_size %" PRId64 "; detection wants them equal",
                       m->folder, o->text.D, o->text.n.C);
    if (!processor_square(m, o->vision.grid * o->vision.patches.patch, e)) return false;
    declare(o);
    compute_box_bias(o);
    open_towers(o);
    return true;
}

/* ---- the towers ----------------------------------------------------------------------------------- */

static void image_run(Module *m, Ctx *c, const Ask *const *ask, int64_t n, Tensor **out) {
    Owl *o = (Owl *)m;
    int64_t P = o->vision.P;
    float eps = (float)o->vision.n.eps;
    int(*size)[2] = arena_alloc(c->host, (size_t)n * sizeof *size); /* stretched to the square, whatever its shape */
    for (int64_t i = 0; i < n; i++) size[i][0] = size[i][1] = (int)o->vision.grid * o->vision.patches.patch;
    Tensor *x = residual_norm(c, o->vision.post_norm, clip_vision_run(&o->vision, c, ask, (const int(*)[2])size, n), eps);

    Tensor *f = norm(c, o->merge_norm, op_mul_tokens(c, op_slice_tokens(c, x, 1, P), op_token(c, x, 0)), eps);
    /* From here on f32, whatever the towers computed in: a cosine is scaled by about 10, and a box wants better than the
     * 1/256 of an image that bf16 tells apart. Products write f32 for nothing; what is kept is small beside the tower. */
    out[IMAGE_CLASS] = op_l2norm(c, linear_f32(c, o->class_dense, f), 1e-6f);
    out[IMAGE_SHIFT] = RESHAPE(c, linear_f32(c, o->shift, f), n, P);
    out[IMAGE_SCALE] = op_elu1(c, RESHAPE(c, linear_f32(c, o->scale, f), n, P));
    Tensor *b = op_gelu(c, linear(c, o->box[0], f)); /* exact gelu, whatever hidden_act says */
    b = linear_f32(c, o->box[2], op_gelu(c, linear(c, o->box[1], b)));
    out[IMAGE_BOXES] = op_sigmoid(c, op_add_rows(c, b, &o->box_bias));
}

static void text_run(Module *m, Ctx *c, const Ask *const *ask, int64_t n, Tensor **out) {
    out[TEXT_QUERY] = op_l2norm(c, clip_text_run(&((Owl *)m)->text, m, c, ask, n), 1e-6f);
}

static void open_towers(Owl *o) {
    Tower *t = &o->image_tower;
    *t = (Tower){.module = &o->m, .nout = IMAGE_OUTS, .run = image_run, .key = ask_image_key, .rows = &o->m.image_rows,
                 .ndim = {3, 2, 2, 3}, .chunk = tower_chunk(o->vision.P + 1, o->vision.n.C)};
    for (int k = 0; k < IMAGE_OUTS; k++) t->shape[k][1] = o->vision.P;
    t->shape[IMAGE_CLASS][2] = o->text.D;
    t->shape[IMAGE_BOXES][2] = 4;
    t = &o->text_tower;
    *t = (Tower){.module = &o->m, .nout = TEXT_OUTS, .run = text_run, .key = ask_text_key, .rows = &o->m.text_rows,
                 .ndim = {2}, .shape = {{0, o->text.D}}, .chunk = tower_chunk(o->text.positions, o->text.n.C)};
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
    tower_rows(&o->image_tower, c, ask, n, image, img);
    tower_rows(&o->text_tower, c, ask, n, text, txt);
    Tensor *dot = op_pair_scores(c, image[IMAGE_CLASS], text[TEXT_QUERY], img, txt, n);
    Tensor *shifted = op_add(c, dot, pick(c, image[IMAGE_SHIFT], img, n));
    out->logits = op_mul(c, shifted, pick(c, image[IMAGE_SCALE], img, n));
    out->boxes = pick(c, image[IMAGE_BOXES], img, n);
}

static void owlvit_begin(Module *m) {
    tower_begin(&((Owl *)m)->image_tower);
    tower_begin(&((Owl *)m)->text_tower);
}

static void owlvit_close(Module *m) {
    Owl *o = (Owl *)m;
    if (o->box_bias.data) o->dev->release(o->dev, o->box_bias.data, tensor_bytes(&o->box_bias));
    tower_close(&o->image_tower);
    tower_close(&o->text_tower);
}

const ModuleType owlvit_type = {
    .name = "owlvit", .step = "LOC", .size = sizeof(Owl), .open = owlvit_open, .forward = owlvit_forward,
    .init = owlvit_init, .begin = owlvit_begin, .close = owlvit_close,
};
