"""The files behind a plan or a spec, each proven to be what the next one was made from, or what the spec describes."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from sepvit_deploy import plans
from sepvit_deploy.building import BuildRequest, EngineFacts, default_profiles
from sepvit_deploy.deployment import DeploymentSpec
from sepvit_deploy.errors import GraphError, PassportError
from sepvit_deploy.pipeline.models import open_plan
from sepvit_deploy.pipeline.opened import Opened, OpenedOnnx, Running, open_onnx

MOST_STEPS = 8
"""Files between a plan and the export behind it; a longer chain of passports goes in a circle."""


def deployed(spec: DeploymentSpec, path: Path, out: Path, how: Running) -> tuple[Opened, str]:
    """The last file that `deploy` made of a spec and that runs here, and why it is not the engine.

    Raises:
        GraphError: there is none.
        PassportError: a file is not what the spec describes, also one that does not run here.
    """
    plan, lowered = out / f"{spec.name}.plan", out / f"{spec.name}.onnx"
    again = f"type: sepvit-deploy deploy {shlex.quote(str(path))} --out {shlex.quote(str(out))}"
    if not os.path.isfile(lowered):
        raise GraphError(f"{lowered} is not there", hint=again)
    file = open_onnx(lowered)
    if differing := _differences(spec, file):
        raise PassportError(f"{lowered} has {', '.join(differing)}", expected=f"what {path} describes", hint=again)
    if not os.path.isfile(plan):
        return file, f"there is no {plan}: the ladder ends at {lowered.name}"
    engine = open_plan(plan, trust=how.trust)
    passport, _, _ = engine.require_passport()
    facts = engine.plan.facts
    assert facts is not None
    if passport.parents[0].sha256 != file.sha256:
        raise PassportError(f"{plan} was built from another {lowered.name}", expected="this one", hint=again)
    if spec.engine.builder not in ("auto", facts.builder):
        raise PassportError(f"{plan} was built by {facts.builder}", expected=f"{spec.engine.builder}", hint=again)
    built, asked = request(facts), _asked(spec, facts)
    if other := [entry.name for entry in fields(built) if getattr(built, entry.name) != getattr(asked, entry.name)]:
        raise PassportError(f"{plan} was built with other {', '.join(other)}", expected=f"as in {path}", hint=again)
    if obstacles := plans.obstacles(facts, plans.here()):
        return file, f"the ladder ends at {lowered.name}: {plan}: {obstacles[0].found}"
    return engine, ""


def _differences(spec: DeploymentSpec, file: OpenedOnnx) -> list[str]:
    """In what a file is not what a spec describes, by the spec's keys."""
    passport, model, preprocessing = file.require_passport()
    said = passport.facts
    described = {
        "model": (model, spec.model),
        "preprocessing": (preprocessing, spec.preprocessing),
        "precision.type": (said.get("precision"), spec.precision.type),
        "export.opset": (said.get("opset"), spec.export.opset),
        "export.batch": (said.get("batch"), spec.export.batch or "dynamic"),
        "export.simplify": (said.get("simplified"), spec.export.simplify),
    }
    if spec.precision.type != "fp32":
        described["precision.keep"] = (file.keep, spec.precision.keep)
    if spec.precision.type == "int8" == said.get("precision"):
        described["precision.target"] = (said.get("target"), spec.precision.target)
        described["precision.attention"] = (said.get("attention"), spec.precision.attention)
        described["precision.smooth"] = (_said(said, "smooth", "alpha") or 0.0, spec.precision.smooth)
        described["calibration.method"] = (_said(said, "calibration", "method"), spec.calibration.method)
    if spec.weights.sha256:
        described["weights.sha256"] = (passport.weights and passport.weights.sha256, spec.weights.sha256)
    return [
        f"{key} {found}" if isinstance(found, str | int) else f"another {key}"
        for key, (found, wanted) in described.items()
        if found != wanted
    ]


def _said(facts: Mapping[str, Any], table: str, key: str) -> Any:
    found = facts.get(table)
    return found.get(key) if isinstance(found, Mapping) else None


def _asked(spec: DeploymentSpec, facts: EngineFacts) -> BuildRequest:
    """What a spec asks of the builder that built an engine."""
    asked = spec.engine.request(facts.builder)
    default = default_profiles(spec.export.batch or None, spec.model.size if spec.model.any_size else None)
    return replace(asked, profiles=asked.profiles or default)


def chain(file: Opened) -> list[OpenedOnnx]:
    """The ONNX files behind a file, from the export to the file itself or the one that its plan was built from.

    Raises:
        PassportError: one of them is not beside it, or is another than then.
    """
    found: list[OpenedOnnx] = []
    current = file
    for _ in range(MOST_STEPS):
        passport, _, _ = current.require_passport()
        if isinstance(current, OpenedOnnx):
            found.insert(0, current)
            if passport.stage == "export":
                return found
        parent = next((parent for parent in passport.parents if parent.role == "onnx"), None)
        if parent is None or not parent.sha256 or Path(parent.name).name != parent.name:
            raise PassportError(f"the passport of {current.path} names no ONNX file", hint="make it again")
        path = current.path.parent / parent.name
        if not os.path.isfile(path):
            raise PassportError(
                f"{current.path.name} was made from {parent.name}, which is not beside it", expected=f"it at {path}"
            )
        opened = open_onnx(path)
        if opened.sha256 != parent.sha256:
            raise PassportError(
                f"{path} is not what {current.path.name} was made from (SHA-256 {opened.sha256[:12]}...)",
                expected=f"{parent.sha256[:12]}...",
                hint="put that one back, or make the file again",
            )
        current = opened
    raise PassportError(f"{file.path} has more than {MOST_STEPS} files behind it", expected="an export at the end")


def request(facts: EngineFacts) -> BuildRequest:
    """What builds the same engine again."""
    return BuildRequest(
        builder=facts.builder,
        profiles=facts.profiles,
        workspace_mb=facts.workspace_mb,
        level=facts.level,
        compute_capabilities=facts.compute_capabilities,
        version_compatible=facts.version_compatible,
        hardware_compatible=facts.hardware_compatible,
        refittable=facts.refittable,
    )
