"""Models of transformers as a reference: random weights, what they are asked, what they answer and lose.

A Case is one model folder with its asks: `tensors` and `metadata` are what tests/modules/model_case.h reads, `run()` gives the
outputs as the engine names them, `loss(outputs)` the loss that model_case.c computes. Images go through the reference's own
Pillow processors, so that cropping, resizing and tokenizing are under test too. Used by make_models.py (tiny, golden) and by
tests/parity/parity.py (published sizes).
"""
import dataclasses
import json
import math
import typing

import numpy as np
import scipy.optimize
import torch
import transformers
from PIL import Image
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.owlvit.image_processing_pil_owlvit import OwlViTImageProcessorPil
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil


def rows_first(image, size, resample=None, **kwargs):
    """Pillow up to version 12 resamples rows, then columns; 13 turns that round in some downscales, which moves values by
    a few units (see kernels/cpu/image.c). The published models were trained behind the older order."""
    return pillow_resize(pillow_resize(image, (size[0], image.size[1]), resample, **kwargs), size, resample, **kwargs)


transformers.utils.logging.disable_progress_bar()
pillow_resize = Image.Image.resize
Image.Image.resize = rows_first


def picture(rng, h, w):
    """Smooth enough for resampling to matter, with noise on top."""
    y, x = np.mgrid[0:h, 0:w]
    base = [127 + 90 * np.sin(x / (4 + 3 * k) + k) * np.cos(y / (7 - k)) for k in range(3)]
    return np.clip(np.stack(base, -1) + rng.normal(0, 25, (h, w, 3)), 0, 255).astype(np.uint8)


def is_norm(name):
    return "norm" in name.lower() or name.startswith("classifier.1.")


def randomize(model, seed):
    """Weights large enough that every path matters: fan-in scaled matrices, norms around 1, biases around 0."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=g, dtype=torch.float64).float()
            if is_norm(name) and name.endswith("weight"):
                p.copy_(1 + 0.2 * noise)
            elif p.ndim < 2:
                p.copy_(0.2 * noise)
            else:
                fan_in = p[0].numel() if "embedding" not in name or "patch" in name else 4
                p.copy_(noise / math.sqrt(fan_in))


def adamw(model, lr, decay, **more):
    """AdamW with decoupled decay on all but biases, norms and scalars."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    is_plain = lambda n, p: n.endswith("bias") or is_norm(n) or p.ndim == 0
    groups = [{"params": [p for n, p in named if is_plain(n, p) == plain], "weight_decay": 0.0 if plain else decay} for plain in (False, True)]
    return torch.optim.AdamW(groups, lr=lr, **more)


@dataclasses.dataclass
class Asks:
    """What is asked: images (h, w, 3) u8, and rows (image, (x0, y0, x1, y1), text)."""

    images: list
    rows: list
    pairs: list = dataclasses.field(default_factory=list)  # (image, rectangle) of second pictures

    def crops(self):
        return [Image.fromarray(self.images[i]).crop(rect) for i, rect, _ in self.rows]

    def texts(self):
        return [r[2] for r in self.rows]

    def tensors(self):
        t = {f"image{i}": torch.from_numpy(x) for i, x in enumerate(self.images)}
        t["ask.image"] = torch.tensor([r[0] for r in self.rows], dtype=torch.int32)
        t["ask.rect"] = torch.tensor([r[1] for r in self.rows], dtype=torch.int32)
        if self.pairs:
            t["pair.image"] = torch.tensor([p[0] for p in self.pairs], dtype=torch.int32)
            t["pair.rect"] = torch.tensor([p[1] for p in self.pairs], dtype=torch.int32)
        return t

    def metadata(self):
        return {f"ask.text{i}": text for i, text in enumerate(self.texts())}


@dataclasses.dataclass
class Case:
    model: torch.nn.Module
    tensors: dict
    metadata: dict
    run: typing.Callable
    loss: typing.Callable


