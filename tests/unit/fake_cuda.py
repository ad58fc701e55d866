"""A device without a GPU: it records every call, keeps its memory in the host's, and fails when it is told to."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

from sepvit_deploy.errors import DeviceError


class FakeCuda:
    """See `runners.cuda.Cuda`.

    Attributes:
        calls: names of the calls, in order.
        live: what was made and not yet given back, by its handle.
        fail_at: the call that fails, counted from 0; None for none. Giving back never fails.
        captured: work between a capture's begin and end; a launch does it.
    """

    def __init__(self, fail_at: int | None = None) -> None:
        self.calls: list[str] = []
        self.live: dict[int, object] = {}
        self.fail_at = fail_at
        self.closed = 0
        self.depth = 0
        self.captured: list[object] | None = None
        self._graphs: dict[int, list[object]] = {}
        self._next = 1 << 50
        self._counted = 0

    def _call(self, name: str) -> None:
        assert not self.closed, f"{name} after close"
        self.calls.append(name)
        self._counted += 1
        if self._counted - 1 == self.fail_at:
            raise DeviceError(f"{name} fails: cudaErrorPlanted")

    def _handle(self, name: str) -> int:
        self._call(name)
        self._next += 1
        self.live[self._next] = name
        return self._next

    def _memory(self, name: str, size: int) -> int:
        self._call(name)
        memory = ctypes.create_string_buffer(b"\xff" * size, size)  # NaNs: nothing may rely on what was there
        self.live[ctypes.addressof(memory)] = memory
        return ctypes.addressof(memory)

    def _give_back(self, name: str, handle: int) -> None:
        self.calls.append(name)
        assert handle in self.live, f"{name} of {handle}, which was never made or was given back before"
        del self.live[handle]

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def allocate(self, size: int) -> int:
        return self._memory("allocate", size)

    def free(self, pointer: int) -> None:
        self._give_back("free", pointer)

    def allocate_pinned(self, size: int) -> int:
        return self._memory("allocate_pinned", size)

    def free_pinned(self, pointer: int) -> None:
        self._give_back("free_pinned", pointer)

    def _copy(self, name: str, target: int, source: int, size: int) -> None:
        self._call(name)
        for place in (target, source):
            memory = self.live[place]
            assert isinstance(memory, ctypes.Array)
            assert size <= len(memory), f"{name} of {size} bytes beyond {len(memory)}"
        ctypes.memmove(target, source, size)

    def copy_to_device(self, device: int, host: int, size: int, stream: int) -> None:
        assert stream in self.live
        self._copy("copy_to_device", device, host, size)

    def copy_to_host(self, host: int, device: int, size: int, stream: int) -> None:
        assert stream in self.live
        self._copy("copy_to_host", host, device, size)

    def copy_on_device(self, target: int, source: int, size: int, stream: int) -> None:
        assert stream in self.live
        self._copy("copy_on_device", target, source, size)

    def create_stream(self) -> int:
        return self._handle("create_stream")

    def destroy_stream(self, stream: int) -> None:
        self._give_back("destroy_stream", stream)

    def synchronize(self, stream: int) -> None:
        assert stream in self.live
        self._call("synchronize")

    def create_event(self) -> int:
        return self._handle("create_event")

    def destroy_event(self, event: int) -> None:
        self._give_back("destroy_event", event)

    def record(self, event: int, stream: int) -> None:
        assert event in self.live
        assert stream in self.live
        self._call("record")

    def elapsed_ms(self, start: int, end: int) -> float:
        self._call("elapsed_ms")
        return 1.25

    def begin_capture(self, stream: int) -> None:
        self._call("begin_capture")
        self.captured = []

    def end_capture(self, stream: int) -> int:
        work, self.captured = self.captured, None
        graph = self._handle("end_capture")
        assert work is not None
        self._graphs[graph] = work
        return graph

    def launch(self, graph: int, stream: int) -> None:
        assert graph in self.live
        self._call("launch")
        for work in self._graphs[graph]:
            work()  # type: ignore[operator]

    def destroy_graph(self, graph: int) -> None:
        self._give_back("destroy_graph", graph)

    def memory_free_bytes(self) -> int:
        return 1 << 30

    def close(self) -> None:
        self.closed += 1
