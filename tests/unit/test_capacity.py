"""The simulated queue against closed forms, and plans against what they must be."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sepvit_deploy import server_search
from sepvit_deploy.capacity import Capacity, doubts, plan_capacity
from sepvit_deploy.errors import AcceptanceFailed, InputError, OptionError
from sepvit_deploy.latency import Boundary, Engine, Failure, Machine, Point, Results
from sepvit_deploy.queueing import Server, Service, Simulated, requests_for, simulate

Simulate = Callable[[Service, Server, float, int, int], Simulated]
Curves = Mapping[str, Mapping[int, Sequence[float]]]

MS = 10.0
CONSTANT = Service({1: [MS]})
EXPONENTIAL = Service({1: (-MS * np.log1p(-(np.arange(8192) + 0.5) / 8192)).tolist()})
ALIKE = Service({64: [MS]})
"""Every batch up to 64 takes as long."""


def results(curves: Curves, *, boundary: Boundary = "copies", **changes: object) -> Results:
    """What `bench` would have written of engines with these samples by batch; ``changes`` are of every point."""
    machine = Machine("a device", "Linux", "a processor", 8, None, None, {})
    engines = tuple(
        Engine(name, "plan", name, None, None, "int8" if "int8" in name else "fp16", "tiny", "TensorRT", None, None,
               "graph" in name, {}, None, {}, {}, None)
        for name in curves
    )  # fmt: skip
    points = tuple(
        replace(Point(name, batch, tuple(samples), (len(samples),)), **changes)  # type: ignore[arg-type]
        for name, curve in curves.items()
        for batch, samples in curve.items()
    )
    return Results(
        "bench", "2025-01-01T00:00:00Z", boundary, 3.0, 100, machine, None, engines, points, (), (), False, ()
    )


def measured(base_ms: float, each_ms: float, batches: Sequence[int], seed: int = 0) -> dict[int, list[float]]:
    """Samples as of a GPU: a fixed part, a part for each image, a spread of 4 %, and now and then a slow run."""
    rng = np.random.default_rng(seed)
    return {
        batch: (
            (base_ms + each_ms * batch) * np.exp(rng.normal(0, 0.04, 500)) * (1 + (rng.random(500) < 0.005))
        ).tolist()
        for batch in batches
    }


# Closed forms: what theory says of a queue, and checks that hold a simulator to it.


def crommelin(load: float, waited: float) -> float:
    """P(W <= t) of M/D/1, t in service times (A. K. Erlang 1909; C. D. Crommelin 1932). Its terms cancel: 60 digits."""
    with localcontext() as context:
        context.prec = 60
        rate, total = Decimal(load), Decimal(0)
        for k in range(int(waited) + 1):
            x = rate * (k - Decimal(waited))
            total += (x**k if k else Decimal(1)) / math.factorial(k) * (-x).exp()
        return float((1 - rate) * total)


def erlang_c(servers: int, offered: float) -> float:
    """P(W > 0) of M/M/c, by the recursion of Erlang B (A. K. Erlang 1917)."""
    blocked = 1.0
    for k in range(1, servers + 1):
        blocked = offered * blocked / (k + offered * blocked)
    return blocked / (1 - offered / servers * (1 - blocked))


def erlang_response(servers: int, rate_per_s: float, response_ms: float) -> float:
    """P(T > t) of M/M/c: with C the wait is exponential at c mu - lambda; then comes a service at mu."""
    mu, waits = 1 / MS, erlang_c(servers, rate_per_s * MS / 1000)
    drain = servers * mu - rate_per_s / 1000
    late, served = math.exp(-drain * response_ms), math.exp(-mu * response_ms)
    return (1 - waits) * served + waits * (drain * served - mu * late) / (drain - mu)


def check_md1_mean(sim: Simulate) -> None:
    for load in (0.3, 0.5, 0.7, 0.85):
        found = sim(CONSTANT, Server(1, 0.0, 1), 1000 * load / MS, 300_000, 3)
        assert found.wait_ms.mean() == pytest.approx(load * MS / (2 * (1 - load)), rel=0.03)  # Pollaczek, Khinchine
        assert found.busy == pytest.approx(load, rel=0.02)


def check_md1_distribution(sim: Simulate) -> None:
    for load in (0.5, 0.8):
        found = sim(CONSTANT, Server(1, 0.0, 1), 1000 * load / MS, 300_000, 3)
        for waited in (0.0, 0.5, 1.0, 2.5, 6.0):
            share = float((found.wait_ms <= waited * MS + 1e-6).mean())
            assert share == pytest.approx(crommelin(load, waited), abs=0.008)
        low, high = found.interval_ms(0.99)
        assert crommelin(load, low / MS - 1) < 0.99 < crommelin(load, high / MS - 1)
        assert high < 1.15 * low


def check_mmc(sim: Simulate) -> None:
    for servers, load in ((1, 0.7), (3, 0.8), (10, 0.85)):
        rate = 1000 * servers * load / MS
        found = sim(EXPONENTIAL, Server(1, 0.0, servers), rate, 300_000, 5)
        waits, drain = erlang_c(servers, servers * load), servers * (1 - load) / MS
        assert found.wait_ms.mean() == pytest.approx(waits / drain, rel=0.05)
        for waited in (0.0, 5.0, 20.0):
            share = float((found.wait_ms > waited + 1e-9).mean())
            assert share == pytest.approx(waits * math.exp(-drain * waited), abs=0.012)
        assert float((found.response_ms > 30).mean()) == pytest.approx(erlang_response(servers, rate, 30), abs=0.01)


def check_delay(sim: Simulate) -> None:
    """Idle instances without end: the oldest waits d, and 1 + Poisson(rate d) go, those after it for half as long."""
    rate, delay = 500.0, 4.0
    found = sim(ALIKE, Server(64, delay, 200), rate, 100_000, 1)
    more = rate * delay / 1000
    assert found.mean_batch == pytest.approx(1 + more, rel=0.01)
    assert found.wait_ms.mean() == pytest.approx((delay + more * delay / 2) / (1 + more), rel=0.01)
    assert found.wait_ms.max() == pytest.approx(delay)


def check_limit(sim: Simulate) -> None:
    """Idle instances and a delay without end: the last of a batch waits for none, the first for limit - 1 gaps."""
    rate, service = 1000.0, Service({8: [MS], 16: [MS]})
    found = sim(service, Server(8, 1e6, 200), rate, 100_000, 1)
    assert set(found.batches.tolist()) == {8}
    assert found.wait_ms.mean() == pytest.approx(1000 * 7 / 2 / rate, rel=0.02)


def check_saturation(sim: Simulate) -> None:
    """Twice of what full batches carry: every batch is full, and that is what is carried."""
    service = Service({1: [4.0, 6.0], 8: [12.0, 20.0], 16: [40.0]})
    for limit, instances in ((1, 1), (8, 1), (8, 5), (12, 3), (16, 2)):
        carries = instances * 1000 * limit / {1: 5.0, 8: 16.0, 12: 28.0, 16: 40.0}[limit]
        found = sim(service, Server(limit, 3.0, instances), 2 * carries, 80_000, 1)
        assert found.images_per_s == pytest.approx(carries, rel=0.02)
        assert found.mean_batch == pytest.approx(limit)
        assert found.busy == pytest.approx(1, abs=0.01)


def check_little(sim: Simulate) -> None:
    """L = lambda W: the requests that are there, looked at from outside at regular times."""
    service = Service({1: [3.0, 5.0], 16: [20.0]})
    for server, rate in ((Server(16, 2.0, 2), 900.0), (Server(4, 0.0, 1), 300.0)):
        found = sim(service, server, rate, 100_000, 1)
        left = np.sort(found.arrival_ms + found.response_ms)
        looks = np.arange(found.arrival_ms[2000], found.arrival_ms[-2000], 0.7)
        there = np.searchsorted(found.arrival_ms, looks) - np.searchsorted(left, looks)
        assert there.mean() == pytest.approx(rate * found.response_ms.mean() / 1000, rel=0.02)


CHECKS = (
    check_md1_mean,
    check_md1_distribution,
    check_mmc,
    check_delay,
    check_limit,
    check_saturation,
    check_little,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_simulation_is_what_theory_says(check: Callable[[Simulate], None]) -> None:
    check(simulate)


def _waiting_less(found: Simulated) -> Simulated:
    return replace(found, wait_ms=np.maximum(found.wait_ms - 1.0, 0))


def _without_every_tenth(found: Simulated) -> Simulated:
    kept = np.arange(len(found.wait_ms)) % 10 > 0
    return replace(
        found, arrival_ms=found.arrival_ms[kept], wait_ms=found.wait_ms[kept], service_ms=found.service_ms[kept]
    )


FAULTS: dict[str, tuple[Simulate, Callable[[Simulate], None]]] = {
    "the delay is ignored": (lambda s, v, *a: simulate(s, replace(v, delay_ms=0.0), *a), check_delay),
    "the delay is 5 % less": (lambda s, v, *a: simulate(s, replace(v, delay_ms=0.95 * v.delay_ms), *a), check_delay),
    "the limit is the largest batch": (lambda s, v, *a: simulate(s, replace(v, limit=s.batches[-1]), *a), check_limit),
    "requests go one by one": (lambda s, v, *a: simulate(s, replace(v, limit=1), *a), check_saturation),
    "there is an instance more": (lambda s, v, *a: simulate(s, replace(v, instances=v.instances + 1), *a), check_mmc),
    "the rate is 5 % less": (lambda s, v, rate, *a: simulate(s, v, 0.95 * rate, *a), check_md1_distribution),
    "a run takes its mean": (lambda s, *a: simulate(Service({b: [s.mean_ms(b)] for b in s.batches}), *a), check_mmc),
    "waits lack a millisecond": (lambda *a: _waiting_less(simulate(*a)), check_md1_mean),
    "one request in ten is lost": (lambda *a: _without_every_tenth(simulate(*a)), check_little),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str) -> None:
    faulty, check = FAULTS[fault]
    with pytest.raises(AssertionError):
        check(faulty)


def test_the_interval_of_p99_holds_the_true_one_about_as_often_as_it_says() -> None:
    exact = next(MS * (1 + t / 100) for t in range(200, 800) if crommelin(0.6, t / 100) >= 0.99)
    intervals = [simulate(CONSTANT, Server(1, 0.0, 1), 60.0, 30_000, seed).interval_ms(0.99) for seed in range(40)]
    assert sum(low <= exact <= high for low, high in intervals) >= 34  # of a true 95 %, 1 in 100 is below


def test_requests_that_never_wait_take_exactly_what_was_measured() -> None:
    found = simulate(Service({1: [0.1, 0.3]}), Server(1, 0.0, 50), 7.0, 5000, 0)
    assert set(found.response_ms.tolist()) == {0.1, 0.3}


def test_between_two_measured_batches_equal_ranks_are_interpolated() -> None:
    service = Service({2: [1.0, 2.0], 6: [5.0, 10.0]})
    assert [service.quantile_ms(4, share) for share in (0.3, 0.9)] == [3.0, 6.0]
    assert service.quantile_ms(3, 0.9) == 4.0
    assert service.quantile_ms(1, 0.9) == service.quantile_ms(2, 0.9) == 2.0
    assert service.mean_ms(4) == pytest.approx(4.5)
    for batch in (0, 7):
        with pytest.raises(ValueError, match="measured up to 6"):
            service.mean_ms(batch)


@given(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=300), st.floats(0.01, 0.999))
@settings(deadline=None, derandomize=True, max_examples=30)
def test_ranks_keep_the_quantiles_of_the_samples(samples: list[float], share: float) -> None:
    low, high = (np.quantile(samples, min(max(share + off, 0), 1), method="inverted_cdf") for off in (-2e-4, 2e-4))
    assert low <= Service({1: samples}).quantile_ms(1, share) <= high


@pytest.mark.parametrize("samples", [{}, {1: []}, {1: [0.0]}, {1: [math.nan]}, {1: [math.inf]}, {0: [1.0]}])
def test_no_service_times(samples: dict[int, list[float]]) -> None:
    with pytest.raises(ValueError, match="samples"):
        Service(samples)


@pytest.mark.parametrize("server", [(0, 0.0, 1), (1, -1.0, 1), (1, math.nan, 1), (1, 0.0, 0)])
def test_no_server(server: tuple[int, float, int]) -> None:
    with pytest.raises(ValueError, match="no server"):
        Server(*server)


@pytest.mark.parametrize(("limit", "rate", "requests"), [(1, 0.0, 100), (1, math.nan, 100), (2, 1.0, 100), (1, 1.0, 3)])
def test_no_simulation(limit: int, rate: float, requests: int) -> None:
    with pytest.raises(ValueError, match="requests"):
        simulate(CONSTANT, Server(limit, 0.0, 1), rate, requests)


def test_a_fuller_server_is_simulated_for_longer() -> None:
    lengths = [
        requests_for(CONSTANT, Server(1, 0.0, 1), rate, times=100, least=10, most=10**9) for rate in (10, 50, 90, 99)
    ]
    assert lengths == sorted(set(lengths))
    assert requests_for(CONSTANT, Server(1, 0.0, 1), 200.0, times=1, least=1, most=77) == 77


SERVICES = st.tuples(st.floats(0.5, 10), st.floats(0.1, 3)).map(lambda t: Service(measured(*t, batches=(1, 4, 8))))


@given(SERVICES, st.sampled_from([1, 4, 8]), st.integers(1, 6), st.floats(0.1, 0.9), st.sampled_from([0.0, 1.0]))
@settings(deadline=None, derandomize=True, max_examples=25)
def test_more_instances_never_raise_p99(
    service: Service, limit: int, instances: int, load: float, delay_ms: float
) -> None:
    rate = load * instances * service.images_per_s(limit)
    few, more = (
        simulate(service, Server(limit, delay_ms, n), rate, 20_000, 1).interval_ms(0.99)
        for n in (instances, instances + 1)
    )
    assert more[0] <= few[1] * 1.02


# Plans.


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short simulations, where the figures themselves do not matter."""
    shorten(monkeypatch)


