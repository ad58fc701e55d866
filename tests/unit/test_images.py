"""From picture files to input tensors: the numbers, every format, and every refusal with its words."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sepvit_deploy.errors import ImageError, ImageTooLarge
from sepvit_deploy.images import (
    MAX_UPLOAD_PIXELS,
    decode_image,
    image_files,
    image_set_digest,
    load_batch,
    load_image,
    preprocess,
)
from sepvit_deploy.spec import Preprocessing

EXAMPLE = Path(__file__).parents[2] / "examples" / "chelsea.jpg"
ORIENTATION = 0x0112
CLASSIFY = Preprocessing.for_task("classify", (224, 224))
KNOWN = "JPEG, PNG, WEBP, BMP or TIFF"


@pytest.fixture(autouse=True)
def _no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def refused(match: str) -> Any:
    return pytest.raises(ImageError, match=re.escape(match))


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


# --- load_image: what is read


@pytest.mark.parametrize(("name", "file_format"), [("a.png", "PNG"), ("a.bmp", "BMP"), ("a.tiff", "TIFF")])
def test_lossless_formats_keep_every_pixel(tmp_path: Path, name: str, file_format: str) -> None:
    pixels = noise(5, 7)
    image = load_image(written(tmp_path / name, encoded(Image.fromarray(pixels), file_format)))
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP", "MPO"])
def test_lossy_formats_keep_colours(tmp_path: Path, file_format: str) -> None:
    path = written(tmp_path / "a", encoded(Image.new("RGB", (16, 16), (200, 100, 50)), file_format))
    assert np.abs(np.asarray(load_image(str(path))).astype(int) - (200, 100, 50)).max() <= 6


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr"])
def test_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGB", (4, 3), (255, 255, 255)).convert("L" if mode in ("PA", "LA") else "RGB").convert(mode)
    file_format = "TIFF" if mode in ("PA", "CMYK", "YCbCr") else "PNG"
    loaded = load_image(written(tmp_path / "a", encoded(image, file_format)))
    assert (loaded.mode, loaded.size) == ("RGB", (4, 3))
    assert np.asarray(loaded).min() >= 254


def test_alpha_is_dropped_not_blended(tmp_path: Path) -> None:
    pixels = np.dstack([noise(4, 4), np.zeros((4, 4), np.uint8)])  # wholly transparent
    loaded = load_image(written(tmp_path / "a.png", encoded(Image.fromarray(pixels), "PNG")))
    assert np.array_equal(np.asarray(loaded), pixels[..., :3])


def test_a_transparent_palette_raises_no_warning(tmp_path: Path) -> None:
    palette = Image.fromarray(noise(4, 4)).quantize(8)
    path = written(tmp_path / "a.png", encoded(palette, "PNG", transparency=bytes([0, 128])))
    assert np.array_equal(np.asarray(load_image(path)), np.asarray(palette.convert("RGB")))


def test_a_cmyk_jpeg_is_read(tmp_path: Path) -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # red
    red, green, blue = np.asarray(load_image(written(tmp_path / "a.jpg", encoded(image, "JPEG"))))[4, 4]
    assert red > 240 and green < 15 and blue < 15


@pytest.mark.parametrize(("dtype", "file_format"), [("<u2", "PNG"), ("<u2", "TIFF"), (">u2", "TIFF"), ("<i4", "TIFF")])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, dtype: str, file_format: str) -> None:
    values = np.array([[0, 128, 129, 257], [32768, 65406, 65407, 65535]], dtype)
    loaded = load_image(written(tmp_path / "a", encoded(Image.fromarray(values), file_format)))
    expected = np.array([[0, 0, 1, 1], [128, 254, 255, 255]])
    assert np.array_equal(np.asarray(loaded), np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize("dtype", ["<u2", "<i4"])
def test_every_value_of_16_bits_is_the_nearest_of_8_and_takes_little_memory(dtype: str) -> None:
    values = np.arange(65536).reshape(256, 256)
    content = encoded(Image.fromarray(np.tile(values.astype(dtype), (4, 4))), "TIFF")
    tracemalloc.start()
    decoded = np.asarray(decode_image(content))
    peak = tracemalloc.get_traced_memory()[1]  # of numpy's copies; Pillow's are not traced
    tracemalloc.stop()
    expected = np.tile((values + 128) // 257, (4, 4))
    assert np.array_equal(decoded, np.repeat(expected[..., None], 3, axis=2))
    assert peak < 16 * expected.size


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """What a stored array shows, after the EXIF standard's table of where row 0 and column 0 belong."""
    mirrored = {2: pixels[:, ::-1], 4: pixels[::-1], 5: pixels.swapaxes(0, 1), 7: pixels[::-1, ::-1].swapaxes(0, 1)}
    turns = {1: 0, 3: 2, 6: 3, 8: 1}
    return mirrored[orientation] if orientation in mirrored else np.rot90(pixels, turns[orientation])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
