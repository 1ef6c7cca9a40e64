"""A short run of the seeded changes to checkpoints: whatever they do, the file is read or refused, and nothing else."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from actvar.benchmarks.fuzz import checkpoints, safetensors_files
from actvar.errors import ActVARError

# Every change in a child of its own, which has a gigabyte more than it starts with and 20 seconds of time.
PROGRAM = """
import os, resource, shutil, signal, sys
from pathlib import Path
from random import Random
from actvar.benchmarks.fuzz import checkpoints, safetensors_files
from actvar.errors import ActVARError

work, count = Path(sys.argv[1]), int(sys.argv[2])
found = [(module, sample) for module in (checkpoints, safetensors_files) for sample in module.samples(work)]
for module, sample in found:
    module.read(sample)
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024


def child(module, path, name):
    signal.alarm(20)
    module.mutate(path, Random(name))
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
    try:
        module.read(path)
    except ActVARError:
        print("refused", flush=True)
    except BaseException as error:
        print(f"{name}: {error!r}", flush=True)
    else:
        print("read", flush=True)


for module, sample in found:
    for number in range(count):
        folder = work / f"{sample.name}-{number}"
        folder.mkdir()
        path = Path((shutil.copytree if sample.is_dir() else shutil.copy)(sample, folder / sample.name))
        process = os.fork()
        if process == 0:
            child(module, path, folder.name)
            os._exit(0)
        status = os.waitpid(process, 0)[1]
        if status:
            print(f"{folder.name}: ended with {status}", flush=True)
        shutil.rmtree(folder)
"""


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("samples")
    return checkpoints.samples(folder) + safetensors_files.samples(folder)


def module_of(sample: Path) -> ModuleType:
    return checkpoints if sample.suffix == ".pth" else safetensors_files


def test_the_samples_are_read(samples):
    assert [path.name for path in samples] == [
        *("pickle.pth", "archive.pth", "tensors.pth", "older.pth", "own.safetensors", "shards")
    ]
    for sample in samples:
        module_of(sample).read(sample)


def test_changed_checkpoints_are_read_or_refused(tmp_path):
    """No signal, no other exception, no memory beyond a gigabyte, no more than 20 seconds."""
    arguments = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path), "20"]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # a fork takes no other threads along, and may wait for them
    run = subprocess.run(arguments, env=alone, capture_output=True, text=True, timeout=500, check=False)
    outcomes = run.stdout.splitlines()
    assert run.returncode == 0 and len(outcomes) == 6 * 20, run.stderr
    assert set(outcomes) == {"read", "refused"}


def test_the_same_seed_changes_a_file_in_the_same_way(samples, tmp_path):
    """Or nobody could look at a fault again."""
    for sample in filter(Path.is_file, samples):
        contents = set()
        for folder in ("one", "two"):
            (tmp_path / folder).mkdir(exist_ok=True)
            path = Path(shutil.copy(sample, tmp_path / folder))
            module_of(sample).mutate(path, random.Random(7))
            contents.add(path.read_bytes())
        assert len(contents) == 1 and contents != {sample.read_bytes()}, sample.name


def test_a_change_that_nothing_refuses_is_no_fault(samples, tmp_path):
    """`read` ends, or raises the project's own error: what a campaign counts as a fault is everything else."""
    path = tmp_path / "older.pth"
    path.write_bytes(b"")
    with pytest.raises(ActVARError, match="it is empty"):
        checkpoints.read(path)
