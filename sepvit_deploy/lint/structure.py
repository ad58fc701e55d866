"""Rules on the graph itself: its wiring, constants, types, operators and shapes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod

from sepvit_deploy.lint.constants import fault, type_name
from sepvit_deploy.lint.rule import rule
from sepvit_deploy.lint.view import PROBE, Node, Shape, View, contradictions

_REFUSED = frozenset(
    (
        *("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"),
        *("AffineGrid", "Bernoulli", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"),
        *("CenterCropPad", "Col2Im", "Compress", "DFT", "Det", "ImageDecoder", "MaxRoiPool", "MaxUnpool"),
        *("MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss", "Optional", "OptionalGetElement"),
        *("OptionalHasElement", "RegexFullMatch", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase"),
        *("SequenceInsert", "SequenceLength", "SequenceMap", "SoftmaxCrossEntropyLoss", "SplitToSequence"),
        *("StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer", "Unique", "ConcatFromSequence"),
    )
)
"""Standard operators that TensorRT's parser does not take."""
_CAST_TO = frozenset({"FP32", "FP16", "BF16", "FP64", "BOOL", "INT8", "INT32", "INT64"})
_TAKEN = _CAST_TO | {"UINT8", "INT4", "FP8", "FP4", "FLOAT8E8M0"}
"""Tensor types that TensorRT's parser takes."""
_RESIZED = frozenset({"", "FP32", "FP16", "BF16", "FP8", "INT8"})
_COORDINATES = frozenset({"half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"})
"""How Resize may place pixels."""
_ONE_TYPE = frozenset(
    (
        *("Add", "Sub", "Mul", "Div", "Max", "Min", "Less", "Greater", "Equal", "Concat", "Clip", "PRelu", "Einsum"),
        *("MatMul", "Gemm", "Conv", "ConvTranspose"),
        *("LayerNormalization", "GroupNormalization", "InstanceNormalization"),
    )
)
_SHAPED = {"Reshape": 1, "Expand": 1, "Tile": 1, "Slice": 1, "Pad": 1, "Resize": 3, "ConstantOfShape": 0}
"""Operators that take a shape or positions, and where."""
_WIDTHS = (9, 256)
"""Least and greatest width of a head that the kernels of the operator Attention take."""


@rule("wiring", "error", "TensorRT cannot sort the graph: every tensor needs exactly one origin, and no circle.")
def wiring(view: View) -> Iterator[tuple[str, str]]:
    """Inputs that nothing makes, tensors that two nodes make, circles, and graphs without outputs."""
    known = view.made.keys() | view.tensors.keys() | view.inputs.keys()
    for node in view.nodes:
        for name in node.inputs:
            if name and name not in known:
                yield node.label, f"reads {name}, which nothing makes"
    for name, count in view.made.items():
        if count > 1:
            yield view.producer[name].label, f"{name} is made {count} times"
    for name in sorted(view.outputs - known):
        yield name or "the graph", "is an output that nothing makes"
    if not view.outputs:
        yield "the graph", "has no outputs"
    if len(view.order) < len(view.nodes):
        yield _in_a_circle(view).label, "needs its own output"


def _in_a_circle(view: View) -> Node:
    """A node of a circle: walk up from one that could not be sorted until a node comes again."""
    sorted_nodes = set(view.order)
    node, seen = next(node for node in view.nodes if node not in sorted_nodes), set[Node]()
    while node not in seen:
        seen.add(node)
        above = (view.producer.get(name) for name in node.inputs)
        node = next((source for source in above if source is not None and source not in sorted_nodes), node)
    return node


@rule("constant", "error", "TensorRT cannot read the constant: write the file again from its source.")
def constant(view: View) -> Iterator[tuple[str, str]]:
    """Constants whose bytes do not fit their shape and type."""
    for name, tensor in view.tensors.items():
        if problem := fault(tensor):
            yield name or "a constant without a name", problem
    for name in view.repeated:
        yield name, "is the name of two constants"
    for node in view.of("Constant"):
        if node.output() not in view.tensors and not any(a.name in _OTHER_VALUES for a in node.proto.attribute):
            yield node.label, "is a Constant without a value"


