"""ONNX -> the plan of a TensorRT or TensorRT-RTX engine, in the precision that the file has.

What can be refused from the file alone is refused before a builder starts. The build itself is the work of a child
process, `engine_worker`; nothing of it is on the disk.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Literal, cast

from sepvit_deploy import errors, gpu
from sepvit_deploy.building import (
    AT_SIZES,
    BUILDER_NAMES,
    BuildRequest,
    EngineFacts,
    NetworkFacts,
    Precision,
    Profile,
)
from sepvit_deploy.errors import BuildFailed, GraphError, OptionError, SepvitError
from sepvit_deploy.graph import MAX_BYTES, nested
from sepvit_deploy.network import (
    Product,
    kept_layers,
    products_of_graph,
    require_precision,
    require_same,
)
from sepvit_deploy.optional import child_environment

if TYPE_CHECKING:
    import onnx

CHILD = (sys.executable, "-P", "-m", "sepvit_deploy.engine_worker")
"""-P: not a file of that name in this folder."""
Message = tuple[dict[str, Any], bytes]
"""What the child says, and the bytes that follow it."""


@dataclass(frozen=True)
class Built:
    """A new engine.

    Attributes:
        plan: None of a dry run.
        warnings: what the builder says, each once.
        inspector_json: what the engine's inspector says; None where the engine was not loaded.
        uninspected: why it was not; empty where it was.
        layer_ms: time of each of its layers.
    """

    plan: bytes | None
    facts: EngineFacts
    warnings: tuple[str, ...]
    inspector_json: str | None = None
    uninspected: str = ""
    layer_ms: dict[str, float] = field(default_factory=dict)


def engine_from_onnx(
    content: bytes,
    request: BuildRequest,
    *,
    name: str,
    precision: Precision | None,
    keep: Sequence[str] = (),
    rest: Literal["fp16", "fp32"] | None = None,
    dry_run: bool = False,
    inspect: bool = True,
    afresh: bool = False,
    progress: Callable[[float], None] = lambda share: None,
) -> Built:
    """Build an engine, strongly typed.

    Args:
        content: an ONNX file with its weights inside.
        name: of the file, for messages.
        precision: that the file is said to have, and must have; None asks for nothing, and takes inputs of any name.
        keep: patterns of the layers that an FP16 file keeps in float32.
        rest: of an INT8 file, the precision around INT8; None for FP16.
        dry_run: parse and check, and build nothing.
        inspect: load the new engine where there is a GPU for it, and time its layers.
        afresh: begin a new timing cache where TensorRT refuses the file.
        progress: told the share done, 0 to 1.

    Raises:
        GraphError: it is no ONNX file, or is beyond what this takes.
        OptionError: a profile for a fixed batch and size, none for another, one that is not for the file's shape, or an
            option that this builder does not have.
        MissingDependency: the builder does not load.
        AuditFailed: the parser refuses the file; or it, or the network parsed from it, is not in its precision.
        BuildFailed: the builder fails, with its own reason; or it crashes.
        InputError: the timing cache is unusable.
    """
    graph = _graph(content, name)
    batch = _batch(graph, request, name)
    of_graph = products_of_graph(graph)
    if precision is not None:
        _require_images(graph, name)
        require_precision(of_graph, precision, name=name, rest=rest, kept=kept_layers(graph, keep))
    del graph
    devices = gpu.devices()
    header = {
        "request": request.to_dict(),
        "name": name,
        "bytes": len(content),
        "dry_run": dry_run,
        "afresh": afresh,
        "inspect_on": devices[0].compute_capability if devices and inspect and precision is not None else None,
    }
    plan, network, built, inspected = None, None, {}, {}
    uninspected = "it is not for the GPU of this machine" if devices else "no NVIDIA GPU is seen here"
    warnings: list[str] = []
    with contextlib.closing(_messages(header, content, request)) as messages:
        for message, attached in _until_built(messages):
            match message["kind"]:
                case "progress":
                    progress(message["share"])
                case "warning":
                    warnings.append(message["text"])
                case "network":
                    network = NetworkFacts.from_dict(message["network"])
                    require_same(of_graph, [Product(*product) for product in message["products"]], name=name)
                case "built":
                    plan, built = attached, message
                case "inspected":
                    inspected, uninspected = message, ""
                case "uninspected":
                    uninspected = message["reason"]
                case "error":
                    raise _error(message)
    if network is None or not built:
        raise BuildFailed(f"{BUILDER_NAMES[request.builder]} ended without a result for {name}")
    facts = EngineFacts(
        builder=request.builder,
        builder_version=built["version"],
        platform=f"{sys.platform} {platform.machine()}",
        device=devices[0] if devices and request.builder == "tensorrt" else None,
        compute_capabilities=request.compute_capabilities,
        profiles=request.profiles,
        batch=batch,
        workspace_mb=request.workspace_mb,
        level=request.level,
        version_compatible=request.version_compatible,
        hardware_compatible=request.hardware_compatible,
        refittable=request.refittable,
        network=network,
        build_seconds=built["seconds"],
        timing_cache_hit=built["timing_cache_hit"],
        inspection=None,
    )
    progress(1.0)
    return Built(
        plan=None if dry_run else plan,
        facts=facts,
        warnings=tuple(warnings),
        inspector_json=inspected.get("inspector_json"),
        uninspected=uninspected,
        layer_ms=inspected.get("layer_ms", {}),
    )


def _graph(content: bytes, name: str) -> onnx.ModelProto:
    """The file; GraphError where a parser could not take it from memory."""
    import onnx
    from google.protobuf.message import DecodeError

    if len(content) > MAX_BYTES:
        raise GraphError(f"{name} is larger than 2 GiB", expected="a single ONNX file below 2 GiB")
    try:
        model = onnx.load_model_from_string(content)
    except (DecodeError, ValueError) as error:
        raise _not_onnx(name) from error
    if not model.graph.node or not model.opset_import:
        raise _not_onnx(name)
    for part in nested(model.graph):
        for tensor in getattr(part, "initializer", ()):
            if tensor.data_location == tensor.EXTERNAL:
                raise GraphError(
                    f"{name} keeps the weights of {tensor.name} in another file", expected="weights inside the file"
                )
    return model


def _not_onnx(name: str) -> GraphError:
    return GraphError(f"{name} is not an ONNX file, or is cut off", expected="an ONNX file as export writes it")


def _inputs(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Shape of each input by its name, -1 for a dynamic dimension."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: [d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim]
        for value in model.graph.input
        if value.name not in weights
    }


def _batch(model: onnx.ModelProto, request: BuildRequest, name: str) -> int | None:
    """The batch of the file, None where profiles say it; OptionError where the profiles are not for such a file."""
    inputs = _inputs(model)
    for tensor, shape in inputs.items():
        whose = f"{name}, whose input {tensor} is {shape}"
        any_batch, any_size = shape[:1] == [-1], shape[2:] == [-1, -1]
        if -1 in shape[1:] and not (any_size and shape[1] != -1):
            raise GraphError(
                f"the input {tensor} of {name} is {shape}",
                expected="no dynamic dimension (-1) but the batch, or height and width together",
                hint="export again with one image size, or with --image-size dynamic",
            )
        if request.profiles and not any_batch and not any_size:
            raise OptionError(
                f"--profile {request.profiles[0]} for {whose}",
                expected="no profile for a file of a fixed batch",
                hint="leave --profile out, or export again without --batch",
            )
        if not request.profiles and (any_batch or any_size):
            raise OptionError(
                f"no profile for {name}, whose input {tensor} takes any {'size' if any_size else 'batch'}",
                expected=f"the batches{' and sizes' if any_size else ''} to be ready for",
                hint=f"type: --profile {AT_SIZES if any_size else '1,8,32'}",
            )
        for profile in request.profiles:
            _require_of_shape(profile, shape, whose)
    batches = {shape[0] for shape in inputs.values() if shape}
    return batches.pop() if not request.profiles and len(batches) == 1 else None


def _require_of_shape(profile: Profile, shape: list[int], whose: str) -> None:
    """Refuse a profile for a file that does not take its sizes, or its batches."""
    batches, any_size = str(profile).partition("@")[0], shape[2:] == [-1, -1]
    if any_size and profile.sizes is None:
        raise OptionError(
            f"--profile {profile} for {whose}",
            expected="batches and sizes for a file of any size",
            hint=f"type: --profile {batches}@{AT_SIZES.partition('@')[2]}",
        )
    if profile.sizes is not None and not any_size:
        raise OptionError(
            f"--profile {profile} for {whose}",
            expected="no sizes for a file of a fixed size",
            hint=f"type: --profile {batches}, or export again with --image-size dynamic",
        )
    if shape[0] not in (-1, profile.minimum) or shape[0] not in (-1, profile.maximum):
        raise OptionError(
            f"--profile {profile} for {whose}",
            expected=f"batches of {shape[0]}",
            hint=f"type: --profile {shape[0]}@{str(profile).partition('@')[2]}, or export again without --batch",
        )


def _require_images(model: onnx.ModelProto, name: str) -> None:
    inputs = _inputs(model)
    if list(inputs) != ["images"]:
        found = ", ".join(inputs) or "none"
        raise GraphError(f"the inputs of {name} are: {found}", expected="one named images, as export gives it")


def _messages(
    header: dict[str, Any], content: bytes, request: BuildRequest
) -> Generator[tuple[dict[str, Any], bytes], None, None]:
    """Run the child, and yield what it says.

    However this ends, the child has ended then. BuildFailed where it crashes.
    """
    environment = child_environment(POLYGRAPHY_AUTOINSTALL_DEPS="0")
    with open(os.memfd_create("stderr"), "w+b") as said:
        child = subprocess.Popen(
            CHILD, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, env=environment
        )
        assert child.stdin is not None and child.stdout is not None
        with child, io.BufferedReader(cast(io.FileIO, child.stdout)) as answers:
            try:
                with contextlib.suppress(BrokenPipeError):
                    _write(child.stdin, json.dumps(header).encode() + b"\n")
                    _write(child.stdin, content)
                while line := answers.readline():
                    message = json.loads(line)
                    attached = answers.read(message["bytes"]) if message["kind"] == "built" else b""
                    if len(attached) < message.get("bytes", 0):
                        break
                    yield message, attached
                if child.wait():
                    raise _crash(child.returncode, said, header["name"], request)
            finally:
                child.kill()


def _until_built(
    messages: Generator[tuple[dict[str, Any], bytes], None, None],
) -> Generator[tuple[dict[str, Any], bytes], None, None]:
    """The same messages; once the engine is there, a child that crashes costs its inspection alone."""
    built = False
    try:
        for message, attached in messages:
            built = built or message["kind"] == "built"
            yield message, attached
    except BuildFailed as error:
        if not built:
            raise
        yield {"kind": "uninspected", "reason": str(error)}, b""


def _write(pipe: IO[bytes], content: bytes) -> None:
    """Write all of it: without a buffer that the next close would try to empty."""
    left = memoryview(content)
    while left:
        left = left[pipe.write(left) :]


def _error(message: dict[str, Any]) -> SepvitError:
    kind: type[SepvitError] = getattr(errors, message["error"])
    return kind(message["found"], expected=message["expected"], hint=message["hint"])


def _crash(status: int, said: IO[bytes], name: str, request: BuildRequest) -> BuildFailed:
    """Why the child ended without saying so itself."""
    builder = BUILDER_NAMES[request.builder]
    if status == -signal.SIGKILL:
        return BuildFailed(
            f"{builder} was killed (SIGKILL) while it built {name}, as the system does where memory runs out",
            hint="free memory, or give fewer profiles and a smaller batch",
        )
    if status < 0:
        number = signal.Signals(-status)
        return BuildFailed(f"{builder} crashed while it built {name}: {number.name} ({signal.strsignal(number)})")
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    last = lines[-1] if lines else "it said nothing"
    return BuildFailed(f"{builder} ended with status {status} while it built {name}: {last}")
