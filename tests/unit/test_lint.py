"""TensorRT's rules: what breaks each, what comes close, the count of products, and graphs that nobody should send."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sepvit_deploy.errors import AuditFailed, GraphError
from sepvit_deploy.lint import RULES, Finding, LintReport, lint
from tests.unit.lint_graphs import BROKEN, CLOSE, PLAIN, Broken, attention, graph, listed, parsed, product

EACH_BROKEN = [pytest.param(rule, case, id=f"{rule} {case.message}") for rule in BROKEN for case in BROKEN[rule]]
EACH_CLOSE = [pytest.param(rule, text, id=f"{rule} {n}") for rule in CLOSE for n, text in enumerate(CLOSE[rule])]


def linted(text: str) -> LintReport:
    return lint(parsed(text))


def test_every_rule_has_a_graph_that_breaks_it_and_a_close_one() -> None:
    assert BROKEN.keys() == CLOSE.keys() == RULES.keys()
    assert all(BROKEN.values())
    assert all(CLOSE.values())


@pytest.mark.parametrize(("rule", "case"), EACH_BROKEN)
def test_a_broken_rule_is_found(rule: str, case: Broken) -> None:
    report = linted(case.text)
    expected = Finding(rule, RULES[rule].severity, case.node, case.message)
    assert expected in report.findings, report.findings
    assert {finding.rule for finding in report.findings if finding.severity == "error"} <= {rule}
    assert report.passed == (RULES[rule].severity != "error")


@pytest.mark.parametrize(("rule", "text"), EACH_CLOSE)
def test_what_comes_close_is_not_found(rule: str, text: str) -> None:
    report = linted(text)
    assert rule not in {finding.rule for finding in report.findings}
    assert report.passed, report.findings


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule_says_in_one_line_why_and_what_to_do(rule: object) -> None:
    found = RULES[rule.id]  # type: ignore[attr-defined]
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", found.id)
    assert found.severity in ("error", "warning", "info")
    assert found.why.endswith(".")
    assert "\n" not in found.why
    assert 30 < len(found.why) < 100


def test_the_worst_comes_first() -> None:
    broken = graph(
        "a = Cast<to = 10>(x) b = Cast<to = 1>(a) c = Cast<to = 10>(b) d = Softmax(c) y = Add(d, x)", y="float16[4,32]"
    )
    assert [finding.severity for finding in linted(broken).findings] == ["error", "warning", "warning", "info"]


def test_an_info_is_said_once_for_all_nodes_and_a_warning_for_each() -> None:
    chain = " ".join(f"y{n + 1} = Softmax(y{n})" for n in range(5))
    (info,) = linted(graph(f"y0 = Neg(x) {chain}", "float16[4,32]", "float16[4,32] y5").replace(" y)", ")")).findings
    assert (info.node, info.message) == ("y1", "Softmax in FP16, and 4 more like it")


def test_the_gate_names_the_first_errors_and_counts_the_rest() -> None:
    body = " ".join(f"y{n} = Add(x, h)" for n in range(5)) + " y = Neg(x)"
    report = linted(graph(body, "float[4,32] x, float16[4,32] h"))
    with pytest.raises(AuditFailed) as caught:
        report.require_passed("m.onnx")
    named = "; ".join(f"y{n}: Add of FP16 and FP32" for n in range(3))
    assert str(caught.value) == f"TensorRT refuses m.onnx: {named} and 2 more; type: sepvit-deploy lint m.onnx"
    linted(PLAIN).require_passed("m.onnx")
    linted(BROKEN["residual"][0].text).require_passed("m.onnx")  # a warning


def test_products_are_counted_by_precision_and_operator() -> None:
    def counted(text: str) -> dict[str, dict[str, int]]:
        return linted(text).products

    assert counted(graph("y = Neg(x)")) == {}
    assert counted(product()) == {"INT8": {"MatMul": 1}}
    assert counted(product(op="Gemm")) == {"INT8": {"Gemm": 1}}
    assert counted(BROKEN["one-sided"][0].text) == {"FP32": {"MatMul": 1}}
    assert counted(attention("pv")) == {"FP32": {"MatMul": 1}, "INT8": {"MatMul": 1}}
    conv = graph(
        "c = Conv(x, w) h = Cast<to = 10>(c) y = MatMul(h, k)",
        "float[1,2,4,4]",
        "float16[1,2,4,4]",
        constants=listed("float[2,2,1,1] w = {1,1,1,1}", "float16[4,4] k = {" + ",".join(["15360"] * 16) + "}"),
    )
    assert counted(conv) == {"FP32": {"Conv": 1}, "FP16": {"MatMul": 1}}


def test_a_uint8_product_is_the_int8_product_that_tensorrt_makes_of_it() -> None:
    assert linted(product().replace("int8 z =", "uint8 z =")).products == {"INT8": {"MatMul": 1}}


ANY_SIZE = "n = Shape(x) hw = Slice(n, two, four, zero) t = Concat<axis = 0>(one, hw) "
PARTS = "int64[1] zero = {0}, int64[1] two = {2}, int64[1] four = {4}, int64[2] one = {-1, 1}"


def test_what_sizes_that_are_left_open_come_to_is_no_finding() -> None:
    body, y = f"{ANY_SIZE} y = Reshape(x, t)", "float[N,1,H,W]"
    assert linted(graph(body, "float[B,3,H,W]", y, constants=PARTS)).findings == ()
    (finding,) = linted(graph(body, "float[B,3,8,8]", y, constants=PARTS)).findings
    assert (finding.rule, finding.node) == ("computed-shape", "y")


def test_a_shape_that_the_numbers_decide_is_found_at_any_size() -> None:
    body = "m = ReduceMax<keepdims = 0>(x) i = Cast<to = 7>(m) t = Reshape(i, one) y = Expand(x, t)"
    report = linted(graph(body, "float[B,3,H,W]", "float[B,3,H,W]", constants="int64[1] one = {1}"))
    assert [finding.node for finding in report.findings if finding.rule == "computed-shape"] == ["y"]


def test_local_functions_are_linted() -> None:
    text = CLOSE["operator"][1].replace("b = Neg(t)", "b = Unheard(t)")
    assert [(finding.rule, finding.node) for finding in linted(text).findings] == [("operator", "b")]


def test_branches_may_use_the_same_names() -> None:
    text = graph(
        """y = If (c) <
          then_branch = left () => (float[4,32] u) { q = QuantizeLinear(x, s, z) u = DequantizeLinear(q, s, z) },
          else_branch = right () => (float16[4,32] u) { q = Cast<to = 10>(x) u = Neg(q) }
        >""",
        "bool c, float[4,32] x",
        constants="float s = {0.1}, int8 z = {0}",
    )
    assert linted(text).findings == ()


def test_a_lint_leaves_the_graph_as_it_is() -> None:
    model = parsed(product())
    before = model.SerializeToString()
    lint(model)
    assert model.SerializeToString() == before


def large() -> onnx.ModelProto:
    """600 nodes and 128 MB of weights."""
    body = " ".join(f"x{n + 1} = MatMul(x{n}, w{n % 8})" for n in range(600))
    model = parsed(graph(f"x0 = Neg(x) {body}", "float[B,2048]", "float[B,2048] x600").replace(" y)", ")"))
    weights = np.zeros((2048, 2048), np.float32)
    model.graph.initializer.extend(numpy_helper.from_array(weights, f"w{n}") for n in range(8))
    return model


def test_weights_cost_no_time() -> None:
    model = large()
    start = time.perf_counter()
    report = lint(model)
    assert time.perf_counter() - start < 3
    assert (report.findings, report.products) == ((), {"FP32": {"MatMul": 600}})


def with_constant(**fields: object) -> onnx.ModelProto:
    """A sum with a constant of these fields."""
    model = parsed(graph("y = Add(x, k)"))
    model.graph.initializer.append(TensorProto(name="k", **fields))  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data_type": 1, "dims": [32], "raw_data": b"1234"}, "has 4 bytes for 128"),
        ({"data_type": 1, "dims": [32], "raw_data": b"1234" * 33}, "has 132 bytes for 128"),
        ({"data_type": 1, "dims": [2**40, 2**40]}, f"has 0 numbers for {2**80}"),
        ({"data_type": 1, "dims": [-32], "raw_data": b""}, "has the shape [-32]"),
        ({"data_type": 99, "dims": [1], "raw_data": b"1"}, "has the unknown type 99"),
        ({"data_type": 10, "dims": [4], "int32_data": [1]}, "has 1 numbers for 4"),
        ({"data_type": TensorProto.INT4, "dims": [3], "raw_data": b"1"}, "has 1 bytes for 2"),
    ],
)
def test_a_damaged_constant_is_an_error(fields: dict[str, object], message: str) -> None:
    findings = lint(with_constant(**fields)).findings
    assert ("constant", "k", message) in [(finding.rule, finding.node, finding.message) for finding in findings]


def test_a_damaged_scale_is_an_error_and_nothing_more() -> None:
    model = parsed(PLAIN)
    model.graph.initializer[0].dims.append(7)
    found = [(finding.rule, finding.node) for finding in lint(model).findings]
    assert ("constant", "s") in found
    assert not {"scale-value", "scale-range"} & {rule for rule, _ in found}


def test_an_endless_vector_is_no_endless_lint() -> None:
    assert linted(graph("a = Squeeze(x) y = Add(a, a)", "float[1099511627776]", "float")).passed


def test_a_name_that_is_no_text_is_refused() -> None:
    data = parsed(graph("y = Neg(x)")).SerializeToString().replace(b"Neg", b"\xff\xfe\xfd")
    with pytest.raises(GraphError, match=r"the graph holds the name b'\\xff\\xfe\\xfd'; expected names in UTF-8"):
        lint(onnx.load_model_from_string(data))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.graph.ClearField("node"),
        lambda model: model.graph.ClearField("output"),
        lambda model: model.ClearField("opset_import"),
        lambda model: model.graph.node[0].ClearField("name"),
        lambda model: model.graph.node[0].ClearField("output"),
        lambda model: model.graph.node[0].ClearField("input"),
        lambda model: model.graph.node[0].attribute.append(helper.make_attribute("axis", "text")),
        lambda model: model.graph.input[0].type.Clear(),
        lambda model: model.graph.node.append(model.graph.node[0]),
    ],
)
def test_a_graph_that_lacks_what_it_should_have_is_no_crash(change: Callable[[onnx.ModelProto], None]) -> None:
    model = parsed(product())
    change(model)
    assert isinstance(lint(model), LintReport)


NAMES = st.sampled_from(["", "a", "b", "c", "d", "x", "s", "z"])
OPERATORS = st.sampled_from(
    [
        *("QuantizeLinear", "DequantizeLinear", "MatMul", "Gemm", "Conv", "ConvTranspose", "Add", "Div", "Softmax"),
        *("Transpose", "Reshape", "Concat", "Cast", "Identity", "ReduceMean", "ReduceSum", "Sqrt", "Exp", "Constant"),
        *("LayerNormalization", "Attention", "Where", "Gelu", "Shape", "Unheard", ""),
    ]
)
VALUES = st.one_of(st.integers(-5, 30), st.lists(st.integers(-3, 5), min_size=1, max_size=4), st.just("text"))
ATTRIBUTES = st.builds(
    helper.make_attribute, st.sampled_from(["axis", "perm", "to", "block_size", "group", "transB"]), VALUES
)
NODES = st.builds(
    onnx.NodeProto,
    op_type=OPERATORS,
    input=st.lists(NAMES, max_size=4),
    output=st.lists(NAMES, max_size=2),
    attribute=st.lists(ATTRIBUTES, max_size=2),
)
TENSORS = st.builds(
    TensorProto,
    name=NAMES,
    data_type=st.sampled_from([0, 1, 2, 3, 6, 7, 10, 14, 17, 22, 99]),
    dims=st.lists(st.sampled_from([-1, 0, 1, 2, 4, 2**40]), max_size=3),
    raw_data=st.binary(max_size=16) | st.none(),
    float_data=st.lists(st.sampled_from([0.0, -1.0, 1e-8, float("nan")]), max_size=2),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(NODES, max_size=8), st.lists(TENSORS, max_size=4), st.sampled_from([0, 13, 19, 21, 99]))
def test_no_graph_crashes_the_lint(nodes: list[onnx.NodeProto], tensors: list[TensorProto], opset: int) -> None:
    model = parsed(graph("y = Neg(x)"))
    model.opset_import[0].version = opset
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(tensors)
    report = lint(model)
    assert all(finding.rule in RULES and "\n" not in finding.message for finding in report.findings)
