"""The numbers of quantisation and the Q/DQ nodes, against arithmetic written out in NumPy."""

from __future__ import annotations

from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from sepvit_deploy.errors import GraphError
from sepvit_deploy.half import SMALLEST_NORMAL
from sepvit_deploy.qdq import (
    CODES,
    PAIR_SUM,
    Grid,
    Product,
    asymmetric,
    insert,
    pair_safe_weight,
    quantised_weight,
    symmetric,
)
from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner
from tests.unit.graphs import BLOCK, MLP_WEIGHTS, graph, mlp, nodes_of, run, types

X = np.random.default_rng(1).standard_normal((2, 5, 6), dtype=np.float32)
FC1 = Product(f"{BLOCK}.mlp.fc1/MatMul", "w1", 1)
N = {"n": {(FC1.node, 0)}}
WEIGHTS = st.builds(
    lambda seed, shape, power: (
        np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * np.float32(10.0**power)
    ),
    st.integers(0, 999),
    st.sampled_from([(3, 4), (1, 1), (6, 2), (4, 3, 3, 3)]),
    st.integers(-12, 4),
)


def weights_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_the_symmetric_grid_ends_at_the_threshold() -> None:
    assert symmetric("x", 12.7, half=False) == Grid(float(np.float32(0.1)))
    assert symmetric("x", 12.7, half=True).scale == float(np.float16(0.1))


@pytest.mark.parametrize("threshold", [127 * SMALLEST_NORMAL * 0.99, 1e-9, 127 * 65504 * 1.01])
def test_a_scale_that_fp16_does_not_hold_is_refused_by_name(threshold: float) -> None:
    with pytest.raises(GraphError, match=r"stage0\.embed has the scale .*; expected 6\.1e-05 to 65504.*--keep"):
        symmetric("stage0.embed", threshold, half=True)
    assert symmetric("stage0.embed", threshold, half=False).scale > 0


@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.sampled_from([255, CODES]))
def test_the_asymmetric_grid_holds_its_ends_and_zero(a: float, b: float, codes: int) -> None:
    low, high = min(a, b), max(a, b)
    if max(-low, high) < 1e-6:
        return
    grid = asymmetric(low, high, codes=codes)
    assert 0 <= grid.zero <= codes
    assert (0 - grid.zero) * grid.scale <= min(low, 0) + grid.scale * 0.501
    assert (codes - grid.zero) * grid.scale >= max(high, 0) - grid.scale * 0.501


@given(WEIGHTS, st.booleans(), st.booleans(), st.booleans())
def test_a_weight_is_within_half_a_step(values: np.ndarray, half: bool, whole: bool, safe: bool) -> None:
    axis = None if whole else (1 if values.ndim == 2 else 0)
    if safe and axis is not None:
        half = False
        codes, scales = pair_safe_weight(values, axis)
    else:
        codes, scales = quantised_weight(values, axis, half=half)
    assert (codes.dtype, codes.shape, np.abs(codes.astype(int)).max() <= 127) == (np.int8, values.shape, True)
    assert scales.shape == (() if whole else (values.shape[axis],))
    assert (scales > 0).all()
    if half:
        np.testing.assert_array_equal(scales, scales.astype(np.float16).astype(np.float32))
    shape = [-1 if i == axis else 1 for i in range(values.ndim)]
    step = scales.astype(np.float64) if whole else scales.astype(np.float64).reshape(shape)
    assert (np.abs(codes * step - values) <= step * 0.50001).all()


def test_each_channel_has_the_scale_of_its_largest_weight() -> None:
    values = np.array([[1.0, -0.5, 0.0], [0.25, 0.1, 0.0]], np.float32)
    codes, scales = quantised_weight(values, 1)
    np.testing.assert_allclose(scales, [1 / 127, 0.5 / 127, 1 / 127], rtol=1e-6)
    np.testing.assert_array_equal(codes, [[127, -127, 0], [32, 25, 0]])


def test_a_subnormal_fp16_scale_keeps_the_weights() -> None:
    values = np.linspace(-1e-3, 1e-3, 64, dtype=np.float32).reshape(64, 1)
    codes, scales = quantised_weight(values, 1, half=True)
    assert scales[0] < SMALLEST_NORMAL
    assert np.abs(codes * scales - values).max() < 0.6 * 1e-3 / 127


def test_an_activation_gets_one_pair_and_a_weight_is_stored_as_int8() -> None:
    changed = insert(mlp(), {"n": Grid(0.02)}, N, [FC1])
    onnx.checker.check_model(changed, full_check=True)
    assert nodes_of(changed, "QuantizeLinear") == ["n/QuantizeLinear"]
    assert nodes_of(changed, "DequantizeLinear") == ["n/DequantizeLinear", "w1/DequantizeLinear"]
    product = next(node for node in changed.graph.node if node.name == FC1.node)
    assert list(product.input) == ["n/dq", "w1/dq"]
    held = weights_of(changed)
    assert "w1" not in held
    assert (held["w1/int8"].dtype, held["w1/int8"].shape, held["w1/scale"].shape) == (np.int8, (6, 12), (12,))
    assert not held["w1/zero"].any() and held["w1/zero"].dtype == held["n/zero"].dtype == np.int8
    found = types(changed)
    assert (found["n/q"], found["n/dq"], found["b1"]) == (TensorProto.INT8, TensorProto.FLOAT, TensorProto.FLOAT)


