"""A server that batches requests as they come, simulated from measured times of its batches.

One queue, first come first served; a request is one image. Each of some instances is a device of its own. A free
instance takes a batch as soon as ``limit`` requests wait or the oldest of them has waited ``delay_ms``, whichever is
first: then all that wait, ``limit`` at most. This is what Triton's dynamic batcher does with ``max_batch_size`` and
``max_queue_delay_microseconds`` and no preferred sizes. Requests come as a Poisson process.

Times are milliseconds, rates are requests in a second. The same seed gives the same arrivals, stretched to the rate,
and the same ranks of service times, so that two servers meet the same traffic and differ by what they are.
"""

from __future__ import annotations

import array
import functools
import heapq
import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from sepvit_deploy.latency import Point

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

RANKS = 8192
"""Equal shares that the samples of a batch are cut into; one is drawn for each run."""
SEGMENTS = 20
"""Stretches of a simulation whose figures are held against each other, to see how far one of all can be off."""
T_95 = 2.093
"""Student's t, two-sided, 95 %, for as many stretches: 19 degrees of freedom."""


class Service:
    """How long a batch takes: measured samples at some sizes, and what lies between them.

    Between two measured sizes, equal ranks of the two are interpolated linearly; below the smallest, a batch takes as
    long as the smallest. Runs are drawn one by one: that slow ones may come together is not in it.

    Args:
        samples_ms: of a whole batch, above 0, by its size.

    Raises:
        ValueError: there are none, or one is no time.
    """

    def __init__(self, samples_ms: Mapping[int, Sequence[float]]) -> None:
        import numpy as np

        self.batches = tuple(sorted(samples_ms))
        if not self.batches or self.batches[0] < 1:
            raise ValueError(f"samples of batches {self.batches}")
        self._ranked: dict[int, Floats] = {}
        for batch in self.batches:
            ordered = np.sort(np.asarray(samples_ms[batch], dtype=np.float64))
            if not len(ordered) or not 0 < ordered[0] <= ordered[-1] < math.inf:  # NaN sorts last
                raise ValueError(f"batch {batch}: no samples, or times that are none")
            self._ranked[batch] = ordered[((np.arange(RANKS) + 0.5) * (len(ordered) / RANKS)).astype(np.int64)]
        self._lists = {batch: ranked.tolist() for batch, ranked in self._ranked.items()}

    @classmethod
    def of(cls, points: Iterable[Point]) -> Service:
        """The curve of one engine."""
        return cls({point.batch: point.samples_ms for point in points})

    def _between(self, batch: int) -> tuple[int, int, float]:
        """The measured sizes on both sides, and how far from the first to the second, 0 to 1."""
        if not 1 <= batch <= self.batches[-1]:
            raise ValueError(f"batch {batch}, measured up to {self.batches[-1]}")
        high = next(measured for measured in self.batches if measured >= batch)
        if high == batch or high == self.batches[0]:
            return high, high, 0.0
        low = max(measured for measured in self.batches if measured < batch)
        return low, high, (batch - low) / (high - low)

    def rows(self, limit: int) -> list[tuple[list[float], list[float], float]]:
        """For batches 0 (unused) to ``limit``: two lists by rank, and the weight of the second."""
        sizes = [self._between(max(batch, 1)) for batch in range(limit + 1)]
        return [(self._lists[low], self._lists[high], weight) for low, high, weight in sizes]

    def by_rank_ms(self, batch: int) -> Floats:
        """Times of a batch, [RANKS], ascending."""
        low, high, weight = self._between(batch)
        return self._ranked[low] + weight * (self._ranked[high] - self._ranked[low])

    def mean_ms(self, batch: int) -> float:
        return float(self.by_rank_ms(batch).mean())

    def quantile_ms(self, batch: int, share: float) -> float:
        """The least time that ``share`` of the runs do not exceed."""
        return float(self.by_rank_ms(batch)[max(0, math.ceil(share * RANKS) - 1)])

    def images_per_s(self, limit: int) -> float:
        """What one instance carries when it never lacks requests: every batch is then full."""
        return 1000 * limit / self.mean_ms(limit)


@dataclass(frozen=True)
class Server:
    """What the batcher is told.

    Attributes:
        limit: images of a batch, at most.
        delay_ms: how long a free instance waits for more than the oldest request.
        instances: each a device of its own.
    """

    limit: int
    delay_ms: float
    instances: int

    def __post_init__(self) -> None:
        if self.limit < 1 or self.instances < 1 or not 0 <= self.delay_ms < math.inf:
            raise ValueError(f"no server: {self}")

    def load(self, service: Service, rate_per_s: float) -> float:
        """Requests over what full batches carry. From 1 on the queue grows without end, whatever the delay.

        The condition for a queue with bulk service to be stable (N. T. J. Bailey, "On queueing processes with bulk
        service", Journal of the Royal Statistical Society B 16, 1954): where many wait, every batch is full.
        """
        return rate_per_s / (self.instances * service.images_per_s(self.limit))


