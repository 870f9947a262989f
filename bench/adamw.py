#!/usr/bin/env python3
"""The optimizer alone over ViLT-B/32's 117.6 million parameters, here and torch.optim.AdamW, side by side.

    python3 bench/adamw.py --bench build/cpu/vpdistill

Ours is the operation that an update calls once; PyTorch's is optimizer.step() as it comes ("default":
parameter by parameter on a CPU), with foreach and with fused. Gradients are there already, and neither clips.
An update moves at least 28 bytes a parameter: parameter and both moments read and written, the gradient read.
All take turns (turns.py). Needs requirements.txt.
"""

import argparse
import os

import folders
import step
import turns

HOW = ["default", "foreach", "fused"]


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    turns.add_options(p, 15)
    p.add_argument("--times", type=int, default=3, help="updates of a turn")
    p.add_argument("--how", default=",".join(HOW), help="PyTorch's forms: " + ", ".join(HOW))
    args = p.parse_args()
    args.cores, args.waits, args.precision = turns.cores_of(args), "PASSIVE", "f32"
    folder, size = folders.vilt_b32(), {"batch": 1, "text": 40, "side": 384}
    makers = [step.ours(args, folder, size, "adamw")]
    for how in args.how.split(","):
        makers.append(step.theirs(args, folder, size, "adamw", how, "PASSIVE"))
        makers[-1].kind = how
    peaks = []
    sides = turns.in_turns(
        makers,
        "adamw",
        args.times,
        args.rounds,
        between=lambda: peaks.append(turns.peak_of(args.bench, args.threads, args.cores)),
    )
    peak = max(p["gbs"] for p in peaks)
    rows = [turns.result_of(s, gbs=28 * s.info["parameters"] / turns.median(s) * 1e-9) for s in sides]
    result = {
        "threads": args.threads,
        "rounds": args.rounds,
        "times_per_turn": args.times,
        "peak_gbs": peak,
        "load": os.getloadavg()[0],
        "sides": rows,
        "ratios": turns.ratios(rows, {"default": 4.0}),
    }
    print(
        f"AdamW, {rows[0]['parameters']:,} parameters, {args.threads} threads; "
        f"{args.rounds} rounds, in turns, of {args.times}\n"
        f"{turns.machine()}\npeak in this run: {peak:.1f} GB/s"
    )
    print(f"{'':44s} {'median ms':>10s} {'best':>10s} {'GB/s':>8s} {'%peak':>6s}")
    for s in rows:
        print(
            f"{s['name']:44s} {s['median_s'] * 1e3:10.2f} {s['best_s'] * 1e3:10.2f} "
            f"{s['gbs']:8.1f} {100 * s['gbs'] / peak:6.1f}"
        )
    turns.print_ratios(result["ratios"])
    turns.finish(args, [result])


if __name__ == "__main__":
    main()
