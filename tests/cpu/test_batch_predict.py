"""batch-predict on this machine: every picture once, whatever happens."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sepvit_deploy.batch_predict import Identity
from sepvit_deploy.batch_predict.job import opened
from sepvit_deploy.batch_predict.listing import Source
from sepvit_deploy.errors import OutputError
from sepvit_deploy.predict import predict
from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner
from sepvit_deploy.spec import Preprocessing
from tests.cpu.commands import PROGRAM, call, complaint, environment, graph_file, left_over, spawn, unprivileged
from tests.cpu.serving import segmenter

TEXT = (
    "g (float[batch,3,224,224] images) => (float[batch,10] logits) "
    "{ mean = ReduceMean<keepdims=0>(images, axes)  scores = MatMul(mean, weight)  logits = Add(scores, bias) }"
)
PICTURES = 70


def color_classifier(path: Path, seed: int = 0) -> Path:
    """A classifier of ten classes that goes by the colour of a picture."""
    rng = np.random.default_rng(seed)
    weight, bias = rng.normal(0, 2, (3, 10)).astype(np.float32), np.zeros(10, np.float32)
    return graph_file(path, TEXT, axes=np.array([2, 3], np.int64), weight=weight, bias=bias)


def pictures(folder: Path, count: int) -> Path:
    """Small pictures of one colour each, in folders."""
    rng = np.random.default_rng(1)
    for k in range(count):
        path = folder / f"{k % 3}" / f"{k:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), rng.integers(0, 256, 3), np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return color_classifier(tmp_path_factory.mktemp("model") / "m.onnx")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures"), PICTURES)


def run(model: Path, images: object, output: Path, *more: str | Path) -> Any:
    return call("batch-predict", model, "--images", str(images), "--output", output, "--part", "16", *more)


def table(output: Path) -> pa.Table:
    return pq.read_table(output)


@pytest.fixture(scope="module")
def expected(model: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    output = tmp_path_factory.mktemp("whole") / "out.parquet"
    assert run(model, folder, output).code == 0
    return table(output)


def test_rows_are_what_predict_says_of_each_picture(model: Path, folder: Path, expected: pa.Table) -> None:
    files = sorted(folder.rglob("*.png"))
    assert expected.column("image").to_pylist() == [path.relative_to(folder).as_posix() for path in files]
    preprocessing = Preprocessing.for_task("classify", (224, 224))
    for row, found in zip(expected.to_pylist(), predict(OnnxRuntimeRunner(model), preprocessing, files), strict=True):
        assert row["classes"] == [k for k, _, _ in found.classes]
        np.testing.assert_allclose(row["scores"], [score for _, _, score in found.classes], rtol=1e-5)
        assert (row["class"], row["score"]) == (row["classes"][0], row["scores"][0])
        assert row["label"] is row["labels"] is row["error"] is None
    assert len(set(expected.column("class").to_pylist())) > 3


def test_the_dataset_says_what_it_is_and_other_readers_read_it(model: Path, folder: Path, tmp_path: Path) -> None:
    import pandas

    output = tmp_path / "out.parquet"
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"class {k}" for k in range(10)))
    done = run(model, folder, output, "--labels", names, "--top", "2", "--json")
    document = done.document
    assert (document["images"], document["made"], document["failed"], document["parts"]) == (PICTURES, PICTURES, 0, 5)
    assert left_over(output) == [
        ".lock",
        "_SUCCESS",
        "_images",
        "_job.json",
        *(f"part-00000{k}.parquet" for k in range(5)),
    ]
    frame = pandas.read_parquet(output)
    assert len(frame) == PICTURES
    assert frame["image"].is_unique
    row = table(output).to_pylist()[0]
    assert row["labels"] == [f"class {k}" for k in row["classes"]]
    assert row["label"] == f"class {row['class']}"
    metadata = table(output).schema.metadata
    assert metadata[b"sepvit_deploy.model_sha256"].decode() == document["model_sha256"]


def test_a_finished_job_does_nothing_and_a_lost_part_is_made_again(
    model: Path, folder: Path, tmp_path: Path, expected: pa.Table
) -> None:
    output = tmp_path / "out.parquet"
    run(model, folder, output)
    before = {name: (output / name).stat().st_mtime_ns for name in left_over(output) if name.startswith("part")}
    again = run(model, folder, output)
    assert again.code == 0
    assert "finished already" in again.out
    assert before == {name: (output / name).stat().st_mtime_ns for name in before}
    (output / "part-000001.parquet").unlink()
    (output / "part-000003.parquet").write_bytes(b"torn")
    once_more = run(model, folder, output, "--json").document
    assert once_more["made"] == 32
    assert table(output).equals(expected)


def test_after_a_kill_the_same_command_goes_on(model: Path, folder: Path, tmp_path: Path, expected: pa.Table) -> None:
    output = tmp_path / "out.parquet"
    command = ["batch-predict", model, "--images", folder, "--output", output, "--part", "16", "--workers", "1"]
    killed = start(command)
    wait_for(output / "part-000001.parquet")
    killed.kill()
    killed.communicate()
    (output / ".part-000002.parquet.0123.tmp").write_bytes(b"torn")  # as a kill within a write leaves it
    done = spawn(*command, "--json").document
    assert done["made"] < PICTURES
    assert table(output).equals(expected)
    assert not [name for name in left_over(output) if name.endswith(".tmp")]


def test_ctrl_c_says_how_to_go_on(model: Path, folder: Path, tmp_path: Path, expected: pa.Table) -> None:
    output = tmp_path / "out.parquet"
    command = ["batch-predict", model, "--images", folder, "--output", output, "--part", "16", "--workers", "1"]
    stopped = start(command)
    wait_for(output / "part-000000.parquet")
    stopped.send_signal(signal.SIGINT)
    _, err = stopped.communicate(timeout=20)
    if stopped.returncode != 0:  # it may have been done
        assert stopped.returncode == 130, err
        assert f"of {PICTURES} pictures are done; the same command goes on from there" in err.splitlines()[-1]
    assert run(model, folder, output).code == 0
    assert table(output).equals(expected)


def start(command: list[Any]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PROGRAM, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 90  # a cluster starts beside other tests
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.002)


def test_a_job_that_is_another_one_is_refused(model: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"class {k}" for k in range(10)))
    run(model, folder, output)
    content = {name: (output / name).read_bytes() for name in left_over(output)}
    complaint(run(model, folder, output, "--top", "3"), "(--top 5, now 3)", "name another --output")
    complaint(run(model, folder, output, "--labels", names), "other labels")
    complaint(call("batch-predict", model, "--images", folder, "--output", output, "--part", "7"), "--part 16, now 7")
    complaint(run(model, f"{folder}/0/*", output), f"other images ({PICTURES}, now 24)")
    other = color_classifier(tmp_path / "other.onnx", seed=5)
    complaint(run(other, folder, output), "another model (m.onnx, SHA-256")
    assert content == {name: (output / name).read_bytes() for name in left_over(output)}
    job = json.loads(content["_job.json"])
    (output / "_job.json").write_text(json.dumps(job | {"top": "many"}))
    complaint(run(model, folder, output), "_job.json describes no job")


def test_two_runs_on_one_output_at_once_are_one_too_many(model: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    identity = Identity("m", "0", {}, 5, None)
    with opened(output, Source.parse(str(folder)), identity):
        complaint(run(model, folder, output), "another process works on", "out.parquet")
    assert run(model, folder, output).code == 0


def test_a_damaged_picture_is_a_row(model: Path, tmp_path: Path) -> None:
    images = pictures(tmp_path / "in", 20)
    (images / "0" / "00003.png").write_bytes(b"no picture")
    (images / "1" / "00001.png").write_bytes(b"")
    (images / "broken.jpg").symlink_to("nowhere")
    output = tmp_path / "out.parquet"
    done = run(model, images, output)
    assert done.code == 0
    assert "21 pictures in 2 files, 3 of them unusable (column error)" in done.out
    errors = {row["image"]: row["error"] for row in table(output).to_pylist() if row["error"]}
    assert errors == {
        "0/00003.png": "0/00003.png is not a picture, or its first bytes are damaged",
        "1/00001.png": "1/00001.png is empty",
        "broken.jpg": "broken.jpg does not exist",
    }


def test_where_no_picture_is_usable_the_job_fails(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"no picture")
    for _ in range(2):
        complaint(run(model, tmp_path / "in", tmp_path / "o"), "none of the 1 pictures", "column error", code=1)


def test_logits_that_are_not_finite_are_an_error_of_that_row(tmp_path: Path) -> None:
    # log of the mean: not a number for pictures that are darker than the mean
    text = "g (float[b,3,224,224] images) => (float[b,3] logits) "
    text += "{ mean = ReduceMean<keepdims=0>(images, axes)  logits = Log(mean) }"
    file = graph_file(tmp_path / "log.onnx", text, axes=np.array([2, 3], np.int64))
    for name, value in (("dark", 0), ("light", 255)):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (value,) * 3).save(tmp_path / "in" / f"{name}.png")
    assert run(file, tmp_path / "in", tmp_path / "o").code == 0
    dark, light = table(tmp_path / "o").to_pylist()
    assert dark["error"] == "log.onnx gave logits that are not finite"
    assert light["error"] is None


@pytest.mark.parametrize("batch", ["1", "3", "16"])
def test_a_batch_changes_no_row(model: Path, folder: Path, tmp_path: Path, expected: pa.Table, batch: str) -> None:
    assert run(model, folder, tmp_path / "o", "--batch", batch, "--workers", "3").code == 0
    found = table(tmp_path / "o")
    assert found.drop_columns(["score", "scores"]).equals(expected.drop_columns(["score", "scores"]))


def test_a_folder_that_vanishes_ends_the_job(model: Path, folder: Path, tmp_path: Path) -> None:
    images = pictures(tmp_path / "in", 20)
    output = tmp_path / "out.parquet"
    run(model, images, output)
    (output / "part-000001.parquet").unlink()

    import sepvit_deploy.batch_predict.job as job

    true = job.write_listing

    def then_unmounted(source: Source, file: Path) -> Any:
        found = true(source, file)
        images.rename(tmp_path / "away")
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "write_listing", then_unmounted)
        complaint(run(model, images, output), "in is not there any more")
    assert "part-000001.parquet" not in left_over(output)


def test_what_cannot_be_done_is_one_line_and_leaves_nothing(model: Path, folder: Path, tmp_path: Path) -> None:
    complaint(run(model, tmp_path / "nowhere", tmp_path / "o"), "nowhere does not exist")
    complaint(run(model, tmp_path, tmp_path / "o"), "holds no picture")
    complaint(run(model, folder, tmp_path / "no" / "o"), "does not exist", "mkdir -p")
    complaint(run(model, folder, model), "is a file")
    complaint(run(model, folder, tmp_path / "o", "--top", "0"), "--top 0")
    complaint(run(model, folder, tmp_path / "o", "--batch", "0"), "--batch 0")
    complaint(run(model, folder, tmp_path / "o", "--workers", "0"), "--workers 0")
    complaint(call("batch-predict", model, "--images", folder, "--output", tmp_path / "o", "--part", "0"), "--part 0")
    assert left_over(tmp_path) == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    complaint(run(model, folder, tmp_path / "mine"), "holds thesis.txt, and is no output of batch-predict")
    assert left_over(tmp_path / "mine") == ["thesis.txt"]
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo")
    complaint(run(model, folder, tmp_path / "o", "--labels", names), "2 labels; expected 10")
    masks = segmenter(tmp_path / "masks.onnx")
    complaint(run(masks, folder, tmp_path / "o"), "is for the task segment", "for masks type: sepvit-deploy predict")
    assert run(model, folder, tmp_path / "o").code == 0  # nothing was done, so another job may begin there


def test_a_place_that_cannot_be_written_is_one_line(model: Path) -> None:
    with tempfile.TemporaryDirectory() as open_to_all:  # pytest's own folders are not
        place = Path(open_to_all)
        place.chmod(0o755)
        pictures(place / "in", 2)
        shutil.copy(model, place / "m.onnx")
        with unprivileged():
            complaint(run(place / "m.onnx", place / "in", place / "o"), "o cannot be written (Permission denied)")
        assert left_over(place) == ["in", "m.onnx"]


def test_a_full_disk_keeps_what_is_done(
    model: Path, folder: Path, tmp_path: Path, expected: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sepvit_deploy.batch_predict.classifying as classifying

    true = classifying.write_part

    def full(path: Path, *rest: Any) -> Any:
        if path.name == "part-000002.parquet":
            raise OutputError(f"no space left to write {path}")
        return true(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(classifying, "write_part", full)
        complaint(run(model, folder, tmp_path / "o"), "no space left to write", "part-000002.parquet")
    assert run(model, folder, tmp_path / "o", "--json").document["made"] == PICTURES - 32
    assert table(tmp_path / "o").equals(expected)


def test_nothing_of_ray_is_imported_without_it(model: Path, folder: Path, tmp_path: Path) -> None:
    script = "import sys; from sepvit_deploy.cli import run; code = run(sys.argv[1:]); "
    script += "sys.exit(code or any(name.partition('.')[0] == 'ray' for name in sys.modules))"
    arguments = ["batch-predict", model, "--images", folder, "--output", tmp_path / "o"]
    child = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], env=environment(), check=False)
    assert child.returncode == 0


@pytest.mark.parametrize(("module", "option", "extra"), [("pyarrow", (), "batch"), ("ray", ("--ray", "auto"), "ray")])
def test_a_missing_extra_is_named(
    model: Path, folder: Path, tmp_path: Path, module: str, option: tuple[str, ...], extra: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.partition(".")[0] == module]:
            patch.delitem(sys.modules, name)
        patch.setattr(sys, "path", [*sys.path])
        patch.setattr(sys, "meta_path", [_Without(module), *sys.meta_path])
        done = run(model, folder, tmp_path / "o", *option)
    complaint(done, "is not installed", f"pip install 'sepvit-deploy[{extra}]'")
    assert not os.path.exists(tmp_path / "o")


class _Without:
    """Finds every module but one."""

    def __init__(self, module: str) -> None:
        self._module = module

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == self._module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
