"""The linter of Triton's repositories: each rule finds its planted fault, what we write breaks none, nothing is run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sepvit_deploy.building import Profile
from sepvit_deploy.triton import RULES, lint, read_repository
from sepvit_deploy.triton.messages import as_text, parse, schema
from tests.cpu.commands import call, complaint
from tests.unit.triton_files import onnx_file, plan_file


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``colour`` from a plan with its ensemble, and ``plain`` from an ONNX file without."""
    folder = tmp_path_factory.mktemp("written")
    onnx = onnx_file(folder / "colour.onnx")
    for arguments in ([plan_file(folder / "colour.plan", onnx)], [onnx, "--name", "plain", "--no-ensemble"]):
        done = call("triton", *arguments, "--repository", folder / "repository")
        assert done.code == 0, done.err
    return folder / "repository"


@pytest.fixture
def repository(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "repository"))


CONFIG, CPU, PLAIN = "colour/config.pbtxt", "colour/configs/cpu.pbtxt", "plain/config.pbtxt"
PREPROCESS, RANK = "colour_preprocess/config.pbtxt", "colour_rank/config.pbtxt"
CLASSIFY, RANKER = "colour_classify/config.pbtxt", "colour_rank/1/model.py"
RANK_INPUT = """    input_map {
      key: "logits"
      value: "logits"
    }
"""
Plant = Callable[[Path], object]


def swap(place: str, old: str, new: str) -> Plant:
    """Change a config's text where ``old`` first stands."""

    def plant(root: Path) -> None:
        text = (root / place).read_text(encoding="utf-8")
        assert old in text, text
        (root / place).write_text(text.replace(old, new, 1), encoding="utf-8")

    return plant


def add(place: str, text: str) -> Plant:
    """More in a config, or something else in the place of what it says once."""

    def plant(root: Path) -> None:
        config = parse((root / place).read_text(encoding="utf-8"))
        config.MergeFrom(parse(text))
        (root / place).write_text(as_text(config), encoding="utf-8")

    return plant


def clear(place: str, name: str) -> Plant:
    """A config that says nothing of something."""

    def plant(root: Path) -> None:
        config = parse((root / place).read_text(encoding="utf-8"))
        config.ClearField(name)
        (root / place).write_text(as_text(config), encoding="utf-8")

    return plant


def put(place: str, content: str | bytes) -> Plant:
    return lambda root: (root / place).write_bytes(content if isinstance(content, bytes) else content.encode())


def drop(place: str) -> Plant:
    return lambda root: shutil.rmtree(root / place) if (root / place).is_dir() else (root / place).unlink()


def make(place: str) -> Plant:
    return lambda root: (root / place).mkdir()


def both(*plants: Plant) -> Plant:
    return lambda root: [plant(root) for plant in plants]


def plan(*profiles: Profile, **more: Any) -> Plant:
    """Another plan in the place of the one that is there."""
    place = "colour/1/model"
    return lambda root: plan_file(root / f"{place}.plan", root / f"{place}.onnx", *profiles, **more)


def another_plan(version: str, **more: Any) -> Plant:
    """A second model, whose plan is of another TensorRT."""

    def plant(root: Path) -> None:
        folder = shutil.copytree(root / "colour", root / "other")
        plan_file(folder / "1/model.plan", folder / "1/model.onnx", builder_version=version, **more)
        for place in ("config.pbtxt", "configs/cpu.pbtxt"):
            swap(f"other/{place}", 'name: "colour"', 'name: "other"')(root)

    return plant


def edited_passport(root: Path) -> None:
    path = root / "colour/1/model.plan.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["facts"]["engine"]["builder_version"] = "10.14.1.1"
    path.write_text(json.dumps(document), encoding="utf-8")


def link(root: Path) -> None:
    (root.parent / "secret").write_text("x")
    (root / "colour/1/more").symlink_to(root.parent / "secret")


