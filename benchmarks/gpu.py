"""On a GPU: every runtime that is installed, every variant and precision, built, compared and timed; resumable.

    python benchmarks/gpu.py [--minutes 10] [--variants t,s,b,lite] [--batches 1,2,4,8,16,32,64] [--seconds 1]
                             [--work gpu-work]

First each engine is made and compared with ONNX Runtime on the CPU, on the same file, in a process of its own, so that
a crash costs that engine alone. Then, variant by variant, one interleaved run of `sepvit-deploy bench` times those
that are sound: plans plain and from a CUDA graph, ONNX files and torch on the GPU, with the inputs on the device.
Results are written to results/<device>/ as soon as there are any: VARIANT.json with every sample, gpu.json with what
was built, and report.html over all of it. A second run goes on with what is missing, and tries again what failed.
Weights are random, INT8 is calibrated on the example pictures: neither changes the time. The machine's settings are not
touched. What TensorRT's inspector says of each engine lies in the folder of --work. Prints Markdown and writes gpu.md
beside.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))  # also where the package is not installed

from sepvit_deploy import builders, gpu, pipeline
from sepvit_deploy.artifact import tool_versions, written
from sepvit_deploy.comparison import crossovers
from sepvit_deploy.deployment import EngineSpec
from sepvit_deploy.errors import SepvitError
from sepvit_deploy.inspection import Inspection
from sepvit_deploy.latency import Results, read_results
from sepvit_deploy.optional import child_environment
from sepvit_deploy.pipeline import Running
from sepvit_deploy.plans import RTX_CAPABILITIES
from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner

from record import RESULTS, folder_of

PRECISIONS = ("fp16", "int8", "fp32")
KINDS = ("tensorrt", "rtx", "ort-cuda", "torch", "torch-compile")
EXAMPLES = Path(__file__).parents[1] / "examples"
ROW_SECONDS = 300.0
SOUND_DB = {"fp32": 40.0, "fp16": 30.0, "int8": 10.0}
"""Least SQNR of an engine's logits against ONNX Runtime on the CPU: below it nothing is timed."""
SCHEMA = 2
CLI = "import sys; from sepvit_deploy.cli import main; sys.exit(main())"
Row = dict[str, Any]


