#!/usr/bin/env python3
"""One training step here and in PyTorch, side by side in one run.

    python3 bench/step.py --bench build/cpu/vpdistill                       all sizes, the tables
    python3 bench/step.py --bench build/cpu/vpdistill --size demo --json out.json
    python3 bench/step.py --bench build/cpu/vpdistill --size b32 --peers plain-eager,plain-compile --rounds 9

Sizes: demo and demo-loc (the demo's ViLT, batch 64, and OWL-ViT, batch 16), b32 (ViLT-B/32, batch 8), owl
(OWL-ViT-B/32, batch 4). Same sizes, same batch, same number of threads, the same cores. A step is forward,
loss, backward, clipping to a global norm, AdamW. Ours also turns u8 pixels into patches and words into tokens
in every step; PyTorch gets both ready made.

The peers are the quickest of the eager programs of peers.py, and the quickest of the compiled ones, each with
the quicker of AdamW's fused and foreach forms, found by short trials before the run. All then take turns
(turns.py). Needs requirements.txt. plain-first is no candidate unless asked for by --peers: nobody writes it
so, but it tells engine from algorithm.
"""

import argparse
import functools
import json
import os
import pathlib
import sys

import folders
import turns
from peers import NETWORKS

SIZES = {  # goals: times the speed of PyTorch's quickest
    "demo": dict(
        folder=lambda: turns.root / "configs/models/tiny-vilt",
        batch=64,
        text=10,
        side=48,
        steps=10,
        goals={"eager": 2.0},
    ),
    "demo-loc": dict(
        folder=lambda: turns.root / "configs/models/tiny-owlvit",
        batch=16,
        text=16,
        side=96,
        steps=10,
        goals={"eager": 2.0},
    ),
    "b32": dict(
        folder=folders.vilt_b32, batch=8, text=40, side=384, steps=1, goals={"eager": 1.2, "compile": 1.0}
    ),
    "owl": dict(
        folder=folders.owlvit_b32, batch=4, text=16, side=768, steps=1, goals={"eager": 1.2, "compile": 1.0}
    ),
}


def block_flops(T, C, F):
    """Forward, of the products of a block on T tokens."""
    return 2 * T * (4 * C * C + 2 * C * F) + 4 * T * T * C


