"""The manifest is the one file of a bundle that is parsed before anything is trusted."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmedge.runtime.bundle.embedding_table import EmbeddingTable, RowScales
from vlmedge.runtime.bundle.manifest import (
    MANIFEST_NAME,
    CoverageEntry,
    DecoderSpec,
    FileRecord,
    GenerationDefaults,
    GraphSpec,
    Manifest,
    PixelBudget,
    QuantizationRecord,
    Source,
    TensorSpec,
    TokenIds,
    VisionSpec,
)
from vlmedge.runtime.bundle.manifest_file import (
    MAX_MANIFEST_BYTES,
    SCHEMA_VERSION,
    parse_manifest,
    read_manifest,
    to_json,
)
from vlmedge.runtime.bundle.manifest_seal import seal_manifest
from vlmedge.runtime.errors import BundleError

FILES = ("embed.bin", "tokenizer.json", "chat_template.jinja", "vision.onnx", "decoder.onnx")


def make_manifest() -> Manifest:
    pixels = TensorSpec("pixel_values", "uint8", ("num_images", "num_patches", 588))
    return Manifest(
        schema_version=SCHEMA_VERSION,
        created_by="vlmedge 0.1.0",
        family="qwen2_vl",
        flavor="onnxruntime",
        source=Source("tiny", {"config.json": "0" * 64}),
        vision=VisionSpec(2, 64, 4, 14, 2, 2),
        decoder=DecoderSpec(2, 64, 4, 2, 16, 512, 2048),
        tokens=TokenIds(500, 501, 502, 503, (504, 505), 504),
        pixels=PixelBudget(3136, 1003520, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        generation=GenerationDefaults(
            max_new_tokens=9,
            stop_strings=("\n\n",),
            bad_words_ids=((1, 2), (3,)),
            sequence_bias=(((4,), -2.5),),
            exponential_decay_length_penalty=(2, 1.5),
            suppress_tokens=(5,),
            top_h=0.5,
        ),
        mrope_rule="paper",
        embedding=EmbeddingTable(
            "embed.bin", "int8", (512, 64), RowScales("rows", "embed.bin", 32768)
        ),
        tokenizer_file="tokenizer.json",
        chat_template_file="chat_template.jinja",
        graphs={
            "vision": GraphSpec("vision.onnx", (pixels,), ()),
            "decoder": GraphSpec("decoder.onnx", (), ()),
        },
        precision={"lm_head.weight": "int8 block 64"},
        coverage=(
            CoverageEntry("lm_head", "linear", "decoder", "int8 block 64", "weights option"),
            CoverageEntry("model.embed_tokens", "table", None, "int8 rows", "recipe"),
        ),
        quantization=QuantizationRecord("orin", "[vision]\n", "set", "c" * 64, {"onnx": "1.19"}),
        files={name: FileRecord(4, "ab" * 32) for name in FILES},
    )


RAW = json.loads(to_json(make_manifest()))
RAW.pop("checksum")


def generation(**values):
    """A manifest's generation with these values."""
    return {"generation": RAW["generation"] | values}


def list_places(value, place=()):
    """Every place in nested JSON."""
    yield place
    if isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, item in value.items():
            yield from list_places(item, (*place, key))


PLACES = [place for place in list_places(RAW) if place]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(
        ["../x", "/etc/passwd", "a\\b", "", "embed.bin", "0" * 64, -1, 0, 2**63, 10**400]
    )
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def test_a_manifest_survives_being_written_and_read():
    assert parse_manifest(to_json(make_manifest())) == make_manifest()


@settings(max_examples=400, deadline=None)
@given(place=st.sampled_from(PLACES), action=st.sampled_from(["set", "drop", "add"]), value=VALUES)
def test_a_changed_manifest_is_read_or_a_bundle_error(place, action, value):
    raw = json.loads(json.dumps(RAW))
    parent = raw
    for key in place[:-1]:
        parent = parent[key]
    if action == "set":
        parent[place[-1]] = value
    elif action == "drop":
        del parent[place[-1]]
    elif isinstance(parent, dict):
        parent["surprise"] = value
    else:
        parent.append(value)
    try:
        manifest = parse_manifest(seal_manifest(raw))
    except BundleError:
        pass
    else:  # still a manifest: then nothing of it may have the wrong type or leave the bundle
        assert parse_manifest(to_json(manifest)) == manifest
        assert all(not name.startswith(("/", "..")) for name in manifest.files)


@settings(max_examples=200)
@given(st.text() | VALUES.map(json.dumps))
def test_any_other_text_is_a_bundle_error(text):
    with pytest.raises(BundleError):
        parse_manifest(text)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=20), cut=st.integers(0, 2000))
def test_any_bytes_in_the_file_are_a_bundle_error(tmp_path_factory, data, cut):
    folder = tmp_path_factory.mktemp("bundle")
    text = to_json(make_manifest()).encode()
    (folder / MANIFEST_NAME).write_bytes(text[:cut] + data)
    with pytest.raises(BundleError):
        read_manifest(folder)


