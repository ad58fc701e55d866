"""The files of a folder that a report shows: latencies, parity ladders, scale tables."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sepvit_deploy.errors import InputError
from sepvit_deploy.latency import Results, is_results, read_results
from sepvit_deploy.report.rungs import Ladder, is_ladder, ladder
from sepvit_deploy.scales import ScaleTable, read_scales

DEPTH = 3
"""Folders below the one that was named."""
MOST_FILES = 10_000
"""JSON files looked at."""
MOST_SHOWN = 32
"""Of each kind: beyond that no page is readable, or small."""
MAX_BYTES = 1 << 25
"""Of a file that is not latencies; larger ones are none of ours."""
SCALES = ".scales.json"
_HEAD_BYTES = 4096
_LATENCY = re.compile(rb'"kind"\s*:\s*"latency"')
_HINT = "type: sepvit-deploy bench --output results.json"


@dataclass
class Found:
    """What lies in the folders, by a name that tells the files apart."""

    results: dict[str, Results] = field(default_factory=dict)
    ladders: dict[str, Ladder] = field(default_factory=dict)
    scales: dict[str, ScaleTable] = field(default_factory=dict)


def collect(sources: Sequence[Path]) -> Found:
    """Read files, and what folders hold down to `DEPTH` below them.

    Of a folder, JSON that is nothing to a report is passed over; of the files that are named, it is an error.

    Raises:
        InputError: nothing to show, too much of it, or a file that is damaged or not readable.
    """
    found = Found()
    seen: set[str] = set()
    for source in sources:
        folder = os.path.isdir(source)
        for path in _json_files(source) if folder else (source,):
            if (place := os.path.realpath(path)) in seen:
                continue
            seen.add(place)
            taken = _take(path, _name(path, source if folder else path.parent, found), found)
            if not taken and not folder:
                raise InputError(
                    f"{path} is nothing that a report shows",
                    expected="results of bench, a ladder of check --json, or a scale table",
                    hint=_HINT,
                )
        for kind, items in vars(found).items():
            if len(items) > MOST_SHOWN:
                raise InputError(f"{source} holds more than {MOST_SHOWN} {kind}", hint="name the files to show")
    if not (found.results or found.ladders or found.scales):
        places = ", ".join(map(str, sources)) or "nothing"
        raise InputError(f"there is nothing to report in {places}", expected="results of bench", hint=_HINT)
    return found


def _json_files(folder: Path) -> Iterator[Path]:
    """Regular files in the order of their names; links to folders are not followed, hidden folders left out."""
    count = 0
    for place, folders, files in os.walk(folder):
        deep = len(Path(place).relative_to(folder).parts) >= DEPTH
        folders[:] = [] if deep else sorted(name for name in folders if name[0] != ".")
        for name in sorted(files):
            path = Path(place, name)
            if name.endswith(".json") and os.path.isfile(path):
                count += 1
                if count > MOST_FILES:
                    raise InputError(f"{folder} holds more than {MOST_FILES} JSON files", hint="name the files to show")
                yield path


def _name(path: Path, below: Path, found: Found) -> str:
    """The file's name below the folder; its whole path where another folder has one of that name."""
    name = path.relative_to(below).as_posix()
    return str(path) if any(name in items for items in vars(found).values()) else name


def _take(path: Path, name: str, found: Found) -> bool:
    """Add a file to what was found; False where it is nothing to a report."""
    if path.name.endswith(SCALES):
        found.scales[name] = read_scales(path)
        return True
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        large = os.path.getsize(path) > MAX_BYTES
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", expected="a JSON file") from error
    if _LATENCY.search(head):  # known by its beginning, so a file that is cut off is not passed over
        found.results[name] = read_results(path)
        return True
    document = None if large else _document(path)
    if is_results(document):
        found.results[name] = read_results(path)
    elif isinstance(document, dict) and is_ladder(document):
        try:
            found.ladders[name] = ladder(document)
        except ValueError as error:
            raise InputError(f"{path} contradicts itself ({error})", expected="what check --json writes") from error
    else:
        return False
    return True


def _document(path: Path) -> Any:
    """The JSON of a file; None where it is none."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
