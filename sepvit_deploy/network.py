"""Matrix products and convolutions, and the type that each computes in: in an ONNX file, and in a parsed network.

The ONNX file decides; the network of a strongly typed parse must say the same, product by product. Types have
TensorRT's names: FLOAT, HALF, BF16, and INT8 where both inputs are dequantised from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sepvit_deploy.building import NetworkFacts, Precision
from sepvit_deploy.errors import AuditFailed
from sepvit_deploy.graph import nested
from sepvit_deploy.placement import layer, matching, sites

if TYPE_CHECKING:
    import onnx

TYPE_OF: dict[str, str] = {"fp32": "FLOAT", "fp16": "HALF", "int8": "INT8"}
MATMUL, CONVOLUTION = "matrix product", "convolution"
_KIND_OF_NODE = {"MatMul": MATMUL, "Gemm": MATMUL, "Conv": CONVOLUTION, "ConvTranspose": CONVOLUTION}
_KIND_OF_LAYER = {"MATRIX_MULTIPLY": MATMUL, "CONVOLUTION": CONVOLUTION, "DECONVOLUTION": CONVOLUTION}
_MOVING_NODES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
_MOVING_LAYERS = frozenset({"SHUFFLE", "SQUEEZE", "UNSQUEEZE", "IDENTITY"})
"""They pass the numbers of their first input on; the parser itself puts some before a product."""
_NAMED = 3
"""How many products an error names."""


class Product(NamedTuple):
    """A matrix product or a convolution by its node's name, and the type that it computes in."""

    name: str
    kind: str
    type: str


def products_of_graph(model: onnx.ModelProto) -> list[Product]:
    """The products of an ONNX graph, those inside its nodes included."""
    import onnx

    types = _types(model)
    made = {output: node for part in nested(model.graph) for node in part.node for output in node.output}

    def from_int8(name: str) -> bool:
        node = made.get(name)
        for _ in made:  # at most: a damaged graph may run in a circle
            if node is None or node.op_type not in _MOVING_NODES or not node.input:
                break
            node = made.get(node.input[0])
        if node is None or node.op_type != "DequantizeLinear" or not node.input:
            return False
        return types.get(node.input[0]) == onnx.TensorProto.INT8

    found = []
    for part in nested(model.graph):
        for node in part.node:
            if node.op_type in _KIND_OF_NODE and len(node.input) > 1:
                int8 = all(map(from_int8, node.input[:2]))
                kind = types.get(node.output[0], types.get(node.input[0], 0))
                name = node.name or unnamed(node)
                found.append(Product(name, _KIND_OF_NODE[node.op_type], "INT8" if int8 else _type_name(kind)))
    return found


def unnamed(node: onnx.NodeProto) -> str:
    """What a product without a name is called."""
    return f"the product that gives {node.output[0]}"


