"""The command line: parse, call, print. Results on stdout, progress and warnings on stderr."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.exceptions import Abort, Exit, TyperException

from sepvit_deploy.errors import OptionError, SepvitError
from sepvit_deploy.variants import CLASSIFY_SIZE, PAPER, VARIANTS, Task, count_macs, count_parameters

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from sepvit_deploy.audit import Audit
    from sepvit_deploy.parity import Parity

app = typer.Typer(
    name="sepvit-deploy",
    help="SepViT from weights to a checked ONNX file, and on to the GPU.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]
OnnxArgument = Annotated[Path, typer.Argument(metavar="FILE.onnx", help="An ONNX file.", show_default=False)]
INTERRUPTED = 130


def main() -> None:
    """Run the command line; a user's mistake is one line and an exit code, never a traceback."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that temporary files vanish then, too
    sys.exit(_run())


def _run() -> int:
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except SepvitError as error:
        return _fail(str(error), error.exit_code)
    except TyperException as error:
        return _fail(" ".join(error.format_message().split()) + "; add --help to see what there is", 2)
    except Exit as done:
        return done.exit_code
    except (KeyboardInterrupt, Abort):
        return _fail("interrupted; nothing was left half-written", INTERRUPTED)
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            sys.stdout = None  # type: ignore[assignment]  # whoever read it is gone
        return 1


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _console() -> Console:
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=110, color_system=None)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Show the step under way: a spinner on a terminal, a line each elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda step: print(f"{step} ...", file=sys.stderr, flush=True)
        return
    with console.status("starting") as status:
        yield lambda step: status.update(f"{step} ...")


def _print_json(document: object) -> None:
    print(json.dumps(document, indent=2, allow_nan=False))


def _table(title: str, *columns: str, right: tuple[str, ...] = ()) -> Table:
    """A table whose ``right`` columns hold numbers, never broken; text folds into lines rather than being cut."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=column in right, overflow="fold")
    return table


@app.command()
def variants(as_json: JsonOption = False) -> None:
    """List the architectures: sizes, parameters, MACs, and what the paper reports of them."""
    rows = [
        {
            "name": variant.name,
            "channels": variant.channels,
            "heads": variant.heads,
            "depths": variant.depths,
            "window_sides": variant.sides,
            "parameters": count_parameters(variant),
            "macs_224": count_macs(variant),
            "published": {"source": PAPER, **asdict(variant.published)},
        }
        for variant in VARIANTS.values()
    ]
    if as_json:
        _print_json({"variants": rows})
        return
    numbers = ("parameters", "MACs (224)", "top-1 %", "img/s", "ms")
    table = _table("SepViT", "variant", "channels", "blocks", *numbers, right=numbers)
    for variant in VARIANTS.values():
        paper = variant.published
        table.add_row(
            variant.name,
            " ".join(map(str, variant.channels)),
            " ".join(map(str, variant.depths)),
            f"{count_parameters(variant):,}",
            f"{count_macs(variant) / 1e9:.3f} G",
            f"{paper.top1:.1f}",
            str(paper.images_per_s or "-"),
            str(paper.latency_ms or "-"),
        )
    console = _console()
    console.print(table)
    console.print(
        f"Parameters and MACs are counted; the rest is the paper's ({PAPER}): ImageNet-1K top-1, throughput on a V100\n"
        "(FP32, batch 192), latency on a T4 (TensorRT, batch 8). No trained weights are public.",
        soft_wrap=True,
        highlight=False,
    )


@app.command()
def export(
    variant: Annotated[str, typer.Option(help="lite, t, s or b.", show_default=False)],
    weights: Annotated[Path | None, typer.Option(help="Checkpoint: .safetensors, .pth or .pt; random without it.")] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Take the checkpoint's model_ema.")] = False,
    task: Annotated[Task, typer.Option(help="Logits, or four feature maps.")] = "classify",
    image_size: Annotated[str, typer.Option(metavar="N|HxW", help="Pixels; classification takes 224 only.")] = str(CLASSIFY_SIZE),
    num_classes: Annotated[int | None, typer.Option(help="Of the head; default: the checkpoint's, or 1000.", show_default=False)] = None,
    batch: Annotated[str, typer.Option(metavar="dynamic|N", help="Images in a batch.")] = "dynamic",
    opset: Annotated[int, typer.Option(help="ONNX opset, 17 to 21.")] = 20,
    output: Annotated[Path | None, typer.Option(help="File to write; default: ./sepvit_VARIANT.onnx.", show_default=False)] = None,
    no_simplify: Annotated[bool, typer.Option("--no-simplify", help="Leave the exporter's graph as it is.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Export to a small, audited ONNX file whose outputs were compared with the reference, and its passport."""
    from sepvit_deploy import pipeline
    from sepvit_deploy.spec import parse_image_size

    size = parse_image_size(image_size)
    fixed = None if batch == "dynamic" else _positive("--batch", batch, "dynamic, or a number")
    if num_classes is not None and num_classes < 1:
        raise OptionError(f"--num-classes {num_classes}", expected="1 or more")
    suffix = "" if task == "classify" else "_dense"
    target = output or Path(f"sepvit_{variant}{suffix}.onnx")
    with _progress() as report:
        done = pipeline.export(
            variant,
            target,
            weights=weights,
            ema=ema,
            task=task,
            size=size,
            num_classes=num_classes,
            batch=fixed,
            opset=opset,
            simplify=not no_simplify,
            report=report,
        )
    if weights is None:
        _warn("no --weights: random weights (seed 0); the file is for measuring and testing, its answers mean nothing")
    if as_json:
        _print_json({"path": str(done.path), "passport": asdict(done.passport)})
        return
    audited, compared = done.audit, done.parity
    _console().print(
        f"{done.path}: {done.passport.bytes / 1e6:.1f} MB, {audited.nodes} nodes, opset {audited.opset}, "
        f"{_giga(audited.macs)} MACs an image\n"
        f"parity with the reference on {compared.images} {compared.source}: {_worst(compared)}\n"
        f"passport: {done.path}.json",
        soft_wrap=True,
        highlight=False,
    )


