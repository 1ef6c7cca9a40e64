"""Files from a stranger: seeded changes to every kind of file that is read, each read by a child that is watched.

    python benchmarks/fuzz_files.py stores_signed --count 1000 --seed 1
    python benchmarks/fuzz_files.py all --seed 2026 --json runs/fuzz-files.json

A child may read the file, or refuse it by an error of the project's own. All else is a fault: another exception, a
signal, more than its time or memory, a program that it starts, a file that it opens outside of the sample's folder,
words that a terminal obeys. A fault is named by its kind, seed and number: the same seed changes the file in the same
way again. Exit code 1 if there is one. Linux only.

A graph's operators may be joined to need more memory than there is. What is refused for that alone is counted by itself
where graphs run, and is a fault everywhere else.

The JSON is written after every kind. A campaign that was stopped goes on behind the kinds that stand in it with the
same count, seed and commit, without a change since.
"""

import argparse
import faulthandler
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from actvar.benchmarks.command import end_with
from actvar.errors import ActVARError
from actvar.files import remove_folder
from actvar.provenance import commit, typed
from actvar.reports import check_json_option, write_report
from actvar.runtime.machine import this_machine

KINDS = {
    "bundles": 300,
    "checkpoints": 5700,
    "encoded_pictures": 1200,
    "graph_bytes": 2000,
    "graph_nodes": 1200,
    "manifests": 4000,
    "manifests_signed": 3000,
    "picture_archives": 1000,
    "picture_pieces": 1000,
    "picture_pieces_signed": 500,
    "plans": 1500,
    "plans_signed": 1000,
    "reference_pictures": 1000,
    "safetensors_files": 2000,
    "statistics_files": 1000,
    "stores": 1500,
    "stores_signed": 1200,
    "study_results": 900,
    "study_results_signed": 700,
    "training_states": 700,
    "training_states_signed": 600,
}
"""Each kind, and how many changed files of it make a whole campaign: 32,000 together."""
READ, REFUSED, MEMORY = "read", "refused", "out_of_memory"
_COLUMNS = ("count", READ, REFUSED, MEMORY)
FORMAT, VERSION = "actvar-fuzz-files", 1
_MEMORY = 2 << 30  # bytes that a child may take more than it starts with
_PATIENCE = 600
_NO_MEMORY = "not enough memory"  # which is no fault of a large model, but samples are small
_PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")


def campaign(
    module: ModuleType, kind: str, count: int, seed: int, seconds: int, patience: int = _PATIENCE
) -> dict[str, Any]:
    """Change and read so many files of a kind.

    Args:
        module: the kind's.
        kind, seed: with a file's number they decide how it is changed.
        count: files.
        seconds: of the processor's time that one file may take.
        patience: seconds by the clock, after which it is waiting for something.

    Returns: how many were read, refused, and refused for want of memory; the faults in words; the seconds in all.
    """
    outcomes, faults = {READ: 0, REFUSED: 0, MEMORY: 0}, []
    with tempfile.TemporaryDirectory(prefix="actvar-fuzz-") as name:
        folder = Path(name)
        (folder / "samples").mkdir()
        samples = module.samples(folder / "samples")
        for sample in samples:
            module.read(_copy(sample, folder / "case"))
        started = time.perf_counter()
        for number in range(count):
            rng = random.Random(f"{kind} {seed} {number}")
            copy = _copy(rng.choice(samples), folder / "case")
            said = _watched(module, copy, rng, folder, seconds, patience)
            if said in outcomes:
                outcomes[said] += 1
            else:
                faults.append(f"{kind} {seed} {number}: {said}".replace(name, "."))
        took = round(time.perf_counter() - started, 1)
        remove_folder(folder / "case")
    return {"count": count, "seed": seed, **outcomes, "faults": faults, "seconds": took}


def _copy(sample: Path, folder: Path) -> Path:
    """The sample in a folder of its own, in which nothing else is."""
    remove_folder(folder)
    remove_folder(folder.parent / "outside")
    folder.mkdir()
    copy = shutil.copytree if sample.is_dir() else shutil.copy
    return Path(copy(sample, folder / sample.name))


def _watched(module: ModuleType, path: Path, rng: random.Random, folder: Path, seconds: int, patience: int) -> str:
    """What a child of this process says of a file that it changes and reads, or what became of the child."""
    readable, writable = os.pipe()
    printed = os.memfd_create("printed")
    child = os.fork()
    if child == 0:
        os.close(readable)
        faulthandler.disable()  # how the child ends is reported; where it was would be written to pytest's own output
        signal.setitimer(signal.ITIMER_PROF, seconds)  # a busy machine is no fault of the file
        signal.alarm(patience)
        for stream in (1, 2):
            os.dup2(printed, stream)
        said = _read(module, path, rng, folder)
        os.write(writable, said.encode(errors="replace")[:4000])
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        said = pipe.read().decode()
    status = os.waitpid(child, 0)[1]
    with os.fdopen(printed, "rb") as file:
        file.seek(0)
        text = file.read(1 << 20).decode(errors="replace")
    if os.WIFSIGNALED(status):
        ended = signal.Signals(os.WTERMSIG(status))
        limits = {signal.SIGPROF: f"more than {seconds} s", signal.SIGALRM: f"not done after {patience} s of waiting"}
        return limits.get(ended, f"ended by {ended.name}")
    if not _is_plain(text):
        return f"printed what a terminal obeys: {text[:300]!r}"
    return said or "ended without a word"


