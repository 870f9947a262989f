"""Values and gradients of the kernels by PyTorch in float64: golden data for tests/kernels/test_*.c.

    python3 tests/golden/make_kernels.py      writes tests/golden/kernels_<family>.safetensors (needs torch, safetensors)

A tensor is named <kernel>_<dim>x<dim>...<.slot>, dims and slots as in the C test's table. Inputs are f32 numbers, so both sides
compute from the same ones; results are float64, rounded to f32 at the end.
"""
import math
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(7)
torch.set_num_threads(1)
here = pathlib.Path(__file__).parent
families = {}


def rand(*shape, lo=-1.0, hi=1.0):
    return (torch.rand(*shape) * (hi - lo) + lo).double()


def case(family, name, dims, x, fn, const=None, y="y", stats=None):
    """x: named differentiable inputs; fn(**x, **const) gives y, or (y, {stat: value}). Gradients through a random dy."""
    const = const or {}
    x = {k: v.clone().requires_grad_(True) for k, v in x.items()}
    out = fn(**x, **const)
    out, stats = out if isinstance(out, tuple) else (out, {})
    dy = rand(*out.shape)
    out.backward(dy)
    t = {"dy": dy, y: out, **stats, **x, **const, **{"d" + k: v.grad for k, v in x.items()}}
    put(family, name, dims, t)


def loss_case(name, dims, x, fn, const, grad="dx"):
    x = x.clone().requires_grad_(True)
    loss = fn(x, **const)
    loss.sum().backward()
    put("loss", name, dims, {"x": x, "loss": loss, grad: x.grad, **const})


def put(family, name, dims, tensors):
    key = name + "_" + "x".join(str(d) for d in dims)
    for k, v in tensors.items():
        v = v.detach()
        families.setdefault(family, {})[f"{key}.{k}"] = (v.float() if v.is_floating_point() else v).contiguous()


# ---- elementwise