def shorten(monkeypatch: pytest.MonkeyPatch, efforts: Sequence[str] = ("SEARCH", "STEP", "FINAL")) -> None:
    for effort in efforts:
        monkeypatch.setattr(server_search, effort, {"times": 10, "least": 10_000, "most": 30_000})


def plan(curves: Curves, rate: float, p99: float) -> Capacity:
    return plan_capacity(results(curves), rate_per_s=rate, p99_ms=p99)


BATCHES = (1, 2, 4, 8, 16, 32, 64)
SIX = {
    "fp16-a": measured(4.0, 1.5, BATCHES),
    "fp16-b-graph": measured(3.4, 1.4, BATCHES, 1),
    "fp16-c": measured(2.5, 0.7, BATCHES, 2),
    "fp16-d-graph": measured(2.0, 0.65, BATCHES, 3),
    "int8-e": measured(2.2, 0.45, BATCHES, 4),
    "int8-f-graph": measured(1.7, 0.42, BATCHES, 5),
}


@pytest.fixture(scope="module")
def six() -> Capacity:
    begin = time.process_time()
    found = plan(SIX, 5000, 20)
    assert time.process_time() - begin < 10
    return found


def test_the_fastest_engine_needs_the_fewest_instances(six: Capacity) -> None:
    assert six.plan.engine == "int8-f-graph"
    assert (six.plan.precision, six.plan.cuda_graph) == ("int8", True)
    instances = [choice.plan.instances for choice in six.choices if choice.plan]
    assert len(instances) == 6
    assert instances == sorted(instances, reverse=True)
    assert six.plan.instances == instances[-1] < instances[0]


