"""What each figure shows, in a sentence computed from its data: its caption, and the page's findings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from sepvit_deploy.comparison import Ratio
from sepvit_deploy.confidence import wilson
from sepvit_deploy.latency import Accuracy, Engine, Results
from sepvit_deploy.report.figures import Figures, batches, best
from sepvit_deploy.report.material import Part
from sepvit_deploy.report.rungs import Ladder
from sepvit_deploy.report.words import SPACE, counted, interval, listed, ms, number, percent, rate, top1
from sepvit_deploy.scales import ScaleTable


def point(found: Figures) -> str:
    """A point, as it is announced and shown."""
    text = f"{found.name}, batch {found.batch}: p50 {ms(found.p50)}"
    if found.low is not None:
        text += f" (95 %: {interval(found.low, found.high)})"
    text += f", p99 {ms(found.p99)}, {rate(found.rate)}"
    return text + ("" if found.settled else "; its warm-up never settled") + ("" if found.complete else "; cut off")


def latency(points: tuple[Figures, ...]) -> str:
    """Who takes least at the smallest and at the largest batch."""
    sizes = batches(points)
    return " ".join(filter(None, (_least(points, batch) for batch in dict.fromkeys((sizes[0], sizes[-1])))))


def _least(points: tuple[Figures, ...], batch: int) -> str:
    found = best(points, batch)
    if found is None:
        return ""
    first, level = found
    if sum(other.batch == batch for other in points) == 1:
        return f"At batch {batch} {first.name} takes {ms(first.p50)}."
    if level:
        times = f"{ms(first.p50)} and {ms(level.p50)}, which the samples do not tell apart"
        return f"At batch {batch} {first.name} and {level.name} are level: {times}."
    return f"At batch {batch} {first.name} takes least: {ms(first.p50)}."


def throughput(points: tuple[Figures, ...]) -> str:
    """The highest one, and the best of the next engine."""
    tops = _tops(points)
    first = tops[0]
    text = f"The most is {rate(first.rate)}, by {first.name} at batch {first.batch}"
    if len(tops) > 1:
        text += f"; {tops[1].name} comes next with {number(tops[1].rate)} at batch {tops[1].batch}"
    return text + "."


def _tops(points: tuple[Figures, ...]) -> list[Figures]:
    """Of each engine the point of its highest throughput, the highest first."""
    top: dict[str, Figures] = {}
    for found in points:
        if found.name not in top or found.rate > top[found.name].rate:
            top[found.name] = found
    return sorted(top.values(), key=lambda found: -found.rate)


def ratio(found: Ratio) -> str:
    """A ratio, as it is announced and shown."""
    resolved = "" if found.resolved else "; not resolved: the samples do not tell which is faster"
    bounds = interval(found.low, found.high)
    return (
        f"{found.engine} over {found.baseline}, batch {found.batch}: {number(found.ratio)} (95 %: {bounds}){resolved}"
    )


def ratios(found: Sequence[Ratio]) -> str:
    """How many are resolved, and the largest gain."""
    resolved = [item for item in found if item.resolved]
    verb = "is" if len(resolved) == 1 or len(found) == 1 else "are"
    text = f"{len(resolved)} of {counted(len(found), 'comparison')} {verb} resolved"
    gains = sorted((item for item in resolved if item.ratio < 1), key=lambda item: item.ratio)
    if gains:
        best_one = gains[0]
        text += (
            f"; the largest gain is {best_one.engine}'s at batch {best_one.batch}: "
            f"{number(best_one.ratio)} of {best_one.baseline}'s time ({interval(best_one.low, best_one.high)})"
        )
    return text + "."


def limit(points: Sequence[Figures]) -> str:
    """Which point comes nearest to what the device allows, and which is the farthest."""
    ranked = sorted((found for found in points if found.share is not None), key=lambda found: found.share or 0.0)
    low, high = ranked[0], ranked[-1]
    text = f"{high.name} at batch {high.batch} comes nearest to what the device allows: {percent(high.share or 0)}"
    if low is not high:
        text += f"; {low.name} at batch {low.batch} is farthest from it: {percent(low.share or 0)}"
    return text + "."


def blocks(engines: Sequence[Engine]) -> str:
    """The block that takes the most of each engine's time."""
    parts = []
    for engine in engines:
        name, most = max(engine.blocks_ms.items(), key=lambda item: item[1])
        share = most / (sum(engine.blocks_ms.values()) or 1.0)
        parts.append(f"{engine.name} spends most in {name}, {ms(most)} or {percent(share)} of what was timed")
    return "; ".join(parts) + "."


def mix(engines: Sequence[Engine], shares: Mapping[str, Mapping[str, float]], of: str) -> str:
    """The leading precision of each engine."""
    parts = []
    for engine in engines:
        name, most = max(shares[engine.name].items(), key=lambda item: item[1])
        verb = "spends" if of == "time" else "has"
        parts.append(f"{engine.name} {verb} {percent(most)} of its {of} in {name}")
    return "; ".join(parts) + "."


