"""The graphs of a bundle: condition, one for each scale, decoder (docs/bundle.md).

Knows what goes in and out of each, in the shapes of `actvar.bundle.contract`, and how its parts are joined. No weights
and no model: a graph names tensors of the weights file, whatever they hold.

Letters in shapes: B pictures, R = 2B rows (conditional, then unconditional), D depth, C width, L tokens of a scale, E
code width, H side of f_hat, h heads, T tokens that the KV cache has room for, P of them filled, K kept, d = 64, V
codes, N experts, A active experts, M = B * L.
"""

from collections.abc import Mapping, Sequence

from onnx import TensorProto, helper

from actvar.bundle.contract import Shape, contract, graph_names
from actvar.bundle.manifest import StoredTensor
from actvar.config import HEAD_WIDTH, ModelConfig
from actvar.export.graphs import precision as dtypes
from actvar.export.graphs.builder import GraphBuilder
from actvar.export.graphs.decoder import DecoderWriter
from actvar.export.graphs.sampler import add_tokens, guided_logits, next_tokens_in, resize, sample
from actvar.export.graphs.transformer import BlockWriter, KeysValues, WrittenBlock, linear, modulated_norm
from actvar.export.graphs.weights_file import positions_name

LOGITS, HIDDEN, KEPT, EXPERTS = "logits", "hidden", "kept", "experts"
"""What a scale graph gives besides the contract's outputs when it is built for debugging; see `debug_outputs`."""

_INTEGERS = ("class_ids", "token_ids", "top_k", KEPT, EXPERTS)
_ATTENTION = ("past_kv", "new_kv")  # in the precision of the blocks; all other tensors between graphs are fp32


def build_graph(
    name: str, config: ModelConfig, weights: Mapping[str, StoredTensor], precision: str, debug: bool = False
) -> GraphBuilder:
    """One of `graph_names(config)`.

    Args:
        name: of the graph.
        config: the model's.
        weights: what the weights file holds.
        precision: "fp32", "fp16" or "bf16".
        debug: let scale graphs give `debug_outputs`, too.
    """

    def dtype(tensor: str) -> str:
        return "int64" if tensor in _INTEGERS else attention if tensor in _ATTENTION else "float32"

    attention = dtypes.BLOCKS[precision]
    b = GraphBuilder(name, weights, dtypes.DECODER[precision] if name == "decoder" else attention)
    inputs, outputs = contract(config, name)
    for tensor, shape in inputs.items():
        b.input(tensor, dtype(tensor), shape)
    if name == "condition":
        _condition(b, config)
    elif name == "decoder":
        DecoderWriter(b, config.vqvae, config.schedule.side).decode("f_hat")
    else:
        si = graph_names(config).index(name) - 1
        _scale(b, config, si, debug)
        if debug:
            outputs |= debug_outputs(config, si)
    for tensor, shape in outputs.items():
        b.output(tensor, dtype(tensor), shape)
    return b


def debug_outputs(config: ModelConfig, si: int) -> dict[str, Shape]:
    """Shapes of what lets a comparison look into the graph of scale index si.

    The guided logits; every block's output; where blocks leave something out, the places of the kept tokens and the
    chosen experts of each, both ascending.
    """
    tokens, keep, active = config.schedule.tokens[si], config.kept_tokens(si), config.active_experts(si)
    outputs: dict[str, Shape] = {
        LOGITS: ("B", tokens, config.vqvae.vocab_size),
        HIDDEN: (config.depth, "R", tokens, config.width),
    }
    if keep < tokens:
        outputs[KEPT] = (config.depth, "R", keep)
    if config.activation and active < config.activation.experts:
        outputs[EXPERTS] = (config.depth, "R", keep, active)
    return outputs


def _condition(b: GraphBuilder, config: ModelConfig) -> None:
    """All that the class decides: AdaLN of every block and of the head, and the first token."""
    width = config.width
    no_class = helper.make_tensor("no_class", TensorProto.INT64, [1], [config.num_classes])
    unconditional_B = b.op("ConstantOfShape", b.op("Shape", "class_ids"), value=no_class, name="no_class")
    rows_R = b.op("Concat", "class_ids", unconditional_B, axis=0, name="rows")
    embedded_RC = b.op("Gather", b.weight("var.class_emb.weight"), rows_R, axis=0, name="class_emb")
    silu_RC = b.op("Mul", embedded_RC, b.op("Sigmoid", embedded_RC), name="silu")

    blocks = [f"var.blocks.{i}" for i in range(config.depth)]
    if config.shared_adaln:
        shared_R6C = _adaln(b, config, silu_RC, "var.shared_ada_lin.1")
        each = [b.op("Add", shared_R6C, b.weight(f"{block}.ada_gss", (6, width)), name=block) for block in blocks]
    else:
        each = [_adaln(b, config, silu_RC, f"{block}.ada_lin.1") for block in blocks]
    b.op("Reshape", b.op("Concat", *each, axis=0), b.ints(config.depth, -1, 6, width), output="modulation")

    head_M = linear(b, silu_RC, "var.head_nm.ada_lin.1", "head_nm")
    b.op("Reshape", head_M, b.ints(-1, 2, width), output="head_modulation")
    b.op("Add", b.reshape(embedded_RC, -1, 1, width), b.weight(positions_name(0)), output="start")


def _adaln(b: GraphBuilder, config: ModelConfig, silu_RC: str, layer: str) -> str:
    """gamma1, gamma2, scale1, scale2, shift1, shift2, [R, 6, C]."""
    return b.reshape(b.to_fp32(linear(b, b.to_compute(silu_RC), layer, layer)), -1, 6, config.width)


