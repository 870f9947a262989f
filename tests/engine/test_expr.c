/* test_expr.c -- the expressions of EVAL against Python, against the reference's own table, and against attackers. */
#include "engine/expr.h"
#include "tests/test.h"

static Arena arena;

static Arena *fresh(void) {
    if (!arena.size) arena_open(&arena, "test expressions", NULL, 64 << 20);
    arena_reset(&arena, 0);
    return &arena;
}

/* "b:True", "i:3", "f:0.5", "s:red" in n bytes. */
static Value value_read(const char *s, int n) {
    char text[64];
    snprintf(text, sizeof text, "%.*s", n - 2, s + 2);
    switch (s[0]) {
    case 'b': return value_bool(text[0] == 'T');
    case 'i': return value_int(strtoll(text, NULL, 10));
    case 'f': return value_float(strtod(text, NULL));
    default: return value_str(s + 2, n - 2);
    }
}

/* The same with the value: kind and Python's text. */
static void value_show(char *out, size_t size, const Value *v) {
    char text[2048];
    if (value_text(text, sizeof text, v) < 0) snprintf(text, sizeof text, "<%s>", value_kind_name(v->kind));
    snprintf(out, size, "%c:%s", v->kind < VAL_IMAGE ? "nbifs"[v->kind] : '?', text);
}

/* Evaluates with variables "A=s:yes|B=i:3"; the result, or the error's sentence, in out. */
static bool eval(char *out, size_t size, const char *text, int n, const char *vars, int nvars, bool strict) {
    Name names[8];
    Value v[8];
    Scope scope = {names, 0, strict};
    for (const char *p = vars, *end = vars + nvars; p < end && scope.n < 8;) {
        const char *bar = memchr(p, '|', (size_t)(end - p)), *eq = memchr(p, '=', (size_t)(end - p));
        if (!bar) bar = end;
        v[scope.n] = value_read(eq + 1, (int)(bar - eq - 1));
        names[scope.n] = (Name){p, (int)(eq - p), scope.n, KIND(VAL_BOOL) | KIND(VAL_INT) | KIND(VAL_FLOAT) | KIND(VAL_STR)};
        scope.n++;
        p = bar + 1;
    }
    Error e = {0};
    Value r;
    const Expr *x = expr_compile(fresh(), text, n, &scope, &e);
    bool ok = x && expr_eval(&r, x, v, &arena, &e);
    if (ok) {
        EXPECT(x->kinds & KIND(r.kind), "%.*s gave %s, which its check excluded", n, text, value_kind_name(r.kind));
        value_show(out, size, &r);
    } else
        snprintf(out, size, "!%s", e.text);
    return ok;
}

/* Rows of make_expr.py. Another file by VPD_EXPR_TSV. */
TEST(expr_python) {
    const char *path = getenv("VPD_EXPR_TSV") ? getenv("VPD_EXPR_TSV") : "tests/golden/expr.tsv";
    char *data, got[4096];
    size_t size;
    Error e = {0};
    if (!file_read(path, &data, &size, 1 << 28, &e)) {
        EXPECT(false, "%s", e.text);
        return;
    }
    int rows = 0, agree = 0;
    for (char *line = data, *nl; (nl = strchr(line, '\n')); line = nl + 1) {
        char *vars = memchr(line, '\t', (size_t)(nl - line)), *want = vars ? memchr(vars + 1, '\t', (size_t)(nl - vars - 1)) : NULL;
        EXPECT(want, "%s: row %d has no three columns", path, rows + 1);
        if (!want) break;
        eval(got, sizeof got, line, (int)(vars - line), vars + 1, (int)(want - vars - 1), false);
        bool same = strlen(got) == (size_t)(nl - want - 1) && !memcmp(got, want + 1, strlen(got));
        EXPECT(same, "%.*s: got %s", (int)(nl - line), line, got);
        rows++;
        agree += same;
    }
    free(data);
    EXPECT(rows >= 5000 && agree == rows, "%d of %d agree", agree, rows);
}

