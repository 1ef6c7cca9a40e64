"""Nothing is told to anybody: no connection, and no file outside the folders that are ours."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_models import small_config, vivid_model

from actvar.export.onnx_export import export_bundle
from actvar.runtime.machine import CACHE_VARIABLE
from actvar.telemetry import OFF

MAIN = "import sys; from actvar.cli.main import main; sys.argv[0] = 'actvar-trt'; main()"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "small"
    export_bundle(vivid_model(small_config()), folder, "fp32", "a test")
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def environment(home: Path) -> dict[str, str]:
    """A user's who has set nothing, with a home and a cache of the test's."""
    hidden = {*OFF, "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"}
    own = {"HOME": str(home), CACHE_VARIABLE: str(home / "ours")}
    return {**{name: value for name, value in os.environ.items() if name not in hidden}, **own}


def draws(bundle: Path, out: Path) -> list[str]:
    return [sys.executable, "-c", MAIN, "generate", "--class", "0", "--model", str(bundle), "--out", str(out)]


def test_drawing_leaves_nothing_in_the_users_home(bundle, home, tmp_path):
    """ONNX Runtime 1.29 and later would keep a device id and a queue of events there."""
    done = subprocess.run(draws(bundle, tmp_path), env=environment(home), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [str(path) for path in home.rglob("*") if path.is_file()] == []


def test_the_python_api_leaves_nothing_either(bundle, home):
    """By the runtime's own door, which no command has passed before."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom actvar.config import Sampling\n"
        "from actvar.runtime.pictures import Order\nfrom actvar.runtime.sources import open_graphs\n"
        "print(len(list(open_graphs(Path(sys.argv[1]), 1, 1).draw([Order(0, 0)], Sampling()))))"
    )
    command = [sys.executable, "-c", code, str(bundle)]
    done = subprocess.run(command, env=environment(home), capture_output=True, text=True, check=False)
    assert done.stdout == "1\n", done.stderr
    assert list(home.rglob("*")) == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_no_host_is_contacted(bundle, home, tmp_path):
    """Every call that could reach one, of the command and of all that it starts. A socket of this machine is none."""
    trace = tmp_path / "trace"
    calls = ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(trace)]
    command = [*calls, *draws(bundle, tmp_path)]
    done = subprocess.run(command, env=environment(home), capture_output=True, text=True, check=False)
    if "ptrace" in done.stderr and done.returncode:
        pytest.skip(f"strace may not look on here: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    assert [line for line in trace.read_text().splitlines() if "AF_INET" in line] == []


def test_what_a_user_has_set_stays(bundle, home, tmp_path):
    """Whoever wants a library to report, can have it so."""
    name = "HF_HUB_DISABLE_TELEMETRY"
    code = f"import os; from actvar.telemetry import switch_off; switch_off(); print(os.environ[{name!r}])"
    env = {**environment(home), name: "0"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
