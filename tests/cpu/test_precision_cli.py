"""The commands about precision as a stranger meets them, on one exported SepViT-Lite and a dozen pictures."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from safetensors.torch import save_file

from sepvit_deploy.artifact import read_passport, sha256
from sepvit_deploy.deployment import (
    DeploymentSpec,
    EngineSpec,
    WeightsSpec,
    default_spec,
)
from sepvit_deploy.graph import load_graph
from sepvit_deploy.model.build import build_model
from sepvit_deploy.model.checkpoint import published_state_dict
from sepvit_deploy.pipeline import checking, deploying, exporting
from sepvit_deploy.plans import read_plan
from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner
from sepvit_deploy.spec_file import read_spec, spec_text
from tests.cpu.commands import PHOTO, Done, call, certified, changed, classifier, complaint, left_over, shift
from tests.cpu.rtx import SKIP

CLASSES = 10
COUNT = 12
ALL = ("--samples", str(COUNT))
FAST = ("--threads", "1")
UNTRAINED = "warning: this file holds random weights: "
COMMANDS = ("calibrate", "smooth", "quantize", "sensitivity", "lint", "evaluate", "deploy")
FC1 = "stages.1.blocks.0.mlp.fc1.bias"


def picture(path: Path, seed: int) -> Path:
    """A soft pattern of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(coarse).resize((256, 256), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="module")
def lite(exported: Callable[..., Path]) -> Path:
    return exported("--variant", "lite", "--num-classes", "10")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each class, two of them with two pictures."""
    folder = tmp_path_factory.mktemp("pictures") / "dozen"
    for k in range(COUNT):
        picture(folder / f"class{k % CLASSES}" / f"{k:02}.png", k)
    return folder


@pytest.fixture(scope="module")
def calibrated(lite: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    path = tmp_path_factory.mktemp("calibrated") / "lite.scales.json"
    return path, call("calibrate", lite, "--images", pictures, *ALL, *FAST, "--output", path)


@pytest.fixture(scope="module")
def scales(calibrated: tuple[Path, Done]) -> Path:
    return calibrated[0]


@pytest.fixture(scope="module")
def quantized(lite: Path, scales: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    path = tmp_path_factory.mktemp("quantized") / "lite_int8.onnx"
    return path, call("quantize", lite, "--precision", "int8", "--scales", scales, "--output", path)


@pytest.fixture(scope="module")
def int8(quantized: tuple[Path, Done]) -> Path:
    return quantized[0]


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("foreign") / "foreign.onnx")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of `lite` as somebody's training would leave them."""
    path = tmp_path_factory.mktemp("checkpoint") / "lite.safetensors"
    save_file(published_state_dict(build_model("lite", num_classes=CLASSES, seed=0)), path)
    return path


