"""Changes to an .npz: its bytes, its members, their headers."""

import io
import random
import re
import zipfile
from pathlib import Path

import numpy as np

from actvar.benchmarks.fuzz.changes import change_file, changed_bytes

_DTYPES = ("<f4", ">f8", "<i8", "|u1", "|S5", "<U9", "|O", "<c16", "<M8[s]", "|V7", "<f2", "[('a', '<f8')]", "(2,)<f8")
_SHAPES = ("(10**12,)", "(1000000000000, 3)", "()", "(-1,)", "(0,)", "(2147483648, 2147483648)", "(6,", "(" * 300, "6")


def undate(path: Path) -> None:
    """Take the time out of an archive's members, so that samples are the same at any time."""
    content = bytearray(path.read_bytes())
    for sign, place in ((b"PK\3\4", 10), (b"PK\1\2", 12)):
        for match in re.finditer(sign, bytes(content)):
            content[match.start() + place : match.start() + place + 4] = b"\0\0\x21\0"  # the first of 1980
    path.write_bytes(content)


def change_archive(path: Path, rng: random.Random) -> None:
    """Change the file as bytes, one member's bytes, one member's header, or the list of members."""
    kind = rng.randrange(4)
    if kind == 0:
        change_file(path, rng)
        return
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
        method = archive.infolist()[0].compress_type
    chosen = rng.choice(sorted(members))
    if kind == 1:
        members[chosen] = changed_bytes(members[chosen], rng)
    elif kind == 2:
        members[chosen] = _other_header(members[chosen], rng)
    else:
        _change_members(members, chosen, rng)
    content = io.BytesIO()
    methods = (method, method, zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    with zipfile.ZipFile(content, "w", rng.choice(methods)) as archive:
        for name, data in members.items():
            archive.writestr(
                zipfile.ZipInfo(name), data, archive.compression
            )  # without the time: a seed gives one file
    data = content.getvalue()
    if members and rng.random() < 0.2:  # sizes, methods and flags as the list of members has them
        place = data.rindex(b"PK\1\2") + rng.choice((4, 6, 8, 10, 20, 24, 28, 30, 32, 38, 42))
        data = data[:place] + rng.choice((rng.randbytes(4), b"\xff" * 4, b"\0" * 4)) + data[place + 4 :]
    path.write_bytes(data)


def _change_members(members: dict[str, bytes], chosen: str, rng: random.Random) -> None:
    kind = rng.randrange(6)
    if kind == 0:
        del members[chosen]
    elif kind == 1:
        members[rng.choice(("x.npy", "../x.npy", "/etc/x.npy", "mu", "\x1b[2J.npy"))] = members.pop(chosen)
    elif kind == 2:
        members |= {f"more{number}.npy": b"" for number in range(2000)}
    elif kind == 3:
        members[chosen] = members[chosen][:128] + bytes(rng.choice((1 << 20, 1 << 25)))  # packs to nothing
    elif kind == 4:
        content = io.BytesIO()
        np.save(content, np.array([{"a": 1}], object), allow_pickle=True)
        members[chosen] = content.getvalue()
    else:
        members[chosen] = b""


def _other_header(data: bytes, rng: random.Random) -> bytes:
    """Another type, shape or order, in a header of the right length, or of another version."""
    length = int.from_bytes(data[8:10], "little")  # of version 1, as numpy writes all that are short
    header, body = data[10 : 10 + length], data[10 + length :]
    kind = rng.randrange(5)
    if kind == 0:
        descr = header[header.index(b"'descr': ") + 9 : header.index(b", 'fortran")]
        other = rng.choice(_DTYPES)
        header = header.replace(descr, (other if rng.random() < 0.3 else repr(other)).encode())
    elif kind == 1:
        shape = header[header.index(b"'shape': ") + 9 : header.rindex(b", }")]
        header = header.replace(shape, rng.choice(_SHAPES).encode())
    elif kind == 2:
        header = header.replace(b"False", rng.choice((b"True", b"None", b"[]")))
    elif kind == 3:
        header = (
            rng.choice((b"[" * 9000, b"{}", b"{'descr': " + b"-" * 5000, b"\xff" * 50, b"9" * 6000, b"a=1")) + b"\n"
        )
    else:
        version = rng.choice((b"\2\0", b"\3\0", b"\1\1", b"\xff\xff"))
        return data[:6] + version + len(header).to_bytes(4, "little") + header + body
    return data[:8] + len(header).to_bytes(2, "little") + header + body