/* What section 4.7 of the specification says, and what the dialects make of it; NULL: as compat. */
static const struct { const char *text, *vars, *compat, *strict; } rules[] = {
    {"{A} + {B} == 1", "A=s:yes|B=s:no", "b:True", NULL},
    {"{A} and {B} xor {C}", "A=s:yes|B=s:no|C=s:yes", "b:True", NULL},
    {"{A} xor {B} == 1", "A=s:yes|B=s:1", "b:False", "b:False"},
    {"{A} xor {B} xor {C}", "A=s:yes|B=s:yes|C=s:yes", "b:False", "b:True"},
    {"{A} xor {B} xor {C}", "A=s:yes|B=s:no|C=s:yes", "b:True", "b:False"},
    {"{A} == 'yes'", "A=s:yes", "b:False", "b:True"},
    {"{A} == 'white'", "A=s:it's white", "b:False", NULL},
    {"{A} >= 7", "A=s:many", "!>= cannot take 'many' and 7", NULL},
    {"{A} + {B} == 2", "A=s:two|B=s:no", "b:True", NULL},
    {"{A} + 1", "A=s:05", "i:6", NULL},
    {"'yes' if {A} > 0 and else 'no'", "A=s:1", "!expression, column 22: expected a value, found 'else'", NULL},
    {"{X}", "A=s:1", "!expression, column 2: X is not written by any earlier step (did you mean A?)", NULL},
    {"{A}", "A=s:yes", "b:True", NULL},
    {"{A}", "A=s:Yes.", "s:Yes.", "b:True"},
    {"{A}", "A=s:The red car", "s:The red car", NULL},
    {"{A} == 'Red'", "A=s:red.", "b:False", "b:True"},
    {"{A} == 'cat'", "A=s:a cat", "b:False", "b:True"},
    {"{A} == 2", "A=s:two", "b:False", "b:True"},
    {"{A} > 1", "A=s:three", "b:True", NULL},
    {"{A} == 0", "A=s:none", "b:False", "b:True"},
    {"{A} + {B}", "A=s:two|B=s:three", "s:twothree", "i:5"},
    {"{A} or {B}", "A=s:red|B=s:no", "s:red", "b:True"},
    {"{A} and {B}", "A=s:yes|B=s:blue", "s:blue", "b:True"},
    {"not {A}", "A=s:no", "b:True", NULL},
    {"'a' if {A} else 'b'", "A=s:no", "s:b", NULL},
    {"'yes' if {A} == {B} else 'no'", "A=s:blue|B=s:Blue", "s:no", "s:yes"},
    {"A == 'red' and B > 2", "A=s:red|B=s:3", "b:True", NULL}, /* names without braces */
    {"\xe2\x80\x98yes\xe2\x80\x99 if {A} else \xe2\x80\x9cno\xe2\x80\x9d", "A=s:yes", "s:yes", NULL},
    {"'{A} and {B}'", "A=s:red|B=s:3", "s:red and 3", NULL},
    {"'{A}'", "A=s:yes", "s:True", "s:yes"},
    {"'{{A}}'", "A=s:yes", "s:{A}", NULL},
    {"{ A }", "A=s:3", "i:3", NULL},
    {"1 if True else 1 / 0", "", "i:1", NULL}, /* what is not needed is not computed */
    {"False and 1 / 0", "", "b:False", NULL},
    {"1 < 0 < 1 / 0", "", "b:False", NULL},
    {"1 / 0", "", "!division by zero", NULL},
    {"5 % 0", "", "!division by zero", NULL},
    {"5.0 // 0", "", "!division by zero", NULL},
    {"-7 // 2", "", "i:-4", NULL},
    {"-7 % 3", "", "i:2", NULL},
    {"7 % -3", "", "i:-2", NULL},
    {"7 / 2", "", "f:3.5", NULL},
    {"True + True", "", "i:2", NULL},
    {"not 1 == 2", "", "b:True", NULL},
    {"9223372036854775807 + 1", "", "!a number is too large (64 bits)", NULL},
    {"9223372036854775808", "", "!expression, column 1: the number is too large (at most 9223372036854775807)", NULL},
    {"-9223372036854775807 - 1", "", "i:-9223372036854775808", NULL},
    {"(-9223372036854775807 - 1) // -1", "", "!a number is too large (64 bits)", NULL},
    {"(-9223372036854775807 - 1) % -1", "", "i:0", NULL},
    {"abs(-9223372036854775807 - 1)", "", "!a number is too large (64 bits)", NULL},
    {"int(1e300)", "", "!a number is too large (64 bits)", NULL},
    {"9007199254740993 == 9007199254740992.0", "", "b:False", NULL}, /* exact, where a double would not be */
    {"{A} + 1", "A=s:99999999999999999999", "!the number 99999999999999999999 is too large", NULL},
    {"{A} + 1", "A=s:-9223372036854775808", "!+ cannot take '-9223372036854775808' and 1", NULL},
    {"len('caf\xc3\xa9')", "", "i:4", NULL},
    {"'x' * 2000", "", "!the expression makes too long a string (at most 1024 bytes, 4096 in all)",
     "!the expression makes too long a string (at most 1024 bytes, 4096 in all)"},
    {"min(3)", "", "!expression, column 1: min wants two values or more", NULL},
    {"len(3)", "", "!expression, column 5: len wants a string or a box list or objects or a list, this is an int", NULL},
    {"", "", "!the expression is empty", NULL},
    {"{A} = 1", "A=i:1", "!expression, column 5: '=' does not compare (write ==)", NULL},
    {"{A} == red", "A=s:red", "!expression, column 8: 'red' is no variable; a text goes between quotes", NULL},
};

