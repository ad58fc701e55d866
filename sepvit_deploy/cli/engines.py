"""What the commands about engines print."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sepvit_deploy.building import BUILDER_NAMES, size_text
from sepvit_deploy.cli.show import as_text, console, new_table, say

if TYPE_CHECKING:
    from sepvit_deploy.artifact import Parent
    from sepvit_deploy.building import EngineFacts, Profile
    from sepvit_deploy.doctor import PlanDiagnosis
    from sepvit_deploy.inspection import Inspection
    from sepvit_deploy.pipeline import Climbed, Engine

MOST_FLIPS = 5
TYPES = {"FLOAT": "FP32", "HALF": "FP16"}
"""TensorRT's names of types in the terms of everything else that is printed."""


def engine(done: Engine) -> None:
    """What build made, and what is known of it."""
    facts = done.facts
    if done.passport is None:
        say(f"{done.path} would be built; nothing was written")
    else:
        say(f"{done.path}: {done.passport.bytes / 1e6:.1f} MB, built in {facts.build_seconds:.1f} s")
    say(f"{_made_by(facts)}; {_batches(facts)}")
    say(f"the parsed network: {_products(facts)}")
    if facts.timing_cache_hit is not None:
        say(f"the timing cache knew {'every kernel' if facts.timing_cache_hit else 'not every kernel'}")
    if done.inspection is not None:
        inspection(done.inspection)
    elif done.passport is not None:
        trained = done.passport.weights is not None and not done.passport.weights.is_random
        again = f"sepvit-deploy check {shlex.quote(str(done.path))}{' --weights CHECKPOINT' if trained else ''}"
        say(f"not inspected: {done.uninspected}; where it runs, type: {again}")
    if done.passport is not None:
        say(f"passport: {done.path}.json")


def inspection(found: Inspection) -> None:
    """What an engine really computes: precisions, blocks, attention, and what is spent on moving numbers."""
    table = new_table("the engine's layers", "precision", "layers", "ms", "share", right=("layers", "ms", "share"))
    for name, total in found.precisions.items():
        table.add_row(name, str(total.layers), _ms(total.ms), f"{total.share:.0%}")
    console().print(table)
    blocks = new_table("by block", "block", "layers", "ms", "share", right=("layers", "ms", "share"))
    for name, total in found.blocks.items():
        blocks.add_row(name or "of no block", str(total.layers), _ms(total.ms), f"{total.share:.0%}")
    console().print(blocks)
    states: dict[str, list[str]] = {}
    for attention in found.attention:
        states.setdefault(attention.state, []).append(attention.name)
    said = "; ".join(f"{state}: {', '.join(names)}" for state, names in sorted(states.items()))
    moved = found.of("reformat", "cast")
    say(f"attention in one kernel or not: {said or 'none is named'}")
    say(f"reformats and casts: {moved.layers} layers, {moved.share:.0%} of the time")


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def engine_document(done: Engine) -> dict[str, Any]:
    """The same as plain JSON."""
    return {
        "path": str(done.path),
        "written": done.passport is not None,
        "engine": done.facts.to_dict(),
        "passport": asdict(done.passport) if done.passport else None,
    }


def _made_by(facts: EngineFacts) -> str:
    """Builder, its version, and the GPUs that the engine is for."""
    if facts.device is not None:
        target = f"for {as_text(facts.device.name)} (compute capability {facts.device.compute_capability})"
    else:
        some = f"compute capability {', '.join(facts.compute_capabilities)}"
        target = f"for {some if facts.compute_capabilities else 'every RTX generation'}"
    return f"{BUILDER_NAMES[facts.builder]} {facts.builder_version}, {target}"


def _batches(facts: EngineFacts) -> str:
    """The batches and sizes that it takes, and those that it was tuned for."""
    return f"batch {facts.batch}" if facts.batch is not None else "; ".join(map(_profile, facts.profiles))


