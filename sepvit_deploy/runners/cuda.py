"""The little of CUDA that running an engine needs, behind one protocol: memory, pinned memory, streams, events, graphs.

Pointers and handles are ints. `cuda_bindings` and `cuda_pycuda` implement it; nothing else here touches a device.
"""

from __future__ import annotations

import ctypes
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal, Protocol

from sepvit_deploy import gpu
from sepvit_deploy.errors import DeviceError, OptionError

if TYPE_CHECKING:
    import numpy as np

    Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]

Package = Literal["bindings", "pycuda"]


class Cuda(Protocol):
    """One device. Every method raises `DeviceError` where CUDA fails, with CUDA's own name of the error."""

    def current(self) -> AbstractContextManager[None]:
        """Make it the device of this thread, for what other libraries do there."""
        ...

    def allocate(self, size: int) -> int:
        """Device memory of ``size`` bytes."""
        ...

    def free(self, pointer: int) -> None: ...

    def allocate_pinned(self, size: int) -> int:
        """Page-locked host memory of ``size`` bytes."""
        ...

    def free_pinned(self, pointer: int) -> None: ...

    def copy_to_device(self, device: int, host: int, size: int, stream: int) -> None: ...

    def copy_to_host(self, host: int, device: int, size: int, stream: int) -> None: ...

    def copy_on_device(self, target: int, source: int, size: int, stream: int) -> None: ...

    def create_stream(self) -> int: ...

    def destroy_stream(self, stream: int) -> None: ...

    def synchronize(self, stream: int) -> None: ...

    def create_event(self) -> int: ...

    def destroy_event(self, event: int) -> None: ...

    def record(self, event: int, stream: int) -> None: ...

    def elapsed_ms(self, start: int, end: int) -> float:
        """Milliseconds between two events that have passed."""
        ...

    def begin_capture(self, stream: int) -> None:
        """What goes into the stream from here is recorded and not run."""
        ...

    def end_capture(self, stream: int) -> int:
        """The recorded work as an executable graph."""
        ...

    def launch(self, graph: int, stream: int) -> None: ...

    def destroy_graph(self, graph: int) -> None: ...

    def memory_free_bytes(self) -> int: ...

    def close(self) -> None:
        """Let the device go; what was allocated must be free before."""
        ...


def open_cuda(package: Package = "bindings", device: int = 0) -> Cuda:
    """Take hold of a device.

    Args:
        package: ``bindings`` for cuda-bindings, ``pycuda`` for pycuda, which shares the device's primary context.

    Raises:
        OptionError: no such package.
        DeviceError: there is no driver or no such GPU.
        MissingDependency: the package is not installed.
    """
    if package not in ("bindings", "pycuda"):
        raise OptionError(f"--cuda {package}", expected="bindings or pycuda")
    count = len(gpu.devices())
    if device >= count:  # asked of the driver itself, for pycuda does not even import without one
        found = f"GPU {device} of {count}" if count else "no NVIDIA GPU is seen here"
        raise DeviceError(found, expected="a GPU and its driver", hint="type: sepvit-deploy doctor")
    if package == "pycuda":
        from sepvit_deploy.runners.cuda_pycuda import PyCuda

        return PyCuda(device)
    from sepvit_deploy.runners.cuda_bindings import CudaBindings

    return CudaBindings(device)


def view(pointer: int, size: int) -> Bytes:
    """Host memory as an array of bytes; not to be kept beyond the memory."""
    import numpy as np

    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer))
