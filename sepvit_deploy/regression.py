"""One measurement against an older one, as a gate: latency, size, precision and accuracy of the same engines.

Each stretch of a run counts at the pace that the machine had around it, where both runs took the same pace.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist, median
from typing import Any, Literal

from sepvit_deploy.building import BUILDER_NAMES
from sepvit_deploy.confidence import ratio_interval
from sepvit_deploy.errors import InputError, RegressionFailed
from sepvit_deploy.latency import LEAST_STRETCHES, Accuracy, Engine, Point, Results
from sepvit_deploy.records import plain

REPEATABILITY = 0.02
"""Share by which two runs of one engine differ for reasons that neither run can see, such as where its memory came to
lie: the interval of each run alone is wider by it. `benchmarks/repeatability.py` measures whether it is enough."""
SIZE = 0.01
"""Share by which a file may grow."""
SHARE = 0.05
"""Share of the engine's time that may leave its precision, as that is measured."""
CLOCK = 0.02
"""Share by which the GPU's clock may differ unmentioned."""
SIGNIFICANCE = 0.05
Verdict = Literal["no difference", "slower", "faster", "not judged"]


@dataclass(frozen=True)
class LatencyChange:
    """One point in two runs.

    Attributes:
        ratio: new over old; low, high: its interval, `REPEATABILITY` included.
        paced: taken at equal pace of the machine.
        reason: of a point that is not judged.
    """

    engine: str
    batch: int
    old_ms: float
    new_ms: float
    ratio: float
    low: float
    high: float
    paced: bool
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Comparison:
    """Two runs, point by point.

    Attributes:
        regressions: a sentence for each thing that became worse; empty where nothing did.
        notes: what differs between the runs and may be the cause of a difference.
    """

    latencies: tuple[LatencyChange, ...]
    regressions: tuple[str, ...]
    notes: tuple[str, ...]

    def require_none(self) -> None:
        """Make the comparison a gate.

        Raises:
            RegressionFailed: something became worse; the first ones are named.
        """
        if self.regressions:
            more = f" and {len(self.regressions) - 3} more" if len(self.regressions) > 3 else ""
            raise RegressionFailed("; ".join(self.regressions[:3]) + more, expected="nothing worse than before")

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold."""
        return {**plain(self), "passed": not self.regressions}


def compare(old: Results, new: Results, *, fail_if_slower: float = 0.0) -> Comparison:
    """Hold a new measurement against an old one.

    Args:
        fail_if_slower: share by which an engine may be slower, even where that is resolved.

    Raises:
        InputError: the two are of different devices, boundaries or TensorRT majors, or have no engine in common.
    """
    _require_comparable(old, new)
    pairs = _pairs(old, new)
    paired = {before.name for before, _ in pairs}
    points = [
        (before, new.point(after_engine.name, before.batch))
        for before_engine, after_engine in pairs
        for before in old.curve(before_engine.name)
    ]
    found = []
    worse = [f"{e.name} is missing from the new results" for e in old.engines if e.name not in paired]
    confidence = 1 - SIGNIFICANCE / max(1, len(points))  # of all points together
    same_pace = old.pace is not None and old.pace == new.pace and _runtimes(old) == _runtimes(new)
    for before, after in points:
        if after is None:
            worse.append(f"{before.engine} at batch {before.batch} is missing from the new results")
            continue
        change = _change(before, after, confidence, same_pace=same_pace)
        found.append(change)
        where = f"{after.engine} at batch {after.batch}"
        if change.verdict == "not judged":
            worse.append(f"{where} cannot be judged: {change.reason}")
        elif change.verdict == "slower" and change.ratio > 1 + fail_if_slower:
            worse.append(f"{where} is {change.ratio - 1:.1%} slower ({change.low - 1:+.1%} to {change.high - 1:+.1%})")
    for before_engine, after_engine in pairs:
        worse += _engine_regressions(before_engine, after_engine)
    return Comparison(tuple(found), tuple(worse), tuple(_notes(old, new, pairs, same_pace=same_pace)))


def _require_comparable(old: Results, new: Results) -> None:
    for what, before, after in (
        ("devices", old.machine.device, new.machine.device),
        ("boundaries", old.boundary, new.boundary),
        ("numbers of cores", str(old.machine.cores), str(new.machine.cores)),
    ):
        if before != after:
            raise InputError(
                f"the two are of different {what}: {before} and {after}",
                expected="one",
                hint="measure both on one machine, with the same --boundary",
            )
    for builder in BUILDER_NAMES.values():
        majors = [_majors(results, builder) for results in (old, new)]
        if all(majors) and majors[0] != majors[1]:
            text = " and ".join("/".join(sorted(found)) for found in majors)
            raise InputError(
                f"the two are of different major versions of {builder}: {text}",
                expected="one",
                hint="their engines are other programs: measure both with one version",
            )


def _majors(results: Results, builder: str) -> set[str]:
    return {
        engine.builder_version.partition(".")[0]
        for engine in results.engines
        if engine.runtime == builder and engine.builder_version
    }


def _pairs(old: Results, new: Results) -> list[tuple[Engine, Engine]]:
    """Engines of one name; or the only one of each."""
    by_name = {engine.name: engine for engine in new.engines}
    found = [(engine, by_name[engine.name]) for engine in old.engines if engine.name in by_name]
    if not found and len(old.engines) == len(new.engines) == 1:
        found = [(old.engines[0], new.engines[0])]
    if not found:
        names = [", ".join(engine.name for engine in results.engines) or "none" for results in (old, new)]
        raise InputError(
            f"the two have no engine in common: {names[0]}; and {names[1]}",
            expected="engines of the same names, or one in each",
        )
    for engine, other in found:
        for what in ("kind", "runtime", "variant", "threads", "cuda_graph"):
            before, after = getattr(engine, what), getattr(other, what)
            if before != after:
                raise InputError(
                    f"{engine.name} and {other.name} differ in {what.replace('_', ' ')}: {before} and {after}",
                    expected="the same engine, measured in the same way",
                )
        if engine.image_size and other.image_size and engine.image_size != other.image_size:
            sizes = [f"{height}x{width}" for height, width in (engine.image_size, other.image_size)]
            raise InputError(
                f"{engine.name} and {other.name} differ in the size of the images: {sizes[0]} and {sizes[1]}",
                expected="the same engine, measured in the same way",
            )
    return found


def _runtimes(results: Results) -> dict[str, str]:
    """Versions that the pace depends on."""
    names = ("torch", "onnxruntime", "onnxruntime-gpu", "numpy", *BUILDER_NAMES.values())
    return {name: version for name, version in results.machine.versions.items() if name in names}


def _change(before: Point, after: Point, confidence: float, *, same_pace: bool) -> LatencyChange:
    paced = bool(same_pace and before.paced and after.paced)
    values = (after.paced, before.paced) if paced else (after.stretch_ms, before.stretch_ms)
    low, high = ratio_interval(*values, confidence=confidence)
    low, high = low / (1 + REPEATABILITY), high * (1 + REPEATABILITY)
    verdict: Verdict = "slower" if low > 1 else "faster" if high < 1 else "no difference"
    reason = ""
    for point, when in ((before, "the old"), (after, "the new")):
        if not point.settled:
            reason = f"{when} one never settled"
        elif not point.complete:
            reason = f"{when} one was cut short"
        elif len(point.stretches) < LEAST_STRETCHES or 2 * 0.5 ** len(point.stretches) > 1 - confidence:
            reason = f"{len(point.stretches)} stretches of {when} one are too few for so many points"
    return LatencyChange(
        engine=after.engine,
        batch=after.batch,
        old_ms=before.p50_ms,
        new_ms=after.p50_ms,
        ratio=median(values[0]) / median(values[1]),
        low=low,
        high=high,
        paced=paced,
        verdict="not judged" if reason else verdict,
        reason=reason,
    )


def _clock_mhz(results: Results, engine: str) -> float | None:
    """The GPU's clock while an engine ran, the median over its points."""
    seen = [point.conditions.gpu_sm_mhz.median for point in results.curve(engine) if point.conditions.gpu_sm_mhz]
    return median(seen) if seen else None