def _positive(option: str, text: str, expected: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= 100_000:
        raise OptionError(f"{option} {text}", expected=expected)
    return int(text)


def _giga(macs: int | None) -> str:
    return "unknown" if macs is None else f"{macs / 1e9:.3f} G"


def _worst(compared: Parity) -> str:
    outputs = [tensor for tensor in compared.tensors if tensor.name in compared.outputs]
    worst = min(outputs, key=lambda tensor: tensor.sqnr_db)
    agreement = "" if compared.top1_agreement is None else f", top-1 agrees on {compared.top1_agreement:.1%}"
    return f"largest difference {worst.max_difference:.1e}, SQNR {worst.sqnr_db:.0f} dB{agreement}"


@app.command()
def audit(file: OnnxArgument, as_json: JsonOption = False) -> None:
    """Show what is in a graph and whether it is deployable; exit 1 if it is not."""
    from sepvit_deploy.audit import audit as audit_graph
    from sepvit_deploy.graph import load_graph

    found = audit_graph(load_graph(file))
    if as_json:
        _print_json({"file": str(file), "deployable": found.deployable, **asdict(found)})
    else:
        _print_audit(file, found)
    if not found.deployable:
        raise typer.Exit(1)


def _print_audit(file: Path, found: Audit) -> None:
    console = _console()
    table = _table(str(file), "operator", "nodes", right=("nodes",))
    for operator, count in found.operators.items():
        table.add_row(operator, str(count))
    table.add_section()
    table.add_row("all", str(found.nodes))
    console.print(table)
    shapes = [f"{name} {' x '.join(map(str, dims))}" for name, dims in (*found.inputs.items(), *found.outputs.items())]
    console.print(
        f"opset {found.opset}; {found.parameters:,} parameters, {_giga(found.macs)} MACs an image, "
        f"{found.bytes / 1e6:.1f} MB; {', '.join(shapes)}",
        soft_wrap=True,
        highlight=False,
    )
    if found.deployable:
        console.print("deployable: no rule is broken")
        return
    rules = _table(f"not deployable: {len(found.findings)} findings", "node", "reason")
    for finding in found.findings[:20]:
        rules.add_row(finding.node, finding.reason)
    console.print(rules)


@app.command()
def check(
    file: OnnxArgument,
    weights: Annotated[Path | None, typer.Option(help="The checkpoint it was exported from.")] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Take the checkpoint's model_ema.")] = False,
    against: Annotated[Path | None, typer.Option(help="Another ONNX file, instead of the reference in torch.")] = None,
    images: Annotated[Path | None, typer.Option(help="A folder of pictures; random images without it.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a file with the model as the paper writes it, or with another file; exit 1 if they disagree."""
    from sepvit_deploy import pipeline

    with _progress() as report:
        compared = pipeline.check(file, weights=weights, ema=ema, against=against, images=images, report=report)
    if as_json:
        _print_json(pipeline.parity_facts(compared))
    else:
        _print_parity(compared)
    compared.require_passed()


def _print_parity(compared: Parity) -> None:
    numbers = ("max |difference|", "relative", "SQNR dB", "cosine")
    table = _table(f"{compared.candidate} against {compared.reference}", "tensor", *numbers, "", right=numbers)
    shown = [t for t in compared.tensors if t.name in compared.outputs or not t.within(compared.tolerance)]
    for tensor in shown[-16:]:
        verdict = "ok" if tensor.within(compared.tolerance) else "out of tolerance"
        values = (f"{tensor.max_difference:.2e}", f"{tensor.relative:.2e}", f"{tensor.sqnr_db:.1f}", f"{tensor.cosine:.9f}")
        table.add_row(tensor.name, *values, verdict if tensor.finite else "not finite")
    console = _console()
    console.print(table)
    inner = len(compared.tensors) - len(compared.outputs)
    agreement = "" if compared.top1_agreement is None else f"; top-1 agrees on {compared.top1_agreement:.1%}"
    first = f"; first out of tolerance: {compared.first_out}" if compared.first_out else ""
    console.print(
        f"{'passed' if compared.passed else 'FAILED'} on {compared.images} images ({compared.source}), "
        f"{inner} inner tensors compared{agreement}{first}",
        soft_wrap=True,
        highlight=False,
    )


@app.command()
def predict(
    file: OnnxArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures.", show_default=False)],
    top: Annotated[int, typer.Option(help="Classes to show for each.")] = 5,
    labels: Annotated[Path | None, typer.Option(help="Class names: one a line, or a JSON list.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Classify pictures."""
    from sepvit_deploy import artifact
    from sepvit_deploy.predict import predict as classify
    from sepvit_deploy.predict import read_labels
    from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner
    from sepvit_deploy.spec import ModelSpec, Preprocessing

    names = read_labels(labels) if labels else None
    runner = OnnxRuntimeRunner(file)
    passport = artifact.read_passport(file)
    if passport is None:
        _warn(f"{file} has no passport: taking ImageNet's preprocessing at {CLASSIFY_SIZE} pixels")
        preprocessing = Preprocessing.for_task("classify", (CLASSIFY_SIZE, CLASSIFY_SIZE))
    else:
        preprocessing = ModelSpec.from_dict(passport.model).preprocessing
    untrained = passport is not None and passport.weights is not None and passport.weights.is_random
    if untrained:
        _warn("this file holds random weights: its answers mean nothing")
    found = classify(runner, preprocessing, images, top=top, labels=names)
    if as_json:
        rows = [
            {
                "image": prediction.image,
                "classes": [{"class": k, "label": label, "probability": p} for k, label, p in prediction.classes],
            }
            for prediction in found
        ]
        _print_json({"file": str(file), "meaningful": not untrained, "predictions": rows})
        return
    console = _console()
    for prediction in found:
        table = _table(prediction.image, "class", "label", "probability", right=("class", "probability"))
        for k, label, probability in prediction.classes:
            table.add_row(str(k), label or "", f"{probability:.2%}")
        console.print(table)


@app.command()
def bench(
    engine: Annotated[list[Path], typer.Option(metavar="FILE.onnx", help="Engine to time; may be repeated.", show_default=False)],
    batch: Annotated[str, typer.Option(metavar="N,N,...", help="Batches.")] = "1,8",
    threads: Annotated[int | None, typer.Option(help="Of one operator; default: the runtime's choice.", show_default=False)] = None,
    seconds: Annotated[float, typer.Option(help="Least time spent on each point.")] = 3.0,
    as_json: JsonOption = False,
) -> None:
    """Time engines per batch, interleaved and warmed up (ONNX Runtime on the CPU)."""
    from sepvit_deploy.bench import bench as measure
    from sepvit_deploy.bench import conditions as measure_conditions
    from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner

    batches = [_positive("--batch", part.strip(), "numbers, comma-separated") for part in batch.split(",")]
    if threads is not None and not 1 <= threads <= 1024:
        raise OptionError(f"--threads {threads}", expected="1 to 1024")
    if not 0 <= seconds <= 3600:
        raise OptionError(f"--seconds {seconds}", expected="0 to 3600")
    names = _distinct_names(engine)
    runners = [OnnxRuntimeRunner(path, name=name, threads=threads) for path, name in zip(engine, names, strict=True)]
    conditions = measure_conditions(threads)
    with _progress() as report:
        points = measure(runners, sorted(set(batches)), seconds=seconds, progress=_percent(report))
    if as_json:
        rows = [
            {
                "engine": p.engine,
                "batch": p.batch,
                "p50_ms": p.p50_ms,
                "p90_ms": p.quantile_ms(0.9),
                "p99_ms": p.quantile_ms(0.99),
                "min_ms": min(p.samples_ms),
                "spread": p.spread,
                "images_per_s": p.images_per_s,
                "settled": p.settled,
                "samples_ms": p.samples_ms,
            }
            for p in points
        ]
        _print_json({"conditions": conditions, "points": rows})
        return
    numbers = ("batch", "p50 ms", "p90 ms", "p99 ms", "min ms", "spread", "images/s", "samples")
    table = _table("latency per batch", "engine", *numbers, "", right=numbers)
    for p in points:
        times = (p.p50_ms, p.quantile_ms(0.9), p.quantile_ms(0.99), min(p.samples_ms))
        table.add_row(
            p.engine,
            str(p.batch),
            *(f"{ms:.1f}" for ms in times),
            f"{p.spread:.0%}",
            f"{p.images_per_s:.1f}",
            str(len(p.samples_ms)),
            "" if p.settled else "never settled",
        )
    console = _console()
    console.print(table)
    console.print("; ".join(f"{key}: {value}" for key, value in conditions.items()), soft_wrap=True, highlight=False)


def _distinct_names(paths: list[Path]) -> list[str]:
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _percent(report: Callable[[str], None]) -> Callable[[float], None]:
    """Report a share at each new tenth."""
    shown = -1

    def progress(share: float) -> None:
        nonlocal shown
        tenth = int(share * 10)
        if tenth > shown:
            shown = tenth
            report(f"measuring, {tenth * 10} %")

    return progress


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Show what this machine has, what is missing and how to get it."""
    from sepvit_deploy.doctor import diagnose

    with _progress() as report:
        report("trying what is installed")
        found = diagnose()
    if as_json:
        document: dict[str, Any] = asdict(found)
        for row, ability in zip(document["abilities"], found.abilities, strict=True):
            row["ready"] = ability.ready
        _print_json(document)
        return
    console = _console()
    memory = f", {found.memory_gb} GB of memory" if found.memory_gb else ""
    console.print(f"Python {found.python} on {found.platform}; {found.cores} cores{memory}", highlight=False, soft_wrap=True)
    console.print("GPU: " + ("; ".join(found.gpus) or "none that a driver reports"), highlight=False, soft_wrap=True)
    table = _table("abilities", "to", "ready", "found", "missing or broken")
    for ability in found.abilities:
        versions = "\n".join(f"{name} {version}" for name, version in ability.packages.items())
        trouble = [*ability.missing, *(f"{module}: {reason}" for module, reason in ability.broken.items())]
        table.add_row(ability.name, "yes" if ability.ready else "no", versions, "\n".join(trouble))
    console.print(table)
    for ability in found.abilities:
        if ability.hint:
            console.print(f"{ability.name}: type  {ability.hint}", highlight=False, markup=False, soft_wrap=True)
    for warning in found.warnings:
        _warn(warning)
