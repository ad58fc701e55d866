"""What is in a graph, and is it deployable: operators, parameters, MACs, bytes, and the rules that it breaks.

A deployable SepViT needs matrix products, convolutions, normalisation, and plain moves of data. What TensorRT runs
badly or not at all, or what hides a decomposed LayerNorm or GELU, is a finding with the node's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from sepvit_deploy import graph as graphs
from sepvit_deploy.at_size import at_size
from sepvit_deploy.errors import AuditFailed
from sepvit_deploy.work import batch_of, input_of, kind_of, macs_of

if TYPE_CHECKING:
    import onnx

AIMED_AT = frozenset(
    (
        *("Conv", "MatMul", "Add", "Mul", "LayerNormalization", "Gelu", "Softmax", "ReduceMean"),
        *("Transpose", "Reshape", "Slice", "Split", "Concat", "Pad"),
    )
)
"""What SepViT needs; Pad only where a dense map does not divide into windows."""
DECODING = frozenset({"Relu", "Resize", "ArgMax", "Cast"})
"""What decode heads add for segmentation: Cast only to the uint8 of a mask, Resize only as they resize."""
GELU_BEFORE_20 = frozenset({"Erf", "Div"})
"""Below opset 20 there is no Gelu: its definition x / 2 * (1 + erf(x / sqrt 2)) is spelled out."""
PRECISION = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear"})
"""What a lower precision adds; `lint` judges where it stands."""
_UINT8 = 2
_LOWERED = frozenset({_UINT8, 3, 10})
"""onnx.TensorProto's UINT8, INT8 and FLOAT16: constants of such a type make a graph one of lower precision."""
_CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
_DATA_DEPENDENT = frozenset(
    {"NonZero", "Where", "ScatterND", "ScatterElements", "Scatter", "GatherND", "GatherElements"}
)
_SHAPE_CHAIN = frozenset({"Shape", "Size", "Expand", "Range", "ConstantOfShape"})
_ON_SHAPES = frozenset({"Shape", "Slice", "Concat", "Add", "Sub", "Mul", "Div"})
"""What a graph for images of any size computes with shapes."""
_TAKES_SHAPES = frozenset({"Reshape", "Pad", "Slice", "Resize"})
"""What takes their results, at any input but its first."""
_RESIZES = frozenset({("linear", "half_pixel"), ("nearest", "asymmetric")})
_PASSING = frozenset({"Reshape", "Identity", "Cast", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True)
class Finding:
    """A broken rule: where, and why it matters."""

    rule: str
    node: str
    reason: str


@dataclass(frozen=True)
class Audit:
    """The contents of a graph.

    Attributes:
        operators: how many nodes of each type, most first, those inside If, Loop and local functions included.
        parameters: numbers held in the file's floating-point constants.
        macs: multiply-accumulates of Conv, MatMul and Gemm for one image; None where shapes stay unknown.
        macs_size: height and width of that image, in pixels, where the graph takes any; None for the graph's own.
        bytes: size of the serialised graph.
        findings: what stands against deploying it.
    """

    opset: int
    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]
    nodes: int
    operators: dict[str, int]
    parameters: int
    macs: int | None
    bytes: int
    findings: tuple[Finding, ...]
    macs_size: tuple[int, int] | None = None

    @property
    def deployable(self) -> bool:
        """True where no rule is broken."""
        return not self.findings

    def require_deployable(self, name: str) -> None:
        """Make the audit a gate.

        Raises:
            AuditFailed: a rule is broken; the first ones are named.
        """
        if self.findings:
            shown = "; ".join(f"{f.node}: {f.reason}" for f in self.findings[:3])
            more = f" and {len(self.findings) - 3} more" if len(self.findings) > 3 else ""
            raise AuditFailed(f"{name} is not deployable: {shown}{more}", hint=f"type: sepvit-deploy audit {name}")


def audit(model: onnx.ModelProto, *, size: tuple[int, int] | None = None) -> Audit:
    """Audit a graph.

    Args:
        size: height and width, in pixels, of the image whose MACs are counted, where the graph takes any.

    Raises:
        GraphError: the graph contradicts itself.
    """
    any_size = takes_any_size(model)
    sized = at_size(model, size) if any_size and size is not None else model
    shapes = graphs.static_shapes(graphs.with_batch(sized, 1))
    nodes = [node for part in graphs.nested(model.graph, *model.functions) for node in part.node]
    operators = Counter(kind_of(node) for node in nodes)
    macs = macs_of(nodes, shapes)
    return Audit(
        opset=graphs.opset(model),
        inputs=_signature(model.graph.input),
        outputs=_signature(model.graph.output),
        nodes=len(nodes),
        operators=dict(operators.most_common()),
        parameters=_parameters(model, nodes),
        macs=None if macs is None else macs // batch_of(model, shapes),
        bytes=model.ByteSize(),
        findings=tuple(_findings(model, nodes)),
        macs_size=size if any_size and macs is not None else None,
    )


def _signature(values: object) -> dict[str, list[int | str]]:
    return {
        value.name: [dim.dim_param or dim.dim_value or "?" for dim in value.type.tensor_type.shape.dim]
        for value in values  # type: ignore[attr-defined]
    }


