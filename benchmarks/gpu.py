"""On a GPU: every engine kind that is installed, every variant and precision, built, compared and timed; resumable.

    python benchmarks/gpu.py [--minutes 10] [--variants t,s,b,lite] [--batches 1,8,32] [--work gpu-work]

Each row is one file on one runtime, in a process of its own, so that a crash costs that row alone. It is written to
results/<device>/gpu.json as soon as it is measured; a second run goes on with the rows that are missing, and rows that
failed are tried again. Weights are random, INT8 is calibrated on the example pictures: neither changes the time.
Engines are timed with their inputs on the device, between CUDA events, plain and from a CUDA graph, after a second of
warm-up; other runtimes end to end. The comparison is with ONNX Runtime on the CPU, on the same file. The machine's
settings are not touched. What TensorRT's inspector says of each engine lies in the folder of --work.
Prints Markdown and writes gpu.md beside.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))  # also where the package is not installed

from sepvit_deploy import builders, gpu, pipeline
from sepvit_deploy.artifact import tool_versions, written
from sepvit_deploy.deployment import EngineSpec
from sepvit_deploy.errors import SepvitError
from sepvit_deploy.inspection import Inspection
from sepvit_deploy.optional import child_environment
from sepvit_deploy.pipeline import Running
from sepvit_deploy.plans import RTX_CAPABILITIES
from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner

from record import RESULTS, folder_of

PRECISIONS = ("fp16", "int8", "fp32")
KINDS = ("tensorrt", "rtx", "ort-cuda", "torch-cuda")
EXAMPLES = Path(__file__).parents[1] / "examples"
LEAST_SAMPLES, LEAST_SECONDS, WARM_UP_SECONDS = 100, 1.0, 1.0
ROW_SECONDS = 300.0
Row = dict[str, Any]


def main() -> None:
    """Measure what is missing, until the time is over; or the one row of --row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--variants", default="t,s,b,lite")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--work", type=Path, default=Path("gpu-work"))
    parser.add_argument("--row", nargs=3, metavar=("VARIANT", "PRECISION", "KIND"), help="print this row as JSON")
    options = parser.parse_args()
    devices = gpu.devices()
    if not devices:
        sys.exit("error: no NVIDIA GPU is seen here; type: sepvit-deploy doctor")
    batches = [int(text) for text in options.batches.split(",")]
    if options.row:
        try:
            print(json.dumps(measured(*options.row, batches, options.work)))
        except SepvitError as error:
            sys.exit(str(error))
        return
    target = RESULTS / folder_of(devices[0].name) / "gpu.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Row] = json.loads(target.read_text(encoding="utf-8"))["rows"] if target.exists() else {}
    end = time.monotonic() + 60 * options.minutes
    for row in jobs(options.variants.split(",")):
        key = " ".join(row)
        done = rows.get(key, {"error": "not tried"})
        if "error" not in done and all(any(name.startswith(f"batch {n},") for name in done) for n in batches):
            continue
        left = end - time.monotonic()
        if left < 0:
            print(f"the time is over before {key}; the same command goes on there", flush=True)
            break
        print(key, end=" ", flush=True)
        rows[key] = in_a_process(row, options, min(ROW_SECONDS, max(left, 60.0)))
        print(json.dumps(rows[key])[:200], flush=True)
        save(target, rows, devices[0])
    save(target, rows, devices[0])
    print((target.with_suffix(".md")).read_text(encoding="utf-8"))


def jobs(variants: list[str]) -> Iterator[tuple[str, str, str]]:
    """Variant, precision and kind of each row, the most telling first."""
    for variant in variants:
        for precision in PRECISIONS:
            for kind in KINDS:
                if kind != "torch-cuda" or precision == "fp32":
                    yield variant, precision, kind


def in_a_process(row: tuple[str, str, str], options: argparse.Namespace, seconds: float) -> Row:
    """The row, or why there is none: a refusal, a crash of a native library, or too long a time."""
    if reason := absent(row[2]):
        return {"error": reason}
    command = [sys.executable, __file__, "--row", *row, "--batches", options.batches, "--work", str(options.work)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=seconds, check=False,
            env=child_environment(),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {seconds:.0f} s"}
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    said = done.stderr.strip().splitlines()
    return {"error": said[-1] if said else f"its process ended with status {done.returncode}"}


def absent(kind: str) -> str | None:
    """Why a kind cannot be measured here, as far as that is known before anything heavy is done."""
    try:
        if kind in ("tensorrt", "rtx"):
            builders.choose(kind, gpu=True)
    except SepvitError as error:
        return str(error)
    capability = gpu.devices()[0].compute_capability
    if kind == "rtx" and capability not in RTX_CAPABILITIES:
        return f"TensorRT-RTX does not run on compute capability {capability}"
    return None


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
    expected = OnnxRuntimeRunner(path).run(images[batches[0]])["logits"]
    row: Row = {"variant": variant, "precision": precision, "kind": kind}
    if kind in ("tensorrt", "rtx"):
        return row | of_engine(path, kind, expected, images, work / f"{variant}_{precision}_{kind}.plan")
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


def of_engine(path: Path, kind: str, expected: np.ndarray, images: dict[int, np.ndarray], plan: Path) -> Row:
    """What is known of an engine: built where it is not there yet, compared, and timed plain and as a CUDA graph."""
    first, largest = next(iter(images)), max(images)
    if not fits(plan, kind, images):
        engine = EngineSpec(kind, (f"1,{8 if 8 in images else largest},{largest}",))
        told = plan.with_suffix(".inspector.json")
        pipeline.build(path, plan, engine=engine, inspector=told)
    opened = pipeline.open_plan(plan)
    facts = opened.plan.facts
    row: Row = {"build_s": facts.build_seconds, "plan_bytes": plan.stat().st_size, "version": facts.builder_version}
    if facts.inspection is not None:
        inspection = Inspection.from_dict(facts.inspection)
        row["attention"] = dict(Counter(attention.state for attention in inspection.attention))
        row["precisions"] = {name: round(total.share, 4) for name, total in inspection.precisions.items()}
        row["reformats"] = inspection.of("reformat", "cast").layers
    for graph in (False, True):
        with opened.running(Running(cuda_graph=graph)) as runner:
            for _ in range(3):  # a graph is captured by the second run
                found = runner.run(images[first])["logits"]
            row["sqnr_db of a CUDA graph" if graph else "sqnr_db"] = _sqnr_db(expected, found)
            for batch in images:
                runner.stage(images[batch])
                name = f"batch {batch}, {'CUDA graph' if graph else 'plain'}"
                row[name] = timed(lambda runner=runner: runner.replay()[0])
    return row


def fits(plan: Path, kind: str, images: dict[int, np.ndarray]) -> bool:
    """True of a plan of an earlier run that this TensorRT loads and that takes these batches."""
    try:
        facts = pipeline.open_plan(plan).plan.facts
    except SepvitError:
        return False
    takes = [(profile.minimum, profile.maximum) for profile in facts.profiles]
    return facts.builder_version == builders.available()[kind] and all(
        any(low <= batch <= high for low, high in takes) for batch in images
    )


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