def _engine_regressions(old: Engine, new: Engine) -> Iterator[str]:
    if old.bytes and new.bytes and new.bytes > old.bytes * (1 + SIZE):
        yield f"{new.name} is {new.bytes / old.bytes - 1:.1%} larger ({new.bytes:,} bytes, {old.bytes:,} before)"
    if old.products and new.products:
        for lower in (("INT8",), ("INT8", "FP16")):
            before, after = (sum(e.products.get(name, 0) for name in lower) for e in (old, new))
            if after < before:
                yield f"{new.name} has {after} products in {' or '.join(lower)}, and had {before}"
                break
    precision = old.precision.upper()
    before_share, after_share = (e.precision_shares.get(precision) for e in (old, new))
    if old.precision_shares and new.precision_shares and (after_share or 0) < (before_share or 0) - SHARE:
        yield f"{new.name} spends {after_share or 0:.0%} of its time in {precision}, and spent {before_share or 0:.0%}"
    if old.accuracy and new.accuracy and _same_pictures(old.accuracy, new.accuracy):
        share = new.accuracy.top1 / new.accuracy.images - old.accuracy.top1 / old.accuracy.images
        p = _p_of_worse(old.accuracy, new.accuracy)
        if p < SIGNIFICANCE:
            yield f"{new.name} is right on {-100 * share:.2f} points fewer pictures (p = {p:.2g})"


