"""SmoothQuant at norm2 -> fc1: the same function, with the outliers moved into the weights."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from sepvit_deploy.errors import GraphError, ImageError, OptionError
from sepvit_deploy.placement import observed
from sepvit_deploy.precision import int8_from_fp32
from sepvit_deploy.runners.onnxruntime import OnnxRuntimeRunner
from sepvit_deploy.smooth import channel_maxima, pairs, smooth
from tests.unit.graphs import BLOCK, DIGEST, MLP, MLP_WEIGHTS, graph, mlp, run, sqnr_db, table

X = np.random.default_rng(1).standard_normal((8, 5, 6), dtype=np.float32)
IMAGES = np.random.default_rng(2).standard_normal((5, 3, 5, 6), dtype=np.float32)
ALPHAS = st.sampled_from([0.0, 0.3, 0.5, 1.0])


def weight(model: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def with_outliers(seed: int = 0) -> onnx.ModelProto:
    """Norm2 makes one channel 100 times as large as the others."""
    model = graph(MLP, MLP_WEIGHTS, seed=seed)
    gain = weight(model, "gain").copy()
    gain[2] = 100
    next(t for t in model.graph.initializer if t.name == "gain").CopyFrom(numpy_helper.from_array(gain, "gain"))
    return model


def maxima(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {"n": np.abs(run(model, X, "n")[0]).max(axis=(0, 1))}


def in_float64(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """fc1 of norm2, in float64 arithmetic on the graph's numbers."""
    gain, shift, w1 = (weight(model, name).astype(np.float64) for name in ("gain", "shift", "w1"))
    x = x.astype(np.float64)
    centred = x - x.mean(axis=-1, keepdims=True)
    return (centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6) * gain + shift) @ w1


def test_only_norm2_in_front_of_fc1_is_smoothed() -> None:
    (pair,) = pairs(mlp())
    assert (pair.gain, pair.shift, pair.site.weight, pair.site.activation) == ("gain", "shift", "w1", "n")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), ALPHAS)
def test_the_function_stays(seed: int, alpha: float) -> None:
    model = with_outliers(seed)
    smoothed = smooth(model, maxima(model), alpha=alpha)
    expected, found = in_float64(model, X), in_float64(smoothed, X)
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()  # the float32 rounding of three weights
    (before,), (after,) = run(model, X), run(smoothed, X)
    assert np.abs(after - before).max() < 2e-6 * np.abs(before).max()
    assert [node.SerializeToString() for node in smoothed.graph.node] == [
        node.SerializeToString() for node in model.graph.node
    ]


def test_the_difficulty_is_shared_as_alpha_says() -> None:
    model = with_outliers()
    x, w = maxima(model)["n"], np.abs(weight(model, "w1")).max(axis=1)
    for alpha in (0.0, 0.5, 1.0):
        smoothed = smooth(model, {"n": x}, alpha=alpha)
        np.testing.assert_allclose(maxima(smoothed)["n"], x ** (1 - alpha) * w ** (1 - alpha), rtol=1e-5)
        np.testing.assert_allclose(np.abs(weight(smoothed, "w1")).max(axis=1), (x * w) ** alpha, rtol=1e-5)


def test_smoothing_helps_where_a_channel_stands_out() -> None:
    model = with_outliers()
    smoothed = smooth(model, maxima(model))
    quality = []
    for candidate in (model, smoothed):
        ranges = table(candidate, X, observed(candidate))
        result = int8_from_fp32(candidate, ranges, graph_sha256=DIGEST, rest="fp32", keep=["*.fc2"])
        quality.append(sqnr_db(run(model, X, "h0")[0], run(result.model, X, "h0")[0]))
    assert quality[1] > quality[0] + 3


def test_a_channel_without_numbers_stays() -> None:
    model = mlp()
    zero = np.array([0, 1, 1, 1, 1, 1], np.float32)
    smoothed = smooth(model, {"n": zero})
    assert weight(smoothed, "gain")[0] == weight(model, "gain")[0]
    assert np.isfinite(weight(smoothed, "w1")).all()


def test_maxima_are_of_every_batch_and_channel() -> None:
    body = f"p = Transpose<perm = [0, 2, 3, 1]>(images) {MLP.replace('(x, ', '(p, ')}"
    model = graph(body, MLP_WEIGHTS | {"gain": (3,), "shift": (3,), "w1": (3, 12), "w2": (12, 3), "b2": (3,)},
                  x="float[B,3,5,6] images", y="float[B,5,6,3] y")  # fmt: skip
    whole = OnnxRuntimeRunner(model).run(IMAGES)
    assert whole.keys() == {"y"}
    found = channel_maxima(model, [IMAGES[:2], IMAGES[2:]])
    np.testing.assert_allclose(found["n"], np.abs(run(model, IMAGES, "n")[0]).max(axis=(0, 1, 2)), rtol=1e-6)
    with pytest.raises(ImageError, match="no images"):
        channel_maxima(model, [])
    with pytest.raises(GraphError, match="n has numbers that are not finite"):
        channel_maxima(model, [np.full_like(IMAGES, np.nan)])


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_alpha_is_a_share(alpha: float) -> None:
    with pytest.raises(OptionError, match=rf"--smooth {alpha}; expected 0 to 1"):
        smooth(mlp(), maxima(mlp()), alpha=alpha)


def test_a_norm_that_something_else_reads_is_refused() -> None:
    body = MLP.replace("y = Add(x, o1)", "z = Add(n, o1) y = Add(x, z)")
    with pytest.raises(GraphError, match=rf"n is read by {BLOCK}\.mlp\.fc1/MatMul, .*; expected one reader"):
        pairs(graph(body, MLP_WEIGHTS))


def test_a_graph_without_the_pair_is_refused() -> None:
    body = f'["{BLOCK}.mlp.fc1/MatMul"] y = MatMul(x, w)'
    with pytest.raises(GraphError, match=r"no LayerNorm in front of an mlp\.fc1"):
        pairs(graph(body, {"w": (6, 6)}))


def test_maxima_of_another_graph_are_refused() -> None:
    with pytest.raises(GraphError, match="the channel maxima do not fit the graph at n"):
        smooth(mlp(), {})
    with pytest.raises(GraphError, match=r"n has maxima of \(3,\); expected \(6,\)"):
        smooth(mlp(), {"n": np.ones(3, np.float32)})
