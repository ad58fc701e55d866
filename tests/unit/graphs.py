"""Small graphs with the names that export gives, as text with random weights, and what runs them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper, parser

from sepvit_deploy.scales import ImagesUsed, ScaleTable, TensorRange, weights_digest

DIGEST = "0" * 64
BLOCK = "stage0.block0"
MLP = f"""
["{BLOCK}.norm2/LayerNormalization"] n = LayerNormalization<axis = -1, epsilon = 1e-6>(x, gain, shift)
["{BLOCK}.mlp.fc1/MatMul"] h0 = MatMul(n, w1)
["{BLOCK}.mlp.fc1/Add"] h1 = Add(h0, b1)
["{BLOCK}.mlp/Gelu"] h = Gelu(h1)
["{BLOCK}.mlp.fc2/MatMul"] o0 = MatMul(h, w2)
["{BLOCK}.mlp.fc2/Add"] o1 = Add(o0, b2)
["{BLOCK}/Add_2"] y = Add(x, o1)
"""
MLP_WEIGHTS = {"gain": (6,), "shift": (6,), "w1": (6, 12), "b1": (12,), "w2": (12, 6), "b2": (6,)}
ATTENTION = f"""
["{BLOCK}.attention.dwa.qkv/MatMul"] u = MatMul(x, w)
["{BLOCK}.attention.dwa/Split"] q, k, v = Split<axis = -1, num_outputs = 3>(u)
["{BLOCK}.attention.dwa/Transpose"] kt = Transpose<perm = [0, 2, 1]>(k)
["{BLOCK}.attention.dwa/MatMul"] s = MatMul(q, kt)
["{BLOCK}.attention.dwa/Softmax"] p = Softmax<axis = -1>(s)
["{BLOCK}.attention.dwa/MatMul_2"] c = MatMul(p, v)
["{BLOCK}.attention.dwa/Add"] y = Add(c, x)
"""
ATTENTION_WEIGHTS = {"w": (6, 18)}


def graph(
    body: str,
    weights: Mapping[str, tuple[int, ...]] | None = None,
    *,
    x: str = "float[B,5,6] x",
    y: str = "float[B,5,6] y",
    opset: int = 20,
    seed: int = 0,
) -> onnx.ModelProto:
    """A graph from its nodes as text; weights are drawn from the normal distribution."""
    model = parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]> net ({x}) => ({y}) {{ {body} }}')
    rng = np.random.default_rng(seed)
    for name, shape in (weights or {}).items():
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.3)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.checker.check_model(model, full_check=True)
    return model


def mlp(opset: int = 20) -> onnx.ModelProto:
    """norm2 -> fc1 -> GELU -> fc2, with the shortcut, (B, 5, 6) -> same."""
    return graph(MLP, MLP_WEIGHTS, opset=opset)


def attention() -> onnx.ModelProto:
    """One head of attention with its shortcut, (B, 5, 6) -> same."""
    return graph(ATTENTION, ATTENTION_WEIGHTS)


def run(model: onnx.ModelProto, x: np.ndarray, *names: str) -> list[np.ndarray]:
    """Outputs, or the inner tensors named, as the graph is written: nothing is fused across Q/DQ."""
    onnx.checker.check_model(model, full_check=True)
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    existing = {value.name for value in model.graph.output}
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in existing)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = session.run(list(names) or None, {session.get_inputs()[0].name: x})
    return [np.asarray(value) for value in values]


def sqnr_db(reference: np.ndarray, found: np.ndarray) -> float:
    """10 log10 of the reference's power over that of the difference."""
    reference, found = reference.astype(np.float64), found.astype(np.float64)
    return float(10 * np.log10((reference**2).sum() / ((reference - found) ** 2).sum()))


def table(model: onnx.ModelProto, x: np.ndarray, tensors: list[str]) -> ScaleTable:
    """Ranges of ``tensors`` by least and greatest value on one batch."""
    inputs = {value.name for value in model.graph.input}
    inner = [name for name in tensors if name not in inputs]
    values = dict(zip(inner, run(model, x, *inner), strict=False)) | dict.fromkeys(inputs, x)
    ranges = {n: TensorRange(float(v.min()), float(v.max()), float(np.abs(v).max())) for n, v in values.items()}
    used = ImagesUsed("random", DIGEST, len(x), 0)
    wanted = {name: ranges[name] for name in tensors}
    return ScaleTable(DIGEST, weights_digest(model), used, {}, "minmax", {}, len(x), {}, wanted)


def nodes_of(model: onnx.ModelProto, *operators: str) -> list[str]:
    """Names of the nodes of some operators, in graph order."""
    return [node.name for node in model.graph.node if node.op_type in operators]


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    return found | {value.name: value.type.tensor_type.elem_type for value in values}
