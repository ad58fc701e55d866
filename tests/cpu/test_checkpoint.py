"""Published checkpoint files: what is read, what is refused, and what the refusals say."""

from __future__ import annotations

import argparse
import contextlib
import os
import pickle
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from sepvit_deploy.errors import CheckpointError, OptionError, SepvitError
from sepvit_deploy.model.build import build_model
from sepvit_deploy.model.checkpoint import load_checkpoint, published_state_dict
from sepvit_deploy.model.sepvit import SepViT, SepViTBackbone
from sepvit_deploy.model.state_dict import read_state_dict
from sepvit_deploy.variants import VARIANTS, count_parameters

HEAD = "head.weight"


def message(error: pytest.ExceptionInfo[SepvitError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert text.isprintable()
    return text


def refusal(*args, **options) -> str:
    """What `load_checkpoint` refuses with."""
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(*args, **options)
    assert error.value.exit_code == 2
    return message(error)


def unreadable(path: Path, **options) -> str:
    """What `read_state_dict` refuses with; the text begins with the file."""
    with pytest.raises(CheckpointError) as error:
        read_state_dict(path, **options)
    assert message(error).startswith(str(path))
    return message(error).removeprefix(str(path)).lstrip(": ")


@pytest.fixture(scope="module")
def model() -> SepViT | SepViTBackbone:
    return build_model("lite", seed=3)


@pytest.fixture
def state(model) -> dict[str, Tensor]:
    return published_state_dict(model)


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "weights.pth"


def saved(file: Path, content: object) -> Path:
    torch.save(content, file)
    return file


def hollow(variant: str, task: str = "classify", num_classes: int = 1000) -> dict[str, Tensor]:
    """Published keys and shapes over zeros that take no room, in memory or in a file."""
    with torch.device("meta"):
        shapes = published_state_dict(build_model(variant, task, num_classes=num_classes))
    return {key: torch.zeros(()).expand(value.shape) for key, value in shapes.items()}


def assert_same(model: nn.Module, other: nn.Module) -> None:
    ours, theirs = model.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), key


# What is read


WRAPPINGS = {
    "bare": lambda state: state,
    "ordered": lambda state: OrderedDict(state),
    "parameters": lambda state: {key: nn.Parameter(value) for key, value in state.items()},
    "model": lambda state: {"model": state},
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "module": lambda state: {f"module.{key}": value for key, value in state.items()},
    "module in model": lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
    "training": lambda state: {
        "model": state,
        "optimizer": {"state": {0: {"step": torch.tensor(5.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        "lr_scheduler": {"last_epoch": 299},
        "epoch": 299,
        "scaler": None,
        "args": argparse.Namespace(model="SepViT_Lite", lr=1e-3, betas=[0.9, 0.999], output_dir=None),
    },
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_every_form_of_a_pickled_file_gives_the_same_weights(file, model, state, wrapping):
    saved(file, WRAPPINGS[wrapping](state))
    read = read_state_dict(file)
    assert set(read) == set(state)
    assert all(torch.equal(read[key], state[key]) for key in state)
    assert_same(load_checkpoint(file, "lite"), model)


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".PTH"])
def test_a_pickled_file_has_any_of_the_usual_suffixes(tmp_path, model, state, suffix):
    assert_same(load_checkpoint(saved(tmp_path / f"w{suffix}", {"model": state}), "lite"), model)


def test_a_file_of_the_older_torch_format_is_read(file, model, state):
    torch.save({"model": state}, file, _use_new_zipfile_serialization=False)
    assert_same(load_checkpoint(file, "lite"), model)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_safetensors_file_is_read(tmp_path, model, state, prefix):
    path = tmp_path / "weights.safetensors"
    save_file({prefix + key: value for key, value in state.items()}, path)
    assert set(read_state_dict(path)) == set(state)
    assert_same(load_checkpoint(str(path), "lite"), model)


def test_outputs_survive_the_round_trip_and_the_model_is_ready_to_use(file, model, state):
    loaded = load_checkpoint(saved(file, state), "lite")
    assert isinstance(loaded, SepViT)
    assert not loaded.training
    assert all(p.dtype == torch.float32 and p.device.type == "cpu" and p.requires_grad for p in loaded.parameters())
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


def test_a_dense_backbone_is_read(file):
    dense = build_model("lite", "dense", seed=4)
    loaded = load_checkpoint(saved(file, {"model": published_state_dict(dense)}), "lite", "dense")
    assert isinstance(loaded, SepViTBackbone)
    assert_same(loaded, dense)


@pytest.mark.parametrize("task", ["classify", "dense"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_and_task_is_read(file, variant, task):
    loaded = load_checkpoint(saved(file, hollow(variant, task)), variant, task)
    assert loaded.variant.name == variant
    assert loaded.task == task
    assert sum(p.numel() for p in loaded.parameters()) == count_parameters(VARIANTS[variant], task)
    assert all(p.is_contiguous() for p in loaded.parameters())


def test_averaged_weights_are_taken_on_request_only(file, model, state):
    averaged = build_model("lite", seed=9)
    saved(file, {"model": state, "model_ema": published_state_dict(averaged)})
    assert_same(load_checkpoint(file, "lite"), model)
    assert_same(load_checkpoint(file, "lite", ema=True), averaged)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_types_become_float32(file, state, dtype):
    stored = {key: value.to(dtype) for key, value in state.items()}
    loaded = published_state_dict(load_checkpoint(saved(file, stored), "lite"))
    for key, value in loaded.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, stored[key].float())


def test_the_number_of_classes_is_the_checkpoint_s(file):
    saved(file, hollow("lite", num_classes=10))
    assert load_checkpoint(file, "lite").num_classes == 10
    assert load_checkpoint(file, "lite", num_classes=10).num_classes == 10


def test_a_prefix_on_some_keys_only_is_not_taken_off(file, state):
    mixed = {f"module.{key}" if key == HEAD else key: value for key, value in state.items()}
    assert "module.head.weight" in read_state_dict(saved(file, mixed))
    assert "1 missing (head.weight), 1 unexpected (module.head.weight)" in refusal(file, "lite")


# Files that cannot be read


def test_a_missing_file(tmp_path):
    assert unreadable(tmp_path / "no.pth") == "does not exist; expected a checkpoint file; check the path"


def test_a_path_through_a_file(file):
    file.write_bytes(b"x")
    assert unreadable(file / "w.pth") == "cannot be read (Not a directory); check the path"


def test_a_directory(tmp_path):
    assert unreadable(tmp_path) == "is a directory; expected a checkpoint file; name the file inside it"


@pytest.mark.parametrize("name", ["model.onnx", "model.ckpt", "model"])
def test_an_unknown_suffix(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"x")
    expected = f"has the suffix {path.suffix!r}; expected one of .pth, .pt, .bin, .safetensors"
    assert unreadable(path) == expected


def test_a_file_that_is_not_regular(file):
    os.mkfifo(file)
    assert unreadable(file) == "is not a regular file; expected a checkpoint file"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_empty_file(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    path.touch()
    assert unreadable(path) == "is empty (0 bytes); copy or download it again"


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Root reads everything: become nobody for a while."""
    if os.geteuid():
        yield
        return
    try:
        os.seteuid(65534)
    except OSError as error:
        pytest.skip(f"root, and may not act as another user: {error}")
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("locked", ["file", "folder"])
def test_no_permission_to_read(locked):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders admit their owner only
        Path(folder).chmod(0o755)
        path = Path(folder) / "w.pth"
        path.write_bytes(b"x")
        (path if locked == "file" else Path(folder)).chmod(0o000)
        try:
            with unprivileged():
                assert unreadable(path) == f"may not be read; type: chmod u+r {path}, or ask its owner"
        finally:
            Path(folder).chmod(0o755)


def test_half_a_file(file, state):
    whole = saved(file, state).read_bytes()
    half = len(whole) // 2
    file.write_bytes(whole[:half])
    assert unreadable(file) == (
        f"is cut short, damaged, or not written by torch.save ({half} bytes); "
        "compare its size with the original's, and copy or download it again"
    )


def test_half_a_safetensors_file(tmp_path, state):
    path = tmp_path / "w.safetensors"
    save_file(state, path)
    path.write_bytes(path.read_bytes()[:-1000])
    text = unreadable(path)
    assert text.startswith("is not a safetensors file, or is cut short or damaged (")
    assert text.endswith("copy or download it again; a file that torch.save wrote is named .pth")


@pytest.mark.parametrize("content", [b"<!DOCTYPE html>\n<html>", b"version https://git-lfs.", b"\x1b[31m\x00\xff"])
def test_a_file_that_is_not_a_checkpoint(file, content):
    file.write_bytes(content)
    text = unreadable(file)
    shown = ascii(content.decode("latin-1"))
    assert text.startswith(f"is not a checkpoint: it begins with {shown}; expected a file that torch.save wrote; ")


def test_html_named_safetensors(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"<!DOCTYPE html>\n<html>")
    assert unreadable(path).startswith("is not a safetensors file, or is cut short or damaged (")


def test_a_file_named_as_the_other_kind(tmp_path, state):
    save_file(state, tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").rename(tmp_path / "w.pth")
    assert unreadable(tmp_path / "w.pth").endswith("a safetensors file is named .safetensors")
    saved(tmp_path / "w.pth", state).rename(tmp_path / "w.safetensors")
    assert unreadable(tmp_path / "w.safetensors").endswith("a file that torch.save wrote is named .pth")


def test_a_torchscript_archive(file):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), file)
    assert unreadable(file) == (
        "is a TorchScript archive; expected a state dict; in an environment you trust, re-save its weights: "
        'torch.save(module.state_dict(), "weights.pth")'
    )


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("form", ["zip", "older torch format", "raw pickle, protocol 2", "raw pickle, protocol 4"])
def test_code_in_a_pickle_never_runs(tmp_path, file, form):
    target = tmp_path / "pwned"
    content = {"model": {"head.weight": torch.zeros(2)}, "args": Payload(target)}
    if form.startswith("raw"):
        file.write_bytes(pickle.dumps(content["args"], protocol=int(form[-1])))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    text = unreadable(file)
    assert not target.exists()
    if form != "raw pickle, protocol 4":  # torch's restricted reader refuses that protocol before it sees the class
        assert text == (
            "needs the class or function posix.mkdir, which could run code; expected tensors and plain values only; "
            'in an environment you trust, re-save only the state dict: torch.save({"model": checkpoint["model"]}, '
            '"weights.pth")'
        )
    if form.startswith("raw"):
        pickle.loads(file.read_bytes())
    else:
        torch.load(file, weights_only=False)
    assert target.exists()  # the payload was live


def test_a_pickled_model_is_named_by_its_class(file):
    saved(file, nn.Linear(2, 2))
    assert "needs the class or function torch.nn.modules.linear.Linear, which" in unreadable(file)


def test_only_namespace_is_allowed_and_only_while_reading(file, state):
    saved(file, {"model": state, "args": argparse.Namespace(path=Path("out"))})
    assert "needs the class or function pathlib." in unreadable(file)
    read_state_dict(saved(file, {"model": state, "args": argparse.Namespace(lr=1.0)}))
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (torch.zeros(3), "holds a value of type Tensor; expected a mapping of names to tensors"),
        ([torch.zeros(3)], "holds a value of type list; expected a mapping of names to tensors"),
        (
            {"epoch": 1, "optimizer": {}},
            "holds no tensors: it holds only epoch, optimizer; expected weights, alone or under model or state_dict",
        ),
        ({}, "holds no tensors: it holds nothing; expected weights, alone or under model or state_dict"),
        ({"model": {}}, "holds no tensors under model; expected the weights of a SepViT"),
        ({"state_dict": {"a": 1}}, "holds no tensors under state_dict; expected the weights of a SepViT"),
        (
            {"model_ema": {"a": torch.zeros(1)}},
            "holds no tensors: it holds only model_ema; expected weights, alone or under model or state_dict; "
            "type: --ema",
        ),
        (
            {"model": {"a": torch.zeros(1), "b\n\x1b[31m": 3}},
            "entry b\\n\\x1b[31m of the state dict maps str to int; expected every str to a Tensor; "
            "re-save the model's state_dict() alone",
        ),
        (
            {"a": torch.zeros(1), 7: torch.zeros(1)},
            "entry 7 of the state dict maps int to Tensor; expected every str to a Tensor; "
            "re-save the model's state_dict() alone",
        ),
    ],
)
def test_contents_that_are_not_weights(file, content, text):
    assert unreadable(saved(file, content)) == text


def test_a_safetensors_file_without_tensors(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({}, path)
    assert unreadable(path) == "holds no tensors; expected the weights of a SepViT"


def test_averaged_weights_that_are_not_there(tmp_path, file, state):
    saved(file, {"model": state, "epoch": 3})
    assert unreadable(file, ema=True) == "has no model_ema: it holds only model, epoch; leave --ema out"
    saved(file, state)
    assert unreadable(file, ema=True) == "has no model_ema: it holds a bare state dict; leave --ema out"
    path = tmp_path / "w.safetensors"
    save_file(state, path)
    assert unreadable(path, ema=True) == (
        "has no model_ema: a safetensors file holds a bare state dict; leave --ema out"
    )


SMALL = {"a.weight": torch.arange(60.0).reshape(6, 10), "a.bias": torch.ones(6)}


@pytest.fixture(scope="module", params=["w.pth", "older.pth", "w.safetensors"])
def small(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("small") / request.param
    if path.suffix == ".safetensors":
        save_file(SMALL, path)
    else:
        torch.save({"model": SMALL, "epoch": 2}, path, _use_new_zipfile_serialization=path.stem == "w")
    return path


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_file_cut_anywhere_is_refused(small, data):
    whole = small.read_bytes()
    cut = small.with_stem("cut")
    cut.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    unreadable(cut)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_in_one_line(small, data):
    content = bytearray(small.read_bytes())
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), min_size=1, max_size=4)
    ):
        content[place] = value
    damaged = small.with_stem("damaged")
    damaged.write_bytes(content)
    try:
        text = " ".join(read_state_dict(damaged))
    except CheckpointError as error:
        text = str(error).removeprefix(str(damaged))
        assert text.isprintable()
    assert text


# Weights that do not fit


def test_options_out_of_range(file, state):
    saved(file, state)
    with pytest.raises(OptionError, match=r"^there is no variant 'xl'; expected one of lite, t, s, b"):
        load_checkpoint(file, "xl")
    with pytest.raises(OptionError, match=r"^there is no task 'detect'; expected classify, dense, segment$"):
        load_checkpoint(file, "lite", "detect")
    with pytest.raises(OptionError, match=r"^--num-classes 0; expected 1 or more$"):
        load_checkpoint(file, "lite", num_classes=0)


def test_missing_unexpected_and_misshapen_keys_are_counted_and_named(file, state):
    kept = {key: value for key, value in state.items() if not key.startswith("patch_embeds.1")}
    kept["head.bias"] = torch.zeros(10)
    kept["aux.weight"] = torch.zeros(2)
    assert refusal(saved(file, kept), "lite") == (
        f"{file}: 4 missing (patch_embeds.1.proj.weight, patch_embeds.1.proj.bias, patch_embeds.1.norm.weight, ...), "
        "1 unexpected (aux.weight), 1 misshapen (head.bias: (10,) where (1000,) is expected); "
        "expected the 190 keys of variant lite, task classify"
    )


@pytest.mark.parametrize("head", [torch.zeros(256), torch.zeros(0, 256)])
def test_a_head_without_a_number_of_classes(file, state, head):
    text = refusal(saved(file, {**state, HEAD: head}), "lite")
    assert f"1 misshapen (head.weight: {tuple(head.shape)} where (1000, 256) is expected)" in text


def test_a_missing_head(file, state):
    kept = {key: value for key, value in state.items() if not key.startswith("head.")}
    assert "2 missing (head.weight, head.bias); expected the 190" in refusal(saved(file, kept), "lite", num_classes=7)


def test_our_own_names_are_not_published_ones(file, model):
    text = refusal(saved(file, model.state_dict()), "lite")
    assert "186 missing (patch_embeds.0.proj.weight, " in text
    assert "186 unexpected (stages.0.embed.proj.weight, " in text


def test_another_number_of_classes(file, state):
    assert refusal(saved(file, state), "lite", num_classes=10) == (
        f"{file} has a head of 1000 classes; expected --num-classes 10; type: --num-classes 1000, or leave it out"
    )


FORMS = [(variant, task) for variant in VARIANTS for task in ("classify", "dense")]


@pytest.mark.parametrize(("variant", "task"), FORMS)
def test_the_variant_and_task_that_a_file_has_are_named(file, variant, task):
    saved(file, hollow(variant, task, num_classes=21))
    looks = f"variant {variant} for classification" if task == "classify" else f"a dense backbone of variant {variant}"
    for asked in FORMS:
        if asked == (variant, task):
            continue
        options = f"--variant {variant} " * (asked[0] != variant) + f"--task {task}" * (asked[1] != task)
        assert refusal(file, *asked) == (
            f"{file}: this looks like {looks}; expected variant {asked[0]}, task {asked[1]}; type: {options.strip()}"
        )


@pytest.mark.parametrize(("variant", "task"), FORMS)
def test_the_closest_variant_is_named_where_nothing_fits_exactly(file, variant, task):
    state = hollow(variant, task)
    del state["norm.bias"]
    saved(file, state)
    looks = f"variant {variant} for classification" if task == "classify" else f"a dense backbone of variant {variant}"
    asked = "b" if variant == "lite" else "lite"
    assert refusal(file, asked, task).endswith(f"the closest is {looks}, type: --variant {variant}")
    own = refusal(file, variant, task)
    assert "1 missing (norm.bias); expected the " in own
    assert "the closest is" not in own


def test_a_foreign_model_is_close_to_none(file):
    text = refusal(saved(file, nn.Linear(3, 4).state_dict()), "t")
    assert "190 missing (patch_embeds.0.proj.weight, " in text
    assert "2 unexpected (weight, bias)" in text
    assert "the closest is" not in text


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda t: t.to(torch.int8), "int8, strided, cpu"),
        (lambda t: t.to(torch.bool), "bool, strided, cpu"),
        (lambda t: t.to(torch.float8_e4m3fn), "float8_e4m3fn, strided, cpu"),
        (lambda t: t.to_sparse(), "float32, sparse_coo, cpu"),
        (lambda t: t.to("meta"), "float32, strided, meta"),
    ],
    ids=["int8", "bool", "float8", "sparse", "no data"],
)
def test_weights_that_are_not_plain_floating_point_numbers(file, state, change, where):
    saved(file, {**state, HEAD: change(state[HEAD])})
    assert refusal(file, "lite") == (
        f"{file}: 1 not stored as plain floating-point numbers (head.weight: {where}); expected dense tensors of "
        "float32, float16, bfloat16, float64; give the checkpoint as it was before quantisation or conversion"
    )


@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning")
def test_quantised_weights(file, state):
    saved(file, {**state, HEAD: torch.quantize_per_tensor(state[HEAD], 0.1, 0, torch.qint8)})
    assert "1 not stored as plain floating-point numbers (head.weight: qint8, " in refusal(file, "lite")


def test_weights_that_are_not_finite(file, state):
    state["head.bias"] = torch.tensor([float("nan"), float("inf"), 1.0] + [0.0] * 997)
    state["norm.weight"] = torch.full((256,), -float("inf"))
    assert refusal(saved(file, state), "lite") == (
        f"{file}: 2 not finite in float32 (norm.weight: 256 of 256 values, head.bias: 2 of 1000 values); "
        "expected finite weights; give a checkpoint from before training diverged"
    )


def test_float64_weights_beyond_float32(file, state):
    state["head.bias"] = torch.full((1000,), 1e300, dtype=torch.float64)
    assert "1 not finite in float32 (head.bias: 1000 of 1000 values)" in refusal(saved(file, state), "lite")


def test_the_loaded_model_shares_nothing_with_its_file_or_between_keys(file, state):
    shared = torch.ones(256)
    state["norm.weight"] = state["norm.bias"] = shared
    loaded = load_checkpoint(saved(file, state), "lite")
    with torch.no_grad():
        loaded.norm.weight.zero_()
    assert torch.equal(loaded.norm.bias, shared)
