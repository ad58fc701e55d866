"""The command line as the tests call it: in a process of its own where that matters, in this one where it does not."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, parser

from sepvit_deploy.cli import run

PROGRAM = (sys.executable, "-P", "-c", "import sys; from sepvit_deploy.cli import main; sys.exit(main())")
PHOTO = Path(__file__).parents[2] / "examples" / "chelsea.jpg"
ESCAPE = "\x1b"
NOBODY = 65534

LARGER = ("s", "b")


def published(name: str) -> tuple[str, ...]:
    """Options of the export of a published variant that tests share.

    Those of `LARGER` are of one batch, which is half the work: they are the same modules more often and wider, and what
    a free batch needs shows in the others.
    """
    return ("--variant", name, "--batch", "1") if name in LARGER else ("--variant", name)


HEADER = '<ir_version: 9, opset_import: ["" : 20]>\n'
CLASSIFIER = HEADER + (
    "g (float[batch,3,224,224] images) => (float[batch,5] logits) "
    "{ mean = ReduceMean<keepdims=0>(images, axes)  scores = MatMul(mean, weight)  logits = Add(scores, bias) }"
)


@dataclass(frozen=True)
class Done:
    """A command that ended: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """Stdout as the one JSON object that it must be."""
        document = json.loads(self.out)
        assert isinstance(document, dict)
        return document


def call(*arguments: str | Path) -> Done:
    """Run a command in this process; what it does not catch fails the test."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(argument) for argument in arguments])
    return Done(code, out.getvalue(), err.getvalue())


def environment(**more: str) -> dict[str, str]:
    """The environment without what makes programs colour or widen their output."""
    unwanted = ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "PYTHONIOENCODING", "TTY_COMPATIBLE")
    return {key: value for key, value in os.environ.items() if key not in unwanted} | more


def spawn(*arguments: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None) -> Done:
    """Run a command in a process of its own, neither stream a terminal."""
    child = subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        capture_output=True,
        text=True,
        errors="replace",
        env=env or environment(),
        cwd=cwd,
        check=False,
        timeout=120,
    )
    return Done(child.returncode, child.stdout, child.stderr)


def complaint(done: Done, *words: str, code: int = 2) -> str:
    """The one line in which a command failed: ``words`` occur in it, and before it come only steps and warnings."""
    assert done.code == code, done
    *before, last = done.err.splitlines() or [""]
    assert last.startswith("error: "), done.err
    assert done.err.endswith("\n")
    assert ESCAPE not in done.err
    assert all(line.endswith(" ...") or line.startswith("warning: ") for line in before), done.err
    missing = [word for word in words if word not in last]
    assert not missing, (missing, last)
    return last


def graph_file(path: Path, text: str, **weights: np.ndarray) -> Path:
    """An ONNX file from text and named constants."""
    model = parser.parse_model(text if text.startswith("<") else HEADER + text)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    onnx.save(model, path)
    return path


def classifier(path: Path, text: str = CLASSIFIER) -> Path:
    """A foreign classifier of five classes: the third always wins."""
    weight = np.full((3, 5), 0.01, np.float32)
    bias = np.array([0, 1, 5, 2, 3], np.float32)
    return graph_file(path, text, axes=np.array([2, 3], np.int64), weight=weight, bias=bias)


def changed(source: Path, target: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """A copy of an exported file with a change in its graph and a passport that fits the copy."""
    model = onnx.load(source)
    change(model)
    content = model.SerializeToString()
    target.write_bytes(content)
    return certified(source, target)


def certified(source: Path, target: Path, **fields: object) -> Path:
    """Give ``target`` the passport of ``source``, with its own digest and other ``fields``."""
    passport = json.loads(Path(f"{source}.json").read_text(encoding="utf-8"))
    content = target.read_bytes()
    passport |= {"file": target.name, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)} | fields
    Path(f"{target}.json").write_text(json.dumps(passport), encoding="utf-8")
    return target


def shift(name: str, by: float) -> Callable[[onnx.ModelProto], None]:
    """Plant a fault: add ``by`` to every number of a constant."""

    def change(model: onnx.ModelProto) -> None:
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(by), name))

    return change


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Without root's right to read and write everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def left_over(folder: Path) -> list[str]:
    """Names of what lies in a folder, hidden files included."""
    return sorted(os.listdir(folder))
