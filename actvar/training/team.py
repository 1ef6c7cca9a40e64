"""The processes that train one model together: here, one that is alone; several are `actvar.training.processes`'.

Knows how a step is shared, not what it is. A process that is alone needs no package beside PyTorch.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from actvar.models.var import VAR

Parallel: TypeAlias = Literal["ddp", "fsdp"]


class Team:
    """One process that is alone; its subclass says what several do instead."""

    size = 1
    rank = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """Where this process works, of the device that all were given."""
        return name

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module as it is called in training; in-place where weights are sharded. Optimisers are made after it."""
        return module

    def gathering(self, model: nn.Module, last: bool) -> AbstractContextManager[None]:
        """For one part of a batch: gradients are averaged over the processes at its last."""
        return nullcontext()

    def mean(self, values: Mapping[str, float | Tensor]) -> dict[str, float]:
        """Means over the processes."""
        return {name: float(torch.as_tensor(value).detach()) for name, value in values.items()}

    def whole(self, state: Any) -> Any:
        """A state with whole tensors; in processes that are not the main one, without their values."""
        return state

    def load(self, part: Any, state: Any) -> None:
        """Bring a part back to a state that `whole` gave."""
        part.load_state_dict(state)

    def onto_cpu(self, var: VAR) -> VAR:
        """A model that was wrapped, whole and on the CPU; in processes that are not the main one, maybe its shapes."""
        return var.cpu()

    def wait(self) -> None:
        """Until all processes are here."""


ALONE = Team()
