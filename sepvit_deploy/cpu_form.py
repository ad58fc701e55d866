"""What ONNX Runtime runs quickly on a CPU, made of an INT8 graph: the same numbers up to rounding, other nodes.

Each function takes a flat graph with the Q/DQ of `qdq.insert` and returns a copy:

    fused_attention        DWA over windows of uint8 tokens with com.microsoft MultiHeadAttention
    tanh_gelu              GELU by tanh, 77 dB from that by erf
    integer_products       com.microsoft MatMulIntegerToFloat with the bias inside

What is not found whole, by operators, shapes and the names that export gives, stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sepvit_deploy.qdq import CODES

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

MICROSOFT = "com.microsoft"
TO_HEADS = (0, 2, 1, 3)
TO_WINDOWS = (0, 5, 1, 3, 2, 4, 6)
"""(B, rows, s, columns, s, heads, d) -> (B, heads, rows, columns, s, s, d)."""


def cpu_form(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every change of this module, in order."""
    for change in (fused_attention, tanh_gelu, integer_products):
        model = change(model)
    return model


def tanh_gelu(model: onnx.ModelProto) -> onnx.ModelProto:
    """Approximate every GELU by tanh; opsets before 20 have none."""
    graph = _Graph(model)
    for node in graph.nodes:
        if node.op_type == "Gelu" and not node.domain:
            _set(node, approximate="tanh")
    return graph.finished()


