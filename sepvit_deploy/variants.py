"""The published SepViT architectures, as numbers.

Sizes are Table 1 of arXiv 2203.15380. Imports nothing heavy, so that listing the variants is instant.

Letters: C channels of a stage, N tokens of a window, W windows, d head width (32 everywhere).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from sepvit_deploy.errors import OptionError

Task = Literal["classify", "dense", "segment"]
"""Logits of an image; four feature maps; logits or a class of every pixel, by a decode head on those maps."""
Representation = Literal["learned", "zero", "average", "depthwise"]
"""What stands for a window in PWA: a window token, learned or zero, or the average or a convolution of DWA's output."""
Embedding = Literal["overlapping", "plain"]
"""Patches of 7 x 7 at stride 4, then 3 x 3 at stride 2; or of 4 x 4 and 2 x 2 at these strides, side by side."""

HEAD_WIDTH = 32
MLP_RATIO = 4
CLASSIFY_SIZE = 224
"""Classification is locked to 224 pixels: the number of learned window tokens depends on it."""
STRIDES = (4, 8, 16, 32)
WINDOW_SIDE = 7
GROUPED_SIDE = 14
"""Side of a grouped window (GSA): 2 x 2 neighbouring windows attend as one."""
PAPER = "arXiv 2203.15380v4"
ABLATION_PAPER = "arXiv 2203.15380v3"
"""The last version that has the ablations; its figures of SepViT-T are not those of `PAPER`."""
THROUGHPUT_ON = "V100, PyTorch FP32, batch 192"
"""Where the paper measured images/s."""


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
        representation: of windows in PWA; ``learned`` is zero for tasks other than classification, as published.
    """

    name: str
    channels: tuple[int, int, int, int]
    sides: tuple[tuple[int, ...], ...]
    published: Published
    representation: Representation = "learned"
    embedding: Embedding = "overlapping"

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks of each stage."""
        return tuple(len(stage) for stage in self.sides)

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each stage."""
        return tuple(c // HEAD_WIDTH for c in self.channels)

    @property
    def grouped(self) -> bool:
        """Whether it has blocks of grouped windows (GSA)."""
        return any(GROUPED_SIDE in stage for stage in self.sides)


def _sides(grouped_pairs: int, grouped_side: int = GROUPED_SIDE) -> tuple[tuple[int, ...], ...]:
    pair = (WINDOW_SIDE, grouped_side)
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


@dataclass(frozen=True)
class AblationRow:
    """A row of Table 6 or 7 of `ABLATION_PAPER`, in the paper's words and figures.

    Attributes:
        variant: the name of ours that it is.
        millions, giga_macs: parameters and multiply-accumulates, as printed.
        images_per_s: on `THROUGHPUT_ON`.
        top1: of ImageNet-1K, in percent.
        note: where what we count is not what is printed.
    """

    variant: str
    tables: tuple[int, ...]
    label: str
    millions: float
    giga_macs: float
    images_per_s: int
    top1: float
    note: str = ""


ABLATION_ROWS: tuple[AblationRow, ...] = (
    AblationRow(
        *("t-plain", (6,), "CPE without OPE; DSSA", 29.3, 4.3, 755, 81.7),
        note="it is the row as described, without GSA; with GSA it would be 29.2 M and 4.3 G",
    ),
    AblationRow("t-dssa", (6,), "DSSA", 32.1, 4.4, 746, 82.0),
    AblationRow("t-zero", (6,), "DSSA, GSA; window tokens fixed at zero", 31.2, 4.5, 738, 82.3),
    AblationRow("t", (6, 7), "DSSA, GSA; learned window tokens", 31.2, 4.5, 738, 82.5),
    AblationRow("t-average", (7,), "average pooling", 31.2, 4.5, 743, 82.1),
    AblationRow("t-depthwise", (7,), "depthwise convolution", 31.3, 4.5, 735, 82.3),
)
"""In the tables' order: each row of Table 6 adds to the one before it, so that tokens are zero until the last.

We count what they print, but of ``t-plain``: 30.1 M and 4.2 G for 29.3 M and 4.3 G. No reading without GSA gives these;
with it 29.2 M and 4.3 G are near, and a PEG after every block, of which the paper says nothing, would make it 29.3 M.
"""


def ablation_row(variant: str) -> AblationRow | None:
    """What the paper's ablations report of a variant."""
    return next((row for row in ABLATION_ROWS if row.variant == variant), None)


def _ablation(name: str, grouped_side: int, representation: Representation, embedding: Embedding) -> Variant:
    row = next(row for row in ABLATION_ROWS if row.variant == name)
    published = Published(row.top1, row.images_per_s)
    return Variant(name, VARIANTS["t"].channels, _sides(3, grouped_side), published, representation, embedding)


