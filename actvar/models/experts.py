"""The feed-forward network, whole or cut into experts.

Expert i owns the hidden neurons i*de to (i+1)*de - 1, with de = 4C / N: a slice of fc1's rows and of fc2's columns. The
output bias b2 is shared and added once, so that all experts together are the network they were cut from.

Letters in shapes: C width, F = 4C hidden, N experts; leading dimensions are free.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from actvar.models.selection import Router, StaticRouter


class FFN(nn.Module):
    """F(x) = GELU(x W1 + b1) W2 + b2 (ActVAR, Eq. 3), or the sum of a token's active experts (Eq. 4).

    Args:
        width: C.
        experts: N, or None for a network without a router.
        routed: score the experts for each token; otherwise once for all.
    """

    def __init__(self, width: int, experts: int | None = None, routed: bool = True):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.router: Router | StaticRouter | None = None
        if experts:
            self.router = Router(width, experts) if routed else StaticRouter(experts)

    def hidden(self, x: Tensor) -> Tensor:
        """Hidden values of all experts: [..., C] -> [..., F]."""
        return F.gelu(self.fc1(x), approximate="tanh")

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """Apply.

        Args:
            x: [..., C].
            gate: [..., N], the weight of each expert's contribution: 0 or 1, or a straight-through estimate of that.
                None uses all.

        Returns: [..., C].
        """
        hidden = self.hidden(x)
        if gate is not None:
            experts = gate.shape[-1]
            hidden = (hidden.unflatten(-1, (experts, -1)) * gate.unsqueeze(-1).to(hidden.dtype)).flatten(-2)
        return self.fc2(hidden)
