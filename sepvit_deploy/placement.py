"""Which products of a SepViT graph can run in INT8, in SepViT's terms, and which tensors need a range for it.

Sites are the products of an activation with constant weights: the linear layers, the dense patch embeddings, and the
convolutions of a decode head and its neck. PEG's depthwise convolution is none, nor is the matrix by which UperNet
pools, nor are DWA's and PWA's products of two activations; those of DWA can join as a whole, for a fused attention.

Names are those that export gives: a node is ``stage1.block0.mlp.fc1/MatMul``, its site ``stage1.block0.mlp.fc1``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from sepvit_deploy.errors import GraphError, OptionError
from sepvit_deploy.graph import nested

if TYPE_CHECKING:
    import onnx

KINDS = {
    "embed.proj": "embed",
    "attention.dwa.qkv": "qkv",
    "attention.pwa.qk": "pwa_qk",
    "attention.proj": "proj",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
}
"""Path of a layer within its stage or block -> what reports call its kind."""
_SITE = re.compile(rf"(stage\d+)\.(?:block\d+\.)?({'|'.join(map(re.escape, KINDS))})")
CLASSIFIERS = ("head", "decode_head.classifier")
"""What gives the logits: quantised only where it is asked for by name."""
_HEAD_SITE = re.compile(
    r"(neck\.(?:laterals|outputs))\.\d+"
    r"|(decode_head\.(?:branches|pooling|bottleneck|laterals|outputs|fusion))(?:\.convs)?(?:\.\d+)*\.conv"
)
_ATTENTION = re.compile(r"(stage\d+\.block\d+)\.attention\.dwa")
NAIVE_OPERATORS = frozenset({"MatMul", "Conv", "Add", "LayerNormalization", "Softmax", "Gelu"})
"""Around these a toolkit that knows no SepViT quantises every input and output."""


@dataclass(frozen=True)
class Site:
    """A product of an activation with constant weights, which can run in INT8.

    Attributes:
        name: the layer, ``stage2.block0.mlp.fc1``.
        node: the node, ``stage2.block0.mlp.fc1/MatMul``.
        op: ``MatMul`` or ``Conv``.
        activation: tensor at the node's input 0.
        output: the tensor that the layer gives: the node's, or that of the Relu that alone reads it.
        weight: initializer at the node's input 1: (in, out) of a MatMul, (out, in, kh, kw) of a Conv.
        axis: of the output channels in the weight.
        group: stage and kind, ``stage2.fc1``; of a decode head its part, ``decode_head.branches``, and its neck's,
            ``neck.laterals``; a classifier is a group of its own, ``head`` or ``decode_head.classifier``.
        default: whether it is quantised without being asked for by name; False for the classifier.
    """

    name: str
    node: str
    op: str
    activation: str
    weight: str
    axis: int
    group: str
    default: bool
    output: str


@dataclass(frozen=True)
class AttentionSite:
    """One DWA: softmax(q @ k) @ v, its tensors as the two products take and give them.

    Attributes:
        block: ``stage1.block0``.
        scores: node of the first product; context: of the second.
        q: (B, h*K, T, d); k: (B, h*K, d, T), transposed; v: (B, h*K, T, d).
        softmax: (B, h*K, T, T), within [0, 1]; output: (B, h*K, T, d).
    """

    block: str
    scores: str
    context: str
    q: str
    k: str
    v: str
    softmax: str
    output: str


def sites(model: onnx.ModelProto) -> list[Site]:
    """Every product that can run in INT8, in graph order.

    Raises:
        GraphError: there is none, or the graph is not one flat graph.
    """
    require_flat(model)
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    rectified = _rectified(model)
    found = []
    for node in model.graph.node:
        name = layer(node.name)
        group = _group(name)
        dims = weights.get(node.input[1]) if len(node.input) > 1 else None
        if dims is None or node.input[0] in weights or group is None:
            continue
        product = node.op_type == "MatMul" and len(dims) == 2
        if product or (node.op_type == "Conv" and len(dims) == 4):
            axis, default = 1 if product else 0, name not in CLASSIFIERS
            tensors, output = (node.input[0], node.input[1]), node.output[0]
            found.append(
                Site(name, node.name, node.op_type, *tensors, axis, group, default, rectified.get(output, output))
            )
    if not found:
        raise GraphError(
            "the graph has no linear layer or patch embedding of SepViT",
            expected="MatMul or Conv nodes with the names and constant weights that export gives",
            hint="type: sepvit-deploy export --help",
        )
    return found


def _rectified(model: onnx.ModelProto) -> dict[str, str]:
    """Tensors that nothing but a Relu reads, and what it makes of them."""
    given = {value.name for value in model.graph.output}
    readers = Counter(name for node in model.graph.node for name in node.input)
    relus = (node for node in model.graph.node if node.op_type == "Relu")
    return {n.input[0]: n.output[0] for n in relus if readers[n.input[0]] == 1 and n.input[0] not in given}


def _group(name: str) -> str | None:
    """The group of a layer; None where it is no site."""
    if name in CLASSIFIERS:
        return name
    if place := _SITE.fullmatch(name):
        return f"{place[1]}.{KINDS[place[2]]}"
    if place := _HEAD_SITE.fullmatch(name):
        return place[1] or place[2]
    return None


def attention_sites(model: onnx.ModelProto) -> list[AttentionSite]:
    """Every DWA whose two products can run in INT8, in graph order.

    Raises:
        GraphError: there is none, or the graph is not one flat graph.
    """
    require_flat(model)
    producer = {output: node for node in model.graph.node for output in node.output}
    found = []
    for context in model.graph.node:
        place = _ATTENTION.fullmatch(layer(context.name))
        softmax = producer.get(context.input[0]) if context.input else None
        if not place or context.op_type != "MatMul" or softmax is None or softmax.op_type != "Softmax":
            continue
        scores = producer.get(softmax.input[0])
        if scores is not None and scores.op_type == "MatMul":
            tensors = (*scores.input, context.input[1], softmax.output[0], context.output[0])
            found.append(AttentionSite(place[1], scores.name, context.name, *tensors))
    if not found:
        raise GraphError(
            "the graph has no attention of the form softmax(q @ k) @ v",
            expected="MatMul, Softmax, MatMul with the names that export gives",
            hint="leave attention out of INT8, or export again",
        )
    return found


def observed(model: onnx.ModelProto, *, attention: bool = False, everything: bool = False) -> list[str]:
    """Tensors whose ranges a scale table must hold, each once, in graph order.

    These are what the sites read and what the convolutions give, after their Relu: some forms keep that in INT8 too.

    Args:
        attention: also those of INT8 attention; its softmax needs none, for its range is known.
        everything: every activation that `NAIVE_OPERATORS` take or give instead, for comparison.

    Raises:
        GraphError: there is nothing to quantise.
    """
    found = sites(model)
    wanted = {site.activation for site in found} | {site.output for site in found if site.op == "Conv"}
    if attention:
        wanted |= {tensor for site in attention_sites(model) for tensor in (site.q, site.k, site.v, site.output)}
    if everything:
        wanted = _around_naive_operators(model)
    names = (*(value.name for value in model.graph.input), *(o for node in model.graph.node for o in node.output))
    return [name for name in names if name in wanted]


def _around_naive_operators(model: onnx.ModelProto) -> set[str]:
    """Activations that another node reads; a product with the constant 0, which only carries the batch, is left out."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    read = {name for node in model.graph.node for name in node.input}
    wanted: set[str] = set()
    for node in model.graph.node:
        if node.op_type in NAIVE_OPERATORS:
            wanted.update(name for name in (*node.input, *node.output) if name in read and name not in constants)
    for node in model.graph.node:
        if node.op_type == "Mul" and any(
            name in constants and not numpy_helper.to_array(constants[name]).any() for name in node.input
        ):
            wanted -= set(node.output)
    return wanted


