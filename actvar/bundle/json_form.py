"""JSON that may come from anywhere: bounded, hashed, and held to a form before anything in it is used.

Knows JSON and what a refusal says; which fields there are is the caller's. Everything that the project keeps as JSON is
read here. Plain Python.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actvar.errors import ActVARError, BundleError, DamagedError, shown
from actvar.files import FileEntry, opened, written_whole

HASH_FIELD = "sha256"
SHA256 = re.compile(r"[0-9a-f]{64}")
MAX_JSON_BYTES = 8 << 20
MAX_FILE_BYTES = 1 << 40  # that an entry may say
MAX_DEPTH = 32
"""Of objects and lists in each other; nothing that is written here has half of it."""
MAX_WHOLE = (1 << 64) - 1
"""The largest whole number, a seed; the least is that of 64 bits."""

_LEAST_WHOLE = -(1 << 63)
_DIGITS = 400  # of a number that is not whole, as it is written
_LONE = re.compile(r"\\u[dD][89a-fA-F]")  # how half of a pair is written
_LINE = 100  # an object or list that is shorter stands on one line


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object and, as its last field, the hash of its others; the file is there whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    text = "".join(_lines({**content, HASH_FIELD: content_hash(content)}, 0)) + "\n"
    with written_whole(path) as file:
        file.write(text.encode())


def content_hash(content: dict[str, Any]) -> str:
    """SHA-256 of an object's fields. It finds accidents and thoughtless edits, not those who can compute it."""
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def parse_json(data: bytes) -> Any:
    """JSON in UTF-8 as a value that can be walked, printed and written again: shallow, its numbers finite and bounded.

    Raises:
        ValueError: it is no JSON, or an object has two fields of one name, a number is none or too large, a text holds
            half of a surrogate pair, or it is nested too deeply.
    """
    text = data.decode("utf-8")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_int=_whole,
            parse_float=_finite,
        )
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    _require_plain(value, may_be_lone=_LONE.search(text) is not None)
    return value


