"""Which images are taken, their labels, and decoding: the rules and the texts of their refusals."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sepvit_deploy import image_sets
from sepvit_deploy.errors import ImageError, InputError, OptionError, SepvitError
from sepvit_deploy.image_sets import ImageSet, decoded, image_set, labelled
from sepvit_deploy.images import load_image, preprocess
from sepvit_deploy.spec import Preprocessing

PREPROCESSING = Preprocessing((4, 4), None)


def picture(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 5), (value % 256, 7, 9)).save(path)
    return path


def folder_of(folder: Path, count: int) -> Path:
    """A flat folder of ``count`` pictures, 000.png and on."""
    for number in range(count):
        picture(folder / f"{number:03}.png", number)
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 pictures in a folder ``many``."""
    return folder_of(tmp_path_factory.mktemp("sets") / "many", 100)


def refusal(kind: type[SepvitError], function: Callable[..., object], *arguments: object, **options: object) -> str:
    with pytest.raises(kind) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def names(images: ImageSet) -> list[str]:
    return [path.relative_to(images.folder).as_posix() for path in images.files]


# Sampling


@settings(deadline=None)
@given(classes=st.integers(1, 20), each=st.integers(1, 20), data=st.data())
def test_samples_are_spread_evenly_over_the_classes(classes: int, each: int, data: st.DataObject) -> None:
    files = tuple(Path("d", f"{c:03}", f"{k:03}.png") for c in range(classes) for k in range(each))
    count = data.draw(st.integers(1, len(files)))
    everything = ImageSet("d", Path("d"), files, labels=tuple(int(file.parent.name) for file in files))
    chosen = image_sets._sampled(everything, count)
    assert len(set(chosen.files)) == count and list(chosen.files) == sorted(chosen.files)
    assert chosen.labels == tuple(int(file.parent.name) for file in chosen.files)
    share = np.bincount(chosen.labels or (), minlength=classes)
    assert share.max() - share.min() <= 1


def test_a_folder_is_sampled_by_the_sorted_names(many: Path) -> None:
    found = image_set(many, samples=80)
    assert found.name == "many" and found.folder == many and found.labels is None
    assert names(found) == [f"{i * 100 // 80:03}.png" for i in range(80)]
    assert found.sha256 == image_set(many, samples=80).sha256 != image_set(many, samples=81).sha256


def test_fewer_than_asked_but_enough_are_all_used_with_a_warning(many: Path) -> None:
    said: list[str] = []
    assert len(image_set(many, warn=said.append).files) == 100
    assert said == ["many holds 100 of the 512 images asked for: all are used"]


def test_too_few_are_accepted_only_by_their_number(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "few", 3)
    message = "few holds 3 images; expected 512, or at least 80; --samples 3 accepts so few"
    assert refusal(ImageError, image_set, folder) == message
    assert "few holds 3 images; expected 4, or at least 80" in refusal(ImageError, image_set, folder, samples=4)
    said: list[str] = []
    assert len(image_set(folder, samples=3, warn=said.append).files) == 3
    assert said == ["3 images: ranges from fewer than 80 may clip what other images need"]


def test_one_image_is_one_image(tmp_path: Path) -> None:
    assert refusal(ImageError, image_set, folder_of(tmp_path / "one", 1)).startswith("one holds 1 image; expected 512")


@pytest.mark.parametrize("samples", [0, -5])
@pytest.mark.parametrize("function", [image_set, labelled])
def test_samples_below_one_are_refused(many: Path, function: Callable[..., object], samples: int) -> None:
    assert refusal(OptionError, function, many, samples=samples) == f"--samples {samples}; expected 1 or more"


