"""Operations counted, of one model or of the paper's rows: tables for a person, JSON for a program.

Counting is `actvar.flops`'s, and the comparison with the paper `actvar.evaluation.paper_savings`'s.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from actvar.config import ModelConfig
from actvar.evaluation.paper_savings import PaperRow, savings
from actvar.flops import ScaleWork, condition_work, decoder_work, scale_work, transformer_work

FORMAT, PAPER_FORMAT, VERSION = "actvar-flops", "actvar-paper-flops", 1
_PARTS = tuple(field.name for field in fields(ScaleWork))


@dataclass(frozen=True)
class FlopsReport:
    """An ActVAR's operations for one picture beside those of its dense model.

    Attributes:
        name: what people call it.
        model: with its activation.
    """

    name: str
    model: ModelConfig

    def tables(self) -> list[RenderableType]:
        """By scale, by part, and the whole; then the share saved by each way to count it."""
        note = "A multiply-add counts as two. --json has the parts of every scale."
        return [self._by_scale(), self._by_part(), self._whole(), self._saved(), note]

    def _by_scale(self) -> Table:
        title = f"{self.name}: GFLOP of one picture by scale, with guidance{self._guided}"
        headings = ("scale", "", "tokens", "cached", "experts", "GFLOP", "saved")
        table = _table(title, headings, texts=2)
        dense = self.model.dense()
        for si in range(len(self.model.schedule)):
            works = scale_work(dense, si), scale_work(self.model, si)
            for model, work in zip((dense, self.model), works, strict=True):
                is_dense = model is dense
                if not is_dense and works[0] == works[1]:
                    continue
                table.add_row(
                    str(si + 1) if is_dense else "",
                    "dense" if is_dense else "active",
                    str(model.kept_tokens(si)),
                    str(model.cached_tokens[si]),
                    "" if is_dense else f"{model.active_experts(si)}/{_experts(model)}",
                    _giga(work.total),
                    "" if is_dense else _saving(works[0].total, work.total),
                )
        return table

    def _by_part(self) -> Table:
        table = _table("The same by part", ("", "dense", "active", "saved"))
        for part, (dense, active) in _parts(self.model, None).items():
            table.add_row(part, _giga(dense), _giga(active), _saving(dense, active))
        return table

    def _whole(self) -> Table:
        table = _table("The whole picture", ("", "dense", "active", "saved"))
        for guidance, rows in _GUIDANCE.items():
            for decoder, (dense, active) in _wholes(self.model, rows).items():
                table.add_row(f"{guidance} guidance, {decoder}", _giga(dense), _giga(active), _saving(dense, active))
        return table

    @property
    def _guided(self) -> str:
        guided = self.model.guided_scales
        return "" if guided is None else f" up to scale {guided}"

    def _saved(self) -> Table:
        table = _table("Saved of the transformer, by three counts (docs/paper-notes.md, Sec. 4)", ("", "saved"))
        found = savings(self.model)
        table.add_row("all that is left out", f"{found.all:.1%}")
        table.add_row("tokens' own work, less what choosing costs: nearest to the paper", f"{found.linear:.1%}")
        table.add_row("the paper's Eq. 12 as printed", f"{found.printed:.1%}")
        return table

    def to_json(self) -> str:
        """All of it, in operations."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "model": self.model.to_dict() | {"class_names": []},
            **{f"{guidance}_guidance": _counted(self.model, rows) for guidance, rows in _GUIDANCE.items()},
            "saved": asdict(savings(self.model)),
        }
        return json.dumps(content, indent=1) + "\n"


@dataclass(frozen=True)
class PaperReport:
    """The paper's rows and our counts of them."""

    rows: Sequence[PaperRow]

    def tables(self) -> list[RenderableType]:
        """One, in the paper's order, and what its columns are."""
        title = "Share of operations saved: the paper's tables, and three counts of ours"
        table = _table(title, ("table", "model", "scales", "tokens", "weights", *_PAPER_COLUMNS), texts=4)
        for row in self.rows:
            found = savings(row.model)
            shares = (row.saved, found.linear, found.linear - row.saved, found.all, found.printed)
            formats = ("{:.1%}", "{:.1%}", "{:+.1%}", "{:.1%}", "{:.1%}")
            cells = (form.format(share) for form, share in zip(formats, shares, strict=True))
            active = row.activation
            scales, tokens = (", ".join(map(str, of)) for of in (active.scales, _percents(active.token_rates)))
            table.add_row(str(row.table), row.preset, scales, tokens, *_percents(active.expert_rates[:1]), *cells)
        return [table, _PAPER_NOTE]

    def to_json(self) -> str:
        """The same, unrounded."""
        content = {"format": PAPER_FORMAT, "version": VERSION, "rows": [_paper_row(row) for row in self.rows]}
        return json.dumps(content, indent=1) + "\n"


