"""The JSON of TensorRT's engine inspector, in the forms of 10.x and 11.x, as plain records, and what each layer is.

What is known of it, and how:

    documented, by NVIDIA's guides and headers
        "Layers" is a list of objects with Name, LayerType, Inputs, Outputs, TacticName, Metadata, ...; where the engine
        was built with less than ProfilingVerbosity.DETAILED it is a list of names, or empty with NONE.
        10.x has "Bindings", a list of names; 11.x has "I/O Tensors" instead, a list of objects with Name, IOMode,
        DataType, ... 10.x gives a tensor's "Format/Datatype" in one text, 11.x in two fields.
        The ONNX parser writes "[ONNX Layer: NAME]" or "[ONNX Layer: NAME | FUNCTION ...]" into a layer's metadata.
    seen, in files that TensorRT 8 to 11 wrote
        "Format/Datatype" is a type ("Half") or a sentence ("Row major linear FP16 format", "Channel major FP16 format
        where channel % 8 == 0"), and "N/A due to dynamic shapes" before shapes are set. 11.x calls the second field
        "Datatype" in layers. A layer's metadata are separated by U+001F. Layers of optimisation profile N > 0 end in
        "[profile N]". LayerType is CaskConvolution, CaskGemmMatrixMultiply, Reformat, ... or Myelin's lower case:
        gemm, kgen, correlation (a convolution), custom_layer, shape_call, ... Some 10.x call INT64 tensors "INT8".
        Constants such as a bias may stand before the operands of a product. "Weights" of a layer have a "Type".
    inferred
        that "DataType", as the guide spells it for I/O tensors, may stand in layers too; the names of kernels, which
        `kind_of` and `precision_of` read; which of a product's inputs are its operands.

Anything else is refused rather than guessed at; a LayerType that is not known is no error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sepvit_deploy.errors import PlanError

Form = Literal["10", "11"]
Kind = Literal["matmul", "convolution", "attention", "region", "reformat", "cast", "movement", "other"]
MAX_CHARACTERS = 1 << 28
_NODE = re.compile(r"\[ONNX Layer: ([^\]|]*[^\]|\s])\s*[\]|]")
_PROFILE = re.compile(r"\[profile +(\d{1,9})\]")
_TYPES = {
    "float": "FP32",
    "fp32": "FP32",
    "half": "FP16",
    "fp16": "FP16",
    "bfloat16": "BF16",
    "bf16": "BF16",
    "fp8": "FP8",
    "int8": "INT8",
    "int4": "INT4",
    "fp4": "FP4",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "bool": "BOOL",
}

PRODUCTS: tuple[Kind, ...] = ("matmul", "convolution", "attention")
PRODUCT_OPS = frozenset({"MatMul", "Gemm", "Conv"})
_CAST_OPS = frozenset({"Cast", "to_half", "to_float", "QuantizeLinear", "DequantizeLinear"})
_MOVE_OPS = frozenset({"Transpose", "Reshape", "Slice", "Split", "Concat", "Flatten", "Squeeze", "Unsqueeze", "Expand"})
# Kernels that Myelin generates are named by what they do, "__myl_TranReshMove_..." or shorter "__myl_TraResMov_...".
# That vocabulary is nowhere documented; what is read from it decides between moving, casting and the rest alone.
_WORDS = re.compile(r"__myl_((?:[A-Z][a-z]*)+)")
_MOVE_WORDS = frozenset({"Mov", "Tra", "Res", "Sli", "Con", "Cop", "Rep", "Spl"})
_CAST_WORDS = frozenset({"Cas", "Qua", "Deq"})
_MATMUL_WORDS = frozenset({"Fc", "Gem", "Bmm", "Mat"})
# Kernels of fused attention: _gemm_mha_v2_0x... and _gemv_mha_v1 are seen in engines, the rest in NVIDIA's libraries.
_MHA = re.compile(r"(?:^|_)f?mha(?:_|\d|$)|flash_?attention|multi_?head_?attention", re.IGNORECASE)
# XMMA kernels say what they compute: ..._<input><output>_<operands><accumulator>_<scale>_..., as i8f32_i8i32_f32.
_XMMA = re.compile(r"_(?:[a-z]+\d+m?\d*){2}_(tf32|bf16|f16|f32|i8|e4m3)(?:f16|f32|i32)_")
# CUTLASS's: ...gemm_<operand>_<operand>_<accumulator>_..., as gemm_f16_f16_f32; cuBLAS's: gemmvx_f16f16_f32.
_CUTLASS = re.compile(r"gemm_(bf16|f16|f32|[si]8|e4m3)_(?:bf16|f16|f32|[si]8|e4m3|e5m2)_[a-z]+\d+")
_GEMV = re.compile(r"gem(?:v|mv)x?_(bf16|f16|f32|i8)(?:bf16|f16|f32|i8)_[a-z]+\d+")
_MATH = {"tf32": "TF32", "bf16": "BF16", "f16": "FP16", "f32": "FP32", "i8": "INT8", "s8": "INT8", "e4m3": "FP8"}
_FLOATS = ("FP32", "FP16", "BF16", "FP8", "INT8", "INT4", "FP4")
UNKNOWN = "unknown"
_ATTENTION = re.compile(r"(stage\d+\.block\d+)\.attention\.(dwa|pwa)/(MatMul|Softmax)(?:_\d+)?")


@dataclass(frozen=True)
class RawLayer:
    """A layer as the inspector tells it.

    Attributes:
        inputs, outputs: types of its tensors (FP32, FP16, INT8, ...), empty where the inspector does not tell.
        weights: type of its weights, likewise.
        nodes: of the ONNX file.
        profile: the optimisation profile that it belongs to.
        detailed: False where there is a name alone.
    """

    name: str
    type: str = ""
    kernel: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    weights: str = ""
    nodes: tuple[str, ...] = ()
    profile: int = 0
    detailed: bool = True


def layers_from_json(text: str) -> tuple[Form, tuple[RawLayer, ...]]:
    """The layers of an engine, of all its profiles.

    Raises:
        PlanError: no form that is known.
    """
    if len(text) > MAX_CHARACTERS:
        raise _foreign(f"{len(text)} characters", f"{MAX_CHARACTERS} or fewer")
    try:
        document = json.loads(text, strict=False)  # metadata may hold control characters as they are
    except (ValueError, RecursionError) as error:
        raise _foreign(f"no JSON ({error})", "a JSON object") from error
    if not isinstance(document, dict):
        raise _foreign(f"a {type(document).__name__}", "a JSON object")
    ends = [key for key in ("Bindings", "I/O Tensors") if isinstance(document.get(key), list)]
    if len(ends) != 1:
        keys = ", ".join(map(repr, list(document)[:6])) or "nothing"
        raise _foreign(f"{keys:.200}", "'Bindings' (TensorRT 10) or 'I/O Tensors' (TensorRT 11)")
    form: Form = "10" if ends == ["Bindings"] else "11"
    layers = document.get("Layers")
    if not isinstance(layers, list) or not layers:
        hint = "build with ProfilingVerbosity.DETAILED"
        raise _foreign("no layers" if layers == [] else "no list of 'Layers'", "one or more", hint)
    if len({isinstance(layer, str) for layer in layers}) > 1:
        raise _foreign("names and objects as layers", "one of them")
    return form, tuple(_layer(number, layer, form) for number, layer in enumerate(layers))


def _layer(number: int, layer: object, form: Form) -> RawLayer:
    if isinstance(layer, str):
        return RawLayer(layer, profile=_profile(layer), detailed=False)
    if not isinstance(layer, dict):
        raise _foreign(f"layer {number} as {layer!r:.40}", "a name or an object")
    name, kind = _text(number, layer, "Name"), _text(number, layer, "LayerType")
    tensors = {key: _types(number, layer, key, form) for key in ("Inputs", "Outputs")}
    return RawLayer(
        name,
        kind,
        _text(number, layer, "TacticName", ""),
        tensors["Inputs"],
        tensors["Outputs"],
        _weights(layer.get("Weights")),
        tuple(dict.fromkeys(_NODE.findall(_text(number, layer, "Metadata", "")))),
        _profile(name),
    )


def _text(number: int, layer: Mapping[str, Any], key: str, default: str | None = None) -> str:
    value = layer.get(key, default)
    if not isinstance(value, str):
        raise _foreign(f"layer {number} with {key} {value!r:.40}", "a text")
    return value


def _types(number: int, layer: Mapping[str, Any], key: str, form: Form) -> tuple[str, ...]:
    """Types of the tensors that a layer takes or gives; a layer that lacks the list has none."""
    tensors = layer.get(key, [])
    if not isinstance(tensors, list):
        raise _foreign(f"layer {number} with {key} {tensors!r:.40}", "a list")
    fields = ("Format/Datatype",) if form == "10" else ("Datatype", "DataType")
    found = []
    for tensor in tensors:
        told = [tensor[field] for field in fields if field in tensor] if isinstance(tensor, dict) else []
        if not told or not isinstance(told[0], str):
            raise _foreign(f"layer {number} with {key} {tensor!r:.100}", f"{fields[0]!r} of each tensor")
        found.append(_type(told[0]))
    return tuple(found)


def _weights(found: object) -> str:
    kind = found.get("Type") if isinstance(found, dict) else None
    return _type(kind) if isinstance(kind, str) else ""


def _type(text: str) -> str:
    """``FP16`` of "Half" and of "Channel major FP16 format where channel % 8 == 0"; empty where it names none."""
    named = {_TYPES[word] for word in re.findall(r"[a-z]+\d*", text.lower()) if word in _TYPES}
    return named.pop() if len(named) == 1 else ""


def _profile(name: str) -> int:
    found = _PROFILE.search(name)
    return int(found[1]) if found else 0


def _foreign(found: str, expected: str, hint: str | None = None) -> PlanError:
    return PlanError(f"the engine inspector gives {found}", expected=expected, hint=hint)


def kind_of(layer: RawLayer) -> Kind:
    """What a layer does; ``other`` where nothing tells."""
    kind, kernel, ops = layer.type.lower(), layer.kernel.lower(), operators(layer.nodes)
    if kind == "myelin" or layer.name.startswith("{ForeignNode["):
        return "region"
    if _MHA.search(layer.kernel) or _MHA.search(layer.name) or _whole_attention(layer.nodes):
        return "attention"
    if kind == "reformat" or layer.name.startswith("Reformatting CopyNode"):
        return "reformat"
    if re.search("conv(?!ert)", kind) or kind == "correlation" or "fprop" in kernel:
        return "matmul" if ops & {"MatMul", "Gemm"} and "Conv" not in ops else "convolution"
    words = _words(layer)
    if re.search("gemm|gemv|matrixmultiply|matmul|fullyconnected", f"{kind} {kernel}") or words & _MATMUL_WORDS:
        return "matmul"
    if kind in ("cast", "quantize", "dequantize"):
        return "cast"
    does = words or ops
    casts, moves = (_CAST_WORDS, _MOVE_WORDS) if words else (_CAST_OPS, _MOVE_OPS)
    if does and does <= casts | moves:
        return "cast" if does & casts else "movement"
    return "movement" if kind in ("shuffle", "slice", "copy", "concat", "noop") else "other"


def precision_of(layer: RawLayer, kind: Kind) -> str:
    """That a product computes in, by its kernel's name or else its operands; that any other layer reads first."""
    kernel = layer.kernel.lower()
    if found := _XMMA.search(kernel):
        return _MATH[found[1]]
    if "tf32" in kernel:
        return "TF32"
    if found := _CUTLASS.search(kernel) or _GEMV.search(kernel):
        return _MATH[found[1]]
    kinds = layer.inputs or layer.outputs
    if kind in PRODUCTS:
        return _operands(kinds) or layer.weights or next(iter(kinds), "") or UNKNOWN
    for name in kinds:
        if name in _FLOATS or not name:
            return name or UNKNOWN
    return kinds[0] if kinds else UNKNOWN


