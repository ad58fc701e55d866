"""Pictures to rows: decoded ahead by threads while the model runs.

B batch, C classes, H x W the input's height and width.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sepvit_deploy.batch_predict.listing import as_column, names_between
from sepvit_deploy.batch_predict.parquet import Counts, Row, write_part
from sepvit_deploy.batch_predict.parts import Part, part_name
from sepvit_deploy.classes import TOP, ranked, require_labels
from sepvit_deploy.errors import ImageError, InputError, OutputError
from sepvit_deploy.images import load_image, preprocess
from sepvit_deploy.runners.batches import InBatches

if TYPE_CHECKING:
    from sepvit_deploy.runners.base import Array, Runner
    from sepvit_deploy.spec import Preprocessing


@dataclass(frozen=True)
class Classifying:
    """How pictures become rows.

    Attributes:
        labels: names of the classes, by index.
        batch: pictures that the model is given at a time, where it leaves that open.
        workers: threads that decode.
    """

    preprocessing: Preprocessing
    top: int = TOP
    labels: tuple[str, ...] | None = None
    batch: int = 8
    workers: int = 1


@dataclass(frozen=True)
class Place:
    """Where a job's pictures, its listing and its parts lie, on every machine that works on it.

    Attributes:
        metadata: of each file, beside its columns.
    """

    root: Path
    listing: Path
    output: Path
    metadata: dict[str, str]


@dataclass(frozen=True)
class Made:
    """A part that was written."""

    part: int
    counts: Counts


def make_parts(runner: Runner, how: Classifying, place: Place, parts: Iterable[Part]) -> Iterator[Made]:
    """Classify the pictures of each part and write its file; a picture that cannot be used is a row with an error.

    Raises:
        InputError: the file gives no logits, or others than the labels are of.
        ImageError: the folder of pictures is not there any more.
        OutputError: a part cannot be written.
    """
    model = _Model(runner, how)
    at_once = runner.input_shape[0] or how.batch
    decoded = _decoded(_names(place, parts), how, place.root, ahead=at_once + 2 * how.workers)
    for part, images in itertools.groupby(decoded, key=lambda image: image[0]):
        rows: list[Row] = []
        while chunk := list(itertools.islice(images, at_once)):
            rows += model.rows([(name, future) for _, name, future in chunk])
        if all(row.error is not None for row in rows) and not os.path.isdir(place.root):
            # A share that was unmounted would otherwise turn all that is left into rows without classes.
            raise ImageError(f"{place.root} is not there any more", expected="the folder of pictures")
        try:
            counts = write_part(place.output / part_name(part.index), rows, place.metadata)
        except OutputError as error:
            raise OutputError(error.found, hint="mend that, and the same command goes on") from error
        yield Made(part.index, counts)


def _names(place: Place, parts: Iterable[Part]) -> Iterator[tuple[Part, bytes]]:
    for part in parts:
        for name in names_between(place.listing, part.start, part.end):
            yield part, name


def _decoded(
    names: Iterator[tuple[Part, bytes]], how: Classifying, root: Path, *, ahead: int
) -> Iterator[tuple[Part, bytes, Future[Array]]]:
    """Each picture's input (3, H, W) in order, ``ahead`` of them decoded or under way beyond the one that is given."""

    def load(name: bytes) -> Array:
        path, relative = os.fsdecode(os.path.join(os.fsencode(root), name)), os.fsdecode(name)
        try:
            return preprocess(load_image(path), how.preprocessing, name=relative)
        except ImageError as error:  # named as its row is, wherever the folder lies
            raise ImageError(error.found.replace(path, relative)) from error

    pool = ThreadPoolExecutor(how.workers)
    ended = False
    try:
        pending: deque[tuple[Part, bytes, Future[Array]]] = deque()
        while True:
            for part, name in itertools.islice(names, ahead - len(pending)):
                pending.append((part, name, pool.submit(load, name)))
            if not pending:
                ended = True
                return
            yield pending.popleft()
    finally:
        pool.shutdown(cancel_futures=not ended)  # at the end, those that were given may still be under way


class _Model:
    """A runner whose outputs are logits (B, C), as ranked classes."""

    def __init__(self, runner: Runner, how: Classifying) -> None:
        self._runner, self._how = InBatches(runner), how

    def rows(self, images: Sequence[tuple[bytes, Future[Array]]]) -> list[Row]:
        """A row of each picture, in order."""
        found: dict[bytes, Row] = {}
        inputs: dict[bytes, Array] = {}
        for name, future in images:
            try:
                inputs[name] = future.result()
            except ImageError as error:
                found[name] = Row(as_column(name), error=error.found)
        if inputs:
            found |= self._classified(inputs)
        return [found[name] for name, _ in images]

    def _classified(self, inputs: Mapping[bytes, Array]) -> dict[bytes, Row]:
        import numpy as np

        logits = self._logits(np.stack(list(inputs.values())))  # (B, C)
        finite = np.asarray(np.isfinite(logits).all(axis=1))
        found = {
            name: Row(as_column(name), error=f"{self._runner.name} gave logits that are not finite")
            for name, good in zip(inputs, finite, strict=True)
            if not good
        }
        if finite.any():
            names = [name for name, good in zip(inputs, finite, strict=True) if good]
            classes, scores = ranked(logits[finite], self._how.top)
            for name, best, shares in zip(names, classes.tolist(), scores.tolist(), strict=True):
                labels = tuple(self._how.labels[k] for k in best) if self._how.labels else None
                found[name] = Row(as_column(name), tuple(best), tuple(shares), labels)
        return found

    def _logits(self, images: Array) -> Array:
        outputs = self._runner.run(images)
        name = self._runner.name
        if "logits" not in outputs:
            raise InputError(f"{name} gives {', '.join(outputs)}", expected="a classification file with logits")
        logits = outputs["logits"]
        if logits.ndim != 2 or len(logits) != len(images) or not logits.size:
            shape = " x ".join(map(str, logits.shape)) or "one number"
            raise InputError(f"{name} gives logits of shape {shape}", expected="B x classes")
        require_labels(None if self._how.labels is None else list(self._how.labels), logits.shape[1])
        return logits
