"""Open Inference Protocol v2: an inference request's bytes to arrays, and arrays to an answer's bytes.

Pure: no connection, no model. Binary tensor data follows the JSON, whose length a header gives. Nothing is taken that
names memory or files. B batch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from sepvit_deploy.server.refusal import Refusal, malformed
from sepvit_deploy.server.values import Tensor, Values, as_block, from_binary, from_json, shown

MAX_ID = 1024
MAX_TIMEOUT = 2**63 - 1
JSON_SPARE = 64 * 1024
"""Of a request's JSON, bytes beside its values, and parts beside them."""
JSON_VALUE = 26
"""Bytes of a number in JSON: 17 digits with sign, point and exponent, and what separates it from the next."""
JSON_COST = 4
"""Bytes of memory that a byte of JSON takes while it is parsed, beside itself: its text, and 32 of a number."""
MOST_JSON_VALUES = 1 << 22
"""Of an output in an answer's JSON, where each takes some 50 bytes: logits for every fourth pixel are soon too many."""


@dataclass(frozen=True)
class Signature:
    """What a served model takes and gives; it takes one input."""

    model: str
    input: Tensor
    outputs: tuple[Tensor, ...]
    max_batch: int


@dataclass(frozen=True)
class Wanted:
    """An output that a request asks for."""

    name: str
    binary: bool


@dataclass(frozen=True)
class Request:
    """A request that fits its model."""

    id: str | None
    shape: tuple[int, ...]
    values: Values = field(repr=False)
    outputs: tuple[Wanted, ...]
    timeout_us: int | None = None


def parse(body: bytes, header_length: int | None, signature: Signature) -> Request:
    """An inference request.

    Args:
        header_length: Inference-Header-Content-Length, the bytes of JSON; None where all of it is JSON.

    Raises:
        Refusal: 400, and what is wrong with it; 413 where its JSON is longer than its largest batch could make it.
    """
    if header_length is not None and header_length > len(body):
        raise malformed(f"Inference-Header-Content-Length is {header_length}, and the body has {len(body)} bytes")
    length = len(body) if header_length is None else header_length
    text = body[:length]
    _require_modest(text, signature)
    document = _object(_json(text), "the request")
    rest = memoryview(body)[length:]
    parameters = _parameters(document, "the request")
    binary = parameters.get("binary_data_output", False)
    if not isinstance(binary, bool):
        raise malformed(f"binary_data_output is {shown(binary)}, expected true or false")
    shape, values = _input(document, rest, signature)
    outputs = _outputs(document, signature, binary)
    encoded = [tensor.name for tensor in signature.outputs if tensor.encoded]
    if lost := [wanted.name for wanted in outputs if wanted.name in encoded and not wanted.binary]:
        raise malformed(f"{lost[0]} holds encoded pictures, which JSON cannot; ask for it with binary_data")
    return Request(_id(document), shape, values, outputs, _timeout(parameters))


