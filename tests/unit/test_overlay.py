"""Pictures under the colours of their masks: what is blended, and what the legend says and how large."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sepvit_deploy.errors import ImageError, InputError, OptionError, OutputError
from sepvit_deploy.masks import palette, read_mask
from sepvit_deploy.overlay import LEAST_SIDE, OPACITY, Part, overlay, parts, percent
from sepvit_deploy.predict import Segmentation, segment
from sepvit_deploy.spec import Preprocessing

PANEL = (250, 250, 250)


def test_what_is_in_a_mask_the_largest_first() -> None:
    mask = np.array([[3, 3, 3, 1], [7, 1, 1, 3]], np.uint8)
    assert parts(mask, None) == (Part(3, "class 3", 0.5), Part(1, "class 1", 0.375), Part(7, "class 7", 0.125))
    assert parts(mask, list("abcdefgh"))[2] == Part(7, "h", 0.125)
    assert [part.number for part in parts(np.array([[5, 2, 9, 0]], np.uint16), None)] == [0, 2, 5, 9]


def drawn(size: tuple[int, int], classes: int, names: list[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A grey picture of (height, width) with ``classes`` stripes: what `overlay` makes of it, and the mask."""
    mask = (np.arange(size[0] * size[1]) * classes // (size[0] * size[1])).reshape(size).astype(np.uint8)
    image = Image.new("RGB", size[::-1], (100, 100, 100))
    return np.asarray(overlay(image, mask, parts(mask, names), palette(classes))), mask


@settings(deadline=None, max_examples=25)
@given(height=st.integers(1, 90), width=st.integers(1, 90), classes=st.integers(1, 30))
def test_every_pixel_is_blended_and_small_pictures_are_enlarged(height: int, width: int, classes: int) -> None:
    canvas, mask = drawn((height, width), classes)
    factor = max(1, LEAST_SIDE // max(height, width))
    shown = canvas[: height * factor, : width * factor].astype(int)
    expected = (1 - OPACITY) * 100 + OPACITY * np.array(palette(classes))[mask]
    assert np.abs(shown - expected.repeat(factor, axis=0).repeat(factor, axis=1)).max() <= 1
    rest = canvas[:, width * factor :] if width <= 2 * height else canvas[height * factor :]
    for k in np.unique(mask)[:3]:  # a patch of each class, in its own colour
        assert (rest == palette(classes)[k]).all(axis=2).sum() >= 60
    assert (canvas[-1, -1] == PANEL).all()


@pytest.mark.parametrize("size", [(32, 32), (480, 640), (120, 400), (660, 400)], ids=str)
@pytest.mark.parametrize("classes", [1, 21, 60])
def test_the_legend_lists_twenty_classes_and_counts_the_rest(size: tuple[int, int], classes: int) -> None:
    canvas, _ = drawn(size, classes)
    factor = max(1, LEAST_SIDE // max(size))
    wide = size[1] > 2 * size[0]
    rest = canvas[size[0] * factor :] if wide else canvas[:, size[1] * factor :]
    listed = [colour for colour in palette(classes) if (rest == colour).all(axis=2).sum() >= 60]
    assert len(listed) == min(classes, 21 if classes == 21 else 20)
    dark = (rest.max(axis=2) < 80).any(axis=1)  # rows of letters
    assert dark.any()
    if not wide:  # it fits beside all but the smallest pictures
        assert canvas.shape[0] <= max(size[0] * factor, 480)


def test_letters_grow_with_the_picture() -> None:
    heights = []
    for side in (32, 660, 1980):
        canvas, _ = drawn((side, side), 1, ["H"])
        shown = max(side, LEAST_SIDE)
        heights.append(int((canvas[:, shown:].max(axis=2) < 80).any(axis=1).sum()))
    assert heights[0] >= 8
    assert heights[1] > heights[0]
    assert heights[2] >= 2.5 * heights[1]


@pytest.mark.parametrize("name", ["", "a" * 10**6, "two\nlines\x1b[31m", "\ud800", "road, route", "天空", "é"])
def test_any_name_can_be_drawn(name: str) -> None:
    canvas, _ = drawn((64, 64), 1, [name])
    assert canvas.shape[1] < 900


@pytest.mark.parametrize(
    ("share", "text"), [(1, "100.0 %"), (0.1234, "12.3 %"), (0.0005, "0.1 %"), (0.0001, "< 0.1 %")]
)
def test_shares(share: float, text: str) -> None:
    assert percent(share) == text


class Fake:
    name = "m.onnx"
    input_shape = (None, 3, 8, 12)

    def __init__(self, output: str = "mask", value: float = 1) -> None:
        self._output, self._value = output, value

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        assert images.shape == (1, 3, 8, 12)
        if self._output == "mask":
            mask = np.full((1, 8, 12), self._value, np.uint8)
            mask[:, :4] = 0
            return {"mask": mask}
        return {self._output: np.full((1, 3, 2, 3), self._value, np.float32)}


PREPROCESSING = Preprocessing((8, 12), None, "bilinear")


def picture(path: Path, size: tuple[int, int] = (20, 10)) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", size, (9, 90, 200)).save(path)
    return path


def run(images: list[Path], folder: Path, runner: Fake | None = None, **options: Any) -> list[Segmentation]:
    return segment(runner or Fake(), PREPROCESSING, images, classes=3, folder=folder, **options)


def test_files_for_each_picture(tmp_path: Path) -> None:
    images = [picture(tmp_path / "in" / "a.jpg"), picture(tmp_path / "in" / "b.c.png", (7, 30))]
    out = tmp_path / "out"
    out.mkdir()
    found = run(images, out, masks=True, names=["x", "y", "z"], colours=[(1, 2, 3), (4, 5, 6), (7, 8, 9)])
    assert [Path(each.overlay).name for each in found] == ["a.overlay.png", "b.c.overlay.png"]
    assert [each.size for each in found] == [(10, 20), (30, 7)]
    assert found[0].parts == (Part(0, "x", 0.5), Part(1, "y", 0.5))
    assert sorted(path.name for path in out.iterdir()) == [
        "a.mask.png", "a.overlay.png", "b.c.mask.png", "b.c.overlay.png",
    ]  # fmt: skip
    mask = read_mask(out / "a.mask.png")
    assert mask.shape == (10, 20)
    assert (mask[:5] == 0).all()
    assert (mask[5:] == 1).all()
    with Image.open(out / "a.mask.png") as plain:
        assert plain.convert("RGB").getpixel((0, 9)) == (4, 5, 6)
    without = run(images[:1], out)[0]
    assert without.mask is None
    assert without.parts[0].name == "class 0"


@pytest.mark.parametrize(
    ("pictures", "options", "message"),
    [
        (["in/a.jpg", "in/a.png"], {}, "{out}/a.overlay.png, made of {in}/a.png, would overwrite that of {in}/a.jpg"),
        (["in/a.jpg", "in/a.jpg"], {}, "{out}/a.overlay.png, made of {in}/a.jpg, would overwrite that of {in}/a.jpg"),
        (["in/a.jpg", "out/a.overlay.png"], {}, "{out}/a.overlay.png, made of {in}/a.jpg, would overwrite {out}/a.ov"),
        (
            ["in/a.jpg", "out/a.mask.png"],
            {"masks": True},
            "{out}/a.mask.png, made of {in}/a.jpg, would overwrite {out}/a.mask.png; expected a place for each",
        ),
    ],
    ids=["one name", "twice", "an input", "an input by a mask"],
)
def test_nothing_is_overwritten(tmp_path: Path, pictures: list[str], options: dict[str, Any], message: str) -> None:
    (tmp_path / "out").mkdir()
    paths = [picture(tmp_path / name) for name in pictures]
    before = {path: path.read_bytes() for path in paths}
    text = message.replace("{in}", str(tmp_path / "in")).replace("{out}", str(tmp_path / "out"))
    with pytest.raises(OptionError, match=f"^{re.escape(text)}"):
        run(paths, tmp_path / "out", **options)
    assert {path: path.read_bytes() for path in paths} == before
    assert set((tmp_path / "out").iterdir()) <= set(paths)


def test_a_file_that_is_to_be_kept(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.jpg")
    model = tmp_path / "a.overlay.png"
    model.touch()
    with pytest.raises(OptionError, match=r"would overwrite .*a\.overlay\.png; expected a place"):
        run([path], tmp_path, keep=(model,))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.jpg")
    with pytest.raises(OutputError, match=r"the folder .*/no does not exist; type: mkdir -p"):
        run([path], tmp_path / "no")
    with pytest.raises(OutputError, match=r"cannot be written \(Not a directory\)"):
        run([path], path)


@pytest.mark.parametrize("name", ["b.overlay.png", "a.mask.png"])
def test_every_place_is_tried_before_a_picture_is_segmented(tmp_path: Path, name: str) -> None:
    images = [picture(tmp_path / "in" / "a.jpg"), picture(tmp_path / "in" / "b.jpg")]
    (tmp_path / name).mkdir()
    runner = Fake()
    runner.input_shape = ()  # which the first run would need
    with pytest.raises(OutputError, match=rf"{name} is a folder; expected a file to write; name a file in it$"):
        run(images, tmp_path, runner, masks=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "in"])


@pytest.mark.parametrize(
    ("runner", "message"),
    [
        (Fake(value=3), r"^m\.onnx gave for .*a\.jpg the class 3; expected 0 to 2$"),
        (Fake("logits", np.nan), r"^m\.onnx gave for .*a\.jpg logits that are not finite; check the file first$"),
        (Fake("stride4"), r"^m\.onnx gave for .*a\.jpg outputs stride4; expected logits or mask"),
    ],
    ids=["class", "not finite", "no mask"],
)
def test_outputs_that_are_no_masks(tmp_path: Path, runner: Fake, message: str) -> None:
    path = picture(tmp_path / "a.jpg")
    with pytest.raises(InputError, match=message):
        run([path], tmp_path, runner)
    assert [each.name for each in tmp_path.iterdir()] == ["a.jpg"]


def test_a_picture_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_text("text")
    with pytest.raises(ImageError, match=r"a\.jpg is not a picture"):
        run([path], tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["a.jpg"]
