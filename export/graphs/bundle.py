"""The graphs of a bundle: condition, each scale, decoder, encoder, and those that run every scale (docs/bundle.md).

Knows what goes in and out of each, in the shapes of `actvar.bundle.contract`, and how the KV cache passes. No weights
and no model: a graph names tensors of the weights file, whatever they hold.

Letters in shapes: B pictures, G groups of rows (conditional, then where a scale is guided unconditional), R = G * B
rows, D depth, C width, L tokens of a scale, E code width, H side of f_hat, h heads, T tokens that the KV cache has room
for, P of them filled, K kept, d = 64, V codes, A active experts.
"""

from collections.abc import Callable, Mapping

from onnx import TensorProto, helper

from actvar.bundle.contract import ENCODER, SCALE_INPUT, Dimension, Shape, contract, graph_names, kv_parts
from actvar.bundle.manifest import StoredTensor
from actvar.config import DYNAMIC, HEAD_WIDTH, ModelConfig
from actvar.export.graphs.builder import GraphBuilder
from actvar.export.graphs.decoder import DecoderWriter
from actvar.export.graphs.encoder import EncoderWriter, quantize
from actvar.export.graphs.layers import linear
from actvar.export.graphs.scale import EXPERTS, HIDDEN, KEPT, LOGITS, ScaleWriter
from actvar.export.graphs.sizes import AllScales, OneScale, Sizes
from actvar.export.graphs.small_decoder import SmallDecoderWriter
from actvar.export.graphs.transformer import Cache
from actvar.export.graphs.weights_file import BLOCK_TYPES, DECODER_TYPES, positions_name
from actvar.uniforms import random_input

_INTEGERS = (SCALE_INPUT, "class_ids", "given", "token_ids", "top_k", KEPT, EXPERTS)
_ATTENTION = ("past_kv", "new_kv")  # in the precision of the blocks; all other tensors between graphs are fp32


def build_graph(
    name: str, config: ModelConfig, weights: Mapping[str, StoredTensor], precision: str, debug: bool = False
) -> GraphBuilder:
    """One of `graph_names(config)`, or the encoder.

    Args:
        name: of the graph.
        config: the model's.
        weights: what the weights file holds.
        precision: of `actvar.bundle.contract.PRECISIONS`.
        debug: let scale graphs give what `scale.LOGITS` and the others name, too.
    """
    blocks = BLOCK_TYPES[precision]
    b = GraphBuilder(name, weights, DECODER_TYPES[precision] if name in ("decoder", ENCODER) else blocks)
    inputs, outputs = contract(config, name)
    _declare(b.input, inputs, blocks)
    if name == "condition":
        _condition(b, config)
    elif name == "decoder":
        if config.small_decoder:
            SmallDecoderWriter(b, config.small_decoder, len(config.vqvae.ch_mult) - 1).decode("f_hat")
        else:
            DecoderWriter(b, config.vqvae, config.schedule.side).decode("f_hat")
    elif name == ENCODER:
        quantize(b, config, EncoderWriter(b, config.vqvae, config.schedule.side).encode("picture"))
    else:
        si = graph_names(config).index(name) - 1
        sizes = OneScale(b, config, si)
        _scale(ScaleWriter(b, config, sizes, debug=debug), si)
        if debug:
            kept, active = config.kept_tokens(si), config.active_experts(si)
            rows = config.row_groups(si), "B"
            outputs |= _debug_outputs(config, sizes, rows, config.schedule.tokens[si], kept, active)
    _declare(b.output, outputs, blocks)
    return b


def build_scales(
    config: ModelConfig, weights: Mapping[str, StoredTensor], masks: bool = False, debug: bool = False
) -> GraphBuilder:
    """A graph that runs every scale, for ONNX Runtime on the CPU: in fp32, or in int8 where the weights file is.

    There the matrices of a session are packed into the layout that its kernels read, in memory of the session's own.
    Twelve sessions would keep ten copies of them; one session keeps one, and a small scale takes a third to a half less
    time than with weights that are not packed (docs/cpu.md).

    It reads what the scale graphs read (`actvar.bundle.contract`), and the scale's index, `SCALE_INPUT`; a scale that
    reads no `tokens_in` or `start` is given any. It gives what they give; what the last scale does not give is there,
    and means nothing. Only the KV cache passes otherwise (`kv_parts`): each block's keys and values are read as the
    scale before gave them, and what attention puts together of old and new ones is given, so that nothing is copied
    but by that.

    Args:
        config: the model's.
        weights: what the weights file holds.
        masks: leave experts out by a mask (`experts.py`); in int8 there is no other way.
        debug: see `build_graph`; what a scale does not leave out is empty.
    """
    b = GraphBuilder("scales", weights, "float32")
    width, codes, side, cache = config.width, config.vqvae.z_channels, config.schedule.side, kv_parts(config)
    f_hat: Shape = ("B", codes, side, side)
    groups = config.row_groups(0)
    every = {config.row_groups(si) for si in range(len(config.schedule))}
    own: Dimension = groups if len(every) == 1 else "G"
    inputs: dict[str, Shape] = {SCALE_INPUT: (), "start": (own, "B", 1, width), "tokens_in": ("B", "L", codes)}
    inputs |= {"f_hat": f_hat, "modulation": (config.depth, groups, "B", 6, width)}
    randoms: Shape = ("B", "L", config.vqvae.vocab_size) if config.smooth else ("B", "L")
    inputs |= {"head_modulation": (groups, "B", 2, width), random_input(config): randoms, "given": ("B", "L")}
    inputs |= {"cfg": (), "top_k": (), "top_p": ()} if config.is_guided else {"top_k": (), "top_p": ()}
    inputs |= {past: (own, "B", config.heads, "P", HEAD_WIDTH) for past, _ in cache}
    _declare(b.input, inputs)

    sizes = AllScales(b, config)
    writer = ScaleWriter(b, config, sizes, masks, debug)
    of_blocks = zip(cache[::2], cache[1::2], strict=True)
    caches = [Cache((past_k, past_v), (k, v)) for (past_k, k), (past_v, v) in of_blocks]
    writer.hand_on(writer.draw(writer.blocks(writer.embedded(), caches)[-1].x_RLC))

    outputs: dict[str, Shape] = {"token_ids": ("B", "L"), "next_f_hat": f_hat, "next_tokens_in": ("B", "next_L", codes)}
    outputs |= {kv: (own, "B", config.heads, "T", HEAD_WIDTH) for _, kv in cache}
    if debug:
        outputs |= _debug_outputs(config, sizes, (own, "B"), "L", "K", "A")
    _declare(b.output, outputs)
    return b


