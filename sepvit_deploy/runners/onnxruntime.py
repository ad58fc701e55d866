"""Run an ONNX graph in ONNX Runtime."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from sepvit_deploy.errors import GraphError, MissingDependency
from sepvit_deploy.graph import MAX_BYTES, load_graph
from sepvit_deploy.optional import require
from sepvit_deploy.runners.base import require_fit

if TYPE_CHECKING:
    import onnx

    from sepvit_deploy.model.taps import Tap
    from sepvit_deploy.runners.base import Array, Once

_FAILURES = ("Fail", "InvalidGraph", "InvalidArgument", "NotImplemented", "RuntimeException", "EPFail")
Provider = Literal["cpu", "cuda", "tensorrt"]
PROVIDERS: dict[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


class OnnxRuntimeRunner:
    """A session over one graph with one image input.

    Args:
        source: an ONNX file, or a graph in memory.
        name: what reports call it; a file's name by default.
        provider: ``cpu``, ``cuda`` or ``tensorrt``; every node runs there, or it is an error.
        threads: of one operator; None for ONNX Runtime's choice, the physical cores.
        taps: inner tensors to return before the outputs, as maps (B, H, W, C).
        fused: run signed INT8 by ONNX Runtime's own kernels. Without VNNI those add pairs of products in 16 bits and
            saturate: quick, and wrong. By default each Q/DQ pair is computed as it is written, as TensorRT does.

    Raises:
        GraphError: not ONNX, not loadable by ONNX Runtime, or without exactly one float image input.
        MissingDependency: ONNX Runtime is not installed, has no such provider, or the provider did not load.
    """

    def __init__(
        self,
        source: Path | onnx.ModelProto,
        *,
        name: str | None = None,
        provider: Provider = "cpu",
        threads: int | None = None,
        taps: Sequence[Tap] = (),
        fused: bool = False,
    ) -> None:
        ort = require("onnxruntime", extra="cpu")
        self._ort = ort
        self._provider = provider
        self.name = name or (source.name if isinstance(source, Path) else "graph")
        model = load_graph(source) if isinstance(source, Path) else source
        self._taps = {tap.name: tap for tap in taps}
        if taps:
            model = _with_outputs(model, list(self._taps))
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        if not fused and has_signed_activations(model):
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        wanted = PROVIDERS[provider]
        if wanted not in ort.get_available_providers():
            raise MissingDependency(
                f"the installed ONNX Runtime has no {wanted}",
                hint="type: pip uninstall onnxruntime, then pip install 'sepvit-deploy[gpu]'",
            )
        providers = [(wanted, _settings(provider, model))]
        if provider != "cpu":
            _prepare(ort, provider)
            # Without this, a node that the provider does not take runs on the CPU, and nobody is told.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        content = model.SerializeToString()
        try:
            self._session = ort.InferenceSession(content, options, providers=providers, enable_fallback=0)
        except _failures() as error:
            if provider != "cpu":
                _require_loaded(ort, wanted, providers, error)
            found = f"ONNX Runtime does not load {self.name} ({_first_line(error)})"
            if "fallback to CPU" in str(error):
                found = f"{wanted} does not take every node of {self.name}"
                raise GraphError(found, expected="a graph that runs there whole") from error
            raise GraphError(found, expected="a valid ONNX file") from error
        if self._session.get_providers()[0] != wanted:  # ONNX Runtime falls back without a word
            raise _not_loaded(wanted)
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
            found = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs) or "none"
            raise GraphError(f"{self.name} has the inputs {found}", expected="one float image input (B, 3, H, W)")
        self._input = inputs[0].name
        self.input_shape = tuple(dim if isinstance(dim, int) else None for dim in inputs[0].shape)
        if prod(dim or 1 for dim in self.input_shape) * 4 > MAX_BYTES:
            raise GraphError(f"{self.name} takes images of {inputs[0].shape}", expected="an input below 2 GiB")
        outputs = [output.name for output in self._session.get_outputs()]
        self._outputs = [*self._taps, *(name for name in outputs if name not in self._taps)]

    def run(self, images: Array) -> dict[str, Array]:
        """See `Runner.run`."""
        require_fit(self.name, self.input_shape, images)
        with self._failing(images):
            values = self._session.run(self._outputs, {self._input: images})
        named = dict(zip(self._outputs, values, strict=True))
        for name, value in named.items():
            if getattr(getattr(value, "dtype", None), "kind", "") not in tuple("fiub"):
                raise GraphError(f"{self.name} gives {name}, which is no array of numbers", expected="numbers")
        try:
            return named | {name: tap.as_map(named[name]) for name, tap in self._taps.items()}
        except ValueError as error:
            raise GraphError(
                f"{self.name} is not the model of its passport ({error})", hint="export again, or remove the passport"
            ) from error

    def resident(self, inputs: Sequence[Array]) -> Once:
        """See `Resident.resident`; on the host's clock, until the device is done."""
        for images in inputs:
            require_fit(self.name, self.input_shape, images)
        if self._provider == "cpu":
            feeds = [{self._input: images} for images in inputs]

            def on_cpu(k: int) -> tuple[float, None]:
                with self._failing(inputs[0]):
                    start = time.perf_counter()
                    self._session.run(self._outputs, feeds[k % len(feeds)])
                    return (time.perf_counter() - start) * 1000, None

            return on_cpu
        with self._failing(inputs[0]):
            values = [self._ort.OrtValue.ortvalue_from_numpy(images, "cuda", 0) for images in inputs]
            binding = self._session.io_binding()
            for name in self._outputs:
                binding.bind_output(name, "cuda")

        def on_gpu(k: int) -> tuple[float, None]:
            binding.bind_ortvalue_input(self._input, values[k % len(values)])
            with self._failing(inputs[0]):
                start = time.perf_counter()
                self._session.run_with_iobinding(binding)
                binding.synchronize_outputs()
                return (time.perf_counter() - start) * 1000, None

        return on_gpu

    @contextlib.contextmanager
    def _failing(self, images: Array) -> Iterator[None]:
        """Give what ONNX Runtime says of a run that fails a name."""
        try:
            yield
        except _failures() as error:
            found = f"{self.name} fails on {' x '.join(map(str, images.shape))} ({_first_line(error)})"
            raise GraphError(found, expected="a graph that runs on every input that it declares") from error