def save(folder, model, processor, seed):
    """Random f32 weights, saved as transformers saves them."""
    randomize(model, seed)
    model.float().save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def exact(x):
    """Numbers that f32 holds, in the precision of the reference."""
    return x.float().to(x.dtype)


# ---- ViLT --------------------------------------------------------------------------------------------------


def vilt_save(folder, config, shortest, seed=1):
    config.id2label = {i: f"answer{i}" for i in range(config.num_labels)}
    config.label2id = {v: k for k, v in config.id2label.items()}
    model = transformers.ViltForQuestionAnswering._from_config(config, attn_implementation="eager")
    # Pillow's own 1333/800 rule is inside the processor.
    save(folder, model, ViltImageProcessorPil(size={"shortest_edge": shortest}, size_divisor=config.patch_size), seed)
    return model


def vilt_case(folder, model, asks, dtype=torch.float64, temperature=1.0, target=None):
    """Binary cross entropy on soft targets (random ones, or those given), summed over answers; with a temperature that of
    distillation, times T^2."""
    model = model.to(dtype).eval()
    processor = ViltImageProcessorPil.from_pretrained(folder)
    tokenizer = transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True)
    length = model.config.max_position_embeddings
    text = tokenizer(asks.texts(), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    pixels = processor(asks.crops(), return_tensors="pt")
    shape = (len(asks.rows), model.config.num_labels)
    if target is None:
        target = torch.rand(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64) ** 3
    target = exact(target).to(dtype)

    def run():
        torch.manual_seed(0)  # the reference draws the order of patches
        out = model(
            input_ids=text.input_ids, attention_mask=text.attention_mask, token_type_ids=torch.zeros_like(text.input_ids),
            pixel_values=pixels.pixel_values.to(dtype), pixel_mask=pixels.pixel_mask)  # fmt: skip
        return {"logits": out.logits}

    def loss(out):
        bce = torch.nn.functional.binary_cross_entropy_with_logits(out["logits"] / temperature, target, reduction="none")
        return temperature**2 * bce.sum() / len(asks.rows)

    tensors = asks.tensors() | {"target": target.float(), "ids": text.input_ids.int()}
    return Case(model, tensors, asks.metadata() | {"temperature": str(temperature)}, run, loss)


def nlvr2_save(folder, config, shortest, seed=7):
    model = transformers.ViltForImagesAndTextClassification._from_config(config, attn_implementation="eager")
    save(folder, model, ViltImageProcessorPil(size={"shortest_edge": shortest}, size_divisor=config.patch_size), seed)
    return model


def nlvr2_case(folder, model, asks, dtype=torch.float64):
    """Both pictures of all questions are padded together, as the reference wants them."""
    model = model.to(dtype).eval()
    processor = ViltImageProcessorPil.from_pretrained(folder)
    tokenizer = transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True)
    length = model.config.max_position_embeddings
    text = tokenizer(asks.texts(), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    second = Asks(asks.images, [(*p, None) for p in asks.pairs])
    crops = [c for both in zip(asks.crops(), second.crops()) for c in both]
    pixels = processor(crops, return_tensors="pt")
    by_two = lambda x: x.reshape(len(asks.rows), 2, *x.shape[1:])
    label = torch.arange(len(asks.rows)) % 2

    def run():
        torch.manual_seed(0)  # the reference draws the order of patches
        out = model(
            input_ids=text.input_ids, attention_mask=text.attention_mask, token_type_ids=torch.zeros_like(text.input_ids),
            pixel_values=by_two(pixels.pixel_values.to(dtype)), pixel_mask=by_two(pixels.pixel_mask), labels=label)  # fmt: skip
        run.loss = out.loss
        return {"logits": out.logits}

    return Case(model, asks.tensors() | {"label": label.int()}, asks.metadata(), run, lambda out: run.loss)


# ---- OWL-ViT -----------------------------------------------------------------------------------------------

LOC = {"w_class": 1.0, "w_l1": 2.0, "w_giou": 1.5, "alpha": 0.3, "gamma": 2.0, "negative_weight": 0.5}


def box_corners(b):
    return torch.cat([b[..., :2] - b[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2], -1)


def giou(a, b):
    """Of corner boxes, element by element (broadcasting)."""
    area = lambda x: (x[..., 2] - x[..., 0]) * (x[..., 3] - x[..., 1])
    both = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    union = area(a) + area(b) - both
    return both / union - (hull - union) / hull


def loc_loss(logits, boxes, targets, weight, how=LOC):
    """Focal + L1 on corners + GIoU after Hungarian matching; targets[i] = (boxes, scores) of ask i."""
    total = 0
    for x, pred, (box, score) in zip(logits, boxes, targets):
        y, w = torch.zeros_like(x), torch.full_like(x, how["negative_weight"])
        if len(box):
            with torch.no_grad():
                p = x.sigmoid()
                a, g = how["alpha"], how["gamma"]
                klass = -a * (1 - p) ** g * torch.log(p) + (1 - a) * p**g * torch.log(1 - p)
                cost = how["w_class"] * klass + how["w_l1"] * (box[:, None] - pred).abs().sum(-1)
                cost -= how["w_giou"] * giou(box_corners(box)[:, None], box_corners(pred))
                row, col = scipy.optimize.linear_sum_assignment(cost.numpy())
            y[col], w[col] = score[row], 1.0
            mine, want = box_corners(pred[col]), box_corners(box[row])
            total = total + weight * how["w_l1"] * (mine - want).abs().sum()
            total = total + weight * how["w_giou"] * (1 - giou(mine, want)).sum()
        ce = torch.nn.functional.binary_cross_entropy_with_logits(x, y, reduction="none")
        a = how["alpha"] * y + (1 - how["alpha"]) * (1 - y)
        total = total + weight * how["w_class"] * (w * a * (y - x.sigmoid()).abs() ** how["gamma"] * ce).sum()
    return total


def loc_targets(dtype):
    """Two objects of different certainty, none, one, three."""
    box = lambda *b: exact(torch.tensor(b, dtype=torch.float64)).to(dtype).reshape(-1, 4)
    score = lambda *s: exact(torch.tensor(s, dtype=torch.float64)).to(dtype)
    return [
        (box(0.3, 0.4, 0.35, 0.5, 0.7, 0.65, 0.4, 0.3), score(1.0, 0.7)),
        (box(), score()),
        (box(0.5, 0.5, 0.8, 0.9), score(0.9)),
        (box(0.2, 0.2, 0.2, 0.25, 0.8, 0.3, 0.3, 0.3, 0.4, 0.8, 0.5, 0.3), score(1.0, 1.0, 1.0)),
    ]


def owlvit_save(folder, config, seed=3, large=False):
    """large: for thousands of patches: attention without its matrix, and layers recomputed in the backward pass."""
    model = transformers.OwlViTForObjectDetection._from_config(config, attn_implementation="sdpa" if large else "eager")
    if large:
        model.gradient_checkpointing_enable()
    side = config.vision_config.image_size
    save(folder, model, OwlViTImageProcessorPil(size={"height": side, "width": side}), seed)
    return model


def clip_tokenizer(folder, pad):
    return transformers.CLIPTokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), pad_token=pad)


