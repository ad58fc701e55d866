"""TensorRT-RTX's parser and builder, which need neither a GPU nor a driver: the gate for every ONNX file we write."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import onnx
import pytest

from sepvit_deploy.building import BuildRequest, NetworkFacts, Profile
from sepvit_deploy.engine import engine_from_onnx

BATCHES = Profile(1, 8, 32)


def skip_reason() -> str | None:
    """Why TensorRT-RTX cannot exist here; None where it can, whether it is installed or not."""
    found = f"{sys.platform} {platform.machine()}, Python {sys.version_info[0]}.{sys.version_info[1]}"
    if (sys.platform, platform.machine()) == ("linux", "x86_64") and sys.version_info[:2] in {(3, 11), (3, 12)}:
        return None
    return f"TensorRT-RTX has wheels for linux x86_64 and Python 3.11 or 3.12, not for {found}"


SKIP = pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason()))


def request(*profiles: Profile) -> BuildRequest:
    """A build with TensorRT-RTX."""
    return BuildRequest("rtx", profiles)


def built(source: Path | onnx.ModelProto, *profiles: Profile) -> tuple[NetworkFacts, bytes]:
    """The parsed network and the plan of a file of any kind and any precision; profiles where its batch is free."""
    content = source.read_bytes() if isinstance(source, Path) else source.SerializeToString()
    name = source.name if isinstance(source, Path) else "model.onnx"
    done = engine_from_onnx(content, request(*profiles), name=name, precision=None)
    assert done.plan is not None
    return done.facts.network, done.plan
