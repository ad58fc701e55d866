"""What is written for Triton, from which file, and that it appears whole: whoever kills, fills or races the writer."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepvit_deploy.artifact import read_passport, sha256
from sepvit_deploy.building import NetworkFacts, Profile
from sepvit_deploy.contract import name_of, require_name
from sepvit_deploy.errors import InputError, OptionError, OutputError, PlanError
from sepvit_deploy.pipeline.repository import write_repository
from sepvit_deploy.spec import ModelSpec
from sepvit_deploy.triton import Served, Serving, lint, placing, read_repository
from sepvit_deploy.triton import config as configs
from sepvit_deploy.triton import write as triton_write
from sepvit_deploy.triton.messages import as_text, parse, type_name
from sepvit_deploy.triton.served import covered, limit
from tests.cpu.commands import call, complaint, left_over, unprivileged
from tests.cpu.serving import segmenter
from tests.unit.triton_files import model_spec, onnx_file, plan_file


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``a.onnx``, and plans built from it."""
    folder = tmp_path_factory.mktemp("files")
    onnx = onnx_file(folder / "a.onnx")
    plan_file(folder / "a.plan", onnx)
    plan_file(folder / "gap.plan", onnx, Profile(1, 1, 1), Profile(4, 8, 32))
    plan_file(folder / "joined.plan", onnx, Profile(1, 1, 4), Profile(4, 8, 32))
    plan_file(folder / "high.plan", onnx, Profile(8, 8, 8))
    plan_file(folder / "rtx.plan", onnx, builder="rtx", builder_version="1.7.1.116")
    plan_file(folder / "four.plan", onnx_file(folder / "four.onnx", batch=4), batch=4)
    return folder


def config(root: Path, model: str, place: str = "config.pbtxt") -> Any:
    return parse((root / model / place).read_text(encoding="utf-8"))


def write(root: Path, *arguments: str | Path) -> dict[str, int]:
    """Write models; their versions by name."""
    done = call("triton", *arguments, "--repository", root, "--json")
    assert done.code == 0, done.err
    return {each["model"]: each["version"] for each in done.document["models"]}


def write_quietly(root: Path, *files: Path, **more: Any) -> dict[str, int]:
    """The same without the command line, for threads and children."""
    done = write_repository([str(file) for file in files], root, serving=Serving(ensemble=False), **more)
    return {each.model: each.version for each in done.placed}


def test_a_plan_becomes_four_models_and_a_fallback(files: Path, tmp_path: Path) -> None:
    assert write(tmp_path, files / "a.plan") == {"a_preprocess": 1, "a_rank": 1, "a": 1, "a_classify": 1}
    on_gpu, on_cpu = config(tmp_path, "a"), config(tmp_path, "a", "configs/cpu.pbtxt")
    assert (on_gpu.platform, on_cpu.platform) == ("tensorrt_plan", "onnxruntime_onnx")
    assert (on_gpu.default_model_filename, on_cpu.default_model_filename) == ("model.plan", "model.onnx")
    assert [group.kind for group in (*on_gpu.instance_group, *on_cpu.instance_group)] == [1, 2]  # KIND_GPU, KIND_CPU
    assert on_gpu.max_batch_size == 32
    assert [warmup.batch_size for warmup in on_gpu.model_warmup] == [1, 32]
    assert [warmup.name for warmup in on_gpu.model_warmup] == ["a photograph, once", "a photograph, 32 times"]
    assert on_gpu.dynamic_batching.max_queue_delay_microseconds == 2000
    assert on_gpu.dynamic_batching.default_queue_policy.max_queue_size == 512
    assert on_gpu.version_policy.latest.num_versions == 2
    version = tmp_path / "a" / "1"
    assert left_over(version) == ["model.onnx", "model.onnx.json", "model.plan", "model.plan.json"]
    for name in ("model.onnx", "model.plan"):
        assert read_passport(version / name) is not None
    assert sha256(version / "model.onnx") == sha256(files / "a.onnx")
    assert left_over(tmp_path) == ["a", "a_classify", "a_preprocess", "a_rank"]
    assert lint(read_repository(tmp_path)).findings == ()


