/* expr.h -- the expressions of EVAL: a small closed language, compiled once, evaluated on typed values.
 *
 * Nothing here is Python, and no value ever becomes code: a placeholder {ANSWER0} is a variable's slot, resolved when
 * the program is parsed. So an answer of a model, whatever it says, is data.
 *
 *   expr  = or [ "if" or "else" expr ]         or   = and { "or" and }        and = not { "and" not }
 *   not   = "not" not | cmp                    cmp  = sum { op sum }          (chained like Python's)
 *   op    = == != < <= > >= in "not in" xor    sum  = term { (+|-) term }     term = unary { (*|/|//|%) unary }
 *   unary = (-|+) unary | atom
 *   atom  = NUMBER | STRING | True | False | None | {NAME} | NAME | ( expr ) | f ( expr , ... )
 *   f     = len abs min max int str
 *
 * Two dialects:
 *   compat (default)  what Python says about the text the reference substitutes: "yes"/"no" are True/False, strings of
 *                     digits are ints, `and`/`or` return an operand, `xor` is a chained !=. Only where Python would
 *                     raise does it go further: "two" + 1 is 3, "it's" is a string like any other.
 *   strict            answers are compared as a person would: case, outer blanks and punctuation do not count, True
 *                     equals "yes", "two" equals 2; and/or return a bool; xor is the logical one, looser than ==.
 */
#pragma once
#include "engine/value.h"

enum {
    EXPR_TEXT_MAX = 4096,    /* bytes of one expression */
    EXPR_NEST_MAX = 48,      /* brackets, nots and else-chains inside each other */
    EXPR_STACK_MAX = 128,
    EXPR_STRING_MAX = 1024,  /* bytes of one string an expression makes */
    EXPR_MEMORY_MAX = 4096,  /* bytes of all strings one evaluation makes */
    NAME_MAX_LEN = 63,
};

/* What the scanners of programs and of expressions share. Only ASCII counts; bytes of other characters have no class. */
enum { CHAR_LETTER = 1, CHAR_DIGIT = 2, CHAR_BLANK = 4, CHAR_NAME = CHAR_LETTER | CHAR_DIGIT };
extern const uint8_t char_classes[256];
static inline bool char_is(char c, int set) { return char_classes[(uint8_t)c] & set; }
/* Bytes of the quote at p < end: 1 for ' and ", 3 for the typographic ones, 0 for none; *mark is ' or ". */
static inline int quote_at(const char *p, const char *end, char *mark) {
    if (*p == '\'' || *p == '"') return *mark = *p, 1;
    if ((uint8_t)*p != 0xe2 || end - p < 3 || (uint8_t)p[1] != 0x80) return 0;
    uint8_t k = (uint8_t)p[2];
    if (k == 0x98 || k == 0x99) return *mark = '\'', 3;
    if (k == 0x9c || k == 0x9d) return *mark = '"', 3;
    return 0;
}
/* The word (or character, or "byte 0x07", or "the end") at p, printable, for error sentences. */
const char *char_shown(char out[40], const char *p, const char *end);

/* The variables an expression may read; of two with one name the later counts. */
typedef struct Name {
    const char *s; /* n bytes, no zero byte promised */
    int n, slot;
    unsigned kinds; /* what it may hold: a set of KIND() */
} Name;
typedef struct Scope { const Name *name; int n; bool strict; } Scope;

const Name *scope_find(const Scope *s, const char *name, int n);
/* " (did you mean ANSWER2?)" or "", in out. */
const char *scope_hint(char out[96], const Scope *s, const char *name, int n);

typedef struct ExprOp { uint8_t op, arg; int16_t at; } ExprOp;

typedef struct Expr {
    const ExprOp *code;
    const Value *consts;
    const int *slots; /* every variable it reads, each once */
    int ncode, nslots;
    unsigned kinds; /* what it may give */
    bool strict;
} Expr;

/* Parses and checks `n` bytes of text, which must live as long as the result (strings point into it). NULL and a
 * sentence with the column on a mistake. All memory comes from `a`, at most some 40 bytes per byte of text. */
const Expr *expr_compile(Arena *a, const char *text, int n, const Scope *scope, Error *e);

/* Evaluates on the variables' values. Time is linear in the code, memory from `a` at most EXPR_MEMORY_MAX and one string's
 * alignment each; no other allocation. False with a sentence for a type error, division by zero, or a number past 64 bits. */
bool expr_eval(Value *out, const Expr *x, const Value *vars, Arena *a, Error *e);