ABLATIONS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        _ablation("t-plain", WINDOW_SIDE, "zero", "plain"),
        _ablation("t-dssa", WINDOW_SIDE, "zero", "overlapping"),
        _ablation("t-zero", GROUPED_SIDE, "zero", "overlapping"),
        _ablation("t-average", GROUPED_SIDE, "average", "overlapping"),
        _ablation("t-depthwise", GROUPED_SIDE, "depthwise", "overlapping"),
    )
}
"""SepViT-T with other choices, as the paper's Tables 6 and 7 have it."""


def variant_named(name: str) -> Variant:
    """Look a variant up by its name, the paper's ablations among them.

    Raises:
        OptionError: there is none of that name.
    """
    try:
        return VARIANTS.get(name) or ABLATIONS[name]
    except KeyError:
        raise OptionError(
            f"there is no variant {name!r}",
            expected=f"one of {', '.join(VARIANTS)}, or an ablation",
            hint="type: sepvit-deploy variants --ablations",
        ) from None


@dataclass(frozen=True)
class BlockShape:
    """The numbers of one block on a given map; ``windows`` is 0 for a block without PWA."""

    stage: int
    block: int
    side: int
    channels: int
    pixels: int
    padded_pixels: int
    windows: int
    representation: Representation = "learned"

    @property
    def name(self) -> str:
        """``stage1.block0``: the address that taps, graphs and reports share."""
        return f"stage{self.stage}.block{self.block}"

    @property
    def tokens(self) -> int:
        """Window tokens that go through DWA, one for each window or none."""
        return self.windows if self.representation in ("learned", "zero") else 0

    @property
    def attention_macs(self) -> int:
        """Multiply-accumulates of the two products in DWA and of the two in PWA, which no weight takes part in."""
        tokens, window = self.padded_pixels + self.tokens, self.side**2 + (1 if self.tokens else 0)
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
                representation=variant.representation,
            )


def _patch_weights(variant: Variant) -> Iterator[tuple[int, int]]:
    """C of each stage, and how many weights the convolution of its patch embedding has."""
    for stage, (inputs, channels) in enumerate(pairwise((3, *variant.channels))):
        stride = 4 if stage == 0 else 2
        kernel = 2 * stride - 1 if variant.embedding == "overlapping" else stride
        yield channels, channels * inputs * kernel**2


def count_parameters(variant: Variant, task: Task = "classify", num_classes: int = 1000) -> int:
    """Learned numbers of the model, buffers excluded; of ``segment`` those of its backbone, see `heads`.

    A dense backbone counts its unused ``norm`` and ``head``, as the published checkpoints hold them.
    """
    total = 0
    for channels, weights in _patch_weights(variant):
        total += weights + channels + 2 * channels  # patch embedding and its LayerNorm
        total += channels * 9 + channels  # PEG
    for shape in block_shapes(variant, task, (CLASSIFY_SIZE, CLASSIFY_SIZE)):
        c = shape.channels
        total += 2 * 2 * c  # two LayerNorms
        total += 3 * c * c + 3 * c  # QKV
        total += c * c + c  # proj
        total += 2 * MLP_RATIO * c * c + (MLP_RATIO + 1) * c  # MLP
        if shape.windows:
            total += 2 * c + 2 * c * c + 2 * c  # PWA's LayerNorm and QK
            if task == "classify" and shape.representation == "learned":
                total += shape.windows * c
            if shape.representation == "depthwise":
                total += shape.side**2 * c + c
    if task != "classify":
        total += sum(2 * c for c in variant.channels)  # a LayerNorm for each feature map
    last = variant.channels[-1]
    return total + 2 * last + last * num_classes + num_classes


def block_macs(shape: BlockShape) -> int:
    """Multiply-accumulates of one block as the paper writes it; its PEG and patch embedding are not of the block.

    Complexity of DWA and PWA: section 3.3 of the paper.
    """
    c, tokens = shape.channels, shape.padded_pixels + shape.tokens
    return (
        3 * tokens * c * c  # QKV
        + filter_macs(shape)
        + 2 * shape.windows * c * c  # PWA's QK
        + shape.attention_macs
        + shape.pixels * c * c  # proj
        + 2 * MLP_RATIO * shape.pixels * c * c
    )


def filter_macs(shape: BlockShape) -> int:
    """Multiply-accumulates of the depthwise convolution that stands for a window's token, 0 without it."""
    return shape.windows * shape.side**2 * shape.channels if shape.representation == "depthwise" else 0


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
    for (height, width), (channels, weights) in zip(map_sizes(size), _patch_weights(variant), strict=True):
        total += height * width * (weights + channels * 9)  # patch embedding, PEG
    total += sum(block_macs(shape) for shape in block_shapes(variant, task, size))
    return total + (variant.channels[-1] * num_classes if task == "classify" else 0)
