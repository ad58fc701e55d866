"""Import an optional dependency, or say how to get it."""

from __future__ import annotations

import importlib
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
        if error.name and error.name.split(".")[0] != module.split(".")[0]:
            raise MissingDependency(
                f"{module} is installed but needs {error.name}, which is not",
                hint=_install(extra),
            ) from error
        raise MissingDependency(f"{module} is not installed", hint=_install(extra)) from error
    except (ImportError, OSError) as error:
        raise MissingDependency(
            f"{module} is installed but does not load ({error})", hint=_install(extra)
        ) from error


def _install(extra: str) -> str:
    return f"type: pip install 'sepvit-deploy[{extra}]'"
