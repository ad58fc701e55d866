"""A file with what its passport says of it, and how it is run: what every form of a model shares, and ONNX files."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from sepvit_deploy import artifact
from sepvit_deploy.artifact import Passport
from sepvit_deploy.building import Precision
from sepvit_deploy.errors import GraphError, OptionError, PassportError
from sepvit_deploy.graph import load_graph
from sepvit_deploy.precision import require_fp32
from sepvit_deploy.spec import ModelSpec, Preprocessing

if TYPE_CHECKING:
    import onnx

    from sepvit_deploy.model.taps import Tap
    from sepvit_deploy.runners.base import Runner

Report = Callable[[str], None]
"""Told the name of each step as it begins."""
Progress = Callable[[float], None]
"""Told the share done of the step under way, 0 to 1."""
Warn = Callable[[str], None]
"""Told what a user should know and is no error."""


@dataclass(frozen=True)
class Running:
    """How a model is run.

    Attributes:
        provider: ONNX Runtime's for an ONNX file, the device for torch; a plan runs where it was built for.
        threads: of one operator on a CPU; None for the runtime's choice.
        fused: ONNX Runtime's own INT8 kernels, which saturate on some processors: for timing alone.
        cuda: the package that a plan's runner reaches the device through.
        cuda_graph: replay a plan's launches from a CUDA graph.
        trust: load a plan without a passport that proves it.
    """

    provider: Literal["cpu", "cuda", "tensorrt"] = "cpu"
    threads: int | None = None
    fused: bool = False
    cuda: Literal["bindings", "pycuda"] = "bindings"
    cuda_graph: bool = False
    trust: bool = False


@dataclass(frozen=True)
class Opened(ABC):
    """A model to run, its passport, and the model that the passport names; both None for a file from elsewhere.

    Attributes:
        path: the file; for a model in torch its address, ``torch:t``.
    """

    path: Path
    passport: Passport | None
    spec: ModelSpec | None

    @property
    @abstractmethod
    def output_names(self) -> tuple[str, ...]:
        """What it gives."""

    @abstractmethod
    def running(self, how: Running, *, name: str | None = None, taps: bool = False) -> AbstractContextManager[Runner]:
        """A runner, which gives back what it holds when the context ends.

        Args:
            name: what reports call it; the file's name by default.
            taps: also return the inner tensors that have names, where the form keeps them.
        """

    @property
    def untrained(self) -> bool:
        """True where the passport says random weights: accuracy means nothing then."""
        return self.passport is not None and self.passport.weights is not None and self.passport.weights.is_random

    @property
    def precision(self) -> Precision:
        """``fp32``, ``fp16`` or ``int8``, as the passport says; without one, ``fp32``.

        Raises:
            PassportError: the passport says something else.
        """
        found: Precision = self.passport.facts.get("precision", "fp32") if self.passport else "fp32"
        if found not in get_args(Precision):
            raise PassportError(
                f"{artifact.passport_path(self.path)} says precision {found!r}", expected="fp32, fp16 or int8"
            )
        return found

    @property
    def keep(self) -> tuple[str, ...]:
        """Patterns of the layers that were left out of its precision.

        Raises:
            PassportError: the passport holds something else.
        """
        found = self.passport.facts.get("keep", []) if self.passport else []
        if not isinstance(found, list) or not all(isinstance(pattern, str) for pattern in found):
            raise PassportError(f"{artifact.passport_path(self.path)} has keep {found!r:.60}", expected="patterns")
        return tuple(found)

    @property
    def rest(self) -> Literal["fp16", "fp32"] | None:
        """Of an INT8 file, the precision around INT8; None where the passport does not say.

        Raises:
            PassportError: the passport holds something else.
        """
        found = self.passport.facts.get("rest") if self.passport else None
        if found is None or found == "fp16" or found == "fp32":
            return found
        raise PassportError(f"{artifact.passport_path(self.path)} has rest {found!r:.60}", expected="fp16 or fp32")

    @cached_property
    def sha256(self) -> str:
        """Digest of the file."""
        return self.passport.sha256 if self.passport else artifact.sha256(self.path)

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How pictures become its inputs; None without a passport.

        Raises:
            PassportError: the passport holds something else.
        """
        if self.passport is None or self.spec is None:
            return None
        try:
            found = Preprocessing.from_dict(self.passport.facts.get("preprocessing", self.spec.preprocessing.to_dict()))
            self.spec.require_ratio(found)
        except OptionError as error:
            location = artifact.passport_path(self.path)
            raise PassportError(f"{location}: {error}", hint="export again") from error
        if found.size != self.spec.size:
            raise PassportError(
                f"{artifact.passport_path(self.path)} prepares pictures of {found.size}", expected=f"{self.spec.size}"
            )
        return found

    def require_passport(self) -> tuple[Passport, ModelSpec, Preprocessing]:
        """What a stage needs that goes on from this file.

        Raises:
            GraphError: the file has no passport.
        """
        preprocessing = self.preprocessing
        if self.passport is None or self.spec is None or preprocessing is None:
            raise GraphError(
                f"{self.path} has no passport, so its model, weights and preprocessing are unknown",
                expected=f"{artifact.passport_path(self.path).name} beside it",
                hint="type: sepvit-deploy export --variant t",
            )
        return self.passport, self.spec, preprocessing


@dataclass(frozen=True)
class OpenedOnnx(Opened):
    """An ONNX file."""

    graph: onnx.ModelProto

    @property
    def output_names(self) -> tuple[str, ...]:
        """See `Opened.output_names`."""
        return tuple(value.name for value in self.graph.graph.output)

    def require_fp32(self) -> None:
        """Refuse a file whose precision was decided already.

        Raises:
            GraphError: it holds FP16 or Q/DQ.
        """
        try:
            require_fp32(self.graph)
        except GraphError as error:
            raise GraphError(f"{self.path}: {error.found}", expected=error.expected, hint=error.hint) from error

    @contextlib.contextmanager
    def running(self, how: Running, *, name: str | None = None, taps: bool = False) -> Iterator[Runner]:
        """See `Opened.running`."""
        from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner

        yield OnnxRuntimeRunner(
            self.graph,
            name=name or self.path.name,
            provider=how.provider,
            threads=how.threads,
            fused=how.fused,
            taps=present_taps(self.graph, self.spec) if taps and self.spec else (),
        )


def open_onnx(path: Path) -> OpenedOnnx:
    """Read an ONNX file and its passport.

    Raises:
        GraphError: it is no ONNX file.
        PassportError: the passport is of another file, or names no model that there is.
    """
    graph = load_graph(path)
    passport = artifact.read_passport(path)
    return OpenedOnnx(path, passport, model_of(path, passport), graph)


def present_taps(graph: onnx.ModelProto, spec: ModelSpec) -> list[Tap]:
    """The taps that a graph still has."""
    from sepvit_deploy.model.taps import taps

    present = {output for node in graph.graph.node for output in node.output}
    return [tap for tap in taps(spec, deployed=True) if tap.name in present]


def model_of(path: Path, passport: Passport | None) -> ModelSpec | None:
    """The model that a passport names.

    Raises:
        PassportError: there is no such model.
    """
    try:
        return ModelSpec.from_dict(passport.model) if passport else None
    except OptionError as error:
        location = artifact.passport_path(path)
        raise PassportError(f"{location} is of no model: {error}", hint="export again, or remove it") from error
