"""Semantic segmentation: SepViT's four maps, and a decode head that gives every pixel a class.

    Semantic FPN   arXiv 1901.02446   FPN (the neck), fpn_branch, FPNHead
    UperNet        arXiv 1807.10221   UPerHead, PyramidPooling

Both are what the paper's ADE20K models use. Every resize is half-pixel bilinear without antialiasing, also when it
shrinks, except in FPN's neck, where it is nearest.

Shapes: B batch, c1..c4 the backbone's maps (B, C, h, w) at strides 4, 8, 16, 32, channels first. Logits are
(B, classes, h1, w1), a mask is (B, H, W) at the size of the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sepvit_deploy.heads import (
    ADE20K_CLASSES,
    FPN_BLOCKS,
    FPN_CHANNELS,
    NECK_CHANNELS,
    POOL_SCALES,
    UPERNET_CHANNELS,
    Head,
    OutputKind,
)
from sepvit_deploy.model.sepvit import SepViTBackbone
from sepvit_deploy.variants import Task, Variant

DROPOUT = 0.1
"""Of whole channels before the classifier, while training."""


class Resize(nn.Module):
    """(B, C, h, w) to the height and width of another tensor; what has them already stays as it is."""

    def __init__(self, mode: Literal["bilinear", "nearest"] = "bilinear") -> None:
        super().__init__()
        self.mode = mode

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        if x.shape[2:] == like.shape[2:]:
            return x
        return F.interpolate(x, like.shape[2:], mode=self.mode, align_corners=None if self.mode == "nearest" else False)


class Double(nn.Module):
    """Bilinear, to twice the height and width."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, (2 * x.shape[2], 2 * x.shape[3]), mode="bilinear", align_corners=False)


def top_down(maps: list[Tensor], resize: nn.Module) -> list[Tensor]:
    """Add to each map, from the coarsest on, the sum so far, resized: maps of one width, finest first."""
    summed = [maps[-1]]
    for finer in reversed(maps[:-1]):
        summed.insert(0, finer + resize(summed[0], finer))
    return summed


class ConvBNReLU(nn.Module):
    """A convolution of stride 1 without bias, batch norm, ReLU: (B, Cin, h, w) -> (B, C, h, w)."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class FPN(nn.Module):
    """Feature pyramid neck: c1..c4 -> four maps of 256 channels, of the same sizes; neither norm nor activation."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(c, NECK_CHANNELS, 1) for c in channels)
        self.resize = Resize("nearest")
        self.outputs = nn.ModuleList(nn.Conv2d(NECK_CHANNELS, NECK_CHANNELS, 3, padding=1) for _ in channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        laterals = [lateral(c) for lateral, c in zip(self.laterals, maps, strict=True)]
        summed = top_down(laterals, self.resize)
        return [output(x) for output, x in zip(self.outputs, summed, strict=True)]


def fpn_branch(level: int) -> nn.Sequential:
    """A map of the neck to stride 4: convolutions of 128 channels, a doubling after each but on the finest map."""
    modules: list[nn.Module] = []
    for k in range(FPN_BLOCKS[level]):
        modules.append(ConvBNReLU(FPN_CHANNELS if k else NECK_CHANNELS, FPN_CHANNELS, 3))
        if level:
            modules.append(Double())
    return nn.Sequential(*modules)


class FPNHead(nn.Module):
    """The branches' sum, of the first one's size, classified: four maps of 256 channels -> logits."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(fpn_branch(level) for level in range(len(FPN_BLOCKS)))
        self.resize = Resize()
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classifier = nn.Conv2d(FPN_CHANNELS, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        first, *others = (branch(x) for branch, x in zip(self.branches, maps, strict=True))
        total = first
        for other in others:
            total = total + self.resize(other, first)
        return self.classifier(self.dropout(total))


class PyramidPooling(nn.Module):
    """Averages over grids of 1, 4, 9 and 36 cells: c4 -> a map of 512 channels and c4's size for each grid.

    A cell covers rows floor(i h / s) up to ceil((i + 1) h / s): cells overlap where s does not divide h, and repeat
    where h is less than s.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(ConvBNReLU(channels, UPERNET_CHANNELS, 1) for _ in POOL_SCALES)
        self.resize = Resize()

    def pool(self, x: Tensor) -> list[Tensor]:
        """(B, C, h, w) -> (B, C, s, s) for each scale s."""
        return [F.adaptive_avg_pool2d(x, scale) for scale in POOL_SCALES]

    def forward(self, x: Tensor) -> list[Tensor]:
        pooled = self.pool(x)
        return [self.resize(conv(cells), x) for conv, cells in zip(self.convs, pooled, strict=True)]


class UPerHead(nn.Module):
    """Pyramid pooling on c4, a top-down pyramid of 512 channels, its maps fused at stride 4: c1..c4 -> logits."""

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        width = UPERNET_CHANNELS
        self.pooling = PyramidPooling(channels[-1])
        self.bottleneck = ConvBNReLU(channels[-1] + len(POOL_SCALES) * width, width, 3)
        self.laterals = nn.ModuleList(ConvBNReLU(c, width, 1) for c in channels[:-1])
        self.outputs = nn.ModuleList(ConvBNReLU(width, width, 3) for _ in channels[:-1])
        self.resize = Resize()
        self.fusion = ConvBNReLU(len(channels) * width, width, 3)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        last = maps[-1]
        coarsest = self.bottleneck(torch.cat((last, *self.pooling(last)), dim=1))
        laterals = [lateral(c) for lateral, c in zip(self.laterals, maps[:-1], strict=True)]
        *summed, coarsest = top_down([*laterals, coarsest], self.resize)
        fused = [output(x) for output, x in zip(self.outputs, summed, strict=True)]
        fused = [fused[0], *(self.resize(x, fused[0]) for x in (*fused[1:], coarsest))]
        return self.classifier(self.dropout(self.fusion(torch.cat(fused, dim=1))))


class ToMask(nn.Module):
    """The class of every pixel of the images: (B, classes, h1, w1) -> (B, H, W) uint8; of equal logits the first."""

    def __init__(self) -> None:
        super().__init__()
        self.resize = Resize()

    def forward(self, logits: Tensor, images: Tensor) -> Tensor:
        return self.resize(logits, images).argmax(dim=1).to(torch.uint8)


class SepViTSegmenter(nn.Module):
    """Images (B, 3, H, W) of any size -> logits (B, classes, h1, w1) at stride 4, or a mask (B, H, W) of uint8.

    Attributes:
        class_names, palette: names and colours of the classes, where the checkpoint has them.
        unusable: what the checkpoint has of these in a form that cannot be used.
    """

    task: Task = "segment"

    def __init__(
        self, variant: Variant, head: Head, num_classes: int = ADE20K_CLASSES, output: OutputKind = "logits"
    ) -> None:
        super().__init__()
        self.variant = variant
        self.head = head
        self.num_classes = num_classes
        self.output = output
        self.class_names: tuple[str, ...] | None = None
        self.palette: tuple[tuple[int, int, int], ...] | None = None
        self.unusable: tuple[str, ...] = ()
        self.backbone = SepViTBackbone(variant)
        self.neck = FPN(variant.channels) if head == "fpn" else nn.Identity()
        self.decode_head = FPNHead(num_classes) if head == "fpn" else UPerHead(variant.channels, num_classes)
        self.to_mask = ToMask()

    def forward(self, images: Tensor) -> Tensor:
        logits = self.decode_head(self.neck(self.backbone(images)))
        return logits if self.output == "logits" else self.to_mask(logits, images)
