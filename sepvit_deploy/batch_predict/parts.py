"""Which part of a job holds which pictures, and which parts are there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

from sepvit_deploy.batch_predict.parquet import Counts, counts_of
from sepvit_deploy.errors import OutputError

LEAST_IMAGES, MOST_IMAGES = 64, 4096
"""Bounds of a part's size where nobody says it: a kill loses at most a part for each worker."""
PARTS = 256
"""Aimed at between them: many enough to share among workers, few enough to open."""
_NAME = re.compile(r"part-(\d{6,})\.parquet")


@dataclass(frozen=True)
class Part:
    """A slice of the sorted listing: the pictures from ``first`` on, whose names lie from ``start`` to ``end``."""

    index: int
    first: int
    images: int
    start: int
    end: int


def part_images_for(images: int) -> int:
    """Pictures in a part of a job of so many."""
    return min(max(-(-images // PARTS), LEAST_IMAGES), MOST_IMAGES)


def part_count(images: int, part_images: int) -> int:
    """Parts of a job."""
    return -(-images // part_images)


def images_in(index: int, images: int, part_images: int) -> int:
    """Pictures in a part: ``part_images``, fewer in the last."""
    return min(part_images, images - index * part_images)


def part_name(index: int) -> str:
    """A part's file: ``part-000012.parquet``."""
    return f"part-{index:06d}.parquet"


def present(
    folder: Path, images: int, part_images: int, known: Set[int] = frozenset()
) -> Iterator[tuple[int, Counts | None]]:
    """The parts that lie in ``folder``, each with what its footer says; None for one that is no whole part.

    Args:
        known: parts to pass over.

    Raises:
        OutputError: something else lies there that readers would take for rows of the job.
    """
    parts = part_count(images, part_images)
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name[0] not in "._"]
    for name in sorted(names):
        match = _NAME.fullmatch(name)
        index = int(match[1]) if match else parts
        if index >= parts or part_name(index) != name:
            found = f"{folder} holds {name}, which is no part of its job"
            raise OutputError(found, expected=f"{part_name(0)} to {part_name(parts - 1)}", hint="remove it")
        if index in known:
            continue
        counts = counts_of(folder / name)
        whole = counts is not None and counts.images == images_in(index, images, part_images)
        yield index, counts if whole else None
