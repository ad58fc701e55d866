"""Results of a benchmark, as they are kept in a file: who was timed, where, under which conditions, every sample.

A point is one engine at one batch. Its runs were taken in rounds: in each round every point had one turn, in random
order, of a few runs. On a CPU a turn is cut into stretches of a tenth of a second, and around each of them the pace of
the machine itself was taken: the time of a matrix product that never changes. What a machine does to all of its
programs at once (clocks, neighbours) shows in the pace, so two points, or one point of two files, are compared at equal
pace. On a GPU, where clocks and power do not touch all work alike, there is no pace, and a turn is one stretch.

Times are milliseconds of a whole batch. The file is JSON, schema 1: the records below, a key for each attribute.
`results.schema.json` beside this module says the same for other programs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal

from sepvit_deploy.artifact import written
from sepvit_deploy.building import Precision
from sepvit_deploy.errors import InputError
from sepvit_deploy.gpu import Device
from sepvit_deploy.records import later, record
from sepvit_deploy.spec import MAX_BATCH

SCHEMA = 1
MAX_BYTES = 1 << 30
LEAST_MS, MOST_MS = 1e-6, 1e9
LEAST_RATE, MOST_RATE = 1.0, 1e21
"""Bounds of a time and of a rate: beyond them figures are none, and sums over them overflow."""
LEAST_STRETCHES = 5
"""Fewer rounds resolve nothing."""
Boundary = Literal["compute", "copies", "end-to-end"]
BOUNDARIES: dict[Boundary, str] = {
    "compute": "the device alone: images and outputs stay where it computes",
    "copies": "from images in host memory to outputs in host memory",
    "end-to-end": "from encoded pictures to outputs in host memory: decoding, preparing, copying, computing",
}
Kind = Literal["plan", "onnx", "torch", "torch-compile"]


@dataclass(frozen=True)
class Range:
    """What was seen of a quantity: the least, the median, the most."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Range | None:
        """None where nothing was seen."""
        return cls(min(values), median(values), max(values)) if values else None


@dataclass(frozen=True)
class Conditions:
    """The machine while a point was measured, looked at between its runs.

    Attributes:
        looks: how often.
        load: processes that want to run, averaged over a minute.
        steal: share of the processors' time, 0 to 1, that the hypervisor gave to others.
        throttled: share of the looks, 0 to 1, at which the GPU said that it was held back, by the reason it gave; None
            where it said nothing.
    """

    looks: int = 0
    load: Range | None = None
    steal: float | None = None
    cpu_mhz: Range | None = None
    gpu_sm_mhz: Range | None = None
    gpu_memory_mhz: Range | None = None
    gpu_power_w: Range | None = None
    gpu_temperature_c: Range | None = None
    throttled: dict[str, float] | None = None


@dataclass(frozen=True)
class Machine:
    """Where it was measured.

    Attributes:
        device: what results are of: the GPU's name, or the processor's where nothing ran on a GPU.
        gpu: of everything that ran on one; driver: NVIDIA's version of it, where it tells.
        versions: of Python, this package and every runtime that took part.
    """

    device: str
    platform: str
    processor: str
    cores: int
    gpu: Device | None
    driver: str | None
    versions: dict[str, str]


@dataclass(frozen=True)
class Work:
    """What a graph needs, however it is run.

    Attributes:
        macs: multiply-accumulates of one image by the type that they are in: FP32, FP16, INT8; of a file of any size at
            the size that was timed.
        weight_bytes: constants, read once for a batch.
        image_bytes: the input and the outputs of one image.
    """

    macs: dict[str, int]
    weight_bytes: int
    image_bytes: int


@dataclass(frozen=True)
class Rates:
    """What a device gives a runtime at best, measured between the points of the same run.

    Attributes:
        operations_per_s: of a large matrix product by its type; a multiply-accumulate is two.
        bytes_per_s: read and written, of a large copy; None where it could not be measured.
    """

    runtime: str
    operations_per_s: dict[str, float]
    bytes_per_s: float | None


@dataclass(frozen=True)
class Accuracy:
    """Of an engine's file on pictures, as `evaluate --json` gave it.

    Attributes:
        image_set: name of the set; image_set_sha256: of the files in it.
        top1: pictures that were right.
    """

    image_set: str
    image_set_sha256: str
    images: int
    top1: int

    def __post_init__(self) -> None:
        if not 0 <= self.top1 <= self.images or self.images < 1:
            raise ValueError(f"{self.top1} right of {self.images} pictures")


