#!/usr/bin/env python3
"""A folder from transformers trains here and goes back: both programs fine-tune it in turns.

    python3 tests/parity/chain.py                    all; make parity-chain PYTHON=... does the same
    python3 tests/parity/chain.py vilt-small         those named

For each model
  1. transformers saves a folder with random weights; `vpdistill scenes` draws images and labelled steps, and
     a few of them, crops of different sizes, are the batch of every update;
  2. `vpdistill train` does UPDATES updates of it, and so does transformers with torch.optim.AdamW: the
     losses before each are the same;
  3. transformers loads what vpdistill wrote, with no tensor missing or left over, answers on the batch as the
     engine does, and has the same loss and gradients;
  4. transformers does one update more from there and saves; the engine reads that folder, and has the loss
     that transformers has after its update.

Errors are measured as in parity.py, with its bounds. The table goes to tests/parity/chain.md, of which only
the rows of this run are replaced.
"""

import json
import re
import shutil
import subprocess

import parity
import suite

UPDATES, LR, DECAY, BETAS, EPS, CLIP = 5, 1e-4, 0.01, (0.9, 0.98), 1e-8, 1.0

# ---- the models --------------------------------------------------------------------------------------------


def vilt_small(folder):
    import reference
    import transformers

    parity.write_bert(folder)
    config = transformers.ViltConfig(
        num_labels=100,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=96,
        patch_size=16,
        layer_norm_eps=1e-12,
        tie_word_embeddings=False,
    )
    reference.vilt_save(folder, config, 96)


def owlvit_small(folder):
    tower = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
    parity.owlvit(folder, tower | {"image_size": 96, "patch_size": 16}, tower)


# name -> (what it is, the reference's precision, the module, images and steps of each in a batch, its maker)
MODELS = {
    "vilt-small": ("ViLT, width 96", "f64", "vqa", (3, 4), vilt_small),
    "owlvit-small": ("OWL-ViT, width 96", "f64", "loc", (3, 2), owlvit_small),
    "vilt-b32": ("ViLT-B/32, 3129 answers", "f64", "vqa", (2, 4), parity.vilt),
    "owlvit-b32": ("OWL-ViT-B/32", "f32", "loc", (2, 2), parity.owlvit),
}

# ---- the batch ---------------------------------------------------------------------------------------------


