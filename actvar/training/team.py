"""The processes that train one model together: here, one that is alone; several are `actvar.training.processes`'.

Knows how a step is shared, not what it is. A process that is alone needs no package beside PyTorch.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from actvar.errors import ActVARError, UsageError
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


@contextmanager
def team_of(parallel: Parallel | None, device: str) -> Iterator[Team]:
    """The processes that torchrun or accelerate has started, or this one.

    Args:
        parallel: "ddp" keeps the whole model in every process, "fsdp" shards it; None is "ddp" where there are several.
        device: cpu or cuda.

    Raises:
        UsageError: `parallel` is given to a process that is alone, or a device with a number to several.
        ActVARError: there are several processes, and accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        if parallel:
            raise UsageError(
                f"--parallel {parallel} is for several processes, and this one is alone. Start the command by "
                "`torchrun --nproc-per-node N --no-python actvar-trt …`, or leave --parallel out."
            )
        yield ALONE
        return
    if device not in ("cpu", "cuda"):
        raise UsageError(f"--device {device} is for one process; of several, each takes its own. Say --device cuda.")
    try:
        from actvar.training.processes import Processes
    except ModuleNotFoundError as error:
        raise ActVARError(
            f"The package {error.name} is needed to train in several processes, and is not installed. "
            "Install it with: pip install 'actvar-trt[train]'"
        ) from None
    team = Processes(parallel or "ddp", device)
    yield team
    team.leave()  # not after an error: the others may be waiting for this process, and its launcher ends them
