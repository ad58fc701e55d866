"""What can run in INT8: the linear layers and dense convolutions of SepViT, by their names, and nothing else."""

from __future__ import annotations

import onnx
import pytest
from onnx import parser

from sepvit_deploy.errors import GraphError, OptionError
from sepvit_deploy.placement import attention_sites, layer, matching, observed, sites
from tests.unit.graphs import ATTENTION, ATTENTION_WEIGHTS, BLOCK, attention, graph, mlp

IMAGE = {"x": "float[B,3,8,8] x", "y": "float[B,8,4,4] y"}


def test_linear_layers_are_sites_in_graph_order() -> None:
    fc1, fc2 = sites(mlp())
    assert (fc1.name, fc1.node, fc1.op) == (f"{BLOCK}.mlp.fc1", f"{BLOCK}.mlp.fc1/MatMul", "MatMul")
    assert (fc1.activation, fc1.weight, fc1.axis, fc1.group, fc1.default) == ("n", "w1", 1, "stage0.fc1", True)
    assert (fc1.output, fc2.output) == ("h0", "o0")
    assert (fc2.activation, fc2.weight, fc2.group) == ("h", "w2", "stage0.fc2")


def test_a_dense_embedding_is_a_site_and_a_depthwise_peg_is_none() -> None:
    body = """["stage2.embed.proj/Conv"] e = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(x, w)
    ["stage2.peg/Conv"] y = Conv<group = 8, pads = [1, 1, 1, 1]>(e, p)"""
    (site,) = sites(graph(body, {"w": (8, 3, 3, 3), "p": (8, 1, 3, 3)}, **IMAGE))
    assert (site.name, site.op, site.axis, site.group) == ("stage2.embed.proj", "Conv", 0, "stage2.embed")


def test_what_a_dense_embedding_gives_is_observed_too() -> None:
    body = """["stage1.embed.proj/Conv"] e = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(x, w)
    ["stage1.peg/Conv"] y = Conv<group = 8, pads = [1, 1, 1, 1]>(e, p)"""
    assert observed(graph(body, {"w": (8, 3, 3, 3), "p": (8, 1, 3, 3)}, **IMAGE)) == ["x", "e"]


def test_the_head_is_a_site_that_waits_to_be_asked_for() -> None:
    (site,) = sites(graph('["head/MatMul"] y = MatMul(x, w)', {"w": (6, 6)}))
    assert (site.name, site.group, site.default) == ("head", "head", False)


def convolution(name: str, tail: str = "") -> onnx.ModelProto:
    body = f'["{name}/Conv"] {"c" if tail else "y"} = Conv<pads = [1, 1, 1, 1]>(x, w) {tail}'
    return graph(body, {"w": (8, 3, 3, 3)}, x=IMAGE["x"], y="float[B,8,8,8] y")


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("neck.laterals.0", "neck.laterals"),
        ("neck.outputs.3", "neck.outputs"),
        ("decode_head.branches.3.4.conv", "decode_head.branches"),
        ("decode_head.pooling.convs.2.conv", "decode_head.pooling"),
        ("decode_head.bottleneck.conv", "decode_head.bottleneck"),
        ("decode_head.laterals.2.conv", "decode_head.laterals"),
        ("decode_head.outputs.1.conv", "decode_head.outputs"),
        ("decode_head.fusion.conv", "decode_head.fusion"),
    ],
)
def test_convolutions_of_neck_and_decode_head_are_sites(name: str, group: str) -> None:
    (site,) = sites(convolution(name))
    assert (site.name, site.group, site.op, site.axis, site.default) == (name, group, "Conv", 0, True)


def test_a_decode_heads_classifier_waits_to_be_asked_for() -> None:
    (site,) = sites(convolution("decode_head.classifier"))
    assert (site.group, site.default) == ("decode_head.classifier", False)


@pytest.mark.parametrize("name", ["neck.resize", "decode_head.branches", "decode_head.dropout.conv", "to_mask.conv"])
def test_other_convolutions_are_no_sites(name: str) -> None:
    with pytest.raises(GraphError, match="no linear layer"):
        sites(convolution(name))


def test_the_matrix_that_pools_is_no_site() -> None:
    with pytest.raises(GraphError, match="no linear layer"):
        sites(graph('["decode_head.pooling/MatMul"] y = MatMul(x, w)', {"w": (6, 6)}))


def test_a_convolution_gives_what_its_relu_gives_unless_something_else_reads_it() -> None:
    name = "decode_head.fusion.conv"
    assert sites(convolution(name, "y = Relu(c)"))[0].output == "y"
    assert observed(convolution(name, "y = Relu(c)")) == ["x", "y"]
    assert sites(convolution(name, "r = Relu(c) y = Add(r, c)"))[0].output == "c"


