"""Whether an answer is right: of the right form, finite, and what the same request was answered without a load.

B images, K classes that are given, H x W a mask.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sepvit_deploy.contract import CLASS, LABEL, MASK, SCORE
from sepvit_deploy.images import DAMAGED, MAX_PIXELS
from sepvit_deploy.optional import require

if TYPE_CHECKING:
    import numpy as np

    Outputs = Mapping[str, np.ndarray[Any, Any]]

TOLERANCE = 0.02
"""Over the largest |number| of an output, or 1, and of a mask's pixels: what FP16 rounds differently in another batch
is less."""


def parsed(body: bytes, header_length: int | None) -> Outputs:
    """The outputs of an answer by name.

    Raises:
        ValueError: it is no answer of the protocol.
    """
    client = require("tritonclient.http", extra="serving")
    try:
        found = client.InferResult.from_response_body(body, header_length=header_length)
        outputs = {output["name"]: found.as_numpy(output["name"]) for output in found.get_response()["outputs"]}
    except (client.InferenceServerException, KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise ValueError(f"no answer of the protocol ({type(error).__name__})") from error
    if not outputs or any(values is None for values in outputs.values()):
        raise ValueError("an answer without tensors")
    return outputs


def unfit(outputs: Outputs, images: int) -> str | None:
    """Why outputs are none of a request of so many images; None where they are."""
    import numpy as np

    for name, values in outputs.items():
        if values.ndim < 1 or len(values) != images or not values.size:
            return f"{name} of shape {' x '.join(map(str, values.shape)) or 'none'} for {images} images"
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            return f"{name} is not finite"
    return None


def difference(reference: Outputs, outputs: Outputs, tolerance: float = TOLERANCE) -> str | None:
    """How an answer differs from the one without a load; None where it is the same."""
    if outputs.keys() != reference.keys():
        return f"outputs {', '.join(outputs)}"
    for name, expected in reference.items():
        if outputs[name].shape != expected.shape or outputs[name].dtype != expected.dtype:
            return f"{name} of another shape or type"
    if {CLASS, SCORE} <= reference.keys():
        return _other_classes(reference, outputs, tolerance)
    for name, expected in reference.items():
        masks = name == MASK and expected.dtype.kind in "Ou"
        if (_other_pixels if masks else distance)(expected, outputs[name]) > tolerance:
            return f"{name} is not what the same request was answered before"
    return None


def _other_pixels(expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> float:
    """The largest share of pixels of another class in a mask; of uint8 (B, H, W), or a PNG each (B, 1)."""
    import numpy as np

    shares = []
    for before, after in zip(expected, found, strict=True):
        if expected.dtype.kind == "O":
            one, other = (_decoded(each.item()) for each in (before, after))
            if one is None or other is None or one.shape != other.shape:
                return 0.0 if before.item() == after.item() else float("inf")
            before, after = one, other
        shares.append(float(np.mean(before != after)))
    return max(shares)


def _decoded(png: bytes) -> np.ndarray[Any, Any] | None:
    """The class numbers of a PNG; None for anything else, and for what is larger than a picture may be."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
            return np.asarray(image) if image.width * image.height <= MAX_PIXELS else None
    except (*DAMAGED, Image.DecompressionBombError):  # which is said where it is compared
        return None


def distance(expected: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> float:
    """Largest |difference| over the largest |number| expected, or 1; of what is no number, 0 where it is equal."""
    import numpy as np

    if expected.dtype.kind not in "fiu":
        return 0.0 if np.array_equal(expected, values) else float("inf")
    largest = max(float(np.abs(expected).max()), 1.0)
    return float(np.abs(values.astype(np.float64) - expected).max()) / largest


def alike(references: Sequence[Outputs], tolerance: float = TOLERANCE) -> bool:
    """Whether two different requests have answers that could not be told apart."""
    return any(difference(one, other, 2 * tolerance) is None for one, other in itertools.combinations(references, 2))


def _other_classes(reference: Outputs, outputs: Outputs, tolerance: float) -> str | None:
    """Of classes (B, K) and scores (B, K): a class may be another only where the scores are as good as equal."""
    rows = zip(reference[CLASS], reference[SCORE], outputs[CLASS], outputs[SCORE], strict=True)
    for expected, before, found, after in rows:
        scores = dict(zip(expected.tolist(), before.tolist(), strict=True))
        least = min(scores.values())
        for k, score in zip(found.tolist(), after.tolist(), strict=True):
            known = scores.get(k)
            if (known is None and score > least + tolerance) or (known is not None and abs(score - known) > tolerance):
                return f"class {k} with a score that the same picture did not have before"
    if LABEL in reference:
        names = dict(zip(reference[CLASS].ravel().tolist(), reference[LABEL].ravel().tolist(), strict=True))
        for k, label in zip(outputs[CLASS].ravel().tolist(), outputs[LABEL].ravel().tolist(), strict=True):
            if names.get(k, label) != label:
                return f"class {k} with another label"
    return None
