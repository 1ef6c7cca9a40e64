"""The tensors that a bundle's graphs share: what they are called, how they are laid out, and the file that holds them.

Every learned tensor is written once, and all graphs point into the one file. Its layout is chosen so that no graph has
to transpose, slice, convert or copy a weight, because an engine that does so keeps a copy of its own:

- linear layers stay [out, in], as in the checkpoint, for `Gemm(transB=1)`. Measured with ONNX Runtime without
  prepacking: as fast as [in, out] for 50 rows and more, 10 to 15 % faster below.
- fc1 [4C, C] and fc2, turned to [4C, C], are also N experts of [de, C] one after the other: the routed FFN reads the
  same bytes under the shape [N, de, C].
- what depends on the checkpoint alone is computed here: sums of embeddings, the joint bias of Q, K and V, the query
  scales, phi as a single convolution.

Names are those of `ActVAR.state_dict()` where a tensor is what the checkpoint holds, in its shape and order.

Letters in shapes: C width, L tokens of one scale, h heads, E code width, N experts, de = 4C / N.
"""

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from actvar.bundle import StoredTensor, WeightsSpec
from actvar.errors import CheckpointError
from actvar.models.actvar import ActVAR
from actvar.models.attention import MAX_SCALE_MUL
from actvar.scales import PHI_COUNT

ALIGNMENT = 4096
"""Every tensor starts at a multiple of this: a page, so that it can be mapped into memory by itself."""

# What an fp16 bundle holds in fp16: the matrices of the blocks, and the decoder's convolutions. The rest is small or
# must be exact: embeddings (the residual stream), selector and router, head, codebook and phi (f_hat), norms.
_HALF = re.compile(
    r"var\.(blocks\.\d+\.(attn\.(mat_qkv|proj)|ffn\.fc[12]|ada_lin)|shared_ada_lin)\."
    r"|vqvae\.(post_quant_conv|decoder\.(?!.*norm))"
)


def positions_name(si: int) -> str:
    """The sum of position and level embeddings of scale index si (from 0); at scale 0 with the start embedding too."""
    return f"var.positions.{si}"


def deployed_tensors(model: ActVAR, precision: str) -> dict[str, Callable[[], np.ndarray]]:
    """All tensors of a model's bundle by name, in the order in which the graphs read them.

    Each is computed when it is called for, so that a large model is never held twice. The call raises
    CheckpointError where a weight does not fit into fp16.
    """
    return {name: partial(_deploy, name, recipe, precision) for name, recipe in _recipes(model).items()}


def _deploy(name: str, recipe: Callable[[], Tensor], precision: str) -> np.ndarray:
    tensor = recipe().detach().to("cpu", torch.float32)
    if precision == "fp16" and _HALF.match(name):
        lowest, highest = tensor.aminmax()
        if max(-lowest, highest) > torch.finfo(torch.float16).max:
            raise CheckpointError(f"{name} holds values that fp16 cannot. Export it in fp32.")
        tensor = tensor.half()
    return tensor.contiguous().numpy()


def write_weights(
    path: Path, tensors: Mapping[str, Callable[[], np.ndarray]], progress: Callable[[float], None] | None = None
) -> WeightsSpec:
    """Write the weights file: raw little-endian values, each tensor at a multiple of ALIGNMENT, zeros between.

    Holds one tensor at a time; the hash is taken while writing.

    Args:
        path: the file, overwritten.
        tensors: how to come by the values of each.
        progress: told the share of the tensors that are written.

    Returns: the file's place in the manifest.
    """
    stored: dict[str, StoredTensor] = {}
    digest, position = hashlib.sha256(), 0
    with path.open("wb") as file:
        for name, compute in tensors.items():
            array = compute()
            values = array.astype(array.dtype.newbyteorder("<"), copy=False)
            stored[name] = StoredTensor(array.dtype.name, array.shape, position)
            padding = bytes(-values.nbytes % ALIGNMENT)
            for block in (values.data, padding):
                file.write(block)
                digest.update(block)
            position += values.nbytes + len(padding)
            if progress:
                progress(len(stored) / len(tensors))
        file.flush()
        os.fsync(file.fileno())
    return WeightsSpec(position, digest.hexdigest(), stored)


def _recipes(model: ActVAR) -> dict[str, Callable[[], Tensor]]:
    """How each deployed tensor comes from the model."""
    state = model.state_dict()
    recipes: dict[str, Callable[[], Tensor]] = {}

    def keep(*names: str) -> None:
        for name in names:
            recipes[name] = state[name].detach

    keep("var.class_emb.weight", *_linear("var.head_nm.ada_lin.1"))
    if model.config.shared_adaln:
        keep(*_linear("var.shared_ada_lin.1"))
    for block in (f"var.blocks.{i}" for i in range(model.config.depth)):
        keep(*([f"{block}.ada_gss"] if model.config.shared_adaln else _linear(f"{block}.ada_lin.1")))
    keep(*_linear("var.word_embed"))
    for si in range(len(model.config.schedule)):
        recipes[positions_name(si)] = partial(_positions, model, si)
    for block in (f"var.blocks.{i}" for i in range(model.config.depth)):
        if model.config.activation:
            keep(*_linear(f"{block}.selector"))
        keep(f"{block}.attn.mat_qkv.weight")
        biases = state[f"{block}.attn.q_bias"], state[f"{block}.attn.v_bias"]
        recipes[f"{block}.attn.mat_qkv.bias"] = partial(_qkv_bias, *biases)
        recipes[f"{block}.attn.query_scale"] = partial(_query_scale, state[f"{block}.attn.scale_mul_1H11"])
        keep(*_linear(f"{block}.attn.proj"))
        if model.config.activation:
            keep(*_linear(f"{block}.ffn.router"))
        keep(*_linear(f"{block}.ffn.fc1"))
        recipes[f"{block}.ffn.fc2.weight_t"] = state[f"{block}.ffn.fc2.weight"].t
        keep(f"{block}.ffn.fc2.bias")
    keep(*_linear("var.head"), "vqvae.quantize.embedding.weight")
    for i in range(PHI_COUNT):
        weight, bias = (state[name] for name in _linear(f"vqvae.quantize.quant_resi.qresi_ls.{i}"))
        recipes[f"vqvae.quantize.phi.{i}.weight"] = partial(_phi_weight, weight)
        recipes[f"vqvae.quantize.phi.{i}.bias"] = partial(torch.mul, bias, 0.5)
    keep(*_linear("vqvae.post_quant_conv"), *(name for name in state if name.startswith("vqvae.decoder.")))
    return recipes


def _linear(layer: str) -> tuple[str, str]:
    return f"{layer}.weight", f"{layer}.bias"


def _positions(model: ActVAR, si: int) -> Tensor:
    """[1, L, C]."""
    positions_1LC = model.var.positions(si)
    return positions_1LC if si else model.var.pos_start + positions_1LC


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
