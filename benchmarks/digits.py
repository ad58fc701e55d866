"""Real handwritten digits in difficult pictures: data that a small SepViT can learn, with errors left to count.

    python benchmarks/digits.py --output digits
    python benchmarks/digits.py --masks --output digits_masks

scikit-learn ships 1,797 handwritten digits of 8 x 8 pixels (UCI, "Optical Recognition of Handwritten Digits",
E. Alpaydin and C. Kaynak, 1998, CC BY 4.0). Each picture here is one of them, enlarged, turned, sheared and coloured,
on a varied background with distractors, blur and noise: 224 x 224 pixels, made from a seed. No digit is in two of the
three splits.

Plainly they are written into a folder for each class, as ImageNet's are. With --masks the same pictures lie in ADE20K's
layout, with a mask of each: its class 0 is the background, its classes 1 to 10 are the digits 0 to 9.

Pictures are made of integers, additions and products alone: the same versions of numpy and Pillow make the same ones.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from sklearn.datasets import load_digits

SIDE = 224
SEED = 2203_15380
SPLITS = {"train": 1097, "calibration": 250, "test": 450}
"""Source digits of each split."""
COUNTS = {"calibration": 512, "test": 2000}
"""Pictures that the command line writes."""
MASKED_COUNTS = {"calibration": 512, "test": 500}
"""With masks: a picture has many pixels to be right or wrong in."""
LEVEL = 0.7
"""Difficulty of the calibration and test pictures, chosen on the calibration split: SepViT-Lite, trained in an hour on
levels up to 1, errs on a few of a hundred there."""
MARGIN = 14
"""Pixels at each edge that ImageNet's preprocessing of 224 pixels cuts off."""
LEAST_CONTRAST = 55
"""By which a digit is at least brighter than the average of its background, in the grey of 0 to 255."""

MASK_CLASSES = ("background", *"0123456789")
"""What the numbers in a mask stand for; distractors and fragments are background."""

Split = Literal["train", "calibration", "test"]


@dataclass(frozen=True)
class Source:
    """The digits of one split: ``strokes`` (n, 8, 8) uint8 from 0 to 255, ``classes`` (n,), ``indices`` in the data."""

    split: Split
    strokes: NDArray[np.uint8]
    classes: NDArray[np.int64]
    indices: NDArray[np.int64]


@functools.cache
def source(split: Split) -> Source:
    """The digits of a split; the same ones at every call."""
    data = load_digits()
    order = np.random.default_rng(SEED).permutation(len(data.target))
    start = 0
    for name, count in SPLITS.items():
        if name == split:
            break
        start += count
    chosen = np.sort(order[start : start + SPLITS[split]])
    strokes = np.minimum(data.images[chosen].astype(np.int64) * 16, 255).astype(np.uint8)
    return Source(split, strokes, data.target[chosen].astype(np.int64), chosen)


def pictures(split: Split, count: int, *, level: float = LEVEL, seed: int = 0) -> Iterator[tuple[Image.Image, int]]:
    """``count`` pictures of a split with their classes, each class equally often.

    Args:
        level: 0 is a digit of one size in the middle of a plain background, 1 the hardest.
    """
    for number, (picture, _) in enumerate(masked_pictures(split, count, level=level, seed=seed)):
        yield picture, number % 10


def masked_pictures(
    split: Split, count: int, *, level: float = LEVEL, seed: int = 0
) -> Iterator[tuple[Image.Image, Image.Image]]:
    """The same pictures with their masks, see `compose_masked`."""
    digits = source(split)
    by_class = [np.flatnonzero(digits.classes == k) for k in range(10)]
    for number in range(count):
        # One generator a picture: picture 7 is the same whether 10 or 1,000 are made.
        rng = np.random.default_rng((SEED, sorted(SPLITS).index(split), seed, number))
        members = by_class[number % 10]
        yield compose_masked(digits, int(members[rng.integers(len(members))]), rng, level)


def compose(digits: Source, index: int, rng: np.random.Generator, level: float = LEVEL) -> Image.Image:
    """One 224 x 224 RGB picture of the digit at ``index``."""
    return compose_masked(digits, index, rng, level)[0]


