"""Dataclasses to JSON and back without loss: every key is there, every type is right, or it is an error.

A field that `later` makes may be absent: files from before it do not have it, and where it has its default it is not
written, so that they, and their digests, stay as they are.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from sepvit_deploy.errors import OptionError

_R = TypeVar("_R")


def later(default: Any) -> Any:
    """A field that a record did not have from the beginning."""
    return field(default=default, metadata={"later": True})


def plain(value: Any) -> dict[str, Any]:
    """A dataclass as a dictionary that JSON can hold: a tuple becomes a list, a path its text."""
    document: dict[str, Any] = json.loads(json.dumps(_said(value), default=str, allow_nan=False))
    return document


def _said(value: Any) -> Any:
    """Records within it as dictionaries, without the later fields that have their default."""
    if is_dataclass(value):
        found = {entry: getattr(value, entry.name) for entry in fields(value)}
        return {k.name: _said(v) for k, v in found.items() if not (k.metadata.get("later") and v == k.default)}
    if isinstance(value, dict):
        return {key: _said(item) for key, item in value.items()}
    return [_said(item) for item in value] if isinstance(value, list | tuple) else value


def record(kind: type[_R], values: object) -> _R:
    """The inverse of `plain`: a dataclass out of JSON; ValueError or TypeError where a key or a type differs."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{kind.__name__} is {values!r:.60}")
    names = [entry.name for entry in fields(kind) if entry.name in values or not entry.metadata.get("later")]  # type: ignore[arg-type]
    if differing := sorted(map(str, set(names) ^ values.keys())):
        raise ValueError(f"unknown or missing keys of {kind.__name__}: {', '.join(differing)}")
    hints = typing.get_type_hints(kind)
    try:
        return kind(**{name: _typed(name, hints[name], values[name]) for name in names})
    except OptionError as error:
        raise ValueError(str(error)) from error


def _typed(name: str, hint: Any, value: Any) -> Any:
    """`value` as `hint` wants it: a JSON list becomes a tuple, a JSON object a record."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _typed(name, next(arm for arm in inner if arm is not type(None)), value)
    if origin is Literal:
        if value not in inner:
            raise ValueError(f"{name} is {value!r:.60}")
        return value
    if origin is tuple and inner[0] is float and isinstance(value, list):  # samples: a million of them in one go
        if not set(map(type, value)) <= {int, float} or not all(map(math.isfinite, value)):
            raise TypeError(f"{name} holds what is no finite number")
        return tuple(map(float, value))
    if origin is tuple and Ellipsis not in inner and isinstance(value, list) and len(value) != len(inner):
        raise TypeError(f"{name} is {value!r:.60}")
    if origin in (tuple, list) and isinstance(value, list):
        return origin(_typed(name, inner[0], item) for item in value)
    if origin is dict and isinstance(value, Mapping):
        return {_typed(name, inner[0], key): _typed(name, inner[1], item) for key, item in value.items()}
    if is_dataclass(hint):
        return record(hint, value)  # type: ignore[arg-type]
    if hint is Path and type(value) is str:
        return Path(value)
    if hint is float and type(value) in (int, float):
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}")
        return float(value)
    if type(value) is not hint:
        raise TypeError(f"{name} is {value!r:.60}")
    return value
