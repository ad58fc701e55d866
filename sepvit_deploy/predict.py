"""Pictures to ranked classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sepvit_deploy.classes import TOP, ranked, require_labels
from sepvit_deploy.errors import InputError, OptionError
from sepvit_deploy.images import load_image, preprocess
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
