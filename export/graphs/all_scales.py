"""The graphs that run every scale: `scales.onnx` and `scales_masked.onnx`, for ONNX Runtime on the CPU.

There the matrices of a session are packed into the layout that its kernels read, in memory of the session's own. Twelve
sessions would keep ten copies of them; one session keeps one, and a small scale takes a third to a half less time than
with weights that are not packed (docs/cpu.md). So what is a constant in the graph of one scale is read from a table
here, at the scale's number, and FFNs are written as their experts: a session can pack an expert's matrices where they
are constants of a `Gemm` of their own, and not where a loop hands them over.

Routed, in `scales.onnx`, scales that keep all experts share the first matrix's nodes with those that do not, so that it
is held once. Their second matrix is one product, as a sum of experts takes longer: that one is held twice. Masked, an
FFN is multiplied whole, and what a token does not use set to 0: both matrices are held once, and every scale but the
active ones takes what it takes in VAR. Which of the two takes less time is the processor's affair (docs/cpu.md).

Letters in shapes: as in `per_scale.py`; S scales, E experts' places, A active experts, t tokens of one expert.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import TensorProto, helper

from actvar.bundle.contract import SCALE_INPUT, Shape, kv_parts
from actvar.bundle.manifest import StoredTensor
from actvar.config import HEAD_WIDTH, ModelConfig
from actvar.export.graphs.builder import GraphBuilder
from actvar.export.graphs.per_scale import EXPERTS, HIDDEN, KEPT, LOGITS, look_inside
from actvar.export.graphs.sampler import Resize, add_tokens, guided_logits, next_tokens_in, resize_matrix, sample
from actvar.export.graphs.transformer import (
    KeptShapes,
    KeysValues,
    UpdateWriter,
    WrittenBlock,
    chosen_experts,
    dense_ffn,
    linear,
    modulated_norm,
)
from actvar.export.graphs.weights_file import positions_name
from actvar.scales import PHI_COUNT

_SHOWN: dict[str, Shape] = {
    LOGITS: ("B", "L", "V"),
    HIDDEN: ("D", "R", "L", "C"),
    KEPT: ("D", "kept_R", "kept_K"),
    EXPERTS: ("D", "expert_R", "expert_K", "A"),
}


def build_scales(
    config: ModelConfig, weights: Mapping[str, StoredTensor], masks: bool = False, debug: bool = False
) -> GraphBuilder:
    """The graph of all scales of a model, in fp32 or, where the weights file holds matrices so, in int8.

    It reads what the scale graphs read (`actvar.bundle.contract`), and the scale's index, `SCALE_INPUT`; a scale that
    reads no `tokens_in` or `start` is given any. It gives what they give; what the last scale does not give is there,
    and means nothing. Only the KV cache passes otherwise (`kv_parts`): each block's keys and values are read as the
    scale before gave them, and what attention puts together of old and new ones is given, so that nothing is copied
    but by that.

    Args:
        config: the model's.
        weights: what the weights file holds.
        masks: multiply an FFN whole and set to 0 what a token does not use, rather than collect each expert's tokens;
            in int8 there is no other way.
        debug: give what `per_scale.debug_outputs` names, too; what a scale does not leave out is empty.
    """
    b = GraphBuilder("scales", weights, "float32")
    width, codes, side, depth = config.width, config.vqvae.z_channels, config.schedule.side, config.depth
    b.input(SCALE_INPUT, "int64", ())
    b.input("start", "float32", ("R", 1, width))
    b.input("tokens_in", "float32", ("B", "L", codes))
    b.input("f_hat", "float32", ("B", codes, side, side))
    b.input("modulation", "float32", (depth, "R", 6, width))
    b.input("head_modulation", "float32", ("R", 2, width))
    b.input("uniform", "float32", ("B", "L"))
    b.input("cfg", "float32", ())
    b.input("top_k", "int64", ())
    b.input("top_p", "float32", ())
    for past, _ in kv_parts(config):
        b.input(past, "float32", ("R", config.heads, "P", HEAD_WIDTH))
    looks = _ScalesWriter(b, config, masks).write(debug)
    b.output("token_ids", "int64", ("B", "L"))
    b.output("next_f_hat", "float32", ("B", codes, side, side))
    b.output("next_tokens_in", "float32", ("B", "next_L", codes))
    for _, kv in kv_parts(config):
        b.output(kv, "float32", ("R", config.heads, "T", HEAD_WIDTH))
    for name, dtype in looks.items():
        b.output(name, dtype, _SHOWN[name])
    return b


@dataclass(frozen=True)
class _Tables:
    """What differs from scale to scale, as values of the graph."""

    b: GraphBuilder

    def scalar(self, name: str, values: Sequence[object], dtype: type = np.int64) -> str:
        """This scale's value, without dimensions."""
        with self.b.scope("of_scale"):
            table = self.b.constant(f"{name}_by_scale", np.array(values, dtype))
            return self.b.op("Gather", table, SCALE_INPUT, name=name)

    def size(self, name: str, values: Sequence[int]) -> str:
        """This scale's value as a shape of one dimension, [1]."""
        value = self.scalar(name, values)
        with self.b.scope("of_scale"):
            return self.b.op("Reshape", value, self.b.ints(1), name=f"{name}_1")

    def shape(self, name: str, *sizes: str | int) -> str:
        """A shape of numbers and of what `size` gives."""
        parts = [self.b.ints(size) if isinstance(size, int) else size for size in sizes]
        with self.b.scope("of_scale"):
            return self.b.op("Concat", *parts, axis=0, name=f"{name}_shape")


