"""Engines of one run against each other: ratios, the batch from which a lower precision pays, time against batch.

Engines took turns in the same rounds, each turn at a known pace of the machine, so a ratio is taken round by round.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from sepvit_deploy.confidence import median_interval
from sepvit_deploy.latency import LEAST_ROUNDS, Engine, Point, Results

_ORDER = ("INT8", "FP16", "FP32")


@dataclass(frozen=True)
class Ratio:
    """Time of an engine over that of another in the same run, at one batch.

    Attributes:
        low, high: bootstrap 95 % interval of the median over rounds.
        resolved: the interval leaves 1 out, and both points settled.
    """

    engine: str
    baseline: str
    batch: int
    ratio: float
    low: float
    high: float
    resolved: bool


@dataclass(frozen=True)
class Crossover:
    """From which batch on the lower precision of one model pays.

    Attributes:
        from_batch: the first of the measured batches from which on it is resolved to be faster; None if at none.
    """

    faster: str
    slower: str
    faster_precision: str
    slower_precision: str
    from_batch: int | None
    sentence: str


@dataclass(frozen=True)
class Scaling:
    """Time against batch as a fixed cost and a cost per image, fitted to the least relative error.

    Attributes:
        marginal_ms: what an image more costs between neighbouring batches: (batch, next batch, ms per image).
    """

    engine: str
    fixed_ms: float
    per_image_ms: float
    marginal_ms: tuple[tuple[int, int, float], ...]
    sentence: str


def ratio_of(point: Point, baseline: Point) -> Ratio:
    """The ratio of two points of one run."""
    paced = point.paced and baseline.paced
    values, others = (point.paced, baseline.paced) if paced else (point.round_ms, baseline.round_ms)
    ratios = [value / other for value, other in zip(values, others, strict=False)]
    low, high = median_interval(ratios)
    sound = len(ratios) >= LEAST_ROUNDS and all(p.settled and p.complete for p in (point, baseline))
    resolved = sound and not low <= 1 <= high
    return Ratio(point.engine, baseline.engine, point.batch, median(ratios), low, high, resolved)


def ratios(results: Results) -> tuple[Ratio, ...]:
    """Every engine over the first one, at each batch that both have."""
    if not results.engines:
        return ()
    baseline, *others = results.engines
    return tuple(_ratios(results, [(other, baseline) for other in others]))


def _ratios(results: Results, pairs: Sequence[tuple[Engine, Engine]]) -> Iterator[Ratio]:
    for engine, baseline in pairs:
        for point in results.curve(engine.name):
            other = results.point(baseline.name, point.batch)
            if other is not None:
                yield ratio_of(point, other)


def crossovers(results: Results) -> tuple[Crossover, ...]:
    """For each model in two precisions or more: the batch from which on the lower one is faster than the next."""
    families: dict[tuple[object, ...], list[Engine]] = {}
    for engine in results.engines:
        if engine.variant and engine.kind in ("plan", "onnx"):
            key = (engine.variant, engine.kind, engine.runtime, engine.cuda_graph, engine.threads)
            families.setdefault(key, []).append(engine)
    found = []
    for family in families.values():
        there = [name for name in _ORDER if any(engine.precision.upper() == name for engine in family)]
        for low, high in pairwise(there):
            lower, higher = ([e for e in family if e.precision.upper() == name] for name in (low, high))
            for engine in lower:
                for other in higher:
                    labels = (_label(engine, lower), _label(other, higher))
                    found += _crossover(results, engine, other, *labels)
    return tuple(found)


def _label(engine: Engine, same: Sequence[Engine]) -> str:
    """The precision, and which engine where several have it."""
    return engine.precision.upper() + (f" ({engine.name})" if len(same) > 1 else "")


def _crossover(results: Results, lower: Engine, higher: Engine, low: str, high: str) -> list[Crossover]:
    by_batch = {ratio.batch: ratio for ratio in _ratios(results, [(lower, higher)])}
    if not by_batch:
        return []
    batches = sorted(by_batch)
    from_batch = None
    for batch in reversed(batches):
        if not (by_batch[batch].resolved and by_batch[batch].ratio < 1):
            break
        from_batch = batch
    if from_batch is None:
        sentence = f"{low} is not faster than {high} at batch {batches[-1]}: do not ship {low} for speed"
    elif from_batch == batches[0]:
        sentence = f"{low} is faster than {high} at every batch measured, from {batches[0]} to {batches[-1]}"
    else:
        sentence = f"{low} is faster than {high} from batch {from_batch} on: do not ship {low} below batch {from_batch}"
    precisions = (lower.precision.upper(), higher.precision.upper())
    return [Crossover(lower.name, higher.name, *precisions, from_batch, sentence)]


def scaling(results: Results) -> tuple[Scaling, ...]:
    """How the time of each engine grows with the batch; engines of one batch alone are left out."""
    found = []
    for engine in results.engines:
        curve = results.curve(engine.name)
        if len(curve) < 2:
            continue
        fixed, slope = _line([(point.batch, point.p50_ms) for point in curve])
        marginal = tuple((a.batch, b.batch, (b.p50_ms - a.p50_ms) / (b.batch - a.batch)) for a, b in pairwise(curve))
        sentence = f"{engine.name}: {fixed:.3g} ms a batch and {slope:.3g} ms an image"
        found.append(Scaling(engine.name, fixed, slope, marginal, sentence))
    return tuple(found)


def _line(pairs: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Intercept and slope of least relative error, neither below 0."""
    weights = [1 / ms**2 for _, ms in pairs]
    s0, s1, s2 = (sum(w * x**k for w, (x, _) in zip(weights, pairs, strict=True)) for k in range(3))
    t0, t1 = (sum(w * x**k * y for w, (x, y) in zip(weights, pairs, strict=True)) for k in range(2))
    determinant = s0 * s2 - s1**2
    intercept, slope = (t0 * s2 - t1 * s1) / determinant, (s0 * t1 - s1 * t0) / determinant
    if intercept < 0:
        return 0.0, t1 / s2
    return (t0 / s0, 0.0) if slope < 0 else (intercept, slope)
