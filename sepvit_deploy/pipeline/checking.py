"""An ONNX file against its reference in torch, or against another ONNX file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepvit_deploy import artifact, parity
from sepvit_deploy.errors import GraphError, OptionError
from sepvit_deploy.images import image_files, load_batch
from sepvit_deploy.optional import require
from sepvit_deploy.parity import Parity, Tolerance
from sepvit_deploy.pipeline.opened import Opened, Report, open_onnx
from sepvit_deploy.spec import ModelSpec

if TYPE_CHECKING:
    import onnx

    from sepvit_deploy.model.sepvit import SepViT, SepViTBackbone
    from sepvit_deploy.runners.base import Array, Runner

PARITY_BATCHES = (1, 2, 3)
IMAGES_AT_ONCE = 4
RANDOM = "random images"
TOLERANCES = {"fp32": parity.FP32, "fp16": parity.FP16, "int8": parity.INT8}


def reference_model(
    spec: ModelSpec, weights: Path | None, *, ema: bool = False, seed: int = 0
) -> SepViT | SepViTBackbone:
    """The model as the paper writes it, with the weights of a file or random ones.

    Raises:
        CheckpointError: the file does not fit ``spec``.
    """
    require("torch", extra="torch")
    from sepvit_deploy.model.checkpoint import load_checkpoint
    from sepvit_deploy.model.sepvit import build_model

    if weights is None:
        if ema:
            raise OptionError("--ema without --weights", hint="name the checkpoint with --weights FILE")
        return build_model(spec.variant, spec.task, num_classes=spec.num_classes, seed=seed)
    return load_checkpoint(weights, spec.variant, spec.task, num_classes=spec.num_classes, ema=ema)


def check(
    path: Path,
    *,
    weights: Path | None = None,
    ema: bool = False,
    against: Path | None = None,
    images: Path | None = None,
    report: Report = lambda step: None,
) -> Parity:
    """Compare an ONNX file with its reference in torch, or with another ONNX file.

    Args:
        path: the file to judge; without ``against`` it needs its passport, which says what it was made from.
        weights: the checkpoint behind it; not needed where the passport says random weights.
        against: another ONNX file with the same outputs.
        images: a folder of pictures; random images otherwise.

    Returns:
        The comparison; look at its ``passed``.

    Raises:
        InputError: a file is unusable, or what the comparison needs is not there.
    """
    if against is not None and (weights is not None or ema):
        raise OptionError("--against together with --weights or --ema", expected="one of them")
    from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner

    file = open_onnx(path)
    graph, passport, spec = file.graph, file.passport, file.spec
    if against is not None:
        other = open_onnx(against)
        candidate: Runner = OnnxRuntimeRunner(graph, name=path.name)
        reference: Runner = OnnxRuntimeRunner(other.graph, name=against.name)
        outputs = tuple(value.name for value in other.graph.graph.output)
        batches, source = _batches(candidate, file, images)
        report("comparing")
        tolerance = min((TOLERANCES[file.precision], TOLERANCES[other.precision]), key=lambda t: t.sqnr_db)
        return parity.compare(reference, candidate, batches, source=source, outputs=outputs, tolerance=tolerance)
    if spec is None or passport is None:
        raise GraphError(
            f"{path} has no passport, so its variant and weights are unknown",
            expected=f"{artifact.passport_path(path).name} beside it",
            hint="compare it with another file by --against FILE.onnx",
        )
    parent = passport.weights
    if weights is None and (parent is None or not parent.is_random):
        name = parent.name if parent else "unknown weights"
        raise OptionError(f"{path} was exported from {name}", hint=f"name that checkpoint with --weights {name}")
    report("building the reference")
    seed = parent.seed if parent is not None and parent.seed is not None else 0
    model = reference_model(spec, weights, ema=ema or bool(parent and parent.ema), seed=seed)
    candidate = onnx_runner(graph, spec, path.name)
    batches, source = _batches(candidate, file, images)
    report("comparing")
    return compare_with_reference(model, spec, candidate, batches, source, TOLERANCES[file.precision])


def onnx_runner(graph: onnx.ModelProto, spec: ModelSpec, name: str) -> Runner:
    """A runner that also gives the taps that the graph has."""
    from sepvit_deploy.model.taps import taps
    from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner

    present = {output for node in graph.graph.node for output in node.output}
    found = [tap for tap in taps(spec, deployed=True) if tap.name in present]
    return OnnxRuntimeRunner(graph, name=name, taps=found)


def compare_with_reference(
    model: SepViT | SepViTBackbone,
    spec: ModelSpec,
    candidate: Runner,
    batches: Iterator[Array],
    source: str,
    tolerance: Tolerance = parity.FP32,
) -> Parity:
    """Outputs and inner tensors of ``candidate`` against the model as the paper writes it."""
    from sepvit_deploy.model.taps import taps
    from sepvit_deploy.runners.torch import TorchRunner

    reference = TorchRunner(
        model, spec.output_names, spec.size, name="the reference", taps=tuple(taps(spec, deployed=False))
    )
    return parity.compare(reference, candidate, batches, source=source, outputs=spec.output_names, tolerance=tolerance)


def _batches(runner: Runner, file: Opened, folder: Path | None) -> tuple[Iterator[Array], str]:
    """Batches that ``runner`` takes, and what they are: pictures of a folder, or random images."""
    import numpy as np

    spec, preprocessing = file.spec, file.preprocessing
    if spec is not None and (None, 3, *spec.size) != (None, *runner.input_shape[1:]):
        raise GraphError(f"{runner.name} takes {runner.input_shape}", expected=f"{spec.size}, as its passport says")
    fixed, _, height, width = runner.input_shape
    if height is None or width is None:
        raise GraphError(f"{runner.name} has no fixed image size", expected="a file as export writes it")
    if folder is None:
        return parity.random_batches((height, width), PARITY_BATCHES if fixed is None else (fixed,)), RANDOM
    if preprocessing is None:
        raise GraphError(f"{runner.name} has no passport, so its preprocessing is unknown", hint="leave --images out")
    files = image_files(folder)
    step = fixed or IMAGES_AT_ONCE

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