def fused_attention(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give every DWA whose QKV layer is INT8 to MultiHeadAttention, with the windows as its batch.

    Windows are formed of uint8 tokens, which their window tokens join in uint8 too; Q, K and V are products apart.
    """
    graph = _Graph(model)
    for qkv in [node for node in graph.nodes if node.name.endswith(".attention.dwa.qkv/MatMul")]:
        attention = _attention(graph, qkv)
        if attention is None:
            continue
        if attention.windows is None:
            graph.replace(attention.merged, _fused(graph, attention, attention.source.input[0], attention.merged).nodes)
        else:
            _fuse_windows(graph, attention, attention.windows)
    return graph.finished()


@dataclass(frozen=True)
class _Windows:
    """What a DWA of more than one window has besides.

    Attributes:
        sizes: rows and columns of windows, side of one.
        carrier: 0 of shape (B, 1, 1, 1), which gives the window tokens their batch.
        pooled: Reshape that gives the window tokens (B, K, C).
        token: of each window before the layer, on the grid of what the layer reads, (K, C).
    """

    sizes: tuple[int, int, int]
    carrier: str
    pooled: onnx.NodeProto
    token: NDArray[Any]


@dataclass(frozen=True)
class _Attention:
    """One DWA.

    Attributes:
        layer: ``stage1.block0.attention.dwa``.
        source: DequantizeLinear of what the QKV layer reads; tokens: that before it is quantised, (B, HW, C).
        weight: codes (C, 3C), scales and zero-points (3C,); bias: (3C,).
        heads, width: number and width of the heads.
        context: product with V; merged: what gives its numbers as (B, HW, C), or with the tokens added by windows.
    """

    layer: str
    source: onnx.NodeProto
    tokens: str
    weight: tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
    bias: NDArray[Any]
    heads: int
    width: int
    context: onnx.NodeProto
    merged: onnx.NodeProto
    windows: _Windows | None = None


def _attention(graph: _Graph, qkv: onnx.NodeProto) -> _Attention | None:
    """The attention that a QKV layer begins; None where a part is missing or of another form."""
    source, weight = graph.dequantized(qkv.input[0]), graph.int8_weight(qkv.input[1])
    opening = graph.after(qkv.output[0], "Add", "Reshape", "Transpose")
    quantizer = graph.producer.get(source.input[0]) if source is not None else None
    if source is None or weight is None or not opening or quantizer is None or quantizer.op_type != "QuantizeLinear":
        return None
    bias, layout = graph.constant_of(opening[0]), graph.value(opening[1].input[1])
    if bias is None or bias.shape != weight[1].shape or weight[0].shape[1] != 3 * weight[0].shape[0]:
        return None
    if layout is None or len(layout) not in (4, 7):
        return None
    heads, width = int(layout[-2]) // 3, int(layout[-1])
    if heads * width != weight[0].shape[0]:
        return None
    layer, tokens = qkv.name.removesuffix(".qkv/MatMul"), quantizer.input[0]
    parts = (layer, source, tokens, weight, bias, heads, width)
    perm = _get(opening[2], "perm")
    if len(layout) == 4 and perm == TO_HEADS:
        context = _context(graph, opening[2].output[0])
        closing = graph.after(context.output[0], "Transpose", "Reshape") if context is not None else []
        if context is None or not closing or _get(closing[0], "perm") != TO_HEADS:
            return None
        return _Attention(*parts, context, closing[1])
    joining = graph.after(opening[2].output[0], "Reshape", "Concat")
    if len(layout) != 7 or perm != TO_WINDOWS or not joining or _get(joining[1], "axis") != 2:
        return None
    rows, side, columns, other = map(int, layout[1:5])
    context = _context(graph, joining[1].output[0])
    split = graph.after(context.output[0], "Split") if context is not None else []
    if context is None or not split or side != other or _get(split[0], "axis") != 2 or len(split[0].output) != 2:
        return None
    lengths = graph.value(split[0].input[1]) if len(split[0].input) > 1 else None
    pooling = graph.after(split[0].output[0], "Reshape", "Transpose", "Reshape", "Add")
    merged = graph.reader(split[0].output[1])
    if lengths is None or list(lengths) != [1, side * side] or not pooling or _get(pooling[1], "perm") != TO_HEADS:
        return None
    if merged is None or merged.op_type != "Add" or merged.input[0] != split[0].output[1]:
        return None
    shortcut = graph.before(merged.input[1], "Reshape", "Transpose", "Reshape")
    token = graph.constant_of(pooling[3])
    if not shortcut or shortcut[0].input[0] != tokens or _get(shortcut[1], "perm") != TO_WINDOWS or token is None:
        return None
    if token.shape != (1, rows * columns, heads * width):
        return None
    carrier = _carrier(graph, joining[1].input[0], token, parts)
    if carrier is None:
        return None
    scale, zero = (graph.value(name) for name in source.input[1:])
    assert scale is not None and zero is not None
    windows = _Windows((rows, columns, side), carrier, pooling[2], _on_grid(token[0], scale, zero))
    return _Attention(*parts, context, merged, windows)


def _context(graph: _Graph, tensor: str) -> onnx.NodeProto | None:
    """The second product of softmax(q @ k) @ v, of q, k and v that a Split of a tensor's heads gives."""
    split = graph.after(tensor, "Split")
    if not split or _get(split[0], "axis") != 1 or len(split[0].output) != 3:
        return None
    lengths = graph.value(split[0].input[1]) if len(split[0].input) > 1 else None
    q, k, v = split[0].output
    scoring = graph.after(k, "Transpose", "MatMul", "Softmax", "MatMul")
    if not scoring or (lengths is not None and len(set(lengths.tolist())) != 1):
        return None
    transpose, scores, softmax, context = scoring
    matches = list(scores.input) == [q, transpose.output[0]] and list(context.input) == [softmax.output[0], v]
    last = _get(softmax, "axis") in (None, -1, 3)
    alone = graph.reader(q) is scores and graph.reader(v) is context
    return context if matches and alone and last and _get(transpose, "perm") == (0, 1, 3, 2) else None


def _carrier(graph: _Graph, joined: str, token: NDArray[Any], parts: tuple[Any, ...]) -> str | None:
    """The zeros that give the window tokens their batch; None unless these are the layer's product of ``token`` and the
    grid of the windows holds it with little noise.
    """
    _, source, _, (codes, scales, _), bias, _, width = parts
    scale, zero = map(graph.value, source.input[1:])
    node = graph.producer.get(joined)
    values = graph.constant_of(node) if node is not None and node.op_type == "Add" else None
    if node is None or values is None or scale is None or zero is None:
        return None
    product = token[0] @ (codes * scales) + bias
    expected = product.reshape(len(product), -1, width).transpose(1, 0, 2).reshape(1, -1, 1, width)
    if values.shape[1:] != expected.shape[1:] or _power(values - expected) > 0.01 * _power(values):
        return None
    if _power(token - _on_grid(token, scale, zero)) > float(scale) ** 2 / 4:  # rounding alone leaves a twelfth
        return None
    carrier: str = next(name for name in node.input if name not in graph.constants)
    zeros = graph.producer.get(carrier)
    nought = graph.constant_of(zeros) if zeros is not None and zeros.op_type == "Mul" else None
    return carrier if nought is not None and not nought.any() else None


def _on_grid(values: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any]) -> NDArray[Any]:
    """What uint8 leaves of values, clipped to the codes of a calibrated range."""
    import numpy as np

    on_grid: NDArray[Any] = ((np.clip(np.rint(values / scale) + int(zero), 0, CODES) - int(zero)) * scale).astype("f4")
    return on_grid


