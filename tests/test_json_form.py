"""JSON from anywhere: what is read as it is, and what is refused before anything looks at it."""

import json
import os
from pathlib import Path

import pytest

from actvar.bundle.json_form import MAX_DEPTH, MAX_JSON_BYTES, FormReader, content_hash, parse_json, write_json
from actvar.errors import BundleError, DataError, shown


def test_what_json_can_say_is_read():
    value = {"a": [1, -1, 2**64 - 1, -(2**63), 0.5, 1e308, True, None, "é \U0001f600 \\ud83d"], "b": {"c": {}}}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=2)):
        assert parse_json(text.encode()) == value


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "Expecting value"),
        (b"{}x", "Extra data"),
        (b"\xff", "can't decode"),
        ("{}".encode("utf-16"), "can't decode"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (nested(MAX_DEPTH + 1), "nested more than"),
        (nested(100_000), "nested more than"),
        (b'{"a":' * 100_000, "nested more than"),
        (b'{"a": 1, "a": 2}', "two fields of the same name"),
        (b"NaN", "NaN is not a number"),
        (b"-Infinity", "not a number"),
        (b"1e999", "1e999 is too large"),
        (b"18446744073709551616", "is too large"),
        (b"-9223372036854775809", "is too large"),
        (b"9" * 5000, "is too large"),
        (b"0." + b"9" * 5000, "is too large"),
        (b'"\\ud800"', "half of a surrogate pair"),
        (b'["\\udc00\\ud800"]', "half of a surrogate pair"),
        (b'{"\\uD800": 1}', "half of a surrogate pair"),
        (b'"\xed\xa0\x80"', "can't decode"),
    ],
)
def test_what_could_hurt_is_refused(data: bytes, reason: str):
    """A lone surrogate dies when it is printed, a deep list when it is compared, an endless number when it is used."""
    with pytest.raises(ValueError, match=reason):
        parse_json(data)


def test_the_depth_that_is_allowed_is_read():
    assert parse_json(nested(MAX_DEPTH))


def test_a_refusal_is_of_the_readers_kind_and_says_what_to_do(tmp_path: Path):
    path = tmp_path / "file.json"
    reader = FormReader(path, "Fetch it again.", DataError, "is damaged", max_bytes=1000)
    for content, message in (
        (b"{", r"file\.json is damaged: it is not valid JSON \(.*\)\. Fetch it again\."),
        (b" " * 1001, r"is damaged: it is larger than 1000 bytes"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            reader.load()
    path.write_bytes(b'{"a": "\\u001b[2J"}')
    with pytest.raises(DataError, match=r"is damaged: a must be true or false, found '\\x1b\[2J'\. Fetch"):
        reader.truth("a", reader.load()["a"])
    assert FormReader(path, "").load() == {"a": "\x1b[2J"}


def test_a_name_from_a_file_reaches_no_terminal_raw(tmp_path: Path):
    found = FormReader(tmp_path / "x", "").refuse("graphs.\x1b]0;mine\x07", "there", None)
    assert str(found).isprintable()


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "missing", "loop"])
def test_only_a_plain_file_is_read(tmp_path: Path, kind: str):
    """A pipe would be waited for; a link leads wherever it likes."""
    path, other = tmp_path / "a.json", tmp_path / "b.json"
    other.write_text("{}")
    make = {"link": lambda: path.symlink_to(other), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir,
            "missing": lambda: None, "loop": lambda: path.symlink_to(path)}  # fmt: skip
    make[kind]()
    with pytest.raises(BundleError, match="is missing" if kind == "missing" else "must be a plain file"):
        FormReader(path, "").load()


def test_what_is_written_is_read_and_its_hash_holds(tmp_path: Path):
    path = tmp_path / "a.json"
    write_json(path, {"name": "é", "numbers": list(range(100)), "rate": 0.1})
    reader = FormReader(path, "")
    data = reader.load()
    reader.check_hash(data)
    assert data.pop("sha256") == content_hash(data)
    assert path.stat().st_size < MAX_JSON_BYTES


def test_text_is_shown_without_control_characters_and_short():
    assert shown("brown-crescent é 猫") == "brown-crescent é 猫"
    assert shown("a\x1b[2J\n\ud800\u202e") == r"a\x1b[2J\n\ud800\u202e"
    assert shown(shown("\x07")) == shown("\x07")
    assert len(shown("x" * 1000, 50)) == 50 and shown("x" * 1000, 50).endswith("…")
