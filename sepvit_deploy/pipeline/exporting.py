"""weights -> reference -> rewrites -> ONNX -> simplify -> audit -> parity -> passport."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepvit_deploy import artifact
from sepvit_deploy.artifact import Parent, Passport
from sepvit_deploy.audit import Audit
from sepvit_deploy.audit import audit as audit_graph
from sepvit_deploy.errors import CheckpointError, OptionError
from sepvit_deploy.export import DEFAULT_OPSET, onnx_from_torch, require_options
from sepvit_deploy.heads import ADE20K_CLASSES, Head, OutputKind
from sepvit_deploy.optional import require
from sepvit_deploy.parity import Parity
from sepvit_deploy.pipeline.checking import (
    compare_with_reference,
    onnx_runner,
    parity_facts,
    random_images,
    random_source,
    reference_model,
)
from sepvit_deploy.pipeline.opened import Report, Warn
from sepvit_deploy.simplify import simplify as simplify_graph
from sepvit_deploy.spec import ModelSpec, Preprocessing
from sepvit_deploy.variants import CLASSIFY_SIZE, Task

if TYPE_CHECKING:
    from sepvit_deploy.model.build import Reference


@dataclass(frozen=True)
class Exported:
    """What export made: the file, its passport, and what was proven of it."""

    path: Path
    passport: Passport
    audit: Audit
    parity: Parity


def export(
    variant: str,
    output: Path,
    *,
    weights: Path | None = None,
    ema: bool = False,
    task: Task = "classify",
    head: Head | None = None,
    output_kind: OutputKind = "logits",
    size: tuple[int, int] = (CLASSIFY_SIZE, CLASSIFY_SIZE),
    any_size: bool = False,
    num_classes: int | None = None,
    batch: int | None = None,
    opset: int = DEFAULT_OPSET,
    simplify: bool = True,
    seed: int = 0,
    preprocessing: Preprocessing | None = None,
    report: Report = lambda step: None,
    warn: Warn = lambda text: None,
) -> Exported:
    """Export a variant to an audited ONNX file with proven parity and a passport.

    Args:
        variant: its name, see `variants`.
        output: the file to write; an existing one is replaced only when everything succeeded.
        weights: a checkpoint; None for random weights drawn from ``seed``.
        ema: take the checkpoint's averaged weights.
        head: of segmentation.
        output_kind: of segmentation: logits at stride 4, or a mask at the size of the input.
        size: (height, width) in pixels; with ``any_size`` what prepared pictures must not exceed.
        any_size: a file for images of any size.
        num_classes: width of the head; None for the checkpoint's own, or 1000, of segmentation 150.
        batch: images in a batch; None leaves it dynamic.
        preprocessing: how the model was trained to see pictures; None for the evaluation of its task.
        warn: told where the checkpoint's names or colours of classes are not used.

    Raises:
        InputError: an option, the checkpoint or the output is unusable.
        AuditFailed, ParityFailed: the graph is not deployable or computes something else; nothing is written.
    """
    require_options(opset, batch)
    usual = ADE20K_CLASSES if task == "segment" else 1000
    spec = ModelSpec(variant, task, size, num_classes or usual, head, output_kind, any_size)
    artifact.require_writable(output)
    if weights is not None and os.path.realpath(output) == os.path.realpath(weights):
        raise OptionError(f"--output {output} is the checkpoint itself", expected="another file to write")
    if ema and weights is None:
        raise OptionError("--ema without --weights", hint="name the checkpoint with --weights FILE")
    if weights is not None and not os.path.isfile(weights):
        raise CheckpointError(f"--weights {weights} is no file", expected="a .safetensors, .pth or .pt checkpoint")
    require("onnxscript", extra="torch")  # before torch, which is slow to import: what is missing is said at once
    require("onnxruntime", extra="cpu")
    require("torch", extra="torch")
    if simplify:
        require("onnxsim", extra="torch")
    from sepvit_deploy.model.checkpoint import load_checkpoint
    from sepvit_deploy.model.deploy import deployed

    if weights is None:
        report("drawing random weights")
        model = reference_model(spec, None, ema=ema, seed=seed)
        parent = Parent("weights", "random", seed=seed)
    else:
        report(f"reading {weights.name}")
        model = load_checkpoint(weights, variant, task, num_classes=num_classes, head=head, output=output_kind, ema=ema)
        spec = replace(spec, num_classes=model.num_classes)
        parent = Parent("weights", weights.name, sha256=artifact.sha256(weights), ema=ema)
    report("rewriting and exporting")
    graph = onnx_from_torch(deployed(model, spec), spec, opset=opset, batch=batch)
    if simplify:
        report("simplifying")
        graph = simplify_graph(graph)
    report("auditing")
    audited = audit_graph(graph, size=spec.size)
    audited.require_deployable(output.name)
    report("comparing with the reference")
    compared = compare_with_reference(
        model, spec, onnx_runner(graph, spec, output.name), random_images(spec, batch), random_source(spec)
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
            "preprocessing": (preprocessing or spec.preprocessing).to_dict(),
            "audit": asdict(audited),
            "parity": parity_facts(compared),
            **_labelling(model, warn),
        },
    )
    passport = artifact.write_with_passport(output, graph.SerializeToString(), passport)
    return Exported(output, passport, audited, compared)


def _labelling(model: Reference, warn: Warn) -> dict[str, Any]:
    """Names and colours of the classes that the checkpoint brought, as facts of a passport."""
    for key in getattr(model, "unusable", ()):
        warn(f"the checkpoint's meta has {key} in a form that cannot be shown: it is not used")
    found: dict[str, Any] = {}
    for key, values in (
        ("classes", getattr(model, "class_names", None)),
        ("palette", getattr(model, "palette", None)),
    ):
        if values is not None and len(values) != model.num_classes:
            warn(f"the checkpoint notes {key} of {len(values)} classes and has {model.num_classes}: they are not used")
        elif values is not None:
            found[key] = [value if isinstance(value, str) else list(value) for value in values]
    return found
