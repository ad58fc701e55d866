"""Requests on their way: sent by one of the loops, their answers checked and counted."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sepvit_deploy.contract import classify_name, segment_name
from sepvit_deploy.errors import ServerError
from sepvit_deploy.load.answers import alike, difference, parsed, unfit
from sepvit_deploy.load.arrivals import Sent, closed_loop, open_loop, poisson
from sepvit_deploy.load.result import Generator, LoadResult, quantiles, within
from sepvit_deploy.load.server import said
from sepvit_deploy.load.tally import Tally
from sepvit_deploy.optional import require

if TYPE_CHECKING:
    from sepvit_deploy.load.answers import Outputs
    from sepvit_deploy.load.payloads import Payload
    from sepvit_deploy.load.plan import Plan
    from sepvit_deploy.load.server import Server, Target

TICK_S = 0.1
WRONG = "wrong answer"


class Sending:
    """A load under way.

    Args:
        references: what each payload was answered without a load, read and as it came.
    """

    def __init__(
        self,
        server: Server,
        target: Target,
        plan: Plan,
        payloads: Sequence[Payload],
        references: Sequence[tuple[Outputs, bytes]],
    ) -> None:
        self._server, self._target, self._plan = server, target, plan
        self._payloads, self._references = payloads, references
        aiohttp = require("aiohttp", extra="serving")
        self._failures = (aiohttp.ClientError, OSError, TimeoutError)
        self._warm, self._measured = Tally(), Tally()
        self._sent = Sent()
        self._in_time = self._flying = self._most_flying = 0
        self._start = self._end = 0.0
        self._first: tuple[float, float] | None = None

    async def run(self, base: str, progress: Callable[[float], None]) -> LoadResult:
        """Send for as long as the plan says, or until it is cancelled; what is on its way in the end is waited for."""
        plan = self._plan
        computing = await self._computing()
        before = await self._server.counts(computing)
        begin = time.perf_counter()
        self._start = begin + plan.warm_up_s
        self._end = self._start + plan.seconds
        clock = asyncio.create_task(self._clock(begin, progress))
        interrupted = False
        try:
            if plan.rate_per_s is None:
                assert plan.clients is not None
                await closed_loop(self._send, plan.clients, self._end)
            else:
                times = poisson(plan.rate_per_s, plan.warm_up_s + plan.seconds)
                await open_loop(self._send, begin, times, self._end, plan.in_flight, self._sent)
        except asyncio.CancelledError:
            interrupted = True
            self._end = max(min(self._end, time.perf_counter()), self._start)
            if task := asyncio.current_task():
                task.uncancel()
        finally:
            clock.cancel()
        generator = self._generator()
        after = None
        with contextlib.suppress(ServerError):  # it may have died, which the requests tell
            after = await self._server.counts(computing)
        return self._result(base, interrupted, _mean_batch(before, after), generator)

    async def _send(self, k: int, due: float) -> bool:
        """Send the k-th request, which was due then; whether there was an answer."""
        tally = self._measured if due >= self._start else self._warm
        if self._first is None and due >= self._start:
            self._first = time.perf_counter(), time.thread_time()
        index = k % len(self._payloads)
        self._flying += 1
        self._most_flying = max(self._most_flying, self._flying)
        try:
            status, header, body = await self._server.ask(self._target.name, self._payloads[index])
        except self._failures as error:
            tally.sent += 1
            tally.fail(connection_fault(error, self._plan.timeout_s), str(error))
            return False
        finally:
            self._flying -= 1
        done = time.perf_counter()
        tally.sent += 1
        if status != 200:
            tally.status(status, said(body))
            return False
        if fault := self._fault(index, header, body):
            tally.fail(WRONG, fault)
        else:
            tally.answered(1000 * (done - due))
            self._in_time += self._start <= done <= self._end
        return True

    def _fault(self, index: int, header: int | None, body: bytes) -> str | None:
        """What is wrong with an answer; None where nothing is."""
        reference, as_it_came = self._references[index]
        if body == as_it_came:  # most are, to the bit, and need not be read
            return None
        try:
            outputs = parsed(body, header)
        except ValueError as error:
            return str(error)
        return unfit(outputs, self._plan.batch) or difference(reference, outputs, self._plan.tolerance)

    async def _computing(self) -> str:
        """The model whose batches are counted: of one that takes pictures, that which it gives them to."""
        name = self._target.name
        inner = name.removesuffix(classify_name("")).removesuffix(segment_name(""))
        return inner if inner != name and await self._server.counts(inner) is not None else name

    async def _clock(self, begin: float, progress: Callable[[float], None]) -> None:
        while True:
            progress(min(1.0, (time.perf_counter() - begin) / (self._end - begin)))
            await asyncio.sleep(TICK_S)

    def _generator(self) -> Generator:
        cpu_s = wall_s = 0.0
        if self._first is not None:
            wall_s, cpu_s = time.perf_counter() - self._first[0], time.thread_time() - self._first[1]
        lags = quantiles(self._sent.lags_ms)
        return Generator(
            busy=cpu_s / wall_s if wall_s else 0.0,
            limit_per_s=self._measured.sent / cpu_s if cpu_s and self._measured.sent else None,
            lag_p99_ms=lags[-1].ms if lags else None,
            held=self._sent.held,
            unsent=self._sent.unsent,
            in_flight=self._most_flying,
        )

    def _result(self, base: str, interrupted: bool, mean_batch: float | None, generator: Generator) -> LoadResult:
        plan, tally = self._plan, self._measured
        latencies = tally.latencies_ms
        seconds = self._end - self._start
        accepted = tally.sent - tally.refused + generator.unsent
        return LoadResult(
            url=base,
            model=self._target.name,
            sends="pictures" if self._target.size is None else "tensors",
            clients=plan.clients,
            rate_per_s=plan.rate_per_s,
            batch=plan.batch,
            deadline_ms=plan.deadline_ms,
            seconds=seconds,
            sent=tally.sent,
            answered=len(latencies),
            refused=tally.refused,
            late=tally.late,
            failed=dict(tally.failed),
            examples=self._warm.examples | tally.examples,
            warm_up_failed=dict(self._warm.failed),
            requests_per_s=self._in_time / seconds if seconds else 0.0,
            latencies=quantiles(latencies),
            mean_ms=sum(latencies) / len(latencies) if latencies else None,
            max_ms=max(latencies, default=None),
            mean_batch=mean_batch,
            within_deadline=None if plan.deadline_ms is None else within(latencies, plan.deadline_ms, accepted),
            told_apart=not alike([outputs for outputs, _ in self._references], plan.tolerance),
            generator=generator,
            interrupted=interrupted,
        )


def connection_fault(error: Exception, timeout_s: float) -> str:
    """What happened to a request that has no answer."""
    aiohttp = require("aiohttp", extra="serving")
    if isinstance(error, TimeoutError):
        return f"no answer in {timeout_s:g} s"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "no connection"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "answer cut off"
    return "connection lost"


def _mean_batch(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | None:
    """Images in an execution between two counts."""
    if before is None or after is None or after[1] <= before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1])
