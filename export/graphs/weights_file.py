"""The tensors that a bundle's graphs share: what they are called, how they are laid out, and the file that holds them.

Every learned tensor is written once, and all graphs point into the one file. Its layout is chosen so that no graph has
to transpose, slice, convert or copy a weight, because an engine that does so keeps a copy of its own:

- linear layers stay [out, in], as in the checkpoint, for `Gemm(transB=1)`. Measured with ONNX Runtime without
  prepacking: as fast as [in, out] for 50 rows and more, 10 to 15 % faster below.
- fc1 [4C, C] and fc2, turned to [4C, C], are also N experts of [de, C] one after the other: the routed FFN reads the
  same bytes under the shape [N, de, C]. Static experts lie in their block's order, best first, so that a scale reads as
  many of the first rows as it uses.
- what depends on the checkpoint alone is computed here: sums of embeddings, the joint bias of Q, K and V, the query
  scales, phi as a single convolution, the decoder's convolutions of upsampled maps as convolutions of the maps.

Names are those of `ActVAR.state_dict()` where a tensor is what the checkpoint holds, in its shape and order.

All of it is numpy's arithmetic, in fp32, one tensor at a time.

Letters in shapes: C width, L tokens of one scale, h heads, E code width, N experts, de = 4C / N.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import ml_dtypes
import numpy as np

from actvar.bundle.manifest import StoredTensor, WeightsSpec
from actvar.config import DYNAMIC, MAX_SCALE_MUL, ModelConfig
from actvar.errors import CheckpointError
from actvar.export.graphs import int8
from actvar.export.graphs.builder import SHORT
from actvar.parameters import parameter_shapes
from actvar.scales import ScaleSchedule

ALIGNMENT = 4096
"""Every tensor starts at a multiple of this: a page, so that it can be mapped into memory by itself."""

SUBPIXEL_CONV = "subpixel_conv"
"""What an upsampling layer's convolution is called here: it is not the checkpoint's; see `subpixel_weight`."""

# What a precision decides: the matrices of the blocks, convolutions of decoder and encoder, the decoder's norms. The
# rest is small or must be exact, so it is always fp32: embeddings (the residual stream), selector and router, head,
# codebook and phi (f_hat), the encoder's norms. Softmax and sampling are computed in fp32, too.
_BLOCKS = re.compile(r"var\.(blocks\.\d+\.(attn\.(mat_qkv|proj)|ffn\.fc[12]|ada_lin)|shared_ada_lin)\.")
_OF_ENCODER = ("vqvae.encoder.", "vqvae.quant_conv.")
_OF_DECODER = ("vqvae.post_quant_conv.", "vqvae.decoder.", "small_decoder.")
_CONVOLUTIONS = re.compile(r"vqvae\.((post_)?quant_conv|decoder|encoder(?!.*norm))\.|small_decoder\.")
_UPSAMPLING = re.compile(r"((?:vqvae\.decoder|small_decoder)\..*upsample)\.conv\.(weight|bias)")

BLOCK_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "float32", "fp16-weights": "float32"}
"""By precision, what the blocks' matrices and attention compute in, with the KV cache. In int8 the matrices are whole
numbers (`int8.py`), and what goes into them and comes out is fp32, as attention is."""

DECODER_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "float16", "int8": "float32", "fp16-weights": "float32"}
"""By precision, what the convolutions and attention of decoder and encoder compute in. In opset 20 `Conv` has no
bfloat16, so those of a bf16 bundle are fp16: activations are bounded by the norms before them, and do not need
bfloat16's range as a transformer's may."""

Read: TypeAlias = Callable[[str], np.ndarray]
"""Gives a tensor of a model, in fp32, by its name in `ActVAR.state_dict()`."""

_HELD = {"fp16-weights": "float16"}  # the blocks' matrices, where not in what they are multiplied in: graphs widen them


def positions_name(si: int) -> str:
    """The sum of position and level embeddings of scale index si (from 0); at scale 0 with the start embedding too."""
    return f"var.positions.{si}"


def static_pieces(config: ModelConfig) -> list[tuple[int, int]]:
    """Rows of the FFN's matrices, from a start to an end, that scales with static experts run alike; all that are run.

    Every scale's own rows are the first few of these, whole.
    """
    assert config.activation is not None
    counts = {config.active_experts(si) for si in range(len(config.schedule))}
    of_one = config.hidden // config.activation.experts
    return list(pairwise(of_one * count for count in (0, *sorted(counts))))


@dataclass(frozen=True)
class _Recipe:
    """How a deployed tensor comes from tensors of the model."""

    sources: tuple[str, ...]
    make: Callable[..., np.ndarray] = lambda tensor: tensor

    def dtype(self, name: str, precision: str) -> str:
        """What the file holds it in."""
        if _BLOCKS.match(name):
            computed = BLOCK_TYPES[precision]
            return computed if name.endswith(".bias") else _HELD.get(precision, computed)
        return DECODER_TYPES[precision] if _CONVOLUTIONS.match(name) else "float32"

    def compute(self, read: Read) -> np.ndarray:
        return self.make(*map(read, self.sources))

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Of the result, by the shapes of the model's tensors."""
        zero = np.zeros((), np.float32)  # in every place, at no cost
        return self.compute(lambda source: np.broadcast_to(zero, shapes[source])).shape


