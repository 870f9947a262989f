/* fuzz_program.c -- libFuzzer target: any bytes as a program, in both dialects; what parses is run with mocked modules.
 *
 * Beyond crashes it asserts what program.h promises: bounded memory, dependences that point forward, crops and questions inside
 * the image, no failure without a sentence.
 */
#include "engine/program.h"
#include "modules/steps.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { SIDE_W = 64, SIDE_H = 43 }; /* of the images */

/* An answer made of the numbers of step and question, so that the same input always runs the same way. */
static Value answer(const Program *p, int i, int k, Arena *a) {
    static const char *const words[] = {"yes", "no", "3", "red", "two", "", "it's", "99999999999999999999"};
    static const Value items[] = {{.kind = VAL_STR, .str = {"a b", 3}}, {.kind = VAL_STR, .str = {"", 0}}, {.kind = VAL_STR, .str = {"\xc3\xa4", 2}}};
    const char *module = p->steps[i].module, *w = words[(i + p->ntext) % COUNT_OF(words)];
    if (!strcmp(module, "VQA")) return value_str(w, (int)strlen(w));
    if (!strcmp(module, "CLIP")) return value_float((double)((i * 7 + k * 13 + p->ntext) % 21 - 5) / 20);
    if (!strcmp(module, "LIST")) return (Value){.kind = VAL_LIST, .list = {items, (i + p->ntext) % 4}};
    Boxes *b = boxes_new(a, (i + p->ntext) % 3, (Rect){0, 0, SIDE_W, SIDE_H});
    for (int n = 0; n < b->n; n++) b->box[n] = (Box){{i * 5 - 10, n * 7, i * 6, p->ntext}, 0.5f, n};
    b->category = (Str){w, (int)strlen(w)};
    return value_boxes(b);
}

/* One step, as the scheduler takes it. */
static bool take(const Program *p, int i, Value *vars, Arena *a, Error *e) {
    if (!p->steps[i].module) return program_run_host(p, i, vars, a, e);
    StepAsk *ask;
    const int n = program_ask(p, i, vars, &ask, a, e);
    if (n <= 0) return n == 0;
    Value *all = ARENA_NEW(a, Value, n);
    for (int k = 0; k < n; k++) {
        const Rect r = ask[k].rect;
        CHECK(strlen(ask[k].query) <= PROGRAM_TEXT_MAX * 2, "a question of %zu bytes", strlen(ask[k].query));
        CHECK(r.x0 >= 0 && r.y0 >= 0 && r.x1 <= SIDE_W && r.y1 <= SIDE_H, "asked about [%d %d %d %d]", r.x0, r.y0, r.x1, r.y1);
        all[k] = answer(p, i, k, a);
    }
    return program_conclude(p, i, vars, ask, all, n, a, e);
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
        static uint8_t rgb[SIDE_W * SIDE_H * 3];
        const ImageView view = {rgb, SIDE_W, SIDE_H};
        for (int i = 0; i < p.ninputs; i++) {
            vars[i] = value_image((uint64_t)i, SIDE_W, SIDE_H);
            vars[i].image.pixels = &view;
        }
        for (int i = 0; i < p.nsteps; i++) {
            const Step *s = &p.steps[i];
            for (int w = 0; w < s->nwaits; w++) CHECK(s->waits[w] < i, "step %d waits for %d", i, s->waits[w]);
            for (int w = 0; w < s->ndependants; w++) CHECK(s->dependants[w] > i, "step %d before %d", i, s->dependants[w]);
            e = (Error){0};
            if (!take(&p, i, vars, &arena, &e)) {
                CHECK(e.text[0], "step %d failed without a sentence", i);
                break;
            }
            const Value *v = &vars[s->out];
            if (v->kind == VAL_IMAGE) {
                Rect r = v->image.rect;
                CHECK(r.x0 >= 0 && r.y0 >= 0 && r.x1 <= SIDE_W && r.y1 <= SIDE_H && rect_w(r) > 0 && rect_h(r) > 0,
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
