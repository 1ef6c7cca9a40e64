"""The words of the command line: the same everywhere, in groups, with examples that parse; what old ones are now."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from command_line import Command, in_process
from small_models import small_config, vivid_model

from actvar.checkpoint.own import save_model
from actvar.cli.main import NAME, app
from actvar.cli.old_spellings import OLD_SPELLINGS
from actvar.config import Activation
from actvar.export.onnx_export import export_bundle

MODEL = small_config(activation=Activation(16, (3, 4), (0.75, 0.5), (0.5, 0.25)))
WIDTH = 80


def walk(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command by its words, groups too."""
    yield " ".join(words), command
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, (*words, name))


ROOT_COMMAND = typer.main.get_command(app)
COMMANDS = dict(walk(ROOT_COMMAND))


def options(command: str) -> dict[str, Any]:
    """By every spelling that is taken."""
    return {spelling: option for option in COMMANDS[command].params for spelling in option.opts}


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`actvar-trt` in this process, in an empty folder, with a cache of its own and 80 columns."""
    monkeypatch.setenv("ACTVAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return in_process(monkeypatch, capsys)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint and its bundle, in a folder whose name is long."""
    folder = tmp_path_factory.mktemp("a-folder-whose-name-is-longer-than-a-line-of-a-terminal-has-room-for")
    save_model(vivid_model(MODEL), folder / "small.safetensors")
    export_bundle(vivid_model(MODEL), folder / "bundle", "fp32", "a test")
    return folder


# ---- help


def test_commands_are_in_groups(command: Command):
    """In the order in which a newcomer needs them."""
    out = command("--help")[1]
    groups = {
        "Draw": ("generate", "edit", "sample", "explain", "classes", "doctor"),
        "Deploy": ("export", "build", "bind", "inspect", "parity", "serve", "triton"),
        "Train": ("encode", "train"),
        "Measure": ("evaluate", "flops", "study", "bench"),
    }
    headings = [out.index(f"─ {group} ─") for group in groups]
    assert headings == sorted(headings)
    for name, inner in ROOT_COMMAND.commands.items():  # type: ignore[attr-defined]
        assert name in groups[inner.rich_help_panel]


@pytest.mark.parametrize("name", [name for name in COMMANDS if name])
def test_every_option_is_in_a_group_and_says_what_it_means(name: str):
    """Only --help stands by itself."""
    for option in COMMANDS[name].params:
        if option.param_type_name == "option" and "--help" not in option.opts:
            assert option.rich_help_panel and option.help, option.opts
        assert option.default is not None or option.required or option.show_default or not option.help, option.opts


def test_an_option_is_in_the_same_group_everywhere():
    """But for what a training asks: its steps, its seed, its pictures."""
    panels: dict[str, set[str]] = {}
    for name in COMMANDS:
        for spelling, option in options(name).items():
            if panel := getattr(option, "rich_help_panel", None):
                panels.setdefault(spelling, set()).add(panel)
    for spelling, of_option in panels.items():
        assert len(of_option - {"Training", "Data"}) <= 1, (spelling, of_option)


def examples() -> Iterator[tuple[str, list[str]]]:
    """The command that shows it, and the words of the example after the program's name."""
    for name, inner in COMMANDS.items():
        for paragraph in (inner.epilog or "").split("\n\n"):
            _, found, words = paragraph.partition(f"{NAME} ")
            if found:
                yield name, shlex.split(words)


@pytest.mark.parametrize(("name", "words"), list(examples()))
def test_every_example_parses(name: str, words: list[str]):
    """And is one of the command that shows it."""
    assert words[: len(name.split())] == name.split()
    inner, context = ROOT_COMMAND, None
    while True:
        try:
            context = inner.make_context(inner.name or NAME, list(words), parent=context)
        except typer.Exit:  # of --help
            return
        rest = [*context._protected_args, *context.args] if hasattr(inner, "commands") else []
        if not rest:
            return
        _, inner, words = inner.resolve_command(context, rest)
        assert inner


def test_examples_are_shown_by_every_command():
    assert {name for name, _ in examples()} == COMMANDS.keys()


# ---- what was said otherwise before


