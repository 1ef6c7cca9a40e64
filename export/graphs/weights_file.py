"""The tensors that a bundle's graphs share: what they are called, how they are laid out, and the file that holds them.

Every learned tensor is written once, and all graphs point into the one file. Its layout is chosen so that no graph has
to transpose, slice, convert or copy a weight, because an engine that does so keeps a copy of its own:

- linear layers stay [out, in], as in the checkpoint, for `Gemm(transB=1)`. Measured with ONNX Runtime without
  prepacking: as fast as [in, out] for 50 rows and more, 10 to 15 % faster below.
- fc1 [4C, C] and fc2, turned to [4C, C], are also N experts of [de, C] one after the other: the routed FFN reads the
  same bytes under the shape [N, de, C].
- what depends on the checkpoint alone is computed here: sums of embeddings, the joint bias of Q, K and V, the query
  scales, phi as a single convolution, the decoder's convolutions of upsampled maps as convolutions of the maps.

Names are those of `ActVAR.state_dict()` where a tensor is what the checkpoint holds, in its shape and order.

Letters in shapes: C width, L tokens of one scale, h heads, E code width, N experts, de = 4C / N.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from actvar.bundle.manifest import StoredTensor, WeightsSpec
from actvar.config import ModelConfig
from actvar.errors import CheckpointError
from actvar.export.graphs import int8
from actvar.export.graphs.builder import SHORT
from actvar.models.actvar import empty_model
from actvar.models.attention import MAX_SCALE_MUL
from actvar.scales import PHI_COUNT, ScaleSchedule

ALIGNMENT = 4096
"""Every tensor starts at a multiple of this: a page, so that it can be mapped into memory by itself."""

SUBPIXEL_CONV = "subpixel_conv"
"""What an upsampling layer's convolution is called here: it is not the checkpoint's; see `subpixel_weight`."""

# What a precision decides: the matrices of the blocks, and the decoder's convolutions. The rest is small or must be
# exact, so it is always fp32: embeddings (the residual stream), selector and router, head, codebook and phi (f_hat),
# norms. Softmax and sampling are computed in fp32, too.
_BLOCKS = re.compile(r"var\.(blocks\.\d+\.(attn\.(mat_qkv|proj)|ffn\.fc[12]|ada_lin)|shared_ada_lin)\.")
_OF_DECODER = ("vqvae.post_quant_conv.", "vqvae.decoder.", "small_decoder.")
_DECODER = re.compile(r"vqvae\.(post_quant_conv|decoder\.(?!.*norm))|small_decoder\.")
_UPSAMPLING = re.compile(r"((?:vqvae\.decoder|small_decoder)\..*upsample)\.conv\.(weight|bias)")

BLOCK_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "float32", "fp16-weights": "float32"}
"""By precision, what the blocks' matrices and attention compute in, with the KV cache. In int8 the matrices are whole
numbers (`int8.py`), and what goes into them and comes out is fp32, as attention is."""

DECODER_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "float16", "int8": "float32", "fp16-weights": "float32"}
"""By precision, what the decoder's convolutions and attention compute in. In opset 20 `Conv` has no bfloat16, so those
of a bf16 bundle are fp16: its activations are bounded by the norms before them, and do not need bfloat16's range as a
transformer's may."""

_HELD = {"fp16-weights": "float16"}  # the blocks' matrices, where not in what they are multiplied in: graphs widen them


def positions_name(si: int) -> str:
    """The sum of position and level embeddings of scale index si (from 0); at scale 0 with the start embedding too."""
    return f"var.positions.{si}"


