"""Published checkpoint files to our parameters, and back.

    load_checkpoint         a file -> the reference model of a variant and task, every key and shape accounted for
    published_state_dict    a model -> tensors under their published names

Errors name published keys, since those are what the file holds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from sepvit_deploy.errors import CheckpointError, OptionError
from sepvit_deploy.model.sepvit import SepViT, SepViTBackbone
from sepvit_deploy.model.state_dict import read_state_dict, shown
from sepvit_deploy.variants import VARIANTS, Task, Variant, variant_named

TRANSLATION = (
    ("patch_embeds.#.", "stages.#.embed."),
    ("pos_block.#.proj.0.", "stages.#.peg.conv."),
    ("blocks.#.#.attn.DSA_qkv.", "stages.#.blocks.#.attention.dwa.qkv."),
    ("blocks.#.#.attn.win_tokens_norm.", "stages.#.blocks.#.attention.pwa.norm."),
    ("blocks.#.#.attn.PSA_qk.", "stages.#.blocks.#.attention.pwa.qk."),
    ("blocks.#.#.attn.proj.", "stages.#.blocks.#.attention.proj."),
    ("blocks.#.#.win_tokens", "stages.#.blocks.#.window_tokens"),
    ("blocks.#.#.", "stages.#.blocks.#."),
    ("norm_list.#.", "norms.#."),
)
"""Beginnings of names, published and ours, # standing for a number; the first that fits counts, the rest is kept."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""What weights may be stored in."""

_Shapes = Mapping[str, tuple[int, ...]]


def our_name(published: str) -> str:
    """The name in our modules of a published key."""
    return _translate(published, TRANSLATION)


def published_name(ours: str) -> str:
    """The published key of a name in our modules."""
    return _translate(ours, ((b, a) for a, b in TRANSLATION))


def _translate(name: str, table: Iterable[tuple[str, str]]) -> str:
    for before, after in table:
        if match := re.match(before.replace(".", r"\.").replace("#", r"(\d+)"), name):
            for number in match.groups():
                after = after.replace("#", number, 1)
            return after + name[match.end() :]
    return name


def published_state_dict(model: SepViT | SepViTBackbone) -> dict[str, Tensor]:
    """The weights of ``model`` as a published checkpoint names them; the tensors are the model's own."""
    return {published_name(name): value for name, value in model.state_dict().items()}


def load_checkpoint(
    path: str | os.PathLike[str],
    variant: str,
    task: Task = "classify",
    *,
    num_classes: int | None = None,
    ema: bool = False,
) -> SepViT | SepViTBackbone:
    """Build the reference model with the weights of a checkpoint, in evaluation mode, float32, on the CPU.

    Args:
        path: a published checkpoint file, see `read_state_dict`.
        variant: ``lite``, ``t``, ``s`` or ``b``.
        task: ``classify`` or ``dense``.
        num_classes: width that the head must have; None takes the checkpoint's.
        ema: take the averaged weights under ``model_ema``.

    Raises:
        OptionError: no such variant or task, or a number of classes below 1.
        CheckpointError: the file is unreadable, is of another variant, task or number of classes, lacks or exceeds
            keys, or holds weights that are not finite floating-point numbers.
    """
    chosen = variant_named(variant)
    if task not in get_args(Task):
        raise OptionError(f"there is no task {task!r}", expected="classify or dense")
    if num_classes is not None and num_classes < 1:
        raise OptionError(f"--num-classes {num_classes}", expected="1 or more")
    path = Path(path)
    state = read_state_dict(path, ema=ema)
    found = {key: tuple(value.shape) for key, value in state.items()}
    head = found.get("head.weight", ())
    classes = head[0] if len(head) == 2 and head[0] else num_classes or 1000
    if found != _expected_shapes(chosen, task, classes):
        raise _misfit(path, found, chosen, task, classes)
    if num_classes not in (None, classes):
        raise CheckpointError(
            f"{path} has a head of {classes} classes",
            expected=f"--num-classes {num_classes}",
            hint=f"type: --num-classes {classes}, or leave it out",
        )
    with torch.device("meta"):
        model = _build(chosen, task, classes)
    weights = _float32(path, state)
    model.load_state_dict({our_name(key): value for key, value in weights.items()}, assign=True)
    return model.eval()


def _build(variant: Variant, task: Task, classes: int) -> SepViT | SepViTBackbone:
    return SepViT(variant, classes) if task == "classify" else SepViTBackbone(variant, classes)


@lru_cache(maxsize=32)
def _expected_shapes(variant: Variant, task: Task, classes: int) -> _Shapes:
    with torch.device("meta"):
        model = _build(variant, task, classes)
    return {key: tuple(value.shape) for key, value in published_state_dict(model).items()}


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


def _misfit(path: Path, found: _Shapes, variant: Variant, task: Task, classes: int) -> CheckpointError:
    """Why the keys and shapes of a file are not those of a variant and task, and whose they are."""
    expected = _expected_shapes(variant, task, classes)
    scores: dict[tuple[str, Task], float] = {}
    for other in VARIANTS.values():
        for kind in get_args(Task):
            shapes = _expected_shapes(other, kind, classes)
            matching = len(found.items() & shapes.items())
            scores[other.name, kind] = matching / (len(found) + len(shapes) - matching)
    (name, kind), second = sorted(scores, key=lambda key: -scores[key])[:2]
    best, margin = scores[name, kind], scores[name, kind] - scores[second]
    looks = f"variant {name} for classification" if kind == "classify" else f"a dense backbone of variant {name}"
    options = [f"--variant {name}"] * (name != variant.name) + [f"--task {kind}"] * (kind != task)
    asked = f"variant {variant.name}, task {task}"
    if best == 1:
        return CheckpointError(f"{path}: this looks like {looks}", expected=asked, hint=f"type: {' '.join(options)}")
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
        hint=f"the closest is {looks}, type: {' '.join(options)}" if clear and options else None,
    )


def _some(label: str, keys: list[str]) -> str:
    """``5 missing (a, b, c, ...)``."""
    return f"{len(keys)} {label} ({', '.join(shown(key) for key in keys[:3])}{', ...' if len(keys) > 3 else ''})"
