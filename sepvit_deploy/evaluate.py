"""How often a classification file is right on labelled images, and where it decides differently than another file."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepvit_deploy.accuracy import Comparison, Record, Share, top_share
from sepvit_deploy.errors import InputError, OptionError
from sepvit_deploy.journal import Journal
from sepvit_deploy.runners.batches import InBatches

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sepvit_deploy.image_sets import ImageSet
    from sepvit_deploy.runners.base import Array, Runner
    from sepvit_deploy.spec import Preprocessing

    Logits = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """What a file does on a set of images.

    Attributes:
        images: how many were evaluated; unreadable ones are not among them.
        unreadable: names of pictures that could not be read, relative to the folder.
        top1: images whose label is the best class; None without labels.
        top5: images whose label is among the five best; None without labels, or with five classes or fewer.
        against: None where there was no other file.
        meaningful: False for weights that were never trained, whose accuracy says nothing.
        model_sha256: digest of the file; None where it is no file.
    """

    model: str
    image_set: str
    image_set_sha256: str
    images: int
    unreadable: tuple[str, ...]
    classes: int
    top1: Share | None
    top5: Share | None
    against: Comparison | None
    meaningful: bool
    model_sha256: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold; an infinite SQNR is None.

        Where the evaluation is not meaningful, each figure about accuracy says so itself.
        """
        values: dict[str, Any] = asdict(self)
        values["unreadable"] = list(self.unreadable)
        against = values["against"]
        if against:
            against["flips"] = list(against["flips"])
            against["sqnr_db"] = against["sqnr_db"] if math.isfinite(against["sqnr_db"]) else None
        for figures, names in ((values, ("top1", "top5")), (against or {}, ("top1", "top5", "mcnemar"))):
            for name in names:
                if figures.get(name) is not None:
                    figures[name]["meaningful"] = self.meaningful
        return values


@dataclass(frozen=True)
class Resume:
    """Where the progress is kept, and the digests of what it belongs to."""

    path: Path
    model_sha256: str
    against_sha256: str | None = None


