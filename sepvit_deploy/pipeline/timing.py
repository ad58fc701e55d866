"""Files, plans and models in torch, timed in one interleaved run beside what their device gives at best."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal, cast

from sepvit_deploy import artifact, builders, limit
from sepvit_deploy.at_size import at_size
from sepvit_deploy.bench import Load, Subject
from sepvit_deploy.bench import bench as measure
from sepvit_deploy.building import BUILDER_NAMES, BuildRequest, Size, size_text
from sepvit_deploy.conditions import Watcher, machine
from sepvit_deploy.engine import engine_from_onnx
from sepvit_deploy.errors import GraphError, InputError, OptionError, PlanError, SepvitError
from sepvit_deploy.images import image_files, load_batch
from sepvit_deploy.inspection import Inspection
from sepvit_deploy.latency import Accuracy, Boundary, Engine, Kind, Point, Rates, Results, Work, on_cpu
from sepvit_deploy.limit import ProductType
from sepvit_deploy.network import products_of_graph
from sepvit_deploy.pipeline.models import OpenedPlan, OpenedTorch, open_model
from sepvit_deploy.pipeline.opened import Opened, OpenedOnnx, Progress, Report, Running, Warn
from sepvit_deploy.pipeline.provenance import chain
from sepvit_deploy.records import record
from sepvit_deploy.runners.base import Resident, Runner
from sepvit_deploy.runners.batches import Profiled, batch_ranges
from sepvit_deploy.spec import Preprocessing
from sepvit_deploy.variants import count_macs, variant_named
from sepvit_deploy.work import NAMES, work_of

if TYPE_CHECKING:
    from sepvit_deploy.runners.base import Array

CudaGraph = Literal["on", "off", "both"]
ON_GPU, ON_CPU = (1, 2, 4, 8, 16, 32, 64), (1, 8)
"""Batches to measure where none are asked for."""
STEAL = 0.02
"""Share of the processors' time given to others, from which on a note says so."""
COPY = "|copy"
"""Ends the name of a gauge that copies, ``CPU`` or ``GPU`` before it; the others are products, by their type."""
_MAX_DOCUMENT = 1 << 26
_VERSIONS = ("tensorrt", "tensorrt_rtx_cu13_bindings", "onnxruntime-gpu", "cuda-bindings", "pycuda")


@dataclass(frozen=True)
class _Entry:
    """A source as it is timed: with a CUDA graph or without."""

    opened: Opened
    how: Running
    name: str


