"""Files from a stranger: seeded changes to every kind of file that is read, each read by a child that is watched.

    python benchmarks/fuzz_files.py stores_signed --count 1000 --seed 1
    python benchmarks/fuzz_files.py all --count 2000 --json FILE

A child may read the file, or refuse it by an error of the project's own. All else is a fault: another exception, a
signal, more than its time or memory, a program that it starts, a file that it opens outside of the sample's folder. A
fault is named by its kind and number: the same seed changes the file in the same way again. Exit code 1 if there is
one. Linux only.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import ModuleType

from actvar.errors import ActVARError
from actvar.provenance import typed

KINDS = (
    "bundles", "bundles_signed", "checkpoints", "encoded_pictures", "picture_archives", "picture_pieces",
    "picture_pieces_signed", "reference_pictures", "statistics_files", "stores", "stores_signed", "study_results",
    "study_results_signed", "training_states", "training_states_signed",
)  # fmt: skip
READ, REFUSED = "read", "refused"
_MEMORY = 2 << 30  # bytes that a child may take more than it starts with


def campaign(module: ModuleType, kind: str, count: int, seed: int, seconds: int) -> tuple[Counter[str], list[str]]:
    """Change and read so many files of a kind: what became of them, and the faults in words."""
    outcomes: Counter[str] = Counter()
    faults = []
    with tempfile.TemporaryDirectory(prefix="actvar-fuzz-") as name:
        folder = Path(name)
        (folder / "samples").mkdir()
        samples = module.samples(folder / "samples")
        for sample in samples:
            module.read(_copy(sample, folder / "case"))
        for number in range(count):
            rng = random.Random(f"{kind} {seed} {number}")
            copy = _copy(rng.choice(samples), folder / "case")
            said = _watched(module, copy, rng, folder, seconds)
            outcomes[said if said in (READ, REFUSED) else "fault"] += 1
            if said not in (READ, REFUSED):
                faults.append(f"{kind} {seed} {number}: {said}")
    return outcomes, faults


def _copy(sample: Path, folder: Path) -> Path:
    """The sample in a folder of its own, in which nothing else is."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    copy = shutil.copytree if sample.is_dir() else shutil.copy
    return Path(copy(sample, folder / sample.name))


def _watched(module: ModuleType, path: Path, rng: random.Random, folder: Path, seconds: int) -> str:
    """What a child of this process says of a file that it changes and reads, or what became of the child."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(readable)
        signal.alarm(seconds)
        said = _read(module, path, rng, folder)
        os.write(writable, said.encode(errors="replace")[:4000])
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        said = pipe.read().decode()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        ended = signal.Signals(os.WTERMSIG(status))
        return f"more than {seconds} s" if ended is signal.SIGALRM else f"ended by {ended.name}"
    return said or "ended without a word"


def _read(module: ModuleType, path: Path, rng: random.Random, folder: Path) -> str:
    module.mutate(path, rng)
    here = (
        str(folder),
        sys.prefix,
        sys.base_prefix,
        str(Path(__file__).resolve().parents[1]),
        "/proc/",
        "/sys/",
        "/dev/",
    )
    strange: list[str] = []
    follows = getattr(module, "FOLLOWS_LINKS", False)

    def look(event: str, given: tuple[object, ...]) -> None:
        if event == "open" and isinstance(given[0], (str, bytes)) and not follows:
            place = os.path.realpath(os.fsdecode(given[0]))
            if not place.startswith(here) or place.startswith(str(folder / "outside")):
                strange.append(f"opened {place}")
        elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
            strange.append(f"started {given[0]!r}")

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
    sys.addaudithook(look)
    try:
        module.read(path)
    except ActVARError as error:
        outcome = (
            REFUSED if all(line.isprintable() for line in str(error).splitlines()) else "said what a terminal obeys"
        )
    except BaseException as error:
        outcome = f"{type(error).__name__}: {str(error)[:300]}"
    else:
        outcome = READ
    return strange[0] if strange else outcome


def main() -> int:
    """One kind here, all kinds each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("all", *KINDS))
    parser.add_argument("--count", type=int, default=200, help="changed files of each kind (default: 200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=20, help="that one file may take (default: 20)")
    parser.add_argument("--json", type=Path, help="write what was found into this file")
    given = parser.parse_args()
    kinds = KINDS if given.kind == "all" else (given.kind,)
    found: dict[str, dict[str, object]] = {}
    faulty = False
    for kind in kinds:
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            _ONE,
            kind,
            *map(str, (given.count, given.seed, given.seconds)),
        ]
        alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # a fork takes no other threads along, and may wait for them
        done = subprocess.run(command, env=alone, stdout=subprocess.PIPE, text=True, check=True)
        outcomes, faults = json.loads(done.stdout.splitlines()[-1])
        found[kind] = {"outcomes": outcomes, "faults": faults}
        faulty |= bool(faults)
        print(f"{kind:26}", *(f"{what} {number}" for what, number in sorted(outcomes.items())))
        for fault in faults:
            print(f"    {fault}")
    if given.json:
        report = {"command": typed(["python", *sys.argv]), "count": given.count, "seed": given.seed, "kinds": found}
        given.json.write_text(json.dumps(report, indent=1) + "\n")
    return int(faulty)


_ONE = """
import json, sys
from importlib import import_module
from actvar.benchmarks.fuzz_files import campaign
kind, (count, seed, seconds) = sys.argv[1], map(int, sys.argv[2:])
print(json.dumps(campaign(import_module(f"actvar.benchmarks.fuzz.{kind}"), kind, count, seed, seconds)))
"""

if __name__ == "__main__":
    sys.exit(main())