def test_an_onnx_file_is_asked_for_on_a_gpu_and_falls_back(files: Path, tmp_path: Path) -> None:
    write(tmp_path, files / "a.onnx", "--name", "b", "--no-ensemble", "--instances", "3", "--queue-delay-us", "0")
    on_gpu, on_cpu = config(tmp_path, "b"), config(tmp_path, "b", "configs/cpu.pbtxt")
    assert on_gpu.platform == on_cpu.platform == "onnxruntime_onnx"
    assert on_gpu.max_batch_size == 8
    assert (on_gpu.instance_group[0].count, on_cpu.instance_group[0].count) == (3, 1)
    (provider,) = on_gpu.optimization.execution_accelerators.gpu_execution_accelerator
    assert (provider.name, dict(provider.parameters)) == ("cuda", {"use_tf32": "0"})
    assert not on_cpu.HasField("optimization")
    assert left_over(tmp_path) == ["b"]


def shapes(entries: Any) -> dict[str, tuple[str, list[int]]]:
    return {entry.name: (type_name(entry.data_type), list(entry.dims)) for entry in entries}


@pytest.mark.parametrize(
    ("options", "image", "given"),
    [
        ({}, [3, 64, 96], ("logits", ("FP32", [5, 16, 24]))),
        ({"output": "mask"}, [3, 64, 96], ("mask", ("UINT8", [64, 96]))),
        ({"output": "mask", "any_size": True}, [3, -1, -1], ("mask", ("UINT8", [-1, -1]))),
        ({"any_size": True}, [3, -1, -1], ("logits", ("FP32", [5, -1, -1]))),
        ({"batch": 2}, [2, 3, 64, 96], ("logits", ("FP32", [2, 5, 16, 24]))),
    ],
    ids=["logits", "mask", "mask of any size", "logits of any size", "batch of 2"],
)
def test_a_segmentation_file_becomes_an_ensemble_that_gives_masks(
    tmp_path: Path, options: dict[str, Any], image: list[int], given: tuple[str, tuple[str, list[int]]]
) -> None:
    root = tmp_path / "root"
    file = segmenter(tmp_path / "s.onnx", size=(64, 96), **options)
    assert write(root, file) == {"s_preprocess": 1, "s_mask": 1, "s": 1, "s_segment": 1}
    lead = [2] if "batch" in options else []
    sizes = {name: ("INT64", [*lead, 2]) for name in ("input_size", "picture_size")}
    model, ensemble, behind = (config(root, name) for name in ("s", "s_segment", "s_mask"))
    assert shapes(model.input) == {"images": ("FP32", image)}
    assert shapes(model.output) == dict([given])
    assert not model.output[0].label_filename
    assert shapes(config(root, "s_preprocess").output) == {"images": ("FP32", image)} | sizes
    assert shapes(behind.input) == dict([given]) | sizes
    assert shapes(ensemble.input) == {"image": ("BYTES", [*lead, 1])}
    assert shapes(ensemble.output) == shapes(behind.output) == {"mask": ("BYTES", [*lead, 1])}
    assert all(warmup.inputs["images"].dims[-2:] == [64, 96] for warmup in model.model_warmup)
    assert lint(read_repository(root)).findings == ()
    assert config(root, "s", "configs/cpu.pbtxt").output == model.output
    assert write(root, file) == {"s_preprocess": 1, "s_mask": 1, "s": 1, "s_segment": 1}, "nothing is new"


def test_a_mask_is_painted_as_its_passport_says_and_is_always(tmp_path: Path) -> None:
    root, colours = tmp_path / "root", [[k, 0, 255 - k] for k in range(5)]
    write(root, segmenter(tmp_path / "s.onnx", facts={"palette": colours}))
    settings = json.loads((root / "s_mask" / "1" / "masking.json").read_text(encoding="utf-8"))
    assert settings == {"palette": colours}
    done = call("triton", segmenter(tmp_path / "s.onnx"), "--repository", root)
    complaint(done, "masking.json differs from what is new: another palette")
    odd = segmenter(tmp_path / "odd.onnx", facts={"palette": [[1, 2, 300]] * 5})
    complaint(call("triton", odd, "--repository", root), "the passport's palette are 5 entries", "of 0 to 255")
    names = tmp_path / "names.txt"
    names.write_text("\n".join("abcde"), encoding="utf-8")
    done = call("triton", segmenter(tmp_path / "t.onnx"), "--repository", root, "--labels", names)
    complaint(done, "which gives masks of class numbers; expected a classifier")


