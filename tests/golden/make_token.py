#!/usr/bin/env python3
"""Golden ids of the two tokenizers, from Hugging Face's own code.

  make_token.py OUT          writes OUT/bert/vocab.txt, OUT/clip/{vocab.json,merges.txt} and OUT/golden.jsonl: one
                             line per text, {"text" or "bytes" (hex, not UTF-8), "bert": ids, "clip": ids, "max"}
  make_token.py OUT N SEED   N generated lines instead of the committed ones (for long comparisons)
  make_token.py --tables     prints the tables of data/token.c in which the reference's Unicode differs from utf8proc's

The vocabularies are built here (the published ones are not part of the project), so that every path is taken:
characters, ## pieces, whole words, words that have no pieces; 256 bytes, 256 ends of words, a few hundred merges
trained on the texts below. Needs the packages transformers and tokenizers; their versions are in the first line.
"""
import collections
import json
import os
import random
import sys

import tokenizers
import transformers

TEXTS = """
How many cats are there?
Is the woman wearing a hat?  What colour is it?
what is to the left of the red-and-white umbrella
The man's dog can't jump; they'll see, we've seen, I'm sure you're right, he'd go. It's o'clock 'Twas
a photo of a cat
Hello, World! it's 2024
a photo of café table, naïve façade, Ångström, São Paulo, Łódź, İstanbul, ǅ, ẞ
cafe\u0301 nai\u0308ve A\u030angstro\u0308m a\u0323\u0302 a\u0302\u0323 q\u0307\u0323 \u1e69 s\u0323\u0307
日本語のテキスト 中文字符 한국어 텍스트 各漢字\u0301二 豈\U0002f801
\u1100\u1161\u11a8 가각힣 \u0e01\u0e33 नमस्ते दुनिया \u0928\u093c বাংলা\u09c7\u09be
👍🏽 👨‍👩‍👧‍👦 🇩🇪 😀😃text😄 ☃️ \U0001f9d1\u200d\U0001f680
tab\tnew\nline\r\nvertical\x0bform\x0cnext\x85nbsp\xa0em\u2003thin\u2009line\u2028para\u2029ideo\u3000end
con\x00trol\x01cha\x07rs\x7f de\u00adl soft\u200bzero\ufeffbom \ufffd \u202edir \ue000private \U000e0041tag
[CLS] hello [SEP] [MASK]ed [UNK] [PAD] [cls] [ SEP ]
<|startoftext|>hello<|endoftext|> <|STARTOFTEXT|> <|EndOfText|>! '<|endoftext|>
$5.00 + 10% = #1 & @home *star* ^caret~ `tick` |pipe| <tag> \\back {brace} [box] _under_ /slash
“quotes” ‘single’ – dash — em … dots ¡hola! ¿qué? «fr» ‹x› · † ‰ ′ € £ ¥ © ® ™ § ¶ ° ½ ² ³ ① Ⅷ ٣ ४ 𝟘 𝒳
ὈΔΥΣΣΕΎΣ ὀδυσσεύς ΐ ΰ Σ ς МОСКВА Ёлка Й й Їжак ԱՐԵՎ שָׁלוֹם מַזָּל السَّلَام عليكم
ﬁ ﬂ ﬃ Ⅳ ㎏ Ａ１！ ｶﾞ ㈱ K Å Ω \u2000\u2001\u037e\u0387\u1fef
1234567890 3.14 1,000 a1b2c3 x86_64 h264 2nd 3rd
supercalifragilisticexpialidocious antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis
the the the THE ThE tHe thethe unthe theun hot-air balloons
''' "" '' '' 's' 't 'r 're 'v ''ll ''d x'S Y'RE
\u0301start \u0301\u0300 mid\u0301\u0327\u0323end \u1abf\u0301a\u1abf\u0301 \u0345\u0301 a\u302e\u302f\u0301
\u10d50\u10400𐐀𐐨 \ua7cb\ua7da \U00010d50\U00010d65 \U00013460 \U00010d40\U00011bf0 \u166d \U000111c9 \u1734 \U00011935\U00011930 \U00011938 \u2e43 \u08ca \u1c89
""".strip("\n").split("\n") + ["", " ", "   \n\t ", "a", "?", "é", "中", "x" * 100, "x" * 101, "é" * 100, "e\u0301" * 101, "a" * 300 + " b",
                               "no room for all of these words when only few ids are asked for", "don't " * 30, "a " * 3, "!" * 50]
