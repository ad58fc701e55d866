"""Multiply-accumulates block by block: a SepViT block beside two blocks of Swin and two of Twins-SVT, and of any graph.

Counted, as in `audit`: convolutions, linear layers and both products of each attention; not normalisation, softmax,
GELU and additions. PEG, patch embedding and patch merging are of no block.

Letters: P pixels of the map, C channels, N = 49 pixels of a window, R representatives that all pixels attend to.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sepvit_deploy import graph as graphs
from sepvit_deploy.errors import GraphError
from sepvit_deploy.variants import (
    CLASSIFY_SIZE,
    MLP_RATIO,
    VARIANTS,
    WINDOW_SIDE,
    BlockShape,
    block_macs,
    block_shapes,
    filter_macs,
)
from sepvit_deploy.work import kind_of, macs_of

if TYPE_CHECKING:
    import onnx

SWIN = "arXiv 2103.14030"
TWINS = "arXiv 2104.13840"
TWINS_RATIOS = (8, 4, 2, 1)
"""Of each stage of Twins-SVT: how much smaller the map is, each way, that all pixels attend to."""
SEPVIT_BLOCKS = r"stage\d+\.block\d+"
"""What the names of a block's nodes begin with, in a graph as export writes it."""


@dataclass(frozen=True)
class BlockMacs:
    """Multiply-accumulates of one SepViT block, two Swin blocks and two Twins blocks, in G as published or counted."""

    sepvit: float
    swin: float
    twins: float


PUBLISHED = (
    BlockMacs(0.400, 0.753, 0.760),
    BlockMacs(0.368, 0.723, 0.711),
    BlockMacs(0.358, 0.708, 0.698),
    BlockMacs(0.354, 0.701, 0.695),
)
"""By `variants.PAPER`, for each stage at 224 pixels."""


@dataclass(frozen=True)
class Stage:
    """The blocks of a stage, all on the same map.

    Attributes:
        number: from 1 on, as the papers count.
        side: height and width of the map.
        sepvit: a block as the paper writes it, with a window token even where one window covers the map.
        rewritten: the stage's first block in our exported classifier.
        swin: windows, then shifted windows.
        twins: LSA in windows of 7 x 7, then GSA on a map that a strided convolution made smaller, as Twins-SVT has it.
        twins_by_window: the same, GSA with one representative a window, and nothing made smaller by a convolution.
    """

    number: int
    channels: int
    side: int
    sepvit: int
    rewritten: int
    swin: int
    twins: int
    twins_by_window: int
    published: BlockMacs

    def reproduced(self, who: str) -> bool:
        """True where ``sepvit``, ``swin`` or ``twins`` as counted is the published figure to its last digit."""
        return bool(round(getattr(self, who) / 1e9, 3) == getattr(self.published, who))

    def error(self, who: str) -> float:
        """What we count over what is published, less 1."""
        published = getattr(self.published, "twins" if who.startswith("twins") else who)
        return float(getattr(self, who) / 1e9 / published - 1)


def stages() -> tuple[Stage, ...]:
    """The four stages of the published comparison: SepViT-T's channels on the maps of a 224 pixel image."""
    variant, size = VARIANTS["t"], (CLASSIFY_SIZE, CLASSIFY_SIZE)
    with_token = {shape.name: shape for shape in block_shapes(variant, "dense", size)}
    ours = {shape.name: shape for shape in block_shapes(variant, "classify", size)}
    found = []
    for i, (channels, ratio, published) in enumerate(zip(variant.channels, TWINS_RATIOS, PUBLISHED, strict=True)):
        shape = with_token[f"stage{i}.block0"]
        windows = shape.pixels // WINDOW_SIDE**2
        found.append(
            Stage(
                number=i + 1,
                channels=channels,
                side=round(shape.pixels**0.5),
                sepvit=block_macs(shape),
                rewritten=rewritten_macs(ours[shape.name]),
                swin=2 * window_block_macs(shape.pixels, channels),
                twins=window_block_macs(shape.pixels, channels) + global_block_macs(shape.pixels, channels, ratio),
                twins_by_window=window_block_macs(shape.pixels, channels)
                + transformer_macs(shape.pixels, channels, windows),
                published=published,
            )
        )
    return tuple(found)


def rewritten_macs(shape: BlockShape) -> int:
    """A block after `model.rewrite`: no image touches the window tokens, so their QKV is a constant.

    Where a window token has no other to attend to, PWA has no product left.
    """
    c = shape.channels
    saved = 3 * shape.tokens * c * c + filter_macs(shape)  # a weighted average there, without a product
    if shape.windows == 1:
        saved += 2 * c * c + c + shape.side**2 * c
    return block_macs(shape) - saved


def transformer_macs(pixels: int, channels: int, attended: int) -> int:
    """A block whose four linear layers and MLP see every pixel, each pixel attending to ``attended`` others."""
    return (4 + 2 * MLP_RATIO) * pixels * channels**2 + 2 * attended * pixels * channels


def window_block_macs(pixels: int, channels: int) -> int:
    """A block of Swin, shifted or not, or LSA of Twins: 4PC^2 + 2NPC (equation 2 of `SWIN`), and its MLP."""
    return transformer_macs(pixels, channels, WINDOW_SIDE**2)


def global_block_macs(pixels: int, channels: int, ratio: int) -> int:
    """GSA of Twins-SVT: queries and projection of every pixel, keys and values of R = P / ratio^2 representatives."""
    representatives = pixels // ratio**2
    attention = 2 * pixels * channels**2 + 2 * representatives * channels**2 + 2 * representatives * pixels * channels
    smaller = pixels * channels**2 if ratio > 1 else 0  # a convolution of ratio x ratio, with that stride
    return attention + smaller + 2 * MLP_RATIO * pixels * channels**2


def graph_block_macs(model: onnx.ModelProto, blocks: str = SEPVIT_BLOCKS) -> dict[str, int]:
    """Multiply-accumulates of each block of a graph for one image, from the shapes of its nodes.

    Args:
        model: its nodes named by the module that they come from, as export names them.
        blocks: a pattern of how the name of a block's node begins; what it matches is the block's name.

    Raises:
        GraphError: it has no such block, a shape stays unknown, or a block computes with a runtime's own operators.
    """
    of_block: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        if found := re.match(rf"({blocks})[./]", node.name):
            of_block[found.group(1)].append(node)
    if not of_block:
        raise GraphError(f"no node's name begins as {blocks}", expected="a graph as export writes it")
    shapes = graphs.static_shapes(graphs.with_batch(model, 1))
    macs = {}
    for name, nodes in of_block.items():
        total = macs_of(nodes, shapes)
        if total is None or any("::" in kind_of(node) for node in nodes):
            raise GraphError(f"what {name} multiplies is not known", expected="standard operators of known shapes")
        macs[name] = total
    return macs