@dataclass(frozen=True)
class Engine:
    """One file on one runtime, as it was timed.

    Attributes:
        name: what points call it.
        file: its name, or torch:VARIANT.
        runtime: ``TensorRT``, ``ONNX Runtime, CPU``, ``torch, CUDA``, ...; versions of it in `Machine`.
        threads: of a CPU; None for the runtime's choice.
        builder_version: of a plan.
        variant: of SepViT; "" for another model.
        products: matrix products and convolutions by type, as the file has them.
        work: None where the graph is not at hand.
        blocks_ms: time of each block, of an engine that was inspected on its GPU when it was built.
        precision_shares: share of its time by type, likewise.
        image_size: height and width of the images; None in results from before it was kept.
    """

    name: str
    kind: Kind
    file: str
    sha256: str | None
    bytes: int | None
    precision: Precision
    variant: str
    runtime: str
    builder_version: str | None
    threads: int | None
    cuda_graph: bool
    products: dict[str, int]
    work: Work | None
    blocks_ms: dict[str, float]
    precision_shares: dict[str, float]
    accuracy: Accuracy | None
    image_size: tuple[int, int] | None = later(None)


@dataclass(frozen=True)
class Point:
    """One engine at one batch.

    Attributes:
        samples_ms: one for each timed run, in the order in which they were taken.
        stretches: how many of them were taken one after the other, each time.
        pace_ms: the machine's pace around each stretch; () where it was not taken.
        enqueue_ms: of the host, in the enqueue alone, for each run on a GPU; else ().
        settled: False where the warm-up ended before the median settled; the figures are then not to be trusted.
        complete: False where the run was cut off before the point had its samples and seconds.
    """

    engine: str
    batch: int
    samples_ms: tuple[float, ...]
    stretches: tuple[int, ...]
    pace_ms: tuple[float, ...] = ()
    enqueue_ms: tuple[float, ...] = ()
    settled: bool = True
    complete: bool = True
    conditions: Conditions = Conditions()

    @cached_property
    def _ordered(self) -> list[float]:
        return sorted(self.samples_ms)

    def quantile_ms(self, share: float) -> float:
        """The sample at ``share`` of the sorted ones, linearly interpolated."""
        place = share * (len(self._ordered) - 1)
        low = int(place)
        high = min(low + 1, len(self._ordered) - 1)
        return self._ordered[low] + (place - low) * (self._ordered[high] - self._ordered[low])

    @property
    def p50_ms(self) -> float:
        return self.quantile_ms(0.5)

    @property
    def spread(self) -> float:
        """(p90 - p10) / p50."""
        return (self.quantile_ms(0.9) - self.quantile_ms(0.1)) / self.p50_ms

    @property
    def images_per_s(self) -> float:
        return 1000 * self.batch / self.p50_ms

    @cached_property
    def stretch_ms(self) -> tuple[float, ...]:
        """The median of each stretch."""
        ends = pairwise(accumulate(self.stretches, initial=0))
        return tuple(median(self.samples_ms[start:end]) for start, end in ends)

    @cached_property
    def paced(self) -> tuple[float, ...]:
        """The median of each stretch over the pace that the machine had then; () where no pace was taken."""
        return tuple(ms / pace for ms, pace in zip(self.stretch_ms, self.pace_ms, strict=True)) if self.pace_ms else ()

    def to_dict(self) -> dict[str, Any]:
        """The figures beside the samples, as plain JSON."""
        quantiles = {f"p{share}_ms": self.quantile_ms(share / 100) for share in (50, 90, 95, 99)}
        return {
            "engine": self.engine,
            "batch": self.batch,
            **quantiles,
            "min_ms": self._ordered[0],
            "spread": self.spread,
            "images_per_s": self.images_per_s,
            "samples": len(self.samples_ms),
            "enqueue_p50_ms": median(self.enqueue_ms) if self.enqueue_ms else None,
            "settled": self.settled,
            "complete": self.complete,
        }


@dataclass(frozen=True)
class Failure:
    """What an engine that failed said, and at which batch; what it had measured before is kept."""

    engine: str
    batch: int
    error: str


