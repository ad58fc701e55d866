"""How alike two forms of a model are: tolerances, and the sums that tell, batch by batch, how far tensors are apart.

Numbers of classes have no distance: a tensor of integers, a mask, is compared as a one-hot vector for each pixel, and
judged by the share of pixels of another class alone.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sepvit_deploy.errors import OptionError, ParityFailed

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

MOST_PIXELS = 0.999
"""Share of pixels with the same class that is asked for at most: where two classes are equal up to rounding, either one
may come first. Of two float32 forms on random images none was seen to differ; this leaves room for ties."""
BLOCK = 1 << 15
"""Numbers compared at a time, in float64: few enough to stay in a cache."""


@dataclass(frozen=True)
class Tolerance:
    """What counts as equal.

    Attributes:
        relative: largest |difference|, over the largest |value| of the reference tensor or 1.
        sqnr_db: least signal to quantisation-noise ratio, in dB.
        top1_agreement: least share of images with the same best class; of segmentation, of pixels.
    """

    relative: float = 1e-4
    sqnr_db: float = 80.0
    top1_agreement: float = 1.0

    @property
    def pixel_agreement(self) -> float:
        """Least share of pixels with the same class: `top1_agreement`, but never more than `MOST_PIXELS`."""
        return min(self.top1_agreement, MOST_PIXELS)


FP32 = Tolerance()
"""Two float32 forms of SepViT differ by about 1e-6 and 110 dB; a wrong epsilon already shows at 1e-5."""

FP16 = Tolerance(relative=2e-2, sqnr_db=40.0, top1_agreement=0.99)
"""FP16 rounds to 11 bits, 70 dB; what a network of this depth keeps of it is about 55 dB."""
INT8 = Tolerance(relative=1.0, sqnr_db=10.0, top1_agreement=0.5)
"""A few random images tell a broken INT8 file from a working one; `evaluate` tells what it costs."""

OF_PRECISION: Mapping[str, Tolerance] = {"fp32": FP32, "fp16": FP16, "int8": INT8}
"""Of a file of that precision against the model in float32."""

OF_ENGINE: Mapping[str, Tolerance] = {"fp32": FP32, "fp16": FP16, "int8": INT8}
"""Of an engine against the ONNX file that it was built from, whose FP16 ONNX Runtime computes in float32.

