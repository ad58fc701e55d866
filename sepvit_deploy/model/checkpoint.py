"""Published checkpoint files to our parameters, and back.

    load_checkpoint         a file -> the reference model of a variant and task, every key and shape accounted for
    published_state_dict    a model -> tensors under their published names

A checkpoint of a segmentation model has the names of the toolbox that trained it, `backbone.`, `neck.`, `decode_head.`;
what only training needs (`auxiliary_head.`, the backbone's classifier, counters of batches) is passed over.

Errors name published keys, since those are what the file holds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from sepvit_deploy.errors import CheckpointError
from sepvit_deploy.heads import Head, OutputKind
from sepvit_deploy.model.build import Reference, reference
from sepvit_deploy.model.segmentation import SepViTSegmenter
from sepvit_deploy.model.state_dict import read_checkpoint, shown
from sepvit_deploy.variants import VARIANTS, Task, Variant, variant_named

TRANSLATION = (
    ("patch_embeds.#.", "stages.#.embed."),
    ("pos_block.#.proj.0.", "stages.#.peg.conv."),
    ("blocks.#.#.attn.DSA_qkv.", "stages.#.blocks.#.attention.dwa.qkv."),
    ("blocks.#.#.attn.win_tokens_norm.", "stages.#.blocks.#.attention.pwa.norm."),
    ("blocks.#.#.attn.PSA_qk.", "stages.#.blocks.#.attention.pwa.qk."),
    ("blocks.#.#.attn.proj.", "stages.#.blocks.#.attention.proj."),
    ("blocks.#.#.attn.win_conv.", "stages.#.blocks.#.attention.summary.conv."),
    ("blocks.#.#.win_tokens", "stages.#.blocks.#.window_tokens"),
    ("blocks.#.#.", "stages.#.blocks.#."),
    ("norm_list.#.", "norms.#."),
)
TOOLBOX_TRANSLATION = (
    *((f"backbone.{published}", f"backbone.{ours}") for published, ours in TRANSLATION),
    ("neck.lateral_convs.#.conv.", "neck.laterals.#."),
    ("neck.fpn_convs.#.conv.", "neck.outputs.#."),
    ("decode_head.conv_seg.", "decode_head.classifier."),
    ("decode_head.scale_heads.#.", "decode_head.branches.#."),
    ("decode_head.psp_modules.#.1.", "decode_head.pooling.convs.#."),
    ("decode_head.lateral_convs.#.", "decode_head.laterals.#."),
    ("decode_head.fpn_convs.#.", "decode_head.outputs.#."),
    ("decode_head.fpn_bottleneck.", "decode_head.fusion."),
)
"""Beginnings of names, published and ours, # standing for a number; the first that fits counts, the rest is kept.

The names of a segmentation toolbox begin otherwise, so that both tables are one.
"""

TRAINING_ONLY = re.compile(r"auxiliary_head\..*|backbone\.(norm|head)\.(weight|bias)|.*\.bn\.num_batches_tracked")
"""Keys of a segmentation checkpoint that inference does not need: they may be there, of any shape, or not."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""What weights may be stored in."""

_Shapes = Mapping[str, tuple[int, ...]]


def our_name(published: str) -> str:
    """The name in our modules of a published key."""
    return _translate(published, (*TRANSLATION, *TOOLBOX_TRANSLATION))


def published_name(ours: str) -> str:
    """The published key of a name in our modules."""
    return _translate(ours, ((b, a) for a, b in (*TRANSLATION, *TOOLBOX_TRANSLATION)))


def _translate(name: str, table: Iterable[tuple[str, str]]) -> str:
    for before, after in table:
        if match := re.match(before.replace(".", r"\.").replace("#", r"(\d+)"), name):
            for number in match.groups():
                after = after.replace("#", number, 1)
            return after + name[match.end() :]
    return name


def published_state_dict(model: Reference) -> dict[str, Tensor]:
    """The weights of ``model`` as a published checkpoint names them; the tensors are the model's own."""
    return {published_name(name): value for name, value in model.state_dict().items()}


def load_checkpoint(
    path: str | os.PathLike[str],
    variant: str,
    task: Task = "classify",
    *,
    num_classes: int | None = None,
    head: Head | None = None,
    output: OutputKind = "logits",
    ema: bool = False,
) -> Reference:
    """Build the reference model with the weights of a checkpoint, in evaluation mode, float32, on the CPU.

    Args:
        path: a published checkpoint file, see `read_checkpoint`.
        variant: its name, see `variants`.
        num_classes: width that the head must have; None takes the checkpoint's.
        head: of segmentation.
        output: of segmentation.
        ema: take the averaged weights under ``model_ema``.

    Raises:
        OptionError: no such variant, task or head, or a number of classes below 1.
        CheckpointError: the file is unreadable, is of another variant, task, head or number of classes, lacks or
            exceeds keys, or holds weights that are not finite floating-point numbers.
    """
    form = Form(variant_named(variant), task, head)
    with torch.device("meta"):
        reference(
            form.variant, task, 1 if num_classes is None else num_classes, head=head
        )  # what was asked for is there at all
    path = Path(path)
    stored = read_checkpoint(path, ema=ema)
    state = {key: value for key, value in stored.tensors.items() if not form.passes_over(key)}
    found = {key: tuple(value.shape) for key, value in state.items()}
    width = found.get(form.classifier, ())
    classes = width[0] if len(width) in (2, 4) and width[0] else num_classes or 1000
    if found != _expected_shapes(form, classes):
        shapes = {key: tuple(value.shape) for key, value in stored.tensors.items()}
        raise _misfit(path, found, shapes, form, classes)
    if num_classes not in (None, classes):
        raise CheckpointError(
            f"{path} has a head of {classes} classes",
            expected=f"--num-classes {num_classes}",
            hint=f"type: --num-classes {classes}, or leave it out",
        )
    with torch.device("meta"):
        model = reference(form.variant, task, classes, head=head, output=output)
    weights = {our_name(key): value for key, value in _float32(path, state).items()}
    for key, value in model.state_dict().items():
        if key not in weights:  # of training only
            weights[key] = torch.zeros(value.shape, dtype=value.dtype)
    model.load_state_dict(weights, assign=True)
    if isinstance(model, SepViTSegmenter):
        model.class_names, model.palette, model.unusable = stored.class_names, stored.palette, stored.unusable
    return model.eval()


