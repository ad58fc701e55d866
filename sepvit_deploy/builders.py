"""Which builder of engines is installed, whether it will do, and how to load it.

What is installed is read from the packages' metadata: importing a builder takes seconds, and one that is half there
may end the process.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from sepvit_deploy.building import BUILDER_NAMES, Builder
from sepvit_deploy.errors import InputError, MissingDependency
from sepvit_deploy.optional import require

OLDEST = (10, 12)
"""The first TensorRT in which a strongly typed network is the rule."""
OLDEST_RTX = (1, 0)
_WHOLE: dict[Builder, tuple[str, ...]] = {
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
}
"""Distributions that install the module named as the builder, and depend on the rest."""
_BINDINGS: dict[Builder, tuple[str, ...]] = {
    builder: tuple(f"{name}-bindings" for name in names) for builder, names in _WHOLE.items()
}
_RTX_LIBS = ("tensorrt-rtx-cu13-libs", "tensorrt-rtx-cu12-libs")
_CARRIER, _CARRIER_MODULE = "onnxruntime-ep-nv-tensorrt-rtx-cu13", "onnxruntime_ep_nv_tensorrt_rtx"
"""A package for ONNX Runtime that holds TensorRT-RTX's libraries; the bindings alone come without."""
_RTX_LIBRARIES = ("libtensorrt_rtx.so.{}", "libtensorrt_onnxparser_rtx.so.{}")
"""In the order of loading: the parser looks for the builder's symbols."""
_loaded: dict[Builder, ModuleType] = {}


def available() -> dict[Builder, str]:
    """Builders whose packages are all installed, with their versions; nothing is imported."""
    found = {builder: _version(builder) for builder in BUILDER_NAMES if not _lacks(builder)}
    return {builder: version for builder, version in found.items() if version}


def whole(builder: Builder) -> str | None:
    """The distribution that installs a builder whole, of the names that NVIDIA gives it; None where none does."""
    return next((name for name in _WHOLE[builder] if _installed((name,))), None)


def choose(name: Literal["tensorrt", "rtx", "auto"], *, gpu: bool) -> tuple[Builder, str]:
    """The builder to use, and its version.

    Args:
        name: ``auto`` takes TensorRT on a machine with a GPU where any of it is installed, else TensorRT-RTX.
        gpu: whether the driver sees a GPU.

    Raises:
        MissingDependency: it is not installed, or only in part.
        InputError: it is too old, or needs a GPU.
    """
    if name == "tensorrt" and not gpu:  # TensorRT raises nonsense, or ends the process, where there is no driver
        raise InputError(
            "TensorRT builds on the GPU that the engine is for, and no NVIDIA GPU is seen here",
            expected="a machine with the GPU that the engine is for",
            hint="type: sepvit-deploy doctor; TensorRT-RTX builds without a GPU: --builder rtx",
        )
    partly = _version("tensorrt") is not None
    builder: Builder = ("tensorrt" if gpu and partly else "rtx") if name == "auto" else name
    version = _version(builder)
    if version is None:
        if name == "auto":
            found = "no builder of engines is installed" + (" that works without an NVIDIA GPU" if partly else "")
            hint = _install("tensorrt") + ", or 'sepvit-deploy[rtx]' for RTX GPUs" if gpu else _install("rtx")
            raise MissingDependency(found, hint=hint)
        raise MissingDependency(f"{BUILDER_NAMES[builder]} is not installed", hint=_install(builder))
    if lacking := _lacks(builder):
        raise MissingDependency(
            f"{BUILDER_NAMES[builder]} is installed in part: {lacking} is missing", hint=_install(builder)
        )
    _require_version(builder, version)
    if _installed(("polygraphy",)) is None:
        raise MissingDependency("polygraphy is not installed", hint=_install(builder))
    return builder, version


def loaded() -> tuple[Builder, ...]:
    """What this process has loaded; there is no way back from it."""
    return tuple(_loaded)


def load(builder: Builder) -> ModuleType:
    """Import a builder's module, once in a process; Polygraphy, where it is installed, is set to it.

    Raises:
        MissingDependency: it is not installed, or does not load.
        InputError: it is too old, or this process has loaded the other one.
    """
    if builder in _loaded:
        return _loaded[builder]
    if _loaded:
        other = next(iter(_loaded))
        raise InputError(
            f"this process works with {BUILDER_NAMES[other]} and is asked for {BUILDER_NAMES[builder]}",
            expected="one of them in a process",
            hint="type a command of its own for each plan",
        )
    if lacking := _lacks(builder):
        raise MissingDependency(f"{BUILDER_NAMES[builder]} lacks {lacking}", hint=_install(builder))
    module = "tensorrt" if builder == "tensorrt" else "tensorrt_rtx"
    if builder == "rtx" and _installed(_WHOLE["rtx"]) is None:
        _load_rtx_libraries()
        module = "tensorrt_rtx_bindings"
    trt = require(module, extra=builder)
    _require_version(builder, str(getattr(trt, "__version__", "0")))
    if builder == "rtx":
        sys.modules["tensorrt_rtx"] = trt  # Polygraphy imports it by this name
    if _installed(("polygraphy",)):
        polygraphy: Any = require("polygraphy.config", extra=builder)
        polygraphy.USE_TENSORRT_RTX = builder == "rtx"
    _loaded[builder] = trt
    return trt


def _version(builder: Builder) -> str | None:
    """Version of what is installed of a builder, if only in part."""
    return _installed(_WHOLE[builder]) or _installed(_BINDINGS[builder])


def _lacks(builder: Builder) -> str | None:
    """The package without which a builder cannot load; None where all are there, or where none is."""
    if _installed(_WHOLE[builder]) or not _installed(_BINDINGS[builder]):
        return None
    if builder == "tensorrt":
        return "tensorrt (its bindings are there)"
    return None if _installed((*_RTX_LIBS, _CARRIER)) else f"{_CARRIER} (its libraries)"


def _installed(names: Sequence[str]) -> str | None:
    """Version of the first of these distributions that is installed."""
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _require_version(builder: Builder, version: str) -> None:
    oldest = OLDEST if builder == "tensorrt" else OLDEST_RTX
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < oldest:
        raise InputError(
            f"{BUILDER_NAMES[builder]} {version} is installed",
            expected=f"{oldest[0]}.{oldest[1]} or newer, which builds in the precision that the file has",
            hint=_install(builder),
        )


def _install(builder: Builder) -> str:
    return f"type: pip install --upgrade 'sepvit-deploy[{builder}]'"


def _load_rtx_libraries() -> None:
    """Load the two libraries that the bindings look for, unless their own package of libraries does it."""
    if _installed(_RTX_LIBS):
        return
    version = ".".join((_installed(_BINDINGS["rtx"]) or "").split(".")[:3])
    spec = importlib.util.find_spec(_CARRIER_MODULE)
    folder = Path(next(iter(spec.submodule_search_locations), "")) if spec and spec.submodule_search_locations else None
    for name in _RTX_LIBRARIES:
        path = folder / name.format(version) if folder else None
        if path is None or not path.is_file():
            there = sorted(p.name for p in folder.glob(name.format("*"))) if folder else []
            raise MissingDependency(
                f"{_CARRIER} holds {', '.join(there) or 'no library of TensorRT-RTX'}",
                expected=f"{name.format(version)}, which the installed bindings need",
                hint=_install("rtx"),
            )
        try:
            ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise MissingDependency(f"{path.name} does not load ({error})", hint=_install("rtx")) from error
