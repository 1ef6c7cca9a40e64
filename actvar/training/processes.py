"""Several processes that train one model, by accelerate over torch.distributed: DDP, or FSDP by `fully_shard`.

Each process takes its share of the same batch; losses are means over pictures, so equal shares average to the whole.
FSDP calls PyTorch's `fully_shard` itself, as accelerate's plugin does, because the plugin leaves CPUs out: what runs on
GPUs is then what the tests run.
"""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from actvar.models.actvar import empty_model
from actvar.models.block import AdaLinear, Block
from actvar.models.var import VAR
from actvar.training.team import Parallel, Team


class Processes(Team):
    """All processes that a launcher has started.

    Args:
        parallel: see `team_of`.
        device: cpu or cuda.
    """

    def __init__(self, parallel: Parallel, device: str):
        os.environ.pop("ACCELERATE_USE_FSDP", None)  # of `accelerate config`: how to share is said to the command
        self._accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")  # autocast is the training's own
        self._shards = parallel == "fsdp"
        self.size, self.rank = self._accelerator.num_processes, self._accelerator.process_index

    def device(self, name: str) -> str:
        """One GPU for each process of a machine, or the CPU."""
        return name if name == "cpu" else str(self._accelerator.device)

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module in DDP, or itself with its weights sharded, block by block."""
        if not self._shards:
            return self._accelerator.prepare(module)
        warnings.filterwarnings("ignore", "FSDP2-wrapped module")  # about views that nothing here changes in place
        for inner in module.modules():
            if isinstance(inner, AdaLinear):  # called for all blocks at once, before any of them
                fully_shard(inner)
        for inner in module.modules():
            if isinstance(inner, Block):
                fully_shard(inner)
                if inner.ada_gss is not None:
                    register_fsdp_forward_method(inner, "modulation")
        fully_shard(module)
        return module

    @contextmanager
    def gathering(self, model: nn.Module, last: bool) -> Iterator[None]:
        """See `Team`."""
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(last)
            yield
        elif last:
            yield
        else:
            with self._accelerator.no_sync(model):
                yield

    def mean(self, values: Mapping[str, float | Tensor]) -> dict[str, float]:
        """See `Team`; every process has to call it."""
        here = torch.tensor(
            [float(_full(torch.as_tensor(value).detach())) for value in values.values()],
            device=self._accelerator.device,
        )
        dist.all_reduce(here)
        return dict(zip(values, (here / self.size).tolist(), strict=True))

    def whole(self, state: Any) -> Any:
        """See `Team`; every process has to call it."""
        if isinstance(state, dict):
            return {name: self.whole(value) for name, value in state.items()}
        if isinstance(state, list):
            return [self.whole(value) for value in state]
        if not isinstance(state, Tensor):
            return state
        full = _full(state)
        return full.cpu() if self.is_main else full.to("meta")

    def load(self, part: Any, state: Any) -> None:
        """See `Team`."""
        if isinstance(part, torch.optim.Optimizer):
            parameters = [parameter for group in part.param_groups for parameter in group["params"]]
            like = {place: dict.fromkeys(state["state"][place], parameters[place]) for place in state["state"]}
            state = {**state, "state": _sharded(like, state["state"])}
        else:
            state = _sharded(part.state_dict(), state)
        part.load_state_dict(state)

    def onto_cpu(self, var: VAR) -> VAR:
        """See `Team`; every process has to call it."""
        if not self._shards:
            return var.cpu()
        whole = empty_model(var.config).var
        whole.load_state_dict(self.whole(var.state_dict()), assign=True)
        return whole

    def wait(self) -> None:
        """Until all processes are here."""
        self._accelerator.wait_for_everyone()

    def leave(self) -> None:
        """End the team."""
        if dist.is_initialized():
            dist.destroy_process_group()


def _full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _sharded(like: Any, whole: Any) -> Any:
    """A state whose tensors are sharded as those of another are, if they have their shapes: a step's count has not."""
    if isinstance(whole, dict):
        return {name: _sharded(like[name], value) for name, value in whole.items()}
    if isinstance(like, DTensor) and isinstance(whole, Tensor) and whole.shape == like.shape:
        here = whole.to(like.device)
        return distribute_tensor(here, like.device_mesh, like.placements, src_data_rank=None)
    return whole
