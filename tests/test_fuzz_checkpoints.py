"""A short run of the seeded changes to checkpoints: whatever they do, the file is read or refused, and nothing else."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from actvar.benchmarks.fuzz import checkpoints
from actvar.errors import ActVARError

# Every change in a child of its own, which has a gigabyte more than it starts with and 20 seconds of time.
PROGRAM = """
import os, resource, shutil, signal, sys
from pathlib import Path
from random import Random
from actvar.benchmarks.fuzz.checkpoints import mutate, read, samples
from actvar.errors import ActVARError

work, count = Path(sys.argv[1]), int(sys.argv[2])
found = samples(work)
for sample in found:
    read(sample)
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024


def child(path, name):
    signal.alarm(20)
    mutate(path, Random(name))
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
    try:
        read(path)
    except ActVARError:
        print("refused", flush=True)
    except BaseException as error:
        print(f"{name}: {error!r}", flush=True)
    else:
        print("read", flush=True)


for sample in found:
    for number in range(count):
        folder = work / f"{sample.name}-{number}"
        folder.mkdir()
        path = Path((shutil.copytree if sample.is_dir() else shutil.copy)(sample, folder / sample.name))
        process = os.fork()
        if process == 0:
            child(path, folder.name)
            os._exit(0)
        status = os.waitpid(process, 0)[1]
        if status:
            print(f"{folder.name}: ended with {status}", flush=True)
        shutil.rmtree(folder)
"""


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return checkpoints.samples(tmp_path_factory.mktemp("samples"))


def test_the_samples_are_read(samples):
    assert [path.name for path in samples] == [
        *("pickle.pth", "archive.pth", "tensors.pth", "older.pth", "own.safetensors", "shards")
    ]
    for sample in samples:
        checkpoints.read(sample)


def test_changed_checkpoints_are_read_or_refused(tmp_path):
    """No signal, no other exception, no memory beyond a gigabyte, no more than 20 seconds."""
    arguments = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path), "20"]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # a fork takes no other threads along, and may wait for them
    run = subprocess.run(arguments, env=alone, capture_output=True, text=True, timeout=500, check=False)
    outcomes = run.stdout.splitlines()
    assert run.returncode == 0 and len(outcomes) == 6 * 20, run.stderr
    assert set(outcomes) == {"read", "refused"}


def test_the_same_seed_changes_a_file_in_the_same_way(samples, tmp_path):
    """Or nobody could look at a fault again. (PyTorch's older form holds addresses, so `tensors` is not the same.)"""
    for sample in (path for path in samples if path.is_file() and path.stem != "tensors"):
        contents = set()
        for folder in ("one", "two"):
            (tmp_path / folder).mkdir(exist_ok=True)
            path = Path(shutil.copy(sample, tmp_path / folder))
            checkpoints.mutate(path, random.Random(7))
            contents.add(path.read_bytes())
        assert len(contents) == 1 and contents != {sample.read_bytes()}, sample.name


def test_a_change_that_nothing_refuses_is_no_fault(samples, tmp_path):
    """`read` ends, or raises the project's own error: what a campaign counts as a fault is everything else."""
    path = tmp_path / "older.pth"
    path.write_bytes(b"")
    with pytest.raises(ActVARError, match="it is empty"):
        checkpoints.read(path)
