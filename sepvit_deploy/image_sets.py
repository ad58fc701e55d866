"""Which images a measurement uses: a folder or a manifest, sampled by one rule, with labels where there are any.

The rule: the pictures under the folder, sorted by path; of n, the ``samples`` at the positions i * n // samples, which
covers class folders evenly and depends on the names alone.

A manifest is a TOML file::

    folder = "../data/val"    # relative to the manifest
    samples = 512
    sha256 = "..."            # optional: of the chosen images, which are refused if they changed
    make = "..."              # optional: the command that creates the folder, for the error where it is missing
    name, note, licence       # optional
"""

from __future__ import annotations

import os
import re
import tomllib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from sepvit_deploy.errors import ImageError, InputError, OptionError
from sepvit_deploy.images import image_files, image_set_digest, load_image, preprocess
from sepvit_deploy.labels import from_class_folders, from_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sepvit_deploy.spec import Preprocessing

    Array = NDArray[np.float32]
    Warn = Callable[[str], None]

SAMPLES = 512
"""Asked of a folder where no number is given."""
LEAST_SAMPLES = 80
"""Fewer are taken only where exactly so many are asked for."""


@dataclass(frozen=True)
class ImageSet:
    """Chosen images of one folder.

    Attributes:
        name: for reports; folder: that every file lies in.
        labels: class of each file, counted from 0; None where they are not known.
    """

    name: str
    folder: Path
    files: tuple[Path, ...]
    labels: tuple[int, ...] | None = None

    @cached_property
    def sha256(self) -> str:
        """Digest of the files' names and contents; what cannot even be opened is no part of it."""
        return image_set_digest(self.folder, [path for path in self.files if _can_be_opened(path)])


@dataclass(frozen=True)
class _Manifest:
    """A manifest's keys as they are written."""

    folder: str
    samples: int
    sha256: str | None = None
    make: str | None = None
    name: str | None = None
    note: str | None = None
    licence: str | None = None


def image_set(source: Path, *, samples: int | None = None, warn: Warn = lambda text: None) -> ImageSet:
    """Images to calibrate on: ``samples`` of a folder or of a manifest's folder, by the rule above.

    Args:
        samples: None for a manifest's own number, or `SAMPLES` of a folder.
        warn: gets a line where there are fewer than asked, or few.

    Raises:
        OptionError: ``samples`` below 1.
        ImageError: no picture, fewer than asked and than `LEAST_SAMPLES`, or others than the manifest's digest is of.
        InputError: the manifest is unusable.
    """
    everything, asked = _everything(source)
    wanted = _at_least_one(samples if samples is not None else asked or SAMPLES)
    available = len(everything.files)
    if wanted > available:
        if available < LEAST_SAMPLES:
            raise ImageError(
                f"{everything.name} holds {_images(available)}",
                expected=f"{wanted}, or at least {LEAST_SAMPLES}",
                hint=f"--samples {available} accepts so few",
            )
        warn(f"{everything.name} holds {available} of the {wanted} images asked for: all are used")
    elif wanted < LEAST_SAMPLES:
        warn(f"{_images(wanted)}: ranges from fewer than {LEAST_SAMPLES} may clip what other images need")
    return _sampled(everything, min(wanted, available))


def labelled(source: Path, labels: Path | None = None, *, samples: int | None = None) -> ImageSet:
    """Images to evaluate on: all of a folder, those of a manifest, or ``samples`` of either, with their labels.

    Without a file of labels, each folder of pictures right under the folder is a class, in the order of their names,
    if there are two or more and all pictures lie in them; otherwise there are no labels.

    Args:
        labels: a text file with lines of ``PATH LABEL`` (spaces, a tab or a comma between), or a JSON object
            ``{path: label}``; paths relative to the folder, labels from 0.

    Raises:
        OptionError, ImageError, InputError: as `image_set`, but any number of images will do; labels that are no such
            file, leave a picture out, or name one that is not there; a class folder without pictures.
    """
    everything, asked = _everything(source)
    of = (everything.folder, everything.files)
    found = from_class_folders(*of) if labels is None else from_file(labels, *of)
    wanted = _at_least_one(samples if samples is not None else asked or len(everything.files))
    if wanted > len(everything.files):
        raise ImageError(f"{everything.name} holds {_images(len(everything.files))}", expected=f"{wanted}")
    return _sampled(replace(everything, labels=found), wanted)


def decoded(
    images: ImageSet,
    preprocessing: Preprocessing,
    *,
    workers: int | None = None,
    max_unreadable: int = 10,
    skipped: Callable[[Path, str], None] = lambda path, reason: None,
) -> Iterator[tuple[int, Array]]:
    """Position and input (3, H, W) of each image, in order; a few are decoded ahead, by threads.

    Args:
        workers: threads; None for one a processor, at most four.
        max_unreadable: images to pass over; one more is an error.
        skipped: called with the path of each image that is passed over, and the reason.

    Raises:
        OptionError: ``workers`` below 1.
        ImageError: too many images are unreadable.
    """
    if workers is None:
        workers = min(4, len(os.sched_getaffinity(0)))
    if workers < 1:
        raise OptionError(f"--workers {workers}", expected="1 or more")
    return _decode(images, preprocessing, workers, max_unreadable, skipped)


