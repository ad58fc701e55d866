"""The commands: parse, call, and hand the result to `show`. What is heavy is imported inside each command."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from sepvit_deploy.cli import engines, show
from sepvit_deploy.cli.app import (
    CudaOption,
    EmaOption,
    JsonOption,
    ModelArgument,
    OnnxArgument,
    ProviderOption,
    TrustOption,
    app,
)
from sepvit_deploy.errors import OptionError, ParityFailed
from sepvit_deploy.variants import CLASSIFY_SIZE


@app.command()
def audit(
    file: OnnxArgument,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            help="Of a file of any size: count MACs at this one; default: its passport's.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is in a graph and whether it is deployable; exit 1 if it is not."""
    from sepvit_deploy.artifact import read_passport
    from sepvit_deploy.audit import audit as audit_graph
    from sepvit_deploy.audit import takes_any_size
    from sepvit_deploy.graph import load_graph
    from sepvit_deploy.pipeline.opened import model_of
    from sepvit_deploy.spec import parse_image_size

    size = parse_image_size(image_size) if image_size is not None else None
    graph = load_graph(file)
    if size is None and takes_any_size(graph):
        spec = model_of(file, read_passport(file))
        size = spec.size if spec is not None else None
    elif size is not None and not takes_any_size(graph):
        raise OptionError(f"--image-size {image_size} with {file}", expected="a file of any size")
    found = audit_graph(graph, size=size)
    if as_json:
        show.json_document({"file": str(file), "deployable": found.deployable, **asdict(found)})
    else:
        show.audit(str(file), found)
    if not found.deployable:
        raise typer.Exit(1)


@app.command()
def check(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="FILE.onnx, FILE.plan, SPEC.toml, or torch:VARIANT[:WEIGHTS] with --against.",
            show_default=False,
        ),
    ],
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The checkpoint that the file was exported from.")
    ] = None,
    ema: EmaOption = False,
    against: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Another model in any form, instead of the reference in torch."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR|SET.toml", help="Pictures; random images without it.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Pictures to use for a plan or a spec; default: 64.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where a SPEC.toml was deployed to.")] = Path("build"),
    noise_floor: Annotated[
        int, typer.Option(metavar="K", help="Build the FP32 engine K times, and judge by how much they differ.")
    ] = 0,
    provider: ProviderOption = "cpu",
    cuda: CudaOption = "bindings",
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare a file with the model as the paper writes it, or with another; exit 1 if they disagree.

    A plan or a spec is climbed to, from torch through every form: the first one out of tolerance is named.
    """
    from sepvit_deploy import pipeline

    how = pipeline.Running(provider=provider, cuda=cuda, trust=trust)
    climbs = against is None and pipeline.has_ladder(file)
    if not climbs and (noise_floor or samples is not None):
        given = f"--noise-floor {noise_floor}" if noise_floor else f"--samples {samples}"
        raise OptionError(f"{given} with {file}", expected="a plan or a spec, whose forms are compared one by one")
    common: dict[str, Any] = {"weights": weights, "ema": ema, "images": images, "how": how}
    try:
        with show.progress() as report:
            if climbs:
                climbed = pipeline.climb(
                    file, out=out, samples=samples, noise_floor=noise_floor, report=report, warn=show.warn, **common
                )
            else:
                compared = pipeline.check(file, against=against, report=report, warn=show.warn, **common)
    except ParityFailed as error:  # outputs that cannot be compared at all
        if as_json:
            show.json_document({"passed": False, "reason": str(error)})
        raise
    if climbs:
        show.json_document(climbed.to_dict()) if as_json else engines.climbed(climbed)
        climbed.require_passed()
        return
    show.json_document(pipeline.parity_facts(compared)) if as_json else show.parity(compared)
    compared.require_passed()


@app.command()
def predict(
    file: ModelArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures.", show_default=False)],
    top: Annotated[int, typer.Option(help="Classes to show for each.")] = 5,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Class names: one a line, or a JSON list.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Of segmentation: where NAME.overlay.png is written; default: here.", show_default=False
        ),
    ] = None,
    masks: Annotated[bool, typer.Option("--masks", help="Of segmentation: also NAME.mask.png, classes alone.")] = False,
    provider: ProviderOption = "cpu",
    cuda: CudaOption = "bindings",
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Classify pictures; with a segmentation file, lay the classes over them."""
    from sepvit_deploy import pipeline
    from sepvit_deploy.classes import read_labels
    from sepvit_deploy.cli import masks as shown
    from sepvit_deploy.predict import predict as classify
    from sepvit_deploy.spec import Preprocessing

    names = read_labels(labels) if labels else None
    how = pipeline.Running(provider=provider, cuda=cuda, trust=trust)
    with show.progress() as report:
        report("loading")
        opened = pipeline.open_model(file, trust=trust, warn=show.warn)
        preprocessing = opened.preprocessing
        if preprocessing is None:
            show.warn(f"no passport says how {file} takes pictures: as ImageNet's, at {CLASSIFY_SIZE} pixels")
            preprocessing = Preprocessing.for_task("classify", (CLASSIFY_SIZE, CLASSIFY_SIZE))
        if opened.untrained:
            show.warn("this file holds random weights: its answers mean nothing")
        if opened.spec is not None and opened.spec.task == "segment":
            report("segmenting")
            segmented = shown.segmented(
                opened, how, images, top=top, labels=names, folder=output or Path(), masks=masks
            )
            rows = shown.rows(segmented, top)
        else:
            if output or masks:
                given = "--output" if output else "--masks"
                raise OptionError(f"{given} with {file}, which is no segmentation file", expected="neither of them")
            report("classifying")
            with opened.running(how) as runner:
                found = classify(runner, preprocessing, images, top=top, labels=names)
            rows = [
                {
                    "image": prediction.image,
                    "classes": [{"class": k, "label": label, "probability": p} for k, label, p in prediction.classes],
                }
                for prediction in found
            ]
            segmented = None
    if as_json:
        show.json_document({"file": str(file), "meaningful": not opened.untrained, "predictions": rows})
    elif segmented is not None:
        shown.segmentations(segmented, top)
    else:
        show.predictions(found)


@app.command()
def doctor(
    plan: Annotated[
        Path | None,
        typer.Argument(metavar="[PLAN]", help="A plan: will it load here, and why not.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what this machine has and how to get what is missing; of a plan, whether it loads here (exit 1 if not)."""
    from sepvit_deploy.doctor import diagnose, diagnose_plan

    if plan is not None:
        judged = diagnose_plan(plan)
        if as_json:
            show.json_document(judged.to_dict())
        else:
            engines.diagnosis(judged)
        if not judged.loads:
            raise typer.Exit(1)
        return
    with show.progress() as report:
        report("trying what is installed")
        found = diagnose()
    if not as_json:
        show.diagnosis(found)
        return
    document: dict[str, Any] = asdict(found)
    for row, ability in zip(document["abilities"], found.abilities, strict=True):
        row["ready"] = ability.ready
    show.json_document(document)
