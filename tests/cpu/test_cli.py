"""The command line as a stranger meets it: exit codes, streams, one-line errors, and what each command is for."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import sepvit_deploy
from sepvit_deploy import artifact
from sepvit_deploy.artifact import read_passport, sha256
from sepvit_deploy.graph import load_graph
from sepvit_deploy.pipeline import exporting
from tests.cpu.commands import (
    CLASSIFIER,
    ESCAPE,
    PHOTO,
    PROGRAM,
    call,
    changed,
    classifier,
    complaint,
    environment,
    graph_file,
    left_over,
    shift,
    spawn,
    unprivileged,
)
from tests.repo.layers import ROOT

COMMANDS = ("variants", "export", "audit", "check", "predict", "bench", "doctor")
DIGITS = ROOT / "models" / "sepvit_lite_digits.safetensors"
PLANTED = "stages.1.blocks.0.mlp.fc1.bias"


@pytest.fixture(scope="module")
def lite(exported: Callable[..., Path]) -> Path:
    """An exported SepViT-Lite with random weights, and its passport."""
    return exported("--variant", "lite")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small classifier that this package did not make."""
    return classifier(tmp_path_factory.mktemp("foreign") / "foreign.onnx")


@pytest.fixture
def fast_export(lite: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, ...]]:
    """Export without the exporter: arguments of a command that gets ``lite``'s graph, changed or not, in its place."""

    def prepare(output: Path, change: Callable[[onnx.ModelProto], None] = lambda model: None) -> tuple[str, ...]:
        graph = load_graph(lite)
        change(graph)
        monkeypatch.setattr(exporting, "onnx_from_torch", lambda *_, **__: graph)
        return ("export", "--variant", "lite", "--no-simplify", "--output", str(output))

    return prepare


# Usage


def test_help_says_every_command() -> None:
    done = spawn("--help")
    assert done.code == 0
    assert all(command in done.out for command in COMMANDS)
    assert ESCAPE not in done.out + done.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    done = call(command, "--help")
    assert (done.code, done.err) == (0, "")
    assert "--json" in done.out


def test_nothing_to_do_shows_the_help() -> None:
    done = call()
    assert all(command in done.out + done.err for command in COMMANDS)
    assert "error: ;" not in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["exprot"], ["exprot", "--help"]),
        (["--verbose"], ["--verbose"]),
        (["export"], ["--variant"]),
        (["export", "--variant"], ["--variant"]),
        (["export", "--variant", "xl"], ["'xl'", "lite, t, s, b", "sepvit-deploy variants"]),
        (["export", "--variant", ""], ["lite, t, s, b"]),
        (["export", "--variant", "lite", "--task", "detect"], ["--task", "detect", "classify", "dense", "segment"]),
        (["export", "--variant", "lite", "--colour"], ["--colour"]),
        (["export", "--variant", "lite", "--opset", "16"], ["--opset 16", "17, 18, 19, 20, 21"]),
        (["export", "--variant", "lite", "--opset", "twenty"], ["--opset", "integer"]),
        (["export", "--variant", "lite", "--image-size", "256"], ["256x256", "224x224", "dense"]),
        (["export", "--variant", "lite", "--task", "dense", "--image-size", "0x5"], ["0x5", "512x768"]),
        (["export", "--variant", "lite", "--task", "dense", "--image-size", "-1"], ["-1"]),
        (["export", "--variant", "lite", "--task", "dense", "--image-size", "1e3"], ["1e3"]),
        (["export", "--variant", "lite", "--task", "dense", "--image-size", "5x"], ["5x"]),
        (["export", "--variant", "lite", "--task", "dense", "--image-size", "4097"], ["4097x4097", "4096"]),
        (["export", "--variant", "lite", "--task", "dense", "--image-size", "dynamic:5x"], ["5x"]),
        (["export", "--variant", "lite", "--num-classes", "0"], ["--num-classes 0"]),
        (["export", "--variant", "lite", "--num-classes", "1000001"], ["1000001"]),
        (["export", "--variant", "lite", "--ema"], ["--ema", "--weights"]),
        (["predict"], ["FILE"]),
        (["check"], ["FILE"]),
        (["bench"], ["--engine"]),
        (["variants", "extra"], ["extra"]),
        (["doctor", "extra"], ["extra"]),
    ],
)
def test_a_mistake_in_usage_is_one_line(arguments: list[str], words: list[str]) -> None:
    done = call(*arguments)
    complaint(done, *words)
    assert done.out == ""


