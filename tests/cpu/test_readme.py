"""The README's commands, typed in an empty folder, do what it says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from sepvit_deploy.plans import read_plan
from tests.cpu.rtx import SKIP
from tests.repo.layers import ROOT
from tests.repo.readme import commands

FEWER = {
    "sepvit-deploy export --variant t": ["--variant", "lite", "--output", "sepvit_t.onnx"],
    "python benchmarks/digits.py": ["--test", "60"],
    "sepvit-deploy bench --engine sepvit_t.onnx": ["--samples", "1", "--seconds", "0"],
    "sepvit-deploy bench": ["--samples", "8", "--seconds", "0"],  # fewer are not compared
    "sepvit-deploy calibrate": ["--samples", "16"],
}
"""Given to commands, by how they begin, that would make or measure more than a test needs; the others stay. Of an
option that is given twice the last counts, so the smallest variant stands in for SepViT-T."""


@SKIP
def test_the_readmes_commands_run(tmp_path: Path) -> None:
    # test_readme_serving.py has the rest
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Serving")[0]
    typed = [command for command in commands(text) if not command.startswith(("make", "source"))]
    main, precision, engines, latency = typed[:3], typed[3:9], typed[9:15], typed[15:]
    assert [command.split()[1] for command in main] == ["export", "check", "bench"]
    verbs = ["benchmarks/digits.py", "export", "calibrate", "quantize", "evaluate", "lint"]
    assert [command.split()[1] for command in precision] == verbs
    assert [command.split()[1] for command in engines] == [
        *("quantize", "build", "calibrate", "quantize", "build", "doctor"),
    ]
    assert sum("--builder rtx" in command for command in engines) == 2
    assert [command.split()[1] for command in latency] == ["bench", "compare", "plan-capacity", "report"]
    bin_folder = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{bin_folder}:{os.environ['PATH']}"}
    for command in typed:
        if command == precision[0]:
            assert sorted(path.name for path in tmp_path.iterdir()) == ["sepvit_t.onnx", "sepvit_t.onnx.json"]
            for name in ("benchmarks", "models"):
                (tmp_path / name).symlink_to(ROOT / name)
            shutil.copytree(ROOT / "calib", tmp_path / "calib")  # its folder of pictures is beside it
        fewer = next((options for start, options in FEWER.items() if command.startswith(start)), [])
        words = [*command.split(), *fewer]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        # without a GPU, no plan loads
        assert done.returncode == (1 if words[1] == "doctor" else 0), done.stdout + done.stderr
        assert done.stdout
    for name, types in (("fp16", {"HALF"}), ("int8", {"HALF", "INT8"})):
        facts = read_plan(tmp_path / f"sepvit_t_{name}.plan").facts
        assert facts is not None
        assert facts.network.matmuls.keys() == types
    assert b"torch:lite" in (tmp_path / "report.html").read_bytes()


def test_the_readmes_python_is_the_public_api() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    tree = compile(block, "README.md", "exec")
    assert {"audit", "check", "export", "load_graph"} <= set(tree.co_names)
    imports = "\n".join(line for line in block.splitlines() if line.startswith(("from", "import")))
    names: dict[str, object] = {}
    exec(imports, names)
    assert all(callable(names[name]) for name in ("audit", "check", "export", "load_graph"))