def _parameters(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> int:
    from onnx import TensorProto

    floating = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.INT8)
    held = [tensor for graph in graphs.nested(model.graph) for tensor in getattr(graph, "initializer", ())]
    held += [attribute.t for node in nodes if kind_of(node) == "Constant" for attribute in node.attribute]
    return sum(prod(tensor.dims) for tensor in held if tensor.data_type in floating)


def _findings(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> Iterator[Finding]:
    constants = {t.name for graph in graphs.nested(model.graph) for t in getattr(graph, "initializer", ())}
    constants |= {output for node in nodes if kind_of(node) == "Constant" for output in node.output}
    producer = {output: node for node in nodes for output in node.output if output}
    allowed = AIMED_AT | DECODING | (GELU_BEFORE_20 if graphs.opset(model) < 20 else frozenset())
    lowered = any(
        t.data_type in _LOWERED for graph in graphs.nested(model.graph) for t in getattr(graph, "initializer", ())
    )
    if lowered:
        allowed |= PRECISION
    shapes = _shape_values(nodes, constants) if takes_any_size(model) else frozenset()
    if graphs.opset(model) == 0:
        yield Finding("domain", "the graph", "uses no standard ONNX operators")
    for node in nodes:
        kind = kind_of(node)
        name = node.name or next(filter(None, node.output), kind)
        if node.output and node.output[0] in shapes:
            continue
        if kind in _CONTROL_FLOW or any(a.HasField("g") or a.graphs for a in node.attribute):
            yield Finding("control-flow", name, f"{kind} is control flow: TensorRT cannot fuse across it")
        elif kind in _DATA_DEPENDENT:
            yield Finding("data-dependent", name, f"{kind} moves single elements by index or by value")
        elif kind == "Gather":
            reason = "rolls or permutes" if input_of(node, 1) in constants else "takes elements that the data choose"
            yield Finding("gather", name, f"Gather {reason}: use Slice, Split or Transpose")
        elif kind in _SHAPE_CHAIN:
            yield Finding("shape-chain", name, f"{kind} computes with shapes at run time")
        elif any(value in shapes for value in (node.input if kind not in _TAKES_SHAPES else node.input[:1])):
            yield Finding("shape-chain", name, f"{kind} computes on a shape as if it were data")
        elif kind == "Concat" and _is_roll(node, producer):
            yield Finding("roll", name, "Concat of parts of one tensor alone is a cyclic shift, or a copy of it")
        elif _is_decomposed_layernorm(node, producer):
            yield Finding("layernorm", name, "LayerNorm is spelled out: it overflows in FP16, use LayerNormalization")
        elif kind == "Erf" and kind not in allowed:
            yield Finding("gelu", name, "GELU is spelled out: opset 20 has it as one node")
        elif kind == "Tanh":
            yield Finding("gelu", name, "Tanh: SepViT has none, and GELU by tanh is not its exact GELU")
        elif kind == "Resize" and _resizes(node) not in _RESIZES:
            yield Finding("resize", name, f"Resize of {' '.join(_resizes(node))} is not how a decode head resizes")
        elif kind == "Cast" and not lowered and not _to_uint8(node):
            yield Finding("operator", name, "Cast to anything but the uint8 of a mask")
        elif kind not in allowed:
            yield Finding("operator", name, f"{kind} is none of the operators that SepViT needs")


def takes_any_size(model: onnx.ModelProto) -> bool:
    """True where an input leaves its height and width open."""
    sizes = [value.type.tensor_type.shape.dim[2:] for value in model.graph.input]
    return any(len(size) == 2 and all(dim.dim_param for dim in size) for size in sizes)


def _shape_values(nodes: list[onnx.NodeProto], constants: set[str]) -> frozenset[str]:
    """Names of what is computed from shapes alone."""
    found: set[str] = set()
    for node in nodes:
        kind = kind_of(node)
        inputs = [name for name in node.input if name and name not in constants]
        if kind == "Shape" or (kind in _ON_SHAPES and inputs and found.issuperset(inputs)):
            found.update(node.output)
    return frozenset(found)


def _resizes(node: onnx.NodeProto) -> tuple[str, str]:
    texts = {attribute.name: attribute.s.decode(errors="replace") for attribute in node.attribute}
    return texts.get("mode", "nearest"), texts.get("coordinate_transformation_mode", "half_pixel")


def _to_uint8(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "to" and attribute.i == _UINT8 for attribute in node.attribute)


def _is_roll(node: onnx.NodeProto, producer: dict[str, onnx.NodeProto]) -> bool:
    sources = [producer.get(name) for name in node.input]
    slices = [source for source in sources if source is not None and source.op_type in ("Slice", "Split")]
    if len(slices) < 2 or len(slices) != len(node.input):
        return False
    return len({source.input[0] for source in slices}) == 1


def _is_decomposed_layernorm(node: onnx.NodeProto, producer: dict[str, onnx.NodeProto]) -> bool:
    """A square root over a mean, an epsilon in between: the tail of a variance."""
    above = producer.get(input_of(node, 0))
    if kind_of(node) not in ("Sqrt", "Pow") or above is None or kind_of(above) != "Add":
        return False
    for name in above.input:
        source = producer.get(name)
        for _ in producer:  # bounded: a graph from elsewhere may be a circle
            if source is None or kind_of(source) not in _PASSING:
                break
            source = producer.get(input_of(source, 0))
        if source is not None and kind_of(source) in ("ReduceMean", "GlobalAveragePool"):
            return True
    return False
