/* train.c -- supervised training of one module. See train.h.
 *
 * The same loop makes the students before distillation, the teacher, and a student from an exported trace.
 * All randomness is a function of (seed, update): which images (loader), which of an image's calls
 * (choose), dropout (Ctx). Next: step.c, the training step on whole programs.
 */
#include "engine/train.h"

#include <math.h>

#include "data/augment.h"
#include "engine/ckpt.h"
#include "engine/rates.h"
#include "engine/reduce.h"
#include "modules/answer.h"

/* ---- the set -------------------------------------------------------------------------------------- */

static int32_t label_of(const Module *m, const char *answer) {
    for (int i = 0; i < m->nlabels; i++)
        if (!strcmp(m->label[i], answer)) return i;
    return -1;
}

static void add_item(TrainSet *t, int64_t *cap, const Module *m, TrainItem item, const char *answer) {
    if (!item.step || !item.step->is_loc) {
        item.label = answer ? label_of(m, answer) : -1;
        if (item.label < 0) {
            t->unknown++;
            return;
        }
    }
    GROW(t->item, *cap, t->n + 1);
    item.order = t->n;
    t->item[t->n++] = item;
}

static int by_image(const void *a, const void *b) {
    const TrainItem *x = a, *y = b;
    if (x->pair != y->pair && x->image == y->image) return x->pair - y->pair;
    return x->image != y->image ? x->image - y->image : (x->order > y->order) - (x->order < y->order);
}

bool trainset_open(TrainSet *t, const DatasetConfig *c, const Module *m, Error *e) {
    *t = (TrainSet){0};
    if (!dataset_open(&t->data, c, e)) return false;
    bool loc = !strcmp(m->type->step, "LOC");
    int64_t cap = 0;
    for (int64_t i = 0; i < t->data.nsteps; i++) {
        const StepSample *s = &t->data.step[i];
        if (s->is_loc == loc && m->images == 1)
            add_item(t, &cap, m, (TrainItem){.image = s->image, .pair = -1, .rect = s->rect, .query = s->query, .label = -1, .step = s}, s->answer);
    }
    for (int64_t i = 0; !loc && i < t->data.nsamples; i++) {
        const Sample *s = &t->data.sample[i];
        if (s->nimages == m->images)
            add_item(t, &cap, m, (TrainItem){.image = s->image[0], .pair = s->nimages == 2 ? s->image[1] : -1, .query = s->question, .label = -1},
                     s->answer);
    }
    if (t->unknown)
        warn("%s: %" PRId64 " answers are not among the model's and were left out", c->dir, t->unknown);
    if (!t->n) {
        trainset_close(t);
        return fail_as(e, FAIL_DATA, "%s: nothing there trains a %s module", c->dir, m->type->step);
    }
    qsort(t->item, (size_t)t->n, sizeof *t->item,
          by_image); /* the comparison keeps the file's order within an image */
    t->by_image = (Dataset){.type = t->data.type, .images = t->data.images};
    t->by_image.sample = xcalloc((size_t)t->n, sizeof *t->by_image.sample);
    t->first = xcalloc((size_t)t->n + 1, sizeof *t->first);
    for (int64_t i = 0; i < t->n; i++)
        if (!i || t->item[i].image != t->item[i - 1].image || t->item[i].pair != t->item[i - 1].pair) {
            t->first[t->by_image.nsamples] = i;
            t->by_image.sample[t->by_image.nsamples++] =
                (Sample){.image = {t->item[i].image, t->item[i].pair}, .nimages = m->images};
        }
    t->first[t->by_image.nsamples] = t->n;
    return true;
}

void trainset_close(TrainSet *t) {
    free(t->by_image.sample);
    free(t->item);
    free(t->first);
    dataset_close(&t->data);
    *t = (TrainSet){0};
}

/* ---- one forward ---------------------------------------------------------------------------------- */

