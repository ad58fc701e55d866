"""What a deployed model is: its architecture, task and input, as one small validated record.

Sizes are (height, width) in pixels. A record becomes a plain dictionary, for TOML or JSON, and back without loss.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from sepvit_deploy.errors import OptionError
from sepvit_deploy.heads import EVALUATION_SIZE, MASK_CLASSES, MOST_CLASSES, Head, OutputKind, require_head
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
        size: height and width of the input; with ``keep_ratio`` the sides, shorter and longer in any order, that it
            must not exceed.
        resize_shorter: length of the picture's shorter side before the centre crop; None resizes straight to
            ``size`` without a crop, which changes the aspect ratio.
        interpolation: bicubic or bilinear, with antialiasing when the picture shrinks.
        mean: of red, green, blue, on the scale 0..1.
        std: of red, green, blue, on the scale 0..1.
        channel_order: of the input's three planes.
        keep_ratio: make the picture as large as ``size`` lets it be and keep its aspect ratio, so that inputs differ
            in size; for files of any size alone.

    Raises:
        OptionError: a value is unusable; the message names its key.
    """

    size: tuple[int, int]
    resize_shorter: int | None
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    channel_order: Literal["RGB"] = "RGB"
    keep_ratio: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _pair("preprocessing.size", self.size))
        if self.resize_shorter is not None:
            # A shorter side below the crop would need padding, which no published model was trained with.
            _integer("preprocessing.resize_shorter", self.resize_shorter, at_least=max(self.size))
        if type(self.keep_ratio) is not bool or (self.keep_ratio and self.resize_shorter is not None):
            found = f"preprocessing.keep_ratio is {self.keep_ratio!r}, resize_shorter {self.resize_shorter!r}"
            raise OptionError(found, expected="true or false, and true without resize_shorter")
        _one_of("preprocessing.interpolation", self.interpolation, ("bicubic", "bilinear"))
        _one_of("preprocessing.channel_order", self.channel_order, ("RGB",))
        # The bounds keep every value, and every quotient, finite in float32.
        object.__setattr__(self, "mean", _triple("preprocessing.mean", self.mean, low=-1e6))
        object.__setattr__(self, "std", _triple("preprocessing.std", self.std, low=1e-6))

    @classmethod
    def for_task(cls, task: Task, size: tuple[int, int]) -> Preprocessing:
        """ImageNet's evaluation for classification (shorter side 256 for a crop of 224); no crop for dense tasks.

        Segmentation resizes bilinearly, as ADE20K's evaluation does.
        """
        _one_of("task", task, get_args(Task))
        size = _pair("size", size)
        shorter = round(max(size) * 256 / 224) if task == "classify" else None
        return cls(size, shorter, "bilinear" if task == "segment" else "bicubic")

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold."""
        return _plain(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`; every key that it always writes must be there, and no unknown one.

        Raises:
            OptionError: a key is unknown or missing, or its value is unusable.
        """
        return cls(**_exact_keys("preprocessing", cls, values))


