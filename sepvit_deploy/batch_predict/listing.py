"""Which pictures a job is of: the names under a folder, or those that a pattern matches, sorted, in one file.

The listing never lies in memory whole: folders are walked in the order of the result, so what is held at a time is the
names of one folder and of those above it. On disk it is names relative to the root, each ended by a zero byte.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sepvit_deploy.errors import ImageError
from sepvit_deploy.images import SUFFIXES

ANY_FOLDERS = "**"
_MAGIC = frozenset("*?[")
_SUFFIXES = tuple(suffix.encode() for suffix in SUFFIXES)
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Source:
    """Where pictures come from.

    Attributes:
        root: the folder that names are relative to.
        pattern: components of a name, which `fnmatch` understands; ``**`` is any number of folders, none included.
    """

    root: Path
    pattern: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Source:
        """A folder, all of whose pictures are meant, or a pattern such as ``data/**/*.jpg``.

        Of a pattern, too, only files with a picture's suffix are taken.

        Raises:
            ImageError: there is no such folder, or that before a pattern's first wildcard is none.
        """
        if os.path.isdir(text):
            return cls(Path(text), (ANY_FOLDERS, "*"))
        parts = Path(text).parts
        first = next((k for k, part in enumerate(parts) if _MAGIC & set(part)), None)
        if first is None:
            found = "is a file" if os.path.exists(text) else "does not exist"
            raise ImageError(f"{text} {found}", expected="a folder of pictures, or a quoted pattern 'DIR/**/*.jpg'")
        root = Path(*parts[:first])
        if not os.path.isdir(root):
            raise ImageError(f"{root}, where {text} begins, is no folder", expected="a folder of pictures")
        pattern = parts[first:]
        return cls(root, (*pattern, "*") if pattern[-1] == ANY_FOLDERS else pattern)


@dataclass(frozen=True)
class Listing:
    """A listing on disk.

    Attributes:
        sha256: digest of the file.
    """

    file: Path
    images: int
    sha256: str


def write_listing(source: Source, file: Path) -> Listing:
    """Write the names of all pictures of ``source`` to ``file``.

    Raises:
        ImageError: there is none, a folder cannot be read, or a link leads to a folder that is listed already.
    """
    digest = hashlib.sha256()
    images = 0
    # Memory is that of a buffer: names go out as they are found.
    with file.open("wb", buffering=_CHUNK) as out:
        for name in _names(source):
            line = name + b"\0"
            digest.update(line)
            out.write(line)
            images += 1
    if not images:
        what = source.root.joinpath(*source.pattern) if source.pattern[0] != ANY_FOLDERS else source.root
        raise ImageError(f"{what} holds no picture", expected=f"files ending in {', '.join(SUFFIXES)}")
    return Listing(file, images, digest.hexdigest())


def offsets(file: Path, every: int) -> array[int]:
    """Where in a listing every ``every``-th name begins, and last where the listing ends."""
    import numpy as np

    found = array("Q", [0])
    seen = position = 0
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK):
            ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == 0)
            found.extend((position + ends[(every - 1 - seen) % every :: every] + 1).tolist())
            seen += len(ends)
            position += len(chunk)
    if found[-1] != position:
        found.append(position)
    return found


def names_between(file: Path, start: int, end: int) -> list[bytes]:
    """The names of a listing from one offset to another."""
    with file.open("rb") as content:
        content.seek(start)
        return content.read(end - start).split(b"\0")[:-1]


def as_column(name: bytes) -> str:
    """A name as a table holds it: UTF-8; a byte that is none is written as a backslash, an x and two digits."""
    return name.decode("utf-8", "backslashreplace")


def _names(source: Source) -> Iterator[bytes]:
    """Names of pictures, sorted by their components."""
    root = os.path.realpath(os.fsencode(source.root))
    matcher = _Matcher(source.pattern)
    linked: set[bytes] = set()
    try:
        pending = [(b"", iter(_entries(root)), matcher.start)]
        while pending:
            place, entries, states = pending[-1]
            for name, is_folder, is_link in entries:
                path = os.path.join(place, name)
                reached = matcher.step(states, name)
                if not is_folder and matcher.ends(reached):
                    yield path
                elif is_folder and reached:
                    if is_link:
                        _require_new(root, path, linked)
                    pending.append((path, iter(_entries(os.path.join(root, path))), reached))
                    break
            else:
                pending.pop()
    except OSError as error:
        raise ImageError(f"{source.root} cannot be listed ({error})", expected="readable folders") from error


def _entries(folder: bytes) -> list[tuple[bytes, bool, bool]]:
    """Folders and pictures of a folder, sorted: the name, is it a folder, is it a link."""
    found: list[tuple[bytes, bool, bool]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_folder := entry.is_dir():
                found.append((entry.name, is_folder, entry.is_symlink()))
            elif entry.name.lower().endswith(_SUFFIXES):
                found.append((entry.name, False, False))
    found.sort()
    return found


def _require_new(root: bytes, path: bytes, linked: set[bytes]) -> None:
    """Refuse a link into what is listed already: its pictures would be there twice, and a loop would never end."""
    place = os.path.join(root, path)
    target = os.path.realpath(place)
    if target in linked or target == root or target.startswith(os.path.join(root, b"")):
        raise ImageError(f"{os.fsdecode(place)} links to a folder that is listed already", expected="each folder once")
    linked.add(target)


class _Matcher:
    """A pattern as a machine that reads a name component by component; a state is how many components are matched."""

    def __init__(self, pattern: tuple[str, ...]) -> None:
        self._pattern = pattern
        self.start = self._closed({0})
        self._any = pattern == (ANY_FOLDERS, "*")

    def step(self, states: frozenset[int], name: bytes) -> frozenset[int]:
        """The states after one more component; none where nothing below can match."""
        if self._any:
            return states
        text = os.fsdecode(name)
        reached = set()
        for state in states:
            if state == len(self._pattern):
                continue
            if self._pattern[state] == ANY_FOLDERS:
                reached.add(state)
            elif fnmatch.fnmatchcase(text, self._pattern[state]):
                reached.add(state + 1)
        return self._closed(reached)

    def ends(self, states: frozenset[int]) -> bool:
        """Whether the whole pattern is matched."""
        return self._any or len(self._pattern) in states

    def _closed(self, states: set[int]) -> frozenset[int]:
        """With the states that ``**`` reaches by matching nothing."""
        for state in sorted(states):
            while state < len(self._pattern) and self._pattern[state] == ANY_FOLDERS:
                state += 1
                states.add(state)
        return frozenset(states)
