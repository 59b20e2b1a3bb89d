"""A picture from something with `read()` is read to its end, and no further than is sensible."""

import io

import pytest

from vlmedge.runtime.errors import ImageError
from vlmedge.runtime.inputs import file_like
from vlmedge.runtime.inputs.images import read_image


class Endless(io.RawIOBase):
    num_reads = 0

    def read(self, size=-1):
        self.num_reads += 1
        assert self.num_reads < 400, "it is read on and on"
        return bytes(size)


def test_an_endless_source_is_refused():
    with pytest.raises(ImageError, match="picture holds more than 268435456 bytes"):
        read_image(Endless())


def test_the_most_that_is_allowed_is_read(monkeypatch):
    monkeypatch.setattr(file_like, "MAX_STREAM_BYTES", 1000)
    assert file_like.read_file_like(io.BytesIO(bytes(1000)), "picture") == bytes(1000)
    with pytest.raises(ImageError, match="more than 1000 bytes"):
        file_like.read_file_like(io.BytesIO(bytes(1001)), "picture")


def test_bytes_are_counted_not_items(monkeypatch):
    monkeypatch.setattr(file_like, "MAX_STREAM_BYTES", 1000)

    class Numbers:
        def read(self, size):
            return memoryview(bytes(2000)).cast("I")

    with pytest.raises(ImageError, match="more than 1000 bytes"):
        file_like.read_file_like(Numbers(), "picture")