@pytest.fixture
def fast_export(lite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`lite`'s graph in the exporter's place, and one random image where comparisons take six."""
    monkeypatch.setattr(exporting, "onnx_from_torch", lambda *_, **__: load_graph(lite))
    monkeypatch.setattr(checking, "PARITY_BATCHES", (1,))


def table_with(source: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a scale table with a change in it."""
    document = json.loads(source.read_text(encoding="utf-8"))
    change(document)
    target.write_text(json.dumps(document), encoding="utf-8")
    return target


# The chain: calibrate, quantize, lint, evaluate, check


def test_calibrate_writes_a_table_and_shows_it(calibrated: tuple[Path, Done], lite: Path) -> None:
    path, done = calibrated
    assert done.code == 0, done.err
    document = json.loads(path.read_text(encoding="utf-8"))
    assert done.out.startswith(f"{len(document['tensors'])} tensors, method percentile")
    assert done.out.splitlines()[-1] == f"{path}: 12 images of dozen, batch 8"
    assert "warning: 12 images: ranges from fewer than 80 may clip what other images need" in done.err
    assert left_over(path.parent) == [path.name]
    assert document["graph_sha256"] == sha256(lite)


def test_calibrate_as_json_is_the_table(calibrated: tuple[Path, Done], lite: Path, pictures: Path) -> None:
    again = calibrated[0].with_name("again.json")
    done = call("calibrate", lite, "--images", pictures, *ALL, *FAST, "--output", again, "--json")
    assert done.code == 0, done.err
    assert again.read_bytes() == calibrated[0].read_bytes()  # equal arguments give an equal table
    again.unlink()
    document = done.document
    assert document.pop("path") == str(again)
    assert document == {k: v for k, v in json.loads(calibrated[0].read_text()).items() if k != "schema"}


def test_the_table_lies_beside_the_file_by_default(lite: Path, pictures: Path, tmp_path: Path) -> None:
    copy = certified(lite, Path(shutil.copy(lite, tmp_path / "a.onnx")))
    options = ("--samples", "1", "--batch", "1", *FAST, "--method", "minmax")
    assert call("calibrate", copy, "--images", pictures / "class5", *options).code == 0
    assert left_over(tmp_path) == ["a.onnx", "a.onnx.json", "a.scales.json"]


def test_quantize_writes_a_file_and_proves_it(quantized: tuple[Path, Done], lite: Path, scales: Path) -> None:
    path, done = quantized
    assert done.code == 0, done.err
    assert "products and convolutions: FP16: 4 Conv, 35 MatMul; INT8: 4 Conv, 50 MatMul" in done.out
    assert re.search("^54 layers in INT8 behind [0-9]+ Q/DQ pairs, kept out of it: head$", done.out, re.M)
    assert "against the FP32 file on 6 random images: SQNR " in done.out
    assert f"sepvit-deploy evaluate {path} --images DIR --against {lite.name}" in done.out
    assert left_over(path.parent) == [path.name, f"{path.name}.json"]
    passport = read_passport(path)
    assert passport is not None
    assert (passport.stage, passport.facts["precision"]) == ("quantize", "int8")
    assert [(parent.role, parent.sha256) for parent in passport.parents] == [
        ("onnx", sha256(lite)),
        ("weights", None),
        ("scales", sha256(scales)),
    ]
    assert passport.weights is not None
    assert passport.weights.is_random


def test_an_int8_file_lints(int8: Path, foreign: Path, tmp_path: Path) -> None:
    done = call("lint", int8)
    assert (done.code, done.err) == (0, "")
    assert "INT8: 4 Conv, 50 MatMul" in done.out
    document = call("lint", int8, "--json").document
    assert document["passed"] is True
    assert document["products"] == {"FP16": {"Conv": 4, "MatMul": 35}, "INT8": {"Conv": 4, "MatMul": 50}}
    assert call("lint", foreign).code == 0  # a passport is not needed
    complaint(call("lint", tmp_path / "missing.onnx"), "missing.onnx")


def test_an_int8_file_for_a_cpu_is_none_for_tensorrt(lite: Path, scales: Path, tmp_path: Path) -> None:
    path = tmp_path / "cpu.onnx"
    options = ("--precision", "int8", "--scales", scales, "--target", "cpu", "--keep", "stage0.*", "--json")
    done = call("quantize", lite, *options, "--output", path)
    assert done.code == 0, done.err
    document = done.document
    assert document["path"] == str(path)
    assert document["headroom"] is None
    assert "stage0.block0.mlp.fc1" in document["kept"]
    assert not any(name.startswith("stage0.") for name in document["quantized"])
    facts = document["passport"]["facts"]
    assert (facts["target"], facts["rest"], facts["keep"]) == ("cpu", "fp32", ["stage0.*"])
    linted = call("lint", path)
    assert linted.code == 1
    assert "TensorRT would refuse it" in linted.out
    assert call("lint", path, "--json").document["passed"] is False


def test_evaluate_against_the_fp32_file(int8: Path, lite: Path, pictures: Path) -> None:
    done = call("evaluate", int8, "--images", pictures, "--against", lite, *FAST)
    assert done.code == 0, done.err
    assert done.out.startswith(f"{int8.name} on 12 images of dozen\n")
    assert "agreement with " in done.out
    assert "McNemar's exact p = " in done.out
    accuracy = [line for line in done.out.splitlines() if "top-" in line or "right only" in line]
    assert len(accuracy) == 5
    assert all(line.endswith("(not meaningful: untrained weights)") for line in accuracy)
    assert UNTRAINED + "accuracy on them is not meaningful" in done.err


def test_evaluate_as_json(int8: Path, lite: Path, pictures: Path) -> None:
    done = call("evaluate", int8, "--images", pictures, "--against", lite, *FAST, "--json")
    document = done.document
    assert document["file"] == str(int8)
    assert (document["images"], document["classes"], document["meaningful"]) == (COUNT, CLASSES, False)
    assert document["against"]["agreement"]["images"] == COUNT
    assert document["against"]["sqnr_db"] > 20
    figures = [document["top1"], document["top5"], *(document["against"][name] for name in ("top1", "top5", "mcnemar"))]
    assert [figure["meaningful"] for figure in figures] == [False] * 5
    alone = call("evaluate", lite, "--images", pictures, "--samples", "5", *FAST, "--json").document
    assert (alone["images"], alone["against"], alone["top1"]["images"]) == (5, None, 5)


def test_check_takes_an_int8_file(int8: Path, lite: Path) -> None:
    done = call("check", int8)
    assert done.code == 0, done.err
    assert "inner tensors compared" in done.out
    assert call("check", int8, "--against", lite, "--json").document["passed"] is True


def test_predict_takes_an_int8_file(int8: Path) -> None:
    document = call("predict", int8, PHOTO, "--json").document
    assert document["meaningful"] is False
    assert len(document["predictions"][0]["classes"]) == 5


def test_fp16_shows_its_head_room(lite: Path, pictures: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    options = ("--precision", "fp16", "--images", pictures, "--samples", "3", "--output", path)
    done = call("quantize", lite, *options)
    assert done.code == 0, done.err
    assert "head-room on 3 images" in done.out
    assert re.search(r"stage[0-3]\S+ .* [1-9][0-9.]* .* [0-9]+\.png ", done.out)  # a tensor, |x|, its picture
    passport = read_passport(path)
    assert passport is not None
    headroom = passport.facts["headroom"]
    assert (headroom["images"], headroom["beyond"]) == (3, 0)
    assert 0 < headroom["largest"] < 65504
    assert Path(headroom["image"]).is_relative_to(pictures)
    assert call("lint", path).code == 0


def test_fp16_without_head_room_overflows_nothing_unseen(lite: Path, pictures: Path, tmp_path: Path) -> None:
    hot = changed(lite, tmp_path / "hot.onnx", shift(FC1, 7e4))
    before = left_over(tmp_path)
    options = ("--precision", "fp16", "--images", pictures, "--samples", "1", "--output", tmp_path / "half.onnx")
    complaint(call("quantize", hot, *options), "of hot.onnx reaches ", "65504", "class0", "--keep", code=1)
    assert left_over(tmp_path) == before


def test_smooth_computes_the_same(lite: Path, pictures: Path, scales: Path, tmp_path: Path) -> None:
    path = tmp_path / "smooth.onnx"
    done = call("smooth", lite, "--images", pictures, "--samples", "2", "--alpha", "0.7", "--output", path)
    assert done.code == 0, done.err
    lowest = float(done.out.partition("lowest SQNR of any tensor ")[2].partition(" dB")[0])
    assert lowest > 80
    assert f"sepvit-deploy calibrate {path} --images DIR" in done.out
    passport = read_passport(path)
    assert passport is not None
    assert (passport.facts["precision"], passport.facts["smooth"]["alpha"]) == ("fp32", 0.7)
    # A table is for the weights that it was made with.
    target = tmp_path / "int8.onnx"
    done = call("quantize", path, "--precision", "int8", "--scales", scales, "--output", target)
    complaint(done, "the scale table belongs to other weights", "calibrate this file")
    assert not target.exists()
    again = tmp_path / "again.onnx"
    options = ("--samples", "2", "--alpha", "0.7", "--output", again, "--json")
    document = call("smooth", lite, "--images", pictures, *options).document
    assert document["path"] == str(again)
    assert document["passport"]["sha256"] == passport.sha256


# sensitivity


@pytest.fixture(scope="module")
def spoilt(scales: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with a planted fault: what stage1's first fc1 reads is clipped to nothing."""

    def clip(document: dict[str, Any]) -> None:
        document["tensors"]["stage1.block0.norm2/LayerNormalization"]["threshold"] = 1e-3

    return table_with(scales, tmp_path_factory.mktemp("spoilt") / "spoilt.json", clip)


def test_sensitivity_finds_the_planted_fault_and_what_to_keep(lite: Path, pictures: Path, spoilt: Path) -> None:
    options = ("--samples", "2", "--agreement", "1", "--scales", spoilt, *FAST, "--json")
    done = call("sensitivity", lite, "--images", pictures, *options)
    assert done.code == 0, done.err
    assert UNTRAINED + "agreement on them is not meaningful" in done.err
    document = done.document
    assert (document["file"], document["images"], document["meaningful"]) == (str(lite), 2, False)
    assert document["rows"][0]["group"] == "stage1.fc1"
    assert document["rows"][0]["gain_db"] > 10
    assert len(document["rows"]) == 24
    assert document["everything"]["sqnr_db"] < 15
    assert document["kept"]["agreement"] == 1
    assert document["reached"] is True


def test_sensitivity_shows_the_line_to_type(
    lite: Path, pictures: Path, spoilt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sepvit_deploy.pipeline import measuring

    every = measuring.sites
    groups = ("stage0.embed", "stage1.fc1", "head")
    monkeypatch.setattr(measuring, "sites", lambda model: [site for site in every(model) if site.group in groups])
    options = ("--samples", "4", "--agreement", "1", "--scales", spoilt, "--alone", *FAST)
    done = call("sensitivity", lite, "--images", pictures, *options)
    assert done.code == 0, done.err
    assert "SQNR dB alone" in done.out
    assert "    --keep stage1.fc1\n" in done.out
    assert "suggested, " in done.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--agreement", "0"], ["--agreement 0", "above 0"]),
        (["--agreement", "1.5"], ["--agreement 1.5"]),
        (["--samples", "0"], ["--samples 0", "1 or more"]),
        (["--threads", "0"], ["--threads 0"]),
        (["--samples", "2", "--method", "median"], ["median", "percentile"]),
        ([], ["dozen holds 12 images", "expected 256, or at least 80", "--samples 12"]),
    ],
)
def test_a_mistake_in_the_use_of_sensitivity(options: list[str], words: list[str], lite: Path, pictures: Path) -> None:
    done = call("sensitivity", lite, "--images", pictures, *options)
    complaint(done, *words)
    assert done.out == ""


# Mistakes in the use of calibrate and quantize


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(command: str) -> None:
    done = call(command, "--help")
    assert (done.code, done.err) == (0, "")
    assert "--json" in done.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "median"], ["median", "entropy"]),
        (["--percentile", "50"], ["--percentile 50", "90 to 100"]),
        (["--percentile", "nan"], ["--percentile nan"]),
        (["--batch", "0"], ["--batch 0", "1 or more"]),
        (["--threads", "0"], ["--threads 0"]),
        (["--samples", "0"], ["--samples 0"]),
        (["--samples", "13"], ["dozen holds 12 images", "expected 13"]),
        (["--samples", "many"], ["--samples", "integer"]),
    ],
)
def test_a_mistake_in_the_use_of_calibrate(
    options: list[str], words: list[str], lite: Path, pictures: Path, tmp_path: Path
) -> None:
    given = options if "--samples" in options else [*ALL, *options]
    done = call("calibrate", lite, "--images", pictures, *given, "--output", tmp_path / "t.json", "--json")
    complaint(done, *words)
    assert done.out == ""
    assert left_over(tmp_path) == []