_OTHER_VALUES = frozenset({"value_string", "value_strings", "sparse_value"})


@rule("contradiction", "error", "TensorRT refuses shapes that do not fit each other: export the model again.")
def contradiction(view: View) -> Iterator[tuple[str, str]]:
    """What ONNX's shape inference says against the graph, but for types, which have rules of their own."""
    if view.is_main:
        for line in contradictions(view.model):
            kind, name = (re.search(pattern, line) for pattern in (r"op_type: ?(\w+)", r"node name: ?([^)]*)\)"))
            reason = re.sub(r"\[\w+Error\]|Inference error\(s\):|\(op_type:[^)]*\):?", "", line)
            if not re.search(r"\btypes?\b|typestr", reason) and not (kind and kind[1] == "Constant"):
                place = name or kind
                about = f"{kind[1]}: " if kind else ""
                yield place[1] if place else "the graph", about + " ".join(reason.split())


@rule("data-type", "error", "TensorRT has no such type: use FP32, FP16, INT32, INT64, or INT8 between Q and DQ.")
def data_type(view: View) -> Iterator[tuple[str, str]]:
    """Inputs, constants and casts of types that TensorRT does not have."""
    for name, kind in (*view.inputs.items(), *((name, tensor.data_type) for name, tensor in view.tensors.items())):
        if kind and type_name(kind) not in _TAKEN:
            yield name, f"is of type {type_name(kind).removeprefix('type ')}"
    for node in view.of("Cast"):
        target = type_name(node.integer("to", 0))
        given = target == "UINT8" and node.output() in view.outputs  # as a mask is
        if target and target not in _CAST_TO and not given:
            yield node.label, f"casts to {target}"


@rule("mixed-types", "error", "TensorRT is strongly typed: put a Cast in front of the input of the other type.")
def mixed_types(view: View) -> Iterator[tuple[str, str]]:
    """Operators whose inputs are of different types."""
    for node in view.of(*_ONE_TYPE, "Where"):
        inputs = node.inputs[1:] if node.kind == "Where" else node.inputs
        kinds = {view.type(name).replace("FP64", "FP32") for name in inputs} - {""}  # TensorRT reads FP64 as FP32
        if len(kinds) > 1:
            yield node.label, f"{node.kind} of {' and '.join(sorted(kinds))}"


@rule("integer-product", "error", "TensorRT multiplies matrices in floating point, or in INT8 by Q and DQ.")
def integer_product(view: View) -> Iterator[tuple[str, str]]:
    """Products of integers."""
    for node in view.of("MatMul", "Gemm", "Conv"):
        kind = view.type(node.input(0))
        if re.match(r"U?INT\d", kind):
            yield node.label, f"{node.kind} of {kind}"


@rule("operator", "error", "TensorRT does not have the operator: write it with standard ones, quantise with Q and DQ.")
def operator(view: View) -> Iterator[tuple[str, str]]:
    """Operators of ONNX Runtime or of nobody, and standard ones that TensorRT does not take."""
    import onnx

    for node in view.nodes:
        kind, domain = node.proto.op_type, node.proto.domain
        if (domain, kind) in view.functions:
            continue
        if not onnx.defs.has(kind):
            owner = "ONNX Runtime alone has" if domain.startswith("com.microsoft") else "TensorRT does not have"
            yield node.label, f"{owner} the operator {domain + '::' if domain else ''}{kind}"
        elif kind in _REFUSED:
            yield node.label, f"TensorRT does not have the operator {kind}"


@rule("foreign-domain", "warning", "TensorRT ignores the domain and computes the standard operator: name that.")
def foreign_domain(view: View) -> Iterator[tuple[str, str]]:
    """Operators of another domain with the name of a standard one."""
    import onnx

    for node in view.nodes:
        kind, domain = node.proto.op_type, node.proto.domain
        if domain not in ("", "ai.onnx") and (domain, kind) not in view.functions and onnx.defs.has(kind):
            yield node.label, f"{domain}::{kind} would be taken for ONNX's {kind}"


