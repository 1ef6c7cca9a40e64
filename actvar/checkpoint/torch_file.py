"""A file of PyTorch's own, opened so that nothing in it runs and nothing in it takes more memory than it has bytes.

Knows the two forms of torch.save: a zip archive, whose values stay mapped from the file, and the older one of pickles
and values in a row. Each is measured (`archive.py`, `pickled.py`) before `torch.load(weights_only=True)` reads it.
"""

import io
import struct
import tarfile
import warnings
from argparse import Namespace
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import IO, Any, cast

import torch

from actvar.checkpoint.archive import ArchiveError, Member, archive_members
from actvar.checkpoint.pickled import MAX_PICKLE_BYTES, STORAGES, OddTensorError, PickleError, Storage, read_pickle
from actvar.checkpoint.refusals import (
    damaged,
    is_out_of_memory,
    no_checkpoint,
    odd_tensor,
    too_little_memory,
    unreadable,
)
from actvar.errors import CheckpointError, shown

ZIP_MAGIC = b"PK\x03\x04"

_MAGIC_NUMBER, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of the older form
_TRUSTED = "Use a file that holds tensors only, from a source that you trust."


def read_torch_file(path: Path) -> Any:
    """What torch.save was given, as far as it is tensors, numbers and texts in dictionaries and lists.

    Args:
        path: of a plain file that is not empty.

    Raises:
        CheckpointError: it cannot be read, is cut short, is something else, holds a tensor that is not a plain one, or
            a pickle that wants more than tensors and plain values (which is refused, not run).
    """
    try:
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            is_zip = data[:4] == ZIP_MAGIC
            if is_zip:
                measure_archive(data)
            else:
                _measure_row(data)
    except PickleError as error:
        raise CheckpointError(
            f"{shown(path)} is refused: {error}, and was not run, and only tensors written by torch.save are read. "
            f"{_TRUSTED}"
        ) from None
    except OddTensorError as error:
        raise odd_tensor(path, error.name, str(error)) from None
    except ArchiveError as error:
        raise no_checkpoint(path, str(error), "Fetch it again, or name a .safetensors or .pth file.") from None
    except OSError as error:
        raise too_little_memory(path) if is_out_of_memory(error) else unreadable(path, error) from None
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([Namespace]):
            warnings.simplefilter("ignore")  # of types of storages that are no longer written
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # of a broken file, torch.load may raise anything
        raise too_little_memory(path) if is_out_of_memory(error) else damaged(path, error) from None


# ---- the zip archive


def measure_archive(data: mmap) -> None:
    """Hold an archive's pickle and every storage that it names to the members of the archive.

    Raises:
        ArchiveError, PickleError, OddTensorError: PyTorch is not to read it.
    """
    members = archive_members(data)
    content = members["data.pkl"]
    if content.size > MAX_PICKLE_BYTES:
        raise PickleError(f"its pickle is larger than {MAX_PICKLE_BYTES} bytes, which no checkpoint's is")
    known: dict[str, Storage] = {}

    def storage_of(name: tuple[Any, ...]) -> Storage:
        kind, key, place, count = name
        storage = _storage(kind, key, place, count)
        if known.setdefault(key, storage).nbytes != storage.nbytes:
            raise PickleError("its pickle names one storage in two sizes")
        if members.get(f"data/{key}", Member(0, -1)).size != storage.nbytes:
            raise PickleError("its pickle names a storage that the archive does not have in that size")
        return storage

    read_pickle(io.BytesIO(data[content.offset : content.offset + content.size]), storage_of)


# ---- the older form: five pickles, and the storages in a row


def _measure_row(data: mmap) -> None:
    """Hold every storage that the pickles name to the bytes that follow them."""
    stream = cast(IO[bytes], data)
    first = read_pickle(stream, _no_storage)
    if first != _MAGIC_NUMBER or _is_tar(data):
        raise PickleError("it is a pickle of something else, not of torch.save's")
    if read_pickle(stream, _no_storage) != _PROTOCOL or not isinstance(read_pickle(stream, _no_storage), dict):
        raise PickleError("it was written by another version of torch.save")
    whole: dict[str, tuple[Storage, int]] = {}
    views: dict[str, tuple[str, int, int]] = {}
    room = len(data)

    def storage_of(name: tuple[Any, ...]) -> Storage:
        nonlocal room
        kind, key, place, count, view = name
        storage = _storage(kind, key, place, count)
        if key in views or whole.setdefault(key, (storage, count))[0].nbytes != storage.nbytes:
            raise PickleError("its pickle names one storage in two sizes")
        if whole[key][0] is storage:
            room -= storage.nbytes
        if room < 0:
            raise PickleError("its pickle names storages that are larger than the file")
        if view is None:
            return storage
        view_key, offset, length = view
        if type(view_key) is not str or type(offset) is not int or type(length) is not int:
            raise PickleError("its pickle names a storage in a form that torch.save does not write")
        if not 0 <= offset <= offset + length <= count:
            raise PickleError("its pickle names a view that is larger than its storage")
        if view_key in whole or views.setdefault(view_key, (key, offset, length)) != (key, offset, length):
            raise PickleError("its pickle names one storage in two sizes")
        return Storage(storage.dtype, storage.width, length * storage.width)

    read_pickle(stream, storage_of)
    keys = read_pickle(stream, _no_storage)
    if not isinstance(keys, list) or {*map(type, keys)} - {str} or sorted(keys) != sorted(whole):
        raise PickleError("its list of storages is not that of its pickle")
    place = data.tell()
    for key in keys:
        storage, count = whole[key]
        if place + 8 + storage.nbytes > len(data) or struct.unpack_from("<q", data, place)[0] != count:
            raise PickleError("its values are cut short")
        place += 8 + storage.nbytes


def _is_tar(data: mmap) -> bool:
    """Whether its first block is a tar archive's, too: the oldest form, which PyTorch would look for first."""
    try:
        tarfile.TarInfo.frombuf(data[: tarfile.BLOCKSIZE], tarfile.ENCODING, "surrogateescape")
    except tarfile.TarError:
        return False
    return True


def _no_storage(name: tuple[Any, ...]) -> Storage:
    raise PickleError("its pickle names a storage where none belongs")


def _storage(kind: Any, key: Any, place: Any, count: Any) -> Storage:
    """The storage of a persistent id's parts, which are those that torch.save writes."""
    known = STORAGES.get(kind.rpartition(".")[2]) if isinstance(kind, str) else None
    if not known or type(key) is not str or type(place) is not str or type(count) is not int or count < 0:
        raise PickleError("its pickle names a storage in a form that torch.save does not write")
    return Storage(*known, count * known[1])
