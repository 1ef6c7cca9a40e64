"""The study: its matrix against the paper, its arithmetic on hand-made cells, its files, its order and its page."""

import json
import math
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import fmean

import pytest
from command_line import Command, in_process

from actvar.bundle.json_form import write_json
from actvar.cli.study import page_files
from actvar.config import MINI
from actvar.errors import BundleError
from actvar.evaluation.paper_savings import PAPER_ROWS, savings
from actvar.study.budget import BUDGETS
from actvar.study.claims import CLAIMS, FRECHET, KL, ORDER_CLAIMS, Claim, Comparison, Verdict, decide
from actvar.study.figures import Figures
from actvar.study.matrix import ALL_CELLS, ALL_ROWS, CELLS, DENSE, FULL, ROWS, SEEDS, row_named
from actvar.study.paper import TABLES
from actvar.study.results import (
    ONE_ORDER,
    RECIPE,
    Result,
    read_result,
    read_results,
    require_settings,
    result_file,
    settings_of,
    write_result,
)
from actvar.study.runner import Plan, run
from actvar.study.spread import ratio, spread
from actvar.study.static_experts import BY_SETS, STATIC_EXPERTS, by_steps, findings, recovered, sets_of_experts

ROOT = Path(__file__).parent.parent
COMMITTED = ROOT / "benchmarks" / "results" / "study-mini"


# ---- the matrix


def test_the_rows_of_the_papers_tables_leave_out_what_the_paper_leaves_out():
    """Scales and rates against the rows that the counts of operations are held to, found by table and saving."""
    of_paper = {(row.table, row.saved): row.activation for row in PAPER_ROWS if row.preset == "d20"}
    checked = 0
    for table in TABLES:
        number = int(table.title.split()[1].rstrip(":"))
        for line in table.lines:
            if line.saved is not None:
                checked += 1
                assert row_named(line.row).activation == of_paper[number, line.saved]
    assert checked == 5 + 3 + 2


def test_every_row_is_a_model_of_the_mini_preset_and_is_shown():
    """Names are files' names; a claim or table that names a row which is not there would fail only in its report."""
    assert len({row.name for row in ALL_ROWS}) == len(ALL_ROWS)
    for row in ALL_ROWS:
        assert row.model().dense() == MINI
    named = {line.row for table in TABLES for line in table.lines} | rows_of(CLAIMS)
    assert named <= {row.name for row in ROWS}
    assert rows_of(ORDER_CLAIMS) <= {row.name for row in ALL_ROWS}


def rows_of(claims: Sequence[Claim]) -> set[str]:
    return {name for claim in claims for each in (*claim.all_of, *claim.none_of) for name in (each.row, each.other)}


def test_all_rows_of_a_seed_come_before_the_next_seed():
    """A study that is stopped early has every row once; the first rows are those of claims, and the model itself."""
    assert [cell.seed for cell in CELLS] == [seed for seed in SEEDS for _ in ROWS]
    assert [cell.row for cell in CELLS[: len(ROWS)]] == list(ROWS)
    assert CELLS[0].row.name == FULL and all(cell.row.trained for cell in CELLS[:10])


# ---- statistics


def noisy(rows: dict[str, float], sigma: float, seeds: int, seed: int = 0) -> dict[str, dict[int, float]]:
    """Row times a factor of the seed, which all rows share, times noise."""
    generator = random.Random(seed)
    shared = [math.exp(generator.gauss(0, 1)) for _ in range(seeds)]
    return {
        row: {k: value * shared[k] * math.exp(generator.gauss(0, sigma)) for k in range(seeds)}
        for row, value in rows.items()
    }


def test_the_spread_is_that_of_a_two_way_table_by_hand():
    """Residuals about row mean + seed mean - grand mean, over (rows - 1)(seeds - 1) degrees of freedom."""
    values = noisy({f"row{i}": 1.0 + i for i in range(6)}, 0.1, 3)
    logs = {(row, k): math.log(value) for row, of_row in values.items() for k, value in of_row.items()}
    grand = fmean(logs.values())
    of_rows = {row: fmean(logs[row, k] for k in range(3)) for row in values}
    of_seeds = [fmean(logs[row, k] for row in values) for k in range(3)]
    squares = sum((logs[row, k] - of_rows[row] - of_seeds[k] + grand) ** 2 for row, k in product(values, range(3)))
    assert spread(values) == pytest.approx(math.sqrt(squares / (5 * 2)))


