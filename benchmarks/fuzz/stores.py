"""Token stores: `store.json`, and tokens and records of chunks."""

import random
from pathlib import Path

import torch

from actvar.benchmarks.fuzz.changes import change_file, change_json
from actvar.benchmarks.fuzz.models import Noise, teacher
from actvar.data.encoding import EncodeSettings, encode_pictures
from actvar.data.store_plan import LABEL
from actvar.distill.files import open_tokens

_SAMPLES = {
    "store": (Noise(10), EncodeSettings(chunk=4)),
    "store-with-gaps": (Noise(7, bad=(2, 5)), EncodeSettings(chunk=5, flips=True)),
}


def samples(folder: Path) -> list[Path]:
    """Two stores, one of them with mirror images and skipped pictures."""
    for name, (pictures, settings) in _SAMPLES.items():
        encode_pictures(folder / name, teacher().vqvae, pictures, settings)
    return [folder / name for name in _SAMPLES]


def mutate(path: Path, rng: random.Random) -> None:
    """Change one file of a store."""
    files = sorted(file for file in path.iterdir() if file.suffix in (".json", ".npy"))
    file = rng.choice([path / LABEL, *files])
    if file.suffix == ".json" and rng.random() < 0.7:
        change_json(file, rng)
    else:
        change_file(file, rng)


def read(path: Path) -> None:
    """As a training does, and then as an encoding that goes on."""
    store = open_tokens(path, teacher(), 4)
    token_ids_NT, class_ids_N = store.batch(torch.arange(len(store)))
    teacher().vqvae.quantize.teacher_forcing(token_ids_NT)
    teacher().var.class_emb(class_ids_N)
    pictures, settings = _SAMPLES[path.name]
    encode_pictures(path, teacher().vqvae, pictures, settings)
