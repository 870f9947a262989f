/* fuzz_token.c -- any bytes as vocabulary files, any bytes as text. */
#include "data/token.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void encode(const Tokenizer *t, const char *text, size_t n) {
    int ids[33], max = 2 + (int)(n % 31);
    ids[max] = -77;
    int got = token_encode(t, text, n, ids, max);
    CHECK(got >= 2 && got <= max && ids[max] == -77, "%d ids of %d", got, max);
    for (int i = 0; i < got; i++)
        CHECK(ids[i] >= 0 && ids[i] < token_size(t) && token_text(t, ids[i]), "id %d", ids[i]);
}

/* Small good vocabularies, so that the encoders see much text whatever the files do. */
static Tokenizer *small(TokenKind kind) {
    static const char bert[] =
        "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n##a\nb\n##ab\nthe\n##\xcc\x88\n!\n\xe4\xb8\xad\n";
    static const char clip[] = "{\"a\":0,\"a</w>\":1,\"b\":2,\"b</w>\":3,\"ab</w>\":4,\"aa\":5,\"aab</"
                               "w>\":6,\"<|startoftext|>\":7,\"<|endoftext|>\":8}";
    static const char merges[] = "#version: 0.2\na b</w>\na a\na ab</w>\n";
    Error e = {0};
    Tokenizer *t = kind == TOKEN_BERT ? token_open_memory("bert", kind, bert, sizeof bert - 1, NULL, 0, &e)
                                      : token_open_memory("clip", kind, clip, sizeof clip - 1, merges,
                                                          sizeof merges - 1, &e);
    CHECK(t, "%s", e.text);
    return t;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static Tokenizer *good[2];
    if (!good[0]) good[0] = small(TOKEN_BERT), good[1] = small(TOKEN_CLIP);
    if (size < 3) return 0;
    TokenKind kind = data[0] & 1 ? TOKEN_CLIP : TOKEN_BERT;
    char *text = xcalloc(size - 2, 1); /* exact, so that the sanitizer sees a byte too far */
    memcpy(text, data + 2, size - 2);
    if (data[0] & 2) {
        encode(good[kind], text, size - 2);
    } else {
        size_t split = (size - 2) * data[1] / 255;
        char *vocab = xcalloc(split, 1), *merges = xcalloc(size - 2 - split, 1);
        memcpy(vocab, text, split);
        memcpy(merges, text + split, size - 2 - split);
        Error e = {0};
        Tokenizer *t = token_open_memory("fuzz", kind, vocab, split, data[0] & 4 ? NULL : merges,
                                         data[0] & 4 ? 0 : size - 2 - split, &e);
        if (t) encode(t, text, size - 2);
        else CHECK(e.status == FAIL_MODEL && *e.text, "no sentence");
        token_close(t);
        free(vocab);
        free(merges);
    }
    free(text);
    return 0;
}
