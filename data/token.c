/* token.c -- WordPiece and byte-level BPE. Contract: token.h.
 *
 * Reading order: the vocabulary (a hash table), Unicode as the reference sees it, BERT, CLIP, the files.
 * Unicode properties come from utf8proc. The reference's tables are of other Unicode versions than ours, so
 * five short lists name the code points where they part; make_token.py --tables prints them anew.
 */
#include "data/token.h"

#include <jansson.h>
#include <utf8proc.h>

#define MAX_FILE   ((size_t)16 << 20) /* published vocabularies are below 10 MB */
#define MAX_ID     (1 << 22)
#define MAX_STRETCH 1024 /* CLIP: characters without white space normalised at once */
#define MAX_WORD   100   /* BERT: characters of a word, longer is [UNK]; the reference's number */

/* ---- Vocabulary ---- */

typedef struct Entry { uint32_t at, len; int id; } Entry; /* text in Vocab.blob, zero-terminated there */

typedef struct Vocab {
    char *blob;
    int64_t nblob, blobcap;
    Entry *entry;
    int64_t n, cap;
    uint32_t *slot; /* open addressing: index into entry + 1, 0 = free; a power of two, at most half full */
    uint32_t mask;
    uint32_t longest; /* bytes */
} Vocab;

static int vocab_find(const Vocab *v, const char *s, size_t n) {
    if (!v->slot || n > v->longest) return -1;
    for (uint32_t k = (uint32_t)hash_bytes(s, n, 0);; k++) {
        uint32_t i = v->slot[k & v->mask];
        if (!i) return -1;
        const Entry *x = &v->entry[i - 1];
        if (x->len == n && !memcmp(v->blob + x->at, s, n)) return x->id;
    }
}

static void vocab_add(Vocab *v, const char *s, size_t n, int id) {
    if (!v->slot || (uint64_t)(v->n + 1) * 2 > (uint64_t)v->mask + 1) { /* grow: hash everything again */
        uint32_t slots = v->slot ? (v->mask + 1) * 2 : 1024;
        free(v->slot);
        v->slot = xcalloc(slots, sizeof *v->slot);
        v->mask = slots - 1;
        for (int64_t i = 0; i < v->n; i++) {
            uint32_t k = (uint32_t)hash_bytes(v->blob + v->entry[i].at, v->entry[i].len, 0);
            while (v->slot[k & v->mask]) k++;
            v->slot[k & v->mask] = (uint32_t)i + 1;
        }
    }
    uint32_t k = (uint32_t)hash_bytes(s, n, 0);
    for (; v->slot[k & v->mask]; k++) {
        Entry *x = &v->entry[v->slot[k & v->mask] - 1];
        if (x->len == n && !memcmp(v->blob + x->at, s, n)) {
            x->id = id; /* twice in a vocab.txt: the last line counts, as in the reference */
            return;
        }
    }
    GROW(v->entry, v->cap, v->n + 1);
    GROW(v->blob, v->blobcap, v->nblob + (int64_t)n + 1);
    memcpy(v->blob + v->nblob, s, n);
    v->blob[v->nblob + (int64_t)n] = 0;
    v->entry[v->n++] = (Entry){.at = (uint32_t)v->nblob, .len = (uint32_t)n, .id = id};
    v->nblob += (int64_t)n + 1;
    v->slot[k & v->mask] = (uint32_t)v->n;
    v->longest = MAX(v->longest, (uint32_t)n);
}

/* One row of merges.txt: the pair (left, right) of ids becomes `id`; rank 0 goes first. */
typedef struct Merge { int left, right, rank, id; } Merge;

#define MAX_SPECIAL 16

struct Tokenizer {
    TokenKind kind;
    Vocab vocab;
    int *by_id; /* id -> entry index + 1 */
    int size;
    int first, last, pad, unk;
    struct { char text[32]; size_t len; int id; } special[MAX_SPECIAL]; /* recognised in the raw text */
    int nspecial;
    Merge *merge; /* CLIP: open addressing by (left, right), id < 0 = free */
    uint32_t merge_mask;
    int byte_id[256], byte_end_id[256]; /* the token of a byte inside a word, and at its end (with </w>) */
};

/* ---- Unicode as the reference sees it ---- */

typedef struct Range { int32_t from, to; } Range;

