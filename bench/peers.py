#!/usr/bin/env python3
"""The other side: PyTorch and ONNX Runtime, on request as `vpdistill bench ... requests` is (requests.c).

    python3 bench/peers.py --check                           the plain networks beside transformers'
    python3 bench/peers.py --peer plain-eager --folder FOLDER --batch 8 ...   what the drivers start

Programs of a network, of the sizes in FOLDER/config.json (ViLT VQA or OWL-ViT), on a batch of images of one
size:
    hf-eager        transformers' own model (scaled_dot_product_attention where it has that)
    hf-compile      the same under torch.compile (ViLT: its encoder; sampling patches has no static graph)
    plain-eager     the network written down plainly: fused q, k, v, no masks, no sampling
    plain-compile   that under torch.compile
    plain-first     ViLT: plain-eager that computes only the token that is read in the last block, as we do
    onnx            outputs alone: plain-eager exported by torch.onnx, in ONNX Runtime
    adamw           the optimizer alone, over parameters of the network's shapes
    pil             JPEG files of --files to normalised squares: --how processor (transformers' on Pillow) or
                    numpy (by hand)
All get tensors ready made (patches and tokens); we start from u8 pixels and words. Needs requirements.txt.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import time

here = pathlib.Path(__file__).resolve().parent
NETWORKS = ["hf-eager", "hf-compile", "plain-eager", "plain-compile", "plain-first"]
LOC_ALPHA, LOC_GAMMA = 0.3, 2.0

# ---- networks ----------------------------------------------------------------------------------------------


def config_of(folder):
    """transformers' configuration; a folder without weights may leave open how large they are drawn."""
    import transformers

    raw = json.loads((pathlib.Path(folder) / "config.json").read_text())
    raw["initializer_range"] = raw.get("initializer_range") or 0.02
    kind = {"vilt": transformers.ViltConfig, "owlvit": transformers.OwlViTConfig}[raw["model_type"]]
    return kind(**{k: v for k, v in raw.items() if k not in ("architectures", "model_type")})


def blocks(C, mlp, heads, eps, layers, act):
    """Transformer blocks, norms before; x = block(x, causal, first): first computes the first token alone."""
    from torch import nn
    from torch.nn import functional as F

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(C, eps), nn.LayerNorm(C, eps)
            self.qkv, self.proj = nn.Linear(C, 3 * C), nn.Linear(C, C)
            self.fc1, self.fc2 = nn.Linear(C, mlp), nn.Linear(mlp, C)

        def forward(self, x, causal=False, first=False):
            B, T, _ = x.shape
            n = self.norm1(x)
            if first:
                w, b = self.qkv.weight, self.qkv.bias
                q = F.linear(n[:, :1], w[:C], b[:C]).view(B, 1, heads, -1).transpose(1, 2)
                k, v = F.linear(n, w[C:], b[C:]).view(B, T, 2, heads, -1).permute(2, 0, 3, 1, 4)
                x = x[:, :1]
            else:
                q, k, v = self.qkv(n).view(B, T, 3, heads, -1).permute(2, 0, 3, 1, 4)
            a = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).reshape(B, -1, C)
            x = x + self.proj(a)
            return x + self.fc2(act(self.fc1(self.norm2(x))))

    return nn.ModuleList(Block() for _ in range(layers))


