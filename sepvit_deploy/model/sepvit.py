"""SepViT as arXiv 2203.15380 writes it: the reference that every later form of the model is compared with.

    Figure 2  the hierarchy: overlapping patch embeddings, four stages        SepViT, SepViTBackbone, Stage
    Figure 3  the separable attention: DWA inside windows, PWA between them   DWA, PWA, SeparableAttention
              grouped windows (GSA): the same with a 2 x 2 group as one window
    Eq. 1-3   a block                                                         Block
    Tables 6, 7 of v3: what ablations choose between                          `choices`

Shapes: B batch, H x W map, C channels, M window side, K windows, N = M * M pixels of a window, T tokens of a window
(N, or N + 1 with a window token), h heads, d = 32 head width. Maps travel channels last, (B, H, W, C).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sepvit_deploy.model.choices import WindowSummary, patches, window_summary
from sepvit_deploy.variants import (
    CLASSIFY_SIZE,
    HEAD_WIDTH,
    MLP_RATIO,
    STRIDES,
    Representation,
    Task,
    Variant,
    block_shapes,
)

EPS = 1e-6
"""LayerNorm's epsilon, except where torch's default of 1e-5 stands: in patch embeddings and on PWA's window tokens."""


def window_partition(x: Tensor, side: int) -> Tensor:
    """(B, H, W, C) -> (B, K, N, C): windows row by row, pixels row by row in each; pads right and bottom with zeros."""
    b, height, width, c = x.shape
    bottom, right = -height % side, -width % side
    if bottom or right:
        x = F.pad(x, (0, 0, 0, right, 0, bottom))
    rows, columns = (height + bottom) // side, (width + right) // side
    x = x.reshape(b, rows, side, columns, side, c).transpose(2, 3)
    return x.reshape(b, rows * columns, side * side, c)


