import dataclasses

import pytest

from vlmedge.runtime.backends.trt.choose import choose_set, is_same_version, list_sets
from vlmedge.runtime.backends.trt.engine_set import ENGINE_SET_NAME, Gpu
from vlmedge.runtime.bundle.manifest import FileRecord
from vlmedge.runtime.errors import BackendError, BundleError

ORIN = Gpu("Orin", "8.7")
BUILDERS = {"tensorrt": "10.3.0"}


def test_the_set_of_this_gpu_and_this_tensorrt_is_chosen(tmp_path, manifest, engine_set, write_set):
    write_set(tmp_path, dataclasses.replace(engine_set, gpu=Gpu("Thor", "11.0")), "a")
    right = write_set(tmp_path, engine_set, "b")
    write_set(tmp_path, dataclasses.replace(engine_set, version="10.7.0"), "c")
    chosen = choose_set(tmp_path, manifest, ORIN, BUILDERS)
    assert (chosen.folder, chosen.engine_set, chosen.notices) == (right, engine_set, ())


def test_a_bundle_without_engines_says_how_to_build_them(tmp_path, manifest):
    bundle = tmp_path / "a bundle"
    with pytest.raises(BackendError) as error:
        choose_set(bundle, manifest, ORIN, BUILDERS)
    assert f"`vlmedge build '{bundle}'`" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "gpu", "builders", "needed"),
    [
        (
            {"gpu": Gpu("", "8.6")},
            ORIN,
            BUILDERS,
            "built for compute capability 8.6, this GPU is Orin (compute capability 8.7)",
        ),
        ({"gpu": Gpu("Thor", "11.0")}, ORIN, BUILDERS, "Thor (compute capability 11.0)"),
        ({}, ORIN, {"tensorrt": "10.3.1"}, "built by TensorRT 10.3.0, this machine has 10.3.1"),
        ({}, ORIN, {"tensorrt_rtx": "1.7.1"}, "need TensorRT 10.3.0, which is not installed"),
        ({"builder": "tensorrt_rtx"}, ORIN, BUILDERS, "need TensorRT-RTX 10.3.0"),
        (
            {"graph_sha256": {"vision": "f" * 64, "decoder": "0" * 64}},
            ORIN,
            BUILDERS,
            "another vision.onnx",
        ),
        ({"graph_sha256": {"audio": "f" * 64}, "chains": {}}, ORIN, BUILDERS, "audio"),
        (
            {"weights_sha256": {"vision.onnx.data": "e" * 64}},
            ORIN,
            BUILDERS,
            "another vision.onnx.data",
        ),
        ({"weights_sha256": {"gone.safetensors": "e" * 64}}, ORIN, BUILDERS, "gone.safetensors"),
    ],
)
def test_a_misfit_is_one_line_with_the_command_that_builds_a_fit(
    tmp_path, manifest, engine_set, write_set, changes, gpu, builders, needed
):
    write_set(tmp_path, dataclasses.replace(engine_set, **changes))
    with pytest.raises(BackendError) as error:
        choose_set(tmp_path, manifest, gpu, builders)
    message = str(error.value)
    assert needed in message
    assert "\n" not in message
    is_other_gpu = "gpu" in changes
    command = f"vlmedge build {tmp_path}" if is_other_gpu else engine_set.command
    assert message.endswith(f"`{command}`")


def test_other_weights_in_graphs_of_equal_bytes_are_noticed(
    tmp_path, manifest, engine_set, write_set
):
    """A checkpoint's finetune has the same graph file: only the weights' file differs."""
    write_set(tmp_path, engine_set)
    files = manifest.files | {"decoder.onnx.data": FileRecord(1, "9" * 64)}
    with pytest.raises(BackendError, match=r"another decoder\.onnx\.data"):
        choose_set(tmp_path, dataclasses.replace(manifest, files=files), ORIN, BUILDERS)


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({"version": "10.7.0"}, "build them on this machine with `bash build.sh`"),
        (
            {"version": "10.7.0", "weights_sha256": {"vision.onnx.data": "e" * 64}},
            "write their script again with `vlmedge build BUNDLE ... --emit-script build.sh`",
        ),
    ],
)
def test_a_script_builds_again_only_the_bundle_that_it_was_written_for(
    tmp_path, manifest, engine_set, write_set, changes, needed
):
    write_set(tmp_path, dataclasses.replace(engine_set, command="bash build.sh", **changes))
    with pytest.raises(BackendError) as error:
        choose_set(tmp_path, manifest, ORIN, BUILDERS)
    assert str(error.value).endswith(needed)


