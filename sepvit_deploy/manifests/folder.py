"""A folder of generated files: written whole, never over what another hand wrote."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from sepvit_deploy import artifact
from sepvit_deploy.errors import OutputError

MAX_BYTES = 1 << 20
"""Of a file that may be one of ours; ours are a few KiB."""


def write_folder(folder: Path, files: Mapping[str, str]) -> None:
    """Write files by their names into ``folder``, which is made if it is not there; what is there alike stays.

    Raises:
        OutputError: the folder holds anything else than these very files, or cannot be written.
    """
    try:
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise OutputError(f"{folder} is a file", expected="a folder to write", hint="give another with --output")
        there = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        other = [name for name in there if not _is(folder / name, files.get(name))]
        if other:
            raise OutputError(
                f"{folder} holds {', '.join(other[:3])}{', ...' if len(other) > 3 else ''}, not as this would write it",
                expected="an empty folder, or the very files that this command writes",
                hint="give another with --output",
            )
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror})", expected="a folder to write") from error
    for name in sorted(files.keys() - set(there)):
        with artifact.written(folder / name) as temporary:
            temporary.write_text(files[name], encoding="utf-8")


def _is(path: Path, text: str | None) -> bool:
    if text is None or not path.is_file() or path.stat().st_size > MAX_BYTES:
        return False
    return path.read_bytes() == text.encode()
