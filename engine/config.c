/* config.c -- reads and prints the options of config.h.
 *
 * The rows become one array of Option. libcyaml gets a schema built from it in which every leaf is text, so
 * that a value from a file and one from the command line pass through the same function (`set_value`) and get
 * the same sentences. libcyaml tells lines only for the place where it stops itself. When we are the ones who
 * object (bounds, an unknown key), we load the text once more with a schema that cannot take that key, and it
 * tells us its line (`line_of`).
 */
#include "engine/config.h"

#include <cyaml/cyaml.h>
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <utf8proc.h>

#define MAX_FILE ((size_t)1 << 20)

typedef enum Kind { INT, FLOAT, BOOL, TEXT, CHOICE } Kind;

typedef struct Option {
    const char *name;
    Kind kind;
    size_t at; /* offset in the section's struct */
    double number, min, max;
    const char *text, *choices; /* default of TEXT and CHOICE; "a|b|c" */
    const char *help;
} Option;

/* One function per section holds its rows; S is the section's struct there, which the rows cannot name. */
#define INT_ROW(n, d, lo, hi, h)                                                                             \
    {.name = #n, .kind = INT, .at = offsetof(S, n), .number = d, .min = lo, .max = hi, .help = h},
#define FLOAT_ROW(n, d, lo, hi, h)                                                                           \
    {.name = #n, .kind = FLOAT, .at = offsetof(S, n), .number = d, .min = lo, .max = hi, .help = h},
#define BOOL_ROW(n, d, h)          {.name = #n, .kind = BOOL, .at = offsetof(S, n), .number = d, .help = h},
#define TEXT_ROW(n, d, h)          {.name = #n, .kind = TEXT, .at = offsetof(S, n), .text = d, .help = h},
#define CHOICE_ROW(n, d, c, h)                                                                               \
    {.name = #n, .kind = CHOICE, .at = offsetof(S, n), .text = d, .choices = c, .help = h},
#define X(section, OPTIONS)                                                                                  \
    static const Option *section##_rows(int *n) {                                                            \
        typedef __typeof__(((Config *)0)->section) S;                                                        \
        static const Option rows[] = {OPTIONS(INT_ROW, FLOAT_ROW, BOOL_ROW, TEXT_ROW, CHOICE_ROW)};          \
        *n = COUNT_OF(rows);                                                                                 \
        return rows;                                                                                         \
    }
CONFIG_SECTIONS(X)
#undef X

static const struct { const char *name; const Option *(*rows)(int *n); size_t at; } sections[] = {
#define X(section, OPTIONS) {#section, section##_rows, offsetof(Config, section)},
    CONFIG_SECTIONS(X)
#undef X
};
#define NSECTIONS COUNT_OF(sections)
#define MAX_ROWS  128 /* per section */

static void *field_of(const Config *c, int section, const Option *o) {
    return (char *)c + sections[section].at + o->at;
}

/* A text of the outside world as it may stand in a sentence: one line, not too long. */
static const char *shown(const char *s) {
    static _Thread_local char buf[2][84];
    static _Thread_local int turn;
    char *out = buf[turn ^= 1];
    size_t n = 0;
    for (; s[n] && n < sizeof buf[0] - 4; n++) out[n] = (unsigned char)s[n] < 32 || s[n] == 127 ? '?' : s[n];
    strcpy(out + n, s[n] ? "..." : "");
    return out;
}

/* ---- One value ---- */

static bool set_text(char *field, const char *value, const char *what, Error *e) {
    size_t n = strlen(value);
    if (n >= CONFIG_TEXT)
        return fail_as(e, FAIL_CONFIG, "%s has %zu bytes, at most %d are possible", what, n, CONFIG_TEXT - 1);
    utf8proc_int32_t c;
    utf8proc_ssize_t k = 0;
    for (size_t i = 0; i < n; i += (size_t)k)
        if ((k = utf8proc_iterate((const utf8proc_uint8_t *)value + i, (utf8proc_ssize_t)(n - i), &c)) <= 0)
            return fail_as(e, FAIL_CONFIG, "%s: byte %zu is not UTF-8", what, i);
    memset(field, 0, CONFIG_TEXT); /* all of it: equal configs are equal bytes */
    memcpy(field, value, n);
    return true;
}

static bool set_choice(int *field, const char *choices, const char *value, const char *what, Error *e) {
    size_t n = strlen(value);
    int k = 0;
    for (const char *p = choices; p; k++) {
        size_t len = strcspn(p, "|");
        if (len == n && !memcmp(p, value, n)) return *field = k, true;
        p = p[len] ? p + len + 1 : NULL;
    }
    return fail_as(e, FAIL_CONFIG, "%s: \"%s\" is not one of %s", what, shown(value), choices);
}

static bool set_bool(bool *field, const char *value, const char *what, Error *e) {
    static const char *const words[] = {"false", "true", "no", "yes", "off", "on"};
    for (int k = 0; k < COUNT_OF(words); k++)
        if (!strcasecmp(value, words[k])) return *field = k & 1, true;
    return fail_as(e, FAIL_CONFIG, "%s: \"%s\" is neither true nor false", what, shown(value));
}

/* Puts `value` into its field. what: "train.lr", for the sentence. The field is untouched on failure. */
static bool set_value(void *field, const Option *o, const char *value, const char *what, Error *e) {
    char *end;
    errno = 0;
    switch (o->kind) {
    case TEXT: return set_text(field, value, what, e);
    case CHOICE: return set_choice(field, o->choices, value, what, e);
    case BOOL: return set_bool(field, value, what, e);
    case INT: {
        long long v = strtoll(value, &end, 10);
        if (end == value || *end || isspace((unsigned char)*value))
            return fail_as(e, FAIL_CONFIG, "%s: \"%s\" is not a whole number", what, shown(value));
        if (errno || v < (long long)o->min || v > (long long)o->max)
            return fail_as(e, FAIL_CONFIG, "%s: %s is not within %.0f .. %.0f", what, shown(value), o->min,
                           o->max);
        *(int *)field = (int)v;
        return true;
    }
    case FLOAT: {
        double v = strtod(value, &end);
        if (end == value || *end || isspace((unsigned char)*value) ||
            strpbrk(value, "xXnN")) /* no hexadecimal, inf, nan */
            return fail_as(e, FAIL_CONFIG, "%s: \"%s\" is not a number", what, shown(value));
        if (!(v >= o->min && v <= o->max))
            return fail_as(e, FAIL_CONFIG, "%s: %s is not within %g .. %g", what, shown(value), o->min, o->max);
        *(double *)field = v;
        return true;
    }
    }
    return false;
}

void config_defaults(Config *c) {
    memset(c, 0, sizeof *c);
    for (int s = 0; s < NSECTIONS; s++) {
        int n;
        const Option *row = sections[s].rows(&n);
        CHECK(n < MAX_ROWS, "section %s has %d options", sections[s].name, n);
        for (int i = 0; i < n; i++) {
            const Option *o = &row[i];
            void *field = field_of(c, s, o);
            Error e = {0};
            if (o->text) CHECK(set_value(field, o, o->text, o->name, &e), "default of %s: %s", o->name, e.text);
            else if (o->kind == BOOL) *(bool *)field = o->number != 0;
            else {
                CHECK(o->number >= o->min && o->number <= o->max, "default of %s is %g", o->name, o->number);
                if (o->kind == INT) *(int *)field = (int)o->number;
                else *(double *)field = o->number;
            }
        }
    }
}

/* ---- Names ---- */

static int find_section(const char *name, size_t len) {
    for (int s = 0; s < NSECTIONS; s++)
        if (strlen(sections[s].name) == len && !memcmp(sections[s].name, name, len)) return s;
    return -1;
}

static const Option *find_option(int section, const char *name) {
    int n;
    const Option *row = sections[section].rows(&n);
    for (int i = 0; i < n; i++)
        if (!strcmp(row[i].name, name)) return &row[i];
    return NULL;
}

/* place: "FILE:LINE" or "argument ...". section -1: at the top level. */
static bool unknown_name(Error *e, const char *place, int section, const char *name) {
    const char *names[MAX_ROWS];
    int n = section < 0 ? NSECTIONS : 0;
    const Option *row = section < 0 ? NULL : sections[section].rows(&n);
    for (int i = 0; i < n; i++) names[i] = row ? row[i].name : sections[i].name;
    const char *near = nearest(name, names, n);
    if (near)
        return fail_as(e, FAIL_CONFIG, "%s: unknown %s \"%s\" (did you mean %s?)", place,
                       row ? "option" : "section", shown(name), near);
    for (int s = 0; s < NSECTIONS; s++)
        if (find_option(s, name))
            return fail_as(e, FAIL_CONFIG, "%s: unknown %s \"%s\" (it belongs into section %s)", place,
                           row ? "option" : "section", name, sections[s].name);
    char list[600] = "";
    for (int i = 0; i < n; i++)
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", i ? ", " : "", names[i]);
    return fail_as(e, FAIL_CONFIG, "%s: unknown %s \"%s\"; there %s %s", place, row ? "option" : "section",
                   shown(name), n == 1 ? "is" : "are", list);
}

bool config_set(Config *c, const char *assignment, Error *e) {
    const char *equal = strchr(assignment, '='), *dot = strchr(assignment, '.');
    char place[120], name[64], what[140];
    snprintf(place, sizeof place, "argument \"%s\"", shown(assignment));
    if (!equal || !dot || dot > equal) return fail_as(e, FAIL_CONFIG, "%s: section.key=value expected", place);
    int s = find_section(assignment, (size_t)(dot - assignment));
    snprintf(name, sizeof name, "%.*s", (int)MIN(dot - assignment, 63), assignment);
    if (s < 0) return unknown_name(e, place, -1, name);
    snprintf(name, sizeof name, "%.*s", (int)MIN(equal - dot - 1, 63), dot + 1);
    const Option *o = find_option(s, name);
    if (!o) return unknown_name(e, place, s, name);
    snprintf(what, sizeof what, "%s.%s", sections[s].name, o->name);
    return set_value(field_of(c, s, o), o, equal + 1, what, e) || fail_in(e, "%s", place);
}

/* ---- YAML ---- */

typedef struct Load { /* one pass of libcyaml over the text, and what its log said */
    cyaml_schema_field_t top[NSECTIONS + 2], rows[NSECTIONS][MAX_ROWS + 2];
    char *values[NSECTIONS + 1]
                [MAX_ROWS]; /* the text of each leaf, NULL when it is not there; the last row is spare */
    char key[256];                     /* of the unexpected or repeated key */
    char field[2][256];                /* innermost mapping fields, from inside out */
    int nfields, line;
    bool unexpected, again, oom;
    char said[256]; /* the first sentence */
} Load;

static void listen(cyaml_log_t level, void *context, const char *fmt, va_list ap) {
    (void)level;
    Load *l = context;
    char text[256];
    int n = vsnprintf(text, sizeof text, fmt, ap);
    if (n > 0 && n < (int)sizeof text && text[n - 1] == '\n') text[n - 1] = 0;
    const char *at;
    if ((at = strstr(text, "Unexpected key: "))) {
        l->unexpected = true;
        snprintf(l->key, sizeof l->key, "%s", at + 16);
    } else if ((at = strstr(text, "already seen: "))) {
        l->again = true;
        snprintf(l->key, sizeof l->key, "%s", at + 14);
    } else if ((at = strstr(text, "in mapping field '"))) {
        const char *close = strstr(at + 18, "' (line: ");
        if (l->nfields < 2 && close)
            snprintf(l->field[l->nfields++], sizeof l->field[0], "%.*s", (int)(close - at - 18), at + 18);
        if (l->nfields == 1 && close) l->line = atoi(close + 9);
    } else if ((at = strstr(text, "(line: ")) || (at = strstr(text, "line: "))) {
        if (!l->line) l->line = atoi(strstr(at, "line: ") + 6);
    }
    if (!*l->said && !strstr(text, "Backtrace") && !strstr(text, "(line: "))
        snprintf(l->said, sizeof l->said, "%s", strstr(text, ": ") ? strstr(text, ": ") + 2 : text);
}

static cyaml_schema_field_t leaf(const char *name, size_t at, uint32_t min) {
    return (cyaml_schema_field_t){.key = name,
                                  .data_offset = (uint32_t)at,
                                  .value = {.type = CYAML_STRING,
                                            .flags = CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL,
                                            .data_size = 1,
                                            .string = {.min = min, .max = UINT32_MAX}}};
}

/* Loads the text into l->values. poison: a key (of section `where`, -1 the top level) that the schema takes
 * only with a text of 4 GB, so that libcyaml stops at it and tells its line. */
static bool load(Load *l, const char *text, size_t size, int where, const char *poison) {
    memset(l, 0, sizeof *l);
    for (int s = 0; s < NSECTIONS; s++) {
        int n;
        const Option *row = sections[s].rows(&n);
        for (int i = 0; i < n; i++) {
            bool bad = poison && where == s && !strcmp(poison, row[i].name);
            l->rows[s][i] = leaf(row[i].name, (size_t)i * sizeof(char *), bad ? UINT32_MAX : 0);
        }
        if (poison && where == s && !find_option(s, poison))
            l->rows[s][n] = leaf(poison, (size_t)n * sizeof(char *), UINT32_MAX);
        l->top[s] = (cyaml_schema_field_t){.key = sections[s].name,
                                           .data_offset = (uint32_t)(s * (int)sizeof l->values[0]),
                                           .value = {.type = CYAML_MAPPING,
                                                     .flags = CYAML_FLAG_OPTIONAL,
                                                     .data_size = sizeof l->values[0],
                                                     .mapping = {l->rows[s]}}};
    }
    if (poison && where < 0) l->top[NSECTIONS] = leaf(poison, NSECTIONS * sizeof l->values[0], UINT32_MAX);
    cyaml_schema_value_t root = {.type = CYAML_MAPPING,
                                 .flags = CYAML_FLAG_POINTER,
                                 .data_size = sizeof l->values,
                                 .mapping = {l->top}};
    cyaml_config_t how = {.log_fn = listen,
                          .log_ctx = l,
                          .mem_fn = cyaml_mem,
                          .log_level = CYAML_LOG_ERROR,
                          .flags = CYAML_CFG_NO_ALIAS};
    void *got = NULL;
    cyaml_err_t err = cyaml_load_data((const uint8_t *)text, size, &how, &root, &got, NULL);
    if (err == CYAML_OK && got) {
        memcpy(l->values, got, sizeof l->values); /* the texts are ours now */
        free(got);
    }
    if (err == CYAML_ERR_OOM) die(FAIL_MEMORY, "out of memory reading a config");
    if (err != CYAML_OK && !*l->said) snprintf(l->said, sizeof l->said, "%s", cyaml_strerror(err));
    return err == CYAML_OK;
}

static void load_free(Load *l) {
    for (int s = 0; s <= NSECTIONS; s++)
        for (int i = 0; i < MAX_ROWS; i++) free(l->values[s][i]);
    free(l);
}

static int line_of(const char *text, size_t size, int section, const char *key) {
    Load *l = xcalloc(1, sizeof *l);
    load(l, text, size, section, key);
    int line = l->line;
    load_free(l);
    return line;
}

/* What libcyaml objected to, in our words. */
static bool refused(const Load *l, const char *name, const char *text, size_t size, Error *e) {
    char place[300];
    /* The innermost field is the section, or the option with the section around it. */
    const char *outer = l->nfields ? l->field[l->nfields - 1] : NULL;
    int s = outer ? find_section(outer, strlen(outer)) : -1;
    if (l->unexpected || l->again) {
        int where =
            l->again && l->nfields < 2 ? -1 : s; /* a repeated section is itself the field of the trace */
        int line = line_of(text, size, where, l->key);
        snprintf(place, sizeof place, "%s:%d", name, line ? line : MAX(l->line, 1));
        if (l->unexpected) return unknown_name(e, place, s, l->key);
        return fail_as(e, FAIL_CONFIG, "%s: %s \"%s\" is given twice (this is the first place)", place,
                       where < 0 ? "section" : "option", shown(l->key));
    }
    snprintf(place, sizeof place, "%s:%d", name, MAX(l->line, 1));
    char why[400];
    snprintf(why, sizeof why, "%s", l->said);
    if (strstr(l->said, "Expecting STRING")) strcpy(why, "one value is expected, not a list or a mapping");
    if (strstr(l->said, "Expecting MAPPING")) strcpy(why, "\"option: value\" lines are expected here");
    if (strstr(l->said, "Internal error")) strcpy(why, "a name must be one plain word");
    if (strstr(l->said, "alias")) strcpy(why, "aliases (*name) are not possible here, write the value out");
    if (!strncmp(l->said, "libyaml: ", 9))
        snprintf(why, sizeof why, "not YAML, here or just below: %s", l->said + 9);
    if (l->nfields == 2)
        return fail_as(e, FAIL_CONFIG, "%s: %s.%s: %s", place, shown(l->field[1]), shown(l->field[0]), why);
    if (l->nfields == 1) return fail_as(e, FAIL_CONFIG, "%s: section %s: %s", place, shown(l->field[0]), why);
    return fail_as(e, FAIL_CONFIG, "%s: %s", place, why);
}

/* What libcyaml would let pass: bytes that are not UTF-8 (it reads UTF-16 too), and further documents, which
 * it drops. */
static bool check_text(const char *name, const char *text, size_t size, Error *e) {
    int line = 1;
    bool begun = false; /* something other than comments came */
    for (size_t i = 0; i < size; line++) {
        size_t start = i;
        while (i < size && text[i] != '\n' && text[i] != '\r') {
            utf8proc_int32_t c;
            utf8proc_ssize_t k =
                utf8proc_iterate((const utf8proc_uint8_t *)text + i, (utf8proc_ssize_t)(size - i), &c);
            if (k <= 0 || c == 0)
                return fail_as(e, FAIL_CONFIG, "%s:%d: column %zu is not UTF-8 text", name, line,
                               i - start + 1);
            i += (size_t)k;
        }
        size_t n = i - start;
        const char *p = text + start;
        if (n >= 3 && (!memcmp(p, "---", 3) || !memcmp(p, "...", 3)) &&
            (n == 3 || p[3] == ' ' || p[3] == '\t')) {
            if (begun && (p[0] == '-' || i + 1 < size))
                return fail_as(e, FAIL_CONFIG, "%s:%d: a config is one YAML document, another begins here",
                               name, line);
            begun = true;
        }
        size_t blank = strspn(p, " \t") < n ? strspn(p, " \t") : n;
        if (blank < n && p[blank] != '#' && p[0] != '%') begun = true;
        if (i < size && text[i] == '\r' && i + 1 < size && text[i + 1] == '\n') i++;
        i++;
    }
    return true;
}

/* `text` ends with a zero byte that `size` does not count. */
static bool parse(Config *c, const char *name, const char *text, size_t size, Error *e) {
    if (!check_text(name, text, size, e)) return false;
    Load *l = xcalloc(1, sizeof *l);
    Config out = *c; /* c stays whole when the text is bad */
    bool ok = load(l, text, size, -1, NULL) || refused(l, name, text, size, e);
    for (int s = 0; ok && s < NSECTIONS; s++) {
        int n;
        const Option *row = sections[s].rows(&n);
        for (int i = 0; ok && i < n; i++) {
            if (!l->values[s][i]) continue;
            char what[140];
            snprintf(what, sizeof what, "%s.%s", sections[s].name, row[i].name);
            ok = set_value(field_of(&out, s, &row[i]), &row[i], l->values[s][i], what, e);
            if (!ok) fail_in(e, "%s:%d", name, line_of(text, size, s, row[i].name));
        }
    }
    load_free(l);
    if (ok) *c = out;
    return ok;
}

bool config_parse(Config *c, const char *name, const char *text, size_t size, Error *e) {
    if (size > MAX_FILE)
        return fail_as(e, FAIL_CONFIG, "%s: %zu bytes, a config has at most %zu", name, size, MAX_FILE);
    char *copy = xcalloc(size + 1, 1);
    memcpy(copy, text, size);
    bool ok = parse(c, name, copy, size, e);
    free(copy);
    return ok;
}

bool config_load(Config *c, const char *path, const char *const *assignments, int n, Error *e) {
    config_defaults(c);
    if (path) {
        char *text;
        size_t size;
        if (!file_read(path, &text, &size, MAX_FILE, e)) {
            if (e) e->status = FAIL_CONFIG;
            return false;
        }
        bool ok = parse(c, path, text, size, e);
        free(text);
        if (!ok) return false;
    }
    for (int i = 0; i < n; i++)
        if (!config_set(c, assignments[i], e)) return false;
    return true;
}

/* ---- Printing ---- */

/* The shortest decimal that reads back to the same value. */
static const char *print_float(char out[32], double v) {
    if (v == rint(v) && fabs(v) < 1e7) {
        snprintf(out, 32, "%.0f", v); /* 10, not 1e+01 */
        return out;
    }
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(out, 32, "%.*g", digits, v);
        if (strtod(out, NULL) == v) break;
    }
    return out;
}

/* Double-quoted YAML: line ends, control and unprintable characters escaped, the rest as it is. */
static void print_text(FILE *f, const char *s) {
    size_t n = strlen(s);
    fputc('"', f);
    for (size_t i = 0; i < n;) {
        utf8proc_int32_t c;
        utf8proc_ssize_t k = utf8proc_iterate((const utf8proc_uint8_t *)s + i, (utf8proc_ssize_t)(n - i), &c);
        if (k <= 0) k = 1, c = '?'; /* set_text let none in */
        if (c == '"' || c == '\\') fprintf(f, "\\%c", (char)c);
        else if (c < 32 || (c >= 127 && c < 160)) fprintf(f, "\\x%02X", (unsigned)c);
        else if (c == 0x2028 || c == 0x2029 || c == 0xfeff || c == 0xfffe || c == 0xffff)
            fprintf(f, "\\u%04X", (unsigned)c);
        else fwrite(s + i, 1, (size_t)k, f);
        i += (size_t)k;
    }
    fputc('"', f);
}

static void print_choice(FILE *f, const char *choices, int k) {
    while (k-- > 0) choices += strcspn(choices, "|") + 1;
    fprintf(f, "%.*s", (int)strcspn(choices, "|"), choices);
}

static void print_value(FILE *f, const Option *o, const void *field) {
    char number[32];
    switch (o->kind) {
    case INT: fprintf(f, "%d", *(const int *)field); break;
    case FLOAT: fputs(print_float(number, *(const double *)field), f); break;
    case BOOL: fputs(*(const bool *)field ? "true" : "false", f); break;
    case TEXT: print_text(f, field); break;
    case CHOICE: print_choice(f, o->choices, *(const int *)field); break;
    }
}

void config_print(FILE *f, const Config *c) {
    for (int s = 0; s < NSECTIONS; s++) {
        int n;
        const Option *row = sections[s].rows(&n);
        fprintf(f, "%s:\n", sections[s].name);
        for (int i = 0; i < n; i++) {
            fprintf(f, "  %s: ", row[i].name);
            print_value(f, &row[i], field_of(c, s, &row[i]));
            fputc('\n', f);
        }
    }
}

bool config_help(FILE *f, const char *section) {
    Config defaults;
    config_defaults(&defaults);
    bool any = false;
    for (int s = 0; s < NSECTIONS; s++) {
        if (section && strcmp(section, sections[s].name)) continue;
        any = true;
        int n;
        const Option *row = sections[s].rows(&n);
        for (int i = 0; i < n; i++) {
            const Option *o = &row[i];
            char *value = NULL, name[100], low[32], high[32];
            size_t size;
            FILE *m = open_memstream(&value, &size);
            if (!m) die(FAIL_MEMORY, "out of memory printing help");
            print_value(m, o, field_of(&defaults, s, o));
            fclose(m);
            snprintf(name, sizeof name, "%s.%s=%s", sections[s].name, o->name, value);
            free(value);
            fprintf(f, "  %-34s %s", name, o->help);
            if (o->kind == INT) fprintf(f, " (%.0f .. %.0f)", o->min, o->max);
            if (o->kind == FLOAT)
                fprintf(f, " (%s .. %s)", print_float(low, o->min), print_float(high, o->max));
            if (o->choices) fprintf(f, " (%s)", o->choices);
            fputc('\n', f);
        }
    }
    return any;
}
