"""Training of the dense VAR by teacher forcing on stored tokens.

Letters in shapes: B pictures, T tokens of the scales in use, D blocks, C width, V codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actvar.config import ModelConfig
from actvar.data.tokens import TokenStore
from actvar.models.quantizer import MultiScaleQuantizer
from actvar.models.var import VAR
from actvar.training.fingerprint import store_fingerprint, weights_fingerprint
from actvar.training.loop import Precision, autocast, run, step_generator
from actvar.training.team import ALONE, Team
from actvar.training.token_batches import TokenBatches, TokenSettings
from actvar.training.update import Update

_DEPTH_STREAM = 1  # of a step's random numbers; the batch is drawn from the first


@dataclass(frozen=True)
class VARSettings(TokenSettings):
    """The run, and how much of a picture each step sees.

    `cycle` holds (scales in use, pictures), one pair for each step in turn, in place of `batch`. A scale sees only
    earlier ones, so that training on the first few is exact for them and costs a fraction of the whole sequence; they
    decide what is in the picture. For `depth_drop` see `depth_gates`; 0 leaves nothing out.

    The `recipe` "official" is official VAR's: AdamW, no decay of vectors and of what is added to tokens, a norm of 2
    for gradients, a learning rate that stays at its peak for a twentieth of the run, then falls to a tenth of it.
    "mini" learns from fewer pictures.
    """

    cycle: tuple[tuple[int, int], ...] = ()
    recipe: Literal["mini", "official"] = "mini"
    depth_drop: float = 0.0

    def fallen(self, progress: float) -> float:
        """See `RunSettings`."""
        if self.recipe == "mini":
            return super().fallen(progress)
        return min(1.0, 0.1 + 0.9 * (1 - progress) / 0.95)

    def view(self, step: int, all_scales: int) -> tuple[int, int]:
        """Scales in use and pictures at a step."""
        return self.cycle[step % len(self.cycle)] if self.cycle else (all_scales, self.batch)


def train_var(
    config: ModelConfig,
    settings: VARSettings,
    store: TokenStore,
    quantizer: MultiScaleQuantizer,
    team: Team = ALONE,
) -> VAR:
    """Train from random weights, or resume.

    Args:
        config: of the model.
        settings: the run.
        store: the tokens.
        quantizer: that they are of.
        team: the processes that train together, which the recipe "official" can.

    Returns: the trained VAR on the CPU in evaluation mode; of a process that is not the main one, maybe its shapes.
    """
    is_official, device = settings.recipe == "official", team.device(settings.device)
    var = VAR(config)
    var.init_weights(torch.Generator().manual_seed(settings.seed))
    if config.class_names and not is_official:
        _share_between_classes(var, config.class_names, torch.Generator().manual_seed(settings.seed + 1))
    var, quantizer = var.to(device), quantizer.to(device)
    model = team.wrap(var)
    optimizers, clip = (_adamw(var, settings), 2.0) if is_official else (_muon(var, settings), 1.0)
    parameters = dict(var.named_parameters())
    update = Update(model, parameters, optimizers, settings.accumulate, settings.average, team, clip)
    batches = TokenBatches(store, settings, config.num_classes, device, team)
    ends = [start + tokens for start, tokens in zip(config.schedule.starts, config.schedule.tokens, strict=True)]

    def losses(token_ids_BT: Tensor, class_ids_B: Tensor, gates_BD2: Tensor | None = None) -> dict[str, Tensor]:
        loss_BT = teacher_forced_loss(model, quantizer, class_ids_B, token_ids_BT, settings.precision, gates_BD2)
        return {"loss": loss_BT.mean(), "first_scales": loss_BT[:, :30].mean()}

    def step(number: int, learning_rate: float) -> dict[str, Tensor]:
        scales, pictures = settings.view(number, len(ends))
        count = ends[scales - 1]
        gates = []
        if settings.depth_drop:
            generator = step_generator(settings, number, _DEPTH_STREAM)
            gates = [depth_gates(config.depth, settings.depth_drop, pictures, generator)]
        parts = batches.parts(number, pictures, *gates)
        values = update.step(learning_rate, (partial(losses, ids_BT[:, :count], *rest) for ids_BT, *rest in parts))
        return {**values, "tokens": torch.tensor(count)}

    inputs = {"data": store_fingerprint(store), "vqvae": weights_fingerprint(quantizer)}
    if is_official:
        inputs["depth"] = str(config.depth)
    run("VAR", step, {"var": var, **update.states}, settings, inputs, team)
    update.finish()
    return team.onto_cpu(var).eval()


def depth_gates(depth: int, drop: float, pictures: int, generator: torch.Generator) -> Tensor:
    """Stochastic depth (Huang et al. 2016), as in official VAR: for a picture and half of a block 0, or 1 / (1 - p).

    Args:
        depth: number of blocks.
        drop: p, the probability of 0, in the last block; it rises in a line from 0 in the first.
        pictures: rows.
        generator: of the random numbers.

    Returns: BD2, what attention and FFN are multiplied with; its mean is 1.
    """
    drop_D1 = torch.linspace(0, drop, depth).unsqueeze(1)
    return (torch.rand(pictures, depth, 2, generator=generator) >= drop_D1) / (1 - drop_D1)


def teacher_forced_loss(
    var: nn.Module,
    quantizer: MultiScaleQuantizer,
    class_ids_B: Tensor,
    token_ids_BT: Tensor,
    precision: Precision = "auto",
    gates_BD2: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of every token given all scales before its own (VAR, Eq. 6): BT.

    Args:
        var: a `VAR`, as it is called in training.
        quantizer: of the VQVAE that the tokens are of.
        class_ids_B: see `VAR.forward`, as are the gates.
        token_ids_BT: of all scales, or of the first few.
        precision: see `actvar.training.loop.autocast`.
        gates_BD2: see there.
    """
    with torch.no_grad():
        tokens_in_BTE, _ = quantizer.teacher_forcing(token_ids_BT)
    with autocast(token_ids_BT.device.type, precision):
        logits_BTV, _ = var(class_ids_B, tokens_in_BTE, gates_BD2=gates_BD2)
    return F.cross_entropy(logits_BTV.flatten(0, 1), token_ids_BT.flatten(), reduction="none").view_as(token_ids_BT)


