"""Training of the multi-scale VQVAE on pictures: reconstruction and quantiser losses, dead codes restarted.

VAR's own recipe adds a perceptual and an adversarial loss, which need a pretrained network; for smooth pictures such
as Glyphs-100 the plain distances are enough.

Letters in shapes: B pictures, E code width, H side of f_hat, V codes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from actvar.config import ModelConfig
from actvar.models.quantizer import MultiScaleQuantizer
from actvar.models.vqvae import VQVAE
from actvar.training.loop import RunSettings, autocast, run, step_generator

Pictures = Callable[[range], Tensor]
"""Picture numbers to pictures in [-1, 1], [B, 3, size, size]."""


@dataclass(frozen=True)
class VQVAESettings(RunSettings):
    """The run, and when the codes come in.

    The first `continuous` share of the steps trains a plain autoencoder; then the codes are laid on the residuals that
    it makes. Until `restart_until`, a code that was not used for `restart_every` steps is laid anew.
    """

    continuous: float = 0.15
    restart_every: int = 100
    restart_until: float = 0.7

    def is_alike(self, done: int) -> bool:
        """See `RunSettings`; when the codes come in depends on the number of steps."""
        return done == 0


def train_vqvae(
    config: ModelConfig, settings: VQVAESettings, pictures: Pictures, inputs: Mapping[str, str] | None = None
) -> VQVAE:
    """Train from random weights, or resume; returns the trained VQVAE on the CPU in evaluation mode.

    `inputs` are those of `actvar.training.loop.run`.
    """
    torch.manual_seed(settings.seed)  # the initial weights
    vqvae = VQVAE(config.vqvae, config.schedule).to(settings.device)
    optimizer = torch.optim.AdamW(vqvae.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    usage = _Usage(config.vqvae.vocab_size, settings.device)
    continuous_steps = round(settings.continuous * settings.steps)

    def step(number: int, learning_rate: float) -> dict[str, Tensor]:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        first = number * settings.batch
        batch_B3HW = pictures(range(first, first + settings.batch)).to(settings.device)
        with autocast(settings.device, settings.precision):
            f_BEHH = vqvae.quant_conv(vqvae.encoder(batch_B3HW)).float()
        if number == continuous_steps:
            usage.clear()
            _restart_unused_codes(vqvae.quantize, f_BEHH.detach(), usage, step_generator(settings, number))
        if number < continuous_steps:
            # Unit variance is where the codes will start: keep the map near it.
            f_hat_BEHH, quantizer_loss = f_BEHH, 0.02 * f_BEHH.square().mean()
        else:
            f_hat_BEHH, quantizer_loss, ids = vqvae.quantize(f_BEHH)
            usage.record(ids)
        with autocast(settings.device, settings.precision):
            out_B3HW = vqvae.decoder(vqvae.post_quant_conv(f_hat_BEHH)).float()
        mse = F.mse_loss(out_B3HW, batch_B3HW)
        loss = mse + 0.5 * F.l1_loss(out_B3HW, batch_B3HW) + quantizer_loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vqvae.parameters(), 1.0)
        optimizer.step()

        share = usage.share
        if number > continuous_steps and (number + 1) % settings.restart_every == 0:
            if number < settings.restart_until * settings.steps:
                _restart_unused_codes(vqvae.quantize, f_BEHH.detach(), usage, step_generator(settings, number))
            usage.clear()
        return {"loss": loss, "mse": mse, "quantizer": quantizer_loss, "usage": share}

    run("VQVAE", step, {"vqvae": vqvae, "optimizer": optimizer, "usage": usage}, settings, inputs)
    return vqvae.to("cpu").eval()


class _Usage:
    """Which codes were used since the last clearing."""

    def __init__(self, codes: int, device: str):
        self.used_V = torch.zeros(codes, dtype=torch.bool, device=device)

    def record(self, ids: Tensor) -> None:
        self.used_V[ids.unique()] = True

    def clear(self) -> None:
        self.used_V.zero_()

    @property
    def share(self) -> Tensor:
        return self.used_V.float().mean()

    def state_dict(self) -> Tensor:
        return self.used_V

    def load_state_dict(self, used_V: Tensor) -> None:
        self.used_V.copy_(used_V)


@torch.no_grad()
def _restart_unused_codes(
    quantizer: MultiScaleQuantizer, f_BEHH: Tensor, usage: _Usage, generator: torch.Generator
) -> None:
    """Lay every unused code on a residual that the scales meet, in equal shares for each scale."""
    unused = (~usage.used_V).nonzero().flatten()
    scales = len(quantizer.schedule)
    rest_BEHH = f_BEHH.clone()
    for si in range(scales):
        met_ME = quantizer.tokens_in(rest_BEHH, si).flatten(0, 1)
        mine = unused[si::scales]
        chosen = torch.randint(len(met_ME), (len(mine),), generator=generator).to(met_ME.device)
        quantizer.embedding.weight[mine] = met_ME[chosen]
        rest_BEHH -= quantizer.contribution(quantizer.nearest(met_ME.unflatten(0, (len(f_BEHH), -1))), si)
