"""Commands about latency: parse, call, and print by `show`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from sepvit_deploy.cli import show
from sepvit_deploy.cli.app import (
    CudaOption,
    JsonOption,
    ProviderOption,
    ThreadsOption,
    TrustOption,
    app,
    parse_batch,
    require_threads,
)
from sepvit_deploy.errors import OptionError


@app.command()
def bench(
    engine: Annotated[
        list[str],
        typer.Option(
            metavar="FILE",
            help="FILE.onnx, FILE.plan or torch:VARIANT[:WEIGHTS]; may be repeated.",
            show_default=False,
        ),
    ],
    batch: Annotated[str, typer.Option(metavar="N,N,...", help="Batches.")] = "1,8",
    threads: ThreadsOption = None,
    seconds: Annotated[float, typer.Option(help="Least time spent on each point.")] = 3.0,
    provider: ProviderOption = "cpu",
    cuda: CudaOption = "bindings",
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Time engines per batch, interleaved and warmed up."""
    from sepvit_deploy import pipeline
    from sepvit_deploy.bench import bench as measure
    from sepvit_deploy.bench import conditions as measure_conditions

    batches = [parse_batch(part.strip(), "numbers, separated by commas", whole=batch) for part in batch.split(",")]
    require_threads(threads)
    if not 0 <= seconds <= 3600:
        raise OptionError(f"--seconds {seconds}", expected="0 to 3600")
    names = [source if source.startswith(pipeline.TORCH) else Path(source).name for source in engine]
    if len(set(names)) < len(names):
        names = engine
    on_gpu = provider != "cpu" or any(Path(source).suffix in pipeline.PLANS for source in engine)
    conditions = measure_conditions(threads, on_gpu=on_gpu)
    how = pipeline.Running(provider=provider, threads=threads, fused=True, cuda=cuda, trust=trust)
    with show.progress() as report, contextlib.ExitStack() as stack:
        report("loading")
        opened = [pipeline.open_model(source, trust=trust, warn=show.warn) for source in engine]
        runners = [
            stack.enter_context(model.running(how, name=name)) for model, name in zip(opened, names, strict=True)
        ]
        report("warming up")
        points = measure(runners, sorted(set(batches)), seconds=seconds, progress=show.percent(report, "measuring"))
    if as_json:
        show.json_document({"conditions": conditions, "points": show.latency_rows(points)})
    else:
        show.latencies(points, conditions)
