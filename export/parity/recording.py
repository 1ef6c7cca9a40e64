"""What each graph is given and must give back, recorded from the eager model: the ground for every comparison.

Letters in shapes: B pictures, G groups of rows, R = G * B, D depth, h heads, T tokens that the cache has room for, d =
64, L tokens of a scale, K kept, A active experts, E code width, H side of f_hat.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from actvar.bundle.contract import DRAWN, ENCODER, scale_name
from actvar.config import HEAD_WIDTH, STATIC, ModelConfig, Sampling
from actvar.export.graphs.scale import EXPERTS, HIDDEN, KEPT, LOGITS
from actvar.generation import class_rows, generate
from actvar.models.actvar import ActVAR
from actvar.models.selection import Selection
from actvar.models.var import Condition
from actvar.uniforms import random_input, token_randoms


@dataclass(frozen=True)
class Recording:
    """One run of one graph: inputs and outputs by the names of `actvar.bundle.contract`, and a scale's debug outputs.

    All in fp32 and int64; an fp16 graph reads and writes some of it in fp16. The inputs hold more than a graph reads
    where the contract lets it leave one out.
    """

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


@torch.no_grad()
def record(
    model: ActVAR, class_ids: Sequence[int], sampling: Sampling, seed: int = 0, picture_numbers: Sequence[int] = ()
) -> Iterator[tuple[str, Recording]]:
    """Draw pictures with the eager model on the CPU, and give what each graph of its bundle would see.

    The arguments are those of `actvar.generation.generate`, which also makes the tokens, logits and pictures.

    Returns: each graph's name and its recording, in the order in which they run. `past_kv` of all scales is one array
        that goes on filling up: beyond what the scales before a graph have left, it is anything.
    """
    config, quantizer = model.config, model.vqvae.quantize
    numbers = picture_numbers or range(len(class_ids))
    made = generate(model, class_ids, sampling, seed, numbers)
    batch, groups = len(class_ids), config.row_groups(0)
    condition = model.var.condition(class_rows(config, class_ids))
    apart = in_groups(condition, groups)
    modulations, first = {name: apart[name] for name in ("modulation", "head_modulation")}, {"start": apart["start"]}
    yield "condition", _recording({"class_ids": torch.tensor(class_ids)}, {**modulations, **first})

    limits = {"cfg": sampling.cfg, "top_k": sampling.top_k, "top_p": sampling.top_p}
    fixed = {**modulations, **{name: torch.tensor(value) for name, value in limits.items()}}
    window_D2RhTd = torch.zeros(config.depth, 2, groups * batch, config.heads, config.cached_tokens[-1], HEAD_WIDTH)
    window_D2GBhTd = window_D2RhTd.unflatten(2, (groups, batch))
    f_hat_BEHH = torch.zeros_like(made.f_hats[0])
    for si, tokens in enumerate(config.schedule.tokens):
        tokens_in_BLE = quantizer.tokens_in(f_hat_BEHH, si)
        random = torch.from_numpy(np.stack([token_randoms(config, seed, n, si) for n in numbers]))
        drawing = {"f_hat": f_hat_BEHH, random_input(config): random, "past_kv": window_D2GBhTd}
        drawing["given"] = torch.full((batch, tokens), DRAWN)
        inputs = {**fixed, **drawing, **({"tokens_in": tokens_in_BLE} if si else first)}

        own, rows = config.row_groups(si), config.row_groups(si) * batch
        past_D2RhPd = window_D2RhTd[:, :, :rows, :, : config.cached_tokens[si]]
        tokens_in_RLE = tokens_in_BLE.repeat(own, 1, 1) if si else None
        traced = model.var.trace(tokens_in_RLE, condition.of_rows(rows), past_D2RhPd, si)
        f_hat_BEHH = made.f_hats[si]
        outputs = {"token_ids": made.token_ids[si], "next_f_hat": f_hat_BEHH, LOGITS: made.guided_logits[si]}
        outputs |= of_rows_in_groups({HIDDEN: traced.hidden_DRLC, **stacked(config, traced.best)}, own)
        if si + 1 < len(config.schedule):
            begin, end = config.cached_tokens[si : si + 2]
            window_D2RhTd[:, :, :rows, :, begin:end] = traced.new_kv_D2RhKd
            new_kv_D2GBhKd = traced.new_kv_D2RhKd.unflatten(2, (own, batch))
            outputs |= {"new_kv": new_kv_D2GBhKd, "next_tokens_in": quantizer.tokens_in(f_hat_BEHH, si + 1)}
        yield scale_name(si), _recording(inputs, outputs)
    yield "decoder", _recording({"f_hat": f_hat_BEHH}, {"image": made.pictures_B3HW})
    ids_BT = model.vqvae.encode(made.pictures_B3HW * 2 - 1)
    yield ENCODER, _recording({"picture": made.pictures_B3HW}, {"token_ids": ids_BT})


def stacked(config: ModelConfig, selections: Sequence[Selection]) -> dict[str, Tensor]:
    """What all blocks chose: kept tokens DRK and experts DRKA, where there is a choice.

    Static experts are none: which they are is decided before a graph runs.
    """
    chosen = {KEPT: [each.kept_RK for each in selections], EXPERTS: [each.experts_RKA for each in selections]}
    if config.activation and config.activation.expert_choice == STATIC:
        del chosen[EXPERTS]
    whole = {name: [ids for ids in of_blocks if ids is not None] for name, of_blocks in chosen.items()}
    return {name: torch.stack(of_blocks) for name, of_blocks in whole.items() if of_blocks}


def in_groups(condition: Condition, groups: int) -> dict[str, Tensor]:
    """What the graph `condition` gives: rows as [G, B]."""
    return {
        "modulation": condition.modulation_DR6C.unflatten(1, (groups, -1)),
        "head_modulation": condition.head_modulation_R2C.unflatten(0, (groups, -1)),
        "start": condition.start_R1C.unflatten(0, (groups, -1)),
    }


def of_rows_in_groups(tensors: Mapping[str, Tensor], groups: int) -> dict[str, Tensor]:
    """Debug outputs, [D, R, ...], as a graph gives them: [D, G, B, ...]."""
    return {name: tensor.unflatten(1, (groups, -1)) for name, tensor in tensors.items()}


def _recording(inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> Recording:
    return Recording(*({name: tensor.numpy() for name, tensor in side.items()} for side in (inputs, outputs)))
