"""weights -> reference -> rewrites -> ONNX -> simplify -> audit -> parity -> passport."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

from sepvit_deploy import artifact, parity
from sepvit_deploy.artifact import Parent, Passport
from sepvit_deploy.audit import Audit
from sepvit_deploy.audit import audit as audit_graph
from sepvit_deploy.errors import CheckpointError, OptionError
from sepvit_deploy.export import DEFAULT_OPSET, onnx_from_torch, require_options
from sepvit_deploy.optional import require
from sepvit_deploy.parity import Parity
from sepvit_deploy.pipeline.checking import (
    PARITY_BATCHES,
    RANDOM,
    compare_with_reference,
    onnx_runner,
    parity_facts,
    reference_model,
)
from sepvit_deploy.pipeline.opened import Report
from sepvit_deploy.simplify import simplify as simplify_graph
from sepvit_deploy.spec import ModelSpec, Preprocessing
from sepvit_deploy.variants import CLASSIFY_SIZE, Task


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
    size: tuple[int, int] = (CLASSIFY_SIZE, CLASSIFY_SIZE),
    num_classes: int | None = None,
    batch: int | None = None,
    opset: int = DEFAULT_OPSET,
    simplify: bool = True,
    seed: int = 0,
    preprocessing: Preprocessing | None = None,
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
        preprocessing: how the model was trained to see pictures; None for ImageNet's evaluation.

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
    require("onnxscript", extra="torch")  # before torch, which is slow to import: what is missing is said at once
    require("onnxruntime", extra="cpu")
    require("torch", extra="torch")
    if simplify:
        require("onnxsim", extra="torch")
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
    compared = compare_with_reference(
        model, spec, onnx_runner(graph, spec, output.name), parity.random_batches(size, batches), RANDOM
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
        },
    )
    passport = artifact.write_with_passport(output, graph.SerializeToString(), passport)
    return Exported(output, passport, audited, compared)
