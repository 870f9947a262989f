/* expr.c -- compiler and evaluator of EVAL expressions. See expr.h for the language.
 *
 * The compiler is a recursive descent parser that emits code for a stack machine: no tree is kept. All jumps go forward,
 * so an evaluation takes at most as many steps as there are instructions. The first half compiles, the second evaluates;
 * value_number and values_equal hold the rules in which the two dialects differ.
 */
#include "engine/expr.h"

#include <math.h>

typedef enum Op {
    OP_CONST,    /* push consts[at] */
    OP_SLOT,     /* push vars[at], a string typed as the dialect says */
    OP_RAW,      /* push vars[at] as it is */
    OP_TEXT,     /* top = str(top) */
    OP_JOIN,     /* strings: top two into one */
    OP_NEG,
    OP_POS,
    OP_NOT,
    OP_TRUTH,    /* top = bool(top) */
    OP_LEN,
    OP_ABS,
    OP_INT,
    OP_MIN,      /* top two into the smaller; the first of equals, like Python */
    OP_MAX,
    OP_ADD,
    OP_SUB,
    OP_MUL,
    OP_DIV,
    OP_FLOORDIV,
    OP_MOD,
    OP_CMP,      /* top two into a bool, by comparison `arg` */
    OP_CHAIN,    /* a < b < c: when a < b fails, False replaces both and jump; else b stays */
    OP_XOR,      /* strict: top two into truth(a) != truth(b) */
    OP_JUMP,     /* relative to the next instruction, always forward */
    OP_UNLESS,   /* pop; jump when false */
    OP_AND,      /* jump when false, keeping it; else pop. arg: keep it as a bool */
    OP_OR,       /* jump when true, keeping it; else pop */
} Op;

typedef enum Cmp { CMP_EQ, CMP_NE, CMP_LT, CMP_LE, CMP_GT, CMP_GE, CMP_IN, CMP_NOTIN } Cmp;

static const char *const cmp_names[] = {"==", "!=", "<", "<=", ">", ">=", "in", "not in"};

/* ---- characters ----------------------------------------------------------------------------------------------- */

const uint8_t char_classes[256] = {
    ['a' ... 'z'] = CHAR_LETTER, ['A' ... 'Z'] = CHAR_LETTER, ['_'] = CHAR_LETTER,
    ['0' ... '9'] = CHAR_DIGIT,  ['\t' ... '\r'] = CHAR_BLANK, [' '] = CHAR_BLANK,
};

const char *char_shown(char out[40], const char *p, const char *end) {
    int n = 1;
    if (p >= end) return "the end";
    if ((uint8_t)*p < 32 || (uint8_t)*p == 127) {
        snprintf(out, 40, "byte 0x%02x", (uint8_t)*p);
        return out;
    }
    if (char_is(*p, CHAR_LETTER))
        while (p + n < end && n < 24 && char_is(p[n], CHAR_NAME)) n++;
    else
        while (p + n < end && n < 4 && ((uint8_t)p[n] & 0xc0) == 0x80) n++; /* one UTF-8 character */
    snprintf(out, 40, "'%.*s'", n, p);
    return out;
}

/* ---- names ---------------------------------------------------------------------------------------------------- */

const Name *scope_find(const Scope *s, const char *name, int n) {
    for (int i = s->n - 1; i >= 0; i--)
        if (s->name[i].n == n && !memcmp(s->name[i].s, name, (size_t)n)) return &s->name[i];
    return NULL;
}

const char *scope_hint(char out[96], const Scope *s, const char *name, int n) {
    char text[NAME_MAX_LEN + 1], copies[64][NAME_MAX_LEN + 1];
    const char *names[64];
    int k = 0;
    snprintf(text, sizeof text, "%.*s", MIN(n, NAME_MAX_LEN), name);
    for (int i = s->n - 1; i >= 0 && k < 64; i--, k++) { /* newest first: the likelier one wins a tie */
        snprintf(copies[k], sizeof copies[k], "%.*s", MIN(s->name[i].n, NAME_MAX_LEN), s->name[i].s);
        names[k] = copies[k];
    }
    const char *near = nearest(text, names, k);
    if (near)
        snprintf(out, 96, " (did you mean %s?)", near);
    else
        out[0] = 0;
    return out;
}

/* ---- tokens --------------------------------------------------------------------------------------------------- */

typedef enum Tok {
    T_END, T_NUMBER, T_STRING, T_PLACE, T_NAME, T_OPEN, T_CLOSE, T_COMMA,
    T_PLUS, T_MINUS, T_STAR, T_SLASH, T_SLASH2, T_PERCENT,
    T_EQ, T_NE, T_LT, T_LE, T_GT, T_GE, T_IN, /* in the order of Cmp */
    T_IF, T_ELSE, T_OR, T_AND, T_NOT, T_XOR, T_TRUE, T_FALSE, T_NONE,
} Tok;

typedef struct Compiler {
    const char *begin, *at, *end;
    const Scope *scope;
    Arena *arena;
    Error *e;
    Tok tok;          /* the token ahead */
    const char *start, *word; /* where it starts; its name or, of a string, what is between the quotes */
    int nword;
    Value number;
    int ncode, nconsts, nslots, nest, depth;
    ExprOp code[EXPR_TEXT_MAX]; /* every instruction but one per operator comes from a byte of text or more */
    Value consts[EXPR_TEXT_MAX / 2];
    int slots[EXPR_TEXT_MAX / 2];
} Compiler;

