"""One flipped bit in a bundle: nothing is made of it, nothing is measured with it."""

import os
import shutil
import threading
import time

import pytest
from PIL import Image

from vlmedge.export.lowering.exporter import export_for_target
from vlmedge.export.lowering.options import LoweringOptions
from vlmedge.quant.check.plan import CheckPlan
from vlmedge.quant.check.run import run_check
from vlmedge.quant.data.open_data import open_data
from vlmedge.quant.quantize.quantize import quantize_bundle
from vlmedge.quant.recipe.toml import open_recipe
from vlmedge.quant.sensitivity.measure import measure_sensitivity
from vlmedge.runtime.bundle import hash_check
from vlmedge.runtime.bundle.hash_check import HashCheck, check_hashes
from vlmedge.runtime.bundle.inspection import check_file
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.cli import main as cli
from vlmedge.runtime.errors import BundleError
from vlmedge.runtime.model import Model

FILES = (
    "chat_template.jinja",
    "decoder.onnx",
    "decoder.onnx.data",
    "embedding.bin",
    "tokenizer.json",
    "vision.onnx",
    "vision.onnx.data",
    "vision_video.onnx",
)
PLACES = (0.0, 0.37, 0.999999)
DAMAGED = "damaged"


@pytest.fixture(scope="module")
def whole(make_bundle):
    return make_bundle("tiny").bundle