def test_pictures_that_no_range_can_be_learnt_from(lite: Path, tmp_path: Path) -> None:
    black, grey, empty, one = (tmp_path / name for name in ("black", "grey", "empty", "one"))
    for folder in (black, grey, empty, one):
        folder.mkdir()
    for k in range(3):
        Image.new("RGB", (256, 256)).save(black / f"{k}.png")
        Image.new("RGB", (256, 256), (k, k, k)).save(grey / f"{k}.png")
    picture(one / "a.png", 0)
    table = tmp_path / "t.json"
    for folder, samples, words in (
        (black, "3", ["all 3 images of black are the same", "different images"]),
        (black, "1", ["every image of black is of a single colour", "real images"]),
        (grey, "3", ["every image of grey is of a single colour"]),
        (empty, "3", ["empty", "holds no picture", ".jpg"]),
        (tmp_path / "none", "3", ["none does not exist", "a folder of pictures"]),
        (one / "a.png", "1", ["a.png is no folder", "manifest"]),
    ):
        done = call("calibrate", lite, "--images", folder, "--samples", samples, *FAST, "--output", table)
        complaint(done, *words)
        assert not table.exists()
    too_few = call("calibrate", lite, "--images", one, "--output", table)
    assert complaint(too_few).endswith("one holds 1 image; expected 512, or at least 80; --samples 1 accepts so few")
    assert call("calibrate", lite, "--images", one, "--samples", "1", *FAST, "--output", table).code == 0
    assert left_over(tmp_path) == ["black", "empty", "grey", "one", "t.json"]


