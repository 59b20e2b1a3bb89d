import hashlib
from types import SimpleNamespace

import pytest

from vlmedge.runtime.backends.trt.engine import open_engine
from vlmedge.runtime.backends.trt.engine_set import EngineRecord, Profile
from vlmedge.runtime.bundle.manifest import TensorSpec
from vlmedge.runtime.errors import BackendError, BundleError

DATA = b"0123456789" * 300_000  # over one piece of the hash


@pytest.fixture
def record(tmp_path):
    (tmp_path / "x.engine").write_bytes(DATA)
    return EngineRecord(
        name="x",
        file="x.engine",
        bytes=len(DATA),
        sha256=hashlib.sha256(DATA).hexdigest(),
        inputs=(TensorSpec("a", "float32", (1,)),),
        outputs=(TensorSpec("b", "bool", (1,)),),
        profiles=(Profile("vision", {}),),
    )


class Loader:
    def __init__(self, inputs=None, outputs=None, num_profiles=1):
        self.seen = []
        self.engine = SimpleNamespace(
            inputs={"a": "float32"} if inputs is None else inputs,
            outputs={"b": "bool"} if outputs is None else outputs,
            num_profiles=num_profiles,
        )

    def __call__(self, data, where):
        self.seen.append((bytes(data), where))
        return self.engine


def test_the_bytes_that_were_hashed_are_loaded(tmp_path, record):
    loader = Loader()
    assert open_engine(tmp_path, record, loader, "build") is loader.engine
    assert loader.seen == [(DATA, str(tmp_path / "x.engine"))]


@pytest.mark.parametrize("place", [0, 1 << 20, len(DATA) - 1])
def test_one_other_bit_anywhere_is_never_loaded(tmp_path, record, place):
    data = bytearray(DATA)
    data[place] ^= 4
    (tmp_path / "x.engine").write_bytes(data)
    loader = Loader()
    with pytest.raises(BundleError, match=r"not loaded, build it again with `build`"):
        open_engine(tmp_path, record, loader, "build")
    assert loader.seen == []


def test_a_missing_and_an_empty_file_are_bundle_errors(tmp_path, record):
    (tmp_path / "x.engine").write_bytes(b"")
    with pytest.raises(BundleError, match="can't be read"):
        open_engine(tmp_path, record, Loader(), "build")
    (tmp_path / "x.engine").unlink()
    with pytest.raises(BundleError, match="can't be read"):
        open_engine(tmp_path, record, Loader(), "build")


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (Loader(inputs={}), "a as None, its record as float32"),
        (Loader(outputs={"b": "float32"}), "b as float32, its record as bool"),
        (Loader(outputs={"b": "bool", "c": "bool"}), "c as bool, its record as None"),
        (Loader(num_profiles=2), "2 optimization profiles, its record 1"),
    ],
)
def test_an_engine_that_is_another_than_recorded_is_told(tmp_path, record, loader, message):
    with pytest.raises(BackendError, match=message):
        open_engine(tmp_path, record, loader, "build")


def test_what_the_loader_refuses_stays_its_own_error(tmp_path, record):
    def refuse(data, where):
        raise BackendError("TensorRT refuses it")

    with pytest.raises(BackendError, match="TensorRT refuses it"):
        open_engine(tmp_path, record, refuse, "build")
