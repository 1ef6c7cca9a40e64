"""What a user may get wrong, through the command line: one clear message, the right exit code, nothing half-written.

The messages' details are tested beside the modules that give them; here it is shown that they reach the user, and that
no traceback does.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from small_models import small_config, vivid_model

from actvar.checkpoint.own import save_model
from actvar.cli.main import main
from actvar.export.onnx_export import export_bundle

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Runs `actvar-trt` with arguments: exit code, stdout, stderr."""
    monkeypatch.setenv("ACTVAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["actvar-trt", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        return int(ended.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small checkpoint and the bundle made of it."""
    folder = tmp_path_factory.mktemp("pristine")
    model = vivid_model(small_config())
    save_model(model, folder / "model.safetensors", torch.float32)
    export_bundle(model, folder / "bundle", "fp32", "a test")
    return folder


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine / "bundle", tmp_path / "bundle"))


@pytest.fixture
def checkpoint(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(pristine / "model.safetensors", tmp_path / "model.safetensors"))


def rewrite(checkpoint: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], None]) -> None:
    with safe_open(checkpoint, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118
    change(tensors, metadata)
    save_file(tensors, checkpoint, metadata)


def test_the_pristine_bundle_and_checkpoint_draw(run: Run, bundle: Path, checkpoint: Path):
    """Without this, every refusal below could have another reason."""
    for source in (("--model", bundle), ("--model", checkpoint)):
        code, out, _ = run("generate", "--class", "1", *source)
        assert code == 0 and Path(out.partition(": ")[0]).is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--class", "brown-cresent"), "Did you mean brown-crescent"),
        (("--class", "100"), "--class must lie in 0..99 for this model, got 100"),
        (("--class", "-1"), "--class must lie in 0..99"),
        (("--class", "1", "--top-k", "0"), "top-k must lie in 1..900, got 0"),
        (("--class", "1", "--top-p", "1.5"), "top-p must lie in (0, 1], got 1.5"),
        (("--class", "1", "--cfg", "nan"), "cfg must be 0 or more, got nan"),
        (("--class", "1", "--count", "0"), "--count"),
        (("--class", "1", "--backend", "tvm"), "--backend"),
        (("--class", "1", "--backend", "tensorrt", "--device", "cpu"), "TensorRT needs a GPU, and the device is cpu"),
        ((), "--class"),
    ],
)
def test_a_wrong_option_of_generate_is_a_usage_error(run: Run, arguments: tuple[str, ...], message: str):
    code, out, err = run("generate", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert not list(Path.cwd().glob("*.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--token-rates", "0.001,0.75"), "keeps no token of scale 9"),
        (("--token-rates", "0,0.75"), "token_rates must lie in (0, 1]"),
        (("--token-rates", "0.5,0.5,0.5"), "needs one rate for each of the scales"),
        (("--expert-rates", "0.01"), "keeps no expert"),
        (("--experts", "7"), "experts must divide the FFN's hidden width 1024 (4C), got 7"),
        (("--active-scales", "9,11"), "active scales must lie in 1..10"),
        (("--active-scales", "nine"), "--active-scales"),
        (("--patch-nums", "2,4"), "patch_nums must be two or more numbers that start at 1"),
    ],
)
def test_rates_that_do_not_fit_are_a_usage_error(run: Run, arguments: tuple[str, ...], message: str):
    code, _, err = run("export", "--preset", "mini", "--out", "made", *arguments)
    assert code == 2
    assert message in err
    assert not Path("made").exists()


def break_nan(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    tensors["var.head.weight"][0, 0] = torch.nan


def break_missing(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    del tensors["var.head.bias"]


def break_extra(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    tensors["var.tail.bias"] = torch.zeros(3)


def break_depth(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    config = json.loads(metadata["config"])
    metadata["config"] = json.dumps({**config, "depth": config["depth"] + 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (break_nan, "head.weight"),
        (break_missing, "head.bias"),
        (break_extra, "tail.bias"),
        (break_depth, "depth"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_file_and_name(
    run: Run, checkpoint: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], None], message: str
):
    rewrite(checkpoint, change)
    code, out, err = run("generate", "--class", "1", "--model", checkpoint)
    assert (code, out) == (1, "")
    assert "model.safetensors" in err and message in err
    assert not list(Path("cache").rglob("manifest.json"))


def test_a_cut_checkpoint_is_refused(run: Run, checkpoint: Path):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    code, _, err = run("generate", "--class", "1", "--model", checkpoint)
    assert code == 1 and "model.safetensors" in err


class Hostile:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(run: Run, tmp_path: Path):
    marker, file = tmp_path / "ran", tmp_path / "var_d16.pth"
    torch.save({"weights": Hostile(marker)}, file)
    code, _, err = run("generate", "--class", "1", "--model", file)
    assert code == 1 and "var_d16.pth" in err
    assert not marker.exists()


@pytest.mark.parametrize("file", ["manifest.json", "scale_03.onnx", "weights.bin", "decoder.onnx"])
@pytest.mark.parametrize("how", ["cut", "changed", "missing"])
def test_an_altered_bundle_is_refused_by_the_name_of_the_file(run: Run, bundle: Path, file: str, how: str):
    path = bundle / file
    content = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "changed":
        place = content.index(b'"precision": "fp32"') + 14 if file == "manifest.json" else len(content) // 2
        content[place] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    code, out, err = run("generate", "--class", "1", "--model", bundle)
    names_no_model = file == "manifest.json" and how == "missing"
    assert (code, out) == (2 if names_no_model else 1, "")
    assert file in err
    assert not list(Path.cwd().glob("*.png"))


def test_an_output_that_cannot_be_written_is_told_before_drawing(run: Run, bundle: Path, tmp_path: Path):
    blocked = tmp_path / "a-file"
    blocked.write_text("not a folder")
    code, out, err = run("generate", "--class", "1", "--model", bundle, "--out", blocked / "pictures")
    assert (code, out) == (1, "")
    assert "a-file is not a folder" in err
    assert blocked.read_text() == "not a folder"


SLOWED = """
import signal
import time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started without one
from actvar.export import onnx_export

build = onnx_export.build_graph
onnx_export.build_graph = lambda *arguments: time.sleep(0.5) or build(*arguments)
from actvar.cli.main import main
main()
"""


def test_ctrl_c_during_an_export_leaves_nothing(tmp_path: Path):
    """A real signal to a real process, between two graphs; each is slowed down, so that there is a moment to hit."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWED, "export", "--preset", "mini", "--out", "made"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob(".made.*/condition.onnx")):
        assert process.poll() is None and time.monotonic() < deadline, "the export never began to write"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err and "Stopped" in err
    assert list(tmp_path.iterdir()) == []
