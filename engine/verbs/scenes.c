/* scenes.c -- the verb `scenes`: writes the built-in dataset. The scenes are made in data/scenes*.c. */
#include "data/scenes.h"

#include "engine/verbs/verbs.h"

static Status run(Args *a, Error *e) {
    const Config *c = &a->cfg;
    if (a->nwords) {
        fail(e, "\"%s\" is neither a .yaml file nor section.key=value", a->word[0]);
        return FAIL_USAGE;
    }
    if (!*c->scenes.dir) {
        fail(e, "scenes.dir is empty; name the folder to write");
        return FAIL_CONFIG;
    }
    ScenesConfig s;
    scenes_config_default(&s);
    s.seed = (uint64_t)c->run.seed;
    s.domain = c->scenes.domain;
    s.images[SCENE_TRAIN] = c->scenes.train;
    s.images[SCENE_VAL] = c->scenes.val;
    s.images[SCENE_TEST] = c->scenes.test;
    s.questions_per_image = c->scenes.questions;
    s.steps_per_image = c->scenes.steps;
    s.statements_per_pair = c->scenes.statements;
    s.single_fraction = (float)c->scenes.single;
    s.few_fraction = (float)c->scenes.few;
    s.threads = c->run.threads;
    double start = now_s();
    bool ok = scenes_write(c->scenes.dir, &s, e);
    int64_t n = s.images[0] + s.images[1] + s.images[2];
    if (ok)
        info("%s: %" PRId64 " %s images in %.1f s, dataset version " SCENES_VERSION, c->scenes.dir, n,
             scene_domain_names[s.domain], now_s() - start);
    return verb_status(ok, e);
}

const Verb verb_scenes = {
    .name = "scenes",
    .usage = "scenes.dir=FOLDER [config.yaml] [section.key=value ...]",
    .summary = "writes the built-in dataset: rendered scenes with questions, programs, answers, scene graphs",
    .help = "JPEG images, questions and programs in GQA's JSON fields, scene graphs, two-image statements in "
            "NLVR2's, and\n"
            "on request labelled module calls. A function of run.seed and the options alone: no download, no "
            "clock.\n",
    .sections = {"run", "scenes"},
    .run = run,
};
