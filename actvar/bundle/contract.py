"""The contract between a bundle's graphs: their names, what passes between them, in which shapes and types.

Plain Python: what the exporter writes, what the manifest is held to, and what a runtime allocates by.

Letters in shapes: B pictures, which stands in the manifest by name, all else by number. G groups of rows, 2 or 1: the
conditional rows of all pictures, then where a scale is guided the unconditional ones. L tokens of a scale, E code
width, H side of f_hat, C width, D depth, h heads, T tokens that the KV cache has room for, P of them filled, K tokens
kept, d = 64.

Rows are two dimensions, [G, B], so that whoever chooses B alone has chosen all sizes; a graph puts them together as
R = G * B rows by a reshape, which moves nothing. After the last guided scale a graph is given both groups, and reads
the first of each block's cache and modulation alone.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from actvar.config import HEAD_WIDTH, ModelConfig

SCALES, MASKED_SCALES = "scales", "scales_masked"
"""The graphs that run every scale. A bundle that is drawn in fp32 or int8 has the first, and of an ActVAR in fp32 the
second, too."""
Precision: TypeAlias = Literal["fp32", "fp16", "bf16", "int8", "fp16-weights"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
CPU_PRECISIONS = ("int8", "fp16-weights")
HALF_PRECISIONS = ("fp16", "bf16")
"""Those that are for ONNX Runtime on the CPU alone."""
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int8": 1, "uint8": 1, "bool": 1}
"""Every type that a tensor of a bundle may have, and the bytes of one value."""

EXPERTS_OPERATOR = "ActVarRoutedFFN"
"""Of our own operators the one that is about experts; all others are about tokens."""

SCALE_INPUT = "scale"
"""What the graph of all scales reads besides what the scales read: the scale's index, from 0."""

ENCODER = "encoder"
"""The graph that makes codes of a picture, for editing. A bundle may do without; drawing never runs it."""

DRAWN = -1
"""What stands in a scale's input `given` for a token that is to be drawn."""

MAX_SCALES = 64

Dimension = int | str
Shape = tuple[Dimension, ...]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph. Dimensions are numbers, or "B" for pictures."""

    name: str
    dtype: str
    shape: Shape

    def sized(self, pictures: int) -> tuple[int, ...]:
        """Its shape for a batch."""
        return tuple(pictures if isinstance(size, str) else size for size in self.shape)


def scale_name(si: int) -> str:
    """The graph of scale index si (from 0)."""
    return f"scale_{si + 1:02d}"


def graph_names(model: ModelConfig) -> tuple[str, ...]:
    """The graphs that draw, in the order in which they run; a bundle has them all, and mostly `ENCODER` behind them."""
    return ("condition", *(scale_name(si) for si in range(len(model.schedule))), "decoder")


def kv_parts(model: ModelConfig) -> tuple[tuple[str, str], ...]:
    """What the graph of all scales reads in place of `past_kv`, and gives in place of `new_kv`: names in pairs.

    Of each block its keys, then its values. It reads those of the scales before, [G, B, h, P, d], and gives what the
    next scale reads, [G, B, h, P + K, d]: one behind the other, they are the whole cache, without a gap.
    """
    places = [(part, block) for block in range(model.depth) for part in ("keys", "values")]
    return tuple((f"past_{part}_{block}", f"kv_{part}_{block}") for part, block in places)


def contract(model: ModelConfig, graph: str) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """The shapes of all that a graph may read, and of all that it must give back, by name (docs/bundle.md).

    A graph leaves out inputs that it has no use for, and may give back more. `past_kv` is the whole KV cache: a scale
    reads the part that the scales before it have filled, so that the cache is allocated once and never moved.
    `next_f_hat` is f_hat with this scale's tokens added: in ONNX an output cannot bear an input's name. `cfg` is the
    strength at the last scale; the ramp up to it is the graph's, and a scale that is not guided has no `cfg`. `given`
    holds codes that take the places of drawn ones, and `DRAWN` where there is none. `uniform` decides what is drawn, or
    `noise` where codes are mixed.
    """
    width, depth, code, side = model.width, model.depth, model.vqvae.z_channels, model.schedule.side
    groups = model.row_groups(0)
    modulation: dict[str, Shape] = {
        "modulation": (depth, groups, "B", 6, width),
        "head_modulation": (groups, "B", 2, width),
    }
    f_hat: dict[str, Shape] = {"f_hat": ("B", code, side, side)}
    picture: Shape = ("B", 3, model.picture_size, model.picture_size)
    if graph == "condition":
        return {"class_ids": ("B",)}, {**modulation, "start": (groups, "B", 1, width)}
    if graph == "decoder":
        return f_hat, {"image": picture}
    if graph == ENCODER:
        return {"picture": picture}, {"token_ids": ("B", model.schedule.total)}

    si = graph_names(model).index(graph) - 1
    tokens = model.schedule.tokens
    own_groups, rest = model.row_groups(si), (model.heads, model.kept_tokens(si), HEAD_WIDTH)
    first: dict[str, Shape] = {"start": (groups, "B", 1, width)} if si == 0 else {"tokens_in": ("B", tokens[si], code)}
    guidance: dict[str, Shape] = {"cfg": ()} if own_groups == 2 else {}
    randoms: dict[str, Shape] = {"uniform": ("B", tokens[si])}
    if model.smooth:
        randoms = {"noise": ("B", tokens[si], model.vqvae.vocab_size)}
    drawing: dict[str, Shape] = {**randoms, "given": ("B", tokens[si]), **guidance, "top_k": (), "top_p": ()}
    room = (model.heads, model.cached_tokens[-1], HEAD_WIDTH)
    past: dict[str, Shape] = {"past_kv": (depth, 2, groups, "B", *room)} if si else {}
    inputs = {**first, **f_hat, **modulation, **drawing, **past}
    outputs: dict[str, Shape] = {"token_ids": ("B", tokens[si]), "next_f_hat": f_hat["f_hat"]}
    if si + 1 < len(tokens):  # the last scale feeds nothing
        outputs |= {"next_tokens_in": ("B", tokens[si + 1], code), "new_kv": (depth, 2, own_groups, "B", *rest)}
    return inputs, outputs