TEST(expr_rules) {
    char got[1200];
    for (int i = 0; i < COUNT_OF(rules); i++)
        for (int strict = 0; strict < 2; strict++) {
            const char *want = strict && rules[i].strict ? rules[i].strict : rules[i].compat;
            eval(got, sizeof got, rules[i].text, (int)strlen(rules[i].text), rules[i].vars, (int)strlen(rules[i].vars), strict);
            EXPECT(!strcmp(got, want), "%s with %s (%s): got %s, want %s", rules[i].text, rules[i].vars,
                   strict ? "strict" : "compat", got, want);
        }
}

/* What a program could try on Python. Refused where it is not of the language; as a value, it is a string. */
static const char *const attacks[] = {
    "__import__('os').system('touch /tmp/pwned')", "().__class__.__bases__[0].__subclasses__()",
    "open('/etc/passwd').read()", "exec('x=1')", "eval('1')", "{A.__class__}", "{A[0]}", "{A!r}", "{A:>1000000000}",
    "{0}", "{}", "lambda: 1", "[x for x in (1,2)]", "9**9**9**9", "'%s' % {A}", "'%1000000000d' % 1",
    "'{A:1000000000}'", "'{A.__init__.__globals__}'", "f'{A}'", "A if", "`id`", "$(id)", "1; import os", "x := 3",
    "A.upper()", "A[0]", "getattr(A, 'x')", "globals()", "1_000", "0x10", "1 if 1", "'a' 'b'", "a\n=b", "import os",
    "print(1)", "str.format('{}', 1)", "len", "len(", "len()", "min(1,,2)", "not", "- - -", "{A", "A}", "'", "\"", "((",
    "{A} is None", "1 <> 2", "~1", "1 << 3", "1 & 2", "1 | 2", "1 ^ 2", "@", "...", "\\", "#", "\x01", "\xff\xfe",
};

TEST(expr_attacks) {
    char got[1200], vars[256];
    for (int i = 0; i < COUNT_OF(attacks); i++)
        for (int strict = 0; strict < 2; strict++) {
            bool ok = eval(got, sizeof got, attacks[i], (int)strlen(attacks[i]), "A=s:red", 7, strict);
            EXPECT(!ok, "%s gave %s", attacks[i], got);
            /* the same as a model's answer: a text like any other */
            snprintf(vars, sizeof vars, "A=s:%s", attacks[i]);
            if (strchr(attacks[i], '|') || strchr(attacks[i], '=')) continue;
            ok = eval(got, sizeof got, "{A} == 'x' or len({A}) > 500", 28, vars, (int)strlen(vars), strict);
            EXPECT(ok && !strcmp(got, "b:False"), "answer %s gave %s", attacks[i], got);
        }
}

/* 10,000 mutations of attacks and of good expressions: refused or evaluated, in bounded time and memory. */
TEST(expr_mutations) {
    static const char *const glue[] = {" and ", "(", ")", "{A}", "__class__", "'", "**", " if ", " else ", "[", ".", "not ",
                                       "-", "len(", "9999999999", ",", " xor ", "\\", "{", "}", "%", "*", "in ", "str("};
    uint64_t seed = 1;
    char text[EXPR_TEXT_MAX], got[1200];
    int accepted = 0;
    double start = now_s(), worst = 0;
    for (int i = 0; i < 10000; i++) {
        int n = 0;
        for (int k = 0, pieces = 1 + i % 5; k < pieces; k++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            const char *a = seed >> 63 ? attacks[(seed >> 33) % COUNT_OF(attacks)] : rules[(seed >> 33) % COUNT_OF(rules)].text;
            n += snprintf(text + n, sizeof text - (size_t)n, "%s%s", a, glue[(seed >> 20) % COUNT_OF(glue)]);
        }
        for (int k = 0; k < i % 7; k++) { /* single bytes */
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            int at = (int)(seed >> 33) % n;
            if (seed >> 62) text[at] = (char)(seed >> 50);
            else n = at + 1;
        }
        double t = now_s();
        accepted += eval(got, sizeof got, text, n, "A=s:red|B=s:3|C=s:yes", 21, i & 1);
        worst = MAX(worst, now_s() - t);
        EXPECT(arena.used < 256 << 10, "%zu bytes for %d of text", arena.used, n);
    }
    EXPECT(accepted < 5000, "%d of 10000 accepted", accepted);
    EXPECT(now_s() - start < 10 && worst < 0.1, "%.2f s in all, %.4f s the worst", now_s() - start, worst);
}

