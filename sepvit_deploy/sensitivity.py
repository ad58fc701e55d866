"""Which groups of products cost the most precision in INT8, and which to keep out of it.

Each group is left out in turn: everything runs in INT8 but this group. What that gains in SQNR (dB, of the outputs,
against FP32) over everything in INT8 ranks the groups. Down this ranking groups are then kept, each choice run and
measured, until the target is reached.

A mask's numbers of classes have no distance: its SQNR is 10 log10(pixels / pixels of another class).
"""

from __future__ import annotations

import itertools
import math
import shlex
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING, Any

from sepvit_deploy.accuracy import sqnr_db
from sepvit_deploy.errors import InputError, OutputError
from sepvit_deploy.runners.batches import InBatches

if TYPE_CHECKING:
    from sepvit_deploy.runners.base import Array, Runner

    Outputs = dict[str, Array]

SPOOL_BYTES = 256 << 20
"""Reference outputs held in memory; beyond this they move to a temporary file."""


@dataclass(frozen=True)
class Target:
    """What a choice of groups should reach.

    Attributes:
        agreement: least share of images with FP32's top-1; of segmentation, of pixels with FP32's class.
        sqnr_db: least SQNR in dB; of feature maps, which have no top-1.
        gain_db: least gain in SQNR for which a group is worth keeping, in dB.
    """

    agreement: float = 0.99
    sqnr_db: float = 20.0
    gain_db: float = 0.1


@dataclass(frozen=True)
class Measured:
    """One choice of groups against FP32.

    Attributes:
        sqnr_db: 10 log10(power of FP32's outputs / power of the difference), summed over all images and outputs.
        agreement: share of images with FP32's top-1, or of pixels with FP32's class; None for feature maps.
    """

    sqnr_db: float
    agreement: float | None

    def reaches(self, target: Target) -> bool:
        """True where it is good enough."""
        return self.sqnr_db >= target.sqnr_db if self.agreement is None else self.agreement >= target.agreement


@dataclass(frozen=True)
class Row:
    """A group, and what it costs.

    Attributes:
        without: everything in INT8 but this group.
        gain_db: SQNR of ``without`` over that of everything in INT8: what keeping the group buys. Below 0 where its
            error cancels part of the others'.
        gain_agreement: the same of the agreement.
        alone: nothing but this group in INT8; None where it was not asked for.
    """

    group: str
    without: Measured
    gain_db: float
    gain_agreement: float | None
    alone: Measured | None


