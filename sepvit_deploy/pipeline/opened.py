"""An ONNX file with what its passport says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from sepvit_deploy import artifact
from sepvit_deploy.artifact import Passport
from sepvit_deploy.errors import GraphError, OptionError, PassportError
from sepvit_deploy.graph import load_graph
from sepvit_deploy.precision import require_fp32
from sepvit_deploy.spec import ModelSpec, Preprocessing

if TYPE_CHECKING:
    import onnx

Report = Callable[[str], None]
"""Told the name of each step as it begins."""


@dataclass(frozen=True)
class Opened:
    """A graph, its passport, and the model that the passport names; both None for a file from elsewhere."""

    path: Path
    graph: onnx.ModelProto
    passport: Passport | None
    spec: ModelSpec | None

    @property
    def untrained(self) -> bool:
        """True where the passport says random weights: accuracy means nothing then."""
        return self.passport is not None and self.passport.weights is not None and self.passport.weights.is_random

    @property
    def precision(self) -> str:
        """``fp32``, ``fp16`` or ``int8``, as the passport says; without one, ``fp32``.

        Raises:
            PassportError: the passport says something else.
        """
        found = self.passport.facts.get("precision", "fp32") if self.passport else "fp32"
        if found not in ("fp32", "fp16", "int8"):
            raise PassportError(
                f"{artifact.passport_path(self.path)} says precision {found!r}", expected="fp32, fp16 or int8"
            )
        return str(found)

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

    def require_fp32(self) -> None:
        """Refuse a file whose precision was decided already.

        Raises:
            GraphError: it holds FP16 or Q/DQ.
        """
        try:
            require_fp32(self.graph)
        except GraphError as error:
            raise GraphError(f"{self.path}: {error.found}", expected=error.expected, hint=error.hint) from error


def open_onnx(path: Path) -> Opened:
    """Read an ONNX file and its passport.

    Raises:
        GraphError: it is no ONNX file.
        PassportError: the passport is of another file, or names no model that there is.
    """
    graph = load_graph(path)
    passport = artifact.read_passport(path)
    try:
        spec = ModelSpec.from_dict(passport.model) if passport else None
    except OptionError as error:
        location = artifact.passport_path(path)
        raise PassportError(f"{location} is of no model: {error}", hint="export again, or remove it") from error
    return Opened(path, graph, passport, spec)
