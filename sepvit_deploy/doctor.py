"""What this machine has, what is missing, and how to get it; and whether a plan loads on it."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sepvit_deploy import builders, plans
from sepvit_deploy.artifact import Parent
from sepvit_deploy.building import EngineFacts
from sepvit_deploy.plans import Here, Obstacle
from sepvit_deploy.triton_releases import AS_OF, image_for

PROBE_SECONDS = 60


@dataclass(frozen=True)
class Ability:
    """One thing that the toolkit can do, and what this machine lacks for it.

    Attributes:
        packages: distributions found, with versions.
        missing: distributions not installed.
        broken: modules that are installed and do not import, with the reason.
        hint: what to type; empty where nothing is wrong.
    """

    name: str
    packages: dict[str, str]
    missing: tuple[str, ...]
    broken: dict[str, str]
    hint: str

    @property
    def ready(self) -> bool:
        """True where everything is there and imports."""
        return not self.missing and not self.broken


@dataclass(frozen=True)
class Diagnosis:
    """The machine and its abilities.

    Attributes:
        gpu: one line for each NVIDIA GPU, as its driver names it.
        warnings: what will go wrong later.
    """

    python: str
    platform: str
    cores: int
    memory_gb: float | None
    gpus: tuple[str, ...]
    abilities: tuple[Ability, ...]
    warnings: tuple[str, ...]


_ABILITIES: tuple[tuple[str, str, dict[str, str]], ...] = (
    (
        "export (torch to ONNX)",
        "torch",
        {"torch": "torch", "onnxscript": "onnxscript", "onnxsim": "onnxsim", "safetensors": "safetensors"},
    ),
    ("run, check, bench on a CPU", "cpu", {"onnxruntime": "onnxruntime"}),
    ("run on an NVIDIA GPU", "gpu", {"onnxruntime-gpu": "onnxruntime"}),
    (
        "TensorRT engines",
        "tensorrt",
        {"tensorrt": "tensorrt", "cuda-bindings": "cuda.bindings.runtime", "polygraphy": "polygraphy"},
    ),
    (
        "TensorRT-RTX builds, also without a GPU",
        "rtx",
        {"tensorrt_rtx_cu13_bindings": "", "onnxruntime-ep-nv-tensorrt-rtx-cu13": ""},
    ),
)
"""Name, extra, and for each distribution the module whose import proves it; empty where importing needs set-up."""


def diagnose() -> Diagnosis:
    """Look at this machine; every import is tried in a process of its own, since native libraries may crash."""
    import platform

    asked = [(name, extra, _as_installed(extra, packages)) for name, extra, packages in _ABILITIES]
    modules = sorted({module for _, _, packages in asked for d, module in packages.items() if module and _version(d)})
    broken = {module: reason for module in modules if (reason := _import_failure(module))}
    gpus = _gpus()
    abilities = []
    for name, extra, packages in asked:
        found = {d: version for d in packages if (version := _version(d))}
        missing = tuple(d for d in packages if d not in found)
        bad = {module: broken[module] for d, module in packages.items() if d in found and module in broken}
        needs_gpu = extra in ("gpu", "tensorrt") and not gpus
        hint = ""
        if missing or bad:
            hint = f"pip install 'sepvit-deploy[{extra}]'" + (" on a machine with an NVIDIA GPU" if needs_gpu else "")
            if extra == "gpu" and _version("onnxruntime"):
                hint = f"pip uninstall onnxruntime, then {hint}"  # they share a folder
        abilities.append(Ability(name, found, missing, bad, hint))
    return Diagnosis(
        python=platform.python_version(),
        platform=platform.platform(),
        cores=os.cpu_count() or 1,
        memory_gb=_memory_gb(),
        gpus=gpus,
        abilities=tuple(abilities),
        warnings=tuple(_warnings()),
    )


def _as_installed(extra: str, packages: dict[str, str]) -> dict[str, str]:
    """The packages of an ability, where what it needs is installed under another name."""
    if extra == "cpu" and _version("onnxruntime-gpu") and not _version("onnxruntime"):
        return {"onnxruntime-gpu": "onnxruntime"}  # it runs on a CPU as well
    if extra not in ("tensorrt", "rtx"):
        return packages
    name = builders.whole(extra)  # type: ignore[arg-type]
    if name is None or name in packages:
        return packages
    rest = {d: module for d, module in packages.items() if d in ("cuda-bindings", "polygraphy")}
    return {name: "tensorrt" if extra == "tensorrt" else "tensorrt_rtx"} | rest


def _version(distribution: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _import_failure(module: str) -> str | None:
    """Why ``module`` does not import, in one line; None where it does."""
    import signal
    import subprocess

    command = [sys.executable, "-P", "-c", f"import {module}"]  # -P: not a file of that name in this folder
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"importing it took more than {PROBE_SECONDS} s"
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        number = -done.returncode
        return f"importing it crashed: signal {number} ({signal.strsignal(number)})"
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"its process ended with status {done.returncode}"


def _gpus() -> tuple[str, ...]:
    import shutil
    import subprocess

    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    query = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip()) if done.returncode == 0 else ()


def _memory_gb() -> float | None:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    kibibytes = int(meminfo.read_text(encoding="utf-8").split(maxsplit=2)[1])
    return round(kibibytes / 2**20, 1)


def _warnings() -> list[str]:
    import platform

    warnings = []
    if sys.version_info[:2] not in ((3, 11), (3, 12)):
        warnings.append(f"Python {platform.python_version()} is not tested: use 3.11 or 3.12")
    if _version("onnxruntime") and _version("onnxruntime-gpu"):
        warnings.append(
            "onnxruntime and onnxruntime-gpu overwrite each other in one folder: pip uninstall both, install one"
        )
    if _version("onnx-simplifier"):
        warnings.append("onnx-simplifier is the old name of onnxsim: pip uninstall onnx-simplifier")
    return warnings


@dataclass(frozen=True)
class PlanDiagnosis:
    """A plan, judged without running anything of it.

    Attributes:
        obstacles: why it does not load here; () where nothing speaks against it.
        differences: in what this GPU is not the one of the build, though it loads.
        triton: the image of Triton that carries its TensorRT, or why none is named.
        chain: what it was made from, the ONNX file first and the weights last.
    """

    path: str
    obstacles: tuple[Obstacle, ...]
    differences: tuple[str, ...]
    triton: str
    precision: str
    facts: EngineFacts
    chain: tuple[Parent, ...]

    @property
    def loads(self) -> bool:
        """True where nothing is known to speak against it."""
        return not self.obstacles

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self) | {"loads": self.loads, "facts": self.facts.to_dict()}


def diagnose_plan(path: Path, *, machine: Here | None = None) -> PlanDiagnosis:
    """Say whether a plan will load on a machine, from its passport alone.

    Args:
        machine: this one by default.

    Raises:
        PlanError: it is no plan.
        PassportError: its passport is missing, of another plan, or was edited.
    """
    plan = plans.read_plan(path)
    machine = machine or plans.here()
    assert plan.facts is not None and plan.passport is not None
    chain = sorted(plan.passport.parents, key=lambda parent: parent.role == "weights")
    return PlanDiagnosis(
        path=str(path),
        obstacles=plans.obstacles(plan.facts, machine),
        differences=plans.differences(plan.facts, machine),
        triton=_triton(plan.facts),
        precision=str(plan.passport.facts.get("precision")),
        facts=plan.facts,
        chain=tuple(chain),
    )


def _triton(facts: EngineFacts) -> str:
    if facts.builder == "rtx":
        return "none: Triton runs plans of TensorRT, not of TensorRT-RTX"
    image = image_for(facts.builder_version)
    if image is None:
        return f"unknown: TensorRT {facts.builder_version} is not in the table of {AS_OF}"
    return f"tritonserver:{image}"
