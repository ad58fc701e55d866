"""Quantisation written into a graph: which numbers, and the Q/DQ nodes that carry them.

An activation becomes float -> QuantizeLinear -> DequantizeLinear, one pair for all its readers; a weight is stored as
int8 behind a DequantizeLinear. The nodes in between stay as they are: the runtime fuses them into INT8 products.

For TensorRT numbers are symmetric: q = round(x / scale), between -127 and 127, the zero-point 0. For ONNX Runtime on a
CPU activations are uint8 with a zero-point, as its INT8 products take them.

Without VNNI such a product multiplies uint8 by int8 and adds two neighbours in 16 bits, which saturate: 255 * 127 * 2
is twice the 32767 that they hold. What is written here for a CPU cannot saturate: no two neighbouring weights of one
sign add up to more than PAIR_SUM, activations within their calibrated range have codes up to CODES, and
CODES * PAIR_SUM <= 32767. An activation beyond its range has a larger code; its sums at most saturate, above what the
end of the range gives, so this clips it no more than a grid that ends there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sepvit_deploy.errors import GraphError
from sepvit_deploy.half import SMALLEST_NORMAL

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

STEPS = 127
"""Of int8 on each side of 0; -128 is not used, so that the range is symmetric."""
UNSIGNED_STEPS = 255
CODES = 193
"""Largest code of a calibrated activation that a CPU's product reads. Fewer codes leave larger sums to the weights: at
193 few columns of weights need a coarser scale than their largest weight asks for, and activations lose 0.4 bits."""
PAIR_SUM = 32767 // CODES
"""Largest sum of two neighbouring weight codes of one sign; 16 bits hold its product with CODES."""
_INT8, _UINT8 = "int8", "uint8"


@dataclass(frozen=True)
class Grid:
    """How an activation is quantised: x is about (q - zero) * scale, q of type ``kind``."""

    scale: float
    zero: int = 0
    kind: str = _INT8


@dataclass(frozen=True)
class Product:
    """A node whose input 1 is a constant to quantise, by channels of an axis or, without one, as a whole."""

    node: str
    weight: str
    axis: int | None


def symmetric(name: str, threshold: float, *, half: bool) -> Grid:
    """The grid of int8 whose outermost numbers are -threshold and threshold.

    Args:
        name: of the tensor, for the error.
        half: whether the scale will be stored in FP16.

    Raises:
        GraphError: FP16 does not hold the scale with full precision.
    """
    import numpy as np

    scale = threshold / STEPS
    if not half:
        return Grid(float(np.float32(scale)))
    if not SMALLEST_NORMAL <= scale <= float(np.finfo(np.float16).max):
        raise GraphError(
            f"{name} has the scale {scale:.3g}",
            expected=f"{SMALLEST_NORMAL:.3g} to 65504, which FP16 holds",
            hint="keep what reads it out of INT8 with --keep, or keep the rest in FP32",
        )
    return Grid(float(np.float16(scale)))


def asymmetric(minimum: float, maximum: float, *, codes: int = UNSIGNED_STEPS) -> Grid:
    """The grid of uint8 with [minimum, maximum], widened to hold 0, on the codes 0..``codes``; 0 falls on a step."""
    import numpy as np

    low, high = min(minimum, 0.0), max(maximum, 0.0)
    scale = np.float32((high - low) / codes)
    zero = int(np.clip(np.rint(-low / scale), 0, codes))
    return Grid(float(scale), zero, _UINT8)


def quantised_weight(
    values: NDArray[np.float32], axis: int | None, *, half: bool = False
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes of the weight's shape, within -127..127, and scales: (channels,) along ``axis``, () without one.

    In FP16 a scale is rounded up before the codes are taken, so that no weight is clipped and the codes fit the scale
    that is stored; so even a subnormal scale costs little. A channel of zeros has the scale of the largest.
    """
    import numpy as np

    others = tuple(i for i in range(values.ndim) if i != axis)
    largest = np.abs(values).max(axis=others if axis is not None else None, keepdims=True).astype(np.float64)
    scale = np.where(largest > 0, largest, largest.max() or 1.0) / STEPS
    if half:
        rounded = scale.astype(np.float16)
        up = np.nextafter(rounded, np.float16(np.inf))
        stored = np.where(rounded.astype(np.float64) < scale, up, rounded).astype(np.float32)
    else:
        stored = np.maximum(scale, np.finfo(np.float32).tiny).astype(np.float32)
    codes = np.clip(np.rint(values / stored), -STEPS, STEPS).astype(np.int8)
    return codes, stored.reshape(-1) if axis is not None else stored.reshape(())


