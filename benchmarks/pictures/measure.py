"""Who is faster: contestants that take turns at drawing the same batches, on the same machine, in the same minutes.

Knows whose turn it is and what to make of the times; processes are `process.py`'s, words `report.py`'s. A machine
is never quite itself, so no time stands alone: every contestant draws once in every round, each round begins with
another one, and ratios are taken within a round.

Letters in shapes: B pictures.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, TypeVar

import numpy as np

from actvar.benchmarks.pictures.graph_times import Lap
from actvar.bundle.contract import scale_name
from actvar.config import ModelConfig, Sampling
from actvar.flops import condition_work, decoder_work, scale_work, transformer_work

Kind: TypeAlias = Literal[
    "graphs", "openvino", "eager", "compiled", "autocast", "official", "official-compiled", "official-autocast"
]
_Item = TypeVar("_Item")

_WARM_UPS = 2  # torch.compile learns from the second batch size that sizes vary; a GPU's chain is recorded then
_BASELINES: tuple[Kind, ...] = ("official", "eager", "compiled", "autocast")


@dataclass(frozen=True)
class Contestant:
    """Something that draws pictures.

    `path` is a bundle for graphs, also in OpenVINO, a checkpoint for PyTorch, and a checkout of VAR's own code for the
    official one; `backend` is what runs it.
    """

    name: str
    kind: Kind
    model: ModelConfig
    precision: str
    path: Path
    backend: str

    @property
    def shape(self) -> ModelConfig:
        """What it shares with those that it can be compared with: the dense, guided model with the full decoder.

        What costs no time does not count.
        """
        return replace(self.model.dense(), class_names=(), sampling=Sampling(), guided_scales=None, small_decoder=None)


@dataclass(frozen=True)
class Plan:
    """How much is drawn: batches of these sizes, so many rounds of each, and so many starts of a fresh process."""

    batches: tuple[int, ...]
    rounds: int
    starts: int

    def draws(self, contestants: int) -> int:
        """How many batches are drawn in all."""
        fresh = self.starts + len(self.batches) - 1
        return contestants * (fresh + len(self.batches) * (_WARM_UPS + 2 * self.rounds))


@dataclass(frozen=True)
class Opening:
    """How a process got ready: seconds from its start to its imports done, and to its model opened."""

    imported: float
    opened: float


@dataclass(frozen=True)
class Drawn:
    """A batch that was drawn. Times are seconds since the process was started; `laps` is empty if nobody looked."""

    began: float
    ended: float
    peak_bytes: int
    laps: tuple[Lap, ...]

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began

    @property
    def graphs(self) -> dict[str, float]:
        """Seconds of each graph."""
        return {lap.graph: lap.seconds for lap in self.laps}

    @property
    def outside(self) -> float:
        """Seconds in which no graph ran."""
        return self.seconds - sum(lap.seconds for lap in self.laps)

    @property
    def transformer(self) -> float:
        """Seconds of everything but the decoder, and but what is outside."""
        return sum(lap.seconds for lap in self.laps if lap.graph != "decoder")


class Worker(Protocol):
    """A contestant that is ready to draw."""

    @property
    def opening(self) -> Opening:
        """How it got ready."""

    def draw(self, pictures: int, looked_into: bool) -> Drawn:
        """Draw a batch.

        Raises:
            ActVARError: it cannot.
        """

    def multiply(self) -> float | None:
        """Operations in a second of one large product, in its engine and precision; None where none is at hand.

        Raises:
            ActVARError: it cannot.
        """


@dataclass(frozen=True)
class FirstDraw:
    """A process from its start to its first batch."""

    opening: Opening
    drawn: Drawn


@dataclass(frozen=True)
class Measured:
    """All that is known of a contestant, by batch size: its fresh processes, its times, and its draws looked into.

    `commands` are seconds of the whole command `actvar-trt generate`, from its start to its end. `products` are what
    `Worker.multiply` gave in each round.
    """

    contestant: Contestant
    fresh: Mapping[int, list[FirstDraw]]
    seconds: Mapping[int, list[float]]
    looked_into: Mapping[int, list[Drawn]]
    commands: list[float]
    products: list[float]

    @classmethod
    def nothing_yet(cls, contestant: Contestant, batches: Sequence[int]) -> "Measured":
        """Before the first draw."""
        return cls(contestant, {b: [] for b in batches}, {b: [] for b in batches}, {b: [] for b in batches}, [], [])

    @property
    def ceiling(self) -> float | None:
        """Operations in a second that a product came to at its best."""
        return max(self.products, default=None)


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements, and the measurements themselves."""

    median: float
    lower: float
    upper: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of one or more."""
        lower, median, upper = np.percentile(values, (25, 50, 75))
        return cls(float(median), float(lower), float(upper), tuple(values))


Start: TypeAlias = Callable[[Contestant], AbstractContextManager[Worker]]
"""Opens a contestant in a process of its own, which ends with the block."""


def measure(
    contestants: Sequence[Contestant],
    plan: Plan,
    start: Start,
    time_command: Callable[[Contestant], float],
    progress: Callable[[float], None] | None = None,
) -> list[Measured]:
    """Let the contestants draw.

    First each batch size is drawn by fresh processes, which gives cold starts and peaks of memory. Then one process of
    each contestant stays, and they take turns: every round once for the time, and once looked into, after which each
    multiplies its product.

    Args:
        contestants: in the order in which they are reported.
        plan: how much is drawn.
        start: see `Start`.
        time_command: seconds that `actvar-trt generate` takes for one picture, in a process of its own.
        progress: told the share that is done, 0 to 1.

    Raises:
        ActVARError: a contestant cannot draw.
    """
    counted = _Counted(plan.draws(len(contestants)), progress)
    measured = [Measured.nothing_yet(contestant, plan.batches) for contestant in contestants]
    for batch in plan.batches:
        for turn in range(plan.starts if batch == plan.batches[0] else 1):
            for figures in _rotated(measured, turn):
                with start(figures.contestant) as worker:
                    drawn = counted.draw(worker, batch, looked_into=True)
                    figures.fresh[batch].append(FirstDraw(worker.opening, drawn))
                if batch == plan.batches[0] and figures.contestant.kind == "graphs":
                    figures.commands.append(time_command(figures.contestant))
    with ExitStack() as open_workers:
        workers = [open_workers.enter_context(start(contestant)) for contestant in contestants]
        for batch in plan.batches:
            _take_turns(list(zip(measured, workers, strict=True)), batch, plan.rounds, counted)
    return measured


def _take_turns(pairs: list[tuple[Measured, Worker]], batch: int, rounds: int, counted: "_Counted") -> None:
    for _, worker in pairs:
        for _ in range(_WARM_UPS):
            counted.draw(worker, batch, looked_into=False)
    for turn in range(rounds):
        for figures, worker in _rotated(pairs, turn):
            figures.seconds[batch].append(counted.draw(worker, batch, looked_into=False).seconds)
        for figures, worker in _rotated(pairs, turn):
            figures.looked_into[batch].append(counted.draw(worker, batch, looked_into=True))
            if product := worker.multiply():
                figures.products.append(product)


@dataclass
class _Counted:
    """Draws, and tells how many of them are done."""

    total: int
    progress: Callable[[float], None] | None
    done: int = 0

    def draw(self, worker: Worker, batch: int, looked_into: bool) -> Drawn:
        if self.progress:
            self.progress(self.done / self.total)
        self.done += 1
        return worker.draw(batch, looked_into)


def _rotated(items: Sequence[_Item], turn: int) -> list[_Item]:
    """The same items, beginning with another one each turn."""
    first = turn % len(items)
    return [*items[first:], *items[:first]]


# ---- what follows from the times


def baseline(of: Measured, among: Sequence[Measured]) -> Measured:
    """What a contestant is compared with: the dense model in official VAR's code, else in PyTorch, else in graphs."""
    rivals = [other for other in among if other.contestant.shape == of.contestant.shape]
    for kind in _BASELINES:
        for rival in rivals:
            if rival.contestant.kind == kind:
                return rival
    return next((rival for rival in rivals if rival.contestant.model.activation is None), rivals[0])


