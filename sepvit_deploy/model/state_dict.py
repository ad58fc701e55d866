"""A checkpoint file -> its tensors, under the names that the file gives them. No code of the file ever runs."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import stat
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sepvit_deploy.errors import CheckpointError
from sepvit_deploy.optional import require

MAX_CLASSES = 10_000
MAX_NAME = 200
"""Characters of a class's name."""
PICKLED = (".pth", ".pt", ".bin")

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


@dataclass(frozen=True)
class Stored:
    """What a checkpoint file holds.

    Attributes:
        tensors: by the names that the file gives them.
        class_names: as a toolbox notes them beside the weights; None where it does not, or not in a usable form.
        palette: red, green and blue of each class, 0 to 255; likewise.
        unusable: which of ``CLASSES`` and ``PALETTE`` it notes in a form that cannot be used.
    """

    tensors: dict[str, Tensor]
    class_names: tuple[str, ...] | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None
    unusable: tuple[str, ...] = ()


def read_state_dict(path: str | os.PathLike[str], *, ema: bool = False) -> dict[str, Tensor]:
    """The weights alone of `read_checkpoint`."""
    return read_checkpoint(path, ema=ema).tensors


def read_checkpoint(path: str | os.PathLike[str], *, ema: bool = False) -> Stored:
    """Read the weights of a checkpoint file, keyed by their published names, on the CPU.

    A ``.safetensors`` file holds the weights alone. A ``.pth``, ``.pt`` or ``.bin`` file holds them alone or under
    ``model``, ``state_dict`` or, with ``ema``, ``model_ema``; of other entries only ``meta`` is looked at. A
    ``module.`` prefix on every key is taken off. Pickled files are read without running code: plain values, tensors
    and ``argparse.Namespace``.

    Raises:
        CheckpointError: the file is missing, unreadable, damaged, unsafe or holds no weights.
    """
    path = Path(path)
    head = _first_bytes(path)
    meta: object = None
    if path.suffix.lower() == ".safetensors":
        if ema:
            raise CheckpointError(
                f"{path} has no model_ema: a safetensors file holds a bare state dict", hint="leave --ema out"
            )
        state: Mapping[object, object] = _read_safetensors(path)
    else:
        loaded = _read_pickled(path, head)
        state = _weights_entry(path, loaded, ema)
        meta = loaded.get("meta") if isinstance(loaded, Mapping) and state is not loaded else None
    tensors: dict[str, Tensor] = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: entry {shown(key)} of the state dict maps {type(key).__name__} to {type(value).__name__}",
                expected="every str to a Tensor",
                hint="re-save the model's state_dict() alone",
            )
        tensors[key] = value
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors", expected="the weights of a SepViT")
    if all(key.startswith("module.") for key in tensors):  # saved under DistributedDataParallel
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    found = {"CLASSES": _class_names(meta), "PALETTE": _palette(meta)}
    noted = meta if isinstance(meta, Mapping) else {}
    unusable = tuple(key for key, value in found.items() if value is None and noted.get(key) is not None)
    return Stored(tensors, _class_names(meta), _palette(meta), unusable)


def _class_names(meta: object) -> tuple[str, ...] | None:
    """``CLASSES`` of a toolbox's ``meta``: texts that can be shown in one line."""
    found = meta.get("CLASSES") if isinstance(meta, Mapping) else None
    if not isinstance(found, list | tuple) or not 1 <= len(found) <= MAX_CLASSES:
        return None
    good = all(isinstance(name, str) and 1 <= len(name) <= MAX_NAME and name.isprintable() for name in found)
    return tuple(found) if good else None


def _palette(meta: object) -> tuple[tuple[int, int, int], ...] | None:
    """``PALETTE`` of a toolbox's ``meta``: three integers from 0 to 255 for each class."""
    found = meta.get("PALETTE") if isinstance(meta, Mapping) else None
    if not isinstance(found, list | tuple) or not 1 <= len(found) <= MAX_CLASSES:
        return None
    good = all(
        isinstance(colour, list | tuple)
        and len(colour) == 3
        and all(type(level) is int and 0 <= level <= 255 for level in colour)
        for colour in found
    )
    return tuple((red, green, blue) for red, green, blue in found) if good else None


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
    names = ", ".join(shown(key) for key in list(loaded)[:6])
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


def shown(key: object) -> str:
    """A key of a file one does not know, short and without control characters."""
    return ascii(str(key)[:120])[1:-1]