def test_a_ratios_bounds_hold_the_truth_nineteen_times_in_twenty():
    """Over many made-up studies; what the seeds share must not widen the bounds, nor narrow them."""
    rows = {f"row{i}": 1.0 for i in range(8)} | {"better": 1.0, "worse": 1.3}
    inside = widths = 0.0
    for seed in range(300):
        found = ratio(noisy(rows, 0.05, 3, seed), "worse", "better")
        assert found is not None and found.known
        inside += found.low <= 1.3 <= found.high
        widths += math.log(found.high / found.low) / 2
    assert 0.91 < inside / 300 < 0.98
    assert widths / 300 == pytest.approx(2 * 0.05 * math.sqrt(2 / 3), rel=0.05)


def test_little_is_known_of_a_single_seed():
    """A ratio, but no bounds; and without a common seed not even that."""
    values = noisy({f"row{i}": 1.0 for i in range(12)}, 0.1, 1)
    found = ratio(values, "row1", "row2")
    assert found is not None and not found.known and found.seeds == 1
    assert found.value == pytest.approx(values["row1"][0] / values["row2"][0])
    assert ratio({"a": {0: 1.0}, "b": {1: 1.0}}, "a", "b") is None
    assert spread({}) is None


# ---- claims

BEATS = Claim("b beats a", "here", (Comparison("a", "b"),))


def metric(a: float, b: float) -> dict[str, dict[int, float]]:
    return noisy({"a": a, "b": b, **{f"row{i}": 1.0 for i in range(8)}}, 0.02, 3)


@pytest.mark.parametrize(
    ("frechet", "kl", "verdict", "by"),
    [
        (metric(1.3, 1), metric(1, 1), Verdict.HOLDS, FRECHET),
        (metric(1, 1.3), metric(1, 1), Verdict.FAILS, FRECHET),
        (metric(1, 1), metric(1.3, 1), Verdict.HOLDS, KL),
        (metric(1.3, 1), metric(1, 1.3), Verdict.OPEN, ""),
        (metric(1.3, 1), metric(1.3, 1), Verdict.HOLDS, FRECHET),
        ({}, {}, Verdict.OPEN, FRECHET),
    ],
)
def test_the_first_metric_that_decides_counts(frechet: dict, kl: dict, verdict: Verdict, by: str):
    """Unless the two contradict each other."""
    decided, found = decide(BEATS, {FRECHET: frechet, KL: kl})
    assert (decided.verdict, decided.metric) == (verdict, by)
    assert [each.metric for each in found] == [FRECHET, KL]


@pytest.mark.parametrize(("ratio_of_a", "verdict"), [(1.0, Verdict.HOLDS), (1.1, Verdict.OPEN), (1.4, Verdict.FAILS)])
def test_a_small_cost_is_one_whose_upper_bound_is_small(ratio_of_a: float, verdict: Verdict):
    """Not one that merely was not found to be large."""
    claim = Claim("a costs little", "here", (Comparison("a", "b", 1.1, less=True),), metrics=(FRECHET,))
    values = noisy({"a": ratio_of_a, "b": 1.0, **{f"row{i}": 1.0 for i in range(8)}}, 0.02, 3, seed=3)
    assert decide(claim, {FRECHET: values})[0].verdict is verdict


def test_an_order_fails_where_two_neighbours_are_the_other_way_round():
    """Ends alone would let any order between them pass."""
    in_order = noisy({f"row{i}": 1 + 0.3 * i for i in range(6)}, 0.02, 3)
    claim = Claim(
        "the more the worse",
        "here",
        (Comparison("row5", "row0"),),
        none_of=tuple(Comparison(f"row{i}", f"row{i + 1}") for i in range(5)),
        metrics=(FRECHET,),
    )
    assert decide(claim, {FRECHET: in_order})[0].verdict is Verdict.HOLDS
    swapped = {**in_order, "row2": in_order["row3"], "row3": in_order["row2"]}
    found = decide(claim, {FRECHET: swapped})[0]
    assert found.verdict is Verdict.FAILS
    assert list(found.against) == [2] and found.against[2].value == pytest.approx(1.9 / 1.6, rel=0.1)


