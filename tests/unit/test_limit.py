"""What a graph needs, and what measures a device: exact counts on graphs that are small enough to count by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from sepvit_deploy import limit
from sepvit_deploy.network import products_of_graph
from sepvit_deploy.work import work_of
from tests.unit.fake_cuda import FakeCuda

GRAPH = """
<ir_version: 9, opset_import: ["" : 20]>
g (float[B, 3, 8, 8] images) => (float[B, 3, 8, 4] logits)
<float one = {1.0}, int8 zero = {0}> {
    y = MatMul(images, weight)
    z = MatMul(y, square)
    q = QuantizeLinear(z, one, zero)
    x = DequantizeLinear(q, one, zero)
    w = DequantizeLinear(codes, one, zero)
    logits = MatMul(x, w)
}
"""


def graph() -> onnx.ModelProto:
    model = parser.parse_model(GRAPH)
    for name, values in (
        ("weight", np.ones((8, 4), np.float32)),
        ("square", np.ones((4, 4), np.float32)),
        ("codes", np.ones((4, 4), np.int8)),
    ):
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    for k, node in enumerate(model.graph.node):
        node.name = f"n{k}"
    return model


def test_work_is_counted_by_type() -> None:
    work = work_of(graph())
    assert work is not None
    assert work.macs == {"FP32": 3 * 8 * 8 * 4 + 3 * 8 * 4 * 4, "INT8": 3 * 8 * 4 * 4}
    assert work.image_bytes == 4 * (3 * 8 * 8 + 3 * 8 * 4)
    assert work.weight_bytes == 4 * 8 * 4 + 4 * 4 * 4 + 16 + 5, "and the scale and the zero point"


def test_a_fixed_batch_counts_one_image() -> None:
    fixed = parser.parse_model(GRAPH.replace("[B, ", "[4, "))
    fixed.graph.initializer.extend(graph().graph.initializer[2:])
    for k, node in enumerate(fixed.graph.node):
        node.name = f"n{k}"
    assert work_of(fixed) == work_of(graph())


def test_work_of_operators_of_a_runtimes_own_is_not_known() -> None:
    model = graph()
    model.graph.node[0].domain = "com.microsoft"
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    assert work_of(model) is None


@pytest.mark.parametrize("kind", ["FP32", "FP16", "INT8"])
@pytest.mark.parametrize("unsigned", [False, True])
def test_a_product_graph_is_what_it_says(kind: limit.ProductType, unsigned: bool) -> None:
    model = limit.product_graph(kind, size=32, chain=3, unsigned=unsigned)
    onnx.checker.check_model(model, full_check=True)
    types = {product.type for product in products_of_graph(model)}
    expected = {"FP32": "FLOAT", "FP16": "HALF", "INT8": "INT8"}[kind]
    if not (kind == "INT8" and unsigned):  # TensorRT's INT8 is signed
        assert types == {expected}
        work = work_of(model)
        assert work is not None
        assert 2 * sum(work.macs.values()) == limit.operations(32, 3) == 2 * 3 * 32**3


def test_copies_on_the_cpu_take_time_that_grows_with_nothing_else() -> None:
    alone, together = limit.copy_on_cpu(1), limit.copy_on_cpu(2)
    for copy in (alone, together):
        copy()
        assert 0.1 < copy() < 5000


def test_copies_on_the_gpu_are_between_events_and_all_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "COPIED_ON_GPU", 1 << 12)
    cuda = FakeCuda()
    with limit.CopyOnGpu(cuda) as copy:
        cuda.calls.clear()
        assert copy() == 1.25
        assert cuda.calls == ["record", "copy_on_device", "record", "synchronize", "elapsed_ms"]
    assert not cuda.live
    assert cuda.closed == 1