def ratios(of: Measured, to: Measured, batch: int) -> Spread:
    """Times of one contestant as multiples of another's, round by round."""
    pairs = zip(of.seconds[batch], to.seconds[batch], strict=True)
    return Spread.of([mine / theirs for mine, theirs in pairs])


@dataclass(frozen=True)
class Saving:
    """What an ActVAR saves of its dense model's transformer, as shares.

    Attributes:
        active, dense: which models.
        batch: pictures at a time.
        operations: by count.
        time: as measured.
        at_dense_rate: time that it would save if each of its graphs did as many operations in a second as the dense
            model's did: less than `operations` where scales that leave nothing out take more than their share.
    """

    active: Contestant
    dense: Contestant
    batch: int
    operations: float
    time: Spread
    at_dense_rate: Spread

    @property
    def realised(self) -> Spread:
        """Time saved for operations saved: 1 where every operation left out is time left out."""
        return Spread.of([time / self.operations for time in self.time.values])

    @property
    def attainable(self) -> Spread:
        """What `realised` would be at the dense model's operations in a second."""
        return Spread.of([time / self.operations for time in self.at_dense_rate.values])


def savings(measured: Sequence[Measured]) -> list[Saving]:
    """Of every ActVAR whose dense model took part with the same backend and precision, at every batch size.

    That of a guidance-free one may be guided: the other row is saved, too.
    """
    found = []
    for active in measured:
        dense = _dense_twin(active, measured)
        if active.contestant.model.activation is None or dense is None:
            continue
        models = active.contestant.model, dense.contestant.model
        operations = 1 - transformer_work(models[0]) / transformer_work(models[1])
        if operations > 0:
            for batch in active.looked_into:
                pairs = zip(active.looked_into[batch], dense.looked_into[batch], strict=True)
                time = Spread.of([1 - mine.transformer / theirs.transformer for mine, theirs in pairs])
                rate = Spread.of([_saved_at_dense_rate(each, *models) for each in dense.looked_into[batch]])
                found.append(Saving(active.contestant, dense.contestant, batch, operations, time, rate))
    return found