def _prepare(ort: ModuleType, provider: Provider) -> None:
    """Load the libraries that a GPU's provider looks for, where they came as wheels: nothing else would find them."""
    with contextlib.redirect_stdout(sys.stderr):  # it prints what it does not find
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        if provider == "tensorrt":
            os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # float32 means float32; the provider has no option
            with contextlib.suppress(ImportError, OSError):
                importlib.import_module("tensorrt")


def _require_loaded(ort: ModuleType, wanted: str, providers: list[Any], error: Exception) -> None:
    """Refuse a provider that did not load: its nodes then fall back, and ONNX Runtime complains of them instead.

    Raises:
        MissingDependency: it is not there where the fallback is allowed, on the least of graphs.
    """
    from onnx import TensorProto, helper

    float_ = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "least", float_[:1], float_[1:])
    least = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(least.SerializeToString(), options, providers=providers, enable_fallback=0)
    except _failures():
        raise _not_loaded(wanted) from error
    if wanted not in session.get_providers():
        raise _not_loaded(wanted) from error


def _not_loaded(wanted: str) -> MissingDependency:
    return MissingDependency(f"ONNX Runtime did not load its {wanted}", hint="type: sepvit-deploy doctor")


def _settings(provider: Provider, model: onnx.ModelProto) -> dict[str, str]:
    """What a provider needs so that it computes in the types that the graph says."""
    from onnx import TensorProto

    if provider == "cuda":
        return {"use_tf32": "0"}
    if provider == "tensorrt":
        half = any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer)
        int8 = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
        return {"trt_fp16_enable": str(half), "trt_int8_enable": str(int8)}
    return {}


def has_signed_activations(model: onnx.ModelProto) -> bool:
    """Is it INT8 as TensorRT takes it? For a CPU, activations are unsigned and weights leave room for the sums."""
    from onnx import TensorProto

    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    quantizing = (node for node in model.graph.node if node.op_type == "QuantizeLinear")
    return any(kinds.get(node.input[2]) == TensorProto.INT8 for node in quantizing if len(node.input) > 2)


def _failures() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as native

    return (RuntimeError, *(getattr(native, failure) for failure in _FAILURES))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    from onnx import ModelProto, ValueInfoProto

    more = ModelProto()
    more.CopyFrom(model)
    existing = {output.name for output in model.graph.output}
    more.graph.output.extend(ValueInfoProto(name=name) for name in names if name not in existing)
    return more