BYTES = ["ff", "61c36220", "c3", "e282", "e28261", "f09f98", "f09f9861", "eda080", "c0af", "f4908080", "80bf61", "61ff62e0a0", "f8888080", "e0809061", "2020ff20"]


def vocabularies(out):
    words = collections.Counter()
    norm = transformers.BertTokenizer({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}).backend_tokenizer
    for t in TEXTS:
        for w, _ in norm.pre_tokenizer.pre_tokenize_str(norm.normalizer.normalize_str(t)):
            words[w] += 1
    rng = random.Random(5)
    chars = sorted({c for w in words for c in w})
    chars = [c for c in chars if ord(c) < 128 or rng.random() < 0.8]  # the rest is [UNK]
    pieces = sorted({w[i : i + n] for w in words for n in (2, 3) for i in range(len(w) - n) if w.isascii()})
    rows = ["[PAD]"] + [f"[unused{i}]" for i in range(3)] + ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    rows += chars + ["##" + c for c in chars if c.isalnum() or rng.random() < 0.5]
    rows += sorted(w for w in words if 1 < len(w) < 20 and rng.random() < 0.4)
    rows += ["##" + p for p in pieces if rng.random() < 0.5] + [p for p in pieces if rng.random() < 0.3]
    rows = list(dict.fromkeys(rows))
    os.makedirs(f"{out}/bert", exist_ok=True)
    with open(f"{out}/bert/vocab.txt", "w", encoding="utf-8", newline="\n") as f:
        f.write("\n".join(rows) + "\n")

    prints = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    symbol = {b: chr(b) for b in prints}
    for b in range(256):
        symbol.setdefault(b, chr(256 + len(symbol) - len(prints)))
    order = [symbol[b] for b in prints] + [symbol[b] for b in range(256) if b not in prints]
    vocab = order + [s + "</w>" for s in order]
    split = transformers.CLIPTokenizer().backend_tokenizer
    words = collections.Counter()
    for t in TEXTS:
        for w, _ in split.pre_tokenizer.pre_tokenize_str(split.normalizer.normalize_str(t)):
            words[tuple(w[:-1]) + (w[-1] + "</w>",)] += 1
    merges = []
    while len(merges) < 400:
        pairs = collections.Counter()
        for w, n in words.items():
            for p in zip(w, w[1:]):
                pairs[p] += n
        (a, b), _ = max(pairs.items(), key=lambda x: (x[1], x[0]))
        merges.append((a, b))
        merged = collections.Counter()
        for w, n in words.items():
            new, i = [], 0
            while i < len(w):
                pair = w[i : i + 2] == (a, b)
                new.append(a + b if pair else w[i])
                i += 1 + pair
            merged[tuple(new)] += n
        words = merged
    vocab = list(dict.fromkeys(vocab + [a + b for a, b in merges])) + ["<|startoftext|>", "<|endoftext|>"]
    os.makedirs(f"{out}/clip", exist_ok=True)
    with open(f"{out}/clip/vocab.json", "w", encoding="utf-8") as f:
        json.dump({w: i for i, w in enumerate(vocab)}, f, ensure_ascii=False, separators=(",", ":"))
    with open(f"{out}/clip/merges.txt", "w", encoding="utf-8", newline="\n") as f:
        f.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return {w: i for i, w in enumerate(rows)}, {w: i for i, w in enumerate(vocab)}, merges


def generated(n, seed):
    """Lines that mix pieces of TEXTS with characters of every kind."""
    rng = random.Random(seed)
    pools = [[c for t in TEXTS for c in t], [chr(c) for c in range(0x250)], [chr(c) for c in range(0x300, 0x370)] + list("aeiouAEIOU"),
             [chr(c) for c in range(0x250, 0x3000)], [chr(c) for c in range(0x3000, 0x10000) if not 0xD800 <= c < 0xE000],
             [chr(c) for c in range(0x1F300, 0x1FB00)], [chr(c) for c in range(0x10000, 0x20000)], list(" \t\n.,'!?-"), list("abcdefghijklmnopqrstuvwxyz"),
             [chr(c) for c in range(0x1E000, 0x110000, 7)], ["[SEP]", "<|endoftext|>", "<|startoftext|>", "'ll", "'S", "[MASK]", "[UNK"]]
    for _ in range(n):
        line = ""
        for _ in range(rng.randrange(1, 6)):
            if rng.random() < 0.4:
                t = rng.choice(TEXTS)
                i = rng.randrange(len(t) + 1)
                line += t[i : i + rng.randrange(30)]
            else:
                a, b = rng.choice(pools), rng.choice(pools)
                line += "".join(rng.choice(a if rng.random() < 0.7 else b) for _ in range(rng.randrange(12)))
        yield line


