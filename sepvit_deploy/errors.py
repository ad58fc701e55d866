"""Every way this package fails on purpose.

    SepvitError                 the base: one line, and the exit code of the command line
    |-- InputError              2   something given is unusable
    |   |-- OptionError             an option's value, or two that exclude each other
    |   |-- CheckpointError         a weights file: unreadable, of another variant, incomplete
    |   |-- GraphError              an ONNX file: unreadable, foreign, beyond what a stage takes
    |   |-- PassportError           an artifact whose passport is missing, stale or of another file
    |   |-- PlanError               an engine's plan: damaged, foreign, or of another machine
    |   |-- ImageError              a picture or a folder of pictures
    |   |   `-- ImageTooLarge           more pixels than may be decoded, or made by resizing
    |   |-- ServerError             a server that is not there, or answers in another way than its protocol
    |   `-- OutputError             a place that cannot be written
    |-- MissingDependency       2   an optional package is not installed, or does not load
    |-- DeviceError             2   the GPU or its driver fails
    |-- Interrupted           130   Ctrl-C ended it, and what was done until then is kept
    `-- CheckFailed             1   the work was done and its result is not acceptable
        |-- AuditFailed             the graph is not deployable, or TensorRT refuses it
        |-- BuildFailed             the builder fails on a file that it could parse
        |-- ParityFailed            two forms of the model disagree
        |-- HeadroomFailed          a tensor leaves FP16's range
        |-- RepositoryFailed        a server would refuse a model repository, or die of it
        |-- ManifestFailed          a cluster would refuse a manifest, or take it only in part
        |-- LoadFailed              a server under load lost requests, or answered wrongly
        |-- RegressionFailed        a newer measurement is worse than an older one
        `-- AcceptanceFailed        a deployment does not reach what is asked for

A message says what was found, what was expected and what to do next, in one line.
"""

from __future__ import annotations


class SepvitError(Exception):
    """A failure with an address.

    Args:
        found: what was met, naming the file or option.
        expected: what would have been accepted.
        hint: what to type or change next.
    """

    exit_code = 2

    def __init__(self, found: str, *, expected: str | None = None, hint: str | None = None) -> None:
        self.found = found
        self.expected = expected
        self.hint = hint
        parts = [found]
        if expected:
            parts.append(f"expected {expected}")
        if hint:
            parts.append(hint)
        super().__init__("; ".join(" ".join(part.split()) for part in parts))


class InputError(SepvitError):
    """Something given is unusable."""


class OptionError(InputError):
    """An option's value, or two options that exclude each other."""


class CheckpointError(InputError):
    """A weights file is unreadable, of another variant, or incomplete."""


class GraphError(InputError):
    """An ONNX file is unreadable, foreign, or beyond what a stage takes."""


class PassportError(InputError):
    """An artifact's passport is missing, stale, or belongs to another file."""


class PlanError(InputError):
    """An engine's plan is damaged, foreign, or made for another machine."""


class ImageError(InputError):
    """A picture, or a folder of pictures, is unusable."""


class ImageTooLarge(ImageError):
    """A picture has more pixels than may be decoded, or resizing it would make more."""


class ServerError(InputError):
    """A server is not there, or answers in another way than its protocol."""


class OutputError(InputError):
    """A place cannot be written."""


class MissingDependency(SepvitError):
    """An optional package is not installed, or does not load."""


class DeviceError(SepvitError):
    """The GPU or its driver fails."""


class Interrupted(SepvitError):
    """Ctrl-C ended it, and what was done until then is kept."""

    exit_code = 130


class CheckFailed(SepvitError):
    """The work was done and its result is not acceptable."""

    exit_code = 1


class AuditFailed(CheckFailed):
    """The graph is not deployable."""


class BuildFailed(CheckFailed):
    """The builder fails on a file that it could parse."""


class ParityFailed(CheckFailed):
    """Two forms of the model disagree."""


class HeadroomFailed(CheckFailed):
    """A tensor leaves FP16's range."""


class RepositoryFailed(CheckFailed):
    """A server would refuse a model repository, or die of it."""


class ManifestFailed(CheckFailed):
    """A cluster would refuse a manifest, or take it only in part."""


class LoadFailed(CheckFailed):
    """A server under load lost requests, or answered wrongly."""


class RegressionFailed(CheckFailed):
    """A newer measurement is worse than an older one."""


class AcceptanceFailed(CheckFailed):
    """A deployment does not reach what is asked for."""