OLD = [(name, spelling) for spelling in OLD_SPELLINGS for name in spelling.commands]


@pytest.mark.parametrize(("name", "spelling"), OLD, ids=lambda given: given if isinstance(given, str) else given.old)
def test_an_old_spelling_names_the_new_one(command: Command, name: str, spelling):
    """With exit code 2 and nothing done; the new one is there, and the old one is not."""
    taken = options(name)
    assert spelling.old not in taken
    new = spelling.new.split()[0]
    assert new in taken if new.startswith("--") else spelling.new.split()[-1] in {p.metavar for p in taken.values()}
    for value in ([], ["1"]):
        code, out, err = command(*name.split(), spelling.old, *value)
        assert (code, out) == (2, "")
        assert err.startswith(f"Error: {spelling.old} is now {spelling.new}: ") and len(err.splitlines()) == 1
        assert f"See `{NAME} {name} --help`" in err
    assert not list(Path().iterdir())


def test_what_never_was_an_option_is_no_old_spelling(command: Command):
    code, _, err = command("generate", "--chekpoint", "x")
    assert code == 2 and "No such option: --chekpoint" in err and "is now" not in err


@pytest.mark.parametrize("name", ["flops", "export", "train mini"])
def test_a_rate_in_place_of_a_number_of_experts_is_told_where_rates_go(command: Command, name: str):
    code, _, err = command(*name.split(), "--experts", "0.75")
    assert code == 2 and "--experts is their number, such as 16; rates are --expert-rates" in err


def test_fp16_is_short_for_a_precision(command: Command, models: Path):
    """And for no other."""
    draw = ("generate", "--class", 1, "--model", models / "small.safetensors")
    code, _, err = command(*draw, "--fp16", "--precision", "bf16")
    assert code == 2 and "--fp16 and --precision bf16 exclude each other" in err
    assert command(*draw, "--fp16", "--precision", "fp16")[0] == command(*draw, "--fp16")[0] == 0
    assert len(list(Path("../cache").glob("bundles/*-fp16-*/manifest.json"))) == 1


def test_a_bundle_has_its_own_precision(command: Command, models: Path):
    """To draw in another than was asked for would be worse than to refuse."""
    draw = ("generate", "--class", 1, "--model", models / "bundle")
    code, _, err = command(*draw, "--fp16")
    assert code == 2 and "bundle is a bundle in fp32, and fp16 was asked for. Leave the precision out" in err
    assert command(*draw, "--precision", "fp32")[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [("export",), ("explain", "--class", 1), ("bind", "bundle"), ("parity",)],
    ids=lambda arguments: arguments[0],
)
def test_where_a_checkpoint_is_wanted_a_bundle_is_refused(command: Command, models: Path, arguments: tuple):
    code, out, err = command(*arguments, "--model", models / "bundle")
    assert (code, out) == (2, "") and "is a bundle, and a checkpoint is wanted here" in err


def test_preset_and_depth_are_one_and_the_same(command: Command):
    """And dense where that is said."""
    by_name, by_depth = (json.loads(command("flops", *size, "--json", "-")[1]) for size in (
        ("--preset", "d16"), ("--depth", 16)
    ))  # fmt: skip
    assert by_name == by_depth and by_name["model"]["activation"]["scales"] == [9, 10]
    dense = json.loads(command("flops", "--preset", "d16", "--dense", "--json", "-")[1])
    assert dense["name"] == "VAR-d16" and dense["model"]["activation"] is None
    code, _, err = command("flops", "--dense", "--token-rates", 0.5)
    assert code == 2 and "not densely" in err


# ---- what is printed

SHOWN = {
    "flops": ("flops",),
    "flops --paper": ("flops", "--paper"),
    "flops of d36": ("flops", "--preset", "d36"),
    "inspect": ("inspect", "{models}/bundle"),
    "parity": ("parity", "--model", "{models}/small.safetensors", "--count", 1),
    "classes": ("classes",),
    "doctor": ("doctor",),
}


def told(models: Path, what: str) -> list[str]:
    return [str(word).format(models=models) for word in SHOWN[what]]