def layer(node: str) -> str:
    """The layer that a node belongs to: ``stage1.block0.mlp.fc1/MatMul`` -> ``stage1.block0.mlp.fc1``."""
    return node.partition("/")[0]


def matching(patterns: Sequence[str], names: Sequence[Sequence[str]], *, option: str) -> list[bool]:
    """For each thing, whether any of its names matches any of the shell-style ``patterns``.

    Args:
        names: of each thing, every name that it goes by.
        option: that the patterns were given with, for the error.

    Raises:
        OptionError: a pattern matches nothing; the closest names are given.
    """
    for pattern in patterns:
        known = {name for own in names for name in own}
        if not any(fnmatchcase(name, pattern) for name in known):
            close = get_close_matches(pattern, sorted(known), n=3, cutoff=0.0)
            raise OptionError(
                f"{option} {pattern!r} matches nothing", expected=f"a pattern such as {', '.join(map(repr, close))}"
            )
    return [any(fnmatchcase(name, pattern) for pattern in patterns for name in own) for own in names]


def require_flat(model: onnx.ModelProto) -> None:
    """Refuse what the changes of precision do not look into.

    Raises:
        GraphError: a node holds a graph, or the model has local functions.
    """
    if model.functions or sum(1 for _ in nested(model.graph)) > 1:
        raise GraphError(
            "the graph has local functions or control flow",
            expected="one flat graph, as export writes it",
            hint="type: sepvit-deploy audit FILE",
        )