/* Chooses up to k different calls of an image (a partial shuffle keyed by seed). */
static int choose(const TrainSet *t, int64_t image_item, int k, uint64_t seed, const TrainItem **out,
                  Arena *host) {
    int64_t first = t->first[image_item], n = t->first[image_item + 1] - first;
    int64_t *order = arena_alloc(host, (size_t)n * sizeof *order);
    for (int64_t i = 0; i < n; i++) order[i] = i;
    k = (int)MIN(k, n);
    for (int i = 0; i < k; i++) {
        uint64_t key[2] = {(uint64_t)image_item, (uint64_t)i};
        int64_t j = i + (int64_t)(hash_bytes(key, sizeof key, seed) % (uint64_t)(n - i));
        int64_t was = order[i];
        order[i] = order[j];
        order[j] = was;
        out[i] = &t->item[first + order[i]];
    }
    return k;
}

/* A step's boxes as (cx, cy, w, h) of its rectangle. */
static LocTarget loc_target(const StepSample *s, Rect r, float weight, Arena *host) {
    float(*box)[4] = arena_alloc(host, (size_t)s->nboxes * sizeof *box);
    float w = (float)rect_w(r), h = (float)rect_h(r);
    int n = 0;
    for (int k = 0; k < s->nboxes; k++) {
        Rect b = s->boxes[k];
        b = (Rect){MAX(b.x0, r.x0), MAX(b.y0, r.y0), MIN(b.x1, r.x1), MIN(b.y1, r.y1)};
        if (rect_w(b) <= 0 || rect_h(b) <= 0) continue; /* outside the rectangle: not this step's business */
        float *o = box[n++];
        o[0] = ((float)(b.x0 + b.x1) / 2 - (float)r.x0) / w;
        o[1] = ((float)(b.y0 + b.y1) / 2 - (float)r.y0) / h;
        o[2] = (float)rect_w(b) / w;
        o[3] = (float)rect_h(b) / h;
    }
    return (LocTarget){
        .nboxes = n, .box = (const float(*)[4])box, .negative_weight = 1, .weight = weight * s->weight};
}

static LocLossConfig loc_config(const Config *cfg) {
    LocLossConfig l = loc_loss_default;
    l.w_l1 = (float)cfg->train.loc_l1;
    l.w_giou = (float)cfg->train.loc_giou;
    l.alpha = (float)cfg->train.loc_alpha;
    l.gamma = (float)cfg->train.loc_gamma;
    l.repeat = cfg->train.loc_repeat;
    return l;
}

/* The rectangle of an item inside its image; the whole image when the item says so or lies outside. */
static Rect rect_of(const TrainItem *it, ImageView image) {
    Rect all = {0, 0, image.w, image.h}, r = it->rect;
    if (r.x0 >= r.x1) return all;
    r = (Rect){MAX(r.x0, 0), MAX(r.y0, 0), MIN(r.x1, image.w), MIN(r.y1, image.h)};
    return rect_w(r) > 0 && rect_h(r) > 0 ? r : all;
}

int train_asks(const TrainSet *t, const Batch *b, int per_image, uint64_t seed, Arena *host,
               const TrainItem ***items, Ask **asks) {
    const TrainItem **item = *items = arena_alloc(host, (size_t)(b->n * per_image + 1) * sizeof *item);
    const int images = t->n && t->item[0].pair >= 0 ? 2 : 1;
    Ask *ask = *asks = arena_alloc(host, (size_t)(b->n * per_image * images + 1) * sizeof *ask);
    int k = 0;
    for (int i = 0; i < b->n; i++) {
        int at = b->image_of[i][0], count = choose(t, b->item[i], per_image, seed, item + k, host);
        for (int end = k + count; k < end; k++) {
            Ask *a = &ask[k * images];
            *a = (Ask){b->image[at], b->image_id[at], rect_of(item[k], b->image[at]), item[k]->query};
            if (images == 1) continue;
            int other = b->image_of[i][1];
            a[1] = (Ask){b->image[other], b->image_id[other], {0, 0, b->image[other].w, b->image[other].h}, a->query};
        }
    }
    return k;
}

/* The batch with its images augmented, each differently at every update. */
static Batch augmented(const Batch *b, float strength, float ground, uint64_t seed, Arena *host) {
    Batch out = *b;
    ImageView *image = arena_alloc(host, (size_t)(b->nimages + 1) * sizeof *image);
    for (int i = 0; i < b->nimages; i++) {
        image[i] = b->image[i];
        image[i].rgb = arena_alloc(host, 2 * (size_t)image[i].w * (size_t)image[i].h * 3); /* the second half: scratch */
    }
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < b->nimages; i++) {
        uint8_t *rgb = (uint8_t *)image[i].rgb;
        augment_image(rgb, b->image[i], hash_bytes(&b->image_id[i], sizeof *b->image_id, seed), strength, ground,
                      rgb + (size_t)image[i].w * (size_t)image[i].h * 3);
    }
    out.image = image;
    return out;
}

