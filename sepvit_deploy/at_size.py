"""A graph of any size at one size: its shapes written in, and what computes shapes computed.

ONNX's own inference stops at the first division of a shape; a graph of any size divides by the sides of windows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sepvit_deploy import graph as graphs

if TYPE_CHECKING:
    import numpy as np
    import onnx

    Array = np.ndarray[Any, Any]

MOST_ELEMENTS = 1024
"""Of a tensor that may be a shape, or a part of one; larger ones are left to the runtime."""


def at_size(model: onnx.ModelProto, size: tuple[int, int]) -> onnx.ModelProto:
    """The graph for one image of a height and width: a copy, or the graph itself where its inputs have a size.

    Nodes that compute shapes become constants, as far as they are known.
    """
    import onnx

    weights = {tensor.name for tensor in model.graph.initializer}
    free = {
        value.name
        for value in model.graph.input
        if value.name not in weights
        and len(dims := value.type.tensor_type.shape.dim) == 4
        and not (dims[2].dim_value and dims[3].dim_value)
    }
    if not free:
        return model
    fixed = graphs.with_batch(model, 1)
    for value in fixed.graph.input:
        if value.name in free:
            for dim, side in zip(value.type.tensor_type.shape.dim[2:], size, strict=True):
                dim.dim_value = dim.dim_value or side
    folding = _Folding(fixed)
    left = [node for node in fixed.graph.node if not folding.computed(node)]
    del fixed.graph.node[:]
    fixed.graph.node.extend(left)
    used = {name for node in left for name in node.input}
    fixed.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name)
        for name, value in folding.values.items()
        if name in used and name not in weights
    )
    return fixed


class _Folding:
    """Walks a graph in its order: the shape of every tensor, and the numbers of those that are small and known."""

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnx

        self._opset = graphs.opset(model)
        self._types = {value.name: value.type for value in model.graph.input}
        self.values: dict[str, Array] = {}
        for tensor in model.graph.initializer:
            self._types[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
            if math.prod(tensor.dims) <= MOST_ELEMENTS:
                self.values[tensor.name] = onnx.numpy_helper.to_array(tensor)

    def computed(self, node: onnx.NodeProto) -> bool:
        """Take a node in; True where its outputs are known numbers, and nothing is left of it to run."""
        self._infer(node)
        small = all(0 < _elements(self._types.get(name)) <= MOST_ELEMENTS for name in node.output)
        found = self._values(node) if small else []
        self.values.update(zip(node.output, found, strict=False))
        return bool(found)

    def _infer(self, node: onnx.NodeProto) -> None:
        """The types of a node's outputs, where ONNX finds them."""
        import onnx

        if not all(name in self._types for name in node.input if name):
            return
        types = {name: self._types[name] for name in node.input if name}
        data = {name: onnx.numpy_helper.from_array(self.values[name]) for name in node.input if name in self.values}
        opsets = [onnx.helper.make_opsetid("", self._opset)]
        try:
            schema = onnx.defs.get_schema(node.op_type, self._opset, node.domain)
            found = onnx.shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=opsets)
        except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError, RuntimeError, ValueError):
            return
        self._types.update(found)

    def _values(self, node: onnx.NodeProto) -> list[Array]:
        """What a node gives, where that follows from what is known; else []."""
        import numpy as np
        from onnx.reference import ReferenceEvaluator

        if node.domain or any(attribute.HasField("g") for attribute in node.attribute):
            return []
        if node.op_type == "Shape":
            dims = _dims(self._types.get(node.input[0]))
            ends = {attribute.name: attribute.i for attribute in node.attribute}
            known = dims[ends.get("start", 0) : ends.get("end", len(dims))] if dims is not None else [None]
            return [] if None in known else [np.array(known, np.int64)]
        if not all(name in self.values for name in node.input if name):
            return []
        inputs = {name: self.values[name] for name in node.input if name}
        try:
            found = ReferenceEvaluator(node, opsets={"": self._opset}).run(None, inputs)
        except (RuntimeError, TypeError, ValueError, IndexError):  # also where it does not know the operator
            return []
        return [np.asarray(value) for value in found]


def _dims(kind: onnx.TypeProto | None) -> list[int | None] | None:
    if kind is None or not kind.tensor_type.HasField("shape"):
        return None
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.tensor_type.shape.dim]


def _elements(kind: onnx.TypeProto | None) -> int:
    """0 where it is not known."""
    dims = _dims(kind)
    return 0 if dims is None else math.prod(dim or 0 for dim in dims)
