"""An engine's plan and its passport: read, proven by digest, and judged without running anything of it.

A plan is code: deserialising it runs it. So a plan is taken only if its digest is its passport's, or if the user trusts
it by an option. The passport carries a seal, which breaks where it is edited by hand. A seal is no signature: whoever
can compute a SHA-256 can make another one; it tells accidents and mistakes, not attackers.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from sepvit_deploy import artifact, builders, gpu
from sepvit_deploy.artifact import Passport
from sepvit_deploy.building import BUILDER_NAMES, Builder, EngineFacts
from sepvit_deploy.errors import PassportError, PlanError
from sepvit_deploy.gpu import Device
from sepvit_deploy.optional import child_environment

MAGIC: dict[bytes, Builder] = {b"ftrt": "tensorrt", b"vtrt": "rtx"}
"""The first bytes of a plan. Seen in plans of TensorRT 10 and TensorRT-RTX 1.7; not documented, so a plan that its
passport proves may begin otherwise."""
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""What TensorRT-RTX 1.7 builds for where nothing is asked for: members of its ComputeCapability."""
MAX_BYTES = 1 << 32
PROBE_SECONDS = 300.0
CHILD = (sys.executable, "-P", "-m", "sepvit_deploy.plan_probe")


@dataclass(frozen=True)
class Plan:
    """A plan that was read and not run.

    Attributes:
        passport, facts: None of a plan that is trusted without them.
        doubt: why those were not taken; empty where they were.
    """

    path: Path
    content: bytes
    sha256: str
    builder: Builder
    passport: Passport | None
    facts: EngineFacts | None
    doubt: str = ""


def write_plan(path: Path, content: bytes, passport: Passport) -> Passport:
    """Write a plan and its sealed passport, as `artifact.write_with_passport` does.

    Raises:
        OutputError: the place cannot be written, or the disk is full.
    """
    digest = hashlib.sha256(content).hexdigest()
    facts = passport.facts | {"seal": _seal(passport, digest)}
    return artifact.write_with_passport(path, content, replace(passport, facts=facts))


def read_plan(path: Path, *, trust: bool = False) -> Plan:
    """Read a plan and prove it by its passport; the digest is of the very bytes that are returned.

    Args:
        trust: take a plan whose passport is missing, broken or of another plan; nothing is then known of it.

    Raises:
        PlanError: it cannot be read, or is no plan.
        PassportError: its passport is missing, of another plan, or was edited.
    """
    content = _content(path)
    looks_like = MAGIC.get(content[:4])
    digest = hashlib.sha256(content).hexdigest()
    try:
        passport = _passport(path)
        if passport is None:
            raise PassportError(
                f"{path} has no passport, so nothing tells what it is: a plan is code, and loading it runs it",
                expected=f"{artifact.passport_path(path).name} beside it",
                hint="build it again, or load it with --trust if you know where it comes from",
            )
        facts = _facts(path, passport, digest, looks_like)
    except PassportError as error:
        if looks_like is None and (trust or not os.path.exists(artifact.passport_path(path))):
            expected = "a plan as sepvit-deploy build writes it"
            raise PlanError(f"{path} is no TensorRT plan", expected=expected) from error
        if looks_like is None or not trust:
            raise
        return Plan(path, content, digest, looks_like, None, None, error.found)
    return Plan(path, content, digest, facts.builder, passport, facts)


def _passport(path: Path) -> Passport | None:
    try:
        return artifact.read_passport(path)
    except PassportError as error:
        raise PassportError(error.found, expected=error.expected, hint="build it again") from error


