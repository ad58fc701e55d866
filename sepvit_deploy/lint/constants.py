"""Constants of a graph: their types' names, and whether their bytes are there."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

_WRITTEN = {
    "UNDEFINED": "",
    "FLOAT": "FP32",
    "FLOAT16": "FP16",
    "BFLOAT16": "BF16",
    "DOUBLE": "FP64",
    "FLOAT8E4M3FN": "FP8",
    "FLOAT4E2M1": "FP4",
}


def type_name(kind: int) -> str:
    """A tensor type as people write it: FP32, FP16, INT8; empty for none."""
    from onnx import TensorProto

    if kind not in TensorProto.DataType.values():
        return f"type {kind}"
    name = str(TensorProto.DataType.Name(kind))
    return _WRITTEN.get(name, name)


def constant(proto: onnx.NodeProto) -> onnx.TensorProto | None:
    """What a Constant node holds; None if it is a text, is sparse, or nothing."""
    from onnx import TensorProto, helper

    for attribute in proto.attribute:
        if attribute.name == "value" and attribute.type == attribute.TENSOR:
            held: onnx.TensorProto = attribute.t
            return held
        if attribute.name == "value_float":
            return helper.make_tensor("", TensorProto.FLOAT, (), [attribute.f])
        if attribute.name == "value_int":
            return helper.make_tensor("", TensorProto.INT64, (), [attribute.i])
        if attribute.name == "value_floats":
            return helper.make_tensor("", TensorProto.FLOAT, (len(attribute.floats),), attribute.floats)
        if attribute.name == "value_ints":
            return helper.make_tensor("", TensorProto.INT64, (len(attribute.ints),), attribute.ints)
    return None


def fault(tensor: onnx.TensorProto) -> str:
    """What is wrong with a constant: its size, type, or the bytes that it lacks; empty where nothing is."""
    from onnx import TensorProto, helper

    if any(dim < 0 for dim in tensor.dims):
        return f"has the shape {list(tensor.dims)}"
    if tensor.data_type not in helper.get_all_tensor_dtypes():
        return f"has the unknown type {tensor.data_type}"
    if tensor.data_location == TensorProto.EXTERNAL:
        return ""
    count, kind = prod(tensor.dims), tensor.data_type
    parts = _parts_of_a_byte(kind)
    if tensor.HasField("raw_data"):
        needed = -(-count // parts) * (1 if parts > 1 else helper.tensor_dtype_to_np_dtype(kind).itemsize)
        found = len(tensor.raw_data)
        return "" if found == needed else f"has {found} bytes for {needed}"
    complex_pair = 2 if kind in (TensorProto.COMPLEX64, TensorProto.COMPLEX128) else 1
    needed = -(-count // parts) * complex_pair
    found = len(getattr(tensor, helper.tensor_dtype_to_field(kind)))
    return "" if found == needed else f"has {found} numbers for {needed}"


def _parts_of_a_byte(kind: int) -> int:
    from onnx import TensorProto

    name = TensorProto.DataType.Name(kind)
    return 2 if name in ("INT4", "UINT4", "FLOAT4E2M1") else 4 if name in ("INT2", "UINT2") else 1
