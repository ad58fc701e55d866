"""Deployment specs: what a file may say, what it is refused for, and that those of the repository are good."""

from __future__ import annotations

import os
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepvit_deploy.deployment import (
    AcceptanceSpec,
    CalibrationSpec,
    DeploymentSpec,
    EngineSpec,
    ExportSpec,
    Method,
    ParitySpec,
    Precision,
    PrecisionSpec,
    Target,
    WeightsSpec,
    default_spec,
)
from sepvit_deploy.errors import ImageError, OptionError
from sepvit_deploy.image_sets import image_set
from sepvit_deploy.likeness import FP16, FP32, INT8, Tolerance
from sepvit_deploy.scales import read_scales
from sepvit_deploy.spec import MAX_BATCH, ModelSpec, Preprocessing
from sepvit_deploy.spec_file import read_spec, spec_from_dict, spec_text
from sepvit_deploy.variants import VARIANTS

ROOT = Path(__file__).parents[2]
SPECS = sorted((ROOT / "models").glob("*.toml"))
MANIFESTS = sorted((ROOT / "calib").glob("*.toml"))
LEAST = 'name = "a"\n[model]\nvariant = "t"\ntask = "classify"\nsize = [224, 224]\nnum_classes = 7\n'

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.floats(-1e6, 1e6)


@st.composite
def precisions(draw: st.DrawFn) -> PrecisionSpec:
    kind, target = draw(st.sampled_from(get_args(Precision))), "tensorrt"
    if kind == "int8":
        target = draw(st.sampled_from(get_args(Target)))
    return PrecisionSpec(
        type=kind,
        target=target,  # type: ignore[arg-type]
        keep=() if kind == "fp32" else tuple(draw(st.lists(TEXTS, max_size=3))),
        attention=kind == "int8" and target == "tensorrt" and draw(st.booleans()),
        smooth=draw(st.floats(0, 1)) if kind == "int8" else 0.0,
    )


ENGINES = st.builds(
    EngineSpec,
    builder=st.sampled_from(["tensorrt", "auto"]),
    profiles=st.lists(st.sampled_from(["1", "1,8,32", "64"]), max_size=3, unique=True).map(tuple),
    workspace_mb=st.integers(0, 1 << 20),
    level=st.integers(-1, 5),
    refittable=st.booleans(),
) | st.builds(EngineSpec, builder=st.just("rtx"), compute_capabilities=st.just(("8.6", "12.0")))
TOLERANCES = st.builds(Tolerance, st.floats(0, 2), st.floats(0, 200), st.floats(0, 1))


@st.composite
def specs(draw: st.DrawFn) -> DeploymentSpec:
    size = draw(st.tuples(st.integers(1, 4096), st.integers(1, 4096)))
    model = ModelSpec(draw(st.sampled_from(sorted(VARIANTS))), "dense", size, draw(st.integers(1, 1_000_000)))
    if draw(st.booleans()):
        model = replace(model, task="classify", size=(224, 224))
    export = ExportSpec(draw(st.integers(17, 21)), draw(st.integers(0, MAX_BATCH)), draw(st.booleans()))
    precision = draw(precisions())
    engine = draw(ENGINES) if precision.target == "tensorrt" else EngineSpec()
    return DeploymentSpec(
        name=draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True)),
        model=model,
        preprocessing=Preprocessing(
            model.size,
            draw(st.none() | st.integers(max(model.size), 5000)),
            mean=draw(st.tuples(NUMBERS, NUMBERS, NUMBERS)),
            std=draw(st.tuples(*[st.floats(1e-6, 1e6)] * 3)),
        ),
        weights=WeightsSpec(
            draw(TEXTS), draw(st.just("") | st.from_regex("[0-9a-f]{64}", fullmatch=True)), draw(st.booleans())
        ),
        export=export,
        precision=precision,
        calibration=CalibrationSpec(
            draw(TEXTS),
            draw(st.sampled_from(get_args(Method))),
            draw(st.floats(90, 100)),
            draw(st.integers(1, 1_000_000)),
            draw(st.integers(1, MAX_BATCH)),
        ),
        acceptance=AcceptanceSpec(draw(st.floats(0, 1))),
        engine=replace(engine, profiles=()) if export.batch else engine,
        parity=ParitySpec(*draw(st.tuples(*[TOLERANCES] * 4))),
    )


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "my.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(path: Path) -> str:
    """The one line that a spec is refused with, which begins with its file."""
    with pytest.raises(OptionError) as caught:
        read_spec(path)
    line = str(caught.value)
    assert line.startswith(str(path)), line
    assert "\n" not in line
    return line


