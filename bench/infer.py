#!/usr/bin/env python3
"""The outputs for one image here, in ONNX Runtime and in PyTorch, side by side in one run.

    python3 bench/infer.py --bench build/cpu/vpdistill                 ViLT-B/32 VQA and OWL-ViT-B/32, batch 1
    python3 bench/infer.py --bench build/cpu/vpdistill --size b32 --batch 8

Ours turns u8 pixels into patches and words into tokens every time; the peers (peers.py) get both ready made.
ONNX Runtime runs the plain network as torch.onnx exports it, all its optimizations on; the export is kept in
build/bench. It computes in f32 alone: with --precision bf16 it is left out. All take turns (turns.py). Needs
requirements.txt.
"""

import argparse
import os
import sys

import step
import turns

PEERS = ["onnx", "hf-eager", "plain-eager", "plain-compile"]


def measure(args, name):
    size = step.SIZES[name] | {"batch": args.batch}
    folder = size["folder"]()
    make = lambda peer: step.theirs(args, folder, size, peer, "fused", args.waits.split(",")[0], "--infer")
    peers = args.peers.split(",")
    if args.precision == "bf16" and "onnx" in peers:
        print("  onnx: no row, ONNX Runtime has no bf16 kernels for the CPU", file=sys.stderr)
        peers.remove("onnx")
    makers = [step.ours(args, folder, size, "infer"), *map(make, peers)]
    sides = turns.in_turns(makers, "infer", args.times, args.rounds)
    rows = [turns.result_of(s) for s in sides]
    same = [
        s["value"] for s in rows if s["kind"] == "onnx" or s["name"].startswith("plain")
    ]  # one network, one seed
    if args.precision == "f32" and max(abs(v - same[0]) for v in same) > 1e-3:
        raise SystemExit(f"the peers' outputs differ: {same}")
    return {
        "size": name,
        **{k: size[k] for k in ("batch", "text", "side")},
        "precision": args.precision,
        "threads": args.threads,
        "rounds": args.rounds,
        "times_per_turn": args.times,
        "load": os.getloadavg()[0],
        "sides": rows,
        "ratios": turns.ratios(rows, {"onnx": 1.0}),
    }


def table(r):
    print(
        f"\n{r['size']}: batch {r['batch']}, {r['text']} text tokens, {r['side']}x{r['side']} pixels, "
        f"{r['precision']}, {r['threads']} threads; "
        f"{r['rounds']} rounds, in turns, of {r['times_per_turn']}\n{turns.machine()}"
    )
    print(f"{'':44s} {'median ms':>10s} {'best':>10s} {'cpu ms':>10s} {'peak RSS MB':>12s}")
    for s in r["sides"]:
        print(
            f"{s['name']:44s} {s['median_s'] * 1e3:10.2f} {s['best_s'] * 1e3:10.2f} "
            f"{s['cpu_s'] * 1e3:10.2f} {s['peak_rss'] / 1e6:12.0f}"
        )
    turns.print_ratios(r["ratios"])


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    turns.add_options(p, 15)
    step.network_options(p)
    p.add_argument("--batch", type=int, default=1)
    p.add_argument("--times", type=int, default=3, help="of a turn")
    p.add_argument("--peers", default=",".join(PEERS), help=", ".join(PEERS))
    args = p.parse_args()
    args.cores = turns.cores_of(args)
    results = []
    for name in (args.size or "b32,owl").split(","):
        if name not in step.SIZES:
            p.error(f"--size {name}: known are {', '.join(step.SIZES)}")
        results.append(measure(args, name))
        table(results[-1])
    turns.finish(args, results)


if __name__ == "__main__":
    main()
