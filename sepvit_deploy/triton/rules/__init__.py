"""The rules on a repository: `rule` says what one is, the other modules hold them by what they are about."""

from sepvit_deploy.triton.rules import configs, engines, ensembles, versions, warmups  # noqa: F401 (they enter theirs)
from sepvit_deploy.triton.rules.engines import has_plans, require_known_release
from sepvit_deploy.triton.rules.rule import RULES, Finding, Rule, Severity

__all__ = ["RULES", "Finding", "Rule", "Severity", "has_plans", "require_known_release"]