@dataclass(frozen=True, eq=False)
class Simulated:
    """What the requests of a simulation met, in the order in which they came, without those of the warm-up.

    Attributes:
        arrival_ms, wait_ms, service_ms: [requests]; the last is of the batch that a request was in.
        batches: [batches], the sizes.
        busy: share of the instances' time, 0 to 1, in which they ran a batch.
        images_per_s: requests over the time in which they were taken.
    """

    arrival_ms: Floats
    wait_ms: Floats
    service_ms: Floats
    batches: Ints
    busy: float
    images_per_s: float

    @cached_property
    def response_ms(self) -> Floats:
        """From a request's arrival to the end of its batch."""
        # Added in this order so that a request that did not wait takes exactly what was measured.
        return self.wait_ms + self.service_ms

    @cached_property
    def _ordered(self) -> Floats:
        import numpy as np

        return np.sort(self.response_ms)

    @property
    def mean_batch(self) -> float:
        return float(self.batches.mean())

    def quantile_ms(self, share: float) -> float:
        """The least response time that ``share`` of the requests do not exceed."""
        place = math.ceil(share * len(self._ordered)) - 1
        return float(self._ordered[min(max(place, 0), len(self._ordered) - 1)])

    def interval_ms(self, share: float) -> tuple[float, float]:
        """About 95 % sure of the quantile that a simulation without end would give.

        Requests that follow each other met the same queue, so they count for less than as many independent ones. How
        much less shows in the shares of `SEGMENTS` stretches that are below the quantile (batch means: B. Schmeiser,
        "Batch size effects in the analysis of simulation output", Operations Research 30, 1982; for quantiles:
        P. Heidelberger, P. A. W. Lewis, "Quantile estimation in dependent sequences", Operations Research 32, 1984).
        """
        import numpy as np

        below = self.response_ms <= self.quantile_ms(share)
        length = len(below) // SEGMENTS
        shares = below[: length * SEGMENTS].reshape(SEGMENTS, length).mean(axis=1)
        half = T_95 * float(np.std(shares, ddof=1)) / math.sqrt(SEGMENTS)
        return self.quantile_ms(max(share - half, 0.0)), self.quantile_ms(min(share + half, 1.0))


def requests_for(service: Service, server: Server, rate_per_s: float, *, times: float, least: int, most: int) -> int:
    """How many requests to simulate: ``times`` as many as the queue takes to forget how it began.

    That is the requests in service, and those of a relaxation time in heavy traffic: 2 variance / drift^2 of the
    queue's length for each arrival (D. P. Gaver, "Diffusion approximations and models for certain congestion
    problems", Journal of Applied Probability 5, 1968).
    """
    ranked = service.by_rank_ms(server.limit)
    variance = 1 + server.limit * float(ranked.var() / ranked.mean() ** 2)
    load = server.load(service, rate_per_s)
    in_service = rate_per_s * float(ranked.mean()) / 1000
    forgotten = in_service + (2 * variance / (1 - load) ** 2 if load < 1 else most)
    return int(min(max(times * forgotten, least), most))


def simulate(service: Service, server: Server, rate_per_s: float, requests: int, seed: int = 0) -> Simulated:
    """Let a tenth more than ``requests`` come to an idle server, and leave out that tenth, which comes first.

    The server may be overloaded: the figures then depend on how long one looks.

    Raises:
        ValueError: the rate is not above 0, the requests are fewer than `SEGMENTS`, or the limit was not measured.
    """
    import numpy as np

    if not 0 < rate_per_s < math.inf or requests < SEGMENTS or server.limit > service.batches[-1]:
        raise ValueError(f"{requests} requests, {rate_per_s}/s, {server}")
    limit, delay = server.limit, server.delay_ms
    first = requests // 10
    last = first + requests
    units, ranks = _traffic(seed, (last + limit).bit_length())
    times = units[: last + limit] * (1000 / rate_per_s)
    arrivals = times.tolist()
    rows = service.rows(limit)
    free = [0.0] * server.instances  # a heap: when each instance is
    starts: list[float] = []
    sizes: list[int] = []
    services: list[float] = []
    head = runs = 0  # the oldest request that waits
    while head < last:
        start = arrivals[head] + delay
        if arrivals[head + limit - 1] < start:
            start = arrivals[head + limit - 1]
        if free[0] > start:
            start = free[0]
        # Most batches are full or of one request, which needs no search.
        if arrivals[head + limit - 1] <= start:
            size = limit
        elif arrivals[head + 1] > start:
            size = 1
        else:
            size = bisect_right(arrivals, start, head + 2, head + limit) - head
        low, high, weight = rows[size]
        rank = ranks[runs]
        took = low[rank]
        if weight:
            took += weight * (high[rank] - took)
        heapq.heapreplace(free, start + took)
        starts.append(start)
        sizes.append(size)
        services.append(took)
        head += size
        runs += 1
    size_of = np.array(sizes)
    begun, ran = np.array(starts), np.array(services)
    wait_ms = np.repeat(begun, size_of)[first:last] - times[first:last]
    kept = (ends := np.cumsum(size_of)) > first
    span_ms = float(begun[-1] - begun[kept][0])
    return Simulated(
        arrival_ms=times[first:last],
        wait_ms=wait_ms,
        service_ms=np.repeat(ran, size_of)[first:last],
        batches=size_of[kept],
        # Without the last run, which is only begun within the span; with one run in all there is no span.
        busy=min(1.0, float(ran[kept][:-1].sum()) / (server.instances * span_ms)) if span_ms else 1.0,
        images_per_s=1000 * float(ends[-1] - ends[kept][0]) / span_ms if span_ms else math.inf,
    )


@functools.lru_cache(maxsize=2)
def _traffic(seed: int, bits: int) -> tuple[Floats, array.array[int]]:
    """2^bits arrivals at a rate of 1, and as many ranks; a longer one begins like a shorter one."""
    import numpy as np

    gaps, ranks = (np.random.default_rng([seed, part]) for part in (0, 1))
    drawn = (ranks.random(1 << bits) * RANKS).astype(np.uint16)
    return np.cumsum(gaps.standard_exponential(1 << bits)), array.array("H", drawn.tobytes())
