import zipfile

import pytest
from gpu_check.importable import normalize
from pack_tensorrt_rtx import (
    NEEDED,
    RTX_VERSION,
    SMALL_WHEELS,
    Config,
    fill,
    make_pip_command,
    parse_args,
)


def write_wheel(folder, name, files):
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-none-any.whl", "w") as archive:
        for path in files:
            archive.writestr(path, path)


@pytest.fixture
def config(tmp_path):
    return Config(tmp_path / "pack", "3.12", RTX_VERSION, 30, no_wheels=False)


def test_pip_is_asked_for_the_other_python_and_for_no_dependencies(config, tmp_path):
    command = make_pip_command(config, ["a==1"], tmp_path)
    assert command[command.index("--python-version") + 1] == "3.12"
    assert {"--no-deps", "--only-binary=:all:"} <= set(command)
    assert command[-1] == "a==1"
    assert command.index("--dest") < len(command) - 2


def test_wheels_are_laid_out_as_folders_for_the_path(tmp_path):
    wheels = tmp_path / "wheels"
    libs = [name for name in NEEDED if name.startswith("tensorrt_rtx_libs")]
    write_wheel(wheels, "tensorrt_rtx_cu12_libs-1.7.1", libs)
    write_wheel(wheels, "tensorrt_rtx_cu12_bindings-1.7.1", set(NEEDED) - set(libs))
    write_wheel(wheels, "onnx_ir-1.1.0", ["onnx_ir/__init__.py"])
    packages = fill(wheels, tmp_path / "content")
    assert packages == {
        "onnx_ir": "1.1.0",
        "tensorrt_rtx_cu12_bindings": "1.7.1",
        "tensorrt_rtx_cu12_libs": "1.7.1",
    }
    for name in NEEDED:
        assert (tmp_path / "content" / "rtx" / name).read_text() == name
    assert (tmp_path / "content" / "wheels" / "onnx_ir" / "onnx_ir" / "__init__.py").is_file()
    # The module that both builder and runtime import comes from a package that is only source.
    init = (tmp_path / "content" / "rtx" / "tensorrt_rtx" / "__init__.py").read_text()
    compile(init, "tensorrt_rtx", "exec")
    assert "import __version__" in init


def test_a_version_without_the_library_is_named(tmp_path):
    write_wheel(tmp_path / "wheels", "tensorrt_rtx_cu12_libs-9", ["tensorrt_rtx_libs/other.so"])
    with pytest.raises(ValueError, match=r"libtensorrt_rtx\.so\.1"):
        fill(tmp_path / "wheels", tmp_path / "content")


def test_every_small_package_has_a_version_in_the_constraints(tmp_path):
    from pack_tensorrt_rtx import ROOT

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    known = {normalize(line.partition("==")[0]) for line in lines if "==" in line}
    assert {normalize(name) for name in SMALL_WHEELS} <= known


@pytest.mark.parametrize("size", ["0", "61", "-1"])
def test_parts_that_no_transfer_takes_are_refused(size, capsys):
    with pytest.raises(SystemExit) as error:
        parse_args(["pack", "--part-mib", size])
    assert error.value.code == 2
    assert "--part-mib" in capsys.readouterr().err
