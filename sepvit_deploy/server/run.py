"""A server from its start to its end: bind, open the model, let clients in, serve, and end without losing a request."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import logging
import math
import os
import signal
import socket
import warnings
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from sepvit_deploy.classes import require_labels
from sepvit_deploy.errors import InputError, Interrupted, OptionError
from sepvit_deploy.optional import require
from sepvit_deploy.server.app import application
from sepvit_deploy.server.connections import protocol_class
from sepvit_deploy.server.lane import Lane, Source
from sepvit_deploy.server.pictures import Workers, load_decoders
from sepvit_deploy.server.reload import Watch, identity
from sepvit_deploy.server.service import Service
from sepvit_deploy.server.settings import Settings

Log = Callable[[str], None]
BACKLOG = 1024
SAID_AGAIN_S = 10.0
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def serve(
    source: Source,
    settings: Settings,
    *,
    labels: list[str] | None = None,
    watched: Path | None = None,
    log: Log,
    started: Callable[[str, bool, Lane], None],
) -> None:
    """Serve a model until SIGTERM or SIGINT, and answer what is under way then; a second signal ends it at once.

    Where requests are still under way after `Settings.drain_s`, the process ends with 1.

    Args:
        watched: the model's file: a new one takes its place. SIGHUP opens it again, too.
        log: told of problems, a line each.
        started: told the address, whether only this machine reaches it, and the model.

    Raises:
        OptionError: the address cannot be taken.
        SepvitError: the model does not open, or its labels do not fit.
    """
    require("uvicorn", extra="serving")
    _quiet(log)
    with _bound(settings.host, settings.port) as listener:
        asyncio.run(_serve(listener, source, settings, labels, watched, log, started))


async def _serve(
    listener: socket.socket,
    source: Source,
    settings: Settings,
    labels: list[str] | None,
    watched: Path | None,
    log: Log,
    started: Callable[[str, bool, Lane], None],
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_Faults(log))
    ending = asyncio.Event()
    for number in SIGNALS:
        loop.add_signal_handler(number, _signalled, number, ending, log)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # until there is a model that it could replace
    known = identity(watched)
    lane = Lane(source, 1)
    if not await _unless(ending, lane.open(settings.max_batch)):
        raise Interrupted("ended before the model was open")
    load_decoders()
    workers = Workers(max(2, min(4, os.cpu_count() or 1)))
    try:
        if labels is not None and lane.model.spec.task == "dense":
            raise InputError("--labels for a model that gives feature maps", expected="a classifier")
        require_labels(labels, lane.model.spec.num_classes)
        service = Service(settings, labels, lane, workers, log)
    except BaseException:
        await lane.close()
        raise
    watch = Watch(service, source, watched, known, log)
    loop.add_signal_handler(signal.SIGHUP, watch.ask)
    doors = _Doors(listener, service, settings)
    await doors.open()
    started(doors.address, doors.loopback, lane)
    tasks = [asyncio.create_task(work) for work in (service.batcher.work(), watch.run(), doors.look_after())]
    try:
        await _beside(tasks, ending.wait())
        service.ending = True
        await _beside(tasks, doors.close(log))
    finally:
        for task in tasks:
            task.cancel()
        workers.close()
        await service.lane.close()


class _Doors:
    """The listening socket and the connections that came through it."""

    def __init__(self, listener: socket.socket, service: Service, settings: Settings) -> None:
        uvicorn = require("uvicorn", extra="serving")
        state = require("uvicorn.server", extra="serving").ServerState()
        most = 2 * settings.max_connections
        _allow_files(most + 512)
        connection = protocol_class(settings.head_s, settings.body_s, most)
        self._listener, self._settings, self._state = listener, settings, state
        self._connections: set[Any] = state.connections
        name, port = listener.getsockname()[:2]
        self.loopback = _is_loopback(name)
        self.address = f"http://{f'[{name}]' if ':' in name else name}:{port}"
        config = uvicorn.Config(
            application(service, connections=self._connections, loopback=self.loopback),
            http=connection,
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_keep_alive=settings.keep_alive_s,
        )
        config.load()
        self._new = lambda: connection(config=config, server_state=state, app_state={})

    async def open(self) -> None:
        """Listen."""
        self._date()
        self._server = await asyncio.get_running_loop().create_server(self._new, sock=self._listener, backlog=BACKLOG)

    async def look_after(self) -> None:
        """End connections that take too long, for ever; and know what time it is."""
        while True:
            self._date()
            for connection in list(self._connections):
                connection.sweep()
            await asyncio.sleep(min(1.0, self._settings.head_s / 2))

    async def close(self, log: Log) -> None:
        """Let nobody in, answer those who are in, and wait until they are gone."""
        loop = asyncio.get_running_loop()
        # Connections that the system has made already are let in: closing the socket would reset them. Without a
        # backlog no others are made meanwhile.
        self._listener.listen(0)
        await asyncio.sleep(0.02)
        late = []
        with contextlib.suppress(BlockingIOError):
            while True:
                late.append(self._listener.accept()[0])
        self._server.close()
        for accepted in late:
            await loop.connect_accepted_socket(self._new, accepted)
        began = loop.time()
        while self._connections or self._state.tasks:  # a task may outlive its client, and ends by itself
            waited = loop.time() - began
            if waited > self._settings.drain_s:
                busy = sum(connection.busy for connection in self._connections)
                log(f"ENDED AFTER {self._settings.drain_s:g} s WITH {busy} REQUESTS UNANSWERED")
                os._exit(1)  # a device that hangs would hold up everything else that ends a process
            if waited > self._settings.linger_s:
                # Until now an idle client could still ask: closed at once, its next request would meet a reset.
                for connection in [c for c in self._connections if not c.busy]:
                    connection.transport.close()
            await asyncio.sleep(0.01)

    def _date(self) -> None:
        self._state.default_headers = [(b"date", email.utils.formatdate(usegmt=True).encode())]


def _signalled(number: int, ending: asyncio.Event, log: Log) -> None:
    if ending.is_set():
        log("ended at once by a second signal; requests under way are lost")
        os._exit(128 + number)  # whatever hangs, in a thread or on a device, is left behind
    ending.set()


async def _unless(ending: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Wait for ``work`` or the end; False where the end comes first. What ``work`` raises is raised."""
    task = asyncio.create_task(work)
    end = asyncio.create_task(ending.wait())
    await asyncio.wait({task, end}, return_when=asyncio.FIRST_COMPLETED)
    end.cancel()
    if task.done():
        task.result()
        return True
    task.cancel()
    return False


