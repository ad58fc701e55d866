"""Steps that the exporter does not look into: each an operator of torch, with a form of our own in plain ONNX.

While a model for any size is exported its images have one size, which an ordinary reshape would keep in the graph. Of
these operators come nodes that read sizes from what flows through them. Where the size is known, a resize becomes one
with constant scales: the exporter's own would compute with the shape, for the sake of the batch.

    reshape         with ONNX's 0, which keeps a dimension, and -1, which infers it
    pad_windows     (B, H, W, C) to whole windows
    split_windows   (B, rows*M, columns*M, m*d) -> (B, m, K, N, d)
    merge_windows   (B, m, K, N*d) -> (B, H, W, m*d), H and W those of another map
    resize_like     (B, C, h, w) to the height and width of another tensor
    double          (B, C, h, w) -> (B, C, 2h, 2w), bilinear
    pool_cells      pyramid pooling: averages over a grid of s x s cells, (B, C, h, w) -> (B, C, s, s)

Shapes: M side of a window, K windows, N = M * M, d = 32 head width, m heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sepvit_deploy.variants import HEAD_WIDTH

if TYPE_CHECKING:
    from onnxscript import ir

_operator = torch.library.custom_op


def _grid(height: int, width: int, side: int) -> tuple[int, int]:
    """Rows and columns of windows."""
    return (height + side - 1) // side, (width + side - 1) // side


@_operator("sepvit_deploy::reshape", mutates_args=())
def reshape(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Reshape; 0 keeps the dimension in its place, -1 infers one."""
    return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(shape)]).clone()


@reshape.register_fake
def _(x: Tensor, shape: Sequence[int]) -> Tensor:
    return x.new_empty(x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(shape)]).shape)


@_operator("sepvit_deploy::pad_windows", mutates_args=())
def pad_windows(x: Tensor, side: int) -> Tensor:
    """Add zeros on the right and at the bottom, up to whole windows."""
    height, width = x.shape[1:3]
    rows, columns = _grid(height, width, side)
    return F.pad(x, (0, 0, 0, columns * side - width, 0, rows * side - height)).clone()


@pad_windows.register_fake
def _(x: Tensor, side: int) -> Tensor:
    rows, columns = _grid(x.shape[1], x.shape[2], side)
    return x.new_empty((x.shape[0], rows * side, columns * side, x.shape[3]))


