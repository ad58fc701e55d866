"""A deserialised engine of TensorRT or TensorRT-RTX: what it takes and gives, and contexts to run it in.

It holds no memory of ours: `tensorrt` has the buffers. The device must be current for whatever is done here.
Shapes: B batch, H x W images.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sepvit_deploy import builders
from sepvit_deploy.building import BUILDER_NAMES, Builder, Profile
from sepvit_deploy.errors import DeviceError, InputError, PlanError

_TYPES = {"FLOAT": "float32", "UINT8": "uint8"}
"""Numpy's names of TensorRT's types, of those that an output may have."""


class LoadedEngine:
    """An engine by its tensors' names.

    Args:
        plan: the engine; it is code, and deserialising runs it: see `plans.read_plan`.
        name: what errors call it.
        version_compatible: the plan was built to load in other versions, and may run host code of its own.

    Attributes:
        input: name of the images; outputs: what it gives by name, with numpy's name of its type: float32 or uint8.
        shape: of the images, -1 for a free batch, and twice for a free size.
        profiles: the batches and sizes that it takes, in the order of the build.

    Raises:
        MissingDependency: the builder's runtime is not installed.
        PlanError: the plan does not load, or is not of one float32 image input and outputs of float32 or uint8.
    """

    def __init__(self, plan: bytes, *, name: str, builder: Builder, version_compatible: bool) -> None:
        self._name = name
        self._trt: Any = builders.load(builder)
        self._log = logger(self._trt)
        self._log.errors.clear()
        self._runtime = self._trt.Runtime(self._log)
        if version_compatible:
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise PlanError(
                f"{BUILDER_NAMES[builder]} {self._trt.__version__} refuses {name}: {self._said}",
                expected="a plan of this version and GPU",
                hint="type: sepvit-deploy doctor PLAN",
            )
        try:
            self.input, self.outputs, self.shape = self._tensors()
            self.profiles = self._profiles()
        except BaseException:
            self.close()
            raise

    @property
    def _said(self) -> str:
        return self._log.errors[-1] if self._log.errors else "it does not say why"

    def _tensors(self) -> tuple[str, dict[str, str], tuple[int, ...]]:
        """Name of the input, types of the outputs by name, shape of the input with -1 for a free dimension."""
        trt, engine = self._trt, self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        types = {name: str(engine.get_tensor_dtype(name).name) for name in names}
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        outputs = {name: _TYPES.get(types[name], "") for name in names if name not in inputs}
        shape = tuple(engine.get_tensor_shape(inputs[0])) if len(inputs) == 1 else ()
        is_images = len(shape) == 4 and types[inputs[0]] == "FLOAT" and (-1 not in shape[1:] or _any_size(shape))
        if not is_images or not outputs or not all(outputs.values()):
            said = ", ".join(f"{name} {types[name]} {list(engine.get_tensor_shape(name))}" for name in names)
            raise PlanError(
                f"{self._name} has the tensors {said or 'none'}",
                expected="one float32 image input (B, 3, H, W), of a fixed size or of any, and outputs of float32 or "
                "uint8",
            )
        return inputs[0], outputs, shape

    def _profiles(self) -> tuple[Profile, ...]:
        if -1 not in self.shape:
            return (Profile(self.shape[0], self.shape[0], self.shape[0]),)
        found = (
            self._engine.get_tensor_profile_shape(self.input, index)
            for index in range(self._engine.num_optimization_profiles)
        )
        return tuple(map(self._profile, found))

    def _profile(self, shapes: Sequence[Sequence[int]]) -> Profile:
        """The profile of a least, a tuned and a largest input shape."""
        least, tuned, most = shapes
        sizes = [(shape[2], shape[3]) for shape in shapes]
        return Profile(least[0], tuned[0], most[0], (sizes[0], sizes[1], sizes[2]) if _any_size(self.shape) else None)

    def profile_for(self, shape: tuple[int, ...]) -> int:
        """The profile that is tuned for the nearest batch and size among those that take images (B, 3, H, W).

        Raises:
            InputError: none takes them.
        """
        batch, _, *size = shape
        height, width = size
        fitting = [
            (p.distance(batch, (height, width)), p.optimum, index)
            for index, p in enumerate(self.profiles)
            if p.minimum <= batch <= p.maximum and p.covers_size((height, width))
        ]
        if fitting:
            return min(fitting)[2]
        takes = " or ".join(p.takes for p in self.profiles)
        if not _any_size(self.shape):
            raise InputError(
                f"{self._name} was given a batch of {batch}",
                expected=takes,
                hint=f"build it with --profile 1,{batch},{batch}, or give another batch",
            )
        asked = [*map(str, self.profiles), f"{batch}@{height}x{width}"]
        raise InputError(
            f"{self._name} was given a batch of {batch} at {height}x{width}",
            expected=takes,
            hint=f"type: sepvit-deploy build FILE.onnx {' '.join(f'--profile {each}' for each in asked)}",
        )

    def context(self, profile: int, shape: tuple[int, ...], stream: int) -> Any:
        """A new context at an input shape; DeviceError where there is no memory for it."""
        context = self._engine.create_execution_context()
        if context is None:
            raise DeviceError(
                f"{self._name} gets no context: {self._said}",
                hint="free some of the device's memory, or build with a smaller profile",
            )
        if not context.set_optimization_profile_async(profile, stream):
            raise DeviceError(f"{self._name} does not take its profile {profile}: {self._said}")
        self.set_shape(context, shape)
        return context

    def set_shape(self, context: Any, shape: tuple[int, ...]) -> None:
        """Give a context another input shape."""
        if not context.set_input_shape(self.input, shape):
            found = " x ".join(map(str, shape))
            raise DeviceError(f"{self._name} does not take images of {found}: {self._said}")

    def output_shapes(self, context: Any) -> dict[str, tuple[int, ...]]:
        """Shape of each output at the context's input shape."""
        return {name: tuple(context.get_tensor_shape(name)) for name in self.outputs}

    def set_addresses(self, context: Any, addresses: Mapping[str, int]) -> None:
        """Tell a context where on the device each tensor lies."""
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise DeviceError(f"{self._name} does not take a buffer for {name}: {self._said}")

    def execute(self, context: Any, stream: int) -> None:
        """Put one run into a stream."""
        if not context.execute_async_v3(stream):
            raise DeviceError(f"{self._name} does not run: {self._said}", hint="type: sepvit-deploy doctor")

    def require_capturable(self, context: Any, stream: int) -> None:
        """Refuse a context whose run no CUDA graph may hold.

        TensorRT-RTX alone can be asked: it may still compile kernels, or allocate.
        """
        if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(stream):
            raise DeviceError(
                f"{self._name} cannot be captured into a CUDA graph here", hint="run it without CUDA graphs"
            )

    def profile_layers(self, context: Any, report: Callable[[str, float], None]) -> None:
        """Have each run of a context report its layers' milliseconds."""
        context.profiler = _profiler(self._trt, report)

    def inspector_json(self, context: Any) -> str:
        """What the engine's inspector says of its layers, at the shapes that the context has."""
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = context  # without the shapes in it, tensors of a free batch have no type
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def close(self) -> None:
        """Let the engine go, and then its runtime; contexts must be gone before."""
        self._engine = None
        self._runtime = None


def _any_size(shape: tuple[int, ...]) -> bool:
    """True where height and width are free."""
    return shape[1] != -1 and shape[2:] == (-1, -1)


@functools.cache
def logger(trt: Any) -> Any:
    """The `trt.ILogger` of a module, which TensorRT takes one of in a process, for good.

    It keeps the last errors, each once, in ``errors``, and passes each warning once to ``warn``, where that is set.
    """

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: collections.deque[str] = collections.deque(maxlen=100)
            self.warn: Callable[[str], None] | None = None
            self._warned: set[str] = set()

        def log(self, severity: Any, message: str) -> None:
            is_warning = severity == trt.ILogger.WARNING
            if not is_warning and severity not in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                return  # a builder says a great deal else
            text = " ".join(message.split())
            if not is_warning:
                if text not in self.errors:
                    self.errors.append(text)
            elif self.warn is not None and text not in self._warned:
                self._warned.add(text)
                self.warn(text)

    return Log()


def _profiler(trt: Any, report: Callable[[str, float], None]) -> Any:
    """A `trt.IProfiler` that passes each layer's milliseconds on."""

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            report(layer_name, ms)

    return Profiler()