def main() -> None:
    """Make and time what is missing, until the time is over; or make the one engine of --row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--variants", default="t,s,b,lite")
    parser.add_argument("--batches", default="1,2,4,8,16,32,64")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--work", type=Path, default=Path("gpu-work"))
    parser.add_argument("--row", nargs=3, metavar=("VARIANT", "PRECISION", "KIND"), help="print this row as JSON")
    options = parser.parse_args()
    devices = gpu.devices()
    if not devices:
        sys.exit("error: no NVIDIA GPU is seen here; type: sepvit-deploy doctor")
    if options.row:
        try:
            print(json.dumps(made(*options.row, options.batches, options.work)))
        except SepvitError as error:
            sys.exit(str(error))
        return
    folder = RESULTS / folder_of(devices[0].name)
    folder.mkdir(parents=True, exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    target = folder / "gpu.json"
    kept = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
    rows: dict[str, Row] = kept["rows"] if kept.get("schema") == SCHEMA else {}
    end = time.monotonic() + 60 * options.minutes
    for variant in options.variants.split(","):
        for row in jobs(variant):
            key = " ".join(row)
            left = end - time.monotonic()
            if is_there(rows.get(key), options):
                continue
            if left < 0:
                print(f"the time is over before {key}; the same command goes on there", flush=True)
                break
            rows[key] = in_a_process(row, options, min(ROW_SECONDS, max(left, 60.0)))
            print(key, json.dumps(rows[key])[:200], flush=True)
            save(folder, rows, devices[0])
        if time.monotonic() > end:
            break
        time_all(variant, rows, folder, options, end)
        save(folder, rows, devices[0])
    page(folder)
    print((folder / "gpu.md").read_text(encoding="utf-8"))


def is_there(row: Row | None, options: argparse.Namespace) -> bool:
    """True of an engine that an earlier run made, and that is still there and takes these batches."""
    if row is None or "error" in row:
        return False
    if row["kind"] in ("tensorrt", "rtx"):
        return fits(Path(row["engine"]), row["kind"], [int(text) for text in options.batches.split(",")])
    return row["kind"].startswith("torch") or Path(row["engine"]).exists()


def jobs(variant: str) -> Iterator[tuple[str, str, str]]:
    """Variant, precision and kind of each row, the most telling first."""
    for precision in PRECISIONS:
        for kind in KINDS:
            if not kind.startswith("torch") or precision == "fp32":
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


def made(variant: str, precision: str, kind: str, batches: str, work: Path) -> Row:
    """One row: the engine to time, how close it is, and what was built.

    Raises:
        SepvitError: it is not to be had here, or it is too far from ONNX Runtime on the CPU.
    """
    path = file_of(variant, precision, work)
    numbers = [int(text) for text in batches.split(",")]
    images = np.random.default_rng(0).standard_normal((numbers[0], 3, 224, 224), np.float32)
    expected = OnnxRuntimeRunner(path).run(images)["logits"]
    row: Row = {"variant": variant, "precision": precision, "kind": kind}
    if kind in ("tensorrt", "rtx"):
        row |= built(path, kind, numbers, work / f"{variant}_{precision}_{kind}.plan")
    else:
        row["engine"] = str(path) if kind == "ort-cuda" else f"{kind}:{variant}"
    for graph in (False, True) if kind in ("tensorrt", "rtx") else (False,):
        how = Running(provider="cuda", cuda_graph=graph)
        with pipeline.open_model(row["engine"]).running(how) as runner:
            for _ in range(3):  # a graph is captured by the second run
                found = runner.run(images)["logits"]
        sqnr_db = _sqnr_db(expected, found)
        if not sqnr_db > SOUND_DB[precision]:
            raise SepvitError(f"its logits are {sqnr_db:.1f} dB from ONNX Runtime's", expected=f"{SOUND_DB[precision]}")
        row["sqnr_db of a CUDA graph" if graph else "sqnr_db"] = sqnr_db
    return row


def built(path: Path, kind: str, batches: list[int], plan: Path) -> Row:
    """What is known of a plan, built where it is not there yet."""
    if not fits(plan, kind, batches):
        largest = max(batches)
        engine = EngineSpec(kind, (f"{min(batches)},{8 if 8 in batches else largest},{largest}",))
        pipeline.build(path, plan, engine=engine, inspector=plan.with_suffix(".inspector.json"))
    facts = pipeline.open_plan(plan).plan.facts
    row: Row = {"engine": str(plan), "build_s": facts.build_seconds, "plan_bytes": plan.stat().st_size}
    row["version"] = facts.builder_version
    if facts.inspection is not None:
        inspection = Inspection.from_dict(facts.inspection)
        row["attention"] = dict(Counter(attention.state for attention in inspection.attention))
        row["precisions"] = {name: round(total.share, 4) for name, total in inspection.precisions.items()}
        row["reformats"] = inspection.of("reformat", "cast").layers
    return row


def fits(plan: Path, kind: str, batches: list[int]) -> bool:
    """True of a plan of an earlier run that this TensorRT loads and that takes these batches."""
    try:
        facts = pipeline.open_plan(plan).plan.facts
    except SepvitError:
        return False
    takes = [(profile.minimum, profile.maximum) for profile in facts.profiles]
    return facts.builder_version == builders.available()[kind] and all(
        any(low <= batch <= high for low, high in takes) for batch in batches
    )


def time_all(variant: str, rows: dict[str, Row], folder: Path, options: argparse.Namespace, end: float) -> None:
    """One run over every sound engine of a variant, but where its results are there already.

    A run that the time cuts off keeps what it has, and is made again by the next call. Engines by TensorRT and by
    TensorRT-RTX are timed in runs of their own: the two share symbols.
    """
    sound = [row for row in rows.values() if "error" not in row and row["variant"] == variant]
    for name, kinds in ((variant, ("tensorrt", "ort-cuda", "torch", "torch-compile")), (f"{variant}_rtx", ("rtx",))):
        chosen = [row for row in sound if row["kind"] in kinds]
        output = folder / f"{name}.json"
        if not chosen or is_timed(output, chosen, options):
            continue
        command = ["bench", "--batch", options.batches, "--seconds", str(options.seconds), "--provider", "cuda"]
        if any(row["kind"] in ("tensorrt", "rtx") for row in chosen):
            command += ["--cuda-graph", "both"]
        for row in chosen:
            command += ["--engine", row["engine"]]
        process = subprocess.Popen(
            [sys.executable, "-c", CLI, *command, "--output", str(output)], env=child_environment()
        )
        try:
            process.wait(max(60.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.terminate()  # what was measured until then is written
            process.wait()
        print(f"{output.name}: bench ended with status {process.returncode}", flush=True)


def is_timed(output: Path, chosen: list[Row], options: argparse.Namespace) -> bool:
    """True of results of a whole run, of these engines as they are now, at these batches."""
    try:
        results = read_results(output)
    except SepvitError:
        return False
    digests = {pipeline.open_model(row["engine"]).sha256 for row in chosen}
    asked = {int(text) for text in options.batches.split(",")}
    return (
        not results.interrupted
        and not results.failures
        and results.seconds >= options.seconds
        and digests <= {engine.sha256 for engine in results.engines}
        and asked <= {point.batch for point in results.points}
    )


def _sqnr_db(expected: np.ndarray, found: np.ndarray) -> float:
    noise = ((expected - found).astype(np.float64) ** 2).sum()
    return float(10 * np.log10((expected.astype(np.float64) ** 2).sum() / max(noise, 1e-30)))


def runs(folder: Path) -> list[Results]:
    """The results of a folder, in order of their names."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(read_results(path))
        except SepvitError:
            continue  # another benchmark's
    return found