#define WRONG(c, p, fmt, ...)                                                                                \
    fail_as((c)->e, FAIL_DATA, "expression, column %d: " fmt, (int)((p) - (c)->begin) + 1, ##__VA_ARGS__)

/* The token ahead, for "found ..." (the text lives as long as the block around it). */
#define FOUND(c) char_shown((char[40]){0}, (c)->start, (c)->end)

static bool lex_number(Compiler *c) {
    const char *p = c->at;
    int64_t v = 0;
    bool big = false, real = false;
    for (; p < c->end && char_is(*p, CHAR_DIGIT); p++)
        big |= __builtin_mul_overflow(v, (int64_t)10, &v) || __builtin_add_overflow(v, (int64_t)(*p - '0'), &v);
    if (p < c->end && *p == '.') {
        real = true;
        for (p++; p < c->end && char_is(*p, CHAR_DIGIT);) p++;
    }
    if (p < c->end && (*p == 'e' || *p == 'E')) {
        const char *q = p + 1;
        if (q < c->end && (*q == '+' || *q == '-')) q++;
        if (q < c->end && char_is(*q, CHAR_DIGIT)) {
            real = true;
            for (p = q; p < c->end && char_is(*p, CHAR_DIGIT);) p++;
        }
    }
    if (p < c->end && char_is(*p, CHAR_LETTER)) return WRONG(c, c->at, "a number ends in a letter");
    c->nword = (int)(p - c->at);
    if (real) {
        char text[64];
        if (c->nword >= (int)sizeof text) return WRONG(c, c->at, "a number of %d digits", c->nword);
        memcpy(text, c->at, (size_t)c->nword);
        text[c->nword] = 0;
        c->number = value_float(strtod(text, NULL));
    } else if (big)
        return WRONG(c, c->at, "the number is too large (at most %" PRId64 ")", INT64_MAX);
    else
        c->number = value_int(v);
    c->tok = T_NUMBER;
    c->at = p;
    return true;
}

static bool lex_string(Compiler *c, char mark, int size) {
    const char *open = c->at, *p = open + size;
    c->word = p;
    for (; p < c->end; p++) {
        if (*p == '\\' && p + 1 < c->end) {
            p++;
            continue;
        }
        char m = 0;
        int k = size == 1 ? (*p == mark ? (m = mark, 1) : 0) : quote_at(p, c->end, &m);
        if (k && m == mark) {
            c->nword = (int)(p - c->word);
            c->at = p + k;
            c->tok = T_STRING;
            return true;
        }
    }
    return WRONG(c, open, "the string has no closing quote");
}

/* {NAME}, blanks inside allowed; p is just after the '{'. Returns the place after '}', NULL with a sentence. */
static const char *lex_place(Compiler *c, const char *p, const char *end, const char **name, int *n) {
    const char *open = p - 1;
    while (p < end && char_is(*p, CHAR_BLANK)) p++;
    *name = p;
    if (p < end && char_is(*p, CHAR_LETTER))
        while (p < end && char_is(*p, CHAR_NAME)) p++;
    *n = (int)(p - *name);
    while (p < end && char_is(*p, CHAR_BLANK)) p++;
    if (!*n || p >= end || *p != '}') {
        WRONG(c, open, "a placeholder is a variable's name between braces, like {ANSWER0}, and nothing else");
        return NULL;
    }
    return p + 1;
}

static Tok keyword(const char *s, int n) {
#define IS(w) (n == (int)sizeof(w) - 1 && !memcmp(s, w, sizeof(w) - 1))
    switch (s[0]) {
    case 'i': return IS("if") ? T_IF : IS("in") ? T_IN : T_NAME;
    case 'e': return IS("else") ? T_ELSE : T_NAME;
    case 'o': return IS("or") ? T_OR : T_NAME;
    case 'a': return IS("and") ? T_AND : T_NAME;
    case 'n': return IS("not") ? T_NOT : T_NAME;
    case 'x': return IS("xor") ? T_XOR : T_NAME;
    case 'T': return IS("True") ? T_TRUE : T_NAME;
    case 'F': return IS("False") ? T_FALSE : T_NAME;
    case 'N': return IS("None") ? T_NONE : T_NAME;
    }
#undef IS
    return T_NAME;
}

static bool next(Compiler *c) {
    while (c->at < c->end && char_is(*c->at, CHAR_BLANK)) c->at++;
    c->start = c->word = c->at;
    if (c->at == c->end) return c->tok = T_END, true;
    char ch = *c->at, after = c->at + 1 < c->end ? c->at[1] : 0, mark;
    int size;
    if (char_is(ch, CHAR_LETTER)) {
        const char *p = c->at;
        while (p < c->end && char_is(*p, CHAR_NAME)) p++;
        c->nword = (int)(p - c->at);
        c->at = p;
        c->tok = keyword(c->word, c->nword);
        return true;
    }
    if (char_is(ch, CHAR_DIGIT) || (ch == '.' && char_is(after, CHAR_DIGIT))) return lex_number(c);
    if ((size = quote_at(c->at, c->end, &mark))) return lex_string(c, mark, size);
    if (ch == '{') {
        const char *p = lex_place(c, c->at + 1, c->end, &c->word, &c->nword);
        if (!p) return false;
        c->at = p;
        c->tok = T_PLACE;
        return true;
    }
    Tok t;
    int n = 1;
    switch (ch) {
    case '(': t = T_OPEN; break;
    case ')': t = T_CLOSE; break;
    case ',': t = T_COMMA; break;
    case '+': t = T_PLUS; break;
    case '-': t = T_MINUS; break;
    case '*':
        if (after == '*') return WRONG(c, c->at, "** is not in this language");
        t = T_STAR;
        break;
    case '%': t = T_PERCENT; break;
    case '/':
        t = after == '/' ? T_SLASH2 : T_SLASH;
        n += after == '/';
        break;
    case '<':
        t = after == '=' ? T_LE : T_LT;
        n += after == '=';
        break;
    case '>':
        t = after == '=' ? T_GE : T_GT;
        n += after == '=';
        break;
    case '!':
        if (after != '=') return WRONG(c, c->at, "'!' alone is not an operator (not, or != ?)");
        t = T_NE;
        n = 2;
        break;
    case '=':
        if (after != '=') return WRONG(c, c->at, "'=' does not compare (write ==)");
        t = T_EQ;
        n = 2;
        break;
    default: return WRONG(c, c->at, "%s is not in this language", FOUND(c));
    }
    c->tok = t;
    c->at += n;
    return true;
}

/* ---- code ----------------------------------------------------------------------------------------------------- */

/* Appends an instruction whose effect on the stack is `effect` values; returns its place, -1 with a sentence. */
static int emit(Compiler *c, Op op, int arg, int at, int effect) {
    c->depth += effect;
    if (c->ncode == COUNT_OF(c->code) || c->depth > EXPR_STACK_MAX) {
        WRONG(c, c->start, "the expression is too long or too deeply nested");
        return -1;
    }
    c->code[c->ncode] = (ExprOp){.op = (uint8_t)op, .arg = (uint8_t)arg, .at = (int16_t)at};
    return c->ncode++;
}

static bool emit_const(Compiler *c, Value v) {
    if (c->nconsts == COUNT_OF(c->consts)) return WRONG(c, c->start, "the expression has too many constants");
    c->consts[c->nconsts] = v;
    return emit(c, OP_CONST, 0, c->nconsts++, 1) >= 0;
}

/* Lets the jump at `from` land on the next instruction to come. */
static void land(Compiler *c, int from) { c->code[from].at = (int16_t)(c->ncode - from - 1); }

static void reverse(ExprOp *op, int n) {
    for (int i = 0, k = n - 1; i < k; i++, k--) {
        ExprOp t = op[i];
        op[i] = op[k];
        op[k] = t;
    }
}

/* ---- the grammar: each function emits code that leaves one value, and returns the kinds it may have, 0 on a mistake */

enum {
    BOOLS = KIND(VAL_BOOL),
    INTS = KIND(VAL_INT),
    FLOATS = KIND(VAL_FLOAT),
    STRS = KIND(VAL_STR),
    NUMBERS = BOOLS | INTS | FLOATS,
    SIZED = STRS | KIND(VAL_BOXES) | KIND(VAL_OBJECTS) | KIND(VAL_LIST),
};

static unsigned parse_expr(Compiler *c);

static bool needs(Compiler *c, const char *at, unsigned got, unsigned want, const char *who) {
    if (got & want) return true;
    char a[160], b[160];
    return WRONG(c, at, "%s wants %s, this is %s", who, value_kinds_text(b, sizeof b, want),
                 value_kinds_text(a, sizeof a, got));
}

static unsigned load(Compiler *c, const char *name, int n, bool raw) {
    const Name *v = scope_find(c->scope, name, n);
    if (!v) {
        char hint[96];
        WRONG(c, name, "%.*s is not written by any earlier step%s", MIN(n, NAME_MAX_LEN), name,
              scope_hint(hint, c->scope, name, n));
        return 0;
    }
    if (!(v->kinds & ~KIND(VAL_IMAGE))) {
        WRONG(c, name, "%.*s is an image, which an expression cannot compute with (ask VQA about it)", n, name);
        return 0;
    }
    int i = 0;
    while (i < c->nslots && c->slots[i] != v->slot) i++;
    if (i == c->nslots) {
        if (i == COUNT_OF(c->slots)) return WRONG(c, name, "the expression reads too many variables"), 0;
        c->slots[c->nslots++] = v->slot;
    }
    if (emit(c, raw ? OP_RAW : OP_SLOT, 0, v->slot, 1) < 0) return 0;
    unsigned k = v->kinds & ~(unsigned)KIND(VAL_IMAGE);
    return k & STRS ? k | BOOLS | INTS : k; /* "yes" and "3" may become these */
}

/* A string: a constant, or, with placeholders inside, its pieces joined as text. */
static unsigned parse_string(Compiler *c) {
    const char *p = c->word, *end = p + c->nword;
    if (!memchr(p, '\\', (size_t)c->nword) && !memchr(p, '{', (size_t)c->nword) && !memchr(p, '}', (size_t)c->nword))
        return emit_const(c, value_str(p, c->nword)) && next(c) ? STRS : 0;

    char *out = arena_alloc(c->arena, (size_t)c->nword + 1);
    int n = 0, pieces = 0;
    while (p <= end) {
        bool place = p < end && *p == '{' && !(p + 1 < end && p[1] == '{');
        if ((place || p == end) && (n || (p == end && !pieces))) { /* the text so far */
            if (!emit_const(c, value_str(out, n))) return 0;
            if (pieces++ && emit(c, OP_JOIN, 0, 0, -1) < 0) return 0;
            out += n;
            n = 0;
        }
        if (p == end) break;
        if (place) {
            const char *name;
            int nname;
            if (!(p = lex_place(c, p + 1, end, &name, &nname))) return 0;
            /* str.format puts the typed value's text between the quotes: "yes" shows as True in compat. */
            unsigned k = load(c, name, nname, c->scope->strict);
            if (!k || !needs(c, name, k, NUMBERS | STRS | KIND(VAL_NONE), "a text") || emit(c, OP_TEXT, 0, 0, 0) < 0)
                return 0;
            if (pieces++ && emit(c, OP_JOIN, 0, 0, -1) < 0) return 0;
        } else if ((*p == '{' || *p == '}') && p + 1 < end && p[1] == *p) {
            out[n++] = *p;
            p += 2;
        } else if (*p == '\\' && p + 1 < end) { /* the lexer lets no backslash be last */
            char k = p[1];
            if (k == 'n') out[n++] = '\n';
            else if (k == 't') out[n++] = '\t';
            else {
                if (k != '\\' && k != '\'' && k != '"') out[n++] = '\\'; /* Python keeps unknown escapes */
                out[n++] = k;
            }
            p += 2;
        } else
            out[n++] = *p++;
    }
    return next(c) ? STRS : 0;
}

static unsigned parse_call(Compiler *c) {
    static const char *const names[] = {"len", "abs", "min", "max", "int", "str"};
    static const struct { Op op; unsigned takes, gives; } fns[] = {
        {OP_LEN, SIZED, INTS},
        {OP_ABS, NUMBERS | STRS, INTS | FLOATS},
        {OP_MIN, NUMBERS | STRS, 0},
        {OP_MAX, NUMBERS | STRS, 0},
        {OP_INT, NUMBERS | STRS, INTS},
        {OP_TEXT, NUMBERS | STRS | KIND(VAL_NONE), STRS},
    };
    const char *at = c->start;
    int f = 0, nargs = 1;
    while (f < COUNT_OF(names) && !(c->nword == 3 && !memcmp(c->word, names[f], 3))) f++;
    if (f == COUNT_OF(names))
        return WRONG(c, at, "%s is not a function here (len, abs, min, max, int and str are)", FOUND(c)), 0;
    if (!next(c)) return 0; /* the '(' */
    if (!next(c)) return 0;
    const char *arg = c->start;
    unsigned kinds = parse_expr(c);
    if (!kinds || !needs(c, arg, kinds, fns[f].takes, names[f])) return 0;
    while (c->tok == T_COMMA && fns[f].gives == 0) {
        if (!next(c)) return 0;
        arg = c->start;
        unsigned k = parse_expr(c);
        if (!k || !needs(c, arg, k, fns[f].takes, names[f]) || emit(c, fns[f].op, 0, 0, -1) < 0) return 0;
        kinds |= k;
        nargs++;
    }
    if (c->tok != T_CLOSE)
        return WRONG(c, c->start, "expected ')' after the argument of %s, found %s", names[f], FOUND(c)), 0;

    if (fns[f].gives == 0) {
        if (nargs < 2) return WRONG(c, at, "%s wants two values or more", names[f]), 0;
        return next(c) ? kinds : 0;
    }
    return emit(c, fns[f].op, 0, 0, 0) >= 0 && next(c) ? fns[f].gives : 0;
}

static unsigned parse_atom(Compiler *c) {
    unsigned k;
    switch (c->tok) {
    case T_NUMBER:
        k = KIND(c->number.kind);
        return emit_const(c, c->number) && next(c) ? k : 0;
    case T_STRING: return parse_string(c);
    case T_TRUE:
    case T_FALSE: return emit_const(c, value_bool(c->tok == T_TRUE)) && next(c) ? BOOLS : 0;
    case T_NONE: return emit_const(c, value_none()) && next(c) ? KIND(VAL_NONE) : 0;
    case T_PLACE: return (k = load(c, c->word, c->nword, false)) && next(c) ? k : 0;
    case T_NAME: {
        const char *p = c->at;
        while (p < c->end && char_is(*p, CHAR_BLANK)) p++;
        if (p < c->end && *p == '(') return parse_call(c);
        if (!scope_find(c->scope, c->word, c->nword)) {
            char hint[96];
            WRONG(c, c->start, "%s is no variable%s; a text goes between quotes", FOUND(c),
                  scope_hint(hint, c->scope, c->word, c->nword));
            return 0;
        }
        return (k = load(c, c->word, c->nword, false)) && next(c) ? k : 0;
    }
    case T_OPEN:
        if (!next(c) || !(k = parse_expr(c))) return 0;
        if (c->tok != T_CLOSE) return WRONG(c, c->start, "expected ')', found %s", FOUND(c)), 0;
        return next(c) ? k : 0;
    default: return WRONG(c, c->start, "expected a value, found %s", FOUND(c)), 0;
    }
}

static bool deeper(Compiler *c) {
    return ++c->nest <= EXPR_NEST_MAX || WRONG(c, c->start, "more than %d levels inside each other", EXPR_NEST_MAX);
}

static unsigned parse_unary(Compiler *c) {
    if (c->tok != T_MINUS && c->tok != T_PLUS) return parse_atom(c);
    Op op = c->tok == T_MINUS ? OP_NEG : OP_POS;
    if (!deeper(c) || !next(c)) return 0;
    const char *at = c->start;
    unsigned k = parse_unary(c);
    c->nest--;
    if (!k || !needs(c, at, k, NUMBERS | STRS, op == OP_NEG ? "-" : "+") || emit(c, op, 0, 0, 0) < 0) return 0;
    return INTS | FLOATS;
}

static unsigned parse_term(Compiler *c) {
    static const char *const names[] = {"*", "/", "//", "%"};
    const char *at = c->start;
    unsigned k = parse_unary(c);
    while (k && c->tok >= T_STAR && c->tok <= T_PERCENT) {
        int op = (int)c->tok - (int)T_STAR;
        if (!needs(c, at, k, NUMBERS | STRS, names[op]) || !next(c)) return 0;
        at = c->start;
        unsigned r = parse_unary(c);
        if (!r || !needs(c, at, r, NUMBERS | STRS, names[op]) || emit(c, (Op)(OP_MUL + op), 0, 0, -1) < 0) return 0;
        k = INTS | FLOATS | (op == 0 ? (k | r) & STRS : 0);
    }
    return k;
}

static unsigned parse_sum(Compiler *c) {
    const char *at = c->start;
    unsigned k = parse_term(c);
    while (k && (c->tok == T_PLUS || c->tok == T_MINUS)) {
        bool add = c->tok == T_PLUS;
        if (!needs(c, at, k, NUMBERS | STRS, add ? "+" : "-") || !next(c)) return 0;
        at = c->start;
        unsigned r = parse_term(c);
        if (!r || !needs(c, at, r, NUMBERS | STRS, add ? "+" : "-") || emit(c, add ? OP_ADD : OP_SUB, 0, 0, -1) < 0)
            return 0;
        k = INTS | FLOATS | (add ? k & r & STRS : 0);
    }
    return k;
}

/* The comparison operator ahead, -1 for none; `not in` is two words. */
static int comparison_ahead(Compiler *c, bool *ok) {
    *ok = true;
    if (c->tok >= T_EQ && c->tok <= T_IN) return (int)c->tok - (int)T_EQ;
    if (c->tok == T_XOR && !c->scope->strict) return CMP_NE;
    if (c->tok != T_NOT) return -1;
    if (!next(c)) return *ok = false, -1;
    if (c->tok == T_IN) return CMP_NOTIN;
    *ok = WRONG(c, c->start, "expected 'in' after 'not', found %s", FOUND(c));
    return -1;
}

static unsigned parse_cmp(Compiler *c) {
    const char *at = c->start;
    unsigned k = parse_sum(c);
    if (!k) return 0;
    bool ok;
    int cmp = comparison_ahead(c, &ok), chain[64], nchain = 0;
    if (!ok) return 0;
    while (cmp >= 0) {
        unsigned takes = cmp <= CMP_NE ? NUMBERS | STRS | KIND(VAL_NONE) : NUMBERS | STRS;
        if (!needs(c, at, k, takes, cmp_names[cmp]) || !next(c)) return 0;
        at = c->start;
        if (!(k = parse_sum(c))) return 0;
        if (!needs(c, at, k, cmp >= CMP_IN ? STRS | KIND(VAL_LIST) : takes, cmp_names[cmp])) return 0;
        int then = comparison_ahead(c, &ok);
        if (!ok) return 0;
        if (then < 0) {
            if (emit(c, OP_CMP, cmp, 0, -1) < 0) return 0;
        } else {
            if (nchain == COUNT_OF(chain)) return WRONG(c, at, "more than %d comparisons in a row", nchain), 0;
            if ((chain[nchain++] = emit(c, OP_CHAIN, cmp, 0, -1)) < 0) return 0;
        }
        cmp = then;
        if (cmp < 0) {
            while (nchain) land(c, chain[--nchain]);
            return BOOLS;
        }
    }
    return k;
}

static unsigned parse_xor(Compiler *c) {
    unsigned k = parse_cmp(c);
    while (k && c->tok == T_XOR) { /* strict only: compat has made it a comparison */
        if (!next(c) || !parse_cmp(c) || emit(c, OP_XOR, 0, 0, -1) < 0) return 0;
        k = BOOLS;
    }
    return k;
}

static unsigned parse_not(Compiler *c) {
    if (c->tok != T_NOT) return parse_xor(c);
    if (!deeper(c) || !next(c)) return 0;
    unsigned k = parse_not(c);
    c->nest--;
    return k && emit(c, OP_NOT, 0, 0, 0) >= 0 ? BOOLS : 0;
}

/* a and b and c: each jumps to the end of its own pair, which is where the next one looks at the same value. */
static unsigned parse_logic(Compiler *c, bool is_or) {
    unsigned k = is_or ? parse_logic(c, false) : parse_not(c);
    while (k && c->tok == (is_or ? T_OR : T_AND)) {
        int jump = emit(c, is_or ? OP_OR : OP_AND, c->scope->strict, 0, -1);
        if (jump < 0 || !next(c)) return 0;
        unsigned r = is_or ? parse_logic(c, false) : parse_not(c);
        if (!r) return 0;
        if (c->scope->strict && emit(c, OP_TRUTH, 0, 0, 0) < 0) return 0;
        k = c->scope->strict ? (unsigned)BOOLS : k | r;
        land(c, jump);
    }
    return k;
}

static unsigned parse_expr(Compiler *c) {
    if (!deeper(c)) return 0;
    int begin = c->ncode, base = c->depth;
    unsigned k = parse_logic(c, true);
    if (k && c->tok == T_IF) {
        /* The value stands before its condition in the text, after it in the code: emit both, then swap the blocks.
         * Jumps are relative and stay inside their block. */
        int mid = c->ncode;
        if (!next(c) || !parse_logic(c, true)) return 0;
        if (c->tok != T_ELSE)
            return WRONG(c, c->start, "expected 'else', found %s (write a if c else b)", FOUND(c)), 0;

        if (emit(c, OP_UNLESS, 0, 0, -1) < 0) return 0;
        int nvalue = mid - begin, ncond = c->ncode - mid;
        reverse(c->code + begin, nvalue + ncond);
        reverse(c->code + begin, ncond);
        reverse(c->code + begin + ncond, nvalue);
        int unless = begin + ncond - 1, jump = emit(c, OP_JUMP, 0, 0, 0);
        if (jump < 0) return 0;
        land(c, unless);
        c->depth = base;
        if (!next(c)) return 0;
        unsigned other = parse_expr(c);
        if (!other) return 0;
        land(c, jump);
        k |= other;
    }
    c->nest--;
    return k;
}

const Expr *expr_compile(Arena *a, const char *text, int n, const Scope *scope, Error *e) {
    if (n < 0 || n > EXPR_TEXT_MAX)
        return fail_as(e, FAIL_DATA, "the expression has %d bytes (at most %d)", n, EXPR_TEXT_MAX), NULL;
    Compiler c; /* not cleared: 90 kB of tables, of which a usual expression fills ten entries */
    c.begin = c.at = c.start = c.word = text;
    c.end = text + n;
    c.scope = scope;
    c.arena = a;
    c.e = e;
    c.ncode = c.nconsts = c.nslots = c.nest = c.depth = 0;
    if (!next(&c)) return NULL;
    if (c.tok == T_END) return fail_as(e, FAIL_DATA, "the expression is empty"), NULL;
    unsigned kinds = parse_expr(&c);
    if (!kinds) return NULL;
    if (c.tok != T_END)
        return WRONG(&c, c.start, "the expression should end here, found %s", FOUND(&c)), NULL;

    size_t nc = (size_t)c.nconsts * sizeof(Value), no = (size_t)c.ncode * sizeof(ExprOp),
           ns = (size_t)c.nslots * sizeof(int);
    char *block = arena_alloc(a, sizeof(Expr) + nc + ns + no); /* in the order of their alignment */
    Expr *x = (Expr *)block;
    Value *consts = (Value *)(block + sizeof(Expr));
    int *slots = (int *)(block + sizeof(Expr) + nc);
    ExprOp *code = (ExprOp *)(block + sizeof(Expr) + nc + ns);
    memcpy(consts, c.consts, nc);
    memcpy(slots, c.slots, ns);
    memcpy(code, c.code, no);
    *x = (Expr){code, consts, slots, c.ncode, c.nslots, kinds, scope->strict};
    return x;
}

/* ---- the rules of values -------------------------------------------------------------------------------------- */

typedef struct Eval { Arena *arena; Error *e; int memory; bool strict; } Eval;

static bool is_number(const Value *v) { return v->kind == VAL_INT || v->kind == VAL_BOOL || v->kind == VAL_FLOAT; }

static Str trimmed(Str t) {
    static const char off[] = " \t\r\n\v\f.,!?;:\"'";
    while (t.n && memchr(off, t.s[0], sizeof off - 1)) t.s++, t.n--;
    while (t.n && memchr(off, t.s[t.n - 1], sizeof off - 1)) t.n--;
    return t;
}

static int lower(int c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; }

static bool same_text(Str a, Str b) { /* whatever the case of ASCII letters */
    if (a.n != b.n) return false;
    for (int i = 0; i < a.n; i++)
        if (lower((uint8_t)a.s[i]) != lower((uint8_t)b.s[i])) return false;
    return true;
}

#define STR_IS(t, w) same_text((t), (Str){(w), (int)sizeof(w) - 1})

/* A string of digits only. *big: it does not fit. */
static bool digits_value(Str t, int64_t *v, bool *big) {
    if (!t.n || !char_is(t.s[0], CHAR_DIGIT)) return false;
    *v = 0;
    *big = false;
    for (int i = 0; i < t.n; i++) {
        if (!char_is(t.s[i], CHAR_DIGIT)) return false;
        *big |= __builtin_mul_overflow(*v, (int64_t)10, v) || __builtin_add_overflow(*v, (int64_t)(t.s[i] - '0'), v);
    }
    return true;
}

/* The article of "a dog", "the car" does not belong to the answer; "a" alone stays (it may mean one). */
static Str without_article(Str t) {
    static const char *const articles[] = {"a ", "an ", "the "};
    for (int i = 0; i < 3; i++) {
        int n = (int)strlen(articles[i]);
        if (t.n > n && same_text((Str){t.s, n}, (Str){articles[i], n})) return trimmed((Str){t.s + n, t.n - n});
    }
    return t;
}

/* What a variable's string means when an expression reads it (reference: the substitution table of EVAL). */
static bool typed(Value *v, const Eval *x) {
    Str t = v->str;
    bool big = false;
    int64_t i;
    if (x->strict) {
        t = without_article(trimmed(t));
        if (STR_IS(t, "yes") || STR_IS(t, "true")) return *v = value_bool(true), true;
        if (STR_IS(t, "no") || STR_IS(t, "false")) return *v = value_bool(false), true;
    } else {
        if (t.n == 3 && !memcmp(t.s, "yes", 3)) return *v = value_bool(true), true;
        if (t.n == 2 && !memcmp(t.s, "no", 2)) return *v = value_bool(false), true;
    }
    if (!digits_value(t, &i, &big)) return true;
    if (big) return fail_as(x->e, FAIL_DATA, "the number %.*s is too large", MIN(t.n, 40), t.s);
    *v = value_int(i);
    return true;
}

/* A string as a number: digits, a decimal fraction, or a number word. */
static bool str_number(Str t, Value *num) {
    static const char *const words[] = {"zero", "one", "two", "three", "four", "five", "six",
                                        "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
                                        "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
                                        "twenty"};
    t = trimmed(t);
    if (!t.n || t.n > 40) return false;
    for (int i = 0; i < COUNT_OF(words); i++)
        if (same_text(t, (Str){words[i], (int)strlen(words[i])})) return *num = value_int(i), true;
    if (STR_IS(t, "a") || STR_IS(t, "an")) return *num = value_int(1), true;
    if (STR_IS(t, "none") || STR_IS(t, "no")) return *num = value_int(0), true;
    int64_t v;
    bool big;
    Str d = t;
    bool minus = d.s[0] == '-';
    if (minus || d.s[0] == '+') d.s++, d.n--;
    if (digits_value(d, &v, &big)) return !big && (*num = value_int(minus ? -v : v), true);
    int dots = 0;
    for (int i = 0; i < d.n; i++) {
        if (!char_is(d.s[i], CHAR_DIGIT) && d.s[i] != '.') return false;
        dots += d.s[i] == '.';
    }
    if (dots != 1 || d.n < 2) return false;
    char text[48];
    memcpy(text, t.s, (size_t)t.n);
    text[t.n] = 0;
    return *num = value_float(strtod(text, NULL)), true;
}

/* v as an int or a float. */
static bool value_number(const Value *v, Value *num) {
    switch (v->kind) {
    case VAL_BOOL: return *num = value_int(v->b), true;
    case VAL_INT:
    case VAL_FLOAT: return *num = *v, true;
    case VAL_STR: return str_number(v->str, num);
    default: return false;
    }
}

static const char *value_shown(char out[64], const Value *v) {
    if (v->kind == VAL_STR) {
        char t[41];
        int n = MIN(v->str.n, 40);
        for (int i = 0; i < n; i++) t[i] = (uint8_t)v->str.s[i] < 32 || v->str.s[i] == 127 ? '?' : v->str.s[i];
        while (n && n < v->str.n && ((uint8_t)t[n - 1] & 0x80)) n--; /* do not cut a character in two */
        snprintf(out, 64, "'%.*s'%s", n, t, n < v->str.n ? "..." : "");
    } else if (value_text(out, 64, v) < 0)
        snprintf(out, 64, "%s", value_kind_name(v->kind));
    return out;
}

static bool type_error(const Eval *x, const char *op, const Value *a, const Value *b) {
    char sa[64], sb[64];
    if (!b) return fail_as(x->e, FAIL_DATA, "%s cannot take %s", op, value_shown(sa, a));
    return fail_as(x->e, FAIL_DATA, "%s cannot take %s and %s", op, value_shown(sa, a), value_shown(sb, b));
}

/* Sign of i - f, exact for every pair (a double cannot hold every int64); f is not NaN. */
static int compare_int_float(int64_t i, double f) {
    if (f >= 0x1p63) return -1;
    if (f < -0x1p63) return 1;
    int64_t whole = (int64_t)f; /* toward zero */
    if (i != whole) return i < whole ? -1 : 1;
    double rest = f - (double)whole;
    return rest > 0 ? -1 : rest < 0 ? 1 : 0;
}

/* Compares two numbers: -1, 0, 1; 2 when one is NaN. */
static int compare_numbers(const Value *a, const Value *b) {
    if (a->kind == VAL_INT && b->kind == VAL_INT) return (a->i > b->i) - (a->i < b->i);
    if (a->kind == VAL_FLOAT && b->kind == VAL_FLOAT)
        return isnan(a->f) || isnan(b->f) ? 2 : (a->f > b->f) - (a->f < b->f);
    if (a->kind == VAL_FLOAT) return isnan(a->f) ? 2 : -compare_int_float(b->i, a->f);
    return isnan(b->f) ? 2 : compare_int_float(a->i, b->f);
}

static int compare_strings(Str a, Str b) { /* by bytes, which for UTF-8 is by code points */
    int c = memcmp(a.s, b.s, (size_t)MIN(a.n, b.n));
    return c ? (c > 0) - (c < 0) : (a.n > b.n) - (a.n < b.n);
}

static bool truth(const Value *v, bool strict) {
    switch (v->kind) {
    case VAL_BOOL: return v->b;
    case VAL_INT: return v->i != 0;
    case VAL_FLOAT: return v->f != 0;
    case VAL_STR: {
        if (!strict) return v->str.n > 0;
        Str t = trimmed(v->str);
        return t.n > 0 && !STR_IS(t, "no") && !STR_IS(t, "false") && !STR_IS(t, "none");
    }
    case VAL_BOXES:
    case VAL_OBJECTS: return v->boxes->n > 0;
    case VAL_LIST: return v->list.n > 0;
    default: return false;
    }
}

static bool values_equal(const Value *a, const Value *b, bool strict) {
    Value na, nb;
    if (is_number(a) && is_number(b)) {
        value_number(a, &na);
        value_number(b, &nb);
        return compare_numbers(&na, &nb) == 0;
    }
    if (a->kind == VAL_STR && b->kind == VAL_STR) {
        if (!strict) return a->str.n == b->str.n && !memcmp(a->str.s, b->str.s, (size_t)a->str.n);
        return same_text(without_article(trimmed(a->str)), without_article(trimmed(b->str)));
    }
    if (strict && (a->kind == VAL_STR || b->kind == VAL_STR) && (is_number(a) || is_number(b))) {
        const Value *s = a->kind == VAL_STR ? a : b, *n = s == a ? b : a;
        Str t = trimmed(s->str);
        if (n->kind == VAL_BOOL) {
            if (STR_IS(t, "yes") || STR_IS(t, "true")) return n->b;
            if (STR_IS(t, "no") || STR_IS(t, "false")) return !n->b;
        }
        if (!value_number(s, &na)) return false;
        value_number(n, &nb);
        return compare_numbers(&na, &nb) == 0;
    }
    if (a->kind != b->kind) return false;
    if (a->kind == VAL_NONE) return true;
    if (a->kind == VAL_BOXES || a->kind == VAL_OBJECTS) return a->boxes == b->boxes;
    if (a->kind != VAL_LIST || a->list.n != b->list.n) return false;
    for (int i = 0; i < a->list.n; i++)
        if (!values_equal(&a->list.at[i], &b->list.at[i], strict)) return false;
    return true;
}

/* ---- evaluation ----------------------------------------------------------------------------------------------- */

/* A string of n bytes for the result of an operation, within the limits. */
static char *string_new(Eval *x, int64_t n) {
    if (n > EXPR_STRING_MAX || x->memory + n > EXPR_MEMORY_MAX) {
        fail_as(x->e, FAIL_DATA, "the expression makes too long a string (at most %d bytes, %d in all)",
                EXPR_STRING_MAX, EXPR_MEMORY_MAX);
        return NULL;
    }
    x->memory += (int)n + 64; /* with the arena's rounding */
    return arena_alloc(x->arena, (size_t)n + 1);
}

static bool join(Eval *x, Value *a, const Value *b) {
    char *s = string_new(x, (int64_t)a->str.n + b->str.n);
    if (!s) return false;
    memcpy(s, a->str.s, (size_t)a->str.n);
    memcpy(s + a->str.n, b->str.s, (size_t)b->str.n);
    *a = value_str(s, a->str.n + b->str.n);
    return true;
}

static bool repeat(Eval *x, Value *out, Str t, int64_t times) {
    if (times <= 0 || !t.n) return *out = value_str("", 0), true;
    char *s = string_new(x, times > EXPR_STRING_MAX ? EXPR_STRING_MAX + 1 : times * t.n);
    if (!s) return false;
    for (int64_t i = 0; i < times; i++) memcpy(s + i * t.n, t.s, (size_t)t.n);
    *out = value_str(s, (int)times * t.n);
    return true;
}

static bool too_large(const Eval *x) { return fail_as(x->e, FAIL_DATA, "a number is too large (64 bits)"); }
static bool by_zero(const Eval *x) { return fail_as(x->e, FAIL_DATA, "division by zero"); }

/* Python's // and % of floats: the remainder has the divisor's sign (CPython's float_floor_div). */
static double float_floor(double a, double b, double *mod) {
    double m = fmod(a, b), div = (a - m) / b;
    if (m != 0) {
        if ((b < 0) != (m < 0)) m += b, div -= 1;
    } else
        m = copysign(0.0, b);
    *mod = m;
    if (div == 0) return copysign(0.0, a / b);
    double whole = floor(div);
    return div - whole > 0.5 ? whole + 1 : whole;
}

static bool arithmetic(Eval *x, Op op, Value *a, const Value *b) {
    static const char *const names[] = {"+", "-", "*", "/", "//", "%"};
    Value p, q;
    if (a->kind == VAL_STR || b->kind == VAL_STR) {
        bool both = a->kind == VAL_STR && b->kind == VAL_STR;
        bool numeric = x->strict && value_number(a, &p) && value_number(b, &q);
        if (!numeric && op == OP_ADD && both) return join(x, a, b);
        if (!numeric && op == OP_MUL && !both) {
            const Value *s = a->kind == VAL_STR ? a : b, *n = s == a ? b : a;
            if (n->kind == VAL_INT) return repeat(x, a, s->str, n->i);
            if (n->kind == VAL_BOOL) return repeat(x, a, s->str, n->b);
        }
    }
    if (!value_number(a, &p) || !value_number(b, &q)) return type_error(x, names[op - OP_ADD], a, b);
    if (p.kind == VAL_INT && q.kind == VAL_INT && op != OP_DIV) {
        int64_t r = 0;
        switch (op) {
        case OP_ADD:
            if (__builtin_add_overflow(p.i, q.i, &r)) return too_large(x);
            break;
        case OP_SUB:
            if (__builtin_sub_overflow(p.i, q.i, &r)) return too_large(x);
            break;
        case OP_MUL:
            if (__builtin_mul_overflow(p.i, q.i, &r)) return too_large(x);
            break;
        default: /* floor division: the remainder has the divisor's sign */
            if (q.i == 0) return by_zero(x);
            if (q.i == -1) { /* INT64_MIN / -1 traps in C */
                if (op == OP_FLOORDIV && __builtin_sub_overflow((int64_t)0, p.i, &r)) return too_large(x);
                break;
            }
            r = p.i % q.i;
            bool adjust = r != 0 && (r < 0) != (q.i < 0);
            r = op == OP_MOD ? r + (adjust ? q.i : 0) : p.i / q.i - adjust;
        }
        *a = value_int(r);
        return true;
    }
    /* Two ints that a double cannot hold: divide in the longer format first, as Python rounds once. */
    if (op == OP_DIV && p.kind == VAL_INT && q.kind == VAL_INT) {
        if (q.i == 0) return by_zero(x);
        *a = value_float((double)((long double)p.i / (long double)q.i));
        return true;
    }
    double f = p.kind == VAL_INT ? (double)p.i : p.f, g = q.kind == VAL_INT ? (double)q.i : q.f, mod, r;
    if (op >= OP_DIV && g == 0) return by_zero(x);
    switch (op) {
    case OP_ADD: r = f + g; break;
    case OP_SUB: r = f - g; break;
    case OP_MUL: r = f * g; break;
    case OP_DIV: r = f / g; break;
    case OP_FLOORDIV: r = float_floor(f, g, &mod); break;
    default: float_floor(f, g, &mod); r = mod;
    }
    *a = value_float(r);
    return true;
}

/* a < b and its like; *sign as compare_numbers. */
static bool order(const Eval *x, const char *op, const Value *a, const Value *b, int *sign) {
    Value p, q;
    bool both = a->kind == VAL_STR && b->kind == VAL_STR;
    if (!both || x->strict) {
        if (value_number(a, &p) && value_number(b, &q)) return *sign = compare_numbers(&p, &q), true;
        if (!both) return type_error(x, op, a, b);
    }
    *sign = compare_strings(a->str, b->str);
    return true;
}

static bool compare(const Eval *x, Cmp cmp, const Value *a, const Value *b, bool *r) {
    int sign;
    switch (cmp) {
    case CMP_EQ: return *r = values_equal(a, b, x->strict), true;
    case CMP_NE: return *r = !values_equal(a, b, x->strict), true;
    case CMP_IN:
    case CMP_NOTIN:
        *r = false;
        if (b->kind == VAL_LIST) {
            for (int i = 0; i < b->list.n && !*r; i++) *r = values_equal(a, &b->list.at[i], x->strict);
        } else if (a->kind == VAL_STR && b->kind == VAL_STR)
            *r = !a->str.n || memmem(b->str.s, (size_t)b->str.n, a->str.s, (size_t)a->str.n);
        else
            return type_error(x, cmp_names[cmp], a, b);
        *r ^= cmp == CMP_NOTIN;
        return true;
    default:
        if (!order(x, cmp_names[cmp], a, b, &sign)) return false;
        *r = sign != 2 && (cmp == CMP_LT ? sign < 0 : cmp == CMP_LE ? sign <= 0 : cmp == CMP_GT ? sign > 0 : sign >= 0);
        return true;
    }
}

static bool to_text(Eval *x, Value *v) {
    if (v->kind == VAL_STR) return true;
    char text[64];
    int n = value_text(text, sizeof text, v);
    if (n < 0) return type_error(x, "str", v, NULL);
    char *s = string_new(x, n);
    if (!s) return false;
    memcpy(s, text, (size_t)n);
    *v = value_str(s, n);
    return true;
}

static bool to_int(const Eval *x, Value *v) {
    Value num;
    if (!value_number(v, &num)) return type_error(x, "int", v, NULL);
    if (num.kind == VAL_FLOAT) {
        if (!(num.f >= -0x1p63 && num.f < 0x1p63)) return too_large(x); /* NaN, too */
        num = value_int((int64_t)num.f);
    }
    *v = num;
    return true;
}

static bool length(const Eval *x, Value *v) {
    int64_t n = 0;
    switch (v->kind) {
    case VAL_STR:
        for (int i = 0; i < v->str.n; i++) n += ((uint8_t)v->str.s[i] & 0xc0) != 0x80; /* characters, not bytes */
        break;
    case VAL_BOXES:
    case VAL_OBJECTS: n = v->boxes->n; break;
    case VAL_LIST: n = v->list.n; break;
    default: return type_error(x, "len", v, NULL);
    }
    *v = value_int(n);
    return true;
}

static bool negate(const Eval *x, Op op, Value *v) {
    Value num;
    if (!value_number(v, &num)) return type_error(x, op == OP_ABS ? "abs" : op == OP_NEG ? "-" : "+", v, NULL);
    bool minus = op == OP_NEG || (op == OP_ABS && (num.kind == VAL_INT ? num.i < 0 : signbit(num.f)));
    if (minus && num.kind == VAL_FLOAT) num.f = -num.f;
    if (minus && num.kind == VAL_INT && __builtin_sub_overflow((int64_t)0, num.i, &num.i)) return too_large(x);
    *v = num;
    return true;
}

bool expr_eval(Value *out, const Expr *expr, const Value *vars, Arena *a, Error *e) {
    Eval x = {a, e, 0, expr->strict};
    Value stack[EXPR_STACK_MAX + 1], *top = stack; /* top: the last value; stack[0] stays empty */
    bool r;
    int sign;
    for (const ExprOp *op = expr->code, *end = op + expr->ncode; op < end; op++) {
        switch ((Op)op->op) {
        case OP_CONST: *++top = expr->consts[op->at]; break;
        case OP_RAW: *++top = vars[op->at]; break;
        case OP_SLOT:
            *++top = vars[op->at];
            if (top->kind == VAL_STR && !typed(top, &x)) return false;
            break;
        case OP_TEXT:
            if (!to_text(&x, top)) return false;
            break;
        case OP_JOIN:
            top--;
            if (!join(&x, top, top + 1)) return false;
            break;
        case OP_NEG:
        case OP_POS:
        case OP_ABS:
            if (!negate(&x, (Op)op->op, top)) return false;
            break;
        case OP_NOT: *top = value_bool(!truth(top, x.strict)); break;
        case OP_TRUTH: *top = value_bool(truth(top, x.strict)); break;
        case OP_LEN:
            if (!length(&x, top)) return false;
            break;
        case OP_INT:
            if (!to_int(&x, top)) return false;
            break;
        case OP_MIN:
        case OP_MAX:
            top--;
            if (!order(&x, op->op == OP_MIN ? "min" : "max", top + 1, top, &sign)) return false;
            if (sign == (op->op == OP_MIN ? -1 : 1)) *top = top[1];
            break;
        case OP_ADD:
        case OP_SUB:
        case OP_MUL:
        case OP_DIV:
        case OP_FLOORDIV:
        case OP_MOD:
            top--;
            if (!arithmetic(&x, (Op)op->op, top, top + 1)) return false;
            break;
        case OP_CMP:
            top--;
            if (!compare(&x, (Cmp)op->arg, top, top + 1, &r)) return false;
            *top = value_bool(r);
            break;
        case OP_CHAIN:
            top--;
            if (!compare(&x, (Cmp)op->arg, top, top + 1, &r)) return false;
            if (r) *top = top[1];
            else {
                *top = value_bool(false);
                op += op->at;
            }
            break;
        case OP_XOR:
            top--;
            *top = value_bool(truth(top, true) != truth(top + 1, true));
            break;
        case OP_JUMP: op += op->at; break;
        case OP_UNLESS:
            if (!truth(top--, x.strict)) op += op->at;
            break;
        case OP_AND:
        case OP_OR:
            r = truth(top, x.strict);
            if (r != (op->op == OP_OR)) top--;
            else {
                if (op->arg) *top = value_bool(r);
                op += op->at;
            }
            break;
        }
    }
    CHECK(top == stack + 1, "an expression left %d values", (int)(top - stack));
    *out = *top;
    out->missing = out->grown = false;
    return true;
}
