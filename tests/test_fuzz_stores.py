"""Stored data, changed at random and by an attacker: each change is read or refused, in a moment, in plain words."""

import os
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest
import torch

from actvar.errors import ActVARError

KINDS = (
    "encoded_pictures", "picture_archives", "picture_pieces", "picture_pieces_signed", "reference_pictures",
    "statistics_files", "stores", "stores_signed", "study_results", "study_results_signed", "training_states",
    "training_states_signed",
)  # fmt: skip
CHANGES, SECONDS = 30, 20


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads for maps of ten pixels wait for each other eight times as long as they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@contextmanager
def in_time() -> Iterator[None]:
    """What takes longer ends with an error: a pipe that is waited for would hold up all tests."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"it took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def copied(sample: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    copy = shutil.copytree if sample.is_dir() else shutil.copy
    return Path(copy(sample, folder / sample.name))


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_file_is_read_or_refused(kind: str, tmp_path: Path):
    """The samples are read as they are; what is said of their changed copies can be printed."""
    module = import_module(f"actvar.benchmarks.fuzz.{kind}")
    samples = tmp_path / "samples"
    samples.mkdir()
    paths = module.samples(samples)
    for path in paths:
        module.read(copied(path, tmp_path / "case"))
    for number in range(CHANGES):
        rng = random.Random(f"{kind} {number}")
        copy = copied(rng.choice(paths), tmp_path / "case")
        module.mutate(copy, rng)
        with in_time():
            try:
                module.read(copy)
            except ActVARError as error:
                assert str(error).isprintable(), number


def test_a_change_is_the_same_each_time(tmp_path: Path):
    """A fault must be found again by its number."""
    module = import_module("actvar.benchmarks.fuzz.stores_signed")
    (tmp_path / "samples").mkdir()
    sample = module.samples(tmp_path / "samples")[0]
    contents = []
    for _ in range(2):
        copy = copied(sample, tmp_path / "case")
        module.mutate(copy, random.Random("a seed"))
        contents.append({name: (copy / name).read_bytes() for name in sorted(os.listdir(copy)) if "lock" not in name})
    assert contents[0] == contents[1]
