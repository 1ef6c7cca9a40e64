"""Every command where containers run: it does its work, or says in a sentence what is in its way.

The root is read-only, and so is /tmp; HOME is not set, and the user has no name; a quota, no terminal, `LC_ALL=C`.
What may be written is the cache and a folder for output.
"""

import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
from container import OUT, Container, Done, why_not, within_a_quota

from actvar.benchmarks.kills import write_model
from actvar.cli.main import app

MODEL, TEACHER = "model.safetensors", "teacher.safetensors"
ONE_STEP = "--tokens-dir out/tokens --steps 1 --batch-size 4"
WORKS = [
    "doctor",
    f"classes --model {MODEL}",
    "flops --preset mini",
    f"generate --model {MODEL} --class 1 --out out/picture.png",
    f"edit out/picture.png --model {MODEL} --replace 0,0,0.5,1 --out out/edited.png",
    f"sample --model {MODEL} --count 3 --out out/samples",
    f"explain --model {MODEL} --class 1 --out out/explained",
    f"export --model {MODEL} --precision int8 --out out/int8",
    f"export --model {MODEL} --out out/bundle",
    f"bind out/bundle --model {MODEL} --out out/bound",
    "inspect out/bundle",
    "triton out/models --bundle out/bundle",
    f"parity --model {MODEL} --bundle out/bundle --count 1",
    f"encode --data glyphs --vqvae {TEACHER} --count 8 --out out/tokens",
    f"train stage1 --teacher {TEACHER} {ONE_STEP} --active-scales 3 --experts 4 --out out/stage1",
    f"train stage2 --teacher {TEACHER} {ONE_STEP} --student out/stage1 --out out/stage2",
    f"train decoder --model {TEACHER} --width 8 --depth 1 {ONE_STEP} --out out/decoder",
    "train vqvae --steps 1 --out out/mini",
    "train var --vqvae-steps 1 --count 100 --steps 1 --out out/mini",
    "train mini --vqvae-steps 1 --count 100 --var-steps 1 --stage1-steps 1 --stage2-steps 1 --out out/mini",
    "evaluate --model out/bundle --count 4 --reference-count 8 --out out/run",
    "study --list",
    f"bench --model {MODEL} --peers none --rounds 1 --starts 1 --out out/bench",
    *(["build --model out/bundle --gpu-arch 8.9 --scales 1"] if find_spec("tensorrt_rtx") else []),
]
"""In this order: some read what those before them have written."""
REFUSED = {
    f"generate --model {MODEL} --class 1": "cannot be written",
    f"edit out/picture.png --model {MODEL} --replace 0,0,0.5,1": "cannot be written",
    f"export --model {MODEL}": "Read-only file system",
    "study --report": "Read-only file system",
    "bench kernels": "no GPU can be used",
    "serve --host 0.0.0.0": "key",
}
"""Without a place for output these write into the folder that they are started in."""
LOADED = ("torch", "onnxruntime", "actvar.export.onnx_export", "actvar.distill.stages")


@pytest.fixture(scope="module")
def done() -> Iterator[dict[str, Done]]:
    """What became of every command."""
    if reason := why_not():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / MODEL)
        write_model(folder / TEACHER, dense=True)
        commands = [*WORKS, *REFUSED]
        typed = [
            [
                str(folder / word) if word.endswith(".safetensors") or word.startswith(f"{OUT}/") else word
                for word in words
            ]
            for words in (command.split() for command in commands)
        ]
        yield dict(zip(commands, Container(folder).run(typed, LOADED), strict=True))


LOOK = """
id -un > /dev/null 2>&1 && echo has a name
[ -z "${HOME-}" ] || echo has a home
for place in / /tmp /var/tmp /dev/shm "$PWD"; do touch "$place/x" 2> /dev/null && echo "$place can be written"; done
tty > /dev/null && echo has a terminal
touch "$ACTVAR_CACHE/../x" && echo looked
cat /proc/self/cgroup
"""


def test_the_place_is_as_it_says():
    """Or the others would prove nothing."""
    if reason := why_not():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        (Path(name) / "cache").mkdir()
        found = Container(Path(name)).start(["sh", "-c", LOOK])
    lines = found.stdout.splitlines()
    assert lines[0] == "looked", found
    with within_a_quota() as joined:
        assert joined is None or any("actvar-test-" in line for line in lines), "a quota"


def names(group: object, before: str = "") -> list[str]:
    """All commands, those of groups by two words."""
    commands = getattr(group, "commands", {})
    inner = [name for word, command in commands.items() for name in names(command, f"{before} {word}".strip())]
    return inner + [before] * (not commands or before == "bench")


def test_no_command_is_forgotten():
    """One that is new must be tried here, too."""
    every = set(names(typer.main.get_command(app)))
    tried = {name for name in every for command in [*WORKS, *REFUSED] if command.startswith(name)}
    assert tried | {"build"} == every, "build needs TensorRT-RTX"


@pytest.mark.slow
@pytest.mark.parametrize("command", WORKS)
def test_a_command_does_its_work_in_a_container(done: dict[str, Done], command: str):
    """With nothing but a cache and a folder for output."""
    assert done[command].code == 0, done[command].err
    assert "Traceback" not in done[command].err


@pytest.mark.slow
@pytest.mark.parametrize("command", REFUSED)
def test_what_cannot_be_done_in_a_container_is_said(done: dict[str, Done], command: str):
    """In one sentence of what is wrong, with the exit code for it."""
    found = done[command]
    assert found.code in (1, 2) and REFUSED[command] in found.err and "Traceback" not in found.err, found.err
