"""Latency per batch: warmed up until it settles, engines and batches interleaved, with the spread beside the median."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sepvit_deploy import gpu
from sepvit_deploy.errors import OptionError

if TYPE_CHECKING:
    from sepvit_deploy.runners.base import Array, Runner

WINDOW = 5
SETTLED = 0.05
"""Warm-up ends when the medians of two successive windows of runs differ by less than this share."""
MAX_WARMUP_RUNS = 40
INPUTS = 4
"""Different inputs that the runs rotate through, so that no run meets its own data in the cache."""


@dataclass(frozen=True)
class Point:
    """The latency of one engine at one batch, in milliseconds for the whole batch.

    Attributes:
        spread: (p90 - p10) / p50.
        settled: False where warm-up ended before the median settled; the figures are then not to be trusted.
    """

    engine: str
    batch: int
    samples_ms: tuple[float, ...]
    settled: bool

    @property
    def p50_ms(self) -> float:
        return self.quantile_ms(0.5)

    def quantile_ms(self, share: float) -> float:
        """The sample at ``share`` of the sorted ones, linearly interpolated."""
        ordered = sorted(self.samples_ms)
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    @property
    def spread(self) -> float:
        return (self.quantile_ms(0.9) - self.quantile_ms(0.1)) / self.p50_ms

    @property
    def images_per_s(self) -> float:
        return 1000 * self.batch / self.p50_ms


def conditions(threads: int | None, *, on_gpu: bool = False) -> dict[str, object]:
    """What the figures depend on: processor, cores, load, threads; and the GPU, where something runs there."""
    import platform

    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), model)
    devices = gpu.devices() if on_gpu else ()
    return {
        "boundary": f"end to end{'' if on_gpu else ' on the CPU'}, input and output in host memory",
        "device": " and ".join([*(device.name for device in devices[:1]), model]),
        "cores": os.cpu_count(),
        "threads": threads or "the runtime's choice",
        "load_1min": round(os.getloadavg()[0], 2),
    }


def bench(
    runners: Sequence[Runner],
    batches: Sequence[int],
    *,
    seconds: float = 3.0,
    least: int = 10,
    progress: Callable[[float], None] = lambda share: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Point]:
    """Measure every runner at every batch.

    The points take turns in random order, one run each, until all have ``least`` samples and ``seconds`` of their own.

    Args:
        progress: called with the share done, 0 to 1.
        clock: seconds, monotonic.

    Raises:
        OptionError: a batch that an engine with a fixed batch does not take, or ``least`` below 1.
    """
    import random

    import numpy as np

    if least < 1:
        raise OptionError(f"least is {least}", expected="1 sample of each point, or more")
    rng = np.random.default_rng(0)
    jobs: list[tuple[Runner, int, list[Array]]] = []
    for runner in runners:
        fixed, channels, *size = runner.input_shape
        if channels is None or None in size:
            raise OptionError(f"{runner.name} has no fixed image size", expected="a file as export writes it")
        for batch in batches:
            if fixed not in (None, batch):
                raise OptionError(f"--batch {batch}", expected=f"{fixed}, the only batch of {runner.name}")
            shape = (batch, channels, *size)
            jobs.append((runner, batch, [rng.standard_normal(shape, dtype=np.float32) for _ in range(INPUTS)]))  # type: ignore[arg-type]

    def run_ms(job: int, k: int) -> float:
        runner, _, inputs = jobs[job]
        images = inputs[k % INPUTS]
        start = clock()
        runner.run(images)
        return (clock() - start) * 1000

    settled = [_warm_up(functools.partial(run_ms, j), seconds) for j in range(len(jobs))]
    samples: list[list[float]] = [[] for _ in jobs]
    spent_ms = [0.0] * len(jobs)  # kept, since summing again each time would cost more than a fast engine
    shuffle = random.Random(0)
    while open_jobs := [j for j in range(len(jobs)) if len(samples[j]) < least or spent_ms[j] < seconds * 1000]:
        shuffle.shuffle(open_jobs)
        for j in open_jobs:
            samples[j].append(run_ms(j, len(samples[j])))
            spent_ms[j] += samples[j][-1]
        done = [
            min(1.0, len(points) / least, spent / (seconds * 1000) if seconds else 1.0)
            for points, spent in zip(samples, spent_ms, strict=True)
        ]
        progress(sum(done) / len(done))
    return [
        Point(runner.name, batch, tuple(points), ok)
        for (runner, batch, _), points, ok in zip(jobs, samples, settled, strict=True)
    ]


def _warm_up(run: Callable[[int], float], seconds: float) -> bool:
    """Run until the moving median settles; False if it never does."""
    from statistics import median

    times: list[float] = []
    while len(times) < MAX_WARMUP_RUNS:
        times.append(run(len(times)))
        if len(times) >= 2 * WINDOW:
            before = median(times[-2 * WINDOW : -WINDOW])
            now = median(times[-WINDOW:])
            if abs(now - before) <= SETTLED * before:
                return True
        elif sum(times) > max(seconds, 1.0) * 1000 and len(times) >= 3:
            return abs(times[-1] - times[-2]) <= SETTLED * times[-2]  # slow engines: each run is long enough by itself
    return False
