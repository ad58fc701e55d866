"""What the paper's ablations choose between (Tables 6 and 7 of arXiv 2203.15380v3): modules of one interface each.

    patch embedding           overlapping_patches, PlainPatches           images or a map to patches, a convolution
    representation of windows WindowToken, WindowAverage, WindowFilter    what stands for each window in PWA
                              DeploySummary                               the last two rewritten, as in `rewrite`

A window token, learned or zero, goes through DWA with its window. The average and the depthwise convolution are taken
of what DWA gives, as the paper takes them, and nothing joins the window before.

Shapes as in `sepvit`: B batch, K windows, N = M * M pixels of a window, C channels, h heads, d = 32 head width.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from sepvit_deploy.variants import HEAD_WIDTH, Embedding, Representation


def overlapping_patches(inputs: int, channels: int, stride: int) -> nn.Conv2d:
    """Kernel 7 at stride 4, 3 at stride 2: (B, Cin, H, W) -> (B, C, H / stride, W / stride), rounded up."""
    return nn.Conv2d(inputs, channels, 2 * stride - 1, stride, padding=stride - 1)


class PlainPatches(nn.Conv2d):
    """Patches side by side, the last ones filled with zeros: (B, Cin, H, W) -> (B, C, H / stride, W / stride).

    Attributes:
        any_size: fill up images that are whole already, too: in a graph for any size.
    """

    any_size = False

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__(inputs, channels, stride, stride)

    def forward(self, x: Tensor) -> Tensor:
        side = self.stride[0]
        whole = not self.any_size and all(n % side == 0 for n in x.shape[2:])
        # Too much to fill a patch makes none more: what is left over is not seen.
        return super().forward(x if whole else F.pad(x, (0, side - 1, 0, side - 1)))


def patches(embedding: Embedding, inputs: int, channels: int, stride: int) -> nn.Conv2d:
    """The convolution of a patch embedding."""
    make = overlapping_patches if embedding == "overlapping" else PlainPatches
    return make(inputs, channels, stride)


class WindowSummary(nn.Module):
    """What stands for each window in PWA: DWA's output (B, K, T, C) -> tokens (B, K, C) and pixels (B, K, N, C).

    Attributes:
        has_token: a window token stands first in each window when it comes to DWA, so that T is N + 1, not N.
    """

    has_token = False


class WindowToken(WindowSummary):
    """The window token after DWA."""

    has_token = True

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return y[:, :, 0], y[:, :, 1:]


class WindowAverage(WindowSummary):
    """The mean of the window's pixels; those that fill it up at the map's edge are among them."""

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return y.mean(dim=2), y


class WindowFilter(WindowSummary):
    """A depthwise convolution of M x M over the window, one value of each channel."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, side, side, groups=channels)

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        b, windows, _, c = y.shape
        side = self.conv.kernel_size
        maps = y.reshape(b * windows, *side, c).permute(0, 3, 1, 2)
        return self.conv(maps).reshape(b, windows, c), y


def window_summary(representation: Representation, channels: int, side: int) -> WindowSummary:
    """The module of a representation, for windows of ``side`` x ``side`` pixels."""
    if representation == "depthwise":
        return WindowFilter(channels, side)
    return WindowAverage() if representation == "average" else WindowToken()


class DeploySummary(nn.Module):
    """A window's average, or its depthwise convolution as a weighted one: (B, h*K, N, d) -> tokens (B, K, C).

    The products stand in the layout that DWA gives, so that a convolution needs no transposes to a map and back.
    """

    def __init__(self, summary: WindowSummary, channels: int, windows: int) -> None:
        super().__init__()
        self.windows = windows
        self.heads = channels // HEAD_WIDTH
        self.has_filter = isinstance(summary, WindowFilter)
        if isinstance(summary, WindowFilter):
            weight, bias = summary.conv.weight.detach(), cast(Tensor, summary.conv.bias).detach()
            pixels = weight.reshape(self.heads, HEAD_WIDTH, -1).transpose(1, 2)  # (h, N, d)
            self.weight = nn.Buffer((pixels * pixels.shape[1]).reshape(1, self.heads, 1, -1))
            self.bias = nn.Buffer(bias.clone())

    def forward(self, pixels: Tensor) -> Tensor:
        h, k = self.heads, self.windows
        if self.has_filter:
            weighted = pixels.reshape(-1, h, k, pixels.shape[2] * HEAD_WIDTH) * self.weight
            pixels = weighted.reshape(-1, h * k, pixels.shape[2], HEAD_WIDTH)
        tokens = pixels.mean(dim=2).reshape(-1, h, k, HEAD_WIDTH).transpose(1, 2).reshape(-1, k, h * HEAD_WIDTH)
        return tokens + self.bias if self.has_filter else tokens
