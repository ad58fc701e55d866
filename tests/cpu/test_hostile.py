"""Files that were made to break the command line, or were never meant for it: one line, never a traceback."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, parser

from tests.cpu.commands import (
    CLASSIFIER,
    ESCAPE,
    HEADER,
    PHOTO,
    call,
    certified,
    classifier,
    complaint,
    environment,
    graph_file,
    spawn,
)

SAME = "g (float[batch,3,224,224] images) => (float[batch,3,224,224] logits) { logits = Identity(images) }"
IMAGES = "g (float[batch,3,224,224] images)"


@pytest.fixture(scope="module")
def lite(exported: Callable[..., Path]) -> Path:
    return exported("--variant", "lite")


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """A pipe that is opened waits for ever: fail instead."""

    def late(*_: object) -> None:
        raise AssertionError("this took more than a minute")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def commands(file: Path) -> dict[str, list[str | Path]]:
    """Every command that reads an ONNX file."""
    return {
        "audit": ["audit", file],
        "predict": ["predict", file, PHOTO],
        "check": ["check", file],
        "against": ["check", file, "--against", file],
        "bench": ["bench", "--engine", file, "--batch", "1,2", "--seconds", "0", "--samples", "5"],
    }


READERS = tuple(commands(Path()))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "kind", ["missing", "empty", "text", "cut", "folder", "pipe", "picture", "long", "under a file"]
)
def test_what_is_no_onnx_file_is_one_line(kind: str, reader: str, lite: Path, tmp_path: Path) -> None:
    file = tmp_path / f"{kind}.onnx"
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "long":
        file = tmp_path / ("a" * 300)
    elif kind == "under a file":
        (tmp_path / "file").touch()
        file = tmp_path / "file" / "model.onnx"
    elif kind != "missing":
        whole = lite.read_bytes()
        content = {"empty": b"", "text": b"hello\n", "cut": whole[: len(whole) // 2], "picture": PHOTO.read_bytes()}
        file.write_bytes(content[kind])
    complaint(call(*commands(file)[reader]), file.name)


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "cut", "folder", "pipe", "onnx", "long", "pickle"])
def test_what_is_no_checkpoint_is_one_line(kind: str, lite: Path, tmp_path: Path) -> None:
    import torch

    file = tmp_path / f"{kind}.pth"
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "long":
        file = tmp_path / ("a" * 300 + ".pth")
    elif kind == "pickle":
        file.write_bytes(b"cos\nsystem\n(S'exit 3'\ntR.")
    elif kind == "onnx":
        shutil.copy(lite, file)
    elif kind != "missing":
        torch.save({"model": {"weight": torch.zeros(1000)}}, file)
        file.write_bytes({"empty": b"", "text": b"hello\n", "cut": file.read_bytes()[:2000]}[kind])
    output = tmp_path / "model.onnx"
    complaint(call("export", "--variant", "lite", "--weights", file, "--output", output), file.name)
    complaint(call("check", lite, "--weights", file), file.name)
    assert not output.exists()


GRAPHS: dict[str, tuple[str, dict[str, np.ndarray]]] = {
    # Says that its batch is free, and fails on any but 1.
    "baked": (
        f"{IMAGES} => (float[b,150528] logits) {{ logits = Reshape(images, shape) }}",
        {"shape": np.array([1, 150528])},
    ),
    "one number": (f"{IMAGES} => (float logits) {{ logits = ReduceMean<keepdims=0>(images) }}", {}),
    "maps as logits": (SAME, {}),
    "no classes": (
        f"{IMAGES} => (float[batch,0,224,224] logits) {{ logits = Slice(images, zero, zero, one) }}",
        {"zero": np.array([0]), "one": np.array([1])},
    ),
    "text": (
        f"{IMAGES} => (string[batch,3] logits) {{ m = ReduceMean<keepdims=0>(images, axes) logits = Cast<to=8>(m) }}",
        {"axes": np.array([2, 3], np.int64)},
    ),
    "sequence": (f"{IMAGES} => (seq(float[batch,3,224,224]) logits) {{ logits = SequenceConstruct(images) }}", {}),
    "immense": (SAME.replace("224", str(2**40)), {}),
    "negative": (SAME.replace("224", "-1"), {}),
    "no images": (SAME.replace("batch", "0"), {}),
    "two inputs": (
        f"{IMAGES[:-1]}, float[batch] scale) => (float[batch,3,224,224] logits) {{ logits = Identity(images) }}",
        {},
    ),
    "unknown operator": (SAME.replace("Identity", "Foo"), {}),
    "circle": (f"{IMAGES} => (float[b] logits) {{ a = Add(c, images)  c = Add(a, images)  logits = Sqrt(c) }}", {}),
    "wrong count": (f"{IMAGES} => (float[b] logits) {{ logits = MatMul(images) }}", {}),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", GRAPHS)
def test_a_strange_graph_is_an_answer_or_one_line(name: str, reader: str, tmp_path: Path) -> None:
    text, weights = GRAPHS[name]
    file = graph_file(tmp_path / "strange.onnx", text, **weights)
    done = call(*commands(file)[reader])
    assert done.code in (0, 1, 2)
    if done.code == 2 or (done.code == 1 and reader != "audit"):
        complaint(done, "strange.onnx" if reader != "audit" else "", code=done.code)


@pytest.mark.parametrize("name", ["baked", "one number", "maps as logits", "no classes", "text", "sequence"])
def test_what_has_no_usable_logits_is_refused(name: str, tmp_path: Path) -> None:
    text, weights = GRAPHS[name]
    file = graph_file(tmp_path / "strange.onnx", text, **weights)
    if name == "baked":  # one image it takes
        assert call("predict", file, PHOTO).code == 0
        complaint(call("bench", "--engine", file, "--batch", "2", "--seconds", "0"), "strange.onnx")
        complaint(call("check", file, "--against", file), "strange.onnx")
    else:
        complaint(call("predict", file, PHOTO), "strange.onnx", "logits")


LOCATIONS = {
    "absolute": os.path.abspath(__file__),
    "above": "../strange.onnx",
    "link": "link.bin",
    "missing": "missing.bin",
    "folder": "folder",
    "itself": ".",
    "nul": "a\0b",
    "long": "a" * 300,
    "none": None,
    "pipe": "pipe.bin",
    "newline": "a\nb",
}


@pytest.mark.parametrize("kind", LOCATIONS)
@pytest.mark.parametrize("where", ["initializer", "attribute"])
def test_external_data_from_elsewhere_is_refused(kind: str, where: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "strange.onnx").write_bytes(bytes(4))
    (folder / "link.bin").symlink_to(tmp_path / "strange.onnx")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe.bin")
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    if LOCATIONS[kind] is not None:
        tensor.external_data.add(key="location", value=LOCATIONS[kind])
    model = parser.parse_model(HEADER + SAME.replace("Identity(images)", "Mul(images, w)"))
    if where == "initializer":
        model.graph.initializer.append(tensor)
    else:
        model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    onnx.save(model, folder / "model.onnx")
    for arguments in commands(folder / "model.onnx").values():
        complaint(call(*arguments), "model.onnx")


TITLE = f"{ESCAPE}]0;title\a"
NAMES = ("[/red]", "[bold]x", "a\nb", "a\tb", f"{ESCAPE}[31mred{ESCAPE}[0m", TITLE, ":smile:", "\u202egnp")


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_of_a_foreign_graph_are_shown_as_text(name: str, tmp_path: Path) -> None:
    model = parser.parse_model(HEADER + SAME.replace("Identity(images)", "Where(keep, images, images)"))
    model.graph.initializer.append(helper.make_tensor("keep", TensorProto.BOOL, [1], [True]))
    model.graph.node[0].name = name
    file = tmp_path / "foreign.onnx"
    onnx.save(model, file)
    done = call("audit", file)
    assert done.code == 1
    assert ESCAPE not in done.out
    if name.isprintable() and name.isascii():
        assert name in done.out
    assert call("audit", file, "--json").document["findings"][0]["node"] == name


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_of_files_are_shown_as_text(name: str, tmp_path: Path) -> None:
    if "/" in name:
        (tmp_path / name).parent.mkdir()
    file = classifier(tmp_path / f"{name}.onnx")
    picture = tmp_path / f"{name}.jpg"
    shutil.copy(PHOTO, picture)
    done = call("predict", file, picture)
    assert done.code == 0
    assert len([line for line in done.err.splitlines() if not line.endswith(" ...")]) == 1
    assert ESCAPE not in done.out + done.err
    if name.isprintable() and name.isascii():
        assert f"{name}.jpg" in done.out.replace("\n", "")  # a long path folds
    complaint(call("predict", file, tmp_path / f"{name}.png"))


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    file = classifier(tmp_path / "foreign.onnx")
    picture = os.fsdecode(bytes(tmp_path) + b"/\xff\xfe.jpg")
    shutil.copy(PHOTO, picture)
    done = spawn("predict", file, picture)
    assert done.code == 0, done.err
    assert spawn("predict", file, picture, "--json").document["predictions"]
    complaint(spawn("predict", file, picture + "x"))


def test_a_terminal_that_knows_ascii_only(tmp_path: Path) -> None:
    file = classifier(tmp_path / "foreign.onnx")
    labels = tmp_path / "labels.txt"
    labels.write_text("\u00e9\n\u4e2d\n\u4e2d\u00e9\nd\ne\n", encoding="utf-8")
    done = spawn("predict", file, PHOTO, "--labels", labels, env=environment(PYTHONIOENCODING="ascii"))
    assert done.code == 0, done.err


def other_model(**changes: object) -> dict[str, object]:
    return {"model": {"variant": "lite", "task": "classify", "size": [224, 224], "num_classes": 1000} | changes}


def seeded(seed: object) -> dict[str, object]:
    return {"parents": [{"role": "weights", "name": "random", "sha256": None, "seed": seed, "ema": False}]}


FORGED: dict[str, dict[str, object]] = {
    "other variant": other_model(variant="t"),
    "unknown variant": other_model(variant="xl"),
    "variant is a list": other_model(variant=["lite"]),
    "dense": other_model(task="dense", size=[64, 64]),
    "other classes": other_model(num_classes=10),
    "model is empty": {"model": {}},
    "model is a list": {"model": []},
    "digest is a number": {"sha256": 5},
    "parents are text": {"parents": "abc"},
    "parents are numbers": {"parents": [1]},
    "no parents": {"parents": []},
    "seed is text": seeded("abc"),
    "seed is immense": seeded(10**40),
    "seed is a fraction": seeded(0.5),
    "unknown key": {"extra": 1},
    "other schema": {"schema": 99},
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_passport_is_one_line(name: str, lite: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    shutil.copy(lite, file)
    certified(lite, file, **FORGED[name])
    done = call("check", file)
    complaint(done, "model.onnx", code=done.code or 2)
    assert call("predict", file, PHOTO).code in (0, 2)  # it may not need what is forged


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"5", b"null", b"\xff", b"[" * 100_000, b"{}", b"1" * 5000])
def test_what_is_no_passport_is_one_line(content: bytes, lite: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    shutil.copy(lite, file)
    Path(f"{file}.json").write_bytes(content)
    for arguments in (["check", file], ["predict", file, PHOTO]):
        complaint(call(*arguments), "model.onnx.json", "export again")


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_a_passport_that_is_no_file_is_one_line(kind: str, tmp_path: Path) -> None:
    file = classifier(tmp_path / "model.onnx", CLASSIFIER)
    make = os.mkdir if kind == "folder" else os.mkfifo
    make(f"{file}.json")
    done = spawn("predict", file, PHOTO)  # a pipe that is opened would wait for ever
    complaint(done, "model.onnx.json")
