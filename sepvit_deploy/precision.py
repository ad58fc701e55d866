"""FP32 ONNX (and a scale table) -> FP16 or INT8 ONNX: the one place where precision is decided.

    fp16_from_fp32    everything in FP16, LayerNorm and Softmax in FP32 between Casts
    int8_from_fp32    Q/DQ at the linear layers, the dense patch embeddings and the convolutions of a decode head, the
                      rest in FP16 or FP32

Inputs and outputs stay float32, inner tensors keep their names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sepvit_deploy import graph as graphs
from sepvit_deploy.cpu_form import cpu_form
from sepvit_deploy.errors import GraphError, OptionError
from sepvit_deploy.half import Half, to_half
from sepvit_deploy.placement import (
    AttentionSite,
    Site,
    attention_sites,
    layer,
    matching,
    observed,
    require_flat,
    sites,
)
from sepvit_deploy.qdq import CODES, UNSIGNED_STEPS, Product, asymmetric, insert, symmetric
from sepvit_deploy.scales import ScaleTable, weights_digest

if TYPE_CHECKING:
    import onnx

    from sepvit_deploy.qdq import Grid

Target = Literal["tensorrt", "cpu"]
Rest = Literal["fp16", "fp32"]
SAFE = frozenset({"LayerNormalization", "Softmax"})
"""Operators that FP16 graphs keep in FP32: a sum of squares or of exponentials soon leaves FP16's range.

