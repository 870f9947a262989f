#!/usr/bin/env python3
"""Ids of our tokenizers beside those of Hugging Face's, with the published vocabularies.

  compare_tokens.py PROGRAM BERT CLIP [--lines N] [--seed S] [FILE ...]

PROGRAM is build/cpu/parity-tokens (`make parity-tokens`), BERT a folder with vocab.txt of bert-base-uncased, CLIP one with
vocab.json and merges.txt of openai/clip-vit-base-patch32. Texts are N generated lines (tests/golden/make_token.py: mixtures of
scripts, marks, emoji, control characters, special tokens), a tenth of them with bytes overwritten so that they are no UTF-8,
and all lines of the FILEs. Prints the count of texts and of those whose ids differ, and the first that do; status 1 if any does.
"""
import argparse
import os
import random
import subprocess
import sys

import tokenizers
import transformers

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "golden"))
from make_token import generated  # noqa: E402


def texts(args):
    rng = random.Random(args.seed)
    for line in generated(args.lines, args.seed):
        raw = line.encode()
        if raw and rng.random() < 0.1:
            raw = bytearray(raw)
            for _ in range(rng.randrange(1, 4)):
                raw[rng.randrange(len(raw))] = rng.randrange(256)
        yield bytes(raw)
    for path in args.file:
        with open(path, "rb") as f:
            yield from (line.rstrip(b"\r\n") for line in f)


def ours(args, kind, folder, rows):
    data = b"".join(b"%d %d\n%s" % (limit, len(raw), raw) for raw, limit in rows)
    out = subprocess.run([args.program, kind, folder], input=data, stdout=subprocess.PIPE, check=True).stdout
    return [[int(x) for x in line.split()] for line in out.splitlines()]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("program")
    p.add_argument("bert")
    p.add_argument("clip")
    p.add_argument("file", nargs="*")
    p.add_argument("--lines", type=int, default=100000)
    p.add_argument("--seed", type=int, default=7)
    args = p.parse_args()
    rng = random.Random(args.seed)
    rows = [(raw, rng.choice([512, 512, 77, 16])) for raw in texts(args)]
    bad_utf8 = sum(raw.decode(errors="replace").encode() != raw for raw, _ in rows)
    print(f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}; {len(rows)} texts, {bad_utf8} not UTF-8")
    wrong = 0
    for kind, reference in (("bert", transformers.BertTokenizerFast.from_pretrained(args.bert)),
                            ("clip", transformers.CLIPTokenizerFast.from_pretrained(args.clip))):
        got = ours(args, kind, args.bert if kind == "bert" else args.clip, rows)
        if len(got) != len(rows):
            sys.exit(f"{kind}: {len(got)} answers to {len(rows)} texts")
        differ = []
        for (raw, limit), ids in zip(rows, got):
            want = reference(raw.decode(errors="replace"), truncation=True, max_length=limit)["input_ids"]
            if want != ids:
                differ.append((raw, want, ids))
        print(f"{kind}: vocabulary of {len(reference)}, {len(differ)} of {len(rows)} differ")
        for raw, want, ids in differ[:5]:
            print(f"  {raw!r}\n    reference {want}\n    ours      {ids}")
        wrong += len(differ)
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
