"""Pictures encoded into a token store, once: in chunks, by as many processes as there are shards, each resumable.

Letters in shapes: N pictures, 3 red green blue, H W pixels down and across, R rows (N, or 2N with mirror images),
T tokens of all scales.
"""

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from actvar.data.pictures import PictureBatch, PictureSource, SkippedPicture
from actvar.data.store_plan import StorePlan, claim_folder, require_plan, split_into_chunks, unwritten
from actvar.data.token_files import (
    MAX_CODES,
    ChunkRecord,
    kept_pieces,
    read_record,
    remove_pieces,
    write_chunk,
    write_piece,
)
from actvar.data.tokens import TokenStore, open_token_store, vqvae_hash
from actvar.errors import ActVARError, DataError, UsageError, counted
from actvar.files import locked
from actvar.models.vqvae import VQVAE

Precision: TypeAlias = Literal["fp32", "bf16"]

_KEEP_SECONDS = 30.0  # of work that a kill may cost, and a batch's; a chunk may take ten minutes
_LOCKS = ".shard-*.lock"


@dataclass(frozen=True)
class EncodeSettings:
    """How a store is made.

    `flips`, `precision` (official VAR encodes in fp32) and `chunk`, the pictures in one file, are part of what the
    store is. `shard` (i, n) takes every n-th chunk from the i-th, counted from 0. `batch` and `device` decide speed;
    near-ties between two codes may round another way with them.
    """

    flips: bool = False
    precision: Precision = "fp32"
    chunk: int = 2500
    batch: int = 50
    device: str = "cpu"
    shard: tuple[int, int] = (0, 1)

    def own_chunks(self, pictures: int) -> tuple[range, ...]:
        """The shard's chunks of a data set of so many pictures."""
        index, shards = self.shard
        return split_into_chunks(pictures, self.chunk)[index::shards]


@dataclass(frozen=True)
class Encoded:
    """What a shard holds: its pictures, how many of them are new, and which were skipped."""

    pictures: int
    new: int
    skipped: tuple[SkippedPicture, ...]


def encode_pictures(
    folder: Path,
    vqvae: VQVAE,
    pictures: PictureSource,
    settings: EncodeSettings,
    progress: Callable[[int], None] = lambda pictures: None,
) -> Encoded:
    """Encode a shard's pictures, continuing what an earlier call began.

    Args:
        folder: of the store; other shards may write into it at the same time.
        vqvae: the encoder, in evaluation mode; it is moved to the device.
        pictures: the data set.
        settings: how, and which of them.
        progress: is told how many pictures of the shard there are now.

    Raises:
        DataError: the folder holds tokens of other pictures or another VQVAE, is damaged, or cannot be written; or a
            picture's file cannot be read.
    """
    quantizer = vqvae.quantize
    if quantizer.embedding.num_embeddings > MAX_CODES:
        raise DataError(
            f"A store's tokens have 16 bits, and the VQVAE has {counted(quantizer.embedding.num_embeddings, 'code')}."
        )
    plan = StorePlan(
        vqvae_hash(vqvae), quantizer.schedule.patch_nums, pictures.identity, settings.flips, settings.precision,
        len(pictures), settings.chunk, pictures.class_names,
    )  # fmt: skip
    require_plan(folder, plan, busy=_is_busy(folder))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritten(folder, error) from None
    vqvae, codes = vqvae.to(settings.device), quantizer.embedding.num_embeddings
    shard = folder / ".shard-{}-of-{}.lock".format(*settings.shard)
    with _alone(shard):
        with _alone(folder / ".store.lock"):
            claim_folder(folder, plan, busy=_is_busy(folder, shard))
        mine = settings.own_chunks(len(pictures))
        records = {chunk: read_record(folder, plan, chunk, codes) for chunk in mine}
        for chunk in mine:
            if records[chunk]:
                remove_pieces(folder, chunk)  # of a process that was killed just before it did so
        making = [_Making(folder, plan, chunk) for chunk in mine if records[chunk] is None]
        done = there = sum(len(chunk) for chunk in mine if records[chunk]) + sum(each.done for each in making)
        batches = _one_ahead(pictures.load, (part for each in making for part in each.parts(settings.batch)))
        progress(done)
        kept_at = time.monotonic()
        for each in making:
            for part in each.parts(settings.batch):
                batch = next(batches)
                each.add(_token_ids(vqvae, batch.pictures_N3HW, settings), batch)
                progress(done := done + len(part))
                if time.monotonic() - kept_at >= _KEEP_SECONDS and not each.is_whole:
                    each.keep()
                    kept_at = time.monotonic()
            records[each.chunk] = each.finish()
            kept_at = time.monotonic()
    all_skipped = tuple(picture for record in records.values() if record for picture in record.skipped)
    return Encoded(done, done - there, all_skipped)


