"""Pictures turned into token ids once, so that a transformer's training need not encode them again.

A store is one `.npy` file of uint16 [pictures, tokens] and its class ids; it grows in chunks and resumes.

Letters in shapes: N pictures, T tokens of all scales.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from actvar.errors import CheckpointError
from actvar.models.vqvae import VQVAE
from actvar.training.loop import autocast

PictureSource = Callable[[range], tuple[Tensor, Tensor]]
"""Picture numbers to pictures in [-1, 1], N3HW, and their class ids, N."""


@dataclass(frozen=True)
class TokenStore:
    """Token ids NT (uint16) and class ids N (int64) of a data set."""

    token_ids: np.ndarray
    class_ids: np.ndarray

    def __len__(self) -> int:
        """N."""
        return len(self.class_ids)

    def batch(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids and class ids of some pictures, int64."""
        rows = places.numpy()
        return torch.from_numpy(self.token_ids[rows].astype(np.int64)), torch.from_numpy(self.class_ids[rows])


def build_token_store(
    folder: Path,
    vqvae: VQVAE,
    pictures: PictureSource,
    count: int,
    identity: str,
    device: str = "cpu",
    chunk: int = 500,
) -> TokenStore:
    """Encode pictures 0 to count-1, continuing what an earlier call began.

    Args:
        folder: receives one file for each chunk.
        vqvae: the encoder, in evaluation mode.
        pictures: the data set.
        count: N.
        identity: names VQVAE and data; a folder built from others is refused.
        device: where to encode.
        chunk: pictures per file.

    Raises:
        CheckpointError: the folder holds tokens of another VQVAE or data set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    label = folder / "source.json"
    wanted = json.dumps({"identity": identity, "chunk": chunk})
    if label.exists() and label.read_text(encoding="utf-8") != wanted:
        raise CheckpointError(
            f"{folder} holds tokens of another VQVAE or data set. Choose another folder or remove it."
        )
    label.write_text(wanted, encoding="utf-8")
    vqvae = vqvae.to(device)
    starts = range(0, count, chunk)
    for start in track(starts, description="Encoding pictures"):
        if not _chunk_file(folder, start).exists():
            _encode_chunk(folder, vqvae, pictures, range(start, start + chunk), device)
    loaded = [np.load(_chunk_file(folder, start), allow_pickle=False) for start in starts]
    return TokenStore(
        np.concatenate([chunk["token_ids"] for chunk in loaded])[:count],
        np.concatenate([chunk["class_ids"] for chunk in loaded])[:count],
    )


def _chunk_file(folder: Path, start: int) -> Path:
    return folder / f"tokens_{start:08d}.npz"


def _encode_chunk(folder: Path, vqvae: VQVAE, pictures: PictureSource, numbers: range, device: str) -> None:
    token_ids, class_ids = [], []
    for first in range(numbers.start, numbers.stop, 50):
        batch_N3HW, batch_N = pictures(range(first, min(first + 50, numbers.stop)))
        with autocast(device):
            token_ids.append(vqvae.encode(batch_N3HW.to(device)).cpu().numpy().astype(np.uint16))
        class_ids.append(batch_N.numpy())
    temporary = folder / "tokens.tmp.npz"
    np.savez(temporary, token_ids=np.concatenate(token_ids), class_ids=np.concatenate(class_ids))
    os.replace(temporary, _chunk_file(folder, numbers.start))