def test_the_source_stays_as_it_is() -> None:
    model = mlp()
    before = model.SerializeToString()
    insert(model, {"n": Grid(0.02)}, N, [FC1])
    assert model.SerializeToString() == before


def test_readers_share_the_pair_and_others_read_the_float() -> None:
    body = (
        f"""["a/MatMul"] a = MatMul(x, w) ["b/MatMul"] b = MatMul(x, w) ["{BLOCK}/Add"] c = Add(a, b) y = Add(c, x)"""
    )
    model = graph(body, {"w": (6, 6)})
    readers = {"x": {("a/MatMul", 0), ("b/MatMul", 0)}}
    products = [Product("a/MatMul", "w", 1), Product("b/MatMul", "w", 1)]
    changed = insert(model, {"x": Grid(0.02)}, readers, products)
    read = {node.name or "last": list(node.input) for node in changed.graph.node}
    assert read["a/MatMul"] == read["b/MatMul"] == ["x/dq", "w/dq"]
    assert read["last"] == ["c", "x"]
    assert len(nodes_of(changed, "QuantizeLinear", "DequantizeLinear")) == 3
    everywhere = insert(model, {"x": Grid(0.02)}, {"x": None}, [])
    assert list(everywhere.graph.node[-1].input) == ["c", "x/dq"]


def test_a_weight_that_something_else_reads_stays_for_it() -> None:
    model = graph('["a/MatMul"] a = MatMul(x, w) b = MatMul(a, w) y = Add(b, x)', {"w": (6, 6)})
    held = weights_of(insert(model, {"x": Grid(0.02)}, {"x": {("a/MatMul", 0)}}, [Product("a/MatMul", "w", 1)]))
    assert {"w", "w/int8"} <= held.keys()


def faked(values: np.ndarray, scale: np.ndarray, zero: int, low: int, high: int) -> np.ndarray:
    """What Q and DQ leave of some values: float32 arithmetic, halves to the even neighbour."""
    scale = np.asarray(scale, np.float32)
    codes = np.clip(np.rint(values.astype(np.float32) / scale) + zero, low, high)
    return ((codes - zero) * scale).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 999),
    st.integers(1, 7),
    st.integers(1, 7),
    st.floats(0.05, 4.0),
    st.booleans(),
    st.sampled_from(["int8", "uint8"]),
    st.booleans(),
)
def test_products_equal_fake_quantisation_in_numpy(
    seed: int, inside: int, out: int, threshold: float, whole: bool, kind: str, conv: bool
) -> None:
    rng = np.random.default_rng(seed)
    shape = (out, inside, 1, 1) if conv else (inside, out)
    bias = (1, out, 1, 1) if conv else (out,)
    operator = "Conv" if conv else "MatMul"
    ends = {"x": f"float[B,{inside},2,2] x", "y": f"float[B,{out},2,2] y"}
    flat = {"x": f"float[B,4,{inside}] x", "y": f"float[B,4,{out}] y"}
    body = f'["p/{operator}"] p = {operator}(x, w) y = Add(p, b)'
    model = graph(body, {"w": shape, "b": bias}, **(ends if conv else flat), seed=seed)
    axis = None if whole else (0 if conv else 1)
    grid = symmetric("x", threshold, half=False) if kind == "int8" else asymmetric(-threshold / 3, threshold)
    node = f"p/{operator}"
    changed = insert(model, {"x": grid}, {"x": {(node, 0)}}, [Product(node, "w", axis)])

    x = rng.standard_normal((2, inside, 2, 2) if conv else (2, 4, inside)).astype(np.float32)
    w, b = (weights_of(model)[name] for name in "wb")
    others = tuple(i for i in range(w.ndim) if i != axis)
    largest = np.abs(w).max(axis=None if whole else others, keepdims=not whole).astype(np.float64)
    ends_of = (-127, 127) if kind == "int8" else (0, 255)
    fake_x = faked(x, np.float32(grid.scale), grid.zero, ends_of[0] - (kind == "int8"), ends_of[1])
    fake_w = faked(w, (largest / 127).astype(np.float32), 0, -127, 127)
    found_x, found_w = run(changed, x, "x/dq", "w/dq")
    np.testing.assert_array_equal(found_x, fake_x)
    np.testing.assert_array_equal(found_w, fake_w)
    want = np.einsum("bchw,oc->bohw", fake_x, fake_w[:, :, 0, 0]) + b if conv else fake_x @ fake_w + b
    np.testing.assert_allclose(run(changed, x)[0], want, rtol=1e-5, atol=1e-5)


