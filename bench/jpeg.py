#!/usr/bin/env python3
"""JPEG files to normalised 384x384 tensors on one core, here and by Pillow with numpy, side by side.

    python3 bench/jpeg.py --bench build/cpu/vpdistill [--files FOLDER] [--side 384]

Files (read before) are decoded, resized whole with the antialiased bicubic filter, scaled to -1..1.
"processor" is transformers' own on Pillow (BLIP's, which makes such squares), "numpy" the same in four lines
without it. Without --files 64 photographs are made up: noise of several scales, 48 of 500x375 and 16 of
640x480, quality 90. Values agree: the mean square of all of them is compared. All take turns (turns.py).
Needs requirements.txt.
"""

import argparse
import os
import sys

import turns

HOW = ["processor", "numpy"]


def make_photographs(folder):
    """Smooth noise of five octaves, different in each channel."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(64):
        w, h = (500, 375) if i % 4 else (640, 480)
        x = np.zeros((h, w, 3))
        for octave in range(5):
            cell = 64 >> octave
            corner = rng.integers(0, 256, (h // cell + 2, w // cell + 2, 3), dtype=np.uint8)
            big = Image.fromarray(corner).resize(
                ((w // cell + 2) * cell, (h // cell + 2) * cell), Image.Resampling.BILINEAR
            )
            x += np.asarray(big, dtype=np.float64)[:h, :w] / (octave + 1)
        x = np.clip(x / x.max() * 255, 0, 255).astype(np.uint8)
        Image.fromarray(x).save(folder / f"{i:02d}.jpg", quality=90)
    return folder


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    turns.add_options(p, 15)
    p.set_defaults(threads=1)
    p.add_argument("--files", help="folder with .jpg files")
    p.add_argument("--side", type=int, default=384)
    p.add_argument("--times", type=int, default=2, help="passes over all files in a turn")
    args = p.parse_args()
    if args.threads != 1:
        p.error("this is measured on one thread")
    files = args.files or make_photographs(turns.root / "build/bench/photographs")
    cores, env = turns.cores_of(args), {"OMP_NUM_THREADS": "1"}
    makers = [
        turns.Maker(
            "vpdistill",
            "ours",
            [
                args.bench,
                "bench",
                "loader",
                "requests",
                f"data.dir={files}",
                f"bench.side={args.side}",
                "run.threads=1",
            ],
            cores,
            env,
        )
    ]
    for how in HOW:
        command = [
            sys.executable,
            str(turns.here / "peers.py"),
            "--peer",
            "pil",
            "--how",
            how,
            "--files",
            str(files),
            "--side",
            str(args.side),
        ]
        makers.append(
            turns.Maker(
                "transformers' processor" if how == "processor" else "Pillow and numpy",
                how,
                command,
                cores,
                env,
            )
        )
    squares = turns.in_turns(makers, "square", 1, 1, warm=1)
    sides = turns.in_turns(makers, "whole", args.times, args.rounds)
    rows = [
        turns.result_of(s, images_per_s=s.info["files"] / turns.median(s), mean_square=q.last["value"])
        for s, q in zip(sides, squares)
    ]
    result = {
        "side": args.side,
        "files": rows[0]["files"],
        "rounds": args.rounds,
        "load": os.getloadavg()[0],
        "sides": rows,
        "ratios": turns.ratios(rows, {"processor": 5.0}),
    }
    print(
        f"{rows[0]['files']} JPEG files to {args.side}x{args.side}, one core; "
        f"{args.rounds} rounds, in turns, of {args.times} passes\n"
        f"{turns.machine()}"
    )
    print(
        f"{'':32s} {'images/s':>10s} {'ms a pass':>10s} {'best':>10s} "
        f"{'peak RSS MB':>12s} {'mean square':>12s}"
    )
    for s in rows:
        print(
            f"{s['name']:32s} {s['images_per_s']:10.1f} {s['median_s'] * 1e3:10.1f} "
            f"{s['best_s'] * 1e3:10.1f} "
            f"{s['peak_rss'] / 1e6:12.0f} "
            f"{s['mean_square']:12.8f}"
        )
    turns.print_ratios(result["ratios"])
    apart = max(abs(s["mean_square"] / rows[0]["mean_square"] - 1) for s in rows)
    if apart > 1e-6:
        sys.exit(f"the tensors differ: their mean squares by {apart:.1e}")
    turns.finish(args, [result])


if __name__ == "__main__":
    main()
