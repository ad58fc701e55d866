"""An answer that is no result: what went wrong, in the status codes of HTTP.

400  not the protocol, another shape or type, no picture, numbers that are not finite
403  a page of another site, or a name that is not this machine's while only this machine is served
404  405  no such model, version or path; another method
406  an answer of a type that is not given
408  a body that does not come
413  a body, or a picture, beyond its limit
415  an encoding or a type that is not taken
431  a head beyond its limit (see `connections`)
499  the client is gone: nobody reads it, and only the metrics show it
500  the model failed: a fault of the server's
503  no room, or no time: the queue is full, the deadline has passed, or the server is ending; with Retry-After
"""

from __future__ import annotations

import math


class Refusal(Exception):
    """Ends a request with ``status`` and a line for the client.

    Args:
        retry_s: for the header Retry-After.
        close: the connection is of no more use.
    """

    def __init__(self, status: int, text: str, *, retry_s: int | None = None, close: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.retry_s = retry_s
        self.close = close


def malformed(text: str) -> Refusal:
    """400: the request is not what the protocol says, or not what the model takes."""
    return Refusal(400, text)


def unavailable(text: str, retry_s: float = 1) -> Refusal:
    """503: another time it would be answered."""
    return Refusal(503, text, retry_s=max(1, min(60, math.ceil(retry_s))))


class ClientGone(Exception):
    """The client closed its connection before the answer was there."""
