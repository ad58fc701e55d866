"""Any number of images for a runner that takes certain batches only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from sepvit_deploy.building import Profile
    from sepvit_deploy.runners.base import Array, Runner


@runtime_checkable
class Profiled(Protocol):
    """A runner that takes the batches of its profiles, as an engine does."""

    profiles: tuple[Profile, ...]


class InBatches:
    """A runner that takes any number of images: cut into batches that ``runner`` takes, the last one filled up.

    The fill repeats the last image, so that it can bring no number that the images do not; its outputs are dropped.
    """

    def __init__(self, runner: Runner) -> None:
        self.name = runner.name
        self.input_shape: tuple[int | None, ...] = (None, *runner.input_shape[1:])
        self._runner = runner
        fixed = runner.input_shape[0]
        self._ranges = [(fixed, fixed)] if fixed is not None else []
        if isinstance(runner, Profiled):
            self._ranges = [(profile.minimum, profile.maximum) for profile in runner.profiles]

    def run(self, images: Array) -> dict[str, Array]:
        """See `Runner.run`."""
        import numpy as np

        if self._next(len(images)) == len(images):
            return self._runner.run(images)
        parts = []
        start = 0
        while start < len(images):
            batch = self._next(len(images) - start)
            part = images[start : start + batch]
            fill = np.repeat(part[-1:], batch - len(part), axis=0)
            outputs = self._runner.run(np.concatenate([part, fill]))
            parts.append({name: values[: len(part)] for name, values in outputs.items()})
            start += batch
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _next(self, left: int) -> int:
        """The batch to run where ``left`` images are left: all of them, or as many as go, or the fewest that go."""
        if not self._ranges or any(low <= left <= high for low, high in self._ranges):
            return left
        below = [high for _, high in self._ranges if high < left]
        return max(below) if below else min(low for low, _ in self._ranges)
