"""The result files say how they were made, and nothing of the machine's owner, folders or kernel."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from import_tree import ROOT

from actvar import provenance
from actvar.provenance import commit, typed
from actvar.runtime.machine import this_machine

RESULTS = sorted((ROOT / "benchmarks" / "results").rglob("*.json"))
PRIVATE = re.compile(
    r"(?:^|[\s'\"=])/\S|~/|\btmp/|\d+\.\d+\.\d+-\S*\s+(?:x86_64|aarch64)|\b(?:lent|borrowed) machine\b"
)
"""An absolute path, a home, a folder for scratch, a kernel's release, and whose machine it was."""


def texts(value: Any) -> Iterator[str]:
    """All that is text in a JSON document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for item in value.values() for text in texts(item))
    elif isinstance(value, list):
        yield from (text for item in value for text in texts(item))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: str(path.relative_to(ROOT / "benchmarks" / "results")))
def test_a_result_file_keeps_to_itself_where_it_was_made(path: Path):
    """Anybody can type its command, and nobody learns whose machine it was."""
    for text in texts(json.loads(path.read_text(encoding="utf-8"))):
        assert not PRIVATE.search(text), text


@pytest.mark.parametrize(
    "text",
    [
        "actvar-trt bench --out /srv/out",
        "actvar-trt bench --out=/srv/out",
        "actvar-trt bench --official-var ../../tmp/VAR",
        "python ~/benchmarks/soak.py",
        "Linux 6.18.44-fc-v769 x86_64",
        "on a lent machine",
    ],
)
def test_what_must_not_be_in_a_result_is_found(text: str):
    """The rule itself."""
    assert PRIVATE.search(text)


def test_a_command_is_written_as_anybody_could_type_it(tmp_path: Path):
    """Paths in the folder are relative to it; of others the last name stays; everything else is as it was."""
    words = ["python", str(tmp_path / "a" / "soak.py"), "--out", "/srv/data/VAR", f"--json={tmp_path / 'x.json'}"]
    words += ["--class", "a name", "--rates", "0.5,0.25", "../VAR", "--device=cpu", "/"]
    assert shlex.split(typed(words, tmp_path)) == [
        *("python", "a/soak.py", "--out", "VAR", "--json=x.json"),
        *("--class", "a name", "--rates", "0.5,0.25", "../VAR", "--device=cpu", ""),
    ]


def test_a_machine_is_told_without_its_kernel():
    """A virtual machine's kernel says nothing about speed."""
    assert re.fullmatch(r"\w+ \w+", this_machine().system)


def test_the_commit_is_this_checkouts_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An installation in somebody else's checkout must not be told by that one's commit."""
    here = ["git", "rev-parse", "HEAD"]
    done = subprocess.run(here, cwd=ROOT, capture_output=True, text=True, check=False)
    assert commit()["commit"] == (done.stdout.strip() if done.returncode == 0 and (ROOT / ".git").exists() else "")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setattr(provenance, "_CHECKOUT", tmp_path / "site-packages")
    assert commit() == {"commit": "", "altered": False}


# ---- the scripts


def scripts() -> list[Path]:
    """Files of benchmarks/ that are run; `pictures/worker.py` is told everything by the process that starts it."""
    found = [path for path in (ROOT / "benchmarks").rglob("*.py") if '__name__ == "__main__"' in path.read_text()]
    return sorted(path for path in found if path.name != "worker.py")


@pytest.mark.parametrize("path", scripts(), ids=lambda path: path.name)
def test_every_script_tells_how_it_is_used(path: Path):
    """From any folder; and it measures nothing before it has read its options."""
    command = [sys.executable, str(path), "--help"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ") and path.stem in done.stdout
