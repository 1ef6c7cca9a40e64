"""`docs/study.md`: the tables, the claims and how they were found, written from finished cells. Plain Python."""

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import asdict
from statistics import median

from actvar.config import DYNAMIC
from actvar.study.budget import Budget
from actvar.study.claims import CLAIMS, FRECHET, KL, ORDER_CLAIMS, Claim, Comparison, Finding, Verdict, decide
from actvar.study.figures import Figures, Spread
from actvar.study.matrix import CELLS, DENSE, FULL, ROWS, SEEDS, TRAINED_ON, row_named
from actvar.study.paper import TABLES, PaperTable
from actvar.study.results import ONE_ORDER, Result
from actvar.study.spread import ERRORS, MIN_FREEDOM, MIN_SEEDS, Ratio, Values, ratio
from actvar.study.static_experts import (
    BY_SETS,
    FEW,
    MANY,
    STATIC_EXPERTS,
    by_steps,
    findings,
    recovered,
    sets_of_experts,
)

NONE = "–"
_LEAST_LOAD, _MOST_LOAD = 0.25, 4.0  # of an expert, as multiples of its fair share: the aim


def page(
    results: Sequence[Result],
    command: str,
    plots: Sequence[str],
    others: Sequence[Result] = (),
    orders: Sequence[Result] = (),
) -> str:
    """The whole page.

    Args:
        results: finished cells of one study.
        command: what makes the missing ones.
        plots: names of the plots in pictures/ beside the page.
        others: cells of the same study but for the steps of stage 2.
        orders: cells of the comparison of static experts' orders.
    """
    figures = Figures(results)
    parts = [_head(results, command), "## The claims", _claims(CLAIMS, figures), _RULE, "## The paper's tables", _key()]
    parts += [_table(table, figures) for table in TABLES]
    parts += [f"![{name}](pictures/{name})" for name in plots]
    parts += [_labels(figures), _orders(orders, command), _against(figures), _stage1(figures), _stage2(figures)]
    parts += [_static(results, others, figures, command), _making(results, command)]
    return "\n\n".join(parts) + "\n"


def _head(results: Sequence[Result], command: str) -> str:
    lines = [
        "# The paper's tables at mini scale",
        "Written by `actvar-trt study --report` from the cells in `benchmarks/results/`; a test holds it to them. "
        "Every ActVAR here is made of [VAR-mini](mini-model.md) by both stages of the paper's distillation with the "
        "same small budget, on Glyphs-100. It shows whether the paper's claims can be seen at this scale, and no more.",
        f"**{len(results)} of {len(CELLS)} cells are done.** " + _missing(results, command),
    ]
    return "\n\n".join(lines)


def _missing(results: Sequence[Result], command: str) -> str:
    done = {result.cell for result in results}
    missing = [cell.name for cell in CELLS if cell.name not in done]
    if not missing:
        return f"Made by `{command}`."
    shown = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" if len(missing) > 6 else "")
    return f"Missing: {shown}. `{command}` goes on where it was stopped."


# ---- claims


def _claims(claims: Sequence[Claim], figures: Figures) -> str:
    metrics = {name: figures.positive(name) for name in (FRECHET, KL)}
    rows = []
    for claim in claims:
        decided, found = decide(claim, metrics)
        verdict = f"**{decided.verdict.value}**"
        if decided.verdict is not Verdict.OPEN and len(claim.metrics) > 1:
            verdict += f" (by the {decided.metric})"
        rows.append((claim.text, claim.source, "<br>".join(_evidence(claim, each) for each in found), verdict))
    return _markdown(("claim", "where", "found", "verdict"), rows)


_RULE = (
    "A ratio is the geometric mean over the seeds that both rows have; in brackets its bounds, "
    f"{ERRORS:g} standard errors away. Rows of one seed share data and random numbers, so the logarithm of a metric is "
    "taken as row + seed + rest, and the spread of the rest is pooled over all rows. A claim is *reproduced* where the "
    "whole interval lies on its side of the bound, *not reproduced* where it lies on the other, and *undecided* in "
    f"between, with fewer than {MIN_SEEDS} seeds, or with fewer than {MIN_FREEDOM} degrees of freedom. Where two "
    "metrics are shown, the first that decides counts; if they contradict each other, none does. An order of rows "
    "fails where two neighbours are the other way round by the same rule."
)


def _evidence(claim: Claim, finding: Finding) -> str:
    pairs = zip(claim.all_of, finding.ratios, strict=True)
    said = [_ratio(each, found) for each, found in pairs]
    said += [_ratio(claim.none_of[place], found, "the other way round") for place, found in finding.against.items()]
    return f"{finding.metric}: " + ", ".join(said)


