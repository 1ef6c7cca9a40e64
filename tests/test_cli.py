"""`actvar-trt` as a person uses it: pictures of a class, the cache, export and inspect.

What a person may get wrong is in `test_bad_input.py`.
"""

import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Command, in_process
from conftest import gpu
from PIL import Image
from small_models import small_config, vivid_model

import actvar.export.onnx_export as exporter
from actvar import Pipeline
from actvar.bundle.manifest import read_manifest
from actvar.checkpoint.files import Checkpoint
from actvar.checkpoint.own import save_model
from actvar.config import Activation
from actvar.errors import ActVARError, needs
from actvar.export.bundle_cache import cached_bundle
from actvar.plugins.library import PLUGIN_VARIABLE
from actvar.runtime.machine import cache_folder

NAMES = ("red-disc", "green-disc", "red-star", "green-star", "brown-crescent")
MODEL = replace(small_config(activation=Activation(16, (3, 4), (0.75, 0.5), (0.5, 0.25))), class_names=NAMES)
SIDE, SCALES = 10, 4


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small ActVAR, and its cache after the first picture."""
    folder = tmp_path_factory.mktemp("cli")
    save_model(vivid_model(MODEL), folder / "small.safetensors", torch.float32)
    exporter.export_bundle(vivid_model(MODEL), folder / "bundle", "fp32", "a test")
    return folder


@pytest.fixture
def checkpoint(pristine: Path) -> Path:
    return pristine / "small.safetensors"


@pytest.fixture
def bundle(pristine: Path) -> Path:
    return pristine / "bundle"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`actvar-trt` in this process, in an empty folder with a cache of its own."""
    monkeypatch.setenv("ACTVAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    return in_process(monkeypatch, capsys)


def files(folder: Path = Path(".")) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def pixels(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path))


# ---- pictures


def test_a_picture_is_written_and_its_place_is_said(command: Command, bundle: Path):
    """The path stands first on a line of stdout, for people and programs alike."""
    run = command("generate", "--class", 4, "--model", bundle)
    name = "bundle-004-brown-crescent-seed0-0.png"
    assert run.code == 0
    assert run.out == f"{name}: class 4 (brown-crescent), picture 0 of seed 0\n"
    assert files() == [name]
    assert pixels(name).shape == (SIDE, SIDE, 3)


def test_the_third_of_five_is_the_third_of_three(command: Command, bundle: Path):
    """Byte for byte, whatever the batches: what the README promises."""
    for out, count, batch in (("a", 5, 1), ("b", 3, 1), ("c", 5, 2), ("d", 3, 3)):
        run = command(
            *("generate", "--class", 4, "--seed", 7, "--count", count, "--batch-size", batch),
            *("--model", bundle, "--out", out),
        )
        assert run.code == 0 and len(files(Path(out))) == count
    third = [Path(out, "bundle-004-brown-crescent-seed7-2.png").read_bytes() for out in "abcd"]
    assert len(set(third)) == 1
    assert len({path.read_bytes() for path in Path("a").iterdir()}) == 5


def test_python_draws_the_same_bytes(command: Command, bundle: Path):
    """The command is a caller of the pipeline that a program opens."""
    command("generate", "--class", 4, "--seed", 7, "--count", 2, "--cfg", 2, "--model", bundle, "--out", "a")
    with Pipeline.from_pretrained(bundle) as pipe:
        images = pipe("brown-crescent", guidance_scale=2, seed=7, num_images_per_label=2).images
    for number, image in enumerate(images):
        np.testing.assert_array_equal(pixels(f"a/bundle-004-brown-crescent-seed7-{number}.png"), np.asarray(image))


