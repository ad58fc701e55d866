"""ONNX files: what is read, what is refused with which words, and what is done to a graph."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from sepvit_deploy import graph
from sepvit_deploy.errors import GraphError
from sepvit_deploy.graph import load_graph, nested, opset, rename_values, static_shapes, with_batch, with_logits

WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3)
IF = """
<ir_version: 8, opset_import: ["" : 17]>
net (bool c, float[N,4] x) => (float[N,4] y) {
  a = Relu(x)
  y = If (c) <
    then_branch = left () => (float[N,4] u) { u = Erf(a) },
    else_branch = right () => (float[N,4] v) {
      v = If (c) <
        then_branch = deep () => (float[N,4] p) { p = Neg(a) },
        else_branch = deeper () => (float[N,4] q) { q = Abs(a) }
      >
    }
  >
}
"""


def parsed(text: str) -> onnx.ModelProto:
    return parser.parse_model(text)


def simple(body: str = "y = MatMul(x, w)", x: str = "N,4") -> onnx.ModelProto:
    model = parsed(f'<ir_version: 8, opset_import: ["" : 17]> net (float[{x}] x) => (float[N,3] y) {{ {body} }}')
    model.graph.initializer.append(numpy_helper.from_array(WEIGHTS, "w"))
    return model


def saved(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def external(path: Path, location: str | None, **entries: int) -> Path:
    model = simple()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = tensor.EXTERNAL
    if location is not None:
        tensor.external_data.add(key="location", value=location)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return saved(path, model)


def refused(path: Path, text: str) -> None:
    with pytest.raises(GraphError, match=re.escape(text)) as caught:
        load_graph(path)
    assert "\n" not in str(caught.value)


def test_a_file_is_read(tmp_path: Path) -> None:
    model = simple()
    assert load_graph(saved(tmp_path / "m.onnx", model)) == model


def test_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    saved(tmp_path / "m.onnx", simple())
    (tmp_path / "link.onnx").symlink_to("m.onnx")
    assert load_graph(tmp_path / "link.onnx") == simple()


@pytest.mark.parametrize("name", ["m.onnx", "nowhere/m.onnx", "file/m.onnx"])
def test_a_missing_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / name
    refused(path, f"{path} does not exist; expected an ONNX file; type: sepvit-deploy export --help")


def test_a_folder(tmp_path: Path) -> None:
    refused(tmp_path, f"{tmp_path} is a folder; expected an ONNX file")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", f"{tmp_path}/pipe is no regular file")


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"no ONNX file\n", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"{}", b"\x08\x08", bytes(1000)]
)
def test_what_is_not_onnx(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    refused(path, f"{path} is not an ONNX file, or is cut off; expected an ONNX file as export writes it")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    content = simple().SerializeToString()
    path = tmp_path / "m.onnx"
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        refused(path, "is not an ONNX file, or is cut off")


def test_a_file_over_2_gib(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.touch()
    os.truncate(path, graph.MAX_BYTES + 1)  # sparse: takes no space
    refused(path, f"{path} is larger than 2 GiB; expected a single ONNX file below 2 GiB")


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a planted error: a superuser may read anything."""
    path = saved(tmp_path / "m.onnx", simple())

    def denied(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    refused(path, f"{path} cannot be read (Permission denied)")


@pytest.mark.parametrize("location", ["m.data", "./m.data", "sub/m.data", "sub/../m.data"])
def test_external_data_inside_the_folder_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / location).write_bytes(WEIGHTS.tobytes())
    path = external(tmp_path / "m.onnx", location)
    for place in (path, Path("m.onnx")):
        monkeypatch.chdir(tmp_path)
        (tensor,) = load_graph(place).graph.initializer
        assert np.array_equal(numpy_helper.to_array(tensor), WEIGHTS)


def test_external_data_at_an_offset(tmp_path: Path) -> None:
    (tmp_path / "m.data").write_bytes(bytes(64) + WEIGHTS.tobytes())
    path = external(tmp_path / "m.onnx", "m.data", offset=64, length=48)
    assert np.array_equal(numpy_helper.to_array(load_graph(path).graph.initializer[0]), WEIGHTS)