def answer(
    model: str, version: str, request: Request, tensors: dict[str, Values], signature: Signature
) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON where binary data follows.

    Raises:
        Refusal: 400, an output that is too large for JSON is asked for in it.
    """
    entries: list[dict[str, Any]] = []
    blocks: list[bytes] = []
    declared = {tensor.name: tensor for tensor in signature.outputs}
    for wanted in request.outputs:
        values, tensor = tensors[wanted.name], declared[wanted.name]
        batch = request.shape[0]
        shape = list(values.shape) if not isinstance(values, list) else [batch, len(values) // batch]
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": shape}
        if wanted.binary:
            blocks.append(as_block(values, tensor.datatype))
            entry["parameters"] = {"binary_data_size": len(blocks[-1])}
        elif isinstance(values, list):
            entry["data"] = [value.decode("utf-8", "replace") for value in values]
        elif values.size > MOST_JSON_VALUES:
            raise malformed(f"{tensor.name} has {values.size} values, too many for JSON; ask for it with binary_data")
        else:
            entry["data"] = values.ravel().tolist()
        entries.append(entry)
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": entries}
    if request.id is not None:
        document["id"] = request.id
    head = dumps(document)
    return b"".join([head, *blocks]), len(head) if blocks else None


def dumps(document: object) -> bytes:
    """Compact JSON, without the NaN that is none."""
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


def json_limit(signature: Signature) -> int:
    """Bytes of JSON that the largest batch takes, if its values are in there."""
    return JSON_VALUE * _most_values(signature) + JSON_SPARE


def _most_values(signature: Signature) -> int:
    return signature.max_batch * signature.input.most_values


def _require_modest(text: bytes, signature: Signature) -> None:
    """Refuse JSON that would only fill memory: three bytes of it can become seventy."""
    hint = f"at most {signature.max_batch} are computed at once; a tensor may follow as binary data"
    if len(text) > (most := json_limit(signature)):
        raise Refusal(413, f"the JSON has {len(text)} bytes, and {signature.model} takes {most}: {hint}")
    # Each value is behind a comma, or first in a list or an object.
    if sum(map(text.count, (b",", b"[", b"{"))) > 2 * _most_values(signature) + JSON_SPARE:
        raise Refusal(413, f"the JSON has more values than {signature.model} takes: {hint}")


def _json(text: bytes) -> object:
    try:
        return json.loads(text.decode("utf-8"), parse_constant=_no_number)
    except RecursionError:
        raise malformed("the JSON is nested too deeply") from None
    except ValueError as error:  # of the text, of a number's digits, of the encoding
        raise malformed(f"the request is no JSON ({error!s:.200})") from None


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _id(document: dict[str, Any]) -> str | None:
    found = document.get("id")
    if found is not None and (not isinstance(found, str) or len(found) > MAX_ID):
        raise malformed(f"id is {shown(found)}, expected a string of at most {MAX_ID} characters")
    return found or None


def _timeout(parameters: dict[str, Any]) -> int | None:
    found = parameters.get("timeout")
    if found is not None and (type(found) is not int or not 0 <= found <= MAX_TIMEOUT):
        raise malformed(f"timeout is {shown(found)}, expected microseconds as an integer")
    return found or None  # 0 is Triton's word for the default


def _input(document: dict[str, Any], rest: memoryview, signature: Signature) -> tuple[tuple[int, ...], Values]:
    wanted = signature.input
    entries = document.get("inputs")
    if not isinstance(entries, list) or not entries:
        raise malformed(f"the request has no inputs, expected {wanted.name} for {signature.model}")
    if len(entries) != 1:
        raise malformed(f"the request has {len(entries)} inputs, expected {wanted.name} alone")
    entry = _object(entries[0], "an input")
    if entry.get("name") != wanted.name:
        raise malformed(f"the input is {shown(entry.get('name'))}, expected {wanted.name!r} for {signature.model}")
    if entry.get("datatype") != wanted.datatype:
        raise malformed(f"{wanted.name} has datatype {shown(entry.get('datatype'))}, expected {wanted.datatype}")
    shape = _shape(entry.get("shape"), signature)
    size = _parameters(entry, wanted.name).get("binary_data_size")
    if size is None:
        if rest.nbytes:
            raise malformed(f"{rest.nbytes} bytes follow the JSON, and no binary_data_size speaks of them")
        return shape, from_json(entry.get("data"), shape, wanted)
    if "data" in entry:
        raise malformed(f"{wanted.name} has both data and binary_data_size")
    if type(size) is not int or size != rest.nbytes:
        raise malformed(f"binary_data_size is {shown(size)}, and {rest.nbytes} bytes follow the JSON")
    return shape, from_binary(rest, shape, wanted)


def _shape(found: object, signature: Signature) -> tuple[int, ...]:
    wanted = signature.input
    names = ("B", "", "height", "width")
    expected = "[" + ",".join(names[k] if dim is None else str(dim) for k, dim in enumerate(wanted.shape)) + "]"
    if (
        not isinstance(found, list)
        or len(found) != len(wanted.shape)
        or any(type(dim) is not int for dim in found)
        or any(want is not None and want != have for want, have in zip(wanted.shape, found, strict=True))
        or found[0] < 1
    ):
        raise malformed(f"{wanted.name} has shape {shown(found)}, expected {expected}")
    if wanted.within and not _fits(found[-2:], wanted.within):
        limit = "x".join(map(str, wanted.within))
        raise malformed(f"{wanted.name} has shape {shown(found)}, expected height and width within {limit}, or turned")
    if found[0] > signature.max_batch:
        raise malformed(f"a batch of {shown(found[0])}, and {signature.model} takes at most {signature.max_batch}")
    return tuple(found)


def _fits(size: list[int], within: tuple[int, int]) -> bool:
    pairs = zip(sorted(size), sorted(within), strict=True)
    return all(1 <= side <= most for side, most in pairs)


def _outputs(document: dict[str, Any], signature: Signature, binary: bool) -> tuple[Wanted, ...]:
    entries = document.get("outputs", [])
    names = [tensor.name for tensor in signature.outputs]
    if not isinstance(entries, list):
        raise malformed(f"outputs is {shown(entries)}, expected a list")
    if not entries:
        return tuple(Wanted(name, binary) for name in names)
    found: list[Wanted] = []
    for entry in entries:
        name = _object(entry, "an output").get("name")
        if name not in names:
            raise malformed(f"the output {shown(name)} is none of {signature.model}, expected {', '.join(names)}")
        if name in [wanted.name for wanted in found]:
            raise malformed(f"the output {name} is asked for twice")
        parameters = _parameters(entry, name)
        if "classification" in parameters:
            # Of a classifier's logits, for which another model is there.
            hint = f"; ask {signature.model}_classify for classes" if len(signature.outputs[0].shape) == 2 else ""
            raise malformed(f"classification of {name} is not offered{hint}")
        as_binary = parameters.get("binary_data", binary)
        if not isinstance(as_binary, bool):
            raise malformed(f"binary_data is {shown(as_binary)}, expected true or false")
        found.append(Wanted(name, as_binary))
    return tuple(found)


def _parameters(document: dict[str, Any], where: str) -> dict[str, Any]:
    """Unknown ones mean nothing, as the protocol has it; those of shared memory are refused."""
    found = _object(document.get("parameters", {}), f"parameters of {where}")
    if shared := [key for key in found if key.startswith("shared_memory")]:
        raise malformed(f"{shown(shared[0])}: memory that is named is not read here; send the data")
    return found


def _object(found: object, what: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise malformed(f"{what} is {shown(found)}, expected a JSON object")
    return found


def header_length(text: str | None) -> int | None:
    """Inference-Header-Content-Length as it was sent.

    Raises:
        Refusal: 400, it is no length.
    """
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        raise Refusal(400, f"Inference-Header-Content-Length is {shown(text)}, expected a number of bytes")
    return int(text)