def another_file(root: Path) -> None:
    onnx_file(root / "colour/1/x", seed=1).rename(root / "colour/1/model.onnx")


GRAPH_OF_33 = "optimization { cuda { graphs: true graph_spec { batch_size: 33 } } }"
GROUP = "instance_group"
TWO_PROFILES = swap(CONFIG, "  kind: KIND_GPU", '  kind: KIND_GPU profile: ["0", "1"]')
GAP = (Profile(1, 1, 1), Profile(4, 8, 32))
JOINED = (Profile(1, 1, 4), Profile(4, 8, 32))
FAULTS: list[tuple[str, str, str, Plant]] = [
    ("config-unreadable", CONFIG, "line 1: ", put(CONFIG, "name: {")),
    ("config-unreadable", CONFIG, "not there", drop(CONFIG)),
    ("config-unreadable", CONFIG, "at most", put(CONFIG, " " * 2**21)),
    ("name-differs", CONFIG, "'color'", swap(CONFIG, 'name: "colour"', 'name: "color"')),
    ("tensor-twice", CONFIG, "output 'logits' 2", add(CONFIG, 'output { name: "logits" }')),
    ("no-instances", CONFIG, "count 0", swap(CONFIG, "  count: 1\n  kind", "  kind")),
    ("response-cache", PLAIN, "--cache-config", add(PLAIN, "response_cache { enable: true }")),
    ("unbounded-queue", PLAIN, "max_queue_size", swap(PLAIN, "    max_queue_size: 128\n", "")),
    ("cuda-graphs", CPU, "KIND_CPU", add(CPU, "optimization { cuda { graphs: true } }")),
    ("cuda-graphs", CONFIG, "batch 33, ", add(CONFIG, GRAPH_OF_33)),
    ("cpu-config", CPU, "in max_batch_size", swap(CPU, "max_batch_size: 32", "max_batch_size: 16")),
    ("cpu-config", CPU, "KIND_CPU", swap(CPU, "KIND_CPU", "KIND_GPU")),
    ("labels", "colour/labels.txt", "not there", drop("colour/labels.txt")),
    ("labels", "colour/labels.txt", "4 labels for the 5 classes", put("colour/labels.txt", "a\nb\nc\nd\n")),
    ("labels", "colour/labels.txt", "without a label", put("colour/labels.txt", "a\nb\n\nd\ne\n")),
    ("warmup-batch", CONFIG, "batch 33", swap(CONFIG, "  batch_size: 32", "  batch_size: 33")),
    ("warmup-batch", CONFIG, "batch 0", swap(CONFIG, "  batch_size: 1\n", "")),
    ("warmup-input", CONFIG, "lacks the input images", add(CONFIG, 'model_warmup { name: "w" batch_size: 1 }')),
    ("warmup-input", CONFIG, "[3, 224, 4]", swap(CONFIG, "dims: 224\n      input_data", "dims: 4\n      input_data")),
    ("warmup-data", CONFIG, "images is not there", drop("colour/warmup/images")),
    ("warmup-data", CONFIG, "has 3 bytes, expected 602112", put("colour/warmup/images", "123")),
    ("warmup-data", PREPROCESS, "holds no BYTES", put("colour_preprocess/warmup/picture", b"\7\0\0\0abc")),
    ("no-version", "colour", "no folder of a version", drop("colour/1")),
    ("version-policy", CONFIG, "version 7", add(CONFIG, "version_policy { specific { versions: [1, 7] } }")),
    ("version-file", "colour/1", "no model.plan", drop("colour/1/model.plan")),
    ("version-file", "colour_rank/1", "no model.py", drop("colour_rank/1/model.py")),
    ("python-unreadable", RANKER, "does not parse: line 2: ", put(RANKER, "import os\ndef f(:\n")),
    ("python-unreadable", RANKER, "nested too deeply", put(RANKER, "a" + ".b" * 20_000)),
    ("python-unreadable", RANKER, "nested too deeply", put(RANKER, "not " * 50_000 + "1")),
    ("python-unreadable", RANKER, "null bytes", put(RANKER, b"a\0b")),
    ("python-unreadable", RANKER, "does not parse: ", put(RANKER, b"\xff")),
    ("python-unreadable", RANKER, "at most 1048576", put(RANKER, b"#" * 2**21)),
    ("platform-file", PLAIN, "opens model.plan", add(PLAIN, 'default_model_filename: "model.plan"')),
    ("platform-file", PLAIN, "neither", swap(PLAIN, 'platform: "onnxruntime_onnx"', "")),
    ("platform-file", "colour/1", "TensorRT-RTX", plan(builder="rtx", builder_version="1.7.1.116")),
    ("stray-folder", "colour/v2", "no version", make("colour/v2")),
    ("leftover", ".colour.1a.tmp", "interrupted", make(".colour.1a.tmp")),
    ("outside", "colour/1/more", "link out", link),
    ("outside", CONFIG, "'../x'", add(CONFIG, 'default_model_filename: "../x"')),
    ("passport", "plain/1/model.onnx", "no ONNX file", put("plain/1/model.onnx", "")),
    ("passport", "colour/1/model.onnx", "of another model.onnx", another_file),
    ("passport", "colour/1/model.plan", "edited", edited_passport),
    ("passport", "colour/1/model.plan", "has no passport", drop("colour/1/model.plan.json")),
    ("no-passport", "plain/1/model.onnx", "no model.onnx.json", drop("plain/1/model.onnx.json")),
    ("tensors", PLAIN, "says logits is FP32 [-1, 6]", swap(PLAIN, "dims: 5", "dims: 6")),
    ("tensors", CONFIG, "says images is FP16", swap(CONFIG, "TYPE_FP32", "TYPE_FP16")),
    ("tensors", PLAIN, "says logit is FP32", swap(PLAIN, '"logits"', '"logit"')),
    ("batch-profile", "colour/1", "none of 33, and ", add(CONFIG, "max_batch_size: 64")),
    ("batch-profile", "colour/1", "none of 33", both(add(CONFIG, "max_batch_size: 64"), clear(CONFIG, GROUP))),
    ("batch-profile", "colour/1", "no other, and max_batch_size is 32", plan(batch=4)),
    ("batch-profile", "colour/1", "and max_batch_size is 0", swap(CONFIG, "max_batch_size: 32", "")),
    ("batch-profile", "colour/1", "batches of 1, 4 to 32 in profile 0, 1, none of 2", both(plan(*GAP), TWO_PROFILES)),
    ("batch-profile", "colour/1", "1 to 4 in profile 0, none of 5", plan(*JOINED)),
    ("batch-profile", "colour/1", "has 1 profile, and the config asks for 1", TWO_PROFILES),
    ("version-compatible", "colour/1", "--backend-config=tensorrt,version-compat", plan(version_compatible=True)),
    ("one-tensorrt", "other/1", "10.14.1, and another plan here by 10.13.3", another_plan("10.14.1.2")),
    ("ensemble-model", "colour_classify", "'colour_rank', which is not", drop("colour_rank")),
    ("ensemble-model", "colour_classify", "version 9", swap(CLASSIFY, "model_version: -1", "model_version: 9")),
    ("ensemble-model", "colour_classify", "without a step", put(CLASSIFY, 'platform: "ensemble"')),
    ("ensemble-map", "colour_classify", "gives colour_rank no logits", swap(CLASSIFY, RANK_INPUT, "")),
    ("ensemble-map", "colour_classify", "'images', which no", swap(CLASSIFY, 'value: "images"', 'value: "none"')),
    ("ensemble-map", "colour_classify", "gives score, which no", swap(CLASSIFY, 'value: "score"', 'value: "s"')),
    ("ensemble-map", "colour_classify", "none of its outputs", swap(CLASSIFY, 'key: "score"', 'key: "odd"')),
    ("ensemble-map", "colour_classify", "none of its inputs", swap(CLASSIFY, 'key: "image"', 'key: "odd"')),
    ("ensemble-types", "colour_classify", "FP32 [-1, 5] for colour", swap(RANK, "dims: 5", "dims: 6")),
    ("ensemble-batch", "colour_classify", "colour_preprocess has 8", add(PREPROCESS, "max_batch_size: 8")),
    ("ensemble-batching", "colour_rank", "a step of colour_classify", add(RANK, "sequence_batching {}")),
    ("ensemble-cycle", "colour_classify", "of itself", swap(CLASSIFY, '"colour_preprocess"', '"colour_classify"')),
    ("ensemble-cycle", "colour_classify", "wait for each other", swap(CLASSIFY, 'value: "image"', 'value: "score"')),
]  # fmt: skip


