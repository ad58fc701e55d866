"""Run a plan in TensorRT or TensorRT-RTX, which share one interface: tensors by name, one enqueue on a stream.

Buffers are allocated once for each optimisation profile, for its largest batch and size; nothing is shared between
runners. Shapes: B batch, H x W images.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from types import TracebackType
from typing import TYPE_CHECKING, Any

from sepvit_deploy.building import Builder
from sepvit_deploy.errors import DeviceError, InputError
from sepvit_deploy.runners.base import require_fit
from sepvit_deploy.runners.cuda import Cuda, open_cuda, view
from sepvit_deploy.runners.tensorrt_engine import LoadedEngine

if TYPE_CHECKING:
    from sepvit_deploy.runners.base import Array, Once

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
    """Device memory and its pinned twin, for a tensor of the largest images that a slot may get."""

    device: int
    host: int
    size: int


@dataclass
class _Slot:
    """A context with its buffers: of a profile, or of a profile and a shape where a CUDA graph holds on to it."""

    context: Any
    shape: tuple[int, ...]
    input: _Buffer
    outputs: dict[str, _Buffer]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    graph: int | None = None
    enqueued: bool = False
    reads: int = 0


class TensorRtRunner:
    """An engine that is ready to run; a context manager, which gives the device's memory back.

    Args:
        plan: the engine; it is code, and deserialising runs it: see `plans.read_plan`.
        name: what reports call it.
        cuda: the device, which the runner takes over and closes; by default cuda-bindings on the first one.
        cuda_graph: replay the launches of each batch, and size, from a CUDA graph, which keeps memory of its own.
        version_compatible: the plan was built to load in other versions, and may run host code of its own.

    Attributes:
        input_shape: (B, 3, H, W), B None where the engine takes several batches, H and W where it is of any size.
        profiles: the batches and sizes that it takes, in the order of the build.

    Raises:
        DeviceError: there is no GPU, or it fails.
        MissingDependency: the builder's runtime is not installed.
        PlanError: the plan does not load, or is not of one float32 image input and outputs of float32 or uint8.
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
        self._slots: dict[tuple[int, tuple[int, ...] | None], _Slot] = {}
        self._open = True
        self._stack = contextlib.ExitStack()
        """What gives everything back, the last one first."""
        self._inner = contextlib.ExitStack()
        """What lets graphs go, then the contexts whose kernels they hold, then the engine; before the memory."""
        self._stack.callback(self._cuda.close)
        try:
            with self._cuda.current():
                self._loaded = LoadedEngine(plan, name=name, builder=builder, version_compatible=version_compatible)
            self._inner.callback(self._loaded.close)
            self._inner.callback(self._forget_slots)
            self.profiles = self._loaded.profiles
            takes = {batch for p in self.profiles for batch in (p.minimum, p.maximum)}
            self.input_shape: tuple[int | None, ...] = (
                takes.pop() if len(takes) == 1 else None,
                *(None if dim == -1 else dim for dim in self._loaded.shape[1:]),
            )
            self._stream = self._made(self._cuda.create_stream(), self._cuda.destroy_stream)
            self._start = self._made(self._cuda.create_event(), self._cuda.destroy_event)
            self._end = self._made(self._cuda.create_event(), self._cuda.destroy_event)
        except BaseException:
            self.close()
            raise

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
        started = time.perf_counter()
        slot = self._staged(images)
        with self._cuda.current():
            enqueue_ms = self._enqueue(slot)
            sizes = {name: self._bytes(name, shape) for name, shape in slot.shapes.items()}
            for name, buffer in slot.outputs.items():
                self._cuda.copy_to_host(buffer.host, buffer.device, sizes[name], self._stream)
            self._cuda.synchronize(self._stream)
            compute_ms = self._cuda.elapsed_ms(self._start, self._end)
        outputs = {
            name: view(buffer.host, sizes[name]).view(self._loaded.outputs[name]).reshape(slot.shapes[name]).copy()
            for name, buffer in slot.outputs.items()
        }
        return outputs, Timing(compute_ms, enqueue_ms, (time.perf_counter() - started) * 1000)

    def resident(self, inputs: Sequence[Array]) -> Once:
        """See `Resident.resident`: time of the device between events around the enqueue, and of the host in it.

        Raises:
            InputError, DeviceError: as `run_timed`.
        """
        shape, size = inputs[0].shape, inputs[0].nbytes
        kept = []
        for images in inputs:
            slot = self._staged(images)
            with self._cuda.current():
                kept.append(self._made(self._cuda.allocate(size), self._cuda.free))
                self._cuda.copy_on_device(kept[-1], slot.input.device, size, self._stream)
                self._cuda.synchronize(self._stream)

        def once(k: int) -> tuple[float, float]:
            if not self._open:
                raise InputError(f"{self.name} is closed", expected="a runner inside its context")
            with self._cuda.current():
                slot = self._slot(shape)
                if self._graphs:  # a graph reads where it was captured
                    self._cuda.copy_on_device(slot.input.device, kept[k % len(kept)], size, self._stream)
                else:
                    self._read(slot, kept[k % len(kept)])
                enqueue_ms = self._enqueue(slot)
                self._cuda.synchronize(self._stream)
                return self._cuda.elapsed_ms(self._start, self._end), enqueue_ms

        return once

    def inspected(self, images: Array, repeats: int = 20) -> tuple[str, dict[str, float]]:
        """What the engine's inspector says of the layers that run this batch, and how long each takes.

        Returns:
            The inspector's JSON; and the mean time of each layer by its name, in milliseconds.
        """
        times: dict[str, list[float]] = {}
        slot = self._staged(images)
        with self._cuda.current():
            # a context of its own: profiling slows a run
            context = self._loaded.context(self._loaded.profile_for(images.shape), images.shape, self._stream)
            self._loaded.set_addresses(context, self._addresses(slot))
            self._loaded.profile_layers(context, lambda layer, ms: times.setdefault(layer, []).append(ms))
            for _ in range(repeats + 1):
                self._loaded.execute(context, self._stream)
                self._cuda.synchronize(self._stream)
            document = self._loaded.inspector_json(context)
        # A name of several layers is reported several times a run; the first run is warm-up.
        mean_ms = {name: sum(found[len(found) // (repeats + 1) :]) / repeats for name, found in times.items()}
        return document, mean_ms

    def _staged(self, images: Array) -> _Slot:
        """The slot for a batch, with the images on their way to the device."""
        import numpy as np

        if not self._open:
            raise InputError(f"{self.name} is closed", expected="a runner inside its context")
        require_fit(self.name, self.input_shape, images)
        with self._cuda.current():
            slot = self._slot(images.shape)
            self._read(slot, slot.input.device)
            view(slot.input.host, images.nbytes)[:] = np.ascontiguousarray(images).view(np.uint8).reshape(-1)
            self._cuda.copy_to_device(slot.input.device, slot.input.host, images.nbytes, self._stream)
        return slot

    def _slot(self, shape: tuple[int, ...]) -> _Slot:
        """The context and buffers for images of a shape (B, 3, H, W), at that shape."""
        profile = self._loaded.profile_for(shape)
        # A graph is undone by any change of the context it was captured from: each has its own.
        key = (profile, shape if self._graphs else None)
        slot = self._slots.get(key)
        if slot is None:
            _, _, largest = self.profiles[profile].shapes(self._loaded.shape)
            slot = self._slots[key] = self._new_slot(profile, shape if self._graphs else largest)
        if slot.shape != shape:
            self._loaded.set_shape(slot.context, shape)
            slot.shape = shape
            slot.shapes = self._loaded.output_shapes(slot.context)
        return slot

    def _bytes(self, output: str, shape: tuple[int, ...]) -> int:
        import numpy as np

        return prod(shape) * np.dtype(self._loaded.outputs[output]).itemsize

    def _new_slot(self, profile: int, largest: tuple[int, ...]) -> _Slot:
        with contextlib.ExitStack() as stack:

            def buffer(size: int) -> _Buffer:
                device = self._cuda.allocate(size)
                stack.callback(self._cuda.free, device)
                host = self._cuda.allocate_pinned(size)
                stack.callback(self._cuda.free_pinned, host)
                return _Buffer(device, host, size)

            context = self._loaded.context(profile, largest, self._stream)
            shapes = self._loaded.output_shapes(context)
            slot = _Slot(
                context=context,
                shape=largest,
                input=buffer(prod(largest) * FLOAT_BYTES),
                outputs={name: buffer(self._bytes(name, shape)) for name, shape in shapes.items()},
                shapes=shapes,
            )
            self._loaded.set_addresses(context, self._addresses(slot))
            slot.reads = slot.input.device
            self._stack.push(stack.pop_all())
        return slot

    def _read(self, slot: _Slot, address: int) -> None:
        """Have a slot's next runs read their images there."""
        if slot.reads != address:
            self._loaded.set_addresses(slot.context, {self._loaded.input: address})
            slot.reads = address

    def _addresses(self, slot: _Slot) -> dict[str, int]:
        return {self._loaded.input: slot.input.device} | {name: found.device for name, found in slot.outputs.items()}

    def _enqueue(self, slot: _Slot) -> float:
        """Start a run between the two events; milliseconds of the host in the enqueue alone."""
        if self._graphs and slot.enqueued and slot.graph is None:  # the first enqueue settles what a graph may not hold
            slot.graph = self._captured(slot)
        self._cuda.record(self._start, self._stream)
        started = time.perf_counter()
        if slot.graph is not None:
            self._cuda.launch(slot.graph, self._stream)
        else:
            self._loaded.execute(slot.context, self._stream)
        enqueue_ms = (time.perf_counter() - started) * 1000
        self._cuda.record(self._end, self._stream)
        slot.enqueued = True
        return enqueue_ms

    def _captured(self, slot: _Slot) -> int:
        self._loaded.require_capturable(slot.context, self._stream)
        self._cuda.begin_capture(self._stream)
        try:
            self._loaded.execute(slot.context, self._stream)
        except DeviceError:
            with contextlib.suppress(DeviceError):  # a stream left in capture takes no more work
                self._cuda.destroy_graph(self._cuda.end_capture(self._stream))
            raise
        graph = self._cuda.end_capture(self._stream)
        self._inner.callback(self._cuda.destroy_graph, graph)
        return graph

    def close(self) -> None:
        """Give everything back; further calls do nothing."""
        if not self._open:
            return
        self._open = False
        with self._stack, self._cuda.current(), self._inner:
            pass

    def _forget_slots(self) -> None:
        self._slots.clear()

    def __enter__(self) -> TensorRtRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
