"""When requests are sent: by so many clients one after the other, or at times that do not depend on the answers."""

from __future__ import annotations

import asyncio
import random
import time
from array import array
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

Send = Callable[[int, float], Awaitable[bool]]
"""Sends the k-th request, due at a time of `time.perf_counter`, and says whether it was answered."""
PAUSE_S = 0.05
"""Of a client whose request was not answered, before the next: it would only be refused again."""


@dataclass
class Sent:
    """How the generator itself did.

    Attributes:
        lags_ms: of an open loop, how long after its time each request was sent.
        held: requests that waited because too many were in flight; unsent: those that waited to the end.
    """

    lags_ms: array[float] = field(default_factory=lambda: array("d"))
    held: int = 0
    unsent: int = 0


def poisson(rate: float, seconds: float, seed: int = 0) -> array[float]:
    """Times of arrival within ``seconds``, with gaps that are exponentially distributed."""
    rng = random.Random(seed)
    times = array("d")
    at = rng.expovariate(rate)
    while at < seconds:
        times.append(at)
        at += rng.expovariate(rate)
    return times


async def closed_loop(send: Send, clients: int, end: float) -> None:
    """Each client sends its next request when it has the answer to the last one, until ``end``."""
    count = 0

    async def client() -> None:
        nonlocal count
        while (now := time.perf_counter()) < end:
            count += 1
            if not await send(count - 1, now):
                await asyncio.sleep(PAUSE_S)

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())


async def open_loop(send: Send, start: float, times: array[float], end: float, most: int, sent: Sent) -> None:
    """Requests go out at ``start`` + ``times``, at most ``most`` of them in flight; one that waits for that is late.

    ``send`` is told the time that a request was due, so what it waited is part of its latency.
    """
    room = asyncio.Semaphore(most)
    behind = False  # since there was no room, every request has been sent after its time

    async def one(k: int, due: float) -> None:
        try:
            await send(k, due)
        finally:
            room.release()

    async with asyncio.TaskGroup() as group:
        for k, at in enumerate(times):
            due = start + at
            if (ahead := due - time.perf_counter()) > 0:
                await asyncio.sleep(ahead)
                behind = False
            behind = behind or room.locked()
            sent.held += behind
            try:
                async with asyncio.timeout(max(0.0, end - time.perf_counter()) if behind else None):
                    await room.acquire()
            except TimeoutError:
                sent.unsent += len(times) - k
                return
            sent.lags_ms.append(1000 * (time.perf_counter() - due))
            group.create_task(one(k, due))
