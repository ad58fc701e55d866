"""FP32 -> INT8: what is quantised and what is not, which options and tables are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from sepvit_deploy.errors import GraphError, OptionError, PassportError
from sepvit_deploy.placement import observed
from sepvit_deploy.precision import Quantized, fp16_from_fp32, int8_everywhere, int8_from_fp32
from sepvit_deploy.qdq import CODES
from sepvit_deploy.scales import TensorRange
from tests.unit.graphs import (
    ATTENTION,
    ATTENTION_WEIGHTS,
    BLOCK,
    DIGEST,
    MLP,
    MLP_WEIGHTS,
    attention,
    graph,
    mlp,
    nodes_of,
    run,
    sqnr_db,
    table,
    types,
)

X = np.random.default_rng(1).standard_normal((4, 5, 6), dtype=np.float32)
FC1, FC2 = f"{BLOCK}.mlp.fc1", f"{BLOCK}.mlp.fc2"


def quantised(model: onnx.ModelProto, **options: object) -> Quantized:
    ranges = table(model, X, observed(model, attention=bool(options.get("attention"))))
    return int8_from_fp32(model, ranges, graph_sha256=DIGEST, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"rest": "fp32"}, {"target": "cpu"}], ids=["fp16", "fp32", "cpu"])
def test_linear_layers_become_int8_and_the_result_is_close(options: dict[str, str]) -> None:
    model = mlp()
    result = quantised(model, **options)
    assert [site.name for site in result.sites] == [FC1, FC2]
    assert (result.pairs, result.kept, result.attention) == (2, (), ())
    assert nodes_of(result.model, "QuantizeLinear") == ["n/QuantizeLinear", "h/QuantizeLinear"]
    (expected,), (found,) = run(model, X), run(result.model, X)
    assert found.dtype == np.float32
    assert 25 < sqnr_db(expected, found) < 60


def test_for_tensorrt_everything_around_int8_is_fp16() -> None:
    result = quantised(mlp())
    found = types(result.model)
    assert found["n/q"] == found["w1/int8"] == TensorProto.INT8
    for name in ("n/dq", "w1/dq", "n/scale", "w1/scale", "h0", "b1", "h", "o1"):
        assert found[name] == TensorProto.FLOAT16, name
    assert (result.rest, result.half is not None, found["n"], found["y"]) == ("fp16", True, 1, 1)


def test_for_a_cpu_activations_are_uint8_and_the_rest_float32() -> None:
    found = types(quantised(mlp(), target="cpu").model)
    assert (found["n/q"], found["w1/int8"], found["n"]) == (TensorProto.UINT8, TensorProto.INT8, TensorProto.FLOAT)
    assert TensorProto.FLOAT16 not in found.values()


EMBED = """["stage1.embed.proj/Conv"] e = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(x, w, b)
["stage1.embed/Neg"] y = Neg(e)"""


@pytest.mark.parametrize(
    ("options", "pairs"), [({}, ["x"]), ({"rest": "fp32"}, ["x", "e"]), ({"target": "cpu"}, ["x", "e"])]
)
def test_an_embedding_gives_int8_where_the_rest_is_float32(options: dict[str, str], pairs: list[str]) -> None:
    model = graph(EMBED, {"w": (8, 3, 3, 3), "b": (8,)}, x="float[B,3,8,8] x", y="float[B,8,4,4] y")
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8), dtype=np.float32)
    ranges = table(model, x, observed(model))
    result = int8_from_fp32(model, ranges, graph_sha256=DIGEST, **options)  # type: ignore[arg-type]
    assert nodes_of(result.model, "QuantizeLinear") == [f"{name}/QuantizeLinear" for name in pairs]
    assert result.pairs == len(pairs)
    (expected,), (found,) = run(model, x), run(result.model, x)
    assert 25 < sqnr_db(expected, found) < 60


def test_for_a_cpu_what_products_read_has_fewer_codes() -> None:
    model = graph(EMBED, {"w": (8, 3, 3, 3), "b": (8,)}, x="float[B,3,8,8] x", y="float[B,8,4,4] y")
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8), dtype=np.float32)
    ranges = table(model, x, observed(model))
    result = int8_from_fp32(model, ranges, graph_sha256=DIGEST, target="cpu")
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in result.model.graph.initializer}
    for name, codes in (("x", CODES), ("e", 255)):
        span = ranges.tensors[name].maximum - ranges.tensors[name].minimum
        assert held[f"{name}/scale"] == pytest.approx(span / codes)


def test_the_scale_is_the_tables_threshold_over_127() -> None:
    model = mlp()
    ranges = table(model, X, ["n", "h"])
    ranges = replace(ranges, tensors=ranges.tensors | {"h": TensorRange(-0.1, 2.0, 1.27)})
    result = int8_from_fp32(model, ranges, graph_sha256=DIGEST, rest="fp32")
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in result.model.graph.initializer}
    assert held["h/scale"] == np.float32(0.01)


@pytest.mark.parametrize("pattern", [FC2, "*.fc2", "stage0.fc2", f"{FC2}/MatMul"])
def test_a_kept_site_stays_out_of_int8(pattern: str) -> None:
    result = quantised(mlp(), keep=[pattern])
    assert ([site.name for site in result.sites], [site.name for site in result.kept]) == ([FC1], [FC2])
    assert nodes_of(result.model, "QuantizeLinear") == ["n/QuantizeLinear"]
    assert types(result.model)["w2"] == TensorProto.FLOAT16


def test_keeping_everything_is_refused() -> None:
    with pytest.raises(OptionError, match=r"--keep '\*' leaves nothing to quantise; .* for none at all, take FP16"):
        quantised(mlp(), keep=["*"])


def test_patterns_that_match_nothing_are_refused() -> None:
    with pytest.raises(OptionError, match=r"--keep '\*\.fc3' matches nothing; expected a pattern such as"):
        quantised(mlp(), keep=["*.fc3"])
    with pytest.raises(OptionError, match="--include 'head' matches nothing"):
        quantised(mlp(), include=["head"])


def test_the_head_is_quantised_only_when_asked_for() -> None:
    body = f'["{FC1}/MatMul"] a = MatMul(x, v) ["head/MatMul"] y = MatMul(a, w)'
    model = graph(body, {"v": (6, 6), "w": (6, 6)})
    assert [site.name for site in quantised(model).kept] == ["head"]
    assert [site.name for site in quantised(model, include=["head"]).sites] == [FC1, "head"]


def test_attention_is_quantised_whole_or_not_at_all() -> None:
    assert nodes_of(quantised(attention()).model, "QuantizeLinear") == ["x/QuantizeLinear"]
    model = attention()
    result = quantised(model, attention=True)
    assert [block.block for block in result.attention] == [BLOCK]
    read = {node.name: list(node.input) for node in result.model.graph.node}
    dwa = f"{BLOCK}.attention.dwa"
    assert read[f"{dwa}/MatMul"] == ["q/dq", "kt/dq"]
    assert read[f"{dwa}/MatMul_2"] == ["p/dq", "v/dq"]
    assert read[f"{dwa}/Add"][0] == "c/dq"
    (expected,), (found,) = run(model, X), run(result.model, X)
    assert sqnr_db(expected, found) > 20
    with pytest.raises(OptionError, match=r"leaves nothing to quantise"):
        quantised(model, attention=True, keep=["*.qkv"])


def test_the_softmax_needs_no_range_for_it_has_one() -> None:
    held = quantised(attention(), attention=True, rest="fp32").model.graph.initializer
    scale = next(onnx.numpy_helper.to_array(tensor) for tensor in held if tensor.name == "p/scale")
    assert scale == np.float32(1 / 127)


def test_an_attention_whose_qkv_is_kept_is_kept() -> None:
    body = f'{ATTENTION.replace("y = Add(c, x)", "a = Add(c, x)")} ["{FC1}/MatMul"] y = MatMul(a, w1)'
    model = graph(body, ATTENTION_WEIGHTS | {"w1": (6, 6)})
    assert len(quantised(model, attention=True).attention) == 1
    with pytest.raises(OptionError, match=r"--attention with --keep '\*\.qkv' leaves no attention to quantise"):
        quantised(model, attention=True, keep=["*.qkv"])


def test_a_table_of_something_else_is_refused() -> None:
    model = mlp()
    ranges = table(model, X, ["n", "h"])
    with pytest.raises(PassportError, match="other weights"):
        int8_from_fp32(graph(MLP, MLP_WEIGHTS, seed=7), ranges, graph_sha256=DIGEST)
    with pytest.raises(PassportError, match="another graph of the same weights"):
        int8_from_fp32(model, ranges, graph_sha256="1" * 64)
    with pytest.raises(PassportError, match="no range for 1 of the tensors, the first h"):
        int8_from_fp32(model, table(model, X, ["n"]), graph_sha256=DIGEST)
    int8_from_fp32(model, table(model, X, ["n"]), graph_sha256=DIGEST, keep=["*.fc2"])


def test_fp16_around_int8_needs_opset_19() -> None:
    body = f'["{FC1}/MatMul"] h = MatMul(x, w) y = Neg(h)'
    model = graph(body, {"w": (6, 6)}, opset=17)
    with pytest.raises(GraphError, match=r"opset 17; expected opset 19 or newer .*--opset 19 .*--rest fp32"):
        quantised(model)
    quantised(model, rest="fp32")


@pytest.mark.parametrize("options", [{"rest": "fp16"}, {"attention": True}])
def test_options_that_a_cpu_does_not_take_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match="--target cpu with --"):
        quantised(attention(), target="cpu", **options)


def test_an_activation_too_small_for_an_fp16_scale_is_refused_by_name() -> None:
    model = mlp()
    ranges = table(model, X, ["n", "h"])
    ranges = replace(ranges, tensors=ranges.tensors | {"h": TensorRange(-1e-3, 1e-3, 1e-3)})
    with pytest.raises(GraphError, match=r"h has the scale 7\.87e-06; .*--keep"):
        int8_from_fp32(model, ranges, graph_sha256=DIGEST)
    int8_from_fp32(model, ranges, graph_sha256=DIGEST, rest="fp32")
    int8_from_fp32(model, ranges, graph_sha256=DIGEST, keep=["*.fc2"])


def test_what_is_int8_or_fp16_already_is_refused() -> None:
    result = quantised(mlp(), rest="fp32").model
    ranges = table(mlp(), X, ["n", "h"])
    for again in (lambda: fp16_from_fp32(result), lambda: int8_from_fp32(result, ranges, graph_sha256=DIGEST)):
        with pytest.raises(GraphError, match="the graph has Q/DQ nodes already"):
            again()
    with pytest.raises(GraphError, match="the graph has FP16 tensors already"):
        int8_from_fp32(fp16_from_fp32(mlp()).model, ranges, graph_sha256=DIGEST)


def test_the_naive_placement_quantises_everything_and_is_worse() -> None:
    model = mlp()
    names = observed(model, everything=True)
    result = int8_everywhere(model, table(model, X, names), graph_sha256=DIGEST, rest="fp32")
    assert nodes_of(result.model, "QuantizeLinear") == [f"{name}/QuantizeLinear" for name in names]
    held = {tensor.name: tensor for tensor in result.model.graph.initializer}
    assert list(held["w1/scale"].dims) == []
    (expected,), (naive,), (placed,) = run(model, X), run(result.model, X), run(quantised(model, rest="fp32").model, X)
    assert sqnr_db(expected, naive) < sqnr_db(expected, placed) - 3
    with pytest.raises(PassportError, match="no range for 5 of the tensors, the first x"):
        int8_everywhere(model, table(model, X, ["n", "h"]), graph_sha256=DIGEST)
