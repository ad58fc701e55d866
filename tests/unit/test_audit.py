"""What a graph holds and what stands against deploying it: for each rule a graph that breaks it, and a close one."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from sepvit_deploy.audit import Audit, audit
from sepvit_deploy.errors import AuditFailed, GraphError

X = "float[2,6] x"
MAP = "float[1,3,8,8] x"
ANY = "float[B,3,H,W] x"


def graph(body: str, inputs: str = X, *, output: str = "y", opset: int = 20, domains: str = "") -> onnx.ModelProto:
    return parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : {opset}{domains}]> net ({inputs}) => ({output}) {{ {body} }}'
    )


def audited(body: str, inputs: str = X, **options: object) -> Audit:
    return audit(graph(body, inputs, **options))  # type: ignore[arg-type]


def found(body: str, inputs: str = X, **options: object) -> list[tuple[str, str]]:
    return [(finding.rule, finding.node) for finding in audited(body, inputs, **options).findings]


def ints(name: str, *values: int) -> str:
    return f"{name} = Constant<value = int64[{len(values)}] {{{', '.join(map(str, values))}}}>()\n"


def floats(name: str, value: float) -> str:
    return f"{name} = Constant<value = float {{{value}}}>()\n"


IF = """
y = If (c) <
  then_branch = left () => (u) { u = Gelu(x) },
  else_branch = right () => (v) { i = NonZero(x) v = Tanh(x) }