def test_products_of_two_activations_are_no_sites() -> None:
    assert [site.name for site in sites(attention())] == [f"{BLOCK}.attention.dwa.qkv"]


def test_the_attention_is_found_with_the_tensors_of_its_products() -> None:
    (block,) = attention_sites(attention())
    assert block.block == BLOCK
    assert (block.q, block.k, block.v, block.softmax, block.output) == ("q", "kt", "v", "p", "c")
    assert (block.scores, block.context) == (f"{BLOCK}.attention.dwa/MatMul", f"{BLOCK}.attention.dwa/MatMul_2")


def test_the_attention_between_windows_is_not_taken_for_it() -> None:
    body = ATTENTION.replace("dwa/", "pwa/")
    with pytest.raises(GraphError, match=r"no attention of the form softmax\(q @ k\) @ v"):
        attention_sites(graph(body, ATTENTION_WEIGHTS))


@pytest.mark.parametrize("name", ["fc1/MatMul", f"{BLOCK}.mlp.fc3/MatMul", f"{BLOCK}.mlp.fc1x/MatMul", "header/MatMul"])
def test_a_graph_without_sepvits_names_is_refused(name: str) -> None:
    model = graph(f'["{name}"] y = MatMul(x, w)', {"w": (6, 6)})
    with pytest.raises(GraphError, match=r"no linear layer or patch embedding of SepViT; expected MatMul or Conv"):
        sites(model)


def test_a_weight_that_is_computed_is_no_site() -> None:
    body = f'v = Neg(w)  ["{BLOCK}.mlp.fc1/MatMul"] y = MatMul(x, v)'
    with pytest.raises(GraphError, match="no linear layer"):
        sites(graph(body, {"w": (6, 6)}))


def test_control_flow_is_refused() -> None:
    body = "y = If (c) < then_branch = a () => (u) { u = Neg(x) }, else_branch = b () => (v) { v = Abs(x) } >"
    model = parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 20]> net (float[2] x, bool c) => (float[2] y) {{ {body} }}'
    )
    with pytest.raises(GraphError, match=r"local functions or control flow; .*; type: sepvit-deploy audit FILE"):
        sites(model)


def test_observed_names_each_tensor_once_in_graph_order() -> None:
    assert observed(mlp()) == ["n", "h"]
    assert observed(attention()) == ["x"]
    assert observed(attention(), attention=True) == ["x", "q", "v", "kt", "c"]  # the softmax has a known range


def test_a_tensor_that_two_sites_read_is_observed_once() -> None:
    body = f"""["{BLOCK}.attention.dwa.qkv/MatMul"] a = MatMul(x, w)
    ["{BLOCK}.attention.proj/MatMul"] b = MatMul(x, w)
    y = Add(a, b)"""
    assert observed(graph(body, {"w": (6, 6)})) == ["x"]


def test_everything_is_what_the_usual_operators_take_and_give() -> None:
    assert observed(mlp(), everything=True) == ["x", "n", "h0", "h1", "h", "o0", "o1"]


def test_everything_leaves_out_the_zero_that_carries_the_batch() -> None:
    body = f'zero = Mul(x, nought) z = Add(zero, t) ["{BLOCK}.mlp.fc1/MatMul"] y = MatMul(z, w)'
    model = graph(body, {"t": (5, 6), "w": (6, 6)} | {"nought": ()})
    next(t for t in model.graph.initializer if t.name == "nought").CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.np.float32(0), "nought")
    )
    assert observed(model, everything=True) == ["z"]


def test_layer_is_the_name_before_the_operator() -> None:
    assert layer(f"{BLOCK}.mlp.fc1/MatMul_2") == f"{BLOCK}.mlp.fc1"
    assert layer("head") == "head"


def test_matching_takes_any_of_the_names() -> None:
    names = [("a.fc1", "s0.fc1"), ("a.fc2", "s0.fc2"), ("head",)]
    assert matching(["*.fc2", "head"], names, option="--keep") == [False, True, True]
    assert matching(["s0.*"], names, option="--keep") == [True, True, False]
    assert matching([], names, option="--keep") == [False, False, False]


def test_a_pattern_that_matches_nothing_names_the_closest() -> None:
    with pytest.raises(OptionError, match=r"--keep '\*\.fc3' matches nothing; expected a pattern such as '.*\.fc[12]'"):
        matching(["*.fc1", "*.fc3"], [("a.fc1", "s0.fc1"), ("a.fc2", "s0.fc2")], option="--keep")
