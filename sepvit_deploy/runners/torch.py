"""Run a torch model, eagerly, on the CPU or on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from sepvit_deploy.errors import MissingDependency
from sepvit_deploy.model.taps import Tap
from sepvit_deploy.runners.base import require_fit

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from sepvit_deploy.runners.base import Array


class TorchRunner:
    """A model in torch; with ``taps`` its named intermediates, as maps (B, H, W, C), come before its outputs.

    Raises:
        MissingDependency: ``device`` is ``cuda``, and this torch sees none.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        output_names: tuple[str, ...],
        size: tuple[int, int],
        *,
        name: str = "torch",
        taps: tuple[Tap, ...] = (),
        device: Literal["cpu", "cuda"] = "cpu",
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
        self.input_shape: tuple[int | None, ...] = (None, 3, *size)
        self._model = model.to(device)
        self._device = device
        self._output_names = output_names
        self._taps = taps

    def run(self, images: Array) -> dict[str, Array]:
        """See `Runner.run`."""
        require_fit(self.name, self.input_shape, images)
        found: dict[str, Array] = {}
        handles = [_hook(self._model, tap, found) for tap in self._taps]
        try:
            with torch.inference_mode():
                outputs = self._model(torch.from_numpy(images).to(self._device))
        finally:
            for handle in handles:
                handle.remove()
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        named = zip(self._output_names, outputs, strict=True)
        return found | {name: value.cpu().numpy().copy() for name, value in named}


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
