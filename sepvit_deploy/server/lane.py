"""A model in a thread of its own: opened, run and closed there, because a CUDA context belongs to a thread.

B batch, H x W the input's height and width, C classes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sepvit_deploy.contract import MASK
from sepvit_deploy.errors import InputError, SepvitError
from sepvit_deploy.runners.batches import InBatches, Profiled

if TYPE_CHECKING:
    from sepvit_deploy.masks import Colour
    from sepvit_deploy.runners.base import Array, Runner
    from sepvit_deploy.spec import ModelSpec, Preprocessing

T = TypeVar("T")
RATE_WEIGHT = 0.2
"""Of the newest batch, in the mean time of an image."""


@dataclass(frozen=True)
class Model:
    """A model that is ready to run, and what is known of it.

    Attributes:
        sha256: of the file.
        platform: what it is, in Triton's words: ``onnxruntime_onnx``, ``tensorrt_plan``.
        untrained: random weights, whose answers mean nothing.
        classes: their names, and palette: a colour for each, as the file says it itself; None where it does not.
    """

    runner: Runner
    spec: ModelSpec
    preprocessing: Preprocessing
    sha256: str
    platform: str
    untrained: bool = False
    classes: list[str] | None = None
    palette: list[Colour] | None = None


Source = Callable[[], AbstractContextManager[Model]]
"""Opens the model; the context is entered and left in the thread that runs it."""


@dataclass(frozen=True)
class Computed:
    """A batch that was run: outputs by name, and seconds of `time.perf_counter`."""

    outputs: dict[str, Array]
    started: float
    ended: float


class Lane:
    """One model and its thread.

    Attributes:
        version: counts the models of one server, from 1.
        image_s: seconds that an image takes, as of the last batches.
        failures: runs that failed since one did not.
        outputs: their shapes by name, without the batch; None for a height and a width that go with the input's.
        types: of the outputs, in the protocol's words.
        output_bytes: that the outputs of an image take, of the largest size.
    """

    model: Model
    outputs: dict[str, tuple[int | None, ...]]
    types: dict[str, str]
    output_bytes: int

    def __init__(self, source: Source, version: int) -> None:
        self.version = version
        self.image_s = 0.0
        self.failures = 0
        self._source = source
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._stack = contextlib.ExitStack()

    async def open(self, max_batch: int) -> None:
        """Open the model and warm it up, with one image and with ``max_batch``.

        Raises:
            SepvitError: it does not open, does not run, or gives no finite numbers.
        """
        try:
            await self._in_thread(lambda: self._open(max_batch))
        except BaseException:
            await self.close()
            raise

    async def run(self, parts: Sequence[Array]) -> Computed:
        """Run images (B, 3, H, W) as one batch, the parts in their order.

        Raises:
            SepvitError: the model fails.
        """
        computed = await self._in_thread(lambda: self._compute(parts))
        took = (computed.ended - computed.started) / sum(map(len, parts))
        self.image_s += RATE_WEIGHT * (took - self.image_s)
        return computed

    async def close(self) -> None:
        """Give back what the model holds, in its thread."""
        await self._in_thread(self._stack.close)
        self._pool.shutdown(wait=False)

    def _open(self, max_batch: int) -> None:
        import numpy as np

        self.model = self._stack.enter_context(self._source())
        self._runner = InBatches(self.model.runner)
        self.max_batch = min(max_batch, largest_batch(self.model.runner) or max_batch)
        size = (3, *self.model.spec.size)
        for batch in sorted({1, self.max_batch}):
            for _ in range(2):  # the first run of a shape allocates
                computed = self._compute([np.zeros((batch, *size), np.float32)])
        if self.model.spec.task == "segment":
            _require_segments(self.model, computed.outputs)
        free = 2 if self.model.spec.any_size else 0
        shapes = {name: values.shape[1:] for name, values in computed.outputs.items()}
        self.outputs = {name: (*shape[: len(shape) - free], *[None] * free) for name, shape in shapes.items()}
        self.types = {name: _TYPES.get(str(values.dtype), "FP32") for name, values in computed.outputs.items()}
        self.output_bytes = sum(values.nbytes for values in computed.outputs.values()) // self.max_batch
        if any(not np.isfinite(values).all() for values in computed.outputs.values()):
            raise InputError(f"{self.model.runner.name} gives numbers that are not finite", hint="check the file first")
        self.image_s = (computed.ended - computed.started) / self.max_batch

    def _compute(self, parts: Sequence[Array]) -> Computed:
        import numpy as np

        images = parts[0] if len(parts) == 1 else np.concatenate(parts)
        started = time.perf_counter()
        outputs = self._runner.run(images)
        computed = Computed(outputs, started, time.perf_counter())
        if self.model.spec.task == "segment" and MASK in outputs:
            _require_classes(self.model, outputs[MASK])
        return computed

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


_TYPES = {"uint8": "UINT8"}


def _require_classes(model: Model, masks: Array) -> None:
    """Refuse masks of classes that have neither a name nor a colour.

    Raises:
        SepvitError: a class beyond the model's; no `InputError`, for it is never a client's fault.
    """
    if (found := int(masks.max())) >= model.spec.num_classes:
        expected = f"0 to {model.spec.num_classes - 1}"
        raise SepvitError(f"{model.runner.name} gave the class {found}", expected=expected, hint="export again")


def _require_segments(model: Model, outputs: dict[str, Array]) -> None:
    """Refuse a model that does not give what its passport says.

    Raises:
        InputError: another output, or one of another shape or type.
    """
    spec = model.spec
    height, width = spec.size
    wanted: dict[str, Any] = {"logits": ("float32", (spec.num_classes, -(-height // 4), -(-width // 4)))}
    wanted["mask"] = ("uint8", (height, width))
    found = {name: (str(values.dtype), values.shape[1:]) for name, values in outputs.items()}
    if found != (right := {spec.output: wanted[spec.output]}):
        told, expected = (
            ", ".join(f"{name} of {kind} {'x'.join(map(str, shape))}" for name, (kind, shape) in each.items())
            for each in (found, right)
        )
        raise InputError(f"{model.runner.name} gives {told}", expected=f"{expected} for its size", hint="export again")


def largest_batch(runner: Runner) -> int | None:
    """The most images that a model takes at once, whatever their size; None where any number goes."""
    if isinstance(runner, Profiled):
        most: dict[object, int] = {}
        for profile in runner.profiles:
            most[profile.sizes] = max(profile.maximum, most.get(profile.sizes, 0))
        return min(most.values())
    return runner.input_shape[0]
