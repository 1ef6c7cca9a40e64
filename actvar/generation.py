"""Pictures from the eager model: the oracle that every graph, engine and backend is compared with.

Letters in shapes: B pictures, R rows: B conditional, then where a scale is guided B unconditional ones. L tokens of a
scale, E code width, H side of f_hat.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from actvar.config import ModelConfig, Sampling
from actvar.models.actvar import ActVAR
from actvar.models.kv_cache import KVCache
from actvar.sampling import drawn, guide
from actvar.uniforms import token_randoms


@dataclass(frozen=True)
class Generation:
    """What a run leaves: pictures [B, 3, size, size] in [0, 1], and of every scale its tokens, f_hat and logits."""

    pictures_B3HW: Tensor
    token_ids: tuple[Tensor, ...]
    f_hats: tuple[Tensor, ...]
    guided_logits: tuple[Tensor, ...]


def class_rows(config: ModelConfig, class_ids: Sequence[int]) -> Tensor:
    """The class of every row, [R] int64: those of the pictures, then where a model is guided as many without one."""
    return torch.tensor([*class_ids, *[config.num_classes] * len(class_ids) * (config.row_groups(0) - 1)])


@torch.no_grad()
def generate(
    model: ActVAR,
    class_ids: Sequence[int],
    sampling: Sampling,
    seed: int = 0,
    picture_numbers: Sequence[int] = (),
    on_scale_end: Callable[[int, Tensor], None] | None = None,
    given: Sequence[np.ndarray] = (),
) -> Generation:
    """Draw one picture for each class, scale by scale (VAR, Sec. 3.2; ActVAR, Sec. 3.4).

    Args:
        model: in evaluation mode; its device is used.
        class_ids: B classes; the number after the last is none.
        sampling: guidance strength, which counts at guided scales, top-k and top-p.
        seed: with the picture's number it decides all its random numbers.
        picture_numbers: B numbers; 0 to B-1 if left out.
        on_scale_end: is given the index of each scale and f_hat after it, [B, E, H, H], before the next begins.
        given: of every scale codes that are not drawn, [B, L] int64, and `DRAWN` where one is; all are, if left out.
    """
    var, quantizer, schedule = model.var, model.vqvae.quantize, model.config.schedule
    numbers = picture_numbers or range(len(class_ids))
    device, batch = var.pos_start.device, len(class_ids)
    class_ids_R = class_rows(model.config, class_ids).to(device)
    condition, cache = var.condition(class_ids_R), KVCache(model.config, len(class_ids_R), var.pos_start)
    f_hat_BEHH = var.pos_start.new_zeros(batch, quantizer.width, schedule.side, schedule.side)

    ids, f_hats, all_logits = [], [], []
    for si in range(len(schedule)):
        groups = model.config.row_groups(si)
        rows = groups * batch
        tokens_in_RLE = quantizer.tokens_in(f_hat_BEHH, si).repeat(groups, 1, 1) if si else None
        logits_RLV, new_kv = var.infer(tokens_in_RLE, condition.of_rows(rows), cache.past[:, :, :rows], si)
        cache.append(new_kv)
        random = torch.from_numpy(np.stack([token_randoms(model.config, seed, n, si) for n in numbers])).to(device)
        logits_BLV = guide(logits_RLV, sampling.cfg * schedule.cfg_ramp(si)) if groups == 2 else logits_RLV
        given_BL = torch.from_numpy(given[si]).to(device) if given else None
        tokens = drawn(model.config, quantizer, si, logits_BLV, random, sampling.top_k, sampling.top_p, given_BL)
        f_hat_BEHH = f_hat_BEHH + quantizer.enlarge(tokens.codes_BLE, si)
        ids.append(tokens.ids_BL)
        f_hats.append(f_hat_BEHH)
        all_logits.append(logits_BLV)
        if on_scale_end:
            on_scale_end(si, f_hat_BEHH)
    pictures_B3HW = (model.decode(f_hat_BEHH) + 1) / 2
    return Generation(pictures_B3HW, tuple(ids), tuple(f_hats), tuple(all_logits))
