"""What a report is made from: records that the pipeline fills, since a stage reads no other stage's work by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sepvit_deploy.latency import Results
from sepvit_deploy.report.rungs import Ladder
from sepvit_deploy.scales import ScaleTable


class Ratio(Protocol):
    """The time of an engine over that of another at one batch, with its 95 % interval."""

    @property
    def engine(self) -> str: ...
    @property
    def baseline(self) -> str: ...
    @property
    def batch(self) -> int: ...
    @property
    def ratio(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def resolved(self) -> bool:
        """False where the samples do not tell which of the two is faster."""


class Crossover(Protocol):
    """From which batch on one engine is the faster of two; None where it never is."""

    @property
    def faster(self) -> str: ...
    @property
    def slower(self) -> str: ...
    @property
    def from_batch(self) -> int | None: ...
    @property
    def sentence(self) -> str: ...


class Scaling(Protocol):
    """An engine's time as a fixed part and a part for each image."""

    @property
    def engine(self) -> str: ...
    @property
    def fixed_ms(self) -> float: ...
    @property
    def per_image_ms(self) -> float: ...
    @property
    def sentence(self) -> str: ...


@dataclass(frozen=True)
class Part:
    """One run of `bench`, and what was computed from it.

    Attributes:
        name: of its file; "" for a run that was not kept.
    """

    name: str
    results: Results
    ratios: Sequence[Ratio] = ()
    crossovers: Sequence[Crossover] = ()
    scalings: Sequence[Scaling] = ()


@dataclass(frozen=True)
class Material:
    """All that a page shows.

    Attributes:
        ladders: climbs, by the name of their file; scales: tables, likewise.
        command: that makes this page again.
    """

    parts: Sequence[Part] = ()
    ladders: Mapping[str, Ladder] = field(default_factory=dict)
    scales: Mapping[str, ScaleTable] = field(default_factory=dict)
    command: str = ""