/* Format characters, punctuation and marks that came after Unicode 8: unknown to the reference's BERT rules. */
static const Range bert_unknown[] = {
    {0x61d, 0x61d},     {0x7fd, 0x7fd},     {0x890, 0x8e2},     {0x9fd, 0x9fe},     {0xa76, 0xa76},
    {0xafa, 0xaff},     {0xb55, 0xb55},     {0xc04, 0xc3c},     {0xc77, 0xc77},     {0xc84, 0xc84},
    {0xd00, 0xd00},     {0xd3b, 0xd3c},     {0xd81, 0xd81},     {0xeba, 0xeba},     {0xece, 0xece},
    {0x180f, 0x1886},   {0x1abf, 0x1ace},   {0x1b7d, 0x1b7e},   {0x1df6, 0x1dfb},   {0x2e43, 0x2e5d},
    {0xa82c, 0xa82c},   {0xa8c5, 0xa8c5},   {0xa8ff, 0xa8ff},   {0xa9bd, 0xa9bd},   {0x10d24, 0x10f89},
    {0x11070, 0x11074}, {0x110c2, 0x110cd}, {0x111c9, 0x111c9}, {0x111cf, 0x111cf}, {0x1123e, 0x11241},
    {0x1133b, 0x1133b}, {0x11438, 0x1145e}, {0x11660, 0x1166c}, {0x116b9, 0x116b9}, {0x1182f, 0x11fff},
    {0x12ff1, 0x13455}, {0x16e97, 0x16f4f}, {0x16fe2, 0x16fe4}, {0x1cf00, 0x1cf46}, {0x1e000, 0x1e4ef},
    {0x1e944, 0x1e95f},
};
/* Marks and compositions that came after Unicode 9: the reference neither reorders nor composes nor splits
 * them. */
static const Range inert[] = {
    {0x7fd, 0x7fd}, {0x898, 0x8d3}, {0x9fe, 0x9fe}, {0xc3c, 0xc3c}, {0xd3b, 0xd3c}, {0xeba, 0xeba},
    {0x1715, 0x1715}, {0x1abf, 0x1ace}, {0x1df6, 0x1dfa}, {0xa82c, 0xa82c}, {0x10d24, 0x10f85},
    {0x11070, 0x11070}, {0x1133b, 0x1133b}, {0x1145e, 0x1145e}, {0x11839, 0x11a99}, {0x11d42, 0x11f42},
    {0x16ff0, 0x16ff1}, {0x1e08f, 0x1e4ef},
};
/* Letters and numbers of Unicode 16 and 17, which utf8proc 2.8 does not know and the reference does. */
static const Range new_letters[] = {
    {0x1c89, 0x1c8a}, {0xa7cb, 0xa7cd}, {0xa7da, 0xa7dc}, {0x105c0, 0x105f3}, {0x10d4a, 0x10d65},
    {0x10d6f, 0x10d85}, {0x10ec2, 0x10ec4}, {0x11380, 0x11389}, {0x1138b, 0x1138b}, {0x1138e, 0x1138e},
    {0x11390, 0x113b5}, {0x113b7, 0x113b7}, {0x113d1, 0x113d1}, {0x113d3, 0x113d3}, {0x11bc0, 0x11be0},
    {0x13460, 0x143fa}, {0x16100, 0x1611d}, {0x16d40, 0x16d6c}, {0x18cff, 0x18cff}, {0x1e5d0, 0x1e5ed},
    {0x1e5f0, 0x1e5f0}, {0x2ebf0, 0x2ee5d},
};
static const Range new_numbers[] = {
    {0x10d40, 0x10d49}, {0x116d0, 0x116e3}, {0x11bf0, 0x11bf9}, {0x16130, 0x16139}, {0x16d70, 0x16d79},
    {0x1ccf0, 0x1ccf9}, {0x1e5f1, 0x1e5fa},
};
static const struct { int32_t from, to, lower; } new_capitals[] = {
    {0x1c89, 0x1c89, 0x1c8a}, {0xa7cb, 0xa7cb, 0x264}, {0xa7cc, 0xa7cc, 0xa7cd}, {0xa7ce, 0xa7ce, 0xa7cf},
    {0xa7d2, 0xa7d2, 0xa7d3}, {0xa7d4, 0xa7d4, 0xa7d5}, {0xa7da, 0xa7da, 0xa7db}, {0xa7dc, 0xa7dc, 0x19b},
    {0x10d50, 0x10d65, 0x10d70}, {0x16ea0, 0x16eb8, 0x16ebb},
};

static bool in_ranges(const Range *r, int n, int32_t c) {
    int lo = 0;
    while (n > 0) { /* the last range that begins at or before c */
        int half = n / 2;
        if (r[lo + half].from <= c) lo += half + 1, n -= half + 1;
        else n = half;
    }
    return lo > 0 && c <= r[lo - 1].to;
}
#define IN(table, c) ((c) >= table[0].from && in_ranges(table, COUNT_OF(table), c))

static bool is_space(int32_t c) { /* the property White_Space */
    return (c >= 9 && c <= 13) || c == 32 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
           c == 0x3000;
}

static int32_t lower(int32_t c) {
    if (c < 128) return c >= 'A' && c <= 'Z' ? c + 32 : c;
    for (int i = 0; i < COUNT_OF(new_capitals); i++)
        if (c >= new_capitals[i].from && c <= new_capitals[i].to)
            return new_capitals[i].lower + (c - new_capitals[i].from);
    return utf8proc_tolower(c);
}

