"""What a part's state must look like before the part is given it: PyTorch takes in much that fails a step later.

Knows tensors, networks and optimisers; not files, and not runs.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from actvar.errors import shown

_OF_A_PARAMETER = {"AdamW": {"step", "exp_avg", "exp_avg_sq"}, "Muon": {"momentum_buffer"}}
"""What each optimiser that is used here keeps for a parameter that it has updated."""


def require_form(found: Any, part: Any, where: str) -> None:
    """Hold a state to the part that is to go on from it: names, types, shapes, and where its tensors lie.

    Args:
        found: as it was read.
        part: with a `state_dict`; as it is before the first step.
        where: a name for messages.

    Raises:
        ValueError: it does not fit.
    """
    if isinstance(part, torch.optim.Optimizer):
        _require_optimizer(found, part, where)
    else:
        _require_like(found, part.state_dict(), where)


def _require_optimizer(found: Any, optimizer: torch.optim.Optimizer, where: str) -> None:
    fresh = optimizer.state_dict()
    _require_names(found, fresh, where)
    groups = _without_rates(found["param_groups"])
    if groups is None or not _are_equal(groups, _without_rates(fresh["param_groups"])):
        raise ValueError(f"{where}.param_groups are of another optimiser")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kept = _OF_A_PARAMETER[type(optimizer).__name__]
    if not isinstance(found["state"], dict):
        raise ValueError(f"{where}.state is {_kind(found['state'])}")
    for place, values in found["state"].items():
        here = f"{where}.state.{place}"
        if type(place) is not int or not 0 <= place < len(parameters):
            raise ValueError(f"{shown(here)} is of no parameter")
        _require_names(values, dict.fromkeys(kept), here)
        for name in kept - {"step"}:
            _require_tensor(values[name], parameters[place], f"{here}.{name}")
        if "step" in kept:
            _require_count(values["step"], f"{here}.step")


def _without_rates(groups: Any) -> list[dict[Any, Any]] | None:
    """Groups without the learning rate, which every step sets anew."""
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        return None
    return [{name: value for name, value in group.items() if name != "lr"} for group in groups]


def _require_count(value: Any, where: str) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{where} is {_kind(value)}, expected a tensor")
    _require_tensor(value, torch.zeros((), dtype=torch.float32), where)
    if not (math.isfinite(float(value)) and float(value) >= 0):
        raise ValueError(f"{where} is {float(value)}, expected a number of steps")


def _require_like(found: Any, like: Any, where: str) -> None:
    if isinstance(like, Tensor):
        _require_tensor(found, like, where)
    elif isinstance(like, Mapping):
        _require_names(found, like, where)
        for name, value in like.items():
            _require_like(found[name], value, f"{where}.{name}")
    elif type(found) is not type(like) or (isinstance(found, int) and found < 0):
        raise ValueError(f"{where} is {_kind(found)}, expected {_kind(like)}")


def _require_names(found: Any, like: Mapping[Any, Any], where: str) -> None:
    if not isinstance(found, dict) or set(found) != set(like):
        raise ValueError(f"{shown(where)} is {_kind(found)}, expected {', '.join(map(str, list(like)[:5]))}")


def _require_tensor(found: Any, like: Tensor, where: str) -> None:
    if type(found) is not Tensor:
        raise ValueError(f"{where} is {_kind(found)}, expected a tensor")
    plain = found.layout == torch.strided and found.device.type == "cpu" and not found.is_quantized
    if not plain or found.dtype != like.dtype or found.shape != like.shape or not _is_dense(found):
        raise ValueError(
            f"{where} is {found.dtype} {list(found.shape)}{'' if plain else ' in an odd layout'}, "
            f"expected {like.dtype} {list(like.shape)}"
        )


def _is_dense(tensor: Tensor) -> bool:
    """Whether each value has a place of its own, and no place is left out."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def _are_equal(found: Any, wanted: Any) -> bool:
    """Plain values of the same types, all the way in; a tensor among them is none."""
    if type(found) is not type(wanted):
        return False
    if isinstance(wanted, dict):
        return set(found) == set(wanted) and all(_are_equal(found[name], wanted[name]) for name in wanted)
    if isinstance(wanted, (list, tuple)):
        return len(found) == len(wanted) and all(map(_are_equal, found, wanted))
    return isinstance(wanted, (bool, int, float, str, type(None))) and found == wanted


def _kind(value: Any) -> str:
    return f"an object of {len(value)} fields" if isinstance(value, dict) else f"a {type(value).__name__}"
