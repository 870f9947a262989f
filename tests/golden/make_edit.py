"""VisProg's editing steps as Pillow and OpenCV compute them: golden data for tests/modules/test_edit.c.

    python3 tests/golden/make_edit.py    writes tests/golden/edit.safetensors
                                         (needs Pillow 9.2 as the reference pins it, numpy, opencv-python-headless, safetensors)

The bodies are those of the reference's interpreters (COLORPOP, BGBLUR, TAG) and of AugLy's overlay_emoji, with an object's mask
made of its box. GrabCut runs as there; that it changes no mask is asserted. Labels are drawn with Pillow's basic layout and
Debian's DejaVuSansMono-Bold.
"""
import pathlib

import cv2
import numpy as np
import PIL
from PIL import Image, ImageDraw, ImageFilter, ImageFont, features
from safetensors.numpy import save_file

W, H = 120, 90
FONT = "/usr/share/fonts/truetype/dejavu/DejaVuSansMono-Bold.ttf"
rng = np.random.default_rng(3)
y, x = np.mgrid[0:H, 0:W]
smooth = np.stack([127 + 120 * np.sin(x / (7 + 3 * c) + c) * np.cos(y / (9 - c)) for c in range(3)], -1)
image = np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
img = Image.fromarray(image)
boxes = [(10, 12, 60, 70), (40, 30, 120, 90), (0, 0, 9, 9), (100, 2, 117, 8)]  # half-open
tensors = {"image": image, "boxes": np.array(boxes, np.int32)}


def refine(mask):
    got, _, _ = cv2.grabCut(image, mask.astype(np.uint8), None, np.zeros((1, 65)), np.zeros((1, 65)), 5, cv2.GC_INIT_WITH_MASK)
    assert (got == mask).all()
    return got.astype(float)


def mask_of(box):
    mask = np.zeros((H, W))
    mask[box[1]:box[3], box[0]:box[2]] = 1
    return np.tile(refine(mask)[:, :, None], (1, 1, 3))


def smoothen(mask):
    return np.array(Image.fromarray(255 * mask.astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius=5))).astype(float) / 255


def composite(background, masks):
    out, front = np.array(background).astype(float), image.astype(float)
    for m in masks:
        out = m * front + (1 - m) * out
    return out.astype(np.uint8)


tensors["colorpop"] = composite(img.convert("L").convert("RGB"), [mask_of(b) for b in boxes])
tensors["bgblur"] = composite(img.filter(ImageFilter.GaussianBlur(radius=2)), [smoothen(mask_of(b)) for b in boxes])
for i, (w, h, radius) in enumerate([(1, 1, 2), (3, 2, 5), (11, 40, 0.7), (64, 37, 9.3)]):
    a = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
    tensors[f"blur{i}.in"], tensors[f"blur{i}.radius"] = a, np.array([radius], np.float32)
    tensors[f"blur{i}.want"] = np.array(Image.fromarray(a).filter(ImageFilter.GaussianBlur(radius=radius)))

SW, SH = 34, 32
y, x = np.mgrid[0:SH, 0:SW]
sticker = np.stack([x * 7, y * 7, 0 * x + 200, np.clip(255 - np.hypot(x - 17, y - 16) * 14 + 40, 0, 255)], -1).astype(np.uint8)
tensors["sticker"] = sticker


def overlay(image, size, x_pos, y_pos):  # AugLy's overlay_image
    w, h = image.size
    new_height = max(1, int(h * size))
    over = Image.fromarray(sticker).resize((int(SW * new_height / SH), new_height))
    out = image.convert("RGBA")
    out.paste(im=over, box=(int(w * x_pos), int(h * y_pos)), mask=over.getchannel("A"))
    return out.convert("RGB")


out = img
for x1, y1, x2, y2 in boxes:
    cx, cy, s = (x1 + x2) / 2, (y1 + y2) / 2, (y2 - y1) / 1.5
    out = overlay(out, s / H, (cx - 0.5 * s) / W, (cy - 0.5 * s) / H)
tensors["emoji"] = np.array(out)

labels = ["robin(24.1)", "\u00c4g{y}(3.0)", "x(0.1)", "west highland terrier(31.9)"]
out, font = img.copy(), ImageFont.truetype(FONT, 16, layout_engine=ImageFont.Layout.BASIC)
draw = ImageDraw.Draw(out)
for (x1, y1, x2, y2), label in zip(boxes, labels):
    x2, y2 = x2 - 1, y2 - 1  # LOC's boxes end at their last pixel
    draw.rectangle((x1, y1, x2, y2), outline="green", width=4)
    w, h = font.getsize(label)
    top = y2 - h if x1 + w > W or y2 + h > H else y2
    draw.rectangle((x1, top, x1 + w, top + h), fill="green")
    draw.text((x1, top), label, fill="white", font=font)
tensors["tag"] = np.array(out)
path = pathlib.Path(__file__).with_name("edit.safetensors")
tensors["labels"] = np.frombuffer("\n".join(labels).encode(), np.uint8).copy()
save_file(tensors, path, {"pillow": PIL.__version__, "freetype": features.version("freetype2"), "opencv": cv2.__version__})
print(path, path.stat().st_size, "bytes, FreeType", features.version("freetype2"))
