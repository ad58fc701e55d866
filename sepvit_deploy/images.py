"""Pictures to input tensors: one implementation for calibration, evaluation, prediction and serving.

Sizes are (height, width) in pixels. B batch, H x W the input's height and width.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from sepvit_deploy.errors import ImageError, ImageTooLarge

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from sepvit_deploy.spec import Preprocessing

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 100_000_000
"""Beyond this a picture is refused before it is decoded or resized: its RGB takes 400 MB, and twice that meanwhile."""
MAX_UPLOAD_PIXELS = 32_000_000
"""The same of a picture that a client sends, where nobody says otherwise. Pillow keeps 4 bytes of a pixel of RGB: this
is 128 MB, and while it is decoded 256 MB, or 400 MB for grey of 32 bits."""

DAMAGED = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError, struct.error, zlib.error)
"""What Pillow's decoders raise on damaged bytes."""


def load_image(path: str | Path) -> Image.Image:
    """Read a picture as 8-bit RGB, upright as its EXIF orientation says; alpha is dropped, of several frames the first.

    Raises:
        ImageTooLarge: it has more than `MAX_PIXELS`.
        ImageError: there is no such file, it is no picture of a known format, it is damaged, or floating-point.
    """
    _check_file(Path(path))
    try:
        # By file, not by name: given a name, Pillow maps the file, and scrambles grey TIFFs with an orientation.
        with Path(path).open("rb") as file:
            return _decoded(file, str(path), MAX_PIXELS)
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error})", expected="an undamaged, complete picture") from error


def decode_image(content: bytes, *, name: str = "the picture", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """What `load_image` gives, of an encoded picture in memory; ``name`` is what an error calls it.

    Raises:
        ImageTooLarge: it has more than ``max_pixels``.
        ImageError: it is no picture of a known format, damaged, or floating-point.
    """
    if not content:
        raise ImageError(f"{name} is empty", expected="an encoded picture")
    return _decoded(io.BytesIO(content), name, max_pixels)


def _decoded(file: IO[bytes], name: str, max_pixels: int) -> Image.Image:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Pillow warns of damaged metadata, which leaves the pixels whole, and of sizes below MAX_PIXELS.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            with Image.open(file, formats=FORMATS) as image:
                _check_pixels(image.height, image.width, f"{name} has", max_pixels)
                ImageOps.exif_transpose(image, in_place=True)  # no copy of a picture that stands upright
                return _to_rgb(image, name)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not a picture, or its first bytes are damaged", expected=_FORMATS_TEXT) from None
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(f"{name} is too large ({error})", expected=_pixels_text(max_pixels)) from error
    except DAMAGED as error:
        raise ImageError(f"{name} cannot be read ({error})", expected="an undamaged, complete picture") from error


def preprocess(
    image: Image.Image,
    preprocessing: Preprocessing,
    *,
    name: str | Path = "the picture",
    max_pixels: int = MAX_PIXELS,
) -> NDArray[np.float32]:
    """An RGB picture as an input of shape (3, H, W); ``name`` is what an error calls the picture.

    H and W are those of ``preprocessing.size``, or, with ``keep_ratio``, what fits within it.

    Raises:
        ImageTooLarge: resizing it would make more than ``max_pixels``: of a sliver, whose shorter side grows.
        ImageError: the picture is not RGB.
    """
    import numpy as np
    from PIL import Image

    if image.mode != "RGB" or not all(image.size):
        found = f"{name} is {image.height}x{image.width} pixels of mode {image.mode}"
        raise ImageError(found, expected="at least 1x1 pixels of mode RGB, as load_image returns")
    rows, columns = _resized(image.height, image.width, preprocessing)
    height, width = (rows, columns) if preprocessing.keep_ratio else preprocessing.size
    _check_pixels(rows, columns, f"{name}, {image.height}x{image.width}, resized has", max_pixels)
    if (columns, rows) != image.size:
        bilinear = preprocessing.interpolation == "bilinear"
        image = image.resize((columns, rows), Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC)
    # Python's round takes halves to the even neighbour, as the crop of the published evaluation does.
    top, left = round((rows - height) / 2), round((columns - width) / 2)
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), dtype=np.float32)  # (H, W, 3)
    mean, std = np.array(preprocessing.mean, np.float32), np.array(preprocessing.std, np.float32)
    return np.ascontiguousarray(((pixels / np.float32(255) - mean) / std).transpose(2, 0, 1))


