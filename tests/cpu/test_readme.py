"""The README's commands, typed in an empty folder, do what it says."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

from sepvit_deploy.plans import read_plan
from tests.cpu.commands import Done, call, certified
from tests.cpu.rtx import SKIP
from tests.repo.layers import ROOT
from tests.repo.readme import commands

FEWER = {
    "sepvit-deploy export --variant t": ["--variant", "lite", "--output", "sepvit_t.onnx"],
    "sepvit-deploy export --variant lite --task segment": ["--batch", "1"],  # half the work
    "python benchmarks/digits.py --masks": ["--test", "8"],
    "python benchmarks/digits.py": ["--test", "60"],
    "sepvit-deploy bench --engine sepvit_t.onnx": ["--samples", "1", "--seconds", "0"],
    "sepvit-deploy bench": ["--samples", "8", "--seconds", "0"],  # fewer are not compared
    "sepvit-deploy calibrate": ["--samples", "8"],
    "sepvit-deploy evaluate digits": ["--samples", "20"],
}
"""Given to commands, by how they begin, that would make or measure more than a test needs; the others stay. Of an
option that is given twice the last counts, so the smallest variant stands in for SepViT-T."""


def exported_as(words: list[str], exported: Callable[..., Path]) -> Path:
    """What ``export`` writes with these words, made once a run, where they say."""
    options = dict(zip(words[::2], words[1::2], strict=True))
    target = Path(options.pop("--output"))
    if "--weights" in options:
        options["--weights"] = str(ROOT / options["--weights"])
    source = exported(*(word for option in options.items() for word in option))
    shutil.copy(source, target)
    return certified(source, target)


def typed(words: list[str], exported: Callable[..., Path]) -> Done:
    """Run a command in this process, which has imported what each would: test_wheel.py types the installed ones."""
    program, verb, *rest = words
    if program == "python":
        done = subprocess.run([sys.executable, verb, *rest], capture_output=True, text=True, check=False)
        return Done(done.returncode, done.stdout, done.stderr)
    assert program == "sepvit-deploy"
    if verb == "export":
        return Done(0, str(exported_as(rest, exported)), "")
    return call(verb, *rest)


@SKIP
def test_the_readmes_commands_run(
    exported: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # test_readme_serving.py has the rest
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Serving")[0]
    all_commands = [command for command in commands(text) if not command.startswith(("make", "source"))]
    main, precision, masks = all_commands[:3], all_commands[3:9], all_commands[9:17]
    engines, latency = all_commands[17:23], all_commands[23:]
    assert [command.split()[1] for command in main] == ["export", "check", "bench"]
    verbs = ["benchmarks/digits.py", "export", "calibrate", "quantize", "evaluate", "lint"]
    assert [command.split()[1] for command in precision] == verbs
    verbs = ["benchmarks/digits.py", "export", "calibrate", "quantize", "evaluate", "build", "predict", "variants"]
    assert [command.split()[1] for command in masks] == verbs
    assert [command.split()[1] for command in engines] == [
        *("quantize", "build", "calibrate", "quantize", "build", "doctor"),
    ]
    assert sum("--builder rtx" in command for command in engines) == 2
    assert [command.split()[1] for command in latency] == ["bench", "compare", "plan-capacity", "report"]
    # on a busy machine little settles, and `compare` judges none of that
    monkeypatch.setattr(import_module("sepvit_deploy.bench"), "SETTLED", 100.0)
    monkeypatch.chdir(tmp_path)
    for command in all_commands:
        if command == precision[0]:
            assert sorted(path.name for path in tmp_path.iterdir()) == ["sepvit_t.onnx", "sepvit_t.onnx.json"]
            for name in ("benchmarks", "models"):
                (tmp_path / name).symlink_to(ROOT / name)
            shutil.copytree(ROOT / "calib", tmp_path / "calib")  # its folder of pictures is beside it
        fewer = next((options for start, options in FEWER.items() if command.startswith(start)), [])
        words = [*shlex.split(command), *fewer]
        done = typed(words, exported)
        # without a GPU, no plan loads
        assert done.code == (1 if words[1] == "doctor" else 0), done
        assert done.out
    with Image.open(tmp_path / "00007.overlay.png") as overlay:
        assert overlay.width > 224  # the picture, and its legend
    for name, types in (
        ("sepvit_t_fp16", {"HALF"}),
        ("sepvit_t_int8", {"HALF", "INT8"}),
        ("scene_int8", {"HALF", "INT8"}),
    ):
        facts = read_plan(tmp_path / f"{name}.plan").facts
        assert facts is not None
        assert facts.network.matmuls.keys() == types
    assert b"torch:lite" in (tmp_path / "report.html").read_bytes()


def test_the_readmes_python_is_the_public_api() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    tree = compile(block, "README.md", "exec")
    assert {"audit", "check", "export", "load_graph"} <= set(tree.co_names)
    imports = "\n".join(line for line in block.splitlines() if line.startswith(("from", "import")))
    names: dict[str, object] = {}
    exec(imports, names)
    assert all(callable(names[name]) for name in ("audit", "check", "export", "load_graph"))