def products_of_network(network: Any) -> list[Product]:
    """The products of a parsed network, a `trt.INetworkDefinition`."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    made = {x.get_output(k).name: x for x in layers for k in range(x.num_outputs)}

    def from_int8(tensor: Any) -> bool:
        source = made.get(tensor.name) if tensor is not None else None
        while source is not None and source.type.name in _MOVING_LAYERS:
            source = made.get(source.get_input(0).name)
        return source is not None and source.type.name == "DEQUANTIZE" and source.get_input(0).dtype.name == "INT8"

    found = []
    for x in layers:
        if kind := _KIND_OF_LAYER.get(x.type.name):
            # the weights of a convolution are its second input where they are quantised, and no input elsewhere
            int8 = x.num_inputs > 1 and from_int8(x.get_input(0)) and from_int8(x.get_input(1))
            found.append(Product(x.name, kind, "INT8" if int8 else x.get_output(0).dtype.name))
    return found


def network_facts(network: Any, products: Iterable[Product]) -> NetworkFacts:
    """What is in a parsed network, a `trt.INetworkDefinition`."""
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    counts = {
        kind: Counter(product.type for product in products if product.kind == kind) for kind in (MATMUL, CONVOLUTION)
    }
    return NetworkFacts(
        layers=network.num_layers,
        matmuls=dict(counts[MATMUL]),
        convolutions=dict(counts[CONVOLUTION]),
        inputs={tensor.name: list(tensor.shape) for tensor in inputs},
        outputs={tensor.name: list(tensor.shape) for tensor in outputs},
    )


def kept_layers(model: onnx.ModelProto, keep: Sequence[str]) -> frozenset[str]:
    """Names of the nodes that the patterns of ``quantize --keep`` left in float32.

    Raises:
        OptionError: a pattern that matches nothing.
    """
    if not keep:
        return frozenset()
    group = {site.name: site.group for site in sites(model)}
    names = {n.name: (n.name, layer(n.name), group.get(layer(n.name), n.name)) for n in model.graph.node}
    matches = matching(keep, list(names.values()), option="--keep")
    return frozenset(name for name, is_kept in zip(names, matches, strict=True) if is_kept)


def require_precision(
    products: Sequence[Product],
    precision: Precision,
    *,
    name: str,
    rest: Literal["fp16", "fp32"] | None = None,
    kept: Collection[str] = (),
) -> None:
    """Refuse a file that does not compute in the precision that it is said to have.

    Args:
        name: of the file.
        rest: of an INT8 file, the precision around INT8; None for FP16.
        kept: nodes that may be in float32, in an FP16 file.

    Raises:
        AuditFailed: a product in another type, which is named; or not one in the precision asked for.
    """
    wanted = TYPE_OF[precision]
    allowed = {wanted, TYPE_OF[rest or "fp16"]} if precision == "int8" else {wanted}
    label = f"{precision.upper()} file"
    again = f"type: sepvit-deploy lint {name}; then quantize or export again"
    strangers = [p for p in products if p.type not in allowed and not (precision == "fp16" and p.name in kept)]
    if strangers:
        raise AuditFailed(
            f"{name} is an {label} with {len(strangers)} of {len(products)} products in another type: "
            + _named(strangers, lambda p: f"{p.name} in {p.type}"),
            expected=" or ".join(sorted(allowed)) + (", but for what --keep left out" if precision == "fp16" else ""),
            hint=again,
        )
    if not any(product.type == wanted for product in products):
        raise AuditFailed(
            f"{name} is an {label} without one matrix product or convolution in {wanted}",
            expected="one at least",
            hint=again,
        )


def require_same(of_graph: Sequence[Product], of_network: Sequence[Product], *, name: str) -> None:
    """Refuse a network that does not compute in the types that its file says.

    Raises:
        AuditFailed: the first products that differ are named.
    """
    types = {product.name: product.type for product in of_network}
    same = _count(of_graph) == _count(of_network)
    if same and all(types.get(product.name, product.type) == product.type for product in of_graph):
        return  # a parser may give a product another name; then its count has to do
    differing = [product for product in of_graph if types.get(product.name) != product.type]
    described = _named(
        differing, lambda p: f"{p.name} is {p.type} in the file and {types.get(p.name, 'absent')} in the network"
    )
    raise AuditFailed(
        f"the builder does not take the precision of {name} from the file: {described or _summary(of_network)}",
        expected=_summary(of_graph),
        hint="do not build it: the engine would not be what was checked",
    )


def _count(products: Iterable[Product]) -> Counter[tuple[str, str]]:
    return Counter((product.kind, product.type) for product in products)


def _summary(products: Sequence[Product]) -> str:
    counted = sorted(_count(products).items())
    return ", ".join(f"{count} {kind}s in {type_}" for (kind, type_), count in counted) or "no product"


def _named(products: Sequence[Product], describe: Callable[[Product], str]) -> str:
    more = f" and {len(products) - _NAMED} more" if len(products) > _NAMED else ""
    return ", ".join(map(describe, products[:_NAMED])) + more


def _type_name(kind: int) -> str:
    import onnx

    known = {1: "FLOAT", 10: "HALF", 16: "BF16"}
    return known.get(kind) or (onnx.TensorProto.DataType.Name(kind) if kind else "an unknown type")


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of the tensors of the main graph, as far as ONNX's inference finds it; weights are not copied."""
    import onnx

    bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    bare.graph.name = "types"
    bare.graph.node.extend(model.graph.node)
    known = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    known |= {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    for name, kind in known.items():
        bare.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, None))
    try:
        bare = onnx.shape_inference.infer_shapes(bare)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, ValueError, RuntimeError):
        return known
    return {value.name: value.type.tensor_type.elem_type for value in bare.graph.value_info} | known
