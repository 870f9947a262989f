#!/usr/bin/env python3
"""Writes the vocabularies of the tiny models from words.txt, in the published models' formats.

  tiny-vilt/vocab.txt                WordPiece: special tokens, single characters, ##characters, then whole words
  tiny-owlvit/vocab.json merges.txt  byte-level BPE: 512 byte symbols, merges by rank, start and end token

words.txt holds every word of the built-in dataset's questions, sentences and answers; any other word is
still readable, letter by letter. Run from anywhere: python3 configs/models/make_tokenizers.py
"""
import collections
import json
import pathlib
import string

here = pathlib.Path(__file__).resolve().parent


def byte_symbols():
    """CLIP's printable name of each byte, in vocabulary order: those that are printable first, then the other 68."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(rest)}


def learn_merges(words):
    """Plain BPE training to the end, where every word is one token: each step joins the most frequent pair (ties: the
    lexically smallest). Because encoding replays the merges by rank, no word's merges can disturb another's."""
    split = [[*w[:-1], w[-1] + "</w>"] for w in words]
    merges = []
    while True:
        pairs = collections.Counter(p for s in split for p in zip(s, s[1:]))
        if not pairs:
            return merges
        best = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(best)
        for s in split:
            i = 0
            while i + 1 < len(s):
                if (s[i], s[i + 1]) == best:
                    s[i : i + 2] = ["".join(best)]
                i += 1


def write_clip(folder, words):
    # Digits stand alone in CLIP's pre-tokenisation and are byte symbols already.
    merges = learn_merges([w for w in words if w.isalpha()])
    symbols = list(byte_symbols().values())
    tokens = symbols + [s + "</w>" for s in symbols] + ["".join(m) for m in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]  # the end token must have the largest id: the model looks for it
    assert len(set(tokens)) == len(tokens)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}, ensure_ascii=False) + "\n")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return len(tokens)


def write_bert(folder, words):
    singles = string.ascii_lowercase + string.digits
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *singles, *string.punctuation]
    tokens += ["##" + ch for ch in singles]
    tokens += [w for w in words if w not in tokens]
    (folder / "vocab.txt").write_text("".join(t + "\n" for t in tokens))
    return len(tokens)


if __name__ == "__main__":
    words = (here / "words.txt").read_text().split()
    print("tiny-vilt vocab_size", write_bert(here / "tiny-vilt", words), " tiny-owlvit vocab_size", write_clip(here / "tiny-owlvit", words))
