#!/usr/bin/env python3
"""The main job with models of the published sizes: `vpdistill distill` on the built-in dataset.

    python3 tests/parity/distill.py [--teacher vilt|blip] [--programs 4] [--candidates 4] [--steps 2]

Students are ViLT-B/32 VQA (3,129 answers, the dataset's among them) and OWL-ViT-B/32, the teacher is another
ViLT-B/32 or BLIP VQA base, which ranks the dataset's answers; folders as transformers saves them, kept in
OUT/models for the next time. No label is filtered, so that both students learn from every step: random
answers teach nothing, this is about execution, time and memory.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys

import parity


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
    folders = models(args.out, args.teacher, answers_of(scenes))
    options = {
        "run.out": args.out / f"run-{args.teacher}",
        "run.log_every": 1,
        "data.dir": scenes,
        "train.resume": "false",
        "train.save_every": 0,
        "distill.steps": args.steps,
        "distill.programs": args.programs,
        "distill.candidates": args.candidates,
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
    said = child.stdout.read()
    print(said, end="")
    _, status, used = os.wait4(child.pid, 0)
    print(
        f"peak memory {used.ru_maxrss / 1e6:.2f} GB, "
        f"{used.ru_utime + used.ru_stime:.0f} s of processor time in all"
    )
    learnt = re.findall(r"^step \d+/.*$", said, re.M)
    sys.exit(0 if not status and len(learnt) == args.steps else 1)


if __name__ == "__main__":
    main()
