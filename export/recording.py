"""What each graph is given and must give back, recorded from the eager model: the ground for every comparison.

Letters in shapes: B pictures, R = 2B rows, D depth, h heads, T tokens that the cache has room for, d = 64, L tokens of
a scale, E code width, H side of f_hat.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from actvar.bundle import scale_name
from actvar.config import HEAD_WIDTH, ModelConfig, Sampling
from actvar.export.graphs import LOGITS
from actvar.generation import generate
from actvar.models.actvar import ActVAR
from actvar.models.kv_cache import KVCache
from actvar.uniforms import token_uniforms


@dataclass(frozen=True)
class Recording:
    """One run of one graph: inputs and outputs by the names of `actvar.bundle.contract`, and `logits` of a scale.

    All in fp32 and int64; an fp16 graph reads and writes some of it in fp16. The inputs hold more than a graph reads
    where the contract lets it leave one out.
    """

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


@torch.no_grad()
def record(
    model: ActVAR, class_ids: Sequence[int], sampling: Sampling, seed: int = 0, picture_numbers: Sequence[int] = ()
) -> dict[str, Recording]:
    """Draw pictures with the eager model on the CPU, and keep what each graph of its bundle would see.

    The arguments are those of `actvar.generation.generate`, which also makes the tokens, logits and pictures.

    Returns: a recording for each graph.
    """
    config, quantizer = model.config, model.vqvae.quantize
    numbers = picture_numbers or range(len(class_ids))
    made = generate(model, class_ids, sampling, seed, numbers)
    condition = model.var.condition(torch.tensor([*class_ids, *[config.num_classes] * len(class_ids)]))
    modulations = {"modulation": condition.modulation_DR6C, "head_modulation": condition.head_modulation_R2C}
    first = {"start": condition.start_R1C}
    recordings = {"condition": _recording({"class_ids": torch.tensor(class_ids)}, {**modulations, **first})}

    limits = {"cfg": sampling.cfg, "top_k": sampling.top_k, "top_p": sampling.top_p}
    fixed = {**modulations, **{name: torch.tensor(value) for name, value in limits.items()}}
    cache = KVCache(config, 2 * len(class_ids), model.var.pos_start)
    f_hat_BEHH = torch.zeros_like(made.f_hats[0])
    for si, tokens in enumerate(config.schedule.tokens):
        tokens_in_BLE = quantizer.tokens_in(f_hat_BEHH, si)
        uniform_BL = torch.from_numpy(np.stack([token_uniforms(seed, n, si, tokens) for n in numbers]))
        drawing = {"f_hat": f_hat_BEHH, "uniform": uniform_BL, "past_kv": _window(cache, config)}
        inputs = {**fixed, **drawing, **({"tokens_in": tokens_in_BLE} if si else first)}

        _, new_kv_D2RhKd = model.var.infer(tokens_in_BLE.repeat(2, 1, 1) if si else None, condition, cache.past, si)
        cache.append(new_kv_D2RhKd)
        f_hat_BEHH = made.f_hats[si]
        outputs = {"token_ids": made.token_ids[si], "next_f_hat": f_hat_BEHH, LOGITS: made.guided_logits[si]}
        if si + 1 < len(config.schedule):
            outputs |= {"new_kv": new_kv_D2RhKd, "next_tokens_in": quantizer.tokens_in(f_hat_BEHH, si + 1)}
        recordings[scale_name(si)] = _recording(inputs, outputs)
    recordings["decoder"] = _recording({"f_hat": f_hat_BEHH}, {"image": made.pictures_B3HW})
    return recordings


def _window(cache: KVCache, config: ModelConfig) -> Tensor:
    """The cache as graphs have it, with room for all scales: D2RhTd."""
    filled = cache.past.shape[-2]
    window_D2RhTd = cache.past.new_zeros((*cache.past.shape[:-2], config.cached_tokens[-1], HEAD_WIDTH))
    window_D2RhTd[..., :filled, :] = cache.past
    return window_D2RhTd


def _recording(inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> Recording:
    return Recording(*({name: tensor.numpy() for name, tensor in side.items()} for side in (inputs, outputs)))
