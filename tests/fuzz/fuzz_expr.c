/* fuzz_expr.c -- libFuzzer target: any bytes as an EVAL expression over variables of every kind, in both dialects.
 *
 * What stands before the first zero byte is variable S, a hostile answer; what follows is the expression.
 */
#include "engine/expr.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static Arena arena;
    if (!arena.size) arena_open(&arena, "fuzz", NULL, 64 << 20);
    if (size > 8192) return 0;
    const uint8_t *zero = memchr(data, 0, size);
    size_t nvar = zero ? (size_t)(zero - data) : 0, ntext = zero ? size - nvar - 1 : size;
    char *text = xcalloc(ntext, 1), *var = xcalloc(nvar, 1); /* copies of exactly this size, for the sanitizer */
    memcpy(text, data + size - ntext, ntext);
    memcpy(var, data, nvar);
    for (int strict = 0; strict < 2; strict++) {
        arena_reset(&arena, 0);
        Boxes *b = boxes_new(&arena, 2, (Rect){0, 0, 9, 9});
        const Value items[] = {value_str("x", 1), value_int(3)};
        const Value vars[] = {value_str(var, (int)nvar), value_str("yes", 3), value_int(INT64_MIN), value_float(-0.5),
                              value_boxes(b), {.kind = VAL_LIST, .list = {items, 2}}, value_bool(true), value_none()};
        enum { SCALAR = KIND(VAL_BOOL) | KIND(VAL_INT) | KIND(VAL_FLOAT) | KIND(VAL_STR), ANY = KINDS_ANY };
        const Name names[] = {{"S", 1, 0, KIND(VAL_STR)}, {"A", 1, 1, SCALAR}, {"I", 1, 2, SCALAR}, {"F", 1, 3, SCALAR},
                              {"B", 1, 4, KIND(VAL_BOXES)}, {"L", 1, 5, ANY}, {"T", 1, 6, ANY}, {"N", 1, 7, ANY}};
        Error e = {0};
        Value r;
        const Expr *x = expr_compile(&arena, text, (int)ntext, &(Scope){names, COUNT_OF(names), strict}, &e);
        CHECK(x || (e.status == FAIL_DATA && e.text[0]), "refused without a sentence");
        if (!x) continue;
        size_t before = arena.used;
        bool ok = expr_eval(&r, x, vars, &arena, &e);
        CHECK(ok || e.text[0], "failed without a sentence");
        CHECK(arena.used - before <= 2 * EXPR_MEMORY_MAX, "%zu bytes", arena.used - before);
        if (!ok) continue;
        char out[256];
        value_text(out, sizeof out, &r);
        CHECK(x->kinds & KIND(r.kind), "gave %s, which its check excluded", value_kind_name(r.kind));
    }
    free(text);
    free(var);
    return 0;
}
