"""What the CUDA driver is asked, and what is made of its answers; no driver is needed."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from sepvit_deploy import gpu

H200 = {8: 49152, 14: 512, 16: 132, 18: 0, 32: 1, 37: 6144, 38: 62914560, 75: 9, 76: 0, 81: 233472}
FUNCTIONS = (
    *("cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName"),
    *("cuDeviceTotalMem_v2", "cuDeviceGetAttribute"),
)


class Driver:
    """libcuda with two H200; ``failing`` names the function that fails."""

    def __init__(self, failing: str = "", missing: str = "") -> None:
        self.failing, self.missing = failing, missing

    def __getattr__(self, name: str) -> Any:
        if name == self.missing:
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            if name == self.failing:
                return 999
            if answer := vars(Driver).get(f"_{name}"):
                answer(self, *arguments)
            return 0

        return call

    def _cuDriverGetVersion(self, version: Any) -> None:
        version._obj.value = 13020

    def _cuDeviceGetCount(self, count: Any) -> None:
        count._obj.value = 2

    def _cuDeviceGet(self, handle: Any, index: int) -> None:
        handle._obj.value = 40 + index

    def _cuDeviceGetName(self, name: Any, size: int, handle: Any) -> None:
        name.value = f"NVIDIA H200 {handle.value}".encode()

    def _cuDeviceTotalMem_v2(self, memory: Any, handle: Any) -> None:
        memory._obj.value = 150_000_000_000

    def _cuDeviceGetPCIBusId(self, text: Any, size: int, handle: Any) -> None:
        assert size == 64
        text.value = f"0000:{handle.value}:00.0".encode()

    def _cuDeviceGetAttribute(self, value: Any, number: int, handle: Any) -> None:
        value._obj.value = H200[number]


def test_every_property_comes_from_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    first, second = gpu.devices()
    assert first == gpu.Device(
        index=0,
        name="NVIDIA H200 40",
        compute_capability="9.0",
        multiprocessors=132,
        memory_bytes=150_000_000_000,
        memory_bus_bits=6144,
        l2_cache_bytes=62914560,
        shared_memory_per_block_bytes=49152,
        shared_memory_per_multiprocessor_bytes=233472,
        texture_alignment_bytes=512,
        integrated=False,
        ecc=True,
        driver="13.2",
    )
    assert (second.index, second.name) == (1, "NVIDIA H200 41")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_driver_that_does_not_answer_has_no_gpu(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(failing=function))
    assert gpu.devices() == ()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(missing=function))
    assert gpu.devices() == ()


def test_no_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert gpu.devices() == ()


def test_the_place_on_the_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert gpu.pci_bus_id(1) == "0000:41:00.0"
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(failing="cuDeviceGet"))
    with pytest.raises(ValueError, match="there is no GPU 1"):
        gpu.pci_bus_id(1)
