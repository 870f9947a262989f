/* safetensors.c -- model files: a strict header reader, an atomic writer. Contract: safetensors.h.
 *
 * The header parser is written by hand because the header is the trust boundary of the product: it knows the
 * one shape a header may have, so its memory is bounded by the header's size, where a general JSON tree of a
 * hostile 100 MB header takes gigabytes. Order of work: scan (this file, top), check (`check_layout`), write
 * (bottom).
 */
#include "data/safetensors.h"

#include <jansson.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const struct { const char *name; size_t bits; } dtypes[] = {
#define X(name, bits) {#name, bits},
    ST_DTYPES(X)
#undef X
};

const char *st_dtype_name(StDType t) { return (unsigned)t < ST_NDTYPES ? dtypes[t].name : "?"; }
size_t st_dtype_bits(StDType t) { return (unsigned)t < ST_NDTYPES ? dtypes[t].bits : 0; }

/* ---- Scanner: a cursor over the header, names unescaped in place ---- */

typedef struct Scan {
    const char *path;
    char *begin, *at, *end; /* a private copy of the header, *end = 0 */
    const char *tensor;     /* the tensor being read, for messages */
    Error *e;
} Scan;

/* A name as it may be printed: hostile files put escape sequences and megabytes there. Two buffers in turn. */
static const char *shown(const char *name) {
    static _Thread_local char buf[2][100];
    static _Thread_local int turn;
    char *out = buf[turn ^= 1];
    size_t n = 0;
    for (; name[n] && n < sizeof buf[0] - 4; n++)
        out[n] = (unsigned char)name[n] < 32 || name[n] == 127 ? '?' : name[n];
    strcpy(out + n, name[n] ? "..." : "");
    return out;
}

#define BAD(s, fmt, ...)                                                                                     \
    fail_as((s)->e, FAIL_MODEL, "%s: header byte %td%s%s: " fmt, (s)->path, (s)->at - (s)->begin,            \
            (s)->tensor ? ", tensor " : "", (s)->tensor ? shown((s)->tensor) : "", ##__VA_ARGS__)

static void skip_space(Scan *s) {
    while (s->at < s->end && (*s->at == ' ' || *s->at == '\t' || *s->at == '\n' || *s->at == '\r')) s->at++;
}

static bool accept(Scan *s, char c) {
    skip_space(s);
    if (s->at == s->end || *s->at != c) return false;
    s->at++;
    return true;
}

static bool want(Scan *s, char c, const char *where) {
    return accept(s, c) || BAD(s, "'%c' expected %s", c, where);
}

static bool scan_hex4(Scan *s, uint32_t *out) {
    uint32_t v = 0;
    for (int k = 0; k < 4; k++) {
        char c = s->at < s->end ? *s->at : 0;
        int d = c >= '0' && c <= '9'   ? c - '0'
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                       : -1;
        if (d < 0) return BAD(s, "\\u needs four hexadecimal digits");
        v = v * 16 + (uint32_t)d;
        s->at++;
    }
    *out = v;
    return true;
}

static bool scan_unicode_escape(Scan *s, char **w) {
    uint32_t c, low;
    if (!scan_hex4(s, &c)) return false;
    if (c >= 0xdc00 && c <= 0xdfff) return BAD(s, "\\u%04x is half a character", c);
    if (c >= 0xd800 && c <= 0xdbff) {
        if (s->end - s->at < 2 || s->at[0] != '\\' || s->at[1] != 'u')
            return BAD(s, "\\u%04x is half a character", c);
        s->at += 2;
        if (!scan_hex4(s, &low)) return false;
        if (low < 0xdc00 || low > 0xdfff) return BAD(s, "\\u%04x\\u%04x is no character", c, low);
        c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
    }
    if (c == 0) return BAD(s, "a name or value with a zero byte");
    char *o = *w; /* never longer than the escape it replaces: 6 bytes give at most 3, 12 give 4 */
    if (c < 0x80) {
        *o++ = (char)c;
    } else if (c < 0x800) {
        *o++ = (char)(0xc0 | c >> 6), *o++ = (char)(0x80 | (c & 63));
    } else if (c < 0x10000) {
        *o++ = (char)(0xe0 | c >> 12), *o++ = (char)(0x80 | (c >> 6 & 63)), *o++ = (char)(0x80 | (c & 63));
    } else {
        *o++ = (char)(0xf0 | c >> 18), *o++ = (char)(0x80 | (c >> 12 & 63));
        *o++ = (char)(0x80 | (c >> 6 & 63)), *o++ = (char)(0x80 | (c & 63));
    }
    *w = o;
    return true;
}

/* Unescapes over its own text; the closing quote becomes the terminating zero. */
static bool scan_string(Scan *s, char **out, const char *what) {
    if (!want(s, '"', what)) return false;
    char *w = s->at;
    *out = w;
    for (;;) {
        if (s->at == s->end) return BAD(s, "the header ends inside a string");
        char c = *s->at++;
        if (c == '"') break;
        if ((unsigned char)c < 32) return s->at--, BAD(s, "control character %d inside a string", c);
        if (c != '\\') {
            *w++ = c;
            continue;
        }
        char x = s->at < s->end ? *s->at++ : 0;
        switch (x) {
        case '"': case '\\': case '/': *w++ = x; break;
        case 'b': *w++ = '\b'; break;
        case 'f': *w++ = '\f'; break;
        case 'n': *w++ = '\n'; break;
        case 'r': *w++ = '\r'; break;
        case 't': *w++ = '\t'; break;
        case 'u': if (!scan_unicode_escape(s, &w)) return false; break;
        default: return BAD(s, "unknown escape in a string");
        }
    }
    *w = 0;
    return true;
}

/* A plain JSON integer from 0 to 2^64 - 1: no sign, fraction, exponent or leading zero, as the reference has
 * it. */
static bool scan_size(Scan *s, uint64_t *out, const char *what) {
    skip_space(s);
    char *start = s->at;
    uint64_t v = 0;
    while (s->at < s->end && *s->at >= '0' && *s->at <= '9') {
        if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, (uint64_t)(*s->at - '0'), &v))
            return BAD(s, "%s above 2^64 - 1", what);
        s->at++;
    }
    if (s->at == start || (*start == '0' && s->at - start > 1) ||
        (s->at < s->end && strchr(".eE", *s->at) && *s->at))
        return BAD(s, "%s must be a whole number, not negative", what);
    *out = v;
    return true;
}

