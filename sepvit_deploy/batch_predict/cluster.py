"""A Ray cluster to work on: connected within a time limit, and every machine of it sees the same files."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sepvit_deploy.batch_predict.classifying import Place
from sepvit_deploy.errors import InputError, OptionError, SepvitError, ServerError
from sepvit_deploy.optional import require

if TYPE_CHECKING:
    from sepvit_deploy.runners.base import Runner

CONNECT_SECONDS = 15.0
LOOK_SECONDS = 120.0
"""A worker has to start, and read the model."""


class Model(Protocol):
    """A model that any machine of the cluster can open by its path."""

    def require_same(self) -> None:
        """Refuse another file than the job's.

        Raises:
            InputError: it is another, or not there.
        """

    def running(self) -> AbstractContextManager[Runner]:
        """A runner of it."""


@dataclass(frozen=True)
class Cluster:
    """Which cluster, and what of it.

    Attributes:
        address: ``auto``, ``local``, ``host:port`` or ``ray://host:port``.
        workers: actors; None for as many as there are processors or GPUs for.
        cpus: of an actor; gpus: likewise.
    """

    address: str
    workers: int | None = None
    cpus: int = 1
    gpus: int = 0


def require_shared(ray: Any, cluster: Cluster, place: Place, model: Model) -> None:
    """Refuse a cluster one of whose machines sees other files than this one; those without room for an actor may.

    Raises:
        InputError: a machine does not read what lies here, or has another model.
        ServerError: a machine gives no answer.
    """
    marker = place.output / f".marker-{os.urandom(8).hex()}.tmp"
    marker.write_bytes(os.urandom(32))
    try:
        look = ray.remote(num_cpus=0, max_retries=0)(_look)
        nodes = [node for node in ray.nodes() if _room(node, cluster)]
        affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        answers = {
            look.options(scheduling_strategy=affinity(node["NodeID"], soft=False)).remote(
                marker, marker.read_bytes(), place, model
            ): node["NodeManagerHostname"]
            for node in nodes
        }
        done, late = ray.wait(list(answers), num_returns=len(answers), timeout=LOOK_SECONDS)
        if late:
            raise ServerError(f"{answers[late[0]]} of the Ray cluster gives no answer", expected="every machine up")
        for answer in done:
            if failure := ray.get(answer):
                raise InputError(f"{answers[answer]} of the Ray cluster: {failure}", expected=_SHARED)
    except ray.exceptions.RayError as error:
        raise ServerError(f"the Ray cluster failed ({first_line(error)})", hint=GO_ON) from error
    finally:
        marker.unlink(missing_ok=True)


def _look(marker: Path, content: bytes, place: Place, model: Model) -> str | None:
    """On a machine of the cluster: what is not as it is where the job was typed."""
    try:
        if marker.read_bytes() != content:
            return f"{place.output} is another folder there"
        if not place.root.is_dir():
            return f"{place.root} is not there"
        mine = marker.with_suffix(f".{os.urandom(4).hex()}")
        mine.touch()
        mine.unlink()
        model.require_same()
    except OSError as error:
        return str(error)
    except SepvitError as error:
        return str(error)
    return None


def actors_for(ray: Any, cluster: Cluster) -> int:
    """As many actors as were asked for, or as there are processors and GPUs for.

    Raises:
        OptionError: the cluster has room for none.
    """
    room = sum(_room(node, cluster) for node in ray.nodes())
    if not room:
        what = f"{cluster.cpus} processors" + (f" and {cluster.gpus} GPU" if cluster.gpus else "")
        raise OptionError(
            f"no machine of the Ray cluster has {what}", expected="room for an actor", hint="see --threads"
        )
    return min(cluster.workers, room) if cluster.workers else room


def _room(node: dict[str, Any], cluster: Cluster) -> int:
    """Actors that a machine has processors and GPUs for."""
    if not node["Alive"]:
        return 0
    cpus = int(node["Resources"].get("CPU", 0) // cluster.cpus)
    return min(cpus, int(node["Resources"].get("GPU", 0) // cluster.gpus)) if cluster.gpus else cpus


@contextlib.contextmanager
def connected(address: str, log: Path) -> Iterator[Any]:
    """Ray, connected to a cluster; its own words go to ``log``.

    Raises:
        ServerError: there is no such cluster, or it runs another version.
    """
    _require_listening(address)
    with _apart(log):
        ray = require("ray", extra="ray")
        require("ray.data", extra="ray")
        before = signal.getsignal(signal.SIGTERM)
        failures = (ConnectionError, RuntimeError, ValueError, OSError, AssertionError, ray.exceptions.RayError)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except failures as error:
            raise ServerError(f"no Ray cluster at {address} ({first_line(error)})", expected=_ADDRESS) from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray's own would end the process without a word
        try:
            ray.data.DataContext.get_current().enable_progress_bars = False
            logging.getLogger("ray.data").setLevel(logging.ERROR)
            yield ray
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _apart(log: Path) -> Iterator[None]:
    """What Ray prints, in Python and below it, to a file: between our lines and bars it would be in the way."""
    terminal = os.dup(2)
    try:
        with log.open("a", encoding="utf-8") as file, open(terminal, "w", encoding="utf-8", closefd=False) as ours:
            real = sys.stderr is sys.__stderr__
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(ours if real else sys.stderr):
                os.dup2(file.fileno(), 2)
                yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def _require_listening(address: str) -> None:
    """Refuse an address where nothing listens: Ray itself would try for minutes.

    Raises:
        OptionError: it is no address; ServerError: nothing answers there.
    """
    if address in ("auto", "local"):
        return
    host, _, port = address.removeprefix(CLIENT).rpartition(":")
    if not host or not port.isdigit():
        raise OptionError(f"--ray {address!r:.60}", expected=_ADDRESS)
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS) as connection:
            connection.settimeout(CONNECT_SECONDS)
            connection.sendall(_HTTP2_HELLO)
            answer = connection.recv(4)
    except (OSError, OverflowError) as error:
        raise ServerError(f"nothing answers at {address} ({error})", expected=_ADDRESS) from error
    if len(answer) < 4 or answer[3] != _HTTP2_SETTINGS:
        raise ServerError(f"what listens at {address} is no Ray cluster", expected=_ADDRESS)


def first_line(error: BaseException) -> str:
    """What a Ray error is about, in a line: the last one, where it holds a traceback."""
    text = str(error) or type(error).__name__
    if "Traceback" in text or 'File "' in text:
        text = text.strip().splitlines()[-1]
    return " ".join(text.split())[:300]


_HTTP2_SETTINGS = 4
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, _HTTP2_SETTINGS, 0, 0, 0, 0, 0])
"""What a gRPC client says first, to which a server answers with its own settings."""
_ADDRESS = "auto, local, HOST:PORT or ray://HOST:PORT"
_SHARED = "the same paths on every machine, as shared storage gives"
CLIENT = "ray://"
"""How the address of a cluster begins that is reached from outside it."""
GO_ON = "the same command goes on"
