/* main.c -- the `vpdistill` command: finds the verb, reads its options, runs it. Verbs are in verbs/.
 *
 *   vpdistill <verb> [config.yaml] [section.key=value ...] [--option ...]
 */
#include <unistd.h>

#include "engine/comm.h"
#include "engine/verbs/verbs.h"

#define VERSION "0.1.0"

static const Verb *const verbs[] = {&verb_scenes, &verb_train,  &verb_run, &verb_distill,
                                    &verb_eval,   &verb_export, &verb_info, &verb_bench};

static void usage(FILE *f) {
    fprintf(f,
            "vpdistill %s: distils an end-to-end teacher into the modules that visual programs call\n\n"
            "usage: vpdistill <verb> [config.yaml] [section.key=value ...]\n\nverbs:\n",
            VERSION);
    for (int i = 0; i < COUNT_OF(verbs); i++) fprintf(f, "  %-9s %s\n", verbs[i]->name, verbs[i]->summary);
    fprintf(f, "\n`vpdistill <verb> --help` tells a verb's options.\n"
               "exit status: 0 done, 1 failure, 2 usage, 3 configuration, 4 data, 5 model file, 6 memory, 7 "
               "another rank, 8 disk, 9 not a number\n");
}

static Status verb_help(const Verb *v) {
    printf("usage: vpdistill %s %s\n\n%s\n\n%s", v->name, v->usage, v->summary, v->help);
    for (int i = 0; i < COUNT_OF(v->sections) && v->sections[i]; i++) {
        putchar('\n');
        config_help(stdout, v->sections[i]);
    }
    return OK_STATUS;
}

static bool ends_with(const char *s, const char *end) {
    size_t n = strlen(s), k = strlen(end);
    return n >= k && !strcmp(s + n - k, end);
}

/* "section.key=value": an assignment. */
static bool is_assignment(const char *s) {
    const char *eq = strchr(s, '='), *dot = strchr(s, '.');
    return eq && dot && dot < eq && *s != '-';
}

/* OpenMP's threads spin for milliseconds between two loops by default. On a machine that also does something else they then
 * wait for each other's turn: 38 instead of 530 questions a second were trained at load 6. A short spin keeps both. libgomp
 * reads this once, when it is loaded: so we set it and begin again. Who has set a policy keeps it. */
static void limit_spinning(char **argv) {
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT")) return;
    setenv("GOMP_SPINCOUNT", "10000", 1);
    execv("/proc/self/exe", argv); /* fails where /proc is missing: then as it was */
}

int main(int argc, char **argv) {
    limit_spinning(argv);
    if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        usage(argc < 2 ? stderr : stdout);
        return argc < 2 ? FAIL_USAGE : OK_STATUS;
    }
    if (!strcmp(argv[1], "--version")) {
        printf("vpdistill %s\n", VERSION);
        return OK_STATUS;
    }
    const Verb *v = NULL;
    const char *names[COUNT_OF(verbs)];
    for (int i = 0; i < COUNT_OF(verbs); i++) {
        names[i] = verbs[i]->name;
        if (!strcmp(verbs[i]->name, argv[1])) v = verbs[i];
    }
    if (!v) {
        const char *near = nearest(argv[1], names, COUNT_OF(names));
        fprintf(stderr, "vpdistill: there is no verb \"%s\"%s%s%s\n", argv[1],
                near ? " (did you mean " : "; `vpdistill --help` lists them", near ? near : "",
                near ? "?)" : "");
        return FAIL_USAGE;
    }
    static Args a;
    Error e = {0};
    const char *yaml = NULL, **set = xcalloc((size_t)argc, sizeof *set);
    a.word = xcalloc((size_t)argc, sizeof *a.word);
    int nset = 0;
    for (int i = 2; i < argc; i++) {
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            Status told = verb_help(v);
            free(set);
            free(a.word);
            return told;
        }
        if (!yaml && *argv[i] != '-' && (ends_with(argv[i], ".yaml") || ends_with(argv[i], ".yml")))
            yaml = argv[i];
        else if (is_assignment(argv[i]))
            set[nset++] = argv[i];
        else
            a.word[a.nwords++] = argv[i];
    }
    a.configured = yaml || nset;
    Status s = config_load(&a.cfg, yaml, set, nset, &e) ? OK_STATUS : FAIL_CONFIG;
    if (!s && v->ranks && !comm_open(&a.cfg, &e)) s = e.status;
    if (!s) s = v->run(&a, &e);
    if (!s) comm_close();
    if (s && *e.text && !comm_fail(s, e.text)) fprintf(stderr, "vpdistill %s: %s\n", v->name, e.text);
    if (!s && warn_count()) fprintf(stderr, "%d warnings\n", warn_count());
    free(set);
    free(a.word);
    return s;
}