def draw_steps(args, work, module, images, each):
    """Labelled steps of `images` images, `each` of every one, in the folder work/data."""
    scenes = work / "scenes"
    subprocess.run(
        [
            args.engine,
            "scenes",
            f"scenes.dir={scenes}",
            "scenes.train=40",
            "scenes.val=0",
            "scenes.test=0",
            "scenes.questions=0",
            "scenes.steps=16",
        ],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    of = {}
    for line in (scenes / "train_steps.jsonl").read_text().splitlines():
        step = json.loads(line)
        if step["module"].lower() == module and step not in of.setdefault(step["image"], []):
            of[step["image"]].append(step)
    steps = [s[:each] for s in of.values() if len(s) >= each][:images]
    assert len(steps) == images
    data = work / "data"
    (data / "images").mkdir(parents=True)
    for of_image in steps:
        shutil.copy(scenes / of_image[0]["image"], data / "images")
    steps = [s for of_image in steps for s in of_image]
    (data / "train_steps.jsonl").write_text("".join(json.dumps(s) + "\n" for s in steps))
    return steps


def name_answers(folder, steps):
    """The answers of the steps take the first labels' places."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for i, answer in enumerate(sorted({s["answer"] for s in steps})):
        config["id2label"][str(i)] = answer
    config["label2id"] = {v: int(k) for k, v in config["id2label"].items()}
    path.write_text(json.dumps(config, indent=2) + "\n")


def batch_case(name, folder, model, work):
    """The batch as transformers has it, with the losses that `vpdistill train` has by default."""
    import numpy as np
    import reference
    import torch
    from PIL import Image

    _, precision, module, _, _ = MODELS[name]
    dtype = suite.precision(precision)
    steps = [json.loads(line) for line in (work / "data/train_steps.jsonl").read_text().splitlines()]
    files = sorted({s["image"] for s in steps})
    images = [np.array(Image.open(work / "data" / f)) for f in files]
    asks = reference.Asks(images, [(files.index(s["image"]), tuple(s["rect"]), s["query"]) for s in steps])
    if module == "vqa":
        target = torch.zeros(len(steps), model.config.num_labels)
        target[range(len(steps)), [model.config.label2id[s["answer"]] for s in steps]] = 1
        return reference.vilt_case(folder, model, asks, dtype, target=target)

    def boxes_of(step):
        """As cx, cy, w, h in 0 .. 1 of the rectangle."""
        rect = np.array(step["rect"], dtype=np.float64)
        size = rect[2:] - rect[:2]
        box = np.clip(
            np.array(step["boxes"], dtype=np.float64).reshape(-1, 4),
            np.tile(rect[:2], 2),
            np.tile(rect[2:], 2),
        )
        box = box[((box[:, 2:] - box[:, :2]) > 0).all(1)]
        centre, side = (box[:, :2] + box[:, 2:]) / 2 - rect[:2], box[:, 2:] - box[:, :2]
        box = reference.exact(torch.from_numpy(np.concatenate([centre / size, side / size], 1))).to(dtype)
        return box, torch.ones(len(box), dtype=dtype)

    how = {"w_class": 1.0, "w_l1": 1.0, "w_giou": 1.0, "alpha": 0.3, "gamma": 2.0, "negative_weight": 1.0}
    return reference.owlvit_case(folder, model, asks, dtype, targets=[boxes_of(s) for s in steps], how=how)


# ---- the reference's halves --------------------------------------------------------------------------------


def updates(case, n):
    """The loss before each of n updates."""
    import reference
    import torch

    optimizer, losses = reference.adamw(case.model, LR, DECAY, betas=BETAS, eps=EPS), []
    for _ in range(n):
        optimizer.zero_grad()
        loss = case.loss(case.run())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(case.model.parameters(), CLIP)
        losses.append(loss.item())
        optimizer.step()
    return losses


def first_half(name, work):
    """Step 2 in transformers."""
    model = suite.load(work / "model")
    print(json.dumps(updates(batch_case(name, work / "model", model, work), UPDATES)))


def second_half(name, work):
    """Steps 3 and 4 in transformers."""
    trained = work / "run/model"
    case = batch_case(name, trained, suite.load(trained), work)
    suite.answer(work, case)
    updates(case, 1)
    theirs = work / "theirs"
    shutil.copytree(trained, theirs)
    case.model.float().save_pretrained(theirs)
    again = batch_case(name, theirs, suite.load(theirs), work)
    print(again.loss(again.run()).item())


# ---- the comparison ----------------------------------------------------------------------------------------


def train(args, work, module, batch, per_image):
    """Step 2 here: the loss before each update, as printed."""
    options = {
        "data.kind": "steps",
        "data.dir": work / "data",
        "run.out": work / "run",
        "run.log_every": 1,
        "train.module": module,
        "model." + module: work / "model",
        "train.steps": UPDATES,
        "train.batch": batch,
        "train.per_image": per_image,
        "train.lr": LR,
        "train.schedule": "constant",
        "train.warmup": 0,
        "train.weight_decay": DECAY,
        "train.beta1": BETAS[0],
        "train.beta2": BETAS[1],
        "train.eps": EPS,
        "train.clip": CLIP,
    }
    done = subprocess.run(
        [args.engine, "train", *(f"{k}={v}" for k, v in options.items())],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return [float(x) for x in re.findall(r"^step \d+/\d+  loss (\S+)", done.stdout, re.M)]


TABLE = (
    parity.here / "chain.md",
    """Written by chain.py: a folder from transformers is fine-tuned by `vpdistill train`, then by
transformers, then read here again.
Relative errors of the engine's f32; bounds: outputs 1e-4, losses and gradients 1e-3.
""",
    [
        f"| model | | reference | losses of {UPDATES} updates | | outputs "
        "| loss | gradients | loss after the reference's update |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ],
)


def run(name, work, half, args):
    from safetensors import safe_open

    what, precision, module, (images, each), _ = MODELS[name]
    engine = lambda *files: subprocess.run([args.parity, *(str(work / f) for f in files)], check=True)
    steps = draw_steps(args, work, module, images, each)
    half("make")
    if module == "vqa":
        name_answers(work / "model", steps)
    theirs, ours = json.loads(half("first")), train(args, work, module, images * each, each)
    assert len(ours) == UPDATES, ours
    trained = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs))
    after = float(half("second"))
    engine("run/model", "case.safetensors", "engine.safetensors")
    outputs, loss, grads, _, count = suite.compare(work)
    engine("theirs", "case.safetensors", "after.safetensors")
    with safe_open(work / "after.safetensors", "np") as f:
        back = abs(float(f.get_tensor("loss")[0]) - after) / abs(after)
    ok = (
        outputs <= suite.OUTPUT_BOUND
        and max(loss, grads, trained, back) <= suite.GRADIENT_BOUND
        and ours[-1] < ours[0]
    )
    row = (
        f"| {name} | {what} | {precision} | {ours[0]:.4g} to {ours[-1]:.4g} | {trained:.1e} "
        f"| {outputs:.1e} | {loss:.1e} "
        f"| {grads:.1e} of {count} | {back:.1e} |"
    )
    return row, ok


if __name__ == "__main__":
    make = lambda name, work: MODELS[name][4](work / "model")
    halves = {"make": make, "first": first_half, "second": second_half}
    programs = {"--engine": "build/cpu/vpdistill", "--parity": "build/cpu/parity"}
    suite.main(__doc__, MODELS, halves, run, TABLE, programs, "build/chain")
