"""An ONNX file of a decided precision -> the plan of an engine, audited, with a passport back to the weights."""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sepvit_deploy import artifact, builders, gpu, plans
from sepvit_deploy.artifact import Parent, Passport
from sepvit_deploy.building import EngineFacts, default_profiles
from sepvit_deploy.deployment import EngineSpec
from sepvit_deploy.engine import Built, engine_from_onnx
from sepvit_deploy.errors import AuditFailed, GraphError, OptionError, PlanError
from sepvit_deploy.inspection import Inspection, inspect_engine
from sepvit_deploy.network import kept_layers, products_of_graph
from sepvit_deploy.pipeline.opened import OpenedOnnx, Progress, Report, Warn, open_onnx

ANY_BUILDER = EngineSpec(builder="auto")


@dataclass(frozen=True)
class Engine:
    """What `build` made, and what is known of the engine.

    Attributes:
        passport: None of a dry run.
        inspection: None where the engine's layers were not seen; uninspected: why.
    """

    path: Path
    passport: Passport | None
    facts: EngineFacts
    inspection: Inspection | None
    uninspected: str


def build(
    path: Path,
    output: Path,
    *,
    engine: EngineSpec = ANY_BUILDER,
    timing_cache: Path | None = None,
    require: Literal["fp16", "int8"] | None = None,
    inspector: Path | None = None,
    dry_run: bool = False,
    report: Report = lambda step: None,
    progress: Progress = lambda share: None,
    warn: Warn = lambda text: None,
) -> Engine:
    """Build an engine from an ONNX file as `export` and `quantize` write it.

    Args:
        output: the plan to write; an existing one is replaced only when everything succeeded.
        engine: what is asked of the builder; where it names no profiles, `building.default_profiles` says them.
        timing_cache: kernel timings that builds by TensorRT share; by default in the user's cache.
        require: fail unless the engine computes in this precision.
        inspector: a file for what TensorRT's inspector says of the layers, and for their times, as JSON.
        dry_run: stop before the build: parse, audit, and write nothing.

    Raises:
        InputError: an option, the file or the output is unusable.
        MissingDependency: there is no builder that works here.
        AuditFailed, BuildFailed: TensorRT refuses the file, or does not have its precision; nothing is written.
    """
    chosen, version = builders.choose(engine.builder, gpu=bool(gpu.devices()))
    request = replace(engine.request(chosen), timing_cache=timing_cache)
    file = open_onnx(path)
    passport, spec, preprocessing = file.require_passport()
    if passport.facts.get("target") == "cpu":
        raise GraphError(
            f"{path} was quantised for a CPU", hint=f"type: sepvit-deploy quantize {_source(passport)} --precision int8"
        )
    if require is not None and file.precision != require:
        raise OptionError(f"--require {require} of {path}, which is {file.precision}", expected=f"an {require} file")
    if (require or inspector) and (dry_run or not gpu.devices()):
        option = f"--require {require}" if require else "--inspector"
        raise OptionError(
            f"{option} {'with --dry-run' if dry_run else 'without a GPU'}",
            expected="a build on the GPU that the engine is for: only there its layers are seen",
            hint="leave it out: the parsed network is audited in any case",
        )
    if not request.profiles:
        box = spec.size if spec.any_size else None
        request = replace(request, profiles=default_profiles(_fixed_batch(file), box))
    is_ours = chosen == "tensorrt" and timing_cache is None and not dry_run
    if is_ours:
        request = replace(request, timing_cache=_users_timing_cache(version, warn))
    if not dry_run:
        for place in filter(None, (output, inspector)):
            artifact.require_writable(place)
    report("parsing and auditing" if dry_run else "building")
    built = engine_from_onnx(
        file.graph.SerializeToString(),
        request,
        name=path.name,
        precision=file.precision,
        keep=file.keep,
        rest=file.rest,
        dry_run=dry_run,
        afresh=is_ours,
        progress=progress,
    )
    for text in built.warnings:
        warn(text)
    if inspector is not None and built.inspector_json is not None:
        document = {"layers": built.inspector_json, "layer_ms": built.layer_ms}
        with artifact.written(inspector) as temporary:
            temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    inspection, uninspected = _inspection(built, file, require, output.name)
    if inspector is not None and built.inspector_json is None:
        raise AuditFailed(f"{output.name} was not inspected: {uninspected}", expected="an engine for this GPU")
    facts = replace(built.facts, inspection=inspection.to_dict()) if inspection else built.facts
    if built.plan is None:
        return Engine(output, None, facts, inspection, uninspected)
    report("writing")
    written = plans.write_plan(
        output,
        built.plan,
        Passport(
            stage="build",
            parents=(Parent("onnx", path.name, sha256=file.sha256), *passport.parents),
            model=passport.model,
            facts={
                "precision": file.precision,
                "opset": passport.facts.get("opset"),
                "preprocessing": preprocessing.to_dict(),
                "engine": facts.to_dict(),
            },
        ),
    )
    return Engine(output, written, facts, inspection, uninspected)


def _inspection(
    built: Built, file: OpenedOnnx, require: Literal["fp16", "int8"] | None, name: str
) -> tuple[Inspection | None, str]:
    """What the engine's layers are, and the gate over them; None, and why, where that is not told.

    Raises:
        AuditFailed: the engine does not compute in ``require``, or cannot be seen to.
    """
    if built.inspector_json is None:
        if require is not None:
            raise AuditFailed(
                f"{name} is not seen to compute in {require.upper()}, for it was not inspected: {built.uninspected}",
                expected="an engine for the GPU of this machine",
            )
        return None, built.uninspected
    try:
        inspection = inspect_engine(built.inspector_json, built.layer_ms)
    except PlanError as error:  # a form of JSON that is not known yet does not cost the engine
        if require is not None:
            raise AuditFailed(f"{name} is not seen to compute in {require.upper()}: {error}") from error
        return None, str(error)
    if require is not None:
        kept = sorted(kept_layers(file.graph, file.keep))
        # Around INT8, the file itself may ask for FP32.
        allow = ["*"] if file.rest == "fp32" else kept
        quantized = [product.name for product in products_of_graph(file.graph) if product.type == "INT8"]
        inspection.require(require, allow=allow, quantized=quantized, name=name)
    return inspection, ""


def _users_timing_cache(version: str, warn: Warn) -> Path | None:
    """Where builds by this TensorRT on this GPU share their timings; None, and a warning, where that cannot be."""
    device = gpu.devices()[0]
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"tensorrt-{version}-{device.name}-{device.compute_capability}")
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(root, "sepvit-deploy").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        warn(f"no timing cache, for {folder} cannot be written ({error}): builds take longer")
        return None
    return folder / f"{name}.timing"


def _fixed_batch(file: OpenedOnnx) -> int | None:
    """The batch that a graph was exported for; None where it takes any."""
    dims = [value.type.tensor_type.shape.dim[:1] for value in file.graph.graph.input[:1]]
    return next((dim.dim_value for first in dims for dim in first if dim.HasField("dim_value")), None)


def _source(passport: Passport) -> str:
    """The file that a quantised one was made from."""
    return next((parent.name for parent in passport.parents if parent.role == "onnx"), "FILE.onnx")
