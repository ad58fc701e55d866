"""Pictures with a mask each: which folders, which mask belongs to which picture, and what its numbers mean.

A mask has the path of its picture, below a folder of its own, and ends in ``.png``. ADE20K's layout is known:
``images/validation/X.jpg`` and ``annotations/validation/X.png``.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sepvit_deploy.errors import ImageError, InputError, OptionError
from sepvit_deploy.heads import MASK_CLASSES
from sepvit_deploy.image_sets import ImageSet, labelled
from sepvit_deploy.images import image_files, image_set_digest
from sepvit_deploy.masks import read_mask
from sepvit_deploy.segmentation_scores import IGNORED

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Labels = NDArray[np.int16]

IGNORE = 255
"""Value of pixels that count for nothing, where no other is given."""
SPLITS = ("validation", "val")
_NO_CLASS = -2
_Item = TypeVar("_Item")
_Loaded = TypeVar("_Loaded")


@dataclass(frozen=True)
class MaskSet:
    """Chosen pictures of one folder, and the mask of each.

    Attributes:
        folder: that every mask lies in.
        files: masks, in the order of the pictures.
    """

    images: ImageSet
    folder: Path
    files: tuple[Path, ...]

    @cached_property
    def sha256(self) -> str:
        """Digest of the masks' names and contents."""
        return image_set_digest(self.folder, self.files)


def mask_set(source: Path, masks: Path | None = None, *, samples: int | None = None) -> MaskSet:
    """Pictures to evaluate on, all or ``samples`` of them, with their masks.

    Args:
        source: a folder of pictures, a manifest, or the folder that ``images`` and ``annotations`` lie in: of these
            the split ``validation`` or ``val`` is taken, where there is one.
        masks: their folder; by default ADE20K's, beside that of the pictures.

    Raises:
        OptionError: no masks are given or found, or ``samples`` below 1.
        ImageError: a folder without pictures, a picture without mask or the other way round, or two of one name.
        InputError: the manifest is unusable.
    """
    if all(os.path.isdir(source / name) for name in ("images", "annotations")):
        split = next((name for name in SPLITS if os.path.isdir(source / "images" / name)), "")
        source, masks = source / "images" / split, masks or source / "annotations" / split
    images = replace(labelled(source, samples=samples), labels=None)
    folder = masks or _beside(images.folder)
    if folder is None:
        raise OptionError(
            f"no masks are given for {source}",
            expected="--masks DIR, or ADE20K's layout: images/validation beside annotations/validation",
        )
    if not os.path.isdir(folder):
        raise ImageError(f"{folder} is no folder", expected="a folder with the mask of each picture, a PNG file")
    pictures, found = _by_name(images.folder), _by_name(folder)
    _require_all("mask", pictures, found, folder, ".png")
    _require_all("picture", found, pictures, images.folder, ".*")
    return MaskSet(images, folder, tuple(found[_name(path, images.folder)] for path in images.files))


