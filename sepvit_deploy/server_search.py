"""One engine against one rate and p99: which server answers in time, by simulation.

A search simulates little. What it finds must hold in a long simulation of other traffic, with the upper end of the 95 %
interval of p99 too, or the search goes on.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

from sepvit_deploy.queueing import Server, Service, Simulated, requests_for, simulate

MAX_INSTANCES = 4096
MAX_LOAD = 0.95
"""Of what full batches carry. Beyond, p99 turns on a percent of the rate, which nobody knows so well."""
DELAYS = (0.0, 0.05, 0.1, 0.2, 0.4)
"""Shares of the p99 that is asked for."""
TOLERANCE = 0.02
"""Two p99 that differ by less are the same, for all that a simulation can say."""
RATE_RESOLUTION = 0.01
INSTANCE_RESOLUTION = 0.25
"""A highest rate is found to within 1 %, and to within a quarter of what an instance carries."""
LOOK = {"times": 4, "least": 4_000, "most": 30_000}
"""Requests of a simulation, for `requests_for`: to see what is far off,"""
SEARCH = {"times": 20, "least": 20_000, "most": 200_000}
"""to compare,"""
STEP = {"times": 50, "least": 200_000, "most": 300_000}
"""to say what the next step costs,"""
FINAL = {"times": 5000, "least": 200_000, "most": 400_000}
"""and for the figures of a plan."""
_Candidate = tuple[int, float]  # batch limit, delay


class Search:
    """One engine against one rate and p99.

    Attributes:
        floor_ms, floor_batch: the least p99 of a run of any size up to the largest measured, and that size.
    """

    def __init__(self, service: Service, rate_per_s: float, p99_ms: float) -> None:
        self.service, self.rate_per_s, self.p99_ms = service, rate_per_s, p99_ms
        self.floor_ms, self.floor_batch = min(
            (service.quantile_ms(batch, 0.99), batch) for batch in range(1, service.batches[-1] + 1)
        )
        self._proofs: dict[int, tuple[Server, Simulated] | None] = {}
        self._seen: dict[tuple[_Candidate, int], tuple[float, float]] = {}  # low end of p99's interval, p99

    def best(self) -> tuple[Server, Simulated] | None:
        """The fewest instances that hold in a long simulation, and the figures of that; None where none do."""
        # How slow a run is for its size is drawn whatever waits, so p99 is never below the least p99 of a run.
        if self.floor_ms > self.p99_ms or (found := self._shortest(1)) is None:
            return None
        fewest = _smallest(lambda instances: self._proved(instances) is not None, found[0], MAX_INSTANCES)
        return None if fewest is None else self._proved(fewest)

    def lowest(self, instances: int) -> tuple[Server, float] | None:
        """The lowest p99 of so many instances, and the server that gives it; None where every limit is overloaded."""
        servers = [Server(*candidate, instances) for candidate in self._candidates()]
        servers = [server for server in servers if server.load(self.service, self.rate_per_s) <= MAX_LOAD]
        if not servers:
            return None
        looks = [self.figures(server, self.rate_per_s, LOOK, seed=1).quantile_ms(0.99) for server in servers]
        key = [(p99, server.limit, server.delay_ms) for p99, server in zip(looks, servers, strict=True)]
        server = servers[preferred(list(range(len(servers))), key.__getitem__)]
        return server, self.figures(server, self.rate_per_s, STEP, seed=1).quantile_ms(0.99)

    def highest_per_s(self, server: Server, low_per_s: float) -> float:
        """The highest rate at which ``server`` keeps p99, by bisection from a rate at which it does."""
        low, high = low_per_s, MAX_LOAD * low_per_s / server.load(self.service, low_per_s)
        if high <= low or self._holds(server, high):
            return max(low, high)
        resolution = min(RATE_RESOLUTION, INSTANCE_RESOLUTION / server.instances)
        while high > low * (1 + resolution):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self._holds(server, middle) else (low, middle)
        return low

    def figures(self, server: Server, rate_per_s: float, effort: dict[str, int], seed: int) -> Simulated:
        """A simulation that is as long as ``effort`` says."""
        requests = requests_for(self.service, server, rate_per_s, **effort)
        return simulate(self.service, server, rate_per_s, requests, seed)

    def reason(self) -> str:
        """Why no number of instances does it."""
        fastest = f"{self.floor_ms:.4g} ms at batch {self.floor_batch}"
        if self.floor_ms > self.p99_ms:
            return f"p99 {self.p99_ms:,.10g} ms is below the fastest single run's p99, {fastest}"
        most = max(self.service.batches, key=self.service.images_per_s)
        if self._least(most) > MAX_INSTANCES:
            carries = f"one carries {MAX_LOAD * self.service.images_per_s(most):.4g}/s at most, in batches of {most}"
            return f"{self.rate_per_s:,.10g}/s needs more than {MAX_INSTANCES} instances: {carries}"
        return (
            f"what carries {self.rate_per_s:,.10g}/s with {MAX_INSTANCES} instances or fewer takes longer than p99 "
            f"{self.p99_ms:,.10g} ms, or is too near to it to be sure; the fastest single run's p99 is {fastest}"
        )

    def _proved(self, instances: int) -> tuple[Server, Simulated] | None:
        """A server of so many instances that holds in a long simulation, and its figures."""
        if instances not in self._proofs:
            self._proofs[instances] = None
            found = self._shortest(instances)
            for limit, delay in found[1] if found and found[0] == instances else ():
                server = Server(limit, delay, instances)
                figures = self.figures(server, self.rate_per_s, FINAL, seed=1)
                if figures.interval_ms(0.99)[1] <= self.p99_ms:
                    self._proofs[instances] = server, figures
                    break
        return self._proofs[instances]

    def _shortest(self, fewest: int) -> tuple[int, list[_Candidate]] | None:
        """The fewest instances, ``fewest`` or more, and the two candidates to prove: preferred, and of lowest p99."""
        best, within = MAX_INSTANCES, list[_Candidate]()
        for candidate in sorted(self._candidates(), key=lambda c: (c[1] > 0, self._least(c[0]), c)):
            low = max(fewest, self._least(candidate[0]))
            if low > best or not self._meets(candidate, best):
                continue
            needed = _smallest(functools.partial(self._meets, candidate), low, best) or best
            within = [*within, candidate] if needed == best else [candidate]
            best = needed
        if not within:
            return None
        p99 = {candidate: self._seen[candidate, best][1] for candidate in within}
        first = preferred(within, lambda candidate: (p99[candidate], *candidate))
        return best, list(dict.fromkeys([first, min(within, key=lambda candidate: p99[candidate])]))

    def _candidates(self) -> Iterator[_Candidate]:
        for limit in self.service.batches:
            for share in DELAYS:
                delay = round(share * self.p99_ms, 3)  # whole microseconds, as Triton has them
                if share and (not delay or limit == 1 or delay + self.floor_ms > self.p99_ms):
                    break
                yield limit, delay
                if self.rate_per_s * delay / 1000 > 3 * limit + 10:
                    break  # a batch is full before that, and before any longer delay

    def _least(self, limit: int) -> int:
        """Instances below which the limit is overloaded."""
        return math.ceil(self.rate_per_s / (MAX_LOAD * self.service.images_per_s(limit)))

    def _meets(self, candidate: _Candidate, instances: int) -> bool:
        if (candidate, instances) not in self._seen:
            self._seen[candidate, instances] = self._search_p99(Server(*candidate, instances))
        return self._seen[candidate, instances][0] <= self.p99_ms  # whether it may: the proof is longer

    def _search_p99(self, server: Server) -> tuple[float, float]:
        """The low end of p99, and p99, in a short simulation; infinite where it is overloaded or far too slow."""
        if not self._may(server, self.rate_per_s, seed=0):
            return math.inf, math.inf
        found = self.figures(server, self.rate_per_s, SEARCH, seed=0)
        return found.interval_ms(0.99)[0], found.quantile_ms(0.99)

    def _may(self, server: Server, rate_per_s: float, seed: int) -> bool:
        if server.load(self.service, rate_per_s) > MAX_LOAD:
            return False
        return self.figures(server, rate_per_s, LOOK, seed=seed).interval_ms(0.99)[0] <= self.p99_ms

    def _holds(self, server: Server, rate_per_s: float) -> bool:
        """Whether p99 is kept, with its interval."""
        if not self._may(server, rate_per_s, seed=1):
            return False
        return self.figures(server, rate_per_s, STEP, seed=1).interval_ms(0.99)[1] <= self.p99_ms


def preferred(items: list[Any], key: Callable[[Any], tuple[float, int, float]]) -> Any:
    """Of those whose p99, the first of ``key``, is about the lowest, the one that is first by the rest of it."""
    lowest = min(key(item)[0] for item in items)
    return min((item for item in items if key(item)[0] <= lowest * (1 + TOLERANCE)), key=lambda item: key(item)[1:])


def _smallest(meets: Callable[[int], bool], low: int, high: int) -> int | None:
    """The least number from ``low`` to ``high`` that meets, if more never meet less: by doubling, then bisection."""
    below, tried = low - 1, low
    while not meets(tried):
        if tried >= high:
            return None
        below, tried = tried, min(tried + 2 * (tried - below), high)
    while tried - below > 1:
        middle = (below + tried) // 2
        below, tried = (below, middle) if meets(middle) else (middle, tried)
    return tried
