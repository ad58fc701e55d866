"""How many instances of which engine carry a load, from measured latencies: precision, batch limit, queue delay.

Every engine of a file of results is tried with every measured batch as the limit and some delays, by simulation of the
server that `sepvit_deploy.queueing` describes. Of all that answer in time the plan is the one with the fewest
instances.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sepvit_deploy.building import Precision
from sepvit_deploy.errors import AcceptanceFailed, InputError, OptionError
from sepvit_deploy.latency import Boundary, Point, Results
from sepvit_deploy.queueing import Server, Service, Simulated
from sepvit_deploy.records import plain
from sepvit_deploy.server_search import MAX_INSTANCES, MAX_LOAD, Search, preferred

RATES_PER_S = (1e-3, 1e7)
"""Least and most; with fewer, 64-bit arrival times would lose the microseconds."""
MAX_P99_MS = 1e6
FEW_SAMPLES = 100
MOST_NAMED = 6


@dataclass(frozen=True)
class Plan:
    """An engine and a server that carry the rate in time.

    Attributes:
        cuda_graph: whether the engine was timed as a CUDA graph.
        batch_limit: Triton's ``max_batch_size``.
        delay_ms: Triton's ``max_queue_delay_microseconds``, in milliseconds.
        instances: each a device of its own.
        load: the rate over what full batches carry, 0 to 1.
        busy: share of the instances' time, 0 to 1, in which they run a batch; batches that are not full raise it.
        mean_batch: images.
        p50_ms, p95_ms, p99_ms: from a request's arrival to the end of its batch.
        p99_low_ms, p99_high_ms: the 95 % interval of p99, of the simulation; errors of the measurement are not in it.
        requests: that were simulated.
    """

    engine: str
    precision: Precision
    cuda_graph: bool
    batch_limit: int
    delay_ms: float
    instances: int
    load: float
    busy: float
    mean_batch: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    p99_low_ms: float
    p99_high_ms: float
    requests: int


@dataclass(frozen=True)
class Fewer:
    """The lowest p99 of one instance fewer than a plan has: what that instance is worth."""

    batch_limit: int
    delay_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Step:
    """What lies next to a plan.

    Attributes:
        highest_per_s: the rate up to which the plan, as it is, keeps p99; found to about 1 %, from below.
        one_more_per_s: the same of one instance more.
        one_fewer: at the planned rate; None where that is overloaded, or none is left.
    """

    highest_per_s: float
    one_more_per_s: float
    one_fewer: Fewer | None


@dataclass(frozen=True)
class Choice:
    """The best that one engine can do.

    Attributes:
        plan: None where it cannot.
        reason: then, what keeps it.
    """

    engine: str
    precision: Precision
    cuda_graph: bool
    plan: Plan | None
    reason: str


@dataclass(frozen=True)
class Capacity:
    """What was asked, the plan, and what was held against it.

    Attributes:
        rate_per_s: requests, one image each.
        p99_ms: the most that p99 may be.
        boundary: what the measured times are of.
        choices: in the order of the results.
        warnings: why the measurements, and so the plan, may be wrong.
        notes: what the figures assume.
    """

    rate_per_s: float
    p99_ms: float
    device: str
    boundary: Boundary
    plan: Plan
    step: Step
    choices: tuple[Choice, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: a key for each attribute."""
        return plain(self)


def plan_capacity(
    results: Results, *, rate_per_s: float, p99_ms: float, report: Callable[[str], None] = lambda step: None
) -> Capacity:
    """Find the fewest instances that answer ``rate_per_s`` requests with a p99 of ``p99_ms`` at most.

    Among plans with as many instances the one of the lowest p99 is taken; among those whose p99 is about the same, the
    smaller batch limit, then the shorter delay.

    Args:
        report: is told each engine.

    Raises:
        OptionError: the rate or p99 is no number, or out of bounds.
        InputError: the results have no points.
        AcceptanceFailed: no engine does it with `MAX_INSTANCES`; says what keeps the one that comes closest.
    """
    if not RATES_PER_S[0] <= rate_per_s <= RATES_PER_S[1]:
        raise OptionError(f"--rate {rate_per_s:g}", expected="0.001 to 10,000,000 requests/s")
    if not 0 < p99_ms <= MAX_P99_MS:
        raise OptionError(f"--p99-ms {p99_ms:g}", expected=f"more than 0, up to {MAX_P99_MS:,.0f} ms")
    if not results.points:
        raise InputError("the results have no points", expected="an engine that was timed", hint="measure again")
    searches: dict[str, Search] = {}
    choices = []
    for engine in results.engines:
        if not (curve := results.curve(engine.name)):
            choices.append(Choice(engine.name, engine.precision, engine.cuda_graph, None, "it was not timed"))
            continue
        report(f"planning {engine.name}")
        search = searches[engine.name] = Search(Service.of(curve), rate_per_s, p99_ms)
        found = search.best()
        plan = None if found is None else _plan(results, engine.name, search, *found)
        reason = "" if found else search.reason()
        choices.append(Choice(engine.name, engine.precision, engine.cuda_graph, plan, reason))
    plans = [choice.plan for choice in choices if choice.plan]
    if not plans:
        raise _beyond(choices, searches, rate_per_s, p99_ms)
    fewest = min(plan.instances for plan in plans)
    plans = [plan for plan in plans if plan.instances == fewest]
    best = preferred(plans, lambda plan: (plan.p99_ms, plan.batch_limit, plan.delay_ms))
    report("what the next step costs")
    server = Server(best.batch_limit, best.delay_ms, best.instances)
    return Capacity(
        rate_per_s=rate_per_s,
        p99_ms=p99_ms,
        device=results.machine.device,
        boundary=results.boundary,
        plan=best,
        step=_step(searches[best.engine], server),
        choices=tuple(choices),
        warnings=doubts(results),
        notes=_notes(results.boundary),
    )


