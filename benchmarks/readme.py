"""Write into README.md what its commands print, and the table of the last benchmark.

    python benchmarks/readme.py RESULT.md        # e.g. benchmarks/results/amd-epyc-2/export.md

The first part runs the commands of "The main job" in an empty folder and keeps their stdout.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
SECTION = "## The main job"


def main() -> None:
    """Fill both marked parts."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    result = Path(sys.argv[1]).read_text(encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    section = text[text.index(SECTION) :]
    commands = re.findall(r"^\$ (sepvit-deploy .*)$", section[: section.index("<!-- output: begin -->")], re.MULTILINE)
    text = filled(text, "output", "```text\n" + printed(commands) + "```\n")
    README.write_text(filled(text, "benchmark", result), encoding="utf-8")


def printed(commands: list[str]) -> str:
    """The stdout of commands, run one after the other in an empty folder."""
    shown = []
    with tempfile.TemporaryDirectory() as folder:
        for command in commands:
            done = subprocess.run(command.split(), cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
            lines = [line.rstrip() for line in done.stdout.splitlines()]
            shown.append("\n".join([f"$ {command}", *lines]))
    return "\n\n".join(shown) + "\n"


def filled(text: str, name: str, content: str) -> str:
    """``text`` with ``content`` between the marks ``name: begin`` and ``name: end``."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    start = text.index(begin) + len(begin)
    return text[:start] + content + text[text.index(end, start) :]


if __name__ == "__main__":
    main()