def _ratio(comparison: Comparison, found: Ratio | None, wanted: str = "") -> str:
    name = f"{comparison.row} / {comparison.other}"
    if found is None:
        return f"{name} not yet"
    wanted = wanted or f"{'<' if comparison.less else '>'} {comparison.bound:g} wanted"
    return f"{name} = {_bounds(found)}, {wanted}"


# ---- the paper's tables


def _key() -> str:
    return (
        "*FID* and *IS* are the paper's, of VAR-d20 on ImageNet. *Fréchet* is the distance of drawn pictures to real "
        "ones in the features of the Glyphs-100 classifier, *L_f* the held-out KL to the teacher; lower is better in "
        "both. *class* is the share of pictures that the classifier gives the class they were drawn for. ± is the "
        "standard deviation over seeds. *Saved* is the share of the transformer's operations as the paper counts them "
        "([paper-notes](paper-notes.md), Sec. 4); at mini scale the head and the embeddings weigh more than at d20."
    )


def _table(table: PaperTable, figures: Figures) -> str:
    rows = []
    for line in table.lines:
        paper = (_share(line.saved), _number(line.fid, ".2f"), _number(line.inception, ".1f"))
        rows.append((line.words, *paper, *_measured(figures, line.row)))
    heading = ("row", "saved, paper", "FID, paper", "IS, paper", *_MEASURED)
    return f"### {table.title}\n\n{_markdown(heading, rows)}"


_MEASURED = ("saved", "Fréchet", "L_f", "class")


def _measured(figures: Figures, row: str) -> tuple[str, ...]:
    saved = figures.spread(row, "saved")
    accuracy = figures.spread(row, "accuracy")
    return (
        _share(saved.mean if saved else None),
        _spread(figures, row, FRECHET),
        _spread(figures, row, KL),
        f"{accuracy.mean:.2%}".replace("%", " %") if accuracy else NONE,
    )


def _labels(figures: Figures) -> str:
    text = (
        "### Other labels\n\n"
        "A question of our own. The paper ranks experts by how near each one's output alone comes to the whole FFN's "
        "(before Eq. 5), and tokens by how much the block changes them (before Eq. 10). The third row leaves experts "
        "out one after the other, each time the one that the sum of the others misses least. The fourth ranks tokens "
        "by how much their final logits change without what the block did to them.\n\n"
        "All rows but the second are taught by a sharp label with α = 1 in place of the label as printed (Eqs. "
        "5-6, 10-11) with α = 0.05 (Eq. 19). The printed one takes the softmax twice, so it is nearly even. Where 192 "
        "of 256 tokens are kept, a kept one has 1.005 times the share of another, in the geometric mean; where 12 of "
        "16 experts are, 1.09 times."
    )
    return f"{text}\n\n{_rows(figures, (FULL, 'label-printed', 'label-together', 'label-logits'))}"


def _rows(figures: Figures, names: Iterable[str]) -> str:
    words = {row.name: row.words for row in ROWS}
    return _markdown(("row", *_MEASURED), [(words[name], *_measured(figures, name)) for name in names])


_STATIC_ORDERS = (STATIC_EXPERTS, "static-experts-index", "static-experts-data")
_ORDERS = (FULL, *_STATIC_ORDERS, FEW.other, FEW.row, "static-experts-data-e25")
"""Dynamic experts first, then static ones: of 12 of 16, and of 4."""


def _orders(orders: Sequence[Result], command: str) -> str:
    figures = Figures(orders)
    only = "".join(f" --only {name}" for name in _ORDERS)
    parts = [
        "### Where the order of static experts comes from",
        "A question of our own. A block's order is learned by stage 1, by the same labels as a router; or it is fixed "
        "before, and only the selectors learn in stage 1. Fixed is the order of the experts' numbers, which tells "
        "nothing of them, or one from data: experts are dropped one after the other, each time the one that the FFN's "
        "output misses least over the tokens of 64 training pictures, and the last to go is the first of the order. "
        "The first four rows are of 12 experts of 16, the others of 4. *L_f before* is after stage 1.",
        _markdown(
            ("row", "L_f before", *_MEASURED),
            [
                (row_named(name).words, _spread(figures, name, "kl before"), *_measured(figures, name))
                for name in _ORDERS
            ],
        ),
        _claims(ORDER_CLAIMS, figures),
        *_order_and_seed(figures.values(KL)),
        "All of these cells were made for this comparison on one machine; none is a row of the tables above."
        + (f" The machine: {_made_by(orders, 'machine')}; commit {_made_by(orders, 'commit')}." if orders else ""),
        f"    {command}{only} \\\n        --results benchmarks/results/study-mini-orders --doc FILE",
    ]
    return "\n\n".join(parts)


