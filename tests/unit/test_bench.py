"""Timing by a clock that the tests turn: rounds, order, warm-up, stopping, failures, inputs and figures."""

from __future__ import annotations

import gc
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count, pairwise, repeat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sepvit_deploy.bench import INPUTS, ROUNDS, Measured, Subject, bench
from sepvit_deploy.conditions import Look
from sepvit_deploy.errors import DeviceError, OptionError
from sepvit_deploy.latency import Point

Shape = tuple[int | None, ...]


class World:
    """A clock that only runs advance, and a record of them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.runs: list[tuple[str, int]] = []
        self.images: list[np.ndarray] = []
        self.hooks: dict[int, Callable[[], None]] = {}
        """What happens in the run of a number, counted from 0."""

    def clock(self) -> float:
        return self.now

    def runner(self, name: str, seconds: Iterator[float], shape: Shape = (None, 3, 2, 2)) -> Fake:
        return Fake(self, name, seconds, shape)

    def bench(self, runners: Sequence[Fake], batches: Sequence[int], **more: object) -> Measured:
        return bench([Subject(r, tuple(batches)) for r in runners], clock=self.clock, **more)  # type: ignore[arg-type]

    def points(self, runners: Sequence[Fake], batches: Sequence[int], **more: object) -> tuple[Point, ...]:
        return self.bench(runners, batches, **more).points


class Fake:
    def __init__(self, world: World, name: str, seconds: Iterator[float], shape: Shape) -> None:
        self.name, self.input_shape = name, shape
        self._world, self._seconds = world, seconds

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        self._world.now += next(self._seconds)
        self._world.runs.append((self.name, len(images)))
        self._world.images.append(images)
        if hook := self._world.hooks.get(len(self._world.runs) - 1):
            hook()
        return {}


@pytest.fixture
def world() -> World:
    return World()


def test_figures_of_a_constant_engine(world: World) -> None:
    (point,) = world.points([world.runner("a", repeat(0.25))], [8], seconds=1)
    assert (point.engine, point.batch, point.settled, point.complete) == ("a", 8, True, True)
    assert set(point.samples_ms) == {250.0}
    assert (point.p50_ms, point.spread, point.images_per_s) == (250.0, 0.0, 32.0)


def test_every_round_has_every_point_once_in_random_order(world: World) -> None:
    runners = [world.runner(name, repeat(0.25)) for name in "ab"]
    points = world.points(runners, [1, 4, 8], seconds=0, least=ROUNDS)
    assert [(p.engine, p.batch) for p in points] == [(name, batch) for name in "ab" for batch in (1, 4, 8)]
    assert all(point.stretches == (1,) * ROUNDS for point in points)
    measured = world.runs[-2 * 6 * ROUNDS :]  # each turn: a run that is not timed, and one that is
    assert all(measured[k] == measured[k + 1] for k in range(0, len(measured), 2))
    turns = measured[::2]
    rounds = [turns[k : k + 6] for k in range(0, len(turns), 6)]
    every = {(name, batch) for name in "ab" for batch in (1, 4, 8)}
    assert all(set(one) == every for one in rounds)
    assert len({tuple(one) for one in rounds}) > 10, "the order within a round is random"


def test_the_run_that_opens_a_turn_is_not_timed(world: World) -> None:
    """As after a change of the engine or of the shape, each turn begins with a slow run."""
    turns = [9.0] + 9 * [0.25]  # 100 runs in 10 rounds would be 10 a turn: see `least`

    class Cold(Fake):
        def __init__(self) -> None:
            super().__init__(world, "cold", repeat(0.0), (None, 3, 2, 2))
            self.since = 0

        def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
            world.now += turns[0] if self.since == 0 else turns[1]
            self.since += 1
            return {}

    cold, other = Cold(), world.runner("other", repeat(0.25))
    other_run = other.run

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        cold.since = 0
        return other_run(images)

    other.run = run  # type: ignore[method-assign]
    points = world.points([cold, other], [1], seconds=0, least=60)
    assert set(points[0].samples_ms) == {250.0}


def test_a_point_that_has_enough_stops_and_the_others_go_on(world: World) -> None:
    fast, slow = world.points(
        [world.runner("fast", repeat(1 / 64)), world.runner("slow", repeat(1.0))], [1], seconds=2, least=5
    )
    assert len(slow.samples_ms) == 5
    assert len(fast.samples_ms) == 19 * 7, "7 runs of 1/64 s reach a twentieth of 2 s"


@pytest.mark.parametrize(
    ("seconds", "least", "samples"), [(0, 1, 1), (0, 10, 10), (1, 10, 10), (1, 1, 4), (3, 10, 12), (0.1, 3, 3)]
)
def test_least_and_seconds_are_both_kept(world: World, seconds: float, least: int, samples: int) -> None:
    (point,) = world.points([world.runner("a", repeat(0.25))], [1], seconds=seconds, least=least)
    assert len(point.samples_ms) == samples
    assert sum(point.stretches) == samples


def test_a_hundred_samples_and_three_seconds_are_the_default(world: World) -> None:
    slow, fast = world.points([world.runner("slow", repeat(1 / 16)), world.runner("fast", repeat(1 / 256))], [1])
    assert len(slow.samples_ms) == 100
    assert slow.stretches == (5,) * ROUNDS
    assert sum(fast.samples_ms) >= 3000


def test_a_slow_first_run_is_no_part_of_the_warm_up(world: World) -> None:
    """As of what compiles: after it, runs are slow a few times more."""
    times = (30.0 if k == 0 else 1.0 if k < 8 else 0.125 for k in count())
    (point,) = world.points([world.runner("compiled", times)], [1], seconds=1, least=20)
    assert point.settled
    assert set(point.samples_ms) == {125.0}


def test_a_turn_ends_after_a_second_so_that_others_have_theirs(world: World) -> None:
    (point,) = world.points([world.runner("slow", repeat(0.375))], [1])
    assert point.stretches[0] == 3
    (point,) = world.points([world.runner("long", repeat(0.25))], [1], seconds=600)
    assert point.stretches[0] == 4


def test_warm_up_ends_when_the_median_settles(world: World) -> None:
    slow_start = (0.015625 * 1.2 ** max(0, 20 - k) for k in count())
    (point,) = world.points([world.runner("a", slow_start)], [1], seconds=1, least=7)
    assert point.settled
    assert set(point.samples_ms) == {15.625}


def test_a_point_that_never_settles_says_so(world: World) -> None:
    (point,) = world.points([world.runner("a", (0.001 * 1.5**k for k in count()))], [1], seconds=0, least=1)
    assert not point.settled
    assert point.to_dict()["settled"] is False


def test_pace_is_taken_around_each_tenth_of_a_second_and_gauges_once_a_round(world: World) -> None:
    taken: list[int] = []

    def pace() -> float:
        taken.append(len(world.runs))
        return float(len(taken))

    runners = [world.runner("slow", repeat(0.25)), world.runner("fast", repeat(1 / 64))]
    found = world.bench(runners, [1], seconds=4, least=8, pace=pace, gauges={"copy": lambda: 2.0})
    slow, fast = found.points
    assert set(slow.stretches) == {1}
    assert set(fast.stretches) == {7, 6}, "7 runs of 1/64 s are a tenth of a second, 13 the fifth of a turn"
    assert len(slow.pace_ms) == len(slow.stretches)
    assert len(fast.pace_ms) == len(fast.stretches)
    assert all(ms % 1 == 0.5 for ms in slow.pace_ms), "the mean of the one before and the one after"
    assert slow.paced == tuple(250.0 / ms for ms in slow.pace_ms)
    assert len(found.gauges["copy"]) >= 20
    assert set(found.gauges["copy"]) == {2.0}


def test_without_a_pace_a_turn_is_one_stretch(world: World) -> None:
    (point,) = world.points([world.runner("fast", repeat(1 / 64))], [1], seconds=4)
    assert set(point.stretches) == {13}
    assert point.pace_ms == ()


@pytest.mark.parametrize("what", ["pace", "gauge"])
def test_what_the_machine_is_measured_with_may_fail(world: World, what: str) -> None:
    calls = iter(range(1000))

    def fragile() -> float:
        if next(calls) > 8:
            fail()
        return 2.0

    more = {"pace": fragile} if what == "pace" else {"gauges": {"gauge": fragile}}
    found = world.bench([world.runner("a", repeat(0.25))], [1], seconds=0, least=20, **more)
    assert found.lost == {what: "the GPU fell off the bus"}
    assert found.failures == ()
    (point,) = found.points
    assert point.complete
    assert len(point.samples_ms) == 20
    assert point.pace_ms == (), "half a pace is none"
    assert found.gauges == ({} if what == "pace" else {"gauge": (2.0,) * 9})


def test_looks_belong_to_the_point_whose_turn_it_was(world: World) -> None:
    looks = iter(range(100))
    found = world.bench(
        [world.runner("a", repeat(0.25)), world.runner("b", repeat(0.25))],
        [1],
        seconds=0,
        least=3,
        look=lambda: Look(load=float(next(looks)), gpu_sm_mhz=1500.0, reasons=("power cap",)),
    )
    for point in found.points:
        assert point.conditions.looks >= 1
        assert point.conditions.throttled == {"power cap": 1.0}
        assert point.conditions.gpu_sm_mhz is not None
        assert point.conditions.gpu_sm_mhz.median == 1500.0


def fail() -> None:
    raise DeviceError("the GPU fell off the bus")


def test_an_engine_that_fails_in_the_middle_costs_its_own_point_alone(world: World) -> None:
    class Fragile(Fake):
        runs = 0

        def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
            self.runs += len(images) == 4
            if len(images) == 4 and self.runs > 15:
                fail()
            return super().run(images)

    fragile = Fragile(world, "fragile", repeat(0.25), (None, 3, 2, 2))
    found = world.bench([fragile, world.runner("sound", repeat(0.25))], [1, 4], seconds=0, least=20)
    assert [(f.engine, f.batch, f.error) for f in found.failures] == [("fragile", 4, "the GPU fell off the bus")]
    kept = {(p.engine, p.batch): p for p in found.points}
    assert kept.keys() == {("fragile", 1), ("fragile", 4), ("sound", 1), ("sound", 4)}
    assert not kept["fragile", 4].complete
    assert all(p.complete and len(p.samples_ms) == 20 for key, p in kept.items() if key != ("fragile", 4))
    assert not found.interrupted


def test_an_engine_that_fails_at_once_has_no_point(world: World) -> None:
    world.hooks[0] = fail
    found = world.bench([world.runner("a", repeat(0.25)), world.runner("b", repeat(0.25))], [1], seconds=0, least=2)
    assert [p.engine for p in found.points] == ["b"]
    assert [f.engine for f in found.failures] == ["a"]


@settings(deadline=None)
@given(at=st.integers(0, 120))
def test_what_was_measured_until_ctrl_c_is_kept(at: int) -> None:
    world = World()

    def interrupt() -> None:
        raise KeyboardInterrupt

    world.hooks[at] = interrupt
    found = world.bench(
        [world.runner("a", repeat(0.25)), world.runner("b", repeat(0.25))],
        [1],
        seconds=0,
        least=40,
        pace=lambda: 1.0,
    )
    assert found.interrupted
    for point in found.points:
        assert len(point.samples_ms) == sum(point.stretches)
        assert len(point.pace_ms) == len(point.stretches), "a turn that was cut short is no part of it"
        assert not point.complete


def test_another_error_is_not_swallowed(world: World) -> None:
    def break_() -> None:
        raise FloatingPointError("engine")

    world.hooks[3] = break_
    with pytest.raises(FloatingPointError):
        world.bench([world.runner("a", repeat(0.25))], [1], seconds=0)


def test_inputs_rotate_and_are_never_zeros(world: World) -> None:
    world.bench([world.runner("a", repeat(0.25), (None, 3, 4, 5))], [2], seconds=0, least=12)
    assert all(image.shape == (2, 3, 4, 5) and image.dtype == np.float32 for image in world.images)
    assert all(image.all() for image in world.images)
    counted = Counter(image.tobytes() for image in world.images)
    assert len(counted) == INPUTS
    assert min(counted.values()) >= 3


class OnDevice(Fake):
    """A runner that times itself."""

    def resident(self, inputs: Sequence[np.ndarray]) -> Callable[[int], tuple[float, float]]:
        self.inputs = inputs

        def once(k: int) -> tuple[float, float]:
            self._world.runs.append((self.name, k))
            return 2.0, 0.125

        return once


def test_a_device_times_itself_unless_copies_are_asked_for(world: World) -> None:
    runner = OnDevice(world, "gpu", repeat(0.25), (None, 3, 2, 2))
    (point,) = world.points([runner], [4], seconds=0, least=6)
    assert set(point.samples_ms) == {2.0}
    assert set(point.enqueue_ms) == {0.125}
    assert point.to_dict()["enqueue_p50_ms"] == 0.125
    assert len(runner.inputs) == INPUTS
    (point,) = world.points([runner], [4], seconds=0, least=6, boundary="copies")
    assert set(point.samples_ms) == {250.0}
    assert point.enqueue_ms == ()


def test_end_to_end_decodes_within_the_time(world: World) -> None:
    asked: list[tuple[int, int]] = []

    def load(batch: int, k: int) -> np.ndarray:
        world.now += 1.0
        asked.append((batch, k))
        return np.full((batch, 3, 2, 2), k + 1, np.float32)

    subject = Subject(world.runner("a", repeat(0.25)), (2,), load)
    (point,) = bench([subject], boundary="end-to-end", seconds=0, least=8, clock=world.clock).points
    assert set(point.samples_ms) == {1250.0}
    assert {k for _, k in asked} == set(range(INPUTS))
    (point,) = bench([subject], boundary="copies", seconds=0, least=8, clock=world.clock).points
    assert set(point.samples_ms) == {250.0}, "decoded before"
    with pytest.raises(OptionError, match="end-to-end without pictures; expected some to decode: --images DIR"):
        world.bench([world.runner("a", repeat(0.25))], [1], boundary="end-to-end")


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
    world.bench(runners, [1, 2], seconds=seconds, least=least, progress=shares.append)
    assert all(before <= after for before, after in pairwise(shares))
    assert shares[-1] == 1.0
    assert 0 < shares[0] <= 1


def refused(text: str) -> object:
    return pytest.raises(OptionError, match=f"^{re.escape(text)}$")


def test_another_batch_than_the_fixed_one(world: World) -> None:
    with refused("--batch 8; expected 4, the only batch of fixed.onnx"):  # type: ignore[attr-defined]
        world.bench([world.runner("fixed.onnx", repeat(1.0), (4, 3, 2, 2))], [4, 8])
    assert world.runs == []


@pytest.mark.parametrize("shape", [(None, None, 2, 2), (1, 3, None, 2), (1, 3, 2, None)])
def test_an_engine_without_a_fixed_image_size(world: World, shape: Shape) -> None:
    with refused("a.onnx has no fixed image size; expected the size to time it at"):  # type: ignore[attr-defined]
        world.bench([world.runner("a.onnx", repeat(1.0), shape)], [1])


def test_images_of_the_size_asked_for_where_an_engine_takes_any(world: World) -> None:
    free, fixed = (world.runner(name, repeat(0.25), shape) for name, shape in
                   (("any", (None, 3, None, None)), ("one", (None, 3, 2, 2))))  # fmt: skip
    found = bench(
        [Subject(free, (1, 2), size=(5, 7)), Subject(fixed, (2,), size=(2, 2))], clock=world.clock, seconds=0, least=2
    )
    assert len(found.points) == 3
    shapes = {(name, images.shape) for (name, _), images in zip(world.runs, world.images, strict=True)}
    assert shapes == {("any", (1, 3, 5, 7)), ("any", (2, 3, 5, 7)), ("one", (2, 3, 2, 2))}


@pytest.mark.parametrize("least", [0, -1])
def test_no_samples_are_no_measurement(world: World, least: int) -> None:
    with refused(f"least is {least}; expected 1 sample of each point, or more"):  # type: ignore[attr-defined]
        world.bench([world.runner("a", repeat(1.0))], [1], least=least)


def test_nothing_to_measure(world: World) -> None:
    assert world.bench([], [1]) == Measured((), (), {}, {}, False)


def test_pythons_collector_waits_while_a_turn_is_timed(world: World) -> None:
    seen: list[bool] = []
    runner = world.runner("a", repeat(0.25))
    run = runner.run

    def looking(images: np.ndarray) -> dict[str, np.ndarray]:
        seen.append(gc.isenabled())
        return run(images)

    runner.run = looking  # type: ignore[method-assign]
    assert gc.isenabled()
    world.bench([runner], [1], seconds=0, least=5)
    assert not any(seen[-5:])
    assert gc.isenabled()


def test_ten_thousand_runs_of_a_fast_engine_cost_little_beside_them(world: World) -> None:
    start = time.process_time()
    world.bench([world.runner("a", repeat(2**-14))], [1], seconds=1)
    assert len(world.runs) > 16_000
    assert time.process_time() - start < 1.5, "summing every sample again at each run took 3 s"