@pytest.mark.parametrize(
    "location", ["../secret", "sub/../../secret", "{parent}/secret", "link", "linked/secret", "inner"]
)
def test_external_data_elsewhere_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(WEIGHTS.tobytes())
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "link").symlink_to("../secret")
    (folder / "linked").symlink_to("..")
    (folder / "m.data").write_bytes(WEIGHTS.tobytes())
    (folder / "inner").symlink_to("m.data")
    location = location.format(parent=tmp_path)
    path = external(folder / "m.onnx", location)
    refused(
        path,
        f"{path} keeps weights in {location!r}; expected external data inside the ONNX file's own folder; "
        "do not open this file",
    )


@pytest.mark.parametrize("location", ["", None, "sub", "nowhere.data", "nowhere/m.data"])
def test_missing_external_data(tmp_path: Path, location: str | None) -> None:
    (tmp_path / "sub").mkdir()
    path = external(tmp_path / "m.onnx", location)
    refused(path, f"{path} lacks its external data ({location or ''})")


@pytest.mark.parametrize("entries", [{"offset": 8, "length": 48}, {"offset": 100}, {"length": -1}, {"length": 10**12}])
def test_cut_external_data(tmp_path: Path, entries: dict[str, int]) -> None:
    (tmp_path / "m.data").write_bytes(WEIGHTS.tobytes())
    path = external(tmp_path / "m.onnx", "m.data", **entries)
    refused(path, f"the external data of {path} cannot be read (")


def test_external_data_over_2_gib(tmp_path: Path) -> None:
    path = external(tmp_path / "m.onnx", "m.data")
    (tmp_path / "m.data").touch()
    os.truncate(tmp_path / "m.data", graph.MAX_BYTES)
    refused(path, f"{path} with its external data is larger than 2 GiB")


def test_external_data_of_a_constant_inside_a_branch_is_refused_as_well(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(WEIGHTS.tobytes())
    (tmp_path / "folder").mkdir()
    model = parsed(IF)
    value = onnx.TensorProto(name="w", data_type=1, dims=[4, 3], data_location=onnx.TensorProto.EXTERNAL)
    value.external_data.add(key="location", value="../secret")
    model.graph.node[1].attribute[1].g.node.append(helper.make_node("Constant", [], ["w"], value=value))
    path = saved(tmp_path / "folder" / "m.onnx", model)
    refused(path, f"{path} keeps weights in '../secret'")


def test_opset() -> None:
    assert opset(simple()) == 17
    assert (
        opset(parsed('<ir_version: 8, opset_import: ["com.foo" : 3, "ai.onnx" : 19]> g (float x) => (float x) {}'))
        == 19
    )
    assert opset(parsed('<ir_version: 8, opset_import: ["com.foo" : 3]> g (float x) => (float x) {}')) == 0


def test_nested_graphs_come_outer_first() -> None:
    assert [part.name for part in nested(parsed(IF).graph)] == ["net", "left", "right", "deep", "deeper"]


def test_with_batch_fixes_the_free_batch_of_a_copy() -> None:
    model = simple()
    model.graph.value_info.add(name="inner")
    before = model.SerializeToString()
    fixed = with_batch(model, 5)
    assert model.SerializeToString() == before
    assert [(dim.dim_value, dim.dim_param) for dim in fixed.graph.input[0].type.tensor_type.shape.dim] == [
        (5, ""),
        (4, ""),
    ]
    assert not fixed.graph.value_info
    assert static_shapes(fixed)["y"] == (5, 3)


def test_with_batch_leaves_a_fixed_batch() -> None:
    assert static_shapes(with_batch(simple(x="2,4"), 5))["y"] == (2, 3)


def test_with_batch_takes_an_input_without_dimensions() -> None:
    model = parsed('<ir_version: 8, opset_import: ["" : 17]> g (float s, float[N] x) => (float[N] y) { y = Mul(s, x) }')
    assert static_shapes(with_batch(model, 2)) == {"s": (), "x": (2,), "y": (2,)}


def test_static_shapes() -> None:
    model = simple("a = Relu(x)\n y = MatMul(a, w)")
    assert static_shapes(model) == {"w": (4, 3), "x": (None, 4), "a": (None, 4), "y": (None, 3)}


def test_a_shape_of_unknown_rank_is_no_scalar() -> None:
    model = parsed(
        '<ir_version: 8, opset_import: ["" : 17, "f" : 1]> g (float[2] x) => (y) { a = f.Op(x) y = Relu(a) }'
    )
    assert static_shapes(model) == {"x": (2,)}


def test_a_shape_that_follows_from_constants() -> None:
    model = simple("s = Constant<value_ints = [2, -1]>()\n z = Reshape(x, s)\n y = MatMul(x, w)", x="6,4")
    assert static_shapes(model)["z"] == (2, 12)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[1,4] x, float[3,4] w) => (float[1,4] y) { y = MatMul(x, w) }",
        "g (float[1,4] x) => (float[2,4] y) { y = Relu(x) }",
        "g (float[1,4] x) => (float[1,4] y) { y = com.foo.Undeclared(x) }",
        "g (float[1,4] x) => (float[1,4] y) { a = Identity(a) y = Add(a, x) }",
    ],
)
def test_a_graph_that_contradicts_itself(text: str) -> None:
    with pytest.raises(GraphError, match=r"^the graph contradicts itself: ") as caught:
        static_shapes(parsed(f'<ir_version: 8, opset_import: ["" : 17]> {text}'))
    assert "\n" not in str(caught.value)