class _Making:
    """A chunk that is being made: the pieces of it that were kept, and what is new."""

    def __init__(self, folder: Path, plan: StorePlan, chunk: range):
        self._folder, self._plan, self.chunk = folder, plan, chunk
        self._rows: list[np.ndarray] = []
        self._record = ChunkRecord([], [])
        for rows_RT, record in kept_pieces(folder, plan, chunk):
            self._rows.append(rows_RT)
            self._record.class_ids.extend(record.class_ids)
            self._record.skipped.extend(record.skipped)
        self.done = self._kept = len(self._record.class_ids)
        """Pictures that were there when this began."""
        self._kept_rows = len(self._rows)

    @property
    def is_whole(self) -> bool:
        """Whether all pictures are there."""
        return len(self._record.class_ids) == len(self.chunk)

    def parts(self, batch: int) -> list[range]:
        """The numbers of the pictures that were not there, a batch at a time."""
        return _parts(self.chunk[self.done :], batch)

    def add(self, rows_RT: np.ndarray, batch: PictureBatch) -> None:
        """Take in the next pictures."""
        self._rows.append(rows_RT)
        self._record.class_ids.extend(batch.class_ids_N.tolist())
        self._record.skipped.extend(batch.skipped)

    def keep(self) -> None:
        """Write what is new since the last time as a piece."""
        numbers = self.chunk[self._kept : len(self._record.class_ids)]
        skipped = [picture for picture in self._record.skipped if picture.number in numbers]
        record = ChunkRecord(self._record.class_ids[self._kept :], skipped)
        write_piece(self._folder, self._plan, numbers, np.concatenate(self._rows[self._kept_rows :]), record)
        self._kept, self._kept_rows = len(self._record.class_ids), len(self._rows)

    def finish(self) -> ChunkRecord:
        """Write the chunk, which needs no pieces then."""
        write_chunk(self._folder, self._plan, self.chunk, np.concatenate(self._rows), self._record)
        remove_pieces(self._folder, self.chunk)
        self._rows.clear()
        return self._record


def build_token_store(
    folder: Path, vqvae: VQVAE, pictures: PictureSource, settings: EncodeSettings | None = None
) -> TokenStore:
    """Encode all pictures, or what is missing of them, under a progress bar; returns the store.

    Args and errors are those of `encode_pictures`.
    """
    with Progress() as bar:
        task = bar.add_task("Encoding pictures", total=len(pictures))
        encode_pictures(
            folder, vqvae, pictures, settings or EncodeSettings(), lambda done: bar.update(task, completed=done)
        )
    return open_token_store(folder, vqvae)


def require_device(name: str) -> None:
    """Make sure that PyTorch has a device here.

    Raises:
        UsageError: it is the name of none that is used here.
        ActVARError: it is a GPU that is not there.
    """
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise UsageError(f"--device must be cpu, cuda or cuda:0 and up, got {name!r}.")
    if name != "cpu" and int(name.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise ActVARError(
            f"PyTorch finds {counted(torch.cuda.device_count(), 'GPU')} here, no {name}. Take another --device."
        )


def _parts(chunk: range, batch: int) -> list[range]:
    return [chunk[first : first + batch] for first in range(0, len(chunk), batch)]


def _one_ahead(load: Callable[[range], PictureBatch], parts: Iterable[range]) -> Iterator[PictureBatch]:
    """Every part in turn, loaded while the one before it is worked on: two are in memory, never more."""
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for part in parts:
            loading = pool.submit(load, part)
            if waiting:
                yield waiting.result()
            waiting = loading
        if waiting:
            yield waiting.result()


def _token_ids(vqvae: VQVAE, pictures_N3HW: Tensor, settings: EncodeSettings) -> np.ndarray:
    """Token ids RT of pictures; a mirror image follows its picture."""
    pictures_N3HW = pictures_N3HW.to(settings.device)
    views = [pictures_N3HW, pictures_N3HW.flip(3)] if settings.flips else [pictures_N3HW]
    kind = torch.device(settings.device).type
    with torch.autocast(kind, torch.bfloat16, enabled=settings.precision == "bf16"):
        token_ids_RT = torch.stack([vqvae.encode(view) for view in views], dim=1).flatten(0, 1)
    return token_ids_RT.cpu().numpy().astype(np.uint16)


def _is_busy(folder: Path, own: Path | None = None) -> bool:
    """Whether another process is encoding into a folder; `own` is the lock that this one holds."""
    for lock in folder.glob(_LOCKS):
        if lock == own or lock.is_symlink():
            continue
        try:
            file = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks: the work itself will say so
            continue
        finally:
            os.close(file)
    return False


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait for another process at the same shard, which does the same work."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(lock))
        except OSError as error:
            raise DataError(f"{lock} cannot be locked: {error.strerror}. Name a folder that can be written.") from None
        yield