def _order_and_seed(values: Values) -> Iterator[str]:
    """How much L_f differs by each, in a sentence; none before two seeds are there."""
    seeds = sorted(set.intersection(*(set(values.get(row, {})) for row in _STATIC_ORDERS)))
    if len(seeds) < MIN_SEEDS:
        return
    by_row = [[values[row][seed] for seed in seeds] for row in _STATIC_ORDERS]
    of_order = max(max(of_seed) - min(of_seed) for of_seed in zip(*by_row, strict=True))
    of_seed = max(max(of_row) - min(of_row) for of_row in by_row)
    yield (
        f"Where 12 of 16 work, L_f differs by up to {of_order:.3f} between the three orders with one seed, and by up "
        f"to {of_seed:.3f} between the seeds with one order. Seeds differ in the order of the pictures, and in the "
        "first values of selectors and routers."
    )


def _made_by(results: Sequence[Result], name: str) -> str:
    """All machines, or all commits."""
    return "; ".join(sorted({result.made_by[name] for result in results}))


def _against(figures: Figures) -> str:
    text = (
        "### VAR-mini beside it\n\n"
        "VAR-mini has not been trained to its end, so any further training improves it. Its second row tells what "
        "leaving out costs: the same steps of stage 2 with nothing left out."
    )
    return f"{text}\n\n{_rows(figures, (DENSE, TRAINED_ON, FULL))}"


# ---- the stages


def _stage1(figures: Figures) -> str:
    names = [f"{what} {when}" for what in ("tokens", "experts") for when in ("by chance", "random", "learned")]
    rows = []
    for row in ROWS:
        shares = [figures.spread(row.name, name) for name in names]
        if any(shares):
            loads = [figures.spread(row.name, name) for name in ("least load", "most load")]
            cells = [_share(share.mean if share else None) for share in shares]
            rows.append((row.name, *cells, *(_number(each.mean if each else None, ".2f") for each in loads)))
    routed = {row.name for row in ROWS if row.activation and row.activation.expert_choice == DYNAMIC}
    least, most = _loads(figures, routed)
    outside = [row.name for row in ROWS if row.name in routed and _is_uneven(*_loads(figures, {row.name}))]
    text = (
        "## Stage 1: what the choices learn\n\n"
        "The share of the teacher's top-k, by the labels that the row is taught by, that is chosen on held-out "
        "pictures: by chance, by a selector and router as they start, and after stage 1. The load is of the experts "
        "after stage 2: the tokens that the least and the most used expert of any block were given, as multiples of a "
        "fair share"
    )
    if rows:
        aim = f"the aim is {_LEAST_LOAD:g} to {_MOST_LOAD:g}"
        text += f" ({least:.2f} to {most:.2f} where experts are chosen for each token; {aim}"
        text += f", and {' and '.join(outside)} miss it)" if outside else ")"
    text += "."
    return f"{text}\n\n{_markdown(('row', *names, 'least load', 'most load'), rows)}"


def _loads(figures: Figures, rows: Container[str]) -> tuple[float, float]:
    """The least and the most of all cells of these rows."""
    return figures.extreme("least load", min, rows), figures.extreme("most load", max, rows)


def _is_uneven(least: float, most: float) -> bool:
    return least < _LEAST_LOAD or most > _MOST_LOAD


def _stage2(figures: Figures) -> str:
    rows = []
    for row in ROWS:
        if figures.spread(row.name, "mse") and row.trained:
            names = ("kl before", KL, "mse before", "mse", "cross-entropy")
            rows.append((row.name, *(_spread(figures, row.name, name) for name in names)))
    text = (
        "## Stage 2: how near it comes to the teacher\n\n"
        "On held-out pictures, with their true tokens as inputs: L_f (Eq. 21) and the mean of the blocks' L_b (Eq. 20) "
        "after stage 1 and after stage 2, and the cross-entropy of the true tokens."
    )
    heading = ("row", "L_f before", "L_f after", "L_b before", "L_b after", "cross-entropy")
    return f"{text}\n\n{_markdown(heading, rows)}"


