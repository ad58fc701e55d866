"""Data of tensors: from JSON and from binary blocks, looked at before anything relies on it. Pure."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

from sepvit_deploy.server.refusal import malformed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Values: TypeAlias = "NDArray[Any] | list[bytes]"
"""FP32, INT64 and UINT8 as arrays; BYTES as a flat list."""
NUMBERS = {"FP32": "<f4", "INT64": "<i8", "UINT8": "|u1"}
"""How numbers lie in a binary block, as numpy says it."""
_SHOWN = 60


@dataclass(frozen=True)
class Tensor:
    """An input or an output that a model declares.

    Attributes:
        shape: None for the batch, and for a height and a width that are free.
        within: of an input whose height and width are free, in what they must fit, upright or lying.
        encoded: BYTES that are no text, and so nothing for JSON.
    """

    name: str
    datatype: str
    shape: tuple[int | None, ...]
    within: tuple[int, int] | None = None
    encoded: bool = False

    @property
    def most_values(self) -> int:
        """Of one image, at the most."""
        return prod(dim for dim in self.shape if dim is not None) * prod(self.within or ())


def from_json(data: object, shape: tuple[int, ...], wanted: Tensor) -> Values:
    """Numbers or strings, flat or nested as the shape; numpy would take strings for numbers, so each is looked at.

    Raises:
        Refusal: 400, and what is wrong with them.
    """
    import numpy as np

    if not isinstance(data, list):
        raise malformed(f"{wanted.name} has data {shown(data)}, expected a list")
    items: list[Any] = data
    if items and isinstance(items[0], list):
        items = [data]
        for dim in shape:
            if set(map(type, items)) != {list} or set(map(len, items)) != {dim}:
                raise malformed(f"the data of {wanted.name} is not nested as its shape {list(shape)}")
            items = list(chain.from_iterable(items))
    if len(items) != prod(shape):
        raise malformed(f"{wanted.name} has {len(items)} values, and its shape {list(shape)} {prod(shape)}")
    kinds = set(map(type, items))
    if wanted.datatype == "BYTES":
        if kinds != {str}:
            raise malformed(f"{wanted.name} has data that is no string")
        try:
            return [item.encode("utf-8") for item in items]
        except UnicodeEncodeError:
            raise malformed(f"{wanted.name} has a string that is no Unicode text") from None
    if not kinds <= {int, float}:
        raise malformed(f"{wanted.name} has data that is no number")
    try:
        with np.errstate(over="ignore"):
            return _finite(np.array(items, np.float32).reshape(shape), wanted)
    except OverflowError:
        raise malformed(f"{wanted.name} has a number beyond float32") from None


def from_binary(block: memoryview, shape: tuple[int, ...], wanted: Tensor) -> Values:
    """Numbers as they lie in memory, the lowest byte first; strings each with its length before it.

    Raises:
        Refusal: 400, and what is wrong with them.
    """
    import numpy as np

    if wanted.datatype == "BYTES":
        return _strings(block, prod(shape), wanted.name)
    kind = np.dtype(NUMBERS[wanted.datatype])
    expected = prod(shape) * kind.itemsize
    if block.nbytes != expected:
        raise malformed(f"{wanted.name} has {block.nbytes} bytes, and its shape {list(shape)} {expected}")
    return _finite(np.frombuffer(block, kind).reshape(shape), wanted)


def _finite(values: NDArray[np.float32], wanted: Tensor) -> NDArray[np.float32]:
    import numpy as np

    if not np.isfinite(values).all():
        raise malformed(f"{wanted.name} holds numbers that are not finite")
    return values


def _strings(block: memoryview, count: int, name: str) -> list[bytes]:
    """Each is four bytes of length, the lowest first, and that many bytes."""
    found: list[bytes] = []
    start = 0
    while start < block.nbytes and len(found) <= count:
        if block.nbytes - start < 4:
            raise malformed(f"{name} ends within the length of a string")
        (length,) = struct.unpack_from("<I", block, start)
        start += 4
        if length > block.nbytes - start:
            raise malformed(f"{name} has a string of {length} bytes, and {block.nbytes - start} are left")
        found.append(bytes(block[start : start + length]))
        start += length
    if len(found) != count:
        many = f"more than {count}" if len(found) > count else str(len(found))
        raise malformed(f"{name} has {many} strings, and its shape {count}")
    return found


def as_block(values: Values, datatype: str) -> bytes:
    """The inverse of `from_binary`."""
    if isinstance(values, list):
        return b"".join(struct.pack("<I", len(value)) + value for value in values)
    return values.astype(NUMBERS[datatype], copy=False).tobytes()


def shown(found: object) -> str:
    """What a client sent, as an error may repeat it: short, in JSON, on one line."""
    text = json.dumps(found) if isinstance(found, str | int | float | bool | None) else type(found).__name__
    if isinstance(found, list) and len(found) < 10 and all(type(item) in (int, float) for item in found):
        text = json.dumps(found)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
