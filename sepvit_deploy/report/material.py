"""What a report is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sepvit_deploy.comparison import Crossover, Ratio, Scaling, crossovers, ratios, scaling
from sepvit_deploy.latency import Results
from sepvit_deploy.report.rungs import Ladder
from sepvit_deploy.scales import ScaleTable


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

    @classmethod
    def of(cls, name: str, results: Results) -> Part:
        """A run with all that follows from it."""
        return cls(name, results, ratios(results), crossovers(results), scaling(results))


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