def _power(values: NDArray[Any]) -> float:
    """Mean of the squares."""
    import numpy as np

    return float(np.square(values, dtype=np.float64).mean())


def _fuse_windows(graph: _Graph, attention: _Attention, windows: _Windows) -> None:
    import numpy as np

    rows, columns, side = windows.sizes
    count, channels = windows.token.shape
    new = _Nodes(f"{attention.layer}.windows", graph)

    def split(tensor: str) -> str:
        """(B, HW, C) -> (B * K, N, C)."""
        tensor = new.reshape(tensor, -1, rows, side, columns, side * channels)
        tensor = new.add("Transpose", [tensor], perm=(0, 1, 3, 2, 4))
        return new.reshape(tensor, -1, side * side, channels)

    token = new.constant("token", windows.token[None, :, None])
    token = new.reshape(new.add("Add", [windows.carrier, token]), -1, 1, channels)
    token = new.add("QuantizeLinear", [token, *attention.source.input[1:]])
    joined = new.add("Concat", [token, split(attention.source.input[0])], axis=1)
    fused = _fused(graph, attention, joined, None)
    lengths = new.constant("lengths", np.array([1, side * side], np.int64))
    of_token, of_pixels = f"{new.layer}/Split:0", f"{new.layer}/Split:1"
    parting = _node("Split", [fused.output, lengths], [of_token, of_pixels], f"{new.layer}/Split", axis=1)
    graph.replace(attention.context, [*new.nodes, *fused.nodes, parting])
    new.nodes = []
    new.reshape(of_token, -1, count, channels, output=windows.pooled.output[0])
    graph.replace(windows.pooled, new.nodes)
    new.nodes = []
    pixels = new.add("Add", [of_pixels, split(attention.tokens)])
    pixels = new.reshape(pixels, -1, count, side * side, attention.heads, attention.width)
    pixels = new.add("Transpose", [pixels], perm=(0, 3, 1, 2, 4))
    output = attention.merged.output[0]
    new.reshape(pixels, -1, attention.heads * count, side * side, attention.width, output=output)
    graph.replace(attention.merged, new.nodes)


def _fused(graph: _Graph, attention: _Attention, rows: str, last: onnx.NodeProto | None) -> _Nodes:
    """Q, K and V of uint8 tokens (B, T, C) and their attention (B, T, C), under the name of what ``last`` gives."""
    import numpy as np

    new = _Nodes(attention.layer, graph)
    parts = []
    columns = zip(*(np.split(values, 3, axis=-1) for values in (*attention.weight, attention.bias)), strict=True)
    for name, (codes, scale, zero, bias) in zip("qkv", columns, strict=True):
        part = _Nodes(f"{attention.layer}.{name}", graph)
        parts.append(part.product(rows, attention.source, codes, (scale, zero), part.constant("bias", bias)))
        new.nodes.extend(part.nodes)
    output = last.output[0] if last is not None else ""
    new.output = new.add(
        "MultiHeadAttention", parts, output=output, domain=MICROSOFT, num_heads=attention.heads, scale=1.0
    )
    return new


