"""Fetching the server of the tests: where there can be none, it says why, and the tests have a reason to skip."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests import fetch_triton
from tests.fetch_triton import MARK, UNAVAILABLE, WHAT


def run(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["fetch_triton.py", str(folder)])
    fetch_triton.main()


def test_another_platform_has_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    run(monkeypatch, tmp_path / "new")
    reason = (tmp_path / "new" / UNAVAILABLE).read_text(encoding="utf-8")
    assert reason == "the wheel nvidia-pytriton==0.7.0 is for Linux on x86_64, and this is Linux on aarch64\n"
    assert capsys.readouterr().out == f"no Triton server for the tests: {reason}"


def pip_gives(monkeypatch: pytest.MonkeyPatch, folder: Path, *packages: str, wheel: bytes = b"") -> None:
    """A platform that can have a server, and a pip that fetches these packages and no others."""
    monkeypatch.setattr(fetch_triton, "require_platform", lambda: folder)

    def pip(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        if command[-1] not in packages:
            return subprocess.CompletedProcess(command, 1, "", "looking\nERROR: No matching distribution found")
        Path(command[command.index("--dest") + 1], "a.whl").write_bytes(wheel)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)


def test_without_a_network_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_gives(monkeypatch, tmp_path)
    run(monkeypatch, tmp_path)
    reason = (tmp_path / UNAVAILABLE).read_text(encoding="utf-8")
    why = "pip cannot fetch nvidia-pytriton==0.7.0: ERROR: No matching distribution found"
    assert reason == f"the package index does not answer ({why})\n"
    assert not (tmp_path / MARK).exists()


def zipped(damaged: bool) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pytriton/tritonserver/bin/tritonserver", "program" * 99)
    data = bytearray(content.getvalue())
    if damaged:
        data[80] ^= 0xFF
    return bytes(data)


@pytest.mark.parametrize(
    ("packages", "wheel", "words"),
    [
        (("pip",), b"", "pip cannot fetch nvidia-pytriton==0.7.0: ERROR"),
        (("pip", fetch_triton.WHEEL), b"no archive", "nvidia-pytriton==0.7.0 is damaged (File is not a zip file)"),
        (("pip", fetch_triton.WHEEL), zipped(damaged=True), "nvidia-pytriton==0.7.0 is damaged ("),
        (("pip", fetch_triton.WHEEL), zipped(damaged=False), "No such file or directory"),  # without the backend's stub
    ],
)
def test_a_server_that_could_be_here_does_not_stay_away_in_silence(
    packages: tuple[str, ...], wheel: bytes, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip_gives(monkeypatch, tmp_path, *packages, wheel=wheel)
    (tmp_path / UNAVAILABLE).write_text("no network")
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, tmp_path)
    assert str(caught.value).startswith("a Triton server for the tests could be here, and was not fetched: ")
    assert words in str(caught.value)
    assert not (tmp_path / UNAVAILABLE).exists()
    assert not (tmp_path / MARK).exists()


def test_what_is_there_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_triton, "require_platform", lambda: tmp_path)
    monkeypatch.setattr(fetch_triton, "pip", lambda *arguments: pytest.fail("it fetches again"))
    (tmp_path / MARK).write_text(json.dumps(WHAT), encoding="utf-8")
    (tmp_path / UNAVAILABLE).write_text("no network")
    run(monkeypatch, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backends", MARK, "tritonserver"]
    assert sorted(path.name for path in (tmp_path / "backends").iterdir()) == ["onnxruntime", "python", "tensorrt"]
    assert "--http-address=127.0.0.1" in (tmp_path / "tritonserver").read_text(encoding="utf-8")