# ---- files


def made(name: str = FULL, seed: int = 0, distance: float = 0.4) -> Result:
    """A finished cell with made-up figures."""
    cell = next(cell for cell in ALL_CELLS if cell.row.name == name and cell.seed == seed)
    trained, full = cell.row.trained, cell.row.activation is not None
    share = {"share": 0.8, "chance": 0.75} if full else None
    held_out = {"cross_entropy": 1.0, "kl": 0.2 if trained else 0.0, "kl_by_scale": [0.1], "block_mse": 0.1}
    held_out |= {"tokens": share, "experts": share, "load": [0.5, 1.3] if full else None}
    metrics: dict = {"saved": vars(savings(cell.row.model())), "stage2": held_out}
    metrics["drawn"] = {"class_accuracy": 0.99, "frechet_distance": distance, "wrong_pictures": [[3, 4]]}
    if trained:
        metrics |= {"fresh": held_out, "stage1": held_out}
    seconds = {"stage1": 60.0, "stage2": 120.0, "resumed": 0.0} if trained else {"drawing": 9.0, "resumed": 0.0}
    settings = settings_of(cell, BUDGETS["cpu"], "0" * 64)
    return Result(cell.name, name, seed, settings, metrics, seconds, {"commit": "abc", "machine": "here"})


def test_a_cell_is_read_as_it_was_written(tmp_path: Path):
    """All of it, through JSON."""
    write_result(tmp_path, made())
    assert read_result(result_file(tmp_path, f"{FULL}-seed0")) == made()
    assert read_results(tmp_path, CELLS) == {f"{FULL}-seed0": made()}


def test_a_cell_of_other_settings_is_refused_by_name(tmp_path: Path):
    """What differs, and what to do."""
    cell = CELLS[0]
    wanted = settings_of(cell, replace(BUDGETS["cpu"], batch=99), "0" * 64)
    with pytest.raises(BundleError, match=rf"budget.batch \d+ -> 99.*--rerun {cell.name}"):
        require_settings(made(), wanted, tmp_path)
    require_settings(made(), settings_of(cell, BUDGETS["cpu"], "0" * 64), tmp_path)


def test_an_edited_or_renamed_cell_is_refused(tmp_path: Path):
    """Figures that a person changed are no measurement."""
    write_result(tmp_path, made())
    file = result_file(tmp_path, f"{FULL}-seed0")
    renamed = result_file(tmp_path, f"{FULL}-seed1")
    renamed.write_text(file.read_text())
    with pytest.raises(BundleError, match="cell must be"):
        read_result(renamed)
    file.write_text(file.read_text().replace("0.99", "0.999"))
    with pytest.raises(BundleError, match="was edited"):
        read_result(file)


def changed(data: dict, names: str, value: object) -> dict:
    """A copy in which the place of these names has another value, or none."""
    copy = json.loads(json.dumps(data))
    inside, *above = copy, *names.split("/")
    for name in above[:-1]:
        inside = inside[name]
    inside[above[-1]] = value
    if value is None:
        del inside[above[-1]]
    return copy


