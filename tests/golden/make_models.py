#!/usr/bin/env python3
"""Golden values of whole models: tiny random ViLT and OWL-ViT from transformers, in float64.

Writes tests/golden/tiny-vilt and tests/golden/tiny-owlvit: a model folder each (f32 weights) and golden.safetensors
with the inputs, the outputs, the loss, every parameter's gradient, and the losses of ten AdamW updates on the same
batch. Images go through the reference's own Pillow processors, so that cropping, resizing and tokenizing are under
test too. Needs torch, transformers, Pillow, scipy; CI never runs it.   python3 tests/golden/make_models.py
"""
import json
import math
import pathlib
import sys

import numpy as np
import scipy.optimize
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from transformers.models.owlvit.image_processing_pil_owlvit import OwlViTImageProcessorPil
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

here = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent.parent / "configs" / "models"))
sys.dont_write_bytecode = True
import make_tokenizers

LR, DECAY, UPDATES = 1e-3, 0.01, 10


def rows_first(image, size, resample=None, **kwargs):
    """Pillow up to version 12 resamples rows, then columns; 13 turns that round in some downscales, which moves values by
    a few units (see kernels/cpu/image.c). The published models were trained behind the older order."""
    return pillow_resize(pillow_resize(image, (size[0], image.size[1]), resample, **kwargs), size, resample, **kwargs)


pillow_resize = Image.Image.resize
Image.Image.resize = rows_first


def picture(rng, h, w):
    """Smooth enough for resampling to matter, with noise on top."""
    y, x = np.mgrid[0:h, 0:w]
    base = [127 + 90 * np.sin(x / (4 + 3 * k) + k) * np.cos(y / (7 - k)) for k in range(3)]
    return np.clip(np.stack(base, -1) + rng.normal(0, 25, (h, w, 3)), 0, 255).astype(np.uint8)


def randomize(model, seed):
    """Weights large enough that every path matters: fan-in scaled matrices, norms around 1, biases around 0."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=g, dtype=torch.float64).float()
            if is_norm(name) and name.endswith("weight"):
                p.copy_(1 + 0.2 * noise)
            elif p.ndim < 2:
                p.copy_(0.2 * noise)
            else:
                fan_in = p[0].numel() if "embedding" not in name or "patch" in name else 4
                p.copy_(noise / math.sqrt(fan_in))


def is_norm(name):
    return "norm" in name.lower() or name.startswith("classifier.1.")


def train(model, loss_fn):
    """Losses before each of ten updates: AdamW with decoupled decay on all but biases and norms."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    plain = [p for n, p in named if n.endswith("bias") or is_norm(n)]
    decayed = [p for n, p in named if not (n.endswith("bias") or is_norm(n))]
    opt = torch.optim.AdamW([{"params": decayed, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}], lr=LR)
    losses = []
    for _ in range(UPDATES):
        opt.zero_grad()
        loss = loss_fn()
        loss.backward()
        losses.append(loss.item())
        opt.step()
    return losses


def write_golden(folder, model, tensors, loss_fn, extra):
    loss = loss_fn()
    loss.backward()
    out = {k: v.contiguous() for k, v in tensors.items()}
    for name, p in model.named_parameters():
        if p.grad is not None:
            out["grad." + name] = p.grad.float().clone().contiguous()
    out["loss"] = loss.detach().double().reshape(1)
    out["losses"] = torch.tensor(train(model, loss_fn), dtype=torch.float64)
    meta = {"torch": torch.__version__, "transformers": transformers.__version__, "made_by": "tests/golden/make_models.py"} | extra
    save_file(out, folder / "golden.safetensors", metadata=meta)
    sizes = {p.name: p.stat().st_size for p in folder.iterdir()}
    print(folder.name, "loss", loss.item(), "ten", [round(x, 4) for x in out["losses"].tolist()], sizes)


def save_model(folder, model, processor):
    model.float().save_pretrained(folder)
    processor.save_pretrained(folder)
    for extra in ("generation_config.json",):
        (folder / extra).unlink(missing_ok=True)
    return model.double().eval()


