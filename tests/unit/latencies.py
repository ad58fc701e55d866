"""Results of benchmarks that never ran, for the tests of what is made of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sepvit_deploy.latency import Accuracy, Engine, Machine, Point, Rates, Results, Work

ROUNDS, RUNS = 20, 5


def engine(name: str, **more: object) -> Engine:
    made = Engine(
        name=name,
        kind="plan",
        file=name,
        sha256=f"{abs(hash(name)):064x}"[:64],
        bytes=70_000_000,
        precision="fp16",
        variant="t",
        runtime="TensorRT",
        builder_version="10.13.3.9",
        threads=None,
        cuda_graph=False,
        products={"FP16": 93},
        work=Work({"FP16": 4_500_000_000}, 62_000_000, 606_112),
        blocks_ms={},
        precision_shares={"FP16": 0.9, "FP32": 0.1},
        accuracy=Accuracy("imagenet", "imagenet", 50_000, 41_000),
    )
    return replace(made, **more)  # type: ignore[arg-type]


def point(
    name: str = "t.plan", batch: int = 8, ms: float = 10.0, *, seed: int = 0, noise: float = 0.01, pace: float = 1.0,
    **more: object,
) -> Point:  # fmt: skip
    """A hundred samples around ``ms``, on a machine whose pace wanders."""
    rng = np.random.default_rng([seed, batch])
    machine = pace * rng.lognormal(0, 0.1, ROUNDS)
    samples = ms * np.repeat(machine, RUNS) * rng.lognormal(0, noise, ROUNDS * RUNS)
    made = Point(name, batch, tuple(samples.tolist()), (RUNS,) * ROUNDS, pace_ms=tuple(machine.tolist()))
    return replace(made, **more)  # type: ignore[arg-type]


def results(*points: Point, engines: tuple[Engine, ...] | None = None, **more: object) -> Results:
    names = dict.fromkeys(p.engine for p in points)
    made = Results(
        command="sepvit-deploy bench --engine t.plan",
        started="2026-01-02T03:04:05+00:00",
        boundary="compute",
        seconds=3.0,
        least=100,
        machine=Machine("NVIDIA L4", "linux x86_64", "AMD EPYC", 8, None, "580.65.06", {"sepvit-deploy": "0.1.0"}),
        pace="TensorRT|FP16",
        engines=engines if engines is not None else tuple(map(engine, names)),
        points=points,
        rates=(Rates("TensorRT", {"FP16": 1e14, "INT8": 2e14, "FP32": 2e13}, 3e11),),
        failures=(),
        interrupted=False,
        notes=(),
    )
    return replace(made, **more)  # type: ignore[arg-type]
