/* value.c -- values of programs as text, for answers, traces and error sentences. See value.h. */
#include "engine/value.h"

#include <math.h>

static const char *const kind_names[VAL_KINDS] = {"None",     "a bool",     "an int",  "a float", "a string",
                                                  "an image", "a box list", "objects", "a list"};

const char *value_kind_name(ValueKind k) { return (unsigned)k < VAL_KINDS ? kind_names[k] : "nothing"; }

const char *value_kinds_text(char *out, size_t size, unsigned kinds) {
    if ((kinds & KINDS_ANY) == KINDS_ANY) {
        snprintf(out, size, "anything");
        return out;
    }
    size_t at = 0;
    if (size) out[0] = 0;
    for (int k = 0; k < VAL_KINDS && at < size; k++)
        if (kinds & KIND(k)) at += (size_t)snprintf(out + at, size - at, "%s%s", at ? " or " : "", kind_names[k]);
    return out;
}

Boxes *boxes_new(Arena *a, int n, Rect of) {
    CHECK(n >= 0 && n <= BOXES_MAX, "%d boxes", n);
    Boxes *b = arena_alloc(a, sizeof *b + (size_t)n * sizeof b->box[0]);
    *b = (Boxes){.n = n, .of = of};
    return b;
}

Value value_made(const ImageView *pixels) {
    const uint64_t size = (uint64_t)(uint32_t)pixels->w << 32 | (uint32_t)pixels->h;
    Value v = value_image(hash_bytes(pixels->rgb, (size_t)pixels->w * (size_t)pixels->h * 3, size) | UINT64_C(1) << 63, pixels->w, pixels->h);
    v.image.pixels = pixels;
    return v;
}

int float_text(char out[FLOAT_TEXT], double f) {
    if (isnan(f)) return snprintf(out, FLOAT_TEXT, "nan");
    if (isinf(f)) return snprintf(out, FLOAT_TEXT, f < 0 ? "-inf" : "inf");
    char sci[FLOAT_TEXT]; /* d.ddde+xx with the fewest digits that read back */
    for (int digits = 0; digits < 17; digits++) {
        snprintf(sci, sizeof sci, "%.*e", digits, f);
        if (strtod(sci, NULL) == f) break;
    }
    int exp10 = atoi(strchr(sci, 'e') + 1);
    char d[20];
    int n = 0;
    for (const char *p = sci; *p != 'e'; p++)
        if (*p >= '0' && *p <= '9') d[n++] = *p;
    while (n > 1 && d[n - 1] == '0') n--;

    int at = 0;
    if (signbit(f)) out[at++] = '-';
    if (exp10 < -4 || exp10 >= 16) { /* Python's limits */
        out[at++] = d[0];
        if (n > 1) out[at++] = '.';
        memcpy(out + at, d + 1, (size_t)(n - 1));
        at += n - 1;
        return at + snprintf(out + at, FLOAT_TEXT - (size_t)at, "e%c%02d", exp10 < 0 ? '-' : '+', abs(exp10));
    }
    if (exp10 < 0) {
        out[at++] = '0';
        out[at++] = '.';
        for (int i = -1; i > exp10; i--) out[at++] = '0';
        memcpy(out + at, d, (size_t)n);
        at += n;
    } else {
        for (int i = 0; i <= exp10; i++) out[at++] = i < n ? d[i] : '0';
        out[at++] = '.';
        if (n <= exp10 + 1) out[at++] = '0';
        for (int i = exp10 + 1; i < n; i++) out[at++] = d[i];
    }
    out[at] = 0;
    return at;
}

int value_text(char *out, size_t size, const Value *v) {
    CHECK(size > 0, "room for %zu bytes", size);
    char f[FLOAT_TEXT];
    int n;
    switch (v->kind) {
    case VAL_NONE: n = snprintf(out, size, "None"); break;
    case VAL_BOOL: n = snprintf(out, size, v->b ? "True" : "False"); break;
    case VAL_INT: n = snprintf(out, size, "%" PRId64, v->i); break;
    case VAL_FLOAT: float_text(f, v->f); n = snprintf(out, size, "%s", f); break;
    case VAL_STR:
        n = MIN(v->str.n, (int)size - 1);
        memcpy(out, v->str.s, (size_t)n);
        out[n] = 0;
        break;
    default: out[0] = 0; return -1;
    }
    return MIN(n, (int)size - 1);
}

static bool str_is(Str s, const char *word) { return (size_t)s.n == strlen(word) && !memcmp(s.s, word, (size_t)s.n); }

bool answer_text(char *out, size_t size, const Value *v, AnswerStyle style, Error *e) {
    Value w = *v;
    switch (v->kind) {
    case VAL_BOOL:
        if (style == ANSWER_YES_NO) w = v->b ? value_str("yes", 3) : value_str("no", 2);
        break;
    case VAL_STR:
        if (style == ANSWER_TRUE_FALSE && str_is(v->str, "yes")) w = value_bool(true);
        if (style == ANSWER_TRUE_FALSE && str_is(v->str, "no")) w = value_bool(false);
        break;
    case VAL_INT:
    case VAL_FLOAT: break;
    case VAL_BOXES:
    case VAL_OBJECTS: w = value_int(v->boxes->n); break;
    case VAL_LIST: w = value_int(v->list.n); break;
    default:
        return fail_as(e, FAIL_DATA, "the program's result is %s, which is no answer to a question",
                       value_kind_name(v->kind));
    }
    if (w.kind == VAL_STR && (size_t)w.str.n >= size)
        return fail_as(e, FAIL_DATA, "the program's answer has %d bytes, room for %zu", w.str.n, size ? size - 1 : 0);
    value_text(out, size, &w);
    return true;
}