/* Long and deep ones. */
TEST(expr_limits) {
    static const char *const units[] = {"(", "-", "not ", "1+", "1<", "'a'+", "1 if 1 else ", "min(1,", "str(", "{A}", "''",
                                        "1 and ", "1 or ", "1 xor ", "A in ", "'{A}'+", "\"{A}{A}{A}\"*", "{A}*", "9"};
    char text[EXPR_TEXT_MAX + 1], got[1200];
    for (int i = 0; i < COUNT_OF(units); i++) {
        int n = 0, len = (int)strlen(units[i]);
        for (; n + len < EXPR_TEXT_MAX; n += len) memcpy(text + n, units[i], (size_t)len);
        text[n++] = '1';
        for (int strict = 0; strict < 2; strict++) {
            double t = now_s();
            eval(got, sizeof got, text, n, "A=s:red", 7, strict);
            EXPECT(now_s() - t < 0.2 && arena.used < 512 << 10, "%s: %.3f s, %zu bytes", units[i], now_s() - t, arena.used);
        }
    }
    memset(text, ' ', sizeof text);
    EXPECT(!eval(got, sizeof got, text, EXPR_TEXT_MAX + 1, "", 0, false) && strstr(got, "at most 4096"), "%s", got);
    int n = 0;
    for (; n < 2 * 1000; n += 2) memcpy(text + n, "1+", 2);
    text[n++] = '1';
    EXPECT(eval(got, sizeof got, text, n, "", 0, false) && !strcmp(got, "i:1001"), "%s", got);
    n = snprintf(text, sizeof text, "%.*s1%.*s", 40, "((((((((((((((((((((((((((((((((((((((((", 40,
                 "))))))))))))))))))))))))))))))))))))))))");
    EXPECT(eval(got, sizeof got, text, n, "", 0, false) && !strcmp(got, "i:1"), "%s", got);
}

TEST(expr_floats) {
    static const struct { double f; const char *want; } cases[] = {
        {0.1, "0.1"}, {1.0, "1.0"}, {-0.0, "-0.0"}, {1e16, "1e+16"}, {123456789012345680.0, "1.2345678901234568e+17"},
        {9999999999999998.0, "9999999999999998.0"}, {1e-4, "0.0001"}, {1e-5, "1e-05"}, {1.5e300, "1.5e+300"},
        {2.0 / 3, "0.6666666666666666"}, {5e-324, "5e-324"}, {100.0, "100.0"}, {1e22, "1e+22"}, {0.00012345, "0.00012345"},
    };
    char got[FLOAT_TEXT];
    for (int i = 0; i < COUNT_OF(cases); i++) {
        int n = float_text(got, cases[i].f);
        EXPECT(!strcmp(got, cases[i].want) && n == (int)strlen(got), "%s, want %s", got, cases[i].want);
    }
}

/* Boxes and lists: their size and truth count, nothing else of them. */
TEST(expr_containers) {
    static const struct { const char *text, *want; } cases[] = {
        {"len({B})", "i:2"},        {"'yes' if {B} else 'no'", "s:yes"}, {"not {B}", "b:False"}, {"'x' in {L}", "b:True"},
        {"'z' not in {L}", "b:True"}, {"len({L}) == len({B})", "b:True"},
        {"{B} == 1", "!expression, column 1: == wants None or a bool or an int or a float or a string, this is a box list"},
        {"{I} == 1", "!expression, column 2: I is an image, which an expression cannot compute with (ask VQA about it)"},
        {"str({B})", "!expression, column 5: str wants None or a bool or an int or a float or a string, this is a box list"},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        const Value items[] = {value_str("x", 1), value_str("y", 1)};
        Value vars[3] = {value_boxes(boxes_new(fresh(), 2, (Rect){0, 0, 9, 9})), {.kind = VAL_LIST, .list = {items, 2}},
                         value_image(0, 9, 9)};
        const Name names[] = {{"B", 1, 0, KIND(VAL_BOXES)}, {"L", 1, 1, KIND(VAL_LIST)}, {"I", 1, 2, KIND(VAL_IMAGE)}};
        Error e = {0};
        Value r;
        char got[1200];
        const Expr *x = expr_compile(&arena, cases[i].text, (int)strlen(cases[i].text), &(Scope){names, 3, false}, &e);
        if (x && expr_eval(&r, x, vars, &arena, &e)) value_show(got, sizeof got, &r);
        else snprintf(got, sizeof got, "!%s", e.text);
        EXPECT(!strcmp(got, cases[i].want), "%s: %s", cases[i].text, got);
    }
}
