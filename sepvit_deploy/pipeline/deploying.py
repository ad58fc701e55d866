"""A deployment spec carried out, as far as this machine can go: weights to a proven ONNX file and its engine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sepvit_deploy import artifact, builders, gpu
from sepvit_deploy.building import BUILDER_NAMES
from sepvit_deploy.deployment import DeploymentSpec
from sepvit_deploy.errors import (
    AcceptanceFailed,
    CheckpointError,
    InputError,
    MissingDependency,
    OptionError,
    OutputError,
    PassportError,
)
from sepvit_deploy.image_sets import image_set
from sepvit_deploy.pipeline.building import build
from sepvit_deploy.pipeline.exporting import Exported, export
from sepvit_deploy.pipeline.lowering import Lowered, calibrate, quantize, smooth
from sepvit_deploy.pipeline.measuring import agreement_on
from sepvit_deploy.pipeline.opened import Progress, Report, Warn
from sepvit_deploy.ranges import method_named


@dataclass(frozen=True)
class Step:
    """A stage: was it done, and what was found or is missing."""

    stage: str
    done: bool
    found: str


@dataclass(frozen=True)
class Deployed:
    """The stages of a deployment, and the last file that they made: the plan, or the ONNX file behind it."""

    name: str
    path: Path
    steps: tuple[Step, ...]

    @property
    def complete(self) -> bool:
        """True where every stage was done, judged and built what the spec asks for."""
        return all(step.done for step in self.steps)


def deploy(
    spec: DeploymentSpec,
    folder: Path,
    *,
    weights: Path | None = None,
    images: Path | None = None,
    out: Path,
    report: Report = lambda step: None,
    progress: Progress = lambda share: None,
    build_progress: Progress = lambda share: None,
    warn: Warn = lambda text: None,
) -> Deployed:
    """Export, smooth, calibrate, quantise, judge and build what a spec describes.

    Args:
        folder: that the spec's paths are relative to.
        weights: a checkpoint, instead of the spec's.
        images: a folder or manifest, instead of the spec's.
        out: the folder to write; made where it is missing.
        progress: told the share done of the stages that go through images; build_progress of the build.

    Raises:
        InputError: the checkpoint, the images or the output are unusable.
        CheckFailed: a stage's result is not acceptable; what the stages before it wrote is there.
    """
    checkpoint = weights or (folder / spec.weights.file if spec.weights.file else None)
    if checkpoint is None:
        raise OptionError(f"{spec.name} names no weights", expected="a checkpoint", hint="give it with --weights FILE")
    source = images or (folder / spec.calibration.images if spec.calibration.images else None)
    precision, samples = spec.precision.type, spec.calibration.samples
    if source is None and precision == "int8":
        raise OptionError(f"{spec.name} names no images", expected="some to calibrate on", hint="give --images DIR")
    if source is not None:
        image_set(source, samples=samples)  # refused now, rather than after the export
    _require_weights(spec, checkpoint)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out} cannot be made ({error.strerror})", expected="a folder for --out") from error
    plan = out / f"{spec.name}.plan"
    with contextlib.suppress(OSError):
        _refused(out / f"{spec.name}.onnx").unlink()  # an earlier run's
    fp32 = out / f"{spec.name}{'' if precision == 'fp32' else '_fp32'}.onnx"
    done = export(
        spec.model.variant,
        fp32,
        weights=checkpoint,
        ema=spec.weights.ema,
        task=spec.model.task,
        head=spec.model.head,
        output_kind=spec.model.output,
        size=spec.model.size,
        any_size=spec.model.any_size,
        num_classes=spec.model.num_classes,
        batch=spec.export.batch or None,
        opset=spec.export.opset,
        simplify=spec.export.simplify,
        preprocessing=spec.preprocessing,
        report=report,
        warn=warn,
    )
    steps = [Step("export", True, f"{fp32.name}, {done.audit.nodes} nodes, equal to the reference")]
    path = fp32
    if precision == "int8" and source is not None:
        path, more = _int8(spec, fp32, source, out, report, progress, warn)
        steps += more
    elif precision == "fp16":
        report("converting")
        made = quantize(
            fp32,
            out / f"{spec.name}.onnx",
            precision="fp16",
            keep=spec.precision.keep,
            images=source,
            samples=samples if source else None,
            report=report,
            warn=warn,
        )
        path = made.path
        room = f", largest |x| {made.headroom.tensors[0].largest:.4g}" if made.headroom else ", head-room not measured"
        steps.append(Step("precision", True, f"{path.name}, FP16{room}"))
    _take_away_stale(plan, path, warn)
    if path != fp32:
        steps.append(_accepted(spec, path, fp32, source, report, progress))
    if spec.precision.target == "tensorrt":
        step = _engine(spec, path, plan, report, build_progress, warn)
        path = plan if step.done else path
        steps.append(step)
    return Deployed(spec.name, path, tuple(steps))


def _take_away_stale(plan: Path, path: Path, warn: Warn) -> None:
    """Remove the plan of an earlier run that was not built from the file beside it, whose engine it would pass for."""
    if not os.path.lexists(plan):
        return
    with contextlib.suppress(PassportError):
        passport = artifact.read_passport(plan)
        if passport is not None and passport.parents and passport.parents[0].sha256 == artifact.sha256(path):
            return
    try:
        plan.unlink()
        artifact.passport_path(plan).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{plan}, of an earlier run, cannot be removed ({error.strerror})") from error
    warn(f"{plan} is not proven to be of this {path.name}, and was removed")


def _engine(spec: DeploymentSpec, path: Path, plan: Path, report: Report, progress: Progress, warn: Warn) -> Step:
    """The engine of the spec's file, where its builder works here."""
    try:
        builder, _ = builders.choose(spec.engine.builder, gpu=bool(gpu.devices()))
    except (MissingDependency, InputError) as error:
        return Step("engine", False, f"{error.found}; {error.hint}; there, type the same command")
    done = build(path, plan, engine=spec.engine, report=report, progress=progress, warn=warn)
    return Step("engine", True, f"{plan.name}, {BUILDER_NAMES[builder]} {done.facts.builder_version}")