@dataclass(frozen=True)
class Sensitivity:
    """The groups, most costly first, and the choice that follows.

    Attributes:
        everything: all groups in INT8.
        keep: groups to keep out of INT8, in the order of the ranking; empty where none is needed, or none is worth it.
        kept: what keeping them gives, measured.
        reached: does it reach the target?
    """

    reference: str
    images: int
    target: Target
    everything: Measured
    rows: tuple[Row, ...]
    keep: tuple[str, ...]
    kept: Measured
    reached: bool

    @property
    def keep_options(self) -> str:
        """The options to type: ``--keep stage0.embed --keep stage0.qkv``; empty where nothing is to be kept."""
        return " ".join(f"--keep {shlex.quote(group)}" for group in self.keep)

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold; SQNR without any noise, which is infinite, is None."""
        return {**_plain(asdict(self)), "keep_options": self.keep_options}


def sensitivity(
    reference: Runner,
    groups: Sequence[str],
    quantized: Callable[[frozenset[str]], Runner],
    batches: Callable[[], Iterable[Array]],
    *,
    target: Target | None = None,
    alone: bool = False,
    progress: Callable[[float], None] = lambda share: None,
) -> Sensitivity:
    """Measure what each group costs. One quantised runner exists at a time; the reference runs once.

    Args:
        reference: the FP32 model.
        groups: all that can run in INT8; of some, the first one ranks first where they cost the same.
        quantized: makes the model with all groups in INT8 but the given ones; never called with all of them.
        batches: the same images (B, 3, H, W) at every call, in batches of any size.
        alone: measure each group by itself as well, for nearly twice the time. Errors of several groups can cancel, by
            chance or not, and in a model that INT8 ruins no one group left out helps: both hide in a gain, not here.
        progress: called with the share done, 0 to 1.

    Raises:
        InputError: no groups, no images, outputs that differ in name or shape, or are not finite.
        OutputError: no space for the reference's outputs.
    """
    groups, target = tuple(dict.fromkeys(groups)), target or Target()
    if not groups:
        raise InputError(f"{reference.name} has no groups to measure", expected="one or more products to quantise")
    with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as file:
        experiment = _Experiment(reference, groups, quantized, batches, file)
        # Everything, each left out, each alone, then about as often as there are groups down the ranking and up again.
        steps = 1 + (4 if alone else 3) * len(groups)
        done = 0

        def measured(kept: Iterable[str]) -> Measured:
            nonlocal done
            result = experiment.run(frozenset(kept))
            done += 1
            progress(min(1.0, done / steps))
            return result

        everything = measured(())
        rows = []
        for group in groups:
            without = measured([group])
            lone = measured(set(groups) - {group}) if alone else None
            rows.append(Row(group, without, *_gain(everything, without), lone))
        rows.sort(key=lambda row: -row.gain_db)  # stable
        keep, kept = _choose(everything, rows, target, measured)
        progress(1.0)
    return Sensitivity(
        reference.name, experiment.images, target, everything, tuple(rows), keep, kept, kept.reaches(target)
    )


def _choose(
    everything: Measured, rows: Sequence[Row], target: Target, measured: Callable[[Iterable[str]], Measured]
) -> tuple[tuple[str, ...], Measured]:
    """Groups down the ranking until the target is reached, less those that turn out not to be needed."""
    keep: tuple[str, ...] = ()
    kept = everything
    for row in rows:
        if kept.reaches(target):
            break
        tried = measured((*keep, row.group)) if keep else row.without
        if _gain(kept, tried)[0] >= target.gain_db:
            keep, kept = (*keep, row.group), tried
    while kept.reaches(target):
        smaller = (tuple(other for other in keep if other != group) for group in reversed(keep))
        enough = ((fewer, tried) for fewer in smaller if (tried := measured(fewer)).reaches(target))
        found = next(enough, None)
        if found is None:
            break
        keep, kept = found
    return keep, kept


def _gain(before: Measured, after: Measured) -> tuple[float, float | None]:
    gain_db = 0.0 if after.sqnr_db == before.sqnr_db else after.sqnr_db - before.sqnr_db
    if after.agreement is None or before.agreement is None:
        return gain_db, None
    return gain_db, after.agreement - before.agreement


class _Experiment:
    """The reference's outputs, in ``file``, and quantised models run against them."""

    def __init__(
        self,
        reference: Runner,
        groups: Sequence[str],
        quantized: Callable[[frozenset[str]], Runner],
        batches: Callable[[], Iterable[Array]],
        file: IO[bytes],
    ) -> None:
        import numpy as np

        self._groups, self._quantized, self._batches, self._file = frozenset(groups), quantized, batches, file
        self._known: dict[frozenset[str], Measured] = {}
        self._sizes: list[int] = []
        self._names: tuple[str, ...] = ()
        self._decisions = 0
        runner = InBatches(reference)
        for batch in batches():
            outputs = _finite_outputs(runner, batch)
            self._names = tuple(outputs)
            self._sizes.append(len(batch))
            self._decisions += sum(_decisions(name, values).size for name, values in outputs.items())
            for values in outputs.values():
                try:
                    np.lib.format.write_array(file, values, allow_pickle=False)
                except OSError as error:
                    found = f"the outputs of {reference.name} cannot be kept in {tempfile.gettempdir()} ({error})"
                    raise OutputError(found, hint="take fewer images, or set TMPDIR to a larger place") from error
        self.images = sum(self._sizes)
        if not self.images:
            raise InputError("there are no images to measure on", expected="one or more")

    def run(self, kept: frozenset[str]) -> Measured:
        """Everything but ``kept`` in INT8, against the reference."""
        if kept not in self._known:
            self._known[kept] = self._measure(kept)
        return self._known[kept]

    def _measure(self, kept: frozenset[str]) -> Measured:
        import numpy as np

        if kept == self._groups:  # nothing is left to quantise: the reference itself
            return Measured(math.inf, 1.0 if self._decisions else None)
        runner = InBatches(self._quantized(kept))
        signal = noise = 0.0
        agreed = 0
        self._file.seek(0)
        for size, batch in itertools.zip_longest(self._sizes, self._batches()):
            if batch is None or len(batch) != size:
                raise InputError("the images changed while they were measured", expected="the same ones every time")
            found = _finite_outputs(runner, batch)
            for name in self._names:
                want = np.lib.format.read_array(self._file, allow_pickle=False)
                if name not in found or found[name].shape != want.shape:
                    have = f"{name} of shape {found[name].shape}" if name in found else ", ".join(found)
                    raise InputError(f"{runner.name} gives {have}", expected=f"{name} of shape {want.shape}")
                for a, b in zip(want, found[name], strict=True):  # one image at a time: float64 doubles the memory
                    more = _powers(a, b)
                    signal, noise = signal + more[0], noise + more[1]
                agreed += int((_decisions(name, want) == _decisions(name, found[name])).sum())
        return Measured(sqnr_db(signal, noise), agreed / self._decisions if self._decisions else None)


def _decisions(name: str, values: Array) -> Array:
    """The class of every image, (B,), or of every pixel, (B, h, w): nothing, (B, 0), of an output without classes."""
    if name == "logits" and values.ndim in (2, 4) and values.size:
        best: Array = values.argmax(axis=1)
        return best
    return values if name == "mask" else values[:, :0]


def _powers(reference: Array, found: Array) -> tuple[float, float]:
    """The power of one image's output and that of the difference; of classes, pixels and those of another class."""
    import numpy as np

    if np.issubdtype(reference.dtype, np.integer):
        return float(reference.size), float((reference != found).sum())
    wide = reference.astype(np.float64).ravel()
    error = found.astype(np.float64).ravel() - wide
    return float(wide @ wide), float(error @ error)


def _finite_outputs(runner: Runner, images: Array) -> Outputs:
    import numpy as np

    outputs = runner.run(images)
    for name, values in outputs.items():
        if len(values.shape) == 0 or len(values) != len(images):
            raise InputError(f"{runner.name} gives {name} of shape {values.shape}", expected=f"{len(images)} rows")
        if not np.isfinite(values).all():
            raise InputError(f"{runner.name} gives {name} that is not finite", hint="check the file first")
    return outputs


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
