"""Device access by cuda-bindings and by pycuda: their calls, their errors, and what they say where there is no GPU."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sepvit_deploy import gpu
from sepvit_deploy.errors import DeviceError, MissingDependency, OptionError
from sepvit_deploy.runners import cuda_bindings
from sepvit_deploy.runners.cuda import open_cuda, view
from sepvit_deploy.runners.cuda_bindings import CudaBindings
from sepvit_deploy.runners.cuda_pycuda import PyCuda

USED = (
    *("cudaSetDevice", "cudaMalloc", "cudaFree", "cudaMallocHost", "cudaFreeHost", "cudaMemcpyAsync", "cudaMemGetInfo"),
    *("cudaStreamCreateWithFlags", "cudaStreamDestroy", "cudaStreamSynchronize", "cudaStreamNonBlocking"),
    *("cudaEventCreate", "cudaEventDestroy", "cudaEventRecord", "cudaEventElapsedTime", "cudaGetErrorName"),
    *("cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphLaunch"),
    *("cudaGraphExecDestroy", "cudaGraphDestroy", "cudaMemcpyKind", "cudaStreamCaptureMode"),
)


class Status(IntEnum):
    SUCCESS = 0
    OUT_OF_MEMORY = 2
    BAD = 700


class FakeRuntime:
    """The calls of cuda.bindings.runtime: a status first, then the results."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(
        cudaMemcpyHostToDevice="h2d", cudaMemcpyDeviceToHost="d2h", cudaMemcpyDeviceToDevice="d2d"
    )
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread")
    results: dict[str, tuple[Any, ...]] = {  # noqa: RUF012 - read only
        "cudaMalloc": (4096,),
        "cudaMallocHost": (8192,),
        "cudaMemGetInfo": (1000, 2000),
        "cudaStreamCreateWithFlags": (11,),
        "cudaEventCreate": (12,),
        "cudaEventElapsedTime": (1.5,),
        "cudaStreamEndCapture": (13,),
        "cudaGraphInstantiate": (14,),
    }

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.failing: dict[str, Status] = {}

    def cudaGetErrorName(self, status: Status) -> tuple[Status, bytes]:
        return Status.SUCCESS, f"cudaError{status.name}".encode()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            return (self.failing.get(name, Status.SUCCESS), *self.results.get(name, ()))

        return call


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    fake = FakeRuntime()
    monkeypatch.setattr(cuda_bindings, "require", lambda module, extra: fake)
    return fake


def test_the_runtime_is_called_as_it_is_documented(runtime: FakeRuntime) -> None:
    cuda = CudaBindings(1)
    assert cuda.allocate(100) == 4096
    assert cuda.allocate_pinned(100) == 8192
    stream, event = cuda.create_stream(), cuda.create_event()
    cuda.copy_to_device(4096, 8192, 100, stream)
    cuda.copy_to_host(8192, 4096, 50, stream)
    cuda.copy_on_device(4096, 4097, 10, stream)
    cuda.record(event, stream)
    assert cuda.elapsed_ms(event, event) == 1.5
    cuda.begin_capture(stream)
    graph = cuda.end_capture(stream)
    cuda.launch(graph, stream)
    cuda.synchronize(stream)
    cuda.destroy_graph(graph)
    cuda.destroy_event(event)
    cuda.destroy_stream(stream)
    cuda.free(4096)
    cuda.free_pinned(8192)
    assert cuda.memory_free_bytes() == 1000
    cuda.close()
    calls = [call for call in runtime.calls if call[0] != "cudaSetDevice"]
    assert calls == [
        ("cudaMalloc", 100),
        ("cudaMallocHost", 100),
        ("cudaStreamCreateWithFlags", 1),
        ("cudaEventCreate",),
        ("cudaMemcpyAsync", 4096, 8192, 100, "h2d", 11),
        ("cudaMemcpyAsync", 8192, 4096, 50, "d2h", 11),
        ("cudaMemcpyAsync", 4096, 4097, 10, "d2d", 11),
        ("cudaEventRecord", 12, 11),
        ("cudaEventElapsedTime", 12, 12),
        ("cudaStreamBeginCapture", 11, "thread"),
        ("cudaStreamEndCapture", 11),
        ("cudaGraphInstantiate", 13, 0),
        ("cudaGraphDestroy", 13),
        ("cudaGraphLaunch", 14, 11),
        ("cudaStreamSynchronize", 11),
        ("cudaGraphExecDestroy", 14),
        ("cudaEventDestroy", 12),
        ("cudaStreamDestroy", 11),
        ("cudaFree", 4096),
        ("cudaFreeHost", 8192),
        ("cudaMemGetInfo",),
    ]
    assert {call[1] for call in runtime.calls if call[0] == "cudaSetDevice"} == {1}