@dataclass(frozen=True)
class _Recipe:
    """How a deployed tensor comes from tensors of `ActVAR.state_dict()`, which it is given in fp32."""

    sources: tuple[str, ...]
    make: Callable[..., Tensor] = lambda tensor: tensor

    def dtype(self, name: str, precision: str) -> str:
        """What the file holds it in."""
        if _BLOCKS.match(name):
            computed = BLOCK_TYPES[precision]
            return computed if name.endswith(".bias") else _HELD.get(precision, computed)
        return DECODER_TYPES[precision] if _DECODER.match(name) else "float32"

    def compute(self, read: Callable[[str], Tensor]) -> Tensor:
        return self.make(*(read(source).detach().float() for source in self.sources))

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Of the result, by the shapes of the model's tensors."""
        zero = torch.zeros(())  # in every place: computing on the meta device takes seconds of imports
        return tuple(self.compute(lambda source: zero.expand(shapes[source])).shape)


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
    part: Callable[[Tensor], Tensor]
    of_shape: Callable[[int, int], tuple[int, ...]]

    def compute(self, read: Callable[[str], Tensor]) -> Tensor:
        made = self.matrix.compute(read)
        return self.part(made if self.turned else made.t())

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

    tensor: Tensor

    def compute(self, read: Callable[[str], Tensor]) -> Tensor:
        return self.tensor

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """See `_Recipe`."""
        return tuple(self.tensor.shape)

    def dtype(self, name: str, precision: str) -> str:
        """See `_Recipe`."""
        return str(self.tensor.dtype).removeprefix("torch.")


_AnyRecipe = _Recipe | _Int8Recipe | _Given


