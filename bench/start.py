#!/usr/bin/env python3
"""From the start of a process to its first answer, here and with transformers, in turns.

    python3 bench/start.py --bench build/cpu/vpdistill

A question about a photograph to ViLT-B/32 (random weights, 3,129 answers, a folder as transformers saves it,
470 MB): `vpdistill run` with a program of one VQA step, and the shortest Python program that does the same.
Both processes start from nothing in every turn; files are in the page cache from a first turn that is not
counted. Both must give the same answer. Peak memory is the resident set, with the pages of the weights' file
that a process maps. Needs requirements.txt.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import time

import turns

GOAL_S = 2.0
QUESTION = "what color is the ball left of the tree"


def answer(folder, image):
    """What a user of transformers writes."""
    import torch
    from PIL import Image
    from transformers import BertTokenizerFast, ViltForQuestionAnswering
    from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

    tokenizer = BertTokenizerFast(vocab=f"{folder}/vocab.txt", do_lower_case=True)
    processor = ViltImageProcessorPil.from_pretrained(folder)
    model = ViltForQuestionAnswering.from_pretrained(folder).eval()
    with torch.inference_mode():
        text = tokenizer(QUESTION, return_tensors="pt")
        logits = model(**text, **processor(Image.open(image).convert("RGB"), return_tensors="pt")).logits
    print(model.config.id2label[logits.argmax().item()])


def save_model():
    """ViLT-B/32 with random weights; kept for the next time."""
    import shutil

    import torch
    from transformers import ViltForQuestionAnswering

    import folders
    from peers import config_of

    plain, folder = folders.vilt_b32(), turns.root / "build/bench/vilt-b32-random"
    if not (folder / "model.safetensors").exists():
        torch.manual_seed(1)
        model = ViltForQuestionAnswering(config_of(plain))
        torch.nn.init.normal_(model.classifier[3].weight, std=0.5)  # answers that rounding does not swap
        model.save_pretrained(folder)
        for name in ("vocab.txt", "preprocessor_config.json"):
            shutil.copy(plain / name, folder)
    print(folder)


def turn(command, env, cores):
    """(seconds, peak bytes, the last line printed)."""
    begin = time.perf_counter()
    p = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=env,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    said = p.stdout.read().split("\n")
    _, status, used = os.wait4(p.pid, 0)
    if status:
        sys.exit(f"{command[0]} ended with status {status}")
    return time.perf_counter() - begin, used.ru_maxrss * 1024, [line for line in said if line][-1]


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    turns.add_options(p, 9)
    p.add_argument("--answer", nargs=2, help=argparse.SUPPRESS)
    p.add_argument("--save", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.answer:
        return answer(*args.answer)
    if args.save:
        return save_model()
    from jpeg import make_photographs

    python = [sys.executable, __file__]
    image = make_photographs(turns.root / "build/bench/photographs") / "00.jpg"
    folder = subprocess.run(
        [*python, "--save"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.split()[-1]
    program = pathlib.Path(folder) / "program.txt"
    program.write_text(f"ANSWER0=VQA(image=IMAGE,question='{QUESTION}')\nFINAL_RESULT=RESULT(var=ANSWER0)\n")
    cores, env = (
        turns.cores_of(args),
        {**os.environ, "OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"},
    )
    sides = {
        "vpdistill": [
            args.bench,
            "run",
            "--image",
            str(image),
            "--program",
            str(program),
            "--vqa",
            folder,
            f"run.threads={args.threads}",
        ],
        "transformers": [*python, "--answer", folder, str(image)],
    }
    turned = {name: [] for name in sides}
    for r in range(-1, args.rounds):
        for name in sides if r % 2 else reversed(sides):
            one = turn(sides[name], env, cores)
            if r >= 0:
                turned[name].append(one)
    rows = [
        {
            "name": name,
            "kind": name,
            "median_s": statistics.median(t[0] for t in ts),
            "best_s": min(t[0] for t in ts),
            "peak_rss": statistics.median(t[1] for t in ts),
            "answer": ts[0][2],
            "turns_s": [t[0] for t in ts],
        }
        for name, ts in turned.items()
    ]
    result = {
        "threads": args.threads,
        "rounds": args.rounds,
        "load": os.getloadavg()[0],
        "sides": rows,
        "ratios": turns.ratios(rows, {}),
    }
    print(
        f"start to answer of ViLT-B/32, {args.threads} threads; "
        f"{args.rounds} rounds, in turns\n{turns.machine()}"
    )
    print(f"{'':16s} {'median s':>10s} {'best':>10s} {'peak RSS MB':>12s}  answer")
    for s in rows:
        print(
            f"{s['name']:16s} {s['median_s']:10.3f} {s['best_s']:10.3f} "
            f"{s['peak_rss'] / 1e6:12.0f}  {s['answer']}"
        )
    turns.print_ratios(result["ratios"])
    if rows[0]["answer"].split()[-2:] != rows[1]["answer"].split()[-2:]:
        sys.exit("the answers differ")
    result["ratios"][0]["goal"] = rows[1]["median_s"] / GOAL_S  # as many times as quick as takes two seconds
    print(f"{'in' if rows[0]['median_s'] <= GOAL_S else 'NOT in'} the {GOAL_S:g} s that are the goal")
    turns.finish(args, [result])


if __name__ == "__main__":
    main()
