"""The command `plan-capacity`: what it prints, and how it fails."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sepvit_deploy.cli import capacity as _registers_the_command  # noqa: F401
from sepvit_deploy.cli import run
from sepvit_deploy.latency import Results, write_results
from tests.unit.test_capacity import quick, results  # noqa: F401

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def measured() -> Results:
    return results({"slow-fp16": {1: [30.0] * 100}, "int8-graph": {1: [5.0] * 100, 8: [12.0] * 100}})


@pytest.fixture
def file(measured: Results, tmp_path: Path) -> str:
    write_results(measured, tmp_path / "results.json")
    return str(tmp_path / "results.json")


def test_a_plan_is_printed(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan-capacity", file, "--rate", "300", "--p99-ms", "25"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == "300 requests/s of one image within a p99 of 25 ms, on a device:"
    assert lines[1].startswith("1 instance of int8-graph (int8, CUDA graph), batch limit 8, queue delay 0 ms")
    assert "95 % interval" in lines[2]
    assert lines[3] == "Triton: max_batch_size 8, max_queue_delay_microseconds 0"
    assert lines[4].startswith("as it is, it carries up to ")
    assert "with 2 instances, up to " in lines[4]
    assert lines[4].endswith("with fewer, none is left")
    assert "slow-fp16: p99 25 ms is below the fastest single run's p99, 30 ms at batch 1" in lines
    assert "note: each instance is a device of its own" in printed.out
    assert "warning" not in printed.err


def test_json_alone_is_on_stdout(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan-capacity", file, "--rate", "300", "--p99-ms", "25", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["plan"]["engine"] == "int8-graph"
    assert [choice["plan"] is None for choice in document["choices"]] == [True, False]
    assert document["rate_per_s"] == 300


@pytest.mark.parametrize(
    ("rate", "p99", "fewer"),
    [("120", "13", "with 1 instance p99 is"), ("300", "300", "with 1 instance, it is overloaded")],
)
def test_one_instance_fewer(
    rate: str, p99: str, fewer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_results(results({"a": {1: [5.0] * 100}}), tmp_path / "r.json")
    assert run(["plan-capacity", str(tmp_path / "r.json"), "--rate", rate, "--p99-ms", p99]) == 0
    assert fewer in capsys.readouterr().out


def test_doubts_come_even_where_no_plan_does(
    measured: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unsettled = replace(measured, points=tuple(replace(point, settled=False) for point in measured.points))
    write_results(unsettled, tmp_path / "r.json")
    assert run(["plan-capacity", str(tmp_path / "r.json"), "--rate", "300", "--p99-ms", "2"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "warning: slow-fp16 at batch 1, int8-graph at batch 1, int8-graph at batch 8: did not settle" in printed.err
    assert printed.err.splitlines()[-1].startswith(
        "error: 300 requests/s with a p99 of 2 ms is beyond any of 2 engines; int8-graph comes closest: p99 2 ms is "
        "below the fastest single run's p99, 5 ms at batch 1; expected "
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rate", "-3", "--p99-ms", "20"], "--rate -3; expected 0.001 to 10,000,000 requests/s"),
        (["--rate", "nan", "--p99-ms", "20"], "--rate nan; expected"),
        (["--rate", "3", "--p99-ms", "0"], "--p99-ms 0; expected more than 0"),
        (["--rate", "many", "--p99-ms", "20"], "Invalid value for '--rate'"),
        (["--rate", "3"], "Missing option '--p99-ms'"),
    ],
)
def test_a_bad_option_is_one_line(
    options: list[str], message: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["plan-capacity", file, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_no_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan-capacity", str(tmp_path / "none.json"), "--rate", "3", "--p99-ms", "20"]) == 2
    assert "is no file" in capsys.readouterr().err


def test_help_says_what_an_instance_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan-capacity", "--help"]) == 0
    assert "Each instance is a device of its own" in " ".join(capsys.readouterr().out.split())