def _is_plain(text: str) -> bool:
    """Whether a terminal shows a text, and obeys nothing in it."""
    return all(line.isprintable() for line in text.split("\n"))


def _read(module: ModuleType, path: Path, rng: random.Random, folder: Path) -> str:
    module.mutate(path, rng)
    checkout = str(Path(__file__).resolve().parents[1])
    here = (str(folder), sys.prefix, sys.base_prefix, checkout, "/proc/", "/sys/", "/dev/")
    strange: list[str] = []
    follows = getattr(module, "FOLLOWS_LINKS", False)

    def look(event: str, given: tuple[object, ...]) -> None:
        if event == "open" and isinstance(given[0], (str, bytes)) and not follows:
            place = os.path.realpath(os.fsdecode(given[0]))
            if not place.startswith(here) or place.startswith(str(folder / "outside")):
                strange.append(f"opened {place}")
        elif event in _PROGRAMS:
            strange.append(f"started {given[0]!r}")

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
    sys.addaudithook(look)
    try:
        module.read(path)
    except ActVARError as error:
        outcome = REFUSED if _is_plain(str(error)) else f"said what a terminal obeys: {str(error)[:300]!r}"
        if _NO_MEMORY in str(error):
            outcome = MEMORY if getattr(module, "RUNS_GRAPHS", False) else f"took the memory: {str(error)[:300]}"
    except BaseException as error:
        outcome = f"{type(error).__name__}: {str(error)[:300]}"
    else:
        outcome = READ
    sys.stdout.flush()
    sys.stderr.flush()
    return strange[0] if strange else outcome


def alone(kind: str, count: int, seed: int, seconds: int) -> dict[str, Any]:
    """`campaign` in a process of its own, with one thread: a fork takes no others along, and may wait for them."""
    command = [sys.executable, "-W", "ignore", "-c", _ONE, kind, *map(str, (count, seed, seconds))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


_ONE = """
import json, sys
from importlib import import_module
from actvar.benchmarks.fuzz_files import campaign
kind, (count, seed, seconds) = sys.argv[1], map(int, sys.argv[2:])
print(json.dumps(campaign(import_module(f"actvar.benchmarks.fuzz.{kind}"), kind, count, seed, seconds)))
"""


def finished(path: Path | None) -> dict[str, dict[str, Any]]:
    """The kinds in the JSON of a campaign that was stopped, or nothing."""
    if path is None or not path.exists():
        return {}
    kinds: dict[str, dict[str, Any]] = json.loads(path.read_bytes())["kinds"]
    return kinds


def main() -> int:
    """One kind here, all kinds each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="+", choices=("all", *KINDS), metavar="KIND", help=f"all, {', '.join(KINDS)}")
    parser.add_argument("--count", type=int, help="changed files of each kind; as in a whole campaign if left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=20, help="of the processor, for one file (default: 20)")
    parser.add_argument("--json", type=Path, help="write what was found into this file, after every kind")
    given = parser.parse_args()
    check_json_option(given.json)
    return run(list(KINDS) if "all" in given.kinds else given.kinds, given)


def run(kinds: list[str], given: argparse.Namespace) -> int:
    """Do what is not done yet, kind by kind; returns the exit code."""
    machine, code = asdict(this_machine()), commit(besides=given.json)
    found = finished(given.json)
    for kind in kinds:
        count = given.count if given.count is not None else KINDS[kind]
        wanted = {"count": count, "seed": given.seed, "commit": code["commit"], "altered": False}
        if not wanted.items() <= found.get(kind, {}).items() or code["altered"] or not code["commit"]:
            found[kind] = {**alone(kind, count, given.seed, given.seconds), **code}
            _write(given.json, machine, found)
        done = found[kind]
        faults = done["faults"]
        print(
            f"{kind:24} {done[READ]} read, {done[REFUSED]} refused, {done[MEMORY]} out of memory, {len(faults)} faults"
        )
        for fault in faults:
            print(f"    {fault}")
        sys.stdout.flush()
    print("", *table({kind: found[kind] for kind in kinds}), sep="\n")
    return int(any(found[kind]["faults"] for kind in kinds))


def table(kinds: dict[str, dict[str, Any]]) -> list[str]:
    """The lines of a table in Markdown: what became of each kind's files, and of all."""
    rows = {f"`{kind}`": [*(it[name] for name in _COLUMNS), len(it["faults"])] for kind, it in kinds.items()}
    rows["all"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    lines = [f"| {name} | {' | '.join(f'{number:,}' for number in numbers)} |" for name, numbers in rows.items()]
    return ["| kind | changed | read | refused | out of memory | faults |", "|---|---|---|---|---|---|", *lines]


def _write(path: Path | None, machine: dict[str, Any], found: dict[str, dict[str, Any]]) -> None:
    if path:
        kinds = {kind: found[kind] for kind in sorted(found)}
        command = typed(["python", *sys.argv])
        report = {"format": FORMAT, "version": VERSION, "command": command, "machine": machine, "kinds": kinds}
        write_report(path, json.dumps(report, indent=1) + "\n", "--json")


if __name__ == "__main__":
    end_with(main)