_PAPER_COLUMNS = ("paper", "ours", "off", "all", "Eq. 12")
_PAPER_NOTE = (
    "ours: tokens' own work, less what choosing costs. all: all that is left out.\n"
    "Eq. 12 as printed leaves more in. See docs/paper-notes.md, Sec. 4."
)
_GUIDANCE: dict[str, int | None] = {"with": None, "without": 1}
"""Rows of each picture; None are the model's own."""


def rates_in_words(row: PaperRow) -> str:
    """As the paper's Table 2 has it, with the scales where they are not the last two: "(75 %, 75 %; 75 %)"."""
    activation = row.activation
    first, second = activation.token_rates
    scales = "" if activation.scales == (9, 10) else f"scales {activation.scales[0]} and {activation.scales[1]}, "
    return f"{scales}({first * 100:.0f} %, {second * 100:.0f} %; {activation.expert_rates[0] * 100:.0f} %)"


def _paper_row(row: PaperRow) -> dict[str, Any]:
    return {
        "table": row.table,
        "model": row.preset,
        "rates": rates_in_words(row),
        "activation": asdict(row.activation),
        "paper": row.saved,
        "saved": asdict(savings(row.model)),
    }


def _counted(model: ModelConfig, rows: int | None) -> dict[str, Any]:
    """Everything for one picture of so many rows, or of the model's own, dense and active."""
    dense = model.dense()
    scales = [
        {
            "scale": si + 1,
            "tokens": tokens,
            "kept": model.kept_tokens(si),
            "cached": model.cached_tokens[si],
            "active_experts": model.active_experts(si),
            "dense": asdict(scale_work(dense, si, rows)),
            "active": asdict(scale_work(model, si, rows)),
        }
        for si, tokens in enumerate(model.schedule.tokens)
    ]
    parts = {part: _pair(*pair) for part, pair in _parts(model, rows).items()}
    return {"scales": scales, "parts": parts, **{what: _pair(*pair) for what, pair in _wholes(model, rows).items()}}


def _pair(dense: int, active: int) -> dict[str, float]:
    return {"dense": dense, "active": active, "saved": 1 - active / dense if dense else 0.0}


def _parts(model: ModelConfig, rows: int | None) -> dict[str, tuple[int, int]]:
    """Dense and active operations of each part, in the order in which they run."""
    models, scales = (model.dense(), model), range(len(model.schedule))

    def both(count: Callable[[ModelConfig], int]) -> tuple[int, int]:
        dense, active = (count(one) for one in models)
        return dense, active

    def of_part(part: str) -> tuple[int, int]:
        return both(lambda one: sum(getattr(scale_work(one, si, rows), part) for si in scales))

    found = {"condition": both(lambda one: condition_work(one, rows))}
    return {**found, **{part: of_part(part) for part in _PARTS}, "decoder": both(decoder_work)}


def _wholes(model: ModelConfig, rows: int | None) -> dict[str, tuple[int, int]]:
    """Dense and active operations without the decoder and with it."""
    dense, active, decoder = transformer_work(model.dense(), rows), transformer_work(model, rows), decoder_work(model)
    return {"without decoder": (dense, active), "with decoder": (dense + decoder, active + decoder)}


def _experts(model: ModelConfig) -> int:
    return model.activation.experts if model.activation else 1


def _percents(rates: Sequence[float]) -> list[str]:
    return [f"{rate:.0%}" for rate in rates]


def _giga(operations: int) -> str:
    return f"{operations / 1e9:.3f}"


def _saving(dense: int, active: int) -> str:
    """Empty where nothing is saved; what choosing costs is no share of anything."""
    return f"{1 - active / dense:.1%}" if dense and dense != active else ""


def _table(title: str, headings: Sequence[str], texts: int = 1) -> Table:
    """A table whose first few columns are texts, the others figures."""
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i >= texts else "left")
    return table
