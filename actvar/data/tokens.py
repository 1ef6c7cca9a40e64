"""Pictures as the token ids that a VQVAE made of them: what a transformer is trained on.

Letters in shapes: N rows (one of each picture, or two with its mirror image), T tokens of all scales.
"""

import hashlib
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from actvar.data.store_plan import StorePlan, read_plan
from actvar.data.token_files import MAX_CODES, chunk_path, map_rows, read_record, recorded_chunks
from actvar.errors import DataError, counted
from actvar.models.vqvae import VQVAE

Rows: TypeAlias = np.ndarray | slice | int


class MappedTokens:
    """Token ids NT (uint16) in the files of a store, indexed as an array of the first axis is.

    The files are mapped, so that the system keeps what fits and drops the rest: 1.28 million pictures are 1.7 GB.

    Args:
        files: each holds `rows_per_file` rows, the last may hold fewer; found whole, see `read_record`.
        rows_per_file: rows in a file.
        all_rows: rows in all files together.
        rows_N: those that count, in the numbering of all.
        tokens: T.
    """

    def __init__(self, files: Sequence[Path], rows_per_file: int, all_rows: int, rows_N: np.ndarray, tokens: int):
        self._files, self._rows_per_file, self._all_rows, self._rows_N = files, rows_per_file, all_rows, rows_N
        self._maps: dict[int, np.ndarray] = {}
        self.shape = (len(rows_N), tokens)

    def __getstate__(self) -> dict[str, Any]:
        """Without the maps, which pickle would read to their end."""
        return {**self.__dict__, "_maps": {}}

    def __len__(self) -> int:
        """N."""
        return len(self._rows_N)

    def __getitem__(self, places: Rows) -> np.ndarray:
        """The token ids of some rows."""
        rows = np.asarray(self._rows_N[places])
        files, inside = np.divmod(rows, self._rows_per_file)
        token_ids = np.empty((*rows.shape, self.shape[1]), np.uint16)
        for file in np.unique(files):
            here = files == file
            token_ids[here] = self._mapped(int(file))[inside[here]]
        return token_ids

    def _mapped(self, file: int) -> np.ndarray:
        if file not in self._maps:
            if len(self._maps) >= _most_open():
                del self._maps[next(iter(self._maps))]
            rows = min(self._rows_per_file, self._all_rows - file * self._rows_per_file)
            self._maps[file] = map_rows(self._files[file], rows, self.shape[1])
        return self._maps[file]


def _most_open() -> int:
    """How many files may be mapped: a map is an open file. ImageNet's training set is 513, of 1,024 that are usual."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, soft * 3 // 4) if soft != resource.RLIM_INFINITY else sys.maxsize


@dataclass(frozen=True)
class TokenStore:
    """Token ids NT (uint16) and class ids N (int64) of a data set.

    `num_classes` is how many classes its pictures are sorted into, where that is known; `class_names` are theirs.
    """

    token_ids: np.ndarray | MappedTokens
    class_ids: np.ndarray
    num_classes: int | None = None
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """N."""
        return len(self.class_ids)

    def batch(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids and class ids of some rows, int64."""
        rows = places.numpy()
        return torch.from_numpy(self.token_ids[rows].astype(np.int64)), torch.from_numpy(self.class_ids[rows])


def open_token_store(folder: Path, vqvae: VQVAE | None = None) -> TokenStore:
    """Open a store that `actvar-trt encode` made; its tokens stay on the disk, and every file is checked first.

    Args:
        folder: of the store.
        vqvae: that the tokens must be of, where it is known.

    Raises:
        DataError: it is no store, is not whole yet, was damaged, holds no picture, or is of another VQVAE or
            other scales.
    """
    plan = read_plan(folder)
    if vqvae is not None and (found := vqvae_hash(vqvae)) != plan.vqvae:
        raise DataError(
            f"{folder} holds tokens of another VQVAE: expected {found[:12]}…, found {plan.vqvae[:12]}…. "
            "Encode the pictures with this one, or take that one."
        )
    if vqvae is not None and (patch_nums := vqvae.quantize.schedule.patch_nums) != plan.patch_nums:
        raise DataError(
            f"{folder} holds tokens of other scales: expected patch_nums {patch_nums}, found {plan.patch_nums}. "
            "Encode the pictures with the model's own."
        )
    _require_all_chunks(folder, plan)
    codes = vqvae.quantize.embedding.num_embeddings if vqvae else MAX_CODES
    used = np.ones(plan.pictures, bool)
    class_ids = np.empty(plan.pictures, np.int64)
    for chunk in plan.chunks:
        record = read_record(folder, plan, chunk, codes)
        if record is None:
            raise _not_whole(folder, plan, 1, chunk)
        class_ids[chunk.start : chunk.stop] = record.class_ids
        used[[picture.number for picture in record.skipped]] = False
    if plan.num_classes is not None and (most := int(class_ids.max())) >= plan.num_classes:
        raise DataError(
            f"{folder} says that it is of {counted(plan.num_classes, 'class', 'classes')}, and holds pictures of class "
            f"{most}. Remove it and encode again."
        )
    if not used.any():
        skipped = "its one picture was" if plan.pictures == 1 else f"all {counted(plan.pictures, 'picture')} were"
        raise DataError(f"{folder} holds no token: {skipped} skipped. Look at the pictures.")
    return TokenStore(
        _mapped(folder, plan, used.repeat(plan.views)),
        class_ids[used].repeat(plan.views),
        plan.num_classes,
        plan.class_names,
    )


def _require_all_chunks(folder: Path, plan: StorePlan) -> None:
    """See how many chunks have a record; of what a plan claims beyond them, nothing is made."""
    there, count = recorded_chunks(folder, plan), -(-plan.pictures // plan.chunk)
    if len(there) < count:
        first = next(start for start in range(0, plan.pictures, plan.chunk) if start not in there)
        raise _not_whole(folder, plan, count - len(there), range(first, first + 1))


def _not_whole(folder: Path, plan: StorePlan, missing: int, first: range) -> DataError:
    chunks = counted(-(-plan.pictures // plan.chunk), "chunk")
    return DataError(
        f"{folder} is not whole: {missing} of {chunks} are not encoded yet, the first "
        f"{chunk_path(folder, first).name}. Give the same `encode` command again, of every --shard."
    )


def _mapped(folder: Path, plan: StorePlan, used: np.ndarray) -> MappedTokens:
    files = [chunk_path(folder, chunk) for chunk in plan.chunks]
    return MappedTokens(files, plan.chunk * plan.views, len(used), np.flatnonzero(used), plan.tokens)


def vqvae_hash(vqvae: VQVAE) -> str:
    """SHA-256 of a VQVAE's weights as fp32, by name and shape: the same for every file and device that holds them.

    What else decides tokens is in it where it is not as usual.
    """
    digest = hashlib.sha256(b"znorm\n" if vqvae.quantize.znorm else b"")
    for name, weight in sorted(vqvae.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()