/* Canonical decomposition of one character into at most 4; returns how many. */
static int decompose(int32_t c, int32_t out[4]) {
    out[0] = c;
    if (c < 0xc0 || IN(inert, c)) return 1;
    int boundary = 0;
    utf8proc_ssize_t n = utf8proc_decompose_char(c, out, 4, UTF8PROC_DECOMPOSE | UTF8PROC_STABLE, &boundary);
    CHECK(n >= 1 && n <= 4, "character %x decomposes into %zd", (unsigned)c, n);
    return (int)n;
}

static int combining_class(int32_t c) {
    return c < 0x300 || IN(inert, c) ? 0 : utf8proc_get_property(c)->combining_class;
}

/* The next character of p[0 .. n), n >= 1; returns its bytes. *c = -1 for a malformed one, of which the
 * longest part that could have begun a character is taken ("maximal subpart", as Python does). */
static size_t utf8_next(const uint8_t *p, size_t n, int32_t *c) {
    uint8_t b = p[0], low = 0x80, high = 0xbf;
    *c = b;
    if (b < 0x80) return 1;
    *c = -1;
    int more = b >= 0xc2 && b < 0xe0 ? 1 : b >= 0xe0 && b < 0xf0 ? 2 : b >= 0xf0 && b < 0xf5 ? 3 : 0;
    if (!more) return 1;
    if (b == 0xe0) low = 0xa0;  /* overlong */
    if (b == 0xed) high = 0x9f; /* surrogates */
    if (b == 0xf0) low = 0x90;  /* overlong */
    if (b == 0xf4) high = 0x8f; /* above U+10FFFF */
    int32_t v = b & (0x3f >> more);
    for (int k = 1; k <= more; k++) {
        if ((size_t)k >= n || p[k] < low || p[k] > high) return (size_t)k;
        v = v << 6 | (p[k] & 0x3f);
        low = 0x80, high = 0xbf;
    }
    *c = v;
    return (size_t)more + 1;
}

/* ---- What both kinds share ---- */

typedef struct Out { int *ids; int n, max; } Out; /* max: without the last special token */

static void put(Out *o, int id) {
    if (o->n < o->max) o->ids[o->n++] = id;
}
static bool full(const Out *o) { return o->n >= o->max; }

/* A special token at p, or -1. */
static int special_at(const Tokenizer *t, const char *p, size_t n, size_t *len) {
    for (int i = 0; i < t->nspecial; i++)
        if (t->special[i].text[0] == *p && t->special[i].len <= n &&
            !memcmp(t->special[i].text, p, t->special[i].len)) {
            *len = t->special[i].len;
            return t->special[i].id;
        }
    return -1;
}

/* ---- BERT ---- */

typedef struct Word {
    int32_t c[MAX_WORD];
    uint8_t ccc[MAX_WORD]; /* canonical combining classes, to keep marks in canonical order */
    int n;                 /* counts on past MAX_WORD */
} Word;

/* Greedy longest match from the left; all of the word is one [UNK] when a rest matches nothing. */
static void flush_word(const Tokenizer *t, Word *w, Out *o) {
    int n = w->n;
    w->n = 0;
    if (n == 0) return;
    if (n > MAX_WORD) return put(o, t->unk);
    char text[2 + MAX_WORD * 4] = "##";
    int at[MAX_WORD + 1], piece[MAX_WORD], npieces = 0;
    at[0] = 2;
    for (int i = 0; i < n; i++)
        at[i + 1] = at[i] + (int)utf8proc_encode_char(w->c[i], (utf8proc_uint8_t *)text + at[i]);
    for (int from = 0, to; from < n; from = to) {
        int head = from ? 2 : 0, id = -1;
        char saved[2] = {text[at[from] - 2], text[at[from] - 1]};
        if (from)
            memcpy(text + at[from] - 2, "##", 2); /* over the bytes before: nobody needs them meanwhile */
        for (to = n; to > from; to--) {
            id = vocab_find(&t->vocab, text + at[from] - head, (size_t)(at[to] - at[from] + head));
            if (id >= 0) break;
        }
        if (from) memcpy(text + at[from] - 2, saved, 2);
        if (id < 0) return put(o, t->unk);
        piece[npieces++] = id;
    }
    for (int i = 0; i < npieces; i++) put(o, piece[i]);
}

static void word_add(Word *w, int32_t c, int ccc) {
    if (w->n >= MAX_WORD) {
        w->n = MAX_WORD + 1; /* too long, whatever follows */
        return;
    }
    int i = w->n++;
    for (; ccc && i > 0 && w->ccc[i - 1] > ccc; i--) w->c[i] = w->c[i - 1], w->ccc[i] = w->ccc[i - 1];
    w->c[i] = c;
    w->ccc[i] = (uint8_t)ccc;
}

static bool bert_drops(int32_t c) {
    if (c < 0x80) return (c < 32 && c != '\t' && c != '\n' && c != '\r') || c == 127;
    if (c == 0xfffd) return true;
    utf8proc_category_t k = utf8proc_category(c);
    return k == UTF8PROC_CATEGORY_CC || k == UTF8PROC_CATEGORY_CO ||
           (k == UTF8PROC_CATEGORY_CF && !IN(bert_unknown, c));
}

