"""Engines from inside: the inspector's JSON of both majors, hand-written, and planted faults of every kind."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sepvit_deploy.errors import AuditFailed, PlanError
from sepvit_deploy.inspection import Attention, Inspection, Total, inspect_engine
from sepvit_deploy.inspector import layers_from_json

HALF_GEMM = "sm80_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize64x64x64_stage4_warpsize2x2x1_tensor16x8x16"
INT8_GEMM = "sm80_xmma_gemm_i8f32_i8i32_f32_tn_n_tilesize64x64x64_stage4_warpsize2x2x1_tensor16x8x32"
FP32_GEMM = "sm80_xmma_gemm_f32f32_f32f32_f32_tn_n_tilesize128x64x8_stage3"
TF32_GEMM = "sm80_xmma_gemm_f32f32_tf32f32_f32_tn_n_tilesize64x64x32_stage4"
MHA = "_gemm_mha_v2_0x957a2fe2"
DWA = "stage0.block0.attention.dwa"
PWA = "stage0.block0.attention.pwa"
SENTENCE = {
    "Half": "Row major linear FP16 format",
    "Float": "Row major linear FP32",
    "Int8": "Thirty-two wide channel vectorized row major Int8 format",
}


def layer(
    name: str, kind: str, nodes: str = "", types: str = "Half Half", kernel: str | None = None, **more: Any
) -> dict[str, Any]:
    """A layer: its nodes apart by spaces, types of its inputs and of its output."""
    *inputs, output = types.split()
    found = {"Name": name, "LayerType": kind, "Inputs": inputs, "Outputs": [output], **more}
    if kernel is not None:
        found["TacticName"] = kernel
    found["StreamId"] = 0
    found["Metadata"] = "\x1f".join(f"[ONNX Layer: {node}]" for node in nodes.split())
    return found


def engine(*, products: str = "Half Half", gemm: str = HALF_GEMM) -> list[dict[str, Any]]:
    """The first block of SepViT and the head, as an FP16 engine has them: DWA in one kernel, PWA in three."""
    linear = {"types": products, "kernel": gemm}
    block = "stage0.block0"
    pwa = f"{PWA}/MatMul {PWA}/Softmax"
    return [
        layer("Reformatting CopyNode for Input Tensor 0 to stem", "Reformat", "", "Float Half"),
        layer("__myl_Cast_myl0_0", "kgen", "images/to_half", "Float Half", "__myl_Cast_0x01"),
        layer("stage0_embed_proj/Conv_myl0_1", "correlation", "stage0.embed.proj/Conv", **linear),
        layer("stage0_block0_attention_dwa_qkv/MatMul_myl0_2", "gemm", f"{DWA}.qkv/MatMul {DWA}.qkv/Add", **linear),
        layer("__myl_TranReshMove_myl0_3", "kgen", f"{DWA}/Reshape {DWA}/Transpose", kernel="__myl_TranReshMove_0x02"),
        layer("_gemm_mha_v2_myl0_4", "kgen", f"{DWA}/MatMul {DWA}/Softmax {DWA}/MatMul_2", "Half Half Half Half", MHA),
        layer("stage0_block0_attention_pwa/MatMul_myl0_5", "gemm", f"{PWA}/MatMul", "Half Half Half", HALF_GEMM),
        layer("__myl_MaxSubExpSumDivMul_myl0_6", "kgen", pwa, "Half Half", "__myl_MaxSubExpSumDivMul_0x03"),
        layer("stage0_block0_attention_pwa/MatMul_2_myl0_7", "gemm", f"{PWA}/MatMul_2", "Half Half Half", HALF_GEMM),
        layer("stage0_block0_mlp_fc1/MatMul_myl0_8", "gemm", f"{block}.mlp.fc1/MatMul {block}.mlp/Gelu", **linear),
        layer("__myl_AddCastMeanSub_myl0_9", "kgen", f"{block}/Add_2 stage1.embed.norm/LayerNormalization", kernel=""),
        layer("head/MatMul_myl0_10", "gemm", "head/MatMul head/Add", "Half Float", HALF_GEMM),
    ]


def tensors(major: int, kinds: list[str], sentences: bool) -> list[dict[str, Any]]:
    found = []
    for number, kind in enumerate(kinds):
        tensor: dict[str, Any] = {"Name": f"t{number}", "Location": "Device", "Dimensions": [1, 196, 64]}
        if major == 10:
            tensor["Format/Datatype"] = SENTENCE.get(kind, kind) if sentences else kind
        else:
            tensor |= {"Format": SENTENCE.get(kind, kind) + " (kLINEAR)", "Datatype": kind}
        found.append(tensor)
    return found


def written(layers: list[Any], major: int = 10, *, sentences: bool = False) -> str:
    """What the inspector of a major gives for these layers."""
    document: dict[str, Any] = {"Layers": []}
    for entry in layers:
        if isinstance(entry, dict):
            entry = entry | {key: tensors(major, entry[key], sentences) for key in ("Inputs", "Outputs")}
        document["Layers"].append(entry)
    if major == 10:
        document["Bindings"] = ["images", "logits"]
    else:
        ends = {"images": "Input", "logits": "Output"}
        document["I/O Tensors"] = [
            {"Name": name, "IOMode": mode, "DataType": "Float", "Dimensions": [-1, 3, 224, 224], "Location": "Device"}
            for name, mode in ends.items()
        ]
        document["ProfilingVerbosity"] = "DETAILED"
    return json.dumps(document)


def inspected(layers: list[Any], major: int = 10, ms: dict[str, float] | None = None, **options: Any) -> Inspection:
    return inspect_engine(written(layers, major, **options), ms or {})


def times(layers: list[dict[str, Any]]) -> dict[str, float]:
    """1 ms for the first layer, 2 ms for the second, ..."""
    return {entry["Name"]: float(number) for number, entry in enumerate(layers, 1)}


# What is read


@pytest.mark.parametrize(("major", "sentences"), [(10, False), (10, True), (11, False)])
def test_an_engine_of_either_major(major: int, sentences: bool) -> None:
    layers = engine()
    found = inspected(layers, major, times(layers), sentences=sentences)
    assert (found.form, found.detailed, found.other_profiles, found.unmatched_ms) == (str(major), True, 0, 0)
    assert [entry.name for entry in found.layers] == [entry["Name"] for entry in layers]
    kinds = "reformat cast convolution matmul movement attention matmul other matmul matmul other matmul"
    assert [entry.kind for entry in found.layers] == kinds.split()
    assert [entry.precision for entry in found.layers] == ["FP32"] * 2 + ["FP16"] * 10
    assert found.layers[3].kernel == HALF_GEMM
    assert found.layers[3].nodes == (f"{DWA}.qkv/MatMul", f"{DWA}.qkv/Add")
    assert found.precisions == {"FP16": Total(10, 75.0, 75 / 78), "FP32": Total(2, 3.0, 3 / 78)}
    assert (found.precision_share("FP16"), found.precision_share("INT8")) == (75 / 78, 0)
    assert (found.of("reformat"), found.of("cast")) == (Total(1, 1.0, 1 / 78), Total(1, 2.0, 2 / 78))
    assert found.of("reformat", "cast", "movement") == Total(3, 8.0, 8 / 78)
    blocks = {name: (total.layers, total.ms) for name, total in found.blocks.items()}
    assert blocks == {"": (2, 3.0), "stage0.embed": (1, 3.0), "stage0.block0": (8, 60.0), "head": (1, 12.0)}
    assert found.attention == (
        Attention("stage0.block0.dwa", "fused", ("_gemm_mha_v2_myl0_4",), 6.0),
        Attention(
            "stage0.block0.pwa",
            "apart",
            (
                "stage0_block0_attention_pwa/MatMul_myl0_5",
                "__myl_MaxSubExpSumDivMul_myl0_6",
                "stage0_block0_attention_pwa/MatMul_2_myl0_7",
            ),
            24.0,
        ),
    )
    found.require("fp16")
    assert Inspection.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found


def test_without_times_shares_are_of_layers() -> None:
    found = inspected(engine())
    assert found.precisions["FP16"] == Total(10, None, 10 / 12)
    assert found.attention[0].ms is None


def test_a_layer_that_was_not_measured_and_a_time_of_no_layer() -> None:
    layers = engine()
    found = inspected(layers, ms={layers[3]["Name"]: 2.0, "[trainStation1]": 0.25, "gone": 0.5})
    assert found.unmatched_ms == 0.75
    assert [entry.ms for entry in found.layers] == [None] * 3 + [2.0] + [None] * 8
    assert found.precisions == {"FP16": Total(10, 2.0, 1.0), "FP32": Total(2, None, 0.0)}


def test_the_time_of_two_layers_of_one_name_is_shared() -> None:
    twice = [layer("a", "gemm"), layer("a", "gemm"), layer("b", "gemm")]
    assert [entry.ms for entry in inspected(twice, ms={"a": 3.0, "b": 1.0}).layers] == [1.5, 1.5, 1.0]


def test_layers_of_another_profile_are_left_out() -> None:
    layers = engine()
    more = [entry | {"Name": f"{entry['Name']} [profile 1]"} for entry in layers[:3]]
    text = written(layers + more)
    first, second = inspect_engine(text, {}), inspect_engine(text, {}, profile=1)
    assert ((len(first.layers), first.other_profiles), (len(second.layers), second.other_profiles)) == (
        (12, 3),
        (3, 12),
    )
    with pytest.raises(PlanError, match="tells of no layer of profile 2; expected one or more"):
        inspect_engine(text, {}, profile=2)


@pytest.mark.parametrize(
    ("kind", "kernel", "nodes", "expected"),
    [
        (
            "CaskConvolution",
            "sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc",
            "stage0.peg/Conv",
            "convolution",
        ),
        ("CaskGemmConvolution", HALF_GEMM, "head/MatMul", "matmul"),
        ("CaskGemmMatrixMultiply", HALF_GEMM, "", "matmul"),
        ("MatrixMultiply", "", "", "matmul"),
        ("fusion", "sm80_xmma_gemm_i8f32_i8i32_f32_by_fusion_tactic", "", "matmul"),
        ("kgen", "__myl_FcAddMul_0x1", "", "matmul"),
        ("correlation", "", "stage0.peg/Conv", "convolution"),
        ("kgen", "_gemv_mha_v1_0x1", "", "attention"),
        ("kgen", "fmha_v2_flash_attention_fp16_S_32_sm80", "", "attention"),
        ("Cast", "", "", "cast"),
        ("kgen", "", "images/to_half", "cast"),
        ("kgen", "", "x/QuantizeLinear x/DequantizeLinear", "cast"),
        ("kgen", "__myl_CasMov_0x1", "stage0.block0/Add", "cast"),
        ("kgen", "__myl_TraResMov_0x1", "stage0.block0/Add", "movement"),
        ("kgen", "__myl_AddMul_0x1", "stage0.block0/Reshape", "other"),
        ("kgen", "", "stage0/Transpose stage0/Reshape_2", "movement"),
        ("Shuffle", "", "", "movement"),
        ("Myelin", "", "stage0.block0/Add", "region"),
        ("Convert", "", "", "other"),
        ("shape_call", "", "", "other"),
        ("never seen", "", "", "other"),
    ],
)
def test_the_kind_of_a_layer(kind: str, kernel: str, nodes: str, expected: str) -> None:
    (found,) = inspected([layer("a", kind, nodes, kernel=kernel)]).layers
    assert found.kind == expected


@pytest.mark.parametrize(
    ("types", "kernel", "expected"),
    [
        ("Half Half", None, "FP16"),
        ("Int8 Half", None, "INT8"),
        ("Int8 Half Half", None, "INT8"),  # a residual is added behind the product
        ("Half Int8 Half", None, "FP16"),
        ("Float Float Half Half Half", None, "FP16"),  # constants stand before the operands
        ("Half Int8 Int8 Half", None, "INT8"),
        ("Half Half", "cutlass3x_sm90_tensorop_s64x128x16gemm_f16_f16_f32_f16_f16_128x128x64", "FP16"),
        ("Half Half", "sm90_tensorop_s64x128x32gemm_s8_s8_s32_f16_f16", "INT8"),
        ("Float Half", "sm50_xmma_cublas_gemvx_f16f16_f32_f16", "FP16"),
        ("Float Half", "cutlass_simt_sgemm_f32_f32_f32", "FP32"),
        ("Int32 Float Half", None, "FP32"),
        ("Int64 Int64", None, "INT64"),
        ("BFloat16 BFloat16", None, "BF16"),
        ("FP8 Half", None, "FP8"),
        ("Nonsense Half", None, "unknown"),
        ("Half", None, "FP16"),  # without inputs, what it gives
        ("Half Half", INT8_GEMM, "INT8"),
        ("Float Float", TF32_GEMM, "TF32"),
        ("Float Float", "cutlass_80_tensorop_s1688gemm_tf32_128x128", "TF32"),
        ("Half Half", FP32_GEMM, "FP32"),
        ("Half Half", "sm50_xmma_cublas_gemvx_f16f16_f32", "FP16"),
        ("FP8 Half", "sm89_xmma_gemm_e4m3f16_e4m3f32_f32_tn", "FP8"),
    ],
)
def test_the_precision_of_a_product(types: str, kernel: str | None, expected: str) -> None:
    for major in (10, 11):
        (found,) = inspected([layer("a", "gemm", types=types, kernel=kernel)], major).layers
        assert found.precision == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Channel major FP16 format where channel % 8 == 0", "FP16"),
        ("Two wide channel vectorized row major FP16 format", "FP16"),
        ("Row major Int8 format", "INT8"),
        ("N/A due to dynamic shapes", "unknown"),
        ("FP32 or FP16", "unknown"),
    ],
)
def test_the_type_that_10_tells_in_a_sentence(text: str, expected: str) -> None:
    document = json.loads(written([layer("a", "gemm")]))
    document["Layers"][0]["Inputs"][0]["Format/Datatype"] = text
    assert inspect_engine(json.dumps(document), {}).layers[0].precision == expected


def test_the_field_as_the_guide_to_11_spells_it() -> None:
    text = written([layer("a", "gemm", types="Int8 Half")], 11).replace('"Datatype"', '"DataType"')
    assert inspect_engine(text, {}).layers[0].precision == "INT8"


def test_metadata_of_local_functions_and_of_truncated_nodes() -> None:
    metadata = "[ONNX Layer: a/MatMul | f (block)]\x1f[ONNX Layer: b/Add][ONNX Layer: a/MatMul][ONNX Layer: cut ..."
    entry = layer("a", "gemm") | {"Metadata": metadata}
    assert inspected([entry]).layers[0].nodes == ("a/MatMul", "b/Add")


def test_a_layer_of_two_blocks_is_of_the_one_that_most_of_it_is_of() -> None:
    nodes = "stage0.block0/Add stage0.block1.norm1/LayerNormalization stage0.block1.norm1/Mul"
    layers = [layer("a", "kgen", nodes), layer("b", "kgen", "stage0.block0/Add stage0.block1/Add")]
    layers += [layer("stage2_block10_mlp_fc1/MatMul_myl0_3", "gemm"), layer("c", "kgen", "norm/ReduceMean")]
    layers += [
        layer("d", "kgen", "stage1/Transpose"),
        layer("e", "kgen", "xstage1.block0/Add"),
        layer("stage1_embedding", "gemm"),
    ]
    places = [entry.place for entry in inspected(layers).layers]
    assert places == ["stage0.block1", "stage0.block0", "stage2.block10", "norm", "stage1", "", ""]


# Attention


def attention(*layers: dict[str, Any]) -> list[tuple[str, str, int]]:
    return [(found.name, found.state, len(found.layers)) for found in inspected(list(layers)).attention]


def test_a_kernel_of_another_name_that_holds_both_products_and_the_softmax_is_fused() -> None:
    nodes = f"{PWA}/MatMul {PWA}/Softmax {PWA}/MatMul_2"
    assert attention(layer("a", "kgen", nodes, kernel="__myl_Whatever_0x1")) == [("stage0.block0.pwa", "fused", 1)]


def test_a_region_hides_what_it_does() -> None:
    nodes = f"{DWA}/MatMul {DWA}/Softmax {DWA}/MatMul_2"
    assert attention(layer("{ForeignNode[a...b]}", "Myelin", nodes)) == [("stage0.block0.dwa", "hidden", 1)]


@pytest.mark.parametrize("nodes", [f"{DWA}/MatMul {DWA}/Softmax", f"{DWA}/MatMul {DWA}/MatMul_2"])
def test_half_a_fusion_is_none(nodes: str) -> None:
    assert attention(layer("a", "kgen", nodes, kernel="__myl_Mul_0x1")) == [("stage0.block0.dwa", "apart", 1)]


def test_what_moves_or_casts_the_operands_of_an_attention_is_no_part_of_it() -> None:
    moved = layer("a", "kgen", f"{DWA}/MatMul", kernel="__myl_TranMove_0x1")
    cast = layer("b", "kgen", f"{DWA}/Softmax", kernel="__myl_CastMove_0x1")
    assert attention(moved, cast, layer("c", "gemm", f"{DWA}/MatMul")) == [("stage0.block0.dwa", "apart", 1)]


def test_products_of_two_blocks_are_no_attention() -> None:
    other = DWA.replace("block0", "block1")
    found = attention(layer("a", "kgen", f"{DWA}/MatMul {DWA}/Softmax {other}/MatMul"))
    assert found == [("stage0.block0.dwa", "apart", 1), ("stage0.block1.dwa", "apart", 1)]


def test_the_linear_layers_beside_it_are_no_part_of_an_attention() -> None:
    assert attention(layer("a", "gemm", f"{DWA}.qkv/MatMul"), layer("b", "gemm", f"{PWA}.qk/MatMul")) == []


def test_a_fused_kernel_without_metadata_is_counted_but_of_no_block() -> None:
    found = inspected([layer("_gemm_mha_v2_myl0_4", "kgen", kernel=MHA)])
    assert (found.attention, found.of("attention").layers, list(found.blocks)) == ((), 1, [""])


def test_a_product_that_no_kernel_of_products_names_is_computed_by_the_layer_that_does() -> None:
    moved = layer("w", "kgen", "stage0.block0.mlp.fc2/MatMul", kernel="__myl_TranMove_0x1")
    only = layer("a", "kgen", "stage0.block0.mlp.fc2/MatMul x/Add", "Float Float", "__myl_SumMul_0x1")
    conv = layer("c", "kgen", "stage0.peg/Conv", kernel="__myl_SumMul_0x2")
    found = inspected([moved, only, conv])
    assert [entry.kind for entry in found.layers] == ["movement", "matmul", "convolution"]
    gemm = layer("b", "gemm", "stage0.block0.mlp.fc2/MatMul")
    assert [entry.kind for entry in inspected([only, gemm]).layers] == ["other", "matmul"]


# The gate


def refused(layers: list[Any], precision: Any, text: str, **options: Any) -> None:
    for major in (10, 11):
        with pytest.raises(AuditFailed, match=f"^{re.escape(text)}$") as caught:
            inspected(layers, major).require(precision, **options)
        assert caught.value.exit_code == 1


def test_an_int8_engine() -> None:
    found = inspected(engine(products="Int8 Half", gemm=INT8_GEMM))
    found.require("int8")
    assert found.precisions["INT8"].layers == 3
    assert inspected(engine(products="Int8 Half", gemm="")).precisions["INT8"].layers == 3


def test_an_engine_without_the_precision_that_was_asked_for() -> None:
    text = "the engine computes no product in INT8; products: 7 in FP16; expected products in INT8"
    refused(engine(), "int8", text)
    text = "sepvit_t.plan computes no product in FP32; products: 7 in FP16; expected products in FP32"
    refused(engine(), "fp32", text, name="sepvit_t.plan")


def test_an_engine_without_products() -> None:
    text = "the engine computes no product in FP16; products: none; expected products in FP16"
    refused([layer("a", "kgen", kernel="__myl_Mul_0x1")], "fp16", text)


@pytest.mark.parametrize(("kernel", "kind"), [(FP32_GEMM, "FP32"), (TF32_GEMM, "TF32")])
def test_one_product_in_fp32_among_many(kernel: str, kind: str) -> None:
    layers = engine()
    layers[9] |= {"TacticName": kernel}
    text = (
        f"the engine computes stage0_block0_mlp_fc1/MatMul_myl0_8 in {kind}; products: 6 in FP16, 1 in {kind}; "
        "expected products in FP16 and none in FP32"
    )
    refused(layers, "fp16", text)
    for allow in ("stage0.block0.mlp.fc1", "*.fc1/MatMul", "stage0.*", "stage0_block0_mlp_fc1*"):
        inspected(layers).require("fp16", allow=["nothing", allow])
    for allow in ("stage1.*", "*/Gelu", "*.mlp"):
        refused(layers, "fp16", text, allow=[allow])


def test_the_names_of_many_products_in_fp32_are_bounded() -> None:
    layers = [layer(f"n{i}" + "x" * 200, "gemm", types="Float Float") for i in range(5)] + [layer("h", "gemm")]
    with pytest.raises(AuditFailed, match=r"xxx and 2 more in FP32; products: 1 in FP16, 5 in FP32; ") as caught:
        inspected(layers).require("fp16")
    assert len(str(caught.value)) < 400


def test_a_product_whose_precision_is_not_told_is_none() -> None:
    layers = [layer("a", "gemm"), layer("b", "gemm", types="what Half")]
    text = "the engine computes b in unknown; products: 1 in FP16, 1 in unknown; expected products in FP16"
    refused(layers, "fp16", f"{text} and none in FP32")


def test_an_fp32_engine_computes_in_fp32_alone() -> None:
    inspected([layer("a", "gemm", types="Float Float")]).require("fp32")
    layers = [layer("a", "gemm", types="Float Float"), layer("b", "gemm", types="Float Float", kernel=TF32_GEMM)]
    text = "the engine computes b in TF32; products: 1 in FP32, 1 in TF32; expected every product in FP32"
    refused(layers, "fp32", text)


def test_an_int8_engine_has_every_product_in_int8_that_its_file_has() -> None:
    nodes = [f"stage0.block0.mlp.{name}/MatMul" for name in ("fc1", "fc2", "fc3", "fc4", "fc5")]
    layers = [layer(f"n{i}", "gemm", node, "Int8 Half") for i, node in enumerate(nodes)]
    inspected(layers).require("int8", quantized=nodes)
    inspected([*layers, layer("h", "gemm", "head/MatMul")]).require("int8", quantized=nodes)
    half = [layer(f"n{i}", "gemm", node, "Int8 Half" if i == 4 else "Half Half") for i, node in enumerate(nodes)]
    text = (
        "the engine is not seen to compute stage0.block0.mlp.fc1/MatMul, stage0.block0.mlp.fc2/MatMul, "
        "stage0.block0.mlp.fc3/MatMul and 1 more in INT8: 4 of the 5 products that its file has in INT8; "
        "expected all of them in INT8"
    )
    refused(half, "int8", text, quantized=nodes)
    nameless = [layer("n", "gemm", "", "Int8 Half")]
    with pytest.raises(AuditFailed, match=r"is not seen to compute stage0\.block0\.mlp\.fc1/MatMul"):
        inspected(nameless).require("int8", quantized=nodes)


def test_where_no_tensor_has_a_type_the_weights_tell() -> None:
    entry = layer("a", "CaskConvolution", "stage0.embed.proj/Conv", "what Half", Weights={"Type": "Half", "Count": 9})
    (found,) = inspected([entry]).layers
    assert found.precision == "FP16"
    (found,) = inspected([entry | {"Weights": ["Half"]}]).layers
    assert found.precision == "unknown"


def test_metadata_apart_by_raw_control_characters() -> None:
    text = written([layer("a", "gemm", "b/MatMul c/Add")])
    raw = text.replace("\\u001f", "\x1f")
    assert raw != text
    assert inspect_engine(raw, {}).layers[0].nodes == ("b/MatMul", "c/Add")


def test_names_alone_prove_nothing() -> None:
    names = [entry["Name"] for entry in engine()]
    text = (
        "the engine tells the names of its layers alone; expected FP16 products; build with ProfilingVerbosity.DETAILED"
    )
    refused(names, "fp16", text)
    found = inspected(names, ms=dict.fromkeys(names, 1.0))
    assert (found.detailed, found.precisions) == (False, {"unknown": Total(12, 12.0, 1.0)})
    assert found.blocks["stage0.block0"].layers == 4
    assert found.of("reformat").layers == 1


@pytest.mark.parametrize("nodes", ["", "stage0.block0.mlp.fc1/MatMul"])
def test_a_region_proves_nothing(nodes: str) -> None:
    text = (
        "what the engine computes in {ForeignNode[a...b]} is not visible; expected kernels, with products in FP16; "
        "build with ProfilingVerbosity.DETAILED"
    )
    refused([*engine(), layer("{ForeignNode[a...b]}", "Myelin", nodes)], "fp16", text)


def test_a_region_without_products_is_let_be() -> None:
    inspected([*engine(), layer("{ForeignNode[a...b]}", "Myelin", "stage0/Transpose")]).require("fp16")


# What is no inspector's JSON, and no inspection


def both(document: dict[str, Any]) -> str:
    return json.dumps(document)


LAYER = {"Name": "a", "LayerType": "gemm"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "gives no JSON (Expecting value"),
        ("[" * 100_000, "gives no JSON ("),
        ("9" * 10_000, "gives no JSON ("),
        ("[]", "gives a list; expected a JSON object"),
        ("null", "gives a NoneType"),
        ("{}", "gives nothing; expected 'Bindings' (TensorRT 10) or 'I/O Tensors' (TensorRT 11)"),
        (both({"Layers": [LAYER]}), "gives 'Layers'; expected 'Bindings'"),
        (both({"Layers": [LAYER], "Bindings": [], "I/O Tensors": []}), "gives 'Layers', 'Bindings', 'I/O Tensors'; "),
        (both({"Layers": [LAYER], "Bindings": {}}), "gives 'Layers', 'Bindings'; "),
        (both({"Bindings": []}), "gives no list of 'Layers'; expected one or more"),
        (both({"Layers": [], "Bindings": []}), "gives no layers; expected one or more; build with ProfilingVerbosity"),
        (both({"Layers": {}, "Bindings": []}), "gives no list of 'Layers'"),
        (both({"Layers": [LAYER, "a"], "Bindings": []}), "gives names and objects as layers; expected one of them"),
        (both({"Layers": [3], "Bindings": []}), "gives layer 0 as 3; expected a name or an object"),
        (
            both({"Layers": [LAYER, {"Name": "a"}], "Bindings": []}),
            "gives layer 1 with LayerType None; expected a text",
        ),
        (both({"Layers": [LAYER | {"Name": 3}], "Bindings": []}), "gives layer 0 with Name 3"),
        (both({"Layers": [LAYER | {"Metadata": []}], "Bindings": []}), "gives layer 0 with Metadata []"),
        (both({"Layers": [LAYER | {"TacticName": None}], "Bindings": []}), "gives layer 0 with TacticName None"),
        (
            both({"Layers": [LAYER | {"Inputs": None}], "Bindings": []}),
            "gives layer 0 with Inputs None; expected a list",
        ),
        (
            both({"Layers": [LAYER | {"Inputs": [{"Datatype": "Half"}]}], "Bindings": []}),
            "gives layer 0 with Inputs {'Datatype': 'Half'}; expected 'Format/Datatype' of each tensor",
        ),
        (
            both({"Layers": [LAYER | {"Outputs": [{"Format/Datatype": "Half"}]}], "I/O Tensors": []}),
            "gives layer 0 with Outputs {'Format/Datatype': 'Half'}; expected 'Datatype' of each tensor",
        ),
        (both({"Layers": [LAYER | {"Inputs": ["t0"]}], "Bindings": []}), "gives layer 0 with Inputs 't0'"),
        (
            both({"Layers": [LAYER | {"Inputs": [{"Format/Datatype": 1}]}], "Bindings": []}),
            "gives layer 0 with Inputs {'F",
        ),
    ],
)
def test_what_has_no_known_form(text: str, words: str) -> None:
    with pytest.raises(PlanError, match=f"^the engine inspector {re.escape(words)}") as caught:
        inspect_engine(text, {})
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("ms", [-1.0, float("nan"), float("inf"), "1", None, True, 1e300])
def test_a_time_that_is_none(ms: Any) -> None:
    with pytest.raises(PlanError, match=r"^layer a took .* ms; expected 0 or more, and finite$"):
        inspect_engine(written([layer("a", "gemm")]), {"a": ms})


def test_a_layer_without_lists_of_tensors() -> None:
    found = inspect_engine(both({"Layers": [LAYER], "Bindings": []}), {})
    assert (found.layers[0].kind, found.layers[0].precision) == ("matmul", "unknown")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
NODES = st.sampled_from([f"{DWA}/MatMul", f"{DWA}/Softmax", f"{DWA}/MatMul_2", "head/MatMul", "a/Add", "", "/", "]"])
TENSOR = st.fixed_dictionaries({"Format/Datatype": st.sampled_from(["Half", "Float", "Int8", "odd"]) | st.text()})
LIKELY = st.fixed_dictionaries(
    {
        "Name": st.sampled_from(["{ForeignNode[a]}", "a [profile 1]", "__myl_Fc", "stage0.block0"]) | st.text(),
        "LayerType": st.sampled_from(["gemm", "kgen", "Reformat", "Myelin"]) | st.text(),
    },
    optional={
        "TacticName": st.sampled_from([MHA, HALF_GEMM, "__myl_Cast_0x1"]) | st.text(),
        "Metadata": st.lists(NODES).map(lambda nodes: "".join(f"[ONNX Layer: {node}]" for node in nodes)) | st.text(),
        "Inputs": st.lists(TENSOR, max_size=3) | VALUES,
        "Outputs": st.lists(TENSOR, max_size=2),
    },
)
DOCUMENTS = VALUES | st.fixed_dictionaries(
    {"Layers": st.lists(LIKELY, max_size=4) | st.lists(LIKELY | VALUES, max_size=4)},
    optional={"Bindings": st.just([]) | VALUES, "I/O Tensors": VALUES},
)


@settings(deadline=None, max_examples=150)
@given(document=DOCUMENTS, ms=st.floats(0, 1e9), precision=st.sampled_from(["fp32", "fp16", "int8"]))
def test_any_json_is_an_inspection_or_refused(document: Any, ms: float, precision: Any) -> None:
    text = json.dumps(document)
    try:
        _, layers = layers_from_json(text)
        found = inspect_engine(text, {layer.name: ms for layer in layers[:2]})
    except PlanError as error:
        assert "\n" not in str(error)
        return
    assert Inspection.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found
    totals = (found.precisions, found.blocks)
    assert all(sum(total.layers for total in each.values()) == len(found.layers) for each in totals)
    assert all(sum(total.share for total in each.values()) == pytest.approx(1) for each in totals)
    assert {name for entry in found.attention for name in entry.layers} <= {entry.name for entry in found.layers}
    try:
        found.require(precision)
    except AuditFailed as error:
        assert "\n" not in str(error)


@settings(deadline=None, max_examples=60)
@given(text=st.text(max_size=60))
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(PlanError):
        inspect_engine(text, {})


BAD_RECORDS: list[tuple[Any, str]] = [
    ({}, "no Inspection, which has form, detailed"),
    ([], "no Inspection"),
    ({"form": "9"}, "form of Inspection is '9'"),
    ({"form": ["10"]}, "form of Inspection is"),
    ({"detailed": 1}, "detailed of Inspection is 1"),
    ({"layers": []}, "layers of Inspection is []"),
    ({"layers": [{}]}, "no EngineLayer, which has name, kind"),
    ({"other_profiles": True}, "other_profiles of Inspection is True"),
    ({"unmatched_ms": -1}, "unmatched_ms of Inspection is -1"),
    ({"more": 1}, "no Inspection"),
]
BAD_LAYERS: list[tuple[Any, str]] = [
    ({"name": 1}, "name of EngineLayer is 1"),
    ({"kind": "gemm"}, "kind of EngineLayer is 'gemm'"),
    ({"nodes": "a"}, "nodes of EngineLayer is 'a'"),
    ({"nodes": [1]}, "nodes of EngineLayer is [1]"),
    ({"ms": "1"}, "ms of EngineLayer is '1'"),
    ({"more": 1}, "no EngineLayer"),
]


@pytest.mark.parametrize(("change", "words"), BAD_RECORDS)
def test_what_is_no_inspection(change: Any, words: str) -> None:
    values = inspected(engine()).to_dict() | change if isinstance(change, dict) and change else change
    with pytest.raises((TypeError, ValueError), match=re.escape(words)):
        Inspection.from_dict(values)


@pytest.mark.parametrize(("change", "words"), BAD_LAYERS)
def test_what_is_no_layer_of_an_inspection(change: dict[str, Any], words: str) -> None:
    values = inspected(engine()).to_dict()
    values["layers"][0] |= change
    with pytest.raises((TypeError, ValueError), match=re.escape(words)):
        Inspection.from_dict(values)
