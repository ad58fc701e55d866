"""What a build of an engine is asked for, and what is known of its result: records that JSON holds without loss.

Batches are numbers of images, sizes are (height, width) in pixels. Nothing here imports a builder.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from sepvit_deploy.errors import OptionError
from sepvit_deploy.gpu import Device
from sepvit_deploy.records import later, plain, record
from sepvit_deploy.spec import MAX_BATCH, MAX_DENSE_SIDE, parse_image_size

_T = TypeVar("_T")
Precision = Literal["fp32", "fp16", "int8"]
Builder = Literal["tensorrt", "rtx"]
Hardware = Literal["ampere+", "same-cc"]
BUILDER_NAMES: dict[Builder, str] = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}
MAX_WORKSPACE_MB = 1 << 20
LEVELS = range(6)
Size = tuple[int, int]
LEAST_SIDE = 32
"""Of the images that a default profile covers: the stride of the last map. Only slivers of a picture are smaller."""
FEW = 4
"""Most images of a default profile for files of any size."""
AT_SIZES = "1,1,4@256x256,512x512,512x2048"
"""A profile with sizes, for messages to show."""


@dataclass(frozen=True)
class Profile:
    """The batches that an engine is ready for, and the one that it is tuned for; of a file of any size also the sizes.

    Attributes:
        sizes: height and width of the smallest images, of those that it is tuned for, and of the largest; None for a
            file of a fixed size.

    Raises:
        OptionError: not 1 <= minimum <= optimum <= maximum <= `MAX_BATCH`, or the same of a side up to
            `MAX_DENSE_SIDE`.
    """

    minimum: int
    optimum: int
    maximum: int
    sizes: tuple[Size, Size, Size] | None = later(None)

    def __post_init__(self) -> None:
        ranges = [(self.minimum, self.optimum, self.maximum, MAX_BATCH)]
        ranges += [(*sides, MAX_DENSE_SIDE) for sides in zip(*self.sizes, strict=True)] if self.sizes else []
        if not all(1 <= least <= tuned <= most <= limit for least, tuned, most, limit in ranges):
            raise _not_a_profile(str(self))

    @classmethod
    def parse(cls, text: str) -> Profile:
        """Read ``1,8,32``, or ``8`` for 8,8,8; with sizes ``1,8,32@256x256,512x512,512x2048``, or ``1@512x512``.

        Raises:
            OptionError: it is none of these, or as the class says.
        """
        batches, at, sizes = text.partition("@")
        if not re.fullmatch(r"\s*[0-9]{1,9}\s*(,\s*[0-9]{1,9}\s*,\s*[0-9]{1,9}\s*)?", batches, re.ASCII):
            raise _not_a_profile(text)
        try:
            of_batches = _three([int(part) for part in batches.split(",")])
            of_sizes = _three([parse_image_size(part.strip()) for part in sizes.split(",")]) if at else None
            return cls(*of_batches, of_sizes)
        except OptionError:
            raise _not_a_profile(text) from None

    def __str__(self) -> str:
        batches = f"{self.minimum},{self.optimum},{self.maximum}"
        return batches + ("@" + ",".join(map(size_text, self.sizes)) if self.sizes else "")

    @property
    def takes(self) -> str:
        """What it covers: ``1 to 32``, or ``1 to 32 at 256x256 to 512x2048``."""
        batches = _from_to(str(self.minimum), str(self.maximum))
        return batches + (f" at {_from_to(size_text(self.sizes[0]), size_text(self.sizes[2]))}" if self.sizes else "")

    def covers_size(self, size: Size) -> bool:
        """Is an engine ready for images of this size? A profile without sizes has none to refuse."""
        if self.sizes is None:
            return True
        least, _, most = self.sizes
        return all(low <= side <= high for low, side, high in zip(least, size, most, strict=True))

    def distance(self, batch: int, size: Size) -> float:
        """How far from what it is tuned for: the product of the ratios of batch, height and width, each 1 or more."""
        pairs = [(batch, self.optimum), *(zip(size, self.sizes[1], strict=True) if self.sizes else ())]
        return math.prod([max(found / tuned, tuned / found) for found, tuned in pairs], start=1.0)

    def shapes(self, shape: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Of a tensor (B, ...) with -1 for what is free: its least, its tuned and its largest shape.

        The batch is the profile's, as are the last two dimensions where they are free.
        """
        sizes = self.sizes if self.sizes and tuple(shape[2:]) == (-1, -1) else None
        batches = (self.minimum, self.optimum, self.maximum)
        rest = [(*shape[1:2], *size) for size in sizes] if sizes else [tuple(shape[1:])] * 3
        return tuple((batch, *dims) for batch, dims in zip(batches, rest, strict=True))