@dataclass(frozen=True)
class ModelSpec:
    """One deployable model: a variant, its task, its input size and its number of classes.

    Attributes:
        size: of its inputs; of a file of any size that which they must not exceed where pictures are prepared for it.
        head: of segmentation.
        output: of segmentation: logits (B, num_classes, h, w) at stride 4, or a mask (B, H, W) of uint8 class numbers.
        any_size: inputs of any height and width; not for classification.

    Raises:
        OptionError: a value is unusable; the message names its key.
    """

    variant: str
    task: Task
    size: tuple[int, int]
    num_classes: int
    head: Head | None = None
    output: OutputKind = "logits"
    any_size: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.variant, str):
            raise OptionError(f"variant is {self.variant!r}", expected="the name of a variant")
        variant_named(self.variant)
        _one_of("task", self.task, get_args(Task))
        object.__setattr__(self, "size", _pair("size", self.size))
        _integer("num_classes", self.num_classes, at_least=1, at_most=MAX_CLASSES)
        if type(self.any_size) is not bool or (self.any_size and self.task == "classify"):
            found = f"any_size is {self.any_size!r} for the task {self.task}"
            raise OptionError(found, expected="true or false, and false for classification")
        if self.task == "classify" and self.size != (CLASSIFY_SIZE, CLASSIFY_SIZE):
            raise OptionError(
                f"size is {_text(self.size)} for classification",
                expected=f"{CLASSIFY_SIZE}x{CLASSIFY_SIZE}, because the learned window tokens are counted for "
                f"{CLASSIFY_SIZE} pixels",
                hint="other sizes need the task dense or segment",
            )
        if max(self.size) > MAX_DENSE_SIDE:
            raise OptionError(f"size is {_text(self.size)}", expected=f"sides of 1 to {MAX_DENSE_SIDE} pixels")
        if self.task == "segment":
            require_head(self.head)
            if self.num_classes > MOST_CLASSES:
                found = f"a segmentation model has {self.num_classes} classes"
                raise OptionError(found, expected=f"at most {MOST_CLASSES}, for a mask is of uint16 at most")
        elif self.head is not None:
            raise OptionError(f"--head {self.head} with --task {self.task}", expected="--task segment")
        _one_of("output", self.output, get_args(OutputKind))
        if self.output == "mask" and self.task != "segment":
            raise OptionError(f"--output-kind mask with --task {self.task}", expected="--task segment")
        if self.output == "mask" and self.num_classes > MASK_CLASSES:
            raise OptionError(
                f"--output-kind mask with {self.num_classes} classes",
                expected=f"at most {MASK_CLASSES}, for a mask is of uint8",
                hint="type: --output-kind logits",
            )

    @property
    def input_name(self) -> str:
        """Name of the input tensor, (B, 3, height, width)."""
        return "images"

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the output tensors: logits, a mask, or one feature map for each stride."""
        return tuple(f"stride{stride}" for stride in STRIDES) if self.task == "dense" else (self.output,)

    @property
    def preprocessing(self) -> Preprocessing:
        """How pictures become inputs of this model."""
        return replace(Preprocessing.for_task(self.task, self.size), keep_ratio=self.any_size)

    def require_ratio(self, preprocessing: Preprocessing) -> None:
        """Refuse to prepare pictures of one size for a file of any, and the other way round.

        Raises:
            OptionError: their aspect ratio is kept where there is one size, or not kept where there is any.
        """
        if preprocessing.keep_ratio != self.any_size:
            takes = "any size" if self.any_size else "one size"
            found = f"preprocessing.keep_ratio is {str(preprocessing.keep_ratio).lower()} for a file of {takes}"
            raise OptionError(found, expected=str(self.any_size).lower())

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that TOML and JSON can hold."""
        return _plain(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSpec:
        """The inverse of `to_dict`; every key that it always writes must be there, and no unknown one.

        Raises:
            OptionError: a key is unknown or missing, or its value is unusable.
        """
        return cls(**_exact_keys("model", cls, values))


def parse_image_size(text: str) -> tuple[int, int]:
    """Height and width from ``224`` (a square) or ``512x768`` (height x width).

    Raises:
        OptionError: the text is anything else.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,5})(?:x([1-9][0-9]{0,5}))?", text)
    if match is None:
        raise OptionError(f"image size {text!r}", expected="pixels as 224, or height x width as 512x768")
    return int(match[1]), int(match[2] or match[1])


def parse_input_size(text: str) -> tuple[tuple[int, int], bool]:
    """The size of a file's inputs, and whether it takes any: ``512x768``, ``dynamic``, or ``dynamic:512x2048``.

    What follows ``dynamic:`` are the sides, shorter and longer, that pictures are prepared to fit in; by default those
    of the paper's evaluation on ADE20K.

    Raises:
        OptionError: the text is anything else.
    """
    kind, colon, sides = text.partition(":")
    if kind != "dynamic":
        return parse_image_size(text), False
    return parse_image_size(sides) if colon else EVALUATION_SIZE, True


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _later(field: Field[Any]) -> bool:
    """A key that passports and specs written before it do not have; left out where it has its default."""
    return field.name in ("keep_ratio", "head", "output", "any_size")


def _plain(record: Preprocessing | ModelSpec) -> dict[str, Any]:
    unsaid = {field.name for field in fields(record) if _later(field) and getattr(record, field.name) == field.default}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(record).items() if k not in unsaid}


def _exact_keys(what: str, cls: type[Preprocessing] | type[ModelSpec], values: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise OptionError(f"{what} is {values!r}", expected="a table of keys and values")
    names = [field.name for field in fields(cls)]
    always = [field.name for field in fields(cls) if not _later(field)]
    for problem, keys in (
        ("unknown", [key for key in values if key not in names]),
        ("missing", [name for name in always if name not in values]),
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
