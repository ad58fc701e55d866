"""Pictures to ranked classes; with a segmentation file, to masks that are laid over them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sepvit_deploy.artifact import require_writable, written
from sepvit_deploy.classes import TOP, ranked, require_labels
from sepvit_deploy.errors import InputError, OptionError
from sepvit_deploy.images import load_image, preprocess
from sepvit_deploy.masks import Colour, class_mask, mask_png, palette
from sepvit_deploy.overlay import Part, overlay, parts
from sepvit_deploy.runners.batches import InBatches

if TYPE_CHECKING:
    from sepvit_deploy.runners.base import Runner
    from sepvit_deploy.spec import Preprocessing


@dataclass(frozen=True)
class Prediction:
    """A picture's best classes: (class index, label or None, probability), best first."""

    image: str
    classes: tuple[tuple[int, str | None, float], ...]


def predict(
    runner: Runner,
    preprocessing: Preprocessing,
    images: Sequence[Path],
    *,
    top: int = TOP,
    labels: list[str] | None = None,
) -> list[Prediction]:
    """Classify pictures, one at a time.

    Args:
        top: how many classes to give for each.

    Raises:
        ImageError: a picture is unusable; InputError: the logits are not finite or labels do not fit;
        OptionError: ``top`` below 1.
    """
    if top < 1:
        raise OptionError(f"--top {top}", expected="1 or more")
    batched = InBatches(runner)
    predictions = []
    for path in images:
        pixels = preprocess(load_image(path), preprocessing, name=path)
        outputs = batched.run(pixels[None])
        if "logits" not in outputs:
            raise InputError(f"{runner.name} gives {', '.join(outputs)}", expected="a classification file with logits")
        try:
            indices, scores = ranked(outputs["logits"], top)
        except InputError as error:
            found = f"{runner.name} gave for {path} {error.found}"
            raise InputError(found, expected=error.expected, hint=error.hint) from error
        require_labels(labels, outputs["logits"].shape[1])
        best = zip(indices[0].tolist(), scores[0].tolist(), strict=True)
        classes = tuple((k, None if labels is None else labels[k], score) for k, score in best)
        predictions.append(Prediction(str(path), classes))
    return predictions


@dataclass(frozen=True)
class Segmentation:
    """What was written for a picture of (height, width), and the classes in it, the largest first.

    Attributes:
        mask: the plain mask; None where none was asked for.
    """

    image: str
    size: tuple[int, int]
    overlay: str
    mask: str | None
    parts: tuple[Part, ...]


def segment(
    runner: Runner,
    preprocessing: Preprocessing,
    images: Sequence[Path],
    *,
    classes: int,
    names: Sequence[str] | None = None,
    colours: Sequence[Colour] | None = None,
    folder: Path = Path(),
    masks: bool = False,
    keep: Sequence[Path] = (),
) -> list[Segmentation]:
    """Write ``NAME.overlay.png`` for each picture, one at a time, and with ``masks`` also ``NAME.mask.png``.

    Args:
        classes: how many the file has; names, colours: one for each; by default those of `masks.palette`.
        folder: to write into.
        keep: files besides the pictures that are not to be overwritten.

    Raises:
        OptionError: two pictures would be written to one place, or one over a file that is needed.
        OutputError: a place cannot be written.
        ImageError: a picture is unusable; InputError: outputs that are no masks of these classes.
    """
    batched = InBatches(runner)
    colours = colours or palette(classes)
    found = []
    for path, (over, plain) in zip(images, places(images, folder, masks=masks, keep=keep), strict=True):
        image = load_image(path)
        pixels = preprocess(image, preprocessing, name=path)
        outputs = batched.run(pixels[None])
        size = (image.height, image.width)
        try:
            mask = class_mask(outputs, 0, input_size=(pixels.shape[1], pixels.shape[2]), picture_size=size)
        except InputError as error:
            named = f"{runner.name} gave for {path} {error.found}"
            raise InputError(named, expected=error.expected, hint=error.hint) from error
        if mask.max() >= classes:
            raise InputError(f"{runner.name} gave for {path} the class {mask.max()}", expected=f"0 to {classes - 1}")
        there = parts(mask, names)
        with written(over) as temporary:
            overlay(image, mask, there, colours).save(temporary, "PNG")
        if plain is not None:
            with written(plain) as temporary:
                temporary.write_bytes(mask_png(mask, colours))
        found.append(Segmentation(str(path), size, str(over), None if plain is None else str(plain), there))
    return found


def places(
    images: Sequence[Path], folder: Path, *, masks: bool = False, keep: Sequence[Path] = ()
) -> list[tuple[Path, Path | None]]:
    """Where the overlay of each picture goes, and its mask; see `segment`.

    Raises:
        OptionError: two pictures would be written to one place, or one over a file that is needed.
        OutputError: a place cannot be written.
    """
    taken = {os.path.realpath(path): str(path) for path in (*images, *keep)}
    found: list[tuple[Path, Path | None]] = []
    for image in images:
        over = folder / f"{image.stem}.overlay.png"
        plain = folder / f"{image.stem}.mask.png" if masks else None
        for place in filter(None, (over, plain)):
            if other := taken.get(os.path.realpath(place)):
                raise OptionError(
                    f"{place}, made of {image}, would overwrite {other}",
                    expected="a place for each picture",
                    hint="give another folder with --output, or predict them one by one",
                )
            require_writable(place)
            taken[os.path.realpath(place)] = f"that of {image}"
        found.append((over, plain))
    return found