def test_a_class_may_be_named(command: Command, bundle: Path):
    """By number, name, or a name with blanks and capitals; asked for twice, it is drawn once."""
    by_number = command("generate", "--class", 4, "--model", bundle, "--out", "a")
    by_name = command("generate", "--class", "brown-crescent", "--model", bundle, "--out", "b")
    loosely = command("generate", "--class", "Brown Crescent", "--class", 4, "--model", bundle, "--out", "c")
    assert by_number.code == by_name.code == loosely.code == 0
    assert files(Path("a")) == files(Path("b")) == files(Path("c"))
    assert len({path.read_bytes() for out in "abc" for path in Path(out).iterdir()}) == 1


def test_no_class_may_be_drawn_like_one(command: Command, bundle: Path):
    """It is not among all of them, and Python draws the same."""
    run = command("generate", "--class", "none", "--seed", 7, "--model", bundle)
    assert run.code == 0, run.err
    assert run.out == "bundle-none-seed7-0.png: class none, picture 0 of seed 7\n"
    with Pipeline.from_bundle(bundle, progress_bar=False) as pipe:
        made = pipe("none", seed=7)
    assert (made.class_ids, made.labels) == ((5,), ("none",))
    np.testing.assert_array_equal(pixels("bundle-none-seed7-0.png"), np.asarray(made.images[0]))
    command("generate", "--class", "all,none", "--model", bundle, "--grid", "--out", "a")
    command("generate", "--class", "none,4", "--model", bundle, "--grid", "--out", "a")
    assert sorted(path.name for path in Path("a").iterdir()) == [
        "bundle-6-classes-seed0-grid.png",
        "bundle-none-004-seed0-grid.png",
    ]


def test_out_may_be_a_file(command: Command, bundle: Path):
    """In a folder that is made for it; a picture that is there is replaced."""
    for seed in (0, 1):
        run = command("generate", "--class", 1, "--model", bundle, "--seed", seed, "--out", "new/mine.png")
        assert run.code == 0 and run.out.startswith("new/mine.png: ")
    assert files(Path("new")) == ["mine.png"]
    command("generate", "--class", 1, "--model", bundle, "--seed", 1, "--out", "other")
    np.testing.assert_array_equal(pixels("new/mine.png"), pixels("other/bundle-001-green-disc-seed1-0.png"))


def test_a_grid_holds_the_same_pictures(command: Command, bundle: Path):
    """One row for each class, in the order asked for."""
    command("generate", "--class", 4, "--class", 1, "--count", 2, "--model", bundle, "--out", "single")
    run = command("generate", "--class", 4, "--class", 1, "--count", 2, "--model", bundle, "--grid")
    assert run.out.startswith("bundle-004-001-seed0-grid.png: 4 pictures of class 4 (brown-crescent), 1 (green-disc)")
    assert files() == ["bundle-004-001-seed0-grid.png", "single"]
    grid = pixels("bundle-004-001-seed0-grid.png")
    assert grid.shape == (2 * SIDE + 2, 2 * SIDE + 2, 3)
    lower_right = pixels("single/bundle-001-green-disc-seed0-1.png")
    np.testing.assert_array_equal(grid[-SIDE:, -SIDE:], lower_right)


def test_the_scales_are_shown_beside_the_picture(command: Command, bundle: Path):
    """A strip that ends with the picture; in a grid, a row of them for each picture."""
    run = command("generate", "--class", 2, "--show-scales", "--model", bundle)
    name = "bundle-002-red-star-seed0-0"
    assert run.out.splitlines()[1] == f"{name}-scales.png: its {SCALES} scales"
    strip = pixels(f"{name}-scales.png")
    assert strip.shape == (SIDE, SCALES * SIDE + (SCALES - 1) * 2, 3)
    np.testing.assert_array_equal(strip[:, -SIDE:], pixels(f"{name}.png"))
    command("generate", "--class", 2, "--count", 3, "--show-scales", "--grid", "--model", bundle, "--out", "grid.png")
    grid = pixels("grid.png")
    assert grid.shape == (3 * SIDE + 4, *strip.shape[1:])
    np.testing.assert_array_equal(grid[:SIDE], strip)