@pytest.mark.parametrize("what", SHOWN)
def test_tables_fit_a_terminal_of_80_columns(command: Command, models: Path, what: str):
    """Folded where they must be, and never cut: what is not shown would be missed."""
    code, out, err = command(*told(models, what))
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= WIDTH
    assert "…" not in out


@pytest.mark.parametrize("what", SHOWN)
def test_a_pipe_gets_whole_lines_and_nothing_but_text(command: Command, models: Path, monkeypatch, what: str):
    """However long: a program takes them apart."""
    folded = command(*told(models, what))[1]
    monkeypatch.delenv("COLUMNS")
    code, out, _ = command(*told(models, what))
    assert code == 0 and "\x1b" not in out and "…" not in out
    assert len(out.splitlines()) <= len(folded.splitlines())
    if what == "inspect":
        [line] = (line for line in out.splitlines() if line.strip().startswith("bundle "))
        assert f"{models}/bundle: all 10 files are what its manifest says" in line


@pytest.mark.parametrize("what", SHOWN)
def test_a_dash_is_stdout_and_nothing_else_is_there(command: Command, models: Path, what: str):
    """The same as in a file."""
    code, out, err = command(*told(models, what), "--json", "-")
    assert code == 0, err
    on_stdout = json.loads(out)
    code, shown, _ = command(*told(models, what), "--json", "report.json")
    assert code == 0 and shown
    in_file = json.loads(Path("report.json").read_text())
    assert on_stdout.keys() == in_file.keys() and not Path("-").exists()
    if what != "doctor":  # whose cache grows
        assert on_stdout == in_file


@pytest.mark.parametrize("name", ["generate", "parity", "build", "encode", "train stage1"])
def test_help_fits_80_columns(command: Command, name: str):
    code, out, _ = command(*name.split(), "--help")
    assert code == 0 and max(map(len, out.splitlines())) <= WIDTH


# ---- completion

COMPLETE = """
import sys
from actvar.cli.main import main
try:
    main()
finally:
    sys.stderr.write(f"loaded {sorted({'torch', 'onnx'} & sys.modules.keys())}")
"""


def completed(line: str, **more: str) -> list[str]:
    """What bash is offered for the word at the end of a line."""
    words = line.split(" ")
    environment = {**os.environ, "_ACTVAR_TRT_COMPLETE": "complete_bash", "COMP_WORDS": line} | more
    environment["COMP_CWORD"] = str(len(words) - 1)
    done = subprocess.run(
        [sys.executable, "-c", COMPLETE], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stderr.endswith("loaded []"), done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        (f"{NAME} gen", ["generate"]),
        (f"{NAME} train stage", ["stage1", "stage2"]),
        (f"{NAME} generate --local", ["--local-files-only"]),
        (f"{NAME} generate --model a", ["actvar-mini", "actvar-mini-guidance-free"]),
        (f"{NAME} bench --model ", ["actvar-mini", "actvar-mini-guidance-free", "var-mini"]),
        (f"{NAME} parity --cpu-graph sca", ["scales", "scales_masked"]),
        (f"{NAME} generate --class brown-c", ["brown-cross", "brown-crescent"]),
        (f"{NAME} generate --class 3,brown-ri", ["3,brown-ring"]),
        (f"{NAME} explain --model nowhere --class go", []),
    ],
)
def test_the_shell_completes(line: str, offered: list[str]):
    """Quickly: neither PyTorch nor ONNX is loaded for it."""
    assert completed(line) == offered


def test_the_shell_completes_the_names_of_other_models(tmp_path: Path):
    """Of ImageNet for an official checkpoint, which cannot be asked; a blank would end the word."""
    (tmp_path / "var_d16.pth").write_bytes(b"not opened")
    assert completed(f"{NAME} generate --model {tmp_path}/var_d16.pth --class golden-r") == ["golden-retriever"]


def test_completion_can_be_installed(command: Command):
    """The help says how."""
    assert command("--help")[1].count("completion") >= 2
    assert {"--install-completion", "--show-completion"} <= options("").keys()
    script = completed(NAME, _ACTVAR_TRT_COMPLETE="source_bash")
    assert "complete" in script and NAME in script
