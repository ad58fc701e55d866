"""The ablations' modules: counted right, rewritten exactly, exported and lowered as the published variants are.

What needs numbers runs on the smallest variant with one choice of each kind; the real ones are counted without numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sepvit_deploy.audit import AIMED_AT, audit
from sepvit_deploy.complexity import rewritten_macs
from sepvit_deploy.export import onnx_from_torch
from sepvit_deploy.model.build import build_model
from sepvit_deploy.model.choices import DeploySummary, PlainPatches, WindowAverage, WindowFilter, WindowToken
from sepvit_deploy.model.rewrite import rewrite
from sepvit_deploy.model.sepvit import Block, SepViT, SepViTBackbone
from sepvit_deploy.model.taps import taps
from sepvit_deploy.placement import observed, sites
from sepvit_deploy.precision import fp16_from_fp32, int8_from_fp32
from sepvit_deploy.runners.torch import TorchRunner
from sepvit_deploy.simplify import simplify
from sepvit_deploy.spec import ModelSpec
from sepvit_deploy.variants import (
    ABLATIONS,
    HEAD_WIDTH,
    VARIANTS,
    Variant,
    block_macs,
    block_shapes,
    count_macs,
    count_parameters,
)
from tests.cpu.rtx import SKIP, built
from tests.cpu.test_precision import images as random_images
from tests.unit.graphs import DIGEST, run, sqnr_db, table

EXACT = 1e-9
SEVENS = tuple((7,) * len(stage) for stage in VARIANTS["lite"].sides)
CHOICES: dict[str, dict[str, Any]] = {
    "plain": {"embedding": "plain", "representation": "zero", "sides": SEVENS},
    "zero": {"representation": "zero"},
    "average": {"representation": "average"},
    "depthwise": {"representation": "depthwise"},
}
"""One choice of each kind. With ``plain`` all windows are of 7, as in the paper's row."""


def small(choice: str) -> Variant:
    return replace(VARIANTS["lite"], **CHOICES[choice])


