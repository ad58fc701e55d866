"""What the tiers share: unit (no torch), cpu (torch, ONNX Runtime, TensorRT-RTX's builder), gpu (a device), repo."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

CACHE = "SEPVIT_DEPLOY_TEST_CACHE"
"""Names the folder of what is slow to make, shared by every test and worker of a run."""
GPU_TIER = Path(__file__).parent / "gpu"


def cuda_devices() -> int:
    """Devices that the CUDA driver sees; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return 0 if failed else count.value


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-gpu", action="store_true", help="run tests/gpu, and fail at once where there is no CUDA device"
    )


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # the workers of pytest-xdist inherit both
        os.environ[CACHE] = tempfile.mkdtemp(prefix="sepvit-deploy-tests-")
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    if not config.getoption("--require-gpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a CPU test must not depend on what is in the machine
    elif not cuda_devices():
        raise pytest.UsageError("--require-gpu: there is no CUDA device here")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    gpu = [item for item in items if GPU_TIER in item.path.parents]
    if not config.getoption("--require-gpu"):
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="the GPU tier runs with --require-gpu (make gpu)"))
    elif len(gpu) < len(items):
        raise pytest.UsageError("--require-gpu runs tests/gpu alone: the other tiers hide the GPU")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput") and (folder := os.environ.pop(CACHE, None)):
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def exported() -> Callable[..., Path]:
    """``exported("--variant", "t", ...)`` is what `sepvit-deploy export` writes with these options, made once a run."""

    def export(*options: str) -> Path:
        name = "_".join(option.strip("-/").replace("/", "-") for option in options)
        path = Path(os.environ[CACHE]) / f"{name}.onnx"
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be making it
            if not path.exists():
                from tests.cpu.commands import call  # in this process: the exporter is slow to import

                done = call("export", *options, "--output", path)
                assert done.code == 0, done
        return path

    return export