def integer_products(model: onnx.ModelProto) -> onnx.ModelProto:
    """Join every INT8 product of tokens, its DequantizeLinear nodes and its bias into com.microsoft
    MatMulIntegerToFloat, which ONNX Runtime's own fusion leaves without the bias.
    """
    graph = _Graph(model)
    for matmul in [node for node in graph.nodes if node.op_type == "MatMul"]:
        source, weight = graph.dequantized(matmul.input[0]), graph.int8_weight(matmul.input[1])
        if source is None or weight is None or weight[0].ndim != 2:
            continue
        add = graph.reader(matmul.output[0])
        bias = next((name for name in add.input if name in graph.constants), "") if add and add.op_type == "Add" else ""
        if bias and list(graph.constants[bias].dims) != [weight[0].shape[1]]:
            bias = ""
        last = add if add is not None and bias else matmul
        x, scale, zero = source.input
        codes, scales, zeros = graph.producer[matmul.input[1]].input
        name = matmul.name.removesuffix("MatMul") + "MatMulIntegerToFloat"
        inputs = [x, codes, scale, scales, zero, zeros, bias]
        product = _node("MatMulIntegerToFloat", inputs, [last.output[0]], name, domain=MICROSOFT)
        graph.replace(last, [product])
    return graph.finished()


