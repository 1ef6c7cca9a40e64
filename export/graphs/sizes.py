"""What differs from scale to scale: for the graph of one scale, and for the graph of all.

Who writes a scale asks here, and need not know for which graph. In the graph of one scale every answer is a number, a
weight or a constant. In the graph of all scales it is read from a table, at the scale's number, while the graph runs: a
size is then the name of a value, and what only some scales do stands in an `If`.

Letters in shapes: C width, L tokens of a scale, K kept, H side of f_hat, p side of a token map.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any, TypeAlias

import numpy as np

from actvar.bundle.contract import SCALE_INPUT
from actvar.config import ModelConfig
from actvar.export.graphs.builder import GraphBuilder
from actvar.export.graphs.sampler import Phi, Resize, resize_matrix
from actvar.export.graphs.weights_file import positions_name

Size: TypeAlias = int | str
"""A number, or the name of a value of the graph, [1] int64."""
Flag: TypeAlias = bool | str
"""What is known as the graph is written, or the name of a bool without dimensions."""


class Sizes(ABC):
    """What a scale is written by.

    Attributes:
        groups: of rows, G.
        tokens, kept: L and K.
        cached: tokens of the KV cache when the scale has added its own, T.
        active: experts that each token uses.
        side: p.
        next_tokens: L of the next scale; after the last one there is none, and it is 1.
        guided: whether there are unconditional rows.
        selects, routes: whether tokens, and experts, are left out.
        is_first: whether the blocks read `start`, and no tokens.
    """

    def __init__(self, b: GraphBuilder, config: ModelConfig):
        self.b, self._schedule, self._phi_count = b, config.schedule, config.vqvae.phi_count
        self._scales, self._next_sides = range(len(config.schedule)), (*config.schedule.patch_nums[1:], 1)
        tokens, kept = config.schedule.tokens, [config.kept_tokens(si) for si in self._scales]
        active = [config.active_experts(si) for si in self._scales]
        experts = config.activation.experts if config.activation else 1
        groups = [config.row_groups(si) for si in self._scales]
        self.guided = self._flag("guided", [each == 2 for each in groups])
        self.groups = groups[0] if len(set(groups)) == 1 else self._size("groups", groups)
        self.selects = self._flag("selects", [some < all_ for some, all_ in zip(kept, tokens, strict=True)])
        self.routes = self._flag("routes", [some < experts for some in active])
        self.is_first = self._flag("is_first", [si == 0 for si in self._scales])
        self.tokens = self._size("tokens", tokens)
        self.kept = self.tokens if self.selects is False else self._size("kept", kept)
        self.cached = self._size("cached", list(accumulate(kept)))
        self.active = experts if self.routes is False else self._size("active", active)
        self._actives = active
        self.side = self._size("side", config.schedule.patch_nums)
        self.next_tokens = self._size("next_tokens", [p * p for p in self._next_sides])

    def uses_more_than(self, experts: int) -> Flag:
        """Whether tokens use more than so many experts."""
        return self._flag(f"more_than_{experts}_experts", [active > experts for active in self._actives])

    def ramp(self) -> str:
        """The part of the guidance strength that counts, fp32 without dimensions."""
        return self._scalar("ramp", [self._schedule.cfg_ramp(si) for si in self._scales])

    def smoothing(self) -> tuple[str, str]:
        """Gain and temperature where codes are mixed, fp32 without dimensions."""
        gains, temperatures = (
            [of_scale(si) for si in self._scales]
            for of_scale in (self._schedule.smooth_gain, self._schedule.smooth_temperature)
        )
        return self._scalar("smooth_gain", gains), self._scalar("smooth_temperature", temperatures)

    def positions(self) -> str:
        """What tokens are told of their scale and place, [1, L, C]."""
        return self._weight("positions", [positions_name(si) for si in self._scales], axis=1)

    def phi(self) -> Phi:
        """The quantizer's convolution."""
        layers = [f"vqvae.quantize.phi.{i}" for i in self._schedule.phi_indices(self._phi_count)]
        weights, biases = ([f"{layer}.{part}" for layer in layers] for part in ("weight", "bias"))
        return self._weight("phi_weight", weights, axis=0), self._weight("phi_bias", biases, axis=0)

    def up(self) -> Resize | None:
        """From p to H; nothing where they are the same."""
        return self._resize("bicubic", [(p, self._schedule.side) for p in self._schedule.patch_nums])

    def down(self) -> Resize | None:
        """From H to the next scale's p."""
        return self._resize("area", [(self._schedule.side, p) for p in self._next_sides])

    def residual_down(self) -> Resize | None:
        """From H to p, as the quantizer's encoder goes."""
        return self._resize("area", [(self._schedule.side, p) for p in self._schedule.patch_nums])

    @abstractmethod
    def shape(self, name: str, *sizes: Size) -> str:
        """A shape as `Reshape` reads it, for which the name stands; -1 may be one of the sizes."""

    # Of something for every scale, these give that of the scale which the graph runs.

    @abstractmethod
    def _size(self, name: str, of_scales: Sequence[int]) -> Size: ...

    @abstractmethod
    def _flag(self, name: str, of_scales: Sequence[bool]) -> Flag: ...

    @abstractmethod
    def _scalar(self, name: str, of_scales: Sequence[float]) -> str: ...

    @abstractmethod
    def _weight(self, name: str, of_scales: Sequence[str], axis: int) -> str:
        """Of tensors of the weights file, whose sizes are the same but for an axis."""

    @abstractmethod
    def _resize(self, mode: str, of_scales: Sequence[tuple[int, int]]) -> Resize | None: ...