double train_forward(Run *r, Module *m, const TrainSet *t, const Batch *b, int per_image, uint64_t seed,
                     int total, int *right, int *n, double parts[3]) {
    Ctx *c = &r->ctx;
    const Config *cfg = r->cfg;
    const TrainItem **item;
    Ask *ask;
    int k = train_asks(t, b, per_image, seed, &r->host, &item, &ask);
    *n = k;
    *right = 0;
    if (!k) return 0;
    module_begin(m);
    Outputs out;
    m->loss_only = c->tape && m->type->answer_loss; /* ranking its answers would cost half as much again as the update */
    module_forward(m, c, ask, k, &out);
    m->loss_only = false;
    float *weight = arena_alloc(&r->host, (size_t)k * sizeof *weight);
    for (int i = 0; i < k; i++) weight[i] = 1 / (float)total;

    if (!strcmp(m->type->step, "LOC")) {
        LocTarget *target = arena_alloc(&r->host, (size_t)k * sizeof *target);
        for (int i = 0; i < k; i++) target[i] = loc_target(item[i]->step, ask[i].rect, weight[i], &r->host);
        LocLossConfig lc = loc_config(cfg);
        return loc_loss(c, &out, target, &lc, parts);
    }
    int64_t V = m->nlabels;
    const float *logits = out.logits ? to_host(c, out.logits) : NULL;
    int32_t *label = arena_alloc(&r->host, (size_t)k * sizeof *label);
    for (int i = 0; i < k; i++) {
        label[i] = item[i]->label;
        if (logits) *right += argmax(logits + i * V, V) == label[i];
        if (item[i]->step) weight[i] *= item[i]->step->weight;
    }
    if (!m->type->answer_loss && !module_multi_label(m))
        return loss_value(c, op_ce_loss(c, out.logits, label, weight, (float)cfg->train.label_smoothing));
    float *target = arena_zalloc(&r->host, (size_t)(k * V) * sizeof *target);
    for (int i = 0; i < k; i++) target[i * V + label[i]] = 1;
    if (m->type->answer_loss) return m->type->answer_loss(m, c, &out, target, weight);
    return loss_value(c, op_bce_loss(c, out.logits, target, weight, 1));
}

/* ---- evaluation ----------------------------------------------------------------------------------- */

bool train_eval(Run *r, Module *m, TrainSet *t, int64_t limit, double *score, Error *e) {
    int images = 32, right = 0, n = 0;
    LoaderConfig lc = {.seed = 1, .batch = images, .passes = 1, .workers = 0, .max_bad_percent = 100};
    Loader *l = loader_open(&t->by_image, &lc, e);
    if (!l) return false;
    bool loc = !strcmp(m->type->step, "LOC");
    ScoredBox *pred = NULL, *truth = NULL;
    int64_t npred = 0, ntruth = 0, pred_cap = 0, truth_cap = 0, item = 0;
    const Batch *b;
    for (int64_t seen = 0; (b = loader_next(l, e)) && (!limit || seen < limit); seen += b->n) {
        if (!loc) {
            int k, ok;
            run_begin(r, 0, false);
            train_forward(r, m, t, b, 8, 1, 1, &ok, &k, NULL);
            right += ok;
            n += k;
            continue;
        }
        run_begin(r, 0, false);
        module_begin(m);
        for (int i = 0; i < b->n; i++) {
            const TrainItem **it;
            Ask *ask;
            Outputs out;
            Batch one = *b;
            one.n = 1;
            one.item += i;
            one.image_of += i;
            int k = train_asks(t, &one, 4, 1, &r->host, &it, &ask);
            module_forward(m, &r->ctx, ask, k, &out);
            const float *logits = to_host(&r->ctx, out.logits), *boxes = to_host(&r->ctx, out.boxes);
            int64_t P = out.logits->shape[1];
            for (int j = 0; j < k; j++, item++) {
                LocTarget tg = loc_target(it[j]->step, ask[j].rect, 1, &r->host);
                GROW(truth, truth_cap, ntruth + tg.nboxes);
                for (int q = 0; q < tg.nboxes; q++) {
                    truth[ntruth].item = item;
                    memcpy(truth[ntruth++].box, tg.box[q], sizeof tg.box[q]);
                }
                GROW(pred, pred_cap, npred + P);
                for (int64_t p = 0; p < P; p++) { /* greedy NMS at 0.5, as LOC does */
                    float s = logits[j * P + p];
                    bool keep = sigmoid(s) > 0.05f;
                    for (int64_t q = 0; keep && q < P; q++) {
                        float sq = logits[j * P + q];
                        if ((sq > s || (sq == s && q < p)) &&
                            box_iou(boxes + (j * P + p) * 4, boxes + (j * P + q) * 4) >= 0.5f)
                            keep = false;
                    }
                    if (!keep) continue;
                    pred[npred] = (ScoredBox){.item = item, .score = sigmoid(s)};
                    memcpy(pred[npred++].box, boxes + (j * P + p) * 4, sizeof pred->box);
                }
            }
        }
    }
    loader_close(l);
    *score = loc ? 100 * average_precision(pred, npred, truth, ntruth, 0.5f) : n ? 100.0 * right / n : 0;
    free(pred);
    free(truth);
    return e->text[0] == 0;
}