def test_out_of_memory_says_how_much_was_asked_and_is_free(runtime: FakeRuntime) -> None:
    cuda = CudaBindings(0)
    runtime.failing["cudaMalloc"] = Status.OUT_OF_MEMORY
    words = (
        "^cudaMalloc fails: cudaErrorOUT_OF_MEMORY, 123,456 bytes were asked for, 1,000 are free; take a smaller batch"
    )
    with pytest.raises(DeviceError, match=words):
        cuda.allocate(123456)
    runtime.failing["cudaMemGetInfo"] = Status.BAD
    with pytest.raises(DeviceError, match="bytes were asked for; take a smaller batch"):
        cuda.allocate(123456)


def test_a_failing_call_is_named_and_its_graph_is_not_kept(runtime: FakeRuntime) -> None:
    cuda = CudaBindings(0)
    runtime.failing["cudaGraphInstantiate"] = Status.BAD
    with pytest.raises(DeviceError, match=r"^cudaGraphInstantiate fails: cudaErrorBAD; type: sepvit-deploy doctor$"):
        cuda.end_capture(11)
    assert runtime.calls[-1] == ("cudaGraphDestroy", 13)


def test_no_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match=r"^no NVIDIA GPU is seen here; expected a GPU and its driver; type: sepvit-"):
        open_cuda()
    with pytest.raises(DeviceError, match="no NVIDIA GPU"):
        open_cuda("pycuda")
    with pytest.raises(OptionError, match="--cuda cupy; expected bindings or pycuda"):
        open_cuda("cupy")  # type: ignore[arg-type]
    monkeypatch.setattr(gpu, "devices", lambda: ("one",))
    with pytest.raises(DeviceError, match="GPU 1 of 1; expected"):
        open_cuda(device=1)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(MissingDependency, match=r"pip install 'sepvit-deploy\[pycuda\]'"):
        open_cuda("pycuda")


def test_the_installed_bindings_have_every_name() -> None:
    from cuda.bindings import runtime

    assert [name for name in USED if not hasattr(runtime, name)] == []
    assert hasattr(runtime.cudaMemcpyKind, "cudaMemcpyHostToDevice")
    assert hasattr(runtime.cudaStreamCaptureMode, "cudaStreamCaptureModeThreadLocal")
    with pytest.raises(DeviceError, match=r"cudaSetDevice fails: cudaError\w+; type: sepvit-deploy doctor"):
        CudaBindings(0)


