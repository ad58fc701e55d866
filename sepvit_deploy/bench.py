"""Latency per batch: warmed up until it settles, all points interleaved in rounds of random order, at a known pace.

A point is one engine at one batch. Its turn in a round is a run that is not timed (another engine or another batch ran
before) and a few timed ones, so that an engine meets its own data in the caches as it would alone, and yet every point
is spread over the whole time of the run. Between the timed runs, each tenth of a second, the machine's own pace is
taken: its speed changes within half a second where others share it, and what the pace tells of later is of no use.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from sepvit_deploy.conditions import Look, conditions_of
from sepvit_deploy.errors import OptionError, SepvitError
from sepvit_deploy.latency import Boundary, Failure, Point
from sepvit_deploy.runners.base import Once, Resident

if TYPE_CHECKING:
    from sepvit_deploy.runners.base import Array, Runner

ROUNDS = 20
"""Rounds that a point's samples and seconds are spread over."""
INPUTS = 4
"""Different inputs that the runs rotate through, so that no run meets its own data in the cache."""
LOOK_S = 0.2
"""Least time between two looks at the machine."""
SETTLED = 0.05
"""A warm-up ends when the medians of two successive thirds of its runs differ by less than this share."""
WARM_UP_S, MOST_WARM_UP_S = 0.5, 10.0
LEAST_WARM_UP_RUNS, MOST_WARM_UP_RUNS = 6, 100_000
"""It ends after the least runs at the earliest, and gives up after the most time, or the most runs."""
UNTIMED_S, MOST_UNTIMED_RUNS = 0.005, 1000
"""Time of the runs that open a turn, one at the least."""
STRETCH_S = 0.1
"""Time of timed runs from one pace to the next, one run at the least."""
MOST_TURN_S = 1.0
"""Time after which no run of a turn begins, so that every point has its part of every phase of the machine."""


Load = Callable[[int, int], "Array"]
"""The k-th of a few batches of so many pictures, decoded and prepared."""


@dataclass(frozen=True)
class Subject:
    """A runner and the batches to time it at.

    Attributes:
        load: gives pictures; None for random images.
        size: height and width of the images, for a runner that takes any.
    """

    runner: Runner
    batches: tuple[int, ...]
    load: Load | None = None
    size: tuple[int, int] | None = None

    @property
    def image(self) -> tuple[int | None, ...]:
        """(3, H, W) of its images; None for what nothing says."""
        asked = (None, *(self.size or (None, None)))
        return tuple(own or given for own, given in zip(self.runner.input_shape[1:], asked, strict=True))


@dataclass(frozen=True)
class Measured:
    """What came of a run.

    Attributes:
        gauges: what each gauge gave, round by round, until it failed.
        lost: why a gauge, or the pace, failed; without a pace no point has one.
        interrupted: Ctrl-C ended it; the points are what was measured until then.
    """

    points: tuple[Point, ...]
    failures: tuple[Failure, ...]
    gauges: dict[str, tuple[float, ...]]
    lost: dict[str, str]
    interrupted: bool


@dataclass(frozen=True)
class _Stretch:
    """Timed runs one after the other, and the pace of the machine around them."""

    runs: Sequence[tuple[float, float | None]]
    pace_ms: float | None


@dataclass
class _Job:
    """A point under measurement."""

    subject: Subject
    batch: int
    once: Once | None = None
    settled: bool = False
    failed: bool = False
    spent_ms: float = 0.0
    samples: list[float] = field(default_factory=list)
    enqueues: list[float] = field(default_factory=list)
    turns: int = 0
    stretches: list[int] = field(default_factory=list)
    paces: list[float] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)

    def keep(self, stretch: _Stretch) -> None:
        """Take a stretch of a turn in."""
        self.samples += [ms for ms, _ in stretch.runs]
        self.enqueues += [enqueue for _, enqueue in stretch.runs if enqueue is not None]
        self.stretches.append(len(stretch.runs))
        self.spent_ms += sum(ms for ms, _ in stretch.runs)
        if stretch.pace_ms is not None:
            self.paces.append(stretch.pace_ms)