@pytest.mark.parametrize(
    ("names", "value", "message"),
    [
        ("metrics/stage2", None, "metrics must be an object with the field 'stage2'"),
        ("metrics/stage2/kl", None, "metrics.stage2 must be an object with the field 'kl'"),
        ("metrics/stage2/kl", [1.0], "metrics.stage2.kl must be a number"),
        ("metrics/stage2/kl", 1e-300, "metrics.stage2.kl must be 0, or at least 1e-12"),
        ("metrics/stage2/load", [1.0], "metrics.stage2.load must be a list of 2 items"),
        ("metrics/fresh/tokens", 0.5, "metrics.fresh.tokens must be an object"),
        ("metrics/drawn/frechet_distance", True, "frechet_distance must be a number"),
        ("metrics/drawn/frechet_distance", 1e300, "frechet_distance must be a number in"),
        ("metrics/drawn/wrong_pictures", 7, "wrong_pictures must be a list"),
        ("metrics/drawn/wrong_pictures", [[1, "2"]], "wrong_pictures must be a whole number"),
        ("metrics/saved", {}, "saved must be an object with the field 'linear'"),
        ("metrics/more", {}, "metrics must be an object of at most 5 fields"),
        ("seconds/resumed", None, "seconds must be an object with the field 'resumed'"),
        ("seconds/stage2", "long", "seconds.stage2 must be a number"),
        ("settings/budget/batch", {}, "settings.budget.batch must be a number"),
        ("settings/budget/stage2_steps", 1.5, "stage2_steps must be a whole number"),
        ("settings/budget/more", 1, "no fields but"),
        ("settings", [], "settings must be an object"),
        ("seed", 1, "cell must be t75-75-e75-seed1"),
        ("row", "var", "cell must be var-seed0"),
        ("row", {}, "row must be one line of text"),
        ("made_by/machine", "\x1b[2J", r"made_by.machine must be one line of text.*found '\\x1b\[2J'"),
    ],
)
def test_a_cell_of_another_form_is_refused_though_its_hash_is_right(tmp_path: Path, names: str, value, message: str):
    """By the file and the field; tables and plots take what is in it for numbers."""
    write_result(tmp_path, made())
    file = result_file(tmp_path, f"{FULL}-seed0")
    data = json.loads(file.read_text())
    del data["sha256"]
    write_json(file, changed(data, names, value))
    with pytest.raises(BundleError, match=rf"{FULL}-seed0\.json: .*{message}"):
        read_results(tmp_path, CELLS)


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_cell_is_a_plain_file(tmp_path: Path, kind: str):
    write_result(tmp_path / "a", made())
    (tmp_path / "b").mkdir()
    file = result_file(tmp_path / "b", f"{FULL}-seed0")
    if kind == "link":
        file.symlink_to(result_file(tmp_path / "a", f"{FULL}-seed0"))
    else:
        os.mkfifo(file)
    with pytest.raises(BundleError, match="must be a plain file"):
        read_results(tmp_path / "b", CELLS)


@pytest.mark.filterwarnings("error")
def test_cells_that_do_not_differ_are_drawn(tmp_path: Path):
    """All at one place of the axis: there is no span to divide by. And figures of 0 have no ratio."""
    cells = [replace(made(row.name), metrics=made(FULL).metrics) for row in ROWS if row.trained]
    none = changed(dict(made(FULL).metrics), "stage1/kl", 0.0)
    none["stage2"]["kl"] = none["drawn"]["frechet_distance"] = 0.0
    for metrics in (made(FULL).metrics, none):
        same = [replace(cell, metrics=metrics) for cell in cells]
        for cell in same:
            write_result(tmp_path, cell)
        written = page_files(tmp_path, tmp_path / "study.md")
        assert all("nan" not in text.lower() for path, text in written.items() if path.suffix == ".svg")


# ---- the run


def fake_run(plan: Plan, seconds_per_cell: float) -> tuple[list[str], list[str]]:
    """Names of the cells that were made, and what was said, by a clock of its own."""
    time, names, said = [0.0], [], []

    def measure(cell):
        time[0] += seconds_per_cell if cell.row.trained else 1.0
        names.append(cell.name)
        return made(cell.row.name, cell.seed)

    count = run(plan, measure, said.append, lambda: time[0])
    assert count == len(names)
    return names, said


def test_what_is_done_is_left_alone():
    """And the rest is made in order."""
    done = frozenset(cell.name for cell in CELLS[:7])
    assert fake_run(Plan(CELLS, done), 300)[0] == [cell.name for cell in CELLS[7:]]


def test_no_cell_is_started_that_would_end_too_late():
    """By the mean of this run's; the first by what is known of earlier ones."""
    names, said = fake_run(Plan(CELLS, frozenset(), limit_seconds=1000), 300)
    assert len(names) == 3
    assert said[-1].startswith(f"Stopped before {CELLS[3].name}, which takes some 5 min: {len(CELLS) - 3} of ")
    assert fake_run(Plan(CELLS, frozenset(), 1000, expected_seconds=1200), 300)[0] == []
    assert len(fake_run(Plan(CELLS, frozenset(), 600, expected_seconds=400), 100)[0]) == 6


