"""Fetching the server of the tests: where there can be none, it says why, and the tests have a reason to skip."""

from __future__ import annotations

import json
import subprocess
import sys
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


def test_without_a_network_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_triton, "require_platform", lambda: tmp_path)

    def refuse(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "looking\nERROR: No matching distribution found")

    monkeypatch.setattr(subprocess, "run", refuse)
    run(monkeypatch, tmp_path)
    reason = (tmp_path / UNAVAILABLE).read_text(encoding="utf-8")
    assert reason == "pip cannot fetch nvidia-pytriton==0.7.0: ERROR: No matching distribution found\n"
    assert not (tmp_path / MARK).exists()


def test_what_is_there_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_triton, "require_platform", lambda: tmp_path)
    monkeypatch.setattr(fetch_triton, "pip", lambda *arguments: pytest.fail("it fetches again"))
    (tmp_path / MARK).write_text(json.dumps(WHAT), encoding="utf-8")
    (tmp_path / UNAVAILABLE).write_text("no network")
    run(monkeypatch, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [MARK]
