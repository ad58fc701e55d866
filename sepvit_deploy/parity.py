"""Do two forms of a model agree, and if not, where first.

Both get the same images. Outputs are judged by their worst difference, by SQNR and by decisions, the best classes of
images, of logit cells or of pixels, a mask by decisions alone; a number that is not finite, on either side, fails.
Where inner tensors have names on both sides, the first one out of tolerance is the address of the mistake.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sepvit_deploy.errors import InputError, ParityFailed
from sepvit_deploy.likeness import FP16, FP32, INT8, Likeness, TensorParity, Tolerance

if TYPE_CHECKING:
    from sepvit_deploy.runners.base import Array, Runner

__all__ = ["FP16", "FP32", "INT8", "Parity", "TensorParity", "Tolerance", "compare", "random_batches"]


@dataclass(frozen=True)
class Parity:
    """The result of a comparison.

    Attributes:
        images: how many were compared; source: what they were.
        tensors: every output, and the named inner tensors before them.
        top1_agreement: share of images with the same best class, None where images have no classes.
        pixel_agreement: share of pixels with the same class, of logits (B, classes, h, w) that of their cells, before
            any resize; None where pixels have none.
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
    pixel_agreement: float | None = None

    @property
    def passed(self) -> bool:
        """True where every output is within tolerance and decisions agree."""
        outputs = [tensor for tensor in self.tensors if tensor.name in self.outputs]
        return self._decides_alike and all(tensor.within(self.tolerance) for tensor in outputs)

    @property
    def counted(self) -> str:
        """What `pixel_agreement` is a share of: ``logit cells``, or ``pixels`` of masks."""
        return "logit cells" if self.outputs == ("logits",) else "pixels"

    @property
    def _decides_alike(self) -> bool:
        if self.pixel_agreement is not None:
            return self.pixel_agreement >= self.tolerance.pixel_agreement
        return self.top1_agreement is None or self.top1_agreement >= self.tolerance.top1_agreement

    def require_passed(self) -> None:
        """Make the comparison a gate.

        Raises:
            ParityFailed: naming the first tensor that leaves tolerance.
        """
        if self.passed:
            return
        tensor = next((t for t in self.tensors if t.name == self.first_out), None)
        pixels, least = self.pixel_agreement is not None, self.tolerance.pixel_agreement
        decides = f"{least:.1%} of {self.counted} with the same class" if pixels else "equal top-1"
        limits = f"at most {self.tolerance.relative:.0e}, at least {self.tolerance.sqnr_db:.0f} dB and {decides}"
        if tensor is None and pixels:
            what = f"{self.pixel_agreement:.2%} of the {self.counted} of {self.images} images have the same class"
        elif tensor is None:
            what = f"top-1 agrees on {self.top1_agreement:.2%} of {self.images} images"
        elif tensor.classes:
            what = f"{tensor.relative:.2%} of the pixels of {tensor.name} have another class"
            limits = f"at least {decides}"
        elif not tensor.finite:
            what = f"{tensor.name} has numbers that are not finite"
        else:
            what = f"{tensor.name} differs by {tensor.relative:.1e} (SQNR {tensor.sqnr_db:.1f} dB)"
        raise ParityFailed(
            f"{self.candidate} does not compute what {self.reference} does: {what}",
            expected=limits,
        )


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
    likeness = Likeness(reference.name, candidate.name, outputs)
    for batch in batches:
        likeness.add(reference.run(batch), candidate.run(batch), len(batch))
    if not likeness.images:
        raise InputError("there are no images to compare on", expected="one or more")
    tensors = likeness.tensors
    return Parity(
        reference=reference.name,
        candidate=candidate.name,
        images=likeness.images,
        source=source,
        tolerance=tolerance,
        tensors=tensors,
        outputs=outputs,
        top1_agreement=likeness.top1_agreement,
        first_out=next((tensor.name for tensor in tensors if not tensor.within(tolerance)), None),
        pixel_agreement=likeness.pixel_agreement,
    )


def random_batches(size: tuple[int, int], batches: tuple[int, ...], seed: int = 0) -> Iterator[Array]:
    """Batches of standard normal numbers, like normalised pixels: (b, 3, H, W) float32 for each b of ``batches``."""
    import numpy as np

    rng = np.random.default_rng(seed)
    for batch in batches:
        yield rng.standard_normal((batch, 3, *size), dtype=np.float32)