class Driver(ModuleType):
    """pycuda.driver, as documented: contexts on a stack, things that free themselves."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pycuda.driver")
        self.stack: list[str] = []
        self.freed: list[str] = []
        self.detached = 0
        self.failing = ""
        driver = self

        class Context:
            def push(self) -> None:
                driver.stack.append("ours")

            @staticmethod
            def pop() -> None:
                driver.stack.pop()

            def detach(self) -> None:
                driver.detached += 1

        class Memory:
            def __init__(self, size: int) -> None:
                driver.require("mem_alloc")
                self.size = size
                self.buffer = ctypes.create_string_buffer(size)

            def __int__(self) -> int:
                return ctypes.addressof(self.buffer)

            def free(self) -> None:
                driver.require("free")
                driver.freed.append(f"memory {self.size}")

        class Stream:
            handle = 77

            def synchronize(self) -> None:
                driver.require("synchronize")

        class Event:
            def record(self, stream: Stream) -> None:
                driver.require("record")

            def time_till(self, other: Event) -> float:
                return 2.5

        self.Context, self.mem_alloc, self.Stream, self.Event = Context, Memory, Stream, Event
        self.Device = lambda index: SimpleNamespace(retain_primary_context=Context)

    def init(self) -> None:
        pass

    def require(self, what: str) -> None:
        assert self.stack[-1:] == ["ours"], f"{what} outside the context"
        if what == self.failing:
            raise self.Error(f"{what} planted")

    def pagelocked_empty(self, size: int, kind: Any) -> np.ndarray:
        self.require("pagelocked_empty")

        class Pinned(np.ndarray):  # its base frees itself
            pass

        found = np.zeros(size, kind).view(Pinned)
        driver = self

        class Base:
            def free(self) -> None:
                driver.freed.append(f"pinned {size}")

        return _Based(found, Base())  # type: ignore[return-value]

    def memcpy_htod_async(self, device: int, source: np.ndarray, stream: Any) -> None:
        self.require("memcpy_htod_async")
        ctypes.memmove(device, source.ctypes.data, source.nbytes)

    def memcpy_dtoh_async(self, target: np.ndarray, device: int, stream: Any) -> None:
        self.require("memcpy_dtoh_async")
        ctypes.memmove(target.ctypes.data, device, target.nbytes)

    def memcpy_dtod_async(self, target: int, source: int, size: int, stream: Any) -> None:
        self.require("memcpy_dtod_async")
        ctypes.memmove(target, source, size)

    def mem_get_info(self) -> tuple[int, int]:
        self.require("mem_get_info")
        return 5, 10


class _Based:
    """An array with a base that frees itself."""

    def __init__(self, array: np.ndarray, base: Any) -> None:
        self.array, self.base, self.ctypes = array, base, array.ctypes

    def __getitem__(self, key: Any) -> np.ndarray:
        found: np.ndarray = self.array[key]
        return found


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    fake = Driver()
    package = ModuleType("pycuda")
    package.driver = fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", fake)
    fake.stack.append("torch's")
    yield fake
    assert fake.stack == ["torch's"], "the context that was current before is not current again"


def test_pycuda_works_in_the_primary_context_and_leaves_it(driver: Driver) -> None:
    cuda = PyCuda(0)
    device, host, stream = cuda.allocate(16), cuda.allocate_pinned(16), cuda.create_stream()
    other = cuda.allocate(16)
    assert stream == 77
    view(host, 16)[:] = np.arange(16, dtype=np.uint8)
    cuda.copy_to_device(device, host, 16, stream)
    view(host, 16)[:] = 0
    cuda.copy_on_device(other, device, 16, stream)
    cuda.copy_to_host(host, other, 8, stream)
    cuda.free(other)
    assert view(host, 16).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, *[0] * 8]
    start, end = cuda.create_event(), cuda.create_event()
    cuda.record(start, stream)
    assert cuda.elapsed_ms(start, end) == 2.5
    cuda.synchronize(stream)
    assert cuda.memory_free_bytes() == 5
    with cuda.current():
        assert driver.stack[-1] == "ours"
    for event in (start, end):
        cuda.destroy_event(event)
    cuda.free(device)
    cuda.free_pinned(host)
    cuda.destroy_stream(stream)
    assert driver.freed == ["memory 16", "memory 16", "pinned 16"]
    cuda.close()
    assert driver.detached == 1


def test_pycuda_fails_in_one_line(driver: Driver) -> None:
    cuda = PyCuda(0)
    driver.failing = "mem_alloc"
    with pytest.raises(DeviceError, match=r"^allocating 1,024 bytes fails: mem_alloc planted; take a smaller batch"):
        cuda.allocate(1024)


def test_pycuda_captures_no_graphs(driver: Driver) -> None:
    cuda = PyCuda(0)
    with pytest.raises(OptionError, match="--cuda pycuda with a CUDA graph; expected --cuda bindings"):
        cuda.begin_capture(1)


def test_a_view_is_the_memory_itself() -> None:
    memory = ctypes.create_string_buffer(b"abcd", 4)
    view(ctypes.addressof(memory), 4)[1] = ord("X")
    assert memory.raw == b"aXcd"
    with contextlib.suppress(ValueError):
        assert view(ctypes.addressof(memory), 0).size == 0
