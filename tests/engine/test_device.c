/* test_device.c -- the demo's training step on every device: the losses of the CPU. */
#include "data/loader.h"
#include "engine/step.h"
#include "tests/engine/child.h"
#include "tests/kernels/kernels.h"

#include <math.h>

enum { STEPS = 2 };

/* The demo's three networks on a handful of programs: towers, detection, verification by the teacher, losses, clipping, AdamW. */
static bool distill(Device *on, const char *precision, int steps, StepStats out[STEPS]) {
    static const char *const options[] = {
        "model.vqa=configs/models/demo-vqa", "model.loc=configs/models/demo-loc", "model.teacher=configs/models/demo-teacher",
        "model.loc_threshold=0.4", "distill.programs=3", "distill.per_image=3", "distill.candidates=2", "distill.lr_vqa=0.001",
        "distill.lr_loc=0.001", "data.workers=0",
    };
    static Config cfg;
    static Distiller d;
    Error e = {0};
    char dir[600];
    config_defaults(&cfg);
    snprintf(dir, sizeof dir, "data.dir=%s", tiny_scenes());
    bool ok = config_set(&cfg, dir, &e) && config_set(&cfg, precision, &e);
    for (int i = 0; i < COUNT_OF(options); i++) ok = ok && config_set(&cfg, options[i], &e);
    run_use_device(on);
    ok = ok && distiller_open(&d, &cfg, &e);
    const LoaderConfig lc = {.seed = 1, .batch = 1, .shuffle = true, .batch_bytes = (size_t)64 << 20, .max_bad_percent = 5};
    Loader *l = ok ? loader_open(&d.by_image.group, &lc, &e) : NULL;
    for (int k = 0; l && ok && k < steps; k++) {
        const Batch *b = loader_next(l, &e);
        ok = b && step_run(&d, k, b, &out[k], &e);
    }
    EXPECT(ok && l, "%s", e.text);
    if (l) loader_close(l);
    distiller_close(&d);
    run_use_device(NULL);
    return ok && l;
}

static void compare(const char *precision, int steps, double first) {
    StepStats want[STEPS], got[STEPS];
    if (!distill(device_cpu(0), precision, steps, want) || !distill(dev, precision, steps, got)) return;
    for (int k = 0; k < steps; k++) {
        const double rel = k ? 10 * first : first;
        EXPECT(want[k].loss_vqa > 0 && want[k].loss_loc > 0, "step %d teaches nothing", k);
        EXPECT_NEAR(got[k].loss_vqa, want[k].loss_vqa, rel * want[k].loss_vqa, "step %d: VQA's loss", k);
        EXPECT_NEAR(got[k].loss_loc, want[k].loss_loc, rel * want[k].loss_loc, "step %d: LOC's loss", k);
        EXPECT_NEAR(got[k].norm_vqa, want[k].norm_vqa, 10 * rel * want[k].norm_vqa, "step %d: norm of VQA's gradient", k);
        EXPECT_NEAR(got[k].norm_loc, want[k].norm_loc, 10 * rel * want[k].norm_loc, "step %d: norm of LOC's gradient", k);
        EXPECT(got[k].kept[0] == want[k].kept[0] && got[k].kept[1] == want[k].kept[1] && got[k].programs == want[k].programs,
               "step %d: other labels", k);
    }
}

/* Outputs agree to 1e-5 of their largest value (test_vilt.c, test_owlvit.c), a loss is a mean of them: 1e-4. The second step sees
 * weights that AdamW moved by about the sign of each gradient; where that is rounding only, the sides part by 2 lr in single
 * weights: ten times more, as for the ten updates of the golden models. */
DEVICE_TEST(distill_steps) { compare("run.precision=f32", STEPS, 1e-4); }

/* Both sides round to bf16 at the same places, but what is rounded differs in its last f32 bits, so now and then a value goes the
 * other way. If every one did, each side would be off by a rounding of its outputs: EPS16 of a loss, 2 EPS16 between them. */
DEVICE_TEST(distill_steps_bf16) { compare("run.precision=bf16", 1, 2 * EPS16); }
