"""The commands that decide a precision and prove it: scale tables, FP16 and INT8 files, what they cost."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sepvit_deploy.cli import masks as masks_shown
from sepvit_deploy.cli import results, show
from sepvit_deploy.cli.app import (
    CudaOption,
    ImagesOption,
    JsonOption,
    KeepOption,
    MethodOption,
    ModelArgument,
    OnnxArgument,
    PercentileOption,
    ProviderOption,
    SamplesOption,
    ThreadsOption,
    TrustOption,
    UnreadableOption,
    app,
    require_other,
    require_threads,
)

OptionalImages = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR|SET.toml", help="Pictures to prove FP16's head-room on; with --scales, those of the calibration."
    ),
]


@app.command()
def calibrate(
    file: OnnxArgument,
    images: ImagesOption,
    method: MethodOption = "percentile",
    percentile: PercentileOption = 99.99,
    samples: SamplesOption = None,
    batch: Annotated[int, typer.Option(help="Images at a time; part of the table's identity.")] = 8,
    attention: Annotated[bool, typer.Option("--attention", help="Also inside the attention within windows.")] = False,
    threads: ThreadsOption = None,
    max_unreadable: UnreadableOption = 10,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: FILE.scales.json.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the ranges of an FP32 file's activations on pictures: the scale table that INT8 needs."""
    from sepvit_deploy import pipeline

    output = output or file.with_suffix(".scales.json")
    require_other(output, file)
    with show.progress() as report:
        report("calibrating")
        table = pipeline.calibrate(
            file,
            images,
            output,
            method=method,
            percentile=percentile,
            samples=samples,
            batch=batch,
            attention=attention,
            threads=require_threads(threads),
            max_unreadable=max_unreadable,
            progress=show.percent(report, "calibrating"),
            warn=show.warn,
        )
    if as_json:
        show.json_document({"path": str(output), **asdict(table)})
    else:
        results.calibrated(output, table)


