"""Folders that appear whole or not at all in a repository that a server may be reading.

A server takes every folder of its repository for a model, hidden ones too, and one without a version stops its start.
So what is not ready lies beside the repository, and inside it only where the place beside it cannot be had.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sepvit_deploy.errors import OutputError
from sepvit_deploy.triton.contents import Content
from sepvit_deploy.triton.repository import HIDDEN

LOCK_SECONDS = 120.0
"""Longest wait for another writer, who copies files."""


@contextlib.contextmanager
def staging(repository: Path, warn: Callable[[str], None]) -> Iterator[Path]:
    """A hidden folder to build in, on the repository's file system, gone at the end; one writer at a time has one.

    What an earlier writer left, who was killed, is removed first.

    Args:
        warn: told where nothing keeps a second writer out.

    Raises:
        OutputError: the repository cannot be made or written, or another writer does not end.
    """
    try:
        existed = os.path.isdir(repository)
        os.makedirs(repository, exist_ok=True)
        try:
            with _one_writer(repository) as alone:
                if alone:
                    _sweep(repository)
                else:
                    warn(
                        f"the file system of {repository} has no locks, so nothing keeps a second writer out, and "
                        "two at once may undo each other's settings: let one write at a time"
                    )
                stage = _stage(repository)
                try:
                    yield stage
                finally:
                    shutil.rmtree(stage, ignore_errors=True)
        finally:
            if not existed:
                with contextlib.suppress(OSError):
                    os.rmdir(repository)  # empty: nothing was put into it
    except OSError as error:
        raise _output_error(repository, error) from error


def write(folder: Path, files: dict[str, Content]) -> None:
    """Write or copy files below a folder, and see them on the disk."""
    for place, content in files.items():
        path = folder / place
        os.makedirs(path.parent, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            shutil.copyfile(content, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for parent, _, _ in os.walk(folder):
        _sync(Path(parent))


def place(staged: Path, target: Path) -> None:
    """Rename a folder to where a server sees it.

    Raises:
        OutputError: something is there by now; it is left as it is.
    """
    try:
        os.rename(staged, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise OutputError(f"{target} appeared meanwhile", hint="type the command again") from error
    _sync(target.parent)


def update(staged: Path, target: Path) -> None:
    """Put a file in the place of another, at once."""
    os.makedirs(target.parent, exist_ok=True)
    os.replace(staged, target)
    _sync(target.parent)


@contextlib.contextmanager
def _one_writer(repository: Path) -> Iterator[bool]:
    """A lock on the folder itself, which leaves no file behind, and ends with the process; False where none can be."""
    import fcntl

    descriptor = os.open(repository, os.O_RDONLY | os.O_DIRECTORY)
    alone = True
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OutputError(f"another writer has been at work in {repository} for a while") from None
                time.sleep(0.02)
                continue
            except OSError:
                alone = False  # a file system without locks: renames still never overwrite a folder
            break
        yield alone
    finally:
        os.close(descriptor)


def _prefix(repository: Path) -> str:
    return f".{repository.resolve().name}.sepvit-triton-"


def is_stage(repository: Path, name: str) -> bool:
    """True for a folder that a writer of this repository builds in, or left when it was killed."""
    return name.startswith(_prefix(repository)) and name.endswith(HIDDEN)


def _stage(repository: Path) -> Path:
    name = f"{_prefix(repository)}{os.urandom(6).hex()}{HIDDEN}"
    real = repository.resolve()
    for parent in (real.parent, real):
        with contextlib.suppress(OSError):
            if os.stat(parent).st_dev == os.stat(real).st_dev:
                os.mkdir(parent / name)
                return parent / name
    os.mkdir(real / name)  # says why it cannot be
    return real / name


def _sweep(repository: Path) -> None:
    """Remove what killed writers of this repository left: the lock is ours, so nobody is at work."""
    real = repository.resolve()
    for parent in (real.parent, real):
        with contextlib.suppress(OSError):
            for name in os.listdir(parent):
                if is_stage(repository, name):
                    shutil.rmtree(parent / name, ignore_errors=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _output_error(repository: Path, error: OSError) -> OutputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"no space left to write {repository}", hint="free some, or give another --repository")
    if isinstance(error, FileExistsError | NotADirectoryError):
        return OutputError(f"{repository} is no folder", expected="a folder, or nothing yet", hint="give another one")
    reason = f"{error.strerror}: {error.filename}" if error.filename else str(error)
    hint = f"give another --repository than {shlex.quote(str(repository))}"
    return OutputError(f"{repository} cannot be written ({reason})", hint=hint)
