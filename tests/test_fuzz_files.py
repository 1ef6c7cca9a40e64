"""The campaign of changed files: what a child may not do is found, and named so that it can be done again."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import ModuleType

import pytest
from import_tree import ROOT

from actvar.benchmarks.fuzz_files import campaign
from actvar.errors import BundleError


def kind(read: Callable[[Path], object]) -> ModuleType:
    """A kind of file with one sample, which a change appends to; the sample itself is always read."""
    module = ModuleType("kind")

    def samples(folder: Path) -> list[Path]:
        (folder / "sample").write_bytes(b"as it was")
        return [folder / "sample"]

    def mutate(path: Path, rng: Random) -> None:
        path.write_bytes(path.read_bytes() + rng.randbytes(3))

    def read_changed(path: Path) -> None:
        if path.read_bytes() != b"as it was":
            read(path)

    module.__dict__.update(samples=samples, mutate=mutate, read=read_changed)
    return module


def refuse(text: str) -> None:
    raise BundleError(text)


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda path: {}["missing"], "KeyError: 'missing'"),
        (lambda path: time.sleep(30), "more than 1 s"),
        (lambda path: bytearray(8 << 30), "MemoryError"),
        (lambda path: open("/etc/hostname").close(), "opened /etc/hostname"),
        (lambda path: subprocess.run(["true"], check=True), "started 'true'"),
        (lambda path: refuse("a name: \x1b[2J"), "said what a terminal obeys"),
        (lambda path: __import__("os").abort(), "ended by SIGABRT"),
    ],
    ids=["exception", "time", "memory", "a file outside", "a program", "an escape sequence", "a signal"],
)
def test_a_fault_is_found(read, said):
    """One of each kind that is looked for."""
    outcomes, faults = campaign(kind(read), "planted", 1, 7, 1)
    assert outcomes == {"fault": 1}
    assert faults[0].startswith("planted 7 0: ") and said in faults[0]


def test_a_kind_that_follows_links_may_start_no_program_either():
    """A picture that starts Ghostscript lies in a folder whose links are followed."""
    module = kind(lambda path: (open("/etc/hostname").close(), subprocess.run(["true"], check=True)))
    module.__dict__["FOLLOWS_LINKS"] = True
    assert "started 'true'" in campaign(module, "planted", 1, 7, 20)[1][0]
    module = kind(lambda path: open("/etc/hostname").close())
    module.__dict__["FOLLOWS_LINKS"] = True
    assert campaign(module, "planted", 1, 7, 20) == ({"read": 1}, [])


def test_what_is_read_and_what_is_refused_are_no_faults():
    """And both are counted."""

    def read(path: Path) -> None:
        if path.read_bytes()[-1] % 2:
            refuse("it was changed")

    outcomes, faults = campaign(kind(read), "planted", 12, 0, 20)
    assert faults == [] and outcomes["read"] + outcomes["refused"] == 12 and len(outcomes) == 2


@pytest.mark.parametrize("name", ["bundles", "bundles_signed"])
def test_changed_bundles_are_drawn_from_or_refused(name, tmp_path):
    """By the command itself; other kinds have tests of their own."""
    command = [sys.executable, ROOT / "benchmarks/fuzz_files.py", name, "--count", "40", "--json", tmp_path / "found"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found").read_text())["kinds"][name]
    assert sum(found["outcomes"].values()) == 40 and found["faults"] == []
