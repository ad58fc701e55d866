"""For each rule of the lint, graphs that break it and close ones that do not, in ONNX's text form.

FP16 constants are written as their bits: 11878 is 0.1, 15360 is 1. B is the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import parser

BATCHES = (1, 4, 8)
"""For graphs whose input has the batch B."""


@dataclass(frozen=True)
class Broken:
    """A graph that breaks one rule at one node, and what the lint says about it."""

    text: str
    node: str
    message: str


def graph(body: str, x: str = "float[4,32]", y: str = "float[4,32]", *, constants: str = "", **header: object) -> str:
    """The text of a graph from x to y."""
    inputs = x if " x" in x else f"{x} x"
    outputs = y if " y" in y else f"{y} y"
    domains = "".join(f', "{domain}": 1' for domain in str(header.get("domains", "")).split())
    opset = header.get("opset", 20)
    held = f"<{constants}>" if constants else ""
    return f'<ir_version: 10, opset_import: ["": {opset}{domains}]> net ({inputs}) => ({outputs}) {held} {{ {body} }}'


def parsed(text: str) -> onnx.ModelProto:
    return parser.parse_model(text)


def filled(kind: str, name: str, shape: str, value: object) -> str:
    """A constant of one number: ``filled("int8", "w", "32,64", 1)``."""
    count = 1
    for dim in shape.split(",") if shape else ():
        count *= int(dim)
    return f"{kind}{f'[{shape}]' if shape else ''} {name} = {{{', '.join([str(value)] * count)}}}"


def listed(*constants: str) -> str:
    return ", ".join(constants)


S = "float s = {0.1}, int8 z = {0}"
HALF_S = "float16 s = {11878}, int8 z = {0}"
QX = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) "
QY = "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)"
HALF = {"x": "float16[4,32]", "y": "float16[4,32]"}
IMAGE = {"x": "float[1,16,8,8]", "y": "float[1,16,8,8]"}
MAP = {"x": "float[1,16,8,8]"}
CLASSES_OF = "c = ArgMax<axis = 1, keepdims = 0>(x)"
BATCHED = {"x": "float[B,4,32]", "y": "float[B,128]"}
IF = """y = If (c) <
  then_branch = left () => (float[4,32] u) { q = QuantizeLinear(x, s, z) u = DequantizeLinear(q, s, z) },
  else_branch = right () => (float[4,32] v) { v = Neg(x) }