@dataclass(frozen=True)
class _InOrder:
    """Rows of an FFN's matrix or bias, in the order of its static experts: those with the highest score first.

    Attributes:
        rows: of all experts, in the model's order.
        scores: the name of what orders them.
        end, start: those of the ordered rows that are meant.
    """

    rows: _Recipe
    scores: str
    end: int
    start: int = 0

    def compute(self, read: Read) -> np.ndarray:
        rows, order_N = self.rows.compute(read), expert_order(read(self.scores))
        ordered = rows.reshape(len(order_N), -1, *rows.shape[1:])[order_N]
        return ordered.reshape(rows.shape)[self.start : self.end]

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """See `_Recipe`. Nothing is put in order: it would be a copy of all weights."""
        return (self.end - self.start, *self.rows.shape(shapes)[1:])

    def dtype(self, name: str, precision: str) -> str:
        """See `_Recipe`."""
        return self.rows.dtype(name, precision)


@dataclass(frozen=True)
class _Int8Recipe:
    """One part of a matrix's int8 form: whole numbers, or what they are multiplied with.

    Attributes:
        matrix: [O, I], or [I, O] if it is `turned`.
        part: takes the matrix as [I, O].
        of_shape: the part's shape, by I and O.
    """

    matrix: "_AnyRecipe"
    turned: bool
    part: Callable[[np.ndarray], np.ndarray]
    of_shape: Callable[[int, int], tuple[int, ...]]

    def compute(self, read: Read) -> np.ndarray:
        made = self.matrix.compute(read)
        return self.part(made if self.turned else made.T)

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """See `_Recipe`. Nothing is computed: it would be all weights' rounding."""
        one, other = self.matrix.shape(shapes)
        return self.of_shape(one, other) if self.turned else self.of_shape(other, one)

    def dtype(self, name: str, precision: str) -> str:
        """See `_Recipe`."""
        return "float32" if name.endswith(int8.SCALES) else "int8"


@dataclass(frozen=True, eq=False)
class _Given:
    """A tensor that is there already."""

    tensor: np.ndarray

    def compute(self, read: Read) -> np.ndarray:
        return self.tensor

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """See `_Recipe`."""
        return self.tensor.shape

    def dtype(self, name: str, precision: str) -> str:
        """See `_Recipe`."""
        return self.tensor.dtype.name


_AnyRecipe = _Recipe | _InOrder | _Int8Recipe | _Given