/* Walks over any JSON value: fields that a later version of the format may add. */
static bool skip_value(Scan *s, int depth) {
    if (depth > 100) return BAD(s, "JSON nested deeper than 100");
    skip_space(s);
    char *ignored;
    char c = s->at < s->end ? *s->at : 0;
    if (c == '"') return scan_string(s, &ignored, "");
    if (c == '{' || c == '[') {
        char close = c == '{' ? '}' : ']';
        s->at++;
        if (accept(s, close)) return true;
        do {
            if (c == '{' && !(scan_string(s, &ignored, "before a name") && want(s, ':', "after a name")))
                return false;
            if (!skip_value(s, depth + 1)) return false;
        } while (accept(s, ','));
        return want(s, close, "at the end of a list");
    }
    static const char *const words[] = {"true", "false", "null"};
    for (int k = 0; k < 3; k++) {
        size_t n = strlen(words[k]);
        if ((size_t)(s->end - s->at) >= n && !memcmp(s->at, words[k], n)) return s->at += n, true;
    }
    char *p =
        s->at + (c == '-'); /* a number: -? int frac? exp? ; *end is 0, so reading it stops every loop */
    if (*p < '0' || *p > '9') return BAD(s, "a JSON value expected");
    if (*p == '0') p++;
    else while (*p >= '0' && *p <= '9') p++;
    if (*p == '.') {
        if (*++p < '0' || *p > '9') return BAD(s, "a digit expected after the point");
        while (*p >= '0' && *p <= '9') p++;
    }
    if (*p == 'e' || *p == 'E') {
        p++;
        if (*p == '+' || *p == '-') p++;
        if (*p < '0' || *p > '9') return BAD(s, "a digit expected in the exponent");
        while (*p >= '0' && *p <= '9') p++;
    }
    s->at = p;
    return true;
}

/* ---- Header ---- */

typedef struct Entry { StTensor t; uint64_t begin, end; } Entry;

static bool scan_dtype(Scan *s, Entry *x) {
    char *name;
    if (!scan_string(s, &name, "before a dtype")) return false;
    for (int k = 0; k < ST_NDTYPES; k++)
        if (!strcmp(name, dtypes[k].name)) return x->t.dtype = (StDType)k, true;
    return BAD(s, "unknown dtype \"%s\"", shown(name));
}

