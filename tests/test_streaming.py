"""Many pictures: each is on the disk before the next is drawn, in the memory of one, however the run ends."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from command_line import in_process
from PIL import Image
from small_models import SMALL_VQVAE, small_config, vivid_model

from actvar import reports
from actvar.cli.sheet import SHEET_GAP
from actvar.export.onnx_export import export_bundle
from actvar.runtime.backends.buffered import BufferedEngine

LARGE_SIDE = 80
ALLOWED = 60_000  # bytes: Python and numpy keep small things for later, 20 to 42 kB after 200 pictures; a leak holds 80


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that draws 10×10."""
    folder = tmp_path_factory.mktemp("small") / "bundle"
    export_bundle(vivid_model(small_config()), folder, "fp32", "a test")
    return folder


@pytest.fixture(scope="module")
def large_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that draws 80×80: 19 kB of pixels, 77 kB of what the decoder gives."""
    vqvae = replace(SMALL_VQVAE, ch=8, ch_mult=(1, 1, 1, 1, 2))
    folder = tmp_path_factory.mktemp("large") / "bundle"
    export_bundle(vivid_model(small_config((1, 2, 5), depth=1, vqvae=vqvae)), folder, "fp32", "a test")
    return folder


def name(number: int) -> str:
    return f"bundle-002-seed0-{number}.png"


def arguments(bundle: Path, count: int, *more: object) -> list[str]:
    given = ("generate", "--class", 2, "--model", bundle, "--threads", 1, "--count", count, *more)
    return [str(argument) for argument in given]


def files(folder: Path = Path(".")) -> list[str]:
    """All of them, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())


def whole(path: Path) -> bool:
    """Whether a decoder reads it to its end."""
    with Image.open(path) as image:
        return np.asarray(image).shape[2] == 3


@pytest.fixture
def generate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`actvar-trt generate` in this process and an empty folder: exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    run = in_process(monkeypatch, capsys)
    return lambda bundle, count, *more: run(*arguments(bundle, count, *more))


# ---- as they are drawn


@pytest.mark.parametrize(("batch", "shown"), [(1, False), (3, False), (2, True)])
def test_a_picture_is_on_the_disk_before_the_next_batch_is_drawn(
    generate, bundle: Path, monkeypatch: pytest.MonkeyPatch, batch: int, shown: bool
):
    """Seen from within the draw, at the start of each batch: all pictures so far, whole, and nothing else."""
    launch, seen = BufferedEngine.launch, []

    def watched(*given):
        assert all(whole(Path(file)) for file in files())
        seen.append(files())
        return launch(*given)

    monkeypatch.setattr(BufferedEngine, "launch", watched)
    code, _, _ = generate(bundle, 7, "--batch-size", batch, *(["--show-scales"] if shown else []))

    def expected(count: int) -> list[str]:
        pictures = [name(number) for number in range(count)]
        return sorted(pictures + [file.replace(".png", "-scales.png") for file in pictures if shown])

    assert code == 0
    assert seen == [expected(first) for first in range(0, 7, batch)]
    assert files() == expected(7)


def test_the_last_line_says_how_many_and_how_fast(generate, bundle: Path):
    """On stderr, beside the names on stdout."""
    for count, words in ((1, "1 picture in"), (4, "4 pictures in")):
        _, out, err = generate(bundle, count)
        assert len(out.splitlines()) == count
        found = re.fullmatch(rf"{words} ([0-9.]+) s, ([0-9.]+) pictures per second\.", err.splitlines()[-1])
        assert found is not None
        seconds, speed = map(float, found.groups())
        assert abs(count / speed - seconds) < 0.06 + 0.01 * seconds


def on_a_terminal(bundle: Path, folder: Path, piped: bool) -> tuple[str, bytes]:
    """What three pictures send to stdout, and to the terminal: stderr, and stdout too if that is not piped."""
    ours, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", "from actvar.cli.main import main; main()", *arguments(bundle, 3)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if piped else terminal,
        stderr=terminal,
        text=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
    )
    os.close(terminal)
    shown = b""
    with suppress(OSError):  # which is how Linux tells that the other side is closed
        while piece := os.read(ours, 1 << 16):
            shown += piece
    os.close(ours)
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 0, shown
    assert b"Drawing" in shown and b"0/3" in shown and b"3 pictures in" in shown
    return out, shown


