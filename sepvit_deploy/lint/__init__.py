"""TensorRT's rules on an ONNX file, without a GPU: what it refuses, and what costs speed or accuracy there.

`rule` says what a rule is, and `view` is the graph as the rules see it. `structure`, `numerics`, `quantising` and
`placing` hold the rules; an error is what TensorRT-RTX's parser and builder were seen to refuse.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sepvit_deploy.errors import AuditFailed
from sepvit_deploy.lint import numerics, placing, quantising, structure  # noqa: F401 (they enter their rules)
from sepvit_deploy.lint.rule import RULES, Finding, Rule, Severity
from sepvit_deploy.lint.view import PRODUCTS, View, require_text

if TYPE_CHECKING:
    import onnx

__all__ = ["RULES", "Finding", "LintReport", "Rule", "Severity", "lint"]

_ORDER: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class LintReport:
    """What breaks a rule, worst first, and what the products compute in.

    Attributes:
        findings: the errors, then the warnings, then the infos; of an info one for all nodes.
        products: matrix products and convolutions by precision, then by operator: ``{"INT8": {"MatMul": 36}}``.
    """

    findings: tuple[Finding, ...]
    products: dict[str, dict[str, int]]

    @property
    def passed(self) -> bool:
        """True where nothing is found that TensorRT refuses."""
        return not any(finding.severity == "error" for finding in self.findings)

    def require_passed(self, name: str) -> None:
        """Make the lint a gate.

        Raises:
            AuditFailed: TensorRT refuses the file; the first reasons are named.
        """
        errors = [finding for finding in self.findings if finding.severity == "error"]
        if errors:
            shown = "; ".join(f"{finding.node}: {finding.message}" for finding in errors[:3])
            more = f" and {len(errors) - 3} more" if len(errors) > 3 else ""
            raise AuditFailed(f"TensorRT refuses {name}: {shown}{more}", hint=f"type: sepvit-deploy lint {name}")


def lint(model: onnx.ModelProto) -> LintReport:
    """Hold every rule against a graph, the graphs inside its nodes and its local functions.

    Raises:
        GraphError: the graph holds names that are no text.
    """
    require_text(model)
    views = [View(model, root) for root in (model.graph, *model.functions)]
    findings: list[Finding] = []
    for rule in RULES.values():
        found = [Finding(rule.id, rule.severity, *place) for view in views for place in rule.check(view)]
        if rule.severity == "info" and len(found) > 1:
            more = f"{found[0].message}, and {len(found) - 1} more like it"
            found = [Finding(rule.id, rule.severity, found[0].node, more)]
        findings += found
    findings.sort(key=lambda finding: _ORDER.index(finding.severity))
    products: dict[str, Counter[str]] = {}
    for view in views:
        for node in view.of(*PRODUCTS):
            products.setdefault(placing.precision(view, node), Counter())[node.kind] += 1
    return LintReport(tuple(findings), {kind: dict(counts) for kind, counts in products.items()})
