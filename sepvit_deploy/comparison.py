"""Engines of one run against each other: ratios, the batch from which a lower precision pays, time against batch.

Engines took turns in the same rounds. Where the pace of the machine is known, they are compared at equal pace, and
elsewhere round by round.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from sepvit_deploy.confidence import median_interval, ratio_interval
from sepvit_deploy.latency import LEAST_STRETCHES, Engine, Point, Results
from sepvit_deploy.variants import ABLATIONS, ablation_row

_ORDER = ("INT8", "FP16", "FP32")
A_LINE = 0.1
"""Relative error beyond which time against batch is called no line."""


@dataclass(frozen=True)
class Ratio:
    """Time of an engine over that of another in the same run, at one batch.

    Attributes:
        low, high: bootstrap 95 % interval.
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
        worst: the largest relative error of the line.
        marginal_ms: what an image more costs between neighbouring batches: (batch, next batch, ms per image).
    """

    engine: str
    fixed_ms: float
    per_image_ms: float
    marginal_ms: tuple[tuple[int, int, float], ...]
    worst: float
    sentence: str


def ratio_of(point: Point, baseline: Point) -> Ratio:
    """The ratio of two points of one run."""
    if point.paced and baseline.paced:
        ratio = median(point.paced) / median(baseline.paced)
        low, high = ratio_interval(point.paced, baseline.paced)
    else:  # stretch by stretch: of each round, each has one
        ratios = [ms / other for ms, other in zip(point.stretch_ms, baseline.stretch_ms, strict=False)]
        ratio = median(ratios)
        low, high = median_interval(ratios)
    sound = all(p.settled and p.complete and len(p.stretches) >= LEAST_STRETCHES for p in (point, baseline))
    return Ratio(point.engine, baseline.engine, point.batch, ratio, low, high, sound and not low <= 1 <= high)


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


@dataclass(frozen=True)
class BesidePaper:
    """A point of SepViT-T or of an ablation of it, and what the paper reports of that.

    Attributes:
        over_t: time over that of SepViT-T in the same form and runtime; None where the run has none.
        paper_images_per_s: the paper's, see `variants.THROUGHPUT_ON`; paper_over_t: the same as a ratio of times.
    """

    engine: str
    batch: int
    images_per_s: float
    over_t: Ratio | None
    paper_images_per_s: int
    paper_over_t: float


def beside_paper(results: Results) -> tuple[BesidePaper, ...]:
    """The points of a run that the paper's ablations have a figure for; none where the run has no ablation."""
    if not any(engine.variant in ABLATIONS for engine in results.engines):
        return ()
    published = ablation_row("t")
    assert published is not None
    found = []
    for engine in results.engines:
        if (row := ablation_row(engine.variant)) is None:
            continue
        alike = (other for other in results.engines if other.variant == "t" and _form(other) == _form(engine))
        baseline = next(alike, None)
        for point in results.curve(engine.name):
            other = results.point(baseline.name, point.batch) if baseline and baseline != engine else None
            found.append(
                BesidePaper(
                    engine.name,
                    point.batch,
                    point.images_per_s,
                    ratio_of(point, other) if other else None,
                    row.images_per_s,
                    published.images_per_s / row.images_per_s,
                )
            )
    return tuple(found)


def _form(engine: Engine) -> tuple[object, ...]:
    """What two engines have in common that differ in their variant alone."""
    return engine.kind, engine.precision, engine.runtime, engine.cuda_graph, engine.threads


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
    unresolved = [batch for batch in batches if not by_batch[batch].resolved]
    slower = [batch for batch in batches if by_batch[batch].resolved and by_batch[batch].ratio > 1]
    from_batch = None
    for batch in reversed(batches):
        if batch in unresolved or batch in slower:
            break
        from_batch = batch
    if from_batch == batches[0]:
        sentence = f"{low} is faster than {high} at every batch measured, from {batches[0]} to {batches[-1]}"
    elif from_batch is not None:
        below = [batch for batch in batches if batch < from_batch]
        how = "slower" if below[-1] in slower else "not resolved to be faster"
        sentence = f"{low} is faster than {high} from batch {from_batch} on, and {how} at batch {below[-1]}"
        sentence += f": do not ship {low} below batch {from_batch}"
    elif batches[-1] in slower:
        sentence = f"{low} is slower than {high} at batch {batches[-1]}: do not ship {low} for speed"
    else:
        sentence = f"whether {low} is faster than {high} at batch {batches[-1]} is not resolved: measure longer"
    precisions = (lower.precision.upper(), higher.precision.upper())
    return [Crossover(lower.name, higher.name, *precisions, from_batch, sentence)]


def scaling(results: Results) -> tuple[Scaling, ...]:
    """How the time of each engine grows with the batch; engines of one batch alone are left out."""
    found = []
    for engine in results.engines:
        curve = [point for point in results.curve(engine.name) if point.settled and point.complete]
        if len(curve) < 2:
            continue
        fixed, slope = _line([(point.batch, point.p50_ms) for point in curve])
        worst = max(abs(fixed + slope * point.batch - point.p50_ms) / point.p50_ms for point in curve)
        marginal = tuple((a.batch, b.batch, (b.p50_ms - a.p50_ms) / (b.batch - a.batch)) for a, b in pairwise(curve))
        sentence = f"{engine.name}: {fixed:.3g} ms a batch and {slope:.3g} ms an image, to {worst:.0%}"
        if worst > A_LINE:
            low, high = marginal[0], marginal[-1]
            sentence = (
                f"{engine.name}: no line; an image more costs {low[2]:.3g} ms between batch {low[0]} and {low[1]}, "
                f"and {high[2]:.3g} ms between {high[0]} and {high[1]}"
            )
        found.append(Scaling(engine.name, fixed, slope, marginal, worst, sentence))
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