def _content(path: Path) -> bytes:
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise PlanError(f"{path} is {'a folder' if os.path.isdir(path) else 'no regular file'}", expected="a plan")
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise PlanError(f"{path} is larger than {MAX_BYTES >> 30} GiB", expected="a plan")
            content = file.read(MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PlanError(
            f"{path} does not exist", expected="a plan", hint="type: sepvit-deploy build FILE.onnx"
        ) from error
    except OSError as error:
        raise PlanError(f"{path} cannot be read ({error.strerror})", expected="a plan") from error
    return content


def _facts(path: Path, passport: Passport, digest: str, looks_like: Builder | None) -> EngineFacts:
    """What the passport says of the engine; PassportError where it does not fit the plan or itself."""
    location = artifact.passport_path(path)
    hint = "build it again"
    if passport.sha256 != digest:  # it changed between two reads
        raise PassportError(f"{path} changed while it was read", hint="type the command again")
    if passport.stage != "build" or "engine" not in passport.facts:
        raise PassportError(f"{location} is of stage {passport.stage:.40}", expected="build", hint=hint)
    if passport.facts.get("seal") != _seal(passport, digest):
        raise PassportError(f"{location} was edited after the build: its seal is broken", hint=hint)
    try:
        facts = EngineFacts.from_dict(passport.facts["engine"])
    except (TypeError, ValueError, ArithmeticError) as error:
        raise PassportError(f"{location} is no passport of an engine ({error})", hint=hint) from error
    if looks_like not in (None, facts.builder):
        raise PassportError(
            f"{path} is a plan of {BUILDER_NAMES[looks_like]}",
            expected=f"{BUILDER_NAMES[facts.builder]} {facts.builder_version}, as its passport says",
            hint=hint,
        )
    return facts


def _seal(passport: Passport, digest: str) -> str:
    """SHA-256 of what a passport says and of the plan that it says it of, in one canonical form."""
    facts = {key: value for key, value in passport.facts.items() if key != "seal"}
    parents = [vars(parent) for parent in passport.parents]
    said = {"stage": passport.stage, "parents": parents, "model": passport.model, "facts": facts, "plan": digest}
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Here:
    """What decides on this machine whether a plan loads: installed builders with their versions, GPUs, platform."""

    builders: dict[Builder, str]
    devices: tuple[Device, ...]
    platform: str


@dataclass(frozen=True)
class Obstacle:
    """One reason why a plan does not load here: what is here, what would do, and what to type."""

    found: str
    expected: str
    hint: str


def here() -> Here:
    """What is here; nothing heavy is imported."""
    return Here(builders.available(), gpu.devices(), f"{sys.platform} {platform.machine()}")


def obstacles(facts: EngineFacts, machine: Here) -> tuple[Obstacle, ...]:
    """Every reason why an engine does not load on a machine; () where nothing speaks against it.

    What must be equal is from NVIDIA's "Engine Portability" in TensorRT's support matrix (11.4) and TensorRT-RTX's
    "Engine Compatibility": platform, version, compute capability, with the exceptions that a build can ask for.
    """
    found = [_version_obstacle(facts, machine)]
    if facts.platform != machine.platform:
        found.append(Obstacle(f"this machine is {machine.platform}", facts.platform, "build it again here"))
    if not machine.devices:
        kinds = ", ".join(facts.compute_capabilities or RTX_CAPABILITIES)
        its = facts.device.name if facts.device else f"a GPU of compute capability {kinds}"
        found.append(Obstacle("no NVIDIA GPU is seen here", its, "take it there; what is here: sepvit-deploy doctor"))
    else:
        found.append(_capability_obstacle(facts, machine.devices[0]))
    return tuple(obstacle for obstacle in found if obstacle is not None)


_AGAIN = "build it again here: sepvit-deploy build FILE.onnx"


def _version_obstacle(facts: EngineFacts, machine: Here) -> Obstacle | None:
    name, built = BUILDER_NAMES[facts.builder], facts.builder_version
    version = machine.builders.get(facts.builder)
    if version is None:
        hint = f"type: pip install 'sepvit-deploy[{facts.builder}]'"
        return Obstacle(f"{name} is not installed", f"{name} {built}", hint)
    if _release(version) == _release(built):
        return None
    newer = _numbers(version) >= _numbers(built)
    major, of_plan = _numbers(version)[0], _numbers(built)[0]
    if facts.version_compatible and newer and (major == of_plan or (of_plan, major) == (10, 11)):
        return None
    expected = f"{name} {_release(built)}" + (" or newer" if facts.version_compatible else "")
    return Obstacle(f"{name} {version} is installed", expected, f"install that one, or {_AGAIN}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if re.fullmatch("[0-9]{1,9}", part)) or (0,)


def _release(version: str) -> str:
    """Major, minor and patch: the build number is not part of what a plan is compared by."""
    return ".".join(version.split(".")[:3])


def _capability_obstacle(facts: EngineFacts, device: Device) -> Obstacle | None:
    capability = device.compute_capability
    found = f"{device.name} has compute capability {capability}"
    if facts.builder == "rtx":
        built_for = facts.compute_capabilities or RTX_CAPABILITIES
        if capability in built_for:
            return None
        again = f"build it again with --compute-capability {capability}"
        hint = again if capability in RTX_CAPABILITIES else "build it with TensorRT, for this GPU is none of RTX's"
        return Obstacle(found, ", ".join(built_for), hint)
    if facts.device is None or capability == facts.device.compute_capability:
        return None
    if facts.hardware_compatible == "ampere+" and _numbers(capability) >= (8,):
        return None
    expected = "8.0 or higher" if facts.hardware_compatible == "ampere+" else facts.device.compute_capability
    return Obstacle(found, f"{expected}, as the GPU that the plan was built on", _AGAIN)


def differences(facts: EngineFacts, machine: Here) -> tuple[str, ...]:
    """In what this GPU or driver is not that of the build, though the plan loads: kernels were chosen for that one."""
    if facts.device is None or not machine.devices:
        return ()
    built, device = facts.device, machine.devices[0]
    names = [entry.name for entry in fields(Device) if entry.name not in ("index", "compute_capability")]
    return tuple(
        f"{name.replace('_', ' ')} {getattr(device, name)}, built on {getattr(built, name)}"
        for name in names
        if getattr(device, name) != getattr(built, name)
    )


def probe(plan: Plan) -> None:
    """Deserialise a plan in a process of its own, for one that nothing is known of may end it.

    Raises:
        PlanError: there is no GPU, or the plan is refused, crashes, or takes too long.
    """
    if not gpu.devices():
        raise PlanError(
            f"{plan.path}: no NVIDIA GPU is seen here",
            expected="the GPU that the engine is for",
            hint="deserialising without a driver ends the process; see sepvit-deploy doctor",
        )
    header = json.dumps({"builder": plan.builder, "bytes": len(plan.content)}).encode() + b"\n"
    try:
        done = subprocess.run(
            CHILD,
            input=header + plan.content,
            capture_output=True,
            timeout=PROBE_SECONDS,
            check=False,
            env=child_environment(),
        )
    except subprocess.TimeoutExpired as error:
        raise PlanError(
            f"{plan.path} had not loaded after {PROBE_SECONDS:g} s", expected="a plan that loads"
        ) from error
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise PlanError(
            f"{plan.path} crashes {BUILDER_NAMES[plan.builder]} ({name})", expected="a plan of this machine"
        )
    answer = _answer(done.stdout)
    if done.returncode or answer.get("loads") is not True:
        reason = str(answer.get("reason") or f"its process ended with status {done.returncode}")
        raise PlanError(f"{plan.path} does not load: {reason}", expected="a plan of this machine", hint=_AGAIN)


def _answer(output: bytes) -> dict[str, Any]:
    """The last line of a child as a JSON object; {} where it is none."""
    lines = output.splitlines()
    try:
        found = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
