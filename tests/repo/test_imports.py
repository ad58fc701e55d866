"""The package imports with none of its heavy libraries: `--help` stays fast and every extra optional."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repo.layers import PACKAGE, ROOT, heavy, may_import_at_top, modules

IMPORT_WITHOUT = """
import importlib, json, sys

blocked, names = json.loads(sys.argv[1])


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Blocker())
found = {}
for name in names:
    try:
        importlib.import_module(name)
    except ImportError as error:
        found[name] = str(error)
print(json.dumps(found))
"""
LOADED_BY = "import importlib, json, sys; importlib.import_module(sys.argv[1]); print(json.dumps(sorted(sys.modules)))"


def run(script: str, argument: str, path: Path = ROOT) -> object:
    environment = {**os.environ, "PYTHONPATH": str(path)}
    command = [sys.executable, "-c", script, argument]
    child = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


def import_without_heavy(names: list[str], path: Path = ROOT) -> object:
    return run(IMPORT_WITHOUT, json.dumps([sorted(heavy()), names]), path)


@pytest.mark.parametrize("name", [PACKAGE, f"{PACKAGE}.cli", f"{PACKAGE}.pipeline"])
def test_importing_loads_nothing_heavy(name: str) -> None:
    loaded = run(LOADED_BY, name)
    assert isinstance(loaded, list)
    assert name in loaded
    assert heavy().isdisjoint(loaded)


def test_every_module_imports_in_an_environment_without_the_heavy_libraries() -> None:
    names = [f"{PACKAGE}.{module}".rstrip(".") for module in modules() if not may_import_at_top(module) & heavy()]
    assert f"{PACKAGE}.runners.base" in names
    assert import_without_heavy(names) == {}


def test_a_planted_import_is_found(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text("import numpy")
    assert import_without_heavy(["planted"], tmp_path) == {"planted": "No module named 'numpy'"}
