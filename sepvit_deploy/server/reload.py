"""A new model file takes the place of the one that serves, between two batches; what is unfit is refused aloud."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from sepvit_deploy.artifact import passport_path
from sepvit_deploy.errors import InputError, SepvitError
from sepvit_deploy.server.lane import Lane, Model, Source
from sepvit_deploy.server.service import Service

_OTHER = "start another server for it"
Identity = tuple[tuple[int, int, int] | None, ...]


class Watch:
    """Looks at a file and its passport, and opens them when either has changed and both rest.

    Args:
        path: the model's file; None where there is none to look at.
        known: the `identity` of what serves, from before it was opened: what came since is news.
        log: told what came of it, a line each time.
    """

    def __init__(
        self, service: Service, source: Source, path: Path | None, known: Identity, log: Callable[[str], None]
    ) -> None:
        self._service = service
        self._source = source
        self._path = path
        self._log = log
        self._asked = asyncio.Event()
        self._known = known

    def ask(self) -> None:
        """Open the file again, changed or not."""
        self._asked.set()

    async def run(self) -> None:
        """Watch, for ever."""
        seen = self._known
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), self._service.settings.poll_s)
            found = self._identity()
            # A file is replaced just before its passport, and a copy takes its time: only what rests is opened.
            rests, seen = found == seen, found
            if self._asked.is_set() or (found != self._known and rests and found[0] is not None):
                asked = self._asked.is_set()
                self._asked.clear()
                self._known = found
                await self._replace(found, asked)

    async def _replace(self, found: Identity, asked: bool) -> None:
        service, before = self._service, self._service.lane
        lane = Lane(self._source, before.version + 1)
        try:
            await lane.open(service.settings.max_batch)
            if lane.model.sha256 == before.model.sha256:
                if asked:
                    self._log(f"reload: the file is the one that serves, {_short(lane.model)}")
                await lane.close()
                return
            try:
                require_alike(before, lane)
                if self._identity() != found:
                    raise InputError("the file changed while it was opened")
            except InputError:
                await lane.close()
                raise
        except (SepvitError, OSError, MemoryError) as error:
            service.metrics.reloads.labels("refused").inc()
            self._log(
                f"reload REFUSED, version {before.version} ({_short(before.model)}) goes on serving: "
                f"{error or type(error).__name__}"
            )
            if self._identity() != found:
                self._known = ()  # look again
            return
        service.replace(lane)
        service.metrics.reloads.labels("done").inc()
        self._log(f"reload: version {lane.version} ({_short(lane.model)}) serves now")
        await before.close()  # in its own thread, behind the batch that it may still run

    def _identity(self) -> Identity:
        return identity(self._path)


def identity(path: Path | None) -> Identity:
    """What changes when a model's file or its passport is replaced."""
    return (None,) if path is None else tuple(_of(place) for place in (path, passport_path(path)))


def require_alike(before: Lane, after: Lane) -> None:
    """Refuse a model that clients would have to be told of.

    Raises:
        InputError: its inputs, its outputs, or how pictures become inputs differ.
    """
    old, new = before.model, after.model
    for what, was, now in (
        ("task", old.spec.task, new.spec.task),
        ("head", old.spec.head, new.spec.head),
        ("output", old.spec.output, new.spec.output),
        ("any_size", old.spec.any_size, new.spec.any_size),
        ("size", old.spec.size, new.spec.size),
        ("outputs", before.outputs, after.outputs),
        ("classes", old.spec.num_classes, new.spec.num_classes),
        ("preprocessing", old.preprocessing, new.preprocessing),
        ("names of classes", old.classes, new.classes),
    ):
        if was != now:
            found = f"the new file has {what} {now!s:.300}"
            raise InputError(found, expected=f"{was!s:.300}, as clients know it", hint=_OTHER)
    if after.max_batch < before.max_batch:
        found = f"the new file takes batches of at most {after.max_batch}"
        raise InputError(found, expected=f"{before.max_batch}, as clients know it", hint=_OTHER)


def _short(model: Model) -> str:
    return f"SHA-256 {model.sha256[:12]}..."


def _of(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
