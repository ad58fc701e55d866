"""Do two forms of a model agree, and if not, where first.

Both get the same images. Outputs are judged by their worst difference, by SQNR and by decisions (top-1); a number that
is not finite, on either side, fails. Where inner tensors have names on both sides, the first one out of tolerance is
the address of the mistake.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sepvit_deploy.errors import InputError, ParityFailed

if TYPE_CHECKING:
    from sepvit_deploy.runners.base import Array, Runner


BLOCK = 1 << 15
"""Numbers compared at a time, in float64: few enough to stay in a cache."""


@dataclass(frozen=True)
class Tolerance:
    """What counts as equal.

    Attributes:
        relative: largest |difference|, over the largest |value| of the reference tensor or 1.
        sqnr_db: least signal to quantisation-noise ratio, in dB.
        top1_agreement: least share of images with the same best class.
    """

    relative: float = 1e-4
    sqnr_db: float = 80.0
    top1_agreement: float = 1.0


FP32 = Tolerance()
"""Two float32 forms of SepViT differ by about 1e-6 and 110 dB; a wrong epsilon already shows at 1e-5."""

FP16 = Tolerance(relative=2e-2, sqnr_db=40.0, top1_agreement=0.99)
"""FP16 rounds to 11 bits, 70 dB; what a network of this depth keeps of it is about 55 dB."""
INT8 = Tolerance(relative=1.0, sqnr_db=10.0, top1_agreement=0.5)
"""A few random images tell a broken INT8 file from a working one; `evaluate` tells what it costs."""


@dataclass(frozen=True)
class TensorParity:
    """How far a tensor is from its reference, over all images.

    Attributes:
        max_difference: the largest |difference|.
        relative: the same, over the largest |value| of the reference, or over 1 if that is smaller.
        sqnr_db: 10 log10(reference power / difference power); infinite where equal.
        cosine: between the two, as vectors.
        finite: False where a number on either side is not.
    """

    name: str
    max_difference: float
    relative: float
    sqnr_db: float
    cosine: float
    finite: bool

    def within(self, tolerance: Tolerance) -> bool:
        """True where the tensor counts as equal."""
        return self.finite and self.relative <= tolerance.relative and self.sqnr_db >= tolerance.sqnr_db


@dataclass(frozen=True)
class Parity:
    """The result of a comparison.

    Attributes:
        images: how many were compared; source: what they were.
        tensors: every output, and the named inner tensors before them.
        top1_agreement: share of images with the same best class, None where there are no classes.
        first_out: the first tensor out of tolerance, in the order of computation.
    """

    reference: str
    candidate: str
    images: int
    source: str
    tolerance: Tolerance
    tensors: tuple[TensorParity, ...]
    outputs: tuple[str, ...]
    top1_agreement: float | None
    first_out: str | None

    @property
    def passed(self) -> bool:
        """True where every output is within tolerance and decisions agree."""
        outputs = [tensor for tensor in self.tensors if tensor.name in self.outputs]
        agree = self.top1_agreement is None or self.top1_agreement >= self.tolerance.top1_agreement
        return agree and all(tensor.within(self.tolerance) for tensor in outputs)

    def require_passed(self) -> None:
        """Make the comparison a gate.

        Raises:
            ParityFailed: naming the first tensor that leaves tolerance.
        """
        if self.passed:
            return
        tensor = next((t for t in self.tensors if t.name == self.first_out), None)
        if tensor is None:
            what = f"top-1 agrees on {self.top1_agreement:.2%} of {self.images} images"
        elif not tensor.finite:
            what = f"{tensor.name} has numbers that are not finite"
        else:
            what = f"{tensor.name} differs by {tensor.relative:.1e} (SQNR {tensor.sqnr_db:.1f} dB)"
        raise ParityFailed(
            f"{self.candidate} does not compute what {self.reference} does: {what}",
            expected=f"at most {self.tolerance.relative:.0e}, at least {self.tolerance.sqnr_db:.0f} dB and equal top-1",
        )


class _Sums:
    """Running sums of one tensor over batches, so that memory does not grow with the images."""

    def __init__(self) -> None:
        self.max_difference = self.max_reference = 0.0
        self.signal = self.noise = self.power = self.dot = 0.0
        self.finite = True

    def add(self, reference: Array, candidate: Array) -> None:
        import numpy as np

        first, second = reference.ravel(), candidate.ravel()
        for start in range(0, first.size, BLOCK):
            a = first[start : start + BLOCK].astype(np.float64)
            b = second[start : start + BLOCK].astype(np.float64)
            if not (np.isfinite(a).all() and np.isfinite(b).all()):
                self.finite = False
                return
            difference = b - a
            self.max_difference = max(self.max_difference, float(np.abs(difference).max()))
            self.max_reference = max(self.max_reference, float(np.abs(a).max()))
            self.signal += float(a @ a)
            self.power += float(b @ b)
            self.noise += float(difference @ difference)
            self.dot += float(a @ b)

    def result(self, name: str) -> TensorParity:
        if not self.finite:
            return TensorParity(name, math.nan, math.nan, math.nan, math.nan, finite=False)
        sqnr = math.inf if self.noise == 0 else -math.inf
        if self.noise > 0 and self.signal > 0:
            sqnr = 10 * math.log10(self.signal / self.noise)
        norms = math.sqrt(self.signal * self.power)
        cosine = min(1.0, self.dot / norms) if norms > 0 else float(self.signal == self.power)
        relative = self.max_difference / max(1.0, self.max_reference)
        return TensorParity(name, self.max_difference, relative, sqnr, cosine, finite=True)


def compare(
    reference: Runner,
    candidate: Runner,
    batches: Iterable[Array],
    *,
    source: str,
    outputs: tuple[str, ...],
    tolerance: Tolerance = FP32,
) -> Parity:
    """Compare two runners on batches of images (B, 3, H, W).

    Args:
        source: what the images are, for the report.
        outputs: names that both must give; names of inner tensors that both give are compared as well.

    Raises:
        InputError: no images.
        ParityFailed: an output is missing on one side, or has another shape.
    """
    sums: dict[str, _Sums] = {}
    images = agreed = 0
    for batch in batches:
        expected, found = reference.run(batch), candidate.run(batch)
        for name in outputs:
            for runner, values in ((reference, expected), (candidate, found)):
                if name not in values:
                    raise ParityFailed(f"{runner.name} has no output {name}", expected=", ".join(outputs))
        for name, want in expected.items():
            if name not in found:
                continue
            if want.shape != found[name].shape:
                raise ParityFailed(
                    f"{name} of {candidate.name} has shape {found[name].shape}", expected=f"{want.shape}"
                )
            sums.setdefault(name, _Sums()).add(want, found[name])
        images += len(batch)
        classes = outputs == ("logits",) and expected["logits"].ndim == 2 and expected["logits"].size
        if classes:
            agreed += int((expected["logits"].argmax(axis=1) == found["logits"].argmax(axis=1)).sum())
    if not images:
        raise InputError("there are no images to compare on", expected="one or more")
    tensors = tuple(total.result(name) for name, total in sums.items())
    return Parity(
        reference=reference.name,
        candidate=candidate.name,
        images=images,
        source=source,
        tolerance=tolerance,
        tensors=tensors,
        outputs=outputs,
        top1_agreement=agreed / images if classes else None,
        first_out=next((tensor.name for tensor in tensors if not tensor.within(tolerance)), None),
    )


def random_batches(size: tuple[int, int], batches: tuple[int, ...], seed: int = 0) -> Iterator[Array]:
    """Batches of standard normal numbers, like normalised pixels: (b, 3, H, W) float32 for each b of ``batches``."""
    import numpy as np

    rng = np.random.default_rng(seed)
    for batch in batches:
        yield rng.standard_normal((batch, 3, *size), dtype=np.float32)