def test_a_pair_safe_weight_costs_no_more_than_it_must() -> None:
    values = np.array([[1.0, 1.0, 1.0, 1.0], [1.0, -1.0, 0.3, 0.4], [1.0, 1.0, 1.0, 0.1]], np.float32)
    codes, scales = pair_safe_weight(values, 1)
    np.testing.assert_array_equal(codes[:, 1:3], [[127, 127], [-127, 38], [127, 127]])  # no sum above PAIR_SUM
    assert PAIR_SUM - 1 <= codes[:2, 0].astype(int).sum() <= PAIR_SUM
    assert PAIR_SUM - 2 <= codes[:2, 3].astype(int).sum() <= PAIR_SUM
    assert (scales >= quantised_weight(values, 1)[1]).all()


def adversarial(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Weights whose neighbours are as large as each other and mostly of one sign, for 16-bit sums to overflow."""
    signs = np.where(rng.random(shape) < 0.9, 1, -1)
    return (signs * rng.choice([1.0, 0.98, 0.5, 0.01], shape, p=[0.6, 0.2, 0.1, 0.1])).astype(np.float32)


def largest_pair(model: onnx.ModelProto) -> int:
    """What two neighbours of a column of the weight v add up to at the largest code."""
    codes = weights_of(model)["v/int8"].astype(int)
    pairs = codes[: len(codes) // 2 * 2].reshape(-1, 2, codes.shape[1]).sum(axis=1)
    return int(np.abs(pairs).max()) * CODES


def fused_operators(model: onnx.ModelProto) -> set[str]:
    """Operators of what ONNX Runtime makes of a graph."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    with TemporaryDirectory() as folder:
        options.optimized_model_filepath = f"{folder}/model.onnx"
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}


def codes_of(values: np.ndarray, grid: Grid) -> np.ndarray:
    return np.clip(np.rint(values / np.float32(grid.scale)) + grid.zero, 0, 255).astype(np.int64) - grid.zero


@pytest.mark.parametrize("inside", [2, 7, 64, 129])
@pytest.mark.parametrize("low", [0.0, -0.2, -1.0])
def test_what_a_cpu_fuses_equals_arithmetic_in_integers(inside: int, low: float) -> None:
    rng = np.random.default_rng(inside)
    ends = {"x": f"float[B,{inside},4,4] x", "y": "float[B,9,4,4] y"}
    body = """["p/Conv"] p = Conv<pads = [1, 1, 1, 1]>(x, w) i = Transpose<perm = [0, 2, 3, 1]>(x)
    ["m/MatMul"] m = MatMul(i, v) j = Transpose<perm = [0, 3, 1, 2]>(m) y = Add(j, p)"""
    shapes = {"w": (9, inside, 3, 3), "v": (inside, 9)}
    model = graph(body, shapes, **ends)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(adversarial(rng, *shapes[tensor.name]), tensor.name))
    grid = asymmetric(low, 1.0, codes=CODES)
    given = Grid(inside * 0.1, 128, "uint8")
    grids, readers = {"x": grid, "i": grid, "p": given}, {"x": {("p/Conv", 0)}, "i": {("m/MatMul", 0)}, "p": None}
    products = [Product("p/Conv", "w", 0), Product("m/MatMul", "v", 1)]
    safe = insert(model, grids, readers, products, pair_safe=True)
    assert {"QLinearConv", "MatMulIntegerToFloat"} <= fused_operators(safe)
    assert largest_pair(insert(model, grids, readers, products)) > 32767 >= largest_pair(safe)
    x = rng.choice(np.array([low, 1.0, 0.5], np.float32), (3, inside, 4, 4), p=[0.2, 0.7, 0.1])

    def expected(changed: onnx.ModelProto) -> np.ndarray:
        held, codes = weights_of(changed), codes_of(x, grid)
        padded = np.pad(codes, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        conv = np.einsum("bchwij,ocij->bohw", windows, held["w/int8"].astype(np.int64))
        conv = conv * grid.scale * held["w/scale"].astype(np.float64).reshape(-1, 1, 1)
        product = np.einsum("bchw,co->bohw", codes, held["v/int8"].astype(np.int64))
        product = product * grid.scale * held["v/scale"].astype(np.float64).reshape(-1, 1, 1)
        return product + codes_of(conv.astype(np.float32), given) * given.scale

    found = OnnxRuntimeRunner(safe, threads=1, fused=True).run(x)["y"]
    difference = np.abs(found - expected(safe))
    assert difference.max() <= given.scale * 1.001  # the convolution's own rounding, at the middle between two codes
    assert (difference > 1e-5 * np.abs(expected(safe)).max()).mean() < 0.01


def test_every_operator_is_left_in_place() -> None:
    before = [node.op_type for node in mlp().graph.node]
    changed = insert(mlp(), {"n": Grid(0.02)}, N, [FC1])
    assert [node.op_type for node in changed.graph.node if "quantize" not in node.op_type.lower()] == before
    assert set(MLP_WEIGHTS) - set(weights_of(changed)) == {"w1"}
    assert np.isfinite(run(changed, X)[0]).all()
