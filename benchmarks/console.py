"""Commands as a reader of README types them: one after the other, a server in the background among them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType


class Console:
    """A folder in which commands are typed, with this interpreter's programs first in PATH.

    ``command &`` goes on in the background, and ``kill %1`` ends it, as in a shell.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] = os.environ) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        self._folder, self._environment = folder, {**environment, "PATH": path}
        self._background: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._background:
            process.kill()
            process.wait()

    def type(self, command: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a command; of one in the background there is nothing yet."""
        words = shlex.split(command)
        if words == ["kill", "%1"]:
            process = self._background.pop(0)
            process.terminate()
            return process.wait(60), "", ""
        if words[-1] == "&":
            process = subprocess.Popen(
                words[:-1],
                cwd=self._folder,
                env=self._environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            self._background.append(process)
            return 0, "", ""
        done = subprocess.run(
            words, cwd=self._folder, env=self._environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout, done.stderr
