"""What the commands print: results on stdout, progress and warnings on stderr, no colour where it is no terminal."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from sepvit_deploy.variants import PAPER, VARIANTS, count_macs, count_parameters

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from sepvit_deploy.audit import Audit
    from sepvit_deploy.complexity import Stage
    from sepvit_deploy.doctor import Diagnosis
    from sepvit_deploy.parity import Parity
    from sepvit_deploy.pipeline import Exported
    from sepvit_deploy.predict import Prediction

WIDTH = 110
"""Columns of a table that no terminal shows."""
MOST_FINDINGS = 20
MOST_TENSORS = 16


def warn(message: str) -> None:
    """One line on stderr."""
    tell(f"warning: {as_text(message)}")


def tell(line: str) -> None:
    """A line on stderr, where anybody listens: what nobody hears is no reason to stop the work."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr, flush=True)


def as_text(text: str) -> str:
    """Text of a file or a name that cannot move a terminal's cursor or begin a new line."""
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Cs" else ascii(c)[1:-1] for c in text)


def json_document(document: object) -> None:
    """One JSON object on stdout."""
    print(json.dumps(document, indent=2, allow_nan=False))


class Bar:
    """The step under way on a terminal: a bar that fills where the share done is known, and pulses elsewhere."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=None)

    def __call__(self, step: str) -> None:
        """Begin a step."""
        self._progress.remove_task(self._task)
        self._task = self._progress.add_task(as_text(step), total=None)

    def share(self, what: str, share: float) -> None:
        """Say how far a step is, 0 to 1."""
        self._progress.update(self._task, description=what, total=1.0, completed=share)


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Show the step under way: a bar on a terminal, a line each elsewhere."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda step: tell(f"{step} ...")
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield Bar(bars)


def percent(report: Callable[[str], None], what: str) -> Callable[[float], None]:
    """Fill the bar of a terminal; elsewhere report a share at each new tenth."""
    if isinstance(report, Bar):
        return functools.partial(report.share, what)
    shown = 0

    def show(share: float) -> None:
        nonlocal shown
        step = int(share * 10)
        if step > shown:
            shown = step
            report(f"{what}, {step * 10} %")

    return show


def console() -> Console:
    """Where results go: as wide as the terminal, `WIDTH` where there is none."""
    from rich.console import Console

    if sys.stdout is not None and sys.stdout.isatty():
        return Console(markup=False, emoji=False, highlight=False)
    return Console(markup=False, emoji=False, highlight=False, width=WIDTH, color_system=None)


def say(text: str) -> None:
    """A line of a result, or several; what is in it moves no cursor."""
    console().print("\n".join(map(as_text, text.split("\n"))), soft_wrap=True)


def new_table(title: str, *columns: str, right: tuple[str, ...] = ()) -> Table:
    """A table whose ``right`` columns hold numbers, never broken; text folds into lines rather than being cut."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        number = column in right
        table.add_column(column, justify="right" if number else "left", no_wrap=number, overflow="fold")
    return table


def _macs(found: Audit) -> str:
    """``0.640 G MACs an image``, and of which size where the graph takes any."""
    size = found.macs_size
    return f"{_giga(found.macs)} MACs an image" + (f" of {size[0]}x{size[1]} pixels" if size else "")


def _giga(macs: int | None) -> str:
    return "unknown" if macs is None else f"{macs / 1e9:.3f} G"


def variants() -> None:
    """The architectures."""
    numbers = ("parameters", "MACs (224)", "top-1 %", "img/s", "ms")
    table = new_table("SepViT", "variant", "channels", "blocks", *numbers, right=numbers)
    for variant in VARIANTS.values():
        paper = variant.published
        table.add_row(
            variant.name,
            " ".join(map(str, variant.channels)),
            " ".join(map(str, variant.depths)),
            f"{count_parameters(variant):,}",
            _giga(count_macs(variant)),
            f"{paper.top1:.1f}",
            str(paper.images_per_s or "-"),
            str(paper.latency_ms or "-"),
        )
    console().print(table)
    say(
        f"Parameters and MACs are counted; the rest is the paper's ({PAPER}): ImageNet-1K top-1, throughput on a V100\n"
        "(FP32, batch 192), latency on a T4 (TensorRT, batch 8). No trained weights are public."
    )


