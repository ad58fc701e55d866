"""Each step to a CPU's form against the Q/DQ graph before it, on small graphs, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from sepvit_deploy.cpu_form import (
    cpu_form,
    fused_attention,
    integer_products,
    tanh_gelu,
)
from sepvit_deploy.placement import sites
from sepvit_deploy.qdq import CODES, Product, asymmetric, insert
from tests.unit.graphs import BLOCK, graph, mlp, run, sqnr_db

RNG = np.random.default_rng(3)
DWA = f"{BLOCK}.attention.dwa"
ONE_WINDOW = f"""["{BLOCK}.norm1/Neg"] n = Neg(x)
["{DWA}.qkv/MatMul"] u = MatMul(n, w)
["{DWA}.qkv/Add"] ub = Add(u, b)
["{DWA}/Reshape"] r = Reshape(ub, to_heads)
["{DWA}/Transpose"] t = Transpose<perm = [0, 2, 1, 3]>(r)
["{DWA}/Split"] q, k, v = Split<axis = 1, num_outputs = 3>(t)
["{DWA}/Transpose_2"] kt = Transpose<perm = [0, 1, 3, 2]>(k)
["{DWA}/MatMul"] s = MatMul(q, kt)
["{DWA}/Softmax"] p = Softmax<axis = -1>(s)
["{DWA}/MatMul_2"] c = MatMul(p, v)
["{DWA}/Transpose_3"] ct = Transpose<perm = [0, 2, 1, 3]>(c)
["{DWA}/Reshape_2"] cr = Reshape(ct, to_tokens)
["{DWA}/Add"] y = Add(cr, n)"""
HEADS = {"to_heads": [-1, 5, 6, 4], "to_tokens": [-1, 5, 8]}
TOKENS = {"x": "float[B,5,8] x", "y": "float[B,5,8] y"}


def quantised(model: onnx.ModelProto) -> onnx.ModelProto:
    """With every site in INT8 on a grid of [-4, 4]."""
    found = sites(model)
    readers = {site.activation: {(site.node, 0)} for site in found}
    grids = {name: asymmetric(-4, 4, codes=CODES) for name in readers}
    return insert(model, grids, readers, [Product(site.node, site.weight, site.axis) for site in found], pair_safe=True)


def text_graph(
    body: str, weights: dict[str, tuple[int, ...]], shapes: dict[str, list[int]], **ends: str
) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 20]> net ({ends["x"]}) => ({ends["y"]}) {{ {body} }}'
    )
    rng = np.random.default_rng(0)
    for name, shape in weights.items():
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.3)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    for name, shape in shapes.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(shape, np.int64), name))
    return model


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def assert_equal(before: onnx.ModelProto, after: onnx.ModelProto, x: np.ndarray) -> None:
    (expected,), (found,) = run(before, x), run(after, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_attention_of_one_window_is_fused() -> None:
    before = quantised(text_graph(ONE_WINDOW, {"w": (8, 24), "b": (24,)}, HEADS, **TOKENS))
    after = fused_attention(before)
    assert [op for op in operators(after) if op in ("MatMul", "Softmax", "MultiHeadAttention")] == [
        *["MatMul"] * 3,
        "MultiHeadAttention",
    ]
    assert_equal(before, after, RNG.standard_normal((3, 5, 8), dtype=np.float32))
    assert_equal(before, integer_products(after), RNG.standard_normal((3, 5, 8), dtype=np.float32))


@pytest.mark.parametrize(
    ("found", "other"),
    [
        ("Softmax<axis = -1>", "Softmax<axis = 2>"),
        ("MatMul(q, kt)", "MatMul(v, kt)"),
        (f"{DWA}.qkv/", f"{BLOCK}.attention.proj/"),
    ],
)
def test_another_attention_stays(found: str, other: str) -> None:
    before = quantised(text_graph(ONE_WINDOW.replace(found, other), {"w": (8, 24), "b": (24,)}, HEADS, **TOKENS))
    assert fused_attention(before).graph.node == before.graph.node


def test_an_attention_that_something_else_reads_stays() -> None:
    before = quantised(text_graph(ONE_WINDOW, {"w": (8, 24), "b": (24,)}, HEADS, **TOKENS))
    before.graph.output.append(onnx.helper.make_tensor_value_info("q", 1, None))
    assert fused_attention(before).graph.node == before.graph.node


def test_an_attention_in_float_stays() -> None:
    before = text_graph(ONE_WINDOW, {"w": (8, 24), "b": (24,)}, HEADS, **TOKENS)
    assert fused_attention(before).graph.node == before.graph.node


def test_gelu_becomes_its_form_by_tanh() -> None:
    after = tanh_gelu(mlp())
    x = RNG.standard_normal((2, 5, 6), dtype=np.float32)
    assert 60 < sqnr_db(run(mlp(), x)[0], run(after, x)[0]) < 120


def test_products_take_their_bias_in() -> None:
    before = quantised(mlp())
    after = integer_products(before)
    assert operators(after) == [
        *["LayerNormalization", "QuantizeLinear", "MatMulIntegerToFloat"],
        *["Gelu", "QuantizeLinear", "MatMulIntegerToFloat", "Add"],
    ]
    assert_equal(before, after, RNG.standard_normal((2, 5, 6), dtype=np.float32))
    plain = quantised(graph(f'["{BLOCK}.mlp.fc1/MatMul"] h = MatMul(x, w) y = Add(h, s)', {"w": (6, 6), "s": (5, 6)}))
    assert operators(integer_products(plain)) == ["QuantizeLinear", "MatMulIntegerToFloat", "Add"]
    assert_equal(plain, integer_products(plain), RNG.standard_normal((2, 5, 6), dtype=np.float32))


@pytest.mark.parametrize("change", [cpu_form, fused_attention, integer_products])
def test_a_graph_in_float_stays_and_the_source_is_not_changed(
    change: Callable[[onnx.ModelProto], onnx.ModelProto],
) -> None:
    model, before = quantised(mlp()), quantised(mlp())
    change(model)
    assert model == before
    if change is not cpu_form:
        assert change(mlp()) == mlp()
