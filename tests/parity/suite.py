"""What parity.py and chain.py share: a command line of named models, the reference's halves in processes of
their own, what the engine is compared with, and a table of which only the rows of this run are replaced.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys

OUTPUT_BOUND, GRADIENT_BOUND = 1e-4, 1e-3

# ---- in the reference's processes --------------------------------------------------------------------------


def precision(name):
    import torch

    return {"f64": torch.float64, "f32": torch.float32}[name]


def load(folder, attention="eager"):
    """The folder as transformers loads it, in f32; it must find every tensor and no other."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, told = getattr(transformers, kind).from_pretrained(
        folder, output_loading_info=True, attn_implementation=attention, dtype=torch.float32
    )
    wrong = {k: list(v) for k, v in told.items() if v}
    assert not wrong, f"transformers says of {folder}: {wrong}"
    # f32 weights stay where the file is mapped, behind a header of any length: 44 bytes past a multiple of
    # 64, say. MKL then sums some products in another order, and equal weights gave logits of OWL-ViT-B/16
    # that were 2.4e-7 apart. Copies are aligned. (Gradients on or off, layers recomputed or not: no bit.)
    for p in model.parameters():
        p.data = p.data.clone()
    return model


def answer(work, case, **metadata):
    """Writes what the engine is asked, case.safetensors, and what it should say, reference.safetensors."""
    from safetensors.torch import save_file

    save_file(
        {k: v.contiguous() for k, v in case.tensors.items()},
        work / "case.safetensors",
        metadata=case.metadata,
    )
    outputs = case.run()
    loss = case.loss(outputs)
    loss.backward()
    out = {k: v.detach().clone().contiguous() for k, v in outputs.items()}
    out |= {"loss": loss.detach().reshape(1)}
    out |= {"grad." + n: p.grad.contiguous() for n, p in case.model.named_parameters() if p.grad is not None}
    save_file(out, work / "reference.safetensors", metadata=metadata)


# ---- the comparison ----------------------------------------------------------------------------------------


def compare(work):
    """Worst relative errors of engine.safetensors: outputs, loss, gradients; the name of the worst gradient."""
    import numpy as np
    from safetensors import safe_open

    def error(got, want, floor=0.0):
        assert got.shape == want.shape, (got.shape, want.shape)
        told = want > -1e29  # answers that were not ranked in full have no score
        assert ((got > -1e29) == told).all()
        got, want = got[told].astype(np.float64), want[told]
        return float(np.abs(got - want).max() / max(float(np.abs(want).max()), floor, 1e-30))

    with (
        safe_open(work / "reference.safetensors", "np") as want,
        safe_open(work / "engine.safetensors", "np") as got,
    ):
        names = set(want.keys())
        grads = [k for k in names if k.startswith("grad.")]
        outputs = [k for k in names if not k.startswith("grad.") and k != "loss"]

        def of(k, prefix="", floor=0.0):
            like = want.get_tensor(k)
            return error(got.get_tensor(prefix + k).reshape(like.shape), like, floor)

        worst = max(of(k, prefix) for k in outputs for prefix in ("", "plain."))
        loss = of("loss")
        top = max(float(np.abs(want.get_tensor(k)).max()) for k in grads)
        each = {k: of(k, floor=1e-3 * top) for k in grads}
        for k in set(got.keys()) - names:  # what the loss does not depend on
            assert k.startswith("plain.") or not got.get_tensor(k).any(), k
    name = max(each, key=each.get)
    return worst, loss, each[name], name.removeprefix("grad."), len(grads)


# ---- the command line --------------------------------------------------------------------------------------


def write_table(path, introduction, head, names, name, row):
    """Puts the row of `name` into the table, in the order of `names`."""
    old = path.read_text().split("\n") if path.exists() else []
    rows = {line.split("|")[1].strip(): line for line in old if line.startswith("| ")} | {name: row}
    path.write_text("\n".join([introduction] + head + [rows[n] for n in names if n in rows]) + "\n")


def main(doc, models, halves, run, table, programs, work):
    """halves: functions of a model's name and folder, each run in a process of its own: its memory goes with it.
    run(name, work, half, args) gives the table's row and whether it holds; half(which) runs one of the halves
    and gives what it printed. table: path, introduction, head. programs: options naming the engine's programs."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="*", metavar="MODEL", help="of " + ", ".join(models))
    for option, default in programs.items():
        p.add_argument(option, default=default)
    p.add_argument("--work", default=work, type=pathlib.Path, help="some GB per model, removed again")
    p.add_argument("--keep", action="store_true", help="leave what was written")
    p.add_argument("--half", choices=halves, help=argparse.SUPPRESS)
    args = p.parse_args()
    unknown = [m for m in args.models if m not in models]
    if unknown:
        p.error(f"unknown model {unknown[0]}; known are {', '.join(models)}")
    if args.half:
        return halves[args.half](args.models[0], args.work / args.models[0])
    good = True
    for name in args.models or models:
        here = args.work / name
        shutil.rmtree(here, ignore_errors=True)
        (here / "model").mkdir(parents=True)
        command = [sys.executable, sys.argv[0], "--work", str(args.work), name, "--half"]
        half = lambda which: subprocess.run(
            [*command, which], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        row, ok = run(name, here, half, args)
        print(row, "" if ok else "  WRONG", flush=True)
        if ok:
            write_table(*table, models, name, row)
        if not args.keep:
            shutil.rmtree(here)
        good = good and ok
    sys.exit(0 if good else 1)
