"""What the tracked files may not say, and which documents there are."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.repo.layers import ROOT
from tests.repo.readme import commands

# Each pattern is written so that it does not match itself.
UNWANTED = {
    "a path of one machine": re.compile(r"(?<![\w.:/])/(?:home/\w|Users/\w|root\b|tmp/dev\b|work/)"),
    "the address of a package registry": re.compile(
        r"pypi[.](?:org|nvidia)|pythonhosted[.]org|download[.]pytorch[.]org|anaconda[.]org|npmjs[.]org|index[-]url"
    ),
    "unfinished work": re.compile(r"\b(?:TO[D]O|FIX[M]E|XX[X]|HA[C]K)\b"),
}
PROGRAMS = {"cd", "curl", "docker", "git", "kill", "make", "pip", "python", "sepvit-deploy", "source", "sudo"}
PROGRAMS |= {"tritonserver", "trtexec"}


def faults(text: str) -> list[str]:
    return [
        f"line {number}: {what}: {match.group()}"
        for number, line in enumerate(text.splitlines(), 1)
        for what, pattern in UNWANTED.items()
        if (match := pattern.search(line))
    ]


def tracked() -> list[str]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("which files are tracked is known in a git checkout only, and this is none")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_tracked_file_says_what_it_may_not() -> None:
    found = {}
    for name in tracked():
        data = (ROOT / name).read_bytes()
        if b"\0" not in data and (here := faults(data.decode("utf-8"))):
            found[name] = here
    assert found == {}


@pytest.mark.parametrize(
    "line",
    [
        "see " + "/".join(["", "home", "ada", "x.onnx"]),
        "see " + "/".join(["", "root", "x.onnx"]),
        "'" + "/".join(["", "work", "main"]) + "'",
        "pip install --index" + "-url somewhere",
        "https://" + "pypi" + ".org/simple",
        "# TO" + "DO: later",
        "# FIX" + "ME",
    ],
)
def test_a_planted_word_is_found(line: str) -> None:
    assert len(faults("fine\n" + line)) == 1


@pytest.mark.parametrize("line", ["https://example.org/home/page", "network/x", "a todo list", "/work", "$HOME/models"])
def test_what_is_allowed_is_not_found(line: str) -> None:
    assert faults(line) == []


@pytest.mark.parametrize("name", ["CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md"])
def test_a_document_is_there(name: str) -> None:
    assert (ROOT / name).stat().st_size > 0


def test_the_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_commands_are_read_from_console_blocks() -> None:
    text = "```console\n$ make venv\nout\n$ pip install \\\n    x\n```\n\n```python\n$ no\n```\n\n$ no\n"
    assert commands(text) == ["make venv", "pip install x"]


def test_the_readme_gives_commands_of_known_programs() -> None:
    found = commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert found
    assert {command.split()[0].rpartition("/")[2] for command in found} <= PROGRAMS


def test_what_the_readme_shows_is_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- (\w+): begin -->\n(.*?)<!-- (\w+): end -->", text, re.DOTALL)
    assert len(blocks) == text.count(": begin -->") == text.count(": end -->")
    assert [(begin, end) for begin, _, end in blocks if begin != end] == []
    assert [name for name, content, _ in blocks if not content.strip()] == []
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", text)
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []
