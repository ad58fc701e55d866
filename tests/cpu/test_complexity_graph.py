"""The formulas of block-level multiply-accumulates against the graphs and the models of every variant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sepvit_deploy import build_model, load_graph
from sepvit_deploy.complexity import graph_block_macs, rewritten_macs
from sepvit_deploy.export import graph_of_module
from sepvit_deploy.model.sepvit import SepViT
from sepvit_deploy.variants import VARIANTS, block_macs, block_shapes
from tests.cpu.commands import published

SIZE = (224, 224)


@pytest.mark.parametrize("name", VARIANTS)
def test_each_block_of_an_exported_graph(name: str, exported: Callable[..., Path]) -> None:
    expected = {shape.name: rewritten_macs(shape) for shape in block_shapes(VARIANTS[name], "classify", SIZE)}
    assert graph_block_macs(load_graph(exported(*published(name)))) == expected


@pytest.mark.parametrize("name", VARIANTS)
def test_each_block_of_the_model_as_the_paper_writes_it(name: str) -> None:
    """By torch, which counts two operations for each multiply-accumulate of each module."""
    model = build_model(name)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, 3, *SIZE))
    counted = {module.partition(".")[2]: sum(of.values()) for module, of in counter.get_flop_counts().items()}
    for shape in block_shapes(VARIANTS[name], "classify", SIZE):
        assert counted[f"stages.{shape.stage}.blocks.{shape.block}"] == 2 * block_macs(shape), shape.name


def test_each_block_of_the_graph_as_the_paper_writes_it() -> None:
    variant = replace(VARIANTS["lite"], sides=((7,), (7, 14), (7, 14), (7,)))
    graph = graph_of_module(SepViT(variant).eval(), SIZE, batch=1)
    expected = {shape.name: block_macs(shape) for shape in block_shapes(variant, "classify", SIZE)}
    assert graph_block_macs(graph) == expected


def test_a_token_without_another_to_attend_to(exported: Callable[..., Path]) -> None:
    size = (200, 264)
    graph = load_graph(exported("--variant", "lite", "--task", "dense", "--image-size", "200x264"))
    shapes = list(block_shapes(VARIANTS["lite"], "dense", size))
    assert graph_block_macs(graph) == {shape.name: rewritten_macs(shape) for shape in shapes}
