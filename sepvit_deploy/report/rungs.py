"""The parity ladder as `check --json` wrote it, as far as the report shows it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tensor:
    """How far a tensor is from another rung's; `sqnr_db` is infinite where they are equal, NaN where one is broken."""

    name: str
    sqnr_db: float
    relative: float


@dataclass(frozen=True)
class Rung:
    """One form of the model, and the comparison that it is held to.

    Attributes:
        against: the rung it is held to; limit_db: the least signal to noise that it may have.
        sqnr_db: of its worst output.
        top1_agreement: None where there are no classes.
        tensors: every tensor that it shares with the first rung, in the order of computation.
    """

    name: str
    runner: str
    against: str
    limit_db: float
    sqnr_db: float
    relative: float
    top1_agreement: float | None
    passed: bool
    excused: bool
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True)
class Ladder:
    """A climb: the first rung, what it was climbed on, and the other rungs."""

    reference: str
    images: int
    source: str
    verdict: str
    rungs: tuple[Rung, ...]


def is_ladder(document: object) -> bool:
    """True of a JSON document of `check --json` on a plan or a spec."""
    return isinstance(document, dict) and {"reference", "images", "source", "steps", "verdict"} <= document.keys()


def ladder(document: Mapping[str, Any]) -> Ladder:
    """The record behind a document; ValueError where it contradicts itself."""
    try:
        return Ladder(
            reference=str(document["reference"]),
            images=int(document["images"]),
            source=str(document["source"]),
            verdict=str(document["verdict"]),
            rungs=tuple(map(_rung, document["steps"])),
        )
    except (KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"a ladder without what it needs: {error!r:.80}") from error


def _rung(step: Mapping[str, Any]) -> Rung:
    judged = step["before" if step["what"] == "runtime" else "first"]
    outputs = [tensor for tensor in map(_tensor, judged["tensors"]) if tensor.name in judged["outputs"]]
    if not outputs:
        raise ValueError(f"the rung {step['rung']!r:.40} has no outputs")
    broken = any(math.isnan(tensor.sqnr_db) for tensor in outputs)
    agreement = judged["top1_agreement"]
    limit = float(judged["tolerance"]["sqnr_db"])
    if not math.isfinite(limit):
        raise ValueError(f"the rung {step['rung']!r:.40} is held to nothing")
    return Rung(
        name=str(step["rung"]),
        runner=str(step["runner"]),
        against=str(judged["against"]),
        limit_db=limit,
        sqnr_db=math.nan if broken else min(tensor.sqnr_db for tensor in outputs),
        relative=math.nan if broken else max(tensor.relative for tensor in outputs),
        top1_agreement=None if agreement is None else float(agreement),
        passed=bool(step["passed"]),
        excused=bool(step["excused"]),
        tensors=tuple(map(_tensor, step["first"]["tensors"])),
    )


def _tensor(values: Mapping[str, Any]) -> Tensor:
    """JSON has no infinity: of two equal tensors the ratio is null, as it is of a broken one, which says so."""
    if not values["finite"]:
        return Tensor(str(values["name"]), math.nan, math.nan)
    sqnr_db = math.inf if values["sqnr_db"] is None else float(values["sqnr_db"])
    return Tensor(str(values["name"]), sqnr_db, float(values["relative"]))
