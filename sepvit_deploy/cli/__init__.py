"""The command line: `commands` parses and calls, `show` prints; here errors become one line and an exit code."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys

from typer.exceptions import Abort, Exit, TyperException

from sepvit_deploy.cli import (
    batch,
    building,
    capacity,
    commands,
    deployment,
    exporting,
    latency,
    load,
    manifests,
    precision,
    report,
    serve,
    show,
    triton,
)
from sepvit_deploy.cli.app import app
from sepvit_deploy.errors import SepvitError

COMMANDS = (
    *(exporting, commands, precision, building, deployment, latency, capacity, report),
    *(triton, serve, load, manifests, batch),
)
"""Modules that add their commands to `app` when they are imported."""
INTERRUPTED = 130
"""What a shell expects of a command that Ctrl-C ended."""


def main() -> None:
    """Run the command line and end the process with 0 done, 1 a check failed, 2 bad usage or input."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that temporary files vanish then, too
    sys.exit(run())


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; a user's mistake is one line on stderr, never a traceback."""
    try:
        code = app(arguments, standalone_mode=False)
        if code == INTERRUPTED:  # typer's answer to KeyboardInterrupt
            raise KeyboardInterrupt
        if sys.stdout is not None:
            sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except SepvitError as error:
        return _fail(str(error), error.exit_code)
    except TyperException as error:
        if not (message := " ".join(error.format_message().split()).rstrip(".")):
            return 2  # without arguments: the help was shown
        return _fail(f"{message}; add --help to see what there is", 2)
    except Exit as done:
        return done.exit_code
    except (KeyboardInterrupt, Abort):
        return _fail("interrupted; nothing was left half-written", INTERRUPTED)
    except MemoryError:
        return _fail("out of memory; try a smaller batch, image size or variant", 2)
    except BrokenPipeError:
        _drop_stdout()  # whoever read it is gone
        return 1
    except OSError as error:
        if error.filename is not None or error.errno != errno.ENOSPC:
            raise
        _drop_stdout()
        return _fail(f"stdout cannot be written ({error.strerror})", 2)


def _drop_stdout() -> None:
    """Without this, Python complains again when it closes stdout."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> int:
    show.tell(f"error: {show.as_text(message)}")
    return code
