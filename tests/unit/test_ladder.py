"""The ladder of a model's forms: which rung is out, in which block, and whose fault it is."""

from __future__ import annotations

import json
import math
import re
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sepvit_deploy.accuracy import Flip
from sepvit_deploy.errors import InputError, OptionError, ParityFailed
from sepvit_deploy.ladder import MOST_FLIPS, Climb, NoiseFloor, Rung, climb, noise_floor
from sepvit_deploy.likeness import FP16, FP32, INT8, OF_ENGINE, OF_PRECISION, Tolerance, Worst

SIZE = (4, 4)
CLASSES = 5
BLOCKS = ("stage0.block0.dwa", "stage0.block0.mlp", "stage1.block0.mlp")
LOOSE = Tolerance(relative=math.inf, sqnr_db=-math.inf, top1_agreement=0.0)


class Fake:
    """Blocks that each add something to the pixels, and logits of the last; a fault is added to one of them."""

    def __init__(
        self, name: str, fault: float = 0.0, at: str = "logits", *, taps: tuple[str, ...] = BLOCKS, batch: Any = None
    ) -> None:
        self.name, self.input_shape = name, (batch, 3, *SIZE)
        self._fault, self._at, self._taps, self._batch = fault, at, taps, batch
        self.seen: list[int] = []

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        assert self._batch in (None, len(images))
        self.seen.append(len(images))
        found, value = {}, images.reshape(len(images), -1)
        for block in (*BLOCKS, "logits"):
            value = value + np.float32(0.3 * (1 + self._fault * (block == self._at))) * np.sin(value)
            if block in (*self._taps, "logits"):
                found[block] = value[:, :CLASSES].astype(np.float32)
        return found


class Fixed:
    """Gives prepared outputs, one dictionary for each batch."""

    input_shape = (None, 3, *SIZE)

    def __init__(self, name: str, *batches: dict[str, Any]) -> None:
        self.name = name
        self._batches = iter(batches)

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        return {name: np.asarray(value, np.float32) for name, value in next(self._batches).items()}


def images(*sizes: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((size, 3, *SIZE), dtype=np.float32) for size in sizes]


def ladder(kind: str = "int8", /, **faults: Any) -> list[Rung]:
    """The five rungs; a fault is the size of an error, or its size and its block."""
    tolerances = {"precision": OF_PRECISION[kind], "engine": OF_ENGINE[kind]}
    rungs = []
    for name in ("torch", "rewritten", "onnx", "precision", "engine"):
        fault = faults.get(name, 0.0)
        runner = Fake(f"{name}.file", *(fault if isinstance(fault, tuple) else (fault,)))
        rungs.append(Rung(name, runner, tolerances.get(name, FP32), "runtime" if name == "engine" else "model"))
    return rungs


def climbed(rungs: list[Rung], *sizes: int, **options: Any) -> Climb:
    return climb(rungs, images(*(sizes or (1, 2, 3))), **({"source": "random", "outputs": ("logits",)} | options))


def fixed(want: Any, have: Any, tolerance: Tolerance = FP32, what: Any = "model", **options: Any) -> Climb:
    """Two rungs with prepared logits, one batch."""
    rungs = [Rung("torch", Fixed("paper", want), FP32), Rung("onnx", Fixed("m.onnx", have), tolerance, what)]
    return climbed(rungs, len(np.asarray(next(iter(want.values())))), **options)


def failed(found: Climb, text: str) -> None:
    assert not found.passed
    with pytest.raises(ParityFailed, match=f"^{re.escape(text)}") as caught:
        found.require_passed()
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


# The verdict


def test_equal_rungs_agree() -> None:
    found = climbed(ladder())
    assert (found.verdict, found.passed, found.failed, found.images) == ("agrees", True, None, 6)
    assert [step.rung for step in found.steps] == ["rewritten", "onnx", "precision", "engine"]
    assert [step.first.against for step in found.steps] == ["torch"] * 4
    assert [step.before.against for step in found.steps] == ["torch", "rewritten", "onnx", "precision"]
    assert all(step.first.sqnr_db == math.inf and step.first.top1_agreement == 1 for step in found.steps)
    assert all([t.name for t in step.first.tensors] == [*BLOCKS, "logits"] for step in found.steps)
    found.require_passed()


