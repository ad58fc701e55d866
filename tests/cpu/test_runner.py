"""ONNX Runtime computes signed INT8 as the graph says, not as its quickest kernels do."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner

SATURATING = """
<ir_version: 9, opset_import: ["" : 20]>
g (float[B, 3, 8, 8] images) => (float[B, 3, 8, 4] logits)
<float one = {1.0}, int8 zero = {0}> {
    q = QuantizeLinear(images, one, zero)
    x = DequantizeLinear(q, one, zero)
    w = DequantizeLinear(weight, one, zero)
    y = MatMul(x, w)
    logits = Add(y, bias)
}
"""


def test_signed_int8_does_not_saturate() -> None:
    # 127 * 127 + 127 * 127 leaves 16 bits, where kernels without VNNI add pairs.
    model = onnx.parser.parse_model(SATURATING)
    weight = numpy_helper.from_array(np.full((8, 4), 127, np.int8), "weight")
    bias = numpy_helper.from_array(np.zeros(4, np.float32), "bias")
    model.graph.initializer.extend([weight, bias])
    images = np.full((2, 3, 8, 8), 127, np.float32)
    expected = np.full((2, 3, 8, 4), 8 * 127 * 127, np.float32)
    assert (OnnxRuntimeRunner(model).run(images)["logits"] == expected).all()
