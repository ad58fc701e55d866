"""What a segmentation file gives to a class for every pixel of the picture, and masks as files, colours and runs.

`class_mask` needs numpy alone: a copy runs inside Triton's Python backend. B batch, C classes, h x w logits, H x W a
picture; sizes are (height, width) in pixels.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sepvit_deploy.errors import ImageError, InputError, PassportError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Mask = NDArray[np.uint8] | NDArray[np.uint16]

T = TypeVar("T")
Colour = tuple[int, int, int]
"""Red, green and blue, each 0 to 255."""
MOST_CLASSES = 1 << 16
"""More do not fit a mask of uint16."""
TILE = (64, 128)
"""Height and width of the part of a picture whose classes are decided at a time: it fits a processor's cache, and its
products are too small for BLAS to share among threads, which spin where several masks are drawn at once."""


class Abandoned(Exception):
    """Nobody waits for the mask any more."""


def class_mask(
    outputs: Mapping[str, Array],
    index: int,
    *,
    input_size: tuple[int, int],
    picture_size: tuple[int, int],
    keep_going: Callable[[], bool] = lambda: True,
) -> Mask:
    """The class of every pixel of a picture, (H, W): uint8, or uint16 where there are more than 256 classes.

    ``logits`` (B, C, h, w) are resized bilinearly to the input's size and from there to the picture's, both by
    half-pixels and without antialiasing; of equal ones the lower class wins. A ``mask`` (B, height, width) of uint8
    class numbers at the input's size is resized by the nearest pixel: of row i the one at
    floor((i + 0.5) * height / H). Memory beside the outputs and the mask stays below some MB for any picture.

    Args:
        outputs: of a runner, by name.
        index: of the picture in the batch.
        input_size: of what the runner was given.
        picture_size: of the picture, H x W.
        keep_going: asked before each tile that logits decide, some ms apart: a large picture takes seconds.

    Raises:
        Abandoned: ``keep_going`` says no.
        InputError: neither output is there, its shape or type does not fit, or logits are not finite.
    """
    if "logits" in outputs:
        return _from_logits(outputs["logits"], index, input_size, picture_size, keep_going)
    if "mask" in outputs:
        return _from_mask(outputs["mask"], index, input_size, picture_size)
    raise InputError(f"outputs {', '.join(outputs) or 'of no name'}", expected="logits or mask, of a segmentation file")


def _from_logits(
    logits: Array,
    index: int,
    input_size: tuple[int, int],
    picture_size: tuple[int, int],
    keep_going: Callable[[], bool],
) -> Mask:
    import numpy as np

    if logits.ndim != 4 or not logits.size or not 0 <= index < len(logits) or logits.shape[1] > MOST_CLASSES:
        expected = f"B x classes x height x width, B above {index}, at most {MOST_CLASSES} classes"
        raise InputError(f"logits of shape {_shape(logits)}", expected=expected)
    scores = np.asarray(logits[index], dtype=np.float32)  # (C, h, w)
    if not np.isfinite(scores).all():
        raise InputError("logits that are not finite", hint="check the file first")
    height, width = picture_size
    mask: Mask = np.zeros(picture_size, np.uint16)
    if len(scores) <= 1 << 8:
        mask = mask.astype(np.uint8)
    across = [
        (left, *_twice(left, min(left + TILE[1], width), scores.shape[2], input_size[1], width))
        for left in _while(keep_going, range(0, width, TILE[1]))
    ]
    for top in range(0, height, TILE[0]):
        first, rows = _twice(top, min(top + TILE[0], height), scores.shape[1], input_size[0], height)
        for left, begin, columns in _while(keep_going, across):
            part = scores[:, first : first + rows.shape[1], begin : begin + columns.shape[1]]
            _decide(part, rows, columns.T, mask[top : top + len(rows), left : left + len(columns)])
    return mask


def _while(keep_going: Callable[[], bool], steps: Iterable[T]) -> Iterator[T]:
    for step in steps:
        if not keep_going():
            raise Abandoned
        yield step


def _decide(scores: Array, rows: Array, columns: Array, best: Array) -> None:
    """The largest of rows @ scores[c] @ columns over c, into ``best``, which is all 0.

    Each class goes through the same products of the same shapes, so that equal scores stay equal.
    """
    import numpy as np

    highest = rows @ (scores[0] @ columns)
    for k in range(1, len(scores)):
        values = rows @ (scores[k] @ columns)
        np.copyto(best, k, where=values > highest)
        np.maximum(highest, values, out=highest)


def _twice(start: int, stop: int, source: int, middle: int, target: int) -> tuple[int, Array]:
    """Samples start to stop of ``source`` samples resized to ``middle`` and then to ``target``, as a matrix.

    Returns:
        The first sample that is needed, and the matrix (stop - start, samples needed) of float32.
    """
    import numpy as np

    between, second = _bilinear(start, stop, middle, target)
    first, matrix = _bilinear(between, between + second.shape[1], source, middle)
    return first, (second @ matrix).astype(np.float32)


def _bilinear(start: int, stop: int, source: int, target: int) -> tuple[int, Array]:
    """The same of one resize, in float64: each row weighs two neighbours."""
    import numpy as np

    if source == target:
        return start, np.eye(stop - start)
    places = np.maximum((np.arange(start, stop) + 0.5) * (source / target) - 0.5, 0.0)
    low = np.minimum(places.astype(np.int64), source - 1)
    high = np.minimum(low + 1, source - 1)
    matrix = np.zeros((stop - start, high[-1] - low[0] + 1))
    row = np.arange(stop - start)
    matrix[row, high - low[0]] = places - low
    matrix[row, low - low[0]] += 1 - (places - low)
    return int(low[0]), matrix


def _from_mask(masks: Array, index: int, input_size: tuple[int, int], picture_size: tuple[int, int]) -> Mask:
    import numpy as np

    if masks.dtype != np.uint8 or masks.shape[1:] != tuple(input_size) or not 0 <= index < len(masks):
        expected = f"uint8 B x {input_size[0]} x {input_size[1]}, B above {index}"
        raise InputError(f"a mask of {masks.dtype} {_shape(masks)}", expected=expected)
    rows, columns = (
        (2 * np.arange(target) + 1) * source // (2 * target)
        for source, target in zip(input_size, picture_size, strict=True)
    )
    nearest: NDArray[np.uint8] = masks[index][rows[:, None], columns]
    return nearest


def _shape(values: Array) -> str:
    return " x ".join(map(str, values.shape)) or "one number"


def read_mask(path: str | Path) -> NDArray[np.uint8]:
    """The class of every pixel, (H, W), from a PNG of grey values, of palette indices, or of two colours (0 and 1).

    The numbers are those in the file: colours, gamma and orientation in it count for nothing.

    Raises:
        ImageTooLarge: it has more than `images.MAX_PIXELS`.
        ImageError: there is no such file, it is another kind of picture, is damaged, or has values above 255.
    """
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    from sepvit_deploy.errors import ImageTooLarge
    from sepvit_deploy.images import DAMAGED, MAX_PIXELS

    if not os.path.isfile(path):  # opening a pipe would wait for ever
        found = "is no regular file" if os.path.exists(path) else "does not exist"
        raise ImageError(f"{path} {found}", expected="a PNG file of a mask")
    try:
        with warnings.catch_warnings(), Path(path).open("rb") as file:
            warnings.filterwarnings("ignore", module=r"PIL\.")
            depth = file.read(25)[-1:]  # bits of a sample, in the header that a PNG begins with
            with Image.open(file, formats=("PNG",)) as image:
                if image.height * image.width > MAX_PIXELS:
                    found = f"{path} has {image.height}x{image.width} pixels"
                    raise ImageTooLarge(found, expected=f"at most {MAX_PIXELS / 1e6:.10g} megapixels")
                if image.mode not in ("1", "L", "P", "I", "I;16"):
                    raise ImageError(f"{path} is a picture of mode {image.mode}", expected=_MASK)
                values = np.asarray(image)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(f"{path} is too large ({error})", expected=f"at most {MAX_PIXELS} pixels") from error
    except UnidentifiedImageError:
        raise ImageError(f"{path} is no PNG file", expected=_MASK) from None
    except DAMAGED as error:
        raise ImageError(f"{path} cannot be read ({error})", expected="an undamaged, complete PNG file") from error
    if image.mode == "L" and depth in (b"\2", b"\4"):  # Pillow spreads grey of few bits over 0 to 255
        values = values // (255 // ((1 << depth[0]) - 1))
    if values.max() > 255:
        raise ImageError(f"{path} holds the value {values.max()}", expected="class numbers of at most 255")
    return values.astype(np.uint8)


_MASK = "a PNG of one class number a pixel: grey, or with a palette"


def mask_png(mask: Mask, colours: Sequence[Colour]) -> bytes:
    """A mask (H, W) as a PNG file: of palette indices in ``colours``, or of uint16 as grey of 16 bits."""
    import numpy as np
    from PIL import Image

    image = Image.fromarray(mask)
    if mask.dtype == np.uint8:
        image.putpalette([channel for colour in colours[:256] for channel in colour])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def palette(classes: int) -> list[Colour]:
    """A colour for each class, always the same ones, neighbours far apart.

    Hues go on by the golden angle, lightness and chroma by the square roots of 2 and 3, none of which comes back to
    where it was; in CIELAB, where distance is what the eye sees, the first 150 are at least 4 apart, the first 20 18.
    """
    return [_colour(k) for k in range(classes)]


def _colour(k: int) -> Colour:
    hue = k * math.pi * (3 - math.sqrt(5))
    lightness = 38 + 50 * (k * math.sqrt(2) % 1)
    chroma = 36 + 36 * (k * math.sqrt(3) % 1)
    # CIELAB to XYZ by CIE's definition, relative to the white of D65; then to linear sRGB (IEC 61966-2-1).
    y = (lightness + 16) / 116
    roots = (y + chroma * math.cos(hue) / 500, y, y - chroma * math.sin(hue) / 200)
    white = (0.9505, 1.0, 1.089)
    xyz = [w * (f**3 if f > 6 / 29 else 3 * (6 / 29) ** 2 * (f - 4 / 29)) for w, f in zip(white, roots, strict=True)]
    red, green, blue = (
        max(0.0, min(1.0, sum(weight * value for weight, value in zip(weights, xyz, strict=True))))
        for weights in ((3.2406, -1.5372, -0.4986), (-0.9689, 1.8758, 0.0415), (0.0557, -0.2040, 1.0570))
    )
    return _byte(red), _byte(green), _byte(blue)


def _byte(linear: float) -> int:
    return round(255 * (12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055))


def names_and_colours(facts: Mapping[str, Any], classes: int) -> tuple[list[str] | None, list[Colour] | None]:
    """What a passport's facts call the classes, and in which colours: ``classes`` and ``palette``, None where absent.

    Raises:
        PassportError: they are no names, no colours, or not one for each class.
    """
    names, colours = facts.get("classes"), facts.get("palette")
    for key, values, kind, fits in (
        ("classes", names, "names", lambda item: isinstance(item, str)),
        ("palette", colours, "colours [red, green, blue] of 0 to 255", _is_colour),
    ):
        if values is not None and not (isinstance(values, list) and len(values) == classes and all(map(fits, values))):
            found = f"{len(values)} entries" if isinstance(values, list) else f"{values!r:.60}"
            raise PassportError(
                f"the passport's {key} are {found}", expected=f"{classes} {kind}", hint="export again, or remove them"
            )
    return names, None if colours is None else [tuple(colour) for colour in colours]


def _is_colour(item: object) -> bool:
    return isinstance(item, list) and len(item) == 3 and all(type(c) is int and 0 <= c <= 255 for c in item)


def run_lengths(mask: Mask) -> list[list[int]]:
    """A mask (H, W) as pairs [class, length] of runs of one class, row by row, going on from one row to the next.

    Neighbouring pairs differ in class, and the lengths add up to H * W.
    """
    import numpy as np

    flat = mask.ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]])) if flat.size else np.zeros(0, np.int64)
    lengths = np.diff(starts, append=flat.size)
    return np.stack([flat[starts].astype(np.int64), lengths], axis=1).tolist()  # type: ignore[no-any-return]


def from_run_lengths(pairs: Sequence[Sequence[int]], height: int, width: int) -> Mask:
    """The inverse of `run_lengths`: uint8, or uint16 where a class is above 255.

    Raises:
        InputError: more than `images.MAX_PIXELS`; not pairs of a class, 0 to 65535, and a length above 0; or lengths of
            another sum than the pixels.
    """
    import numpy as np

    from sepvit_deploy.images import MAX_PIXELS

    if height * width > MAX_PIXELS:
        raise InputError(f"a mask of {height}x{width} pixels", expected=f"at most {MAX_PIXELS}")
    total = 0
    for pair in pairs:
        fits = isinstance(pair, list | tuple) and len(pair) == 2 and all(type(item) is int for item in pair)
        if not fits or not 0 <= pair[0] < MOST_CLASSES or pair[1] < 1:
            expected = f"[class, length], class 0 to {MOST_CLASSES - 1}, length above 0"
            raise InputError(f"a run is {pair!r:.60}", expected=expected)
        total += pair[1]
    if total != height * width or total == 0:
        raise InputError(f"runs of {total} pixels", expected=f"{height} x {width} = {height * width}, above 0")
    classes = np.array([k for k, _ in pairs], np.uint16)
    mask = np.repeat(classes, [length for _, length in pairs]).reshape(height, width)
    return mask if mask.max() > 255 else mask.astype(np.uint8)
