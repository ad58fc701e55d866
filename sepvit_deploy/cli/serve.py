"""The command that answers requests itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sepvit_deploy.cli import show
from sepvit_deploy.cli.app import (
    CudaOption,
    ModelArgument,
    ProviderOption,
    ThreadsOption,
    TrustOption,
    app,
    require_threads,
)
from sepvit_deploy.contract import name_of
from sepvit_deploy.images import MAX_UPLOAD_PIXELS
from sepvit_deploy.uploads import CLASSIFY, SEGMENT

if TYPE_CHECKING:
    from sepvit_deploy.server import Lane, Settings


@app.command()
def serve(
    file: ModelArgument,
    host: Annotated[
        str, typer.Option(help="The address to listen at; others than this machine's see the server.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes one that is free.")] = 8000,
    max_batch: Annotated[int, typer.Option(help="Images that are computed at once, and of one request.")] = 8,
    queue_delay_ms: Annotated[float, typer.Option(help="The longest that an idle device waits for more images.")] = 2,
    max_queue: Annotated[int, typer.Option(help="Images that wait; beyond it the answer is 503.")] = 256,
    max_body_mb: Annotated[float, typer.Option(help="Of one request.")] = 32,
    max_megapixels: Annotated[
        float, typer.Option(help="Of a picture, which is refused before it is decoded.")
    ] = MAX_UPLOAD_PIXELS / 1e6,
    name: Annotated[
        str | None, typer.Option(help="In the protocol; default: the file's, without its ending.", show_default=False)
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Class names: one a line, or a JSON list.")
    ] = None,
    deadline_ms: Annotated[float, typer.Option(help="From a request to its answer; then the answer is 503.")] = 10_000,
    threads: ThreadsOption = None,
    provider: ProviderOption = "cpu",
    cuda: CudaOption = "bindings",
    trust: TrustOption = False,
) -> None:
    """Serve a model: Open Inference Protocol v2, /v1/classify or /v1/segment for a picture, /metrics, and a page at /.

    Requests that come together are computed together. SIGTERM answers what is under way and ends it; a new file in the
    model's place, or SIGHUP, takes over without a lost request. There is no authentication: put a proxy before it.
    """
    from sepvit_deploy.classes import read_labels
    from sepvit_deploy.pipeline import Running
    from sepvit_deploy.pipeline.serving import serve as serve_file
    from sepvit_deploy.server import Settings

    settings = Settings(
        name=name if name is not None else _name_of(file),
        host=host,
        port=port,
        max_batch=max_batch,
        queue_delay_ms=queue_delay_ms,
        max_queue=max_queue,
        max_body_mb=max_body_mb,
        max_megapixels=max_megapixels,
        deadline_ms=deadline_ms,
    )
    how = Running(provider=provider, threads=require_threads(threads), cuda=cuda, trust=trust)
    names = read_labels(labels) if labels else None

    def started(address: str, loopback: bool, lane: Lane) -> None:
        _started(address, loopback, lane, settings)

    serve_file(
        file,
        settings,
        how,
        labels=names,
        warn=show.warn,
        log=lambda line: show.tell(show.as_text(line)),
        started=started,
    )


def _name_of(file: str) -> str:
    return f"sepvit_{file.split(':')[1]}" if file.startswith(("torch:", "torch-compile:")) else name_of(Path(file))


def _started(address: str, loopback: bool, lane: Lane, settings: Settings) -> None:
    model = lane.model
    if model.untrained:
        show.warn("this file holds random weights: its answers mean nothing")
    if not loopback:
        show.warn(f"{address} is open to other machines, and there is no authentication")
    if lane.max_batch < settings.max_batch:
        show.warn(f"--max-batch {settings.max_batch}: the model takes at most {lane.max_batch} at once")
    if (batch_ms := lane.image_s * lane.max_batch * 1000) > settings.deadline_ms / 2:
        show.warn(
            f"a batch of {lane.max_batch} takes {batch_ms:.0f} ms, of a deadline of {settings.deadline_ms:.10g} ms"
        )
    show.say(
        f"serving {settings.name} (SHA-256 {model.sha256[:12]}..., batches of up to {lane.max_batch}) at {address}"
    )
    if model.spec.task == "classify":
        show.say(f"try: curl --data-binary @photo.jpg {address}{CLASSIFY}, or {address}/ in a browser")
    elif model.spec.task == "segment":
        show.say(f"try: curl --data-binary @photo.jpg --output mask.png {address}{SEGMENT}, or {address}/ in a browser")
