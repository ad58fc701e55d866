"""What a report finds in folders: which files it takes, which it passes over, which it refuses."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from sepvit_deploy.errors import InputError
from sepvit_deploy.latency import write_results
from sepvit_deploy.report import collect, is_ladder, ladder, sentences
from tests.unit.report_material import ROOT, climb_document, results

SCALES = ROOT / "calib" / "digits.scales.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one of everything, and JSON that is nothing to a report."""
    found = tmp_path / "build"
    (found / "l4" / "later").mkdir(parents=True)
    write_results(results((1, 8)), found / "l4" / "results.json")
    (found / "check.json").write_text(json.dumps(climb_document()))
    shutil.copy(SCALES, found / "l4" / "later")
    (found / "passport.onnx.json").write_text('{"schema": 1, "stage": "export"}')
    (found / "list.json").write_text("[1, 2]")
    (found / "broken.json").write_text("{")
    return found


def test_a_folder_gives_what_a_report_shows(folder: Path) -> None:
    found = collect([folder])
    assert list(found.results) == ["l4/results.json"]
    assert list(found.ladders) == ["check.json"]
    assert list(found.scales) == ["l4/later/digits.scales.json"]
    assert len(found.results["l4/results.json"].points) == 8


def test_files_are_taken_by_their_names_and_once(folder: Path) -> None:
    path = folder / "l4" / "results.json"
    assert list(collect([path, folder, path]).results) == ["results.json"]


def test_equal_names_of_two_folders_are_told_apart(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    assert list(collect([folder, other]).results) == ["l4/results.json", str(other / "l4" / "results.json")]


def test_deep_and_hidden_folders_and_links_are_passed_over(folder: Path, tmp_path: Path) -> None:
    deep = folder / "1" / "2" / "3" / "4"
    deep.mkdir(parents=True)
    (folder / ".cache").mkdir()
    for place in (deep, deep.parent, folder / ".cache"):
        shutil.copy(folder / "check.json", place / f"{place.name}.json")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(folder / "check.json", tmp_path / "elsewhere" / "linked.json")
    os.symlink(tmp_path / "elsewhere", folder / "link")
    assert list(collect([folder]).ladders) == ["check.json", "1/2/3/3.json"]


def test_a_pipe_is_passed_over(folder: Path) -> None:
    os.mkfifo(folder / "pipe.json")
    assert collect([folder]).results


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_results_that_are_cut_off_are_an_error_that_names_them(folder: Path, share: float) -> None:
    path = folder / "l4" / "results.json"
    text = path.read_text()
    path.write_text(text[: int(len(text) * share)])
    with pytest.raises(InputError, match=r"l4/results\.json is no JSON, or is cut off"):
        collect([folder])


def test_results_of_another_schema_are_an_error(folder: Path) -> None:
    path = folder / "l4" / "results.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 99', 1))
    with pytest.raises(InputError, match="newer version"):
        collect([folder])


def test_results_are_known_wherever_their_kind_stands(folder: Path) -> None:
    path = folder / "l4" / "results.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({key: document[key] for key in sorted(document, key=lambda key: key == "kind")}))
    assert collect([folder]).results


def test_a_damaged_scale_table_is_an_error(folder: Path) -> None:
    (folder / "a.scales.json").write_text("{}")
    with pytest.raises(InputError, match=r"a\.scales\.json"):
        collect([folder])


def test_a_damaged_ladder_is_an_error(folder: Path) -> None:
    (folder / "check.json").write_text(json.dumps(climb_document() | {"steps": [{"rung": "onnx"}]}))
    with pytest.raises(InputError, match=r"check\.json contradicts itself"):
        collect([folder])


@pytest.mark.parametrize("name", ["passport.onnx.json", "broken.json", "list.json"])
def test_a_named_file_that_is_nothing_to_a_report_is_an_error(folder: Path, name: str) -> None:
    with pytest.raises(InputError, match="is nothing that a report shows"):
        collect([folder / name])


def test_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is nothing to report in .*; expected results of bench"):
        collect([tmp_path])
    with pytest.raises(InputError, match="cannot be read"):
        collect([tmp_path / "none.json"])


def test_too_many_are_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["sepvit_deploy.report.collect"]  # its function, of the same name, hides it in the package
    monkeypatch.setattr(module, "MOST_SHOWN", 1)
    shutil.copy(folder / "check.json", folder / "check2.json")
    with pytest.raises(InputError, match="more than 1 ladders"):
        collect([folder])
    monkeypatch.setattr(module, "MOST_FILES", 2)
    with pytest.raises(InputError, match="more than 2 JSON files"):
        collect([folder])


def test_a_ladder_is_read_by_what_each_rung_is_held_to() -> None:
    found = ladder(climb_document())
    assert [rung.name for rung in found.rungs] == ["rewritten", "onnx", "precision", "engine"]
    assert [rung.against for rung in found.rungs] == ["torch", "torch", "torch", "precision"]
    assert found.rungs[3].limit_db == 10
    assert "every form of the model agrees" in sentences.ladder(found)
    assert "ends lowest" in sentences.depth(found)


def test_equal_and_broken_tensors_are_told_apart() -> None:
    document: dict[str, Any] = climb_document()
    first, broken = document["steps"][0], document["steps"][2]
    for tensor in first["first"]["tensors"]:
        tensor["sqnr_db"] = None
    for tensor in broken["first"]["tensors"]:
        tensor |= {"sqnr_db": None, "relative": None, "finite": False}
    broken["passed"] = False
    found = ladder(document | {"verdict": "the model is wrong"})
    assert sentences.decibels(found.rungs[0].sqnr_db) == "no difference"
    assert sentences.decibels(found.rungs[2].sqnr_db) == "numbers that are not finite"
    assert "the verdict is: the model is wrong. precision" in sentences.ladder(found)


def test_what_is_no_ladder() -> None:
    assert not is_ladder([])
    assert not is_ladder({"reference": 1})