def broken(path: Path, release: str | None = None) -> list[tuple[str, str, str]]:
    return [(each.rule, each.place, each.message) for each in lint(read_repository(path, release)).findings]


@pytest.mark.parametrize(
    ("rule", "place", "words", "plant"), FAULTS, ids=[f"{rule} {words}" for rule, _, words, _ in FAULTS]
)
def test_a_rule_finds_its_fault(repository: Path, rule: str, place: str, words: str, plant: Plant) -> None:
    plant(repository)
    found = broken(repository)
    assert any(each[:2] == (rule, place) and words in each[2] for each in found), found


def test_every_rule_has_a_planted_fault() -> None:
    assert RULES.keys() == {rule for rule, *_ in FAULTS} | {"tensorrt-release"}


def test_what_we_write_breaks_no_rule(written: Path) -> None:
    assert broken(written) == []
    assert broken(written, "25.10") == []
    done = call("triton-lint", written, "--json")
    assert done.code == 0
    assert done.document == {"repository": str(written), "models": 5, "findings": []}


def test_a_release_carries_one_tensorrt(written: Path) -> None:
    (found,) = broken(written, "25.12")
    assert found[:2] == ("tensorrt-release", "colour/1")
    assert found[2].endswith("tritonserver:25.10-py3 carries; release 25.12 carries 10.14.1")


