"""Precision: what FP16 and INT8 cost in accuracy, and what INT8 brings on this CPU.

    python benchmarks/precision.py [--pictures digits] [--test 2000] [--rounds 15]

Three measurements, one run:

- accuracy of the trained digits model (models/sepvit_lite_digits.safetensors) in every precision, by every calibration
  method, on test pictures whose source digits neither training nor calibration saw; beside them, everything quantised
  with min/max ranges, as a toolkit does that knows no SepViT. The best method is the one that agrees most with FP32 on
  the calibration pictures, so that the test set chooses nothing;
- latency of SepViT-T (random weights) on ONNX Runtime, one thread, the files taking turns;
- time and memory of calibrating SepViT-T on 512 pictures, against plain inference on the same ones.

Prints Markdown, writes results/<machine>/precision.json and .md, and fills the model card.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from sepvit_deploy import pipeline
from sepvit_deploy.artifact import sha256, tool_versions
from sepvit_deploy.calibrate import calibrate
from sepvit_deploy.confidence import median_interval
from sepvit_deploy.evaluate import Evaluation, evaluate
from sepvit_deploy.graph import load_graph
from sepvit_deploy.image_sets import image_set, labelled
from sepvit_deploy.pipeline.measuring import agreement_on
from sepvit_deploy.precision import int8_everywhere
from sepvit_deploy.ranges import METHODS
from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner
from sepvit_deploy.spec import Preprocessing

from digits import COUNTS, SPLITS, write
from record import conditions, save

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "models" / "sepvit_lite_digits.safetensors"
CARD = ROOT / "models" / "sepvit_lite_digits.md"
PREPROCESSING = Preprocessing.for_task("classify", (224, 224))
SPEED_SAMPLES = 96


def pictures(folder: Path) -> None:
    """Make the pictures, unless they are there."""
    for split, count in COUNTS.items():
        if not (folder / split).is_dir():
            write(folder / split, split, count)  # type: ignore[arg-type]


def accuracy(folder: Path, work: Path, count: int) -> list[dict[str, Any]]:
    """One row for each form of the digits model."""
    calibration = folder / "calibration"
    fp32 = work / "fp32.onnx"
    pipeline.export("lite", fp32, weights=CHECKPOINT)
    files = {"FP32": fp32, "FP16": work / "fp16.onnx"}
    pipeline.quantize(fp32, files["FP16"], precision="fp16", images=calibration)
    chosen: dict[str, float] = {}
    for method in METHODS:
        scales, name = work / f"{method}.scales.json", f"INT8, {method}"
        pipeline.calibrate(fp32, calibration, scales, method=method)
        files[name] = work / f"int8_{method}.onnx"
        pipeline.quantize(fp32, files[name], precision="int8", scales=scales)
        chosen[method] = agreement_on(files[name], fp32, calibration, samples=COUNTS["calibration"]).share
    best = max(chosen, key=lambda method: chosen[method])
    files["INT8 for a CPU"] = work / "int8_cpu.onnx"
    pipeline.quantize(
        fp32, files["INT8 for a CPU"], precision="int8", scales=work / f"{best}.scales.json", target="cpu"
    )
    files["everything in INT8, min/max"] = naive(fp32, calibration, work / "naive.onnx")
    images = labelled(folder / "test", samples=count)
    reference = OnnxRuntimeRunner(fp32)
    rows = []
    for name, path in files.items():
        print(f"evaluating {name}", file=sys.stderr, flush=True)
        found = evaluate(OnnxRuntimeRunner(path), images, PREPROCESSING, against=reference, class_folders=True)
        method = next((m for m in METHODS if name.endswith(m)), None)
        rows.append(
            row(name, path, found) | {"best": method == best, "calibration_agreement": chosen.get(method or "")}
        )
    return rows


def naive(fp32: Path, source: Path, output: Path) -> Path:
    """Every activation and weight in INT8, one scale each, from min/max ranges."""
    graph, digest = load_graph(fp32), sha256(fp32)
    table = calibrate(graph, image_set(source), PREPROCESSING, graph_sha256=digest, method="minmax", everything=True)
    output.write_bytes(int8_everywhere(graph, table, graph_sha256=digest).model.SerializeToString())
    return output


def row(name: str, path: Path, found: Evaluation) -> dict[str, Any]:
    """The figures of one file."""
    document = found.to_dict()
    against = document["against"]
    return {
        "file": name,
        "megabytes": path.stat().st_size / 1e6,
        "images": document["images"],
        "image_set_sha256": document["image_set_sha256"],
        "top1": document["top1"],
        "agreement": against["agreement"],
        "mcnemar": against["mcnemar"],
        "sqnr_db": against["sqnr_db"],
    }


def speed(folder: Path, work: Path, rounds: int, batch: int, threads: int) -> dict[str, Any]:
    """SepViT-T in each precision, interleaved."""
    fp32, scales = work / "t.onnx", work / "t.scales.json"
    pipeline.export("t", fp32)
    pipeline.calibrate(fp32, folder / "calibration", scales, samples=SPEED_SAMPLES)
    files = {"FP32": fp32}
    for name, options in (
        ("INT8 for TensorRT, the rest FP32", {"rest": "fp32"}),
        ("INT8 for a CPU", {"target": "cpu"}),
        ("INT8 for TensorRT, the rest FP16", {}),
        ("FP16", None),
    ):
        files[name] = work / f"t_{len(files)}.onnx"
        if options is None:
            pipeline.quantize(fp32, files[name], precision="fp16")
        else:
            pipeline.quantize(fp32, files[name], precision="int8", scales=scales, **options)  # type: ignore[arg-type]
    images = np.random.default_rng(0).standard_normal((batch, 3, 224, 224), dtype=np.float32)
    timed = list(files)[:3]  # ONNX Runtime computes FP16 in FP32 between casts: its time on a CPU says nothing
    runners = {name: OnnxRuntimeRunner(files[name], threads=threads, fused=True) for name in timed}
    times: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(rounds + 3):
        for name, runner in runners.items():
            began = time.perf_counter()
            runner.run(images)
            if turn >= 3:
                times[name].append(1000 * (time.perf_counter() - began))
    rows = []
    for name, path in files.items():
        entry: dict[str, Any] = {"file": name, "megabytes": path.stat().st_size / 1e6}
        if name in times:
            ratios = np.array(times[name]) / np.array(times["FP32"])
            entry |= {"ratio": float(np.median(ratios)), "ratio_95": median_interval(ratios), "samples_ms": times[name]}
        rows.append(entry)
    return {"batch": batch, "threads": threads, "rounds": rounds, "rows": rows}


def calibration_cost(folder: Path, work: Path) -> dict[str, Any]:
    """Seconds an image and peak memory of calibrating T on 512 pictures, plain inference before and after it."""
    source, command = folder / "calibration", [sys.executable, "-c", "from sepvit_deploy.cli import main; main()"]
    calibrating = [*command, "calibrate", str(work / "t.onnx"), "--images", str(source), "--threads", "1"]
    calibrating += ["--output", str(work / "cost.scales.json")]
    plain = [sys.executable, __file__, "--plain-inference", str(work / "t.onnx"), "--pictures", str(folder)]
    before = timed(plain)
    spent = timed(calibrating)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    after = timed(plain)
    inference = (before + after) / 2
    return {
        "images": COUNTS["calibration"],
        "seconds_an_image": spent / COUNTS["calibration"],
        "inference_seconds_an_image": inference / COUNTS["calibration"],
        "ratio": spent / inference,
        "peak_gib": peak,
    }


def plain_inference(model: Path, folder: Path) -> None:
    """Read, prepare and run every calibration picture, in batches of eight."""
    runner = OnnxRuntimeRunner(model, threads=1)
    for _, batch in pipeline.lowering.image_batches(image_set(folder / "calibration"), PREPROCESSING, at_once=8):
        runner.run(batch)


def timed(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def markdown(document: dict[str, Any]) -> str:
    """The tables, with their conditions and bars."""
    where, rows, fast, cost = (document[key] for key in ("conditions", "accuracy", "speed", "calibration"))
    base = rows[0]
    lines = [
        f"ONNX Runtime {where['tools']['onnxruntime']} on {where['device']}, {where['cores']} cores. "
        "Made by `python benchmarks/precision.py`.",
        "",
        f"SepViT-Lite trained on the digits, {base['images']} test pictures:",
        "",
        "| file | MB | top-1 | 95 % interval | against FP32 | agreement | SQNR dB | McNemar p |",
        "|---|---:|---:|---|---:|---:|---:|---:|",
    ]
    for entry in rows:
        top1, against = entry["top1"], entry is not base
        figures = ["", "", "", ""]
        if against:
            points = 100 * (top1["share"] - base["top1"]["share"])
            figures = [f"{points:+.2f} points", percent(entry["agreement"]["share"]), f"{entry['sqnr_db']:.1f}"]
            figures.append(f"{entry['mcnemar']['p_value']:.2g}")
        name = f"**{entry['file']}**, best" if entry["best"] else entry["file"]
        lines.append(
            f"| {name} | {entry['megabytes']:.1f} | {percent(top1['share'])} | {percent(top1['low'])} to "
            f"{percent(top1['high'])} | " + " | ".join(figures) + " |"
        )
    lines += [
        "",
        "Best: most agreement with FP32 on the calibration pictures. FP16 is computed in FP32 between rounding casts "
        "here: it proves the graph, a GPU proves the rest.",
        "",
        f"SepViT-T, batch {fast['batch']}, {fast['threads']} thread(s), {fast['rounds']} interleaved rounds:",
        "",
        "| file | MB | time over FP32's | 95 % interval |",
        "|---|---:|---:|---|",
    ]
    for entry in fast["rows"]:
        ratio = f"{entry['ratio']:.3f}" if "ratio" in entry else "for a GPU"
        low, high = entry.get("ratio_95", (None, None))
        lines.append(
            f"| {entry['file']} | {entry['megabytes']:.1f} | {ratio} | {f'{low:.3f} to {high:.3f}' if low else ''} |"
        )
    lines += [
        "",
        f"Calibrating SepViT-T on {cost['images']} pictures, one thread for ONNX Runtime: {cost['ratio']:.2f} times "
        f"the time of plain inference on them, {cost['peak_gib']:.2f} GiB at the most.",
    ]
    return "\n".join(lines) + "\n"


def card(document: dict[str, Any]) -> str:
    """The model card, every number from the training's record and this run."""
    trained = json.loads(CHECKPOINT.with_suffix(".training.json").read_text(encoding="utf-8"))
    rows = document["accuracy"]
    top1 = rows[0]["top1"]
    interval_text = f"{percent(top1['share'])} (95 %: {percent(top1['low'])} to {percent(top1['high'])})"
    splits = ", ".join(f"{count} for {split}" for split, count in SPLITS.items())
    return (
        f"""# SepViT-Lite on handwritten digits

A small, honest checkpoint to prove a deployment with: real data, visible errors. It is no model to use.

- Architecture: SepViT-Lite, classification at 224 pixels, {trained["model"]["num_classes"]} classes, FP32.
- Data: scikit-learn's handwritten digits (UCI, "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak,
  1998, CC BY 4.0), 8 x 8 pixels, composed into difficult 224 x 224 colour pictures by `benchmarks/digits.py`.
  Source digits: {splits}; none is in two.
- Training: `{trained["command"]}`, seed {trained["seed"]}, {trained["steps"]} steps of {trained["batch"]} new pictures,
  AdamW, {trained["minutes"]} minutes on {trained["conditions"]["cores"]} cores ({trained["conditions"]["device"]}).
- Top-1 on {top1["images"]} test pictures: {interval_text}.
- Preprocessing: shorter side 256, centre crop 224, ImageNet's mean and standard deviation.
- SHA-256: `{trained["sha256"]}`.
- Licence: Apache-2.0, as the code; the data CC BY 4.0.

| precision | top-1 | agreement with FP32 |
|---|---:|---:|
"""
        + "".join(
            f"| {entry['file']} | {percent(entry['top1']['share'])} | {percent(entry['agreement']['share'])} |\n"
            for entry in rows
        )
        + "\nMade by `python benchmarks/precision.py`.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, default=Path("digits"), help="made there, unless they are")
    parser.add_argument("--test", type=int, default=COUNTS["test"], help="test pictures to use")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--plain-inference", type=Path, metavar="FILE.onnx", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.plain_inference:
        plain_inference(given.plain_inference, given.pictures)
        return
    pictures(given.pictures)
    document: dict[str, Any] = {"conditions": {**conditions(None), "tools": tool_versions()}}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name, measure in (
            ("speed", functools.partial(speed, given.pictures, work, given.rounds, given.batch, given.threads)),
            ("calibration", functools.partial(calibration_cost, given.pictures, work)),
            ("accuracy", functools.partial(accuracy, given.pictures, work, given.test)),
        ):
            print(f"measuring {name}", file=sys.stderr, flush=True)
            document[name] = measure()
    print(markdown(document))
    save("precision", document, markdown(document))
    CARD.write_text(card(document), encoding="utf-8")


if __name__ == "__main__":
    main()
