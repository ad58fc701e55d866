"""Logits to ranked classes, for one image and for many, and the names that served models have."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from sepvit_deploy.classes import ranked, require_labels
from sepvit_deploy.contract import classify_name, preprocess_name, rank_name, require_name
from sepvit_deploy.errors import InputError, OptionError

LOGITS = arrays(
    np.float32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.floats(-(2.0**90), 2.0**90, width=32)
)


@settings(deadline=None)
@given(logits=LOGITS, top=st.integers(1, 12))
def test_each_image_is_ranked_as_if_it_were_alone(logits: np.ndarray, top: int) -> None:
    indices, scores = ranked(logits, top)
    kept = min(top, logits.shape[1])
    assert indices.shape == scores.shape == (len(logits), kept)
    for row, (best, share) in enumerate(zip(indices, scores, strict=True)):
        values = logits[row].astype(np.float64)
        order = sorted(range(len(values)), key=lambda k: (-values[k], k))
        assert best.tolist() == order[:kept]
        exact = np.exp(values - values.max()) / np.exp(values - values.max()).sum()
        np.testing.assert_allclose(share, exact[best], rtol=1e-12)


@pytest.mark.parametrize("shape", [(), (3,), (0, 3), (2, 0), (1, 2, 3)])
def test_logits_of_another_rank_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"^logits of shape .*; expected B x classes$"):
        ranked(np.zeros(shape, np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_none_spoils_the_batch(bad: float) -> None:
    logits = np.zeros((3, 4), np.float32)
    logits[2, 1] = bad
    with pytest.raises(InputError, match=r"^logits that are not finite; "):
        ranked(logits)


def test_labels_are_one_for_each_class() -> None:
    require_labels(None, 3)
    require_labels(["a", "b", "c"], 3)
    with pytest.raises(InputError, match=r"^--labels has 1 labels; expected 3, one for each class$"):
        require_labels(["a"], 3)


@pytest.mark.parametrize("name", ["sepvit_t", "t", "_", "7.1-b", "x" * 100])
def test_names_of_models(name: str) -> None:
    assert require_name(name) == name
    assert {classify_name(name), preprocess_name(name), rank_name(name)} == {
        f"{name}_classify",
        f"{name}_preprocess",
        f"{name}_rank",
    }


@pytest.mark.parametrize("name", ["", ".", "..", "-x", "a/b", "a b", "a\n", "\u00e9", "x" * 101, "a%2fb"])
def test_names_that_could_lead_elsewhere(name: str) -> None:
    with pytest.raises(OptionError, match=f"^{re.escape(f'--name {name!r:.60}; expected ')}"):
        require_name(name)