# What is good


@given(spec=specs())
def test_every_key_survives_its_text(spec: DeploymentSpec) -> None:
    assert spec_from_dict(tomllib.loads(spec_text(spec))) == spec


def test_every_key_survives_a_file(tmp_path: Path) -> None:
    model = ModelSpec("s", "dense", (512, 768), 21)
    spec = DeploymentSpec(
        name="every-key.1",
        model=model,
        preprocessing=Preprocessing(model.size, 800, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
        weights=WeightsSpec('a "quoted"\\\n\x7f caf\u00e9 \U0001f600.pth', "0123456789abcdef" * 4, ema=True),
        export=ExportSpec(19, 0, simplify=False),
        precision=PrecisionSpec("int8", "tensorrt", ("stage0.*", "*.fc2"), attention=True, smooth=0.25),
        calibration=CalibrationSpec("../pictures", "entropy", 99.5, 100, 16),
        acceptance=AcceptanceSpec(0.5),
        engine=EngineSpec("tensorrt", ("1", "2,4,8"), 64, 3, (), True, "ampere+", True),
        parity=ParitySpec(Tolerance(1e-6, 100.0, 0.5), FP32, FP16, Tolerance(0.5, 12.5, 0.25)),
    )
    assert read_spec(written(tmp_path, spec_text(spec))) == spec


def test_the_least_spec_has_the_documented_defaults(tmp_path: Path) -> None:
    spec = read_spec(written(tmp_path, LEAST))
    assert spec == DeploymentSpec("a", spec.model, spec.model.preprocessing)
    assert spec.model == ModelSpec("t", "classify", (224, 224), 7)
    assert spec.preprocessing == Preprocessing((224, 224), 256)
    assert spec.weights == WeightsSpec("", "", ema=False)
    assert spec.export == ExportSpec(20, 0, simplify=True)
    assert spec.precision == PrecisionSpec("fp16", "tensorrt", (), attention=False, smooth=0.0)
    assert spec.calibration == CalibrationSpec("", "percentile", 99.99, 512, 8)
    assert spec.acceptance == AcceptanceSpec(0.99)
    assert spec.parity == ParitySpec(FP32, FP32, FP16, FP16)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", FP32), ("fp16", FP16), ("int8", INT8)])
def test_the_tolerances_of_a_precision(precision: Precision, tolerance: Tolerance, tmp_path: Path) -> None:
    expected = ParitySpec(FP32, FP32, tolerance, tolerance)
    read = read_spec(written(tmp_path, f"{LEAST}[precision]\ntype = '{precision}'\n"))
    assert default_spec("t", precision).parity == read.parity == ParitySpec.of(precision) == expected
    made = DeploymentSpec("a", read.model, read.preprocessing, precision=PrecisionSpec(precision))
    assert made.parity == expected


def test_a_tolerance_has_the_defaults_of_its_rung_for_what_it_leaves_out(tmp_path: Path) -> None:
    text = LEAST + "[precision]\ntype = 'int8'\n[parity]\nengine = { sqnr_db = 20 }\n[parity.onnx]\nrelative = 1e-5\n"
    found = read_spec(written(tmp_path, text)).parity
    assert found == ParitySpec(FP32, replace(FP32, relative=1e-5), INT8, replace(INT8, sqnr_db=20))


def test_a_tolerance_is_written_in_one_line() -> None:
    lines = spec_text(default_spec("t", "int8")).splitlines()
    assert lines[lines.index("[parity]") :] == [
        "[parity]",
        "rewritten = { relative = 0.0001, sqnr_db = 80.0, top1_agreement = 1.0 }",
        "onnx = { relative = 0.0001, sqnr_db = 80.0, top1_agreement = 1.0 }",
        "precision = { relative = 1.0, sqnr_db = 10.0, top1_agreement = 0.5 }",
        "engine = { relative = 1.0, sqnr_db = 10.0, top1_agreement = 0.5 }",
    ]


@pytest.mark.parametrize("precision", get_args(Precision))
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_default_spec_of_every_model(variant: str, precision: Precision, tmp_path: Path) -> None:
    spec = default_spec(variant, precision)
    text = spec_text(spec)
    assert read_spec(written(tmp_path, text)) == spec
    assert (spec.name, spec.model.variant, spec.precision.type) == (f"sepvit_{variant}_{precision}", variant, precision)
    assert text.isascii()
    document = tomllib.loads(text)
    assert document.keys() == {"name", *(table for table in document if isinstance(document[table], dict))}
    later = {"keep_ratio", "head", "output", "any_size"}  # written only where they are not what they were before
    assert all(
        document[table].keys() == vars(getattr(spec, table)).keys() - later for table in document if table != "name"
    )


@pytest.mark.parametrize(("any_size", "keep_ratio"), [(True, False), (False, True)])
def test_a_ratio_is_kept_for_any_size_alone(any_size: bool, keep_ratio: bool) -> None:
    document = tomllib.loads(LEAST.replace("classify", "dense").replace("[224, 224]", "[64, 96]"))
    document["model"]["any_size"] = any_size
    document["preprocessing"] = {"keep_ratio": keep_ratio}
    with pytest.raises(OptionError, match=f"keep_ratio is {str(keep_ratio).lower()} for a file of"):
        spec_from_dict(document)


def test_a_resize_of_0_is_no_crop(tmp_path: Path) -> None:
    straight = LEAST + "[preprocessing]\nresize_shorter = 0\n"
    spec = read_spec(written(tmp_path, straight))
    assert spec.preprocessing == Preprocessing((224, 224), None)
    assert "resize_shorter = 0\n" in spec_text(spec)
    assert read_spec(written(tmp_path, spec_text(spec))) == spec
    dense = LEAST.replace("classify", "dense").replace("[224, 224]", "[64, 96]")
    assert read_spec(written(tmp_path, dense)).preprocessing.resize_shorter is None


def test_a_whole_number_is_a_number_and_a_byte_order_mark_is_none_of_it(tmp_path: Path) -> None:
    text = LEAST + "[acceptance]\nagreement = 1\n[calibration]\npercentile = 100\n"
    spec = read_spec(written(tmp_path, b"\xef\xbb\xbf" + text.encode()))
    assert (spec.acceptance.agreement, spec.calibration.percentile) == (1, 100)


# What is not


@pytest.mark.parametrize(
    ("text", "wrong", "near"),
    [
        (LEAST.replace("[model]", "[modle]"), "modle", "model"),
        (LEAST.replace("num_classes", "num_clases"), "model.num_clases", "model.num_classes"),
        (LEAST + "[preprocessing]\nresize_shortest = 256\n", "preprocessing.resize_shortest", "resize_shorter"),
        (LEAST + "[weights]\nsha265 = ''\n", "weights.sha265", "weights.sha256"),
        (LEAST + "[export]\nbach = 8\n", "export.bach", "export.batch"),
        (LEAST + "[precision]\ntyp = 'int8'\n", "precision.typ", "precision.type"),
        (LEAST + "[calibration]\nsample = 8\n", "calibration.sample", "calibration.samples"),
        (LEAST + "[acceptance]\nagrement = 0.5\n", "acceptance.agrement", "acceptance.agreement"),
        (LEAST + "[calibrate]\nsamples = 8\n", "calibrate", "calibration"),
        (LEAST + "[parity]\nengin = { sqnr_db = 20 }\n", "parity.engin", "parity.engine"),
        (LEAST + "[parity]\nengine = { snr_db = 20 }\n", "parity.engine.snr_db", "parity.engine.sqnr_db"),
    ],
)
def test_a_typo_is_told_the_nearest_key_and_the_file(text: str, wrong: str, near: str, tmp_path: Path) -> None:
    line = refusal(written(tmp_path, text))
    assert f": unknown key {wrong};" in line
    assert line.endswith(f"{near}?")
    assert "did you mean " in line


def test_a_key_that_is_like_no_other_is_told_all_of_them(tmp_path: Path) -> None:
    line = refusal(written(tmp_path, LEAST + "[export]\nxyz = 8\n"))
    assert line.endswith("unknown key export.xyz; expected export.opset, export.batch, export.simplify")


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("", "name, model"),
        ('name = "a"\n', "model"),
        (LEAST.replace('name = "a"\n', ""), "name"),
        (LEAST.replace("num_classes = 7\n", ""), "model.num_classes"),
        ('name = "a"\n[model]\n', "model.variant, model.task, model.size, model.num_classes"),
    ],
)
def test_a_key_without_a_default_is_named_where_it_is_missing(text: str, missing: str, tmp_path: Path) -> None:
    assert f": missing: {missing}; expected " in refusal(written(tmp_path, text))


