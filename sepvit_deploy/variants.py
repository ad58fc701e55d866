"""The published SepViT architectures, as numbers.

Sizes are Table 1 of arXiv 2203.15380. Imports nothing heavy, so that listing the variants is instant.

Letters: C channels of a stage, N tokens of a window, W windows, d head width (32 everywhere).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sepvit_deploy.errors import OptionError

Task = Literal["classify", "dense", "segment"]
"""Logits of an image; four feature maps; logits or a class of every pixel, by a decode head on those maps."""

HEAD_WIDTH = 32
MLP_RATIO = 4
CLASSIFY_SIZE = 224
"""Classification is locked to 224 pixels: the number of learned window tokens depends on it."""
STRIDES = (4, 8, 16, 32)
WINDOW_SIDE = 7
GROUPED_SIDE = 14
"""Side of a grouped window (GSA): 2 x 2 neighbouring windows attend as one."""
PAPER = "arXiv 2203.15380v4"


@dataclass(frozen=True)
class Published:
    """What the paper reports: ImageNet-1K top-1 (%), images/s (V100, FP32, batch 192), ms (T4, TensorRT, batch 8)."""

    top1: float
    images_per_s: int | None = None
    latency_ms: float | None = None


@dataclass(frozen=True)
class Variant:
    """One architecture.

    Attributes:
        channels: C of each stage.
        sides: for each stage, the window side of each of its blocks: 7 is a DSSA block, 14 a GSA block.
    """

    name: str
    channels: tuple[int, int, int, int]
    sides: tuple[tuple[int, ...], ...]
    published: Published

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks of each stage."""
        return tuple(len(stage) for stage in self.sides)

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each stage."""
        return tuple(c // HEAD_WIDTH for c in self.channels)


def _sides(grouped_pairs: int) -> tuple[tuple[int, ...], ...]:
    pair = (WINDOW_SIDE, GROUPED_SIDE)
    return ((WINDOW_SIDE,), pair, pair * grouped_pairs, (WINDOW_SIDE, WINDOW_SIDE))


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("lite", (32, 64, 128, 256), _sides(3), Published(72.3)),
        Variant("t", (96, 192, 384, 768), _sides(3), Published(82.7, 729, 24.5)),
        Variant("s", (96, 192, 384, 768), _sides(7), Published(83.6, 471, 34.9)),
        Variant("b", (128, 256, 512, 1024), _sides(7), Published(84.2, 302, 46.6)),
    )
}


def variant_named(name: str) -> Variant:
    """Look a variant up by its name.

    Raises:
        OptionError: there is none of that name.
    """
    try:
        return VARIANTS[name]
    except KeyError:
        raise OptionError(
            f"there is no variant {name!r}",
            expected=f"one of {', '.join(VARIANTS)}",
            hint="type: sepvit-deploy variants",
        ) from None


@dataclass(frozen=True)
class BlockShape:
    """The numbers of one block on a given map; ``windows`` is 0 for a block without window tokens and PWA."""

    stage: int
    block: int
    side: int
    channels: int
    pixels: int
    padded_pixels: int
    windows: int

    @property
    def name(self) -> str:
        """``stage1.block0``: the address that taps, graphs and reports share."""
        return f"stage{self.stage}.block{self.block}"

    @property
    def attention_macs(self) -> int:
        """Multiply-accumulates of the two products in DWA and of the two in PWA, which no weight takes part in."""
        tokens, window = self.padded_pixels + self.windows, self.side**2 + (1 if self.windows else 0)
        return 2 * tokens * window * self.channels + self.windows**2 * (self.channels + self.side**2 * self.channels)


def map_sizes(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Height and width of the four feature maps of an input of ``size`` (height, width) pixels."""
    height, width = (size[0] + 3) // 4, (size[1] + 3) // 4
    sizes = [(height, width)]
    for _ in range(3):
        height, width = (height + 1) // 2, (width + 1) // 2
        sizes.append((height, width))
    return sizes


def block_shapes(variant: Variant, task: Task, size: tuple[int, int]) -> Iterator[BlockShape]:
    """Walk the blocks of ``variant`` for an input of ``size`` (height, width) pixels."""
    for stage, (height, width) in enumerate(map_sizes(size)):
        for block, side in enumerate(variant.sides[stage]):
            rows, columns = -(-height // side), -(-width // side)
            windows = rows * columns
            yield BlockShape(
                stage=stage,
                block=block,
                side=side,
                channels=variant.channels[stage],
                pixels=height * width,
                padded_pixels=windows * side * side,
                windows=0 if task == "classify" and windows == 1 else windows,
            )


def count_parameters(variant: Variant, task: Task = "classify", num_classes: int = 1000) -> int:
    """Learned numbers of the model, buffers excluded; of ``segment`` those of its backbone, see `heads`.

    A dense backbone counts its unused ``norm`` and ``head``, as the published checkpoints hold them.
    """
    total = 0
    previous = 3
    for stage, channels in enumerate(variant.channels):
        kernel = 7 if stage == 0 else 3
        total += channels * previous * kernel**2 + channels + 2 * channels  # patch embedding and its LayerNorm
        total += channels * 9 + channels  # PEG
        previous = channels
    for shape in block_shapes(variant, task, (CLASSIFY_SIZE, CLASSIFY_SIZE)):
        c = shape.channels
        total += 2 * 2 * c  # two LayerNorms
        total += 3 * c * c + 3 * c  # QKV
        total += c * c + c  # proj
        total += 2 * MLP_RATIO * c * c + (MLP_RATIO + 1) * c  # MLP
        if shape.windows:
            total += 2 * c + 2 * c * c + 2 * c  # PWA's LayerNorm and QK
            if task == "classify":
                total += shape.windows * c  # learned window tokens
    if task != "classify":
        total += sum(2 * c for c in variant.channels)  # a LayerNorm for each feature map
    return total + 2 * previous + previous * num_classes + num_classes


def block_macs(shape: BlockShape) -> int:
    """Multiply-accumulates of one block as the paper writes it; its PEG and patch embedding are not of the block.

    Complexity of DWA and PWA: section 3.3 of the paper.
    """
    c, tokens = shape.channels, shape.padded_pixels + shape.windows
    return (
        3 * tokens * c * c  # QKV
        + 2 * shape.windows * c * c  # PWA's QK
        + shape.attention_macs
        + shape.pixels * c * c  # proj
        + 2 * MLP_RATIO * shape.pixels * c * c
    )


def count_macs(
    variant: Variant,
    task: Task = "classify",
    size: tuple[int, int] = (CLASSIFY_SIZE, CLASSIFY_SIZE),
    num_classes: int = 1000,
) -> int:
    """Multiply-accumulates of one image in the model as the paper writes it.

    Counted: convolutions, linear layers and both products of each attention, window tokens included.
    """
    total = 0
    previous = 3
    for stage, (height, width) in enumerate(map_sizes(size)):
        channels = variant.channels[stage]
        kernel = 7 if stage == 0 else 3
        total += height * width * channels * (previous * kernel**2 + 9)  # patch embedding, PEG
        previous = channels
    total += sum(block_macs(shape) for shape in block_shapes(variant, task, size))
    return total + (previous * num_classes if task == "classify" else 0)
