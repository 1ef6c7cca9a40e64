"""Messages: what came from a file or a path is shown, and never obeyed."""

import pytest

from actvar.errors import BundleError, UsageError, shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("blocks.0.ffn.fc1.weight", "blocks.0.ffn.fc1.weight"),
        ("Brötchen 猫 – ×", "Brötchen 猫 – ×"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\nb\r\tc\x00\x7f", "a\\nb\\r\\tc\\x00\\x7f"),
        ("\x9b31m", "\\x9b31m"),
        ("\ud800", "\\ud800"),
        ("caf\udce9.pth", "caf\\udce9.pth"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("a\u2028b", "a\\u2028b"),
        (3, "3"),
    ],
)
def test_control_characters_and_surrogates_are_escaped(text, expected):
    """An escape sequence in a name would be obeyed by the terminal, and a lone surrogate cannot be printed at all."""
    assert shown(text) == expected
    shown(text).encode()


def test_a_long_text_is_cut():
    assert shown("x" * 500) == "x" * 500
    assert shown("x" * 10**6) == "x" * 499 + "…"
    assert shown("\x1b" * 10**6) == r"\x1b" * 124 + "…"  # no escape is cut in two
    assert shown("ab\ud800cd", limit=7) == "ab…"
    assert shown("ab\ud800", limit=8) == r"ab\ud800"
    assert shown("abcdef", limit=4) == "abc…"


@pytest.mark.parametrize("error", [BundleError, UsageError])
def test_no_error_of_ours_says_what_a_terminal_obeys(error):
    """Whoever wrote the message and forgot; the lines of a log stay lines."""
    said = str(error("plans/\x1b[2J is a link.\nIts log is \u202ex, and ends with:\n\ud800"))
    assert said == "plans/\\x1b[2J is a link.\nIts log is \\u202ex, and ends with:\n\\ud800"