def test_a_source_without_pictures_is_refused(tmp_path: Path) -> None:
    assert "holds no picture" in refusal(ImageError, image_set, tmp_path)
    missing = refusal(ImageError, image_set, tmp_path / "none")
    assert missing == f"{tmp_path / 'none'} does not exist; expected a folder of pictures, or a .toml manifest of one"
    assert "is no folder; expected a folder of pictures, or a .toml" in refusal(
        ImageError, image_set, picture(tmp_path / "a.png")
    )
    os.mkfifo(tmp_path / "pipe.toml")
    assert "is no folder" in refusal(ImageError, image_set, tmp_path / "pipe.toml")


def test_the_digest_leaves_out_what_cannot_be_opened(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "d", 3)
    before = image_set(folder, samples=3).sha256
    (folder / "empty.png").touch()
    os.mkfifo(folder / "pipe.png")
    assert image_set(folder, samples=5).sha256 == before
    picture(folder / "001.png", 99)
    assert image_set(folder, samples=5).sha256 != before


# Manifests


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[..., Path]:
    """Writes ``calib/val.toml`` for the folder ``data``, which holds 4 pictures."""
    folder_of(tmp_path / "data", 4)
    (tmp_path / "calib").mkdir()

    def write(**keys: object) -> Path:
        values = {"folder": "../data", "samples": 2} | keys
        path = tmp_path / "calib" / "val.toml"
        path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items() if value is not None))
        return path

    return write


def test_a_manifest_names_its_folder_and_number(manifest: Callable[..., Path]) -> None:
    found = image_set(manifest(note="n", licence="CC0"))
    assert found.name == "val" and names(found) == ["000.png", "002.png"]
    assert image_set(manifest(name="digits")).name == "digits"
    assert len(image_set(manifest(), samples=3).files) == 3
    assert names(labelled(manifest())) == ["000.png", "002.png"]


def test_a_manifest_with_the_digest_of_its_images_accepts_them(manifest: Callable[..., Path]) -> None:
    digest = image_set(manifest()).sha256
    path = manifest(sha256=digest)
    assert image_set(path).sha256 == digest
    assert len(image_set(path, samples=4).files) == 4, "checked by its own choice, whatever number is used"


def test_changed_images_are_refused(manifest: Callable[..., Path], tmp_path: Path) -> None:
    path = manifest(sha256=image_set(manifest()).sha256)
    picture(tmp_path / "data" / "002.png", 77)
    message = refusal(ImageError, image_set, path, samples=1)
    assert f"the images of {path} have changed: SHA-256 " in message and "write a new manifest" in message
    path = manifest(sha256="0" * 64, make="python make.py")
    assert "make them again: python make.py" in refusal(ImageError, labelled, path)


def test_a_missing_folder_shows_the_command_that_makes_it(manifest: Callable[..., Path]) -> None:
    message = refusal(ImageError, image_set, manifest(folder="../digits", make="python benchmarks/digits.py data"))
    assert "digits, the folder of " in message and message.endswith("type: python benchmarks/digits.py data")
    assert "correct folder in" in refusal(ImageError, image_set, manifest(folder="../digits"))


@pytest.mark.parametrize(
    "keys, words",
    [
        (
            {"sample": 3},
            "has the unknown key sample; expected keys of folder, samples, sha256, make, name, note, licence",
        ),
        (
            {"license": "CC0"},
            "unknown key license; expected keys of folder, samples, sha256, make, name, note, licence; ",
        ),
        ({"license": "CC0"}, "did you mean licence?"),
        ({"zzz": 3}, "has the unknown key zzz"),
        ({"folder": None}, "lacks the key folder; expected folder and samples, at the least"),
        ({"samples": None}, "lacks the key samples"),
        ({"samples": 0}, "is 0; expected an integer of at least 1"),
        ({"samples": True}, "is True"),
        ({"samples": "512"}, "is '512'"),
        ({"folder": 3}, "folder in "),
        ({"folder": ""}, "is ''; expected a text"),
        ({"folder": "a\0b"}, "expected a text"),
        ({"make": ["python"]}, "make in "),
        ({"sha256": "abc"}, "is 'abc'; expected 64 hexadecimal digits"),
    ],
)
def test_an_unusable_manifest_is_refused(manifest: Callable[..., Path], keys: dict[str, object], words: str) -> None:
    path = manifest(**keys)
    message = refusal(InputError, image_set, path)
    assert words in message and str(path) in message


