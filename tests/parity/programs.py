#!/usr/bin/env python3
"""All example programs on photographs, with models of the published sizes and random weights.

    python3 tests/parity/programs.py [--engine build/cpu/vpdistill] [--out build/programs] [--loc-threshold T] [--alone]
                                     [--photos IMAGE.jpg LEFT.jpg RIGHT.jpg]

Makes ViLT-B/32, OWL-ViT-B/32 and CLIP ViT-B/32 folders as parity.py does (kept in OUT/models for the next time), runs
tests/parity/programs.txt in one batch, and writes OUT/page.html. --alone: then each program by itself, which must end with the same
result. Random weights answer at random, so nothing is said about answers; it is about execution, batches, time and the page.
Photographs when none are named: scikit-image's rocket (as it ships), coffee and cat (which it ships as PNG).
"""
import argparse
import importlib.util
import json
import pathlib
import resource
import subprocess
import sys
import time

here = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(here), str(here.parent.parent / "configs" / "models")]
sys.dont_write_bytecode = True

LISTS = {"garden birds": ["robin", "wren", "blue tit", "blackbird", "magpie", "sparrow"]}


def photographs(out):
    from PIL import Image

    data = pathlib.Path(importlib.util.find_spec("skimage").origin).parent / "data"
    paths = []
    for name in ("rocket.jpg", "coffee.png", "chelsea.png"):
        paths.append((out / name).with_suffix(".jpg"))
        if name.endswith(".jpg"):
            paths[-1].write_bytes((data / name).read_bytes())
        else:
            Image.open(data / name).convert("RGB").save(paths[-1], quality=92)
    return paths


def models(out):
    import parity

    folders = {}
    for option, name in (("vqa", "vilt-vqa"), ("loc", "owlvit-b32"), ("clip", "clip-b32")):
        folders[option] = out / "models" / name
        if not (folders[option] / "model.safetensors").exists():
            folders[option].mkdir(parents=True, exist_ok=True)
            parity.MODELS[name].make(folders[option])
    # Answers that EVAL can count with, as a model that is asked "How many ...?" would give. (Of "answer1205" >= 3 an error is right.)
    path = folders["vqa"] / "config.json"
    config, words = json.loads(path.read_text()), ["yes", "no", *map(str, range(21))]
    config["id2label"] = {k: words[int(k) % len(words)] for k in config["id2label"]}
    config.pop("label2id", None)  # labels are not unique now
    path.write_text(json.dumps(config))
    return folders


def run(args, photos, folders, programs, *more):
    """Lines, seconds, peak memory in MB."""
    command = [args.engine, "run", "--program", str(programs), "--lists", str(args.out / "lists.json"), f"model.loc_threshold={args.loc_threshold}"]
    for option, path in zip(("--image", "--left", "--right"), photos):
        command += [option, str(path)]
    for option, path in folders.items():
        command += ["--" + option, str(path)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    start = time.time()
    done = subprocess.run([*command, *more], stdout=subprocess.PIPE, text=True)
    seconds = time.time() - start
    peak = max(before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024
    return done.stdout.splitlines(), seconds, peak, done.returncode


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--engine", default="build/cpu/vpdistill")
    p.add_argument("--out", default="build/programs", type=pathlib.Path)
    p.add_argument("--photos", nargs=3, type=pathlib.Path, metavar=("IMAGE", "LEFT", "RIGHT"))
    p.add_argument("--loc-threshold", default=0.7, type=float, help="random weights score high; 0.7 leaves a few boxes")
    p.add_argument("--alone", action="store_true", help="each program by itself, too: some seconds each, for loading")
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "lists.json").write_text(json.dumps(LISTS))
    folders, photos = models(args.out), args.photos or photographs(args.out)
    text = (here / "programs.txt").read_text()
    programs = [b for b in text.split("\n\n") if any(line and not line.startswith("#") for line in b.split("\n"))]

    page = args.out / "page.html"
    got, seconds, peak, status = run(args, photos, folders, here / "programs.txt", "--trace", str(page), "--json", str(args.out / "page.jsonl"))
    print(f"{len(programs)} programs in one run: {seconds:.1f} s, {peak:.0f} MB at most; {page} has {page.stat().st_size} bytes")
    for program, line in zip(programs, got):
        print("   ", program.split("\n")[0].lstrip("# "), "->", line)
    failed = sum(line.startswith("error: ") for line in got)
    assert status == 0 and len(got) == len(programs) and not failed, f"status {status}, {len(got)} lines, {failed} failed"

    if not args.alone:
        return
    alone, differ, one = 0.0, [], args.out / "one.txt"
    for program, line in zip(programs, got):
        one.write_text(program + "\n")
        lines, seconds, _, _ = run(args, photos, folders, one)
        alone += seconds
        if [x.split(" (--")[0] for x in lines] != [line.split(": " + str(args.out))[0]]:
            differ.append((program.split("\n")[0], line, lines))
    print(f"each by itself: {alone:.1f} s with loading; {len(differ)} results differ")
    for d in differ:
        print("   ", *d)
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