def complexity(stages: Sequence[Stage]) -> None:
    """Blocks of each stage, counted and published."""
    numbers = ("stage", "channels", "map", "SepViT x1", "paper", "exported", "Swin x2", "paper", "Twins x2", "paper")
    table = new_table("G multiply-accumulates of the blocks that join all windows", *numbers, right=numbers)
    for stage in stages:
        paper = stage.published
        giga = [macs / 1e9 for macs in (stage.sepvit, stage.rewritten, stage.swin, stage.twins)]
        figures = (giga[0], paper.sepvit, giga[1], giga[2], paper.swin, giga[3], paper.twins)
        map_size = f"{stage.side}x{stage.side}"
        table.add_row(str(stage.number), str(stage.channels), map_size, *(f"{figure:.3f}" for figure in figures))
    console().print(table)
    names = {"sepvit": "SepViT", "swin": "Swin", "twins": "Twins"}
    exact = [name for who, name in names.items() if all(stage.reproduced(who) for stage in stages)]
    off = [name for name in names.values() if name not in exact]
    nearest = " ".join(f"{stage.twins_by_window / 1e9:.3f}" for stage in stages)
    say(
        f"Counted by formula: linear layers, convolutions, both products of each attention, MLP. Paper: {PAPER}.\n"
        f"To its last digit: {', '.join(exact)}. Not so: {', '.join(off) or 'none'}.\n"
        "exported: the first block of each stage in our classifier. QKV of the window tokens is a constant there, and\n"
        "where one window covers the map there is no window token, which the paper's figure has.\n"
        f"Twins x2: with the sub-sampling of Twins-SVT, {_errors(stages, 'twins')} off the paper's figures. Nearest\n"
        "comes a GSA with one representative a window and nothing else made smaller:\n"
        f"{nearest}, {_errors(stages, 'twins_by_window')} off."
    )


def _errors(stages: Sequence[Stage], who: str) -> str:
    errors = [100 * stage.error(who) for stage in stages]
    return f"{min(errors):+.1f} to {max(errors):+.1f} %"


def complexity_rows(stages: Sequence[Stage]) -> list[dict[str, object]]:
    """The same as plain JSON: counted in multiply-accumulates, published in G of them."""
    return [
        asdict(stage) | {"reproduced": {who: stage.reproduced(who) for who in ("sepvit", "swin", "twins")}}
        for stage in stages
    ]


def exported(done: Exported) -> None:
    """What export made and proved."""
    audited, compared = done.audit, done.parity
    say(
        f"{done.path}: {done.passport.bytes / 1e6:.1f} MB, {audited.nodes} nodes, opset {audited.opset}, "
        f"{_macs(audited)}\n"
        f"parity with the reference on {compared.images} {compared.source}: "
        + likeness_text(compared, "largest difference {max_difference:.1e}, SQNR {sqnr_db:.0f} dB")
        + f"\npassport: {done.path}.json"
    )


def likeness_text(compared: Parity, figures: str) -> str:
    """Figures of the worst output, with its fields in braces, and how often decisions agree; of a mask that alone."""
    worst = min((t for t in compared.tensors if t.name in compared.outputs), key=lambda tensor: tensor.sqnr_db)
    agreement = agreement_text(compared)
    return agreement.removeprefix(", ") if worst.classes else figures.format(**asdict(worst)) + agreement


def agreement_text(compared: Parity) -> str:
    """How often decisions agree, to follow other figures."""
    if compared.pixel_agreement is not None:
        return f", {compared.pixel_agreement:.2%} of {compared.counted} with the same class"
    return "" if compared.top1_agreement is None else f", top-1 agrees on {compared.top1_agreement:.1%}"


