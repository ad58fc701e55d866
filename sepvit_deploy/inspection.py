"""What an engine really computes: its layers as TensorRT's engine inspector tells them, in SepViT's terms.

An engine's layers are kernels, each fused from several nodes of the ONNX file. From the inspector's JSON and the time
of each layer this tells the precision of every product, the time of every block, which attention became one kernel,
and how much is spent on moving and casting. `inspector` says which forms of that JSON are known, and how.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from sepvit_deploy.building import Precision
from sepvit_deploy.errors import AuditFailed, PlanError
from sepvit_deploy.inspector import (
    PRODUCT_OPS,
    PRODUCTS,
    UNKNOWN,
    Form,
    Kind,
    attention_part,
    kind_of,
    layers_from_json,
    operators,
    precision_of,
)

State = Literal["fused", "apart", "hidden"]

# In the names that Myelin gives to layers "." has become "_".
_PLACE = re.compile(r"(?:^|[^\w])(stage\d+)[._](block\d+|embed|peg)(?![a-z\d])")
MOST_NAMES = 3
MOST_MS = 1e12
"""Longer than any layer takes."""


@dataclass(frozen=True)
class EngineLayer:
    """A layer of an engine: one kernel, or a region whose kernels are not shown.

    Attributes:
        kind: ``other`` where it is none of the known ones.
        precision: that a product computes in (FP32, TF32, FP16, BF16, INT8, ...), that any other layer reads.
        type: TensorRT's name of the kind; kernel: of the code that runs, where it is told.
        nodes: of the ONNX file.
        ms: time of one run; None where it was not measured.
    """

    name: str
    kind: Kind
    precision: str
    type: str
    kernel: str
    nodes: tuple[str, ...]
    ms: float | None

    @property
    def place(self) -> str:
        """``stage1.block0``, ``stage1.embed``, ``stage1.peg``, ``stage1``, ``head``, ``norm``; empty where unknown.

        A layer that spans two blocks is counted to the one that most of its nodes are of, of equals to the first.
        """
        places = Counter(filter(None, map(_place, self.nodes)))
        return places.most_common(1)[0][0] if places else _place(self.name)


@dataclass(frozen=True)
class Total:
    """What some layers come to.

    Attributes:
        ms: None where none of them was measured.
        share: of the engine's time; of its layers where nothing was measured.
    """

    layers: int
    ms: float | None
    share: float


@dataclass(frozen=True)
class Attention:
    """One attention of a block.

    Attributes:
        name: ``stage1.block0.dwa`` or ``.pwa``.
        state: ``fused`` into one kernel, ``apart``, or ``hidden`` in a region whose kernels are not shown.
        layers: that compute its products and softmax, by name.
        ms: of those; None where they were not measured.
    """

    name: str
    state: State
    layers: tuple[str, ...]
    ms: float | None


@dataclass(frozen=True)
class Inspection:
    """An engine from inside.

    Attributes:
        form: of the JSON, the major version of TensorRT that it came with.
        detailed: False where the engine was built to tell the names of its layers alone.
        layers: in the order of execution, of one optimisation profile.
        other_profiles: layers of other profiles, which are left out.
        unmatched_ms: measured under names that no layer has.
    """

    form: Form
    detailed: bool
    layers: tuple[EngineLayer, ...]
    other_profiles: int
    unmatched_ms: float

    def total(self, layers: Iterable[EngineLayer]) -> Total:
        """What some of the layers come to."""
        chosen = list(layers)
        ms, whole = (_milliseconds(group) for group in (chosen, self.layers))
        share = (ms or 0.0) / whole if whole else len(chosen) / len(self.layers)
        return Total(len(chosen), ms, share)

    def of(self, *kinds: Kind) -> Total:
        """The layers of some kinds: ``of("reformat", "cast")``."""
        return self.total(layer for layer in self.layers if layer.kind in kinds)

    @property
    def precisions(self) -> dict[str, Total]:
        """Every precision that is there."""
        names = dict.fromkeys(layer.precision for layer in self.layers)
        return {name: self.total(layer for layer in self.layers if layer.precision == name) for name in sorted(names)}

    def precision_share(self, precision: str) -> float:
        """Share of the time spent in ``"INT8"``, ``"FP16"``, ...; of the layers where nothing was measured."""
        found = self.precisions.get(precision)
        return found.share if found else 0.0

    @property
    def blocks(self) -> dict[str, Total]:
        """Every `EngineLayer.place`, in the order of execution; what is of none, under an empty name."""
        names = dict.fromkeys(layer.place for layer in self.layers)
        return {name: self.total(layer for layer in self.layers if layer.place == name) for name in names}

    @property
    def attention(self) -> tuple[Attention, ...]:
        """Every attention that a layer names, in the order of execution."""
        holders: dict[str, list[EngineLayer]] = {}
        for layer in self.layers:
            for name in dict.fromkeys(attention_part(node)[0] for node in layer.nodes):
                if name and layer.kind not in ("reformat", "cast", "movement"):
                    holders.setdefault(name, []).append(layer)
        found = []
        for name, layers in holders.items():
            fused = [layer for layer in layers if layer.kind == "attention"]
            hidden = all(layer.kind == "region" for layer in layers)
            state: State = "fused" if fused else "hidden" if hidden else "apart"
            chosen = fused or layers
            found.append(Attention(name, state, tuple(layer.name for layer in chosen), _milliseconds(chosen)))
        return tuple(found)

    def require(
        self,
        precision: Precision,
        *,
        allow: Sequence[str] = (),
        quantized: Collection[str] = (),
        name: str = "the engine",
    ) -> None:
        """Refuse an engine that does not compute in the precision of its file.

        An FP32 engine computes every product in FP32, not TF32. An FP16 or INT8 engine has products in FP16 or INT8 and
        none in FP32; an INT8 engine has all those in INT8 that the file has. What is not told counts as not so.

        Args:
            allow: shell-style patterns of nodes ("head/MatMul"), of their layers ("stage2.block0.mlp.fc1") or of layers
                of the engine that may be in FP32.
            quantized: nodes of the products that the file has in INT8.
            name: what the error calls it.

        Raises:
            AuditFailed: saying what was found.
        """
        wanted = precision.upper()
        more = "build with ProfilingVerbosity.DETAILED"
        if not self.detailed:
            raise AuditFailed(f"{name} tells the names of its layers alone", expected=f"{wanted} products", hint=more)
        hidden = [r for r in self.layers if r.kind == "region" and (not r.nodes or PRODUCT_OPS & operators(r.nodes))]
        if hidden:
            raise AuditFailed(
                f"what {name} computes in {_listed([layer.name for layer in hidden])} is not visible",
                expected=f"kernels, with products in {wanted}",
                hint=more,
            )
        products = [layer for layer in self.layers if layer.kind in PRODUCTS]
        found = Counter(layer.precision for layer in products)
        counted = ", ".join(f"{count} in {kind}" for kind, count in sorted(found.items())) or "none"
        if not found[wanted]:
            expected = f"products in {wanted}"
            raise AuditFailed(f"{name} computes no product in {wanted}; products: {counted}", expected=expected)
        fits = {"FP32"} if precision == "fp32" else found.keys() - {"FP32", "TF32", UNKNOWN}
        odd = [layer for layer in products if layer.precision not in fits and not _allowed(layer, allow)]
        if odd:
            kinds = " and ".join(sorted({layer.precision for layer in odd}))
            only = "every product in FP32" if precision == "fp32" else f"products in {wanted} and none in FP32"
            raise AuditFailed(
                f"{name} computes {_listed([layer.name for layer in odd])} in {kinds}; products: {counted}",
                expected=only,
            )
        if precision == "int8":
            self._require_int8(products, quantized, name)

    def _require_int8(self, products: Sequence[EngineLayer], quantized: Collection[str], name: str) -> None:
        computed = {node for layer in products if layer.precision == "INT8" for node in layer.nodes}
        if lacking := [node for node in quantized if node not in computed]:
            raise AuditFailed(
                f"{name} is not seen to compute {_listed(lacking)} in INT8: {len(lacking)} of the {len(quantized)} "
                "products that its file has in INT8",
                expected="all of them in INT8",
            )

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        values = asdict(self)
        return values | {"layers": [layer | {"nodes": list(layer["nodes"])} for layer in values["layers"]]}

    @classmethod
    def from_dict(cls, values: object) -> Inspection:
        """What `to_dict` gave.

        Raises:
            TypeError, ValueError: it did not give this.
        """
        known = _record(cls, values, _IS)
        layers = tuple(
            EngineLayer(**layer | {"nodes": tuple(layer["nodes"])})
            for layer in (_record(EngineLayer, value, _LAYER_IS) for value in known["layers"])
        )
        return cls(**known | {"layers": layers})


def inspect_engine(inspector_json: str, layer_ms: Mapping[str, float], *, profile: int = 0) -> Inspection:
    """Read what the engine inspector tells of an engine.

    Args:
        inspector_json: the whole engine's information, in JSON.
        layer_ms: time of each layer by its name, as the profiler reports it; empty where nothing was measured. A name
            that several layers have is shared among them evenly.
        profile: the optimisation profile that was measured.

    Raises:
        PlanError: the JSON has no form that is known, or a time is no time.
    """
    for name, ms in layer_ms.items():
        if not _is_time(ms):
            raise PlanError(f"layer {name:.80} took {ms!r:.40} ms", expected="0 or more, and finite")
    form, every = layers_from_json(inspector_json)
    raw = [layer for layer in every if layer.profile == profile]
    if not raw:
        raise PlanError(f"the engine inspector tells of no layer of profile {profile}", expected="one or more")
    names = Counter(layer.name for layer in raw)
    layers = [
        EngineLayer(
            name=layer.name,
            kind=kind,
            precision=precision_of(layer, kind),
            type=layer.type,
            kernel=layer.kernel,
            nodes=layer.nodes,
            ms=layer_ms[layer.name] / names[layer.name] if layer.name in layer_ms else None,
        )
        for layer, kind in ((layer, kind_of(layer)) for layer in raw)
    ]
    # A product that no kernel of products names is computed by the layers that do name it.
    computed = {node for layer in layers if layer.kind in PRODUCTS for node in layer.nodes}
    for i, layer in enumerate(layers):
        missing = operators(node for node in layer.nodes if node not in computed) & PRODUCT_OPS
        if layer.kind == "other" and missing:
            kind: Kind = "convolution" if missing == {"Conv"} else "matmul"
            layers[i] = replace(layer, kind=kind, precision=precision_of(raw[i], kind))
    return Inspection(
        form=form,
        detailed=all(layer.detailed for layer in raw),
        layers=tuple(layers),
        other_profiles=len(every) - len(raw),
        unmatched_ms=math.fsum(ms for name, ms in layer_ms.items() if name not in names),
    )


def _place(name: str) -> str:
    if found := _PLACE.search(name):
        return f"{found[1]}.{found[2]}"
    rest = re.match(r"(stage\d+|head|norm)/", name)
    return rest[1] if rest else ""


def _milliseconds(layers: Iterable[EngineLayer]) -> float | None:
    times = [layer.ms for layer in layers if layer.ms is not None]
    return math.fsum(times) if times else None


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"{name:.80}" for name in names[:MOST_NAMES])
    return shown + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")


def _allowed(layer: EngineLayer, patterns: Sequence[str]) -> bool:
    names = [layer.name]
    for node in layer.nodes:
        if operators([node]) & PRODUCT_OPS:
            names += [node, node.partition("/")[0]]
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _record(cls: type[Any], values: object, checks: Mapping[str, Callable[[Any], bool]]) -> dict[str, Any]:
    """The values of a record, all of them and no others."""
    if not isinstance(values, Mapping) or values.keys() != checks.keys():
        raise ValueError(f"no {cls.__name__}, which has {', '.join(checks)}")
    for name, check in checks.items():
        if not check(values[name]):
            raise TypeError(f"{name} of {cls.__name__} is {values[name]!r:.60}")
    return dict(values)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_time(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and 0 <= value < MOST_MS


_LAYER_IS: Mapping[str, Callable[[Any], bool]] = {
    "name": _is_text,
    "kind": lambda value: value in get_args(Kind),
    "precision": _is_text,
    "type": _is_text,
    "kernel": _is_text,
    "nodes": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "ms": lambda value: value is None or _is_time(value),
}
_IS: Mapping[str, Callable[[Any], bool]] = {
    "form": lambda value: value in get_args(Form),
    "detailed": lambda value: isinstance(value, bool),
    "layers": lambda value: isinstance(value, list) and len(value) > 0,
    "other_profiles": lambda value: type(value) is int and value >= 0,
    "unmatched_ms": _is_time,
}
