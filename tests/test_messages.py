"""What is said to a person, over all of the code: numbers with their nouns, commands that can be pasted, options.

Read from the source's own strings, so that a message which no test meets is held to the same rules.
"""

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from import_tree import ROOT

from actvar.cli.main import NAME, app
from actvar.errors import counted
from actvar.provenance import pasteable

ROOMS = ("runtime", "export", "plugins", "serve", "benchmarks", "cli")
FILES = [*(ROOT / "actvar").rglob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]
COMMAND: Any = typer.main.get_command(app)

NOUNS = (
    "pictures|steps|rounds|classes|tokens|scales|experts|graphs|plans|bundles|files|cells|chunks|contestants|processes|"
    "GPUs|cores|threads|shards|blocks|codes|kinds|features|arrays|tensors|links|values|parts"
)
SPEED = re.compile(r" \w+ (a|per) second")
UNLIKE_ONE = {"known", "which", "n", "choices.side", "some.side", "len(class_ids)", "files"}
"""What stands before a noun and is no number of it, or never 1: a list, a side after ×, what was found to be many."""


@dataclass(frozen=True)
class Text:
    """A string of the code, with names in braces where values are put in."""

    place: str
    parts: tuple[str, ...]
    values: tuple[ast.FormattedValue, ...]
    """After each part but the last."""

    @property
    def whole(self) -> str:
        """With a 1 in each value's place, or the name of an engine."""
        given = ["tensorrt" if ast.unparse(value.value) == "engine" else "1" for value in self.values]
        return "".join(part + value for part, value in zip(self.parts, [*given, ""], strict=True))


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(set(map(Path.resolve, FILES))):
        yield str(path.relative_to(ROOT.resolve())), ast.parse(path.read_text(encoding="utf-8"))


def texts() -> Iterator[Text]:
    """All strings but docstrings and the examples of commands, which have a test of their own."""
    for name, module in modules():
        left_out = {id(node.value) for node in ast.walk(module) if isinstance(node, ast.Expr)}
        for node in ast.walk(module):
            if isinstance(node, ast.Assign) and any("EXAMPLES" in ast.unparse(target) for target in node.targets):
                left_out.add(id(node.value))
            if isinstance(node, ast.JoinedStr) and id(node) not in left_out:
                left_out |= {id(part) for part in node.values}
                yield joined(f"{name}:{node.lineno}", node)
        for node in ast.walk(module):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in left_out:
                yield Text(f"{name}:{node.lineno}", (node.value,), ())


def joined(place: str, node: ast.JoinedStr) -> Text:
    parts, values = [""], list[ast.FormattedValue]()
    for each in node.values:
        if isinstance(each, ast.FormattedValue):
            values.append(each)
            parts.append("")
        else:
            assert isinstance(each, ast.Constant)
            parts[-1] += each.value
    return Text(place, tuple(parts), tuple(values))


TEXTS = list(texts())


def parsed(words: list[str]) -> None:
    """As the program would; of `--help` no more."""
    group, context = COMMAND, COMMAND.make_context(NAME, list(words), resilient_parsing=True)
    while hasattr(group, "get_command") and words and (found := group.get_command(context, words[0])):
        group, words = found, words[1:]
    if words != ["--help"]:
        group.make_context(NAME, list(words), parent=context)


def test_the_code_is_read():
    """A reader that finds nothing would let every rule pass."""
    assert len(TEXTS) > 2000 and any("cannot be written" in text.whole for text in TEXTS)


# ---- numbers


def test_one_is_one():
    assert [counted(n, "picture") for n in (0, 1, 2)] == ["0 pictures", "1 picture", "2 pictures"]
    assert counted(1, "class", "classes") + counted(2, "class", "classes") == "1 class2 classes"
    assert counted(50_000, "picture", form=",") == "50,000 pictures"


def test_every_number_has_its_noun_from_one_place():
    """Or "1 pictures" comes back. A speed is no number of things, and what is in capitals is not 1."""
    found = []
    for text in TEXTS:
        for value, after in zip(text.values, text.parts[1:], strict=True):
            said = ast.unparse(value.value)
            is_number = re.match(rf" (?:more )?(?:{NOUNS})\b", after) and not SPEED.match(after)
            if is_number and not (said in UNLIKE_ONE or re.fullmatch(r"_?[A-Z_]+|len\([A-Z]+\)", said)):
                found.append(f"{text.place}: {{{said}}}{after[:30]}")
    assert not found, "\n".join(found)


# ---- commands


def test_a_command_is_quoted_as_a_shell_wants_it():
    assert pasteable("inspect", Path("my bundles/d'16")) == """actvar-trt inspect 'my bundles/d'"'"'16'"""


IN_WORDS = [
    (text.place, found[1])
    for text in TEXTS
    for found in re.finditer(rf"{NAME} ([a-z][^`\n…]*)", text.whole)
    if "provenance" not in text.place
]


@pytest.mark.parametrize(("place", "command"), IN_WORDS, ids=str)
def test_a_command_in_a_message_can_be_pasted(place: str, command: str):
    """It parses, with all that it needs: in backticks or at the end, where no full stop belongs to it."""
    parsed(shlex.split(command))


def test_no_path_is_put_into_a_command_unquoted():
    """`pasteable` does it."""
    for text in TEXTS:
        for part in text.parts[:-1]:
            begun = part.rpartition(f"{NAME} ")
            assert not (begun[1] and begun[2] and "`" not in begun[2]), text.place


def calls() -> Iterator[tuple[str, list[str]]]:
    """The words of every command that code makes with `pasteable`; what is unknown is a 1, what may be there is not."""
    for name, module in modules():
        for node in ast.walk(module):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pasteable":
                words = [word for word in node.args if not isinstance(word, ast.Starred)]
                yield (
                    f"{name}:{node.lineno}",
                    [
                        str(word.value) if isinstance(word, ast.Constant)
                        else "tensorrt" if ast.unparse(word) == "engine" else "1"
                        for word in words
                    ],
                )  # fmt: skip


@pytest.mark.parametrize(("place", "words"), list(calls()), ids=str)
def test_a_command_that_is_put_together_can_be_pasted(place: str, words: list[str]):
    """The next stage of a training is tried in test_train_command: most of it is of the run."""
    if words[:2] != ["train", "stage2"]:
        parsed(words)


# ---- options

NOT_OURS = {"--no-python", "--nproc-per-node", "--help", "--porcelain", "--always", "--dirty", "--exclude", "--build"}


SCRIPTS = (
    "benchmarks",
    "actvar/provenance",
    "cli/old_spellings",
    "actvar/evaluation/__main__",
    "actvar/evaluation/train_",
)


def options(command: Any) -> Iterator[str]:
    for option in command.params:
        yield from option.opts
    for inner in getattr(command, "commands", {}).values():
        yield from options(inner)


def test_every_option_in_a_message_is_there():
    """An option that lost its name long ago was still recommended. Scripts below benchmarks/ have their own."""
    there = {*options(COMMAND), *NOT_OURS}
    for text in TEXTS:
        if text.place.startswith(SCRIPTS):
            continue
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+(?![\w-]*=)", text.whole):
            assert option in there, f"{text.place}: {option}"
