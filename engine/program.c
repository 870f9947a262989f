/* program.c -- the scanner and static checker of visual programs, and the execution of host steps. See program.h.
 *
 * One pass over the text, line by line: scan a step, resolve its names to slots, check its arguments. Then the
 * dependences, and everything is copied from the scanner's tables into the arena. The rule for quotes (string_end) is
 * what makes "Is the dog's tail up?" between single quotes read as a person would read it.
 */
#include "engine/program.h"

enum { MAX_CONSTS = PROGRAM_STEPS_MAX * STEP_ARGS_MAX, MAX_NAMES = PROGRAM_STEPS_MAX + PROGRAM_INPUTS_MAX };

typedef struct Parser {
    Arena *arena;
    const Dialect *dialect;
    Error *e;
    const char *text, *at, *end; /* end: of the current line */
    const char *line_begin;
    int line;
    char *letters; /* where the next string constant goes: together they are shorter than the text */
    int nsteps, nconsts, nnames, nslots;
    int name_line[MAX_NAMES];    /* where a name was first written; 0: given */
    Name names[MAX_NAMES];       /* the scope: one entry per slot, the newest last */
    Value consts[MAX_CONSTS];
    Step steps[PROGRAM_STEPS_MAX];
    int written[PROGRAM_STEPS_MAX + PROGRAM_INPUTS_MAX]; /* slot -> step, -1: given */
} Parser;

static int lower(int c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; }

static bool same_name(const char *a, int n, const char *b) { /* whatever the case; b ends with a zero byte */
    for (int i = 0; i < n; i++)
        if (!b[i] || lower((uint8_t)a[i]) != lower((uint8_t)b[i])) return false;
    return !b[n];
}

