"""Draws a picture with the eager model and writes down what its selectors and routers said at one scale.

Letters in shapes: D blocks, R rows, L tokens of the scale, K kept tokens, N experts, T the best few experts.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from actvar.config import ModelConfig, Sampling
from actvar.explain.choices import NOBODY, Choices
from actvar.generation import Generation, generate
from actvar.models.actvar import ActVAR
from actvar.models.selection import best_first, top_mask

BEST = 3
"""Experts that are ranked for each token; the paper's Figure 5 shows as many."""
_CONDITIONAL = 0  # of a picture's two rows


def record_choices(
    model: ActVAR, class_id: int, sampling: Sampling, si: int, seed: int = 0, number: int = 0
) -> tuple[Generation, Choices]:
    """One picture, and what was chosen for its conditional row at scale index si.

    Args:
        model: an ActVAR in evaluation mode.
        class_id: of the picture; it, `sampling`, `seed` and `number` are `actvar.generation.generate`'s, which draws
            the same picture.
        sampling: see there.
        si: the scale, from 0.
        seed: see there.
        number: see there.
    """
    with _heard(model) as (selectors, routers):
        made = generate(model, [class_id], sampling, seed, [number])
    config, scales = model.config, range(len(model.config.schedule))
    selecting = [each for each in scales if config.kept_tokens(each) < config.schedule.tokens[each]]
    routing = [each for each in scales if config.active_experts(each) < _experts(config)]
    kept_DL = np.ones((config.depth, config.schedule.tokens[si]), bool)
    if si in selecting:
        said = [(of_block or selectors[0])[selecting.index(si)] for of_block in selectors]  # fixed: the first's choice
        kept_DL = torch.stack([top_mask(s[_CONDITIONAL], config.kept_tokens(si)) for s in said]).cpu().numpy()
    used_DLN = np.repeat(kept_DL[:, :, None], _experts(config), axis=2)
    best_DLT = np.full((*kept_DL.shape, min(BEST, config.active_experts(si))), NOBODY)
    if si in routing:
        for i, of_block in enumerate(routers):
            scores_KN = of_block[routing.index(si)][_CONDITIONAL]
            _, order_KN = best_first(scores_KN)
            used_DLN[i, kept_DL[i]] = top_mask(scores_KN, config.active_experts(si)).cpu().numpy()
            best_DLT[i, kept_DL[i]] = order_KN[:, : best_DLT.shape[2]].cpu().numpy()
    return made, Choices(si + 1, config.schedule.patch_nums[si], kept_DL, used_DLN, best_DLT)


@contextmanager
def _heard(model: ActVAR) -> Iterator[tuple[list[list[Tensor]], list[list[Tensor]]]]:
    """The scores of every block's selector and router, call after call: one for each scale where there is a choice."""
    scorers: list[list[nn.Module | None]] = [
        [block.selector for block in model.var.blocks],
        [block.ffn.router for block in model.var.blocks],
    ]
    heard: list[list[list[Tensor]]] = [[[] for _ in of_kind] for of_kind in scorers]
    hooks = [
        scorer.register_forward_hook(lambda module, inputs, scores, calls=calls: calls.append(scores))
        for of_kind, of_blocks in zip(scorers, heard, strict=True)
        for scorer, calls in zip(of_kind, of_blocks, strict=True)
        if scorer is not None
    ]
    try:
        yield heard[0], heard[1]
    finally:
        for hook in hooks:
            hook.remove()


def _experts(config: ModelConfig) -> int:
    return config.activation.experts if config.activation else 1