async def _beside(tasks: Sequence[asyncio.Task[None]], work: Coroutine[Any, Any, object]) -> None:
    """Wait for ``work``, while all of the tasks go on; what ends one of them, which none should, is raised."""
    waited = asyncio.create_task(work)
    try:
        done, _ = await asyncio.wait({waited, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        if waited not in done:
            raise RuntimeError("a part of the server has ended")
    finally:
        waited.cancel()


def _bound(host: str, port: int) -> socket.socket:
    """A socket at that address, which does not listen yet.

    Raises:
        OptionError: there is no such host, or the port is taken or not allowed.
    """
    where = f"--host {host} --port {port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise OptionError(f"--host {host!r:.80} is no address here ({error})", expected="such as 127.0.0.1") from None
    family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)  # without its protocol, asyncio would not set TCP_NODELAY
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind(address)
        listener.listen(1)  # now, because two may bind what nobody listens to
        return listener
    except OSError as error:
        listener.close()
        hint = "give another one with --port, or 0 for any that is free"
        raise OptionError(f"{where} cannot be taken ({error.strerror})", hint=hint) from None


def _is_loopback(name: str) -> bool:
    import ipaddress

    return ipaddress.ip_address(name.partition("%")[0]).is_loopback


def _allow_files(most: int) -> None:
    """Each connection is a file to the system, which allows 1024 where nobody asks for more."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _quiet_libtiff() -> None:
    """Pillow's libtiff writes to stderr what it thinks of a damaged picture, a line for each of its rows."""
    import ctypes

    from PIL import _imaging  # noqa: F401 (loads libtiff)

    with contextlib.suppress(OSError, AttributeError):  # not Linux, or built in: then it goes on writing
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
        for path in {line.split(maxsplit=5)[5] for line in maps if "libtiff" in line}:
            ctypes.CDLL(path).TIFFSetErrorHandler(None)


class _Faults:
    """What asyncio says of itself, each line once a while: without files left, it says a thousand times a second so."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._said: dict[str, float] = {}

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        message = str(context["message"])
        if loop.time() - self._said.get(message, -math.inf) >= SAID_AGAIN_S:
            self._said[message] = loop.time()
            self._log(f"{message}: {context.get('exception')!r:.200}")


class _ToLog(logging.Handler):
    """Errors of uvicorn, a line each; a traceback is of a fault of this program's."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.ERROR)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        for line in self.format(record).splitlines():
            self._log(line)


def _quiet(log: Log) -> None:
    """Keep what libraries say of clients' bytes out of the log: the client is told, in the answer."""
    uvicorn = logging.getLogger("uvicorn.error")
    uvicorn.handlers, uvicorn.propagate = [_ToLog(log)], False
    uvicorn.setLevel(logging.ERROR)
    for name in ("PIL", "python_multipart", "multipart"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    _quiet_libtiff()
