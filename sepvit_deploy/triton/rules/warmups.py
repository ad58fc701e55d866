"""Rules on model_warmup, of which Triton checks little before it runs it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from sepvit_deploy.errors import InputError
from sepvit_deploy.triton.messages import Message, type_name
from sepvit_deploy.triton.repository import ModelFolder, Repository
from sepvit_deploy.triton.rules.rule import rule

MAX_WARMUP_BYTES = 1 << 28
_BYTES = {"BOOL": 1, "UINT8": 1, "INT8": 1, "UINT16": 2, "INT16": 2, "FP16": 2, "BF16": 2, "UINT32": 4, "INT32": 4}
_BYTES |= {"FP32": 4, "UINT64": 8, "INT64": 8, "FP64": 8}


@rule("warmup-batch", "error", "warm-up with a batch above max_batch_size was seen to crash the server")
def _batch(repository: Repository) -> Iterator[tuple[str, str]]:
    for model, config, message in repository.configs():
        most = max(1, message.max_batch_size)
        for warmup in message.model_warmup:
            if not 1 <= warmup.batch_size <= most:
                found = f"warm-up {warmup.name!r:.60} has batch {warmup.batch_size}"
                yield f"{model.name}/{config.place}", f"{found}, and max_batch_size is {message.max_batch_size}"


@rule("warmup-input", "error", "warm-up needs every input of the model that is not optional, in its type and dims")
def _inputs(repository: Repository) -> Iterator[tuple[str, str]]:
    for model, config, message in repository.configs():
        known = {entry.name: entry for entry in message.input}
        for warmup in message.model_warmup:
            place, name = f"{model.name}/{config.place}", f"warm-up {warmup.name!r:.60}"
            for lacking in sorted(known.keys() - warmup.inputs.keys()):
                if not known[lacking].optional:
                    yield place, f"{name} lacks the input {lacking}"
            for given, source in warmup.inputs.items():
                if given not in known:
                    yield place, f"{name} gives {given!r:.60}, which is no input"
                elif unlike := _unlike(known[given], source):
                    yield place, f"{name} gives {given} as {unlike}"


def _unlike(entry: Message, source: Message) -> str:
    """In what a warm-up's tensor is not the input; empty where it is."""
    told, given = (type_name(entry.data_type), list(entry.dims)), (type_name(source.data_type), list(source.dims))
    fits = len(given[1]) == len(told[1]) and all(
        want in (-1, have) for want, have in zip(told[1], given[1], strict=True)
    )
    if given[0] == told[0] and fits:
        return ""
    return f"{given[0]} {given[1]}, and the input is {told[0]} {told[1]}"


@rule("warmup-data", "error", "warm-up from a file needs that file, of exactly the tensor's bytes")
def _data(repository: Repository) -> Iterator[tuple[str, str]]:
    for model, config, message in repository.configs():
        for warmup in message.model_warmup:
            for name, source in warmup.inputs.items():
                if source.input_data_file:
                    for problem in _problems(model, source):
                        yield f"{model.name}/{config.place}", f"warm-up {warmup.name!r:.60} of {name}: {problem}"


def _problems(model: ModelFolder, source: Message) -> Iterator[str]:
    try:
        content = model.read(f"warmup/{source.input_data_file}", MAX_WARMUP_BYTES)
    except InputError as error:
        yield str(error)
        return
    elements, kind = math.prod(source.dims), type_name(source.data_type)
    if kind == "BYTES":
        if (found := _elements(content)) != elements:
            yield f"{source.input_data_file} holds {'no' if found is None else found} BYTES, expected {elements}"
    elif kind in _BYTES and len(content) != elements * _BYTES[kind]:
        yield f"{source.input_data_file} has {len(content)} bytes, expected {elements * _BYTES[kind]}"


def _elements(content: bytes) -> int | None:
    """How many BYTES a file holds, each after its length; None where the lengths do not add up."""
    place, found = 0, 0
    while place + 4 <= len(content):
        place += 4 + int.from_bytes(content[place : place + 4], "little")
        found += 1
    return found if place == len(content) else None