def test_batches_of_several_sizes_are_one_climb() -> None:
    """As of a file of any size: logits of h x w pixels, another h and w in each batch; the fault is in the second."""
    want = [np.random.default_rng(k).standard_normal((2, 3, *size)) for k, size in enumerate(((2, 5), (4, 1)))]
    have = [want[0], want[1] + 0.5 * (np.arange(24).reshape(want[1].shape) == 23)]
    maps = [Fixed(name, *({"logits": batch} for batch in batches)) for name, batches in (("paper", want), ("m", have))]
    found = climbed([Rung("torch", maps[0], FP32), Rung("onnx", maps[1], FP32)], 2, 2)
    (step,) = found.steps
    assert (found.images, found.passed, step.first.top1_agreement) == (4, False, None)
    assert step.first.worst["logits"].index == (3, 2, 3, 0)


@pytest.mark.parametrize("rung", ["rewritten", "onnx"])
def test_the_first_rung_out_and_its_first_block_are_named(rung: str) -> None:
    found = climbed(ladder(**{rung: (0.01, "stage0.block0.mlp"), "precision": (0.01, "stage0.block0.mlp")}))
    assert found.verdict == "the model is wrong"
    assert found.failed is not None
    assert (found.failed.rung, found.failed.judged.first_out) == (rung, "stage0.block0.mlp")
    failed(found, f"the model is wrong: {rung} ({rung}.file) against torch: stage0.block0.mlp differs by ")
    with pytest.raises(
        ParityFailed,
        match=r"\(SQNR \d+\.\d dB\), most at \[\d, \d\] \S+ for \S+; logits by \S+ \(SQNR \S+ dB\); expected",
    ):
        found.require_passed()


def test_a_lossy_rung_is_held_to_the_first_one_and_an_exact_one_to_more() -> None:
    small = {"precision": 0.01, "engine": 0.01}
    assert climbed(ladder("fp16", **small)).verdict == "agrees"
    found = climbed(ladder("fp16", precision=0.5, engine=0.5))
    failed(found, "the model is wrong: precision (precision.file) against torch: logits differs by ")
    assert climbed(ladder("fp16", onnx=0.01)).failed.rung == "onnx"  # type: ignore[union-attr]


def test_the_engine_is_held_to_its_file_and_not_to_what_the_precision_costs() -> None:
    # The file is out of the engine's tolerance of the model by far, and the engine computes just what it says.
    rungs = ladder("int8", precision=0.5, engine=0.5)
    rungs[-1] = replace(rungs[-1], tolerance=FP16)
    found = climbed(rungs)
    assert (found.verdict, found.steps[-1].first.passed, found.steps[-1].before.passed) == ("agrees", False, True)


def test_an_engine_does_not_hide_behind_the_tolerance_of_its_precision() -> None:
    # As near to the model as INT8 may be, nearer than its file even, and yet not what the file computes.
    rungs = ladder("int8", precision=0.5)
    rungs[-1] = replace(rungs[-1], tolerance=FP16)
    found = climbed(rungs)
    assert (found.verdict, found.steps[-1].first.sqnr_db) == ("the runtime is wrong", math.inf)
    failed(found, "the runtime is wrong: engine (engine.file) against precision: logits differs by ")
    with pytest.raises(ParityFailed, match=r"; the rungs before it agree with torch$"):
        found.require_passed()


def test_a_wrong_model_comes_before_a_wrong_runtime() -> None:
    found = climbed(ladder("fp16", onnx=0.3, precision=0.3, engine=0.9))
    assert found.verdict == "the model is wrong"
    assert [step.passed for step in found.steps] == [True, False, False, False]


def test_a_drift_in_small_steps_is_found_by_the_comparison_with_the_first_rung() -> None:
    rungs = [Rung("torch", Fake("paper"), FP32)]
    rungs += [Rung(f"step{i}", Fake(f"{i}", 0.0004 * i), FP32) for i in range(1, 6)]
    found = climbed(rungs)
    assert found.failed is not None
    assert found.failed.before.passed
    failed(found, f"the model is wrong: {found.failed.rung} (")
    with pytest.raises(ParityFailed, match=r"; step\d is as step\d: look there as well$"):
        found.require_passed()


