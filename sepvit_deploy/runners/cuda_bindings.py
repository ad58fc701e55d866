"""Device access by cuda-bindings, NVIDIA's own wheels: the CUDA runtime, which uses the device's primary context."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from sepvit_deploy.errors import DeviceError, MissingDependency
from sepvit_deploy.optional import require


class CudaBindings:
    """See `runners.cuda.Cuda`.

    Raises:
        MissingDependency: cuda-bindings is not installed.
        DeviceError: the device cannot be had.
    """

    def __init__(self, device: int = 0) -> None:
        try:
            self._rt: Any = require("cuda.bindings.runtime", extra="tensorrt")
        except MissingDependency as error:  # the extras rtx and tensorrt have it: the hint is not to install either
            raise MissingDependency(error.found, hint="type: pip install cuda-bindings") from error
        self._device = device
        self._call("cudaSetDevice", device)

    def _call(self, name: str, *arguments: Any, size: int | None = None) -> Any:
        """One call of the runtime: its results without the status."""
        status, *results = getattr(self._rt, name)(*arguments)
        if int(status):
            raise self._failure(name, status, size)
        return results[0] if len(results) == 1 else results

    def _failure(self, name: str, status: Any, size: int | None) -> DeviceError:
        _, text = self._rt.cudaGetErrorName(status)
        found = f"{name} fails: {text.decode() if isinstance(text, bytes) else text}"
        if size is None:
            return DeviceError(found, hint="type: sepvit-deploy doctor")
        failed, free, _ = self._rt.cudaMemGetInfo()
        left = "" if int(failed) else f", {free:,} are free"
        return DeviceError(f"{found}, {size:,} bytes were asked for{left}", hint="take a smaller batch or profile")

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        self._here()
        yield

    def allocate(self, size: int) -> int:
        self._here()
        return int(self._call("cudaMalloc", size, size=size))

    def free(self, pointer: int) -> None:
        self._call("cudaFree", pointer)

    def allocate_pinned(self, size: int) -> int:
        self._here()
        return int(self._call("cudaMallocHost", size, size=size))

    def free_pinned(self, pointer: int) -> None:
        self._call("cudaFreeHost", pointer)

    def copy_to_device(self, device: int, host: int, size: int, stream: int) -> None:
        self._call("cudaMemcpyAsync", device, host, size, self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice, stream)

    def copy_to_host(self, host: int, device: int, size: int, stream: int) -> None:
        self._call("cudaMemcpyAsync", host, device, size, self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost, stream)

    def copy_on_device(self, target: int, source: int, size: int, stream: int) -> None:
        self._call("cudaMemcpyAsync", target, source, size, self._rt.cudaMemcpyKind.cudaMemcpyDeviceToDevice, stream)

    def create_stream(self) -> int:
        self._here()
        return int(self._call("cudaStreamCreateWithFlags", self._rt.cudaStreamNonBlocking))

    def destroy_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def create_event(self) -> int:
        self._here()
        return int(self._call("cudaEventCreate"))

    def destroy_event(self, event: int) -> None:
        self._call("cudaEventDestroy", event)

    def record(self, event: int, stream: int) -> None:
        self._call("cudaEventRecord", event, stream)

    def elapsed_ms(self, start: int, end: int) -> float:
        return float(self._call("cudaEventElapsedTime", start, end))

    def begin_capture(self, stream: int) -> None:
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> int:
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return int(self._call("cudaGraphInstantiate", graph, 0))
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: int, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def memory_free_bytes(self) -> int:
        self._here()
        free, _ = self._call("cudaMemGetInfo")
        return int(free)

    def close(self) -> None:
        """Nothing to let go: the primary context is the process's, and others may use it."""

    def _here(self) -> None:
        """A thread has its own current device; what is made is made on this one."""
        self._call("cudaSetDevice", self._device)