static bool bert_is_cjk(int32_t c) { /* the fifth range begins at 2B920, the reference's slip for 2B820 */
    return (c >= 0x4e00 && c <= 0x9fff) || (c >= 0x3400 && c <= 0x4dbf) || (c >= 0x20000 && c <= 0x2a6df) ||
           (c >= 0x2a700 && c <= 0x2b73f) || (c >= 0x2b740 && c <= 0x2b81f) ||
           (c >= 0x2b920 && c <= 0x2ceaf) || (c >= 0xf900 && c <= 0xfaff) || (c >= 0x2f800 && c <= 0x2fa1f);
}

static bool bert_is_punctuation(int32_t c) {
    if (c < 0x80)
        return (c >= 33 && c <= 47) || (c >= 58 && c <= 64) || (c >= 91 && c <= 96) || (c >= 123 && c <= 126);
    if (c == 0x166d || c == 0x111c9) return true; /* were punctuation in Unicode 8 */
    utf8proc_category_t k = utf8proc_category(c);
    return k >= UTF8PROC_CATEGORY_PC && k <= UTF8PROC_CATEGORY_PO && !IN(bert_unknown, c);
}

static bool bert_is_mark(int32_t c) {
    if (c < 0x300) return false;
    return c == 0x1734 || (utf8proc_category(c) == UTF8PROC_CATEGORY_MN && !IN(bert_unknown, c));
}

static void bert_char(const Tokenizer *t, int32_t c, Word *w, Out *o) {
    if (bert_drops(c)) return;
    if (is_space(c)) return flush_word(t, w, o);
    bool alone = bert_is_cjk(c);
    if (alone) flush_word(t, w, o);
    int32_t part[4];
    int n = decompose(c, part);
    for (int i = 0; i < n; i++) {
        if (bert_is_mark(part[i])) continue;
        int32_t l = lower(part[i]);
        if (bert_is_punctuation(l)) {
            flush_word(t, w, o);
            word_add(w, l, 0);
            flush_word(t, w, o);
        } else {
            word_add(w, l, combining_class(part[i]));
        }
    }
    if (alone) flush_word(t, w, o);
}

/* ---- CLIP ---- */

static const Merge *merge_find(const Tokenizer *t, int left, int right) {
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    key *= 0x9e3779b97f4a7c15u; /* Fibonacci hashing: the high bits are mixed */
    for (uint32_t k = (uint32_t)(key >> 32);; k++) {
        const Merge *m = &t->merge[k & t->merge_mask];
        if (m->id < 0) return NULL;
        if (m->left == left && m->right == right) return m;
    }
}

#define MAX_BYTES ((MAX_STRETCH + 4) * 4)

/* Merges the pair of the lowest rank, the leftmost first, until no pair has one. A scan per merge beats a
 * heap at the few bytes a word has. */
static void bpe(const Tokenizer *t, const uint8_t *b, int n, Out *o) {
    int id[MAX_BYTES], rank[MAX_BYTES]; /* rank[i]: of the pair (i, i + 1) */
    for (int i = 0; i < n; i++) id[i] = i + 1 < n ? t->byte_id[b[i]] : t->byte_end_id[b[i]];
#define RANK(i) ((m = (i) + 1 < n ? merge_find(t, id[i], id[(i) + 1]) : NULL) ? m->rank : INT32_MAX)
    const Merge *m;
    for (int i = 0; i < n; i++) rank[i] = RANK(i);
    for (;;) {
        int best = 0;
        for (int i = 1; i < n; i++)
            if (rank[i] < rank[best]) best = i;
        if (rank[best] == INT32_MAX) break;
        id[best] = merge_find(t, id[best], id[best + 1])->id;
        n--;
        memmove(id + best + 1, id + best + 2, (size_t)(n - best - 1) * sizeof *id);
        memmove(rank + best + 1, rank + best + 2, (size_t)(n - best - 1) * sizeof *rank);
        rank[best] = RANK(best);
        if (best) rank[best - 1] = RANK(best - 1);
    }
#undef RANK
    for (int i = 0; i < n && !full(o); i++) put(o, id[i]);
}

static void bpe_chars(const Tokenizer *t, const int32_t *c, int n, Out *o) {
    uint8_t bytes[MAX_BYTES];
    int nbytes = 0;
    for (int i = 0; i < n; i++) nbytes += (int)utf8proc_encode_char(c[i], bytes + nbytes);
    if (n && !full(o)) bpe(t, bytes, nbytes, o);
}

typedef enum CharClass { LETTER, NUMBER, OTHER } CharClass;

static CharClass char_class(int32_t c) {
    if (c < 0x80) return (c | 32) >= 'a' && (c | 32) <= 'z' ? LETTER : c >= '0' && c <= '9' ? NUMBER : OTHER;
    utf8proc_category_t k = utf8proc_category(c);
    if (k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO) return LETTER;
    if (k >= UTF8PROC_CATEGORY_ND && k <= UTF8PROC_CATEGORY_NO) return NUMBER;
    return IN(new_letters, c) ? LETTER : IN(new_numbers, c) ? NUMBER : OTHER;
}

