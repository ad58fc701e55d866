"""What a command is given to run: an ONNX file, an engine's plan, or a model in torch."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sepvit_deploy import artifact, plans
from sepvit_deploy.artifact import Parent, Passport
from sepvit_deploy.errors import CheckpointError, OptionError, PassportError, PlanError
from sepvit_deploy.optional import require
from sepvit_deploy.pipeline.opened import Opened, Running, Warn, model_of, open_onnx
from sepvit_deploy.plans import Plan
from sepvit_deploy.spec import ModelSpec, Preprocessing
from sepvit_deploy.variants import CLASSIFY_SIZE

if TYPE_CHECKING:
    from sepvit_deploy.model.build import Reference
    from sepvit_deploy.runners.base import Runner

TORCH, TORCH_COMPILE = "torch:", "torch-compile:"
PLANS = (".plan", ".engine")


@dataclass(frozen=True)
class OpenedPlan(Opened):
    """An engine's plan."""

    plan: Plan

    @property
    def output_names(self) -> tuple[str, ...]:
        """See `Opened.output_names`; PassportError where the plan is trusted without a passport."""
        return self.require_passport()[1].output_names

    def require_passport(self) -> tuple[Passport, ModelSpec, Preprocessing]:
        """See `Opened.require_passport`.

        Raises:
            PassportError: the plan is trusted without one.
        """
        if self.passport is None:
            raise PassportError(f"{self.plan.doubt}, so its model is unknown", hint="build it again")
        return super().require_passport()

    @contextlib.contextmanager
    def running(self, how: Running, *, name: str | None = None, taps: bool = False) -> Iterator[Runner]:
        """See `Opened.running`; an engine has no inner tensors.

        Raises:
            PlanError: it does not load here, and why.
        """
        facts = self.plan.facts
        if facts is None:
            plans.probe(self.plan)  # nothing is known of it: if it crashes, then in another process
        elif found := plans.obstacles(facts, plans.here()):
            first = found[0]
            raise PlanError(f"{self.path}: {first.found}", expected=first.expected, hint=first.hint)
        from sepvit_deploy.runners.cuda import open_cuda
        from sepvit_deploy.runners.tensorrt import TensorRtRunner

        with TensorRtRunner(
            self.plan.content,
            name=name or self.path.name,
            builder=self.plan.builder,
            cuda=open_cuda(how.cuda),
            cuda_graph=how.cuda_graph,
            version_compatible=facts is None or facts.version_compatible,
        ) as runner:
            yield runner


@dataclass(frozen=True)
class OpenedTorch(Opened):
    """A model as the paper writes it, in torch, run eagerly or ``compiled`` by torch.compile."""

    model: Reference = field(repr=False)
    compiled: bool = False

    @property
    def output_names(self) -> tuple[str, ...]:
        """See `Opened.output_names`."""
        assert self.spec is not None
        return self.spec.output_names

    @contextlib.contextmanager
    def running(self, how: Running, *, name: str | None = None, taps: bool = False) -> Iterator[Runner]:
        """See `Opened.running`."""
        from sepvit_deploy.model.taps import taps as taps_of
        from sepvit_deploy.runners.torch import TorchRunner

        assert self.spec is not None
        if how.provider == "tensorrt":
            raise OptionError(f"--provider tensorrt with {self.path}", expected="cpu or cuda for a model in torch")
        if how.threads is not None:
            require("torch", extra="torch").set_num_threads(how.threads)
        yield TorchRunner(
            self.model,
            self.spec.output_names,
            self.spec.size,
            name=name or str(self.path),
            taps=tuple(taps_of(self.spec, deployed=False)) if taps else (),
            device=how.provider,
            compiled=self.compiled,
        )


def open_model(source: str | Path, *, trust: bool = False, warn: Warn = lambda text: None) -> Opened:
    """Open what a command was given: ``FILE.onnx``, ``FILE.plan``, or ``torch:VARIANT[:WEIGHTS]``.

    ``torch-compile:`` instead of ``torch:`` compiles the model.

    Args:
        trust: take a plan whose passport is missing or does not fit.
        warn: told why a plan is trusted without its passport.

    Raises:
        InputError: it is none of these, or unusable.
    """
    if str(source).startswith((TORCH, TORCH_COMPILE)):
        return _open_torch(str(source))
    path = Path(source)
    return open_plan(path, trust=trust, warn=warn) if path.suffix in PLANS else open_onnx(path)


def open_plan(path: Path, *, trust: bool = False, warn: Warn = lambda text: None) -> OpenedPlan:
    """Read a plan and its passport; nothing of it is run.

    Raises:
        PlanError: it is no plan.
        PassportError: the passport is missing or of another plan, unless it is trusted.
    """
    plan = plans.read_plan(path, trust=trust)
    if plan.doubt:
        warn(f"{plan.doubt}: it is trusted, and nothing is known of it")
    return OpenedPlan(path, plan.passport, model_of(path, plan.passport), plan)


def _open_torch(source: str) -> OpenedTorch:
    """``torch:VARIANT[:WEIGHTS]``: random weights of seed 0 where no file is named."""
    require("torch", extra="torch")
    from sepvit_deploy.model.build import build_model
    from sepvit_deploy.model.checkpoint import load_checkpoint

    prefix = TORCH_COMPILE if source.startswith(TORCH_COMPILE) else TORCH
    variant, colon, file = source.removeprefix(prefix).partition(":")
    if colon and not file:  # as of a variable that is empty: not the same as no file
        raise CheckpointError(f"{source} names no file", expected=f"{prefix}VARIANT[:WEIGHTS]")
    size = (CLASSIFY_SIZE, CLASSIFY_SIZE)
    spec = ModelSpec(variant, "classify", size, 1000)
    if file:
        weights = Path(file)
        if not os.path.isfile(weights):
            raise CheckpointError(f"{weights} is no file", expected=f"{prefix}VARIANT[:WEIGHTS]")
        model = load_checkpoint(weights, variant)
        spec = ModelSpec(variant, "classify", size, model.num_classes)
        digest = artifact.sha256(weights)
        parent = Parent("weights", weights.name, sha256=digest)
    else:
        model = build_model(variant, "classify", num_classes=spec.num_classes, seed=0)
        digest = hashlib.sha256(f"{variant} of seed 0".encode()).hexdigest()
        parent = Parent("weights", "random", seed=0)
    facts = {"precision": "fp32", "preprocessing": spec.preprocessing.to_dict()}
    passport = Passport("torch", (parent,), spec.to_dict(), facts, file=source, sha256=digest)
    return OpenedTorch(Path(source), passport, spec, model, prefix == TORCH_COMPILE)
