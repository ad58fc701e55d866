"""What a v2 server says of itself and of its models, and one request to it."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from sepvit_deploy.contract import IMAGE, classify_name, segment_name
from sepvit_deploy.errors import OptionError, ServerError
from sepvit_deploy.optional import require

if TYPE_CHECKING:
    import aiohttp

    from sepvit_deploy.load.payloads import Payload

HEADER_LENGTH = "Inference-Header-Content-Length"
_PATH = re.compile(r"(?:/v2(?:/models/(?P<model>[^/]+)(?:/infer)?)?)?/?")
_MOST_SHOWN = 200


@dataclass(frozen=True)
class Address:
    """A server, and a model of it where one was named."""

    base: str
    model: str | None

    @classmethod
    def parse(cls, url: str) -> Address:
        """``http://HOST:PORT``, alone or with ``/v2/models/NAME``.

        Raises:
            OptionError: it is neither.
        """
        expected = "http://HOST:PORT, or http://HOST:PORT/v2/models/NAME"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise OptionError(f"URL {url!r:.100} ({error})", expected=expected) from error
        match = _PATH.fullmatch(parts.path)
        if parts.scheme not in ("http", "https") or not parts.hostname or not match or parts.query or port == 0:
            raise OptionError(f"URL {url!r:.100}", expected=expected)
        model = match["model"]
        return cls(f"{parts.scheme}://{parts.netloc}", None if model is None else unquote(model))


@dataclass(frozen=True)
class Target:
    """A model to ask.

    Attributes:
        input: name of its only input.
        size: height and width of the images that it takes, -1 for any; None where it takes encoded pictures.
    """

    name: str
    input: str
    size: tuple[int, int] | None


class Server:
    """A connection to a server.

    Raises:
        ServerError: where a method is answered by something else than the protocol.
    """

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self._session, self._base = session, base

    @classmethod
    @contextlib.asynccontextmanager
    async def connected(cls, base: str, timeout_s: float) -> AsyncIterator[Server]:
        """Sessions to a server, as many as there are requests in flight."""
        aiohttp = require("aiohttp", extra="serving")
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        # Triton compresses what aiohttp would by itself ask to be compressed, which is no part of what is measured.
        plain = {"Accept-Encoding": "identity"}
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=plain) as session:
            yield cls(session, base)

    async def ask(self, model: str, payload: Payload) -> tuple[int, int | None, bytes]:
        """Send a request: the status, how long the JSON before the tensors is, and the body."""
        url = f"{self._base}/v2/models/{quote(model, safe='')}/infer"
        async with self._session.post(url, data=payload.stream(), headers=payload.headers) as response:
            body = await response.read()
            length = response.headers.get(HEADER_LENGTH, "")
            return response.status, int(length) if length.isdigit() else None, body

    async def target(self, model: str | None, *, pictures: bool) -> Target:
        """The model to ask: the one that is named, or the only one that takes what is sent.

        Raises:
            ServerError: there is no such server or model, or several would do.
        """
        server = await self._read("GET", "/v2")
        if not isinstance(server, dict) or "name" not in server:
            raise ServerError(f"{self._base} does not speak the v2 protocol", expected="a name at /v2")
        what = f"{IMAGE} of type BYTES" if pictures else "one FP32 input (B, 3, H, W)"
        if model is not None:
            names = [classify_name(model), segment_name(model), model] if pictures else [model]
            found = [target for name in names if (target := await self._as_target(name, pictures=pictures))]
            if not found:
                hint = "without --images" if pictures else "add --images DIR to send pictures"
                if (present := await self._names()) and not {model, *names} & set(present):
                    raise ServerError(f"{self._base} has no model {model}", expected=", ".join(present))
                raise ServerError(f"{self._base} has no model {model} with {what}", expected="such a model", hint=hint)
            return found[0]
        present = await self._names()
        if present is None:
            raise ServerError(f"{self._base} does not list its models", hint=f"type {self._base}/v2/models/NAME")
        found = [target for name in present if (target := await self._as_target(name, pictures=pictures))]
        if len(found) != 1:
            listed = ", ".join(target.name for target in found) or f"none; it has {', '.join(present) or 'no models'}"
            hint = f"type {self._base}/v2/models/NAME"
            raise ServerError(f"models of {self._base} with {what}: {listed}", expected="exactly one", hint=hint)
        return found[0]

    async def _names(self) -> list[str] | None:
        """The models that are ready; None where the server does not list them."""
        index = await self._read("POST", "/v2/repository/index", missing=True)
        if not isinstance(index, list):
            return None
        return sorted({str(entry.get("name")) for entry in index if isinstance(entry, dict) and _is_ready(entry)})

    async def counts(self, model: str) -> tuple[int, int] | None:
        """Images that a model has computed so far, and in how many executions; None where the server keeps no count."""
        found = await self._read("GET", f"/v2/models/{quote(model, safe='')}/stats", missing=True)
        rows = found.get("model_stats") if isinstance(found, dict) else None
        if not isinstance(rows, list) or not rows:
            return None
        try:
            return sum(int(row["inference_count"]) for row in rows), sum(int(row["execution_count"]) for row in rows)
        except (KeyError, TypeError, ValueError):
            return None

    async def _as_target(self, name: str, *, pictures: bool) -> Target | None:
        """A model that takes what is sent; None for another, or where there is none of that name."""
        metadata = await self._read("GET", f"/v2/models/{quote(name, safe='')}", missing=True)
        inputs = metadata.get("inputs") if isinstance(metadata, dict) else None
        if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
            return None
        only = inputs[0]
        shape = only.get("shape")
        if pictures:
            fits = only.get("name") == IMAGE and only.get("datatype") == "BYTES"
            return Target(name, IMAGE, None) if fits else None
        if only.get("datatype") != "FP32" or not isinstance(shape, list) or len(shape) != 4:
            return None
        channels, height, width = (int(dim) for dim in shape[1:])
        if channels != 3 or (min(height, width) < 1 and (height, width) != (-1, -1)):
            return None
        return Target(name, str(only.get("name")), (height, width))

    async def _read(self, method: str, path: str, *, missing: bool = False) -> Any:
        """The JSON at a path; None where it is ``missing`` and may be."""
        aiohttp = require("aiohttp", extra="serving")
        sent: dict[str, str] | None = {} if method == "POST" else None
        try:
            async with self._session.request(method, self._base + path, json=sent) as response:
                content = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            cause = getattr(error, "os_error", error)  # aiohttp's own words name a TLS context, where there is none
            reason = getattr(cause, "strerror", None) or str(cause) or "no answer in time"
            raise ServerError(f"no server at {self._base} ({reason})", hint="start one: sepvit-deploy serve") from error
        if response.status != 200:
            if missing and 400 <= response.status < 500:
                return None
            raise ServerError(
                f"{self._base}{path} answers {response.status}: {said(content)}", expected="the v2 protocol"
            )
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ServerError(f"{self._base}{path} answers no JSON", expected="the v2 protocol") from error


def said(body: bytes) -> str:
    """What a server says of a failure, in a line."""
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(body)
        if isinstance(document, dict) and "error" in document:
            return " ".join(str(document["error"]).split())[:_MOST_SHOWN]
    return " ".join(body[:_MOST_SHOWN].decode("utf-8", "replace").split()) or "nothing"


def _is_ready(entry: dict[str, Any]) -> bool:
    return str(entry.get("state", "READY")) == "READY"
