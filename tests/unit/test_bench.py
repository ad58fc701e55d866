"""Timing by a clock that the tests turn: order, warm-up, stopping, inputs and figures."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count, pairwise, repeat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sepvit_deploy.bench import INPUTS, MAX_WARMUP_RUNS, WINDOW, Point, bench, conditions
from sepvit_deploy.errors import OptionError

Shape = tuple[int | None, ...]


class World:
    """A clock that only runs advance, and a record of them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.runs: list[tuple[str, int]] = []
        self.images: list[np.ndarray] = []

    def clock(self) -> float:
        return self.now

    def runner(self, name: str, seconds: Iterator[float], shape: Shape = (None, 3, 2, 2)) -> Fake:
        return Fake(self, name, seconds, shape)


class Fake:
    def __init__(self, world: World, name: str, seconds: Iterator[float], shape: Shape) -> None:
        self.name, self.input_shape = name, shape
        self._world, self._seconds = world, seconds

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        self._world.now += next(self._seconds)
        self._world.runs.append((self.name, len(images)))
        self._world.images.append(images)
        return {}


@pytest.fixture
def world() -> World:
    return World()


def test_figures_of_a_constant_engine(world: World) -> None:
    (point,) = bench([world.runner("a", repeat(0.25))], [8], seconds=1, clock=world.clock)
    assert (point.engine, point.batch, point.settled) == ("a", 8, True)
    assert set(point.samples_ms) == {250.0}
    assert (point.p50_ms, point.spread, point.images_per_s) == (250.0, 0.0, 32.0)


@given(
    samples=st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=30),
    share=st.floats(0, 1) | st.sampled_from([0.5, 0.9, 0.99]),
)
def test_quantiles_are_those_of_numpy(samples: list[float], share: float) -> None:
    point = Point("a", 1, tuple(samples), settled=True)
    assert point.quantile_ms(share) == pytest.approx(np.quantile(samples, share), rel=1e-9)
    assert point.p50_ms == pytest.approx(np.median(samples), rel=1e-9)
    p10, p90 = np.quantile(samples, [0.1, 0.9])
    assert point.spread == pytest.approx((p90 - p10) / np.median(samples), rel=1e-6, abs=1e-9)
    assert point.images_per_s == pytest.approx(1000 / np.median(samples), rel=1e-9)


def test_points_take_turns(world: World) -> None:
    runners = [world.runner(name, repeat(0.001)) for name in "ab"]
    points = bench(runners, [1, 4, 8], seconds=0, least=20, clock=world.clock)
    assert [(p.engine, p.batch) for p in points] == [(name, batch) for name in "ab" for batch in (1, 4, 8)]
    measured = world.runs[-20 * 6 :]
    rounds = [measured[k : k + 6] for k in range(0, len(measured), 6)]
    every = {(name, batch) for name in "ab" for batch in (1, 4, 8)}
    assert all(set(one) == every for one in rounds)
    assert len({tuple(one) for one in rounds}) > 10, "the order within a round is random"


def test_a_point_that_has_enough_stops_and_the_others_go_on(world: World) -> None:
    fast, slow = bench(
        [world.runner("fast", repeat(1 / 64)), world.runner("slow", repeat(1.0))],
        [1],
        seconds=2,
        least=5,
        clock=world.clock,
    )
    assert len(slow.samples_ms) == 5
    assert len(fast.samples_ms) == 128


@pytest.mark.parametrize(
    ("seconds", "least", "samples"), [(0, 1, 1), (0, 10, 10), (1, 10, 10), (1, 1, 4), (3, 10, 12), (0.1, 3, 3)]
)
def test_least_and_seconds_are_both_kept(world: World, seconds: float, least: int, samples: int) -> None:
    (point,) = bench([world.runner("a", repeat(0.25))], [1], seconds=seconds, least=least, clock=world.clock)
    assert len(point.samples_ms) == samples


def test_warm_up_ends_when_the_median_settles(world: World) -> None:
    slow_start = (0.001 * max(1, 30 - k) for k in count())
    (point,) = bench([world.runner("a", slow_start)], [1], seconds=0, least=7, clock=world.clock)
    assert point.settled
    assert set(np.round(point.samples_ms, 6)) == {1.0}
    assert 2 * WINDOW < len(world.runs) - 7 < MAX_WARMUP_RUNS


def test_a_steady_engine_is_warm_after_two_windows(world: World) -> None:
    bench([world.runner("a", repeat(0.001))], [1], seconds=0, least=1, clock=world.clock)
    assert len(world.runs) == 2 * WINDOW + 1


def test_warm_up_that_never_settles_ends_and_says_so(world: World) -> None:
    ever_slower = (0.0001 * 1.1**k for k in count())
    (point,) = bench([world.runner("a", ever_slower)], [1], seconds=0, least=3, clock=world.clock)
    assert not point.settled
    assert len(world.runs) == MAX_WARMUP_RUNS + 3


