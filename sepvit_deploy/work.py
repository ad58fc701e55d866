"""What a graph needs, however it is run: multiply-accumulates by type, and bytes that must be read and written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from math import prod
from typing import TYPE_CHECKING

from sepvit_deploy import graph as graphs
from sepvit_deploy.latency import Work
from sepvit_deploy.network import products_of_graph, unnamed

if TYPE_CHECKING:
    import onnx

Shapes = Mapping[str, tuple[int | None, ...]]
UNCOUNTED = frozenset(
    {"Attention", "ConvInteger", "ConvTranspose", "DeformConv", "Einsum", "GRU", "LSTM", "MatMulInteger", "QLinearConv"}
    | {"QLinearMatMul", "RNN"}
)
"""Standard operators that multiply, too, and are none of SepViT's."""
NAMES: dict[str, str] = {"FLOAT": "FP32", "HALF": "FP16"}
"""Of TensorRT's types, those that are called otherwise here."""


def kind_of(node: onnx.NodeProto) -> str:
    """The operator's name, after its domain where that is not the standard one."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def input_of(node: onnx.NodeProto, position: int) -> str:
    """Name of an input; empty where the node has none there."""
    return node.input[position] if position < len(node.input) else ""


def batch_of(model: onnx.ModelProto, shapes: Shapes) -> int:
    """Images in a batch: the first dimension of the first input of rank 4."""
    images = [shape for value in model.graph.input if len(shape := shapes.get(value.name, ())) == 4]
    return (images[0][0] if images else None) or 1


def macs_of(nodes: Iterable[onnx.NodeProto], shapes: Shapes) -> int | None:
    """Multiply-accumulates of Conv, MatMul and Gemm: outputs times what is summed for each; None where not known."""
    total = 0
    for node in nodes:
        kind = kind_of(node)
        if kind not in ("Conv", "MatMul", "Gemm"):
            continue
        output, first, second = (shapes.get(n, (None,)) for n in (node.output[0], input_of(node, 0), input_of(node, 1)))
        if kind == "Conv":
            summed: tuple[int | None, ...] = second[1:]
        elif kind == "MatMul":
            summed = first[-1:]
        else:
            transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
            summed = first[:1] if transposed else first[-1:]
        product = _known_product((*output, *summed))
        if product is None:
            return None
        total += product
    return total


def work_of(model: onnx.ModelProto) -> Work | None:
    """The work of a graph; None where its shapes stay unknown, or it computes with operators of a runtime's own.

    Raises:
        GraphError: the graph contradicts itself.
    """
    import onnx

    nodes = [node for part in graphs.nested(model.graph, *model.functions) for node in part.node]
    if any("::" in kind_of(node) or node.op_type in UNCOUNTED for node in nodes):
        return None
    shapes = graphs.static_shapes(graphs.with_batch(model, 1))
    batch = batch_of(model, shapes)
    types = {product.name: NAMES.get(product.type, product.type) for product in products_of_graph(model)}
    macs: Counter[str] = Counter()
    for node in nodes:
        found = macs_of([node], shapes)
        if found is None:
            return None
        if found:
            macs[types[node.name or unnamed(node)]] += found // batch
    ends = [shapes.get(value.name, (None,)) for value in (*model.graph.input, *model.graph.output)]
    sizes = [_known_product(shape) for shape in ends]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return None
    weights = sum(
        onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * prod(tensor.dims)
        for tensor in model.graph.initializer
    )
    return Work(dict(macs), weights, 4 * sum(known) // batch)


def _known_product(dims: tuple[int | None, ...]) -> int | None:
    known = [dim for dim in dims if dim is not None]
    return prod(known) if len(known) == len(dims) else None
