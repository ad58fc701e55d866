"""torch -> ONNX, through the torch.export-based exporter, with SepViT's own names in the graph.

`images` in, `logits` out (dense: `stride4` to `stride32`; segmentation: `logits` or `mask`); inner tensors carry the
names of `model.taps`, nodes the path of the module that they come from. Weights keep their names; of the exporting
machine nothing remains.
"""

from __future__ import annotations

import ast
import contextlib
import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from sepvit_deploy import graph as graphs
from sepvit_deploy.errors import GraphError, OptionError
from sepvit_deploy.optional import require
from sepvit_deploy.spec import MAX_BATCH, OPSETS, ModelSpec

if TYPE_CHECKING:
    import onnx
    from torch.nn import Module
    from torch.onnx import ONNXProgram

    from sepvit_deploy.model.taps import Tap

DEFAULT_OPSET = 20
"""The first opset with Gelu as one node."""
_LOWEST_EXPORTED = 18
_SINCE_18 = frozenset({"num_outputs", "noop_with_empty_axes", "antialias", "keep_aspect_ratio_policy"})
"""Attributes that opset 18 gave to Split, ReduceMean and Resize."""
_TRACED_SIZE = (64, 96)
"""Of the images that a graph for any size is traced with; none of it remains."""
_IR_VERSION = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10}
"""The IR version that came with the ONNX release of each opset (onnx/docs/Versioning.md)."""


def require_options(opset: int, batch: int | None) -> None:
    """Refuse what the exporter cannot do, before anything heavy is loaded.

    Raises:
        OptionError: an opset outside 17..21, or a batch below 1.
    """
    if opset not in OPSETS:
        raise OptionError(f"--opset {opset}", expected=f"one of {', '.join(map(str, OPSETS))}")
    if batch is not None and not 1 <= batch <= MAX_BATCH:
        raise OptionError(f"--batch {batch}", expected=f"dynamic, or a number from 1 to {MAX_BATCH}")


def onnx_from_torch(
    model: Module, spec: ModelSpec, *, opset: int = DEFAULT_OPSET, batch: int | None = None
) -> onnx.ModelProto:
    """Export a model, rewritten or as the paper writes it.

    Args:
        model: in evaluation mode, float32, on the CPU; for images of any size its rewritten form.
        spec: what it is; names of inputs and outputs come from there.
        opset: 17 to 21.
        batch: images in a batch, or None to leave it to the user of the graph.

    Raises:
        OptionError: an opset or a batch out of range.
        GraphError: the exporter gave something else than was asked.
    """
    require_options(opset, batch)
    require("torch", extra="torch")
    from sepvit_deploy.model.deploy import Deployed
    from sepvit_deploy.model.taps import taps

    named = tuple(taps(spec, deployed=isinstance(model, Deployed)))
    return graph_of_module(
        model, None if spec.any_size else spec.size, input_name=spec.input_name, output_names=spec.output_names,
        taps=named, opset=opset, batch=batch,
    )  # fmt: skip


def graph_of_module(
    model: Module,
    size: tuple[int, int] | None,
    *,
    name: str = "sepvit",
    input_name: str = "images",
    output_names: tuple[str, ...] = ("logits",),
    taps: tuple[Tap, ...] = (),
    opset: int = DEFAULT_OPSET,
    batch: int | None = None,
) -> onnx.ModelProto:
    """Export any module that takes images (B, 3, H, W), in the same way as SepViT.

    Args:
        model: in evaluation mode, float32, on the CPU; it returns one tensor, or a tuple of them.
        size: height and width of the images; None for any, of a module whose sizes go through `model.any_size_ops`.
        name: of the graph.
        taps: inner tensors to name.
        opset: 17 to 21; 17 for the operators that SepViT uses alone.
        batch: images in a batch, or None to leave it to the user of the graph.

    Raises:
        OptionError: an opset or a batch out of range.
        GraphError: the exporter gave something else than was asked.
    """
    require_options(opset, batch)
    require("onnxscript", extra="torch")
    torch = require("torch", extra="torch")
    require("torch._dynamo", extra="torch")  # which the exporter imports itself, and loses a Ctrl-C meanwhile
    images = torch.zeros(batch or 2, 3, *(size or _TRACED_SIZE))
    dynamic = None if batch else ({0: torch.export.Dim("batch")},)
    with _quiet():
        program = torch.onnx.export(
            model,
            (images,),
            dynamo=True,
            opset_version=max(opset, _LOWEST_EXPORTED),
            input_names=[input_name],
            output_names=list(output_names),
            dynamic_shapes=dynamic,
            optimize=size is not None,
            verbose=False,
            custom_translation_table=_translations(any_size=size is None),
        )
        if size is None:
            _forget_sizes(program)
    exported: onnx.ModelProto = program.model_proto
    if graphs.opset(exported) != max(opset, _LOWEST_EXPORTED):
        raise GraphError(f"the exporter wrote opset {graphs.opset(exported)}", expected=f"opset {opset}")
    _name(exported, taps)
    _strip(exported, name)
    if opset < _LOWEST_EXPORTED:
        _lower_to_17(exported)
    exported.ir_version = _IR_VERSION[opset]
    return exported


