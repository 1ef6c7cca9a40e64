"""`actvar-trt flops`: its figures against the formula, the paper's tables and the docs."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import Command, in_process

from actvar.config import PRESETS, Activation
from actvar.evaluation.flops_report import rates_in_words
from actvar.evaluation.paper_savings import PAPER_ROWS, PaperRow, equation_12, savings
from actvar.flops import decoder_work, scale_work, transformer_work

NOTES = Path(__file__).parent.parent / "docs" / "paper-notes.md"
OUTLIER = (2, (0.5, 0.25))
"""Of the paper's rows the one that lies further off than 1.5 points; docs/paper-notes.md says why."""


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`actvar-trt` in this process, in an empty folder."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    return in_process(monkeypatch, capsys)


def counted(command: Command, *arguments: object) -> dict:
    code, _, err = command("flops", *arguments, "--json", "flops.json")
    assert code == 0, err
    return json.loads(Path("flops.json").read_text())


# ---- a model


def test_rates_and_a_file_for_the_count(command: Command):
    """The rates by their short names, for two scales and for all."""
    code, out, _ = command("flops", "--depth", 20, "--token-rates", "0.75,0.75", "--expert-rates", 0.75)
    assert code == 0
    assert out.startswith("ActVAR-d20: GFLOP of one picture by scale")
    assert out == command("flops")[1] == command("flops", "--preset", "d20", "--token-rates", 0.75)[1]


def test_the_json_has_every_scale_and_part(command: Command):
    """Dense and active, with and without guidance and decoder, in whole operations."""
    found = counted(command, "--preset", "d16", "--token-rates", "0.5,0.25", "--expert-rates", 0.5)
    active = replace(PRESETS["d16"], activation=Activation(16, (9, 10), (0.5, 0.25), (0.5, 0.5)))
    for guidance, rows in (("with_guidance", 2), ("without_guidance", 1)):
        of_guidance = found[guidance]
        assert [scale["scale"] for scale in of_guidance["scales"]] == list(range(1, 11))
        last = of_guidance["scales"][-1]
        assert (last["tokens"], last["kept"], last["cached"], last["active_experts"]) == (256, 64, 255 + 85, 8)
        assert last["active"] == vars(scale_work(active, 9, rows))
        assert last["dense"] == vars(scale_work(PRESETS["d16"], 9, rows))
        for kind, model in (("dense", PRESETS["d16"]), ("active", active)):
            transformer, decoder = transformer_work(model, rows), decoder_work(model)
            assert of_guidance["without decoder"][kind] == transformer
            assert of_guidance["with decoder"][kind] == transformer + decoder
            parts = {part: values[kind] for part, values in of_guidance["parts"].items()}
            assert sum(parts.values()) == transformer + decoder
            for part in ("ffn", "selector", "head"):
                assert parts[part] == sum(scale[kind][part] for scale in of_guidance["scales"])
    assert found["saved"] == vars(savings(active))


def test_choices_are_named_and_counted(command: Command):
    """Static experts need no router, and fixed tokens one selector in all; all else stays for the same rates."""
    usual = counted(command, "--depth", 16)["with_guidance"]["parts"]
    found = counted(command, "--depth", 16, "--token-choice", "fixed", "--expert-choice", "static")
    parts = found["with_guidance"]["parts"]
    assert found["name"] == "ActVAR-d16 (fixed tokens, static experts)"
    assert found["model"]["activation"]["expert_choice"] == "static"
    assert parts["router"]["active"] == 0 < usual["router"]["active"]
    assert parts["selector"]["active"] * 16 == usual["selector"]["active"]
    same = usual.keys() - {"router", "selector"}
    assert {part: parts[part] for part in same} == {part: usual[part] for part in same}
    assert counted(command, "--depth", 16, "--expert-choice", "static")["name"] == "ActVAR-d16 (static experts)"
    assert command("flops", "--expert-choice", "fixed")[0] == 2


def test_the_table_says_what_the_json_says(command: Command):
    """A scale with something left out has a second row, and its share of saved operations."""
    found = counted(command, "--depth", 16, "--active-scales", 8, "--token-rates", 0.25)
    lines = command("flops", "--depth", 16, "--active-scales", 8, "--token-rates", 0.25)[1].splitlines()
    first = next(i for i, line in enumerate(lines) if line.split()[:2] == ["8", "dense"])
    dense, active = (sum(found["with_guidance"]["scales"][7][kind].values()) for kind in ("dense", "active"))
    assert lines[first].split()[-1] == f"{dense / 1e9:.3f}"
    assert lines[first + 1].split()[-2:] == [f"{active / 1e9:.3f}", f"{1 - active / dense:.1%}"]
    assert lines[first + 1].split()[:4] == ["active", "25", "155", "12/16"]