def test_sampling_options_change_the_picture(command: Command, bundle: Path):
    """Each reaches the graphs; the model's own values are the default."""
    changes = ([], ["--cfg", 4], ["--top-k", 2], ["--top-p", 0.3], ["--seed", 3])
    for i, change in enumerate(changes):
        assert command("generate", "--class", 2, "--model", bundle, "--out", f"{i}.png", *change).code == 0
    assert len({Path(f"{i}.png").read_bytes() for i in range(len(changes))}) == len(changes)
    own = read_manifest(bundle).model.sampling
    said = ["--cfg", own.cfg, "--top-k", own.top_k, "--top-p", own.top_p]
    command("generate", "--class", 2, "--model", bundle, "--out", "own.png", *said)
    assert Path("own.png").read_bytes() == Path("0.png").read_bytes()


def test_both_backends_draw_the_same_tokens(command: Command, checkpoint: Path):
    """A pixel may differ by one where rounding moved it over a border."""
    for backend in ("onnxruntime", "torch"):
        run = command("generate", "--class", 2, "--model", checkpoint, "--backend", backend, "--out", backend)
        assert run.code == 0, run.err
    name = "small-002-red-star-seed0-0.png"
    difference = pixels(f"onnxruntime/{name}").astype(int) - pixels(f"torch/{name}")
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "{bundle}", "--backend", "torch"], "PyTorch draws with a checkpoint"),
        (["--vqvae", "v"], "--vqvae belongs to a checkpoint"),
        (["--seed", 2**64], "--seed must lie in"),
        (["--seed", -1], "--seed"),
        (["--batch-size", 0], "--batch-size"),
        (["--threads", -1], "--threads"),
        (["--count", 2, "--out", "one.png"], "Name a folder, or add --grid"),
        (["--out", "one.jpg"], "--out must be a .png file"),
        (["--precision", "fp8"], "--precision"),
    ],
)
def test_options_that_do_not_go_together_are_refused_at_once(
    command: Command, bundle: Path, arguments: list, message: str
):
    run = command("generate", "--class", 1, *(str(argument).format(bundle=bundle) for argument in arguments))
    assert (run.code, run.out) == (2, "")
    assert message in run.err and len(run.err.splitlines()) == 1
    assert files() == [] and not cache_folder().exists()


def test_a_model_without_names_wants_a_number(command: Command, tmp_path: Path):
    exporter.export_bundle(vivid_model(small_config()), tmp_path / "nameless", "fp32", "a test")
    run = command("generate", "--class", "disc", "--model", tmp_path / "nameless")
    assert run.code == 2 and "must be a number in 0..4" in run.err
    run = command("generate", "--class", 3, "--model", tmp_path / "nameless")
    assert run.out.startswith("nameless-003-seed0-0.png: class 3, ")


# ---- the cache