def test_a_plan_holds_in_a_simulation_that_its_search_has_not_seen(six: Capacity) -> None:
    for choice in six.choices:
        assert choice.plan is not None
        assert choice.plan.batch_limit in BATCHES
        assert choice.plan.requests >= 100_000
        assert choice.plan.p99_low_ms <= choice.plan.p99_ms <= choice.plan.p99_high_ms <= 20
    made, service = six.plan, Service(SIX["int8-f-graph"])
    found = simulate(service, Server(made.batch_limit, made.delay_ms, made.instances), 5000, 200_000, 99)
    assert found.quantile_ms(0.99) == pytest.approx(made.p99_ms, rel=0.06)
    assert found.quantile_ms(0.5) == pytest.approx(made.p50_ms, rel=0.02)
    assert found.busy == pytest.approx(made.busy, abs=0.01)
    assert found.mean_batch == pytest.approx(made.mean_batch, rel=0.02)


def test_one_instance_fewer_does_not_do_whatever_the_limit_and_the_delay(six: Capacity) -> None:
    service, fewer = Service(SIX["int8-f-graph"]), six.plan.instances - 1
    for limit in BATCHES:
        for delay_ms in (0.0, 1.0, 3.0, 8.0):
            server = Server(limit, delay_ms, fewer)
            if server.load(service, 5000) < 1:
                assert simulate(service, server, 5000, 40_000, 7).quantile_ms(0.99) > 20


