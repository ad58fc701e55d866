"""What the decisions of one or two files on the same images come to: accuracy, agreement, flips.

The best classes of an image have the largest logits; of equal ones, the lower index comes first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sepvit_deploy.confidence import mcnemar_exact, wilson


class Record(NamedTuple):
    """What one image came to, by the evaluated file and, where there is one, by another.

    Attributes:
        image: its index in the set.
        classes: how many there are.
        best: its best class.
        margin: the largest logit less the second; 0 of a single class.
        rank: place of its label among the classes, from 0; -1 without labels.
        signal: sum of the squares of the other file's logits; noise: of the difference.
    """

    image: int
    classes: int
    best: int
    margin: float
    rank: int
    other_best: int = -1
    other_margin: float = 0.0
    other_rank: int = -1
    signal: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True)
class Share:
    """A share of images, with its 95 % interval by Wilson."""

    count: int
    images: int
    share: float
    low: float
    high: float

    @classmethod
    def of(cls, count: int, images: int) -> Share:
        """``count`` of ``images``, at least one."""
        return cls(count, images, count / images, *wilson(count, images))


@dataclass(frozen=True)
class Flip:
    """An image that gets another class.

    Attributes:
        image: relative to the folder.
        label: the right class, None where it is not known.
        before: class by the other file; after: by the evaluated one.
        margin_before: the other file's largest logit less its second; margin_after: the same of the evaluated file.
    """

    image: str
    label: int | None
    before: int
    after: int
    margin_before: float
    margin_after: float


@dataclass(frozen=True)
class McNemar:
    """Do two files get the same share of images right? Both saw the same images.

    Attributes:
        b: images that only the other file gets right; c: only the evaluated one.
        p_value: exact and two-sided.
    """

    b: int
    c: int
    p_value: float


@dataclass(frozen=True)
class Comparison:
    """The evaluated file against another one.

    Attributes:
        agreement: images with the same best class.
        flips: the others, the widest ``margin_before`` first: those that no near tie explains.
        sqnr_db: of the logits, 10 log10(power of the other file's / power of the difference), over all images.
        top1, top5: of the other file.
        mcnemar: None without labels.
    """

    model: str
    agreement: Share
    flips: tuple[Flip, ...]
    sqnr_db: float
    top1: Share | None
    top5: Share | None
    mcnemar: McNemar | None

    @classmethod
    def of(cls, name: str, records: Sequence[Record], names: Sequence[str], labels: Sequence[int] | None) -> Comparison:
        """Against the file ``name``, from records of both files; ``names`` and ``labels`` are those of the set."""
        flips = [
            Flip(
                image=names[record.image],
                label=None if labels is None else labels[record.image],
                before=record.other_best,
                after=record.best,
                margin_before=record.other_margin,
                margin_after=record.margin,
            )
            for record in records
            if record.best != record.other_best
        ]
        ranks = [(record.other_rank, record.rank) for record in records if record.rank >= 0]
        theirs, classes = [other for other, _ in ranks], records[0].classes
        b = sum(other == 0 and own > 0 for other, own in ranks)
        c = sum(other > 0 and own == 0 for other, own in ranks)
        return cls(
            model=name,
            agreement=Share.of(len(records) - len(flips), len(records)),
            flips=tuple(sorted(flips, key=lambda flip: -flip.margin_before)),
            sqnr_db=sqnr_db(math.fsum(r.signal for r in records), math.fsum(r.noise for r in records)),
            top1=top_share(1, theirs, classes),
            top5=top_share(5, theirs, classes),
            mcnemar=McNemar(b, c, mcnemar_exact(b, c)) if ranks else None,
        )


def top_share(k: int, ranks: Sequence[int], classes: int) -> Share | None:
    """The share of images whose label is among the ``k`` best classes; None without labels, or where none can fail."""
    if not ranks or (k > 1 and classes <= k):
        return None
    return Share.of(sum(rank < k for rank in ranks), len(ranks))


def sqnr_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two sums of squares; infinite without noise, minus infinite of noise alone."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
