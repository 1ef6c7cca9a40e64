"""What the CUDA kernels take on the first GPU, beside what they cannot beat: a copy of their bytes, and cuBLASLt.

Every figure has its peer from the same run, taken right before it. Kernels that move bytes are repeated on the same
memory, as their peers are: what fits the GPU's cache is read from there by both. The FFN's weights are not: a model's
blocks each have their own, so repeats go through as many sets as no cache holds.

Letters in shapes: R rows, L tokens, K kept tokens, C width, M tokens of all rows, N experts, H = 4C hidden neurons.
"""

import ctypes
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from actvar.benchmarks.kernels.cases import Cases, Ceiling, Moved, Routed
from actvar.benchmarks.kernels.cublas_lt import Launch, Product
from actvar.benchmarks.pictures.measure import Spread
from actvar.errors import EngineError, counted
from actvar.export.plans.plugin_choice import EXPERTS, RANDOM
from actvar.plugins.kernel_calls import DTYPE_CODES, TACTICS, Kernels, RoutedFfnShape
from actvar.runtime.backends.cuda_memory import CudaMemory, CudaStream
from actvar.runtime.backends.memory import Block

ROWS = (2, 16, 128)  # 1, 8 and 64 pictures
KEPT = ((169, 127), (256, 192))  # L and K of the two active scales at a rate of 0.75
ROUTED_TOKENS = (384, 4096, 24576)

_FP16 = DTYPE_CODES["float16"]
_ITEM = 2
_SAMPLES, _SAMPLE_SECONDS, _MOST_REPEATS = 9, 5e-4, 64
_SCRATCH = 32 << 20
_BYTES_PER_VALUE = 16  # of x: three more inputs at most, none larger than x in fp32
_EPSILON = 1e-6
_DIFFERENT_ROWS = 4096  # of x; further ones repeat
_CHECKED_TOKENS, _TOLERANCE = 4096, 0.02
_MOST_PRODUCT = 8192
_COPIED = 1 << 30  # bytes: many times what any cache holds
_RANDOM_VALUES = (1 << 20) + 7  # different ones of the ceiling; further ones repeat, in no step with any tile
_ROTATED = 192 << 20  # bytes of weights that are gone through: three times an H200's cache of 60 MB


class Dense(Protocol):
    """What computes dense products; see `actvar.benchmarks.kernels.cublas_lt.CublasLt`."""

    def candidates(
        self, product: Product, x: int, w: int, bias: int | None, y: int, scratch: Block
    ) -> Sequence[Launch]: ...