@pytest.mark.parametrize("content", [b"folder = ", b"\xff", b"a = " + b"[" * 100_000])
def test_what_is_no_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.toml"
    path.write_bytes(content)
    assert f"{path} cannot be read (" in refusal(InputError, image_set, path)


# Labels


def test_class_folders_are_labels_by_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b/1.png", "b/0.png", "a/9.png", "B/5.png"):
        picture(tmp_path / name)
    (tmp_path / ".cache").mkdir()
    found = labelled(tmp_path)
    assert dict(zip(names(found), found.labels or (), strict=True)) == {
        "B/5.png": 0,
        "a/9.png": 1,
        "b/0.png": 2,
        "b/1.png": 2,
    }
    assert labelled(tmp_path, samples=2).labels == (0, 2)
    (tmp_path / "aa").mkdir()
    assert f"the class folder {tmp_path / 'aa'} holds no picture" in refusal(ImageError, labelled, tmp_path)


@pytest.mark.parametrize("files", [["1.png"], ["a/1.png", "b/1.png", "2.png"], ["a/b/1.png", "c/d/1.png"], ["a/1.png"]])
def test_other_folders_have_no_labels(tmp_path: Path, files: list[str]) -> None:
    for name in files:
        picture(tmp_path / name)
    assert labelled(tmp_path).labels is None


@pytest.mark.parametrize(
    "file, text",
    [
        ("l.txt", "000.png 3\n\n001.png\t0\nx/a b.png 65\n"),
        ("l.csv", "\ufeff001.png,0\r\nx/a b.png , 65\r\n000.png,3"),
        ("l.json", '{"000.png": 3, "001.png": 0, "x/a b.png": 65}'),
    ],
)
def test_labels_from_a_file(tmp_path: Path, file: str, text: str) -> None:
    folder = folder_of(tmp_path / "d", 2)
    picture(folder / "x" / "a b.png")
    (tmp_path / file).write_text(text, encoding="utf-8")
    assert labelled(folder, tmp_path / file).labels == (3, 0, 65)


@pytest.mark.parametrize(
    "file, text, words",
    [
        ("l.txt", "000.png 1\n", "has no label for 001.png; expected the 2 pictures under"),
        ("l.txt", "", "has no label for 000.png and 1 more"),
        ("l.txt", "000.png 1\n001.png 2\n8.png 1\n9.png 1\n", "names pictures that are not there: 8.png and 1 more"),
        ("l.txt", "000.png 1\n000.png 2\n001.png 1", "gives 000.png the labels 1 and 2; expected one"),
        ("l.txt", "path,label\n000.png,1\n", "holds no labels (line 1 is 'path,label'); expected lines of PATH LABEL"),
        ("l.txt", "3\n4\n", "holds no labels (line 1 is '3')"),
        ("l.txt", "000.png -1\n", "holds no labels (line 1 is '000.png -1')"),
        ("l.txt", "000.png 1000000\n", "gives 000.png the label 1000000; expected 0 to 999999"),
        ("l.json", '{"000.png": "1"}', "gives 000.png the label '1'; expected 0 to 999999"),
        ("l.json", '{"000.png": true}', "gives 000.png the label True"),
        ("l.json", '{"000.png": 1, "000.png": 2}', "gives 000.png the labels 1 and 2"),
        ("l.json", "[1, 2]", "holds no labels (it is no JSON object)"),
        ("l.json", "{", "holds no labels ("),
        ("l.json", '{"a": ' + "[" * 100_000, "holds no labels ("),
    ],
)
def test_an_unusable_label_file_is_refused(tmp_path: Path, file: str, text: str, words: str) -> None:
    folder = folder_of(tmp_path / "d", 2)
    (tmp_path / file).write_text(text)
    message = refusal(InputError, labelled, folder, tmp_path / file)
    assert message.startswith(str(tmp_path / file)) and words in message


