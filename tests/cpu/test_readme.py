"""The README's commands, typed in an empty folder, do what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.repo.layers import ROOT
from tests.repo.readme import commands


def test_the_readmes_commands_run(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    typed = [command for command in commands(text) if command.startswith("sepvit-deploy ")]
    assert [command.split()[1] for command in typed] == ["export", "check", "bench"]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in typed:
        done = subprocess.run(
            command.split(), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sepvit_t.onnx", "sepvit_t.onnx.json"]


def test_the_readmes_python_is_the_public_api() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    tree = compile(block, "README.md", "exec")
    assert {"audit", "check", "export", "load_graph"} <= set(tree.co_names)
    imports = "\n".join(line for line in block.splitlines() if line.startswith(("from", "import")))
    names: dict[str, object] = {}
    exec(imports, names)
    assert all(callable(names[name]) for name in ("audit", "check", "export", "load_graph"))