static bool scan_shape(Scan *s, Entry *x) {
    if (!want(s, '[', "before the shape")) return false;
    x->t.ndim = 0;
    if (accept(s, ']')) return true;
    do {
        uint64_t d;
        if (!scan_size(s, &d, "a dimension")) return false;
        if (d > INT64_MAX) return BAD(s, "dimension %" PRIu64 " is above 2^63 - 1", d);
        if (x->t.ndim == ST_MAX_DIMS) return BAD(s, "more than %d dimensions", ST_MAX_DIMS);
        x->t.shape[x->t.ndim++] = (int64_t)d;
    } while (accept(s, ','));
    return want(s, ']', "after the shape");
}

static bool scan_offsets(Scan *s, Entry *x) {
    return want(s, '[', "before data_offsets") && scan_size(s, &x->begin, "an offset") &&
           want(s, ',', "between two offsets") && scan_size(s, &x->end, "an offset") &&
           want(s, ']', "after two offsets");
}

static bool scan_tensor(Scan *s, Entry *x) {
    static const char *const fields[] = {"dtype", "shape", "data_offsets"};
    bool seen[3] = {false};
    if (!want(s, '{', "before a tensor's description")) return false;
    if (!accept(s, '}')) {
        do {
            char *key;
            if (!scan_string(s, &key, "before a field name") || !want(s, ':', "after a field name"))
                return false;
            int k = 0;
            while (k < 3 && strcmp(key, fields[k])) k++;
            if (k < 3 && seen[k]) return BAD(s, "\"%s\" twice", key);
            if (k < 3) seen[k] = true;
            if (!(k == 0   ? scan_dtype(s, x)
                  : k == 1 ? scan_shape(s, x)
                  : k == 2 ? scan_offsets(s, x)
                           : skip_value(s, 0)))
                return false;
        } while (accept(s, ','));
        if (!want(s, '}', "after a tensor's description")) return false;
    }
    for (int k = 0; k < 3; k++)
        if (!seen[k]) return BAD(s, "no \"%s\"", fields[k]);
    return true;
}

static bool scan_metadata(Scan *s, SafeTensors *st, int64_t *cap) {
    skip_space(s);
    if (s->end - s->at >= 4 && !memcmp(s->at, "null", 4))
        return s->at += 4, true; /* the reference takes it */
    if (!want(s, '{', "before __metadata__")) return false;
    if (accept(s, '}')) return true;
    do {
        char *key, *value;
        if (!scan_string(s, &key, "before a __metadata__ key") || !want(s, ':', "after a __metadata__ key"))
            return false;
        skip_space(s);
        if (s->at == s->end || *s->at != '"')
            return BAD(s, "__metadata__ value of \"%s\" is not a string (the format allows only strings)",
                       shown(key));
        if (!scan_string(s, &value, "before a __metadata__ value")) return false;
        GROW(st->metadata, *cap, st->nmetadata + 1);
        st->metadata[st->nmetadata][0] = key;
        st->metadata[st->nmetadata++][1] = value;
    } while (accept(s, ','));
    return want(s, '}', "after __metadata__");
}

static int by_first_string(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Duplicates are found by sorting a copy: the file's order of metadata is worth keeping. */
static bool check_metadata(const Scan *s, const SafeTensors *st) {
    size_t n = (size_t)st->nmetadata;
    char **keys = xcalloc(n, sizeof *keys);
    for (size_t i = 0; i < n; i++) keys[i] = st->metadata[i][0];
    qsort(keys, n, sizeof *keys, by_first_string);
    bool ok = true;
    for (size_t i = 1; ok && i < n; i++)
        if (!strcmp(keys[i - 1], keys[i]))
            ok = fail_as(s->e, FAIL_MODEL, "%s: __metadata__ has the key \"%s\" twice", s->path,
                         shown(keys[i]));
    free(keys);
    return ok;
}

static int by_offset(const void *a, const void *b) {
    const Entry *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end)
        return x->end < y->end ? -1 : 1; /* the empty tensor before the one that starts there too */
    return strcmp(x->t.name, y->t.name);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const StTensor *)a)->name, ((const StTensor *)b)->name);
}