def test_names_go_to_stdout_while_a_bar_is_shown(bundle: Path, tmp_path: Path):
    """A program that reads the names gets them all, and the terminal none."""
    out, shown = on_a_terminal(bundle, tmp_path, piped=True)
    assert [line.partition(": ")[0] for line in out.splitlines()] == [name(number) for number in range(3)]
    assert b"class 2" not in shown


def test_names_stand_on_lines_of_their_own_above_the_bar(bundle: Path, tmp_path: Path):
    """The bar's line is erased first: otherwise a name would begin where the bar ends."""
    _, shown = on_a_terminal(bundle, tmp_path, piped=False)
    for number in range(3):
        assert re.search(rb"(\r\x1b\[2K|\r\n)" + re.escape(name(number).encode()) + rb": class 2", shown), shown


# ---- memory

WATCHED = """
import gc, json, sys, tracemalloc
from pathlib import Path
from actvar.runtime.backends.buffered import BufferedEngine
from actvar.cli.main import main

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))

def opened(*arguments, make=BufferedEngine.__init__, **options):
    make(*arguments, **options)
    tracemalloc.start()

def launch(*arguments, launch=BufferedEngine.launch):
    seen.append(None)
    if len(seen) % 20 == 0:
        gc.collect()  # empties the lists in which Python keeps small tuples for later, too
        seen[-1] = tracemalloc.get_traced_memory()[0], resident()
    if len(seen) == 200:
        raise KeyboardInterrupt
    return launch(*arguments)

seen = []
BufferedEngine.__init__, BufferedEngine.launch = opened, launch
try:
    main()
finally:
    Path("memory.json").write_text(json.dumps(seen[19::20]))
"""


@dataclass(frozen=True)
class Held:
    """Bytes that a process holds: what Python and numpy took since the model was opened, and all of it."""

    python: int
    resident: int


def held(bundle: Path, folder: Path, count: int, *more: str) -> list[Held]:
    """At the start of the draw of every twentieth picture, up to the 200th, which is not drawn."""
    folder.mkdir()
    command = [sys.executable, "-c", WATCHED, *arguments(bundle, count, *more)]
    subprocess.run(command, cwd=folder, check=False, stdout=subprocess.DEVNULL, timeout=300)
    found = [Held(*of_picture) for of_picture in json.loads((folder / "memory.json").read_text())]
    assert len(found) == min(count, 200) // 20
    return found


def test_memory_does_not_grow_with_the_number_of_pictures(large_bundle: Path, tmp_path: Path, record_property):
    """Neither orders to come, of which 100,000 are 10 MB, nor tokens, 80 kB of 180 pictures, nor anything larger.

    What libraries hold does not grow either: 180 pictures would be 3.5 MB as pixels, 14 MB as the decoder gives them.
    """
    (few,), many = held(large_bundle, tmp_path / "few", 20), held(large_bundle, tmp_path / "many", 100_000)
    for later in (many[0], many[-1]):
        assert later.python - few.python < ALLOWED
    grown = many[-1].resident - many[0].resident
    record_property("figure", f"from picture 20 to picture 200 a process grew by {grown / 1e6:.2f} MB")
    assert grown < 2_000_000


def test_a_grid_keeps_the_pixels_and_nothing_else(large_bundle: Path, tmp_path: Path):
    """The sheet itself, once: neither partial pictures nor tokens, nor the pictures beside it."""

    def sheet_bytes(columns: int, rows: int) -> int:
        width, height = (side * (LARGE_SIDE + SHEET_GAP) - SHEET_GAP for side in (columns, rows))
        return 3 * width * height

    (few,), many = (held(large_bundle, tmp_path / str(count), count, "--grid") for count in (20, 200))
    grown = sheet_bytes(15, 14) - sheet_bytes(5, 4)
    assert abs(many[-1].python - few.python - grown) < ALLOWED


# ---- runs that do not come to their end

