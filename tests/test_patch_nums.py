"""`--patch-nums` beside a checkpoint that does not tell its token maps: wherever one is named, and nowhere else."""

import json
from pathlib import Path

import official_layout as official
import pytest
import torch
from command_line import Command, in_process
from small_checkpoints import official_files, tiny_vqvae
from small_models import small_config, vivid_model
from small_training import write_tokens

from actvar import Pipeline
from actvar.bundle.manifest import read_manifest
from actvar.checkpoint.files import Checkpoint
from actvar.checkpoint.model import load_checkpoint, load_model
from actvar.checkpoint.own import save_model
from actvar.cli.options import integers
from actvar.errors import ArgumentError, UsageError
from actvar.export.bundle_cache import cached_bundle
from actvar.export.onnx_export import export_bundle, export_graphs
from actvar.scales import ScaleSchedule

MAPS, ALIKE = (1, 2, 3, 8), (1, 4, 5, 6)
"""Two schedules of as many tokens: the file fits both."""
GIVEN = ("--vqvae", "vae.pth", "--patch-nums")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """In a folder with an official VAR of custom token maps, which does not tell them, and its VQVAE."""
    monkeypatch.setenv("ACTVAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    torch.save(official.filled(official.var_shapes(1, MAPS, classes=3, V=24, E=4)), "custom.pth")
    torch.save(tiny_vqvae(), "vae.pth")
    return in_process(monkeypatch, capsys)


def written(maps: tuple[int, ...], sign: str = "_") -> str:
    return sign.join(map(str, maps))


def test_the_two_schedules_have_as_many_tokens():
    """Or the tests below would show nothing."""
    assert ScaleSchedule(MAPS).total == ScaleSchedule(ALIKE).total and len(MAPS) == len(ALIKE)


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_a_picture_is_drawn_by_the_maps_that_are_given(command: Command, backend: str):
    """In official VAR's own form; other maps of as many tokens are another model, also in the cache."""
    for name, maps in (("right.png", MAPS), ("other.png", ALIKE), ("again.png", MAPS)):
        draw = ("generate", "--class", 1, "--backend", backend, "--model", "custom.pth", "--out", name)
        code, _, err = command(*draw, *GIVEN, written(maps))
        assert code == 0, err
    assert Path("right.png").read_bytes() == Path("again.png").read_bytes() != Path("other.png").read_bytes()
    bundles = list(Path("cache").glob("bundles/*/manifest.json"))
    found = {read_manifest(path.parent).model.schedule.patch_nums for path in bundles}
    assert found == (set() if backend == "torch" else {MAPS, ALIKE})


def test_the_cache_s_key_holds_the_maps(command: Command):
    named = [Checkpoint(Path("custom.pth"), Path("vae.pth"), ScaleSchedule(maps)) for maps in (MAPS, ALIKE)]
    assert len({cached_bundle(each, "fp32", lambda model: None, lambda share: None) for each in named}) == 2


def test_the_front_door_has_them(command: Command):
    """As numbers, of numpy's too; what is no schedule is refused in Python's words."""
    with Pipeline.from_pretrained("custom.pth", vqvae="vae.pth", patch_nums=list(MAPS)) as pipe:
        assert pipe.source.model.schedule.patch_nums == MAPS
    for wrong in ((1, 2, 2), "1,2,4", (1, 2.5), 3, ()):
        with pytest.raises(ArgumentError, match="patch_nums must"):
            Pipeline.from_pretrained("custom.pth", vqvae="vae.pth", patch_nums=wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="actvar-mini has its own"):
        Pipeline.from_pretrained("actvar-mini", patch_nums=MAPS)


def test_export_build_and_bind_take_them(command: Command):
    """What is written says them."""
    code, _, err = command("export", "--model", "custom.pth", *GIVEN, written(MAPS), "--out", "exported")
    assert code == 0, err
    config = read_manifest(Path("exported")).model
    assert config.schedule.patch_nums == MAPS
    export_graphs(config, Path("bound"), "fp32", "no weights yet")
    code, _, err = command("bind", "bound", "--model", "custom.pth", *GIVEN, written(MAPS))
    assert code == 0, err
    assert read_manifest(Path("bound")).weights == read_manifest(Path("exported")).weights
    code, _, err = command("bind", "bound", "--model", "custom.pth", *GIVEN, written(ALIKE))
    assert code == 1 and "patch_nums is (1, 4, 5, 6), and the graphs were made for (1, 2, 3, 8)" in err
    command("build", "--engine", "tensorrt", "--model", "custom.pth", *GIVEN, written(MAPS), "--out", "built")
    built = read_manifest(Path("built"))  # whether there is an engine to build with or not
    assert (built.model, built.weights) == (config, read_manifest(Path("exported")).weights)


def test_parity_takes_them(command: Command):
    code, _, err = command("parity", "--model", "custom.pth", *GIVEN, written(MAPS, ","), "--count", 1)
    assert code == 0, err


def test_evaluate_takes_them(command: Command):
    code, _, err = command("evaluate", "--model", "custom.pth", *GIVEN, written(MAPS), "--count", 4, "--out", "run")
    assert code == 0, err
    code, _, err = command("evaluate", "--model", "custom.pth", *GIVEN, written(ALIKE), "--count", 4, "--out", "run")
    assert code == 1 and "holds pictures of another run: weights is" in err


def test_both_stages_take_those_of_the_teacher(command: Command):
    """The student's file tells its own."""
    teacher = load_checkpoint(Checkpoint(Path("custom.pth"), Path("vae.pth"), schedule=ScaleSchedule(MAPS)))
    write_tokens(Path("tokens"), teacher)
    of_teacher = ("--teacher", "custom.pth", *GIVEN, written(MAPS), "--tokens-dir", "tokens", "--batch-size", 4)
    code, _, err = command("train", "stage1", *of_teacher, "--out", "one", "--steps", 1)
    assert code == 0, err
    code, _, err = command("train", "stage2", *of_teacher, "--student", "one", "--out", "two", "--steps", 1)
    assert code == 0, err
    assert load_model(Path("two/actvar.safetensors")).config.schedule.patch_nums == MAPS


def test_explain_takes_them(command: Command):
    """Of a dense model there is nothing to explain, and to find that out it was read."""
    code, _, err = command("explain", "--class", 1, "--model", "custom.pth", *GIVEN, written(MAPS))
    assert code == 2 and "custom.pth updates every token" in err


@pytest.mark.parametrize(
    "command_words",
    [("generate", "--class", 1), ("evaluate", "--count", 4), ("export",), ("parity",), ("build",)],
    ids=str,
)
def test_where_nobody_asks_for_them_they_are_refused(command: Command, command_words: tuple):
    """Beside a model of the package, a bundle, and a file that tells its own or has another number of tokens."""
    save_model(vivid_model(small_config()), Path("own.safetensors"))
    export_bundle(vivid_model(small_config()), Path("bundle"), "fp32", "a test")
    of_model = {
        "actvar-mini": "actvar-mini has its own",
        "own.safetensors": "own.safetensors has its own patch_nums, (1, 2, 3, 5)",
        "bundle": "bundle is a bundle, and ",
    }
    for model, message in of_model.items():
        code, out, err = command(*command_words, "--model", model, "--patch-nums", "1,2,4")
        assert (code, out) == (2, "") and message in err, err
    code, _, err = command(*command_words, "--model", "custom.pth", *GIVEN, "1,2,4")
    assert code == 1 and "expected 21 tokens, as patch_nums (1, 2, 4) have, found 78" in err
    code, _, err = command(*command_words, "--model", "custom.pth", *GIVEN, "1,2,x")
    assert code == 2 and "--patch-nums 1,2,x: patch_nums must be whole numbers" in err


def test_a_file_that_tells_the_same_maps_is_taken(command: Command, tmp_path: Path):
    """Who gives what is true is not refused."""
    var, vqvae = official_files(tmp_path)
    maps = written(official.STANDARD)
    code, _, err = command("export", "--model", var, "--vqvae", vqvae, "--patch-nums", maps, "--out", "same")
    assert code == 0, err


def test_without_a_model_they_shape_a_size(command: Command):
    code, _, err = command("parity", "--patch-nums", "1,2,4")
    assert code == 2 and "--patch-nums belongs to a --depth, to a --preset, or to a checkpoint" in err
    code, _, err = command("bind", "bundle", "--random", "--patch-nums", "1,2,4")
    assert code == 2 and "--patch-nums belongs to a --model" in err


# ---- lists of whole numbers


def test_an_underscore_is_never_a_part_of_a_number_in_a_list(command: Command):
    """Python reads 1_2 as 12; official VAR parts token maps so, and a person means the same."""
    assert ScaleSchedule.parse("1_2_4_8") == ScaleSchedule.parse("1,2,4,8") == ScaleSchedule((1, 2, 4, 8))
    assert integers("--scales", "9_10") == integers("--scales", "9,10") == (9, 10)
    code, out, err = command("flops", "--patch-nums", "1_2_4_8", "--depth", 16, "--active-scales", "3_4", "--json", "-")
    assert code == 0, err
    model = json.loads(out)["model"]
    assert (model["patch_nums"], model["activation"]["scales"]) == ([1, 2, 4, 8], [3, 4])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("bench", "--batch-sizes", "1_x"), "--batch-sizes must be whole numbers"),
        (("bench", "--batch-sizes", "1__2"), "--batch-sizes must be whole numbers"),
        (("bench", "--batch-sizes", "\N{FULLWIDTH DIGIT ONE}"), "--batch-sizes must be whole numbers"),
        (("bench", "--batch-sizes", "9" * 40), "--batch-sizes must be whole numbers"),
        (("build", "--depth", 2, "--batch-range", "1:1_0:64"), "--batch-range must be three numbers"),
        (("generate", "--class", "1_2"), "--class '1_2' is unknown"),
        (("flops", "--token-rates", "0.5_0.7"), "--token-rates must be numbers with commas between"),
    ],
    ids=str,
)
def test_what_is_no_list_is_refused(command: Command, words: tuple, message: str):
    """A class may have an underscore in its name; a rate has a point, so nothing is guessed there."""
    code, out, err = command(*words)
    assert (code, out) == (2, "") and message in err, err
