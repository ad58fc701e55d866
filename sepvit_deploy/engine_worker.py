"""The child of `engine`: parses and builds in a process of its own, and reports what it sees.

    standard input     one line of JSON, then the ONNX file; it stays open, and its end means: stop
    standard output    lines of JSON: progress, network, warning, error, built (then the plan), inspected or uninspected

A crash of the native library ends this process alone, and Polygraphy serves one builder in a process. The child
ignores Ctrl-C, which reaches the parent as well, and ends with its parent however that ends.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from sepvit_deploy import builders
from sepvit_deploy.building import BUILDER_NAMES, BuildRequest, NetworkFacts
from sepvit_deploy.errors import AuditFailed, BuildFailed, OptionError, PlanError, SepvitError
from sepvit_deploy.network import network_facts, products_of_network
from sepvit_deploy.optional import require
from sepvit_deploy.phases import Phases
from sepvit_deploy.runners.tensorrt_engine import logger
from sepvit_deploy.timing_cache import open_cache, save_cache

LAYER_REPEATS = 20
_SHOWN = 3
_HARDWARE = {"ampere+": "AMPERE_PLUS", "same-cc": "SAME_COMPUTE_CAPABILITY"}


class Channel:
    """The way back to the parent; what native libraries print goes to standard error instead."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "wb")
        self._lock = threading.Lock()
        os.dup2(2, 1)

    def send(self, content: bytes = b"", **message: Any) -> None:
        """One line of JSON, and bytes after it."""
        with self._lock:
            self._file.write(json.dumps(message).encode() + b"\n" + content)
            self._file.flush()


def main() -> None:
    """Be the child; the process ends here, for tearing the native libraries down proves nothing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = Channel()
    with os.fdopen(0, "rb", closefd=False) as stdin:
        header = json.loads(stdin.readline() or "null")
        content = stdin.read(header["bytes"]) if header else b""
    if header is None or len(content) < header["bytes"]:
        os._exit(1)  # the parent ended
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        build(
            content,
            BuildRequest.from_dict(header["request"]),
            name=header["name"],
            dry_run=header["dry_run"],
            inspect_on=header["inspect_on"],
            afresh=header["afresh"],
            send=channel.send,
        )
    except SepvitError as error:
        kind = type(error).__name__
        channel.send(kind="error", error=kind, found=error.found, expected=error.expected, hint=error.hint)
    os._exit(0)


def _end_with_parent() -> None:
    """Wait for the end of standard input, which comes with the parent's, even with a violent one."""
    while os.read(0, 1):
        pass
    os._exit(1)


def build(
    content: bytes,
    request: BuildRequest,
    *,
    name: str,
    dry_run: bool,
    inspect_on: str | None,
    send: Callable[..., None],
    afresh: bool = False,
) -> None:
    """Do the work of `engine.engine_from_onnx` in this process.

    Args:
        inspect_on: compute capability of the GPU to load the engine on; None to leave it.
        afresh: begin a new timing cache where TensorRT refuses the file.
        send: told what `Channel.send` is.

    Raises:
        SepvitError: of the kinds that `engine.engine_from_onnx` says.
    """
    trt = builders.load(request.builder)
    loaders: Any = require("polygraphy.backend.trt", extra=request.builder)
    polygraphy: Any = require("polygraphy", extra=request.builder)
    log = logger(trt)
    log.warn = lambda text: send(kind="warning", text=text)
    loaders.util.TRT_LOGGER = log
    polygraphy.logger.G_LOGGER.module_severity = polygraphy.logger.G_LOGGER.CRITICAL
    failures = (polygraphy.exception.PolygraphyException, TypeError)  # TypeError: pybind11's, of a builder that fails
    started = time.perf_counter()
    try:
        builder, network = loaders.CreateNetwork(strongly_typed=True)()
    except failures as error:
        raise _failed(request, "does not start", log, error) from error
    parser = trt.OnnxParser(network, log)
    if not parser.parse(content) or parser.num_errors:
        raise AuditFailed(
            f"{BUILDER_NAMES[request.builder]} refuses {name}: {_parser_errors(parser, log)}",
            hint=f"type: sepvit-deploy lint {name}",
        )
    products = products_of_network(network)
    facts = network_facts(network, products)
    send(kind="network", network=vars(facts), products=products)
    try:
        config = _config(trt, loaders, builder, network, request, facts, send)
    except failures as error:
        raise _failed(request, f"does not take the options for {name}", log, error) from error
    cache = None
    if request.timing_cache and not dry_run:
        cache = open_cache(config, request.timing_cache, afresh=afresh)
    plan = b""
    if not dry_run:
        try:
            plan = bytes(loaders.EngineBytesFromNetwork((builder, network, parser), config=lambda *_: config)())
        except failures as error:
            raise _failed(request, f"does not build {name}", log, error) from error
    seconds = round(time.perf_counter() - started, 3)
    hit, warning = save_cache(config, cache) if cache else (None, None)
    if warning:
        send(kind="warning", text=warning)
    send(plan, kind="built", bytes=len(plan), version=trt.__version__, seconds=seconds, timing_cache_hit=hit)
    if plan and _loads_on(trt, request, inspect_on):
        _inspect(plan, request, facts, name, send)