# The asks: image, rectangle (x0, y0, x1, y1), text. Images and texts repeat, which is what the towers' cache is for.
def asks(size, texts):
    rng = np.random.default_rng(5)
    images = [picture(rng, size, size), picture(rng, 50, 37)]
    return images, [
        (0, (0, 0, size, size), texts[0]),
        (0, (0, 0, size, size), texts[1]),
        (1, (5, 3, 33, 49), texts[0]),
        (1, (0, 0, 37, 50), texts[2]),
    ]


def ask_tensors(images, rows):
    t = {f"image{i}": torch.from_numpy(x) for i, x in enumerate(images)}
    t["ask.image"] = torch.tensor([r[0] for r in rows], dtype=torch.int32)
    t["ask.rect"] = torch.tensor([r[1] for r in rows], dtype=torch.int32)
    return t, {f"ask.text{i}": r[2] for i, r in enumerate(rows)}


def crops(images, rows):
    return [Image.fromarray(images[i]).crop(rect) for i, rect, _ in rows]


def make_vilt():
    folder = here / "tiny-vilt"
    folder.mkdir(exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "?", "##s", "##d"]
    words += "is the ball red left of box what color how many are there in image blue tree and striped".split()
    words += [f"[unused{i}]" for i in range(60 - len(words))]
    assert len(words) == 60
    (folder / "vocab.txt").write_text("".join(w + "\n" for w in words))
    config = transformers.ViltConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=12, image_size=32, patch_size=8, layer_norm_eps=1e-6, modality_type_vocab_size=2,
        num_labels=11, tie_word_embeddings=False, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip
    config.id2label = {i: f"answer{i}" for i in range(11)}
    config.label2id = {v: k for k, v in config.id2label.items()}
    model = transformers.ViltForQuestionAnswering._from_config(config, attn_implementation="eager")
    randomize(model, 1)
    processor = ViltImageProcessorPil(size={"shortest_edge": 32}, size_divisor=8)
    # Pillow's own 1333/800 rule is inside the processor.
    model = save_model(folder, model, processor)
    tokenizer = transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True)
    images, rows = asks(32, ["Is the ball red?", "what color is the striped box left of the tree", "How many trees?"])
    text = tokenizer([r[2] for r in rows], padding="max_length", max_length=12, truncation=True, return_tensors="pt")
    pixels = processor(crops(images, rows), return_tensors="pt")
    labels = torch.rand((len(rows), 11), generator=torch.Generator().manual_seed(2), dtype=torch.float64) ** 3
    labels = labels.float().double()

    def run():
        torch.manual_seed(0)  # the reference draws the order of patches
        return model(
            input_ids=text.input_ids, attention_mask=text.attention_mask, token_type_ids=torch.zeros_like(text.input_ids),
            pixel_values=pixels.pixel_values.double(), pixel_mask=pixels.pixel_mask, labels=labels)  # fmt: skip

    tensors, extra = ask_tensors(images, rows)
    tensors |= {"target": labels.float(), "logits": run().logits.detach().float()}
    tensors["ids"] = text.input_ids.int()
    write_golden(folder, model, tensors, lambda: run().loss, extra)


