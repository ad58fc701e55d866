"""``/v1/classify`` and ``/v1/segment``: what a client may send, and what it is answered.

A body is an encoded picture. Of classes ``?top=K`` asks for another number than `classes.TOP`, the same in the embedded
server and in Ray Serve. A mask is PNG or JSON, as the header Accept says. B batch, K classes that are given.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from sepvit_deploy.classes import TOP
from sepvit_deploy.errors import ImageError, ImageTooLarge, InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CLASSIFY = "/v1/classify"
SEGMENT = "/v1/segment"
PNG, JSON = "image/png", "application/json"
"""What a mask is answered as; the first where it is all the same to the client."""
MOST_TOP = 1000
TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded")
"""Of a body, beside those of pictures; the last is what curl says of any bytes."""


def media_type(content_type: str | None) -> str:
    """What a header Content-Type names, without its parameters, in small letters; "" where there is none."""
    return (content_type or "").partition(";")[0].strip().lower()


def is_taken(kind: str) -> bool:
    """True where a body of this media type may be an encoded picture."""
    return kind in TYPES or kind.startswith("image/")


def is_plain(content_encoding: str | None) -> bool:
    """True where a header Content-Encoding leaves a body as it is."""
    return (content_encoding or "identity").strip().lower() == "identity"


def parse_top(text: str | None) -> int:
    """How many classes are asked for.

    Raises:
        InputError: it is no number from 1 to `MOST_TOP`.
    """
    if text is None:
        return TOP
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MOST_TOP)) and 1 <= int(text) <= MOST_TOP):
        raise InputError(f"top is {text!r:.40}", expected=f"1 to {MOST_TOP}")
    return int(text)


def mask_type(accept: str | None) -> str:
    """Which of `PNG` and `JSON` a header Accept wants: the one of the higher q.

    Raises:
        InputError: neither.
    """
    wanted: dict[str, float] = {}
    for entry in (accept or "*/*").split(","):
        kind, *parameters = (part.strip().lower() for part in entry.split(";"))
        weights = [parameter[2:] for parameter in parameters if parameter.startswith("q=")] or ["1"]
        if re.fullmatch(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?", weights[0]):  # an entry of another weight says nothing
            wanted[kind] = float(weights[0])

    def quality(kind: str) -> float:
        ranges = (kind, f"{kind.partition('/')[0]}/*", "*/*")  # the narrowest that is named counts
        return next((wanted[each] for each in ranges if each in wanted), 0.0)

    best = max((PNG, JSON), key=quality)  # of equal ones the first
    if not quality(best):
        raise InputError(f"Accept is {accept!r:.80}", expected=f"{PNG} or {JSON}")
    return best


def refusal_status(error: ImageError) -> int:
    """The status of HTTP for a picture that is refused: 413 for one that is too large, 400 for any other."""
    return 413 if isinstance(error, ImageTooLarge) else 400


def rows(
    classes: NDArray[np.integer[Any]], scores: NDArray[np.floating[Any]], labels: list[str] | None
) -> list[dict[str, Any]]:
    """The answer's ``classes``: the first image of what `classes.ranked` gives, (B, K) each; without labels, null."""
    pairs = zip(classes[0].tolist(), scores[0].tolist(), strict=True)
    return [{"class": k, "label": None if labels is None else labels[k], "score": score} for k, score in pairs]