def test_a_set_of_vision_alone_does_not_fit(tmp_path, manifest, engine_set, write_set):
    chains = {"vision": engine_set.chains["vision"]}
    write_set(tmp_path, dataclasses.replace(engine_set, chains=chains))
    with pytest.raises(BackendError, match="lack the decoder"):
        choose_set(tmp_path, manifest, ORIN, BUILDERS)


def test_the_nearest_misfit_is_told(tmp_path, manifest, engine_set, write_set):
    write_set(tmp_path, dataclasses.replace(engine_set, gpu=Gpu("", "7.5"), version="8.6"), "a")
    write_set(tmp_path, dataclasses.replace(engine_set, version="10.7.0"), "b")
    with pytest.raises(BackendError, match=r"10\.7\.0, this machine has 10\.3\.0"):
        choose_set(tmp_path, manifest, ORIN, BUILDERS)


def test_of_two_that_fit_the_same_gpu_comes_first_then_the_first_builder(
    tmp_path, manifest, engine_set, write_set
):
    builders = {"tensorrt": "10.3.0", "tensorrt_rtx": "10.3.0"}
    rtx = dataclasses.replace(engine_set, builder="tensorrt_rtx")
    write_set(tmp_path, rtx, "a")
    trt = write_set(tmp_path, engine_set, "b")
    assert choose_set(tmp_path, manifest, ORIN, builders).folder == trt
    other = dataclasses.replace(engine_set, gpu=Gpu("Orin Nano", "8.7"))
    write_set(tmp_path, other, "0")
    assert choose_set(tmp_path, manifest, ORIN, builders).folder == trt


def test_engines_of_another_board_with_the_same_chip_run_with_a_notice(
    tmp_path, manifest, engine_set, write_set
):
    write_set(tmp_path, engine_set)
    (notice,) = choose_set(tmp_path, manifest, Gpu("Orin Nano", "8.7"), BUILDERS).notices
    assert "built on Orin, this GPU is Orin Nano" in notice
    assert choose_set(tmp_path, manifest, Gpu("", "8.7"), BUILDERS).notices == ()


def test_a_good_set_beside_a_damaged_one_is_used_with_a_notice(
    tmp_path, manifest, engine_set, write_set
):
    broken = write_set(tmp_path, engine_set, "a")
    (broken / ENGINE_SET_NAME).write_text("{")
    cut = write_set(tmp_path, engine_set, "b")
    (cut / "decoder.engine").unlink()
    good = write_set(tmp_path, engine_set, "c")
    chosen = choose_set(tmp_path, manifest, ORIN, BUILDERS)
    assert chosen.folder == good
    first, second = chosen.notices
    assert first.startswith(f"engines in {broken} are passed over: ")
    assert "not JSON" in first
    assert f"engines in {cut} are passed over: " in second
    assert "decoder.engine" in second


def test_a_damaged_set_alone_is_told(tmp_path, manifest, engine_set, write_set):
    cut = write_set(tmp_path, engine_set)
    (cut / "decoder.engine").unlink()
    with pytest.raises(BundleError, match=r"lacks the engine decoder\.engine: build it again"):
        choose_set(tmp_path, manifest, ORIN, BUILDERS)


def test_a_damaged_set_is_told_with_the_nearest_that_does_not_fit(
    tmp_path, manifest, engine_set, write_set
):
    broken = write_set(tmp_path, engine_set, "a")
    (broken / ENGINE_SET_NAME).write_text("{")
    write_set(tmp_path, dataclasses.replace(engine_set, version="10.7.0"), "b")
    with pytest.raises(BackendError, match=r"10\.7\.0, this machine has 10\.3\.0") as error:
        choose_set(tmp_path, manifest, ORIN, BUILDERS)
    assert f"engines in {broken} are passed over: " in str(error.value)
    assert "not JSON" in str(error.value)


def test_a_set_that_is_being_built_is_no_set_yet(tmp_path, engine_set, write_set):
    write_set(tmp_path, engine_set, ".building")
    assert list_sets(tmp_path) == []


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.3.0", "10.3.0.30", True),
        ("10.3.0.30", "10.3.0.30", True),
        ("10.3.0.26", "10.3.0.30", False),
        ("10.3.0", "10.3.1", False),
        ("10.3", "10.3.0", False),
        ("1.7.1.116", "10.7.1.116", False),
    ],
)
def test_a_version_without_its_build_number_is_the_same_release(one, other, same):
    assert is_same_version(one, other) is same
    assert is_same_version(other, one) is same