BAD_VALUES: list[tuple[str, str, Any, str]] = [
    ("weights", "file", 5, "weights.file is 5"),
    ("weights", "file", ["a.pth"], "weights.file is ['a.pth']"),
    ("weights", "sha256", "abc", "weights.sha256 is 'abc'; expected 64 hexadecimal digits, or nothing"),
    ("weights", "sha256", "A" * 64, "weights.sha256 is 'AAAA"),
    ("weights", "ema", 1, "weights.ema is 1; expected the like of false"),
    ("weights", "ema", "true", "weights.ema is 'true'"),
    ("export", "opset", 16, "export.opset is 16; expected 17 to 21"),
    ("export", "opset", 22, "export.opset is 22"),
    ("export", "opset", 20.0, "export.opset is 20.0; expected the like of 20"),
    ("export", "batch", -1, "export.batch is -1"),
    ("export", "batch", MAX_BATCH + 1, f"export.batch is {MAX_BATCH + 1}"),
    ("export", "batch", "dynamic", "export.batch is 'dynamic'; expected the like of 0"),
    ("export", "simplify", 0, "export.simplify is 0"),
    ("precision", "type", "int4", "precision.type is 'int4'; expected fp32 or fp16 or int8"),
    ("precision", "type", "INT8", "precision.type is 'INT8'"),
    ("precision", "target", "gpu", "precision.target is 'gpu'; expected tensorrt or cpu"),
    ("precision", "keep", "stage0.*", 'precision.keep is \'stage0.*\'; expected a list of texts, ["...", "..."]'),
    ("precision", "keep", ["stage0.*", 3], "precision.keep is ['stage0.*', 3]"),
    ("precision", "attention", "no", "precision.attention is 'no'"),
    ("precision", "smooth", 1.5, "precision.smooth is 1.5; expected 0 to 1"),
    ("precision", "smooth", -0.1, "precision.smooth is -0.1"),
    ("precision", "smooth", float("nan"), "precision.smooth is nan"),
    ("precision", "smooth", True, "precision.smooth is True; expected the like of 0.0"),
    ("calibration", "images", 1, "calibration.images is 1"),
    ("calibration", "method", "max", "calibration.method is 'max'; expected entropy or percentile or mse or minmax"),
    ("calibration", "percentile", 89.9, "calibration.percentile is 89.9; expected 90 to 100"),
    ("calibration", "percentile", 100.1, "calibration.percentile is 100.1"),
    ("calibration", "percentile", "99", "calibration.percentile is '99'"),
    ("calibration", "samples", 0, "calibration.samples is 0"),
    ("calibration", "samples", 1_000_001, "calibration.samples is 1000001"),
    ("calibration", "samples", 8.0, "calibration.samples is 8.0"),
    ("calibration", "batch", 0, "calibration.batch is 0"),
    ("engine", "builder", "trt", "engine.builder is 'trt'; expected tensorrt or rtx or auto"),
    ("engine", "profiles", ["8,1"], "engine.profiles '8,1'; expected MIN,OPT,MAX"),
    ("engine", "profiles", ["1", "1"], "engine.profiles 1,1,1 is given twice"),
    ("engine", "profiles", "1,8,32", "engine.profiles is '1,8,32'"),
    ("engine", "level", 9, "engine.level 9; expected 0 to 5"),
    ("engine", "workspace_mb", -1, "engine.workspace_mb -1"),
    ("engine", "compute_capabilities", ["8.6"], "engine.compute_capabilities with TensorRT; expected no such key"),
    ("engine", "hardware_compatible", "hopper", "engine.hardware_compatible hopper; expected ampere+ or same-cc"),
    ("acceptance", "agreement", 1.01, "acceptance.agreement is 1.01; expected 0 to 1"),
    ("acceptance", "agreement", -1, "acceptance.agreement is -1"),
    ("acceptance", "agreement", float("inf"), "acceptance.agreement is inf"),
    ("parity", "engine", 20, "parity.engine is 20; expected a table of keys and values"),
    ("parity", "onnx", {"sqnr_db": -1}, "parity.onnx.sqnr_db is -1; expected 0 to 200"),
    ("parity", "onnx", {"sqnr_db": float("inf")}, "parity.onnx.sqnr_db is inf"),
    ("parity", "onnx", {"sqnr_db": "80"}, "parity.onnx.sqnr_db is '80'; expected the like of 80.0"),
    ("parity", "rewritten", {"relative": float("nan")}, "parity.rewritten.relative is nan; expected 0 to 2"),
    ("parity", "rewritten", {"relative": 2.1}, "parity.rewritten.relative is 2.1"),
    ("parity", "precision", {"top1_agreement": 99}, "parity.precision.top1_agreement is 99; expected 0 to 1"),
    ("parity", "precision", {"top1_agreement": True}, "parity.precision.top1_agreement is True"),
    ("weights", "file", ["x" * 100_000], "weights.file is ['xxx"),
    ("model", "variant", "xl", "there is no variant 'xl'; expected one of lite, t, s, b"),
    ("model", "task", "segment", "--task segment without --head"),
    ("model", "num_classes", 0, "num_classes is 0"),
    ("model", "size", [192, 192], "size is 192x192 for classification"),
    ("preprocessing", "size", [256, 256], "preprocessing.size is [256, 256]; expected model.size [224, 224]"),
    ("preprocessing", "resize_shorter", 100, "preprocessing.resize_shorter is 100"),
    ("preprocessing", "resize_shorter", False, "preprocessing.resize_shorter is False"),
    ("preprocessing", "resize_shorter", 0.0, "preprocessing.resize_shorter is 0.0"),
    ("preprocessing", "resize_shorter", "", "preprocessing.resize_shorter is ''"),
    ("preprocessing", "std", [0.0, 1.0, 1.0], "preprocessing.std is [0.0, 1.0, 1.0]"),
    ("preprocessing", "interpolation", "nearest", "preprocessing.interpolation is 'nearest'; expected bicubic"),
]