def test_unreadable_pictures_are_named_and_counted_until_they_are_too_many(lite: Path, tmp_path: Path) -> None:
    folder, table = tmp_path / "damaged", tmp_path / "t.json"
    for k in range(2):
        picture(folder / f"{k}.png", k)
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:500])
    (folder / "text.png").write_text("no picture", encoding="utf-8")
    common = ("--images", folder, "--samples", "4")
    done = call("calibrate", lite, *common, *FAST, "--output", table)
    assert done.code == 0, done.err
    warnings = [line for line in done.err.splitlines() if "passed over: " in line]
    assert [Path(line.split()[3]).name for line in warnings] == ["cut.png", "text.png"]
    assert done.out.endswith(f"{table}: 2 images of damaged, batch 8, 2 unreadable ones passed over\n")
    images = json.loads(table.read_text(encoding="utf-8"))["images"]
    assert (images["samples"], images["skipped"]) == (2, 2)

    strict = call("calibrate", lite, *common, *FAST, "--max-unreadable", "1", "--output", tmp_path / "u.json")
    complaint(strict, "damaged has 2 unreadable images or more", "cut.png", "text.png", "at most 1")
    # The table's own images fit it, and what is passed over is named here, too.
    path = tmp_path / "int8.onnx"
    options = ("--precision", "int8", "--scales", table, "--images", folder, "--output", path)
    done = call("quantize", lite, *options)
    assert done.code == 0, done.err
    assert "head-room on 2 images" in done.out
    assert done.err.count("warning: passed over: ") == 2
    assert left_over(tmp_path) == ["damaged", "int8.onnx", "int8.onnx.json", "t.json"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--precision", "int8"], ["--precision int8 without --scales", "sepvit-deploy calibrate", "lite"]),
        (["--precision", "fp16", "--scales", "S"], ["--precision fp16 with --scales", "for int8 alone"]),
        (["--precision", "fp16", "--target", "cpu"], ["--precision fp16 with options of int8"]),
        (["--precision", "fp16", "--attention"], ["--precision fp16 with options of int8"]),
        (["--precision", "fp16", "--rest", "fp32"], ["--precision fp16 with options of int8"]),
        (["--precision", "fp16", "--keep", "nothing.*"], ["--keep 'nothing.*' matches nothing", "such as 'stage"]),
        (["--precision", "fp16", "--samples", "3"], ["--samples without --images"]),
        (["--precision", "fp8"], ["--precision", "fp8"]),
        ([], ["--precision"]),
        (["--precision", "int8", "--scales", "S", "--samples", "3", "--images", "P"], ["--samples", "with --scales"]),
        (["--precision", "int8", "--scales", "S", "--keep", "stage9.*"], ["--keep 'stage9.*' matches nothing"]),
        (["--precision", "int8", "--scales", "S", "--keep", "*"], ["--keep '*' leaves nothing to quantise", "FP16"]),
        (["--precision", "int8", "--scales", "S", "--target", "cpu", "--rest", "fp16"], ["--target cpu with --rest"]),
        (["--precision", "int8", "--scales", "S", "--target", "cpu", "--attention"], ["--target cpu with --attention"]),
        (["--precision", "int8", "--scales", "S", "--attention"], ["no range for", "calibrate again"]),
        (["--precision", "int8", "--scales", "S", "--target", "gpu"], ["--target", "gpu"]),
        (["--precision", "int8", "--scales", "S", "--rest", "int8"], ["--rest", "int8"]),
        (["--precision", "int8", "--scales", "missing.json"], ["missing.json does not exist", "calibrate"]),
        (["--precision", "fp16", "--images", "missing"], ["missing does not exist"]),
        (["--precision", "fp16", "--images", "P"], ["dozen holds 12 images", "--samples 12 accepts so few"]),
    ],
)
def test_a_mistake_in_the_use_of_quantize(
    options: list[str], words: list[str], lite: Path, scales: Path, pictures: Path, tmp_path: Path
) -> None:
    given = [{"S": str(scales), "P": str(pictures)}.get(option, option) for option in options]
    done = call("quantize", lite, *given, "--output", tmp_path / "new.onnx", "--json")
    complaint(done, *words)
    assert done.out == ""
    assert left_over(tmp_path) == []


def _zero(document: dict[str, Any]) -> None:
    document["tensors"]["images"]["threshold"] = 0


def _without_the_image(document: dict[str, Any]) -> None:
    del document["tensors"]["images"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_zero, "tensors.images.threshold is 0.0; expected above 0"),
        (_without_the_image, "has no range for 1 of the tensors, the first images"),
        (lambda d: d.update(weights_sha256="0" * 64), "belongs to other weights (SHA-256 000000000000...)"),
        (lambda d: d.update(schema=2), "schema is 2; expected 1"),
        (lambda d: d.update(method="magic"), "method is 'magic'"),
        (lambda d: d["preprocessing"].update(mean=[0.5] * 3), "was calibrated with another preprocessing (mean)"),
    ],
)
def test_a_table_that_does_not_fit(
    change: Callable[[dict[str, Any]], None], words: str, lite: Path, scales: Path, tmp_path: Path
) -> None:
    table = table_with(scales, tmp_path / "bad.json", change)
    options = ("--precision", "int8", "--scales", table, "--output", tmp_path / "new.onnx")
    complaint(call("quantize", lite, *options), words)
    assert left_over(tmp_path) == ["bad.json"]


