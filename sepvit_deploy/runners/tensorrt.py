"""Run a plan in TensorRT or TensorRT-RTX, which share one interface: tensors by name, one enqueue on a stream.

Buffers are allocated once for each optimisation profile, for its largest batch; nothing is shared between runners.
Shapes: B batch.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from types import TracebackType
from typing import TYPE_CHECKING, Any

from sepvit_deploy import builders
from sepvit_deploy.building import BUILDER_NAMES, Builder, Profile
from sepvit_deploy.errors import DeviceError, InputError, PlanError
from sepvit_deploy.runners.base import require_fit
from sepvit_deploy.runners.cuda import Cuda, open_cuda, view

if TYPE_CHECKING:
    from sepvit_deploy.runners.base import Array

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Timing:
    """Time of one run, in milliseconds.

    Attributes:
        compute_ms: of the device, between events around the enqueue.
        enqueue_ms: of the host, in the enqueue alone.
        total_ms: of the host, from images in host memory to outputs in host memory.
    """

    compute_ms: float
    enqueue_ms: float
    total_ms: float


@dataclass
class _Buffer:
    """Device memory and its pinned twin, for a tensor of the largest batch."""

    device: int
    host: int
    size: int


@dataclass
class _Slot:
    """A context with its buffers: of a profile, or of a profile and a batch where a CUDA graph holds on to it."""

    context: Any
    batch: int
    input: _Buffer
    outputs: dict[str, _Buffer]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    graph: int | None = None
    enqueued: bool = False


class TensorRtRunner:
    """An engine that is ready to run; a context manager, which gives the device's memory back.

    Args:
        plan: the engine; it is code, and deserialising runs it: see `plans.read_plan`.
        name: what reports call it.
        cuda: the device, which the runner takes over and closes; by default cuda-bindings on the first one.
        cuda_graph: replay the launches of each batch from a CUDA graph.
        version_compatible: the plan was built to load in other versions, and may run host code of its own.

    Attributes:
        input_shape: (B, 3, H, W), B None where the engine takes several batches.
        profiles: the batches that it takes, in the order of the build.

    Raises:
        DeviceError: there is no GPU, or it fails.
        MissingDependency: the builder's runtime is not installed.
        PlanError: the plan does not load, or is not of one float32 image input and float32 outputs.
    """

    def __init__(
        self,
        plan: bytes,
        *,
        name: str,
        builder: Builder,
        cuda: Cuda | None = None,
        cuda_graph: bool = False,
        version_compatible: bool = False,
    ) -> None:
        self.name = name
        self._graphs = cuda_graph
        self._cuda = cuda or open_cuda()  # first: without a driver the runtime ends the process
        self._slots: dict[tuple[int, int], _Slot] = {}
        self._staged_slot: _Slot | None = None
        self._engine: Any = None
        self._runtime: Any = None
        self._open = True
        self._stack = contextlib.ExitStack()
        """What gives everything back, the last one first."""
        self._graph_stack = contextlib.ExitStack()
        """What gives the graphs back, before the contexts whose kernels they hold."""
        self._stack.callback(self._cuda.close)
        try:
            with self._cuda.current():
                self._trt: Any = builders.load(builder)
                self._log = _logger(self._trt)
                self._log.errors.clear()
                self._engine, self._runtime = self._deserialized(plan, builder, version_compatible)
                self._input, self._outputs, shape = self._tensors()
                self.profiles = self._profiles(shape)
            takes = {batch for p in self.profiles for batch in (p.minimum, p.maximum)}
            self.input_shape: tuple[int | None, ...] = (takes.pop() if len(takes) == 1 else None, *shape[1:])
            self._stream = self._made(self._cuda.create_stream(), self._cuda.destroy_stream)
            self._start = self._made(self._cuda.create_event(), self._cuda.destroy_event)
            self._end = self._made(self._cuda.create_event(), self._cuda.destroy_event)
        except BaseException:
            self.close()
            raise

    def _deserialized(self, plan: bytes, builder: Builder, version_compatible: bool) -> tuple[Any, Any]:
        trt = self._trt
        runtime = trt.Runtime(self._log)
        if version_compatible:
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            reason = self._log.last("it does not say why")
            raise PlanError(
                f"{BUILDER_NAMES[builder]} {trt.__version__} refuses {self.name}: {reason}",
                expected="a plan of this version and GPU",
                hint="type: sepvit-deploy doctor PLAN",
            )
        return engine, runtime

    def _tensors(self) -> tuple[str, tuple[str, ...], tuple[int, ...]]:
        """Name of the input, names of the outputs, shape of the input with -1 for a free dimension."""
        trt, engine = self._trt, self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        outputs = tuple(name for name in names if name not in inputs)
        other = [name for name in names if engine.get_tensor_dtype(name) != trt.DataType.FLOAT]
        shape = tuple(engine.get_tensor_shape(inputs[0])) if len(inputs) == 1 else ()
        if len(shape) != 4 or -1 in shape[1:] or other or not outputs:
            said = ", ".join(
                f"{name} {engine.get_tensor_dtype(name).name} {list(engine.get_tensor_shape(name))}" for name in names
            )
            raise PlanError(
                f"{self.name} has the tensors {said or 'none'}",
                expected="one float32 image input (B, 3, H, W) of a fixed size, and float32 outputs",
            )
        return inputs[0], outputs, shape

    def _profiles(self, shape: tuple[int, ...]) -> tuple[Profile, ...]:
        if shape[0] != -1:
            return (Profile(shape[0], shape[0], shape[0]),)
        found = (
            self._engine.get_tensor_profile_shape(self._input, index)
            for index in range(self._engine.num_optimization_profiles)
        )
        return tuple(Profile(*(dims[0] for dims in shapes)) for shapes in found)

    def _made(self, handle: int, free: Any) -> int:
        self._stack.callback(free, handle)
        return handle

    def run(self, images: Array) -> dict[str, Array]:
        """See `Runner.run`; the outputs are copies."""
        return self.run_timed(images)[0]

    def run_timed(self, images: Array) -> tuple[dict[str, Array], Timing]:
        """Run one batch, and say how long it took.

        Raises:
            InputError: the images are not of the shape and type that the engine takes, or the runner is closed.
            DeviceError: the GPU or the engine fails.
        """
        import numpy as np

        started = time.perf_counter()
        slot = self._staged(images)
        with self._cuda.current():
            enqueue_ms = self._enqueue(slot)
            sizes = {name: prod(slot.shapes[name]) * FLOAT_BYTES for name in self._outputs}
            for name, buffer in slot.outputs.items():
                self._cuda.copy_to_host(buffer.host, buffer.device, sizes[name], self._stream)
            self._cuda.synchronize(self._stream)
            compute_ms = self._cuda.elapsed_ms(self._start, self._end)
        outputs = {
            name: view(buffer.host, sizes[name]).view(np.float32).reshape(slot.shapes[name]).copy()
            for name, buffer in slot.outputs.items()
        }
        return outputs, Timing(compute_ms, enqueue_ms, (time.perf_counter() - started) * 1000)

    def stage(self, images: Array) -> None:
        """Put a batch on the device, for `replay`; raises as `run_timed`."""
        self._staged_slot = self._staged(images)
        with self._cuda.current():
            self._cuda.synchronize(self._stream)

    def replay(self) -> tuple[float, float]:
        """Run the staged batch without any copy: milliseconds of the device, and of the host in the enqueue."""
        slot = self._staged_slot
        if slot is None:
            raise InputError(f"{self.name} has no batch on the device", expected="stage(images) before replay()")
        with self._cuda.current():
            enqueue_ms = self._enqueue(slot)
            self._cuda.synchronize(self._stream)
            return self._cuda.elapsed_ms(self._start, self._end), enqueue_ms

    def inspected(self, images: Array, repeats: int = 20) -> tuple[str, dict[str, float]]:
        """What the engine's inspector says of the layers that run this batch, and how long each takes.

        Returns:
            The inspector's JSON; and the mean time of each layer by its name, in milliseconds.
        """
        times: dict[str, list[float]] = {}
        slot = self._staged(images)
        with self._cuda.current():
            context = self._context(self._profile_for(len(images)), len(images), slot)  # its own: profiling slows a run
            context.profiler = _profiler(self._trt, lambda layer, ms: times.setdefault(layer, []).append(ms))
            for _ in range(repeats + 1):
                self._execute(context)
                self._cuda.synchronize(self._stream)
            inspector = self._engine.create_engine_inspector()
            inspector.execution_context = context  # without the shapes in it, tensors of a free batch have no type
            document = str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))
        # A name of several layers is reported several times a run; the first run is warm-up.
        mean_ms = {name: sum(found[len(found) // (repeats + 1) :]) / repeats for name, found in times.items()}
        return document, mean_ms

    def _staged(self, images: Array) -> _Slot:
        """The slot for a batch, with the images on their way to the device."""
        import numpy as np

        if not self._open:
            raise InputError(f"{self.name} is closed", expected="a runner inside its context")
        require_fit(self.name, self.input_shape, images)
        batch = len(images)
        with self._cuda.current():
            slot = self._slot(self._profile_for(batch), batch)
            view(slot.input.host, images.nbytes)[:] = np.ascontiguousarray(images).view(np.uint8).reshape(-1)
            self._cuda.copy_to_device(slot.input.device, slot.input.host, images.nbytes, self._stream)
        return slot

    def _profile_for(self, batch: int) -> int:
        """The profile whose tuned batch is nearest among those that take ``batch``."""
        fitting = [
            (max(batch / p.optimum, p.optimum / batch), p.optimum, index)
            for index, p in enumerate(self.profiles)
            if p.minimum <= batch <= p.maximum
        ]
        if not fitting:
            takes = " or ".join(f"{p.minimum} to {p.maximum}" for p in self.profiles)
            raise InputError(
                f"{self.name} was given a batch of {batch}",
                expected=takes,
                hint=f"build it with --profile 1,{batch},{batch}, or give another batch",
            )
        return min(fitting)[2]

    def _slot(self, profile: int, batch: int) -> _Slot:
        """The context and buffers for a batch, at its input shape."""
        # A graph is undone by any change of the context it was captured from: each has its own.
        key = (profile, batch if self._graphs else 0)
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = self._new_slot(profile, batch if self._graphs else self.profiles[profile].maximum)
        if slot.batch != batch:
            self._set_batch(slot.context, batch)
            slot.batch = batch
            slot.shapes = self._output_shapes(slot.context)
        return slot

    def _new_slot(self, profile: int, largest: int) -> _Slot:
        with contextlib.ExitStack() as stack:

            def buffer(size: int) -> _Buffer:
                device = self._cuda.allocate(size)
                stack.callback(self._cuda.free, device)
                host = self._cuda.allocate_pinned(size)
                stack.callback(self._cuda.free_pinned, host)
                return _Buffer(device, host, size)

            context = self._new_context(profile)
            self._set_batch(context, largest)
            shapes = self._output_shapes(context)
            rest = [dim for dim in self.input_shape[1:] if dim is not None]
            slot = _Slot(
                context=context,
                batch=largest,
                input=buffer(prod((largest, *rest)) * FLOAT_BYTES),
                outputs={name: buffer(prod(shapes[name]) * FLOAT_BYTES) for name in self._outputs},
                shapes=shapes,
            )
            self._set_addresses(context, slot)
            self._stack.push(stack.pop_all())
        return slot

    def _new_context(self, profile: int) -> Any:
        context = self._engine.create_execution_context()
        if context is None:
            raise DeviceError(
                f"{self.name} gets no context: {self._log.last('it does not say why')}",
                hint="free some of the device's memory, or build with a smaller profile",
            )
        if not context.set_optimization_profile_async(profile, self._stream):
            raise DeviceError(f"{self.name} does not take its profile {profile}: {self._log.last('no reason')}")
        return context

    def _context(self, profile: int, batch: int, slot: _Slot) -> Any:
        """Another context over the buffers of a slot."""
        context = self._new_context(profile)
        self._set_batch(context, batch)
        self._set_addresses(context, slot)
        return context

    def _set_batch(self, context: Any, batch: int) -> None:
        if not context.set_input_shape(self._input, (batch, *self.input_shape[1:])):
            raise DeviceError(f"{self.name} does not take a batch of {batch}: {self._log.last('no reason')}")

    def _output_shapes(self, context: Any) -> dict[str, tuple[int, ...]]:
        return {name: tuple(context.get_tensor_shape(name)) for name in self._outputs}

    def _set_addresses(self, context: Any, slot: _Slot) -> None:
        addresses = {self._input: slot.input.device} | {name: found.device for name, found in slot.outputs.items()}
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise DeviceError(f"{self.name} does not take a buffer for {name}: {self._log.last('no reason')}")

    def _enqueue(self, slot: _Slot) -> float:
        """Start a run between the two events; milliseconds of the host in the enqueue alone."""
        if self._graphs and slot.enqueued and slot.graph is None:  # the first enqueue settles what a graph may not hold
            slot.graph = self._captured(slot)
        self._cuda.record(self._start, self._stream)
        started = time.perf_counter()
        if slot.graph is not None:
            self._cuda.launch(slot.graph, self._stream)
        else:
            self._execute(slot.context)
        enqueue_ms = (time.perf_counter() - started) * 1000
        self._cuda.record(self._end, self._stream)
        slot.enqueued = True
        return enqueue_ms

    def _captured(self, slot: _Slot) -> int:
        # TensorRT-RTX alone is asked: it may still compile kernels, or allocate, which no graph may hold.
        if hasattr(slot.context, "is_stream_capturable") and not slot.context.is_stream_capturable(self._stream):
            raise DeviceError(
                f"{self.name} cannot be captured into a CUDA graph here", hint="run it without CUDA graphs"
            )
        self._cuda.begin_capture(self._stream)
        try:
            self._execute(slot.context)
        except DeviceError:
            with contextlib.suppress(DeviceError):  # a stream left in capture takes no more work
                self._cuda.destroy_graph(self._cuda.end_capture(self._stream))
            raise
        graph = self._cuda.end_capture(self._stream)
        self._graph_stack.callback(self._cuda.destroy_graph, graph)
        return graph

    def _execute(self, context: Any) -> None:
        if not context.execute_async_v3(self._stream):
            raise DeviceError(
                f"{self.name} does not run: {self._log.last('it does not say why')}", hint="type: sepvit-deploy doctor"
            )

    def close(self) -> None:
        """Give everything back; further calls do nothing."""
        if not self._open:
            return
        self._open = False
        with self._stack, self._cuda.current():
            try:
                self._graph_stack.close()
            finally:
                self._slots.clear()  # contexts before the engine, the engine before its runtime
                self._staged_slot = None
                self._engine = None
                self._runtime = None

    def __enter__(self) -> TensorRtRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@functools.cache
def _logger(trt: Any) -> Any:
    """The `trt.ILogger` of a module, which keeps the errors: TensorRT takes one in a process, for good."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: collections.deque[str] = collections.deque(maxlen=100)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split()))

        def last(self, otherwise: str) -> str:
            return self.errors[-1] if self.errors else otherwise

    return Log()


def _profiler(trt: Any, report: Callable[[str, float], None]) -> Any:
    """A `trt.IProfiler` that passes each layer's milliseconds on."""

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            report(layer_name, ms)

    return Profiler()