@pytest.mark.parametrize(("table", "key", "value", "words"), BAD_VALUES)
def test_an_unusable_value_is_named_with_its_key(table: str, key: str, value: Any, words: str, tmp_path: Path) -> None:
    document = tomllib.loads(LEAST)
    document[table] = document.get(table, {}) | {key: value}
    with pytest.raises(OptionError) as caught:
        spec_from_dict(document)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LEAST + "[weights]\nema = 1\n", ": weights.ema is 1; expected the like of false"),
        (LEAST + "[calibration]\npercentile = nan\n", ": calibration.percentile is nan; expected 90 to 100"),
        (LEAST + "[weights]\nfile = 2020-01-01\n", ": weights.file is datetime.date(2020, 1, 1)"),
        (LEAST + "[[export]]\nopset = 20\n", ": export is [{'opset': 20}]; expected a table of keys and values"),
        (LEAST.replace("[model]", "preprocessing = 3\n[model]"), ": preprocessing is 3; expected a table"),
        (LEAST.replace("[model]", "parity = 3\n[model]"), ": parity is 3; expected a table"),
        ('name = "a"\nmodel = "t"\n', ": model is 't'; expected a table of keys and values"),
    ],
)
def test_an_unusable_value_names_the_file(text: str, words: str, tmp_path: Path) -> None:
    assert words in refusal(written(tmp_path, text))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "a b", "-a", "a" * 101, "a\n", "caf\u00e9", 5, True])