def randomised(model: nn.Module) -> Any:
    """Random weights of a sensible size, biases and window tokens among them, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5)
    return model.eval().requires_grad_(False)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ABLATIONS)
@pytest.mark.parametrize("task", ["classify", "dense"])
def test_counted_parameters_and_macs_are_the_models(name: str, task: Any) -> None:
    """Counted again by torch, on shapes alone."""
    from torch.utils.flop_counter import FlopCounterMode

    size = (224, 224) if task == "classify" else (200, 136)
    with torch.device("meta"):
        model = (SepViT if task == "classify" else SepViTBackbone)(ABLATIONS[name])
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, *size))
    assert sum(parameter.numel() for parameter in model.parameters()) == count_parameters(ABLATIONS[name], task)
    assert counter.get_total_flops() == 2 * count_macs(ABLATIONS[name], task, size)


def test_the_keys_are_those_of_t_without_its_window_tokens() -> None:
    with torch.device("meta"):
        keys = {name: SepViT(ABLATIONS[name]).state_dict().keys() for name in ("t-average", "t-depthwise", "t-zero")}
    assert keys["t-zero"] == keys["t-average"]
    assert not any("window_tokens" in key for found in keys.values() for key in found)
    assert keys["t-depthwise"] - keys["t-average"] == {
        f"stages.{stage}.blocks.{block}.attention.summary.conv.{kind}"
        for stage, block in ((0, 0), (1, 0), (1, 1), (2, 0), (2, 2), (2, 4))
        for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("height", [1, 4, 6, 7, 8])
def test_plain_patches_fill_the_last_ones_with_zeros(height: int) -> None:
    made = PlainPatches(3, 5, 4).double()
    x = randn(2, 3, height, 9)
    filled = F.pad(x, (0, 3, 0, -height % 4))
    with torch.inference_mode():
        assert (made(x) - F.conv2d(filled, made.weight, made.bias, stride=4)).abs().max() < EXACT
        assert made(x).shape == (2, 5, -(-height // 4), 3)


def test_what_stands_for_a_window() -> None:
    y = randn(2, 4, 50, 64)
    tokens, pixels = WindowToken()(y)
    assert torch.equal(tokens, y[:, :, 0])
    assert torch.equal(pixels, y[:, :, 1:])
    tokens, pixels = WindowAverage()(y[:, :, 1:])
    assert (tokens - y[:, :, 1:].sum(dim=2) / 49).abs().max() < EXACT
    assert torch.equal(pixels, y[:, :, 1:])
    made = WindowFilter(64, 7).double().requires_grad_(False)
    tokens, _ = made(y[:, :, 1:])
    weight, bias = made.conv.weight.reshape(64, 49), made.conv.bias
    assert bias is not None
    assert (tokens - (torch.einsum("bknc,cn->bkc", y[:, :, 1:], weight) + bias)).abs().max() < EXACT


@pytest.mark.parametrize("summary", [WindowAverage(), WindowFilter(64, 7)], ids=["average", "depthwise"])
def test_a_summary_rewritten_equals_it(summary: Any) -> None:
    summary.double().requires_grad_(False)
    windows = randn(2, 4, 49, 64)
    heads = windows.reshape(2, 4, 49, 2, HEAD_WIDTH).permute(0, 3, 1, 2, 4).reshape(2, 8, 49, HEAD_WIDTH)
    assert (DeploySummary(summary, 64, 4)(heads) - summary(windows)[0]).abs().max() < EXACT


@pytest.mark.parametrize("choice", ["average", "depthwise"])
def test_a_block_sums_up_what_dwa_gives_with_its_padding(choice: Any) -> None:
    """A map of 8 x 9 has four windows, three of them mostly padding, which takes part."""
    made = randomised(Block(64, 7, 4, has_pwa=True, representation=choice)).double()
    seen: list[Tensor] = []
    made.attention.pwa.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs))
    x = randn(1, 8, 9, 64)
    made(x)
    tokens, pixels = seen
    padded = F.pad(x, (0, 0, 0, 5, 0, 6))
    assert pixels.shape == (1, 4, 49, 64)
    corner = made.attention.dwa(made.norm1(padded[:, 7:, 7:].reshape(1, 1, 49, 64)))
    assert (pixels[:, 3:] - corner).abs().max() < EXACT
    assert (tokens[:, 3:] - made.attention.summary(corner)[0]).abs().max() < EXACT


@pytest.mark.parametrize("choice", CHOICES)
def test_classification_equals_the_reference(choice: str) -> None:
    model = randomised(SepViT(small(choice), 10)).double()
    images = randn(2, 3, 224, 224)
    with torch.inference_mode():
        assert (rewrite(model)(images) - model(images)).abs().max() < EXACT


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("size", [(75, 140), (33, 33)], ids=str)
def test_a_dense_backbone_equals_the_reference(choice: str, size: tuple[int, int]) -> None:
    model = randomised(SepViTBackbone(small(choice))).double()
    images = randn(2, 3, *size)
    with torch.inference_mode():
        for got, want in zip(rewrite(model, size)(images), model(images), strict=True):
            assert got.shape == want.shape
            assert (got - want).abs().max() < EXACT


def test_zero_tokens_are_learned_ones_that_are_zero() -> None:
    zero, learned = (randomised(SepViT(variant, 10)).double() for variant in (small("zero"), VARIANTS["lite"]))
    learned.load_state_dict(zero.state_dict(), strict=False)
    images = randn(1, 3, 224, 224)
    with torch.inference_mode():
        assert (zero(images) - learned(images)).abs().max() > 1e-3
        for name, parameter in learned.named_parameters():
            if name.endswith("window_tokens"):
                parameter.zero_()
        assert (zero(images) - learned(images)).abs().max() < EXACT


def test_taps_of_both_forms_have_the_same_names_and_numbers() -> None:
    spec = ModelSpec("t-depthwise", "dense", (75, 40), 10)
    model = build_model(spec.variant, spec.task, num_classes=10)
    images = torch.randn(1, 3, *spec.size, generator=torch.Generator().manual_seed(0)).numpy()
    named = tuple(taps(spec, deployed=False)), tuple(taps(spec, deployed=True))
    want = TorchRunner(model, spec.output_names, spec.size, taps=named[0]).run(images)
    got = TorchRunner(rewrite(model, spec.size), spec.output_names, spec.size, taps=named[1]).run(images)
    assert list(want) == list(got)
    assert {"stage0.block0.dwa", "stage1.block1.pwa"} <= set(want)
    for name, value in want.items():
        assert value.shape == got[name].shape, name
        assert abs(value - got[name]).max() < 1e-3, name


@pytest.fixture(scope="module", params=["plain depthwise", "average"])
def exported(request: pytest.FixtureRequest) -> Iterator[tuple[Variant, Any, onnx.ModelProto]]:
    """A variant of few blocks with these choices, its model with random weights, and the file of it."""
    sides = ((7,), (14, 7), (14,), (7,))
    embedding = "plain" if "plain" in request.param else "overlapping"
    variant = replace(
        VARIANTS["lite"], name="few", sides=sides, embedding=embedding, representation=request.param.split()[-1]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ABLATIONS, "few", variant)
        model = randomised(SepViT(variant, 10))
        graph = onnx_from_torch(rewrite(model), ModelSpec("few", "classify", (224, 224), 10), batch=2)
        yield variant, model, simplify(graph)


def test_the_file_is_plain_computes_the_same_and_stays_close_in_lower_precision(
    exported: tuple[Variant, Any, onnx.ModelProto],
) -> None:
    variant, model, graph = exported
    found = audit(graph)
    assert found.deployable
    assert found.operators.keys() <= AIMED_AT - {"Pad"}
    shapes = list(block_shapes(variant, "classify", (224, 224)))
    saved = sum(block_macs(shape) - rewritten_macs(shape) for shape in shapes)
    assert found.macs == count_macs(variant, num_classes=10) - saved
    assert sum(site.group.endswith(".qkv") for site in sites(graph)) == len(shapes)
    batch = random_images(graph, seed=1)
    with torch.inference_mode():
        expected = model(torch.from_numpy(batch)).numpy()
    assert sqnr_db(expected, run(graph, batch)[0]) > 90
    assert sqnr_db(expected, run(fp16_from_fp32(graph).model, batch)[0]) > 45
    ranges = table(graph, random_images(graph), observed(graph))
    for target in ("tensorrt", "cpu"):
        lowered = int8_from_fp32(graph, ranges, graph_sha256=DIGEST, target=target).model
        assert sqnr_db(expected, run(lowered, batch)[0]) > 15, target


@SKIP
@pytest.mark.parametrize("exported", ["plain depthwise"], indirect=True)
def test_the_builder_takes_int8_of_it(exported: tuple[Variant, Any, onnx.ModelProto]) -> None:
    _, _, graph = exported
    ranges = table(graph, random_images(graph), observed(graph))
    facts, _ = built(int8_from_fp32(graph, ranges, graph_sha256=DIGEST).model)
    assert facts.matmuls["INT8"] == 5 * 4 + 3
