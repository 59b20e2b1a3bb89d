import contextlib
import io
import json
import tarfile

import pytest
from gpu_check.pack import Pack, find_missing, list_content, read_pack, unpack, write_pack
from hypothesis import given
from hypothesis import strategies as st


def write(folder, files, **options):
    content = folder / "content"
    for name, data in files.items():
        path = content / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    settings = {"python": "3.12", "packages": {"a": "1"}, "preset": 0, "dictionary_bytes": 1 << 16}
    return write_pack(content, folder / "pack", **settings | options)


def read_tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "pack.json"
    }


@given(
    files=st.dictionaries(
        st.sampled_from(["rtx/a.so", "rtx/b/c.py", "wheels/x/x.py", "wheels/y/y.so"]),
        st.binary(max_size=3000),
        min_size=1,
    ),
    part_bytes=st.integers(1, 5000),
)
def test_what_was_packed_comes_out_whatever_the_size_of_the_parts(
    tmp_path_factory, files, part_bytes
):
    folder = tmp_path_factory.mktemp("pack")
    # Parts of one byte would be thousands of files.
    pack = write(folder, files, part_bytes=max(part_bytes, 64))
    assert read_pack(folder / "pack") == pack
    assert unpack(folder / "pack", folder / "out") == pack
    assert read_tree(folder / "out") == files
    sizes = [part.bytes for part in pack.parts]
    assert set(sizes[:-1]) <= {max(part_bytes, 64)}
    assert pack.bytes == sum((folder / "pack" / part.file).stat().st_size for part in pack.parts)


def test_a_pack_over_the_limit_is_refused_and_nothing_is_left(tmp_path):
    noise = bytes(i * 167 % 251 ^ i >> 3 & 255 for i in range(5000))
    with pytest.raises(ValueError, match="can be carried"):
        write(tmp_path, {"rtx/a": noise}, max_bytes=100)
    assert not (tmp_path / "pack").exists()


def test_a_pack_just_at_the_limit_is_made(tmp_path):
    pack = write(tmp_path, {"rtx/a": b"x" * 100})
    assert write(tmp_path, {}, max_bytes=pack.bytes).bytes == pack.bytes
    with pytest.raises(ValueError, match="can be carried"):
        write(tmp_path, {}, max_bytes=pack.bytes - 1)


def test_a_part_that_was_not_carried_is_named(tmp_path):
    pack = write(tmp_path, {"rtx/a": bytes(range(256)) * 4}, part_bytes=64)
    lost = pack.parts[1].file
    (tmp_path / "pack" / lost).unlink()
    assert find_missing(tmp_path / "pack", pack) == [lost]
    with pytest.raises(ValueError, match=rf"lacks {lost}"):
        unpack(tmp_path / "pack", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_part_is_refused_and_never_taken_for_unpacked(tmp_path):
    pack = write(tmp_path, {"rtx/a": bytes(range(256)) * 4}, part_bytes=64)
    path = tmp_path / "pack" / pack.parts[-1].file
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    for _ in range(2):
        with pytest.raises(ValueError, match="is damaged: carry it again"):
            unpack(tmp_path / "pack", tmp_path / "out")


def test_what_is_unpacked_is_not_unpacked_again_until_the_pack_changes(tmp_path):
    write(tmp_path, {"rtx/a": b"1"})
    unpack(tmp_path / "pack", tmp_path / "out")
    (tmp_path / "out" / "rtx" / "a").write_bytes(b"mine")
    unpack(tmp_path / "pack", tmp_path / "out")
    assert (tmp_path / "out" / "rtx" / "a").read_bytes() == b"mine"
    write(tmp_path, {"rtx/a": b"2"}, packages={"a": "2"})
    unpack(tmp_path / "pack", tmp_path / "out")
    assert read_tree(tmp_path / "out") == {"rtx/a": b"2"}


def test_the_same_content_makes_the_same_pack(tmp_path):
    first = write(tmp_path, {"rtx/a": b"1" * 999, "wheels/x/y": b"2"})
    (tmp_path / "content" / "rtx" / "a").touch()
    assert write(tmp_path, {}) == first


def test_large_files_come_first(tmp_path):
    for name, size in (("a", 1), ("b", 30), ("c", 20)):
        (tmp_path / name).write_bytes(bytes(size))
    assert [path.name for path in list_content(tmp_path)] == ["b", "c", "a"]


def test_an_archive_that_leaves_its_folder_is_refused(tmp_path, monkeypatch):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("../outside"), io.BytesIO())
    write(tmp_path, {"rtx/a": b"1"})

    class Joined(io.BytesIO):
        def __init__(self, folder, parts):
            super().__init__(data.getvalue())

    monkeypatch.setattr("gpu_check.pack._JoinedParts", Joined)
    monkeypatch.setattr("gpu_check.pack.lzma.open", lambda raw: raw)
    with pytest.raises(tarfile.OutsideDestinationError):
        unpack(tmp_path / "pack", tmp_path / "out")
    assert not (tmp_path / "outside").exists()


@given(
    text=st.text(max_size=40)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["schema_version", "python", "packages", "parts", "file"]), inner
            )
        ),
    ).map(json.dumps)
)
def test_a_record_that_is_none_is_an_error_of_ours(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("pack")
    (folder / "pack.json").write_text(text, encoding="utf-8", errors="replace")
    with contextlib.suppress(ValueError):  # and no other error
        assert isinstance(read_pack(folder), Pack)


def test_a_record_of_another_version_says_what_to_do(tmp_path):
    write(tmp_path, {"rtx/a": b"1"})
    path = tmp_path / "pack" / "pack.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(ValueError, match=r"schema version 2, needed 1.*make the pack again"):
        read_pack(tmp_path / "pack")


def test_a_folder_without_a_pack_says_how_to_make_one(tmp_path):
    with pytest.raises(ValueError, match=r"pack_tensorrt_rtx\.py"):
        read_pack(tmp_path)
