"""FP16 and INT8 of SepViT itself: close to FP32 in ONNX Runtime, built by TensorRT-RTX, of the types asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from sepvit_deploy.cpu_form import (
    fused_attention,
    integer_products,
    tanh_gelu,
)
from sepvit_deploy.graph import load_graph
from sepvit_deploy.headroom import headroom
from sepvit_deploy.model.taps import taps
from sepvit_deploy.placement import attention_sites, observed, sites
from sepvit_deploy.precision import fp16_from_fp32, int8_everywhere, int8_from_fp32
from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner
from sepvit_deploy.smooth import channel_maxima, smooth
from sepvit_deploy.spec import ModelSpec
from tests.cpu.rtx import BATCHES, SKIP, built
from tests.unit.graphs import DIGEST, run, sqnr_db, table, types

LITE = ("--variant", "lite")
FIXED = (*LITE, "--batch", "2", "--opset")
DENSE = (*LITE, "--task", "dense", "--image-size", "200x264")
Exported = Callable[..., Path]


def images(model: onnx.ModelProto, count: int = 2, seed: int = 0) -> np.ndarray:
    size = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][1:]
    return np.random.default_rng(seed).standard_normal((count, *size), dtype=np.float32)


def lowered(model: onnx.ModelProto, form: str) -> onnx.ModelProto:
    """``fp16``, ``int8``, ``int8 fp32`` (what is around it), ``int8 attention``, ``int8 cpu``, ``int8 naive``."""
    if form == "fp16":
        return fp16_from_fp32(model).model
    attention, naive = "attention" in form, "naive" in form
    ranges = table(model, images(model), observed(model, attention=attention, everything=naive))
    if naive:
        return int8_everywhere(model, ranges, graph_sha256=DIGEST).model
    target, rest = ("cpu" if "cpu" in form else "tensorrt"), ("fp32" if "fp32" in form else None)
    return int8_from_fp32(
        model, ranges, graph_sha256=DIGEST, target=target, rest=rest, attention=attention
    ).model  # fmt: skip


@pytest.fixture(scope="module")
def lite(exported: Exported) -> onnx.ModelProto:
    return load_graph(exported(*LITE))


def assert_close(model: onnx.ModelProto, changed: onnx.ModelProto, least_db: float) -> None:
    batch = images(model, seed=1)
    assert changed.graph.input == model.graph.input
    assert changed.graph.output == model.graph.output
    assert changed.opset_import[0] == model.opset_import[0]
    for expected, found in zip(run(model, batch), run(changed, batch), strict=True):
        assert found.dtype == np.float32
        assert sqnr_db(expected, found) > least_db


@pytest.mark.parametrize(
    ("form", "least_db"),
    [("fp16", 50), ("int8", 20), ("int8 fp32", 20), ("int8 attention", 15), ("int8 cpu", 18), ("int8 naive", 5)],
)
def test_every_form_of_a_classifier_is_close(lite: onnx.ModelProto, form: str, least_db: float) -> None:
    assert_close(lite, lowered(lite, form), least_db)


def test_fused_products_of_a_cpu_do_not_saturate(lite: onnx.ModelProto) -> None:
    batch = images(lite, seed=1)
    runners = (OnnxRuntimeRunner(model, threads=1) for model in (lite, lowered(lite, "int8 cpu")))
    expected, found = (runner.run(batch)["logits"] for runner in runners)
    assert sqnr_db(expected, found) > 18


STEPS = (fused_attention, tanh_gelu, integer_products)


def plain_int8(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> onnx.ModelProto:
    """INT8 for a CPU before any step to its form."""
    with monkeypatch.context() as patch:
        patch.setattr("sepvit_deploy.precision.cpu_form", lambda plain: plain)
        return lowered(model, "int8 cpu")


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize(
    ("options", "batches", "products"),
    [(LITE, (1, 3, 8), 72), ((*FIXED, "17"), (2,), 72), (DENSE, (1, 3), 77)],
    ids=["classify", "fixed batch", "dense"],
)
def test_each_step_of_a_cpus_form_keeps_the_accuracy(
    options: tuple[str, ...],
    batches: tuple[int, ...],
    products: int,
    exported: Exported,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = load_graph(exported(*options))
    changed = plain_int8(model, monkeypatch)
    batch = images(model, batches[0], seed=1)
    expected = run(model, batch)
    least = min(map(sqnr_db, expected, run(changed, batch))) - 1.5
    for step in STEPS:
        changed = step(changed)
        assert min(map(sqnr_db, expected, run(changed, batch))) > least, step.__name__
    found = operators(changed)
    assert (found["MatMulIntegerToFloat"], found["MultiHeadAttention"]) == (products, 11)
    runner = OnnxRuntimeRunner(changed, threads=1)
    for size in batches[1:]:
        batch = images(model, size, seed=2)
        assert min(map(sqnr_db, run(model, batch), runner.run(batch).values())) > least - 1


def test_window_tokens_that_do_not_fit_the_grid_leave_their_attention(
    lite: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("token_normed", "token_qkv"):
        changed = plain_int8(lite, monkeypatch)
        (token,) = (t for t in changed.graph.initializer if t.name == f"stages.0.blocks.0.attention.dwa.{name}")
        values = onnx.numpy_helper.to_array(token)
        token.CopyFrom(onnx.numpy_helper.from_array(100 * values, token.name))
        assert operators(fused_attention(changed))["MultiHeadAttention"] == 10


def test_layers_kept_out_of_int8_stay_out_of_a_cpus_form(lite: onnx.ModelProto) -> None:
    ranges = table(lite, images(lite), observed(lite))

    def keeping(*patterns: str) -> onnx.ModelProto:
        return int8_from_fp32(lite, ranges, graph_sha256=DIGEST, target="cpu", keep=patterns).model

    without = keeping("*.qkv", "stage2.embed", "stage0.*")
    found = operators(without)
    assert (found["MultiHeadAttention"], found["MatMulIntegerToFloat"]) == (0, 50 - 11 - 4)
    assert_close(lite, without, 18)
    others = keeping("stage2.block[024].*", "stage1.embed")  # the fused attentions have q, k and v apart
    found = operators(others)
    assert (found["MultiHeadAttention"], found["MatMulIntegerToFloat"]) == (8, 50 - 15 + 2 * 8)
    assert_close(lite, others, 18)


@pytest.mark.parametrize("opset", [17, 19, 21])
def test_every_opset_becomes_fp16_and_int8(opset: int, exported: Exported) -> None:
    model = load_graph(exported(*FIXED, str(opset)))
    assert_close(model, lowered(model, "fp16"), 50)
    assert_close(model, lowered(model, "int8" if opset >= 19 else "int8 fp32"), 20)


def test_fp16_casts_no_more_than_its_islands_need(lite: onnx.ModelProto) -> None:
    operators = Counter(node.op_type for node in lite.graph.node)
    islands = operators["LayerNormalization"] + operators["Softmax"]
    directly = 4  # norm1 of each stage's first block reads the norm of its patch embedding
    assert fp16_from_fp32(lite).casts == 2 * islands - directly + len(("images", "logits"))


def test_taps_keep_their_names_at_the_precision_they_are_made_in(lite: onnx.ModelProto) -> None:
    names = [tap.name for tap in taps(ModelSpec("lite", "classify", (224, 224), 1000), deployed=True)]
    found = types(lowered(lite, "int8"))
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    for name in names:
        assert found[name] == (full if name.endswith(".embed") else half), name


def test_files_shrink_with_the_precision(lite: onnx.ModelProto) -> None:
    full, half, int8 = (model.ByteSize() for model in (lite, lowered(lite, "fp16"), lowered(lite, "int8")))
    assert half < 0.52 * full
    assert int8 < 0.35 * full  # the head, the window tokens and PEG stay in FP16


def test_smoothing_changes_nothing_but_rounding(lite: onnx.ModelProto) -> None:
    maxima = channel_maxima(lite, [images(lite, 1), images(lite, 2, seed=2)], threads=1)
    assert len(maxima) == sum(site.group.endswith(".fc1") for site in sites(lite)) == 11
    smoothed = smooth(lite, maxima)
    assert_close(lite, smoothed, 100)
    assert smoothed.graph.node == lite.graph.node


def test_headroom_of_a_classifier(lite: onnx.ModelProto) -> None:
    batch = images(lite, 3)
    report = headroom(lite, [(["a", "b", "c"], batch)], threads=1)
    report.require_finite("lite.onnx")
    (expected,) = run(lite, batch)
    (logits,) = (tensor for tensor in report.tensors if tensor.tensor == "logits")
    assert logits.largest == pytest.approx(np.abs(expected).max(), rel=1e-5)
    assert logits.node == "head/Add"
    assert logits.image == "abc"[int(np.abs(expected).max(axis=1).argmax())]


@SKIP
@pytest.mark.parametrize(
    ("form", "matmuls", "convolutions"),
    [
        ("fp16", {"HALF": 85}, {"HALF": 8}),
        ("int8", {"INT8": 50, "HALF": 35}, {"INT8": 4, "HALF": 4}),
        ("int8 attention", {"INT8": 72, "HALF": 13}, {"INT8": 4, "HALF": 4}),
    ],
)
def test_a_classifier_of_any_batch_builds_with_the_products_asked_for(
    form: str, matmuls: dict[str, int], convolutions: dict[str, int], lite: onnx.ModelProto
) -> None:
    network, _ = built(lowered(lite, form), BATCHES)
    assert network.inputs == {"images": [-1, 3, 224, 224]}
    assert (network.matmuls, network.convolutions) == (matmuls, convolutions)
    asked = [site for site in sites(lite) if site.default]
    assert convolutions.get("INT8", 0) == (0 if form == "fp16" else sum(site.op == "Conv" for site in asked))
    products = sum(site.op == "MatMul" for site in asked) + 2 * len(attention_sites(lite)) * ("attention" in form)
    assert matmuls.get("INT8", 0) == (0 if form == "fp16" else products)


@SKIP
def test_an_old_opset_of_a_fixed_batch_builds_with_a_float_rest(exported: Exported) -> None:
    network, _ = built(lowered(load_graph(exported(*FIXED, "17")), "int8 fp32"))
    assert (network.matmuls, network.convolutions) == ({"INT8": 50, "FLOAT": 35}, {"INT8": 4, "FLOAT": 4})


@SKIP
def test_a_backbone_becomes_int8_and_builds(exported: Exported) -> None:
    model = load_graph(exported(*DENSE))
    changed = lowered(model, "int8")
    assert_close(model, changed, 20)
    network, _ = built(changed, BATCHES)
    assert (network.matmuls, network.convolutions) == ({"INT8": 55, "HALF": 44}, {"INT8": 4, "HALF": 4})
