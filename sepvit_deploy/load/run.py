"""A load, from its start to its result."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sepvit_deploy.errors import ServerError
from sepvit_deploy.images import image_files
from sepvit_deploy.load.answers import TOLERANCE, parsed, unfit
from sepvit_deploy.load.payloads import Payload, picture_payloads, random_payloads
from sepvit_deploy.load.plan import CLIENTS, IN_FLIGHT, SECONDS, SIZE, TIMEOUT_S, Plan
from sepvit_deploy.load.result import LoadResult
from sepvit_deploy.load.sending import Sending, connection_fault
from sepvit_deploy.load.server import Address, Server, Target, said
from sepvit_deploy.optional import require

if TYPE_CHECKING:
    from sepvit_deploy.load.answers import Outputs

BAD_REQUEST = 400


def load(
    url: str,
    *,
    clients: int | None = None,
    rate_per_s: float | None = None,
    seconds: float = SECONDS,
    images: Path | None = None,
    batch: int = 1,
    deadline_ms: float | None = None,
    in_flight: int = IN_FLIGHT,
    timeout_s: float = TIMEOUT_S,
    tolerance: float = TOLERANCE,
    size: tuple[int, int] = SIZE,
    progress: Callable[[float], None] = lambda share: None,
) -> LoadResult:
    """Put a load on a server, and check every answer against the one that the same request had without it.

    Args:
        url: of the server, or of a model of it; where it names none, the only suitable one is taken.
        clients: closed loop: each sends its next request when it is answered; `CLIENTS` where no rate is given.
        rate_per_s: open loop: requests arrive at random at this rate, whether the server keeps up or not, and a
            latency counts from a request's arrival, so waiting to be sent is no excuse.
        images: pictures to send, encoded; None sends random images to a model that takes them.
        deadline_ms: told to the server, too, as the request's timeout.
        in_flight: the most of an open loop.
        timeout_s: after which an answer is lost.
        tolerance: over the largest number of an output, or 1; of a mask, the share of pixels of another class.
        size: of random images, height and width, where the model takes any.
        progress: called with the share of the time that has passed, 0 to 1.

    Raises:
        OptionError: a value is unusable, or both loops are asked for.
        ServerError: there is no such server or model, or it does not answer without a load.
        ImageError: there are no pictures.
    """
    if clients is None and rate_per_s is None:
        clients = CLIENTS
    plan = Plan(clients, rate_per_s, seconds, images, batch, deadline_ms, in_flight, timeout_s, tolerance, size)
    require("aiohttp", extra="serving")
    require("tritonclient.http", extra="serving")
    return asyncio.run(_load(Address.parse(url), plan, progress))


async def _load(address: Address, plan: Plan, progress: Callable[[float], None]) -> LoadResult:
    async with Server.connected(address.base, plan.timeout_s) as server:
        target = await server.target(address.model, pictures=plan.images is not None)
        payloads = _payloads(target, plan)
        references = [await _reference(server, target, payload, plan) for payload in payloads]
        with _cancelled_by_sigterm():
            return await Sending(server, target, plan, payloads, references).run(address.base, progress)


def _payloads(target: Target, plan: Plan) -> list[Payload]:
    timeout_us = None if plan.deadline_ms is None else round(1000 * plan.deadline_ms)
    if plan.images is None:
        return random_payloads(target, plan.size, plan.batch, timeout_us)
    return picture_payloads(target, image_files(plan.images), plan.batch, timeout_us)


async def _reference(server: Server, target: Target, payload: Payload, plan: Plan) -> tuple[Outputs, bytes]:
    """The answer to a request without a load, read and as it came.

    Raises:
        ServerError: there is none, or it is unusable.
    """
    aiohttp = require("aiohttp", extra="serving")
    try:
        status, header, body = await server.ask(target.name, payload)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        lost = connection_fault(error, plan.timeout_s)
        raise ServerError(f"{target.name} fails without any load: {lost}", expected="an answer") from error
    if status != 200:
        any_size = target.size is not None and -1 in target.size
        raise ServerError(
            f"{target.name} answers {status}, without any load: {said(body)}",
            expected="200",
            hint="type: --size HxW, a size that it takes" if any_size and status == BAD_REQUEST else None,
        )
    try:
        outputs = parsed(body, header)
    except ValueError as error:
        raise ServerError(f"{target.name} gives {error}, without any load", expected="the v2 protocol") from error
    if fault := unfit(outputs, plan.batch):
        raise ServerError(f"{target.name} gives, without any load, {fault}", expected="finite outputs of every image")
    return outputs, body


@contextlib.contextmanager
def _cancelled_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end a load as Ctrl-C does, with what was measured until then; only a main thread is told of it."""
    task = asyncio.current_task()
    if task is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, before)
