"""The scale table: the range of each calibrated tensor, and which graph, weights, images and settings it comes from.

A table is one JSON file. Only the file that it was made from takes it: `ScaleTable.require_for` refuses every other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepvit_deploy.artifact import written
from sepvit_deploy.errors import GraphError, InputError, PassportError, SepvitError
from sepvit_deploy.ranges import METHODS
from sepvit_deploy.spec import Preprocessing

if TYPE_CHECKING:
    import onnx

SCHEMA = 1
MAX_BYTES = 1 << 24
"""Of a table that is read; one of SepViT-B has about 30 kB."""
FLOAT32_MAX = (2 - 2**-23) * 2.0**127
LEAST_THRESHOLD = 127 * 2.0**-126
"""Below this the scale of an 8-bit grid is no normal float32."""
_AGAIN = "type: sepvit-deploy calibrate --help"


@dataclass(frozen=True)
class TensorRange:
    """Smallest and largest value of a tensor, and the |x| beyond which it is clipped.

    Raises:
        InputError: no finite numbers, ``threshold`` not above 0 or beyond the largest |x|.
    """

    minimum: float
    maximum: float
    threshold: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            _number(field.name, value)
            object.__setattr__(self, field.name, float(value))
        if self.minimum > self.maximum:
            raise InputError(f"minimum {self.minimum} is above maximum {self.maximum}", expected="at most the maximum")
        if not LEAST_THRESHOLD <= self.threshold <= max(-self.minimum, self.maximum):
            raise InputError(f"threshold is {self.threshold}", expected="above 0 and at most the largest |x|")

    @property
    def scale(self) -> float:
        """Step of the symmetric 8-bit grid, whose ends are -127 and 127."""
        return self.threshold / 127

    @property
    def clipped(self) -> tuple[float, float]:
        """Ends of the values that are kept, for an asymmetric grid: 0 lies between them."""
        return min(0.0, max(self.minimum, -self.threshold)), max(0.0, min(self.maximum, self.threshold))


@dataclass(frozen=True)
class ImagesUsed:
    """The images behind a table.

    Attributes:
        name: of the set; sha256: `ImageSet.sha256`, over all that were chosen.
        samples: how many were used; skipped: how many were unreadable.
    """

    name: str
    sha256: str
    samples: int
    skipped: int


@dataclass(frozen=True)
class ScaleTable:
    """Ranges of the activations of one graph.

    Attributes:
        graph_sha256: of the ONNX file; weights_sha256: see `weights_digest`.
        preprocessing: of the images, as `Preprocessing.to_dict` writes it.
        method: of `ranges.METHODS`; settings: what else decides it (bins, percentile).
        batch: images at a time, on which the rounding of a product can depend.
        tools: version of each package that had a part in it.
        tensors: range of each tensor by its name, in graph order.
    """

    graph_sha256: str
    weights_sha256: str
    images: ImagesUsed
    preprocessing: dict[str, Any]
    method: str
    settings: dict[str, float]
    batch: int
    tools: dict[str, str]
    tensors: dict[str, TensorRange]

    def require_for(self, *, graph_sha256: str, weights_sha256: str, tensors: Iterable[str]) -> None:
        """Refuse a graph that this table was not made for.

        Args:
            tensors: those that need a range.

        Raises:
            PassportError: other weights, another graph of the same weights, or a tensor without a range.
        """
        if weights_sha256 != self.weights_sha256:
            raise PassportError(
                f"the scale table belongs to other weights (SHA-256 {self.weights_sha256[:12]}...)",
                expected=f"a table for these ({weights_sha256[:12]}...)",
                hint="calibrate this file",
            )
        if graph_sha256 != self.graph_sha256:
            raise PassportError(
                f"the scale table belongs to another graph of the same weights (SHA-256 {self.graph_sha256[:12]}...)",
                expected=f"a table for this one ({graph_sha256[:12]}...), whose tensors may differ",
                hint="calibrate this file",
            )
        if unseen := [name for name in tensors if name not in self.tensors]:
            raise PassportError(
                f"the scale table has no range for {len(unseen)} of the tensors, the first {unseen[0]}",
                expected="a range for every tensor that becomes INT8",
                hint="calibrate again with the options of this command that choose tensors",
            )


def write_scales(path: Path, table: ScaleTable) -> None:
    """Write a table as JSON, whole or not at all; equal tables give equal bytes.

    Raises:
        OutputError: the place cannot be written.
    """
    text = json.dumps({"schema": SCHEMA, **asdict(table)}, indent=2, allow_nan=False) + "\n"
    with written(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_scales(path: Path) -> ScaleTable:
    """Read what `write_scales` wrote.

    Raises:
        InputError: no such file, not a scale table, cut off, or a value in it that is unusable; the message names it.
    """
    content = _content(path)
    try:
        return _table(json.loads(content.decode("utf-8"), object_pairs_hook=_without_doubles))
    except SepvitError as error:
        raise InputError(f"{path}: {error.found}", expected=error.expected, hint=_AGAIN) from error
    except (ValueError, RecursionError) as error:
        found = f"{path} is no JSON, or is cut off ({error})"
        raise InputError(found, expected="a scale table as calibrate writes it", hint=_AGAIN) from error


def weights_digest(model: onnx.ModelProto) -> str:
    """SHA-256, in hex, over names, types, shapes and numbers of the initializers; their order does not count.

    Raises:
        GraphError: an initializer is damaged.
    """
    import hashlib

    from onnx import numpy_helper

    digest = hashlib.sha256()
    for tensor in sorted(model.graph.initializer, key=lambda tensor: tensor.name):
        try:
            values = numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError) as error:
            raise GraphError(f"the weight {tensor.name} is damaged ({error})", expected="a valid ONNX file") from error
        content = repr(values.tolist()).encode() if values.dtype.hasobject else values.tobytes()
        header = [tensor.name, tensor.data_type, list(tensor.dims), len(content)]
        digest.update(json.dumps(header).encode())
        digest.update(content)
    return digest.hexdigest()


def _content(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise InputError(f"{path} is no regular file", expected="a scale table")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        found = f"{path} does not exist" if missing else f"{path} cannot be read ({error.strerror})"
        raise InputError(found, expected="a scale table", hint=_AGAIN) from error
    if len(content) > MAX_BYTES:
        raise InputError(f"{path} is larger than {MAX_BYTES >> 20} MiB", expected="a scale table")
    return content


def _table(document: object) -> ScaleTable:
    """The record behind a document; InputError, without the file's name, where it is none."""
    if not isinstance(document, dict) or "schema" not in document:
        raise InputError("this is no scale table", expected="JSON as calibrate writes it")
    if document["schema"] != SCHEMA:
        raise InputError(f"schema is {document['schema']!r}", expected=f"{SCHEMA}")
    values = _keys("", ScaleTable, {key: value for key, value in document.items() if key != "schema"})
    images = _keys("images.", ImagesUsed, values["images"])
    for key in ("graph_sha256", "weights_sha256"):
        _digest(key, values[key])
    _digest("images.sha256", images["sha256"])
    _text("images.name", images["name"])
    _whole("images.samples", images["samples"], at_least=1)
    _whole("images.skipped", images["skipped"], at_least=0)
    _whole("batch", values["batch"], at_least=1)
    Preprocessing.from_dict(values["preprocessing"])
    if values["method"] not in METHODS:
        raise InputError(f"method is {values['method']!r}", expected=f"one of {', '.join(METHODS)}")
    for key, value in _mapping("settings", values["settings"]).items():
        _number(f"settings.{key}", value)
    for key, value in _mapping("tools", values["tools"]).items():
        _text(f"tools.{key}", value)
    if not _mapping("tensors", values["tensors"]):
        raise InputError("tensors is empty", expected="a range for each tensor")
    tensors = {}
    for name, entry in values["tensors"].items():
        where = f"tensors.{name}"
        numbers = _keys(f"{where}.", TensorRange, entry)
        try:
            tensors[name] = TensorRange(**numbers)
        except InputError as error:
            raise InputError(f"{where}.{error.found}", expected=error.expected) from error
    return ScaleTable(**{**values, "images": ImagesUsed(**images), "tensors": tensors})


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)} is there twice")
    return values


def _mapping(where: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where} is {value!r:.60}", expected="a JSON object")
    return value


def _keys(prefix: str, cls: type[ScaleTable | ImagesUsed | TensorRange], value: object) -> dict[str, Any]:
    found = _mapping(prefix.rstrip(".") or "this", value)
    names = [field.name for field in fields(cls)]
    for problem, keys in (
        ("unknown", [key for key in found if key not in names]),
        ("missing", [name for name in names if name not in found]),
    ):
        if keys:
            raise InputError(f"{problem}: {prefix}{keys[0]}", expected=f"the keys {', '.join(names)}")
    return dict(found)


def _digest(where: str, value: object) -> None:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise InputError(f"{where} is {value!r:.60}", expected="64 hexadecimal digits")


def _text(where: str, value: object) -> None:
    if not isinstance(value, str):
        raise InputError(f"{where} is {value!r:.60}", expected="a text")


def _number(where: str, value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= FLOAT32_MAX:
        raise InputError(f"{where} is {value!r:.60}", expected="a finite float32")


def _whole(where: str, value: object, *, at_least: int) -> None:
    if type(value) is not int or value < at_least:
        raise InputError(f"{where} is {value!r:.60}", expected=f"an integer of at least {at_least}")
