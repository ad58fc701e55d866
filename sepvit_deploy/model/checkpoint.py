"""Published checkpoint files to our parameters, and back.

    read_state_dict         a file -> tensors under their published names; no code of the file ever runs
    load_checkpoint         a file -> the reference model of a variant and task, every key and shape accounted for
    published_state_dict    a model -> tensors under their published names

Errors name published keys, since those are what the file holds.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import stat
import struct
import warnings
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from sepvit_deploy.errors import CheckpointError, OptionError
from sepvit_deploy.model.sepvit import SepViT, SepViTBackbone
from sepvit_deploy.optional import require
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

PICKLED = (".pth", ".pt", ".bin")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""What weights may be stored in."""

_Shapes = Mapping[str, tuple[int, ...]]

_UNPICKLING = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    struct.error,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    OSError,
)
"""What torch.load raises on a file that is cut short, damaged or foreign."""


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


def read_state_dict(path: str | os.PathLike[str], *, ema: bool = False) -> dict[str, Tensor]:
    """Read the weights of a checkpoint file, keyed by their published names, on the CPU.

    A ``.safetensors`` file holds the weights alone. A ``.pth``, ``.pt`` or ``.bin`` file holds them alone or under
    ``model``, ``state_dict`` or, with ``ema``, ``model_ema``; other entries are ignored. A ``module.`` prefix on every
    key is taken off. Pickled files are read without running code: plain values, tensors and ``argparse.Namespace``.

    Raises:
        CheckpointError: the file is missing, unreadable, damaged, unsafe or holds no weights.
    """
    path = Path(path)
    head = _first_bytes(path)
    if path.suffix.lower() == ".safetensors":
        if ema:
            raise CheckpointError(
                f"{path} has no model_ema: a safetensors file holds a bare state dict", hint="leave --ema out"
            )
        state: Mapping[object, object] = _read_safetensors(path)
    else:
        state = _weights_entry(path, _read_pickled(path, head), ema)
    tensors: dict[str, Tensor] = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: entry {_shown(key)} of the state dict maps {type(key).__name__} to {type(value).__name__}",
                expected="every str to a Tensor",
                hint="re-save the model's state_dict() alone",
            )
        tensors[key] = value
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors", expected="the weights of a SepViT")
    if all(key.startswith("module.") for key in tensors):  # saved under DistributedDataParallel
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def _first_bytes(path: Path) -> bytes:
    """The beginning of a file that exists, can be read and is named like a checkpoint."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise CheckpointError(
                f"{path} is a directory", expected="a checkpoint file", hint="name the file inside it"
            )
        if path.suffix.lower() not in (*PICKLED, ".safetensors"):
            raise CheckpointError(
                f"{path} has the suffix {path.suffix!r}", expected=f"one of {', '.join(PICKLED)}, .safetensors"
            )
        if not stat.S_ISREG(mode):
            raise CheckpointError(f"{path} is not a regular file", expected="a checkpoint file")
        with path.open("rb") as file:
            head = file.read(24)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist", expected="a checkpoint file", hint="check the path") from None
    except PermissionError:
        raise CheckpointError(f"{path} may not be read", hint=f"type: chmod u+r {path}, or ask its owner") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})", hint="check the path") from error
    if not head:
        raise CheckpointError(f"{path} is empty (0 bytes)", hint="copy or download it again")
    return head


def _read_safetensors(path: Path) -> Mapping[object, object]:
    library = require("safetensors", extra="torch")
    load_file = require("safetensors.torch", extra="torch").load_file
    try:
        loaded: Mapping[object, object] = load_file(str(path), device="cpu")
    except (library.SafetensorError, LookupError, ValueError, RuntimeError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file, or is cut short or damaged ({error})",
            expected="a file that safetensors wrote",
            hint="copy or download it again; a file that torch.save wrote is named .pth",
        ) from error
    return loaded


def _read_pickled(path: Path, head: bytes) -> object:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # about how the file was pickled, which no user can act on
            loaded: object = torch.load(path, map_location="cpu", weights_only=True)
    except _UNPICKLING as error:
        message = str(error)
        if forbidden := re.search(r"GLOBAL ([\w.]+)", message):
            raise CheckpointError(
                f"{path} needs the class or function {forbidden[1]}, which could run code",
                expected="tensors and plain values only",
                hint="in an environment you trust, re-save only the state dict: "
                'torch.save({"model": checkpoint["model"]}, "weights.pth")',
            ) from None
        if "TorchScript" in message:
            raise CheckpointError(
                f"{path} is a TorchScript archive",
                expected="a state dict",
                hint='in an environment you trust, re-save its weights: torch.save(module.state_dict(), "weights.pth")',
            ) from None
        if head.startswith((b"PK", b"\x80")):  # a zip archive or a pickle
            raise CheckpointError(
                f"{path} is cut short, damaged, or not written by torch.save ({path.stat().st_size} bytes)",
                hint="compare its size with the original's, and copy or download it again",
            ) from error
        raise CheckpointError(
            f"{path} is not a checkpoint: it begins with {head.decode('latin-1')!a}",
            expected="a file that torch.save wrote",
            hint="copy or download it again; a safetensors file is named .safetensors",
        ) from error
    return loaded


def _weights_entry(path: Path, loaded: object, ema: bool) -> Mapping[object, object]:
    """The mapping that holds the weights, within what a pickled file holds."""
    if not isinstance(loaded, Mapping):
        raise CheckpointError(
            f"{path} holds a value of type {type(loaded).__name__}", expected="a mapping of names to tensors"
        )
    bare = any(isinstance(value, Tensor) for value in loaded.values())
    names = ", ".join(_shown(key) for key in list(loaded)[:6])
    holds = "a bare state dict" if bare else f"only {names}" if names else "nothing"
    for entry in ("model_ema",) if ema else ("model", "state_dict"):
        if isinstance(loaded.get(entry), Mapping):
            state: Mapping[object, object] = loaded[entry]
            if not any(isinstance(value, Tensor) for value in state.values()):
                raise CheckpointError(f"{path} holds no tensors under {entry}", expected="the weights of a SepViT")
            return state
    if ema:
        raise CheckpointError(f"{path} has no model_ema: it holds {holds}", hint="leave --ema out")
    if not bare:
        raise CheckpointError(
            f"{path} holds no tensors: it holds {holds}",
            expected="weights, alone or under model or state_dict",
            hint="type: --ema" if isinstance(loaded.get("model_ema"), Mapping) else None,
        )
    return loaded


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
    return f"{len(keys)} {label} ({', '.join(_shown(key) for key in keys[:3])}{', ...' if len(keys) > 3 else ''})"


def _shown(key: object) -> str:
    """A key of a file one does not know, short and without control characters."""
    return ascii(str(key)[:120])[1:-1]
