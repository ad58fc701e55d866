"""The published decode heads for semantic segmentation, as numbers.

Semantic FPN (arXiv 1901.02446) and UperNet (arXiv 1807.10221), in the sizes that the paper's ADE20K models have.
Imports nothing heavy.

Letters: h x w a feature map, C its channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from sepvit_deploy.errors import OptionError
from sepvit_deploy.variants import Variant, block_shapes, count_macs, count_parameters, map_sizes

Head = Literal["fpn", "upernet"]
OutputKind = Literal["logits", "mask"]
"""``logits`` at stride 4, or a ``mask`` of uint8 class numbers at the size of the input."""

ADE20K_CLASSES = 150
MASK_CLASSES = 256
"""More do not fit a mask of uint8."""
MOST_CLASSES = 1 << 16
"""More do not fit a mask of uint16, which is the widest that is drawn of logits."""
NECK_CHANNELS = 256
FPN_CHANNELS = 128
FPN_BLOCKS = (1, 1, 2, 3)
"""Convolutions of FPN's branches: log2(stride / 4) of each map, at least one; as many doublings, none for the first."""
UPERNET_CHANNELS = 512
POOL_SCALES = (1, 2, 3, 6)
"""Sides of the grids that UperNet's pyramid pooling makes of the last map."""
AUXILIARY_CHANNELS = 256
AUXILIARY_CLASSES = ADE20K_CLASSES
EVALUATION_SIZE = (512, 2048)
"""Height and width for which the paper counts the MACs of its segmentation models."""


@dataclass(frozen=True)
class PublishedSegmentation:
    """What the paper reports on ADE20K: parameters (M), MACs (G) at 2048 x 512, mIoU (%) at one scale."""

    parameters_m: float
    macs_g: int
    miou: float


PUBLISHED: dict[tuple[str, Head], PublishedSegmentation] = {
    ("t", "fpn"): PublishedSegmentation(38.8, 181, 44.8),
    ("s", "fpn"): PublishedSegmentation(55.4, 244, 46.6),
    ("b", "fpn"): PublishedSegmentation(94.7, 367, 47.6),
    ("t", "upernet"): PublishedSegmentation(66.8, 940, 47.4),
    ("s", "upernet"): PublishedSegmentation(83.4, 1003, 48.6),
    ("b", "upernet"): PublishedSegmentation(124.8, 1128, 49.6),
}


def require_head(head: str | None) -> Head:
    """A head's name, checked.

    Raises:
        OptionError: there is none of that name.
    """
    for known in get_args(Head):
        if head == known:
            return known  # type: ignore[no-any-return]
    raise OptionError(
        "--task segment without --head" if head is None else f"there is no head {head!r}",
        expected=" or ".join(f"--head {known}" for known in get_args(Head)),
    )


@dataclass(frozen=True)
class Convolution:
    """One convolution of a neck or head.

    Attributes:
        side: of its square kernel.
        size: height and width of what it gives.
        bias: a bias of its own; without one a batch norm follows, with a gain and a shift for each output.
    """

    inputs: int
    outputs: int
    side: int
    size: tuple[int, int]
    bias: bool = False

    @property
    def parameters(self) -> int:
        """Learned numbers, those of its batch norm included."""
        return self.inputs * self.outputs * self.side**2 + self.outputs * (1 if self.bias else 2)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        return self.size[0] * self.size[1] * self.inputs * self.outputs * self.side**2


def convolutions(
    variant: Variant, head: Head, size: tuple[int, int], num_classes: int = ADE20K_CLASSES
) -> list[Convolution]:
    """Every convolution of neck and head for an input of ``size`` (height, width) pixels; no auxiliary head."""
    maps = map_sizes(size)
    levels = list(zip(variant.channels, maps, strict=True))
    last, width = levels[-1], UPERNET_CHANNELS
    if head == "fpn":
        found = [Convolution(c, NECK_CHANNELS, 1, hw, bias=True) for c, hw in levels]
        found += [Convolution(NECK_CHANNELS, NECK_CHANNELS, 3, hw, bias=True) for hw in maps]
        for (height, wide), blocks in zip(maps, FPN_BLOCKS, strict=True):
            for k in range(blocks):
                inputs = FPN_CHANNELS if k else NECK_CHANNELS
                found.append(Convolution(inputs, FPN_CHANNELS, 3, (height << k, wide << k)))
        return [*found, Convolution(FPN_CHANNELS, num_classes, 1, maps[0], bias=True)]
    found = [Convolution(last[0], width, 1, (scale, scale)) for scale in POOL_SCALES]
    found.append(Convolution(last[0] + len(POOL_SCALES) * width, width, 3, last[1]))
    found += [Convolution(c, width, 1, hw) for c, hw in levels[:-1]]
    found += [Convolution(width, width, 3, hw) for hw in maps[:-1]]
    found.append(Convolution(len(maps) * width, width, 3, maps[0]))
    return [*found, Convolution(width, num_classes, 1, maps[0], bias=True)]


def auxiliary_convolutions(variant: Variant, num_classes: int = AUXILIARY_CLASSES) -> list[Convolution]:
    """UperNet's auxiliary head on the third map, which only training runs."""
    size = map_sizes(EVALUATION_SIZE)[2]
    first = Convolution(variant.channels[2], AUXILIARY_CHANNELS, 3, size)
    return [first, Convolution(AUXILIARY_CHANNELS, num_classes, 1, size, bias=True)]


def count_segmentation_parameters(
    variant: Variant, head: Head, num_classes: int = ADE20K_CLASSES, *, published: bool = True
) -> int:
    """Learned numbers of a segmentation model, buffers excluded.

    Args:
        published: as a published checkpoint holds it, and as the paper counts: with UperNet's auxiliary head and the
            backbone's unused ``norm`` and ``head`` of 1000 classes. Otherwise what inference needs.
    """
    total = count_parameters(variant, "segment")
    total += sum(conv.parameters for conv in convolutions(variant, head, EVALUATION_SIZE, num_classes))
    if not published:
        return total - variant.channels[-1] * (2 + 1000) - 1000
    return total + (sum(conv.parameters for conv in auxiliary_convolutions(variant)) if head == "upernet" else 0)


def count_segmentation_macs(
    variant: Variant,
    head: Head,
    size: tuple[int, int] = EVALUATION_SIZE,
    num_classes: int = ADE20K_CLASSES,
    *,
    attention: bool = True,
) -> int:
    """Multiply-accumulates of one image in the model as the paper writes it, no auxiliary head.

    Args:
        attention: count both products of each attention, as for the other tasks. The paper's figures for
            segmentation leave them out: they count convolutions and linear layers alone.
    """
    total = count_macs(variant, "segment", size)
    if not attention:
        total -= sum(shape.attention_macs for shape in block_shapes(variant, "segment", size))
    return total + sum(conv.macs for conv in convolutions(variant, head, size, num_classes))
