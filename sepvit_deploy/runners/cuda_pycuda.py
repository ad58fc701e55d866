"""Device access by pycuda, in the device's primary context, so that it lives beside torch and the CUDA runtime.

pycuda knows no capture of streams: CUDA graphs need cuda-bindings.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from sepvit_deploy.errors import DeviceError, OptionError
from sepvit_deploy.optional import require

T = TypeVar("T")


class PyCuda:
    """See `runners.cuda.Cuda`.

    Raises:
        MissingDependency: pycuda is not installed.
        DeviceError: the device cannot be had.
    """

    def __init__(self, device: int = 0) -> None:
        self._cuda: Any = require("pycuda.driver", extra="pycuda")
        self._held: dict[int, Any] = {}
        """What pycuda frees when nothing refers to it any more, by the int that stands for it here."""
        try:
            self._cuda.init()
            self._context = self._cuda.Device(device).retain_primary_context()
        except self._cuda.Error as error:
            raise DeviceError(
                f"pycuda does not get GPU {device}: {error}", hint="type: sepvit-deploy doctor"
            ) from error

    def _within(self, what: str, work: Callable[[], T]) -> T:
        """Do something with this context current, and leave the one before current afterwards."""
        self._context.push()
        try:
            return work()
        except self._cuda.Error as error:
            raise DeviceError(
                f"{what} fails: {error}", hint="take a smaller batch, or see sepvit-deploy doctor"
            ) from error
        finally:
            self._cuda.Context.pop()

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        self._context.push()
        try:
            yield
        finally:
            self._cuda.Context.pop()

    def _hold(self, key: int, thing: Any) -> int:
        self._held[key] = thing
        return key

    def _drop(self, key: int) -> None:
        def work() -> None:
            thing = self._held.pop(key)
            if hasattr(thing, "free"):
                thing.free()
            del thing  # an event and a stream end with their last reference, in the context that they are of

        self._within("freeing", work)

    def allocate(self, size: int) -> int:
        memory = self._within(f"allocating {size:,} bytes", lambda: self._cuda.mem_alloc(size))
        return self._hold(int(memory), memory)

    def free(self, pointer: int) -> None:
        self._drop(pointer)

    def allocate_pinned(self, size: int) -> int:
        import numpy as np

        memory = self._within(f"pinning {size:,} bytes", lambda: self._cuda.pagelocked_empty(size, np.uint8))
        return self._hold(int(memory.ctypes.data), _Pinned(memory))

    def free_pinned(self, pointer: int) -> None:
        self._drop(pointer)

    def copy_to_device(self, device: int, host: int, size: int, stream: int) -> None:
        source = self._held[host].memory[:size]
        self._within("a copy", lambda: self._cuda.memcpy_htod_async(device, source, self._held[stream]))

    def copy_to_host(self, host: int, device: int, size: int, stream: int) -> None:
        target = self._held[host].memory[:size]
        self._within("a copy", lambda: self._cuda.memcpy_dtoh_async(target, device, self._held[stream]))

    def copy_on_device(self, target: int, source: int, size: int, stream: int) -> None:
        self._within("a copy", lambda: self._cuda.memcpy_dtod_async(target, source, size, self._held[stream]))

    def create_stream(self) -> int:
        stream = self._within("a stream", self._cuda.Stream)
        return self._hold(int(stream.handle), stream)

    def destroy_stream(self, stream: int) -> None:
        self._drop(stream)

    def synchronize(self, stream: int) -> None:
        self._within("the GPU", self._held[stream].synchronize)

    def create_event(self) -> int:
        event = self._within("an event", self._cuda.Event)
        return self._hold(id(event), event)

    def destroy_event(self, event: int) -> None:
        self._drop(event)

    def record(self, event: int, stream: int) -> None:
        self._within("an event", lambda: self._held[event].record(self._held[stream]))

    def elapsed_ms(self, start: int, end: int) -> float:
        return float(self._within("an event", lambda: self._held[start].time_till(self._held[end])))

    def begin_capture(self, stream: int) -> None:
        raise OptionError("--cuda pycuda with a CUDA graph", expected="--cuda bindings: pycuda captures no streams")

    def end_capture(self, stream: int) -> int:
        raise OptionError("--cuda pycuda with a CUDA graph", expected="--cuda bindings: pycuda captures no streams")

    def launch(self, graph: int, stream: int) -> None:
        raise OptionError("--cuda pycuda with a CUDA graph", expected="--cuda bindings: pycuda captures no streams")

    def destroy_graph(self, graph: int) -> None:
        raise OptionError("--cuda pycuda with a CUDA graph", expected="--cuda bindings: pycuda captures no streams")

    def memory_free_bytes(self) -> int:
        free, _ = self._within("the GPU", self._cuda.mem_get_info)
        return int(free)

    def close(self) -> None:
        """Let go of the primary context; torch and others keep it."""
        for key in list(self._held):
            self._drop(key)
        self._context.detach()


class _Pinned:
    """Page-locked memory, which pycuda frees with the array's base."""

    def __init__(self, memory: Any) -> None:
        self.memory = memory

    def free(self) -> None:
        self.memory.base.free()
