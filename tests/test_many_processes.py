"""Two processes on a CPU, by DDP and by FSDP, against one process at the same global batch."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_training import logged, write_teacher, write_tokens
from team_worker import train_all

from actvar.errors import ActVARError, UsageError
from actvar.training.launch import team_of
from actvar.training.team import ALONE

TESTS = Path(__file__).parent
# It starts them as torchrun does, which it calls; for a CPU it would want MPI, so it is told of GPUs that nobody uses.
LAUNCHER = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same trainings by one process."""
    folder = tmp_path_factory.mktemp("alone")
    train_all(folder, ALONE, accumulate=1)
    return folder


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder that two processes have worked in, and what they printed."""
    if importlib.util.find_spec("accelerate") is None:
        pytest.skip("needs accelerate, of the extra train")
    folder = tmp_path_factory.mktemp("together")
    write_tokens(folder / "tokens", write_teacher(folder / "teacher.safetensors"))
    command = [
        "train", "stage1", "--teacher", "teacher.safetensors", "--tokens-dir", "tokens", "--out", "out",
        "--experts", "4", "--active-scales", "2,3", "--batch-size", "8", "--steps", "3", "--parallel", "fsdp",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", *LAUNCHER, str(TESTS / "team_worker.py"), str(folder), *command],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_train_as_one(alone: Path, together: tuple[Path, str], parallel: str):
    """The same losses and weights, over a break, in parts, with an average; and one log, without a line twice."""
    folder = together[0] / parallel
    for stage in ("stage1", "stage2", "var"):
        expected, found = logged(alone / stage), logged(folder / stage)
        assert [line["step"] for line in found] == list(range(6))
        assert found[0] == pytest.approx(expected[0], abs=2e-5)
        for name in expected[0]:
            assert [line[name] for line in found] == pytest.approx([line[name] for line in expected], rel=1e-3), name
        weights, single = (torch.load(where / f"{stage}.pt", weights_only=True) for where in (folder, alone))
        assert weights.keys() == single.keys()
        for name, value in single.items():
            if not name.endswith("selector.bias"):  # shifts all scores: its gradient is rounding, which Adam enlarges
                torch.testing.assert_close(weights[name], value, rtol=0, atol=2e-3, msg=name)


@pytest.mark.slow
def test_one_of_the_processes_speaks_and_writes(together: tuple[Path, str]):
    folder, said = together
    assert said.count("Wrote out/actvar.safetensors") == 1
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["actvar.safetensors", "log.jsonl", "state.pt"]
    assert torch.load(folder / "out/state.pt", weights_only=True)["identity"]["processes"] == "2"


def test_what_only_several_processes_need_is_asked_of_them_alone(monkeypatch: pytest.MonkeyPatch):
    """One alone trains without accelerate; several are told to install it."""
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.delitem(sys.modules, "actvar.training.processes", raising=False)
    with team_of(None, "cpu") as team:
        assert team is ALONE
    launcher = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ActVARError, match=r"accelerate is needed to train in several processes"), team_of(None, "cpu"):
        pass
    with pytest.raises(UsageError, match="--device cuda:1 is for one process"), team_of(None, "cuda:1"):
        pass