def test_a_checkpoint_is_exported_once(command: Command, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    """The second use finds the bundle, also under another name of the same file."""
    first = command("generate", "--class", 1, "--model", checkpoint, "--out", "a.png")
    assert first.code == 0 and "Exporting small.safetensors, once" in first.err
    monkeypatch.setattr(exporter, "export_bundle", None)
    second = command("generate", "--class", 1, "--model", checkpoint, "--out", "b.png")
    assert second.code == 0 and "Exporting" not in second.err
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_another_content_or_precision_is_another_bundle(command: Command, checkpoint: Path):
    """The name of a file says nothing about what is in it."""
    shutil.copy(checkpoint, "same.safetensors")
    command("generate", "--class", 1, "--model", "same.safetensors")
    save_model(vivid_model(MODEL, seed=1), Path("same.safetensors"), torch.float32)
    command("generate", "--class", 1, "--model", "same.safetensors")
    command("generate", "--class", 1, "--model", "same.safetensors", "--precision", "fp16")
    manifests = [read_manifest(path.parent) for path in cache_folder().glob("bundles/*/manifest.json")]
    assert len({manifest.weights.sha256 for manifest in manifests}) == len(manifests) == 3
    assert sorted(manifest.precision for manifest in manifests) == ["fp16", "fp32", "fp32"]


def test_a_damaged_copy_in_the_cache_is_made_anew(command: Command, checkpoint: Path):
    """It is only a copy: refusing it would leave a person with a folder to find and delete."""
    command("generate", "--class", 1, "--model", checkpoint, "--out", "a.png")
    (weights,) = cache_folder().glob("bundles/*/weights.bin")
    weights.write_bytes(weights.read_bytes()[:-1])
    run = command("generate", "--class", 1, "--model", checkpoint, "--out", "b.png")
    assert run.code == 0 and "making it anew" in run.err
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_an_unknown_class_is_told_before_the_export(command: Command, checkpoint: Path):
    run = command("generate", "--class", "brown-cresent", "--model", checkpoint)
    assert run.code == 2 and "Did you mean brown-crescent" in run.err
    assert not list(cache_folder().rglob("manifest.json"))


def test_ctrl_c_in_the_first_export_leaves_a_clean_cache(command: Command, checkpoint: Path, monkeypatch):
    """Half-way through the export; the next use starts again and is not misled by remains."""
    whole = exporter.export_bundle

    def stopped(model, folder, precision, source, progress):
        def stop(share: float) -> None:
            if share > 0.5:
                raise KeyboardInterrupt

        return whole(model, folder, precision, source, stop)

    monkeypatch.setattr(exporter, "export_bundle", stopped)
    run = command("generate", "--class", 1, "--model", checkpoint)
    assert run.code == 130 and run.err.splitlines()[-1].startswith("Error: Stopped")
    assert files() == []
    assert [path for path in cache_folder().rglob("*") if path.is_file() and path.suffix != ".lock"] == []
    monkeypatch.setattr(exporter, "export_bundle", whole)
    assert command("generate", "--class", 1, "--model", checkpoint).code == 0


def test_remains_of_a_killed_export_are_cleared(command: Command, checkpoint: Path):
    """Nothing runs when a process is killed: the next export of the same bundle tidies up."""
    command("generate", "--class", 1, "--model", checkpoint)
    (manifest,) = cache_folder().glob("bundles/*/manifest.json")
    remains = manifest.parent.with_name(f".{manifest.parent.name}.0123abcd.tmp")
    shutil.copytree(manifest.parent, remains)
    manifest.unlink()
    assert command("generate", "--class", 1, "--model", checkpoint).code == 0
    assert manifest.exists() and not remains.exists()


def test_two_processes_export_a_bundle_once(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The second waits for the first, and takes what it made."""
    monkeypatch.setenv("ACTVAR_CACHE", str(tmp_path))
    whole, begun = exporter.export_bundle, []

    def counted(*arguments):
        begun.append(1)
        return whole(*arguments)

    monkeypatch.setattr(exporter, "export_bundle", counted)
    found: list[Path] = []

    def use() -> None:
        found.append(cached_bundle(Checkpoint(checkpoint), "fp32", lambda model: None, lambda share: None))

    users = [threading.Thread(target=use) for _ in range(3)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert len(begun) == 1 and len(found) == 3 and len(set(found)) == 1
    read_manifest(found[0])


def test_a_cache_that_cannot_be_written_is_told(command: Command, checkpoint: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ACTVAR_CACHE", str(tmp_path / "file" / "below"))
    run = command("generate", "--class", 1, "--model", checkpoint)
    assert run.code == 1 and "The cache cannot be written" in run.err and "ACTVAR_CACHE" in run.err


def test_the_cache_lies_where_the_system_wants_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("ACTVAR_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "actvar-trt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "actvar-trt"


DRAW = """
import sys
from actvar.cli.main import main
{before}
try:
    main()
except SystemExit as stop:
    print("loaded", sorted({{"torch", "onnx"}} & sys.modules.keys()), "code", stop.code)
"""


def in_a_fresh_process(*arguments: object, before: str = "", cache: Path | None = None) -> str:
    environment = {**os.environ, "ACTVAR_CACHE": str(cache)} if cache else None
    done = subprocess.run(
        [sys.executable, "-c", DRAW.format(before=before), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=300,
    )
    return done.stdout + done.stderr


def test_a_cached_model_is_drawn_without_torch_and_onnx(command: Command, checkpoint: Path):
    """The second `generate` must be quick, and must work where PyTorch is not installed."""
    assert command("generate", "--class", 1, "--model", checkpoint).code == 0
    said = in_a_fresh_process("generate", "--class", 1, "--model", checkpoint)
    assert "loaded [] code 0" in said


def test_what_is_not_installed_is_named(command: Command, checkpoint: Path):
    """Which package, what for, and the command that installs it."""
    missing = "sys.modules.update(dict.fromkeys(['{}']))"  # None there makes an import fail as if it were not installed
    official = checkpoint.with_name("var.pth")
    torch.save({"blocks.0.x": torch.ones(1)}, official)
    for model, package, said_of_it in (
        (checkpoint, "onnx", "onnx is needed to export a model for the first time"),
        (official, "torch", "torch is needed to read var.pth (a .safetensors file needs none)"),
    ):
        said = in_a_fresh_process("generate", "--class", 1, "--model", model, before=missing.format(package))
        assert f"The package {said_of_it}, and is not installed." in said
        assert "pip install 'actvar-trt[export]'" in said and "code 1" in said and "Traceback" not in said


def test_a_missing_package_of_our_own_is_a_bug_and_shows_itself():
    with pytest.raises(ModuleNotFoundError), needs("export", "for a test"):
        raise ModuleNotFoundError("No module named 'actvar.nothing'", name="actvar.nothing")
    with (
        pytest.raises(ActVARError, match=r"onnxruntime is needed for a test.*actvar-trt\[cpu\]"),
        needs("cpu", "for a test"),
    ):
        raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")


# ---- the other commands


def test_an_export_can_be_inspected_and_drawn_with(command: Command, checkpoint: Path):
    """Rates of a checkpoint may be changed on the way; one rate stands for all scales."""
    run = command("export", "--model", checkpoint, "--out", "made", "--token-rates", "0.5", "--expert-rates", "0.5,1")
    assert run.code == 0 and run.out.startswith("made: 7 graphs")
    assert read_manifest(Path("made")).model.activation == Activation(16, (3, 4), (0.5, 0.5), (0.5, 1.0))
    shown = command("inspect", "made").out
    for words in (
        "ActVAR of depth 2, width 128, 5 classes",
        "scale 3: 50% of the tokens, 50% of the experts",
        "checkpoint small.safetensors",
        "10×10 by patch_nums 1 2 3 5",
    ):
        assert words in shown
    scale_4 = next(line for line in shown.splitlines() if "scale_04" in line)
    assert [cell.strip() for cell in scale_4.split("│")[3:6]] == ["25", "13", "16/16"]
    assert command("generate", "--class", 1, "--model", "made").code == 0


def test_an_export_without_a_checkpoint_says_that_it_is_random(command: Command):
    """Nobody is to wonder why the pictures show nothing; the bundle says so, too."""
    run = command("export", "--preset", "mini", "--dense", "--patch-nums", "1,2,3", "--out", "made", "--fp16")
    assert run.code == 0 and "Random weights" in run.err
    manifest = read_manifest(Path("made"))
    assert manifest.source == "random weights, preset mini"
    assert (manifest.precision, manifest.model.schedule.patch_nums) == ("fp16", (1, 2, 3))
    assert manifest.model.activation is None
    assert "none: all tokens and all weights at every scale" in command("inspect", "made").out


def test_a_dense_checkpoint_that_is_activated_says_that_its_router_is_random(command: Command, tmp_path: Path):
    save_model(vivid_model(small_config()), tmp_path / "dense.safetensors", torch.float32)
    run = command("export", "--model", tmp_path / "dense.safetensors", "--experts", 8, "--out", "made")
    assert run.code == 0 and "router and selector are random" in run.err
    assert read_manifest(Path("made")).model.activation == Activation(8, (3, 4), (0.75, 0.75), (0.75, 0.75))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "made from a --model, or from a --preset"),
        (["--preset", "mini", "--model", "c"], "--preset and --model both name a model"),
        (["--model", "actvar-mini", "--patch-nums", "1,2"], "actvar-mini has its own"),
        (["--preset", "mini", "--vqvae", "v"], "--vqvae belongs to a checkpoint"),
        (["--preset", "d17"], "--preset"),
        (["--preset", "mini", "--patch-nums", "1;2"], "--patch-nums 1;2: patch_nums must be whole numbers"),
        (["--preset", "mini", "--token-rates", "x"], "--token-rates must be numbers"),
        (["--preset", "mini", "--out", "full"], "is there and is not a bundle"),
    ],
)
def test_wrong_options_of_an_export_leave_nothing(command: Command, arguments: list[str], message: str):
    Path("full").mkdir()
    Path("full/mine.txt").write_text("kept")
    run = command("export", *arguments)
    assert run.code == 2 and message in run.err
    assert files() == ["full"] and files(Path("full")) == ["mine.txt"]


def test_inspect_refuses_what_generate_refuses(command: Command, bundle: Path, tmp_path: Path):
    """A description of a damaged bundle would be believed."""
    broken = Path(shutil.copytree(bundle, tmp_path / "broken"))
    (broken / "scale_02.onnx").write_bytes(b"")
    run = command("inspect", broken)
    assert run.code == 1 and "scale_02.onnx" in run.err and run.out == ""


def test_doctor_says_what_is_there_and_how_to_get_more(command: Command, checkpoint: Path, monkeypatch):
    """Every engine is named, and what is missing comes with a way to install it."""
    monkeypatch.setenv(PLUGIN_VARIABLE, "")  # as if none was built here
    command("generate", "--class", 1, "--model", checkpoint)
    run = command("doctor")
    assert run.code == 0

    def line(subject: str) -> str:
        return next(line for line in run.out.splitlines() if f" {subject} " in line)

    assert line("ONNX Runtime").startswith(" yes") and "CPUExecutionProvider" in line("ONNX Runtime")
    assert line("CUDA plugins").startswith(" no")
    assert str(cache_folder()) in line("cache") and "1 bundle," in line("cache")
    for engine in ("TensorRT", "TensorRT-RTX"):
        assert line(engine).startswith(" yes") or "pip install" in line(engine)


def test_what_needs_a_gpu_says_so(command: Command, checkpoint: Path):
    """One line each, before anything is exported or built for a device that is not there."""
    if gpu():
        pytest.skip("there is a GPU")
    drawn = command("generate", "--class", 1, "--model", checkpoint, "--backend", "tensorrt")
    assert drawn.code == 1 and "Traceback" not in drawn.err
    assert "There is no NVIDIA driver here" in drawn.err or "TensorRT" in drawn.err
    drawn = command("generate", "--class", 1, "--model", checkpoint, "--device", "cuda")
    assert drawn.code == 1 and "is built for the CPU alone" in drawn.err


def test_every_command_has_help_with_an_example(command: Command):
    """The first thing that is tried."""
    assert command("--help").out == command().out
    drawing, checking = (
        ("generate", "export", "build", "bind", "train"),
        ("inspect", "parity", "bench", "doctor"),
    )
    for name in (*drawing, *checking, "explain", "flops", "encode"):
        run = command(name, "--help")
        assert run.code == 0 and f"actvar-trt {name}" in run.out.partition("Example")[2]


def test_version(command: Command):
    run = command("--version")
    assert (run.code, run.out) == (0, "actvar-trt 0.1.0\n")
