"""The wheel, in an environment that holds its core dependencies and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from sepvit_deploy.variants import VARIANTS
from tests.repo.layers import ROOT


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of the fresh environment, which has no pip of its own: this one's installs into it."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    constraints = ROOT / "constraints.txt"
    done = run(*pip(folder / "bin"), "install", "--quiet", "--no-compile", "-c", constraints, wheel, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "bin"


def pip(commands: Path) -> tuple[str | Path, ...]:
    return (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", commands / "python")


def test_the_wheel_holds_the_package_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {"sepvit_deploy", "sepvit_deploy-0.1.0.dist-info"}
    files = (path for path in (ROOT / "sepvit_deploy").rglob("*") if path.is_file() and path.suffix != ".pyc")
    sources = {path.relative_to(ROOT).as_posix() for path in files}
    assert sources == {name for name in names if name.startswith("sepvit_deploy/")}
    assert {"sepvit_deploy/server/page.html", "sepvit_deploy/triton/python/photograph.jpg"} <= sources
    assert "sepvit_deploy-0.1.0.dist-info/licenses/LICENSE" in names


def test_the_core_brings_no_framework(installed: Path, tmp_path: Path) -> None:
    done = run(*pip(installed), "list", "--format=json", cwd=tmp_path)
    names = {package["name"].lower() for package in json.loads(done.stdout)}
    assert {"numpy", "onnx", "pillow", "typer"} <= names
    assert not names & {"torch", "onnxruntime", "onnxscript", "onnxsim", "polygraphy", "tensorrt"}


def test_help_is_printed(installed: Path, tmp_path: Path) -> None:
    done = run(installed / "sepvit-deploy", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for command in ("export", "check", "bench", "predict", "variants", "doctor"):
        assert command in done.stdout


def test_variants_are_listed(installed: Path, tmp_path: Path) -> None:
    done = run(installed / "sepvit-deploy", "variants", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in VARIANTS:
        assert f'"{name}"' in json.dumps(json.loads(done.stdout))


def test_doctor_reports_without_any_extra(installed: Path, tmp_path: Path) -> None:
    done = run(installed / "sepvit-deploy", "doctor", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "torch" in json.dumps(json.loads(done.stdout))


def test_export_without_torch_names_the_extra_in_one_line(installed: Path, tmp_path: Path) -> None:
    done = run(installed / "sepvit-deploy", "export", "--variant", "t", "--output", "t.onnx", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert line.endswith(" is not installed; type: pip install 'sepvit-deploy[torch]'")
    assert list(tmp_path.iterdir()) == []
