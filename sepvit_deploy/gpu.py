"""The NVIDIA GPUs of this machine as the CUDA driver reports them, without a CUDA package: libcuda through ctypes."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

LIBRARY = "libcuda.so.1"
ATTRIBUTES = {
    "shared_memory_per_block_bytes": 8,
    "texture_alignment_bytes": 14,
    "multiprocessors": 16,
    "integrated": 18,
    "ecc": 32,
    "memory_bus_bits": 37,
    "l2_cache_bytes": 38,
    "major": 75,
    "minor": 76,
    "shared_memory_per_multiprocessor_bytes": 81,
}
"""Numbers of ``CUdevice_attribute`` in cuda.h, which are part of the driver's stable binary interface."""
_NAME_BYTES = 256


@dataclass(frozen=True)
class Device:
    """A GPU, with every property that TensorRT keeps in a plan and compares when it loads one.

    Attributes:
        compute_capability: ``9.0``.
        driver: the CUDA version that the driver supports, ``13.0``.
    """

    index: int
    name: str
    compute_capability: str
    multiprocessors: int
    memory_bytes: int
    memory_bus_bits: int
    l2_cache_bytes: int
    shared_memory_per_block_bytes: int
    shared_memory_per_multiprocessor_bytes: int
    texture_alignment_bytes: int
    integrated: bool
    ecc: bool
    driver: str


def devices() -> tuple[Device, ...]:
    """The GPUs that ``CUDA_VISIBLE_DEVICES`` leaves visible; () without a driver, or where it does not answer."""
    try:
        driver = ctypes.CDLL(LIBRARY)
    except OSError:
        return ()
    try:
        if driver.cuInit(0):
            return ()
        version, count = ctypes.c_int(), ctypes.c_int()
        _require(driver.cuDriverGetVersion(ctypes.byref(version)))
        _require(driver.cuDeviceGetCount(ctypes.byref(count)))
        text = f"{version.value // 1000}.{version.value % 1000 // 10}"
        return tuple(_device(driver, index, text) for index in range(count.value))
    except (_NoAnswer, AttributeError):  # AttributeError: a library without one of these functions
        return ()


def pci_bus_id(index: int) -> str:
    """``00000000:3B:00.0`` of the GPU that is ``index`` among the visible ones, which other libraries number anew.

    Raises:
        ValueError: there is none.
    """
    text, handle = ctypes.create_string_buffer(64), ctypes.c_int()
    try:
        driver = ctypes.CDLL(LIBRARY)
        _require(driver.cuInit(0))
        _require(driver.cuDeviceGet(ctypes.byref(handle), index))
        _require(driver.cuDeviceGetPCIBusId(text, len(text), handle))
    except (OSError, _NoAnswer, AttributeError) as error:
        raise ValueError(f"there is no GPU {index}") from error
    return text.value.decode(errors="replace")


class _NoAnswer(Exception):
    """A call of the driver failed."""


def _require(status: int) -> None:
    if status:
        raise _NoAnswer


def _device(driver: Any, index: int, version: str) -> Device:
    handle, memory = ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    _require(driver.cuDeviceGet(ctypes.byref(handle), index))
    _require(driver.cuDeviceGetName(name, _NAME_BYTES, handle))
    _require(driver.cuDeviceTotalMem_v2(ctypes.byref(memory), handle))
    found: dict[str, int] = {}
    for attribute, number in ATTRIBUTES.items():
        value = ctypes.c_int()
        _require(driver.cuDeviceGetAttribute(ctypes.byref(value), number, handle))
        found[attribute] = value.value
    major, minor = found.pop("major"), found.pop("minor")
    integrated, ecc = bool(found.pop("integrated")), bool(found.pop("ecc"))
    return Device(
        index=index,
        name=name.value.decode(errors="replace"),
        compute_capability=f"{major}.{minor}",
        memory_bytes=memory.value,
        integrated=integrated,
        ecc=ecc,
        driver=version,
        **found,
    )