@dataclass(frozen=True)
class FormReader:
    """Holds a JSON file to its form; every refusal names the file and the field.

    Args:
        path: the file.
        advice: a sentence that ends every refusal: what to do.
        kind: of the errors.
        wrong: what is said of a file that is refused, such as "is damaged", before the reason.
        max_bytes: of the file.
    """

    path: Path
    advice: str
    kind: type[ActVARError] = DamagedError
    wrong: str = ""
    max_bytes: int = MAX_JSON_BYTES

    def load(self) -> Any:
        """The file's content.

        Raises:
            ActVARError: it is missing, no plain file, too large, or not JSON.
        """
        try:
            with opened(self.path, self.advice) as file:
                data = file.read(min(os.fstat(file.fileno()).st_size, self.max_bytes) + 1)
        except BundleError as error:
            raise self.kind(str(error)) from None
        except OSError as error:
            raise self.kind(f"{self.path} cannot be read: {error.strerror}. {self.advice}") from None
        if len(data) > self.max_bytes:
            raise self.refusal(f"is larger than {self.max_bytes} bytes, which nothing here writes")
        try:
            return parse_json(data)
        except ValueError as error:
            raise self.refusal(f"is not valid JSON ({shown(str(error))})") from None

    def check_hash(self, data: dict[str, Any]) -> None:
        """Hold an object to the hash that it brings along."""
        if data.get(HASH_FIELD) != content_hash({name: value for name, value in data.items() if name != HASH_FIELD}):
            raise self.refusal("was edited: its fields do not have the SHA-256 it says")

    def refuse(self, where: str, expected: str, found: Any) -> ActVARError:
        """The error that says what does not fit."""
        reason = f"{shown(where)} must be {expected}, found {short(repr(found), 80)}"
        return self.kind(f"{self.path}{f' {self.wrong}' if self.wrong else ''}: {reason}. {self.advice}")

    def refusal(self, reason: str) -> ActVARError:
        """The error for the file as a whole; the reason goes on after "it" or the file's name."""
        said = f"{self.wrong}: it {reason}" if self.wrong else reason
        return self.kind(f"{self.path} {said}. {self.advice}")

    def of_format(self, data: Any, name: str, version: int) -> dict[str, Any]:
        """An object that says it is of this format and version."""
        if not isinstance(data, dict) or data.get("format") != name:
            raise self.refuse("format", repr(name), data.get("format") if isinstance(data, dict) else data)
        if data.get("version") != version:
            raise self.refuse("version", f"{version}, the one that this program reads", data.get("version"))
        return data

    def object(self, where: str, data: Any, limit: int) -> dict[str, Any]:
        """An object of at most so many fields, whatever their names."""
        if not isinstance(data, dict) or len(data) > limit:
            raise self.refuse(where, f"an object of at most {limit} fields", data)
        return data

    def fields(self, where: str, data: Any, names: str) -> list[Any]:
        """The values of an object that has these fields and no others, in their order."""
        if not isinstance(data, dict):
            raise self.refuse(where, "an object", data)
        wanted = names.split()
        if missing := [name for name in wanted if name not in data]:
            raise self.refuse(where, f"an object with the field {missing[0]!r}", sorted(data))
        if unknown := [name for name in data if name not in wanted]:
            raise self.refuse(where, f"an object with no fields but {', '.join(wanted)}", unknown[0])
        return [data[name] for name in wanted]

    def integer(self, where: str, value: Any, low: int, high: int) -> int:
        """A whole number in low..high."""
        if type(value) is not int or not low <= value <= high:
            raise self.refuse(where, f"a whole number in {low}..{high}", value)
        return value

    def truth(self, where: str, value: Any) -> bool:
        """True or false."""
        if type(value) is not bool:
            raise self.refuse(where, "true or false", value)
        return value

    def items(self, where: str, value: Any, low: int, high: int) -> list[Any]:
        """A list of so many items."""
        if not isinstance(value, list) or not low <= len(value) <= high:
            many = str(low) if low == high else f"{low} to {high}"
            raise self.refuse(where, f"a list of {many} items", value)
        return value

    def number(self, where: str, value: Any, low: float, high: float) -> float:
        """A number in low..high."""
        if type(value) not in (int, float) or not low <= value <= high:
            raise self.refuse(where, f"a number in {low:g}..{high:g}", value)
        return float(value)

    def text(self, where: str, value: Any, limit: int = 1000) -> str:
        """One line of text."""
        if not isinstance(value, str) or len(value) > limit or not value.isprintable():
            raise self.refuse(where, f"one line of text of at most {limit} characters", value)
        return value

    def texts(self, where: str, value: Any) -> dict[str, str]:
        """An object of texts by name."""
        items = self.object(where, value, 64).items()
        return {self.text(where, name): self.text(f"{where}.{name}", text) for name, text in items}

    def one_of(self, where: str, value: Any, choices: tuple[str, ...]) -> str:
        """One of these texts."""
        if value not in choices or not isinstance(value, str):
            raise self.refuse(where, " or ".join(choices), value)
        return value

    def matching(self, where: str, value: Any, pattern: re.Pattern[str], meaning: str) -> str:
        """A text of this pattern, which a refusal calls by its meaning."""
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise self.refuse(where, meaning, value)
        return value

    def entry(self, where: str, values: list[Any], name: str) -> FileEntry:
        """A file, which must bear this name: so none that leads out of the folder."""
        file, size, sha256 = values
        return FileEntry(
            self.one_of(f"{where}.file", file, (name,)),
            self.integer(f"{where}.bytes", size, 0, MAX_FILE_BYTES),
            self.matching(f"{where}.sha256", sha256, SHA256, "64 hexadecimal digits"),
        )


def short(text: str, limit: int) -> str:
    """A text cut to a length, with a sign where it was cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _lines(value: Any, depth: int) -> Iterator[str]:
    line = json.dumps(value, allow_nan=False)
    if not isinstance(value, (dict, list)) or (len(line) <= _LINE and depth):
        yield line
        return
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    items = (
        [(f"{json.dumps(name)}: ", item) for name, item in value.items()]
        if isinstance(value, dict)
        else [("", item) for item in value]
    )
    yield opening
    for place, (label, item) in enumerate(items):
        yield f"{',' if place else ''}\n{' ' * (depth + 1)}{label}"
        yield from _lines(item, depth + 1)
    yield f"\n{' ' * depth}{closing}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's fields; a name that comes twice would mean whatever the reader makes of it."""
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("an object has two fields of the same name")
    return result


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _whole(text: str) -> int:
    number = int(text) if len(text) <= len(str(_LEAST_WHOLE)) else MAX_WHOLE + 1
    if not _LEAST_WHOLE <= number <= MAX_WHOLE:
        raise ValueError(f"the number {short(text, 30)} is too large")
    return number


def _finite(text: str) -> float:
    number = float(text) if len(text) <= _DIGITS else math.inf
    if not math.isfinite(number):
        raise ValueError(f"the number {short(text, 30)} is too large")
    return number


def _require_plain(value: Any, may_be_lone: bool) -> None:
    """Look at every object and list, and at every text if there may be one that cannot be written as UTF-8."""
    waiting = [(value, 1)]
    while waiting:
        item, depth = waiting.pop()
        if isinstance(item, str):
            _require_whole_text(item)
            continue
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        if isinstance(item, dict) and may_be_lone:
            for name in item:
                _require_whole_text(name)
        inner = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        kinds = (dict, list, str) if may_be_lone else (dict, list)
        waiting += [(each, depth + 1) for each in inner if isinstance(each, kinds)]


def _require_whole_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a text holds half of a surrogate pair") from None