def _decode(
    images: ImageSet,
    preprocessing: Preprocessing,
    workers: int,
    max_unreadable: int,
    skipped: Callable[[Path, str], None],
) -> Iterator[tuple[int, Array]]:
    def load(path: Path) -> Array:
        return preprocess(load_image(path), preprocessing, name=path)

    unreadable: list[str] = []
    pending: deque[tuple[int, Future[Array]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        files = enumerate(images.files)
        while True:
            for index, path in islice(files, 2 * workers - len(pending)):
                pending.append((index, pool.submit(load, path)))
            if not pending:
                return
            index, future = pending.popleft()
            try:
                values = future.result()
            except ImageError as error:
                unreadable.append(error.found)
                if len(unreadable) > max_unreadable:
                    raise _too_many(images, unreadable, max_unreadable) from error
                skipped(images.files[index], error.found)
                continue
            yield index, values


def _too_many(images: ImageSet, unreadable: Sequence[str], max_unreadable: int) -> ImageError:
    names = "; ".join(unreadable[:3]) + ("; ..." if len(unreadable) > 3 else "")
    return ImageError(
        f"{images.name} has {_images(len(unreadable), 'unreadable ')} or more: {names}",
        expected=f"at most {max_unreadable}",
        hint="repair or remove them, or raise --max-unreadable",
    )


def _images(count: int, kind: str = "") -> str:
    return f"{count} {kind}image{'' if count == 1 else 's'}"


def _can_be_opened(path: Path) -> bool:
    """Has it bytes to read? Pipes have none that would end."""
    return os.path.isfile(path) and os.access(path, os.R_OK) and os.path.getsize(path) > 0


def _at_least_one(samples: int) -> int:
    if samples < 1:
        raise OptionError(f"--samples {samples}", expected="1 or more")
    return samples


def _sampled(everything: ImageSet, count: int) -> ImageSet:
    chosen = [i * len(everything.files) // count for i in range(count)]
    labels = None if everything.labels is None else tuple(everything.labels[k] for k in chosen)
    return replace(everything, files=tuple(everything.files[k] for k in chosen), labels=labels)


def _everything(source: Path) -> tuple[ImageSet, int | None]:
    """All images of a folder, or of a manifest's folder and the number that it chooses; its digest is checked."""
    if os.path.isdir(source):
        return ImageSet(source.resolve().name or "/", source, tuple(image_files(source))), None
    if not os.path.exists(source):
        raise ImageError(f"{source} does not exist", expected="a folder of pictures, or a .toml manifest of one")
    if not source.is_file() or source.suffix.lower() != ".toml":
        raise ImageError(f"{source} is no folder", expected="a folder of pictures, or a .toml manifest of one")
    manifest = _read_manifest(source)
    folder = source.parent / manifest.folder
    if not os.path.isdir(folder):
        hint = f"type: {manifest.make}" if manifest.make else f"correct folder in {source}"
        raise ImageError(f"{folder}, the folder of {source}, is not there", expected="a folder of pictures", hint=hint)
    everything = ImageSet(manifest.name or source.stem, folder, tuple(image_files(folder)))
    if manifest.sha256:
        found = _sampled(everything, min(manifest.samples, len(everything.files))).sha256
        if found != manifest.sha256:
            raise ImageError(
                f"the images of {source} have changed: SHA-256 {found[:12]}... over {_images(manifest.samples)}",
                expected=f"{manifest.sha256[:12]}...",
                hint=f"make them again: {manifest.make}" if manifest.make else "write a new manifest for new images",
            )
    return everything, manifest.samples


def _read_manifest(path: Path) -> _Manifest:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error})", expected="a TOML manifest of images") from error
    names = [field.name for field in fields(_Manifest)]
    for key in values:
        if key not in names:
            close = get_close_matches(key, names, n=1)
            hint = f"did you mean {close[0]}?" if close else None
            raise InputError(f"{path} has the unknown key {key}", expected=f"keys of {', '.join(names)}", hint=hint)
    for key in ("folder", "samples"):
        if key not in values:
            raise InputError(f"{path} lacks the key {key}", expected="folder and samples, at the least")
    for key, value in values.items():
        if key == "samples":
            if type(value) is not int or value < 1:
                raise InputError(f"samples in {path} is {value!r:.60}", expected="an integer of at least 1")
        elif not isinstance(value, str) or not value.strip() or "\0" in value:
            raise InputError(f"{key} in {path} is {value!r:.60}", expected="a text")
    if not re.fullmatch(r"[0-9a-f]{64}", values.get("sha256", "0" * 64)):
        raise InputError(f"sha256 in {path} is {values['sha256']!r:.60}", expected="64 hexadecimal digits")
    return _Manifest(**values)