def bench(
    sources: Sequence[str | Path],
    batches: Sequence[int] | None = None,
    *,
    how: Running = Running(),  # noqa: B008 - frozen
    boundary: Boundary = "compute",
    cuda_graph: CudaGraph = "off",
    seconds: float = 3.0,
    least: int = 100,
    images: Path | None = None,
    image_size: Size | None = None,
    accuracy: Sequence[Path] = (),
    limits: bool = True,
    command: str = "",
    report: Report = lambda step: None,
    progress: Progress = lambda share: None,
    warn: Warn = lambda text: None,
) -> Results:
    """Time everything in one run.

    Args:
        sources: ONNX files, plans, ``torch:VARIANT[:WEIGHTS]`` and ``torch-compile:VARIANT[:WEIGHTS]``.
        batches: None for `ON_GPU` or `ON_CPU`, as far as an engine takes them.
        cuda_graph: replay plans from a CUDA graph, or time each with one and without.
        images: a folder of pictures to run, instead of random numbers; needed for ``end-to-end``.
        image_size: height and width to time files of any size at; by default the size in their passports. Pictures are
            resized straight to it, so that they fit in one batch.
        accuracy: what ``evaluate --json`` printed of these files, to be kept with their latencies.
        limits: measure the device's rates and its pace as well.
        command: that the results say they were made by.
        warn: told of engines that fail while the others go on.

    Raises:
        InputError: a source, an option or a picture is unusable; nothing was measured then.
    """
    if boundary == "end-to-end" and images is None:
        raise OptionError("--boundary end-to-end without --images", expected="pictures to decode: --images DIR")
    pictures = image_files(images) if images else []
    report("loading")
    entries = _entries(sources, how, cuda_graph, warn)
    on_gpu = any(entry.how.provider != "cpu" or isinstance(entry.opened, OpenedPlan) for entry in entries)
    known = _accuracies(accuracy, {entry.opened.sha256 for entry in entries})
    notes: list[str] = []
    with _given_back(notes) as stack:
        runners = [stack.enter_context(entry.opened.running(entry.how, name=entry.name)) for entry in entries]
        sizes = [_size(runner, entry.opened, image_size) for entry, runner in zip(entries, runners, strict=True)]
        loader = functools.cache(lambda preprocessing: _loader(preprocessing, pictures))
        subjects = [
            Subject(
                runner,
                _batches(runner, batches, size, on_gpu=on_gpu),
                loader(_to_size(entry.opened.require_passport()[2], size)) if pictures else None,
                size,
            )
            for entry, runner, size in zip(entries, runners, sizes, strict=True)
        ]
        engines = [_engine(entry, size, known, notes) for entry, size in zip(entries, sizes, strict=True)]
        gauges: dict[str, Callable[[], float]] = {}
        if limits:
            report("loading what the device is measured with")
            gauges = _gauges(entries, engines, stack, notes)
        # On a GPU no pace: what slows a large product there, power and clocks, does not slow small batches as much.
        pace = next((name for name in gauges if name.endswith("|FP32")), None) if not on_gpu else None
        watcher = stack.enter_context(Watcher(on_gpu=on_gpu))
        notes += [watcher.note] if watcher.note else []
        report("warming up")
        started = datetime.now(UTC).isoformat(timespec="seconds")
        found = measure(
            subjects,
            boundary=boundary,
            seconds=seconds,
            least=least,
            pace=gauges[pace] if pace else None,
            gauges=gauges,
            look=watcher,
            progress=progress,
        )
    notes += [f"{name.replace('|', ', ')} was not measured to the end: {why}" for name, why in found.lost.items()]
    for failure in found.failures:
        warn(f"{failure.engine} failed at batch {failure.batch}, and the rest went on: {failure.error}")
    notes += _notes(found.points, engines)
    return Results(
        command=command,
        started=started,
        boundary=boundary,
        seconds=seconds,
        least=least,
        machine=machine(_versions(entries), on_gpu=on_gpu, driver=watcher.driver),
        pace=pace if "pace" not in found.lost else None,
        engines=tuple(engines),
        points=found.points,
        rates=_rates(found.gauges),
        failures=found.failures,
        interrupted=found.interrupted,
        notes=tuple(dict.fromkeys(notes)),
    )


@contextlib.contextmanager
def _given_back(notes: list[str]) -> Iterator[contextlib.ExitStack]:
    """A stack of what is open; an engine that broke its device cannot be given back, which costs no figure."""
    stack = contextlib.ExitStack()
    try:
        yield stack
    except BaseException:
        with contextlib.suppress(SepvitError):
            stack.close()
        raise
    try:
        stack.close()
    except SepvitError as error:
        notes.append(f"not everything was given back: {error}")


def _entries(sources: Sequence[str | Path], how: Running, cuda_graph: CudaGraph, warn: Warn) -> list[_Entry]:
    opened = [open_model(source, trust=how.trust, warn=warn) for source in sources]
    names = [str(file.path) if isinstance(file, OpenedTorch) else file.path.name for file in opened]
    if len(set(names)) < len(names):
        names = [str(source) for source in sources]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise OptionError(f"--engine {twice} is given twice", expected="engines that differ")
    if len({file.plan.builder for file in opened if isinstance(file, OpenedPlan)}) > 1:  # they share C++ symbols
        raise OptionError("plans of TensorRT and of TensorRT-RTX in one run", expected="those of one builder")
    plain = replace(how, cuda_graph=False, fused=True)
    found = []
    for file, name in zip(opened, names, strict=True):
        is_plan = isinstance(file, OpenedPlan)
        if cuda_graph != "on" or not is_plan:
            found.append(_Entry(file, plain, name))
        if cuda_graph != "off" and is_plan:
            found.append(_Entry(file, replace(plain, cuda_graph=True), f"{name}, CUDA graph"))
    if cuda_graph != "off" and not any(entry.how.cuda_graph for entry in found):
        raise OptionError(f"--cuda-graph {cuda_graph} without a plan", expected="--engine FILE.plan")
    return found


def _size(runner: Runner, opened: Opened, asked: Size | None) -> Size:
    """Height and width of the images to time a runner with.

    Raises:
        OptionError: it has one size and another was asked for, or takes any and nothing says which.
    """
    _, _, height, width = runner.input_shape
    if height is None or width is None:
        size = asked or (opened.spec.size if opened.spec else None)
        if size is None:
            raise OptionError(f"{runner.name} takes images of any size", expected="the size to time: --image-size HxW")
        return size
    if asked is not None and asked != (height, width):
        raise OptionError(
            f"--image-size {size_text(asked)} with {runner.name}",
            expected=f"{height}x{width}, its only size",
            hint="for another one, export it with --image-size dynamic",
        )
    return height, width


