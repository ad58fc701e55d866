"""The command that makes a page of what was measured: parse, call, print."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from sepvit_deploy import artifact
from sepvit_deploy.cli import show
from sepvit_deploy.cli.app import app, require_other


@app.command()
def report(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR|FILE.json...",
            help="Folders or files: results of bench, ladders of check --json, scale tables.",
            show_default=False,
        ),
    ],
    html: Annotated[Path, typer.Option(metavar="FILE", help="The page, one file that needs no network.")] = Path(
        "report.html"
    ),
) -> None:
    """Make one HTML page of results: latency, ratios, limits, accuracy, parity, ranges, conditions; with plots."""
    from sepvit_deploy import pipeline

    require_other(html, *(source for source in sources if not os.path.isdir(source)))
    artifact.require_writable(html)
    with show.progress() as step:
        found = pipeline.report(sources, html, command=shlex.join(["sepvit-deploy", *sys.argv[1:]]), report=step)
    parts = (("result", found.results), ("ladder", found.ladders), ("scale table", found.scales))
    held = ", ".join(f"{len(items)} {name}{'' if len(items) == 1 else 's'}" for name, items in parts if items)
    show.say(f"written: {html}, of {held}")