class _Graph:
    """A copy of a graph whose nodes are replaced; `finished` drops what nothing reads any more."""

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnx

        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.nodes = list(self.model.graph.node)
        self.constants = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.producer = {output: node for node in self.nodes for output in node.output}
        self._outputs = {value.name for value in model.graph.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._replaced: dict[str, list[onnx.NodeProto]] = {}

    def value(self, name: str) -> NDArray[Any] | None:
        """Of a constant; None for anything else."""
        from onnx import numpy_helper

        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def constant_of(self, node: onnx.NodeProto) -> NDArray[Any] | None:
        """The value of a node's one constant input."""
        found = [name for name in node.input if name in self.constants]
        return self.value(found[0]) if len(found) == 1 else None

    def reader(self, tensor: str) -> onnx.NodeProto | None:
        """The one node that reads a tensor; None where there are more, or it is an output of the graph."""
        readers = self._readers.get(tensor, [])
        return readers[0] if len(readers) == 1 and tensor not in self._outputs else None

    def after(self, tensor: str, *operators: str) -> list[onnx.NodeProto]:
        """The nodes that read a tensor one after the other, each alone; [] where they are others than these."""
        found: list[onnx.NodeProto] = []
        for operator in operators:
            node = self.reader(tensor)
            if node is None or node.op_type != operator:
                return []
            found.append(node)
            tensor = node.output[0]
        return found

    def before(self, tensor: str, *operators: str) -> list[onnx.NodeProto]:
        """The nodes that lead to a tensor by their inputs 0, the last one last; [] where they are others than these."""
        found: list[onnx.NodeProto] = []
        for operator in reversed(operators):
            node = self.producer.get(tensor)
            if node is None or node.op_type != operator:
                return []
            found.insert(0, node)
            tensor = node.input[0]
        return found

    def dequantized(self, tensor: str) -> onnx.NodeProto | None:
        """The DequantizeLinear of an activation that makes a tensor."""
        node = self.producer.get(tensor)
        activation = node is not None and node.op_type == "DequantizeLinear" and node.input[0] not in self.constants
        return node if activation else None

    def int8_weight(self, tensor: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None:
        """Codes, scales and zero-points (channels,) behind a dequantised weight."""
        node = self.producer.get(tensor)
        if node is None or node.op_type != "DequantizeLinear" or len(node.input) != 3:
            return None
        codes, scale, zero = map(self.value, node.input)
        if codes is None or scale is None or zero is None or scale.ndim != 1:
            return None
        return codes, scale, zero

    def replace(self, node: onnx.NodeProto, nodes: Sequence[onnx.NodeProto]) -> None:
        """Put nodes where one stood, whose outputs they make."""
        self._replaced[node.output[0]] = list(nodes)

    def finished(self) -> onnx.ModelProto:
        """The graph without nodes and constants that nothing reads."""
        graph = self.model.graph
        nodes = [new for node in self.nodes for new in self._replaced.get(node.output[0], [node])]
        read = set(self._outputs)
        kept = []
        for node in reversed(nodes):
            if read.intersection(node.output):
                kept.append(_copy(node))
                read.update(node.input)
        del graph.node[:], graph.value_info[:], graph.initializer[:]
        graph.node.extend(reversed(kept))
        if any(node.domain == MICROSOFT for node in kept) and all(
            entry.domain != MICROSOFT for entry in self.model.opset_import
        ):
            self.model.opset_import.add(domain=MICROSOFT, version=1)
        graph.initializer.extend(tensor for name, tensor in self.constants.items() if name in read)
        return self.model


class _Nodes:
    """New nodes of one layer, named like those that export gives: ``layer/Operator``, ``layer/Operator_2``."""

    def __init__(self, layer: str, graph: _Graph) -> None:
        self.layer, self._graph = layer, graph
        self.nodes: list[onnx.NodeProto] = []
        self.output = ""
        self._counts: dict[str, int] = {}

    def add(self, op: str, inputs: Sequence[str], *, output: str = "", **attributes: Any) -> str:
        """Append a node and return the name of its (first) output."""
        count = self._counts[op] = self._counts.get(op, 0) + 1
        name = f"{self.layer}/{op}" + (f"_{count}" if count > 1 else "")
        self.nodes.append(_node(op, inputs, [output or name], name, **attributes))
        return output or name

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Add a constant of the layer and return its name."""
        import numpy as np
        from onnx import numpy_helper

        name = f"{self.layer}/{name}"
        self._graph.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def reshape(self, tensor: str, *shape: int, output: str = "") -> str:
        import numpy as np

        target = self.constant("x".join(map(str, shape)), np.array(shape, np.int64))
        return self.add("Reshape", [tensor, target], output=output)

    def product(
        self,
        tensor: str,
        source: onnx.NodeProto,
        codes: NDArray[Any],
        grid: tuple[NDArray[Any], NDArray[Any]],
        bias: str,
        *,
        output: str = "",
    ) -> str:
        """Dequantise as ``source`` does, multiply by the weight codes (in, out), add a bias: INT8 once it is fused."""
        scale, zero = (
            self.constant(f"int8/{name}", value) for name, value in zip(("scale", "zero"), grid, strict=True)
        )
        weight = [self.constant("int8", codes), scale, zero]
        pair = [
            self.add("DequantizeLinear", [tensor, *source.input[1:]]),
            self.add("DequantizeLinear", weight, axis=1),
        ]
        if not bias:
            return self.add("MatMul", pair, output=output)
        return self.add("Add", [self.add("MatMul", pair), bias], output=output)


def _node(op: str, inputs: Sequence[str], outputs: Sequence[str], name: str, **attributes: Any) -> onnx.NodeProto:
    from onnx import helper

    return helper.make_node(op, list(inputs), list(outputs), name, **attributes)


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    import onnx

    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _get(node: onnx.NodeProto, name: str) -> Any:
    """An attribute, lists as tuples; None without it."""
    from onnx import helper

    value = next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)
    return tuple(value) if isinstance(value, list) else value


def _set(node: onnx.NodeProto, **attributes: Any) -> None:
    from onnx import helper

    kept = [a for a in node.attribute if a.name not in attributes]
    del node.attribute[:]
    node.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in attributes.items())])
