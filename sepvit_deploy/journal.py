"""A file of finished work, line by line, from which a run that was killed goes on."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from sepvit_deploy.errors import InputError, OutputError

FORMAT = 1
_Parsed = TypeVar("_Parsed")


class Journal:
    """Records of one piece of work: a line that says what it is, then a JSON list a line, only ever appended to.

    A kill at any moment leaves whole lines and at most one torn one, which the next run cuts off. Use as a context
    manager: a file without records is removed at the end.

    Args:
        path: created where it does not exist.
        key: what the records belong to, such as digests; a file of any other key is refused.

    Attributes:
        records: those that an earlier run left, in order.

    Raises:
        InputError: the file holds something else, other work, or another process is writing to it.
        OutputError: the file cannot be written.
    """

    def __init__(self, path: Path, key: Mapping[str, str]) -> None:
        self.path = path
        self.records: list[list[Any]] = []
        self._ends: list[int] = []
        header = json.dumps({"journal": FORMAT, **key}).encode() + b"\n"
        if os.path.exists(path) and not os.path.isfile(path):
            raise OutputError(f"{path} is no regular file", expected="a place for the progress")
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise self._refused(error) from error
        try:
            self._lock()
            content = path.read_bytes()
            if header.startswith(content):  # new, or killed before its first line was whole
                os.ftruncate(self._file, 0)
                os.write(self._file, header)
                content = header
            self._read(content, key)
            os.ftruncate(self._file, self._ends[-1])
        except OSError as error:
            os.close(self._file)
            raise self._refused(error) from error
        except InputError:
            os.close(self._file)
            raise

    def keep(self, count: int) -> None:
        """Cut off all records but the first ``count``."""
        del self.records[count:], self._ends[count + 1 :]
        os.ftruncate(self._file, self._ends[-1])

    def append(self, records: Iterable[list[Any]]) -> None:
        """Add records, all in one write.

        Raises:
            OutputError: no space left.
        """
        text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records).encode()
        try:
            if os.write(self._file, text) < len(text):
                raise OSError("no space left")
        except OSError as error:
            raise self._refused(error) from error

    def remove(self) -> None:
        """The work is done: the file is not needed any more."""
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if os.fstat(self._file).st_size == self._ends[0]:
            self.remove()
        os.close(self._file)

    def _lock(self) -> None:
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found = f"{self.path} is in use by another process"
            raise InputError(found, hint="wait for it, or name another file for the progress") from None
        except OSError:
            pass  # a file system without locks

    def _read(self, content: bytes, key: Mapping[str, str]) -> None:
        lines = content.split(b"\n")[:-1]  # less what follows the last end of a line, a torn one
        first = _parsed(lines[0] if lines else b"", dict)
        if first is None or first.get("journal") != FORMAT:
            raise InputError(f"{self.path} holds no progress of an earlier run", hint=_ANOTHER)
        if first != {"journal": FORMAT, **key}:
            other = ", ".join(name for name in key if first.get(name) != key[name]) or "command"
            raise InputError(f"{self.path} is the progress of other work: another {other}", hint=_ANOTHER)
        for number, line in enumerate(lines[1:], 2):
            record = _parsed(line, list)
            if record is None:
                raise InputError(f"{self.path} holds no record in line {number}", hint=_ANOTHER)
            self.records.append(record)
        self._ends = list(itertools.accumulate(len(line) + 1 for line in lines))

    def _refused(self, error: OSError) -> OutputError:
        found = f"{self.path} cannot be written ({error.strerror or error})"
        return OutputError(found, hint="name another file for the progress")


def _parsed(line: bytes, kind: type[_Parsed]) -> _Parsed | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, kind) else None


_ANOTHER = "remove it to begin anew, or name another file for the progress"