Rounding every tensor to FP16, as an engine does, leaves 65 dB of the trained SepViT-Lite on pictures and 52 dB on
random images. An INT8 engine is as far from its file as the file is from float32: what FP16 rounds differently before
a Q/DQ pair moves an activation by a whole step. Measured: 39 dB on pictures, where the file has 38, and 14 on random
images, where it has 17.
"""


@dataclass(frozen=True)
class TensorParity:
    """How far a tensor is from its reference, over all images.

    Attributes:
        max_difference: the largest |difference|.
        relative: the same, over the largest |value| of the reference, or over 1 if that is smaller; of classes, the
            share of pixels of another class.
        sqnr_db: 10 log10(reference power / difference power); infinite where equal.
        cosine: between the two, as vectors.
        finite: False where a number on either side is not.
        classes: it holds classes, and differences are those of one-hot vectors.
    """

    name: str
    max_difference: float
    relative: float
    sqnr_db: float
    cosine: float
    finite: bool
    classes: bool = False

    def within(self, tolerance: Tolerance) -> bool:
        """True where the tensor counts as equal."""
        if self.classes:
            return 1 - self.relative >= tolerance.pixel_agreement
        return self.finite and self.relative <= tolerance.relative and self.sqnr_db >= tolerance.sqnr_db


@dataclass(frozen=True)
class Worst:
    """The element that differs most; the first one that is not finite, where there is one.

    Attributes:
        index: in the tensor over all images, the image first.
        reference, candidate: the numbers on both sides.
    """

    index: tuple[int, ...]
    reference: float
    candidate: float


class Sums:
    """Running sums of one tensor over batches, so that memory does not grow with the images."""

    def __init__(self) -> None:
        self.worst: Worst | None = None
        self._max_difference = self._max_reference = 0.0
        self._signal = self._noise = self._power = self._dot = 0.0
        self._finite = True
        self._images = 0
        self._classes = False
        self._changed = 0

    def add(self, reference: Array, candidate: Array) -> None:
        """Add a batch: two arrays of one shape."""
        import numpy as np

        if np.issubdtype(reference.dtype, np.integer):
            self._add_classes(reference, candidate)
            return
        first, second = reference.ravel(), candidate.ravel()
        for start in range(0, first.size if self._finite else 0, BLOCK):
            a = first[start : start + BLOCK].astype(np.float64)
            b = second[start : start + BLOCK].astype(np.float64)
            finite = np.isfinite(a) & np.isfinite(b)
            if not finite.all():
                self._finite = False
                at = int(finite.argmin())
                self.worst = self._element(reference.shape, start + at, a[at], b[at])
                break
            difference = b - a
            apart = np.abs(difference)
            at = int(apart.argmax())
            if self.worst is None or apart[at] > self._max_difference:
                self.worst = self._element(reference.shape, start + at, a[at], b[at])
            self._max_difference = max(self._max_difference, float(apart[at]))
            self._max_reference = max(self._max_reference, float(np.abs(a).max()))
            self._signal += float(a @ a)
            self._power += float(b @ b)
            self._noise += float(difference @ difference)
            self._dot += float(a @ b)
        self._images += len(reference) if reference.ndim else 1

    def _add_classes(self, reference: Array, candidate: Array) -> None:
        """As one-hot vectors: of each pixel of another class two elements differ, by 1."""
        changed = reference != candidate
        count = int(changed.sum())
        if count and not self._changed:
            at = int(changed.argmax())
            first, second = reference.ravel()[at], candidate.ravel()[at]
            self.worst = self._element(reference.shape, at, first, second)
        self._classes = True
        self._changed += count
        self._max_difference = max(self._max_difference, float(count > 0))
        self._signal += reference.size
        self._power += reference.size
        self._noise += 2 * count
        self._dot += reference.size - count
        self._images += len(reference) if reference.ndim else 1

    def _element(self, shape: tuple[int, ...], at: int, reference: float, candidate: float) -> Worst:
        import numpy as np

        image, *place = (int(i) for i in np.unravel_index(at, shape or (1,)))
        return Worst((self._images + image, *place), float(reference), float(candidate))

    def result(self, name: str) -> TensorParity:
        """What the sums come to."""
        if not self._finite:
            return TensorParity(name, math.nan, math.nan, math.nan, math.nan, finite=False)
        sqnr = math.inf if self._noise == 0 else -math.inf
        if self._noise > 0 and self._signal > 0:
            sqnr = 10 * math.log10(self._signal / self._noise)
        norms = math.sqrt(self._signal * self._power)
        cosine = min(1.0, self._dot / norms) if norms > 0 else float(self._signal == self._power)
        relative = self._max_difference / max(1.0, self._max_reference)
        if self._classes:
            relative = self._changed / self._signal if self._signal else 0.0
        return TensorParity(name, self._max_difference, relative, sqnr, cosine, finite=True, classes=self._classes)


class Likeness:
    """Two models over batches: sums of each tensor that both give, and how often their decisions agree."""

    def __init__(self, reference: str, candidate: str, outputs: tuple[str, ...]) -> None:
        self.sums: dict[str, Sums] = {}
        self.images = 0
        self._names = (reference, candidate)
        self._outputs = outputs
        self._agreed: int | None = None
        self._pixels = self._same_pixels = 0

    def add(self, expected: Mapping[str, Array], found: Mapping[str, Array], images: int) -> None:
        """Add a batch: what the reference and what the candidate give for the same images.

        Raises:
            ParityFailed: an output is missing on one side, or has another shape.
        """
        for name in self._outputs:
            for model, values in zip(self._names, (expected, found), strict=True):
                if name not in values:
                    raise ParityFailed(f"{model} has no output {name}", expected=", ".join(self._outputs))
        for name, want in expected.items():
            if name not in found:
                continue
            if want.shape != found[name].shape:
                raise ParityFailed(
                    f"{name} of {self._names[1]} has shape {found[name].shape}", expected=f"{want.shape}"
                )
            self.sums.setdefault(name, Sums()).add(want, found[name])
        self.images += images
        if self._outputs == ("logits",) and expected["logits"].ndim == 2 and expected["logits"].size:
            same = expected["logits"].argmax(axis=1) == found["logits"].argmax(axis=1)
            self._agreed = (self._agreed or 0) + int(same.sum())
        for best, other in _classes_of_pixels(self._outputs, expected, found):
            self._pixels += best.size
            self._same_pixels += int((best == other).sum())

    @property
    def tensors(self) -> tuple[TensorParity, ...]:
        """Each tensor that both give, in the order of computation."""
        return tuple(total.result(name) for name, total in self.sums.items())

    @property
    def top1_agreement(self) -> float | None:
        """Share of images with the same best class; None where there are no classes."""
        return None if self._agreed is None else self._agreed / self.images

    @property
    def pixel_agreement(self) -> float | None:
        """Share of pixels with the same class, of logits at their own stride; None where pixels have no classes."""
        return self._same_pixels / self._pixels if self._pixels else None


def _classes_of_pixels(
    outputs: tuple[str, ...], expected: Mapping[str, Array], found: Mapping[str, Array]
) -> Iterator[tuple[Array, Array]]:
    """The classes of each pixel on both sides: of logits (B, classes, h, w), or of a mask (B, H, W)."""
    if outputs == ("logits",) and expected["logits"].ndim == 4 and expected["logits"].size:
        yield expected["logits"].argmax(axis=1), found["logits"].argmax(axis=1)
    elif outputs == ("mask",):
        yield expected["mask"], found["mask"]


@dataclass(frozen=True)
class NoiseFloor:
    """How far builds of one file are apart, each pair by its worst output.

    Attributes:
        median_db, min_db: SQNR between two builds; infinite where they are equal.
    """

    builds: int
    pairs: int
    median_db: float
    min_db: float

    def covers(self, sqnr_db: float) -> bool:
        """True where a difference is no larger than that of two builds.

        Held to the median, for a single odd build among several lowers the minimum alone. Two builds with errors of
        their own are 3 dB further apart than either is from the exact numbers.
        """
        return sqnr_db >= self.median_db

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON; an infinite SQNR is None."""
        return {key: value if math.isfinite(value) else None for key, value in asdict(self).items()}


def noise_floor(builds: Sequence[Mapping[str, Array]]) -> NoiseFloor:
    """How far builds of one file are apart.

    Args:
        builds: of each, its outputs by name, over the same images.

    Raises:
        OptionError: fewer than two builds, or no outputs.
        ParityFailed: an output is missing, has another shape, or is not finite.
    """
    if len(builds) < 2 or not builds[0]:
        raise OptionError(f"{len(builds)} builds to compare", expected="two or more, with outputs")
    found = []
    for (i, first), (j, second) in itertools.combinations(enumerate(builds, 1), 2):
        if {n: x.shape for n, x in first.items()} != {n: x.shape for n, x in second.items()}:
            raise ParityFailed(f"builds {i} and {j} give different outputs", expected="one file and the same images")
        tensors = []
        for name, values in first.items():
            sums = Sums()
            sums.add(values, second[name])
            tensors.append(sums.result(name))
        for tensor in tensors:
            if not tensor.finite:
                raise ParityFailed(f"{tensor.name} of build {i} or {j} has numbers that are not finite")
        found.append(min(tensor.sqnr_db for tensor in tensors))
    return NoiseFloor(len(builds), len(found), statistics.median(found), min(found))