/* ---- the loop ------------------------------------------------------------------------------------- */

/* One of the sets that a training draws from. */
typedef struct Source {
    TrainSet set;
    Loader *loader;
    float augment, ground;
} Source;

/* Updates before `step` that took the second set: they are spread evenly, a function of the step's number alone. */
static int64_t mixed_before(const Config *cfg, int64_t step) {
    return (int64_t)floor((double)step * cfg->data.mix_share + 1e-9);
}

static bool source_open(Source *s, const Config *cfg, const DatasetConfig *dc, const Module *m,
                        int64_t updates, bool augment, Error *e) {
    s->augment = augment ? (float)cfg->train.augment : 0;
    s->ground = augment ? (float)cfg->train.augment_ground : 0;
    LoaderConfig lc = {.seed = (uint64_t)cfg->run.seed,
                       .batch = MAX(1, cfg->train.batch / cfg->train.per_image),
                       .workers = cfg->data.workers,
                       .shuffle = true,
                       .rank = comm_world()->rank,
                       .ranks = comm_world()->size,
                       .first_batch = updates * cfg->train.accumulate,
                       .max_bad_percent = (float)cfg->data.max_bad_percent,
                       .cache_bytes = (size_t)cfg->data.cache_mb << 20,
                       .batch_bytes = (size_t)256 << 20};
    return trainset_open(&s->set, dc, m, e) && (s->loader = loader_open(&s->set.by_image, &lc, e));
}

/* Images that were skipped, by cause; those of the first epoch come again in the next and count again. */
static void tell_skipped(const Source *s) {
    const LoaderStats *t = loader_stats(s->loader);
    char causes[256] = "";
    for (int i = 0; i < LOADER_CAUSES; i++) {
        const size_t n = strlen(causes);
        if (t->bad[i])
            snprintf(causes + n, sizeof causes - n, "%s%" PRId64 " %s", n ? ", " : "", t->bad[i],
                     loader_cause_names[i]);
    }
    if (*causes)
        warn("%s: of %" PRId64 " images asked for, %s were skipped", s->set.data.images.dir, t->images,
             causes);
}

static void source_close(Source *s) {
    if (s->loader) tell_skipped(s);
    loader_close(s->loader);
    if (s->set.first) trainset_close(&s->set);
}

/* What is told every run.log_every updates. */
typedef struct Log {
    double since, loss, wait, parts[3]; /* LOC: class, L1, GIoU */
    int64_t seen, right, steps;
} Log;

