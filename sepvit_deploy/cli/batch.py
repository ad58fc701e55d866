"""The command that classifies whole folders into Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sepvit_deploy.cli import show
from sepvit_deploy.cli.app import (
    CudaOption,
    JsonOption,
    ModelArgument,
    ProviderOption,
    ThreadsOption,
    TrustOption,
    app,
    require_threads,
)

if TYPE_CHECKING:
    from sepvit_deploy.pipeline.batch import Batched


@app.command("batch-predict")
def batch_predict(
    file: ModelArgument,
    images: Annotated[
        str,
        typer.Option(metavar="DIR|GLOB", help="A folder, or a quoted pattern: 'DIR/**/*.jpg'.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option(metavar="DIR.parquet", help="The dataset: a folder of Parquet files.", show_default=False)
    ],
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Run on a cluster: auto, local, HOST:PORT, ray://...", show_default=False),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Threads that decode; with --ray, actors. Default: by processors.", show_default=False),
    ] = None,
    batch: Annotated[int, typer.Option(help="Pictures at a time, where the model leaves it open.")] = 8,
    top: Annotated[int, typer.Option(help="Classes to keep of each picture.")] = 5,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Class names: one a line, or a JSON list.")
    ] = None,
    part: Annotated[
        int | None, typer.Option(help="Pictures in a file; default: 64 to 4096, by how many.", show_default=False)
    ] = None,
    threads: ThreadsOption = None,
    provider: ProviderOption = "cpu",
    cuda: CudaOption = "bindings",
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Classify a folder of any size into a Parquet dataset; after a kill, the same command goes on.

    Of a folder or a pattern, the files with a picture's suffix are taken. A damaged picture is a row with an error.
    """
    from sepvit_deploy import pipeline
    from sepvit_deploy.classes import read_labels
    from sepvit_deploy.pipeline.batch import batch_predict as run

    with show.progress() as report:
        shown = show.percent(report, "classifying")
        done = run(
            file,
            images,
            output,
            top=top,
            labels=read_labels(labels) if labels else None,
            batch=batch,
            part_images=part,
            workers=workers,
            ray=ray,
            how=pipeline.Running(provider=provider, threads=require_threads(threads), cuda=cuda, trust=trust),
            report=report,
            progress=lambda found: shown(found.done / found.total),
            warn=show.warn,
        )
    if as_json:
        show.json_document(done.to_dict())
    else:
        _show(done)
    done.require_usable()


def _show(done: Batched) -> None:
    failed = f", {done.failed:,} of them unusable (column error)" if done.failed else ""
    show.say(f"{done.output}: {done.images:,} pictures in {done.parts:,} files{failed}")
    if done.images_per_s is None:
        show.say("it was finished already: nothing to do")
        return
    rest = f"; {done.images - done.made:,} were done before" if done.made < done.images else ""
    show.say(f"{done.made:,} in {done.seconds:.1f} s, {done.images_per_s:.4g} images/s{rest}")
