"""How long a token store of ImageNet's size takes to open, a batch of it to read, and how much memory that needs.

    python benchmarks/token_store.py

The store is written first, of random tokens: 1.7 GB in a temporary folder. Linux only.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from actvar.benchmarks.command import end_with
from actvar.data.encoding import EncodeSettings
from actvar.data.store_plan import StorePlan, claim_folder
from actvar.data.token_files import ChunkRecord, write_chunk
from actvar.data.tokens import open_token_store
from actvar.errors import counted
from actvar.process_memory import process_memory
from actvar.scales import ScaleSchedule

BATCH, BATCHES = 512, 20


def write_store(folder: Path, pictures: int) -> None:
    """A whole store of random tokens."""
    plan = StorePlan("0" * 64, ScaleSchedule().patch_nums, {}, False, "fp32", pictures, EncodeSettings.chunk)
    claim_folder(folder, plan)
    rows = np.random.default_rng(0).integers(0, 4096, (plan.chunk, plan.tokens)).astype(np.uint16)
    for chunk in plan.chunks:
        write_chunk(folder, plan, chunk, rows[: len(chunk)], ChunkRecord([i % 1000 for i in chunk], []))


def main() -> None:
    """Write, open, read, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=1_281_167)
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        write_store(Path(name), arguments.pictures)
        before, started = process_memory().anonymous, time.perf_counter()
        store = open_token_store(Path(name))
        print(f"opened and checked {counted(len(store), 'picture')} in {time.perf_counter() - started:.1f} s")
        generator, seconds = torch.Generator().manual_seed(0), []
        for _ in range(BATCHES):
            places = torch.randint(len(store), (BATCH,), generator=generator)
            started = time.perf_counter()
            store.batch(places)
            seconds.append(time.perf_counter() - started)
        print(f"a batch of {BATCH}: the first {1e3 * seconds[0]:.0f} ms, then {1e3 * np.median(seconds[1:]):.0f} ms")
        print(f"memory of its own: {(process_memory().anonymous - before) / 1e6:.0f} MB more")


if __name__ == "__main__":
    end_with(main)