def test_what_the_next_step_costs(six: Capacity) -> None:
    made, step, service = six.plan, six.step, Service(SIX["int8-f-graph"])
    assert 5000 < step.highest_per_s < step.one_more_per_s
    for instances, rate in ((made.instances, step.highest_per_s), (made.instances + 1, step.one_more_per_s)):
        server = Server(made.batch_limit, made.delay_ms, instances)
        assert simulate(service, server, rate, 200_000, 9).quantile_ms(0.99) <= 20.6
        beyond = simulate(service, server, 1.04 * rate, 200_000, 9).quantile_ms(0.99)
        assert beyond > 20 or server.load(service, 1.04 * rate) > 0.95


def test_what_one_instance_fewer_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch, ["SEARCH", "FINAL"])
    curve = {batch: SIX["int8-f-graph"][batch] for batch in (2, 8)}
    found = plan({"a": curve}, 500, 6)
    assert found.plan.instances == 2
    fewer = found.step.one_fewer
    assert fewer is not None
    alone = simulate(Service(curve), Server(fewer.batch_limit, fewer.delay_ms, 1), 500, 100_000, 4).quantile_ms(0.99)
    assert 6 < fewer.p99_ms == pytest.approx(alone, rel=0.03)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("rate", [20, 150])
def test_one_instance_fewer_is_none_or_overloaded(rate: float) -> None:
    found = plan({"a": {1: [9.0] * 100}}, rate, 60)  # one carries 111/s at most
    assert found.plan.instances == 1 + (rate > 111)
    assert found.step.one_fewer is None