def test_every_file_of_a_bundle_is_tried(whole):
    assert set(read_manifest(whole).files) == set(FILES)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(2):
        Image.new("RGB", (56, 56), (40 * i, 90, 10)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(params=FILES)
def name(request):
    return request.param


@pytest.fixture(params=PLACES)
def damaged(request, whole, name, tmp_path):
    """A copy of the bundle with one bit flipped in the file `name`."""
    copy = shutil.copytree(whole, tmp_path / "in" / "float")
    path = copy / name
    content = bytearray(path.read_bytes())
    content[int(request.param * (len(content) - 1))] ^= 0x10
    path.write_bytes(content)
    return copy


def list_beside(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir())


def test_quantize_refuses_it_and_writes_nothing(damaged, name, tmp_path):
    with pytest.raises(BundleError, match=DAMAGED):
        quantize_bundle(damaged, tmp_path / "made", open_recipe("cpu"))
    assert list_beside(tmp_path) == ["in"]
    assert list_beside(tmp_path / "in") == ["float"]


def test_export_for_a_target_refuses_it_and_writes_nothing(damaged, name, tmp_path):
    options = LoweringOptions("jetpack-6.2", "fp16", None)
    with pytest.raises(BundleError, match=DAMAGED):
        export_for_target(damaged, tmp_path / "made", options)
    assert list_beside(tmp_path) == ["in"]


@pytest.mark.parametrize("side", ["bundle", "reference"])
def test_check_refuses_it_on_either_side(damaged, name, side, whole, data):
    bundle, against = (damaged, whole) if side == "bundle" else (whole, damaged)
    plan = CheckPlan(levels=("embeddings",), num_threads=1)
    with pytest.raises(BundleError, match=DAMAGED):
        run_check(bundle, against, open_data(str(data)), plan)


def test_sensitivity_refuses_it(damaged, name, data, tmp_path):
    recipe = open_recipe("cpu")
    with pytest.raises(BundleError, match=DAMAGED):
        measure_sensitivity(damaged, recipe, open_data(str(data)), work=tmp_path / "work")


@pytest.mark.parametrize("side", [0, 1])
def test_diff_refuses_it_on_either_side(damaged, name, side, whole, data, capsys):
    sides = [str(damaged), str(whole)]
    if side:
        sides.reverse()
    assert cli.main(["diff", *sides, "--data", str(data)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert DAMAGED in err
    assert name in err
    assert err.count("\n") == 1


def test_a_model_that_verifies_hashes_refuses_it(damaged, name):
    with pytest.raises(BundleError, match=f"{name}.*wrong hash"):
        Model.load(damaged, verify_hashes=True)


@pytest.fixture
def one_bit(whole, tmp_path):
    """A bundle whose table has one flipped bit, and nothing else."""
    copy = shutil.copytree(whole, tmp_path / "float")
    content = bytearray((copy / "embedding.bin").read_bytes())
    content[777] ^= 1
    (copy / "embedding.bin").write_bytes(content)
    return copy


def test_exit_codes_say_that_nothing_could_be_judged(one_bit, whole, data, tmp_path, capsys):
    common = ["--data", str(data)]
    assert cli.main(["check", str(one_bit), "--against", str(whole), *common]) == 2
    assert cli.main(["check", str(whole), "--against", str(one_bit), *common]) == 2
    assert cli.main(["sensitivity", str(one_bit), "--recipe", "cpu", *common]) == 1
    assert cli.main(["quantize", str(one_bit), str(tmp_path / "q"), "--recipe", "cpu"]) == 1
    target = ["--target", "jetpack-6.2", "--dtype", "fp16"]
    assert cli.main(["export", str(one_bit), str(tmp_path / "t"), *target]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 5
    assert all("embedding.bin is not what the manifest says (wrong hash)" in e for e in errors)
    assert all("copy or export it again" in error for error in errors)
    assert list_beside(tmp_path) == ["float"]


def test_run_reads_all_hashes_when_asked_to(one_bit, whole, capsys):
    question = ["What is it?", "--max-new-tokens", "2"]
    assert cli.main(["run", str(one_bit), *question]) == 0
    assert cli.main(["run", str(whole), *question, "--verify-hashes"]) == 0
    capsys.readouterr()
    assert cli.main(["run", str(one_bit), *question, "--verify-hashes"]) == 1
    out, err = capsys.readouterr()
    assert not out
    assert "embedding.bin" in err
    assert err.count("\n") == 1


def test_all_damaged_files_are_counted(whole, tmp_path):
    copy = shutil.copytree(whole, tmp_path / "float")
    for name in ("embedding.bin", "tokenizer.json"):
        (copy / name).write_bytes((copy / name).read_bytes()[::-1])
    with pytest.raises(BundleError, match=r"embedding\.bin and 1 more are not what"):
        check_hashes(copy, read_manifest(copy))


def test_every_byte_is_counted_once(whole):
    manifest = read_manifest(whole)
    told = []
    check_hashes(whole, manifest, lambda done, total: told.append((done, total)))
    total = sum(record.bytes for record in manifest.files.values())
    assert told[-1] == (total, total)
    assert told == sorted(told)


def test_a_file_that_changes_beside_the_reading_is_noticed(whole, tmp_path):
    copy = shutil.copytree(whole, tmp_path / "float")
    with HashCheck(copy, read_manifest(copy)) as check:
        check.wait()
        content = (copy / "embedding.bin").read_bytes()
        (copy / "new").write_bytes(content)
        (copy / "new").replace(copy / "embedding.bin")  # equal bytes, but who could tell
        with pytest.raises(BundleError, match=r"embedding\.bin was replaced while it was read"):
            check.check_unchanged()


def test_what_damage_leads_to_is_told_as_damage(one_bit):
    with (
        pytest.raises(BundleError, match=r"embedding\.bin is not what"),
        HashCheck(one_bit, read_manifest(one_bit)),
    ):
        raise ValueError("a weight is NaN")


def test_a_check_that_is_given_up_ends_its_threads(whole):
    class GivenUpError(BaseException):
        pass

    with pytest.raises(GivenUpError), HashCheck(whole, read_manifest(whole)):
        raise GivenUpError
    assert not [t for t in threading.enumerate() if t.name.startswith("hash-bundle")]


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that are read for their hash, in whatever order."""
    names = []

    def note(folder, name, *arguments, **options):
        names.append(name)
        return check_file(folder, name, *arguments, **options)

    monkeypatch.setattr(hash_check, "check_file", note)
    return names


@pytest.fixture
def settled(whole, tmp_path):
    """A copy of the bundle that was written long ago."""
    copy = shutil.copytree(whole, tmp_path / "float")
    for path in copy.iterdir():
        os.utime(path, ns=(0, 10**18))
    return copy


def test_what_this_process_found_right_is_not_read_again(settled, hashed):
    manifest = read_manifest(settled)
    check_hashes(settled, manifest)
    assert sorted(hashed) == sorted(FILES)
    told = []
    check_hashes(settled, manifest, lambda done, total: told.append((done, total)))
    assert sorted(hashed) == sorted(FILES)
    total = sum(record.bytes for record in manifest.files.values())
    assert told[-1] == (total, total)


def test_who_asks_for_it_has_every_file_read_again(settled, hashed):
    for _ in range(2):
        Model.load(settled, verify_hashes=True).close()
    assert sorted(hashed) == sorted((*FILES, *FILES))


@pytest.mark.parametrize("change", ["written", "exchanged"])
def test_a_file_in_another_state_is_read_again(settled, hashed, change):
    manifest = read_manifest(settled)
    check_hashes(settled, manifest)
    hashed.clear()
    path = settled / "embedding.bin"
    content = bytearray(path.read_bytes())
    content[777] ^= 1
    if change == "exchanged":  # of the same size and time
        (settled / "new").write_bytes(content)
        os.utime(settled / "new", ns=(0, 10**18))
        (settled / "new").replace(path)
    else:
        path.write_bytes(content)
    with pytest.raises(BundleError, match=r"embedding\.bin is not what"):
        check_hashes(settled, manifest)
    assert hashed == ["embedding.bin"]


def test_a_file_written_just_now_is_not_remembered(settled, hashed):
    """It could be written again at what `stat` calls the same time."""
    manifest = read_manifest(settled)
    now = time.time_ns()
    os.utime(settled / "embedding.bin", ns=(now + 10**12, now + 10**12))
    check_hashes(settled, manifest)
    hashed.clear()
    check_hashes(settled, manifest)
    assert hashed == ["embedding.bin"]


def test_a_damaged_file_is_found_each_time(settled, hashed):
    (settled / "embedding.bin").write_bytes((settled / "embedding.bin").read_bytes()[::-1])
    os.utime(settled / "embedding.bin", ns=(0, 10**18))
    for _ in range(2):
        with pytest.raises(BundleError, match=r"embedding\.bin is not what"):
            check_hashes(settled, read_manifest(settled))
    assert hashed.count("embedding.bin") == 2


def test_a_bundle_swapped_while_it_is_quantized_gives_no_result(whole, data, tmp_path):
    copy = shutil.copytree(whole, tmp_path / "float")

    def swap(done, total, name):
        if done and not (tmp_path / "old").exists() and "hashes" not in name:
            copy.rename(tmp_path / "old")
            shutil.copytree(whole, copy)

    with pytest.raises(ValueError, match=r"changed while it was read \(it is another file\)"):
        quantize_bundle(copy, tmp_path / "made", open_recipe("cpu"), progress=swap)
    assert not (tmp_path / "made").exists()


def test_a_side_swapped_while_it_is_checked_gives_no_result(whole, data, tmp_path):
    copy = shutil.copytree(whole, tmp_path / "float")

    def swap(done, total, name):
        if name.startswith("float: "):
            (copy / "tokenizer.json").touch()  # who could tell what was done to it

    plan = CheckPlan(levels=("embeddings",), num_threads=1)
    with pytest.raises(BundleError, match="overwritten while it was read"):
        run_check(copy, whole, open_data(str(data)), plan, swap)
