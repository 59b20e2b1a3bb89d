import os
import subprocess
import sys

import pytest
from gpu_check.importable import (
    ROOT,
    choose_wheels,
    link_layers,
    list_pack_paths,
    make_environment,
    normalize,
    read_minima,
    read_numbers,
)
from gpu_check.pack import Pack
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version


def test_a_package_is_taken_where_it_is_missing_or_too_old():
    packed = {"onnx_ir": "1.1.0", "jinja2": "3.1.6", "mpmath": "1.3.0", "tensorrt_rtx_libs": "1"}
    installed = {"onnx_ir": "1.0.0", "jinja2": "3.1.6"}
    minima = {"onnx-ir": "1.1", "jinja2": "3.1.6"}
    assert choose_wheels(packed, minima, installed.get) == ["onnx_ir", "mpmath"]


def test_a_newer_package_than_the_packed_one_is_kept():
    assert choose_wheels({"onnx_ir": "1.1.0"}, {"onnx-ir": "1.1"}, lambda _: "1.10.0") == []


def test_the_project_says_how_old_packages_may_be():
    minima = read_minima()
    assert minima["onnx-ir"] == "1.1"
    assert minima["jinja2"] == "3.1.6"
    # The extra quant needs a newer one than the extra cpu.
    assert minima["onnxruntime"] == "1.24"


@given(
    a=st.lists(st.integers(0, 99), min_size=1, max_size=4),
    b=st.lists(st.integers(0, 99), min_size=1, max_size=4),
)
def test_versions_are_in_the_order_that_packaging_has(a, b):
    first, second = (".".join(map(str, numbers)) for numbers in (a, b))
    if Version(first) < Version(second):
        assert read_numbers(first) < read_numbers(second)


def test_local_parts_and_other_spellings_do_not_matter():
    assert read_numbers("2.11.0+cu130") == (2, 11, 0)
    assert normalize("Markdown_It.py") == "markdown-it-py"


def test_the_linked_folder_is_all_that_vlmedge_needs_to_be_imported(tmp_path):
    site = link_layers(tmp_path)
    assert link_layers(tmp_path) == site  # a second time too
    code = "import vlmedge.runtime.errors as m; print(m.__file__)"
    environment = dict(os.environ) | {"PYTHONPATH": str(site)}
    # -S: no site-packages, where this checkout may be installed
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith(str(site))


def test_a_pack_for_another_python_is_not_used(tmp_path):
    told = []
    assert list_pack_paths(tmp_path, Pack("2.7", {}, ()), told.append) == []
    assert "2.7" in told[0]


def test_without_a_pack_the_installed_packages_are_used(tmp_path):
    told = []
    environment = make_environment(tmp_path / "work", tmp_path / "none", told.append)
    paths = environment["PYTHONPATH"].split(os.pathsep)
    assert paths[:2] == [str(ROOT / "scripts"), str(tmp_path / "work" / "site")]
    assert "no pack is used" in told[0]


def test_a_pack_comes_before_what_the_caller_has(tmp_path, monkeypatch):
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    pack = Pack(version, {"no_such_package": "1"}, ())
    monkeypatch.setattr("gpu_check.importable.unpack", lambda folder, target: pack)
    monkeypatch.setenv("PYTHONPATH", "mine")
    paths = make_environment(tmp_path, tmp_path, lambda _: None)["PYTHONPATH"].split(os.pathsep)
    unpacked = tmp_path / "pack"
    assert paths[2:] == [str(unpacked / "rtx"), str(unpacked / "wheels/no_such_package"), "mine"]


@pytest.mark.parametrize("layer", ["runtime", "export", "quant"])
def test_a_link_that_leads_elsewhere_is_set_right(tmp_path, layer):
    (tmp_path / "vlmedge").mkdir()
    (tmp_path / "vlmedge" / layer).symlink_to(tmp_path)
    link_layers(tmp_path)
    assert (tmp_path / "vlmedge" / layer).resolve() == ROOT / layer
