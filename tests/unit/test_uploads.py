"""The contract of /v1/classify and /v1/segment: what may be sent, how many classes, and the form of an answer."""

from __future__ import annotations

import numpy as np
import pytest

from sepvit_deploy.classes import TOP, ranked
from sepvit_deploy.errors import ImageError, ImageTooLarge, InputError
from sepvit_deploy.images import decode_image
from sepvit_deploy.uploads import JSON, PNG, is_plain, is_taken, mask_type, media_type, parse_top, refusal_status, rows


def test_types_and_encodings() -> None:
    assert media_type(" Image/PNG ; charset=x") == "image/png"
    assert media_type(None) == ""
    assert all(map(is_taken, ("", "image/png", "application/octet-stream", "application/x-www-form-urlencoded")))
    assert not any(map(is_taken, ("application/json", "text/html", "multipart/form-data", "imagery/png")))
    assert all(map(is_plain, (None, "", " Identity ")))
    assert not any(map(is_plain, ("gzip", "deflate", "br", "identity, gzip")))


def test_top() -> None:
    assert [parse_top(text) for text in (None, "1", "007", "1000")] == [TOP, 1, 7, 1000]


@pytest.mark.parametrize("text", ["", "0", "1001", "-1", "+1", "1.0", "\u0663", "9" * 5000, "00001"])
def test_what_is_no_number_of_classes(text: str) -> None:
    with pytest.raises(InputError, match=r"^top is .*; expected 1 to 1000$"):
        parse_top(text)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, PNG),
        ("", PNG),
        ("*/*", PNG),
        ("Image/PNG", PNG),
        ("image/*;q=0.5, text/html", PNG),
        ("application/json", JSON),
        ("application/*", JSON),
        ("text/html, application/json;q=0.9, */*;q=0.8", JSON),
        ("image/png;q=0, */*", JSON),
        ("image/png;q=high, application/json", JSON),
        ("application/json;q=1.5, image/png;q=0.1", PNG),
    ],
    ids=str,
)
def test_the_type_of_a_mask_is_what_the_client_wants_more(accept: str | None, kind: str) -> None:
    assert mask_type(accept) == kind


@pytest.mark.parametrize("accept", ["text/html", "image/jpeg, text/*", "*/*;q=0", "image/png;q=0"])
def test_a_type_that_no_mask_has(accept: str) -> None:
    with pytest.raises(InputError, match=r"expected image/png or application/json"):
        mask_type(accept)


def test_a_picture_that_is_too_large_has_a_status_of_its_own() -> None:
    assert (refusal_status(ImageTooLarge("x")), refusal_status(ImageError("x"))) == (413, 400)
    with pytest.raises(ImageError) as caught:
        decode_image(b"no picture")
    assert refusal_status(caught.value) == 400


def test_rows() -> None:
    best = ranked(np.log(np.array([[0.25, 0.75]])))
    assert rows(*best, ["a", "b"]) == [
        {"class": 1, "label": "b", "score": pytest.approx(0.75)},
        {"class": 0, "label": "a", "score": pytest.approx(0.25)},
    ]
    assert [row["label"] for row in rows(*best, None)] == [None, None]
