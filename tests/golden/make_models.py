#!/usr/bin/env python3
"""Golden values of whole models: tiny random ones from transformers, in float64.

Writes tests/golden/tiny-*: a model folder each (f32 weights) and golden.safetensors with the inputs, the outputs, the loss, every
parameter's gradient, the losses of ten AdamW updates on the same batch, and how far from all this the model comes out when it
computes in bf16. Needs the packages of tests/parity/requirements.txt; CI never runs it.

    python3 tests/golden/make_models.py            all
    python3 tests/golden/make_models.py vilt       those named
"""
import copy
import json
import pathlib
import sys

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

here = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent.parent / "configs" / "models"))
sys.dont_write_bytecode = True
import make_tokenizers
import reference

LR, DECAY, UPDATES, DRAWS = 1e-3, 0.01, 10, 16


def train(case, autocast=False):
    """Losses before each of ten updates."""
    opt = reference.adamw(case.model, LR, DECAY)
    losses = []
    for _ in range(UPDATES):
        opt.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):  # each time anew: it keeps rounded weights until it ends
            loss = case.loss(case.run())
        loss.backward()
        losses.append(loss.item())
        opt.step()
    return losses


def values(case, times):
    """The outputs, and for each of `times` the gradients of their sum times these numbers."""
    out = {k: v.detach().double() for k, v in case.run().items()}
    for i, t in enumerate(times):
        case.model.zero_grad()
        sum((v.double() * t[k]).sum() for k, v in case.run().items()).backward()
        out |= {(i, "grad." + n): p.grad.double().clone() for n, p in case.model.named_parameters() if p.grad is not None}
    case.model.zero_grad()
    return out


def bf16_distances(case_of):
    """|x16 - x| of each output and each gradient: x16 from the model with weights, activations and gradients in bf16. The
    gradient is that of the outputs times fixed numbers: a loss may jump between two outputs that differ by a rounding (L1, or
    a match), and this is about the network. Root mean square over DRAWS of these numbers: a bias of one value would else be
    judged by one throw of the dice."""
    times, case = [], case_of(torch.float64)
    for seed in range(DRAWS):
        g = torch.Generator().manual_seed(seed)
        times.append({k: torch.randn(v.shape, generator=g, dtype=torch.float64).float() for k, v in case.run().items()})
    want, got = values(case, times), values(case_of(torch.bfloat16), times)
    far = {k: (got[k] - want[k]).norm() for k in want}
    out = {k: far[k] for k in far if isinstance(k, str)}
    out |= {k[1]: (sum(far[i, k[1]] ** 2 for i in range(DRAWS)) / DRAWS).sqrt() for k in far if not isinstance(k, str)}
    return {"bf16." + k: v.float().reshape(1) for k, v in out.items()} | {"bf16.times." + k: v for k, v in times[0].items()}


def write_golden(folder, case_of):
    case = case_of(torch.float64)
    outputs = case.run()
    loss = case.loss(outputs)
    loss.backward()
    out = {k: v.contiguous() for k, v in case.tensors.items()}
    out |= {k: v.detach().float().contiguous() for k, v in outputs.items()}
    for name, p in case.model.named_parameters():
        if p.grad is not None:
            out["grad." + name] = p.grad.float().clone().contiguous()
    out["loss"] = loss.detach().double().reshape(1)
    out["losses"] = torch.tensor(train(case), dtype=torch.float64)
    out["bf16.losses"] = torch.tensor(train(case_of(torch.float32), autocast=True))
    out |= bf16_distances(case_of)
    meta = {"torch": torch.__version__, "transformers": transformers.__version__, "made_by": "tests/golden/make_models.py"}
    save_file(out, folder / "golden.safetensors", metadata=meta | case.metadata)
    sizes = {p.name: p.stat().st_size for p in folder.iterdir()}
    print(folder.name, "loss", loss.item(), "ten", [round(x, 4) for x in out["losses"].tolist()], sizes)


def asks(size, texts):
    """Images and texts repeat, which is what the towers' cache is for."""
    rng = np.random.default_rng(5)
    images = [reference.picture(rng, size, size), reference.picture(rng, 50, 37)]
    return reference.Asks(images, [
        (0, (0, 0, size, size), texts[0]),
        (0, (0, 0, size, size), texts[1]),
        (1, (5, 3, 33, 49), texts[0]),
        (1, (0, 0, 37, 50), texts[2]),
    ])  # fmt: skip


def tiny(name):
    folder = here / f"tiny-{name}"
    folder.mkdir(exist_ok=True)
    return folder


def write_words(folder, count):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "?", "##s", "##d"]
    words += "is the ball red left of box what color how many are there in image blue tree and striped".split()
    words += [f"[unused{i}]" for i in range(count - len(words))]
    assert len(words) == count
    (folder / "vocab.txt").write_text("".join(w + "\n" for w in words))