def test_a_release_that_is_not_known_is_refused_where_there_is_a_plan(repository: Path) -> None:
    done = call("triton-lint", repository, "--release", "19.01")
    complaint(done, "--release 19.01: which TensorRT it carries was not known on", "expected 25.10 or 25.12")
    for name in ("colour", "colour_classify"):
        shutil.rmtree(repository / name)
    done = call("triton-lint", repository, "--release", "19.01")
    assert done.code == 0
    assert "--release 19.01: no plan whose TensorRT is known is here, and so nothing to hold against it" in done.err


def test_a_version_compatible_plan_loads_in_a_newer_tensorrt(repository: Path) -> None:
    another_plan("10.12.0.36", version_compatible=True)(repository)
    (found,) = broken(repository)
    assert found[:2] == ("version-compatible", "other/1")  # it loads where the server is told so


def test_an_older_version_that_is_not_served_is_not_judged(repository: Path) -> None:
    for version in ("2", "3"):
        shutil.copytree(repository / "plain/1", repository / "plain" / version)
    (repository / "plain/1/model.onnx").unlink()
    assert broken(repository) == []
    (repository / "plain/2/model.onnx").unlink()
    assert ("version-file", "plain/2") in {each[:2] for each in broken(repository)}


def test_links_inside_of_the_repository_are_fine(repository: Path) -> None:
    (repository / "plain/2").symlink_to("1")
    assert broken(repository) == []


