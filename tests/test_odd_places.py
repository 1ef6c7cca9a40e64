"""The command line in odd places: no rights, room or home, another encoding, a signal. A message, never a traceback."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from small_models import small_config, vivid_model

from actvar.benchmarks.kills import write_model
from actvar.checkpoint.own import save_model
from actvar.config import Activation
from actvar.export.onnx_export import export_bundle
from actvar.runtime.machine import CACHE_VARIABLE

MAIN = [sys.executable, "-c", "import sys; from actvar.cli.main import main; sys.argv[0] = 'actvar-trt'; main()"]


def run(*words: object, before: tuple[str, ...] = (), **more: object) -> "subprocess.CompletedProcess[str]":
    """A command in a process of its own; `env` is added to the environment, a None taken out of it."""
    changed = {**os.environ, **more.pop("env", {})}  # type: ignore[dict-item]
    env = {name: value for name, value in changed.items() if value is not None}
    more = {"stdout": subprocess.PIPE, **more}
    command = [*before, *MAIN, *map(str, words)]
    done = subprocess.run(command, env=env, stderr=subprocess.PIPE, text=True, check=False, **more)  # type: ignore[call-overload]
    assert "Traceback" not in done.stderr, done.stderr
    return done


AS_NOBODY = ("setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups")
needs_root = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root, and setpriv")


def test_a_full_disk_behind_stdout_is_said():
    """Python itself would say it as it ends, and leave with 120."""
    with open("/dev/full", "w") as full:
        done = run("classes", stdout=full)
    assert done.returncode == 1 and "cannot be written: No space left on device" in done.stderr


@pytest.mark.parametrize("command", [("inspect", "x" * 300), ("generate", "--class", "1", "--model", "x" * 300)])
def test_a_name_that_no_file_can_have_is_said(command):
    """`Path.exists` and its like raise for it before Python 3.14."""
    done = run(*command)
    assert done.returncode == 1 and "File name too long. Give it a shorter name." in done.stderr


@needs_root
def test_a_folder_without_rights_is_said(tmp_path):
    """It cannot even be looked at."""
    (tmp_path / "private" / "in").mkdir(parents=True)
    (tmp_path / "private").chmod(0)
    done = run("inspect", tmp_path / "private" / "in" / "bundle", before=AS_NOBODY, cwd="/")
    assert done.returncode == 1 and "private/in/bundle: Permission denied. Check its permissions" in done.stderr


def test_without_a_temporary_folder_the_cache_is_lent(tmp_path):
    """PyTorch's compiler, which training loads, and matplotlib end without one, and without a home."""
    code = """
import errno, os, tempfile
from actvar.cli.places import lend_the_cache

def none():
    raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

tempfile.gettempdir = none
lend_the_cache()
print(os.environ["TMPDIR"], os.environ["MPLCONFIGDIR"])
"""
    env = {**os.environ, CACHE_VARIABLE: str(tmp_path / "cache"), "HOME": "~"}
    env.pop("MPLCONFIGDIR", None)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(tmp_path / "cache" / name) for name in ("tmp", "matplotlib")]
    assert (tmp_path / "cache" / "tmp").is_dir()


@needs_root
def test_without_a_home_the_cache_variable_is_named():
    """A container's user may have no name and no home."""
    done = run("generate", "--class", 1, before=AS_NOBODY, env={"HOME": None, CACHE_VARIABLE: None}, cwd="/tmp")
    assert done.returncode == 1 and f"Set {CACHE_VARIABLE} to a folder that can be written" in done.stderr


@pytest.mark.parametrize("value", ["/dev/null", "/dev/null/inside"])
def test_the_doctor_says_that_a_cache_cannot_be(value):
    """It said yes."""
    done = run("doctor", env={CACHE_VARIABLE: value})
    assert done.returncode == 0
    assert [line for line in done.stdout.splitlines() if "no" in line and "cannot be a folder" in line]