def test_a_name_is_that_of_a_file_in_the_folder(name: Any) -> None:
    with pytest.raises(OptionError, match="name is ") as caught:
        spec_from_dict(tomllib.loads(LEAST) | {"name": name})
    assert "expected a file's name: letters, digits, '.', '_' and '-'" in str(caught.value)


@pytest.mark.parametrize(
    ("precision", "words"),
    [
        ({"type": "fp16", "attention": True}, "precision.attention with precision.type 'fp16'"),
        ({"type": "fp16", "smooth": 0.5}, "precision.smooth with precision.type 'fp16'"),
        ({"type": "fp16", "target": "cpu"}, "precision.target with precision.type 'fp16'"),
        ({"type": "fp32", "keep": ["stage0.*"]}, "precision.keep with precision.type 'fp32'"),
        ({"type": "int8", "target": "cpu", "attention": True}, "precision.attention with precision.target 'cpu'"),
    ],
)
def test_what_a_precision_would_pass_over_in_silence_is_refused(precision: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError) as caught:
        spec_from_dict(tomllib.loads(LEAST) | {"precision": precision})
    assert str(caught.value).startswith(words)


ANY_SIZE = {"variant": "t", "task": "segment", "head": "fpn", "size": [512, 2048], "num_classes": 150, "any_size": True}


