"""The forms of a model as rungs of a ladder, from the paper's to the engine: which step leaves it, and in which block.

    torch      the model as the paper writes it: what every other rung is measured by
    rewritten  the same, rewritten exactly
    onnx       the float32 file
    precision  the FP16 or INT8 file
    engine     what TensorRT made of it

Every rung runs on the same images, a batch at a time, and is compared with the first rung and with the one before it.

What a rung is held to depends on what it is:

- A rung of the *model* (all but the engine) is held to the first one. Exact steps then have the whole float32 tolerance
  and cannot drift away in steps that each pass; a lossy step has the loss that its precision is allowed.
- A rung of the *runtime* (the engine) is held to the rung before it, the same numbers in the same precision as ONNX
  Runtime computes them. What the precision costs is the file's doing and not the engine's, so it may not hide behind
  the wide tolerance of an INT8 file, nor be blamed for it.

So the first rung out of tolerance says whose fault it is: "the model is wrong" where it is one of the model, for then
nothing above it can be right; "the runtime is wrong" where the engine alone leaves what its file computes. The other
comparison of each rung, with the rung before, tells which step brings the difference in.

Builds of one file differ among themselves, for the builder chooses kernels by timing them. `noise_floor` measures by
how much; a runtime that is out of tolerance by no more than that is not at fault, if it still decides alike.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from sepvit_deploy.accuracy import Flip
from sepvit_deploy.errors import InputError, OptionError, ParityFailed
from sepvit_deploy.likeness import Likeness, NoiseFloor, TensorParity, Tolerance, Worst, noise_floor
from sepvit_deploy.runners.batches import InBatches

if TYPE_CHECKING:
    from sepvit_deploy.runners.base import Array, Runner

__all__ = ["Climb", "Compared", "NoiseFloor", "Rung", "Step", "climb", "noise_floor"]

What = Literal["model", "runtime"]
Verdict = Literal["agrees", "the model is wrong", "the runtime is wrong"]
MOST_FLIPS = 20
"""Flipped images that a comparison keeps: those with the widest margins."""


@dataclass(frozen=True)
class Rung:
    """One form of the model.

    Attributes:
        name: its place on the ladder: torch, rewritten, onnx, precision, engine.
        tolerance: what it is held to: a runtime against the rung before, the rest against the first. The first rung's
            own is not used.
        what: what is at fault where it fails.
    """

    name: str
    runner: Runner
    tolerance: Tolerance
    what: What = "model"


@dataclass(frozen=True)
class Compared:
    """One rung against another, over all images.

    Attributes:
        tensors: every output, and the inner tensors that both name, in the order of computation.
        worst: of each of them, the element that differs most.
        top1_agreement: share of images with the same best class; None where there are no classes.
        flipped: how many images have another; flips: those with the widest margins on the other rung, widest first.
        first_out: the first tensor out of tolerance.
    """

    against: str
    tolerance: Tolerance
    tensors: tuple[TensorParity, ...]
    worst: Mapping[str, Worst]
    outputs: tuple[str, ...]
    top1_agreement: float | None
    flipped: int
    flips: tuple[Flip, ...]
    first_out: str | None

    @property
    def decides_alike(self) -> bool:
        """True where every output is finite and enough best classes are the same."""
        agree = self.top1_agreement is None or self.top1_agreement >= self.tolerance.top1_agreement
        return agree and all(tensor.finite for tensor in self._outputs())

    @property
    def passed(self) -> bool:
        """True where every output is within tolerance and decisions agree."""
        return self.decides_alike and all(tensor.within(self.tolerance) for tensor in self._outputs())

    @property
    def sqnr_db(self) -> float:
        """Of the worst output; not a number where one is not finite."""
        found = [tensor.sqnr_db for tensor in self._outputs()]
        return math.nan if any(map(math.isnan, found)) else min(found)

    def _outputs(self) -> Iterator[TensorParity]:
        return (tensor for tensor in self.tensors if tensor.name in self.outputs)


@dataclass(frozen=True)
class Step:
    """What became of a rung.

    Attributes:
        rung: its name; runner: what runs it, a file's name.
        first, before: the comparisons with the first rung and with the one before.
        excused: out of tolerance by no more than builds differ.
    """

    rung: str
    runner: str
    what: What
    first: Compared
    before: Compared
    excused: bool

    @property
    def judged(self) -> Compared:
        """The comparison that the rung is held to."""
        return self.before if self.what == "runtime" else self.first

    @property
    def passed(self) -> bool:
        """True where the rung is what it should be."""
        return self.excused or self.judged.passed


@dataclass(frozen=True)
class Climb:
    """The result of a climb.

    Attributes:
        reference: the first rung; source: what the images were.
        steps: the other rungs, in order.
    """

    reference: str
    images: int
    source: str
    steps: tuple[Step, ...]
    floor: NoiseFloor | None

    @property
    def failed(self) -> Step | None:
        """The first rung out of tolerance."""
        return next((step for step in self.steps if not step.passed), None)

    @property
    def passed(self) -> bool:
        """True where every rung is what it should be."""
        return self.failed is None

    @property
    def verdict(self) -> Verdict:
        """Whose fault it is, if there is one."""
        if self.failed is None:
            return "agrees"
        return "the runtime is wrong" if self.failed.what == "runtime" else "the model is wrong"

    def require_passed(self) -> None:
        """Make the climb a gate.

        Raises:
            ParityFailed: naming the first rung out of tolerance, and the first block within it.
        """
        step = self.failed
        if step is None:
            return
        judged = step.judged
        limit = judged.tolerance
        agreement = "" if judged.top1_agreement is None else f" and {limit.top1_agreement:.2%} equal top-1"
        raise ParityFailed(
            f"{self.verdict}: {step.rung} ({step.runner}) against {judged.against}: {_trouble(judged, self.images)}",
            expected=f"at least {limit.sqnr_db:.0f} dB, at most {limit.relative:.0e}{agreement}",
            hint=self._origin(step),
        )

    def _origin(self, step: Step) -> str | None:
        """Whether the failing step itself brings the difference in, where the comparison with the one before tells."""
        if step.what == "runtime":
            return f"the rungs before it agree with {self.reference}"
        alike = step.before.passed and step.before.against != self.reference
        return f"{step.rung} is as {step.before.against}: look there as well" if alike else None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON; numbers that are not finite are None."""
        failed = self.failed
        facts = asdict(self) | {"verdict": self.verdict, "failed": failed.rung if failed else None}
        for step, values in zip(self.steps, facts["steps"], strict=True):
            values["passed"] = step.passed
        plain: dict[str, Any] = _plain(facts)
        return plain


