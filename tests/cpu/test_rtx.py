"""Every graph that export writes is parsed and built by TensorRT-RTX, at the precision it was written with."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from sepvit_deploy.variants import STRIDES, VARIANTS, count_parameters, map_sizes
from tests.cpu import rtx

pytestmark = pytest.mark.skipif(rtx.skip_reason() is not None, reason=str(rtx.skip_reason()))

BATCHES = (1, 8, 32)


def as_onnx(graph: str, path: Path) -> Path:
    """Write a graph in ONNX's text form; ``nowhere`` is an operator set that nothing implements."""
    header = '<ir_version: 9, opset_import: ["": 19, "nowhere": 1]> '
    onnx.save(onnx.parser.parse_model(header + graph), path)
    return path


@pytest.mark.parametrize("name", VARIANTS)
def test_a_classifier_builds_for_any_batch(name: str, exported: Callable[..., Path]) -> None:
    report = rtx.parse_and_build(exported("--variant", name), BATCHES)
    assert report.inputs == {"images": [-1, 3, 224, 224]}
    assert report.outputs == {"logits": [-1, 1000]}
    assert report.matmuls.keys() == {"FLOAT"}
    assert report.engine_bytes > 0.9 * 4 * count_parameters(VARIANTS[name])


@pytest.mark.parametrize("opset", [17, 18, 19, 20, 21])
def test_a_classifier_builds_for_one_batch_at_every_opset(opset: int, exported: Callable[..., Path]) -> None:
    report = rtx.parse_and_build(exported("--variant", "lite", "--batch", "2", "--opset", str(opset)))
    assert report.inputs == {"images": [2, 3, 224, 224]}
    assert report.outputs == {"logits": [2, 1000]}
    assert report.matmuls.keys() == {"FLOAT"}


def test_a_backbone_of_an_odd_size_builds_for_any_batch(exported: Callable[..., Path]) -> None:
    height, width = size = (200, 264)
    path = exported("--variant", "lite", "--task", "dense", "--image-size", f"{height}x{width}")
    report = rtx.parse_and_build(path, BATCHES)
    maps = zip(STRIDES, VARIANTS["lite"].channels, map_sizes(size), strict=True)
    assert report.inputs == {"images": [-1, 3, height, width]}
    assert report.outputs == {f"stride{stride}": [-1, channels, *hw] for stride, channels, hw in maps}
    assert report.matmuls.keys() == {"FLOAT"}


def test_half_precision_products_are_counted_as_such(tmp_path: Path) -> None:
    text = "g (float16[2,4] x) => (float16[2,2] y) { t = Transpose(x) y = MatMul(x, t) }"
    assert rtx.parse_and_build(as_onnx(text, tmp_path / "half.onnx")).matmuls == {"HALF": 1}


def test_an_unknown_operator_is_refused_by_name(tmp_path: Path) -> None:
    text = "g (float[2] x) => (float[2] y) { y = nowhere.Unheard(x) }"
    with pytest.raises(rtx.RtxRejected, match=r"unknown\.onnx: Unheard .*[Pp]lugin not found"):
        rtx.parse_and_build(as_onnx(text, tmp_path / "unknown.onnx"))


def test_a_zero_point_that_onnx_allows_is_refused(tmp_path: Path) -> None:
    text = """g (float[2,4] x) => (float[2,4] y)
    <float s = {0.1}, int8 zero = {3}> { q = QuantizeLinear(x, s, zero) y = DequantizeLinear(q, s, zero) }"""
    path = as_onnx(text, tmp_path / "zero.onnx")
    onnx.checker.check_model(path)
    with pytest.raises(rtx.RtxRejected, match=r"QuantizeLinear .*zero"):
        rtx.parse_and_build(path)


def test_a_file_that_is_not_onnx_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    path.write_text("not a graph")
    with pytest.raises(rtx.RtxRejected, match=r"text\.onnx: "):
        rtx.parse_and_build(path)


def test_batches_must_fit_the_input(tmp_path: Path) -> None:
    static = as_onnx("g (float[2] x) => (float[2] y) { y = Neg(x) }", tmp_path / "s")
    free = as_onnx("g (float[B] x) => (float[B] y) { y = Neg(x) }", tmp_path / "f")
    with pytest.raises(rtx.RtxRejected, match=r"input x is \[2\]; batches are given"):
        rtx.parse_and_build(static, BATCHES)
    with pytest.raises(rtx.RtxRejected, match=r"inputs are \{'x': \[-1\]\}; no batches are given"):
        rtx.parse_and_build(free)


def test_a_crash_of_the_child_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = tmp_path / "crash.py"
    crash.write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setattr(rtx, "__file__", str(crash))
    with pytest.raises(rtx.RtxRejected, match=rf"any\.onnx: TensorRT-RTX ended with status -{signal.SIGSEGV.value}"):
        rtx.parse_and_build(Path("any.onnx"))


def test_missing_packages_are_a_failure_that_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtx, "LIBRARY_PACKAGE", "no_such_package")
    with pytest.raises(rtx.RtxMissing, match=r"type: pip install -c constraints\.txt -e '\.\[rtx\]'"):
        rtx.load_bindings()


def test_only_the_lack_of_wheels_is_a_reason_to_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rtx.skip_reason() is None
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "linux x86_64" in str(rtx.skip_reason())