@dataclass(frozen=True)
class WeightsFile:
    """The weights file of a model: where everything in it lies, before there are weights, and how it is filled.

    Attributes:
        layout: without a hash, as there is no content yet.
    """

    layout: WeightsSpec
    _recipes: Mapping[str, _AnyRecipe]

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        precision: str,
        decoder: Mapping[str, np.ndarray] | None = None,
        encoder: bool = True,
    ) -> "WeightsFile":
        """The file of a bundle of this precision: tensors in the order in which the graphs read them.

        It costs no memory: the layout is that of a model of names and shapes alone.

        Args:
            config: the model's.
            precision: of `actvar.bundle.contract.PRECISIONS`.
            decoder: what stands in the place of the decoder's own tensors, if it is another decoder.
            encoder: whether the VQVAE's encoder is in it.
        """
        shapes = parameter_shapes(config)
        recipes: dict[str, _AnyRecipe] = dict(_recipes(config, shapes, precision))
        if precision == "int8":
            recipes = _in_int8(recipes)
        if decoder:
            recipes = {name: recipe for name, recipe in recipes.items() if not name.startswith(_OF_DECODER)}
            recipes |= {name: _Given(tensor) for name, tensor in decoder.items()}
        if encoder:
            of_encoder = [name for name in shapes if name.startswith(_OF_ENCODER)]
            recipes |= _kept(*of_encoder)
        stored, position = {}, 0
        for name, recipe in recipes.items():
            stored[name] = StoredTensor(recipe.dtype(name, precision), recipe.shape(shapes), position)
            position += -(-stored[name].length // ALIGNMENT) * ALIGNMENT
        return cls(WeightsSpec(position, None, stored), recipes)

    def tensor(self, name: str, read: Read) -> np.ndarray:
        """What the file holds under a name; `read` and errors are those of `write`."""
        return _converted(name, self._recipes[name].compute(read), self.layout.tensors[name].dtype)

    def write(self, path: Path, read: Read, progress: Callable[[float], None] | None = None) -> WeightsSpec:
        """Write the file: raw little-endian values, each tensor at a multiple of ALIGNMENT, zeros between.

        Holds one tensor at a time; the hash is taken while writing.

        Args:
            path: the file, overwritten.
            read: gives a tensor of the model, which is only looked at.
            progress: told the share of the tensors that are written.

        Returns: the file's place in the manifest.

        Raises:
            CheckpointError: a weight does not fit into the type that the file holds it in.
        """
        digest, tensors = hashlib.sha256(), self.layout.tensors
        with path.open("wb") as file:
            for count, (name, stored) in enumerate(tensors.items(), 1):
                values = _bytes(self.tensor(name, read))
                for block in (values, bytes(-stored.length % ALIGNMENT)):
                    file.write(block)
                    digest.update(block)
                if progress:
                    progress(count / len(tensors))
            file.flush()
            os.fsync(file.fileno())
        return WeightsSpec(self.layout.bytes, digest.hexdigest(), tensors)


def _converted(name: str, tensor: np.ndarray, dtype: str) -> np.ndarray:
    """The values in the type that a file holds them in, in the order of the dimensions."""
    wanted = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    if dtype in ("float16", "bfloat16"):
        largest = max(-tensor.min(), tensor.max())
        if largest > float(ml_dtypes.finfo(wanted).max):
            raise CheckpointError(f"{name} holds values that {SHORT[dtype]} cannot. Make an fp32 bundle of it.")
    return np.ascontiguousarray(tensor, wanted)


def _bytes(tensor: np.ndarray) -> memoryview:
    """The values, little-endian; as integers of the same size, as a buffer cannot say bfloat16."""
    integers = tensor.reshape(-1).view(f"i{tensor.itemsize}")
    return integers.astype(integers.dtype.newbyteorder("<"), copy=False).data


def _recipes(config: ModelConfig, names: Iterable[str], precision: str) -> dict[str, _Recipe | _InOrder]:
    """How each deployed tensor comes from the model's, whose names are given."""
    recipes: dict[str, _Recipe | _InOrder] = {}

    def keep(*kept: str) -> None:
        recipes.update(_kept(*kept))

    keep("var.class_emb.weight", *_linear("var.head_nm.ada_lin.1"))
    if config.shared_adaln:
        keep(*_linear("var.shared_ada_lin.1"))
    for block in (f"var.blocks.{i}" for i in range(config.depth)):
        keep(*([f"{block}.ada_gss"] if config.shared_adaln else _linear(f"{block}.ada_lin.1")))
    keep(*_linear("var.word_embed"))
    for si in range(len(config.schedule)):
        sources = ("var.lvl_embed.weight", "var.pos_1LC", *(() if si else ("var.pos_start",)))
        recipes[positions_name(si)] = _Recipe(sources, partial(_positions, config.schedule, si))
    for i in range(config.depth):
        recipes.update(_block(config, i, precision))
    keep(*_linear("var.head"), "vqvae.quantize.embedding.weight")
    for i in range(config.vqvae.phi_count):
        weight, bias = _linear(f"vqvae.quantize.quant_resi.qresi_ls.{i}")
        recipes[f"vqvae.quantize.phi.{i}.weight"] = _Recipe((weight,), _phi_weight)
        recipes[f"vqvae.quantize.phi.{i}.bias"] = _Recipe((bias,), partial(np.multiply, np.float32(0.5)))
    if config.small_decoder:
        decoder = "small_decoder."
    else:
        decoder = "vqvae.decoder."
        keep(*_linear("vqvae.post_quant_conv"))
    for name in (name for name in names if name.startswith(decoder)):
        if upsampling := _UPSAMPLING.fullmatch(name):
            layer, kind = upsampling.groups()
            make = subpixel_weight if kind == "weight" else subpixel_bias
            recipes[f"{layer}.{SUBPIXEL_CONV}.{kind}"] = _Recipe((name,), make)
        else:
            keep(name)
    return recipes


def _in_int8(recipes: Mapping[str, _AnyRecipe]) -> dict[str, _AnyRecipe]:
    """The same tensors, each matrix of the blocks as whole numbers and scales."""
    found: dict[str, _AnyRecipe] = {}
    for name, recipe in recipes.items():
        layer, _, kind = name.rpartition(".")
        if not _BLOCKS.match(name) or kind not in ("weight", "weight_t"):
            found[name] = recipe
            continue
        made = partial(_Int8Recipe, recipe, kind == "weight_t")
        found[f"{layer}.{int8.VALUES}"] = made(int8.whole_numbers, lambda wide, out: (wide, out))
        found[f"{layer}.{int8.SCALES}"] = made(int8.column_scales, lambda _, out: (out,))
    return found


def _block(config: ModelConfig, i: int, precision: str) -> dict[str, _Recipe | _InOrder]:
    block, activation = f"var.blocks.{i}", config.activation
    attn, ffn = f"{block}.attn", f"{block}.ffn"
    selects = activation is not None and (i == 0 or activation.token_choice == DYNAMIC)
    return {
        **(_kept(*_linear(f"{block}.selector")) if selects else {}),
        **_kept(f"{attn}.mat_qkv.weight"),
        f"{attn}.mat_qkv.bias": _Recipe((f"{attn}.q_bias", f"{attn}.v_bias"), _qkv_bias),
        f"{attn}.query_scale": _Recipe((f"{attn}.scale_mul_1H11",), _query_scale),
        **_kept(*_linear(f"{attn}.proj")),
        **_ffn(config, ffn, precision),
        **_kept(f"{ffn}.fc2.bias"),
    }


def _ffn(config: ModelConfig, ffn: str, precision: str) -> dict[str, _Recipe | _InOrder]:
    """The two matrices and what is chosen by; static experts in their order, and in int8 in the pieces that are run."""
    weight, bias = _linear(f"{ffn}.fc1")
    matrices = {**_kept(weight, bias), f"{ffn}.fc2.weight_t": _Recipe((f"{ffn}.fc2.weight",), np.transpose)}
    if config.activation is None:
        return {**matrices}
    if config.activation.expert_choice == DYNAMIC:
        return {**_kept(*_linear(f"{ffn}.router")), **matrices}
    ordered = {name: _InOrder(recipe, f"{ffn}.router.bias", config.hidden) for name, recipe in matrices.items()}
    if precision != "int8":
        return {**ordered}
    pieces: dict[str, _Recipe | _InOrder] = {}
    for place, (start, end) in enumerate(static_pieces(config)):
        for name, recipe in ordered.items():
            layer, _, kind = name.rpartition(".")
            pieces[f"{layer}.{place}.{kind}"] = replace(recipe, start=start, end=end)
    return pieces


def _kept(*names: str) -> dict[str, _Recipe]:
    return {name: _Recipe((name,)) for name in names}


def _linear(layer: str) -> tuple[str, str]:
    return f"{layer}.weight", f"{layer}.bias"


def _positions(
    schedule: ScaleSchedule, si: int, levels_SC: np.ndarray, all_1TC: np.ndarray, *start_11C: np.ndarray
) -> np.ndarray:
    """[1, L, C]: what `VAR.positions` gives, and at the first scale the start embedding added."""
    first, tokens = schedule.starts[si], schedule.tokens[si]
    positions_1LC = levels_SC[si] + all_1TC[:, first : first + tokens]
    return sum(start_11C, positions_1LC)


def expert_order(scores_N: np.ndarray) -> np.ndarray:
    """[N]: static experts by their scores, the best first, as `actvar.models.selection.best_first` has them."""
    return np.argsort(np.where(np.isnan(scores_N), -np.inf, -scores_N), kind="stable")


def _qkv_bias(q_bias_C: np.ndarray, v_bias_C: np.ndarray) -> np.ndarray:
    """[3C]; keys have no bias."""
    return np.concatenate((q_bias_C, np.zeros_like(q_bias_C), v_bias_C))


def _query_scale(scale_mul_1h11: np.ndarray) -> np.ndarray:
    """[h, 1, 1]: what unit-length queries are multiplied with; rounded to fp32 once, which no fp32 `exp` promises."""
    logarithm_h11 = np.minimum(scale_mul_1h11[0], np.float32(MAX_SCALE_MUL))
    return np.exp(logarithm_h11, dtype=np.float64).astype(np.float32)


def _phi_weight(weight_EE33: np.ndarray) -> np.ndarray:
    """phi(x) = x/2 + conv(x)/2 as one convolution's kernel."""
    halved = weight_EE33 / np.float32(2)
    halved[:, :, 1, 1] += np.eye(len(halved), dtype=np.float32) / 2
    return halved


def subpixel_weight(weight_OI33: np.ndarray) -> np.ndarray:
    """[4O, I, 2, 2]: the kernel, on the map itself, of a convolution behind a nearest upsampling to twice the side.

    Three rows of the upsampled map are two of the map, so the kernel's rows that meet the same one are summed. Rows
    i - 1 and i then give rows 2i - 1 and 2i of the result, exactly. Columns likewise: four pixels for each place, by
    16 products where there were 36.

    Returns: first all channels of (row 2i - 1, column 2j - 1), then of (2i - 1, 2j), (2i, 2j - 1), (2i, 2j): the order
    of DepthToSpace's mode DCR.
    """
    rows_2OI23 = np.stack(_two_taps(weight_OI33, 2))
    pixels_22OI22 = np.stack(_two_taps(rows_2OI23, 4), 1)
    return pixels_22OI22.reshape(-1, *pixels_22OI22.shape[3:])


def subpixel_bias(bias_O: np.ndarray) -> np.ndarray:
    """[4O]: that of `subpixel_weight`."""
    return np.tile(bias_O, 4)


def _two_taps(kernel: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Along one dimension, from 3 taps on the upsampled map to 2 on the map: for places 2i - 1 and 2i."""
    first, middle, last = np.moveaxis(kernel, axis, 0)
    return np.stack((first + middle, last), axis), np.stack((first, middle + last), axis)
