"""Is every name of TensorRT that the package writes there in every TensorRT that it claims to work with?

The tables in tests/tensorrt_api hold the public names of five versions, read off their bindings. Source is read, never
run: chains of attributes that begin at ``trt``, and attributes of variables that are named after what they hold. A name
that some version lacks must stand behind a check: an ``if`` on ``hasattr``, the version or the builder, or a ``try``
with ``except AttributeError``.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from tests.repo.layers import PACKAGE, ROOT

TABLES = ROOT / "tests" / "tensorrt_api"
HOLDS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "runtime": "Runtime",
    "inspector": "EngineInspector",
}
"""What a variable of this name holds, in a module that deals with TensorRT."""
FLAG_SETTERS = frozenset({"set_flag", "clear_flag", "get_flag", "set_memory_pool_limit", "create_network"})
"""Methods whose first argument is an enum or is made of one: a number there is another flag in another version."""


@dataclass(frozen=True)
class Table:
    """The public names of one version."""

    version: str
    classes: dict[str, frozenset[str]]
    others: frozenset[str]

    def has(self, chain: tuple[str, ...]) -> bool:
        """Is there ``BuilderFlag``, or ``BuilderFlag.TF32``?"""
        first, *rest = chain
        if not rest or first not in self.classes:
            return first in self.classes or first in self.others
        return rest[0] in self.classes[first]


@cache
def tables() -> tuple[Table, ...]:
    """Every version that the package claims to work with."""
    found = []
    for path in sorted(TABLES.glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        classes = {name: frozenset(members) for name, members in document["classes"].items()}
        others = frozenset(document["functions"]) | frozenset(document["other"])
        found.append(Table(path.stem, classes, others))
    return tuple(found)


def modules() -> dict[str, str]:
    """Source of every module that deals with TensorRT, by its path within the package."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        names = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
        holds_trt = "trt" in names or "self._trt" in source or "trt." in source
        if holds_trt:
            found[str(path.relative_to(ROOT / PACKAGE))] = source
    return found


def faults(module: str, source: str) -> list[str]:
    """Names that some version lacks, and numbers for enums; empty where all is well."""
    tree = ast.parse(source)
    imported = {alias.asname or alias.name for node in ast.walk(tree) for alias in _aliases(node)}
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    found = []
    for node, chain in _chains(tree, imported):
        lacking = [table.version for table in tables() if not table.has(chain)]
        if lacking and not _is_checked(node, parents):
            found.append(f"{module}:{node.lineno}: {'.'.join(chain)} is not in TensorRT {', '.join(lacking)}")
    found += [f"{module}:{node.lineno}: a number where an enum belongs: {ast.unparse(node)}" for node in _numbers(tree)]
    return sorted(set(found))


def used(source: str) -> set[str]:
    """Every name of TensorRT in a source, dotted."""
    tree = ast.parse(source)
    imported = {alias.asname or alias.name for node in ast.walk(tree) for alias in _aliases(node)}
    return {".".join(chain) for _, chain in _chains(tree, imported)}


def _aliases(node: ast.AST) -> list[ast.alias]:
    return node.names if isinstance(node, ast.Import | ast.ImportFrom) else []


def _chains(tree: ast.AST, imported: set[str]) -> Iterator[tuple[ast.expr, tuple[str, ...]]]:
    """Each use of TensorRT: ``(BuilderFlag, TF32)`` for trt.BuilderFlag.TF32, ``(Runtime, ...)`` for runtime.x."""
    inner = {node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and len(node.args) > 1:
            base, name = _dotted(node.args[0]), node.args[1]
            if base and base[0] == "trt" and isinstance(name, ast.Constant) and len(node.args) == 2:
                yield node, (*base[1:], str(name.value))
        if not isinstance(node, ast.Attribute) or node in inner:
            continue
        dotted = _dotted(node)
        if dotted and dotted[0] == "trt":
            names = tuple(name for name in dotted[1:3] if not name.startswith("__"))
            if names:
                yield node, names
        elif len(dotted) > 1 and dotted[0] in HOLDS and dotted[0] not in imported:
            yield node, (HOLDS[dotted[0]], dotted[1])


def _dotted(node: ast.expr) -> tuple[str, ...]:
    """``a.b.c`` as names; ``self._engine`` and ``slot.context`` count as the variables engine and context."""
    if isinstance(node, ast.Name):
        return (node.id,)
    if not isinstance(node, ast.Attribute):
        return ()
    before = _dotted(node.value)
    held = node.attr.removeprefix("_")
    if len(before) == 1 and (held == "trt" or held in HOLDS) and before[0] in ("self", "slot"):
        return (held,)
    return (*before, node.attr) if before else ()


def _is_checked(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Does the use stand behind a look at what there is?"""
    while node in parents:
        node = parents[node]
        if isinstance(node, ast.If | ast.IfExp):
            test = ast.unparse(node.test)
            if "hasattr(" in test or "__version__" in test or "'rtx'" in test:
                return True
        if isinstance(node, ast.Try) and any(
            handler.type is not None and "AttributeError" in ast.unparse(handler.type) for handler in node.handlers
        ):
            return True
    return False


def _numbers(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in FLAG_SETTERS:
            given = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "flags")]
            if any(_is_number(value) for value in given):
                yield node


def _is_number(node: ast.expr) -> bool:
    """A number, or numbers shifted and joined, without any name."""
    return not any(isinstance(part, ast.Name | ast.Attribute | ast.Call) for part in ast.walk(node)) and any(
        isinstance(part, ast.Constant) and type(part.value) is int and part.value for part in ast.walk(node)
    )
