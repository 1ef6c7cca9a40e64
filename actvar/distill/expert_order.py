"""A static order of experts that is fixed before stage 1, in place of one that stage 1 learns.

Letters in shapes: B pictures, T tokens of all scales, K tokens of a piece, D blocks, N experts, C width.
"""

import torch
from torch import Tensor

from actvar.data.tokens import TokenStore
from actvar.distill.labels import TOKENS_AT_ONCE, dropped_in_turn, expert_products, teacher_pass
from actvar.models.quantizer import MultiScaleQuantizer
from actvar.models.selection import StaticRouter
from actvar.models.var import VAR

_SAMPLE = 64  # pictures: at the paper's last two scales 27,200 tokens
_AT_ONCE = 8


@torch.no_grad()
def orders_from_data(
    teacher: VAR, student: VAR, store: TokenStore, quantizer: MultiScaleQuantizer, pictures: int = _SAMPLE
) -> Tensor:
    """Every block's experts, those first without which its FFN would change most.

    With c_i(t) what expert i adds to the teacher's FFN at token t, and D the experts that are dropped, the loss is the
    sum over t of |sum_D c_i(t)|^2: how far the kept ones are from the whole FFN. D grows from nothing by one expert at
    a time, the one with which the loss is least. So whatever number is kept, those that were dropped last are.

    Args:
        teacher: the dense model; it is on the device that does the work, as is the quantizer.
        student: says which scales leave experts out, and their number.
        store: the teacher's tokens; the sample is taken evenly from it.
        quantizer: that they are of.
        pictures: in the sample.

    Returns: DN int64, best first, on the CPU.
    """
    config, device = student.config, teacher.pos_start.device
    assert config.activation is not None
    experts = config.activation.experts
    leaves_out_S = [config.active_experts(si) < experts for si in range(len(config.schedule))]
    here_T = torch.tensor([leaves_out_S[si] for si in student.token_scales()], device=device)
    products_DNN = torch.zeros(config.depth, experts, experts, dtype=torch.float64, device=device)
    places = torch.linspace(0, len(store) - 1, min(pictures, len(store))).round().long()
    for places_B in places.split(_AT_ONCE):
        token_ids_BT, class_ids_B = (tensor.to(device) for tensor in store.batch(places_B))
        tokens_in_BTE, _ = quantizer.teacher_forcing(token_ids_BT)
        taught = teacher_pass(teacher, class_ids_B, tokens_in_BTE)
        for products_NN, block, trace in zip(products_DNN, teacher.blocks, taught.traces, strict=True):
            for x_KC in trace.ffn_input_RTC[:, here_T].flatten(0, 1).split(TOKENS_AT_ONCE):
                products_NN += expert_products(block.ffn, x_KC, experts).sum(0, dtype=torch.float64)
    dropped_DN, _ = dropped_in_turn(products_DNN, experts)
    return dropped_DN.flip(1).cpu()


def orders_by_index(student: VAR) -> Tensor:
    """DN int64: experts as they are numbered, which tells nothing of them.

    A learned order, and one from data, is worth what it is better than this.
    """
    assert student.config.activation is not None
    return torch.arange(student.config.activation.experts).expand(student.config.depth, -1)


@torch.no_grad()
def fix_orders(student: VAR, orders_DN: Tensor) -> None:
    """Give every block this order: its static router scores the first expert 0, the next -1, and so on."""
    for block, order_N in zip(student.blocks, orders_DN, strict=True):
        assert isinstance(block.ffn.router, StaticRouter)
        block.ffn.router.bias.copy_(-order_N.argsort().float())
