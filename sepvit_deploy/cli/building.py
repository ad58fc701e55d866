"""The command that turns an ONNX file into an engine."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from sepvit_deploy.cli import engines, show
from sepvit_deploy.cli.app import JsonOption, OnnxArgument, app, require_other
from sepvit_deploy.errors import OptionError


@app.command()
def build(
    file: OnnxArgument,
    builder: Annotated[
        Literal["tensorrt", "rtx", "auto"],
        typer.Option(help="TensorRT needs the GPU; TensorRT-RTX builds without one, for RTX GPUs."),
    ] = "auto",
    profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MIN,OPT,MAX[@SIZES]",
            help="Batches to be ready for, tuned for OPT; or one batch. Of a file of any size also sizes: three as "
            "HxW,HxW,HxW, or one. May be repeated; default: 1,8,32, or what pictures are prepared to.",
            show_default=False,
        ),
    ] = None,
    workspace_mb: Annotated[
        int | None, typer.Option(metavar="N", help="Most device memory of a kernel, MiB.", show_default=False)
    ] = None,
    level: Annotated[
        int | None, typer.Option(metavar="0..5", help="Builder optimisation level.", show_default=False)
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Kernel timings that builds share; default: in the user's cache, by TensorRT version and GPU.",
            show_default=False,
        ),
    ] = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            metavar="8.6", help="Of RTX GPUs to build for; may be repeated; default: all.", show_default=False
        ),
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Also for newer versions of TensorRT.")
    ] = False,
    hardware_compatible: Annotated[
        Literal["ampere+", "same-cc"] | None,
        typer.Option(help="Also for other GPUs: Ampere and newer, or of this compute capability.", show_default=False),
    ] = None,
    refittable: Annotated[bool, typer.Option("--refittable", help="Weights can be replaced in the engine.")] = False,
    require: Annotated[
        Literal["fp16", "int8"] | None,
        typer.Option(help="Fail unless the engine computes in this precision; needs its GPU.", show_default=False),
    ] = None,
    inspector: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write what TensorRT's inspector says, as it is, too.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: ./NAME.plan.", show_default=False)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Parse and audit, then say what would be built; write nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Build a TensorRT engine in the file's own precision, audited, with its passport; exit 1 if TensorRT refuses."""
    from sepvit_deploy import pipeline
    from sepvit_deploy.deployment import EngineSpec

    if file.suffix in pipeline.PLANS or file.suffix == ".toml":
        hint = "type: sepvit-deploy deploy " + shlex.quote(str(file)) if file.suffix == ".toml" else None
        raise OptionError(f"{file} is a {'spec' if hint else 'plan'}", expected="an ONNX file", hint=hint)
    output = output or Path(f"{file.stem}.plan")
    require_other(output, file)
    if output.suffix not in pipeline.PLANS:  # every command knows a plan by its suffix
        raise OptionError(f"--output {output}", expected=f"a name that ends in {' or '.join(pipeline.PLANS)}")
    if inspector is not None:
        require_other(inspector, file, output)
    for option, given, least in (("--workspace-mb", workspace_mb, 1), ("--level", level, 0)):
        if given is not None and given < least:  # in a spec, what is less leaves it to the builder
            raise OptionError(f"{option} {given}", expected=f"{least} or more")
    engine = EngineSpec(
        builder=builder,
        profiles=tuple(profile or ()),
        workspace_mb=workspace_mb or 0,
        level=-1 if level is None else level,
        compute_capabilities=tuple(compute_capability or ()),
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible or "",
        refittable=refittable,
    )
    with show.progress() as report:
        done = pipeline.build(
            file,
            output,
            engine=engine,
            timing_cache=timing_cache,
            require=require,
            inspector=inspector,
            dry_run=dry_run,
            report=report,
            progress=show.percent(report, "building"),
            warn=show.warn,
        )
    if as_json:
        show.json_document(engines.engine_document(done))
    else:
        engines.engine(done)