class _Meter:
    """Takes the pace and the gauges; one that fails is not asked again."""

    def __init__(self, pace: Callable[[], float] | None, gauges: dict[str, Callable[[], float]]) -> None:
        self._pace, self._gauges = pace, gauges
        self.taken: dict[str, list[float]] = {name: [] for name in gauges}
        self.lost: dict[str, str] = {}

    @property
    def paced(self) -> bool:
        """True while there is a pace."""
        return self._pace is not None and "pace" not in self.lost

    def round(self) -> None:
        """Take every gauge once."""
        for name, gauge in self._gauges.items():
            if name not in self.lost and (ms := self._ask(name, gauge)) is not None:
                self.taken[name].append(ms)

    def pace(self) -> float | None:
        """Milliseconds; None without a pace."""
        return self._ask("pace", self._pace) if self._pace and self.paced else None

    def _ask(self, name: str, gauge: Callable[[], float]) -> float | None:
        try:
            return gauge()
        except SepvitError as error:
            self.lost[name] = str(error)
            return None


def bench(
    subjects: Sequence[Subject],
    *,
    boundary: Boundary = "compute",
    seconds: float = 3.0,
    least: int = 100,
    pace: Callable[[], float] | None = None,
    gauges: Mapping[str, Callable[[], float]] | None = None,
    look: Callable[[], Look] | None = None,
    progress: Callable[[float], None] = lambda share: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """Measure every subject at each of its batches, until all points have ``least`` samples and ``seconds``.

    An engine that fails at a batch is dropped there, and the rest goes on.

    Args:
        boundary: what is timed, see `latency.BOUNDARIES`; ``end-to-end`` needs subjects that load pictures.
        pace: milliseconds of something that never changes, taken before and after each `STRETCH_S` of timed runs.
        gauges: what else to take in every round.
        look: the conditions of the machine, taken between runs.
        progress: called with the share done, 0 to 1.
        clock: seconds, monotonic; for runners that time nothing on a device.

    Raises:
        OptionError: a batch that an engine does not take, an image size that nothing says, or nothing to load.
    """
    import random

    if least < 1:
        raise OptionError(f"least is {least}", expected="1 sample of each point, or more")
    jobs = [_Job(subject, batch) for subject in subjects for batch in subject.batches]
    for job in jobs:
        _require_batch(job)
        if boundary == "end-to-end" and job.subject.load is None:
            raise OptionError("end-to-end without pictures", expected="some to decode: --images DIR")
    failures: list[Failure] = []
    meter = _Meter(pace, dict(gauges or {}))
    watch = _Watch(look)
    shuffle = random.Random(0)
    interrupted = False
    share = 0.0
    inputs_of = functools.cache(_inputs)
    try:
        for job in jobs:
            with _failing(job, failures):
                job.once = _once(job, boundary, inputs_of, clock)
                job.settled = _warm_up(job.once, seconds)
        while open_jobs := [job for job in jobs if not job.failed and not _done(job, seconds, least)]:
            meter.round()
            shuffle.shuffle(open_jobs)
            for job in open_jobs:
                with _failing(job, failures):
                    for stretch in _turn(job, meter, seconds, least):
                        job.keep(stretch)
                    watch.look_at(job)
                share = max(share, _share(jobs, seconds, least))
                progress(share)
    except KeyboardInterrupt:
        interrupted = True
    paced = "pace" not in meter.lost
    points = [_point(job, _done(job, seconds, least), paced=paced) for job in jobs if job.samples]
    taken = {name: tuple(found) for name, found in meter.taken.items()}
    return Measured(tuple(points), tuple(failures), taken, meter.lost, interrupted)


def _require_batch(job: _Job) -> None:
    runner = job.subject.runner
    fixed = runner.input_shape[0]
    if None in job.subject.image:
        raise OptionError(f"{runner.name} has no fixed image size", expected="the size to time it at")
    if fixed not in (None, job.batch):
        raise OptionError(f"--batch {job.batch}", expected=f"{fixed}, the only batch of {runner.name}")


@contextlib.contextmanager
def _failing(job: _Job, failures: list[Failure]) -> Iterator[None]:
    """Drop a point whose engine fails, and keep what it said."""
    try:
        yield
    except SepvitError as error:
        job.failed = True
        failures.append(Failure(job.subject.runner.name, job.batch, str(error)))


def _inputs(load: Load | None, shape: tuple[int, ...]) -> list[Array]:
    """The batches that runs rotate through, of a shape (B, 3, H, W); engines of one preprocessing share them."""
    import numpy as np

    if load is not None:
        return [load(shape[0], k) for k in range(INPUTS)]
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, dtype=np.float32) for _ in range(INPUTS)]


