/* run.c -- setting up and tearing down. See run.h. */
#include "engine/run.h"

#include "kernels/cpu/onednn.h"

#include <math.h>
#include <unistd.h>

static Device *preset;

void run_use_device(Device *d) { preset = d; }

/* The device that the configuration asks for. The CPU's threads are set in any case: it always has work of its own. */
static Device *open_device(const Config *cfg, Error *e) {
    const Comm *comm = comm_world();
    const int card = cfg->run.card + comm->local_rank; /* each rank of a host has one */
    Device *cpu = device_cpu(comm_threads(comm, cfg->run.threads)), *cuda = NULL;
    onednn_allow(!cfg->run.reproducible); /* ranks of fewer threads sum in the same order */
    if (preset) return preset;
    if (cfg->run.device == DEVICE_AUTO && device_cuda_count(NULL)) cuda = device_cuda(card, NULL);
    if (cfg->run.device == DEVICE_CUDA && !(cuda = device_cuda(card, e))) return NULL;
    return cuda ? cuda : cpu;
}

static bool choose_attention(Device *d, const Config *cfg, Error *e) {
    if (cfg->run.attention == ATTENTION_OWN) return true;
    if (cfg->run.precision != PRECISION_BF16)
        return fail_as(e, FAIL_CONFIG, "run.attention=cudnn wants run.precision=bf16: cuDNN's fused attention has no f32");
    return device_use_cudnn(d, e);
}

bool run_open(Run *r, const Config *cfg, Error *e) {
    *r = (Run){.cfg = cfg, .comm = comm_world(), .dev = open_device(cfg, e)};
    if (!r->dev || !choose_attention(r->dev, cfg, e) || !comm_use_device(r->comm, r->dev, cfg, e)) return false;
    size_t available, device_bytes;
    r->dev->memory(r->dev, &available, &device_bytes);
    if (cfg->run.device_mb && !r->dev->reserves) device_bytes = MIN(device_bytes, (size_t)cfg->run.device_mb << 20);
    arena_open(&r->step, "step", r->dev, device_bytes);
    /* Address space, not memory: a page is taken when an update first reaches it. */
    arena_open(&r->host, "host", NULL, (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE) / 4);
    r->ctx = (Ctx){.dev = r->dev, .step = &r->step, .host = &r->host};
    return true;
}

void run_close(Run *r) {
    arena_close(&r->step);
    arena_close(&r->host);
}

void run_begin(Run *r, int64_t update, bool training) {
    arena_reset(&r->step, 0);
    arena_reset(&r->host, 0);
    r->tape = (Tape){0};
    r->ctx.tape = training ? &r->tape : NULL;
    r->ctx.seed = hash_bytes(&update, sizeof update, (uint64_t)r->cfg->run.seed);
    r->ctx.rng_offset = 0;
}

void run_part(Run *r, int part) { r->ctx.rng_offset = (uint64_t)part << 36; }

static bool is_finite(const Run *r, const Tensor *x) {
    double squares;
    r->dev->ops->sum_squares(r->dev->main, x->dtype, &squares, x->data, numel(x));
    return isfinite(squares);
}

bool run_not_finite(Run *r, ParamSet *const *set, int n, int64_t step, double loss, Error *e) {
    for (int k = 0; k < n; k++)
        for (int i = 0; i < set[k]->n; i++)
            if (!is_finite(r, &set[k]->param[i]->t))
                return fail_as(e, FAIL_NUMERIC,
                               "step %" PRId64
                               ": the loss is %g; the first tensor that is not finite is the parameter %s",
                               step, loss, set[k]->param[i]->name);
    const TapeNode *first = NULL;
    for (const TapeNode *t = r->tape.last; t;
         t = t->prev) /* the tape is read backwards: the last one found is the first */
        if (t->out && !is_finite(r, t->out)) first = t;
    if (!first)
        return fail_as(e, FAIL_NUMERIC,
                       "step %" PRId64 ": the loss is %g, of finite parameters and finite outputs", step,
                       loss);
    char shape[96];
    const TapeNode *layer = first;
    while (layer && !layer->out->name) { /* an op without parameters: the nearest layer before it */
        do layer = layer->prev;
        while (layer && !layer->out);
    }
    return fail_as(e, FAIL_NUMERIC,
                   "step %" PRId64
                   ": the loss is %g; the first tensor that is not finite is an output of shape %s %s %s",
                   step, loss, shape_text(first->out, shape, sizeof shape), layer == first ? "of" : "after",
                   layer ? layer->out->name : "the input");
}

OptimConfig run_optim(const Config *cfg, double lr, int64_t steps) {
    return (OptimConfig){.lr = (float)lr,
                         .weight_decay = (float)cfg->train.weight_decay,
                         .beta1 = (float)cfg->train.beta1,
                         .beta2 = (float)cfg->train.beta2,
                         .eps = (float)cfg->train.eps,
                         .clip = (float)cfg->train.clip,
                         .schedule = cfg->train.schedule,
                         .warmup = (int64_t)(cfg->train.warmup * (double)steps),
                         .total = steps};
}