def _static(results: Sequence[Result], others: Sequence[Result], figures: Figures, command: str) -> str:
    found = by_steps([*results, *others])
    rows = []
    for each in found:
        ratios = ", ".join(f"{value:.3f}" for value in each.ratios) or NONE
        spreads = (spread.text() if spread else NONE for spread in (each.static, each.dynamic))
        rows.append((str(each.steps), *spreads, _number(each.ratio, ".3f"), ratios))
    commands = [
        f"    {command} --stage2-steps {each.steps} --only {STATIC_EXPERTS} --only {FULL} \\\n"
        f"        --results benchmarks/results/study-mini-stage2-{each.steps} --doc FILE"
        for each in found
        if each.steps not in {result.settings["budget"]["stage2_steps"] for result in results}
    ]
    few = [
        (experts, *(_bounds(ratio(figures.positive(name), pair.row, pair.other)) for name in ("kl before", KL)))
        for experts, pair in (("12 of 16", MANY), ("4 of 16", FEW))
    ]
    by_sets = [
        (
            name,
            f"{sets_of_experts(row_named(name)):,}",
            *(_spread(figures, name, each) for each in ("kl before", KL)),
            _percent(recovered(figures, name)),
        )
        for name in (*BY_SETS, FEW.row, FEW.other)
    ]
    parts = [
        "### Why static experts are ahead",
        "After stage 1 dynamic experts are ahead, and after stage 2 static ones. Three explanations were tested.",
        "*A short stage 2.* A fixed expert is given every token, and one of 12 of 16 three quarters of them. If that "
        "is why, the ratio of their L_f rises with the steps, towards 1 and beyond:",
        _markdown(("steps of stage 2", "L_f, static", "L_f, dynamic", "static / dynamic", "by seed"), rows),
        *(["Made as the study is, in a folder of their own:", "\n".join(commands)] if commands else []),
        "*More FFN than the task asks for.* If three quarters of it are enough, whichever they are, then it matters "
        "who works where few do, and the ratio is above 1 there: at (50 %, 75 %; 25 %).",
        _markdown(("experts at work", "static / dynamic after stage 1", "after stage 2"), few),
        "*Many sets of experts to fit.* The rest of the network can make up for experts that are missing, and for the "
        "same ones better than now for these and now for those. If that is why, stage 2 recovers the more of what "
        "stage 1 has left, the fewer sets of experts a block may choose from (the last two rows have other rates):",
        _markdown(("row", "sets", "L_f after stage 1", "after stage 2", "recovered"), by_sets),
        findings(found, figures),
    ]
    return "\n\n".join(filter(None, parts))


def _percent(found: Spread | None) -> str:
    return f"{found.mean * 100:.1f} ± {found.deviation * 100:.1f} %" if found else NONE


def _bounds(found: Ratio | None) -> str:
    if found is None:
        return NONE
    return f"{found.value:.2f}" + (f" [{found.low:.2f}, {found.high:.2f}]" if found.known else "")


# ---- how it was made


def _making(results: Sequence[Result], command: str) -> str:
    parts = ["## How it was made", f"    {command}"]
    if not results:
        return "\n\n".join(parts)
    budget = Budget(**results[0].settings["budget"])
    parts.append("The budget of every cell: " + ", ".join(f"{name} {value}" for name, value in asdict(budget).items()))
    trained = [result for result in results if "stage2" in result.seconds and not result.seconds["resumed"]]
    if trained:
        names = ("stage1", "stage2", "held_out", "drawing")
        usual = {name: median(result.seconds.get(name, 0.0) for result in trained) for name in names}
        split = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in usual.items())
        parts.append(f"A trained cell took {sum(usual.values()) / 60:.1f} min, by medians: {split}.")
    parts.append(f"Machines: {_made_by(results, 'machine')}. Commits: {_made_by(results, 'commit')}.")
    wrong = sum(len(result.metrics["drawn"]["wrong_pictures"]) for result in results)
    in_one_order = ""
    if any(result.settings["recipe"] == ONE_ORDER for result in results):
        in_one_order = (
            "All of these cells saw the training pictures in the same order, by a fault of the training's random "
            "numbers that was found later; so the spread leaves out what the order does. (Where orders of experts are "
            "compared, each seed has an order of its own.) "
        )
    parts.append(
        f"Seeds are {', '.join(map(str, SEEDS))}. They decide the first values of routers and selectors and which "
        f"pictures are drawn. {in_one_order}Each file in "
        f"the results' folder also names the pictures whose class was missed (up to 20; {wrong} in all), L_f by "
        "scale, and what the student was before stage 1."
    )
    return "\n\n".join(parts)


# ---- cells of tables


def _spread(figures: Figures, row: str, name: str) -> str:
    found = figures.spread(row, name)
    return found.text() if found else NONE


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value * 100:.1f} %"


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else f"{value:{form}}"


def _markdown(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def lines() -> Iterator[Sequence[str]]:
        yield heading
        yield ["---", *["---:"] * (len(heading) - 1)]
        yield from rows

    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines())
