"""The diagnosis of invented machines, and imports that fail in every way."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from sepvit_deploy import builders, doctor
from sepvit_deploy.doctor import Ability, Diagnosis, diagnose

TORCH = {"torch": "2.9.0", "onnxscript": "0.5.4", "onnxsim": "0.4.36", "safetensors": "0.5.0"}
TENSORRT = {"tensorrt": "10.12.0", "cuda-bindings": "13.0.0", "polygraphy": "0.49.0"}
RTX = {"tensorrt_rtx_cu13_bindings": "1.7.1", "onnxruntime-ep-nv-tensorrt-rtx-cu13": "0.5.0"}
GPU = ("NVIDIA H200, 580.65, 143771 MiB",)
EXPORT, CPU, CUDA, TRT, RTX_BUILD = range(5)


class Machine:
    """Replaces what the doctor looks at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.packages: dict[str, str] = {}
        self.broken: dict[str, str] = {}
        self.gpus: tuple[str, ...] = ()
        self.tried: list[str] = []
        monkeypatch.setattr(doctor, "_version", lambda name: self.packages.get(name))
        monkeypatch.setattr(doctor, "_import_failure", self._import_failure)
        monkeypatch.setattr(doctor, "_gpus", lambda: self.gpus)
        monkeypatch.setattr(
            builders, "_installed", lambda names: next(filter(None, map(self.packages.get, names)), None)
        )

    def _import_failure(self, module: str) -> str | None:
        self.tried.append(module)
        return self.broken.get(module)

    def ability(self, number: int) -> Ability:
        return diagnose().abilities[number]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_a_complete_machine(machine: Machine) -> None:
    machine.packages = {**TORCH, "onnxruntime-gpu": "1.22.0", **TENSORRT, **RTX}
    machine.gpus = GPU
    found = diagnose()
    assert all(ability.ready and ability.hint == "" for ability in found.abilities)
    assert found.gpus == GPU
    assert found.warnings == ()
    assert found.abilities[EXPORT].packages == TORCH
    assert (found.cores >= 1, found.memory_gb is None or found.memory_gb > 0) == (True, True)


def test_an_empty_machine_says_what_to_type(machine: Machine) -> None:
    abilities = diagnose().abilities
    assert not any(ability.ready for ability in abilities)
    assert [ability.hint for ability in abilities] == [
        "pip install 'sepvit-deploy[torch]'",
        "pip install 'sepvit-deploy[cpu]'",
        "pip install 'sepvit-deploy[gpu]' on a machine with an NVIDIA GPU",
        "pip install 'sepvit-deploy[tensorrt]' on a machine with an NVIDIA GPU",
        "pip install 'sepvit-deploy[rtx]'",
    ]
    assert abilities[EXPORT].missing == tuple(TORCH)
    assert machine.tried == []


def test_a_machine_with_a_gpu_needs_no_other(machine: Machine) -> None:
    machine.gpus = GPU
    assert machine.ability(TRT).hint == "pip install 'sepvit-deploy[tensorrt]'"


def test_builders_under_another_of_their_names(machine: Machine) -> None:
    machine.packages = {
        "tensorrt-cu13": "11.4.0",
        "cuda-bindings": "13.0.0",
        "polygraphy": "0.53.0",
        "tensorrt-rtx": "1.7",
    }
    assert machine.ability(TRT).ready
    assert machine.ability(TRT).packages["tensorrt-cu13"] == "11.4.0"
    assert machine.ability(RTX_BUILD).ready
    assert {"tensorrt", "tensorrt_rtx"} <= set(machine.tried)  # a package that is there may still not import
    del machine.packages["cuda-bindings"]
    assert machine.ability(TRT).missing == ("cuda-bindings",)


def test_one_missing_package(machine: Machine) -> None:
    machine.packages = TORCH | {"onnxscript": ""}
    ability = machine.ability(EXPORT)
    assert (ability.missing, ability.ready) == (("onnxscript",), False)
    assert ability.hint == "pip install 'sepvit-deploy[torch]'"


def test_a_package_that_is_there_and_does_not_import(machine: Machine) -> None:
    machine.packages = {**TORCH, **TENSORRT}
    machine.broken = {"cuda.bindings.runtime": "ImportError: libcudart.so.13", "unrelated": "never asked"}
    found = diagnose()
    assert found.abilities[EXPORT].ready
    assert found.abilities[TRT].broken == {"cuda.bindings.runtime": "ImportError: libcudart.so.13"}
    assert found.abilities[TRT].missing == ()
    assert not found.abilities[TRT].ready
    assert found.abilities[TRT].hint.startswith("pip install 'sepvit-deploy[tensorrt]'")


def test_a_module_is_tried_once_and_only_if_installed(machine: Machine) -> None:
    machine.packages = {"onnxruntime": "1.22", "onnxruntime-gpu": "1.22", **RTX}
    diagnose()
    assert machine.tried == ["onnxruntime"]


