"""A TensorRT without a GPU: strict about the order of calls, and its engines compute ``3 x + row``, and the mean.

A "plan" is JSON: profiles as [[minimum, optimum, maximum], ...] or a fixed batch, and faults to plant. With ``sizes``,
of each profile three as [height, width], it is of any size and computes a mask: where the first plane is positive.
"""

from __future__ import annotations

import ctypes
import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.unit.fake_cuda import FakeCuda

SIDE = 4


def plan(profiles: list[list[int]] | None = None, **more: object) -> bytes:
    return json.dumps({"profiles": profiles or [[1, 8, 8]], **more}).encode()


def model(images: np.ndarray) -> dict[str, np.ndarray]:
    """What the engine computes: each output depends on the whole image and on its place in the batch."""
    rows = np.arange(len(images), dtype=np.float32)[:, None]
    flat = images.reshape(len(images), -1)
    return {"logits": (3 * flat[:, :5] + rows).astype(np.float32), "mean": flat.mean(axis=1, keepdims=True)}


def mask(images: np.ndarray) -> dict[str, np.ndarray]:
    """What an engine of any size computes: it depends on every pixel and its place, and is not of float32."""
    return {"mask": (images[:, 0] > 0).astype(np.uint8)}


def module(cuda: FakeCuda) -> Any:
    """A ``trt`` over a fake device."""
    return Module(
        __version__="11.4.0.1",
        ILogger=type("ILogger", (), {"ERROR": 1, "INTERNAL_ERROR": 0, "WARNING": 2}),
        IProfiler=type("IProfiler", (), {}),
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        LayerInformationFormat=SimpleNamespace(JSON="json"),
        Runtime=lambda log: Runtime(cuda, log),
    )


class Module(SimpleNamespace):
    """As a module, a key of its own."""

    __hash__ = object.__hash__


class Runtime:
    def __init__(self, cuda: FakeCuda, log: Any) -> None:
        assert cuda.depth, "TensorRT was called while the device was not current"
        self.cuda, self.log = cuda, log
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, content: bytes) -> Engine | None:
        try:
            facts = json.loads(content)
        except ValueError:
            self.log.log(1, "the plan\nis damaged")
            return None
        if facts.get("host_code") and not self.engine_host_code_allowed:
            self.log.log(1, "host code is not allowed")
            return None
        return Engine(self.cuda, self.log, facts)


class Engine:
    def __init__(self, cuda: FakeCuda, log: Any, facts: dict[str, Any]) -> None:
        self.cuda, self.log, self.facts = cuda, log, facts
        self.any_size = "sizes" in facts
        self.tensors = facts.get("tensors", ["images", *(["mask"] if self.any_size else ["logits", "mean"])])
        self.num_io_tensors = len(self.tensors)
        self.num_optimization_profiles = len(facts["profiles"])

    def get_tensor_name(self, index: int) -> str:
        return str(self.tensors[index])

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name.startswith("images") else "out"

    def get_tensor_dtype(self, name: str) -> SimpleNamespace:
        usual = "UINT8" if name == "mask" else "FLOAT"
        return SimpleNamespace(name="HALF" if name == self.facts.get("half") else usual)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch = self.facts.get("fixed", -1)
        size = (-1, -1) if self.any_size else (SIDE, SIDE)
        return {"logits": (batch, 5), "mean": (batch, 1), "mask": (batch, *size)}.get(name, (batch, 3, *size))

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        sizes = self.facts["sizes"][index] if self.any_size else [(SIDE, SIDE)] * 3
        return [(b, 3, *size) for b, size in zip(self.facts["profiles"][index], sizes, strict=True)]

    def create_execution_context(self) -> Context | None:
        return None if self.facts.get("no_context") else Context(self)

    def create_engine_inspector(self) -> Inspector:
        return Inspector()


class Inspector:
    """Tells the types of tensors only where an execution context knows their shapes."""

    def __init__(self) -> None:
        self.execution_context: Context | None = None

    def get_engine_information(self, form: str) -> str:
        assert form == "json"
        context = self.execution_context
        known = context is not None and context.shape is not None
        return json.dumps({"Layers": [{"Name": "embed", "type": "Half" if known else "N/A due to dynamic shapes"}]})


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.profile: int | None = None
        self.shape: tuple[int, ...] | None = None
        self.addresses: dict[str, int] = {}
        self.profiler: Any = None
        self.runs = 0

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream in self.engine.cuda.live
        self.profile = index
        return index < self.engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None, "no profile was chosen"
        assert name == "images"
        least, _, most = self.engine.get_tensor_profile_shape(name, self.profile)
        if not all(low <= dim <= high for low, dim, high in zip(least, shape, most, strict=True)):
            self.engine.log.log(1, f"shape {shape} is outside the profile")
            return False
        self.shape = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert self.shape is not None
        batch, _, *size = self.shape
        return {"logits": (batch, 5), "mean": (batch, 1), "mask": (batch, *size)}[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address in self.engine.cuda.live, "the address is of no memory"
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        cuda = self.engine.cuda
        assert cuda.depth
        assert stream in cuda.live
        assert self.addresses.keys() == set(self.engine.tensors)
        cuda.calls.append("enqueue")
        self.runs += 1
        if self.runs == self.engine.facts.get("fails_at_run"):
            self.engine.log.log(1, "a kernel\nfailed")
            return False
        shape, addresses = self.shape, dict(self.addresses)

        def work() -> None:
            compute(shape, addresses)

        if cuda.captured is not None:
            cuda.captured.append(work)
        else:
            work()
        if self.profiler is not None:
            for layer, ms in (("embed", 0.5), ("block", 1.0), ("block", 2.0)):
                self.profiler.report_layer_time(layer, ms)
        return True


def compute(shape: tuple[int, ...] | None, addresses: dict[str, int]) -> None:
    assert shape is not None

    def at(name: str, count: int, kind: type[ctypes._SimpleCData[Any]] = ctypes.c_float) -> np.ndarray:
        return np.ctypeslib.as_array((kind * count).from_address(addresses[name]))

    images = at("images", math.prod(shape)).reshape(shape)
    for name, values in (mask if "mask" in addresses else model)(images).items():
        at(name, values.size, ctypes.c_uint8 if name == "mask" else ctypes.c_float)[:] = values.ravel()
