"""Run a torch model on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sepvit_deploy.model.taps import Tap
from sepvit_deploy.runners.base import require_fit

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from sepvit_deploy.runners.base import Array


class TorchRunner:
    """A model in torch; with ``taps`` its named intermediates, as maps (B, H, W, C), come before its outputs."""

    def __init__(
        self,
        model: torch.nn.Module,
        output_names: tuple[str, ...],
        size: tuple[int, int],
        *,
        name: str = "torch",
        taps: tuple[Tap, ...] = (),
    ) -> None:
        self.name = name
        self.input_shape: tuple[int | None, ...] = (None, 3, *size)
        self._model = model
        self._output_names = output_names
        self._taps = taps

    def run(self, images: Array) -> dict[str, Array]:
        """See `Runner.run`."""
        require_fit(self.name, self.input_shape, images)
        found: dict[str, Array] = {}
        handles = [_hook(self._model, tap, found) for tap in self._taps]
        try:
            with torch.inference_mode():
                outputs = self._model(torch.from_numpy(images))
        finally:
            for handle in handles:
                handle.remove()
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        named = zip(self._output_names, outputs, strict=True)
        return found | {name: value.numpy().copy() for name, value in named}


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
