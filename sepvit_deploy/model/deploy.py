"""The rewritten form of any reference model: for one size, or for images of any size.

ConvReLU        a batch norm goes into its convolution
DeployPooling   pyramid pooling of a map of known size is one matrix product
deployed        the whole: backbone, neck and head
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from sepvit_deploy.heads import POOL_SCALES
from sepvit_deploy.model.any_size import AnySizeSepViT
from sepvit_deploy.model.any_size_ops import double, pool_cells, resize_like
from sepvit_deploy.model.build import Reference
from sepvit_deploy.model.rewrite import DeployedSepViT, rewrite
from sepvit_deploy.model.segmentation import ConvBNReLU, Double, PyramidPooling, Resize, SepViTSegmenter
from sepvit_deploy.model.sepvit import SepViT
from sepvit_deploy.spec import ModelSpec
from sepvit_deploy.variants import map_sizes


class ConvReLU(nn.Module):
    """A convolution with a bias, ReLU: (B, Cin, h, w) -> (B, C, h, w)."""

    def __init__(self, block: ConvBNReLU) -> None:
        super().__init__()
        bn = block.bn
        assert bn.running_mean is not None
        assert bn.running_var is not None
        self.conv = copy.deepcopy(block.conv)
        self.conv.weight, self.conv.bias = fuse_conv_bn_weights(
            block.conv.weight, None, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


class DeployResize(nn.Module):
    """`Resize`, by our own operator; for any size a resize to the size that is there already stays, too."""

    def __init__(self, resize: Resize, *, any_size: bool) -> None:
        super().__init__()
        self.bilinear = resize.mode == "bilinear"
        self.any_size = any_size

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        if not self.any_size and x.shape[2:] == like.shape[2:]:
            return x
        return resize_like(x, like, self.bilinear)


class DeployDouble(nn.Module):
    """`Double`, by our own operator."""

    def forward(self, x: Tensor) -> Tensor:
        return double(x)


def deployed_head(module: nn.Module, size: tuple[int, int] | None) -> nn.Module:
    """A copy of a neck or head, every batch norm folded into its convolution.

    Args:
        size: height and width of the images; None for any.
    """
    if isinstance(module, ConvBNReLU):
        return ConvReLU(module)
    if isinstance(module, Resize):
        return DeployResize(module, any_size=size is None)
    if isinstance(module, Double):
        return DeployDouble()
    if isinstance(module, PyramidPooling):
        return DeployPooling(module, size)
    if not module._modules:
        return copy.deepcopy(module)
    changed = copy.copy(module)
    changed.__dict__ = {key: dict(value) if isinstance(value, dict) else value for key, value in vars(module).items()}
    changed._modules = {
        name: None if child is None else deployed_head(child, size) for name, child in module._modules.items()
    }
    return changed


def pooling_matrix(height: int, width: int) -> Tensor:
    """Averages over the cells of every scale, (h*w, 50): the columns of a scale are its cells, row by row."""

    def shares(length: int, s: int) -> Tensor:
        found = torch.zeros(length, s, dtype=torch.float64)
        for i in range(s):
            first, end = i * length // s, -(-(i + 1) * length // s)
            found[first:end, i] = 1 / (end - first)
        return found

    return torch.cat([torch.kron(shares(height, s), shares(width, s)) for s in POOL_SCALES], dim=1)


class DeployPooling(nn.Module):
    """Pyramid pooling as `PyramidPooling`, batch norm folded: for images of one size by a matrix product."""

    def __init__(self, pooling: PyramidPooling, size: tuple[int, int] | None) -> None:
        super().__init__()
        self.convs = nn.ModuleList(ConvReLU(cast(ConvBNReLU, conv)) for conv in pooling.convs)
        self.resize = deployed_head(pooling.resize, size)
        dtype = next(pooling.parameters()).dtype
        self.matrix = None if size is None else nn.Buffer(pooling_matrix(*map_sizes(size)[-1]).to(dtype))

    def pool(self, x: Tensor) -> list[Tensor]:
        """(B, C, h, w) -> (B, C, s, s) for each scale s."""
        if self.matrix is None:
            return [pool_cells(x, s) for s in POOL_SCALES]
        cells = x.reshape(-1, x.shape[1], x.shape[2] * x.shape[3]) @ self.matrix
        parts = torch.split(cells, [s * s for s in POOL_SCALES], dim=2)
        return [part.reshape(-1, x.shape[1], s, s) for part, s in zip(parts, POOL_SCALES, strict=True)]

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.resize(conv(cells), x) for conv, cells in zip(self.convs, self.pool(x), strict=True)]


class DeployedSegmenter(nn.Module):
    """Segmentation; inputs and outputs as the reference's."""

    def __init__(self, model: SepViTSegmenter, size: tuple[int, int] | None) -> None:
        super().__init__()
        self.output = model.output
        self.backbone = AnySizeSepViT(model.backbone) if size is None else DeployedSepViT(model.backbone, size)
        self.neck = deployed_head(model.neck, size)
        self.decode_head = deployed_head(model.decode_head, size)
        self.to_mask = deployed_head(model.to_mask, size)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.decode_head(self.neck(self.backbone(images)))
        return logits if self.output == "logits" else self.to_mask(logits, images)


Deployed = DeployedSepViT | AnySizeSepViT | DeployedSegmenter


def deployed(model: Reference, spec: ModelSpec) -> Deployed:
    """Apply every exact rewrite to a copy of ``model``, for images of the size or sizes that ``spec`` takes."""
    size = None if spec.any_size else spec.size
    with torch.no_grad():
        if isinstance(model, SepViTSegmenter):
            return DeployedSegmenter(model, size).eval().requires_grad_(False)
        if size is None and not isinstance(model, SepViT):
            return AnySizeSepViT(model).eval().requires_grad_(False)
        return rewrite(model, spec.size)