def test_what_lies_outside_is_not_read(repository: Path) -> None:
    outside = repository.parent / "outside.pbtxt"
    shutil.move(repository / "plain/config.pbtxt", outside)
    (repository / "plain/config.pbtxt").symlink_to(outside)
    found = broken(repository)
    assert ("config-unreadable", "plain/config.pbtxt", "config.pbtxt lies outside of the repository") in found
    assert "outside" in {each[0] for each in found}


def test_python_of_the_repository_is_not_run(repository: Path) -> None:
    mark = repository.parent / "ran"
    (repository / "colour_rank/1/model.py").write_text(f"open({str(mark)!r}, 'w')")
    (repository / "colour_rank/1/sepvit_deploy/__init__.py").write_text(f"open({str(mark)!r}, 'w')")
    broken(repository)
    assert not mark.exists()


def test_errors_come_first_and_fail_the_command(repository: Path) -> None:
    both(make("colour/v2"), drop("colour/labels.txt"), drop("plain/1"))(repository)
    done = call("triton-lint", repository)
    complaint(done, f"Triton would fail on {repository}: 2 errors, first plain has no folder", code=1)
    assert "5 models, 2 errors, 1 warning" in " ".join(done.out.split())
    document = call("triton-lint", repository, "--json").document
    assert [each["severity"] for each in document["findings"]] == ["error", "error", "warning"]
    assert all(each["why"] == RULES[each["rule"]].why for each in document["findings"])


def test_an_error_that_a_server_starts_with_is_not_said_to_stop_it(repository: Path) -> None:
    add(CONFIG, 'output { name: "logits" dims: 5 data_type: TYPE_FP32 }')(repository)
    (repository / "colour/configs/cpu.pbtxt").unlink()
    done = call("triton-lint", repository)
    complaint(done, f"{repository} is not fit to serve: colour/config.pbtxt names the output 'logits' 2 times", code=1)


def test_warnings_alone_pass(repository: Path) -> None:
    (repository / "colour/v2").mkdir()
    done = call("triton-lint", repository)
    assert done.code == 0
    assert "stray-folder" in done.out


def test_what_is_no_repository(tmp_path: Path) -> None:
    complaint(call("triton-lint", tmp_path / "no"), "does not exist", "a folder for each model")
    (tmp_path / "file").write_text("x")
    complaint(call("triton-lint", tmp_path / "file"), "cannot be read (Not a directory)")
    complaint(call("triton-lint", tmp_path, "--release", "25.13"), "--release '25.13'", "such as 25.10")
    (tmp_path / "empty").mkdir()
    complaint(
        call("triton-lint", tmp_path / "empty"), "empty holds no models; expected a folder with a folder for each"
    )


def test_a_folder_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sepvit_deploy.triton.repository.MAX_ENTRIES", 3)
    for k in range(5):
        (tmp_path / str(k)).write_text("")
    complaint(call("triton-lint", tmp_path), "more than 3 files", "a model repository")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_config_makes_the_linter_fail(written: Path, data: st.DataObject) -> None:
    """Fields of real configs, at random in each other's places, are findings at worst."""
    names = sorted(os.listdir(written))
    repository = read_repository(written)
    config = schema().ModelConfig()
    for _ in range(data.draw(st.integers(1, 3))):
        source = repository.models[data.draw(st.sampled_from(names))].config
        config.MergeFrom(source)
    for entry in config.DESCRIPTOR.fields:
        if data.draw(st.booleans()):
            config.ClearField(entry.name)
    if config.input and data.draw(st.booleans()):
        config.input[0].data_type = data.draw(st.sampled_from([0, 13, 99]))
        config.input[0].dims.append(data.draw(st.integers(-2, 2**40)))
    changed = parse(as_text(config))
    model = repository.models[data.draw(st.sampled_from(names))]
    (place,) = (each for each in model.configs if each.place == "config.pbtxt")
    object.__setattr__(place, "message", changed)
    for finding in lint(repository).findings:
        assert finding.rule in RULES
        assert "\n" not in finding.message