/* Offsets contiguous from 0 to the end of the file, each tensor as long as its shape and dtype say. */
static bool check_layout(const Scan *s, Entry *x, size_t n, uint64_t data_bytes) {
    if (n) qsort(x, n, sizeof *x, by_offset); /* x is NULL when there is nothing to sort */
    uint64_t at = 0;
    for (size_t i = 0; i < n; i++) {
        const StTensor *t = &x[i].t;
        const char *name = shown(t->name);
        if (x[i].end < x[i].begin)
            return fail_as(s->e, FAIL_MODEL, "%s: tensor %s ends at %" PRIu64 " before it begins at %" PRIu64,
                           s->path, name, x[i].end, x[i].begin);
        if (x[i].begin != at)
            return fail_as(s->e, FAIL_MODEL,
                           "%s: tensor %s begins at %" PRIu64 " but the one before it ends at %" PRIu64
                           " (%s; tensors must lie back to back)",
                           s->path, name, x[i].begin, at, x[i].begin < at ? "an overlap" : "a hole");
        at = x[i].end;
        uint64_t values = 1, bits;
        bool over = false; /* in the reference's order: 0 first saves a huge shape, 0 last does not */
        for (int d = 0; d < t->ndim; d++)
            over |= __builtin_mul_overflow(values, (uint64_t)t->shape[d], &values);
        over |= __builtin_mul_overflow(values, st_dtype_bits(t->dtype), &bits);
        if (over)
            return fail_as(s->e, FAIL_MODEL, "%s: tensor %s: the shape's product overflows 64 bits", s->path,
                           name);
        if (bits % 8)
            return fail_as(s->e, FAIL_MODEL,
                           "%s: tensor %s: %" PRIu64 " values of %s do not fill whole bytes", s->path, name,
                           values, st_dtype_name(t->dtype));
        if (bits / 8 != x[i].end - x[i].begin)
            return fail_as(s->e, FAIL_MODEL,
                           "%s: tensor %s: %" PRIu64 " values of %s are %" PRIu64
                           " bytes, its offsets give %" PRIu64,
                           s->path, name, values, st_dtype_name(t->dtype), bits / 8, x[i].end - x[i].begin);
    }
    if (at != data_bytes)
        return fail_as(s->e, FAIL_MODEL,
                       "%s: the tensors end at %" PRIu64 ", the file has %" PRIu64 " bytes of data (%s)",
                       s->path, at, data_bytes, at > data_bytes ? "truncated?" : "bytes nobody owns");
    return true;
}

/* Strict: no overlong forms, surrogates or values above U+10FFFF. The offset of the first bad byte, or n. */
static size_t utf8_valid(const uint8_t *p, size_t n) {
    size_t i = 0;
    while (i < n) {
        uint8_t c = p[i];
        int k = c < 0x80                ? 0
                : c >= 0xc2 && c < 0xe0 ? 1
                : c >= 0xe0 && c < 0xf0 ? 2
                : c >= 0xf0 && c < 0xf5 ? 3
                                        : -1;
        if (k < 0 || (size_t)k >= n - i) return i;
        for (int j = 1; j <= k; j++)
            if ((p[i + (size_t)j] & 0xc0) != 0x80) return i;
        if ((c == 0xe0 && p[i + 1] < 0xa0) || (c == 0xed && p[i + 1] > 0x9f) ||
            (c == 0xf0 && p[i + 1] < 0x90) || (c == 0xf4 && p[i + 1] > 0x8f))
            return i;
        i += (size_t)k + 1;
    }
    return n;
}

static bool scan_header(Scan *s, SafeTensors *st, uint64_t data_bytes) {
    Entry *x = NULL;
    int64_t n = 0, cap = 0, metacap = 0;
    bool ok = false, meta_seen = false;
    if (s->at == s->end || *s->at != '{') {
        BAD(s, "a header begins with '{' (is this a safetensors file?)");
        goto out;
    }
    s->at++;
    if (!accept(s, '}')) {
        do {
            char *name;
            s->tensor = NULL;
            if (!scan_string(s, &name, "before a tensor's name") || !want(s, ':', "after a tensor's name"))
                goto out;
            if (!strcmp(name, "__metadata__")) {
                if (meta_seen) { BAD(s, "__metadata__ twice"); goto out; }
                meta_seen = true;
                if (!scan_metadata(s, st, &metacap)) goto out;
                continue;
            }
            s->tensor = name;
            GROW(x, cap, n + 1);
            x[n] = (Entry){.t.name = name};
            if (!scan_tensor(s, &x[n])) goto out;
            n++;
        } while (accept(s, ','));
        s->tensor = NULL;
        if (!want(s, '}', "at the end of the header")) goto out;
    }
    skip_space(s);
    if (s->at != s->end) { BAD(s, "text after the header's closing brace"); goto out; }
    if (!check_metadata(s, st) || !check_layout(s, x, (size_t)n, data_bytes)) goto out;
    st->tensors = xcalloc((size_t)n, sizeof *st->tensors);
    for (int64_t i = 0; i < n; i++) {
        st->tensors[i] = x[i].t;
        st->tensors[i].data = st->base + (st->size - data_bytes) + x[i].begin;
        st->tensors[i].bytes = x[i].end - x[i].begin;
    }
    st->ntensors = (int)n; /* a header of 100 MB holds two million at most */
    qsort(st->tensors, (size_t)n, sizeof *st->tensors, by_name);
    ok = true;
    for (int64_t i = 1; ok && i < n; i++)
        if (!strcmp(st->tensors[i - 1].name, st->tensors[i].name))
            ok = fail_as(s->e, FAIL_MODEL, "%s: two tensors are named %s", s->path,
                         shown(st->tensors[i].name));
out:
    free(x);
    return ok;
}

