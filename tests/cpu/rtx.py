"""TensorRT-RTX's parser and builder, which need neither a GPU nor a driver: the gate for every ONNX file we write.

``parse_and_build`` works in a child process (this file run as a script), so that a crash of the native library is an
`RtxRejected` and not the end of the test run. The child prints its report as the last line of its standard output.

Shapes: B batch.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import platform
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LIBRARIES = ("libtensorrt_rtx.so.1.7.1", "libtensorrt_onnxparser_rtx.so.1.7.1")
"""In the order of loading: the parser looks for the builder's symbols."""
LIBRARY_PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"


class RtxMissing(Exception):
    """A package of the extra ``rtx`` is not installed, on a machine where it could be."""


class RtxRejected(Exception):
    """The parser or the builder refused the file, or died of it."""


EXIT_STATUS: dict[type[Exception], int] = {RtxRejected: 3, RtxMissing: 4}
"""How the child says what it raised; the message is on its standard error."""


@dataclass(frozen=True)
class BuildReport:
    """What was parsed and built.

    Attributes:
        engine_bytes: size of the serialised engine.
        layers: layers of the parsed network.
        matmuls: matrix products of the parsed network by the type they compute in, as ``{"FLOAT": 77}``; one whose two
            inputs are dequantised from INT8 counts as ``INT8``.
        convolutions: the same of its convolutions.
        inputs: shape of each input by its name, -1 for a dynamic dimension.
        outputs: the same of each output.
        seconds: wall-clock time of parsing and building.
    """

    engine_bytes: int
    layers: int
    matmuls: dict[str, int]
    convolutions: dict[str, int]
    inputs: dict[str, list[int]]
    outputs: dict[str, list[int]]
    seconds: float


def skip_reason() -> str | None:
    """Why TensorRT-RTX cannot exist here; None where it can, whether it is installed or not."""
    found = f"{sys.platform} {platform.machine()}, Python {sys.version_info[0]}.{sys.version_info[1]}"
    if (sys.platform, platform.machine()) == ("linux", "x86_64") and sys.version_info[:2] in {(3, 11), (3, 12)}:
        return None
    return f"TensorRT-RTX has wheels for linux x86_64 and Python 3.11 or 3.12, not for {found}"


def parse_and_build(
    path: Path, batches: tuple[int, int, int] | None = None, *, timeout_s: float = 300.0
) -> BuildReport:
    """Parse ``path`` as a strongly typed network and build its engine, in a child process.

    Args:
        path: the ONNX file.
        batches: least, best and greatest B of the optimisation profile; None for a file with no dynamic dimension.
        timeout_s: after these seconds the child is ended.

    Raises:
        RtxMissing: a package of the extra ``rtx`` is not installed.
        RtxRejected: the parser or the builder refused the file, or died of it.
    """
    command = [sys.executable, __file__, str(path), json.dumps(batches)]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise RtxRejected(f"{path}: TensorRT-RTX had not finished after {timeout_s:g} s") from error
    if child.returncode == 0:
        return BuildReport(**json.loads(child.stdout.splitlines()[-1]))
    reasons = child.stderr.strip()
    if child.returncode == EXIT_STATUS[RtxMissing]:
        raise RtxMissing(reasons)
    if child.returncode == EXIT_STATUS[RtxRejected]:
        raise RtxRejected(f"{path}: {reasons}")
    raise RtxRejected(f"{path}: TensorRT-RTX ended with status {child.returncode}: {reasons}")


def load_bindings() -> Any:
    """Load the two libraries, then the module of the bindings.

    Raises:
        RtxMissing: a package is not installed.
    """
    install = "type: pip install -c constraints.txt -e '.[rtx]'"
    spec = importlib.util.find_spec(LIBRARY_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise RtxMissing(f"onnxruntime-ep-nv-tensorrt-rtx-cu13 is not installed; {install}")
    for library in LIBRARIES:
        ctypes.CDLL(str(Path(spec.submodule_search_locations[0], library)), ctypes.RTLD_GLOBAL)
    try:
        return importlib.import_module("tensorrt_rtx_bindings")
    except ModuleNotFoundError as error:
        raise RtxMissing(f"tensorrt_rtx_cu13_bindings is not installed; {install}") from error


def build(trt: Any, path: Path, batches: tuple[int, int, int] | None) -> BuildReport:
    """Do the work of `parse_and_build` in this process.

    Raises:
        RtxRejected: with every message of the parser or the builder, one a line.
    """

    class Log(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message.strip())

    start = time.perf_counter()
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        raise RtxRejected("\n".join(f"{e.node_operator() or 'file'} {e.node_name()}: {e.desc()}" for e in errors))

    inputs = {t.name: list(t.shape) for t in map(network.get_input, range(network.num_inputs))}
    outputs = {t.name: list(t.shape) for t in map(network.get_output, range(network.num_outputs))}
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    matmuls = types_of(trt, layers, trt.LayerType.MATRIX_MULTIPLY)
    convolutions = types_of(trt, layers, trt.LayerType.CONVOLUTION)

    config = builder.create_builder_config()
    if batches:
        profile = builder.create_optimization_profile()
        for name, (batch, *rest) in inputs.items():
            if batch != -1 or -1 in rest:
                raise RtxRejected(f"input {name} is {[batch, *rest]}; batches are given, so only B may and must be -1")
            profile.set_shape(name, *([b, *rest] for b in batches))
        config.add_optimization_profile(profile)
    elif any(-1 in shape for shape in inputs.values()):
        raise RtxRejected(f"inputs are {inputs}; no batches are given, so no dimension may be -1")

    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise RtxRejected("\n".join(log.errors))
    return BuildReport(
        engine_bytes=engine.nbytes,
        layers=len(layers),
        matmuls=matmuls,
        convolutions=convolutions,
        inputs=inputs,
        outputs=outputs,
        seconds=round(time.perf_counter() - start, 2),
    )


def types_of(trt: Any, layers: list[Any], kind: Any) -> dict[str, int]:
    """Count the layers of one kind by the type that their products compute in."""
    producer = {x.get_output(k).name: x for x in layers for k in range(x.num_outputs)}

    def from_int8(tensor: Any) -> bool:
        source = producer.get(tensor.name) if tensor is not None else None
        while source is not None and source.type == trt.LayerType.SHUFFLE:  # the parser gives weights a rank
            source = producer.get(source.get_input(0).name)
        is_dequantized = source is not None and source.type == trt.LayerType.DEQUANTIZE
        return is_dequantized and source.get_input(0).dtype == trt.DataType.INT8

    found: Counter[str] = Counter()
    for x in layers:
        if x.type == kind:
            int8 = x.num_inputs > 1 and from_int8(x.get_input(0)) and from_int8(x.get_input(1))
            found["INT8" if int8 else x.get_output(0).dtype.name] += 1
    return dict(found)


def main() -> int:
    """Be the child: ``rtx.py FILE BATCHES``, with the batches as JSON."""
    path, batches = sys.argv[1:]
    try:
        report = build(load_bindings(), Path(path), json.loads(batches))
    except (RtxMissing, RtxRejected) as error:
        print(error, file=sys.stderr)
        return EXIT_STATUS[type(error)]
    print(json.dumps(asdict(report)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
