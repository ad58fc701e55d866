"""Segmentation: what FP16 and INT8 cost the masks of the trained digits model.

    python benchmarks/segmentation.py [--pictures digits_masks]

Exports models/sepvit_lite_fpn_digits.safetensors (SepViT-Lite, Semantic FPN, 112 x 112 pixels), lowers it, and measures
mIoU of each file on test pictures whose source digits neither training nor calibration saw. Ranges are those of
calib/digits_segmentation.toml, by the tool's default method. ONNX Runtime runs every file.

Prints Markdown, writes results/<machine>/segmentation.json and .md, and fills the model card.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from sepvit_deploy import pipeline
from sepvit_deploy.artifact import tool_versions, written
from sepvit_deploy.evaluate_masks import MaskEvaluation

from digits import MASK_CLASSES, MASKED_COUNTS, SPLITS, write_masked
from record import conditions, save

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "models" / "sepvit_lite_fpn_digits.safetensors"
CARD = CHECKPOINT.with_suffix(".md")
SIZE = (112, 112)
MADE_BY = "Made by `python benchmarks/segmentation.py`."


def files_of(folder: Path, work: Path) -> dict[str, Path]:
    """The model as files of every precision."""
    fp32, scales, calibration = work / "fp32.onnx", work / "fp32.scales.json", folder / "images" / "calibration"
    pipeline.export("lite", fp32, weights=CHECKPOINT, task="segment", head="fpn", size=SIZE)
    files = {"FP32": fp32, "FP16": work / "fp16.onnx", "INT8": work / "int8.onnx", "INT8 for a CPU": work / "cpu.onnx"}
    pipeline.quantize(fp32, files["FP16"], precision="fp16", images=calibration)
    pipeline.calibrate(fp32, calibration, scales)
    pipeline.quantize(fp32, files["INT8"], precision="int8", scales=scales, images=calibration)
    pipeline.quantize(fp32, files["INT8 for a CPU"], precision="int8", scales=scales, target="cpu")
    return files


def row(name: str, path: Path, found: MaskEvaluation) -> dict[str, Any]:
    """The figures of one file."""
    document = found.to_dict()
    scores, against = document["scores"], document["against"]
    return {
        "file": name,
        "megabytes": path.stat().st_size / 1e6,
        "images": document["images"],
        "image_set_sha256": document["image_set_sha256"],
        "masks_sha256": document["masks_sha256"],
        "miou": scores["miou"],
        "pixel_accuracy": scores["pixel_accuracy"]["value"],
        "mean_accuracy": scores["mean_accuracy"]["value"],
        "background": scores["classes"][0]["labelled"] / scores["pixels"],
        "iou": {MASK_CLASSES[score["index"]]: score["iou"] for score in scores["classes"]},
        "agreement": against["agreement"],
        "difference": against["difference"],
    }


def measure(folder: Path) -> list[dict[str, Any]]:
    """A row for each file, FP32 first."""
    rows = []
    with tempfile.TemporaryDirectory() as work:
        print("making the files", file=sys.stderr, flush=True)
        files = files_of(folder, Path(work))
        for name, path in files.items():
            print(f"evaluating {name}", file=sys.stderr, flush=True)
            found = pipeline.evaluate(path, folder, against=files["FP32"])
            assert isinstance(found, MaskEvaluation)
            rows.append(row(name, path, found))
    return rows


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def interval(estimate: dict[str, float], unit: str = " %", sign: str = "") -> str:
    return f"{100 * estimate['low']:{sign}.2f} to {100 * estimate['high']:{sign}.2f}{unit}"


def figures(rows: list[dict[str, Any]]) -> str:
    """The table of the files, as both documents have it."""
    lines = [
        "| file | MB | mIoU | 95 % interval | against FP32, points of mIoU | pixels as FP32 | pixel accuracy |",
        "|---|---:|---:|---|---|---:|---:|",
    ]
    for entry in rows:
        less = entry["difference"]
        points = f"{100 * less['value']:+.2f} ({interval(less, '', '+')})" if entry is not rows[0] else ""
        lines.append(
            f"| {entry['file']} | {entry['megabytes']:.1f} | {percent(entry['miou']['value'])} | "
            f"{interval(entry['miou'])} | {points} | {percent(entry['agreement'])} | "
            f"{percent(entry['pixel_accuracy'])} |"
        )
    return "\n".join(lines) + "\n"


def of_nothing(rows: list[dict[str, Any]]) -> str:
    """What the figures would be of masks without a digit."""
    share = rows[0]["background"]
    miou = percent(share / len(MASK_CLASSES))
    return f"Masks that are all background would have {percent(share)} of the pixels right, and an mIoU of {miou}."


def markdown(document: dict[str, Any]) -> str:
    """The tables, with their conditions."""
    where, rows = document["conditions"], document["accuracy"]
    names = [entry["file"] for entry in rows]
    classes = "\n".join(
        f"| {name} | " + " | ".join(percent(entry["iou"][name]) for entry in rows) + " |" for name in MASK_CLASSES
    )
    return f"""ONNX Runtime {where["tools"]["onnxruntime"]} on {where["device"]}, {where["cores"]} cores. {MADE_BY}

