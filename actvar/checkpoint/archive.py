"""The zip archives that torch.save writes: which members they have, and where the bytes of each lie.

Strict on purpose: PyTorch's own reader must see the members that are measured here and no others. So there is one
layout that is read, that of torch.save: nothing compressed or encrypted, the directory at the very end, one folder, no
name twice, and no byte that belongs to two members. Members are then as large together as the file at most.
"""

import struct
from dataclasses import dataclass
from mmap import mmap

from actvar.errors import shown

MAX_MEMBERS = 100_000

_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_END_64, _LOCATOR_64 = b"PK\x06\x06", b"PK\x06\x07"
_WIDE = 0xFFFFFFFF  # stands where a value of 64 bits follows in the extra field
_ENCRYPTED = 0x2041  # of the flags: the content, in the strong form, or the directory


class ArchiveError(ValueError):
    """An archive is not as torch.save writes it; the text completes "it …"."""


@dataclass(frozen=True)
class Member:
    """Where the bytes of a member lie in the archive's file."""

    offset: int
    size: int


@dataclass(frozen=True)
class _Entry:
    name: str
    is_stored: bool
    size: int
    header: int
    raw_name: bytes


def archive_members(data: mmap) -> dict[str, Member]:
    """The members of a file that torch.save wrote, by their names within the archive's one folder.

    Args:
        data: the whole file.

    Raises:
        ArchiveError: it is cut short, something else, or not laid out so.
    """
    start, size, count = _directory(data)
    entries = _entries(data, start, size, count)
    folder = entries[0].name.partition("/")[0] if entries else ""
    names = {entry.name for entry in entries}
    if f"{folder}/data.pkl" not in names or f"{folder}/constants.pkl" in names:
        raise ArchiveError(f"is {_other_archive([entry.name for entry in entries])}")
    if not all(entry.is_stored for entry in entries):
        raise ArchiveError("has compressed or encrypted members, which torch.save does not write")
    if not all(entry.name.startswith(f"{folder}/") for entry in entries):
        raise ArchiveError("has members in several folders, which torch.save does not write")
    if len({entry.name.lower() for entry in entries}) < len(entries):  # as PyTorch's reader compares them
        raise ArchiveError("has two members of the same name")
    members, end = {}, 0
    for entry in sorted(entries, key=lambda entry: entry.header):
        if entry.header < end:
            raise ArchiveError("has members that overlap")
        offset = _content_of(data, entry)
        end = offset + entry.size
        members[entry.name.removeprefix(f"{folder}/")] = Member(offset, entry.size)
    if end > start:
        raise ArchiveError("has members that reach into its directory")
    return members


def _directory(data: mmap) -> tuple[int, int, int]:
    """Where the directory starts, its bytes, and its entries: it ends where the end's own records begin."""
    end = len(data) - 22
    if end < 0 or data[end : end + 4] != _END or data[-2:] != b"\0\0":
        raise ArchiveError("is a zip archive that is cut short, or something was added to its end")
    _, disk, first_disk, here, count, size, start = struct.unpack_from("<4s4H2I", data, end)
    locator = end - 20
    if locator >= 0 and data[locator : locator + 4] == _LOCATOR_64:
        end = locator - 56
        _, disk, place, disks = struct.unpack_from("<4sIQI", data, locator)
        if place != end or end < 0 or data[end : end + 4] != _END_64 or disks != 1:
            raise ArchiveError("is a damaged zip archive")
        _, length, _, _, first_disk, _, here, count, size, start = struct.unpack_from("<4sQ2H2I4Q", data, end)
        if length != 44:
            raise ArchiveError("is a damaged zip archive")
    if disk or first_disk or here != count or start + size != end:
        raise ArchiveError("is a damaged zip archive")
    if count > MAX_MEMBERS:
        raise ArchiveError(f"has {count} members, which no checkpoint has")
    return start, size, count


def _entries(data: mmap, place: int, size: int, count: int) -> list[_Entry]:
    end, entries = place + size, []
    for _ in range(count):
        if place + 46 > end or data[place : place + 4] != _CENTRAL:
            raise ArchiveError("is a damaged zip archive")
        flags, method = struct.unpack_from("<2H", data, place + 8)
        packed, content, name_length, extra_length, comment_length = struct.unpack_from("<2I3H", data, place + 20)
        (header,) = struct.unpack_from("<I", data, place + 42)
        name_end = place + 46 + name_length
        raw_name, extra = data[place + 46 : name_end], data[name_end : name_end + extra_length]
        content, packed, header = _wide_values(extra, [content, packed, header])
        place = name_end + extra_length + comment_length
        is_stored = method == 0 and packed == content and not flags & _ENCRYPTED
        entries.append(_Entry(_text(raw_name), is_stored, content, header, raw_name))
    if place != end:
        raise ArchiveError("is a damaged zip archive")
    return entries


def _wide_values(extra: bytes, values: list[int]) -> list[int]:
    """The values, with those of 64 bits from the extra field, where they stand in this order."""
    if _WIDE not in values:
        return values
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{min(length, len(extra) - 4) // 8}Q", extra, 4))
            try:
                return [next(wide) if value == _WIDE else value for value in values]
            except (StopIteration, RuntimeError):
                break
        extra = extra[4 + length :]
    raise ArchiveError("is a damaged zip archive")


def _text(raw_name: bytes) -> str:
    """A member's name. That of the folder is the file's own, whatever it is; in the folder there are plain names."""
    name = raw_name.decode(errors="surrogateescape")
    if "\0" in name or not name.partition("/")[2].isprintable():
        raise ArchiveError("is a zip archive with a member whose name is no text")
    return name


def _content_of(data: mmap, entry: _Entry) -> int:
    """Where a member's bytes start: after its own header, whose lengths differ from the directory's."""
    if data[entry.header : entry.header + 4] != _LOCAL or entry.header + 30 > len(data):
        raise ArchiveError("is a damaged zip archive")
    name_length, extra_length = struct.unpack_from("<2H", data, entry.header + 26)
    name_end = entry.header + 30 + name_length
    if data[entry.header + 30 : name_end] != entry.raw_name:
        raise ArchiveError("is a damaged zip archive")
    return name_end + extra_length


def _other_archive(names: list[str]) -> str:
    """What an archive is that does not hold what torch.save writes."""
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript program, not the tensors alone"
    if names and all(name.endswith(".npy") for name in names):
        return "an .npz archive of numpy arrays"
    first = shown(", ".join(names[:3]), 100)
    return f"a zip archive that torch.save did not write (its first members: {first or 'none'})"
