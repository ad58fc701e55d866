"""What the commands about precision print."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepvit_deploy.cli.show import as_text, console, likeness_text, new_table, say

if TYPE_CHECKING:
    from sepvit_deploy.accuracy import Share
    from sepvit_deploy.artifact import Passport
    from sepvit_deploy.evaluate import Evaluation
    from sepvit_deploy.headroom import Headroom
    from sepvit_deploy.lint import LintReport
    from sepvit_deploy.pipeline import Deployed, Lowered
    from sepvit_deploy.scales import ScaleTable
    from sepvit_deploy.sensitivity import Sensitivity

MOST_ROWS = 20
MOST_FLIPS = 10
MOST_TENSORS = 4


def calibrated(path: Path, scales: ScaleTable) -> None:
    """What calibrate measured, the tensors first that the method clips most."""
    found = new_table(
        f"{len(scales.tensors)} tensors, method {scales.method}", "tensor", "largest |x|", "threshold", "clipped at",
        right=("largest |x|", "threshold", "clipped at"),
    )  # fmt: skip
    rows = []
    for name, seen in scales.tensors.items():
        largest = max(-seen.minimum, seen.maximum)
        rows.append((seen.threshold / largest, name, largest, seen.threshold))
    rows.sort()
    for share, name, largest, threshold in rows[:MOST_ROWS]:
        found.add_row(as_text(name), f"{largest:.4g}", f"{threshold:.4g}", f"{share:.0%}")
    console().print(found)
    _more(len(rows) - MOST_ROWS, "tensors")
    skipped = f", {scales.images.skipped} unreadable ones passed over" if scales.images.skipped else ""
    say(f"{path}: {scales.images.samples} images of {scales.images.name}, batch {scales.batch}{skipped}")


def smoothed(path: Path, passport: Passport) -> None:
    """What smooth wrote."""
    known = [tensor["sqnr_db"] for tensor in passport.facts["parity"]["tensors"] if tensor["sqnr_db"] is not None]
    lowest = f"lowest SQNR of any tensor {min(known):.0f} dB" if known else "every tensor is equal"
    say(f"{path}: {passport.bytes / 1e6:.1f} MB, FP32, computes the same ({lowest})")
    say(f"calibrate it next: sepvit-deploy calibrate {path} --images DIR")


def lowered(done: Lowered) -> None:
    """What quantize made and proved."""
    facts, compared = done.passport.facts, done.parity
    counts = "; ".join(
        f"{kind}: {', '.join(f'{count} {operator}' for operator, count in sorted(operators.items()))}"
        for kind, operators in sorted(done.lint.products.items())
    )
    say(f"{done.path}: {done.passport.bytes / 1e6:.1f} MB, {facts['audit']['nodes']} nodes, {facts['precision']}")
    say(f"products and convolutions: {counts}")
    if done.pairs:
        kept = f", kept out of it: {', '.join(done.kept)}" if done.kept else ""
        say(f"{len(done.quantized)} layers in INT8 behind {done.pairs} Q/DQ pairs{kept}")
    if done.headroom is not None:
        _headroom(done.headroom)
    say(
        f"against the FP32 file on {compared.images} {compared.source}: "
        f"{likeness_text(compared, 'SQNR {sqnr_db:.1f} dB')}; what it costs on yours: "
        f"sepvit-deploy evaluate {done.path} --images DIR --against {done.passport.parents[0].name}"
    )
    _warnings(done.lint)


def _headroom(found: Headroom) -> None:
    """The tensors that come closest to FP16's largest number, and those that lose the most below its smallest."""
    numbers = ("largest |x|", "below 65504 by", "subnormal")
    rows = new_table(
        f"FP16 head-room on {found.images} images", "tensor", *numbers, "image of the largest", right=numbers
    )
    closest = found.tensors[:MOST_TENSORS]
    finest = sorted(found.tensors[MOST_TENSORS:], key=lambda tensor: -tensor.subnormal)[:MOST_TENSORS]
    for tensor in (*closest, *finest):
        factor = f"{1 / tensor.share:.0f} times" if tensor.share else ""
        name = as_text(tensor.image.rsplit("/", 1)[-1])
        rows.add_row(as_text(tensor.tensor), f"{tensor.largest:.4g}", factor, f"{tensor.subnormal:.2%}", name)
    console().print(rows)


def lowered_document(done: Lowered) -> dict[str, Any]:
    """The same as plain JSON."""
    return {
        "path": str(done.path),
        "passport": asdict(done.passport),
        "quantized": list(done.quantized),
        "kept": list(done.kept),
        "findings": [asdict(finding) for finding in done.lint.findings],
        "headroom": None if done.headroom is None else [asdict(tensor) for tensor in done.headroom.tensors],
    }


