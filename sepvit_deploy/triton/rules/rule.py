"""What a rule is, and the registry that the modules of rules fill."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from sepvit_deploy.triton.repository import Repository

Severity = Literal["error", "warning"]
"""error: a server does not start with it, dies of it, or fails requests. warning: it hides a fault or costs speed."""
Check = Callable[[Repository], Iterator[tuple[str, str]]]
"""Yields a place in the repository, which begins with the model's name, and what is wrong there."""


@dataclass(frozen=True)
class Finding:
    """A broken rule: which, how bad, where, and what was found."""

    rule: str
    severity: Severity
    place: str
    message: str

    @property
    def model(self) -> str:
        """The model that it is about."""
        return self.place.partition("/")[0]


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
