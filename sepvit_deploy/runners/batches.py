"""Any number of images for a runner of a fixed batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sepvit_deploy.runners.base import Array, Runner


class InBatches:
    """A runner that takes any number of images: cut into the batch that ``runner`` has, the last one filled up.

    The fill repeats the last image, so that it can bring no number that the images do not; its outputs are dropped.
    """

    def __init__(self, runner: Runner) -> None:
        self.name = runner.name
        self.input_shape: tuple[int | None, ...] = (None, *runner.input_shape[1:])
        self._runner = runner

    def run(self, images: Array) -> dict[str, Array]:
        """See `Runner.run`."""
        import numpy as np

        batch = self._runner.input_shape[0]
        if batch is None or len(images) == batch:
            return self._runner.run(images)
        parts = []
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            fill = np.repeat(part[-1:], batch - len(part), axis=0)
            outputs = self._runner.run(np.concatenate([part, fill]))
            parts.append({name: values[: len(part)] for name, values in outputs.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
