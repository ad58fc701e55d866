"""Rules on what QuantizeLinear (Q) and DequantizeLinear (DQ) are given: types, zero points, scales, axes."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

from sepvit_deploy.lint.constants import type_name
from sepvit_deploy.lint.rule import rule
from sepvit_deploy.lint.view import DEQUANTISE, QUANTISE, Node, Shape, View

if TYPE_CHECKING:
    import numpy as np

FP16_NORMAL, FP16_MAX = 2.0**-14, 65504.0
"""Smallest normal and greatest FP16 number."""
_FLOATS = frozenset({"FP32", "FP16", "BF16", "FP64"})


@rule("zero-point", "error", "TensorRT quantises symmetrically: calibrate for zero points that are 0.")
def zero_point(view: View) -> Iterator[tuple[str, str]]:
    """Zero points other than 0, or not constant."""
    for node in view.of(QUANTISE, DEQUANTISE):
        name = node.input(2)
        if name and name not in view.fixed:
            yield node.label, f"{node.kind} computes its zero point ({name}) at run time"
        elif (wrong := _nonzero(view, name)) is not None:
            yield node.label, f"{node.kind} has the zero point {wrong:g}, expected 0"


def _nonzero(view: View, name: str) -> float | None:
    """The first zero point that is not 0."""
    numbers = view.numbers(view.came_from(name))
    if numbers is None or not len(wrong := numbers[numbers != 0]):
        return None
    return float(wrong[0])


@rule("int32-bias", "error", "TensorRT dequantises 8-bit numbers only: keep the bias in floating point.")
def int32_bias(view: View) -> Iterator[tuple[str, str]]:
    """INT32 behind DequantizeLinear."""
    for node in view.of(DEQUANTISE):
        if view.type(node.input(0)) == "INT32":
            yield node.label, f"dequantises INT32 ({node.input(0)}), as a quantised bias is written"


@rule("quantised-type", "error", "TensorRT quantises floating-point numbers to INT8, and dequantises INT8.")
def quantised_type(view: View) -> Iterator[tuple[str, str]]:
    """UINT8 that no Q made, and Q or scales of what is no floating-point number."""
    for node in view.of(QUANTISE, DEQUANTISE):
        found, scale = view.type(node.input(0)), view.type(node.input(1))
        if node.kind == QUANTISE and found and found not in _FLOATS:
            yield node.label, f"quantises {found}, expected FP32 or FP16"
        elif node.kind == DEQUANTISE and found == "UINT8" and not _made_by_q(view, node.input(0)):
            yield node.label, f"dequantises UINT8 ({node.input(0)}), expected INT8"
        if scale and scale not in _FLOATS:
            yield node.label, f"has a scale of {scale}, expected FP32 or FP16"


@rule("unsigned", "warning", "TensorRT makes INT8 of it and cuts what lies above 127 scales: quantise to INT8.")
def unsigned(view: View) -> Iterator[tuple[str, str]]:
    """Q to UINT8, which is the default where the zero point is left out."""
    for node in view.of(QUANTISE):
        if view.type(node.output()) == "UINT8" and _nonzero(view, node.input(2)) is None:
            reason = "" if node.input(2) else ", the type of a Q without a zero point"
            yield node.label, f"quantises to UINT8{reason}"


@rule("int8-constant", "error", "TensorRT takes 8-bit constants right in front of a DQ only: move the DQ there.")
def int8_constant(view: View) -> Iterator[tuple[str, str]]:
    """8-bit weights used by anything but a DQ, be it a Transpose."""
    for name, tensor in view.tensors.items():
        kind = type_name(tensor.data_type)
        if kind not in ("INT8", "INT4", "FP8"):
            continue
        if name in view.outputs:
            yield name, f"is a constant of {kind} and an output"
        for node in view.consumers.get(name, ()):
            if not _is_zero_point(view, node, name) and not (node.kind == DEQUANTISE and node.input(0) == name):
                yield node.label, f"{node.kind} takes the {kind} constant {name}"


def _is_zero_point(view: View, node: Node, name: str) -> bool:
    if node.kind == "Identity":
        return all(taker.input(2) == node.output() for taker in view.consumers.get(node.output(), ()))
    return node.kind in (QUANTISE, DEQUANTISE) and node.input(2) == name


@rule("scale-value", "error", "TensorRT takes positive scales only: calibrate again, on data that is not all zero.")
def scale_value(view: View) -> Iterator[tuple[str, str]]:
    """Scales that are zero, negative or not a number."""
    for node, scales in _scales(view):
        if not (scales > 0).all():
            worst = float(scales[~(scales > 0)][0])
            yield node.label, f"{node.kind} has the scale {worst:g} in {node.input(1)}, expected more than 0"


@rule("scale-range", "warning", "A scale must be a normal number of its type: calibrate again, or keep FP32 here.")
def scale_range(view: View) -> Iterator[tuple[str, str]]:
    """Scales that overflowed, or FP16 scales that underflowed and lost digits."""
    for node, scales in _scales(view):
        half = view.type(node.input(1)) == "FP16"
        if (scales == float("inf")).any():
            yield node.label, f"{node.input(1)} holds an infinite scale, which makes every number 0 or NaN"
        elif half and ((scales > 0) & (scales < FP16_NORMAL)).any():
            least = f"{scales[scales > 0].min():.3g}"
            yield node.label, f"{node.input(1)} holds the FP16 scale {least}, a subnormal number that has lost digits"


@rule("scale-fp16", "info", "FP16 holds scales from 6.1e-05 to 65504 without loss.")
def scale_fp16(view: View) -> Iterator[tuple[str, str]]:
    """FP32 scales that FP16 could not hold."""
    for node, scales in _scales(view):
        outside = scales[(scales > 0) & ((scales < FP16_NORMAL) | (scales > FP16_MAX)) & (scales < float("inf"))]
        if view.type(node.input(1)) == "FP32" and outside.size:
            yield node.label, f"{node.input(1)} holds the scale {outside[0]:.3g}, out of the range of FP16"


@rule("scale-constant", "warning", "TensorRT fuses Q and DQ of constant scales only: calibrate, and store the scale.")
def scale_constant(view: View) -> Iterator[tuple[str, str]]:
    """Scales that depend on the data."""
    for node in view.of(QUANTISE, DEQUANTISE):
        if node.input(1) and node.input(1) not in view.fixed:
            yield node.label, f"{node.kind} computes its scale ({node.input(1)}) at run time"


@rule("scale-count", "error", "TensorRT wants one scale, or one for each index of the axis, or whole blocks along it.")
def scale_count(view: View) -> Iterator[tuple[str, str]]:
    """Scales that are missing, or whose number or axis does not fit the tensor."""
    for node in view.of(QUANTISE, DEQUANTISE):
        if not node.input(1):
            yield node.label, f"{node.kind} has no scale"
            continue
        scales, data = view.shapes.get(node.input(1)), view.shapes.get(node.input(0))
        zeros = view.shapes.get(node.input(2))
        if scales is None or None in scales:
            continue
        count = prod(dim for dim in scales if dim is not None)
        if count == 0:
            yield node.label, f"{node.input(1)} holds no scale"
        elif zeros is not None and None not in zeros and prod(dim or 0 for dim in zeros) != count:
            yield node.label, f"{count} scales and {prod(dim or 0 for dim in zeros)} zero points, expected as many"
        elif data is not None and (problem := _misfit(scales, data, node.integer("axis", 1))):
            yield node.label, problem


def _misfit(scales: Shape, data: Shape, axis: int) -> str:
    """Why scales do not fit a tensor; empty where they do."""
    rank = len(data)
    if scales in ((), (1,)):
        return ""
    if not -rank <= axis < rank:
        return f"axis {axis} of a tensor of rank {rank}"
    axis %= rank
    if len(scales) == 1:
        fits = data[axis] is None or scales[0] == data[axis]
        return "" if fits else f"{scales[0]} scales along axis {axis}, which has {data[axis]} elements"
    blocks = [position for position, dim in enumerate(data) if position < len(scales) and scales[position] != dim]
    whole = all(data[p] is None or (data[p] or 0) % (scales[p] or 1) == 0 for p in blocks)
    if len(scales) != rank or axis < rank - 2 or not whole or set(blocks) - {axis}:
        return f"scales of shape {list(scales)} are no whole blocks along axis {axis} of {_text(data)}"
    return ""


@rule("scale-type", "warning", "ONNX Runtime refuses it: a scale has the type of what Q reads, FP16 from opset 19 on.")
def scale_type(view: View) -> Iterator[tuple[str, str]]:
    """Scales of another type than the tensor, and FP16 scales before opset 19."""
    for node in view.of(QUANTISE, DEQUANTISE):
        scale, data = view.type(node.input(1)), view.type(node.input(0))
        if scale == "FP16" and view.opset < 19:
            yield node.label, f"has an FP16 scale at opset {view.opset}, expected opset 19 or later"
        elif node.kind == QUANTISE and scale and data and scale != data and view.opset < 23:
            yield node.label, f"quantises {data} by a scale of {scale}"


@rule("blocked", "warning", "INT8 kernels take no blocks: use one scale for each output channel.")
def blocked(view: View) -> Iterator[tuple[str, str]]:
    """INT8 with scales by blocks."""
    for node in view.of(QUANTISE, DEQUANTISE):
        made = node.output() if node.kind == QUANTISE else node.input(0)
        if view.type(made) in ("INT8", "UINT8") and (
            node.integer("block_size", 0) or len(view.shapes.get(node.input(1), ())) > 1
        ):
            yield node.label, f"{node.kind} of {view.type(made)} has a scale for each block"


@rule("activation-scale", "warning", "INT8 kernels take one scale for a whole activation: calibrate per tensor.")
def activation_scale(view: View) -> Iterator[tuple[str, str]]:
    """Per-channel scales on what depends on the input."""
    for node in view.of(QUANTISE):
        shape = view.shapes.get(node.input(1), ())
        if node.input(0) not in view.fixed and len(shape) == 1 and (shape[0] or 0) > 1:
            yield node.label, f"quantises an activation by {shape[0]} scales, expected 1"


@rule("weight-axis", "warning", "INT8 kernels scale each output channel: set the DQ's axis to that of the outputs.")
def weight_axis(view: View) -> Iterator[tuple[str, str]]:
    """Per-channel scales of weights along an axis that the product sums over."""
    for node in view.of(DEQUANTISE):
        data, scales = view.shapes.get(node.input(0)), view.shapes.get(node.input(1), ())
        if node.input(0) not in view.fixed or data is None or len(scales) != 1 or (scales[0] or 0) < 2:
            continue
        axis = node.integer("axis", 1)
        if not -len(data) <= axis < len(data):
            continue
        for product, position, found in _products_of(view, node.output(), axis % len(data), len(data)):
            expected = _output_axis(product, position, len(data))
            if expected is not None and expected != found:
                yield node.label, f"scales axis {found} of the weights of {product.label}, expected axis {expected}"


def _products_of(view: View, name: str, axis: int, rank: int) -> Iterator[tuple[Node, int, int]]:
    """Takers of weights, the position that they take them at, and where `axis` is by then."""
    for node in view.consumers.get(name, ()):
        if node.kind == "Transpose":
            order = node.integers("perm") or tuple(reversed(range(rank)))
            if axis in order and len(order) == rank:
                place = order.index(axis)
                takers = view.consumers.get(node.output(), ())
                yield from ((taker, taker.inputs.index(node.output()), place) for taker in takers)
        else:
            yield node, node.inputs.index(name), axis


def _output_axis(product: Node, position: int, rank: int) -> int | None:
    """Axis of the output channels of a product's input; None where there is no rule."""
    if product.kind in ("Conv", "ConvTranspose") and position == 1:
        return 0 if product.kind == "Conv" else 1
    if product.kind == "MatMul" and rank >= 2:
        return rank - 1 if position == 1 else rank - 2
    if product.kind == "Gemm" and position < 2:
        transposed = product.integer("transB" if position else "transA", 0)
        return 1 - bool(transposed) if position else int(bool(transposed))
    return None