def linted(name: str, found: LintReport) -> None:
    """Findings, and the precision mix."""
    if found.findings:
        rows = new_table(f"{name}: findings", "severity", "rule", "node", "what and why")
        for finding in found.findings[:MOST_ROWS]:
            rows.add_row(finding.severity, finding.rule, as_text(finding.node), as_text(finding.message))
        console().print(rows)
        _more(len(found.findings) - MOST_ROWS, "findings")
    for kind, operators in sorted(found.products.items()):
        say(f"{kind}: " + ", ".join(f"{count} {operator}" for operator, count in sorted(operators.items())))
    warnings = sum(finding.severity == "warning" for finding in found.findings)
    passed = "passed" + (f" with {warnings} warning{'s' * (warnings > 1)}" if warnings else "")
    say(f"{name}: {passed if found.passed else 'TensorRT would refuse it'}")


def _warnings(found: LintReport) -> None:
    warnings = [finding for finding in found.findings if finding.severity == "warning"]
    for finding in warnings[:3]:
        say(f"lint: {finding.rule} at {as_text(finding.node)}: {as_text(finding.message)}")
    if warnings[3:]:
        say(f"and {len(warnings) - 3} more warnings: sepvit-deploy lint shows them")


def sensitivity(name: str, found: Sensitivity) -> None:
    """The groups, most costly first."""
    alone = any(row.alone is not None for row in found.rows)
    numbers = ("SQNR dB without", "gain dB", "agreement", *(("SQNR dB alone",) if alone else ()))
    rows = new_table(f"{name}: what INT8 costs, one group left out at a time", "group", *numbers, right=numbers)
    rows.add_row(
        "(all in INT8)", f"{found.everything.sqnr_db:.1f}", "", _percent(found.everything.agreement), *alone * [""]
    )
    for row in found.rows:
        lone = [f"{row.alone.sqnr_db:.1f}" if row.alone else ""] if alone else []
        rows.add_row(
            row.group, f"{row.without.sqnr_db:.1f}", f"{row.gain_db:+.2f}", _percent(row.without.agreement), *lone
        )
    console().print(rows)
    reached = "reaches" if found.reached else "does NOT reach"
    goal = (
        f"{found.target.agreement:.1%} agreement" if found.kept.agreement is not None else f"{found.target.sqnr_db} dB"
    )
    if found.keep:
        say(f"suggested, {reached} {goal} ({_percent(found.kept.agreement)}, {found.kept.sqnr_db:.1f} dB):")
        say(f"    {found.keep_options}")
    else:
        say(f"nothing to keep: all in INT8 {reached} {goal} on {found.images} images")


def evaluation(found: Evaluation) -> None:
    """Accuracy, and the comparison with another file."""
    passed_over = f", {len(found.unreadable)} unreadable ones passed over" if found.unreadable else ""
    label = "" if found.meaningful else " (not meaningful: untrained weights)"
    say(f"{found.model} on {found.images} images of {found.image_set}{passed_over}")
    for name, share in (("top-1", found.top1), ("top-5", found.top5)):
        if share is not None:
            say(f"{name}: {_interval(share)}{label}")
    other = found.against
    if other is None:
        return
    for name, share in (("top-1", other.top1), ("top-5", other.top5)):
        if share is not None:
            say(f"{other.model} {name}: {_interval(share)}{label}")
    say(f"agreement with {other.model}: {_interval(other.agreement)}; SQNR of the logits {other.sqnr_db:.1f} dB")
    if other.mcnemar is not None:
        b, c, p = other.mcnemar.b, other.mcnemar.c, other.mcnemar.p_value
        say(f"right only in {other.model}: {b}; right only in {found.model}: {c}; McNemar's exact p = {p:.3g}{label}")
    if other.flips:
        numbers = ("label", "before", "after", "margin before", "margin after")
        rows = new_table("decisions that changed, widest margin first", "image", *numbers, right=numbers)
        for flip in other.flips[:MOST_FLIPS]:
            label_text = "" if flip.label is None else str(flip.label)
            margins = (f"{flip.margin_before:.3f}", f"{flip.margin_after:.3f}")
            rows.add_row(as_text(flip.image), label_text, str(flip.before), str(flip.after), *margins)
        console().print(rows)
        _more(len(other.flips) - MOST_FLIPS, "flips")


def deployed(done: Deployed) -> None:
    """The stages of a deployment, and what is left to do elsewhere."""
    rows = new_table(done.name, "stage", "result", "what was found")
    for step in done.steps:
        rows.add_row(step.stage, "done" if step.done else "not done", as_text(step.found))
    console().print(rows)
    missing = [step.stage for step in done.steps if not step.done]
    say(f"{done.path}: " + (f"made; NOT done: {', '.join(missing)}" if missing else "ready"))


def _interval(share: Share) -> str:
    return f"{share.share:.2%} ({share.count} of {share.images}; 95 %: {share.low:.2%} to {share.high:.2%})"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def _more(count: int, what: str) -> None:
    if count > 0:
        say(f"and {count} more {what}: add --json to see them all")
