"""The command that plans how many devices carry a load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sepvit_deploy.cli import show
from sepvit_deploy.cli.app import JsonOption, app

if TYPE_CHECKING:
    from sepvit_deploy.capacity import Capacity, Plan


@app.command("plan-capacity")
def plan_capacity(
    results: Annotated[
        Path, typer.Argument(metavar="RESULTS.json", help="What bench --output wrote.", show_default=False)
    ],
    rate: Annotated[
        float, typer.Option(metavar="N", help="Requests in a second, of one image each.", show_default=False)
    ],
    p99_ms: Annotated[
        float,
        typer.Option(metavar="MS", help="The most that p99 may be, waiting included.", show_default=False),
    ],
    as_json: JsonOption = False,
) -> None:
    """Plan a server for a load: precision, batch limit, queue delay, instances; exit 1 where no engine carries it.

    Simulates dynamic batching as Triton does it, for Poisson arrivals, with the measured times of each batch.
    Each instance is a device of its own: several on one device share it and take longer than was measured.
    """
    from sepvit_deploy import capacity
    from sepvit_deploy.latency import read_results

    measured = read_results(results)
    for doubt in capacity.doubts(measured):  # before the search, which may find nothing
        show.warn(doubt)
    with show.progress() as report:
        found = capacity.plan_capacity(measured, rate_per_s=rate, p99_ms=p99_ms, report=report)
    if as_json:
        show.json_document(found.to_dict())
    else:
        _show(found)


def _show(found: Capacity) -> None:
    plan, step = found.plan, found.step
    at = f"within a p99 of {found.p99_ms:,.10g} ms"
    show.say(
        f"{found.rate_per_s:,.10g} requests/s of one image {at}, on {found.device}:\n"
        f"{_count(plan.instances)} of {plan.engine} ({_kind(plan.precision, plan.cuda_graph)}), "
        f"batch limit {plan.batch_limit}, queue delay {plan.delay_ms:g} ms\n"
        f"p50 {plan.p50_ms:.4g} ms, p95 {plan.p95_ms:.4g} ms, p99 {plan.p99_ms:.4g} ms (95 % interval "
        f"{plan.p99_low_ms:.4g} to {plan.p99_high_ms:.4g}), mean batch {plan.mean_batch:.3g}, busy {plan.busy:.0%}\n"
        f"Triton: max_batch_size {plan.batch_limit}, max_queue_delay_microseconds {1000 * plan.delay_ms:.0f}\n"
        f"as it is, it carries up to {_rate(step.highest_per_s)}; with {_count(plan.instances + 1)}, up to "
        f"{_rate(step.one_more_per_s)}; {_fewer(found)}"
    )
    figures = ("instances", "limit", "delay", "mean batch", "busy", "p50", "p95", "p99")
    table = show.new_table("the best of each engine, times in ms", "engine", "precision", *figures, right=figures)
    for choice in found.choices:
        cells = _cells(choice.plan) if choice.plan else ["-"] * len(figures)
        kind = _kind(choice.precision, choice.cuda_graph)
        table.add_row(show.as_text(choice.engine), kind, *cells)
    show.console().print(table)
    for choice in found.choices:
        if choice.reason:
            show.say(f"{choice.engine}: {choice.reason}")
    for note in found.notes:
        show.say(f"note: {note}")


def _cells(plan: Plan) -> list[str]:
    times = [f"{ms:.4g}" for ms in (plan.p50_ms, plan.p95_ms, plan.p99_ms)]
    server = [str(plan.instances), str(plan.batch_limit), f"{plan.delay_ms:g}"]
    return [*server, f"{plan.mean_batch:.3g}", f"{plan.busy:.0%}", *times]


def _count(instances: int) -> str:
    return "1 instance" if instances == 1 else f"{instances} instances"


def _rate(per_s: float) -> str:
    return f"{per_s:,.0f}/s" if per_s >= 100 else f"{per_s:.3g}/s"


def _kind(precision: str, cuda_graph: bool) -> str:
    return f"{precision}, CUDA graph" if cuda_graph else precision


def _fewer(found: Capacity) -> str:
    fewer = found.plan.instances - 1
    if not fewer:
        return "with fewer, none is left"
    if found.step.one_fewer is None:
        return f"with {_count(fewer)}, it is overloaded"
    best = found.step.one_fewer
    return f"with {_count(fewer)} p99 is {best.p99_ms:.4g} ms at best, with batch limit {best.batch_limit}"