# ---- the page


def test_the_docs_are_what_the_committed_cells_give():
    """A figure that a person reads must be one that a cell holds."""
    doc = ROOT / "docs" / "study.md"
    for file, text in page_files(COMMITTED, doc).items():
        assert file.read_text(encoding="utf-8") == text, "run: actvar-trt study --report"


def test_the_page_has_every_table_and_claim_and_what_is_missing(tmp_path: Path):
    """From no cell, some, and all."""
    for count in (0, 1, len(ROWS), len(CELLS)):
        for cell in CELLS[:count]:
            write_result(tmp_path, made(cell.row.name, cell.seed, 0.4 + 0.01 * cell.seed))
        files = page_files(tmp_path, tmp_path / "study.md")
        text = files[tmp_path / "study.md"]
        assert f"**{count} of {len(CELLS)} cells are done.**" in text
        assert all(f"### {table.title}\n" in text for table in TABLES)
        assert all(f"| {claim.text} | {claim.source} |" in text for claim in CLAIMS)
        assert ("Missing: " in text) == (count < len(CELLS))
        assert not {"nan", "None", "inf"} & set(text.replace("|", " ").split())
        plots = [file.name for file in files if file.suffix == ".svg"]
        assert all(f"pictures/{name}" in text for name in plots) and len(plots) == (
            4 if count >= len(ROWS) else 2 * bool(count)
        )
    saved = f"{savings(row_named(FULL).model()).linear * 100:.1f} %"
    measured = f"{saved} | 0.410 ± 0.010 | 0.200 ± 0.000 | 99.00 %"
    assert f"| (75 %, 75 %; 75 %) | 21.2 % | 2.72 | 290.4 | {measured} |" in text


def test_rows_whose_experts_are_loaded_unevenly_are_named(tmp_path: Path):
    """By any of their cells; static experts are meant to be."""
    for name, load in (
        (FULL, [0.3, 3.9]),
        ("early", [0.2, 1.3]),
        ("experts-4", [0.5, 4.1]),
        (STATIC_EXPERTS, [0.0, 1.33]),
    ):
        cell = made(name)
        held_out = {**cell.metrics["stage2"], "load": load}
        write_result(tmp_path, replace(cell, metrics={**cell.metrics, "stage2": held_out}))
    text = page_files(tmp_path, tmp_path / "study.md")[tmp_path / "study.md"]
    assert (
        "(0.20 to 4.10 where experts are chosen for each token; the aim is 0.25 to 4, and early and experts-4" in text
    )


def with_steps(name: str, seed: int, steps: int, kl: float) -> Result:
    """A cell that was given other steps of stage 2."""
    cell = made(name, seed)
    budget = {**cell.settings["budget"], "stage2_steps": steps}
    held_out = {**cell.metrics["stage2"], "kl": kl}
    return replace(cell, settings={**cell.settings, "budget": budget}, metrics={**cell.metrics, "stage2": held_out})


def test_static_and_dynamic_experts_are_compared_at_equal_steps():
    """Seed by seed, and of no other row; a number of steps that only one of them has gives no ratio."""
    cells = [with_steps(STATIC_EXPERTS, seed, 80, kl) for seed, kl in ((0, 0.3), (1, 0.4))]
    cells += [with_steps(FULL, seed, 80, kl) for seed, kl in ((1, 0.2), (2, 0.5))]
    cells += [with_steps(STATIC_EXPERTS, 0, 7, 0.6), with_steps("early", 0, 80, 0.1)]
    short, usual = by_steps(cells)
    assert (short.steps, short.ratio, short.dynamic) == (7, None, None) and short.static and short.static.mean == 0.6
    assert (usual.steps, usual.ratios) == (80, [2.0]) and usual.ratio == pytest.approx(2.0)
    assert usual.static and usual.static.mean == pytest.approx(0.35)


