"""Sections of a run: latency and throughput, engines against each other, the limit of the device."""

from __future__ import annotations

from sepvit_deploy.report import charts, sentences
from sepvit_deploy.report.figures import batches
from sepvit_deploy.report.markup import Table, details, legend, paragraphs, table
from sepvit_deploy.report.run import Run
from sepvit_deploy.report.words import interval, number, percent


def latency(run: Run) -> str:
    """Latency and throughput against batch."""
    if not run.points:
        return "<p>Nothing was measured.</p>"
    columns = (
        "engine",
        "batch",
        "p50 ms",
        "95 %",
        "p90",
        "p95",
        "p99",
        "min",
        "spread",
        "images/s",
        "samples",
        "state",
    )
    rows = [
        (
            p.name,
            str(p.batch),
            number(p.p50),
            interval(p.low, p.high) or "too few rounds",
            *map(number, (p.p90, p.p95, p.p99, p.least)),
            percent(p.spread),
            number(p.rate),
            f"{p.samples:,}",
            ("settled" if p.settled else "never settled") + ("" if p.complete else ", cut off"),
        )
        for p in run.points
    ]
    few = [(*row[:4], row[6]) for row in rows]
    brief = Table("Latency against batch", (*columns[:4], columns[6]), few, frozenset(range(1, 5)))
    every = Table("Latency of every point", columns, rows, frozenset(range(1, 11)))
    sizes = batches(run.points)
    rate = {(p.name, p.batch): number(p.rate) for p in run.points}
    rates = Table(
        "Images a second",
        ("batch", *run.names),
        [(str(size), *(rate.get((name, size), "not measured") for name in run.names)) for size in sizes],
        frozenset(range(len(run.names) + 1)),
    )
    points = run.points
    measured = {p.name for p in points}
    return (
        '<div class="pair">'
        + run.draw(
            "latency",
            charts.latency(run.names, points),
            "Latency against batch",
            sentences.latency(points),
            legend(run.names, measured),
            "Both axes are logarithmic. Symbol: median (p50); bar: its 95 % interval, often narrower than the "
            "symbol; stroke: 99 % of the runs took no longer (p99).",
            brief,
        )
        + run.draw(
            "throughput",
            charts.throughput(run.names, points),
            "Throughput against batch",
            sentences.throughput(points),
            legend(run.names, measured),
            "Images in a batch over p50; bar: its 95 % interval.",
            rates,
        )
        + "</div>"
        + details("Every point, with all of its figures", table(every), keep=True)
    )


def ratios(run: Run) -> str:
    """Engines against each other; crossovers; fixed and growing parts."""
    found: list[str] = []
    for baseline in dict.fromkeys(item.baseline for item in run.part.ratios):
        of = [item for item in run.part.ratios if item.baseline == baseline]
        rows = [
            (
                item.engine,
                str(item.batch),
                number(item.ratio),
                interval(item.low, item.high),
                ("faster" if item.ratio < 1 else "slower") if item.resolved else "not resolved",
            )
            for item in of
        ]
        columns = ("engine", "batch", "ratio", "95 %", "than " + baseline)
        data = Table(f"Time over that of {baseline}", columns, rows, frozenset({1, 2, 3}))
        found.append(
            run.draw(
                f"ratios{len(found)}",
                charts.ratios(run.names, of),
                f"Time against {baseline}",
                sentences.ratios(of),
                legend(run.names, {item.engine for item in of}, "points"),
                "Bar: 95 % interval; hollow: not resolved, the samples do not tell which is faster.",
                data,
            )
        )
    beside = _crossovers(run) + _scaling(run)
    if not found:
        return beside
    return f'<div class="pair">{"".join(found)}<div>{beside}</div></div>'


def _crossovers(run: Run) -> str:
    if run.part.crossovers:
        return "<h3>Crossover</h3>" + paragraphs([sentences.whole(item.sentence) for item in run.part.crossovers])
    if len({engine.precision for engine in run.results.engines}) > 1:
        return ""
    return (
        "<h3>Crossover</h3><p>There is none to look for: time an FP16 and an INT8 file in one run of "
        "<code>sepvit-deploy bench</code> to see from which batch on INT8 is faster.</p>"
    )


def _scaling(run: Run) -> str:
    if not run.part.scalings:
        return ""
    rows = [(item.engine, number(item.fixed_ms), number(item.per_image_ms)) for item in run.part.scalings]
    columns = ("engine", "fixed, ms", "for each image, ms")
    return (
        "<h3>Fixed and growing time</h3>"
        + paragraphs([sentences.whole(item.sentence) for item in run.part.scalings])
        + table(Table("Time of a batch: a fixed part, and one for each image", columns, rows, frozenset({1, 2})))
    )


def limit(run: Run) -> str:
    """How near each point is to what the device allows."""
    found = [point for point in run.points if point.share is not None]
    if not found:
        return (
            "<p>What the device allows is not known: <code>sepvit-deploy bench</code> measures it, where the ONNX "
            "file of an engine is at hand.</p>"
        )
    rows = [(p.name, str(p.batch), number(p.limit or 0), number(p.p50), percent(p.share or 0)) for p in found]
    data = Table(
        "Least time that the device allows, and p50",
        ("engine", "batch", "limit, ms", "p50, ms", "% of limit"),
        rows,
        frozenset({1, 2, 3, 4}),
    )
    kinds = sorted({name for rates in run.results.rates for name in rates.operations_per_s})
    rates = Table(
        "What the device gave at best, measured in the same run",
        ("runtime", *(f"{name}, T operations/s" for name in kinds), "memory, GB/s"),
        [
            (
                rates.runtime,
                *(
                    number(rates.operations_per_s[name] / 1e12) if name in rates.operations_per_s else "not measured"
                    for name in kinds
                ),
                number(rates.bytes_per_s / 1e9) if rates.bytes_per_s else "not measured",
            )
            for rates in run.results.rates
        ],
        frozenset(range(1, len(kinds) + 2)),
    )
    return run.draw(
        "limit",
        charts.limit(run.names, found),
        "Share of what the device allows",
        sentences.limit(found),
        legend(run.names, {point.name for point in found}),
        "100 % is the roofline: the time of the model's products at the rate of a large product of their type, or "
        "of its weights, inputs and outputs at the rate of a large copy, whichever is longer.",
        data,
        rates,
    )