def _config(
    trt: Any,
    loaders: Any,
    builder: Any,
    network: Any,
    request: BuildRequest,
    facts: NetworkFacts,
    send: Callable[..., None],
) -> Any:
    """A `trt.IBuilderConfig` as the request says."""
    profiles = []
    for profile in request.profiles:
        shapes = loaders.Profile()
        for name, shape in facts.inputs.items():
            shapes.add(name, *profile.shapes(shape))
        profiles.append(shapes)
    settings: dict[str, Any] = {
        "profiles": profiles,
        "profiling_verbosity": trt.ProfilingVerbosity.DETAILED,
        "builder_optimization_level": request.level,
        "refittable": request.refittable,
        "version_compatible": request.version_compatible,
        "progress_monitor": _monitor(trt, lambda share: send(kind="progress", share=share)),
    }
    if request.workspace_mb is not None:
        settings["memory_pool_limits"] = {trt.MemoryPoolType.WORKSPACE: request.workspace_mb << 20}
    if request.hardware_compatible is not None:
        level = _HARDWARE[request.hardware_compatible]
        settings["hardware_compatibility_level"] = getattr(trt.HardwareCompatibilityLevel, level)
    if request.builder == "rtx":
        rtx: Any = require("polygraphy.backend.tensorrt_rtx", extra=request.builder)
        capabilities = [_capability(trt.ComputeCapability, text) for text in request.compute_capabilities]
        config = rtx.CreateConfigRTX(compute_capabilities=capabilities or None, **settings)(builder, network)
    else:
        config = loaders.CreateConfig(**settings)(builder, network)
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 means float32
    return config


def _capability(generations: Any, text: str) -> tuple[int, int]:
    """(8, 6) for ``8.6``; OptionError where ``generations``, a `trt.ComputeCapability`, has no such one."""
    known = [name[2:] for name in generations.__members__ if name.startswith("SM")]
    major, minor = text.split(".")
    if major + minor not in known:
        raise OptionError(
            f"--compute-capability {text} is none that TensorRT-RTX builds for",
            expected=", ".join(f"{name[:-1]}.{name[-1]}" for name in sorted(known, key=int)),
        )
    return int(major), int(minor)


def _monitor(trt: Any, report: Callable[[float], None]) -> Any:
    """A `trt.IProgressMonitor` that reports the share done."""
    phases = Phases(report)

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            phases.step(phase_name, step)
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()


def _failed(request: BuildRequest, what: str, log: Any, error: Exception) -> BuildFailed:
    reasons = "; ".join(list(log.errors)[:_SHOWN]) or " ".join(str(error).split())
    hint = None
    if request.workspace_mb is not None and "OutOfMemory" in reasons:
        hint = f"give more than --workspace-mb {request.workspace_mb}, or leave it out"
    return BuildFailed(f"{BUILDER_NAMES[request.builder]} {what}: {reasons}", hint=hint)


def _parser_errors(parser: Any, log: Any) -> str:
    """What the parser says against a file, with the nodes' names."""
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    said = [f"{e.node_operator() or 'the file'} {e.node_name()}: {e.desc()}" for e in errors] or list(log.errors)
    more = f" and {len(said) - _SHOWN} more" if len(said) > _SHOWN else ""
    return "; ".join(said[:_SHOWN]) + more


def _loads_on(trt: Any, request: BuildRequest, capability: str | None) -> bool:
    """Whether an engine is for a GPU of this compute capability; False without one."""
    if capability is None:
        return False
    if request.builder == "rtx":
        is_known = "SM" + capability.replace(".", "") in trt.ComputeCapability.__members__
        return is_known and capability in (request.compute_capabilities or (capability,))
    return True


def _inspect(plan: bytes, request: BuildRequest, facts: NetworkFacts, name: str, send: Callable[..., None]) -> None:
    """Load the engine, and send what its inspector says and how long each layer takes."""
    import numpy as np

    from sepvit_deploy.runners.tensorrt import TensorRtRunner

    shape, *_ = facts.inputs.values()
    if request.profiles:
        _, shape, _ = map(list, request.profiles[0].shapes(shape))
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    compatible = request.version_compatible
    try:
        with TensorRtRunner(plan, name=name, builder=request.builder, version_compatible=compatible) as runner:
            document, layer_ms = runner.inspected(images, LAYER_REPEATS)
            send(kind="inspected", inspector_json=document, layer_ms=layer_ms)
    except PlanError as error:
        raise BuildFailed(f"the engine of {name} was built and does not load: {error}") from error
    except SepvitError as error:
        send(kind="uninspected", reason=str(error))


if __name__ == "__main__":
    main()