def test_sets_of_experts_are_counted():
    """12 of 16, 3 of 4, and the one that a static block has."""
    assert [sets_of_experts(row_named(name)) for name in (STATIC_EXPERTS, "experts-4", FULL, "t50-75-e25")] == [
        1,
        4,
        1820,
        1820,
    ]


def test_what_stage_2_recovers_is_counted_seed_by_seed():
    """Of 0.8, 0.2 is left, and of 0.4 all."""
    cells = []
    for seed, before, after in ((0, 0.8, 0.2), (1, 0.4, 0.4)):
        cell = with_steps(FULL, seed, 80, after)
        held_out = {**cell.metrics["stage1"], "kl": before}
        cells.append(replace(cell, metrics={**cell.metrics, "stage1": held_out}))
    found = recovered(Figures(cells), FULL)
    assert found and found.mean == pytest.approx((0.75 + 0.0) / 2) and found.seeds == 2
    assert recovered(Figures(cells), STATIC_EXPERTS) is None


@pytest.mark.parametrize(
    ("few", "late", "words"),
    [
        (0.3, 0.4, ("do not bring", "are not ahead", "recovers falls")),
        (0.7, 0.7, ("steps bring", "are ahead", "recovers falls")),
    ],
)
def test_the_three_tests_are_read_as_they_came_out(few: float, late: float, words: tuple[str, ...]):
    """L_f of static experts where few work, and after more steps; dynamic ones have 0.5 in both."""
    of_steps = ((80, 0.4), (240, late))
    steps = by_steps(
        [with_steps(row, 0, n, kl) for n, static in of_steps for row, kl in ((STATIC_EXPERTS, static), (FULL, 0.5))]
    )
    cells = [with_steps(row, s, 80, 0.05 + 0.01 * i + 0.001 * s) for i, row in enumerate(BY_SETS) for s in range(3)]
    cells += [with_steps("static-experts-e25", s, 80, few) for s in range(3)]
    cells += [with_steps("t50-75-e25", s, 80, 0.5) for s in range(3)]
    said = findings(steps, Figures(cells))
    assert all(word in said for word in words), said
    assert findings(steps[:1], Figures(cells)) == "", "one number of steps is no comparison"


def test_cells_of_other_steps_lie_beside_the_study_and_are_on_its_page(tmp_path: Path):
    """With the command that makes them."""
    for name, kl in ((STATIC_EXPERTS, 0.3), (FULL, 0.2)):
        write_result(tmp_path / "study", made(name))
        write_result(tmp_path / "study-stage2-240", with_steps(name, 0, 240, kl))
    text = page_files(tmp_path / "study", tmp_path / "study.md")[tmp_path / "study.md"]
    assert "| 240 | 0.300 (1 seed) | 0.200 (1 seed) | 1.500 | 1.500 |" in text
    assert "--stage2-steps 240 " in text and "--stage2-steps 80 " not in text
    assert "**2 of " in text, "they are no cells of the study"


def test_orders_of_experts_are_compared_by_cells_of_their_own(tmp_path: Path):
    """In their table and claims, and nowhere else: those of the study have other data."""
    better = {"static-experts-data", "static-experts-data-e25"}
    for row in (FULL, "t50-75-e25", STATIC_EXPERTS, "static-experts-e25", "static-experts-index", *better):
        for seed in SEEDS:
            kl = 0.3 if row in better else 0.4 + 0.01 * seed
            write_result(tmp_path / "study-orders", with_steps(row, seed, 80, kl))
    write_result(tmp_path / "study", made(FULL))
    text = page_files(tmp_path / "study", tmp_path / "study.md")[tmp_path / "study.md"]
    assert f"**1 of {len(CELLS)} cells are done.**" in text
    before, section = text.split("### Where the order of static experts comes from")
    section, after = section.split("### VAR-mini beside it")
    assert section.count("0.300 ± 0.000") == 2 and "0.300 ± 0.000" not in before + after
    assert all(f"| {claim.text} | " in section for claim in ORDER_CLAIMS)
    assert section.count("**reproduced** (by the held-out KL to the teacher)") == 4
    assert "static-experts-index / static-experts = 1.00 [" in section
    assert (
        "differs by up to 0.120 between the three orders with one seed, and by up to 0.020 between the seeds" in section
    )


