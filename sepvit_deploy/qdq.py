"""Quantisation written into a graph: which numbers, and the Q/DQ nodes that carry them.

An activation becomes float -> QuantizeLinear -> DequantizeLinear, one pair for all its readers; a weight is stored as
int8 behind a DequantizeLinear. The nodes in between stay as they are: the runtime fuses them into INT8 products.

For TensorRT numbers are symmetric: q = round(x / scale), between -127 and 127, the zero-point 0. For ONNX Runtime on a
CPU activations are uint8 with a zero-point, as its INT8 products take them.
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
CPU_WEIGHT_STEPS = 64
"""Of weights for a CPU: without VNNI it adds two products of uint8 and int8 in 16 bits, which 255 * 127 * 2 leaves."""
UNSIGNED_STEPS = 255
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


def asymmetric(minimum: float, maximum: float) -> Grid:
    """The grid of uint8 over [minimum, maximum], widened to hold 0, which falls on a step."""
    import numpy as np

    low, high = min(minimum, 0.0), max(maximum, 0.0)
    scale = np.float32((high - low) / UNSIGNED_STEPS)
    zero = int(np.clip(np.rint(-low / scale), 0, UNSIGNED_STEPS))
    return Grid(float(scale), zero, _UINT8)


def quantised_weight(
    values: NDArray[np.float32], axis: int | None, *, steps: int = STEPS, half: bool = False
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes of the weight's shape, within -steps..steps, and scales: (channels,) along ``axis``, () without one.

    In FP16 a scale is rounded up before the codes are taken, so that no weight is clipped and the codes fit the scale
    that is stored; so even a subnormal scale costs little. A channel of zeros has the scale of the largest.
    """
    import numpy as np

    others = tuple(i for i in range(values.ndim) if i != axis)
    largest = np.abs(values).max(axis=others if axis is not None else None, keepdims=True).astype(np.float64)
    scale = np.where(largest > 0, largest, largest.max() or 1.0) / steps
    if half:
        rounded = scale.astype(np.float16)
        up = np.nextafter(rounded, np.float16(np.inf))
        stored = np.where(rounded.astype(np.float64) < scale, up, rounded).astype(np.float32)
    else:
        stored = np.maximum(scale, np.finfo(np.float32).tiny).astype(np.float32)
    codes = np.clip(np.rint(values / stored), -steps, steps).astype(np.int8)
    return codes, stored.reshape(-1) if axis is not None else stored.reshape(())


def insert(
    model: onnx.ModelProto,
    grids: Mapping[str, Grid],
    readers: Mapping[str, Collection[tuple[str, int]] | None],
    products: Iterable[Product],
    *,
    steps: int = STEPS,
    half: bool = False,
) -> onnx.ModelProto:
    """A copy of a flat float32 graph with Q/DQ.

    Args:
        grids: of the activations; each gets one pair.
        readers: of each of these, the (node, input) that read the pair; None for every one.
        products: whose weights are stored as int8; a weight that something else reads stays in float for that.
        steps: of the weights, on each side of 0.
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
                codes, scales = quantised_weight(
                    numpy_helper.to_array(weights[name]), product.axis, steps=steps, half=half
                )
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