def pair_safe_weight(values: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes of the weight's shape and scales (channels,) with which a CPU's product of 16-bit sums is exact.

    The scale of a channel is that of its largest weight, unless two neighbours in the order in which they are
    multiplied, along the inputs of a MatMul (in, out) or by (kh, kw, in) of a Conv (out, in, kh, kw), have one sign and
    codes that add up to more than PAIR_SUM: then it grows, in steps of 0.1 %, until they do not.
    """
    import numpy as np

    rows = values if axis == 1 else values.transpose(2, 3, 1, 0).reshape(-1, values.shape[0])
    scales = quantised_weight(rows, 1)[1].astype(np.float64)
    scales = np.maximum(scales, _pair_sums(rows.astype(np.float64)) / (PAIR_SUM + 1))  # rounding takes off up to 1
    while True:
        stored = scales.astype(np.float32)
        over = _pair_sums(np.rint(rows / stored)) > PAIR_SUM
        if not over.any():
            break
        scales = np.where(over, scales * 1.001, scales)
    shape = (1, -1) if axis == 1 else (-1, 1, 1, 1)
    return np.clip(np.rint(values / stored.reshape(shape)), -STEPS, STEPS).astype(np.int8), stored


def _pair_sums(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest |sum| of rows 2i and 2i + 1 over their numbers of one sign, by columns."""
    import numpy as np

    pairs = np.pad(rows, ((0, len(rows) % 2), (0, 0))).reshape(-1, 2, rows.shape[1])
    largest: NDArray[np.float64] = np.stack([np.maximum(pairs, 0), np.maximum(-pairs, 0)]).sum(axis=2).max(axis=(0, 1))
    return largest


def insert(
    model: onnx.ModelProto,
    grids: Mapping[str, Grid],
    readers: Mapping[str, Collection[tuple[str, int]] | None],
    products: Iterable[Product],
    *,
    pair_safe: bool = False,
    half: bool = False,
) -> onnx.ModelProto:
    """A copy of a flat float32 graph with Q/DQ.

    Args:
        grids: of the activations; each gets one pair.
        readers: of each of these, the (node, input) that read the pair; None for every one.
        products: whose weights are stored as int8; a weight that something else reads stays in float for that.
        pair_safe: with the weights of `pair_safe_weight`.
        half: whether the scales will be stored in FP16; here they are float32 numbers that FP16 holds.
    """
    import numpy as np
    import onnx
    from onnx import numpy_helper

    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    del graph.value_info[:]
    weights = {tensor.name: tensor for tensor in graph.initializer}
    of_node = {product.node: product for product in products}
    there: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for slot, name in enumerate(node.input):
            grid = grids.get(name)
            wanted = readers.get(name)
            if grid is None or (wanted is not None and (node.name, slot) not in wanted):
                continue
            if name not in there:
                there.add(name)
                graph.initializer.append(numpy_helper.from_array(np.array(grid.scale, np.float32), f"{name}/scale"))
                graph.initializer.append(numpy_helper.from_array(np.array(grid.zero, grid.kind), f"{name}/zero"))
                nodes.append(_node("QuantizeLinear", name, f"{name}/q", name, None))
                nodes.append(_node("DequantizeLinear", f"{name}/q", f"{name}/dq", name, None))
            node.input[slot] = f"{name}/dq"
        product = of_node.get(node.name)
        if product is not None and node.input[1] == product.weight:
            name = product.weight
            if name not in there:
                there.add(name)
                values = numpy_helper.to_array(weights[name])
                if pair_safe and product.axis is not None:
                    codes, scales = pair_safe_weight(values, product.axis)
                else:
                    codes, scales = quantised_weight(values, product.axis, half=half)
                graph.initializer.append(numpy_helper.from_array(codes, f"{name}/int8"))
                graph.initializer.append(numpy_helper.from_array(scales, f"{name}/scale"))
                graph.initializer.append(numpy_helper.from_array(np.zeros(scales.shape, np.int8), f"{name}/zero"))
                nodes.append(_node("DequantizeLinear", f"{name}/int8", f"{name}/dq", name, product.axis))
            node.input[1] = f"{name}/dq"
        nodes.append(node)
    read = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    return changed


def _node(op: str, source: str, target: str, tensor: str, axis: int | None) -> onnx.NodeProto:
    from onnx import helper

    node = helper.make_node(op, [source, f"{tensor}/scale", f"{tensor}/zero"], [target], f"{tensor}/{op}")
    if axis is not None:
        node.attribute.append(helper.make_attribute("axis", axis))
    return node
