"""What lies where a bundle or a checkpoint was wanted is named, with what to do."""

import zipfile

import pytest

from vlmedge.runtime import BundleError, Model
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.files.path_kind import explain_no_bundle, explain_no_checkpoint


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "my reader"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_a_checkpoint_where_a_bundle_is_wanted_gets_the_command_that_exports_it(checkpoint):
    with pytest.raises(BundleError) as caught:
        Model.load(checkpoint)
    assert "is a checkpoint, not a bundle" in str(caught.value)
    assert f"vlmedge export '{checkpoint}' 'my reader.bundle'" in str(caught.value)


def test_what_looks_like_a_hub_id_gets_the_command_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = explain_no_bundle("Qwen/Qwen2-VL-2B-Instruct")
    assert "no such directory" in text
    assert "vlmedge export Qwen/Qwen2-VL-2B-Instruct Qwen2-VL-2B-Instruct.bundle" in text
    assert "vlmedge export" not in explain_no_bundle("no/such/place")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.gguf", b"GGUF\3\0\0\0", "GGUF file of llama.cpp"),
        ("blob", b"GGUF\3\0\0\0", "GGUF file of llama.cpp"),
        ("vision.engine", b"ftrt", "TensorRT engine"),
        ("decoder.onnx", b"\x08\x08", "ONNX graph"),
        ("bundle.tar", b"", "is an archive"),
        ("bundle.tar.gz", b"\x1f\x8b\x08", "is a compressed archive"),
        ("model.safetensors", b"", "file of weights"),
        ("notes.txt", b"hello", "is a file, not a"),
    ],
)
def test_a_file_is_named_for_what_it_is(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    for text in (explain_no_bundle(path), explain_no_checkpoint(path)):
        assert text is not None
        assert said in text
        assert str(path) in text


def test_a_zip_is_told_by_its_content(tmp_path):
    path = tmp_path / "bundle"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("manifest.json", "{}")
    assert "zip archive" in explain_no_bundle(path)


def test_a_file_of_a_bundle_or_checkpoint_leads_to_its_folder(tmp_path, checkpoint):
    (tmp_path / "manifest.json").write_text("{}")
    assert f"give its folder, {tmp_path}" in explain_no_bundle(tmp_path / "manifest.json")
    assert f"give its folder, {checkpoint}" in explain_no_bundle(checkpoint / "config.json")
    assert f"give its folder, {checkpoint}" in str(
        explain_no_checkpoint(checkpoint / "model.safetensors")
    )


def test_a_folder_around_or_inside_a_bundle_leads_to_the_bundle(tmp_path, monkeypatch):
    engines = tmp_path / "reader.bundle" / "engines" / "a-set"
    engines.mkdir(parents=True)
    (tmp_path / "reader.bundle" / "manifest.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert "give one of reader.bundle" in explain_no_bundle(".")
    assert explain_no_bundle("reader.bundle/engines").endswith("give reader.bundle")
    assert explain_no_bundle("reader.bundle/engines/a-set").endswith("give reader.bundle")


def test_a_bundle_where_a_checkpoint_is_wanted_gets_the_commands_for_bundles(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    text = explain_no_checkpoint(tmp_path)
    assert text is not None
    assert "--target" in text
    assert "vlmedge quantize" in text


def test_a_folder_of_the_hubs_cache_leads_to_its_snapshot(tmp_path):
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert str(snapshot) in str(explain_no_checkpoint(tmp_path))


def test_an_adapter_leads_to_the_export_that_merges_it(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert f"vlmedge export {tmp_path}" in explain_no_bundle(tmp_path)
    assert "vlmedge export merges it" in str(explain_no_checkpoint(tmp_path))


def test_an_empty_folder_says_what_is_missing(tmp_path):
    with pytest.raises(BundleError, match=r"no manifest.json; vlmedge export makes bundles"):
        read_manifest(tmp_path)
    assert explain_no_checkpoint(tmp_path) is None  # the reader of config.json says the rest