@pytest.mark.parametrize(("rate", "p99"), [(200.0, 55.0), (500.0, 60.0), (950.0, 50.0)])
def test_as_many_instances_as_erlang_c_says(rate: float, p99: float, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch, ["STEP"])
    needed = next(c for c in range(int(rate * MS / 1000) + 1, 50) if erlang_response(c, rate, p99) <= 0.01)
    late, late_with_fewer = (erlang_response(c, rate, p99) for c in (needed, needed - 1))
    assert late < 0.0085 < 0.0115 < late_with_fewer, "not at the edge, where the interval decides"
    samples = EXPONENTIAL.by_rank_ms(1).tolist()
    assert plan({"a": {1: samples}}, rate, p99).plan.instances == needed


def test_the_highest_rate_of_one_constant_server_is_that_of_the_exact_distribution() -> None:
    found = plan({"a": {1: [MS] * 100}}, 30, 40)
    low, high = 0.3, 0.95
    while high - low > 1e-4:  # the load at which P(W <= p99 - service) is 99 %
        middle = (low + high) / 2
        low, high = (middle, high) if crommelin(middle, 3.0) >= 0.99 else (low, middle)
    assert (found.plan.instances, found.plan.batch_limit, found.plan.delay_ms) == (1, 1, 0.0)
    assert 0.95 * 100 * low < found.step.highest_per_s < 1.01 * 100 * low


