"""Encoded pictures to inputs, and logits to answers. B batch, C classes, K classes that are given."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sepvit_deploy.classes import ranked
from sepvit_deploy.contract import CLASS, LABEL, SCORE
from sepvit_deploy.errors import ImageError, InputError
from sepvit_deploy.images import decode_image, preprocess
from sepvit_deploy.server.refusal import Refusal, malformed, unavailable
from sepvit_deploy.uploads import is_taken, media_type, refusal_status, rows

if TYPE_CHECKING:
    from starlette.requests import Request

    from sepvit_deploy.runners.base import Array
    from sepvit_deploy.server.values import Values
    from sepvit_deploy.spec import Preprocessing

T = TypeVar("T")
MULTIPART = "multipart/form-data"
MAX_PARTS = 8
"""Files and fields of a form; more are refused while they are read."""


@dataclass(frozen=True)
class Prepared:
    """Pictures as a model takes them: ``images`` (B, 3, H, W), and height and width of each picture itself."""

    images: Array
    sizes: tuple[tuple[int, int], ...]


class Workers:
    """A few threads for what would hold up the event loop: decoding, resizing, parsing."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="picture")
        self._free = asyncio.Semaphore(threads)

    async def do(self, work: Callable[[], T], deadline: float) -> T:
        """Run it in one of the threads.

        Args:
            deadline: of `time.perf_counter`; what has not begun by then is not done, and what has is left alone:
                a mask, which may take seconds, ends itself.

        Raises:
            Refusal: 503, there is no memory for it, or the deadline passes.
        """
        loop = asyncio.get_running_loop()

        def freed(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._free.release)

        try:
            async with asyncio.timeout(deadline - time.perf_counter()):
                await self._free.acquire()  # not in the pool's queue, which would keep bodies that nobody waits for
                job = self._pool.submit(work)
                job.add_done_callback(freed)
                return await asyncio.wrap_future(job)
        except TimeoutError:
            raise unavailable("the deadline has passed") from None
        except MemoryError:
            raise unavailable("there is no memory for this now") from None

    def close(self) -> None:
        """Let the threads go."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def load_decoders() -> None:
    """Load them before the first picture comes, which may be when no file is left to be opened."""
    from PIL import Image, ImageOps  # noqa: F401

    Image.init()


def prepared(content: bytes, preprocessing: Preprocessing, *, max_pixels: int, name: str = "the picture") -> Prepared:
    """A picture as one input (1, 3, H, W).

    Raises:
        Refusal: 400 no picture, or one that is damaged; 413 beyond ``max_pixels``, which is known before it is decoded.
    """
    try:
        image = decode_image(content, name=name, max_pixels=max_pixels)
        images = preprocess(image, preprocessing, name=name, max_pixels=max_pixels)[None]
        return Prepared(images, ((image.height, image.width),))
    except ImageError as error:
        raise Refusal(refusal_status(error), str(error)) from None


def batch(contents: Sequence[bytes], preprocessing: Preprocessing, *, max_pixels: int) -> Prepared:
    """Pictures as one input (B, 3, H, W).

    Raises:
        Refusal: as `prepared`, naming the first picture that is unusable; or they become images of several sizes.
    """
    import numpy as np

    named = [(content, f"picture {k} of {len(contents)}") for k, content in enumerate(contents, 1)]
    found = [prepared(content, preprocessing, max_pixels=max_pixels, name=name) for content, name in named]
    for each, (_, name) in zip(found, named, strict=True):
        if (size := each.images.shape[2:]) != (first := found[0].images.shape[2:]):
            told = f"{name} becomes {size[0]}x{size[1]} pixels, and the first one {first[0]}x{first[1]}"
            raise malformed(f"{told}: such pictures do not share a request; send them one by one")
    return Prepared(np.concatenate([each.images for each in found]), tuple(each.sizes[0] for each in found))


def rank(logits: Array, top: int) -> tuple[Any, Any]:
    """Classes (B, K) and scores (B, K), best first.

    Raises:
        Refusal: 400, the numbers that were sent take the model's beyond what is finite.
    """
    try:
        return ranked(logits, top)
    except InputError:
        raise malformed("the model gives no finite numbers for this input") from None


def tensors(logits: Array, top: int, labels: list[str] | None) -> dict[str, Values]:
    """The outputs of the classify model; without labels, a class's number is its label."""
    import numpy as np

    ranks, scores = rank(logits, top)
    names = [str(k) if labels is None else labels[k] for k in ranks.ravel().tolist()]
    return {CLASS: ranks, LABEL: [name.encode() for name in names], SCORE: scores.astype(np.float32)}


def classes(logits: Array, top: int, labels: list[str] | None) -> list[dict[str, Any]]:
    """Those of one picture, logits (1, C)."""
    return rows(*rank(logits, top), labels)


async def uploaded(body: bytes, request: Request) -> bytes:
    """The picture in a body: all of it, or the one file of a form.

    Raises:
        Refusal: 415 another type; 400 a form without exactly one file.
    """
    kind = media_type(request.headers.get("content-type"))
    if kind == MULTIPART:
        return await _from_form(body, request)
    if not is_taken(kind):
        raise Refusal(415, f"Content-Type {kind!r:.60} is not taken, expected a picture's, or {MULTIPART}")
    if not body:
        raise malformed("the body is empty, expected an encoded picture")
    return body


async def _from_form(body: bytes, request: Request) -> bytes:
    from starlette.datastructures import UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

    async def whole() -> Any:
        yield body
        yield b""

    parser = MultiPartParser(request.headers, whole(), max_files=MAX_PARTS, max_fields=MAX_PARTS)
    parser.spool_max_size = max(1, len(body))  # the body is in memory already: never on a disk
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError, LookupError) as error:
        raise malformed(f"the form cannot be read ({error!s:.200})") from None
    try:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if len(files) != 1:
            raise malformed(f"the form has {len(files)} files, expected one picture")
        content = await files[0].read()
    finally:
        await form.close()
    if not content:
        raise malformed("the form's file is empty, expected an encoded picture")
    return content