def export_lowered(
    fp32: Path,
    output: Path,
    images: Path | None,
    *,
    precision: Literal["fp16", "int8"],
    method: str = "percentile",
    samples: int | None = None,
    keep: Sequence[str] = (),
    export_fp32: Callable[[], Exported],
    report: Report = lambda step: None,
    progress: Progress = lambda share: None,
    warn: Warn = lambda text: None,
) -> Lowered:
    """Export, calibrate and quantise in one go; the FP32 file and the scale table stay beside ``output``.

    Args:
        images: a folder or manifest; FP16 can do without.
        export_fp32: writes ``fp32``.

    Raises:
        InputError, CheckFailed: as the stages.
    """
    if images is None and precision == "int8":
        raise OptionError("--precision int8 without --images", expected="pictures to calibrate on: --images DIR")
    artifact.require_writable(output)
    method_named(method)
    if images is not None:
        image_set(images, samples=samples)  # refused now, rather than after the export
    export_fp32()
    scales = None
    if precision == "int8" and images is not None:
        report("calibrating")
        scales = output.with_suffix(".scales.json")
        calibrate(fp32, images, scales, method=method, samples=samples, progress=progress, warn=warn)
    return quantize(
        fp32,
        output,
        precision=precision,
        scales=scales,
        keep=keep,
        images=images if precision == "fp16" else None,
        samples=samples if precision == "fp16" and images else None,
        report=report,
        warn=warn,
    )


def _require_weights(spec: DeploymentSpec, checkpoint: Path) -> None:
    if not os.path.isfile(checkpoint):
        raise CheckpointError(f"{checkpoint} is no file", expected="a checkpoint", hint="give it with --weights FILE")
    if spec.weights.sha256 and (found := artifact.sha256(checkpoint)) != spec.weights.sha256:
        raise CheckpointError(
            f"{checkpoint} has SHA-256 {found[:12]}...",
            expected=f"{spec.weights.sha256[:12]}..., as the spec says",
            hint="take that file, or clear weights.sha256",
        )


def _int8(
    spec: DeploymentSpec, fp32: Path, source: Path, out: Path, report: Report, progress: Progress, warn: Warn
) -> tuple[Path, list[Step]]:
    """From the FP32 file to the INT8 one, through a smoothed one where the spec asks for it, and a scale table."""
    steps = []
    path, rule = fp32, spec.calibration
    if spec.precision.smooth:
        report("smoothing")
        path = out / f"{spec.name}_smooth.onnx"
        smooth(fp32, source, path, alpha=spec.precision.smooth, samples=rule.samples, report=report)
        steps.append(Step("smooth", True, f"{path.name}, alpha {spec.precision.smooth:g}"))
    report("calibrating")
    scales = out / f"{spec.name}.scales.json"
    table = calibrate(
        path,
        source,
        scales,
        method=rule.method,
        percentile=rule.percentile,
        samples=rule.samples,
        batch=rule.batch,
        attention=spec.precision.attention,
        progress=progress,
        warn=warn,
    )
    steps.append(Step("calibrate", True, f"{scales.name}, {table.method} on {table.images.samples} images"))
    made = quantize(
        path,
        out / f"{spec.name}.onnx",
        precision="int8",
        scales=scales,
        keep=spec.precision.keep,
        target=spec.precision.target,
        attention=spec.precision.attention,
        report=report,
        warn=warn,
    )
    steps.append(Step("precision", True, f"{made.path.name}, {len(made.quantized)} layers in INT8"))
    return made.path, steps


def _refused(path: Path) -> Path:
    """Where a file goes that does not reach what its spec asks for."""
    return path.with_name(f"{path.stem}.refused.onnx")


def _accepted(
    spec: DeploymentSpec, path: Path, fp32: Path, source: Path | None, report: Report, progress: Progress
) -> Step:
    """Hold the spec's acceptance against the new file, or take the file away.

    Raises:
        AcceptanceFailed: it decides too rarely as the FP32 file does.
    """
    if source is None or spec.model.task == "dense":
        why = "give --images DIR" if source is None else "maps have no classes: compare them with check --against"
        return Step("acceptance", False, f"not judged: {why}")
    report("comparing with the FP32 file on the images")
    share, images = agreement_on(path, fp32, source, samples=spec.calibration.samples, progress=progress)
    parts = "logit cells" if spec.model.output == "logits" else "pixels"
    of = f"the {parts} of " if spec.model.task == "segment" else ""
    if share < spec.acceptance.agreement:
        refused = _refused(path)
        with contextlib.suppress(OSError):
            artifact.passport_path(path).unlink()
        path.replace(refused)
        raise AcceptanceFailed(
            f"{path.name} agrees with {fp32.name} on {share:.2%} of {of}{images} images",
            expected=f"{spec.acceptance.agreement:.2%}, as the spec says",
            hint=f"it lies at {refused}; type: sepvit-deploy sensitivity {fp32} --images {source}",
        )
    decides = "class as FP32" if of else "top-1 as FP32"
    return Step("acceptance", True, f"{decides} on {share:.2%} of {of}{images} images")
