"""TensorRT-RTX agrees with the lint: it refuses every graph with an error, and builds every other one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from sepvit_deploy.lint import RULES
from tests.cpu.rtx import SKIP
from tests.unit.lint_graphs import BATCHES, BROKEN, CLOSE, parsed

pytestmark = SKIP

ROOT = Path(__file__).parents[2]
GRAPHS = {
    **{f"{rule}, broken, {n}": case.text for rule in BROKEN for n, case in enumerate(BROKEN[rule])},
    **{f"{rule}, close, {n}": text for rule in CLOSE for n, text in enumerate(CLOSE[rule])},
}
REFUSED = {name for name in GRAPHS if ", broken" in name and RULES[name.split(",")[0]].severity == "error"}
BUILD_EACH = """
import json, os, sys
from pathlib import Path

from sepvit_deploy import builders, engine_worker
from sepvit_deploy.building import BuildRequest, Profile
from sepvit_deploy.errors import SepvitError

builders.load("rtx")
import polygraphy.backend.trt  # once, and for the builder that is loaded

for path, batches in json.load(sys.stdin):
    if (child := os.fork()) == 0:
        reason = ""
        request = BuildRequest("rtx", (Profile(*batches),) if batches else ())
        try:
            engine_worker.build(
                Path(path).read_bytes(), request, name=path, dry_run=False, inspect_on=None, send=lambda *a, **k: None
            )
        except SepvitError as error:
            reason = str(error)
        Path(path + ".reason").write_text(reason)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        Path(path + ".reason").write_text(f"ended with status {status}")
"""
"""Loads the builder once and builds each graph in a fork, so that one of which it dies is one that it refuses."""


def batches_of(model: onnx.ModelProto) -> tuple[int, int, int] | None:
    """What to build for; None where no input has the dimension B."""
    dims = [value.type.tensor_type.shape.dim for value in model.graph.input]
    return BATCHES if any(shape and shape[0].dim_param == "B" for shape in dims) else None


@pytest.fixture(scope="module")
def reasons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Why TensorRT-RTX refuses each graph; empty where it builds it."""
    folder = tmp_path_factory.mktemp("graphs")
    models = {str(folder / f"{number}.onnx"): parsed(text) for number, text in enumerate(GRAPHS.values())}
    for path, model in models.items():
        onnx.save(model, path)
    asked = json.dumps([(path, batches_of(model)) for path, model in models.items()])
    command = [sys.executable, "-c", BUILD_EACH]
    child = subprocess.run(command, input=asked, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    assert child.returncode == 0, child.stderr
    answers = [Path(path + ".reason").read_text(encoding="utf-8") for path in models]
    return dict(zip(GRAPHS, answers, strict=True))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_an_error_is_what_tensorrt_refuses(name: str, reasons: dict[str, str]) -> None:
    assert reasons[name]


@pytest.mark.parametrize("name", sorted(GRAPHS.keys() - REFUSED))
def test_what_is_no_error_builds(name: str, reasons: dict[str, str]) -> None:
    assert reasons[name] == ""


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("zero-point, broken, 0", "Non-zero zero point is not supported"),
        ("int32-bias, broken, 0", "has type Int32 but must have type"),
        ("scale-value, broken, 0", "Scale coefficients must all be positive"),
        ("scale-count, broken, 0", "number of scales is not equal"),
        ("int8-constant, broken, 1", "Quantized constant .* is only allowed before DQ"),
        ("mixed-types, broken, 0", "must have same input types"),
        ("attention-operator, broken, 0", "not supported by a dedicated kernel"),
        ("baked-batch, broken, 1", "reshape would change volume"),
    ],
)
def test_it_is_refused_for_the_reason_of_the_rule(name: str, reason: str, reasons: dict[str, str]) -> None:
    assert re.search(reason, reasons[name]), reasons[name]