>
"""
LOOP = (
    "y = Loop (n, c, x) <body = step (int64 i, bool go, float[2,6] a) => (go2, b) { go2 = Identity(go) b = Add(a, a) }>"
)
SCAN = (
    "y, z = Scan <num_scan_inputs = 1, body = step (float[6] s, float[6] a) => (t, b) { t = Add(s, a) b = Mul(s, a) }>"
    "(s, x)"
)
VARIANCE = "m = ReduceMean<keepdims = 1>(x, axes)\n d = Sub(x, m)\n"
TAIL = "v = ReduceMean<keepdims = 1>(sq, axes)\n ve = Add(v, eps)\n "
HEAD = ints("axes", 1) + floats("eps", 1e-6) + floats("two", 2.0) + floats("half", 0.5)
SLICES = ints("zero", 0) + ints("two", 2) + ints("end", 6) + ints("one", 1)

BROKEN = {
    "If": (IF, {("control-flow", "y"), ("data-dependent", "i"), ("gelu", "v")}, "bool c, float[2,6] x"),
    "Loop": (LOOP, {("control-flow", "y"), ("operator", "go2")}, "int64 n, bool c, float[2,6] x"),
    "Scan": (SCAN, {("control-flow", "y")}, "float[6] s, float[2,6] x"),
    "NonZero": ("y = NonZero(x)", {("data-dependent", "y")}, X),
    "Where": ("y = Where(c, x, x)", {("data-dependent", "y")}, "bool[2,6] c, float[2,6] x"),
    "ScatterND": ("y = ScatterND(x, i, u)", {("data-dependent", "y")}, f"{X}, int64[1,1] i, float[1,6] u"),
    "ScatterElements": ("y = ScatterElements(x, i, x)", {("data-dependent", "y")}, f"{X}, int64[2,6] i"),
    "GatherND": ("y = GatherND(x, i)", {("data-dependent", "y")}, f"{X}, int64[1,1] i"),
    "GatherElements": ("y = GatherElements(x, i)", {("data-dependent", "y")}, f"{X}, int64[2,6] i"),
    "Gather by a constant": (ints("i", 1, 2, 0) + "y = Gather<axis = 1>(x, i)", {("gather", "y")}, X),
    "Gather by data": ("y = Gather<axis = 1>(x, i)", {("gather", "y")}, f"{X}, int64[3] i"),
    "roll by Slice": (
        SLICES + "a = Slice(x, two, end, one)\n b = Slice(x, zero, two, one)\n y = Concat<axis = 1>(a, b)",
        {("roll", "y")},
        X,
    ),
    "roll by Split": (
        "a, b = Split<axis = 1, num_outputs = 2>(x)\n y = Concat<axis = 1>(b, a)",
        {("roll", "y")},
        X,
    ),
    "Split and back again": (  # harmless, yet a copy that no deployable graph holds
        "a, b = Split<axis = 1, num_outputs = 2>(x)\n y = Concat<axis = 1>(a, b)",
        {("roll", "y")},
        X,
    ),
    "Shape": ("y = Shape(x)", {("shape-chain", "y")}, X),
    "Size": ("y = Size(x)", {("shape-chain", "y")}, X),
    "Expand": (ints("s", 2, 6) + "y = Expand(x, s)", {("shape-chain", "y")}, X),
    "Range": ("y = Range(n, n, n)", {("shape-chain", "y")}, "int64 n"),
    "ConstantOfShape": ("y = ConstantOfShape(s)", {("shape-chain", "y")}, "int64[2] s"),
    "LayerNorm by Pow": (
        HEAD + VARIANCE + "sq = Pow(d, two)\n" + TAIL + "sd = Sqrt(ve)\n y = Div(d, sd)",
        {("operator", "d"), ("operator", "sq"), ("layernorm", "sd"), ("operator", "y")},
        X,
    ),
    "LayerNorm by Mul": (
        HEAD + VARIANCE + "sq = Mul(d, d)\n" + TAIL + "sd = Sqrt(ve)\n r = Reciprocal(sd)\n y = Mul(d, r)",
        {("operator", "d"), ("layernorm", "sd"), ("operator", "r")},
        X,
    ),
    "LayerNorm by Pow of a half": (
        HEAD + VARIANCE + "sq = Mul(d, d)\n" + TAIL + "sd = Pow(ve, half)\n y = Mul(d, sd)",
        {("operator", "d"), ("layernorm", "sd")},
        X,
    ),
    "LayerNorm with its epsilon first, and a Cast": (
        HEAD
        + VARIANCE
        + "sq = Mul(d, d)\n v = ReduceMean<keepdims = 1>(sq, axes)\n w = Cast<to = 1>(v)\n"
        + "ve = Add(eps, w)\n y = Sqrt(ve)",
        {("operator", "d"), ("operator", "w"), ("layernorm", "y")},
        X,
    ),
    "GELU by Erf at opset 20": ("e = Erf(x)\n y = Mul(x, e)", {("gelu", "e")}, X),
    "GELU by Tanh": ("e = Tanh(x)\n y = Mul(x, e)", {("gelu", "e")}, X),
    "a cubic Resize": ('y = Resize<mode = "cubic">(x, , s)', {("resize", "y")}, f"{MAP}, float[4] s"),
    "a bilinear Resize of other pixels": (
        'y = Resize<mode = "linear", coordinate_transformation_mode = "pytorch_half_pixel">(x, , s)',
        {("resize", "y")},
        f"{MAP}, float[4] s",
    ),
    "a nearest Resize of other pixels": ("y = Resize(x, , s)", {("resize", "y")}, f"{MAP}, float[4] s"),
    "Cast to int32": ("a = ArgMax<axis = 1>(x)\n y = Cast<to = 6>(a)", {("operator", "y")}, MAP),
    "a shape in a graph of one size": (
        "n = Shape(x)\n y = Reshape(x, n)",
        {("shape-chain", "n")},
        MAP,
    ),
    "a shape as data": ("n = Shape(x)\n y = Mul(x, n)", {("shape-chain", "y")}, ANY),
    "a part of a shape as data": (
        ints("i", 2) + ints("j", 3) + "n = Shape(x)\n m = Slice(n, i, j)\n y = ReduceMean(m)",
        {("shape-chain", "y")},
        ANY,
    ),
    "a computed shape where only the batch is free": (
        "n = Shape(x)\n y = Reshape(x, n)",
        {("shape-chain", "n")},
        "float[B,3,8,8] x",
    ),
    "an unknown standard operator": ("y = Invented(x)", {("operator", "y")}, X),
    "Einsum": ('y = Einsum<equation = "ij->ji">(x)', {("operator", "y")}, X),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_rule_is_found(case: str) -> None:
    body, expected, inputs = BROKEN[case]
    constants = {("operator", name) for name in re.findall(r"(\w+) = Constant<", body)}
    assert set(found(body, inputs)) - constants == expected


CLOSE = {
    "Gelu": ("y = Gelu(x)", X, 20),
    "GELU by Erf below opset 20": (
        "d = Div(x, r)\n e = Erf(d)\n g = Add(e, r)\n h = Mul(x, g)\n y = Mul(h, r)",
        f"{X}, float r",
        17,
    ),
    "LayerNormalization": ("y = LayerNormalization(x, s)", f"{X}, float[6] s", 17),
    "a residual over a mean": ("m = ReduceMean(x)\n y = Add(x, m)", X, 20),
    "parts of different tensors": (
        "a = Slice(x, i, j)\n b = Slice(z, i, j)\n y = Concat<axis = 1>(a, b)",
        f"{X}, float[2,6] z, int64[1] i, int64[1] j",
        20,
    ),
    "a part beside the whole": ("a = Slice(x, i, j)\n y = Concat<axis = 1>(a, x)", f"{X}, int64[1] i, int64[1] j", 20),
    "parts beside another tensor": (
        "a, b = Split<axis = 1, num_outputs = 2>(x)\n y = Concat<axis = 1>(b, z, a)",
        f"{X}, float[2,2] z",
        20,
    ),
    "inputs joined": ("y = Concat<axis = 0>(x, z)", f"{X}, float[1,6] z", 20),
    "one part alone": ("a = Slice(x, i, j)\n y = Concat<axis = 1>(a)", f"{X}, int64[1] i, int64[1] j", 20),
    "attention": (
        "t = Transpose<perm = [1, 0]>(x)\n p = MatMul(x, t)\n s = Softmax<axis = -1>(p)\n y = MatMul(s, x)",
        X,
        20,
    ),
    "a mask": (
        'r = Resize<mode = "linear">(x, , s)\n a = ArgMax<axis = 1>(r)\n y = Cast<to = 2>(a)',
        f"{MAP}, float[4] s",
        17,
    ),
    "the Resize of a neck": (
        'y = Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">(x, , s)',
        f"{MAP}, float[4] s",
        20,
    ),
    "windows": ("p = Pad(x, k)\n y = Reshape(p, s)", f"{X}, int64[4] k, int64[2] s", 20),
}


@pytest.mark.parametrize("case", CLOSE)
def test_a_close_graph_breaks_no_rule(case: str) -> None:
    body, inputs, opset = CLOSE[case]
    assert found(body, inputs, opset=opset) == []
    assert audited(body, inputs, opset=opset).deployable


def test_erf_is_refused_only_where_gelu_is_one_node() -> None:
    assert [found("y = Erf(x)", opset=opset) for opset in (17, 19, 20, 21)] == [[], [], *[[("gelu", "y")]] * 2]


@pytest.mark.parametrize(
    "name", ["Conv", "If", "Where", "Gather", "Shape", "Concat", "Sqrt", "Erf", "MatMul", "Constant"]
)
@pytest.mark.parametrize("inputs", ["", "x", "x, x"])
def test_an_operator_of_another_domain(name: str, inputs: str) -> None:
    """Even under a standard name, and with any number of inputs."""
    (finding,) = audited(f"y = com.foo.{name}({inputs})", domains=', "com.foo" : 1').findings
    assert (finding.rule, finding.node) == ("operator", "y")
    assert finding.reason == f"com.foo::{name} is none of the operators that SepViT needs"


def test_a_graph_without_standard_operators() -> None:
    model = parser.parse_model(
        '<ir_version: 9, opset_import: ["f" : 1]> g (float[2] x) => (float[2] y) { y = f.Op(x) }'
    )
    assert [finding.rule for finding in audit(model).findings] == ["domain", "operator"]


def test_a_local_function_is_looked_into() -> None:
    model = parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20, "f" : 1]> g (float[2] x) => (float[2] y) { y = f.Op(x) }'
        '<domain: "f", opset_import: ["" : 20]> Op (a) => (b) { b = Tanh(a) }'
    )
    assert [(f.rule, f.node) for f in audit(model).findings] == [("operator", "y"), ("gelu", "b")]


def test_operators_inside_branches_are_counted() -> None:
    result = audited(IF, "bool c, float[2,6] x")
    assert result.operators == {"If": 1, "Gelu": 1, "NonZero": 1, "Tanh": 1}
    assert result.nodes == 4


@pytest.mark.parametrize(
    "body", ["y = Gather(x)", "y = Conv(x)", "y = MatMul(x)", "y = Concat<axis = 0>()", "y = Pow()"]
)
def test_a_node_that_lacks_inputs_does_not_break_the_audit(body: str) -> None:
    try:
        assert audited(body).macs in (None, 0)
    except GraphError as error:
        assert "the graph contradicts itself" in str(error)


def test_a_circle_ends() -> None:
    body = "a = Cast<to = 1>(b)\n b = Cast<to = 1>(a)\n ve = Add(a, x)\n y = Sqrt(ve)"
    try:
        assert ("operator", "y") in found(body)
    except GraphError as error:
        assert "the graph contradicts itself" in str(error)


def test_the_name_of_a_node_is_its_address() -> None:
    model = graph("y = Tanh(x)")
    model.graph.node[0].name = "stage0.block0/Tanh"
    assert audit(model).findings[0].node == "stage0.block0/Tanh"


@pytest.mark.parametrize(
    ("inputs", "body", "macs"),
    [
        (
            "float[N,3,224,224] x, float[96,3,7,7] w",
            "y = Conv<strides = [4, 4], pads = [3, 3, 3, 3]>(x, w)",
            56 * 56 * 96 * 147,
        ),
        ("float[1,8,10,10] x, float[8,1,3,3] w", "y = Conv<group = 8, pads = [1, 1, 1, 1]>(x, w)", 8 * 100 * 9),
        ("float[1,8,10,10] x, float[12,2,3,3] w", "y = Conv<group = 4>(x, w)", 12 * 64 * 2 * 9),
        ("float[1,4,9] x, float[5,4,3] w", "y = Conv(x, w)", 5 * 7 * 12),
        ("float[N,5,6] x, float[6,7] w", "y = MatMul(x, w)", 5 * 6 * 7),
        ("float[2,1,5,6] x, float[3,6,7] w", "y = MatMul(x, w)", 3 * 5 * 6 * 7),
        ("float[5,6] x, float[2,1,3,6,7] w", "y = MatMul(x, w)", 6 * 5 * 6 * 7),
        ("float[6] x, float[6] w", "y = MatMul(x, w)", 6),
        ("float[5,6] x, float[6] w", "y = MatMul(x, w)", 30),
        ("float[5,6] x, float[6,7] w", "y = Gemm(x, w)", 210),
        ("float[6,5] x, float[6,7] w", "y = Gemm<transA = 1>(x, w)", 210),
        ("float[5,6] x, float[7,6] w", "y = Gemm<transB = 1>(x, w)", 210),
        ("float[6,5] x, float[7,6] w", "y = Gemm<transA = 1, transB = 1>(x, w)", 210),
        ("float[5,6] x, float[5,6] w", "y = Add(x, w)", 0),
        ("float[5,6] x, float[6,6] w", "a = MatMul(x, w)\n y = MatMul(a, w)", 360),
    ],
)
def test_macs_by_hand(inputs: str, body: str, macs: int) -> None:
    assert audited(body, inputs).macs == macs


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_macs_are_those_of_one_image(batch: int) -> None:
    body, weights = "y = Conv(x, w)", "float[4,3,1,1] w"
    assert audited(body, f"float[{batch},3,10,10] x, {weights}").macs == 4 * 3 * 100
    assert audited(body, f"float[N,3,10,10] x, {weights}").macs == 4 * 3 * 100


@pytest.mark.parametrize(
    ("inputs", "body"),
    [
        ("float[N,3,H,W] x, float[4,3,1,1] w", "y = Conv(x, w)"),
        ("float[1,C,8,8] x, float[4,M,1,1] w", "y = Conv(x, w)"),
        ("float[2,K] x, float[K,3] w", "y = MatMul(x, w)"),
        ("float[2,6] x, float[6,6] w", "a = f.Op(x)\n y = MatMul(a, w)"),
        ("float[2,6] x, float[6,6] w", "a = f.Op(x)\n y = MatMul(w, a)"),
        ("float[2,K] x, float[3,M] w", "y = Gemm<transB = 1>(x, w)"),
    ],
)
def test_macs_of_unknown_shapes_are_none(inputs: str, body: str) -> None:
    # with_batch names the first dimension of every input, hence the free ones are elsewhere or behind an operator
    result = audited(body, inputs, domains=', "f" : 1')
    assert result.macs is None


SIZED = ints("zero", 0) + ints("two", 2) + ints("four", 4) + "c = Conv<strides = [4, 4]>(x, w)\n n = Shape(c)\n"
SIZED += "b = Slice(n, zero, two)\n hw = Slice(n, two, four)\n d = Mul(hw, two)\n s = Concat<axis = 0>(b, d)\n"
SIZED += 'r = Resize<mode = "linear">(c, , , s)\n y = Conv(r, v)'
ANY_SIZE = f"{ANY}, float[5,3,4,4] w, float[7,5,1,1] v"


@pytest.mark.parametrize(("size", "cells"), [((8, 8), 4), ((16, 40), 40)])
def test_macs_of_a_graph_of_any_size_are_those_of_an_image_of_one(size: tuple[int, int], cells: int) -> None:
    model = graph(SIZED, ANY_SIZE)
    values = {"w": (5, 3, 4, 4), "v": (7, 5, 1, 1)}
    model.graph.initializer.extend(numpy_helper.from_array(np.ones(v, np.float32), n) for n, v in values.items())
    del model.graph.input[1:]
    result = audit(model, size=size)
    assert result.macs_size == size
    assert result.macs == cells * 5 * 48 + 4 * cells * 7 * 5
    assert (audit(model).macs, audit(model).macs_size) == (None, None)


def test_a_size_says_nothing_of_a_graph_that_has_one() -> None:
    result = audit(graph("y = Conv(x, w)", f"{MAP}, float[4,3,1,1] w"), size=(512, 512))
    assert (result.macs, result.macs_size) == (4 * 3 * 64, None)


def test_macs_inside_a_branch_are_none() -> None:
    body = "y = If (c) <then_branch = l () => (u) { u = MatMul(x, x) }, else_branch = r () => (v) { v = Gelu(x) }>"
    assert audited(body, "bool c, float[6,6] x").macs is None


def test_parameters_are_those_of_initializers_and_constants() -> None:
    body = "c = Constant<value = float[3] {1.0, 2.0, 3.0}>()\n i = Constant<value = int64[2] {1, 2}>()\n y = Add(x, c)"
    model = graph(body, "float[2,3] x")
    for name, kind in (("half", np.float16), ("full", np.float32), ("quantised", np.int8), ("shape", np.int64)):
        model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 5), kind), name))
    assert audit(model).parameters == 3 + 3 * 20


def test_the_rest_of_an_audit() -> None:
    model = graph(
        "a = MatMul(x, w)\n b = Mul(a, a)\n c = Mul(b, a)\n y = Softmax(c)", "float[batch,H,3] x, float[3,3] w"
    )
    result = audit(model)
    assert result.opset == 20
    assert result.inputs == {"x": ["batch", "H", 3], "w": [3, 3]}
    assert result.outputs == {"y": []}
    assert result.operators == {"Mul": 2, "MatMul": 1, "Softmax": 1}
    assert next(iter(result.operators)) == "Mul"
    assert result.bytes == len(model.SerializeToString())
    assert result.deployable


def test_an_audit_leaves_the_graph_as_it_is() -> None:
    model = graph("y = Tanh(x)", "float[N,6] x")
    before = model.SerializeToString()
    audit(model)
    assert model.SerializeToString() == before


def test_a_contradiction_is_an_error() -> None:
    with pytest.raises(GraphError, match="the graph contradicts itself"):
        audited("y = MatMul(x, x)")


def test_a_deployable_graph_passes_the_gate() -> None:
    audited("y = Gelu(x)").require_deployable("m.onnx")


@pytest.mark.parametrize(("count", "more"), [(1, ""), (3, ""), (4, " and 1 more"), (9, " and 6 more")])
def test_the_gate_names_the_first_nodes_and_counts_the_rest(count: int, more: str) -> None:
    body = "\n".join(f"y{k} = NonZero(x)" for k in range(count))
    with pytest.raises(AuditFailed) as caught:
        audited(body, output="y0").require_deployable("m.onnx")
    reason = "NonZero moves single elements by index or by value"
    named = "; ".join(f"y{k}: {reason}" for k in range(min(count, 3)))
    assert str(caught.value) == f"m.onnx is not deployable: {named}{more}; type: sepvit-deploy audit m.onnx"
    assert caught.value.exit_code == 1
