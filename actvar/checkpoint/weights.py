"""The tensors of one network as a file gave them, before they are trusted.

Knows how to hold them to a module's names and shapes and to say what does not fit; no format, no configuration.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actvar.errors import CheckpointError

_WHOLE = "Use the whole, original file."


@dataclass(frozen=True)
class Weights:
    """Tensors under the model's names. `path` and `prefix` say where in which file they stand."""

    path: Path
    prefix: str
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, path: Path, prefix: str, content: Mapping[Any, Any]) -> "Weights":
        """Take a state dictionary.

        Raises:
            CheckpointError: something in it is not a plain tensor with a name.
        """
        for name, value in content.items():
            if not isinstance(name, str) or not isinstance(value, Tensor):
                raise CheckpointError(
                    f"{path}: {prefix}{name}: expected a tensor, found {type(value).__name__}. "
                    "Use a file that holds one network's state and nothing else."
                )
            if not _is_plain(value):
                raise CheckpointError(
                    f"{path}: {prefix}{name}: expected a dense tensor with all its values, found {_describe(value)}. "
                    "Write the checkpoint again with plain tensors."
                )
        return cls(path, prefix, content)

    def wrong(self, name: str, expected: object, found: object, advice: str) -> CheckpointError:
        """The error that says what does not fit."""
        return CheckpointError(f"{self.path}: {self.prefix}{name}: expected {expected}, found {found}. {advice}")

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """The shape of a tensor that must be there, with this many dimensions."""
        if name not in self.tensors:
            raise self.wrong(name, f"a tensor of {rank} dimensions", "none of that name", _WHOLE)
        shape = tuple(self.tensors[name].shape)
        if len(shape) != rank:
            raise self.wrong(name, f"{rank} dimensions", f"the shape {list(shape)}", _WHOLE)
        return shape

    def count(self, prefix: str) -> int:
        """How many different modules of a list there are: of `blocks.0.x`, `blocks.0.y`, `blocks.1.x` two."""
        names = [name.removeprefix(prefix) for name in self.tensors if name.startswith(prefix)]
        return len({name.partition(".")[0] for name in names})

    def without(self, names: Collection[str]) -> "Weights":
        """All but these."""
        return Weights(self.path, self.prefix, {name: t for name, t in self.tensors.items() if name not in names})

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
            tensor = self.tensors[name]
            if list(tensor.shape) != list(shape) or not tensor.is_floating_point():
                raise self.wrong(name, f"floating point of the shape {list(shape)}", _describe(tensor), whole)

    def read(self, name: str, copy: bool = False) -> Tensor:
        """One tensor in fp32, contiguous.

        Args:
            name: as it stands in the file, without the prefix.
            copy: into memory of its own, as the file may be changed once it has been read. Otherwise fp32 stays mapped.

        Raises:
            CheckpointError: a value is not finite.
        """
        tensor = self.tensors[name].to(torch.float32, copy=copy).contiguous()
        if not torch.isfinite(tensor.sum()):  # a quick look: masks would be as large as the tensor
            wrong = int((~torch.isfinite(tensor)).sum())
            if wrong:
                found = f"NaN or infinity in {wrong} of {tensor.numel()}"
                raise self.wrong(name, "finite values", found, "Use a checkpoint from before the training diverged.")
        return tensor


def _is_plain(tensor: Tensor) -> bool:
    """Whether its values are all there: a view with stride 0 may claim any size, and be far larger than its file."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        return False
    return 0 < tensor.nbytes <= tensor.untyped_storage().nbytes()


def _describe(tensor: Tensor) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    layout = "" if tensor.layout == torch.strided else f" {str(tensor.layout).removeprefix('torch.')}"
    return f"{kind}{layout} of the shape {list(tensor.shape)}"