@dataclass(frozen=True)
class Results:
    """One run of `bench`.

    Attributes:
        command: that made it; started: in UTC.
        seconds, least: what each point was to have.
        pace: what the pace is the time of; None where it was not taken.
        rates: by the runtime of `Engine`.
        interrupted: it was stopped before all points were complete.
        notes: what else a reader of the figures should know.
    """

    command: str
    started: str
    boundary: Boundary
    seconds: float
    least: int
    machine: Machine
    pace: str | None
    engines: tuple[Engine, ...]
    points: tuple[Point, ...]
    rates: tuple[Rates, ...]
    failures: tuple[Failure, ...]
    interrupted: bool
    notes: tuple[str, ...]

    def __post_init__(self) -> None:
        names = [engine.name for engine in self.engines]
        if len(set(names)) < len(names):
            raise ValueError("two engines of one name")
        if sizes := [e.image_size for e in self.engines if e.image_size and min(e.image_size) < 1]:
            raise ValueError(f"images of {sizes[0]}")
        for point in self.points:
            paces = len(point.pace_ms) in (0, len(point.stretches))
            enqueues = len(point.enqueue_ms) in (0, len(point.samples_ms))
            if point.engine not in names:
                raise ValueError(f"a point of {point.engine!r:.60}, which is no engine of this run")
            if not 1 <= point.batch <= MAX_BATCH:
                raise ValueError(f"{point.engine} at batch {point.batch:.3g}, beyond 1 to {MAX_BATCH}")
            if not point.samples_ms or not LEAST_MS <= min(point.samples_ms) <= max(point.samples_ms) <= MOST_MS:
                raise ValueError(f"{point.engine} at batch {point.batch}: no samples, or times that are none")
            if sum(point.stretches) != len(point.samples_ms) or min(point.stretches) < 1 or not (paces and enqueues):
                raise ValueError(f"{point.engine} at batch {point.batch}: its stretches are not its samples'")
            if point.pace_ms and not LEAST_MS <= min(point.pace_ms) <= max(point.pace_ms) <= MOST_MS:
                raise ValueError(f"{point.engine} at batch {point.batch}: a pace that is none")
        if len({(point.engine, point.batch) for point in self.points}) < len(self.points):
            raise ValueError("one point twice")
        for rates in self.rates:
            found = [*rates.operations_per_s.values(), *([] if rates.bytes_per_s is None else [rates.bytes_per_s])]
            if not all(LEAST_RATE <= rate <= MOST_RATE for rate in found):
                raise ValueError(f"rates of {rates.runtime} that are none")

    def engine(self, name: str) -> Engine:
        """The engine of a point."""
        return next(engine for engine in self.engines if engine.name == name)

    def point(self, engine: str, batch: int) -> Point | None:
        """An engine's point at a batch, where it was measured."""
        return next((p for p in self.points if p.engine == engine and p.batch == batch), None)

    def curve(self, engine: str) -> tuple[Point, ...]:
        """An engine's points, from the smallest batch on."""
        return tuple(sorted((p for p in self.points if p.engine == engine), key=lambda point: point.batch))

    def limit_ms(self, point: Point) -> float | None:
        """The least time that a point's work takes at the best rates of its device; None where either is unknown.

        The products' operations at the rate of their type, of the runtimes measured the quickest one's, or the weights,
        inputs and outputs at the rate of a copy, whichever takes longer. What stays in a cache from one run to the next
        is read faster than a large copy, so a small file may be beyond it. It is the roofline (S. Williams,
        A. Waterman, D. Patterson, "Roofline: an insightful visual performance model for multicore architectures",
        Communications of the ACM 52, 2009).
        """
        engine = self.engine(point.engine)
        operations: dict[str, float] = {}
        copies = [0.0]
        for rates in self.rates:
            if on_cpu(rates.runtime) == on_cpu(engine.runtime):
                copies.append(rates.bytes_per_s or 0.0)
                for name, rate in rates.operations_per_s.items():
                    operations[name] = max(rate, operations.get(name, 0.0))
        if engine.work is None or not engine.work.macs.keys() <= operations.keys():
            return None
        seconds = sum(2 * macs * point.batch / operations[name] for name, macs in engine.work.macs.items())
        if max(copies):
            moved = engine.work.weight_bytes + point.batch * engine.work.image_bytes
            seconds = max(seconds, moved / max(copies))
        return 1000 * seconds or None


def write_results(results: Results, path: Path) -> None:
    """Write a file of results, whole or not at all.

    Raises:
        OutputError: the place cannot be written, or the disk is full.
    """
    document = {"schema": SCHEMA, "kind": "latency", **asdict(results)}
    for point in document["points"]:
        for key in ("samples_ms", "pace_ms", "enqueue_ms"):  # nanoseconds are below any clock's noise
            point[key] = [float(f"{ms:.6g}") for ms in point[key]]
    with written(path) as temporary:
        temporary.write_text(json.dumps(document, allow_nan=False) + "\n", encoding="utf-8")


def read_results(path: Path) -> Results:
    """Read a file of results.

    Raises:
        InputError: it is none, is cut off, contradicts itself, or has another schema.
    """
    try:
        if not os.path.isfile(path):
            raise InputError(
                f"{path} is no file", expected="results", hint="type: sepvit-deploy bench --output results.json"
            )
        if os.stat(path).st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES >> 30} GiB", expected="a file of results")
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is no JSON, or is cut off ({error})", expected="what bench --output writes"
        ) from error
    if not is_results(document):
        raise InputError(f"{path} holds no latencies", expected="what bench --output writes")
    if document["schema"] != SCHEMA:
        newer = type(document["schema"]) is int and document["schema"] > SCHEMA
        raise InputError(
            f"{path} has schema {document['schema']!r:.20}",
            expected=f"schema {SCHEMA}",
            hint="it is of a newer version: type  pip install -U sepvit-deploy" if newer else "measure again",
        )
    try:
        return record(Results, {key: value for key, value in document.items() if key not in ("schema", "kind")})
    except (ValueError, TypeError, ArithmeticError) as error:
        raise InputError(f"{path} contradicts itself ({error})", expected="what bench --output writes") from error


def on_cpu(runtime: str) -> bool:
    """True of a runtime that computes on the processor."""
    return runtime.endswith("CPU")


def is_results(document: object) -> bool:
    """True of a JSON document of `write_results`, of whatever schema."""
    return isinstance(document, dict) and document.get("kind") == "latency" and "schema" in document