static void log_line(Log *g, const Config *cfg, const Module *m, int64_t done, double norm, float lr,
                     double wait) {
    double s = now_s() - g->since;
    double all[] = {g->loss, g->parts[0], g->parts[1], g->parts[2], (double)g->seen, (double)g->right};
    comm_sum(comm_world(), "sums of the log", all, COUNT_OF(all)); /* each rank has its examples' share of a loss */
    g->loss = all[0];
    for (int i = 0; i < 3; i++) g->parts[i] = all[1 + i];
    g->seen = (int64_t)all[4];
    g->right = (int64_t)all[5];
    char right[96] = "";
    double n = (double)g->steps;
    if (!strcmp(m->type->step, "LOC"))
        snprintf(right, sizeof right, " (class %.3f, L1 %.3f, GIoU %.3f)", g->parts[0] / n, g->parts[1] / n,
                 g->parts[2] / n);
    else if (!m->type->answer_loss)
        snprintf(right, sizeof right, "  right %.1f%%",
                 g->seen ? 100.0 * (double)g->right / (double)g->seen : 0);
    info("step %" PRId64 "/%d  loss %.4f%s  |g| %.2f  lr %.2e  %.0f/s  wait %.0f%%", done, cfg->train.steps,
         g->loss / n, right, norm, (double)lr, (double)g->seen / s, 100 * (wait - g->wait) / s);
    *g = (Log){.since = now_s(), .wait = wait};
}

static bool train_loop(Run *r, Reduce *reduce, Module *m, Source *source, TrainSet *val,
                       const CkptPart *part, const char *config_text, int64_t start, Error *e) {
    const Config *cfg = r->cfg;
    OptimConfig oc = run_optim(cfg, cfg->train.lr, cfg->train.steps);
    int per = cfg->train.per_image, acc = cfg->train.accumulate, images = MAX(1, cfg->train.batch / per),
        total = images * per * acc;
    Log g = {.since = now_s()};
    double norm = 0;
    for (int64_t step = start; step < cfg->train.steps; step++) {
        Source *s = &source[mixed_before(cfg, step + 1) > mixed_before(cfg, step)];
        run_begin(r, step, true);
        comm_step(r->comm, step);
        reduce_begin(reduce);
        for (int a = 0; a < acc; a++) {
            const Batch *b = loader_next(s->loader, e);
            if (!b) return false;
            size_t mark_batch = arena_mark(&r->host);
            uint64_t seed = r->ctx.seed + (uint64_t)a;
            Batch changed = s->augment > 0 || s->ground > 0 ? augmented(b, s->augment, s->ground, seed, &r->host) : *b;
            for (int p = 0; p < reduce->parts; p++) {
                int k, right, number = reduce->first + p;
                bool last = a == acc - 1 && p == reduce->parts - 1;
                size_t mark_step = arena_mark(&r->step), mark_host = arena_mark(&r->host);
                Batch part = batch_part(&changed, images, number, reduce->total);
                run_part(r, a * reduce->total + number);
                reduce_part(reduce, p);
                if (last) reduce_watch(reduce, &r->tape);
                double parts[3] = {0},
                       loss = train_forward(r, m, &s->set, &part, per, seed, total, &right, &k, parts);
                for (int i = 0; i < 3; i++) g.parts[i] += parts[i];
                if (!isfinite(loss)) return run_not_finite(r, (ParamSet *[]){module_learns(m)}, 1, step, loss, e);
                if (last) reduce_last(reduce, NULL);
                tape_backward(&r->ctx);
                arena_reset(&r->step, mark_step);
                arena_reset(&r->host, mark_host);
                g.loss += loss;
                g.right += right;
                g.seen += k;
            }
            arena_reset(&r->host, mark_batch);
        }
        reduce_end(reduce);
        g.steps++;
        if (!optim_step(module_learns(m), &oc, step, &norm, e)) return false;
        int64_t done = step + 1;
        bool last = done == cfg->train.steps;
        if (done % cfg->run.log_every == 0 || last)
            log_line(&g, cfg, m, done, norm, oc.lr * schedule_factor(&oc, step),
                     loader_stats(source[0].loader)->wait_s);
        if (val && !r->comm->rank && (done % cfg->train.eval_every == 0 || last)) {
            double score;
            if (!train_eval(r, m, val, 512, &score, e)) return false;
            info("step %" PRId64 "  %s %s %.2f", done, cfg->data.val_split, m->nlabels ? "accuracy" : "AP50",
                 score);
        }
        if ((cfg->train.save_every && done % cfg->train.save_every == 0) || last)
            if (!ckpt_save(cfg->run.out, done, part, 1, NULL, config_text, 2, e)) return false;
    }
    return true;
}

