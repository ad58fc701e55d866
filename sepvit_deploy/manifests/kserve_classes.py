"""KServe's classes of resources, without the rest of its package.

``import kserve`` imports KServe's model server with it: two seconds, and gRPC messages that have the names of those of
Triton's client. One process holds one set of them, and whoever comes second fails. The classes need none of that, so
they are imported below a package whose own ``__init__`` is not run, and nothing of it stays behind: a later
``import kserve`` is whole.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from types import ModuleType

from sepvit_deploy.optional import require

_NAMES = ("kserve.models", "kserve.api_client")


@functools.cache
def load() -> tuple[ModuleType, ModuleType]:
    """The modules ``kserve.models`` and ``kserve.api_client``.

    Raises:
        MissingDependency: the kserve package is not installed, or does not load.
    """
    spec = importlib.util.find_spec("kserve")
    if spec is None or "kserve" in sys.modules:
        models, client = (require(name, extra="kserve") for name in _NAMES)
        return models, client
    sys.modules["kserve"] = importlib.util.module_from_spec(spec)
    try:
        models, client = (require(name, extra="kserve") for name in _NAMES)
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "kserve"]:
            del sys.modules[name]
    return models, client
