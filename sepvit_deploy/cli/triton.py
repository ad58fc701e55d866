"""The commands that write and judge a model repository of Triton."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sepvit_deploy.cli import show
from sepvit_deploy.cli.app import JsonOption, app
from sepvit_deploy.errors import InputError, OptionError

if TYPE_CHECKING:
    from sepvit_deploy.triton import Lint, Written


@app.command()
def triton(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="FILE.plan or FILE.onnx.", show_default=False)
    ],
    repository: Annotated[
        Path, typer.Option(metavar="DIR", help="The model repository; made if need be.", show_default=False)
    ],
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of one model; default: the file's name.", show_default=False),
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Most images in a run; default: of the plan's profiles, or 8.", show_default=False
        ),
    ] = None,
    instances: Annotated[int, typer.Option(metavar="N", help="Copies of the model on each GPU.")] = 1,
    queue_delay_us: Annotated[
        int, typer.Option(metavar="N", help="Longest wait of a request for others to join it.")
    ] = 2000,
    cuda_graphs: Annotated[
        bool, typer.Option("--cuda-graphs", help="Replay a plan's launches from CUDA graphs.")
    ] = False,
    ensemble: Annotated[
        bool, typer.Option("--ensemble/--no-ensemble", help="Models from encoded pictures to classes or masks, too.")
    ] = True,
    version: Annotated[int | None, typer.Option(metavar="N", help="Default: the next one.", show_default=False)] = None,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Names of the classes, one a line; or JSON.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a model repository for Triton: configs, models from pictures to classes or masks, warm-up, a CPU fallback.

    New versions come beside old ones, at once or not at all; exit 1 where a server would refuse the result.
    """
    from sepvit_deploy.pipeline.repository import write_repository
    from sepvit_deploy.triton import Serving

    serving = Serving(max_batch, instances, queue_delay_us, cuda_graphs, ensemble, version)
    done = write_repository(models, repository, serving=serving, name=name, labels=labels, warn=show.warn)
    for each in done.placed:
        if each.settings:
            show.warn(f"{each.model} had another {', '.join(each.settings)}: now all its versions have these")
    for finding in done.warnings:
        show.warn(f"{finding.place} {finding.message}")
    if as_json:
        show.json_document(done.to_dict())
    else:
        _show_written(done)


@app.command("triton-lint")
def triton_lint(
    repository: Annotated[Path, typer.Argument(metavar="DIR", help="A model repository.", show_default=False)],
    release: Annotated[
        str | None,
        typer.Option(metavar="YY.MM", help="Of the server, to hold plans against its TensorRT.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Judge a model repository without a server; exit 1 for what Triton refuses, dies of, or does not notice.

    Nothing of the repository is loaded or run.
    """
    from sepvit_deploy.triton import lint, read_repository

    if release is not None and not re.fullmatch("[0-9]{2}[.](0[1-9]|1[0-2])", release, re.ASCII):
        raise OptionError(f"--release {release!r:.40}", expected="a year and a month, such as 25.10")
    read = read_repository(repository, release)
    if not read.models and not read.leftovers:
        raise InputError(f"{repository} holds no models", expected="a folder with a folder for each model")
    found = lint(read)
    if release is not None and not found.held_release:
        show.warn(f"--release {release}: no plan whose TensorRT is known is here, and so nothing to hold against it")
    if as_json:
        show.json_document(found.to_dict())
    else:
        _show_lint(found)
    found.require_passed()


def _show_written(done: Written) -> None:
    table = show.new_table(str(done.repository), "model", "version", "change", right=("version",))
    for each in done.placed:
        table.add_row(each.model, str(each.version), each.change)
    show.console().print(table)
    for name in done.kept_labels:
        show.say(f"{name} keeps its labels: --labels was not given")
    place = shlex.quote(str(done.repository))
    command = " ".join((f"tritonserver --model-repository={place}", *done.flags))
    show.say(f"on a GPU: {command}; without one, add --model-config-name=cpu")
    show.say("in Docker: sepvit-deploy manifests FILE --for kserve writes the Dockerfile")


def _show_lint(found: Lint) -> None:
    from sepvit_deploy.report.words import counted

    errors, warnings = len(found.errors), len(found.findings) - len(found.errors)
    counts = f"{counted(found.models, 'model')}, {counted(errors, 'error')}, {counted(warnings, 'warning')}"
    if found.findings:
        table = show.new_table(f"{found.repository}: {counts}", "rule", "severity", "where", "what")
        for each in found.findings[: show.MOST_FINDINGS]:
            table.add_row(each.rule, each.severity, show.as_text(each.place), show.as_text(each.message))
        show.console().print(table)
    else:
        show.say(f"{found.repository}: {counts}")
    if len(found.findings) > show.MOST_FINDINGS:
        show.say(f"and {len(found.findings) - show.MOST_FINDINGS} more: add --json to see them all")
