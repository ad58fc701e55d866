"""The commands about deployment specs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sepvit_deploy.cli import results, show
from sepvit_deploy.cli.app import JsonOption, app


@app.command()
def deploy(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.toml", help="A deployment spec.", show_default=False)],
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A checkpoint, instead of the spec's.", show_default=False)
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR|SET.toml", help="Pictures, instead of the spec's.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")] = Path("build"),
    as_json: JsonOption = False,
) -> None:
    """Carry a spec out, from weights as far as this machine can go; exit 1 if it does not reach what it asks for."""
    from sepvit_deploy import pipeline
    from sepvit_deploy.spec_file import read_spec

    with show.progress() as report:
        done = pipeline.deploy(
            read_spec(spec),
            spec.parent,
            weights=weights,
            images=images,
            out=out,
            report=report,
            progress=show.percent(report, "working through the images"),
            build_progress=show.percent(report, "building"),
            warn=show.warn,
        )
    if as_json:
        show.json_document({**asdict(done), "path": str(done.path), "complete": done.complete})
    else:
        results.deployed(done)


@app.command()
def init(
    variant: Annotated[str, typer.Argument(help="lite, t, s or b.", show_default=False)],
    precision: Annotated[str, typer.Argument(help="fp32, fp16 or int8.", show_default=False)],
) -> None:
    """Print a complete deployment spec, every key with its default: sepvit-deploy init t int8 > my.toml."""
    from sepvit_deploy.deployment import default_spec
    from sepvit_deploy.spec_file import spec_text

    print(spec_text(default_spec(variant, precision)), end="")  # type: ignore[arg-type]
