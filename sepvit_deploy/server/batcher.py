"""Requests to batches: whole requests in their order, up to the most images, no longer than the delay.

All of it runs in the event loop; only the model runs elsewhere. Times are seconds of `time.perf_counter`.
B batch, H x W the input's height and width.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sepvit_deploy.errors import InputError, SepvitError
from sepvit_deploy.server.lane import Lane
from sepvit_deploy.server.refusal import ClientGone, Refusal, malformed, unavailable

if TYPE_CHECKING:
    from sepvit_deploy.runners.base import Array

    Receive = Callable[[], Awaitable[object]]

MOST_EXPECTED = 0.5
"""Of the time to a deadline, what waiting and computing may be expected to take: guesses err, most of all on a machine
that is busy, and answers travel."""


@dataclass(frozen=True)
class Result:
    """A request's part of a batch.

    Attributes:
        batch: images of the whole batch.
        version: of the model that ran it.
    """

    outputs: dict[str, Array]
    batch: int
    version: int
    queue_s: float
    compute_s: float


@dataclass
class Place:
    """Room in the queue for a request's images, from before they are decoded until the device takes them."""

    images: int
    deadline: float
    _release: Callable[[int], None]
    held: bool = True

    def release(self) -> None:
        """Give the room back; once."""
        if self.held:
            self.held = False
            self._release(self.images)


@dataclass(eq=False)
class _Work:
    place: Place
    images: Array = field(repr=False)
    version: int | None
    queued: float
    result: asyncio.Future[Result]