def compose_masked(
    digits: Source, index: int, rng: np.random.Generator, level: float = LEVEL
) -> tuple[Image.Image, Image.Image]:
    """The picture of `compose`, and its mask, 224 x 224 grey: `MASK_CLASSES`' number of every pixel.

    Of the digit are the pixels that it covers at least by half, before blur and whatever its own opacity.
    """
    picture = _background(rng, level)
    for _ in range(int(rng.integers(0, 1 + round(7 * level)))):
        _draw_shape(picture, rng)
    for _ in range(int(rng.integers(0, 1 + round(3 * level)))):
        _paste_fragment(picture, digits, rng)
    shape, place = _paste_digit(picture, digits.strokes[index], rng, level)
    mask = Image.new("L", picture.size)
    mask.paste(int(digits.classes[index]) + 1, place, shape.point([255 * (value >= 128) for value in range(256)]))
    if rng.random() < 0.5 * level:
        picture = picture.filter(ImageFilter.BoxBlur(float(rng.uniform(0.5, 1.8))))
    return _noisy(picture, rng, level), mask


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3)
    return int(red), int(green), int(blue)


def _background(rng: np.random.Generator, level: float) -> Image.Image:
    """A blend of a few colours, and coarse and fine texture, no channel above half; plain at level 0."""
    corners = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
    corners = corners.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    picture = Image.blend(Image.new("RGB", (SIDE, SIDE), _colour(rng)), corners, float(level * rng.random()))
    for cells in (7, 28):
        texture = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        texture = texture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        picture = Image.blend(picture, texture, float(rng.uniform(0, 0.25 * level)))
    return picture.point([value // 2 for value in range(256)] * 3)


def _draw_shape(picture: Image.Image, rng: np.random.Generator) -> None:
    """A line, an ellipse or a rectangle of any colour."""
    draw = ImageDraw.Draw(picture)
    left, top = (int(v) for v in rng.integers(-20, SIDE, 2))
    width, height = (int(v) for v in rng.integers(8, 70, 2))
    box = (left, top, left + width, top + height)
    kind = int(rng.integers(4))
    thickness = int(rng.integers(1, 7))
    if kind == 0:
        draw.line((*rng.integers(0, SIDE, 2).tolist(), *rng.integers(0, SIDE, 2).tolist()), _colour(rng), thickness)
    elif kind == 1:
        draw.ellipse(box, outline=_colour(rng), width=thickness)
    elif kind == 2:
        draw.rectangle(box, outline=_colour(rng), width=thickness)
    else:
        draw.arc(box, int(rng.integers(360)), int(rng.integers(360)), _colour(rng), thickness)


def _shape(stroke: NDArray[np.uint8], side: int, rng: np.random.Generator, turn: float) -> Image.Image:
    """A digit enlarged to ``side`` pixels, sheared and turned by up to ``turn`` degrees: grey, 255 where it is."""
    glyph = Image.fromarray(np.pad(stroke, 2)).resize((side * 12 // 8, side * 12 // 8), Image.Resampling.BICUBIC)
    # A stroke of 8 x 8 pixels is soft: a steeper edge at a varying height makes it thinner or thicker.
    low = int(rng.integers(60, 120))
    glyph = glyph.point([min(255, max(0, (value - low) * 4)) for value in range(256)])
    size = glyph.width
    shear = float(rng.uniform(-0.25, 0.25))
    glyph = glyph.transform((size, size), Image.Transform.AFFINE, (1, shear, -shear * size / 2, 0, 1, 0))
    return glyph.rotate(float(rng.uniform(-turn, turn)), Image.Resampling.BILINEAR)


def _paste_fragment(picture: Image.Image, digits: Source, rng: np.random.Generator) -> None:
    """A piece of some digit of the same split, too small a part to be read as one."""
    stroke = digits.strokes[int(rng.integers(len(digits.strokes)))]
    mask = _shape(stroke, int(rng.integers(24, 60)), rng, 180.0)
    left = int(rng.integers(0, mask.width // 2))
    mask = mask.crop((left, 0, left + mask.width // 3, mask.height))
    picture.paste(_colour(rng), tuple(rng.integers(-20, SIDE - 10, 2).tolist()), mask)  # type: ignore[arg-type]


def _paste_digit(
    picture: Image.Image, stroke: NDArray[np.uint8], rng: np.random.Generator, level: float
) -> tuple[Image.Image, tuple[int, int]]:
    """The digit itself, whole inside the central 196 pixels that ImageNet's preprocessing keeps.

    Returns:
        Its shape, grey, and the place of that in the picture.
    """
    side = int(rng.integers(round(110 - 50 * level), 125))
    mask = _shape(stroke, side, rng, 5 + 30 * level)
    mask = mask.crop(mask.getbbox() or (0, 0, mask.width, mask.height))
    left, top = (_place(length, rng, level) for length in mask.size)
    beneath = np.asarray(picture.crop((left, top, left + mask.width, top + mask.height)).convert("L"))
    average = int(beneath.sum(dtype=np.int64)) // beneath.size
    least = LEAST_CONTRAST + round(70 * (1 - level))
    colour = _colour(rng)
    while _grey(colour) < average + least:
        colour = _colour(rng)
    opacity = int(rng.integers(round(255 - 75 * level), 256))
    picture.paste(colour, (left, top), ImageChops.multiply(mask, Image.new("L", mask.size, opacity)))
    return mask, (left, top)


def _place(length: int, rng: np.random.Generator, level: float) -> int:
    """Where a digit of ``length`` pixels begins: in the middle at level 0, anywhere within the margin at 1."""
    room = max(0, SIDE - 2 * MARGIN - length)
    shift = round(room * level * (rng.random() - 0.5))
    return MARGIN + room // 2 + shift


def _grey(colour: tuple[int, int, int]) -> int:
    red, green, blue = colour
    return (299 * red + 587 * green + 114 * blue) // 1000


def _noisy(picture: Image.Image, rng: np.random.Generator, level: float) -> Image.Image:
    """Noise of every pixel and channel, the sum of two uniform numbers."""
    width = int(rng.integers(2, 4 + round(70 * level)))
    first, second = rng.integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8).astype(np.int16)
    noise = (first + second - 255) * width // 256
    return Image.fromarray(np.clip(np.asarray(picture, dtype=np.int16) + noise, 0, 255).astype(np.uint8))


def write(folder: Path, split: Split, count: int, *, seed: int = 0) -> None:
    """Write pictures as ``folder/CLASS/NUMBER.png``, ImageNet's layout."""
    for number, (picture, label) in enumerate(pictures(split, count, seed=seed)):
        place = folder / str(label)
        place.mkdir(parents=True, exist_ok=True)
        picture.save(place / f"{number:05}.png", compress_level=1)


def write_masked(folder: Path, split: Split, count: int, *, seed: int = 0) -> Path:
    """Write pictures and masks in ADE20K's layout, whose name of the test split is validation.

    Returns:
        The folder of the pictures, ``folder/images/SPLIT``; the masks lie in ``folder/annotations/SPLIT``.
    """
    places = [folder / kind / split.replace("test", "validation") for kind in ("images", "annotations")]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    for number, pair in enumerate(masked_pictures(split, count, seed=seed)):
        for place, image in zip(places, pair, strict=True):
            image.save(place / f"{number:05}.png", compress_level=1)
    return places[0]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the calibration and test pictures of the digits.")
    parser.add_argument("--masks", action="store_true", help="write ADE20K's layout, pictures and masks")
    parser.add_argument("--output", type=Path, help="folder to write (default: digits, or digits_masks with --masks)")
    for name, count in COUNTS.items():
        default = f"{count}, or {MASKED_COUNTS[name]} with --masks"
        parser.add_argument(f"--{name}", type=int, help=f"pictures of this split (default: {default})")
    options = parser.parse_args()
    output = options.output or Path("digits_masks" if options.masks else "digits")
    for split, count in (MASKED_COUNTS if options.masks else COUNTS).items():
        count = count if getattr(options, split) is None else getattr(options, split)
        place = output / split
        if options.masks:
            place = write_masked(output, split, count)  # type: ignore[arg-type]
        else:
            write(place, split, count)  # type: ignore[arg-type]
        print(f"{place}: {count} pictures")


if __name__ == "__main__":
    main()
