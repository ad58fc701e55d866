"""Which builder is chosen on invented machines, and what is said where none will do."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from sepvit_deploy import builders
from sepvit_deploy.errors import InputError, MissingDependency, SepvitError

POLYGRAPHY = {"polygraphy": "0.53.6"}
TENSORRT = {"tensorrt": "10.13.2.6", **POLYGRAPHY}
BINDINGS = {"tensorrt-rtx-cu13-bindings": "1.7.1.116"}
CARRIER = {"onnxruntime-ep-nv-tensorrt-rtx-cu13": "0.5.0"}
RTX = {**BINDINGS, **CARRIER, **POLYGRAPHY}
LIBRARIES = ["libtensorrt_rtx.so.1.7.1", "libtensorrt_onnxparser_rtx.so.1.7.1"]


class Machine:
    """Replaces the packages' metadata, the libraries, and what is imported."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.packages: dict[str, str] = {}
        self.folder = folder
        self.loaded: list[str] = []
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(importlib.metadata, "version", self._version)
        monkeypatch.setattr(importlib.util, "find_spec", self._find_spec)
        monkeypatch.setattr(ctypes, "CDLL", self._load)
        monkeypatch.setattr(builders, "_loaded", {})
        monkeypatch.setitem(sys.modules, "polygraphy.config", SimpleNamespace(USE_TENSORRT_RTX=None))

    def _version(self, name: str) -> str:
        if name not in self.packages:
            raise importlib.metadata.PackageNotFoundError(name)
        return self.packages[name]

    def _find_spec(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(submodule_search_locations=[str(self.folder)])

    def _load(self, name: str, mode: int = 0) -> None:
        if not Path(name).read_bytes():
            raise OSError(f"{name}: file too short")
        self.loaded.append(Path(name).name)

    def module(self, name: str, version: str) -> ModuleType:
        module = ModuleType(name)
        module.__version__ = version  # type: ignore[attr-defined]
        self._monkeypatch.setitem(sys.modules, name, module)
        return module

    def libraries(self, *names: str, content: bytes = b"ELF") -> None:
        for name in names:
            (self.folder / name).write_bytes(content)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    monkeypatch.delitem(sys.modules, "tensorrt_rtx", raising=False)
    return Machine(monkeypatch, tmp_path)


def refusal(kind: type[SepvitError], *arguments: object, gpu: bool = True) -> str:
    with pytest.raises(kind) as caught:
        builders.choose(*arguments, gpu=gpu)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize(
    ("packages", "found"),
    [
        ({}, {}),
        (TENSORRT, {"tensorrt": "10.13.2.6"}),
        ({"tensorrt-cu12": "10.12.0.36"}, {"tensorrt": "10.12.0.36"}),
        ({"tensorrt-cu13-bindings": "11.4.0"}, {}),
        (RTX, {"rtx": "1.7.1.116"}),
        ({**BINDINGS, "tensorrt-rtx-cu13-libs": "1.7.1.116"}, {"rtx": "1.7.1.116"}),
        ({"tensorrt-rtx": "1.2.0.54"}, {"rtx": "1.2.0.54"}),
        (BINDINGS, {}),
        (CARRIER, {}),
        (TENSORRT | RTX, {"tensorrt": "10.13.2.6", "rtx": "1.7.1.116"}),
    ],
)
def test_what_is_installed_whole_is_available(packages: dict[str, str], found: object, machine: Machine) -> None:
    machine.packages = packages
    assert builders.available() == found


@pytest.mark.parametrize(
    ("packages", "gpu", "expected"),
    [
        (TENSORRT | RTX, True, ("tensorrt", "10.13.2.6")),
        (TENSORRT | RTX, False, ("rtx", "1.7.1.116")),
        (RTX, True, ("rtx", "1.7.1.116")),
        (RTX, False, ("rtx", "1.7.1.116")),
    ],
)
def test_auto_takes_tensorrt_where_there_is_a_gpu(
    packages: dict[str, str], gpu: bool, expected: tuple[str, str], machine: Machine
) -> None:
    machine.packages = packages
    assert builders.choose("auto", gpu=gpu) == expected
    assert builders.choose(expected[0], gpu=gpu) == expected  # type: ignore[arg-type]


def test_tensorrt_needs_a_gpu(machine: Machine) -> None:
    machine.packages = TENSORRT | RTX
    assert refusal(InputError, "tensorrt", gpu=False) == (
        "TensorRT builds on the GPU that the engine is for, and no NVIDIA GPU is seen here; "
        "expected a machine with the GPU that the engine is for; "
        "type: sepvit-deploy doctor; TensorRT-RTX builds without a GPU: --builder rtx"
    )


@pytest.mark.parametrize(
    ("name", "packages", "gpu", "message"),
    [
        (
            "tensorrt",
            RTX,
            True,
            "TensorRT is not installed; type: pip install --upgrade 'sepvit-deploy[tensorrt]'",
        ),
        ("rtx", TENSORRT, True, "TensorRT-RTX is not installed; type: pip install --upgrade 'sepvit-deploy[rtx]'"),
        (
            "auto",
            {},
            True,
            "no builder of engines is installed; type: pip install --upgrade 'sepvit-deploy[tensorrt]', "
            "or 'sepvit-deploy[rtx]' for RTX GPUs",
        ),
        (
            "auto",
            {},
            False,
            "no builder of engines is installed; type: pip install --upgrade 'sepvit-deploy[rtx]'",
        ),
        (
            "auto",
            TENSORRT,
            False,
            "no builder of engines is installed that works without an NVIDIA GPU; "
            "type: pip install --upgrade 'sepvit-deploy[rtx]'",
        ),
        (
            "rtx",
            BINDINGS,
            False,
            "TensorRT-RTX is installed in part: onnxruntime-ep-nv-tensorrt-rtx-cu13 (its libraries) is missing; "
            "type: pip install --upgrade 'sepvit-deploy[rtx]'",
        ),
        (
            "auto",
            {"tensorrt-cu13-bindings": "11.4.0", **RTX},
            True,
            "TensorRT is installed in part: tensorrt (its bindings are there) is missing; "
            "type: pip install --upgrade 'sepvit-deploy[tensorrt]'",
        ),
        (
            "rtx",
            BINDINGS | CARRIER,
            False,
            "polygraphy is not installed; type: pip install --upgrade 'sepvit-deploy[rtx]'",
        ),
    ],
)
def test_what_is_missing_is_named_with_what_to_type(
    name: str, packages: dict[str, str], gpu: bool, message: str, machine: Machine
) -> None:
    machine.packages = packages
    assert refusal(MissingDependency, name, gpu=gpu) == message


@pytest.mark.parametrize("version", ["10.11.0.33", "8.6.1", "9", "unknown"])
def test_an_old_tensorrt_is_refused_before_it_is_imported(version: str, machine: Machine) -> None:
    machine.packages = TENSORRT | {"tensorrt": version}
    assert refusal(InputError, "auto") == (
        f"TensorRT {version} is installed; expected 10.12 or newer, which builds in the precision that the file has; "
        "type: pip install --upgrade 'sepvit-deploy[tensorrt]'"
    )
    assert "tensorrt" not in sys.modules


@pytest.mark.parametrize("version", ["10.12.0.36", "11.4.0.1"])
def test_both_major_versions_will_do(version: str, machine: Machine) -> None:
    machine.packages = TENSORRT | {"tensorrt": version}
    assert builders.choose("auto", gpu=True) == ("tensorrt", version)


def test_a_builder_is_loaded_once_and_polygraphy_set_to_it(machine: Machine) -> None:
    machine.packages = TENSORRT | RTX
    trt = machine.module("tensorrt", "10.13.2.6")
    assert builders.load("tensorrt") is builders.load("tensorrt") is trt
    assert sys.modules["polygraphy.config"].USE_TENSORRT_RTX is False
    with pytest.raises(InputError) as caught:
        builders.load("rtx")
    assert str(caught.value) == (
        "this process works with TensorRT and is asked for TensorRT-RTX; expected one of them in a process; "
        "type a command of its own for each plan"
    )


def test_the_bindings_of_rtx_get_their_libraries_first(machine: Machine) -> None:
    machine.packages = RTX
    machine.libraries(*LIBRARIES)
    trt = machine.module("tensorrt_rtx_bindings", "1.7.1.116")
    assert builders.load("rtx") is trt
    assert machine.loaded == LIBRARIES
    assert sys.modules["tensorrt_rtx"] is trt
    assert sys.modules["polygraphy.config"].USE_TENSORRT_RTX is True


def test_rtx_as_nvidia_packs_it_needs_no_help(machine: Machine) -> None:
    machine.packages = {"tensorrt-rtx": "1.7.1.116"}
    trt = machine.module("tensorrt_rtx", "1.7.1.116")
    assert builders.load("rtx") is trt
    assert machine.loaded == []


def test_a_runner_needs_no_polygraphy(machine: Machine) -> None:
    machine.packages = {"tensorrt": "10.13.2.6"}
    machine.module("tensorrt", "10.13.2.6")
    builders.load("tensorrt")
    assert sys.modules["polygraphy.config"].USE_TENSORRT_RTX is None


def test_the_module_is_asked_for_its_version_too(machine: Machine) -> None:
    machine.packages = TENSORRT
    machine.module("tensorrt", "8.6.1")
    with pytest.raises(InputError, match=r"^TensorRT 8\.6\.1 is installed; expected 10\.12 or newer"):
        builders.load("tensorrt")


def test_libraries_of_another_version_are_named(machine: Machine) -> None:
    machine.packages = RTX
    machine.libraries("libtensorrt_rtx.so.1.8.0")
    with pytest.raises(MissingDependency) as caught:
        builders.load("rtx")
    assert str(caught.value) == (
        "onnxruntime-ep-nv-tensorrt-rtx-cu13 holds libtensorrt_rtx.so.1.8.0; expected libtensorrt_rtx.so.1.7.1, "
        "which the installed bindings need; type: pip install --upgrade 'sepvit-deploy[rtx]'"
    )


def test_a_damaged_library_is_named(machine: Machine) -> None:
    machine.packages = RTX
    machine.libraries(*LIBRARIES, content=b"")
    with pytest.raises(MissingDependency, match=r"^libtensorrt_rtx\.so\.1\.7\.1 does not load \(.*file too short\)"):
        builders.load("rtx")


def test_a_builder_that_is_not_there_does_not_load(machine: Machine) -> None:
    machine.packages = BINDINGS
    with pytest.raises(MissingDependency, match=r"^TensorRT-RTX lacks onnxruntime-ep-nv-tensorrt-rtx-cu13 \(its lib"):
        builders.load("rtx")
