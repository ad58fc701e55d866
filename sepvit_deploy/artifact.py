"""Files that appear whole or not at all, and their passports.

The passport of ``sepvit_t.onnx`` is ``sepvit_t.onnx.json``: what the file is (digest, bytes), what it was made from
(parents and their digests), by which stage and tool versions, for which model, with which facts (audit, parity).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sepvit_deploy.errors import OutputError, PassportError

SCHEMA = 1
_TOOLS = ("sepvit-deploy", "torch", "onnx", "onnxscript", "onnxsim", "onnxruntime", "numpy")


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces it on success and vanishes on any failure.

    Raises:
        OutputError: the place cannot be written, or the disk is full.
    """
    try:
        temporary = _temporary_beside(path)
        try:
            yield temporary
            _flush(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _output_error(path, error) from error


def require_writable(path: Path) -> None:
    """Fail now, before work that takes a while, if ``path`` could not be written.

    Raises:
        OutputError: its folder is missing or not writable, or ``path`` is a folder.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder", expected="a file to write", hint=f"try --output {path / 'model.onnx'}")
    try:
        _temporary_beside(path).unlink()
    except OSError as error:
        raise _output_error(path, error) from error


def _temporary_beside(path: Path) -> Path:
    import tempfile

    umask = os.umask(0)
    os.umask(umask)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        os.fchmod(file.fileno(), 0o666 & ~umask)
    return Path(name)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _output_error(path: Path, error: OSError) -> OutputError:
    folder = path.parent
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"no space left to write {path}", hint="free some, or give another folder with --output")
    if not folder.is_dir():
        return OutputError(f"the folder {folder} does not exist", hint=f"type: mkdir -p {folder}")
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

    Returns:
        The passport with the file's name, digest and size filled in.

    Raises:
        OutputError: the place cannot be written, or the disk is full.
    """
    import hashlib

    fields = {
        **vars(passport),
        "file": path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
    }
    complete = Passport(**fields)
    document = {"schema": SCHEMA, **asdict(complete)}
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    with written(path) as temporary, written(passport_path(path)) as temporary_passport:
        temporary.write_bytes(content)
        temporary_passport.write_text(text, encoding="utf-8")
    return complete


def read_passport(path: Path) -> Passport | None:
    """The passport of ``path``, or None where it has none.

    Raises:
        PassportError: it is unreadable, or of another file than the one that lies here.
    """
    location = passport_path(path)
    if not location.exists():
        return None
    try:
        document = json.loads(location.read_text(encoding="utf-8"))
        if document.pop("schema") != SCHEMA:
            raise PassportError(f"{location} has another schema", expected=f"schema {SCHEMA}", hint="export again")
        document["parents"] = tuple(Parent(**parent) for parent in document["parents"])
        passport = Passport(**document)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise PassportError(f"{location} is no passport ({error})", hint="export again, or remove it") from error
    found = sha256(path)
    if found != passport.sha256:
        raise PassportError(
            f"{location.name} is the passport of another {path.name} (SHA-256 {found[:12]}...)",
            expected=f"{passport.sha256[:12]}...",
            hint="the file was changed or replaced: export again, or remove the passport",
        )
    return passport