def _translations(*, any_size: bool) -> dict[Callable[..., Any], Callable[..., Any]]:
    from sepvit_deploy.model.any_size_ops import translations

    return translations(any_size=any_size)


def _forget_sizes(program: ONNXProgram) -> None:
    """Open the height and width of a graph, and only then optimise it: what is known would be folded into it.

    Without the exporter's own rewrites of patterns, none of which is found here: they take as long as all the rest.
    """
    onnx_ir, optimizer = require("onnx_ir", extra="torch"), require("onnxscript.optimizer", extra="torch")
    passes = require("onnx_ir.passes.common", extra="torch")
    graph = program.model.graph
    for node in graph.all_nodes():
        for output in node.outputs:
            if output.shape is not None and output.shape.rank() in _PLANES:
                kept = list(output.shape)[: _PLANES[output.shape.rank()]]
                opened = [f"{output.name}_height", f"{output.name}_width"]
                output.shape = onnx_ir.Shape([*kept, *opened]) if output.is_graph_output() else None
            else:
                output.shape = None
    for image in graph.inputs:
        image.shape = onnx_ir.Shape([*list(image.shape or ())[:2], "height", "width"])
    optimizer.inline(program.model)
    optimizer.fold_constants(program.model, onnx_shape_inference=True)
    for change in (
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    ):
        change(program.model)


_PLANES = {3: 1, 4: 2}
"""Rank of a graph's output -> how many dimensions stand before its height and width."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter speaks of torchvision and of itself; none of it is for the user of this package."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)


def _scopes(node: onnx.NodeProto) -> list[str]:
    """Paths of the modules that a node lies in, outermost first, as the exporter notes them."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            return [scope for scope in ast.literal_eval(entry.value)[:-1] if scope]
    return []


def _name(model: onnx.ModelProto, taps: tuple[Tap, ...]) -> None:
    """Give every node its module's path and every tap its name."""
    nodes = model.graph.node
    module_of: dict[str, str] = {}
    last_output: dict[str, str] = {}
    first_input: dict[str, str] = {}
    for node in nodes:
        scopes = _scopes(node)
        first = next(iter(node.input), "")
        module = scopes[-1] if scopes else module_of.get(first, "")
        module_of.update((output, module) for output in node.output)
        for scope in scopes:
            first_input.setdefault(scope, first)
            last_output[scope] = node.output[-1]
    fixed = {value.name for value in (*model.graph.input, *model.graph.output, *model.graph.initializer)}
    names: dict[str, str] = {}
    for tap in taps:
        value = (first_input if tap.at == "input" else last_output)[tap.module]
        if value in fixed or value in names:
            raise GraphError(f"{tap.name} has no tensor of its own in the exported graph")
        names[value] = tap.name
    seen: Counter[str] = Counter()
    for node in nodes:
        base = f"{_address(module_of[node.output[0]])}/{node.op_type}".lstrip("/")
        seen[base] += 1
        node.name = base if seen[base] == 1 else f"{base}_{seen[base]}"
        for k, output in enumerate(node.output):
            if output not in fixed:
                names.setdefault(output, node.name + (f":{k}" if len(node.output) > 1 else ""))
    graphs.rename_values(model, names)


def _address(module: str) -> str:
    """``backbone.stages.1.blocks.0.attention`` -> ``stage1.block0.attention``; a neck's and a head's stay."""
    return re.sub(r"\b(stage|block|norm)s\.(\d+)", r"\1\2", re.sub(r"^backbone\b\.?", "", module))


def _strip(model: onnx.ModelProto, name: str) -> None:
    """Take out the exporter's notes: they hold stack traces with this machine's paths."""
    graph = model.graph
    for entry in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer, graph, model):
        del entry.metadata_props[:]
        entry.doc_string = ""
    graph.name = name
    model.producer_name = "sepvit-deploy"
    model.producer_version = ""
    del graph.value_info[:]


def _lower_to_17(model: onnx.ModelProto) -> None:
    """Undo what opset 18 changed in the operators that SepViT uses: Split's attribute and ReduceMean's axes."""
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        kept = [attribute for attribute in node.attribute if attribute.name not in _SINCE_18]
        if node.op_type == "ReduceMean" and len(node.input) == 2:
            kept.append(helper.make_attribute("axes", numpy_helper.to_array(constants[node.input[1]]).tolist()))
            del node.input[1:]
        del node.attribute[:]
        node.attribute.extend(kept)
    used = {name for node in model.graph.node for name in node.input}
    unused = [tensor for tensor in model.graph.initializer if tensor.name not in used]
    for tensor in unused:
        model.graph.initializer.remove(tensor)
    for entry in model.opset_import:
        entry.version = 17