@settings(deadline=None, max_examples=40)
@given(
    faults=st.dictionaries(st.sampled_from(["rewritten", "onnx", "precision", "engine"]), st.sampled_from([0.0, 0.5])),
    block=st.sampled_from([*BLOCKS, "logits"]),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
)
def test_wherever_the_fault_is_it_is_found(faults: dict[str, float], block: str, sizes: list[int]) -> None:
    found = climbed(ladder("fp16", **{name: (size, block) for name, size in faults.items()}), *sizes)
    model = [name for name in ("rewritten", "onnx", "precision") if faults.get(name)]
    if model:
        assert (found.verdict, found.failed.rung) == ("the model is wrong", model[0])  # type: ignore[union-attr]
    elif faults.get("engine"):
        assert found.verdict == "the runtime is wrong"
    else:
        assert found.verdict == "agrees"
    assert found.failed is None or found.failed.judged.first_out == block


# What a comparison tells


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["reference", "candidate", "both"])
def test_a_number_that_is_not_finite_fails_on_either_side(bad: float, side: str) -> None:
    good, spoilt = {"logits": [[1, 2], [3, 4]]}, {"logits": [[1, 2], [bad, 4]]}
    want, have = (spoilt if side != "candidate" else good), (spoilt if side != "reference" else good)
    found = fixed(want, have, LOOSE)
    numbers = f"{bad if side != 'reference' else 3:.4g} for {bad if side != 'candidate' else 3:.4g}"
    failed(found, "the model is wrong: onnx (m.onnx) against torch: logits has numbers that are not finite, at [1, 0] ")
    with pytest.raises(ParityFailed, match=re.escape(f"at [1, 0] {numbers}; ")):
        found.require_passed()
    assert math.isnan(found.steps[0].first.sqnr_db)
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_worst_element_is_that_of_all_images() -> None:
    want = [{"logits": np.zeros((2, 3)) + 1}, {"logits": np.zeros((2, 3)) + 1}]
    have = [{"logits": batch["logits"].copy()} for batch in want]
    have[0]["logits"][1, 0] = 1.25
    have[1]["logits"][1, 2] = 0.5
    rungs = [Rung("torch", Fixed("paper", *want), FP32), Rung("onnx", Fixed("m.onnx", *have), FP32)]
    assert climbed(rungs, 2, 2).steps[0].first.worst == {"logits": Worst((3, 2), 1.0, 0.5)}


def test_flips_have_their_margins_on_both_sides_widest_first() -> None:
    want = {"logits": [[3, 1, 0], [0, 2, 1.5], [5, 0, 0], [0, 0, 1]]}
    have = {"logits": [[1, 4.5, 0], [0, 1, 1.25], [0, 5, 4], [0, 0, 1]]}
    found = fixed(want, have, names=["a.png", "b.png"]).steps[0].first
    assert (found.flipped, found.top1_agreement) == (3, 0.25)
    assert found.flips == (
        Flip("image 2", None, 0, 1, 5.0, 1.0),
        Flip("a.png", None, 0, 1, 2.0, 3.5),
        Flip("b.png", None, 1, 2, 0.5, 0.25),
    )


def test_flips_are_of_the_images_of_all_batches() -> None:
    want, have = {"logits": [[1, 0], [1, 0]]}, {"logits": [[1, 0], [0, 1]]}
    rungs = [Rung("torch", Fixed("paper", want, want), FP32), Rung("onnx", Fixed("m.onnx", have, have), FP32)]
    found = climbed(rungs, 2, 2, names=["a", "b", "c", "d"]).steps[0].first
    assert [flip.image for flip in found.flips] == ["b", "d"]


def test_a_flip_by_a_number_that_is_not_finite_is_counted_and_not_shown() -> None:
    found = fixed({"logits": [[1, 0]]}, {"logits": [[0, math.inf]]}).steps[0].first
    assert (found.flipped, found.flips) == (1, ())


def test_flips_are_bounded_and_the_widest_stay() -> None:
    rows = np.arange(1.0, 101.0)
    want = {"logits": np.stack([rows, np.zeros(100)], axis=1)}
    found = fixed(want, {"logits": want["logits"][:, ::-1]}).steps[0].first
    assert found.flipped == 100
    assert [flip.margin_before for flip in found.flips] == [100.0 - i for i in range(MOST_FLIPS)]


def test_decisions_alone_fail() -> None:
    want, have = {"logits": [[1, 1 - 1e-6], [0, 1]]}, {"logits": [[1 - 1e-6, 1], [0, 1]]}
    text = (
        "the model is wrong: onnx (m.onnx) against torch: top-1 agrees on 50.00% of 2 images; expected at least 80 dB, "
    )
    failed(fixed(want, have), f"{text}at most 1e-04 and 100.00% equal top-1")


