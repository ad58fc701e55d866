"""Exact rewrites of SepViT for deployment: the same function, in fewer and plainer operators.

Each rewrite is a function or module of its own, tested alone; `rewrite` applies them all:

    fold_attention_scale    1/sqrt(d) goes into the q rows of the weights (DWA and PWA)
    fold_window_tokens      LayerNorm and QKV of the window tokens, which no image touches, become constants
    fold_peg_shortcut       PEG's "+ input" goes into the centre tap of its depthwise kernel
    WindowHeads             windowing and head splitting are one transpose, since linear layers commute with windowing
    DeployDWA               attention in rank 4, (B, h*K, T, d), as TensorRT fuses it
    DeploySummary           a window's depthwise convolution is a weighted average, in ablations alone
    DeployPWA               the inner shortcut A f + f is (A + I) f; with a single window it is f + f
    Linear                  a matrix product and an addition, the form that Q/DQ fusion needs

In float64 the result equals the reference to 1e-9. Between blocks, tokens stay in map order, (B, H*W, C).

Shapes: B batch, H x W map, C channels, K windows, N pixels of a window, T = N + 1 with a window token, h heads,
d = 32 head width.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sepvit_deploy.model.choices import DeploySummary
from sepvit_deploy.model.sepvit import (
    PEG,
    PWA,
    Block,
    PatchEmbedding,
    SepViT,
    SepViTBackbone,
    Stage,
)
from sepvit_deploy.variants import HEAD_WIDTH, map_sizes


def fold_attention_scale(linear: nn.Linear, channels: int) -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias (out,) of ``linear`` with 1/sqrt(d) on its first ``channels`` rows, the queries."""
    scale = torch.ones(linear.out_features, dtype=linear.weight.dtype)
    scale[:channels] = HEAD_WIDTH**-0.5
    return linear.weight.detach() * scale[:, None], linear.bias.detach() * scale


def fold_window_tokens(block: Block, windows: int) -> tuple[Tensor, Tensor]:
    """The window tokens after `norm1`, (1, K, C), and after QKV with the scale folded, (1, 3*h*K, 1, d)."""
    channels = block.norm1.normalized_shape[0]
    weight, bias = fold_attention_scale(block.attention.dwa.qkv, channels)
    tokens = block.window_tokens
    raw = torch.zeros(1, windows, channels, dtype=weight.dtype) if tokens is None else tokens.detach()[:, :, 0]
    with torch.no_grad():
        normed = block.norm1(raw)
    qkv = F.linear(normed, weight, bias).reshape(windows, -1, HEAD_WIDTH).transpose(0, 1)  # (3h, K, d)
    return normed, qkv.reshape(1, -1, 1, HEAD_WIDTH).clone()


def fold_peg_shortcut(peg: PEG) -> nn.Conv2d:
    """PEG as one depthwise convolution, (B, C, H, W) -> same."""
    conv = copy.deepcopy(peg.conv)
    with torch.no_grad():
        conv.weight[:, 0, 1, 1] += 1
    return conv


