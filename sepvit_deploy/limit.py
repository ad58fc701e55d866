"""What a device gives at best: large matrix products of each type, and large copies, on the runtime that is measured.

The product is a graph of its own: (rows x K) by (K x K), its left side made on the device from one row and a constant,
its result reduced to one number, so that no copy is in its time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import onnx
    import torch

    from sepvit_deploy.runners.base import Array, Runner
    from sepvit_deploy.runners.cuda import Cuda

ProductType = Literal["FP32", "FP16", "INT8"]
ON_CPU, ON_GPU = 1024, 4096
"""Rows and columns: beyond a core's caches, and enough to fill a GPU, in a few milliseconds."""
CHAIN_ON_GPU = 4
"""Products one after the other, so that making the left side and reducing the result weigh little."""
COPIED_ON_CPU, COPIED_ON_GPU = 1 << 26, 1 << 28
"""Bytes of a copy: beyond the last cache."""


def operations(size: int, chain: int) -> int:
    """Floating-point operations of a chain of square products; a multiply-accumulate is two."""
    return 2 * chain * size**3


def input_of(runner: Runner) -> Array:
    """One small input for what runs a product."""
    import numpy as np

    shape = (1, *(dim or 1 for dim in runner.input_shape[1:]))
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def product_graph(kind: ProductType, *, size: int, chain: int = 1, unsigned: bool = False) -> onnx.ModelProto:
    """A chain of square products in one type: images (1, 1, 1, size) -> y (1, 1, 1, 1).

    Args:
        unsigned: activations of INT8 as ONNX Runtime's CPU kernels want them; TensorRT takes signed ones alone.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    half = kind == "FP16"
    dtype = np.float16 if half else np.float32
    left = rng.standard_normal((1, 1, size, size), dtype=np.float32).astype(dtype)
    weight = (rng.standard_normal((size, size), dtype=np.float32) / np.sqrt(size)).astype(dtype)
    constants = [numpy_helper.from_array(left, "left")]
    nodes = [helper.make_node("Cast", ["images"], ["row"], to=TensorProto.FLOAT16)] if half else []
    nodes.append(helper.make_node("Add", ["left", "row" if half else "images"], ["x0"]))
    right = "weight"
    if kind == "INT8":
        zero = np.array(128, np.uint8) if unsigned else np.array(0, np.int8)
        constants += [
            numpy_helper.from_array(np.clip(np.rint(weight * 127 / 0.2), -127, 127).astype(np.int8), "codes"),
            numpy_helper.from_array(np.array(0.2 / 127, np.float32), "weight_scale"),
            numpy_helper.from_array(np.array(0, np.int8), "weight_zero"),
            numpy_helper.from_array(np.array(6 / 127, np.float32), "scale"),
            numpy_helper.from_array(zero, "zero"),
        ]
        nodes.append(helper.make_node("DequantizeLinear", ["codes", "weight_scale", "weight_zero"], ["weight"]))
    else:
        constants.append(numpy_helper.from_array(weight, "weight"))
    for k in range(chain):
        source = f"x{k}"
        if kind == "INT8":
            nodes.append(helper.make_node("QuantizeLinear", [source, "scale", "zero"], [f"q{k}"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"q{k}", "scale", "zero"], [f"d{k}"]))
            source = f"d{k}"
        nodes.append(helper.make_node("MatMul", [source, right], [f"x{k + 1}"], name=f"product{k}"))
    nodes.append(helper.make_node("ReduceMax", [f"x{chain}"], ["most" if half else "y"], keepdims=1))
    if half:
        nodes.append(helper.make_node("Cast", ["most"], ["y"], to=TensorProto.FLOAT))
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 1, 1, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 1, 1])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def product_module(*, size: int, chain: int = 1) -> torch.nn.Module:
    """The same chain in FP32 as a module of torch."""
    import torch

    class Product(torch.nn.Module):
        left: torch.Tensor
        weight: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.register_buffer("left", torch.randn(size, size, generator=generator))
            self.register_buffer("weight", torch.randn(size, size, generator=generator) / size**0.5)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            """Images (1, 1, 1, size) -> (1, 1)."""
            x = self.left + images[0, 0]
            for _ in range(chain):
                x = x @ self.weight
            return x.amax(dim=(0, 1), keepdim=True)

    return Product().eval()


def copy_on_cpu(threads: int) -> Callable[[], float]:
    """Milliseconds of copying `COPIED_ON_CPU` bytes by some threads, each its part; for a gauge of `bench`."""
    import numpy as np

    sources = np.array_split(np.ones(COPIED_ON_CPU, np.uint8), threads)
    targets = np.array_split(np.zeros(COPIED_ON_CPU, np.uint8), threads)
    if threads == 1:

        def alone() -> float:
            start = time.perf_counter()
            np.copyto(targets[0], sources[0])
            return (time.perf_counter() - start) * 1000

        return alone
    pool = ThreadPoolExecutor(threads)

    def together() -> float:
        start = time.perf_counter()
        list(pool.map(np.copyto, targets, sources))
        return (time.perf_counter() - start) * 1000

    return together


class CopyOnGpu:
    """Milliseconds of copying `COPIED_ON_GPU` bytes within the device's memory, between events; a context manager."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        with contextlib.ExitStack() as stack:
            stack.callback(cuda.close)

            def made(handle: int, free: Callable[[int], None]) -> int:
                stack.callback(free, handle)
                return handle

            self._target, self._source = (made(cuda.allocate(COPIED_ON_GPU), cuda.free) for _ in range(2))
            self._stream = made(cuda.create_stream(), cuda.destroy_stream)
            self._events = [made(cuda.create_event(), cuda.destroy_event) for _ in range(2)]
            self._stack = stack.pop_all()

    def __call__(self) -> float:
        """Copy once."""
        with self._cuda.current():
            self._cuda.record(self._events[0], self._stream)
            self._cuda.copy_on_device(self._target, self._source, COPIED_ON_GPU, self._stream)
            self._cuda.record(self._events[1], self._stream)
            self._cuda.synchronize(self._stream)
            return self._cuda.elapsed_ms(self._events[0], self._events[1])

    def __enter__(self) -> CopyOnGpu:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()