def doubts(results: Results) -> tuple[str, ...]:
    """Why measurements may not be what a server would meet: a line for each kind of fault that points have."""
    kinds: dict[str, Callable[[Point], bool]] = {
        "did not settle in the warm-up, so its times are not to be trusted": lambda point: not point.settled,
        "was cut off before it had its samples": lambda point: not point.complete,
        f"has fewer than {FEW_SAMPLES} samples, so its p99 is its slowest run": lambda point: (
            len(point.samples_ms) < FEW_SAMPLES
        ),
    }
    lines = []
    for fault, has in kinds.items():
        found = [f"{point.engine} at batch {point.batch}" for point in results.points if has(point)]
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        lines += [f"{', '.join(found[:MOST_NAMED])}{more}: {fault}"] if found else []
    lines += [f"{failed.engine} failed at batch {failed.batch}" for failed in results.failures]
    lines += ["the benchmark was interrupted: points may be missing"] if results.interrupted else []
    return tuple(lines)


def _notes(boundary: Boundary) -> tuple[str, ...]:
    measured = {
        "compute": "times are of the device alone: decoding, copies and the network are not in the figures",
        "copies": "times are from host memory to host memory: decoding and the network are not in the figures",
        "end-to-end": "times are from encoded pictures to outputs: the network is not in the figures",
    }
    return (
        "each instance is a device of its own: several on one device share it and take longer than was measured",
        measured[boundary],
        f"no plan loads its instances beyond {MAX_LOAD:.0%} of what they carry in full batches",
        "arrivals are Poisson and runs independent: bursts, and slow runs that come together, raise p99",
    )


def _plan(results: Results, name: str, search: Search, server: Server, figures: Simulated) -> Plan:
    engine = results.engine(name)
    low, high = figures.interval_ms(0.99)
    return Plan(
        engine=name,
        precision=engine.precision,
        cuda_graph=engine.cuda_graph,
        batch_limit=server.limit,
        delay_ms=server.delay_ms,
        instances=server.instances,
        load=server.load(search.service, search.rate_per_s),
        busy=figures.busy,
        mean_batch=figures.mean_batch,
        p50_ms=figures.quantile_ms(0.5),
        p95_ms=figures.quantile_ms(0.95),
        p99_ms=figures.quantile_ms(0.99),
        p99_low_ms=low,
        p99_high_ms=high,
        requests=len(figures.response_ms),
    )


def _step(search: Search, server: Server) -> Step:
    highest = search.highest_per_s(server, search.rate_per_s)
    beyond = search.highest_per_s(Server(server.limit, server.delay_ms, server.instances + 1), highest)
    found = search.lowest(server.instances - 1) if server.instances > 1 else None
    fewer = None if found is None else Fewer(found[0].limit, found[0].delay_ms, found[1])
    return Step(highest, beyond, fewer)


def _beyond(choices: list[Choice], searches: dict[str, Search], rate_per_s: float, p99_ms: float) -> AcceptanceFailed:
    closest = min(searches, key=lambda name: (searches[name].floor_ms > p99_ms, searches[name].floor_ms))
    reason = next(choice.reason for choice in choices if choice.engine == closest)
    engines = "the engine" if len(choices) == 1 else f"any of {len(choices)} engines; {closest} comes closest"
    return AcceptanceFailed(
        f"{rate_per_s:,.10g} requests/s with a p99 of {p99_ms:,.10g} ms is beyond {engines}: {reason}",
        expected=f"a plan with {MAX_INSTANCES} instances or fewer",
        hint="allow more time with --p99-ms, lower --rate, or measure a faster engine, at batch 1 too",
    )
