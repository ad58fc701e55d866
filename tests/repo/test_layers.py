"""Imports go downwards, and nothing slow is imported before it is needed."""

from __future__ import annotations

import pytest

from tests.repo.layers import faults, heavy, modules

MODULES = modules()


def test_the_package_has_modules() -> None:
    assert {"", "errors", "variants", "model.sepvit", "runners.base"} <= MODULES.keys()


@pytest.mark.parametrize("module", MODULES)
def test_a_module_keeps_the_layers(module: str) -> None:
    assert faults(module, MODULES[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("spec", "from sepvit_deploy.export import onnx_from_torch", "line 1: imports sepvit_deploy.export"),
        ("spec", "def f():\n    from sepvit_deploy import cli", "line 2: imports sepvit_deploy.cli"),
        ("audit", "import sepvit_deploy.parity", "which is not in a lower row"),
        ("runners.torch", "from sepvit_deploy.pipeline import export", "which is not in a lower row"),
        ("", "from sepvit_deploy.cli import main", "which is not in a lower row"),
        ("cli", "from sepvit_deploy.telemetry import send", "sepvit_deploy.telemetry.send is in no layer"),
        ("audit", "from .errors import InputError", "a relative import"),
        ("utils", "", "utils: not in the table of layers"),
        ("spec", "import numpy as np", "imports numpy at its top"),
        (
            "audit",
            "try:\n    from onnx import helper\nfinally:\n    pass",
            "line 2: imports onnx.helper at its top",
        ),
        ("cli", "class A:\n    import PIL.Image", "imports PIL.Image at its top"),
        ("runners.onnxruntime", "import torch", "imports torch at its top"),
        ("spec", "if TYPE_CHECKING:\n    pass\nelse:\n    import numpy", "line 4: imports numpy at its top"),
    ],
)
def test_a_planted_violation_is_found(module: str, source: str, expected: str) -> None:
    (fault,) = faults(module, source)
    assert expected in fault


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("", "from sepvit_deploy.pipeline import export"),
        ("pipeline", "from sepvit_deploy import export, parity\nfrom sepvit_deploy.errors import InputError"),
        ("model.rewrite", "import torch\nfrom sepvit_deploy.model.sepvit import SepViT"),
        ("runners.torch", "import torch\nfrom sepvit_deploy.model.taps import capture"),
        ("spec", "def f():\n    import numpy as np\n    return np"),
        ("spec", "if TYPE_CHECKING:\n    import numpy as np"),
        ("audit", "import json\nfrom pathlib import Path"),
    ],
)
def test_what_is_allowed_is_not_a_violation(module: str, source: str) -> None:
    assert faults(module, source) == []


def test_the_slow_libraries_are_named() -> None:
    assert {"PIL", "numpy", "onnx", "onnxruntime", "safetensors", "tensorrt", "torch"} <= heavy()