def test_feature_maps_have_no_top1() -> None:
    maps = {"stride4": np.ones((1, 2, 4, 4)), "stride8": np.ones((1, 2, 2, 2))}
    assert fixed(maps, maps, outputs=tuple(maps)).steps[0].first.top1_agreement is None
    found = fixed(maps, maps | {"stride8": 2 * maps["stride8"]}, outputs=tuple(maps))
    failed(found, "the model is wrong: onnx (m.onnx) against torch: stride8 differs by 1.0e+00 (SQNR 0.0 dB), most at ")
    with pytest.raises(ParityFailed, match=r"\[0, 0, 0, 0\] 2 for 1; expected at least 80 dB, at most 1e-04$"):
        found.require_passed()


def test_blocks_are_compared_where_both_rungs_name_them() -> None:
    rungs = ladder("fp16")
    rungs[3] = replace(rungs[3], runner=Fake("p", taps=BLOCKS[:1]))
    rungs[4] = replace(rungs[4], runner=Fake("e", taps=()))
    compared = [
        ([t.name for t in step.first.tensors], [t.name for t in step.before.tensors]) for step in climbed(rungs).steps
    ]
    every = [*BLOCKS, "logits"]
    assert compared == [(every, every), (every, every), ([BLOCKS[0], "logits"],) * 2, (["logits"],) * 2]


# How it runs


def test_every_rung_sees_every_batch_once_and_one_of_a_fixed_batch_gets_them_cut() -> None:
    rungs = ladder()
    rungs[4] = replace(rungs[4], runner=Fake("fixed", batch=2))
    assert climbed(rungs, 3, 2).passed
    assert [rung.runner.seen for rung in rungs] == [[3, 2]] * 4 + [[2, 2, 2]]  # type: ignore[attr-defined]


def test_memory_does_not_grow_with_the_images() -> None:
    peaks = []
    for count in (4, 64):
        batches = (np.ones((32, 3, *SIZE), np.float32) for _ in range(count))
        tracemalloc.start()
        climb(ladder(), batches, source="ones", outputs=("logits",))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_the_result_is_plain_json() -> None:
    facts = json.loads(json.dumps(climbed(ladder("fp16", engine=0.9)).to_dict(), allow_nan=False))
    assert (facts["verdict"], facts["failed"], facts["images"]) == ("the runtime is wrong", "engine", 6)
    assert [step["passed"] for step in facts["steps"]] == [True, True, True, False]
    assert facts["steps"][0]["first"]["tensors"][-1]["sqnr_db"] is None  # infinite
    assert facts["steps"][3]["before"]["worst"].keys() == {*BLOCKS, "logits"}


@pytest.mark.parametrize(
    ("rungs", "text"),
    [
        ([], "the rungs are none; expected two or more, each named once"),
        (ladder()[:1], "the rungs are torch; expected two or more"),
        ([ladder()[0], ladder()[0]], "the rungs are torch, torch; expected two or more, each named once"),
        (ladder()[:2:-1], "the first rung is the runtime engine; expected a form of the model to judge by"),
    ],
)
def test_what_is_no_ladder(rungs: list[Rung], text: str) -> None:
    with pytest.raises(OptionError, match=f"^{re.escape(text)}"):
        climbed(rungs)


def test_no_outputs_and_no_images() -> None:
    with pytest.raises(OptionError, match=r"^no outputs to compare; expected one or more$"):
        climbed(ladder(), outputs=())
    with pytest.raises(InputError, match=r"^there are no images to compare on; expected one or more$"):
        climb(ladder(), [], source="none", outputs=("logits",))


def test_a_missing_output_and_another_shape_name_the_rung() -> None:
    with pytest.raises(ParityFailed, match=r"^onnx \(m.onnx\) has no output logits; expected logits$"):
        fixed({"logits": [[1, 2]]}, {"x": [[1, 2]]})
    with pytest.raises(ParityFailed, match=r"^logits of onnx \(m.onnx\) has shape \(1, 3\); expected \(1, 2\)$"):
        fixed({"logits": [[1, 2]]}, {"logits": [[1, 2, 3]]})


# Builds that differ among themselves


