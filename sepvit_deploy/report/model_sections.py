"""Sections of a run: what is inside its engines, and their accuracy beside what was published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sepvit_deploy.confidence import wilson
from sepvit_deploy.latency import Accuracy, Engine
from sepvit_deploy.published import BATCH, WHERE
from sepvit_deploy.report import model_charts, sentences
from sepvit_deploy.report.figures import Figures
from sepvit_deploy.report.markup import Table, keys, legend
from sepvit_deploy.report.run import Run
from sepvit_deploy.report.words import number, percent, top1
from sepvit_deploy.variants import PAPER

PRECISION_KEYS = (("--p32", "FP32"), ("--p16", "FP16"), ("--p8", "INT8"))


def inside(run: Run) -> str:
    """Time of each block, and the mix of precisions."""
    timed = [engine for engine in run.results.engines if engine.blocks_ms]
    blocks = ""
    if timed:
        order = list(dict.fromkeys(name for engine in timed for name in engine.blocks_ms))
        rows = [(n, *(number(e.blocks_ms[n]) if n in e.blocks_ms else "none" for e in timed)) for n in order]
        columns = ("block", *(f"{engine.name}, ms" for engine in timed))
        blocks = run.draw(
            "blocks",
            model_charts.blocks(run.names, timed),
            "Time of each block",
            sentences.blocks(timed),
            legend(run.names, {engine.name for engine in timed}, "bars"),
            "As the profiler of TensorRT gave it when the engine was built.",
            Table("Time of each block", columns, rows, frozenset(range(1, len(columns)))),
        )
    shares = {e.name: e.precision_shares for e in run.results.engines if e.precision_shares}
    mixes = _mix(run, "time", shares)
    counts = {e.name: e.products for e in run.results.engines if e.name not in shares and sum(e.products.values()) > 0}
    parts = {n: {kind: c / sum(of.values()) for kind, c in of.items()} for n, of in counts.items()}
    mixes += _mix(run, "products", parts)
    if not blocks:
        return f'<div class="pair">{mixes}</div>' if mixes else ""
    return f'<div class="pair">{blocks}<div>{mixes}</div></div>'


def _mix(run: Run, of: str, shares: Mapping[str, Mapping[str, float]]) -> str:
    engines = [engine for engine in run.results.engines if engine.name in shares]
    if not engines:
        return ""
    kinds = list(dict.fromkeys(kind for engine in engines for kind in shares[engine.name]))
    rows = [(e.name, *(percent(shares[e.name].get(kind, 0.0)) for kind in kinds)) for e in engines]
    other = any(model_charts.precision_slot(kind) == model_charts.OTHER for kind in kinds)
    note = "Share of the time in each type, as the profiler of TensorRT gave it when the engine was built."
    if of == "products":
        note = "Share of the matrix products and convolutions in each type, as the file has them."
    return run.draw(
        f"mix-{of}",
        model_charts.mix(engines, shares, of),
        f"Precision mix: {of}",
        sentences.mix(engines, shares, of),
        keys((*PRECISION_KEYS, *([("--p0", "other")] if other else []))),
        note,
        Table(f"Precision mix: share of {of}", ("engine", *kinds), rows, frozenset(range(1, len(kinds) + 1))),
    )


def accuracy(run: Run) -> str:
    """Accuracy against latency, one chart for each set of pictures; the paper's points in one of their own."""
    found: list[str] = []
    known = [
        (engine, right)
        for engine in run.results.engines
        if (right := engine.accuracy) and 0 <= right.top1 <= right.images and right.images
    ]
    for name in dict.fromkeys(right.image_set for _, right in known):
        of = _at_one_batch(run, [(engine, right) for engine, right in known if right.image_set == name])
        if not of:
            continue
        rows = []
        for engine, right, point in of:
            low, high = wilson(right.top1, right.images)
            bounds, share = f"{100 * low:.1f} to {100 * high:.1f}", top1(right.top1 / right.images)
            rows.append((engine.name, share, bounds, f"{right.images:,}", str(point.batch), number(point.p50)))
        columns = ("engine", "top-1", "95 %", "pictures", "batch", "p50 ms")
        found.append(
            run.draw(
                f"accuracy{len(found)}",
                model_charts.accuracy(run.names, of),
                f"Accuracy against latency, on {name}",
                sentences.accuracy(of),
                legend(run.names, {engine.name for engine, _, _ in of}, "points"),
                "Bars: 95 % intervals of both.",
                Table(f"Accuracy on {name}", columns, rows, frozenset(range(1, 6))),
            )
        )
    if not found:
        found.append(
            "<figure><h3>Accuracy against latency</h3><p>No accuracy is known of these engines: type "
            "<code>sepvit-deploy evaluate FILE --images SET --json</code> and hand what it says to "
            "<code>bench</code>.</p></figure>"
        )
    return f'<div class="pair">{"".join(found)}{_published(run)}</div>'


def _at_one_batch(run: Run, known: Sequence[tuple[Engine, Accuracy]]) -> list[tuple[Engine, Accuracy, Figures]]:
    """The engines at the batch that most of them have, of those the nearest to the paper's: times of one batch."""
    points = {(point.name, point.batch): point for point in run.points}
    sizes = [point.batch for point in run.points if any(engine.name == point.name for engine, _ in known)]
    if not sizes:
        return []
    batch = min(sizes, key=lambda size: (-sizes.count(size), abs(size - BATCH), size))
    return [(e, right, points[e.name, batch]) for e, right in known if (e.name, batch) in points]


def _published(run: Run) -> str:
    rows = [
        (family.name, f"{time:g}", f"{share:g}") for family in model_charts.FAMILIES for time, share in family.points
    ]
    return run.draw(
        "published",
        model_charts.published(),
        "Published, other hardware",
        f"The paper's own figures ({PAPER}), of other hardware ({WHERE}) and other data (ImageNet-1K): "
        "nothing here was measured by this package, nor is it to be read against what was.",
        "",
        "Hollow: published. Latencies were read off a plot, to about 0.2 ms.",
        Table(f"Published: {WHERE}", ("model", f"ms, batch {BATCH}", "top-1, %"), rows, frozenset({1, 2})),
    )
