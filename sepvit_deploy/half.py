"""FP32 -> FP16 inside a graph whose inputs and outputs stay float32.

A node computes in FP16 unless it is named otherwise or its operator is not known to have an FP16 form. Where both meet,
a tensor has one Cast: it keeps its name at the precision that it is made in, its other form is ``<tensor>/half`` or
``<tensor>/float``. What only moves data between nodes in FP32 stays in FP32 with them. A Shape reads a tensor at the
precision that it is made in, and what is computed with shapes stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sepvit_deploy.errors import GraphError

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

LARGEST = 65504.0
"""The largest finite FP16."""
SMALLEST_NORMAL = 2.0**-14
"""Below, FP16 loses a bit with every halving; 2**-25 and less becomes 0."""
MOVES = frozenset({"Reshape", "Transpose", "Slice", "Split", "Concat", "Squeeze", "Unsqueeze", "Identity", "Pad"})
COMPUTES = frozenset(
    (
        *("Conv", "MatMul", "Gemm", "Add", "Sub", "Mul", "Div", "Neg", "Sqrt", "Erf", "Gelu", "Tanh", "Sigmoid"),
        *("ReduceMean", "ReduceSum", "GlobalAveragePool", "AveragePool", "Softmax", "LayerNormalization"),
        *("Relu", "Resize", "ArgMax"),
        *("QuantizeLinear", "DequantizeLinear"),
    )
)
"""Operators that take and give FP16 where they take and give FP32, but for Resize, whose scales stay FP32."""


@dataclass(frozen=True)
class Half:
    """A graph in FP16.

    Attributes:
        model: the graph.
        fp16_nodes: how many nodes compute or move FP16.
        fp32_nodes: how many compute or move FP32.
        casts: Cast nodes put in.
        subnormal: constants other than 0 that are below FP16's smallest normal number.
        zeroed: those of them that became 0.
    """

    model: onnx.ModelProto
    fp16_nodes: int
    fp32_nodes: int
    casts: int
    subnormal: int
    zeroed: int


def to_half(model: onnx.ModelProto, fp32: Callable[[onnx.NodeProto], bool]) -> Half:
    """Convert a copy of a flat graph, all but the nodes that ``fp32`` picks.

    Raises:
        GraphError: a constant is beyond FP16's range, or the type of a tensor is unknown.
    """
    import onnx

    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    graph = converted.graph
    del graph.value_info[:]
    _lift_constants(graph)
    floats = _float_tensors(converted)
    constants = {tensor.name for tensor in graph.initializer} & floats
    halves = _precisions(graph, floats, constants, fp32)
    forms = _Forms(graph, halves, floats, constants)
    nodes = [made for node, half in zip(graph.node, halves, strict=True) for made in forms.rewritten(node, half)]
    nodes += [cast for value in graph.output for cast in forms.cast(value.name, half=False)]
    del graph.node[:]
    graph.node.extend(nodes)
    subnormal, zeroed = _convert_constants(graph, forms)
    return Half(
        converted, halves.count(True), halves.count(False), len(nodes) - len(halves), subnormal=subnormal, zeroed=zeroed
    )


def _lift_constants(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes that hold a tensor into initializers."""
    lifted = [n for n in graph.node if n.op_type == "Constant" and n.attribute and n.attribute[0].name == "value"]
    for node in lifted:
        node.attribute[0].t.name = node.output[0]
        graph.initializer.append(node.attribute[0].t)
        graph.node.remove(node)


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of the float32 tensors."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        types[value.name] = value.type.tensor_type.elem_type
    for node in model.graph.node:
        for output in filter(None, node.output):
            if not types.get(output):
                raise GraphError(
                    f"the graph leaves the type of {output!r} open",
                    expected="tensors of types that shape inference finds",
                    hint="export again, without --no-simplify",
                )
    return {name for name, kind in types.items() if kind == onnx.TensorProto.FLOAT}


def _precisions(
    graph: onnx.GraphProto, floats: set[str], constants: set[str], fp32: Callable[[onnx.NodeProto], bool]
) -> list[bool | None]:
    """For each node whether it is FP16; None where it touches no float, or nothing of one but its shape.

    A node that moves data is FP32 if what it moves is made in FP32 and only read in FP32, through other moves too.
    """
    readers: dict[str, list[int]] = {}
    for i, node in enumerate(graph.node):
        for name in node.input:
            readers.setdefault(name, []).append(i)
    halves: list[bool | None] = []
    moving: set[int] = set()
    for i, node in enumerate(graph.node):
        convertible = node.op_type in MOVES | COMPUTES and node.domain in ("", "ai.onnx") and not fp32(node)
        if convertible and node.op_type in MOVES:
            moving.add(i)
        touched = node.op_type != "Shape" and any(name in floats for name in (*node.input, *node.output))
        halves.append(convertible if touched else None)
    only_fp32: set[int] = set()
    for i in sorted(moving, reverse=True):
        after = [reader for output in graph.node[i].output for reader in readers.get(output, ())]
        if all(not halves[reader] or reader in only_fp32 for reader in after):
            only_fp32.add(i)
    made = {value.name: False for value in graph.input}
    for i, node in enumerate(graph.node):
        sources = [name for name in node.input if name in floats and name not in constants]
        if i in only_fp32 and halves[i] and not any(made[name] for name in sources):
            halves[i] = False
        made.update((output, bool(halves[i])) for output in node.output)
    return halves