#define WRONG(p, fmt, ...) fail_as((p)->e, FAIL_DATA, "line %d: " fmt, (p)->line, ##__VA_ARGS__)
#define WRONG_AT(p, place, fmt, ...)                                                                         \
    fail_as((p)->e, FAIL_DATA, "line %d, column %d: " fmt, (p)->line, (int)((place) - (p)->line_begin) + 1,   \
            ##__VA_ARGS__)

static void blanks(Parser *p) {
    while (p->at < p->end && char_is(*p->at, CHAR_BLANK)) p->at++;
}

/* The place of the first byte that is not UTF-8 (overlong forms and surrogates included), or end. */
static const char *utf8_error(const char *s, const char *end) {
    while (s < end) {
        uint64_t w;
        if (end - s >= 8 && (memcpy(&w, s, 8), !(w & 0x8080808080808080u))) {
            s += 8;
            continue;
        }
        uint8_t c = (uint8_t)*s;
        int more = c < 0x80 ? 0 : c >= 0xc2 && c < 0xe0 ? 1 : (c & 0xf0) == 0xe0 ? 2 : c >= 0xf0 && c < 0xf5 ? 3 : -1;
        if (more < 0 || end - s <= more) return s;
        for (int i = 1; i <= more; i++)
            if (((uint8_t)s[i] & 0xc0) != 0x80) return s;
        uint8_t d = more ? (uint8_t)s[1] : 0;
        if ((c == 0xe0 && d < 0xa0) || (c == 0xed && d > 0x9f) || (c == 0xf0 && d < 0x90) || (c == 0xf4 && d > 0x8f))
            return s;
        s += more + 1;
    }
    return end;
}

/* ---- names and strings ---------------------------------------------------------------------------------------- */

/* Scans a name at p->at. False, without a sentence, when none starts there. */
static bool scan_name(Parser *p, const char **s, int *n) {
    const char *q = p->at;
    if (q == p->end || !char_is(*q, CHAR_LETTER)) return false;
    while (q < p->end && char_is(*q, CHAR_NAME)) q++;
    *s = p->at;
    *n = (int)(q - p->at);
    p->at = q;
    return true;
}

/* May a string end just before q? So it may when what follows is the next argument or the end of the step:
 *   ws* ( ',' ws* NAME ws* '=' | ')' ws* [ '#' ... ] end-of-line )          inside a list: ws* ( ',' | ']' )
 * Looks no further than the next quote, so a line of many quotes stays linear. */
static bool ends_value(const char *q, const char *end, bool in_list) {
    while (q < end && char_is(*q, CHAR_BLANK)) q++;
    if (q == end) return false;
    if (in_list) return *q == ',' || *q == ']';
    if (*q == ')') {
        for (q++; q < end && char_is(*q, CHAR_BLANK);) q++;
        return q == end || *q == '#';
    }
    if (*q != ',') return false;
    for (q++; q < end && char_is(*q, CHAR_BLANK);) q++;
    if (q == end || !char_is(*q, CHAR_LETTER)) return false;
    while (q < end && char_is(*q, CHAR_NAME)) q++;
    while (q < end && char_is(*q, CHAR_BLANK)) q++;
    return q < end && *q == '=';
}

/* The string whose opening quote (`size` bytes, kind `mark`) is at p->at: the first quote that can end it does, else the
 * last one of the line. A backslash keeps what follows from ending it. */
static bool scan_string(Parser *p, char mark, int size, bool in_list, Value *out) {
    const char *open = p->at, *begin = open + size, *close = NULL, *q;
    int nclose = 0;
    bool escapes = false, decided = false;
    for (q = begin; q < p->end && !decided; q++) {
        if (*q == '\\' && q + 1 < p->end) {
            escapes = true;
            q++;
            continue;
        }
        char m;
        int k = quote_at(q, p->end, &m);
        if (!k || m != mark) continue;
        close = q;
        nclose = k;
        decided = ends_value(q + k, p->end, in_list);
    }
    if (!close)
        return WRONG_AT(p, open, "the string that starts here has no closing quote");
    p->at = close + nclose;

    /* '''x''' and """x""": Python's triple quotes */
    if (size == 1 && close - begin >= 4 && begin[0] == mark && begin[1] == mark && close[-1] == mark &&
        close[-2] == mark) {
        begin += 2;
        close -= 2;
    }
    char *s = p->letters;
    int n = 0;
    if (!escapes) {
        n = (int)(close - begin);
        memcpy(s, begin, (size_t)n);
    } else
        for (q = begin; q < close; q++) {
            if (*q != '\\' || q + 1 == close) {
                s[n++] = *q;
                continue;
            }
            char c = *++q;
            if (c == 'n') s[n++] = '\n';
            else if (c == 't') s[n++] = '\t';
            else {
                if (c != '\\' && c != '\'' && c != '"') s[n++] = '\\'; /* Python keeps unknown escapes */
                s[n++] = c;
            }
        }
    s[n] = 0;
    p->letters += n + 1;
    *out = value_str(s, n);
    return true;
}

static bool scan_number(Parser *p, Value *out) {
    const char *begin = p->at, *q = begin;
    bool minus = *q == '-', big = false, real = false;
    if (*q == '-' || *q == '+') q++;
    int64_t v = 0;
    const char *digits = q;
    for (; q < p->end && char_is(*q, CHAR_DIGIT); q++)
        big |= __builtin_mul_overflow(v, (int64_t)10, &v) || __builtin_add_overflow(v, (int64_t)(*q - '0'), &v);
    int n = (int)(q - digits);
    if (q < p->end && *q == '.') {
        real = true;
        for (q++; q < p->end && char_is(*q, CHAR_DIGIT); q++) n++;
    }
    if (!n || (q < p->end && char_is(*q, CHAR_LETTER))) return WRONG_AT(p, begin, "this is no number");
    if (real) {
        char text[64];
        if (q - begin >= (int)sizeof text) return WRONG_AT(p, begin, "a number of %d digits", n);
        snprintf(text, sizeof text, "%.*s", (int)(q - begin), begin);
        *out = value_float(strtod(text, NULL));
    } else if (big)
        return WRONG_AT(p, begin, "the number is too large (at most %" PRId64 ")", INT64_MAX);
    else
        *out = value_int(minus ? -v : v);
    p->at = q;
    return true;
}

/* [ 'a', "b" ]: strings only. */
static bool scan_list(Parser *p, Value *out) {
    enum { MAX = 256 };
    const char *open = p->at++;
    Value items[MAX];
    char what[40];
    int n = 0;
    blanks(p);
    while (p->at < p->end && *p->at != ']') {
        char mark;
        int size = quote_at(p->at, p->end, &mark);
        if (!size) return WRONG_AT(p, p->at, "a list holds strings between quotes, found %s", char_shown(what, p->at, p->end));
        if (n == MAX) return WRONG_AT(p, open, "a list of more than %d strings", MAX);
        if (!scan_string(p, mark, size, true, &items[n++])) return false;
        blanks(p);
        if (p->at < p->end && *p->at == ',') {
            p->at++;
            blanks(p);
        } else if (p->at < p->end && *p->at != ']')
            return WRONG_AT(p, p->at, "expected ',' or ']' in the list, found %s", char_shown(what, p->at, p->end));
    }
    if (p->at == p->end) return WRONG_AT(p, open, "the list that starts here has no ']'");
    p->at++;
    Value *at = arena_alloc(p->arena, (size_t)n * sizeof *at + 1);
    memcpy(at, items, (size_t)n * sizeof *at);
    *out = (Value){.kind = VAL_LIST, .list = {at, n}};
    return true;
}

/* ---- one step ------------------------------------------------------------------------------------------------- */

static const StepKind *find_kind(const Parser *p, const char *s, int n) {
    for (int i = 0; i < p->dialect->nkinds; i++) {
        const char *name = p->dialect->kinds[i].name;
        if (name[0] == s[0] && !strncmp(name, s, (size_t)n) && !name[n]) return &p->dialect->kinds[i];
    }
    return NULL;
}

static bool unknown_kind(Parser *p, const char *s, int n) {
    const char *names[64], *near;
    char word[NAME_MAX_LEN + 1], upper[NAME_MAX_LEN + 1];
    int k = 0;
    snprintf(word, sizeof word, "%.*s", n, s);
    for (int i = 0; i <= (int)strlen(word); i++) upper[i] = word[i] >= 'a' && word[i] <= 'z' ? (char)(word[i] - 32) : word[i];
    for (; k < MIN(p->dialect->nkinds, 64); k++) names[k] = p->dialect->kinds[k].name;
    if ((near = nearest(upper, names, k))) return WRONG(p, "there is no step %s (did you mean %s?)", word, near);
    return WRONG(p, "there is no step %s", word);
}

/* Is the value, or the variable that may hold any of `got`, fit for an argument? */
static bool check_kinds(Parser *p, const char *at, const Step *s, int k, unsigned got, const char *name, int nname) {
    const StepArg *arg = &s->kind->arg[k];
    if (got & arg->kinds) return true;
    char want[160], is[160];
    value_kinds_text(want, sizeof want, arg->kinds);
    value_kinds_text(is, sizeof is, got);
    if (name) return WRONG_AT(p, at, "%s wants %s for %s, %.*s is %s", s->kind->name, want, arg->name, nname, name, is);
    return WRONG_AT(p, at, "%s wants %s for %s, this is %s", s->kind->name, want, arg->name, is);
}

static bool scan_value(Parser *p, Step *s, int k) {
    const char *begin = p->at, *name;
    const StepArg *arg = &s->kind->arg[k];
    char mark, what[40];
    int n, size;
    Value v;
    if (begin == p->end) return WRONG_AT(p, begin, "%s= has no value", arg->name);
    if ((size = quote_at(begin, p->end, &mark))) {
        if (!scan_string(p, mark, size, false, &v)) return false;
    } else if (char_is(*begin, CHAR_DIGIT) || *begin == '-' || *begin == '+' || *begin == '.') {
        if (!scan_number(p, &v)) return false;
    } else if (*begin == '[') {
        if (!scan_list(p, &v)) return false;
    } else if (scan_name(p, &name, &n)) {
        if (n == 4 && !memcmp(name, "None", 4)) v = value_none();
        else if (n == 4 && !memcmp(name, "True", 4)) v = value_bool(true);
        else if (n == 5 && !memcmp(name, "False", 5)) v = value_bool(false);
        else {
            if (p->at < p->end && quote_at(p->at, p->end, &mark))
                return WRONG_AT(p, begin, "a string starts with its quote (no prefix %.*s)", MIN(n, 8), name);
            if (s->kind->role == STEP_EVAL)
                return WRONG_AT(p, begin, "%s wants its %s between quotes", s->kind->name, arg->name);
            const Name *var = scope_find(&(Scope){p->names, p->nnames, false}, name, n);
            if (!var) {
                char hint[96];
                scope_hint(hint, &(Scope){p->names, p->nnames, false}, name, n);
                if (!*hint && (arg->kinds & KIND(VAL_STR))) snprintf(hint, sizeof hint, " (a text goes between quotes)");
                return WRONG(p, "%s reads %.*s, which no earlier step wrote%s", s->kind->name, MIN(n, NAME_MAX_LEN), name,
                             hint);
            }
            s->arg[k] = var->slot;
            return check_kinds(p, begin, s, k, var->kinds, name, n);
        }
    } else
        return WRONG_AT(p, begin, "expected a value for %s, found %s", arg->name, char_shown(what, begin, p->end));
    if (!check_kinds(p, begin, s, k, KIND(v.kind), NULL, 0)) return false;
    p->consts[p->nconsts] = v; /* STEP_ARGS_MAX per step at most */
    s->arg[k] = ~p->nconsts++;
    return true;
}

static bool unknown_arg(Parser *p, const Step *s, const char *at, int n) {
    const char *names[STEP_ARGS_MAX], *near;
    char word[NAME_MAX_LEN + 1], list[160] = "";
    snprintf(word, sizeof word, "%.*s", MIN(n, NAME_MAX_LEN), at);
    size_t k = 0;
    for (int i = 0; i < s->kind->nargs; i++) {
        names[i] = s->kind->arg[i].name;
        k += (size_t)snprintf(list + k, sizeof list - k, "%s%s", i ? ", " : "", names[i]);
    }
    if ((near = nearest(word, names, s->kind->nargs)))
        return WRONG_AT(p, at, "%s has no argument %s (did you mean %s?)", s->kind->name, word, near);
    return WRONG_AT(p, at, "%s has no argument %s (it takes %s)", s->kind->name, word, list);
}

/* name=value, ... up to and including ')'. */
static bool scan_args(Parser *p, Step *s) {
    char what[40];
    const char *open = p->at - 1;
    const StepKind *kind = s->kind;
    blanks(p);
    while (p->at < p->end && *p->at != ')') {
        const char *name;
        int n, k = 0;
        if (!scan_name(p, &name, &n))
            return WRONG_AT(p, p->at, "expected an argument's name, found %s (%s wants %s=...)", char_shown(what, p->at, p->end),
                            kind->name, kind->arg[0].name);
        blanks(p);
        if (p->at == p->end || *p->at != '=')
            return WRONG_AT(p, p->at, "expected '=' after %.*s, found %s (arguments have names: %s=...)",
                            MIN(n, NAME_MAX_LEN), name, char_shown(what, p->at, p->end), kind->arg[0].name);
        p->at++;
        blanks(p);
        while (k < kind->nargs && !same_name(name, n, kind->arg[k].name)) k++;
        if (k == kind->nargs) return unknown_arg(p, s, name, n);
        if (s->arg[k] != ARG_NONE) return WRONG_AT(p, name, "%s is given twice", kind->arg[k].name);
        if (!scan_value(p, s, k)) return false;
        blanks(p);
        if (p->at == p->end || *p->at == ')') break;
        if (*p->at != ',') return WRONG_AT(p, p->at, "expected ',' or ')', found %s", char_shown(what, p->at, p->end));
        p->at++;
        blanks(p);
    }
    if (p->at == p->end) return WRONG_AT(p, open, "the '(' that opens here is never closed (add a ')' at the end)");
    p->at++;
    blanks(p);
    if (p->at < p->end && *p->at != '#')
        return WRONG_AT(p, p->at, "the step ends before %s (one step per line)", char_shown(what, p->at, p->end));
    for (int k = 0; k < kind->nargs; k++)
        if (s->arg[k] == ARG_NONE && !kind->arg[k].optional)
            return WRONG(p, "%s has no %s=...", kind->name, kind->arg[k].name);
    return true;
}

/* The slot that a step writes under `name`. */
static bool write_name(Parser *p, Step *s, const char *name, int n, unsigned kinds) {
    const Name *was = scope_find(&(Scope){p->names, p->nnames, false}, name, n);
    if (was && p->dialect->strict) {
        int line = p->name_line[was - p->names];
        if (!line) return WRONG(p, "%.*s is given and cannot be written (choose another name)", n, name);
        return WRONG(p, "%.*s was already written in line %d (choose another name)", n, name, line);
    }
    s->out = p->nslots;
    p->written[p->nslots] = p->nsteps;
    p->name_line[p->nnames] = p->line;
    p->names[p->nnames++] = (Name){name, n, p->nslots++, kinds};
    return true;
}

static unsigned arg_kinds(const Parser *p, const Step *s, int k) {
    int at = s->arg[k];
    return at < 0 ? KIND(p->consts[~at].kind) : p->names[at].kinds; /* one name per slot, in order */
}

static bool scan_step(Parser *p) {
    char what[40];
    const char *name, *kind_name;
    int n, nkind;
    if (p->nsteps && p->steps[p->nsteps - 1].kind->role == STEP_RESULT)
        return WRONG(p, "a step after RESULT in line %d, which ends the program", p->steps[p->nsteps - 1].line);
    if (p->nsteps == PROGRAM_STEPS_MAX) return WRONG(p, "more than %d steps", PROGRAM_STEPS_MAX);
    Step *s = &p->steps[p->nsteps]; /* not cleared; link_steps fills what is not set here */
    s->line = p->line;
    s->text = (int)(p->at - p->text);
    s->ntext = (int)(p->end - p->at);
    s->expr = NULL;
    for (int k = 0; k < STEP_ARGS_MAX; k++) s->arg[k] = ARG_NONE;

    if (!scan_name(p, &name, &n))
        return WRONG_AT(p, p->at, "expected NAME=STEP(...), found %s", char_shown(what, p->at, p->end));
    if (n > NAME_MAX_LEN) return WRONG_AT(p, name, "a name of %d letters (at most %d)", n, NAME_MAX_LEN);
    blanks(p);
    if (p->at < p->end && *p->at == '(' && find_kind(p, name, n))
        return WRONG(p, "the step writes no variable (NAME=%.*s(...))", n, name);
    if (p->at == p->end || *p->at != '=')
        return WRONG_AT(p, p->at, "expected '=' after %.*s, found %s", n, name, char_shown(what, p->at, p->end));
    p->at++;
    blanks(p);
    if (!scan_name(p, &kind_name, &nkind))
        return WRONG_AT(p, p->at, "expected a step's name after '=', found %s", char_shown(what, p->at, p->end));
    if (nkind > NAME_MAX_LEN) return WRONG_AT(p, kind_name, "a name of %d letters (at most %d)", nkind, NAME_MAX_LEN);
    if (!(s->kind = find_kind(p, kind_name, nkind))) return unknown_kind(p, kind_name, nkind);
    blanks(p);
    if (p->at == p->end || *p->at != '(')
        return WRONG_AT(p, p->at, "expected '(' after %s, found %s", s->kind->name, char_shown(what, p->at, p->end));
    p->at++;
    if (!scan_args(p, s)) return false;

    unsigned kinds = s->kind->result;
    s->module = s->kind->module;
    const Value *args[STEP_ARGS_MAX];
    for (int k = 0; k < STEP_ARGS_MAX; k++) args[k] = s->arg[k] < 0 ? &p->consts[~s->arg[k]] : NULL;
    if (s->kind->check && !s->kind->check(args, p->e)) return fail_in(p->e, "line %d: %s", p->line, s->kind->name);
    if (s->module && s->kind->on_host && s->kind->on_host(args)) s->module = NULL;
    if (s->kind->role == STEP_EVAL) {
        Str t = p->consts[~s->arg[0]].str;
        Scope scope = {p->names, p->nnames, p->dialect->strict};
        s->expr = expr_compile(p->arena, t.s, t.n, &scope, p->e);
        if (!s->expr) return fail_in(p->e, "line %d: %s", p->line, s->kind->name);
        kinds = s->expr->kinds;
    } else if (s->kind->role == STEP_RESULT) {
        /* never a variable (reference: the state is left alone), but it has a slot for the program's answer */
        kinds = arg_kinds(p, s, 0);
        s->out = p->nslots;
        p->written[p->nslots] = p->nsteps;
        p->names[p->nnames++] = (Name){name, n, p->nslots++, kinds};
        p->nsteps++;
        return true;
    }
    if (!write_name(p, s, name, n, kinds)) return false;
    p->nsteps++;
    return true;
}

/* ---- the program ---------------------------------------------------------------------------------------------- */

/* Who reads what, who waits for whom, and what follows from each step. */
static void link_steps(Parser *p) {
    enum { WORDS = PROGRAM_STEPS_MAX / 64 };
    int n = p->nsteps, words = (n + 63) / 64;
    uint64_t users[PROGRAM_STEPS_MAX][WORDS], reach[PROGRAM_STEPS_MAX][WORDS];
    for (int i = 0; i < n; i++) memset(users[i], 0, sizeof users[i]), memset(reach[i], 0, sizeof reach[i]);

    size_t total = 0;
    for (int i = 0; i < n; i++) total += 2 * (size_t)(STEP_ARGS_MAX + (p->steps[i].expr ? p->steps[i].expr->nslots : 0));
    int *pool = arena_alloc(p->arena, total * sizeof *pool);
    for (int i = 0; i < n; i++) {
        Step *s = &p->steps[i];
        int *reads = pool;
        const int *list = s->expr ? s->expr->slots : s->arg;
        int nlist = s->expr ? s->expr->nslots : STEP_ARGS_MAX, nreads = 0, nwaits = 0;
        for (int k = 0; k < nlist; k++) {
            if (list[k] < 0 || list[k] == ARG_NONE) continue;
            int at = 0;
            while (at < nreads && reads[at] != list[k]) at++;
            if (at == nreads) reads[nreads++] = list[k];
        }
        int *waits = reads + nreads; /* a slot has one writer, so steps cannot repeat either */
        for (int k = 0; k < nreads; k++) {
            int w = p->written[reads[k]];
            if (w < 0) continue;
            waits[nwaits++] = w;
            users[w][i / 64] |= 1ull << (i % 64);
        }
        s->reads = reads, s->nreads = nreads;
        s->waits = waits, s->nwaits = nwaits;
        pool = waits + nwaits;
    }
    total = 0;
    for (int i = n - 1; i >= 0; i--) {
        Step *s = &p->steps[i];
        for (int w = 0; w < words; w++)
            for (uint64_t left = users[i][w]; left; left &= left - 1) {
                int u = w * 64 + __builtin_ctzll(left);
                reach[i][u / 64] |= 1ull << (u % 64);
                for (int v = 0; v < words; v++) reach[i][v] |= reach[u][v];
            }
        s->nusers = s->ndependants = 0;
        for (int w = 0; w < words; w++) {
            s->nusers += __builtin_popcountll(users[i][w]);
            s->ndependants += __builtin_popcountll(reach[i][w]);
        }
        total += (size_t)(s->nusers + s->ndependants);
        s->needed = i == n - 1 || reach[i][(n - 1) / 64] >> ((n - 1) % 64) & 1;
    }
    pool = arena_alloc(p->arena, total * sizeof *pool);
    for (int i = 0; i < n; i++) {
        Step *s = &p->steps[i];
        s->users = pool;
        s->dependants = pool + s->nusers;
        int *user = pool, *dep = pool + s->nusers;
        for (int w = 0; w < words; w++) {
            for (uint64_t left = users[i][w]; left; left &= left - 1) *user++ = w * 64 + __builtin_ctzll(left);
            for (uint64_t left = reach[i][w]; left; left &= left - 1) *dep++ = w * 64 + __builtin_ctzll(left);
        }
        pool = dep;
    }
}

/* One line without its blanks: a step, or nothing of interest. */
static bool scan_line(Parser *p) {
    while (p->end > p->at && char_is(p->end[-1], CHAR_BLANK)) p->end--;
    blanks(p);
    if (p->end - p->at >= 8 && same_name(p->at, 7, "program") && p->at[7] == ':') {
        p->at += 8;
        blanks(p);
    }
    if (p->at == p->end || *p->at == '#') return true;
    if (p->end - p->at >= 3 && !memcmp(p->at, "```", 3)) return true; /* a code fence */
    return scan_step(p);
}

bool program_parse(Program *prog, Arena *a, const Dialect *d, const char *text, size_t n, Error *e) {
    CHECK(d->ninputs <= PROGRAM_INPUTS_MAX && d->nkinds <= 64, "%d inputs, %d kinds", d->ninputs, d->nkinds);
    *prog = (Program){0};
    if (n > PROGRAM_TEXT_MAX)
        return fail_as(e, FAIL_DATA, "the program has %zu bytes (at most %d)", n, PROGRAM_TEXT_MAX);
    Parser p; /* not cleared: tables for 256 steps, of which a usual program fills six */
    p.arena = a;
    p.dialect = d;
    p.e = e;
    p.nsteps = p.nconsts = p.nnames = p.nslots = 0;
    for (int i = 0; i < d->ninputs; i++) {
        p.written[i] = -1;
        p.name_line[i] = 0;
        p.names[p.nnames++] = (Name){d->inputs[i], (int)strlen(d->inputs[i]), p.nslots++, KIND(VAL_IMAGE)};
    }
    char *copy = arena_strdup(a, text, n);
    p.letters = arena_alloc(a, n + 1);
    p.text = p.at = p.line_begin = copy;
    p.line = 1;
    const char *bad = utf8_error(copy, copy + n), *zero = memchr(copy, 0, n);
    if (zero && zero < bad) bad = zero;
    for (const char *next = copy, *last = copy + n; next <= last; p.line++) {
        p.at = p.line_begin = next;
        const char *nl = memchr(next, '\n', (size_t)(last - next));
        p.end = nl ? nl : last;
        next = p.end + 1;
        if (p.line == 1 && n >= 3 && !memcmp(copy, "\xef\xbb\xbf", 3)) p.at += 3; /* a byte order mark */
        if (bad < p.end)
            return WRONG_AT(&p, bad, "byte 0x%02x is not text (UTF-8)", (uint8_t)*bad);
        if (!scan_line(&p)) return false;
    }
    if (!p.nsteps) return fail_as(e, FAIL_DATA, "the program has no steps");
    const Step *end = &p.steps[p.nsteps - 1];
    if (end->kind->role != STEP_RESULT)
        return fail_as(e, FAIL_DATA, "line %d: the program ends without RESULT (add FINAL_RESULT=RESULT(var=%.*s))",
                       end->line, p.names[end->out].n, p.names[end->out].s);
    link_steps(&p);

    size_t letters = 0;
    for (int i = 0; i < p.nnames; i++) letters += (size_t)p.names[i].n + 1;
    size_t nnames = (size_t)p.nslots * sizeof(char *), nsteps = (size_t)p.nsteps * sizeof(Step),
           nconsts = (size_t)p.nconsts * sizeof(Value);
    char *block = arena_alloc(a, nsteps + nconsts + nnames + letters); /* all need 8-byte alignment at most */
    const char **names = (const char **)(block + nsteps + nconsts);
    char *letter = block + nsteps + nconsts + nnames;
    memcpy(block, p.steps, nsteps);
    memcpy(block + nsteps, p.consts, nconsts);
    for (int i = 0; i < p.nnames; i++) {
        names[i] = letter;
        memcpy(letter, p.names[i].s, (size_t)p.names[i].n);
        letter[p.names[i].n] = 0;
        letter += p.names[i].n + 1;
    }
    *prog = (Program){.text = copy, .ntext = (int)n, .nsteps = p.nsteps, .steps = (Step *)block,
                      .nslots = p.nslots, .ninputs = d->ninputs, .names = names,
                      .consts = (const Value *)(block + nsteps), .strict = d->strict};
    return true;
}

/* ---- execution ------------------------------------------------------------------------------------------------ */

/* A variable whose kind is known only now (EVAL's result) may not fit. */
static bool fits(const StepCall *c, Error *e) {
    for (int k = 0; k < c->step->kind->nargs; k++) {
        const StepArg *arg = &c->step->kind->arg[k];
        if (!c->args[k] || arg->kinds & KIND(c->args[k]->kind)) continue;
        char want[160];
        return fail_as(e, FAIL_DATA, "it wants %s for %s, got %s", value_kinds_text(want, sizeof want, arg->kinds),
                       arg->name, value_kind_name(c->args[k]->kind));
    }
    return true;
}

static StepCall call_of(const Program *p, int i, const Value *vars, Arena *a) {
    const Step *s = &p->steps[i];
    StepCall c = {.prog = p, .step = s, .vars = vars, .arena = a};
    for (int k = 0; k < s->kind->nargs; k++) c.args[k] = step_arg(p, s, k, vars);
    return c;
}

static bool fail_step(const Step *s, Error *e) { return fail_in(e, "line %d: %s", s->line, s->kind->name); }

bool program_run_host(const Program *p, int i, Value *vars, Arena *a, Error *e) {
    const Step *s = &p->steps[i];
    CHECK(!s->module && s->kind->run, "step %d (%s) does not run on the host", i, s->kind->name);
    StepCall c = call_of(p, i, vars, a);
    return fits(&c, e) && s->kind->run(&vars[s->out], &c, e) ? true : fail_step(s, e);
}

int program_ask(const Program *p, int i, Value *vars, StepAsk **ask, Arena *a, Error *e) {
    const Step *s = &p->steps[i];
    CHECK(s->module, "step %d (%s) asks nobody", i, s->kind->name);
    StepCall c = call_of(p, i, vars, a);
    int n = -1;
    if (fits(&c, e)) {
        if (s->kind->asks) {
            n = s->kind->asks(ask, &vars[s->out], &c, e);
        } else {
            const Str text = c.args[1]->str; /* a constant ends with a zero byte, what EVAL made may not */
            *ask = arena_alloc(a, sizeof **ask);
            **ask = (StepAsk){c.args[0]->image.rect, s->arg[1] < 0 ? text.s : str_z(a, text)};
            n = 1;
        }
    }
    if (n < 0) fail_step(s, e);
    return n;
}

bool program_conclude(const Program *p, int i, Value *vars, const StepAsk *ask, const Value *answer, int n, Arena *a, Error *e) {
    const Step *s = &p->steps[i];
    if (!s->kind->conclude) {
        CHECK(n == 1, "step %d (%s) has %d answers", i, s->kind->name, n);
        vars[s->out] = *answer;
        return true;
    }
    StepCall c = call_of(p, i, vars, a);
    return s->kind->conclude(&vars[s->out], &c, ask, answer, n, e) ? true : fail_step(s, e);
}

int program_advance(const Program *p, int i, Value *vars, Arena *a, Error *e) {
    for (; i < p->nsteps && !p->steps[i].module; i++)
        if (!program_run_host(p, i, vars, a, e)) return -1;
    return i;
}