def tables():
    """Code points where the reference and utf8proc (the system's libutf8proc) part, as C ranges."""
    import ctypes
    from tokenizers import Regex, normalizers, pre_tokenizers

    lib = ctypes.CDLL("libutf8proc.so.2")
    lib.utf8proc_category_string.restype = ctypes.c_char_p

    class Property(ctypes.Structure):
        _fields_ = [("category", ctypes.c_int16), ("ccc", ctypes.c_int16)]

    lib.utf8proc_get_property.restype = ctypes.POINTER(Property)
    category = {c: lib.utf8proc_category_string(c).decode() for c in range(0x110000) if not 0xD800 <= c < 0xE000}
    ccc = {c: lib.utf8proc_get_property(c).contents.ccc for c in category}
    flags = dict(clean_text=False, handle_chinese_chars=False, strip_accents=False, lowercase=False)
    clean = normalizers.BertNormalizer(**{**flags, "clean_text": True})
    strip = normalizers.BertNormalizer(**{**flags, "strip_accents": True})
    nfd, low, words = normalizers.NFD(), normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    is_letter, is_number = (pre_tokenizers.Split(Regex(p), "isolated") for p in (r"\p{L}", r"\p{N}"))
    alone = lambda split, c: len(split.pre_tokenize_str("\u0301" + chr(c) + "\u0301")) == 3
    unknown, inert, letters, numbers = set(), set(), set(), set()
    for c, k in category.items():
        if k == "Cf" and clean.normalize_str("a" + chr(c)) != "a" or k == "Mn" and strip.normalize_str(chr(c)) == chr(c):
            unknown.add(c)
        if k[0] == "P" and len(words.pre_tokenize_str("a" + chr(c) + "b")) == 1:
            unknown.add(c)
        if 0 < ccc[c] < 240 and nfd.normalize_str("a\u0345" + chr(c)) == "a\u0345" + chr(c):
            inert.add(c)
        if k[0] != "L" and alone(is_letter, c):
            letters.add(c)
        if k[0] != "N" and alone(is_number, c):
            numbers.add(c)
        if lib.utf8proc_tolower(c) != ord(low.normalize_str(chr(c))[0]):
            print(f"new capital {c:#x} -> {ord(low.normalize_str(chr(c))[0]):#x}")
    heeds = lambda c: category.get(c, "Cs")[0] == "P" or category.get(c, "Cs") in ("Mn", "Cf", "Cc", "Co", "Cs")
    for name, points, matters in (("bert_unknown", unknown, heeds), ("inert", inert, lambda c: ccc.get(c, 1)),
                                  ("new_letters", letters, lambda c: True), ("new_numbers", numbers, lambda c: True)):
        ranges = []  # joined across code points for which the table makes no difference
        for c in sorted(points):
            if ranges and not any(matters(x) for x in range(ranges[-1][1] + 1, c) if x not in points):
                ranges[-1][1] = c
            else:
                ranges.append([c, c])
        print(name, ", ".join(f"{{{a:#x}, {b:#x}}}" for a, b in ranges))


def main():
    if sys.argv[1:] == ["--tables"]:
        return tables()
    out = sys.argv[1]
    bert_vocab, clip_vocab, merges = vocabularies(out)
    bert = transformers.BertTokenizer(bert_vocab)
    clip = transformers.CLIPTokenizer(clip_vocab, merges)
    rng = random.Random(1)
    with open(f"{out}/golden.jsonl", "w", encoding="utf-8", newline="\n") as f:
        def row(line, limit, **key):
            ids = {n: t(line, truncation=True, max_length=limit)["input_ids"] for n, t in (("bert", bert), ("clip", clip))}
            f.write(json.dumps({**key, "max": limit, **ids}, separators=(",", ":")) + "\n")

        f.write(json.dumps({"transformers": transformers.__version__, "tokenizers": tokenizers.__version__}) + "\n")
        if len(sys.argv) > 2:
            for line in generated(int(sys.argv[2]), int(sys.argv[3])):
                row(line, rng.choice([512, 512, 77, 16]), text=line)
            return
        for t in TEXTS:
            row(t, 512, text=t)
            row(t, rng.choice([2, 3, 8, 16]), text=t)
        for line in generated(300, 0):
            row(line, 77, text=line)
        for b in BYTES:
            row(bytes.fromhex(b).decode(errors="replace"), 77, bytes=b)


if __name__ == "__main__":
    main()