def _trouble(compared: Compared, images: int) -> str:
    tensor = next((t for t in compared.tensors if t.name == compared.first_out), None)
    if tensor is None:
        return f"top-1 agrees on {compared.top1_agreement:.2%} of {images} images"
    worst = compared.worst[tensor.name]
    at = f"at {list(worst.index)} {worst.candidate:.4g} for {worst.reference:.4g}"
    if not tensor.finite:
        return f"{tensor.name} has numbers that are not finite, {at}"
    said = f"{tensor.name} differs by {tensor.relative:.1e} (SQNR {tensor.sqnr_db:.1f} dB), most {at}"
    if tensor.name in compared.outputs:
        return said
    ends = [end for end in compared.tensors if end.name in compared.outputs and not end.within(compared.tolerance)]
    return said + "".join(f"; {end.name} by {end.relative:.1e} (SQNR {end.sqnr_db:.1f} dB)" for end in ends[:1])


def climb(
    rungs: Sequence[Rung],
    batches: Iterable[Array],
    *,
    source: str,
    outputs: tuple[str, ...],
    names: Sequence[str] = (),
    floor: NoiseFloor | None = None,
) -> Climb:
    """Run every rung on the same images and compare it with the first one and with the one before.

    Memory holds the outputs of a batch on three rungs, and does not grow with the images.

    Args:
        batches: images (B, 3, H, W), of any sizes that every rung takes; a rung of another fixed batch gets them cut
            and filled up.
        source: what the images are, for the report.
        outputs: names that every rung must give; inner tensors that two rungs name are compared as well.
        names: of the images, in their order, for the report.
        floor: how far builds of the runtime's file are apart.

    Raises:
        OptionError: fewer than two rungs, two of one name, the first one a runtime, or no outputs.
        InputError: no images, or a rung does not take them.
        ParityFailed: an output is missing on a rung, or has another shape.
    """
    _require_ladder(rungs, outputs)
    pairs: list[tuple[_Pair, _Pair]] = []
    for lower, rung in itertools.pairwise(rungs):
        to_first = _Pair(rungs[0], rung, outputs, names)
        pairs.append((to_first, _Pair(lower, rung, outputs, names) if pairs else to_first))
    runners = [InBatches(rung.runner) for rung in rungs]
    images = 0
    for batch in batches:
        first = before = runners[0].run(batch)
        for runner, (to_first, to_before) in zip(runners[1:], pairs, strict=True):
            found = runner.run(batch)
            to_first.add(first, found, images, len(batch))
            if to_before is not to_first:
                to_before.add(before, found, images, len(batch))
            before = found
        images += len(batch)
    if not images:
        raise InputError("there are no images to compare on", expected="one or more")
    steps = tuple(
        _step(rung, to_first.result(), to_before.result(), floor)
        for rung, (to_first, to_before) in zip(rungs[1:], pairs, strict=True)
    )
    return Climb(rungs[0].name, images, source, steps, floor)