def beyond_products(of: Measured, batch: int) -> dict[str, float]:
    """Seconds of a batch that its operations would not take at the ceiling, by part; empty without a ceiling.

    Small scales have less than a quarter of the last one's tokens, and wait for memory. Less than 0 is possible: an
    exported decoder does fewer operations than the model that is counted.
    """
    ceiling, model = of.ceiling, of.contestant.model
    if ceiling is None:
        return {}
    tokens, work = model.schedule.tokens, graph_operations(model)
    small = [scale_name(si) for si, count in enumerate(tokens) if 4 * count < tokens[-1]]
    found = dict.fromkeys(("condition", "small scales", "large scales", "decoder", "outside"), 0.0)
    draws = of.looked_into[batch]
    for graph in draws[0].graphs:
        part = "small scales" if graph in small else "large scales" if graph.startswith("scale") else graph
        seconds = Spread.of([drawn.graphs[graph] for drawn in draws]).median
        found[part] += seconds - batch * work[graph] / ceiling
    found["outside"] = Spread.of([drawn.outside for drawn in draws]).median
    return found


def share_of_ceiling(of: Measured, batch: int) -> float | None:
    """Operations in a second of a batch as a share of the ceiling; None without one."""
    work = batch * sum(graph_operations(of.contestant.model).values())
    return work / Spread.of(of.seconds[batch]).median / of.ceiling if of.ceiling else None


def graph_operations(model: ModelConfig) -> dict[str, int]:
    """Of one picture, by graph."""
    scales = {scale_name(si): scale_work(model, si).total for si in range(len(model.schedule))}
    return {"condition": condition_work(model), **scales, "decoder": decoder_work(model)}


def _saved_at_dense_rate(drawn: Drawn, active: ModelConfig, dense: ModelConfig) -> float:
    """Of the time that the dense model's transformer took for what was drawn."""
    mine, theirs = graph_operations(active), graph_operations(dense)
    laps = [lap for lap in drawn.laps if lap.graph != "decoder"]
    return 1 - sum(lap.seconds * mine[lap.graph] / theirs[lap.graph] for lap in laps) / drawn.transformer


def _dense_twin(active: Measured, measured: Sequence[Measured]) -> Measured | None:
    """The dense model in the same kind of engine: with the same guidance and decoder, where there is such a one."""
    alike = [
        other
        for other in measured
        if other.contestant.model.activation is None
        and all(
            getattr(other.contestant, name) == getattr(active.contestant, name)
            for name in ("kind", "precision", "backend", "shape")
        )
    ]
    own = active.contestant.model.dense()
    return min(alike, key=lambda other: other.contestant.model != own, default=None)
