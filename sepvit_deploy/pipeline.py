"""The order of the stages: weights -> reference -> rewrites -> ONNX -> simplify -> audit -> parity -> passport."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepvit_deploy import artifact, parity
from sepvit_deploy.artifact import Parent, Passport
from sepvit_deploy.audit import Audit
from sepvit_deploy.audit import audit as audit_graph
from sepvit_deploy.errors import CheckpointError, GraphError, OptionError, PassportError
from sepvit_deploy.export import DEFAULT_OPSET, onnx_from_torch, require_options
from sepvit_deploy.graph import load_graph
from sepvit_deploy.images import image_files, load_batch
from sepvit_deploy.optional import require
from sepvit_deploy.parity import Parity
from sepvit_deploy.simplify import simplify as simplify_graph
from sepvit_deploy.spec import ModelSpec
from sepvit_deploy.variants import CLASSIFY_SIZE, Task

if TYPE_CHECKING:
    from sepvit_deploy.model.sepvit import SepViT, SepViTBackbone
    from sepvit_deploy.runners.base import Array, Runner

Report = Callable[[str], None]
"""Told the name of each step as it begins."""
PARITY_BATCHES = (1, 2, 3)
IMAGES_AT_ONCE = 4
RANDOM = "random images"


@dataclass(frozen=True)
class Exported:
    """What export made: the file, its passport, and what was proven of it."""

    path: Path
    passport: Passport
    audit: Audit
    parity: Parity


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


def export(
    variant: str,
    output: Path,
    *,
    weights: Path | None = None,
    ema: bool = False,
    task: Task = "classify",
    size: tuple[int, int] = (CLASSIFY_SIZE, CLASSIFY_SIZE),
    num_classes: int | None = None,
    batch: int | None = None,
    opset: int = DEFAULT_OPSET,
    simplify: bool = True,
    seed: int = 0,
    report: Report = lambda step: None,
) -> Exported:
    """Export a variant to an audited ONNX file with proven parity and a passport.

    Args:
        variant: ``lite``, ``t``, ``s`` or ``b``.
        output: the file to write; an existing one is replaced only when everything succeeded.
        weights: a checkpoint; None for random weights drawn from ``seed``.
        ema: take the checkpoint's averaged weights.
        size: (height, width) in pixels.
        num_classes: width of the head; None for the checkpoint's own, or 1000.
        batch: images in a batch; None leaves it dynamic.

    Raises:
        InputError: an option, the checkpoint or the output is unusable.
        AuditFailed, ParityFailed: the graph is not deployable or computes something else; nothing is written.
    """
    require_options(opset, batch)
    spec = ModelSpec(variant, task, size, num_classes or 1000)
    artifact.require_writable(output)
    if weights is not None and os.path.realpath(output) == os.path.realpath(weights):
        raise OptionError(f"--output {output} is the checkpoint itself", expected="another file to write")
    if ema and weights is None:
        raise OptionError("--ema without --weights", hint="name the checkpoint with --weights FILE")
    if weights is not None and not os.path.isfile(weights):
        raise CheckpointError(f"--weights {weights} is no file", expected="a .safetensors, .pth or .pt checkpoint")
    if simplify:
        require("onnxsim", extra="torch")
    require("onnxruntime", extra="cpu")
    require("torch", extra="torch")
    from sepvit_deploy.model.checkpoint import load_checkpoint
    from sepvit_deploy.model.rewrite import rewrite

    if weights is None:
        report("drawing random weights")
        model = reference_model(spec, None, ema=ema, seed=seed)
        parent = Parent("weights", "random", seed=seed)
    else:
        report(f"reading {weights.name}")
        model = load_checkpoint(weights, variant, task, num_classes=num_classes, ema=ema)
        spec = ModelSpec(variant, task, size, model.num_classes)
        parent = Parent("weights", weights.name, sha256=artifact.sha256(weights), ema=ema)
    report("rewriting and exporting")
    graph = onnx_from_torch(rewrite(model, size), spec, opset=opset, batch=batch)
    if simplify:
        report("simplifying")
        graph = simplify_graph(graph)
    report("auditing")
    audited = audit_graph(graph)
    audited.require_deployable(output.name)
    report("comparing with the reference")
    batches = PARITY_BATCHES if batch is None else (batch,)
    compared = _compare_with_reference(
        model, spec, _onnx_runner(graph, spec, output.name), parity.random_batches(size, batches), RANDOM
    )
    compared.require_passed()
    report("writing")
    passport = Passport(
        stage="export",
        parents=(parent,),
        model=spec.to_dict(),
        facts={
            "opset": opset,
            "batch": batch or "dynamic",
            "simplified": simplify,
            "precision": "fp32",
            "preprocessing": spec.preprocessing.to_dict(),
            "audit": asdict(audited),
            "parity": parity_facts(compared),
        },
    )
    passport = artifact.write_with_passport(output, graph.SerializeToString(), passport)
    return Exported(output, passport, audited, compared)


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

    graph = load_graph(path)
    passport = artifact.read_passport(path)
    spec = spec_of(path, passport)
    if against is not None:
        other = load_graph(against)
        artifact.read_passport(against)
        candidate: Runner = OnnxRuntimeRunner(graph, name=path.name)
        reference: Runner = OnnxRuntimeRunner(other, name=against.name)
        outputs = tuple(value.name for value in other.graph.output)
        batches, source = _batches(candidate, spec, images)
        report("comparing")
        return parity.compare(reference, candidate, batches, source=source, outputs=outputs)
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
    candidate = _onnx_runner(graph, spec, path.name)
    batches, source = _batches(candidate, spec, images)
    report("comparing")
    return _compare_with_reference(model, spec, candidate, batches, source)


def spec_of(path: Path, passport: Passport | None) -> ModelSpec | None:
    """The model that the passport of ``path`` names; None without a passport.

    Raises:
        PassportError: it names none that there is.
    """
    try:
        return ModelSpec.from_dict(passport.model) if passport else None
    except OptionError as error:
        location = artifact.passport_path(path)
        raise PassportError(f"{location} is of no model: {error}", hint="export again, or remove it") from error


def _onnx_runner(graph: Any, spec: ModelSpec, name: str) -> Runner:
    """A runner that also gives the taps that the graph has."""
    from sepvit_deploy.model.taps import taps
    from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner

    present = {output for node in graph.graph.node for output in node.output}
    found = [tap for tap in taps(spec, deployed=True) if tap.name in present]
    return OnnxRuntimeRunner(graph, name=name, taps=found)


def _compare_with_reference(
    model: SepViT | SepViTBackbone, spec: ModelSpec, candidate: Runner, batches: Iterator[Array], source: str
) -> Parity:
    from sepvit_deploy.model.taps import taps
    from sepvit_deploy.runners.torch import TorchRunner

    reference = TorchRunner(
        model, spec.output_names, spec.size, name="the reference", taps=tuple(taps(spec, deployed=False))
    )
    return parity.compare(reference, candidate, batches, source=source, outputs=spec.output_names)


def _batches(runner: Runner, spec: ModelSpec | None, folder: Path | None) -> tuple[Iterator[Array], str]:
    """Batches that ``runner`` takes, and what they are: pictures of a folder, or random images."""
    import numpy as np

    if spec is not None and (None, 3, *spec.size) != (None, *runner.input_shape[1:]):
        raise GraphError(f"{runner.name} takes {runner.input_shape}", expected=f"{spec.size}, as its passport says")
    fixed, _, height, width = runner.input_shape
    if height is None or width is None:
        raise GraphError(f"{runner.name} has no fixed image size", expected="a file as export writes it")
    if folder is None:
        return parity.random_batches((height, width), PARITY_BATCHES if fixed is None else (fixed,)), RANDOM
    if spec is None:
        raise GraphError(f"{runner.name} has no passport, so its preprocessing is unknown", hint="leave --images out")
    preprocessing = spec.preprocessing
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
