/* parity.c -- the engine's half of tests/parity/parity.py: one training step of a model folder, written out.
 *
 *   build/cpu/parity FOLDER CASE.safetensors OUT.safetensors [SAVED]
 *
 * OUT gets the outputs without a tape (plain.*) and with one, the loss and every parameter's gradient; SAVED the model as
 * module_save writes it. What CASE holds: tests/modules/model_case.h.
 */
#include "tests/modules/model_case.h"

enum { MAX_NAMES = 4096 };

/* What will be written, by name. */
typedef struct Written {
    StTensor t[MAX_NAMES];
    int n;
} Written;

/* x's shape; data stays where it is until all is written. */
static void add(Written *w, const char *prefix, const char *name, const Tensor *x, const void *data) {
    CHECK(w->n < MAX_NAMES, "%d tensors", w->n);
    char *full = xcalloc(strlen(prefix) + strlen(name) + 1, 1);
    strcat(strcpy(full, prefix), name);
    w->t[w->n] = (StTensor){.name = full, .dtype = ST_F32, .ndim = x->ndim, .data = data, .bytes = (size_t)numel(x) * sizeof(float)};
    memcpy(w->t[w->n++].shape, x->shape, sizeof x->shape);
}

/* Copies: the next pass begins in the same memory. */
static void add_outputs(Written *w, const char *prefix, const ModelCase *k) {
    const struct { const char *name; const Tensor *t; } out[] = {{"logits", k->out.logits}, {"boxes", k->out.boxes}};
    for (int i = 0; i < COUNT_OF(out); i++) {
        if (!out[i].t) continue;
        const size_t bytes = (size_t)numel(out[i].t) * sizeof(float);
        float *copy = xcalloc(bytes + 1, 1);
        k->c.dev->download(k->c.dev, copy, out[i].t->data, bytes);
        add(w, prefix, out[i].name, out[i].t, copy);
    }
}

int main(int argc, char **argv) {
    static Written w;
    static ModelCase k;
    Error e = {0};
    if (argc < 4 || argc > 5) {
        fprintf(stderr, "usage: parity FOLDER CASE.safetensors OUT.safetensors [SAVED]\n");
        return FAIL_USAGE;
    }
    bool ok = case_open(&k, argv[1], argv[2], device_cpu(0), F32, (size_t)64 << 30, &e);
    if (ok) {
        case_begin(&k, false);
        case_forward(&k);
        add_outputs(&w, "plain.", &k);
        case_begin(&k, true);
        case_forward(&k);
        add_outputs(&w, "", &k);
        double seconds = now_s();
        float loss = (float)case_loss(&k);
        tape_backward(&k.c);
        fprintf(stderr, "%s: loss %g, backward %.1f s, step arena %zu MB\n", argv[1], (double)loss, now_s() - seconds, k.step.peak >> 20);
        w.t[w.n++] = (StTensor){.name = "loss", .dtype = ST_F32, .ndim = 1, .shape = {1}, .data = &loss, .bytes = sizeof loss};
        for (int i = 0; i < k.m->params.n; i++) {
            const Param *p = k.m->params.param[i];
            add(&w, "grad.", p->name, &p->t, p->t.param_grad); /* on the CPU: host memory; of L/14 1.7 GB */
        }
        ok = st_write(argv[3], w.t, w.n, NULL, 0, &e) && (argc < 5 || module_save(k.m, argv[4], &e));
    }
    if (!ok) fprintf(stderr, "parity: %s\n", e.text);
    return ok ? 0 : e.status ? (int)e.status : FAIL_OTHER;
}
