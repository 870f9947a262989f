"""profile.py -- the table of tests/cuda/profile.sh, from ptxcpu's JSON of each op and the emulated card's counts.

moved     bytes over the least of the op, of all its launches: as the emulated card counts them (sectors), and ptxcpu's compulsory
          bytes (read before written, and written; each once per launch). *: memory does not bind the op
sectors   of the warps' requests to global memory over the least;  banks: wavefronts of shared memory over transactions
floors    on an H100 in us by DRAM, L1 and shared memory, tensor cores, f32 pipes, special functions, issue: bounds, not times
binds     the highest of them; "latency" where all of them are under a microsecond, what a kernel takes to start and end
"""
import json
import sys

FLOORS = ["DRAM", "L1", "shared", "tensor", "fp32", "sfu", "issue"]


def moved_by_emu(folder):
    table = {}
    for line in open(folder + "/emu.counts"):
        part = line.split()
        table[part[1], part[2]] = part[5].rstrip("*")
    return table


def short(name):
    name = name.split("(")[0] if "(anon" not in name and "(Team)" not in name else name
    return name.replace("void ", "").replace("__nv_bfloat16", "bf16").split("(float")[0].split("(bf16")[0].split("(__nv")[0]


def main(folder):
    emu = moved_by_emu(folder)
    print("%-18s %-4s %6s %6s %7s %6s  %4s %5s  %s  %-8s %s" % (
        "op", "type", "emu", "ptxcpu", "sectors", "banks", "regs", "occup",
        " ".join("%6s" % f for f in FLOORS), "binds", "kernel"))
    for line in sys.stdin:
        name, kind, least, *mark = line.split()
        kernels = json.load(open("%s/%s-%s.json" % (folder, name, kind)))["kernels"]
        bytes_ = sum(k["global"]["compulsory_bytes"] * k["launches"] for k in kernels)
        for i, k in enumerate(kernels):
            ways = [k["global"][w] for w in ("load", "store", "atomic") if w in k["global"]]
            sectors, ideal = sum(w["sectors"] for w in ways), sum(w["ideal_sectors"] for w in ways)
            shared = [w for w in k["shared"].values() if isinstance(w, dict)]
            waves, trans = sum(w["wavefronts"] for w in shared), sum(w["transactions"] for w in shared)
            times = next(v for g, v in k["roofline_us"].items() if "H100" in g)
            occupancy = next(v for g, v in k["occupancy"].items() if "90" in g or "H100" in g)
            top = max(FLOORS, key=lambda f: times.get(f, 0))
            both = ("%s%s" % (emu.get((name, kind), "-"), "".join(mark)), "%.3f" % (bytes_ / float(least))) if i == 0 else ("", "")
            print("%-18s %-4s %6s %6s %7s %6s  %4d %4.0f%%  %s  %-8s %s" % (
                name if i == 0 else "", kind if i == 0 else "", *both, "%.3f" % (sectors / ideal) if ideal else "-",
                "%.2f" % (waves / trans) if trans else "-", k["ptxas"]["registers"], occupancy["percent"],
                " ".join("%6.2f" % times.get(f, 0) for f in FLOORS),
                "latency" if times["floor"] < 1 else top, short(k["kernel"])))


main(sys.argv[1])
