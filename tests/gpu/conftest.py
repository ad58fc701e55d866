"""What the GPU tests share: the digits model in three precisions, made by the commands, and a folder of pictures."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cpu.commands import call
from tests.gpu.kinds import BUILDERS, PROVIDERS, absent

WEIGHTS = Path(__file__).parents[2] / "models" / "sepvit_lite_digits.safetensors"
PRECISIONS = ("fp32", "fp16", "int8")
PROFILE = "1,8,32"


def pytest_report_header() -> list[str]:
    """What is there and what is absent, before the first test."""
    kinds = (*BUILDERS, *(f"ort-{provider}" for provider in PROVIDERS), "torch", "pycuda")
    return [f"{kind}: {absent(kind) or 'here'}" for kind in kinds]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 pictures with something in them, in folders of two classes."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for index in range(32):
        place = folder / str(index % 2) / f"{index}.png"
        place.parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (7, 7, 3), np.uint8))
        coarse.resize((260, 240), Image.Resampling.BICUBIC).save(place)
    return folder


@pytest.fixture(scope="session")
def files(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with digits_fp32.onnx, digits_fp16.onnx and digits_int8.onnx."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed: it exports the files that the engines are built from")
    folder = tmp_path_factory.mktemp("files")
    fp32 = folder / "digits_fp32.onnx"
    scales = folder / "digits.scales.json"
    for command in (
        ("export", "--variant", "lite", "--weights", WEIGHTS, "--output", fp32),
        ("quantize", fp32, "--precision", "fp16", "--output", folder / "digits_fp16.onnx"),
        ("calibrate", fp32, "--images", pictures, "--samples", "32", "--output", scales),
        ("quantize", fp32, "--precision", "int8", "--scales", scales, "--output", folder / "digits_int8.onnx"),
    ):
        done = call(*command)
        assert done.code == 0, done
    return folder


@pytest.fixture(scope="session")
def built(files: Path) -> dict[tuple[str, str], Path]:
    """Plans by builder and precision, made as they are asked for."""
    return {}


@pytest.fixture
def plan(request: pytest.FixtureRequest, files: Path, built: dict[tuple[str, str], Path]) -> Path:
    """The plan of a builder and a precision: ``@pytest.mark.parametrize("plan", [("rtx", "fp16")], indirect=True)``."""
    kind, precision = request.param
    if reason := absent(kind):
        pytest.skip(reason)
    if (kind, precision) not in built:
        path = files / f"{kind}_{precision}.plan"
        source = files / f"digits_{precision}.onnx"
        more = () if precision == "fp32" else ("--require", precision)
        done = call("build", source, "--builder", kind, "--profile", PROFILE, "--output", path, *more)
        assert done.code == 0, done
        print(done.out)
        built[kind, precision] = path
    return built[kind, precision]
