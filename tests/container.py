"""A place as containers are: read-only but for one folder, a quota, a user without a name or home, no terminal.

The quota is one CPU; ACTVAR_TEST_CPUS=0.5 makes it half of one, with which all commands take five minutes or more.

`Container.run` runs commands one after the other in it. They are forks of one process that has loaded what they need:
the imports of thirty commands would take minutes.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

CACHE, OUT = "cache", "out"
_PERIOD = 100_000  # microseconds
_QUOTA = int(float(os.environ.get("ACTVAR_TEST_CPUS", "1")) * _PERIOD)
_PATIENCE = 100  # tenths of a second

# What is given: the folder that may be written, a user, where Python lies, a folder above it that only root may enter,
# and the command. The last but one is replaced by one that leads to Python and to nothing else, as a process of the
# user starts others. Every file system is this namespace's own, and all but the kernel's are made read-only.
_SHUT = r"""
set -e
writable=$1 user=$2 python=$3 closed=$4
shift 4
mount --make-rprivate /
if [ -n "$closed" ]; then
    mount --bind "$python" /mnt
    mount -t tmpfs -o mode=755 none "$closed"
    mkdir -p "$python"
    mount --move /mnt "$python"
fi
mount --bind "$writable" "$writable"
mounts=$(cat /proc/self/mounts)
printf '%s\n' "$mounts" | while read -r device place type options; do
    case "$type" in
        proc|sysfs|devtmpfs|devpts|cgroup*|mqueue) ;;
        *) [ "$place" = "$writable" ] || mount -o remount,bind,ro "$place" ;;
    esac
done
cd /
exec setpriv --reuid "$user" --regid "$user" --clear-groups "$@"
"""

_IN_TURN = """
import json, os, sys, traceback
from importlib import import_module
from actvar.cli.main import main
from actvar.telemetry import switch_off

switch_off()  # the libraries are loaded here, and not by the command
for name in json.loads(sys.argv[1]):
    import_module(name)
for number, words in enumerate(json.load(sys.stdin)):
    child = os.fork()
    if not child:
        for descriptor in (1, 2):
            os.dup2(os.open(f"{sys.argv[2]}/{number}.{descriptor}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        code, sys.argv = 1, ["actvar-trt", *words]
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Done:
    """What a command came to, what it printed and what it said."""

    code: int
    out: str
    err: str


def why_not() -> str:
    """Why there can be no such place here; nothing if there can."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("setpriv"):
        return "needs root, unshare and setpriv"
    done = subprocess.run(["unshare", "--mount", "mount", "--make-rprivate", "/"], capture_output=True, check=False)
    return f"no mounts of its own: {done.stderr.decode().strip()}" if done.returncode else ""


@dataclass(frozen=True)
class Container:
    """A folder that may be written, and a number that is nobody's."""

    folder: Path
    user: int = 12345

    def run(self, commands: Sequence[Sequence[object]], loaded: Sequence[str] = ()) -> list[Done]:
        """Run the command line with these words, one after the other; `loaded` are modules that all of them get."""
        said = self.folder / "said"
        for name in (CACHE, OUT, "said"):
            (self.folder / name).mkdir(exist_ok=True)
        for path in (self.folder, *self.folder.rglob("*")):
            os.chown(path, self.user, self.user)
        inside = [sys.executable, "-W", "ignore", "-c", _IN_TURN, json.dumps(list(loaded)), str(said)]
        words = json.dumps([[str(word) for word in command] for command in commands])
        done = self.start(inside, words)
        codes = done.stdout.split()
        assert len(codes) == len(commands), done.stderr
        texts = [[(said / f"{number}.{stream}").read_text() for stream in (1, 2)] for number in range(len(codes))]
        return [Done(int(code), *text) for code, text in zip(codes, texts, strict=True)]

    def start(self, command: Sequence[str], given: str = "") -> "subprocess.CompletedProcess[str]":
        """Run one program in it, with this on its standard input."""
        place = [str(self.folder), str(self.user), sys.base_prefix, _closed_above(Path(sys.base_prefix))]
        with within_a_quota() as joined:
            return subprocess.run(
                ["unshare", "--mount", "sh", "-c", _SHUT, "sh", *place, *command],
                env=self._environment(),
                input=given,
                capture_output=True,
                text=True,
                check=False,
                preexec_fn=joined,
                start_new_session=True,  # without a terminal
            )

    def _environment(self) -> dict[str, str]:
        """All that there is, but for what a machine's Python needs."""
        return {
            "PATH": os.defpath,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "LC_ALL": "C",
            "ACTVAR_CACHE": str(self.folder / CACHE),
        }


def _closed_above(path: Path) -> str:
    """The first folder on the way to a path that others may not enter; empty if there is none."""
    return next((str(folder) for folder in reversed(path.parents) if not folder.stat().st_mode & 1), "")


@contextmanager
def within_a_quota() -> Iterator[Callable[[], object] | None]:
    """What a process must call first to run in a control group with a quota; None where none can be made."""
    group = _new_group()
    try:
        yield (lambda: (group / "cgroup.procs").write_text(str(os.getpid()))) if group else None
    finally:
        if group:
            _remove(group)


def _remove(group: Path) -> None:
    """A control group, when the last of its processes is gone: one that was killed still counts for a moment."""
    for _ in range(_PATIENCE):
        with suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.1)
    group.rmdir()


def _new_group() -> Path | None:
    """A control group of version 1 or 2 with a quota."""
    for parent, quota in (
        (Path("/sys/fs/cgroup/cpu"), {"cpu.cfs_period_us": f"{_PERIOD}", "cpu.cfs_quota_us": f"{_QUOTA}"}),
        (Path("/sys/fs/cgroup"), {"cpu.max": f"{_QUOTA} {_PERIOD}"}),
    ):
        group = parent / f"actvar-test-{os.getpid()}"
        with suppress(OSError):  # there is no such thing, or it may not be changed
            group.mkdir()
            try:
                for name, value in quota.items():
                    with (group / name).open("r+") as file:
                        file.write(value)
            except OSError:
                group.rmdir()
            else:
                return group
    return None