class Linear(nn.Module):
    """x @ weight + bias, with the weight stored (in, out) as the graph will hold it."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().t().contiguous())
        self.bias = nn.Parameter(bias.detach().clone())

    @classmethod
    def of(cls, linear: nn.Linear) -> Linear:
        """The same linear layer."""
        return cls(linear.weight, linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class WindowHeads:
    """Between tokens in map order, (B, Hp*Wp, m*d), and heads of windows, (B, m*K, N, d), in one transpose.

    Args:
        rows: windows down; columns: windows across; side: of a window, in tokens.
    """

    def __init__(self, rows: int, columns: int, side: int) -> None:
        self.rows, self.columns, self.side = rows, columns, side
        self.windows = rows * columns
        self.pixels = side * side

    def split(self, x: Tensor, m: int) -> Tensor:
        """(B, Hp*Wp, m*d) -> (B, m*K, N, d)."""
        if self.windows == 1:
            return x.reshape(-1, self.pixels, m, HEAD_WIDTH).transpose(1, 2)
        x = x.reshape(-1, self.rows, self.side, self.columns, self.side, m, HEAD_WIDTH)
        return x.permute(0, 5, 1, 3, 2, 4, 6).reshape(-1, m * self.windows, self.pixels, HEAD_WIDTH)

    def merge(self, x: Tensor, m: int) -> Tensor:
        """(B, m*K, N, d) in any rank -> (B, Hp*Wp, m*d)."""
        if self.windows == 1:
            return x.reshape(-1, m, self.pixels, HEAD_WIDTH).transpose(1, 2).reshape(-1, self.pixels, m * HEAD_WIDTH)
        x = x.reshape(-1, m, self.rows, self.columns, self.side, self.side, HEAD_WIDTH)
        return x.permute(0, 2, 4, 3, 5, 1, 6).reshape(-1, self.windows * self.pixels, m * HEAD_WIDTH)


class DeployDWA(nn.Module):
    """DWA on the pixels' LayerNormed tokens u, (B, Hp*Wp, C), the window tokens standing by as constants.

    Without PWA: -> (B, Hp*Wp, C). With it: -> window tokens (B, K, C) and pixels (B, h*K, N, d), or the pixels alone
    where no token went through DWA.
    """

    def __init__(self, block: Block, grid: WindowHeads) -> None:
        super().__init__()
        channels = block.norm1.normalized_shape[0]
        self.grid = grid
        self.heads = channels // HEAD_WIDTH
        self.qkv = Linear(*fold_attention_scale(block.attention.dwa.qkv, channels))
        self.has_pwa = block.has_pwa
        self.has_token = block.has_token
        if self.has_token:
            normed, qkv = fold_window_tokens(block, grid.windows)
            self.token_normed = nn.Buffer(normed)
            self.token_qkv = nn.Buffer(qkv)

    def forward(self, u: Tensor, zero: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        grid, h = self.grid, self.heads
        qkv = grid.split(self.qkv(u), 3 * h)
        if self.has_token:
            qkv = torch.cat((zero + self.token_qkv, qkv), dim=2)
        q, k, v = qkv.chunk(3, dim=1)
        y = (q @ k.transpose(2, 3)).softmax(dim=-1) @ v  # (B, h*K, T, d)
        if not self.has_pwa:
            return grid.merge(y, h) + u
        if not self.has_token:
            return y + grid.split(u, h)
        token, pixels = torch.split(y, [1, grid.pixels], dim=2)
        token = token.reshape(-1, h, grid.windows, HEAD_WIDTH).transpose(1, 2)
        token = token.reshape(-1, grid.windows, h * HEAD_WIDTH) + self.token_normed
        return token, pixels + grid.split(u, h)


class DeployPWA(nn.Module):
    """PWA: window tokens (B, K, C) and pixels (B, h*K, N, d) -> (B, h, K, N*d)."""

    def __init__(self, pwa: PWA, windows: int, pixels: int) -> None:
        super().__init__()
        channels = pwa.norm.normalized_shape[0]
        self.heads = pwa.heads
        self.windows = windows
        self.norm = copy.deepcopy(pwa.norm)
        self.qk = Linear(*fold_attention_scale(pwa.qk, channels))
        # A + I costs K*K numbers, A f + f costs K*N*d: past N*d windows (dense maps only) the shortcut stays outside.
        fold = windows <= pixels * HEAD_WIDTH
        self.identity = nn.Buffer(torch.eye(windows, dtype=pwa.qk.weight.dtype)) if fold else None

    def forward(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        if self.windows == 1:  # softmax of a single score is 1
            return pixels + pixels
        h, k = self.heads, self.windows
        qk = self.qk(F.gelu(self.norm(tokens))).reshape(-1, k, 2 * h, HEAD_WIDTH).transpose(1, 2)
        query, key = qk.chunk(2, dim=1)
        attention = (query @ key.transpose(2, 3)).softmax(dim=-1)  # (B, h, K, K)
        f = pixels.reshape(-1, h, k, pixels.shape[2] * HEAD_WIDTH)
        return attention @ f + f if self.identity is None else (attention + self.identity) @ f


class DeployAttention(nn.Module):
    """DSSA or GSA with its projection: LayerNormed tokens (B, Hp*Wp, C) -> (B, H*W, C)."""

    def __init__(self, block: Block, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width
        self.grid = WindowHeads(-(-height // block.side), -(-width // block.side), block.side)
        self.channels = block.norm1.normalized_shape[0]
        self.dwa = DeployDWA(block, self.grid)
        pwa, summary = block.attention.pwa, block.attention.summary
        self.summary: DeploySummary | None = None
        if summary is not None and not summary.has_token:
            self.summary = DeploySummary(summary, self.channels, self.grid.windows)
        self.pwa = None if pwa is None else DeployPWA(pwa, self.grid.windows, self.grid.pixels)
        self.proj = Linear.of(block.attention.proj)

    def forward(self, u: Tensor, zero: Tensor) -> Tensor:
        f = self.dwa(u, zero)
        if self.summary is not None:
            f = self.summary(f), f
        if self.pwa is not None:
            f = self.grid.merge(self.pwa(*f), self.dwa.heads)
        padded = (self.grid.rows * self.grid.side, self.grid.columns * self.grid.side)
        if padded != (self.height, self.width):
            f = f.reshape(-1, *padded, self.channels)[:, : self.height, : self.width]
            f = f.reshape(-1, self.height * self.width, self.channels)
        return self.proj(f)


class DeployMLP(nn.Module):
    """Linear, exact GELU, Linear: (B, H*W, C) -> same."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.fc1 = Linear.of(block.mlp.fc1)
        self.fc2 = Linear.of(block.mlp.fc2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class DeployBlock(nn.Module):
    """A block on tokens in map order, (B, H*W, C) -> same; pads for its windows where the map does not divide."""

    def __init__(self, block: Block, height: int, width: int) -> None:
        super().__init__()
        self.size = (height, width)
        self.pad = (-height % block.side, -width % block.side)
        self.channels = block.norm1.normalized_shape[0]
        self.norm1 = copy.deepcopy(block.norm1)
        self.attention = DeployAttention(block, height, width)
        self.norm2 = copy.deepcopy(block.norm2)
        self.mlp = DeployMLP(block)

    def forward(self, x: Tensor, zero: Tensor) -> Tensor:
        padded = x
        if any(self.pad):
            (height, width), (bottom, right) = self.size, self.pad
            padded = F.pad(x.reshape(-1, height, width, self.channels), (0, 0, 0, right, 0, bottom))
            padded = padded.reshape(-1, (height + bottom) * (width + right), self.channels)
        x = x + self.attention(self.norm1(padded), zero)
        return x + self.mlp(self.norm2(x))


class DeployEmbedding(nn.Module):
    """Patch embedding to tokens: (B, Cin, H, W) -> (B, H'*W', C)."""

    def __init__(self, embed: PatchEmbedding) -> None:
        super().__init__()
        self.proj = copy.deepcopy(embed.proj)
        self.norm = copy.deepcopy(embed.norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(_tokens(self.proj(x)))


def _tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H*W, C)."""
    return x.reshape(-1, x.shape[1], x.shape[2] * x.shape[3]).transpose(1, 2)


class DeployStage(nn.Module):
    """Embedding, blocks, and PEG after the first block: (B, Cin, H, W) -> the map (B, C, H', W')."""

    def __init__(self, stage: Stage, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width
        self.channels = stage.embed.proj.out_channels
        self.embed = DeployEmbedding(stage.embed)
        self.blocks = nn.ModuleList(DeployBlock(cast(Block, block), height, width) for block in stage.blocks)
        self.peg = fold_peg_shortcut(stage.peg)

    def map(self, x: Tensor) -> Tensor:
        """(B, H*W, C) -> (B, C, H, W)."""
        return x.transpose(1, 2).reshape(-1, self.channels, self.height, self.width)

    def forward(self, x: Tensor, zero: Tensor, *, as_map: bool) -> Tensor:
        x = self.blocks[0](self.embed(x), zero)
        x = self.peg(self.map(x))
        if len(self.blocks) == 1:
            return x if as_map else _tokens(x)
        x = _tokens(x)
        for block in self.blocks[1:]:
            x = block(x, zero)
        return self.map(x) if as_map else x


class DeployedSepViT(nn.Module):
    """Classification or dense features, for one image size and any batch; inputs and outputs as the reference's.

    The window tokens must be as many as the images in the batch, and their count is unknown while exporting. A zero
    cut from the input has it: adding a constant to that zero broadcasts without a Shape or Expand node. An image
    whose first value is not finite gives outputs that are not finite, as it does in the reference.
    """

    def __init__(self, model: SepViT | SepViTBackbone, size: tuple[int, int]) -> None:
        super().__init__()
        self.task = model.task
        self.variant = model.variant
        self.size = size
        self.stages = nn.ModuleList(
            DeployStage(cast(Stage, stage), *hw) for stage, hw in zip(model.stages, map_sizes(size), strict=True)
        )
        if isinstance(model, SepViTBackbone):
            self.norms = copy.deepcopy(model.norms)
        else:
            self.norm = copy.deepcopy(model.norm)
            self.head = Linear.of(model.head)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        zero = images[:, :1, :1, :1] * 0.0
        x, last = images, len(self.stages) - 1
        if self.task == "classify":
            for i, stage in enumerate(self.stages):
                x = stage(x, zero, as_map=i < last)
            logits: Tensor = self.head(self.norm(x).mean(dim=1))
            return logits
        maps = []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            x = cast(DeployStage, stage).map(norm(stage(x, zero, as_map=False)))
            maps.append(x)
        return tuple(maps)


def rewrite(model: SepViT | SepViTBackbone, size: tuple[int, int] = (224, 224)) -> DeployedSepViT:
    """Apply every exact rewrite to a copy of ``model``, for images of ``size`` (height, width) pixels."""
    with torch.no_grad():
        return DeployedSepViT(model, size).eval().requires_grad_(False)