def audit(name: str, found: Audit) -> None:
    """A graph's contents and findings."""
    say(as_text(name))
    table = new_table("", "operator", "nodes", right=("nodes",))
    for operator, count in found.operators.items():
        table.add_row(as_text(operator), str(count))
    table.add_section()
    table.add_row("all", str(found.nodes))
    console().print(table)
    shapes = [f"{name} {' x '.join(map(str, dims))}" for name, dims in (*found.inputs.items(), *found.outputs.items())]
    say(
        f"opset {found.opset}; {found.parameters:,} parameters, {_macs(found)}, "
        f"{found.bytes / 1e6:.1f} MB; {', '.join(shapes)}"
    )
    if found.deployable:
        say("deployable: no rule is broken")
        return
    rules = new_table(f"not deployable: {len(found.findings)} findings", "node", "reason")
    for finding in found.findings[:MOST_FINDINGS]:
        rules.add_row(as_text(finding.node), as_text(finding.reason))
    console().print(rules)
    if len(found.findings) > MOST_FINDINGS:
        say(f"and {len(found.findings) - MOST_FINDINGS} more: add --json to see them all")


def parity(compared: Parity) -> None:
    """A comparison: the outputs, and the inner tensors out of tolerance."""
    numbers = ("max |difference|", "relative", "SQNR dB", "cosine")
    table = new_table(
        f"{compared.candidate} against {compared.reference}", "tensor", *numbers, "verdict", right=numbers
    )
    inner = [t for t in compared.tensors if t.name not in compared.outputs]
    out = [t for t in inner if not t.within(compared.tolerance)]
    for tensor in (*out[:MOST_TENSORS], *(t for t in compared.tensors if t.name in compared.outputs)):
        values = [f"{tensor.max_difference:.2e}", f"{tensor.relative:.2e}", f"{tensor.sqnr_db:.1f}"]
        values.append(f"{tensor.cosine:.9f}")
        verdict = "ok" if tensor.within(compared.tolerance) else "out of tolerance"
        shown = ["classes", "", "", ""] if tensor.classes else values
        table.add_row(tensor.name, *shown, verdict if tensor.finite else "not finite")
    console().print(table)
    first = f"; first out of tolerance: {compared.first_out}" if compared.first_out else ""
    say(
        f"{'passed' if compared.passed else 'FAILED'} on {compared.images} images ({compared.source}), "
        f"{len(inner)} inner tensors compared{agreement_text(compared)}{first}"
    )


def predictions(found: Sequence[Prediction]) -> None:
    """The best classes of each picture."""
    for prediction in found:
        say(as_text(prediction.image))
        table = new_table("", "class", "label", "probability", right=("class", "probability"))
        for k, label, probability in prediction.classes:
            table.add_row(str(k), as_text(label or ""), f"{probability:.2%}")
        console().print(table)


def variant_rows() -> list[dict[str, object]]:
    """The architectures as plain JSON."""
    return [
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


def diagnosis(found: Diagnosis) -> None:
    """The machine, what it can do, and what to type for the rest."""
    memory = f", {found.memory_gb} GB of memory" if found.memory_gb else ""
    say(f"Python {found.python} on {found.platform}; {found.cores} cores{memory}")
    say("GPU: " + ("; ".join(found.gpus) or "none that a driver reports"))
    table = new_table("abilities", "to", "ready", "found", "missing or broken")
    for ability in found.abilities:
        versions = "\n".join(f"{name} {version}" for name, version in ability.packages.items())
        trouble = [*ability.missing, *(f"{module}: {reason}" for module, reason in ability.broken.items())]
        table.add_row(ability.name, "yes" if ability.ready else "no", versions, "\n".join(trouble))
    console().print(table)
    for ability in found.abilities:
        if ability.hint:
            say(f"{ability.name}: type  {ability.hint}")
    for warning in found.warnings:
        warn(warning)