@rule("unpaired", "warning", "TensorRT runs INT8 between a Q and the DQs behind it: pair them, with the same scale.")
def unpaired(view: View) -> Iterator[tuple[str, str]]:
    """Q that something else than DQ reads, DQ of an activation that no Q made, and pairs of different scales."""
    for node in view.of(QUANTISE):
        takers = list(view.goes_to(node.output()))
        others = [taker for taker, _ in takers if taker.kind not in (DEQUANTISE, "Concat")]
        if others:
            yield node.label, f"{others[0].kind} ({others[0].label}) reads what Q makes, expected DQ"
        elif not takers:
            yield node.label, "nothing dequantises what Q makes"
        for taker, _ in takers:
            if taker.kind == DEQUANTISE and _other_scale(view, node, taker):
                yield taker.label, f"has another scale than the Q that it undoes, {node.label}"
    for node in view.of(DEQUANTISE):
        if node.input(0) not in view.fixed and not _made_by_q(view, node.input(0)):
            yield node.label, f"dequantises {node.input(0)}, which no Q made"


def _other_scale(view: View, first: Node, second: Node) -> bool:
    if first.input(1) == second.input(1):
        return False
    ours, theirs = view.numbers(first.input(1)), view.numbers(second.input(1))
    return ours is not None and theirs is not None and ours.tolist() != theirs.tolist()


def _made_by_q(view: View, name: str) -> bool:
    maker = view.producer.get(view.came_from(name))
    return maker is not None and maker.kind in (QUANTISE, "Concat")


def _scales(view: View) -> Iterator[tuple[Node, np.ndarray]]:
    """Q and DQ with the constant floating-point scales that they have."""
    for node in view.of(QUANTISE, DEQUANTISE):
        if (scales := view.numbers(node.input(1))) is not None:
            yield node, scales


def _text(shape: Shape) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"
