"""What a segmentation model gives to masks of pictures, as PNG and as JSON. B batch, H x W a picture.

It takes its time, and runs where pictures are decoded: not in the event loop.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sepvit_deploy.contract import MASK
from sepvit_deploy.errors import InputError
from sepvit_deploy.masks import Abandoned, class_mask, mask_png, run_lengths
from sepvit_deploy.server.protocol import dumps
from sepvit_deploy.server.refusal import Refusal, malformed, unavailable
from sepvit_deploy.uploads import PNG

if TYPE_CHECKING:
    from sepvit_deploy.masks import Colour, Mask
    from sepvit_deploy.runners.base import Array
    from sepvit_deploy.server.pictures import Prepared
    from sepvit_deploy.server.values import Values

MOST_RUNS = 1_000_000
"""Of a mask in JSON, where each takes some 15 bytes, and ten times that while it is written."""


def mask(outputs: dict[str, Array], prepared: Prepared, deadline: float, index: int = 0) -> Mask:
    """The classes of a picture's pixels, (H, W).

    Args:
        deadline: of `time.perf_counter`, after which nobody waits for it.

    Raises:
        Refusal: 400, the numbers that were sent take the model's beyond what is finite; 503, the deadline passes.
    """
    height, width = prepared.images.shape[2:]
    try:
        return class_mask(
            outputs,
            index,
            input_size=(height, width),
            picture_size=prepared.sizes[index],
            keep_going=lambda: time.perf_counter() < deadline,
        )
    except Abandoned:
        raise unavailable("the deadline has passed") from None
    except InputError:
        raise malformed("the model gives no finite numbers for this input") from None


def tensors(
    outputs: dict[str, Array], prepared: Prepared, colours: Sequence[Colour], deadline: float
) -> dict[str, Values]:
    """The output of the segment model: a PNG for each picture; raises as `mask`."""
    found = (mask(outputs, prepared, deadline, index) for index in range(len(prepared.sizes)))
    return {MASK: [mask_png(each, colours) for each in found]}


def answer(
    kind: str,
    outputs: dict[str, Array],
    prepared: Prepared,
    labels: Sequence[str] | None,
    colours: Sequence[Colour],
    about: Callable[[], dict[str, Any]],
    deadline: float,
) -> bytes:
    """The mask of one picture: a PNG, or its size, the classes in it, and the runs of `masks.run_lengths`.

    Args:
        kind: `uploads.PNG` or `uploads.JSON`.
        labels: without them, null.
        about: what else JSON says, asked when all but the writing is done.
        deadline: as of `mask`.

    Raises:
        Refusal: as `mask`; 413 for JSON of more than `MOST_RUNS`.
    """
    import numpy as np

    found = mask(outputs, prepared, deadline)
    if kind == PNG:
        return mask_png(found, colours)
    flat = found.ravel()
    if (runs := 1 + int(np.count_nonzero(flat[1:] != flat[:-1]))) > MOST_RUNS:
        raise Refusal(413, f"the mask has {runs} runs, and JSON takes {MOST_RUNS}: ask for it as a PNG")
    pairs = run_lengths(found)
    pixels: Counter[int] = Counter()
    for k, length in pairs:
        pixels[k] += length
    classes = [
        {
            "class": k,
            "label": None if labels is None else labels[k],
            "share": round(count / flat.size, 6),
            "colour": list(colours[k]),
        }
        for k, count in pixels.most_common()
    ]
    size = {"height": found.shape[0], "width": found.shape[1]}
    return dumps(size | {"classes": classes, "runs": pairs} | about())