@rule(
    "attention-operator",
    "error",
    "Its kernels take FP16 heads of width 9 to 256: export the two products instead.",
)
def attention_operator(view: View) -> Iterator[tuple[str, str]]:
    """The operator Attention where no kernel takes it."""
    for node in view.of("Attention"):
        kind = view.type(node.input(0))
        query = view.shapes.get(node.input(0), ())
        width = query[-1] if len(query) == 4 else None
        if len(query) == 4 and kind in ("FP32", "FP64"):
            yield node.label, f"Attention in {kind}"
        elif width is not None and not _WIDTHS[0] <= width <= _WIDTHS[1]:
            yield node.label, f"Attention with heads of width {width}, expected {_WIDTHS[0]} to {_WIDTHS[1]}"


@rule("resize", "error", "TensorRT resizes floating point, without antialiasing: export half_pixel or asymmetric.")
def resize(view: View) -> Iterator[tuple[str, str]]:
    """Resize with an attribute, or of a type, that TensorRT does not have."""
    for node in view.of("Resize"):
        coordinates = node.text("coordinate_transformation_mode", "half_pixel")
        kind = view.type(node.input(0))
        if node.integer("antialias", 0):
            yield node.label, "Resize with antialiasing"
        elif coordinates not in _COORDINATES:
            yield node.label, f"Resize of {coordinates}, expected {', '.join(sorted(_COORDINATES))}"
        elif kind not in _RESIZED:
            yield node.label, f"Resize of {kind}"


@rule("computed-shape", "warning", "A shape computed at run time stops fusion: export with -1 for the batch.")
def computed_shape(view: View) -> Iterator[tuple[str, str]]:
    """Shapes and positions that are computed from the data, but for those that sizes left open come to."""
    for node in view.of(*_SHAPED):
        name = node.input(_SHAPED[node.kind])
        if name and name not in view.fixed and not (view.takes_any_size and name in view.of_shapes):
            maker = view.producer.get(name)
            source = f"computed by {maker.kind} ({maker.label})" if maker else "an input of the graph"
            yield node.label, f"{node.kind} to {name}, {source}"


@rule("baked-batch", "error", "TensorRT refuses sizes that do not fit: put -1 in the place of the batch.")
def baked_batch(view: View) -> Iterator[tuple[str, str]]:
    """Reshapes to a constant shape that holds another number of elements than the tensor."""
    for node, data, target in _reshapes(view):
        known = [dim for dim in data if dim is not None]
        if len(known) < len(data) or -1 in target:
            continue
        if prod(known) != prod(_copied(target, data, node)):
            why = ", which holds one batch" if prod(known) % PROBE == 0 else ""
            yield node.label, f"reshapes {_written(data)} to {target}{why}"


@rule("fixed-first", "warning", "Images of a batch are mixed: put -1 or the batch first in the shape.")
def fixed_first(view: View) -> Iterator[tuple[str, str]]:
    """Reshapes of a batch to shapes whose first dimension is a number."""
    for node, data, target in _reshapes(view):
        grows = bool(data) and (data[0] or 1) % PROBE == 0
        if grows and -1 in target[1:] and target[0] > 0:
            yield node.label, f"reshapes {_written(data)} to {target}"


def _reshapes(view: View) -> Iterator[tuple[Node, Shape, list[int]]]:
    for node in view.of("Reshape"):
        data, target = view.shapes.get(node.input(0)), view.numbers(node.input(1))
        if data is not None and target is not None and view.type(node.input(1)) in ("INT32", "INT64"):
            yield node, data, [int(dim) for dim in target]


def _copied(target: list[int], data: Shape, node: Node) -> list[int]:
    """A target with the dimensions that 0 copies."""
    copies = not node.integer("allowzero", 0)
    return [
        (data[position] or 0) if dim == 0 and copies and position < len(data) else dim
        for position, dim in enumerate(target)
    ]


def _written(shape: Shape) -> str:
    def dimension(dim: int | None) -> str:
        if dim is None:
            return "?"
        if dim % PROBE or not dim:
            return str(dim)
        return "batch" if dim == PROBE else f"{dim // PROBE} * batch"

    return "[" + ", ".join(map(dimension, shape)) + "]"
