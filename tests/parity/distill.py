#!/usr/bin/env python3
"""The main job with models of the published sizes: `vpdistill distill` on the built-in dataset.

    python3 tests/parity/distill.py [--teacher vilt|blip] [--programs 4] [--candidates 4] [--steps 2]

Students are ViLT-B/32 VQA (3,129 answers, the dataset's among them) and OWL-ViT-B/32, the teacher is another
ViLT-B/32 or BLIP VQA base, which ranks the dataset's answers; folders as transformers saves them, kept in
OUT/models for the next time. No label is filtered, so that there is something to learn in every step: random
answers teach nothing, this is about execution, time and memory. It fails when LOC meets no box of a step.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

import parity

# As the two were published. The demo's 1e-3 is for its tiny networks: where a layer has 768 inputs, one
# update of AdamW at that rate moves an output by up to 0.77. After it OWL-ViT found nothing anywhere, its boxes
# were nowhere near a label's, and 1e-5 was left of LOC's loss.
LR = {"vqa": 1e-4, "loc": 5e-5}
LOOKS_AT = 0.5  # engine/distill.c: a patch learns to see a label's box when its own overlaps it by this


def answers_of(scenes):
    return sorted({q["answer"] for q in json.loads((scenes / "train_questions.json").read_text()).values()})


def models(out, teacher, answers):
    folders = {}
    for option, name in (
        ("vqa", "vilt-vqa"),
        ("loc", "owlvit-b32"),
        ("teacher", {"vilt": "vilt-vqa", "blip": "blip-vqa"}[teacher]),
    ):
        folder = folders[option] = out / "models" / (f"{option}-{name}")
        if not (folder / "model.safetensors").exists():
            folder.mkdir(parents=True, exist_ok=True)
            parity.MODELS[name].make(folder)
        if name == "blip-vqa":
            (folder / "answer_list.json").write_text(json.dumps(answers) + "\n")
        elif name == "vilt-vqa":
            config = json.loads((folder / "config.json").read_text())
            for i, answer in enumerate(answers):
                config["id2label"][str(i)] = answer
            config["label2id"] = {v: int(k) for k, v in config["id2label"].items()}
            (folder / "config.json").write_text(json.dumps(config))
    return folders


def overlap(a, b):
    """IoU of (x0, y0, x1, y1)."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    area = lambda x: (x[2] - x[0]) * (x[3] - x[1])
    both = max(w, 0) * max(h, 0)
    return both / (area(a) + area(b) - both)


def boxes_met(trace, steps):
    """(those that lie on a box that the student itself finds, all boxes of LOC's labels), of each step. Of the
    student's only those inside count: the others have been cut at the edge, and learn as they were."""
    boxes, met = [0] * steps, [0] * steps
    for line in map(json.loads, trace.read_text().splitlines()):
        if line["module"] != "LOC" or not line["kept"]:
            continue
        x0, y0, x1, y1 = line["rect"]
        inside = [b for b in line["student"] if b[0] > x0 and b[1] > y0 and b[2] < x1 and b[3] < y1]
        boxes[line["update"]] += len(line["boxes"])
        met[line["update"]] += sum(any(overlap(box, b) >= LOOKS_AT for b in inside) for box in line["boxes"])
    return list(zip(met, boxes))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--engine", default="build/cpu/vpdistill")
    p.add_argument("--out", type=pathlib.Path, default=pathlib.Path("build/distill"))
    p.add_argument("--teacher", default="vilt", choices=["vilt", "blip"])
    p.add_argument("--programs", type=int, default=4)
    p.add_argument(
        "--candidates", type=int, default=4, help="boxes of a LOC step that the teacher is asked about"
    )
    p.add_argument("--steps", type=int, default=2)
    p.add_argument("options", nargs="*", help="section.key=value for vpdistill")
    args = p.parse_args()
    scenes = args.out / "scenes"
    subprocess.run(
        [args.engine, "scenes", f"scenes.dir={scenes}", "scenes.train=20", "scenes.val=0", "scenes.test=4"],
        check=True,
    )
    trace = args.out / f"trace-{args.teacher}.jsonl"
    folders = models(args.out, args.teacher, answers_of(scenes))
    options = {
        "run.out": args.out / f"run-{args.teacher}",
        "run.log_every": 1,
        "data.dir": scenes,
        "train.resume": "false",
        "train.save_every": 0,
        "distill.steps": args.steps,
        "distill.lr_vqa": LR["vqa"],
        "distill.lr_loc": LR["loc"],
        "trace.path": trace,
        "distill.programs": args.programs,
        "distill.candidates": args.candidates,
        "model.loc_threshold": 0,  # random scores say nothing; so the trace has all boxes of the student
        "eval.limit": 4,
        "distill.confidence": 0,
        "distill.filter_executes": "false",
        "distill.filter_confident": "false",
        "distill.filter_replay": "false",
        "distill.loc_l1": 1,
        "distill.loc_giou": 1,
    } | {"model." + k: v for k, v in folders.items()}
    command = [
        args.engine,
        "distill",
        "configs/demo.yaml",
        *(f"{k}={v}" for k, v in options.items()),
        *args.options,
    ]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seconds, since = [], time.time()
    for line in child.stdout:
        print(line, end="", flush=True)
        if line.startswith("step "):
            seconds.append(time.time() - since)
        since = time.time()  # a step begins where the line before it was written
    _, status, used = os.wait4(child.pid, 0)
    print(f"seconds per step: {' '.join(f'{s:.1f}' for s in seconds)}")
    print(
        f"peak memory {used.ru_maxrss / 1e6:.2f} GB, "
        f"{used.ru_utime + used.ru_stime:.0f} s of processor time in all"
    )
    if status or len(seconds) != args.steps:
        sys.exit(f"status {status}, {len(seconds)} steps of {args.steps}")
    met = boxes_met(trace, args.steps)
    print("boxes of labels that LOC can learn to see, by step:", ", ".join(f"{m} of {n}" for m, n in met))
    # A label without boxes teaches, too: what is not there.
    sys.exit(0 if all(m or not n for m, n in met) else "LOC cannot learn its labels' boxes")


if __name__ == "__main__":
    main()