@dataclass(frozen=True)
class _ScalesWriter:
    """Writes the graph."""

    b: GraphBuilder
    config: ModelConfig
    masks: bool

    def write(self, debug: bool) -> dict[str, str]:
        """All of it; returns the debug outputs by name, with their types."""
        b, config, schedule = self.b, self.config, self.config.schedule
        tables, si = _Tables(b), range(len(schedule))
        kept = [config.kept_tokens(i) for i in si]
        tokens_1, kept_1 = tables.size("tokens", schedule.tokens), tables.size("kept", kept)
        blocks = _BlockWriter.of(b, config, tables, kept_1, self.masks)
        x_RLC = self._embedded(tables, tokens_1)
        written = []
        for i in range(config.depth):
            modulation_R6C = b.op("Gather", "modulation", b.int_scalar(i), axis=0, name=f"blocks.{i}/modulation")
            written.append(blocks.block(i, x_RLC, modulation_R6C))
            x_RLC = written[-1].x_RLC
        looks = look_inside(b, written, blocks.active_1) if debug else {}

        with b.scope("head"):
            scale_R1C, shift_R1C = b.split("head_modulation", 2, axis=1, name="modulation")
            normed_RLC = modulated_norm(b, config.width, x_RLC, scale_R1C, shift_R1C)
            ramp = tables.scalar("ramp", [schedule.cfg_ramp(i) for i in si], np.float32)
            logits_MV = guided_logits(b, config.width, ramp, normed_RLC, "cfg")
            shape_BLV = tables.shape("logits", -1, tokens_1, config.vqvae.vocab_size)
            logits_BLV = b.op("Reshape", logits_MV, shape_BLV, output=LOGITS if debug else "")
        token_ids_BL = sample(b, logits_BLV, config.vqvae.vocab_size, "uniform", "top_k", "top_p")
        self._pass_on(tables, token_ids_BL)
        return {**looks, **({LOGITS: "float32"} if debug else {})}

    def _embedded(self, tables: _Tables, tokens_1: str) -> str:
        """The blocks' input RLC: the words at their positions, or what the first scale starts with."""
        b, config, schedule = self.b, self.config, self.config.schedule
        with b.scope("embed"):
            words_MC = linear(b, b.reshape("tokens_in", -1, config.vqvae.z_channels), "var.word_embed", "word")
            words_BLC = b.op("Reshape", words_MC, tables.shape("words", -1, tokens_1, config.width), name="words")
            names = [b.weight(positions_name(i)) for i in range(len(schedule))]
            all_positions = b.op("Concat", *names, axis=1, name="all_positions")
            start_1 = tables.size("first", schedule.starts)
            end_1 = b.op("Add", start_1, tokens_1, name="end")
            positions_1LC = b.op("Slice", all_positions, start_1, end_1, b.ints(1), name="positions")
            x_BLC = b.op("Add", words_BLC, positions_1LC, name="position")
            x_RLC = b.op("Concat", x_BLC, x_BLC, axis=0, name="rows")
            is_first = b.op("Equal", SCALE_INPUT, b.int_scalar(0), name="is_first")
            return b.op("Where", is_first, "start", x_RLC, name="input")

    def _pass_on(self, tables: _Tables, token_ids_BL: str) -> None:
        """What the next scale starts from."""
        b, schedule, codes = self.b, self.config.schedule, self.config.vqvae.z_channels
        sides, area, phis = schedule.patch_nums, [*schedule.patch_nums[1:], 1], schedule.phi_indices
        up = self._resize(tables, "bicubic", sides, [resize_matrix(p, schedule.side, "bicubic").T for p in sides])
        up = Resize(up.columns, up.rows)  # the table holds U^T, as its rows are what a scale takes of it
        down = self._resize(tables, "area", area, [resize_matrix(schedule.side, p, "area") for p in area])

        layers = [f"vqvae.quantize.phi.{i}" for i in range(PHI_COUNT)]
        phi = tables.scalar("phi", phis)
        weight, bias = (
            b.op("Gather", self._stack([f"{layer}.{part}" for layer in layers], part), phi, axis=0, name=f"phi_{part}")
            for part in ("weight", "bias")
        )
        side_1 = tables.size("side", sides)
        shape_BEpp = tables.shape("map", -1, codes, side_1, side_1)
        next_f_hat = add_tokens(b, token_ids_BL, "f_hat", shape_BEpp, up, (weight, bias))
        next_1 = tables.size("next_tokens", [p * p for p in area])
        next_tokens_in(b, next_f_hat, down, tables.shape("next", -1, codes, next_1))

    def _resize(self, tables: _Tables, mode: str, sides: Sequence[int], matrices: Sequence[np.ndarray]) -> Resize:
        """This scale's matrix, [side, H], of a table with all of them one below the other, and its transpose."""
        b, starts = self.b, np.cumsum([0, *sides])
        start_1 = tables.size(f"{mode}_first", starts[:-1].tolist())
        end_1 = tables.size(f"{mode}_end", starts[1:].tolist())
        table = b.constant(f"{mode}_of_scales", np.ascontiguousarray(np.concatenate(matrices)))
        matrix = b.op("Slice", table, start_1, end_1, b.ints(0), name=f"{mode}_matrix")
        return Resize(matrix, b.op("Transpose", matrix, perm=[1, 0], name=f"{mode}_transposed"))

    def _stack(self, tensors: Sequence[str], name: str) -> str:
        """Tensors of one shape under a new first dimension."""
        b = self.b
        parts = [b.op("Unsqueeze", b.weight(tensor), b.ints(0), name=f"{name}_part") for tensor in tensors]
        return b.op("Concat", *parts, axis=0, name=f"{name}_of_all")