def test_rename_values() -> None:
    model = simple("a = Relu(x)\n y = MatMul(a, w)")
    model.graph.value_info.append(helper.make_tensor_value_info("a", 1, [None, 4]))
    rename_values(model, {"x": "images", "a": "tap", "w": "weight", "y": "logits", "absent": "never"})
    g = model.graph
    assert [(list(n.input), list(n.output)) for n in g.node] == [(["images"], ["tap"]), (["tap", "weight"], ["logits"])]
    values = (*g.input, *g.value_info, *g.initializer, *g.output)
    assert [value.name for value in values] == ["images", "tap", "weight", "logits"]


def test_names_may_be_swapped() -> None:
    model = simple("a = Relu(x)\n b = Abs(a)\n y = MatMul(b, w)")
    rename_values(model, {"a": "b", "b": "a"})
    assert [list(node.output) for node in model.graph.node] == [["b"], ["a"], ["y"]]


def test_rename_values_reaches_into_branches() -> None:
    model = parsed(IF)
    rename_values(model, {"a": "tap", "u": "left", "q": "deep"})
    ends: dict[str, Any] = {part.name: part.node[0] for part in nested(model.graph)}
    assert list(ends["left"].input) == list(ends["deeper"].input) == ["tap"]
    assert list(ends["deeper"].output) == ["deep"]
    onnx.checker.check_model(model)


def test_a_dimension_that_inference_would_write_out_is_refused() -> None:
    text = '<ir_version: 9, opset_import: ["": 20]> g (int64[1099511627776] x) => (int64[N] y) { y = Squeeze(x) }'
    with pytest.raises(GraphError, match="x has a dimension of 1099511627776; expected at most 67108864"):
        static_shapes(onnx.parser.parse_model(text))


MASK = """<ir_version: 9, opset_import: ["" : 20]> net (float[B,3,8,8] x, float[4] s) => (uint8[B,16,16] y) {
  scores = Neg(x)  more = Abs(scores)  r = Resize<mode = "linear">(more, , s)
  a = ArgMax<axis = 1, keepdims = 0>(r)  y = Cast<to = 2>(a)
}"""


def test_a_graph_that_gives_a_mask_can_give_the_logits_instead() -> None:
    model = parsed(MASK)
    before = model.SerializeToString()
    cut = with_logits(model)
    assert [(node.op_type, *node.output) for node in cut.graph.node] == [("Neg", "scores"), ("Abs", "logits")]
    assert [value.name for value in cut.graph.output] == ["logits"]
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    ("whole", "part"), [("Cast<to = 2>(a)", "ArgMax(r)"), ("ArgMax<axis = 1, keepdims = 0>(r)", "Neg(r)")]
)
def test_a_graph_that_gives_no_mask_has_no_logits_before_it(whole: str, part: str) -> None:
    with pytest.raises(GraphError, match=r"y is made by .*; expected a mask, by Resize, ArgMax and Cast"):
        with_logits(parsed(MASK.replace(whole, part)))
