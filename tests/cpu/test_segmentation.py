"""Segmentation models: golden outputs of the published code, exact rewrites, toolbox checkpoints read and refused."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from sepvit_deploy.errors import CheckpointError
from sepvit_deploy.export import graph_of_module
from sepvit_deploy.heads import PUBLISHED, auxiliary_convolutions, count_segmentation_parameters
from sepvit_deploy.model.any_size_ops import scale_to
from sepvit_deploy.model.build import build_model, reference
from sepvit_deploy.model.checkpoint import (
    TRAINING_ONLY,
    load_checkpoint,
    our_name,
    published_name,
    published_state_dict,
)
from sepvit_deploy.model.deploy import deployed, deployed_head
from sepvit_deploy.model.segmentation import Resize, SepViTSegmenter
from sepvit_deploy.model.state_dict import read_checkpoint
from sepvit_deploy.spec import ModelSpec
from sepvit_deploy.variants import VARIANTS
from tests.cpu.golden import HEADS, Golden

TOLERANCE = 3e-4
CLASSES = [f"thing {k}" for k in range(150)]
PALETTE = [[k, 255 - k, 7] for k in range(150)]


@pytest.fixture(scope="module", params=HEADS)
def case(request, tmp_path_factory) -> tuple[str, Golden, SepViTSegmenter]:
    """A golden case, and the model read from a file as the toolbox writes it."""
    golden = Golden.read(request.param)
    file = tmp_path_factory.mktemp(request.param) / "iter_80000.pth"
    meta = {"CLASSES": tuple(CLASSES), "PALETTE": PALETTE, "config": "model = dict()", "iter": 80000}
    torch.save({"meta": meta, "state_dict": golden.weights(), "optimizer": {"state": {}}}, file)
    model = load_checkpoint(file, "t", "segment", head=HEADS[request.param])
    file.unlink()
    return request.param, golden, model


def differences(model: nn.Module, golden: Golden) -> tuple[float, Tensor]:
    """Largest |difference| of the sampled logits, and the whole logits."""
    with torch.no_grad():
        logits = model(golden.inputs()[0])
    assert list(logits.shape) == golden.outputs["shape_0"].tolist()
    return float(np.abs(logits.numpy()[:, ::10, ::7, ::7] - golden.outputs["logits_0"]).max()), logits


def test_the_model_matches_the_published_one(case):
    name, golden, model = case
    difference, logits = differences(model, golden)
    assert difference <= TOLERANCE
    images = golden.inputs()[0]
    mask = model.to_mask(logits, images)
    assert (mask.dtype, mask.shape) == (torch.uint8, (len(images), *images.shape[2:]))
    apart = mask.numpy()[:, ::16, ::16] != golden.outputs["argmax_0"]
    two = nn.functional.interpolate(logits, images.shape[2:], mode="bilinear").topk(2, dim=1).values
    margins = (two[:, 0] - two[:, 1]).numpy()[:, ::16, ::16]
    assert (margins[apart] < TOLERANCE).all()  # but where two classes tie
    assert apart.mean() < 0.01
    if HEADS[name] == "fpn":
        with torch.no_grad():
            levels = model.neck(model.backbone(images))
        for k, level in enumerate(levels):
            assert np.abs(level.numpy()[:, ::16, ::9, ::9] - golden.outputs[f"neck_0_{k}"]).max() <= TOLERANCE
    assert model.class_names == tuple(CLASSES)
    assert model.palette == tuple(map(tuple, PALETTE))


def test_the_rewrites_match_the_published_one(case):
    name, golden, model = case
    if "odd" not in name:
        return  # 2 x 2 maps more to compare, and nothing new: every size here is a multiple of 32
    size = tuple(golden.input_shapes[0][2:])
    spec = ModelSpec("t", "segment", size, 150, HEADS[name])
    assert differences(deployed(model, spec), golden)[0] <= TOLERANCE
    any_size = ModelSpec("t", "segment", (512, 2048), 150, HEADS[name], any_size=True)
    assert differences(deployed(model, any_size), golden)[0] <= TOLERANCE


FAULTS = {
    "fpn": ["neck.laterals.3.bias", "decode_head.branches.3.4.bn.running_mean", "neck.outputs.0.weight"],
    "upernet": [
        "decode_head.pooling.convs.3.bn.bias",
        "decode_head.bottleneck.bn.running_var",
        "backbone.norms.0.bias",
    ],
}


def test_a_fault_in_neck_or_head_shows(case):
    name, golden, model = case
    if "odd" in name:
        return  # the same weights' places, drawn anew
    for place in FAULTS[HEADS[name]]:
        broken = copy.deepcopy(model)
        with torch.no_grad():
            broken.state_dict()[place].mul_(1.5).add_(0.1)
        assert differences(broken, golden)[0] > 10 * TOLERANCE, place


@pytest.mark.parametrize("name", HEADS)
def test_published_keys_and_our_names_are_one_to_one(name):
    published = Golden.read(name).shapes
    with torch.device("meta"):
        ours = reference(VARIANTS["t"], "segment", 150, head=HEADS[name]).state_dict()
    inference = {key: shape for key, shape in published.items() if not key.startswith("auxiliary_head.")}
    assert {our_name(key): tuple(shape) for key, shape in inference.items()} == {
        key: tuple(value.shape) for key, value in ours.items()
    }
    assert [published_name(our_name(key)) for key in inference] == list(inference)


@pytest.mark.parametrize(("name", "head"), PUBLISHED)
def test_the_counted_parameters_are_the_models(name, head):
    variant = VARIANTS[name]
    with torch.device("meta"):
        model = reference(variant, "segment", 150, head=head)
    auxiliary = sum(conv.parameters for conv in auxiliary_convolutions(variant)) if head == "upernet" else 0
    assert sum(p.numel() for p in model.parameters()) + auxiliary == count_segmentation_parameters(variant, head)


@pytest.mark.parametrize("head", ["fpn", "upernet"])
@pytest.mark.parametrize("size", [(64, 96), (33, 100), (7, 5)])
def test_the_rewrites_are_exact(head, size):
    model = build_model("lite", "segment", num_classes=7, head=head).double()
    images = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = model(images)
        for any_size in (False, True):
            rewritten = deployed(model, ModelSpec("lite", "segment", size, 7, head, any_size=any_size))
            assert not any(isinstance(module, nn.BatchNorm2d) for module in rewritten.modules())
            assert (rewritten(images) - want).abs().max() < 1e-9


@pytest.mark.parametrize("length", [1, 2, 3, 7, 13, 25, 50, 127, 1023])
def test_a_scale_gives_the_wanted_length_as_a_runtime_rounds_it(length):
    nodes, values = [], []
    for wanted in range(max(1, length // 2), 2 * length + 2):
        scales = onnx.helper.make_tensor(
            f"to{wanted}", onnx.TensorProto.FLOAT, [4], [1, 1, scale_to(length, wanted), 1]
        )
        values.append(scales)
        nodes.append(onnx.helper.make_node("Resize", ["x", "", scales.name], [f"y{wanted}"], mode="linear"))
    given = [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 1, length, 1])]
    made = [onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None) for node in nodes]
    graph = onnx.helper.make_graph(nodes, "scales", given, made, values)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    wanted_heights = [int(node.output[0][1:]) for node in nodes]
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.output
    assert [value.type.tensor_type.shape.dim[2].dim_value for value in inferred] == wanted_heights
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"x": np.zeros((1, 1, length, 1), np.float32)})
    assert [output.shape[2] for output in outputs] == wanted_heights


class Resizes(nn.Module):
    """Every other row and column, resized to what they were taken from: from 13 to 25, say."""

    def __init__(self) -> None:
        super().__init__()
        self.smooth = deployed_head(Resize(), (1, 1))
        self.steps = deployed_head(Resize("nearest"), (1, 1))

    def forward(self, images: Tensor) -> Tensor:
        half = images[:, :, ::2, ::2]
        return self.smooth(half, images) + self.steps(half, images)


def test_a_graph_for_one_odd_size_resizes_as_torch_does():
    size = (25, 101)
    graph = graph_of_module(Resizes(), size, output_names=("resized",))
    onnx.shape_inference.infer_shapes(graph, strict_mode=True, data_prop=True)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images.numpy()})
    half = images[:, :, ::2, ::2]
    want = nn.functional.interpolate(half, size, mode="bilinear") + nn.functional.interpolate(half, size)
    assert np.abs(found - want.numpy()).max() < 1e-4  # places are float32, too
    assert "Shape" not in {node.op_type for node in graph.graph.node}


@pytest.mark.parametrize("head", ["fpn", "upernet"])
def test_the_reference_is_left_alone(head):
    model = build_model("lite", "segment", num_classes=3, head=head)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rewritten = deployed(model, ModelSpec("lite", "segment", (32, 32), 3, head))
    with torch.no_grad():
        for value in rewritten.state_dict().values():
            value.zero_()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    theirs, ours = dict(model.named_modules()), dict(rewritten.named_modules())
    shared = [name for name in ours if name in theirs and ours[name]._forward_hooks is theirs[name]._forward_hooks]
    assert not shared


# Files that do not fit


@pytest.fixture(scope="module")
def states() -> dict[str, dict[str, Tensor]]:
    """Published keys and shapes of lite with each head, over zeros that take no room."""
    found = {}
    for head in ("fpn", "upernet"):
        with torch.device("meta"):
            shapes = published_state_dict(reference(VARIANTS["lite"], "segment", 5, head=head))
        found[head] = {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in shapes.items()}
    return found


def refusal(tmp_path: Path, content: object, *args: str, **options: object) -> str:
    file = tmp_path / "weights.pth"
    torch.save(content, file)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(file, *args, **options)  # type: ignore[arg-type]
    text = str(caught.value)
    assert text.startswith(str(file))
    assert text.isprintable()
    return text.removeprefix(str(file))


def test_what_only_training_needs_may_be_there_or_not(states, tmp_path):
    state = states["fpn"]
    extra = {"auxiliary_head.convs.0.conv.weight": torch.zeros(3), "backbone.head.weight": torch.zeros(21, 256)}
    least = {key: value for key, value in state.items() if not TRAINING_ONLY.fullmatch(key)}
    assert len(least) < len(state)
    for content in (
        state,
        state | extra,
        least,
        {"state_dict": {f"module.{key}": value for key, value in least.items()}},
    ):
        torch.save(content, tmp_path / "weights.pth")
        model = load_checkpoint(tmp_path / "weights.pth", "lite", "segment", head="fpn")
        assert (model.num_classes, model.class_names, model.palette) == (5, None, None)
        assert not any(value.is_meta for value in model.state_dict().values())


def test_a_checkpoint_of_the_other_head_is_named(states, tmp_path):
    found = refusal(tmp_path, {"meta": {}, "state_dict": states["upernet"]}, "lite", "segment", head="fpn")
    assert "looks like variant lite for segmentation with the head upernet" in found
    assert found.endswith("type: --head upernet")


def test_a_segmentation_checkpoint_for_another_task_or_variant_is_named(states, tmp_path):
    assert refusal(tmp_path, states["fpn"], "lite").endswith("type: --task segment --head fpn")
    found = refusal(tmp_path, states["fpn"], "t", "segment", head="fpn")
    assert found.endswith("type: --variant lite")


def test_another_number_of_classes_is_named(states, tmp_path):
    found = refusal(tmp_path, states["upernet"], "lite", "segment", head="upernet", num_classes=150)
    assert found == " has a head of 5 classes; expected --num-classes 150; type: --num-classes 5, or leave it out"


def test_a_missing_key_is_named(states, tmp_path):
    state = dict(states["fpn"])
    del state["neck.lateral_convs.2.conv.bias"]
    assert "1 missing (neck.lateral_convs.2.conv.bias)" in refusal(tmp_path, state, "lite", "segment", head="fpn")


@pytest.mark.parametrize(
    "meta",
    [
        {"CLASSES": "wall", "PALETTE": 3},
        {"CLASSES": ["wall", 7], "PALETTE": [[1, 2], [3, 4, 5]]},
        {"CLASSES": ["two\nlines"], "PALETTE": [[0, 0, 256]]},
        {"CLASSES": ["\x1b[2J"], "PALETTE": [[0, True, 1]]},
        {"CLASSES": ["x" * 201], "PALETTE": [[0.0, 1.0, 2.0]]},
        {"CLASSES": [], "PALETTE": []},
        [1, 2],
        None,
    ],
    ids=range(8),
)
def test_names_and_colours_that_cannot_be_shown_are_not_taken(meta, tmp_path):
    torch.save({"meta": meta, "state_dict": {"a": torch.zeros(1)}}, tmp_path / "weights.pth")
    stored = read_checkpoint(tmp_path / "weights.pth")
    assert (stored.class_names, stored.palette) == (None, None)
    assert stored.unusable == (("CLASSES", "PALETTE") if isinstance(meta, dict) else ())
