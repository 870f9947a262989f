/* test_token.c -- ids against Hugging Face's (tests/golden/token, made by make_token.py), limits, bad files. */
#include "data/token.h"
#include "tests/test.h"

#include <jansson.h>
#include <pthread.h>

#define GOLDEN "tests/golden/token"

static Tokenizer *open_golden(TokenKind kind) {
    Error e = {0};
    Tokenizer *t = token_open(kind == TOKEN_BERT ? GOLDEN "/bert" : GOLDEN "/clip", kind, &e);
    EXPECT(t, "%s", e.text);
    return t;
}

/* The text of a golden line: "text", or "bytes" in hexadecimal when it is not UTF-8. */
static size_t golden_text(json_t *line, char *out, size_t max) {
    json_t *text = json_object_get(line, "text");
    if (text) {
        size_t n = json_string_length(text);
        CHECK(n <= max, "a golden text of %zu bytes", n);
        memcpy(out, json_string_value(text), n);
        return n;
    }
    const char *hex = json_string_value(json_object_get(line, "bytes"));
    size_t n = strlen(hex) / 2;
    for (size_t i = 0; i < n; i++) {
        unsigned x = 0;
        sscanf(hex + 2 * i, "%2x", &x);
        out[i] = (char)x;
    }
    return n;
}

static void compare_golden(const Tokenizer *t, const char *key) {
    FILE *f = fopen(GOLDEN "/golden.jsonl", "rb");
    EXPECT(f, "no " GOLDEN "/golden.jsonl: tests run in the root of the repository");
    if (!f) return;
    char *text = NULL;
    size_t cap = 0;
    int n = 0;
    for (int row = 1; getline(&text, &cap, f) > 0; row++) {
        json_t *line = json_loads(text, JSON_ALLOW_NUL, NULL), *want = json_object_get(line, key);
        EXPECT(line, "line %d is not JSON", row);
        if (want) {
            static char raw[4096];
            int ids[512], max = (int)json_integer_value(json_object_get(line, "max"));
            size_t len = golden_text(line, raw, sizeof raw);
            int got = token_encode(t, raw, len, ids, max);
            EXPECT(got == (int)json_array_size(want), "line %d: %d ids, not %zu", row, got,
                   json_array_size(want));
            for (int i = 0; i < got; i++) {
                int id = (int)json_integer_value(json_array_get(want, (size_t)i));
                EXPECT(ids[i] == id, "line %d: id %d is %d (%s), not %d (%s)", row, i, ids[i],
                       token_text(t, ids[i]), id, token_text(t, id));
            }
            n++;
        }
        json_decref(line);
    }
    EXPECT(n >= 300, "only %d golden lines", n);
    free(text);
    fclose(f);
}

TEST(token_bert_golden) {
    Tokenizer *t = open_golden(TOKEN_BERT);
    if (t) compare_golden(t, "bert");
    token_close(t);
}

TEST(token_clip_golden) {
    Tokenizer *t = open_golden(TOKEN_CLIP);
    if (t) compare_golden(t, "clip");
    token_close(t);
}

TEST(token_ids) {
    Tokenizer *b = open_golden(TOKEN_BERT), *c = open_golden(TOKEN_CLIP);
    if (b && c) {
        EXPECT(token_pad(b) == 0 && token_first(b) == token_find(b, "[CLS]") &&
                   token_last(b) == token_find(b, "[SEP]"),
               "BERT's special ids");
        EXPECT(token_pad(c) == 0 && token_first(c) == token_size(c) - 2 && token_last(c) == token_size(c) - 1,
               "CLIP's special ids");
        /* The published vocabulary's order (section 6.2 of our model notes): bytes that print, the others,
         * both with an end. */
        EXPECT(token_find(c, "!") == 0 && token_find(c, "!</w>") == 256 && token_find(c, "a</w>") == 320,
               "order of CLIP's bytes");
        EXPECT(token_find(b, "no such token") == -1 && !token_text(b, -1) && !token_text(b, token_size(b)),
               "unknown tokens");
        EXPECT(!strcmp(token_text(b, token_find(b, "##e")), "##e"), "text of ##e");
    }
    token_close(b);
    token_close(c);
}

/* Text that does not fit is cut, never more than max ids, both special tokens always there; hostile lengths
 * end soon. */
