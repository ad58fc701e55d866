"""A graph as the rules look at it: one flat list of nodes, with who makes and who takes each tensor, types and shapes.

The nodes of graphs inside If, Loop and Scan are in the list, each name made unique to its scope. Weights are not
copied. A graph from elsewhere may be anything: nothing here assumes that a name exists or that there is no circle.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

from sepvit_deploy import graph as graphs
from sepvit_deploy.errors import GraphError
from sepvit_deploy.lint.constants import constant, fault, type_name

if TYPE_CHECKING:
    import numpy as np
    import onnx

PROBE = 10007
"""A batch that no graph was made for, and prime: dimensions that it divides are those that grow with the batch."""
PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})
MOVES = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Identity", "Expand"})
"""Operators that pass the numbers of their first input on."""
QUANTISE, DEQUANTISE = "QuantizeLinear", "DequantizeLinear"
_KEPT_ELEMENTS = 64
"""Larger constants can hold no shape, and shape inference need not see their values."""
_READ_ELEMENTS = 1 << 20
_TYPE_OF_FIRST = MOVES | {"Concat", "Softmax", "LayerNormalization", "Gelu", "MatMul", "Gemm", "Conv", "ConvTranspose"}
_TYPE_OF_FIRST |= {"Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Exp", "Erf", "Relu", "Neg", "ReduceMean", "ReduceSum"}
_RANDOM = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli"})

Shape = tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class Node:
    """A node, its tensors named uniquely.

    Attributes:
        kind: the operator, after its domain where that is not the standard one; Q and DQ of any domain are Q and DQ.
        label: its name, or its first output, or its kind.
    """

    kind: str
    label: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    proto: onnx.NodeProto

    def input(self, position: int) -> str:
        """Name of an input; empty where the node has none there."""
        return self.inputs[position] if position < len(self.inputs) else ""

    def output(self) -> str:
        """Name of the first output; empty where there is none."""
        return self.outputs[0] if self.outputs else ""

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        return next((int(a.i) for a in self.proto.attribute if a.name == name and a.type == a.INT), default)

    def text(self, name: str, default: str) -> str:
        """An attribute of text."""
        found = (a.s.decode(errors="replace") for a in self.proto.attribute if a.name == name and a.type == a.STRING)
        return next(found, default)

    def integers(self, name: str) -> tuple[int, ...]:
        """An attribute of integers; empty where there is none."""
        return next((tuple(a.ints) for a in self.proto.attribute if a.name == name), ())


class View:
    """The main graph of a model, or one of its local functions, with the graphs inside."""

    def __init__(self, model: onnx.ModelProto, root: onnx.GraphProto | onnx.FunctionProto) -> None:
        self.model = model
        self.root = root
        self.is_main = root is model.graph
        self.opset = graphs.opset(model if self.is_main else root)
        self.functions = {(function.domain, function.name) for function in model.functions}
        self.nodes: list[Node] = []
        self.tensors: dict[str, onnx.TensorProto] = {}
        self.repeated: list[str] = []
        self._sources: dict[str, str] = {}
        self.inputs: dict[str, int] = {}
        self.outputs: set[str] = set()
        self.types: dict[str, int] = {}
        self.shapes: dict[str, Shape] = {}
        self._collect()
        self.made = Counter(name for node in self.nodes for name in node.outputs if name)
        self.producer = {name: node for node in self.nodes for name in node.outputs if name}
        self.consumers: dict[str, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                self.consumers[name].append(node)
        self._infer()

    def _collect(self) -> None:
        parts = list(graphs.nested(self.root))
        own = [set(_defined(part)) for part in parts]
        definers: dict[str, list[int]] = defaultdict(list)
        for index, names in enumerate(own):
            for name in names:
                definers[name].append(index)

        def unique(index: int, name: str) -> str:
            places = definers.get(name, [])
            if len(places) < 2:
                return name
            place = index if name in own[index] else places[0]
            return name if place == places[0] else f"{name}#{place}"

        self._parts = [(part, {name: unique(index, name) for name in own[index]}) for index, part in enumerate(parts)]
        for index, part in enumerate(parts):
            for tensor in getattr(part, "initializer", ()):
                name = unique(index, tensor.name)
                if name in self.tensors:
                    self.repeated.append(name)
                self.tensors[name] = tensor
            for value in part.input:
                kind = 0 if isinstance(value, str) else value.type.tensor_type.elem_type
                self.inputs[unique(index, _name(value))] = kind
            self.outputs |= {unique(index, _name(value)) for value in part.output}
            for proto in part.node:
                node = Node(
                    _kind(proto),
                    proto.name or next(filter(None, proto.output), "") or proto.op_type or "a node without a name",
                    tuple(unique(index, name) if name else "" for name in proto.input),
                    tuple(unique(index, name) if name else "" for name in proto.output),
                    proto,
                )
                self.nodes.append(node)
                if node.kind == "Constant" and node.output() and (tensor := constant(proto)) is not None:
                    self.tensors[node.output()] = tensor

    def _infer(self) -> None:
        self.types = {name: kind for name, kind in self.inputs.items() if kind}
        self.types |= {name: tensor.data_type for name, tensor in self.tensors.items()}
        self.shapes = {name: tuple(tensor.dims) for name, tensor in self.tensors.items()}
        if self.is_main:
            inferred = graphs.with_batch(light_copy(self.model), PROBE)
            inferred = _inferred(inferred) or inferred
            for (_, names), part in zip(self._parts, graphs.nested(inferred.graph), strict=False):
                for value in (*part.input, *part.value_info, *part.output):
                    self._note(names.get(value.name, value.name), value.type.tensor_type)
        for node in self.order:
            for name in node.outputs:
                if name not in self.types and (found := self._guess(node)):
                    self.types[name] = found

    def _note(self, name: str, tensor: onnx.TypeProto.Tensor) -> None:
        if tensor.elem_type:
            self.types.setdefault(name, tensor.elem_type)
        if tensor.HasField("shape"):
            dims = (dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
            self.shapes.setdefault(name, tuple(dims))

    def _guess(self, node: Node) -> int:
        """Type of what a node makes where shape inference gave up; 0 if unknown."""
        if node.kind == "Cast":
            return node.integer("to", 0)
        if node.kind == DEQUANTISE:
            return self.types.get(node.input(1), 0)
        return self.types.get(node.input(0), 0) if node.kind in _TYPE_OF_FIRST else 0

    @cached_property
    def order(self) -> list[Node]:
        """Nodes after those that they need; the nodes of a circle, and what needs them, are left out."""
        waiting = {node: len({n for n in node.inputs if n in self.producer}) for node in self.nodes}
        ready = [node for node in self.nodes if not waiting[node]]
        for node in ready:
            for name in {n for n in node.outputs if self.producer.get(n) is node}:
                for consumer in self.consumers[name]:
                    waiting[consumer] -= 1
                    if not waiting[consumer]:
                        ready.append(consumer)
        return ready

    @cached_property
    def fixed(self) -> set[str]:
        """Tensors that do not depend on an input of the graph."""
        fixed = set(self.tensors)
        for node in self.order:
            computed = node.kind not in _RANDOM and not any(a.HasField("g") for a in node.proto.attribute)
            needed = [name for name in node.inputs if name]
            if computed and (needed or node.kind == "Constant") and all(name in fixed for name in needed):
                fixed.update(node.outputs)
        return fixed

    @cached_property
    def takes_any_size(self) -> bool:
        """True where an input leaves more than its batch open."""
        return any(None in self.shapes.get(name, ())[1:] for name in self.inputs)

    @cached_property
    def of_shapes(self) -> set[str]:
        """Tensors that are computed from the shapes of others, not from their numbers."""
        found: set[str] = set()
        for node in self.order:
            needed = [name for name in node.inputs if name and name not in self.fixed]
            if node.kind in ("Shape", "Size") or (needed and found.issuperset(needed)):
                found.update(node.outputs)
        return found

    def type(self, name: str) -> str:
        """Type of a tensor as people write it, as FP16; empty if unknown."""
        return type_name(self.types.get(name, 0))

    def of(self, *kinds: str) -> Iterator[Node]:
        """Nodes of these kinds."""
        return (node for node in self.nodes if node.kind in kinds)

    def numbers(self, name: str) -> np.ndarray | None:
        """Numbers of a constant, flat; None where it is none, is damaged, or is too large for scales or a shape."""
        import numpy as np
        from onnx import numpy_helper

        tensor = self.tensors.get(name)
        if tensor is None or fault(tensor) or prod(tensor.dims) > _READ_ELEMENTS:
            return None
        if tensor.data_location == tensor.EXTERNAL or type_name(tensor.data_type) in (
            "STRING",
            "COMPLEX64",
            "COMPLEX128",
        ):
            return None
        with np.errstate(all="ignore"):  # NaN of an 8-bit type
            return numpy_helper.to_array(tensor).astype(np.float64).flatten()

    def came_from(self, name: str) -> str:
        """The tensor whose numbers `name` holds: the walk back through moves."""
        walked: dict[str, None] = {}
        while name not in walked:
            walked[name] = None
            if name in self._sources:
                name = self._sources[name]
                break
            node = self.producer.get(name)
            if node is not None and node.kind in MOVES:
                name = node.input(0)
        self._sources.update(dict.fromkeys(walked, name))
        return name

    def goes_to(self, name: str) -> Iterator[tuple[Node, str]]:
        """Nodes that take the numbers of `name`, the walk forward through moves, and the name that they take."""
        pending, seen = [name], {name}
        while pending:
            current = pending.pop()
            for node in self.consumers.get(current, ()):
                if node.kind in MOVES and node.input(0) == current:
                    fresh = [output for output in node.outputs if output and output not in seen]
                    seen.update(fresh)
                    pending.extend(fresh)
                else:
                    yield node, current

    def dequantiser(self, name: str) -> Node | None:
        """The DequantizeLinear that a tensor comes from through moves; of a Concat one, if all its parts have one."""
        pending, seen, found = [name], {name}, None
        while pending:
            node = self.producer.get(self.came_from(pending.pop()))
            if node is None or node.kind not in (DEQUANTISE, "Concat"):
                return None
            if node.kind == DEQUANTISE:
                found = node
                continue
            fresh = [part for part in node.inputs if part not in seen]
            seen.update(fresh)
            pending.extend(fresh)
        return found


def _kind(proto: onnx.NodeProto) -> str:
    plain = proto.domain in ("", "ai.onnx") or proto.op_type in (QUANTISE, DEQUANTISE)
    return proto.op_type if plain else f"{proto.domain}::{proto.op_type}"


def require_text(model: onnx.ModelProto) -> None:
    """Refuse names that are no text: protobuf hands them out as bytes.

    Raises:
        GraphError: a name is not UTF-8.
    """
    for part in graphs.nested(model.graph, *model.functions):
        names = [*_defined(part), *map(_name, part.output)]
        for node in part.node:
            names += (node.op_type, node.domain, node.name, *node.input, *(a.name for a in node.attribute))
        for name in (*names, part.name, getattr(part, "domain", "")):
            if isinstance(name, bytes):
                raise GraphError(f"the graph holds the name {name[:40]!r}", expected="names in UTF-8")


def _name(value: onnx.ValueInfoProto | str | bytes) -> str:
    """Name of an input or output: a function has nothing but their names."""
    return value if isinstance(value, str | bytes) else value.name  # type: ignore[return-value]


def _defined(part: onnx.GraphProto | onnx.FunctionProto) -> Iterator[str]:
    yield from map(_name, part.input)
    yield from (tensor.name for tensor in getattr(part, "initializer", ()))
    yield from (name for node in part.node for name in node.output if name)


def light_copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its large constants as inputs, and without declared shapes but those of its inputs."""
    import onnx

    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    light.graph.name = model.graph.name
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    for value in light.graph.output:
        value.type.tensor_type.ClearField("shape")
    declared = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if prod(tensor.dims) <= _KEPT_ELEMENTS:
            light.graph.initializer.append(tensor)
        elif tensor.name not in declared:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return light


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto | None:
    import onnx

    try:
        # without data_prop: it writes down every element of a long vector, of which a wrong file can have 2**40
        return onnx.shape_inference.infer_shapes(model)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, ValueError, RuntimeError):
        return None


def contradictions(model: onnx.ModelProto) -> list[str]:
    """What ONNX's shape inference says against a graph, a line for each node."""
    import onnx

    try:
        onnx.shape_inference.infer_shapes(light_copy(model), strict_mode=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        lines = (line.strip() for line in str(error).splitlines())
        return [line for line in lines if line]
    except (ValueError, RuntimeError) as error:
        return [" ".join(str(error).split())]
    return []
