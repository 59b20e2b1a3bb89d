"""What is lowered, and the embedding table that goes along: its rows in a file of their own."""

import hashlib
import json
import shutil

import numpy as np
import pytest

from vlmedge.export.lowering.source import open_source
from vlmedge.runtime.bundle.embeddings import Embeddings
from vlmedge.runtime.bundle.manifest import MANIFEST_NAME
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.bundle.manifest_seal import seal_manifest
from vlmedge.runtime.errors import BundleError

# The tables that there are: the checkpoint's, blocks of the lm_head, INT8 rows, FP8 rows.
TABLES = {
    "checkpoint": "bfloat16",
    "fp16": "bfloat16",
    "accurate": "bfloat16",
    "orin": "int8 block 128",
    "qdq": "int8 rows",
    "thor": "float8_e4m3fn rows",
}
TARGETS = {"thor": "jetpack-7.0"}


def gather(bundle):
    """Every row of a bundle's table."""
    manifest = read_manifest(bundle)
    rows, size = manifest.embedding.shape
    out = np.zeros((rows, size), np.float32)
    Embeddings(bundle, manifest.embedding).gather(np.arange(rows), out)
    return out


@pytest.mark.parametrize("name", TABLES)
def test_every_row_of_the_table_is_what_it_was(get_source, lower, name):
    bundle = lower(name, TARGETS.get(name, "jetpack-6.2"), "bf16")
    source = get_source("fp32" if name == "checkpoint" else name)
    assert read_manifest(bundle).embedding.description == TABLES[name]
    got = gather(bundle)
    assert np.abs(got).max() > 0.01
    assert got.tobytes() == gather(source).tobytes()


@pytest.mark.parametrize("name", TABLES)
def test_the_table_lies_alone_in_its_file(lower, name):
    bundle = lower(name, TARGETS.get(name, "jetpack-6.2"), "bf16")
    manifest = read_manifest(bundle)
    table = manifest.embedding
    assert set(table.files) == {"embedding.bin"}
    codes = {"int8 block 128": 320 * 128, "int8 rows": 320 * 128, "float8_e4m3fn rows": 320 * 128}
    least = codes.get(TABLES[name], 2 * 320 * 128) + (0 if TABLES[name] == "bfloat16" else 4 * 320)
    assert least <= manifest.files["embedding.bin"].bytes <= least + 4096
    for graph in manifest.graphs.values():
        assert b"embedding.bin" not in (bundle / graph.file).read_bytes()


def test_a_bundle_and_the_checkpoint_that_it_was_made_of_give_one_result(lower):
    # The fp32 bundle holds the checkpoint's numbers, only wider.
    for target in ("jetpack-6.2", "jetpack-7.2"):
        for dtype in ("fp32", "fp16", "bf16"):
            one, two = (lower(source, target, dtype) for source in ("checkpoint", "fp32"))
            a, b = read_manifest(one), read_manifest(two)
            assert (a.graphs, a.precision, a.coverage) == (b.graphs, b.precision, b.coverage)
            assert (a.embedding, a.target, a.tokens) == (b.embedding, b.target, b.tokens)
            for name in a.files:
                assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_texts_are_those_of_the_source(get_source, lower):
    source = read_manifest(get_source("orin"))
    for name in (source.tokenizer_file, source.chat_template_file):
        old, new = (b / name for b in (get_source("orin"), lower("orin", "jetpack-6.2", "bf16")))
        assert old.read_bytes() == new.read_bytes()


def test_the_manifest_keeps_what_the_model_is_and_how_it_was_quantized(get_source, lower):
    old, new = map(read_manifest, (get_source("orin"), lower("orin", "jetpack-6.2", "bf16")))
    for field in ("vision", "decoder", "tokens", "pixels", "generation", "mrope_rule", "source"):
        assert getattr(old, field) == getattr(new, field)
    assert old.quantization is not None
    assert new.quantization == old.quantization


def test_hashes_of_a_checkpoint_are_taken(get_source, lower):
    folder = get_source("checkpoint")
    hashes = read_manifest(lower("checkpoint", "jetpack-6.2", "bf16")).source.sha256
    assert set(hashes) == {"config.json", *(path.name for path in folder.glob("*.safetensors"))}
    for name, digest in hashes.items():
        assert digest == hashlib.sha256((folder / name).read_bytes()).hexdigest()


def test_a_bundle_for_a_tensorrt_is_refused_with_what_to_give(lower):
    with pytest.raises(ValueError, match=r"is for jetpack-6\.2 already: give the checkpoint"):
        open_source(lower("checkpoint", "jetpack-6.2", "bf16"))


def test_a_damaged_bundle_is_told(get_source, tmp_path):
    bundle = shutil.copytree(get_source("orin"), tmp_path / "bundle")
    (bundle / "decoder.onnx").write_bytes(b"\xff" * (bundle / "decoder.onnx").stat().st_size)
    with pytest.raises(BundleError, match=r"decoder\.onnx is damaged"):
        open_source(bundle)
    raw = json.loads((bundle / MANIFEST_NAME).read_text())
    (bundle / MANIFEST_NAME).write_text(seal_manifest(raw | {"flavour": 1}))
    with pytest.raises(BundleError, match="flavour"):
        open_source(bundle)


def test_neither_bundle_nor_checkpoint_is_told(tmp_path):
    with pytest.raises(ValueError, match="neither a directory nor a hub id"):
        open_source(tmp_path / "none")