def window_merge(windows: Tensor, side: int, height: int, width: int) -> Tensor:
    """(B, K, N, C) -> (B, H, W, C): undo `window_partition`, the padding cut off."""
    b, _, _, c = windows.shape
    rows, columns = -(-height // side), -(-width // side)
    x = windows.reshape(b, rows, columns, side, side, c).transpose(2, 3)
    return x.reshape(b, rows * side, columns * side, c)[:, :height, :width]


class PatchEmbedding(nn.Module):
    """A strided convolution, of patches that overlap, then LayerNorm: (B, Cin, H, W) -> (B, H', W', C)."""

    def __init__(self, proj: nn.Conv2d) -> None:
        super().__init__()
        self.proj = proj
        self.norm = nn.LayerNorm(proj.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class PEG(nn.Module):
    """Conditional position encoding (CPVT): a depthwise 3 x 3 convolution plus its input, (B, H, W, C) -> same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        return (self.conv(x) + x).permute(0, 2, 3, 1)


class DWA(nn.Module):
    """Depthwise self-attention, inside each window: (B, K, T, C) -> (B, K, T, C), with an inner shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = channels // HEAD_WIDTH
        self.qkv = nn.Linear(channels, 3 * channels)

    def forward(self, u: Tensor) -> Tensor:
        b, windows, tokens, c = u.shape
        qkv = self.qkv(u).reshape(b, windows, tokens, 3, self.heads, HEAD_WIDTH)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)  # each (B, K, h, T, d)
        attention = (q @ k.transpose(-2, -1) * HEAD_WIDTH**-0.5).softmax(dim=-1)  # (B, K, h, T, T)
        y = (attention @ v).transpose(2, 3).reshape(b, windows, tokens, c)
        return y + u


class PWA(nn.Module):
    """Pointwise self-attention, between windows: tokens (B, K, C) and pixels (B, K, N, C) -> pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = channels // HEAD_WIDTH
        self.norm = nn.LayerNorm(channels)
        self.qk = nn.Linear(channels, 2 * channels)

    def forward(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        b, windows, n, c = pixels.shape
        qk = self.qk(F.gelu(self.norm(tokens))).reshape(b, windows, 2, self.heads, HEAD_WIDTH)
        q, k = qk.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, h, K, d)
        attention = (q @ k.transpose(-2, -1) * HEAD_WIDTH**-0.5).softmax(dim=-1)  # (B, h, K, K)
        f = pixels.reshape(b, windows, n, self.heads, HEAD_WIDTH).permute(0, 3, 1, 2, 4)
        f = f.reshape(b, self.heads, windows, n * HEAD_WIDTH)
        f = attention @ f + f
        f = f.reshape(b, self.heads, windows, n, HEAD_WIDTH).permute(0, 2, 3, 1, 4)
        return f.reshape(b, windows, n, c)


class SeparableAttention(nn.Module):
    """DWA, then PWA through the window tokens: DSSA with windows of 7 x 7, GSA with groups of 14 x 14.

    With a window token first in each window (B, K, N + 1, C) -> (B, K, N, C); without PWA (B, K, N, C) -> same.

    Args:
        summary: what stands for a window in PWA: the window token, but in ablations; None without PWA.
    """

    def __init__(self, channels: int, summary: WindowSummary | None) -> None:
        super().__init__()
        self.dwa = DWA(channels)
        self.summary = summary
        self.pwa = None if summary is None else PWA(channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, u: Tensor) -> Tensor:
        y = self.dwa(u)
        return y if self.summary is None or self.pwa is None else self.pwa(*self.summary(y))


class MLP(nn.Module):
    """Linear C -> 4C, exact GELU, Linear 4C -> C."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, MLP_RATIO * channels)
        self.fc2 = nn.Linear(MLP_RATIO * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A SepViT block (Eq. 1-3), (B, H, W, C) -> same.

    Args:
        side: M, the window side: 7 for DSSA, 14 for GSA.
        windows: how many window tokens it learns; 0 with `has_pwa` means zeros, as the dense backbones have.
        has_pwa: False where one window covers the map: no window token and no PWA then.
        representation: what stands for a window in PWA; other than ``learned`` in ablations alone.
    """

    def __init__(
        self, channels: int, side: int, windows: int, *, has_pwa: bool, representation: Representation = "learned"
    ) -> None:
        super().__init__()
        self.side = side
        self.has_pwa = has_pwa
        learned = windows if representation == "learned" else 0
        summary = window_summary(representation, channels, side) if has_pwa else None
        self.has_token = summary is not None and summary.has_token
        self.window_tokens = nn.Parameter(torch.zeros(1, learned, 1, channels)) if learned else None
        self.norm1 = nn.LayerNorm(channels, eps=EPS)
        self.attention = SeparableAttention(channels, summary)
        self.norm2 = nn.LayerNorm(channels, eps=EPS)
        self.mlp = MLP(channels)

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, c = x.shape
        windows = window_partition(x, self.side)
        if self.has_token:
            b, count = windows.shape[:2]
            if self.window_tokens is None:
                tokens = windows.new_zeros(b, count, 1, c)
            else:
                tokens = self.window_tokens.expand(b, -1, -1, -1)
            windows = torch.cat((tokens, windows), dim=2)
        f = window_merge(self.attention(self.norm1(windows)), self.side, height, width)
        x = x + self.attention.proj(f)
        return x + self.mlp(self.norm2(x))


class Stage(nn.Module):
    """Patch embedding, then blocks, with PEG after the first: (B, Cin, H, W) -> (B, H', W', C)."""

    def __init__(self, embed: PatchEmbedding, blocks: list[Block], peg: PEG) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.ModuleList(blocks)
        self.peg = peg

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for j, block in enumerate(self.blocks):
            x = block(x)
            if j == 0:
                x = self.peg(x)
        return x


def _stages(variant: Variant, task: Task) -> nn.ModuleList:
    shapes = list(block_shapes(variant, task, (CLASSIFY_SIZE, CLASSIFY_SIZE)))
    stages = nn.ModuleList()
    for i, (inputs, channels) in enumerate(pairwise((3, *variant.channels))):
        embed = PatchEmbedding(patches(variant.embedding, inputs, channels, STRIDES[0] if i == 0 else 2))
        blocks = [
            Block(
                channels,
                shape.side,
                shape.windows if task == "classify" else 0,
                has_pwa=shape.windows > 0,
                representation=shape.representation,
            )
            for shape in shapes
            if shape.stage == i
        ]
        stages.append(Stage(embed, blocks, PEG(channels)))
    return stages


class SepViT(nn.Module):
    """Classification: images (B, 3, 224, 224), normalised -> logits (B, classes)."""

    task: Task = "classify"

    def __init__(self, variant: Variant, num_classes: int = 1000) -> None:
        super().__init__()
        self.variant = variant
        self.num_classes = num_classes
        self.stages = _stages(variant, self.task)
        self.norm = nn.LayerNorm(variant.channels[-1], eps=EPS)
        self.head = nn.Linear(variant.channels[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for stage in self.stages:
            x = stage(x).permute(0, 3, 1, 2)
        return self.head(self.norm(x.permute(0, 2, 3, 1)).mean(dim=(1, 2)))


class SepViTBackbone(nn.Module):
    """Dense prediction: images (B, 3, H, W) of any size -> four maps (B, C, H/s, W/s) at strides s = 4, 8, 16, 32.

    A map of a height or width that its stride does not divide is rounded up. `norm` and `head` are unused: they stand
    here because the published checkpoints hold them.
    """

    task: Task = "dense"

    def __init__(self, variant: Variant, num_classes: int = 1000) -> None:
        super().__init__()
        self.variant = variant
        self.num_classes = num_classes
        self.stages = _stages(variant, self.task)
        self.norms = nn.ModuleList(nn.LayerNorm(c, eps=EPS) for c in variant.channels)
        self.norm = nn.LayerNorm(variant.channels[-1], eps=EPS)
        self.head = nn.Linear(variant.channels[-1], num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        maps = []
        x = images
        for stage, norm in zip(self.stages, self.norms, strict=True):
            x = norm(stage(x)).permute(0, 3, 1, 2)
            maps.append(x)
        return maps[0], maps[1], maps[2], maps[3]
