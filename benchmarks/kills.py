"""kill -9 at seeded moments of every command that writes: the next run completes, byte for byte.

    python benchmarks/kills.py bind --count 20 --seed 1
    python benchmarks/kills.py all --count 20 --seed 0 --json FILE

A command is run undisturbed, twice, in a folder of its own. Then it is started again and again, each time in a fresh
copy of what it reads. Its process group is killed at a moment that is drawn evenly from the time that it takes
undisturbed, and the very same command is run once more. That run must end with 0, and the whole folder, with the cache
and the temporary folder in it, must be what the undisturbed run left: the same files, each the same byte for byte.

Left out are what times and the builder decide, of `build` alone: plans and their logs, and in the plans' manifest their
hashes, sizes, `seconds` and `peak_bytes`. TensorRT-RTX numbers a plan's values differently each time. In their place
all plans must be whole, and be of the right graphs with the right layers.

Models are tiny and random. Commands run in forks of a process that has loaded the libraries, so that the moments fall
into the work and not into imports; an encoding keeps its pieces ten times a second in place of every 30 s. Exit code 1
if there is a fault; the same seed kills at the same shares of the work. Linux only.
"""

import argparse
import hashlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from actvar.benchmarks.command import end_with
from actvar.bundle.manifest import MANIFEST_FILE
from actvar.bundle.plans import read_plan, read_plans
from actvar.provenance import commit, typed
from actvar.runtime.machine import CACHE_VARIABLE, this_machine
from actvar.telemetry import switch_off

FORMAT, VERSION = "actvar-kills", 1
LONGEST = 600  # seconds that an undisturbed run may take


@dataclass(frozen=True)
class Kind:
    """A command that is killed.

    Attributes:
        words: what is typed after `actvar-trt`, in a folder that holds what `prepare` wrote.
        prepare: writes what the command reads.
        needs: a module without which there is nothing to kill.
        before: is called in the command's process first.
    """

    words: str
    prepare: Callable[[Path], object]
    needs: str | None = None
    before: Callable[[], object] = lambda: None


# ---- what is killed: each imports what it needs in a process that ends when it is written


def write_model(path: Path, seed: int = 0, dense: bool = False) -> Any:
    """A checkpoint of the glyphs' classes and size, so that the glyphs' own judge can look at its pictures."""
    import torch

    from actvar.checkpoint.own import save_model
    from actvar.class_names import CLASS_NAMES
    from actvar.config import Activation, ModelConfig, VQVAEConfig
    from actvar.models.actvar import random_model
    from actvar.scales import ScaleSchedule

    vqvae = VQVAEConfig(vocab_size=48, z_channels=6, ch=8, ch_mult=(1, 1, 1, 1), num_res_blocks=1, norm_groups=4)
    active = None if dense else Activation(4, (3,), (0.5,), (0.5,))
    config = ModelConfig(1, ScaleSchedule((1, 2, 8)), len(CLASS_NAMES), False, vqvae, active, class_names=CLASS_NAMES)
    torch.manual_seed(seed)
    model = random_model(config)
    save_model(model, path, torch.float32)
    return model


def _checkpoint(folder: Path) -> None:
    write_model(folder / "model.safetensors")


def _graphs(folder: Path) -> None:
    from actvar.export.onnx_export import export_graphs

    export_graphs(write_model(folder / "model.safetensors").config, folder / "bundle", "fp32", "a campaign of kills")


def _bundle(folder: Path) -> None:
    from actvar.export.onnx_export import export_bundle

    export_bundle(write_model(folder / "model.safetensors"), folder / "bundle", "fp32", "a campaign of kills")


def _bundle_and_other_weights(folder: Path) -> None:
    _bundle(folder)
    write_model(folder / "other.safetensors", seed=1)


def _training(folder: Path) -> None:
    from actvar.data.encoding import EncodeSettings, encode_pictures
    from actvar.data.glyphs import TRAIN_SEED, GlyphPictures

    _checkpoint(folder)
    teacher = write_model(folder / "teacher.safetensors", dense=True)
    encode_pictures(folder / "tokens", teacher.vqvae, GlyphPictures(40, TRAIN_SEED), EncodeSettings())


def _keep_often() -> None:
    """Keep pieces of an encoding that takes seconds, as one of hours does."""
    from actvar.data import encoding

    encoding._KEEP_SECONDS = 0.1