def builds(*noise: float) -> list[dict[str, np.ndarray]]:
    """Outputs of builds whose errors are independent, of an amplitude each."""
    rng = np.random.default_rng(1)
    exact = rng.standard_normal((200, 50))
    return [{"logits": (exact + size * rng.standard_normal(exact.shape)).astype(np.float32)} for size in noise]


def test_the_noise_floor_is_that_of_pairs() -> None:
    floor = noise_floor(builds(0.01, 0.01, 0.01))
    assert (floor.builds, floor.pairs) == (3, 3)
    assert floor.median_db == pytest.approx(37, abs=0.2)  # 40 dB each, less 3 for two of them
    assert floor.min_db == pytest.approx(floor.median_db, abs=0.2)
    assert floor.covers(40)
    assert not floor.covers(34)
    assert not floor.covers(math.nan)


def test_one_odd_build_among_many_lowers_the_minimum_alone() -> None:
    floor = noise_floor(builds(*[0.01] * 5, 1.0))
    assert floor.median_db == pytest.approx(37, abs=0.3)
    assert floor.min_db == pytest.approx(0, abs=0.3)


def test_equal_builds_and_the_worst_output_of_two() -> None:
    same = builds(0.01) * 2
    floor = noise_floor(same)
    assert floor == NoiseFloor(2, 1, math.inf, math.inf)
    assert floor.to_dict() == {"builds": 2, "pairs": 1, "median_db": None, "min_db": None}
    assert not floor.covers(100)
    first, second = builds(0.01, 0.01)
    two = [same[0] | {"more": first["logits"]}, same[0] | {"more": second["logits"]}]
    assert noise_floor(two) == noise_floor([first, second])


@pytest.mark.parametrize(
    ("outputs", "error", "text"),
    [
        ([], OptionError, "0 builds to compare; expected two or more, with outputs"),
        (builds(0.1), OptionError, "1 builds to compare"),
        ([{}, {}], OptionError, "2 builds to compare; expected two or more, with outputs"),
        (
            [*builds(0.1), {"x": np.ones((200, 50))}],
            ParityFailed,
            "builds 1 and 2 give different outputs; expected one file",
        ),
        ([*builds(0.1), {"logits": np.ones((1, 50))}], ParityFailed, "builds 1 and 2 give different outputs"),
        (
            [*builds(0.1, 0.1), {"logits": np.full((200, 50), np.nan)}],
            ParityFailed,
            "logits of build 1 or 3 has numbers",
        ),
    ],
)
def test_what_has_no_noise_floor(outputs: list[Any], error: Any, text: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(text)}"):
        noise_floor(outputs)


def test_a_drift_within_the_noise_of_builds_is_no_fault_of_the_runtime() -> None:
    rungs = ladder("fp16", engine=0.5)
    drift = climbed(rungs).steps[-1].before.sqnr_db
    assert climbed(rungs).verdict == "the runtime is wrong"
    for median, verdict in ((drift, "agrees"), (drift + 0.1, "the runtime is wrong")):
        rungs = ladder("fp16", engine=0.5)
        rungs[-1] = replace(rungs[-1], tolerance=replace(FP16, top1_agreement=0.0))
        found = climbed(rungs, floor=NoiseFloor(3, 3, median, 0.0))
        assert (found.verdict, found.steps[-1].excused) == (verdict, verdict == "agrees")
        assert found.to_dict()["floor"]["median_db"] == median


def test_noise_excuses_no_other_decisions_no_broken_number_and_no_model() -> None:
    floor = NoiseFloor(3, 3, -100.0, -100.0)
    want = {"logits": [[1, 0], [1, 0]]}
    assert fixed(want, {"logits": [[0, 1], [1, 0]]}, FP16, "runtime", floor=floor).verdict == "the runtime is wrong"
    assert fixed(want, {"logits": [[math.nan, 1], [1, 0]]}, LOOSE, "runtime", floor=floor).verdict != "agrees"
    assert fixed(want, {"logits": [[2, 0], [1, 0]]}, FP16, "runtime", floor=floor).verdict == "agrees"
    assert fixed(want, {"logits": [[2, 0], [1, 0]]}, FP16, "model", floor=floor).verdict == "the model is wrong"


def test_the_tolerances_of_an_engine_are_those_of_its_precision() -> None:
    assert OF_ENGINE == OF_PRECISION == {"fp32": FP32, "fp16": FP16, "int8": INT8}
