"""Products by type in a graph and in an invented network, and what is refused where they are not as they should be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from sepvit_deploy.errors import AuditFailed, OptionError
from sepvit_deploy.network import (
    CONVOLUTION,
    MATMUL,
    Product,
    kept_layers,
    network_facts,
    products_of_graph,
    products_of_network,
    require_precision,
    require_same,
)
from sepvit_deploy.precision import fp16_from_fp32, int8_from_fp32
from tests.unit.graphs import BLOCK, DIGEST, attention, graph, mlp, table

FC1, FC2 = f"{BLOCK}.mlp.fc1/MatMul", f"{BLOCK}.mlp.fc2/MatMul"
QDQ = "{0}q = QuantizeLinear({0}, s, z) {0}d = DequantizeLinear({0}q, s, z)"


def int8(rest: str) -> onnx.ModelProto:
    model = mlp()
    ranges = table(model, onnx.numpy_helper.to_array(model.graph.initializer[2])[None, :5, :6], ["n", "h"])
    return int8_from_fp32(model, ranges, graph_sha256=DIGEST, rest=rest, keep=["*.fc2"]).model  # type: ignore[arg-type]


def types(model: onnx.ModelProto) -> dict[str, str]:
    return {product.name: product.type for product in products_of_graph(model)}


def test_products_of_a_graph_have_the_types_that_it_says() -> None:
    assert products_of_graph(mlp()) == [Product(FC1, MATMUL, "FLOAT"), Product(FC2, MATMUL, "FLOAT")]
    assert types(fp16_from_fp32(mlp()).model) == {FC1: "HALF", FC2: "HALF"}
    assert types(fp16_from_fp32(mlp(), keep=["*.fc2"]).model) == {FC1: "HALF", FC2: "FLOAT"}
    assert types(int8("fp16")) == {FC1: "INT8", FC2: "HALF"}
    assert types(int8("fp32")) == {FC1: "INT8", FC2: "FLOAT"}
    assert set(types(fp16_from_fp32(attention()).model).values()) == {"HALF"}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Conv(x, w)", (CONVOLUTION, "FLOAT")),
        ("y = ConvTranspose(x, w)", (CONVOLUTION, "FLOAT")),
        (f"{QDQ.format('x')} {QDQ.format('w')} y = Conv(xd, wd)", (CONVOLUTION, "INT8")),
        (f"{QDQ.format('x')} {QDQ.format('w')} t = Transpose(xd) y = Conv(t, wd)", (CONVOLUTION, "INT8")),
        (f"{QDQ.format('x')} y = Conv(xd, w)", (CONVOLUTION, "FLOAT")),
        (f"{QDQ.format('x')} {QDQ.format('w')} r = Relu(xd) y = Conv(r, wd)", (CONVOLUTION, "FLOAT")),
        ("h = Cast<to = 16>(x) v = Cast<to = 16>(w) c = Conv(h, v) y = Cast<to = 1>(c)", (CONVOLUTION, "BF16")),
        ("h = Cast<to = 10>(x) v = Cast<to = 10>(w) c = Conv(h, v) y = Cast<to = 1>(c)", (CONVOLUTION, "HALF")),
    ],
)
def test_a_product_in_int8_has_both_inputs_dequantised(body: str, expected: tuple[str, str]) -> None:
    text = "net (float[1,2,3,3] x, float[2,2,1,1] w) => (float[a,b,c,d] y) <float s = {0.1}, int8 z = {0}>"
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> {text} {{ {body} }}')
    (product,) = products_of_graph(model)
    assert product[1:] == expected
    assert product.name == f"the product that gives {'c' if 'Cast' in body else 'y'}"


def test_damaged_graphs_have_products_too() -> None:
    circle = "a = Identity(b) b = Identity(a) y = MatMul(a, b)"
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> net () => (float[2] y) {{ {circle} }}')
    (product,) = products_of_graph(model)
    assert product.type == "an unknown type"


def test_what_was_kept_is_what_the_patterns_say() -> None:
    half = fp16_from_fp32(mlp(), keep=["stage0.fc2"]).model
    assert FC2 in kept_layers(half, ["stage0.fc2"])
    assert FC1 not in kept_layers(half, ["stage0.fc2"])
    assert kept_layers(half, []) == frozenset()
    with pytest.raises(OptionError, match="--keep 'stage9' matches nothing"):
        kept_layers(half, ["stage9"])


def test_a_float32_product_in_an_fp16_file_is_named() -> None:
    products = products_of_graph(fp16_from_fp32(mlp(), keep=["*.fc2"]).model)
    require_precision(products, "fp16", name="a.onnx", kept={FC2})
    with pytest.raises(AuditFailed) as caught:
        require_precision(products, "fp16", name="a.onnx")
    assert str(caught.value) == (
        f"a.onnx is an FP16 file with 1 of 2 products in another type: {FC2} in FLOAT; "
        "expected HALF, but for what --keep left out; type: sepvit-deploy lint a.onnx; then quantize or export again"
    )


def test_the_rest_of_an_int8_file_is_of_one_precision() -> None:
    products = products_of_graph(int8("fp32"))
    require_precision(products, "int8", name="a.onnx", rest="fp32")
    require_precision(products_of_graph(int8("fp16")), "int8", name="a.onnx")
    with pytest.raises(AuditFailed, match=rf"1 of 2 products in another type: {FC2} in FLOAT; expected HALF or INT8;"):
        require_precision(products, "int8", name="a.onnx", rest="fp16")


@pytest.mark.parametrize(
    ("precision", "found"), [("int8", "HALF"), ("fp16", None), ("fp16", "FLOAT"), ("fp32", None), ("int8", None)]
)
def test_a_file_without_one_product_in_its_precision_is_refused(precision: Any, found: str | None) -> None:
    products = [Product("a", MATMUL, found)] if found else []
    with pytest.raises(AuditFailed, match=r"^a\.onnx is an .* file without one matrix product or convolution in "):
        require_precision(products, precision, name="a.onnx", kept={"a"})


@pytest.mark.parametrize(
    ("precision", "found"), [("fp32", "HALF"), ("fp32", "INT8"), ("fp16", "INT8"), ("int8", "BF16")]
)
def test_a_type_that_the_precision_does_not_have_is_refused(precision: Any, found: str) -> None:
    with pytest.raises(AuditFailed, match=f"products in another type: a in {found}; expected "):
        require_precision([Product("a", CONVOLUTION, found)], precision, name="a.onnx")


HALVES = [Product(name, MATMUL, "HALF") for name in "abcde"]


def test_a_network_that_says_the_same_in_any_order_is_accepted() -> None:
    require_same(HALVES, HALVES[::-1], name="a.onnx")
    require_same(HALVES, [Product(f"{p.name}_2", p.kind, p.type) for p in HALVES], name="a.onnx")


def test_what_a_network_computes_otherwise_is_named() -> None:
    network = [HALVES[0], Product("b", MATMUL, "FLOAT"), *HALVES[2:]]
    with pytest.raises(AuditFailed) as caught:
        require_same(HALVES, network, name="a.onnx")
    assert str(caught.value) == (
        "the builder does not take the precision of a.onnx from the file: b is HALF in the file and FLOAT in the "
        "network; expected 5 matrix products in HALF; do not build it: the engine would not be what was checked"
    )
    with pytest.raises(AuditFailed, match=r"and absent in the network, b is .* and 2 more; expected"):
        require_same(HALVES, [], name="a.onnx")
    with pytest.raises(AuditFailed, match="from the file: 6 matrix products in HALF; expected 5 "):
        require_same(HALVES, [*HALVES, Product("f", MATMUL, "HALF")], name="a.onnx")


def tensor(name: str, kind: str = "FLOAT", shape: tuple[int, ...] = (1,)) -> Any:
    return SimpleNamespace(name=name, dtype=SimpleNamespace(name=kind), shape=shape)


def layer(name: str, kind: str, inputs: list[Any], output: Any) -> Any:
    return SimpleNamespace(
        name=name,
        type=SimpleNamespace(name=kind),
        num_inputs=len(inputs),
        num_outputs=1,
        get_input=inputs.__getitem__,
        get_output=[output].__getitem__,
    )


def invented(layers: list[Any], inputs: list[Any], outputs: list[Any]) -> Any:
    return SimpleNamespace(
        num_layers=len(layers),
        get_layer=layers.__getitem__,
        num_inputs=len(inputs),
        get_input=inputs.__getitem__,
        num_outputs=len(outputs),
        get_output=outputs.__getitem__,
    )


def test_products_of_a_network_are_looked_at_through_shuffles() -> None:
    x, q, w = tensor("images", shape=(-1, 4)), tensor("q", "INT8"), tensor("w", "INT8")
    d, wd, ws, half = (tensor(name, "HALF") for name in ("d", "wd", "ws", "half"))
    y = tensor("y", "HALF", (-1, 2))
    layers = [
        layer("dq", "DEQUANTIZE", [q], d),
        layer("wdq", "DEQUANTIZE", [w], wd),
        layer("rank", "SHUFFLE", [wd], ws),
        layer("relu", "ACTIVATION", [d], half),
        layer("in both", "MATRIX_MULTIPLY", [d, ws], y),
        layer("in one", "MATRIX_MULTIPLY", [half, ws], y),
        layer("of an input", "MATRIX_MULTIPLY", [x, ws], y),
        layer("conv", "CONVOLUTION", [d], y),
        layer("quantised conv", "CONVOLUTION", [d, wd], y),
        layer("transposed", "DECONVOLUTION", [d, None], y),
    ]
    network = invented(layers, [x], [y])
    products = products_of_network(network)
    assert {product.name: product.type for product in products} == {
        "in both": "INT8",
        "in one": "HALF",
        "of an input": "HALF",
        "conv": "HALF",
        "quantised conv": "INT8",
        "transposed": "HALF",
    }
    facts = network_facts(network, products)
    assert (facts.matmuls, facts.convolutions) == ({"INT8": 1, "HALF": 2}, {"HALF": 2, "INT8": 1})
    assert (facts.layers, facts.inputs, facts.outputs) == (10, {"images": [-1, 4]}, {"y": [-1, 2]})


def test_products_inside_nodes_count() -> None:
    then = "then () => (float[2,2] a) { a = MatMul(x, x) }"
    otherwise = "otherwise () => (float[2,2] b) { b = Identity(x) }"
    model = graph(
        f"y = If(c) <then_branch = {then}, else_branch = {otherwise}>", x="float[2,2] x, bool c", y="float[2,2] y"
    )
    assert products_of_graph(model) == [Product("the product that gives a", MATMUL, "FLOAT")]


def test_two_products_that_swap_their_types_are_not_the_same() -> None:
    file = [Product("a", MATMUL, "INT8"), Product("b", MATMUL, "HALF")]
    require_same(file, [Product("other", MATMUL, "INT8"), Product("b", MATMUL, "HALF")], name="x.onnx")
    with pytest.raises(
        AuditFailed, match="a is INT8 in the file and HALF in the network, b is HALF in the file and INT8"
    ):
        require_same(file, [Product("a", MATMUL, "HALF"), Product("b", MATMUL, "INT8")], name="x.onnx")
