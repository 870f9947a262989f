#!/usr/bin/env python3
"""One training step of ViLT here and in PyTorch, side by side in one run.

    python3 bench/step.py --bench build/cpu/vpdistill                       both sizes, the table
    python3 bench/step.py --bench build/cpu/vpdistill --size demo --json out.json
    python3 bench/step.py --bench build/cpu/vpdistill --peers hf-eager,plain-compile --rounds 9

Both sides are processes that keep their model and batch loaded and do steps on request; the driver asks them in turns, A B B A,
A B B A, ..., and stops (SIGSTOP) the one that does not work, so that a waiting thread pool cannot take a core from the other.
Same sizes, same batch, same number of threads, f32, the same cores. A step is forward, loss, backward, clipping
to a global norm, AdamW. Ours also turns u8 pixels into patches and words into tokens in every step; PyTorch gets both ready made.

The peer is the quickest of several PyTorch programs, found by short trials before the run:
    hf-eager        transformers' ViltForQuestionAnswering, patch sampling included
    hf-compile      the same, its encoder under torch.compile (the sampling of patches has no static graph)
    plain-eager     the same network written down plainly: fused q, k, v, scaled_dot_product_attention, no sampling
    plain-compile   that under torch.compile
    plain-first     plain-eager that computes only the token that is read in the last block, as we do (not a
                    candidate unless asked for by --peers: nobody writes it so, but it tells engine from algorithm)
each with the quicker of AdamW's fused and foreach forms. Needs requirements.txt.
"""
import argparse
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

PEERS = ["hf-eager", "hf-compile", "plain-eager", "plain-compile", "plain-first"]
CANDIDATES = PEERS[:4]
here = pathlib.Path(__file__).resolve()

# ---- the PyTorch side ------------------------------------------------------------------------------------


def hf_config(folder):
    from transformers import ViltConfig
    raw = json.loads((pathlib.Path(folder) / "config.json").read_text())
    raw["initializer_range"] = raw.get("initializer_range") or 0.02
    return ViltConfig(**{k: v for k, v in raw.items() if k not in ("architectures", "model_type")})


