"""The campaign of changed files: what a child may not do is found, and named so that it can be done again."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest
from import_tree import ROOT

from actvar.benchmarks import fuzz_files
from actvar.benchmarks.fuzz_files import KINDS, campaign, table
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


class RawError(BundleError):
    """An error of ours that says what it was given."""

    __str__ = Exception.__str__


def refuse(text: str) -> None:
    raise RawError(text)


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda path: {}["missing"], "KeyError: 'missing'"),
        (lambda path: [time.monotonic() for _ in iter(int, 1)], "more than 1 s"),
        (lambda path: time.sleep(30), "not done after 2 s of waiting"),
        (lambda path: bytearray(8 << 30), "MemoryError"),
        (lambda path: open("/etc/hostname").close(), "opened /etc/hostname"),
        (lambda path: subprocess.run(["true"], check=True), "started 'true'"),
        (lambda path: refuse("a name: \x1b[2J"), "said what a terminal obeys"),
        (lambda path: os.write(2, b"a name: \x1b[2J"), "printed what a terminal obeys"),
        (lambda path: os.abort(), "ended by SIGABRT"),
    ],
    ids=[
        "exception",
        "time",
        "waiting",
        "memory",
        "a file outside",
        "a program",
        "an escape sequence",
        "a print",
        "a signal",
    ],
)
def test_a_fault_is_found(read, said):
    """One of each kind that is looked for."""
    found = campaign(kind(read), "planted", 1, 7, 1, patience=2 if "waiting" in said else 60)
    assert (found["read"], found["refused"]) == (0, 0)
    [fault] = found["faults"]
    assert fault.startswith("planted 7 0: ") and said in fault


def test_want_of_memory_is_a_fault_but_where_graphs_run():
    """Samples are small. What an engine needs is decided by the operators of a graph, and cannot be known before."""
    module = kind(lambda path: refuse("There is not enough memory: a graph cannot be run."))
    assert "took the memory" in campaign(module, "planted", 1, 7, 20)["faults"][0]
    module.__dict__["RUNS_GRAPHS"] = True
    found = campaign(module, "planted", 1, 7, 20)
    assert found["faults"] == [] and found["out_of_memory"] == 1


def test_a_kind_that_follows_links_may_start_no_program_either():
    """A picture that starts Ghostscript lies in a folder whose links are followed."""
    module = kind(lambda path: (open("/etc/hostname").close(), subprocess.run(["true"], check=True)))
    module.__dict__["FOLLOWS_LINKS"] = True
    assert "started 'true'" in campaign(module, "planted", 1, 7, 20)["faults"][0]
    module = kind(lambda path: open("/etc/hostname").close())
    module.__dict__["FOLLOWS_LINKS"] = True
    assert campaign(module, "planted", 1, 7, 20)["read"] == 1


def test_what_is_read_and_what_is_refused_are_no_faults():
    """And both are counted."""

    def read(path: Path) -> None:
        if path.read_bytes()[-1] % 2:
            refuse("it was changed")

    found = campaign(kind(read), "planted", 12, 0, 20)
    assert found["faults"] == [] and found["read"] + found["refused"] == 12 and found["read"] and found["refused"]


BUNDLES = ("bundles", "graph_bytes", "graph_nodes", "manifests", "manifests_signed", "plans", "plans_signed")
FEW = """
import json, sys
from importlib import import_module
from actvar.benchmarks.fuzz_files import campaign
for kind in sys.argv[1:]:
    print(json.dumps(campaign(import_module(f"actvar.benchmarks.fuzz.{kind}"), kind, 12, 0, 20)))
"""


def test_changed_bundles_are_drawn_from_or_refused():
    """A few of each kind, in one process; other kinds have tests of their own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FEW, *BUNDLES],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == len(BUNDLES)
    for each in found:
        assert each["faults"] == [] and each["read"] + each["refused"] + each["out_of_memory"] == 12


def test_a_campaign_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is done with the same count, seed and commit is kept; all else is done again."""
    done: list[tuple[str, int, int]] = []
    code: dict[str, object] = {"commit": "0123abc", "altered": False}

    def alone(kind: str, count: int, seed: int, seconds: int) -> dict[str, Any]:
        done.append((kind, count, seed))
        if kind == "stores" and len(done) < 3:
            raise KeyboardInterrupt
        return {
            "count": count,
            "seed": seed,
            "seconds": 0.1,
            "read": 1,
            "refused": count - 1,
            "out_of_memory": 0,
            "faults": [],
        }

    monkeypatch.setattr(fuzz_files, "alone", alone)
    monkeypatch.setattr(fuzz_files, "commit", lambda besides: dict(code))
    path = tmp_path / "found.json"

    def start(*options: str) -> int:
        monkeypatch.setattr(sys, "argv", ["fuzz_files.py", "plans", "stores", *options, "--json", str(path)])
        return fuzz_files.main()

    with pytest.raises(KeyboardInterrupt):
        start("--count", "5")
    assert list(json.loads(path.read_bytes())["kinds"]) == ["plans"]
    assert start("--count", "5") == 0
    assert done == [("plans", 5, 0), ("stores", 5, 0), ("stores", 5, 0)]
    start("--count", "6")
    start("--count", "6", "--seed", "1")
    code["commit"] = "4567def"
    start("--count", "6", "--seed", "1")
    assert len(done) == 9
    code["altered"] = True
    start("--count", "6", "--seed", "1")
    start("--count", "6", "--seed", "1")
    assert len(done) == 13


def test_the_page_quotes_the_campaign_that_is_kept():
    """A table of another campaign, or faults without a word, would promise what nobody has seen."""
    kept = json.loads((ROOT / "benchmarks/results/fuzz-files.json").read_bytes())["kinds"]
    assert kept.keys() == KINDS.keys()
    page = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    assert "\n".join(table(kept)) in page
    for kind, result in kept.items():
        assert not result["faults"] or f"The {len(result['faults'])} of `{kind}`" in page