wide = {"gelu": 8, "quick_gelu": 8, "elu1": 8, "tanh": 6, "sigmoid": 10}
fns = {
    "gelu": lambda x: F.gelu(x),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "elu1": lambda x: F.elu(x) + 1,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
for name, fn in fns.items():
    for n in (1, 37, 1000):
        case("elementwise", name, [n], {"x": rand(n, lo=-wide[name], hi=wide[name])}, fn)
case("elementwise", "add", [37], {"a": rand(37), "b": rand(37)}, lambda a, b: a + b)
case("elementwise", "mul", [37], {"a": rand(37), "b": rand(37)}, lambda a, b: a * b)
for r, n in ((1, 1), (5, 37), (70, 37)):
    case("elementwise", "add_rows", [r, n], {"x": rand(r, n), "p": rand(n)}, lambda x, p: x + p)
for b, t, c in ((1, 1, 1), (3, 7, 37)):
    case("elementwise", "mul_tokens", [b, t, c], {"x": rand(b, t, c), "g": rand(b, c)}, lambda x, g: x * g[:, None])

# ---- norm: layernorm, l2norm, softmax


def layernorm(x, gamma, beta):
    mean = x.mean(-1)
    rstd = (x.var(-1, unbiased=False) + 1e-5).rsqrt()
    return F.layer_norm(x, x.shape[-1:], gamma, beta, 1e-5), {"mean": mean, "rstd": rstd}


def l2norm(x):
    inv = 1 / (x.norm(dim=-1) + 1e-6)
    return x * inv[:, None], {"inv": inv}


for r, c in ((1, 1), (5, 37), (67, 36), (2, 768)):
    case("norm", "layernorm", [r, c], {"x": rand(r, c), "gamma": rand(c), "beta": rand(c)}, layernorm)
    case("norm", "l2norm", [r, c], {"x": rand(r, c)}, l2norm)
    case("norm", "softmax", [r, c], {"x": rand(r, c, lo=-9, hi=9)}, lambda x: torch.softmax(x, -1))

# ---- attention


def attention(q, k, v, mask, causal):
    B, Tq, H, D = q.shape
    Tk = k.shape[1]
    see = torch.ones(B, 1, Tq, Tk, dtype=torch.bool)
    if mask is not None:
        see = see & (mask[:, None, None, :] != 0)
    if causal:
        see = see & (torch.arange(Tk)[None, :] <= torch.arange(Tq)[:, None] + (Tk - Tq))
    s = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(D)
    blind = ~see.any(-1, keepdim=True)
    p = torch.softmax(s.masked_fill(~see, -math.inf).masked_fill(blind, 0.0), -1) * see
    lse = torch.logsumexp(s.masked_fill(~see, -math.inf), -1)
    return torch.einsum("bhij,bjhd->bihd", p, v), {"lse": lse.detach()}


for B, H, Tq, Tk, D in ((1, 1, 1, 1, 1), (2, 3, 7, 11, 5), (2, 2, 13, 13, 16), (1, 1, 101, 37, 16), (1, 2, 37, 21, 20)):
    for kind in range(4):
        q, k, v = rand(B, Tq, H, D, lo=-3, hi=3), rand(B, Tk, H, D, lo=-3, hi=3), rand(B, Tk, H, D)
        mask = (torch.rand(B, Tk) < 0.7).to(torch.uint8) if kind & 1 else None
        if mask is not None and B > 1:
            mask[1] = 0  # a batch whose queries see nothing
        const = {"mask": mask} if mask is not None else {}
        name = "attention" + ("_masked" if kind & 1 else "") + ("_causal" if kind & 2 else "")
        case("attention", name, [B, H, Tq, Tk, D], {"q": q, "k": k, "v": v},
             lambda q, k, v, mask=None, causal=bool(kind & 2): attention(q, k, v, mask, causal), const, y="out")
        f = families["attention"]
        key = f"{name}_{B}x{H}x{Tq}x{Tk}x{D}."
        f[key + "dout"] = f.pop(key + "dy")

# ---- embed


def index(n, below):
    return torch.randint(0, below, (n,), dtype=torch.int32)


for n, r, c in ((1, 1, 1), (23, 11, 37)):
    i = index(n, r)
    case("embed", "gather_rows", [n, r, c], {"x": rand(r, c)}, lambda x, idx: x[idx.long()], {"idx": i})
    i4, w = index(4 * n, r), rand(n, 4)
    case("embed", "interp_rows", [n, r, c], {"x": rand(r, c)},
         lambda x, idx, w: (x[idx.long()].view(n, 4, c) * w[:, :, None]).sum(1), {"idx": i4, "w": w})
for b, t, c in ((1, 1, 1), (3, 7, 37)):
    case("embed", "mean_tokens", [b, t, c], {"x": rand(b, t, c)}, lambda x: x.mean(1))
    m = (torch.rand(b, t) < 0.6).to(torch.uint8)
    if b > 2:
        m[2] = 0
    case("embed", "mean_tokens_masked", [b, t, c], {"x": rand(b, t, c)},
         lambda x, mask: (x * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1), {"mask": m})
for n, a, b, p, d in ((1, 1, 1, 1, 1), (9, 3, 4, 13, 37)):
    case("embed", "pair_scores", [n, a, b, p, d], {"f": rand(a, p, d), "q": rand(b, d)},
         lambda f, q, img, txt: torch.einsum("npd,nd->np", f[img.long()], q[txt.long()]),
         {"img": index(n, a), "txt": index(n, b)})

# ---- gemm: C += A B

for M, N, K in ((1, 1, 1), (5, 37, 13), (35, 17, 130)):
    case("gemm", "gemm", [M, N, K], {"a": rand(M, K), "b": rand(K, N), "bias": rand(N)}, lambda a, b, bias: a @ b + bias)

# ---- losses

T = 2.0


def bce(x, target, weight):
    return weight * T * T * F.binary_cross_entropy_with_logits(x / T, target, reduction="none").sum(-1)


def ce(x, label, weight):
    per_row = F.cross_entropy(x, label.long(), reduction="none", label_smoothing=0.1, ignore_index=-1)
    return weight * per_row


def kl(x, z, weight):
    return weight * T * T * F.kl_div(F.log_softmax(x / T, -1), F.log_softmax(z / T, -1), reduction="none", log_target=True).sum(-1)


def focal(x, target, weight):
    s = torch.sigmoid(x)
    a = 0.3 * target + 0.7 * (1 - target)
    return (weight * a * (target - s).abs() ** 2 * F.binary_cross_entropy_with_logits(x, target, reduction="none")).sum(-1)


for r, v in ((1, 1), (5, 37), (4, 701)):
    w = rand(r, lo=0, hi=1)
    if r > 2:
        w[2] = 0
    x = rand(r, v, lo=-6, hi=6)
    loss_case("bce", [r, v], x, bce, {"target": rand(r, v, lo=0, hi=1), "weight": w})
    label = index(r, v)
    if r > 3:
        label[3] = -1
    loss_case("ce", [r, v], x, ce, {"label": label, "weight": w})
    loss_case("kl", [r, v], x, kl, {"z": rand(r, v, lo=-6, hi=6), "weight": w})
    hard = (torch.rand(r, v) < 0.5).double()
    if v < 100:
        ww = rand(r, v, lo=0, hi=1)
        loss_case("focal", [r, v], x, focal, {"target": rand(r, v, lo=0, hi=1), "weight": ww})
        loss_case("focal_hard", [r, v], x, focal, {"target": hard, "weight": ww})


def corners_of(b):
    return torch.cat([b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2], -1)


def box(x, target, weight, corners):
    a, b = corners_of(x), corners_of(target)
    l1 = ((a - b) if corners else (x - target)).abs().sum(-1)
    area = lambda c: (c[:, 2:] - c[:, :2]).prod(-1)
    inter = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(-1)
    union = area(a) + area(b) - inter
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(-1)
    return weight * (5 * l1 + 2 * (1 - (inter / union - (hull - union) / hull)))


for n in (1, 101):
    boxes = lambda: torch.cat([rand(n, 2, lo=0, hi=1), rand(n, 2, lo=0.1, hi=0.9)], -1)
    for corners in (False, True):
        loss_case("box_corners" if corners else "box", [n], boxes(), lambda x, target, weight: box(x, target, weight, corners),
                  {"target": boxes(), "weight": rand(n, lo=0, hi=1)})

# ---- optim: three steps of AdamW over two segments, [0, 300) and [310, 1000)

p, grads = rand(1000), [rand(1000) for _ in range(3)]
parts = [p[:300].clone().requires_grad_(True), p[310:].clone().requires_grad_(True)]
opt = torch.optim.AdamW([{"params": [parts[0]], "lr": 1e-2, "weight_decay": 0.1},
                         {"params": [parts[1]], "lr": 1e-3, "weight_decay": 0.0}], betas=(0.9, 0.98), eps=1e-8)
put("optim", "adamw", [1000], {"p": p, "g": torch.stack(grads)})
for g in grads:
    parts[0].grad, parts[1].grad = 0.5 * g[:300], 0.5 * g[310:]
    opt.step()
want = p.clone()
want[:300], want[310:] = parts[0].detach(), parts[1].detach()
put("optim", "adamw", [1000], {"want": want})

# ---- later cases, at the end, so that the numbers drawn before stay what they were

# gemm_bgrad: dw += dy^T x, dbias += the rows of dy; gelu's tanh form by itself and beside a product, there and back

for M, N, K in ((1, 1, 1), (5, 37, 13), (35, 17, 130)):
    case("gemm", "gemm_bgrad", [M, N, K], {"x": rand(M, K), "w": rand(N, K), "bias": rand(N)}, lambda x, w, bias: x @ w.T + bias)
for n in (1, 37, 1000):
    case("elementwise", "gelu_tanh", [n], {"x": rand(n, lo=-8, hi=8)}, lambda x: F.gelu(x, approximate="tanh"))
for M, N, K in ((1, 1, 1), (5, 37, 13), (35, 17, 130)):
    x, w, bias = rand(M, K), rand(N, K), rand(N)
    pre = x @ w.T + bias
    put("gemm", "gemm_gelu_tanh", [M, N, K], {"x": x, "w": w, "bias": bias, "pre": pre, "y": F.gelu(pre, approximate="tanh")})
    dz, w, pre = rand(M, K), rand(K, N), rand(M, N, lo=-4, hi=4).requires_grad_(True)
    z = F.gelu(pre, approximate="tanh") @ w.T
    put("gemm", "gemm_dgelu_tanh", [M, N, K], {"dz": dz, "w": w, "pre": pre, "dpre": torch.autograd.grad(z, pre, dz)[0]})

total = 0
for family, tensors in families.items():
    path = here / f"kernels_{family}.safetensors"
    save_file(tensors, path, {"torch": torch.__version__, "made_by": "make_kernels.py"})
    total += path.stat().st_size
    print(f"{path.name}: {len(tensors)} tensors, {path.stat().st_size} bytes")
print(f"{total} bytes")