def test_a_plan_of_masks_of_any_size_is_judged_by_its_types(tmp_path: Path) -> None:
    onnx = segmenter(tmp_path / "s.onnx", output="mask", any_size=True, size=(64, 96))
    network = NetworkFacts(3, {}, {}, {"images": [-1, 3, -1, -1]}, {"mask": [-1, -1, -1]})
    profiles = (Profile.parse("1,1,4@32x32,64x85,64x96"), Profile.parse("1,1,4@32x32,85x64,96x64"))
    passport = read_passport(onnx)
    assert passport is not None
    plan = plan_file(tmp_path / "s.plan", onnx, *profiles, network=network, model=passport.model)
    root = tmp_path / "root"
    write(root, plan)
    made = config(root, "s")
    assert (made.max_batch_size, list(made.instance_group[0].profile)) == (4, ["0", "1"])
    assert shapes(made.output) == {"mask": ("UINT8", [-1, -1])}
    complaint(call("triton", plan, "--repository", tmp_path / "g", "--cuda-graphs"), "takes any size; expected a plan")
    place = root / "s" / "config.pbtxt"
    place.write_text(place.read_text(encoding="utf-8").replace("TYPE_UINT8", "TYPE_FP32"), encoding="utf-8")
    broken = {(each.rule, each.place) for each in lint(read_repository(root)).findings}
    assert {("tensors", "s/config.pbtxt"), ("ensemble-types", "s_segment")} <= broken


@pytest.mark.parametrize(
    ("profiles", "words"),
    [
        (["1,1,4@32x32,64x85,64x96"], "1 to 4 at 32x32 to 64x96, and pictures of 96x64 come"),
        (["1@64x64", "1,1,4@32x32,85x64,96x64"], "and pictures of 64x96 come"),
        (["1,1,4@32x32,96x96,96x96"], None),
    ],
    ids=["lying", "standing", "both"],
)
def test_a_plan_of_any_size_covers_the_largest_pictures_both_ways(
    tmp_path: Path, profiles: list[str], words: str | None
) -> None:
    onnx = segmenter(tmp_path / "s.onnx", any_size=True, size=(64, 96))
    network = NetworkFacts(3, {}, {}, {"images": [-1, 3, -1, -1]}, {"logits": [-1, 5, -1, -1]})
    passport = read_passport(onnx)
    assert passport is not None
    given = map(Profile.parse, profiles)
    plan = plan_file(tmp_path / "s.plan", onnx, *given, network=network, model=passport.model)
    done = call("triton", plan, "--repository", tmp_path / "root")
    if words is None:
        assert done.code == 0, done.err
        return
    usual = "--profile 1,1,4@32x32,64x86,64x96 --profile 1,1,4@32x32,86x64,96x64"
    expected = "expected profiles that cover 64x96 lying and standing; type: sepvit-deploy build FILE"
    complaint(done, words, expected, usual)
    assert not (tmp_path / "root" / "s").exists()


def test_a_python_model_has_every_module_that_it_needs(files: Path, tmp_path: Path) -> None:
    """Of those that Python reads to import it; what a function of theirs imports is for the server's own test."""
    write(tmp_path, files / "a.onnx")
    write(tmp_path, segmenter(tmp_path.with_name("s.onnx"), output="mask"))
    for model in ("a_preprocess", "a_rank", "s_preprocess", "s_mask"):
        folder = tmp_path / model / "1"
        text = (folder / "model.py").read_text(encoding="utf-8")
        wanted = re.findall(r"from (sepvit_deploy\.\w+) import", text)
        script = f"import sys; sys.path.insert(0, {str(folder)!r}); import {', '.join(wanted)}; print({wanted[0]})"
        done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert str(folder) in done.stdout


def test_int8_as_tensorrt_takes_it_is_not_fused_on_a_cpu(tmp_path: Path) -> None:
    write(tmp_path, onnx_file(tmp_path / "q.onnx", signed_int8=True), "--no-ensemble")
    assert config(tmp_path, "q", "configs/cpu.pbtxt").optimization.graph.level == 2
    assert not config(tmp_path, "q").optimization.HasField("graph")


def test_cuda_graphs_are_captured_for_the_usual_batches(files: Path, tmp_path: Path) -> None:
    write(tmp_path, files / "a.plan", "--cuda-graphs", "--max-batch", "12", "--no-ensemble")
    cuda = config(tmp_path, "a").optimization.cuda
    assert cuda.graphs
    assert [spec.batch_size for spec in cuda.graph_spec] == [1, 2, 4, 8, 12]
    assert not config(tmp_path, "a", "configs/cpu.pbtxt").HasField("optimization")
    done = call("triton", files / "a.onnx", "--cuda-graphs", "--repository", tmp_path)
    complaint(done, "--cuda-graphs with", "expected a plan")


