"""The commands about precision on files for segmentation of any size: a few layers with the names that export gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper, parser
from PIL import Image

from sepvit_deploy import artifact
from sepvit_deploy.artifact import Parent, Passport, read_passport
from sepvit_deploy.deployment import default_spec
from sepvit_deploy.errors import AcceptanceFailed
from sepvit_deploy.graph import load_graph
from sepvit_deploy.pipeline import deploying
from sepvit_deploy.pipeline.measuring import agreement_on
from sepvit_deploy.precision import fp16_from_fp32, int8_from_fp32
from sepvit_deploy.scales import read_scales
from sepvit_deploy.spec import ModelSpec
from tests.cpu.commands import PHOTO, call, classifier, complaint
from tests.unit.graphs import DIGEST, run, sqnr_db, table

SPEC = ModelSpec("lite", "segment", (64, 96), 5, head="fpn", any_size=True)
SIZES = ((64, 96), (64, 96), (96, 64), (60, 96), (60, 96))
"""Of the pictures, in pixels; none is resized."""
ALL = ("--samples", str(len(SIZES)))
TEXT = """
<ir_version: 9, opset_import: ["" : 20]>
g (float[batch,3,height,width] images) => (uint8[batch,height,width] mask) {
    ["stage0.embed.proj/Conv"] e = Conv<strides = [4, 4], pads = [0, 0, 3, 3]>(images, w0)
    ["decode_head.laterals.0.conv/Conv"] c = Conv(e, w1)
    ["decode_head.laterals.0/Relu"] r = Relu(c)
    ["decode_head.fusion.conv/Conv"] f = Conv<pads = [1, 1, 1, 1]>(r, w2)
    ["decode_head.fusion/Relu"] s = Relu(f)
    ["decode_head.classifier/Conv"] logits = Conv(s, w3)
    batch_classes = Shape<start = 0, end = 2>(logits)
    hw = Shape<start = 2>(images)
    sizes = Concat<axis = 0>(batch_classes, hw)
    ["to_mask.resize/Resize"] large = Resize<mode = "linear">(logits, , , sizes)
    ["to_mask/ArgMax"] best = ArgMax<axis = 1, keepdims = 0>(large)
    ["to_mask/Cast"] mask = Cast<to = 2>(best)
}
"""
WEIGHTS = {"w0": (16, 3, 4, 4), "w1": (16, 16, 1, 1), "w2": (16, 16, 3, 3), "w3": (5, 16, 1, 1)}


def model(output: str) -> onnx.ModelProto:
    found = parser.parse_model(TEXT)
    rng = np.random.default_rng(0)
    for name, shape in WEIGHTS.items():
        values = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        found.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    if output == "logits":
        del found.graph.output[:], found.graph.node[6:]
        found.graph.output.append(
            onnx.helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5, "h", "w"])
        )
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``logits.onnx`` and ``mask.onnx``, and their passports."""
    folder = tmp_path_factory.mktemp("segment")
    for output in ("logits", "mask"):
        spec = replace(SPEC, output=output)
        facts = {"precision": "fp32", "preprocessing": spec.preprocessing.to_dict(), "opset": 20, "batch": "dynamic"}
        passport = Passport("export", (Parent("weights", "random", seed=0),), spec.to_dict(), facts)
        artifact.write_with_passport(folder / f"{output}.onnx", model(output).SerializeToString(), passport)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts of a photo, lying and standing."""
    folder = tmp_path_factory.mktemp("pictures") / "parts"
    folder.mkdir()
    with Image.open(PHOTO) as photo:
        for k, (height, width) in enumerate(SIZES):
            photo.crop((40 * k, 30 * k, 40 * k + width, 30 * k + height)).save(folder / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def scales(files: Path, pictures: Path) -> Callable[[str], Path]:
    """The scale table of a file."""

    def measured(output: str) -> Path:
        path = files / f"{output}.scales.json"
        if not path.exists():
            done = call("calibrate", files / f"{output}.onnx", "--images", pictures, *ALL, "--threads", "1")
            assert done.code == 0, done
        return path

    return measured


def int8(files: Path, output: str, scales: Callable[[str], Path], target: str, to: Path) -> Path:
    options = ("--precision", "int8", "--scales", scales(output), "--target", target)
    done = call("quantize", files / f"{output}.onnx", *options, "--output", to)
    assert done.code == 0, done
    return to


def test_pictures_of_several_sizes_are_calibrated_together(scales: Callable[[str], Path], pictures: Path) -> None:
    found = read_scales(scales("logits"))
    assert found.images.samples == len(SIZES)
    assert list(found.tensors) == ["images", "e", "r", "s", "logits"]  # what a Relu gives, and not what it is given
    pixels = [np.asarray(Image.open(path), np.float32) for path in sorted(pictures.iterdir())]
    mean, std = SPEC.preprocessing.mean, SPEC.preprocessing.std
    largest = max(float(((image / 255 - mean) / std).max()) for image in pixels)
    assert found.tensors["images"].maximum == pytest.approx(largest, rel=1e-5)
    assert found.tensors["r"].minimum == found.tensors["s"].minimum == 0


@pytest.mark.parametrize("output", ["logits", "mask"])
def test_an_int8_file_is_judged_by_its_pixels(
    output: str, files: Path, scales: Callable[[str], Path], pictures: Path, tmp_path: Path
) -> None:
    path = int8(files, output, scales, "tensorrt", tmp_path / "int8.onnx")
    passport = read_passport(path)
    assert passport is not None
    assert passport.facts["products"] == {"INT8": {"Conv": 3}, "FP16": {"Conv": 1}}
    compared = passport.facts["parity"]
    assert (compared["top1_agreement"], compared["passed"]) == (None, True)
    assert compared["pixel_agreement"] > 0.8
    assert compared["tensors"][-1]["classes"] == (output == "mask")
    linted = call("lint", path, "--json").document
    assert {(finding["severity"], finding["rule"]) for finding in linted["findings"]} <= {("info", "uneven-product")}
    done = call("check", path, "--against", files / f"{output}.onnx", "--images", pictures)
    assert done.code == 0, done
    counted = "pixels" if output == "mask" else "logit cells"
    assert f"% of {counted} with the same class" in done.out
    assert "top-1" not in done.out
    share, images = agreement_on(path, files / f"{output}.onnx", pictures, samples=len(SIZES))
    assert 0.95 < share < 1
    assert images == len(SIZES)


def test_the_command_says_how_many_pixels_keep_their_class(files: Path, tmp_path: Path) -> None:
    done = call("quantize", files / "mask.onnx", "--precision", "fp16", "--output", tmp_path / "half.onnx")
    assert done.code == 0, done
    line = next(line for line in done.out.splitlines() if line.startswith("against the FP32 file"))
    assert "on 8 random images: " in line
    assert "% of pixels with the same class; what it costs on yours" in line
    assert "SQNR" not in line


def test_a_mask_of_other_classes_does_not_pass(files: Path, tmp_path: Path) -> None:
    path = files / "other.onnx"
    graph = load_graph(files / "mask.onnx")
    weight = next(tensor for tensor in graph.graph.initializer if tensor.name == "w3")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[::-1].copy(), "w3"))
    passport = read_passport(files / "mask.onnx")
    assert passport is not None
    artifact.write_with_passport(path, graph.SerializeToString(), passport)
    done = call("check", path, "--against", files / "mask.onnx")
    assert done.code == 1
    assert "FAILED on 8 images" in done.out
    assert "out of tolerance" in done.out
    complaint(done, "of the pixels of mask have another class", "expected at least 99.9% of pixels", code=1)


def test_sensitivity_ranks_the_parts_of_a_head_by_the_logits_and_judges_by_pixels(
    files: Path, scales: Callable[[str], Path], pictures: Path
) -> None:
    def measured(output: str) -> dict[str, Any]:
        options = ("--images", pictures, *ALL, "--scales", scales(output), "--threads", "1", "--json")
        return call("sensitivity", files / f"{output}.onnx", *options).document

    document = measured("mask")
    groups = {row["group"] for row in document["rows"]}
    assert groups == {"stage0.embed", "decode_head.laterals", "decode_head.fusion", "decode_head.classifier"}
    assert document["images"] == len(SIZES)
    assert 0.9 < document["everything"]["agreement"] < 1
    assert document["rows"] == measured("logits")["rows"]


def test_head_room_is_measured_on_pictures_of_several_sizes(files: Path, pictures: Path, tmp_path: Path) -> None:
    options = ("--precision", "fp16", "--images", pictures, *ALL, "--output", tmp_path / "half.onnx", "--json")
    document = call("quantize", files / "logits.onnx", *options).document
    assert {tensor["tensor"] for tensor in document["headroom"]} == {"images", "e", "c", "r", "f", "s", "logits"}


def test_there_is_nothing_to_smooth_in_a_head(files: Path, pictures: Path, tmp_path: Path) -> None:
    done = call("smooth", files / "logits.onnx", "--images", pictures, *ALL, "--output", tmp_path / "s.onnx")
    complaint(done, "no LayerNorm in front of an mlp.fc1")


def test_a_cpu_quantises_after_a_relu_and_tensorrt_only_what_products_read(
    files: Path, scales: Callable[[str], Path], tmp_path: Path
) -> None:
    def read_by(path: Path) -> dict[str, set[str]]:
        graph = load_graph(path).graph
        return {node.input[0]: {n.op_type for n in graph.node if node.output[0] in n.input} for node in graph.node if
                node.op_type == "DequantizeLinear" and node.input[0].endswith("/q")}  # fmt: skip

    cpu = read_by(int8(files, "mask", scales, "cpu", tmp_path / "cpu.onnx"))
    tensorrt = read_by(int8(files, "mask", scales, "tensorrt", tmp_path / "trt.onnx"))
    assert tensorrt.keys() == {"images/q", "e/q", "r/q"}
    assert cpu == {name: {"Conv"} for name in ("images/q", "e/q", "r/q", "s/q")}


def test_onnx_runtime_needs_no_relu_behind_an_int8_convolution(
    files: Path, scales: Callable[[str], Path], tmp_path: Path
) -> None:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    path = int8(files, "mask", scales, "cpu", tmp_path / "cpu.onnx")
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in load_graph(tmp_path / "optimized.onnx").graph.node]
    assert operators.count("QLinearConv") == 3
    assert "Relu" not in operators


def test_every_form_of_logits_is_close() -> None:
    graph = model("logits")
    images = np.random.default_rng(1).standard_normal((2, 3, 20, 36), dtype=np.float32)
    ranges = table(graph, images, ["images", "e", "r", "s", "logits"])
    (expected,) = run(graph, images)
    assert sqnr_db(expected, run(fp16_from_fp32(graph).model, images)[0]) > 50
    for options in ({}, {"rest": "fp32"}, {"target": "cpu"}, {"include": ["decode_head.classifier"]}):
        changed = int8_from_fp32(graph, ranges, graph_sha256=DIGEST, **options).model
        assert sqnr_db(expected, run(changed, images)[0]) > 25, options


@pytest.mark.parametrize(
    ("output", "counted", "least"), [("mask", "pixels", 0.5), ("mask", "pixels", 1.0), ("logits", "logit cells", 1.0)]
)
def test_deploy_accepts_a_segmentation_file_by_its_pixels(
    output: Literal["mask", "logits"],
    counted: str,
    least: float,
    files: Path,
    scales: Callable[[str], Path],
    pictures: Path,
    tmp_path: Path,
) -> None:
    path = int8(files, output, scales, "tensorrt", tmp_path / "int8.onnx")
    spec = default_spec("lite", "int8")
    spec = replace(
        spec,
        model=replace(SPEC, output=output),
        preprocessing=SPEC.preprocessing,
        acceptance=replace(spec.acceptance, agreement=least),
        calibration=replace(spec.calibration, samples=len(SIZES)),
    )
    arguments = (spec, path, files / f"{output}.onnx", pictures, lambda step: None, lambda share: None)
    if least < 1:
        step = deploying._accepted(*arguments)
        assert step.done
        assert step.found.startswith("class as FP32 on 9")
        assert step.found.endswith(f"% of the {counted} of {len(SIZES)} images")
        return
    what = f"agrees with {output}.onnx on .*% of the {counted} of 5 images; expected 100"
    with pytest.raises(AcceptanceFailed, match=what):
        deploying._accepted(*arguments)
    assert not path.exists()


def test_macs_are_counted_at_the_size_of_the_passport_or_at_another(files: Path, tmp_path: Path) -> None:
    of_a_cell = 16 * 48 + 16 * 16 + 16 * 16 * 9 + 16 * 5
    done = call("audit", files / "mask.onnx")
    assert done.code == 0, done
    assert f"{16 * 24 * of_a_cell / 1e9:.3f} G MACs an image of 64x96 pixels" in done.out
    found = call("audit", files / "logits.onnx", "--image-size", "32x40", "--json").document
    assert (found["macs"], found["macs_size"]) == (8 * 10 * of_a_cell, [32, 40])
    foreign = tmp_path / "foreign.onnx"
    onnx.save(model("mask"), foreign)
    assert "unknown MACs an image, " in call("audit", foreign).out
    complaint(call("audit", classifier(tmp_path / "c.onnx"), "--image-size", "64"), "expected a file of any size")
