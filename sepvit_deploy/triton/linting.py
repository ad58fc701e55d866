"""Every rule against a repository, worst first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sepvit_deploy.errors import RepositoryFailed
from sepvit_deploy.triton.repository import Repository
from sepvit_deploy.triton.rules import RULES, Finding, Severity

_ORDER: tuple[Severity, ...] = ("error", "warning")


@dataclass(frozen=True)
class Lint:
    """What breaks a rule in a repository, the errors first.

    Attributes:
        models: how many were looked at.
    """

    repository: Path
    models: int
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What a server would refuse, or die of."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def require_passed(self) -> None:
        """Make the lint a gate.

        Raises:
            RepositoryFailed: there are errors; the first are named.
        """
        if errors := self.errors:
            shown = "; ".join(f"{finding.place} {finding.message}" for finding in errors[:3])
            more = f" and {len(errors) - 3} more" if len(errors) > 3 else ""
            raise RepositoryFailed(f"Triton would fail on {self.repository}: {shown}{more}")

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold."""
        findings = [
            {"rule": each.rule, "severity": each.severity, "place": each.place, "message": each.message}
            | {"why": RULES[each.rule].why}
            for each in self.findings
        ]
        return {"repository": str(self.repository), "models": self.models, "findings": findings}


def lint(repository: Repository) -> Lint:
    """Hold every rule against a repository."""
    found = [
        Finding(rule.id, rule.severity, place, message)
        for rule in RULES.values()
        for place, message in dict.fromkeys(rule.check(repository))
    ]
    found.sort(key=lambda finding: _ORDER.index(finding.severity))
    return Lint(repository.path, len(repository.models), tuple(found))