def test_a_label_file_that_is_none_is_refused(tmp_path: Path, many: Path) -> None:
    assert "holds no labels" in refusal(InputError, labelled, many, tmp_path / "none.txt")
    os.mkfifo(tmp_path / "pipe")
    assert "holds no labels (it is no regular file)" in refusal(InputError, labelled, many, tmp_path / "pipe")


def test_evaluation_takes_any_number_but_not_fewer_than_asked(many: Path) -> None:
    assert len(labelled(many).files) == 100
    assert len(labelled(many, samples=2).files) == 2
    assert refusal(ImageError, labelled, many, samples=101) == "many holds 100 images; expected 101"


# Decoding


@pytest.mark.parametrize("workers", [1, 3, None])
def test_images_come_in_order_whichever_is_decoded_first(
    many: Path, monkeypatch: pytest.MonkeyPatch, workers: int | None
) -> None:
    def slow(path: Path) -> Image.Image:
        threading.Event().wait(0.004 if int(path.stem) % 3 == 0 else 0)
        return load_image(path)

    monkeypatch.setattr(image_sets, "load_image", slow)
    images = image_set(many, samples=40)
    found = list(decoded(images, PREPROCESSING, workers=workers))
    assert [index for index, _ in found] == list(range(40))
    for index, values in found:
        assert (values == preprocess(load_image(images.files[index]), PREPROCESSING)).all()


def test_only_a_few_are_decoded_ahead_and_none_after_the_end(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Path] = []

    def counted(path: Path) -> Image.Image:
        started.append(path)
        return load_image(path)

    monkeypatch.setattr(image_sets, "load_image", counted)
    before = threading.active_count()
    stream = decoded(image_set(many), PREPROCESSING, workers=2)
    for taken in range(1, 11):
        next(stream)
        assert len(started) <= taken + 4
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert len(started) <= 14


def test_unreadable_images_are_named_and_passed_over(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "d", 5)
    (folder / "001.png").write_bytes(b"no picture")
    (folder / "003.png").write_bytes(b"")
    skipped: list[tuple[Path, str]] = []
    stream = decoded(
        image_set(folder, samples=5),
        PREPROCESSING,
        max_unreadable=2,
        skipped=lambda path, why: skipped.append((path, why)),
    )
    assert [index for index, _ in stream] == [0, 2, 4]
    assert [path.name for path, _ in skipped] == ["001.png", "003.png"]
    assert "is not a picture" in skipped[0][1] and "is empty" in skipped[1][1]


@pytest.mark.parametrize("limit", [0, 3])
def test_too_many_unreadable_images_are_an_error(tmp_path: Path, limit: int) -> None:
    folder = folder_of(tmp_path / "d", 8)
    for number in range(2, 7):
        (folder / f"{number:03}.png").write_bytes(b"")
    stream = decoded(image_set(folder, samples=8), PREPROCESSING, max_unreadable=limit)
    message = refusal(ImageError, list, stream)
    assert message.startswith(f"d has {limit + 1} unreadable image")
    assert f"{folder / '002.png'} is empty" in message
    assert message.endswith(f"expected at most {limit}; repair or remove them, or raise --max-unreadable")


def test_no_workers_are_refused(many: Path) -> None:
    assert refusal(OptionError, decoded, image_set(many), PREPROCESSING, workers=0) == "--workers 0; expected 1 or more"


def test_a_mistake_of_the_program_is_not_an_unreadable_image(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> Image.Image:
        raise ZeroDivisionError

    monkeypatch.setattr(image_sets, "load_image", broken)
    with pytest.raises(ZeroDivisionError):
        list(decoded(image_set(many), PREPROCESSING))