def of_profiles(any_size: bool, batch: int, *profiles: str) -> DeploymentSpec:
    document = {
        "name": "a",
        "model": ANY_SIZE | {"any_size": any_size},
        "export": {"batch": batch},
        "engine": {"profiles": list(profiles)},
    }
    return spec_from_dict(document)


def test_profiles_of_a_model_of_any_size_have_sizes() -> None:
    spec = of_profiles(True, 0, "1,1,4@256x256,512x512,512x2048", "1@512x512")
    assert spec_from_dict(tomllib.loads(spec_text(spec))) == spec
    assert [str(each) for each in spec.engine.request("rtx").profiles][1] == "1,1,1@512x512,512x512,512x512"
    assert of_profiles(True, 2, "2@512x512").export.batch == 2
    assert of_profiles(True, 0).engine.profiles == ()


@pytest.mark.parametrize(
    ("any_size", "batch", "profile", "words"),
    [
        (
            True,
            0,
            "1,8,32",
            "engine.profiles 1,8,32 without sizes, and model.any_size is true; expected such as",
        ),
        (
            False,
            0,
            "8@64x64",
            "engine.profiles 8@64x64 with sizes, and model.any_size is false; expected batches",
        ),
        (True, 2, "1@64x64", "engine.profiles 1@64x64 with export.batch 2; expected batches of 2"),
        (False, 2, "2", "engine.profiles with export.batch 2; expected export.batch 0"),
        (True, 0, "1@64x64,32x64,64x64", "engine.profiles '1@64x64,32x64,64x64'; expected MIN,OPT,MAX"),
        (True, 0, "1@64x5000", "engine.profiles '1@64x5000'; expected MIN,OPT,MAX"),
    ],
)
def test_a_profile_that_the_model_cannot_have_is_refused_before_anything_is_done(
    any_size: bool, batch: int, profile: str, words: str
) -> None:
    with pytest.raises(OptionError) as caught:
        of_profiles(any_size, batch, profile)
    assert str(caught.value).startswith(words)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    line = refusal(tmp_path / "my.toml")
    assert "is no deployment spec (No such file or directory); expected a TOML file" in line
    assert line.endswith("type: sepvit-deploy init t int8 > my.toml")
    assert "(Is a directory)" in refusal(tmp_path) or "(it is no regular file)" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[model", "Expected ']' at the end of a table declaration"),
        (LEAST + "[model]\n", "Cannot declare"),
        ('{"name": "a"}', "Invalid statement"),
        (b"\x80\x02}q\x00.", "invalid start byte"),
        (b"\x00" * 100, "Invalid statement"),
        (b"\xff\xfe" + LEAST.encode("utf-16-le"), "can't decode byte 0xff"),
        ("a = " + "[" * 100_000, "recursion"),
        (LEAST.replace("= 7", "= " + "7" * 5000), "Exceeds the limit"),
        (LEAST.replace("= 7", "= 0x" + "7" * 50_000), "Exceeds the limit"),
        (LEAST + f"[export]\nbatch = 0x{'7' * 50_000}\n", "Exceeds the limit"),
        ("#" * ((1 << 20) + 1), "it is larger than 1 MiB"),
    ],
)
def test_what_is_no_spec_is_one_line(content: str | bytes, words: str, tmp_path: Path) -> None:
    line = refusal(written(tmp_path, content))
    assert words in line
    assert len(line) < 600
    assert line.endswith("; expected a TOML file; type: sepvit-deploy init t int8 > my.toml")