def _scale(b: GraphBuilder, config: ModelConfig, si: int, debug: bool) -> None:
    """One step of a picture: tokens of scale si, and what the next scale needs."""
    tokens, last = config.schedule.tokens[si], si == len(config.schedule) - 1
    writer = BlockWriter(b, config, si)
    x_RLC = _embedded(b, config, si) if si else "start"
    blocks: list[WrittenBlock] = []
    for i, past in enumerate(_past(b, config, si)):
        modulation_R6C = b.op("Gather", "modulation", b.int_scalar(i), axis=0, name=f"blocks.{i}/modulation")
        blocks.append(writer.block(i, x_RLC, modulation_R6C, past))
        x_RLC = blocks[-1].x_RLC
    if debug:
        routes = any(block.router_scores_RKN for block in blocks)
        look_inside(b, blocks, b.ints(config.active_experts(si)) if routes else "")
    if not last:
        new_kv = [part for block in blocks for part in (block.new_kv.keys, block.new_kv.values)]
        shape = b.ints(config.depth, 2, -1, config.heads, config.kept_tokens(si), HEAD_WIDTH)
        b.op("Reshape", b.op("Concat", *new_kv, axis=0, name="kv"), shape, output="new_kv")

    with b.scope("head"):
        scale_R1C, shift_R1C = b.split("head_modulation", 2, axis=1, name="modulation")
        normed_RLC = modulated_norm(b, config.width, x_RLC, scale_R1C, shift_R1C)
        logits_MV = guided_logits(b, config.width, b.scalar(config.schedule.cfg_ramp(si)), normed_RLC, "cfg")
        shape = b.ints(-1, tokens, config.vqvae.vocab_size)
        logits_BLV = b.op("Reshape", logits_MV, shape, output=LOGITS if debug else "")
    token_ids_BL = sample(b, logits_BLV, config.vqvae.vocab_size, "uniform", "top_k", "top_p")
    schedule, codes = config.schedule, config.vqvae.z_channels
    side, p, phi = schedule.side, schedule.patch_nums[si], f"vqvae.quantize.phi.{schedule.phi_indices[si]}"
    weights = b.weight(f"{phi}.weight"), b.weight(f"{phi}.bias")
    up = resize(b, p, side, "bicubic")
    next_f_hat = add_tokens(b, token_ids_BL, "f_hat", b.ints(-1, codes, p, p), up, weights)
    if not last:
        down = resize(b, side, schedule.patch_nums[si + 1], "area")
        next_tokens_in(b, next_f_hat, down, b.ints(-1, codes, schedule.tokens[si + 1]))


def look_inside(b: GraphBuilder, blocks: Sequence[WrittenBlock], active_1: str) -> dict[str, str]:
    """Write the debug outputs of the blocks, of each one part, stacked; returns their names, with their types.

    The choice of experts itself is inside an operator: here it is made again, by the same rule, from `active_1`, their
    number as a shape of one dimension.
    """
    parts: dict[str, list[str]] = {HIDDEN: [block.x_RLC for block in blocks], KEPT: [], EXPERTS: []}
    for block in blocks:
        if block.kept_RK:
            parts[KEPT].append(block.kept_RK)
        if block.router_scores_RKN:
            _, best_RKA = b.ops("TopK", block.router_scores_RKN, active_1, count=2, axis=-1, name="best_experts")
            ascending_RKA, _ = b.ops("TopK", best_RKA, active_1, count=2, axis=-1, largest=0, name="experts_in_order")
            parts[EXPERTS].append(ascending_RKA)
    given = {name: values for name, values in parts.items() if values}
    for name, values in given.items():
        apart = [b.op("Unsqueeze", value, b.ints(0), name=f"{name}_of_block") for value in values]
        b.op("Concat", *apart, axis=0, output=name)
    return {name: "float32" if name == HIDDEN else "int64" for name in given}


def _embedded(b: GraphBuilder, config: ModelConfig, si: int) -> str:
    """The blocks' input RLC: both rows of a picture read the same tokens."""
    with b.scope("embed"):
        tokens_ME = b.reshape("tokens_in", -1, config.vqvae.z_channels)
        words_MC = linear(b, tokens_ME, "var.word_embed", "word")
        words_BLC = b.reshape(words_MC, -1, config.schedule.tokens[si], config.width)
        x_BLC = b.op("Add", words_BLC, b.weight(positions_name(si)), name="position")
        return b.op("Concat", x_BLC, x_BLC, axis=0, name="rows")


def _past(b: GraphBuilder, config: ModelConfig, si: int) -> list[KeysValues | None]:
    """Each block's keys and values of the first P tokens: the part of `past_kv` that the scales before si filled."""
    cached, capacity = config.cached_tokens[si], config.cached_tokens[-1]
    if cached == 0:
        return [None] * config.depth
    flat = b.reshape("past_kv", 2 * config.depth, -1, config.heads, capacity, HEAD_WIDTH)
    axes, first_axis = b.ints(0, 3), b.ints(0)
    parts = []
    for place in range(2 * config.depth):
        with b.scope(f"blocks.{place // 2}"):
            name = f"past_{'kv'[place % 2]}"
            window = b.op("Slice", flat, b.ints(place, 0), b.ints(place + 1, cached), axes, name=f"{name}_window")
            parts.append(b.op("Squeeze", window, first_axis, name=name))
    return [KeysValues(keys, values) for keys, values in zip(parts[::2], parts[1::2], strict=True)]