TEST(token_limits) {
    Tokenizer *t[2] = {open_golden(TOKEN_BERT), open_golden(TOKEN_CLIP)};
    size_t n = 1 << 20;
    char *text = xcalloc(n, 1);
    static const char *const fills[] = {"a",    "a ", "!", "e\xcc\x81", "\xcc\x81", "\xf0\x9f\x98\x80",
                                        "\xff", "",   " ", "[SEP]",     "'s",       "\xe4\xb8\xad",
                                        "in"};
    for (int k = 0; k < 2 && t[k]; k++)
        for (int i = 0; i < COUNT_OF(fills); i++) {
            size_t len = MAX(strlen(fills[i]), 1);
            for (size_t at = 0; at < n; at++) text[at] = fills[i][at % len];
            int ids[80];
            double start = now_s();
            for (int max = 2; max <= 77; max += 25) {
                ids[max] = -77;
                int got = token_encode(t[k], text, n, ids, max);
                EXPECT(got >= 2 && got <= max && ids[max] == -77, "%d ids of %d", got, max);
                EXPECT(ids[0] == token_first(t[k]) && ids[got - 1] == token_last(t[k]), "special tokens");
                for (int j = 0; j < got; j++) EXPECT(token_text(t[k], ids[j]), "id %d is no token", ids[j]);
            }
            EXPECT(now_s() - start < 5, "1 MB of \"%s\" took %.1f s", fills[i], now_s() - start);
        }
    free(text);
    token_close(t[0]);
    token_close(t[1]);
}

typedef struct Work { const Tokenizer *t; bool same; } Work;

static void *encode_often(void *p) {
    Work *w = p;
    static const char text[] = "Is the caf\xc3\xa9's dog running to the left of the red-and-white umbrella?";
    int want[64], ids[64], n = token_encode(w->t, text, sizeof text - 1, want, 64);
    w->same = true;
    for (int i = 0; i < 500; i++)
        w->same &= token_encode(w->t, text, sizeof text - 1, ids, 64) == n &&
                   !memcmp(ids, want, (size_t)n * sizeof *ids);
    return NULL;
}

TEST(token_threads) {
    for (TokenKind kind = TOKEN_BERT; kind <= TOKEN_CLIP; kind++) {
        Tokenizer *t = open_golden(kind);
        if (!t) return;
        pthread_t thread[4];
        Work w[4];
        for (int i = 0; i < 4; i++) {
            w[i] = (Work){t, false};
            pthread_create(&thread[i], NULL, encode_often, &w[i]);
        }
        for (int i = 0; i < 4; i++) {
            pthread_join(thread[i], NULL);
            EXPECT(w[i].same, "thread %d got other ids", i);
        }
        token_close(t);
    }
}

