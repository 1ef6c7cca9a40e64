"""Self-attention over a scale's tokens and the KV cache of the scales before.

Knows nothing of masks' reasons, of token selection or of AdaLN.

Letters in shapes: R rows (pictures, conditional and unconditional), L tokens that come in, P tokens cached, T = P + L,
h heads, d = 64, C = h*d.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actvar.config import HEAD_WIDTH, MAX_SCALE_MUL


class SelfAttention(nn.Module):
    """Attention on unit-length queries and keys with a learned temperature per head (VAR, Sec. 4.1).

    q = normalize(q) * exp(min(scale_mul, ln 100)), k = normalize(k), no other scale. Keys have no bias.

    Args:
        heads: h; the width is 64 h.
    """

    def __init__(self, heads: int):
        super().__init__()
        width = heads * HEAD_WIDTH
        self.heads = heads
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4.0)))
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(
        self, x_RLC: Tensor, past_kv_2RhPd: Tensor | None = None, mask_RhLT: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            x_RLC: normalised and modulated tokens.
            past_kv_2RhPd: keys and values of earlier scales, which every token sees.
            mask_RhLT: bool, true where a query may see a key; broadcast; None is true everywhere.

        Returns: the output, RLC, and the keys and values of these tokens, [2, R, h, L, d].
        """
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = F.linear(x_RLC, self.mat_qkv.weight, bias)
        q_RhLd, k_RhLd, v_RhLd = qkv.unflatten(2, (3, self.heads, HEAD_WIDTH)).permute(2, 0, 3, 1, 4).unbind(0)
        q_RhLd = F.normalize(q_RhLd, dim=-1) * self.scale_mul_1H11.clamp_max(MAX_SCALE_MUL).exp()
        k_RhLd = F.normalize(k_RhLd, dim=-1)
        q_RhLd, k_RhLd = q_RhLd.to(v_RhLd.dtype), k_RhLd.to(v_RhLd.dtype)  # autocast normalises in fp32
        new_kv_2RhLd = torch.stack((k_RhLd, v_RhLd))
        kv_2RhTd = new_kv_2RhLd if past_kv_2RhPd is None else torch.cat((past_kv_2RhPd, new_kv_2RhLd), dim=3)
        out_RhLd = F.scaled_dot_product_attention(q_RhLd, kv_2RhTd[0], kv_2RhTd[1], attn_mask=mask_RhLT, scale=1.0)
        return self.proj(out_RhLd.transpose(1, 2).flatten(2)), new_kv_2RhLd
