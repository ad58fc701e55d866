"""What a runner is: a batch of images in, named arrays out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from sepvit_deploy.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

Once = Callable[[int], tuple[float, float | None]]
"""The k-th run of a batch: its milliseconds, and those that the host spent in the enqueue where that is known."""


class Runner(Protocol):
    """A model that is ready to run.

    Attributes:
        name: what reports call it, e.g. a file's name.
        input_shape: (B, 3, H, W), None for a dimension that is free.
    """

    name: str
    input_shape: tuple[int | None, ...]

    def run(self, images: Array) -> dict[str, Array]:
        """Run one batch: images (B, 3, H, W) float32, normalised -> outputs by name, in the model's order.

        Raises:
            InputError: the images are not of the shape and type that the model takes.
        """
        ...


@runtime_checkable
class Resident(Protocol):
    """A runner that times itself where it computes."""

    def resident(self, inputs: Sequence[Array]) -> Once:
        """Runs over batches of one size that stay on the device, each run over the next one; no copy is in the time.

        Raises:
            InputError: the images are not of the shape and type that the model takes.
        """
        ...


def require_fit(name: str, expected: tuple[int | None, ...], images: Array) -> None:
    """Refuse images that a model of input shape ``expected`` does not take.

    Raises:
        InputError: rank, type or a dimension differs.
    """
    fits = len(images.shape) == len(expected) and all(
        want is None or want == have for want, have in zip(expected, images.shape, strict=True)
    )
    if not fits or str(images.dtype) != "float32" or 0 in images.shape:
        shape = " x ".join("any" if dim is None else str(dim) for dim in expected)
        found = " x ".join(map(str, images.shape))
        raise InputError(f"{name} was given {images.dtype} {found}", expected=f"float32 {shape}, one image or more")