@pytest.mark.parametrize(
    "batch", ["0", "-1", "1.5", "abc", "", "1,,8", ",", "1000000000", "1;8", "\u0661", "1" * 5000, "000000001000000"]
)
@pytest.mark.parametrize("command", ["export", "bench"])
def test_a_bad_batch_is_one_line(command: str, batch: str, foreign: Path) -> None:
    options = ("--variant", "lite") if command == "export" else ("--engine", foreign)
    line = complaint(call(command, *options, "--batch", batch), "--batch")
    if 0 < len(batch) < 10:
        assert batch in line


@pytest.mark.parametrize("option", ["--threads=0", "--threads=-1", "--threads=100000", "--seconds=-1", "--seconds=nan"])
def test_a_bad_number_for_bench_is_one_line(option: str, foreign: Path) -> None:
    name, value = option.split("=")
    complaint(call("bench", "--engine", foreign, name, value), name)


def test_a_mistake_is_no_traceback_in_a_process_of_its_own() -> None:
    done = spawn("export", "--variant", "xl", "--json")
    complaint(done, "'xl'")
    assert done.out == ""


# Streams


def test_variants_as_json() -> None:
    rows = call("variants", "--json").document["variants"]
    assert [row["name"] for row in rows] == ["lite", "t", "s", "b"]


def test_no_escapes_where_there_is_no_terminal(lite: Path) -> None:
    for arguments in (["variants"], ["audit", lite], ["predict", lite, PHOTO]):
        done = call(*arguments)
        assert done.code == 0
        assert ESCAPE not in done.out + done.err


def test_forced_colour_does_not_force_a_spinner(foreign: Path) -> None:
    env = environment(FORCE_COLOR="1")
    done = spawn("check", foreign, "--against", foreign, "--json", env=env)
    assert done.document["passed"]
    assert ESCAPE not in done.err


def in_terminal(*arguments: str | Path, json_to_pipe: bool = False) -> tuple[int, str, str]:
    """Exit code, what the terminal got, and what stdout got where that is a pipe."""
    master, slave = pty.openpty()
    out = subprocess.PIPE if json_to_pipe else slave
    env = environment(TERM="xterm-256color", COLUMNS="100")
    child = subprocess.Popen([*PROGRAM, *map(str, arguments)], stdin=slave, stdout=out, stderr=slave, env=env)
    os.close(slave)
    shown = bytearray()
    with suppress(OSError):  # the end of a terminal is an error on Linux
        while chunk := os.read(master, 65536):
            shown += chunk
    piped = child.stdout.read() if child.stdout else b""
    code = child.wait(60)
    if child.stdout:
        child.stdout.close()
    os.close(master)
    return code, shown.decode(), piped.decode()


def test_tables_in_a_terminal(foreign: Path) -> None:
    code, shown, _ = in_terminal("check", foreign, "--against", foreign)
    assert code == 0
    assert "passed on 6 images" in re.sub(r"\x1b\[[0-9;?]*\w", "", shown)


def test_json_beside_a_terminal(foreign: Path) -> None:
    code, _, piped = in_terminal("check", foreign, "--against", foreign, "--json", json_to_pipe=True)
    assert code == 0
    assert json.loads(piped)["passed"]