class Batcher:
    """The queue before one device.

    Args:
        batched: told of each batch that was run: version, images, seconds.
        failed: told of each batch that was not.
    """

    def __init__(
        self,
        lane: Lane,
        *,
        delay_s: float,
        max_queue: int,
        batched: Callable[[int, int, float], None],
        failed: Callable[[SepvitError], None],
    ) -> None:
        self.lane = lane
        self.waiting = 0
        """Images that have a place."""
        self._delay_s = delay_s
        self._max_queue = max_queue
        self._batched = batched
        self._failed = failed
        self._queue: deque[_Work] = deque()
        self._arrived = asyncio.Event()
        self._busy_until = 0.0

    def require_room(self, images: int, deadline: float) -> None:
        """Refuse images that find no room, or whose answer would be late as things stand.

        Raises:
            Refusal: 503.
        """
        now = time.perf_counter()
        wait_s = self.waiting * self.lane.image_s + max(0.0, self._busy_until - now)
        if self.waiting + images > self._max_queue:
            raise unavailable(f"the queue is full: {self.waiting} images wait, of at most {self._max_queue}", wait_s)
        if wait_s and wait_s + images * self.lane.image_s > (deadline - now) * MOST_EXPECTED:
            raise unavailable(f"the queue is too long: {self.waiting} images are ahead, too many to be in time", wait_s)

    @contextlib.contextmanager
    def place(self, images: int, deadline: float) -> Iterator[Place]:
        """Room for that many images until the context ends, or the device takes them.

        Raises:
            Refusal: 503: there is none, or the deadline would pass before their turn.
        """
        self.require_room(images, deadline)
        self.waiting += images
        place = Place(images, deadline, self._given_back)
        try:
            yield place
        finally:
            place.release()

    async def run(self, place: Place, images: Array, receive: Receive, version: int | None = None) -> Result:
        """The outputs for images (B, 3, H, W).

        Args:
            receive: of a request whose body is read: what it gives next is the client's leaving.
            version: the only one that will do.

        Raises:
            Refusal: the deadline passes, the version has gone, or the model fails on these images.
            ClientGone: the client leaves first.
        """
        work = _Work(place, images, version, time.perf_counter(), asyncio.get_running_loop().create_future())
        self._queue.append(work)
        self._arrived.set()
        gone = asyncio.ensure_future(receive())
        try:
            left = max(0.0, place.deadline - time.perf_counter())
            either: set[asyncio.Future[Any]] = {work.result, gone}
            await asyncio.wait(either, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if work.result.done():
                return work.result.result()
        finally:
            gone.cancel()
            work.result.cancel()  # if it still waits, it is passed over
        if gone.done() and not gone.cancelled():
            raise ClientGone
        raise unavailable("the deadline has passed", self.waiting * self.lane.image_s)

    async def work(self) -> None:
        """Form batches and run them, for ever."""
        while True:
            works = await self._formed()
            lane = self.lane
            for work in works:
                work.place.release()
            ready = time.perf_counter() + sum(len(work.images) for work in works) * lane.image_s
            # What would be late is not computed; alone it is, or a wrong guess of the time would never be corrected.
            if works := [work for work in works if _takes(lane, work, ready if len(works) > 1 else 0.0)]:
                await self._run(lane, works)

    async def _run(self, lane: Lane, works: list[_Work]) -> None:
        taken = time.perf_counter()
        count = sum(len(work.images) for work in works)
        self._busy_until = taken + count * lane.image_s
        try:
            computed = await lane.run([work.images for work in works])
        except MemoryError:
            for work in works:
                _end(work, unavailable("there is no memory for this now"))
            return
        except SepvitError as error:
            size = works[0].images.shape[2:]
            if lane.model.spec.any_size and isinstance(error, InputError) and size != lane.model.spec.size:
                for work in works:  # which is of a client's choice, and no fault of the model's
                    _end(work, malformed(f"the model does not take images of {size[0]}x{size[1]} pixels"))
                return
            lane.failures += 1
            self._failed(error)
            for work in works:
                _end(work, Refusal(500, "the model failed; the server's log says why"))
            return
        finally:
            self._busy_until = 0.0  # it was a guess, which a stall may have taken far into the future
        lane.failures = 0
        self._batched(lane.version, count, computed.ended - computed.started)
        start = 0
        for work in works:
            stop = start + len(work.images)
            outputs = {name: values[start:stop] for name, values in computed.outputs.items()}
            compute_s = computed.ended - computed.started
            _end(work, Result(outputs, count, lane.version, taken - work.queued, compute_s))
            start = stop

    async def _formed(self) -> list[_Work]:
        """The next batch, as soon as it is full or its first request has waited for the delay."""
        while True:
            self._arrived.clear()
            while self._queue and self._queue[0].result.done():  # the client is gone, or the deadline has passed
                self._queue.popleft()
            works, full = self._first()
            if not works:
                await self._arrived.wait()
                continue
            left = works[0].queued + self._delay_s - time.perf_counter()
            if full or left <= 0:
                for work in works:
                    self._queue.remove(work)
                return works
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), left)

    def _first(self) -> tuple[list[_Work], bool]:
        """The requests that go together first, and whether the next would not fit."""
        works: list[_Work] = []
        count = 0
        for work in self._queue:
            # Images of another size, which some models take, go with others of theirs.
            if work.result.done() or (works and work.images.shape[1:] != works[0].images.shape[1:]):
                continue
            if works and count + len(work.images) > self.lane.max_batch:
                return works, True
            works.append(work)
            count += len(work.images)
        return works, count >= self.lane.max_batch

    def _given_back(self, images: int) -> None:
        self.waiting -= images


def _takes(lane: Lane, work: _Work, ready: float) -> bool:
    """Whether a request is run: for this model, which may be new, and answered in time; ends it where it is not."""
    if work.place.deadline < ready:
        _end(work, unavailable("the deadline would pass before the answer"))
    elif len(work.images) > lane.max_batch:
        _end(work, malformed(f"a batch of {len(work.images)}, and the model now takes at most {lane.max_batch}"))
    elif work.version not in (None, lane.version):
        _end(work, Refusal(404, f"version {work.version} has just been replaced by {lane.version}"))
    else:
        return True
    return False


def _end(work: _Work, result: Result | Refusal) -> None:
    if work.result.done():
        return
    if isinstance(result, Refusal):
        work.result.set_exception(result)
    else:
        work.result.set_result(result)
