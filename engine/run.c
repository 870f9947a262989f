/* run.c -- setting up and tearing down. See run.h. */
#include "engine/run.h"

#include <unistd.h>

void run_open(Run *r, const Config *cfg) {
    *r = (Run){.cfg = cfg, .dev = device_cpu(cfg->run.threads)};
    /* Address space, not memory: a page is taken when an update first reaches it. */
    size_t memory = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    arena_open(&r->step, "step", r->dev, memory);
    arena_open(&r->host, "host", NULL, memory / 4);
    r->ctx = (Ctx){.dev = r->dev, .step = &r->step, .host = &r->host};
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
