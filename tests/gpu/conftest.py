"""What the GPU tests share: the digits model in three precisions, pictures, and an engine of each kind.

On a machine that cannot export (no torch, say) set SEPVIT_GPU_FILES to a folder with digits_fp32.onnx, digits_fp16.onnx
and digits_int8.onnx and their passports, made elsewhere by the commands of `files`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sepvit_deploy.images import load_batch
from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner
from sepvit_deploy.spec import Preprocessing
from tests.cpu.commands import Done, call
from tests.gpu.kinds import BUILDERS, PROVIDERS, absent

WEIGHTS = Path(__file__).parents[2] / "models" / "sepvit_lite_digits.safetensors"
PREPARED = "SEPVIT_GPU_FILES"
KEEP = "SEPVIT_GPU_KEEP"
PRECISIONS = ("fp32", "fp16", "int8")
PROFILE = "1,8,32"
CLASSES = 10
PICTURES = 32


def pytest_report_header() -> list[str]:
    """What is there and what is absent, before the first test."""
    kinds = (*BUILDERS, *(f"ort-{provider}" for provider in PROVIDERS), "torch", "pycuda")
    return [f"{kind}: {absent(kind) or 'here'}" for kind in kinds]


def made(*command: str | Path) -> None:
    done = call(*command)
    assert done.code == 0, done


@pytest.fixture(scope="session")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """digits_fp32.onnx, in the folder of all files."""
    path = tmp_path_factory.mktemp("files") / "digits_fp32.onnx"
    if PREPARED in os.environ:
        for source in Path(os.environ[PREPARED]).glob("digits_*"):
            shutil.copy(source, path.parent)
        assert path.is_file(), f"{PREPARED} holds no digits_fp32.onnx"
        return path
    lacking = [name for name in ("torch", "onnxscript", "onnxsim", "safetensors") if not importlib.util.find_spec(name)]
    if lacking:
        pytest.skip(f"{', '.join(lacking)} is not installed: it exports the files; or set {PREPARED}")
    made("export", "--variant", "lite", "--weights", WEIGHTS, "--output", path)
    return path


@pytest.fixture(scope="session")
def pictures(fp32: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in a folder for each class: of three times as many, those that the model is surest of.

    Where two classes are next to equal, rounding decides; that is not what these tests are about.
    """
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    paths = []
    for index in range(3 * PICTURES):
        paths.append(folder / f"class{index % CLASSES}" / f"{index:02}.png")
        paths[-1].parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (7, 7, 3), np.uint8))
        coarse.resize((260, 240), Image.Resampling.BICUBIC).save(paths[-1])
    batch = load_batch(paths, Preprocessing.for_task("classify", (224, 224)))
    logits = np.sort(OnnxRuntimeRunner(fp32).run(batch)["logits"], axis=1)
    margins = logits[:, -1] - logits[:, -2]
    for index in np.argsort(margins)[: 2 * PICTURES]:
        paths[index].unlink()
    for k in range(CLASSES):  # the classes are the folders, and a folder without a picture is none
        place = folder / f"class{k}"
        if not any(place.iterdir()):
            shutil.copy(paths[int(np.argmax(margins))], place)
    return folder


@pytest.fixture(scope="session")
def files(fp32: Path, pictures: Path) -> Path:
    """A folder with digits_fp32.onnx, digits_fp16.onnx and digits_int8.onnx."""
    folder = fp32.parent
    scales = folder / "digits.scales.json"
    if not (folder / "digits_int8.onnx").exists():
        made("quantize", fp32, "--precision", "fp16", "--output", folder / "digits_fp16.onnx")
        made("calibrate", fp32, "--images", pictures, "--samples", str(PICTURES), "--output", scales)
        output = folder / "digits_int8.onnx"
        made("quantize", fp32, "--precision", "int8", "--scales", scales, "--output", output)
    return folder


@pytest.fixture(scope="session")
def built(files: Path) -> dict[tuple[str, str], Done]:
    """Builds by builder and precision, made as they are asked for, once, also where they fail."""
    return {}


@pytest.fixture
def plan(request: pytest.FixtureRequest, files: Path, built: dict[tuple[str, str], Done]) -> Path:
    """The plan of a builder and a precision: ``@pytest.mark.parametrize("plan", [("rtx", "fp16")], indirect=True)``."""
    kind, precision = request.param
    if reason := absent(kind):
        pytest.skip(reason)
    path = files / f"{kind}_{precision}.plan"
    if (kind, precision) not in built:
        source = files / f"digits_{precision}.onnx"
        options = ("--builder", kind, "--profile", PROFILE, "--inspector", told(path))
        built[kind, precision] = call("build", source, *options, "--output", path)
        print(built[kind, precision].out)
        keep(told(path))
    assert built[kind, precision].code == 0, built[kind, precision]
    return path


def told(plan: Path) -> Path:
    """Where a build writes what the inspector says."""
    return plan.with_suffix(".inspector.json")


def keep(path: Path) -> None:
    """Leave a copy in the folder that `KEEP` names, if it does: what an inspector says is known from engines alone."""
    if path.is_file() and (folder := os.environ.get(KEEP)):
        shutil.copy(path, folder)