@pytest.mark.parametrize("text", ["[" * 200_000, "1" * 5_000, '{"schema_version": 1e999}'])
def test_json_made_to_break_parsers_is_a_bundle_error(text):
    with pytest.raises(BundleError):
        parse_manifest(text)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"schema_version": 1}, "schema version 1, .*export it again"),
        ({"schema_version": 3.0}, "schema_version is 3.0, needed int"),
        ({"schema_version": True}, "schema version True"),
        ({"family": "llava"}, "qwen2_vl"),
        ({"mrope_rule": "mine"}, "paper"),
        ({"tokenizer_file": "other.json"}, "other.json"),
        ({"files": RAW["files"] | {"../x": {"bytes": 1, "sha256": "0" * 64}}}, "leaves the bundle"),
        ({"files": RAW["files"] | {"/x": {"bytes": 1, "sha256": "0" * 64}}}, "leaves the bundle"),
        ({"files": RAW["files"] | {"x": {"bytes": 1, "sha256": "0"}}}, "malformed"),
        ({"graphs": {"vision": RAW["graphs"]["vision"]}}, "no decoder graph"),
        ({"embedding": RAW["embedding"] | {"shape": [512, 32]}}, "decoder needs"),
        ({"embedding": RAW["embedding"] | {"packing": None}}, "embedding: .*int8 cannot have no"),
        ({"embedding": RAW["embedding"] | {"dtype": "uint8"}}, "uint8 cannot have rows"),
        ({"embedding": RAW["embedding"] | {"dtype": "float16"}}, "float16 cannot have rows"),
        ({"embedding": RAW["embedding"] | {"offset": -1}}, "negative"),
        (
            {"embedding": RAW["embedding"] | {"packing": {"layout": "rows", "scales_file": "x"}}},
            "names the file x",
        ),
        ({"embedding": RAW["embedding"] | {"packing": {"layout": "rows"}}}, "lacks: scales_file"),
        ({"embedding": RAW["embedding"] | {"packing": {"layout": "ell"}}}, "RowScales or Blocks"),
        ({"coverage": [RAW["coverage"][0] | {"graph": "audio"}]}, "audio"),
        ({"coverage": [RAW["coverage"][0] | {"kind": "norm"}]}, r"coverage\[0\].kind is 'norm'"),
        ({"coverage": RAW["coverage"][:1] * 2}, "twice"),
        ({"quantization": RAW["quantization"] | {"data_sha256": "0"}}, "data_sha256"),
        ({"quantization": RAW["quantization"] | {"versions": {"onnx": 1}}}, r"versions\.onnx is 1"),
        ({"pixels": RAW["pixels"] | {"min_pixels": 10**9}}, "pixel budget"),
        ({"pixels": RAW["pixels"] | {"image_std": [0, 1, 1]}}, "image_std"),
        ({"decoder": RAW["decoder"] | {"head_dim": 0}}, "head_dim"),
        (generation(suppress_tokens=[512]), "generation.suppress_tokens holds 512"),
        (generation(begin_suppress_tokens=[-1]), "generation.begin_suppress_tokens holds -1"),
        (generation(bad_words_ids=[[]]), "bad_words_ids holds a sequence without"),
        (generation(bad_words_ids=[[1]] * 10_001), "10001 sequences"),
        (generation(sequence_bias=[[[1], "x"]]), "sequence_bias.* is 'x'"),
        (generation(sequence_bias=[[[600], 1.0]]), "sequence_bias holds 600"),
        (generation(no_repeat_ngram_size=-1), "no_repeat_ngram_size is -1"),
        (generation(max_new_tokens=0), "max_new_tokens is 0"),
        (generation(min_p=1.5), "min_p is 1.5"),
        (generation(top_h=0), "top_h is 0"),
        (generation(repetition_penalty=0), "repetition_penalty is 0"),
        (generation(exponential_decay_length_penalty=[1, 1000]), "up to 100"),
        (generation(stop_strings=[""]), "empty string"),
        (generation(stop_strings=["\x1b[31m"]), r"stop_strings\[0\] holds the character U\+001B"),
        (generation(typo=1), "typo"),
        ({"extra": 1}, "extra"),
    ],
)
def test_what_is_wrong_is_named(change, word):
    with pytest.raises(BundleError, match=word):
        parse_manifest(seal_manifest(RAW | change))


def test_a_bundle_that_knows_no_newer_settings_answers_without_them():
    old = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")
    raw = RAW | {"generation": {name: RAW["generation"][name] for name in old}}
    assert parse_manifest(seal_manifest(raw)).generation == GenerationDefaults()


def write_bundle(folder):
    for name in FILES:
        (folder / name).write_bytes(b"1234")
    (folder / MANIFEST_NAME).write_text(to_json(make_manifest()))


def test_a_whole_bundle_is_read(tmp_path):
    write_bundle(tmp_path)
    assert read_manifest(tmp_path) == make_manifest()
    assert read_manifest(str(tmp_path)) == make_manifest()


def test_missing_and_cut_files_are_named(tmp_path):
    write_bundle(tmp_path)
    (tmp_path / "embed.bin").write_bytes(b"123")
    with pytest.raises(BundleError, match=r"embed\.bin has 3 bytes, the manifest says 4"):
        read_manifest(tmp_path)
    (tmp_path / "embed.bin").unlink()
    with pytest.raises(BundleError, match=r"lacks the file embed\.bin"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST_NAME).unlink()
    with pytest.raises(BundleError, match=MANIFEST_NAME):
        read_manifest(tmp_path)
    with pytest.raises(BundleError, match="no such directory"):
        read_manifest(tmp_path / "none")


def test_a_manifest_of_absurd_size_is_not_read(tmp_path):
    write_bundle(tmp_path)
    with (tmp_path / MANIFEST_NAME).open("ab") as file:
        file.truncate(MAX_MANIFEST_BYTES + 2)
    with pytest.raises(BundleError, match="not a vlmedge manifest"):
        read_manifest(tmp_path)


def test_contracts_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_manifest().family = "other"
