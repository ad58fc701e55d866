"""Any number of images for a runner that takes certain batches only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from sepvit_deploy.building import Profile, Size
    from sepvit_deploy.runners.base import Array, Runner


@runtime_checkable
class Profiled(Protocol):
    """A runner that takes the batches, and the sizes, of its profiles, as an engine does."""

    profiles: tuple[Profile, ...]


class InBatches:
    """A runner that takes any number of images: cut into batches that ``runner`` takes, the last one filled up.

    The fill repeats the last image, so that it can bring no number that the images do not; its outputs are dropped.
    """

    def __init__(self, runner: Runner) -> None:
        self.name = runner.name
        self.input_shape: tuple[int | None, ...] = (None, *runner.input_shape[1:])
        self._runner = runner

    def run(self, images: Array) -> dict[str, Array]:
        """See `Runner.run`."""
        import numpy as np

        height, width = images.shape[-2:]
        ranges = batch_ranges(self._runner, (height, width))
        if _next(ranges, len(images)) == len(images):
            return self._runner.run(images)
        parts = []
        start = 0
        while start < len(images):
            batch = _next(ranges, len(images) - start)
            part = images[start : start + batch]
            fill = np.repeat(part[-1:], batch - len(part), axis=0)
            outputs = self._runner.run(np.concatenate([part, fill]))
            parts.append({name: values[: len(part)] for name, values in outputs.items()})
            start += batch
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def batch_ranges(runner: Runner, size: Size) -> list[tuple[int, int]]:
    """The least and the most images of a size that a runner takes at once, of each of its profiles that takes them.

    [] where any number goes; or where no profile takes the size, which the runner itself refuses best.
    """
    if isinstance(runner, Profiled):
        return [(p.minimum, p.maximum) for p in runner.profiles if p.covers_size(size)]
    fixed = runner.input_shape[0]
    return [(fixed, fixed)] if fixed is not None else []


def _next(ranges: list[tuple[int, int]], left: int) -> int:
    """The batch to run where ``left`` images are left: all of them, or as many as go, or the fewest that go."""
    if not ranges or any(low <= left <= high for low, high in ranges):
        return left
    below = [high for _, high in ranges if high < left]
    return max(below) if below else min(low for low, _ in ranges)
