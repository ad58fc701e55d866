"""What every command shares: the application, the options that recur, and reading a batch."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from sepvit_deploy.artifact import passport_path
from sepvit_deploy.errors import OptionError
from sepvit_deploy.spec import MAX_BATCH

app = typer.Typer(
    name="sepvit-deploy",
    help="SepViT from weights to a checked ONNX file, and on to the GPU.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]
ModelArgument = Annotated[
    str,
    typer.Argument(metavar="FILE", help="FILE.onnx, FILE.plan, or torch:VARIANT[:WEIGHTS].", show_default=False),
]
ProviderOption = Annotated[
    Literal["cpu", "cuda", "tensorrt"],
    typer.Option(help="Where ONNX Runtime runs an ONNX file (torch: cpu or cuda); falling back is an error."),
]
CudaOption = Annotated[
    Literal["bindings", "pycuda"], typer.Option(help="The package that runs a plan: cuda-bindings, or pycuda.")
]
TrustOption = Annotated[
    bool, typer.Option("--trust", help="Load a plan that no passport proves: a plan is code, and it is run.")
]
OnnxArgument = Annotated[Path, typer.Argument(metavar="FILE.onnx", help="An ONNX file.", show_default=False)]
EmaOption = Annotated[bool, typer.Option("--ema", help="Take the checkpoint's model_ema.")]
ImagesOption = Annotated[
    Path, typer.Option(metavar="DIR|SET.toml", help="A folder of pictures, or a manifest of them.", show_default=False)
]
MethodOption = Annotated[str, typer.Option(metavar="entropy|percentile|mse|minmax", help="How ranges are chosen.")]
PercentileOption = Annotated[float, typer.Option(help="Of |x|, for the method percentile.")]
SamplesOption = Annotated[
    int | None, typer.Option(help="Images to use; default: the manifest's number, or 512.", show_default=False)
]
KeepOption = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="Leave these layers out, e.g. 'stage0.*' or '*.fc2'; may be repeated."),
]
UnreadableOption = Annotated[int, typer.Option(help="Unreadable pictures to pass over before it is an error.")]
ThreadsOption = Annotated[
    int | None, typer.Option(help="Of one operator; default: the runtime's choice.", show_default=False)
]


def require_threads(threads: int | None) -> int | None:
    """The number of threads as it was given.

    Raises:
        OptionError: below 1, or beyond 1024.
    """
    if threads is not None and not 1 <= threads <= 1024:
        raise OptionError(f"--threads {threads}", expected="1 to 1024")
    return threads


def require_other(output: Path, *inputs: Path | None) -> None:
    """Keep ``output`` and its passport from taking the place of an input or of an input's passport.

    Raises:
        OptionError: one would.
    """
    for path in filter(None, inputs):
        if not path.name:
            raise OptionError(f"{path} is a folder", expected="a file")
    if not output.name:
        raise OptionError(f"the output is {str(output)!r}", expected="a file to write")
    taken = {os.path.realpath(place) for path in inputs if path for place in (path, passport_path(path))}
    for place in (output, passport_path(output)):
        if os.path.realpath(place) in taken:
            raise OptionError(f"{output} would overwrite {place}", expected="another file to write")


def parse_batch(text: str, expected: str, *, whole: str | None = None) -> int:
    """An image count from an option's text.

    Raises:
        OptionError: it is none, or beyond `MAX_BATCH`.
    """
    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= MAX_BATCH:
        raise OptionError(f"--batch {text if whole is None else whole}", expected=f"{expected} from 1 to {MAX_BATCH}")
    return int(text)


def parse_share(text: str, option: str) -> float:
    """A share from ``3%`` or ``0.03``.

    Raises:
        OptionError: it is neither, or not 0 to 100 %.
    """
    number = text.strip()
    try:
        share = float(number[:-1]) / 100 if number.endswith("%") else float(number)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise OptionError(f"{option} {text!r:.40}", expected="a share such as 3%")
    return share