def test_any_depth_is_counted(command: Command):
    """Not only those that have a name."""
    assert counted(command, "--depth", 7)["model"]["depth"] == 7


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--depth", 20, "--preset", "d20"), "--depth and --preset both name a model"),
        (("--depth", 0), "--depth"),
        (("--token-rates", "0.75,x"), "must be numbers with commas between"),
        (("--token-rates", "0.75,0.5,0.25"), "needs one rate for each"),
        (("--token-rates", 1.5), r"must lie in \(0, 1\]"),
        (("--expert-rates", 12), r"must lie in \(0, 1\]"),
        (("--experts", 7), "must divide"),
        (("--active-scales", 11), "must lie in 1..10"),
        (("--paper", "--depth", 20), "--paper counts the paper's own"),
        (("--json", "nowhere/flops.json"), "must be a file in a folder that is there"),
    ],
)
def test_a_wrong_option_is_named(command: Command, arguments: tuple, said: str):
    """And nothing is counted."""
    code, out, err = command("flops", *arguments)
    assert (code, out) == (2, "")
    assert re.search(said, err)


# ---- the paper


def test_every_row_of_the_papers_tables_is_there():
    """Four rows of Table 1, five of Table 2, three of Table 3, two of Table 6, as the paper has them."""
    assert [sum(row.table == table for row in PAPER_ROWS) for table in (1, 2, 3, 6)] == [4, 5, 3, 2]
    assert len(PAPER_ROWS) == 14


@pytest.mark.parametrize("row", PAPER_ROWS, ids=lambda row: f"table {row.table}, {row.preset}, {rates_in_words(row)}")
def test_the_papers_savings_are_met(row: PaperRow):
    """Within 1.5 points, but for one row, which lies 1.6 off for a reason that the docs give."""
    is_outlier = (row.table, row.activation.token_rates) == OUTLIER
    points = abs(savings(row.model).linear - row.saved) * 100
    assert points <= 1.5 if not is_outlier else 1.5 < points < 1.6


def test_a_slightly_larger_whole_explains_all_rows_but_one():
    """What the docs say of the rest: with 35 GFLOP more in the whole, only (50 %, 75 %; 25 %) stays off."""
    for row in PAPER_ROWS:
        whole = transformer_work(row.model.dense())
        points = (savings(row.model).linear * whole / (whole + 35e9) - row.saved) * 100
        if row.activation.token_rates == (0.5, 0.75):
            assert -1.8 < points < -1.6
        else:
            assert abs(points) < 0.25


def test_equation_12_by_hand():
    """d20, 75 % of everything: D 20, H 1280, N 16, L 169 and 256, and one row of guidance."""
    eta = mu = 0.25
    by_hand = sum(
        8 * eta * tokens * 1280**2 * (1 + 2 * mu) - 2 * tokens * 1280 * (1 + (1 - eta) * 16)
        for tokens in (169, 256)
        for _ in range(20)
    )
    model = replace(PRESETS["d20"], activation=Activation())
    assert equation_12(model, rows=1) == pytest.approx(by_hand)
    assert savings(model).printed == pytest.approx(2 * by_hand / transformer_work(PRESETS["d20"]))
    assert equation_12(PRESETS["d20"]) == 0


def test_the_docs_say_what_the_command_says(command: Command):
    """Row by row, all columns; a figure that a person reads must be one that the command gives."""
    lines = re.findall(r"^\| Table (\d) \| (d\d\d), (.*?) \|(.*)\|$", NOTES.read_text(), re.MULTILINE)
    documented = [(int(table), model, rates, *figures.split("|")) for table, model, rates, figures in lines]
    rows = counted(command, "--paper")["rows"]
    shares = ("{:.1f} %".format, "{:.1f} %".format, "{:+.1f}".format, "{:.1f} %".format, "{:.1f} %".format)
    expected = []
    for row in rows:
        saved = row["saved"]
        values = (row["paper"], saved["linear"], saved["linear"] - row["paper"], saved["all"], saved["printed"])
        cells = (form(value * 100) for form, value in zip(shares, values, strict=True))
        expected.append((row["table"], row["model"], row["rates"], *cells))
    assert [tuple(cell.strip() if isinstance(cell, str) else cell for cell in line) for line in documented] == expected


def test_the_papers_table_is_printed(command: Command):
    """A row for each of the paper's, with Eq. 12 beside."""
    code, out, _ = command("flops", "--paper")
    assert code == 0
    assert "Eq. 12 as printed" in out
    assert len(re.findall(r"^ \d +d\d\d ", out, re.MULTILINE)) == len(PAPER_ROWS)
