"""The manifest of a target's bundle says what its graphs hold: read from the graphs here."""

import dataclasses

import pytest
from onnx import TensorProto as T

from vlmedge.export.lowering.coverage import list_coverage, list_precisions
from vlmedge.runtime.bundle.manifest import CoverageEntry
from vlmedge.runtime.bundle.manifest_file import read_manifest

GRAPHS = ("vision", "vision_video", "decoder")
COMPUTE = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
CASES = [
    *(("checkpoint", "jetpack-6.2", dtype) for dtype in COMPUTE),
    ("orin", "jetpack-6.2", "bf16"),
    ("orin", "tensorrt-rtx", "bf16"),
    ("accurate", "tensorrt-rtx", "bf16"),
    ("cpu", "jetpack-6.2", "bf16"),
    ("smallest", "tensorrt-rtx", "bf16"),
    ("thor", "jetpack-7.0", "bf16"),
    ("qdq", "jetpack-6.2", "bf16"),
    ("signed", "jetpack-6.2", "bf16"),
    ("fp8-attention", "jetpack-7.2", "fp16"),
]


@pytest.fixture(params=CASES, ids="-".join)
def case(request):
    return request.param


def describe_linears(model, compute):
    """Layer -> (bits or type, block size or None) of its matrix in a graph."""
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    names = {T.INT8: "int8", T.INT4: "int4", T.FLOAT8E4M3FN: "float8_e4m3fn"}
    names |= {T.FLOAT: "float32", T.FLOAT16: "float16", T.BFLOAT16: "bfloat16"}
    found = {}
    for node in model.graph.node:
        if node.op_type != "Gemm":
            continue
        maker = makers.get(node.input[1])
        weight = node.input[1] if maker is None else maker.input[0]
        blocks = [a.i for a in (maker.attribute if maker else ()) if a.name == "block_size"]
        name = weight.partition(".weight")[0]
        found[name] = (names[kinds[weight]], blocks[0] if blocks else None)
    return found


def test_every_linear_is_covered_with_what_its_matrix_is(case, lower, load_graph):
    bundle = lower(*case)
    manifest = read_manifest(bundle)
    for graph in GRAPHS:
        held = describe_linears(load_graph(bundle, graph), COMPUTE[case[2]])
        said = {e.name: e for e in manifest.coverage if e.graph == graph and e.kind == "linear"}
        assert held.keys() == said.keys()
        for name, (kind, block_size) in held.items():
            words = said[name].precision.split()
            assert words[0] == kind, name
            if block_size is not None:
                # A longer block of a recipe is several shorter ones of one scale.
                assert int(words[-1]) % block_size == 0
                assert words[1] == "block"
            elif kind == "int8":
                assert words[1:] in (["static"], ["dynamic"], ["per", "row"])


def test_entries_are_those_of_the_source_in_its_order(case, get_source, lower):
    source = get_source("fp32" if case[0] == "checkpoint" else case[0])
    old, new = (read_manifest(bundle).coverage for bundle in (source, lower(*case)))
    assert [(e.name, e.kind, e.graph) for e in old] == [(e.name, e.kind, e.graph) for e in new]


def test_attention_and_cache_are_in_the_compute_type_unless_fp8(case, lower):
    compute = COMPUTE[case[2]]
    for entry in read_manifest(lower(*case)).coverage:
        if entry.kind == "kv_cache":
            assert entry.precision == compute
        if entry.kind == "attention":
            is_fp8 = case[0] == "fp8-attention" and entry.graph != "decoder"
            assert entry.precision == ("float8_e4m3fn" if is_fp8 else compute)


def test_precisions_name_what_is_stored_for_every_tensor(case, get_source, lower):
    source = get_source("fp32" if case[0] == "checkpoint" else case[0])
    old, new = (read_manifest(bundle) for bundle in (source, lower(*case)))
    assert old.precision.keys() == new.precision.keys()
    compute = COMPUTE[case[2]]
    kept = {"model.embed_tokens.weight": old.precision["model.embed_tokens.weight"]}
    kept["visual.patch_embed.proj.weight"] = "float32"
    for name, precision in new.precision.items():
        if name in kept:
            assert precision == kept[name]
        elif "norm" in name or "ln_q" in name:
            assert precision == "float32"
        elif name.endswith(".bias"):
            assert precision == compute, name
    by_layer = {e.name: e.precision for e in new.coverage if e.kind == "linear"}
    for name, precision in by_layer.items():
        prefix, _, parts = name.rpartition(".")
        for part in parts.split("+"):
            tensor = f"{prefix}.{part}.weight".removeprefix(".")
            assert new.precision[tensor] == precision, tensor


def test_norms_are_stored_as_float32(lower, load_graph):
    for dtype in ("fp16", "bf16"):
        model = load_graph(lower("checkpoint", "jetpack-6.2", dtype), "decoder")
        norms = [t for t in model.graph.initializer if "norm" in t.name]
        assert norms
        assert {t.data_type for t in norms} == {T.FLOAT}


def test_a_note_of_the_target_replaces_what_the_recipe_said(get_source):
    manifest = read_manifest(get_source("orin"))
    layer = "model.layers.0.self_attn.q_proj+k_proj+v_proj"
    notes = {layer: ("int8 per row", "why")}
    (entry,) = (e for e in list_coverage(manifest, "bfloat16", notes) if e.name == layer)
    assert entry == CoverageEntry(layer, "linear", "decoder", "int8 per row", "why")
    precisions = list_precisions(manifest, "bfloat16", notes)
    changed = {name for name, kind in precisions.items() if kind == "int8 per row"}
    assert changed == {f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"}


def test_the_table_is_the_hosts_and_keeps_its_precision(get_source):
    for name in ("orin", "thor", "fp32"):
        manifest = read_manifest(get_source(name))
        (old,) = (e for e in manifest.coverage if e.kind == "table")
        (new,) = (e for e in list_coverage(manifest, "float16", {}) if e.kind == "table")
        assert dataclasses.asdict(new) == dataclasses.asdict(old)
