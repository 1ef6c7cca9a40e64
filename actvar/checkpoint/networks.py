"""VAR's and the VQVAE's tensors in what a file holds, however a training left them there.

Knows the wrappings: of official VAR's trainer, of DistributedDataParallel and torch.compile, of the dictionaries that
training scripts save; nested, or flattened into dotted names. What the tensors must be is `official.py`'s.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from actvar.checkpoint.tensor_file import TensorFile
from actvar.checkpoint.weights import Weights
from actvar.errors import CheckpointError, shown

# What modules around a network put into the names of its tensors, wherever they were put around it.
_SHELLS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Dictionaries around a state.
_AVERAGES = {"ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema"}
_KINDS = {"var_wo_ddp": "VAR", "vae_local": "VQVAE"}
_WRAPPERS = {"model", "state_dict", "model_state_dict", "trainer"} | _AVERAGES | _KINDS.keys()
_BEGINNINGS = {"blocks.": "VAR", "quantize.": "VQVAE"}
_MAX_DICTIONARIES = 64  # a file may hold one within itself, or one a thousand times


@dataclass
class _State:
    """A dictionary of tensors, and the wrappers around it; `twice` are names that stand there in two ways."""

    place: tuple[str, ...]
    tensors: dict[Any, Any] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)

    @property
    def is_average(self) -> bool:
        """Whether it is a moving average of the weights."""
        return not _AVERAGES.isdisjoint(self.place)

    @property
    def kind(self) -> str | None:
        """The network that it is of, as its wrappers say or else its names."""
        said = [_KINDS[wrapper] for wrapper in self.place if wrapper in _KINDS]
        names = [name for name in self.tensors if isinstance(name, str)]
        found = [kind for start, kind in _BEGINNINGS.items() if any(name.startswith(start) for name in names)]
        return said[-1] if said else found[0] if found else None


def networks(file: TensorFile) -> tuple[Weights | None, Weights | None]:
    """VAR's and the VQVAE's weights, as far as a file has them.

    Read are states that stand by themselves, and those in `model`, `state_dict`, `trainer.var_wo_ddp` and their like,
    with or without `module.` and `_orig_mod.` in the names. Where a file holds a moving average of the weights (`ema`,
    `model_ema`, …) beside the model, the average is taken, as pictures are drawn with it; messages then say so.

    Raises:
        CheckpointError: a file holds a network twice and neither is an average, or a tensor twice.
    """
    states = _states(file.content)
    return _network(file, states, "VAR"), _network(file, states, "VQVAE")


def _network(file: TensorFile, states: list[_State], kind: str) -> Weights | None:
    found = [state for state in states if state.kind == kind]
    averages = [state for state in found if state.is_average]
    chosen = averages or found
    if len(chosen) > 1:
        places = " and ".join(_name(state) for state in chosen[:3])
        raise CheckpointError(
            f"{shown(file.path)} holds {len(chosen)} of a {kind}, {places}, and does not tell which is meant. "
            "Save that one in a file of its own."
        )
    if not chosen:
        return None
    state = chosen[0]
    if state.twice:
        raise CheckpointError(
            f"{shown(file.path)}: {shown(state.twice[0])} is there twice, with and without module or _orig_mod. "
            "Save the state of one of the two."
        )
    others = [_name(other) for other in found if other is not state]
    note = f" Its average in {_name(state)} was read, and not {' or '.join(others[:3])} beside it." if others else ""
    return Weights.of(file.path, f"{_name(state)}." if state.place else "", state.tensors, note)


def _name(state: _State) -> str:
    return shown(".".join(state.place), 200) or "the one without a name"


def _states(content: Mapping[Any, Any]) -> list[_State]:
    """Every dictionary of the file that could be a network's state, without its wrappers and shells."""
    states: dict[tuple[str, ...], _State] = {}
    for place, name, value in _entries(content):
        state = states.setdefault(place, _State(place))
        if name in state.tensors:
            state.twice.append(name)
        state.tensors[name] = value
    return list(states.values())


def _entries(content: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Wrappers, name and value of everything in a file, looked for in wrappers only."""
    waiting: list[tuple[tuple[str, ...], tuple[Mapping[Any, Any], ...]]] = [((), (content,))]
    opened = 0
    while waiting:
        place, within = waiting.pop(0)
        opened += 1
        for key, value in within[-1].items():
            parts = [part for part in key.split(".") if part not in _SHELLS] if isinstance(key, str) else [key]
            count = next((i for i, part in enumerate(parts) if part not in _WRAPPERS), len(parts))
            rest = parts[count:]
            is_new = isinstance(value, Mapping) and not any(value is outer for outer in within)
            if is_new and not rest and opened + len(waiting) < _MAX_DICTIONARIES:
                waiting.append(((*place, *key.split(".")), (*within, value)))
            else:
                yield (*place, *parts[:count]), ".".join(rest) or key if isinstance(key, str) else key, value