KINDS = {
    "first_use": Kind(
        "generate --model model.safetensors --class 1 --seed 3 --threads 1 --out picture.png", _checkpoint
    ),
    "export": Kind("export --model model.safetensors --out exported", _checkpoint),
    "build": Kind(
        "build --model bundle --gpu-arch 8.9 --scales 1,2,3 --batch-range 1:2:4 --jobs 2", _graphs, "tensorrt_rtx"
    ),
    "bind": Kind("bind bundle --model other.safetensors", _bundle_and_other_weights),
    "encode": Kind(
        "encode --data glyphs --vqvae model.safetensors --count 150 --batch-size 10 --out tokens",
        _checkpoint,
        before=_keep_often,
    ),
    "train": Kind(
        "train stage2 --student model.safetensors --teacher teacher.safetensors --tokens-dir tokens --out run "
        "--steps 15 --batch-size 8 --warmup 2 --save-every 3 --average 0.9 --precision fp32",
        _training,
    ),
    "evaluate": Kind(
        "evaluate --model bundle --count 200 --batch-size 10 --threads 1 --reference-count 50 --out run "
        "--npz pictures.npz --save-statistics statistics.npz --json report.json",
        _bundle,
        "torch_fidelity",
    ),
}


# ---- what a run left


def what_was_made(folder: Path) -> dict[str, Any]:
    """All that two builds share: files by name, and the manifest but for timings; the plans that it names are whole."""
    manifest = read_plans(folder)
    for plan in manifest.plans.values():
        read_plan(folder, plan)
    plans = {
        graph: (plan.graph_sha256, dict(plan.layers), dict(plan.plugins), dict(plan.bodies))
        for graph, plan in manifest.plans.items()
    }
    files = sorted(path.name for path in folder.iterdir())
    return {"manifest": replace(manifest, plans={}), "plans": list(plans.items()), "files": files}


