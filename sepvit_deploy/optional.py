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
        if error.name is None:  # raised by hand: its words say more than "not installed"
            raise _does_not_load(module, error, extra) from error
        if not f"{module}.".startswith(f"{error.name}."):
            raise MissingDependency(
                f"{module} is installed but needs {error.name}, which is not",
                hint=_install(extra),
            ) from error
        raise MissingDependency(f"{module} is not installed", hint=_install(extra)) from error
    except (ImportError, OSError) as error:
        raise _does_not_load(module, error, extra) from error


def _does_not_load(module: str, error: Exception, extra: str) -> MissingDependency:
    return MissingDependency(f"{module} is installed but does not load ({error})", hint=_install(extra))


def _install(extra: str) -> str:
    return f"type: pip install 'sepvit-deploy[{extra}]'"