def _batches(runner: Runner, asked: Sequence[int] | None, size: Size, *, on_gpu: bool) -> tuple[int, ...]:
    """The batches to time a runner at.

    Raises:
        OptionError: one was asked for that it does not take, or it takes none of the size.
    """
    ranges = batch_ranges(runner, size)
    if isinstance(runner, Profiled) and not ranges:
        raise OptionError(
            f"--image-size {size_text(size)} with {runner.name}",
            expected=" or ".join(profile.takes for profile in runner.profiles),
            hint=f"build it with --profile 1@{size_text(size)}",
        )
    wanted = asked if asked is not None else ON_GPU if on_gpu else ON_CPU
    found = tuple(n for n in sorted(set(wanted)) if not ranges or any(low <= n <= high for low, high in ranges))
    if asked is not None and len(found) < len(set(asked)):
        first = min(set(asked) - set(found))
        takes = " or ".join(str(low) if low == high else f"{low} to {high}" for low, high in ranges)
        at = f"@{size_text(size)}" if None in runner.input_shape[2:] else ""
        raise OptionError(
            f"--batch {first}",
            expected=f"{takes}, which {runner.name} takes{at.replace('@', ' at ')}",
            hint=f"build it with --profile 1,{first},{first}{at}" if isinstance(runner, Profiled) else None,
        )
    return found or tuple(sorted({low for low, _ in ranges}))


def _to_size(preprocessing: Preprocessing, size: Size) -> Preprocessing:
    """The same straight to one size, for a file of any."""
    return replace(preprocessing, size=size, keep_ratio=False) if preprocessing.keep_ratio else preprocessing


def _loader(preprocessing: Preprocessing, pictures: Sequence[Path]) -> Load:
    """The k-th batch of the pictures, prepared in one way."""

    def load(batch: int, k: int) -> Array:
        chosen = [pictures[(k * batch + i) % len(pictures)] for i in range(batch)]
        return load_batch(chosen, preprocessing)

    return load


def _engine(entry: _Entry, size: Size, known: dict[str, Accuracy], notes: list[str]) -> Engine:
    """What is known of an engine, before it is timed."""
    opened, how = entry.opened, entry.how
    kind, runtime, version = _runtime(opened, how)
    products, work = _content(opened, size, notes)
    inspection = None
    if isinstance(opened, OpenedPlan) and opened.plan.facts and opened.plan.facts.inspection:
        with contextlib.suppress(PlanError):
            inspection = Inspection.from_dict(opened.plan.facts.inspection)
    blocks = inspection.blocks if inspection else {}
    return Engine(
        name=entry.name,
        kind=kind,
        file=str(opened.path) if isinstance(opened, OpenedTorch) else opened.path.name,
        sha256=opened.sha256,
        bytes=None if isinstance(opened, OpenedTorch) else os.path.getsize(opened.path),
        precision=opened.precision,
        variant=opened.spec.variant if opened.spec else "",
        runtime=runtime,
        builder_version=version,
        threads=how.threads if on_cpu(runtime) else None,
        cuda_graph=how.cuda_graph,
        products=products,
        work=work,
        blocks_ms={name: total.ms for name, total in blocks.items() if total.ms is not None},
        precision_shares={name: total.share for name, total in inspection.precisions.items()} if inspection else {},
        accuracy=known.get(opened.sha256),
        image_size=size,
    )


def _runtime(opened: Opened, how: Running) -> tuple[Kind, str, str | None]:
    """What kind of engine it is, the runtime's name, and the version of a plan's builder."""
    if isinstance(opened, OpenedPlan):
        facts = opened.plan.facts
        return "plan", BUILDER_NAMES[opened.plan.builder], facts.builder_version if facts else None
    if isinstance(opened, OpenedTorch):
        return ("torch-compile" if opened.compiled else "torch"), f"torch, {how.provider.upper()}", None
    place = {"cpu": "CPU", "cuda": "CUDA", "tensorrt": "TensorRT"}[how.provider]
    return "onnx", f"ONNX Runtime, {place}", None


