"""What the machine is seen to do: NVML through a stand-in, and Linux's files in a folder."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from sepvit_deploy import conditions, gpu
from sepvit_deploy.conditions import REASONS, Look, Watcher, conditions_of, machine, reasons_in
from sepvit_deploy.latency import Conditions, Range


class NVMLError(Exception):
    pass


class Nvml(ModuleType):
    """NVML of one GPU, found by its place on the bus; ``silent`` calls are not supported."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, *, silent: tuple[str, ...] = (), absent: bool = False) -> None:
        super().__init__("pynvml")
        self.silent, self.absent, self.opened, self.mask = silent, absent, 0, 0

    def nvmlInit(self) -> None:
        if self.absent:
            raise NVMLError("NVML Shared Library Not Found")
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlDeviceGetHandleByPciBusId(self, bus: str) -> str:
        return f"handle of {bus}"

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"580.65.06"

    def _said(self, name: str, handle: str, value: float) -> float:
        assert handle == "handle of 0000:3B:00.0"
        if name in self.silent:
            raise NVMLError("Not Supported")
        return value

    def nvmlDeviceGetClockInfo(self, handle: str, which: int) -> float:
        return self._said("clock", handle, 1410 if which == 1 else 5001)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> float:
        return self._said("power", handle, 71_500)

    def nvmlDeviceGetTemperature(self, handle: str, which: int) -> float:
        return self._said("temperature", handle, 64)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:
        return int(self._said("reasons", handle, self.mask))


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    module = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(gpu, "pci_bus_id", lambda index: "0000:3B:00.0")
    return module


def test_a_gpu_is_looked_at_and_let_go(nvml: Nvml) -> None:
    nvml.mask = 0x4 | 0x1 | 0x40
    with Watcher(on_gpu=True) as watcher:
        look = watcher()
        assert nvml.opened == 1
    assert nvml.opened == 0
    assert (look.gpu_sm_mhz, look.gpu_memory_mhz, look.gpu_power_w, look.gpu_temperature_c) == (1410, 5001, 71.5, 64)
    assert look.reasons == ("power cap", "hardware thermal slowdown"), "idle is no fault"
    assert watcher.driver == "580.65.06"
    assert watcher.note is None


def test_reasons_are_asked_for_by_the_name_that_is_there(nvml: Nvml) -> None:
    nvml.mask = 0x4
    nvml.nvmlDeviceGetCurrentClocksEventReasons = lambda handle: 0x200  # type: ignore[attr-defined]
    with Watcher(on_gpu=True) as watcher:
        assert watcher().reasons == ("board limit",)


def test_what_a_gpu_does_not_tell_is_left_out(nvml: Nvml) -> None:
    nvml.silent = ("power", "reasons")
    with Watcher(on_gpu=True) as watcher:
        look = watcher()
    assert look.gpu_power_w is None
    assert look.reasons is None, "not the same as: nothing holds it back"
    assert look.gpu_sm_mhz == 1410


def test_without_nvml_a_note_says_why(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.absent = True
    with Watcher(on_gpu=True) as watcher:
        assert watcher().gpu_sm_mhz is None
    assert watcher.note is not None
    assert "are not recorded: NVML says NVML Shared Library Not Found" in watcher.note
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with Watcher(on_gpu=True) as watcher:
        assert watcher.note is not None
        assert "pip install 'sepvit-deploy[nvml]'" in watcher.note


def test_a_cpu_needs_no_nvml(nvml: Nvml) -> None:
    nvml.absent = True
    with Watcher(on_gpu=False) as watcher:
        assert watcher().load is not None
    assert watcher.note is None


def test_every_bit_has_its_name() -> None:
    import pynvml as nvidia

    assert reasons_in(0) == reasons_in(nvidia.nvmlClocksThrottleReasonGpuIdle) == ()
    assert reasons_in(nvidia.nvmlClocksThrottleReasonApplicationsClocksSetting) == ()
    for name, bit in (
        ("power cap", nvidia.nvmlClocksThrottleReasonSwPowerCap),
        ("hardware slowdown", nvidia.nvmlClocksThrottleReasonHwSlowdown),
        ("thermal limit", nvidia.nvmlClocksThrottleReasonSwThermalSlowdown),
        ("hardware thermal slowdown", nvidia.nvmlClocksThrottleReasonHwThermalSlowdown),
        ("power brake", nvidia.nvmlClocksThrottleReasonHwPowerBrakeSlowdown),
        ("board limit", nvidia.nvmlClocksThrottleReasonBoardLimit),
        ("reliability limit", nvidia.nvmlClocksThrottleReasonReliability),
    ):
        assert reasons_in(bit) == (name,)
    assert len(REASONS) == len(set(REASONS.values()))


def test_time_that_the_hypervisor_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "PROC", tmp_path)
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1 2 3\n", encoding="utf-8")
    (tmp_path / "cpuinfo").write_text("processor: 0\nmodel name\t: Some CPU\n", encoding="utf-8")
    with Watcher(on_gpu=False) as watcher:
        assert watcher().steal is None, "no time passed"
        stat.write_text("cpu  150 0 100 830 0 0 0 20 0 0\n", encoding="utf-8")
        assert watcher().steal == pytest.approx(0.2)
        stat.write_text("no such line\n", encoding="utf-8")
        assert watcher().steal is None
    assert machine({"x": "1"}, on_gpu=False).device == "Some CPU"


def test_looks_become_ranges() -> None:
    looks = [
        *(Look(load=1.0, steal=0.0, reasons=("power cap",)), Look(load=3.0, steal=0.5, reasons=())),
        Look(load=2.0, reasons=()),
    ]
    found = conditions_of([*looks, Look(reasons=())])
    assert found.looks == 4
    assert found.load == Range(1.0, 2.0, 3.0)
    assert found.steal == 0.25
    assert found.throttled == {"power cap": 0.25}
    assert found.gpu_power_w is None
    assert conditions_of([]) == Conditions()