@given(st.floats(0.5, 5), st.floats(0.1, 2), st.floats(1.1, 3), st.floats(50, 3000))
@settings(deadline=None, derandomize=True, max_examples=6)
def test_a_slower_engine_never_needs_fewer_instances(base: float, each: float, slower: float, rate: float) -> None:
    curve = measured(base, each, (1, 8))
    curves = {"fast": curve, "slow": {batch: [slower * ms for ms in samples] for batch, samples in curve.items()}}
    with pytest.MonkeyPatch.context() as monkeypatch:  # a fixture would last for all examples
        shorten(monkeypatch)
        fast, slow = plan(curves, rate, 60).choices
    assert fast.plan is not None
    assert slow.plan is None or slow.plan.instances >= fast.plan.instances


def test_a_delay_is_used_where_it_saves_an_instance() -> None:
    """Devices that would take one request each the moment it comes would carry less."""
    found = plan({"a": {1: [9.0] * 100, 8: [10.0] * 100}}, 1500, 17)
    without = simulate(Service({1: [9.0], 8: [10.0]}), Server(8, 0.0, found.plan.instances), 1500, 60_000, 2)
    assert found.plan.batch_limit == 8
    assert found.plan.delay_ms > 0
    assert without.quantile_ms(0.99) > found.plan.p99_ms


@pytest.mark.usefixtures("quick")
def test_of_plans_that_are_alike_the_smaller_limit_without_delay() -> None:
    found = plan({"a": {batch: [5.0] * 100 for batch in (4, 8, 64)}}, 20, 50)
    assert (found.plan.instances, found.plan.batch_limit, found.plan.delay_ms) == (1, 4, 0.0)


@pytest.mark.usefixtures("quick")
def test_a_single_large_batch_is_planned_with() -> None:
    made = plan({"a": {16: [8.0] * 100}}, 1000, 30).plan
    assert (made.batch_limit, made.instances) == (16, 1)
    assert made.mean_batch <= 16


@pytest.mark.usefixtures("quick")
def test_thousands_of_instances() -> None:
    made = plan({"a": {1: [9.0, 10.0, 11.0] * 40}}, 200_000, 40).plan
    assert made.instances == math.ceil(200_000 * 0.010 / 0.95)


@pytest.mark.usefixtures("quick")
def test_the_same_question_has_the_same_answer() -> None:
    curves = {"a": measured(2, 1, (1, 8))}
    assert plan(curves, 400, 30) == plan(curves, 400, 30)


def test_a_plan_is_plain_json(six: Capacity) -> None:
    document = json.loads(json.dumps(six.to_dict(), allow_nan=False))
    assert document["plan"]["instances"] == six.plan.instances
    assert document["choices"][0]["plan"]["engine"] == "fp16-a"
    assert document["step"]["highest_per_s"] == six.step.highest_per_s
    assert any("device of its own" in note for note in document["notes"])


SLOW = {1: [31.2] * 200, 4: [50.0] * 200}
PLAIN = {1: [10.0] * 200, 8: [20.0] * 200}


@pytest.mark.parametrize(
    ("curves", "rate", "p99", "reason"),
    [
        ({"a": SLOW}, 500, 20, "p99 20 ms is below the fastest single run's p99, 31.2 ms at batch 1"),
        ({"a": SLOW, "b": {4: [25.0] * 9}}, 500, 20, "any of 2 engines; b comes closest: p99 20 ms is below the"),
        (
            {"a": PLAIN},
            1e7,
            200,
            "10,000,000/s needs more than 4096 instances: one carries 380/s at most, in",
        ),
        ({"a": PLAIN}, 1e6, 15, "what carries 1,000,000/s with 4096 instances or fewer takes longer than p99 15 ms"),
    ],
)
@pytest.mark.usefixtures("quick")
def test_what_keeps_a_load_from_being_carried(curves: Curves, rate: float, p99: float, reason: str) -> None:
    with pytest.raises(AcceptanceFailed) as failure:
        plan(curves, rate, p99)
    assert reason in str(failure.value)
    assert "\n" not in str(failure.value)
    assert failure.value.hint is not None
    assert failure.value.exit_code == 1