def test_a_pipe_or_a_device_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    for path in (tmp_path / "pipe.toml", Path("/dev/zero")):
        assert "is no deployment spec (it is no regular file)" in refusal(path)


def test_the_largest_spec_that_is_read(tmp_path: Path) -> None:
    padded = LEAST + "#" * ((1 << 20) - len(LEAST))
    assert read_spec(written(tmp_path, padded)).name == "a"


@pytest.mark.parametrize("precision", ["int4", "", "INT8", None])
def test_there_is_no_other_precision(precision: Any) -> None:
    with pytest.raises(OptionError) as caught:
        default_spec("t", precision)
    assert str(caught.value) == f"there is no precision {precision!r}; expected fp32, fp16, int8"


def test_there_is_no_other_variant() -> None:
    with pytest.raises(OptionError, match="there is no variant 'xl'; expected one of lite, t, s, b"):
        default_spec("xl", "int8")


# What the repository holds


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_a_spec_of_the_repository(path: Path) -> None:
    spec = read_spec(path)
    document, complete = (tomllib.loads(text) for text in (path.read_text(encoding="utf-8"), spec_text(spec)))
    assert document == complete  # every key is written out
    assert path.stem == spec.name
    head = f"_{spec.model.head}" if spec.model.head else ""
    digits = "_digits" * bool(spec.weights.file)
    assert spec.name == f"sepvit_{spec.model.variant}{head}{digits}_{spec.precision.type}"
    # Of the paper's models there are no public weights: theirs are given with --weights.
    assert bool(spec.weights.file) == (spec.model.variant == "lite")
    if spec.calibration.images:
        assert (path.parent / spec.calibration.images).resolve() in MANIFESTS


def test_every_model_of_the_paper_has_a_spec_of_both_precisions() -> None:
    found = {(spec.model.variant, spec.precision.type) for spec in map(read_spec, SPECS)}
    assert {(variant, precision) for variant in ("t", "s", "b") for precision in ("fp16", "int8")} <= found


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_of_the_repository(path: Path) -> None:
    try:
        images = image_set(path)
    except ImageError as error:  # the manifest is good, and its pictures are not here
        make = tomllib.loads(path.read_text(encoding="utf-8")).get("make")
        assert "is not there" in error.found
        assert error.hint == (f"type: {make}" if make else f"correct folder in {path}")
    else:
        assert images.name == path.stem
        assert len(images.files) == 512


def test_the_scale_tables_of_the_repository() -> None:
    for path in sorted((ROOT / "calib").glob("*.scales.json")):
        scales = read_scales(path)
        assert scales.images.name in [manifest.stem for manifest in MANIFESTS], path
        assert scales.preprocessing == default_spec("lite", "int8").preprocessing.to_dict(), path