@dataclass(frozen=True)
class Form:
    """Which of the models a checkpoint can be of."""

    variant: Variant
    task: Task
    head: Head | None = None

    @property
    def classifier(self) -> str:
        """The published key whose first axis is the classes."""
        return "decode_head.conv_seg.weight" if self.task == "segment" else "head.weight"

    @property
    def options(self) -> dict[str, str | None]:
        """How it is asked for."""
        return {"--variant": self.variant.name, "--task": self.task, "--head": self.head}

    def passes_over(self, key: str) -> bool:
        """True where a key is of training only."""
        return self.task == "segment" and TRAINING_ONLY.fullmatch(key) is not None

    @property
    def looks(self) -> str:
        """What it is, in words."""
        if self.task == "dense":
            return f"a dense backbone of variant {self.variant.name}"
        kind = "classification" if self.task == "classify" else f"segmentation with the head {self.head}"
        return f"variant {self.variant.name} for {kind}"

    def __str__(self) -> str:
        return f"variant {self.variant.name}, task {self.task}{f', head {self.head}' if self.head else ''}"


def _forms(asked: Variant) -> list[Form]:
    """The published models, and those of an ablation where one was asked for."""
    heads: dict[Task, tuple[Head | None, ...]] = dict.fromkeys(get_args(Task), (None,))
    heads["segment"] = get_args(Head)
    variants = (VARIANTS | {asked.name: asked}).values()
    return [Form(variant, task, head) for variant in variants for task in heads for head in heads[task]]


@lru_cache(maxsize=32)
def _expected_shapes(form: Form, classes: int) -> _Shapes:
    with torch.device("meta"):
        model = reference(form.variant, form.task, classes, head=form.head)
    state = published_state_dict(model)
    return {key: tuple(value.shape) for key, value in state.items() if not form.passes_over(key)}


def _float32(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Own, contiguous, finite float32 copies of stored weights."""
    wrong = [
        f"{key}: {value.dtype}, {value.layout}, {value.device}".replace("torch.", "")
        for key, value in state.items()
        if value.dtype not in DTYPES or value.layout != torch.strided or value.device.type != "cpu"
    ]
    if wrong:
        raise CheckpointError(
            f"{path}: {_some('not stored as plain floating-point numbers', wrong)}",
            expected=f"dense tensors of {', '.join(str(d).removeprefix('torch.') for d in DTYPES)}",
            hint="give the checkpoint as it was before quantisation or conversion",
        )
    weights = {
        key: value.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        for key, value in state.items()
    }
    counts = {key: int(value.numel() - value.isfinite().sum()) for key, value in weights.items()}
    if bad := [f"{key}: {n} of {weights[key].numel()} values" for key, n in counts.items() if n]:
        raise CheckpointError(
            f"{path}: {_some('not finite in float32', bad)}",
            expected="finite weights",
            hint="give a checkpoint from before training diverged",
        )
    return weights


def _misfit(path: Path, found: _Shapes, everything: _Shapes, asked: Form, classes: int) -> CheckpointError:
    """Why the keys and shapes of a file are not those of the model asked for, and whose they are.

    Args:
        found: what the form asked for does not pass over, of ``everything``.
    """
    expected = _expected_shapes(asked, classes)
    scores: dict[Form, float] = {}
    for form in _forms(asked.variant):
        width = everything.get(form.classifier, ())
        shapes = _expected_shapes(form, width[0] if len(width) in (2, 4) and width[0] else classes)
        own = {key: shape for key, shape in everything.items() if not form.passes_over(key)}
        matching = len(own.items() & shapes.items())
        scores[form] = matching / (len(own) + len(shapes) - matching)
    nearest, second = sorted(scores, key=lambda form: -scores[form])[:2]
    best, margin = scores[nearest], scores[nearest] - scores[second]
    options = [f"{o} {v}" for o, v in nearest.options.items() if v is not None and asked.options[o] != v]
    if best == 1:
        return CheckpointError(
            f"{path}: this looks like {nearest.looks}", expected=str(asked), hint=f"type: {' '.join(options)}"
        )
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    misshapen = [
        f"{key}: {found[key]} where {shape} is expected"
        for key, shape in expected.items()
        if key in found and found[key] != shape
    ]
    lists = (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
    clear = best >= 0.5 and margin >= 0.05  # the nearest two, the tasks of one variant, are 0.15 apart
    return CheckpointError(
        f"{path}: {', '.join(_some(label, keys) for label, keys in lists if keys)}",
        expected=f"the {len(expected)} keys of {asked}",
        hint=f"the closest is {nearest.looks}, type: {' '.join(options)}" if clear and options else None,
    )


def _some(label: str, keys: list[str]) -> str:
    """``5 missing (a, b, c, ...)``."""
    return f"{len(keys)} {label} ({', '.join(shown(key) for key in keys[:3])}{', ...' if len(keys) > 3 else ''})"