/* tokenizer.json holds the same as the plain files: built from them here, it gives the same ids. */
TEST(token_whole_json) {
    Error e = {0};
    char *vocab = NULL, *merges = NULL;
    size_t nv, nm;
    if (!file_read(GOLDEN "/clip/vocab.json", &vocab, &nv, 1 << 20, &e) ||
        !file_read(GOLDEN "/clip/merges.txt", &merges, &nm, 1 << 20, &e)) {
        EXPECT(false, "%s", e.text);
        free(vocab);
        return;
    }
    for (int pairs = 0; pairs < 2; pairs++) { /* merges as "a b" and as ["a", "b"] */
        json_t *list = json_array(), *v = json_loadb(vocab, nv, 0, NULL);
        json_object_del(v, "<|startoftext|>"); /* it comes back through added_tokens */
        char *copy = xstrdup(merges), *save = NULL;
        for (char *line = strtok_r(copy, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
            if (!strncmp(line, "#version", 8)) continue;
            char *space = strchr(line, ' ');
            json_array_append_new(list, pairs ? json_pack("[s%,s]", line, (size_t)(space - line), space + 1)
                                              : json_string(line));
        }
        free(copy);
        Tokenizer *plain = open_golden(TOKEN_CLIP);
        json_t *root =
            json_pack("{s:[{s:i,s:s}],s:{s:s,s:o,s:o}}", "added_tokens", "id", token_first(plain), "content",
                      "<|startoftext|>", "model", "type", "BPE", "vocab", v, "merges", list);
        char *text = json_dumps(root, JSON_COMPACT);
        json_decref(root);
        Tokenizer *t = token_open_memory("tokenizer.json", TOKEN_CLIP, text, strlen(text), NULL, 0, &e);
        EXPECT(t, "%s", e.text);
        if (t) {
            EXPECT(token_size(t) == token_size(plain), "%d tokens", token_size(t));
            compare_golden(t, "clip");
            EXPECT(!token_open_memory("x", TOKEN_BERT, text, strlen(text), NULL, 0, &e) &&
                       strstr(e.text, "needs WordPiece"),
                   "%s", e.text);
        }
        token_close(t);
        token_close(plain);
        free(text);
    }
    free(vocab);
    free(merges);
}

typedef struct Bad { TokenKind kind; const char *vocab, *merges, *says; } Bad;
#define ENDS "\"<|startoftext|>\":1,\"<|endoftext|>\":2"
static const Bad bad[] = {
    {TOKEN_BERT, "", NULL, "no [CLS]"},
    {TOKEN_BERT, "[CLS]\n[SEP]\n", NULL, "no [UNK]"},
    {TOKEN_BERT, "[CLS]\n\xff\n", NULL, "v:2: not UTF-8"},
    {TOKEN_BERT, "{", NULL, "v:1:"},
    {TOKEN_BERT, "{}", NULL, "no \"model\""},
    {TOKEN_BERT, "{\"model\":{\"type\":\"BPE\"}}", NULL, "needs WordPiece"},
    {TOKEN_BERT, "{\"model\":{}}", NULL, "not a JSON object"},
    {TOKEN_CLIP, "", "", "v:1:"},
    {TOKEN_CLIP, "[]", "", "not a JSON object"},
    {TOKEN_CLIP, "{\"a\":1,\"a\":2}", "", "duplicate"},
    {TOKEN_CLIP, "{\"a\":1.5}", "", "not a whole number"},
    {TOKEN_CLIP, "{\"a\":-1}", "", "not in 0 .."},
    {TOKEN_CLIP, "{\"a\":99999999999}", "", "not in 0 .."},
    {TOKEN_CLIP, "{\"a\":0}", "", "no <|startoftext|>"},
    {TOKEN_CLIP, "{\"a\":1," ENDS "}", "", "have the same id 1"},
    {TOKEN_CLIP, "{\"a\":0," ENDS "}", "#version: 0.2\na b\n", "merge 2 (\"a\" + \"b\"): the second is not"},
    {TOKEN_CLIP, "{\"a\":0," ENDS "}", "a a\n", "what they make is not"},
    {TOKEN_CLIP, "{\"a\":0," ENDS "}", "aa\n", "merges.txt:1: a merge is two pieces"},
    {TOKEN_CLIP, "{\"a\":0," ENDS "}", "a a a\n", "merges.txt:1: a merge is two pieces"},
    {TOKEN_CLIP, "{\"a\":0," ENDS "}", " a\n", "merges.txt:1: a merge is two pieces"},
    {TOKEN_CLIP, "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[1]}}", NULL, "merges[0] is not two pieces"},
    {TOKEN_CLIP, "{\"model\":{\"vocab\":{\"a\":0},\"merges\":{}}}", NULL, "not a list"},
    {TOKEN_CLIP, "{\"added_tokens\":[{}],\"model\":{\"vocab\":{\"a\":0},\"merges\":[]}}", NULL,
     "added_tokens[0] needs"},
    {TOKEN_CLIP,
     "{\"added_tokens\":[{\"content\":\"\",\"id\":3}],\"model\":{\"vocab\":{\"a\":0},\"merges\":[]}}", NULL,
     "has 0 bytes"},
};

TEST(token_bad_files) {
    for (int i = 0; i < COUNT_OF(bad); i++) {
        Error e = {0};
        Tokenizer *t = token_open_memory("v", bad[i].kind, bad[i].vocab, strlen(bad[i].vocab), bad[i].merges,
                                         bad[i].merges ? strlen(bad[i].merges) : 0, &e);
        EXPECT(!t, "case %d was taken", i);
        EXPECT(t || (e.status == FAIL_MODEL && strstr(e.text, bad[i].says)), "case %d, status %d: %s", i,
               e.status, e.text);
        token_close(t);
    }
    Error e = {0};
    EXPECT(!token_open(test_dir(), TOKEN_BERT, &e) && e.status == FAIL_MODEL &&
               strstr(e.text, "no vocab.txt and no tokenizer.json"),
           "%s", e.text);
}