@app.command()
def smooth(
    file: OnnxArgument,
    images: ImagesOption,
    alpha: Annotated[float, typer.Option(help="0 leaves the outliers to the activations, 1 to the weights.")] = 0.5,
    samples: SamplesOption = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: ./NAME_smooth.onnx.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Move activation outliers into the weights at norm2 -> fc1 (SmoothQuant); the file computes the same, in FP32."""
    from sepvit_deploy import pipeline

    output = output or Path(f"{file.stem}_smooth.onnx")
    require_other(output, file)
    with show.progress() as report:
        passport = pipeline.smooth(file, images, output, alpha=alpha, samples=samples, warn=show.warn, report=report)
    if as_json:
        show.json_document({"path": str(output), "passport": asdict(passport)})
    else:
        results.smoothed(output, passport)


@app.command()
def quantize(
    file: OnnxArgument,
    precision: Annotated[Literal["fp16", "int8"], typer.Option(help="Of the new file.", show_default=False)],
    scales: Annotated[
        Path | None, typer.Option(metavar="FILE.scales.json", help="The scale table, for int8.", show_default=False)
    ] = None,
    keep: KeepOption = None,
    target: Annotated[
        Literal["tensorrt", "cpu"], typer.Option(help="TensorRT, or ONNX Runtime on a CPU.")
    ] = "tensorrt",
    rest: Annotated[
        Literal["fp16", "fp32"] | None,
        typer.Option(help="What is not INT8; default: fp16 for TensorRT, fp32 for a CPU.", show_default=False),
    ] = None,
    attention: Annotated[bool, typer.Option("--attention", help="INT8 inside the attention of windows, too.")] = False,
    images: OptionalImages = None,
    samples: Annotated[
        int | None,
        typer.Option(help="Of --images, for fp16; default: the manifest's number, or 512.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: ./NAME_PRECISION.onnx.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write FP16 or INT8 into a file's graph, as TensorRT takes it; exit 1 if it computes something else."""
    from sepvit_deploy import pipeline

    output = output or Path(f"{file.stem}_{precision}{'_cpu' if target == 'cpu' else ''}.onnx")
    require_other(output, file, scales)
    with show.progress() as report:
        done = pipeline.quantize(
            file,
            output,
            precision=precision,
            scales=scales,
            keep=tuple(keep or ()),
            target=target,
            rest=rest,
            attention=attention,
            images=images,
            samples=samples,
            report=report,
            warn=show.warn,
        )
    if as_json:
        show.json_document(results.lowered_document(done))
    else:
        results.lowered(done)


@app.command()
def sensitivity(
    file: OnnxArgument,
    images: ImagesOption,
    scales: Annotated[
        Path | None,
        typer.Option(metavar="FILE.scales.json", help="A scale table; without it, the pictures are calibrated on."),
    ] = None,
    method: MethodOption = "percentile",
    percentile: PercentileOption = 99.99,
    samples: Annotated[int | None, typer.Option(help="Pictures to use; default: 256.", show_default=False)] = None,
    agreement: Annotated[
        float,
        typer.Option(help="Share of equal top-1, or of pixels' equal classes, that the --keep line should reach."),
    ] = 0.99,
    alone: Annotated[bool, typer.Option("--alone", help="Also each group with nothing else in INT8.")] = False,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rank the layers by what they cost in INT8, and suggest which to keep out of it."""
    from sepvit_deploy import pipeline

    with show.progress() as report:
        found, meaningful = pipeline.sensitivity(
            file,
            images,
            scales=scales,
            method=method,
            percentile=percentile,
            samples=256 if samples is None else samples,
            agreement=agreement,
            alone=alone,
            threads=require_threads(threads),
            report=report,
            progress=show.percent(report, "measuring"),
            warn=show.warn,
        )
    if not meaningful:
        show.warn("this file holds random weights: agreement on them is not meaningful")
    if as_json:
        show.json_document({"file": str(file), "meaningful": meaningful, **found.to_dict()})
    else:
        results.sensitivity(str(file), found)


@app.command()
def lint(file: OnnxArgument, as_json: JsonOption = False) -> None:
    """Hold TensorRT's rules against a graph, without a GPU; exit 1 if TensorRT would refuse it."""
    from sepvit_deploy.graph import load_graph
    from sepvit_deploy.lint import lint as lint_graph

    found = lint_graph(load_graph(file))
    if as_json:
        show.json_document({"file": str(file), "passed": found.passed, **asdict(found)})
    else:
        results.linted(str(file), found)
    if not found.passed:
        raise typer.Exit(1)


@app.command()
def evaluate(
    file: ModelArgument,
    images: ImagesOption,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Lines of PATH LABEL, or a JSON object; default: a folder for each class."),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Of segmentation: a PNG for each picture; default: annotations/ beside images/, as ADE20K's.",
            show_default=False,
        ),
    ] = None,
    reduce_zero_label: Annotated[
        bool,
        typer.Option("--reduce-zero-label", help="In the masks 0 is no class and 1 the first, as in ADE20K's files."),
    ] = False,
    ignore: Annotated[
        int | None,
        typer.Option(
            help="Number in the masks that counts for nothing; default: 255, where that is no class.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="FILE", help="Another model, e.g. the FP32 file: agreement and flips.")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Pictures to use; default: all.", show_default=False)] = None,
    batch: Annotated[int, typer.Option(help="Images at a time.")] = 8,
    threads: ThreadsOption = None,
    workers: Annotated[
        int | None, typer.Option(help="Threads that decode; default: up to 4.", show_default=False)
    ] = None,
    max_unreadable: UnreadableOption = 10,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep the progress there, and go on from it; removed at the end."),
    ] = None,
    provider: ProviderOption = "cpu",
    cuda: CudaOption = "bindings",
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Top-1 and top-5 on labelled pictures, mIoU on masks, and where another file decides differently."""
    from sepvit_deploy import pipeline
    from sepvit_deploy.evaluate_masks import MaskEvaluation

    with show.progress() as report:
        report("evaluating")
        found = pipeline.evaluate(
            file,
            images,
            labels=labels,
            masks=masks,
            reduce_zero_label=reduce_zero_label,
            ignore=ignore,
            against=against,
            samples=samples,
            batch=batch,
            how=pipeline.Running(provider=provider, threads=require_threads(threads), cuda=cuda, trust=trust),
            workers=workers,
            max_unreadable=max_unreadable,
            resume=resume,
            progress=show.percent(report, "evaluating"),
            warn=show.warn,
        )
    if not found.meaningful:
        show.warn("this file holds random weights: accuracy on them is not meaningful")
    if as_json:
        document: dict[str, Any] = {"file": str(file), **found.to_dict()}
        show.json_document(document)
    elif isinstance(found, MaskEvaluation):
        masks_shown.evaluation(found)
    else:
        results.evaluation(found)