def accuracy(engines: Sequence[tuple[Engine, Accuracy, Figures]]) -> str:
    """Which engine is quickest, and which is right most often."""
    quick = min(engines, key=lambda item: item[2].p50)
    right = max(engines, key=lambda item: (item[1].top1 / item[1].images, -item[2].p50))
    time = f"{ms(quick[2].p50)} a batch of {quick[2].batch}"
    text = f"{quick[0].name} takes least, {time}, and is right on {_right(quick[1])}"
    if right is quick:
        return text + (": none is right more often." if len(engines) > 1 else ".")
    return f"{text}; {right[0].name} is right most often, on {_right(right[1])}, in {ms(right[2].p50)}."


def _right(found: Accuracy) -> str:
    low, high = wilson(found.top1, found.images)
    return f"{top1(found.top1 / found.images)} (95 %: {100 * low:.1f} to {100 * high:.1f})"


def ladder(found: Ladder) -> str:
    """The verdict, and the rung that it falls on."""
    wrong = next((rung for rung in found.rungs if not rung.passed), None)
    what = f"On {counted(found.images, 'image')} ({found.source})"
    if wrong is None:
        return f"{what} every form of the model agrees with what it is held to."
    rung = f"{wrong.name} ({wrong.runner}) has {decibels(wrong.sqnr_db)} against {wrong.against}"
    return f"{what} the verdict is: {found.verdict}. {rung}, where {number(wrong.limit_db)} dB are asked."


def depth(found: Ladder) -> str:
    """Where the rung that ends lowest loses most."""
    ends = [(rung, [t for t in rung.tensors if math.isfinite(t.sqnr_db)]) for rung in found.rungs]
    ends = [(rung, tensors) for rung, tensors in ends if len(tensors) > 1]
    if not ends:
        return "No two tensors differ by what can be drawn."
    rung, tensors = min(ends, key=lambda item: item[1][-1].sqnr_db)
    before, after = max(pairwise(tensors), key=lambda pair: pair[0].sqnr_db - pair[1].sqnr_db)
    fall = before.sqnr_db - after.sqnr_db
    text = f"{rung.name} ends lowest, {decibels(tensors[-1].sqnr_db)} at {tensors[-1].name}"
    return f"{text}; it falls most, by {fall:.1f}{SPACE}dB, from {before.name} to {after.name}."


def decibels(value: float) -> str:
    """A signal to noise ratio: infinite where two are equal, not a number where one is broken."""
    if math.isnan(value):
        return "numbers that are not finite"
    return "no difference" if math.isinf(value) else f"{value:.1f}{SPACE}dB"


def calibration(table: ScaleTable) -> str:
    """How much is clipped, and where most."""
    kept = {name: r.threshold / max(-r.minimum, r.maximum) for name, r in table.tensors.items()}
    name, least = min(kept.items(), key=lambda item: item[1])
    clipped = sum(share < 0.999 for share in kept.values())
    text = f"{clipped} of {counted(len(kept), 'tensor')} are clipped"
    if clipped:
        text += f", most of all {name}, whose grid ends at {percent(least)} of its largest |x|"
    images = f"{table.images.samples:,} images of {table.images.name}"
    return f"{text}. The method is {table.method}, on {images}."


def conditions(results: Results) -> str:
    """Whether anything held the machine back."""
    told = [throttled for item in results.points if (throttled := item.conditions.throttled) is not None]
    held = [throttled for throttled in told if any(throttled.values())]
    reasons = sorted({name for throttled in held for name, share in throttled.items() if share})
    if held:
        text = f"The GPU was held back at {len(held)} of {counted(len(results.points), 'point')}: {listed(reasons)}."
    else:
        text = "Nothing was seen to hold the GPU back." if told else ""
        if results.machine.gpu and not told:
            text = "Whether anything held the GPU back is not known: it did not say."
    steal = [item for item in results.points if (item.conditions.steal or 0) > 0.01]
    if steal:
        text += f" Other guests took more than 1 % of the processors at {counted(len(steal), 'point')}."
    return text or "The machine was looked at between the runs."


def whole(sentence: str) -> str:
    """A sentence with its full stop."""
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."


def findings(part: Part, points: tuple[Figures, ...]) -> list[str]:
    """What a reader should take away of one run, and what to beware of; in sentences."""
    found = [latency(points), throughput(points)] if points else []
    found += [whole(item.sentence) for item in part.crossovers]
    if part.ratios:
        found.append(ratios(part.ratios))
    if any(item.share is not None for item in points):
        found.append(limit(points))
    return found + cautions(part.results, points)


def cautions(results: Results, points: tuple[Figures, ...]) -> list[str]:
    """What keeps the figures from being trusted."""
    found = []
    if unsettled := [item for item in points if not item.settled]:
        names = listed(f"{item.name} at batch {item.batch}" for item in unsettled[:4])
        more = f" and {len(unsettled) - 4} more" if len(unsettled) > 4 else ""
        found.append(f"Beware: the warm-up never settled for {names}{more}.")
    if results.interrupted:
        cut = sum(not item.complete for item in points)
        found.append(f"Beware: the run was stopped before all was measured; {counted(cut, 'point')} cut off.")
    if any(any((item.conditions.throttled or {}).values()) for item in results.points):
        found.append(f"Beware: {conditions(results)[0].lower()}{conditions(results)[1:]}")
    if results.failures:
        failed = listed(f"{item.engine} at batch {item.batch}" for item in results.failures[:4])
        found.append(f"Beware: {counted(len(results.failures), 'failure')}: {failed}.")
    return found
