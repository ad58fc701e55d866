"""The tree of errors, their one line, and what optional imports and export's options refuse."""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepvit_deploy import errors, optional
from sepvit_deploy.errors import CheckFailed, InputError, MissingDependency, OptionError, SepvitError
from sepvit_deploy.export import OPSETS, require_options
from sepvit_deploy.optional import require

ALL = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind)}


def test_the_tree_at_the_top_of_the_module_is_the_tree() -> None:
    assert errors.__doc__
    drawn = {}
    above = ["", ""]
    for line in errors.__doc__.splitlines():
        if match := re.match(r"    ((?:[| ]   )*[|`]-- )?(\w+) {2,}(\d?)", line):
            depth = len(match[1] or "") // 4
            above[depth:] = [match[2]]
            drawn[match[2]] = above[depth - 1] if depth else "Exception"
    assert drawn == {name: kind.__base__.__name__ for name, kind in ALL.items()}


@pytest.mark.parametrize("name", ALL)
def test_exit_codes(name: str) -> None:
    expected = 130 if name == "Interrupted" else 1 if issubclass(ALL[name], CheckFailed) else 2
    assert ALL[name].exit_code == expected


@pytest.mark.parametrize("name", ALL)
def test_a_message_has_what_was_found_what_was_expected_and_what_to_do(name: str) -> None:
    error = ALL[name]("--batch 0", expected="1 or more", hint="type: sepvit-deploy --help")
    assert str(error) == "--batch 0; expected 1 or more; type: sepvit-deploy --help"
    assert (error.found, error.expected, error.hint) == ("--batch 0", "1 or more", "type: sepvit-deploy --help")


def test_a_message_may_have_one_part() -> None:
    assert str(InputError("x.onnx is empty")) == "x.onnx is empty"
    assert str(InputError("x.onnx is empty", hint="try y.onnx")) == "x.onnx is empty; try y.onnx"


TEXT = st.text(st.sampled_from("ab \n\r\t\v\f\x1c\x85\u2028\u2029"), min_size=1)


@given(found=TEXT, expected=TEXT, hint=TEXT)
def test_a_message_is_one_line(found: str, expected: str, hint: str) -> None:
    assert len(str(SepvitError(found, expected=expected, hint=hint)).splitlines()) <= 1


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a module ``planted`` of the given source."""

    def make(source: str, **others: str) -> None:
        folder = tmp_path / "planted"
        folder.mkdir()
        (folder / "__init__.py").write_text(source)
        for name, text in others.items():
            (folder / f"{name}.py").write_text(text)

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "planted", raising=False)
    return make


def refused(text: str) -> Any:
    return pytest.raises(MissingDependency, match=f"^{re.escape(text)}; type: pip install 'sepvit-deploy\\[cpu\\]'$")


def test_require_gives_the_module() -> None:
    assert require("os.path", extra="cpu") is __import__("os").path


@pytest.mark.parametrize("name", ["sepvit_absent", "sepvit_absent.inner.deeper"])
def test_a_missing_module(name: str) -> None:
    with refused("sepvit_absent is not installed"):  # the package, which is what one installs
        require(name, extra="cpu")


def test_a_missing_submodule_of_an_installed_package(package: Any) -> None:
    package("")
    with refused("planted.runtime is not installed"):
        require("planted.runtime", extra="cpu")


@pytest.mark.parametrize("absent", ["sepvit_absent", "planted._native"])
def test_a_missing_dependency_of_the_module(package: Any, absent: str) -> None:
    package(f"import {absent}")
    with refused(f"planted is installed but needs {absent}, which is not"):
        require("planted", extra="cpu")


@pytest.mark.parametrize(
    ("raised", "shown"),
    [
        (
            "ImportError('libcudart.so.13: cannot open\\nshared object file')",
            "libcudart.so.13: cannot open shared object file",
        ),
        ("OSError('libnvinfer.so.10: cannot open')", "libnvinfer.so.10: cannot open"),
        ("ModuleNotFoundError('install the wheel of your CUDA')", "install the wheel of your CUDA"),
    ],
)
def test_a_module_that_does_not_load(package: Any, raised: str, shown: str) -> None:
    package(f"raise {raised}")
    with refused(f"planted is installed but does not load ({shown})"):
        require("planted", extra="cpu")


def test_a_mistake_inside_a_module_is_no_missing_dependency(package: Any) -> None:
    package("1 / 0")
    with pytest.raises(ZeroDivisionError):
        require("planted", extra="cpu")


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("batch", [None, 1, 4096])
def test_export_takes_its_opsets_and_batches(opset: int, batch: int | None) -> None:
    require_options(opset, batch)


@pytest.mark.parametrize(
    ("opset", "batch", "text"),
    [
        (16, None, "--opset 16; expected one of 17, 18, 19, 20, 21"),
        (22, 1, "--opset 22; expected one of 17, 18, 19, 20, 21"),
        (20, 0, "--batch 0; expected dynamic, or a number from 1 to 4096"),
        (20, -1, "--batch -1; expected dynamic, or a number from 1 to 4096"),
        (20, 4097, "--batch 4097; expected dynamic, or a number from 1 to 4096"),
    ],
)
def test_export_refuses_other_opsets_and_batches(opset: int, batch: int | None, text: str) -> None:
    with pytest.raises(OptionError) as caught:
        require_options(opset, batch)
    assert str(caught.value) == text


def test_a_child_finds_the_package_that_its_parent_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(optional.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    given = optional.child_environment(MORE="1")
    assert (given["PYTHONPATH"], given["MORE"]) == (f"{root}{os.pathsep}/elsewhere", "1")
    monkeypatch.delenv("PYTHONPATH")
    assert optional.child_environment()["PYTHONPATH"] == str(root)
    monkeypatch.setattr(optional, "__file__", "/python/site-packages/sepvit_deploy/optional.py")
    assert "PYTHONPATH" not in optional.child_environment()  # there it would hide Python's own modules