def test_a_table_that_is_cut_off(lite: Path, scales: Path, tmp_path: Path) -> None:
    content = scales.read_bytes()
    for name, kept in (("half.json", content[: len(content) // 2]), ("empty.json", b""), ("onnx.json", b"\x08\x09")):
        (tmp_path / name).write_bytes(kept)
        options = ("--precision", "int8", "--scales", tmp_path / name, "--output", tmp_path / "new.onnx")
        complaint(call("quantize", lite, *options), name, "is no JSON, or is cut off", "sepvit-deploy calibrate")
    assert left_over(tmp_path) == ["empty.json", "half.json", "onnx.json"]


def test_a_table_of_another_file(lite: Path, scales: Path, pictures: Path, tmp_path: Path) -> None:
    def renamed(model: onnx.ModelProto) -> None:
        model.doc_string = "the same weights in another file"

    passport = json.loads(Path(f"{lite}.json").read_text(encoding="utf-8"))
    passport["facts"]["preprocessing"]["std"] = [0.5, 0.5, 0.5]
    retrained = changed(lite, tmp_path / "retrained.onnx", shift(FC1, 0.01))
    other = changed(lite, tmp_path / "other.onnx", renamed)
    seen = certified(lite, Path(shutil.copy(lite, tmp_path / "seen.onnx")), facts=passport["facts"])
    before = left_over(tmp_path)
    for file, words in (
        (retrained, ["belongs to other weights", "calibrate this file"]),
        (other, ["belongs to another graph of the same weights", "calibrate this file"]),
        (seen, ["was calibrated with another preprocessing (std)", "expected that of seen.onnx"]),
    ):
        done = call("quantize", file, "--precision", "int8", "--scales", scales, "--output", tmp_path / "new.onnx")
        complaint(done, *words)
        complaint(call("sensitivity", file, "--images", pictures, *ALL, "--scales", scales), *words)
    complaint(
        call("evaluate", seen, "--images", pictures, "--against", lite), "lite", "prepares pictures in another way"
    )
    assert left_over(tmp_path) == before


def test_images_that_changed_since_the_calibration(lite: Path, scales: Path, pictures: Path, tmp_path: Path) -> None:
    changed_since, fewer = (Path(shutil.copytree(pictures, tmp_path / name / "dozen")) for name in ("a", "b"))
    picture(changed_since / "class3" / "03.png", 99)
    (fewer / "class3" / "03.png").unlink()
    options = ("--precision", "int8", "--scales", scales, "--output", tmp_path / "new.onnx")
    complaint(
        call("quantize", lite, *options, "--images", changed_since),
        f"dozen is not what {scales} was calibrated on (SHA-256 ",
        "expected 12 images of dozen (",
        "calibrate again, or give the images of then",
    )
    line = complaint(call("quantize", lite, *options, "--images", fewer))
    assert line == f"error: dozen holds 11 images; expected the images that {scales} was calibrated on"
    assert left_over(tmp_path) == ["a", "b"]


def test_a_table_that_ruins_the_file_is_found_before_anything_is_written(
    lite: Path, scales: Path, tmp_path: Path
) -> None:
    def ruin(document: dict[str, Any]) -> None:
        for values in document["tensors"].values():
            values["threshold"] = 1e-5

    table = table_with(scales, tmp_path / "ruin.json", ruin)
    options = ("--precision", "int8", "--scales", table, "--rest", "fp32", "--output", tmp_path / "new.onnx")
    complaint(call("quantize", lite, *options), "new.onnx", "SQNR", code=1)
    assert left_over(tmp_path) == ["ruin.json"]


# Files that a command does not take


def test_an_int8_file_is_not_lowered_again(int8: Path, scales: Path, pictures: Path, tmp_path: Path) -> None:
    again = ("--output", tmp_path / "again")
    for arguments in (
        ("quantize", int8, "--precision", "int8", "--scales", scales, *again),
        ("quantize", int8, "--precision", "fp16", *again),
        ("calibrate", int8, "--images", pictures, *ALL, *again),
        ("smooth", int8, "--images", pictures, *ALL, *again),
        ("sensitivity", int8, "--images", pictures, *ALL),
    ):
        complaint(call(*arguments), "the graph has FP16 tensors already", "give the file that export wrote")
    assert left_over(tmp_path) == []


def test_a_file_without_a_passport(foreign: Path, scales: Path, pictures: Path, tmp_path: Path) -> None:
    new = ("--output", tmp_path / "new")
    for arguments in (
        ("quantize", foreign, "--precision", "int8", "--scales", scales, *new),
        ("quantize", foreign, "--precision", "fp16", *new),
        ("calibrate", foreign, "--images", pictures, *ALL, *new),
        ("smooth", foreign, "--images", pictures, *ALL, *new),
        ("sensitivity", foreign, "--images", pictures, *ALL),
        ("evaluate", foreign, "--images", pictures),
    ):
        complaint(call(*arguments), "foreign.onnx has no passport", "expected foreign.onnx.json beside it", "export")
    assert left_over(tmp_path) == []


def test_an_output_does_not_take_the_place_of_an_input(
    lite: Path, scales: Path, pictures: Path, checkpoint: Path, tmp_path: Path
) -> None:
    file = certified(lite, Path(shutil.copy(lite, tmp_path / "a.onnx")))
    table = Path(shutil.copy(scales, tmp_path / "a.scales.json"))
    weights = Path(shutil.copy(checkpoint, tmp_path / "a.safetensors"))
    (tmp_path / "link.onnx").symlink_to("a.onnx")
    contents = {name: (tmp_path / name).read_bytes() for name in left_over(tmp_path)}
    images = ("--images", pictures, *ALL)
    int8 = ("quantize", file, "--precision", "int8", "--scales", table)
    export = ("export", "--variant", "lite", "--weights", weights, "--precision", "fp16")
    for output, arguments in (
        (file, ("calibrate", file, *images)),
        (Path(f"{file}.json"), ("calibrate", file, *images)),
        (tmp_path / "link.onnx", ("smooth", file, *images)),
        (file, ("quantize", file, "--precision", "fp16")),
        (file, int8),
        (table, int8),
        (tmp_path / "a.scales", int8),  # whose passport would be the table
        (weights, export),
    ):
        complaint(call(*arguments, "--output", output), f"{output} would overwrite ", "another file to write")
    assert {name: (tmp_path / name).read_bytes() for name in left_over(tmp_path)} == contents


def test_a_place_that_cannot_be_written(lite: Path, scales: Path, pictures: Path, tmp_path: Path) -> None:
    images = ("--images", pictures, *ALL)
    for arguments in (
        ("calibrate", lite, *images),
        ("smooth", lite, *images),
        ("quantize", lite, "--precision", "fp16"),
        ("quantize", lite, "--precision", "int8", "--scales", scales),
        ("export", "--variant", "lite", "--precision", "int8", *images),
    ):
        line = complaint(call(*arguments, "--output", tmp_path / "none" / "x.onnx"))
        assert line.endswith(f"the folder {tmp_path / 'none'} does not exist; type: mkdir -p {tmp_path / 'none'}")
        complaint(call(*arguments, "--output", tmp_path), f"{tmp_path} is a folder")
    assert left_over(tmp_path) == []


# evaluate


def test_labels_that_do_not_fit(lite: Path, pictures: Path, tmp_path: Path) -> None:
    names = [path.relative_to(pictures).as_posix() for path in sorted(pictures.rglob("*.png"))]
    for name, content, words in (
        ("short.txt", "".join(f"{name} 0\n" for name in names[1:]), ["has no label for class0/00.png"]),
        ("more.txt", "".join(f"{name} 0\n" for name in (*names, "x.png")), ["not there: x.png"]),
        ("high.txt", "".join(f"{name} 10\n" for name in names), ["00.png has the label 10", "0 to 9", "10 classes"]),
        ("words.txt", "".join(f"{name} cat\n" for name in names), ["words.txt holds no labels", "line 1"]),
        ("number.json", "5", ["number.json holds no labels"]),
        ("twice.json", f'{{"{names[0]}": 1, "{names[0]}": 2}}', ["the labels 1 and 2"]),
    ):
        (tmp_path / name).write_text(content, encoding="utf-8")
        complaint(call("evaluate", lite, "--images", pictures, "--labels", tmp_path / name, *FAST), *words)
    complaint(call("evaluate", lite, "--images", pictures, "--labels", tmp_path / "none.txt"), "none.txt")


def test_labels_of_a_file_count(lite: Path, pictures: Path, tmp_path: Path) -> None:
    few = Path(shutil.copytree(pictures / "class0", tmp_path / "few"))
    best = call("predict", lite, *sorted(few.iterdir()), "--top", "1", "--json").document["predictions"]
    right = {Path(row["image"]).name: row["classes"][0]["class"] for row in best}
    (tmp_path / "labels.json").write_text(json.dumps(right), encoding="utf-8")
    options = ("--images", few, "--labels", tmp_path / "labels.json", *FAST, "--json")
    assert call("evaluate", lite, *options).document["top1"]["count"] == len(right) == 2


def test_class_folders_that_are_not_the_models_classes(lite: Path, int8: Path, pictures: Path, tmp_path: Path) -> None:
    fewer = Path(shutil.copytree(pictures, tmp_path / "fewer"))
    shutil.rmtree(fewer / "class9")
    complaint(
        call("evaluate", lite, "--images", fewer, *FAST),
        "fewer has 9 class folders and ",
        "has 10 classes",
        "a folder for each class",
        "--labels FILE",
    )
    shutil.rmtree(fewer / "class8")
    (fewer / "class8").mkdir()
    complaint(call("evaluate", lite, "--images", fewer, *FAST), "class8 holds no picture")
    flat = pictures / "class0"
    complaint(call("evaluate", lite, "--images", flat), "class0 has no labels", "--against FILE")
    done = call("evaluate", lite, "--images", flat, "--against", int8, *FAST)
    assert done.code == 0, done.err
    assert "top-1" not in done.out
    assert "agreement with " in done.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--batch", "0"], ["--batch 0"]),
        (["--threads", "0"], ["--threads 0"]),
        (["--samples", "13"], ["dozen holds 12 images", "13"]),
        (["--samples", "0"], ["--samples 0"]),
        (["--against", "none.onnx"], ["none.onnx"]),
    ],
)
def test_a_mistake_in_the_use_of_evaluate(options: list[str], words: list[str], lite: Path, pictures: Path) -> None:
    done = call("evaluate", lite, "--images", pictures, *options, "--json")
    complaint(done, *words)
    assert done.out == ""


def test_two_files_of_other_classes(lite: Path, foreign: Path, pictures: Path) -> None:
    done = call("evaluate", lite, "--images", pictures, "--against", foreign, *FAST)
    complaint(done, "foreign.onnx has 5 classes", "expected 10")


def test_an_evaluation_that_was_interrupted_goes_on(
    lite: Path, int8: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = tmp_path / "progress.jsonl"
    arguments = ("evaluate", lite, "--images", pictures, "--batch", "4", *FAST, "--json")
    expected = call(*arguments).document
    run, seen = OnnxRuntimeRunner.run, []

    def interrupted(self: OnnxRuntimeRunner, images: np.ndarray) -> dict[str, np.ndarray]:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(len(images))
        return run(self, images)

    monkeypatch.setattr(OnnxRuntimeRunner, "run", interrupted)
    done = call(*arguments, "--resume", progress)
    assert (done.code, done.out) == (130, "")
    assert left_over(tmp_path) == [progress.name]
    kept = progress.read_bytes()

    complaint(call("evaluate", int8, *arguments[2:], "--resume", progress), "the progress of other work", "model")
    complaint(call("evaluate", lite, "--images", pictures / "class0", "--against", int8, "--resume", progress), "other")
    complaint(call(*arguments, "--resume", lite), "holds no progress of an earlier run")
    assert progress.read_bytes() == kept

    seen[:] = []
    assert call(*arguments, "--resume", progress).document == expected
    assert seen == [4]
    assert left_over(tmp_path) == []


# export to a lower precision


@pytest.mark.usefixtures("fast_export")
def test_export_goes_on_to_int8(pictures: Path, tmp_path: Path) -> None:
    path = tmp_path / "lite.onnx"
    options = ("--num-classes", "10", "--no-simplify", "--precision", "int8", "--images", pictures, *ALL)
    done = call("export", "--variant", "lite", *options, "--keep", "stage0.*", "--output", path, "--json")
    assert done.code == 0, done.err
    document = done.document
    assert document["path"] == str(path)
    assert document["passport"]["facts"]["keep"] == ["stage0.*"]
    assert document["passport"]["facts"]["precision"] == "int8"
    assert left_over(tmp_path) == [
        "lite.onnx",
        "lite.onnx.json",
        "lite.scales.json",
        "lite_fp32.onnx",
        "lite_fp32.onnx.json",
    ]
    assert done.err.count("ranges from fewer than 80") == 1
    assert "warning: no --weights: random weights" in done.err


@pytest.mark.usefixtures("fast_export")
def test_export_goes_on_to_fp16(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--num-classes", "10", "--no-simplify", "--precision", "fp16", "--images", pictures, "--samples", "2")
    done = call("export", "--variant", "lite", *options)
    assert done.code == 0, done.err
    assert "head-room on 2 images" in done.out
    files = ("sepvit_lite.onnx", "sepvit_lite_fp16.onnx")
    assert left_over(tmp_path) == sorted((*files, *(f"{file}.json" for file in files)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--precision", "int8"], ["--precision int8 without --images", "--images DIR"]),
        (["--images", "P"], ["with --precision fp32", "--precision fp16 or int8"]),
        (["--keep", "stage0.*"], ["with --precision fp32"]),
        (["--samples", "0"], ["with --precision fp32"]),
        (["--precision", "int4"], ["--precision", "int4"]),
        (["--precision", "int8", "--images", "none"], ["none does not exist"]),
        (["--precision", "int8", "--images", "P"], ["dozen holds 12 images", "--samples 12"]),
        (["--precision", "fp16", "--images", "P", "--samples", "0"], ["--samples 0"]),
        (["--precision", "int8", "--images", "P", "--samples", "2", "--method", "median"], ["median", "entropy"]),
    ],
)
def test_export_refuses_what_cannot_be_lowered_before_it_begins(
    options: list[str], words: list[str], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [{"P": str(pictures)}.get(option, option) for option in options]
    done = call("export", "--variant", "lite", *given, "--json")
    complaint(done, *words)
    assert (done.out, done.err.count("\n")) == ("", 1)
    assert left_over(tmp_path) == []


# deploy


def spec_for(checkpoint: Path, pictures: Path, precision: str = "int8", **precisions: Any) -> DeploymentSpec:
    spec = default_spec("lite", precision)  # type: ignore[arg-type]
    return replace(
        spec,
        name="mine",
        model=replace(spec.model, num_classes=CLASSES),
        weights=WeightsSpec(str(checkpoint), sha256(checkpoint)),
        export=replace(spec.export, simplify=False),
        precision=replace(spec.precision, **precisions),
        calibration=replace(spec.calibration, images=str(pictures), samples=4),
        acceptance=replace(spec.acceptance, agreement=0.5),
    )


def spec_file(folder: Path, spec: DeploymentSpec) -> Path:
    path = folder / "mine.toml"
    path.write_text(spec_text(spec), encoding="utf-8")
    return path


def pair(*names: str) -> list[str]:
    """Names of files and of their passports."""
    return sorted(each for name in names for each in (name, f"{name}.json"))


@pytest.mark.usefixtures("fast_export")
def test_deploy_carries_a_spec_out(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    path = spec_file(tmp_path, spec_for(checkpoint, pictures, smooth=0.5, keep=("stage3.fc2",)))
    out = tmp_path / "new" / "build"
    done = call("deploy", path, "--out", out, "--json")
    assert done.code == 0, done.err
    document = done.document
    assert (document["name"], document["path"]) == ("mine", str(out / "mine.onnx"))
    assert [(step["stage"], step["done"]) for step in document["steps"]] == [
        ("export", True),
        ("smooth", True),
        ("calibrate", True),
        ("precision", True),
        ("acceptance", True),
        ("engine", False),
    ]
    assert left_over(out) == sorted([*pair("mine.onnx", "mine_fp32.onnx", "mine_smooth.onnx"), "mine.scales.json"])
    assert done.err.count("ranges from fewer than 80") == 1
    passport = read_passport(out / "mine.onnx")
    assert passport is not None
    assert passport.facts["keep"] == ["stage3.fc2"]
    assert passport.facts["smooth"]["alpha"] == 0.5
    assert passport.weights is not None
    assert passport.weights.sha256 == sha256(checkpoint)
    found = call("evaluate", out / "mine.onnx", "--images", pictures, "--samples", "2", *FAST)
    assert found.code == 0, found.err
    assert "not meaningful" not in found.out + found.err  # a checkpoint counts as trained


@pytest.mark.usefixtures("fast_export")
def test_what_init_prints_can_be_deployed(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    printed = call("init", "lite", "fp16")
    assert (printed.code, printed.err) == (0, "")
    (tmp_path / "my.toml").write_text(printed.out, encoding="utf-8")
    assert read_spec(tmp_path / "my.toml") == default_spec("lite", "fp16")
    text = printed.out.replace("num_classes = 1000", "num_classes = 10").replace("samples = 512", "samples = 2")
    (tmp_path / "my.toml").write_text(text.replace("simplify = true", "simplify = false"), encoding="utf-8")
    out = tmp_path / "build"
    done = call("deploy", tmp_path / "my.toml", "--weights", checkpoint, "--images", pictures, "--out", out)
    assert done.code == 0, done.err
    assert done.out.rstrip().endswith(f"{out / 'sepvit_lite_fp16.onnx'}: made; NOT done: engine")
    assert "FP16, largest |x| " in done.out
    assert left_over(out) == pair("sepvit_lite_fp16.onnx", "sepvit_lite_fp16_fp32.onnx")


@pytest.mark.usefixtures("fast_export")
def test_deploy_of_fp32_ends_with_the_export(checkpoint: Path, tmp_path: Path) -> None:
    spec = spec_for(checkpoint, tmp_path, "fp32")
    path = spec_file(tmp_path, replace(spec, calibration=replace(spec.calibration, images="")))
    document = call("deploy", path, "--out", tmp_path / "build", "--json").document
    assert [(step["stage"], step["done"]) for step in document["steps"]] == [("export", True), ("engine", False)]
    assert left_over(tmp_path / "build") == pair("mine.onnx")


@SKIP
@pytest.mark.usefixtures("fast_export")
def test_deploy_goes_on_to_the_engine_where_its_builder_works(checkpoint: Path, tmp_path: Path) -> None:
    spec = replace(spec_for(checkpoint, tmp_path, "fp16"), engine=EngineSpec("rtx", ("1", "8"), level=0))
    path = spec_file(tmp_path, replace(spec, calibration=replace(spec.calibration, images="")))
    out = tmp_path / "build"
    document = call("deploy", path, "--out", out, "--json").document
    assert document["path"] == str(out / "mine.plan")
    assert document["steps"][-1]["stage"] == "engine"
    assert document["steps"][-1]["found"].startswith("mine.plan, TensorRT-RTX 1.7")
    assert left_over(out) == pair("mine.onnx", "mine.plan", "mine_fp32.onnx")
    facts = read_plan(out / "mine.plan").facts
    assert facts is not None
    assert (list(map(str, facts.profiles)), facts.level) == (["1,1,1", "8,8,8"], 0)
    climbed = call("check", path, "--out", out)
    assert climbed.code == 0, climbed.err
    assert "the ladder ends at mine.onnx: " in climbed.err
    assert "mine.plan: no NVIDIA GPU is seen here" in climbed.err
    spec = replace(spec, engine=EngineSpec("tensorrt"), calibration=replace(spec.calibration, images=""))
    last = call("deploy", spec_file(tmp_path, spec), "--out", out, "--json").document["steps"][-1]
    assert not last["done"]
    assert "no NVIDIA GPU is seen here" in last["found"]
    assert last["found"].endswith("; there, type the same command")
    assert (out / "mine.plan").exists()  # the file is the same, byte for byte
    other = replace(spec, precision=replace(spec.precision, keep=("head",)))
    done = call("deploy", spec_file(tmp_path, other), "--out", out)
    assert done.code == 0, done.err
    assert "mine.plan is not proven to be of this mine.onnx, and was removed" in done.err
    assert left_over(out) == pair("mine.onnx", "mine_fp32.onnx")


@pytest.mark.usefixtures("fast_export")
def test_a_file_that_is_not_accepted_is_taken_away(
    checkpoint: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploying, "agreement_on", lambda *_, **__: (0.75, 4))
    spec = spec_for(checkpoint, pictures)
    path = spec_file(tmp_path, replace(spec, acceptance=replace(spec.acceptance, agreement=1.0)))
    out = tmp_path / "build"
    out.mkdir()
    (out / "mine.plan").write_bytes(b"of an earlier run")
    done = call("deploy", path, "--out", out, "--json")
    complaint(
        done,
        "mine.onnx agrees with mine_fp32.onnx on 75.00% of 4 images",
        "expected 100.00%, as the spec says",
        f"it lies at {out / 'mine.refused.onnx'}",
        "sepvit-deploy sensitivity",
        code=1,
    )
    assert done.out == ""
    assert left_over(out) == sorted([*pair("mine_fp32.onnx"), "mine.refused.onnx", "mine.scales.json"])


def test_a_spec_that_cannot_be_carried_out_is_refused_before_it_begins(
    checkpoint: Path, pictures: Path, tmp_path: Path
) -> None:
    good = spec_for(checkpoint, pictures)
    out = tmp_path / "build"

    def refused(text: str, *words: str, more: tuple[str | Path, ...] = ()) -> None:
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        done = call("deploy", path, "--out", out, *more, "--json")
        complaint(done, *words)
        assert (done.out, done.err.count("\n")) == ("", 1)
        assert not out.exists()

    text = spec_text(good)
    refused(text.replace("agreement =", "agrement ="), "mine.toml: unknown key acceptance.agrement", "agreement?")
    refused(text.replace('"int8"', '"int4"'), "mine.toml: precision.type is 'int4'")
    refused("{", "mine.toml is no deployment spec")
    digest = good.weights.sha256
    refused(
        text.replace(digest, "0" * 64), f"has SHA-256 {digest[:12]}...", "expected 000000000000...", "weights.sha256"
    )
    refused(text.replace("lite.safetensors", "none.pth"), "none.pth is no file", "--weights FILE")
    refused(spec_text(replace(good, weights=WeightsSpec())), "mine names no weights", "--weights FILE")
    unseen = replace(good, calibration=replace(good.calibration, images=""))
    refused(spec_text(unseen), "mine names no images", "--images DIR")
    refused(text, "nowhere does not exist", more=("--images", tmp_path / "nowhere"))
    refused(text.replace("samples = 4", "samples = 512"), "dozen holds 12 images")
    relative = replace(good, calibration=replace(good.calibration, images="mine.toml.d/pictures"))
    refused(spec_text(relative), f"{tmp_path / 'mine.toml.d' / 'pictures'} does not exist")
    complaint(call("deploy", tmp_path / "none.toml", "--out", out), "none.toml is no deployment spec", "init t int8")
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    complaint(call("deploy", tmp_path / "mine.toml", "--out", tmp_path / "mine.toml"), "cannot be made", "--out")
    assert left_over(tmp_path) == ["mine.toml"]


def test_a_checkpoint_of_other_classes(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    spec = spec_for(checkpoint, pictures)
    path = spec_file(tmp_path, replace(spec, model=replace(spec.model, num_classes=11)))
    complaint(call("deploy", path, "--out", tmp_path / "build"), "lite.safetensors", "10", "11")
    assert left_over(tmp_path / "build") == []


def test_a_mistake_in_the_use_of_init() -> None:
    for arguments, words in (
        (("xl", "int8"), ["'xl'", "lite, t, s, b"]),
        (("t", "int4"), ["'int4'", "fp32, fp16, int8"]),
        (("t",), ["'precision'", "--help"]),
    ):
        done = call("init", *arguments)
        complaint(done, *words)
        assert done.out == ""
