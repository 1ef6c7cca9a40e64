"""Protocol Buffers' wire form: what a message's fields hold, by their numbers, without a library.

Knows the form and no message's meaning. Every fault of the form is a ValueError.
"""

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

Field = tuple[int, int | memoryview]
"""Number and content of a field: a whole number, or bytes, which may be a text or another message."""


def fields(message: memoryview) -> Iterator[Field]:
    """Number and content of a message's fields; those of a fixed width are passed over."""
    place, end = 0, len(message)
    while place < end:
        tag, place = _varint(message, place)
        form = tag & 7
        if form == _BYTES:
            length, place = _varint(message, place)
            if length > end - place:
                raise ValueError("it is cut short")
            yield tag >> 3, message[place : place + length]
            place += length
        elif form == _VARINT:
            value, place = _varint(message, place)
            yield tag >> 3, value
        elif form in (_FIXED32, _FIXED64):
            place += 4 if form == _FIXED32 else 8
        else:
            raise ValueError(f"it has a field of the form {form}")
    if place != end:
        raise ValueError("it is cut short")


def numbers(value: int | memoryview) -> Iterator[int]:
    """The numbers of a field that is repeated: one by itself, or all packed one behind the other."""
    if isinstance(value, int):
        yield value
        return
    place = 0
    while place < len(value):
        number, place = _varint(value, place)
        yield number


def signed(value: int) -> int:
    """What a number of 64 bits stands for."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """A number of variable length, and the place behind it."""
    value = shift = 0
    while shift < 64:
        if place >= len(message):
            raise ValueError("it is cut short")
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    raise ValueError("it has a number of more than 64 bits")
