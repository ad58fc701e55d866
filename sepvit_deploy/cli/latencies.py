"""What the commands about latency print."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sepvit_deploy.building import size_text
from sepvit_deploy.cli import ablations
from sepvit_deploy.cli.show import as_text, console, new_table, say, warn
from sepvit_deploy.comparison import beside_paper, crossovers, ratios, scaling
from sepvit_deploy.latency import BOUNDARIES

if TYPE_CHECKING:
    from sepvit_deploy.latency import Range, Rates, Results
    from sepvit_deploy.regression import Comparison


def measured(results: Results) -> None:
    """Every point, the engines against each other, and under which conditions."""
    numbers = ("batch", "p50 ms", "p90 ms", "p95 ms", "p99 ms", "min ms", "spread", "images/s", "samples", "limit")
    sizes = {engine.image_size for engine in results.engines}
    several = len(sizes) > 1
    shared = None if several else next(iter(sizes), None)
    title = f"latency per batch of {size_text(shared)} images" if shared else "latency per batch"
    table = new_table(title, "engine", *(["image"] if several else []), *numbers, right=numbers)
    for engine in results.engines:
        image = [size_text(engine.image_size) if engine.image_size else ""] if several else []
        for point in results.curve(engine.name):
            times = (*(point.quantile_ms(share) for share in (0.5, 0.9, 0.95, 0.99)), min(point.samples_ms))
            limit = results.limit_ms(point)
            table.add_row(
                as_text(engine.name),
                *image,
                str(point.batch),
                *(f"{ms:.4g}" for ms in times),
                f"{point.spread:.0%}",
                f"{point.images_per_s:.4g}",
                f"{len(point.samples_ms)}{'' if point.settled and point.complete else ' (!)'}",
                f"{limit / point.p50_ms:.0%}" if limit else "",
            )
    console().print(table)
    ablations.measured(results)
    for ratio in ratios(results):
        resolved = "resolved" if ratio.resolved else "not resolved"
        say(
            f"batch {ratio.batch}: {as_text(ratio.engine)} takes {ratio.ratio:.3f} times as long as "
            f"{as_text(ratio.baseline)} ({ratio.low:.3f} to {ratio.high:.3f}, {resolved})"
        )
    for sentence in (*(f.sentence for f in crossovers(results)), *(f.sentence for f in scaling(results))):
        say(as_text(sentence))
    machine = results.machine
    rates = "; ".join(map(_rates, results.rates))
    if rates:
        say(f"limit: the graph's own work at the rates measured beside it ({rates})")
    say(f"boundary: {results.boundary}, {BOUNDARIES[results.boundary]}")
    threads = {engine.threads for engine in results.engines} - {None}
    say(
        f"device: {as_text(machine.device)}; cores: {machine.cores}; "
        f"threads: {threads.pop() if threads else 'the choice of the runtime'}{_seen(results)}"
    )
    for note in results.notes:
        warn(note)


def _rates(rates: Rates) -> str:
    """What a runtime gets out of the device at best."""
    products = [
        f"{value / 1e9:.4g} G{'' if name == 'INT8' else 'FL'}OP/s in {name}"
        for name, value in rates.operations_per_s.items()
    ]
    copies = [f"{rates.bytes_per_s / 1e9:.3g} GB/s"] if rates.bytes_per_s else []
    return f"{rates.runtime}: {', '.join(products + copies)}"


def _seen(results: Results) -> str:
    """The conditions of all points together."""
    shown = {
        "load": "load",
        "gpu_sm_mhz": "SM clock in MHz",
        "gpu_power_w": "power in W",
        "gpu_temperature_c": "temperature in °C",
    }
    text = ""
    for name, label in shown.items():
        seen: list[Range] = [found for p in results.points if (found := getattr(p.conditions, name))]
        if seen:
            text += f"; {label}: {min(r.low for r in seen):.4g} to {max(r.high for r in seen):.4g}"
    return text


def document(results: Results) -> dict[str, Any]:
    """The figures as plain JSON; the samples are what --output keeps."""
    machine = asdict(results.machine)
    return {
        "boundary": results.boundary,
        "machine": machine,
        "image_sizes": {engine.name: engine.image_size for engine in results.engines},
        "points": [
            {**point.to_dict(), "limit_ms": results.limit_ms(point), "conditions": asdict(point.conditions)}
            for point in results.points
        ],
        "ratios": [asdict(ratio) for ratio in ratios(results)],
        "crossovers": [asdict(found) for found in crossovers(results)],
        "scaling": [asdict(found) for found in scaling(results)],
        "beside_paper": [asdict(found) for found in beside_paper(results)],
        "rates": [asdict(rate) for rate in results.rates],
        "failures": [asdict(failure) for failure in results.failures],
        "interrupted": results.interrupted,
        "notes": results.notes,
    }


def compared(found: Comparison) -> None:
    """Two runs, point by point."""
    numbers = ("batch", "old ms", "new ms", "ratio", "interval")
    table = new_table("new over old", "engine", *numbers, "verdict", right=numbers)
    for change in found.latencies:
        table.add_row(
            as_text(change.engine),
            str(change.batch),
            f"{change.old_ms:.4g}",
            f"{change.new_ms:.4g}",
            f"{change.ratio:.3f}",
            f"{change.low:.3f} to {change.high:.3f}",
            change.verdict + (f": {change.reason}" if change.reason else ""),
        )
    console().print(table)
    if any(change.paced for change in found.latencies):
        say("ratios are at equal pace of the machine, which was taken between the runs")
    for note in found.notes:
        say(f"note: {as_text(note)}")
    if not found.regressions:
        say("nothing is worse than before")
