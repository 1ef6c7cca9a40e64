"""Pictures encoded into a token store, once: in chunks, by as many processes as there are shards, each resumable.

Letters in shapes: N pictures, 3 red green blue, H W pixels down and across, R rows (N, or 2N with mirror images),
T tokens of all scales.
"""

import re
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
from actvar.data.token_files import ChunkRecord, StorePlan, claim_folder, read_record, split_into_chunks, write_chunk
from actvar.data.tokens import TokenStore, open_token_store, vqvae_hash
from actvar.errors import ActVARError, DataError, UsageError
from actvar.files import locked
from actvar.models.vqvae import VQVAE

Precision: TypeAlias = Literal["fp32", "bf16"]


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
    if quantizer.embedding.num_embeddings > 1 << 16:
        raise DataError(f"A store's tokens have 16 bits, and the VQVAE has {quantizer.embedding.num_embeddings} codes.")
    plan = StorePlan(
        vqvae_hash(vqvae), quantizer.schedule.patch_nums, pictures.identity, settings.flips, settings.precision,
        len(pictures), settings.chunk,
    )  # fmt: skip
    claim_folder(folder, plan)
    vqvae = vqvae.to(settings.device)
    with _alone(folder / ".shard-{}-of-{}.lock".format(*settings.shard)):
        mine = settings.own_chunks(len(pictures))
        records = {chunk: read_record(folder, plan, chunk) for chunk in mine}
        missing = [chunk for chunk in mine if records[chunk] is None]
        done = there = sum(len(chunk) for chunk in mine if records[chunk])
        batches = _one_ahead(pictures.load, (part for chunk in missing for part in _parts(chunk, settings.batch)))
        progress(done)
        for chunk in missing:
            rows, record = [], ChunkRecord([], [])
            for part in _parts(chunk, settings.batch):
                batch = next(batches)
                rows.append(_token_ids(vqvae, batch.pictures_N3HW, settings))
                record.class_ids.extend(batch.class_ids_N.tolist())
                record.skipped.extend(batch.skipped)
                progress(done := done + len(part))
            write_chunk(folder, plan, chunk, np.concatenate(rows), record)
            records[chunk] = record
    all_skipped = tuple(picture for record in records.values() if record for picture in record.skipped)
    return Encoded(done, done - there, all_skipped)


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
    return open_token_store(folder)


def require_device(name: str) -> None:
    """Make sure that PyTorch has a device here.

    Raises:
        UsageError: it is the name of none that is used here.
        ActVARError: it is a GPU that is not there.
    """
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise UsageError(f"--device must be cpu, cuda or cuda:0 and up, got {name!r}.")
    if name != "cpu" and int(name.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise ActVARError(f"PyTorch finds {torch.cuda.device_count()} GPUs here, no {name}. Take another --device.")


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


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait for another process at the same shard, which does the same work."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(lock))
        except OSError as error:
            raise DataError(f"{lock} cannot be locked: {error.strerror}. Name a folder that can be written.") from None
        yield
