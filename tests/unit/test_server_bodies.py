"""Compressed bodies within their limit, pictures within theirs, and which hosts are local."""

from __future__ import annotations

import asyncio
import gzip
import io
import time
import tracemalloc
import zlib
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sepvit_deploy.errors import OptionError
from sepvit_deploy.server.app import _denied
from sepvit_deploy.server.bodies import Bodies
from sepvit_deploy.server.pictures import Workers, prepared
from sepvit_deploy.server.refusal import Refusal
from sepvit_deploy.server.settings import Settings
from sepvit_deploy.spec import Preprocessing

if TYPE_CHECKING:
    from starlette.requests import Request

BODIES = Bodies(most=1000, held=5000, seconds=1)
IMAGENET = Preprocessing.for_task("classify", (224, 224))


@given(st.binary(max_size=1000))
def test_what_was_compressed_comes_back(content: bytes) -> None:
    assert BODIES.decoded(content, None) == content
    assert BODIES.decoded(gzip.compress(content, mtime=0), "gzip") == content
    assert BODIES.decoded(zlib.compress(content), " Deflate") == content


@pytest.mark.parametrize(
    ("body", "encoding", "status", "words"),
    [
        (gzip.compress(bytes(10_000_000), mtime=0), "gzip", 413, "more than 0.001 MB when it is decompressed"),
        (b"", "br", 415, "'br' is not taken"),
        (b"no gzip", "gzip", 400, "no gzip"),
        (gzip.compress(b"abc", mtime=0)[:-3], "gzip", 400, "cut short"),
        (zlib.compress(b"abc") + b"x", "deflate", 400, "something follows"),
    ],
)
def test_a_bomb_or_damage_is_refused(body: bytes, encoding: str, status: int, words: str) -> None:
    with pytest.raises(Refusal, match=words) as caught:
        BODIES.decoded(body, encoding)
    assert caught.value.status == status


def test_what_a_body_has_become_counts_as_held() -> None:
    bodies = Bodies(most=1000, held=2500, seconds=1)
    with bodies.holding(2000), pytest.raises(Refusal, match="fill the memory") as caught, bodies.holding(501):
        pass
    assert caught.value.status == 503
    with bodies.holding(2500):
        pass


class Sent:
    """A request whose body comes in pieces."""

    headers: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, pieces: int) -> None:
        self.left = pieces

    async def receive(self) -> dict[str, Any]:
        self.left -= 1
        return {"type": "http.request", "body": bytes(100_000), "more_body": self.left > 0}


def test_a_body_is_in_memory_once() -> None:
    async def scene() -> int:
        async with Bodies(most=10_000_000, held=20_000_000, seconds=5).read(cast("Request", Sent(80))) as body:
            return len(body)

    tracemalloc.start()
    try:
        assert asyncio.run(scene()) == 8_000_000
        assert tracemalloc.get_traced_memory()[1] < 11_000_000
    finally:
        tracemalloc.stop()


def test_work_that_is_late_is_not_waited_for() -> None:
    async def scene() -> None:
        workers = Workers(1)
        done: list[str] = []
        began = time.perf_counter()
        held = asyncio.create_task(workers.do(lambda: time.sleep(0.3), began + 0.1))
        late = asyncio.create_task(workers.do(lambda: done.append("late"), began + 0.1))
        timely = asyncio.create_task(workers.do(lambda: done.append("timely"), began + 5))
        for task in (held, late):
            with pytest.raises(Refusal, match="the deadline has passed") as caught:
                await task
            assert caught.value.status == 503
        assert time.perf_counter() - began < 0.25
        await timely
        assert done == ["timely"]
        workers.close()

    asyncio.run(scene())


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (png(3000, 3000), 413, "3000x3000 pixels; expected at most 1 megapixels"),
        (png(20_000, 4), 413, "4x20000, resized has 256x1280000 pixels; expected at most 1 megapixels"),
        (b"GIF89a", 400, "not a picture"),
        (b"", 400, "is empty"),
        (png(20, 20)[:45], 400, "picture"),
    ],
)
def test_pictures_are_refused_by_what_is_wrong_with_them(content: bytes, status: int, words: str) -> None:
    with pytest.raises(Refusal, match=words) as caught:
        prepared(content, IMAGENET, max_pixels=1_000_000)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("host", "fine"),
    [
        (b"localhost:8000", True),
        (b"LOCALHOST", True),
        (b"127.0.0.1:1", True),
        (b"127.8.8.8", True),
        (b"[::1]:8000", True),
        (b"[::1]", True),
        (b"app.localhost", True),
        (b"evil.example:8000", False),
        (b"127.0.0.1.evil.example", False),
        (b"10.0.0.1", False),
        (b"\xff", False),
        (b"", False),
    ],
)
def test_a_server_of_this_machine_is_asked_by_its_names(host: bytes, fine: bool) -> None:
    assert (_denied({b"host": host}, "GET", "127.0.0.1") is None) is fine
    assert _denied({b"host": host}, "GET", None) is None, "a server for others has names that are not known here"


def test_a_page_of_another_site_may_look_and_not_ask() -> None:
    headers = {b"sec-fetch-site": b"cross-site", b"host": b"localhost"}
    assert _denied(headers, "GET", "127.0.0.1") is None
    refused = _denied(headers, "POST", "127.0.0.1")
    assert refused is not None
    assert refused.status == 403


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--max-batch", {"max_batch": 0}),
        ("--max-queue", {"max_batch": 8, "max_queue": 7}),
        ("--queue-delay-ms", {"queue_delay_ms": float("nan")}),
        ("--max-body-mb", {"max_body_mb": 0}),
        ("--deadline-ms", {"deadline_ms": 0}),
        ("--port", {"port": 65536}),
        ("--name", {"name": "../x"}),
        ("--max-megapixels", {"max_megapixels": 101}),
    ],
)
def test_settings_name_the_option_that_is_wrong(option: str, values: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=option):
        Settings(**({"name": "m"} | values))  # type: ignore[arg-type]
