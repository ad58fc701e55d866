"""FP16: which nodes, which constants, how many Casts, and what keeps its name and type."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from sepvit_deploy.errors import GraphError, OptionError
from sepvit_deploy.half import to_half
from sepvit_deploy.precision import fp16_from_fp32
from tests.unit.graphs import BLOCK, attention, graph, mlp, nodes_of, run, sqnr_db, types

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
X = np.random.default_rng(1).standard_normal((2, 5, 6), dtype=np.float32)
NORM = "LayerNormalization<axis = -1>"


def in_fp32(*operators: str):
    return lambda node: node.op_type in operators


def set_weight(model: onnx.ModelProto, name: str, values: np.ndarray) -> None:
    next(t for t in model.graph.initializer if t.name == name).CopyFrom(numpy_helper.from_array(values, name))


@pytest.mark.parametrize("model", [mlp(), attention()], ids=["mlp", "attention"])
def test_fp16_is_close_and_inputs_and_outputs_stay_float32(model: onnx.ModelProto) -> None:
    half = fp16_from_fp32(model).model
    assert half.graph.input == model.graph.input
    assert half.graph.output == model.graph.output
    assert half.opset_import == model.opset_import
    (expected,), (found,) = run(model, X), run(half, X)
    assert found.dtype == np.float32
    assert sqnr_db(expected, found) > 50


def test_the_source_stays_as_it_is() -> None:
    model = mlp()
    before = model.SerializeToString()
    fp16_from_fp32(model, keep=["*.fc2"])
    assert model.SerializeToString() == before


def test_layernorm_and_softmax_compute_in_fp32_between_casts() -> None:
    found = types(fp16_from_fp32(attention()).model)
    assert (found["s"], found["s/float"], found["p"], found["p/half"]) == (HALF, FLOAT, FLOAT, HALF)
    found = types(fp16_from_fp32(mlp()).model)
    assert (found["n"], found["n/half"], found["gain"], found["w1"], found["h"]) == (FLOAT, HALF, FLOAT, HALF, HALF)


def test_without_safe_operators_only_the_ends_are_cast() -> None:
    result = fp16_from_fp32(mlp(), safe=())
    assert nodes_of(result.model, "Cast") == ["x/to_half", "y/to_float"]
    assert (result.fp16_nodes, result.fp32_nodes, result.casts) == (7, 0, 2)


def test_one_cast_serves_every_reader_and_comes_once() -> None:
    model = graph("a = Neg(x) b = Neg(x) c = Add(a, b) y = Add(c, x)")
    assert nodes_of(to_half(model, in_fp32()).model, "Cast") == ["x/to_half", "y/to_float"]


def test_fp32_nodes_read_each_other_directly() -> None:
    body = f"a = {NORM}(x, g) b = {NORM}(a, g) y = Add(a, b)"
    result = to_half(graph(body, {"g": (6,)}), in_fp32("LayerNormalization"))
    assert nodes_of(result.model, "Cast") == ["a/to_half", "b/to_half", "y/to_float"]


def test_moves_between_fp32_nodes_stay_in_fp32() -> None:
    body = f"a = {NORM}(x, g) t = Transpose<perm = [0, 2, 1]>(a) s = Softmax<axis = 1>(t) y = Transpose(s)"
    result = to_half(graph(body, {"g": (6,)}, y="float[5,6,B] y"), in_fp32("LayerNormalization", "Softmax"))
    assert result.casts == result.fp16_nodes == 0


def test_moves_after_fp16_stay_in_fp16_until_an_fp32_node_reads_them() -> None:
    body = f"a = Neg(x) t = Transpose<perm = [0, 2, 1]>(a) u = Transpose<perm = [0, 2, 1]>(t) y = {NORM}(u, g)"
    result = to_half(graph(body, {"g": (6,)}), in_fp32("LayerNormalization"))
    assert nodes_of(result.model, "Cast") == ["x/to_half", "u/to_float"]


def test_a_move_that_fp16_reads_too_is_made_in_fp16() -> None:
    body = f"a = {NORM}(x, g) t = Identity(a) b = {NORM}(t, g) c = Neg(t) y = Add(b, c)"
    found = types(to_half(graph(body, {"g": (6,)}), in_fp32("LayerNormalization")).model)
    assert (found["a"], found["a/half"], found["t"], found["t/float"]) == (FLOAT, HALF, HALF, FLOAT)


def test_no_cast_follows_a_cast() -> None:
    for model in (mlp(), attention()):
        half = fp16_from_fp32(model).model
        made = {output: node for node in half.graph.node for output in node.output}
        for node in half.graph.node:
            if node.op_type == "Cast" and node.input[0] in made:
                assert made[node.input[0]].op_type != "Cast"


def test_inner_tensors_keep_their_names_and_an_output_read_inside_too() -> None:
    model = graph("m = Neg(x) y = Abs(m) z = Neg(y)", y="float[B,5,6] y, float[B,5,6] z")
    found = types(to_half(model, in_fp32()).model)
    assert (found["m"], found["y"], found["z"]) == (HALF, FLOAT, FLOAT)
    assert run(to_half(model, in_fp32()).model, X)[0].dtype == np.float32
    names = {name for node in to_half(model, in_fp32()).model.graph.node for name in node.input}
    assert "y/half" in names


def test_operators_without_a_known_fp16_form_stay_in_fp32() -> None:
    result = to_half(graph("a = Neg(x) b = Mish(a) y = Neg(b)"), in_fp32())
    assert nodes_of(result.model, "Cast") == ["x/to_half", "a/to_float", "b/to_half", "y/to_float"]


def test_a_constant_read_in_both_precisions_is_there_twice() -> None:
    result = to_half(graph(f"a = {NORM}(x, g) y = Mul(a, g)", {"g": (6,)}), in_fp32("LayerNormalization"))
    kinds = {tensor.name: tensor.data_type for tensor in result.model.graph.initializer}
    assert kinds == {"g": FLOAT, "g/half": HALF}


def test_integers_stay() -> None:
    result = to_half(graph("s = Constant<value = int64[3] {0, 5, 6}>() a = Reshape(x, s) y = Neg(a)"), in_fp32())
    assert [tensor.data_type for tensor in result.model.graph.initializer] == [TensorProto.INT64]


def test_constants_as_nodes_are_converted_too() -> None:
    body = "c = Constant<value = float {0.5}>() a = Mul(x, c) y = Neg(a)"
    half = to_half(graph(body), in_fp32()).model
    assert {tensor.name: tensor.data_type for tensor in half.graph.initializer} == {"c": HALF}
    np.testing.assert_allclose(run(half, X)[0], -X / 2, rtol=1e-3)


def test_shapes_of_inner_tensors_are_dropped_for_their_types_changed() -> None:
    model = onnx.shape_inference.infer_shapes(mlp())
    assert model.graph.value_info
    assert not fp16_from_fp32(model).model.graph.value_info


def test_a_product_with_zero_stays_exactly_zero() -> None:
    model = graph("z = Mul(x, c) y = Add(z, t)", {"c": (), "t": (5, 6)})
    set_weight(model, "c", np.array(0, np.float32))
    (found,) = run(to_half(model, in_fp32()).model, X * 1000)
    want = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "t")).astype(np.float16)
    np.testing.assert_array_equal(found, np.broadcast_to(want, found.shape))


@pytest.mark.parametrize("value", [65520.0, -1e6, np.inf, np.nan])
def test_a_constant_beyond_fp16_is_refused_by_name(value: float) -> None:
    model = mlp()
    set_weight(model, "b1", np.full(12, value, np.float32))
    with pytest.raises(GraphError, match=re.escape("the constant 'b1' reaches ")) as error:
        fp16_from_fp32(model)
    assert "expected numbers up to 65504" in str(error.value)
    assert "--keep" in str(error.value)
    fp16_from_fp32(model, keep=["*.fc1"])


def test_constants_below_the_normal_numbers_are_counted() -> None:
    model = mlp()
    set_weight(model, "b2", np.array([0, 1e-9, -1e-9, 1e-5, 6.2e-5, 1], np.float32))
    result = fp16_from_fp32(model)
    assert (result.subnormal, result.zeroed) == (3, 2)


def test_kept_layers_nodes_and_groups_stay_in_fp32() -> None:
    for pattern in (f"{BLOCK}.mlp.fc2", "*.fc2/*", "stage0.fc2", "*.fc2"):
        found = types(fp16_from_fp32(mlp(), keep=[pattern]).model)
        assert (found["w2"], found["b2"], found["o0"], found["w1"]) == (FLOAT, FLOAT, FLOAT, HALF), pattern


def test_unnamed_nodes_are_not_kept_with_each_other() -> None:
    result = fp16_from_fp32(graph("a = Softmax(x) b = Neg(a) y = Abs(b)"))
    assert (result.fp16_nodes, result.fp32_nodes) == (1, 2)  # Abs has no place among what is converted


def test_patterns_and_operators_that_are_not_there_are_refused() -> None:
    with pytest.raises(OptionError, match=r"--keep '\*\.fc9' matches nothing; .*'\S*fc\d\S*'"):
        fp16_from_fp32(mlp(), keep=["*.fc9"])
    with pytest.raises(OptionError, match="safe operator 'LayerNorm' is not in the graph"):
        fp16_from_fp32(mlp(), safe=["LayerNorm"])


def test_what_was_converted_already_is_refused() -> None:
    half = fp16_from_fp32(mlp()).model
    with pytest.raises(GraphError, match=r"the graph has FP16 tensors already; .* give the file that export wrote"):
        fp16_from_fp32(half)


def test_a_tensor_of_unknown_type_is_refused() -> None:
    model = graph("y = Neg(x)")
    model.opset_import.append(onnx.helper.make_opsetid("nowhere", 1))
    model.graph.node[0].domain = "nowhere"
    model.graph.node.append(onnx.helper.make_node("Neg", ["y"], ["z"]))
    model.graph.output[0].name = "z"
    with pytest.raises(GraphError, match="leaves the type of 'y' open"):
        fp16_from_fp32(model)


CHAIN = ("Neg", "Identity", "Softmax", "Transpose", "Mul")


@given(st.lists(st.tuples(st.sampled_from(CHAIN), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=9))
def test_any_graph_stays_valid_with_no_cast_of_a_cast(plan: list[tuple[str, int, int]]) -> None:
    tensors = ["x"]
    body = ""
    for i, (operator, first, second) in enumerate(plan):
        a, b = (tensors[-1 - k % len(tensors)] for k in (first, second))
        attribute = "<perm = [0, 1]>" if operator == "Transpose" else ""
        body += f"t{i} = {operator}{attribute}({a}{', ' + b if operator == 'Mul' else ''})\n"
        tensors.append(f"t{i}")
    model = graph(f"{body} y = Neg({tensors[-1]})", x="float[2,3] x", y=f"float[2,3] y, float[2,3] {tensors[1]}")
    result = to_half(model, in_fp32("Softmax"))
    onnx.checker.check_model(result.model, full_check=True)
    made = {output: node.op_type for node in result.model.graph.node for output in node.output}
    casts = [node for node in result.model.graph.node if node.op_type == "Cast"]
    assert all(made.get(node.input[0]) != "Cast" for node in casts)
    assert len(casts) == len({node.output[0] for node in casts}) == result.casts


MAPS = {"x": "float[B,3,H,W] x", "y": "uint8[B,H,W] y"}
SIZES = """n = Shape(f) b = Slice(n, zero, two, zero) m = Shape(x) hw = Slice(m, two, four, zero)
s = Concat<axis = 0>(b, hw)"""
MASK = f"""c = Conv(x, w) f = Relu(c) {SIZES} r = Resize<mode = "linear">(f, , , s)
a = ArgMax<axis = 1, keepdims = 0>(r) y = Cast<to = 2>(a)"""


def mask() -> onnx.ModelProto:
    """(B, 3, H, W) -> the classes of its pixels at any size, with shapes that are computed."""
    ends = " ".join(
        f"{name} = Constant<value = int64[1] {{{n}}}>()" for name, n in (("zero", 0), ("two", 2), ("four", 4))
    )
    return graph(f"{ends} {MASK}", {"w": (5, 3, 1, 1)}, **MAPS)


def test_a_mask_of_any_size_is_decided_in_fp16_and_its_shapes_stay_integers() -> None:
    model = mask()
    half = to_half(model, in_fp32()).model
    assert nodes_of(half, "Cast")[0] == "x/to_half"
    assert sum(node.op_type == "Cast" for node in half.graph.node) == 2  # of the images, and to uint8
    found = types(half)
    assert {found[name] for name in ("c", "f", "r")} == {HALF}
    assert {found[name] for name in ("n", "b", "m", "hw", "s", "a")} == {TensorProto.INT64}
    images = np.random.default_rng(0).standard_normal((2, 3, 5, 7), dtype=np.float32)
    (expected,), (masks,) = run(model, images), run(half, images)
    assert masks.dtype == np.uint8
    assert (masks == expected).mean() > 0.95


def test_a_resizes_scales_stay_in_fp32() -> None:
    body = 'c = Neg(x) y = Resize<mode = "linear">(c, , scales)'
    model = graph(body, x="float[B,3,4,4] x, float[4] scales", y="float[B,3,8,8] y")
    del model.graph.input[1:]
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"))
    half = to_half(model, in_fp32()).model
    assert [(t.name, t.data_type) for t in half.graph.initializer] == [("scales", FLOAT)]
    images = np.random.default_rng(0).standard_normal((2, 3, 4, 4), dtype=np.float32)
    np.testing.assert_allclose(run(half, images)[0], run(model, images)[0], atol=2e-3)


def test_the_shape_of_an_output_is_read_before_its_cast() -> None:
    model = graph("y = Neg(x) n = Shape(y) z = Reshape(x, n)", y="float[B,5,6] y, float[B,5,6] z")
    half = to_half(model, in_fp32()).model
    assert next(node for node in half.graph.node if node.op_type == "Shape").input == ["y/half"]
    assert len(run(half, X)) == 2
