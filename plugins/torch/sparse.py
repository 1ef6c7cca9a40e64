"""The sparse parts of a recorded drawing by the library's kernels; see `actvar.recorded.operators.SparseOperators`."""

import torch
from torch import Tensor

from actvar.config import NORM_EPS
from actvar.plugins.expected import routing_pays
from actvar.plugins.torch import operators
from actvar.recorded.operators import PlainOperators
from actvar.recorded.weights import Experts


class LibraryOperators(PlainOperators):
    """The kernels in place of PyTorch's operators, on CUDA.

    Args:
        capability: of the GPU: experts are left out by a kernel where that is expected to be faster than a mask.
    """

    def __init__(self, capability: str):
        self._capability = capability

    def select(self, scores_RL: Tensor, keep: int) -> Tensor:
        """See `SparseOperators`."""
        return operators.token_select(scores_RL, keep)

    def gather(self, x_RLC: Tensor, places_RK: Tensor) -> Tensor:
        """See `SparseOperators`."""
        return operators.token_gather(x_RLC, places_RK)

    def gather_norm(
        self, x_RLC: Tensor, places_RK: Tensor, scale_R1C: Tensor, shift_R1C: Tensor, to: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """See `SparseOperators`."""
        return operators.token_gather_norm(x_RLC, places_RK, scale_R1C, shift_R1C, to, NORM_EPS)

    def scatter(self, x_RLC: Tensor, places_RK: Tensor, updated_RKC: Tensor) -> Tensor:
        """See `SparseOperators`."""
        return operators.token_scatter(x_RLC, places_RK, updated_RKC)

    def scatter_gated(
        self, x_RLC: Tensor, places_RK: Tensor, kept_RKC: Tensor, gamma_R1C: Tensor, change_RKC: Tensor
    ) -> Tensor:
        """See `SparseOperators`."""
        return operators.token_scatter_gated(x_RLC, places_RK, kept_RKC, gamma_R1C, change_RKC)

    def routed(self, x_RKC: Tensor, scores_RKN: Tensor, experts: Experts, active: int) -> Tensor:
        """See `SparseOperators`."""
        if not routing_pays(self._capability, active, experts.count):
            return super().routed(x_RKC, scores_RKN, experts, active)
        w1_NeC, w2_NeC = (rows.unflatten(0, (experts.count, -1)) for rows in (experts.w1_FC, experts.w2_FC))
        b1_Ne = experts.b1_F.unflatten(0, (experts.count, -1))
        given = x_RKC, scores_RKN, w1_NeC, b1_Ne, w2_NeC, experts.b2_C
        return operators.routed_ffn(*given, experts.count, active)
