/* tokens.c -- the tokenizer as a filter, for tests/parity/compare_tokens.py.
 *
 *   parity-tokens bert|clip FOLDER      texts on standard input, each as "MAX LENGTH\n" and LENGTH bytes; ids on standard output,
 *                                      one line per text
 */
#include "data/token.h"

int main(int argc, char **argv) {
    Error e = {0};
    if (argc != 3) die(FAIL_USAGE, "usage: parity-tokens bert|clip FOLDER");
    Tokenizer *t = token_open(argv[2], strcmp(argv[1], "bert") ? TOKEN_CLIP : TOKEN_BERT, &e);
    if (!t) die(e.status, "%s", e.text);
    static char text[1 << 20];
    static int ids[1 << 12];
    int max, n;
    for (int row = 0; scanf("%d %d", &max, &n) == 2; row++) {
        if (max < 2 || max > COUNT_OF(ids) || n < 0 || n > COUNT_OF(text) || getchar() != '\n' ||
            fread(text, 1, (size_t)n, stdin) != (size_t)n)
            die(FAIL_DATA, "text %d: not \"MAX LENGTH\\n\" and LENGTH bytes", row);
        int k = token_encode(t, text, (size_t)n, ids, max);
        for (int i = 0; i < k; i++) printf("%d%c", ids[i], i + 1 < k ? ' ' : '\n');
    }
    token_close(t);
}
