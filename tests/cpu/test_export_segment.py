"""`export` of segmentation files and of files for any size, from a toolbox checkpoint to ONNX."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from sepvit_deploy.audit import audit
from sepvit_deploy.graph import load_graph
from sepvit_deploy.model.build import build_model
from sepvit_deploy.model.checkpoint import load_checkpoint, published_state_dict
from sepvit_deploy.model.deploy import deployed
from sepvit_deploy.spec import ModelSpec
from sepvit_deploy.variants import ABLATIONS
from tests.cpu.commands import call, complaint

NAMES = ["wall", "building", "sky", "floor", "tree"]
PALETTE = [[k, 10 * k, 255] for k in range(5)]
SIZES = [(64, 96), (33, 200), (1, 1)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint as the toolbox saves it, and the file for any size that `export` makes of it."""
    folder = tmp_path_factory.mktemp("segment")
    state = published_state_dict(build_model("lite", "segment", num_classes=5, head="upernet", seed=4))
    weights = folder / "latest.pth"
    torch.save({"meta": {"CLASSES": tuple(NAMES), "PALETTE": PALETTE}, "state_dict": state, "optimizer": {}}, weights)
    file = folder / "masks.onnx"
    done = call(
        *("export", "--variant", "lite", "--task", "segment", "--head", "upernet", "--weights", weights),
        *("--image-size", "dynamic:64x128", "--output-kind", "mask", "--opset", "17", "--output", file),
    )
    assert done.code == 0, done.err
    return weights, file


def test_a_file_for_any_size_computes_what_the_reference_does(exported: tuple[Path, Path]) -> None:
    weights, file = exported
    reference = load_checkpoint(weights, "lite", "segment", head="upernet", output="mask")
    session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    for size in SIZES:
        images = np.random.default_rng(5).standard_normal((2, 3, *size), dtype=np.float32)
        (mask,) = session.run(None, {"images": images})
        with torch.no_grad():
            want = reference(torch.from_numpy(images)).numpy()
        assert (mask.dtype, mask.shape) == (np.uint8, (2, *size))
        assert (mask != want).mean() < 1e-4  # where two logits are equal to the last bit but one


def test_its_names_say_what_it_is(exported: tuple[Path, Path]) -> None:
    _, file = exported
    model = load_graph(file)
    (image,) = model.graph.input
    assert [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim] == [
        "batch",
        3,
        "height",
        "width",
    ]
    names = {node.name for node in model.graph.node}
    assert {"stage0.embed.proj/Conv", "decode_head.classifier/Conv", "decode_head.pooling.convs.3.conv/Conv"} <= names
    assert not any(name.startswith(("backbone", "stages", "node_")) for name in names)
    assert all(tensor.data_type != onnx.TensorProto.DOUBLE for tensor in model.graph.initializer)
    assert {entry.version for entry in model.opset_import} == {17}
    found = audit(model)
    assert found.deployable
    assert not {"BatchNormalization", "AveragePool", "GlobalAveragePool"} & found.operators.keys()
    passport = json.loads(Path(f"{file}.json").read_text(encoding="utf-8"))
    assert (passport["facts"]["classes"], passport["facts"]["palette"]) == (NAMES, PALETTE)
    assert passport["model"] == {
        "variant": "lite",
        "task": "segment",
        "size": [64, 128],
        "num_classes": 5,
        "head": "upernet",
        "output": "mask",
        "any_size": True,
    }
    assert passport["facts"]["preprocessing"]["keep_ratio"] is True


def test_names_of_other_classes_are_said_and_not_taken(
    exported: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sepvit_deploy.pipeline import exporting

    model = load_checkpoint(exported[0], "lite", "segment", head="upernet")
    model.class_names = model.class_names[:4]  # type: ignore[union-attr, index]
    said: list[str] = []
    assert exporting._labelling(model, said.append).keys() == {"palette"}
    assert said == ["the checkpoint notes classes of 4 classes and has 5: they are not used"]


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_is_exact_at_any_size(name: str) -> None:
    model = build_model(name, "dense", seed=1).double()
    images = torch.randn(1, 3, 37, 75, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rewritten = deployed(model, ModelSpec(name, "dense", (64, 64), 1000, any_size=True))(images)
        for got, want in zip(rewritten, model(images), strict=True):
            assert (got - want).abs().max() < 1e-9


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--task", "segment"], ["--task segment without --head", "--head fpn or --head upernet"]),
        (["--head", "fpn"], ["--head fpn with --task classify", "expected --task segment"]),
        (["--task", "segment", "--head", "psp"], ["psp"]),
        (["--task", "dense", "--output-kind", "mask"], ["--output-kind mask with --task dense"]),
        (["--image-size", "dynamic"], ["any_size is True for the task classify"]),
        (
            ["--task", "segment", "--head", "fpn", "--num-classes", "300", "--output-kind", "mask"],
            ["--output-kind mask with 300 classes", "at most 256", "--output-kind logits"],
        ),
        (["--task", "segment", "--head", "fpn", "--image-size", "dynamic:9000x9000"], ["size is 9000x9000"]),
    ],
    ids=range(7),
)
def test_what_does_not_go_together_is_refused(options: list[str], words: list[str], tmp_path: Path) -> None:
    complaint(call("export", "--variant", "t", *options, "--output", tmp_path / "x.onnx"), *words)
    assert not list(tmp_path.iterdir())
