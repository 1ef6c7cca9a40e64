"""The files of a token store: `store.json`, which says of what it is, and two files for each chunk of pictures.

`tokens_<first picture>.npy` holds uint16 [rows, tokens]; the `.json` beside it holds the classes, the pictures that
were skipped and a SHA-256 of all that. It is written last: a chunk without it is not there. Every file is written
whole or not at all, so chunks may be made in any order, by many processes, and copied together from many machines.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actvar.data.pictures import SkippedPicture
from actvar.errors import DataError
from actvar.files import written_whole

LABEL = "store.json"
_FORMAT = {"format": "actvar-tokens", "version": 1}


@dataclass(frozen=True)
class StorePlan:
    """Of what a store is; equal plans give equal tokens.

    Attributes:
        vqvae: hash of its weights, see `actvar.data.tokens.vqvae_hash`.
        patch_nums: sides of the token maps.
        data: identity of the pictures.
        flips: whether each picture's row is followed by one of its mirror image.
        precision: that it was encoded in.
        pictures: how many, skipped ones among them.
        chunk: pictures in one file.
    """

    vqvae: str
    patch_nums: tuple[int, ...]
    data: Mapping[str, object]
    flips: bool
    precision: str
    pictures: int
    chunk: int

    @property
    def views(self) -> int:
        """Rows of a picture."""
        return 2 if self.flips else 1

    @property
    def tokens(self) -> int:
        """Tokens of a row, of all scales."""
        return sum(p * p for p in self.patch_nums)

    @property
    def chunks(self) -> tuple[range, ...]:
        """The numbers of the pictures in each chunk."""
        return split_into_chunks(self.pictures, self.chunk)

    @property
    def text(self) -> str:
        """As it stands in `store.json`."""
        return json.dumps({**_FORMAT, **asdict(self)}, indent=1, sort_keys=True) + "\n"


@dataclass(frozen=True)
class ChunkRecord:
    """What is known of a chunk beside its tokens."""

    class_ids: list[int]
    skipped: list[SkippedPicture]


def split_into_chunks(pictures: int, chunk: int) -> tuple[range, ...]:
    """The numbers of so many pictures, `chunk` at a time."""
    return tuple(range(start, min(start + chunk, pictures)) for start in range(0, pictures, chunk))


def read_plan(folder: Path) -> StorePlan:
    """What a store is of.

    Raises:
        DataError: there is no store, or it cannot be read.
    """
    path = folder / LABEL
    try:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if {name: fields.pop(name, None) for name in _FORMAT} != _FORMAT:
            raise ValueError("another format or version")
        plan = StorePlan(**{**fields, "patch_nums": tuple(fields["patch_nums"])})
        _ = plan.chunks, plan.tokens, dict(plan.data)  # what is no number or no dictionary shows itself here
        return plan
    except FileNotFoundError:
        raise DataError(f"{folder} is no token store: it has no {LABEL}. Make one: actvar-trt encode --help") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path} is not a token store's ({error}). Remove the folder and encode again.") from None


def claim_folder(folder: Path, plan: StorePlan) -> None:
    """Make a folder a store of this plan, or see that it is.

    Raises:
        DataError: it is a store of another plan, or cannot be written.
    """
    path = folder / LABEL
    if path.exists():
        there, wanted = json.loads(read_plan(folder).text), json.loads(plan.text)
        if there != wanted:
            changes = ", ".join(_differences(there, wanted))
            raise DataError(f"{folder} holds other tokens ({changes}). Choose another folder, or remove that one.")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            file.write(plan.text.encode())
    except OSError as error:
        raise _unwritten(path, error) from None


def _differences(there: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What is another in two plans: `vqvae 0123456789ab -> ba9876543210`."""
    for plan in (there, wanted):
        plan |= {f"data's {name}": value for name, value in plan.pop("data").items()}
    names = sorted(name for name in {*there, *wanted} if there.get(name) != wanted.get(name))
    return [f"{name} {str(there.get(name))[:12]} -> {str(wanted.get(name))[:12]}" for name in names]


def chunk_path(folder: Path, chunk: range) -> Path:
    """Where a chunk's tokens lie."""
    return folder / f"tokens_{chunk.start:08d}.npy"


def write_chunk(folder: Path, plan: StorePlan, chunk: range, rows: np.ndarray, record: ChunkRecord) -> None:
    """Write a chunk's two files.

    Raises:
        DataError: they cannot be written.
    """
    path = chunk_path(folder, chunk)
    content = io.BytesIO()
    np.save(content, rows, allow_pickle=False)
    label = asdict(record)
    label["sha256"] = _digest(plan, content.getvalue(), label)
    try:
        for remains in folder.glob(f".{path.stem}.*.tmp"):  # of a process that was killed here
            remains.unlink(missing_ok=True)
        with written_whole(path) as file:
            file.write(content.getvalue())
        with written_whole(path.with_suffix(".json")) as file:
            file.write(json.dumps(label).encode())
    except OSError as error:
        raise _unwritten(path, error) from None


def read_record(folder: Path, plan: StorePlan, chunk: range) -> ChunkRecord | None:
    """What is known of a chunk, once its tokens are found whole; None where it was not made yet.

    Raises:
        DataError: a file was cut, altered, or is of another store.
    """
    path = chunk_path(folder, chunk)
    advice = f"Remove {path.name} and {path.stem}.json, and run the same actvar-trt encode again: it makes them anew."
    try:
        label = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        content = path.read_bytes()
        expected = label.pop("sha256")
        record = ChunkRecord(label["class_ids"], [SkippedPicture(**picture) for picture in label["skipped"]])
    except FileNotFoundError as error:
        if error.filename and Path(error.filename).suffix == ".json":
            return None
        raise DataError(f"{path} is missing, and its .json is there. {advice}") from None
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read: {error.strerror}.") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DataError(f"{path.with_suffix('.json')} is damaged: expected a chunk's record. {advice}") from None
    found = _digest(plan, content, label)
    if found != expected:
        raise DataError(
            f"{path} or its .json was cut, altered or comes from another store: expected SHA-256 {expected[:12]}…, "
            f"found {found[:12]}…. {advice}"
        )
    return record


def _digest(plan: StorePlan, content: bytes, label: Mapping[str, Any]) -> str:
    """Of tokens, classes and skips, and of the store that they belong to."""
    digest = hashlib.sha256(content)
    digest.update(json.dumps(label, sort_keys=True).encode())
    digest.update(plan.text.encode())
    return digest.hexdigest()


def _unwritten(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path} cannot be written: {error.strerror}. Make room or name another folder; the same command goes on where "
        "it stopped."
    )
