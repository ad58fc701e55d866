"""The commands `variants` and `export`: which models there are, and one of them as an ONNX file."""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from sepvit_deploy.cli import results, show
from sepvit_deploy.cli.app import (
    EmaOption,
    JsonOption,
    KeepOption,
    MethodOption,
    SamplesOption,
    app,
    parse_batch,
    require_other,
)
from sepvit_deploy.errors import OptionError
from sepvit_deploy.heads import Head, OutputKind
from sepvit_deploy.variants import CLASSIFY_SIZE, Task


@app.command()
def variants(
    complexity: Annotated[
        bool, typer.Option("--complexity", help="MACs of a block beside two of Swin and two of Twins, stage by stage.")
    ] = False,
    ablations: Annotated[
        bool, typer.Option("--ablations", help="SepViT-T in the paper's ablations, which are variants too.")
    ] = False,
    heads: Annotated[bool, typer.Option("--heads", help="With the decode heads for segmentation.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the architectures: sizes, parameters, MACs, and what the paper reports of them."""
    if complexity + ablations + heads > 1:
        raise OptionError("several of --complexity, --ablations and --heads", expected="one of them")
    if heads:
        from sepvit_deploy.cli import heads as of_heads

        show.json_document({"heads": of_heads.head_rows()}) if as_json else of_heads.heads()
    elif ablations:
        from sepvit_deploy.cli import ablations as rows

        show.json_document({"ablations": rows.ablation_rows()}) if as_json else rows.ablations()
    elif complexity:
        from sepvit_deploy.complexity import stages

        show.json_document({"complexity": show.complexity_rows(stages())}) if as_json else show.complexity(stages())
    elif as_json:
        show.json_document({"variants": show.variant_rows()})
    else:
        show.variants()


@app.command()
def export(
    variant: Annotated[str, typer.Option(help="lite, t, s or b; see variants.", show_default=False)],
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Checkpoint: .safetensors, .pth or .pt; random without it.")
    ] = None,
    ema: EmaOption = False,
    task: Annotated[Task, typer.Option(help="A class, four feature maps, or a class of each pixel.")] = "classify",
    head: Annotated[Head | None, typer.Option(help="Of segment.", show_default=False)] = None,
    output_kind: Annotated[
        OutputKind, typer.Option(help="Of segment: logits at stride 4, or a mask at the input's size.")
    ] = "logits",
    image_size: Annotated[
        str,
        typer.Option(
            metavar="N|HxW|dynamic[:HxW]",
            help="Pixels; classification takes 224 only. dynamic: a file for any size, whose pictures fit in HxW.",
            show_default="224, of segment 512",
        ),
    ] = "",
    num_classes: Annotated[
        int | None,
        typer.Option(help="Of the head; default: the checkpoint's, or 1000, of segment 150.", show_default=False),
    ] = None,
    batch: Annotated[str, typer.Option(metavar="dynamic|N", help="Images in a batch.")] = "dynamic",
    opset: Annotated[int, typer.Option(help="ONNX opset, 17 to 21.")] = 20,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Default: ./sepvit_VARIANT[_dense|_fpn|_upernet][_mask][_dynamic].onnx.",
            show_default=False,
        ),
    ] = None,
    no_simplify: Annotated[bool, typer.Option("--no-simplify", help="Leave the exporter's graph as it is.")] = False,
    precision: Annotated[
        Literal["fp32", "fp16", "int8"], typer.Option(help="Go on to this precision; int8 needs --images.")
    ] = "fp32",
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|SET.toml", help="Pictures to calibrate int8 on, or fp16's head-room.", show_default=False
        ),
    ] = None,
    method: MethodOption = "percentile",
    samples: SamplesOption = None,
    keep: KeepOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export to a small, audited ONNX file whose outputs were compared with the reference, and its passport."""
    from sepvit_deploy import pipeline
    from sepvit_deploy.spec import parse_input_size

    suffix = {"classify": "", "dense": "_dense", "segment": f"_{head}"}[task]
    suffix += "_mask" * (output_kind == "mask")
    size, any_size = parse_input_size(image_size or ("512" if task == "segment" else f"{CLASSIFY_SIZE}"))
    suffix += "_dynamic" * any_size
    if num_classes is not None and num_classes < 1:
        raise OptionError(f"--num-classes {num_classes}", expected="1 or more")
    if precision == "fp32" and (images or samples is not None or keep):
        raise OptionError("--images, --samples or --keep with --precision fp32", expected="--precision fp16 or int8")
    fp32 = output or Path(f"sepvit_{variant}{suffix}.onnx")
    lowered = fp32
    if precision != "fp32":
        lowered = output or fp32.with_name(f"{fp32.stem}_{precision}.onnx")
        fp32 = output.with_name(f"{output.stem}_fp32.onnx") if output else fp32
        require_other(lowered, weights)
    with show.progress() as report:
        export_fp32 = functools.partial(
            pipeline.export,
            variant,
            fp32,
            weights=weights,
            ema=ema,
            task=task,
            head=head,
            output_kind=output_kind,
            size=size,
            any_size=any_size,
            num_classes=num_classes,
            batch=None if batch == "dynamic" else parse_batch(batch, "dynamic, or a number"),
            opset=opset,
            simplify=not no_simplify,
            report=report,
            warn=show.warn,
        )
        done = (
            export_fp32()
            if precision == "fp32"
            else pipeline.export_lowered(
                fp32,
                lowered,
                images,
                precision=precision,
                method=method,
                samples=samples,
                keep=tuple(keep or ()),
                export_fp32=export_fp32,
                report=report,
                progress=show.percent(report, "calibrating"),
                warn=show.warn,
            )
        )
    if weights is None:
        show.warn("no --weights: random weights (seed 0), good for measuring and testing; the answers mean nothing")
    if isinstance(done, pipeline.Lowered):
        show.json_document(results.lowered_document(done)) if as_json else results.lowered(done)
    elif as_json:
        show.json_document({"path": str(done.path), "passport": asdict(done.passport)})
    else:
        show.exported(done)
