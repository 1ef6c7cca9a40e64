"""Seeded changes to the files of torch.save: the zip archive around a pickle, the older form, and tensors in both."""

import io
import pickletools
import random
import re
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actvar.benchmarks.fuzz.changes import changed_bytes
from actvar.benchmarks.fuzz.older_form import save_older
from actvar.benchmarks.fuzz.pickle_changes import changed_pickle

_FIELDS = {  # of a member's entry in the directory: where each lies, and its bytes
    "flags": (8, 2), "method": (10, 2), "crc": (16, 4), "packed": (20, 4), "size": (24, 4), "name": (28, 2),
    "extra": (30, 2), "comment": (32, 2), "disk": (34, 2), "place": (42, 4), "text": (46, 8),
}  # fmt: skip


# ---- the archive


def change_archive_s_pickle(path: Path, rng: random.Random) -> None:
    """Change the pickle in the archive, and pack it again as torch.save does."""
    members = _members(path)
    name = next(name for name in members if name.endswith("/data.pkl"))
    members[name] = changed_pickle(members[name], rng)
    path.write_bytes(_packed(members))


def change_archive(path: Path, rng: random.Random) -> None:
    """Change the archive's members, its directory, or its bytes."""
    kind = rng.randrange(4)
    if kind == 0:
        path.write_bytes(changed_bytes(path.read_bytes(), rng))
    elif kind == 1:
        path.write_bytes(_changed_directory(path.read_bytes(), rng))
    else:
        members = _members(path)
        extra = _change_members(members, rng)
        method = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
        path.write_bytes(_packed(members, method, extra))
        if kind == 3:
            path.write_bytes(_changed_directory(path.read_bytes(), rng))


def _members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _packed(
    members: dict[str, bytes], method: int = zipfile.ZIP_STORED, extra: tuple[str, bytes] | None = None
) -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(content, "w", method) as archive:
        warnings.simplefilter("ignore")  # of a name that comes twice
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)  # without the time, so that a seed gives one file
        if extra:
            archive.writestr(zipfile.ZipInfo(extra[0]), extra[1], method)
    return content.getvalue()


def _change_members(members: dict[str, bytes], rng: random.Random) -> tuple[str, bytes] | None:
    """Change what there is. Returns a member that is added, whatever its name."""
    names = list(members)
    folder = names[0].partition("/")[0]
    name = rng.choice(names)
    kind = rng.randrange(9)
    if kind == 0:
        del members[name]
    elif kind == 1:
        members[name] = changed_bytes(members[name], rng)
    elif kind == 2:
        members[name] = bytes(rng.choice((0, 1, 1 << 10, 1 << 24)))
    elif kind == 3:
        members[f"{folder}/byteorder"] = rng.choice((b"big", b"little", b"", b"middle", b"\xff"))
    elif kind == 4:
        part = rng.choice(
            (".format_version", ".storage_alignment", "version", "constants.pkl", ".data/serialization_id")
        )
        members[f"{folder}/{part}"] = rng.choice((b"", b"-1", b"0", b"9" * 30, b"x", b"\xff", b"64"))
    elif kind == 5:
        members[rng.choice((f"{folder}/data/\x1b", "other/x", "../x", "/x", "x", f"{folder}//", "\ud7ff"))] = b"x"
    elif kind == 6:
        return rng.choice((name, name.upper(), f"{folder}/data.pkl")), rng.choice((b"\x80\x02}.", b"", members[name]))
    elif kind == 7:
        other = rng.choice(names)
        members[name], members[other] = members[other], members[name]
    else:
        members |= {f"{folder}/data/more{number}": b"" for number in range(rng.choice((10, 3000)))}
    return None


def _changed_directory(data: bytes, rng: random.Random) -> bytes:
    """The archive with a field of its directory, of a member's own header, or of its end changed."""
    content = bytearray(data)
    entries = [match.start() for match in re.finditer(b"PK\x01\x02", data) if match.start() <= len(data) - 46]
    kind = rng.randrange(6)
    if kind == 0 or not entries:
        place = len(content) - rng.choice((22, 18, 16, 14, 12, 10, 6, 2))  # of the end
        length = 2
    elif kind == 1:
        place, length = len(content) - 22 - rng.randrange(1, 76), 4  # where 64 bits are told
    elif kind == 2:
        header = struct.unpack_from("<I", content, rng.choice(entries) + 42)[0]
        place, length = header + rng.choice((0, 6, 8, 14, 18, 22, 26, 28, 30)), 2  # of a member's own header
    elif kind == 3:
        one, other = rng.choice(entries), rng.choice(entries)
        content[one + 42 : one + 46] = content[other + 42 : other + 46]
        return bytes(content)
    elif kind == 4:
        return bytes(content) + rng.choice((b"\0", b"PK\x05\x06" + bytes(18), rng.randbytes(100)))
    else:
        offset, length = rng.choice(list(_FIELDS.values()))
        place = rng.choice(entries) + offset
    value = (
        rng.choice((b"\0", b"\x01", b"\xff", b"\x08\0", b"\x7f")) * length
        if rng.random() < 0.5
        else rng.randbytes(length)
    )
    content[place : place + length] = value[:length]
    return bytes(content[: len(data)])