def save(folder: Path, rows: dict[str, Row], device: gpu.Device) -> None:
    """Write the rows and the tables, whole or not at all."""
    document = {
        "schema": SCHEMA,
        "command": "python benchmarks/gpu.py",
        "conditions": {"device": vars(device), "tools": tool_versions(), "builders": builders.available()},
        "rows": rows,
    }
    with written(folder / "gpu.json") as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    with written(folder / "gpu.md") as temporary:
        temporary.write_text(markdown(document, runs(folder)), encoding="utf-8")


def page(folder: Path) -> None:
    """The report over all results of the folder, where its library is installed."""
    try:
        pipeline.report([folder], folder / "report.html", command=f"sepvit-deploy report {folder.name}")
    except SepvitError as error:
        print(f"no report: {error}", file=sys.stderr)


def markdown(document: dict[str, Any], results: list[Results]) -> str:
    """A line for each point; what was built, and what was not."""
    device = document["conditions"]["device"]
    lines = [
        f"{device['name']}, compute capability {device['compute_capability']}. Made by `{document['command']}`: "
        "device time without copies, each variant's engines in one interleaved run.",
        "",
        "| engine | runtime | batch | p50 ms | p90 ms | p99 ms | images/s | % of limit | settled |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for run in results:
        for engine in run.engines:
            for point in run.curve(engine.name):
                limit = run.limit_ms(point)
                lines.append(
                    f"| {engine.name} | {engine.runtime} | {point.batch} | {point.p50_ms:.3f} | "
                    f"{point.quantile_ms(0.9):.3f} | {point.quantile_ms(0.99):.3f} | {point.images_per_s:.0f} | "
                    f"{f'{limit / point.p50_ms:.0%}' if limit else ''} | {'yes' if point.settled else 'no'} |"
                )
    found = [f"- {found.faster}: {found.sentence}" for run in results for found in crossovers(run)]
    rows = document["rows"]
    engines = [f"- {key}: {row['sqnr_db']:.1f} dB from the CPU" for key, row in rows.items() if "error" not in row]
    missing = [f"- {key}: {row['error']}" for key, row in rows.items() if "error" in row]
    for title, part in (("Crossovers", found), ("Engines", engines), ("Not measured", missing)):
        lines += ["", f"{title}:", "", *part] if part else []
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
