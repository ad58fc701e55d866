"""Export end to end through the Python API: what is promised of the file, and what happens when a promise breaks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from sepvit_deploy import (
    AuditFailed,
    GraphError,
    ModelSpec,
    ParityFailed,
    artifact,
    audit,
    build_model,
    check,
    export,
    load_graph,
    onnx_from_torch,
    read_passport,
    simplify,
)
from sepvit_deploy.audit import AIMED_AT, GELU_BEFORE_20
from sepvit_deploy.model.checkpoint import load_checkpoint, published_state_dict
from sepvit_deploy.model.taps import taps
from sepvit_deploy.pipeline import exporting
from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner
from sepvit_deploy.variants import ABLATIONS, VARIANTS, count_macs
from tests.cpu.commands import LARGER, published
from tests.repo.layers import ROOT

Export = Callable[..., Path]
DIGITS = ROOT / "models" / "sepvit_lite_digits.safetensors"
OF_OPSET = {opset: ("--batch", "2", "--opset", str(opset)) for opset in (17, 18, 19, 21)} | {20: ()}
"""The default opset is read from the file that everything else reads."""


@pytest.mark.parametrize("name", VARIANTS)
def test_a_classifier_is_small_and_plain(name: str, exported: Export) -> None:
    found = audit(load_graph(exported(*published(name))))
    assert found.deployable
    assert found.operators.keys() <= AIMED_AT
    assert not found.operators.keys() & {"Shape", "Gather", "Expand", "Gemm", "Pad"}
    batch = 1 if name in LARGER else "batch"
    assert found.inputs == {"images": [batch, 3, 224, 224]}
    assert found.outputs == {"logits": [batch, 1000]}
    if name == "t":
        assert found.nodes <= 450
        assert found.operators["Transpose"] <= 70


def test_macs_are_the_papers_less_the_folded_window_tokens(exported: Export) -> None:
    """Folding saves QKV of each window token: 3 C^2 for each window of each block with PWA."""
    variant = VARIANTS["t"]
    saved = sum(3 * windows * c * c for windows, c in [(64, 96), (16, 192), (4, 192), *[(4, 384)] * 3])
    assert audit(load_graph(exported("--variant", "t"))).macs == count_macs(variant) - saved


@pytest.mark.parametrize("opset", sorted(OF_OPSET))
def test_every_opset_is_what_was_asked_and_computes_the_same(opset: int, exported: Export) -> None:
    path = exported("--variant", "lite", *OF_OPSET[opset])
    graph = load_graph(path)
    onnx.checker.check_model(graph, full_check=True)
    found = audit(graph)
    assert found.opset == opset
    assert found.deployable
    assert found.inputs == {"images": ["batch" if opset == 20 else 2, 3, 224, 224]}
    assert ("Gelu" in found.operators) == (opset >= 20)
    assert found.operators.keys() <= AIMED_AT | (GELU_BEFORE_20 if opset < 20 else frozenset())
    assert check(path).passed
    if opset != 20:
        assert check(path, against=exported("--variant", "lite")).passed


@pytest.mark.parametrize("batch", [1, 2, 5, 16])
def test_no_constant_depends_on_the_batch(batch: int, exported: Export) -> None:
    """An image's logits are the same alone and among others, whatever the batch."""
    runner = OnnxRuntimeRunner(exported("--variant", "lite"))
    images = np.random.default_rng(0).standard_normal((batch, 3, 224, 224), dtype=np.float32)
    together = runner.run(images)["logits"]
    alone = np.concatenate([runner.run(images[k : k + 1])["logits"] for k in range(batch)])
    assert together.shape == (batch, 1000)
    assert np.abs(together - alone).max() < 1e-5


def test_a_dense_backbone_of_an_odd_size(exported: Export) -> None:
    path = exported("--variant", "lite", "--task", "dense", "--image-size", "200x264")
    found = audit(load_graph(path))
    assert found.deployable
    assert found.operators["Pad"] > 0
    assert list(found.outputs) == ["stride4", "stride8", "stride16", "stride32"]
    assert check(path).passed


