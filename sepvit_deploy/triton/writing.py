"""Models into a repository: new ones whole, new versions beside old ones, and nothing that our own linter refuses."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sepvit_deploy.artifact import sha256
from sepvit_deploy.errors import InputError, OptionError, OutputError
from sepvit_deploy.triton import placing
from sepvit_deploy.triton.contents import Content, Model, models
from sepvit_deploy.triton.exchange import changed_settings, lowers_limit, require_exchangeable
from sepvit_deploy.triton.linting import lint
from sepvit_deploy.triton.repository import ModelFolder, read_repository
from sepvit_deploy.triton.rules import Finding
from sepvit_deploy.triton.rules.engines import VERSION_COMPATIBLE
from sepvit_deploy.triton.served import CONFIG, Served, Serving
from sepvit_deploy.triton_releases import ALLOW_VERSION_COMPATIBLE

Change = Literal["new model", "new version", "new settings", "unchanged"]


@dataclass(frozen=True)
class Placed:
    """What became of one model.

    Attributes:
        settings: of the config that was there, what is another now.
    """

    model: str
    version: int
    change: Change
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Written:
    """What was written, and what the linter warns of in it.

    Attributes:
        flags: that a server of this repository needs.
        kept_labels: models for which no labels were given, and whose labels in the repository stay.
    """

    repository: Path
    placed: tuple[Placed, ...]
    warnings: tuple[Finding, ...]
    flags: tuple[str, ...] = ()
    kept_labels: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold."""
        return {
            "repository": str(self.repository),
            "models": [asdict(each) for each in self.placed],
            "warnings": [asdict(each) for each in self.warnings],
            "flags": list(self.flags),
            "kept_labels": list(self.kept_labels),
        }


def write(
    repository: Path, served: Sequence[Served], serving: Serving, warn: Callable[[str], None] = lambda text: None
) -> Written:
    """Write models, each with what belongs to it.

    A file that is the newest version already becomes no other one. A version is never overwritten.

    Args:
        warn: told where a second writer would not be kept out.

    Raises:
        OptionError: two models have one name, or the version is there already.
        InputError: what is there under a name is another kind of model, or a file to copy cannot be read.
        RepositoryFailed: a server would refuse the result; nothing was changed.
        OutputError: the repository cannot be written, or holds a folder that is no model.
    """
    asked = [(each.name, model) for each in served for model in models(each, serving)]
    counts = Counter(model.name for _, model in asked)
    if clashing := [name for name, count in counts.items() if count > 1]:
        raise OptionError(f"two models would be called {clashing[0]}", hint="write one of them with another --name")
    sources = {path for _, model in asked for path in model.version.values() if isinstance(path, Path)}
    _require_models_alone(repository)
    with placing.staging(repository, warn) as stage, _reading(sources):
        old = read_repository(repository)
        itself_first = sorted(asked, key=lambda pair: pair[0] != pair[1].name)
        for _, model in itself_first:
            if model.name in old.models:
                require_exchangeable(model, old.models[model.name])
        placed = [
            _stage(stage, model, old.models.get(model.name), serving.version if main == model.name else None)
            for main, model in asked
        ]
        found = lint(old.with_models(read_repository(stage)))
        own = [finding for finding in found.findings if finding.model in counts]
        replace(found, repository=repository, findings=tuple(own)).require_passed(shown=3)
        # In the order in which one uses another; but where batches become smaller it is turned round, for an ensemble
        # may never take more than its steps.
        before = old.models
        lower = {model.name for _, model in asked if model.name in before and lowers_limit(model, before[model.name])}
        for each in reversed(placed):
            if each.model in lower:
                _move(stage / each.model, repository / each.model, each, settings_first=True)
        for each in placed:
            if each.model not in lower:
                _move(stage / each.model, repository / each.model, each)
    compatible = any(finding.rule == VERSION_COMPATIBLE for finding in found.findings)
    return Written(repository, tuple(placed), tuple(own), (ALLOW_VERSION_COMPATIBLE,) if compatible else ())


def _require_models_alone(repository: Path) -> None:
    """Refuse a repository that no server would start with: every folder of it is a model to Triton, hidden ones too.

    Raises:
        OutputError: a folder has no config.
    """
    with contextlib.suppress(OSError):  # of a place that cannot be listed, staging says why
        folders = sorted(entry.name for entry in os.scandir(repository) if entry.is_dir())
        for name in folders:
            if not placing.is_stage(repository, name) and not os.path.isfile(repository / name / CONFIG):
                raise OutputError(
                    f"{repository / name} is no model, for it has no {CONFIG}, and Triton does not start beside it",
                    expected="a folder of models alone, or a new one",
                    hint="give another --repository",
                )


@contextlib.contextmanager
def _reading(sources: set[Path]) -> Iterator[None]:
    """Tell trouble with a file that is copied from trouble with the repository."""
    try:
        yield
    except OSError as error:
        # With a second name it is of the copying, and which of the two is at fault is not known.
        if error.filename2 is None and Path(str(error.filename)) in sources:
            raise InputError(f"{error.filename} cannot be read any more ({error.strerror})") from error
        raise


def _stage(stage: Path, model: Model, old: ModelFolder | None, asked: int | None) -> Placed:
    """Write what is new of a model into the stage."""
    if old is None:
        placed = Placed(model.name, asked or 1, "new model")
    else:
        newest = max(old.versions, default=0)
        version = asked or newest + 1
        if version in old.versions:
            expected = f"{newest + 1} or more: a version that may be in use is never overwritten"
            raise OptionError(f"--version {version} of {model.name} is there already", expected=expected)
        changed = changed_settings(model, old)
        placed = Placed(model.name, version, "new version", changed)
        if asked is None and newest and _holds(old.versions[newest].path, model.version):
            change: Change = "unchanged" if _holds(old.path, model.shared) else "new settings"
            placed = Placed(model.name, newest, change, changed)
    placing.write(stage / model.name, model.shared)
    if placed.change in ("new model", "new version"):
        placing.write(stage / model.name / str(placed.version), model.version)
    return placed


def _move(staged: Path, target: Path, placed: Placed, *, settings_first: bool = False) -> None:
    """Let a server see it.

    A version comes before its settings: it serves under the old ones just as well. It does not where it takes smaller
    batches than they say; then they come first, for the older versions serve under the new ones.
    """
    if placed.change == "new model":
        placing.place(staged, target)
        return
    version = str(placed.version)
    if placed.change == "new version" and not settings_first:
        placing.place(staged / version, target / version)
    if placed.change != "unchanged":
        for parent, folders, files in os.walk(staged):
            folders[:] = [folder for folder in folders if folder != version]
            for name in files:
                place = Path(parent, name)
                placing.update(place, target / place.relative_to(staged))
    if placed.change == "new version" and settings_first:
        placing.place(staged / version, target / version)


def _holds(folder: Path, files: dict[str, Content]) -> bool:
    """True where a folder holds these very files."""
    for place, content in files.items():
        path = folder / place
        if not os.path.isfile(path):
            return False
        size = len(content) if isinstance(content, bytes) else os.stat(content).st_size
        if os.stat(path).st_size != size:
            return False
        same = path.read_bytes() == content if isinstance(content, bytes) else sha256(path) == sha256(content)
        if not same:
            return False
    return True
