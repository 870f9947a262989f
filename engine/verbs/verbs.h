/* verbs.h -- the verbs of the command, one file each beside this one. */
#pragma once
#include "engine/config.h"

/* What main.c read from the command line: the configuration, and words that are neither options nor YAML. */
typedef struct Args {
    Config cfg;
    char **word;
    int nwords;
    bool configured; /* a YAML file or an assignment was given */
} Args;

typedef struct Verb {
    const char *name, *usage, *summary;
    const char *help;                       /* paragraphs after the usage line */
    const char *const sections[6];          /* of the configuration that it reads */
    bool ranks;                             /* several processes may share the work */
    Status (*run)(Args *a, Error *e);       /* FAIL_*: e holds the sentence */
} Verb;

extern const Verb verb_scenes, verb_train, verb_run, verb_distill, verb_eval, verb_export, verb_info, verb_bench;

/* The status of a failed verb: what the error says. */
static inline Status verb_status(bool ok, const Error *e) { return ok ? OK_STATUS : e->status ? e->status : FAIL_OTHER; }
