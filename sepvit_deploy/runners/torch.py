"""Run a torch model, eagerly, on the CPU or on a GPU."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import torch

from sepvit_deploy.errors import DeviceError, MissingDependency
from sepvit_deploy.model.taps import Tap
from sepvit_deploy.runners.base import require_fit

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from sepvit_deploy.runners.base import Array, Once

    Outputs = torch.Tensor | tuple[torch.Tensor, ...]

_FAILURES = (RuntimeError, torch._dynamo.exc.FailOnRecompileLimitHit)
"""Out of memory, a CUDA error, what torch.compile does not take, or more batches than it may compile for."""
MOST_BATCHES = 64
"""Batches, and sizes, that one model is compiled for: beyond its limit torch.compile would run eagerly, unsaid."""


class TorchRunner:
    """A model in torch; with ``taps`` its named intermediates, as maps (B, H, W, C), come before its outputs.

    Args:
        size: height and width of the images; None for any.
        compiled: by torch.compile, anew for each batch and size; a graph that it breaks, or no compiler for it, is an
            error.

    Raises:
        MissingDependency: ``device`` is ``cuda``, and this torch sees none.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        output_names: tuple[str, ...],
        size: tuple[int, int] | None,
        *,
        name: str = "torch",
        taps: tuple[Tap, ...] = (),
        device: Literal["cpu", "cuda"] = "cpu",
        compiled: bool = False,
    ) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise MissingDependency(
                f"torch {torch.__version__} sees no CUDA device",
                hint="take --provider cpu; or see sepvit-deploy doctor",
            )
        if device == "cuda":  # float32 means float32
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cuda.matmul.allow_tf32 = False
        self.name = name
        self.input_shape: tuple[int | None, ...] = (None, 3, *(size or (None, None)))
        model = model.to(device)
        self._model: Callable[[torch.Tensor], Outputs] = model
        self._hooked = model
        if compiled:
            torch._dynamo.config.recompile_limit = MOST_BATCHES
            self._model = torch.compile(model, fullgraph=True, dynamic=False)
        self._device = device
        self._output_names = output_names
        self._taps = taps

    def run(self, images: Array) -> dict[str, Array]:
        """See `Runner.run`."""
        require_fit(self.name, self.input_shape, images)
        found: dict[str, Array] = {}
        handles = [_hook(self._hooked, tap, found) for tap in self._taps]
        try:
            with self._running(images):
                outputs = self._model(torch.from_numpy(images).to(self._device))
        finally:
            for handle in handles:
                handle.remove()
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        named = zip(self._output_names, outputs, strict=True)
        return found | {name: value.cpu().numpy().copy() for name, value in named}

    def resident(self, inputs: Sequence[Array]) -> Once:
        """See `Resident.resident`: on a GPU its own time between two events, on a CPU the host's clock."""
        for images in inputs:
            require_fit(self.name, self.input_shape, images)
        with self._running(inputs[0]):
            tensors = [torch.from_numpy(images).to(self._device) for images in inputs]

        def on_cpu(k: int) -> tuple[float, None]:
            with self._running(inputs[0]):
                start = time.perf_counter()
                self._model(tensors[k % len(tensors)])
                return (time.perf_counter() - start) * 1000, None

        def on_gpu(k: int) -> tuple[float, float]:
            with self._running(inputs[0]):
                first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
                first.record()
                start = time.perf_counter()
                self._model(tensors[k % len(tensors)])
                enqueue_ms = (time.perf_counter() - start) * 1000
                last.record()
                last.synchronize()
                return float(first.elapsed_time(last)), enqueue_ms

        return on_cpu if self._device == "cpu" else on_gpu

    @contextlib.contextmanager
    def _running(self, images: Array) -> Iterator[None]:
        """Run without gradients, and give what torch says of a failure a name."""
        try:
            with torch.inference_mode():
                yield
        except (*_FAILURES, OSError, subprocess.SubprocessError) as error:  # the last two: of a compiler
            said = " ".join(str(error).strip().splitlines()[:1])
            raise DeviceError(
                f"{self.name} fails on {' x '.join(map(str, images.shape))} ({type(error).__name__}: {said:.200})"
            ) from error


def _hook(model: torch.nn.Module, tap: Tap, found: dict[str, Array]) -> RemovableHandle:
    """Keep what passes at ``tap`` in ``found``, as a map."""
    module = model.get_submodule(tap.module)
    if tap.at == "input":
        return module.register_forward_pre_hook(
            lambda _, args: found.__setitem__(tap.name, tap.as_map(args[0].cpu().numpy()))
        )

    def keep(_: torch.nn.Module, __: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        value = output[-1] if isinstance(output, tuple) else output
        found[tap.name] = tap.as_map(value.cpu().numpy())

    return module.register_forward_hook(keep)