def test_the_exif_orientation_is_applied_once(tmp_path: Path, orientation: int, file_format: str, mode: str) -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    pixels = grey.astype(np.uint16) * 257 if mode == "I;16" else grey
    image = Image.fromarray(pixels).convert(mode)
    loaded = load_image(written(tmp_path / "a", encoded(image, file_format, exif=oriented(orientation))))
    assert np.array_equal(np.asarray(loaded)[..., 0], upright(grey, orientation))


def test_a_jpegs_orientation_is_applied(tmp_path: Path) -> None:
    data = encoded(Image.new("RGB", (40, 20)), "JPEG", exif=oriented(6))
    assert load_image(written(tmp_path / "a.jpg", data)).size == (20, 40)


def test_the_content_counts_not_the_suffix(tmp_path: Path) -> None:
    assert load_image(written(tmp_path / "a.jpg", encoded(Image.new("RGB", (2, 1)), "PNG"))).size == (2, 1)


def test_the_example_photograph() -> None:
    assert load_image(EXAMPLE).size == (451, 300)
    assert EXAMPLE.stat().st_size <= 150_000
    assert load_batch([EXAMPLE], CLASSIFY).shape == (1, 3, 224, 224)


# --- load_image: what is refused


def test_files_that_are_none(tmp_path: Path) -> None:
    with refused(f"{tmp_path / 'a.png'} does not exist; expected a picture file"):
        load_image(tmp_path / "a.png")
    with refused(f"{tmp_path} is a folder; expected a picture file"):
        load_image(tmp_path)
    with refused("is empty; expected a picture file"):
        load_image(written(tmp_path / "empty.png", b""))
    with refused("does not exist"):
        load_image(tmp_path / "empty.png" / "a.png")
    with refused("cannot be read (embedded null byte)"):
        load_image("a\0b.png")
    with refused("cannot be read"):
        load_image("a" * 5000)


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with refused("is no regular file; expected a picture file"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize("data", [b"<html>404</html>", b"\0", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_picture(tmp_path: Path, data: bytes) -> None:
    path = written(tmp_path / "a.jpg", data)
    with refused(f"{path} is not a picture, or its first bytes are damaged; expected {KNOWN}"):
        load_image(path)


@pytest.mark.parametrize("file_format", ["GIF", "PPM", "ICO", "TGA"])
def test_other_formats_are_refused_under_any_name(tmp_path: Path, file_format: str) -> None:
    with refused(f"expected {KNOWN}"):
        load_image(written(tmp_path / "a.png", encoded(Image.new("RGB", (32, 32)), file_format)))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_a_truncated_picture_is_refused_or_whole(tmp_path: Path, file_format: str) -> None:
    data = encoded(Image.fromarray(noise(9, 9)), file_format)
    path = written(tmp_path / "a", data)
    whole = np.asarray(load_image(path))
    refusals = 0
    for length in range(1, len(data), 7):
        path.write_bytes(data[:length])
        try:
            assert np.array_equal(np.asarray(load_image(path)), whole)
        except ImageError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refusals += 1
    assert refusals >= len(data) // 7 - 3  # PNG can spare its last chunk


def test_a_truncated_jpeg_says_so(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jpg", EXAMPLE.read_bytes()[:20_000])
    with refused(f"{path} cannot be read (image file is truncated"):
        load_image(path)


@pytest.mark.parametrize(("place", "bits"), [(11, 0x0A), (60, 0xFF)])  # header length, a pixel
def test_a_corrupt_png_is_refused(tmp_path: Path, place: int, bits: int) -> None:
    data = bytearray(encoded(Image.fromarray(noise(9, 9)), "PNG"))
    data[place] ^= bits
    with refused("a.png cannot be read ("):
        load_image(written(tmp_path / "a.png", bytes(data)))


NOISE = Image.fromarray(noise(9, 9))
SAMPLES = {
    "jpeg": encoded(NOISE, "JPEG", exif=oriented(6)),
    "png": encoded(NOISE, "PNG"),
    "palette": encoded(NOISE.quantize(8), "PNG", transparency=bytes([0, 9])),
    "webp": encoded(NOISE, "WEBP"),
    "bmp": encoded(NOISE, "BMP"),
    "tiff": encoded(NOISE, "TIFF", exif=oriented(8)),
    "lzw": encoded(NOISE, "TIFF", compression="tiff_lzw"),
}


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(sorted(SAMPLES)),
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_bytes_give_a_picture_or_an_image_error(
    tmp_path_factory: pytest.TempPathFactory, name: str, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(SAMPLES[name])
    for place, value in changes:
        data[place % len(data)] = value
    path = written(tmp_path_factory.getbasetemp() / "damaged", bytes(data))
    try:
        image = load_image(path)
        assert image.mode == "RGB"
        assert decode_image(bytes(data)).tobytes() == image.tobytes()
    except ImageError as error:
        assert "\n" not in str(error)
        with refused(str(error).replace(str(path), "upload", 1)):
            decode_image(bytes(data), name="upload")


def blank_bmp_header(height: int, width: int) -> bytes:
    """The first bytes of a 24-bit BMP of that size, without any pixel."""
    data = bytearray(encoded(Image.new("RGB", (1, 1)), "BMP"))
    data[18:26] = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    return bytes(data)


def test_the_limit_is_100_megapixels_exactly_and_before_decoding(tmp_path: Path) -> None:
    # None of the files holds pixels: at the limit decoding begins, and only then misses them.
    path = tmp_path / "a.bmp"
    with refused(f"{path} has 10000x10001 pixels; expected at most 100 megapixels"):
        load_image(written(path, blank_bmp_header(10_000, 10_001)))
    with refused("cannot be read (image file is truncated"):
        load_image(written(path, blank_bmp_header(10_000, 10_000)))


def test_a_picture_in_memory_has_a_limit_of_its_own_before_decoding() -> None:
    with refused("the upload has 1001x1000 pixels; expected at most 1 megapixels"):
        decode_image(blank_bmp_header(1001, 1000), name="the upload", max_pixels=1_000_000)
    with refused("cannot be read (image file is truncated"):
        decode_image(blank_bmp_header(1000, 1000), max_pixels=1_000_000)
    with refused("the upload is empty; expected an encoded picture"):
        decode_image(b"", name="the upload")


def test_a_decompression_bomb_is_an_image_error(tmp_path: Path) -> None:
    with refused("is too large (Image size (2500000000 pixels) exceeds limit"):
        load_image(written(tmp_path / "a.bmp", blank_bmp_header(50_000, 50_000)))


def test_floating_point_and_wide_integers_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tif", encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"))
    with refused(f"{path} holds floating-point pixels; expected 8 or 16 bits a channel"):
        load_image(path)
    for values in ([[0, 65536]], [[-1, 0]]):
        written(path, encoded(Image.fromarray(np.array(values, np.int32)), "TIFF"))
        with refused(f"{path} holds values from {values[0][0]} to {values[0][1]}; expected 0 to 65535"):
            load_image(path)


# --- preprocess: the numbers


def expected_input(pixels: np.ndarray, resized: tuple[int, int], corner: tuple[int, int]) -> np.ndarray:
    """Classification at 224, in float64, from sizes and a crop corner worked out by hand."""
    image = Image.fromarray(pixels).resize((resized[1], resized[0]), Image.Resampling.BICUBIC)
    top, left = corner
    crop = np.asarray(image)[top : top + 224, left : left + 224].astype(np.float64) / 255
    return ((crop - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)


CASES = [
    # height, width -> after the resize -> top left of the crop
    ((256, 256), (256, 256), (16, 16)),
    ((300, 451), (256, 384), (16, 80)),  # 451 * 256 / 300 = 384.85, cut
    ((451, 300), (384, 256), (80, 16)),
    ((100, 101), (256, 258), (16, 17)),
    ((500, 501), (256, 256), (16, 16)),
    ((256, 257), (256, 257), (16, 16)),  # half of 33 is 16.5: to the even 16
    ((256, 259), (256, 259), (16, 18)),  # half of 35 is 17.5: to the even 18
    ((259, 256), (259, 256), (18, 16)),
    ((1, 1), (256, 256), (16, 16)),
    ((1, 300), (256, 76800), (16, 38288)),
]


@pytest.mark.parametrize(("size", "resized", "corner"), CASES)
def test_classification_numbers(size: tuple[int, int], resized: tuple[int, int], corner: tuple[int, int]) -> None:
    pixels = noise(*size)
    made = preprocess(Image.fromarray(pixels), CLASSIFY)
    assert (made.shape, str(made.dtype), made.flags.c_contiguous) == ((3, 224, 224), "float32", True)
    expected = expected_input(pixels, resized, corner)
    np.testing.assert_allclose(made, expected, rtol=0, atol=2e-6)
    # The check above can fail: it tells apart a wrong mean, swapped channels and a crop one pixel off.
    planted = replace(CLASSIFY, mean=(0.486, 0.456, 0.406))
    assert np.abs(preprocess(Image.fromarray(pixels), planted) - expected).max() > 1e-3
    assert size == (1, 1) or np.abs(made[::-1] - expected).max() > 1e-3
    assert size == (1, 1) or np.abs(made - np.roll(expected, 1, axis=2)).max() > 1e-3


def test_the_ends_of_the_scale() -> None:
    black, white = (preprocess(Image.new("RGB", (3, 3), (v, v, v)), CLASSIFY)[:, 0, 0] for v in (0, 255))
    np.testing.assert_allclose(black, [-2.117904, -2.035714, -1.804444], atol=1e-6)
    np.testing.assert_allclose(white, [2.248908, 2.428571, 2.64], atol=1e-6)


def test_dense_resizes_straight_to_size() -> None:
    pixels = noise(20, 30)
    made = preprocess(Image.fromarray(pixels), Preprocessing((64, 48), None, mean=(0, 0, 0), std=(1, 1, 1)))
    resized = Image.fromarray(pixels).resize((48, 64), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(made, np.asarray(resized).transpose(2, 0, 1) / 255, atol=1e-7)


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((2240, 2240, 3), np.uint8)
    stripes[:, ::2] = 255
    made = preprocess(Image.fromarray(stripes), Preprocessing((224, 224), None, mean=(0, 0, 0), std=(1, 1, 1)))
    assert np.abs(made - 0.5).max() < 0.02  # sampling without a filter would give 0 or 1


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    size=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    task=st.sampled_from(["classify", "dense"]),
    shade=st.integers(0, 255),
)
def test_every_size_and_ratio_gives_a_finite_input(
    height: int, width: int, size: tuple[int, int], task: Any, shade: int
) -> None:
    image = Image.new("RGB", (width, height), (shade, 255 - shade, 7))
    made = preprocess(image, Preprocessing.for_task(task, size))
    assert (made.shape, str(made.dtype)) == ((3, *size), "float32")
    # A picture of one colour stays so: no padding has entered, whatever the ratio.
    plain = (np.array([shade, 255 - shade, 7]) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(made, np.broadcast_to(plain[:, None, None], made.shape), atol=2e-6)


def test_a_picture_too_long_to_resize_is_refused() -> None:
    image = Image.new("RGB", (100_000, 1))
    message = "strip.png, 1x100000, resized has 256x25600000 pixels; expected at most 100 megapixels"
    with refused(message):
        preprocess(image, CLASSIFY, name="strip.png")
    assert preprocess(image, Preprocessing((32, 32), None)).shape == (3, 32, 32)
    sliver = Image.new("RGB", (1500, 1))
    with pytest.raises(ImageTooLarge, match="1x1500, resized has 256x384000 pixels; expected at most 32 mega"):
        preprocess(sliver, CLASSIFY, max_pixels=MAX_UPLOAD_PIXELS)
    assert preprocess(sliver, CLASSIFY).shape == (3, 224, 224)


@pytest.mark.parametrize("image", [Image.new("L", (3, 2)), Image.new("RGBA", (3, 2))])
def test_only_rgb_is_preprocessed(image: Image.Image) -> None:
    with refused(f"the picture is 2x3 pixels of mode {image.mode}; expected at least 1x1 pixels of mode RGB"):
        preprocess(image, CLASSIFY)
    with refused("the picture is 2x0 pixels"):
        preprocess(Image.new("RGB", (0, 2)), CLASSIFY)


# --- batches, folders, digests


def save(path: Path, height: int = 2, width: int = 3, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(height, width, seed)).save(path)
    return path


def test_a_batch_keeps_the_order_given(tmp_path: Path) -> None:
    paths = [save(tmp_path / "b.png", seed=1), save(tmp_path / "a.png", 9, 4, seed=2)]
    batch = load_batch(paths, CLASSIFY)
    assert (batch.shape, str(batch.dtype)) == ((2, 3, 224, 224), "float32")
    for row, path in zip(batch, paths, strict=True):
        assert np.array_equal(row, preprocess(load_image(path), CLASSIFY))
    assert not np.array_equal(batch[0], batch[1])


def test_a_batch_names_the_picture_at_fault(tmp_path: Path) -> None:
    strip = save(tmp_path / "strip.png", 1, 10_000)
    with refused(f"{strip}, 1x10000, resized has"):
        load_batch([save(tmp_path / "a.png"), strip], CLASSIFY)
    with refused("a batch of no pictures; expected at least one"):
        load_batch([], CLASSIFY)


def test_a_folder_is_searched_throughout_and_sorted(tmp_path: Path) -> None:
    names = ["a/2.PNG", "a/10.jpg", "b.JPEG", "b/c/d.Tif", "b/c/e.tiff", "z.webp", "y.bmp"]
    for name in (*names, "notes.txt", "a/png", "b/table.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert image_files(str(tmp_path)) == sorted(tmp_path / name for name in names)


def test_folders_without_pictures(tmp_path: Path) -> None:
    with refused(f"{tmp_path} holds no picture; expected files ending in .jpg, .jpeg, .png"):
        image_files(tmp_path)
    with refused(f"{tmp_path / 'gone'} does not exist; expected a folder of pictures"):
        image_files(tmp_path / "gone")
    with refused("a.png is a file; expected a folder of pictures"):
        image_files(save(tmp_path / "a.png"))


def test_links_are_followed_but_not_round_in_circles(tmp_path: Path) -> None:
    save(tmp_path / "store" / "a.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "cats").symlink_to(tmp_path / "store")
    assert image_files(tmp_path / "set") == [tmp_path / "set" / "cats" / "a.png"]
    (tmp_path / "store" / "loop").symlink_to(tmp_path / "store")
    with refused("are the same folder; expected each folder once"):
        image_files(tmp_path / "set")


def test_a_broken_link_is_listed_and_then_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    with refused("a.png does not exist"):
        load_batch(image_files(tmp_path), CLASSIFY)


def test_the_digest_of_a_set(tmp_path: Path) -> None:
    written(tmp_path / "a.png", b"one")
    (tmp_path / "b").mkdir()
    written(tmp_path / "b" / "c.png", b"two")
    paths = image_files(tmp_path)
    one, two = (hashlib.sha256(data).hexdigest() for data in (b"one", b"two"))
    expected = hashlib.sha256(f"a.png\0{one}\nb/c.png\0{two}\n".encode()).hexdigest()
    assert image_set_digest(tmp_path, paths) == image_set_digest(tmp_path, paths[::-1]) == expected
    assert image_set_digest(tmp_path, paths[:1]) != expected
    paths[0].rename(tmp_path / "d.png")
    assert image_set_digest(tmp_path, image_files(tmp_path)) != expected
    (tmp_path / "d.png").rename(paths[0])
    written(paths[0], b"ONE")
    assert image_set_digest(tmp_path, paths) != expected


def test_a_digest_needs_readable_files_of_the_folder(tmp_path: Path) -> None:
    with refused("does not exist; expected a picture file"):
        image_set_digest(tmp_path, [tmp_path / "gone.png"])
    with refused("lies outside"):
        image_set_digest(tmp_path / "set", [save(tmp_path / "a.png")])
