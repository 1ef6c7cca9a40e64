"""Of what a token store is: its `store.json`, read from anywhere, and a folder claimed for it.

    {"format": "actvar-tokens", "version": 1, "vqvae", "patch_nums", "data", "flips", "precision", "pictures", "chunk",
     "class_names", "sha256": of all that stands before it}

A store that was made before classes had names has neither of the last two fields.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actvar.bundle.json_form import HASH_FIELD, SHA256, FormReader, parse_json, write_json
from actvar.errors import DataError, shown
from actvar.scales import ScaleSchedule

LABEL = "store.json"
TOKEN_BYTES = 2
MAX_CLASSES = 1 << 20
MAX_NAME = 1000
"""Characters of a picture's or a class's name."""

_FORMAT = {"format": "actvar-tokens", "version": 1}
_PLAN = "vqvae patch_nums data flips precision pictures chunk"
_NAMES = "class_names"
_MAX_PICTURES, _MAX_CHUNK_BYTES = 1 << 40, 1 << 30
_MAX_SIDE, _MAX_SCALES = 1024, 64
_DIFFERENCES = 8  # that are named


@dataclass(frozen=True)
class StorePlan:
    """Of what a store is; plans of equal identity give equal tokens.

    Attributes:
        vqvae: hash of its weights, see `actvar.data.tokens.vqvae_hash`.
        patch_nums: sides of the token maps.
        data: identity of the pictures.
        flips: whether each picture's row is followed by one of its mirror image.
        precision: that it was encoded in.
        pictures: how many, skipped ones among them.
        chunk: pictures in one file.
        class_names: by number; empty where they have none. They decide no token, and are no part of the identity.
    """

    vqvae: str
    patch_nums: tuple[int, ...]
    data: Mapping[str, object]
    flips: bool
    precision: str
    pictures: int
    chunk: int
    class_names: tuple[str, ...] = ()

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
    def num_classes(self) -> int | None:
        """How many classes the pictures are sorted into, be there pictures of all or not; None if nothing says so."""
        said = self.data.get("classes")
        return len(self.class_names) or (said if type(said) is int else None)

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the tokens."""
        fields = {**_FORMAT, **asdict(self)}
        del fields[_NAMES]
        return fields

    @property
    def text(self) -> str:
        """The identity, as the hashes of chunks have it."""
        return json.dumps(self.identity, indent=1, sort_keys=True) + "\n"


def split_into_chunks(pictures: int, chunk: int) -> tuple[range, ...]:
    """The numbers of so many pictures, `chunk` at a time."""
    return tuple(range(start, min(start + chunk, pictures)) for start in range(0, pictures, chunk))


def read_plan(folder: Path) -> StorePlan:
    """What a store is of.

    Raises:
        DataError: there is no store, or it cannot be read, or says what no store can be.
    """
    path = folder / LABEL
    if not is_there(path):
        raise DataError(f"{folder} is no token store: it has no {LABEL}. Make one: actvar-trt encode --help")
    return _PlanReader(path, "Remove the folder and encode again.", DataError, "is not a token store's").plan()


