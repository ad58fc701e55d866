"""Files that appear whole or not at all, and their passports.

The passport of ``sepvit_t.onnx`` is ``sepvit_t.onnx.json``: what the file is (digest, bytes), what it was made from
(parents and their digests), by which stage and tool versions, for which model, with which facts (audit, parity).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from sepvit_deploy.errors import OutputError, PassportError

SCHEMA = 1
MAX_PASSPORT_BYTES = 1 << 26
LOCK_SECONDS = 10.0
"""Longest wait for another writer, who needs microseconds; a lock held longer is not one of this package."""
_TOOLS = ("sepvit-deploy", "torch", "onnx", "onnxscript", "onnxsim", "onnxruntime", "numpy")


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces it on success and vanishes on any failure.

    Raises:
        OutputError: the place cannot be written, or the disk is full.
    """
    with _temporary_beside(path) as temporary:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)


def require_writable(path: Path) -> None:
    """Fail now, before work that takes a while, if ``path`` or its passport could not be written.

    Raises:
        OutputError: its folder is missing or not writable, or ``path`` is a folder or a device.
    """
    with _temporary_beside(path), _temporary_beside(passport_path(path)):
        pass


@contextlib.contextmanager
def _temporary_beside(path: Path) -> Iterator[Path]:
    """An empty file in the folder of ``path``, gone at the end; what the system refuses becomes an OutputError."""
    if os.path.isdir(path):
        raise OutputError(f"{path} is a folder", expected="a file to write", hint="name a file in it")
    if os.path.exists(path) and not os.path.isfile(path):
        raise OutputError(f"{path} is no regular file", expected="a file to write")
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
    try:
        try:
            # Not by tempfile: the system itself applies the umask, which no thread can read without changing it.
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _output_error(path, error) from error


