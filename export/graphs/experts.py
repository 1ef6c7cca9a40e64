"""A block's FFN as ONNX nodes: all of its hidden neurons, or those of the experts that are chosen.

Static experts lie in their block's order, so the chosen ones are the first rows of both matrices. In the graph of one
scale the FFN is a dense one with fewer rows, for every engine. In the graph of all scales it is cut where some scale
ends: each piece is a product of its own, packed once, and those that a scale does not reach stand in an `If`. In int8
the pieces are stored as layers of their own (`static_pieces`), for both kinds of graph.

Experts that tokens choose are left out in one of three ways:

- by `ActVarRoutedFFN`, an operator of ours, in the graph of one scale: an engine has a plugin for it.
- apart, in the graph of all scales. Each expert's tokens are collected and multiplied by `Gemm`s of its own, as ONNX
  Runtime packs a matrix that is a constant of a node, and not one that a loop hands over. Scales that keep all experts
  share the first matrix's nodes with those that do not, so that it is held once. Their second matrix is one product, as
  a sum of experts takes longer: that one is held twice.
- masked. The FFN is multiplied whole, and what a token does not use is set to 0: both matrices are held once, and every
  scale but the active ones takes what it takes in VAR. In int8 there is no other way.

Which of the last two takes less time is the processor's affair (docs/cpu.md).

Letters in shapes: R rows, K kept tokens, M = R * K, C width, F hidden neurons, N experts, A active experts, e = F / N
hidden neurons of an expert, t tokens of one expert.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from actvar.config import STATIC, ModelConfig
from actvar.export.graphs import int8
from actvar.export.graphs.builder import GraphBuilder
from actvar.export.graphs.layers import best_first, linear
from actvar.export.graphs.sizes import Sizes
from actvar.export.graphs.weights_file import static_pieces


def chosen_experts(b: GraphBuilder, scores_MN: str, active_1: str) -> str:
    """1 for a token's `active_1` best experts and 0 for the others, [M, N]."""
    _, best_MA = best_first(b, scores_MN, active_1, axis=1, name="best")
    none_MN = b.op("ConstantOfShape", b.op("Shape", scores_MN), name="none")
    one_MA = b.op("Expand", b.scalar(1.0), b.op("Shape", best_MA), name="one")
    return b.op("ScatterElements", none_MN, best_MA, one_MA, axis=1, name="chosen")


