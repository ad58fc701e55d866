"""Masks at the command line: pictures through a segmentation file, and what is printed of masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepvit_deploy.cli.show import as_text, console, new_table, say
from sepvit_deploy.errors import OptionError

if TYPE_CHECKING:
    from sepvit_deploy.evaluate_masks import MaskEvaluation
    from sepvit_deploy.pipeline import Opened, Running
    from sepvit_deploy.predict import Segmentation
    from sepvit_deploy.segmentation_scores import Estimate, MaskComparison, Scores

MOST_CLASSES = 20


def segmented(
    opened: Opened,
    how: Running,
    images: Sequence[Path],
    *,
    top: int,
    labels: list[str] | None,
    folder: Path,
    masks: bool,
) -> list[Segmentation]:
    """Pictures through a file, with the class names of ``labels``, or those that its passport has.

    Raises:
        OptionError: ``top`` below 1; InputError: what `predict.segment` raises, of places before the file is loaded.
    """
    from sepvit_deploy.artifact import passport_path
    from sepvit_deploy.classes import require_labels
    from sepvit_deploy.masks import names_and_colours
    from sepvit_deploy.predict import places, segment

    if top < 1:
        raise OptionError(f"--top {top}", expected="1 or more")
    passport, spec, preprocessing = opened.require_passport()
    require_labels(labels, spec.num_classes)
    names, colours = names_and_colours(passport.facts, spec.num_classes)
    keep = (opened.path, passport_path(opened.path))
    places(images, folder, masks=masks, keep=keep)  # an engine takes a while to load
    with opened.running(how) as runner:
        return segment(
            runner,
            preprocessing,
            images,
            classes=spec.num_classes,
            names=labels or names,
            colours=colours,
            folder=folder,
            masks=masks,
            keep=keep,
        )


def segmentations(found: Sequence[Segmentation], top: int) -> None:
    """What was written for each picture, and its largest classes."""
    from sepvit_deploy.overlay import percent

    for picture in found:
        written = picture.overlay if picture.mask is None else f"{picture.overlay}, {picture.mask}"
        say(f"{as_text(picture.image)}: {as_text(written)}")
        table = new_table("", "class", "label", "pixels", right=("class", "pixels"))
        for part in picture.parts[:top]:
            table.add_row(str(part.number), as_text(part.name), percent(part.share))
        console().print(table)
        if more := len(picture.parts[top:]):
            say(f"and {more} more: --top {len(picture.parts)} shows them all")


def rows(found: Sequence[Segmentation], top: int) -> list[dict[str, Any]]:
    """The same as plain JSON."""
    return [
        {
            "image": picture.image,
            "height": picture.size[0],
            "width": picture.size[1],
            "overlay": picture.overlay,
            "mask": picture.mask,
            "classes": [{"class": k, "label": name, "share": share} for k, name, share in picture.parts[:top]],
        }
        for picture in found
    ]


def evaluation(found: MaskEvaluation) -> None:
    """IoU of the classes and their mean, and the comparison with another file."""
    passed_over = f", {len(found.unreadable)} more passed over" if found.unreadable else ""
    label = "" if found.meaningful else " (not meaningful: untrained weights)"
    say(f"{found.model} on {found.images} images of {found.images_folder}{passed_over}; masks of {found.masks_folder}")
    if found.ignored_class is not None:
        ignored = f"pixels of class {found.ignored_class} are left out, for their value {found.ignore} is ignored"
        say(f"{ignored}; where it is predicted elsewhere, it counts as wrong")
    _classes(found.scores)
    _means("", found.scores, label)
    absent = found.scores.absent
    if absent:
        left_out = "1 class is" if absent == 1 else f"{absent} classes are"
        say(f"{left_out} in no mask and never predicted, and not in the means")
    if found.against is not None:
        _comparison(found.against, label)


def _classes(scores: Scores) -> None:
    numbers = ("class", "IoU", "accuracy", "pixels labelled", "predicted")
    rows = new_table("classes, the lowest IoU first", "class", "name", *numbers[1:], right=numbers)
    for score in sorted(scores.classes, key=lambda score: score.iou)[:MOST_CLASSES]:
        accuracy = "" if score.accuracy is None else f"{score.accuracy:.2%}"
        figures = (f"{score.iou:.2%}", accuracy, f"{score.labelled:,}", f"{score.predicted:,}")
        rows.add_row(str(score.index), as_text(score.name or ""), *figures)
    console().print(rows)
    _more(len(scores.classes))


def _means(name: str, scores: Scores, label: str) -> None:
    say(f"{name}mIoU: {_interval(scores.miou)}{label}")
    say(f"{name}mean accuracy: {scores.mean_accuracy:.2%}, pixel accuracy: {scores.pixel_accuracy:.2%}{label}")


def _comparison(other: MaskComparison, label: str) -> None:
    _means(f"{other.model} ", other.scores, label)
    difference, interval = other.difference, ""
    if difference.low is not None and difference.high is not None:
        interval = f" (95 %: {100 * difference.low:+.2f} to {100 * difference.high:+.2f})"
    say(f"mIoU less that of {other.model}: {100 * difference.value:+.2f} points{interval}{label}")
    say(f"agreement with {other.model}: {other.agreement:.2%} of all pixels")
    if not other.changes:
        return
    numbers = ("class", "before", "after", "points")
    rows = new_table("IoU that changed, the greatest loss first", "class", "name", *numbers[1:], right=numbers)
    for change in other.changes[:MOST_CLASSES]:
        points = f"{100 * (change.after - change.before):+.2f}"
        name = as_text(change.name or "")
        rows.add_row(str(change.index), name, f"{change.before:.2%}", f"{change.after:.2%}", points)
    console().print(rows)
    _more(len(other.changes))


def _more(classes: int) -> None:
    if classes > MOST_CLASSES:
        say(f"and {classes - MOST_CLASSES} more classes: add --json to see them all")


def _interval(figure: Estimate) -> str:
    if figure.low is None or figure.high is None:
        return f"{figure.value:.2%} (of one image: no interval)"
    return f"{figure.value:.2%} (95 %: {figure.low:.2%} to {figure.high:.2%})"
