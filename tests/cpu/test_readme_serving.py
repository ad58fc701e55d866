"""README's part on serving, typed in an empty folder: from weights to answers of the embedded server and of Triton."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet
import pytest

from benchmarks.console import Console
from tests.cpu.tritonserver import folder as triton
from tests.repo.layers import ROOT
from tests.repo.readme import commands

TITLE = "## Serving"
WEIGHTS = "models/sepvit_lite_digits.safetensors"
FEWER = {"sepvit-deploy load": " --seconds 1"}


@pytest.fixture
def folder(exported: Callable[..., Path], tmp_path: Path) -> Path:
    """What the sections before have left: the digits model, and pictures."""
    path = exported("--variant", "lite", "--weights", str(ROOT / WEIGHTS))
    place = tmp_path / "reader"
    place.mkdir()
    for name, source in (("digits.onnx", path), ("digits.onnx.json", Path(f"{path}.json"))):
        shutil.copy(source, place / name)
    command = [sys.executable, str(ROOT / "benchmarks" / "digits.py"), "--test", "60", "--calibration", "10"]
    subprocess.run(command, cwd=place, check=True, capture_output=True)
    (place / "examples").symlink_to(ROOT / "examples")
    return place


def test_the_readmes_servers_answer(folder: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text[text.index(TITLE) : text.index("<!-- serving: begin -->")]
    environment = os.environ | {"PATH": f"{triton()}{os.pathsep}{os.environ['PATH']}"}
    printed: dict[str, list[str]] = {}
    with Console(folder, environment) as console:
        for command in commands(section):
            words = " ".join(command.split()[:2])
            code, out, said = console.type(command + FEWER.get(words, ""))
            assert code == 0, (command, out, said)
            printed.setdefault(words, []).append(out)
    by_curl = json.loads(printed["curl -s"][0])
    assert by_curl["classes"][0]["class"] == 2
    ours, tritons = printed["python examples/client.py"]
    classes, scores = answers(ours)
    assert [ranked[0] for ranked in classes] == ["2", "4"]
    assert answers(tritons)[0] == classes, "one client, two servers, one answer"
    assert answers(tritons)[1] == pytest.approx(scores, abs=0.2)  # percent, of two releases of ONNX Runtime
    assert all("0 refused" in out for out in printed["sepvit-deploy load"]), "of both servers"
    assert len(printed["sepvit-deploy load"]) == 2
    assert "0 errors, 0 warnings" in printed["sepvit-deploy triton-lint"][0]
    assert (folder / "kserve" / "inferenceservice.yaml").is_file()
    assert (folder / "ray" / "serve_config.yaml").is_file()
    assert pyarrow.parquet.read_table(folder / "digits.parquet").num_rows == 60


def answers(printed: str) -> tuple[list[list[str]], list[float]]:
    """What the client prints of each picture: its classes, best first, and all percentages."""
    rows = [[entry.split() for entry in line.partition(": ")[2].split(", ")] for line in printed.splitlines()]
    scores = [float(score.rstrip("%")) for row in rows for _, score in row]
    return [[label for label, _ in row] for row in rows], scores
