"""The weights of a model as a recorded drawing reads them: on their device, in their type, in their order.

The types are those of a bundle (`actvar.export.graphs.weights_file`): the blocks' matrices in what is computed in, the
decoder in fp32 or fp16; embeddings, scorers, head, codebook and phi in fp32. Static experts lie in their block's order,
best first, so that a scale reads the first rows.

Letters in shapes: C width, F = 4C hidden neurons, L tokens of a scale, h heads, N experts.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actvar.config import MAX_SCALE_MUL
from actvar.models.actvar import ActVAR
from actvar.models.block import Block
from actvar.models.quantizer import MultiScaleQuantizer
from actvar.models.selection import StaticRouter, best_first

Precision: TypeAlias = Literal["fp32", "fp16", "bf16"]

COMPUTED_IN = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""By precision: the blocks' matrices, attention and the KV cache."""
_DECODED_IN = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.float16}

_Put: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Linear:
    """x W^T + b, of an [out, in] weight."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, layer: nn.Linear, put: _Put) -> "Linear":
        """That of a module."""
        return cls(put(layer.weight), put(layer.bias))

    def __call__(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True, eq=False)
class Experts:
    """An FFN: both matrices [F, C], as N experts one after the other."""

    w1_FC: Tensor
    b1_F: Tensor
    w2_FC: Tensor
    b2_C: Tensor
    count: int

    def first(self, active: int) -> "Experts":
        """Those of the first experts; nothing is copied."""
        end = len(self.w1_FC) // self.count * active
        return Experts(self.w1_FC[:end], self.b1_F[:end], self.w2_FC[:end], self.b2_C, active)


@dataclass(frozen=True, eq=False)
class BlockWeights:
    """A block's. `modulation` and `modulation_6C` exclude each other; there are scorers where the model has them."""

    modulation: Linear | None
    modulation_6C: Tensor | None
    qkv: Linear
    query_scale_h11: Tensor
    proj: Linear
    experts: Experts
    selector: Linear | None
    router: Linear | None


@dataclass(frozen=True, eq=False)
class Weights:
    """All that a drawing reads."""

    blocks: tuple[BlockWeights, ...]
    class_emb: Tensor
    shared_modulation: Linear | None
    head_modulation: Linear
    word_embed: Linear
    positions_1LC: tuple[Tensor, ...]
    head: Linear
    quantizer: MultiScaleQuantizer
    decode: Callable[[Tensor], Tensor]

    @classmethod
    @torch.no_grad()
    def of(cls, network: ActVAR, precision: Precision, device: str) -> "Weights":
        """Those of a network, which is left as it is."""
        var, compute = network.var, COMPUTED_IN[precision]

        def narrow(tensor: Tensor) -> Tensor:
            return tensor.to(device, compute)

        def whole(tensor: Tensor) -> Tensor:
            return tensor.to(device, torch.float32)

        positions_1LC = [var.positions(si) for si in range(len(network.config.schedule))]
        positions_1LC[0] = positions_1LC[0] + var.pos_start
        shared = var.shared_ada_lin
        return cls(
            tuple(_block(block, network.config.activation is not None, narrow, whole) for block in var.blocks),
            whole(var.class_emb.weight),
            Linear.of(shared.linear, narrow) if shared else None,
            Linear.of(var.head_nm.ada_lin.linear, whole),
            Linear.of(var.word_embed, whole),
            tuple(whole(of_scale_1LC) for of_scale_1LC in positions_1LC),
            Linear.of(var.head, whole),
            deepcopy(network.vqvae.quantize).to(device, torch.float32),
            _decoder(network, _DECODED_IN[precision], device),
        )


def _block(block: Block, is_active: bool, narrow: _Put, whole: _Put) -> BlockWeights:
    attn, ffn = block.attn, block.ffn
    bias = torch.cat((attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias))
    w1_FC, b1_F, w2_FC = ffn.fc1.weight, ffn.fc1.bias, ffn.fc2.weight.T
    count = block.config.activation.experts if is_active and block.config.activation else 1
    if isinstance(ffn.router, StaticRouter):
        _, order_N = best_first(ffn.router.bias)
        w1_FC, b1_F, w2_FC = (rows.unflatten(0, (count, -1))[order_N].flatten(0, 1) for rows in (w1_FC, b1_F, w2_FC))
    return BlockWeights(
        Linear.of(block.ada_lin.linear, narrow) if block.ada_lin else None,
        whole(block.ada_gss[0, 0]) if block.ada_gss is not None else None,
        Linear(narrow(attn.mat_qkv.weight), narrow(bias)),
        whole(attn.scale_mul_1H11[0].clamp_max(MAX_SCALE_MUL).exp()),
        Linear.of(attn.proj, narrow),
        Experts(narrow(w1_FC), narrow(b1_F), narrow(w2_FC).contiguous(), narrow(ffn.fc2.bias), count),
        Linear.of(block.selector, whole) if block.selector else None,
        Linear.of(ffn.router, whole) if isinstance(ffn.router, nn.Linear) else None,
    )


def _decoder(network: ActVAR, dtype: torch.dtype, device: str) -> Callable[[Tensor], Tensor]:
    """f_hat in fp32 to pictures in [0, 1], fp32. Norms keep their sums in fp32 whatever they read."""
    if network.small_decoder is not None:
        layers: nn.Module = deepcopy(network.small_decoder)
    else:
        layers = nn.Sequential(deepcopy(network.vqvae.post_quant_conv), deepcopy(network.vqvae.decoder))
    layers = layers.to(device, dtype)

    def decode(f_hat_BEHH: Tensor) -> Tensor:
        return (layers(f_hat_BEHH.to(dtype)).float().clamp(-1, 1) + 1) / 2

    return decode
