"""The tensors of one network as a file gave them, before they are trusted.

Knows how to hold them to a module's names and shapes and to say what does not fit; no format, no configuration.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actvar.checkpoint.refusals import damaged, is_out_of_memory, odd_tensor, too_little_memory
from actvar.errors import CheckpointError, shown

_WHOLE = "Use the whole, original file."


# Types that `.to(torch.float32)` knows. Complex numbers, packed halves of bytes and the like are no weights.
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


@dataclass(frozen=True)
class Weights:
    """Tensors under the model's names. `path` and `prefix` say where in which file they stand.

    `note` is a sentence that ends every message: which of several networks was taken.
    """

    path: Path
    prefix: str
    tensors: Mapping[str, Tensor]
    note: str = ""

    @classmethod
    def of(cls, path: Path, prefix: str, content: Mapping[Any, Any], note: str = "") -> "Weights":
        """Take a state dictionary: the one place where a tensor is looked at before anything is done with it.

        Gradients are left behind, so that a parameter is as good as its values.

        Raises:
            CheckpointError: something in it is not a plain tensor with a name, or they are larger together than the
                memory that they are views of.
        """
        tensors: dict[str, Tensor] = {}
        for name, value in content.items():
            if not isinstance(name, str) or not isinstance(value, Tensor):
                raise CheckpointError(
                    f"{shown(path)}: {prefix}{shown(name)}: expected a tensor, found {type(value).__name__}. "
                    f"Use a file that holds one network's state and nothing else.{note}"
                )
            if not _is_plain(value):
                raise odd_tensor(path, prefix + name, _describe(value))
            tensors[name] = value.detach()
        own = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors.values()}
        if sum(t.nbytes for t in tensors.values()) > sum(own.values()):
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
            tensor = self.tensors[name]
            if list(tensor.shape) != list(shape) or tensor.dtype not in _FLOATS:
                raise self.wrong(name, f"floating point of the shape {list(shape)}", _describe(tensor), whole)

    def read(self, name: str, copy: bool = False) -> Tensor:
        """One tensor in fp32, contiguous.

        Args:
            name: as it stands in the file, without the prefix.
            copy: into memory of its own, as the file may be changed once it has been read. Otherwise fp32 stays mapped.

        Raises:
            CheckpointError: a value is not finite, or there is no memory for it.
        """
        try:
            tensor = self.tensors[name].to(torch.float32, copy=copy).contiguous()
        except (RuntimeError, MemoryError) as error:
            raise (too_little_memory(self.path) if is_out_of_memory(error) else damaged(self.path, error)) from None
        if not torch.isfinite(tensor.sum()):  # a quick look: masks would be as large as the tensor
            wrong = int((~torch.isfinite(tensor)).sum())
            if wrong:
                found = f"NaN or infinity in {wrong} of {tensor.numel()}"
                raise self.wrong(name, "finite values", found, "Use a checkpoint from before the training diverged.")
        return tensor


def _is_plain(tensor: Tensor) -> bool:
    """Whether its values are all there as they stand, in a type that weights have.

    A view with stride 0 may claim any size, and be far larger than its file.
    """
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout != torch.strided:
        return False
    if tensor.device.type != "cpu" or tensor.dtype not in _FLOATS + _INTEGERS or tensor.is_neg():
        return False
    return 0 < tensor.nbytes <= tensor.untyped_storage().nbytes()


def _describe(tensor: Tensor) -> str:
    """Type, layout and shape; and what else makes a tensor odd."""
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return f"a tensor of the sub-class {shown(type(tensor).__name__)}"
    kind = str(tensor.dtype).removeprefix("torch.")
    layout = "" if tensor.layout == torch.strided else f" {str(tensor.layout).removeprefix('torch.')}"
    sign = ", its values with the other sign," if tensor.dtype in _FLOATS and tensor.is_neg() else ""
    place = "" if tensor.device.type == "cpu" else f" on the device {tensor.device.type}"
    return f"{kind}{layout}{place}{sign} of the shape {list(tensor.shape)}"