def _operands(kinds: Iterable[str]) -> str:
    """The type of a product's operands among its inputs, between which a bias, a scale or a residual may stand."""
    numbers = [name for name in kinds if name in _FLOATS]
    if numbers.count("INT8") > 1:
        return "INT8"
    return next((name for name in numbers if name != "FP32"), numbers[0] if numbers else "")


def _words(layer: RawLayer) -> frozenset[str]:
    """What a generated kernel does, in words of three letters; empty for any other."""
    found = _WORDS.search(layer.kernel) or _WORDS.search(layer.name)
    return frozenset(word[:3] for word in re.findall("[A-Z][a-z]*", found[1])) if found else frozenset()


def operators(nodes: Iterable[str]) -> frozenset[str]:
    """Operators of nodes, which export names ``layer/Operator`` or ``layer/Operator_2``."""
    return frozenset(re.sub(r"_\d+$", "", node.rpartition("/")[2]) for node in nodes)


def _whole_attention(nodes: Iterable[str]) -> bool:
    """True for a layer that holds both products of one attention and the softmax between them."""
    parts: dict[str, list[str]] = {}
    for name, op in map(attention_part, dict.fromkeys(nodes)):
        parts.setdefault(name, []).append(op)
    return any(ops.count("MatMul") >= 2 and "Softmax" in ops for ops in parts.values())


def attention_part(node: str) -> tuple[str, str]:
    """``stage1.block0.attention.dwa/MatMul_2`` -> ``stage1.block0.dwa``, ``MatMul``; empty texts of any other node."""
    found = _ATTENTION.fullmatch(node)
    return (f"{found[1]}.{found[2]}", found[3]) if found else ("", "")
