"""What a client meets: names of models, tensors and ports, the same in Triton, in the embedded server and in Ray Serve.

A model ``sepvit_t`` takes ``images`` and gives ``logits``. Beside it, ``sepvit_t_classify`` takes encoded pictures and
gives classes; in Triton that is an ensemble of ``sepvit_t_preprocess``, the model, and ``sepvit_t_rank``. Beside a
segmentation model, ``sepvit_t_segment`` takes encoded pictures and gives their masks: an ensemble of
``sepvit_t_preprocess``, the model, and ``sepvit_t_mask``.
B batch, K classes that are given.
"""

from __future__ import annotations

import re
from pathlib import Path

from sepvit_deploy.errors import OptionError

IMAGE = "image"
"""BYTES (B, 1): an encoded picture for each item."""
PIXELS = "pixels"
"""UINT8 (B, rows, columns, 3): pictures that are decoded already."""
CLASS, LABEL, SCORE = "class", "label", "score"
"""INT64, BYTES and FP32, each (B, K), best first."""
MASK = "mask"
"""BYTES (B, 1): for each picture a PNG of its own size, whose values are class numbers, for masks that differ in size
have no tensor in common. What a segmentation model itself calls so is UINT8 (B, H, W), at the size of its input."""
INPUT_SIZE, PICTURE_SIZE = "input_size", "picture_size"
"""INT64 (B, 2), height and width: of what the model was given, and of the picture; from Triton's model to model."""
HTTP_PORT, METRICS_PORT = 8000, 8002
"""Triton's own, which the embedded server and the manifests keep."""
RAY_PROBE = "/-/healthz"
"""Ray's own address on each node that serves, which waits in no queue."""
MAX_DELAY_US = 10_000_000
"""The longest that a request may be made to wait for others to join it."""
LONGEST_NAME = 80
"""Of a name that is made of a file's: what is added to it still fits."""
_NAME = re.compile("[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", re.ASCII)


def classify_name(name: str) -> str:
    """The model that takes pictures and gives classes."""
    return f"{name}_classify"


def preprocess_name(name: str) -> str:
    """Triton's model from pictures to ``images``."""
    return f"{name}_preprocess"


def rank_name(name: str) -> str:
    """Triton's model from ``logits`` to classes."""
    return f"{name}_rank"


def segment_name(name: str) -> str:
    """The model that takes pictures and gives masks."""
    return f"{name}_segment"


def mask_name(name: str) -> str:
    """Triton's model from what a segmentation model gives to masks of the pictures' sizes."""
    return f"{name}_mask"


def require_name(name: str, option: str = "--name") -> str:
    """A model's name as it was given; it becomes part of addresses and names of folders.

    Raises:
        OptionError: it would not do there.
    """
    if not _NAME.fullmatch(name):
        expected = "1 to 100 letters, digits, '_', '-' or '.', not beginning with '.' or '-'"
        raise OptionError(f"{option} {name!r:.60}", expected=expected)
    return name


def name_of(path: Path) -> str:
    """What a model is called where nobody says it: the file's name without its last suffix, in letters Triton takes."""
    cleaned = re.sub("[^A-Za-z0-9_.-]+", "_", path.stem).lstrip(".-")[:LONGEST_NAME]
    return cleaned or "model"
