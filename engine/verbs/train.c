/* train.c -- the verb `train`: supervised training of a module or a teacher. The loop is in engine/train.c. */
#include "engine/train.h"
#include "engine/verbs/verbs.h"

static Status run(Args *a, Error *e) {
    if (a->nwords) {
        fail(e, "\"%s\" is neither a .yaml file nor section.key=value", a->word[0]);
        return FAIL_USAGE;
    }
    return verb_status(train_run(&a->cfg, e), e);
}

const Verb verb_train = {
    .name = "train",
    .usage = "[config.yaml] [section.key=value ...]",
    .summary = "trains a module or a teacher on labelled steps or on questions with answers",
    .help = "data.kind steps reads DIR/SPLIT_steps.jsonl, one labelled module call per line (an exported "
            "trace is such a\n"
            "file); gqa reads questions and trains a VQA model on whole images. Checkpoints go to run.out, "
            "and a run\n"
            "that finds one there goes on from it bit for bit; the trained model is run.out/model.\n",
    .sections = {"run", "data", "model", "train"},
    .ranks = true,
    .run = run,
};