class OneScale(Sizes):
    """Those of scale index si: numbers, weights, constants."""

    def __init__(self, b: GraphBuilder, config: ModelConfig, si: int):
        self._si = si
        super().__init__(b, config)

    def shape(self, name: str, *sizes: Size) -> str:
        """See `Sizes`."""
        return self.b.ints(*map(int, sizes))

    def _size(self, name: str, of_scales: Sequence[int]) -> int:
        return of_scales[self._si]

    def _flag(self, name: str, of_scales: Sequence[bool]) -> bool:
        return of_scales[self._si]

    def _scalar(self, name: str, of_scales: Sequence[float]) -> str:
        return self.b.scalar(of_scales[self._si])

    def _weight(self, name: str, of_scales: Sequence[str], axis: int) -> str:
        return self.b.weight(of_scales[self._si])

    def _resize(self, mode: str, of_scales: Sequence[tuple[int, int]]) -> Resize | None:
        before, after = of_scales[self._si]
        if before == after:
            return None
        matrix, name = resize_matrix(before, after, mode), f"{mode}_{before}_to_{after}"
        columns = self.b.constant(f"{name}_transposed", np.ascontiguousarray(matrix.T))
        return Resize(self.b.constant(name, matrix), columns)


class AllScales(Sizes):
    """Those of the scale that the input `SCALE_INPUT` names.

    Each is read once, ahead of all else: the first that asks for it may be inside a branch.
    """

    def __init__(self, b: GraphBuilder, config: ModelConfig):
        self._made: dict[str, str] = {}
        super().__init__(b, config)

    def shape(self, name: str, *sizes: Size) -> str:
        """See `Sizes`."""
        parts = [self.b.ints(size) if isinstance(size, int) else size for size in sizes]
        return self._once(f"{name}_shape", "Concat", *parts, axis=0) if len(parts) > 1 else parts[0]

    def _size(self, name: str, of_scales: Sequence[int]) -> str:
        return self._read(name, np.array(of_scales, np.int64)[:, None])

    def _flag(self, name: str, of_scales: Sequence[bool]) -> Flag:
        return of_scales[0] if len(set(of_scales)) == 1 else self._read(name, np.array(of_scales))

    def _scalar(self, name: str, of_scales: Sequence[float]) -> str:
        return self._read(name, np.array(of_scales, np.float32))

    def _weight(self, name: str, of_scales: Sequence[str], axis: int) -> str:
        different = list(dict.fromkeys(of_scales))
        spans = dict(zip(different, _spans(self.b.shape(each)[axis] for each in different), strict=True))
        table = self._once(f"{name}_of_all", "Concat", *map(self.b.weight, different), axis=axis)
        return self._slice(name, table, [spans[each] for each in of_scales], axis)

    def _resize(self, mode: str, of_scales: Sequence[tuple[int, int]]) -> Resize:
        matrices, axis = [resize_matrix(*sides, mode) for sides in of_scales], 1 if mode == "bicubic" else 0
        table = self.b.constant(f"{mode}_of_all", np.concatenate(matrices, axis))
        rows = self._slice(f"{mode}_rows", table, _spans(matrix.shape[axis] for matrix in matrices), axis)
        return Resize(rows, self._once(f"{mode}_columns", "Transpose", rows, perm=[1, 0]))

    def _slice(self, name: str, table: str, spans: Sequence[tuple[int, int]], axis: int) -> str:
        """This scale's part of a table in which, along an axis, each lies from a start to an end."""
        starts, ends = zip(*spans, strict=True)
        start_1, end_1 = self._size(f"{name}_start", starts), self._size(f"{name}_end", ends)
        return self._once(name, "Slice", table, start_1, end_1, self.b.ints(axis))

    def _read(self, name: str, table: np.ndarray) -> str:
        """One of its rows."""
        return self._once(name, "Gather", self.b.constant(f"{name}_by_scale", table), SCALE_INPUT)

    def _once(self, name: str, kind: str, *inputs: str, **attributes: Any) -> str:
        """What a node of this name gives, which is written where it is asked for first."""
        if name not in self._made:
            with self.b.ahead(), self.b.scope("of_scale"):
                self._made[name] = self.b.op(kind, *inputs, name=name, **attributes)
        return self._made[name]


def _spans(sizes: Iterable[int]) -> list[tuple[int, int]]:
    """Start and end of each, where they lie one behind the other."""
    return list(pairwise((0, *accumulate(sizes))))