def _same_pictures(old: Accuracy, new: Accuracy) -> bool:
    return (old.image_set_sha256, old.images) == (new.image_set_sha256, new.images)


def _p_of_worse(old: Accuracy, new: Accuracy) -> float:
    """How often chance alone makes the new share so much worse: one-sided test of two proportions, pooled."""
    pooled = (old.top1 + new.top1) / (old.images + new.images)
    variance = pooled * (1 - pooled) * (1 / old.images + 1 / new.images)
    difference = new.top1 / new.images - old.top1 / old.images
    if variance == 0:
        return 1.0
    return NormalDist().cdf(difference / math.sqrt(variance))


def _notes(old: Results, new: Results, pairs: Sequence[tuple[Engine, Engine]], *, same_pace: bool) -> Iterator[str]:
    versions = (old.machine.versions, new.machine.versions)
    for name in sorted(versions[0].keys() | versions[1].keys()):
        was, now = (found.get(name, "absent") for found in versions)
        if was != now:
            yield f"{name} was {was} and is {now}"
    if old.machine.driver != new.machine.driver:
        yield f"the driver was {old.machine.driver} and is {new.machine.driver}"
    if not same_pace:
        yield "the runs have no common pace: what the machine did to all programs is in the ratios"
    for before, after in pairs:
        if before.sha256 != after.sha256:
            yield f"{after.name} is another file than then"
        if before.accuracy and not (after.accuracy and _same_pictures(before.accuracy, after.accuracy)):
            yield f"the accuracy of {after.name} is not compared: it is not known on the same pictures"
        clocks = [_clock_mhz(results, engine.name) for results, engine in ((old, before), (new, after))]
        if clocks[0] and clocks[1] and abs(clocks[1] / clocks[0] - 1) > CLOCK:
            yield f"the GPU ran {after.name} at {clocks[1]:.0f} MHz, and then at {clocks[0]:.0f}"
    for label, results in (("old", old), ("new", new)):
        held = [p for p in results.points if any((p.conditions.throttled or {}).values())]
        if held:
            yield f"the GPU was held back in {len(held)} of the {label} points"
