"""Commands about latency: parse, call, and print by `latencies`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from sepvit_deploy import artifact
from sepvit_deploy.cli import latencies, show
from sepvit_deploy.cli.app import (
    CudaOption,
    JsonOption,
    ProviderOption,
    ThreadsOption,
    TrustOption,
    app,
    parse_batch,
    parse_share,
    require_other,
    require_threads,
)
from sepvit_deploy.errors import DeviceError, Interrupted, OptionError
from sepvit_deploy.latency import Boundary, read_results, write_results
from sepvit_deploy.optional import require
from sepvit_deploy.spec import parse_image_size


@app.command()
def bench(
    engine: Annotated[
        list[str],
        typer.Option(
            metavar="FILE",
            help="FILE.onnx, FILE.plan, torch:VARIANT[:WEIGHTS] or torch-compile:VARIANT[:WEIGHTS]; may be repeated.",
            show_default=False,
        ),
    ],
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Default: 1,2,4,8,16,32,64 on a GPU, 1,8 on a CPU, as far as an engine takes them.",
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Least time spent on each point.")] = 3.0,
    samples: Annotated[int, typer.Option(help="Least runs of each point.")] = 100,
    boundary: Annotated[
        Boundary, typer.Option(help="The device alone, with copies, or from encoded pictures (--images).")
    ] = "compute",
    cuda_graph: Annotated[
        Literal["on", "off", "both"], typer.Option(help="Replay plans from a CUDA graph; both times each twice.")
    ] = "off",
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Pictures to run; random numbers without it.")
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            help="Of the images for files of any size; default: as in their passports.",
            show_default=False,
        ),
    ] = None,
    accuracy: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="What evaluate --json printed of an engine; kept with it.", show_default=False
        ),
    ] = None,
    threads: ThreadsOption = None,
    provider: ProviderOption = "cpu",
    cuda: CudaOption = "bindings",
    trust: TrustOption = False,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Every sample with its conditions, as JSON.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="The same as a page with plots.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Time engines per batch in one interleaved run, with intervals, the conditions, and the device's limit."""
    from sepvit_deploy import pipeline

    batches = None
    if batch is not None:
        batches = [parse_batch(part.strip(), "numbers, separated by commas", whole=batch) for part in batch.split(",")]
    size = parse_image_size(image_size) if image_size is not None else None
    require_threads(threads)
    if not 0 <= seconds <= 3600:
        raise OptionError(f"--seconds {seconds}", expected="0 to 3600")
    if not 1 <= samples <= 1_000_000:
        raise OptionError(f"--samples {samples}", expected="1 to 1000000")
    inputs = [Path(source) for source in engine if not source.startswith((pipeline.TORCH, pipeline.TORCH_COMPILE))]
    for place in filter(None, (output, html)):
        require_other(place, *inputs, *(accuracy or ()))
        artifact.require_writable(place)
    if html is not None:  # refused now, rather than after the run
        require("vl_convert", extra="report")
    with show.progress() as report:
        results = pipeline.bench(
            engine,
            batches,
            how=pipeline.Running(provider=provider, threads=threads, cuda=cuda, trust=trust),
            boundary=boundary,
            cuda_graph=cuda_graph,
            seconds=seconds,
            least=samples,
            images=images,
            image_size=size,
            accuracy=accuracy or (),
            command=shlex.join(["sepvit-deploy", *sys.argv[1:]]),
            report=report,
            progress=show.percent(report, "measuring"),
            warn=show.warn,
        )
        if not results.points:
            if results.interrupted:
                raise KeyboardInterrupt
            raise DeviceError(f"nothing was measured: {results.failures[0].error}")
    if as_json:  # first: a place that can no longer be written costs no figure
        show.json_document(latencies.document(results))
    else:
        latencies.measured(results)
    if output is not None:
        write_results(results, output)
    if html is not None:
        pipeline.report_of(results, html)
    if not as_json:
        for place in filter(None, (output, html)):
            show.say(f"written: {place}")
    if results.interrupted:
        raise Interrupted(f"interrupted; what was measured until then is {f'in {output}' if output else 'above'}")
    if results.failures:
        first = results.failures[0]
        measured = {(point.engine, point.batch) for point in results.points}
        every = measured | {(failure.engine, failure.batch) for failure in results.failures}
        raise DeviceError(
            f"{len(results.failures)} of {len(every)} points failed, "
            f"{first.engine} at batch {first.batch} first: {first.error}",
            hint="the others were measured, and are kept",
        )


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD.json", help="Results of bench --output.", show_default=False)],
    new: Annotated[Path, typer.Argument(metavar="NEW.json", help="Newer ones.", show_default=False)],
    fail_if_slower: Annotated[
        str, typer.Option(metavar="SHARE", help="Slower by more than this fails, where it is resolved.")
    ] = "0%",
    as_json: JsonOption = False,
) -> None:
    """Hold results against older ones; exit 1 if latency, size, precision or accuracy became worse."""
    from sepvit_deploy.regression import compare as compare_results

    share = parse_share(fail_if_slower, "--fail-if-slower")
    found = compare_results(read_results(old), read_results(new), fail_if_slower=share)
    if as_json:
        show.json_document(found.to_dict())
    else:
        latencies.compared(found)
    found.require_none()