def _profile(profile: Profile) -> str:
    least, _, most = profile.sizes or (None, None, None)
    tuned = [] if profile.minimum == profile.maximum else [str(profile.optimum)]
    if profile.sizes and least != most:
        tuned = [str(profile.optimum), size_text(profile.sizes[1])]
    return f"batch {profile.takes}" + (f", tuned for {' at '.join(tuned)}" if tuned else "")


def _products(facts: EngineFacts) -> str:
    """Matrix products and convolutions by the type that they compute in."""
    network = facts.network
    return "; ".join(
        f"{name} {', '.join(f'{count} {TYPES.get(kind, kind)}' for kind, count in sorted(counts.items()))}"
        for name, counts in (("matrix products", network.matmuls), ("convolutions", network.convolutions))
        if counts
    )


def climbed(found: Climbed) -> None:
    """Every rung against the first one and the one before, the decisions that changed, and the verdict."""
    climb = found.climb
    numbers = ("SQNR dB", "cosine", "worst", "top-1")
    table = new_table(
        f"{climb.images} images ({climb.source}), from {climb.reference}", "rung", "is", "against", *numbers, "verdict",
        right=numbers,
    )  # fmt: skip
    for step in climb.steps:
        pairs = [step.first] if step.first.against == step.before.against else [step.first, step.before]
        for compared in pairs:
            judged = compared is step.judged or len(pairs) == 1
            verdict = "" if not judged else "ok" if compared.passed else "excused" if step.excused else "FAILED"
            agreement = "" if compared.top1_agreement is None else f"{compared.top1_agreement:.1%}"
            first = compared is pairs[0]
            outputs = [tensor for tensor in compared.tensors if tensor.name in compared.outputs]
            worst = min(outputs, key=lambda tensor: tensor.sqnr_db)
            table.add_row(
                step.rung if first else "",
                as_text(step.runner) if first else "",
                compared.against,
                f"{worst.sqnr_db:.1f}",
                f"{worst.cosine:.6f}",
                f"{worst.max_difference:.1e}",
                agreement,
                verdict,
            )
    console().print(table)
    inner = ", ".join(f"{step.rung} {len(step.judged.tensors) - len(step.judged.outputs)}" for step in climb.steps)
    say(f"inner tensors compared: {inner}")
    for step in climb.steps:
        compared = step.judged
        if compared.first_out is not None:
            worst_element = compared.worst[compared.first_out]
            say(
                f"{step.rung}: first out of tolerance is {compared.first_out}, most at {list(worst_element.index)}: "
                f"{worst_element.candidate:.4g} for {worst_element.reference:.4g}"
            )
        for flip in compared.flips[:MOST_FLIPS]:
            say(
                f"{step.rung}: {as_text(flip.image)} is {flip.after} (margin {flip.margin_after:.3g}), "
                f"was {flip.before} (margin {flip.margin_before:.3g})"
            )
    if climb.floor is not None:
        say(f"{climb.floor.builds} builds of the FP32 file differ by {climb.floor.median_db:.1f} dB (median of pairs)")
    if found.block is not None:
        say(f"the engine's first block out of tolerance: {found.block}")
    say(f"verdict: {climb.verdict}" + (f", as far as it went: {as_text(found.left_out)}" if found.left_out else ""))


def diagnosis(found: PlanDiagnosis) -> None:
    """What a plan is, what it was made from, and whether it loads here."""
    facts = found.facts
    say(f"{as_text(found.path)}: {found.precision.upper()}, {_made_by(facts)}")
    say(f"{_batches(facts)}; {_products(facts)}")
    say("made from " + ", ".join(map(_parent, found.chain)))
    say(f"Triton image: {found.triton}")
    for difference in found.differences:
        say(f"not as where it was built: {as_text(difference)}")
    if found.loads:
        say("it will load here")
        return
    say("it will NOT load here:")
    for obstacle in found.obstacles:
        say(f"  {as_text(obstacle.found)}; expected {as_text(obstacle.expected)}; {as_text(obstacle.hint)}")


def _parent(parent: Parent) -> str:
    if parent.is_random:
        return f"random weights (seed {parent.seed})"
    return f"{as_text(parent.name)} ({(parent.sha256 or 'no digest')[:12]})"
