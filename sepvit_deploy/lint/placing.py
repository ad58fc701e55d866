"""Rules on where Q and DQ stand: what they cost there in accuracy, or what speed they do not bring."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from sepvit_deploy.lint.rule import rule
from sepvit_deploy.lint.view import MOVES, PRODUCTS, QUANTISE, Node, View

LEAST = 16
"""What a tensor core takes of each side of an INT8 product at once."""
_NORMALISED = frozenset({"LayerNormalization", "GroupNormalization", "InstanceNormalization", "RMSNormalization"})
_NONLINEAR = _NORMALISED | {"Softmax", "Gelu", "Erf"}
_BETWEEN = MOVES | {"Cast", "Dropout", "Add", "Sub", "Mul", "Div", "Where", "QuantizeLinear", "DequantizeLinear"}
"""What may stand between a softmax and the two products of its attention."""
_FURTHEST = 32
"""Nodes between them at most: a graph from elsewhere may be endless."""


@dataclass(frozen=True, eq=False)
class Attention:
    """Product of q and k, softmax, product with v; and which of the inputs and the output are quantised."""

    first: Node
    second: Node
    places: dict[str, bool]

    @property
    def quantised(self) -> bool:
        """True where an input of a product is; the output alone may be for what follows."""
        return any(done for place, done in self.places.items() if place != "output")


def attentions(view: View) -> Iterator[Attention]:
    """Each softmax between two products of activations."""
    for softmax in view.of("Softmax"):
        first = _product_before(view, softmax)
        second = _product_behind(view, softmax)
        if first is None or second is None:
            continue
        product, position = second
        inputs = {
            "q": first.input(0),
            "k": first.input(1),
            "softmax": product.input(position),
            "v": product.input(1 - position),
        }
        places = {place: view.dequantiser(name) is not None for place, name in inputs.items()}
        places["output"] = any(taker.kind == QUANTISE for taker, _ in view.goes_to(product.output()))
        yield Attention(first, product, places)


def _of_activations(view: View, node: Node) -> bool:
    return len(node.inputs) == 2 and not any(name in view.fixed for name in node.inputs)


def _product_before(view: View, softmax: Node) -> Node | None:
    name = softmax.input(0)
    for _ in range(_FURTHEST):
        node = view.producer.get(name)
        if node is not None and node.kind == "MatMul":
            return node if _of_activations(view, node) else None
        if node is None or node.kind not in _BETWEEN:
            break
        name = next((source for source in node.inputs if source and source not in view.fixed), "")
    return None


def _product_behind(view: View, softmax: Node) -> tuple[Node, int] | None:
    pending, seen = [softmax.output()], {softmax.output()}
    for current in pending:
        if len(seen) > _FURTHEST:
            break
        for node in view.consumers.get(current, ()):
            if node.kind == "MatMul":
                return (node, node.inputs.index(current)) if _of_activations(view, node) else None
            if node.kind in _BETWEEN and node.output() not in seen:
                seen.add(node.output())
                pending.append(node.output())
    return None


def precision(view: View, product: Node) -> str:
    """What a matrix product or convolution computes in: INT8 where both its inputs are dequantised, else its type."""
    makers = [view.dequantiser(product.input(position)) for position in (0, 1)]
    eight = [_eight(view, maker) for maker in makers if maker is not None]
    if len(eight) == 2 and eight[0] == eight[1]:
        return eight[0]
    return view.type(product.output()) or view.type(product.input(0)) or "unknown"


def _eight(view: View, dequantiser: Node) -> str:
    """What a DQ dequantises. TensorRT takes UINT8 for INT8."""
    kind = view.type(dequantiser.input(0))
    return "INT8" if kind in ("", "UINT8") else kind


def _sides(view: View, product: Node) -> tuple[int, int] | None:
    """K and N of a product: how many numbers are summed for an output, and the width of the outputs."""
    first, weight = (view.shapes.get(product.input(position), ()) for position in (0, 1))
    if product.kind == "Gemm" and len(weight) == 2:
        summed, outputs = reversed(weight) if product.integer("transB", 0) else weight
    elif product.kind == "MatMul" and len(weight) >= 2 and first:
        summed, outputs = first[-1], weight[-1]
    elif product.kind == "Conv" and len(weight) >= 3:
        outputs, summed = weight[0], prod(dim or 0 for dim in weight[1:])
    else:
        return None
    return (summed, outputs) if summed and outputs else None


def _is_depthwise(view: View, node: Node) -> bool:
    weight = view.shapes.get(node.input(1), ())
    return node.kind == "Conv" and node.integer("group", 1) > 1 and len(weight) > 1 and weight[1] == 1


@rule("residual", "warning", "Errors of 8 bits add up along the residual stream: quantise inputs of products only.")
def residual(view: View) -> Iterator[tuple[str, str]]:
    """Sums of two activations of which one comes out of a DQ."""
    whole = {attention.second for attention in attentions(view) if all(attention.places.values())}
    for node in view.of("Add"):
        if any(not name or name in view.fixed for name in node.inputs):
            continue
        for name in node.inputs:
            quantised = view.dequantiser(name)
            if quantised is None:
                continue
            quantiser = view.producer.get(view.came_from(quantised.input(0)))
            source = view.producer.get(view.came_from(quantiser.input(0))) if quantiser else None
            if source not in whole:  # a quantised attention must end in Q and DQ, even in front of a sum
                yield node.label, f"adds what {quantised.label} dequantises"
                break


@rule(
    "half-attention",
    "warning",
    "TensorRT fuses an attention with q, k, softmax, v and output in INT8, or none of them.",
)
def half_attention(view: View) -> Iterator[tuple[str, str]]:
    """Attentions of which only a part is quantised."""
    for attention in attentions(view):
        missing = [place for place, done in attention.places.items() if not done]
        if attention.quantised and missing:
            done = [place for place, done in attention.places.items() if done]
            node = attention.first if {"q", "k"} & set(missing) else attention.second
            yield node.label, f"attention with Q and DQ on {', '.join(done)} but not on {', '.join(missing)}"


@rule("one-sided", "warning", "Only a product with Q and DQ on both inputs runs in INT8: add them, or take them away.")
def one_sided(view: View) -> Iterator[tuple[str, str]]:
    """Products with one quantised input."""
    judged = {product for a in attentions(view) for product in (a.first, a.second)}
    for node in view.of(*PRODUCTS):
        makers = [view.dequantiser(node.input(position)) for position in (0, 1)]
        done = [maker is not None and _eight(view, maker) == "INT8" for maker in makers]
        if node not in judged and done[0] != done[1]:
            names = ("the activation", "the weights") if node.input(1) in view.fixed else ("input 0", "input 1")
            yield node.label, f"{node.kind} with Q and DQ on {names[done[1]]} but not on {names[done[0]]}"


@rule("small-product", "warning", "Tensor cores multiply INT8 in steps of 16: keep this product in FP16.")
def small_product(view: View) -> Iterator[tuple[str, str]]:
    """INT8 products with fewer than 16 inputs or outputs."""
    for node, summed, outputs in _int8_products(view):
        if min(summed, outputs) < LEAST:
            yield node.label, f"{node.kind} of K {summed}, N {outputs} in INT8, expected at least {LEAST}"


@rule("uneven-product", "info", "Tensor cores multiply INT8 in steps of 16: other K and N are padded.")
def uneven_product(view: View) -> Iterator[tuple[str, str]]:
    """INT8 products whose sides 16 does not divide."""
    for node, summed, outputs in _int8_products(view):
        if min(summed, outputs) >= LEAST and (summed % LEAST or outputs % LEAST):
            yield node.label, f"{node.kind} of K {summed}, N {outputs} in INT8"


def _int8_products(view: View) -> Iterator[tuple[Node, int, int]]:
    for node in view.of(*PRODUCTS):
        sides = _sides(view, node)
        if sides is not None and precision(view, node) == "INT8" and not _is_depthwise(view, node):
            yield node, *sides


@rule("depthwise", "warning", "A depthwise convolution loses accuracy in INT8 and gains no speed: leave it in FP16.")
def depthwise(view: View) -> Iterator[tuple[str, str]]:
    """Quantised depthwise convolutions."""
    for node in view.of("Conv"):
        if _is_depthwise(view, node) and any(view.dequantiser(node.input(position)) for position in (0, 1)):
            yield node.label, f"depthwise convolution of {node.integer('group', 1)} channels with Q and DQ"


@rule("quantised-input", "warning", "Norms, GELU and softmax compute in floating point: take Q and DQ away from them.")
def quantised_input(view: View) -> Iterator[tuple[str, str]]:
    """Normalisations, GELU and softmax that read what a DQ makes."""
    for node in view.of(*_NONLINEAR):
        if (maker := view.dequantiser(node.input(0))) is not None:
            yield node.label, f"{node.kind} reads what {maker.label} dequantises"


@rule("early-quantiser", "warning", "TensorRT fuses Conv, Relu and Q in this order: quantise what the Relu gives.")
def early_quantiser(view: View) -> Iterator[tuple[str, str]]:
    """Relu of a convolution whose output was quantised before it, half of the codes for numbers that it drops."""
    for node in view.of("Relu"):
        maker = view.dequantiser(node.input(0))
        quantiser = view.producer.get(view.came_from(maker.input(0))) if maker is not None else None
        source = view.producer.get(view.came_from(quantiser.input(0))) if quantiser is not None else None
        if quantiser is not None and quantiser.kind == QUANTISE and source is not None and source.kind == "Conv":
            yield node.label, f"Relu of what {quantiser.label} quantises of {source.label}"


@rule("gemm-bias", "warning", "ONNX Runtime's CPU has no INT8 Gemm with a float bias: write MatMul and Add.")
def gemm_bias(view: View) -> Iterator[tuple[str, str]]:
    """INT8 Gemm with a bias in floating point."""
    for node in view.of("Gemm"):
        if node.input(2) and precision(view, node) == "INT8":
            yield node.label, f"Gemm in INT8 with the floating-point bias {node.input(2)}"