@pytest.mark.parametrize(("times", "settled"), [([9.0, 5.0, 5.1], True), ([9.0, 5.0, 6.0], False)])
def test_warm_up_of_a_slow_engine_is_three_runs(world: World, times: list[float], settled: bool) -> None:
    (point,) = bench([world.runner("a", iter([*times, 5.0]))], [1], seconds=1, least=1, clock=world.clock)
    assert point.settled is settled
    assert point.samples_ms == (5000.0,)


def test_an_engine_that_settles_does_not_answer_for_another(world: World) -> None:
    steady, wild = bench(
        [world.runner("steady", repeat(0.001)), world.runner("wild", (0.0001 * 1.1**k for k in count()))],
        [1],
        seconds=0,
        clock=world.clock,
    )
    assert (steady.settled, wild.settled) == (True, False)


def test_inputs_rotate_and_are_never_zeros(world: World) -> None:
    bench([world.runner("a", repeat(0.001), (None, 3, 4, 5))], [2], seconds=0, least=12, clock=world.clock)
    measured = world.images[-12:]
    assert all(image.shape == (2, 3, 4, 5) and image.dtype == np.float32 for image in world.images)
    assert all(image.all() for image in world.images)
    assert not any(np.array_equal(a, b) for a, b in pairwise(measured))
    assert Counter(image.tobytes() for image in measured) == {image.tobytes(): 12 // INPUTS for image in measured}
    assert len({image.tobytes() for image in measured}) == INPUTS


@settings(deadline=None)
@given(
    times=st.lists(st.floats(1e-2, 0.5), min_size=1, max_size=3),
    seconds=st.sampled_from([0, 0.3, 2.0]),
    least=st.integers(1, 12),
)
def test_progress_only_grows_and_ends_at_1(times: list[float], seconds: float, least: int) -> None:
    world = World()
    shares: list[float] = []
    runners = [world.runner(str(k), repeat(time)) for k, time in enumerate(times)]
    bench(runners, [1, 2], seconds=seconds, least=least, progress=shares.append, clock=world.clock)
    assert all(before <= after for before, after in pairwise(shares))
    assert shares[-1] == 1.0
    assert 0 < shares[0] <= 1


def refused(text: str) -> object:
    return pytest.raises(OptionError, match=f"^{re.escape(text)}$")


def test_another_batch_than_the_fixed_one(world: World) -> None:
    with refused("--batch 8; expected 4, the only batch of fixed.onnx"):  # type: ignore[attr-defined]
        bench([world.runner("fixed.onnx", repeat(1.0), (4, 3, 2, 2))], [4, 8], clock=world.clock)
    assert world.runs == []


def test_the_fixed_batch(world: World) -> None:
    (point,) = bench([world.runner("a", repeat(0.1), (4, 3, 2, 2))], [4], seconds=0, clock=world.clock)
    assert point.batch == 4


@pytest.mark.parametrize("shape", [(None, None, 2, 2), (1, 3, None, 2), (1, 3, 2, None)])
def test_an_engine_without_a_fixed_image_size(world: World, shape: Shape) -> None:
    with refused("a.onnx has no fixed image size; expected a file as export writes it"):  # type: ignore[attr-defined]
        bench([world.runner("a.onnx", repeat(1.0), shape)], [1], clock=world.clock)


@pytest.mark.parametrize("least", [0, -1])
def test_no_samples_are_no_measurement(world: World, least: int) -> None:
    with refused(f"least is {least}; expected 1 sample of each point, or more"):  # type: ignore[attr-defined]
        bench([world.runner("a", repeat(1.0))], [1], least=least, clock=world.clock)


def test_nothing_to_measure() -> None:
    assert bench([], [1]) == []


def test_an_error_of_an_engine_is_not_swallowed(world: World) -> None:
    class Broken(Fake):
        def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
            raise FloatingPointError("engine")

    with pytest.raises(FloatingPointError):
        bench([Broken(world, "a", repeat(1.0), (None, 3, 2, 2))], [1], clock=world.clock)


def test_conditions_name_the_machine() -> None:
    found = conditions(2)
    assert found["threads"] == 2
    assert conditions(None)["threads"] == "the runtime's choice"
    assert found["device"]
    assert isinstance(found["load_1min"], float)
    assert set(found) == {"boundary", "device", "cores", "threads", "load_1min"}


def test_ten_thousand_runs_of_a_fast_engine_cost_little_beside_them(world: World) -> None:
    start = time.process_time()
    bench([world.runner("a", repeat(2**-14))], [1], seconds=1, clock=world.clock)
    assert len(world.runs) > 16_000
    assert time.process_time() - start < 1.5, "summing every sample again at each run took 3 s"
