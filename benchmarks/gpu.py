"""On a GPU: every engine kind that is installed, every variant and precision, built, compared and timed; resumable.

    python benchmarks/gpu.py [--minutes 10] [--variants t,s,b,lite] [--batches 1,8,32] [--work gpu-work]

Each row is one file on one runtime. It is written to results/<device>/gpu.json as soon as it is measured; a second run
goes on with the rows that are missing, and rows that failed are tried again. Weights are random, INT8 is calibrated on
the example pictures: neither changes the time. Engines are timed with their inputs on the device, between CUDA events,
plain and from a CUDA graph, after a second of warm-up; other runtimes end to end. The comparison is with ONNX Runtime
on the CPU, on the same file. The machine's settings are not touched.
Prints Markdown and writes gpu.md beside.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sepvit_deploy import builders, gpu, pipeline, plans
from sepvit_deploy.artifact import tool_versions, written
from sepvit_deploy.building import Profile
from sepvit_deploy.errors import SepvitError
from sepvit_deploy.pipeline import Running
from sepvit_deploy.runners.cuda import open_cuda
from sepvit_deploy.runners.tensorrt import TensorRtRunner

from record import RESULTS, folder_of

PRECISIONS = ("fp16", "int8", "fp32")
KINDS = ("tensorrt", "rtx", "ort-cuda", "torch-cuda")
EXAMPLES = Path(__file__).parents[1] / "examples"
LEAST_SAMPLES, LEAST_SECONDS, WARM_UP_SECONDS = 100, 1.0, 1.0
Row = dict[str, Any]


def main() -> None:
    """Measure what is missing, until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--variants", default="t,s,b,lite")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--work", type=Path, default=Path("gpu-work"))
    options = parser.parse_args()
    devices = gpu.devices()
    if not devices:
        sys.exit("error: no NVIDIA GPU is seen here; type: sepvit-deploy doctor")
    batches = [int(text) for text in options.batches.split(",")]
    target = RESULTS / folder_of(devices[0].name) / "gpu.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Row] = json.loads(target.read_text(encoding="utf-8"))["rows"] if target.exists() else {}
    end = time.monotonic() + 60 * options.minutes
    for key, measure in jobs(options.variants.split(","), batches, options.work):
        if key in rows and "error" not in rows[key]:
            continue
        if time.monotonic() > end:
            print(f"the time is over before {key}; the same command goes on there", flush=True)
            break
        print(key, end=" ", flush=True)
        try:
            rows[key] = measure()
        except SepvitError as error:
            rows[key] = {"error": str(error)}
        print(json.dumps(rows[key])[:200], flush=True)
        save(target, rows, devices[0])
    save(target, rows, devices[0])
    print((target.with_suffix(".md")).read_text(encoding="utf-8"))


