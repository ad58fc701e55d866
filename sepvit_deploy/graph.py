"""ONNX files: read safely, written plainly, walked.

Nothing here knows SepViT. A graph is an `onnx.ModelProto`; "static" dimensions are those with a number.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sepvit_deploy.errors import GraphError

if TYPE_CHECKING:
    import onnx

MAX_BYTES = 2**31 - 1
"""Protobuf's limit for one file; larger graphs would need external data."""


def load_graph(path: Path) -> onnx.ModelProto:
    """Read an ONNX file with its weights.

    External data is read only from regular files inside the ONNX file's own folder.

    Raises:
        GraphError: no such file, not ONNX, or external data that points elsewhere.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not path.exists():
        raise GraphError(f"{path} does not exist", expected="an ONNX file", hint="type: sepvit-deploy export --help")
    if path.is_dir():
        raise GraphError(f"{path} is a folder", expected="an ONNX file")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise GraphError(f"{path} is larger than 2 GiB", expected="a single ONNX file below 2 GiB")
        model = onnx.load_model_from_string(path.read_bytes())
    except (DecodeError, ValueError) as error:
        raise _not_onnx(path) from error
    except OSError as error:
        raise GraphError(f"{path} cannot be read ({error.strerror})") from error
    if not model.graph.node or not model.opset_import:
        raise _not_onnx(path)
    _load_external_data(model, path)
    return model


def _not_onnx(path: Path) -> GraphError:
    return GraphError(f"{path} is not an ONNX file, or is cut off", expected="an ONNX file as export writes it")


def _load_external_data(model: onnx.ModelProto, path: Path) -> None:
    from onnx import TensorProto
    from onnx.checker import ValidationError
    from onnx.external_data_helper import load_external_data_for_model

    folder = path.parent.resolve()
    names = {
        entry.value
        for tensor in model.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for name in names:
        place = folder / name
        if Path(name).is_absolute() or place.is_symlink() or not place.resolve().is_relative_to(folder):
            raise GraphError(
                f"{path} keeps weights in {name!r}",
                expected="external data inside the ONNX file's own folder",
                hint="do not open this file",
            )
    if names:
        try:
            load_external_data_for_model(model, str(folder))
        except (OSError, ValueError, RuntimeError, ValidationError) as error:
            raise GraphError(f"{path} lacks its external data ({', '.join(sorted(names))})") from error


def opset(model: onnx.ModelProto) -> int:
    """Version of the standard operators that the graph uses; 0 if it uses none."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def with_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """A copy without intermediate shapes, with ``batch`` as the first dimension of every dynamic input."""
    import onnx

    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]
    for value in fixed.graph.input:
        shape = value.type.tensor_type.shape
        if shape.dim and not shape.dim[0].dim_value:
            shape.dim[0].dim_value = batch
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    return fixed


def static_shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Shape of every tensor that shape inference finds; None for a dimension that stays unknown.

    Raises:
        GraphError: the graph contradicts itself.
    """
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise GraphError(f"the graph contradicts itself: {reason}") from error
    shapes: dict[str, tuple[int | None, ...]] = {
        tensor.name: tuple(tensor.dims) for tensor in inferred.graph.initializer
    }
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
    return shapes


def rename_values(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Rename tensors in place, wherever they occur."""
    graph = model.graph
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)
