"""How far two runs of one engine agree, whether a slowdown of 5 % is found, and what the harness itself costs.

    python benchmarks/repeatability.py [--pairs 20] [--variant lite] [--batch 8] [--threads 1] [--slowdown 0.05]
                                       [--work repeatability-work]

For each pair three runs are made, each by a process of its own: the engine, the engine again, and the engine with a
sleep after each run that makes it slower. `compare` judges the second and the third run against the first. It is to
say "no difference" of the second and "slower" of the third in 19 of 20 pairs at least. The same is asked of runs that
are further apart: the first of a pair against the second and the third of the next pair. Runs are kept in the folder of
--work, and those that are there already are not made again.

The harness is held against a plain loop over the same runners, one that does nothing and one that keeps the processor
busy for a time that it reads off the clock: what the harness says of them over what the loop says.
Prints Markdown and writes results/<machine>/repeatability.json and repeatability.md.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from sepvit_deploy import pipeline
from sepvit_deploy.artifact import tool_versions
from sepvit_deploy.bench import Subject, bench
from sepvit_deploy.latency import Results, read_results, write_results
from sepvit_deploy.pipeline import Running
from sepvit_deploy.regression import compare
from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner

from record import conditions, save

BUSY_MS = (0.1, 1.0, 10.0)


def main() -> None:
    """Make all pairs, or the one run of --run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--variant", default="lite")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--slowdown", type=float, default=0.05)
    parser.add_argument("--work", type=Path, default=Path("repeatability-work"))
    parser.add_argument("--run", nargs=3, metavar=("ONNX", "SLOWDOWN", "OUTPUT"), help="make one run")
    options = parser.parse_args()
    if options.run:
        path, slowdown, output = options.run
        one_run(Path(path), float(slowdown), Path(output), options)
        return
    document: dict[str, Any] = {
        "schema": 1,
        "command": "python benchmarks/repeatability.py",
        "conditions": conditions(options.threads),
        "tools": tool_versions(),
        "options": {key: getattr(options, key) for key in ("variant", "batch", "threads", "slowdown")},
        "harness": harness(),
        "pairs": [],
        "apart": [],
    }
    options.work.mkdir(parents=True, exist_ok=True)
    path = options.work / f"sepvit_{options.variant}.onnx"
    if not path.exists():
        pipeline.export(options.variant, path)
    runs: list[dict[str, Results]] = []
    for k in range(options.pairs):
        made = {name: options.work / f"{k}-{name}.json" for name in ("first", "again", "slower")}
        for name, output in made.items():
            if not output.exists():
                slowdown = options.slowdown if name == "slower" else 0.0
                command = [sys.executable, __file__, "--run", str(path), str(slowdown), str(output)]
                command += ["--batch", str(options.batch), "--threads", str(options.threads)]
                subprocess.run(command, check=True)
        runs.append({name: read_results(output) for name, output in made.items()})
        document["pairs"].append(judged(runs[k]["first"], runs[k]))
        if k:
            document["apart"].append(judged(runs[k - 1]["first"], runs[k]))
        print(k, document["pairs"][-1], file=sys.stderr, flush=True)
    markdown = table(document)
    save("repeatability", document, markdown)
    print(markdown)


def judged(first: Results, others: dict[str, Results]) -> dict[str, Any]:
    """What `compare` says of the same engine, and of the slower one."""
    found = {}
    for name in ("again", "slower"):
        (change,) = compare(first, others[name]).latencies
        found[name] = {
            "verdict": change.verdict,
            "reason": change.reason,
            "ratio": change.ratio,
            "interval": [change.low, change.high],
            "ratio_of_p50": others[name].points[0].p50_ms / first.points[0].p50_ms,
        }
    return found


def one_run(path: Path, slowdown: float, output: Path, options: argparse.Namespace) -> None:
    """One run of the engine as `bench` makes it, slower by a share of each run's own time."""
    resident = OnnxRuntimeRunner.resident

    def slower(runner: OnnxRuntimeRunner, inputs: Any) -> Any:
        once = resident(runner, inputs)

        def slowly(k: int) -> tuple[float, None]:
            start = time.perf_counter()
            ms, _ = once(k)
            time.sleep(slowdown * ms / 1000)
            return (time.perf_counter() - start) * 1000, None

        return once if runner.name != path.name else slowly

    if slowdown:
        OnnxRuntimeRunner.resident = slower
    results = pipeline.bench([path], [options.batch], how=Running(threads=options.threads))
    write_results(results, output)


class Busy:
    """A runner that computes nothing, for a time that it reads off the clock; a copy of its images for none."""

    def __init__(self, ms: float) -> None:
        self.name = f"{ms} ms"
        self.input_shape = (None, 3, 8, 8)
        self._seconds = ms / 1000

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        if self._seconds:
            end = time.perf_counter() + self._seconds
            while time.perf_counter() < end:
                pass
        return {}


def harness() -> list[dict[str, float]]:
    """What `bench` says of a runner over what a plain loop beside it says, in turns."""
    rows = []
    images = np.zeros((1, 3, 8, 8), np.float32)
    for busy_ms in (0.0, *BUSY_MS):
        runner = Busy(busy_ms)
        count = 20_000 if not busy_ms else max(20, int(200 / busy_ms))
        ratios, differences = [], []
        for _ in range(9):
            (point,) = bench([Subject(runner, (1,))], seconds=0, least=count).points
            ours = statistics.fmean(sorted(point.samples_ms)[: int(0.9 * count)])
            times = []
            for _ in range(count):
                start = time.perf_counter()
                runner.run(images)
                times.append((time.perf_counter() - start) * 1000)
            plain = statistics.fmean(sorted(times)[: int(0.9 * count)])
            ratios.append(ours / plain)
            differences.append(1e6 * (ours - plain))
        rows.append(
            {"ms": busy_ms, "ratio": statistics.median(ratios), "difference_ns": statistics.median(differences)}
        )
    return rows


def table(document: dict[str, Any]) -> str:
    """The counts and the harness as Markdown."""
    options = document["options"]
    where = document["conditions"]
    lines = [
        f"ONNX Runtime {document['tools']['onnxruntime']} on {where['device']}, {where['cores']} cores. "
        f"Made by `{document['command']}`: SepViT-{options['variant']}, batch {options['batch']}, "
        f"{options['threads']} thread(s), each run a process of its own.",
        "",
        "| the second run | judged right | verdicts | ratio, least to most | ratio of medians without the pace |",
        "|---|---:|---|---|---|",
    ]
    slower = f"{options['slowdown']:.0%} slower by a sleep"
    for pairs, name, label, right in (
        ("pairs", "again", "the same engine", "no difference"),
        ("pairs", "slower", slower, "slower"),
        ("apart", "again", "the same engine, three runs later", "no difference"),
        ("apart", "slower", f"{slower}, four runs later", "slower"),
    ):
        rows = [pair[name] for pair in document[pairs]]
        verdicts = [row["verdict"] for row in rows]
        counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in sorted(set(verdicts)))
        ratios, raw = [[row[key] for row in rows] for key in ("ratio", "ratio_of_p50")]
        lines.append(
            f"| {label} | {verdicts.count(right)} of {len(rows)} | {counts} | {min(ratios):.3f} to {max(ratios):.3f} | "
            f"{min(raw):.3f} to {max(raw):.3f} |"
        )
    lines += ["", "| a run that takes | the harness over a plain loop | difference ns |", "|---|---:|---:|"]
    lines += [f"| {row['ms']:g} ms | {row['ratio']:.4f} | {row['difference_ns']:.0f} |" for row in document["harness"]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
