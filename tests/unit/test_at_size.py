"""A graph of any size at one size: what is computed stays, shapes are known, and what is not known is left."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from sepvit_deploy.at_size import MOST_ELEMENTS, at_size
from sepvit_deploy.graph import static_shapes
from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner
from sepvit_deploy.work import work_of

HEADER = '<ir_version: 9, opset_import: ["" : 20]>\n'
# Windows of 3 x 3 pixels: division of a shape, as padding to whole windows needs it.
WINDOWS = (
    HEADER
    + """
g (float[batch,3,height,width] images) => (float[batch,c,h,w] logits) {
    x = Conv<strides = [4, 4], pads = [0, 0, 3, 3]>(images, weight)
    side = Constant<value = int64[1] {3}>()
    two = Constant<value = int64[1] {2}>()
    batch = Shape<start = 0, end = 1>(x)
    hw = Shape<start = 2>(x)
    more = Add(hw, two)
    windows = Div(more, side)
    padded = Mul(windows, side)
    missing = Sub(padded, hw)
    zeros = Constant<value = int64[6] {0, 0, 0, 0, 0, 0}>()
    pads = Concat<axis = 0>(zeros, missing)
    whole = Pad(x, pads)
    rows = Gather(windows, first)
    columns = Gather(windows, second)
    channels = Constant<value = int64[1] {5}>()
    split = Concat<axis = 0>(batch, channels, rows, side, columns, side)
    parts = Reshape(whole, split)
    ordered = Transpose<perm = [0, 2, 4, 3, 5, 1]>(parts)
    flat = Constant<value = int64[3] {-1, 9, 5}>()
    tokens = Reshape(ordered, flat)
    y = MatMul(tokens, square)
    six = Concat<axis = 0>(batch, rows, columns, side, side, channels)
    back = Reshape(y, six)
    turned = Transpose<perm = [0, 5, 1, 3, 2, 4]>(back)
    four = Concat<axis = 0>(batch, channels, padded)
    map = Reshape(turned, four)
    start = Constant<value = int64[2] {0, 0}>()
    axes = Constant<value = int64[2] {2, 3}>()
    logits = Slice(map, start, hw, axes)
}
"""
)


def windows(text: str = WINDOWS) -> onnx.ModelProto:
    model = parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (("weight", (5, 3, 4, 4)), ("square", (5, 5))):
        values = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    for name, index in (("first", 0), ("second", 1)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([index], np.int64), name))
    return model


@pytest.mark.parametrize("size", [(9, 30), (12, 12), (13, 25)])
def test_every_shape_is_known_and_the_numbers_stay(size: tuple[int, int]) -> None:
    model = windows()
    before = model.SerializeToString()
    fixed = at_size(model, size)
    assert model.SerializeToString() == before
    height, width = ((side + 3) // 4 for side in size)
    shapes = static_shapes(fixed)
    assert shapes["logits"] == (1, 5, height, width)
    assert all(None not in shapes[name] for node in fixed.graph.node for name in node.output)
    assert not {"Shape", "Div", "Gather"} & {node.op_type for node in fixed.graph.node}
    images = np.random.default_rng(1).standard_normal((1, 3, *size), dtype=np.float32)
    found, expected = (OnnxRuntimeRunner(graph).run(images)["logits"] for graph in (fixed, model))
    np.testing.assert_array_equal(found, expected)


def test_the_work_of_a_graph_of_any_size_is_that_at_the_size() -> None:
    model = windows()
    assert work_of(model) is None
    for (height, width), tokens in (((9, 30), 27), ((24, 24), 36)):
        work = work_of(at_size(model, (height, width)))
        assert work is not None
        pixels = -(-height // 4) * -(-width // 4)
        assert work.macs == {"FP32": pixels * 5 * 48 + tokens * 25}
        assert work.image_bytes == 4 * (3 * height * width + 5 * pixels)


def test_a_graph_of_one_size_is_left_as_it_is() -> None:
    model = windows(WINDOWS.replace("batch,3,height,width", "batch,3,16,16"))
    assert at_size(model, (16, 16)) is model


def test_what_does_not_follow_from_the_size_is_left_to_the_runtime() -> None:
    text = WINDOWS.replace("missing = Sub(padded, hw)", "found = NonZero(images) missing = Sub(padded, hw)")
    fixed = at_size(windows(text), (9, 30))
    assert "NonZero" in {node.op_type for node in fixed.graph.node}
    text = WINDOWS.replace("missing = Sub(padded, hw)", "found = elsewhere.Unknown(hw) missing = Sub(padded, found)")
    fixed = at_size(windows(text), (9, 30))
    assert {"Unknown", "Sub", "Pad"} <= {node.op_type for node in fixed.graph.node}


@pytest.mark.parametrize("elements", [MOST_ELEMENTS + 1, 1 << 50])
def test_no_large_tensor_is_made(elements: int) -> None:
    text = HEADER + (
        "g (float[b,3,h,w] images) => (float[b,3,h,w] y) "
        f"{{ n = Constant<value = int64[1] {{{elements}}}>() zeros = ConstantOfShape(n) "
        "axes = Constant<value = int64[1] {0}>() sum = ReduceSum(zeros, axes) y = Add(images, sum) }"
    )
    fixed = at_size(parser.parse_model(text), (4, 4))
    assert [node.op_type for node in fixed.graph.node] == ["ConstantOfShape", "ReduceSum", "Add"]