static int literal_at(const int32_t *c, int n, const char *word) {
    int k = 0;
    for (; word[k]; k++)
        if (k >= n || c[k] != word[k]) return 0;
    return k;
}

/* The pattern <|startoftext|> | <|endoftext|> | 's 't 're 've 'm 'll 'd | letters+ | number | others+ . A
 * special token gets here only when lower-casing made it (the raw text's were taken out), and then a second
 * split of the reference's cuts it in three. */
static void clip_split(const Tokenizer *t, const int32_t *c, int n, Out *o) {
    static const char *const endings[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
    for (int i = 0, k; i < n && !full(o); i += k) {
        k = literal_at(c + i, n - i, "<|startoftext|>");
        if (!k) k = literal_at(c + i, n - i, "<|endoftext|>");
        if (k) {
            bpe_chars(t, c + i, 2, o);
            bpe_chars(t, c + i + 2, k - 4, o);
            bpe_chars(t, c + i + k - 2, 2, o);
            continue;
        }
        for (int e = 0; !k && c[i] == '\'' && e < COUNT_OF(endings); e++)
            k = literal_at(c + i, n - i, endings[e]);
        if (!k) {
            CharClass class = char_class(c[i]);
            for (k = 1; class != NUMBER && i + k < n && char_class(c[i + k]) == class; k++) {}
        }
        bpe_chars(t, c + i, k, o);
    }
}

typedef struct Stretch { int32_t c[MAX_STRETCH + 4]; int n; } Stretch; /* decomposed, no white space */

/* Canonical order, then composition, in place; returns the new length. */
static int compose(int32_t *c, int n) {
    if (n < 2) return n; /* nothing to order or to compose with */
    for (int i = 1; i < n; i++) {
        int32_t x = c[i];
        int class = combining_class(x), k = i;
        for (; class && k > 0 && combining_class(c[k - 1]) > class; k--) c[k] = c[k - 1];
        c[k] = x;
    }
    return (int)utf8proc_normalize_utf32(c, n, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
}

static void flush_stretch(const Tokenizer *t, Stretch *s, Out *o) {
    int32_t low[2 * COUNT_OF(s->c)];
    int n = 0;
    /* Characters that the reference's normaliser does not know part the text: nothing moves or composes
     * across. */
    for (int from = 0, to; from < s->n; from = to) {
        for (to = from; to < s->n && !IN(inert, s->c[to]); to++) {}
        int k = compose(s->c + from, to - from);
        CHECK(k >= 0 && k <= to - from, "composing %d characters gave %d", to - from, k);
        for (int i = from; i < from + k; i++) {
            low[n++] = lower(s->c[i]);
            if (s->c[i] == 0x130)
                low[n - 1] = 'i', low[n++] = 0x307; /* the one capital whose small form is two */
        }
        if (to < s->n) low[n++] = lower(s->c[to++]);
    }
    s->n = 0;
    clip_split(t, low, n, o);
}

static void clip_char(const Tokenizer *t, int32_t c, Stretch *s, Out *o) {
    if (is_space(c)) return flush_stretch(t, s, o);
    if (s->n >= MAX_STRETCH) flush_stretch(t, s, o);
    s->n += decompose(c, s->c + s->n);
}

int token_encode(const Tokenizer *t, const char *text, size_t len, int *ids, int max) {
    CHECK(max >= 2, "room for %d ids, two special tokens", max);
    Out o = {.ids = ids, .max = max - 1};
    union { Word word; Stretch stretch; } now;
    now.word.n = 0;
    if (t->kind == TOKEN_CLIP) now.stretch.n = 0;
    put(&o, t->first);
#define FLUSH() (t->kind == TOKEN_BERT ? flush_word(t, &now.word, &o) : flush_stretch(t, &now.stretch, &o))
    for (size_t i = 0, k = 0; i < len && !full(&o); i += k) {
        int32_t c;
        int id = special_at(t, text + i, len - i, &k);
        if (id >= 0) {
            FLUSH();
            put(&o, id);
            continue;
        }
        k = utf8_next((const uint8_t *)text + i, len - i, &c);
        if (c < 0) c = 0xfffd;
        if (t->kind == TOKEN_BERT) bert_char(t, c, &now.word, &o);
        else clip_char(t, c, &now.stretch, &o);
    }
    FLUSH();
#undef FLUSH
    ids[o.n++] = t->last;
    return o.n;
}

/* ---- Files ---- */

static bool add_token(Tokenizer *t, const char *name, const char *s, size_t n, int64_t id, Error *e) {
    if (id < 0 || id >= MAX_ID)
        return fail_as(e, FAIL_MODEL, "%s: token id %" PRId64 " is not in 0 .. %d", name, id, MAX_ID - 1);
    vocab_add(&t->vocab, s, n, (int)id);
    return true;
}

static bool read_lines(Tokenizer *t, const char *name, const char *p, size_t size, Error *e) {
    const char *end = p + size;
    for (int64_t line = 0; p < end; line++) {
        const char *nl = memchr(p, '\n', (size_t)(end - p)), *stop = nl ? nl : end;
        size_t n = (size_t)(stop - p);
        if (n && p[n - 1] == '\r') n--;
        int32_t c = 0;
        for (size_t i = 0; i < n && c >= 0;) i += utf8_next((const uint8_t *)p + i, n - i, &c);
        if (c < 0) return fail_as(e, FAIL_MODEL, "%s:%" PRId64 ": not UTF-8", name, line + 1);
        if (!add_token(t, name, p, n, line, e)) return false;
        p = nl ? nl + 1 : end;
    }
    return true;
}

static bool read_vocab_json(Tokenizer *t, const char *name, json_t *vocab, Error *e) {
    if (!json_is_object(vocab))
        return fail_as(e, FAIL_MODEL, "%s: the vocabulary is not a JSON object of token: id", name);
    const char *key;
    json_t *value;
    json_object_foreach(vocab, key, value) {
        if (!json_is_integer(value))
            return fail_as(e, FAIL_MODEL, "%s: the id of token \"%.60s\" is not a whole number", name, key);
        if (!add_token(t, name, key, strlen(key), json_integer_value(value), e)) return false;
    }
    return true;
}

static bool add_special(Tokenizer *t, const char *name, const char *text, int id, Error *e) {
    for (int i = 0; i < t->nspecial; i++)
        if (!strcmp(t->special[i].text, text)) return true;
    size_t n = strlen(text);
    if (n == 0 || n >= sizeof t->special[0].text)
        return fail_as(e, FAIL_MODEL, "%s: special token \"%.60s\" has %zu bytes, 1 to %zu are possible",
                       name, text, n, sizeof t->special[0].text - 1);
    if (t->nspecial == MAX_SPECIAL)
        return fail_as(e, FAIL_MODEL, "%s: more than %d special tokens", name, MAX_SPECIAL);
    memcpy(t->special[t->nspecial].text, text, n + 1);
    t->special[t->nspecial].len = n;
    t->special[t->nspecial++].id = id;
    return true;
}

static bool read_added_tokens(Tokenizer *t, const char *name, json_t *added, Error *e) {
    size_t i;
    json_t *x;
    json_array_foreach(added, i, x) {
        const char *text = json_string_value(json_object_get(x, "content"));
        json_t *id = json_object_get(x, "id");
        if (!text || !json_is_integer(id))
            return fail_as(e, FAIL_MODEL,
                           "%s: added_tokens[%zu] needs \"content\" (text) and \"id\" (a number)", name, i);
        if (!add_token(t, name, text, strlen(text), json_integer_value(id), e) ||
            !add_special(t, name, text, (int)json_integer_value(id), e))
            return false;
    }
    return true;
}

/* One merge: left and right, both in the vocabulary, and so is what they make. */
static bool add_merge(Tokenizer *t, const char *name, int64_t row, const char *left, size_t nleft,
                      const char *right, size_t nright, Merge **list, int64_t *n, int64_t *cap, Error *e) {
    char both[512];
    if (nleft + nright > sizeof both)
        return fail_as(e, FAIL_MODEL, "%s: merge %" PRId64 " has %zu bytes", name, row, nleft + nright);
    memcpy(both, left, nleft);
    memcpy(both + nleft, right, nright);
    Merge m = {vocab_find(&t->vocab, left, nleft), vocab_find(&t->vocab, right, nright), (int)*n,
               vocab_find(&t->vocab, both, nleft + nright)};
    if (m.left < 0 || m.right < 0 || m.id < 0)
        return fail_as(e, FAIL_MODEL,
                       "%s: merge %" PRId64 " (\"%.*s\" + \"%.*s\"): %s is not in the vocabulary", name, row,
                       (int)MIN(nleft, 60), left, (int)MIN(nright, 60), right,
                       m.left < 0    ? "the first"
                       : m.right < 0 ? "the second"
                                     : "what they make");
    if (*n >= MAX_ID) return fail_as(e, FAIL_MODEL, "%s: more than %d merges", name, MAX_ID);
    GROW(*list, *cap, *n + 1);
    (*list)[(*n)++] = m;
    return true;
}

static bool read_merge_lines(Tokenizer *t, const char *name, const char *p, size_t size, Merge **list,
                             int64_t *n, int64_t *cap, Error *e) {
    const char *end = p + size;
    for (int64_t row = 1; p < end; row++) {
        const char *nl = memchr(p, '\n', (size_t)(end - p)), *stop = nl ? nl : end, *next = nl ? nl + 1 : end;
        if (stop > p && stop[-1] == '\r') stop--;
        const char *space = memchr(p, ' ', (size_t)(stop - p));
        bool header = stop - p >= 8 && !memcmp(p, "#version", 8);
        if (!header && stop > p) {
            if (!space || space == p || space + 1 == stop ||
                memchr(space + 1, ' ', (size_t)(stop - space - 1)))
                return fail_as(e, FAIL_MODEL,
                               "%s:%" PRId64 ": a merge is two pieces with one space between them", name,
                               row);
            if (!add_merge(t, name, row, p, (size_t)(space - p), space + 1, (size_t)(stop - space - 1), list,
                           n, cap, e))
                return false;
        }
        p = next;
    }
    return true;
}

static bool read_merge_json(Tokenizer *t, const char *name, json_t *merges, Merge **list, int64_t *n,
                            int64_t *cap, Error *e) {
    if (!json_is_array(merges)) return fail_as(e, FAIL_MODEL, "%s: model.merges is not a list", name);
    size_t i;
    json_t *x;
    json_array_foreach(merges, i, x) { /* "a b", or ["a", "b"] since 2024 */
        const char *one = json_string_value(x), *left = json_string_value(json_array_get(x, 0)),
                   *right = json_string_value(json_array_get(x, 1)), *space = one ? strchr(one, ' ') : NULL;
        size_t nleft = left ? strlen(left) : 0;
        if (space && !strchr(space + 1, ' ')) left = one, nleft = (size_t)(space - one), right = space + 1;
        if (!left || !right || !nleft || !*right)
            return fail_as(e, FAIL_MODEL, "%s: model.merges[%zu] is not two pieces", name, i);
        if (!add_merge(t, name, (int64_t)i, left, nleft, right, strlen(right), list, n, cap, e)) return false;
    }
    return true;
}

/* A pair that stands there twice has its last rank, as in the reference. */
static void build_merges(Tokenizer *t, const Merge *list, int64_t n) {
    uint32_t slots = 16;
    while (slots < 2 * (uint64_t)n) slots *= 2;
    t->merge = xcalloc(slots, sizeof *t->merge);
    t->merge_mask = slots - 1;
    for (uint32_t k = 0; k < slots; k++) t->merge[k].id = -1;
    for (int64_t i = 0; i < n; i++) {
        uint64_t key =
            ((uint64_t)(uint32_t)list[i].left << 32 | (uint32_t)list[i].right) * 0x9e3779b97f4a7c15u;
        uint32_t k = (uint32_t)(key >> 32);
        while (t->merge[k & t->merge_mask].id >= 0 && (t->merge[k & t->merge_mask].left != list[i].left ||
                                                       t->merge[k & t->merge_mask].right != list[i].right))
            k++;
        t->merge[k & t->merge_mask] = list[i];
    }
}

/* Bytes that print keep their code point, the other 68 become 256, 257, ...: a byte string becomes readable
 * text. */
static void build_bytes(Tokenizer *t) {
    int next = 256;
    for (int b = 0; b < 256; b++) {
        bool prints = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        char s[8];
        size_t n = (size_t)utf8proc_encode_char(prints ? b : next++, (utf8proc_uint8_t *)s);
        memcpy(s + n, "</w>", 4);
        int id = vocab_find(&t->vocab, s, n), end = vocab_find(&t->vocab, s, n + 4);
        t->byte_id[b] = id >= 0 ? id : t->unk;
        t->byte_end_id[b] = end >= 0 ? end : t->unk;
    }
}

static bool need(const Tokenizer *t, const char *name, const char *token, int *id, Error *e) {
    *id = vocab_find(&t->vocab, token, strlen(token));
    return *id >= 0 || fail_as(e, FAIL_MODEL, "%s: the vocabulary has no %s (a vocabulary of another model?)",
                               name, token);
}

static bool finish(Tokenizer *t, const char *name, const Merge *list, int64_t n, Error *e) {
    static const char *const bert[] = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}, *const clip[] = {
                                                                                          "<|startoftext|>",
                                                                                          "<|endoftext|>"};
    bool is_bert = t->kind == TOKEN_BERT;
    if (!need(t, name, is_bert ? "[CLS]" : clip[0], &t->first, e) ||
        !need(t, name, is_bert ? "[SEP]" : clip[1], &t->last, e) ||
        !need(t, name, is_bert ? "[UNK]" : clip[1], &t->unk, e))
        return false;
    for (int i = 0; i < (is_bert ? COUNT_OF(bert) : COUNT_OF(clip)); i++) {
        int id = token_find(t, is_bert ? bert[i] : clip[i]);
        if (id >= 0 && !add_special(t, name, is_bert ? bert[i] : clip[i], id, e)) return false;
    }
    t->pad = is_bert ? MAX(0, token_find(t, "[PAD]")) : 0;
    for (int64_t i = 0; i < t->vocab.n; i++) t->size = MAX(t->size, t->vocab.entry[i].id + 1);
    t->by_id = xcalloc((size_t)t->size, sizeof *t->by_id);
    for (int64_t i = 0; i < t->vocab.n; i++) {
        const Entry *x = &t->vocab.entry[i];
        if (t->by_id[x->id])
            return fail_as(e, FAIL_MODEL, "%s: tokens \"%.40s\" and \"%.40s\" have the same id %d", name,
                           t->vocab.blob + t->vocab.entry[t->by_id[x->id] - 1].at, t->vocab.blob + x->at,
                           x->id);
        t->by_id[x->id] = (int)i + 1;
    }
    if (!is_bert) build_merges(t, list, n), build_bytes(t);
    return true;
}

static bool read_tokenizer_json(Tokenizer *t, const char *name, json_t *root, Merge **list, int64_t *n,
                                int64_t *cap, Error *e) {
    json_t *model = json_object_get(root, "model");
    const char *type = json_string_value(json_object_get(model, "type")),
               *want = t->kind == TOKEN_BERT ? "WordPiece" : "BPE";
    if (!model) return fail_as(e, FAIL_MODEL, "%s: no \"model\" (is this a tokenizer.json?)", name);
    if (type && strcmp(type, want)) /* old files have no type */
        return fail_as(e, FAIL_MODEL, "%s: a %.40s tokenizer, this model needs %s", name, type, want);
    return read_vocab_json(t, name, json_object_get(model, "vocab"), e) &&
           read_added_tokens(t, name, json_object_get(root, "added_tokens"), e) &&
           (t->kind == TOKEN_BERT ||
            read_merge_json(t, name, json_object_get(model, "merges"), list, n, cap, e));
}

Tokenizer *token_open_memory(const char *name, TokenKind kind, const char *vocab, size_t vocab_size,
                             const char *merges, size_t merges_size, Error *e) {
    Tokenizer *t = xcalloc(1, sizeof *t);
    t->kind = kind;
    Merge *list = NULL;
    int64_t n = 0, cap = 0;
    json_t *root = NULL;
    bool ok = false;
    if (vocab_size > MAX_FILE || merges_size > MAX_FILE) {
        fail_as(e, FAIL_MODEL, "%s: more than %zu bytes of vocabulary", name, MAX_FILE);
        goto out;
    }
    if (kind == TOKEN_CLIP || (vocab_size && vocab[0] == '{')) {
        json_error_t why;
        root = json_loadb(vocab, vocab_size, JSON_REJECT_DUPLICATES, &why);
        if (!root) {
            fail_as(e, FAIL_MODEL, "%s:%d:%d: %s", name, why.line, why.column, why.text);
            goto out;
        }
        char beside[4096]; /* the merges' file, in its sentences */
        const char *slash = strrchr(name, '/');
        snprintf(beside, sizeof beside, "%.*smerges.txt", slash ? (int)(slash + 1 - name) : 0, name);
        ok = merges ? read_vocab_json(t, name, root, e) &&
                          read_merge_lines(t, beside, merges, merges_size, &list, &n, &cap, e)
                    : read_tokenizer_json(t, name, root, &list, &n, &cap, e);
    } else {
        ok = read_lines(t, name, vocab, vocab_size, e);
    }
    ok = ok && finish(t, name, list, n, e);
out:
    json_decref(root);
    free(list);
    if (ok) return t;
    token_close(t);
    return NULL;
}

static bool exists(const char *path) {
    FILE *f = fopen(path, "rb");
    if (f) fclose(f);
    return f;
}

Tokenizer *token_open(const char *folder, TokenKind kind, Error *e) {
    char vocab[4096], merges[4096], whole[4096];
    bool bert = kind == TOKEN_BERT;
    if (!path_join(vocab, sizeof vocab, folder, bert ? "vocab.txt" : "vocab.json", e) ||
        !path_join(merges, sizeof merges, folder, "merges.txt", e) ||
        !path_join(whole, sizeof whole, folder, "tokenizer.json", e))
        return NULL;
    bool plain = exists(vocab) && (bert || exists(merges));
    if (!plain && !exists(whole)) {
        fail_as(e, FAIL_MODEL, "%s: no %s and no tokenizer.json there", folder,
                bert ? "vocab.txt" : "vocab.json with merges.txt");
        return NULL;
    }
    char *v = NULL, *m = NULL;
    size_t nv = 0, nm = 0;
    Tokenizer *t = NULL;
    if (file_read(plain ? vocab : whole, &v, &nv, MAX_FILE, e) &&
        (!plain || bert || file_read(merges, &m, &nm, MAX_FILE, e)))
        t = token_open_memory(plain ? vocab : whole, kind, v, nv, m, nm, e);
    else if (e) e->status = FAIL_MODEL;
    free(v);
    free(m);
    return t;
}

void token_close(Tokenizer *t) {
    if (!t) return;
    free(t->vocab.blob);
    free(t->vocab.entry);
    free(t->vocab.slot);
    free(t->by_id);
    free(t->merge);
    free(t);
}

int token_size(const Tokenizer *t) { return t->size; }
int token_pad(const Tokenizer *t) { return t->pad; }
int token_first(const Tokenizer *t) { return t->first; }
int token_last(const Tokenizer *t) { return t->last; }
int token_find(const Tokenizer *t, const char *token) { return vocab_find(&t->vocab, token, strlen(token)); }

const char *token_text(const Tokenizer *t, int id) {
    if (id < 0 || id >= t->size || !t->by_id[id]) return NULL;
    return t->vocab.blob + t->vocab.entry[t->by_id[id] - 1].at;
}
