"""What the pixels of labelled pictures come to: IoU of each class, its mean with an interval, two files compared.

IoU of a class: pixels that are labelled and predicted as it, over those that are labelled or predicted as it, summed
over all pictures. The means are over classes: those with neither a label nor a prediction have no part in mIoU, those
without a label none in the mean accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from sepvit_deploy.confidence import RESAMPLES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[Any]

IGNORED = -1
"""In labels: a pixel that counts for nothing."""
_ENTRIES = 1 << 22
"""Of the tables that a bootstrap works on at a time."""


class Record(NamedTuple):
    """What one picture came to, by the evaluated file and, where there is one, by another.

    Attributes:
        image: its index in the set.
        pixels: all of it; agreeing: those to which both files give one class, 0 without another file.
        counts: for each class that is labelled or predicted where there are labels: [class, pixels labelled, predicted,
            both], and of another file also [..., predicted, both].
    """

    image: int
    pixels: int
    agreeing: int
    counts: list[list[int]]


def count(image: int, labels: Array, own: Array, other: Array | None, classes: int) -> Record:
    """The record of a picture from its labels and masks, all (H, W); labels are classes, or `IGNORED`."""
    import numpy as np

    valid = labels != IGNORED
    truth = labels[valid]
    columns = [np.bincount(truth, minlength=classes)]
    for mask in (own, other):
        if mask is not None:
            predicted = mask[valid]
            columns.append(np.bincount(predicted, minlength=classes))
            columns.append(np.bincount(truth[predicted == truth], minlength=classes))
    table = np.stack([np.arange(classes), *columns], axis=1)
    agreeing = 0 if other is None else int((own == other).sum())
    return Record(image, labels.size, agreeing, table[table[:, 1:].any(axis=1)].tolist())


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; None of a single picture, which says nothing of others."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ClassScore:
    """One class, in pixels.

    Attributes:
        iou: 0 to 1.
        accuracy: share of its labelled pixels that are predicted as it; None where no pixel is labelled.
    """

    index: int
    name: str | None
    iou: float
    accuracy: float | None
    labelled: int
    predicted: int


@dataclass(frozen=True)
class Scores:
    """How good a file's masks are.

    Attributes:
        miou: mean IoU; its interval is a bootstrap over pictures.
        mean_accuracy: mean of the classes' accuracy; pixel_accuracy: share of all labelled pixels that are right.
        pixels: that are labelled.
        classes: those that are labelled or predicted, by index.
        absent: how many are neither, and in no mean.
    """

    miou: Estimate
    mean_accuracy: float
    pixel_accuracy: float
    pixels: int
    classes: tuple[ClassScore, ...]
    absent: int


@dataclass(frozen=True)
class ClassChange:
    """IoU of a labelled class by the other file and by the evaluated one."""

    index: int
    name: str | None
    before: float
    after: float


@dataclass(frozen=True)
class MaskComparison:
    """The evaluated file against another one.

    Attributes:
        agreement: share of all pixels, of ignored ones too, to which both give one class.
        scores: of the other file.
        difference: mIoU of the evaluated file less the other's, with the interval of the paired bootstrap.
        changes: labelled classes whose IoU differs, the greatest loss first.
    """

    model: str
    agreement: float
    scores: Scores
    difference: Estimate
    changes: tuple[ClassChange, ...]


def judged(
    records: Sequence[Record], classes: int, names: Sequence[str] | None = None, against: str | None = None
) -> tuple[Scores, MaskComparison | None]:
    """The evaluated file's figures, and what they are beside those of the file called ``against``.

    Args:
        records: of both files, if there is another; some pixel must be labelled.
    """
    counts = _Counts(records, 0)
    own = _scores(counts, classes, names)
    return own, None if against is None else _compared(against, records, counts, own, classes, names)


def _compared(
    model: str, records: Sequence[Record], mine: _Counts, own: Scores, classes: int, names: Sequence[str] | None
) -> MaskComparison:
    theirs = _Counts(records, 1)
    other = _scores(theirs, classes, names)
    before = {score.index: score.iou for score in other.classes}
    changes = [
        ClassChange(score.index, score.name, before[score.index], score.iou)
        for score in own.classes
        if score.labelled and before[score.index] != score.iou
    ]
    differences = None
    if mine.resampled is not None and theirs.resampled is not None:
        differences = mine.resampled - theirs.resampled
    return MaskComparison(
        model=model,
        agreement=sum(record.agreeing for record in records) / sum(record.pixels for record in records),
        scores=other,
        difference=_estimate(own.miou.value - other.miou.value, differences),
        changes=tuple(sorted(changes, key=lambda change: change.after - change.before)),
    )


class _Counts:
    """The counts of one file in all pictures, where they are not 0: one entry for each picture and class."""

    def __init__(self, records: Sequence[Record], side: int) -> None:
        import numpy as np

        rows = [(place, *row) for place, record in enumerate(records) for row in record.counts]
        table = np.array(rows, np.int64).reshape(len(rows), -1)
        self.images = len(records)
        self.place, self.index, self.labelled = table.T[:3]
        self.predicted, self.right = table.T[3 + 2 * side : 5 + 2 * side]
        self.union = self.labelled + self.predicted - self.right
        self.resampled = self._resampled() if self.images > 1 else None

    def total(self, values: Array, classes: int) -> NDArray[np.int64]:
        """The sums of ``values`` over all pictures, for each class."""
        import numpy as np

        sums = np.zeros(classes, np.int64)
        np.add.at(sums, self.index, values)
        return sums

    def _resampled(self) -> NDArray[np.float64]:
        """MIoU of `RESAMPLES` draws of as many pictures, with replacement; the draws are the same for every file.

        The tables are made for some classes at a time, so that memory does not grow with the number of classes.
        """
        import numpy as np

        sums, present = np.zeros(RESAMPLES), np.zeros(RESAMPLES)
        at_once = max(1, _ENTRIES // self.images)
        used = np.unique(self.index[self.union > 0])
        for first in range(0, len(used), at_once):
            some = used[first : first + at_once]
            mine = np.isin(self.index, some)
            cells = self.place[mine], np.searchsorted(some, self.index[mine])
            union, right = np.zeros((2, self.images, len(some)))
            union[cells], right[cells] = self.union[mine], self.right[mine]
            rng = np.random.default_rng(0)
            for start in range(0, RESAMPLES, at_once):
                draws = rng.integers(0, self.images, (min(at_once, RESAMPLES - start), self.images))
                times = np.stack([np.bincount(draw, minlength=self.images) for draw in draws]).astype(np.float64)
                unions = times @ union
                sums[start : start + len(draws)] += ((times @ right) / np.maximum(unions, 1)).sum(axis=1)
                present[start : start + len(draws)] += (unions > 0).sum(axis=1)
        # A draw of pictures in which nothing is labelled has no mIoU: it is left out.
        means: NDArray[np.float64] = np.divide(sums, present, out=np.full(RESAMPLES, np.nan), where=present > 0)
        return means


def _scores(counts: _Counts, classes: int, names: Sequence[str] | None) -> Scores:
    import numpy as np

    labelled, predicted, right = (counts.total(v, classes) for v in (counts.labelled, counts.predicted, counts.right))
    union = labelled + predicted - right
    found = tuple(
        ClassScore(
            index=k,
            name=None if names is None else names[k],
            iou=float(right[k] / union[k]),
            accuracy=float(right[k] / labelled[k]) if labelled[k] else None,
            labelled=int(labelled[k]),
            predicted=int(predicted[k]),
        )
        for k in np.flatnonzero(union).tolist()
    )
    accuracies = [score.accuracy for score in found if score.accuracy is not None]
    return Scores(
        miou=_estimate(sum(score.iou for score in found) / len(found), counts.resampled),
        mean_accuracy=sum(accuracies) / len(accuracies),
        pixel_accuracy=float(right.sum() / labelled.sum()),
        pixels=int(labelled.sum()),
        classes=found,
        absent=classes - len(found),
    )


def _estimate(value: float, resampled: Array | None) -> Estimate:
    import numpy as np

    if resampled is None:
        return Estimate(value, None, None)
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return Estimate(value, float(low), float(high))