def evaluate(
    runner: Runner,
    images: ImageSet,
    preprocessing: Preprocessing,
    *,
    against: Runner | None = None,
    batch: int = 8,
    workers: int | None = None,
    max_unreadable: int = 10,
    resume: Resume | None = None,
    class_folders: bool = False,
    meaningful: bool = True,
    progress: Callable[[float], None] = lambda share: None,
    warn: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Run a classification file, and maybe another one, over a set of images, in one pass.

    Args:
        batch: images at a time, where the file leaves it open; memory grows with it, not with the number of images.
        workers: threads that decode.
        max_unreadable: pictures to pass over; one more ends the evaluation.
        resume: where to keep what is done, so that an evaluation that was killed goes on there; gone at the end.
        class_folders: the labels are the order of the folders, of which there must then be one for each class.
        meaningful: False for weights that were never trained.
        progress: called with the share done, 0 to 1.
        warn: gets a line for each picture that is passed over.

    Raises:
        OptionError: neither labels nor another file, or ``batch`` below 1.
        InputError: logits that are missing or not finite, two files of different classes, a label that is no class, or
            progress of other work.
        ImageError: too many unreadable pictures.
    """
    from sepvit_deploy.image_sets import decoded

    if batch < 1:
        raise OptionError(f"--batch {batch}", expected="1 or more")
    if images.labels is None and against is None:
        raise OptionError(
            f"{images.name} has no labels and there is no other file: nothing to measure",
            expected="a folder for each class, or --labels FILE, or --against FILE",
        )
    at_once = runner.input_shape[0] or (against.input_shape[0] if against else None) or batch
    digest = images.sha256
    scorer = _Scorer(runner, against, images, class_folders=class_folders)
    records: list[Record] = []
    unreadable: list[str] = []

    def skipped(path: Path, reason: str) -> None:
        unreadable.append(path.relative_to(images.folder).as_posix())
        warn(f"passed over: {reason}")

    with contextlib.ExitStack() as stack:
        journal = None
        if resume:
            journal = stack.enter_context(Journal(resume.path, _key(resume, digest, preprocessing, images.labels)))
            records = _earlier(journal, at_once, len(images.files))
        seen = {record.image for record in records}
        todo = [index for index in range(len(images.files)) if index not in seen]
        rest = decoded(
            replace(images, files=tuple(images.files[index] for index in todo), labels=None),
            preprocessing,
            workers=workers,
            max_unreadable=max_unreadable,
            skipped=skipped,
        )
        for chunk in _chunks(rest, at_once):
            new = scorer.records([todo[position] for position, _ in chunk], [pixels for _, pixels in chunk])
            if journal:
                journal.append([list(record) for record in new])
            records += new
            progress((len(records) + len(unreadable)) / len(images.files))
        if not records:
            raise InputError(f"{images.name} has no readable picture", expected="one or more")
        if journal:
            journal.remove()
    progress(1.0)
    records.sort()  # by image
    classes = records[0].classes
    names = [path.relative_to(images.folder).as_posix() for path in images.files]
    ranks = [record.rank for record in records if record.rank >= 0]
    return Evaluation(
        model=runner.name,
        image_set=images.name,
        image_set_sha256=digest,
        images=len(records),
        unreadable=tuple(unreadable),
        classes=classes,
        top1=top_share(1, ranks, classes),
        top5=top_share(5, ranks, classes),
        against=None if against is None else Comparison.of(against.name, records, names, images.labels),
        meaningful=meaningful,
    )


class _Scorer:
    """Images to records, a batch at a time."""

    def __init__(self, runner: Runner, against: Runner | None, images: ImageSet, *, class_folders: bool) -> None:
        self._runner, self._images = InBatches(runner), images
        self._against = None if against is None else InBatches(against)
        self._class_folders = class_folders
        self._classes = 0

    def records(self, indices: Sequence[int], pixels: Sequence[Array]) -> list[Record]:
        import numpy as np

        batch = np.stack(pixels)
        logits = self._logits(self._runner, batch, indices)
        if not self._classes:
            self._classes = logits.shape[1]
            self._require_labels_fit()
        own = self._decisions(logits, indices)
        if self._against is None:
            return [Record(index, self._classes, *decision) for index, decision in zip(indices, own, strict=True)]
        other = self._logits(self._against, batch, indices)
        if other.shape != logits.shape:
            found = f"{self._against.name} has {other.shape[1]} classes"
            raise InputError(found, expected=f"{self._classes}, as {self._runner.name} has")
        signal, noise = (other**2).sum(axis=1).tolist(), ((logits - other) ** 2).sum(axis=1).tolist()
        columns = zip(indices, own, self._decisions(other, indices), signal, noise, strict=True)
        return [
            Record(index, self._classes, *mine, *theirs, power, error) for index, mine, theirs, power, error in columns
        ]

    def _logits(self, runner: InBatches, batch: Array, indices: Sequence[int]) -> Logits:
        """The logits (B, classes) of a batch, all finite."""
        import numpy as np

        outputs = runner.run(batch)
        if "logits" not in outputs:
            raise InputError(f"{runner.name} gives {', '.join(outputs)}", expected="a classification file with logits")
        logits = outputs["logits"].astype(np.float64)
        if logits.ndim != 2 or len(logits) != len(batch) or not logits.size:
            shape = " x ".join(map(str, logits.shape)) or "one number"
            raise InputError(f"{runner.name} gives logits of shape {shape}", expected="B x classes")
        finite = np.isfinite(logits).all(axis=1)
        if not finite.all():
            image = self._images.files[indices[int(finite.argmin())]]
            raise InputError(f"{runner.name} gave logits for {image} that are not finite", hint="check the file first")
        return logits

    def _decisions(self, logits: Logits, indices: Sequence[int]) -> list[tuple[int, float, int]]:
        """For each image its best class, the margin to the second (0 where there is none), the rank of its label."""
        import numpy as np

        best = logits.argmax(axis=1).tolist()
        margins = [0.0] * len(best)
        if self._classes > 1:
            second, first = np.partition(logits, -2, axis=1)[:, -2:].T
            margins = (first - second).tolist()
        ranks = [-1] * len(best)
        if self._images.labels is not None:
            labels = np.array([self._images.labels[index] for index in indices])[:, None]
            own = np.take_along_axis(logits, labels, axis=1)
            before = (logits == own) & (np.arange(self._classes) < labels)
            ranks = ((logits > own) | before).sum(axis=1).tolist()
        return list(zip(best, margins, ranks, strict=True))

    def _require_labels_fit(self) -> None:
        if self._images.labels is None:
            return
        has = f"{self._runner.name} has {self._classes} classes"
        if self._class_folders:
            folders = sum(entry.is_dir() and entry.name[0] != "." for entry in os.scandir(self._images.folder))
            if folders != self._classes:
                raise InputError(
                    f"{self._images.folder} has {folders} class folders and {has}",
                    expected="a folder for each class",
                    hint="or name the labels with --labels FILE",
                )
        for path, label in zip(self._images.files, self._images.labels, strict=True):
            if not 0 <= label < self._classes:
                raise InputError(f"{path} has the label {label}", expected=f"0 to {self._classes - 1}, because {has}")


def _chunks(stream: Iterator[tuple[int, Array]], size: int) -> Iterator[list[tuple[int, Array]]]:
    while chunk := list(itertools.islice(stream, size)):
        yield chunk


def _key(resume: Resume, digest: str, preprocessing: Preprocessing, labels: Sequence[int] | None) -> dict[str, str]:
    """What a progress file belongs to: all that its records depend on."""
    return {
        "model": resume.model_sha256,
        "file to compare with": resume.against_sha256 or "none",
        "set of images": digest,
        "preprocessing": json.dumps(preprocessing.to_dict()),
        "labels": hashlib.sha256(repr(labels).encode()).hexdigest(),
    }


def _earlier(journal: Journal, at_once: int, images: int) -> list[Record]:
    """The records of an earlier run, in whole batches, so that the rest runs in the batches that it would have had."""
    journal.keep(len(journal.records) // at_once * at_once)
    records: dict[int, Record] = {}
    for number, row in enumerate(journal.records, 2):
        fits = len(row) == len(Record._fields) and all(isinstance(item, int | float) for item in row)
        if not fits or row[0] not in range(images) or row[0] in records:
            raise InputError(f"{journal.path} holds no record of an image in line {number}", hint="remove it")
        records[row[0]] = Record(*row)
    return list(records.values())