def test_every_tap_is_in_the_graph_and_compared(exported: Export) -> None:
    path = exported("--variant", "lite")
    names = [tap.name for tap in taps(ModelSpec("lite", "classify", (224, 224), 1000), deployed=True)]
    produced = {output for node in load_graph(path).graph.node for output in node.output}
    assert set(names) <= produced
    assert [tensor.name for tensor in check(path).tensors] == [*names, "logits"]


def test_nodes_say_which_block_they_are_of(exported: Export) -> None:
    nodes = [node.name for node in load_graph(exported("--variant", "lite")).graph.node]
    assert len(set(nodes)) == len(nodes)
    assert "stage1.block0.attention.dwa/Softmax" in nodes
    assert "stage1.block0.attention.pwa/Softmax" in nodes
    assert "stage2.block5.mlp/Gelu" in nodes


def test_the_file_holds_nothing_of_the_machine(exported: Export) -> None:
    content = exported("--variant", "lite").read_bytes()
    for word in (b"site-packages", b"sepvit_deploy/", b"stack_trace", str(Path.home()).encode()):
        assert word not in content


def test_the_passport_says_what_the_file_is(exported: Export) -> None:
    path = exported("--variant", "lite")
    passport = read_passport(path)
    assert passport is not None
    assert passport.bytes == path.stat().st_size
    assert passport.weights is not None
    assert (passport.weights.name, passport.weights.seed) == ("random", 0)
    assert passport.model == {"variant": "lite", "task": "classify", "size": [224, 224], "num_classes": 1000}
    facts = passport.facts
    assert (facts["opset"], facts["batch"], facts["simplified"]) == (20, "dynamic", True)
    assert facts["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    assert facts["audit"]["nodes"] == audit(load_graph(path)).nodes
    assert facts["parity"]["passed"] is True
    assert {"torch", "onnx", "onnxsim", "onnxruntime", "python"} <= passport.tools.keys()
    document = json.loads(path.with_name(path.name + ".json").read_text())
    assert str(path.parent) not in json.dumps(document)


def test_weights_of_a_checkpoint_are_in_the_file(exported: Export, tmp_path: Path) -> None:
    path = exported("--variant", "lite", "--weights", str(DIGITS))
    passport = read_passport(path)
    assert passport is not None
    assert passport.weights is not None
    assert passport.weights.name == DIGITS.name
    assert passport.weights.sha256 == artifact.sha256(DIGITS)
    model = load_checkpoint(DIGITS, "lite")
    image = np.random.default_rng(1).standard_normal((1, 3, 224, 224), dtype=np.float32)
    with torch.inference_mode():
        want = model(torch.from_numpy(image)).numpy()
    assert want.shape == (1, 10)
    assert np.abs(OnnxRuntimeRunner(path).run(image)["logits"] - want).max() < 1e-4
    assert check(path, weights=DIGITS).passed
    other = tmp_path / "other.pth"
    state = {f"module.{key}": value for key, value in published_state_dict(build_model("lite", num_classes=10)).items()}
    torch.save({"model": state, "epoch": 3}, other)
    compared = check(path, weights=other)
    assert not compared.passed
    assert compared.first_out == "stage0.embed"


def planted(path: Path, target: Path, name: str, value: float) -> Path:
    """A copy of a graph with one number of one weight changed, and no passport."""
    graph = load_graph(path)
    tensor = next(tensor for tensor in graph.graph.initializer if tensor.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[0] = value
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(graph, target)
    return target


def test_one_changed_weight_has_an_address(exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = exported("--variant", "lite")
    wrong = planted(path, tmp_path / "wrong.onnx", "stages.1.blocks.0.mlp.fc1.bias", 3.0)
    with pytest.raises(GraphError, match=r"has no passport.*--against"):
        check(wrong)
    passport = read_passport(path)
    monkeypatch.setattr(artifact, "read_passport", lambda _: passport)
    compared = check(wrong)
    assert not compared.passed
    assert compared.first_out == "stage1.block0.mlp"
    with pytest.raises(ParityFailed, match=r"wrong\.onnx does not compute .*: stage1\.block0\.mlp differs by"):
        compared.require_passed()


def test_a_nan_fails_whichever_side_it_is_on(exported: Export, tmp_path: Path) -> None:
    path = exported("--variant", "lite")
    broken = planted(path, tmp_path / "broken.onnx", "head.bias", float("nan"))
    for one, other in ((broken, path), (path, broken), (broken, broken)):
        compared = check(one, against=other)
        assert not compared.passed
        with pytest.raises(ParityFailed, match="logits has numbers that are not finite"):
            compared.require_passed()


def test_simplifying_proves_itself(exported: Export, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import onnxsim

    graph = load_graph(exported("--variant", "lite"))
    assert len(simplify(graph).graph.node) <= len(graph.graph.node)
    wrong = load_graph(planted(exported("--variant", "lite"), tmp_path / "w.onnx", "head.bias", 3.0))
    monkeypatch.setattr(onnxsim, "simplify", lambda *_, **__: (wrong, True))
    with pytest.raises(ParityFailed, match=r"simplifying moved logits by"):
        simplify(graph)
    nan = load_graph(planted(exported("--variant", "lite"), tmp_path / "n.onnx", "head.bias", float("nan")))
    monkeypatch.setattr(onnxsim, "simplify", lambda *_, **__: (nan, True))
    with pytest.raises(ParityFailed, match="logits is not finite on random images"):
        simplify(graph)


def test_a_graph_that_is_not_deployable_is_not_written(
    exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = load_graph(exported("--variant", "lite"))
    first = graph.graph.node[0]
    graph.graph.node.insert(0, onnx.helper.make_node("Where", ["c", "images", "images"], ["chosen"], name="planted"))
    graph.graph.initializer.append(numpy_helper.from_array(np.ones(1, bool), "c"))
    first.input[0] = "chosen"
    monkeypatch.setattr(exporting, "onnx_from_torch", lambda *_, **__: graph)
    target = tmp_path / "x.onnx"
    target.write_bytes(b"the old file")
    with pytest.raises(AuditFailed, match=r"x\.onnx is not deployable: planted: Where moves single elements"):
        export("lite", target, simplify=False)
    assert target.read_bytes() == b"the old file"
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]


def test_a_graph_that_computes_something_else_is_not_written(
    exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = load_graph(planted(exported("--variant", "lite"), tmp_path / "w.onnx", "stages.3.peg.bias", 9.0))
    monkeypatch.setattr(exporting, "onnx_from_torch", lambda *_, **__: wrong)
    with pytest.raises(ParityFailed, match=r"x\.onnx does not compute what the reference does: stage3\.peg differs"):
        export("lite", tmp_path / "x.onnx", simplify=False)
    assert [path.name for path in tmp_path.iterdir()] == ["w.onnx"]


def test_the_paper_form_exports_too_and_is_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    """The form that the benchmark compares with: no rewrites, same exporter."""
    few = replace(VARIANTS["lite"], name="few", sides=((7,), (14, 7), (14,), (7,)))
    monkeypatch.setitem(ABLATIONS, "few", few)
    model = build_model("few")
    spec = ModelSpec("few", "classify", (224, 224), 1000)
    plain = onnx_from_torch(model, spec, batch=1)
    assert len(plain.graph.node) > 260  # 277 now; rewritten it has 234
    images = np.random.default_rng(2).standard_normal((1, 3, 224, 224), dtype=np.float32)
    with torch.inference_mode():
        want = model(torch.from_numpy(images)).numpy()
    assert np.abs(OnnxRuntimeRunner(plain).run(images)["logits"] - want).max() < 1e-4
