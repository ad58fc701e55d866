"""The machine while something is measured: clocks, power, temperature and throttling of the GPU, load of the processor.

Nothing is set, only read: NVML through NVIDIA's own nvidia-ml-py, and Linux's /proc and /sys.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sepvit_deploy import gpu
from sepvit_deploy.errors import MissingDependency
from sepvit_deploy.latency import Conditions, Machine, Range
from sepvit_deploy.optional import require

PROC = Path("/proc")
CPU_FREQUENCY = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
REASONS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "thermal limit",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
    0x200: "board limit",
    0x400: "reliability limit",
}
"""Bits of ``nvmlClocksEventReasons`` that say that a GPU is held back; idle, set clocks and sync boost are no fault."""


@dataclass(frozen=True)
class Look:
    """One look at the machine; None for what it does not tell.

    Attributes:
        steal: share of the processors' time since the look before that the hypervisor gave to others.
        reasons: why the GPU is held back, of `REASONS`; () where nothing holds it.
    """

    load: float | None = None
    steal: float | None = None
    cpu_mhz: float | None = None
    gpu_sm_mhz: float | None = None
    gpu_memory_mhz: float | None = None
    gpu_power_w: float | None = None
    gpu_temperature_c: float | None = None
    reasons: tuple[str, ...] | None = None


def conditions_of(looks: Sequence[Look]) -> Conditions:
    """What some looks saw."""

    def seen(name: str) -> list[float]:
        return [value for look in looks if (value := getattr(look, name)) is not None]

    steals = seen("steal")
    told = [look.reasons for look in looks if look.reasons is not None]
    reasons = Counter(reason for found in told for reason in found)
    ranges = ("load", "cpu_mhz", "gpu_sm_mhz", "gpu_memory_mhz", "gpu_power_w", "gpu_temperature_c")
    return Conditions(
        looks=len(looks),
        steal=sum(steals) / len(steals) if steals else None,
        throttled={reason: count / len(told) for reason, count in sorted(reasons.items())} if told else None,
        **{name: Range.of(seen(name)) for name in ranges},
    )


class Watcher:
    """Looks at the processor, and at one GPU where ``on_gpu``; a context manager, for NVML is opened and closed.

    Attributes:
        note: why the GPU's conditions are not known; None where they are, or are not asked for.
        driver: NVIDIA's version of the driver.
    """

    def __init__(self, *, on_gpu: bool) -> None:
        self.note: str | None = None
        self.driver: str | None = None
        self._ticks = _ticks()
        self._stack = contextlib.ExitStack()
        self._nvml: Any = None
        self._handle: Any = None
        if on_gpu:
            self._open_nvml()

    def _open_nvml(self) -> None:
        try:
            nvml = require("pynvml", extra="nvml")
            nvml.nvmlInit()
        except MissingDependency as error:
            self.note = f"clocks, power and temperature of the GPU are not recorded: {error}"
            return
        except nvml.NVMLError as error:
            self.note = f"clocks, power and temperature of the GPU are not recorded: NVML says {error}"
            return
        self._stack.callback(nvml.nvmlShutdown)
        try:
            self._handle = nvml.nvmlDeviceGetHandleByPciBusId(gpu.pci_bus_id(0))
            self.driver = _text(nvml.nvmlSystemGetDriverVersion())
            self._nvml = nvml
        except (nvml.NVMLError, ValueError) as error:
            self.note = f"clocks, power and temperature of the GPU are not recorded: NVML says {error}"

    def __call__(self) -> Look:
        """Look now."""
        before, self._ticks = self._ticks, _ticks()
        steal = None
        if before and self._ticks and self._ticks[1] > before[1]:
            steal = (self._ticks[0] - before[0]) / (self._ticks[1] - before[1])
        return Look(load=_load(), steal=steal, cpu_mhz=_cpu_mhz(), **self._of_gpu())

    def _of_gpu(self) -> dict[str, Any]:
        nvml, handle = self._nvml, self._handle
        if nvml is None:
            return {}
        asked: dict[str, Callable[[], float]] = {
            "gpu_sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "gpu_memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "gpu_power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "gpu_temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        }
        found: dict[str, Any] = {}
        for name, ask in asked.items():
            with contextlib.suppress(nvml.NVMLError, AttributeError):  # a virtual GPU does not tell everything
                found[name] = float(ask())
        for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
            if hasattr(nvml, name):  # the older name goes in one version, the newer one came in another
                with contextlib.suppress(nvml.NVMLError):
                    found["reasons"] = reasons_in(getattr(nvml, name)(handle))
                break
        return found

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()


def reasons_in(mask: int) -> tuple[str, ...]:
    """Names of the bits that say that a GPU is held back."""
    return tuple(name for bit, name in REASONS.items() if mask & bit)


def machine(versions: dict[str, str], *, on_gpu: bool, driver: str | None = None) -> Machine:
    """The machine that runs this, with the versions that took part."""
    import platform

    devices = gpu.devices() if on_gpu else ()
    processor = _processor()
    return Machine(
        device=devices[0].name if devices else processor,
        platform=f"{platform.system().lower()} {platform.machine()}",
        processor=processor,
        cores=os.cpu_count() or 1,
        gpu=devices[0] if devices else None,
        driver=driver,
        versions=versions,
    )


def _processor() -> str:
    import platform

    for line in _lines(PROC / "cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


def _cpu_mhz() -> float | None:
    try:
        return float(CPU_FREQUENCY.read_text(encoding="ascii")) / 1000
    except (OSError, ValueError):
        return None


def _ticks() -> tuple[int, int] | None:
    """Stolen and all time of the processors since the start, from the first line of /proc/stat."""
    for line in _lines(PROC / "stat"):
        fields = line.split()
        if fields[:1] == ["cpu"] and len(fields) > 8:
            ticks = [int(text) for text in fields[1:9]]
            return ticks[7], sum(ticks)
    return None


def _lines(path: Path) -> Iterable[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
