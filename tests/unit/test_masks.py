"""Outputs to masks against a resize written pixel by pixel, mask files of every kind, colours and runs."""

from __future__ import annotations

import io
import itertools
import os
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sepvit_deploy import images, masks
from sepvit_deploy.errors import ImageError, ImageTooLarge, InputError, PassportError
from sepvit_deploy.masks import (
    TILE,
    Abandoned,
    class_mask,
    from_run_lengths,
    mask_png,
    names_and_colours,
    palette,
    read_mask,
    run_lengths,
)

SIDES = st.integers(1, 17)
SIZES = st.tuples(SIDES, SIDES)


def resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(C, h, w) to ``size``, bilinear by half-pixels, one pixel after the other."""
    out = np.zeros((len(values), *size))
    for i in range(size[0]):
        for j in range(size[1]):
            y, x = (max((k + 0.5) * n / m - 0.5, 0) for k, n, m in zip((i, j), values.shape[1:], size, strict=True))
            top, left = int(y), int(x)
            bottom, right = min(top + 1, values.shape[1] - 1), min(left + 1, values.shape[2] - 1)
            upper = values[:, top, left] * (1 - (x - left)) + values[:, top, right] * (x - left)
            lower = values[:, bottom, left] * (1 - (x - left)) + values[:, bottom, right] * (x - left)
            out[:, i, j] = upper * (1 - (y - top)) + lower * (y - top)
    return out


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    classes=st.integers(1, 5),
    small=SIZES,
    middle=SIZES,
    picture=SIZES,
    tile=st.sampled_from([(256, 512), (3, 4), (1, 7)]),
    half=st.booleans(),
)
def test_the_class_of_every_pixel_is_that_of_two_resizes(
    seed: int,
    classes: int,
    small: tuple[int, int],
    middle: tuple[int, int],
    picture: tuple[int, int],
    tile: tuple[int, int],
    half: bool,
) -> None:
    logits = np.random.default_rng(seed).normal(size=(2, classes, *small)).astype(np.float16 if half else np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "TILE", tile)
        mask = class_mask({"logits": logits}, 1, input_size=middle, picture_size=picture)
    assert (mask.dtype, mask.shape) == (np.uint8, picture)
    expected = resized(resized(logits[1].astype(np.float64), middle), picture)
    chosen = np.take_along_axis(expected, mask[None].astype(np.int64), axis=0)[0]
    assert (chosen >= expected.max(axis=0) - 1e-5).all()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), small=SIZES, middle=SIZES, picture=SIZES)
def test_of_equal_logits_the_first_class_wins(
    seed: int, small: tuple[int, int], middle: tuple[int, int], picture: tuple[int, int]
) -> None:
    logits = np.random.default_rng(seed).normal(size=(1, 3, *small)).astype(np.float32)
    twice = np.concatenate([logits, logits, logits], axis=1)
    sizes: Any = {"input_size": middle, "picture_size": picture}
    assert np.array_equal(class_mask({"logits": twice}, 0, **sizes), class_mask({"logits": logits}, 0, **sizes))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), size=SIZES, picture=SIZES)
def test_a_mask_is_resized_by_the_nearest_pixel(seed: int, size: tuple[int, int], picture: tuple[int, int]) -> None:
    given_masks = np.random.default_rng(seed).integers(0, 256, (2, *size), np.uint8)
    mask = class_mask({"mask": given_masks}, 1, input_size=size, picture_size=picture)
    for i in range(picture[0]):
        for j in range(picture[1]):
            row, column = (2 * i + 1) * size[0] // (2 * picture[0]), (2 * j + 1) * size[1] // (2 * picture[1])
            assert mask[i, j] == given_masks[1, row, column]


@pytest.mark.parametrize(("classes", "dtype"), [(256, np.uint8), (257, np.uint16)])
def test_more_classes_than_a_byte_has(classes: int, dtype: type) -> None:
    logits = np.zeros((1, classes, 1, 1), np.float32)
    logits[0, -1] = 1
    mask = class_mask({"logits": logits}, 0, input_size=(4, 4), picture_size=(2, 3))
    assert mask.dtype == dtype
    assert (mask == classes - 1).all()


@pytest.mark.parametrize("size", [(5 * TILE[0], 3), (3, 5 * TILE[1])], ids=["high", "wide"])
def test_a_mask_that_nobody_waits_for_is_left_between_two_tiles(size: tuple[int, int]) -> None:
    logits = {"logits": np.zeros((1, 2, 2, 2), np.float32)}
    sizes: Any = {"input_size": (8, 8), "picture_size": size}
    asked = itertools.count(1)
    assert class_mask(logits, 0, **sizes, keep_going=lambda: bool(next(asked))).shape == size
    times = next(asked) - 1
    assert times >= 5
    for last in range(1, times + 1):
        asked = itertools.count(1)
        with pytest.raises(Abandoned):
            class_mask(logits, 0, **sizes, keep_going=lambda: next(asked) < last)  # noqa: B023
        assert next(asked) == last + 1


def test_memory_does_not_grow_with_the_classes() -> None:
    logits = np.random.default_rng(0).normal(size=(1, 150, 24, 32)).astype(np.float32)
    tracemalloc.start()
    try:
        mask = class_mask({"logits": logits}, 0, input_size=(96, 128), picture_size=(900, 1200))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - 3 * mask.nbytes < 8 << 20  # the 150 resized maps take 650 MB


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({}, "outputs of no name; expected logits or mask"),
        ({"stride4": np.zeros((1, 2, 2, 2))}, "outputs stride4; expected logits or mask"),
        ({"logits": np.zeros((1, 5), np.float32)}, "logits of shape 1 x 5; expected B x classes x height x width"),
        ({"logits": np.zeros((0, 5, 1, 1), np.float32)}, "logits of shape 0 x 5 x 1 x 1"),
        ({"logits": np.full((1, 2, 1, 1), np.nan)}, "logits that are not finite; check the file first"),
        ({"logits": np.full((1, 2, 1, 1), -np.inf)}, "logits that are not finite"),
        ({"mask": np.zeros((1, 4, 4), np.int64)}, "a mask of int64 1 x 4 x 4; expected uint8 B x 4 x 4"),
        ({"mask": np.zeros((1, 4, 5), np.uint8)}, "a mask of uint8 1 x 4 x 5; expected uint8 B x 4 x 4"),
        ({"mask": np.zeros((0, 4, 4), np.uint8)}, "a mask of uint8 0 x 4 x 4"),
    ],
)
def test_outputs_that_are_no_masks(outputs: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        class_mask(outputs, 0, input_size=(4, 4), picture_size=(4, 4))


LABELS = np.array([[0, 1, 2], [3, 150, 255]], np.uint8)


def saved(path: Path, values: np.ndarray, mode: str, **options: Any) -> Path:
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette([255 - k % 256 for k in range(768)])
    elif mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16))
    elif mode == "1":
        image = Image.fromarray(values.astype(bool))
    image.save(path, **options)
    with Image.open(path) as again:
        assert again.mode == mode
    return path


@pytest.mark.parametrize(
    ("mode", "values"), [("L", LABELS), ("P", LABELS), ("P", LABELS % 4), ("I;16", LABELS), ("1", LABELS % 2)]
)
def test_masks_keep_their_numbers(tmp_path: Path, mode: str, values: np.ndarray) -> None:
    read = read_mask(saved(tmp_path / "m.png", values, mode))
    assert read.dtype == np.uint8
    assert np.array_equal(read, values)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_is_not_spread(tmp_path: Path, bits: int) -> None:
    values = np.arange(1 << bits, dtype=np.uint8)[None]
    saved(tmp_path / "p.png", values, "P", bits=bits)
    content = bytearray((tmp_path / "p.png").read_bytes())
    content[25] = 0  # the colour type: grey instead of a palette
    start = content.index(b"PLTE") - 4
    del content[start : start + 12 + int.from_bytes(content[start : start + 4])]
    content[29:33] = _crc(bytes(content[12:29]))
    (tmp_path / "grey.png").write_bytes(content)
    assert np.array_equal(read_mask(tmp_path / "grey.png"), values)


def _crc(chunk: bytes) -> bytes:
    import zlib

    return zlib.crc32(chunk).to_bytes(4)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_coloured_pictures_are_no_masks(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (3, 2)).save(tmp_path / "m.png")
    with pytest.raises(ImageError, match=rf"m\.png is a picture of mode {mode}; expected a PNG of one class number"):
        read_mask(tmp_path / "m.png")


def test_numbers_beyond_a_byte(tmp_path: Path) -> None:
    Image.fromarray(np.array([[7, 256]], np.uint16)).save(tmp_path / "m.png")
    with pytest.raises(ImageError, match=r"m\.png holds the value 256; expected class numbers of at most 255$"):
        read_mask(tmp_path / "m.png")


def test_a_jpeg_is_no_mask(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "m.png", "JPEG")
    with pytest.raises(ImageError, match=r"m\.png is no PNG file; expected a PNG"):
        read_mask(tmp_path / "m.png")


def test_a_mask_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (11, 10)).save(tmp_path / "m.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 109)
    with pytest.raises(ImageTooLarge, match=r"m\.png has 10x11 pixels; expected at most 0\.000109 megapixels"):
        read_mask(tmp_path / "m.png")


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match=r"pipe\.png is no regular file"):
        read_mask(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match=r"absent\.png does not exist; expected a PNG file of a mask"):
        read_mask(tmp_path / "absent.png")


@pytest.mark.parametrize("cut", [0, 4, 20, 40, 60, 90, 120])
def test_a_mask_cut_off(tmp_path: Path, cut: int) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30), np.uint8)).save(buffer, "PNG")
    (tmp_path / "m.png").write_bytes(buffer.getvalue()[:cut])
    with pytest.raises(ImageError) as error:
        read_mask(tmp_path / "m.png")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_written_mask_is_read_again(tmp_path: Path, dtype: type) -> None:
    (tmp_path / "m.png").write_bytes(mask_png(LABELS.astype(dtype), palette(256)))
    assert np.array_equal(read_mask(tmp_path / "m.png"), LABELS)
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == ("P" if dtype is np.uint8 else "I;16")
        if dtype is np.uint8:
            assert image.convert("RGB").getpixel((1, 1)) == palette(256)[150]


def test_the_colours_of_a_palette_are_far_apart() -> None:
    assert palette(150) == palette(300)[:150]
    linear = np.array(palette(150)) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(linear @ to_xyz.T / [0.9505, 1, 1.089]).T  # all above the cube root's linear part
    lab = np.stack([116 * y, 500 * (x - y), 200 * (y - z)], axis=1)
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=2) + 1000 * np.eye(150)
    assert apart.min() >= 4
    assert apart[:20, :20].min() >= 18


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), size=SIZES, classes=st.sampled_from([1, 2, 256, 1 << 16]), same=st.integers(1, 9))
def test_runs_there_and_back(seed: int, size: tuple[int, int], classes: int, same: int) -> None:
    values = np.random.default_rng(seed).integers(0, classes, size)
    mask = np.repeat(values, same, axis=1).astype(np.uint8 if classes <= 256 else np.uint16)
    pairs = run_lengths(mask)
    assert all(before[0] != after[0] for before, after in itertools.pairwise(pairs))
    assert [k for k, length in pairs for _ in range(length)] == mask.ravel().tolist()
    again = from_run_lengths(pairs, *mask.shape)
    assert again.dtype == (np.uint16 if mask.max() > 255 else np.uint8)
    assert np.array_equal(again, mask)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "runs of 0 pixels; expected 2 x 3 = 6"),
        ([[0, 5]], "runs of 5 pixels"),
        ([[0, 7]], "runs of 7 pixels"),
        ([[0, 10**30]], "runs of 1000000000000000000000000000000 pixels"),
        ([[0, 6], [1, 0]], "a run is [1, 0]; expected [class, length]"),
        ([[0, -1], [1, 7]], "a run is [0, -1]"),
        ([[-1, 6]], "a run is [-1, 6]"),
        ([[1 << 16, 6]], "a run is [65536, 6]"),
        ([[0, 6.0]], "a run is [0, 6.0]"),
        ([[True, 6]], "a run is [True, 6]"),
        ([[0, 3, 3]], "a run is [0, 3, 3]"),
        (["06"], "a run is '06'"),
    ],
)
def test_pairs_that_are_no_runs(pairs: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        from_run_lengths(pairs, 2, 3)


def test_runs_of_more_pixels_than_a_picture_may_have() -> None:
    message = "a mask of 10001x10000 pixels; expected at most 100000000"
    with pytest.raises(InputError, match=f"^{message}$"):
        from_run_lengths([[0, 10001 * 10000]], 10001, 10000)


def test_what_a_passport_calls_the_classes() -> None:
    assert names_and_colours({}, 2) == (None, None)
    facts = {"classes": ["wall", "sky"], "palette": [[0, 1, 2], [255, 0, 9]]}
    assert names_and_colours(facts, 2) == (["wall", "sky"], [(0, 1, 2), (255, 0, 9)])


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"classes": ["wall"]}, "the passport's classes are 1 entries; expected 2 names; export again"),
        ({"classes": ["wall", 3]}, "the passport's classes are 2 entries; expected 2 names"),
        ({"classes": "ab"}, "the passport's classes are 'ab'; expected 2 names"),
        ({"palette": [[0, 0, 0]]}, "the passport's palette are 1 entries; expected 2 colours"),
        ({"palette": [[0, 0, 0], [0, 0, 256]]}, "the passport's palette are 2 entries; expected 2 colours"),
        ({"palette": [[0, 0, 0], [0, 0, 0.5]]}, "the passport's palette are 2 entries"),
        ({"palette": [[0, 0, 0], [0, 0]]}, "the passport's palette are 2 entries"),
        ({"palette": {"0": [0, 0, 0]}}, "the passport's palette are {'0': [0, 0, 0]}"),
    ],
)
def test_a_passport_with_other_names(facts: dict[str, Any], message: str) -> None:
    with pytest.raises(PassportError, match=f"^{re.escape(message)}"):
        names_and_colours(facts, 2)
