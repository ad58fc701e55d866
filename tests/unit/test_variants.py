"""The architectures as numbers: sizes, shapes of the blocks, parameters and multiply-accumulates."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepvit_deploy.errors import OptionError
from sepvit_deploy.variants import (
    ABLATIONS,
    HEAD_WIDTH,
    VARIANTS,
    Task,
    block_shapes,
    count_macs,
    count_parameters,
    map_sizes,
    variant_named,
)

SIZES = st.tuples(st.integers(1, 2048), st.integers(1, 2048))
NAMES = st.sampled_from(sorted(VARIANTS | ABLATIONS))


@pytest.mark.parametrize(
    ("name", "parameters", "giga_macs"),
    [("lite", 3_661_128, 0.568), ("t", 31_182_856, 4.519), ("s", 46_570_504, 7.455), ("b", 82_377_064, 13.055)],
)
def test_parameters_and_macs_of_each_variant(name: str, parameters: int, giga_macs: float) -> None:
    assert count_parameters(VARIANTS[name]) == parameters
    assert round(count_macs(VARIANTS[name]) / 1e9, 3) == giga_macs


@pytest.mark.parametrize(("name", "millions"), [("t", 34.426), ("s", 50.993), ("b", 90.240)])
def test_parameters_of_the_dense_backbones_with_their_unused_norm_and_head(name: str, millions: float) -> None:
    assert round(count_parameters(VARIANTS[name], "dense") / 1e6, 3) == millions


@pytest.mark.parametrize(
    ("name", "channels", "depths", "heads"),
    [
        ("lite", (32, 64, 128, 256), (1, 2, 6, 2), (1, 2, 4, 8)),
        ("t", (96, 192, 384, 768), (1, 2, 6, 2), (3, 6, 12, 24)),
        ("s", (96, 192, 384, 768), (1, 2, 14, 2), (3, 6, 12, 24)),
        ("b", (128, 256, 512, 1024), (1, 2, 14, 2), (4, 8, 16, 32)),
    ],
)
def test_table_1_of_the_paper(
    name: str, channels: tuple[int, ...], depths: tuple[int, ...], heads: tuple[int, ...]
) -> None:
    variant = variant_named(name)
    assert (variant.channels, variant.depths, variant.heads) == (channels, depths, heads)
    assert all(c % HEAD_WIDTH == 0 for c in channels)


def test_classes_change_the_head_alone() -> None:
    variant = VARIANTS["t"]
    assert count_parameters(variant, num_classes=1000) - count_parameters(variant, num_classes=10) == 990 * (768 + 1)
    assert count_macs(variant, num_classes=1000) - count_macs(variant, num_classes=10) == 990 * 768
    assert count_macs(variant, "dense", num_classes=1000) == count_macs(variant, "dense", num_classes=10)


def test_an_unknown_variant_is_refused_with_the_known_ones() -> None:
    with pytest.raises(OptionError) as caught:
        variant_named("xl")
    assert str(caught.value) == (
        "there is no variant 'xl'; expected one of lite, t, s, b, or an ablation; "
        "type: sepvit-deploy variants --ablations"
    )


def test_maps_at_224_pixels_are_those_of_the_paper() -> None:
    assert map_sizes((224, 224)) == [(56, 56), (28, 28), (14, 14), (7, 7)]


def test_a_single_window_has_no_window_token_for_classification_alone() -> None:
    classify, dense, segment = (list(block_shapes(VARIANTS["t"], task, (224, 224))) for task in get_args(Task))
    assert segment == dense
    assert [b.windows for b in classify] == [64, 16, 4, *[4, 0] * 3, 0, 0]
    assert [b.windows for b in dense] == [64, 16, 4, *[4, 1] * 3, 1, 1]
    assert [b.name for b in classify][:4] == ["stage0.block0", "stage1.block0", "stage1.block1", "stage2.block0"]


@given(name=NAMES, task=st.sampled_from(get_args(Task)), size=SIZES)
def test_windows_cover_the_map_with_the_least_padding(name: str, task: Task, size: tuple[int, int]) -> None:
    variant = variant_named(name)
    maps = map_sizes(size)
    for block in block_shapes(variant, task, size):
        height, width = maps[block.stage]
        assert block.pixels == height * width
        assert block.padded_pixels % block.side**2 == 0
        assert block.pixels <= block.padded_pixels < (height + block.side) * (width + block.side)
        assert block.windows in (0, block.padded_pixels // block.side**2)


@given(name=NAMES, size=SIZES)
def test_larger_images_cost_more(name: str, size: tuple[int, int]) -> None:
    variant = variant_named(name)
    assert count_macs(variant, "dense", size) < count_macs(variant, "dense", (size[0] + 32, size[1]))


def test_listing_the_variants_loads_nothing_heavy() -> None:
    script = "import sys, sepvit_deploy.variants; print({'numpy', 'onnx', 'torch'} & set(sys.modules))"
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "set()"