def owlvit_case(folder, model, asks, dtype=torch.float64, targets=None, how=LOC):
    """The loss of loc_loss, on loc_targets or those given."""
    model = model.to(dtype).train(model.is_gradient_checkpointing)  # there is no dropout to tell the two apart
    processor = OwlViTImageProcessorPil.from_pretrained(folder)
    prompts = ["a photo of " + t for t in asks.texts()]
    length = model.config.text_config.max_position_embeddings
    text = clip_tokenizer(folder, "!")(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    pixels = processor(asks.crops(), return_tensors="pt").pixel_values.to(dtype)
    targets = targets or loc_targets(dtype)[: len(asks.rows)]

    def run():
        out = model(input_ids=text.input_ids, attention_mask=text.attention_mask, pixel_values=pixels)
        return {"logits": out.logits[..., 0].to(dtype), "boxes": out.pred_boxes}  # the reference itself rounds the logits to f32

    tensors = asks.tensors() | {"ids": text.input_ids.int()}
    tensors["target.count"] = torch.tensor([len(t[0]) for t in targets], dtype=torch.int32)
    tensors["target.box"] = torch.cat([t[0] for t in targets]).float()
    tensors["target.score"] = torch.cat([t[1] for t in targets]).float()
    loss = lambda out: loc_loss(out["logits"], out["boxes"], targets, 1 / len(asks.rows), how)
    return Case(model, tensors, asks.metadata() | {k: str(v) for k, v in how.items()}, run, loss)


# ---- CLIP --------------------------------------------------------------------------------------------------


def clip_save(folder, config, seed=4):
    model = transformers.CLIPModel._from_config(config, attn_implementation="eager")
    side = config.vision_config.image_size
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    save(folder, model, processor, seed)
    with torch.no_grad():  # a temperature as after training, not the random one
        model.logit_scale.fill_(3.0)
    model.save_pretrained(folder)
    return model


def clip_case(folder, model, asks, dtype=torch.float64, classes=None):
    """Every ask's picture with every text. Contrastive training, the reference's own loss; or, with `classes`, of each picture."""
    model = model.to(dtype).eval()
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    prompts = ["a photo of " + t for t in asks.texts()]
    length = model.config.text_config.max_position_embeddings
    text = clip_tokenizer(folder, "<|endoftext|>")(prompts, padding=True, max_length=length, truncation=True, return_tensors="pt")
    pixels = processor(asks.crops(), return_tensors="pt").pixel_values.to(dtype)
    n = len(asks.rows)
    every = Asks(asks.images, [(i, rect, t) for i, rect, _ in asks.rows for t in asks.texts()])
    share = torch.full((n,), 1 / n)
    tensors = every.tensors() | {"text_of": torch.tensor(classes or range(n), dtype=torch.int32)}
    tensors["image_weight"] = share if classes else share / 2
    if not classes:
        tensors |= {"image_of": torch.arange(n, dtype=torch.int32), "text_weight": share / 2}

    def run():
        out = model(input_ids=text.input_ids, attention_mask=text.attention_mask, pixel_values=pixels, return_loss=True)
        run.loss = out.loss
        if classes:
            run.loss = torch.nn.functional.cross_entropy(out.logits_per_image, torch.tensor(classes))
        return {"logits": (out.image_embeds @ out.text_embeds.t()).reshape(-1, 1)}

    return Case(model, tensors, every.metadata(), run, lambda out: run.loss)


# ---- BLIP --------------------------------------------------------------------------------------------------



def masked_cross_attention(self, hidden_states, attention_mask=None, encoder_hidden_states=None, encoder_attention_mask=None, **kwargs):
    """transformers 5.23 hands a cross attention its mask as attention_mask and then looks for encoder_attention_mask, so the
    decoder sees a padded question's padding. The published code, and transformers before, masked it."""
    if encoder_hidden_states is not None and encoder_attention_mask is None:
        encoder_attention_mask = attention_mask
    return blip_attention(self, hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask, **kwargs)


blip_attention = BlipTextSelfAttention.forward
BlipTextSelfAttention.forward = masked_cross_attention

SMOOTHING = 0.1  # of the answers' tokens, as the published weights were trained and rank


def blip_save(folder, config, answers, seed=5):
    model = transformers.BlipForQuestionAnswering._from_config(config, attn_implementation="eager")
    side = config.vision_config.image_size
    save(folder, model, BlipImageProcessorPil(size={"height": side, "width": side}), seed)
    (folder / "answer_list.json").write_text(json.dumps(answers) + "\n")
    return model


def blip_case(folder, model, asks, dtype=torch.float64, candidates=128):
    """Outputs: the ranked list's scores and the written answers (in the metadata). Loss: every answer's tokens, weighted."""
    model = model.to(dtype).eval()
    processor = BlipImageProcessorPil.from_pretrained(folder)
    tokenizer = transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True)
    answers = json.loads((folder / "answer_list.json").read_text())
    text = tokenizer(asks.texts(), padding=True, return_tensors="pt")
    pixels = processor(asks.crops(), return_tensors="pt").pixel_values.to(dtype)
    begin, V = model.config.text_config.bos_token_id, model.config.text_config.vocab_size
    tokens = tokenizer(answers, padding=True, return_tensors="pt")
    ids = tokens.input_ids.clone()
    ids[:, 0] = begin
    g = torch.Generator().manual_seed(6)
    target = torch.zeros((len(asks.rows), len(answers)))
    for i in range(len(asks.rows)):  # two or three answers each, of unequal weight
        some = torch.randperm(len(answers), generator=g)[: 2 + i % 2]
        target[i, some] = torch.rand(len(some), generator=g) + 0.1
    target = target / target.sum(1, keepdim=True)

    def words(states, mask, ids, attention):
        """Summed cross entropy of each row's tokens, smoothed."""
        out = model.text_decoder(input_ids=ids, attention_mask=attention, encoder_hidden_states=states, encoder_attention_mask=mask)
        logits, next_id = out.logits[:, :-1], ids[:, 1:].masked_fill(attention[:, 1:] == 0, -100)
        ce = torch.nn.functional.cross_entropy(
            logits.reshape(-1, V), next_id.reshape(-1), reduction="none", label_smoothing=SMOOTHING, ignore_index=-100)
        return ce.reshape(next_id.shape).sum(1)

    def run():
        image = model.vision_model(pixel_values=pixels).last_hidden_state
        states = model.text_encoder(
            input_ids=text.input_ids, attention_mask=text.attention_mask, encoder_hidden_states=image,
            encoder_attention_mask=torch.ones(image.shape[:-1], dtype=torch.long))[0]  # fmt: skip
        run.loss = 0
        for i, row in enumerate(target):
            of = row.nonzero()[:, 0]
            n = len(of)
            ce = words(states[i : i + 1].expand(n, -1, -1), text.attention_mask[i : i + 1].expand(n, -1), ids[of], tokens.attention_mask[of])
            run.loss = run.loss + (row[of].to(dtype) * ce).sum() / len(asks.rows)
        with torch.no_grad():
            start = torch.full((len(asks.rows), 1), begin)
            first = model.text_decoder(input_ids=start, encoder_hidden_states=states, encoder_attention_mask=text.attention_mask)
            by_word = first.logits[:, 0][:, ids[:, 1]].sort(dim=1, descending=True, stable=True)  # of equals the first in the list
            best = by_word.indices[:, :candidates]
            scores = torch.full((len(asks.rows), len(answers)), -1e30, dtype=dtype)
            for i, of in enumerate(best):
                n = len(of)
                same = lambda x: x[i : i + 1].expand(n, *x.shape[1:])
                scores[i, of] = -words(same(states), same(text.attention_mask), ids[of], tokens.attention_mask[of])
        return {"logits": scores}

    def written():
        """One by one: in a padded batch the reference looks at padding, too."""
        for i, question in enumerate(asks.texts()):
            out = model.generate(**tokenizer(question, return_tensors="pt", return_token_type_ids=False), pixel_values=pixels[i : i + 1], max_length=20)
            yield tokenizer.decode(out[0], skip_special_tokens=True)

    metadata = asks.metadata() | {f"written{i}": t for i, t in enumerate(written())}
    return Case(model, asks.tensors() | {"target": target}, metadata, run, lambda out: run.loss)