static bool open_bytes(SafeTensors *st, Error *e) {
    uint64_t n = 0;
    if (st->size < 8)
        return fail_as(e, FAIL_MODEL, "%s: %zu bytes are too few for a safetensors file", st->path, st->size);
    for (int i = 7; i >= 0; i--) n = n << 8 | st->base[i];
    if (n > ST_MAX_HEADER)
        return fail_as(e, FAIL_MODEL,
                       "%s: the header claims %" PRIu64 " bytes, at most %u are allowed (is this a "
                       "safetensors file? .bin and .pt files are pickles, convert them first)",
                       st->path, n, ST_MAX_HEADER);
    if (n > st->size - 8)
        return fail_as(e, FAIL_MODEL,
                       "%s: the header claims %" PRIu64 " bytes, the file has %zu after its length "
                       "(truncated?)",
                       st->path, n, st->size - 8);
    size_t bad = utf8_valid(st->base + 8, n);
    if (bad < n) return fail_as(e, FAIL_MODEL, "%s: header byte %zu is not UTF-8", st->path, bad);
    st->header = xcalloc(n + 1, 1);
    memcpy(st->header, st->base + 8, n);
    Scan s = {.path = st->path, .begin = st->header, .at = st->header, .end = st->header + n, .e = e};
    return scan_header(&s, st, st->size - 8 - n);
}

bool st_open_memory(SafeTensors *st, const void *data, size_t size, const char *path, Error *e) {
    *st = (SafeTensors){.path = xstrdup(path), .base = data, .size = size};
    if (open_bytes(st, e)) return true;
    st_close(st);
    return false;
}

