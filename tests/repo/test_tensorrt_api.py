"""Every name of TensorRT that the package writes is in every version that it claims; so are Polygraphy's."""

from __future__ import annotations

import importlib.util
import inspect
import sys

import pytest

from tests.repo import tensorrt_api
from tests.repo.tensorrt_api import faults, modules, tables, used

VERSIONS = ("10.12", "10.16", "11.0", "11.4", "rtx-1.7")


def test_the_tables_are_of_every_version_claimed() -> None:
    assert tuple(table.version for table in tables()) == VERSIONS
    for table in tables():
        assert table.has(("Builder", "build_serialized_network"))
        assert table.has(("init_libnvinfer_plugins",))
        assert not table.has(("Builder", "no_such_method"))


def test_the_modules_that_deal_with_tensorrt_are_found() -> None:
    found = modules()
    assert {
        "engine_worker.py",
        "runners/tensorrt_engine.py",
        "timing_cache.py",
        "network.py",
    } <= found.keys()
    names = set().union(*map(used, found.values()))
    assert {
        "BuilderFlag.TF32",
        "MemoryPoolType.WORKSPACE",
        "IProgressMonitor",
        "IExecutionContext.execute_async_v3",
        "ICudaEngine.get_tensor_profile_shape",
        "Runtime.deserialize_cuda_engine",
        "IBuilderConfig.set_timing_cache",
        "INetworkDefinition.get_layer",
        "OnnxParser.parse",
        "EngineInspector.get_engine_information",
    } <= names
    assert len(names) > 40


@pytest.mark.parametrize("module", modules())
def test_every_name_is_in_every_version_or_behind_a_check(module: str) -> None:
    assert faults(module, modules()[module]) == []


PLANTED = [
    ("trt.NoSuchThing", "m:1: NoSuchThing is not in TensorRT 10.12, 10.16, 11.0, 11.4, rtx-1.7"),
    ("trt.BuilderFlag.FP16", "m:1: BuilderFlag.FP16 is not in TensorRT 11.0, 11.4, rtx-1.7"),
    (
        "trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH",
        "m:1: NetworkDefinitionCreationFlag.EXPLICIT_BATCH is not in TensorRT 11.0, 11.4, rtx-1.7",
    ),
    ("config.set_compute_capability(c, 0)", "IBuilderConfig.set_compute_capability is not in TensorRT 10.12"),
    ("trt.ComputeCapability.SM86", "ComputeCapability.SM86 is not in TensorRT 10.12"),
    ("context.execute_async_v9(stream)", "IExecutionContext.execute_async_v9 is not in"),
    ("self._engine.get_tensor_nom(0)", "ICudaEngine.get_tensor_nom is not in"),
    ("getattr(trt.BuilderFlag, 'INT8')", "BuilderFlag.INT8 is not in TensorRT 11.0"),
    ("config.set_flag(3)", "m:1: a number where an enum belongs: config.set_flag(3)"),
    ("builder.create_network(1 << 1)", "a number where an enum belongs"),
    ("builder.create_network(flags=1 << 0)", "a number where an enum belongs"),
]


@pytest.mark.parametrize(("source", "words"), PLANTED)
def test_a_planted_name_is_found(source: str, words: str) -> None:
    (fault,) = faults("m", source)
    assert words in fault


@pytest.mark.parametrize(
    "source",
    [
        "if hasattr(trt.BuilderFlag, 'FP16'):\n    trt.BuilderFlag.FP16",
        "x = trt.BuilderFlag.FP16 if trt.__version__ < '11' else None",
        "if request.builder == 'rtx':\n    config.set_compute_capability(c, 0)",
        "try:\n    trt.BuilderFlag.FP16\nexcept AttributeError:\n    pass",
        "getattr(trt.BuilderFlag, 'INT8', None)",
        "from polygraphy import config\nconfig.USE_TENSORRT_RTX = True",
        "config.set_flag(trt.BuilderFlag.TF32)",
        "builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))",
        "builder.create_network(0)",
        "trt.ProfilingVerbosity.DETAILED",
    ],
)
def test_a_name_behind_a_check_or_in_every_version_passes(source: str) -> None:
    assert faults("m", source) == []


def test_an_if_on_something_else_is_no_check() -> None:
    assert faults("m", "if request.level:\n    trt.BuilderFlag.FP16")
    assert faults("m", "try:\n    trt.BuilderFlag.FP16\nexcept ValueError:\n    pass")


@pytest.mark.skipif(
    importlib.util.find_spec("polygraphy") is None,
    reason=f"Polygraphy comes with the extra rtx, which has no wheels for {sys.platform}",
)
def test_the_installed_polygraphy_has_what_is_asked_of_it() -> None:
    from polygraphy import config, logger
    from polygraphy.backend.tensorrt_rtx import CreateConfigRTX
    from polygraphy.backend.trt import CreateConfig, CreateNetwork, EngineBytesFromNetwork, Profile, util

    source = modules()["engine_worker.py"]
    arguments = inspect.signature(CreateConfig.__init__).parameters
    rtx = inspect.signature(CreateConfigRTX.__init__).parameters
    common = inspect.signature(CreateConfigRTX.__mro__[1].__init__).parameters
    for name in (
        *("profiles", "profiling_verbosity", "builder_optimization_level", "refittable", "version_compatible"),
        *("progress_monitor", "memory_pool_limits", "hardware_compatibility_level"),
    ):
        assert f'"{name}"' in source
        assert name in arguments or name in common, name
    assert "compute_capabilities" in rtx
    assert "strongly_typed" in inspect.signature(CreateNetwork.__init__).parameters
    assert "config" in inspect.signature(EngineBytesFromNetwork.__init__).parameters
    assert list(inspect.signature(Profile.add).parameters)[:5] == ["self", "name", "min", "opt", "max"]
    assert hasattr(util, "TRT_LOGGER")
    assert hasattr(config, "USE_TENSORRT_RTX")
    assert hasattr(logger.G_LOGGER, "module_severity")
    assert tensorrt_api.HOLDS
