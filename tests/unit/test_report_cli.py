"""The command line of the report: what it writes, what it says, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from sepvit_deploy import cli
from sepvit_deploy.latency import write_results
from sepvit_deploy.report import page
from tests.unit.report_material import climb_document, results


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fake = SimpleNamespace(javascript_bundle=lambda: "")
    monkeypatch.setattr(page, "require", lambda module, extra: fake)
    monkeypatch.chdir(tmp_path)
    write_results(results((1, 8)), tmp_path / "results.json")
    (tmp_path / "check.json").write_text(json.dumps(climb_document()))
    return tmp_path


def test_a_folder_becomes_a_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["report", str(folder)]) == 0
    assert "written: report.html, of 1 result, 1 ladder" in capsys.readouterr().out
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "INT8 is faster than FP16" in text, "what the samples say of the two stands in it"
    assert "Parity ladder, check.json" in text


def test_the_page_takes_no_place_of_what_it_shows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "results.json").read_bytes()
    assert cli.run(["report", "results.json", "--html", "results.json"]) == 2
    assert "would overwrite" in capsys.readouterr().err
    assert (folder / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "error: none cannot be read"),
        (["results.json", "--html", "none/report.html"], "the folder none does not exist"),
        ([], "Missing argument"),
    ],
)
def test_a_mistake_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli.run(["report", *arguments]) == 2
    said = capsys.readouterr().err.splitlines()
    assert message in said[-1]
    assert not (folder / "report.html").exists()