STOPPED = """
import itertools, signal, sys
from contextlib import contextmanager
from actvar import reports
from actvar.cli.sheet import SHEET_GAP
from actvar.runtime.backends.buffered import BufferedEngine
from actvar.cli.main import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started without one
moment, turn = sys.argv.pop(1), int(sys.argv.pop(1))
turns = itertools.count(1)

def wait():
    if next(turns) == turn:
        print("now", flush=True)
        sys.stdin.read()

def drawing(*arguments, launch=BufferedEngine.launch):
    wait()
    return launch(*arguments)

@contextmanager
def writing(path, real=reports.written_whole):
    with real(path) as file:
        file.write(b"half")
        file.flush()
        wait()
        file.seek(0)
        yield file

if moment == "drawing":
    BufferedEngine.launch = drawing
else:
    reports.written_whole = writing
main()
"""


@pytest.mark.parametrize(
    ("moment", "turn", "more", "done", "words"),
    [
        ("drawing", 1, [], 0, "0 of 200 pictures written in"),
        ("drawing", 4, ["--batch-size", "2"], 6, "6 of 200 pictures written in"),
        ("writing", 4, ["--batch-size", "2"], 3, "3 of 200 pictures written in"),
        ("drawing", 4, ["--grid"], 0, "3 of 200 pictures drawn, and no sheet of them, in"),
    ],
)
def test_ctrl_c_keeps_the_pictures_so_far(
    bundle: Path, tmp_path: Path, moment: str, turn: int, more: list[str], done: int, words: str
):
    """A real signal to a real process, which waits for it in the middle of a batch, or of a file."""
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, moment, str(turn), *arguments(bundle, 200, *more)],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    lines = []
    while (line := process.stdout.readline()) != "now\n":
        assert line, "it ended before its turn came"
        lines.append(line.partition(": ")[0])
    assert bool([file for file in files(tmp_path) if file.endswith(".tmp")]) == (moment == "writing")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130 and "Traceback" not in err, err
    tally, error = err.splitlines()
    assert tally.startswith(words) and error.startswith("Error: Stopped")
    assert lines == [name(number) for number in range(done)]
    assert files(tmp_path) == sorted(lines) and all(whole(tmp_path / file) for file in lines)


def test_a_disk_that_fills_up_keeps_the_pictures_so_far(generate, bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """It names the picture that did not fit any more."""
    written, turns = reports.written_whole, iter(range(100))

    @contextmanager
    def full(path):
        with written(path) as file:
            if next(turns) >= 3:
                file.write(b"half")
                raise OSError(28, "No space left on device")
            yield file

    monkeypatch.setattr(reports, "written_whole", full)
    code, out, err = generate(bundle, 8, "--batch-size", 2)
    tally, error = err.splitlines()
    assert code == 1 and len(out.splitlines()) == 3
    assert tally.startswith("3 of 8 pictures written in ")
    assert error.startswith(f"Error: {name(3)} cannot be written: No space left on device. ")
    assert files() == [name(number) for number in range(3)] and all(whole(Path(file)) for file in files())


def test_a_place_that_is_taken_stops_the_run_there(generate, bundle: Path):
    """A folder of the picture's name: the system itself refuses."""
    Path(name(2)).mkdir()
    code, _, err = generate(bundle, 5)
    assert code == 1 and f"Error: {name(2)} cannot be written: " in err and "2 of 5 pictures written" in err
    assert files() == [name(number) for number in range(3)] and Path(name(2)).is_dir()


def test_a_run_of_one_that_fails_says_only_why(generate, bundle: Path):
    """How many of one picture were written needs no line of its own."""
    Path(name(0)).mkdir()
    code, out, err = generate(bundle, 1)
    assert (code, out) == (1, "") and err.startswith(f"Error: {name(0)} cannot be written: ")


def test_a_folder_that_cannot_be_made_is_told(generate, bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """Between the look at --out and the first picture the disk may have filled up."""

    def full(*given, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    code, out, err = generate(bundle, 2, "--out", "new")
    assert (code, out) == (1, "") and "--out new cannot be made: No space left on device" in err