@dataclass(frozen=True)
class KernelBench:
    """Measures; `tell` is given the share that is done, 0 to 1, and `keep` every figure as soon as it is there."""

    kernels: Kernels
    dense: Dense
    memory: CudaMemory
    stream: CudaStream
    tell: Callable[[float], None]
    keep: Callable[[Moved | Routed], None]

    def ceiling(self, size: int = _MOST_PRODUCT, copied: int = _COPIED) -> Ceiling:
        """Of the best square product and of a copy, both of random numbers: zeros take less power, and run faster."""
        return Ceiling(self._product(size), self._copy(copied))

    def _product(self, size: int) -> float:
        block = self.memory.allocate(3 * size * size * _ITEM)
        x, w, y = (block.address + i * size * size * _ITEM for i in range(3))
        scratch = self.memory.allocate(_SCRATCH)
        self._write(x, np.resize(_random_halves(), 2 * size * size))
        product = Product(size, size, size, columns_first=True)
        return product.operations / self._best(self.dense.candidates(product, x, w, None, y, scratch))[1]

    def _copy(self, size: int) -> float:
        source, target = self.memory.allocate(size), self.memory.allocate(size)
        self._write(source.address, np.resize(_random_halves(), size // _ITEM))
        return 2 * size / self._seconds([lambda: self.stream.copy(target.address, source.address, size)]).median

    # ---- kernels that move bytes

    def moves(self, widths: Sequence[int]) -> list[Moved]:
        """Select, gather, scatter, the two fused with what stands around them, route and order, each beside a copy."""
        found = []
        most = max(_BYTES_PER_VALUE * max(ROWS) * max(length for length, _ in KEPT) * max(widths), 1 << 20)
        source, target = self.memory.allocate(most), self.memory.allocate(most)
        for rows in ROWS:
            for length, keep in KEPT:
                indices = self.memory.allocate(rows * keep * 8)
                scores = self._uploaded(_scores(rows, length))
                found.append(self._select(rows, length, keep, scores, indices, source, target))
                for width in widths:
                    sizes = rows, length, keep, width
                    found += self._token_moves(sizes, indices, source, target)
        for tokens in ROUTED_TOKENS:
            found += self._routes(tokens, source, target)
        return found

    def _select(
        self, rows: int, length: int, keep: int, scores: Block, indices: Block, source: Block, target: Block
    ) -> Moved:
        addresses = indices.address, None, self.stream.handle
        return self._moved(
            "select",
            {"rows": rows, "length": length, "keep": keep},
            rows * (4 * length + 8 * keep),
            lambda: self.kernels.launch("actvarTokenSelect", scores.address, rows, length, keep, *addresses),
            source,
            target,
        )

    def _token_moves(
        self, sizes: tuple[int, int, int, int], indices: Block, source: Block, target: Block
    ) -> list[Moved]:
        rows, length, keep, width = sizes
        x, modulation, kept, change = self._parts(source.address, sizes)
        places, y, stream = indices.address, target.address, self.stream.handle
        ends, moved, modulated = (*sizes, _FP16, stream), 8 * rows * keep, 4 * rows * width
        calls = (
            ("gather", 2 * _ITEM * rows * keep * width, "Gather", (x, places, y, *ends)),
            ("scatter", 2 * _ITEM * rows * length * width, "Scatter", (x, places, kept, y, *ends)),
            (
                "gather + norm",
                (4 + 4 + _ITEM) * rows * keep * width + 2 * modulated,
                "GatherNorm",
                (x, places, modulation, modulation, y, y + 4 * rows * keep * width, *sizes, _EPSILON, _FP16, stream),
            ),
            (
                "gate + scatter",
                (8 * length + _ITEM * keep) * rows * width + modulated,
                "ScatterGated",
                (x, places, kept, modulation, change, y, *ends),
            ),
        )
        shape = {"rows": rows, "length": length, "keep": keep, "width": width}
        return [
            self._moved(
                name,
                shape,
                size + moved,
                lambda function=f"actvarToken{function}", given=given: self.kernels.launch(function, *given),  # type: ignore[misc]
                source,
                target,
            )
            for name, size, function, given in calls
        ]

    def _parts(self, start: int, sizes: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        """Where inputs lie that do not overlap: x, what modulates, kept tokens, what changes them; fp32 at most."""
        rows, length, keep, width = sizes
        modulation = start + 4 * rows * length * width
        kept = modulation + 4 * rows * width
        return start, modulation, kept, kept + 4 * rows * keep * width

    def _routes(self, tokens: int, source: Block, target: Block) -> list[Moved]:
        scores = self._uploaded(_scores(tokens, EXPERTS))
        masks = self.memory.allocate(4 * tokens)
        stream = self.stream.handle
        given = scores.address, tokens, EXPERTS, 12, masks.address, stream
        route, size = "actvarExpertRoute", 4 * tokens * (EXPERTS + 1)
        found = [
            self._moved("route", {"tokens": tokens}, size, lambda: self.kernels.launch(route, *given), source, target)
        ]
        for slices in (1, 2, 4):
            order = self.memory.allocate(4 * slices * tokens)
            scratch = self.memory.allocate(self.kernels.expert_order_workspace(tokens, slices))
            sort = masks.address, tokens, EXPERTS, slices, order.address, scratch.address, stream
            found.append(
                self._moved(
                    "order",
                    {"tokens": tokens, "slices": slices},
                    4 * tokens * (slices + 1),
                    lambda sort=sort: self.kernels.launch("actvarExpertOrder", *sort),  # type: ignore[misc]
                    source,
                    target,
                )
            )
        return found

    def _moved(
        self,
        kernel: str,
        shape: Mapping[str, int],
        size: int,
        work: Callable[[], object],
        source: Block,
        target: Block,
    ) -> Moved:
        copy = self._seconds([lambda: self.stream.copy(target.address, source.address, size // 2)])
        moved = Moved(kernel, shape, size, self._seconds([work]), copy)
        self.keep(moved)
        return moved

    # ---- the routed FFN

    def routed(self, cases: Cases) -> list[Routed]:
        """The routed FFN in every case.

        Raises:
            EngineError: a tactic computes something else than the dense FFN where all experts are active.
        """
        found: list[Routed] = []
        todo = [(routing, active) for routing in cases.routings for active in cases.active]
        todo = [(routing, active) for routing, active in todo if routing == RANDOM or active < EXPERTS]
        count = len(cases.widths) * len(cases.tokens) * len(todo)
        for width in cases.widths:
            tensors = self._tensors(width, cases)
            weights = self._weights(width)
            for tokens in cases.tokens:
                dense = self._dense_ffn(tensors, weights, tokens, width, 4 * width)
                narrower = {}
                for active in sorted({active for _, active in todo if active < EXPERTS}):
                    neurons = 4 * width * active // EXPERTS
                    narrower[active] = self._seconds(self._dense_ffn(tensors, weights, tokens, width, neurons))
                for routing, active in todo:
                    self.tell(len(found) / count)
                    self._write(tensors["scores"].address, _routing(cases.routings[routing], tokens))
                    of_case = tokens, width, active, routing
                    found.append(self._routed(tensors, weights, dense, of_case, narrower.get(active)))
                    self.keep(found[-1])
        return found

    def _tensors(self, width: int, cases: Cases) -> dict[str, Block]:
        """Inputs by name, and room for what comes out, for the most tokens."""
        most, neurons = max(cases.tokens), 4 * width
        rng = np.random.default_rng(0)

        def normal(scale: float, *shape: int) -> Block:
            return self._uploaded((rng.standard_normal(shape, np.float32) * scale).astype(np.float16))

        x = rng.standard_normal((min(most, _DIFFERENT_ROWS), width), np.float32).astype(np.float16)
        shapes = [
            RoutedFfnShape(t, width, neurons // EXPERTS, EXPERTS, a, _FP16) for t in cases.tokens for a in cases.active
        ]
        workspace = max(self.kernels.routed_ffn_workspace(shape, t) for shape in shapes for t in TACTICS)
        return {
            "x": self._uploaded(np.resize(x, (most, width))),
            "scores": self.memory.allocate(most * EXPERTS * 4),
            "b1": normal(0.5, neurons),
            "b2": normal(0.5, width),
            "y": self.memory.allocate(most * width * _ITEM),
            "hidden": self.memory.allocate(most * neurons * _ITEM),
            "workspace": self.memory.allocate(workspace),
            "scratch": self.memory.allocate(_SCRATCH),
        }

    def _weights(self, width: int) -> list[tuple[Block, Block]]:
        """w1 and w2, in as many sets as no cache holds. All hold the same, so that every one gives the same result."""
        values = 4 * width * width
        sets = 1 + math.ceil(_ROTATED / (2 * values * _ITEM))
        rng = np.random.default_rng(1)
        w1, w2 = ((rng.standard_normal(values, np.float32) * n**-0.5).astype(np.float16) for n in (width, 4 * width))
        return [(self._uploaded(w1), self._uploaded(w2)) for _ in range(sets)]

    def _dense_ffn(
        self,
        tensors: Mapping[str, Block],
        weights: Sequence[tuple[Block, Block]],
        tokens: int,
        width: int,
        neurons: int,
    ) -> list[Callable[[], object]]:
        """Both products by the algorithms that are fastest here, for each set of weights.

        With fewer `neurons` than 4 C it is what static experts are: the first rows of both matrices.
        """
        place = {name: block.address for name, block in tensors.items()}
        scratch = tensors["scratch"]
        first = Product(tokens, width, neurons, columns_first=True, gelu=True)
        second = Product(tokens, neurons, width, columns_first=False)
        steps = (first, "x", "b1", "hidden"), (second, "hidden", "b2", "y")

        def of_all_sets(step: int) -> list[Launch]:
            """By the algorithm that is fastest over all sets, which a library lists in one order for all."""
            product, x, bias, y = steps[step]
            addresses = [(place[x], pair[step].address, place[bias], place[y]) for pair in weights]
            each = [self.dense.candidates(product, *given, scratch) for given in addresses]
            algorithms = list(zip(*each, strict=True))
            seconds = [self._seconds(self._on_stream(launches)).median for launches in algorithms]
            return list(algorithms[int(np.argmin(seconds))])

        def both(one: Launch, two: Launch) -> Callable[[], object]:
            return lambda: (one(self.stream.handle), two(self.stream.handle))

        return [both(*pair) for pair in zip(of_all_sets(0), of_all_sets(1), strict=True)]

    def _on_stream(self, launches: Sequence[Launch]) -> list[Callable[[], object]]:
        return [lambda launch=launch: launch(self.stream.handle) for launch in launches]  # type: ignore[misc]

    def _routed(
        self,
        tensors: Mapping[str, Block],
        weights: Sequence[tuple[Block, Block]],
        dense: Sequence[Callable[[], object]],
        of_case: tuple[int, int, int, str],
        static: Spread | None,
    ) -> Routed:
        tokens, width, active, _ = of_case
        shape = RoutedFfnShape(tokens, width, 4 * width // EXPERTS, EXPERTS, active, _FP16)
        place = {name: block.address for name, block in tensors.items()}
        size, stream = tensors["workspace"].bytes, self.stream.handle

        def launch(tactic: int, w1: Block, w2: Block) -> Callable[[], object]:
            read = place["x"], place["scores"], w1.address, place["b1"], w2.address, place["b2"]
            given = ctypes.byref(shape), tactic, *read, place["y"], place["workspace"], size, stream
            return lambda: self.kernels.launch("actvarRoutedFfn", *given)

        seconds_dense, differences = self._seconds(dense), []
        looks = active == EXPERTS and tokens <= _CHECKED_TOKENS
        expected = self._read(tensors["y"], tokens * width) if looks else None
        tactics = {}
        for tactic in TACTICS:
            tactics[tactic] = self._seconds([launch(tactic, *pair) for pair in weights])
            if expected is not None:
                differences.append(float(np.abs(self._read(tensors["y"], tokens * width) - expected).max()))
                self._require_same(differences[-1], tactic, tokens, width)
        plans = {tactic: bytes(self.kernels.routed_ffn_plan(shape, tactic)) for tactic in (0, *TACTICS)}
        default = next(tactic for tactic in TACTICS if plans[tactic] == plans[0])
        difference = max(differences, default=None)
        return Routed(*of_case, seconds_dense, static or seconds_dense, tactics, default, difference)

    def _require_same(self, difference: float, tactic: int, tokens: int, width: int) -> None:
        if not difference <= _TOLERANCE:  # NaN is none
            raise EngineError(
                f"Tactic {tactic} differs by {difference} from the dense FFN of width {width} for "
                f"{counted(tokens, 'token')}. "
                "Run python -m pytest tests/test_kernels.py -m gpu."
            )

    # ---- time and memory

    def _best(self, candidates: Sequence[Launch]) -> tuple[Launch, float]:
        """The fastest, and its seconds."""
        timed = [(self._seconds(self._on_stream([c])).median, c) for c in candidates]
        seconds, launch = min(timed, key=lambda pair: pair[0])
        return launch, seconds

    def _seconds(self, works: Sequence[Callable[[], object]]) -> Spread:
        """Of one run, by so many runs in one CUDA graph that launching them counts for nothing.

        They take turns, every one as often: works that differ in what they read let no cache hold it.
        """
        works[0]()
        self.stream.wait()
        once = max(self.stream.seconds(works[0]), 1e-9)
        rounds = math.ceil(min(max(math.ceil(_SAMPLE_SECONDS / once), 1), _MOST_REPEATS) / len(works))
        repeats = rounds * len(works)

        def several() -> None:
            for _ in range(rounds):
                for work in works:
                    work()

        replay = self.stream.record(several) or several
        replay()
        return Spread.of([self.stream.seconds(replay) / repeats for _ in range(_SAMPLES)])

    def _uploaded(self, content: np.ndarray) -> Block:
        block = self.memory.allocate(content.nbytes)
        self._write(block.address, content)
        return block

    def _write(self, address: int, content: np.ndarray) -> None:
        staged = self.memory.stage(content.nbytes)
        staged[:] = np.ascontiguousarray(content).reshape(-1).view(np.uint8)
        self.stream.write(address, staged)
        self.stream.wait()

    def _read(self, block: Block, count: int) -> np.ndarray:
        """The first values of a block of fp16, in fp32."""
        staged = self.memory.stage(count * _ITEM)
        self.stream.read(staged, block.address)
        self.stream.wait()
        return staged.view(np.float16).astype(np.float32)


def _random_halves() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(_RANDOM_VALUES, np.float32).astype(np.float16)


def _scores(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, columns), np.float32)


def _routing(recorded: np.ndarray | None, tokens: int) -> np.ndarray:
    """Scores of so many tokens; recorded ones are repeated from the first where there are fewer."""
    if recorded is None:
        return _scores(tokens, EXPERTS)
    return np.resize(recorded, (tokens, recorded.shape[1])).astype(np.float32)
