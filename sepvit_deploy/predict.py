"""Pictures to ranked classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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


def read_labels(path: Path) -> list[str]:
    """Class names by index: a text file with one a line, or a JSON list, or a JSON object with indices as keys.

    Raises:
        InputError: unreadable, empty, or JSON of another form.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors on Windows begin with a mark
        if path.suffix.lower() != ".json":
            labels = [line.strip() for line in text.splitlines()]
            while labels and not labels[-1]:
                labels.pop()
        else:
            document = json.loads(text)
            if isinstance(document, dict):
                document = [document[str(k)] for k in range(len(document))]
            if not isinstance(document, list):
                raise TypeError(f"{type(document).__name__} at the top")
            names = [entry[-1] if isinstance(entry, list) else entry for entry in document]
            if unfit := [name for name in names if not isinstance(name, str | int)]:
                raise TypeError(f"{unfit[0]!r} is no label")
            labels = [str(name) for name in names]
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise InputError(
            f"{path} holds no labels ({type(error).__name__}: {error})",
            expected="a text file with one label a line, or a JSON list of them",
        ) from error
    if not labels:
        raise InputError(f"{path} is empty", expected="one label a line")
    return labels


def predict(
    runner: Runner,
    preprocessing: Preprocessing,
    images: Sequence[Path],
    *,
    top: int = 5,
    labels: Sequence[str] | None = None,
) -> list[Prediction]:
    """Classify pictures, one at a time.

    Args:
        top: how many classes to give for each.

    Raises:
        ImageError: a picture is unusable; InputError: the logits are not finite or labels do not fit;
        OptionError: ``top`` below 1.
    """
    import numpy as np

    if top < 1:
        raise OptionError(f"--top {top}", expected="1 or more")
    batched = InBatches(runner)
    predictions = []
    for path in images:
        pixels = preprocess(load_image(path), preprocessing, name=path)
        outputs = batched.run(pixels[None])
        if "logits" not in outputs:
            raise InputError(f"{runner.name} gives {', '.join(outputs)}", expected="a classification file with logits")
        if outputs["logits"].ndim != 2 or not outputs["logits"].size:
            shape = " x ".join(map(str, outputs["logits"].shape)) or "one number"
            raise InputError(f"{runner.name} gives logits of shape {shape}", expected="B x classes")
        logits = outputs["logits"][0].astype(np.float64)
        if not np.isfinite(logits).all():
            raise InputError(f"{runner.name} gave logits for {path} that are not finite", hint="check the file first")
        if labels is not None and len(labels) != len(logits):
            raise InputError(f"--labels has {len(labels)} labels", expected=f"{len(logits)}, one for each class")
        scores = np.exp(logits - logits.max())
        scores /= scores.sum()
        best = np.argsort(-logits, kind="stable")[:top]
        classes = tuple((int(k), None if labels is None else labels[k], float(scores[k])) for k in best)
        predictions.append(Prediction(str(path), classes))
    return predictions
