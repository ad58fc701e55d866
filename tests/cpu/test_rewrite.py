"""Each exact rewrite equals what it replaces, and all together equal the reference, in float64."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sepvit_deploy.model.build import build_model
from sepvit_deploy.model.rewrite import (
    DeployDWA,
    DeployPWA,
    Linear,
    WindowHeads,
    fold_attention_scale,
    fold_peg_shortcut,
    fold_window_tokens,
    rewrite,
)
from sepvit_deploy.model.sepvit import PWA, Block, window_merge, window_partition
from sepvit_deploy.model.taps import taps
from sepvit_deploy.runners.torch import TorchRunner
from sepvit_deploy.spec import ModelSpec
from sepvit_deploy.variants import HEAD_WIDTH, VARIANTS, block_shapes, count_macs, count_parameters

EXACT = 1e-9
C, WINDOWS, SIDE = 64, 4, 7
HEADS, PIXELS = C // HEAD_WIDTH, SIDE * SIDE


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def scramble(module: nn.Module) -> nn.Module:
    """Float64, with every parameter random, so that a lost gain or bias shows."""
    module.double()
    with torch.no_grad():
        for k, parameter in enumerate(module.parameters()):
            parameter.copy_(randn(*parameter.shape, seed=k) * 0.3)
    return module.requires_grad_(False)


def block(*, has_pwa: bool = True, learned: bool = True) -> Block:
    made = scramble(Block(C, SIDE, WINDOWS if learned and has_pwa else 0, has_pwa=has_pwa))
    assert isinstance(made, Block)
    return made


def windows_to_heads(x: Tensor) -> Tensor:
    """(B, K, N, h*d) -> (B, h*K, N, d)."""
    b, k, n, _ = x.shape
    return x.reshape(b, k, n, HEADS, HEAD_WIDTH).permute(0, 3, 1, 2, 4).reshape(b, HEADS * k, n, HEAD_WIDTH)


def test_the_scale_goes_into_the_query_rows() -> None:
    linear = scramble(nn.Linear(C, 3 * C))
    assert isinstance(linear, nn.Linear)
    x = randn(5, C)
    want = linear(x)
    want[:, :C] *= HEAD_WIDTH**-0.5
    assert (F.linear(x, *fold_attention_scale(linear, C)) - want).abs().max() < EXACT


@pytest.mark.parametrize("learned", [True, False])
def test_window_tokens_become_constants(learned: bool) -> None:
    made = block(learned=learned)
    normed, qkv = fold_window_tokens(made, WINDOWS)
    raw = made.window_tokens if made.window_tokens is not None else torch.zeros(1, WINDOWS, 1, C, dtype=torch.float64)
    u = made.norm1(raw)  # (1, K, 1, C)
    assert (normed - u[:, :, 0]).abs().max() < EXACT
    want = made.attention.dwa.qkv(u).reshape(WINDOWS, 3, HEADS, HEAD_WIDTH).permute(1, 2, 0, 3).clone()
    want[0] *= HEAD_WIDTH**-0.5
    assert (qkv - want.reshape(1, -1, 1, HEAD_WIDTH)).abs().max() < EXACT


def test_pegs_shortcut_goes_into_the_centre_tap() -> None:
    peg = scramble(build_model("lite").stages[0].peg)  # type: ignore[union-attr, arg-type]
    x = randn(2, 9, 8, 32)
    got = fold_peg_shortcut(peg)(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # type: ignore[arg-type]
    assert (got - peg(x)).abs().max() < EXACT


def test_linear_is_a_product_and_an_addition() -> None:
    linear = scramble(nn.Linear(C, 3 * C))
    x = randn(2, 5, C)
    assert (Linear.of(linear)(x) - linear(x)).abs().max() < EXACT  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 4), columns=st.integers(1, 4), side=st.sampled_from([1, 2, 7]), m=st.integers(1, 4))
def test_windowing_and_head_splitting_are_one_transpose(rows: int, columns: int, side: int, m: int) -> None:
    grid = WindowHeads(rows, columns, side)
    x = randn(2, rows * side, columns * side, m * HEAD_WIDTH)
    flat = x.reshape(2, -1, m * HEAD_WIDTH)
    windows = window_partition(x, side)
    want = windows.reshape(2, rows * columns, side * side, m, HEAD_WIDTH).permute(0, 3, 1, 2, 4)
    split = grid.split(flat, m)
    assert torch.equal(split, want.reshape(2, -1, side * side, HEAD_WIDTH))
    assert torch.equal(grid.merge(split, m), flat)
    assert torch.equal(window_merge(windows, side, rows * side, columns * side), x)


@pytest.mark.parametrize("has_pwa", [True, False])
def test_attention_in_rank_4_equals_dwa(has_pwa: bool) -> None:
    made = block(has_pwa=has_pwa)
    grid = WindowHeads(2, 2, SIDE) if has_pwa else WindowHeads(1, 1, SIDE)
    u = randn(2, grid.windows, PIXELS, C)
    flat = window_merge(u, SIDE, grid.rows * SIDE, grid.columns * SIDE).reshape(2, -1, C)
    zero = torch.zeros(2, 1, 1, 1, dtype=torch.float64)
    if not has_pwa:
        got = DeployDWA(made, grid)(flat, zero)
        assert (got - made.attention.dwa(u)[:, 0]).abs().max() < EXACT
        return
    tokens = made.norm1(made.window_tokens).expand(2, -1, -1, -1)
    want = made.attention.dwa(torch.cat((tokens, u), dim=2))
    token, pixels = DeployDWA(made, grid)(flat, zero)
    assert (token - want[:, :, 0]).abs().max() < EXACT
    assert (pixels - windows_to_heads(want[:, :, 1:])).abs().max() < EXACT


@pytest.mark.parametrize("windows", [1, 4, 2000], ids=["doubled", "A + I", "shortcut outside"])
def test_pwas_inner_shortcut(windows: int) -> None:
    pwa = scramble(PWA(C))
    assert isinstance(pwa, PWA)
    tokens, pixels = randn(1, windows, C), randn(1, windows, 4, C, seed=1)
    deployed = DeployPWA(pwa, windows, 4)
    got = deployed(tokens, windows_to_heads(pixels)).reshape(1, HEADS * windows, 4, HEAD_WIDTH)
    assert (got - windows_to_heads(pwa(tokens, pixels))).abs().max() < EXACT
    assert (deployed.identity is None) == (windows == 2000)


@pytest.mark.parametrize("name", VARIANTS)
def test_classification_equals_the_reference(name: str) -> None:
    model = build_model(name).double()
    images = randn(2, 3, 224, 224)
    with torch.inference_mode():
        assert (rewrite(model)(images) - model(images)).abs().max() < EXACT


@pytest.mark.parametrize("name", VARIANTS)
def test_a_dense_backbone_equals_the_reference(name: str) -> None:
    model = build_model(name, "dense").double()
    images = randn(1, 3, 200, 136)
    with torch.inference_mode():
        pairs = zip(rewrite(model, (200, 136))(images), model(images), strict=True)
        assert max(float((got - want).abs().max()) for got, want in pairs) < EXACT


@settings(max_examples=12, deadline=None)
@given(height=st.integers(1, 130), width=st.integers(1, 130), batch=st.integers(1, 3))
def test_any_dense_size_equals_the_reference(height: int, width: int, batch: int) -> None:
    model = build_model("lite", "dense").double()
    images = randn(batch, 3, height, width)
    with torch.inference_mode():
        for got, want in zip(rewrite(model, (height, width))(images), model(images), strict=True):
            assert got.shape == want.shape
            assert (got - want).abs().max() < EXACT


def test_a_lost_shortcut_is_seen() -> None:
    model = build_model("lite").double()
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.stages[2].peg.conv.weight[:, 0, 1, 1] -= 1  # type: ignore[union-attr, operator, index]
    images = randn(1, 3, 224, 224)
    with torch.inference_mode():
        assert (rewrite(broken)(images) - model(images)).abs().max() > 1e-3


def test_the_reference_is_left_alone() -> None:
    model = build_model("lite")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rewrite(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_image_that_is_not_finite_gives_outputs_that_are_not() -> None:
    model = build_model("lite")
    images = torch.randn(2, 3, 224, 224)
    images[1, 0, 0, 0] = torch.nan
    with torch.inference_mode():
        for form in (model, rewrite(model)):
            logits = form(images)
            assert logits[0].isfinite().all()
            assert not logits[1].isfinite().any()


@pytest.mark.parametrize(("task", "size"), [("classify", (224, 224)), ("dense", (224, 224)), ("dense", (75, 140))])
def test_taps_of_both_forms_have_the_same_names_and_numbers(task: str, size: tuple[int, int]) -> None:
    spec = ModelSpec("lite", task, size, 10)  # type: ignore[arg-type]
    model = build_model("lite", spec.task, num_classes=10)
    images = torch.randn(2, 3, *size).numpy()
    ours = tuple(taps(spec, deployed=True))
    want = TorchRunner(model, spec.output_names, size, taps=tuple(taps(spec, deployed=False))).run(images)
    got = TorchRunner(rewrite(model, size), spec.output_names, size, taps=ours).run(images)
    assert list(want) == list(got)
    assert {"stage0.embed", "stage1.block1.pwa", "stage2.block0.dwa", "stage3.block1.mlp"} <= set(want)
    for name, value in want.items():
        assert value.shape == got[name].shape, name
        assert abs(value - got[name]).max() < 1e-4, name


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("task", ["classify", "dense"])
def test_counted_parameters_are_the_models(name: str, task: str) -> None:
    model = build_model(name, task)  # type: ignore[arg-type]
    assert sum(parameter.numel() for parameter in model.parameters()) == count_parameters(model.variant, model.task)


@pytest.mark.parametrize(("task", "size"), [("classify", (224, 224)), ("dense", (200, 136))])
def test_counted_macs_are_the_models(task: str, size: tuple[int, int]) -> None:
    """Counted again by torch, which sees each matrix product and convolution as it runs."""
    from torch.utils.flop_counter import FlopCounterMode

    model = build_model("lite", task)  # type: ignore[arg-type]
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, 3, *size))
    assert counter.get_total_flops() == 2 * count_macs(model.variant, model.task, size)


def test_block_shapes_name_their_blocks() -> None:
    shapes = {shape.name: shape for shape in block_shapes(VARIANTS["t"], "classify", (224, 224))}
    assert dataclasses.asdict(shapes["stage1.block1"]) == {
        "stage": 1,
        "block": 1,
        "side": 14,
        "channels": 192,
        "pixels": 784,
        "padded_pixels": 784,
        "windows": 4,
        "representation": "learned",
    }
    assert shapes["stage2.block1"].windows == 0