def _once(
    job: _Job,
    boundary: Boundary,
    inputs_of: Callable[[Load | None, tuple[int, ...]], list[Array]],
    clock: Callable[[], float],
) -> Once:
    """One timed run of a point, at a boundary."""
    runner, load, batch = job.subject.runner, job.subject.load, job.batch
    if boundary == "end-to-end" and load is not None:

        def whole(k: int) -> tuple[float, None]:
            start = clock()
            runner.run(load(batch, k % INPUTS))
            return (clock() - start) * 1000, None

        return whole
    inputs = inputs_of(load, (batch, *(dim or 0 for dim in job.subject.image)))
    if boundary == "compute" and isinstance(runner, Resident):
        return runner.resident(inputs)

    def copied(k: int) -> tuple[float, None]:
        images = inputs[k % INPUTS]
        start = clock()
        runner.run(images)
        return (clock() - start) * 1000, None

    return copied


def _warm_up(once: Once, seconds: float) -> bool:
    """Run until the last third of the runs has the median of the third before; False if it never has.

    The first run is left out of it: what is compiled, allocated or tuned then takes any time.
    """
    once(0)
    least_ms, most_ms = 1000 * min(WARM_UP_S, seconds), 1000 * MOST_WARM_UP_S
    times: list[float] = []
    spent = 0.0
    look_at = LEAST_WARM_UP_RUNS  # and not after every run: sorting them would take longer than a fast engine
    while (spent < most_ms or len(times) < LEAST_WARM_UP_RUNS) and len(times) < MOST_WARM_UP_RUNS:
        times.append(once(len(times))[0])
        spent += times[-1]
        if len(times) >= look_at and spent >= least_ms:
            third = len(times) // 3
            before, now = median(times[-2 * third : -third]), median(times[-third:])
            if abs(now - before) <= SETTLED * before:
                return True
            look_at = len(times) + third
    return False


def _turn(job: _Job, meter: _Meter, seconds: float, least: int) -> list[_Stretch]:
    """A point's part of a round: one stretch, or several with a pace between them; nothing where it is cut short."""
    once = job.once
    assert once is not None
    runs = max(1, -(-least // ROUNDS))
    until_ms, most_ms = 1000 * seconds / ROUNDS, 1000 * MOST_TURN_S
    stretch_ms = 1000 * STRETCH_S if meter.paced else math.inf
    count, taken, spent = len(job.samples), 0, 0.0
    found: list[_Stretch] = []
    with _no_collection():
        idle, untimed = 0.0, 0
        while idle < UNTIMED_S * 1000 and untimed < MOST_UNTIMED_RUNS:
            idle += once(count)[0]
            untimed += 1
        before = meter.pace()
        while (taken < runs or spent < until_ms) and spent < most_ms:
            timed: list[tuple[float, float | None]] = []
            end = spent + stretch_ms
            while (taken < runs or spent < until_ms) and spent < min(end, most_ms):
                timed.append(once(count + taken))
                spent += timed[-1][0]
                taken += 1
            after = meter.pace()
            found.append(_Stretch(timed, (before + after) / 2 if before and after else None))
            before = after
    job.turns += 1
    return found


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's collector out of what is timed."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Watch:
    """Looks at the machine, now and then, on behalf of the point whose turn it was."""

    def __init__(self, look: Callable[[], Look] | None) -> None:
        self._look = look
        self._next = -math.inf

    def look_at(self, job: _Job) -> None:
        if self._look is None or (time.monotonic() < self._next and job.looks):
            return
        job.looks.append(self._look())
        self._next = time.monotonic() + LOOK_S


def _done(job: _Job, seconds: float, least: int) -> bool:
    return len(job.samples) >= least and job.spent_ms >= seconds * 1000 and job.turns >= min(ROUNDS, least)


def _share(jobs: Sequence[_Job], seconds: float, least: int) -> float:
    shares = [
        1.0
        if job.failed or _done(job, seconds, least)
        else min(0.999, len(job.samples) / least, job.spent_ms / (seconds * 1000) if seconds else 1.0)
        for job in jobs
    ]
    return sum(shares) / len(shares)


def _point(job: _Job, complete: bool, *, paced: bool) -> Point:
    return Point(
        engine=job.subject.runner.name,
        batch=job.batch,
        samples_ms=tuple(job.samples),
        stretches=tuple(job.stretches),
        pace_ms=tuple(job.paces) if paced else (),
        enqueue_ms=tuple(job.enqueues),
        settled=job.settled,
        complete=complete and not job.failed,
        conditions=conditions_of(job.looks),
    )