Averages, Resize and the ArgMax of a mask are none of them. Logits that FP16 rounds can tie where a pixel's class is
chosen, but that is rarer than what all the rounding before changes: with random weights 2 pixels in 100,000 beside 17,
with the trained SepViT-Lite none beside 4. In FP32 the largest tensors of the graph would be twice as large.
"""
FP16_SCALES_OPSET = 19
"""The first opset whose Q/DQ take FP16."""


@dataclass(frozen=True)
class Quantized:
    """An INT8 graph and what was decided for it.

    Attributes:
        model: the graph.
        sites: products that run in INT8; kept: those that do not, the classifier included unless it was asked for.
        attention: DWA blocks whose two products run in INT8.
        pairs: activations with a Q/DQ pair, for a CPU before `cpu_form`.
        rest: of everything else; half: how the rest became FP16, None where it is FP32.
    """

    model: onnx.ModelProto
    sites: tuple[Site, ...]
    kept: tuple[Site, ...]
    attention: tuple[AttentionSite, ...]
    pairs: int
    rest: Rest
    half: Half | None


def fp16_from_fp32(model: onnx.ModelProto, *, keep: Sequence[str] = (), safe: Collection[str] = SAFE) -> Half:
    """Convert a float32 graph.

    Args:
        model: left as it is.
        keep: shell-style patterns of layers, nodes or groups ("stage0.*", "*.fc2", "stage2.fc1") to leave in FP32.
        safe: operators to leave in FP32.

    Raises:
        GraphError: the graph is not float32 alone, or a constant is beyond FP16's range.
        OptionError: a pattern or an operator that the graph does not have.
    """
    require_fp32(model)
    return to_half(model, _stays_fp32(model, keep, safe))


def int8_from_fp32(
    model: onnx.ModelProto,
    table: ScaleTable,
    *,
    graph_sha256: str,
    target: Target = "tensorrt",
    rest: Rest | None = None,
    keep: Sequence[str] = (),
    include: Sequence[str] = (),
    attention: bool = False,
    safe: Collection[str] = SAFE,
) -> Quantized:
    """Quantise a float32 graph.

    For a CPU every convolution, with its Relu, gives INT8 too: ONNX Runtime has no quick convolution of INT8 that gives
    float. For TensorRT only the patch embeddings do so, and only with a float32 rest.

    Args:
        model: left as it is.
        graph_sha256: of its file, as the table has it.
        target: ``tensorrt`` for symmetric int8, ``cpu`` for ONNX Runtime: activations in uint8, weights whose sums do
            not saturate (see `qdq`), and the operators of `cpu_form`, some of them ONNX Runtime's own.
        rest: precision of everything else; by default FP16 for TensorRT, FP32 for a CPU.
        keep: shell-style patterns of sites, nodes or groups to leave out of INT8 ("stage0.*", "*.fc2").
        include: patterns of what is left out by default, to put in: the classifier.
        attention: also quantise both products of every DWA.
        safe: operators to leave in FP32 where the rest is FP16.

    Raises:
        GraphError: the graph is not float32 alone, has nothing to quantise, or FP16 does not hold a number.
        OptionError: a pattern that matches nothing or leaves nothing, or options that exclude each other.
        PassportError: the table is not of this graph, or lacks a tensor.
    """
    require_fp32(model)
    chosen, kept = _chosen(sites(model), keep, include)
    blocks = _chosen_attention(model, chosen, keep) if attention else []
    rest = rest or ("fp16" if target == "tensorrt" else "fp32")
    _require_options(model, target, rest, attention)
    half = rest == "fp16"

    readers: dict[str, set[tuple[str, int]] | None] = {}
    for site in chosen:
        _reads(readers, site.activation, (site.node, 0))
        if site.op == "Conv" and (target == "cpu" or (not half and site.group.endswith(".embed"))):
            readers[site.output] = None
    for block in blocks:
        _reads(readers, block.q, (block.scores, 0))
        _reads(readers, block.k, (block.scores, 1))
        _reads(readers, block.softmax, (block.context, 0))
        _reads(readers, block.v, (block.context, 1))
        readers[block.output] = None  # half placed, a pair that some reader goes around undoes the fusion
    known = {block.softmax: symmetric(block.softmax, 1.0, half=half) for block in blocks}
    grids = known | _grids(model, table, graph_sha256, [name for name in readers if name not in known], target, half)
    products = [Product(site.node, site.weight, site.axis) for site in chosen]
    changed = insert(model, grids, readers, products, pair_safe=target == "cpu", half=half)
    if target == "cpu":
        changed = cpu_form(changed)
    return _finished(changed, chosen, kept, blocks, len(grids), rest, safe)


def int8_everywhere(
    model: onnx.ModelProto,
    table: ScaleTable,
    *,
    graph_sha256: str,
    rest: Rest = "fp16",
    safe: Collection[str] = SAFE,
) -> Quantized:
    """Quantise as a toolkit that knows no SepViT: for comparison only, for it loses accuracy.

    Every activation around `placement.NAIVE_OPERATORS` gets a Q/DQ pair, for all its readers; every weight of a
    product has one scale. The table needs the ranges of `observed(model, everything=True)`.

    Raises:
        GraphError, OptionError, PassportError: as `int8_from_fp32`.
    """
    require_fp32(model)
    _require_options(model, "tensorrt", rest, attention=False)
    names = observed(model, everything=True)
    grids = _grids(model, table, graph_sha256, names, "tensorrt", rest == "fp16")
    constants = {tensor.name for tensor in model.graph.initializer}
    products = [
        Product(node.name, node.input[1], None)
        for node in model.graph.node
        if node.op_type in ("Conv", "MatMul") and node.input[1] in constants
    ]
    changed = insert(model, grids, dict.fromkeys(grids), products, half=rest == "fp16")
    return _finished(changed, sites(model), [], [], len(grids), rest, safe)


def require_fp32(model: onnx.ModelProto) -> None:
    """Refuse a graph whose precision was decided already.

    Raises:
        GraphError: it holds FP16 or Q/DQ, or is not one flat graph.
    """
    from onnx import TensorProto

    require_flat(model)
    found = "Q/DQ nodes" if any(n.op_type in ("QuantizeLinear", "DequantizeLinear") for n in model.graph.node) else ""
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    kinds |= {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    if kinds & {TensorProto.FLOAT16, TensorProto.BFLOAT16}:
        found = "FP16 tensors"
    if found:
        raise GraphError(
            f"the graph has {found} already",
            expected="a float32 graph, whose precision is decided here and once",
            hint="give the file that export wrote",
        )


def _stays_fp32(model: onnx.ModelProto, keep: Sequence[str], safe: Collection[str]) -> Callable[[onnx.NodeProto], bool]:
    operators = {node.op_type for node in model.graph.node}
    for operator in sorted(set(safe) - SAFE - operators):
        raise OptionError(f"safe operator {operator!r} is not in the graph", expected=", ".join(sorted(operators)))
    group = {site.name: site.group for site in sites(model)} if keep else {}
    names = {n.name: (n.name, layer(n.name), group.get(layer(n.name), n.name)) for n in model.graph.node}
    matches = matching(keep, list(names.values()), option="--keep")
    kept = {name for name, is_kept in zip(names, matches, strict=True) if is_kept}
    return lambda node: node.op_type in safe or node.name in kept


def _chosen(found: list[Site], keep: Sequence[str], include: Sequence[str]) -> tuple[list[Site], list[Site]]:
    """The sites to quantise and the others, each in graph order."""
    names = [(site.name, site.node, site.group) for site in found]
    included = matching(include, names, option="--include")
    left_out = matching(keep, names, option="--keep")
    wanted = [(s.default or more) and not kept for s, more, kept in zip(found, included, left_out, strict=True)]
    chosen = [site for site, is_wanted in zip(found, wanted, strict=True) if is_wanted]
    if not chosen:
        raise OptionError(
            f"--keep {' '.join(map(repr, keep))} leaves nothing to quantise",
            expected="at least one linear layer or convolution in INT8",
            hint="for none at all, take FP16",
        )
    return chosen, [site for site, is_wanted in zip(found, wanted, strict=True) if not is_wanted]


def _chosen_attention(model: onnx.ModelProto, chosen: list[Site], keep: Sequence[str]) -> list[AttentionSite]:
    """The DWA blocks to quantise: a block whose QKV layer is kept is kept whole."""
    quantised = {site.name for site in chosen}
    blocks = [block for block in attention_sites(model) if f"{block.block}.attention.dwa.qkv" in quantised]
    if not blocks:
        raise OptionError(
            f"--attention with --keep {' '.join(map(repr, keep))} leaves no attention to quantise",
            expected="at least one block whose attention.dwa.qkv is in INT8",
        )
    return blocks


def _require_options(model: onnx.ModelProto, target: Target, rest: Rest, attention: bool) -> None:
    if target == "cpu" and (rest == "fp16" or attention):
        what = "--attention" if attention else "--rest fp16"
        raise OptionError(f"--target cpu with {what}", expected="float32 around INT8, and attention in float32")
    if rest == "fp16" and graphs.opset(model) < FP16_SCALES_OPSET:
        raise GraphError(
            f"the graph is of opset {graphs.opset(model)}",
            expected=f"opset {FP16_SCALES_OPSET} or newer for FP16 around INT8",
            hint=f"export again with --opset {FP16_SCALES_OPSET} or newer, or keep the rest in FP32 with --rest fp32",
        )


def _reads(readers: dict[str, set[tuple[str, int]] | None], tensor: str, reader: tuple[str, int]) -> None:
    known = readers.setdefault(tensor, set())
    if known is not None:
        known.add(reader)


def _grids(
    model: onnx.ModelProto, table: ScaleTable, graph_sha256: str, names: list[str], target: Target, half: bool
) -> dict[str, Grid]:
    table.require_for(graph_sha256=graph_sha256, weights_sha256=weights_digest(model), tensors=names)
    if target == "cpu":
        multiplied = {site.activation for site in sites(model)}
        codes = {name: CODES if name in multiplied else UNSIGNED_STEPS for name in names}
        return {name: asymmetric(*table.tensors[name].clipped, codes=codes[name]) for name in names}
    return {name: symmetric(name, table.tensors[name].threshold, half=half) for name in names}


def _finished(
    changed: onnx.ModelProto,
    chosen: list[Site],
    kept: list[Site],
    blocks: list[AttentionSite],
    pairs: int,
    rest: Rest,
    safe: Collection[str],
) -> Quantized:
    half = to_half(changed, _stays_fp32(changed, (), safe)) if rest == "fp16" else None
    model = half.model if half else changed
    return Quantized(model, tuple(chosen), tuple(kept), tuple(blocks), pairs, rest, half)