def _muon(var: VAR, settings: VARSettings) -> dict[str, torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest.

    Muon (Jordan et al. 2024) orthogonalises the update of a matrix; with its rate scaled to AdamW's it learns from
    fewer pictures, which is what a CPU has too few of.
    """
    in_blocks = {name for name, p in var.named_parameters() if name.startswith("blocks.") and p.dim() == 2}
    matrices = [p for name, p in var.named_parameters() if name in in_blocks]
    others = [p for name, p in var.named_parameters() if name not in in_blocks]
    return {
        "muon": torch.optim.Muon(
            matrices, lr=settings.learning_rate, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        "adamw": torch.optim.AdamW(others, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    }


def _adamw(var: VAR, settings: VARSettings) -> dict[str, torch.optim.Optimizer]:
    """AdamW for all, without decay for vectors and for what stands beside the matrices."""
    without = ("pos_1LC", "pos_start", "lvl_embed", "ada_gss", "scale_mul")
    plain = {name for name, p in var.named_parameters() if p.dim() == 1 or any(part in name for part in without)}
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in var.named_parameters() if name not in plain]},
        {"params": [p for name, p in var.named_parameters() if name in plain], "weight_decay": 0.0},
    ]
    rate, decay = settings.learning_rate, settings.weight_decay
    return {"adamw": torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), weight_decay=decay)}


@torch.no_grad()
def _share_between_classes(var: VAR, names: Sequence[str], generator: torch.Generator) -> None:
    """Start classes whose names share a word ("brown-crescent", "brown-star") from a shared vector.

    What is learned of one brown glyph then holds for all of them from the first step on.
    """
    words = sorted({word for name in names for word in name.split("-")})
    vectors = {word: torch.randn(var.config.width, generator=generator) for word in words}
    for class_id, name in enumerate(names):
        parts = [vectors[word] for word in name.split("-")]
        var.class_emb.weight[class_id] = torch.stack(parts).sum(0) * (0.5 / len(parts) ** 0.5)
