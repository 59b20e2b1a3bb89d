"""Measured kernels: kept beside the engines, or where one says; never with tensorrt_rtx."""

from pathlib import Path

import pytest

from vlmedge.export.engines.adapter import open_tensorrt
from vlmedge.export.engines.settings import BuildSettings
from vlmedge.export.engines.timing_cache import TimingCache
from vlmedge.runtime.backends.trt.engine_set import Gpu

ORIN = Gpu("Orin", "8.7")


def open_cache(bundle, **changes):
    (bundle / "engines").mkdir(exist_ok=True)
    return TimingCache(bundle, BuildSettings(**changes), open_tensorrt(), ORIN)


def test_it_is_the_bundles_own_of_this_gpu_and_version(install_fake, tmp_path):
    install_fake("10.3.0")
    cache = open_cache(tmp_path)
    assert cache.content == b""
    cache.keep(b"measured")
    assert (tmp_path / "engines/sm87-tensorrt10.3.0.timing").read_bytes() == b"measured"
    assert open_cache(tmp_path).content == b"measured"
    install_fake("10.16.1")
    assert open_cache(tmp_path).content == b""


def test_a_file_of_ones_own_is_read_and_written(install_fake, tmp_path):
    install_fake("10.3.0")
    path = tmp_path / "mine.timing"
    path.write_bytes(b"before")
    cache = open_cache(tmp_path, timing_cache=path)
    assert cache.content == b"before"
    cache.keep(b"after")
    assert path.read_bytes() == cache.content == b"after"
    assert list((tmp_path / "engines").iterdir()) == []


def test_a_folder_that_is_missing_is_told_before_anything_is_built(install_fake, tmp_path):
    install_fake("10.3.0")
    (tmp_path / "file").touch()
    for name in ("none", "file"):
        with pytest.raises(ValueError, match=f"--timing-cache: .*{name} is no directory: make it"):
            open_cache(tmp_path, timing_cache=tmp_path / name / "mine.timing")


def test_a_name_without_a_folder_is_of_the_working_directory(install_fake, tmp_path, monkeypatch):
    install_fake("10.3.0")
    monkeypatch.chdir(tmp_path)
    open_cache(tmp_path, timing_cache=Path("mine.timing")).keep(b"measured")
    assert (tmp_path / "mine.timing").read_bytes() == b"measured"


def test_what_did_not_change_is_not_written_again(install_fake, tmp_path):
    install_fake("10.3.0")
    cache = open_cache(tmp_path)
    cache.keep(b"measured")
    path = tmp_path / "engines/sm87-tensorrt10.3.0.timing"
    path.unlink()
    cache.keep(b"measured")
    cache.keep(None)
    assert not path.exists()


def test_rtx_has_none(install_fake, tmp_path):
    install_fake("1.7.1", rtx=True)
    cache = open_cache(tmp_path)
    assert cache.content is None
    cache.keep(b"measured")
    assert list((tmp_path / "engines").iterdir()) == []
    with pytest.raises(ValueError, match="measures no kernels: leave out --timing-cache"):
        open_cache(tmp_path, timing_cache=tmp_path / "x")
