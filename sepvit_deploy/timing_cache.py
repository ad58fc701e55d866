"""TensorRT's timing cache: how fast each kernel was, kept in a file that builds of one version and GPU share.

The file is replaced as a whole, and builds that end together all keep their entries. `config` is a
`trt.IBuilderConfig`.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sepvit_deploy import artifact
from sepvit_deploy.errors import InputError, OutputError

MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class TimingCache:
    """A timing cache while an engine is built.

    Attributes:
        known_bytes: its size before the build; None where it held nothing.
    """

    path: Path
    known_bytes: int | None


def open_cache(config: Any, path: Path, *, afresh: bool = False) -> TimingCache:
    """Give a build the kernels that ``path`` knows; a file that is not there yet knows none.

    Args:
        afresh: begin a new one where TensorRT refuses the file, which is then taken away.

    Raises:
        OutputError: it could not be written after the build.
        InputError: it cannot be read, or TensorRT refuses it: of another version or GPU, or damaged.
    """
    _require_place(path)
    cache = _understood(config, _read(path))
    if cache is None or not config.set_timing_cache(cache, False):
        if afresh:
            path.unlink(missing_ok=True)
            return open_cache(config, path)
        raise InputError(
            f"TensorRT refuses --timing-cache {path}",
            expected="a timing cache of this TensorRT and this GPU",
            hint="give each TensorRT version and GPU a file of its own; this one is left as it is",
        )
    known = len(_learnt(config))
    return TimingCache(path, known if known > len(_empty(config)) else None)


def save_cache(config: Any, used: TimingCache) -> tuple[bool, str | None]:
    """Write what a build has learnt, together with what others wrote to the file since.

    Returns:
        Whether the cache knew every kernel that the build asked for; and a warning, where it could not be saved.
    """
    if used.known_bytes is not None and len(_learnt(config)) <= used.known_bytes:
        return True, None  # nothing to add, whatever others wrote
    try:
        with _one_at_a_time(used.path.parent):
            others = _read(used.path)
            newer = _understood(config, others)
            if newer is None or (others and not config.get_timing_cache().combine(newer, False)):
                return (
                    False,
                    f"--timing-cache {used.path} is now one that TensorRT refuses; it is left as it is",
                )
            with artifact.written(used.path) as temporary:
                temporary.write_bytes(_learnt(config))
    except InputError as error:
        return False, f"the timing cache was not saved: {error.found}"
    return False, None


def _understood(config: Any, content: bytes) -> Any:
    """A `trt.ITimingCache` of the content; None where TensorRT does not read it."""
    cache = config.create_timing_cache(content)
    if cache is not None and content:
        read = bytes(cache.serialize())
        if len(read) <= len(_empty(config)) and content != read:  # of what it does not read it makes an empty one
            return None
    return cache


def _empty(config: Any) -> bytes:
    return bytes(config.create_timing_cache(b"").serialize())


def _learnt(config: Any) -> bytes:
    """What the cache of a build holds: the build has a copy of the cache that it was given."""
    return bytes(config.get_timing_cache().serialize())


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise InputError(f"--timing-cache {path} cannot be read ({error.strerror})") from error
    if len(content) > MAX_BYTES:
        raise InputError(f"--timing-cache {path} is larger than {MAX_BYTES >> 20} MiB", expected="a timing cache")
    return content


def _require_place(path: Path) -> None:
    folder = path.parent
    if not folder.is_dir():
        hint = f"type: mkdir -p {shlex.quote(str(folder))}"
        raise OutputError(f"--timing-cache {path}: the folder {folder} does not exist", hint=hint)
    if path.exists() and not path.is_file():
        raise OutputError(f"--timing-cache {path} is no regular file", expected="a file of an earlier build, or none")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"--timing-cache {path}: the folder {folder} cannot be written")


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Keep other writers out: a lock on the folder itself, which leaves no file behind and ends with its process."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: the last of two writers wins
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
