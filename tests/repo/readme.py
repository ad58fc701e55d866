"""The commands of a document: what its ```console blocks tell the reader to type."""

from __future__ import annotations

import re

BLOCK = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """Commands of ``text`` in order, without the prompt ``$ ``; lines that end in a backslash are joined."""
    found = []
    for block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                found.append(" ".join(line[2:].split()))
    return found
