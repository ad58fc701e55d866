"""The import rules of the package, read from its source without importing it.

A module imports from lower rows only, and from its own package (`model`, `runners`). Rows of one number are one layer.
The package itself, which names what is public, stands beside `cli`.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "sepvit_deploy"
STAGES = "export simplify smooth audit calibrate precision headroom lint engine engine_worker"
STAGES += " parity evaluate evaluate_masks sensitivity predict doctor inspection ladder plan_probe"
STAGES += " bench limit regression capacity complexity report"
STAGES += " triton server load manifests batch_predict ray_serve"
ROWS: tuple[tuple[int, str], ...] = (
    (0, "errors"),
    (0, "optional variants confidence ranges gpu triton_releases records"),
    (0, "published"),
    (0, "heads"),
    (1, "spec likeness inspector"),
    (1, "artifact images labels building classes contract"),
    (1, "image_sets scales journal accuracy deployment latency uploads masks segmentation_scores"),
    (1, "mask_sets overlay"),
    (1, "spec_file"),
    (1, "builders"),
    (2, "graph model"),
    (2, "placement half at_size"),
    (2, "qdq network plans phases timing_cache"),
    (2, "work conditions comparison"),
    (2, "runners"),
    (2, "cpu_form"),
    (2, "queueing"),
    (2, "server_search"),
    (3, STAGES),
    (4, "pipeline"),
    (5, "cli"),
)
ROW_OF = {name: row for row, (_, names) in enumerate(ROWS) for name in names.split()}


def heavy() -> frozenset[str]:
    """Libraries that no module imports at its top, but those that are about them: ruff's list in pyproject.toml."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return frozenset(settings["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-module-level-imports"])


def modules() -> dict[str, Path]:
    """Every module of the package by its name within it: ``model.sepvit``; a package by its own, the root as ``""``."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def may_import_at_top(module: str) -> frozenset[str]:
    """Heavy libraries that ``module`` may import at its top."""
    if module.startswith("model."):
        return heavy()
    package, _, name = module.partition(".")
    return frozenset({name}) if package == "runners" else frozenset()


def faults(module: str, source: str) -> list[str]:
    """What in ``source``, the text of ``module``, breaks the rules; empty where nothing does."""
    tree = ast.parse(source)
    part = module.partition(".")[0]
    if module and part not in ROW_OF:
        return [f"{module}: not in the table of layers; add it to tests/repo/layers.py and CONTRIBUTING.md"]
    own = ROW_OF[part or "cli"]
    found = []
    for node in ast.walk(tree):
        for line, target in _imported(node):
            name, _, rest = target.partition(".")
            if name == "":
                found.append(f"{module}: line {line}: a relative import; write from {PACKAGE}...")
            elif name == PACKAGE:
                imported = rest.partition(".")[0]
                if imported in ("", part):
                    continue
                if imported not in ROW_OF:
                    found.append(f"{module}: line {line}: {target} is in no layer")
                elif ROW_OF[imported] >= own:
                    found.append(f"{module}: line {line}: imports {target}, which is not in a lower row")
    allowed = may_import_at_top(module)
    for node in _run_by_importing(tree):
        for line, target in _imported(node):
            if target.partition(".")[0] in heavy() - allowed:
                found.append(f"{module}: line {line}: imports {target} at its top; import it where it is used")
    return found


def _imported(node: ast.AST) -> list[tuple[int, str]]:
    """Line and dotted name of what an import statement names; a relative one begins with a dot."""
    if isinstance(node, ast.Import):
        return [(node.lineno, alias.name) for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        source = "." * node.level + (node.module or "")
        return [(node.lineno, f"{source}.{alias.name}") for alias in node.names]
    return []


def _run_by_importing(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: not in functions, nor where only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in child.orelse:
                yield other
                yield from _run_by_importing(other)
            continue
        yield child
        yield from _run_by_importing(child)
