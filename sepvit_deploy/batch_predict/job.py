"""The folder of a job: what it is of, which parts are done, and that one process at a time works on it.

    out.parquet/_job.json             what the rows depend on
                _images               the sorted names of the pictures, each ended by a zero byte
                part-000000.parquet   ...
                _SUCCESS              every part is there
                .lock                 held by the process that works on it
                .ray.log              what Ray said, of a job on a cluster

Readers of Parquet pass over names that begin with ``_`` or ``.``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shlex
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sepvit_deploy.artifact import tool_versions, written
from sepvit_deploy.batch_predict.classifying import Place
from sepvit_deploy.batch_predict.listing import Source, offsets, write_listing
from sepvit_deploy.batch_predict.parquet import Counts
from sepvit_deploy.batch_predict.parts import Part, images_in, part_count, part_images_for, present
from sepvit_deploy.errors import InputError, OptionError, OutputError
from sepvit_deploy.records import plain, record

SCHEMA = 1
JOB, IMAGES, SUCCESS, LOCK = "_job.json", "_images", "_SUCCESS", ".lock"


@dataclass(frozen=True)
class Identity:
    """All that the rows of a job depend on.

    Attributes:
        model_sha256, labels_sha256: digests; None for no labels.
        preprocessing: as it writes itself.
        images: how many; images_sha256: of their sorted names.
        part_images: pictures in a part.
    """

    model: str
    model_sha256: str
    preprocessing: dict[str, Any]
    top: int
    labels_sha256: str | None
    images: int = 0
    images_sha256: str = ""
    part_images: int = 0

    def difference(self, other: Identity) -> str | None:
        """How another job differs from this one, in words; None where their rows are the same."""
        if self.model_sha256 != other.model_sha256:
            digests = f"SHA-256 {self.model_sha256[:12]}..., now {other.model_sha256[:12]}..."
            return f"another model ({self.model}, {digests})"
        if self.images_sha256 != other.images_sha256:
            counts = f"{self.images:,}, now {other.images:,}" if self.images != other.images else "as many as now"
            return f"other images ({counts})"
        if self.preprocessing != other.preprocessing:
            return "another preprocessing"
        if self.labels_sha256 != other.labels_sha256:
            return "other labels"
        if self.top != other.top:
            return f"another number of classes (--top {self.top}, now {other.top})"
        if self.part_images != other.part_images:
            return f"another size of parts (--part {self.part_images}, now {other.part_images})"
        return None


@dataclass
class Progress:
    """How far a job is; both count pictures."""

    total: int
    done: int = 0
    failed: int = 0

    def add(self, counts: Counts) -> None:
        """A part more."""
        self.done += counts.images
        self.failed += counts.failed


class Job:
    """A job whose folder this process holds.

    Attributes:
        identity: what it is of.
        progress: of all runs together.
        found: pictures that earlier runs had done.
    """

    def __init__(self, output: Path, source: Source, identity: Identity) -> None:
        self.identity, self.output = identity, output
        metadata = {
            "sepvit_deploy.version": tool_versions().get("sepvit-deploy", "unknown"),
            "sepvit_deploy.model": identity.model,
            "sepvit_deploy.model_sha256": identity.model_sha256,
        }
        # Absolute, because other machines have other working folders.
        self.place = Place(source.root.resolve(), (output / IMAGES).resolve(), output.resolve(), metadata)
        self.progress = Progress(identity.images)
        self._there: set[int] = set()
        self._offsets: array[int] | None = None
        self.look()
        self.found = self.progress.done

    @property
    def parts(self) -> int:
        """Parts in all."""
        return part_count(self.identity.images, self.identity.part_images)

    @property
    def complete(self) -> bool:
        """Whether every part is there."""
        return len(self._there) == self.parts

    def missing(self) -> Iterator[Part]:
        """The parts that are not there, as they are asked for."""
        if self._offsets is None:
            self._offsets = offsets(self.place.listing, self.identity.part_images)
        size = self.identity.part_images
        for index in range(self.parts):
            if index not in self._there:
                images = images_in(index, self.identity.images, size)
                yield Part(index, index * size, images, self._offsets[index], self._offsets[index + 1])

    def look(self) -> None:
        """Count the parts that have come to lie in the folder."""
        for index, counts in present(self.output, self.identity.images, self.identity.part_images, self._there):
            if counts is not None:
                self.add(index, counts)

    def add(self, index: int, counts: Counts) -> None:
        """A part is there; a second time counts nothing."""
        if index not in self._there:
            self._there.add(index)
            self.progress.add(counts)

    def finish(self) -> None:
        """Mark that every part is there.

        Raises:
            OutputError: the place cannot be written.
        """
        with written(self.output / SUCCESS):
            pass


@contextlib.contextmanager
def opened(
    output: Path,
    source: Source,
    identity: Identity,
    *,
    part_images: int | None = None,
    report: Callable[[str], None] = lambda step: None,
) -> Iterator[Job]:
    """The job in ``output``, begun or gone on with, until the context ends.

    Args:
        identity: without the images, which are listed here.
        part_images: None for what an earlier run chose, or a number that fits the images.

    Raises:
        InputError: the folder holds another job, or another process works on it.
        OutputError: it cannot be written, or holds what is no job.
        ImageError: there is no picture.
    """
    if part_images is not None and part_images < 1:
        raise OptionError(f"--part {part_images}", expected="1 or more")
    with _held(output):
        try:
            job = _begun(output, source, identity, part_images, report)
        except OSError as error:
            raise _output_error(output, error) from error
        yield job


def _begun(
    output: Path, source: Source, identity: Identity, part_images: int | None, report: Callable[[str], None]
) -> Job:
    before = _read(output / JOB)
    names = [name for name in os.listdir(output) if name[0] not in "._"]
    if before is None and names:
        found = f"{output} holds {min(names)}, and is no output of batch-predict"
        raise OutputError(found, expected="a new folder, or one of an earlier run", hint="name another --output")
    if not names:
        before = None  # nothing is done: what was wrong the first time may be put right
    report("listing the pictures")
    new = output / f".{IMAGES}.tmp"
    try:
        listing = write_listing(source, new)
        size = part_images or (before.part_images if before else part_images_for(listing.images))
        identity = replace(identity, images=listing.images, images_sha256=listing.sha256, part_images=size)
        if before and (difference := before.difference(identity)):
            hint = "name another --output, or remove this one to begin anew"
            raise InputError(f"{output} is the job of {difference}", hint=hint)
        os.replace(new, output / IMAGES)
    finally:
        new.unlink(missing_ok=True)
    if before is None:
        document = {"schema": SCHEMA, **plain(identity), "versions": tool_versions()}
        with written(output / JOB) as temporary:
            temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    for torn in output.glob(".part-*.tmp"):  # of a run that was killed: we hold the lock
        torn.unlink(missing_ok=True)
    report("looking at what is done")
    job = Job(output, source, identity)
    if not job.complete:
        (output / SUCCESS).unlink(missing_ok=True)  # somebody removed a part
    return job


@contextlib.contextmanager
def _held(output: Path) -> Iterator[None]:
    """Make the folder and keep other processes out; of a job that did not begin, nothing is left.

    Raises:
        InputError: another process works on it.
        OutputError: it cannot be made.
    """
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file", expected="a folder to make, such as out.parquet")
    made = not output.exists()
    lock = output / LOCK
    try:
        output.mkdir(exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _output_error(output, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found = f"another process works on {output}"
            raise InputError(found, hint="wait for it, or name another --output") from None
        except OSError:
            pass  # a file system without locks
        try:
            yield
        finally:
            if not (output / JOB).exists():
                with contextlib.suppress(OSError):
                    for left in (output / IMAGES, lock):
                        left.unlink(missing_ok=True)
                    if made:
                        output.rmdir()
    finally:
        os.close(descriptor)


def _output_error(output: Path, error: OSError) -> OutputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"no space left to write {output}", hint="free some, then type the command again")
    if error.errno == errno.ENOENT and not output.parent.is_dir():
        hint = f"type: mkdir -p {shlex.quote(str(output.parent))}"
        return OutputError(f"the folder {output.parent} does not exist", hint=hint)
    return OutputError(f"{output} cannot be written ({error.strerror or error})", hint="name another --output")


def _read(path: Path) -> Identity | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict) or document.pop("schema", None) != SCHEMA:
            raise ValueError(f"no schema {SCHEMA}")
        document.pop("versions", None)
        return record(Identity, document)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path} describes no job ({error})", hint="name another --output, or remove it") from error