def size_text(size: Size) -> str:
    """``512x2048``: height x width."""
    return f"{size[0]}x{size[1]}"


def default_profiles(batch: int | None, box: Size | None) -> tuple[Profile, ...]:
    """What an engine is built for where nothing is asked for; () for a file of a fixed batch and size.

    Of a fixed size, any batch is tuned for the paper's 8. Of any size, images come one at a time, for few are alike:
    it is tuned for one, with room for a few. Pictures are prepared to fit in a box that lies or stands as they do, so
    there is a profile for each way: a square one around both would need memory for images that no picture becomes.
    Each is tuned for 4:3, as most photographs are.

    Args:
        batch: of a file of a fixed batch; None where it takes any.
        box: of a file of any size, the sides that its pictures must not exceed; None of a fixed size.
    """
    if box is None:
        return () if batch is not None else (Profile(1, 8, 32),)
    short, long = min(box), max(box)
    least, tuned = min(LEAST_SIDE, short), min(long, -(-4 * short // 3))
    lying = ((least, least), (short, tuned), (short, long))
    standing = ((least, least), (tuned, short), (long, short))
    batches = (batch, batch, batch) if batch is not None else (1, 1, FEW)
    return tuple(Profile(*batches, sizes) for sizes in dict.fromkeys((lying, standing)))


def _three(found: list[_T]) -> tuple[_T, _T, _T]:
    """One for all three, or three."""
    if len(found) not in (1, 3):
        raise OptionError(f"{len(found)} values", expected="one or three")
    return found[0], found[len(found) // 2], found[-1]


def _from_to(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def _not_a_profile(text: str) -> OptionError:
    return OptionError(
        f"--profile {text!r:.80}",
        expected=f"MIN,OPT,MAX with 1 <= MIN <= OPT <= MAX <= {MAX_BATCH}, such as 1,8,32; or one batch; for a file of "
        f"any size with sizes up to {MAX_DENSE_SIDE}, such as {AT_SIZES}",
    )


@dataclass(frozen=True)
class BuildRequest:
    """How an engine is built; precision is no part of it, for the ONNX file has decided that.

    Attributes:
        profiles: () for a file of a fixed batch and size, and for such a file alone.
        workspace_mb: most device memory that a layer may take while it computes, in MiB; None for the builder's choice.
        level: builder optimisation level; None for the builder's choice.
        timing_cache: file of measured kernels that builds share; TensorRT alone.
        compute_capabilities: GPU generations to build for, ``("8.6",)``; () for all that the builder knows; RTX alone.
        version_compatible: loads in other versions of TensorRT as well; TensorRT alone.
        hardware_compatible: loads on other GPUs as well; TensorRT alone.
        refittable: its weights can be replaced.

    Raises:
        OptionError: a value is unusable, or is not for this builder.
    """

    builder: Builder
    profiles: tuple[Profile, ...]
    workspace_mb: int | None = None
    level: int | None = None
    timing_cache: Path | None = None
    compute_capabilities: tuple[str, ...] = ()
    version_compatible: bool = False
    hardware_compatible: Hardware | None = None
    refittable: bool = False

    def __post_init__(self) -> None:
        if self.builder not in get_args(Builder):
            raise OptionError(f"--builder {self.builder}", expected=f"{' or '.join(get_args(Builder))}")
        if len(set(self.profiles)) < len(self.profiles):
            raise OptionError(f"--profile {_repeated(self.profiles)} is given twice", expected="profiles that differ")
        if self.workspace_mb is not None and not 1 <= self.workspace_mb <= MAX_WORKSPACE_MB:
            raise OptionError(f"--workspace-mb {self.workspace_mb}", expected=f"1 to {MAX_WORKSPACE_MB}")
        if self.level is not None and self.level not in LEVELS:
            raise OptionError(f"--level {self.level}", expected=f"{LEVELS[0]} to {LEVELS[-1]}")
        if self.hardware_compatible not in (None, *get_args(Hardware)):
            raise OptionError(
                f"--hardware-compatible {self.hardware_compatible}", expected=f"{' or '.join(get_args(Hardware))}"
            )
        for capability in self.compute_capabilities:
            if not re.fullmatch("[0-9]{1,2}[.][0-9]", capability, re.ASCII):
                raise OptionError(f"--compute-capability {capability!r:.40}", expected="one such as 8.6")
        if len(set(self.compute_capabilities)) < len(self.compute_capabilities):
            twice = _repeated(self.compute_capabilities)
            raise OptionError(f"--compute-capability {twice} is given twice", expected="capabilities that differ")
        self._require_of_builder()

    def _require_of_builder(self) -> None:
        foreign: dict[str, Any]
        if self.builder == "tensorrt":
            foreign = {"--compute-capability": self.compute_capabilities}
            hint = "TensorRT builds for the GPU of this machine; for another of its family: --hardware-compatible"
        else:
            foreign = {
                "--timing-cache": self.timing_cache,
                "--version-compatible": self.version_compatible,
                "--hardware-compatible": self.hardware_compatible,
            }
            hint = "TensorRT-RTX times its kernels where the engine runs; choose GPUs with --compute-capability"
        for option, value in foreign.items():
            if value:
                raise OptionError(f"{option} with {BUILDER_NAMES[self.builder]}", expected="no such option", hint=hint)

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold."""
        return plain(self)

    @classmethod
    def from_dict(cls, values: object) -> BuildRequest:
        """The inverse of `to_dict`; ValueError or TypeError on anything else."""
        return record(cls, values)


@dataclass(frozen=True)
class NetworkFacts:
    """What is in the network that a builder parsed.

    Attributes:
        layers: how many there are.
        matmuls: matrix products by the type that they compute in, ``{"HALF": 77}``; ``INT8`` where both inputs are
            dequantised from it, else the type that the product gives: FLOAT, HALF, BF16.
        convolutions: the same of its convolutions.
        inputs: shape of each input by its name, -1 for a dynamic dimension.
        outputs: the same of each output.
    """

    layers: int
    matmuls: dict[str, int]
    convolutions: dict[str, int]
    inputs: dict[str, list[int]]
    outputs: dict[str, list[int]]

    @classmethod
    def from_dict(cls, values: object) -> NetworkFacts:
        """Read what `dataclasses.asdict` gives; ValueError or TypeError on anything else."""
        return record(cls, values)


@dataclass(frozen=True)
class EngineFacts:
    """What is known of an engine; a part of its passport.

    Attributes:
        builder_version: as the builder says it, ``10.13.2.6``.
        platform: operating system and processor, ``linux x86_64``.
        device: the GPU that it was built on; None where it was built without one.
        compute_capabilities: that an RTX engine was built for; () means every one that its builder knows.
        batch: of a file of a fixed batch and size; None where the profiles say it.
        workspace_mb, level, version_compatible, hardware_compatible, refittable: as asked for.
        network: as the builder parsed it.
        timing_cache_hit: True where the cache knew every kernel; None where there was no cache.
        inspection: what the engine's layers are, as `inspection.Inspection` writes itself; None without a GPU.

    Raises:
        ValueError: both profiles and a fixed batch, or a time that is none.
    """

    builder: Builder
    builder_version: str
    platform: str
    device: Device | None
    compute_capabilities: tuple[str, ...]
    profiles: tuple[Profile, ...]
    batch: int | None
    workspace_mb: int | None
    level: int | None
    version_compatible: bool
    hardware_compatible: Hardware | None
    refittable: bool
    network: NetworkFacts
    build_seconds: float
    timing_cache_hit: bool | None
    inspection: dict[str, Any] | None

    def __post_init__(self) -> None:
        if self.profiles and self.batch is not None:
            raise ValueError(f"profiles and the fixed batch {self.batch}")
        if not (math.isfinite(self.build_seconds) and self.build_seconds >= 0):
            raise ValueError(f"build_seconds is {self.build_seconds}")

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold."""
        return plain(self)

    @classmethod
    def from_dict(cls, values: object) -> EngineFacts:
        """The inverse of `to_dict`; ValueError or TypeError on anything else."""
        return record(cls, values)


def _repeated(items: tuple[Any, ...]) -> Any:
    return next(item for item in items if items.count(item) > 1)