@dataclass(frozen=True)
class WeightsFile:
    """The weights file of a model: where everything in it lies, before there are weights, and how it is filled.

    Attributes:
        layout: without a hash, as there is no content yet.
    """

    layout: WeightsSpec
    _recipes: Mapping[str, _AnyRecipe]

    @classmethod
    def of(cls, config: ModelConfig, precision: str, decoder: Mapping[str, Tensor] | None = None) -> "WeightsFile":
        """The file of a bundle of this precision: tensors in the order in which the graphs read them.

        It costs no memory: the layout is that of a model of names and shapes alone.

        Args:
            config: the model's.
            precision: of `actvar.bundle.contract.PRECISIONS`.
            decoder: what stands in the place of the decoder's own tensors, if it is another decoder.
        """
        shapes = {name: tensor.shape for name, tensor in empty_model(config).state_dict().items()}
        recipes: dict[str, _AnyRecipe] = dict(_recipes(config, shapes))
        if precision == "int8":
            recipes = _in_int8(recipes)
        if decoder:
            recipes = {name: recipe for name, recipe in recipes.items() if not name.startswith(_OF_DECODER)}
            recipes |= {name: _Given(tensor) for name, tensor in decoder.items()}
        stored, position = {}, 0
        for name, recipe in recipes.items():
            stored[name] = StoredTensor(recipe.dtype(name, precision), recipe.shape(shapes), position)
            position += -(-stored[name].length // ALIGNMENT) * ALIGNMENT
        return cls(WeightsSpec(position, None, stored), recipes)

    def tensor(self, name: str, read: Callable[[str], Tensor]) -> Tensor:
        """What the file holds under a name, on the CPU; `read` and errors are those of `write`."""
        return _converted(name, self._recipes[name].compute(read).cpu(), self.layout.tensors[name].dtype)

    def write(
        self, path: Path, read: Callable[[str], Tensor], progress: Callable[[float], None] | None = None
    ) -> WeightsSpec:
        """Write the file: raw little-endian values, each tensor at a multiple of ALIGNMENT, zeros between.

        Holds one tensor at a time; the hash is taken while writing.

        Args:
            path: the file, overwritten.
            read: gives a tensor of the model by its name in `ActVAR.state_dict()`, of any type, on any device.
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


def _converted(name: str, tensor: Tensor, dtype: str) -> Tensor:
    wanted: torch.dtype = getattr(torch, dtype)
    if wanted.is_floating_point and wanted != torch.float32:
        lowest, highest = tensor.aminmax()
        if max(-lowest, highest) > torch.finfo(wanted).max:
            raise CheckpointError(f"{name} holds values that {SHORT[dtype]} cannot. Make an fp32 bundle of it.")
    return tensor.to(wanted).contiguous()


def _bytes(tensor: Tensor) -> memoryview:
    """The values, little-endian. numpy has no bfloat16, so it is shown integers of the same size."""
    integers = tensor.view({1: torch.int8, 2: torch.int16, 4: torch.int32}[tensor.itemsize]).numpy()
    return integers.astype(integers.dtype.newbyteorder("<"), copy=False).data


def _recipes(config: ModelConfig, names: Iterable[str]) -> dict[str, _Recipe]:
    """How each deployed tensor comes from the model's, whose names are given."""
    recipes: dict[str, _Recipe] = {}

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
        recipes.update(_block(config, f"var.blocks.{i}"))
    keep(*_linear("var.head"), "vqvae.quantize.embedding.weight")
    for i in range(PHI_COUNT):
        weight, bias = _linear(f"vqvae.quantize.quant_resi.qresi_ls.{i}")
        recipes[f"vqvae.quantize.phi.{i}.weight"] = _Recipe((weight,), _phi_weight)
        recipes[f"vqvae.quantize.phi.{i}.bias"] = _Recipe((bias,), partial(torch.mul, other=0.5))
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


def _block(config: ModelConfig, block: str) -> dict[str, _Recipe]:
    attn, ffn = f"{block}.attn", f"{block}.ffn"
    return {
        **(_kept(*_linear(f"{block}.selector")) if config.activation else {}),
        **_kept(f"{attn}.mat_qkv.weight"),
        f"{attn}.mat_qkv.bias": _Recipe((f"{attn}.q_bias", f"{attn}.v_bias"), _qkv_bias),
        f"{attn}.query_scale": _Recipe((f"{attn}.scale_mul_1H11",), _query_scale),
        **_kept(*_linear(f"{attn}.proj")),
        **(_kept(*_linear(f"{ffn}.router")) if config.activation else {}),
        **_kept(*_linear(f"{ffn}.fc1")),
        f"{ffn}.fc2.weight_t": _Recipe((f"{ffn}.fc2.weight",), torch.t),
        **_kept(f"{ffn}.fc2.bias"),
    }


def _kept(*names: str) -> dict[str, _Recipe]:
    return {name: _Recipe((name,)) for name in names}


def _linear(layer: str) -> tuple[str, str]:
    return f"{layer}.weight", f"{layer}.bias"


def _positions(schedule: ScaleSchedule, si: int, levels_SC: Tensor, all_1TC: Tensor, *start_11C: Tensor) -> Tensor:
    """[1, L, C]: what `VAR.positions` gives, and at the first scale the start embedding added."""
    first, tokens = schedule.starts[si], schedule.tokens[si]
    positions_1LC = levels_SC[si] + all_1TC[:, first : first + tokens]
    return sum(start_11C, positions_1LC)


def _qkv_bias(q_bias_C: Tensor, v_bias_C: Tensor) -> Tensor:
    """[3C]; keys have no bias."""
    return torch.cat((q_bias_C, torch.zeros_like(q_bias_C), v_bias_C))


def _query_scale(scale_mul_1h11: Tensor) -> Tensor:
    """[h, 1, 1]: what unit-length queries are multiplied with."""
    return scale_mul_1h11[0].clamp_max(MAX_SCALE_MUL).exp()


def _phi_weight(weight_EE33: Tensor) -> Tensor:
    """phi(x) = x/2 + conv(x)/2 as one convolution's kernel."""
    halved = weight_EE33 / 2
    halved[:, :, 1, 1] += torch.eye(len(halved), device=halved.device) / 2
    return halved


def subpixel_weight(weight_OI33: Tensor) -> Tensor:
    """[4O, I, 2, 2]: the kernel, on the map itself, of a convolution behind a nearest upsampling to twice the side.

    Three rows of the upsampled map are two of the map, so the kernel's rows that meet the same one are summed. Rows
    i - 1 and i then give rows 2i - 1 and 2i of the result, exactly. Columns likewise: four pixels for each place, by
    16 products where there were 36.

    Returns: first all channels of (row 2i - 1, column 2j - 1), then of (2i - 1, 2j), (2i, 2j - 1), (2i, 2j): the order
    of DepthToSpace's mode DCR.
    """
    rows_2OI23 = torch.stack(_two_taps(weight_OI33, 2))
    pixels_22OI22 = torch.stack(_two_taps(rows_2OI23, 4), 1)
    return pixels_22OI22.flatten(0, 2)


def subpixel_bias(bias_O: Tensor) -> Tensor:
    """[4O]: that of `subpixel_weight`."""
    return bias_O.repeat(4)


def _two_taps(kernel: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Along one dimension, from 3 taps on the upsampled map to 2 on the map: for places 2i - 1 and 2i."""
    first, middle, last = kernel.unbind(dim)
    return torch.stack((first + middle, last), dim), torch.stack((first, middle + last), dim)