def jobs(variants: list[str], batches: list[int], work: Path) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Each row by its key, the most telling first."""
    for variant in variants:
        for precision in PRECISIONS:
            for kind in KINDS:
                if kind == "torch-cuda" and precision != "fp32":
                    continue

                def measure(variant: str = variant, precision: str = precision, kind: str = kind) -> Row:
                    return measured(variant, precision, kind, batches, work)

                yield f"{variant} {precision} {kind}", measure


def file_of(variant: str, precision: str, work: Path) -> Path:
    """The ONNX file of a variant, made where it is not there yet."""
    fp32 = work / f"{variant}_fp32.onnx"
    path = work / f"{variant}_{precision}.onnx"
    if not fp32.exists():
        pipeline.export(variant, fp32)
    if not path.exists() and precision == "fp16":
        pipeline.quantize(fp32, path, precision="fp16")
    if not path.exists() and precision == "int8":
        count = sum(1 for picture in EXAMPLES.iterdir() if picture.suffix == ".jpg")
        scales = work / f"{variant}.scales.json"
        pipeline.calibrate(fp32, EXAMPLES, scales, samples=count)
        pipeline.quantize(fp32, path, precision="int8", scales=scales)
    return path


def measured(variant: str, precision: str, kind: str, batches: list[int], work: Path) -> Row:
    """One row: what was built, how close it is, and how long it takes at each batch."""
    path = file_of(variant, precision, work)
    images = {batch: np.random.default_rng(0).standard_normal((batch, 3, 224, 224), np.float32) for batch in batches}
    with pipeline.open_model(path).running(Running()) as cpu:
        expected = cpu.run(images[batches[0]])["logits"]
    row: Row = {"variant": variant, "precision": precision, "kind": kind}
    if kind in ("tensorrt", "rtx"):
        builders.choose(kind, gpu=True)
        plan = work / f"{variant}_{precision}_{kind}.plan"
        if not plan.exists():
            profile = Profile(1, 8 if 8 in batches else max(batches), max(batches))
            done = pipeline.build(path, plan, builder=kind, profiles=(profile,))
            inspection = done.inspection
            row["attention"] = {} if inspection is None else _count(a.state for a in inspection.attention)
            row["reformats"] = 0 if inspection is None else inspection.of("reformat", "cast").layers
        facts = plans.read_plan(plan).facts
        assert facts is not None
        row |= {"build_s": facts.build_seconds, "plan_bytes": plan.stat().st_size, "version": facts.builder_version}
        for graph in (False, True):
            with TensorRtRunner(
                plan.read_bytes(), name=plan.name, builder=kind, cuda=open_cuda(), cuda_graph=graph
            ) as runner:
                row["sqnr_db"] = _sqnr_db(expected, runner.run(images[batches[0]])["logits"])
                for batch in batches:
                    runner.stage(images[batch])
                    name = f"batch {batch}, {'CUDA graph' if graph else 'plain'}"
                    row[name] = timed(lambda runner=runner: runner.replay()[0])
        return row
    source = path if kind == "ort-cuda" else f"torch:{variant}"
    with pipeline.open_model(source).running(Running(provider="cuda")) as runner:
        row["sqnr_db"] = _sqnr_db(expected, runner.run(images[batches[0]])["logits"])
        for batch in batches:

            def once(runner: Any = runner, batch: int = batch) -> float:
                start = time.perf_counter()
                runner.run(images[batch])
                return (time.perf_counter() - start) * 1000

            row[f"batch {batch}, end to end"] = timed(once)
    return row


def timed(once: Callable[[], float]) -> Row:
    """Median, p90 and p99 of what ``once`` says it took, in ms."""
    end = time.monotonic() + WARM_UP_SECONDS
    while time.monotonic() < end:
        once()
    samples: list[float] = []
    start = time.monotonic()
    while len(samples) < LEAST_SAMPLES or time.monotonic() - start < LEAST_SECONDS:
        samples.append(once())
    return {
        "p50_ms": statistics.median(samples),
        "p90_ms": float(np.quantile(samples, 0.9)),
        "p99_ms": float(np.quantile(samples, 0.99)),
        "samples": len(samples),
    }


def _count(states: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for state in states:
        counts[state] = counts.get(state, 0) + 1
    return counts


def _sqnr_db(expected: np.ndarray, found: np.ndarray) -> float:
    noise = ((expected - found).astype(np.float64) ** 2).sum()
    return float(10 * np.log10((expected.astype(np.float64) ** 2).sum() / max(noise, 1e-30)))


def save(target: Path, rows: dict[str, Row], device: gpu.Device) -> None:
    """Write the rows and their table, whole or not at all."""
    document = {
        "schema": 1,
        "command": "python benchmarks/gpu.py",
        "conditions": {"device": vars(device), "tools": tool_versions(), "builders": builders.available()},
        "rows": rows,
    }
    with written(target) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    with written(target.with_suffix(".md")) as temporary:
        temporary.write_text(markdown(document), encoding="utf-8")


def markdown(document: dict[str, Any]) -> str:
    """The rows as a table, a line for each batch."""
    device = document["conditions"]["device"]
    lines = [
        f"{device['name']}, compute capability {device['compute_capability']}. Made by `{document['command']}`. "
        "Engines: device time without copies; other runtimes: end to end.",
        "",
        "| variant | precision | runtime | how | p50 ms | p90 ms | p99 ms | images/s | SQNR dB |",
        "|---|---|---|---|---:|---:|---:|---:|---:|",
    ]
    missing = []
    for key, row in document["rows"].items():
        if "error" in row:
            missing.append(f"- {key}: {row['error']}")
            continue
        for name, point in row.items():
            if isinstance(point, dict) and "p50_ms" in point:
                rate = 1000 * int(name.split(",")[0].removeprefix("batch ")) / point["p50_ms"]
                lines.append(
                    f"| {row['variant']} | {row['precision'].upper()} | {row['kind']} | {name} | "
                    f"{point['p50_ms']:.3f} | {point['p90_ms']:.3f} | {point['p99_ms']:.3f} | {rate:.0f} | "
                    f"{row['sqnr_db']:.1f} |"
                )
    return "\n".join([*lines, *(["", "Not measured:", "", *missing] if missing else [])]) + "\n"


if __name__ == "__main__":
    main()