# ---- the older form


def change_row(path: Path, rng: random.Random) -> None:
    """Change one of the five pickles, or the values behind them."""
    data = path.read_bytes()
    starts = [0]
    for _ in range(5):
        starts.append(starts[-1] + max(place for _, _, place in pickletools.genops(data[starts[-1] :]) if place) + 1)
    kind = rng.randrange(8)
    if kind == 0:
        path.write_bytes(changed_bytes(data, rng))
    elif kind <= 4:
        start = starts[rng.choice((0, 1, 2, 3, 3, 3, 3, 4))]
        path.write_bytes(data[:start] + changed_pickle(data[start:], rng))
    elif kind == 5:
        path.write_bytes(data[: rng.randrange(starts[-1], len(data))])
    elif kind == 6:
        count = struct.pack("<q", rng.choice((0, -1, 1 << 30, 1 << 40, 1 << 62)))
        path.write_bytes(data[: starts[-1]] + count + data[starts[-1] + 8 :])
    else:
        path.write_bytes(data[: starts[-1]] + changed_bytes(data[starts[-1] :], rng))


# ---- tensors


class _Call:
    """Written as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


def change_tensors(path: Path, rng: random.Random) -> None:
    """Put something else where one or two tensors of the file are, or change how they are called and wrapped."""
    content = torch.load(path, weights_only=True)
    for _ in range(rng.choice((1, 1, 2))):
        trainer = content.get("trainer")
        states = (
            [part for part in trainer.values() if isinstance(part, dict) and part] if isinstance(trainer, dict) else []
        )
        state = rng.choice(states or [content])
        name = rng.choice(list(state))
        kind = rng.randrange(8)
        if kind == 0:
            del state[name]
        elif kind == 1:
            beginning = rng.choice(
                ("module.", "_orig_mod.", "model.", "ema.", "blocks.7.", "\x1b[2J", "\ud800", "x" * 9999)
            )
            state[beginning + name] = state.pop(name)
        elif kind == 2:
            content = {rng.choice(("model", "ema", "state_dict", "trainer", "module", "x")): content, "epoch": 3}
        elif isinstance(state[name], Tensor):
            state[name] = _odd(state[name], rng)
        else:
            state[name] = rng.choice((None, [], {}, torch.ones(1), "x", 1 << 70, content))
    if rng.random() < 0.3:
        try:
            save_older(content, path)
            return
        except (AttributeError, NotImplementedError, RuntimeError):  # a tensor that the older form has no storage for
            pass
    torch.save(content, path)


def _odd(tensor: Tensor, rng: random.Random) -> Any:
    flat = tensor.flatten().to(torch.float32)
    storage = flat._typed_storage()
    rebuild = torch._utils._rebuild_tensor_v2
    makers: tuple[Callable[[], Any], ...] = (
        lambda: tensor.to_sparse(),
        lambda: flat[None].to_sparse_csr(),
        lambda: torch.quantize_per_tensor(flat, 0.1, 0, torch.quint8).view(tensor.shape),
        lambda: torch.empty(tensor.shape, device="meta"),
        lambda: torch.empty(tensor.shape, dtype=tensor.dtype).to(torch.complex64),
        lambda: tensor.to(torch.complex64).conj(),
        lambda: tensor.to(torch.complex64).conj().imag,
        lambda: torch.nn.Parameter(tensor.to(torch.float32)),
        lambda: torch.nested.nested_tensor([flat, flat[:1]]),
        lambda: flat[:1].expand(rng.choice((1 << 20, 1 << 40))),
        lambda: flat[:1].as_strided(tensor.shape, [0] * tensor.dim()),
        lambda: tensor.to(rng.choice((torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.uint8))),
        lambda: flat.to(rng.choice((torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz))).view(tensor.shape),
        lambda: torch.full(tensor.shape, rng.choice((float("nan"), float("inf"), 1e38))),
        lambda: tensor[:0],
        lambda: tensor[None],
        lambda: torch.cat([tensor, tensor]) if tensor.dim() else tensor,
        lambda: tensor.T if tensor.dim() == 2 else flat,
        lambda: _Call(rebuild, storage, rng.choice((0, 1, -1)), (1 << 40,), (1,), False, OrderedDict()),
        lambda: _Call(rebuild, storage, 0, tuple(tensor.shape), (1 << 40,) * tensor.dim(), False, OrderedDict()),
        lambda: _Call(rebuild, storage, 0, (-1,), (1,), rng.choice((True, None)), OrderedDict()),
        lambda: _Call(rebuild, storage, 0, (1,), (1,), False, rng.choice((None, OrderedDict(a=1), {}))),
        lambda: rng.choice((1, "x", None, [tensor], {"x": tensor}, 1.5, (), {1: 2}, set(), torch.Size([1]))),
    )
    return rng.choice(makers)()
