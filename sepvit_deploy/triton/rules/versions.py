"""Rules on folders and files: versions, leftovers, links."""

from __future__ import annotations

import ast
import os.path
import warnings
from collections.abc import Iterator
from pathlib import PurePosixPath

from sepvit_deploy.errors import InputError
from sepvit_deploy.plans import MAGIC
from sepvit_deploy.triton.messages import Message
from sepvit_deploy.triton.repository import Repository, Version, read_file
from sepvit_deploy.triton.rules.rule import rule
from sepvit_deploy.triton.served import FILES

MAX_PYTHON_BYTES = 1 << 20
_FILE_OF = {
    **{"tensorrt_plan": FILES["plan"], "tensorrt": FILES["plan"]},
    **{"onnxruntime_onnx": FILES["onnx"], "onnxruntime": FILES["onnx"]},
    "python": "model.py",
}
"""By platform or backend, what Triton opens where the config names no file."""


def file_of(message: Message) -> str:
    """The file that a config makes Triton open in a version's folder; empty where it opens none, or who knows."""
    if message.platform == "ensemble":
        return ""
    return str(message.default_model_filename or _FILE_OF.get(message.platform or message.backend, ""))


@rule("no-version", "error", "a model without a version stops the server from starting, an ensemble as well")
def _none(repository: Repository) -> Iterator[tuple[str, str]]:
    for model in repository.models.values():
        if not model.versions:
            yield model.name, "has no folder of a version, such as 1"


@rule("version-policy", "error", "a policy that names versions which are not there serves less than it says")
def _policy(repository: Repository) -> Iterator[tuple[str, str]]:
    for model, config, message in repository.configs():
        if message.version_policy.HasField("specific"):
            asked = set(message.version_policy.specific.versions)
            if missing := sorted(asked - model.versions.keys()):
                text = f"serves version {', '.join(map(str, missing))}, which is not there"
                yield f"{model.name}/{config.place}", text


@rule("version-file", "error", "a version without its file does not load")
def _file(repository: Repository) -> Iterator[tuple[str, str]]:
    for model, config, message in repository.configs():
        name = file_of(message)
        for version in model.served(message) if name else ():
            if not version.has(name):
                yield f"{model.name}/{version.number}", f"has no {name}, which {config.place} serves"


@rule("python-unreadable", "error", "Triton does not load a Python model that is no Python")
def _python(repository: Repository) -> Iterator[tuple[str, str]]:
    for model, _, message in repository.configs():
        name = file_of(message)
        for version in model.served(message) if name.endswith(".py") else ():
            if version.has(name) and (problem := _unparsed(version, name)):
                yield f"{model.name}/{version.number}/{name}", problem


def _unparsed(version: Version, name: str) -> str:
    """Why a file is no Python; empty where it is. Nothing of it is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(read_file(version.path / name, version.base, MAX_PYTHON_BYTES))
    except SyntaxError as error:
        return f"does not parse: line {error.lineno or 1}: {error.msg}"
    except (RecursionError, MemoryError):
        return "does not parse: it is nested too deeply"
    except (InputError, ValueError) as error:
        return f"does not parse: {error}"
    return ""


@rule("platform-file", "error", "a platform opens its own kind of file, and no other")
def _platform(repository: Repository) -> Iterator[tuple[str, str]]:
    for model, config, message in repository.configs():
        backend, name = message.platform or message.backend, file_of(message)
        if not backend:
            yield f"{model.name}/{config.place}", "names neither a platform nor a backend"
        elif name and backend in _FILE_OF and os.path.splitext(name)[1] != os.path.splitext(_FILE_OF[backend])[1]:
            yield f"{model.name}/{config.place}", f"is of {backend} and opens {name}"
        for version in model.served(message):
            if name == FILES["plan"] and version.has(name) and _is_rtx(version.path / name):
                found = f"{name} is a plan of TensorRT-RTX, which Triton has no backend for"
                yield f"{model.name}/{version.number}", found


def _is_rtx(path: os.PathLike[str]) -> bool:
    try:
        with open(path, "rb") as file:
            return MAGIC.get(file.read(4)) == "rtx"
    except OSError:
        return False  # its passport cannot be held against it, and another rule says so


@rule("stray-folder", "warning", "Triton passes over a folder that is no version number")
def _strays(repository: Repository) -> Iterator[tuple[str, str]]:
    for model in repository.models.values():
        for name in model.strays:
            yield f"{model.name}/{name}", "is no version, for those are numbers from 1"


@rule("leftover", "error", "a server takes a leftover of an interrupted writer for a model, and does not start")
def _leftovers(repository: Repository) -> Iterator[tuple[str, str]]:
    for name in repository.leftovers:
        yield name, "was left by an interrupted writer: remove it while none is at work"


@rule("outside", "error", "a file outside of the repository is not what was checked, and not what is copied with it")
def _outside(repository: Repository) -> Iterator[tuple[str, str]]:
    for place, target in repository.links.items():
        yield place, f"is a link out of the repository, to {target}"
    for model, config, message in repository.configs():
        named = [message.default_model_filename, *(output.label_filename for output in message.output)]
        named += [source.input_data_file for each in message.model_warmup for source in each.inputs.values()]
        for name in named:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                yield f"{model.name}/{config.place}", f"names the file {name!r:.100}, which leads out of its folder"