def plain_model(cfg, text, grid, first_only):
    """ViLT for images of one size: no masks, positions as they are."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Block(nn.Module):
        def __init__(self, C, mlp, H, eps):
            super().__init__()
            self.H = H
            self.norm1, self.norm2 = nn.LayerNorm(C, eps), nn.LayerNorm(C, eps)
            self.qkv, self.proj = nn.Linear(C, 3 * C), nn.Linear(C, C)
            self.fc1, self.fc2 = nn.Linear(C, mlp), nn.Linear(mlp, C)

        def forward(self, x, first=False):
            B, T, C = x.shape
            n = self.norm1(x)
            if first:
                w, b = self.qkv.weight, self.qkv.bias
                q = F.linear(n[:, :1], w[:C], b[:C]).view(B, 1, self.H, -1).transpose(1, 2)
                k, v = F.linear(n, w[C:], b[C:]).view(B, T, 2, self.H, -1).permute(2, 0, 3, 1, 4)
                x = x[:, :1]
            else:
                q, k, v = self.qkv(n).view(B, T, 3, self.H, -1).permute(2, 0, 3, 1, 4)
            a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, -1, C)
            x = x + self.proj(a)
            return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            C, eps = cfg.hidden_size, cfg.layer_norm_eps
            self.word, self.segment = nn.Embedding(cfg.vocab_size, C), nn.Embedding(cfg.type_vocab_size, C)
            self.text_pos = nn.Embedding(cfg.max_position_embeddings, C)
            self.text_norm = nn.LayerNorm(C, eps)
            self.patch = nn.Linear(3 * cfg.patch_size ** 2, C)
            self.cls, self.pos = nn.Parameter(torch.zeros(1, 1, C)), nn.Parameter(torch.zeros(1, 1 + (cfg.image_size // cfg.patch_size) ** 2, C))
            self.modality = nn.Embedding(cfg.modality_type_vocab_size, C)
            self.blocks = nn.ModuleList(Block(C, cfg.intermediate_size, cfg.num_attention_heads, eps) for _ in range(cfg.num_hidden_layers))
            self.norm, self.pooler = nn.LayerNorm(C, eps), nn.Linear(C, C)
            self.head = nn.Sequential(nn.Linear(C, 2 * C), nn.LayerNorm(2 * C), nn.GELU(), nn.Linear(2 * C, cfg.num_labels))

        def forward(self, ids, patches):
            B = ids.shape[0]
            t = self.word(ids) + self.segment.weight[0] + self.text_pos.weight[:ids.shape[1]]
            t = self.text_norm(t) + self.modality.weight[0]
            i = torch.cat([self.cls.expand(B, -1, -1), self.patch(patches)], 1) + self.pos + self.modality.weight[1]
            x = torch.cat([t, i], 1)
            for k, b in enumerate(self.blocks):
                x = b(x, first_only and k == len(self.blocks) - 1)
            return self.head(torch.tanh(self.pooler(self.norm(x)[:, 0])))

    return Plain()


def torch_side(args):
    import resource

    import torch
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    cfg = hf_config(args.folder)
    B, N, V = args.batch, args.text, cfg.num_labels
    ids = torch.randint(5, cfg.vocab_size, (B, N))
    labels = torch.randint(0, V, (B,))
    multi = getattr(cfg, "problem_type", None) != "single_label_classification"
    target = torch.nn.functional.one_hot(labels, V).float()
    pixels = torch.rand(B, 3, args.height, args.width) * 2 - 1
    if args.peer.startswith("hf"):
        from transformers import ViltForQuestionAnswering
        model = ViltForQuestionAnswering(cfg)
        if args.peer == "hf-compile":
            model.vilt.encoder = torch.compile(model.vilt.encoder)
        mask, pixel_mask, segment = torch.ones(B, N, dtype=torch.long), torch.ones(B, args.height, args.width, dtype=torch.long), torch.zeros(B, N, dtype=torch.long)
        forward = lambda: model(input_ids=ids, attention_mask=mask, token_type_ids=segment, pixel_values=pixels, pixel_mask=pixel_mask).logits
    else:
        p, gh, gw = cfg.patch_size, args.height // cfg.patch_size, args.width // cfg.patch_size
        patches = pixels.view(B, 3, gh, p, gw, p).permute(0, 2, 4, 1, 3, 5).reshape(B, gh * gw, -1).contiguous()
        model = plain_model(cfg, N, (gh, gw), args.peer == "plain-first")
        run = torch.compile(model) if args.peer == "plain-compile" else model
        forward = lambda: run(ids, patches)
    model.train()
    named = list(model.named_parameters())
    plain = [p for n, p in named if p.ndim < 2]
    groups = [{"params": [p for n, p in named if p.ndim >= 2], "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.98), **{args.optimizer: True})

    def step():
        logits = forward()
        if multi:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="sum") / B
        else:
            loss = torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    for line in sys.stdin:
        word = line.split()
        if word[0] == "step":
            cpu, seconds = time.process_time(), []
            for _ in range(int(word[1])):
                start = time.perf_counter()
                loss = step()
                seconds.append(time.perf_counter() - start)
            answer = {"seconds": seconds, "cpu_seconds": time.process_time() - cpu, "loss": loss}
        else:
            answer = {"parameters": sum(p.numel() for p in model.parameters()), "threads": torch.get_num_threads(),
                      "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "torch": torch.__version__}
        print(json.dumps(answer), flush=True)


# ---- sizes -----------------------------------------------------------------------------------------------


def b32_folder(path):
    """A model folder of ViLT-B/32's sizes with a made-up vocabulary of 30,522 words and 3,129 answers."""
    path.mkdir(parents=True, exist_ok=True)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += ["w" + "".join(letters[n // 26 ** k % 26] for k in range(4)) for n in range(30522 - len(words))]
    (path / "vocab.txt").write_text("\n".join(words) + "\n")
    config = {"architectures": ["ViltForQuestionAnswering"], "model_type": "vilt", "hidden_size": 768, "intermediate_size": 3072,
              "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
              "attention_probs_dropout_prob": 0.0, "initializer_range": 0.02, "layer_norm_eps": 1e-12, "image_size": 384,
              "patch_size": 32, "num_channels": 3, "qkv_bias": True, "max_image_length": -1, "num_images": -1, "vocab_size": 30522,
              "type_vocab_size": 2, "modality_type_vocab_size": 2, "max_position_embeddings": 40,
              "id2label": {str(i): f"answer {i}" for i in range(3129)}}
    (path / "config.json").write_text(json.dumps(config))
    (path / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 384}, "size_divisor": 32, "resample": 3,
                                                               "image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    return path


SIZES = {  # goal: times tuned PyTorch
    "demo": dict(batch=64, text=10, height=48, width=48, steps=10, goal=2.0),
    "b32": dict(batch=8, text=40, height=384, width=384, steps=1, goal=1.0),
}


def flops(folder, size, first_only):
    """Matrix products of a step: forward once, backward twice (the patches need no gradient)."""
    c = json.loads((pathlib.Path(folder) / "config.json").read_text())
    C, F, L, B = c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"], size["batch"]
    P = size["height"] // c["patch_size"] * (size["width"] // c["patch_size"])
    T = size["text"] + 1 + P
    block = 2 * T * (4 * C * C + 2 * C * F) + 4 * T * T * C
    last = 2 * T * 2 * C * C + 2 * (2 * C * C + 2 * C * F) + 4 * T * C if first_only else block
    head = 2 * (C * C + 2 * C * C + 2 * C * len(c["id2label"]))
    patches = 2 * P * 3 * c["patch_size"] ** 2 * C
    return B * (3 * (block * (L - 1) + last + head) + 2 * patches)


# ---- the driver ------------------------------------------------------------------------------------------


class Side:
    """A process that does steps on request, stopped between requests."""

    def __init__(self, name, command, env, cores, tokens_first):
        self.name, self.first_only = name, tokens_first
        self.env = {**os.environ, **env}
        self.seconds, self.cpu, self.last = [], 0.0, None
        self.p = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.env,
                                  preexec_fn=lambda: os.sched_setaffinity(0, cores))

    def ask(self, line):
        os.kill(self.p.pid, signal.SIGCONT)
        self.p.stdin.write(line + "\n")
        self.p.stdin.flush()
        answer = self.p.stdout.readline()
        if not answer:
            sys.exit(f"{self.name} ended (status {self.p.wait()}) at \"{line}\"")
        os.kill(self.p.pid, signal.SIGSTOP)
        return json.loads(answer)

    def steps(self, n):
        self.last = a = self.ask(f"step {n}")
        self.seconds += a["seconds"]
        self.cpu += a["cpu_seconds"]
        return a

    def close(self):
        if self.p.poll() is None:
            os.kill(self.p.pid, signal.SIGCONT)
            self.p.stdin.close()
            try:
                self.p.wait(10)
            except subprocess.TimeoutExpired:
                self.p.kill()


def sides_of(args, folder, size):
    shape = [f"--{k}={size[k]}" for k in ("batch", "text", "height", "width")]
    threads = {"OMP_NUM_THREADS": str(args.threads)}

    def ours(wait):
        return Side(f"vpdistill ({wait.lower()})", [args.bench, "bench", "step", "requests", f"model.vqa={folder}", f"run.threads={args.threads}",
                                                    f"bench.batch={size['batch']}", f"bench.text={size['text']}", f"bench.side={size['height']}"],
                    {**threads, "OMP_WAIT_POLICY": wait}, args.cores, True)

    def theirs(peer, optimizer, wait):
        return Side(f"{peer}, {optimizer} AdamW ({wait.lower()})",
                    [sys.executable, str(here), "--side", peer, "--optimizer", optimizer, "--folder", str(folder), "--threads", str(args.threads), *shape],
                    {**threads, "OMP_WAIT_POLICY": wait}, args.cores, peer == "plain-first")
    return ours, theirs


def trial(make, n):
    """Median seconds of n steps after two that warm up, or None when the variant does not run here."""
    side = make()
    try:
        side.steps(2)
        return statistics.median(side.steps(n)["seconds"])
    except (SystemExit, OSError, ValueError) as e:
        print(f"  {side.name}: does not run ({e})", file=sys.stderr)
        return None
    finally:
        side.close()


def quickest(makers, n, what):
    if len(makers) == 1:
        return makers[0]
    best, best_s = None, None
    for make in makers:
        s = trial(make, n)
        if s is None:
            continue
        print(f"  trial: {make.label:44s} {s * 1e3:10.2f} ms", file=sys.stderr)
        if best_s is None or s < best_s:
            best, best_s = make, s
    if best is None:
        sys.exit(f"no variant of {what} runs")
    return best


def labelled(f, label):
    f.label = label
    return f


def peak_of(args):
    env = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    with tempfile.NamedTemporaryFile(suffix=".json") as f:
        subprocess.run([args.bench, "bench", "peak", f"run.threads={args.threads}", "bench.ms=300", f"bench.json={f.name}"], env=env, check=True,
                       capture_output=True, preexec_fn=lambda: os.sched_setaffinity(0, args.cores))
        row = json.loads(pathlib.Path(f.name).read_text())["rows"][0]
    return {"gflops": row["gflop_per_s"], "gbs": row["gb_per_s"]}


def measure(args, name):
    size = SIZES[name]
    folder = b32_folder(here.parent.parent / "build/bench/vilt-b32") if name == "b32" else here.parent.parent / "configs/models/tiny-vilt"
    ours, theirs = sides_of(args, folder, size)
    n = size["steps"] if args.steps is None else args.steps
    waits = args.waits.split(",")
    mine = quickest([labelled(lambda w=w: ours(w), f"vpdistill, {w.lower()}") for w in waits], max(n, 3), "vpdistill")
    # Optimizers and waiting are tried on the plainest program, then the programs: one trial each instead of all products.
    peers = args.peers.split(",")
    settings = [(o, w) for o in args.optimizers.split(",") for w in waits]
    probe = "plain-eager" if "plain-eager" in peers else peers[0]
    best = quickest([labelled(lambda s=s: theirs(probe, *s), f"{probe}, {s[0]}, {s[1].lower()}") for s in settings], max(n, 3), "PyTorch's settings")
    setting = best.__defaults__[0]
    peer = quickest([labelled(lambda p=p: theirs(p, *setting), f"{p}, {setting[0]}, {setting[1].lower()}") for p in peers], max(n, 3), "PyTorch")

    a, b = mine(), peer()
    peaks = []
    try:
        for s in (a, b):
            s.steps(3)  # code generation, pages, clocks
            s.seconds, s.cpu = [], 0.0
        turns = []
        for r in range(args.rounds):
            peaks.append(peak_of(args))
            order = (a, b) if r % 2 == 0 else (b, a)
            turns += [(s, statistics.median(s.steps(n)["seconds"])) for s in order]
        info = {s: s.ask("info") for s in (a, b)}
    finally:
        a.close()
        b.close()
    peak = {k: max(p[k] for p in peaks) for k in ("gflops", "gbs")}
    median = {s: statistics.median(t for x, t in turns if x is s) for s in (a, b)}
    result = {"size": name, **{k: size[k] for k in ("batch", "text", "height", "width", "goal")}, "threads": args.threads, "rounds": args.rounds,
              "steps_per_turn": n, "peak_gflops": peak["gflops"], "peak_gbs": peak["gbs"], "ratio": median[b] / median[a], "load": os.getloadavg()[0], "sides": []}
    for s in (a, b):
        work = flops(folder, size, s.first_only)
        result["sides"].append({"name": s.name, "median_s": median[s], "best_s": min(s.seconds), "worst_s": max(s.seconds), "cpu_s": s.cpu / len(s.seconds),
                                "gflops": work / median[s] * 1e-9, "share_of_peak": work / median[s] * 1e-9 / peak["gflops"],
                                "peak_rss": info[s]["peak_rss"], "parameters": info[s]["parameters"], "loss": s.last["loss"],
                                "seconds": [t for x, t in turns if x is s]})
    return result


def table(r, out=sys.stdout):
    print(f"\n{r['size']}: batch {r['batch']}, {r['text']} text tokens, {r['height']}x{r['width']} pixels, {r['sides'][0]['parameters']:,} parameters, "
          f"{r['threads']} threads; {r['rounds']} rounds, in turns, of {r['steps_per_turn']} steps; load {r['load']:.1f}\n"
          f"peak in this run: {r['peak_gflops']:.1f} GFLOP/s, {r['peak_gbs']:.1f} GB/s", file=out)
    print(f"{'':44s} {'median ms':>10s} {'best':>10s} {'cpu ms':>10s} {'GFLOP/s':>8s} {'%peak':>6s} {'peak RSS MB':>12s}", file=out)
    for s in r["sides"]:
        print(f"{s['name']:44s} {s['median_s'] * 1e3:10.2f} {s['best_s'] * 1e3:10.2f} {s['cpu_s'] * 1e3:10.2f} {s['gflops']:8.1f} {100 * s['share_of_peak']:6.1f} "
              f"{s['peak_rss'] / 1e6:12.0f}", file=out)
    a, b = r["sides"]
    print(f"{b['median_s'] / a['median_s']:.2f} times PyTorch's speed (goal {r['goal']:.0f}), {a['peak_rss'] / b['peak_rss']:.2f} of its memory", file=out)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--bench", default="build/cpu/vpdistill", help="our program")
    p.add_argument("--size", default="demo,b32", help="demo, b32 or both")
    p.add_argument("--rounds", type=int, default=9, help="turns of each side, at least 7 for a table to be told")
    p.add_argument("--steps", type=int, help="steps of a turn (demo 10, b32 1)")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--peers", default=",".join(CANDIDATES), help=", ".join(PEERS))
    p.add_argument("--optimizers", default="fused,foreach")
    p.add_argument("--waits", default="PASSIVE", help="values of OMP_WAIT_POLICY to try, for both sides; ACTIVE only on a machine that is otherwise idle")
    p.add_argument("--json", help="file for the results")
    p.add_argument("--side", dest="peer", choices=PEERS, help=argparse.SUPPRESS)
    p.add_argument("--optimizer", default="fused", help=argparse.SUPPRESS)
    p.add_argument("--folder", help=argparse.SUPPRESS)
    for k in ("batch", "text", "height", "width"):
        p.add_argument(f"--{k}", type=int, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.peer:
        torch_side(args)
        return
    args.cores = set(sorted(os.sched_getaffinity(0))[:args.threads])
    results = []
    for name in args.size.split(","):
        if name not in SIZES:
            sys.exit(f"--size {name}: known are {', '.join(SIZES)}")
        results.append(measure(args, name))
        table(results[-1])
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(0 if all(r["ratio"] >= r["goal"] for r in results) else 1)


if __name__ == "__main__":
    main()
