"""Import an optional dependency, or say how to get it; and the environment of a child that imports this package."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType

from sepvit_deploy.errors import MissingDependency


def require(module: str, *, extra: str) -> ModuleType:
    """Import ``module``, which the extra ``extra`` of this package installs.

    Raises:
        MissingDependency: it is not installed, or its native part does not load.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None:  # raised by hand: its words say more than "not installed"
            raise _does_not_load(module, error, extra) from error
        if not f"{module}.".startswith(f"{error.name}."):
            raise MissingDependency(
                f"{module} is installed but needs {error.name}, which is not",
                hint=_install(extra),
            ) from error
        # Of a package that is there in part, the part; else the package, which is what one installs.
        missing = module if error.name != module.partition(".")[0] else error.name
        raise MissingDependency(f"{missing} is not installed", hint=_install(extra)) from error
    except (ImportError, OSError) as error:
        raise _does_not_load(module, error, extra) from error


def child_environment(**more: str) -> dict[str, str]:
    """The environment of a child that finds the package that this process runs, installed or not."""
    own = Path(__file__).parents[1]
    if own.name not in ("site-packages", "dist-packages"):  # those it has; named here they would hide Python's own
        paths = [str(own), *filter(None, [os.environ.get("PYTHONPATH")])]
        more = {"PYTHONPATH": os.pathsep.join(paths)} | more
    return os.environ | more


def _does_not_load(module: str, error: Exception, extra: str) -> MissingDependency:
    return MissingDependency(f"{module} is installed but does not load ({error})", hint=_install(extra))


def _install(extra: str) -> str:
    return f"type: pip install 'sepvit-deploy[{extra}]'"
