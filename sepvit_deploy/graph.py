"""ONNX files: read safely, written plainly, walked.

Nothing here knows SepViT. A graph is an `onnx.ModelProto`; "static" dimensions are those with a number.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sepvit_deploy.errors import GraphError

if TYPE_CHECKING:
    import onnx

MAX_BYTES = 2**31 - 1
"""Protobuf's limit for one file; larger graphs would need external data."""

OUTPUT_SUFFIX = ".as_output"
MAX_DIMENSION = 1 << 26
"""Longest dimension whose shapes are inferred; a layer of SepViT stays far below it."""


def load_graph(path: Path) -> onnx.ModelProto:
    """Read an ONNX file with its weights.

    External data is read only from regular files inside the ONNX file's own folder.

    Raises:
        GraphError: no such file, not ONNX, or external data that is missing or points elsewhere.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise GraphError(f"{path} is {kind}", expected="an ONNX file")
        if status.st_size > MAX_BYTES:
            raise GraphError(f"{path} is larger than 2 GiB", expected="a single ONNX file below 2 GiB")
        model = onnx.load_model_from_string(path.read_bytes())
    except (DecodeError, ValueError) as error:
        raise _not_onnx(path) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        hint = "type: sepvit-deploy export --help"
        raise GraphError(f"{path} does not exist", expected="an ONNX file", hint=hint) from error
    except OSError as error:
        raise GraphError(f"{path} cannot be read ({error.strerror})") from error
    if not model.graph.node or not model.opset_import:
        raise _not_onnx(path)
    _load_external_data(model, path)
    return model


def _not_onnx(path: Path) -> GraphError:
    return GraphError(f"{path} is not an ONNX file, or is cut off", expected="an ONNX file as export writes it")


def _load_external_data(model: onnx.ModelProto, path: Path) -> None:
    from onnx.checker import ValidationError
    from onnx.external_data_helper import load_external_data_for_model

    folder = path.parent.resolve()
    names = {
        next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        for tensor in _tensors(model)
        if tensor.data_location == tensor.EXTERNAL
    }
    places = {name: folder / name for name in names}
    for name, place in places.items():
        real = os.path.realpath(place) if "\0" not in name else ""
        if Path(name).is_absolute() or os.path.islink(place) or not Path(real).is_relative_to(folder):
            raise GraphError(
                f"{path} keeps weights in {name!r}",
                expected="external data inside the ONNX file's own folder",
                hint="do not open this file",
            )
    missing = sorted(name for name, place in places.items() if not os.path.isfile(place))
    if missing:
        raise GraphError(f"{path} lacks its external data ({', '.join(missing)})")
    if path.stat().st_size + sum(place.stat().st_size for place in places.values()) > MAX_BYTES:
        raise GraphError(f"{path} with its external data is larger than 2 GiB", expected="less than 2 GiB")
    if names:
        try:
            load_external_data_for_model(model, str(folder))
        except (OSError, ValueError, RuntimeError, ValidationError) as error:
            reason = str(error).strip().splitlines()[0]
            raise GraphError(f"the external data of {path} cannot be read ({reason})") from error


def nested(*roots: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """Graphs or local functions, and the graphs inside their nodes (If, Loop, Scan), outer before inner."""
    pending = list(roots)
    while pending:
        part = pending.pop(0)
        yield part
        for node in part.node:
            for attribute in node.attribute:
                pending.extend(attribute.graphs)
                if attribute.HasField("g"):
                    pending.append(attribute.g)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for part in nested(model.graph, *model.functions):
        yield from getattr(part, "initializer", ())  # a function has none
        for node in part.node:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)


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
    """Shape of every tensor whose rank shape inference finds; None for a dimension that stays unknown.

    Raises:
        GraphError: the graph contradicts itself.
    """
    import onnx

    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        longest = max((dim.dim_value for dim in value.type.tensor_type.shape.dim), default=0)
        if longest > MAX_DIMENSION:  # data_prop writes down every element of an integer vector
            raise GraphError(f"{value.name} has a dimension of {longest}", expected=f"at most {MAX_DIMENSION}")
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise GraphError(f"the graph contradicts itself: {reason}") from error
    shapes: dict[str, tuple[int | None, ...]] = {
        tensor.name: tuple(tensor.dims) for tensor in inferred.graph.initializer
    }
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        if value.type.tensor_type.HasField("shape"):  # without: the rank is unknown, which () would deny
            dims = value.type.tensor_type.shape.dim
            shapes[value.name] = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
    return shapes


def rename_values(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Rename tensors in place, wherever they occur in the graph and in the graphs inside its nodes."""
    for graph in nested(model.graph):
        for node in graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
        for value in (*graph.input, *graph.output, *graph.value_info, *getattr(graph, "initializer", ())):
            value.name = names.get(value.name, value.name)


def with_outputs(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy that also gives inner tensors, each as float32 under its own name with `OUTPUT_SUFFIX`.

    The cast changes no number of an FP16 tensor, and makes every output of one type, whatever the graph computes in.
    """
    from onnx import ModelProto, TensorProto, helper

    more = ModelProto()
    more.CopyFrom(model)
    for name in names:
        output = name + OUTPUT_SUFFIX
        more.graph.node.append(helper.make_node("Cast", [name], [output], name=output, to=TensorProto.FLOAT))
        more.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    return more


def with_logits(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph that gives a mask, which gives the logits (B, classes, h, w) that the mask is chosen from.

    Raises:
        GraphError: the graph does not end in Resize, ArgMax and Cast.
    """
    from onnx import ModelProto, TensorProto, helper

    cut = ModelProto()
    cut.CopyFrom(model)
    made = {output: node for node in cut.graph.node for output in node.output}
    name, ending = cut.graph.output[0].name, []
    for kind in ("Cast", "ArgMax", "Resize"):
        node = made.get(name)
        if node is None or node.op_type != kind:
            found = f"{cut.graph.output[0].name} is made by {node.op_type if node is not None else 'nothing'}"
            raise GraphError(found, expected="a mask, by Resize, ArgMax and Cast, as export writes it")
        ending.append(node)
        name = node.input[0]
    for node in ending:
        cut.graph.node.remove(node)
    del cut.graph.output[:]
    cut.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    rename_values(cut, {name: "logits"})
    return cut