@pytest.mark.parametrize("arguments", [["variants"], ["variants", "--json"], ["--help"]])
def test_a_reader_that_leaves_is_no_traceback(arguments: list[str]) -> None:
    child = subprocess.Popen(
        [*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    child.stdout.close()
    errors = child.stderr.read()
    child.stderr.close()
    assert child.wait(60) in (0, 1)
    assert errors == ""


@pytest.mark.parametrize("arguments", ["variants", "variants --json", "--help"])
def test_a_full_stdout_is_one_line(arguments: str) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full:
        child = subprocess.run(
            [*PROGRAM, *arguments.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            check=False,
        )
    assert child.returncode != 0
    assert "Traceback" not in child.stderr
    assert child.stderr.startswith("error: ")


@pytest.mark.parametrize("closed", [1, 2])
def test_a_closed_stream_is_no_traceback(closed: int) -> None:
    shell = 'closed=$1; shift; if [ "$closed" = 1 ]; then exec "$@" >&-; else exec "$@" 2>&-; fi'
    child = subprocess.run(
        ["sh", "-c", shell, "sh", str(closed), *PROGRAM, "audit", "nowhere.onnx", "--json"],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert child.returncode == 2
    assert child.stdout == ""  # an error has no place among results, even without stderr
    assert "Traceback" not in child.stderr


def test_variants_without_stdout_is_no_traceback() -> None:
    child = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *PROGRAM, "variants"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        check=False,
    )
    assert "Traceback" not in child.stderr


# Missing extras

BLOCKER = """
import os, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in os.environ["BLOCKED"].split():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, str]]:
    """An environment in which some packages are not installed, for child processes too."""
    folder = tmp_path_factory.mktemp("blocker")
    (folder / "sitecustomize.py").write_text(BLOCKER, encoding="utf-8")
    return lambda *names: environment(BLOCKED=" ".join(names), PYTHONPATH=str(folder))


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        ("export --variant lite", "torch", "torch"),
        ("export --variant lite", "onnxruntime", "cpu"),
        ("export --variant lite", "onnxsim", "torch"),
        ("export --variant lite", "onnxscript", "torch"),
        ("export --variant lite --weights weights.safetensors", "safetensors", "torch"),
        ("check LITE", "torch", "torch"),
        ("check LITE --against LITE", "onnxruntime", "cpu"),
        ("predict LITE PHOTO", "onnxruntime", "cpu"),
        ("bench --engine LITE", "onnxruntime", "cpu"),
    ],
)
def test_a_missing_extra_is_one_line(
    command: str, module: str, extra: str, lite: Path, without: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    arguments = command.replace("LITE", str(lite)).replace("PHOTO", str(PHOTO)).split()
    done = spawn(*arguments, "--json", env=without(module), cwd=tmp_path)
    complaint(done, f"{module} is not installed", f"pip install 'sepvit-deploy[{extra}]'")
    assert done.out == ""
    assert left_over(tmp_path) == ["weights.safetensors"]


@pytest.mark.parametrize(
    "command",
    [
        *("variants", "audit LITE", "check LITE --against LITE", "predict LITE PHOTO"),
        "bench --engine FOREIGN --seconds 0 --samples 5",
    ],
)
def test_what_needs_no_torch_works_without(
    command: str, lite: Path, foreign: Path, without: Callable[..., dict[str, str]]
) -> None:
    named = {"LITE": lite, "PHOTO": PHOTO, "FOREIGN": foreign}
    arguments = [named.get(word, word) for word in command.split()]
    done = spawn(*arguments, "--json", env=without("torch", "onnxscript", "onnxsim", "safetensors"))
    assert done.code == 0, done.err
    assert done.document


@pytest.mark.parametrize("command", ["variants", "audit LITE"])
def test_what_only_reads_works_without_any_extra(
    command: str, lite: Path, without: Callable[..., dict[str, str]]
) -> None:
    env = without("torch", "onnxscript", "onnxsim", "safetensors", "onnxruntime", "tensorrt", "polygraphy")
    assert spawn(*command.replace("LITE", str(lite)).split(), "--json", env=env).code == 0


def test_the_doctor_says_what_is_missing(without: Callable[..., dict[str, str]]) -> None:
    done = spawn("doctor", "--json", env=without("torch", "tensorrt", "polygraphy"))
    assert done.code == 0
    (export,) = (ability for ability in done.document["abilities"] if "export" in ability["name"])
    assert not export["ready"]
    assert "pip install 'sepvit-deploy[torch]'" in export["hint"]
    assert "torch" in export["broken"]


# export


WITHOUT_EXPORTER = """
import sys
from pathlib import Path

from sepvit_deploy.cli import main
from sepvit_deploy.graph import load_graph
from sepvit_deploy.pipeline import exporting

graph = load_graph(Path(sys.argv.pop()))
exporting.onnx_from_torch = lambda *_, **__: graph
sys.exit(main())
"""


def test_two_exports_to_one_file_and_the_weights_of_a_checkpoint(exported: Callable[..., Path], tmp_path: Path) -> None:
    """Both are whole but for the exporter, whose graph they are given."""
    import torch

    from sepvit_deploy.model.build import build_model
    from sepvit_deploy.model.checkpoint import load_checkpoint, published_state_dict

    def saved(name: str, model: torch.nn.Module) -> Path:
        state = published_state_dict(model)
        torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, tmp_path / name)
        return tmp_path / name

    weights = saved("weights.pth", load_checkpoint(DIGITS, "lite"))
    others = saved("others.pth", build_model("lite", num_classes=10, seed=6))
    graph = exported("--variant", "lite", "--weights", str(DIGITS))
    output = tmp_path / "out" / "model.onnx"
    output.parent.mkdir()
    options = ("--variant", "lite", "--weights", str(weights), "--no-simplify", "--output", str(output), "--json")
    command = [sys.executable, "-P", "-c", WITHOUT_EXPORTER, "export", *options, str(graph)]
    children = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
        for _ in range(2)
    ]
    ended = [(*child.communicate(timeout=300), child.returncode) for child in children]

    assert [code for _, _, code in ended] == [0, 0], ended
    assert left_over(output.parent) == ["model.onnx", "model.onnx.json"]
    for out, errors, _ in ended:
        document = json.loads(out)
        assert document.keys() == {"path", "passport"}
        assert document["path"] == str(output)
        assert document["passport"]["sha256"] == sha256(output)
        assert "warning" not in errors
    passport = read_passport(output)
    assert passport is not None
    assert passport.model["num_classes"] == 10
    assert passport.weights == artifact.Parent("weights", "weights.pth", sha256=sha256(weights))

    assert call("check", output, "--weights", weights).code == 0
    complaint(call("check", output), "weights.pth", "--weights weights.pth")
    failed = call("check", output, "--weights", others, "--json")
    complaint(failed, "does not compute", code=1)
    assert not failed.document["passed"]


def test_an_export_replaces_an_existing_file(fast_export: Callable[..., tuple[str, ...]], tmp_path: Path) -> None:
    output = tmp_path / "[x] model.onnx"
    output.write_bytes(b"old")
    with output.open("rb") as old:
        done = call(*fast_export(output))
        assert old.read() == b"old"  # whoever reads the old file reads on undisturbed
    assert done.code == 0, done.err
    assert done.err.splitlines()[-1].startswith("warning: no --weights: random weights")
    assert done.out.startswith(f"{output}: ")
    assert left_over(tmp_path) == [output.name, f"{output.name}.json"]
    assert read_passport(output) is not None
    assert output.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def plant_where(model: onnx.ModelProto) -> None:
    node = onnx.helper.make_node("Where", ["planted", "before", "before"], ["logits"], name="planted/Where")
    (last,) = (node for node in model.graph.node if "logits" in node.output)
    last.output[:] = ["before"]
    model.graph.node.append(node)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((), np.bool_), "planted"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shift(PLANTED, 1.0), ["model.onnx", "stage1.block0.mlp"]),
        (shift("head.bias", float("nan")), ["model.onnx", "logits", "not finite"]),
        (plant_where, ["model.onnx", "planted/Where", "not deployable"]),
    ],
)
def test_a_failed_export_leaves_the_old_file_alone(
    change: Callable[[onnx.ModelProto], None],
    words: list[str],
    fast_export: Callable[..., tuple[str, ...]],
    tmp_path: Path,
) -> None:
    output = tmp_path / "model.onnx"
    for old in (output, tmp_path / "model.onnx.json"):
        old.write_bytes(b"precious")
    done = call(*fast_export(output, change), "--json")
    complaint(done, *words, code=1)
    assert done.out == ""
    assert left_over(tmp_path) == ["model.onnx", "model.onnx.json"]
    assert output.read_bytes() == (tmp_path / "model.onnx.json").read_bytes() == b"precious"


def test_an_output_that_cannot_be_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "taken.onnx.json").mkdir()
    for name, words in (
        ("missing/model.onnx", ["does not exist", "mkdir -p"]),
        ("mis sing/model.onnx", [f"mkdir -p '{tmp_path / 'mis sing'}'"]),
        ("file/model.onnx", ["file"]),
        (".", ["is a folder"]),
        ("pipe", ["no regular file"]),
        ("taken.onnx", ["taken.onnx.json", "folder"]),
        ("a" * 300, ["too long"]),
        ("a" * 248 + ".onnx", ["too long"]),  # the file would fit, its passport would not
    ):
        done = call("export", "--variant", "lite", "--output", tmp_path / name)
        assert "..." not in done.err  # no work was begun
        complaint(done, *words)
    assert left_over(tmp_path) == ["file", "pipe", "taken.onnx.json"]


def test_the_checkpoint_is_not_overwritten(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"precious")
    done = call("export", "--variant", "lite", "--weights", weights, "--output", weights)
    complaint(done, "--output", "weights.pth")
    assert "..." not in done.err
    assert weights.read_bytes() == b"precious"


def test_a_folder_that_may_not_be_written_is_refused_at_once() -> None:
    call("export", "--variant", "xl")  # what the command imports cannot be read without privileges everywhere
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o555)
        with unprivileged():
            done = call("export", "--variant", "lite", "--output", folder / "model.onnx")
        complaint(done, str(folder / "model.onnx"), "Permission denied", "--output")
        assert left_over(folder) == []
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_files_that_may_not_be_read_are_one_line(foreign: Path, lite: Path) -> None:
    call("check", foreign, "--against", foreign)
    call("predict", lite, PHOTO)
    call("export", "--variant", "lite", "--weights", "missing.pth")
    folder = Path(tempfile.mkdtemp())
    try:
        locked = folder / "locked"
        shutil.copytree(PHOTO.parent, locked)
        copy = shutil.copy(foreign, folder / "open.onnx")
        for name in ("model.onnx", "weights.pth"):
            shutil.copy(foreign, locked / name)
        locked.chmod(0)
        folder.chmod(0o777)
        with unprivileged():
            for arguments in (
                ["audit", locked / "model.onnx"],
                ["check", locked / "model.onnx"],
                ["check", copy, "--against", locked / "model.onnx"],
                ["predict", locked / "model.onnx", "x.jpg"],
                ["predict", copy, locked / PHOTO.name],
                ["predict", copy, PHOTO, "--labels", locked / "labels.txt"],
                ["bench", "--engine", locked / "model.onnx"],
                ["export", "--variant", "lite", "--output", folder / "x", "--weights", locked / "weights.pth"],
            ):
                complaint(call(*arguments), str(locked))
    finally:
        locked.chmod(0o755)
        shutil.rmtree(folder)


@contextmanager
def small_disk(folder: Path) -> Iterator[str]:
    """A folder on a disk of 1 MB, or a limit of 1 MB for any file; what the system then says."""
    mounted = os.geteuid() == 0 and shutil.which("mount") is not None
    if mounted:
        command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    if mounted:
        try:
            yield "no space left"
        finally:
            subprocess.run(["umount", str(folder)], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        yield "File too large"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_old_file_alone(fast_export: Callable[..., tuple[str, ...]], tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    with small_disk(folder) as reason:
        output = folder / "model.onnx"
        output.write_bytes(b"precious")
        done = call(*fast_export(output))
        complaint(done, reason, "model.onnx", "--output")
        assert left_over(folder) == ["model.onnx"]
        assert output.read_bytes() == b"precious"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_an_export(number: signal.Signals, tmp_path: Path) -> None:
    child = subprocess.Popen(
        [*PROGRAM, "export", "--variant", "lite", "--output", str(tmp_path / "model.onnx")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        for line in child.stderr:
            if line.startswith("rewriting"):
                child.send_signal(number)
                break
        out, rest = child.communicate(timeout=60)
    finally:
        child.kill()
    assert (child.returncode, out) == (130, "")
    assert rest.strip().splitlines() == ["error: interrupted; nothing was left half-written"]
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_signal_while_writing_leaves_no_half_file(
    moment: str, fast_export: Callable[..., tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        assert any(name.endswith(".tmp") for name in os.listdir(tmp_path))  # there was something to leave behind
        signal.raise_signal(signal.SIGINT)

    arguments = fast_export(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"precious")
    monkeypatch.setattr(os, moment, interrupted)
    done = call(*arguments)
    assert done.code == 130
    assert done.err.rstrip().endswith("error: interrupted; nothing was left half-written")
    assert left_over(tmp_path) == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"precious"


# audit


def test_audit_of_an_exported_file(lite: Path) -> None:
    done = call("audit", lite)
    assert (done.code, done.err) == (0, "")
    assert "deployable: no rule is broken" in done.out
    document = call("audit", lite, "--json").document
    assert document["deployable"]
    assert document["findings"] == []
    assert document["inputs"] == {"images": ["batch", 3, 224, 224]}
    assert document["file"] == str(lite)


def test_audit_of_a_foreign_graph(tmp_path: Path) -> None:
    text = (
        "g (float[batch,3,224,224] images) => (float[batch,3,224,224] logits) "
        "{ [roll] rolled = Gather<axis=3>(images, order)  [mask] logits = Where(keep, rolled, images) }"
    )
    order = np.roll(np.arange(224), 1)
    file = graph_file(tmp_path / "foreign.onnx", text, order=order, keep=np.ones((1, 1, 1, 224), np.bool_))
    done = call("audit", file)
    assert (done.code, done.err) == (1, "")
    assert "not deployable: 2 findings" in done.out
    done = call("audit", file, "--json")
    assert done.code == 1
    assert not done.document["deployable"]
    assert [(f["rule"], f["node"]) for f in done.document["findings"]] == [
        ("gather", "roll"),
        ("data-dependent", "mask"),
    ]


# check


def test_check_passes_on_what_export_wrote(lite: Path) -> None:
    done = call("check", lite, "--json")
    assert done.code == 0
    assert done.document["passed"]
    assert done.document["images"] == 6
    assert len(done.document["tensors"]) > 40
    assert done.document["top1_agreement"] == 1


def test_check_on_pictures(lite: Path) -> None:
    done = call("check", lite, "--images", PHOTO.parent)
    assert done.code == 0, done.err
    assert "passed on 1 images" in done.out


def test_check_against_another_file(lite: Path, foreign: Path, tmp_path: Path) -> None:
    document = call("check", lite, "--against", lite, "--json").document
    assert document["passed"]
    assert all(tensor["max_difference"] == 0 for tensor in document["tensors"])
    done = call("check", lite, "--against", foreign)
    complaint(done, "logits", code=1)
    other = graph_file(
        tmp_path / "other.onnx", "g (float[batch,3,32,32] x) => (float[batch,3,32,32] y) { y = Identity(x) }"
    )
    complaint(call("check", lite, "--against", other), "other.onnx", "32 x 32")


@pytest.mark.parametrize("name", ["logits", "shape"])
def test_a_comparison_that_cannot_pass_is_json_too(name: str, foreign: Path, tmp_path: Path) -> None:
    text = CLASSIFIER.replace("logits", "probabilities")
    if name == "shape":
        text = (
            "g (float[batch,3,224,224] images) => (float[b,3] logits) { logits = ReduceMean<keepdims=0>(images, axes) }"
        )
    other = classifier(tmp_path / "other.onnx", text)
    done = call("check", other, "--against", foreign, "--json")
    complaint(done, "logits", code=1)
    assert done.document["passed"] is False


def test_check_names_the_first_tensor_that_differs(lite: Path, tmp_path: Path) -> None:
    file = changed(lite, tmp_path / "planted.onnx", shift(PLANTED, 0.5))
    done = call("check", file, "--json")
    complaint(done, "planted.onnx", "stage1.block0.mlp", code=1)
    assert done.document["first_out"] == "stage1.block0.mlp"
    assert not done.document["passed"]


def test_check_fails_on_numbers_that_are_not_finite(lite: Path, tmp_path: Path) -> None:
    file = changed(lite, tmp_path / "planted.onnx", shift("head.bias", float("nan")))
    done = call("check", file)
    complaint(done, "logits", "not finite", code=1)
    assert "FAILED" in done.out
    done = call("check", file, "--against", file, "--json")  # NaN is not equal to itself
    complaint(done, "not finite", code=1)
    assert not done.document["passed"]


def test_a_stale_passport_is_refused(lite: Path, tmp_path: Path) -> None:
    file = changed(lite, tmp_path / "model.onnx", shift("head.bias", 1.0))
    shutil.copy(f"{lite}.json", f"{file}.json")
    for command in (["check", file], ["check", file, "--against", file], ["predict", file, PHOTO]):
        complaint(call(*command), "model.onnx.json", "another", "export again")
    complaint(call("check", lite, "--against", file), "model.onnx.json", "another")


def test_check_without_a_passport_says_what_to_do(foreign: Path) -> None:
    complaint(call("check", foreign), "foreign.onnx.json", "--against")
    complaint(call("check", foreign, "--against", foreign, "--images", PHOTO.parent), "--images")


def test_check_takes_one_reference(lite: Path) -> None:
    complaint(call("check", lite, "--against", lite, "--weights", "x.pth"), "--against", "--weights")
    complaint(call("check", lite, "--against", lite, "--ema"), "--against", "--ema")


@pytest.mark.parametrize("place", ["nowhere", "empty", "file"])
def test_check_on_a_folder_without_pictures(place: str, lite: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    complaint(call("check", lite, "--images", tmp_path / place), place)


# predict


def test_predict_the_example(lite: Path) -> None:
    done = call("predict", lite, PHOTO, "--top", "3")
    assert done.code == 0
    assert "warning: this file holds random weights: its answers mean nothing\n" in done.err
    assert str(PHOTO) in done.out
    document = call("predict", lite, PHOTO, "--top", "3", "--json").document
    assert not document["meaningful"]
    (row,) = document["predictions"]
    assert [len(row["classes"]), row["image"]] == [3, str(PHOTO)]
    assert row["classes"] == sorted(row["classes"], key=lambda entry: -entry["probability"])


def test_predict_with_a_foreign_classifier(foreign: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\n[/red] [bold]:smile: \u00e9\nd\ne\n", encoding="utf-8")
    done = call("predict", foreign, PHOTO, "--labels", labels, "--top", "99")
    assert done.code == 0
    (warning,) = (line for line in done.err.splitlines() if not line.endswith(" ..."))
    assert warning.startswith("warning: ")
    assert "no passport says how " in warning
    assert "foreign.onnx takes pictures" in warning
    assert "[/red] [bold]:smile: \u00e9" in done.out
    document = call("predict", foreign, PHOTO, "--labels", labels, "--json").document
    assert [c["class"] for c in document["predictions"][0]["classes"]] == [2, 4, 3, 1, 0]
    assert document["predictions"][0]["classes"][0]["label"] == "[/red] [bold]:smile: \u00e9"


def test_predict_unusual_pictures(foreign: Path, tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), "red").save(tmp_path / "dot.png")
    Image.new("CMYK", (50, 40), (9, 99, 199, 0)).save(tmp_path / "cmyk.jpg")
    Image.fromarray(np.full((40, 50), 40000, np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGBA", (40, 50), (1, 2, 3, 4)).save(tmp_path / "[bold] :cat: alpha.webp")
    pictures = [tmp_path / name for name in ("dot.png", "cmyk.jpg", "deep.png", "[bold] :cat: alpha.webp")]
    done = call("predict", foreign, *pictures)
    assert done.code == 0, done.err
    assert all(picture.name in done.out for picture in pictures)
    rows = call("predict", foreign, *pictures, "--json").document["predictions"]
    assert [row["image"] for row in rows] == list(map(str, pictures))
    assert all(row["classes"][0]["class"] == 2 for row in rows)


def test_predict_refuses_what_is_no_picture(foreign: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(PHOTO.read_bytes()[:2000])
    (tmp_path / "text.jpg").write_text("not a picture", encoding="utf-8")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    Image.new("RGB", (10_000, 1)).save(tmp_path / "line.png")
    for name in ("cut.jpg", "text.jpg", "empty.jpg", "folder.jpg", "missing.jpg", "line.png", "a" * 300):
        done = call("predict", foreign, PHOTO, tmp_path / name, "--json")
        complaint(done, name)
        assert done.out == ""


def test_predict_with_labels_that_do_not_fit(foreign: Path, tmp_path: Path) -> None:
    for name, content, words in (
        ("short.txt", "a\nb\n", ["2 labels", "5"]),
        ("empty.txt", "", ["empty"]),
        ("bytes.txt", b"\xff\xfe\x00", ["bytes.txt"]),
        ("broken.json", "[1, 2", ["broken.json"]),
        ("number.json", "5", ["number.json"]),
        ("deep.json", "[" * 100_000, ["deep.json"]),
        ("digits.json", "1" * 5000, ["digits.json"]),
        ("empty.json", "[[], [], [], [], []]", ["empty.json"]),
    ):
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
        complaint(call("predict", foreign, PHOTO, "--labels", tmp_path / name), *words)
    complaint(call("predict", foreign, PHOTO, "--labels", tmp_path), str(tmp_path))
    complaint(call("predict", foreign, PHOTO, "--labels", tmp_path / "missing.txt"), "missing.txt")


@pytest.mark.parametrize("top", ["0", "-1", "x"])
def test_predict_at_least_one_class(top: str, foreign: Path) -> None:
    complaint(call("predict", foreign, PHOTO, "--top", top), "--top")


def test_predict_refuses_other_models(lite: Path, tmp_path: Path) -> None:
    dense = graph_file(
        tmp_path / "dense.onnx",
        "g (float[batch,3,64,96] images) => (float[batch,3,64,96] stride4) { stride4 = Identity(images) }",
    )
    complaint(call("predict", dense, PHOTO), "dense.onnx")
    model = sepvit_deploy.ModelSpec("lite", "dense", (64, 96), 1000)
    read = read_passport(lite)
    facts = read.facts | {"preprocessing": model.preprocessing.to_dict()}
    passport = replace(read, model=model.to_dict(), facts=facts)
    artifact.write_with_passport(dense, dense.read_bytes(), passport)
    complaint(call("predict", dense, PHOTO), "dense.onnx", "stride4", "classification")
    renamed = classifier(tmp_path / "renamed.onnx", CLASSIFIER.replace("images", "pixel_values"))
    assert call("predict", renamed, PHOTO).code == 0  # the input's name is the model's own business
    other = classifier(tmp_path / "other.onnx", CLASSIFIER.replace("224,224", "192,192"))
    complaint(call("predict", other, PHOTO), "other.onnx", "192 x 192")


# The Python API


def test_every_public_name_resolves() -> None:
    assert all(getattr(sepvit_deploy, name) is not None for name in sepvit_deploy.__all__)
    assert sorted(sepvit_deploy.__all__) == sorted(set(sepvit_deploy.__all__))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = sepvit_deploy.no_such_name


def test_public_functions_are_no_modules() -> None:
    script = (
        "import importlib, types\n"
        "names = ('export', 'audit', 'simplify', 'bench', 'predict')\n"
        "for name in names: importlib.import_module('sepvit_deploy.' + name)\n"
        "from sepvit_deploy import audit, bench, check, export, predict, simplify\n"
        "found = (audit, bench, check, export, predict, simplify)\n"
        "assert all(isinstance(f, types.FunctionType) for f in found), found\n"
    )
    child = subprocess.run([PROGRAM[0], "-c", script], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
