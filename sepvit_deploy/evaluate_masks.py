"""How good the masks of a segmentation file are on labelled pictures, and where another file's differ."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepvit_deploy.errors import ImageError, InputError, OptionError
from sepvit_deploy.images import load_image, preprocess
from sepvit_deploy.journal import Journal
from sepvit_deploy.mask_sets import Labelling, MaskSet, ahead
from sepvit_deploy.masks import class_mask
from sepvit_deploy.runners.batches import InBatches
from sepvit_deploy.segmentation_scores import MaskComparison, Record, Scores, count, judged

if TYPE_CHECKING:
    from sepvit_deploy.mask_sets import Labels
    from sepvit_deploy.masks import Mask
    from sepvit_deploy.runners.base import Array, Runner
    from sepvit_deploy.spec import Preprocessing


@dataclass(frozen=True)
class MaskEvaluation:
    """What a segmentation file does on a set of pictures.

    Attributes:
        images_folder, masks_folder: that were taken.
        images: how many were evaluated; unreadable ones are not among them.
        unreadable: names of pictures that could not be read, or of a size that a file does not take, relative to the
            folder.
        ignore: value of pixels that count for nothing; with ``reduce_zero_label`` so does 0.
        ignored_class: the class that this value stands for, whose pixels are left out; None where it is no class.
        against: None where there was no other file.
        meaningful: False for weights that were never trained, whose accuracy says nothing.
        model_sha256: digest of the file; None where it is no file.
    """

    model: str
    image_set: str
    image_set_sha256: str
    images_folder: str
    masks_folder: str
    masks_sha256: str
    images: int
    unreadable: tuple[str, ...]
    classes: int
    ignore: int
    reduce_zero_label: bool
    ignored_class: int | None
    scores: Scores
    against: MaskComparison | None
    meaningful: bool
    model_sha256: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold; where it is not meaningful, each mean says so itself."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        against = values["against"]
        for found in (values["scores"], *((against["scores"],) if against else ())):
            for name in ("mean_accuracy", "pixel_accuracy"):
                found[name] = {"value": found[name]}
            for name in ("miou", "mean_accuracy", "pixel_accuracy"):
                found[name]["meaningful"] = self.meaningful
        if against:
            against["difference"]["meaningful"] = self.meaningful
        return values


def evaluate_masks(
    runner: Runner,
    pairs: MaskSet,
    preprocessing: Preprocessing,
    labelling: Labelling,
    *,
    against: Runner | None = None,
    names: Sequence[str] | None = None,
    batch: int = 8,
    workers: int | None = None,
    max_unreadable: int = 10,
    resume: Path | None = None,
    belongs: Mapping[str, str] = {},
    meaningful: bool = True,
    progress: Callable[[float], None] = lambda share: None,
    warn: Callable[[str], None] = lambda text: None,
) -> MaskEvaluation:
    """Run a segmentation file, and maybe another one, over pictures with masks, in one pass.

    Masks are predicted at the size of the labelled ones, which is that of the pictures. A picture that keeps its aspect
    ratio may have a size that a file does not take: both files pass over it, as over one that cannot be read.

    Args:
        labelling: how many classes both files have, and what the numbers in the masks mean.
        names: of the classes.
        batch: pictures at a time, where the file leaves it open; one where inputs differ in size.
        workers: threads that decode.
        max_unreadable: pictures to pass over, unreadable or of a size not taken; one more ends the evaluation.
        resume: where to keep what is done, so that an evaluation that was killed goes on there; gone at the end.
        belongs: what the progress belongs to besides the pictures: digests of the files.
        meaningful: False for weights that were never trained.
        progress: called with the share done, 0 to 1.
        warn: gets a line for each picture that is passed over.

    Raises:
        OptionError: ``batch`` or ``workers`` below 1.
        ImageError: a mask is unusable, holds a number that is no class, or has another size than its picture; too many
            unreadable pictures.
        InputError: outputs that are no masks, not finite, or of other classes; all pixels ignored; progress of other
            work.
    """
    if batch < 1:
        raise OptionError(f"--batch {batch}", expected="1 or more")
    labelling.require_fit(pairs.files, runner.name, workers=workers)
    images, total = pairs.images, len(pairs.files)
    fixed = runner.input_shape[0] or (against.input_shape[0] if against else None)
    at_once = 1 if preprocessing.keep_ratio else fixed or batch
    runners = tuple(InBatches(each) for each in (runner, against) if each is not None)
    records: list[Record] = []
    unreadable: list[str] = []

    def load(index: int) -> _Loaded | ImageError:
        try:
            image = load_image(images.files[index])
            pixels = preprocess(image, preprocessing, name=images.files[index])
        except ImageError as error:
            return error
        labels = labelling.read(pairs.files[index])
        if labels.shape != (image.height, image.width):
            found = f"{pairs.files[index]} has {labels.shape[0]}x{labels.shape[1]} pixels"
            expected = f"{image.height}x{image.width}, as {images.files[index]} has"
            raise ImageError(
                found, expected=expected, hint="a mask has the size of its picture, upright as its EXIF says"
            )
        return _Loaded(index, pixels, labels)

    def pass_over(index: int, error: InputError) -> None:
        unreadable.append(images.files[index].relative_to(images.folder).as_posix())
        if len(unreadable) > max_unreadable:
            raise ImageError(
                f"{images.name} has {len(unreadable)} unreadable pictures or more, the last: {error.found}",
                expected=f"at most {max_unreadable}",
                hint="repair or remove them, or raise --max-unreadable",
            ) from error
        warn(f"passed over: {error.found}")

    def readable(indices: Sequence[int]) -> Iterator[_Loaded]:
        for index, loaded in ahead(indices, load, workers):
            if isinstance(loaded, _Loaded):
                yield loaded
            else:
                pass_over(index, loaded)

    with contextlib.ExitStack() as stack:
        journal = None
        if resume:
            key = _key(belongs, pairs, preprocessing, labelling)
            journal = stack.enter_context(Journal(resume, key))
            records = _earlier(journal, at_once, total, labelling.classes, 2 + 2 * len(runners))
        seen = {record.image for record in records}
        rest = readable([index for index in range(total) if index not in seen])
        while chunk := list(itertools.islice(rest, at_once)):
            outputs = _outputs(runners, chunk, images.files, sizes_differ=preprocessing.keep_ratio)
            if isinstance(outputs, InputError):
                pass_over(chunk[0].index, outputs)
            else:
                new = _records(runners, outputs, chunk, images.files, labelling.classes)
                if journal:
                    journal.append([list(record) for record in new])
                records += new
            progress((len(records) + len(unreadable)) / total)
        if not records:
            raise InputError(f"{images.name} has no readable picture", expected="one or more")
        if not any(row[1] for record in records for row in record.counts):
            raise InputError("all pixels of the readable pictures are ignored", expected="classes in their masks")
        if journal:
            journal.remove()
    progress(1.0)
    records.sort()  # by image
    own, comparison = judged(records, labelling.classes, names, against.name if against else None)
    return MaskEvaluation(
        model=runner.name,
        image_set=images.name,
        image_set_sha256=images.sha256,
        images_folder=str(images.folder),
        masks_folder=str(pairs.folder),
        masks_sha256=pairs.sha256,
        images=len(records),
        unreadable=tuple(unreadable),
        classes=labelling.classes,
        ignore=labelling.ignored,
        reduce_zero_label=labelling.reduce_zero_label,
        ignored_class=labelling.ignored_class,
        scores=own,
        against=comparison,
        meaningful=meaningful,
    )


@dataclass(frozen=True)
class _Loaded:
    """A picture as input (3, height, width), and the labels (H, W) of its pixels."""

    index: int
    pixels: Array
    labels: Labels


def _outputs(
    runners: Sequence[InBatches], chunk: Sequence[_Loaded], files: Sequence[Path], *, sizes_differ: bool
) -> list[dict[str, Array]] | InputError:
    """What each runner gives; or why one takes no picture of this size, where ``chunk`` is one picture of any size."""
    import numpy as np

    batch = np.stack([item.pixels for item in chunk])
    try:
        return [runner.run(batch) for runner in runners]
    except InputError as error:
        if not sizes_differ:
            raise
        takes = f"; it takes {error.expected}" if error.expected else ""
        return InputError(f"{files[chunk[0].index]}: {error.found}{takes}")


def _records(
    runners: Sequence[InBatches],
    outputs: Sequence[dict[str, Array]],
    chunk: Sequence[_Loaded],
    files: Sequence[Path],
    classes: int,
) -> list[Record]:
    found = []
    for position, item in enumerate(chunk):
        masks = [
            _mask(runner.name, given, position, item, files[item.index], classes)
            for runner, given in zip(runners, outputs, strict=True)
        ]
        found.append(count(item.index, item.labels, masks[0], masks[1] if masks[1:] else None, classes))
    return found


def _mask(name: str, outputs: dict[str, Array], position: int, item: _Loaded, file: Path, classes: int) -> Mask:
    """The mask of a picture, at the size of its labels."""
    height, width = item.pixels.shape[1:]
    try:
        mask = class_mask(
            outputs,
            position,
            input_size=(height, width),
            picture_size=(item.labels.shape[0], item.labels.shape[1]),
        )
    except InputError as error:
        raise InputError(f"{name} gave for {file} {error.found}", expected=error.expected, hint=error.hint) from error
    if "logits" in outputs and outputs["logits"].shape[1] != classes:
        raise InputError(f"{name} gives logits of {outputs['logits'].shape[1]} classes", expected=f"{classes}")
    if mask.max() >= classes:
        raise InputError(f"{name} gave for {file} the class {mask.max()}", expected=f"0 to {classes - 1}")
    return mask


def _key(belongs: Mapping[str, str], pairs: MaskSet, preprocessing: Preprocessing, labels: Labelling) -> dict[str, str]:
    """What a progress file belongs to: all that its records depend on."""
    return {
        **belongs,
        "set of images": pairs.images.sha256,
        "set of masks": pairs.sha256,
        "preprocessing": json.dumps(preprocessing.to_dict()),
        "labels": f"{labels.classes} classes, {labels.ignored} ignored, reduced: {labels.reduce_zero_label}",
    }


def _earlier(journal: Journal, at_once: int, images: int, classes: int, columns: int) -> list[Record]:
    """The records of an earlier run, in whole batches, so that the rest runs in the batches that it would have had."""
    journal.keep(len(journal.records) // at_once * at_once)
    records: dict[int, Record] = {}
    for number, row in enumerate(journal.records, 2):
        if not _is_record(row, images, classes, columns) or row[0] in records:
            raise InputError(f"{journal.path} holds no record of a picture in line {number}", hint="remove it")
        records[row[0]] = Record(*row)
    return list(records.values())


def _is_record(row: list[Any], images: int, classes: int, columns: int) -> bool:
    if len(row) != len(Record._fields) or not isinstance(row[3], list):
        return False
    counts = row[3]
    whole = all(isinstance(entry, list) and len(entry) == columns for entry in counts)
    numbers = [*row[:3], *(itertools.chain(*counts) if whole else ())]
    fits = whole and all(type(number) is int and 0 <= number < 1 << 40 for number in numbers)
    return fits and row[0] < images and row[1] > 0 and all(entry[0] < classes for entry in counts)