@contextlib.contextmanager
def _one_writer(folder: Path) -> Iterator[None]:
    """Keep other writers of pairs out of ``folder``: a lock on the folder itself, which leaves no file behind."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.005)
                continue
            except OSError:
                pass  # a file system without locks: a pair mixed by two writers is still refused when it is read
            break
        yield
    finally:
        os.close(descriptor)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _output_error(path: Path, error: OSError) -> OutputError:
    folder = path.parent
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"no space left to write {path}", hint="free some, or give another folder with --output")
    if error.errno == errno.ENOENT and not os.path.isdir(folder):
        return OutputError(f"the folder {folder} does not exist", hint=f"type: mkdir -p {shlex.quote(str(folder))}")
    reason = error.strerror or str(error)
    return OutputError(f"{path} cannot be written ({reason})", hint="give another place with --output")


def sha256(path: Path) -> str:
    """Digest of a file's bytes, in hexadecimal."""
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tool_versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape an artifact, as far as they are installed."""
    import importlib.metadata
    import platform

    versions = {"python": platform.python_version()}
    for name in _TOOLS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


@dataclass(frozen=True)
class Parent:
    """What an artifact was made from: a file by name and digest, or random weights by their seed."""

    role: str
    name: str
    sha256: str | None = None
    seed: int | None = None
    ema: bool = False

    @property
    def is_random(self) -> bool:
        """True for weights that were never trained."""
        return self.seed is not None


@dataclass(frozen=True)
class Passport:
    """The identity of an artifact.

    Attributes:
        stage: what made it, e.g. ``export``.
        parents: what it was made from.
        model: the model it holds, as `spec.ModelSpec` writes itself.
        facts: what is known about it: opset, batch, audit, parity.
    """

    stage: str
    parents: tuple[Parent, ...]
    model: dict[str, Any]
    facts: dict[str, Any]
    tools: dict[str, str] = field(default_factory=tool_versions)
    file: str = ""
    sha256: str = ""
    bytes: int = 0

    @property
    def weights(self) -> Parent | None:
        """The parent that the weights came from."""
        return next((parent for parent in self.parents if parent.role == "weights"), None)


def passport_path(path: Path) -> Path:
    """Where the passport of ``path`` lies: beside it, ``.json`` appended."""
    return path.with_name(path.name + ".json")


def write_with_passport(path: Path, content: bytes, passport: Passport) -> Passport:
    """Write an artifact and its passport; an existing pair is replaced, and each file is always whole.

    Both are on the disk before either is renamed, and writers take turns. A process killed between the two renames
    leaves a pair that `read_passport` refuses.

    Returns:
        The passport with the file's name, digest and size filled in.

    Raises:
        OutputError: the place cannot be written, or the disk is full.
    """
    import hashlib

    digest = hashlib.sha256(content).hexdigest()
    complete = replace(passport, file=path.name, sha256=digest, bytes=len(content))
    document = {"schema": SCHEMA, **asdict(complete)}
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    location = passport_path(path)
    with _temporary_beside(path) as temporary:
        temporary.write_bytes(content)
        _flush(temporary)
        with _temporary_beside(location) as temporary_passport:
            temporary_passport.write_text(text, encoding="utf-8")
            _flush(temporary_passport)
            with _one_writer(path.parent):
                os.replace(temporary, path)
                os.replace(temporary_passport, location)
    return complete


def read_passport(path: Path) -> Passport | None:
    """The passport of ``path``, or None where it has none.

    Raises:
        PassportError: it is unreadable, or of another file than the one that lies here.
    """
    location = passport_path(path)
    try:
        if os.path.exists(location) and not os.path.isfile(location):
            raise ValueError("it is no regular file")
        if os.path.exists(location) and os.stat(location).st_size > MAX_PASSPORT_BYTES:
            raise ValueError(f"it is larger than {MAX_PASSPORT_BYTES >> 20} MiB")
        document = json.loads(location.read_text(encoding="utf-8"), parse_constant=_no_number)
        if not isinstance(document, dict) or "schema" not in document:
            raise ValueError("it has no schema")
        if document.pop("schema") != SCHEMA:
            raise PassportError(f"{location} has another schema", expected=f"schema {SCHEMA}", hint="export again")
        passport = _passport(document)
        found = sha256(path)
    except FileNotFoundError as error:
        if error.filename == str(location):
            return None
        raise PassportError(f"{location} is the passport of {path.name}, which is not there") from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise PassportError(f"{location} is no passport ({error})", hint="export again, or remove it") from error
    if found != passport.sha256:
        raise PassportError(
            f"{location.name} is the passport of another {path.name} (SHA-256 {found[:12]}...)",
            expected=f"{passport.sha256[:12]}...",
            hint="the file was changed or replaced: export again, or remove the passport",
        )
    return passport


def _no_number(text: str) -> float:
    raise ValueError(f"it holds {text}, which is no number")


def _passport(document: dict[str, Any]) -> Passport:
    """The record behind a passport's keys; ValueError or TypeError where they are not its keys or types."""
    names = {entry.name for entry in fields(Passport)}
    if document.keys() != names:
        raise ValueError(f"unknown or missing keys: {', '.join(sorted(document.keys() ^ names))}")
    for name, kind in (("stage", str), ("parents", list), ("model", dict), ("facts", dict), ("sha256", str)):
        if not isinstance(document[name], kind):
            raise TypeError(f"{name} is {document[name]!r}")
    for parent in document["parents"]:
        if not isinstance(parent, dict):
            raise TypeError(f"a parent is {parent!r:.60}")
        for name in ("role", "name", "sha256"):
            value = parent.get(name)
            if not isinstance(value, str) and not (name == "sha256" and value is None):
                raise TypeError(f"{name} of a parent is {value!r:.60}")
        if not isinstance(parent.get("ema", False), bool):
            raise TypeError(f"ema of a parent is {parent['ema']!r:.60}")
        seed = parent.get("seed")
        if seed is not None and (type(seed) is not int or not 0 <= seed < 2**63):
            raise ValueError(f"seed is {seed!r}")
    return Passport(**{**document, "parents": tuple(Parent(**parent) for parent in document["parents"])})