/* A fresh larger model takes over what a smaller one has learnt. */
static bool grow(Module *m, const char *folder, Error *e) {
    static const char *const silent[] = {"attention.output.dense.", ".output.dense.", "self_attn.out_proj.",
                                         "mlp.fc2.", NULL};
    char path[600];
    SafeTensors st;
    if (!path_join(path, sizeof path, folder, "model.safetensors", e) || !st_open(&st, path, e)) return false;
    int taken = params_grow(&m->params, &st, silent);
    st_close(&st);
    info("%s: %d of %d tensors taken over", folder, taken, m->params.n);
    return true;
}

bool train_run(const Config *cfg, Error *e) {
    const char *what = cfg->train.module, *folder = !strcmp(what, "loc")       ? cfg->model.loc
                                                    : !strcmp(what, "teacher") ? cfg->model.teacher
                                                                               : cfg->model.vqa;
    if (!*folder)
        return fail_as(e, FAIL_CONFIG, "train: model.%s is empty; name the model folder to train", what);
    Run r;
    Reduce reduce = {0};
    if (!run_open(&r, cfg, e)) return false;
    bool ok = false;
    Source source[2] = {0};
    TrainSet val = {0};
    char path[600], config_text[65536];
    FILE *f = fmemopen(config_text, sizeof config_text, "w");
    config_print(f, cfg);
    fclose(f);
    DatasetConfig dc = {.type = cfg->data.kind,
                        .dir = cfg->data.dir,
                        .split = cfg->data.split,
                        .limit = cfg->data.limit,
                        .max_bad = 100};
    DatasetConfig mc = dc, vc = dc;
    mc.type = cfg->data.mix_kind;
    mc.dir = cfg->data.mix_dir;
    vc.split = cfg->data.val_split;
    vc.limit = 0;
    if (*cfg->data.val_dir) {
        vc.dir = cfg->data.val_dir;
        vc.type = cfg->data.val_kind;
    }
    bool has_val = cfg->train.eval_every && *cfg->data.val_split, mixed = cfg->data.mix_share > 0;
    Module *m = module_open(folder, r.dev, run_type(cfg), module_use(cfg), !cfg->train.from_scratch,
                            (uint64_t)cfg->run.seed, e);
    if (!m || !rates_apply((ParamSet *[]){module_learns(m)}, 1, cfg, e) ||
        (!r.comm->rank && !make_dirs(cfg->run.out, e)))
        goto done;
    CkptPart part = {what, m};
    int64_t start = 0;
    if (cfg->train.resume && ckpt_agree(r.comm, cfg->run.out, path, sizeof path, &start)) {
        if (!ckpt_load(path, &part, 1, e)) goto done;
        info("resuming from %s", path);
    } else {
        start = 0;
        if (cfg->train.from_scratch && *cfg->train.grow_from && !grow(m, cfg->train.grow_from, e)) goto done;
    }
    if (!comm_same(r.comm, "weights", params_hash(module_learns(m)), e)) goto done;
    reduce_open(&reduce, r.comm, cfg, (ParamSet *[]){module_learns(m)}, 1);
    int64_t mix_updates = mixed_before(cfg, start);
    if (!source_open(&source[0], cfg, &dc, m, start - mix_updates, true, e) ||
        (mixed && !source_open(&source[1], cfg, &mc, m, mix_updates, false, e)) ||
        (has_val && !trainset_open(&val, &vc, m, e)))
        goto done;
    info("%s: %" PRId64 " parameters; %" PRId64 " calls on %" PRId64 " images", folder,
         params_count(module_learns(m)), source[0].set.n + source[1].set.n,
         source[0].set.by_image.nsamples + source[1].set.by_image.nsamples);
    if (!train_loop(&r, &reduce, m, source, has_val ? &val : NULL, &part, config_text, start, e)) goto done;
    ok = r.comm->rank || (path_join(path, sizeof path, cfg->run.out, "model", e) && module_save(m, path, e));
done:
    reduce_close(&reduce);
    source_close(&source[0]);
    source_close(&source[1]);
    if (val.first) trainset_close(&val);
    if (m) module_close(m);
    run_close(&r);
    return ok;
}
