"""Fetch a real Triton server for the tests, as NVIDIA's wheel carries it: ``python tests/fetch_triton.py FOLDER``.

The wheel ``nvidia-pytriton`` holds tritonserver with its Python backend, and no CUDA is needed. It is unpacked, never
installed, for it wants an older numpy than this package. Beside it goes the environment that the server's Python models
run in. What is there already is kept, so a second call takes no time.

    exit 0   a server is there; or there can be none here: another platform, no shared libpython, or no package index
             that answers. FOLDER/unavailable.txt says why, and the tests that need one are skipped with that reason.
    exit 1   there could be one, and the package index answers, but it could not be fetched: a damaged download, a full
             disk, a release that the index lacks. The tests are not to be skipped for that without a word.
"""

from __future__ import annotations

import json
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
import zlib
from pathlib import Path

WHEEL = "nvidia-pytriton==0.7.0"
# numpy 2 in this server's Python backend gives empty outputs with status OK, and inputs that are not what was sent.
# Pillow is that of constraints.txt, as in the tests, which compare pixels.
CONSTRAINTS = (Path(__file__).parents[1] / "constraints.txt").read_text(encoding="utf-8")
PILLOW = next(line for line in CONSTRAINTS.splitlines() if line.lower().startswith("pillow=="))
PACKAGES = ("numpy==1.26.4", "onnxruntime==1.22.1", PILLOW)
UNAVAILABLE = "unavailable.txt"
MARK = "fetched.json"
STANDIN = Path(__file__).parent.resolve() / "cpu" / "standin"
MISLEADING = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
"""Of the environment: they lead the server's Python to another one."""
WHAT = {"wheel": WHEEL, "packages": list(PACKAGES), "python": platform.python_version(), "base": sys.base_prefix}
MINUTES = 10


class Unavailable(Exception):
    """Why there can be no server here."""


class Failed(Exception):
    """Why a server that could be here was not fetched."""


def fetch(folder: Path) -> None:
    """Make ``folder`` hold a server that runs here.

    Raises:
        Unavailable: there can be none.
        Failed, OSError: it cannot be fetched, or not be written.
    """
    library = require_platform()
    mark = folder / MARK
    if not mark.is_file() or mark.read_text(encoding="utf-8") != json.dumps(WHAT):
        mark.unlink(missing_ok=True)
        unpack_server(folder)
        make_environment(folder / "python")
        mark.write_text(json.dumps(WHAT), encoding="utf-8")
    write_launcher(folder.resolve(), library)


def write_launcher(folder: Path, library: Path) -> None:
    """The program ``FOLDER/tritonserver``: the server on loopback, with the stand-in backends of these tests."""
    server = folder / "wheel" / "pytriton" / "tritonserver"
    backends = folder / "backends"
    shutil.rmtree(backends, ignore_errors=True)
    backends.mkdir()
    for backend in (server / "backends" / "python", STANDIN / "onnxruntime", STANDIN / "tensorrt"):
        (backends / backend.name).symlink_to(backend)
    unset = [word for name in MISLEADING for word in ("-u", name)]
    added = [f"LD_LIBRARY_PATH={library}", "OMP_NUM_THREADS=1"]
    addresses = [f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")]
    program = [str(server / "bin" / "tritonserver"), f"--backend-directory={backends}", *addresses]
    path = f"PATH={shlex.quote(str(folder / 'python' / 'bin'))}:$PATH"
    launcher = folder / "tritonserver"
    launcher.write_text(
        f'#!/bin/sh\n{path}\nexec env {shlex.join([*unset, *added, *program])} "$@"\n', encoding="utf-8"
    )
    launcher.chmod(0o755)


def require_platform() -> Path:
    """The folder of this Python's shared library, which the server's Python backend loads."""
    here = f"{platform.system()} on {platform.machine()}"
    if here != "Linux on x86_64":
        raise Unavailable(f"the wheel {WHEEL} is for Linux on x86_64, and this is {here}")
    if sys.version_info[:2] not in ((3, 11), (3, 12)):
        raise Unavailable(f"this is Python {platform.python_version()}, and the package is for 3.11 and 3.12")
    name = sysconfig.get_config_var("INSTSONAME") or ""
    folders = (sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("LIBPL"), f"{sys.base_prefix}/lib")
    for folder in folders:
        if folder and ".so" in name and Path(folder, name).is_file():
            return Path(folder)
    raise Unavailable(f"{sys.base_prefix} has no libpython as a shared library, which the Python backend loads")


def unpack_server(folder: Path) -> None:
    """The server's files, with the stub of this Python's version where the backend looks for one."""
    target = folder / "wheel"
    shutil.rmtree(target, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        pip(sys.executable, "download", "--no-deps", "--only-binary", ":all:", "--dest", temporary, WHEEL)
        wheels = sorted(Path(temporary).glob("*.whl"))
        if len(wheels) != 1:
            raise Failed(f"pip brought {len(wheels)} wheels for {WHEEL}, expected one")
        try:
            with zipfile.ZipFile(wheels[0]) as archive:
                archive.extractall(target)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise Failed(f"the download of {WHEEL} is damaged ({error})") from error
    server = target / "pytriton" / "tritonserver"
    stub = server / "python_backend_stubs" / f"3.{sys.version_info[1]}" / "triton_python_backend_stub"
    shutil.copy(stub, server / "backends" / "python")
    for program in (server / "bin" / "tritonserver", server / "backends" / "python" / stub.name):
        program.chmod(0o755)  # a zip archive unpacked by Python has no run bits


def make_environment(folder: Path) -> None:
    """The environment of the server's Python models."""
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=False, symlinks=True)
    pip(sys.executable, "--python", str(folder / "bin" / "python"), "install", *PACKAGES)


def pip(python: str, *arguments: str) -> None:
    command = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", "--retries", "1", "--timeout", "20"]
    try:
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60 * MINUTES, check=False)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"pip had not ended after {MINUTES} minutes: {' '.join(arguments)}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise Failed(f"pip cannot fetch {arguments[-1]}: {lines[-1]}")


def index_answers() -> bool:
    """True where the package index gives something else: pip itself, which every index has."""
    with tempfile.TemporaryDirectory() as temporary:
        try:
            pip(sys.executable, "download", "--no-deps", "--dest", temporary, "pip")
        except Failed:
            return False
    return True


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/fetch_triton.py FOLDER")
    folder = Path(sys.argv[1])
    reason = folder / UNAVAILABLE
    folder.mkdir(parents=True, exist_ok=True)
    reason.unlink(missing_ok=True)
    try:
        fetch(folder)
    except (Unavailable, Failed, OSError) as error:
        if not isinstance(error, Unavailable) and index_answers():
            sys.exit(f"a Triton server for the tests could be here, and was not fetched: {error}; type: make triton")
        why = error if isinstance(error, Unavailable) else f"the package index does not answer ({error})"
        print(f"no Triton server for the tests: {why}")
        reason.write_text(f"{why}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