def test_cuda_graphs_of_several_profiles_are_refused(files: Path, tmp_path: Path) -> None:
    done = call("triton", files / "joined.plan", "--cuda-graphs", "--repository", tmp_path / "r")
    complaint(done, "in several profiles: 1 to 4, 4 to 32; expected one profile", "--profile 1,8,32")
    write(tmp_path / "r", files / "gap.plan", "--cuda-graphs", "--max-batch", "1", "--no-ensemble")


def test_a_server_is_told_of_version_compatible_plans(files: Path, tmp_path: Path) -> None:
    flag = "--backend-config=tensorrt,version-compatible=true"
    done = call("triton", files / "a.plan", "--repository", tmp_path / "r")
    assert flag not in done.out + done.err
    compatible = plan_file(tmp_path / "b.plan", files / "a.onnx", version_compatible=True)
    done = call("triton", compatible, "--repository", tmp_path / "r")
    assert f" {flag}; without one" in " ".join(done.out.split())
    assert "manifests FILE --for kserve writes the Dockerfile" in " ".join(done.out.split())
    assert "change" in done.out
    assert f"b/1 is version-compatible: start the server with {flag}" in done.err
    done = call("triton", files / "a.plan", "--repository", tmp_path / "r", "--json")  # b is still there
    assert done.document["flags"] == [flag]


def test_profiles_that_cover_a_batch_together_are_all_listed(files: Path, tmp_path: Path) -> None:
    write(tmp_path, files / "joined.plan", "--no-ensemble")
    assert config(tmp_path, "joined").max_batch_size == 32
    assert list(config(tmp_path, "joined").instance_group[0].profile) == ["0", "1"]
    write(tmp_path, files / "gap.plan", "--max-batch", "1", "--no-ensemble")
    assert list(config(tmp_path, "gap").instance_group[0].profile) == ["0"]


def test_a_fixed_batch_stands_in_the_dims(files: Path, tmp_path: Path) -> None:
    write(tmp_path, files / "four.plan")
    four = config(tmp_path, "four")
    assert (four.max_batch_size, list(four.input[0].dims), list(four.output[0].dims)) == (0, [4, 3, 224, 224], [4, 5])
    assert [warmup.batch_size for warmup in four.model_warmup] == [1]
    assert list(config(tmp_path, "four_classify").input[0].dims) == [4, 1]
    complaint(call("triton", files / "four.plan", "--max-batch", "8", "--repository", tmp_path), "batches of 4 and no")


@pytest.mark.parametrize(
    ("file", "options", "words"),
    [
        ("rtx.plan", [], ["TensorRT-RTX, and Triton has no backend", "build FILE.onnx --builder tensorrt"]),
        ("gap.plan", [], ["batches of 1, 4 to 32, and none of 2", "--max-batch 1, or build it again"]),
        ("gap.plan", ["--max-batch", "4"], ["--max-batch 4; expected 1 to 1"]),
        ("high.plan", [], ["batches of 8, and a server meets single images", "--profile 1,8,32"]),
        ("a.plan", ["--max-batch", "33"], ["--max-batch 33; expected 1 to 32"]),
        ("a.plan", ["--max-batch", "0"], ["--max-batch 0; expected 1 to 4096"]),
        ("a.plan", ["--instances", "0"], ["--instances 0; expected 1 to 64"]),
        ("a.plan", ["--version", "0"], ["--version 0; expected 1 to"]),
        ("a.plan", ["--queue-delay-us", "-1"], ["--queue-delay-us -1; expected 0 to"]),
        ("a.plan", ["--name", "a b"], ["--name 'a b'"]),
        ("a.plan", ["--labels", "none.txt"], ["none.txt holds no labels"]),
        ("none.plan", [], ["does not exist; expected a plan"]),
        ("none.onnx", [], ["does not exist; expected an ONNX file"]),
    ],
)
def test_what_cannot_be_served_is_refused(
    files: Path, tmp_path: Path, file: str, options: list[str], words: list[str]
) -> None:
    complaint(call("triton", files / file, *options, "--repository", tmp_path / "repository"), *words)
    assert left_over(tmp_path) == []


