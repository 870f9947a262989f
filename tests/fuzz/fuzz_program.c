/* fuzz_program.c -- libFuzzer target: any bytes as a program, in both dialects; what parses is run with mocked modules.
 *
 * Beyond crashes it asserts what program.h promises: bounded memory, dependences that point forward, crops inside the image.
 */
#include "engine/program.h"
#include "modules/steps.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* An answer made of the step's number, so that the same input always runs the same way. */
static void answer(Value *out, const Program *p, int i, Arena *a) {
    static const char *const words[] = {"yes", "no", "3", "red", "two", "", "it's", "99999999999999999999"};
    if (p->steps[i].kind->result & KIND(VAL_STR)) {
        const char *w = words[(i + p->ntext) % COUNT_OF(words)];
        *out = value_str(w, (int)strlen(w));
        return;
    }
    Boxes *b = boxes_new(a, (i + p->ntext) % 3, (Rect){0, 0, 640, 427});
    for (int k = 0; k < b->n; k++) b->box[k] = (Box){{i * 50 - 100, k * 70, i * 60, p->ntext}, 0.5f, k};
    *out = value_boxes(b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static Arena arena;
    if (!arena.size) arena_open(&arena, "fuzz", NULL, 64 << 20);
    for (int k = 0; k < 4; k++) {
        arena_reset(&arena, 0);
        Dialect d = k & 1 ? dialect_nlvr : dialect_gqa;
        d.strict = k & 2;
        Program p;
        Error e = {0};
        /* A copy of exactly this size, so that the sanitizer sees a read past the end. */
        char *text = xcalloc(size, 1);
        memcpy(text, data, size);
        bool ok = program_parse(&p, &arena, &d, text, size, &e);
        free(text);
        CHECK(arena.used < 2 << 20, "%zu bytes", arena.used);
        CHECK(ok || (e.status == FAIL_DATA && e.text[0]), "refused without a sentence");
        if (!ok) continue;
        Value *vars = ARENA_NEW(&arena, Value, p.nslots);
        for (int i = 0; i < p.ninputs; i++) vars[i] = value_image((uint64_t)i, 640, 427);
        for (int i = 0; i < p.nsteps; i++) {
            const Step *s = &p.steps[i];
            for (int w = 0; w < s->nwaits; w++) CHECK(s->waits[w] < i, "step %d waits for %d", i, s->waits[w]);
            for (int w = 0; w < s->ndependants; w++) CHECK(s->dependants[w] > i, "step %d before %d", i, s->dependants[w]);
            if (s->module) answer(&vars[s->out], &p, i, &arena);
            else if (!program_run_host(&p, i, vars, &arena, &e)) break;
            const Value *v = &vars[s->out];
            if (v->kind == VAL_IMAGE) {
                Rect r = v->image.rect;
                CHECK(r.x0 >= 0 && r.y0 >= 0 && r.x1 <= 640 && r.y1 <= 427 && rect_w(r) > 0 && rect_h(r) > 0,
                      "crop [%d %d %d %d]", r.x0, r.y0, r.x1, r.y1);
            }
            if (i == p.nsteps - 1) {
                char out[512];
                answer_text(out, sizeof out, program_result(&p, vars), ANSWER_YES_NO, &e);
            }
        }
    }
    return 0;
}
