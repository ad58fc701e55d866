"""Logits to ranked classes, and the names of classes. Needs numpy alone: a copy runs inside Triton's Python backend.

B batch, C classes, K classes that are given.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from sepvit_deploy.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TOP = 5
"""Classes that are given where nobody says how many."""
MAX_LABEL_BYTES = 1 << 26
"""Of a file of labels."""


def ranked(logits: NDArray[np.floating], top: int = TOP) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The best classes of each image: logits (B, C) -> indices (B, K) and probabilities (B, K), best first.

    K is ``top``, or C where that is less. Of equal logits the lower index comes first.

    Raises:
        InputError: logits of another rank, or not finite.
    """
    import numpy as np

    if logits.ndim != 2 or not logits.size:
        shape = " x ".join(map(str, logits.shape)) or "one number"
        raise InputError(f"logits of shape {shape}", expected="B x classes")
    values = logits.astype(np.float64)
    if not np.isfinite(values).all():
        raise InputError("logits that are not finite", hint="check the file first")
    scores = np.exp(values - values.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    best = np.argsort(-values, axis=1, kind="stable")[:, :top]
    return best, np.take_along_axis(scores, best, axis=1)


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


def require_labels(labels: list[str] | None, classes: int) -> None:
    """Refuse labels that are not one for each class.

    Raises:
        InputError: they are fewer or more.
    """
    if labels is not None and len(labels) != classes:
        raise InputError(f"--labels has {len(labels)} labels", expected=f"{classes}, one for each class")
