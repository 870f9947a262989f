#!/usr/bin/env python3
"""Our crop-and-resize beside Pillow's, bit for bit.

  compare_images.py PROGRAM [--cases N] [--seed S]

PROGRAM is build/cpu/parity-images (`make parity-images`). N random cases: photo-like, noise and black-and-white pictures of 1 to
1,200 pixels a side, random rectangles (some beyond the picture: black there), both filters, random sizes of the result up to
800. Prints how many differ; status 1 if any does. As in tests/golden/make_image.py the axes are resized by two calls, rows
first: what one call does in all versions of Pillow up to 12.
"""
import argparse
import subprocess
import sys

import numpy as np
import PIL
from PIL import Image

FILTERS = [Image.BILINEAR, Image.BICUBIC]


def picture(rng, kind, h, w):
    if kind == 0:
        return (rng.integers(0, 2, (h, w, 3)) * 255).astype(np.uint8)  # every overshoot is clamped
    if kind == 1:
        return rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
    y, x = np.mgrid[0:h, 0:w]
    waves = [np.sin(x / f + c) * np.cos(y / (f + c)) for c, f in enumerate(np.exp(rng.uniform(0, 5, 3)))]
    return np.clip(127 + 120 * np.stack(waves, -1) + rng.normal(0, 6, (h, w, 3)), 0, 255).astype(np.uint8)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("program")
    p.add_argument("--cases", type=int, default=500)
    p.add_argument("--seed", type=int, default=3)
    args = p.parse_args()
    rng = np.random.default_rng(args.seed)
    side = lambda most: int(np.exp(rng.uniform(0, np.log(most))))
    cases = []
    for i in range(args.cases):
        w, h, ow, oh = side(1200), side(1200), side(800), side(800)
        x0, y0 = int(rng.integers(0, w)), int(rng.integers(0, h))
        x1, y1 = int(rng.integers(x0 + 1, w + 1)), int(rng.integers(y0 + 1, h + 1))
        if i % 4 == 0:
            x0, y0, x1, y1 = 0, 0, w, h
        if i % 5 == 0:
            x0, y0, x1, y1 = x0 - int(rng.integers(0, 99)), y0 - int(rng.integers(0, 99)), x1 + int(rng.integers(0, 99)), y1 + 3
        cases.append((picture(rng, i % 3, h, w), (x0, y0, x1, y1), int(rng.integers(0, 2)), ow, oh))
    data = b"".join(b"%d %d %d %d %d %d %d %d %d\n" % (im.shape[1], im.shape[0], *box, f, ow, oh) + im.tobytes()
                    for im, box, f, ow, oh in cases)
    out = np.frombuffer(subprocess.run([args.program], input=data, stdout=subprocess.PIPE, check=True).stdout, np.uint8)
    differ, at = 0, 0
    for i, (im, box, f, ow, oh) in enumerate(cases):
        crop = Image.fromarray(im).crop(box)
        want = np.array(crop.resize((ow, crop.height), FILTERS[f]).resize((ow, oh), FILTERS[f])).reshape(-1)
        got = out[at : at + want.size]
        at += want.size
        if not np.array_equal(want, got):
            differ += 1
            if differ <= 5:
                most = np.abs(want.astype(int) - got).max() if got.size == want.size else "size"
                print(f"case {i}: {im.shape[1]}x{im.shape[0]} {box} {'bicubic' if f else 'bilinear'} to {ow}x{oh}: up to {most}")
    if at != out.size:
        sys.exit(f"{out.size} bytes instead of {at}")
    print(f"Pillow {PIL.__version__}: {differ} of {len(cases)} cases differ, {at} values")
    sys.exit(differ > 0)


if __name__ == "__main__":
    main()
