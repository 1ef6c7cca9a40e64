"""A whole model: transformer and VQVAE under one roof, as a checkpoint holds them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from actvar.config import ModelConfig
from actvar.models.small_decoder import SmallDecoder
from actvar.models.var import VAR
from actvar.models.vqvae import VQVAE


class ActVAR(nn.Module):
    """VAR (dense, or with active tokens and experts), its VQVAE, and maybe a small decoder beside that."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.var = VAR(config)
        self.vqvae = VQVAE(config.vqvae, config.schedule)
        self.small_decoder = SmallDecoder(config.small_decoder, config.vqvae) if config.small_decoder else None

    def decode(self, f_hat_BEHH: Tensor) -> Tensor:
        """f_hat to pictures in [-1, 1]: by the small decoder, if the model has one."""
        if self.small_decoder is None:
            return self.vqvae.decode(f_hat_BEHH)
        return self.small_decoder(f_hat_BEHH).clamp(-1, 1)

    def read(self, name: str) -> np.ndarray:
        """One tensor in fp32, as `actvar.checkpoint.model.StoredModel.read` gives it."""
        return self.get_parameter(name).detach().to("cpu", torch.float32).numpy()


def empty_model(config: ModelConfig) -> ActVAR:
    """A model of names and shapes alone, on the meta device: no memory, whatever its size."""
    with without_values():
        return ActVAR(config).eval().requires_grad_(False)


@contextmanager
def without_values() -> Iterator[None]:
    """Modules that are made within have names and shapes alone."""
    with torch.device("meta"), _WithoutNormals():
        yield


class _WithoutNormals(TorchFunctionMode):
    """Leaves out the initial values of embeddings: `normal_` on the meta device imports sympy, which takes a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return kwargs["tensor"] if func is nn.init.normal_ else func(*args, **kwargs)


def random_model(config: ModelConfig, seed: int = 0) -> ActVAR:
    """A model with random weights, for trying speed and export without a checkpoint; the same for the same seed.

    Gates are opened (the initial values of a training keep them closed), so that every part shows in the output.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ActVAR(config).eval()
    generator = torch.Generator().manual_seed(seed)
    model.var.init_weights(generator)
    with torch.no_grad():
        model.var.head.weight.mul_(50)
        for block in model.var.blocks:
            gammas = block.ada_lin.linear.bias[: 2 * config.width] if block.ada_lin else block.modulation_weight[:2]
            gammas.normal_(std=0.3, generator=generator)
    return model.requires_grad_(False)
