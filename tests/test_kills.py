"""The campaign of kills: what a killed command may not leave is found, and the real commands leave none of it."""

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from import_tree import ROOT

from actvar.benchmarks.kills import KINDS, Kind, campaign
from actvar.files import written_whole

SECONDS, RESULT = 0.3, Path("result")


def whole() -> None:
    """What a command should do."""
    with written_whole(RESULT) as file:
        time.sleep(SECONDS)
        file.write(b"all of it")


def leaves_a_file() -> None:
    """The next run knows nothing of it."""
    half = Path(f".result.{secrets.token_hex(4)}.tmp")
    half.write_bytes(b"half")
    time.sleep(SECONDS)
    half.replace(RESULT)


def writes_the_rest() -> None:
    """Whatever was there before."""
    for _ in range(3):
        with RESULT.open("ab") as file:
            file.write(b"a third")
        time.sleep(SECONDS / 3)


def stumbles() -> None:
    """Over what the run before it made."""
    Path("folder").mkdir()
    time.sleep(SECONDS)
    Path("folder").rename(RESULT)


def planted(command: Callable[[], None]) -> dict[str, object]:
    """Six kills of a command that reads one file."""
    kind = Kind("of no words", lambda folder: (folder / "input").write_bytes(b"read"))
    return campaign("planted", kind, 6, 3, command)


def test_a_command_that_writes_whole_files_is_without_fault():
    """And the kills have met it."""
    found = planted(whole)
    assert found["faults"] == [] and found["killed"] and found["with_files_written"]


@pytest.mark.parametrize(
    ("command", "said"),
    [(leaves_a_file, ".tmp is left behind"), (writes_the_rest, "result differs"), (stumbles, "File exists: 'folder'")],
)
def test_a_fault_is_found(command, said):
    """One of each kind; the fault says which kill it was."""
    faults = planted(command)["faults"]
    assert isinstance(faults, list) and faults and all(fault.startswith("planted 3 ") for fault in faults)
    assert said in faults[0]


def test_a_command_that_is_never_the_same_is_no_measure():
    """Nothing could be held against it."""
    with pytest.raises(RuntimeError, match="two undisturbed runs of planted are not the same: result differs"):
        planted(lambda: RESULT.write_bytes(os.urandom(9)))


def test_what_is_not_installed_is_skipped_with_the_reason():
    """As TensorRT-RTX on most machines."""
    assert campaign("x", Kind("", print, "no_such_module"), 1, 0, print) == {
        "skipped": "no_such_module is not installed"
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["first_use", "bind"])
def test_a_killed_command_is_completed_by_the_next_run(kind, tmp_path):
    """The command itself; all kinds and more kills are for a person to start."""
    assert kind in KINDS
    command = [sys.executable, ROOT / "benchmarks/kills.py", kind, "--count", "3", "--json", tmp_path / "found"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "found").read_text())
    assert (report["format"], report["count"], report["kinds"][kind]["faults"]) == ("actvar-kills", 3, [])