@_operator("sepvit_deploy::split_windows", mutates_args=())
def split_windows(x: Tensor, side: int) -> Tensor:
    """Heads of windows, from a map of whole windows."""
    b, height, width, c = x.shape
    x = x.reshape(b, height // side, side, width // side, side, c // HEAD_WIDTH, HEAD_WIDTH)
    return x.permute(0, 5, 1, 3, 2, 4, 6).reshape(b, c // HEAD_WIDTH, -1, side * side, HEAD_WIDTH).clone()


@split_windows.register_fake
def _(x: Tensor, side: int) -> Tensor:
    b, height, width, c = x.shape
    windows = (height // side) * (width // side)
    return x.new_empty((b, c // HEAD_WIDTH, windows, side * side, HEAD_WIDTH))


@_operator("sepvit_deploy::merge_windows", mutates_args=())
def merge_windows(x: Tensor, like: Tensor, side: int) -> Tensor:
    """Undo `split_windows` and `pad_windows` of a map of the height and width of ``like``, (B, H, W, any)."""
    b, heads = x.shape[:2]
    height, width = like.shape[1:3]
    rows, columns = _grid(height, width, side)
    x = x.reshape(b, heads, rows, columns, side, side, HEAD_WIDTH).permute(0, 2, 4, 3, 5, 1, 6)
    return x.reshape(b, rows * side, columns * side, heads * HEAD_WIDTH)[:, :height, :width].clone()


@merge_windows.register_fake
def _(x: Tensor, like: Tensor, side: int) -> Tensor:
    return x.new_empty((x.shape[0], like.shape[1], like.shape[2], x.shape[1] * HEAD_WIDTH))


@_operator("sepvit_deploy::resize_like", mutates_args=())
def resize_like(x: Tensor, like: Tensor, bilinear: bool) -> Tensor:
    """Resize: half-pixel bilinear, or nearest."""
    if bilinear:
        return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False).clone()
    return F.interpolate(x, like.shape[2:], mode="nearest").clone()


@resize_like.register_fake
def _(x: Tensor, like: Tensor, bilinear: bool) -> Tensor:
    return x.new_empty((*x.shape[:2], *like.shape[2:]))


@_operator("sepvit_deploy::double", mutates_args=())
def double(x: Tensor) -> Tensor:
    """Resize to twice the height and width."""
    return F.interpolate(x, (2 * x.shape[2], 2 * x.shape[3]), mode="bilinear", align_corners=False)


@double.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]))


@_operator("sepvit_deploy::pool_cells", mutates_args=())
def pool_cells(x: Tensor, scale: int) -> Tensor:
    """Adaptive average pooling to ``scale`` x ``scale``."""
    return F.adaptive_avg_pool2d(x, scale).clone()


@pool_cells.register_fake
def _(x: Tensor, scale: int) -> Tensor:
    return x.new_empty((*x.shape[:2], scale, scale))


def scale_to(length: int, wanted: int) -> float:
    """The float32 scale by which ``length`` becomes ``wanted`` when rounded down, as ONNX's Resize does.

    Not a hair too small: runtimes multiply in float32, and shape inference exactly.
    """
    scale = torch.tensor(wanted / length, dtype=torch.float32)
    while float(scale) * length < wanted:
        scale = torch.nextafter(scale, torch.tensor(torch.inf))
    return float(scale)


def translations(*, any_size: bool) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Each operator's form in ONNX, for the exporter.

    Args:
        any_size: of a graph that holds no size.
    """
    from onnxscript import opset18

    op: Any = opset18  # its own types are those of eager values, not of a graph under construction

    def ints(*values: int) -> ir.Value:
        return op.Constant(value_ints=values)

    def length(x: ir.Value, axis: int) -> int:
        """A dimension that is known."""
        found = None if x.shape is None else x.shape[axis]
        assert isinstance(found, int)
        return found

    def height_width(x: ir.Value, first: int) -> ir.Value:
        return op.Slice(op.Shape(x), ints(first), ints(first + 2), ints(0))

    def grid(hw: ir.Value, side: int) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Rows and columns, each (1,), and the padded height and width (2,), from ``hw`` (2,)."""
        windows = op.Div(op.Add(hw, ints(side - 1)), ints(side))
        rows, columns = op.Slice(windows, ints(0), ints(1), ints(0)), op.Slice(windows, ints(1), ints(2), ints(0))
        return rows, columns, op.Mul(windows, ints(side))

    def onnx_reshape(x: ir.Value, shape: Sequence[int]) -> ir.Value:
        return op.Reshape(x, ints(*shape))

    def onnx_pad_windows(x: ir.Value, side: int) -> ir.Value:
        hw = height_width(x, 1)
        added = op.Sub(grid(hw, side)[2], hw)
        return op.Pad(x, op.Concat(ints(0, 0, 0, 0, 0), added, ints(0), axis=0))

    def onnx_split_windows(x: ir.Value, side: int) -> ir.Value:
        rows, columns, _ = grid(height_width(x, 1), side)
        heads = length(x, 3) // HEAD_WIDTH
        shape = op.Concat(ints(-1), rows, ints(side), columns, ints(side, heads, HEAD_WIDTH), axis=0)
        x = op.Transpose(op.Reshape(x, shape), perm=[0, 5, 1, 3, 2, 4, 6])
        return op.Reshape(x, ints(0, heads, -1, side * side, HEAD_WIDTH))

    def onnx_merge_windows(x: ir.Value, like: ir.Value, side: int) -> ir.Value:
        hw = height_width(like, 1)
        rows, columns, padded = grid(hw, side)
        heads = length(x, 1)
        x = op.Reshape(x, op.Concat(ints(-1, heads), rows, columns, ints(side, side, HEAD_WIDTH), axis=0))
        x = op.Transpose(x, perm=[0, 2, 4, 3, 5, 1, 6])
        x = op.Reshape(x, op.Concat(ints(-1), padded, ints(heads * HEAD_WIDTH), axis=0))
        return op.Slice(x, ints(0, 0), hw, ints(1, 2))

    def resize(x: ir.Value, scales: ir.Value | None, sizes: ir.Value | None, *, bilinear: bool) -> ir.Value:
        if bilinear:
            return op.Resize(x, None, scales, sizes, mode="linear", coordinate_transformation_mode="half_pixel")
        mode: dict[str, str] = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return op.Resize(x, None, scales, sizes, mode="nearest", **mode)

    def onnx_resize_like(x: ir.Value, like: ir.Value, bilinear: bool) -> ir.Value:
        if any_size:
            sizes = op.Concat(op.Slice(op.Shape(x), ints(0), ints(2), ints(0)), height_width(like, 2), axis=0)
            return resize(x, None, sizes, bilinear=bilinear)
        scales = [scale_to(length(x, axis), length(like, axis)) for axis in (2, 3)]
        return resize(x, op.Constant(value_floats=(1.0, 1.0, *scales)), None, bilinear=bilinear)

    def onnx_double(x: ir.Value) -> ir.Value:
        return resize(x, op.Constant(value_floats=(1.0, 1.0, 2.0, 2.0)), None, bilinear=True)

    def onnx_pool_cells(x: ir.Value, scale: int) -> ir.Value:
        for axis in (2, 3):
            side = op.Slice(op.Shape(x), ints(axis), ints(axis + 1), ints(0))
            cells = []
            for i in range(scale):
                first = op.Div(op.Mul(side, ints(i)), ints(scale))
                end = op.Div(op.Add(op.Mul(side, ints(i + 1)), ints(scale - 1)), ints(scale))
                cells.append(op.ReduceMean(op.Slice(x, first, end, ints(axis)), ints(axis), keepdims=1))
            x = op.Concat(*cells, axis=axis) if scale > 1 else cells[0]
        return x

    ours = torch.ops.sepvit_deploy
    return {
        ours.reshape.default: onnx_reshape,
        ours.pad_windows.default: onnx_pad_windows,
        ours.split_windows.default: onnx_split_windows,
        ours.merge_windows.default: onnx_merge_windows,
        ours.resize_like.default: onnx_resize_like,
        ours.double.default: onnx_double,
        ours.pool_cells.default: onnx_pool_cells,
    }