def test_onnxruntime_for_gpus_runs_on_a_cpu_too(machine: Machine) -> None:
    machine.packages = {"onnxruntime-gpu": "1.22.0"}
    assert machine.ability(CPU).ready
    assert machine.ability(CPU).packages == {"onnxruntime-gpu": "1.22.0"}
    machine.broken = {"onnxruntime": "ImportError"}
    assert not machine.ability(CPU).ready


def test_the_way_from_cpu_to_gpu_does_not_mix_the_two(machine: Machine) -> None:
    machine.packages = {"onnxruntime": "1.22.0"}
    machine.gpus = GPU
    assert machine.ability(CPU).ready
    assert machine.ability(CUDA).hint == "pip uninstall onnxruntime, then pip install 'sepvit-deploy[gpu]'"


def warnings(found: Diagnosis) -> str:
    return " | ".join(found.warnings)


def test_both_onnxruntimes_are_warned_of(machine: Machine) -> None:
    machine.packages = {"onnxruntime": "1.22.0", "onnxruntime-gpu": "1.22.0"}
    assert warnings(diagnose()).startswith("onnxruntime and onnxruntime-gpu overwrite each other")


def test_the_old_name_of_onnxsim_is_warned_of(machine: Machine) -> None:
    machine.packages = {"onnx-simplifier": "0.4"}
    assert warnings(diagnose()) == "onnx-simplifier is the old name of onnxsim: pip uninstall onnx-simplifier"


@pytest.mark.parametrize(("version", "warned"), [((3, 10), True), ((3, 11), False), ((3, 12), False), ((3, 14), True)])
def test_an_untested_python_is_warned_of(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], warned: bool
) -> None:
    monkeypatch.setattr(doctor.sys, "version_info", (*version, 0))
    assert ("is not tested: use 3.11 or 3.12" in warnings(diagnose())) is warned


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a distribution ``onnxruntime`` whose module runs the given source."""

    def make(source: str | bytes) -> None:
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(doctor, "_gpus", tuple)
        monkeypatch.setattr(doctor, "_version", lambda name: "1.0" if name == "onnxruntime" else None)
        (tmp_path / "onnxruntime.py").write_bytes(source if isinstance(source, bytes) else source.encode())

    return make


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ImportError('libcuda.so.1: cannot open')", "ImportError: libcuda.so.1: cannot open"),
        ("raise OSError('first\\nsecond')", "second"),
        ("import sepvit_absent", "ModuleNotFoundError: No module named 'sepvit_absent'"),
        ("import os; os._exit(7)", "its process ended with status 7"),
        ("import sys; sys.exit('no licence')", "no licence"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            "importing it crashed: signal 11 (Segmentation fault)",
        ),
        (
            "import os; print('a warning', file=__import__('sys').stderr, flush=True); os.abort()",
            "importing it crashed: signal 6 (Aborted)",
        ),
        ("import os; os.write(2, b'caf\\xe9\\n'); os._exit(1)", "caf\ufffd"),
    ],
)
def test_an_import_that_fails_is_reported_and_not_fatal(planted: Any, source: str, reason: str) -> None:
    planted(source)
    ability = diagnose().abilities[CPU]
    assert ability.broken == {"onnxruntime": reason}
    assert ability.hint == "pip install 'sepvit-deploy[cpu]'"


def test_an_import_that_works_is_quiet(planted: Any) -> None:
    planted("import sys; print('noise'); print('noise', file=sys.stderr)")
    assert diagnose().abilities[CPU].ready


def test_an_import_that_hangs_is_reported(planted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    planted("import time; time.sleep(60)")
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 0.5)
    assert diagnose().abilities[CPU].broken == {"onnxruntime": "importing it took more than 0.5 s"}


def test_a_file_of_that_name_in_the_working_folder_is_not_imported(
    planted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted("")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "onnxruntime.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path / "work")
    assert diagnose().abilities[CPU].ready


def answers(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    def run(command: list[str], **_: Any) -> Any:
        assert command[0] == "/bin/nvidia-smi"
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("shutil.which", lambda _: "/bin/nvidia-smi")
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(doctor, "_version", lambda _: None)


@pytest.mark.parametrize(
    ("answer", "gpus"),
    [
        (subprocess.CompletedProcess([], 0, "NVIDIA H200, 580.65, 143771 MiB\nNVIDIA T4, 580.65, 15360 MiB\n\n"), 2),
        (subprocess.CompletedProcess([], 0, "\n"), 0),
        (subprocess.CompletedProcess([], 9, "NVIDIA-SMI has failed because it could not talk to the driver"), 0),
        (subprocess.TimeoutExpired("nvidia-smi", 60), 0),
        (OSError("exec format error"), 0),
    ],
)
def test_gpus_are_those_that_the_driver_names(monkeypatch: pytest.MonkeyPatch, answer: Any, gpus: int) -> None:
    answers(monkeypatch, answer)
    found = diagnose().gpus
    assert len(found) == gpus
    assert not found or found[0] == "NVIDIA H200, 580.65, 143771 MiB"


def test_a_machine_without_a_driver_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setattr(doctor, "_version", lambda _: None)
    assert diagnose().gpus == ()