def make_vilt():
    folder = tiny("vilt")
    write_words(folder, 60)
    config = transformers.ViltConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=12, image_size=32, patch_size=8, layer_norm_eps=1e-6, modality_type_vocab_size=2,
        num_labels=11, tie_word_embeddings=False, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip
    model = reference.vilt_save(folder, config, 32)
    rows = asks(32, ["Is the ball red?", "what color is the striped box left of the tree", "How many trees?"])
    write_golden(folder, lambda dtype: reference.vilt_case(folder, copy.deepcopy(model), rows, dtype))


def make_vilt_tanh():
    """An MLP whose activation is gelu's tanh form, which transformers calls gelu_pytorch_tanh and gelu_new."""
    folder = tiny("vilt-tanh")
    write_words(folder, 60)
    config = transformers.ViltConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, hidden_act="gelu_pytorch_tanh",
        max_position_embeddings=12, image_size=32, patch_size=8, layer_norm_eps=1e-6, modality_type_vocab_size=2,
        num_labels=5, tie_word_embeddings=False, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip
    model = reference.vilt_save(folder, config, 32)
    rows = asks(32, ["Is the ball red?", "what color is the striped box left of the tree", "How many trees?"])
    write_golden(folder, lambda dtype: reference.vilt_case(folder, copy.deepcopy(model), rows, dtype))


def make_nlvr2():
    """Questions about two pictures of different sizes; the same picture comes first once and second once."""
    folder = tiny("nlvr2")
    write_words(folder, 60)
    config = transformers.ViltConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=12, image_size=32, patch_size=8, layer_norm_eps=1e-6, modality_type_vocab_size=3, num_images=2,
        num_labels=2, tie_word_embeddings=False, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip
    model = reference.nlvr2_save(folder, config, 32)
    rows = asks(32, ["Is the ball red?", "there are red trees in how many of the images and", "How many trees?"])
    rows.pairs = [(1, (0, 0, 37, 50)), (1, (5, 3, 33, 49)), (0, (0, 0, 32, 32)), (0, (0, 4, 32, 20))]
    write_golden(folder, reference.nlvr2_case(folder, model, rows))


PHRASES = ["red ball", "Striped tree house", "a box, and much else that does not fit"]


def clip_towers(folder, positions):
    """Configurations of a text and a vision tower, over a small vocabulary that is written to the folder."""
    vocab = make_tokenizers.write_clip(folder, "a photo of the red blue ball box tree striped image".split())
    text = {
        "vocab_size": vocab, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": positions, "bos_token_id": vocab - 2, "eos_token_id": vocab - 1, "pad_token_id": 0}  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 8}  # fmt: skip
    return {"text_config": text, "vision_config": vision, "projection_dim": 24}


def make_owlvit():
    folder = tiny("owlvit")
    model = reference.owlvit_save(folder, transformers.OwlViTConfig(**clip_towers(folder, 16)))
    write_golden(folder, lambda dtype: reference.owlvit_case(folder, copy.deepcopy(model), asks(32, PHRASES), dtype))


def make_clip():
    """One text is cut at 12 ids; pictures wider and higher than the square, one of them by far."""
    folder = tiny("clip")
    model = reference.clip_save(folder, transformers.CLIPConfig(**clip_towers(folder, 12)))
    rng = np.random.default_rng(6)
    images = [reference.picture(rng, 40, 61), reference.picture(rng, 50, 37)]
    texts = ["red ball", "box", "Striped tree house, and much else that does not fit", "blue image"]
    rects = [(0, 0, 61, 40), (7, 30, 55, 35), (0, 0, 37, 50), (5, 3, 33, 49)]
    rows = reference.Asks(images, [(i // 2, rect, text) for i, (rect, text) in enumerate(zip(rects, texts))])
    write_golden(folder, lambda dtype: reference.clip_case(folder, copy.deepcopy(model), rows, dtype))


ANSWERS = ["red", "blue", "box", "a ball", "tree", "striped box", "yes", "left", "how many red trees are there"]


def make_blip():
    """Ids 60 and 61 are [DEC] and [ENC], behind the vocabulary."""
    folder = tiny("blip")
    write_words(folder, 60)
    text = {"vocab_size": 62, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "max_position_embeddings": 24, "bos_token_id": 60, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 8, "initializer_range": 0.02}  # fmt: skip
    config = transformers.BlipConfig(text_config=text, vision_config=vision)
    model = reference.blip_save(folder, config, ANSWERS)
    rows = asks(32, ["Is the ball red?", "what color is the striped box left of the tree", "How many trees?"])
    config = json.loads((folder / "config.json").read_text()) | {"answer_candidates": 6}  # fewer than there are answers
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_golden(folder, reference.blip_case(folder, model, rows, candidates=6))


if __name__ == "__main__":
    torch.set_num_threads(1)
    makers = {k.removeprefix("make_"): v for k, v in globals().items() if k.startswith("make_") and callable(v)}
    for name in sys.argv[1:] or makers:
        makers[name]()