bool st_open(SafeTensors *st, const char *path, Error *e) {
    *st = (SafeTensors){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return fail_as(e, FAIL_MODEL, "%s: %s", path, strerror(errno));
    struct stat info;
    if (fstat(fd, &info) || !S_ISREG(info.st_mode)) {
        close(fd);
        return fail_as(e, FAIL_MODEL, "%s: not a regular file", path);
    }
    size_t size = (size_t)info.st_size;
    if (size < 8) {
        close(fd);
        return fail_as(e, FAIL_MODEL, "%s: %zu bytes are too few for a safetensors file", path, size);
    }
    void *p = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
    int err = errno;
    close(fd); /* the mapping keeps the file */
    if (p == MAP_FAILED)
        return fail_as(e, FAIL_MODEL, "%s: cannot map %zu bytes: %s", path, size, strerror(err));
    *st = (SafeTensors){.path = xstrdup(path), .base = p, .size = size, .mapped = true};
    if (open_bytes(st, e)) return true;
    st_close(st);
    return false;
}

/* Opens shard `file` of the index at `path`, unless it is open already. */
static SafeTensors *open_shard(SafeTensors *st, const char *path, const char *file, Error *e) {
    char full[4096];
    const char *slash = strrchr(path, '/');
    snprintf(full, sizeof full, "%.*s%s", slash ? (int)(slash + 1 - path) : 0, path, file);
    for (int i = 0; i < st->nshards; i++)
        if (!strcmp(st->shard[i].path, full)) return &st->shard[i];
    if (strchr(file, '/') || strlen(path) + strlen(file) >= sizeof full) {
        fail_as(e, FAIL_MODEL, "%s: \"%.200s\" is not the name of a file in the same folder", path, file);
        return NULL;
    }
    st->shard = xrealloc(st->shard, (size_t)st->nshards + 1, sizeof *st->shard);
    if (!st_open(&st->shard[st->nshards], full, e)) return NULL;
    return &st->shard[st->nshards++];
}

static bool read_index(SafeTensors *st, const char *path, json_t *map, Error *e) {
    const char *name;
    json_t *file;
    int64_t there = 0;
    if (!json_is_object(map)) return fail_as(e, FAIL_MODEL, "%s: no \"weight_map\" of tensors to files", path);
    st->tensors = xcalloc(json_object_size(map) + 1, sizeof *st->tensors);
    json_object_foreach(map, name, file) {
        if (!json_is_string(file)) return fail_as(e, FAIL_MODEL, "%s: the file of tensor \"%.200s\" is not a string", path, name);
        const SafeTensors *shard = open_shard(st, path, json_string_value(file), e);
        if (!shard) return false;
        const StTensor *t = st_find(shard, name);
        if (!t) return fail_as(e, FAIL_MODEL, "%s has no tensor %.200s, which %s promises", shard->path, name, path);
        st->tensors[st->ntensors++] = *t;
    }
    for (int i = 0; i < st->nshards; i++) there += st->shard[i].ntensors;
    if (there != st->ntensors)
        return fail_as(e, FAIL_MODEL, "%s: the index has %d tensors, its %d files %" PRId64, path, st->ntensors, st->nshards, there);
    if (st->ntensors) qsort(st->tensors, (size_t)st->ntensors, sizeof *st->tensors, by_name);
    return true;
}

bool st_open_index(SafeTensors *st, const char *path, Error *e) {
    *st = (SafeTensors){0};
    char *data;
    size_t size;
    json_error_t why;
    if (!file_read(path, &data, &size, ST_MAX_HEADER, e)) {
        if (e) e->status = FAIL_MODEL;
        return false;
    }
    json_t *root = json_loadb(data, size, JSON_REJECT_DUPLICATES, &why);
    free(data);
    st->path = xstrdup(path);
    bool ok = root ? read_index(st, path, json_object_get(root, "weight_map"), e) : fail_as(e, FAIL_MODEL, "%s:%d: %s", path, why.line, why.text);
    json_decref(root);
    if (!ok) st_close(st);
    return ok;
}

void st_close(SafeTensors *st) {
    for (int i = 0; i < st->nshards; i++) st_close(&st->shard[i]);
    free(st->shard);
    if (st->mapped) munmap((void *)st->base, st->size);
    free(st->tensors);
    free(st->metadata);
    free(st->header);
    free(st->path);
    *st = (SafeTensors){0};
}

void st_forget(const SafeTensors *st, const StTensor *t) {
    if (!st->mapped && !st->nshards) return; /* the caller's memory: it would be emptied */
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const uintptr_t from = ((uintptr_t)t->data + page - 1) / page * page,
                    to = ((uintptr_t)t->data + t->bytes) / page * page;
    if (from < to) madvise((void *)from, to - from, MADV_DONTNEED); /* refused: they stay, no harm */
}

const StTensor *st_find(const SafeTensors *st, const char *name) {
    if (!st->ntensors) return NULL;
    StTensor key = {.name = name};
    return bsearch(&key, st->tensors, (size_t)st->ntensors, sizeof *st->tensors, by_name);
}

void st_remove(SafeTensors *st, const char *name) {
    StTensor *t = (StTensor *)st_find(st, name);
    if (t) memmove(t, t + 1, (size_t)(st->tensors + --st->ntensors - t) * sizeof *t);
}

void st_rename(SafeTensors *st, const char *name, const char *to) {
    CHECK(!st_find(st, to), "%s: two tensors named %s", st->path, to);
    StTensor *t = (StTensor *)st_find(st, name);
    if (t) t->name = to;
    qsort(st->tensors, (size_t)st->ntensors, sizeof *st->tensors, by_name);
}

const char *st_metadata(const SafeTensors *st, const char *key) {
    for (int i = 0; i < st->nmetadata; i++)
        if (!strcmp(st->metadata[i][0], key)) return st->metadata[i][1];
    return NULL;
}

int64_t st_numel(const StTensor *t) {
    int64_t n = 1;
    for (int d = 0; d < t->ndim; d++)
        if (t->shape[d] == 0)
            return 0; /* first: [2^62, 2, 0] is legal, and its product passes 2^63 on the way */
    for (int d = 0; d < t->ndim; d++) n *= t->shape[d];
    return n;
}

/* ---- Values as f32 ---- */

float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exp = h >> 10 & 31, frac = h & 1023, bits;
    if (exp == 31) bits = sign | 0x7f800000 | frac << 13;
    else if (exp) bits = sign | (exp + 112) << 23 | frac << 13;
    else { /* subnormal: frac * 2^-24, exact in f32 */
        float v = (float)frac * 0x1p-24f;
        memcpy(&bits, &v, 4);
        bits |= sign;
    }
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static float bf16_widen(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

/* memcpy per value because a file may place a tensor at any byte; the compiler makes it one load. */
#define CONVERT(T, expr)                                                                                     \
    for (int64_t i = 0; i < n; i++) {                                                                        \
        T v;                                                                                                 \
        memcpy(&v, p + (size_t)i * sizeof v, sizeof v);                                                      \
        dst[i] = (float)(expr);                                                                              \
    }                                                                                                        \
    return true

bool st_to_f32(float *dst, const StTensor *t, Error *e) {
    const uint8_t *p = t->data;
    int64_t n = st_numel(t);
    if (n == 0) return true;
    switch (t->dtype) {
    case ST_F32: memcpy(dst, p, t->bytes); return true;
    case ST_F16: CONVERT(uint16_t, f16_to_f32(v));
    case ST_BF16: CONVERT(uint16_t, bf16_widen(v));
    case ST_F64: CONVERT(double, v);
    case ST_I8: CONVERT(int8_t, v);
    case ST_U8: CONVERT(uint8_t, v);
    case ST_BOOL: CONVERT(uint8_t, v != 0);
    case ST_I16: CONVERT(int16_t, v);
    case ST_U16: CONVERT(uint16_t, v);
    case ST_I32: CONVERT(int32_t, v);
    case ST_U32: CONVERT(uint32_t, v);
    case ST_I64: CONVERT(int64_t, v);
    case ST_U64: CONVERT(uint64_t, v);
    default:
        return fail_as(e, FAIL_MODEL,
                       "tensor %s: %s values cannot be read as f32 (convert the file to F32, F16 or BF16)",
                       shown(t->name), st_dtype_name(t->dtype));
    }
}

/* ---- Writer ---- */

static int by_width_then_name(const void *a, const void *b) {
    const StTensor *x = *(const StTensor *const *)a, *y = *(const StTensor *const *)b;
    if (x->dtype != y->dtype) return x->dtype > y->dtype ? -1 : 1;
    return strcmp(x->name, y->name); /* bytewise on UTF-8, as Rust compares strings */
}

typedef struct Text { char *p; int64_t n, cap; } Text;

static void text_add(Text *t, const char *s, size_t n) {
    GROW(t->p, t->cap, t->n + (int64_t)n);
    memcpy(t->p + t->n, s, n);
    t->n += (int64_t)n;
}

static void text_puts(Text *t, const char *s) { text_add(t, s, strlen(s)); }

static void text_string(Text *t, const char *s) {
    CHECK(utf8_valid((const uint8_t *)s, strlen(s)) == strlen(s),
          "safetensors: name or metadata \"%s\" is not UTF-8", s);
    text_puts(t, "\"");
    static const char plain[] = "\b\f\n\r\t\"\\", letter[] = "bfnrt\"\\";
    for (; *s; s++) {
        char esc[8];
        const char *special = strchr(plain, *s);
        if (special) {
            snprintf(esc, sizeof esc, "\\%c", letter[special - plain]);
            text_puts(t, esc);
        } else if ((unsigned char)*s < 32) {
            snprintf(esc, sizeof esc, "\\u%04x", *s);
            text_puts(t, esc);
        } else {
            text_add(t, s, 1);
        }
    }
    text_puts(t, "\"");
}

static void write_header(Text *h, const StTensor *const *order, int n, const char *const (*metadata)[2],
                         int nmeta) {
    char num[64];
    uint64_t at = 0;
    text_add(h, "\0\0\0\0\0\0\0\0{", 9); /* the length comes last */
    if (nmeta) {
        text_puts(h, "\"__metadata__\":{");
        for (int i = 0; i < nmeta; i++) {
            if (i) text_puts(h, ",");
            text_string(h, metadata[i][0]);
            text_puts(h, ":");
            text_string(h, metadata[i][1]);
        }
        text_puts(h, n ? "}," : "}");
    }
    for (int i = 0; i < n; i++) {
        const StTensor *t = order[i];
        if (i) text_puts(h, ",");
        text_string(h, t->name);
        text_puts(h, ":{\"dtype\":\"");
        text_puts(h, st_dtype_name(t->dtype));
        text_puts(h, "\",\"shape\":[");
        for (int d = 0; d < t->ndim; d++) {
            snprintf(num, sizeof num, "%s%" PRId64, d ? "," : "", t->shape[d]);
            text_puts(h, num);
        }
        snprintf(num, sizeof num, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", at, at + t->bytes);
        text_puts(h, num);
        at += t->bytes;
    }
    text_puts(h, "}");
    while (h->n % 8) text_puts(h, " ");
    uint64_t length = (uint64_t)h->n - 8;
    for (int i = 0; i < 8; i++) h->p[i] = (char)(length >> 8 * i);
}

static bool write_all(int fd, const void *data, size_t n) {
    const char *p = data;
    while (n) {
        ssize_t k = write(fd, p, MIN(n, (size_t)1 << 30));
        if (k < 0 && errno == EINTR) continue;
        if (k == 0) errno = ENOSPC;
        if (k <= 0) return false;
        p += k;
        n -= (size_t)k;
    }
    return true;
}

/* The rename itself must survive a power cut: fsync the folder. A file system that cannot is no error. */
static void sync_folder_of(const char *path) {
    char dir[PATH_MAX];
    snprintf(dir, sizeof dir, "%s", path);
    char *slash = strrchr(dir, '/');
    if (slash) slash[slash == dir] = 0;
    int fd = open(slash ? dir : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;
    fsync(fd);
    close(fd);
}

bool st_write(const char *path, const StTensor *tensors, int n, const char *const (*metadata)[2], int nmeta,
              Error *e) {
    const StTensor **order = xcalloc((size_t)n, sizeof *order);
    uint64_t bytes = 0;
    for (int i = 0; i < n; i++) {
        const StTensor *t = order[i] = &tensors[i];
        CHECK((unsigned)t->dtype < ST_NDTYPES && t->ndim >= 0 && t->ndim <= ST_MAX_DIMS,
              "%s: dtype %d, %d dimensions", t->name, (int)t->dtype, t->ndim);
        CHECK((uint64_t)st_numel(t) * st_dtype_bits(t->dtype) == (uint64_t)t->bytes * 8,
              "%s: %" PRId64 " values of %s in %zu bytes", t->name, st_numel(t), st_dtype_name(t->dtype),
              t->bytes);
        CHECK(strcmp(t->name, "__metadata__"), "a tensor named %s", t->name);
        bytes += t->bytes;
    }
    qsort(order, (size_t)n, sizeof *order, by_width_then_name);
    const char **names = xcalloc((size_t)n, sizeof *names);
    for (int i = 0; i < n; i++) names[i] = order[i]->name;
    qsort(names, (size_t)n, sizeof *names, by_first_string);
    for (int i = 1; i < n; i++)
        CHECK(strcmp(names[i - 1], names[i]), "%s: two tensors named %s", path, names[i]);
    free(names);

    Text h = {0};
    write_header(&h, order, n, metadata, nmeta);
    bytes += (uint64_t)h.n;
    char tmp[PATH_MAX];
    int fd = -1;
    bool ok = false;
    if (h.n - 8 > ST_MAX_HEADER) {
        fail_as(e, FAIL_MODEL, "%s: a header of %" PRId64 " bytes is above the format's %u", path, h.n - 8,
                ST_MAX_HEADER);
        goto out;
    }
    if (snprintf(tmp, sizeof tmp, "%s.tmp", path) >= (int)sizeof tmp) {
        fail_as(e, FAIL_DISK, "%s: path too long", path);
        goto out;
    }
    fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) {
        fail_as(e, FAIL_DISK, "%s: cannot write: %s", tmp, strerror(errno));
        goto out;
    }
    /* Asks for the room first, so that a full disk is known before gigabytes are written; file systems that
     * cannot promise room say EOPNOTSUPP and find out while writing. */
    ok = fallocate(fd, 0, 0, (off_t)bytes) == 0 || (errno != ENOSPC && errno != EFBIG && errno != EDQUOT);
    ok = ok && write_all(fd, h.p, (size_t)h.n);
    for (int i = 0; ok && i < n; i++) ok = write_all(fd, order[i]->data, order[i]->bytes);
    ok = ok && fsync(fd) == 0;
    int err = errno;
    if (close(fd) && ok) ok = false, err = errno;
    if (ok && rename(tmp, path)) ok = false, err = errno;
    if (ok) {
        sync_folder_of(path);
    } else {
        unlink(tmp);
        fail_as(e, FAIL_DISK, "%s: cannot write %" PRIu64 " bytes: %s%s", path, bytes, strerror(err),
                err == ENOSPC || err == EDQUOT ? " (the old file is untouched; free some room)" : "");
    }
out:
    free(h.p);
    free(order);
    return ok;
}
