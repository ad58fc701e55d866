"""Can one version of a model stand in for another? A client must not see which one answers."""

from __future__ import annotations

import json

from sepvit_deploy.errors import InputError
from sepvit_deploy.triton.config import LABELS
from sepvit_deploy.triton.contents import Model
from sepvit_deploy.triton.messages import Message, parse, type_name
from sepvit_deploy.triton.repository import ModelFolder
from sepvit_deploy.triton.served import CONFIG

SETTINGS = ("preprocessing.json", "ranking.json", "masking.json")
"""Beside a Python model: what it does to a picture, or what it calls a class, or paints it with."""
MAX_BYTES = 1 << 27
_HINT = "give it another --name, or remove the old one if nobody uses it"


def require_exchangeable(model: Model, old: ModelFolder) -> None:
    """Refuse a version that a client of the versions before it would not understand.

    Raises:
        InputError: names, types, dims, labels or preprocessing differ.
    """
    before = old.config
    if before is None:
        raise InputError(f"{old.path} has no config that can be read, so it is not known what it is", hint=_HINT)
    content = model.shared[CONFIG]
    assert isinstance(content, bytes)
    now = parse(content.decode())
    for what in ("platform", "backend", "input", "output"):
        was, becomes = _told(before, what), _told(now, what)
        if was != becomes:
            found = f"{old.path} has {what} {was or 'none'}, and the new version {becomes or 'none'}"
            raise InputError(found, expected="versions that a client can exchange", hint=_HINT)
    newest = old.versions.get(max(old.versions, default=0))
    for place, content in (model.shared | model.version).items():
        folder = old.path if place in model.shared else newest.path if newest else None
        if place not in (LABELS, *SETTINGS) or folder is None or not isinstance(content, bytes):
            continue
        was_there = _content(old, (folder / place).relative_to(old.path).as_posix())
        if was_there and (difference := _difference(place, was_there, content)):
            raise InputError(f"{folder / place} differs from what is new: {difference}", hint=_HINT)


def changed_settings(model: Model, old: ModelFolder) -> tuple[str, ...]:
    """The parts of a config that another one, for the same clients, says otherwise."""
    content = model.shared[CONFIG]
    assert isinstance(content, bytes)
    before, now = old.config, parse(content.decode())
    if before is None:
        return ()
    return tuple(
        entry.name for entry in now.DESCRIPTOR.fields if getattr(now, entry.name) != getattr(before, entry.name)
    )


def lowers_limit(model: Model, old: ModelFolder) -> bool:
    """True where a config takes smaller batches than the one that was there."""
    content = model.shared[CONFIG]
    assert isinstance(content, bytes)
    return old.config is not None and parse(content.decode()).max_batch_size < old.config.max_batch_size


def _content(old: ModelFolder, place: str) -> bytes:
    try:
        return old.read(place, MAX_BYTES)
    except InputError:
        return b""  # the linter says what is wrong with it


def _told(config: Message, what: str) -> str:
    """A part of a config, for comparing and for people."""
    if what in ("platform", "backend"):
        return str(getattr(config, what))
    return ", ".join(f"{each.name} {type_name(each.data_type)} {list(each.dims)}" for each in getattr(config, what))


def _difference(place: str, was: bytes, becomes: bytes) -> str:
    """The first difference between two files of settings; empty where they say the same."""
    if place == LABELS:
        labels, new = was.decode(errors="replace").splitlines(), becomes.decode().splitlines()
        if len(labels) != len(new):
            return f"it has {len(labels)} labels for {len(new)} classes"
        differing = ((k, pair) for k, pair in enumerate(zip(labels, new, strict=True)) if pair[0] != pair[1])
        return next((f"label {k} is {pair[0]!r:.60}, and now {pair[1]!r:.60}" for k, pair in differing), "")
    try:
        before, now = json.loads(was), json.loads(becomes)
        keys = [key for key in now if before.get(key) != now[key]]
    except (ValueError, AttributeError):
        return "it cannot be read"
    return f"another {', '.join(keys)}" if keys else ""
