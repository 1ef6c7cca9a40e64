"""README and docs are true: links lead somewhere, commands parse, and those that this machine can run are run.

Commands are taken from the text of the pages themselves: from blocks of shell, and from indented blocks.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import typer
from import_tree import ROOT, read_tree

from actvar.cli.main import app
from actvar.runtime.machine import CACHE_VARIABLE

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PREFIXES = ("actvar-trt ", "python export/build_engines.py")
QUICK = {"classes", "doctor", "explain", "flops", "generate"}
"""Commands that take seconds with a model of the package."""


@dataclass(frozen=True)
class Command:
    """A command of a page, in words as a shell would part it."""

    page: str
    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line} {' '.join(self.words)}"


def code_lines(page: Path) -> Iterator[tuple[int, str]]:
    """The lines of a page's code, numbered; a line that ends with a backslash goes on in the next."""
    fenced, joined, first = False, "", 0
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            fenced = not fenced
            continue
        if not (fenced or line.startswith("    ")):
            continue
        first = first if joined else number
        joined += line.strip()
        if joined.endswith("\\"):
            joined = joined[:-1]
            continue
        yield first, joined
        joined = ""


def commands() -> Iterator[Command]:
    """Every command of ours on the pages; brackets around what may be left out are taken away."""
    for page in PAGES:
        for number, line in code_lines(page):
            if line.startswith(PREFIXES):
                words = shlex.split(re.sub(r"[\[\]]", "", line.replace("$A", "assets")), comments=True)
                yield Command(str(page.relative_to(ROOT)), number, tuple(words))


def arguments(command: Command) -> list[str]:
    """What `actvar-trt` is given; build_engines.py is its `build`."""
    return list(command.words[1:]) if command.words[0] == "actvar-trt" else ["build", *command.words[2:]]


def can_run(command: Command) -> bool:
    """Whether it is quick, and needs nothing but what the package holds: no file, no Hub, no GPU."""
    words = arguments(command)
    outside = re.compile(r"\.(pth|safetensors)$|/|^(tensorrt|cuda|torch)$|^d\d+$|bundle")
    given = [word for option, word in pairwise(words) if option not in ("--out", "--json")]
    return words[0] == "flops" or (words[0] in QUICK and not any(outside.search(word) for word in given))


ALL = list(commands())


def test_the_pages_have_commands():
    """A reader of pages that finds none would let every rule pass."""
    assert len(ALL) > 60 and sum(map(can_run, ALL)) >= 8
    assert {"generate", "export", "build", "bind", "parity", "encode", "train", "evaluate", "bench", "flops"} <= {
        arguments(command)[0] for command in ALL
    }


@pytest.mark.parametrize("command", ALL, ids=str)
def test_a_command_of_a_page_is_understood(command: Command):
    """Every option exists, is given to a command that has it, and has a value of its type."""
    group, words = typer.main.get_command(app), arguments(command)
    context = group.make_context("actvar-trt", list(words), resilient_parsing=True)
    while hasattr(group, "get_command") and words and (found := group.get_command(context, words[0])):
        group, words = found, words[1:]
    group.make_context("actvar-trt", list(words), parent=context)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all commands: the models of the package are exported once."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in ALL if can_run(command)], ids=str)
def test_a_command_of_a_page_runs(command: Command, cache: Path, tmp_path: Path):
    """As the page has it, in an empty folder."""
    code = "import sys; from actvar.cli.main import main; sys.argv[0] = 'actvar-trt'; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments(command)],
        cwd=tmp_path, env={**os.environ, CACHE_VARIABLE: str(cache)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
PATH = re.compile(r"`((?:actvar|runtime|export|plugins|benchmarks|cli|tests|docs)/[\w./-]+\.\w+)`")


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "plugins").rglob("*.md"))], ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page: Path):
    """A file that moved leaves its name behind in the pages."""
    text = page.read_text(encoding="utf-8")
    links = [link for link in LINK.findall(text) if not re.match(r"[a-z]+:", link)]
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert [path for path in PATH.findall(text) if not (ROOT / path).exists()] == []


FIVE_LINES = """
import sys

class Refused:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(f"{name} is not to be needed", name=name)

sys.meta_path.insert(0, Refused())
exec(compile(sys.stdin.read(), "README.md", "exec"))
assert len(images) == 2 and images[0].size == images[1].size == (64, 64), images
"""


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_prose_keeps_to_its_width(page: Path):
    """120 characters, as CONTRIBUTING.md has it. Tables, pictures and code cannot be wrapped; a study writes itself."""
    code = {number for number, _ in code_lines(page)}
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        is_prose = number not in code and not line.startswith(("|", "!", "    ")) and page.name != "study.md"
        assert not is_prose or len(line) <= 120, f"{page.name}:{number} has {len(line)} characters"


def test_the_five_lines_of_python_run_without_pytorch(tmp_path: Path):
    """From the text of the README, with an empty cache where PyTorch cannot be imported; then without ONNX, too."""
    [block] = re.findall(r"```python\n(from actvar import Pipeline\n.*?)```", (ROOT / "README.md").read_text(), re.S)
    few = block.replace("range(100)", "range(6)")  # the same, in less time
    for refused in (["torch"], ["torch", "onnx"]):
        done = subprocess.run(
            [sys.executable, "-c", FIVE_LINES, *refused],
            input=few,
            cwd=tmp_path,
            env={**os.environ, CACHE_VARIABLE: str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert ("Exporting" in done.stderr) == (refused == ["torch"])
    assert (tmp_path / "my-bundle" / "manifest.json").is_file()


def test_a_class_reaches_its_picture_in_ten_files():
    """The walk of docs/architecture.md: at most ten files, and each is imported by one that stands before it."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    walk = re.findall(r"^\d+\. `([\w/]+\.py)` — ", text, re.M)
    assert 5 <= len(walk) <= 10
    by_path = {str(module.path): module for module in read_tree().values()}
    first, *others = walk
    assert first == "cli/main.py"
    for place, path in enumerate(others, 1):
        before = {found.name for earlier in walk[:place] for found in by_path[earlier].imports}
        name = by_path[path].name
        assert any(each == name or each.startswith(f"{name}.") for each in before), f"nothing before imports {path}"


def test_the_runtime_is_read_in_an_hour():
    """Whoever wants to know how pictures are drawn reads fewer than 3,000 lines."""
    files = list((ROOT / "runtime").rglob("*.py"))
    assert len(files) > 5 and sum(len(path.read_text().splitlines()) for path in files) < 3000
