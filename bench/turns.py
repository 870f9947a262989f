"""Programs that take turns: what the drivers beside it (step.py, infer.py, adamw.py, jpeg.py) share.

Each side is a process that keeps its model and its data loaded and works on request; the driver asks them in
turns, A B B A A B ..., and stops (SIGSTOP) those that do not work, so that a waiting thread pool cannot take
a core from the one that does. Commands are lines of standard input, answers JSON objects: "NAME K" does
something K times, "info" tells of the process (bench/requests.c, peers.py).
"""

import json
import os
import pathlib
import platform
import signal
import statistics
import subprocess
import sys
import tempfile

here = pathlib.Path(__file__).resolve().parent
root = here.parent


class Side:
    """A process that works on request, stopped between requests."""

    def __init__(self, name, kind, command, cores, env=None):
        self.name, self.kind = name, kind
        self.seconds, self.turns, self.cpu, self.last = [], [], 0.0, None
        self.p = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )

    def ask(self, line):
        os.kill(self.p.pid, signal.SIGCONT)
        self.p.stdin.write(line + "\n")
        self.p.stdin.flush()
        answer = self.p.stdout.readline()
        if not answer:
            sys.exit(f'{self.name} ended (status {self.p.wait()}) at "{line}"')
        os.kill(self.p.pid, signal.SIGSTOP)
        return json.loads(answer)

    def work(self, what, n):
        """n times: the median of their seconds."""
        self.last = answer = self.ask(f"{what} {n}")
        self.seconds += answer["seconds"]
        self.cpu += answer["cpu_seconds"]
        self.turns.append(statistics.median(answer["seconds"]))
        return self.turns[-1]

    def forget(self):
        self.seconds, self.turns, self.cpu = [], [], 0.0

    def close(self):
        if self.p.poll() is None:
            os.kill(self.p.pid, signal.SIGCONT)
            self.p.stdin.close()
            try:
                self.p.wait(10)
            except subprocess.TimeoutExpired:
                self.p.kill()


class Maker:
    """A side that is started when it is needed: for a trial, then for the run."""

    def __init__(self, label, kind, command, cores, env=None):
        self.label, self.start = label, lambda: Side(label, kind, command, cores, env)


def trial(maker, what, n):
    """Median seconds after two that warm up, or None when the variant does not run here."""
    side = None
    try:
        side = maker.start()
        side.work(what, 2)
        return side.work(what, n)
    except (SystemExit, OSError, ValueError) as e:
        print(f"  {maker.label}: does not run ({e})", file=sys.stderr)
        return None
    finally:
        if side:
            side.close()


def quickest(makers, what, n):
    """The quickest of several variants of one program, by a short trial each; None when none runs."""
    if len(makers) == 1:
        return makers[0]
    times = {}
    for m in makers:
        if (s := trial(m, what, n)) is not None:
            times[m] = s
            print(f"  trial: {m.label:44s} {s * 1e3:10.2f} ms", file=sys.stderr)
    return min(times, key=times.get) if times else None


def in_turns(makers, what, n, rounds, warm=3, between=None):
    """Every side's work, `rounds` turns each of n times, the order reversed from round to round. Returns the
    sides, closed, with `info`."""
    sides = []
    try:
        for m in makers:
            sides.append(m.start())
            sides[-1].work(what, warm)  # code generation, pages, clocks
            sides[-1].forget()
        for r in range(rounds):
            if between:
                between()
            for side in sides if r % 2 == 0 else sides[::-1]:
                side.work(what, n)
        for side in sides:
            side.info = side.ask("info")
    finally:
        for side in sides:
            side.close()
    return sides


def median(side):
    return statistics.median(side.turns)


def peak_of(engine, threads, cores):
    """What the processor reaches now: GFLOP/s from registers, GB/s of memory."""
    env = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    with tempfile.NamedTemporaryFile(suffix=".json") as f:
        subprocess.run(
            [engine, "bench", "peak", f"run.threads={threads}", "bench.ms=300", f"bench.json={f.name}"],
            env=env,
            check=True,
            capture_output=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        row = json.loads(pathlib.Path(f.name).read_text())["rows"][0]
    return {"gflops": row["gflop_per_s"], "gbs": row["gb_per_s"]}


def machine():
    """One line on where this runs."""
    model = platform.processor()
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":")[1].strip()
    return f"{model}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"


def add_options(p, rounds):
    """The options that all drivers have."""
    p.add_argument("--bench", default="build/cpu/vpdistill", help="our program")
    p.add_argument(
        "--rounds", type=int, default=rounds, help="turns of each side, at least 7 for a table to be told"
    )
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--json", help="file for the results")


def cores_of(args):
    return set(sorted(os.sched_getaffinity(0))[: args.threads])


def result_of(side, **more):
    return {
        "name": side.name,
        "kind": side.kind,
        "median_s": median(side),
        "best_s": min(side.seconds),
        "worst_s": max(side.seconds),
        "cpu_s": side.cpu / len(side.seconds),
        "value": side.last["value"],
        "turns_s": side.turns,
        **side.info,
        **more,
    }


def ratios(sides, goals):
    """Of the first to each other side: (its name, times its speed, share of its memory, the goal or None)."""
    ours = sides[0]
    return [
        {
            "peer": s["name"],
            "kind": s["kind"],
            "times": s["median_s"] / ours["median_s"],
            "memory": ours["peak_rss"] / s["peak_rss"],
            "goal": goals.get(s["kind"]),
        }
        for s in sides[1:]
    ]


def print_ratios(found):
    for r in found:
        goal = f" (goal {r['goal']:g})" if r["goal"] else ""
        print(f"{r['times']:.2f} times the speed of {r['peer']}{goal}, {r['memory']:.2f} of its memory")


def finish(args, results):
    """Writes --json; ends with 1 when a goal was missed."""
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(results, indent=1) + "\n")
    missed = [r for result in results for r in result["ratios"] if r["goal"] and r["times"] < r["goal"]]
    sys.exit(1 if missed else 0)
