"""A small decoder learned from the VQVAE's own: the same f_hat in, its pixels as the target.

Letters in shapes: B pictures, T tokens of all scales, E code width, C channels, H side of a map.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from actvar.config import SmallDecoderConfig, VQVAEConfig
from actvar.data.tokens import TokenStore
from actvar.models.small_decoder import SmallDecoder
from actvar.models.vqvae import VQVAE, Encoder
from actvar.training.fingerprint import store_fingerprint, weights_fingerprint
from actvar.training.loop import autocast, run
from actvar.training.token_batches import TokenBatches, TokenSettings
from actvar.training.update import Update

_NOTHING = 1e-6  # added to a feature vector's length


@dataclass(frozen=True)
class DecoderSettings(TokenSettings):
    """The run, and what the perceptual loss weighs beside the pixels'."""

    perceptual: float = 0.1


def pixel_loss(found_B3HH: Tensor, target_B3HH: Tensor) -> Tensor:
    """|x - y| + (x - y)^2, mean over pictures, pixels and colours: B3HH twice -> a number."""
    return F.l1_loss(found_B3HH, target_B3HH) + F.mse_loss(found_B3HH, target_B3HH)


def perceptual_loss(encoder: Encoder, found_B3HH: Tensor, target_B3HH: Tensor) -> Tensor:
    """How far two pictures are apart for the VQVAE's encoder: B3HH twice -> a number.

    The mean over its levels l, pictures and places of ||u_l(x) - u_l(y)||^2, with u_l the C values that level l leaves
    at a place, divided by their length (as LPIPS compares features, Zhang et al. 2018). Gradients reach `found` alone.
    """
    with torch.no_grad():
        wanted = list(_directions(encoder, target_B3HH))
    pairs = zip(_directions(encoder, found_B3HH), wanted, strict=True)
    return torch.stack([(a_BCHH - b_BCHH).square().sum(1).mean() for a_BCHH, b_BCHH in pairs]).mean()


def _directions(encoder: Encoder, picture_B3HH: Tensor) -> Iterator[Tensor]:
    """What each level leaves before its side is halved, of length 1 at each place."""
    x_BCHH = encoder.conv_in(picture_B3HH)
    for level in encoder.down:
        x_BCHH = level(x_BCHH)
        length_B1HH = x_BCHH.float().norm(dim=1, keepdim=True)
        yield x_BCHH.float() / (length_B1HH + _NOTHING)
        if level.downsample is not None:
            x_BCHH = level.downsample(x_BCHH)


def train_decoder(
    vqvae: VQVAE, shape: VQVAEConfig, small: SmallDecoderConfig, settings: DecoderSettings, store: TokenStore
) -> SmallDecoder:
    """Train from random weights, or resume.

    Args:
        vqvae: whose decoder is the teacher; it stays as it is.
        shape: the VQVAE's.
        small: the student's width and depth.
        settings: the run.
        store: tokens of the VQVAE.

    Returns: the decoder on the CPU in evaluation mode.

    Raises:
        CheckpointError, ActVARError, UsageError: see `actvar.training.loop.run`.
    """
    device = settings.device
    torch.manual_seed(settings.seed)  # the initial weights
    student, vqvae = SmallDecoder(small, shape).to(device), vqvae.to(device).requires_grad_(False)
    parameters = dict(student.named_parameters())
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=settings.weight_decay
    )
    update = Update(student, parameters, {"optimizer": optimizer}, settings.accumulate, settings.average)
    batches = TokenBatches(store, settings, len(store), device)

    def losses(token_ids_BT: Tensor, _: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            f_hat_BEHH = vqvae.quantize.decode(token_ids_BT)
        with autocast(device, settings.precision):
            with torch.no_grad():
                target_B3HH = vqvae.decode(f_hat_BEHH).float()
            found_B3HH = student(f_hat_BEHH).float()
            pixels = pixel_loss(found_B3HH, target_B3HH)
            if not settings.perceptual:
                return {"loss": pixels}
            seen = perceptual_loss(vqvae.encoder, found_B3HH, target_B3HH)
        return {"loss": pixels + settings.perceptual * seen, "pixels": pixels, "perceptual": seen}

    def step(number: int, learning_rate: float) -> dict[str, Tensor]:
        parts = batches.parts(number, settings.batch)
        return update.step(learning_rate, (partial(losses, *part) for part in parts))

    inputs = {"decoder": str(small), "data": store_fingerprint(store), "vqvae": weights_fingerprint(vqvae)}
    run("Small decoder", step, {"decoder": student, **update.states}, settings, inputs)
    update.finish()
    return student.cpu().eval().requires_grad_(False)