def test_what_is_no_file_of_a_model(files: Path, tmp_path: Path) -> None:
    for source, words in (("torch:t", "torch:t is no file"), (str(files / "a.onnx.json"), "is not an ONNX file")):
        complaint(call("triton", source, "--repository", tmp_path), words)
    bare = shutil.copy(files / "a.onnx", tmp_path / "bare.onnx")
    complaint(call("triton", bare, "--repository", tmp_path / "r"), "has no passport", "bare.onnx.json beside it")


def test_models_with_one_name_are_refused(files: Path, tmp_path: Path) -> None:
    done = call("triton", files / "a.plan", files / "a.onnx", "--repository", tmp_path)
    complaint(done, "two models would be called a_preprocess", "another --name")
    done = call("triton", files / "a.plan", files / "gap.plan", "--name", "x", "--repository", tmp_path)
    complaint(done, "--name x for 2 models", "one model, or no --name")
    assert left_over(tmp_path) == []


def test_without_its_onnx_file_a_plan_has_no_fallback_and_that_is_told(files: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("a.plan", "a.plan.json"):
        shutil.copy(files / name, alone)
    done = call("triton", alone / "a.plan", "--repository", tmp_path / "r")
    assert done.code == 0
    assert "no CPU can serve" in done.err
    assert left_over(tmp_path / "r" / "a") == ["1", "config.pbtxt", "labels.txt", "warmup"]
    onnx_file(alone / "a.onnx", seed=1)
    done = call("triton", alone / "a.plan", "--name", "b", "--repository", tmp_path / "r")
    assert "is not what a.plan was built from" in done.err


def test_labels(files: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps(["rot", "grün", "gelb", "weiß", "a\tb"]), encoding="utf-8")
    write(tmp_path / "r", files / "a.plan", "--labels", labels)
    assert (tmp_path / "r/a/labels.txt").read_text(encoding="utf-8") == "rot\ngrün\ngelb\nweiß\na\tb\n"
    for content, words in (
        (["a"] * 4, "--labels has 4 labels; expected 5, one for each class"),
        (["a", "b\nc", "d", "e", "f"], "label 1 is 'b\\nc'; expected one line of text"),
        (["a", "b", "c", "d", " "], "label 4 is ' '; expected one line of text"),
    ):
        labels.write_text(json.dumps(content), encoding="utf-8")
        complaint(call("triton", files / "a.onnx", "--labels", labels, "--repository", tmp_path / "s"), words)
    with labels.open("wb") as file:
        file.truncate(1 << 30)
    done = call("triton", files / "a.onnx", "--labels", labels, "--repository", tmp_path / "s")
    complaint(done, "is larger than 64 MiB")


def test_labels_that_are_not_given_again_are_kept(files: Path, tmp_path: Path) -> None:
    root, labels = tmp_path / "r", tmp_path / "labels.txt"
    labels.write_text("zero\none\ntwo\nthree\nfour\n", encoding="utf-8")
    write(root, files / "a.onnx", "--labels", labels)
    done = call("triton", onnx_file(tmp_path / "a.onnx", seed=1), "--repository", root, "--json")
    assert (done.code, done.document["kept_labels"]) == (0, ["a"])
    assert {each["model"]: each["version"] for each in done.document["models"]}["a"] == 2
    assert (root / "a/labels.txt").read_bytes() == labels.read_bytes()
    assert json.loads((root / "a_rank/1/ranking.json").read_text())["labels"][0] == "zero"
    done = call("triton", onnx_file(tmp_path / "a.onnx", seed=2), "--repository", root)
    assert "a keeps its labels: --labels was not given" in done.out
    (root / "a/labels.txt").write_text("zero\none\n", encoding="utf-8")
    done = call("triton", onnx_file(tmp_path / "a.onnx", seed=3), "--repository", root)
    complaint(done, "it has 2 labels for 5 classes")


def test_a_new_version_comes_beside_the_old_one(files: Path, tmp_path: Path) -> None:
    root = tmp_path / "r"
    write(root, files / "a.onnx")
    before = (root / "a/1/model.onnx").stat()
    newer = onnx_file(tmp_path / "a.onnx", seed=1)
    assert write(root, newer) == {"a_preprocess": 1, "a_rank": 1, "a": 2, "a_classify": 1}
    assert (root / "a/1/model.onnx").stat() == before
    assert sha256(root / "a/2/model.onnx") == sha256(newer)
    assert write(root, newer)["a"] == 2  # it is there already
    assert write(root, files / "a.onnx")["a"] == 3  # back to the first, which is not the newest
    assert write(root, newer, "--version", "9")["a"] == 9
    done = call("triton", newer, "--version", "3", "--repository", root)
    complaint(done, "--version 3 of a is there already", "expected 10 or more", "never overwritten")


def test_new_settings_are_told_and_make_no_version(files: Path, tmp_path: Path) -> None:
    write(tmp_path, files / "a.plan", "--no-ensemble")
    done = call("triton", files / "a.plan", "--no-ensemble", "--instances", "2", "--repository", tmp_path, "--json")
    (placed,) = done.document["models"]
    assert (placed["version"], placed["change"]) == (1, "new settings")
    assert placed["settings"] == ["dynamic_batching", "instance_group"]
    assert "warning: a had another dynamic_batching, instance_group" in done.err
    assert config(tmp_path, "a").instance_group[0].count == 2
    assert left_over(tmp_path / "a") == ["1", "config.pbtxt", "configs", "labels.txt", "warmup"]


def test_a_version_that_clients_would_not_understand_is_refused(files: Path, tmp_path: Path) -> None:
    root = tmp_path / "r"
    write(root, files / "a.onnx")
    six = onnx_file(tmp_path / "a.onnx", classes=6)
    done = call("triton", six, "--repository", root)
    complaint(done, "r/a has output logits FP32 [5], and the new version logits FP32 [6]", "another --name")
    complaint(call("triton", files / "a.plan", "--repository", root), "has platform onnxruntime_onnx", "tensorrt_plan")
    labels = tmp_path / "labels.txt"
    labels.write_text("0\n1\n2\n3\nvier\n", encoding="utf-8")
    done = call("triton", files / "a.onnx", "--labels", labels, "--repository", root)
    complaint(done, "labels.txt differs from what is new: label 4 is '4', and now 'vier'")
    preprocessing = ModelSpec.from_dict(model_spec()).preprocessing.to_dict() | {"std": [1, 1, 1]}
    other = onnx_file(tmp_path / "a.onnx", preprocessing=preprocessing)
    complaint(call("triton", other, "--repository", root), "preprocessing.json differs", "another preprocessing")
    assert left_over(root / "a") == ["1", "config.pbtxt", "configs", "labels.txt", "warmup"]


def test_what_a_server_would_refuse_changes_nothing(files: Path, tmp_path: Path) -> None:
    root = tmp_path / "r"
    write(root, plan_file(tmp_path / "a.plan", files / "a.onnx", Profile(1, 8, 16)), "--no-ensemble")
    (before,) = [path.read_bytes() for path in [root / "a/config.pbtxt"]]
    newer = plan_file(tmp_path / "a.plan", files / "a.onnx", Profile(1, 8, 32))
    done = call("triton", newer, "--no-ensemble", "--repository", root)  # the old version takes no batch of 32
    complaint(done, "Triton would fail on", "a/1 takes batches of 1 to 16", "max_batch_size is 32", code=1)
    assert left_over(root / "a") == ["1", "config.pbtxt", "labels.txt", "warmup"]
    assert (root / "a/config.pbtxt").read_bytes() == before
    write(root, newer, "--no-ensemble", "--max-batch", "16")


@pytest.mark.parametrize("batches", [(32, 16), (16, 32)])
def test_at_no_moment_is_a_batch_allowed_that_a_model_does_not_take(
    batches: tuple[int, int], files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that polls sees the repository after each step of the writer."""
    root = tmp_path / "r"
    first = plan_file(tmp_path / "first.plan", files / "a.onnx", Profile(1, 8, 32))
    second = plan_file(tmp_path / "second.plan", files / "a.onnx", Profile(1, 8, batches[1]), level=5)
    write(root, first, "--name", "a", "--max-batch", str(batches[0]))
    found, steps = [], 0

    def watched(step: Any) -> Any:
        def take(staged: Path, target: Path) -> None:
            nonlocal steps
            step(staged, target)
            steps += 1
            seen = lint(read_repository(root)).errors
            found.extend(each for each in seen if each.rule in ("batch-profile", "ensemble-batch"))

        return take

    monkeypatch.setattr(placing, "place", watched(placing.place))
    monkeypatch.setattr(placing, "update", watched(placing.update))
    assert write(root, second, "--name", "a")["a"] == 2
    assert steps > 4
    assert found == []
    assert config(root, "a_classify").max_batch_size == batches[1]


def test_a_fallback_that_is_there_needs_an_onnx_file_in_each_version(files: Path, tmp_path: Path) -> None:
    root, alone = tmp_path / "r", tmp_path / "alone"
    write(root, files / "a.plan", "--no-ensemble")
    alone.mkdir()
    plan_file(alone / "a.plan", files / "a.onnx", Profile(1, 1, 32))
    done = call("triton", alone / "a.plan", "--no-ensemble", "--repository", root)
    complaint(done, "a/2 has no model.onnx, which configs/cpu.pbtxt serves", code=1)
    assert "warning: no CPU can serve" in done.err


def test_faults_of_others_do_not_stop_a_writer(files: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.pbtxt").write_text("name: {")
    write(tmp_path, files / "a.plan")
    assert call("triton-lint", tmp_path).code == 1


@pytest.mark.parametrize("name", [".git", "a", "digits", ".other.tmp"])
def test_a_folder_that_is_no_model_is_no_place_for_a_repository(files: Path, tmp_path: Path, name: str) -> None:
    root = tmp_path / "r"
    write(root, files / "a.onnx", "--name", "b", "--no-ensemble")
    (root / name).mkdir()
    (root / "zzz").mkdir()
    before = left_over(root)
    done = call("triton", files / "a.onnx", "--repository", root)
    complaint(done, f"{root / name} is no model", "expected a folder of models alone", "give another --repository")
    assert left_over(root) == before
    assert left_over(root / name) == []
    assert left_over(tmp_path) == ["r"]


def killed_at(step: int, root: Path, file: Path) -> None:
    """Write, and die as by kill -9 before the folder of that number becomes visible."""
    place, seen = placing.place, []

    def count(staged: Path, target: Path) -> None:
        if len(seen) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        seen.append(target)
        place(staged, target)

    placing.place = count
    write_repository([str(file)], root, serving=Serving())


def test_a_writer_that_is_killed_leaves_whole_models(files: Path, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    order = ["a_preprocess", "a_rank", "a", "a_classify"]
    for step in range(len(order)):
        root = tmp_path / str(step) / "r"
        root.parent.mkdir()
        child = fork.Process(target=killed_at, args=(step, root, files / "a.plan"))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert left_over(root) == sorted(order[:step])
        assert lint(read_repository(root)).findings == ()
        assert len(left_over(root.parent)) == 2  # the repository, and what was not ready, beside it
        write(root, files / "a.plan")
        assert left_over(root) == sorted(order)
        assert left_over(root / "a")[0] == "1"
        assert left_over(root.parent) == ["r"]


def test_two_writers_get_a_version_each(files: Path, tmp_path: Path) -> None:
    sources = [onnx_file(tmp_path / f"{seed}.onnx", seed=seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda file: write_quietly(tmp_path / "r", file, name="a"), sources))
    assert sorted(each["a"] for each in done) == [1, 2, 3, 4]
    for source, each in zip(sources, done, strict=True):
        assert sha256(tmp_path / "r/a" / str(each["a"]) / "model.onnx") == sha256(source)


def test_a_folder_that_appears_meanwhile_is_left_as_it_is(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a file system has no locks."""
    place = placing.place

    def race(staged: Path, target: Path) -> None:
        (target / "theirs").mkdir(parents=True)
        place(staged, target)

    monkeypatch.setattr(placing, "place", race)
    with pytest.raises(OutputError, match="r/a appeared meanwhile; type the command again"):
        write_quietly(tmp_path / "r", files / "a.onnx")
    assert left_over(tmp_path / "r" / "a") == ["theirs"]


def test_where_nothing_locks_that_is_told(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    done = call("triton", files / "a.onnx", "--repository", tmp_path / "r")
    assert done.code == 0
    assert f"warning: the file system of {tmp_path / 'r'} has no locks" in done.err


def test_a_file_that_vanishes_is_no_fault_of_the_repository(tmp_path: Path) -> None:
    gone = tmp_path / "gone.onnx"
    with pytest.raises(InputError, match=r"gone\.onnx cannot be read any more \(No such file") as caught:
        triton_write(tmp_path / "r", [served(path=gone, onnx=gone)], Serving(ensemble=False))
    assert not isinstance(caught.value, OutputError)
    assert left_over(tmp_path) == []


def test_a_full_disk_leaves_nothing(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    done = call("triton", files / "a.onnx", "--repository", tmp_path / "r")
    complaint(done, f"no space left to write {tmp_path / 'r'}", "another --repository")
    assert left_over(tmp_path) == []


def test_places_that_cannot_be_written(files: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "r"):
        complaint(call("triton", files / "a.onnx", "--repository", place), "is no folder")
    with unprivileged(), pytest.raises(OutputError, match=r"cannot be written \(Permission denied: "):
        triton_write(tmp_path / "r", [served()], Serving(ensemble=False))


def test_where_only_the_repository_can_be_written_it_is_staged_there(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "r"
    root.mkdir()
    mkdir, write, seen = os.mkdir, placing.write, []

    def refuse_beside(path: Path, *rest: Any) -> None:
        if Path(path).parent == tmp_path:
            raise PermissionError(errno.EACCES, "Permission denied")
        mkdir(path, *rest)

    def watch(folder: Path, content: Any) -> None:
        seen.append(folder)
        write(folder, content)

    monkeypatch.setattr(os, "mkdir", refuse_beside)
    monkeypatch.setattr(placing, "write", watch)
    write_quietly(root, files / "a.onnx")
    assert seen
    assert all(folder.is_relative_to(root) for folder in seen)
    assert left_over(root) == ["a"]


PROFILES = st.lists(st.tuples(*[st.integers(1, 12)] * 2), min_size=1, max_size=4)


def profiles_of(pairs: list[tuple[int, int]]) -> tuple[Profile, ...]:
    return tuple(Profile(min(pair), max(pair), max(pair)) for pair in pairs)


def served(**more: Any) -> Served:
    spec = ModelSpec.from_dict(model_spec())
    known: dict[str, Any] = {
        **{"name": "a", "kind": "onnx", "path": Path("a.onnx"), "sha256": "ab" * 32, "onnx": None, "spec": spec},
        **{"preprocessing": spec.preprocessing, "outputs": {"logits": (5,)}, "batch": None},
        **{"profiles": (), "signed_int8": False, "labels": None},
    }
    return Served(**known | more)


@given(PROFILES, st.none() | st.integers(1, 20))
def test_a_limit_never_allows_a_batch_that_is_in_no_profile(pairs: list[tuple[int, int]], asked: int | None) -> None:
    profiles = profiles_of(pairs)
    takes = {batch for profile in profiles for batch in range(profile.minimum, profile.maximum + 1)}
    assert covered(profiles) == next(batch for batch in range(14) if batch + 1 not in takes)
    try:
        most = limit(served(kind="plan", profiles=profiles), asked)
    except (OptionError, PlanError):
        assert not set(range(1, (asked or max(takes)) + 1)) <= takes
    else:
        assert set(range(1, most + 1)) <= takes
        assert most == (asked or max(takes))


@given(st.text(max_size=120))
def test_every_file_has_a_name_that_triton_takes(stem: str) -> None:
    if stem.replace("/", "").strip("."):
        require_name(name_of(Path(stem.replace("/", "_").replace("\0", "_"))))
    assert name_of(Path("sepvit_t.fp16.plan")) == "sepvit_t.fp16"


@given(
    batch=st.none() | st.integers(1, 64),
    labels=st.none() | st.lists(st.text(min_size=1, max_size=9), min_size=5, max_size=5).map(tuple),
    serving=st.builds(
        Serving,
        instances=st.integers(1, 64),
        queue_delay_us=st.integers(0, 10_000_000),
        cuda_graphs=st.booleans(),
    ),
    most=st.integers(1, 4096),
)
def test_every_config_reads_back_as_itself(batch: int | None, labels: Any, serving: Serving, most: int) -> None:
    profiles = () if batch else (Profile(1, 1, most),)
    model = served(kind="plan", batch=batch, profiles=profiles, labels=labels)
    for make in (
        configs.of_model,
        configs.of_model_on_cpu,
        configs.of_preprocess,
        configs.of_rank,
        configs.of_ensemble,
    ):
        made = make(model, serving)
        assert parse(as_text(made, ("a comment: { [", ""))) == made
        assert all(warmup.batch_size <= max(1, made.max_batch_size) for warmup in made.model_warmup)


def test_what_every_range_of_sizes_takes_is_covered() -> None:
    lying, standing = Profile.parse("1,1,8@32x32,512x512,512x2048"), Profile.parse("1,1,4@32x32,512x512,2048x512")
    assert covered((lying, standing)) == 4
    assert covered((lying, standing, Profile.parse("5,5,6@32x32,512x512,2048x512"))) == 6
    assert covered((lying, Profile.parse("2@64x64"))) == 0
