"""Models small enough for a test, with weights that let every parameter show in the result."""

import math

import torch
from torch import Tensor

from actvar.config import Activation, ModelConfig, VQVAEConfig
from actvar.models.actvar import ActVAR
from actvar.scales import ScaleSchedule

SMALL_VQVAE = VQVAEConfig(vocab_size=48, z_channels=6, ch=16, ch_mult=(1, 2), num_res_blocks=1, norm_groups=8)


def small_config(
    patch_nums: tuple[int, ...] = (1, 2, 3, 5),
    activation: Activation | None = None,
    depth: int = 2,
    shared_adaln: bool = False,
    vqvae: VQVAEConfig = SMALL_VQVAE,
) -> ModelConfig:
    """Five classes, 48 codes."""
    return ModelConfig(depth, ScaleSchedule(patch_nums), 5, shared_adaln, vqvae, activation)


def vivid_model(config: ModelConfig, seed: int = 0) -> ActVAR:
    """Random weights with open gates, biases that are not 0, norms that are not 1, a temperature beyond its limit.

    The same seed gives a dense model and its ActVAR the same weights where both have them.
    """
    model = ActVAR(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.copy_(_values(name, parameter.shape, torch.Generator().manual_seed(_number(name) + seed)))
    return model


def _values(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if "scale_mul" in name:
        values = math.log(8) + noise
        values[:, 0] = 6.0  # above ln 100: attention must cut it
        return values
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.2 * noise
    if "ada_gss" in name or noise.dim() == 1:
        return 0.2 * noise
    if "emb" in name and "word_embed" not in name:
        return noise
    if "var.pos" in name:
        return 0.5 * noise
    return noise / math.sqrt(shape[1:].numel())


def _number(name: str) -> int:
    """Of a name, the same in every process."""
    return int.from_bytes(name.encode(), "big") % 1_000_003