SepViT-Lite with Semantic FPN, {SIZE[0]} x {SIZE[1]} pixels, trained on the digits; {rows[0]["images"]} test pictures:

{figures(rows)}
INT8 is the file for TensorRT, in Q/DQ form; FP16 is computed in FP32 between rounding casts here: it proves the graph,
a GPU proves the rest. Intervals are bootstraps over pictures, those of differences paired.
{of_nothing(rows)}

IoU of each class:

| class | {" | ".join(names)} |
|---|{"---:|" * len(names)}
{classes}
"""


def card(document: dict[str, Any]) -> str:
    """The model card, every number from the training's record and this run."""
    trained = json.loads(CHECKPOINT.with_suffix(".training.json").read_text(encoding="utf-8"))
    where, rows = document["conditions"], document["accuracy"]
    splits = ", ".join(f"{count} for {split}" for split, count in SPLITS.items())
    worst = min(rows[0]["iou"], key=lambda name: rows[0]["iou"][name])
    classes, pixels, size = len(MASK_CLASSES), f"{SIZE[0]} x {SIZE[1]}", f"{CHECKPOINT.stat().st_size / 1e6:.1f} MB"
    iou = {name: percent(share) for name, share in rows[0]["iou"].items()}
    machine, runtime = trained["conditions"], f"ONNX Runtime {where['tools']['onnxruntime']}"
    return f"""# SepViT-Lite with Semantic FPN on handwritten digits

A small, honest checkpoint to prove a deployment of segmentation with: real data, visible errors. It is no model to use.

- Architecture: SepViT-Lite, Semantic FPN, {classes} classes (background, and the digits 0 to 9), trained on {pixels}
  pixels; logits at stride 4.
- Data: scikit-learn's handwritten digits (UCI, "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak,
  1998, CC BY 4.0), 8 x 8 pixels, composed into difficult 224 x 224 colour pictures with masks by
  `python benchmarks/digits.py --masks`. Source digits: {splits}; none is in two.
- Training: `{trained["command"]}`, seed {trained["seed"]}, {trained["steps"]} steps of {trained["batch"]} new pictures,
  AdamW, cross-entropy of every pixel, the backbone from `sepvit_lite_digits.safetensors`; in {trained["computed_in"]},
  {trained["minutes"]} minutes on a machine of {machine["cores"]} cores ({machine["device"]}) with other work.
- mIoU on {rows[0]["images"]} test pictures, at their full size: {percent(rows[0]["miou"]["value"])}, 95 % interval
  {interval(rows[0]["miou"])}. IoU is least for the digit {worst}, {iou[worst]}; the background has {iou["background"]}.
- Preprocessing: resized bilinearly to {pixels}, ImageNet's mean and standard deviation.
- File: {size}, float16, with a segmentation toolbox's keys and nothing that inference does not need;
  every figure here is of these weights.
- SHA-256: `{trained["sha256"]}`.
- Licence: Apache-2.0, as the code; the data CC BY 4.0.

{figures(rows)}
Each file run by {runtime} on {where["device"]}, {where["cores"]} cores; INT8 is the file for TensorRT,
calibrated on `calib/digits_segmentation.toml`. {MADE_BY}
{of_nothing(rows)}
"""


def pictures(folder: Path) -> None:
    """Make the pictures, unless they are there."""
    if not folder.is_dir():
        for split, count in MASKED_COUNTS.items():
            write_masked(folder, split, count)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, default=Path("digits_masks"), help="made there, unless they are")
    given = parser.parse_args()
    pictures(given.pictures)
    document: dict[str, Any] = {"conditions": {**conditions(None), "tools": tool_versions()}}
    document["accuracy"] = measure(given.pictures)
    print(markdown(document))
    save("segmentation", document, markdown(document))
    with written(CARD) as temporary:
        temporary.write_text(card(document), encoding="utf-8")


if __name__ == "__main__":
    main()