def box_corners(b):
    return torch.cat([b[..., :2] - b[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2], -1)


def giou(a, b):
    """Of corner boxes, element by element (broadcasting)."""
    area = lambda x: (x[..., 2] - x[..., 0]) * (x[..., 3] - x[..., 1])
    both = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    union = area(a) + area(b) - both
    return both / union - (hull - union) / hull


LOC = {"w_class": 1.0, "w_l1": 2.0, "w_giou": 1.5, "alpha": 0.3, "gamma": 2.0, "negative_weight": 0.5}


def loc_loss(logits, boxes, targets, weight):
    """Focal + L1 on corners + GIoU after Hungarian matching; targets[i] = (boxes, scores) of ask i."""
    total = 0
    for x, pred, (box, score) in zip(logits, boxes, targets):
        y, w = torch.zeros_like(x), torch.full_like(x, LOC["negative_weight"])
        if len(box):
            with torch.no_grad():
                p = x.sigmoid()
                a, g = LOC["alpha"], LOC["gamma"]
                klass = -a * (1 - p) ** g * torch.log(p) + (1 - a) * p**g * torch.log(1 - p)
                cost = LOC["w_class"] * klass + LOC["w_l1"] * (box[:, None] - pred).abs().sum(-1)
                cost -= LOC["w_giou"] * giou(box_corners(box)[:, None], box_corners(pred))
                row, col = scipy.optimize.linear_sum_assignment(cost.numpy())
            y[col], w[col] = score[row], 1.0
            mine, want = box_corners(pred[col]), box_corners(box[row])
            total = total + weight * LOC["w_l1"] * (mine - want).abs().sum()
            total = total + weight * LOC["w_giou"] * (1 - giou(mine, want)).sum()
        ce = torch.nn.functional.binary_cross_entropy_with_logits(x, y, reduction="none")
        a = LOC["alpha"] * y + (1 - LOC["alpha"]) * (1 - y)
        total = total + weight * LOC["w_class"] * (w * a * (y - x.sigmoid()).abs() ** LOC["gamma"] * ce).sum()
    return total


def make_owlvit():
    folder = here / "tiny-owlvit"
    folder.mkdir(exist_ok=True)
    words = "a photo of the red blue ball box tree striped image".split()
    vocab = make_tokenizers.write_clip(folder, words)
    text_config = {
        "vocab_size": vocab, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 16, "bos_token_id": vocab - 2, "eos_token_id": vocab - 1, "pad_token_id": 0}  # fmt: skip
    vision_config = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                     "image_size": 32, "patch_size": 8}  # fmt: skip
    config = transformers.OwlViTConfig(text_config=text_config, vision_config=vision_config, projection_dim=24)
    model = transformers.OwlViTForObjectDetection._from_config(config, attn_implementation="eager")
    randomize(model, 3)
    processor = OwlViTImageProcessorPil(size={"height": 32, "width": 32})
    model = save_model(folder, model, processor)
    tokenizer = transformers.CLIPTokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), pad_token="!")
    images, rows = asks(32, ["red ball", "Striped tree house", "a box, and much else that does not fit"])
    prompts = ["a photo of " + r[2] for r in rows]
    text = tokenizer(prompts, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    pixels = processor(crops(images, rows), return_tensors="pt").pixel_values.double()
    box = lambda *b: torch.tensor(b, dtype=torch.float64).float().double().reshape(-1, 4)
    score = lambda *s: torch.tensor(s, dtype=torch.float64).float().double()
    targets = [
        (box(0.3, 0.4, 0.35, 0.5, 0.7, 0.65, 0.4, 0.3), score(1.0, 0.7)),
        (box(), score()),
        (box(0.5, 0.5, 0.8, 0.9), score(0.9)),
        (box(0.2, 0.2, 0.2, 0.25, 0.8, 0.3, 0.3, 0.3, 0.4, 0.8, 0.5, 0.3), score(1.0, 1.0, 1.0)),
    ]

    def run():
        out = model(input_ids=text.input_ids, attention_mask=text.attention_mask, pixel_values=pixels)
        return out.logits[..., 0].double(), out.pred_boxes  # the reference itself rounds the logits to f32

    logits, boxes = run()
    tensors, extra = ask_tensors(images, rows)
    tensors |= {"logits": logits.detach().float(), "boxes": boxes.detach().float(), "ids": text.input_ids.int()}
    tensors["target.count"] = torch.tensor([len(t[0]) for t in targets], dtype=torch.int32)
    tensors["target.box"] = torch.cat([t[0] for t in targets]).float()
    tensors["target.score"] = torch.cat([t[1] for t in targets]).float()
    extra |= {k: str(v) for k, v in LOC.items()}

    def loss_fn():
        logits, boxes = run()
        return loc_loss(logits, boxes, targets, 1 / len(rows))

    write_golden(folder, model, tensors, loss_fn, extra)


torch.set_num_threads(1)
make_vilt()
make_owlvit()
