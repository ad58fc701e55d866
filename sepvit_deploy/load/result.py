"""What a load found, as a record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

from sepvit_deploy.confidence import median_interval, wilson
from sepvit_deploy.errors import LoadFailed

SHARES = (0.5, 0.9, 0.95, 0.99)
BUSY = 0.8
"""Of one core: a generator that is busier measures itself."""


@dataclass(frozen=True)
class Quantile:
    """A latency that a share of the answers is within, and the 95 % interval of it; None where too few were seen."""

    share: float
    ms: float
    low_ms: float
    high_ms: float | None


@dataclass(frozen=True)
class Generator:
    """What the side that sends did, and could have done.

    Attributes:
        busy: share of one core, 0 to 1, that sending and checking took.
        limit_per_s: requests a second at which that would be all of it.
        lag_p99_ms: of an open loop, how long after its time a request was sent; None for a closed one.
        held: requests that waited because ``in_flight`` others were on their way; unsent: those that never went.
        in_flight: the most at once.
    """

    busy: float
    limit_per_s: float | None
    lag_p99_ms: float | None
    held: int
    unsent: int
    in_flight: int


@dataclass(frozen=True)
class LoadResult:
    """A server under a load; the warm-up is in no figure.

    Attributes:
        sends: what a request holds: ``pictures`` or ``tensors``.
        clients: of a closed loop; rate_per_s: of an open one; the other is None.
        batch: images of a request.
        seconds: measured.
        sent: answered + refused + late + the failed.
        answered: rightly.
        refused: by 503 or 429, at once; late: by 504, or 503 where the server says that a deadline passed.
        failed: answers that were lost or wrong, by kind; examples: what was said of each kind first.
        warm_up_failed: the same of the warm-up.
        requests_per_s: right answers that came within the time.
        latencies: of right answers; in an open loop from the moment that a request was due.
        max_ms: of them; None where there were none, as of ``mean_ms``.
        mean_batch: images that the server computed at once, on average; None where it keeps no count.
        within_deadline: share of what was not refused that was answered within it, with its 95 % interval; None without
            one.
        told_apart: False where two of the requests have answers so alike that mixing them up would not show.
        interrupted: by Ctrl-C, before the time was over.
    """

    url: str
    model: str
    sends: str
    clients: int | None
    rate_per_s: float | None
    batch: int
    deadline_ms: float | None
    seconds: float
    sent: int
    answered: int
    refused: int
    late: int
    failed: dict[str, int]
    examples: dict[str, str]
    warm_up_failed: dict[str, int]
    requests_per_s: float
    latencies: tuple[Quantile, ...]
    mean_ms: float | None
    max_ms: float | None
    mean_batch: float | None
    within_deadline: tuple[float, float, float] | None
    told_apart: bool
    generator: Generator
    interrupted: bool

    @property
    def images_per_s(self) -> float:
        """Right answers a second, in images."""
        return self.requests_per_s * self.batch

    @property
    def lost(self) -> int:
        """Requests whose answer was lost or wrong, in the warm-up, too."""
        return sum(self.failed.values()) + sum(self.warm_up_failed.values())

    def quantile_ms(self, share: float) -> float | None:
        """One of the latencies; None where nothing was answered."""
        return next((found.ms for found in self.latencies if found.share == share), None)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes the figures doubtful."""
        found = []
        generator = self.generator
        if generator.held:
            waited = f"{generator.held:,} requests waited to be sent, and {generator.unsent:,} never were"
            found.append(f"{generator.in_flight:,} requests were in flight, the most that may be: {waited}")
        if generator.busy > BUSY:
            found.append(
                f"the side that sends was busy for {generator.busy:.0%} of the time: latencies are partly its own"
            )
        if not self.told_apart:
            found.append(
                "two of the requests have answers so alike that mixing them up would not show: other pictures would"
            )
        if self.warm_up_failed:
            found.append("answers were lost or wrong in the warm-up, which is in no figure")
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold, with the latencies also as ``p50_ms`` and so on."""
        figures = {f"p{100 * share:g}_ms": self.quantile_ms(share) for share in SHARES}
        return asdict(self) | {
            "images_per_s": self.images_per_s,
            "lost": self.lost,
            "warnings": list(self.warnings),
            **figures,
        }

    def require_right(self) -> None:
        """Refuse a server that lost an answer, or gave a wrong one, and a load that could not be sent.

        Raises:
            LoadFailed: it did.
        """
        if self.lost:
            kinds = {**self.warm_up_failed, **self.failed}
            listed = "; ".join(f"{kind}{_quoted(self.examples.get(kind))}" for kind in kinds)
            found = f"{self.model} lost or got wrong {self.lost:,} of {self.sent:,} answers: {listed}"
            raise LoadFailed(found, expected="every request answered rightly, or refused")
        if self.generator.unsent:
            found = f"{self.generator.unsent:,} requests were never sent: {self.generator.in_flight:,} were in flight"
            raise LoadFailed(found, expected=f"a server that carries {self.rate_per_s:g} requests/s")
        if not self.answered and not self.interrupted:
            raise LoadFailed(f"{self.model} answered none of {self.sent:,} requests", expected="some at the least")


def quantiles(latencies_ms: Sequence[float]) -> tuple[Quantile, ...]:
    """The latencies at `SHARES`; () where there are none."""
    import numpy as np

    if not len(latencies_ms):
        return ()
    ordered = np.sort(np.asarray(latencies_ms, dtype=np.float64))
    found = []
    for share in SHARES:
        low: float
        high: float | None
        low, high = median_interval(latencies_ms) if share == 0.5 else _interval(ordered, share)
        found.append(Quantile(share, float(np.quantile(ordered, share)), low, high))
    return tuple(found)


def within(latencies_ms: Sequence[float], deadline_ms: float, of: int) -> tuple[float, float, float]:
    """The share of ``of`` requests that were answered in time, and its interval."""
    count = sum(ms <= deadline_ms for ms in latencies_ms)
    return (count / of if of else 0.0, *wilson(count, of))


def _interval(ordered: Any, share: float) -> tuple[float, float | None]:
    """Where the true quantile lies in 95 % of all samples.

    How many of n samples lie below the true quantile is binomial, so the samples at the ranks that bound it in 95 % of
    all cases bound the quantile; high up, n samples may not reach beyond it.
    """
    n = len(ordered)
    half = NormalDist().inv_cdf(0.975) * math.sqrt(n * share * (1 - share))
    low, high = math.floor(n * share - half) - 1, math.ceil(n * share + half)  # places, counted from 0
    return float(ordered[max(low, 0)]), float(ordered[high]) if high < n else None


def _quoted(words: str | None) -> str:
    return f" ({words})" if words else ""