def left_in(folder: Path) -> dict[str, Any]:
    """All files of a folder by their names in it: a hash of each, and of plans what two builds share."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.parent.parent.name == "plans":
            found[name] = None
        elif path.parent.name == "plans":
            found[name] = what_was_made(path) if (path / MANIFEST_FILE).exists() else None
        else:
            found[name] = "a folder" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """In words; nothing if they are the same."""
    said = [f"{name} is left behind" for name in sorted(found.keys() - expected.keys())]
    said += [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    said += [f"{name} differs" for name in expected if name in found and found[name] != expected[name]]
    return ", ".join(said)


# ---- the campaign


class Campaign:
    """One kind, in a temporary folder of its own; `command` is the command line, which reads `sys.argv`."""

    def __init__(self, name: str, kind: Kind, command: Callable[[], object], folder: Path) -> None:
        self.name, self.kind, self.command, self.folder = name, kind, command, folder
        self.pristine, self.log, self.loaded = folder / "pristine", folder / "log", folder / "loaded"
        self.pristine.mkdir()
        self._complete(self.pristine, lambda: kind.prepare(Path()))
        self._load_what_was_loaded()

    def run(self, count: int, seed: int) -> dict[str, Any]:
        """Kill so often: how long the command takes, how many kills met it, and the faults in words."""
        self._complete(self._copy("first"), self._work)
        self._load_what_was_loaded()
        seconds = [self._complete(self._copy(name), self._work) for name in ("whole", "again")]
        expected = left_in(self.folder / "whole")
        if differs := difference(left_in(self.folder / "again"), expected):
            raise RuntimeError(f"two undisturbed runs of {self.name} are not the same: {differs}")
        before, met, halfway, faults = left_in(self.pristine), 0, 0, []
        for number in range(count):
            case = self._copy("case")
            moment = random.Random(f"{self.name} {seed} {number}").random() * min(seconds)
            was_killed = self._kill(case, moment)
            met += was_killed
            halfway += was_killed and self._names(case) != before.keys()
            try:
                self._complete(case, self._work)
                fault = difference(left_in(case), expected)
            except Exception as error:
                fault = str(error)
            if fault:
                faults.append(f"{self.name} {seed} {number}, killed at {moment:.2f} s of {min(seconds):.2f}: {fault}")
        return {"seconds": round(min(seconds), 2), "killed": met, "with_files_written": halfway, "faults": faults}

    def _names(self, folder: Path) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob("*")}

    def _copy(self, name: str) -> Path:
        """A fresh folder with all that the command reads."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return Path(shutil.copytree(self.pristine, self.folder / name))

    def _work(self) -> None:
        """The command, in its own process."""
        self.kind.before()
        sys.argv = ["actvar-trt", *shlex.split(self.kind.words)]
        self.command()

    def _complete(self, folder: Path, work: Callable[[], object]) -> float:
        """Let something end, in a folder; returns how long that took."""
        started, child = time.monotonic(), self._start(folder, work)
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
            time.sleep(0.005)
            if time.monotonic() > started + LONGEST:
                os.killpg(child, signal.SIGKILL)
        if code := os.waitstatus_to_exitcode(ended[1]):
            said = self.log.read_text(errors="replace").strip().splitlines()
            raise RuntimeError(f"it ended with {code}: {' / '.join(said[-6:])}")
        return time.monotonic() - started

    def _kill(self, folder: Path, moment: float) -> bool:
        """Start the command, and kill all of it after so many seconds; whether it was still at work."""
        child = self._start(folder, self._work)
        time.sleep(moment)
        with suppress(ProcessLookupError):  # all have ended
            os.killpg(child, signal.SIGKILL)
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])

    def _start(self, folder: Path, work: Callable[[], object]) -> int:
        """A fork of this process, at the head of a group of its own; what it says goes into the log."""
        sys.stdout.flush()
        child = os.fork()
        if child:
            with suppress(OSError):  # it has done so itself, and may have ended
                os.setpgid(child, child)
            return child
        code = 1
        try:
            os.setpgid(0, 0)
            self._move_into(folder)
            work()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0
        except BaseException:
            traceback.print_exc()
        finally:
            if not self.loaded.exists():
                self.loaded.write_text("\n".join(sys.modules))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _move_into(self, folder: Path) -> None:
        """Make a folder this process's own, with cache and temporary folder in it."""
        os.chdir(folder)
        for variable, name in ((CACHE_VARIABLE, "cache"), ("TMPDIR", "tmp")):
            (folder / name).mkdir(exist_ok=True)
            os.environ[variable] = str(folder / name)
        tempfile.tempdir = None
        for place, descriptors in ((Path(os.devnull), (0,)), (self.log, (1, 2))):
            opened = os.open(place, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            for descriptor in descriptors:
                os.dup2(opened, descriptor)
            os.close(opened)
        sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", closefd=False) for descriptor in (1, 2))

    def _load_what_was_loaded(self) -> None:
        """Load here what the first process of a kind has loaded: all that follow have it."""
        for name in self.loaded.read_text().splitlines():
            if name != "__main__":
                with suppress(Exception):  # a name that only looks like a module's
                    import_module(name)
        self.loaded.unlink()


def campaign(name: str, kind: Kind, count: int, seed: int, command: Callable[[], object]) -> dict[str, Any]:
    """Kill a kind so often; see `Campaign.run`."""
    if kind.needs and not find_spec(kind.needs):
        return {"skipped": f"{kind.needs} is not installed"}
    switch_off()  # libraries are loaded here, and not by the command
    with tempfile.TemporaryDirectory(prefix="actvar-kills-") as folder:
        return Campaign(name, kind, command, Path(folder)).run(count, seed)


def main() -> int:
    """All kinds in one process, which loads the libraries once; what it finds comes as lines of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("all", *KINDS))
    parser.add_argument("--count", type=int, default=20, help="kills of each kind (default: 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write what was found into this file")
    given = parser.parse_args()
    kinds = KINDS if given.kind == "all" else (given.kind,)
    command = [sys.executable, "-W", "ignore", "-c", _ALL, str(given.count), str(given.seed), *kinds]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # a fork takes no other threads along, and may wait for them
    found: dict[str, Any] = {}
    with subprocess.Popen(command, env=alone, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for kind, line in zip(kinds, process.stdout, strict=False):
            found[kind] = json.loads(line)
            print(f"{kind:10}", *(f"{what} {value}" for what, value in found[kind].items() if what != "faults"))
            for fault in found[kind].get("faults", ()):
                print(f"    {fault}")
            sys.stdout.flush()
    if process.returncode:
        return process.returncode
    if given.json:
        report = {
            "format": FORMAT,
            "version": VERSION,
            "command": typed(["python", *sys.argv]),
            **commit(),
            "machine": asdict(this_machine()),
            "count": given.count,
            "seed": given.seed,
            "kinds": found,
        }
        given.json.write_text(json.dumps(report, indent=1) + "\n")
    return int(any(kind.get("faults") for kind in found.values()))


_ALL = """
import json, sys
from actvar.benchmarks.kills import KINDS, campaign
from actvar.cli.main import main
count, seed = map(int, sys.argv[1:3])
for name in sys.argv[3:]:
    print(json.dumps(campaign(name, KINDS[name], count, seed, main)), flush=True)
"""

if __name__ == "__main__":
    end_with(main)
