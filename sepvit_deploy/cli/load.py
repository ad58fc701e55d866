"""The command that puts a load on a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sepvit_deploy.cli import show
from sepvit_deploy.cli.app import JsonOption, app

if TYPE_CHECKING:
    from sepvit_deploy.load import LoadResult


@app.command()
def load(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="http://HOST:PORT, or with /v2/models/NAME.", show_default=False)
    ],
    rate: Annotated[
        float | None,
        typer.Option(metavar="R", help="Open loop: requests a second, at random, answered or not.", show_default=False),
    ] = None,
    clients: Annotated[
        int | None,
        typer.Option(metavar="C", help="Closed loop: clients that wait for answers; default: 8.", show_default=False),
    ] = None,
    seconds: Annotated[float, typer.Option(help="To measure, after a warm-up.")] = 10.0,
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Pictures to send, encoded; random tensors without it.", show_default=False),
    ] = None,
    batch: Annotated[int, typer.Option(help="Images of a request.")] = 1,
    deadline_ms: Annotated[
        float | None, typer.Option(metavar="N", help="Told to the server, and judged by.", show_default=False)
    ] = None,
    in_flight: Annotated[int, typer.Option(metavar="N", help="The most at once, of an open loop.")] = 512,
    timeout: Annotated[float, typer.Option(metavar="S", help="Seconds after which an answer is lost.")] = 30.0,
    tolerance: Annotated[
        float, typer.Option(help="How far an answer may be from the one without a load, over its largest number.")
    ] = 0.02,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW", help="Of random images, where the model takes any; default: 512x512.", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Put a load on a v2 server and check every answer; exit 1 where one is lost or wrong.

    Works with `serve` and with Triton. Requests that the server refuses by 503 are counted, and are no failure.
    """
    from sepvit_deploy.errors import Interrupted
    from sepvit_deploy.load import load as run
    from sepvit_deploy.load.plan import SIZE
    from sepvit_deploy.spec import parse_image_size

    with show.progress() as report:
        done = run(
            url,
            clients=clients,
            rate_per_s=rate,
            seconds=seconds,
            images=images,
            batch=batch,
            deadline_ms=deadline_ms,
            in_flight=in_flight,
            timeout_s=timeout,
            tolerance=tolerance,
            size=parse_image_size(size) if size is not None else SIZE,
            progress=show.percent(report, "sending"),
        )
    if as_json:
        show.json_document(done.to_dict())
    else:
        _show(done)
    for warning in done.warnings:
        show.warn(warning)
    done.require_right()
    if done.interrupted:
        raise Interrupted(f"interrupted after {done.seconds:.1f} s", hint="the figures are of that time")


def _show(done: LoadResult) -> None:
    loop = f"{done.clients} clients" if done.clients else f"{done.rate_per_s:g} requests/s, open loop"
    images = "one image" if done.batch == 1 else f"{done.batch} images"
    show.say(f"{done.model} at {done.url}: {loop}, {done.sends} of {images} a request, {done.seconds:.3g} s")
    failed = "".join(f", {kind}: {count:,}" for kind, count in done.failed.items())
    show.say(
        f"{done.sent:,} requests: {done.answered:,} answered, {done.refused:,} refused, {done.late:,} too late{failed}"
    )
    offered = f" of {done.sent / done.seconds:,.4g} that were sent" if done.rate_per_s and done.seconds else ""
    show.say(f"{done.requests_per_s:,.4g} requests/s answered{offered}, {done.images_per_s:,.4g} images/s")
    if done.latencies:
        table = show.new_table("latency in ms", "", "ms", "95 % interval", right=("ms", "95 % interval"))
        for found in done.latencies:
            end = "beyond all" if found.high_ms is None else f"{found.high_ms:.4g}"
            table.add_row(f"p{100 * found.share:g}", f"{found.ms:.4g}", f"{found.low_ms:.4g} to {end}")
        table.add_row("max", f"{done.max_ms:.4g}", "")
        show.console().print(table)
    if done.within_deadline is not None:
        share, low, high = done.within_deadline
        show.say(f"within {done.deadline_ms:g} ms: {share:.2%} of those not refused (95 %: {low:.2%} to {high:.2%})")
    if done.mean_batch is not None:
        show.say(f"the server's mean batch: {done.mean_batch:.3g}")
    generator = done.generator
    limit = f", so about {generator.limit_per_s:,.0f} requests/s at most" if generator.limit_per_s else ""
    lag = f"; sent late by {generator.lag_p99_ms:.3g} ms (p99)" if generator.lag_p99_ms is not None else ""
    show.say(f"the side that sends: {generator.busy:.0%} of a core{limit}{lag}")
