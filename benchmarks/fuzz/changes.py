"""Seeded changes to files, as bad disks, wrong copies and attackers make them. Plain Python."""

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_DEEP = 100_000
_RAW = {
    "too large": "1e999",
    "no number": "NaN",
    "deep list": "[" * _DEEP + "]" * _DEEP,
    "deep object": '{"a":' * _DEEP + "1" + "}" * _DEEP,
    "twice": '{"a": 1, "a": 2}',
    "many digits": "9" * 5000,
}
"""Texts in JSON that no Python value is written as; a value stands for one by its name between two signs."""
_SIGN = "@@"
_NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 255, 65_536, 2**31, 2**63, 2**64, 10**12, 10**30, -(2**70), 0.5, -0.5, 1e308,
    "", "0", "x" * 5000, "\ud800", "\x1b]0;owned\x07", "../../outside", "/etc/passwd", "a/b", "\0", "é\u202e", [], {},
    [None], [[]], [1, [2]], ["a"] * 1000, {"": 0}, {"a": {"a": {}}}, *(f"{_SIGN}{name}{_SIGN}" for name in _RAW),
)  # fmt: skip


def changed_bytes(data: bytes, rng: random.Random) -> bytes:
    """Content with a few places changed, cut, doubled, or grown."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        place = rng.randrange(len(content) + 1)
        end = min(len(content), place + rng.choice((1, 2, 4, 8, 64)))
        kind = rng.randrange(7)
        if kind == 0 and place < len(content):
            content[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[place:end] = rng.randbytes(end - place)
        elif kind == 2:
            del content[place:end]
        elif kind == 3:
            content[place:place] = content[place:end]
        elif kind == 4:
            content[place:end] = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * (end - place)
        elif kind == 5:
            del content[place:]
        else:
            content += rng.randbytes(rng.choice((1, 100, 5000)))
    return bytes(content)


def change_place(path: Path, rng: random.Random) -> None:
    """Put something else where a file is: a link out of its folder, a pipe, a folder, a sparse file, nothing."""
    kind = rng.choice(("link", "link", "pipe", "folder", "loop", "gone", "empty", "sparse", "device"))
    outside = path.parent.parent / "outside" / path.name
    if kind == "link":
        outside.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, outside)
    size = path.stat().st_size
    if kind not in ("empty", "sparse"):
        path.unlink()
    if kind == "link":
        path.symlink_to(rng.choice((outside, Path("..") / outside.parent.name / outside.name)))
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "sparse":
        os.truncate(path, size + rng.choice((1, 1 << 20, 1 << 33, 1 << 42)))


def change_file(path: Path, rng: random.Random) -> None:
    """Change a file's bytes, or rarely what it is."""
    if rng.random() < 0.1:
        change_place(path, rng)
    else:
        path.write_bytes(changed_bytes(path.read_bytes(), rng))


def change_json(path: Path, rng: random.Random) -> None:
    """Change one or two places of a JSON file's value."""
    value = json.loads(path.read_bytes())
    for _ in range(rng.choice((1, 1, 1, 2))):
        value = _changed_value(value, rng)
    write_json_text(path, value)


def write_json_text(path: Path, value: Any) -> None:
    """Write a changed value."""
    text = json.dumps(value)
    for name, raw in _RAW.items():
        text = text.replace(f'"{_SIGN}{name}{_SIGN}"', raw)
    path.write_bytes(text.encode())


def _changed_value(value: Any, rng: random.Random) -> Any:
    places = list(_places(value, ()))
    *above, last = rng.choice(places)
    if last is None:
        return rng.choice(_NASTY)
    inside = value
    for step in above:
        inside = inside[step]
    kind = rng.randrange(8)
    if kind == 0:
        del inside[last]
    elif kind == 1 and isinstance(inside, dict):
        inside[rng.choice(("", "x", "sha256", "\ud800", f"{last}x"))] = inside.pop(last)
    elif kind == 1:
        inside.insert(last, inside[last])
    elif kind == 2 and type(inside[last]) in (int, float):
        inside[last] += rng.choice((1, -1, 0.5, 1000, -1000, 10**10))
    elif kind == 3 and isinstance(inside[last], list):
        inside[last] = inside[last] * rng.choice((0, 2, 100))
    elif kind == 4:
        inside[last] = [inside[last]]
    elif kind == 5:
        inside[last] = str(inside[last])
    else:
        inside[last] = rng.choice(_NASTY)
    return value


def _places(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Paths to all values; that of the whole ends in None."""
    yield path or (None,)
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, item in pairs:
        yield from _places(item, (*path, step))
