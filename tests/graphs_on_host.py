"""A stand-in for CUDA graphs on the CPU: records the operators of a step, and replays them onto the same memory.

As a CUDA graph it keeps addresses and sizes, and nothing of Python: what a step read from a variable while it was
recorded is read no more. What a recording would refuse is refused.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

WAITS = {"item", "_local_scalar_dense", "is_nonzero", "equal", "lift_fresh", "lift_fresh_copy", "pin_memory"}
"""Operators that give a value to the host, or take a tensor from its data."""
UNKNOWN_SHAPES = {
    "nonzero",
    "masked_select",
    "unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "unique_dim_consecutive",
    "bincount",
    "repeat_interleave",
}
"""Operators whose result's shape depends on values."""


class NotRecordable(Exception):
    """A step does what a CUDA graph cannot record."""


class Forbidding(TorchDispatchMode):
    """Refuses what a recording must not do. `device` is where every tensor that is made must be."""

    def __init__(self, device: str):
        super().__init__()
        self.device = device
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.seen.append(name)
        if name in WAITS:
            raise NotRecordable(f"{name} makes the host wait, or takes from it")
        if name in UNKNOWN_SHAPES:
            raise NotRecordable(f"the shape of what {name} gives depends on values")
        if name in ("index", "index_put", "index_put_") and any(
            isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8) for each in args[1]
        ):
            raise NotRecordable(f"{name} with a mask looks for what is true")
        made = func(*args, **(kwargs or {}))
        for tensor in _tensors(made):
            if tensor.device.type != self.device:
                raise NotRecordable(f"{name} makes a tensor on {tensor.device}")
        return made


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.fresh: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, made))
        given = {_memory(each) for each in _tensors((args, kwargs))}
        self.fresh += [each for each in _tensors(made) if _memory(each) not in given]
        return made


def _tensors(tree: Any) -> list[Tensor]:
    return [each for each in tree_flatten(tree)[0] if isinstance(each, Tensor)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def record(step: Callable[[], None]) -> Callable[[], None]:
    """See `actvar.recorded.recorders.Recorder`. What the recording has made in between is not there for a replay."""
    step()
    with Forbidding("cpu"), _Recording() as recording, torch.no_grad():
        step()
    for tensor in recording.fresh:
        tensor.fill_(float("nan") if tensor.is_floating_point() else 1)

    def replay() -> None:
        for func, args, kwargs, made in recording.calls:
            again = func(*args, **kwargs)
            for old, new in zip(_tensors(made), _tensors(again), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    return replay