def _content(opened: Opened, size: Size, notes: list[str]) -> tuple[dict[str, int], Work | None]:
    """The products of a file by type, and its work on images of a size; of a plan, those of the file behind it."""
    if isinstance(opened, OpenedTorch):
        spec = opened.spec
        assert spec is not None
        variant = variant_named(spec.variant)
        macs = count_macs(variant, spec.task, spec.size, spec.num_classes)
        parameters = sum(4 * parameter.numel() for parameter in opened.model.parameters())
        return {}, Work({"FP32": macs}, parameters, 4 * (3 * spec.size[0] * spec.size[1] + spec.num_classes))
    file = opened if isinstance(opened, OpenedOnnx) else None
    if file is None:
        try:
            file = chain(opened)[-1]
        except InputError as error:
            notes.append(f"the work of {opened.path.name} is not known, for its ONNX file is not at hand: {error}")
            network = opened.plan.facts.network if isinstance(opened, OpenedPlan) and opened.plan.facts else None
            counts = [network.matmuls, network.convolutions] if network else []
            return _summed((NAMES.get(name, name), n) for found in counts for name, n in found.items()), None
    products = _summed((NAMES.get(product.type, product.type), 1) for product in products_of_graph(file.graph))
    try:
        work = work_of(at_size(file.graph, size))
        why = "it has shapes or operators that are not counted"
    except GraphError as error:  # whether it runs is for its runtime to say
        work, why = None, str(error)
    if work is None:
        notes.append(f"the work of {file.path.name} is not known: {why}")
    return products, work