def load_batch(paths: Iterable[str | Path], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Read pictures as one input of shape (B, 3, H, W), in the order given.

    Raises:
        ImageError: a picture is unusable, or there is none.
    """
    import numpy as np

    inputs = [preprocess(load_image(path), preprocessing, name=path) for path in paths]
    if not inputs:
        raise ImageError("a batch of no pictures", expected="at least one")
    return np.stack(inputs)


def image_files(folder: str | Path) -> list[Path]:
    """Every file under ``folder`` with a picture's suffix in any case, sorted; links to folders are followed.

    Raises:
        ImageError: it is no folder, cannot be listed, holds no picture, or links to one folder twice.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        found = "is a file" if os.path.exists(folder) else "does not exist"
        raise ImageError(f"{folder} {found}", expected="a folder of pictures")
    if os.path.isdir(folder / "images") and os.path.isdir(folder / "annotations"):  # masks are no photographs
        raise ImageError(
            f"{folder} holds annotations beside images", expected="a folder of pictures alone, such as images/training"
        )
    found_files: list[Path] = []
    seen: dict[str, str] = {}
    try:
        for place, _, names in os.walk(folder, onerror=_refuse, followlinks=True):
            other = seen.setdefault(os.path.realpath(place), place)
            if other != place:
                raise ImageError(f"{place} and {other} are the same folder", expected="each folder once")
            found_files += [Path(place, name) for name in names if name.lower().endswith(SUFFIXES)]
    except OSError as error:
        raise ImageError(f"{folder} cannot be listed ({error})", expected="a readable folder") from error
    if not found_files:
        raise ImageError(f"{folder} holds no picture", expected=f"files ending in {', '.join(SUFFIXES)}")
    return sorted(found_files)


def image_set_digest(folder: str | Path, paths: Sequence[Path]) -> str:
    """SHA-256, in hex, over the contents of ``paths`` and their names relative to ``folder``; order does not count.

    Raises:
        ImageError: a file cannot be read, or lies outside ``folder``.
    """
    digest = hashlib.sha256()
    lines: list[bytes] = []
    for path in paths:
        if not path.is_relative_to(folder):
            raise ImageError(f"{path} lies outside {folder}", expected="pictures of one folder")
        _check_file(path)
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ImageError(f"{path} cannot be read ({error})") from error
        lines.append(os.fsencode(path.relative_to(folder).as_posix()) + b"\0" + content.encode() + b"\n")
    digest.update(b"".join(sorted(lines)))
    return digest.hexdigest()


_FORMATS_TEXT = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"


def _refuse(error: OSError) -> None:
    raise error


def _check_file(path: Path) -> None:
    # Only regular files: opening a pipe would wait for ever.
    try:
        size = path.stat().st_size
        kind = "is a folder" if path.is_dir() else "" if path.is_file() else "is no regular file"
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        found = "does not exist" if missing else f"cannot be read ({error})"
        raise ImageError(f"{path} {found}", expected="a picture file") from error
    if kind or not size:
        raise ImageError(f"{path} {kind or 'is empty'}", expected="a picture file")


def _check_pixels(height: int, width: int, subject: str, most: int) -> None:
    if height * width > most:
        raise ImageTooLarge(f"{subject} {height}x{width} pixels", expected=_pixels_text(most))


def _pixels_text(most: int) -> str:
    return f"at most {most / 1e6:.10g} megapixels"


def _resized(height: int, width: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """Height and width after the resize; the longer side keeps the aspect ratio, cut to an integer.

    With ``keep_ratio`` both sides are rounded, halves up, as the published evaluation of ADE20K does.
    """
    if preprocessing.keep_ratio:
        most, least = max(preprocessing.size), min(preprocessing.size)
        scale = min(most / max(height, width), least / min(height, width))
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
    shorter = preprocessing.resize_shorter
    if shorter is None:
        return preprocessing.size
    longer = int(shorter * max(height, width) / min(height, width))
    return (shorter, longer) if height <= width else (longer, shorter)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise ImageError(f"{name} holds floating-point pixels", expected="8 or 16 bits a channel")
    if image.mode.startswith("I"):
        image = _to_8_bits(image, name)
    return image.convert("RGB")


def _to_8_bits(image: Image.Image, name: str) -> Image.Image:
    """Grey of 16 bits, scaled: Pillow's own conversion clips at 255; 257 takes 65535 to 255."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(f"{name} holds values from {values.min()} to {values.max()}", expected="0 to 65535")
    values = values.astype(np.uint32)  # and then in place: a large picture is not to be there many times
    values += 128
    values //= 257
    return Image.fromarray(values.astype(np.uint8))
