"""The CUDA kernels as PyTorch operators, `torch.ops.actvar.*`: what a plugin computes, in eager PyTorch.

Importing this module defines the operators; the library is loaded when one is first called. They run on CUDA alone: for
a tensor elsewhere PyTorch says that there is no such operator, as the model's own functions (actvar.models.selection)
are what computes there. Shapes and dtypes are checked before anything is launched, by the same functions that answer
for fake tensors in torch.export and torch.compile. There are no gradients.

Meaning and argument order are those of the ONNX operators (export/operators/sparse.py and fused.py). Letters in
shapes: R rows, L tokens, K kept tokens, C width, N experts, de hidden neurons of an expert, A active experts.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from actvar.plugins.kernel_calls import DTYPE_CODES, Kernels, RoutedFfnShape, open_kernels

_CODES = {getattr(torch, name): code for name, code in DTYPE_CODES.items()}
_ALIGNMENT = 16  # of every address that the routed FFN takes, in bytes
_LONGEST_ROW, _WIDEST, _MOST_EXPERTS, _RUN = 1024, 8192, 32, 8


@dataclass(frozen=True)
class Launcher:
    """Launches the kernels on tensors' memory.

    Args:
        kernels: the library.
        stream: puts a tensor's device in place for the length of a block, and gives the stream to work on.
    """

    kernels: Kernels
    stream: Callable[[Tensor], AbstractContextManager[int]]

    def token_select(self, scores: Tensor, keep: int) -> Tensor:
        """See `token_select`."""
        indices = _selected(scores, keep)
        rows, length = scores.shape
        scores = scores.contiguous()
        with self.stream(scores) as stream:
            addresses = indices.data_ptr(), None
            self.kernels.launch("actvarTokenSelect", scores.data_ptr(), rows, length, keep, *addresses, stream)
        return indices

    def token_gather(self, x: Tensor, indices: Tensor) -> Tensor:
        """See `token_gather`."""
        kept = _gathered(x, indices)
        x, indices = x.contiguous(), indices.contiguous()
        with self.stream(x) as stream:
            addresses = x.data_ptr(), indices.data_ptr(), kept.data_ptr()
            self.kernels.launch("actvarTokenGather", *addresses, *_moved(x, indices), stream)
        return kept

    def token_scatter(self, x: Tensor, indices: Tensor, updated: Tensor) -> Tensor:
        """See `token_scatter`."""
        y = _scattered(x, indices, updated)
        x, indices, updated = x.contiguous(), indices.contiguous(), updated.contiguous()
        with self.stream(x) as stream:
            addresses = x.data_ptr(), indices.data_ptr(), updated.data_ptr(), y.data_ptr()
            self.kernels.launch("actvarTokenScatter", *addresses, *_moved(x, indices), stream)
        return y

    def token_gather_norm(
        self, x: Tensor, indices: Tensor, scale: Tensor, shift: Tensor, to: torch.dtype, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        """See `token_gather_norm`."""
        kept, normed = _gathered_and_normed(x, indices, scale, shift, to, epsilon)
        given = [tensor.contiguous() for tensor in (x, indices, scale, shift)]
        sizes = *x.shape[:2], *kept.shape[1:], epsilon, _CODES[to]
        with self.stream(x) as stream:
            addresses = (tensor.data_ptr() for tensor in (*given, kept, normed))
            self.kernels.launch("actvarTokenGatherNorm", *addresses, *sizes, stream)
        return kept, normed

    def token_scatter_gated(self, x: Tensor, indices: Tensor, kept: Tensor, gamma: Tensor, change: Tensor) -> Tensor:
        """See `token_scatter_gated`."""
        y = _scattered_with_gate(x, indices, kept, gamma, change)
        given = [tensor.contiguous() for tensor in (x, indices, kept, gamma, change)]
        sizes = *x.shape[:2], *kept.shape[1:], _CODES[change.dtype]
        with self.stream(x) as stream:
            addresses = (tensor.data_ptr() for tensor in (*given, y))
            self.kernels.launch("actvarTokenScatterGated", *addresses, *sizes, stream)
        return y

    def routed_ffn(
        self, x: Tensor, scores: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, experts: int, active: int
    ) -> Tensor:
        """See `routed_ffn`."""
        y = _routed(x, scores, w1, b1, w2, b2, experts, active)
        tokens, (_, hidden, width) = x.shape[0] * x.shape[1], w1.shape
        shape = RoutedFfnShape(tokens, width, hidden, experts, active, _CODES[x.dtype])
        size = self.kernels.routed_ffn_workspace(shape)
        workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
        given = [_aligned(tensor) for tensor in (x, scores, w1, b1, w2, b2)]
        with self.stream(x) as stream:
            addresses = (tensor.data_ptr() for tensor in (*given, y, workspace))
            self.kernels.launch("actvarRoutedFfn", ctypes.byref(shape), 0, *addresses, size, stream)
        return y


# ---- the operators


@torch.library.custom_op("actvar::token_select", mutates_args=(), device_types="cuda")
def token_select(scores: Tensor, keep: int) -> Tensor:
    """Places of the `keep` highest scores of every row, ascending: RL fp32 -> RK int64.

    Equal scores: the lower place first. NaN counts as largest, -0 equals +0.

    Raises:
        ValueError: a shape or dtype is wrong, or the kernel does not take so many scores.
        ActVARError: the kernels are not built.
        EngineError: CUDA failed.
    """
    return _on_cuda().token_select(scores, keep)


@torch.library.custom_op("actvar::token_gather", mutates_args=(), device_types="cuda")
def token_gather(x: Tensor, indices: Tensor) -> Tensor:
    """The chosen tokens: RLC, RK int64 -> RKC. Zeros for an index outside 0..L-1. Raises as `token_select` does."""
    return _on_cuda().token_gather(x, indices)


@torch.library.custom_op("actvar::token_scatter", mutates_args=(), device_types="cuda")
def token_scatter(x: Tensor, indices: Tensor, updated: Tensor) -> Tensor:
    """x with the chosen tokens replaced: RLC, RK int64, RKC -> RLC. An index outside 0..L-1 is passed over, of equal
    ones the last counts. Raises as `token_select` does."""
    return _on_cuda().token_scatter(x, indices, updated)


@torch.library.custom_op("actvar::token_gather_norm", mutates_args=(), device_types="cuda")
def token_gather_norm(
    x: Tensor, indices: Tensor, scale: Tensor, shift: Tensor, to: torch.dtype, epsilon: float
) -> tuple[Tensor, Tensor]:
    """The chosen tokens, and LayerNorm of them, modulated: x RLC, scale and shift R1C, all fp32 -> RKC fp32, RKC `to`.

    Raises as `token_select` does.
    """
    return _on_cuda().token_gather_norm(x, indices, scale, shift, to, epsilon)


@torch.library.custom_op("actvar::token_scatter_gated", mutates_args=(), device_types="cuda")
def token_scatter_gated(x: Tensor, indices: Tensor, kept: Tensor, gamma: Tensor, change: Tensor) -> Tensor:
    """x with kept + gamma * change in place of the chosen tokens, fp32 but for change: RLC, RK, RKC, R1C, RKC -> RLC.

    Raises as `token_select` does.
    """
    return _on_cuda().token_scatter_gated(x, indices, kept, gamma, change)


@torch.library.custom_op("actvar::routed_ffn", mutates_args=(), device_types="cuda")
def routed_ffn(
    x: Tensor, scores: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, experts: int, active: int
) -> Tensor:
    """The sum of each token's `active` best experts, b2 added once.

    Shapes: x RKC, scores RKN fp32, w1 and w2 [N, de, C], b1 [N, de], b2 C, of x's dtype -> RKC. C and de are multiples
    of 8, N is at most 32. Raises as `token_select` does.
    """
    return _on_cuda().routed_ffn(x, scores, w1, b1, w2, b2, experts, active)


# ---- what comes out, of which shape; what is not right is refused


@token_select.register_fake
def _selected(scores: Tensor, keep: int) -> Tensor:
    _expect(scores.ndim == 2 and scores.dtype == torch.float32, "scores must be [R, L] of fp32", scores)
    rows, length = scores.shape
    _expect(length <= _LONGEST_ROW, f"scores must have at most {_LONGEST_ROW} in a row", scores)
    _expect(1 <= keep <= length, f"keep must be 1 to L, and is {keep}, for scores", scores)
    return scores.new_empty((rows, keep), dtype=torch.int64)


@token_gather.register_fake
def _gathered(x: Tensor, indices: Tensor) -> Tensor:
    _expect_tokens(x, indices)
    return x.new_empty((*indices.shape, x.shape[2]))


@token_scatter.register_fake
def _scattered(x: Tensor, indices: Tensor, updated: Tensor) -> Tensor:
    _expect_tokens(x, indices)
    _expect_like(x, "updated", updated, (*indices.shape, x.shape[2]))
    return x.new_empty(x.shape)


@token_gather_norm.register_fake
def _gathered_and_normed(
    x: Tensor, indices: Tensor, scale: Tensor, shift: Tensor, to: torch.dtype, epsilon: float
) -> tuple[Tensor, Tensor]:
    _expect_fp32_tokens(x, indices)
    _expect(to in _CODES, f"to must be fp32, fp16 or bf16, and is {to}, for x", x)
    rows, _, width = x.shape
    _expect_like(x, "scale", scale, (rows, 1, width))
    _expect_like(x, "shift", shift, (rows, 1, width))
    shape = (*indices.shape, width)
    return x.new_empty(shape), x.new_empty(shape, dtype=to)


@token_scatter_gated.register_fake
def _scattered_with_gate(x: Tensor, indices: Tensor, kept: Tensor, gamma: Tensor, change: Tensor) -> Tensor:
    _expect_fp32_tokens(x, indices)
    rows, _, width = x.shape
    _expect_like(x, "kept", kept, (*indices.shape, width))
    _expect_like(x, "gamma", gamma, (rows, 1, width))
    right = change.shape == kept.shape and change.dtype in _CODES and change.device == x.device
    _expect(right, "change must be shaped as kept, of fp32, fp16 or bf16, beside x", change)
    return x.new_empty(x.shape)


@routed_ffn.register_fake
def _routed(
    x: Tensor, scores: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, experts: int, active: int
) -> Tensor:
    _expect(x.ndim == 3 and x.dtype in _CODES, "x must be [R, K, C] of fp32, fp16 or bf16", x)
    _expect(1 <= active <= experts <= _MOST_EXPERTS, f"active {active} of experts {experts} is none for", x)
    _expect(w1.ndim == 3, "w1 must be [N, de, C]", w1)
    hidden, width = w1.shape[1], x.shape[2]
    _expect(hidden % _RUN == 0 and width % _RUN == 0, f"de and C must be multiples of {_RUN} in w1", w1)
    wanted = (*x.shape[:2], experts)
    right = scores.dtype == torch.float32 and scores.shape == wanted and scores.device == x.device
    _expect(right, f"scores must be {list(wanted)} of fp32, beside x", scores)
    _expect_like(x, "w1", w1, (experts, hidden, width))
    _expect_like(x, "b1", b1, (experts, hidden))
    _expect_like(x, "w2", w2, (experts, hidden, width))
    _expect_like(x, "b2", b2, (width,))
    return x.new_empty(x.shape)


def _expect_tokens(x: Tensor, indices: Tensor) -> None:
    _expect(x.ndim == 3 and x.dtype in _CODES, "x must be [R, L, C] of fp32, fp16 or bf16", x)
    right = indices.ndim == 2 and indices.dtype == torch.int64 and indices.device == x.device
    _expect(right and indices.shape[0] == x.shape[0], "indices must be [R, K] of int64, with x's R, beside x", indices)
    _expect(indices.shape[1] <= x.shape[1], f"indices must be at most x's {x.shape[1]} in a row", indices)


def _expect_fp32_tokens(x: Tensor, indices: Tensor) -> None:
    _expect(x.dtype == torch.float32, "x must be of fp32", x)
    _expect_tokens(x, indices)
    _expect(x.shape[2] <= _WIDEST, f"x must have at most {_WIDEST} values in a token", x)


def _expect_like(x: Tensor, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    right = tensor.shape == shape and tensor.dtype == x.dtype and tensor.device == x.device
    _expect(right, f"{name} must be {list(shape)} of x's {x.dtype}, beside x", tensor)


def _expect(right: bool, what: str, tensor: Tensor) -> None:
    if not right:
        raise ValueError(f"{what}: got {list(tensor.shape)} of {tensor.dtype} on {tensor.device}")


# ---- memory and streams


@cache
def _on_cuda() -> Launcher:
    return Launcher(open_kernels(), _current_stream)


@contextmanager
def _current_stream(tensor: Tensor) -> Iterator[int]:
    with torch.cuda.device(tensor.device):
        yield torch.cuda.current_stream(tensor.device).cuda_stream


def _moved(x: Tensor, indices: Tensor) -> tuple[int, ...]:
    """rows, length, keep, width, dtype, as gather and scatter take them."""
    rows, length, width = x.shape
    return rows, length, indices.shape[1], width, _CODES[x.dtype]


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where it is not contiguous or starts where the routed FFN could not read it."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % _ALIGNMENT else tensor
