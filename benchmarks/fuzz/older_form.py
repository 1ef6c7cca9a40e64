"""PyTorch's older form of a checkpoint, as torch.save wrote it before 1.6: five pickles, and the values behind them.

Not by torch.save: it names every storage by its address, so that no seed would give the same file again.
"""

import pickle
import struct
import sys
from pathlib import Path
from typing import Any

import torch
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

_PROTOCOL = 2
_SIZES = {"short": 2, "int": 4, "long": 4}


class _Pickler(pickle.Pickler):
    """Puts a number in the place of every storage."""

    def __init__(self, file: Any):
        super().__init__(file, _PROTOCOL)
        self.storages: dict[int, tuple[str, Any]] = {}

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, torch.storage.TypedStorage):
            return None
        key, _ = self.storages.setdefault(value._cdata, (f"{len(self.storages):05}", value))
        kind = getattr(torch, value._pickle_storage_type())
        return "storage", kind, key, str(value._untyped_storage.device), value._size(), None


def save_older(content: Any, path: Path) -> None:
    """Write what torch.load reads; storages are named and ordered as they come."""
    with path.open("wb") as file:
        system = {"protocol_version": PROTOCOL_VERSION, "little_endian": sys.byteorder == "little"}
        for value in (MAGIC_NUMBER, PROTOCOL_VERSION, {**system, "type_sizes": _SIZES}):
            pickle.dump(value, file, _PROTOCOL)
        pickler = _Pickler(file)
        pickler.dump(content)
        pickle.dump([key for key, _ in pickler.storages.values()], file, _PROTOCOL)
        for _, storage in pickler.storages.values():
            values = torch.empty(0, dtype=torch.uint8).set_(storage._untyped_storage)
            file.write(struct.pack("<q", storage._size()) + values.numpy().tobytes())