>"""


def weights(shape: str, scales: int, kind: str = "int8", *, scale: str = "float") -> str:
    """Weights w of ones with scales ws."""
    return listed(filled(kind, "w", shape, 1), filled(scale, "ws", str(scales), 0.1 if scale == "float" else 11878))


def product(
    inner: int = 32, outer: int = 64, axis: int = 1, scales: int = 0, op: str = "MatMul", shape: str = ""
) -> str:
    """An INT8 product (4, inner) x (inner, outer) with per-channel weights."""
    body = f"{QX} wd = DequantizeLinear<axis = {axis}>(w, ws) y = {op}(d, wd)"
    held = weights(shape or f"{inner},{outer}", scales or outer)
    return graph(body, f"float[4,{inner}]", f"float[4,{outer}]", constants=listed(S, held))


def convolution(axis: int = 0, scales: int = 16, *, group: int = 1, quantised: bool = True) -> str:
    attributes = f"group = {group}, pads = [1, 1, 1, 1]"
    data, weight = ("d", "wd") if quantised else ("x", "float_w")
    body = f"{QX} wd = DequantizeLinear<axis = {axis}>(w, ws) y = Conv<{attributes}>({data}, {weight})"
    if not quantised:
        body = f"y = Conv<{attributes}>(x, float_w)"
    held = weights(f"16,{16 // group},3,3", scales)
    return graph(body, **IMAGE, constants=listed(S, held, filled("float", "float_w", f"16,{16 // group},3,3", 1)))


def rectified(tail: str) -> str:
    """An INT8 convolution that gives c, and what follows it."""
    return convolution().replace("y = Conv", "c = Conv").replace(") }", f") {tail} }}")


def doubled(attributes: str, kind: str = "float") -> str:
    """A map of twice the height and width."""
    sizes = {"x": f"{kind}[1,16,8,8]", "y": f"{kind}[1,16,16,16]"}
    return graph(f"y = Resize<{attributes}>(x, , scales)", **sizes, constants="float[4] scales = {1, 1, 2, 2}")


def attention(places: str, *, tail: str = "") -> str:
    """An attention with Q and DQ at the places among q, k, p (softmax), v, o (output)."""
    body = ""
    names = {"q": "a", "k": "b", "v": "v", "p": "p", "o": "o"}

    def paired(place: str) -> str:
        nonlocal body
        name = names[place]
        if place not in places:
            return name
        body += f"{name}_q = QuantizeLinear({name}, s, z) {name}_d = DequantizeLinear({name}_q, s, z) "
        return f"{name}_d"

    q, k, v = paired("q"), paired("k"), paired("v")
    body += f"scores = MatMul({q}, {k}) scaled = Mul(scores, s) p = Softmax(scaled) "
    p = paired("p")
    body += f"o = MatMul({p}, {v}) "
    o = paired("o")
    body += f"y = Add({o}, {tail or 's'})"
    sizes = "float[2,4,64,32]"
    return graph(body, f"{sizes} a, float[2,4,32,64] b, {sizes} v, {sizes} x", f"{sizes} y", constants=S)


def three(kind: str) -> str:
    """Inputs x, k and v of one type: TensorRT-RTX 1.7 dies of an Attention that is given one tensor three times."""
    return f"{kind} x, {kind} k, {kind} v"


def layernorm(*, cast: bool = False) -> str:
    eps = "float e = {1e-5}" if cast else "float16 e = {1}"
    start, end = ("f = Cast<to = 1>(x) ", "y = Cast<to = 10>(r)") if cast else ("f = Identity(x) ", "y = Identity(r)")
    body = "m = ReduceMean(f, axis) c = Sub(f, m) sq = Mul(c, c) v = ReduceMean(sq, axis) "
    body += "ve = Add(v, e) sd = Sqrt(ve) r = Div(c, sd) "
    return graph(start + body + end, **HALF, constants=listed("int64[1] axis = {-1}", eps))


def softmax(*, half: bool = True) -> str:
    kind = "float16[4,32]" if half else "float[4,32]"
    body = "m = ReduceMax(x, axis) c = Sub(x, m) e = Exp(c) t = ReduceSum(e, axis) y = Div(e, t)"
    return graph(body, kind, kind, constants="int64[1] axis = {-1}")


HEADS = "float16[2,4,16,32]"
ATTENTION = "y = Attention(x, k, v)"
TWO_PLACES = "wd = DequantizeLinear<axis = 1>(w, ws) y = MatMul(x, wd)"

BROKEN: dict[str, list[Broken]] = {
    "wiring": [
        Broken(graph("y = Add(x, ghost)"), "y", "reads ghost, which nothing makes"),
        Broken(graph("a = Add(x, b) b = Neg(a) y = Relu(b)"), "a", "needs its own output"),
        Broken(graph("a = Relu(x) a = Neg(x) y = Neg(a)"), "a", "a is made 2 times"),
        Broken(graph("y = Neg(x)", y="float[4,32] y, float[1] lost"), "lost", "is an output that nothing makes"),
        Broken(graph("y = Neg(x)").replace("(float[4,32] y)", "()"), "the graph", "has no outputs"),
    ],
    "constant": [
        Broken(graph("y = Add(x, k)", constants="float[32] k = {1, 1}"), "k", "has 2 numbers for 32"),
        Broken(graph("k = Constant() y = Add(x, k)"), "k", "is a Constant without a value"),
        Broken(graph("y = Add(x, k)", constants="float k = {1}, float k = {1}"), "k", "is the name of two constants"),
    ],
    "contradiction": [
        Broken(
            graph("y = MatMul(x, w)", "float[4,32] x, float[16,4] w", "float[4,4]"),
            "MatMul",
            "MatMul: Incompatible dimensions for matrix multiplication",
        ),
        Broken(
            graph("[late] y = Softmax<axis = 7>(x)"),
            "late",
            "Softmax: 'axis' must be in [-2 , 1]. Its actual value is: 7",
        ),
    ],
    "data-type": [
        Broken(graph("y = Cast<to = 1>(x)", "uint16[4,32]"), "x", "is of type UINT16"),
        Broken(graph("f = Cast<to = 1>(k) y = Mul(x, f)", constants="int16 k = {2}"), "k", "is of type INT16"),
        Broken(graph("a = Cast<to = 2>(x) y = Cast<to = 1>(a)"), "a", "casts to UINT8"),
        Broken(
            graph(f"{CLASSES_OF} m = Cast<to = 2>(c) y = Flatten(m)", **MAP, y="uint8[1,64]"), "m", "casts to UINT8"
        ),
    ],
    "resize": [
        Broken(doubled('mode = "linear", antialias = 1'), "y", "Resize with antialiasing"),
        Broken(
            doubled('mode = "linear", coordinate_transformation_mode = "half_pixel_symmetric"'),
            "y",
            "Resize of half_pixel_symmetric, expected align_corners, asymmetric, half_pixel, pytorch_half_pixel, "
            "tf_half_pixel_for_nn",
        ),
        Broken(doubled('mode = "nearest"', "int64"), "y", "Resize of INT64"),
    ],
    "mixed-types": [
        Broken(graph("y = Add(x, h)", "float[4,32] x, float16[4,32] h"), "y", "Add of FP16 and FP32"),
        Broken(graph("y = Where(m, x, h)", "float[4,32] x, float16 h, bool m"), "y", "Where of FP16 and FP32"),
        Broken(
            graph("y = LayerNormalization(x, g)", **HALF, constants=filled("float", "g", "32", 1)),
            "y",
            "LayerNormalization of FP16 and FP32",
        ),
    ],
    "integer-product": [
        Broken(graph("y = MatMul(x, w)", "int32[4,32] x, int32[32,4] w", "int32[4,4]"), "y", "MatMul of INT32"),
    ],
    "operator": [
        Broken(
            graph("q, s, z = DynamicQuantizeLinear(x) y = Cast<to = 1>(q)"),
            "q",
            "TensorRT does not have the operator DynamicQuantizeLinear",
        ),
        Broken(
            graph("y = com.microsoft.QuickGelu(x)", domains="com.microsoft"),
            "y",
            "ONNX Runtime alone has the operator com.microsoft::QuickGelu",
        ),
        Broken(graph("y = Unheard(x)"), "y", "TensorRT does not have the operator Unheard"),
    ],
    "foreign-domain": [
        Broken(
            graph("y = com.microsoft.Gelu(x)", domains="com.microsoft"),
            "y",
            "com.microsoft::Gelu would be taken for ONNX's Gelu",
        ),
    ],
    "attention-operator": [
        Broken(graph(ATTENTION, three("float[2,4,16,32]"), "float[2,4,16,32]", opset=23), "y", "Attention in FP32"),
        Broken(
            graph(ATTENTION, three("float16[2,4,16,8]"), "float16[2,4,16,8]", opset=23),
            "y",
            "Attention with heads of width 8, expected 9 to 256",
        ),
    ],
    "computed-shape": [
        Broken(
            graph("n = Shape(x) y = Reshape(x, n)", "float[B,32]", "float[B,32]"),
            "y",
            "Reshape to n, computed by Shape (n)",
        ),
    ],
    "baked-batch": [
        Broken(
            graph("y = Reshape(x, t)", **BATCHED, constants="int64[2] t = {1, 128}"),
            "y",
            "reshapes [batch, 4, 32] to [1, 128], which holds one batch",
        ),
        Broken(  # two windows of each of two images
            graph(
                "w = Reshape(x, t) y = Reshape(w, u)",
                **BATCHED,
                constants="int64[4] t = {-1, 2, 2, 32}, int64[2] u = {4, 64}",
            ),
            "y",
            "reshapes [batch, 2, 2, 32] to [4, 64], which holds one batch",
        ),
        Broken(
            graph("y = Reshape(x, t)", y="float[4,33]", constants="int64[2] t = {4, 33}"),
            "y",
            "reshapes [4, 32] to [4, 33]",
        ),
    ],
    "fixed-first": [
        Broken(
            graph("y = Reshape(x, t)", "float[B,4,32]", "float[2,C,32]", constants="int64[3] t = {2, -1, 32}"),
            "y",
            "reshapes [batch, 4, 32] to [2, -1, 32]",
        ),
    ],
    "layernorm": [Broken(layernorm(), "sd", "root of the FP16 mean v")],
    "softmax": [Broken(softmax(), "y", "divides the FP16 exponentials e by their sum")],
    "half-norm": [
        Broken(graph("a = Softmax(x) y = Softmax(a)", **HALF), "a", "Softmax in FP16, and 1 more like it"),
    ],
    "cast-pair": [
        Broken(graph("a = Cast<to = 10>(x) y = Cast<to = 1>(a)"), "y", "FP32 to FP16 and back"),
    ],
    "wide-type": [
        Broken(graph("y = Neg(x)", "double[4,32]", "double[4,32]"), "y", "Neg makes FP64"),
        Broken(graph("y = Mul(x, x)", "int64[4,32]", "int64[4,32]"), "y", "Mul of INT64"),
    ],
    "zero-point": [
        Broken(
            graph(
                "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)", constants="float s = {0.1}, int8 z = {3}"
            ),
            "q",
            "QuantizeLinear has the zero point 3, expected 0",
        ),
        Broken(
            graph(QY, constants="float s = {0.1}, uint8 z = {128}"),
            "y",
            "DequantizeLinear has the zero point 128, expected 0",
        ),
        Broken(
            graph(QY, "float[4,32] x, int8 z", constants="float s = {0.1}"),
            "q",
            "QuantizeLinear computes its zero point (z) at run time",
        ),
        Broken(
            graph(IF, "bool c, float[4,32] x", constants="float s = {0.1}, int8 z = {-5}"),
            "q",
            "QuantizeLinear has the zero point -5, expected 0",
        ),
    ],
    "int32-bias": [
        Broken(
            graph("b = DequantizeLinear(k, s) y = Add(x, b)", constants=listed(S, filled("int32", "k", "32", 1))),
            "b",
            "dequantises INT32 (k), as a quantised bias is written",
        ),
    ],
    "quantised-type": [
        Broken(
            graph(TWO_PLACES, y="float[4,64]", constants=weights("32,64", 64, "uint8")),
            "wd",
            "dequantises UINT8 (w), expected INT8",
        ),
        Broken(graph(QY, "int32[4,32]", constants=S), "q", "quantises INT32, expected FP32 or FP16"),
    ],
    "unsigned": [
        Broken(graph(QY, constants="float s = {0.1}, uint8 z = {0}"), "q", "quantises to UINT8"),
        Broken(
            graph("q = QuantizeLinear(x, s) y = DequantizeLinear(q, s)", constants="float s = {0.1}"),
            "q",
            "quantises to UINT8, the type of a Q without a zero point",
        ),
    ],
    "int8-constant": [
        Broken(
            graph("f = Cast<to = 1>(w) y = MatMul(x, f)", y="float[4,64]", constants=filled("int8", "w", "32,64", 1)),
            "f",
            "Cast takes the INT8 constant w",
        ),
        Broken(
            graph(
                "t = Transpose(w) wd = DequantizeLinear<axis = 1>(t, ws) y = MatMul(x, wd)",
                y="float[4,64]",
                constants=weights("64,32", 64),
            ),
            "t",
            "Transpose takes the INT8 constant w",
        ),
        Broken(
            graph("y = Neg(x)", y="float[4,32] y, int8 k", constants="int8 k = {1}"),
            "k",
            "is a constant of INT8 and an output",
        ),
    ],
    "scale-value": [
        Broken(
            graph(QY, constants="float s = {0.0}, int8 z = {0}"),
            "q",
            "QuantizeLinear has the scale 0 in s, expected more than 0",
        ),
        Broken(
            graph(QY, **HALF, constants="float16 s = {32256}, int8 z = {0}"),  # NaN
            "y",
            "DequantizeLinear has the scale nan in s, expected more than 0",
        ),
        Broken(
            graph(QY, constants="float s = {-0.5}, int8 z = {0}"),
            "q",
            "QuantizeLinear has the scale -0.5 in s, expected more than 0",
        ),
    ],
    "scale-range": [
        Broken(
            graph(QY, **HALF, constants="float16 s = {17}, int8 z = {0}"),
            "q",
            "s holds the FP16 scale 1.01e-06, a subnormal number that has lost digits",
        ),
        Broken(
            graph(QY, **HALF, constants="float16 s = {31744}, int8 z = {0}"),
            "q",
            "s holds an infinite scale, which makes every number 0 or NaN",
        ),
    ],
    "scale-fp16": [
        Broken(
            graph(QY, constants="float s = {0.000001}, int8 z = {0}"),
            "q",
            "s holds the scale 1e-06, out of the range of FP16, and 1 more like it",
        ),
    ],
    "scale-constant": [
        Broken(
            graph(QY, "float[4,32] x, float s", constants="int8 z = {0}"),
            "q",
            "QuantizeLinear computes its scale (s) at run time",
        ),
    ],
    "scale-count": [
        Broken(product(axis=1, scales=32), "wd", "32 scales along axis 1, which has 64 elements"),
        Broken(product(axis=2), "wd", "axis 2 of a tensor of rank 2"),
        Broken(
            graph(QY, constants=listed("float s = {0.1}", filled("int8", "z", "32", 0))),
            "q",
            "1 scales and 32 zero points, expected as many",
        ),
        Broken(
            graph(
                TWO_PLACES,
                y="float[4,64]",
                constants=listed(filled("int8", "w", "32,64", 1), filled("float", "ws", "3,64", 0.1)),
            ),
            "wd",
            "scales of shape [3, 64] are no whole blocks along axis 1 of [32, 64]",
        ),
    ],
    "scale-type": [
        Broken(
            graph(
                "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Cast<to = 10>(d)", **HALF, constants=S
            ),
            "q",
            "quantises FP16 by a scale of FP32",
        ),
        Broken(
            graph(QY, **HALF, constants=HALF_S, opset=17),
            "q",
            "has an FP16 scale at opset 17, expected opset 19 or later",
        ),
    ],
    "blocked": [
        Broken(
            graph(
                f"{QX} wd = DequantizeLinear<axis = 0, block_size = 16>(w, ws) y = MatMul(d, wd)",
                y="float[4,64]",
                constants=listed(S, filled("int8", "w", "32,64", 1), filled("float", "ws", "2,64", 0.1)),
                opset=21,
            ),
            "wd",
            "DequantizeLinear of INT8 has a scale for each block",
        ),
    ],
    "activation-scale": [
        Broken(
            graph(
                "q = QuantizeLinear<axis = 1>(x, s, z) y = DequantizeLinear<axis = 1>(q, s, z)",
                constants=listed(filled("float", "s", "32", 0.1), filled("int8", "z", "32", 0)),
            ),
            "q",
            "quantises an activation by 32 scales, expected 1",
        ),
    ],
    "weight-axis": [
        Broken(product(axis=0, scales=32), "wd", "scales axis 0 of the weights of y, expected axis 1"),
        Broken(convolution(axis=1), "wd", "scales axis 1 of the weights of y, expected axis 0"),
        Broken(
            product(axis=1, scales=32, op="Gemm<transB = 1>", shape="64,32"),
            "wd",
            "scales axis 1 of the weights of y, expected axis 0",
        ),
        Broken(
            product(axis=1, scales=32, op="Gemm<transB = 1>", shape="64,32").replace(
                "y = Gemm<transB = 1>(d, wd)", "t = Transpose(wd) y = MatMul(d, t)"
            ),
            "wd",
            "scales axis 0 of the weights of y, expected axis 1",
        ),
        Broken(
            graph(
                f"{QX} wd = DequantizeLinear<axis = 0>(w, ws) y = ConvTranspose(d, wd)",
                **IMAGE,
                constants=listed(S, weights("16,16,1,1", 16)),
            ),
            "wd",
            "scales axis 0 of the weights of y, expected axis 1",
        ),
    ],
    "unpaired": [
        Broken(
            graph("q = QuantizeLinear(x, s, z) r = Relu(q) y = DequantizeLinear(r, s, z)", constants=S),
            "q",
            "Relu (r) reads what Q makes, expected DQ",
        ),
        Broken(
            graph("y = QuantizeLinear(x, s, z)", y="int8[4,32]", constants=S), "y", "nothing dequantises what Q makes"
        ),
        Broken(graph("y = DequantizeLinear(x, s)", "int8[4,32]", constants=S), "y", "dequantises x, which no Q made"),
        Broken(
            graph("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, t, z)", constants=listed(S, "float t = {0.2}")),
            "y",
            "has another scale than the Q that it undoes, q",
        ),
    ],
    "residual": [
        Broken(graph(f"{QX} y = Add(x, d)", constants=S), "y", "adds what d dequantises"),
        Broken(attention("o", tail="x"), "y", "adds what o_d dequantises"),
    ],
    "half-attention": [
        Broken(attention("qk"), "o", "attention with Q and DQ on q, k but not on softmax, v, output"),
        Broken(attention("qkpv"), "o", "attention with Q and DQ on q, k, softmax, v but not on output"),
        Broken(attention("kpvo"), "scores", "attention with Q and DQ on k, softmax, v, output but not on q"),
    ],
    "one-sided": [
        Broken(
            graph(f"{QX} y = MatMul(d, w)", y="float[4,64]", constants=listed(S, filled("float", "w", "32,64", 1))),
            "y",
            "MatMul with Q and DQ on the activation but not on the weights",
        ),
        Broken(
            graph(TWO_PLACES, y="float[4,64]", constants=weights("32,64", 64)),
            "y",
            "MatMul with Q and DQ on the weights but not on the activation",
        ),
        Broken(
            graph(f"{QX} y = MatMul(d, b)", "float[4,32] x, float[32,64] b", "float[4,64]", constants=S),
            "y",
            "MatMul with Q and DQ on input 0 but not on input 1",
        ),
    ],
    "small-product": [
        Broken(product(32, 10), "y", "MatMul of K 32, N 10 in INT8, expected at least 16"),
        Broken(product(8, 32), "y", "MatMul of K 8, N 32 in INT8, expected at least 16"),
    ],
    "uneven-product": [Broken(product(32, 40), "y", "MatMul of K 32, N 40 in INT8")],
    "depthwise": [Broken(convolution(group=16), "y", "depthwise convolution of 16 channels with Q and DQ")],
    "quantised-input": [
        Broken(graph(f"{QX} y = Gelu(d)", constants=S), "y", "Gelu reads what d dequantises"),
        Broken(
            graph(f"{QX} r = Reshape(d, t) y = Softmax(r)", constants=listed(S, "int64[2] t = {4, 32}")),
            "y",
            "Softmax reads what d dequantises",
        ),
    ],
    "early-quantiser": [
        Broken(
            rectified("p = QuantizeLinear(c, s, z) e = DequantizeLinear(p, s, z) y = Relu(e)"),
            "y",
            "Relu of what p quantises of c",
        ),
    ],
    "gemm-bias": [
        Broken(
            product(32, 64, op="Gemm").replace("(d, wd)", "(d, wd, b)").replace("int8 z =", "float b = {1}, int8 z ="),
            "y",
            "Gemm in INT8 with the floating-point bias b",
        ),
    ],
}
"""Graphs that break a rule. Those of an error break no other error."""

PLAIN = graph(QY, constants=S)
FULL = attention("qkpvo", tail="x")
CLOSE: dict[str, list[str]] = {
    "wiring": [
        graph("y = Neg(a) a = Relu(x)"),  # TensorRT sorts
        graph('y = Clip(x, "", k)', constants="float k = {1}"),
        graph(IF, "bool c, float[4,32] x", constants=S),
    ],
    "constant": [graph("k = Constant<value_float = 2.0>() y = Add(x, k)")],
    "contradiction": [graph("y = MatMul(x, w)", "float[4,32] x, float[32,4] w", "float[4,4]")],
    "data-type": [
        graph("y = Cast<to = 1>(x)", "uint8[4,32]"),
        graph(f"{CLASSES_OF} y = Cast<to = 2>(c)", **MAP, y="uint8[1,8,8]"),
        graph(f"{CLASSES_OF} y = Cast<to = 2>(c) z = Cast<to = 6>(y)", **MAP, y="uint8[1,8,8] y, int32[1,8,8] z"),
    ],
    "resize": [
        doubled('mode = "linear", coordinate_transformation_mode = "pytorch_half_pixel"'),
        doubled('mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"'),
        doubled('mode = "cubic"', "float16"),
    ],
    "mixed-types": [
        graph("c = Cast<to = 1>(h) y = Add(x, c)", "float[4,32] x, float16[4,32] h"),
        graph("y = Pow(x, h)", "float[4,32] x, float16 h"),
    ],
    "integer-product": [graph("y = MatMul(x, w)", "float[4,32] x, float[32,4] w", "float[4,4]")],
    "operator": [
        PLAIN,
        '<ir_version: 9, opset_import: ["": 20, "own": 1]> g (float[4,32] x) => (float[4,32] y) { y = own.F(x) }'
        ' <domain: "own", opset_import: ["": 20]> F (a) => (b) { t = Relu(a) b = Neg(t) }',
    ],
    "foreign-domain": [graph("y = Gelu(x)")],
    "attention-operator": [graph(ATTENTION, three(HEADS), HEADS, opset=23)],
    "computed-shape": [graph("y = Reshape(x, t)", **BATCHED, constants="int64[2] t = {-1, 128}")],
    "baked-batch": [
        graph("y = Reshape(x, t)", **BATCHED, constants="int64[2] t = {-1, 128}"),
        graph("y = Reshape(x, t)", **BATCHED, constants="int64[2] t = {0, 128}"),
        graph("y = Reshape(x, t)", "float[1,4,32]", "float[1,128]", constants="int64[2] t = {1, 128}"),
    ],
    "fixed-first": [graph("y = Reshape(x, t)", "float[2,4,32]", "float[2,8,16]", constants="int64[3] t = {2, -1, 16}")],
    "layernorm": [layernorm(cast=True), graph("y = Sqrt(x)", **HALF)],
    "softmax": [softmax(half=False), graph("t = ReduceSum(x) y = Div(x, t)", **HALF)],
    "half-norm": [graph("a = Cast<to = 1>(x) b = Softmax(a) y = Cast<to = 10>(b)", **HALF)],
    "cast-pair": [graph("a = Cast<to = 10>(x) b = Neg(a) y = Cast<to = 1>(b)")],
    "wide-type": [graph("y = Add(x, x)", "int64[4]", "int64[4]")],
    "zero-point": [
        PLAIN,
        graph(
            "q = QuantizeLinear<output_dtype = 3>(x, s) y = DequantizeLinear(q, s)",
            constants="float s = {0.1}",
            opset=21,
        ),
    ],
    "int32-bias": [
        graph("b = DequantizeLinear(k, s) y = Add(x, b)", constants=listed(S, filled("int8", "k", "32", 1)))
    ],
    "quantised-type": [graph(QY, constants="float s = {0.1}, uint8 z = {0}"), product()],
    "unsigned": [PLAIN],
    "int8-constant": [product(), graph("y = Neg(x)", constants="int8 unused = {1}")],
    "scale-value": [PLAIN],
    "scale-range": [graph(QY, **HALF, constants=HALF_S)],
    "scale-fp16": [PLAIN],
    "scale-constant": [
        graph("s = Mul(t, t) " + QY, constants="float t = {0.1}, int8 z = {0}"),
        graph("s = Constant<value = float {0.1}>() " + QY, constants="int8 z = {0}"),
    ],
    "scale-count": [
        product(),
        graph(QY, constants="float[1] s = {0.1}, int8[1] z = {0}"),
        graph(
            TWO_PLACES.replace("axis = 1", "axis = 0, block_size = 16"),
            y="float[4,64]",
            opset=21,
            constants=listed(filled("int8", "w", "32,64", 1), filled("float", "ws", "2,64", 0.1)),
        ),
    ],
    "scale-type": [graph(QY, **HALF, constants=HALF_S)],
    "blocked": [product()],
    "activation-scale": [graph(QY, constants="float[1] s = {0.1}, int8[1] z = {0}"), product()],
    "weight-axis": [
        product(),
        product(axis=-1),
        convolution(),
        product(axis=0, op="Gemm<transB = 1>", shape="64,32"),
        product(axis=0, op="Gemm<transB = 1>", shape="64,32").replace(
            "y = Gemm<transB = 1>(d, wd)", "t = Transpose<perm = [1, 0]>(wd) y = MatMul(d, t)"
        ),
    ],
    "unpaired": [
        graph(
            "q = QuantizeLinear(x, s, z) r = Transpose(q) y = DequantizeLinear(r, s, z)", y="float[32,4]", constants=S
        ),
        graph("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, t, z)", constants=listed(S, "float t = {0.1}")),
    ],
    "residual": [
        FULL,  # a quantised attention must end in Q and DQ
        graph(f"{QX} y = Add(d, b)", constants=listed(S, filled("float", "b", "32", 1))),
    ],
    "half-attention": [FULL, attention(""), attention("o")],
    "one-sided": [product(), FULL, attention("qk")],
    "small-product": [product(32, 16), graph("y = MatMul(x, w)", "float[4,8] x, float[8,4] w", "float[4,4]")],
    "uneven-product": [product(48, 96)],
    "depthwise": [convolution(group=16, quantised=False), convolution()],
    "quantised-input": [graph("y = Gelu(x)"), product()],
    "early-quantiser": [
        rectified("r = Relu(c) p = QuantizeLinear(r, s, z) y = DequantizeLinear(p, s, z)"),
        graph(f"{QX} y = Relu(d)", constants=S),
    ],
    "gemm-bias": [product(op="Gemm")],
}
"""Graphs that come close to breaking a rule; TensorRT takes every one."""
