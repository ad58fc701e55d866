"""What a deployed model is: its architecture, task and input, as one small validated record.

Sizes are (height, width) in pixels. A record becomes a plain dictionary, for TOML or JSON, and back without loss.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from sepvit_deploy.errors import OptionError
from sepvit_deploy.variants import CLASSIFY_SIZE, STRIDES, Task, variant_named

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_DENSE_SIDE = 4096
MAX_CLASSES = 1_000_000
MAX_BATCH = 4096
OPSETS = (17, 18, 19, 20, 21)


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes an input: resize, centre crop, divide by 255, then (x - mean) / std for each channel.

    Attributes:
        size: height and width of the input.
        resize_shorter: length of the picture's shorter side before the centre crop; None resizes straight to
            ``size`` without a crop, which changes the aspect ratio.
        interpolation: bicubic, with antialiasing when the picture shrinks.
        mean: of red, green, blue, on the scale 0..1.
        std: of red, green, blue, on the scale 0..1.
        channel_order: of the input's three planes.

    Raises:
        OptionError: a value is unusable; the message names its key.
    """

    size: tuple[int, int]
    resize_shorter: int | None
    interpolation: Literal["bicubic"] = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    channel_order: Literal["RGB"] = "RGB"

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _pair("preprocessing.size", self.size))
        if self.resize_shorter is not None:
            # A shorter side below the crop would need padding, which no published model was trained with.
            _integer("preprocessing.resize_shorter", self.resize_shorter, at_least=max(self.size))
        _one_of("preprocessing.interpolation", self.interpolation, ("bicubic",))
        _one_of("preprocessing.channel_order", self.channel_order, ("RGB",))
        # The bounds keep every value, and every quotient, finite in float32.
        object.__setattr__(self, "mean", _triple("preprocessing.mean", self.mean, low=-1e6))
        object.__setattr__(self, "std", _triple("preprocessing.std", self.std, low=1e-6))

    @classmethod
    def for_task(cls, task: Task, size: tuple[int, int]) -> Preprocessing:
        """ImageNet's evaluation for classification (shorter side 256 for a crop of 224); no crop for dense tasks."""
        _one_of("task", task, get_args(Task))
        size = _pair("size", size)
        return cls(size, round(max(size) * 256 / 224) if task == "classify" else None)

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold."""
        return _plain(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`; every key must be there, and no other.

        Raises:
            OptionError: a key is unknown or missing, or its value is unusable.
        """
        return cls(**_exact_keys("preprocessing", cls, values))


@dataclass(frozen=True)
class ModelSpec:
    """One deployable model: a variant, its task, its input size and its number of classes.

    Raises:
        OptionError: a value is unusable; the message names its key.
    """

    variant: str
    task: Task
    size: tuple[int, int]
    num_classes: int

    def __post_init__(self) -> None:
        if not isinstance(self.variant, str):
            raise OptionError(f"variant is {self.variant!r}", expected="the name of a variant")
        variant_named(self.variant)
        _one_of("task", self.task, get_args(Task))
        object.__setattr__(self, "size", _pair("size", self.size))
        _integer("num_classes", self.num_classes, at_least=1, at_most=MAX_CLASSES)
        if self.task == "classify" and self.size != (CLASSIFY_SIZE, CLASSIFY_SIZE):
            raise OptionError(
                f"size is {_text(self.size)} for classification",
                expected=f"{CLASSIFY_SIZE}x{CLASSIFY_SIZE}, because the learned window tokens are counted for "
                f"{CLASSIFY_SIZE} pixels",
                hint="other sizes need the task dense",
            )
        if max(self.size) > MAX_DENSE_SIDE:
            raise OptionError(f"size is {_text(self.size)}", expected=f"sides of 1 to {MAX_DENSE_SIDE} pixels")

    @property
    def input_name(self) -> str:
        """Name of the input tensor, (B, 3, height, width)."""
        return "images"

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the output tensors: logits (B, num_classes), or one feature map for each stride."""
        return ("logits",) if self.task == "classify" else tuple(f"stride{stride}" for stride in STRIDES)

    @property
    def preprocessing(self) -> Preprocessing:
        """How pictures become inputs of this model."""
        return Preprocessing.for_task(self.task, self.size)

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that TOML and JSON can hold."""
        return _plain(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSpec:
        """The inverse of `to_dict`; every key must be there, and no other.

        Raises:
            OptionError: a key is unknown or missing, or its value is unusable.
        """
        return cls(**_exact_keys("model", cls, values))


def parse_image_size(text: str) -> tuple[int, int]:
    """Height and width from ``224`` (a square) or ``512x768`` (height x width).

    Raises:
        OptionError: the text is anything else.
    """
    if text == "dynamic":
        raise OptionError(
            "image size 'dynamic': a dense file is for one size, because padding and the number of windows "
            "depend on it",
            hint="export one file per size, such as 512x768",
        )
    match = re.fullmatch(r"([1-9][0-9]{0,5})(?:x([1-9][0-9]{0,5}))?", text)
    if match is None:
        raise OptionError(f"image size {text!r}", expected="pixels as 224, or height x width as 512x768")
    return int(match[1]), int(match[2] or match[1])


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _plain(record: Preprocessing | ModelSpec) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(record).items()}


def _exact_keys(what: str, cls: type[Preprocessing] | type[ModelSpec], values: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise OptionError(f"{what} is {values!r}", expected="a table of keys and values")
    names = [field.name for field in fields(cls)]
    for problem, keys in (
        ("unknown", [key for key in values if key not in names]),
        ("missing", [name for name in names if name not in values]),
    ):
        if keys:
            found = ", ".join(f"{what}.{key}" for key in keys)
            raise OptionError(f"{problem}: {found}", expected=f"the keys {', '.join(names)}")
    return dict(values)


def _one_of(key: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise OptionError(f"{key} is {value!r}", expected=" or ".join(allowed))


def _integer(key: str, value: object, *, at_least: int, at_most: int | None = None) -> int:
    good = isinstance(value, int) and not isinstance(value, bool) and value >= at_least
    if not isinstance(value, int) or not good or (at_most is not None and value > at_most):
        limits = f"of at least {at_least}" if at_most is None else f"from {at_least} to {at_most}"
        raise OptionError(f"{key} is {value!r}", expected=f"an integer {limits}")
    return value


def _pair(key: str, value: object) -> tuple[int, int]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise OptionError(f"{key} is {value!r}", expected="height and width, two integers")
    return _integer(key, value[0], at_least=1), _integer(key, value[1], at_least=1)


def _triple(key: str, value: object, *, low: float) -> tuple[float, float, float]:
    good = isinstance(value, list | tuple) and len(value) == 3
    if not isinstance(value, list | tuple) or not good or not all(_is_number(item, low) for item in value):
        raise OptionError(f"{key} is {value!r}", expected=f"three numbers from {low:g} to 1e+06, for red, green, blue")
    return float(value[0]), float(value[1]), float(value[2])


def _is_number(value: object, low: float) -> bool:
    """Is it a real number of at least ``low``? NaN and infinity fail the comparison."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= 1e6
