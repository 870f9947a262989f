#!/usr/bin/env python3
"""Two ranks, each on a core, beside one rank on one core: how much of twice its rate they reach.

    python3 bench/ranks.py --bench build/cpu/vpdistill [--size demo,b32] [--rounds 4] [--peers ""]

`vpdistill train` on the built-in dataset, as many examples a rank for two ranks as for one, JPEG decoder
included: the demo's ViLT (32 a rank) and ViLT-B/32 (4 a rank; 117.6 M parameters, so 470 MB of gradients are
summed in each update). Gradients are summed in shared memory, or over sockets (run.comm=tcp). "Apart" are two
runs that share nothing but the machine: what its cores and memory allow. The peer is the same network in
PyTorch under DistributedDataParallel with gloo (peers.py, plain-eager; it trains on tensors ready made).
Everything starts anew in each turn, in turns; the rate is that of the second half of a turn's steps.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import folders
import turns

GOAL = 0.9
SIZES = {  # what a rank does; steps of a turn: the log tells the rate of the second half
    "demo": {"folder": turns.root / "configs/models/demo-vqa", "batch": 32, "steps": 200, "text": 12, "side": 48},
    "b32": {"folder": None, "batch": 4, "steps": 8, "text": 12, "side": 384},
}


def scenes(args):
    folder = turns.root / "build/bench/ranks-scenes"
    if not (folder / "dataset.json").exists():
        sizes = ["scenes.train=64", "scenes.val=1", "scenes.test=1", "scenes.steps=24"]
        subprocess.run([args.bench, "scenes", f"scenes.dir={folder}", *sizes], check=True, capture_output=True)
    return folder


def b32_of_the_demo():
    """ViLT-B/32 whose first answers are the built-in dataset's."""
    folder = turns.root / "build/bench/vilt-b32-scenes"
    shutil.copytree(folders.vilt_b32(), folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] |= json.loads((SIZES["demo"]["folder"] / "config.json").read_text())["id2label"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def start(command, rank, size, port, core, log):
    env = {
        **os.environ,
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": "1",
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    pin = lambda: os.sched_setaffinity(0, {core})
    return subprocess.Popen(command, env=env, preexec_fn=pin, stdout=log, stderr=subprocess.STDOUT)


def rates(commands, size, cores, port):
    """Of the first rank of each group of `size` processes: examples per second and rank, from its last line."""
    with tempfile.TemporaryDirectory() as work:
        logs = [open(pathlib.Path(work) / str(k), "w+") for k in range(len(commands))]
        running = [
            start(c, k % size, size, port + k // size, cores[k], log)
            for k, (c, log) in enumerate(zip(commands, logs))
        ]
        ended = [p.wait() for p in running]
        texts = []
        for log in logs:
            log.seek(0)
            texts.append(log.read())
            log.close()
    for text, status in zip(texts, ended):
        if status:
            sys.exit(f"a rank ended with status {status}:\n{text}")
    return [float(re.findall(r"([0-9.]+)/s", t)[-1]) / size for t in texts[::size]]


def ours(args, name, size, apart, *more):
    s, work = SIZES[name], tempfile.mkdtemp()
    folder = s["folder"] or b32_of_the_demo()
    command = [
        args.bench,
        "train",
        "data.kind=steps",
        f"data.dir={scenes(args)}",
        "data.cache_mb=200",
        "train.module=vqa",
        f"model.vqa={folder}",
        "train.from_scratch=true",
        "train.resume=false",
        "train.save_every=0",
        f"train.steps={s['steps']}",
        f"train.batch={s['batch'] * size}",
        f"run.log_every={s['steps'] // 2}",
        "run.threads=1",
        *more,
    ]
    processes = [[*command, f"run.out={work}/{k if apart else 0}"] for k in range(2 if apart else size)]
    found = rates(processes, size, args.cores, args.port)
    shutil.rmtree(work)
    args.port += 2
    return statistics.mean(found)


def theirs(args, name, size):
    s = SIZES[name]
    command = [sys.executable, __file__, "--ddp", name, "--folder", str(s["folder"] or b32_of_the_demo())]
    args.port += 2
    return rates([command] * size, size, args.cores, args.port - 2)[0]


def ddp(name, folder):
    """A rank of PyTorch's."""
    import torch
    import torch.distributed
    from torch.nn.parallel import DistributedDataParallel

    import peers

    s = SIZES[name]
    torch.set_num_threads(1)
    torch.manual_seed(1)
    torch.distributed.init_process_group("gloo")
    size = torch.distributed.get_world_size()
    net = peers.Network(
        argparse.Namespace(folder=folder, peer="plain-eager", **{k: s[k] for k in ("batch", "text", "side")})
    )
    model = DistributedDataParallel(net.model) if size > 1 else net.model
    optimizer = torch.optim.AdamW(peers.groups_of(model), lr=1e-4, betas=(0.9, 0.98), fused=True)
    for step in range(s["steps"]):
        if step == s["steps"] // 2:
            begin = time.perf_counter()
        net.loss(model(net.ids, net.patches)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - begin
    print(f"{size * s['batch'] * (s['steps'] - s['steps'] // 2) / seconds}/s")
    torch.distributed.destroy_process_group()


def measure(args, name):
    sides = {
        "one rank": lambda: ours(args, name, 1, False),
        "two ranks, shared memory": lambda: ours(args, name, 2, False),
        "two ranks, sockets": lambda: ours(args, name, 2, False, "run.comm=tcp"),
        "two runs apart": lambda: ours(args, name, 1, True),
    }
    if "ddp" in args.peers.split(","):
        sides |= {
            "PyTorch, one": lambda: theirs(args, name, 1),
            "PyTorch, two ranks, DDP and gloo": lambda: theirs(args, name, 2),
        }
    found = {k: [] for k in sides}
    for r in range(args.rounds):
        for k in sides if r % 2 else reversed(sides):
            found[k].append(sides[k]())
    median = {k: statistics.median(v) for k, v in found.items()}
    one = lambda k: median["PyTorch, one" if k.startswith("PyTorch") else "one rank"]
    return {
        "size": name,
        "batch": SIZES[name]["batch"],
        "rounds": args.rounds,
        "load": os.getloadavg()[0],
        "rates": found,
        "of_twice_one": {k: median[k] / one(k) for k in sides},
        "median": median,
    }


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    turns.add_options(p, 4)
    p.add_argument("--size", default="demo", help="of " + ", ".join(SIZES))
    p.add_argument("--peers", default="ddp", help="ddp; without it PyTorch is not needed")
    p.add_argument("--ddp", help=argparse.SUPPRESS)
    p.add_argument("--folder", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.ddp:
        return ddp(args.ddp, args.folder)
    args.cores, args.port = sorted(os.sched_getaffinity(0))[:2], 20000 + os.getpid() % 9000
    if len(args.cores) < 2:
        p.error("two ranks want two cores")
    results = [measure(args, name) for name in args.size.split(",")]
    for r in results:
        print(
            f"\n{r['size']}: {r['batch']} examples a rank, a core each; {r['rounds']} rounds, in turns\n"
            f"{turns.machine()}\n{'':34s} {'examples/s a rank':>18s} {'of one rank alone':>18s}"
        )
        for k, v in r["median"].items():
            print(f"{k:34s} {v:18.3f} {r['of_twice_one'][k]:18.3f}")
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(any(r["of_twice_one"]["two ranks, shared memory"] < GOAL for r in results))


if __name__ == "__main__":
    main()
