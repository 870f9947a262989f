/* token.h -- text to token ids: BERT's uncased WordPiece and CLIP's byte-level BPE, from vocabulary files.
 *
 * The ids equal those of Hugging Face's fast tokenizers (tests/golden/make_token.py compares), special tokens
 * written out in the text included. Only encoding of one text is here; batches, padding and masks are the modules'.
 */
#pragma once
#include "engine/base.h"

typedef enum TokenKind { TOKEN_BERT, TOKEN_CLIP } TokenKind;
typedef struct Tokenizer Tokenizer;

/* Reads vocab.txt (BERT) or vocab.json + merges.txt (CLIP) from `folder`, or the tokenizer.json there when they are
 * missing. NULL with a sentence (FAIL_MODEL) when a file is missing or malformed. The caller closes. */
Tokenizer *token_open(const char *folder, TokenKind kind, Error *e);
/* The same from bytes: `vocab` is the content of vocab.txt or vocab.json and `merges` of merges.txt; or `vocab` is a
 * tokenizer.json and `merges` NULL (BERT: when it begins with '{'). `name` is for messages. */
Tokenizer *token_open_memory(const char *name, TokenKind kind, const char *vocab, size_t vocab_size, const char *merges,
                             size_t merges_size, Error *e);
void token_close(Tokenizer *t); /* NULL is fine */

/* ids[0 .. n) = first special token, the text, last special token; returns n <= max. Text that does not fit is cut so
 * that the last special token stays. max >= 2. Invalid UTF-8 reads as Python's errors="replace" would feed it, zero bytes
 * are text like any other. Many threads may share one Tokenizer; nothing is allocated, the stack needs about 80 kB.
 * CLIP: a stretch of more than 1,024 characters without white space is cut into stretches of that length, where the
 * reference would go on (its time grows faster than the text); no real question is near it. */
int token_encode(const Tokenizer *t, const char *text, size_t len, int *ids, int max);

int token_size(const Tokenizer *t);                       /* highest id + 1 */
int token_pad(const Tokenizer *t);                        /* [PAD]; CLIP: 0, as OWL-ViT wants it */
int token_first(const Tokenizer *t);                      /* [CLS], <|startoftext|> */
int token_last(const Tokenizer *t);                       /* [SEP], <|endoftext|> */
int token_find(const Tokenizer *t, const char *token);    /* the id of a whole token such as "##ing", or -1 */
const char *token_text(const Tokenizer *t, int id);       /* for people to read; NULL when there is no such id */
