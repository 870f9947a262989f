"""Pillow's resampling of random crops: golden data for tests/kernels/test_image.c.

    python3 tests/golden/make_image.py        writes tests/golden/image.safetensors (needs Pillow, numpy, safetensors)

Per case: caseNN.image (h, w, 3) u8, caseNN.spec [x0, y0, x1, y1, filter (0 bilinear, 1 bicubic)] i32, caseNN.want
(oh, ow, 3) u8. The two axes are resized by two calls, rows first: that is what one call does in all versions of Pillow up to
12 (but for crops more than 100 times as high as wide); version 13 goes the other way round in some downscales,
which moves a value by a few units. The published models were trained behind the older order.
"""
import pathlib

import numpy as np
import PIL
from PIL import Image
from safetensors.numpy import save_file

rng = np.random.default_rng(20)
FILTERS = [Image.BILINEAR, Image.BICUBIC]


def picture(kind, h, w):
    if kind == 0:  # extremes: every overshoot is clamped
        return (rng.integers(0, 2, (h, w, 3)) * 255).astype(np.uint8)
    if kind == 1:
        return rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
    y, x = np.mgrid[0:h, 0:w]
    return np.stack([127 + 120 * np.sin(x / (3 + c) + c) * np.cos(y / (5 - c)) for c in range(3)], -1).astype(np.uint8)


def sides(most):
    return [max(1, int(v)) for v in np.exp(rng.uniform(0, np.log(most), 2))]


tensors = {}
for i in range(48):
    w, h = sides(70)
    ow, oh = sides(60)
    x0, y0 = int(rng.integers(0, w)), int(rng.integers(0, h))
    x1, y1 = int(rng.integers(x0 + 1, w + 1)), int(rng.integers(y0 + 1, h + 1))
    if i % 4 == 0:
        x0, y0, x1, y1 = 0, 0, w, h
    if i % 5 == 0:  # beyond the image: black
        x0, y0, x1, y1 = x0 - int(rng.integers(0, 9)), y0 - int(rng.integers(0, 9)), x1 + int(rng.integers(0, 9)), y1 + 3
    if i % 7 == 0:
        ow = x1 - x0
    if i % 11 == 0:
        oh = y1 - y0
    image, f = picture(i % 3, h, w), i // 2 % 2
    crop = Image.fromarray(image).crop((x0, y0, x1, y1))
    want = crop.resize((ow, y1 - y0), FILTERS[f]).resize((ow, oh), FILTERS[f])
    tensors[f"case{i:02}.image"] = image
    tensors[f"case{i:02}.spec"] = np.array([x0, y0, x1, y1, f], np.int32)
    tensors[f"case{i:02}.want"] = np.array(want)
out = pathlib.Path(__file__).with_name("image.safetensors")
save_file(tensors, out, {"pillow": PIL.__version__, "numpy": np.__version__})
print(out, out.stat().st_size, "bytes")
