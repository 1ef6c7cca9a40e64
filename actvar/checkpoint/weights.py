"""The tensors of one network as a file gave them, before they are trusted.

Knows how to hold them to a module's names and shapes and to say what does not fit; no format, no configuration.
"""

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from actvar.checkpoint.refusals import damaged, is_out_of_memory, odd_tensor, too_little_memory
from actvar.checkpoint.values import FLOATS, INTEGERS, Values
from actvar.errors import CheckpointError, shown

_WHOLE = "Use the whole, original file."


@dataclass(frozen=True)
class Weights:
    """Tensors under the model's names. `path` and `prefix` say where in which file they stand.

    `note` is a sentence that ends every message: which of several networks was taken.
    """

    path: Path
    prefix: str
    tensors: Mapping[str, Values]
    note: str = ""

    @classmethod
    def of(cls, path: Path, prefix: str, content: Mapping[Any, Any], note: str = "") -> "Weights":
        """Take a state dictionary: the one place where a tensor is looked at before anything is done with it.

        Raises:
            CheckpointError: something in it is not a plain tensor with a name, or they are larger together than the
                memory that they are views of.
        """
        tensors: dict[str, Values] = {}
        for name, value in content.items():
            plain, found = _plain(value)
            if not isinstance(name, str) or not found:
                raise CheckpointError(
                    f"{shown(path)}: {prefix}{shown(name)}: expected a tensor, found {type(value).__name__}. "
                    f"Use a file that holds one network's state and nothing else.{note}"
                )
            if plain is None:
                raise odd_tensor(path, prefix + name, found)
            tensors[name] = plain
        own = dict(values.memory for values in tensors.values())
        if sum(values.nbytes for values in tensors.values()) > sum(own.values()):
            raise CheckpointError(
                f"{shown(path)}: {prefix.rstrip('.') or 'its state'}: expected tensors that each have values of their "
                f"own, found some that share them. Write the checkpoint again with every tensor cloned.{note}"
            )
        return cls(path, prefix, tensors, note)

    def wrong(self, name: str, expected: object, found: object, advice: str) -> CheckpointError:
        """The error that says what does not fit."""
        return CheckpointError(
            f"{shown(self.path)}: {self.prefix}{shown(name)}: expected {expected}, found {found}. {advice}{self.note}"
        )

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """The shape of a tensor that must be there, with this many dimensions."""
        if name not in self.tensors:
            raise self.wrong(name, f"a tensor of {rank} dimensions", "none of that name", _WHOLE)
        shape = self.tensors[name].shape
        if len(shape) != rank:
            raise self.wrong(name, f"{rank} dimensions", f"the shape {list(shape)}", _WHOLE)
        return shape

    def count(self, prefix: str) -> int:
        """How many different modules of a list there are: of `blocks.0.x`, `blocks.0.y`, `blocks.1.x` two."""
        names = [name.removeprefix(prefix) for name in self.tensors if name.startswith(prefix)]
        return len({name.partition(".")[0] for name in names})

    def without(self, names: Collection[str]) -> "Weights":
        """All but these."""
        return replace(self, tensors={name: t for name, t in self.tensors.items() if name not in names})

    def require(self, expected: Mapping[str, Sequence[int]], what: str) -> None:
        """Make sure that these tensors are there, and no others.

        Args:
            expected: shapes by name.
            what: the network, for messages.

        Raises:
            CheckpointError: a tensor is missing, left over, of another shape or kind.
        """
        whole = f"Use the whole, original file of {what}."
        for name in (name for name in expected if name not in self.tensors):
            missing = len(expected.keys() - self.tensors.keys())
            found = f"no such tensor ({missing} are missing)"
            raise self.wrong(name, f"the shape {list(expected[name])}", found, whole)
        for name in (name for name in self.tensors if name not in expected):
            extra = len(self.tensors.keys() - expected.keys())
            found = f"one of the shape {list(self.tensors[name].shape)} ({extra} are too many)"
            raise self.wrong(name, "no such tensor", found, whole)
        for name, shape in expected.items():
            values = self.tensors[name]
            if list(values.shape) != list(shape) or values.dtype not in FLOATS:
                raise self.wrong(name, f"floating point of the shape {list(shape)}", values.describe(), whole)

    def read(self, name: str, copy: bool = False) -> np.ndarray:
        """One tensor in fp32, contiguous.

        Args:
            name: as it stands in the file, without the prefix.
            copy: into memory of its own, as the file may be changed once it has been read. Otherwise fp32 may stay
                mapped.

        Raises:
            CheckpointError: a value is not finite, or there is no memory for it; or the file was changed meanwhile.
        """
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is counted below
                stored = self.tensors[name].read()
                values = np.ascontiguousarray(stored, np.float32)
                if copy and np.may_share_memory(values, stored) and not stored.flags.owndata:
                    values = values.copy()
                looks_finite = np.isfinite(values.sum())  # a quick look: masks would be as large as the tensor
        except (RuntimeError, MemoryError, OSError) as error:
            raise (too_little_memory(self.path) if is_out_of_memory(error) else damaged(self.path, error)) from None
        wrong = 0 if looks_finite else int((~np.isfinite(values)).sum())
        if wrong:
            found = f"NaN or infinity in {wrong} of {values.size}"
            raise self.wrong(name, "finite values", found, "Use a checkpoint from before the training diverged.")
        return values


def _plain(value: Any) -> tuple[Values | None, str]:
    """The values, if they are plain ones; and what was found, in words, if it is a tensor at all."""
    if isinstance(value, Values):
        is_plain = value.dtype in FLOATS + INTEGERS and value.size > 0
        return (value if is_plain else None), value.describe()
    if "torch" not in sys.modules:  # what gave one of its tensors has loaded it
        return None, ""
    from actvar.checkpoint import torch_tensors

    return torch_tensors.plain_values(value)
