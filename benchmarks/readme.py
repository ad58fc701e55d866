"""Write into README.md what its commands print, and the tables of the last benchmarks.

    python benchmarks/readme.py benchmarks/results/MACHINE [SECTION...]

Without a section, all of them; a section needs the files of those above it.

The commands run one after the other in an empty folder, beside this repository's benchmarks/, examples/, models/ and
calib/; ``tritonserver`` is the one that `make triton` fetches, as in the tests.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from console import Console

ROOT = Path(__file__).parents[1]

README = ROOT / "README.md"
SECTIONS = {
    "output": "## The main job",
    "precision": "## FP16 and INT8",
    "segmentation": "## Segmentation",
    "engines": "## TensorRT engines",
    "latency": "## Latency",
    "serving": "## Serving",
}
TABLES = {
    "benchmark": "export.md",
    "accuracy": "precision.md",
    "miou": "segmentation.md",
    "builds": "build.md",
    "repeatability": "repeatability.md",
    "peers": "peers.md",
    "bars": "serving.md",
    "batch": "batch.md",
}
SHORTENED = (
    "python benchmarks",
    "sepvit-deploy calibrate",
    "sepvit-deploy export --variant lite",
    "sepvit-deploy quantize sepvit_t",
)
"""Commands that run, and whose output is left out: it is long, and no result."""
LEFT_OUT = re.compile(r"^\| (\S+ \| dense|(small|base|lite) \| [A-Z])|^# ")
"""Rows of a table, and a title, that its file alone has."""
CUT_AT = re.compile("G MACs of the blocks|## A billion images|IoU of each class:")
"""Where README leaves a table's file."""
OVERLAY = "00007.overlay.png"
"""What `predict` draws in the section on segmentation, which shows it."""
CODES = {"doctor": 1}
"""Exit codes other than 0: a plan does not load on a machine without a GPU."""


def main() -> None:
    """Fill all marked parts."""
    if len(sys.argv) < 2 or not SECTIONS.keys() >= {*sys.argv[2:]}:
        sys.exit(__doc__)
    results, wanted = Path(sys.argv[1]), sys.argv[2:] or list(SECTIONS)
    text = README.read_text(encoding="utf-8")
    os.environ["PATH"] = f"{ROOT / '.triton'}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as folder:
        for name in ("benchmarks", "examples", "models"):
            Path(folder, name).symlink_to(ROOT / name)
        shutil.copytree(ROOT / "calib", Path(folder, "calib"))  # its folder of pictures is beside it
        for name, title in ((name, SECTIONS[name]) for name in wanted):
            section = text[text.index(title) :]
            section = section[: section.index(f"<!-- {name}: begin -->")]
            shown = printed(re.findall(r"^\$ (.*)$", section, re.MULTILINE), Path(folder))
            text = filled(text, name, "```text\n" + shown + "```\n")
        if "segmentation" in wanted:
            shutil.copy(Path(folder, OVERLAY), results / "overlay.png")
    for name, table in TABLES.items():
        kept = CUT_AT.split((results / table).read_text(encoding="utf-8"))[0]
        lines = kept.strip().splitlines(keepends=True)
        text = filled(text, name, "".join(line for line in lines if not LEFT_OUT.match(line)) + "\n")
    README.write_text(text, encoding="utf-8")


def printed(commands: list[str], folder: Path) -> str:
    """The stdout of commands, typed one after the other in a folder."""
    shown = []
    with Console(folder) as console:
        for command in commands:
            code, out, said = console.type(command)
            if code != CODES.get([*command.split(), ""][1], 0):
                sys.exit(f"{command} ended with {code}: {said}")
            if not command.startswith(SHORTENED):
                shown.append("\n".join([f"$ {command}", *(line.rstrip() for line in out.splitlines())]))
    return "\n\n".join(shown) + "\n"


def filled(text: str, name: str, content: str) -> str:
    """``text`` with ``content`` between the marks ``name: begin`` and ``name: end``."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    start = text.index(begin) + len(begin)
    return text[:start] + content + text[text.index(end, start) :]


if __name__ == "__main__":
    main()