def _require_ladder(rungs: Sequence[Rung], outputs: tuple[str, ...]) -> None:
    named = [rung.name for rung in rungs]
    if len(rungs) < 2 or len(set(named)) < len(named):
        raise OptionError(f"the rungs are {', '.join(named) or 'none'}", expected="two or more, each named once")
    if rungs[0].what == "runtime":
        raise OptionError(f"the first rung is the runtime {named[0]}", expected="a form of the model to judge by")
    if not outputs:
        raise OptionError("no outputs to compare", expected="one or more")


def _step(rung: Rung, first: Compared, before: Compared, floor: NoiseFloor | None) -> Step:
    runtime = rung.what == "runtime" and not before.passed and before.decides_alike
    excused = runtime and floor is not None and floor.covers(before.sqnr_db)
    return Step(rung.name, rung.runner.name, rung.what, first, before, excused)


class _Pair:
    """A rung against another, over batches."""

    def __init__(self, lower: Rung, rung: Rung, outputs: tuple[str, ...], names: Sequence[str]) -> None:
        self._likeness = Likeness(f"{lower.name} ({lower.runner.name})", f"{rung.name} ({rung.runner.name})", outputs)
        self._against, self._tolerance, self._outputs, self._names = lower.name, rung.tolerance, outputs, names
        self._widest: list[tuple[float, int, Flip]] = []
        self._flipped = 0

    def add(self, expected: Mapping[str, Array], found: Mapping[str, Array], start: int, images: int) -> None:
        """Add a batch of ``images`` whose first one is ``start``."""
        self._likeness.add(expected, found, images)
        if self._outputs == ("logits",) and expected["logits"].ndim == 2 and expected["logits"].size:
            self._add_flips(expected["logits"], found["logits"], start)

    def _add_flips(self, expected: Array, found: Array, start: int) -> None:
        import numpy as np

        best, other = expected.argmax(axis=1), found.argmax(axis=1)
        for row in np.flatnonzero(best != other).tolist():
            self._flipped += 1
            margins = [_margin(values[row]) for values in (expected, found)]
            if not all(map(math.isfinite, margins)):
                continue  # the comparison fails by that alone
            image = start + row
            name = self._names[image] if image < len(self._names) else f"image {image}"
            flip = Flip(name, None, int(best[row]), int(other[row]), *margins)
            keep = heapq.heappush if len(self._widest) < MOST_FLIPS else heapq.heappushpop
            keep(self._widest, (margins[0], -image, flip))

    def result(self) -> Compared:
        """What it comes to."""
        tensors = self._likeness.tensors
        return Compared(
            against=self._against,
            tolerance=self._tolerance,
            tensors=tensors,
            worst={name: total.worst for name, total in self._likeness.sums.items() if total.worst},
            outputs=self._outputs,
            top1_agreement=self._likeness.top1_agreement,
            flipped=self._flipped,
            flips=tuple(flip for _, _, flip in sorted(self._widest, reverse=True)),
            first_out=next((tensor.name for tensor in tensors if not tensor.within(self._tolerance)), None),
        )


def _margin(logits: Array) -> float:
    """The largest logit less the second."""
    import numpy as np

    second, first = np.partition(logits.astype(np.float64), -2)[-2:]
    return float(first - second)


def _plain(value: Any) -> Any:
    """As JSON can hold it: numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
