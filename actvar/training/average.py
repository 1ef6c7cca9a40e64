"""A moving average of weights while they are trained, which is what the training then leaves."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Average:
    """The exponential moving average of some parameters.

    The decay grows to its full value with (1 + n) / (10 + n) after n updates, so that what a training begins with is
    soon forgotten.

    Args:
        parameters: by name.
        decay: weight of the past in each update, in (0, 1).
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float):
        self._parameters, self._decay = dict(parameters), decay
        self._updates = 0
        self._mean = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are now."""
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        for name, parameter in self._parameters.items():
            self._mean[name].lerp_(parameter.detach(), 1 - decay)
        self._updates += 1

    @torch.no_grad()
    def replace_parameters(self) -> None:
        """Give the parameters the average's values."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self._mean[name])

    def state_dict(self) -> dict[str, Any]:
        """The averages, and how many updates they are of."""
        return {"updates": self._updates, "mean": self._mean}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to that."""
        self._updates = state["updates"]
        for name, mean in self._mean.items():
            mean.copy_(state["mean"][name])
