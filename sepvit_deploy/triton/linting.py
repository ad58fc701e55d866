"""Every rule against a repository, worst first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sepvit_deploy.errors import RepositoryFailed
from sepvit_deploy.triton.repository import Repository
from sepvit_deploy.triton.rules import RULES, Finding, Severity, has_plans, require_known_release

_ORDER: tuple[Severity, ...] = ("error", "warning")
_UNNOTICED = (
    *("tensor-twice", "no-instances", "cpu-config", "labels", "version-policy", "outside", "passport"),
    "cuda-graphs",
)
"""Errors with which a server may well start, and serve something else than is meant."""


@dataclass(frozen=True)
class Lint:
    """What breaks a rule in a repository, the errors first.

    Attributes:
        models: how many were looked at.
        held_release: the release that was named was held against plans; False where there are none, or none was named.
    """

    repository: Path
    models: int
    findings: tuple[Finding, ...]
    held_release: bool = False

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What a server would refuse, or die of."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def require_passed(self, shown: int = 1) -> None:
        """Make the lint a gate.

        Args:
            shown: how many errors are told, at most.

        Raises:
            RepositoryFailed: there are errors; the first are named.
        """
        if errors := self.errors:
            worst = sorted(errors, key=lambda finding: finding.rule in _UNNOTICED)
            fatal = worst[0].rule not in _UNNOTICED
            what = f"Triton would fail on {self.repository}" if fatal else f"{self.repository} is not fit to serve"
            told = "; ".join(f"{finding.place} {finding.message}" for finding in worst[:shown])
            count = "" if len(errors) <= shown else f"{len(errors)} errors, first "
            raise RepositoryFailed(f"{what}: {count}{told}")

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold."""
        findings = [
            {"rule": each.rule, "severity": each.severity, "place": each.place, "message": each.message}
            | {"why": RULES[each.rule].why}
            for each in self.findings
        ]
        return {"repository": str(self.repository), "models": self.models, "findings": findings}


def lint(repository: Repository) -> Lint:
    """Hold every rule against a repository.

    Raises:
        OptionError: there are plans, and which TensorRT the server's release carries is not known.
    """
    require_known_release(repository)
    found = [
        Finding(rule.id, rule.severity, place, message)
        for rule in RULES.values()
        for place, message in dict.fromkeys(rule.check(repository))
    ]
    found.sort(key=lambda finding: _ORDER.index(finding.severity))
    held = repository.release is not None and has_plans(repository)
    return Lint(repository.path, len(repository.models), tuple(found), held)