def dense_ffn(b: GraphBuilder, weights: str, x_MC: str, gate_MN: str = "") -> str:
    """All hidden neurons of an FFN, MC; with a gate, those of the experts that a token does not use are set to 0.

    Masked so, a token's experts sum up to what `ActVarRoutedFFN` gives. One row of a gate may stand for all tokens.
    """
    fc1, fc2 = f"{weights}.fc1", f"{weights}.fc2"
    hidden_MF = b.op("Gelu", linear(b, x_MC, fc1, "fc1"), approximate="tanh")
    if gate_MN:
        hidden = b.shape(f"{fc1}.bias")[0]
        experts = b.shape(f"{weights}.router.bias")[0]
        hidden_MNe = b.reshape(hidden_MF, -1, experts, hidden // experts)
        hidden_MF = b.reshape(b.op("Mul", hidden_MNe, b.reshape(gate_MN, -1, experts, 1), name="gated"), -1, hidden)
    if b.has(f"{fc2}.{int8.VALUES}"):
        return int8.quantized_linear(b, hidden_MF, fc2, "fc2")
    return b.op("Gemm", hidden_MF, b.weight(f"{fc2}.weight_t"), b.weight(f"{fc2}.bias"), name="fc2")


@dataclass(frozen=True)
class FFNWriter:
    """Writes an FFN.

    Attributes:
        masks: leave experts out by a mask, where the graph of all scales could do it apart.
        weights: where they are, as in `var.blocks.0.ffn`.
    """

    b: GraphBuilder
    config: ModelConfig
    sizes: Sizes
    masks: bool
    weights: str

    def write(self, x_RKC: str) -> tuple[str, str]:
        """From fp32 to the output, MC, and to the scores by which experts are chosen, RKN.

        There are no scores where no scale leaves experts out, and they are empty at a scale that does not.
        """
        b, weights = self.b, self.weights
        x_MC = b.reshape(x_RKC, -1, self.config.width)
        if self._is_static:
            return self._static(b.to_compute(x_MC)), ""
        if self.sizes.routes is False:
            return dense_ffn(b, weights, b.to_compute(x_MC)), ""
        if self.masks or b.has(f"{weights}.fc2.{int8.VALUES}"):
            return self._masked(x_MC)
        active = self.sizes.active
        return self._operator(active, x_RKC, x_MC) if isinstance(active, int) else self._apart(x_MC)

    @property
    def _is_static(self) -> bool:
        activation = self.config.activation
        return activation is not None and activation.expert_choice == STATIC

    def _static(self, x_MC: str) -> str:
        """The first rows of both matrices: at once where it is known how many, else piece by piece."""
        b, active, is_int8 = self.b, self.sizes.active, self.b.has(f"{self.weights}.fc1.0.{int8.VALUES}")
        of_one = self.config.hidden // self._experts
        bias_C = b.weight(f"{self.weights}.fc2.bias")
        if isinstance(active, int) and not is_int8:
            return self._rows(x_MC, 0, of_one * active, bias_C)
        first, *others = enumerate(static_pieces(self.config))

        def with_piece(place: int, span: tuple[int, int], sum_MC: str) -> list[str]:
            with b.scope(f"pieces.{place}"):
                return [self._piece(x_MC, place, sum_MC) if is_int8 else self._rows(x_MC, *span, sum_MC)]

        sum_MC = bias_C  # from the last piece to the first, so that what an `If` hands on undone is the bias alone
        for place, span in reversed(others):
            runs = self.sizes.uses_more_than(span[0] // of_one)
            then, otherwise = partial(with_piece, place, span, sum_MC), partial(tuple[str], (sum_MC,))
            (sum_MC,) = b.choose(runs, then, otherwise, ["float32"], "more")
        return with_piece(*first, sum_MC)[0]

    def _rows(self, x_MC: str, start: int, end: int, added: str) -> str:
        """What the hidden neurons of some rows give, and what is added to it."""
        b, fc1, fc2 = self.b, f"{self.weights}.fc1", f"{self.weights}.fc2"
        w1, b1 = (b.weight_rows(f"{fc1}.{part}", start, end) for part in ("weight", "bias"))
        hidden_Me = b.op("Gelu", b.op("Gemm", x_MC, w1, b1, transB=1, name="fc1"), approximate="tanh")
        return b.op("Gemm", hidden_Me, b.weight_rows(f"{fc2}.weight_t", start, end), added, name="fc2")

    def _piece(self, x_MC: str, place: int, added: str) -> str:
        """The same in int8."""
        b, fc1, fc2 = self.b, f"{self.weights}.fc1", f"{self.weights}.fc2"
        hidden_Me = b.op("Gelu", int8.quantized_linear(b, x_MC, f"{fc1}.{place}", "fc1"), approximate="tanh")
        return int8.quantized_linear(b, hidden_Me, f"{fc2}.{place}", "fc2", added)

    def _operator(self, active: int, x_RKC: str, x_MC: str) -> tuple[str, str]:
        b, weights, scores_RKN = self.b, self.weights, self._scores(x_MC)
        shape = self._experts, self.config.hidden // self._experts, self.config.width
        w1_NeC, b1_Ne = b.weight(f"{weights}.fc1.weight", shape), b.weight(f"{weights}.fc1.bias", shape[:2])
        w2_NeC = b.weight(f"{weights}.fc2.weight_t", shape)
        inputs = b.to_compute(x_RKC), scores_RKN, w1_NeC, b1_Ne, w2_NeC, b.weight(f"{weights}.fc2.bias")
        return b.op("ActVarRoutedFFN", *inputs, experts=shape[0], active=active, name="routed"), scores_RKN

    def _masked(self, x_MC: str) -> tuple[str, str]:
        """All scales by the same nodes, as the experts that are not chosen are multiplied, too."""
        b, sizes, experts = self.b, self.sizes, self._experts

        def chosen() -> tuple[str, str]:
            scores_RKN = self._scores(x_MC)
            scores_MN = b.reshape(scores_RKN, -1, experts)
            return chosen_experts(b, scores_MN, sizes.shape("active", sizes.active)), scores_RKN

        def all_of_them() -> tuple[str, str]:
            return b.constant("all_experts", np.ones((1, experts), np.float32)), self._no_scores()

        gate_MN, scores_RKN = b.choose(sizes.routes, chosen, all_of_them, ["float32", "float32"], "gate")
        return dense_ffn(b, self.weights, x_MC, gate_MN), scores_RKN

    def _apart(self, x_MC: str) -> tuple[str, str]:
        b, sizes, experts, fc1, fc2 = self.b, self.sizes, self._experts, f"{self.weights}.fc1", f"{self.weights}.fc2"
        dtypes = [*["int64"] * experts, "float32"]
        *places, scores_RKN = b.choose(
            sizes.routes, lambda: self._places_of_chosen(x_MC), lambda: self._all_places(x_MC), dtypes, "experts"
        )
        hidden = []
        for e, places_t in enumerate(places):
            with b.scope(f"experts.{e}"):
                x_tC = b.op("Gather", x_MC, places_t, axis=0, name="tokens")
                w1, b1 = (b.weight_slice(f"{fc1}.{part}", e, experts) for part in ("weight", "bias"))
                hidden.append(b.op("Gelu", b.op("Gemm", x_tC, w1, b1, transB=1, name="fc1"), approximate="tanh"))

        def sum_of_chosen() -> tuple[str]:
            sum_MC = b.op("Expand", b.weight(f"{fc2}.bias"), b.op("Shape", x_MC), name="start")
            for e, (places_t, hidden_te) in enumerate(zip(places, hidden, strict=True)):
                with b.scope(f"experts.{e}"):
                    out_tC = b.op("Gemm", hidden_te, b.weight_slice(f"{fc2}.weight_t", e, experts), name="fc2")
                    sum_MC = b.op("ScatterND", sum_MC, b.reshape(places_t, -1, 1), out_tC, reduction="add", name="sum")
            return (sum_MC,)

        def all_at_once() -> tuple[str]:
            hidden_MF = b.op("Concat", *hidden, axis=1, name="hidden")
            return (b.op("Gemm", hidden_MF, b.weight(f"{fc2}.weight_t"), b.weight(f"{fc2}.bias"), name="fc2"),)

        (changed_MC,) = b.choose(sizes.routes, sum_of_chosen, all_at_once, ["float32"], "change")
        return changed_MC, scores_RKN

    def _places_of_chosen(self, x_MC: str) -> list[str]:
        """Each expert's tokens, as places [t] in M, and the scores."""
        b, scores_RKN, active_1 = self.b, self._scores(x_MC), self.sizes.shape("active", self.sizes.active)
        _, chosen_MA = best_first(b, b.reshape(scores_RKN, -1, self._experts), active_1, axis=1, name="chosen")
        places = []
        for e in range(self._experts):
            places_2t = b.op("NonZero", b.op("Equal", chosen_MA, b.int_scalar(e), name="is_chosen"), name="places")
            places.append(b.op("Gather", places_2t, b.int_scalar(0), axis=0, name="tokens"))
        return [*places, scores_RKN]

    def _all_places(self, x_MC: str) -> list[str]:
        """All tokens for each expert, chosen by nothing."""
        b = self.b
        rows = b.op("Squeeze", b.op("Shape", x_MC, start=0, end=1, name="rows_1"), name="rows")
        all_M = b.op("Range", b.int_scalar(0), rows, b.int_scalar(1), name="all")
        return [*[all_M] * self._experts, self._no_scores()]

    def _scores(self, x_MC: str) -> str:
        """The router's, RKN."""
        scores_MN = linear(self.b, x_MC, f"{self.weights}.router", "router")
        shape_RKN = self.sizes.shape("router", -1, self.sizes.kept, self._experts)
        return self.b.op("Reshape", scores_MN, shape_RKN, name="reshape")

    def _no_scores(self) -> str:
        return self.b.constant("no_scores", np.zeros((0, 0, self._experts), np.float32))

    @property
    def _experts(self) -> int:
        assert self.config.activation is not None
        return self.config.activation.experts
