import sys
import types

import pytest

from vlmedge.quant.data.hub import find_files


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def found(folder, source, pattern="en/dev-*.parquet"):
    return [p.relative_to(folder).as_posix() for p in find_files("x", str(source), pattern)]


def test_a_file_is_itself_whatever_its_name(tmp_path):
    touch(tmp_path, "a.bin")
    assert found(tmp_path, tmp_path / "a.bin") == ["a.bin"]


def test_a_folder_is_searched_for_the_split_in_the_order_of_names(tmp_path):
    touch(tmp_path, "en/dev-1.parquet", "en/dev-0.parquet", "en/test-0.parquet", "cn/dev-0.parquet")
    files = ["en/dev-0.parquet", "en/dev-1.parquet"]
    assert found(tmp_path, tmp_path) == files  # the repository: not the other language
    assert found(tmp_path, tmp_path / "en") == files  # its folder


def test_a_folder_without_the_split_is_an_error(tmp_path):
    touch(tmp_path, "en/test-0.parquet")
    with pytest.raises(ValueError, match=r"has no en/dev-\*\.parquet in it"):
        find_files("x", str(tmp_path), "en/dev-*.parquet")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that answers as it is told."""
    calls = []

    def snapshot_download(name, **options):
        calls.append((name, options))
        if name == "some/one":
            touch(tmp_path, "en/dev-0.parquet")
            return str(tmp_path)
        raise ConnectionError("no way to the hub\nand more")

    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = snapshot_download  # pyright: ignore
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return calls


def test_a_hub_id_downloads_the_split_s_files_and_no_others(hub, tmp_path):
    assert found(tmp_path, "some/one") == ["en/dev-0.parquet"]
    assert hub == [("some/one", {"repo_type": "dataset", "allow_patterns": ["en/dev-*.parquet"]})]


def test_an_unreachable_hub_is_one_line_of_advice(hub):
    with pytest.raises(ValueError, match=r"can't be had \(no way to the hub\): download") as caught:
        find_files("mmbench", "some/other", "en/dev-*.parquet")
    assert "give mmbench:PATH" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["none", "/no/such/folder", "a/b/c", "../x", "a b/c", "a/"])
def test_what_is_neither_a_path_nor_a_hub_id_is_not_asked_for(hub, source):
    with pytest.raises(ValueError, match="there is no"):
        find_files("x", source, "*.parquet")
    assert not hub


def test_without_the_hub_s_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="pip install huggingface-hub"):
        find_files("x", "some/one", "*.parquet")