def flops(folder, size, first_only):
    """Matrix products of a step: forward once, backward twice (the patches need no gradient)."""
    c = json.loads((pathlib.Path(folder) / "config.json").read_text())
    N = size["text"]
    if c["model_type"] == "owlvit":
        v, t = c["vision_config"], c["text_config"]
        C, D, P = v["hidden_size"], t["hidden_size"], (v["image_size"] // v["patch_size"]) ** 2
        towers = v["num_hidden_layers"] * block_flops(P + 1, C, v["intermediate_size"])
        towers += (
            t["num_hidden_layers"] * block_flops(N, D, t["intermediate_size"]) + 2 * D * c["projection_dim"]
        )
        heads = 2 * P * (C * D + D + 2 * C + 2 * C * C + 4 * C)
        return size["batch"] * (3 * (towers + heads) + 4 * P * 3 * v["patch_size"] ** 2 * C)
    C, F, P = c["hidden_size"], c["intermediate_size"], (size["side"] // c["patch_size"]) ** 2
    T = N + 1 + P
    block = block_flops(T, C, F)
    last = 2 * T * 2 * C * C + 2 * (2 * C * C + 2 * C * F) + 4 * T * C if first_only else block
    head = 2 * (C * C + 2 * C * C + 2 * C * len(c["id2label"]))
    return size["batch"] * (
        3 * (block * (c["num_hidden_layers"] - 1) + last + head) + 4 * P * 3 * c["patch_size"] ** 2 * C
    )


def ours(args, folder, size, what="step"):
    """Our side, with the quicker of --waits."""
    module = json.loads((pathlib.Path(folder) / "config.json").read_text())["model_type"]
    option = "model.loc" if module == "owlvit" else "model.vqa"
    command = [
        args.bench,
        "bench",
        "step",
        "requests",
        f"{option}={folder}",
        f"run.threads={args.threads}",
        f"bench.batch={size['batch']}",
        f"bench.text={size['text']}",
        f"bench.side={size['side']}",
        f"run.precision={args.precision}",
    ]
    env = lambda wait: {"OMP_NUM_THREADS": str(args.threads), "OMP_WAIT_POLICY": wait}
    makers = [
        turns.Maker(f"vpdistill ({w.lower()})", "ours", command, args.cores, env(w))
        for w in args.waits.split(",")
    ]
    return turns.quickest(makers, what, 3) or sys.exit("vpdistill does not run")


def theirs(args, folder, size, peer, optimizer, wait, *more):
    command = [
        sys.executable,
        str(turns.here / "peers.py"),
        "--peer",
        peer,
        "--optimizer",
        optimizer,
        "--folder",
        str(folder),
        "--threads",
        str(args.threads),
        "--precision",
        args.precision,
        *(f"--{k}={size[k]}" for k in ("batch", "text", "side")),
        *more,
    ]
    env = {"OMP_NUM_THREADS": str(args.threads), "OMP_WAIT_POLICY": wait}
    kind = "onnx" if peer == "onnx" else peer.split("-")[-1]
    return turns.Maker(
        f"{peer}{'' if more else ', ' + optimizer + ' AdamW'} ({wait.lower()})",
        kind,
        command,
        args.cores,
        env,
    )


def peers_of(args, folder, size, n):
    """The quickest eager and the quickest compiled program. Optimizers and waiting are tried on the plainest
    one, then the programs: one trial each instead of all products."""
    peers = args.peers.split(",")
    make = functools.partial(theirs, args, folder, size)
    settings = [(o, w) for o in args.optimizers.split(",") for w in args.waits.split(",")]
    probes = {make("plain-eager", *s): s for s in settings}
    setting = probes[turns.quickest(list(probes), "step", n)]
    kinds = dict.fromkeys(p.split("-")[-1] for p in peers)
    best = [
        turns.quickest([make(p, *setting) for p in peers if p.endswith(kind)], "step", n) for kind in kinds
    ]
    return [b for b in best if b] or sys.exit("no program of PyTorch runs")


def measure(args, name):
    size = SIZES[name]
    folder = size["folder"]()
    n = args.steps or size["steps"]
    makers = [ours(args, folder, size), *peers_of(args, folder, size, max(n, 3))]
    peaks = []
    sides = turns.in_turns(
        makers,
        "step",
        n,
        args.rounds,
        between=lambda: peaks.append(turns.peak_of(args.bench, args.threads, args.cores)),
    )
    peak = {k: max(p[k] for p in peaks) for k in ("gflops", "gbs")}
    rows = []
    for s in sides:
        rate = flops(folder, size, s.kind in ("ours", "first")) / turns.median(s) * 1e-9
        rows.append(turns.result_of(s, gflops=rate, share_of_peak=rate / peak["gflops"]))
    return {
        "size": name,
        **{k: size[k] for k in ("batch", "text", "side")},
        "precision": args.precision,
        "threads": args.threads,
        "rounds": args.rounds,
        "steps_per_turn": n,
        "peak_gflops": peak["gflops"],
        "peak_gbs": peak["gbs"],
        "load": os.getloadavg()[0],
        "sides": rows,
        "ratios": turns.ratios(rows, size["goals"]),
    }


def table(r):
    print(
        f"\n{r['size']}: batch {r['batch']}, {r['text']} text tokens, {r['side']}x{r['side']} pixels, "
        f"{r['sides'][0]['parameters']:,} "
        f"parameters, {r['precision']}, {r['threads']} threads; "
        f"{r['rounds']} rounds, in turns, of {r['steps_per_turn']} steps\n"
        f"{turns.machine()}\npeak in this run: {r['peak_gflops']:.1f} GFLOP/s, {r['peak_gbs']:.1f} GB/s"
    )
    print(
        f"{'':44s} {'median ms':>10s} {'best':>10s} {'cpu ms':>10s} "
        f"{'GFLOP/s':>8s} {'%peak':>6s} {'peak RSS MB':>12s}"
    )
    for s in r["sides"]:
        print(
            f"{s['name']:44s} {s['median_s'] * 1e3:10.2f} {s['best_s'] * 1e3:10.2f} "
            f"{s['cpu_s'] * 1e3:10.2f} {s['gflops']:8.1f} "
            f"{100 * s['share_of_peak']:6.1f} {s['peak_rss'] / 1e6:12.0f}"
        )
    turns.print_ratios(r["ratios"])


def network_options(p):
    """What step.py and infer.py have in common."""
    p.add_argument("--size", help="of " + ", ".join(SIZES))
    p.add_argument(
        "--precision",
        default="f32",
        choices=["f32", "bf16"],
        help="bf16: run.precision=bf16 here, torch.autocast there",
    )
    p.add_argument(
        "--waits",
        default="PASSIVE",
        help="values of OMP_WAIT_POLICY to try, for both sides; ACTIVE only on an otherwise idle machine",
    )


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    turns.add_options(p, 9)
    network_options(p)
    p.add_argument("--steps", type=int, help="steps of a turn (demo 10, the others 1)")
    p.add_argument("--peers", default=",".join(NETWORKS[:4]), help=", ".join(NETWORKS))
    p.add_argument("--optimizers", default="fused,foreach")
    args = p.parse_args()
    args.cores = turns.cores_of(args)
    results = []
    for name in (args.size or ",".join(SIZES)).split(","):
        if name not in SIZES:
            p.error(f"--size {name}: known are {', '.join(SIZES)}")
        results.append(measure(args, name))
        table(results[-1])
    turns.finish(args, results)


if __name__ == "__main__":
    main()