def _summed(pairs: Iterator[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, count in pairs:
        found[name] = found.get(name, 0) + count
    return found


def _gauges(
    entries: Sequence[_Entry], engines: Sequence[Engine], stack: contextlib.ExitStack, notes: list[str]
) -> dict[str, Callable[[], float]]:
    """What measures each runtime at its best, by ``RUNTIME|TYPE``; FP32 is always among a CPU's, as its pace.

    A type's product is left out, and a note says why, where its runtime does not take it.
    """
    wanted: dict[str, tuple[_Entry, set[str]]] = {}
    for entry, engine in zip(entries, engines, strict=True):
        wanted.setdefault(engine.runtime, (entry, set()))[1].update(engine.work.macs if engine.work else {"FP32": 0})
    found: dict[str, Callable[[], float]] = {}
    for runtime, (entry, types) in wanted.items():
        on_gpu = isinstance(entry.opened, OpenedPlan) or entry.how.provider != "cpu"
        for type_ in sorted((types | (set() if on_gpu else {"FP32"})) & {"FP32", "FP16", "INT8"}):
            try:
                runner = stack.enter_context(_product(entry, cast("ProductType", type_), on_gpu=on_gpu))
                once = cast("Resident", runner).resident([limit.input_of(runner)])
                once(0)
            except SepvitError as error:
                notes.append(f"the rate of {type_} on {runtime} is not measured: {error}")
                continue
            found[f"{runtime}|{type_}"] = functools.partial(_ms, once)
        place = "GPU" if on_gpu else "CPU"
        if f"{place}{COPY}" not in found:
            try:
                found[f"{place}{COPY}"] = _copy(entry, stack, on_gpu=on_gpu)
            except SepvitError as error:
                notes.append(f"the rate of copies is not measured: {error}")
    return found


def _ms(once: Callable[[int], tuple[float, float | None]]) -> float:
    return once(0)[0]


@contextlib.contextmanager
def _product(entry: _Entry, type_: ProductType, *, on_gpu: bool) -> Iterator[Runner]:
    """A large product of one type on an entry's runtime."""
    size, chain_ = (limit.ON_GPU, limit.CHAIN_ON_GPU) if on_gpu else (limit.ON_CPU, 1)
    how, name = entry.how, f"the {type_} product"
    if isinstance(entry.opened, OpenedPlan):
        from sepvit_deploy.runners.cuda import open_cuda
        from sepvit_deploy.runners.tensorrt import TensorRtRunner

        builder = entry.opened.plan.builder
        graph = limit.product_graph(type_, size=size, chain=chain_)
        request = BuildRequest(builder, ())
        built = engine_from_onnx(graph.SerializeToString(), request, name=name, precision=None, inspect=False)
        assert built.plan is not None
        with TensorRtRunner(built.plan, name=name, builder=builder, cuda=open_cuda(how.cuda)) as runner:
            yield runner
    elif isinstance(entry.opened, OpenedTorch):
        from sepvit_deploy.runners.torch import TorchRunner

        module = limit.product_module(size=size, chain=chain_)
        device: Literal["cpu", "cuda"] = "cuda" if on_gpu else "cpu"
        yield TorchRunner(module, ("y",), (1, size), name=name, device=device)
    else:
        from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner

        graph = limit.product_graph(type_, size=size, chain=chain_, unsigned=not on_gpu)
        yield OnnxRuntimeRunner(graph, name=name, provider=how.provider, threads=how.threads, fused=True)


def _copy(entry: _Entry, stack: contextlib.ExitStack, *, on_gpu: bool) -> Callable[[], float]:
    if not on_gpu:
        return limit.copy_on_cpu(entry.how.threads or os.cpu_count() or 1)
    from sepvit_deploy.runners.cuda import open_cuda

    return stack.enter_context(limit.CopyOnGpu(open_cuda(entry.how.cuda)))


def _rates(gauges: dict[str, tuple[float, ...]]) -> tuple[Rates, ...]:
    """The medians of the gauges as rates."""
    rates: dict[str, Rates] = {}
    for name, times in gauges.items():
        if not times:
            continue
        runtime, _, what = name.partition("|")
        seconds = median(times) / 1000
        on_gpu = not on_cpu(runtime)
        known = rates.get(runtime, Rates(runtime, {}, None))
        if name.endswith(COPY):
            moved = 2 * (limit.COPIED_ON_GPU if on_gpu else limit.COPIED_ON_CPU)
            rates[runtime] = replace(known, bytes_per_s=moved / seconds)
        else:
            size, chain_ = (limit.ON_GPU, limit.CHAIN_ON_GPU) if on_gpu else (limit.ON_CPU, 1)
            rate = limit.operations(size, chain_) / seconds
            rates[runtime] = replace(known, operations_per_s={**known.operations_per_s, what: rate})
    return tuple(rates.values())


def _notes(points: Sequence[Point], engines: Sequence[Engine]) -> Iterator[str]:
    """What a reader of the figures should know of how they came about."""
    if {engine.kind == "onnx" for engine in engines if not on_cpu(engine.runtime)} == {True, False}:
        yield (
            "ONNX Runtime is timed by the host's clock, launch and wait included, plans and torch between CUDA's "
            "events: at small batches a part of their ratio is that"
        )
    if len({engine.image_size for engine in engines}) > 1:
        yield "engines got images of different sizes, which is in their ratios"
    for point in points:
        if not point.settled:
            yield f"{point.engine} at batch {point.batch} never settled while it was warmed up"
        for reason, share in (point.conditions.throttled or {}).items():
            yield f"the GPU was held back ({reason}) during {share:.0%} of {point.engine} at batch {point.batch}"
    stolen = [point for point in points if (point.conditions.steal or 0.0) > STEAL]
    if stolen:
        most = max(point.conditions.steal or 0.0 for point in stolen)
        yield f"up to {most:.0%} of the processors' time went to other machines"


def _versions(entries: Sequence[_Entry]) -> dict[str, str]:
    """Of Python and every package that took part."""
    versions = artifact.tool_versions()
    for name in _VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    for builder, version in builders.available().items():
        if any(isinstance(entry.opened, OpenedPlan) and entry.opened.plan.builder == builder for entry in entries):
            versions[BUILDER_NAMES[builder]] = version
    return versions


def _accuracies(paths: Sequence[Path], digests: set[str]) -> dict[str, Accuracy]:
    """Accuracy by the digest of the file that it is of.

    Raises:
        InputError: a file is not what ``evaluate --json`` prints, or is of none of the files of these digests.
    """
    found = {}
    for path in paths:
        try:
            if os.path.getsize(path) > _MAX_DOCUMENT:
                raise ValueError(f"larger than {_MAX_DOCUMENT >> 20} MiB")
            document = json.loads(path.read_text(encoding="utf-8"))
            digest, top1 = document["model_sha256"], document["top1"]
            keys = ("image_set", "image_set_sha256", "images")
            accuracy = record(Accuracy, {key: document[key] for key in keys} | {"top1": top1["count"]})
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"--accuracy {path} holds no accuracy ({type(error).__name__}: {error})",
                expected="what evaluate --json prints of labelled pictures",
            ) from error
        if digest not in digests:
            raise InputError(
                f"--accuracy {path} is of {document.get('file', 'a file')!s:.80}, which is none of the engines",
                expected="what evaluate --json printed of one of them, as it is now",
            )
        if not top1.get("meaningful", True):
            raise InputError(f"--accuracy {path} is of random weights", expected="of trained ones")
        found[digest] = accuracy
    return found
