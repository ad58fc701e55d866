"""Block-level multiply-accumulates: the formulas, the published figures, and counting in a graph."""

from __future__ import annotations

import json
import subprocess
import sys

import onnx
import pytest
from typer.testing import CliRunner

from sepvit_deploy.cli.commands import app
from sepvit_deploy.complexity import (
    PUBLISHED,
    global_block_macs,
    graph_block_macs,
    rewritten_macs,
    stages,
    transformer_macs,
    window_block_macs,
)
from sepvit_deploy.errors import GraphError
from sepvit_deploy.variants import VARIANTS, block_macs, block_shapes, count_macs

WHO = ("sepvit", "swin", "twins")


def test_published_figures_of_sepvit_and_swin_are_reproduced_and_those_of_twins_are_not() -> None:
    found = [{who: stage.reproduced(who) for who in WHO} for stage in stages()]
    assert found == [{"sepvit": True, "swin": True, "twins": False}] * 4
    assert [round(stage.twins / 1e9, 3) for stage in stages()] == [0.725, 0.698, 0.694, 0.701]
    assert all(0.002 < stage.error("twins_by_window") < 0.006 for stage in stages())
    assert tuple(stage.published for stage in stages()) == PUBLISHED


def test_a_block_costs_little_more_than_half_of_two_of_swin() -> None:
    assert all(0.49 < stage.sepvit / stage.swin < 0.54 for stage in stages())


def test_equation_2_of_swin() -> None:
    """Windows of 7 x 7 on a map of 56 x 56, without the MLP: 4 h w C^2 + 2 M^2 h w C."""
    h = w = 56
    attention = 4 * h * w * 96**2 + 2 * 7**2 * h * w * 96
    assert window_block_macs(h * w, 96) == attention + 2 * 4 * h * w * 96**2


def test_global_attention_without_subsampling_is_plain_attention() -> None:
    assert global_block_macs(49, 768, 1) == transformer_macs(49, 768, 49)


@pytest.mark.parametrize("name", VARIANTS)
def test_blocks_add_up_to_the_model_less_what_is_of_no_block(name: str) -> None:
    variant = VARIANTS[name]
    sides, inputs = (56, 28, 14, 7), (3, *variant.channels)
    outside = variant.channels[-1] * 1000
    for i, (side, c) in enumerate(zip(sides, variant.channels, strict=True)):
        outside += side**2 * c * (inputs[i] * (49 if i == 0 else 9) + 9)
    blocks = sum(block_macs(shape) for shape in block_shapes(variant, "classify", (224, 224)))
    assert blocks + outside == count_macs(variant)


def test_rewriting_saves_what_no_image_touches() -> None:
    of_name = {shape.name: shape for shape in block_shapes(VARIANTS["t"], "dense", (224, 224))}
    first, last = of_name["stage0.block0"], of_name["stage3.block0"]
    assert block_macs(first) - rewritten_macs(first) == 3 * 64 * 96**2
    assert last.windows == 1
    assert block_macs(last) - rewritten_macs(last) == 5 * 768**2 + 50 * 768


def graph(second: str = "stage0.block0/MatMul_2", operator: str = "MatMul") -> onnx.ModelProto:
    """Two products in two blocks, and one in none."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["": 20, "com.microsoft": 1]>
        g (float[batch, 3, 4, 4] images) => (float[batch, 3, 4, 4] y)
        <float[4, 4] w = {{{", ".join(["1"] * 16)}}}>
        {{ a = MatMul(images, w)  b = {operator}(a, w)  c = MatMul(b, w)  y = MatMul(c, w) }}
    """)
    for node, name in zip(
        model.graph.node, ("stem/MatMul", "stage0.block0.mlp/MatMul", second, "stage0.block01/MatMul"), strict=True
    ):
        node.name = name
    return model


def test_a_graphs_products_are_counted_by_block() -> None:
    assert graph_block_macs(graph()) == {"stage0.block0": 2 * 3 * 4 * 4 * 4, "stage0.block01": 3 * 4 * 4 * 4}
    assert graph_block_macs(graph(), "stem") == {"stem": 3 * 4 * 4 * 4}


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(GraphError, match=r"no node's name begins as layer\\d"):
        graph_block_macs(graph(), r"layer\d")
    with pytest.raises(GraphError, match=r"what stage0.block0 multiplies is not known"):
        graph_block_macs(graph(operator="com.microsoft.FusedMatMul"))


def test_the_command_shows_them_and_needs_no_torch() -> None:
    shown = CliRunner().invoke(app, ["variants", "--complexity"])
    assert shown.exit_code == 0
    rows = [line for line in shown.stdout.splitlines() if "56x56" in line]
    assert rows and [cell.strip() for cell in rows[0].strip("│").split("│")] == [
        *("1", "96", "56x56", "0.400", "0.400", "0.398", "0.753", "0.753", "0.725", "0.760"),
    ]
    assert "To its last digit: SepViT, Swin. Not so: Twins." in shown.stdout
    script = (
        "import sys; from sepvit_deploy.cli import run; code = run(['variants', '--complexity', '--json'])\n"
        "assert not code and not {'torch', 'onnx', 'numpy', 'onnxruntime'} & set(sys.modules)"
    )
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    rows = json.loads(child.stdout)["complexity"]
    assert [row["number"] for row in rows] == [1, 2, 3, 4]
    assert rows[3]["published"]["sepvit"] == 0.354
    assert rows[0]["sepvit"] == 400_146_432
