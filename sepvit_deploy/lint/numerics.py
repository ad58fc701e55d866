"""Rules on what floating-point operators lose: range in FP16, and time in casts and wide types."""

from __future__ import annotations

from collections.abc import Iterator

from sepvit_deploy.lint.constants import type_name
from sepvit_deploy.lint.rule import rule
from sepvit_deploy.lint.view import MOVES, View

_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "MatMul", "Gemm", "Pow", "Mod"})


@rule("layernorm", "warning", "The squares of a written-out LayerNorm overflow in FP16: export LayerNormalization.")
def layernorm(view: View) -> Iterator[tuple[str, str]]:
    """A square root over an FP16 mean and an epsilon."""
    for node in view.of("Sqrt", "Pow"):
        above = view.producer.get(view.came_from(node.input(0)))
        if above is None or above.kind != "Add":
            continue
        for name in above.inputs:
            mean = view.producer.get(_uncast(view, name))
            if mean is not None and mean.kind == "ReduceMean" and _is_half(view, mean.output()):
                yield node.label, f"root of the FP16 mean {mean.label}"


@rule("softmax", "warning", "A written-out softmax overflows in FP16 and is not fused: export Softmax.")
def softmax(view: View) -> Iterator[tuple[str, str]]:
    """FP16 exponentials divided by their sum."""
    for node in view.of("Div"):
        total = view.producer.get(_uncast(view, node.input(1)))
        if total is not None and total.kind == "ReduceSum" and total.input(0) == node.input(0):
            exponentials = view.producer.get(node.input(0))
            if exponentials is not None and exponentials.kind == "Exp" and _is_half(view, node.input(0)):
                yield node.label, f"divides the FP16 exponentials {exponentials.label} by their sum"


@rule("half-norm", "info", "Range and accuracy are safer with FP32 around it, by a Cast before and behind.")
def half_norm(view: View) -> Iterator[tuple[str, str]]:
    """LayerNormalization and Softmax in FP16."""
    for node in view.of("LayerNormalization", "Softmax"):
        if _is_half(view, node.input(0)):
            yield node.label, f"{node.kind} in FP16"


@rule("cast-pair", "warning", "A Cast and the one back cost time, and digits where the middle is narrow: remove both.")
def cast_pair(view: View) -> Iterator[tuple[str, str]]:
    """A Cast that undoes the Cast in front of it."""
    for node in view.of("Cast"):
        first = view.producer.get(node.input(0))
        if first is not None and first.kind == "Cast":
            kinds = [view.type(first.input(0)), type_name(first.integer("to", 0)), type_name(node.integer("to", 0))]
            if kinds[0] == kinds[2] and {*kinds} <= {"FP32", "FP16", "BF16", "FP64"}:
                yield node.label, f"{kinds[0]} to {kinds[1]} and back"


@rule("wide-type", "warning", "TensorRT computes FP64 in FP32, and INT64 slowly: export in FP32, count in INT32.")
def wide_type(view: View) -> Iterator[tuple[str, str]]:
    """FP64 tensors, and INT64 arithmetic on more than shapes."""
    for node in view.nodes:
        kind = view.type(node.output())
        if kind == "FP64" and node.kind != "Constant":
            yield node.label, f"{node.kind} makes FP64"
        elif kind == "INT64" and node.kind in _ARITHMETIC and len(view.shapes.get(node.output(), ())) > 1:
            yield node.label, f"{node.kind} of INT64"


def _uncast(view: View, name: str) -> str:
    """The tensor in front of moves and casts."""
    seen = {name}
    while (node := view.producer.get(name)) is not None and node.kind in (*MOVES, "Cast"):
        name = node.input(0)
        if name in seen:
            break
        seen.add(name)
    return name


def _is_half(view: View, name: str) -> bool:
    return view.type(name) == "FP16"
