"""Kernels launched once, for tools that watch a process: compute-sanitizer, and Nsight Compute's ncu.

    python -m actvar.benchmarks.gpu.kernel_runs NAME ...

Values are random and shapes are odd where a kernel takes odd ones. Nothing is compared: that is the tests' affair.
"""

import argparse
import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from actvar.errors import UsageError
from actvar.plugins.kernel_calls import DTYPE_CODES, Kernels, RoutedFfnShape, open_kernels
from actvar.runtime.backends.cuda_memory import CudaMemory, CudaStream
from actvar.runtime.backends.memory import Block

_ROWS, _LENGTH, _KEEP, _WIDTH, _EXPERTS, _EPSILON = 3, 169, 127, 136, 16, 1e-6
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class KernelRuns:
    """Launches kernels by name, on memory of its own."""

    kernels: Kernels
    memory: CudaMemory
    stream: CudaStream

    @property
    def named(self) -> dict[str, Callable[[], None]]:
        """All that there are."""
        routed = {
            f"routed ffn, {dtype}, M = {tokens}": lambda dtype=dtype, tokens=tokens: self.routed(dtype, tokens)
            for dtype, tokens in (("float32", 70), ("float16", 70), ("float16", 1100), ("bfloat16", 1100))
        }
        return {
            "select": self.select,
            "gather": lambda: self._move("actvarTokenGather"),
            "scatter": lambda: self._move("actvarTokenScatter"),
            "gather + norm": self.gather_norm,
            "gate + scatter": self.scatter_gated,
            "order": self.order,
            **routed,
        }

    def select(self) -> None:
        """Of a row that no warp divides."""
        scores, places = self._random(_ROWS * _LENGTH), self.memory.allocate(8 * _ROWS * _KEEP)
        given = scores.address, _ROWS, _LENGTH, _KEEP, places.address, None
        self._launch("actvarTokenSelect", *given)

    def gather_norm(self) -> None:
        """To fp16."""
        x, modulation = self._random(_ROWS * _LENGTH * _WIDTH), self._random(_ROWS * _WIDTH)
        kept, normed = (self.memory.allocate(4 * _ROWS * _KEEP * _WIDTH) for _ in range(2))
        given = x.address, self._places().address, modulation.address, modulation.address
        sizes = _ROWS, _LENGTH, _KEEP, _WIDTH, _EPSILON, DTYPE_CODES["float16"]
        self._launch("actvarTokenGatherNorm", *given, kept.address, normed.address, *sizes)

    def scatter_gated(self) -> None:
        """Of a change in fp16."""
        x, kept, gamma = (self._random(n * _ROWS * _WIDTH) for n in (_LENGTH, _KEEP, 1))
        change, y = self._random(_ROWS * _KEEP * _WIDTH, "float16"), self.memory.allocate(x.bytes)
        given = x.address, self._places().address, kept.address, gamma.address, change.address, y.address
        self._launch("actvarTokenScatterGated", *given, _ROWS, _LENGTH, _KEEP, _WIDTH, DTYPE_CODES["float16"])

    def order(self) -> None:
        """Masks, and the tokens ordered by them in two slices."""
        tokens, slices = 1100, 2
        scores, masks = self._random(tokens * _EXPERTS), self.memory.allocate(4 * tokens)
        self._launch("actvarExpertRoute", scores.address, tokens, _EXPERTS, 12, masks.address)
        order = self.memory.allocate(4 * slices * tokens)
        scratch = self.memory.allocate(self.kernels.expert_order_workspace(tokens, slices))
        given = masks.address, tokens, _EXPERTS, slices, order.address, scratch.address
        self._launch("actvarExpertOrder", *given)

    def routed(self, dtype: str, tokens: int, width: int = _WIDTH, hidden: int = 40, active: int = 8) -> None:
        """The routed FFN by the library's own tactic; `hidden` neurons an expert."""
        shape = RoutedFfnShape(tokens, width, hidden, _EXPERTS, active, DTYPE_CODES[dtype])
        x, scores = self._random(tokens * width, dtype), self._random(tokens * _EXPERTS)
        w1, w2 = (self._random(_EXPERTS * hidden * width, dtype) for _ in range(2))
        b1, b2 = self._random(_EXPERTS * hidden, dtype), self._random(width, dtype)
        y = self.memory.allocate(tokens * width * _BYTES[dtype])
        workspace = self.memory.allocate(self.kernels.routed_ffn_workspace(shape))
        addresses = (each.address for each in (x, scores, w1, b1, w2, b2, y, workspace))
        self._launch("actvarRoutedFfn", ctypes.byref(shape), 0, *addresses, workspace.bytes)

    def _move(self, function: str) -> None:
        x, y = (self._random(_ROWS * _LENGTH * _WIDTH) for _ in range(2))
        places, updated = self._places().address, [x.address] if "Scatter" in function else []
        sizes = _ROWS, _LENGTH, _KEEP, _WIDTH, DTYPE_CODES["float32"]
        self._launch(function, x.address, places, *updated, y.address, *sizes)

    def _places(self) -> Block:
        rng = np.random.default_rng(1)
        rows = [np.sort(rng.permutation(_LENGTH)[:_KEEP]) for _ in range(_ROWS)]
        return self._put(np.stack(rows).astype(np.int64))

    def _random(self, count: int, dtype: str = "float32") -> Block:
        values = np.random.default_rng(0).standard_normal(count, np.float32) / 4
        if dtype == "bfloat16":
            return self._put((values.view(np.uint32) >> 16).astype(np.uint16))
        return self._put(values.astype(dtype))

    def _put(self, content: np.ndarray) -> Block:
        block, staged = self.memory.allocate(content.nbytes), self.memory.stage(content.nbytes)
        staged[:] = content.reshape(-1).view(np.uint8)
        self.stream.write(block.address, staged)
        self.stream.wait()
        return block

    def _launch(self, function: str, *given: object) -> None:
        self.kernels.launch(function, *given, self.stream.handle)
        self.stream.wait()


def main() -> None:
    """Run what the arguments name.

    Raises:
        UsageError: nothing bears a name.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", metavar="NAME", nargs="+")
    given = parser.parse_args()
    memory = CudaMemory()
    runs = KernelRuns(open_kernels(), memory, memory.stream())
    for name in given.names:
        if name == PROFILED:
            runs.routed("float16", 4096, 1280, 320, 8)
        elif name in runs.named:
            runs.named[name]()
        else:
            raise UsageError(f"No run is called {name!r}. There are {', '.join(runs.named)}.")


PROFILED = "d20, M = 4096"
"""The routed FFN of d20 with 8 of 16 experts."""

if __name__ == "__main__":
    main()