class _Forms:
    """The forms of every float tensor, in FP16 and in FP32: their names, and the Casts that make the second of two."""

    def __init__(
        self, graph: onnx.GraphProto, halves: list[bool | None], floats: set[str], constants: set[str]
    ) -> None:
        self._floats = floats
        self._made = {value.name: False for value in graph.input}
        self._outputs = {value.name for value in graph.output}
        self._there: set[str] = set()
        self.constants: dict[str, set[bool]] = {name: set() for name in constants}
        """The precisions that each constant is read in."""
        self.scales: set[str] = set()
        """Constants that are scales of Q/DQ nodes."""
        for node, half in zip(graph.node, halves, strict=True):
            self._made.update((output, bool(half)) for output in node.output)
            for slot, name in enumerate(node.input):
                if name in constants:
                    self.constants[name].add(self._read_as(node, slot, half))
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                self.scales.add(node.input[1])
        for name in self._outputs & constants:
            self.constants[name].add(False)

    def _read_as(self, node: onnx.NodeProto, slot: int, half: bool | None) -> bool:
        """Whether an input is read in FP16 by a node of that precision."""
        if half is None:
            return self._made.get(node.input[slot], False)
        return half and not (node.op_type == "Resize" and slot > 0)

    def name(self, tensor: str, *, half: bool) -> str:
        """What a tensor is called at one precision; a graph's output has its name in FP32."""
        if tensor in self.constants:
            original = self.constants[tensor] == {True} if half else True
        else:
            original = half == (self._made[tensor] and tensor not in self._outputs)
        return tensor if original else f"{tensor}/{'half' if half else 'float'}"

    def rewritten(self, node: onnx.NodeProto, half: bool | None) -> Iterator[onnx.NodeProto]:
        """The node at its precision, after the Casts that it is the first to need."""
        for slot, name in enumerate(node.input):
            if name in self._floats:
                read_as = self._read_as(node, slot, half)
                yield from self.cast(name, half=read_as)
                node.input[slot] = self.name(name, half=read_as)
        for slot, name in enumerate(node.output):
            if name in self._floats:
                node.output[slot] = self.name(name, half=bool(half))
        yield node

    def cast(self, tensor: str, *, half: bool) -> Iterator[onnx.NodeProto]:
        """The Cast that makes this form of a tensor, unless it is made so, or there already."""
        from onnx import TensorProto, helper

        name = self.name(tensor, half=half)
        if tensor not in self._floats or tensor in self.constants or self._made[tensor] == half or name in self._there:
            return
        self._there.add(name)
        source = self.name(tensor, half=not half)
        to = TensorProto.FLOAT16 if half else TensorProto.FLOAT
        yield helper.make_node("Cast", [source], [name], f"{tensor}/to_{'half' if half else 'float'}", to=to)


def _convert_constants(graph: onnx.GraphProto, forms: _Forms) -> tuple[int, int]:
    """Give constants the forms that are read; returns how many numbers became subnormal, and how many of these 0."""
    import numpy as np
    from onnx import numpy_helper

    subnormal = zeroed = 0
    kept = [tensor for tensor in graph.initializer if forms.constants.get(tensor.name) != {True}]
    for tensor in graph.initializer:
        if True not in forms.constants.get(tensor.name, ()):
            continue
        values = numpy_helper.to_array(tensor)
        half = _as_half(tensor.name, values)
        if tensor.name not in forms.scales:
            subnormal += int(((values != 0) & (np.abs(half) < SMALLEST_NORMAL)).sum())
            zeroed += int(((values != 0) & (half == 0)).sum())
        kept.append(numpy_helper.from_array(half, forms.name(tensor.name, half=True)))
    kept_names = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    del graph.initializer[:]
    graph.initializer.extend(tensor for tensor in kept if tensor.name in kept_names)
    return subnormal, zeroed


def _as_half(name: str, values: NDArray[np.float32]) -> NDArray[np.float16]:
    import numpy as np

    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        largest = float(np.abs(values).max())
        raise GraphError(
            f"the constant {name!r} reaches {largest:g}",
            expected=f"numbers up to {LARGEST:g}, FP16's largest",
            hint="keep its layer in FP32 with --keep, or around INT8 everything with --rest fp32",
        )
    return half
