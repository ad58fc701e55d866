"""The class of each picture: from the folders that they lie in, or from a file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sepvit_deploy.errors import ImageError, InputError
from sepvit_deploy.spec import MAX_CLASSES

_FORM = "lines of PATH LABEL, or a JSON object of them: paths in the folder, labels from 0"


def from_class_folders(folder: Path, files: Sequence[Path]) -> tuple[int, ...] | None:
    """Each folder right under ``folder`` is a class, in the order of their names; None where pictures of ``files`` lie
    elsewhere, or all in one such folder.

    Raises:
        ImageError: a class folder holds no picture.
    """
    parts = [path.relative_to(folder).parts for path in files]
    used = {part[0] for part in parts}
    if any(len(part) != 2 for part in parts) or len(used) < 2:
        return None
    # An empty one counts, or the classes after it would be off by one; a hidden one is a program's own.
    present = {entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."}
    if empty := sorted(present - used):
        raise ImageError(
            f"the class folder {folder / empty[0]} holds no picture",
            expected="one or more for each class, counted by the order of their names",
        )
    index = {name: number for number, name in enumerate(sorted(used))}
    return tuple(index[part[0]] for part in parts)


def from_file(path: Path, folder: Path, files: Sequence[Path]) -> tuple[int, ...]:
    """Labels of ``files`` from lines of ``PATH LABEL`` (spaces, a tab or a comma between) or a JSON object.

    Raises:
        InputError: unreadable, of another form, or a picture without a label, with two, or that is not there.
    """
    found: dict[str, int] = {}
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe would wait for ever
            raise ValueError("it is no regular file")
        text = path.read_text(encoding="utf-8-sig")
        for name, label in _json_pairs(text) if path.suffix.lower() == ".json" else _line_pairs(text):
            if type(label) is not int or not 0 <= label < MAX_CLASSES:
                raise InputError(f"{path} gives {name} the label {label!r:.60}", expected=f"0 to {MAX_CLASSES - 1}")
            if found.setdefault(name, label) != label:
                raise InputError(f"{path} gives {name} the labels {found[name]} and {label}", expected="one")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} holds no labels ({error})", expected=_FORM) from error
    names = [file.relative_to(folder).as_posix() for file in files]
    for problem, those in (
        ("has no label for", [name for name in names if name not in found]),
        ("names pictures that are not there:", sorted(found.keys() - set(names))),
    ):
        if those:
            what = f"{path} {problem} {those[0]}" + (f" and {len(those) - 1} more" if those[1:] else "")
            raise InputError(what, expected=f"the {len(names)} pictures under {folder}")
    return tuple(found[name] for name in names)


def _line_pairs(text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        match = re.fullmatch(r"(.*?\S)(?:\s*,\s*|\s+)([0-9]{1,9})", line.strip())
        if match is None:
            raise ValueError(f"line {number} is {line.strip()[:60]!r}")
        yield match[1], int(match[2])


def _json_pairs(text: str) -> list[tuple[str, Any]]:
    document = json.loads(text, object_pairs_hook=list)  # a list of pairs keeps a name that is there twice
    if not isinstance(document, list) or not all(isinstance(pair, tuple) for pair in document):
        raise ValueError("it is no JSON object")
    return document