class _PlanReader(FormReader):
    """Holds `store.json` to its form."""

    def plan(self) -> StorePlan:
        """The whole file."""
        data = self.load()
        if not isinstance(data, dict) or {name: data.get(name) for name in _FORMAT} != _FORMAT:
            raise self.refusal("is of another format or version")
        names: tuple[str, ...] = ()
        if _NAMES in data:
            self.check_hash(data)
            names = self.names(data[_NAMES])
        fields = {name: value for name, value in data.items() if name not in (*_FORMAT, _NAMES, HASH_FIELD)}
        vqvae, patch_nums, identity, flips, precision, pictures, chunk = self.fields("the store", fields, _PLAN)
        plan = StorePlan(
            self.matching("vqvae", vqvae, SHA256, "64 hexadecimal digits"),
            self.patch_nums(patch_nums),
            self.object("data", identity, 64),
            self.truth("flips", flips),
            self.one_of("precision", precision, ("fp32", "bf16")),
            self.integer("pictures", pictures, 1, _MAX_PICTURES),
            self.integer("chunk", chunk, 1, _MAX_PICTURES),
            names,
        )
        size = min(plan.chunk, plan.pictures) * plan.views * plan.tokens * TOKEN_BYTES
        self.integer("the size of a file, chunk times tokens,", size, 1, _MAX_CHUNK_BYTES)
        return plan

    def patch_nums(self, data: Any) -> tuple[int, ...]:
        """Sides of token maps."""
        items = self.items("patch_nums", data, 2, _MAX_SCALES)
        sides = tuple(self.integer("patch_nums", side, 1, _MAX_SIDE) for side in items)
        try:
            return ScaleSchedule(sides).patch_nums
        except ValueError as error:
            raise self.refusal(f"says that {error}") from None

    def names(self, data: Any) -> tuple[str, ...]:
        """Of classes."""
        return tuple(self.text(_NAMES, name, MAX_NAME) for name in self.items(_NAMES, data, 0, MAX_CLASSES))


def claim_folder(folder: Path, plan: StorePlan, busy: bool = False) -> None:
    """Make a folder a store of this plan, or see that it is; see `require_plan`.

    Raises:
        DataError: it is a store of another plan, or cannot be written.
    """
    path = folder / LABEL
    require_plan(folder, plan, busy)
    if is_there(path):
        there = read_plan(folder)
        if there.identity == _as_read(plan) and (there.class_names or not plan.class_names):
            return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {**plan.identity, _NAMES: list(plan.class_names)})
    except OSError as error:
        raise unwritten(path, error) from None


def require_plan(folder: Path, plan: StorePlan, busy: bool = False) -> None:
    """Make sure that a folder may become, or is, a store of this plan.

    A store that keeps neither a chunk nor a piece of one may still become another, but for those that are `busy`:
    somebody else is about to fill them.

    Raises:
        DataError: it may not.
    """
    if not is_there(folder / LABEL):
        return
    there, wanted = read_plan(folder).identity, _as_read(plan)
    if there != wanted and (busy or _keeps_tokens(folder)):
        raise DataError(
            f"{folder} holds other tokens ({', '.join(_differences(there, wanted))}). Choose another folder, or remove "
            "that one."
        )


def _keeps_tokens(folder: Path) -> bool:
    return any(name.startswith(("tokens_", ".piece_")) for name in names_in(folder))


def _as_read(plan: StorePlan) -> dict[str, Any]:
    """A plan's identity as it comes back from a file."""
    return {**plan.identity, "data": parse_json(json.dumps(plan.identity["data"]).encode())}


def _differences(there: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What is another in two plans: `vqvae 0123456789ab -> ba9876543210`."""
    flat = [{**plan, **{f"data's {name}": value for name, value in plan["data"].items()}} for plan in (there, wanted)]
    names = sorted(name for name in {*flat[0], *flat[1]} - {"data"} if flat[0].get(name) != flat[1].get(name))
    said = {name: " -> ".join(shown(str(plan.get(name))[:12]) for plan in flat) for name in names[:_DIFFERENCES]}
    return [f"{shown(name, 40)} {change}" for name, change in said.items()]


def is_there(path: Path) -> bool:
    """Whether a name is taken, by whatever it may be.

    Raises:
        DataError: nobody may look.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from None
    return True


def names_in(folder: Path) -> Iterator[str]:
    """The names in a store's folder, in no order.

    Raises:
        DataError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}. Check its permissions.") from None


def unwritten(path: Path, error: OSError) -> DataError:
    """The error for what cannot be written into a store."""
    return DataError(
        f"{path} cannot be written: {error.strerror}. Make room or name another folder; the same command goes on where "
        "it stopped."
    )