@pytest.mark.usefixtures("quick")
def test_an_engine_that_cannot_says_why_beside_one_that_can() -> None:
    slow, fast = plan({"slow": {1: [30.0] * 100}, "fast": {1: [5.0] * 100}}, 50, 25).choices
    assert slow.plan is None
    assert slow.reason == "p99 25 ms is below the fastest single run's p99, 30 ms at batch 1"
    assert fast.plan is not None
    assert fast.reason == ""


def test_a_target_at_the_edge_ends() -> None:
    """The slowest 1 in 100 runs takes just as long as is allowed, so that chance decides."""
    samples = [*([5.0] * 98), 9.99, 10.0] * 10
    begin = time.process_time()
    with pytest.raises(AcceptanceFailed, match="too near to it to be sure"):
        plan({"a": {1: [*samples, *([30.0] * 10)]}}, 400, 10.0)
    assert time.process_time() - begin < 8


@pytest.mark.parametrize(
    ("rate", "p99", "found"),
    [
        (0.0, 20.0, "--rate 0"),
        (-5.0, 20.0, "--rate -5"),
        (math.nan, 20.0, "--rate nan"),
        (math.inf, 20.0, "--rate inf"),
        (1.1e7, 20.0, "--rate 1.1e+07"),
        (5.0, 0.0, "--p99-ms 0"),
        (5.0, -1.0, "--p99-ms -1"),
        (5.0, math.nan, "--p99-ms nan"),
        (5.0, math.inf, "--p99-ms inf"),
    ],
)
def test_what_is_no_load(rate: float, p99: float, found: str) -> None:
    with pytest.raises(OptionError) as failure:
        plan({"a": {1: [1.0]}}, rate, p99)
    assert str(failure.value).startswith(f"{found}; expected ")


def test_the_smallest_and_the_largest_rate_are_simulated_to_the_microsecond() -> None:
    for rate in (1e-3, 1e7):
        found = simulate(ALIKE, Server(64, 0.5, 4096), rate, 20_000, 0)
        assert -1e-3 <= found.wait_ms.min() <= found.wait_ms.max() <= 0.501


def test_results_without_points() -> None:
    with pytest.raises(InputError, match=r"no points.*measure again"):
        plan({"a": {}}, 5, 20)


@pytest.mark.usefixtures("quick")
def test_an_engine_without_points_is_passed_over() -> None:
    found = plan({"a": {}, "b": {1: [5.0] * 100}}, 5, 20)
    assert found.choices[0].reason == "it was not timed"
    assert found.plan.engine == "b"


@pytest.mark.usefixtures("quick")
def test_doubtful_points_are_named() -> None:
    curve = {1: [5.0] * 100, 8: [9.0] * 20}
    doubtful = replace(
        results({"a": curve}, settled=False, complete=False),
        failures=(Failure("a", 16, "out of memory"),),
        interrupted=True,
    )
    assert doubts(doubtful) == (
        "a at batch 1, a at batch 8: did not settle in the warm-up, so its times are not to be trusted",
        "a at batch 1, a at batch 8: was cut off before it had its samples",
        "a at batch 8: has fewer than 100 samples, so its p99 is its slowest run",
        "a failed at batch 16",
        "the benchmark was interrupted: points may be missing",
    )
    assert plan_capacity(doubtful, rate_per_s=5, p99_ms=20).warnings == doubts(doubtful)
    assert doubts(results({"a": {1: [5.0] * 100}})) == ()
    many = results({"a": {batch: [5.0] for batch in range(1, 10)}})
    assert "a at batch 6 and 3 more: has fewer" in doubts(many)[0]


@pytest.mark.parametrize(
    ("boundary", "missing"), [("compute", "decoding, copies and the network"), ("copies", "decoding and the network")]
)
@pytest.mark.usefixtures("quick")
def test_what_is_not_in_the_figures_is_said(boundary: Boundary, missing: str) -> None:
    found = plan_capacity(results({"a": {1: [5.0] * 100}}, boundary=boundary), rate_per_s=5, p99_ms=20)
    assert any(f"{missing} are not in the figures" in note for note in found.notes)