def plain_vilt(cfg, first_only=False):
    """ViLT for images of one size, texts of one length: no masks, positions as they are."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Vilt(nn.Module):
        def __init__(self):
            super().__init__()
            C, eps = cfg.hidden_size, cfg.layer_norm_eps
            self.word, self.segment = nn.Embedding(cfg.vocab_size, C), nn.Embedding(cfg.type_vocab_size, C)
            self.text_pos, self.text_norm = nn.Embedding(cfg.max_position_embeddings, C), nn.LayerNorm(C, eps)
            self.patch, self.cls = nn.Linear(3 * cfg.patch_size**2, C), nn.Parameter(torch.zeros(1, 1, C))
            self.pos = nn.Parameter(torch.zeros(1, 1 + (cfg.image_size // cfg.patch_size) ** 2, C))
            self.modality = nn.Embedding(cfg.modality_type_vocab_size, C)
            self.blocks = blocks(
                C, cfg.intermediate_size, cfg.num_attention_heads, eps, cfg.num_hidden_layers, F.gelu
            )
            self.norm, self.pooler = nn.LayerNorm(C, eps), nn.Linear(C, C)
            self.head = nn.Sequential(
                nn.Linear(C, 2 * C), nn.LayerNorm(2 * C), nn.GELU(), nn.Linear(2 * C, cfg.num_labels)
            )

        def forward(self, ids, patches):
            B = ids.shape[0]
            t = self.word(ids) + self.segment.weight[0] + self.text_pos.weight[: ids.shape[1]]
            t = self.text_norm(t) + self.modality.weight[0]
            i = (
                torch.cat([self.cls.expand(B, -1, -1), self.patch(patches)], 1)
                + self.pos
                + self.modality.weight[1]
            )
            x = torch.cat([t, i], 1)
            for k, b in enumerate(self.blocks):
                x = b(x, first=first_only and k == len(self.blocks) - 1)
            return self.head(torch.tanh(self.pooler(self.norm(x)[:, 0])))

    return Vilt()


def quick_gelu(x):
    import torch

    return x * torch.sigmoid(1.702 * x)


def plain_owlvit(cfg):
    """OWL-ViT that is asked one phrase of full length of each image: logits (B, P) and boxes (B, P, 4)."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    v, t = cfg.vision_config, cfg.text_config
    tower = lambda c: blocks(
        c.hidden_size,
        c.intermediate_size,
        c.num_attention_heads,
        c.layer_norm_eps,
        c.num_hidden_layers,
        quick_gelu,
    )

    class Owl(nn.Module):
        def __init__(self):
            super().__init__()
            C, D, grid = v.hidden_size, t.hidden_size, v.image_size // v.patch_size
            self.token, self.text_pos = (
                nn.Embedding(t.vocab_size, D),
                nn.Embedding(t.max_position_embeddings, D),
            )
            self.text_blocks, self.text_norm = tower(t), nn.LayerNorm(D, t.layer_norm_eps)
            self.text_projection = nn.Linear(D, cfg.projection_dim, bias=False)
            self.cls, self.patch = nn.Parameter(torch.zeros(C)), nn.Linear(3 * v.patch_size**2, C, bias=False)
            self.pos = nn.Embedding(grid * grid + 1, C)
            self.pre_norm, self.image_blocks = nn.LayerNorm(C, v.layer_norm_eps), tower(v)
            self.post_norm, self.merge_norm = (
                nn.LayerNorm(C, v.layer_norm_eps),
                nn.LayerNorm(C, v.layer_norm_eps),
            )
            self.dense, self.shift, self.scale = nn.Linear(C, D), nn.Linear(C, 1), nn.Linear(C, 1)
            self.box = nn.Sequential(nn.Linear(C, C), nn.GELU(), nn.Linear(C, C), nn.GELU(), nn.Linear(C, 4))
            y, x = torch.meshgrid(
                torch.arange(1, grid + 1) / grid, torch.arange(1, grid + 1) / grid, indexing="ij"
            )
            side = torch.full((grid * grid,), 1 / grid)
            corner = torch.stack([x.flatten(), y.flatten(), side, side], 1)
            self.register_buffer(
                "bias", torch.log(corner + 1e-4) - torch.log1p(-corner + 1e-4), persistent=False
            )

        def forward(self, ids, patches):
            B = ids.shape[0]
            q = self.token(ids) + self.text_pos.weight[: ids.shape[1]]
            for b in self.text_blocks:
                q = b(q, causal=True)
            q = self.text_norm(q)[torch.arange(B), ids.argmax(1)]
            q = F.normalize(self.text_projection(q), dim=-1)
            x = torch.cat([self.cls.expand(B, 1, -1), self.patch(patches)], 1) + self.pos.weight
            x = self.pre_norm(x)
            for b in self.image_blocks:
                x = b(x)
            x = self.post_norm(x)
            x = self.merge_norm(x[:, 1:] * x[:, :1])
            dot = (F.normalize(self.dense(x), dim=-1) @ q[:, :, None])[..., 0]
            logits = (dot + self.shift(x)[..., 0]) * (F.elu(self.scale(x)[..., 0]) + 1)
            return logits, torch.sigmoid(self.box(x) + self.bias)

    return Owl()


