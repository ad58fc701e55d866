"""A model in one form against its reference in torch, or against another form."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepvit_deploy import artifact, parity
from sepvit_deploy.errors import GraphError, OptionError
from sepvit_deploy.image_sets import image_set
from sepvit_deploy.images import image_files, load_batch
from sepvit_deploy.likeness import OF_PRECISION
from sepvit_deploy.optional import require
from sepvit_deploy.parity import Parity, Tolerance
from sepvit_deploy.pipeline.models import open_model
from sepvit_deploy.pipeline.opened import Opened, OpenedOnnx, Report, Running, Warn, present_taps
from sepvit_deploy.runners.batches import InBatches
from sepvit_deploy.spec import ModelSpec

if TYPE_CHECKING:
    import onnx

    from sepvit_deploy.model.build import Reference
    from sepvit_deploy.runners.base import Array, Runner

PARITY_BATCHES = (1, 2, 3)
ANY_SIZES = ((64, 96), (33, 100), (230, 40), (8, 8))
"""Heights and widths that a file for any size is compared at: windows that divide the maps and that do not, one and
several of them, and maps of a single pixel."""
IMAGES_AT_ONCE = 4
RANDOM = "random images"


def reference_model(spec: ModelSpec, weights: Path | None, *, ema: bool = False, seed: int = 0) -> Reference:
    """The model as the paper writes it, with the weights of a file or random ones.

    Raises:
        CheckpointError: the file does not fit ``spec``.
    """
    require("torch", extra="torch")
    from sepvit_deploy.model.build import build_model
    from sepvit_deploy.model.checkpoint import load_checkpoint

    if weights is None:
        if ema:
            raise OptionError("--ema without --weights", hint="name the checkpoint with --weights FILE")
        return build_model(
            spec.variant, spec.task, num_classes=spec.num_classes, head=spec.head, output=spec.output, seed=seed
        )
    return load_checkpoint(
        weights,
        spec.variant,
        spec.task,
        num_classes=spec.num_classes,
        head=spec.head,
        output=spec.output,
        ema=ema,
    )


def random_source(spec: ModelSpec) -> str:
    """What `random_images` gives, for reports."""
    return f"{RANDOM} of {', '.join(f'{h}x{w}' for h, w in ANY_SIZES)}" if spec.any_size else RANDOM


def random_images(spec: ModelSpec, batch: int | None) -> Iterator[Array]:
    """Random batches that a file of ``spec`` is compared on; of one for any size, several small ones.

    Args:
        batch: of a file of a fixed batch.
    """
    if spec.any_size:
        for size in ANY_SIZES:
            yield from parity.random_batches(size, (batch or 2,))
    elif spec.task == "segment":  # which takes ten times as long as classification
        yield from parity.random_batches(spec.size, PARITY_BATCHES[:2] if batch is None else (batch,))
    else:
        yield from parity.random_batches(spec.size, PARITY_BATCHES if batch is None else (batch,))


def check(
    source: str | Path,
    *,
    weights: Path | None = None,
    ema: bool = False,
    against: str | Path | None = None,
    images: Path | None = None,
    how: Running = Running(),  # noqa: B008 - frozen
    report: Report = lambda step: None,
    warn: Warn = lambda text: None,
) -> Parity:
    """Compare an ONNX file with its reference in torch, or a model in any form with one in another.

    Args:
        source: what to judge; without ``against`` an ONNX file with its passport, which says what it was made from.
        weights: the checkpoint behind it; not needed where the passport says random weights.
        against: a model with the same outputs.
        images: a folder of pictures; random images otherwise.

    Returns:
        The comparison; look at its ``passed``.

    Raises:
        InputError: a file is unusable, or what the comparison needs is not there.
    """
    if against is not None and (weights is not None or ema):
        raise OptionError("--against together with --weights or --ema", expected="one of them")
    file = open_model(source, trust=how.trust, warn=warn)
    passport, spec = file.passport, file.spec
    with contextlib.ExitStack() as stack:
        if against is not None:
            other = open_model(against, trust=how.trust, warn=warn)
            candidate = stack.enter_context(file.running(how, taps=True))
            reference = stack.enter_context(other.running(how, taps=True))
            batches, images_used = _batches(candidate, file, images)
            report("comparing")
            tolerance = min((OF_PRECISION[file.precision], OF_PRECISION[other.precision]), key=lambda t: t.sqnr_db)
            return parity.compare(
                InBatches(reference),
                InBatches(candidate),
                batches,
                source=images_used,
                outputs=other.output_names,
                tolerance=tolerance,
            )
        if not isinstance(file, OpenedOnnx):
            raise OptionError(f"{source} has no reference of its own", expected="another model by --against")
        if spec is None or passport is None:
            raise GraphError(
                f"{file.path} has no passport, so its variant and weights are unknown",
                expected=f"{artifact.passport_path(file.path).name} beside it",
                hint="compare it with another file by --against FILE.onnx",
            )
        model = reference_of(file, weights, ema=ema, report=report, warn=warn)
        candidate = stack.enter_context(file.running(how, taps=True))
        batches, images_used = _batches(candidate, file, images)
        report("comparing")
        return compare_with_reference(model, spec, candidate, batches, images_used, OF_PRECISION[file.precision])


def reference_of(
    file: Opened,
    weights: Path | None,
    *,
    ema: bool = False,
    report: Report = lambda step: None,
    warn: Warn = lambda text: None,
) -> Reference:
    """The model behind a file, as the paper writes it.

    Args:
        weights: the checkpoint; not needed where the passport says random weights.

    Raises:
        OptionError: the file has a checkpoint, which is not named.
        CheckpointError: the file does not fit the model.
    """
    passport, spec, _ = file.require_passport()
    parent = passport.weights
    if weights is None and (parent is None or not parent.is_random):
        name = parent.name if parent else "unknown weights"
        raise OptionError(f"{file.path} was exported from {name}", hint=f"name that checkpoint with --weights {name}")
    if weights is not None and parent is not None and parent.sha256 and os.path.isfile(weights):
        found = artifact.sha256(weights)
        if found != parent.sha256:  # a converted checkpoint is legitimate
            told = f"{parent.name} ({parent.sha256[:12]})"
            warn(f"{weights} ({found[:12]}) is not the file that {file.path} was exported from, {told}")
    report("building the reference")
    seed = parent.seed if parent is not None and parent.seed is not None else 0
    return reference_model(spec, weights, ema=ema or bool(parent and parent.ema), seed=seed)


def onnx_runner(graph: onnx.ModelProto, spec: ModelSpec, name: str) -> Runner:
    """A runner that also gives the taps that the graph has."""
    from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner

    return OnnxRuntimeRunner(graph, name=name, taps=present_taps(graph, spec))


def compare_with_reference(
    model: Reference,
    spec: ModelSpec,
    candidate: Runner,
    batches: Iterator[Array],
    source: str,
    tolerance: Tolerance = parity.FP32,
) -> Parity:
    """Outputs and inner tensors of ``candidate`` against the model as the paper writes it."""
    from sepvit_deploy.model.taps import taps
    from sepvit_deploy.runners.torch import TorchRunner

    size = None if spec.any_size else spec.size
    reference = TorchRunner(
        model, spec.output_names, size, name="the reference", taps=tuple(taps(spec, deployed=False))
    )
    return parity.compare(reference, candidate, batches, source=source, outputs=spec.output_names, tolerance=tolerance)


def _batches(runner: Runner, file: Opened, folder: Path | None) -> tuple[Iterator[Array], str]:
    """Batches that ``runner`` takes, and what they are: pictures of a folder, or random images."""
    import numpy as np

    spec, preprocessing = file.spec, file.preprocessing
    fixed, _, height, width = runner.input_shape
    expected = (None, None) if spec is not None and spec.any_size else spec.size if spec is not None else None
    if expected is not None and expected != (height, width):
        raise GraphError(f"{runner.name} takes {runner.input_shape}", expected=f"{expected}, as its passport says")
    if folder is None and spec is not None:
        return random_images(spec, fixed), random_source(spec)
    if spec is None and (height is None or width is None):
        raise GraphError(f"{runner.name} has no fixed image size", expected="a file as export writes it")
    if folder is None:
        assert height is not None
        assert width is not None
        return parity.random_batches((height, width), PARITY_BATCHES if fixed is None else (fixed,)), RANDOM
    if preprocessing is None:
        raise GraphError(f"{runner.name} has no passport, so its preprocessing is unknown", hint="leave --images out")
    files = list(image_set(folder).files) if folder.suffix == ".toml" else image_files(folder)
    step = fixed or (1 if preprocessing.keep_ratio else IMAGES_AT_ONCE)  # pictures that keep their ratio differ in size

    def pictures() -> Iterator[Array]:
        for start in range(0, len(files), step):
            batch = load_batch(files[start : start + step], preprocessing)
            missing = (fixed or len(batch)) - len(batch)
            yield np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)]) if missing else batch

    return pictures(), f"{len(files)} pictures of {folder.name}"


def parity_facts(compared: Parity) -> dict[str, Any]:
    """A comparison as plain JSON: finite numbers or None."""
    import math

    facts = asdict(compared)
    for tensor in facts["tensors"]:
        tensor.update({k: None for k, v in tensor.items() if isinstance(v, float) and not math.isfinite(v)})
    return facts | {"passed": compared.passed}