def _debug_outputs(
    config: ModelConfig, sizes: Sizes, rows: Shape, tokens: Dimension, kept: Dimension, active: Dimension
) -> dict[str, Shape]:
    """Shapes of what a scale gives for debugging, by its rows [G, B] and what each of them keeps."""
    outputs: dict[str, Shape] = {
        LOGITS: ("B", tokens, config.vqvae.vocab_size),
        HIDDEN: (config.depth, *rows, tokens, config.width),
    }
    if sizes.selects is not False:
        outputs[KEPT] = (config.depth, *rows, kept)
    if sizes.routes is not False and config.activation and config.activation.expert_choice == DYNAMIC:
        outputs[EXPERTS] = (config.depth, *rows, kept, active)
    return outputs


def _declare(add: Callable[[str, str, Shape], str], tensors: Mapping[str, Shape], blocks: str = "float32") -> None:
    """Inputs or outputs, of a graph whose blocks compute in this type."""
    for name, shape in tensors.items():
        add(name, "int64" if name in _INTEGERS else blocks if name in _ATTENTION else "float32", shape)


def _condition(b: GraphBuilder, config: ModelConfig) -> None:
    """All that the class decides: AdaLN of every block and of the head, and the first token."""
    width, groups, rows_R = config.width, config.row_groups(0), "class_ids"
    if groups == 2:
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
    b.op("Reshape", b.op("Concat", *each, axis=0), b.ints(config.depth, groups, -1, 6, width), output="modulation")

    head_M = linear(b, silu_RC, "var.head_nm.ada_lin.1", "head_nm")
    b.op("Reshape", head_M, b.ints(groups, -1, 2, width), output="head_modulation")
    b.op("Add", b.reshape(embedded_RC, groups, -1, 1, width), b.weight(positions_name(0)), output="start")


def _adaln(b: GraphBuilder, config: ModelConfig, silu_RC: str, layer: str) -> str:
    """gamma1, gamma2, scale1, scale2, shift1, shift2, [R, 6, C]."""
    return b.reshape(b.to_fp32(linear(b, b.to_compute(silu_RC), layer, layer)), -1, 6, config.width)


def _scale(writer: ScaleWriter, si: int) -> None:
    """The graph of scale index si, which reads its part of the KV cache and gives what is to be added to it."""
    b, config, last = writer.b, writer.config, si + 1 == len(writer.config.schedule)
    x_RLC = writer.embedded()
    blocks = writer.blocks(x_RLC, _past(b, config, si))
    if not last:
        new_kv = [part for block in blocks for part in block.new_kv]
        kept = config.kept_tokens(si)
        shape = b.ints(config.depth, 2, config.row_groups(si), -1, config.heads, kept, HEAD_WIDTH)
        b.op("Reshape", b.op("Concat", *new_kv, axis=0, name="kv"), shape, output="new_kv")
    next_f_hat = writer.draw(blocks[-1].x_RLC)
    if not last:
        writer.hand_on(next_f_hat)


def _past(b: GraphBuilder, config: ModelConfig, si: int) -> list[Cache]:
    """Each block's keys and values of the first P tokens: the part of `past_kv` that the scales before si filled.

    After the last guided scale only that of the first group: it is a place of its own in each block's part.
    """
    cached, capacity = config.cached_tokens[si], config.cached_tokens[-1]
    if cached == 0:
        return [Cache()] * config.depth
    apart = config.row_groups(0) // config.row_groups(si)  # groups that are places of their own
    flat = b.reshape("past_kv", 2 * config.depth * apart, -1, config.heads, capacity, HEAD_WIDTH)
    axes, first_axis = b.ints(0, 3), b.ints(0)
    parts = []
    for place in range(2 * config.depth):
        with b.scope(f"blocks.{place // 2}"):
            name = f"past_{'kv'[place % 2]}"
            first = b.ints(place * apart, 0), b.ints(place * apart + 1, cached)
            window = b.op("Slice", flat, *first, axes, name=f"{name}_window")
            parts.append(b.op("Squeeze", window, first_axis, name=name))
    return [Cache(past) for past in zip(parts[::2], parts[1::2], strict=True)]