def to_patches(pixels, p):
    """(B, 3, H, W) -> (B, patches, 3 p p), as a convolution's kernel reads them."""
    B, _, H, W = pixels.shape
    return (
        pixels.view(B, 3, H // p, p, W // p, p)
        .permute(0, 2, 4, 1, 3, 5)
        .reshape(B, H // p * (W // p), -1)
        .contiguous()
    )


# ---- losses ------------------------------------------------------------------------------------------------


def corners(b):
    import torch

    return torch.cat([b[..., :2] - b[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2], -1)


def giou(a, b):
    """Of corner boxes, broadcasting."""
    import torch

    area = lambda x: (x[..., 2:] - x[..., :2]).prod(-1)
    both = (
        (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    )
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    union = area(a) + area(b) - both
    return both / union - (hull - union) / hull


def loc_loss(logits, boxes, target):
    """Focal, L1 on corners and GIoU after Hungarian matching, the mean over images; target (B, N, 4)."""
    import scipy.optimize
    import torch

    B, N, _ = target.shape
    with torch.no_grad():
        p = logits.sigmoid()
        positive = -LOC_ALPHA * (1 - p) ** LOC_GAMMA * torch.log(p)
        cost = (positive + (1 - LOC_ALPHA) * p**LOC_GAMMA * torch.log1p(-p))[:, None]
        cost = (
            cost
            + torch.cdist(target, boxes, p=1)
            - giou(corners(target)[:, :, None], corners(boxes)[:, None])
        )
        col = torch.stack([torch.as_tensor(scipy.optimize.linear_sum_assignment(c)[1]) for c in cost.numpy()])
    y = torch.zeros_like(logits).scatter_(1, col, 1.0)
    mine, want = corners(boxes.gather(1, col[..., None].expand(B, N, 4))), corners(target)
    ce = torch.nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="none")
    a = LOC_ALPHA * y + (1 - LOC_ALPHA) * (1 - y)
    focal = (a * (y - logits.sigmoid()).abs() ** LOC_GAMMA * ce).sum()
    return (focal + (mine - want).abs().sum() + (1 - giou(mine, want)).sum()) / B


# ---- a network and its batch -------------------------------------------------------------------------------


class Network:
    """forward() gives the outputs of the batch, loss(outputs) what is trained."""

    def __init__(self, args):
        import torch

        self.cfg = cfg = config_of(args.folder)
        B, N = args.batch, args.text
        self.is_loc = cfg.model_type == "owlvit"
        sizes = cfg.vision_config if self.is_loc else cfg
        self.ids = torch.randint(5, (cfg.text_config if self.is_loc else cfg).vocab_size - 1, (B, N))
        self.pixels = torch.rand(B, 3, args.side, args.side) * 2 - 1
        self.patches = to_patches(self.pixels, sizes.patch_size)
        if self.is_loc:
            self.ids[:, -1] = (
                cfg.text_config.vocab_size - 1
            )  # the end token, which the model looks for, has the largest id
            target = torch.rand(B, 2, 4) * 0.5 + 0.25
            self.loss = lambda out: loc_loss(*out, target)
        else:
            labels = torch.randint(0, cfg.num_labels, (B,))
            target = torch.nn.functional.one_hot(labels, cfg.num_labels).float()
            bce = torch.nn.functional.binary_cross_entropy_with_logits
            multi = lambda logits: bce(logits, target, reduction="sum") / B
            single = lambda logits: torch.nn.functional.cross_entropy(logits, labels)
            self.loss = single if cfg.problem_type == "single_label_classification" else multi
        self.open(args.peer)

    def open(self, peer):
        import torch

        if peer.startswith("plain") or peer == "onnx":
            self.model = (
                plain_owlvit(self.cfg) if self.is_loc else plain_vilt(self.cfg, peer == "plain-first")
            )
            for p in self.model.parameters():
                if p.ndim > 1:
                    torch.nn.init.normal_(p, std=0.02)
            run = torch.compile(self.model) if peer == "plain-compile" else self.model
            self.forward = lambda: run(self.ids, self.patches)
        elif self.is_loc:
            from transformers import OwlViTForObjectDetection

            self.model = OwlViTForObjectDetection(self.cfg)
            run = torch.compile(self.model) if peer == "hf-compile" else self.model
            mask = torch.ones_like(self.ids)

            def forward():
                out = run(input_ids=self.ids, attention_mask=mask, pixel_values=self.pixels)
                return out.logits[..., 0], out.pred_boxes

            self.forward = forward
        else:
            from transformers import ViltForQuestionAnswering

            self.model = ViltForQuestionAnswering(self.cfg)
            if peer == "hf-compile":
                self.model.vilt.encoder = torch.compile(self.model.vilt.encoder)
            B, _, H, W = self.pixels.shape
            given = {
                "input_ids": self.ids,
                "attention_mask": torch.ones_like(self.ids),
                "token_type_ids": torch.zeros_like(self.ids),
                "pixel_values": self.pixels,
                "pixel_mask": torch.ones(B, H, W, dtype=torch.long),
            }
            self.forward = lambda: self.model(**given).logits


def groups_of(model):
    """Decay on all but biases and norms."""
    return [
        {
            "params": [p for p in model.parameters() if (p.ndim >= 2) == decayed],
            "weight_decay": 0.01 * decayed,
        }
        for decayed in (True, False)
    ]


def autocast(args):
    import torch

    return torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16")


def stepper(args):
    """One training step: forward, loss, backward, clipping to a global norm, AdamW."""
    import torch

    net = Network(args)
    net.model.train()
    optimizer = torch.optim.AdamW(groups_of(net.model), lr=1e-4, betas=(0.9, 0.98), **{args.optimizer: True})

    def step():
        with autocast(args):
            out = net.forward()
        floats = tuple(x.float() for x in out) if net.is_loc else out.float()
        loss = net.loss(floats)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step, sum(p.numel() for p in net.model.parameters())


def inferer(args):
    """The outputs alone."""
    import torch

    net = Network(args)
    net.model.eval()

    def infer():
        with torch.inference_mode(), autocast(args):
            out = net.forward()
        return (out[0] if net.is_loc else out).flatten()[0].item()

    return infer, sum(p.numel() for p in net.model.parameters())


def onnx_path(args):
    return (
        here.parent
        / f"build/bench/{pathlib.Path(args.folder).name}-{args.batch}-{args.text}-{args.side}.onnx"
    )


def export(args):
    """The plain network and its batch, for ONNX Runtime; kept for the next time."""
    import numpy as np
    import torch

    net, path = Network(args), onnx_path(args)
    path.parent.mkdir(parents=True, exist_ok=True)
    net.model.eval()
    torch.onnx.export(
        net.model,
        (net.ids, net.patches),
        str(path.with_suffix(".new.onnx")),
        input_names=["ids", "patches"],
        dynamo=True,
        external_data=False,
        optimize=True,
        verbose=False,
    )
    np.savez(
        path.with_suffix(".npz"),
        ids=net.ids.numpy(),
        patches=net.patches.numpy(),
        parameters=sum(p.numel() for p in net.model.parameters()),
    )
    path.with_suffix(".new.onnx").rename(path)


def onnx_inferer(args):
    """Without PyTorch in the process: its memory is not ONNX Runtime's."""
    import numpy as np
    import onnxruntime

    path = onnx_path(args)
    if not path.exists():
        subprocess.run(
            [sys.executable, __file__, "--export", *sys.argv[1:]],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = args.threads, 1
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # it is stopped between turns; waiting must not work
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    saved = np.load(path.with_suffix(".npz"))
    feed = {k: saved[k] for k in ("ids", "patches")}
    return lambda: float(session.run(None, feed)[0].flat[0]), int(saved["parameters"])


def adamw(args):
    """The optimizer alone; `default` is what AdamW does when nothing is asked for."""
    import torch

    model = Network(args).model
    for p in model.parameters():
        p.grad = torch.rand_like(p) - 0.5
    how = {} if args.optimizer == "default" else {args.optimizer: True}
    optimizer = torch.optim.AdamW(groups_of(model), lr=1e-4, betas=(0.9, 0.98), **how)
    first = next(model.parameters())

    def update():
        optimizer.step()
        return first.flatten()[0].item()

    return update, sum(p.numel() for p in model.parameters())


# ---- images ------------------------------------------------------------------------------------------------


def pil_reader(args):
    """All files of a folder, each from its bytes to a normalised (3, side, side) tensor."""
    import io

    import numpy as np
    from PIL import Image

    files = [p.read_bytes() for p in sorted(pathlib.Path(args.files).glob("*.jpg"))]
    if args.how == "processor":
        from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

        size = {"height": args.side, "width": args.side}
        processor = BlipImageProcessorPil(size=size, resample=3, image_mean=[0.5] * 3, image_std=[0.5] * 3)
        one = lambda image: processor(image, return_tensors="np").pixel_values[0]
    else:

        def one(image):
            x = np.asarray(image.resize((args.side, args.side), Image.Resampling.BICUBIC), dtype=np.float32)
            return ((x / 255 - 0.5) / 0.5).transpose(2, 0, 1)

    def whole(square=False):
        total = 0.0
        for data in files:
            x = np.ascontiguousarray(one(Image.open(io.BytesIO(data)).convert("RGB")))
            if square:
                total += float((x.astype(np.float64) ** 2).mean())
        return total / len(files) if square else float(x.flat[0])

    return {"whole": whole, "square": lambda: whole(True)}, {"files": len(files)}


# ---- serving -----------------------------------------------------------------------------------------------


def serve(requests, info):
    for line in sys.stdin:
        word = line.split()
        if word[0] == "info":
            answer = info | {"peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
        else:
            cpu, seconds, value = time.process_time(), [], None
            for _ in range(int(word[1])):
                start = time.perf_counter()
                value = requests[word[0]]()
                seconds.append(time.perf_counter() - start)
            answer = {"seconds": seconds, "cpu_seconds": time.process_time() - cpu, "value": value}
        print(json.dumps(answer), flush=True)


# ---- the check ---------------------------------------------------------------------------------------------


def fused(state, prefix, names):
    import torch

    return torch.cat([state[f"{prefix}.{n}"] for n in names])


def take_blocks(own, other, mine, theirs, names):
    """The weights of transformers' blocks: names of q, k, v, output, both norms, both layers of the MLP."""
    k = 0
    while f"{theirs}.{k}.{names[4]}.weight" in other:
        for part in ("weight", "bias"):
            own[f"{mine}.{k}.qkv.{part}"] = fused(other, f"{theirs}.{k}", [f"{n}.{part}" for n in names[:3]])
            for m, n in zip(("proj", "norm1", "norm2", "fc1", "fc2"), names[3:]):
                own[f"{mine}.{k}.{m}.{part}"] = other[f"{theirs}.{k}.{n}.{part}"]
        k += 1


def vilt_weights(other):
    own, e = {}, "vilt.embeddings."
    take_blocks(
        own,
        other,
        "blocks",
        "vilt.encoder.layer",
        [
            "attention.attention.query",
            "attention.attention.key",
            "attention.attention.value",
            "attention.output.dense",
            "layernorm_before",
            "layernorm_after",
            "intermediate.dense",
            "output.dense",
        ],
    )
    t, p = e + "text_embeddings.", e + "patch_embeddings.projection."
    own |= {
        "word.weight": other[t + "word_embeddings.weight"],
        "segment.weight": other[t + "token_type_embeddings.weight"],
        "text_pos.weight": other[t + "position_embeddings.weight"],
        "cls": other[e + "cls_token"],
        "pos": other[e + "position_embeddings"],
        "patch.weight": other[p + "weight"].flatten(1),
        "patch.bias": other[p + "bias"],
        "modality.weight": other[e + "token_type_embeddings.weight"],
    }
    for mine, theirs in (
        ("text_norm", t + "LayerNorm"),
        ("norm", "vilt.layernorm"),
        ("pooler", "vilt.pooler.dense"),
        *((f"head.{k}", f"classifier.{k}") for k in (0, 1, 3)),
    ):
        for part in ("weight", "bias"):
            own[f"{mine}.{part}"] = other[f"{theirs}.{part}"]
    return own


def owlvit_weights(other):
    own, v, t = {}, "owlvit.vision_model.", "owlvit.text_model."
    names = [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.out_proj",
        "layer_norm1",
        "layer_norm2",
        "mlp.fc1",
        "mlp.fc2",
    ]
    take_blocks(own, other, "image_blocks", v + "encoder.layers", names)
    take_blocks(own, other, "text_blocks", t + "encoder.layers", names)
    own |= {
        "token.weight": other[t + "embeddings.token_embedding.weight"],
        "text_pos.weight": other[t + "embeddings.position_embedding.weight"],
        "text_projection.weight": other["owlvit.text_projection.weight"],
        "cls": other[v + "embeddings.class_embedding"],
        "patch.weight": other[v + "embeddings.patch_embedding.weight"].flatten(1),
        "pos.weight": other[v + "embeddings.position_embedding.weight"],
    }
    for mine, theirs in (
        ("text_norm", t + "final_layer_norm"),
        ("pre_norm", v + "pre_layernorm"),
        ("post_norm", v + "post_layernorm"),
        ("merge_norm", "layer_norm"),
        ("dense", "class_head.dense0"),
        ("shift", "class_head.logit_shift"),
        ("scale", "class_head.logit_scale"),
        *((f"box.{2 * k}", f"box_head.dense{k}") for k in range(3)),
    ):
        for part in ("weight", "bias"):
            own[f"{mine}.{part}"] = other[f"{theirs}.{part}"]
    return own


def check():
    """The plain networks' largest relative error of outputs and losses, on transformers' weights."""
    import torch

    root, worst = here.parent, 0.0
    for folder, side, text, weights in (
        ("tiny-vilt", 48, 10, vilt_weights),
        ("tiny-owlvit", None, 16, owlvit_weights),
    ):
        folder = root / "configs/models" / folder
        side = side or config_of(folder).vision_config.image_size
        args = argparse.Namespace(folder=folder, batch=3, text=text, side=side, peer="hf-eager")
        torch.manual_seed(1)
        theirs = Network(args)
        args.peer = "plain-eager"
        torch.manual_seed(1)
        ours = Network(args)
        with torch.no_grad():
            for p in theirs.model.parameters():  # larger than at first, so that all paths matter
                p.add_(torch.randn_like(p) * 0.1)
        missing, extra = ours.model.load_state_dict(weights(theirs.model.state_dict()), strict=False)
        assert not missing and not extra, (missing, extra)
        theirs.model.eval()
        a, b = ours.forward(), theirs.forward()
        for x, y in zip(a if ours.is_loc else [a], b if ours.is_loc else [b]):
            worst = max(worst, ((x - y).abs().max() / y.abs().max()).item())
        worst = max(worst, abs(1 - (ours.loss(a) / theirs.loss(b)).item()))
    print(f"the plain networks differ from transformers' by {worst:.1e}")
    sys.exit(0 if worst < 1e-5 else 1)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--check", action="store_true")
    p.add_argument("--peer", choices=[*NETWORKS, "onnx", "adamw", "pil"])
    p.add_argument("--folder", help="model folder")
    p.add_argument("--files", help="folder of JPEG files")
    p.add_argument(
        "--optimizer", default="fused", help="fused, foreach or default (the last for adamw alone)"
    )
    p.add_argument("--precision", default="f32", choices=["f32", "bf16"])
    p.add_argument("--how", default="processor", choices=["processor", "numpy"])
    for k in ("batch", "text", "side", "threads"):
        p.add_argument(f"--{k}", type=int, default=1)
    p.add_argument("--infer", action="store_true", help="outputs alone")
    p.add_argument("--export", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.check:
        check()
    if args.peer == "pil":
        return serve(*pil_reader(args))
    if args.peer == "onnx" and not args.export:
        work, count = onnx_inferer(args)
        return serve({"infer": work}, {"parameters": count, "threads": args.threads})
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    if args.export:
        return export(args)
    what, make = (
        ("adamw", adamw) if args.peer == "adamw" else ("infer", inferer) if args.infer else ("step", stepper)
    )
    work, count = make(args)
    serve({what: work}, {"parameters": count, "threads": torch.get_num_threads(), "torch": torch.__version__})


if __name__ == "__main__":
    main()
