"""What a rule is, and the registry that the modules of rules fill."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from sepvit_deploy.lint.view import View

Severity = Literal["error", "warning", "info"]
"""error: TensorRT refuses the file. warning: it costs speed or accuracy. info: worth knowing."""
Check = Callable[["View"], Iterator[tuple[str, str]]]
"""Yields the label of a node and what is wrong with it."""


@dataclass(frozen=True)
class Finding:
    """A broken rule: which, how bad, where, and what was found."""

    rule: str
    severity: Severity
    node: str
    message: str


@dataclass(frozen=True)
class Rule:
    """A rule: why it exists and what to do, in one line, and the function that looks for what breaks it."""

    id: str
    severity: Severity
    why: str
    check: Check


RULES: dict[str, Rule] = {}
"""Every rule by its id."""


def rule(id: str, severity: Severity, why: str) -> Callable[[Check], Check]:
    """Enter the decorated function into `RULES`."""

    def enter(check: Check) -> Check:
        assert id not in RULES, id
        RULES[id] = Rule(id, severity, why, check)
        return check

    return enter
