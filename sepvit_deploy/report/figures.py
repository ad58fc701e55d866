"""The figures of each point, computed once: quantiles, interval of the median, throughput, share of the limit."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sepvit_deploy.confidence import median_interval
from sepvit_deploy.latency import LEAST_STRETCHES, Engine, Point, Results


@dataclass(frozen=True)
class Figures:
    """A point in numbers; times in milliseconds of a whole batch.

    Attributes:
        engine: its place among the engines, from 0.
        low, high: the 95 % interval of the median over stretches; None from fewer than `LEAST_STRETCHES`.
        limit: the least time that the device allows; None where it is not known.
    """

    engine: int
    name: str
    batch: int
    p50: float
    p90: float
    p95: float
    p99: float
    least: float
    spread: float
    low: float | None
    high: float | None
    limit: float | None
    samples: int
    settled: bool
    complete: bool

    @property
    def rate(self) -> float:
        """Images a second."""
        return 1000 * self.batch / self.p50

    @property
    def share(self) -> float | None:
        """Of what the device allows, 0 to 1."""
        return None if self.limit is None else self.limit / self.p50


def figures(results: Results) -> tuple[Figures, ...]:
    """Of every point, by engine in their order, then by batch."""
    return tuple(
        _figures(results, index, engine, point)
        for index, engine in enumerate(results.engines)
        for point in results.curve(engine.name)
    )


def _figures(results: Results, index: int, engine: Engine, point: Point) -> Figures:
    low = high = None
    limit = results.limit_ms(point)
    if len(point.stretches) >= LEAST_STRETCHES:
        low, high = median_interval(point.stretch_ms)
    return Figures(
        engine=index,
        name=engine.name,
        batch=point.batch,
        p50=point.p50_ms,
        p90=point.quantile_ms(0.9),
        p95=point.quantile_ms(0.95),
        p99=point.quantile_ms(0.99),
        least=point.quantile_ms(0.0),
        spread=point.spread,
        low=low,
        high=high,
        limit=limit if limit is not None and math.isfinite(limit) else None,
        samples=len(point.samples_ms),
        settled=point.settled,
        complete=point.complete,
    )


def batches(points: tuple[Figures, ...]) -> list[int]:
    """Every batch that was measured, ascending."""
    return sorted({point.batch for point in points})


def best(points: tuple[Figures, ...], batch: int) -> tuple[Figures, Figures | None] | None:
    """The engine with the least p50 at a batch, and the next whose interval meets its own: the two are level."""
    ranked = sorted((point for point in points if point.batch == batch), key=lambda point: point.p50)
    if not ranked:
        return None
    first = ranked[0]
    level = next((other for other in ranked[1:] if _meet(first, other)), None)
    return first, level


def _meet(first: Figures, other: Figures) -> bool:
    if first.high is None or other.low is None:
        return True  # nothing is known of how far either may be off
    return other.low <= first.high
