"""Connections: uvicorn's protocol with the limits that it lacks, on heads of requests, on time and on pipelining.

httptools has no limit of its own: without these a client could send one header for ever.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from sepvit_deploy.optional import require

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 32 * 1024
"""Bytes of a request's line and headers."""
MAX_PIPELINED = 16
"""Requests that a connection may send ahead of their answers; with more it is closed."""
_HEAD_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b'content-length: 51\r\n\r\n{"error":"the head of the request is beyond 32 kB"}'
)


class _Lingering:
    """What an answer is written to: closes only once the request is here whole, even if nobody needs it.

    Closed earlier, the system would reset the connection on the bytes that still come, and the client would meet that
    instead of the answer.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing

    def close(self) -> None:
        if self._connection.in_body:
            self._connection.lingers = True
        else:
            self._connection.transport.close()


def protocol_class(head_s: float, body_s: float, most: int) -> type[HttpToolsProtocol]:
    """The protocol of a server's connections.

    Args:
        head_s: see `Settings.head_s`.
        body_s: of a request; for the last answer of a connection to be read; and for some bytes of any other.
        most: connections; further ones are closed at once.
    """
    base = require("uvicorn.protocols.http.httptools_impl", extra="serving").HttpToolsProtocol

    class Connection(base):  # type: ignore[misc, valid-type]
        """One connection.

        Attributes:
            in_head: bytes came, and no whole head yet.
            in_body: a head came, and not the whole body yet.
            head_bytes: of a head, in reads after the one that it began in; or within a body beside it, as trailers are,
                since some of the body came.
            head_parsed: of a head, in its line and those headers that are whole.
            unread: bytes of answers that the client has not taken, at the last look; read_at, when there were less.
            lingers: the answer is out, and the rest of the body is read for the client's sake.
        """

        def connection_made(self, transport: asyncio.Transport) -> None:
            self.in_head = self.in_body = self.lingers = False
            self.head_bytes = self.head_parsed = self.unread = 0
            self.since = self.read_at = time.monotonic()
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.abort()

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            if self.in_head or self.in_body:
                self.head_bytes += len(data)
            super().data_received(data)
            if (self.in_head or self.in_body) and self.head_bytes > MAX_HEAD and not self.transport.is_closing():
                self._refuse_head()
            elif len(self.pipeline) > MAX_PIPELINED:
                self.transport.abort()

        def on_message_begin(self) -> None:
            self.in_head, self.head_bytes, self.head_parsed, self.since = True, 0, 0, time.monotonic()
            super().on_message_begin()

        def on_url(self, url: bytes) -> None:
            self._count(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._count(len(name) + len(value) + 4)
            super().on_header(name, value)

        def _count(self, amount: int) -> None:
            self.head_parsed += amount
            if self.head_parsed > MAX_HEAD:
                self._refuse_head()
                raise ValueError("a head beyond its limit")  # nothing is parsed any more

        def _refuse_head(self) -> None:
            if self.cycle and not self.cycle.response_complete:
                self.transport.abort()  # another answer is expected here
            else:
                self.transport.write(_HEAD_TOO_LARGE)
                self.transport.close()

        def on_headers_complete(self) -> None:
            self.in_head, self.in_body, self.head_parsed = False, True, 0
            super().on_headers_complete()
            self.cycle.transport = _Lingering(self)

        def on_body(self, body: bytes) -> None:
            self.head_bytes = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self.in_body = False
            super().on_message_complete()
            if self.lingers:
                self.transport.close()

        def on_response_complete(self) -> None:
            self.since = time.monotonic()
            super().on_response_complete()

        @property
        def busy(self) -> bool:
            """Whether a request is under way here, as far as it is known."""
            return self.in_head or self.lingers or bool(self.cycle and not self.cycle.response_complete)

        def sweep(self) -> None:
            """End what takes too long: a head that does not end, a body whose answer is there, an answer not read."""
            now = time.monotonic()
            before, self.unread = self.unread, self.transport.get_write_buffer_size()
            if not self.unread or self.unread < before:
                self.read_at = now
            elif now - self.read_at > body_s:
                self.transport.abort()
                return
            if self.cycle and not self.cycle.response_complete:
                return  # that is the application's: it has limits of its own
            if self.transport.is_closing():
                limit_s = body_s
            elif self.in_head or self.in_body or not self.cycle:
                limit_s = head_s
            else:
                limit_s = self.timeout_keep_alive  # uvicorn's own timer ends with any byte, and begins with an answer
            if now - self.since > limit_s:
                self.transport.abort()

        def timeout_keep_alive_handler(self) -> None:
            if self.transport.get_write_buffer_size():  # an answer that nobody reads: closing would wait for it
                self.transport.abort()
            super().timeout_keep_alive_handler()

    return Connection