@dataclass(frozen=True)
class _BlockWriter:
    """Writes the blocks; `selects` and `routes` say of this scale whether tokens and experts are left out.

    They are empty where no scale of the model leaves any out. `masks` is `build_scales`'s.
    """

    b: GraphBuilder
    config: ModelConfig
    shapes: KeptShapes
    kept_1: str
    active_1: str
    selects: str
    routes: str
    masks: bool

    @classmethod
    def of(cls, b: GraphBuilder, config: ModelConfig, tables: _Tables, kept_1: str, masks: bool) -> "_BlockWriter":
        """For all scales of a model."""
        scales, experts = range(len(config.schedule)), config.activation.experts if config.activation else 1
        active = [config.active_experts(si) for si in scales]
        selects = [config.kept_tokens(si) < config.schedule.tokens[si] for si in scales]
        routes = [count < experts for count in active]
        heads = tables.shape("heads", -1, kept_1, config.heads, HEAD_WIDTH)
        return cls(
            b,
            config,
            KeptShapes(heads, tables.shape("width", -1, kept_1, config.width)),
            kept_1,
            tables.size("active", active) if any(routes) else "",
            tables.scalar("selects", selects, np.bool_) if any(selects) else "",
            tables.scalar("routes", routes, np.bool_) if any(routes) else "",
            masks,
        )

    def block(self, i: int, x_RLC: str, modulation_R6C: str) -> WrittenBlock:
        """Block i."""
        b, updates = self.b, UpdateWriter(self.b, self.config, self.shapes, self._ffn)
        past, kv = (KeysValues(*names) for names in zip(*kv_parts(self.config)[2 * i : 2 * i + 2], strict=True))
        with b.scope(f"blocks.{i}"):
            if not self.selects:
                return updates.update(i, x_RLC, modulation_R6C, past, kv)
            kept_RKC, indices_RK = self._selected(i, x_RLC)
            updated = updates.update(i, kept_RKC, modulation_R6C, past, kv)

            def scattered() -> tuple[str]:
                return (b.op("ActVarTokenScatter", x_RLC, indices_RK, updated.x_RLC, name="scatter"),)

            def all_of_them() -> tuple[str]:
                return (b.op("Identity", updated.x_RLC, name="all_updated"),)

            (y_RLC,) = b.choose(self.selects, scattered, all_of_them, ["float32"], "output")
            return replace(updated, x_RLC=y_RLC, kept_RK=indices_RK)

    def _selected(self, i: int, x_RLC: str) -> tuple[str, str]:
        """The kept tokens RKC, and their places RK, which are none where all are kept."""
        b, config = self.b, self.config

        def some() -> tuple[str, str]:
            with b.scope("selector"):
                x_MC = b.reshape(x_RLC, -1, config.width)
                scores_M1 = linear(b, x_MC, f"var.blocks.{i}.selector", "scores")
                rows_tokens = b.op("Shape", x_RLC, start=0, end=2, name="rows_tokens")
                scores_RL = b.op("Reshape", scores_M1, rows_tokens, name="scores_of_rows")
                _, best_RK = b.ops("TopK", scores_RL, self.kept_1, count=2, axis=1, name="best")
                indices_RK, _ = b.ops("TopK", best_RK, self.kept_1, count=2, axis=1, largest=0, name="select")
                return b.op("ActVarTokenGather", x_RLC, indices_RK, name="gather"), indices_RK

        def all_of_them() -> tuple[str, str]:
            no_index = helper.make_tensor("no_index", TensorProto.INT64, [1], [0])
            nowhere_00 = b.op("ConstantOfShape", b.ints(0, 0), value=no_index, name="nowhere")
            return b.op("Identity", x_RLC, name="all_tokens"), nowhere_00

        kept_RKC, indices_RK = b.choose(self.selects, some, all_of_them, ["float32", "int64"], "input")
        return kept_RKC, indices_RK

    def _ffn(self, weights: str, x_RKC: str) -> tuple[str, str]:
        """See `FFN`."""
        b, config = self.b, self.config
        x_MC = b.reshape(x_RKC, -1, config.width)
        if not self.routes:
            return dense_ffn(b, weights, x_MC), ""
        experts = config.activation.experts if config.activation else 1
        if self.masks:
            return self._masked_ffn(weights, experts, x_RKC, x_MC)
        places, scores_RKN = self._places_of_experts(weights, experts, x_RKC, x_MC)
        fc1, fc2 = f"{weights}.fc1", f"{weights}.fc2"
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
                    places_t1 = b.reshape(places_t, -1, 1)
                    sum_MC = b.op("ScatterND", sum_MC, places_t1, out_tC, reduction="add", name="sum")
            return (sum_MC,)

        def all_at_once() -> tuple[str]:
            hidden_MF = b.op("Concat", *hidden, axis=1, name="hidden")
            return (b.op("Gemm", hidden_MF, b.weight(f"{fc2}.weight_t"), b.weight(f"{fc2}.bias"), name="fc2"),)

        (changed_MC,) = b.choose(self.routes, sum_of_chosen, all_at_once, ["float32"], "change")
        return changed_MC, scores_RKN

    def _masked_ffn(self, weights: str, experts: int, x_RKC: str, x_MC: str) -> tuple[str, str]:
        """All scales by the same nodes, as the experts that are not chosen are multiplied, too."""
        b = self.b

        def some() -> tuple[str, str]:
            scores_MN, scores_RKN = self._scores(weights, experts, x_RKC, x_MC)
            return chosen_experts(b, scores_MN, self.active_1), scores_RKN

        def all_of_them() -> tuple[str, str]:
            rows_1 = b.op("Shape", x_MC, start=0, end=1, name="rows")
            shape_MN = b.op("Concat", rows_1, b.ints(experts), axis=0, name="gate_shape")
            all_MN = b.op("Expand", b.scalar(1.0), shape_MN, name="all")
            return all_MN, b.op("ConstantOfShape", b.ints(0, 0, experts), name="no_scores")

        gate_MN, scores_RKN = b.choose(self.routes, some, all_of_them, ["float32", "float32"], "gate")
        return dense_ffn(b, weights, x_MC, gate_MN), scores_RKN

    def _scores(self, weights: str, experts: int, x_RKC: str, x_MC: str) -> tuple[str, str]:
        """The router's, MN and RKN."""
        b = self.b
        scores_MN = linear(b, x_MC, f"{weights}.router", "router")
        rows_tokens = b.op("Shape", x_RKC, start=0, end=2, name="rows_tokens")
        shape_RKN = b.op("Concat", rows_tokens, b.ints(experts), axis=0, name="scores_shape")
        return scores_MN, b.op("Reshape", scores_MN, shape_RKN, name="scores")

    def _places_of_experts(self, weights: str, experts: int, x_RKC: str, x_MC: str) -> tuple[Sequence[str], str]:
        """Each expert's tokens, as places [t] in M, and what they were chosen by, RKN; all, by nothing, if all work."""
        b = self.b

        def chosen() -> tuple[str, ...]:
            scores_MN, scores_RKN = self._scores(weights, experts, x_RKC, x_MC)
            _, chosen_MA = b.ops("TopK", scores_MN, self.active_1, count=2, axis=1, name="chosen")
            places = []
            for e in range(experts):
                places_2t = b.op("NonZero", b.op("Equal", chosen_MA, b.int_scalar(e), name="is_chosen"), name="places")
                places.append(b.op("Gather", places_2t, b.int_scalar(0), axis=0, name="tokens"))
            return *places, scores_RKN

        def all_of_them() -> tuple[str, ...]:
            rows_1 = b.op("Shape", x_MC, start=0, end=1, name="rows")
            rows = b.op("Squeeze", rows_1, name="rows_scalar")
            all_M = b.op("Range", b.int_scalar(0), rows, b.int_scalar(1), name="all")
            places = [b.op("Identity", all_M, name="all_tokens") for _ in range(experts)]
            return *places, b.op("ConstantOfShape", b.ints(0, 0, experts), name="no_scores")

        *places, scores_RKN = b.choose(self.routes, chosen, all_of_them, [*["int64"] * experts, "float32"], "experts")
        return places, scores_RKN
