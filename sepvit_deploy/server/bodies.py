"""Bodies of requests: read whole, within limits of bytes and time, and decompressed within the same limit."""

from __future__ import annotations

import asyncio
import contextlib
import io
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from sepvit_deploy.server.refusal import ClientGone, Refusal, malformed, unavailable

if TYPE_CHECKING:
    from starlette.requests import Request

_WINDOW_BITS = {"gzip": 31, "deflate": 15}
"""What zlib calls the two encodings that tritonclient sends."""


class Bodies:
    """Reads bodies; knows how many bytes of them are held.

    Args:
        most: bytes of one body.
        held: bytes of all that are held at once.
        seconds: for one body.
    """

    def __init__(self, most: int, held: int, seconds: float) -> None:
        self.most = most
        self._left = max(held, 2 * most)  # one, and what it is decompressed to
        self._seconds = seconds

    @contextlib.asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a request, which counts as held until the context ends.

        Raises:
            Refusal: 413 beyond the limit, 408 too slow, 503 where the server holds as much as it may.
            ClientGone: the client left while it was read.
        """
        taken = 0

        def take(amount: int) -> None:
            nonlocal taken
            self._require_most(taken + amount)
            self._require_left(amount)
            taken += amount
            self._left -= amount

        try:
            declared = self._declared(request)
            # What would be refused at its end is not read; but a promise holds no memory, or a few would fill it.
            self._require_most(declared)
            self._require_left(declared)
            body = io.BytesIO()  # whose bytes are not copied once they are whole
            async with _within(self._seconds):
                while True:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    take(body.write(message.get("body", b"")))
                    if not message.get("more_body"):
                        break
            yield body.getvalue()
        finally:
            self._left += taken

    @contextlib.contextmanager
    def holding(self, amount: int) -> Iterator[None]:
        """Count bytes that a body has become, too, until the context ends.

        Raises:
            Refusal: 503, the server holds as much as it may.
        """
        self._require_left(amount)
        self._left -= amount
        try:
            yield
        finally:
            self._left += amount

    def _require_most(self, amount: int) -> None:
        if amount > self.most:
            raise Refusal(413, f"the body has more than {self._most_text}")

    def _require_left(self, amount: int) -> None:
        if amount > self._left:
            raise unavailable("the bodies of other requests fill the memory that is set aside for them")

    def _declared(self, request: Request) -> int:
        text = request.headers.get("content-length", "0")
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise malformed("Content-Length is no number")
        return int(text)

    def decoded(self, body: bytes, encoding: str | None) -> bytes:
        """A body without its Content-Encoding.

        Raises:
            Refusal: 415 an encoding that is not taken, 413 beyond the limit, 400 damaged.
        """
        name = (encoding or "identity").strip().lower()
        if name == "identity":
            return body
        if name not in _WINDOW_BITS:
            raise Refusal(415, f"Content-Encoding {name!r:.40} is not taken, expected gzip, deflate or none")
        machine = zlib.decompressobj(_WINDOW_BITS[name])
        try:
            found = machine.decompress(body, self.most + 1)
        except zlib.error as error:
            raise malformed(f"the body is no {name} ({error})") from None
        if len(found) > self.most:
            raise Refusal(413, f"the body has more than {self._most_text} when it is decompressed")
        if not machine.eof or machine.unused_data:
            raise malformed(f"the {name} of the body is cut short, or something follows it")
        return found

    @property
    def _most_text(self) -> str:
        return f"{self.most / 1e6:.10g} MB"


@contextlib.asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise Refusal(408, f"the body did not come within {seconds:g} s", close=True) from None