def test_signs_that_the_output_lacks_are_replaced():
    """A multiplication sign ended the command."""
    done = run("flops", "--depth", 16, env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert done.returncode == 0 and done.stdout.isascii()


def test_without_docstrings_it_works():
    """As PYTHONOPTIMIZE=2 has it."""
    for words in (("--help",), ("generate", "--help"), ("classes",)):
        assert run(*words, env={"PYTHONOPTIMIZE": "2"}).returncode == 0


@pytest.mark.parametrize(("said", "wrong"), [("4", "RANK is missing"), ("many", "RANK is missing")])
def test_what_a_launcher_left_behind_is_said(said, wrong):
    """A stale WORLD_SIZE waited for processes that nobody had started, or ended in a traceback."""
    env = {"WORLD_SIZE": said, "RANK": None, "MASTER_ADDR": None}
    done = run("train", "stage1", "--teacher", "a", "--tokens-dir", "b", "--out", "c", env=env)
    assert done.returncode == 2 and wrong in done.stderr and "Unset WORLD_SIZE" in done.stderr


def test_what_a_message_repeats_is_obeyed_by_no_terminal():
    """An escape sequence in a name would clear the screen, or worse."""
    for words in (("generate", "--class", "a\x1b[2J"), ("generate", "--class", 1, "--model", "q\x1b[2J")):
        done = run(*words)
        assert done.returncode == 2 and "\x1b[2J" not in done.stderr and "\\x1b[2J" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "mini", "--device", "foo"), "--device must be cpu, cuda or cuda:0 and up, got 'foo'"),
        (("train", "vqvae", "--device", "cuda:99"), "no cuda:99. Take another --device"),
        (("parity", "--precision", "bf16"), "ONNX Runtime does not draw in bf16"),
        (("generate", "--class", 1, "--precision", "bf16"), "ONNX Runtime does not draw in bf16"),
    ],
)
def test_what_cannot_be_here_is_refused_before_any_work(words, said, tmp_path):
    """Nothing is trained and nothing exported: no folder is made."""
    done = run(*words, cwd=tmp_path, env={CACHE_VARIABLE: str(tmp_path / "cache")})
    assert done.returncode in (1, 2) and said in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_group_without_a_command_shows_its_help():
    """And no error without words."""
    done = run("train")
    assert done.returncode == 2 and "stage1" in done.stdout and done.stderr == ""


@pytest.mark.slow
def test_sigterm_cleans_up_as_ctrl_c_does(tmp_path):
    """`parity` left an exported bundle in the temporary folder."""
    save_model(vivid_model(small_config(activation=Activation(4, (4,), (0.5,), (0.5,)))), tmp_path / "m.safetensors")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [*MAIN, "parity", "--model", str(tmp_path / "m.safetensors"), "--count", "1000000"]
    process = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(scratch)}, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(scratch.glob("*/bundle/manifest.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(scratch.iterdir()), "nothing was exported"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143 and "Stopped by SIGTERM" in said, said
    assert list(scratch.iterdir()) == []


STOPPED_BESIDE_A_THREAD = """
import signal, threading
start = threading.Thread.start
def stopped(thread):
    start(thread)
    if thread.name == "actvar-let-go":
        signal.raise_signal(signal.SIGTERM)
threading.Thread.start = stopped
"""


def test_sigterm_as_a_thread_starts_ends_the_process(tmp_path):
    """It hung for ever: the thread that lets pages go was never told that the work was over."""
    export_bundle(write_model(tmp_path / "m.safetensors"), tmp_path / "bundle", "fp32", "a test")
    command = [sys.executable, "-c", STOPPED_BESIDE_A_THREAD + MAIN[2], "generate", "--class", "1", "--model", "bundle"]
    done = subprocess.run(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 143 and "Stopped by SIGTERM" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "sign"),
    [
        ("export --model m.safetensors --out exported", ".exported.*.tmp"),
        ("export --model m.safetensors --precision int8 --out exported", "scratch/actvar-int8-*"),
        ("build --model bundle --gpu-arch 8.9", "bundle/plans/*/.*.tmp"),
        ("encode --data glyphs --vqvae m.safetensors --count 100000 --out tokens", "tokens/store.json"),
        ("evaluate --model bundle --count 100000 --out run", "run/pictures-*"),
    ],
)
def test_sigterm_leaves_nothing_temporary(words, sign, tmp_path):
    """In the temporary folder, or beside what is written; `sign` shows that the work is under way."""
    if words.startswith("build"):
        pytest.importorskip("tensorrt_rtx", reason="builds plans by TensorRT-RTX: pip install tensorrt-rtx")
    model = write_model(tmp_path / "m.safetensors")
    if "bundle" in words:
        export_bundle(model, tmp_path / "bundle", "fp32", "a test")
    (tmp_path / "scratch").mkdir()
    env = {**os.environ, "TMPDIR": str(tmp_path / "scratch")}
    process = subprocess.Popen([*MAIN, *words.split()], env=env, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob(sign)):
        assert process.poll() is None, "it ended before it was under way"
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 143 and "Stopped by SIGTERM" in said, said
    assert not list((tmp_path / "scratch").iterdir()) and not list(tmp_path.rglob("*.tmp"))