@pytest.mark.parametrize("recipe", [ONE_ORDER, RECIPE])
def test_the_page_says_where_all_seeds_saw_one_order(tmp_path: Path, recipe: int):
    cell = made()
    write_result(tmp_path, replace(cell, settings={**cell.settings, "recipe": recipe}))
    text = page_files(tmp_path, tmp_path / "study.md")[tmp_path / "study.md"]
    assert ("saw the training pictures in the same order" in text) == (recipe == ONE_ORDER)


def test_a_figure_without_a_logarithm_is_left_out_of_comparisons():
    """The teacher's KL to itself is 0."""
    figures = Figures([made(DENSE), made(FULL)])
    assert figures.values(KL) == {DENSE: {0: 0.0}, FULL: {0: 0.2}}
    assert figures.positive(KL) == {FULL: {0: 0.2}}


# ---- the command


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`actvar-trt study` in this process, in an empty folder."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    return in_process(monkeypatch, capsys, "study")


def test_the_matrix_is_listed_with_what_is_done(command: Command):
    """Nothing is made."""
    write_result(Path("benchmarks/results/study-mini"), made(distance=0.4321))
    code, out, _ = command("--list")
    assert code == 0 and f"1 of {len(CELLS)} cells are done" in out and "0.432" in out
    assert all(cell.name in out for cell in CELLS)
    assert command("--list", "--only", "early")[1].count("early-seed") == len(SEEDS)
    assert not Path("runs").exists() and not Path("docs").exists()


def test_the_page_is_written_from_what_is_done(command: Command):
    """With its plots beside it."""
    write_result(Path("cells"), made())
    code, out, _ = command("--report", "--results", "cells", "--doc", "page/study.md")
    assert code == 0 and "1 of" in out
    assert Path("page/study.md").exists() and Path("page/pictures/study-frechet.svg").exists()


def test_a_page_without_matplotlib_says_what_it_lacks(command: Command, monkeypatch: pytest.MonkeyPatch):
    """The tables and claims need none; a plot that is not drawn is not on the page."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_result(Path("cells"), made())
    code, _, err = command("--report", "--results", "cells", "--doc", "page/study.md")
    assert code == 0 and err.splitlines() == [
        "No plot was drawn. The package matplotlib is needed to draw plots, and is not installed. "
        "Install it with: pip install 'actvar-trt[plot]'"
    ]
    assert "## The claims" in Path("page/study.md").read_text() and ".svg" not in Path("page/study.md").read_text()
    assert not Path("page/pictures").exists()


def test_a_row_that_is_not_there_is_named(command: Command):
    """Before anything is loaded."""
    code, _, err = command("--only", "t10-10")
    assert code == 2 and "--only t10-10 is no row and no cell" in err


def test_a_folder_of_another_budget_is_refused_before_any_training(command: Command):
    """The message says which cell, and how to make it anew."""
    write_result(Path("benchmarks/results/study-mini"), made())
    code, _, err = command("--batch-size", 3)
    assert code == 1 and f"--rerun {FULL}-seed0" in err and "budget.batch" in err
    assert not Path("runs").exists()


def test_a_study_of_older_code_stays_whole_and_nothing_is_mixed_into_it(command: Command):
    """Its own cells are of one kind; one that is made anew would be of another."""
    weights = read_result(COMMITTED / f"{FULL}-seed0.json").settings["teacher"]
    for seed in SEEDS:
        cell = made(seed=seed)
        write_result(Path("cells"), replace(cell, settings={**cell.settings, "recipe": ONE_ORDER, "teacher": weights}))
    options = ("--only", FULL, "--results", "cells", "--doc", "page/study.md")
    code, out, err = command(*options)
    assert (code, "All cells are done." in out + err) == (0, True), err
    code, _, err = command(*options, "--rerun", f"{FULL}-seed1")
    assert code == 1 and f"{FULL}-seed0.json was made by other settings (recipe {ONE_ORDER} -> {RECIPE})" in err


def test_results_are_plain_json():
    """Small enough for git."""
    for file in COMMITTED.parent.glob("study-mini*/*.json"):
        assert file.stat().st_size < 20_000 and json.loads(file.read_text())["cell"] == file.stem
