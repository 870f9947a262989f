/* rates.c -- which parameters learn, and how fast. See rates.h. */
#include "engine/rates.h"

#include <ctype.h>
#include <math.h>

/* One word of an option: a beginning of parameter names, and what it multiplies their rate by. */
typedef struct Rule {
    char prefix[128];
    float factor;
} Rule;

enum { MAX_RULES = 64 };

static bool begins(const char *name, const char *prefix) { return !strncmp(name, prefix, strlen(prefix)); }

/* The part of `name` that two names have in common, dots and all: how near they are. */
static size_t shared(const char *a, const char *b) {
    size_t n = 0;
    while (a[n] && a[n] == b[n]) n++;
    return n;
}

static bool nobody(ParamSet *const *ps, int n, const char *option, const char *prefix, Error *e) {
    const char *best = "(none)";
    size_t most = 0;
    for (int k = 0; k < n; k++)
        for (int i = 0; i < ps[k]->n; i++)
            if (shared(ps[k]->param[i]->name, prefix) > most) {
                best = ps[k]->param[i]->name;
                most = shared(best, prefix);
            }
    return fail_as(e, FAIL_CONFIG, "%s: no parameter's name begins with \"%s\"; the nearest is %s", option,
                   prefix, best);
}

/* Cuts "a=2 b=0.1" (scaled) or "a b" (frozen: factor 0) into rules; each must name somebody. */
static bool read_rules(ParamSet *const *ps, int n, const char *option, const char *text, bool scaled,
                       Rule *rule, int *nrules, Error *e) {
    char copy[CONFIG_TEXT], *rest = NULL;
    snprintf(copy, sizeof copy, "%s", text);
    for (char *word = strtok_r(copy, " ,", &rest); word; word = strtok_r(NULL, " ,", &rest)) {
        char *equals = strchr(word, '='), *end = NULL;
        float factor = 0;
        if (scaled) {
            factor = equals ? strtof(equals + 1, &end) : 0;
            if (!equals || end == equals + 1 || *end || !(factor >= 0) || !isfinite(factor))
                return fail_as(e, FAIL_CONFIG, "%s: \"%s\" is not NAME=FACTOR with a factor from 0 on",
                               option, word);
            *equals = 0;
        }
        if (*nrules == MAX_RULES || strlen(word) >= sizeof rule->prefix)
            return fail_as(e, FAIL_CONFIG, "%s: \"%.40s\": at most %d names of %zu bytes are possible",
                           option, word, MAX_RULES, sizeof rule->prefix - 1);
        bool found = false;
        for (int k = 0; k < n && !found; k++)
            for (int i = 0; i < ps[k]->n && !found; i++) found = begins(ps[k]->param[i]->name, word);
        if (!found) return nobody(ps, n, option, word, e);
        Rule *r = &rule[(*nrules)++];
        snprintf(r->prefix, sizeof r->prefix, "%s", word);
        r->factor = factor;
    }
    return true;
}

/* "vilt.encoder.layer.3.output..." -> block 3 of the tower "vilt.": its name's length, or 0. */
static size_t block_of(const char *name, int *block) {
    static const char *const marks[] = {"encoder.layer.", "encoder.layers.", "decoder.layer."};
    for (int i = 0; i < COUNT_OF(marks); i++) {
        const char *at = strstr(name, marks[i]);
        if (!at || !isdigit((unsigned char)at[strlen(marks[i])])) continue;
        *block = atoi(at + strlen(marks[i]));
        return (size_t)(at - name);
    }
    return 0;
}

/* The tower whose input `name` makes: embeddings and the norm right after them. */
static size_t embedding_of(const char *name) {
    static const char *const marks[] = {"embeddings.", "pre_layernorm.",
                                        "pre_layrnorm."}; /* CLIP's own slip */
    for (int i = 0; i < COUNT_OF(marks); i++) {
        const char *at = strstr(name, marks[i]);
        if (at) return (size_t)(at - name);
    }
    return 0;
}

static int blocks_of_tower(const ParamSet *ps, const char *name, size_t tower) {
    int most = 0, block = 0;
    for (int i = 0; i < ps->n; i++)
        if (block_of(ps->param[i]->name, &block) == tower && !strncmp(ps->param[i]->name, name, tower))
            most = MAX(most, block + 1);
    return most;
}

static float layer_factor(const ParamSet *ps, const char *name, double decay) {
    int block = 0;
    size_t tower = block_of(name, &block);
    if (tower) return (float)pow(decay, blocks_of_tower(ps, name, tower) - block);
    tower = embedding_of(name);
    const int blocks = tower ? blocks_of_tower(ps, name, tower) : 0;
    return blocks ? (float)pow(decay, blocks + 1) : 1;
}

bool rates_apply(ParamSet *const *ps, int n, const Config *cfg, Error *e) {
    Rule rule[MAX_RULES];
    int nrules = 0;
    if (!read_rules(ps, n, "train.freeze", cfg->train.freeze, false, rule, &nrules, e) ||
        !read_rules(ps, n, "train.lr_scale", cfg->train.lr_scale, true, rule, &nrules, e))
        return false;
    for (int k = 0; k < n; k++) {
        for (int i = 0; i < ps[k]->n; i++) {
            Param *p = ps[k]->param[i];
            for (int r = 0; r < nrules; r++)
                if (begins(p->name, rule[r].prefix)) p->lr_scale *= rule[r].factor;
            if (cfg->train.layer_decay < 1)
                p->lr_scale *= layer_factor(ps[k], p->name, cfg->train.layer_decay);
        }
        params_stop_frozen(ps[k]);
    }
    return true;
}
