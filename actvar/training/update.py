"""One update of a model's weights: the gradients of a batch, in parts if memory asks for it, clipped and applied."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from actvar.training.average import Average
from actvar.training.state import Stateful
from actvar.training.team import ALONE, Team

Losses = Callable[[], Mapping[str, Tensor]]
"""Runs the model on a part of the batch: `loss`, a mean over the part's pictures, and what else is to be logged."""


class Update:
    """Applies gradients.

    Args:
        model: as it is called; of a team, what `Team.wrap` made of it.
        parameters: what is trained, by name.
        optimizers: of these parameters, by name.
        parts: equal parts that each batch comes in: their mean is the batch's, and so is their gradient.
        decay: of the parameters' average, which the training leaves; 0 keeps none.
        team: the processes that take each step together.
        clip: the largest norm of the gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        optimizers: Mapping[str, torch.optim.Optimizer],
        parts: int = 1,
        decay: float = 0.0,
        team: Team = ALONE,
        clip: float = 1.0,
    ):
        self._model, self._parameters, self._optimizers = model, list(parameters.values()), optimizers
        self._parts, self._team, self._clip = parts, team, clip
        self._average = Average(parameters, decay) if decay else None

    @property
    def states(self) -> dict[str, Stateful]:
        """What is to be resumed, beside the model."""
        return {**self._optimizers, **({"average": self._average} if self._average else {})}

    def step(self, learning_rate: float, batch: Iterable[Losses]) -> dict[str, Tensor]:
        """Update the weights by one batch.

        Args:
            learning_rate: of all optimisers.
            batch: its parts.

        Returns: the means of the losses, and `gradient`, the norm before it was clipped.
        """
        for optimizer in self._optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for place, losses in enumerate(batch, start=1):
            with self._team.gathering(self._model, place == self._parts):
                values = losses()
                (values["loss"] / self._parts).backward()
            for name, value in values.items():
                share = value.detach() / self._parts
                sums[name] = sums[name] + share if name in sums else share
        norm = nn.utils.clip_grad_norm_(self._parameters, self._clip)
        for optimizer in self._optimizers.values():
            optimizer.step()
        if self._average:
            self._average.update()
        return {**sums, "gradient": norm}

    def finish(self) -> None:
        """Leave the average in place of the last weights, if one is kept."""
        if self._average:
            self._average.replace_parameters()
