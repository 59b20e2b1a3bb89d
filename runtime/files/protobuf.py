"""Walk over the fields of a protobuf message, without its schema and without the onnx package."""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types


def read_fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, integer or bytes) of one message, in the order of the file.

    Raises:
        ValueError, IndexError: it is damaged, or no message.
    """
    position, end = 0, len(data)
    while position < end:
        tag, position = _read_varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, position = _read_varint(data, position)
            yield number, value
            continue
        size = {_FIXED64: 8, _FIXED32: 4}.get(wire)
        if wire == _BYTES:
            size, position = _read_varint(data, position)
        if size is None or position + size > end:
            raise ValueError("it is damaged, or something else")
        yield number, data[position : position + size]
        position += size


def read_varints(data: memoryview) -> Iterator[int]:
    """The integers of a packed field.

    Raises:
        ValueError, IndexError: the last one is cut off, or one has over 64 bits.
    """
    position = 0
    while position < len(data):
        value, position = _read_varint(data, position)
        yield value


def as_bytes(value: int | bytes | memoryview) -> memoryview:
    """A field that must be text, bytes or a message.

    Raises:
        ValueError: it is a number.
    """
    if isinstance(value, int):
        raise ValueError("a message is a number")
    return memoryview(value)


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
        if shift > 63:
            raise ValueError("a number has too many bytes")