def _beside(folder: Path) -> Path | None:
    """The same place below ``annotations`` instead of ``images``, the last folder of this name in the path."""
    parts = folder.parts if "images" in folder.parts else Path(os.path.abspath(folder)).parts
    if "images" not in parts:
        return None
    at = len(parts) - 1 - parts[::-1].index("images")
    found = Path(*parts[:at], "annotations", *parts[at + 1 :])
    return found if os.path.isdir(found) else None


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _by_name(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in image_files(folder):
        if (other := found.setdefault(_name(path, folder), path)) != path:
            raise ImageError(f"{other} and {path} have one name", expected="pictures and masks in folders of their own")
    return found


def _require_all(what: str, files: dict[str, Path], others: dict[str, Path], folder: Path, suffix: str) -> None:
    """Refuse ``files`` of which one has none of its name among ``others``, which lie in ``folder``."""
    if alone := sorted(files.keys() - others.keys()):
        more = f" and {len(alone) - 1} more" if alone[1:] else ""
        found = f"{files[alone[0]]}{more} without a {what}"
        raise ImageError(found, expected=f"{folder / alone[0]}{suffix}", hint="remove what is to be left out")


@dataclass(frozen=True)
class Labelling:
    """What the numbers in masks mean.

    Attributes:
        classes: how many the model has.
        ignore: the number of pixels that count for nothing, which may be that of a class; None for `IGNORE`, which
            may not.
        reduce_zero_label: 0 counts for nothing, too, and 1 to ``classes`` are the classes from 0 on.

    Raises:
        OptionError: ``ignore`` fits no mask, or is None where `IGNORE` is a class; more classes than a mask can hold.
    """

    classes: int
    ignore: int | None = None
    reduce_zero_label: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.ignored <= 255:
            raise OptionError(f"--ignore {self.ignored}", expected="0 to 255, the numbers that a mask can hold")
        if self.classes > MASK_CLASSES:
            found = f"masks of {self.classes} classes cannot be evaluated"
            raise OptionError(found, expected=f"at most {MASK_CLASSES}, for a mask has 8 bits")
        if self.ignore is None and self.ignored_class is not None:
            # With `reduce_zero_label` 0 counts for nothing as it is; without it no number is free.
            hint = "--ignore 0, which is no class" if self.reduce_zero_label else f"--ignore {IGNORE} to leave it out"
            raise OptionError(
                f"{IGNORE}, which is ignored in masks, is class {self.ignored_class} of {self.classes}",
                expected="a number that is no class",
                hint=f"type: {hint}",
            )

    @property
    def ignored(self) -> int:
        """The number of pixels that count for nothing."""
        return IGNORE if self.ignore is None else self.ignore

    @property
    def ignored_class(self) -> int | None:
        """The class whose pixels count for nothing, because its number is ignored; None where there is none."""
        number = self.ignored - self.reduce_zero_label
        return number if 0 <= number < self.classes else None

    @cached_property
    def table(self) -> Labels:
        """The label of each number from 0 to 255."""
        import numpy as np

        label = np.arange(256, dtype=np.int16) - int(self.reduce_zero_label)  # which makes 0 `IGNORED`
        label[label >= self.classes] = _NO_CLASS
        label[self.ignored] = IGNORED
        return label

    def read(self, path: Path) -> Labels:
        """The labels of a mask: (H, W), classes or `segmentation_scores.IGNORED`.

        Raises:
            ImageError: it is unusable.
        """
        labels: Labels = self.table[read_mask(path)]
        return labels

    def require_fit(self, paths: Sequence[Path], model: str, *, workers: int | None = None) -> None:
        """Refuse masks with numbers that are no class, before a model has run for hours; ``model`` is for the message.

        Raises:
            ImageError: a mask is unusable, or holds such a number.
            InputError: all pixels of all masks are ignored.
        """
        import numpy as np

        seen = np.zeros(256, np.bool_)
        unfit: tuple[Path, int] | None = None
        for path, values in ahead(paths, _values, workers):
            seen |= values
            strange = np.flatnonzero(values & (self.table == _NO_CLASS))
            if unfit is None and strange.size:
                unfit = path, int(strange[-1])
        if unfit is not None:
            reduced = replace(self, reduce_zero_label=True)
            would_do = not self.reduce_zero_label and not (seen & (reduced.table == _NO_CLASS)).any()
            last = self.classes - 1 + self.reduce_zero_label
            raise ImageError(
                f"{unfit[0]} holds the value {unfit[1]}",
                expected=f"0 to {last} or {self.ignored}, because {model} has {self.classes} classes",
                hint="add --reduce-zero-label, if 0 stands for no class in these masks" if would_do else None,
            )
        if (self.table[seen] == IGNORED).all():
            held = ", ".join(map(str, np.flatnonzero(seen).tolist()))
            raise InputError(f"all pixels of the masks are ignored: they hold {held} alone", expected="classes in them")


def _values(path: Path) -> NDArray[np.bool_]:
    """Which of the numbers 0 to 255 a mask holds."""
    import numpy as np

    present: NDArray[np.bool_] = np.bincount(read_mask(path).ravel(), minlength=256) > 0
    return present


def ahead(
    items: Iterable[_Item], load: Callable[[_Item], _Loaded], workers: int | None
) -> Iterator[tuple[_Item, _Loaded]]:
    """Each item and what ``load`` gives for it, in order; a few are loaded ahead, by threads.

    Args:
        workers: threads; None for one a processor, at most four.

    Raises:
        OptionError: ``workers`` below 1.
    """
    if workers is None:
        workers = min(4, len(os.sched_getaffinity(0)))
    if workers < 1:
        raise OptionError(f"--workers {workers}", expected="1 or more")
    pending: deque[tuple[_Item, Future[_Loaded]]] = deque()
    rest = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        while True:
            for item in islice(rest, 2 * workers - len(pending)):
                pending.append((item, pool.submit(load, item)))
            if not pending:
                return
            item, future = pending.popleft()
            yield item, future.result()
