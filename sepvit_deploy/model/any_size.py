"""The exact rewrites of `rewrite` for images of any height and width: sizes are read from the image, not built in.

What differs from the form for one size: every map is padded, by nothing where it divides into windows; window tokens
are added to a zero cut from the windows, whose number is unknown; PWA's shortcut stays outside its product; maps stay
(B, H, W, C) between blocks. What would keep the size of the images while they are exported is in `any_size_ops`.

In float64 the result equals the reference to 1e-9. Shapes as in `rewrite`: K windows, M their side, N = M * M pixels,
T = N + 1 with a window token, h heads, d = 32 head width.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sepvit_deploy.model import any_size_ops as ops
from sepvit_deploy.model.choices import DeploySummary, PlainPatches
from sepvit_deploy.model.rewrite import (
    DeployMLP,
    Linear,
    fold_attention_scale,
    fold_peg_shortcut,
    fold_window_tokens,
)
from sepvit_deploy.model.sepvit import PWA, Block, SepViTBackbone, Stage
from sepvit_deploy.variants import HEAD_WIDTH


class AnySizeDWA(nn.Module):
    """DWA on the LayerNormed, padded map u: -> window tokens (B, K, C) and pixels (B, h*K, N, d), or pixels alone."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.side = block.side
        self.heads = block.norm1.normalized_shape[0] // HEAD_WIDTH
        self.qkv = Linear(*fold_attention_scale(block.attention.dwa.qkv, block.norm1.normalized_shape[0]))
        self.has_token = block.has_token
        if self.has_token:
            normed, qkv = fold_window_tokens(block, 1)  # zero tokens: those of every window are alike
            self.token_normed = nn.Buffer(normed)
            self.token_qkv = nn.Buffer(qkv.unsqueeze(2))  # (1, 3h, 1, 1, d)

    def forward(self, u: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        h, side = self.heads, self.side
        qkv = ops.split_windows(self.qkv(u), side)
        if self.has_token:
            qkv = torch.cat((qkv[:, :, :, :1] * 0.0 + self.token_qkv, qkv), dim=3)  # (B, 3h, K, T, d)
        tokens = side * side + self.has_token
        q, k, v = (ops.reshape(part, [0, -1, tokens, HEAD_WIDTH]) for part in qkv.chunk(3, dim=1))
        y = (q @ k.transpose(2, 3)).softmax(dim=-1) @ v
        shortcut = ops.reshape(ops.split_windows(u, side), [0, -1, side * side, HEAD_WIDTH])
        if not self.has_token:
            return y + shortcut
        token, pixels = torch.split(y, [1, side * side], dim=2)
        token = ops.reshape(ops.reshape(token, [0, h, -1, HEAD_WIDTH]).transpose(1, 2), [0, -1, h * HEAD_WIDTH])
        return token + self.token_normed, pixels + shortcut


class AnySizeSummary(DeploySummary):
    """`DeploySummary` of windows whose number is unknown."""

    def forward(self, pixels: Tensor) -> Tensor:
        h, n = self.heads, pixels.shape[2]
        if self.has_filter:
            weighted = ops.reshape(pixels, [0, h, -1, n * HEAD_WIDTH]) * self.weight
            pixels = ops.reshape(weighted, [0, -1, n, HEAD_WIDTH])
        tokens = ops.reshape(pixels.mean(dim=2), [0, h, -1, HEAD_WIDTH]).transpose(1, 2)
        tokens = ops.reshape(tokens, [0, -1, h * HEAD_WIDTH])
        return tokens + self.bias if self.has_filter else tokens


class AnySizePWA(nn.Module):
    """PWA: window tokens (B, K, C) and pixels (B, h*K, N, d) -> (B, h, K, N*d)."""

    def __init__(self, pwa: PWA) -> None:
        super().__init__()
        self.heads = pwa.heads
        self.norm = copy.deepcopy(pwa.norm)
        self.qk = Linear(*fold_attention_scale(pwa.qk, pwa.norm.normalized_shape[0]))

    def forward(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        h = self.heads
        qk = ops.reshape(self.qk(F.gelu(self.norm(tokens))), [0, -1, 2 * h, HEAD_WIDTH]).transpose(1, 2)
        query, key = qk.chunk(2, dim=1)
        attention = (query @ key.transpose(2, 3)).softmax(dim=-1)  # (B, h, K, K)
        f = ops.reshape(pixels, [0, h, -1, pixels.shape[2] * HEAD_WIDTH])
        return attention @ f + f


class AnySizeAttention(nn.Module):
    """DSSA or GSA with its projection: the LayerNormed, padded map u, and the map x before -> (B, H, W, C)."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        assert block.attention.pwa is not None
        self.dwa = AnySizeDWA(block)
        summary = block.attention.summary
        self.summary: AnySizeSummary | None = None
        if summary is not None and not summary.has_token:
            self.summary = AnySizeSummary(summary, self.dwa.heads * HEAD_WIDTH, 0)
        self.pwa = AnySizePWA(block.attention.pwa)
        self.proj = Linear.of(block.attention.proj)

    def forward(self, u: Tensor, x: Tensor) -> Tensor:
        f = self.dwa(u)
        if self.summary is not None:
            f = self.summary(f), f
        return self.proj(ops.merge_windows(self.pwa(*f), x, self.dwa.side))


class AnySizeBlock(nn.Module):
    """A block on a map, (B, H, W, C) -> same."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.side = block.side
        self.norm1 = copy.deepcopy(block.norm1)
        self.attention = AnySizeAttention(block)
        self.norm2 = copy.deepcopy(block.norm2)
        self.mlp = DeployMLP(block)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(ops.pad_windows(x, self.side)), x)
        return x + self.mlp(self.norm2(x))


class AnySizePEG(nn.Module):
    """PEG with its shortcut folded, (B, H, W, C) -> same."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.conv = fold_peg_shortcut(stage.peg)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class AnySizeStage(nn.Module):
    """Embedding, blocks, and PEG after the first: (B, Cin, H, W) -> (B, H', W', C)."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.embed = copy.deepcopy(stage.embed)
        if isinstance(self.embed.proj, PlainPatches):
            self.embed.proj.any_size = True
        self.blocks = nn.ModuleList(AnySizeBlock(cast(Block, block)) for block in stage.blocks)
        self.peg = AnySizePEG(stage)

    def forward(self, x: Tensor) -> Tensor:
        x = self.peg(self.blocks[0](self.embed(x)))
        for block in self.blocks[1:]:
            x = block(x)
        return x


class AnySizeSepViT(nn.Module):
    """The dense backbone for images of any size: (B, 3, H, W) -> four maps (B, C, h, w)."""

    def __init__(self, model: SepViTBackbone) -> None:
        super().__init__()
        self.stages = nn.ModuleList(AnySizeStage(cast(Stage, stage)) for stage in model.stages)
        self.norms = copy.deepcopy(model.norms)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = []
        x = images
        for stage, norm in zip(self.stages, self.norms, strict=True):
            x = norm(stage(x)).permute(0, 3, 1, 2)
            maps.append(x)
        return tuple(maps)
